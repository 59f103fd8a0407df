//! Attributes: getattr, setattr, and the overlay of what is buffered.

use crate::meta::ops::{SetAttr, SetTime};
use crate::types::{Attr, Caller, Errno, Ino, Time};
use crate::vfs::handle::OpenInode;
use crate::vfs::{AttrReply, Vfs, inode_errno};

/// Seconds for which the data of a file that another process unlinked outlasts its record. Reclaim waits as long.
const GONE_SECONDS: i64 = 60;

/// What setattr is to change.
#[derive(Clone, Debug, Default)]
pub struct SetAttrRequest {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Owning group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the data.
    pub mtime: Option<SetTime>,
    /// The handle the change came through, if any.
    pub fh: Option<u64>,
}

/// What was buffered of an inode before its record was read.
///
/// Without it there is a hole: the record is read, the buffered data are committed, the buffer is found empty, and the kernel is told a
/// length it has outgrown, which makes it drop pages and report a short file.
#[derive(Clone, Copy)]
pub(crate) struct Buffered {
    length: u64,
    mtime: Time,
    ctime: Time,
}

impl Vfs {
    /// Taken before a record is read (or changed in anything but its length), for `overlaid`.
    pub(crate) fn buffered(&self, ino: Ino) -> Option<Buffered> {
        if !self.writers.is_dirty(ino) {
            return None;
        }
        let never = Time { sec: i64::MIN, nsec: 0 };
        let mut attr = empty_attr(never);
        self.writers.overlay(ino, &mut attr);
        Some(Buffered { length: attr.length, mtime: attr.mtime, ctime: attr.ctime })
    }

    /// A record with what is buffered now and what was buffered before it was read.
    pub(crate) fn overlaid(&self, ino: Ino, before: Option<Buffered>, mut attr: Attr) -> Attr {
        self.writers.overlay(ino, &mut attr);
        if let Some(before) = before {
            attr.length = attr.length.max(before.length);
            attr.mtime = attr.mtime.max(before.mtime);
            attr.ctime = attr.ctime.max(before.ctime);
        }
        attr
    }

    /// The attributes of an inode as an application of this mount must see them.
    pub(crate) async fn attr_of(&self, ino: Ino) -> Result<Attr, Errno> {
        let before = self.buffered(ino);
        let open = self.handles.inode(ino);
        match self.meta.getattr(ino).await {
            Ok(attr) => {
                let attr = self.overlaid(ino, before, attr);
                if let Some(open) = open {
                    open.note(&attr);
                }
                Ok(attr)
            }
            Err(Errno::NOENT) => match open {
                Some(open) => self.attr_of_gone(&open).await,
                None => Err(Errno::STALE),
            },
            Err(errno) => Err(errno),
        }
    }

    /// A file that another process removed while it is open here: as it was last seen, as long as its data are there.
    async fn attr_of_gone(&self, open: &OpenInode) -> Result<Attr, Errno> {
        let last = open.attr();
        let view = self.meta.chunk(open.ino, 0, last.length).await?;
        if let Some(attr) = view.attr {
            return Ok(attr);
        }
        let oldest = self.meta.clock().now().sec - GONE_SECONDS;
        match view.deleted_at {
            Some(deleted_at) if deleted_at > oldest => Ok(Attr { nlink: 0, ..last }),
            _ => Err(Errno::STALE),
        }
    }

    /// Attributes that came with a name. The inode was not known before they were read, so if it may have been written meanwhile they
    /// are read again: `flushes` is the count before the first reading.
    pub(crate) async fn found(&self, ino: Ino, attr: Attr, flushes: u64) -> Result<Attr, Errno> {
        if !self.meta.open_files().is_open(ino) && flushes == self.flush_count() {
            return Ok(attr);
        }
        match self.attr_of(ino).await {
            // Removed since it was found.
            Err(Errno::STALE) => Err(Errno::NOENT),
            other => other,
        }
    }

    /// fstat(2) sends no handle, so every open handle of the inode answers for a file that is gone.
    pub async fn getattr(&self, _caller: &Caller, ino: Ino, _fh: Option<u64>) -> Result<AttrReply, Errno> {
        let ino = self.mount.inward(ino);
        Ok(self.attr_reply(ino, self.attr_of(ino).await?))
    }

    /// The length first, then the rest.
    pub async fn setattr(&self, caller: &Caller, ino: Ino, change: SetAttrRequest) -> Result<AttrReply, Errno> {
        self.mount.writable()?;
        let ino = self.mount.inward(ino);
        // Buffered data bear the time of their writing: committed later, they would undo a time set now.
        if change.size.is_some() || change.atime.is_some() || change.mtime.is_some() {
            self.flush_data(ino).await?;
        }
        let mut attr = None;
        if let Some(size) = change.size {
            attr = Some(self.meta.truncate(caller, ino, size).await.map_err(inode_errno)?);
        }
        // After the truncation: what was buffered before it is no measure of the length.
        let before = self.buffered(ino);
        let rest = SetAttr {
            mode: change.mode.map(|mode| (mode & 0o7777) as u16),
            uid: change.uid,
            gid: change.gid,
            atime: change.atime,
            mtime: change.mtime,
        };
        let changes = rest.mode.is_some() || rest.uid.is_some() || rest.gid.is_some() || rest.atime.is_some() || rest.mtime.is_some();
        let attr = match attr {
            Some(attr) if !changes => attr,
            _ if changes => self.meta.setattr(caller, ino, rest).await.map_err(inode_errno)?,
            _ => return Ok(self.attr_reply(ino, self.attr_of(ino).await?)),
        };
        let attr = self.overlaid(ino, before, attr);
        if let Some(open) = self.handles.inode(ino) {
            open.note(&attr);
        }
        Ok(self.attr_reply(ino, attr))
    }
}

/// Attributes of nothing, older than anything.
fn empty_attr(time: Time) -> Attr {
    Attr {
        flags: Default::default(),
        kind: crate::types::Kind::File,
        mode: 0,
        uid: 0,
        gid: 0,
        atime: time,
        mtime: time,
        ctime: time,
        nlink: 0,
        length: 0,
        rdev: 0,
        parent: Ino(0),
        access_acl: 0,
        default_acl: 0,
        tier: 0,
    }
}
