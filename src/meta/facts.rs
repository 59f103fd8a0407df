//! `Facts`: what this process last learned of a store behind a network, from reads, conflicts and its own commits. Mutations start here.
//!
//! A fact may be arbitrarily stale: a plan that rests on it is guarded on it, and a conflict brings the present value. So it never has to
//! be invalidated; what is wrong costs one more trip.
//!
//! Answers to lookups and the like come from here only while they stand: while the store tells what others change (`changes.rs`), and has
//! told of no change. What follows closely on an answer of the store may be answered by it in any case: the first reads after an open or
//! a lock, the rest of a listing. For this an answer counts only if nothing of its key was learned or committed between its question and
//! its arrival.

use crate::env::Clock;
use crate::meta::changes::{Changes, Stamp};
use crate::meta::codec;
use crate::meta::key;
use crate::meta::listings::Listings;
use crate::meta::store::{self, Guard, Key, Query, ScanItem, Value, Watcher, Write};
use crate::types::Ino;
use bytes::{Bytes, BytesMut};
use lru::LruCache;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;
use tokio::sync::broadcast;

/// Memory for facts: the names and records of some 50,000 files.
const BYTES_MAX: usize = 32 << 20;
/// What a fact takes beside its bytes: three shared buffers, a slot and two links.
const FACT_OVERHEAD: usize = 256;
/// Larger values are read again: rarely needed, and one of them would push out hundreds of records.
const VALUE_BYTES_MAX: usize = 4096;
/// How long an answer of the store stands for those that follow closely on it. No longer than kernels hold attributes.
const RECENT: Duration = Duration::from_secs(1);
/// Keys are told apart by their hash in so many classes when it comes to which answer is the later one. A collision costs a trip.
const CLASSES: usize = 4096;
/// News that wait for those who listen. Whoever is slower forgets everything.
const TOLD_MAX: usize = 4096;
/// A request about so many things is the work of a tree: what it tells of them is not needed again soon, and would push out what is.
const BULK_PARTS_MIN: usize = 256;
/// How long a counter is believed. Plans do not guard counters, so a limit of the volume is soft by what others use in this time.
const COUNTER_AGE_MAX: Duration = Duration::from_secs(1);

struct Fact {
    value: Value,
    bytes: usize,
    /// When it was the store's word, or became ours; `None` if answers overlapped, and nobody knows which was the later one.
    learned: Option<Duration>,
    /// A commit of ours changed it while another one or an answer was under way, and this may be the earlier of two values.
    disputed: bool,
    /// Which answer of the store it came in, if nothing was committed to it since; else 0.
    answer: u64,
    /// Tells whether it is still so.
    stamp: Stamp,
}

impl Fact {
    fn is_recent(&self, now: Duration) -> bool {
        self.learned.is_some_and(|learned| learned + RECENT >= now)
    }
}

/// A bounded memory of single values. Sets, scores and counts of fields are not kept.
pub(crate) struct Facts {
    clock: Arc<dyn Clock>,
    bytes_max: usize,
    told: broadcast::Sender<Told>,
    listeners: RwLock<Vec<Weak<dyn RecordListener>>>,
    memory: Mutex<Memory>,
}

/// Is told at once of records that others have changed: before any answer of the store that came after the change is handed out.
pub trait RecordListener: Send + Sync {
    /// Must not wait: the connection to the store waits for it.
    fn record_changed(&self, ino: Ino);
}

/// What else others have changed.
#[derive(Clone, Debug)]
pub enum Told {
    /// Names in a directory; and what was in it before, if that is known.
    Names(Ino, Option<Arc<HashMap<Bytes, Bytes>>>),
}

struct Memory {
    facts: LruCache<Query, Fact>,
    listings: Listings,
    bytes: usize,
    bytes_max: usize,
    now: Duration,
    /// Counts questions and answers, too.
    changes: Changes,
    /// For each class of keys the turns of the last answer or commit and of the one before.
    last: Vec<(u64, u64)>,
}

