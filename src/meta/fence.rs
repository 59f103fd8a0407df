//! `Fence`: the locks this process holds, as it wrote them into the store. A session that was away longer than its expiry has lost its locks
//! to others; data written under an excluding lock is committed only while the lock's field is still there. And what applications have
//! unlocked while the store still says it is held (`meta/ops/unlock.rs`).

use crate::meta::store::Key;
use crate::types::Ino;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// A field of a lock hash and its value as we wrote it.
pub(crate) type Held = (Key, Bytes, Bytes);

/// A lock's field that holds more than its owner does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unreleased {
    /// The lock hash.
    pub hash: Key,
    /// The field of the owner.
    pub field: Bytes,
    /// Its value as we wrote it.
    pub wrote: Bytes,
    /// The value it is to have; `None` if the owner holds nothing any more.
    pub wanted: Option<Bytes>,
    /// When this was committed, and when something of it was unlocked first (monotonic).
    pub times: (Duration, Duration),
}

/// A field that is there.
struct Field {
    wrote: Bytes,
    excludes: bool,
    at: Duration,
    /// What its owner holds, if that is less, and since when.
    wanted: Option<(Option<Bytes>, Duration)>,
}

/// Of one inode.
#[derive(Default)]
struct Locks {
    fields: BTreeMap<(Key, Bytes), Field>,
    /// A lock was gone when data was to be committed: nothing is, until all handles are closed.
    lost: bool,
    /// Somebody is on the way to release what is unlocked.
    releasing: bool,
}

impl Locks {
    fn is_idle(&self) -> bool {
        self.fields.is_empty() && !self.lost && !self.releasing
    }
}

/// All of them, by inode. Most volumes never have any.
#[derive(Default)]
pub(crate) struct Fence(Mutex<HashMap<Ino, Locks>>);

impl Fence {
    /// What a field is from `now` on (monotonic), and whether that excludes others from reading. Noted once it is committed: until then what it
    /// was before is guarded, and whoever meets the new value instead waits for this note.
    pub fn hold(&self, ino: Ino, hash: &Key, field: &Bytes, value: Option<(Bytes, bool)>, now: Duration) {
        self.change(ino, |locks| {
            let place = (hash.clone(), field.clone());
            match value {
                Some((wrote, excludes)) => drop(locks.fields.insert(place, Field { wrote, excludes, at: now, wanted: None })),
                None => drop(locks.fields.remove(&place)),
            }
        });
    }

    /// What an owner holds to the exclusion of others.
    pub fn holds(&self, ino: Ino, hash: &Key, field: &Bytes) -> Option<Bytes> {
        let all = self.all();
        all.get(&ino)?.fields.get(&(hash.clone(), field.clone())).filter(|field| field.excludes).map(|field| field.wrote.clone())
    }

    /// What must still be there when data of the inode is committed.
    pub fn held(&self, ino: Ino) -> Vec<Held> {
        let all = self.all();
        let Some(locks) = all.get(&ino) else { return Vec::new() };
        let excluding = locks.fields.iter().filter(|(_, field)| field.excludes);
        excluding.map(|((hash, name), field)| (hash.clone(), name.clone(), field.wrote.clone())).collect()
    }

    /// The field of an owner: its value as we wrote it, what the owner holds of it, and when (as `Unreleased::times`, if something is unlocked).
    pub fn own(&self, ino: Ino, hash: &Key, field: &Bytes) -> Option<Unreleased> {
        let all = self.all();
        let found = all.get(&ino)?.fields.get(&(hash.clone(), field.clone()))?;
        let (wanted, since) = found.wanted.clone().unwrap_or((Some(found.wrote.clone()), found.at));
        Some(Unreleased { hash: hash.clone(), field: field.clone(), wrote: found.wrote.clone(), wanted, times: (found.at, since) })
    }

    /// From now on the owner holds only `wanted` of what its field says. True if nobody is on the way to release it: the caller is now.
    pub fn unlock(&self, ino: Ino, hash: &Key, field: &Bytes, wanted: Option<Bytes>, now: Duration) -> bool {
        self.change(ino, |locks| {
            let Some(found) = locks.fields.get_mut(&(hash.clone(), field.clone())) else { return false };
            let since = found.wanted.take().map_or(now, |(_, since)| since);
            found.wanted = Some((wanted, since));
            !std::mem::replace(&mut locks.releasing, true)
        })
    }

