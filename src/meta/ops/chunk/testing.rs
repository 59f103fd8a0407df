//! A small volume in memory, for the tests of the data operations.

use crate::env::{Clock, ManualClock};
use crate::meta::codec::{Record, decode_slice, encode_attr};
use crate::meta::ops::write::NewSlice;
use crate::meta::setting::Setting;
use crate::meta::store::embedded::EmbeddedStore;
use crate::meta::store::{Commit, Cursor, Guard, Key, Query, ScanPage, ScanRange, Sharing, Store, StoreError, Value, Write};
use crate::meta::{Meta, MetaConfig, key};
use crate::types::{Attr, BoxFuture, Duty, Flags, Ino, Kind, SliceId, SliceRecord, Time};
use bytes::Bytes;
use std::collections::HashSet;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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

type Hook = Box<dyn FnOnce() + Send>;

/// The embedded store in memory; what a hook does happens between the reads of an operation and its commit.
pub(crate) struct TestStore {
    inner: EmbeddedStore,
    before_commit: Mutex<Option<Hook>>,
    /// Sessions another process is known to have left; of all others nothing is known.
    pub dead_sessions: Mutex<HashSet<u64>>,
    /// How often it has lost something.
    pub losses: AtomicU64,
    /// Clients that begin now take it for a server.
    pub far: AtomicBool,
}

impl TestStore {
    fn new() -> TestStore {
        let inner = EmbeddedStore::open_in_memory().unwrap();
        TestStore {
            inner,
            before_commit: Mutex::default(),
            dead_sessions: Mutex::default(),
            losses: AtomicU64::new(0),
            far: AtomicBool::new(false),
        }
    }

    /// Runs `hook` before the next commit.
    pub fn before_commit(&self, hook: impl FnOnce() + Send + 'static) {
        *self.before_commit.lock().unwrap() = Some(Box::new(hook));
    }

    /// One write, whatever anybody guards.
    pub fn put(&self, write: Write) {
        let commit = ready(self.inner.commit(&[], &[write], &[])).unwrap();
        assert!(matches!(commit, Commit::Done { .. }));
    }

    pub fn get(&self, query: Query) -> Value {
        ready(self.inner.read(&[query])).unwrap().remove(0)
    }
}

impl Store for TestStore {
    fn read<'a>(&'a self, queries: &'a [Query]) -> BoxFuture<'a, Result<Vec<Value>, StoreError>> {
        self.inner.read(queries)
    }

    fn commit<'a>(&'a self, guards: &'a [Guard], writes: &'a [Write], reads: &'a [Query]) -> BoxFuture<'a, Result<Commit, StoreError>> {
        Box::pin(async move {
            let hook = self.before_commit.lock().unwrap().take();
            if let Some(hook) = hook {
                hook();
            }
            self.inner.commit(guards, writes, reads).await
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.sync()
    }

    fn scan<'a>(&'a self, range: &'a ScanRange, cursor: Cursor, _limit: u32) -> BoxFuture<'a, Result<ScanPage, StoreError>> {
        // Pages of two, so that every scan of a test goes on.
        self.inner.scan(range, cursor, 2)
    }

    fn frame(&self, id: SliceId) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>> {
        self.inner.frame(id)
    }

    fn shared(&self) -> bool {
        false
    }

    fn sharing(&self) -> Sharing {
        if self.far.load(Ordering::Relaxed) { Sharing::Server } else { Sharing::Alone }
    }

    fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    fn claim_session(&self, _sid: u64) -> Result<bool, StoreError> {
        Ok(true)
    }

    fn session_alive(&self, sid: u64) -> Option<bool> {
        self.dead_sessions.lock().unwrap().contains(&sid).then_some(false)
    }
}

fn decimal(value: Option<&Bytes>) -> i64 {
    value.map_or(0, |text| std::str::from_utf8(text).unwrap().parse().unwrap())
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
        let (store, clock) = (Arc::new(TestStore::new()), Arc::new(ManualClock::new(Duration::from_secs(1_700_000_000))));
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
        World::meta_on(&self.store, &self.clock, (*self.meta.setting()).clone(), mpsc::channel(1).0)
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