/// A request to the store that is not answered yet.
pub(crate) struct Asked<'a> {
    facts: &'a Facts,
    turn: u64,
    /// When it was asked: an answer may have been long on its way, and that of a commit may come after a connection was lost.
    at: Duration,
    writes: &'a [Write],
    /// The store will tell of changes of what is asked about.
    is_watched: bool,
    /// It is about too many things to keep what it tells.
    is_bulk: bool,
}

/// When and how a value came to be known.
struct Source {
    at: Duration,
    asked: u64,
    turn: u64,
    is_watched: bool,
}

impl Facts {
    /// Knows nothing.
    pub fn new(clock: Arc<dyn Clock>) -> Facts {
        Facts::bounded(clock, BYTES_MAX)
    }

    fn bounded(clock: Arc<dyn Clock>, bytes_max: usize) -> Facts {
        let (facts, last) = (LruCache::unbounded(), vec![(0, 0); CLASSES]);
        let (listings, changes) = (Listings::new(), Changes::new());
        let memory = Memory { facts, listings, bytes: 0, bytes_max, now: Duration::ZERO, changes, last };
        Facts { clock, bytes_max, told: broadcast::channel(TOLD_MAX).0, listeners: RwLock::default(), memory: Mutex::new(memory) }
    }

    /// The answers to all of these, or nothing: if one has to be read, the others come along for free.
    pub fn recall(&self, queries: &[Query]) -> Option<Vec<Value>> {
        let mut memory = self.memory();
        queries.iter().map(|query| memory.answer(query, Memory::get)).collect()
    }

    /// The same of what still stands: what the store would say, but for changes that we have not heard of yet.
    pub fn recall_standing(&self, queries: &[Query]) -> Option<Vec<Value>> {
        let mut memory = self.memory();
        let now = memory.now;
        if !memory.changes.is_heard(now) {
            return None;
        }
        queries.iter().map(|query| memory.answer(query, Memory::standing)).collect()
    }

    /// Whether the store tells what others change.
    pub fn is_heard(&self) -> bool {
        let memory = self.memory();
        memory.changes.is_heard(memory.now)
    }

    /// The answers to all of these as one recent answer of the store gave them, with nothing committed to them here since.
    pub fn recall_recent(&self, queries: &[Query]) -> Option<Vec<Value>> {
        let mut memory = self.memory();
        let now = memory.now;
        let mut one_answer = None;
        let mut values = Vec::with_capacity(queries.len());
        for query in queries {
            let Memory { facts, changes, .. } = &mut *memory;
            let fact = facts.get(query).filter(|fact| fact.is_recent(now) && fact.answer != 0)?;
            if changes.is_outdated(key_of_query(query)?, fact.stamp) {
                return None;
            }
            if *one_answer.get_or_insert(fact.answer) != fact.answer {
                return None;
            }
            values.push(fact.value.clone());
        }
        Some(values)
    }

    /// A string or field that the store has told lately, or that became so by a commit of ours; and how long ago that was.
    pub fn recent(&self, query: &Query) -> Option<(Option<Bytes>, Duration)> {
        let mut memory = self.memory();
        let now = memory.now;
        let Memory { facts, changes, .. } = &mut *memory;
        let (fact, key) = (facts.get(query)?, key_of_query(query)?);
        let Value::Bytes(value) = &fact.value else { return None };
        // What the store would have told the change of is as good as told just now.
        if changes.is_heard(now) && changes.stands(key, fact.stamp) {
            return Some((value.clone(), Duration::ZERO));
        }
        let is_good = fact.is_recent(now) && !changes.is_outdated(key, fact.stamp);
        is_good.then_some((value.clone(), now.saturating_sub(fact.learned?)))
    }

