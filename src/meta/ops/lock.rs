//! BSD and POSIX locks (metadata §7): hashes per inode, a field per session and owner. Nothing waits here; who waits asks again.

use crate::meta::client::Cx;
use crate::meta::codec::{LockRecord, Record, decode_locks, encode_locks};
use crate::meta::ops::unlock::{after_release, released, writes_of};
use crate::meta::store::{Guard, Key, Query, Value, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Meta, key};
use crate::types::{Attr, Caller, Errno, Ino};
use bytes::Bytes;
use std::time::Duration;
use tracing::error;

/// The last byte a POSIX lock can name: "to the end".
pub const LOCK_END_MAX: u64 = i64::MAX as u64;

/// Own changes of a lock that one change of data may run into. Each needs a request of an application at the very moment.
const LOCK_CHANGES_MAX: u32 = 16;
/// A grant that took longer is looked at again before it is believed: half of the time after which others take a silent session for dead.
const GRANT_MAX: Duration = Duration::from_secs(30);

/// What a lock request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// Together with other shared locks.
    Shared,
    /// Alone.
    Exclusive,
    /// No lock.
    Unlock,
}

impl Meta {
    /// Takes, converts or releases the BSD lock of an owner. `AGAIN` if another owner is in the way; what was held then stays held.
    /// Answers the inode as it is in the moment in which a lock is granted.
    pub async fn flock(&self, ino: Ino, owner: u64, kind: LockKind) -> Result<Option<Attr>, Errno> {
        // An open of the inode and this may go on together; `release_locks` keeps both out while it forgets the inode.
        let _stripe = self.driver.open_files.keep_link(ino).await;
        self.note_locked(ino, kind);
        let goes_on = kind != LockKind::Unlock;
        let hash = key::flock(ino);
        let step = |view: &View, cx: &Cx| flock_step(view, cx, ino, owner, kind, self.brought_by_grant(ino));
        self.change_lock("flock", ino, hash, owner, kind, goes_on, step).await
    }

    /// Sets the POSIX lock of an owner on `start..=end`. Otherwise as `flock`.
    pub async fn set_lock(&self, ino: Ino, owner: u64, pid: u32, start: u64, end: u64, kind: LockKind) -> Result<Option<Attr>, Errno> {
        let _stripe = self.driver.open_files.keep_link(ino).await;
        self.note_locked(ino, kind);
        let step = |view: &View, cx: &Cx| set_step(view, cx, ino, owner, pid, start, end, kind, self.brought_by_grant(ino));
        let goes_on = kind != LockKind::Unlock || start > 0 || end < LOCK_END_MAX;
        self.change_lock("set lock", ino, key::plock(ino), owner, kind, goes_on, step).await
    }

    /// The inode and its first list as they are in the moment of a grant: whatever was known of them before may be older than the last holder's
    /// changes. Frames only behind what is known of the list: who locks a small file often wrote most of it, and looking up sixty frames
    /// takes the server as long as the exchange.
    fn brought_by_grant(&self, ino: Ino) -> Vec<Query> {
        let list = key::chunk(ino, 0);
        let mut reads = vec![Query::Get(key::inode(ino)), Query::List(list.clone())];
        if self.is_far() {
            reads.push(self.journal().frames_behind_known(list));
        }
        reads
    }

