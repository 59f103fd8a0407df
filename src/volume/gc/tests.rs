//! A volume in memory with something of everything in its bucket.

use super::*;
use crate::meta::codec::{encode_attr, encode_entry, encode_slice};
use crate::meta::setting::Setting;
use crate::meta::store::embedded::EmbeddedStore;
use crate::meta::store::{Query, Store, Value, Write};
use crate::object::fault::{Fault, FaultStore, Request};
use crate::object::memory::MemoryStore;
use crate::types::{Attr, Ino, Kind, SliceRecord, Time, block_count};
use bytes::Bytes;

const BLOCK_BYTES: u32 = 64 << 10;
const SIZE: u32 = 100_000;

struct World {
    store: Arc<EmbeddedStore>,
    memory: Arc<MemoryStore>,
    faults: Arc<FaultStore>,
    setting: Setting,
}

impl World {
    /// The file 2 has slice 1 by a record. Slice 2 was replaced by compaction an hour ago, slice 3 waits for deletion, slice 4 has a count
    /// and was not seen anywhere, of slice 5 nobody knows. The file 6, slice 6, was unlinked and is open in session 1; of file 7, slice 7,
    /// only the list is left; file 8, slice 8, was deleted a moment ago, and file 9, slice 9, an hour ago.
    async fn new(hash_prefix: bool, trash_days: u64) -> World {
        let mut setting = Setting::new("vol", "uuid", "file", "/", 64);
        setting.set("TrashDays", serde_json::json!(trash_days));
        setting.set("HashPrefix", serde_json::json!(hash_prefix));
        let memory = Arc::new(MemoryStore::new());
        memory.set_modified(SystemClock::new().now().sec);
        let faults = Arc::new(FaultStore::new(memory.clone()));
        let world = World { store: Arc::new(EmbeddedStore::open_in_memory().unwrap()), memory, faults, setting };
        let now = SystemClock::new().now().sec;
        let attr = |kind, nlink, length| Attr {
            flags: Default::default(),
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
            nlink,
            length,
            rdev: 0,
            parent: Ino::ROOT,
            access_acl: 0,
            default_acl: 0,
            tier: 0,
        };
        let mut delayed = 2u64.to_be_bytes().to_vec();
        delayed.extend_from_slice(&SIZE.to_be_bytes());
        world
            .write(vec![
                Write::Set(key::SETTING, world.setting.encode().into()),
                Write::Set(key::inode(Ino::ROOT), encode_attr(&attr(Kind::Dir, 2, 4096))),
                Write::Set(key::inode(Ino(2)), encode_attr(&attr(Kind::File, 1, u64::from(SIZE)))),
                Write::HSet(key::dir(Ino::ROOT), "f".into(), encode_entry(Kind::File, Ino(2))),
                Write::HSet(key::DEL_SLICES, key::delayed_slices(1, now - 3600), delayed.into()),
                Write::HSet(key::SLICE_REF, key::slice_ref(3, SIZE), "-1".into()),
                Write::HSet(key::SLICE_REF, key::slice_ref(4, SIZE), "0".into()),
                Write::Set(key::inode(Ino(6)), encode_attr(&attr(Kind::File, 0, u64::from(SIZE)))),
                Write::SAdd(key::sustained(1), "6".into()),
                Write::ZAdd(key::ALL_SESSIONS, now + 60, "1".into()),
                Write::ZAdd(key::DELFILES, now, key::delfile(Ino(8), u64::from(SIZE))),
                Write::ZAdd(key::DELFILES, now - 3600, key::delfile(Ino(9), u64::from(SIZE))),
                Write::IncrBy(key::NEXT_CHUNK, 100),
            ])
            .await;
        for (ino, slice) in [(2, 1), (6, 6), (7, 7), (8, 8), (9, 9)] {
            world.name(Ino(ino), slice).await;
        }
        for slice in 1..=9 {
            world.put(slice, SIZE).await;
        }
        // Not a block of slice 1, and no block at all.
        world.object(BlockId { slice: 1, index: 1, len: 17 }).await;
        for key in ["vol/chunks/0/0/notes", "vol/meta/dump", "vol/juicefs_uuid", "vol/chunks/5/5/5_0_65536", "volume/chunks/0/0/77_0_5"] {
            world.memory.put(key, Bytes::from_static(b"x")).await.unwrap();
        }
        world
    }

