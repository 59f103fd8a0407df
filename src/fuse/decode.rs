//! From the bytes the kernel sends to a `Request`. Every length is checked: bytes that are not a request are an error, never a panic.

use crate::fuse::abi::{self, InHeader, Plain, fattr, opcode, split};
use crate::fuse::device::RequestBuffer;
use crate::types::{Errno, Ino, Time};
use crate::vfs::{Lock, LockKind, SetAttrRequest, SetTime};
use bytes::Bytes;

/// One request of the kernel.
#[derive(Debug)]
pub(crate) struct Request {
    /// The kernel's number for it; the reply carries it.
    pub(crate) unique: u64,
    /// The inode it is about: the file, or the directory that holds the name.
    pub(crate) node: Ino,
    /// Who asks.
    pub(crate) uid: u32,
    /// Their group.
    pub(crate) gid: u32,
    /// Their process, 0 for the kernel itself.
    pub(crate) pid: u32,
    /// What is asked for.
    pub(crate) operation: Operation,
}

/// A name or a path as it came: no NUL in it, otherwise unchecked.
pub(crate) type Text = Box<[u8]>;

/// What is asked for, with its arguments. `fh` is a handle that an OPEN or OPENDIR was answered with.
#[derive(Debug)]
pub(crate) enum Operation {
    Lookup {
        name: Text,
    },
    Getattr {
        fh: Option<u64>,
    },
    Setattr {
        change: SetAttrRequest,
    },
    Readlink,
    Symlink {
        name: Text,
        target: Text,
    },
    Mknod {
        name: Text,
        mode: u32,
        umask: u32,
        rdev: u32,
    },
    Mkdir {
        name: Text,
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: Text,
    },
    Rmdir {
        name: Text,
    },
    Rename {
        name: Text,
        new_parent: Ino,
        new_name: Text,
        flags: u32,
    },
    Link {
        ino: Ino,
        new_name: Text,
    },
    Open {
        flags: u32,
    },
    Create {
        name: Text,
        mode: u32,
        umask: u32,
        flags: u32,
    },
    Tmpfile {
        mode: u32,
        umask: u32,
        flags: u32,
    },
    Read {
        fh: u64,
        offset: u64,
        size: u32,
    },
    Write {
        fh: u64,
        offset: u64,
        flags: u32,
        data: Bytes,
    },
    Flush {
        fh: u64,
        lock_owner: u64,
    },
    /// `flock_owner` if the handle's flock is to be dropped.
    Release {
        fh: u64,
        flock_owner: Option<u64>,
    },
    Fsync {
        fh: u64,
        datasync: bool,
    },
    Opendir,
    Readdir {
        fh: u64,
        offset: u64,
        size: u32,
        plus: bool,
    },
    Releasedir {
        fh: u64,
    },
    Fsyncdir {
        fh: u64,
    },
    Statfs,
    Syncfs,
    Setxattr {
        name: Text,
        value: Bytes,
        flags: u32,
        /// With an ACL: the caller may not keep the set-group-id bit.
        clears_sgid: bool,
    },
    /// Size 0 asks for the length.
    Getxattr {
        name: Text,
        size: u32,
    },
    /// Size 0 asks for the length.
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: Text,
    },
    Getlk {
        fh: u64,
        owner: u64,
        lock: Lock,
    },
    Setlk {
        fh: u64,
        owner: u64,
        lock: Lock,
        flock: bool,
        wait: bool,
    },
    Fallocate {
        fh: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    Lseek {
        fh: u64,
        offset: u64,
        whence: u32,
    },
    /// `wide`: the answer has 64 bits.
    CopyFileRange {
        fh: u64,
        offset: u64,
        out: Ino,
        out_fh: u64,
        out_offset: u64,
        len: u64,
        flags: u64,
        wide: bool,
    },
    Interrupt {
        unique: u64,
    },
    Destroy,
    /// No answer is wanted, nothing is to be done: FORGET, BATCH_FORGET, NOTIFY_REPLY.
    Ignored,
    /// Answered with this errno.
    Refused(Errno),
}

/// Bytes that are not a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damaged {
    /// Not even a header: there is nobody to answer.
    Header,
    /// The arguments do not fit the operation.
    Arguments {
        /// To be answered EIO; `None` for an operation that has no answer.
        unique: Option<u64>,
        /// The operation.
        opcode: u32,
    },
}