    /// Most files are locked by nobody: that is presumed, and the commit that takes the lock tells if it is wrong. If the owner `goes_on` to hold
    /// something, it must still have what it held: a lock that went meanwhile is not taken anew as if nothing had happened.
    #[expect(clippy::too_many_arguments, reason = "a lock and what becomes of it")]
    async fn change_lock<F>(
        &self,
        what: &'static str,
        ino: Ino,
        hash: Key,
        owner: u64,
        kind: LockKind,
        goes_on: bool,
        step: F,
    ) -> Result<Option<Attr>, Errno>
    where
        F: Fn(&View, &Cx) -> Result<Plan<Changed>, Stop> + Send + Sync,
    {
        if kind != LockKind::Unlock && self.fence.is_lost(ino) {
            return Err(Errno::IO);
        }
        let field = self.lock_field(owner);
        // Two changes of one field must be noted in the order in which they were committed.
        let _first = self.lock_changes.first(ino).await;
        let before = self.fence.holds(ino, &hash, &field);
        let step = |view: &View, cx: &Cx| {
            if let Some(wrote) = before.as_ref().filter(|_| goes_on) {
                let is_there = view.fields(&hash)?.iter().any(|(name, value)| *name == field && value == wrote);
                if !is_there {
                    return Err(Errno::OWNERDEAD.into());
                }
            }
            step(view, cx)
        };
        for _ in 0..LOCK_CHANGES_MAX {
            let began = self.driver.clock.elapsed();
            match self.run_presuming(what, &Caller::root(), vec![nobody(&hash)], &step).await {
                Ok(changed) => {
                    let is_late = kind != LockKind::Unlock && began + GRANT_MAX < self.driver.clock.elapsed();
                    if is_late && !self.is_in_store(&hash, &changed.fields).await? {
                        continue;
                    }
                    self.note_fields(ino, &hash, changed.fields, began);
                    return Ok(changed.attr);
                }
                Err(Errno::OWNERDEAD) => {
                    self.lose_lock(ino);
                    return Err(Errno::IO);
                }
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::IO)
    }

    /// Whether fields of a lock hash still are as they were committed. A commit whose answer was lost is found to have happened, however long ago
    /// that was: others may have taken the session for dead since.
    async fn is_in_store(&self, hash: &Key, fields: &[(Bytes, Option<Bytes>)]) -> Result<bool, Errno> {
        let queries: Vec<Query> = fields.iter().map(|(field, _)| Query::HGet(hash.clone(), field.clone())).collect();
        let values = self.driver.read("look for locks", &queries).await?;
        Ok(fields.iter().zip(values).all(|((_, value), found)| found == Value::Bytes(value.clone())))
    }

    pub(super) fn lock_field(&self, owner: u64) -> Bytes {
        key::lock_field(self.sid.load(std::sync::atomic::Ordering::Relaxed), owner)
    }

    /// Takes note of fields of a lock hash as they were committed, not before `since` (monotonic).
    pub(super) fn note_fields(&self, ino: Ino, hash: &Key, fields: Vec<(Bytes, Option<Bytes>)>, since: Duration) {
        for (field, value) in fields {
            let value = value.map(|value| (value.clone(), excludes(&value)));
            self.fence.hold(ino, hash, &field, value, since);
        }
    }

    fn lose_lock(&self, ino: Ino) {
        if self.fence.lose(ino) {
            error!(%ino, "a lock of this file was lost to other clients while this one was away: what was written under it is not stored");
        }
    }

    /// Runs a change of the data of an inode, which guards the write locks of this process. If one is gone, nothing of the inode is changed any
    /// more until all of its handles are closed: OWNERDEAD.
    pub(crate) async fn under_locks<T, F>(&self, ino: Ino, change: impl Fn() -> F) -> Result<T, Errno>
    where
        F: Future<Output = Result<T, Errno>>,
    {
        for _ in 0..LOCK_CHANGES_MAX {
            if self.fence.is_lost(ino) {
                return Err(Errno::OWNERDEAD);
            }
            match change().await {
                Err(Errno::OWNERDEAD) => {}
                outcome => return outcome,
            }
            // Behind every change of our own: what we have written by then is what we hold.
            let _first = self.lock_changes.first(ino).await;
            if self.is_lock_gone(ino).await? {
                self.lose_lock(ino);
            }
        }
        Err(Errno::IO)
    }

    /// Whether a write lock that this process holds is not there. No change of ours may be under way.
    async fn is_lock_gone(&self, ino: Ino) -> Result<bool, Errno> {
        let held = self.fence.held(ino);
        let queries: Vec<_> = held.iter().map(|(hash, field, _)| Query::HGet(hash.clone(), field.clone())).collect();
        if queries.is_empty() {
            return Ok(false);
        }
        let values = self.driver.read("look for locks", &queries).await?;
        let is_there = held.iter().zip(values).all(|((_, _, wrote), found)| found == Value::Bytes(Some(wrote.clone())));
        Ok(!is_there)
    }

    /// Whether a lock under which this process wrote the inode is lost, and a handle from then still open.
    pub fn is_lock_lost(&self, ino: Ino) -> bool {
        self.fence.is_lost(ino)
    }

    /// The lock that would be in the way of such a request, the one that begins first; its pid is 0 if another session holds it.
    pub async fn get_lock(&self, ino: Ino, owner: u64, start: u64, end: u64, kind: LockKind) -> Result<Option<LockRecord>, Errno> {
        self.answer("get lock", &Caller::root(), |view, cx| get_step(view, cx, ino, owner, start, end, kind)).await
    }

    /// Releases what an owner holds, POSIX locks on all bytes and the BSD lock. Costs nothing if this process never locked the inode.
    pub async fn release_locks(&self, ino: Ino, owner: u64) -> Result<(), Errno> {
        if !self.may_be_locked(ino) {
            return Ok(());
        }
        // Nobody of this process takes a lock of the inode between the release and the forgetting.
        let _stripe = self.driver.open_files.keep_closed(ino).await;
        let field = self.lock_field(owner);
        let hashes = [key::plock(ino), key::flock(ino)];
        let _first = self.lock_changes.first(ino).await;
        let (presumed, began) = (hashes.iter().map(nobody).collect(), self.driver.clock.elapsed());
        let holds_more =
            self.run_presuming("release locks", &Caller::root(), presumed, |view, cx| release_step(view, cx, &hashes, &field)).await?;
        for hash in &hashes {
            self.note_fields(ino, hash, vec![(field.clone(), None)], began);
        }
        // Others may have taken away what another owner here believes to hold: its own release has to come by here, too.
        if !holds_more && self.fence.held(ino).is_empty() {
            self.locked.lock().expect("never poisoned: no code under it panics").remove(&ino);
        }
        Ok(())
    }

    /// False if this process holds no lock of the inode; true if it may.
    pub fn may_be_locked(&self, ino: Ino) -> bool {
        self.locked.lock().expect("never poisoned: no code under it panics").contains(&ino)
    }

    fn note_locked(&self, ino: Ino, kind: LockKind) {
        if kind != LockKind::Unlock {
            self.locked.lock().expect("never poisoned: no code under it panics").insert(ino);
        }
    }
}

/// Whether a field of a lock hash belongs to the session.
pub(crate) fn is_of_session(field: &[u8], sid: u64) -> bool {
    let text = sid.to_string();
    field.strip_prefix(text.as_bytes()).is_some_and(|rest| rest.starts_with(b"_"))
}

/// Without a session nobody would ever clean up after us.
fn require_session(cx: &Cx) -> Result<(), Errno> {
    if cx.sid == 0 { Err(Errno::NOLCK) } else { Ok(()) }
}

/// What a request for a lock has led to.
struct Changed {
    /// The inode in the moment of a grant.
    attr: Option<Attr>,
    /// Our fields of the hash that were changed or confirmed, and their values.
    fields: Vec<(Bytes, Option<Bytes>)>,
}

/// Whether the value of a field of either hash excludes readers.
fn excludes(value: &[u8]) -> bool {
    value == b"W" || decode_locks(value).is_some_and(|locks| locks.iter().any(|lock| lock.exclusive))
}

/// The plan that gives our field of a lock hash a new value, or none, and releases what else of the hash was unlocked here. A grant answers
/// `grant`.
fn store_field(
    cx: &Cx,
    ino: Ino,
    hash: Key,
    fields: &[(Bytes, Bytes)],
    field: Bytes,
    value: Option<Bytes>,
    grant: Vec<Query>,
) -> Plan<Changed> {
    let mut changes = released(cx, ino, &hash, fields);
    changes.retain(|(other, _)| *other != field);
    let reads = if value.is_some() { grant } else { Vec::new() };
    changes.push((field, value));
    let writes = writes_of(cx, &hash, fields, &changes);
    let finish = move |_: &[Value], values: &[Value]| {
        let attr = match values.first() {
            // A damaged record is told of where it is needed: the lock is taken.
            Some(Value::Bytes(Some(bytes))) => Record::decode(bytes.clone()).map(|record| record.attr),
            _ => None,
        };
        Ok(Changed { attr, fields: changes })
    };
    Plan { guards: vec![Guard::Fields(hash, fields.to_vec())], writes, reads, while_closed: None, finish: Box::new(finish) }
}

/// The plan for a request that finds its field as it is to be.
fn keep_field(field: Bytes, value: Option<Bytes>) -> Plan<Changed> {
    Plan::answer(Changed { attr: None, fields: vec![(field, value)] })
}

fn flock_step(view: &View, cx: &Cx, ino: Ino, owner: u64, kind: LockKind, grant: Vec<Query>) -> Result<Plan<Changed>, Stop> {
    require_session(cx)?;
    let (hash, field) = (key::flock(ino), key::lock_field(cx.sid, owner));
    let fields = view.fields(&hash)?;
    let held = after_release(cx, ino, &hash, fields);
    let own = held.iter().find(|(name, _)| *name == field).map(|(_, value)| &value[..]);
    let stored = fields.iter().find(|(name, _)| *name == field);
    let mut others = held.iter().filter(|(name, _)| *name != field);
    let value: &'static [u8] = match kind {
        LockKind::Unlock if stored.is_none() => return Ok(keep_field(field, None)),
        LockKind::Unlock => return Ok(store_field(cx, ino, hash.clone(), fields, field, None, grant)),
        LockKind::Shared if others.any(|(_, value)| *value == b"W"[..]) => return Err(Errno::AGAIN.into()),
        LockKind::Exclusive if others.next().is_some() => return Err(Errno::AGAIN.into()),
        LockKind::Shared => b"R",
        LockKind::Exclusive => b"W",
    };
    // As it is here and in the store: what was unlocked here may still be told.
    if own == Some(value) && stored.is_some_and(|(_, stored)| stored == value) {
        return Ok(keep_field(field, Some(Bytes::from_static(value))));
    }
    Ok(store_field(cx, ino, hash.clone(), fields, field, Some(Bytes::from_static(value)), grant))
}

