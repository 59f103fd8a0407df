//! `Machine`: the writer of one inode as a synchronous state machine. Events go in, actions come out; it never waits and knows no task.
//!
//! Invariants, each with its test in `machine_tests.rs`:
//! - A record is committed only after every block of its slice is stored (or travels with it as a frame).
//! - Slices of one chunk commit in creation order. The oldest pending slice of the inode commits first; others of its chunk come along
//!   unless they would extend the file past an older pending slice of another chunk. So the committed length never runs ahead of data.
//! - A slice grows only while every younger slice starts behind the new bytes. Otherwise the new bytes would be seen before older ones
//!   in front of them, as zeros that nobody wrote.
//! - Every flush is answered exactly once: when all slices that were there are committed, or when an attempt on one of them that began
//!   after the flush fails.

use crate::types::{Attr, CHUNK_BYTES, ChunkPart, Errno, SliceId, Time, chunk_parts};
use crate::vfs::writer::event::{Action, Event, Now, Ready, Shape};
use crate::vfs::writer::slice::{IdState, Pending};
use std::collections::VecDeque;
use std::time::Duration;

/// Youngest slices looked at for one that can take a write. Older ones are frozen: more streams into one file are rare, and the search
/// is part of every write.
const OPEN_SLICES_MAX: usize = 8;
/// Small slices gathered before a commit nobody waits for, and most slices of one commit.
const COMMIT_SLICES: usize = 64;
/// Dirty data is sent off when it is this old.
pub(crate) const DIRTY_AGE_MAX: Duration = Duration::from_secs(5);
/// What failed is tried again in the background no sooner than this.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a commit corrects attributes that may have been read before it. Reading a record takes no longer while the store is well.
const RECENT: Duration = Duration::from_secs(2);

/// A flush that is not answered.
#[derive(Clone, Copy, Debug)]
struct Waiter {
    ticket: u64,
    /// First key it does not wait for.
    upto: u64,
    /// Its number among the flushes.
    flush: u64,
}

/// The last commit, as long as somebody may hold attributes read before it.
#[derive(Clone, Copy, Debug)]
struct Recent {
    length: u64,
    mtime: Time,
    ctime: Time,
    at: Duration,
}

/// The writer of one inode.
#[derive(Debug)]
pub(crate) struct Machine {
    shape: Shape,
    /// In creation order.
    slices: VecDeque<Pending>,
    next_key: u64,
    uploads: usize,
    /// The commit under way, as the count of flushes when it began.
    committing: Option<u64>,
    /// Flushes asked for so far: the logical time by which a flush tells attempts that began before it from its own.
    flushes: u64,
    /// Slices with smaller keys are wanted in the store now.
    wanted_to: u64,
    waiters: Vec<Waiter>,
    /// A failure nobody has been told yet.
    unreported: Option<Errno>,
    /// No background retry before.
    retry_at: Duration,
    /// The last handle is gone.
    orphan: bool,
    /// Length as of the last commit while anything is pending, 0 when unknown. Too small is safe, it only orders more.
    committed_length: u64,
    last_write: Time,
    recent: Option<Recent>,
    /// Given up; removed when no upload is under way, which may be one of theirs.
    discarded: Vec<(SliceId, u32)>,
}

impl Machine {
    /// A writer with nothing to write.
    pub fn new(shape: Shape) -> Machine {
        Machine {
            shape,
            slices: VecDeque::new(),
            next_key: 0,
            uploads: 0,
            committing: None,
            flushes: 0,
            wanted_to: 0,
            waiters: Vec::new(),
            unreported: None,
            retry_at: Duration::ZERO,
            orphan: false,
            committed_length: 0,
            last_write: Time::default(),
            recent: None,
            discarded: Vec::new(),
        }
    }