    async fn write(&self, writes: Vec<Write>) {
        self.store.commit(&[], &writes, &[]).await.unwrap();
    }

    /// Adds a record.
    async fn name(&self, ino: Ino, slice: u64) {
        let record = SliceRecord { pos: 0, id: slice, size: SIZE, off: 0, len: SIZE };
        self.write(vec![Write::RPush(key::chunk(ino, 0), vec![encode_slice(&record)])]).await;
    }

    async fn object(&self, block: BlockId) {
        let key = format!("vol/{}", block.key(self.setting.hash_prefix()));
        self.memory.put(&key, Bytes::from(vec![1; block.len as usize])).await.unwrap();
    }

    async fn put(&self, slice: u64, size: u32) {
        for index in 0..block_count(size, BLOCK_BYTES) {
            self.object(BlockId::of(slice, size, index, BLOCK_BYTES).unwrap()).await;
        }
    }

    async fn gc(&self, delete: bool, compact: bool) -> Result<GcSummary, VolumeError> {
        let stores = Stores { store: self.store.clone(), setting: self.setting.clone(), objects: self.faults.clone() };
        // Everything is old enough.
        gc_in(stores, GcOptions { delete, compact, threads: 3, age_min_s: -60 }).await
    }

    fn bucket(&self) -> Bucket {
        let layout = Layout { hash_prefix: self.setting.hash_prefix() };
        Bucket { objects: self.faults.clone(), name: "vol".into(), layout, block_bytes: BLOCK_BYTES }
    }

    /// The slices that have blocks, and how many.
    fn slices(&self) -> Vec<(u64, usize)> {
        let mut counts = std::collections::BTreeMap::new();
        for block in self.memory.objects().keys().filter_map(|key| self.bucket().block_of(key)) {
            *counts.entry(block.slice).or_insert(0) += 1;
        }
        counts.into_iter().collect()
    }