#[expect(clippy::too_many_arguments, reason = "the fields of struct flock")]
fn set_step(
    view: &View,
    cx: &Cx,
    ino: Ino,
    owner: u64,
    pid: u32,
    start: u64,
    end: u64,
    kind: LockKind,
    grant: Vec<Query>,
) -> Result<Plan<Changed>, Stop> {
    require_session(cx)?;
    let end = end.min(LOCK_END_MAX);
    if start > end {
        return Err(Errno::INVAL.into());
    }
    let (hash, field) = (key::plock(ino), key::lock_field(cx.sid, owner));
    let fields = view.fields(&hash)?;
    let held = after_release(cx, ino, &hash, fields);
    if first_conflict(&held, &field, start, end, kind)?.is_some() {
        return Err(Errno::AGAIN.into());
    }
    let own = match held.iter().find(|(name, _)| *name == field) {
        Some((_, value)) => decode_locks(value).ok_or(Errno::IO)?,
        None => Vec::new(),
    };
    let merged = merge(&own, start, end, (kind != LockKind::Unlock).then_some((kind == LockKind::Exclusive, pid)));
    let stored = fields.iter().find(|(name, _)| *name == field);
    let value = (!merged.is_empty()).then(|| encode_locks(&merged));
    if merged == own && stored.map(|(_, stored)| stored) == value.as_ref() {
        return Ok(keep_field(field, value));
    }
    Ok(store_field(cx, ino, hash.clone(), fields, field, value, grant))
}

