//! `Known`: what this process remembers of a volume from one operation to the next, so that an ordinary operation need not ask.
//!
//! Nothing here is trusted without end: either it cannot change, or a commit that rests on it guards it, or its age is bounded.

use crate::meta::ops::acl::Acls;
use crate::meta::ops::quota::Quotas;
use crate::types::Ino;
use lru::LruCache;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Directories whose parent is remembered: a few MiB. One that is forgotten costs a look at its record.
const PARENTS_MAX: NonZeroUsize = NonZeroUsize::new(64 << 10).expect("not zero");

/// What is known.
pub(crate) struct Known {
    /// An hour since 1970, and the directory of the trash that takes what is deleted in it; and how often the store had lost something then.
    pub trash_hour: tokio::sync::Mutex<Option<(i64, Ino, u64)>>,
    /// Quotas, as of the last heartbeat.
    pub quotas: Quotas,
    /// ACL rules.
    pub acls: Acls,
    parents: Mutex<LruCache<Ino, Ino>>,
    losses: AtomicU64,
}

impl Default for Known {
    fn default() -> Known {
        let parents = Mutex::new(LruCache::new(PARENTS_MAX));
        Known { trash_hour: Default::default(), quotas: Default::default(), acls: Default::default(), parents, losses: AtomicU64::new(0) }
    }
}

impl Known {
    /// The store has lost something so often. What cannot change may not be there any more after each time.
    pub fn outlive(&self, losses: u64) {
        if self.losses.swap(losses, Ordering::Relaxed) != losses {
            self.acls.forget();
        }
    }

    /// The parent a directory had when it was last looked at. Whoever relies on it guards it.
    pub fn parent(&self, dir: Ino) -> Option<Ino> {
        self.parents.lock().expect("never poisoned: no code under it panics").get(&dir).copied()
    }

    /// Remembers a parent.
    pub fn note_parent(&self, dir: Ino, parent: Ino) {
        self.parents.lock().expect("never poisoned: no code under it panics").put(dir, parent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::acl::{AclKind, Rule};
    use crate::meta::key;
    use crate::meta::ops::chunk::testing::{World, ready};
    use crate::meta::store::{Query, Value, Write};
    use crate::types::Caller;

    #[test]
    fn what_the_store_has_lost_is_not_taken_for_known() {
        let world = World::with(|setting| setting.set("TrashDays", 1.into()));
        let rule = Rule { owner: Some(7), group: Some(5), mask: Some(7), other: Some(0), users: vec![(1000, 6)], groups: vec![] };
        let set = |ino| ready(world.meta.set_acl(&Caller::root(), ino, AclKind::Access, &rule, false)).unwrap();
        // The second time it is known.
        set(world.file(0));
        set(world.file(0));
        let hour = ready(world.meta.trash_dir()).unwrap().unwrap();
        // As a replica that was behind: the rule and the directory were never there.
        for write in [Write::Del(key::ACL), Write::Del(key::ACL_MAX_ID), Write::Del(key::inode(hour)), Write::Del(key::dir(Ino::TRASH))] {
            world.store.put(write);
        }
        world.store.losses.fetch_add(1, Ordering::Relaxed);
        set(world.file(0));
        assert_eq!(world.store.get(Query::HGet(key::ACL, "1".into())), Value::Bytes(Some(rule.encode())));
        let hour = ready(world.meta.trash_dir()).unwrap().unwrap();
        assert!(world.find(hour).is_some());
    }
}
