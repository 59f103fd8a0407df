//! A store in memory and a small volume on it, for the tests of the data operations.

use crate::env::{Clock, ManualClock};
use crate::meta::codec::{Record, decode_entry, decode_slice, encode_attr};
use crate::meta::ops::write::NewSlice;
use crate::meta::setting::Setting;
use crate::meta::store::{BytesRange, Commit, Cursor, Guard, Key, Query, ScanItem, ScanPage, ScanRange, Store, StoreError, Value, Write};
use crate::meta::{Meta, MetaConfig, key};
use crate::types::{Attr, BoxFuture, Duty, Flags, Ino, Kind, SliceId, SliceRecord, Time};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::mpsc;

/// The result of a future that is ready at once, as all are on this store.
pub(crate) fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("waits for something on a store that never waits"),
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Stored {
    String(Bytes),
    Hash(BTreeMap<Bytes, Bytes>),
    List(Vec<Bytes>),
    Set(BTreeSet<Bytes>),
    Sorted(BTreeMap<Bytes, i64>),
}

type Hook = Box<dyn FnOnce() + Send>;

/// Keys in a map; what a hook does happens between the reads of an operation and its commit.
#[derive(Default)]
pub(crate) struct TestStore {
    keys: Mutex<BTreeMap<Bytes, Stored>>,
    frames: Mutex<BTreeMap<SliceId, Bytes>>,
    before_commit: Mutex<Option<Hook>>,
    /// Sessions another process is known to have left.
    pub dead_sessions: Mutex<HashSet<u64>>,
}

macro_rules! typed {
    ($name:ident, $variant:ident, $type:ty) => {
        fn $name<'a>(keys: &'a mut BTreeMap<Bytes, Stored>, key: &Key) -> &'a mut $type {
            match keys.entry(key.clone()).or_insert_with(|| Stored::$variant(Default::default())) {
                Stored::$variant(value) => value,
                other => panic!("{key:?} is {other:?}"),
            }
        }
    };
}
typed!(string, String, Bytes);
typed!(hash, Hash, BTreeMap<Bytes, Bytes>);
typed!(list, List, Vec<Bytes>);
typed!(set, Set, BTreeSet<Bytes>);
typed!(sorted, Sorted, BTreeMap<Bytes, i64>);

fn decimal(value: Option<&Bytes>) -> i64 {
    value.map_or(0, |text| std::str::from_utf8(text).unwrap().parse().unwrap())
}

impl TestStore {
    /// Runs `hook` before the next commit.
    pub fn before_commit(&self, hook: impl FnOnce() + Send + 'static) {
        *self.before_commit.lock().unwrap() = Some(Box::new(hook));
    }

    /// One write, whatever anybody guards.
    pub fn put(&self, write: Write) -> Value {
        self.apply(&write)
    }

    pub fn get(&self, query: Query) -> Value {
        let mut keys = self.keys.lock().unwrap().clone();
        match query {
            Query::Get(key) => Value::Bytes(keys.contains_key(&key).then(|| string(&mut keys, &key).clone())),
            Query::HGet(key, field) => Value::Bytes(hash(&mut keys, &key).get(&field).cloned()),
            Query::HGetAll(key) => Value::Pairs(hash(&mut keys, &key).clone().into_iter().collect()),
            Query::HLen { key, limit } => Value::Int((hash(&mut keys, &key).len() as i64).min(limit.into())),
            Query::List(key) => Value::List(list(&mut keys, &key).clone()),
            Query::SMembers(key) => Value::List(set(&mut keys, &key).iter().cloned().collect()),
            Query::ZScore(key, member) => Value::Score(sorted(&mut keys, &key).get(&member).copied()),
            Query::ZRange { key, max, limit } => {
                let mut members: Vec<_> = sorted(&mut keys, &key).clone().into_iter().filter(|(_, score)| *score <= max).collect();
                members.sort_by_key(|(_, score)| *score);
                members.truncate(limit as usize);
                Value::Scored(members)
            }
            Query::Entry { dir, name } => Value::Entry(hash(&mut keys, &dir).get(&name).cloned().map(|entry| {
                let record = decode_entry(&entry).and_then(|(_, ino)| {
                    let key = key::inode(ino);
                    keys.contains_key(&key).then(|| string(&mut keys, &key).clone())
                });
                (entry, record)
            })),
        }
    }

