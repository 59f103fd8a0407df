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
    Lookup { name: Text },
    Getattr { fh: Option<u64> },
    Setattr { change: SetAttrRequest },
    Readlink,
    Symlink { name: Text, target: Text },
    Mknod { name: Text, mode: u32, umask: u32, rdev: u32 },
    Mkdir { name: Text, mode: u32, umask: u32 },
    Unlink { name: Text },
    Rmdir { name: Text },
    Rename { name: Text, new_parent: Ino, new_name: Text, flags: u32 },
    Link { ino: Ino, new_name: Text },
    Open { flags: u32 },
    Create { name: Text, mode: u32, umask: u32, flags: u32 },
    Tmpfile { mode: u32, umask: u32, flags: u32 },
    Read { fh: u64, offset: u64, size: u32 },
    Write { fh: u64, offset: u64, flags: u32, data: Bytes },
    Flush { fh: u64, lock_owner: u64 },
    /// `flock_owner` if the handle's flock is to be dropped.
    Release { fh: u64, flock_owner: Option<u64> },
    Fsync { fh: u64, datasync: bool },
    Opendir,
    Readdir { fh: u64, offset: u64, size: u32, plus: bool },
    Releasedir { fh: u64 },
    Fsyncdir { fh: u64 },
    Statfs,
    Syncfs,
    Setxattr { name: Text, value: Bytes, flags: u32 },
    /// Size 0 asks for the length.
    Getxattr { name: Text, size: u32 },
    /// Size 0 asks for the length.
    Listxattr { size: u32 },
    Removexattr { name: Text },
    Getlk { fh: u64, owner: u64, lock: Lock },
    Setlk { fh: u64, owner: u64, lock: Lock, flock: bool, wait: bool },
    Fallocate { fh: u64, offset: u64, length: u64, mode: u32 },
    Lseek { fh: u64, offset: u64, whence: u32 },
    /// `wide`: the answer has 64 bits.
    CopyFileRange { fh: u64, offset: u64, out: Ino, out_fh: u64, out_offset: u64, len: u64, flags: u64, wide: bool },
    Interrupt { unique: u64 },
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

/// Decodes the request in the buffer. The data of a WRITE is taken out of it.
pub(crate) fn decode(buffer: &mut RequestBuffer) -> Result<Request, Damaged> {
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
        operation(header.opcode, &mut Arguments(&arguments[..end]))
    };
    let operation = operation.map_err(|Malformed| damaged)?;
    Ok(Request { unique: header.unique, node: Ino(header.nodeid), uid: header.uid, gid: header.gid, pid: header.pid, operation })
}

fn operation(code: u32, args: &mut Arguments<'_>) -> Result<Operation, Malformed> {
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
            Operation::Setxattr { name: args.text()?, value: Bytes::copy_from_slice(args.bytes(a.size as usize)?), flags: a.flags }
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