/// Arguments that end too early or hold what they must not.
struct Malformed;

/// Decodes the request in the buffer. The data of a WRITE is taken out of it. `setxattr_ext`: SETXATTR_EXT was agreed on.
pub(crate) fn decode(buffer: &mut RequestBuffer, setxattr_ext: bool) -> Result<Request, Damaged> {
    let (header, arguments) = split::<InHeader>(buffer.bytes()).ok_or(Damaged::Header)?;
    let answered = !matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET | opcode::NOTIFY_REPLY);
    let damaged = Damaged::Arguments { unique: answered.then_some(header.unique), opcode: header.opcode };
    if header.len as usize != buffer.bytes().len() {
        return Err(damaged);
    }
    // Extensions (security context, supplementary group) follow the arguments. None is negotiated; what comes anyway is left out.
    let extensions = usize::from(header.total_extlen) * 8;
    let end = arguments.len().checked_sub(extensions).ok_or(damaged)?;
    let operation = if header.opcode == opcode::WRITE {
        write(buffer)
    } else {
        operation(header.opcode, &mut Arguments(&arguments[..end]), setxattr_ext)
    };
    let operation = operation.map_err(|Malformed| damaged)?;
    Ok(Request { unique: header.unique, node: Ino(header.nodeid), uid: header.uid, gid: header.gid, pid: header.pid, operation })
}

