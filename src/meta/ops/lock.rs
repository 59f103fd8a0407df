//! BSD and POSIX locks (metadata §7): hashes per inode, a field per session and owner. Nothing waits here; who waits asks again.

use crate::meta::client::Cx;
use crate::meta::codec::{LockRecord, decode_locks, encode_locks};
use crate::meta::store::{Guard, Key, Query, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Meta, key};
use crate::types::{Caller, Errno, Ino};
use bytes::Bytes;

/// The last byte a POSIX lock can name: "to the end".
pub const LOCK_END_MAX: u64 = i64::MAX as u64;

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
    pub async fn flock(&self, ino: Ino, owner: u64, kind: LockKind) -> Result<(), Errno> {
        // An open of the inode and this may go on together; `release_locks` keeps both out while it forgets the inode.
        let _stripe = self.driver.open_files.stripe(ino).read().await;
        self.note_locked(ino, kind);
        self.run("flock", &Caller::root(), |view, cx| flock_step(view, cx, ino, owner, kind)).await
    }

    /// Sets the POSIX lock of an owner on `start..=end`. `AGAIN` if another owner is in the way.
    pub async fn set_lock(&self, ino: Ino, owner: u64, pid: u32, start: u64, end: u64, kind: LockKind) -> Result<(), Errno> {
        let _stripe = self.driver.open_files.stripe(ino).read().await;
        self.note_locked(ino, kind);
        self.run("set lock", &Caller::root(), |view, cx| set_step(view, cx, ino, owner, pid, start, end, kind)).await
    }

    /// The lock that would be in the way of such a request, the one that begins first; its pid is 0 if another session holds it.
    pub async fn get_lock(&self, ino: Ino, owner: u64, start: u64, end: u64, kind: LockKind) -> Result<Option<LockRecord>, Errno> {
        self.run("get lock", &Caller::root(), |view, cx| get_step(view, cx, ino, owner, start, end, kind)).await
    }

    /// Releases what an owner holds, POSIX locks on all bytes and the BSD lock. Costs nothing if this process never locked the inode.
    pub async fn release_locks(&self, ino: Ino, owner: u64) -> Result<(), Errno> {
        if !self.may_be_locked(ino) {
            return Ok(());
        }
        self.set_lock(ino, owner, 0, 0, LOCK_END_MAX, LockKind::Unlock).await?;
        self.flock(ino, owner, LockKind::Unlock).await?;
        // Nobody of this process takes a lock of the inode between the question and the forgetting.
        let _stripe = self.driver.open_files.stripe(ino).write().await;
        if !self.run("look for locks", &Caller::root(), |view, cx| holds_step(view, cx, ino)).await? {
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

/// The plan that gives our field of a lock hash a new value, or none.
fn store_field(cx: &Cx, hash: Key, fields: &[(Bytes, Bytes)], field: Bytes, value: Option<Bytes>) -> Plan<()> {
    let registry = key::locked(cx.sid);
    let mut writes = Vec::new();
    match value {
        Some(value) => {
            writes.push(Write::HSet(hash.clone(), field, value));
            // For shared locks, too: what is not listed survives the session for ever.
            writes.push(Write::SAdd(registry, hash.clone()));
        }
        None => {
            let holds_more = fields.iter().any(|(other, _)| *other != field && is_of_session(other, cx.sid));
            writes.push(Write::HDel(hash.clone(), field));
            if !holds_more {
                writes.push(Write::SRem(registry, hash.clone()));
            }
        }
    }
    Plan::new(vec![Guard::Fields(hash, fields.to_vec())], writes, ())
}

fn flock_step(view: &View, cx: &Cx, ino: Ino, owner: u64, kind: LockKind) -> Result<Plan<()>, Stop> {
    require_session(cx)?;
    let (hash, field) = (key::flock(ino), key::lock_field(cx.sid, owner));
    let fields = view.fields(&hash)?;
    let own = fields.iter().find(|(name, _)| *name == field).map(|(_, value)| &value[..]);
    let mut others = fields.iter().filter(|(name, _)| *name != field);
    let value: &'static [u8] = match kind {
        LockKind::Unlock if own.is_none() => return Ok(Plan::answer(())),
        LockKind::Unlock => return Ok(store_field(cx, hash.clone(), fields, field, None)),
        LockKind::Shared if others.any(|(_, value)| *value == b"W"[..]) => return Err(Errno::AGAIN.into()),
        LockKind::Exclusive if others.next().is_some() => return Err(Errno::AGAIN.into()),
        LockKind::Shared => b"R",
        LockKind::Exclusive => b"W",
    };
    if own == Some(value) {
        return Ok(Plan::answer(()));
    }
    Ok(store_field(cx, hash.clone(), fields, field, Some(Bytes::from_static(value))))
}

#[expect(clippy::too_many_arguments, reason = "the fields of struct flock")]
fn set_step(view: &View, cx: &Cx, ino: Ino, owner: u64, pid: u32, start: u64, end: u64, kind: LockKind) -> Result<Plan<()>, Stop> {
    require_session(cx)?;
    let end = end.min(LOCK_END_MAX);
    if start > end {
        return Err(Errno::INVAL.into());
    }
    let (hash, field) = (key::plock(ino), key::lock_field(cx.sid, owner));
    let fields = view.fields(&hash)?;
    if first_conflict(fields, &field, start, end, kind)?.is_some() {
        return Err(Errno::AGAIN.into());
    }
    let own = match fields.iter().find(|(name, _)| *name == field) {
        Some((_, value)) => decode_locks(value).ok_or(Errno::IO)?,
        None => Vec::new(),
    };
    let merged = merge(&own, start, end, (kind != LockKind::Unlock).then_some((kind == LockKind::Exclusive, pid)));
    if merged == own {
        return Ok(Plan::answer(()));
    }
    let value = (!merged.is_empty()).then(|| encode_locks(&merged));
    Ok(store_field(cx, hash.clone(), fields, field, value))
}

fn get_step(view: &View, cx: &Cx, ino: Ino, owner: u64, start: u64, end: u64, kind: LockKind) -> Result<Plan<Option<LockRecord>>, Stop> {
    let fields = view.fields(&key::plock(ino))?;
    let found = first_conflict(fields, &key::lock_field(cx.sid, owner), start, end, kind)?;
    // A pid of another host means nothing here.
    Ok(Plan::answer(found.map(|(field, lock)| if is_of_session(&field, cx.sid) { lock } else { LockRecord { pid: 0, ..lock } })))
}

fn holds_step(view: &View, cx: &Cx, ino: Ino) -> Result<Plan<bool>, Stop> {
    view.want([Query::HGetAll(key::flock(ino)), Query::HGetAll(key::plock(ino))])?;
    let holds = |hash: Key| -> Result<bool, Stop> { Ok(view.fields(&hash)?.iter().any(|(field, _)| is_of_session(field, cx.sid))) };
    Ok(Plan::answer(holds(key::flock(ino))? || holds(key::plock(ino))?))
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
fn merge(own: &[LockRecord], start: u64, end: u64, new: Option<(bool, u32)>) -> Vec<LockRecord> {
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
