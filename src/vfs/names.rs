//! Names: lookup, the creations, link, unlink, rmdir, rename, readlink.

use crate::meta::AtimeMode;
use crate::meta::ops::{NewNode, RenameFlags};
use crate::types::{Caller, Errno, Ino, Kind, Name};
use crate::vfs::{Entry, Vfs, inode_errno};
use bytes::Bytes;
use tracing::error;

/// Longest target of a symbolic link: one byte less than a path, as Linux has it.
const TARGET_BYTES_MAX: usize = 4095;

impl Vfs {
    /// What a name stands for; `.` and `..`, too.
    pub async fn lookup(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Entry, Errno> {
        let parent = self.mount.inward(parent);
        match name {
            b"." => Ok(self.entry(parent, self.attr_of(parent).await?)),
            b".." => {
                let above = self.parent_of(parent).await?;
                Ok(self.entry(above, self.attr_of(above).await?))
            }
            _ => {
                let name = Name::new(name)?;
                if self.mount.is_trash(parent, &name) {
                    return Ok(self.entry(Ino::TRASH, self.attr_of(Ino::TRASH).await.map_err(|_| Errno::NOENT)?));
                }
                let found = self.meta.lookup(caller, parent, &name).await;
                let loads = self.load_names(parent);
                let (ino, attr) = found?;
                if !loads {
                    self.watch_record(ino);
                }
                let attr = self.overlaid(ino, attr).await?;
                Ok(self.named(parent, name.as_bytes(), ino, attr))
            }
        }
    }

    /// Has all names of a directory read in the background if that pays, with the records they name.
    fn load_names(&self, dir: Ino) -> bool {
        let Ok(permit) = self.loads.clone().try_acquire_owned() else { return false };
        if !self.meta.wants_names(dir) {
            return false;
        }
        let meta = self.meta.clone();
        tokio::spawn(async move {
            meta.load_names(dir).await;
            drop(permit);
        });
        true
    }

    /// Reads a record by itself if the store would not tell us of its changes otherwise; nobody waits for it.
    fn watch_record(&self, ino: Ino) {
        if self.meta.is_unwatched(ino)
            && let Ok(permit) = self.loads.clone().try_acquire_owned()
        {
            let meta = self.meta.clone();
            tokio::spawn(async move {
                // Whoever needs it will be told.
                let _ = meta.getattr(ino).await;
                drop(permit);
            });
        }
    }

    /// The directory above, as this mount shows it.
    pub(crate) async fn parent_of(&self, dir: Ino) -> Result<Ino, Errno> {
        if dir == self.mount.root() {
            return Ok(dir);
        }
        let parent = match self.meta.recent_attr(dir) {
            // The directory was just opened.
            Some((attr, _)) if attr.is_dir() => attr.parent,
            _ => self.meta.parent_of(dir).await.map_err(inode_errno)?,
        };
        Ok(self.mount.parent(dir, parent))
    }

    /// The target of a symbolic link.
    pub async fn readlink(&self, _caller: &Caller, ino: Ino) -> Result<Bytes, Errno> {
        let ino = self.mount.inward(ino);
        let target = self.meta.readlink(ino).await.map_err(inode_errno)?;
        self.touch_atime(ino).await;
        // More than the format has and the kernel takes.
        if target.len() > TARGET_BYTES_MAX {
            error!(%ino, "the target of a symlink has {} bytes", target.len());
            return Err(Errno::IO);
        }
        Ok(target)
    }

    /// A file, pipe, socket or device.
    pub async fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, umask: u32, rdev: u32) -> Result<Entry, Errno> {
        let kind = match Kind::from_mode_bits(mode) {
            None | Some(Kind::Symlink) => return Err(Errno::INVAL),
            Some(Kind::Dir) => return Err(Errno::PERM),
            Some(kind) => kind,
        };
        self.add(caller, parent, name, NewNode { kind, mode: permissions(mode), umask: self.mount.umask(umask), rdev, target: b"" }).await
    }