fn get_step(view: &View, cx: &Cx, ino: Ino, owner: u64, start: u64, end: u64, kind: LockKind) -> Result<Plan<Option<LockRecord>>, Stop> {
    let hash = key::plock(ino);
    let held = after_release(cx, ino, &hash, view.fields(&hash)?);
    let found = first_conflict(&held, &key::lock_field(cx.sid, owner), start, end, kind)?;
    // A pid of another host means nothing here.
    Ok(Plan::answer(found.map(|(field, lock)| if is_of_session(&field, cx.sid) { lock } else { LockRecord { pid: 0, ..lock } })))
}

/// Takes an owner's field out of both hashes; answers whether this session still has another in one of them. Without a field of its own there
/// is nothing to write, and the guards alone confirm the answer.
fn release_step(view: &View, cx: &Cx, hashes: &[Key; 2], field: &Bytes) -> Result<Plan<bool>, Stop> {
    let (mut guards, mut writes, mut holds) = (Vec::new(), Vec::new(), false);
    for hash in hashes {
        let fields = view.fields(hash)?;
        let holds_more = fields.iter().any(|(other, _)| other != field && is_of_session(other, cx.sid));
        if fields.iter().any(|(own, _)| own == field) {
            writes.push(Write::HDel(hash.clone(), field.clone()));
            if !holds_more {
                writes.push(Write::SRem(key::locked(cx.sid), hash.clone()));
            }
        }
        guards.push(Guard::Fields(hash.clone(), fields.to_vec()));
        holds |= holds_more;
    }
    Ok(Plan::new(guards, writes, holds))
}

