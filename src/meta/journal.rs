//! `Journal`: which small blocks may travel with their records into the store, and what this process knows of those that did.
//!
//! A store on this host takes them all. On a server they stay for seconds only, and clients of another make do not know of them. So a commit
//! with frames guards that nobody has joined since the sessions were last examined, and the frames of a volume are bounded: in bytes, in rate
//! and in age. Whenever the journal takes nothing the blocks become objects first, as larger ones do.

mod peers;

use crate::env::{Clock, Random, SystemRandom};
use crate::meta::Meta;
use crate::meta::store::{Guard, Key, Query, Value, Write};
use crate::meta::view::{Stop, View};
use crate::meta::{codec, key};
use crate::types::{Errno, SliceId};
use bytes::Bytes;
use lru::LruCache;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroUsize;
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
/// Slices of which it is known whether they have a frame.
const TOLD_MAX: usize = 16 << 10;
/// Lists of which it is known how far their frames are.
const TOLD_LISTS_MAX: usize = 4 << 10;
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
    /// The newest slice of a list that was told. What stands before it and is not known (somebody else's, or forgotten) is asked for by itself.
    newest: LruCache<Key, SliceId>,
    /// How often the store had lost something when the first of them was told.
    losses: u64,
}

/// The journal of one volume, as this process sees it.
pub struct Journal {
    clock: Arc<dyn Clock>,
    /// The store is a server.
    far: bool,
    off: std::sync::atomic::AtomicBool,
    /// Tells this process from others when it comes to turns.
    pub(crate) name: u64,
    state: Mutex<State>,
    /// Held by the one who looks who has come, for all who wait to know.
    examining: tokio::sync::Mutex<()>,
    told: Mutex<Told>,
    /// There is something to do for whoever stores frames as objects.
    work: Notify,
}

impl Journal {
    /// Of a store on this host, or a server: then it takes nothing before the sessions were examined.
    pub(crate) fn new(clock: Arc<dyn Clock>, far: bool) -> Journal {
        let state = State { bytes_max: BYTES_MAX_UNKNOWN, credit: BYTES_PER_SECOND, ..State::default() };
        let name = SystemRandom.u64();
        Journal {
            clock,
            far,
            off: Default::default(),
            name,
            state: Mutex::new(state),
            examining: Default::default(),
            told: Mutex::new(Told::new(0)),
            work: Notify::new(),
        }
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

    /// Whether every client on the volume is known to be of our make. Only ever true of a server.
    pub fn is_among_ours(&self) -> bool {
        self.far && self.state().is_open()
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
        // A disk of this host has no more room for objects.
        if !self.far {
            return;
        }
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
        for (query, value) in answers {
            match (query, value) {
                (Query::Frames { list, .. }, Value::Frames(frames)) => self.told().learn_list(list, frames),
                (_, Value::Kept(kept)) => self.note_kept(kept.bytes),
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
        if self.far {
            self.told().learn_own(writes);
        }
    }

    /// Asks for the frames of a list from behind the newest slice that is known.
    pub(crate) fn frames_behind_known(&self, list: Key) -> Query {
        let mut told = self.told();
        let known = told.newest.get(&list).copied();
        let until = known.filter(|id| told.frames.contains(id)).unwrap_or(0);
        Query::Frames { list, until }
    }

    /// What is known of the frame of a slice: its bytes, or that it has none; `None` if nothing is known.
    pub(crate) fn recall(&self, id: SliceId) -> Option<Option<Bytes>> {
        self.told().frames.get(&id).cloned()
    }

    /// Forgets what was told by a store that has lost something since: numbers of slices that only it knew may have been given out again.
    pub(crate) fn outlive(&self, losses: u64) {
        let mut told = self.told();
        if told.losses != losses {
            *told = Told::new(losses);
        }
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
    fn new(losses: u64) -> Told {
        let lists = NonZeroUsize::new(TOLD_LISTS_MAX).expect("not zero");
        Told { frames: LruCache::unbounded(), bytes: 0, newest: LruCache::new(lists), losses }
    }

    /// Takes in the answer to a query for the frames of a list.
    fn learn_list(&mut self, list: &Key, frames: &[(SliceId, Option<Bytes>)]) {
        self.learn(frames);
        if let Some((newest, _)) = frames.first() {
            self.newest.put(list.clone(), *newest);
        }
    }

    /// Takes in the frames this process has committed. Only of these it is known from the writes alone: a record without a frame in its own commit
    /// may be a copy of one whose frame is still there.
    fn learn_own(&mut self, writes: &[Write]) {
        for write in writes {
            let Write::RPush(list, elements) = write else { continue };
            let ids: Vec<_> =
                elements.iter().filter_map(|element| codec::decode_slice(element)).map(|r| r.id).filter(|id| *id != 0).collect();
            let put = |id: &SliceId| {
                writes.iter().find_map(|write| match write {
                    Write::PutFrame(own, frame) if own == id => Some((*id, Some(frame.clone()))),
                    _ => None,
                })
            };
            let frames: Vec<_> = ids.iter().filter_map(put).collect();
            self.learn(&frames);
            if let Some(newest) = ids.last().filter(|_| frames.len() == ids.len()) {
                self.newest.put(list.clone(), *newest);
            }
        }
    }

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

impl Meta {
    /// The journal.
    pub fn journal(&self) -> &Journal {
        &self.driver.journal
    }
}

#[cfg(test)]
mod tests;