fn operation(code: u32, args: &mut Arguments<'_>, setxattr_ext: bool) -> Result<Operation, Malformed> {
    Ok(match code {
        opcode::LOOKUP => Operation::Lookup { name: args.text()? },
        opcode::GETATTR => {
            let a: abi::GetattrIn = args.take()?;
            Operation::Getattr { fh: (a.getattr_flags & abi::GETATTR_FH != 0).then_some(a.fh) }
        }
        opcode::SETATTR => Operation::Setattr { change: set_attr(&args.take()?)? },
        opcode::READLINK => Operation::Readlink,
        opcode::SYMLINK => Operation::Symlink { name: args.text()?, target: args.text()? },
        opcode::MKNOD => {
            let a: abi::MknodIn = args.take()?;
            Operation::Mknod { name: args.text()?, mode: a.mode, umask: a.umask, rdev: a.rdev }
        }
        opcode::MKDIR => {
            let a: abi::MkdirIn = args.take()?;
            Operation::Mkdir { name: args.text()?, mode: a.mode, umask: a.umask }
        }
        opcode::UNLINK => Operation::Unlink { name: args.text()? },
        opcode::RMDIR => Operation::Rmdir { name: args.text()? },
        opcode::RENAME => {
            let a: abi::RenameIn = args.take()?;
            Operation::Rename { new_parent: Ino(a.newdir), name: args.text()?, new_name: args.text()?, flags: 0 }
        }
        opcode::RENAME2 => {
            let a: abi::Rename2In = args.take()?;
            Operation::Rename { new_parent: Ino(a.newdir), name: args.text()?, new_name: args.text()?, flags: a.flags }
        }
        opcode::LINK => {
            let a: abi::LinkIn = args.take()?;
            Operation::Link { ino: Ino(a.oldnodeid), new_name: args.text()? }
        }
        opcode::OPEN => Operation::Open { flags: args.take::<abi::OpenIn>()?.flags },
        opcode::CREATE => {
            let a: abi::CreateIn = args.take()?;
            Operation::Create { name: args.text()?, mode: a.mode, umask: a.umask, flags: a.flags }
        }
        opcode::TMPFILE => {
            // The name that follows is that of the dentry in memory and means nothing.
            let a: abi::CreateIn = args.take()?;
            Operation::Tmpfile { mode: a.mode, umask: a.umask, flags: a.flags }
        }
        opcode::READ => {
            let a: abi::ReadIn = args.take()?;
            Operation::Read { fh: a.fh, offset: a.offset, size: a.size }
        }
        opcode::FLUSH => {
            let a: abi::FlushIn = args.take()?;
            Operation::Flush { fh: a.fh, lock_owner: a.lock_owner }
        }
        opcode::RELEASE => {
            let a: abi::ReleaseIn = args.take()?;
            let unlock = a.release_flags & abi::RELEASE_FLOCK_UNLOCK != 0;
            Operation::Release { fh: a.fh, flock_owner: unlock.then_some(a.lock_owner) }
        }
        opcode::FSYNC => {
            let a: abi::FsyncIn = args.take()?;
            Operation::Fsync { fh: a.fh, datasync: a.fsync_flags & abi::FSYNC_FDATASYNC != 0 }
        }
        opcode::OPENDIR => args.take::<abi::OpenIn>().map(|_| Operation::Opendir)?,
        opcode::READDIR | opcode::READDIRPLUS => {
            let a: abi::ReadIn = args.take()?;
            Operation::Readdir { fh: a.fh, offset: a.offset, size: a.size, plus: code == opcode::READDIRPLUS }
        }
        opcode::RELEASEDIR => Operation::Releasedir { fh: args.take::<abi::ReleaseIn>()?.fh },
        opcode::FSYNCDIR => Operation::Fsyncdir { fh: args.take::<abi::FsyncIn>()?.fh },
        opcode::STATFS => Operation::Statfs,
        opcode::SYNCFS => Operation::Syncfs,
        opcode::SETXATTR => {
            let a: abi::SetxattrIn = args.take()?;
            let clears_sgid = setxattr_ext && args.take::<abi::SetxattrExtIn>()?.setxattr_flags & abi::SETXATTR_ACL_KILL_SGID != 0;
            let (name, value) = (args.text()?, Bytes::copy_from_slice(args.bytes(a.size as usize)?));
            Operation::Setxattr { name, value, flags: a.flags, clears_sgid }
        }
        opcode::GETXATTR => {
            let a: abi::GetxattrIn = args.take()?;
            Operation::Getxattr { name: args.text()?, size: a.size }
        }
        opcode::LISTXATTR => Operation::Listxattr { size: args.take::<abi::GetxattrIn>()?.size },
        opcode::REMOVEXATTR => Operation::Removexattr { name: args.text()? },
        opcode::GETLK => {
            let a: abi::LkIn = args.take()?;
            Operation::Getlk { fh: a.fh, owner: a.owner, lock: lock(&a.lk)? }
        }
        opcode::SETLK | opcode::SETLKW => {
            let a: abi::LkIn = args.take()?;
            let flock = a.lk_flags & abi::LK_FLOCK != 0;
            Operation::Setlk { fh: a.fh, owner: a.owner, lock: lock(&a.lk)?, flock, wait: code == opcode::SETLKW }
        }
        opcode::FALLOCATE => {
            let a: abi::FallocateIn = args.take()?;
            Operation::Fallocate { fh: a.fh, offset: a.offset, length: a.length, mode: a.mode }
        }
        opcode::LSEEK => {
            let a: abi::LseekIn = args.take()?;
            Operation::Lseek { fh: a.fh, offset: a.offset, whence: a.whence }
        }
        opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => {
            let a: abi::CopyFileRangeIn = args.take()?;
            Operation::CopyFileRange {
                fh: a.fh_in,
                offset: a.off_in,
                out: Ino(a.nodeid_out),
                out_fh: a.fh_out,
                out_offset: a.off_out,
                len: a.len,
                flags: a.flags,
                wide: code == opcode::COPY_FILE_RANGE_64,
            }
        }
        opcode::INTERRUPT => Operation::Interrupt { unique: args.take::<abi::InterruptIn>()?.unique },
        opcode::DESTROY => Operation::Destroy,
        opcode::FORGET | opcode::BATCH_FORGET | opcode::NOTIFY_REPLY => Operation::Ignored,
        opcode::IOCTL => Operation::Refused(Errno::NOTTY),
        // The handshake is over: a second INIT is not for us.
        opcode::INIT => Operation::Refused(Errno::IO),
        // ACCESS (the kernel checks), STATX (no birth times here), POLL, BMAP, …: the kernel then does without, for good.
        _ => Operation::Refused(Errno::NOSYS),
    })
}

/// The flags of the lock owner and of the cache (`write_flags`) change nothing here: there are no mandatory locks and no writeback cache.
fn write(buffer: &mut RequestBuffer) -> Result<Operation, Malformed> {
    const DATA_AT: usize = size_of::<InHeader>() + size_of::<abi::WriteIn>();
    let mut args = Arguments(buffer.bytes().get(size_of::<InHeader>()..).ok_or(Malformed)?);
    let a: abi::WriteIn = args.take()?;
    let size = args.bytes(a.size as usize)?.len();
    Ok(Operation::Write { fh: a.fh, offset: a.offset, flags: a.flags, data: buffer.take_part(DATA_AT..DATA_AT + size) })
}