    /// To be called before the store is asked to read.
    pub fn ask(&self, parts: usize) -> Asked<'_> {
        self.ask_to_write(parts, &[])
    }

    /// To be called before a commit of so many guards, writes and reads is sent. Unless what became of it is told, its writes may have happened.
    pub fn ask_to_write<'a>(&'a self, parts: usize, writes: &'a [Write]) -> Asked<'a> {
        let mut memory = self.memory();
        Asked {
            facts: self,
            turn: memory.changes.next_turn(),
            at: memory.now,
            writes,
            is_watched: store::is_watched(parts),
            is_bulk: parts >= BULK_PARTS_MIN,
        }
    }

    /// Everything others change from now on, as far as it is watched: records are told to `listener`, while it lives.
    pub fn listen(&self, listener: Weak<dyn RecordListener>) -> broadcast::Receiver<Told> {
        let mut listeners = self.listeners.write().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(listener);
        self.told.subscribe()
    }

    /// Which of the names that were in a directory do not stand for the same any more; `None` if that is not known.
    pub fn differing(&self, dir: &Key, before: &HashMap<Bytes, Bytes>) -> Option<Vec<Bytes>> {
        let memory = self.memory();
        memory.listings.differing(&memory.changes, dir, before)
    }

    /// Whether the names of a directory should be loaded now; if so, the caller does.
    pub fn wants_names(&self, dir: &Key) -> bool {
        let memory = &mut *self.memory();
        memory.changes.is_heard(memory.now) && memory.listings.wants(&memory.changes, dir, memory.now)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        let mut memory = self.memory.lock().expect("never poisoned: no code under it panics");
        memory.now = self.clock.elapsed();
        debug_assert!(memory.bytes <= self.bytes_max);
        memory
    }
}

impl Watcher for Facts {
    fn changed(&self, key: &[u8]) {
        let mut memory = self.memory();
        memory.changes.changed(key);
        let news = match key::inode_of(key) {
            Some(ino) if key::is_dir(key) => {
                let now = memory.now;
                Some(Told::Names(ino, memory.listings.changed(&Key::copy_from_slice(key), now).map(Arc::new)))
            }
            _ => None,
        };
        drop(memory);
        if let Some(ino) = key::inode_of(key).filter(|_| key.starts_with(b"i")) {
            // Not told under the lock: each tells the kernel.
            let listeners: Vec<_> = {
                let listeners = self.listeners.read().unwrap_or_else(PoisonError::into_inner);
                listeners.iter().filter_map(Weak::upgrade).collect()
            };
            listeners.iter().for_each(|listener| listener.record_changed(ino));
        }
        if let Some(news) = news {
            // Nobody may be listening.
            let _ = self.told.send(news);
        }
    }

    fn flushed(&self) {
        let mut memory = self.memory();
        memory.changes.flush();
        memory.listings.clear();
    }

    fn heard(&self, age: Duration) {
        let mut memory = self.memory();
        let now = memory.now;
        memory.changes.heard(now.saturating_sub(age));
    }
}

