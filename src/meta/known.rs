//! `Known`: what this process remembers of a volume from one operation to the next, so that an ordinary operation need not ask.
//!
//! Nothing here is trusted without end: either it cannot change, or a commit that rests on it guards it, or its age is bounded.

use crate::meta::ops::acl::Acls;
use crate::meta::ops::quota::Quotas;
use crate::types::Ino;
use lru::LruCache;
use std::num::NonZeroUsize;
use std::sync::Mutex;

/// Directories whose parent is remembered: a few MiB. One that is forgotten costs a look at its record.
const PARENTS_MAX: NonZeroUsize = NonZeroUsize::new(64 << 10).expect("not zero");

/// What is known.
pub(crate) struct Known {
    /// An hour since 1970, and the directory of the trash that takes what is deleted in it.
    pub trash_hour: tokio::sync::Mutex<Option<(i64, Ino)>>,
    /// Quotas, as of the last heartbeat.
    pub quotas: Quotas,
    /// ACL rules.
    pub acls: Acls,
    parents: Mutex<LruCache<Ino, Ino>>,
}

impl Default for Known {
    fn default() -> Known {
        let parents = Mutex::new(LruCache::new(PARENTS_MAX));
        Known { trash_hour: Default::default(), quotas: Default::default(), acls: Default::default(), parents }
    }
}

impl Known {
    /// The parent a directory had when it was last looked at. Whoever relies on it guards it.
    pub fn parent(&self, dir: Ino) -> Option<Ino> {
        self.parents.lock().expect("never poisoned: no code under it panics").get(&dir).copied()
    }

    /// Remembers a parent.
    pub fn note_parent(&self, dir: Ino, parent: Ino) {
        self.parents.lock().expect("never poisoned: no code under it panics").put(dir, parent);
    }
}
