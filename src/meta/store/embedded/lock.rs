//! `DIR/lock`: who uses the directory and which sessions live.
//!
//! Locks of open file descriptions: they belong to this opening of the file, so that two stores in one process are told apart, and end
//! with it however the process dies. Layout: byte 0 is held shared by everyone who has the store open; byte 1 is for the probe; the
//! byte at `SESSIONS_AT + sid` is held by the process of session `sid`. The file has no content.

use super::error::from_io;
use crate::meta::store::StoreError;
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

const PRESENCE_AT: i64 = 0;
const PROBE_AT: i64 = 1;
/// Leaves the first page for other uses.
const SESSIONS_AT: i64 = 4096;

pub(super) struct LockFile {
    file: File,
    /// Sessions claimed here: our own locks never show up as conflicts.
    claimed: Mutex<HashSet<u64>>,
}

/// What became of a request for a lock.
fn request(file: &File, command: libc::c_int, kind: libc::c_int, at: i64) -> io::Result<libc::flock> {
    // SAFETY: `flock` is plain data, all zeros is a value of it.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = at;
    lock.l_len = 1;
    // SAFETY: the descriptor is open while `file` lives, and the kernel reads and writes only the structure.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(lock),
    }
}

/// Takes a lock; false if another holds it.
fn take(file: &File, kind: libc::c_int, at: i64) -> io::Result<bool> {
    match request(file, libc::F_OFD_SETLK, kind, at) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether another opening of the file holds a lock on this byte.
fn held(file: &File, at: i64) -> io::Result<bool> {
    Ok(request(file, libc::F_OFD_GETLK, libc::F_WRLCK, at)?.l_type != libc::F_UNLCK as libc::c_short)
}

fn open(path: &Path) -> Result<File, StoreError> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    opened.map_err(|e| from_io(&path.display().to_string(), &e))
}

impl LockFile {
    /// Opens the file, finds out whether locks work there, and declares presence.
    pub(super) fn open(path: &Path) -> Result<LockFile, StoreError> {
        let file = open(path)?;
        probe(path, &file)?;
        match take(&file, libc::F_RDLCK, PRESENCE_AT) {
            Ok(true) => Ok(LockFile { file, claimed: Mutex::default() }),
            Ok(false) => Err(StoreError::Failed(format!("{} is locked by a foreign program", path.display()))),
            Err(error) => Err(from_io(&path.display().to_string(), &error)),
        }
    }

    /// Whether anybody else is present. When in doubt, yes.
    pub(super) fn shared(&self) -> bool {
        held(&self.file, PRESENCE_AT).unwrap_or(true)
    }

    pub(super) fn claim(&self, sid: u64) -> Result<bool, StoreError> {
        let at = session_at(sid).ok_or_else(|| StoreError::Failed(format!("session id {sid} is out of range")))?;
        let taken = take(&self.file, libc::F_WRLCK, at).map_err(|e| from_io("lock a session", &e))?;
        if taken {
            self.claimed.lock().unwrap_or_else(PoisonError::into_inner).insert(sid);
        }
        Ok(taken)
    }

    pub(super) fn alive(&self, sid: u64) -> Option<bool> {
        if self.claimed.lock().unwrap_or_else(PoisonError::into_inner).contains(&sid) {
            return Some(true);
        }
        held(&self.file, session_at(sid)?).ok()
    }
}

fn session_at(sid: u64) -> Option<i64> {
    i64::try_from(sid).ok()?.checked_add(SESSIONS_AT)
}

/// A lock taken through one opening must be seen through another.
fn probe(path: &Path, file: &File) -> Result<(), StoreError> {
    let refused = |why: &str| {
        let text = format!("{}: file locks do not work on this filesystem ({why}); use a local directory", path.display());
        Err(StoreError::Failed(text))
    };
    match take(file, libc::F_WRLCK, PROBE_AT) {
        // Another process is probing at this moment: the conflict itself shows that locks work.
        Ok(false) => return Ok(()),
        Err(error) => return refused(&error.to_string()),
        Ok(true) => {}
    }
    let other = open(path)?;
    let seen = held(&other, PROBE_AT);
    let released = request(file, libc::F_OFD_SETLK, libc::F_UNLCK, PROBE_AT);
    match (seen, released) {
        (Ok(true), Ok(_)) => Ok(()),
        (Ok(false), Ok(_)) => refused("a lock that is held does not show"),
        (Err(error), _) | (_, Err(error)) => refused(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presence_and_sessions_of_two_openings() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let a = LockFile::open(&path).unwrap();
        assert!(!a.shared());
        assert_eq!((a.claim(7), a.alive(7), a.alive(8)), (Ok(true), Some(true), Some(false)));
        let b = LockFile::open(&path).unwrap();
        assert!(a.shared() && b.shared());
        assert_eq!((b.claim(7), b.alive(7)), (Ok(false), Some(true)));
        assert_eq!(a.claim(7), Ok(true), "one's own lock is no conflict");
        drop(a);
        assert_eq!((b.shared(), b.alive(7), b.claim(7)), (false, Some(false), Ok(true)));
        assert!(matches!(b.claim(u64::MAX), Err(StoreError::Failed(_))));
    }
}
