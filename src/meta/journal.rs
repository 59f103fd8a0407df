//! `Journal`: which small blocks may travel with their records into the store, and what this process knows of those that did.
//!
//! A store on this host takes them all. On a server they stay for seconds only, and clients of another make do not know of them. So a commit
//! with frames guards that nobody has joined since the sessions were last examined, and the frames of a volume are bounded: in bytes, in rate
//! and in age. Whenever the journal takes nothing the blocks become objects first, as larger ones do.

use crate::env::{Clock, Random, SystemRandom};
use crate::meta::driver::errno_of;
use crate::meta::key;
use crate::meta::ops::session::is_foreign;
use crate::meta::store::{Commit, FramesKept, Guard, Query, Value, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Cx, Meta};
use crate::types::{Caller, Errno, SliceId};
use bytes::Bytes;
use lru::LruCache;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;

/// Bytes of all frames on a server: what half a second of a gigabit line stores, and little beside the metadata of a volume that writes so fast.
const BYTES_MAX: u64 = 64 << 20;
/// The same as a part (one n-th) of the memory the server has free: metadata must never be refused because of frames.
const FREE_PART: u64 = 20;
/// The same while the server does not tell how much memory it has.
const BYTES_MAX_UNKNOWN: u64 = 8 << 20;
/// Bytes of frames a second, of all clients together. A server cuts replicas off that lag by 64 MiB/s.
const BYTES_PER_SECOND: u64 = 16 << 20;
/// Nothing is taken while this process has an older frame and the bucket answers: clients that read without a session know no frames.
const AGE_MAX: Duration = Duration::from_secs(3);
/// Frames of this process that are not objects yet. With frames of 100 bytes that is 6 MiB of the server.
const OWN_MAX: usize = 64 << 10;
/// A frame is stored as an object when it is this old. What is deleted or replaced before never costs a request.
const SETTLED: Duration = Duration::from_secs(1);
/// How long nothing is taken after the store has refused a frame for want of memory.
const FULL_PAUSE: Duration = Duration::from_secs(5);
/// A number given to a session that never shows up is given up after this time: to begin a session takes a client two round trips.
const UNSEEN_MAX: Duration = Duration::from_secs(60);
/// How often all sessions and the memory of the server are looked at, if there is a reason: as often as sessions are prolonged.
const EXAMINE_AGAIN: Duration = Duration::from_secs(12);
/// Numbers of sessions looked at one by one. More at once were skipped by somebody who raised the counter.
const UNSEEN_COUNT_MAX: u64 = 1000;
/// A turn to drain frames of others is over when it was not prolonged for so long: a batch takes less, unless the bucket is away.
const TURN_SECONDS: u64 = 10;
/// Slices of which it is known whether they have a frame.
const TOLD_MAX: usize = 16 << 10;
/// Frames kept in memory for the reads that follow on the list that brought them.
const TOLD_BYTES_MAX: usize = 8 << 20;

/// A frame this process has committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnFrame {
    /// Its slice, which is one block.
    pub id: SliceId,
    /// Bytes of the slice.
    pub size: u32,
    /// When (monotonic).
    at: Duration,
}

/// The sessions as they were examined.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sessions {
    /// `nextsession`.
    next: Option<Bytes>,
    /// Fields of `sessionInfos`.
    count: u32,
}

#[derive(Default)]
struct State {
    /// As they were when last examined.
    sessions: Option<Sessions>,
    /// `nextsession` then, also after it turned out that somebody has come since.
    numbered_to: Option<u64>,
    examined: Duration,
    /// All of them know frames.
    alone: bool,
    /// Numbers that were given out and are not seen yet, and since when.
    unseen: BTreeMap<u64, Duration>,
    bytes: u64,
    bytes_max: u64,
    /// Bytes that may be taken now, and when that was so.
    credit: u64,
    credited: Duration,
    full_until: Duration,
    /// In the order of their commits.
    own: VecDeque<OwnFrame>,
    /// When a frame became an object.
    stored: Option<Duration>,
}

/// What was told about the frames of slices. A slice never changes, and one without a frame never gets one that its object does not equal, so
/// nothing in here is ever wrong.
struct Told {
    frames: LruCache<SliceId, Option<Bytes>>,
    bytes: usize,
}

/// The journal of one volume, as this process sees it.
pub struct Journal {
    clock: Arc<dyn Clock>,
    /// The store is a server.
    far: bool,
    off: std::sync::atomic::AtomicBool,
    /// Tells this process from others when it comes to turns.
    name: u64,
    state: Mutex<State>,
    told: Mutex<Told>,
    /// There is something to do for whoever stores frames as objects.
    work: Notify,
}