/// CTIME is left out (it comes only with a writeback cache), KILL_SUIDGID, too (only with HANDLE_KILLPRIV_V2), and so is the lock owner.
fn set_attr(a: &abi::SetattrIn) -> Result<SetAttrRequest, Malformed> {
    let has = |bit| a.valid & bit != 0;
    let time = |set, now, sec, nsec| match (has(now), has(set)) {
        (true, _) => Ok(Some(SetTime::Now)),
        (false, true) if nsec < 1_000_000_000 => Ok(Some(SetTime::At(Time { sec, nsec }))),
        (false, true) => Err(Malformed),
        (false, false) => Ok(None),
    };
    Ok(SetAttrRequest {
        mode: has(fattr::MODE).then_some(a.mode),
        uid: has(fattr::UID).then_some(a.uid),
        gid: has(fattr::GID).then_some(a.gid),
        size: has(fattr::SIZE).then_some(a.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, a.atime, a.atimensec)?,
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, a.mtime, a.mtimensec)?,
        fh: has(fattr::FH).then_some(a.fh),
    })
}

fn lock(a: &abi::FileLock) -> Result<Lock, Malformed> {
    let kind = match i32::try_from(a.kind) {
        Ok(libc::F_RDLCK) => LockKind::Shared,
        Ok(libc::F_WRLCK) => LockKind::Exclusive,
        Ok(libc::F_UNLCK) => LockKind::Unlock,
        _ => return Err(Malformed),
    };
    Ok(Lock { start: a.start, end: a.end, kind, pid: a.pid })
}

/// What is left of a request's arguments.
struct Arguments<'a>(&'a [u8]);

impl<'a> Arguments<'a> {
    fn take<T: Plain>(&mut self) -> Result<T, Malformed> {
        let (value, rest) = split(self.0).ok_or(Malformed)?;
        self.0 = rest;
        Ok(value)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Up to a NUL, which must be there.
    fn text(&mut self) -> Result<Text, Malformed> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Malformed)?;
        let text = self.bytes(end)?.into();
        self.bytes(1)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::abi::bytes_of;
    use proptest::prelude::*;

    fn framed(code: u32, arguments: &[u8]) -> Vec<u8> {
        let len = (size_of::<InHeader>() + arguments.len()) as u32;
        let header = InHeader { len, opcode: code, unique: 8, nodeid: 5, uid: 1, gid: 2, pid: 3, ..InHeader::default() };
        [bytes_of(&header), arguments].concat()
    }

    fn decoded(bytes: &[u8]) -> Result<Request, Damaged> {
        decode(&mut RequestBuffer::holding(bytes), false)
    }

    #[test]
    fn the_longer_form_of_setxattr() {
        for (flags, clears) in [(0, false), (1, true)] {
            let arguments = join(&[
                bytes_of(&abi::SetxattrIn { size: 3, flags: 1 }),
                bytes_of(&abi::SetxattrExtIn { setxattr_flags: flags, padding: 0 }),
                b"n\0v\0v",
            ]);
            let request = decode(&mut RequestBuffer::holding(&framed(opcode::SETXATTR, &arguments)), true).unwrap();
            let want = format!("Setxattr {{ name: [110], value: b\"v\\0v\", flags: 1, clears_sgid: {clears} }}");
            assert_eq!(format!("{:?}", request.operation), want);
        }
    }

