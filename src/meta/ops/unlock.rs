//! Unlocking without waiting (ADR 0012). Where the store is a server and every client on the volume is one of ours, an unlock is answered at once;
//! the store is told a moment later, together with the next change of a lock of the inode if there is one by then. Until then
//! - other owners of this process find the lock free, for their change carries the release with it;
//! - the same owner may have back what the store still says it holds: nobody else can have changed anything under that lock. A writer that
//!   becomes a reader is told so in the same way;
//! - other clients find it taken, and who does not wait asks once more before it is refused (`vfs/lock.rs`).
//!
//! Crash windows: a client that dies before the store is told leaves a lock that nobody holds, until its session is cleaned up, as if it had
//! died a moment earlier. What was written under the lock was committed before the unlock was answered.

use crate::meta::Meta;
use crate::meta::client::Cx;
use crate::meta::codec::{LockRecord, decode_locks, encode_locks};
use crate::meta::fence::Unreleased;
use crate::meta::key;
use crate::meta::ops::lock::{LOCK_END_MAX, LockKind, is_of_session, merge, nobody};
use crate::meta::store::{Guard, Key, Write};
use crate::meta::view::{Plan, View};
use crate::types::{Caller, Errno, Ino};
use bytes::Bytes;
use std::time::Duration;

/// The store is told of an unlock after this time. SQLite takes the next of its locks within some hundredths of it, and another host never
/// learns of an unlock faster than the network carries it.
pub const RELEASE_AFTER: Duration = Duration::from_millis(1);
/// What was committed longer ago than this is released the ordinary way: the session may have lapsed since, and the application is to be told. A
/// small part of the shortest time after which others clean a session up.
const CONFIRMED_MAX: Duration = Duration::from_secs(1);
/// Longest pause between two tries to tell a store that fails.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// A range of bytes of a file, or its BSD lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// The BSD lock.
    File,
    /// First and last byte.
    Range(u64, u64),
}

impl Locked {
    fn hash(self, ino: Ino) -> Key {
        match self {
            Locked::File => key::flock(ino),
            Locked::Range(..) => key::plock(ino),
        }
    }
}

/// How an unlock was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlocked {
    /// Not at all: it has to go to the store.
    No,
    /// The store is told by somebody who is on the way.
    Noted,
    /// The caller has to see to it that `release_unlocked` runs.
    First,
}

impl Meta {
    /// Whether unlocks are answered before the store knows of them.
    pub fn unlocks_at_once(&self) -> bool {
        self.is_far() && self.journal().is_among_ours()
    }

    /// Takes note that an owner has unlocked something. What was written under the lock has to be committed before.
    pub async fn unlock_at_once(&self, ino: Ino, owner: u64, what: Locked) -> Unlocked {
        if !self.unlocks_at_once() {
            return Unlocked::No;
        }
        let (hash, field) = (what.hash(ino), self.lock_field(owner));
        let _first = self.lock_changes.first(ino).await;
        let now = self.driver.clock.elapsed();
        let own = self.fence.own(ino, &hash, &field).filter(|own| own.times.0 + CONFIRMED_MAX > now);
        let Some(own) = own.filter(|_| !self.fence.is_lost(ino)) else { return Unlocked::No };
        let wanted = match what {
            Locked::File => None,
            Locked::Range(start, end) => {
                let Some(locks) = own.wanted.as_ref().map_or(Some(Vec::new()), |value| decode_locks(value)) else { return Unlocked::No };
                let (end, left) = (end.min(LOCK_END_MAX), start <= end);
                if !left {
                    return Unlocked::No;
                }
                let left = merge(&locks, start, end, None);
                (!left.is_empty()).then(|| encode_locks(&left))
            }
        };
        if self.fence.unlock(ino, &hash, &field, wanted, now) { Unlocked::First } else { Unlocked::Noted }
    }

