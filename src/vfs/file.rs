//! Open files: open, create, tmpfile, read, write, flush, fsync, release.

use crate::meta::ops::{NewNode, OpenMode};
use crate::types::{Attr, Caller, Errno, Ino, Kind, Name};
use crate::vfs::handle::FileHandle;
use crate::vfs::names::permissions;
use crate::vfs::reader::Source;
use crate::vfs::{Entry, OpenReply, Vfs, inode_errno, write_errno};
use bytes::Bytes;
use std::time::Duration;
use tracing::error;

/// An fsync or a close listens to its interruption only after this time: the kernel interrupts for signals that an application handles, too, and
/// would hear that its data may be lost. What takes longer waits for a server that is away.
const FLUSH_INTERRUPT_AFTER: Duration = Duration::from_secs(20);

/// What the flags of open(2) ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flags {
    read: bool,
    write: bool,
    append: bool,
    truncate: bool,
    exclusive: bool,
}

impl Flags {
    fn of(flags: u32) -> Flags {
        let has = |flag: i32| flags & flag as u32 != 0;
        let access = flags & libc::O_ACCMODE as u32;
        Flags {
            read: access != libc::O_WRONLY as u32,
            write: access != libc::O_RDONLY as u32,
            append: has(libc::O_APPEND),
            truncate: has(libc::O_TRUNC),
            exclusive: has(libc::O_EXCL),
        }
    }

    fn mode(self) -> OpenMode {
        OpenMode { write: self.write, append: self.append, truncate: self.truncate }
    }

    /// Whether the caller may surely open a file of these attributes so, as far as it can be told without knowing all of its groups.
    fn surely_allowed(self, caller: &Caller, attr: &Attr) -> bool {
        // What the mode shows of a group with an ACL is only the most it may get.
        if attr.access_acl != 0 && caller.uid != 0 && caller.uid != attr.uid {
            return false;
        }
        let wanted = (u16::from(self.read) * 4) | (u16::from(self.write || self.truncate) * 2);
        let granted = if caller.uid == attr.uid {
            attr.mode >> 6
        } else if caller.gid == attr.gid {
            attr.mode >> 3
        } else {
            // Another of its groups may be the file's.
            (attr.mode >> 3) & attr.mode
        };
        caller.uid == 0 || granted & wanted == wanted
    }
}

impl Vfs {
    /// A new handle of a file. With O_TRUNC the file is empty when this returns.
    pub async fn open(&self, caller: &Caller, ino: Ino, flags: u32) -> Result<OpenReply, Errno> {
        let ino = self.mount.inward(ino);
        let flags = Flags::of(flags);
        if flags.write || flags.truncate {
            self.mount.writable()?;
        }
        let losses = self.losses();
        let attr = self.meta.open(caller, ino, flags.mode()).await.map_err(inode_errno)?;
        let attr = match self.overlaid(ino, attr).await {
            Ok(attr) => attr,
            Err(errno) => {
                self.uncount(ino).await;
                return Err(errno);
            }
        };
        let (_, reply) = self.opened(caller, ino, attr, flags, losses).await?;
        Ok(reply)
    }

