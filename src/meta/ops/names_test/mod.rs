//! Tests of the namespace operations: a volume in memory, and a check of everything that must agree in it.

mod acl;
mod operations;
mod quota;
mod races;
mod random;
mod trace;
mod trash;

use crate::env::ManualClock;
use crate::meta::codec::{self, decode_decimal, encode_attr};
use crate::meta::ops::*;
use crate::meta::setting::Setting;
use crate::meta::store::embedded::EmbeddedStore;
use crate::meta::store::{Commit, Query, ScanRange, Store, Value, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{AtimeMode, Cx, Meta, MetaConfig, key};
use crate::types::{Attr, Caller, Duty, Errno, Flags, Ino, Kind, Name, Time};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;

pub(super) struct World {
    pub store: Arc<EmbeddedStore>,
    pub clock: Arc<ManualClock>,
    pub meta: Meta,
    pub duties: mpsc::Receiver<Duty>,
}

pub(super) fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).expect("a test's name is valid")
}

pub(super) fn user(uid: u32) -> Caller {
    Caller { uid, gid: uid, ..Caller::root() }
}

pub(super) fn node(kind: Kind) -> NewNode<'static> {
    NewNode { kind, mode: 0o644, umask: 0, rdev: 0, target: if kind == Kind::Symlink { b"target" } else { b"" } }
}

