//! The kernel's structures and numbers, FUSE 7.45 (`include/uapi/linux/fuse.h`), for as much of the protocol as is spoken here.
//!
//! Every structure is free of padding and its size is asserted at compile time. Numbers are in the byte order of the host.

/// Plain old data: may be read from and written to the device as it lies in memory.
///
/// # Safety
/// The type is `repr(C)`, has no padding, and every pattern of bits is a value of it.
pub(crate) unsafe trait Plain: Copy {}

/// The first bytes of `bytes` as a `T`, and what follows; `None` if there are too few.
pub(crate) fn split<T: Plain>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let (head, rest) = bytes.split_at_checked(size_of::<T>())?;
    // SAFETY: `head` has the size of T, the read asks for no alignment, and every pattern of bits is a T (`Plain`).
    let value = unsafe { head.as_ptr().cast::<T>().read_unaligned() };
    Some((value, rest))
}

/// The bytes of a value.
pub(crate) fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `value` is valid for its size and lives as long as the result; without padding every byte is initialised (`Plain`).
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
}

macro_rules! kernel_structs {
    ($($(#[$doc:meta])* $name:ident = $size:literal { $($field:ident: $ty:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        #[allow(dead_code)]
        pub(crate) struct $name { $(pub(crate) $field: $ty),* }
        const _: () = assert!(size_of::<$name>() == $size, "not the kernel's size");
        const _: () = assert!(0 $(+ size_of::<$ty>())* == $size, "padding between the fields");
        // SAFETY: repr(C); the fields are integers, arrays of them and Plain structures only; the line above excludes padding.
        unsafe impl Plain for $name {}
    )*};
}

kernel_structs! {
    /// Begins every request.
    InHeader = 40 { len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16 }
    /// Begins every reply (`unique` of the request, `error` 0 or negative) and every notification (`unique` 0, `error` its code).
    OutHeader = 16 { len: u32, error: i32, unique: u64 }

    /// Attributes of an inode.
    FuseAttr = 88 {
        ino: u64, size: u64, blocks: u64, atime: i64, mtime: i64, ctime: i64, atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// Answers LOOKUP and whatever makes an inode.
    EntryOut = 128 {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32, attr: FuseAttr,
    }
    /// Answers GETATTR and SETATTR.
    AttrOut = 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: FuseAttr }
    GetattrIn = 16 { getattr_flags: u32, dummy: u32, fh: u64 }
    SetattrIn = 88 {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: i64, mtime: i64, ctime: i64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }

    MknodIn = 16 { mode: u32, rdev: u32, umask: u32, padding: u32 }
    MkdirIn = 8 { mode: u32, umask: u32 }
    RenameIn = 8 { newdir: u64 }
    Rename2In = 16 { newdir: u64, flags: u32, padding: u32 }
    LinkIn = 8 { oldnodeid: u64 }

    OpenIn = 8 { flags: u32, open_flags: u32 }
    /// CREATE and TMPFILE.
    CreateIn = 16 { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    OpenOut = 16 { fh: u64, open_flags: u32, backing_id: i32 }
    ReleaseIn = 24 { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    FlushIn = 24 { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    /// READ, READDIR and READDIRPLUS.
    ReadIn = 40 { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    WriteIn = 40 { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    /// Answers WRITE and COPY_FILE_RANGE.
    WriteOut = 8 { size: u32, padding: u32 }
    FsyncIn = 16 { fh: u64, fsync_flags: u32, padding: u32 }
    FallocateIn = 32 { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    LseekIn = 24 { fh: u64, offset: u64, whence: u32, padding: u32 }
    LseekOut = 8 { offset: u64 }
    /// COPY_FILE_RANGE and COPY_FILE_RANGE_64.
    CopyFileRangeIn = 56 { fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64 }
    /// Answers COPY_FILE_RANGE_64.
    CopyFileRangeOut = 8 { bytes_copied: u64 }

    StatfsOut = 80 {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6],
    }

    /// Without FUSE_SETXATTR_EXT the structure ends here.
    SetxattrIn = 8 { size: u32, flags: u32 }
    /// Follows `SetxattrIn` where SETXATTR_EXT is agreed on.
    SetxattrExtIn = 8 { setxattr_flags: u32, padding: u32 }
    /// GETXATTR and LISTXATTR.
    GetxattrIn = 8 { size: u32, padding: u32 }
    GetxattrOut = 8 { size: u32, padding: u32 }

    FileLock = 24 { start: u64, end: u64, kind: u32, pid: u32 }
    LkIn = 48 { fh: u64, owner: u64, lk: FileLock, lk_flags: u32, padding: u32 }
    LkOut = 24 { lk: FileLock }

    InterruptIn = 8 { unique: u64 }

    /// Followed by the name, then zeros up to a multiple of 8 bytes.
    Dirent = 24 { ino: u64, off: u64, namelen: u32, kind: u32 }
    /// The same, for READDIRPLUS.
    Direntplus = 152 { entry: EntryOut, dirent: Dirent }

    NotifyInvalInodeOut = 24 { ino: u64, off: i64, len: i64 }
    /// Followed by the name and a NUL.
    NotifyInvalEntryOut = 16 { parent: u64, namelen: u32, flags: u32 }
}

/// What a request asks for.
pub(crate) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const GETLK: u32 = 31;
    pub(crate) const SETLK: u32 = 32;
    pub(crate) const SETLKW: u32 = 33;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const IOCTL: u32 = 39;
    pub(crate) const NOTIFY_REPLY: u32 = 41;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
    pub(crate) const SYNCFS: u32 = 50;
    pub(crate) const TMPFILE: u32 = 51;
    pub(crate) const COPY_FILE_RANGE_64: u32 = 53;
}

/// `SetattrIn::valid`: which fields are meant.
pub(crate) mod fattr {
    pub(crate) const MODE: u32 = 1 << 0;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const FH: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
}

/// `GetattrIn::getattr_flags`: the file handle is valid.
pub(crate) const GETATTR_FH: u32 = 1 << 0;
/// `OpenOut::open_flags`: no page cache for this handle.
pub(crate) const FOPEN_DIRECT_IO: u32 = 1 << 0;
/// `OpenOut::open_flags`: keep the pages of earlier opens.
pub(crate) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// `ReleaseIn::release_flags`: the last close of a file with a flock on it.
pub(crate) const SETXATTR_ACL_KILL_SGID: u32 = 1;
pub(crate) const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// `FsyncIn::fsync_flags`: data only.
pub(crate) const FSYNC_FDATASYNC: u32 = 1 << 0;
/// `LkIn::lk_flags`: flock(2), not fcntl(2).
pub(crate) const LK_FLOCK: u32 = 1 << 0;

/// Codes of notifications, in the place of the error.
pub(crate) mod notify {
    pub(crate) const INVAL_INODE: i32 = 2;
    pub(crate) const INVAL_ENTRY: i32 = 3;
    /// Flag of INVAL_ENTRY: the entry is looked up again, but not thrown away with all that is mounted on it; 7.38.
    pub(crate) const EXPIRE_ONLY: u32 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn fields_lie_where_the_kernel_puts_them() {
        let offsets = [
            (offset_of!(InHeader, nodeid), 16),
            (offset_of!(InHeader, pid), 32),
            (offset_of!(FuseAttr, atimensec), 48),
            (offset_of!(FuseAttr, mode), 60),
            (offset_of!(FuseAttr, blksize), 80),
            (offset_of!(EntryOut, attr), 40),
            (offset_of!(AttrOut, attr), 16),
            (offset_of!(SetattrIn, atimensec), 56),
            (offset_of!(SetattrIn, mode), 68),
            (offset_of!(SetattrIn, uid), 76),
            (offset_of!(ReadIn, lock_owner), 24),
            (offset_of!(LkIn, lk_flags), 40),
            (offset_of!(CopyFileRangeIn, flags), 48),
            (offset_of!(StatfsOut, namelen), 44),
            (offset_of!(Direntplus, dirent), 128),
        ];
        for (at, want) in offsets {
            assert_eq!(at, want);
        }
    }

    #[test]
    fn bytes_and_back() {
        let header = InHeader { len: 41, opcode: opcode::LOOKUP, unique: 7, nodeid: 1, uid: 2, gid: 3, pid: 4, ..InHeader::default() };
        let mut bytes = vec![0xAA; 1];
        bytes.extend_from_slice(bytes_of(&header));
        bytes.push(0xBB);
        // At an odd address: no alignment is asked for.
        assert_eq!(split::<InHeader>(&bytes[1..]), Some((header, &[0xBB][..])));
        assert_eq!(split::<InHeader>(&bytes[..40]).map(|(_, rest)| rest.len()), Some(0));
        assert_eq!(split::<InHeader>(&bytes[..39]), None);
    }
}