    /// Grants what the store says this owner holds already: less than it holds (a writer becomes a reader, which others may learn a moment later,
    /// like an unlock), or what it has unlocked a moment ago. The latter for no longer than `RELEASE_AFTER` since the first unlock, or who locks
    /// again and again would never let others in.
    pub async fn relock_at_once(&self, ino: Ino, owner: u64, pid: u32, what: Locked, kind: LockKind) -> Unlocked {
        let (hash, field) = (what.hash(ino), self.lock_field(owner));
        if !self.unlocks_at_once() || self.fence.own(ino, &hash, &field).is_none() {
            return Unlocked::No;
        }
        // The host may have slept, and the monotonic clock with it: others may have what was held before.
        if self.is_overdue() {
            return Unlocked::No;
        }
        let _first = self.lock_changes.first(ino).await;
        let now = self.driver.clock.elapsed();
        let own = self.fence.own(ino, &hash, &field).filter(|own| own.times.0 + CONFIRMED_MAX > now && !self.fence.is_lost(ino));
        let Some(own) = own else { return Unlocked::No };
        let granted = own.wanted.as_ref().and_then(|held| weakened(held, pid, what, kind)).or_else(|| {
            let is_recent = own.wanted.as_ref() != Some(&own.wrote) && own.times.1 + RELEASE_AFTER > now;
            is_recent.then(|| regained(&own, pid, what, kind)).flatten()
        });
        let Some(wanted) = granted else { return Unlocked::No };
        if self.fence.unlock(ino, &hash, &field, Some(wanted), now) { Unlocked::First } else { Unlocked::Noted }
    }

    /// Tells the store what was unlocked, until there is nothing left to tell. A store that fails is asked again: until it knows, or the session is
    /// gone, nobody else gets the lock.
    pub async fn release_unlocked(&self, ino: Ino) {
        let mut pause = RELEASE_AFTER;
        loop {
            tokio::time::sleep(pause).await;
            match self.release_now(ino).await {
                Ok(()) if self.fence.released(ino) => return,
                Ok(()) => pause = RELEASE_AFTER,
                // `errno_of` has logged what failed.
                Err(_) if self.is_disowned() => return,
                Err(_) => pause = (pause * 2).min(RETRY_MAX),
            }
        }
    }

    /// Tells the store what of the locks of an inode was unlocked by now.
    pub(crate) async fn release_now(&self, ino: Ino) -> Result<(), Errno> {
        let _first = self.lock_changes.first(ino).await;
        let unreleased = self.fence.unreleased(ino);
        for hash in [key::flock(ino), key::plock(ino)] {
            if unreleased.iter().all(|own| own.hash != hash) {
                continue;
            }
            let step = |view: &View, cx: &Cx| {
                let fields = view.fields(&hash)?;
                let changes = released(cx, ino, &hash, fields);
                let writes = writes_of(cx, &hash, fields, &changes);
                Ok(Plan::new(vec![Guard::Fields(hash.clone(), fields.to_vec())], writes, ()))
            };
            let began = self.driver.clock.elapsed();
            self.run_presuming("release locks", &Caller::root(), vec![nobody(&hash)], step).await?;
            // Also what the store did not have any more.
            let told = unreleased.iter().filter(|own| own.hash == hash);
            self.note_fields(ino, &hash, told.map(|own| (own.field.clone(), own.wanted.clone())).collect(), began);
        }
        Ok(())
    }
}

/// What an owner holds that gives up writing; `None` if it asks for anything else.
fn weakened(held: &Bytes, pid: u32, what: Locked, kind: LockKind) -> Option<Bytes> {
    if kind != LockKind::Shared {
        return None;
    }
    match what {
        Locked::File => (held == "W").then(|| Bytes::from_static(b"R")),
        Locked::Range(start, end) => {
            let (locks, end) = (decode_locks(held)?, end.min(LOCK_END_MAX));
            let covered = start <= end && covers(&locks, start, end, false);
            let left = encode_locks(&merge(&locks, start, end, Some((false, pid))));
            // What it holds like that already is asked for anew, for what others have written beside it.
            (covered && left != *held).then_some(left)
        }
    }
}