    /// A directory.
    pub async fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, umask: u32) -> Result<Entry, Errno> {
        let umask = self.mount.umask(umask);
        self.add(caller, parent, name, NewNode { kind: Kind::Dir, mode: permissions(mode), umask, rdev: 0, target: b"" }).await
    }

    /// A symbolic link.
    pub async fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Entry, Errno> {
        if target.len() > TARGET_BYTES_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        self.add(caller, parent, name, NewNode { kind: Kind::Symlink, mode: 0o777, umask: 0, rdev: 0, target }).await
    }

    async fn add(&self, caller: &Caller, parent: Ino, name: &[u8], node: NewNode<'_>) -> Result<Entry, Errno> {
        self.mount.writable()?;
        let parent = self.mount.inward(parent);
        let (ino, attr) = self.meta.create(caller, parent, &Name::new(name)?, node).await?;
        Ok(self.named(parent, name, ino, attr))
    }

    /// Removes a name of anything but a directory.
    pub async fn unlink(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        self.mount.writable()?;
        self.meta.unlink(caller, self.mount.inward(parent), &Name::new(name)?).await
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        self.mount.writable()?;
        match name {
            b"." => return Err(Errno::INVAL),
            b".." => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        self.meta.rmdir(caller, self.mount.inward(parent), &Name::new(name)?).await
    }

    /// Moves a name, or exchanges two. Both parents are inodes the kernel found below the mount's root.
    pub async fn rename(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: u32,
    ) -> Result<(), Errno> {
        self.mount.writable()?;
        let flags = rename_flags(flags)?;
        let (from, to) = (self.mount.inward(parent), self.mount.inward(new_parent));
        let (name, new_name) = (Name::new(name)?, Name::new(new_name)?);
        self.store_before_naming(caller, from, &name).await?;
        if flags.exchange {
            self.store_before_naming(caller, to, &new_name).await?;
        }
        self.meta.rename(caller, from, &name, to, &new_name, flags).await
    }

    /// Commits what is buffered of the file behind a name that is about to get another: the new name is there for everybody at once and
    /// outlives this process, so it must not lead to less than was written, and nothing that is whole may be replaced by it before.
    async fn store_before_naming(&self, caller: &Caller, dir: Ino, name: &Name) -> Result<(), Errno> {
        if !self.writers.any_dirty() {
            return Ok(());
        }
        let ino = match self.meta.recent_entry(dir, name) {
            Some((ino, ..)) => ino,
            None => match self.meta.lookup(caller, dir, name).await {
                Ok((ino, _)) => ino,
                // What cannot be looked up is for the renaming itself to judge.
                Err(_) => return Ok(()),
            },
        };
        self.store_dirty(ino).await
    }

    async fn store_dirty(&self, ino: Ino) -> Result<(), Errno> {
        if !self.writers.is_dirty(ino) {
            return Ok(());
        }
        match self.writers.flush(ino).await {
            // Gone meanwhile: there is nothing to name.
            Err(Errno::NOENT) => Ok(()),
            outcome => outcome,
        }
    }

    /// Another name of a file.
    pub async fn link(&self, caller: &Caller, ino: Ino, new_parent: Ino, new_name: &[u8]) -> Result<Entry, Errno> {
        self.mount.writable()?;
        let (ino, parent) = (self.mount.inward(ino), self.mount.inward(new_parent));
        self.store_dirty(ino).await?;
        let attr = self.meta.link(caller, ino, parent, &Name::new(new_name)?).await?;
        let attr = self.overlaid(ino, attr).await?;
        Ok(self.named(parent, new_name, ino, attr))
    }

    /// Something of the inode was read. Access times are a courtesy: failing to set one fails nothing.
    pub(crate) async fn touch_atime(&self, ino: Ino) {
        if !self.mount.read_only() && self.meta.atime != AtimeMode::Never {
            let _ = self.meta.touch_atime(ino).await;
        }
    }
}

/// The permission bits of a mode.
pub(crate) fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

fn rename_flags(flags: u32) -> Result<RenameFlags, Errno> {
    let flags = match flags {
        0 => RenameFlags::default(),
        libc::RENAME_NOREPLACE => RenameFlags { noreplace: true, ..RenameFlags::default() },
        libc::RENAME_EXCHANGE => RenameFlags { exchange: true, ..RenameFlags::default() },
        // For overlay filesystems: an entry that hides one below it. The format has none.
        flags if flags & libc::RENAME_WHITEOUT != 0 && flags & libc::RENAME_EXCHANGE == 0 => return Err(Errno::NOTSUP),
        _ => return Err(Errno::INVAL),
    };
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rename_flags_that_make_sense() {
        let refused = |flags| rename_flags(flags).map(|_| ()).unwrap_err();
        assert!(rename_flags(0).is_ok_and(|f| !f.noreplace && !f.exchange));
        assert!(rename_flags(1).is_ok_and(|f| f.noreplace && !f.exchange));
        assert!(rename_flags(2).is_ok_and(|f| !f.noreplace && f.exchange));
        assert_eq!([3, 4, 5, 6, 8].map(refused), [Errno::INVAL, Errno::NOTSUP, Errno::NOTSUP, Errno::INVAL, Errno::INVAL]);
    }
}