    async fn list(&self, ino: Ino) -> usize {
        match self.store.read(&[Query::List(key::chunk(ino, 0))]).await.unwrap().remove(0) {
            Value::List(elements) => elements.len(),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn everything_is_told_apart_and_nothing_changes_without_being_asked() {
    for hash_prefix in [false, true] {
        let world = World::new(hash_prefix, 1).await;
        let before = (world.memory.objects(), world.slices());
        let found = world.gc(false, false).await.unwrap();
        let blocks = |slices: u64| Amount { count: 2 * slices, bytes: slices * u64::from(SIZE) };
        assert_eq!((found.scanned, found.valid), (19, 12), "slices 1, 4, 6, 7, 8 and 9 are in use");
        assert_eq!((found.pending, found.compacted), (blocks(1), blocks(1)));
        assert_eq!(found.leaked, Amount { count: 3, bytes: u64::from(SIZE) + 17 }, "slice 5, and what is no block of slice 1");
        assert_eq!((found.slices.count, found.skipped.count, found.compactable), (6, 0, 0));
        assert_eq!((world.memory.objects(), world.slices()), before);
        // All are too young.
        let stores = Stores { store: world.store.clone(), setting: world.setting.clone(), objects: world.memory.clone() };
        let young = gc_in(stores, GcOptions { delete: true, compact: false, threads: 1, age_min_s: 3600 }).await.unwrap();
        assert_eq!((young.leaked.count, young.valid), (0, 0));
        assert!(young.skipped.count > 0);
    }
}

#[tokio::test]
async fn only_what_is_of_no_use_is_deleted() {
    for (hash_prefix, trash_days) in [(false, 1), (true, 1), (false, 0)] {
        let world = World::new(hash_prefix, trash_days).await;
        let done = world.gc(true, false).await.unwrap();
        let delayed: &[(u64, usize)] = if trash_days > 0 { &[(2, 2)] } else { &[] };
        // Of slice 2, the reference goes with the trash.
        let expected = [&[(1, 2)], delayed, &[(4, 2), (6, 2), (8, 2)]].concat();
        assert_eq!(world.slices(), expected, "{hash_prefix} {trash_days}");
        assert_eq!((done.leaked.count, done.files.count, done.failed), (3, 1, 0));
        assert_eq!((done.deleted_slices, done.delayed.count), (1, 1 - trash_days));
        assert_eq!((world.list(Ino(6)).await, world.list(Ino(7)).await, world.list(Ino(8)).await), (1, 0, 1));
        let strangers =
            ["vol/chunks/0/0/notes", "vol/meta/dump", "vol/juicefs_uuid", "vol/chunks/5/5/5_0_65536", "volume/chunks/0/0/77_0_5"];
        assert!(strangers.iter().all(|key| world.memory.objects().contains_key(*key)));
        let again = world.gc(true, false).await.unwrap();
        assert_eq!((again.leaked.count, again.deleted_slices, world.slices()), (0, 0, expected));
    }
}

#[tokio::test]
async fn what_is_named_after_it_was_called_a_leak_stays() {
    let world = World::new(false, 1).await;
    let (bucket, mut summary) = (world.bucket(), GcSummary::default());
    let uses = Uses::of(world.store.as_ref(), bucket.layout).await.unwrap();
    let edge = SystemClock::new().now().sec + 60;
    let leaks = bucket.judge(&uses, edge, &mut summary).await.unwrap();
    assert_eq!(summary.leaked.count, 3);
    // A client that was cut off commits what it has stored long ago.
    world.name(Ino(2), 5).await;
    let again = Uses::of(world.store.as_ref(), bucket.layout).await.unwrap();
    assert_eq!(bucket.delete(leaks, &again, 2).await.unwrap(), 0);
    assert!(world.slices().contains(&(5, 2)) && world.slices().contains(&(1, 2)));
}

#[tokio::test]
async fn what_cannot_be_read_makes_nothing_a_leak() {
    for damage in [
        Write::RPush(key::chunk(Ino(2), 1), vec!["short".into()]),
        Write::HSet(key::DEL_SLICES, "1_1".into(), "short".into()),
        Write::HSet(key::SLICE_REF, "k5".into(), "1".into()),
    ] {
        let world = World::new(false, 36_500).await;
        world.write(vec![damage]).await;
        assert!(world.gc(true, false).await.is_err());
        assert!(world.slices().contains(&(5, 2)));
    }
    let world = World::new(false, 1).await;
    world.faults.inject(Request::List, 0, 1, Fault::Fail(ObjectError::Denied("no".into())));
    assert!(world.gc(true, false).await.unwrap_err().to_string().contains("list all blocks"));
    assert!(world.slices().contains(&(5, 2)));
    // Some leaks cannot be deleted: all others are, and it is told.
    world.faults.inject(Request::Delete, 1, 1, Fault::Fail(ObjectError::Denied("no".into())));
    assert_eq!(world.gc(true, false).await.unwrap().failed, 1);
}

#[tokio::test]
async fn chunks_are_compacted() {
    let world = World::new(false, 0).await;
    for slice in [11, 12, 13] {
        world.put(slice, SIZE).await;
        world.name(Ino(2), slice).await;
    }
    assert_eq!(world.gc(false, false).await.unwrap().compactable, 1);
    let done = world.gc(false, true).await.unwrap();
    assert_eq!((done.compacted_chunks.count, done.compacted_records, done.compactable), (1, 4, 0));
    assert_eq!(world.list(Ino(2)).await, 1);
    assert!(!world.slices().iter().any(|(slice, _)| [11, 12, 13].contains(slice)), "replaced slices are gone");
}
