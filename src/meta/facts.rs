//! `Facts`: what this process last learned of a store behind a network, from reads, conflicts and its own commits. Mutations start here.
//!
//! A fact may be arbitrarily stale: a plan that rests on it is guarded on it, and a conflict brings the present value. So it never has to
//! be invalidated; what is wrong costs one more trip. No answer to a lookup, a stat or an open comes from here.
//!
//! What follows closely on an answer of the store may still be answered by it: the first reads after an open or a lock, the rest of a listing.
//! For this an answer counts only if nothing of its key was learned or committed between its question and its arrival.

use crate::env::Clock;
use crate::meta::codec;
use crate::meta::key;
use crate::meta::store::{Guard, Key, Query, ScanItem, Value, Write};
use bytes::{Bytes, BytesMut};
use lru::LruCache;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

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
/// How long a counter is believed. Plans do not guard counters, so a limit of the volume is soft by what others use in this time.
const COUNTER_AGE_MAX: Duration = Duration::from_secs(1);

struct Fact {
    value: Value,
    bytes: usize,
    /// When it was the store's word, or became ours; `None` if answers overlapped, and nobody knows which was the later one.
    learned: Option<Duration>,
    /// Which answer of the store it came in, if nothing was committed to it since; else 0.
    answer: u64,
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
    memory: Mutex<Memory>,
}

struct Memory {
    facts: LruCache<Query, Fact>,
    bytes: usize,
    bytes_max: usize,
    now: Duration,
    /// Questions and answers so far.
    turn: u64,
    /// For each class of keys the turn of the last answer or commit.
    last: Vec<u64>,
}

impl Facts {
    /// Knows nothing.
    pub fn new(clock: Arc<dyn Clock>) -> Facts {
        Facts::bounded(clock, BYTES_MAX)
    }

    fn bounded(clock: Arc<dyn Clock>, bytes_max: usize) -> Facts {
        let (facts, last) = (LruCache::unbounded(), vec![0; CLASSES]);
        let memory = Memory { facts, bytes: 0, bytes_max, now: Duration::ZERO, turn: 0, last };
        Facts { clock, bytes_max, memory: Mutex::new(memory) }
    }

    /// The answers to all of these, or nothing: if one has to be read, the others come along for free.
    pub fn recall(&self, queries: &[Query]) -> Option<Vec<Value>> {
        let mut memory = self.memory();
        queries.iter().map(|query| memory.answer(query)).collect()
    }

    /// The answers to all of these as one recent answer of the store gave them, with nothing committed to them here since.
    pub fn recall_recent(&self, queries: &[Query]) -> Option<Vec<Value>> {
        let mut memory = self.memory();
        let now = memory.now;
        let mut one_answer = None;
        let mut values = Vec::with_capacity(queries.len());
        for query in queries {
            let fact = memory.facts.get(query).filter(|fact| fact.is_recent(now) && fact.answer != 0)?;
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
        let fact = memory.facts.get(query).filter(|fact| fact.is_recent(now))?;
        match &fact.value {
            Value::Bytes(value) => Some((value.clone(), now.saturating_sub(fact.learned?))),
            _ => None,
        }
    }

    /// To be taken before the store is asked, and given back with its answer.
    pub fn ask(&self) -> u64 {
        self.memory().next_turn()
    }

    /// Takes in answers of the store to what was asked in turn `asked`.
    pub fn learn<'a>(&self, answers: impl IntoIterator<Item = (&'a Query, &'a Value)>, asked: u64) {
        let mut memory = self.memory();
        let turn = memory.next_turn();
        for (query, value) in answers {
            match (query, value) {
                (Query::Entry { dir, name }, Value::Entry(found)) => {
                    let (entry, record) = found.as_ref().map(|(entry, record)| (entry, record.as_ref())).unzip();
                    if let Some((_, ino)) = entry.and_then(|entry| codec::decode_entry(entry)) {
                        memory.answered(Query::Get(key::inode(ino)), Value::Bytes(record.flatten().cloned()), asked, turn);
                    }
                    memory.answered(Query::HGet(dir.clone(), name.clone()), Value::Bytes(entry.cloned()), asked, turn);
                }
                (query, value) => memory.answered(query.clone(), value.clone(), asked, turn),
            }
        }
    }

