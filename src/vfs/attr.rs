//! Attributes: getattr, setattr, and the overlay of what is buffered.

use crate::meta::ops::{SetAttr, SetTime};
use crate::types::{Attr, Caller, Errno, Ino};
use crate::vfs::handle::OpenInode;
use crate::vfs::reader::DELETED_READABLE_SECS;
use crate::vfs::{AttrReply, Vfs, inode_errno};

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

impl Vfs {
    /// Attributes just read, with what is buffered. The writers also know what they committed a moment ago: if that happened between the
    /// reading and this call, the kernel would otherwise be told a length it has outgrown, drop pages and report a short file.
    ///
    /// Links are counted as an application counts them: not those in the trash.
    pub(crate) async fn overlaid(&self, ino: Ino, attr: Attr) -> Result<Attr, Errno> {
        let mut attr = self.meta.shown(ino, attr).await?;
        self.writers.overlay(ino, &mut attr);
        Ok(attr)
    }

    /// The attributes of an inode as an application of this mount must see them.
    pub(crate) async fn attr_of(&self, ino: Ino) -> Result<Attr, Errno> {
        let open = self.handles.inode(ino);
        match self.meta.getattr(ino).await {
            Ok(attr) => {
                let attr = self.overlaid(ino, attr).await?;
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
        let (view, length) = self.meta.chunk_of_open(open.ino, 0, last.length).await?;
        if let Some(attr) = view.attr {
            return Ok(attr);
        }
        let oldest = self.meta.clock().now().sec - DELETED_READABLE_SECS;
        match view.deleted_at {
            Some(deleted_at) if deleted_at > oldest => {
                let attr = Attr { nlink: 0, length, ..last };
                open.note(&attr);
                Ok(attr)
            }
            _ => Err(Errno::STALE),
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
        let attr = self.overlaid(ino, attr).await?;
        if let Some(open) = self.handles.inode(ino) {
            open.note(&attr);
        }
        Ok(self.attr_reply(ino, attr))
    }
}