/// What is presumed of a lock hash.
pub(super) fn nobody(hash: &Key) -> (Query, Value) {
    (Query::HGetAll(hash.clone()), Value::Pairs(Vec::new()))
}

/// The first lock of another owner that excludes the request, and its field.
fn first_conflict(
    fields: &[(Bytes, Bytes)],
    own: &Bytes,
    start: u64,
    end: u64,
    kind: LockKind,
) -> Result<Option<(Bytes, LockRecord)>, Stop> {
    let mut first: Option<(Bytes, LockRecord)> = None;
    if kind == LockKind::Unlock {
        return Ok(None);
    }
    for (field, value) in fields.iter().filter(|(field, _)| field != own) {
        for lock in decode_locks(value).ok_or(Errno::IO)? {
            let excludes = lock.exclusive || kind == LockKind::Exclusive;
            let is_earlier = first.as_ref().is_none_or(|(name, found)| (lock.start, field) < (found.start, name));
            if excludes && lock.start <= end && start <= lock.end && is_earlier {
                first = Some((field.clone(), lock));
            }
        }
    }
    Ok(first)
}

/// The locks of one owner after `start..=end` is set to `new` (exclusive, pid) or released: sorted, without overlap, neighbours that touch
/// and agree in type and pid joined.
pub(super) fn merge(own: &[LockRecord], start: u64, end: u64, new: Option<(bool, u32)>) -> Vec<LockRecord> {
    let mut pieces: Vec<LockRecord> = Vec::with_capacity(own.len() + 2);
    for lock in own {
        // What lies before the range, and what lies behind it.
        if lock.start < start {
            pieces.push(LockRecord { end: lock.end.min(start - 1), ..*lock });
        }
        if lock.end > end {
            pieces.push(LockRecord { start: lock.start.max(end + 1), ..*lock });
        }
    }
    pieces.extend(new.map(|(exclusive, pid)| LockRecord { exclusive, pid, start, end }));
    pieces.sort_unstable_by_key(|lock| lock.start);
    let mut merged: Vec<LockRecord> = Vec::with_capacity(pieces.len());
    for lock in pieces {
        match merged.last_mut() {
            Some(last) if (last.exclusive, last.pid) == (lock.exclusive, lock.pid) && last.end.checked_add(1) == Some(lock.start) => {
                last.end = lock.end;
            }
            _ => merged.push(lock),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::ops::chunk::testing::{World, ready, slice};
    use crate::meta::store::Value;
    use proptest::prelude::*;
    use std::sync::Arc;

    use LockKind::{Exclusive as W, Shared as R, Unlock as U};
    const INO: Ino = Ino(7);

    fn new(kind: LockKind) -> Option<(bool, u32)> {
        (kind != U).then_some((kind == W, 1))
    }

    /// `R0-9 W10-19` and so on.
    fn text(locks: &[LockRecord]) -> String {
        let words: Vec<_> = locks.iter().map(|l| format!("{}{}-{}", if l.exclusive { 'W' } else { 'R' }, l.start, l.end)).collect();
        words.join(" ")
    }

    #[test]
    fn own_locks_merge_and_split() {
        let mut locks = Vec::new();
        let table = [
            (R, 0, 99, "R0-99"),
            (W, 10, 19, "R0-9 W10-19 R20-99"),
            (U, 0, 14, "W15-19 R20-99"),
            (R, 15, 19, "R15-99"),
            (R, 100, 110, "R15-110"),
            (R, 0, 14, "R0-110"),
            (U, 50, 50, "R0-49 R51-110"),
            (W, 40, 60, "R0-39 W40-60 R61-110"),
            (R, LOCK_END_MAX, LOCK_END_MAX, "R0-39 W40-60 R61-110 R9223372036854775807-9223372036854775807"),
            (U, 0, LOCK_END_MAX, ""),
        ];
        for (kind, start, end, want) in table {
            locks = merge(&locks, start, end, new(kind));
            assert_eq!(text(&locks), want, "{kind:?} {start}-{end}");
        }
        let mut joined = merge(&[], 0, 9, Some((false, 1)));
        joined = merge(&joined, 10, 19, Some((false, 2)));
        assert_eq!(text(&joined), "R0-9 R10-19", "another process");
    }

    proptest! {
        /// Against an array of bytes, painted request by request.
        #[test]
        fn merging_agrees_with_painting(requests in prop::collection::vec((0u64..40, 0u64..15, 0u8..3), 1..20)) {
            let mut painted = [0u8; 64];
            let mut locks = Vec::new();
            for (start, more, kind) in requests {
                painted[start as usize..=(start + more) as usize].fill(kind);
                locks = merge(&locks, start, start + more, new([U, R, W][kind as usize]));
                let mut seen = [0u8; 64];
                for lock in &locks {
                    seen[lock.start as usize..=lock.end as usize].fill(1 + u8::from(lock.exclusive));
                }
                prop_assert_eq!(seen, painted);
                for pair in locks.windows(2) {
                    prop_assert!(pair[0].end < pair[1].start, "sorted, without overlap");
                    prop_assert!(pair[0].end + 1 < pair[1].start || pair[0].exclusive != pair[1].exclusive, "joined");
                }
            }
        }
    }

    fn with_session(world: &World) -> Arc<Meta> {
        let meta = world.neighbour();
        ready(meta.new_session("/m")).unwrap();
        meta
    }

    fn pairs(world: &World, key: Key) -> Vec<(Bytes, Bytes)> {
        let Value::Pairs(pairs) = world.store.get(Query::HGetAll(key)) else { panic!() };
        pairs
    }

    fn listed(world: &World, sid: u64) -> Vec<Bytes> {
        let Value::List(members) = world.store.get(Query::SMembers(key::locked(sid))) else { panic!() };
        members
    }

    #[test]
    fn flock_excludes_and_registers() {
        let world = World::new();
        let (a, b) = (with_session(&world), with_session(&world));
        let again = Err(Errno::AGAIN);
        // Client, owner, kind → result, and what the hash holds then.
        let table = [
            (&a, 0xDEAD_BEEF, R, Ok(()), "1_00000000DEADBEEF=R"),
            (&b, 1, R, Ok(()), "1_00000000DEADBEEF=R 2_0000000000000001=R"),
            (&a, 0xDEAD_BEEF, W, again, "1_00000000DEADBEEF=R 2_0000000000000001=R"),
            (&b, 1, U, Ok(()), "1_00000000DEADBEEF=R"),
            (&b, 1, U, Ok(()), "1_00000000DEADBEEF=R"),
            (&a, 0xDEAD_BEEF, W, Ok(()), "1_00000000DEADBEEF=W"),
            (&a, 2, R, again, "1_00000000DEADBEEF=W"),
            (&b, 1, R, again, "1_00000000DEADBEEF=W"),
            (&a, 0xDEAD_BEEF, R, Ok(()), "1_00000000DEADBEEF=R"),
            (&a, 2, R, Ok(()), "1_0000000000000002=R 1_00000000DEADBEEF=R"),
            (&a, 2, U, Ok(()), "1_00000000DEADBEEF=R"),
        ];
        for (n, (meta, owner, kind, want, state)) in table.into_iter().enumerate() {
            assert_eq!(ready(meta.flock(INO, owner, kind)).map(drop), want, "row {n}");
            let seen: Vec<_> = pairs(&world, key::flock(INO))
                .iter()
                .map(|(field, value)| format!("{}={}", String::from_utf8_lossy(field), String::from_utf8_lossy(value)))
                .collect();
            assert_eq!(seen.join(" "), state, "row {n}");
        }
        assert_eq!((listed(&world, 1), listed(&world, 2)), (vec![key::flock(INO)], vec![]), "shared locks are registered");
        ready(a.flock(INO, 0xDEAD_BEEF, U)).unwrap();
        assert_eq!(listed(&world, 1), [] as [Bytes; 0]);
    }

    #[test]
    fn posix_locks_exclude_by_range() {
        let world = World::new();
        let (a, b) = (with_session(&world), with_session(&world));
        let again = Err(Errno::AGAIN);
        let table = [
            (&a, 1, 10, 19, W, Ok(())),
            (&a, 2, 0, 9, W, Ok(())),
            (&a, 2, 19, 19, R, again),
            (&b, 1, 5, 30, R, again),
            (&b, 1, 20, u64::MAX, W, Ok(())),
            (&a, 1, 10, 19, R, Ok(())),
            (&b, 1, 15, 15, R, Ok(())),
            (&a, 1, 15, 15, W, again),
            (&a, 1, 20, 19, R, Err(Errno::INVAL)),
        ];
        for (n, (meta, owner, start, end, kind, want)) in table.into_iter().enumerate() {
            assert_eq!(ready(meta.set_lock(INO, owner, 40 + owner as u32, start, end, kind)).map(drop), want, "row {n}");
        }
        let fields = pairs(&world, key::plock(INO));
        let hex: String = fields.iter().find(|(f, _)| f == "2_0000000000000001").unwrap().1.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "0000000000000029000000000000000f000000000000000f000000010000002900000000000000147fffffffffffffff");
        let lock = |pid, start, end, exclusive| Ok(Some(LockRecord { exclusive, pid, start, end }));
        assert_eq!(ready(a.get_lock(INO, 9, 0, 100, W)), lock(42, 0, 9, true));
        assert_eq!(ready(a.get_lock(INO, 2, 0, 100, R)), lock(0, 20, LOCK_END_MAX, true), "another session's process");
        assert_eq!(ready(a.get_lock(INO, 9, 10, 15, R)), Ok(None));
        assert_eq!(ready(a.get_lock(INO, 9, 0, 100, U)), Ok(None));
        assert_eq!(listed(&world, 1), [key::plock(INO)]);
    }

    #[test]
    fn releasing_is_free_for_files_never_locked_and_forgets() {
        let world = World::new();
        let meta = with_session(&world);
        ready(meta.set_lock(INO, 1, 1, 0, 5, W)).unwrap();
        ready(meta.flock(INO, 2, R)).unwrap();
        ready(meta.release_locks(INO, 1)).unwrap();
        assert!(meta.may_be_locked(INO), "owner 2 still holds one");
        assert_eq!(pairs(&world, key::plock(INO)), []);
        ready(meta.release_locks(INO, 2)).unwrap();
        assert!(!meta.may_be_locked(INO));
        assert_eq!(listed(&world, 1), [] as [Bytes; 0]);
        world.store.before_commit(|| panic!("no commit"));
        ready(meta.release_locks(INO, 1)).unwrap();
    }

    #[test]
    fn a_lock_that_is_gone_is_not_taken_anew() {
        let own = |owner| key::lock_field(1, owner);
        // What is asked for when the store has nothing of what owner 1 believes to hold.
        type Change = fn(&Meta) -> Result<Option<Attr>, Errno>;
        let table: [(Change, Result<(), Errno>); 4] = [
            (|meta| ready(meta.set_lock(INO, 1, 1, 20, 29, W)), Err(Errno::IO)),
            (|meta| ready(meta.set_lock(INO, 1, 1, 0, 9, R)), Err(Errno::IO)),
            (|meta| ready(meta.set_lock(INO, 1, 1, 0, 4, U)), Err(Errno::IO)),
            (|meta| ready(meta.set_lock(INO, 1, 1, 0, u64::MAX, U)), Ok(())),
        ];
        for (change, want) in table {
            let world = World::new();
            let meta = with_session(&world);
            ready(meta.set_lock(INO, 1, 1, 0, 9, W)).unwrap();
            world.store.put(Write::HDel(key::plock(INO), own(1)));
            assert_eq!(change(&meta).map(drop), want);
            assert_eq!(meta.is_lock_lost(INO), want.is_err());
            assert_eq!(pairs(&world, key::plock(INO)), []);
        }
        let world = World::new();
        let meta = with_session(&world);
        ready(meta.flock(INO, 1, W)).unwrap();
        world.store.put(Write::HDel(key::flock(INO), own(1)));
        assert_eq!(ready(meta.flock(INO, 1, R)), Err(Errno::IO));
        assert_eq!(ready(meta.write(INO, 0, &[slice(0, 1, 1)], world.now())), Err(Errno::OWNERDEAD));
    }

    #[test]
    fn data_is_not_committed_past_a_lock_that_is_being_changed() {
        let world = World::new();
        let (meta, ino) = (with_session(&world), world.file(0));
        ready(meta.set_lock(ino, 1, 1, 0, 9, W)).unwrap();
        let (writer, store, now) = (meta.clone(), world.store.clone(), world.now());
        world.store.before_commit(move || {
            // While the lock grows it is lost to another client, which writes; then data of ours arrives.
            store.put(Write::HDel(key::plock(ino), key::lock_field(1, 1)));
            let slices = [slice(0, 1, 5)];
            let mut write = Box::pin(writer.write(ino, 0, &slices, now));
            let waits = write.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_pending();
            assert!(waits, "whether the lock is lost is known when its change has ended");
        });
        assert_eq!(ready(meta.set_lock(ino, 1, 1, 0, 19, W)), Err(Errno::IO));
        assert_eq!(world.list(ino, 0), []);
        assert!(meta.is_lock_lost(ino));
    }

    #[test]
    fn a_race_for_a_lock_has_one_winner() {
        let world = World::new();
        let (a, b) = (with_session(&world), with_session(&world));
        world.store.before_commit(move || {
            ready(b.flock(INO, 1, W)).unwrap();
        });
        assert_eq!(ready(a.flock(INO, 1, W)), Err(Errno::AGAIN));
    }

    #[test]
    fn without_a_session_there_are_no_locks() {
        let world = World::new();
        assert_eq!(ready(world.meta.flock(INO, 1, R)), Err(Errno::NOLCK));
        assert_eq!(ready(world.meta.set_lock(INO, 1, 1, 0, 1, R)), Err(Errno::NOLCK));
    }

    #[test]
    fn damage_is_an_error() {
        let world = World::new();
        let meta = with_session(&world);
        world.store.put(Write::HSet(key::plock(INO), "9_1".into(), "damaged".into()));
        assert_eq!(ready(meta.set_lock(INO, 1, 1, 0, 1, R)), Err(Errno::IO));
        assert!(is_of_session(b"9_1", 9) && !is_of_session(b"19_1", 9) && !is_of_session(b"9", 9) && !is_of_session(b"91_1", 9));
    }
}