    /// Takes in a page of a directory: whoever lists it often goes on to remove or rename what it names.
    pub fn learn_page(&self, dir: &Key, items: &[ScanItem], asked: u64) {
        let mut memory = self.memory();
        let turn = memory.next_turn();
        for item in items {
            if let Some((_, ino)) = codec::decode_entry(&item.value)
                && !item.record.is_empty()
            {
                memory.answered(Query::Get(key::inode(ino)), Value::Bytes(Some(item.record.clone())), asked, turn);
                memory.answered(Query::HGet(dir.clone(), item.name.clone()), Value::Bytes(Some(item.value.clone())), asked, turn);
            }
        }
    }

    /// Takes in a commit of our own: what it guarded was so, and then it wrote. What it did to a value that is not known in full stays unknown.
    pub fn committed(&self, guards: &[Guard], writes: &[Write], replies: &[Value]) {
        let mut memory = self.memory();
        let turn = memory.next_turn();
        for key in writes.iter().filter_map(key_of) {
            *memory.last_of(key) = turn;
        }
        for guard in guards {
            let value = match guard {
                Guard::Value(_, value) | Guard::Field(_, _, value) => Value::Bytes(value.clone()),
                Guard::Fields(_, fields) => Value::Pairs(fields.clone()),
                Guard::ListIs(_, elements) => Value::List(elements.clone()),
                _ => continue,
            };
            memory.put(guard.query(), value);
        }
        for (at, write) in writes.iter().enumerate() {
            memory.apply(write, replies.get(at));
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        let mut memory = self.memory.lock().expect("never poisoned: no code under it panics");
        memory.now = self.clock.elapsed();
        debug_assert!(memory.bytes <= self.bytes_max);
        memory
    }
}

impl Memory {
    fn answer(&mut self, query: &Query) -> Option<Value> {
        let Query::Entry { dir, name } = query else { return self.get(query) };
        let Value::Bytes(entry) = self.get(&Query::HGet(dir.clone(), name.clone()))? else { return None };
        let Some(entry) = entry else { return Some(Value::Entry(None)) };
        let (_, ino) = codec::decode_entry(&entry)?;
        let Value::Bytes(record) = self.get(&Query::Get(key::inode(ino)))? else { return None };
        Some(Value::Entry(Some((entry, record))))
    }

    fn get(&mut self, query: &Query) -> Option<Value> {
        let fact = self.facts.get(query)?;
        let is_old = key::is_counter(query) && fact.learned.is_none_or(|learned| learned + COUNTER_AGE_MAX < self.now);
        (!is_old).then(|| fact.value.clone())
    }

    fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    fn last_of(&mut self, key: &Key) -> &mut u64 {
        &mut self.last[crc32fast::hash(key) as usize % CLASSES]
    }

    /// An answer that arrives in turn `turn` to a question of turn `asked`. If the key was answered for or written in between, it may be older
    /// than what is known or younger.
    fn answered(&mut self, query: Query, value: Value, asked: u64, turn: u64) {
        let Some(key) = key_of_query(&query) else { return };
        let last = self.last_of(key);
        // The same answer may tell several things of one key.
        let overlaps = *last > asked && *last != turn;
        *last = turn;
        if !overlaps {
            return self.put_as(query, value, Some(self.now), turn);
        }
        match self.facts.get_mut(&query) {
            // Whichever is the later one, it says this.
            Some(known) if known.value == value => {}
            Some(known) => (known.learned, known.answer) = (None, 0),
            None => self.put_as(query, value, None, 0),
        }
    }

    fn put(&mut self, query: Query, value: Value) {
        self.put_as(query, value, Some(self.now), 0);
    }