/// What the owner of a field holds if it gets back `what` of it; `None` if the field does not say it is held.
fn regained(own: &Unreleased, pid: u32, what: Locked, kind: LockKind) -> Option<Bytes> {
    let exclusive = kind == LockKind::Exclusive;
    match what {
        // The whole lock as it is: that of a reader cannot be left of that of a writer without telling the store.
        Locked::File => (own.wrote == if exclusive { &b"W"[..] } else { &b"R"[..] }).then(|| own.wrote.clone()),
        Locked::Range(start, end) => {
            let end = end.min(LOCK_END_MAX);
            let stored = decode_locks(&own.wrote)?;
            if kind == LockKind::Unlock || start > end || !covers(&stored, start, end, exclusive) {
                return None;
            }
            let held = own.wanted.as_ref().map_or(Some(Vec::new()), |value| decode_locks(value))?;
            Some(encode_locks(&merge(&held, start, end, Some((exclusive, pid)))))
        }
    }
}

/// Whether locks (sorted, without overlap) hold every byte of a range, exclusively if that is asked for.
fn covers(locks: &[LockRecord], start: u64, end: u64, exclusive: bool) -> bool {
    let mut next = start;
    for lock in locks.iter().filter(|lock| lock.exclusive || !exclusive) {
        if lock.start <= next && next <= lock.end {
            if end <= lock.end {
                return true;
            }
            next = lock.end + 1;
        }
    }
    false
}

/// What becomes of the fields of a lock hash when what was unlocked here is released: the fields that change, and their new values.
pub(super) fn released(cx: &Cx, ino: Ino, hash: &Key, fields: &[(Bytes, Bytes)]) -> Vec<(Bytes, Option<Bytes>)> {
    let unreleased = cx.fence.unreleased(ino).into_iter().filter(|own| own.hash == *hash);
    // A field that is not as we wrote it is not ours any more.
    let stored = unreleased.filter(|own| fields.iter().any(|(name, value)| *name == own.field && *value == own.wrote));
    stored.map(|own| (own.field, own.wanted)).collect()
}

/// The fields of a lock hash as they are for this process, which knows what it has unlocked.
pub(super) fn after_release(cx: &Cx, ino: Ino, hash: &Key, fields: &[(Bytes, Bytes)]) -> Vec<(Bytes, Bytes)> {
    changed(fields, &released(cx, ino, hash, fields))
}

fn changed(fields: &[(Bytes, Bytes)], changes: &[(Bytes, Option<Bytes>)]) -> Vec<(Bytes, Bytes)> {
    let is_kept = |name: &Bytes| changes.iter().all(|(changed, _)| changed != name);
    let kept = fields.iter().filter(|(name, _)| is_kept(name)).cloned();
    kept.chain(changes.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?)))).collect()
}

/// The writes that change our fields of a lock hash, and with the last of them the session's list of what it has locked.
pub(super) fn writes_of(cx: &Cx, hash: &Key, fields: &[(Bytes, Bytes)], changes: &[(Bytes, Option<Bytes>)]) -> Vec<Write> {
    if changes.is_empty() {
        return Vec::new();
    }
    let mut writes: Vec<_> = changes
        .iter()
        .map(|(name, value)| match value {
            Some(value) => Write::HSet(hash.clone(), name.clone(), value.clone()),
            None => Write::HDel(hash.clone(), name.clone()),
        })
        .collect();
    let registry = key::locked(cx.sid);
    if changed(fields, changes).iter().all(|(name, _)| !is_of_session(name, cx.sid)) {
        writes.push(Write::SRem(registry, hash.clone()));
    } else if changes.iter().any(|(_, value)| value.is_some()) {
        // For shared locks, too: what is not listed survives the session for ever.
        writes.push(Write::SAdd(registry, hash.clone()));
    }
    writes
}
