//! The disk below a directory: how much room it has, and a `Reserve` that keeps some of it for making room.
//!
//! To remove something from a full volume, something has to be written first: the log of the metadata store. The reserve is a preallocated file that is given
//! back to the disk when such a write finds no room. From then on nobody may add data or names until the reserve could be put back, so that what
//! was given back serves those who remove. All that is known about it lies in the length of the file, so that all processes that use a
//! directory agree.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Bytes of a reserve: twice what the log of a metadata store takes before it is started over on a disk that is nearly full.
const RESERVE_BYTES: u64 = 16 << 20;
/// A reserve is at most this part of its disk: a volume on a very small one is to hold something, too.
const RESERVE_PART: u64 = 8;
/// The unit in which a file tells what it takes of its disk.
const BLOCK_BYTES: u64 = 512;
/// A disk with less room than this many reserves is nearly full.
const NEARLY_FULL: u64 = 16;

/// Room on a filesystem: bytes, and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskSpace {
    /// In all.
    pub total: u64,
    /// Not in use.
    pub free: u64,
    /// What may still be used by others than root.
    pub available: u64,
    /// Inodes in all; 0 if there is no number.
    pub files: u64,
    /// Inodes that may still be used by others than root.
    pub files_available: u64,
}

impl DiskSpace {
    /// Of the filesystem a path is on.
    pub fn of(path: &Path) -> io::Result<DiskSpace> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        DiskSpace::ask(|answer| {
            // SAFETY: `path` ends with NUL, and `answer` is a valid place for the answer; both live through the call.
            unsafe { libc::statvfs(path.as_ptr(), answer) }
        })
    }

    fn of_file(file: &File) -> io::Result<DiskSpace> {
        // SAFETY: the descriptor is open while `file` lives, and `answer` is a valid place for the answer.
        DiskSpace::ask(|answer| unsafe { libc::fstatvfs(file.as_raw_fd(), answer) })
    }

    fn ask(call: impl FnOnce(*mut libc::statvfs) -> libc::c_int) -> io::Result<DiskSpace> {
        // SAFETY: `statvfs` is plain data, all zeros is a value of it.
        let mut answer: libc::statvfs = unsafe { std::mem::zeroed() };
        if call(&raw mut answer) == -1 {
            return Err(io::Error::last_os_error());
        }
        let bytes = |blocks: libc::fsblkcnt_t| blocks.saturating_mul(answer.f_frsize);
        Ok(DiskSpace {
            total: bytes(answer.f_blocks),
            free: bytes(answer.f_bfree),
            available: bytes(answer.f_bavail),
            files: answer.f_files,
            files_available: answer.f_favail,
        })
    }
}

/// Room on a disk that is kept for making room. Several processes may have the same one open.
#[derive(Debug)]
pub struct Reserve {
    file: File,
    bytes: u64,
    device: u64,
}

impl Reserve {
    /// Opens the file, which is created if it is missing, and fills it if there is room for it.
    pub fn open(path: &Path) -> io::Result<Reserve> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        // Some filesystems tell no size: there nothing is kept, and nothing is refused before the disk itself does.
        let bytes = DiskSpace::of_file(&file).map_or(0, |space| space.total / RESERVE_PART).min(RESERVE_BYTES);
        let found = file.metadata()?;
        let device = found.dev();
        // A copy of the directory has a hole there instead.
        if found.blocks().saturating_mul(BLOCK_BYTES) < found.len() {
            file.set_len(0)?;
        }
        let reserve = Reserve { file, bytes, device };
        reserve.is_ready();
        Ok(reserve)
    }

    /// Whether it keeps room for what lies in this directory.
    pub fn is_beside(&self, dir: &Path) -> bool {
        std::fs::metadata(dir).is_ok_and(|found| found.dev() == self.device)
    }

    /// Whether data may be added: the reserve is whole, or could be put back just now.
    pub fn is_ready(&self) -> bool {
        self.bytes == 0 || self.is_whole() || self.put_back()
    }

    /// Gives the room to the disk. False if that was done before.
    pub fn give_back(&self) -> io::Result<bool> {
        if self.bytes == 0 || !self.is_whole() {
            return Ok(false);
        }
        self.file.set_len(0)?;
        Ok(true)
    }

    /// Whether so little room is left that those who use some for a while should use less.
    pub fn is_nearly_full(&self) -> bool {
        DiskSpace::of_file(&self.file).is_ok_and(|space| space.available < self.bytes.saturating_mul(NEARLY_FULL))
    }

    fn is_whole(&self) -> bool {
        self.file.metadata().is_ok_and(|found| found.len() > 0)
    }

    /// As long as there is no more room than for the reserve itself it stays away: it would be given back at the next removal.
    fn put_back(&self) -> bool {
        if !DiskSpace::of_file(&self.file).is_ok_and(|space| space.available >= self.bytes.saturating_mul(2)) {
            return false;
        }
        let Ok(bytes) = libc::off_t::try_from(self.bytes) else { return false };
        // SAFETY: the descriptor is open while `self` lives; the call changes nothing of ours. The length stays 0 until all of it is there.
        if unsafe { libc::fallocate(self.file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, bytes) } == 0 {
            return self.file.set_len(self.bytes).is_ok();
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
            // A filesystem that promises nothing: a file without content is a mark that there is room, and all that can be had.
            return self.file.set_len(self.bytes).is_ok();
        }
        // A part of it may have been had.
        let _ = self.file.set_len(0);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_takes_room_gives_it_back_and_takes_it_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reserve");
        let reserve = Reserve::open(&path).unwrap();
        let found = std::fs::metadata(&path).unwrap();
        assert!(found.len() > 0 && found.len() <= RESERVE_BYTES);
        assert!(found.blocks() * 512 >= found.len(), "it is not a hole");
        assert!(reserve.is_ready() && reserve.is_beside(dir.path()) && !reserve.is_beside(Path::new("/proc")));
        let other = Reserve::open(&path).unwrap();
        assert!(other.give_back().unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().blocks(), 0);
        assert!(!reserve.give_back().unwrap(), "another process did");
        assert!(reserve.is_ready(), "there is room");
        let copy = dir.path().join("copy");
        File::create(&copy).unwrap().set_len(found.len()).unwrap();
        drop(Reserve::open(&copy).unwrap());
        let copied = std::fs::metadata(&copy).unwrap();
        assert!(copied.len() == found.len() && copied.blocks() * 512 >= copied.len(), "room that a copy did not have");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), found.len());
    }

    #[test]
    fn a_disk_that_tells_no_size_refuses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve { bytes: 0, ..Reserve::open(&dir.path().join("reserve")).unwrap() };
        assert!(reserve.is_ready() && !reserve.give_back().unwrap() && reserve.is_ready() && !reserve.is_nearly_full());
    }

    #[test]
    fn disks_have_room() {
        let space = DiskSpace::of(Path::new("/")).unwrap();
        assert!(space.total >= space.free && space.free >= space.available && space.total > 0, "{space:?}");
        assert!(DiskSpace::of(Path::new("/no/such/place")).is_err());
    }
}
