//! `Fence`: the write locks this process holds, as it wrote them. A session that was away longer than its expiry has lost its locks to
//! others; data written under a lock is committed only while the lock's field is still there.

use crate::meta::store::Key;
use crate::types::Ino;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

/// A field of a lock hash and its value as we wrote it.
pub(crate) type Held = (Key, Bytes, Bytes);

/// Of one inode.
#[derive(Default)]
struct Locks {
    fields: BTreeMap<(Key, Bytes), Bytes>,
    /// A lock was gone when data was to be committed: nothing is, until all handles are closed.
    lost: bool,
}

/// All of them, by inode. Most volumes never have any.
#[derive(Default)]
pub(crate) struct Fence(Mutex<HashMap<Ino, Locks>>);

impl Fence {
    /// What an owner holds from now on, if that excludes others from reading. Noted once it is committed: until then what it held before
    /// is guarded, and whoever meets the new value instead waits for this note.
    pub fn hold(&self, ino: Ino, hash: &Key, field: &Bytes, value: Option<Bytes>) {
        let mut all = self.all();
        let locks = all.entry(ino).or_default();
        let place = (hash.clone(), field.clone());
        match value {
            Some(value) => drop(locks.fields.insert(place, value)),
            None => drop(locks.fields.remove(&place)),
        }
        if locks.fields.is_empty() && !locks.lost {
            all.remove(&ino);
        }
    }

    /// What an owner holds.
    pub fn holds(&self, ino: Ino, hash: &Key, field: &Bytes) -> Option<Bytes> {
        self.all().get(&ino)?.fields.get(&(hash.clone(), field.clone())).cloned()
    }

    /// What must still be there when data of the inode is committed.
    pub fn held(&self, ino: Ino) -> Vec<Held> {
        let all = self.all();
        let Some(locks) = all.get(&ino) else { return Vec::new() };
        locks.fields.iter().map(|((hash, field), value)| (hash.clone(), field.clone(), value.clone())).collect()
    }

    /// A lock of the inode was found gone; true if this is new.
    pub fn lose(&self, ino: Ino) -> bool {
        !std::mem::replace(&mut self.all().entry(ino).or_default().lost, true)
    }

    /// Whether a lock of the inode was found gone since it was opened.
    pub fn is_lost(&self, ino: Ino) -> bool {
        self.all().get(&ino).is_some_and(|locks| locks.lost)
    }

    /// The last handle is closed.
    pub fn closed(&self, ino: Ino) {
        let mut all = self.all();
        if let Some(locks) = all.get_mut(&ino) {
            locks.lost = false;
            if locks.fields.is_empty() {
                all.remove(&ino);
            }
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Ino, Locks>> {
        self.0.lock().expect("never poisoned: no code under it panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_lock_stays_lost_until_the_last_handle_is_closed() {
        let (fence, ino) = (Fence::default(), Ino(7));
        let (hash, field): (Key, Bytes) = ("lockf7".into(), "1_1".into());
        fence.hold(ino, &hash, &field, Some("W".into()));
        assert_eq!(fence.holds(ino, &hash, &field), Some("W".into()));
        assert_eq!(fence.held(ino), [(hash.clone(), field.clone(), Bytes::from("W"))]);
        assert!(!fence.is_lost(ino) && fence.lose(ino) && !fence.lose(ino));
        fence.hold(ino, &hash, &field, None);
        assert_eq!(fence.holds(ino, &hash, &field), None);
        assert!(fence.is_lost(ino) && fence.held(ino).is_empty());
        fence.closed(ino);
        assert!(!fence.is_lost(ino) && fence.all().is_empty());
    }
}