impl Asked<'_> {
    /// Takes in answers of the store.
    pub fn learn<'a>(mut self, answers: impl IntoIterator<Item = (&'a Query, &'a Value)>) {
        if self.is_bulk && self.writes.is_empty() {
            return;
        }
        let mut memory = self.facts.memory();
        let source = self.answered(&mut memory);
        memory.learn(answers, &source);
    }

    /// Takes in a page of a directory: whoever lists it often goes on to remove or rename what it names. The next page comes later.
    pub fn learn_page(&self, dir: &Key, items: &[ScanItem]) {
        let mut memory = self.facts.memory();
        let source = Source { at: self.at, asked: self.turn, turn: memory.changes.next_turn(), is_watched: self.is_watched };
        for item in items {
            if let Some((_, ino)) = codec::decode_entry(&item.value)
                && !item.record.is_empty()
            {
                memory.answered(Query::Get(key::inode(ino)), Value::Bytes(Some(item.record.clone())), &source);
                memory.answered(Query::HGet(dir.clone(), item.name.clone()), Value::Bytes(Some(item.value.clone())), &source);
            }
        }
    }

    /// All names of a directory with their entries, read since this was asked.
    pub fn learn_names(mut self, dir: Key, names: impl IntoIterator<Item = (Bytes, Bytes)>) {
        let memory = &mut *self.facts.memory();
        let source = self.answered(memory);
        let stamp = memory.stamp(&dir, &source);
        if memory.changes.stands(&dir, stamp) {
            memory.listings.put(dir, names, stamp);
        }
    }

    /// The commit happened: what it guarded was so, then it wrote, then it read. What it did to a value that is not known in full stays unknown.
    pub fn committed(mut self, guards: &[Guard], replies: &[Value], reads: &[Query], values: &[Value]) {
        let memory = &mut *self.facts.memory();
        let writes = std::mem::take(&mut self.writes);
        let source = self.answered(memory);
        // Of the moment after the writes: these are not applied to them again.
        memory.learn(reads.iter().zip(values), &source);
        for guard in guards.iter().filter(|_| !self.is_bulk) {
            let value = match guard {
                Guard::Value(_, value) | Guard::Field(_, _, value) => Value::Bytes(value.clone()),
                Guard::Fields(_, fields) => Value::Pairs(fields.clone()),
                Guard::ListIs(_, elements) => Value::List(elements.clone()),
                _ => continue,
            };
            let query = guard.query();
            if !reads.contains(&query) {
                memory.put_by_us(query, value, &source);
            }
        }
        for (at, write) in writes.iter().enumerate() {
            if self.is_bulk && key::is_of_inode(write.key()) {
                // Below it is noted as changed: what is known of it stands no more, and whoever starts from it is told by a guard.
                memory.listings.remove(write.key());
                continue;
            }
            memory.apply(write, replies.get(at), reads, &source);
        }
        for key in writes.iter().map(Write::key) {
            memory.overlaps(key, &source);
            memory.changes.committed(key, source.turn);
            if !self.is_watched && key::is_of_inode(key) {
                memory.changes.changed(key);
            }
        }
    }

    fn answered(&mut self, memory: &mut Memory) -> Source {
        self.writes = &[];
        Source { at: self.at, asked: self.turn, turn: memory.changes.next_turn(), is_watched: self.is_watched }
    }
}

impl Drop for Asked<'_> {
    /// Nobody knows what became of it.
    fn drop(&mut self) {
        if self.writes.is_empty() {
            return;
        }
        let mut memory = self.facts.memory();
        for key in self.writes.iter().map(Write::key).filter(|key| key::is_of_inode(key)) {
            memory.changes.changed(key);
        }
    }
}

impl Memory {
    fn answer(&mut self, query: &Query, get: fn(&mut Memory, &Query) -> Option<Value>) -> Option<Value> {
        let Query::Entry { dir, name } = query else { return get(self, query) };
        let Value::Bytes(entry) = get(self, &Query::HGet(dir.clone(), name.clone()))? else { return None };
        let Some(entry) = entry else { return Some(Value::Entry(None)) };
        let (_, ino) = codec::decode_entry(&entry)?;
        let Value::Bytes(record) = get(self, &Query::Get(key::inode(ino)))? else { return None };
        Some(Value::Entry(Some((entry, record))))
    }

    fn get(&mut self, query: &Query) -> Option<Value> {
        if let Some(entry) = self.listed(query) {
            return Some(entry);
        }
        let fact = self.facts.get(query)?;
        let is_old = key::is_counter(query) && fact.learned.is_none_or(|learned| learned + COUNTER_AGE_MAX < self.now);
        (!is_old).then(|| fact.value.clone())
    }

    fn standing(&mut self, query: &Query) -> Option<Value> {
        if let Some(entry) = self.listed(query) {
            return Some(entry);
        }
        let fact = self.facts.get(query)?;
        self.changes.stands(key_of_query(query)?, fact.stamp).then(|| fact.value.clone())
    }

    fn listed(&mut self, query: &Query) -> Option<Value> {
        let Query::HGet(dir, name) = query else { return None };
        if !self.changes.is_heard(self.now) {
            return None;
        }
        self.listings.entry(&self.changes, dir, name).map(Value::Bytes)
    }

