//! Staged blocks: what is stored where at which moment, and what the next process makes of it.

use crate::block::{BlockConfig, BlockError, BlockStore, Codec, Tuning};
use crate::cache::{CacheOptions, DiskCache, DiskCacheConfig, Hours, MemoryCache, StagingOptions};
use crate::object::fault::{Fault, FaultStore, Request};
use crate::object::memory::MemoryStore;
use crate::object::{ObjectError, ObjectStore};
use crate::types::{BlockId, BoxFuture, Errno, FrameSource, SliceId};
use bytes::Bytes;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::Semaphore;

const BLOCK_BYTES: u32 = 256 << 10;
const ID: BlockId = BlockId { slice: 1, index: 0, len: BLOCK_BYTES };
const TAIL: BlockId = BlockId { slice: 1, index: 1, len: 100_000 };

struct NoFrames;

impl FrameSource for NoFrames {
    fn frame(&self, _id: SliceId) -> BoxFuture<'_, Result<Option<Bytes>, Errno>> {
        Box::pin(async { Ok(None) })
    }
}

fn pattern(len: u32) -> Bytes {
    (0..len).map(|n| (n % 251) as u8).collect()
}

fn at_once() -> StagingOptions {
    StagingOptions { below_bytes: 0, writes_max: 10, delay: Duration::ZERO, hours: None }
}

/// A bucket and a cache directory, which outlive the processes that use them.
struct Bench {
    temp: TempDir,
    memory: Arc<MemoryStore>,
    faults: Arc<FaultStore>,
}

impl Bench {
    fn new() -> Bench {
        let memory = Arc::new(MemoryStore::new());
        Bench { temp: tempfile::tempdir().unwrap(), faults: Arc::new(FaultStore::new(memory.clone())), memory }
    }

    fn process(&self, staging: Option<StagingOptions>) -> Arc<BlockStore> {
        self.process_with(CacheOptions { free_ratio: 0.0, staging, ..CacheOptions::default() })
    }

    fn process_with(&self, options: CacheOptions) -> Arc<BlockStore> {
        let dirs = [self.temp.path().into()];
        let config = DiskCacheConfig {
            uuid: "U",
            hash_prefix: false,
            block_bytes: BLOCK_BYTES,
            queue_bytes: 16 << 20,
            options: &options,
            dirs: &dirs,
        };
        BlockStore::new(BlockConfig {
            objects: self.faults.clone(),
            prefix: "vol".into(),
            hash_prefix: false,
            block_bytes: BLOCK_BYTES,
            codec: Codec::default(),
            cache: MemoryCache::new(0),
            disk: Some(Arc::new(DiskCache::open(&config).unwrap())),
            frames: Arc::new(NoFrames),
            tuning: Tuning { retries: Some(0), ..Tuning::default() },
        })
    }

    fn staged(&self, block: &BlockId) -> PathBuf {
        self.temp.path().join("U/rawstaging").join(block.key(false))
    }

    fn cached(&self, block: &BlockId) -> PathBuf {
        self.temp.path().join("U/raw").join(block.key(false))
    }
}

/// Everything that is due.
async fn upload_due(blocks: &BlockStore) {
    for block in blocks.staging().unwrap().due(100).blocks {
        blocks.upload_staged(block).await.unwrap();
    }
}

#[tokio::test]
async fn a_block_is_a_file_with_two_names_and_then_an_object() {
    let bench = Bench::new();
    let blocks = bench.process(Some(at_once()));
    for id in [ID, TAIL] {
        blocks.store(id, pattern(id.len)).await.unwrap();
        let meta = std::fs::metadata(bench.staged(&id)).unwrap();
        assert_eq!(meta.ino(), std::fs::metadata(bench.cached(&id)).unwrap().ino());
        // With a checksum for each 32 KiB, as the other client writes it.
        assert_eq!(meta.len(), u64::from(id.len) + 4 * u64::from(id.len.div_ceil(32 << 10)));
        assert_eq!(blocks.fetch(id).await, Ok(pattern(id.len)));
        assert_eq!(blocks.fetch_range(id, 70_000..70_010).await.unwrap(), pattern(id.len).slice(70_000..70_010));
    }
    assert!(bench.memory.objects().is_empty());
    let stats = blocks.staging().unwrap().stats();
    assert_eq!((stats.blocks, stats.bytes), (2, u64::from(ID.len + TAIL.len)));
    upload_due(&blocks).await;
    for id in [ID, TAIL] {
        assert!(!bench.staged(&id).exists());
        assert_eq!(std::fs::metadata(bench.cached(&id)).unwrap().nlink(), 1);
        assert_eq!(bench.memory.get(&blocks.key(&id), None).await.unwrap(), pattern(id.len));
    }
    let stats = blocks.staging().unwrap().stats();
    assert_eq!((stats.blocks, stats.bytes, stats.oldest_seconds, stats.written_bytes), (0, 0, 0, u64::from(ID.len + TAIL.len)));
    assert_eq!(bench.faults.calls(Request::Head), 0, "nobody else can have stored them");
}

