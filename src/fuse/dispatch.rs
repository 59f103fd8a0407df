//! The table: operation of the kernel → method of `vfs` → kind of answer.

use crate::fuse::decode::{Operation, Request};
use crate::fuse::killed::killed;
use crate::fuse::reply::{Listing, Reply};
use crate::types::{Caller, Cancel, Errno};
use crate::vfs::Vfs;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::{Semaphore, SemaphorePermit};

/// A request being answered. It owns all it needs, so it may be moved to another thread between two polls.
pub(crate) type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What one COPY_FILE_RANGE may copy, whose answer has 32 bits: whole pages below 4 GiB.
const COPY_BYTES_MAX: u64 = 0xFFFF_F000;

/// Requests that go on although nobody waits for them: each is what is left of a process that was killed while the metadata were away.
const LATE_MAX: usize = 4096;
static LATE: Semaphore = Semaphore::const_new(LATE_MAX);

/// Whoever made the request is being killed, and there is a place for what is left of it.
async fn gone(cancel: &Cancel, thread: u32) -> SemaphorePermit<'static> {
    killed(cancel, thread).await;
    match LATE.acquire().await {
        Ok(place) => place,
        Err(_) => std::future::pending().await,
    }
}

/// What answers `request`; `None` if it has been answered.
pub(crate) fn dispatch(vfs: Arc<Vfs>, xattr: bool, request: Request, cancel: Cancel, reply: Reply) -> Option<Work> {
    let Request { node, uid, gid, pid, operation, .. } = request;
    let caller = Caller { uid, gid, pid, cancel: cancel.clone() };

    /// `serve!(kind of answer (its arguments) <- method)`: a future that awaits the method and answers.
    macro_rules! serve {
        ($kind:ident $(($($argument:expr),*))? <- $call:expr) => {
            Some(Box::pin(async move { let result = $call.await; reply.$kind($($($argument,)*)? result) }) as Work)
        };
    }
    /// The same for what waits for nothing but the metadata: whoever is killed does not wait for them. The change is carried out, or refused, when
    /// they can be reached again; of what was opened then (`undo`) nobody knows.
    macro_rules! serve_living {
        ($kind:ident $(($($argument:expr),*))? <- $call:expr $(, $late:pat => $undo:expr)?) => {
            Some(Box::pin(async move {
                let mut call = std::pin::pin!(async { $call.await });
                let living = tokio::select! {
                    biased;
                    result = &mut call => Ok(result),
                    place = gone(&cancel, pid) => Err(place),
                };
                match living {
                    Ok(result) => reply.$kind($($($argument,)*)? result),
                    // The place is kept until the rest is done.
                    Err(_place) => {
                        reply.error(Errno::INTR);
                        let _late = call.await;
                        $(if let Ok($late) = _late { let _ = $undo.await; })?
                    }
                }
            }) as Work)
        };
    }
    use Operation as Op;
    match operation {
        Op::Lookup { name } => serve_living!(entry <- vfs.lookup(&caller, node, &name)),
        Op::Getattr { fh } => serve_living!(attr <- vfs.getattr(&caller, node, fh)),
        Op::Setattr { change } => serve_living!(attr <- vfs.setattr(&caller, node, change)),
        Op::Readlink => serve_living!(bytes <- vfs.readlink(&caller, node)),
        Op::Symlink { name, target } => serve_living!(entry <- vfs.symlink(&caller, node, &name, &target)),
        // Without DONT_MASK the kernel has applied the umask to `mode` already; a second time changes nothing.
        Op::Mknod { name, mode, umask, rdev } => serve_living!(entry <- vfs.mknod(&caller, node, &name, mode, umask, rdev)),
        Op::Mkdir { name, mode, umask } => serve_living!(entry <- vfs.mkdir(&caller, node, &name, mode, umask)),
        Op::Unlink { name } => serve_living!(empty <- vfs.unlink(&caller, node, &name)),
        Op::Rmdir { name } => serve_living!(empty <- vfs.rmdir(&caller, node, &name)),
        Op::Rename { name, new_parent, new_name, flags } => {
            serve_living!(empty <- vfs.rename(&caller, node, &name, new_parent, &new_name, flags))
        }
        Op::Link { ino, new_name } => serve_living!(entry <- vfs.link(&caller, ino, node, &new_name)),

        Op::Open { flags } => {
            serve_living!(opened <- vfs.open(&caller, node, flags), open => vfs.release(node, open.fh, None))
        }
        Op::Create { name, mode, umask, flags } => serve_living!(
            created <- vfs.create(&caller, node, &name, mode, umask, flags), (entry, open) => vfs.release(entry.ino, open.fh, None)
        ),
        Op::Tmpfile { mode, umask, flags } => serve_living!(
            created <- vfs.tmpfile(&caller, node, mode, umask, flags), (entry, open) => vfs.release(entry.ino, open.fh, None)
        ),
        Op::Read { fh, offset, size } => serve!(data(size) <- vfs.read(&caller, node, fh, offset, size)),
        Op::Write { fh, offset, flags, data } => serve!(written <- vfs.write(&caller, node, fh, offset, data, flags)),
        Op::Flush { fh, lock_owner } => serve!(empty <- vfs.flush(&caller, node, fh, lock_owner)),
        Op::Release { fh, flock_owner } => serve!(empty <- vfs.release(node, fh, flock_owner)),
        Op::Fsync { fh, datasync } => serve!(empty <- vfs.fsync(&caller, node, fh, datasync)),
        Op::Fallocate { fh, offset, length, mode } => serve!(empty <- vfs.fallocate(&caller, node, fh, offset, length, mode)),
        Op::Lseek { fh, offset, whence } => serve_living!(offset <- vfs.lseek(&caller, node, fh, offset, whence)),
        Op::CopyFileRange { fh, offset, out, out_fh, out_offset, len, flags, wide: true } => {
            serve!(copied <- vfs.copy_file_range(&caller, node, fh, offset, out, out_fh, out_offset, len, flags))
        }
        Op::CopyFileRange { fh, offset, out, out_fh, out_offset, len, flags, wide: false } => serve!(written <- async {
            let len = len.min(COPY_BYTES_MAX);
            let copied = vfs.copy_file_range(&caller, node, fh, offset, out, out_fh, out_offset, len, flags).await?;
            u32::try_from(copied).map_err(|_| Errno::IO)
        }),

        Op::Opendir => serve_living!(opened <- vfs.opendir(&caller, node), open => vfs.releasedir(node, open.fh)),
        Op::Readdir { fh, offset, size, plus } => serve_living!(listing <- async {
            let mut listing = Listing::new(size, plus);
            vfs.readdir(&caller, node, fh, offset, plus, &mut listing).await.map(|()| listing)
        }),
        Op::Releasedir { fh } => serve!(empty <- vfs.releasedir(node, fh)),
        Op::Fsyncdir { fh } => serve!(empty <- vfs.fsyncdir(&caller, node, fh)),
        Op::Statfs => serve_living!(statfs <- vfs.statfs(&caller)),
        Op::Syncfs => serve!(empty <- vfs.syncfs(&caller)),

        Op::Setxattr { .. } | Op::Getxattr { .. } | Op::Listxattr { .. } | Op::Removexattr { .. } if !xattr => refuse(reply, Errno::NOSYS),
        Op::Setxattr { name, value, flags, clears_sgid } => {
            serve_living!(empty <- vfs.setxattr(&caller, node, &name, value, flags, clears_sgid))
        }
        Op::Getxattr { name, size } => serve_living!(xattr(size) <- vfs.getxattr(&caller, node, &name)),
        Op::Listxattr { size } => serve_living!(xattr(size) <- vfs.listxattr(&caller, node)),
        Op::Removexattr { name } => serve_living!(empty <- vfs.removexattr(&caller, node, &name)),

        Op::Getlk { fh, owner, lock } => serve_living!(lock <- vfs.getlk(&caller, node, fh, owner, lock)),
        Op::Setlk { fh, owner, lock, flock, wait } => serve!(empty <- vfs.setlk(&caller, node, fh, owner, lock, flock, wait)),

        Op::Refused(errno) => refuse(reply, errno),
        // The session keeps these to itself; nothing is lost by a polite answer.
        Op::Destroy | Op::Interrupt { .. } | Op::Ignored => {
            reply.empty(Ok(()));
            None
        }
    }
}