    /// Notes an answer or commit, and answers whether another one came since it was asked. The same one may tell several things of one key.
    fn overlaps(&mut self, key: &Key, source: &Source) -> bool {
        let (last, before) = &mut self.last[crc32fast::hash(key) as usize % CLASSES];
        if *last != source.turn {
            (*last, *before) = (source.turn, *last);
        }
        *before > source.asked
    }

    fn stamp(&self, key: &Key, source: &Source) -> Stamp {
        if source.is_watched && key::is_of_inode(key) {
            self.changes.stamp(key, source.asked, source.turn)
        } else {
            Changes::unwatched(source.asked, source.turn)
        }
    }

    fn learn<'a>(&mut self, answers: impl IntoIterator<Item = (&'a Query, &'a Value)>, source: &Source) {
        for (query, value) in answers {
            match (query, value) {
                (Query::Entry { dir, name }, Value::Entry(found)) => {
                    let (entry, record) = found.as_ref().map(|(entry, record)| (entry, record.as_ref())).unzip();
                    if let Some((_, ino)) = entry.and_then(|entry| codec::decode_entry(entry)) {
                        // The store found out whose record it is, and does not watch it for us.
                        let unwatched = Source { is_watched: false, ..*source };
                        self.answered(Query::Get(key::inode(ino)), Value::Bytes(record.flatten().cloned()), &unwatched);
                    }
                    self.answered(Query::HGet(dir.clone(), name.clone()), Value::Bytes(entry.cloned()), source);
                }
                (Query::HLen { key: dir, .. }, Value::Int(0)) if key::is_dir(dir) => {
                    let stamp = self.stamp(dir, source);
                    if self.changes.stands(dir, stamp) {
                        self.listings.put(dir.clone(), [], stamp);
                    }
                }
                (query, value) => self.answered(query.clone(), value.clone(), source),
            }
        }
    }

    /// An answer. If the key was answered for or written since it was asked for, it may be older than what is known or younger.
    fn answered(&mut self, query: Query, value: Value, source: &Source) {
        let Some(key) = key_of_query(&query) else { return };
        let stamp = self.stamp(key, source);
        let stands = self.changes.stands(key, stamp);
        // What stands is what the answer says, too, and will be told about.
        let known = self.facts.get(&query).map(|fact| fact.stamp);
        let known = known.filter(|known| !stands && self.changes.stands(key, *known));
        let stamp = known.map_or(stamp, |known| known.seen_again(source.turn));
        if !self.overlaps(&key.clone(), source) {
            return self.put_as(query, value, Some(source.at), source.turn, stamp);
        }
        match self.facts.get_mut(&query) {
            // Whichever is the later one, it says this. Readers that ask all the time would never know anything otherwise.
            Some(known) if known.value == value => {
                known.learned = (!known.disputed).then_some(source.at);
                known.stamp = if stands { stamp } else { known.stamp };
            }
            Some(known) if !stands => (known.learned, known.answer) = (None, 0),
            _ => self.put_as(query, value, None, 0, stamp),
        }
    }

    /// A value that is so by a commit of ours.
    fn put_by_us(&mut self, query: Query, value: Value, source: &Source) {
        let Some(key) = key_of_query(&query) else { return };
        let stamp = self.stamp(key, source);
        let learned = (!self.overlaps(&key.clone(), source)).then_some(source.at);
        let is_other = |fact: &Fact| fact.disputed || fact.value != value;
        let disputed = learned.is_none() && self.facts.peek(&query).is_some_and(is_other);
        self.put_disputed(query, value, learned, stamp, disputed);
    }

    /// A value as a commit of ours has left it, and whether that is in doubt.
    fn put_disputed(&mut self, query: Query, value: Value, learned: Option<Duration>, stamp: Stamp, disputed: bool) {
        let again = disputed.then(|| query.clone());
        self.put_as(query, value, learned, 0, stamp);
        if let Some(fact) = again.and_then(|query| self.facts.peek_mut(&query)) {
            fact.disputed = true;
        }
    }

    fn put_as(&mut self, query: Query, value: Value, learned: Option<Duration>, answer: u64, stamp: Stamp) {
        let is_kept = matches!(query, Query::Get(_) | Query::HGet(..) | Query::HGetAll(_) | Query::List(_));
        let value_bytes = bytes_of(&value);
        if !is_kept || value_bytes > VALUE_BYTES_MAX {
            return self.forget(&query);
        }
        let bytes = FACT_OVERHEAD + bytes_of_query(&query) + value_bytes;
        let fact = Fact { value: owned(value), bytes, learned, disputed: false, answer, stamp };
        self.bytes += bytes;
        if let Some(old) = self.facts.put(owned_query(query), fact) {
            self.bytes -= old.bytes;
        }
        while self.bytes > self.bytes_max {
            let Some((_, oldest)) = self.facts.pop_lru() else { break };
            self.bytes -= oldest.bytes;
        }
    }

    fn forget(&mut self, query: &Query) {
        if let Some(old) = self.facts.pop(query) {
            self.bytes -= old.bytes;
        }
    }

    /// A commit of ours changed bytes of a string that is known; one that is too short for it is not what the store has.
    fn patch(&mut self, key: &Key, offset: u32, change: impl FnOnce(&mut [u8]), len: usize, source: &Source) {
        let query = Query::Get(key.clone());
        let Some((old, learned, stamp, disputed)) = self.facts.get(&query).and_then(|fact| match &fact.value {
            Value::Bytes(Some(bytes)) => Some((bytes.clone(), fact.learned, fact.stamp, fact.disputed)),
            _ => None,
        }) else {
            return;
        };
        let from = offset as usize;
        let mut bytes = BytesMut::from(&old[..]);
        match bytes.get_mut(from..from.saturating_add(len)) {
            Some(range) => {
                change(range);
                let mut stamp = self.changes.after_commit(key, stamp, source.asked, source.turn);
                if !source.is_watched {
                    stamp.doubt();
                }
                // The bytes around it are as old as they were.
                self.put_disputed(query, Value::Bytes(Some(bytes.freeze())), learned, stamp, disputed);
            }
            None => self.forget(&query),
        }
    }

    fn set_field(&mut self, key: &Key, field: &Bytes, value: Option<Bytes>, source: &Source) {
        let all = Query::HGetAll(key.clone());
        if let Some((Value::Pairs(mut pairs), stamp)) = self.facts.get(&all).map(|fact| (fact.value.clone(), fact.stamp)) {
            pairs.retain(|(name, _)| name != field);
            pairs.extend(value.clone().map(|value| (field.clone(), value)));
            let mut stamp = self.changes.after_commit(key, stamp, source.asked, source.turn);
            if !source.is_watched {
                stamp.doubt();
            }
            self.put_as(all, Value::Pairs(pairs), Some(source.at), 0, stamp);
        }
        if key::is_dir(key) {
            self.listings.set(&self.changes, key, field, value.clone(), source.asked, source.turn);
        }
        self.put_by_us(Query::HGet(key.clone(), field.clone()), Value::Bytes(value), source);
    }

    /// A commit of ours changed a value and read it afterwards. If its answer was not taken in, as another overlapped it, what is known is older.
    fn unsettle(&mut self, query: &Query, source: &Source) {
        if let Some(fact) = self.facts.get_mut(query)
            && !fact.stamp.is_of(source.turn)
        {
            fact.stamp.doubt();
        }
    }

    /// Applies a write of ours, unless the value was read after it.
    fn apply(&mut self, write: &Write, reply: Option<&Value>, reads: &[Query], source: &Source) {
        let number = match reply {
            Some(Value::Int(number)) => Some(key::decimal(number)),
            _ => None,
        };
        let is_read = |key: &Key| reads.iter().any(|query| matches!(query, Query::Get(read) if read == key));
        match write {
            Write::Set(key, _) | Write::Patch { key, .. } | Write::AddU32 { key, .. } if is_read(key) => {
                self.unsettle(&Query::Get(key.clone()), source);
            }
            Write::Set(key, value) => self.put_by_us(Query::Get(key.clone()), Value::Bytes(Some(value.clone())), source),
            Write::Patch { key, offset, bytes } => self.patch(key, *offset, |range| range.copy_from_slice(bytes), bytes.len(), source),
            Write::AddU32 { key, offset, delta } => {
                let add = |range: &mut [u8]| {
                    let mut number = [0; 4];
                    number.copy_from_slice(range);
                    range.copy_from_slice(&u32::from_be_bytes(number).wrapping_add_signed(*delta).to_be_bytes());
                };
                self.patch(key, *offset, add, 4, source);
            }
            Write::Del(key) => {
                self.forget(&Query::HGetAll(key.clone()));
                self.forget(&Query::List(key.clone()));
                self.listings.remove(key);
                self.put_by_us(Query::Get(key.clone()), Value::Bytes(None), source);
            }
            Write::IncrBy(key, _) => match number {
                Some(number) => self.put_by_us(Query::Get(key.clone()), Value::Bytes(Some(number)), source),
                None => self.forget(&Query::Get(key.clone())),
            },
            Write::HSet(key, field, value) => self.set_field(key, field, Some(value.clone()), source),
            Write::HDel(key, field) => self.set_field(key, field, None, source),
            Write::HIncrBy(key, field, _) => match number {
                Some(number) => self.set_field(key, field, Some(number), source),
                None => {
                    self.forget(&Query::HGet(key.clone(), field.clone()));
                    self.forget(&Query::HGetAll(key.clone()));
                }
            },
            Write::HIncrIfPresent(key, field, _) => {
                self.forget(&Query::HGet(key.clone(), field.clone()));
                self.forget(&Query::HGetAll(key.clone()));
            }
            Write::RPush(key, _) | Write::RPushX(key, _) | Write::LPush(key, _) | Write::LTrim(key, _)
                if reads.contains(&Query::List(key.clone())) =>
            {
                self.unsettle(&Query::List(key.clone()), source);
            }
            Write::RPush(key, _) | Write::RPushX(key, _) | Write::LPush(key, _) | Write::LTrim(key, _) => {
                self.forget(&Query::List(key.clone()));
            }
            Write::SAdd(..) | Write::SRem(..) | Write::ZAdd(..) | Write::ZRem(..) | Write::PutFrame(..) | Write::DelFrame(..) => {}
        }
    }
}