    /// Takes one event and answers with what is to be done now, in order.
    pub fn handle(&mut self, event: Event<'_>, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Written { offset, data } => self.written(offset, data, now),
            Event::Assigned { key, result } => self.assigned(key, result, now, &mut actions),
            Event::Uploaded { key, index, result } => self.uploaded(key, index, result, now, &mut actions),
            Event::Committed(result) => self.committed(result, now, &mut actions),
            Event::Flush { ticket } => match (self.slices.is_empty(), self.unreported.take()) {
                (true, error) => actions.push(Action::Wake { ticket, result: error.map_or(Ok(()), Err) }),
                // Everything that failed is still here and is tried again: this flush tells the outcome of its own attempt.
                (false, _) => {
                    self.flushes += 1;
                    self.waiters.push(Waiter { ticket, upto: self.next_key, flush: self.flushes });
                    self.send_off();
                }
            },
            Event::Pressed => {
                if now.mono >= self.retry_at {
                    self.send_off();
                }
            }
            Event::Aged => {
                let old = self.slices.front().is_some_and(|oldest| oldest.born + DIRTY_AGE_MAX <= now.mono);
                if old && now.mono >= self.retry_at {
                    self.send_off();
                }
            }
            Event::Opened => self.orphan = false,
            Event::Closed => self.closed(&mut actions),
        }
        self.move_on(&mut actions);
        actions
    }

    /// Whether anything written is not committed.
    pub fn is_dirty(&self) -> bool {
        !self.slices.is_empty()
    }

    /// Nothing to remember: the machine may be dropped and made anew.
    pub fn is_idle(&self, now: Now) -> bool {
        let recent = self.recent.is_some_and(|recent| recent.at + RECENT > now.mono);
        self.slices.is_empty() && self.uploads == 0 && self.committing.is_none() && self.unreported.is_none() && !recent
    }

    /// Slices not committed yet.
    pub fn pending(&self) -> usize {
        self.slices.len()
    }

    /// Whether a slice waits for a retry.
    pub fn has_failed(&self) -> bool {
        self.slices.iter().any(|s| s.failed)
    }

    /// A failure that nobody has been told; it is told once.
    pub fn take_error(&mut self) -> Option<Errno> {
        self.unreported.take()
    }

    /// Bytes of the memory budget in use.
    pub fn held(&self) -> usize {
        self.slices.iter().map(Pending::held).sum()
    }

    /// Bytes that `Event::Pressed` would set in motion.
    pub fn loose(&self) -> usize {
        self.slices.iter().filter(|s| s.key >= self.wanted_to || s.failed).map(|s| if s.failed { s.held() } else { s.loose() }).sum()
    }

    /// Highest offset that is waiting to be committed, 0 if none.
    pub fn pending_end(&self) -> u64 {
        self.slices.iter().map(Pending::end).max().unwrap_or(0)
    }

    /// Attributes as they will be when all that is buffered is committed.
    pub fn overlay(&self, attr: &mut Attr, now: Now) {
        // The record may have been read before a commit that has left nothing pending. Without this a file would seem to shrink, and
        // the kernel would throw away the pages behind the old length.
        if let Some(recent) = self.recent
            && recent.at + RECENT > now.mono
            && attr.ctime < recent.ctime
        {
            attr.length = attr.length.max(recent.length);
            attr.mtime = recent.mtime;
            attr.ctime = recent.ctime;
        }
        if self.is_dirty() {
            attr.length = attr.length.max(self.pending_end());
            attr.mtime = self.last_write;
            attr.ctime = attr.ctime.max(self.last_write);
        }
    }

    /// The inode was just read in a state that counts, whatever was committed here before.
    pub fn forget_recent(&mut self) {
        self.recent = None;
    }

    /// Takes note of attributes committed past the machine (an append).
    pub fn note(&mut self, attr: &Attr, now: Now) {
        self.recent = Some(Recent { length: attr.length, mtime: attr.mtime, ctime: attr.ctime, at: now.mono });
    }

    fn written(&mut self, offset: u64, data: &[u8], now: Now) {
        self.last_write = self.last_write.max(now.wall);
        let mut rest = data;
        for part in chunk_parts(offset..offset + data.len() as u64) {
            let (piece, later) = rest.split_at(part.len as usize);
            rest = later;
            self.write_part(part, offset + (data.len() - later.len() - piece.len()) as u64, piece, now);
        }
    }

    fn write_part(&mut self, part: ChunkPart, at: u64, data: &[u8], now: Now) {
        if let Some(index) = self.slice_for(part.index, at, at + data.len() as u64) {
            self.slices[index].put(at, data, &self.shape);
        } else {
            let mut slice = Pending::new(self.next_key, part.index, part.pos, now.mono);
            self.next_key += 1;
            slice.put(at, data, &self.shape);
            self.slices.push_back(slice);
            if let Some(old) = self.slices.len().checked_sub(OPEN_SLICES_MAX + 1) {
                self.slices[old].freeze(&self.shape);
            }
        }
        // A slice at the end of its chunk cannot grow, but its last block may still be overwritten; nothing is won by waiting for that.
        if let Some(full) = self.slices.iter_mut().find(|s| !s.frozen && s.end() == (u64::from(s.chunk) + 1) * CHUNK_BYTES) {
            full.freeze(&self.shape);
        }
    }

    /// The slice that can take bytes `at..end` without changing what anybody may see in between, youngest first.
    fn slice_for(&self, chunk: u32, at: u64, end: u64) -> Option<usize> {
        // Youngest slices seen so far: whether one overlaps the bytes, and whether all lie behind them.
        let (mut apart, mut behind) = (true, true);
        for (index, slice) in self.slices.iter().enumerate().rev().take(OPEN_SLICES_MAX) {
            let fits = slice.chunk == chunk && !slice.frozen && at >= slice.editable_from(&self.shape) && at <= slice.end();
            if fits && if end > slice.end() { behind } else { apart } {
                return Some(index);
            }
            apart &= slice.end() <= at || slice.start() >= end;
            behind &= slice.start() >= end;
            if !apart {
                return None;
            }
        }
        None
    }

    /// Freezes everything and wants it committed; what failed is tried again.
    fn send_off(&mut self) {
        self.wanted_to = self.next_key;
        for slice in &mut self.slices {
            slice.freeze(&self.shape);
            slice.failed = false;
        }
    }

    fn assigned(&mut self, key: u64, result: Result<SliceId, Errno>, now: Now, actions: &mut Vec<Action>) {
        let Some(slice) = self.slice(key) else { return };
        let IdState::Asked(begun) = slice.id else { return };
        match result {
            Ok(id) => slice.id = IdState::Known(id),
            Err(errno) => {
                slice.id = IdState::None;
                self.fail(&[key], begun, errno, now, actions);
            }
        }
    }

    fn uploaded(&mut self, key: u64, index: u32, result: Result<(), Errno>, now: Now, actions: &mut Vec<Action>) {
        self.uploads -= 1;
        // The slice may have been dropped meanwhile.
        let Some(slice) = self.slice(key) else { return };
        let begun = slice.uploaded(index, result.is_ok());
        if let Err(errno) = result {
            self.fail(&[key], begun, errno, now, actions);
        }
    }

    fn committed(&mut self, result: Result<Attr, Errno>, now: Now, actions: &mut Vec<Action>) {
        let begun = self.committing.take().unwrap_or(0);
        let keys: Vec<u64> = self.slices.iter().filter(|s| s.committing).map(|s| s.key).collect();
        if let Err(errno) = result {
            // These say that nothing happened and why; after others `gc` decides whether a record names the slices.
            let certain = matches!(errno, Errno::NOSPC | Errno::DQUOT | Errno::NOENT | Errno::OWNERDEAD);
            for slice in self.slices.iter_mut().filter(|s| s.committing) {
                slice.committing = false;
                slice.doubtful |= !certain;
            }
        }
        match result {
            Ok(attr) => {
                self.slices.retain(|s| !s.committing);
                self.note(&attr, now);
                // What is unknown counts as 0: others may truncate the file while we have nothing pending.
                self.committed_length = if self.slices.is_empty() { 0 } else { attr.length };
                if self.slices.is_empty() {
                    // Nothing is lost, so there is nothing to report.
                    self.unreported = None;
                }
                self.wake_done(actions);
            }
            // The file is gone for good: nobody can ever read these bytes.
            Err(Errno::NOENT) => self.abandon(Errno::NOENT, actions),
            // Written under a lock that others have by now: tried again later, these bytes would go over theirs.
            Err(Errno::OWNERDEAD) => self.abandon(Errno::IO, actions),
            Err(errno) => self.fail(&keys, begun, errno, now, actions),
        }
    }

    fn closed(&mut self, actions: &mut Vec<Action>) {
        self.orphan = true;
        if self.has_failed() {
            // Its errors were told to the flush that close(2) made.
            let told = self.unreported.take();
            self.abandon(told.unwrap_or(Errno::IO), actions);
            self.unreported = None;
        } else {
            self.send_off();
        }
    }

    /// A step of these slices (in creation order) failed that began after `begun` flushes. Flushes asked for before it began are told.
    /// Those that came while it was under way get an attempt of their own: the cause may have gone before they were asked for. If there
    /// are none, the slices stay as they are until the next flush.
    fn fail(&mut self, keys: &[u64], begun: u64, errno: Errno, now: Now, actions: &mut Vec<Action>) {
        // None if all was given up meanwhile.
        let Some(&first) = keys.first() else { return };
        let mut told = false;
        self.waiters.retain(|waiter| {
            let tell = waiter.upto > first && waiter.flush <= begun;
            if tell {
                told = true;
                actions.push(Action::Wake { ticket: waiter.ticket, result: Err(errno) });
            }
            !tell
        });
        if self.waiters.iter().any(|waiter| waiter.upto > first) {
            return;
        }
        for key in keys {
            if let Some(slice) = self.slice(*key) {
                slice.failed = true;
            }
        }
        self.retry_at = now.mono + RETRY_AFTER;
        if self.orphan {
            self.abandon(errno, actions);
            self.unreported = None;
        } else if !told {
            self.unreported = Some(errno);
        }
    }

    /// Gives up all that is pending, and what was stored for it. Objects of a slice whose commit is under way, or has an unknown outcome, stay:
    /// if no record names them, they are found by `gc`.
    fn abandon(&mut self, errno: Errno, actions: &mut Vec<Action>) {
        let bytes = self.slices.iter().map(|s| u64::from(s.len)).sum();
        let unnamed = self.slices.iter().filter(|s| !s.committing && !s.doubtful);
        self.discarded.extend(unnamed.filter_map(|s| if let IdState::Known(id) = s.id { Some((id, s.len)) } else { None }));
        self.slices.clear();
        self.committed_length = 0;
        if bytes > 0 {
            actions.push(Action::Dropped { bytes, errno });
        }
        self.unreported = if self.waiters.is_empty() { Some(errno) } else { None };
        actions.extend(self.waiters.drain(..).map(|waiter| Action::Wake { ticket: waiter.ticket, result: Err(errno) }));
    }

    fn wake_done(&mut self, actions: &mut Vec<Action>) {
        let oldest = self.slices.front().map_or(u64::MAX, |s| s.key);
        self.waiters.retain(|waiter| {
            let done = waiter.upto <= oldest;
            if done {
                actions.push(Action::Wake { ticket: waiter.ticket, result: Ok(()) });
            }
            !done
        });
    }

    /// Starts what can be started.
    fn move_on(&mut self, actions: &mut Vec<Action>) {
        for slice in &mut self.slices {
            if slice.wants_id() {
                slice.id = IdState::Asked(self.flushes);
                actions.push(Action::Assign { key: slice.key });
            }
            while self.uploads < self.shape.uploads_max
                && let Some((block, data)) = slice.take_upload(self.flushes)
            {
                self.uploads += 1;
                actions.push(Action::Upload { key: slice.key, block, data });
            }
        }
        if self.committing.is_none() {
            self.start_commit(actions);
        }
        if self.uploads == 0 && !self.discarded.is_empty() {
            actions.push(Action::Discard { slices: std::mem::take(&mut self.discarded) });
        }
    }

    fn start_commit(&mut self, actions: &mut Vec<Action>) {
        let count = self.slices.len();
        let Some(oldest) = self.slices.front() else { return };
        // Small slices nobody waits for are gathered, so that a commit is worth its while.
        if !oldest.is_ready() || (oldest.frame().is_some() && oldest.key >= self.wanted_to && count < COMMIT_SLICES) {
            return;
        }
        let chunk = oldest.chunk;
        let mut length = self.committed_length;
        let mut passed_over = false;
        let mut batch: Vec<(usize, Ready)> = Vec::new();
        for (index, slice) in self.slices.iter().enumerate() {
            if slice.chunk != chunk {
                passed_over = true;
                continue;
            }
            if batch.len() == COMMIT_SLICES || (passed_over && slice.end() > length) {
                break;
            }
            if matches!(slice.id, IdState::Asked(_)) && slice.frame().is_some() {
                // Its id comes or fails at once; with it the commit is fuller.
                return;
            }
            let (true, IdState::Known(id)) = (slice.is_ready(), slice.id) else { break };
            length = length.max(slice.end());
            batch.push((index, Ready { pos: slice.pos, id, len: slice.len, frame: slice.frame().cloned(), born: slice.born }));
        }
        for (index, _) in &batch {
            self.slices[*index].committing = true;
        }
        self.committing = Some(self.flushes);
        actions.push(Action::Commit { chunk, slices: batch.into_iter().map(|(_, ready)| ready).collect(), mtime: self.last_write });
    }

    fn slice(&mut self, key: u64) -> Option<&mut Pending> {
        let index = self.slices.binary_search_by_key(&key, |s| s.key).ok()?;
        self.slices.get_mut(index)
    }
}
