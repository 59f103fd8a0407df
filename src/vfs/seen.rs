//! `Seen`: in which state this process last had the data of an inode, so that an unchanged file keeps the kernel's pages over an open.

use crate::types::{Attr, Ino, Time};
use lru::LruCache;
use std::num::NonZeroUsize;
use std::sync::Mutex;

/// Inodes remembered: a large source tree. One forgotten costs the kernel its pages of that file. About 3 MiB when full.
const INODES_MAX: NonZeroUsize = NonZeroUsize::new(32_768).expect("not zero");

/// The last modification, change (a modification can be set back) and length under which each inode's pages came into the kernel.
pub(crate) struct Seen(Mutex<LruCache<Ino, (Time, Time, u64)>>);

impl Seen {
    pub fn new() -> Seen {
        Seen(Mutex::new(LruCache::new(INODES_MAX)))
    }

    /// Whether the inode's data are as they were when last noted; notes them.
    pub fn is_as_before(&self, ino: Ino, attr: &Attr) -> bool {
        self.lock().put(ino, (attr.mtime, attr.ctime, attr.length)) == Some((attr.mtime, attr.ctime, attr.length))
    }

    /// Notes the state of data that this mount itself wrote through the kernel's pages.
    pub fn note(&self, ino: Ino, attr: &Attr) {
        self.lock().put(ino, (attr.mtime, attr.ctime, attr.length));
    }

    /// The kernel's pages may differ from the data now.
    pub fn forget(&self, ino: Ino) {
        self.lock().pop(&ino);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<Ino, (Time, Time, u64)>> {
        self.0.lock().expect("never poisoned: no code under it panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_kept_only_while_nothing_changed() {
        let (seen, ino) = (Seen::new(), Ino(7));
        let attr = crate::vfs::tests::attr();
        assert!(!seen.is_as_before(ino, &attr));
        assert!(seen.is_as_before(ino, &attr));
        let written = Attr { mtime: attr.mtime.next(), ..attr.clone() };
        assert!(!seen.is_as_before(ino, &written));
        seen.note(ino, &Attr { length: 9, ..written.clone() });
        assert!(seen.is_as_before(ino, &Attr { length: 9, ..written.clone() }));
        // Overwritten by another, and mtime set back.
        let restored = Attr { ctime: attr.ctime.next(), length: 9, ..written.clone() };
        assert!(!seen.is_as_before(ino, &restored) && seen.is_as_before(ino, &restored));
        seen.forget(ino);
        assert!(!seen.is_as_before(ino, &Attr { length: 9, ..written }));
    }
}