impl World {
    pub async fn new() -> World {
        World::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Setting)) -> World {
        let mut setting = Setting::new("vol", "uuid", "file", "/", 4096);
        change(&mut setting);
        let store = Arc::new(EmbeddedStore::open_in_memory().expect("memory"));
        let root = Attr::new_dir(0o777, Ino::ROOT, Time::default());
        let mut writes = vec![Write::Set(key::inode(Ino::ROOT), encode_attr(&root))];
        for hash in [key::DIR_DATA_LENGTH, key::DIR_USED_SPACE, key::DIR_USED_INODES] {
            writes.push(Write::HSet(hash, key::decimal(1), Bytes::from_static(b"0")));
        }
        store.commit(&[], &writes, &[]).await.expect("commit");
        let clock = Arc::new(ManualClock::new(Duration::from_secs(1000)));
        World::on(store, clock, setting, 7)
    }

    fn on(store: Arc<EmbeddedStore>, clock: Arc<ManualClock>, setting: Setting, sid: u64) -> World {
        let (sender, duties) = mpsc::channel(100);
        let config = MetaConfig { store: store.clone(), clock: clock.clone(), setting, duties: sender, atime: AtimeMode::Relative };
        let meta = Meta::new(config);
        meta.sid.store(sid, Ordering::Relaxed);
        World { store, clock, meta, duties }
    }

    /// Another process with the same store.
    pub fn other(&self, sid: u64) -> World {
        World::on(self.store.clone(), self.clock.clone(), (*self.meta.setting()).clone(), sid)
    }

    pub async fn make(&self, parent: Ino, text: &str, kind: Kind) -> Ino {
        self.clock.advance(Duration::from_secs(1));
        self.meta.create(&Caller::root(), parent, &name(text), node(kind)).await.expect("creates").0
    }

    pub async fn find(&self, parent: Ino, text: &str) -> Result<(Ino, Attr), Errno> {
        self.meta.lookup(&Caller::root(), parent, &name(text)).await
    }

    pub async fn rename(&self, from: (Ino, &str), to: (Ino, &str)) -> Result<(), Errno> {
        self.meta.rename(&Caller::root(), from.0, &name(from.1), to.0, &name(to.1), RenameFlags::default()).await
    }

    pub async fn unlink(&self, parent: Ino, text: &str) -> Result<(), Errno> {
        self.meta.unlink(&Caller::root(), parent, &name(text)).await
    }

    pub async fn rmdir(&self, parent: Ino, text: &str) -> Result<(), Errno> {
        self.meta.rmdir(&Caller::root(), parent, &name(text)).await
    }

    /// Changes a record behind the operations' back.
    pub async fn edit(&self, ino: Ino, change: impl FnOnce(&mut Attr)) {
        let mut attr = self.meta.getattr(ino).await.expect("exists");
        change(&mut attr);
        self.write(&[Write::Set(key::inode(ino), encode_attr(&attr))]).await;
    }

    pub async fn write(&self, writes: &[Write]) {
        let done = self.store.commit(&[], writes, &[]).await.expect("commit");
        assert!(matches!(done, Commit::Done { .. }));
    }

    pub async fn get(&self, query: Query) -> Value {
        self.store.read(&[query]).await.expect("read").remove(0)
    }

    pub async fn count(&self, key: bytes::Bytes) -> i64 {
        match self.get(Query::Get(key)).await {
            Value::Bytes(value) => decode_decimal(value.as_deref()).expect("a number"),
            other => panic!("{other:?}"),
        }
    }

    async fn scan(&self, range: ScanRange) -> Vec<(Bytes, Bytes)> {
        let page = self.store.scan(&range, Bytes::new(), 1 << 20).await.expect("scan");
        assert_eq!(page.next, None);
        page.items.into_iter().map(|item| (item.name, item.value)).collect()
    }

    /// Reads what a step asks for until it yields a plan, which is not committed: it grows stale in the caller's hands.
    pub async fn plan<T: Send + 'static>(&self, caller: &Caller, step: impl Fn(&View, &Cx) -> Result<Plan<T>, Stop>) -> Plan<T> {
        let mut view = View::default();
        loop {
            view.begin();
            let cx = Cx {
                caller,
                now: Time { sec: 5000, nsec: 0 },
                sid: self.meta.sid.load(Ordering::Relaxed),
                setting: &self.meta.setting(),
                open_files: self.meta.open_files(),
                fence: &self.meta.fence,
                // As soon as something was deleted there is one.
                trash: self.meta.known.trash_hour.try_lock().expect("nobody deletes").map(|(_, dir, _)| dir),
                known: &self.meta.known,
                journal: self.meta.journal(),
            };
            match step(&view, &cx) {
                Ok(plan) => return plan,
                Err(Stop::Fail(errno)) => panic!("the step fails with {errno:?}"),
                Err(Stop::Need(queries)) => {
                    let values = self.store.read(&queries).await.expect("read");
                    view.learn(queries.into_iter().zip(values));
                }
            }
        }
    }

    /// Whether a plan can still be committed.
    pub async fn commits<T>(&self, plan: Plan<T>) -> bool {
        matches!(self.store.commit(&plan.guards, &plan.writes, &plan.reads).await.expect("commit"), Commit::Done { .. })
    }

    /// Everything in the volume agrees: entries and records, link counts, parents, counters, statistics.
    pub async fn check(&self) {
        let number = |key: &[u8]| std::str::from_utf8(&key[1..]).ok().and_then(|text| text.parse().ok()).map(Ino);
        let mut records = BTreeMap::new();
        for (key, _) in self.scan(ScanRange::Keys(Bytes::from_static(b"i"))).await {
            let Some(ino) = number(&key) else { continue };
            let Value::Bytes(Some(value)) = self.get(Query::Get(key)).await else { panic!("i{ino} is a string") };
            records.insert(ino, codec::Record::decode(value).expect("a record").attr);
        }
        let mut links: HashMap<Ino, Vec<Ino>> = HashMap::new();
        for (dir, attr) in records.iter().filter(|(_, attr)| attr.is_dir()) {
            let (mut subdirs, mut usage) = (0, [0, 0, 0]);
            for (entry, value) in self.scan(ScanRange::Hash(key::dir(*dir))).await {
                let (kind, ino) = codec::decode_entry(&value).expect("an entry");
                let child = records.get(&ino).unwrap_or_else(|| panic!("{entry:?} in {dir} names the missing {ino}"));
                assert_eq!(child.kind, kind);
                subdirs += u32::from(kind == Kind::Dir);
                links.entry(ino).or_default().push(*dir);
                usage[0] += if kind == Kind::File { child.length as i64 } else { 0 };
                usage[1] += child.space();
                usage[2] += 1;
            }
            if !dir.is_trash() {
                assert_eq!(attr.nlink, 2 + subdirs, "nlink of directory {dir}");
            }
            let has_stats = *dir != Ino::TRASH && !attr.is_trashed();
            for (hash, want) in [key::DIR_DATA_LENGTH, key::DIR_USED_SPACE, key::DIR_USED_INODES].into_iter().zip(usage) {
                let got = self.get(Query::HGet(hash.clone(), key::decimal(dir))).await;
                assert_eq!(got, Value::Bytes(has_stats.then(|| key::decimal(want))), "{hash:?} of {dir}");
            }
        }
        self.check_quotas(&records, &links).await;
        let mut kept = 0;
        let counted = |ino: &Ino| *ino != Ino::ROOT && *ino != Ino::TRASH;
        for (ino, attr) in records.iter().filter(|(ino, _)| counted(ino)) {
            let parents = links.remove(ino).unwrap_or_default();
            if attr.is_dir() {
                assert_eq!(parents, [attr.parent], "directory {ino}");
                continue;
            }
            assert_eq!(attr.nlink as usize, parents.len(), "links of {ino}");
            kept += i64::from(attr.nlink == 0);
            if attr.nlink > 0 && attr.parent.0 != 0 {
                assert_eq!(parents, [attr.parent], "parent of {ino}");
            } else if attr.nlink > 0 {
                let mut counts: BTreeMap<Ino, i64> = BTreeMap::new();
                for (field, value) in self.scan(ScanRange::Hash(key::parents(*ino))).await {
                    let dir = Ino(std::str::from_utf8(&field).expect("text").parse().expect("a number"));
                    counts.insert(dir, decode_decimal(Some(&value)).expect("a number"));
                }
                for dir in parents {
                    *counts.entry(dir).or_default() -= 1;
                }
                assert!(counts.values().all(|count| *count == 0), "p{ino}: {counts:?}");
            }
        }
        assert!(links.is_empty());
        let sustained: usize = self.scan_sets().await;
        assert_eq!(sustained as i64, kept, "files without a link are in a session's set");
        let space: i64 = records.iter().filter(|(ino, _)| counted(ino)).map(|(_, attr)| attr.space()).sum();
        assert_eq!(self.count(key::USED_SPACE).await, space, "usedSpace");
        assert_eq!(self.count(key::TOTAL_INODES).await, records.keys().filter(|ino| counted(ino)).count() as i64, "totalInodes");
        for (hash, _) in self.scan(ScanRange::Hash(key::DIR_USED_SPACE)).await {
            let dir = Ino(std::str::from_utf8(&hash).expect("text").parse().expect("a number"));
            assert!(records.contains_key(&dir), "statistics of the missing {dir}");
        }
        for prefix in ["s", "x"] {
            for (key, _) in self.scan(ScanRange::Keys(prefix.into())).await {
                if let Some(ino) = number(&key) {
                    assert!(records.contains_key(&ino), "{key:?} of a missing inode");
                }
            }
        }
    }

    async fn scan_sets(&self) -> usize {
        let mut members = 0;
        for sid in 1..20 {
            match self.get(Query::SMembers(key::sustained(sid))).await {
                Value::List(list) => members += list.len(),
                other => panic!("{other:?}"),
            }
        }
        members
    }
}
