//! `Facts`: what this process last learned of a store behind a network, from reads, conflicts and its own commits. Mutations start here.
//!
//! A fact may be arbitrarily stale: a plan that rests on it is guarded on it, and a conflict brings the present value. So it never has to
//! be invalidated; what is wrong costs one more trip. No answer to a lookup or a read comes from here.

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
/// How long a counter is believed. Plans do not guard counters, so a limit of the volume is soft by what others use in this time.
const COUNTER_AGE_MAX: Duration = Duration::from_secs(1);

struct Fact {
    value: Value,
    bytes: usize,
    learned: Duration,
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
}

impl Facts {
    /// Knows nothing.
    pub fn new(clock: Arc<dyn Clock>) -> Facts {
        Facts::bounded(clock, BYTES_MAX)
    }

    fn bounded(clock: Arc<dyn Clock>, bytes_max: usize) -> Facts {
        let memory = Memory { facts: LruCache::unbounded(), bytes: 0, bytes_max, now: Duration::ZERO };
        Facts { clock, bytes_max, memory: Mutex::new(memory) }
    }

    /// The answers to all of these, or nothing: if one has to be read, the others come along for free.
    pub fn recall(&self, queries: &[Query]) -> Option<Vec<Value>> {
        let mut memory = self.memory();
        queries.iter().map(|query| memory.answer(query)).collect()
    }

    /// Takes in answers of the store.
    pub fn learn<'a>(&self, answers: impl IntoIterator<Item = (&'a Query, &'a Value)>) {
        let mut memory = self.memory();
        for (query, value) in answers {
            match (query, value) {
                (Query::Entry { dir, name }, Value::Entry(found)) => {
                    let (entry, record) = found.as_ref().map(|(entry, record)| (entry, record.as_ref())).unzip();
                    if let Some((_, ino)) = entry.and_then(|entry| codec::decode_entry(entry)) {
                        memory.put(Query::Get(key::inode(ino)), Value::Bytes(record.flatten().cloned()));
                    }
                    memory.put(Query::HGet(dir.clone(), name.clone()), Value::Bytes(entry.cloned()));
                }
                (query, value) => memory.put(query.clone(), value.clone()),
            }
        }
    }

    /// Takes in a page of a directory: whoever lists it often goes on to remove or rename what it names.
    pub fn learn_page(&self, dir: &Key, items: &[ScanItem]) {
        let mut memory = self.memory();
        for item in items {
            if let Some((_, ino)) = codec::decode_entry(&item.value)
                && !item.record.is_empty()
            {
                memory.put(Query::Get(key::inode(ino)), Value::Bytes(Some(item.record.clone())));
                memory.put(Query::HGet(dir.clone(), item.name.clone()), Value::Bytes(Some(item.value.clone())));
            }
        }
    }

    /// Takes in a commit of our own: what it guarded was so, and then it wrote. What it did to a value that is not known in full stays unknown.
    pub fn committed(&self, guards: &[Guard], writes: &[Write], replies: &[Value]) {
        let mut memory = self.memory();
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
        let is_old = key::is_counter(query) && fact.learned + COUNTER_AGE_MAX < self.now;
        (!is_old).then(|| fact.value.clone())
    }

    fn put(&mut self, query: Query, value: Value) {
        let is_kept = matches!(query, Query::Get(_) | Query::HGet(..) | Query::HGetAll(_) | Query::List(_));
        let value_bytes = bytes_of(&value);
        if !is_kept || value_bytes > VALUE_BYTES_MAX {
            return self.forget(&query);
        }
        let bytes = FACT_OVERHEAD + bytes_of_query(&query) + value_bytes;
        let fact = Fact { value: owned(value), bytes, learned: self.now };
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

    fn string(&mut self, key: &Key) -> Option<Bytes> {
        match &self.facts.get(&Query::Get(key.clone()))?.value {
            Value::Bytes(bytes) => bytes.clone(),
            _ => None,
        }
    }

    /// Changes bytes of a string that is known; one that is too short for it is not what the store has.
    fn patch(&mut self, key: &Key, offset: u32, change: impl FnOnce(&mut [u8]), len: usize) {
        let Some(old) = self.string(key) else { return };
        let from = offset as usize;
        let mut bytes = BytesMut::from(&old[..]);
        match bytes.get_mut(from..from.saturating_add(len)) {
            Some(range) => {
                change(range);
                self.put(Query::Get(key.clone()), Value::Bytes(Some(bytes.freeze())));
            }
            None => self.forget(&Query::Get(key.clone())),
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