#[tokio::test]
async fn a_staged_block_is_read_although_the_cache_has_lost_it() {
    let bench = Bench::new();
    let blocks = bench.process(Some(at_once()));
    blocks.store(ID, pattern(ID.len)).await.unwrap();
    std::fs::remove_file(bench.cached(&ID)).unwrap();
    assert_eq!(blocks.fetch_range(ID, 70_000..70_010).await.unwrap(), pattern(ID.len).slice(70_000..70_010));
    assert_eq!(blocks.fetch(ID).await, Ok(pattern(ID.len)));
    assert_eq!(bench.faults.calls(Request::Get), 0);
}

#[tokio::test]
async fn what_a_dead_process_has_left_is_uploaded_by_the_next_one_without_the_option() {
    let bench = Bench::new();
    let dead = bench.process(Some(at_once()));
    dead.store(ID, pattern(ID.len)).await.unwrap();
    dead.store(TAIL, pattern(TAIL.len)).await.unwrap();
    // It died after the upload of this one, and before its file was removed: the object is not written again, whatever it is.
    bench.memory.put(&dead.key(&TAIL), Bytes::from_static(b"later")).await.unwrap();
    drop(dead);
    let unfinished = bench.staged(&ID).with_file_name("1_2_3.0123.tmp");
    std::fs::write(&unfinished, "x").unwrap();
    let next = bench.process(None);
    assert_eq!(next.staging().unwrap().scan().unwrap(), 2);
    assert_eq!(next.staging().unwrap().scan().unwrap(), 0, "they are known");
    upload_due(&next).await;
    assert_eq!(bench.memory.get(&next.key(&ID), None).await.unwrap(), pattern(ID.len));
    assert_eq!(bench.memory.get(&next.key(&TAIL), None).await.unwrap(), "later");
    assert!(!bench.staged(&ID).exists() && !bench.staged(&TAIL).exists());
    assert!(unfinished.exists(), "somebody may be writing it");
    next.store(BlockId { slice: 9, ..ID }, pattern(ID.len)).await.unwrap();
    assert_eq!(next.staging().unwrap().stats().blocks, 0, "nothing is staged without the option");
}

#[tokio::test]
async fn blocks_of_a_clock_that_was_ahead_are_uploaded() {
    let bench = Bench::new();
    let dead = bench.process(Some(at_once()));
    dead.store(ID, pattern(ID.len)).await.unwrap();
    drop(dead);
    let tomorrow = std::time::SystemTime::now() + Duration::from_secs(86_400);
    std::fs::File::options().write(true).open(bench.staged(&ID)).unwrap().set_modified(tomorrow).unwrap();
    let next = bench.process(Some(StagingOptions { delay: Duration::from_secs(1), ..at_once() }));
    next.staging().unwrap().scan().unwrap();
    assert_eq!(next.staging().unwrap().due(10).blocks, [], "as old as if it had been staged now");
    next.staging().unwrap().hurry();
    upload_due(&next).await;
    assert_eq!(bench.memory.objects().len(), 1);
}

#[tokio::test]
async fn deleted_blocks_leave_no_object() {
    let bench = Bench::new();
    let blocks = bench.process(Some(at_once()));
    let size = ID.len + TAIL.len;
    blocks.store(ID, pattern(ID.len)).await.unwrap();
    blocks.store(TAIL, pattern(TAIL.len)).await.unwrap();
    // One is on its way when the slice is deleted.
    let gate = Arc::new(Semaphore::new(0));
    bench.faults.inject(Request::Put, 0, 1, Fault::Hold(gate.clone()));
    let upload = tokio::spawn({
        let blocks = blocks.clone();
        async move { blocks.upload_staged(ID).await }
    });
    while bench.faults.calls(Request::Put) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(blocks.delete_slices(&[(1, size)]).await, [Ok(())]);
    gate.add_permits(1);
    upload.await.unwrap().unwrap();
    upload_due(&blocks).await;
    assert!(bench.memory.objects().is_empty());
    assert!(!bench.staged(&ID).exists() && !bench.staged(&TAIL).exists());
}