    fn join(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    /// Opcode, arguments as the kernel lays them out, what is made of them.
    fn table() -> Vec<(u32, Vec<u8>, &'static str)> {
        let lk = |kind, flags| {
            let lk = abi::FileLock { start: 1, end: 9, kind, pid: 4 };
            bytes_of(&abi::LkIn { fh: 7, owner: 6, lk, lk_flags: flags, padding: 0 }).to_vec()
        };
        let release = |flags| bytes_of(&abi::ReleaseIn { fh: 7, flags: 2, release_flags: flags, lock_owner: 6 }).to_vec();
        let copy = abi::CopyFileRangeIn { fh_in: 1, off_in: 2, nodeid_out: 3, fh_out: 4, off_out: 5, len: 6, flags: 0 };
        let read =
            bytes_of(&abi::ReadIn { fh: 7, offset: 1 << 40, size: 4096, read_flags: 2, lock_owner: 9, flags: 0, padding: 0 }).to_vec();
        let set = |valid| {
            let times = abi::SetattrIn { atime: -2, atimensec: 5, mtime: 3, mtimensec: 4, ..abi::SetattrIn::default() };
            bytes_of(&abi::SetattrIn { valid, fh: 7, size: 10, mode: 0o644, uid: 1, gid: 2, ..times }).to_vec()
        };
        vec![
            (opcode::LOOKUP, b"name\0".to_vec(), "Lookup { name: [110, 97, 109, 101] }"),
            (opcode::GETATTR, join(&[bytes_of(&abi::GetattrIn { getattr_flags: 0, dummy: 0, fh: 7 })]), "Getattr { fh: None }"),
            (opcode::GETATTR, join(&[bytes_of(&abi::GetattrIn { getattr_flags: 1, dummy: 0, fh: 7 })]), "Getattr { fh: Some(7) }"),
            (
                opcode::SETATTR,
                // Every field with a meaning, and CTIME, LOCKOWNER and KILL_SUIDGID, which have none here.
                set(0b1110_0111_1111),
                "Setattr { change: SetAttrRequest { mode: Some(420), uid: Some(1), gid: Some(2), size: Some(10), atime: Some(At(Time { sec: -2, nsec: 5 })), mtime: Some(At(Time { sec: 3, nsec: 4 })), fh: Some(7) } }",
            ),
            (
                opcode::SETATTR,
                set(fattr::ATIME | fattr::ATIME_NOW | fattr::MTIME_NOW),
                "Setattr { change: SetAttrRequest { mode: None, uid: None, gid: None, size: None, atime: Some(Now), mtime: Some(Now), fh: None } }",
            ),
            (opcode::READLINK, vec![], "Readlink"),
            (opcode::SYMLINK, b"n\0t\0".to_vec(), "Symlink { name: [110], target: [116] }"),
            (
                opcode::MKNOD,
                join(&[bytes_of(&abi::MknodIn { mode: 1, rdev: 2, umask: 3, padding: 0 }), b"n\0"]),
                "Mknod { name: [110], mode: 1, umask: 3, rdev: 2 }",
            ),
            (opcode::MKDIR, join(&[bytes_of(&abi::MkdirIn { mode: 1, umask: 3 }), b"n\0"]), "Mkdir { name: [110], mode: 1, umask: 3 }"),
            (opcode::UNLINK, b"n\0".to_vec(), "Unlink { name: [110] }"),
            (opcode::RMDIR, b"n\0".to_vec(), "Rmdir { name: [110] }"),
            (
                opcode::RENAME,
                join(&[bytes_of(&abi::RenameIn { newdir: 9 }), b"a\0b\0"]),
                "Rename { name: [97], new_parent: 9, new_name: [98], flags: 0 }",
            ),
            (
                opcode::RENAME2,
                join(&[bytes_of(&abi::Rename2In { newdir: 9, flags: 2, padding: 0 }), b"a\0b\0"]),
                "Rename { name: [97], new_parent: 9, new_name: [98], flags: 2 }",
            ),
            (opcode::LINK, join(&[bytes_of(&abi::LinkIn { oldnodeid: 9 }), b"n\0"]), "Link { ino: 9, new_name: [110] }"),
            (opcode::OPEN, join(&[bytes_of(&abi::OpenIn { flags: 2, open_flags: 0 })]), "Open { flags: 2 }"),
            (
                opcode::CREATE,
                join(&[bytes_of(&abi::CreateIn { flags: 1, mode: 2, umask: 3, open_flags: 0 }), b"n\0"]),
                "Create { name: [110], mode: 2, umask: 3, flags: 1 }",
            ),
            (
                opcode::TMPFILE,
                join(&[bytes_of(&abi::CreateIn { flags: 1, mode: 2, umask: 3, open_flags: 0 })]),
                "Tmpfile { mode: 2, umask: 3, flags: 1 }",
            ),
            (opcode::READ, read.clone(), "Read { fh: 7, offset: 1099511627776, size: 4096 }"),
            (
                opcode::WRITE,
                join(&[
                    bytes_of(&abi::WriteIn { fh: 7, offset: 3, size: 2, write_flags: 3, lock_owner: 9, flags: 1024, padding: 0 }),
                    b"xy",
                ]),
                "Write { fh: 7, offset: 3, flags: 1024, data: b\"xy\" }",
            ),
            (
                opcode::FLUSH,
                join(&[bytes_of(&abi::FlushIn { fh: 7, unused: 0, padding: 0, lock_owner: 6 })]),
                "Flush { fh: 7, lock_owner: 6 }",
            ),
            (opcode::RELEASE, release(0), "Release { fh: 7, flock_owner: None }"),
            (opcode::RELEASE, release(abi::RELEASE_FLOCK_UNLOCK), "Release { fh: 7, flock_owner: Some(6) }"),
            (opcode::FSYNC, join(&[bytes_of(&abi::FsyncIn { fh: 7, fsync_flags: 1, padding: 0 })]), "Fsync { fh: 7, datasync: true }"),
            (opcode::OPENDIR, join(&[bytes_of(&abi::OpenIn { flags: 0, open_flags: 0 })]), "Opendir"),
            (opcode::READDIR, read.clone(), "Readdir { fh: 7, offset: 1099511627776, size: 4096, plus: false }"),
            (opcode::READDIRPLUS, read, "Readdir { fh: 7, offset: 1099511627776, size: 4096, plus: true }"),
            (opcode::RELEASEDIR, release(0), "Releasedir { fh: 7 }"),
            (opcode::FSYNCDIR, join(&[bytes_of(&abi::FsyncIn { fh: 7, fsync_flags: 0, padding: 0 })]), "Fsyncdir { fh: 7 }"),
            (opcode::STATFS, vec![], "Statfs"),
            (opcode::SYNCFS, vec![0; 8], "Syncfs"),
            (
                opcode::SETXATTR,
                join(&[bytes_of(&abi::SetxattrIn { size: 3, flags: 1 }), b"user.n\0v\0v"]),
                "Setxattr { name: [117, 115, 101, 114, 46, 110], value: b\"v\\0v\", flags: 1, clears_sgid: false }",
            ),
            (opcode::GETXATTR, join(&[bytes_of(&abi::GetxattrIn { size: 9, padding: 0 }), b"n\0"]), "Getxattr { name: [110], size: 9 }"),
            (opcode::LISTXATTR, join(&[bytes_of(&abi::GetxattrIn { size: 9, padding: 0 })]), "Listxattr { size: 9 }"),
            (opcode::REMOVEXATTR, b"n\0".to_vec(), "Removexattr { name: [110] }"),
            (opcode::GETLK, lk(0, 0), "Getlk { fh: 7, owner: 6, lock: Lock { start: 1, end: 9, kind: Shared, pid: 4 } }"),
            (
                opcode::SETLK,
                lk(1, 1),
                "Setlk { fh: 7, owner: 6, lock: Lock { start: 1, end: 9, kind: Exclusive, pid: 4 }, flock: true, wait: false }",
            ),
            (
                opcode::SETLKW,
                lk(2, 0),
                "Setlk { fh: 7, owner: 6, lock: Lock { start: 1, end: 9, kind: Unlock, pid: 4 }, flock: false, wait: true }",
            ),
            (
                opcode::FALLOCATE,
                join(&[bytes_of(&abi::FallocateIn { fh: 7, offset: 1, length: 2, mode: 3, padding: 0 })]),
                "Fallocate { fh: 7, offset: 1, length: 2, mode: 3 }",
            ),
            (
                opcode::LSEEK,
                join(&[bytes_of(&abi::LseekIn { fh: 7, offset: 1, whence: 3, padding: 0 })]),
                "Lseek { fh: 7, offset: 1, whence: 3 }",
            ),
            (
                opcode::COPY_FILE_RANGE,
                join(&[bytes_of(&copy)]),
                "CopyFileRange { fh: 1, offset: 2, out: 3, out_fh: 4, out_offset: 5, len: 6, flags: 0, wide: false }",
            ),
            (
                opcode::COPY_FILE_RANGE_64,
                join(&[bytes_of(&copy)]),
                "CopyFileRange { fh: 1, offset: 2, out: 3, out_fh: 4, out_offset: 5, len: 6, flags: 0, wide: true }",
            ),
            (opcode::INTERRUPT, join(&[bytes_of(&abi::InterruptIn { unique: 6 })]), "Interrupt { unique: 6 }"),
            (opcode::DESTROY, vec![], "Destroy"),
        ]
    }

    #[test]
    fn requests_decode_and_no_shortened_one_does() {
        for (code, arguments, want) in table() {
            let request = decoded(&framed(code, &arguments)).unwrap_or_else(|damaged| panic!("{want}: {damaged:?}"));
            assert_eq!(format!("{:?}", request.operation), want);
            assert_eq!((request.unique, request.node, request.uid, request.gid, request.pid), (8, Ino(5), 1, 2, 3));
            if want == "Syncfs" {
                continue;
            }
            for len in 0..arguments.len() {
                let refused = decoded(&framed(code, &arguments[..len])).err();
                assert_eq!(refused, Some(Damaged::Arguments { unique: Some(8), opcode: code }), "{want} cut to {len}");
            }
        }
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        const ACCESS: u32 = 34;
        const STATX: u32 = 52;
        for (code, want) in [
            (opcode::IOCTL, "Refused(ENOTTY)"),
            (ACCESS, "Refused(ENOSYS)"),
            (STATX, "Refused(ENOSYS)"),
            (4711, "Refused(ENOSYS)"),
            (opcode::INIT, "Refused(EIO)"),
            (opcode::FORGET, "Ignored"),
            (opcode::BATCH_FORGET, "Ignored"),
        ] {
            assert_eq!(format!("{:?}", decoded(&framed(code, &[])).unwrap().operation), want);
        }
    }

    #[test]
    fn damaged_requests_are_errors() {
        let arguments = |unique, opcode| Damaged::Arguments { unique, opcode };
        assert_eq!(decoded(&[]).err(), Some(Damaged::Header));
        assert_eq!(decoded(&[0; 39]).err(), Some(Damaged::Header));
        // A header whose length is not that of the message.
        let mut lying = framed(opcode::LOOKUP, b"n\0");
        lying[0] += 1;
        assert_eq!(decoded(&lying).err(), Some(arguments(Some(8), opcode::LOOKUP)));
        // FORGET has no answer, whatever is wrong with it.
        let mut forget = framed(opcode::FORGET, &[]);
        forget[0] += 1;
        assert_eq!(decoded(&forget).err(), Some(arguments(None, opcode::FORGET)));
        // Extensions are longer than the request, or are left out.
        let mut extended = framed(opcode::LOOKUP, b"n\0extended");
        extended[36] = 1;
        assert_eq!(format!("{:?}", decoded(&extended).unwrap().operation), "Lookup { name: [110] }");
        extended[36] = 2;
        assert!(decoded(&extended).is_err());
        // Values that no kernel sends.
        let nsec = abi::SetattrIn { valid: fattr::ATIME, atimensec: 1_000_000_000, ..abi::SetattrIn::default() };
        assert!(decoded(&framed(opcode::SETATTR, bytes_of(&nsec))).is_err());
        let lock = abi::LkIn { lk: abi::FileLock { kind: 3, ..abi::FileLock::default() }, ..abi::LkIn::default() };
        assert!(decoded(&framed(opcode::SETLK, bytes_of(&lock))).is_err());
    }

    #[test]
    fn large_data_is_handed_over_and_small_data_copied() {
        for (size, copied) in [(100, true), (3000, false)] {
            let data: Vec<u8> = (0..size).map(|i| i as u8).collect();
            let head = abi::WriteIn { size: size as u32, ..abi::WriteIn::default() };
            let mut buffer = RequestBuffer::holding(&framed(opcode::WRITE, &[bytes_of(&head), &data].concat()));
            let Operation::Write { data: got, .. } = decode(&mut buffer, false).unwrap().operation else { panic!("a write") };
            assert_eq!(got, data);
            assert_eq!(!buffer.bytes().is_empty(), copied);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(code in 0u32..60, fits in any::<bool>(), ext in 0u16..3, body in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = framed(code, &body);
            bytes[36] = ext as u8;
            bytes[0] ^= u8::from(!fits);
            let _ = decoded(&bytes);
            let _ = decoded(&body);
        }
    }

    #[test]
    fn no_request_upsets_the_decoder() {
        let valid: Vec<Vec<u8>> = table().into_iter().map(|(code, arguments, _)| framed(code, &arguments)).collect();
        crate::env::fuzz::decoder(&valid, |bytes| {
            let _ = decoded(bytes);
            // What is cut or extended has another length than its header says; this one is right.
            let mut right = bytes.to_vec();
            if let Some(len) = right.first_chunk_mut::<4>() {
                *len = (bytes.len() as u32).to_ne_bytes();
            }
            for setxattr_ext in [false, true] {
                let _ = decode(&mut RequestBuffer::holding(&right), setxattr_ext);
            }
        });
    }
}
