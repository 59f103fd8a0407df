//! `Ino`, `Kind`, `Flags` and `Attr`: what an inode is.

use crate::types::Time;
use std::fmt;

/// No file is longer, and none of ours gets as long (metadata §19): a chunk index is below 2^31. A damaged length counts as this much, so
/// that sums of a few do not overflow.
pub const FILE_BYTES_MAX: u64 = 1 << 57;

/// An inode number; also the node id the kernel sees.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory of the volume.
    pub const ROOT: Ino = Ino(1);
    /// The trash root; hour directories follow it (metadata §2.9).
    pub const TRASH: Ino = Ino(0x7FFF_FFFF_1000_0000);

    /// The trash root or one of its hour directories.
    pub fn is_trash(self) -> bool {
        self >= Ino::TRASH
    }
}

impl fmt::Debug for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The type of an inode; the numbers are those of the records (metadata §2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Regular file.
    File = 1,
    /// Directory.
    Dir = 2,
    /// Symbolic link.
    Symlink = 3,
    /// Named pipe.
    Fifo = 4,
    /// Block device.
    Block = 5,
    /// Character device.
    Char = 6,
    /// Unix socket.
    Socket = 7,
}

impl Kind {
    /// From the number of a record; `None` for anything but 1..=7.
    pub fn from_u8(n: u8) -> Option<Kind> {
        Some(match n {
            1 => Kind::File,
            2 => Kind::Dir,
            3 => Kind::Symlink,
            4 => Kind::Fifo,
            5 => Kind::Block,
            6 => Kind::Char,
            7 => Kind::Socket,
            _ => return None,
        })
    }

    /// The `S_IFMT` bits of `st_mode`.
    pub fn mode_bits(self) -> u32 {
        match self {
            Kind::File => libc::S_IFREG,
            Kind::Dir => libc::S_IFDIR,
            Kind::Symlink => libc::S_IFLNK,
            Kind::Fifo => libc::S_IFIFO,
            Kind::Block => libc::S_IFBLK,
            Kind::Char => libc::S_IFCHR,
            Kind::Socket => libc::S_IFSOCK,
        }
    }

    /// From the `S_IFMT` bits of a mode; `None` if they name no type. Zero bits mean a regular file, as in mknod(2).
    pub fn from_mode_bits(mode: u32) -> Option<Kind> {
        Some(match mode & libc::S_IFMT {
            0 | libc::S_IFREG => Kind::File,
            libc::S_IFDIR => Kind::Dir,
            libc::S_IFLNK => Kind::Symlink,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFBLK => Kind::Block,
            libc::S_IFCHR => Kind::Char,
            libc::S_IFSOCK => Kind::Socket,
            _ => return None,
        })
    }
}

/// The flag byte of an inode (metadata §2.1). Unknown bits are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// Nothing about the inode may change.
    pub const IMMUTABLE: u8 = 1;
    /// A file may only grow, a directory only gain entries.
    pub const APPEND: u8 = 2;
    /// Deleting bypasses the trash.
    pub const SKIP_TRASH: u8 = 32;

    /// Whether any bit of `mask` is set.
    pub fn any(self, mask: u8) -> bool {
        self.0 & mask != 0
    }
}

/// The attributes of an inode, decoded from its record (metadata §2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Flag byte.
    pub flags: Flags,
    /// Type.
    pub kind: Kind,
    /// Permission bits, 12 of them.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the data.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Link count.
    pub nlink: u32,
    /// Bytes; 4096 for directories, length of the target for symlinks, 0 for special files.
    pub length: u64,
    /// Device number as FUSE passes it.
    pub rdev: u32,
    /// The containing directory; 0 = several, see `p{ino}`.
    pub parent: Ino,
    /// Rule id of the access ACL, 0 = none.
    pub access_acl: u32,
    /// Rule id of the default ACL, 0 = none.
    pub default_acl: u32,
    /// Storage tier.
    pub tier: u8,
}

impl Attr {
    /// A fresh, empty directory of root's without flags, ACLs or tier. `parent` is its own number for the root of the volume.
    pub fn new_dir(mode: u16, parent: Ino, now: Time) -> Attr {
        Attr {
            flags: Flags::default(),
            kind: Kind::Dir,
            mode,
            uid: 0,
            gid: 0,
            atime: now,
            mtime: now,
            ctime: now,
            nlink: 2,
            length: 4096,
            rdev: 0,
            parent,
            access_acl: 0,
            default_acl: 0,
            tier: 0,
        }
    }

    /// Bytes this inode counts for in `usedSpace`: files rounded up to 4 KiB, everything else 4 KiB (metadata §10.1).
    pub fn space(&self) -> i64 {
        match self.kind {
            Kind::File => Attr::space_of(self.length),
            _ => 4096,
        }
    }

    /// The same for a regular file of `length` bytes; an empty file counts 4 KiB.
    pub fn space_of(length: u64) -> i64 {
        (length.clamp(1, FILE_BYTES_MAX).div_ceil(4096) * 4096) as i64
    }

    /// Bytes this inode counts for in the statistics of its directory: the length of a file, 0 of everything else (metadata §10.2).
    pub fn data_length(&self) -> i64 {
        match self.kind {
            Kind::File => self.length.min(FILE_BYTES_MAX) as i64,
            _ => 0,
        }
    }

    /// Whether its (only) name is in the trash. The hour directories themselves are not trashed.
    pub fn is_trashed(&self) -> bool {
        self.parent > Ino::TRASH
    }

    /// `st_mode`: type and permission bits.
    pub fn st_mode(&self) -> u32 {
        self.kind.mode_bits() | u32::from(self.mode)
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Dir
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_of_any_length() {
        assert_eq!([0, 1, 4096, 4097, u64::MAX].map(Attr::space_of), [4096, 4096, 4096, 8192, 1 << 57]);
    }
}