#[tokio::test]
async fn a_failed_upload_is_put_off_and_nothing_is_lost() {
    let bench = Bench::new();
    let blocks = bench.process(Some(at_once()));
    blocks.store(ID, pattern(ID.len)).await.unwrap();
    bench.faults.inject(Request::Put, 0, 1, Fault::Fail(ObjectError::Denied("keys".into())));
    assert!(matches!(blocks.upload_staged(ID).await, Err(BlockError::Store(_))));
    let staging = blocks.staging().unwrap();
    staging.put_off(&ID);
    let due = staging.due(10);
    assert!(due.blocks.is_empty() && due.next.is_some());
    staging.hurry();
    assert!(staging.due(10).blocks.is_empty(), "in a hurry it is not tried without a pause");
    assert_eq!(blocks.fetch(ID).await, Ok(pattern(ID.len)));
    blocks.upload_staged(ID).await.unwrap();
    assert_eq!(bench.memory.objects().len(), 1);
}

#[tokio::test]
async fn damaged_blocks_are_not_uploaded() {
    let bench = Bench::new();
    let blocks = bench.process(Some(at_once()));
    blocks.store(ID, pattern(ID.len)).await.unwrap();
    let mut bytes = std::fs::read(bench.staged(&ID)).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(bench.staged(&ID), &bytes).unwrap();
    assert!(matches!(blocks.upload_staged(ID).await, Err(BlockError::Damaged { .. })));
    assert!(matches!(blocks.fetch(ID).await, Err(BlockError::Damaged { .. })));
    assert!(bench.staged(&ID).exists() && bench.memory.objects().is_empty());
}

#[tokio::test]
async fn what_does_not_fit_is_uploaded_directly() {
    let bench = Bench::new();
    let options = CacheOptions { free_ratio: 0.0, size_bytes: Some(400_000), staging: Some(at_once()), ..CacheOptions::default() };
    let blocks = bench.process_with(options);
    blocks.store(ID, pattern(ID.len)).await.unwrap();
    let second = BlockId { slice: 2, ..ID };
    blocks.store(second, pattern(ID.len)).await.unwrap();
    assert!(bench.staged(&ID).exists() && !bench.staged(&second).exists());
    assert!(bench.memory.objects().contains_key(&blocks.key(&second)));
    // There is room again.
    upload_due(&blocks).await;
    let third = BlockId { slice: 3, ..ID };
    blocks.store(third, pattern(ID.len)).await.unwrap();
    assert!(bench.staged(&third).exists());

    let below = bench.process(Some(StagingOptions { below_bytes: u64::from(BLOCK_BYTES), ..at_once() }));
    let (large, small) = (BlockId { slice: 4, ..ID }, BlockId { slice: 4, ..TAIL });
    below.store(large, pattern(large.len)).await.unwrap();
    below.store(small, pattern(small.len)).await.unwrap();
    assert!(!bench.staged(&large).exists() && bench.staged(&small).exists());

    let full = bench.process_with(CacheOptions { free_ratio: 0.9999, staging: Some(at_once()), ..CacheOptions::default() });
    let last = BlockId { slice: 5, ..ID };
    full.store(last, pattern(last.len)).await.unwrap();
    assert!(!bench.staged(&last).exists() && bench.memory.objects().contains_key(&full.key(&last)));
}

#[tokio::test]
async fn delays_and_hours_keep_blocks_back_until_somebody_is_in_a_hurry() {
    let bench = Bench::new();
    let hour = crate::env::Clock::hour(&crate::env::SystemClock::new());
    let elsewhere = Hours { start: (hour + 2) % 24, end: (hour + 3) % 24 };
    for options in
        [StagingOptions { delay: Duration::from_secs(3600), ..at_once() }, StagingOptions { hours: Some(elsewhere), ..at_once() }]
    {
        let blocks = bench.process(Some(options));
        blocks.store(ID, pattern(ID.len)).await.unwrap();
        let staging = blocks.staging().unwrap();
        let due = staging.due(10);
        assert!(due.blocks.is_empty() && due.next.is_some());
        assert_eq!(staging.settled(Duration::from_secs(3600)).await.blocks, 1, "it is not waited for");
        staging.hurry();
        upload_due(&blocks).await;
        assert_eq!(staging.settled(Duration::from_secs(3600)).await.blocks, 0);
        bench.memory.delete(&blocks.key(&ID)).await.unwrap();
    }
}
