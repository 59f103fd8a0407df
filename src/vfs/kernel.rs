//! `KernelCache`: what the kernel remembers of this mount, and how it is told to forget.

use crate::types::Ino;

/// The kernel's caches of one mount. Inode numbers are those the kernel sees: the mount's root is 1.
///
/// `forget_attr` takes no page or directory lock and may be called anywhere; `forget_entry` is sent by a thread of the implementor, never by
/// one the kernel waits for.
pub trait KernelCache: Send + Sync {
    /// Attributes of the inode are asked for again before they are used; its pages are dropped then if mtime or size moved.
    fn forget_attr(&self, ino: Ino);
    /// The name is looked up again before it is used; what is mounted on it stays. A kernel that cannot do this, or one that was told too many
    /// names at once, believes the name until its timeout ends.
    fn forget_entry(&self, parent: Ino, name: &[u8]);
}

/// There is no kernel, or it remembers nothing.
pub struct NoKernelCache;

impl KernelCache for NoKernelCache {
    fn forget_attr(&self, _ino: Ino) {}
    fn forget_entry(&self, _parent: Ino, _name: &[u8]) {}
}