    /// Creates a file, or opens the one that is there unless O_EXCL is set.
    pub async fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
        flags: u32,
    ) -> Result<(Entry, OpenReply), Errno> {
        self.mount.writable()?;
        let flags = Flags::of(flags);
        let (parent, name) = (self.mount.inward(parent), Name::new(name)?);
        let file = self.plain_file(mode, umask);
        let losses = self.losses();
        let found = self.meta.open_or_create(caller, parent, &name, file, flags.exclusive).await?;
        let attr = if found.created { Ok(found.attr) } else { self.may_open_found(caller, found.ino, flags).await };
        let attr = match attr {
            Ok(attr) => attr,
            Err(errno) => {
                self.uncount(found.ino).await;
                return Err(errno);
            }
        };
        // A file that was just created is empty and needs no truncation.
        let flags = Flags { truncate: flags.truncate && !found.created, ..flags };
        let (attr, reply) = self.opened(caller, found.ino, attr, flags, losses).await?;
        Ok((self.named(parent, name.as_bytes(), found.ino, attr), reply))
    }

    /// The kernel checks permissions before it opens what it knows; a file that another host created a moment ago it does not know.
    /// ESTALE makes it look the name up again and then check.
    async fn may_open_found(&self, caller: &Caller, ino: Ino, flags: Flags) -> Result<Attr, Errno> {
        let attr = self.attr_of(ino).await?;
        if !flags.surely_allowed(caller, &attr) {
            return Err(Errno::STALE);
        }
        flags.mode().check(&attr)?;
        Ok(attr)
    }

    /// Creates a file without a name.
    pub async fn tmpfile(&self, caller: &Caller, parent: Ino, mode: u32, umask: u32, flags: u32) -> Result<(Entry, OpenReply), Errno> {
        self.mount.writable()?;
        let file = self.plain_file(mode, umask);
        let losses = self.losses();
        let created = self.meta.create_unnamed(caller, self.mount.inward(parent), file).await?;
        let flags = Flags { truncate: false, ..Flags::of(flags) };
        let (attr, reply) = self.opened(caller, created.ino, created.attr, flags, losses).await?;
        Ok((self.entry(created.ino, attr), reply))
    }

    fn plain_file(&self, mode: u32, umask: u32) -> NewNode<'static> {
        NewNode { kind: Kind::File, mode: permissions(mode), umask: self.mount.umask(umask), rdev: 0, target: b"" }
    }

    /// From the counted handle of the metadata to a number for the kernel. If it fails the handle is not counted any more.
    /// `losses` are those of the store before it was opened.
    async fn opened(&self, caller: &Caller, ino: Ino, attr: Attr, flags: Flags, losses: u64) -> Result<(Attr, OpenReply), Errno> {
        let attr = if flags.truncate {
            match self.truncate_to_nothing(caller, ino).await {
                Ok(attr) => attr,
                Err(errno) => {
                    self.uncount(ino).await;
                    return Err(errno);
                }
            }
        } else {
            attr
        };
        let append = flags.write && flags.append;
        let as_before = self.seen.is_as_before(ino, &attr);
        if flags.write {
            self.writers.opened(ino);
        }
        let fh = self.handles.open_file(ino, &attr, flags.write, append, losses);
        // An append lands where the file ends when it is committed, which the kernel cannot know when it fills its pages.
        Ok((attr, OpenReply { fh, direct_io: append, keep_cache: as_before && !self.shared() }))
    }

    async fn truncate_to_nothing(&self, caller: &Caller, ino: Ino) -> Result<Attr, Errno> {
        // What other handles have buffered was written before.
        self.flush_data(ino).await?;
        self.meta.truncate(caller, ino, 0).await.map_err(inode_errno)
    }

    async fn uncount(&self, ino: Ino) {
        // The open fails with the first error; if the file should have gone with this handle the end of the session removes it.
        let _ = self.meta.close(ino).await;
    }

    /// Bytes from `offset`, fewer at the end of the file.
    pub async fn read(&self, caller: &Caller, ino: Ino, fh: u64, offset: u64, size: u32) -> Result<Vec<Bytes>, Errno> {
        let ino = self.mount.inward(ino);
        let handle = self.handles.file(ino, fh)?;
        let range = offset..offset.saturating_add(u64::from(size));
        let source = Source { ino, length: handle.inode.length(), streams: &handle.streams };
        let outcome = self.reader.read(caller, source, range).await;
        // It may have waited for what was written before it to be stored: so would the close of a killed process.
        handle.set_called_off(outcome.as_ref().err() == Some(&Errno::INTR));
        let data = outcome?;
        self.touch_atime(ino).await;
        Ok(data)
    }

    /// Takes the data in, at `offset`, or at the end of the file if `flags` (of this request) have O_APPEND.
    pub async fn write(&self, caller: &Caller, ino: Ino, fh: u64, offset: u64, data: Bytes, flags: u32) -> Result<u32, Errno> {
        self.mount.writable()?;
        let ino = self.mount.inward(ino);
        let handle = self.handles.file(ino, fh)?;
        if !handle.writable {
            return Err(Errno::BADF);
        }
        let written = u32::try_from(data.len()).map_err(|_| Errno::INVAL)?;
        if written == 0 {
            return Ok(0);
        }
        if self.meta.is_lock_lost(ino) {
            return Err(Errno::IO);
        }
        if flags & libc::O_APPEND as u32 != 0 {
            let at = self.writers.append(caller, ino, data).await.map_err(write_errno)?;
            if at != offset {
                // The kernel believes the file to end elsewhere.
                self.kernel().forget_attr(self.mount.outward(ino));
            }
        } else {
            offset.checked_add(u64::from(written)).ok_or(Errno::FBIG)?;
            let outcome = self.writers.write(caller, ino, offset, data).await;
            handle.set_called_off(outcome == Err(Errno::INTR));
            outcome.map_err(write_errno)?;
        }
        handle.set_wrote();
        Ok(written)
    }

    /// close(2) of one descriptor: data are committed, and errors told; the POSIX locks of its process go.
    pub async fn flush(&self, caller: &Caller, ino: Ino, fh: u64, lock_owner: u64) -> Result<(), Errno> {
        let ino = self.mount.inward(ino);
        let handle = self.handles.file(ino, fh)?;
        // Even if nothing is locked now: the release of this handle may come late, when the same owner has locked through another.
        handle.remove_lock_owner(lock_owner);
        let locked = self.ever_locked(ino);
        let flushed = if handle.writable || locked { self.flush_for(caller, &handle, true).await } else { Ok(()) };
        if handle.take_wrote() {
            self.note_written(ino, handle.append).await;
        }
        if !locked {
            return flushed;
        }
        // The locks go whatever became of the data: the descriptor is gone.
        let released = self.meta.release_locks(ino, lock_owner).await;
        if released.is_err() {
            // The release of the handle tries again.
            handle.add_lock_owner(lock_owner);
        }
        flushed.and(released)
    }

    /// What was written through the kernel's pages is what they hold: the next open need not drop them. Where other hosts write, the
    /// state after our commit may be the work of both, and the pages next to ours may be older.
    async fn note_written(&self, ino: Ino, around_pages: bool) {
        if self.meta.is_far() {
            return self.seen.forget(ino);
        }
        match self.attr_of(ino).await {
            Ok(attr) if !around_pages => self.seen.note(ino, &attr),
            _ => self.seen.forget(ino),
        }
    }

    /// Everything written to the file is as durable as the store makes it.
    pub async fn fsync(&self, caller: &Caller, ino: Ino, fh: u64, _datasync: bool) -> Result<(), Errno> {
        let ino = self.mount.inward(ino);
        let handle = self.handles.file(ino, fh)?;
        self.flush_for(caller, &handle, false).await?;
        if self.meta.is_lock_lost(ino) {
            // Told before; whoever asks again must not believe that it has come right.
            return Err(Errno::IO);
        }
        self.meta.sync().await?;
        handle.tell_losses(self.losses())
    }

    /// Commits what was written, for a caller that may be killed while a bucket is away: then it goes (EINTR), and the data are stored when
    /// they can be. The kernel sends no interruption for the close that ends a killed process, so that goes at once after a call that was called off.
    async fn flush_for(&self, caller: &Caller, handle: &FileHandle, closes: bool) -> Result<(), Errno> {
        let called_off = async {
            if !(closes && handle.was_called_off()) {
                tokio::time::sleep(FLUSH_INTERRUPT_AFTER).await;
                caller.cancel.cancelled().await;
            }
        };
        let outcome = tokio::select! {
            biased;
            flushed = self.flush_data(handle.ino()) => flushed,
            () = called_off => Err(Errno::INTR),
        };
        handle.set_called_off(outcome == Err(Errno::INTR));
        outcome
    }

    /// The last descriptor of a handle is gone. `flock_owner` is set if it may hold the lock of the open file.
    pub async fn release(&self, ino: Ino, fh: u64, flock_owner: Option<u64>) -> Result<(), Errno> {
        self.close_file(self.mount.inward(ino), fh, flock_owner).await
    }

    /// `release` in the volume's numbers. Every step is taken even if one before it failed; the first error is answered.
    pub(crate) async fn close_file(&self, ino: Ino, fh: u64, flock_owner: Option<u64>) -> Result<(), Errno> {
        let handle = self.handles.close_file(ino, fh).ok_or(Errno::BADF)?;
        let locked = self.ever_locked(ino);
        let mut outcome = Ok(());
        if handle.writable || locked {
            // Mapped pages are written back after the last close(2).
            outcome = self.flush_data(ino).await;
            if let Err(errno) = outcome {
                error!(%ino, "data written after the last close could not be stored: {errno}");
            }
        }
        if locked {
            for owner in handle.take_lock_owners() {
                outcome = outcome.and(self.meta.release_locks(ino, owner).await);
            }
            if let Some(owner) = flock_owner {
                outcome = outcome.and(self.meta.release_locks(ino, owner).await);
            }
        }
        if handle.writable {
            self.writers.closed(ino);
        }
        outcome.and(self.meta.close(ino).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_open() {
        let flags = |flags: i32| Flags::of(flags as u32);
        assert!(flags(libc::O_RDONLY).read && !flags(libc::O_RDONLY).write);
        assert!(!flags(libc::O_WRONLY).read && flags(libc::O_WRONLY).write);
        assert!(flags(libc::O_RDWR).read && flags(libc::O_RDWR).write);
        let all = flags(libc::O_RDWR | libc::O_APPEND | libc::O_TRUNC | libc::O_EXCL);
        assert!(all.append && all.truncate && all.exclusive);
    }

    #[test]
    fn who_may_surely_open() {
        let attr = Attr { mode: 0o642, uid: 5, gid: 6, ..crate::vfs::tests::attr() };
        let by = |uid, gid, flags: i32| {
            let caller = Caller { uid, gid, ..Caller::default() };
            Flags::of(flags as u32).surely_allowed(&caller, &attr)
        };
        assert!(by(0, 0, libc::O_RDWR));
        assert!(by(5, 1, libc::O_RDWR));
        assert!(by(9, 6, libc::O_RDONLY) && !by(9, 6, libc::O_WRONLY) && !by(9, 6, libc::O_RDONLY | libc::O_TRUNC));
        // It may be in group 6 without our knowing.
        assert!(!by(9, 9, libc::O_WRONLY) && !by(9, 9, libc::O_RDONLY));
    }
}
