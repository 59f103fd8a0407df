//! Mount points: whether a volume can be mounted there.

use crate::daemon::SUBTYPES;
use crate::env::{MountEntry, mounted_at};
use std::ffi::CString;
use std::fmt;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// How long a mount may take to answer before it is said that it does not. As long as a check of a mount point takes in the client it stands for.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);

impl MountEntry {
    /// Whether this is a mount of ours.
    pub fn is_ours(&self) -> bool {
        self.kind.strip_prefix("fuse.").is_some_and(|subtype| SUBTYPES.contains(&subtype))
    }
}

/// Why nothing can be mounted there.
#[derive(Debug)]
pub enum MountpointError {
    /// The place is wrong; says why and what to do.
    Refused(String),
    /// Looking at it or making it failed.
    Failed(PathBuf, io::Error),
}

impl fmt::Display for MountpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MountpointError::Refused(why) => f.write_str(why),
            MountpointError::Failed(path, error) => write!(f, "cannot use {} as mount point: {error}", path.display()),
        }
    }
}

impl std::error::Error for MountpointError {}

/// Makes a mount point usable and returns its absolute path. A missing one is created, a dead mount is taken away. `volume` is the
/// directory of an embedded volume, which must not lie under its own mount: the first read of a block would wait for itself.
pub fn prepare(mountpoint: &Path, volume: Option<&Path>) -> Result<PathBuf, MountpointError> {
    let failed = |error| MountpointError::Failed(mountpoint.into(), error);
    let path = std::path::absolute(mountpoint).map_err(failed)?;
    // First of all: whatever looks at a mount whose process hangs, hangs with it.
    if let Some(entry) = ours_at(&path).map_err(failed)? {
        match state(&entry.mountpoint) {
            // The daemon of an earlier mount has died. Its place is free once the rest of it is gone.
            State::Dead => super::umount::detach(&entry.mountpoint).map_err(failed)?,
            state => return Err(MountpointError::Refused(taken(&entry, state))),
        }
    }
    // Both before anything is created.
    let volume = volume.map(existing_part);
    apart(&existing_part(&path), volume.as_deref())?;
    match fs::metadata(&path) {
        // As above, of a program that goes by another name.
        _ if state(&path) == State::Dead => super::umount::detach(&path).map_err(failed)?,
        Ok(found) if !found.is_dir() => return Err(MountpointError::Refused(format!("{} is no directory", path.display()))),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(&path).map_err(failed)?,
        Err(error) => return Err(failed(error)),
    }
    let path = path.canonicalize().map_err(failed)?;
    apart(&path, volume.as_deref())?;
    // By way of a symbolic link.
    match ours_at(&path).map_err(failed)? {
        Some(entry) => Err(MountpointError::Refused(taken(&entry, State::Alive))),
        None => Ok(path),
    }
}

/// The mount of ours that is on top at a path. The last part of the path is not looked at.
fn ours_at(path: &Path) -> io::Result<Option<MountEntry>> {
    let path = match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path.into(),
    };
    Ok(mounted_at(&path)?.filter(MountEntry::is_ours))
}

/// What to do about a mount that is there already.
fn taken(entry: &MountEntry, state: State) -> String {
    let (place, name) = (entry.mountpoint.display(), entry.source.rsplit(':').next().unwrap_or_default());
    let program = entry.kind.strip_prefix("fuse.").unwrap_or("pando");
    match state {
        State::Silent => format!(
            "volume {name} is mounted at {place}, and its process does not answer; wait for it, or take the mount away with: {program} umount --force {place}"
        ),
        _ => format!("volume {name} is mounted at {place} already; stop it with: {program} umount {place}"),
    }
}

/// What became of the process of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Alive,
    Dead,
    /// No answer within `ANSWER_TIME_MAX`.
    Silent,
}

/// Whether the process of a mount lives. Attributes do not tell: the kernel remembers those of the root for a while after the
/// death. `statfs` goes to the process each time. The thread that asks has ended when this returns, unless there was no answer.
fn state(path: &Path) -> State {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return State::Alive };
    let (tell, answer) = mpsc::channel();
    let asking = std::thread::spawn(move || {
        let mut answer = MaybeUninit::<libc::statfs>::uninit();
        // SAFETY: `path` is a NUL-terminated string and `answer` has room for the answer; both live through the call.
        let failed = unsafe { libc::statfs(path.as_ptr(), answer.as_mut_ptr()) } == -1;
        let dead = failed && io::Error::last_os_error().raw_os_error() == Some(libc::ENOTCONN);
        // Nobody listens any more if it took too long.
        let _ = tell.send(if dead { State::Dead } else { State::Alive });
    });
    match answer.recv_timeout(ANSWER_TIME_MAX) {
        Ok(state) => {
            // Before a fork there must be no other thread.
            let _ = asking.join();
            state
        }
        Err(_) => State::Silent,
    }
}

fn apart(path: &Path, volume: Option<&Path>) -> Result<(), MountpointError> {
    if path == Path::new("/") {
        return Err(MountpointError::Refused("should not mount on the root directory".into()));
    }
    if let Some(volume) = volume.filter(|volume| volume.starts_with(path) || path.starts_with(volume)) {
        return Err(MountpointError::Refused(format!(
            "the mount point {} and the volume {} lie in each other; choose another mount point",
            path.display(),
            volume.display()
        )));
    }
    Ok(())
}

/// The path with its symbolic links resolved as far as it exists.
pub(super) fn existing_part(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let Ok(real) = ancestor.canonicalize()
            && let Ok(rest) = path.strip_prefix(ancestor)
        {
            return if rest.as_os_str().as_bytes().is_empty() { real } else { real.join(rest) };
        }
    }
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_that_cannot_be_mounted_on() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let volume = dir.path().join("vol");
        let refused = |mountpoint: &Path| prepare(mountpoint, Some(&volume)).expect_err("refused").to_string();
        assert!(refused(Path::new("/")).contains("root directory"));
        assert!(refused(dir.path()).contains("each other"));
        assert!(refused(&volume.join("mnt")).contains("each other"));
        assert!(!volume.exists(), "nothing is made in a volume");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("writes");
        assert!(refused(&file).contains("no directory"));
        let fresh = dir.path().join("a/b");
        assert_eq!(prepare(&fresh, Some(&volume)).expect("made"), fresh.canonicalize().expect("is there"));
        // A volume on a server lies nowhere.
        let beside = dir.path().join("vol/mnt");
        assert_eq!(prepare(&beside, None).expect("made"), beside.canonicalize().expect("is there"));
        assert!(prepare(Path::new("/"), None).is_err());
    }
}