    fn put_as(&mut self, query: Query, value: Value, learned: Option<Duration>, answer: u64) {
        let is_kept = matches!(query, Query::Get(_) | Query::HGet(..) | Query::HGetAll(_) | Query::List(_));
        let value_bytes = bytes_of(&value);
        if !is_kept || value_bytes > VALUE_BYTES_MAX {
            return self.forget(&query);
        }
        let bytes = FACT_OVERHEAD + bytes_of_query(&query) + value_bytes;
        let fact = Fact { value: owned(value), bytes, learned, answer };
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

    /// Changes bytes of a string that is known; one that is too short for it is not what the store has.
    fn patch(&mut self, key: &Key, offset: u32, change: impl FnOnce(&mut [u8]), len: usize) {
        let query = Query::Get(key.clone());
        let Some((old, learned)) = self.facts.get(&query).and_then(|fact| match &fact.value {
            Value::Bytes(Some(bytes)) => Some((bytes.clone(), fact.learned)),
            _ => None,
        }) else {
            return;
        };
        let from = offset as usize;
        let mut bytes = BytesMut::from(&old[..]);
        match bytes.get_mut(from..from.saturating_add(len)) {
            Some(range) => {
                change(range);
                // The bytes around it are as old as they were.
                self.put_as(query, Value::Bytes(Some(bytes.freeze())), learned, 0);
            }
            None => self.forget(&query),
        }
    }

    fn set_field(&mut self, key: &Key, field: &Bytes, value: Option<Bytes>) {
        if let Some(Value::Pairs(mut pairs)) = self.facts.get(&Query::HGetAll(key.clone())).map(|fact| fact.value.clone()) {
            pairs.retain(|(name, _)| name != field);
            pairs.extend(value.clone().map(|value| (field.clone(), value)));
            self.put(Query::HGetAll(key.clone()), Value::Pairs(pairs));
        }
        self.put(Query::HGet(key.clone(), field.clone()), Value::Bytes(value));
    }

    fn apply(&mut self, write: &Write, reply: Option<&Value>) {
        let number = match reply {
            Some(Value::Int(number)) => Some(key::decimal(number)),
            _ => None,
        };
        match write {
            Write::Set(key, value) => self.put(Query::Get(key.clone()), Value::Bytes(Some(value.clone()))),
            Write::Patch { key, offset, bytes } => self.patch(key, *offset, |range| range.copy_from_slice(bytes), bytes.len()),
            Write::AddU32 { key, offset, delta } => {
                let add = |range: &mut [u8]| {
                    let mut number = [0; 4];
                    number.copy_from_slice(range);
                    range.copy_from_slice(&u32::from_be_bytes(number).wrapping_add_signed(*delta).to_be_bytes());
                };
                self.patch(key, *offset, add, 4);
            }
            Write::Del(key) => {
                self.forget(&Query::HGetAll(key.clone()));
                self.forget(&Query::List(key.clone()));
                self.put(Query::Get(key.clone()), Value::Bytes(None));
            }
            Write::IncrBy(key, _) => match number {
                Some(number) => self.put(Query::Get(key.clone()), Value::Bytes(Some(number))),
                None => self.forget(&Query::Get(key.clone())),
            },
            Write::HSet(key, field, value) => self.set_field(key, field, Some(value.clone())),
            Write::HDel(key, field) => self.set_field(key, field, None),
            Write::HIncrBy(key, field, _) => match number {
                Some(number) => self.set_field(key, field, Some(number)),
                None => {
                    self.forget(&Query::HGet(key.clone(), field.clone()));
                    self.forget(&Query::HGetAll(key.clone()));
                }
            },
            Write::HIncrIfPresent(key, field, _) => {
                self.forget(&Query::HGet(key.clone(), field.clone()));
                self.forget(&Query::HGetAll(key.clone()));
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
    match query {
        Query::Get(key) | Query::HGetAll(key) | Query::List(key) | Query::HGet(key, _) => Some(key),
        _ => None,
    }
}

/// The key a write changes, if it may be of a kind that is kept.
fn key_of(write: &Write) -> Option<&Key> {
    match write {
        Write::Set(key, _)
        | Write::Patch { key, .. }
        | Write::AddU32 { key, .. }
        | Write::Del(key)
        | Write::IncrBy(key, _)
        | Write::HSet(key, ..)
        | Write::HDel(key, _)
        | Write::HIncrBy(key, ..)
        | Write::HIncrIfPresent(key, ..)
        | Write::RPush(key, _)
        | Write::RPushX(key, _)
        | Write::LPush(key, _)
        | Write::LTrim(key, _) => Some(key),
        Write::SAdd(..) | Write::SRem(..) | Write::ZAdd(..) | Write::ZRem(..) | Write::PutFrame(..) | Write::DelFrame(..) => None,
    }
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
mod tests {
    use super::*;
    use crate::env::ManualClock;

    fn facts(bytes_max: usize) -> (Arc<ManualClock>, Facts) {
        let clock = Arc::new(ManualClock::new(Duration::from_secs(1000)));
        (clock.clone(), Facts::bounded(clock, bytes_max))
    }

    fn get(key: &'static str) -> Query {
        Query::Get(key.into())
    }

    fn bytes(text: &'static str) -> Value {
        Value::Bytes(Some(text.into()))
    }

    #[test]
    fn commits_are_applied_or_make_it_forget() {
        let (_, facts) = facts(BYTES_MAX);
        let all = Query::HGetAll("h".into());
        let asked = facts.ask();
        let record = Value::Bytes(Some(Bytes::from_static(&[0, 0, 0, 7, 9, 9])));
        let pairs = Value::Pairs(vec![("a".into(), "1".into()), ("b".into(), "2".into())]);
        facts.learn([(&get("s"), &record), (&all, &pairs), (&Query::List("l".into()), &Value::List(vec!["x".into()]))], asked);
        let writes = [
            Write::AddU32 { key: "s".into(), offset: 0, delta: -1 },
            Write::Patch { key: "s".into(), offset: 4, bytes: "ab".into() },
            // Of what is not known, and beyond the end of what is.
            Write::Patch { key: "unknown".into(), offset: 0, bytes: "x".into() },
            Write::HSet("h".into(), "a".into(), "3".into()),
            Write::HDel("h".into(), "b".into()),
            Write::HIncrBy("h".into(), "c".into(), 5),
            Write::RPush("l".into(), vec!["y".into()]),
            Write::Del("d".into()),
            Write::IncrBy("n".into(), 3),
        ];
        let mut replies = vec![Value::Done; writes.len()];
        replies[5] = Value::Int(12);
        replies[8] = Value::Int(8);
        facts.committed(&[Guard::Field("g".into(), "f".into(), None)], &writes, &replies);
        assert_eq!(facts.recall(&[get("s")]), Some(vec![Value::Bytes(Some(Bytes::from_static(b"\0\0\0\x06ab")))]));
        assert_eq!(facts.recall(&[all]), Some(vec![Value::Pairs(vec![("a".into(), "3".into()), ("c".into(), "12".into())])]));
        let known = [get("d"), get("n"), Query::HGet("h".into(), "b".into()), Query::HGet("g".into(), "f".into())];
        assert_eq!(facts.recall(&known), Some(vec![Value::Bytes(None), bytes("8"), Value::Bytes(None), Value::Bytes(None)]));
        for unknown in [get("unknown"), Query::List("l".into()), Query::HLen { key: "h".into(), limit: 1 }] {
            assert_eq!(facts.recall(&[get("d"), unknown]), None);
        }
        facts.committed(&[], &[Write::Patch { key: "s".into(), offset: 5, bytes: "xyz".into() }], &[Value::Done]);
        assert_eq!(facts.recall(&[get("s")]), None, "it is not what the store has");
    }

    #[test]
    fn an_answer_that_overlaps_another_or_a_commit_stands_for_nothing_that_follows() {
        let (clock, facts) = facts(BYTES_MAX);
        let two = [get("a"), get("b")];
        let learn = |asked| facts.learn([(&two[0], &bytes("1")), (&two[1], &bytes("2"))], asked);
        learn(facts.ask());
        assert_eq!(facts.recall_recent(&two), Some(vec![bytes("1"), bytes("2")]));
        // Of two answers.
        facts.learn([(&two[0], &bytes("3"))], facts.ask());
        assert_eq!(facts.recall_recent(&two), None);
        // A commit came after the question.
        let asked = facts.ask();
        facts.committed(&[], &[Write::Set("a".into(), "4".into())], &[Value::Done]);
        learn(asked);
        assert_eq!((facts.recall_recent(&two), facts.recent(&two[0])), (None, None));
        assert_eq!(facts.recall(&two[..1]), Some(vec![bytes("4")]), "to start from it is good enough");
        // The answer to a later question arrived before this one. If both say the same it is so.
        let (first, second) = (facts.ask(), facts.ask());
        learn(second);
        learn(first);
        assert!(facts.recall_recent(&two).is_some());
        let (first, second) = (facts.ask(), facts.ask());
        learn(second);
        facts.learn([(&two[0], &bytes("0"))], first);
        assert_eq!((facts.recall_recent(&two), facts.recent(&two[0])), (None, None));
        // Too long ago.
        learn(facts.ask());
        clock.advance(RECENT);
        assert!(facts.recall_recent(&two).is_some());
        assert_eq!(facts.recent(&two[0]), Some((Some("1".into()), RECENT)));
        clock.advance(Duration::from_millis(1));
        assert_eq!((facts.recall_recent(&two), facts.recent(&two[0])), (None, None));
    }

    #[test]
    fn the_least_recently_used_go_first_and_large_values_are_not_kept() {
        let (_, facts) = facts(10 * (FACT_OVERHEAD + 50));
        let set = |key: String, len| facts.committed(&[], &[Write::Set(key.into(), vec![0; len].into())], &[Value::Done]);
        set("kept".into(), 10);
        for n in 0..100 {
            set(format!("k{n}"), 10);
            assert!(facts.recall(&[get("kept")]).is_some());
        }
        assert!(facts.recall(&[get("k1")]).is_none() && facts.recall(&[get("k99")]).is_some());
        set("kept".into(), VALUE_BYTES_MAX + 1);
        assert!(facts.recall(&[get("kept")]).is_none());
    }
}