    fn holds(&self, guard: &Guard) -> bool {
        let value = self.get(guard.query());
        match (guard, value) {
            (Guard::Value(_, want) | Guard::Field(_, _, want), Value::Bytes(is)) => *want == is,
            (Guard::Bytes(_, ranges), Value::Bytes(is)) => is.is_some_and(|is| {
                ranges.iter().all(|(BytesRange { from, to }, want)| {
                    let to = to.map_or(is.len(), |to| (to as usize).min(is.len()));
                    is[(*from as usize).min(to)..to] == want[..]
                })
            }),
            (Guard::Fields(_, want), Value::Pairs(is)) => {
                want.iter().cloned().collect::<BTreeMap<_, _>>() == is.into_iter().collect::<BTreeMap<_, _>>()
            }
            (Guard::HashEmpty(_), Value::Int(count)) => count == 0,
            (Guard::HashNotEmpty(_), Value::Int(count)) => count > 0,
            (Guard::ListPrefix(_, want), Value::List(is)) => is.starts_with(want),
            (Guard::ListIs(_, want), Value::List(is)) => *want == is,
            (Guard::Score(_, _, want), Value::Score(is)) => *want == is,
            (guard, value) => panic!("{guard:?} answered by {value:?}"),
        }
    }

    fn apply(&self, write: &Write) -> Value {
        let mut keys = self.keys.lock().unwrap();
        let keys = &mut *keys;
        let reply = match write {
            Write::Set(key, value) => {
                keys.insert(key.clone(), Stored::String(value.clone()));
                Value::Done
            }
            Write::Patch { key, offset, bytes } => {
                let mut value = string(keys, key).to_vec();
                value[*offset as usize..*offset as usize + bytes.len()].copy_from_slice(bytes);
                *string(keys, key) = value.into();
                Value::Done
            }
            Write::AddU32 { .. } => panic!("no data operation does this"),
            Write::Del(key) => {
                keys.remove(key);
                Value::Done
            }
            Write::IncrBy(key, by) => {
                let value = keys.contains_key(key).then(|| string(keys, key).clone());
                let sum = decimal(value.as_ref()) + by;
                *string(keys, key) = key::decimal(sum);
                Value::Int(sum)
            }
            Write::HSet(key, field, value) => {
                hash(keys, key).insert(field.clone(), value.clone());
                Value::Done
            }
            Write::HDel(key, field) => Value::Int(hash(keys, key).remove(field).is_some().into()),
            Write::HIncrBy(key, field, by) => {
                let sum = decimal(hash(keys, key).get(field)) + by;
                hash(keys, key).insert(field.clone(), key::decimal(sum));
                Value::Int(sum)
            }
            Write::HIncrIfPresent(key, field, by) => {
                if let Some(value) = hash(keys, key).get_mut(field) {
                    *value = key::decimal(decimal(Some(value)) + by);
                }
                Value::Done
            }
            Write::RPush(key, elements) => {
                list(keys, key).extend(elements.iter().cloned());
                Value::Int(list(keys, key).len() as i64)
            }
            Write::RPushX(key, element) => {
                if !list(keys, key).is_empty() {
                    list(keys, key).push(element.clone());
                }
                Value::Int(list(keys, key).len() as i64)
            }
            Write::LPush(key, elements) => {
                list(keys, key).splice(..0, elements.iter().cloned());
                Value::Int(list(keys, key).len() as i64)
            }
            Write::LTrim(key, n) => {
                let list = list(keys, key);
                list.drain(..(*n as usize).min(list.len()));
                Value::Done
            }
            Write::SAdd(key, member) => {
                set(keys, key).insert(member.clone());
                Value::Done
            }
            Write::SRem(key, member) => Value::Int(set(keys, key).remove(member).into()),
            Write::ZAdd(key, score, member) => {
                sorted(keys, key).insert(member.clone(), *score);
                Value::Done
            }
            Write::ZRem(key, member) => Value::Int(sorted(keys, key).remove(member).is_some().into()),
            Write::PutFrame(id, frame) => {
                self.frames.lock().unwrap().insert(*id, frame.clone());
                Value::Done
            }
            Write::DelFrame(id) => {
                self.frames.lock().unwrap().remove(id);
                Value::Done
            }
        };
        // Empty things do not exist.
        keys.retain(|_, stored| match stored {
            Stored::String(_) => true,
            Stored::Hash(hash) => !hash.is_empty(),
            Stored::List(list) => !list.is_empty(),
            Stored::Set(set) => !set.is_empty(),
            Stored::Sorted(set) => !set.is_empty(),
        });
        reply
    }
}