/// The key whose value a query asks for, if it is of a kind that is kept.
fn key_of_query(query: &Query) -> Option<&Key> {
    matches!(query, Query::Get(_) | Query::HGetAll(_) | Query::List(_) | Query::HGet(..)).then(|| query.key())
}

fn bytes_of_query(query: &Query) -> usize {
    match query {
        Query::Get(key) | Query::HGetAll(key) | Query::List(key) => key.len(),
        Query::HGet(key, field) => key.len() + field.len(),
        _ => 0,
    }
}

fn bytes_of(value: &Value) -> usize {
    match value {
        Value::Bytes(bytes) => bytes.as_ref().map_or(0, Bytes::len),
        Value::Pairs(pairs) => pairs.iter().map(|(field, value)| field.len() + value.len() + FACT_OVERHEAD).sum(),
        Value::List(elements) => elements.iter().map(|element| element.len() + FACT_OVERHEAD / 4).sum(),
        _ => 0,
    }
}

/// A copy: a part of a large answer would keep all of it in memory.
fn own(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn owned(value: Value) -> Value {
    match value {
        Value::Bytes(bytes) => Value::Bytes(bytes.as_ref().map(own)),
        Value::Pairs(pairs) => Value::Pairs(pairs.iter().map(|(field, value)| (own(field), own(value))).collect()),
        Value::List(elements) => Value::List(elements.iter().map(own).collect()),
        value => value,
    }
}

fn owned_query(query: Query) -> Query {
    match query {
        Query::HGet(key, field) => Query::HGet(own(&key), own(&field)),
        query => query,
    }
}

#[cfg(test)]
#[path = "facts_test.rs"]
mod tests;