/// What metrics call an operation: the words of JuiceFS's access log.
pub(crate) fn method(operation: &Operation) -> &'static str {
    use Operation as Op;
    match operation {
        Op::Lookup { .. } => "lookup",
        Op::Getattr { .. } => "getattr",
        Op::Setattr { .. } => "setattr",
        Op::Readlink => "readlink",
        Op::Symlink { .. } => "symlink",
        Op::Mknod { .. } => "mknod",
        Op::Mkdir { .. } => "mkdir",
        Op::Unlink { .. } => "unlink",
        Op::Rmdir { .. } => "rmdir",
        Op::Rename { .. } => "rename",
        Op::Link { .. } => "link",
        Op::Open { .. } => "open",
        Op::Create { .. } => "create",
        Op::Tmpfile { .. } => "tmpfile",
        Op::Read { .. } => "read",
        Op::Write { .. } => "write",
        Op::Flush { .. } => "flush",
        Op::Release { .. } => "release",
        Op::Fsync { .. } => "fsync",
        Op::Fallocate { .. } => "fallocate",
        Op::Lseek { .. } => "lseek",
        Op::CopyFileRange { .. } => "copy_file_range",
        Op::Opendir => "opendir",
        Op::Readdir { plus: false, .. } => "readdir",
        Op::Readdir { plus: true, .. } => "readdirplus",
        Op::Releasedir { .. } => "releasedir",
        Op::Fsyncdir { .. } => "fsyncdir",
        Op::Statfs => "statfs",
        Op::Syncfs => "syncfs",
        Op::Setxattr { .. } => "setxattr",
        Op::Getxattr { .. } => "getxattr",
        Op::Listxattr { .. } => "listxattr",
        Op::Removexattr { .. } => "removexattr",
        Op::Getlk { .. } => "getlk",
        Op::Setlk { flock: true, .. } => "flock",
        Op::Setlk { flock: false, .. } => "setlk",
        Op::Refused(_) | Op::Destroy | Op::Interrupt { .. } | Op::Ignored => "other",
    }
}

fn refuse(reply: Reply, errno: Errno) -> Option<Work> {
    reply.error(errno);
    None
}