impl Journal {
    /// Of a store on this host, or a server: then it takes nothing before the sessions were examined.
    pub(crate) fn new(clock: Arc<dyn Clock>, far: bool) -> Journal {
        let state = State { bytes_max: BYTES_MAX_UNKNOWN, credit: BYTES_PER_SECOND, ..State::default() };
        let told = Told { frames: LruCache::unbounded(), bytes: 0 };
        let name = SystemRandom.u64();
        Journal { clock, far, off: Default::default(), name, state: Mutex::new(state), told: Mutex::new(told), work: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("never poisoned: no code under it panics")
    }

    /// From now on this process commits no frames.
    pub fn switch_off(&self) {
        self.off.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Whether this process may commit frames at all.
    pub fn is_on(&self) -> bool {
        !self.off.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Whether frames of so many bytes may be committed now. If so they count for the rate.
    pub fn admits(&self, count: usize, bytes: u64) -> bool {
        if !self.is_on() || !self.far {
            return self.is_on();
        }
        let now = self.clock.elapsed();
        let mut state = self.state();
        let fits = state.is_open()
            && now >= state.full_until
            && state.bytes + bytes <= state.bytes_max
            && state.own.len() + count <= OWN_MAX
            && !state.is_behind(now);
        fits && state.spend(now, bytes)
    }

    /// What a commit with frames guards; `AGAIN` if it is known that this would not hold.
    pub(crate) fn guards(&self, view: &View) -> Result<Vec<Guard>, Stop> {
        if !self.far {
            return Ok(Vec::new());
        }
        let state = self.state();
        let Some(Sessions { next, count }) = state.sessions.clone().filter(|_| state.is_open()) else { return Err(Errno::AGAIN.into()) };
        drop(state);
        let guards = vec![Guard::Value(key::NEXT_SESSION, next.clone()), Guard::HashLen(key::SESSION_INFOS, count)];
        // Somebody came or went: from a conflict it is known who there are now.
        let joined = matches!(view.peek(&guards[0].query()), Some(Value::Bytes(found)) if *found != next)
            || matches!(view.peek(&guards[1].query()), Some(Value::Int(found)) if *found != i64::from(count));
        if joined {
            self.doubt();
            return Err(Errno::AGAIN.into());
        }
        Ok(guards)
    }

    /// Takes nothing until the sessions were examined again.
    fn doubt(&self) {
        self.state().sessions = None;
        self.work.notify_one();
    }

    /// The store has refused a frame for want of memory.
    pub(crate) fn note_full(&self) {
        self.state().full_until = self.clock.elapsed() + FULL_PAUSE;
        self.work.notify_one();
    }

    /// Whether that has just happened.
    pub fn is_full(&self) -> bool {
        self.clock.elapsed() < self.state().full_until
    }

    /// Takes note of frames that were committed.
    pub fn note_put(&self, frames: impl IntoIterator<Item = (SliceId, u32)>) {
        if !self.far {
            return;
        }
        let at = self.clock.elapsed();
        let mut state = self.state();
        let first = state.own.is_empty();
        state.own.extend(frames.into_iter().map(|(id, size)| OwnFrame { id, size, at }));
        if first {
            self.work.notify_one();
        }
    }

    /// The oldest frames of this process that are to become objects now, at most `limit`, and when the next is due. All of them at once while
    /// the journal takes nothing.
    pub fn due(&self, limit: usize, at_once: bool) -> (Vec<OwnFrame>, Option<Duration>) {
        let now = self.clock.elapsed();
        let state = self.state();
        let settled = if at_once || !state.is_open() || now < state.full_until { Duration::ZERO } else { SETTLED };
        let due: Vec<_> = state.own.iter().take(limit).take_while(|frame| frame.at + settled <= now).copied().collect();
        let next = state.own.get(due.len()).map(|frame| (frame.at + settled).saturating_sub(now));
        (due, next)
    }

    /// Forgets frames that are no frames any more. They are among the oldest.
    pub fn settle(&self, done: &BTreeSet<SliceId>) {
        let mut state = self.state();
        let mut kept = Vec::new();
        let mut left = done.len();
        while left > 0
            && let Some(frame) = state.own.pop_front()
        {
            if done.contains(&frame.id) { left -= 1 } else { kept.push(frame) }
        }
        for frame in kept.into_iter().rev() {
            state.own.push_front(frame);
        }
    }

    /// A frame has become an object.
    pub fn note_stored(&self) {
        self.state().stored = Some(self.clock.elapsed());
    }

    /// Bytes of all frames of the volume, as last told.
    pub fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// Takes note of how much is kept.
    pub(crate) fn note_kept(&self, bytes: u64) {
        self.state().bytes = bytes;
    }

    /// Waits until there may be something to do.
    pub async fn work(&self) {
        self.work.notified().await;
    }

    /// Asks for frames to be stored now.
    pub fn ask(&self) {
        self.work.notify_one();
    }

    /// Takes in what came with answers of the store.
    pub(crate) fn learn<'a>(&self, answers: impl IntoIterator<Item = (&'a Query, &'a Value)>) {
        for (_, value) in answers {
            match value {
                Value::Frames(frames) => self.told().learn(frames),
                Value::Kept(kept) => self.note_kept(kept.bytes),
                _ => {}
            }
        }
    }

    /// Takes in a commit of our own.
    pub(crate) fn committed(&self, writes: &[Write], replies: &[Value]) {
        for (write, reply) in writes.iter().zip(replies) {
            if let (Write::PutFrame(..), Value::Int(bytes)) = (write, reply) {
                self.note_kept(u64::try_from(*bytes).unwrap_or(0));
            }
        }
    }

    /// What is known of the frame of a slice: its bytes, or that it has none; `None` if nothing is known.
    pub(crate) fn recall(&self, id: SliceId) -> Option<Option<Bytes>> {
        self.told().frames.get(&id).cloned()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().expect("never poisoned: no code under it panics")
    }
}

impl State {
    fn is_open(&self) -> bool {
        self.sessions.is_some() && self.alone && self.unseen.is_empty()
    }

    /// Whether the oldest frame is too old. While the bucket does not answer age is no reason: then they fill the journal to its bound.
    fn is_behind(&self, now: Duration) -> bool {
        let answers = self.stored.is_some_and(|stored| stored + AGE_MAX >= now);
        answers && self.own.front().is_some_and(|oldest| oldest.at + AGE_MAX < now)
    }

    /// Takes bytes of this client's share of the rate.
    fn spend(&mut self, now: Duration, bytes: u64) -> bool {
        let clients = self.sessions.as_ref().map_or(1, |sessions| u64::from(sessions.count.max(1)));
        let share = BYTES_PER_SECOND / clients;
        let since = now.saturating_sub(self.credited).as_millis().min(1000) as u64;
        self.credit = (self.credit + share * since / 1000).min(share);
        // What is below a millisecond is counted the next time.
        if since > 0 {
            self.credited = now;
        }
        // A full second's share always suffices for one frame.
        let spent = self.credit.checked_sub(bytes.min(share));
        self.credit = spent.unwrap_or(self.credit);
        spent.is_some()
    }
}

impl Told {
    fn learn(&mut self, frames: &[(SliceId, Option<Bytes>)]) {
        let size = |frame: &Option<Bytes>| frame.as_ref().map_or(0, Bytes::len);
        for (id, frame) in frames {
            self.bytes += size(frame);
            // A copy of its own: the answer it is a part of may be large.
            let frame = frame.as_ref().map(|frame| Bytes::copy_from_slice(frame));
            if let Some(old) = self.frames.put(*id, frame) {
                self.bytes -= size(&old);
            }
        }
        while (self.bytes > TOLD_BYTES_MAX || self.frames.len() > TOLD_MAX)
            && let Some((_, oldest)) = self.frames.pop_lru()
        {
            self.bytes -= size(&oldest);
        }
    }
}

/// What an examination has found.
struct Found {
    sessions: Sessions,
    /// Numbers of sessions without a document of ours, of which it is not known whose they are.
    strange: BTreeSet<u64>,
    /// A session of another make lives.
    foreign: bool,
}

impl Meta {
    /// The journal.
    pub fn journal(&self) -> &Journal {
        &self.driver.journal
    }

    /// How much is kept in frames. On a server it is also noticed whether anybody has come or gone.
    pub async fn look_at_journal(&self) -> Result<FramesKept, Errno> {
        let queries = [Query::FramesKept, Query::Get(key::NEXT_SESSION), Query::HLen { key: key::SESSION_INFOS, limit: u32::MAX }];
        let wanted = if self.is_far() { &queries[..] } else { &queries[..1] };
        let values = self.driver.read("look at the journal", wanted).await?;
        if let [_, Value::Bytes(next), Value::Int(count)] = &values[..] {
            let seen = Sessions { next: next.clone(), count: u32::try_from(*count).unwrap_or(u32::MAX) };
            if self.journal().is_outdated(&seen) {
                self.examine_sessions().await?;
            }
        }
        match values.first() {
            Some(Value::Kept(kept)) => Ok(*kept),
            _ => Err(Errno::IO),
        }
    }

    /// Finds out whether all sessions know frames. From then on commits with frames guard that it is still these.
    pub async fn examine_sessions(&self) -> Result<(), Errno> {
        if !self.is_far() || !self.journal().is_on() {
            return Ok(());
        }
        let free = self.driver.store.free_bytes().await;
        let queries = [
            Query::Get(key::NEXT_SESSION),
            Query::HGetAll(key::SESSION_INFOS),
            Query::ZRange { key: key::ALL_SESSIONS, max: i64::MAX, limit: u32::MAX },
        ];
        let values = self.driver.store.read(&queries).await.map_err(|e| errno_of("examine sessions", &e))?;
        let [Value::Bytes(next), Value::Pairs(documents), Value::Scored(expiries)] = &values[..] else { return Err(Errno::IO) };
        let mut found = self.journal().compare(next, documents, expiries);
        // Whose they are is found out later than who there are: a number never changes its owner.
        let numbers: Vec<u64> = found.strange.iter().copied().collect();
        let owners: Vec<_> = numbers.iter().map(|sid| Query::HLen { key: key::op(&sid.to_string(), 0), limit: 1 }).collect();
        let values = self.driver.store.read(&owners).await.map_err(|e| errno_of("examine sessions", &e))?;
        for (sid, value) in numbers.iter().zip(values) {
            if value != Value::Int(0) {
                found.strange.remove(sid);
            }
        }
        let listed: BTreeSet<u64> = expiries.iter().filter_map(|(sid, _)| number(sid)).collect();
        found.foreign |= found.strange.iter().any(|sid| listed.contains(sid));
        self.driver.pacing.set_foreign(found.foreign);
        let bytes_max = free.map_or(BYTES_MAX_UNKNOWN, |free| (free / FREE_PART).min(BYTES_MAX));
        self.journal().examined(found, bytes_max);
        Ok(())
    }

    /// What the store's clock shows now, in milliseconds.
    pub fn store_ms(&self) -> i64 {
        let now = self.driver.clock.now();
        now.sec.saturating_mul(1000) + i64::from(now.nsec / 1_000_000) + self.driver.store.clock_ahead_us() / 1000
    }

    /// Takes the turn to drain frames of others, or prolongs it. False: it is somebody else's. A turn that is taken from somebody who still
    /// uses it only means that some blocks are stored twice.
    pub async fn begin_drain(&self) -> Result<bool, Errno> {
        let (own, now) = (self.journal().name, self.driver.clock.now().sec);
        let step = |view: &View, _: &Cx| -> Result<Plan<bool>, Stop> {
            let stored = view.string(&key::DRAINER)?;
            let holder = stored.as_ref().and_then(|value| {
                let (name, since) = std::str::from_utf8(value).ok()?.split_once(' ')?;
                Some((name.parse::<u64>().ok()?, since.parse::<i64>().ok()?))
            });
            if holder.is_some_and(|(name, since)| name != own && now.abs_diff(since) < TURN_SECONDS) {
                return Ok(Plan::answer(false));
            }
            let value = Bytes::from(format!("{own} {now}"));
            Ok(Plan::new(vec![Guard::Value(key::DRAINER, stored)], vec![Write::Set(key::DRAINER, value)], true))
        };
        self.run("take the turn to drain", &Caller::root(), step).await
    }

    /// Gives the turn back, if it is ours.
    pub async fn end_drain(&self) -> Result<(), Errno> {
        let own = format!("{} ", self.journal().name);
        let step = |view: &View, _: &Cx| -> Result<Plan<()>, Stop> {
            match view.string(&key::DRAINER)? {
                Some(value) if value.starts_with(own.as_bytes()) => {
                    Ok(Plan::new(vec![Guard::Value(key::DRAINER, Some(value))], vec![Write::Del(key::DRAINER)], ()))
                }
                _ => Ok(Plan::answer(())),
            }
        };
        self.run("end the turn to drain", &Caller::root(), step).await
    }

    /// Removes the frames of slices whose blocks are objects now.
    pub async fn drop_frames(&self, ids: impl IntoIterator<Item = SliceId>) -> Result<(), Errno> {
        let writes: Vec<_> = ids.into_iter().map(Write::DelFrame).collect();
        if writes.is_empty() {
            return Ok(());
        }
        match self.driver.store.commit(&[], &writes, &[]).await.map_err(|e| errno_of("remove frames", &e))? {
            Commit::Done { .. } => Ok(()),
            Commit::Conflict(_) => Err(Errno::IO),
        }
    }

    /// The frames of these slices, and how much is kept.
    pub async fn frames_of(&self, ids: &[SliceId]) -> Result<Vec<Option<Bytes>>, Errno> {
        let mut queries: Vec<_> = ids.iter().map(|id| Query::Frame(*id)).collect();
        queries.push(Query::FramesKept);
        let mut values = self.driver.store.read(&queries).await.map_err(|e| errno_of("read frames", &e))?;
        if let Some(Value::Kept(kept)) = values.pop() {
            self.journal().note_kept(kept.bytes);
        }
        let frame = |value| if let Value::Bytes(frame) = value { Ok(frame) } else { Err(Errno::IO) };
        values.into_iter().map(frame).collect()
    }

    /// The oldest frames, and when they were put, in milliseconds of the store's clock; 0 if it does not know.
    pub async fn oldest_frames(&self, limit: u32) -> Result<Vec<(SliceId, i64)>, Errno> {
        let values = self.driver.store.read(&[Query::OldestFrames { limit }]).await.map_err(|e| errno_of("list frames", &e))?;
        let [Value::Scored(ids)] = &values[..] else { return Err(Errno::IO) };
        let slice = |id: &Bytes| id[..].try_into().ok().map(u64::from_be_bytes);
        Ok(ids.iter().filter_map(|(id, ms)| Some((slice(id)?, *ms))).collect())
    }
}

fn highest(next: &Option<Bytes>) -> u64 {
    next.as_ref().and_then(|next| number(next)).unwrap_or(0)
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

impl Journal {
    /// Whether the sessions are to be examined, now that these are there.
    fn is_outdated(&self, seen: &Sessions) -> bool {
        let state = self.state();
        // Also because the free memory of the server changes.
        let again = (!state.alone || !state.own.is_empty()) && state.examined + EXAMINE_AGAIN <= self.clock.elapsed();
        again || state.sessions.as_ref() != Some(seen) || !state.unseen.is_empty()
    }

    /// Whether somebody has begun a session of whom it is not known yet what client it is.
    pub fn is_unsure(&self) -> bool {
        let state = self.state();
        state.sessions.is_none() || !state.unseen.is_empty()
    }

    fn compare(&self, next: &Option<Bytes>, documents: &[(Bytes, Bytes)], expiries: &[(Bytes, i64)]) -> Found {
        let sessions = Sessions { next: next.clone(), count: u32::try_from(documents.len()).unwrap_or(u32::MAX) };
        let known: BTreeSet<u64> = documents.iter().filter_map(|(sid, _)| number(sid)).collect();
        // One that is listed and has no document may be of either make.
        let mut strange: BTreeSet<u64> = expiries.iter().filter_map(|(sid, _)| number(sid)).filter(|sid| !known.contains(sid)).collect();
        let state = self.state();
        strange.extend(state.unseen.keys().filter(|sid| !known.contains(sid)));
        // Who began before the first examination and is not listed has ended, or changes `sessionInfos` when it goes on.
        if let Some(before) = state.numbered_to {
            let now = highest(next);
            strange.extend((before.max(now.saturating_sub(UNSEEN_COUNT_MAX)) + 1..=now).filter(|sid| !known.contains(sid)));
        }
        Found { sessions, strange, foreign: documents.iter().any(|(_, document)| is_foreign(document)) }
    }

    fn examined(&self, found: Found, bytes_max: u64) {
        let now = self.clock.elapsed();
        let mut state = self.state();
        let mut unseen = std::mem::take(&mut state.unseen);
        unseen.retain(|sid, _| found.strange.contains(sid));
        for sid in found.strange {
            unseen.entry(sid).or_insert(now);
        }
        unseen.retain(|_, since| *since + UNSEEN_MAX > now);
        state.unseen = unseen;
        state.alone = !found.foreign;
        state.numbered_to = Some(highest(&found.sessions.next));
        state.examined = now;
        state.sessions = Some(found.sessions);
        state.bytes_max = bytes_max;
        if !state.is_open() {
            // What is there becomes objects at once.
            self.work.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
