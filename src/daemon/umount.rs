//! Ending a mount from outside, and waiting until the process that served it has really ended.

use crate::daemon::Record;
use crate::env::mounted_at;
use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long to wait for the process. After the unmount it writes what is buffered, at most its buffer size, and ends.
const END_TIME_MAX: Duration = Duration::from_secs(120);
/// The same when the unmount was forced: programs may go on using the mount for as long as they like.
const FORCED_END_TIME_MAX: Duration = Duration::from_secs(3);
/// Between two looks at the process.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How to unmount.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unmount {
    /// Take the mount away although it is in use.
    pub force: bool,
    /// Insist that it is a mount of ours, whose data is complete afterwards.
    pub flush: bool,
}

/// Why a mount is still there, or its data not known to be complete.
#[derive(Debug)]
pub enum UnmountError {
    /// Nothing is mounted there.
    NotMounted(PathBuf),
    /// Something else is mounted there.
    NotOurs(PathBuf),
    /// Programs use it.
    Busy(PathBuf),
    /// The process goes on for longer than expected.
    StillRunning(PathBuf, u32),
    /// The system refused.
    Failed(PathBuf, io::Error),
}

impl fmt::Display for UnmountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnmountError::NotMounted(path) => write!(f, "failed to unmount {}: nothing is mounted there", path.display()),
            UnmountError::NotOurs(path) => write!(f, "{} is not a Pando mount point", path.display()),
            UnmountError::Busy(path) => {
                let path = path.display();
                write!(
                    f,
                    "failed to unmount {path}: Device or resource busy; end the programs that use it (see `fuser -m {path}`), or add --force"
                )
            }
            UnmountError::StillRunning(path, pid) => write!(
                f,
                "{} is unmounted, but process {pid} is still writing its data after {} seconds; do not switch off before it has ended",
                path.display(),
                END_TIME_MAX.as_secs()
            ),
            UnmountError::Failed(path, error) => write!(f, "failed to unmount {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for UnmountError {}

/// Unmounts and waits.
pub fn umount(mountpoint: &Path, how: Unmount) -> Result<(), UnmountError> {
    let failed = |error| UnmountError::Failed(mountpoint.into(), error);
    // Not canonicalized as a whole: a dead mount cannot be looked at, its parent can.
    let path = std::path::absolute(mountpoint).map_err(failed)?;
    let path = match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path,
    };
    let (path, entry) = match mounted_at(&path).map_err(failed)? {
        Some(entry) => (path, entry),
        // The last part may be a symbolic link.
        None => {
            let real = path.canonicalize().unwrap_or(path);
            let entry = mounted_at(&real).map_err(failed)?.ok_or_else(|| UnmountError::NotMounted(real.clone()))?;
            (real, entry)
        }
    };
    if how.flush && !entry.is_ours() {
        return Err(UnmountError::NotOurs(path));
    }
    let server = Record::find(&entry).filter(|_| entry.is_ours());
    take_away(&path, how.force).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => UnmountError::Busy(path.clone()),
        Some(libc::EINVAL) => UnmountError::NotMounted(path.clone()),
        _ => UnmountError::Failed(path.clone(), error),
    })?;
    server.map_or(Ok(()), |server| wait_for_end(&server, how, &path))
}

/// A process serves one mount, so that it ends with it.
fn wait_for_end(server: &Record, how: Unmount, path: &Path) -> Result<(), UnmountError> {
    let end = crate::env::instant() + if how.force { FORCED_END_TIME_MAX } else { END_TIME_MAX };
    while server.lives() {
        if crate::env::instant() > end {
            return if how.force { Ok(()) } else { Err(UnmountError::StillRunning(path.into(), server.pid)) };
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Takes a mount away although its process is dead or programs use it.
pub fn detach(path: &Path) -> io::Result<()> {
    take_away(path, true)
}

fn take_away(path: &Path, lazily: bool) -> io::Result<()> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    let flags = libc::UMOUNT_NOFOLLOW | if lazily { libc::MNT_DETACH } else { 0 };
    // SAFETY: `text` is a NUL-terminated path that lives through the call.
    if unsafe { libc::umount2(text.as_ptr(), flags) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EPERM) {
        return Err(error);
    }
    // Without privilege the set-uid helper does it for mounts of the same user.
    let how: &[&str] = if lazily { &["-u", "-z"] } else { &["-u"] };
    let output = Command::new("fusermount3").args(how).arg("--").arg(path).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_string();
    Err(if text.contains("busy") { io::Error::from_raw_os_error(libc::EBUSY) } else { io::Error::other(text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_mounted_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let error = umount(dir.path(), Unmount::default()).expect_err("not mounted");
        assert!(matches!(error, UnmountError::NotMounted(_)), "{error}");
        assert!(matches!(umount(Path::new("/proc"), Unmount { flush: true, ..Unmount::default() }), Err(UnmountError::NotOurs(_))));
    }
}
