//! `Mount`: one view of a volume. Maps its root to the kernel's inode 1, refuses changes when read-only, decides how long answers live.

use crate::meta::ops::trash::TRASH_NAME;
use crate::types::{Attr, Errno, Ino, Name};
use crate::vfs::{AttrReply, Entry, VfsConfig};
use std::path::Path;
use std::time::Duration;

/// What the kernel calls the root of every mount.
const KERNEL_ROOT: Ino = Ino(1);

/// Everything about a mount that needs no metadata.
pub(crate) struct Mount {
    config: VfsConfig,
}

impl Mount {
    pub fn new(config: VfsConfig) -> Mount {
        Mount { config }
    }

    pub fn root(&self) -> Ino {
        self.config.root
    }

    /// The volume's inode behind a number the kernel sent.
    pub fn inward(&self, ino: Ino) -> Ino {
        if ino == KERNEL_ROOT { self.config.root } else { ino }
    }

    /// The number under which the kernel knows an inode.
    pub fn outward(&self, ino: Ino) -> Ino {
        if ino == self.config.root { KERNEL_ROOT } else { ino }
    }

    /// `parent` as the parent of `dir`. Nothing above the mount's root is ever named: the root is its own parent, and so is a
    /// directory's that was moved out from under it to the root of the volume, whose number is the kernel's number of our root.
    pub fn parent(&self, dir: Ino, parent: Ino) -> Ino {
        if dir == self.config.root || parent == Ino::ROOT { self.config.root } else { parent }
    }

    /// Whether the trash is shown in this directory.
    pub fn shows_trash(&self, dir: Ino) -> bool {
        self.config.trash && dir == Ino::ROOT
    }

    /// Whether a name of a directory is that of the trash.
    pub fn is_trash(&self, dir: Ino, name: &Name) -> bool {
        self.shows_trash(dir) && name.as_bytes() == TRASH_NAME
    }

    /// Fails on a read-only mount.
    pub fn writable(&self) -> Result<(), Errno> {
        if self.config.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    pub fn read_only(&self) -> bool {
        self.config.read_only
    }

    /// A directory on the only disk of the volume.
    pub fn disk(&self) -> Option<&Path> {
        self.config.disk.as_deref()
    }

    pub fn xattr(&self) -> bool {
        self.config.xattr
    }

    /// The umask that applies to a creation.
    pub fn umask(&self, of_caller: u32) -> u16 {
        self.config.umask.unwrap_or((of_caller & 0o777) as u16)
    }

    /// While other processes use the store (`shared`) the kernel remembers nothing.
    pub fn entry(&self, ino: Ino, attr: Attr, shared: bool) -> Entry {
        let entry_ttl = if attr.is_dir() { self.config.dir_entry_ttl } else { self.config.entry_ttl };
        let (entry_ttl, attr_ttl) = if shared { (Duration::ZERO, Duration::ZERO) } else { (entry_ttl, self.config.attr_ttl) };
        Entry { ino: self.outward(ino), attr, entry_ttl, attr_ttl }
    }

    /// As `entry`.
    pub fn attr(&self, ino: Ino, attr: Attr, shared: bool) -> AttrReply {
        AttrReply { ino: self.outward(ino), attr, ttl: if shared { Duration::ZERO } else { self.config.attr_ttl } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(root: u64) -> Mount {
        Mount::new(VfsConfig { root: Ino(root), ..VfsConfig::default() })
    }

    #[test]
    fn the_root_of_a_subdirectory_shows_as_one() {
        let mount = mount(77);
        assert_eq!(mount.inward(Ino(1)), Ino(77));
        assert_eq!(mount.outward(Ino(77)), Ino(1));
        assert_eq!(mount.inward(Ino(5)), Ino(5));
        assert_eq!(mount.outward(Ino(5)), Ino(5));
    }

    #[test]
    fn nothing_above_the_root_is_named() {
        let sub = mount(77);
        assert_eq!(sub.parent(Ino(77), Ino(9)), Ino(77));
        assert_eq!(sub.parent(Ino(80), Ino::ROOT), Ino(77));
        assert_eq!(sub.parent(Ino(80), Ino(77)), Ino(77));
        assert_eq!(sub.parent(Ino(80), Ino(79)), Ino(79));
        assert_eq!(mount(1).parent(Ino(80), Ino::ROOT), Ino::ROOT);
    }

    #[test]
    fn a_shared_store_lets_the_kernel_remember_nothing() {
        let mount = mount(1);
        let attr = crate::vfs::tests::attr();
        assert_eq!(mount.attr(Ino(2), attr.clone(), true).ttl, Duration::ZERO);
        assert_eq!(mount.attr(Ino(2), attr.clone(), false).ttl, Duration::from_secs(1));
        let entry = mount.entry(Ino(2), attr, true);
        assert_eq!((entry.entry_ttl, entry.attr_ttl), (Duration::ZERO, Duration::ZERO));
    }
}