    /// The fields of an inode that hold more than their owners do.
    pub fn unreleased(&self, ino: Ino) -> Vec<Unreleased> {
        let all = self.all();
        let Some(locks) = all.get(&ino) else { return Vec::new() };
        let fields = locks.fields.iter().filter_map(|((hash, name), field)| {
            let (wanted, since) = field.wanted.clone().filter(|(wanted, _)| wanted.as_ref() != Some(&field.wrote))?;
            Some(Unreleased { hash: hash.clone(), field: name.clone(), wrote: field.wrote.clone(), wanted, times: (field.at, since) })
        });
        fields.collect()
    }

    /// Whoever was on the way to release what is unlocked has done so; false if there is more by now.
    pub fn released(&self, ino: Ino) -> bool {
        self.change(ino, |locks| {
            let left =
                locks.fields.values().any(|field| field.wanted.as_ref().is_some_and(|(wanted, _)| wanted.as_ref() != Some(&field.wrote)));
            locks.releasing = left;
            !left
        })
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
            if locks.is_idle() {
                all.remove(&ino);
            }
        }
    }

    fn change<T>(&self, ino: Ino, change: impl FnOnce(&mut Locks) -> T) -> T {
        let mut all = self.all();
        let locks = all.entry(ino).or_default();
        let changed = change(locks);
        if locks.is_idle() {
            all.remove(&ino);
        }
        changed
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Ino, Locks>> {
        self.0.lock().expect("never poisoned: no code under it panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: Ino = Ino(7);
    const NOW: Duration = Duration::from_secs(1);

    fn place() -> (Key, Bytes) {
        ("lockf7".into(), "1_1".into())
    }

    #[test]
    fn a_lost_lock_stays_lost_until_the_last_handle_is_closed() {
        let (fence, (hash, field)) = (Fence::default(), place());
        fence.hold(INO, &hash, &field, Some(("W".into(), true)), NOW);
        assert_eq!(fence.holds(INO, &hash, &field), Some("W".into()));
        assert_eq!(fence.held(INO), [(hash.clone(), field.clone(), Bytes::from("W"))]);
        assert!(!fence.is_lost(INO) && fence.lose(INO) && !fence.lose(INO));
        fence.hold(INO, &hash, &field, None, NOW);
        assert_eq!(fence.holds(INO, &hash, &field), None);
        assert!(fence.is_lost(INO) && fence.held(INO).is_empty());
        fence.closed(INO);
        assert!(!fence.is_lost(INO) && fence.all().is_empty());
    }

    #[test]
    fn shared_locks_guard_nothing() {
        let (fence, (hash, field)) = (Fence::default(), place());
        fence.hold(INO, &hash, &field, Some(("R".into(), false)), NOW);
        assert_eq!((fence.holds(INO, &hash, &field), fence.held(INO)), (None, vec![]));
    }

    #[test]
    fn what_is_unlocked_is_released_by_one() {
        let (fence, (hash, field)) = (Fence::default(), place());
        assert!(!fence.unlock(INO, &hash, &field, None, NOW), "nothing is held");
        fence.hold(INO, &hash, &field, Some(("W".into(), true)), NOW);
        assert!(fence.unlock(INO, &hash, &field, Some("R".into()), NOW * 2));
        assert!(!fence.unlock(INO, &hash, &field, None, NOW * 3), "one is on the way");
        let unreleased = Unreleased { hash: hash.clone(), field: field.clone(), wrote: "W".into(), wanted: None, times: (NOW, NOW * 2) };
        assert_eq!(fence.unreleased(INO), std::slice::from_ref(&unreleased));
        assert_eq!(fence.own(INO, &hash, &field), Some(unreleased));
        assert!(!fence.released(INO), "there is more");
        assert_eq!(fence.held(INO).len(), 1, "the store still says so");
        fence.hold(INO, &hash, &field, None, NOW * 4);
        assert!(fence.released(INO) && fence.all().is_empty());
        // Taken again before it was released.
        fence.hold(INO, &hash, &field, Some(("W".into(), true)), NOW);
        assert!(fence.unlock(INO, &hash, &field, None, NOW));
        fence.unlock(INO, &hash, &field, Some("W".into()), NOW);
        assert_eq!(fence.unreleased(INO), []);
        assert!(fence.released(INO));
    }
}