impl Store for TestStore {
    fn read<'a>(&'a self, queries: &'a [Query]) -> BoxFuture<'a, Result<Vec<Value>, StoreError>> {
        Box::pin(async move { Ok(queries.iter().map(|query| self.get(query.clone())).collect()) })
    }

    fn commit<'a>(&'a self, guards: &'a [Guard], writes: &'a [Write], reads: &'a [Query]) -> BoxFuture<'a, Result<Commit, StoreError>> {
        Box::pin(async move {
            let hook = self.before_commit.lock().unwrap().take();
            if let Some(hook) = hook {
                hook();
            }
            if !guards.iter().all(|guard| self.holds(guard)) {
                return Ok(Commit::Conflict(guards.iter().map(|guard| (guard.query(), self.get(guard.query()))).collect()));
            }
            let replies = writes.iter().map(|write| self.apply(write)).collect();
            Ok(Commit::Done { replies, values: reads.iter().map(|query| self.get(query.clone())).collect() })
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn scan<'a>(&'a self, range: &'a ScanRange, cursor: Cursor, _limit: u32) -> BoxFuture<'a, Result<ScanPage, StoreError>> {
        // Pages of two, so that every scan of a test goes on.
        Box::pin(async move {
            let mut keys = self.keys.lock().unwrap().clone();
            let all: Vec<(Bytes, Bytes)> = match range {
                ScanRange::Keys(prefix) => keys.keys().filter(|key| key.starts_with(prefix)).map(|k| (k.clone(), Bytes::new())).collect(),
                ScanRange::Hash(key) => hash(&mut keys, key).clone().into_iter().collect(),
                _ => panic!("no data operation scans {range:?}"),
            };
            let rest: Vec<_> = all.into_iter().filter(|(name, _)| cursor.is_empty() || *name > cursor).collect();
            let next = (rest.len() > 2).then(|| rest[1].0.clone());
            let items = rest.into_iter().take(2).map(|(name, value)| ScanItem { name, value, record: Bytes::new() }).collect();
            Ok(ScanPage { items, next })
        })
    }

    fn frame(&self, id: SliceId) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>> {
        Box::pin(async move { Ok(self.frames.lock().unwrap().get(&id).cloned()) })
    }

    fn shared(&self) -> bool {
        false
    }

    fn claim_session(&self, _sid: u64) -> Result<bool, StoreError> {
        Ok(true)
    }

    fn session_alive(&self, sid: u64) -> Option<bool> {
        self.dead_sessions.lock().unwrap().contains(&sid).then_some(false)
    }
}

/// A volume on a `TestStore`.
pub(crate) struct World {
    pub store: Arc<TestStore>,
    pub clock: Arc<ManualClock>,
    pub meta: Arc<Meta>,
    pub duties: Mutex<mpsc::Receiver<Duty>>,
    next: AtomicU64,
}

impl World {
    pub fn new() -> World {
        World::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Setting)) -> World {
        let mut setting = Setting::new("vol", "uuid", "file", "/", 4096);
        change(&mut setting);
        let (store, clock) = (Arc::new(TestStore::default()), Arc::new(ManualClock::new(Duration::from_secs(1_700_000_000))));
        for hash in [key::DIR_DATA_LENGTH, key::DIR_USED_SPACE, key::DIR_USED_INODES] {
            store.put(Write::HSet(hash, key::decimal(1), key::decimal(0)));
        }
        let (sender, duties) = mpsc::channel(16);
        let meta = World::meta_on(&store, &clock, setting, sender);
        World { store, clock, meta, duties: Mutex::new(duties), next: AtomicU64::new(2) }
    }

    fn meta_on(store: &Arc<TestStore>, clock: &Arc<ManualClock>, setting: Setting, duties: mpsc::Sender<Duty>) -> Arc<Meta> {
        let atime = Default::default();
        Arc::new(Meta::new(MetaConfig { store: store.clone(), clock: clock.clone(), setting, duties, atime }))
    }

    /// Another client of the same volume, as it were on another host.
    pub fn neighbour(&self) -> Arc<Meta> {
        World::meta_on(&self.store, &self.clock, self.meta.setting().clone(), mpsc::channel(1).0)
    }

    pub fn now(&self) -> Time {
        self.clock.now()
    }

    pub fn duty(&self) -> Option<Duty> {
        self.duties.lock().unwrap().try_recv().ok()
    }

    /// An inode in the root, with one name.
    pub fn inode(&self, change: impl FnOnce(&mut Attr)) -> Ino {
        let ino = Ino(self.next.fetch_add(1, Ordering::Relaxed));
        let time = Time { sec: 1_600_000_000, nsec: 0 };
        let mut attr = Attr {
            flags: Flags(0),
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            atime: time,
            mtime: time,
            ctime: time,
            nlink: 1,
            length: 0,
            rdev: 0,
            parent: Ino::ROOT,
            access_acl: 0,
            default_acl: 0,
            tier: 0,
        };
        change(&mut attr);
        self.set_attr(ino, &attr);
        ino
    }

    pub fn file(&self, length: u64) -> Ino {
        self.inode(|attr| attr.length = length)
    }

    pub fn set_attr(&self, ino: Ino, attr: &Attr) {
        self.store.put(Write::Set(key::inode(ino), encode_attr(attr)));
    }

    /// The attributes of an inode that exists.
    pub fn attr(&self, ino: Ino) -> Attr {
        self.find(ino).expect("the inode exists")
    }

    pub fn find(&self, ino: Ino) -> Option<Attr> {
        let Value::Bytes(bytes) = self.store.get(Query::Get(key::inode(ino))) else { panic!("not a string") };
        bytes.map(|bytes| Record::decode(bytes).unwrap().attr)
    }

    /// Removes the last name, with nobody having it open.
    pub fn unlink(&self, ino: Ino) {
        let length = self.attr(ino).length;
        self.store.put(Write::Del(key::inode(ino)));
        self.store.put(Write::ZAdd(key::DELFILES, self.now().sec, key::delfile(ino, length)));
    }

    pub fn write(&self, ino: Ino, pos: u32, id: SliceId, len: u32) -> Attr {
        self.write_at(ino, 0, pos, id, len)
    }

    pub fn write_at(&self, ino: Ino, chunk: u32, pos: u32, id: SliceId, len: u32) -> Attr {
        ready(self.meta.write(ino, chunk, &[slice(pos, id, len)], self.now())).unwrap()
    }

    /// The list of a chunk.
    pub fn list(&self, ino: Ino, chunk: u32) -> Vec<SliceRecord> {
        let Value::List(elements) = self.store.get(Query::List(key::chunk(ino, chunk))) else { panic!("not a list") };
        elements.iter().map(|element| decode_slice(element).unwrap()).collect()
    }

    pub fn reference(&self, id: SliceId, size: u32) -> Option<i64> {
        let Value::Bytes(value) = self.store.get(Query::HGet(key::SLICE_REF, key::slice_ref(id, size))) else { panic!("not a hash") };
        value.as_ref().map(|value| decimal(Some(value)))
    }

    pub fn frame(&self, id: SliceId) -> Option<Bytes> {
        ready(self.store.frame(id)).unwrap()
    }

    pub fn counter(&self, key: Key) -> i64 {
        let Value::Bytes(value) = self.store.get(Query::Get(key)) else { panic!("not a string") };
        decimal(value.as_ref())
    }

    /// (bytes, space) of a directory's statistics.
    pub fn dir_stats(&self, dir: Ino) -> (i64, i64) {
        let field = |key| match self.store.get(Query::HGet(key, key::decimal(dir))) {
            Value::Bytes(value) => decimal(value.as_ref()),
            _ => panic!("not a hash"),
        };
        (field(key::DIR_DATA_LENGTH), field(key::DIR_USED_SPACE))
    }
}

/// A slice without a frame.
pub(crate) fn slice(pos: u32, id: SliceId, len: u32) -> NewSlice {
    NewSlice { pos, id, len, frame: None }
}
