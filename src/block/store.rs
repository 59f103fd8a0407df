//! `BlockStore`: the blocks of a volume, through the cache, the frames beside the metadata, and the object store.

use crate::block::flight::Flights;
use crate::block::transfers::Transfers;
use crate::block::{BlockError, Codec, Tuning};
use crate::cache::{DiskCache, MemoryCache};
use crate::env::join;
use crate::object::{ObjectError, ObjectStore};
use crate::types::{BlockId, BoxFuture, FRAME_BYTES_MAX, FrameSource, SliceId, block_count};
use bytes::Bytes;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;
use tracing::error;

mod staged;

/// A range of at most this part of a block that does not begin the block is fetched alone: such a read jumps about, and the rest of the
/// block may never be asked for.
const RANGE_PART_MAX: u32 = 4;
/// Blocks fetched ahead of one reader if nothing else is asked for (data §3).
const READAHEAD_BLOCKS: u64 = 8;
/// Part of the memory cache for what is fetched ahead and not read yet. The rest keeps what was read or written lately.
const AHEAD_PART: u64 = 2;
/// Blocks that wait to be fetched whole, for each that is being fetched, and at least (data §4.3).
const PREFETCHES_QUEUED: usize = 4;
/// See `PREFETCHES_QUEUED`.
const PREFETCHES_QUEUED_MIN: usize = 10;

/// What a `BlockStore` is made of.
pub struct BlockConfig {
    /// The bucket.
    pub objects: Arc<dyn ObjectStore>,
    /// The volume's name: the first part of every key.
    pub prefix: String,
    /// How keys are spread (data §1.3).
    pub hash_prefix: bool,
    /// Size of a full block.
    pub block_bytes: u32,
    /// Between blocks and objects.
    pub codec: Codec,
    /// Decoded blocks.
    pub cache: MemoryCache,
    /// Decoded blocks on the disks of this host.
    pub disk: Option<Arc<DiskCache>>,
    /// Where small blocks are.
    pub frames: Arc<dyn FrameSource>,
    /// How blocks are carried.
    pub tuning: Tuning,
}

/// The blocks of one volume.
pub struct BlockStore {
    config: BlockConfig,
    codec: Arc<Codec>,
    transfers: Transfers,
    flights: Flights,
    /// Blocks of which a part was read, that are to be fetched whole.
    prefetched: Mutex<HashSet<BlockId>>,
    prefetches: Semaphore,
}

impl BlockStore {
    /// Over this bucket.
    pub fn new(mut config: BlockConfig) -> Arc<BlockStore> {
        let codec = Arc::new(std::mem::take(&mut config.codec));
        let transfers = Transfers::new(config.objects.clone(), config.tuning.clone());
        let prefetches = Semaphore::new(config.tuning.prefetches_max);
        let (flights, prefetched) = (Flights::default(), Mutex::default());
        Arc::new(BlockStore { config, codec, transfers, flights, prefetched, prefetches })
    }

    /// Size of a full block.
    pub fn block_bytes(&self) -> u32 {
        self.config.block_bytes
    }

    /// Bytes that are fetched ahead of one reader at most.
    pub fn readahead_bytes(&self) -> u64 {
        self.config.tuning.readahead_bytes.unwrap_or(READAHEAD_BLOCKS * u64::from(self.config.block_bytes))
    }

    /// Bytes that may be fetched ahead of all readers and not be read yet: no more than memory keeps until then.
    pub fn ahead_bytes(&self) -> u64 {
        self.config.cache.capacity_bytes() / AHEAD_PART
    }

    /// Bytes of blocks in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.config.cache.used_bytes()
    }

    /// Whether the objects are on a server, and not on a disk of this host.
    pub fn on_server(&self) -> bool {
        self.config.tuning.on_server
    }

    /// Whether blocks nobody has asked for are fetched.
    pub fn fetches_ahead(&self) -> bool {
        self.config.tuning.prefetches_max > 0
    }

    /// Objects removed at once; 0 = none are to be removed by this process.
    pub fn deletes_max(&self) -> usize {
        self.config.tuning.deletes_max
    }

    /// The frame of a block: the bytes of its object. Without compression and encryption they are the block itself.
    pub async fn encode(&self, data: &Bytes) -> Result<Bytes, BlockError> {
        let block = data.clone();
        self.coding(data.len(), move |codec| codec.encode(&block)).await.map_err(|why| {
            error!(why, "a block cannot be encoded");
            BlockError::Encode(why)
        })
    }

    /// The block of a frame.
    async fn decode(&self, block: &BlockId, frame: Bytes) -> Result<Bytes, BlockError> {
        let len = block.len;
        let decoded = self.coding(len as usize, move |codec| codec.decode(frame, len)).await;
        decoded.map_err(|why| self.damaged(self.key(block), why))
    }

    /// Runs `work` on a block of `len` bytes, on a thread of its own if it takes long.
    async fn coding<F>(&self, len: usize, work: F) -> Result<Bytes, String>
    where
        F: FnOnce(&Codec) -> Result<Bytes, String> + Send + 'static,
    {
        if self.codec.is_quick(len) {
            return work(&self.codec);
        }
        let codec = Arc::clone(&self.codec);
        tokio::task::spawn_blocking(move || work(&codec)).await.unwrap_or_else(|e| Err(format!("the coding thread ended: {e}")))
    }

    /// Stores a block in the bucket, durable when it returns. `data` is exactly the block.
    pub async fn upload(&self, block: BlockId, data: Bytes) -> Result<(), BlockError> {
        let key = self.key(&block);
        if data.len() as u64 != u64::from(block.len) {
            return Err(self.damaged(key, format!("{} bytes were to be stored", data.len())));
        }
        let _slot = self.transfers.upload_slot().await;
        let _room = if self.codec.is_plain() { None } else { Some(self.transfers.frame_room(data.len()).await) };
        let frame = self.encode(&data).await?;
        match self.transfers.put(&key, &frame).await {
            Ok(()) => {
                self.keep_written(block, data);
                Ok(())
            }
            Err(e) => Err(self.failed("upload", key, e)),
        }
    }

    /// Stores a frame as the object of its block, the only one of `slice`; durable when it returns. `size` is that of the slice if it is known.
    pub async fn store_frame(&self, slice: SliceId, size: Option<u32>, frame: Bytes) -> Result<(), BlockError> {
        let size = match size {
            Some(size) => size,
            None => self.size_of(slice, frame.clone()).await?,
        };
        let key = self.key(&BlockId { slice, index: 0, len: size });
        let _slot = self.transfers.upload_slot().await;
        self.transfers.put(&key, &frame).await.map_err(|e| self.failed("upload", key.clone(), e))
    }

    async fn size_of(&self, slice: SliceId, frame: Bytes) -> Result<u32, BlockError> {
        let codec = Arc::clone(&self.codec);
        let size = move || codec.block_len(&frame, FRAME_BYTES_MAX);
        let size = if self.codec.is_quick(FRAME_BYTES_MAX as usize) {
            size()
        } else {
            tokio::task::spawn_blocking(size).await.unwrap_or_else(|e| Err(format!("the coding thread ended: {e}")))
        };
        size.map_err(|why| self.damaged(format!("slice {slice}"), why))
    }

    /// Remembers a small block whose frame has just been committed.
    pub fn note_frame(&self, slice: SliceId, data: Bytes) {
        if let Ok(len) = u32::try_from(data.len()) {
            self.keep_written(BlockId { slice, index: 0, len }, data);
        }
    }

    fn keep_written(&self, block: BlockId, data: Bytes) {
        if let Some(disk) = &self.config.disk {
            disk.put_written(&block, &data);
        }
        self.config.cache.insert(block, data);
    }

    async fn on_disk(&self, block: &BlockId, range: Range<u32>) -> Option<Bytes> {
        self.config.disk.as_ref()?.get(block, range).await
    }

    /// The block, if it is in memory.
    pub fn cached(&self, block: &BlockId) -> Option<Bytes> {
        self.config.cache.get(block)
    }

    /// Whether the block is in the disk cache.
    pub fn is_on_disk(&self, block: &BlockId) -> bool {
        self.config.disk.as_ref().is_some_and(|disk| disk.contains(block))
    }

    /// Takes the block out of the caches. It stays where it is stored.
    pub fn evict(&self, block: &BlockId) {
        self.config.cache.remove(block);
        if let Some(disk) = &self.config.disk {
            disk.remove(block);
        }
    }

    /// Whether the block is in memory, or known to be on a disk of this host.
    pub fn is_near(&self, block: &BlockId) -> bool {
        self.cached(block).is_some() || self.config.disk.as_ref().is_some_and(|disk| disk.contains(block) || disk.staging().contains(block))
    }

    /// Brings the block into memory for who is about to read it, and will see what is wrong with it.
    pub async fn fetch_ahead(&self, block: BlockId) {
        let _ = self.fetch(block).await;
    }

    /// The whole block, from memory, the frames, the disk or the bucket, whichever has it first.
    pub async fn fetch(&self, block: BlockId) -> Result<Bytes, BlockError> {
        if let Some(bytes) = self.near(&block).await? {
            return Ok(bytes);
        }
        self.flights.join(block, self.download(block)).await
    }

    /// Bytes `range` of the block. A small part of a large block is fetched alone, unless the block is coming anyway.
    pub async fn fetch_range(self: &Arc<Self>, block: BlockId, range: Range<u32>) -> Result<Bytes, BlockError> {
        if range.start > range.end || range.end > block.len {
            return Err(self.damaged(self.key(&block), format!("bytes {}..{} were asked for", range.start, range.end)));
        }
        // A small read of a block on the disk is that read and no more.
        let little = range.end - range.start <= block.len / RANGE_PART_MAX && block.len > FRAME_BYTES_MAX;
        if little
            && self.cached(&block).is_none()
            && !self.flights.under_way(&block)
            && let Some(bytes) = self.on_disk(&block, range.clone()).await
        {
            return Ok(bytes);
        }
        // A part of a compressed or encrypted object is of no use.
        let part = little && range.start > 0 && self.codec.is_plain() && !self.is_staged(&block);
        if !part || self.flights.under_way(&block) {
            let whole = self.fetch(block).await?;
            return Ok(whole.slice(range.start as usize..range.end as usize));
        }
        if let Some(whole) = self.cached(&block) {
            return Ok(whole.slice(range.start as usize..range.end as usize));
        }
        let bytes = self.get_part(&block, range).await?;
        self.prefetch(block);
        Ok(bytes)
    }

    /// Fetches a block whole, nobody waiting, because a part of it was read: others may follow. What comes while too many wait is left out.
    fn prefetch(self: &Arc<Self>, block: BlockId) {
        let at_once = self.config.tuning.prefetches_max;
        {
            let mut queue = self.prefetched.lock().expect("no code under it panics");
            if at_once == 0 || queue.len() >= (PREFETCHES_QUEUED * at_once).max(PREFETCHES_QUEUED_MIN) || !queue.insert(block) {
                return;
            }
        }
        let blocks = self.clone();
        tokio::spawn(async move {
            let _slot = blocks.prefetches.acquire().await.expect("never closed");
            blocks.fetch_ahead(block).await;
            blocks.prefetched.lock().expect("no code under it panics").remove(&block);
        });
    }

    /// Removes the objects of slices that nothing names any more, and what is cached of them. Answers for each.
    pub async fn delete_slices(&self, slices: &[(SliceId, u32)]) -> Vec<Result<(), BlockError>> {
        let (mut keys, mut owners, mut blocks) = (Vec::new(), Vec::new(), Vec::new());
        for (at, &(id, size)) in slices.iter().enumerate() {
            for index in 0..block_count(size, self.config.block_bytes) {
                let Some(block) = BlockId::of(id, size, index, self.config.block_bytes) else { break };
                self.config.cache.remove(&block);
                if let Some(disk) = &self.config.disk {
                    disk.remove(&block);
                }
                keys.push(self.key(&block));
                owners.push(at);
                blocks.push(block);
            }
        }
        // Before the objects: one that is being uploaded is deleted by who uploads it.
        if let Some(staging) = self.staging() {
            staging.forget(&blocks).await;
        }
        let batches = keys.chunks(self.transfers.deletes_at_once()).map(|keys| -> BoxFuture<'_, Result<_, std::convert::Infallible>> {
            Box::pin(async move { Ok(self.transfers.delete_all(keys).await) })
        });
        let Ok(told) = join(batches.collect(), self.deletes_max().max(1)).await;
        let mut outcomes = vec![Ok(()); slices.len()];
        for ((key, at), outcome) in keys.iter().zip(owners).zip(told.into_iter().flatten()) {
            if let Err(error) = outcome {
                outcomes[at] = Err(self.failed("delete", key.clone(), error));
            }
        }
        outcomes
    }

    /// The object of a block.
    pub fn key(&self, block: &BlockId) -> String {
        format!("{}/{}", self.config.prefix, block.key(self.config.hash_prefix))
    }

    /// From memory or the frames. `None`: it should be in the bucket.
    async fn near(&self, block: &BlockId) -> Result<Option<Bytes>, BlockError> {
        if let Some(bytes) = self.cached(block) {
            return Ok(Some(bytes));
        }
        // Only blocks that make up a slice have frames; the first block of a longer one is merely not found there.
        if block.index > 0 || block.len > FRAME_BYTES_MAX {
            return Ok(None);
        }
        let Some(frame) = self.config.frames.frame(block.slice).await.map_err(BlockError::Frames)? else { return Ok(None) };
        let bytes = self.decode(block, frame).await?;
        self.config.cache.insert(*block, bytes.clone());
        Ok(Some(bytes))
    }

    async fn download(&self, block: BlockId) -> Result<Bytes, BlockError> {
        // A flight for the same block may have landed between the look into the cache and the start of this one.
        if let Some(bytes) = self.cached(&block) {
            return Ok(bytes);
        }
        if let Some(bytes) = self.on_disk(&block, 0..block.len).await {
            self.config.cache.insert(block, bytes.clone());
            return Ok(bytes);
        }
        if let Some(bytes) = self.staged(block).await? {
            self.config.cache.insert(block, bytes.clone());
            return Ok(bytes);
        }
        let bytes = self.get_whole(&block).await?;
        if let Some(disk) = &self.config.disk {
            disk.put_fetched(&block, &bytes);
        }
        self.config.cache.insert(block, bytes.clone());
        Ok(bytes)
    }

    /// The decoded object. The slot is held until then, so that frames in memory are bounded like downloads are.
    async fn get_whole(&self, block: &BlockId) -> Result<Bytes, BlockError> {
        let _slot = self.transfers.download_slot(block.len).await;
        let frame = self.get_object(block, None).await?;
        self.decode(block, frame).await
    }

    async fn get_part(&self, block: &BlockId, range: Range<u32>) -> Result<Bytes, BlockError> {
        let expected = range.end - range.start;
        let _slot = self.transfers.download_slot(expected).await;
        let bytes = self.get_object(block, Some(range)).await?;
        if bytes.len() as u64 != u64::from(expected) {
            return Err(self.damaged(self.key(block), format!("{} bytes instead of {expected}", bytes.len())));
        }
        Ok(bytes)
    }

    async fn get_object(&self, block: &BlockId, range: Option<Range<u32>>) -> Result<Bytes, BlockError> {
        let key = self.key(block);
        let bytes = range.as_ref().map_or(block.len, |range| range.end - range.start);
        let range = range.map(|range| u64::from(range.start)..u64::from(range.end));
        match self.transfers.get(&key, range.clone(), bytes.into()).await {
            Ok(bytes) => Ok(bytes),
            Err(ObjectError::Missing) => Err(BlockError::Missing { key }),
            // The range lies within the block, so an object without it is too short.
            Err(ObjectError::Invalid(why)) if range.is_some() => Err(self.damaged(key, why)),
            Err(ObjectError::Damaged(why)) => Err(self.damaged(key, why)),
            Err(e) => Err(self.failed("fetch", key, e)),
        }
    }

    fn damaged(&self, key: String, why: String) -> BlockError {
        error!(key, why, "a block is damaged");
        BlockError::Damaged { key, why }
    }

    fn failed(&self, what: &'static str, key: String, error: ObjectError) -> BlockError {
        error!(what, key, "{error}");
        BlockError::Store(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Compression, Encryption};
    use crate::cache::{CacheOptions, DiskCacheConfig};
    use crate::object::fault::{Fault, FaultStore, Request};
    use crate::object::memory::MemoryStore;
    use crate::types::Errno;
    use std::collections::HashMap;
    use std::time::Duration;

    const BLOCK_BYTES: u32 = 256 << 10;

    #[derive(Default)]
    struct Frames(Mutex<HashMap<SliceId, Bytes>>);

    impl FrameSource for Frames {
        fn frame(&self, id: SliceId) -> BoxFuture<'_, Result<Option<Bytes>, Errno>> {
            let frame = self.0.lock().unwrap().get(&id).cloned();
            Box::pin(async move { Ok(frame) })
        }
    }

    struct Bench {
        blocks: Arc<BlockStore>,
        faults: Arc<FaultStore>,
        memory: Arc<MemoryStore>,
        frames: Arc<Frames>,
    }

    fn bench(cache_bytes: u64) -> Bench {
        bench_with(cache_bytes, Codec::default(), None)
    }

    fn coded_bench(cache_bytes: u64, codec: Codec) -> Bench {
        bench_with(cache_bytes, codec, None)
    }

    fn bench_with(cache_bytes: u64, codec: Codec, disk: Option<Arc<DiskCache>>) -> Bench {
        let memory = Arc::new(MemoryStore::new());
        let faults = Arc::new(FaultStore::new(memory.clone()));
        let frames = Arc::new(Frames::default());
        let blocks = BlockStore::new(BlockConfig {
            objects: faults.clone(),
            prefix: "vol".into(),
            hash_prefix: false,
            block_bytes: BLOCK_BYTES,
            codec,
            cache: MemoryCache::new(cache_bytes),
            disk,
            frames: frames.clone(),
            tuning: Tuning { uploads_max: 2, downloads_max: 2, ..Tuning::default() },
        });
        Bench { blocks, faults, memory, frames }
    }

    fn pattern(len: u32) -> Bytes {
        (0..len).map(|n| (n % 251) as u8).collect()
    }

    fn block(slice: SliceId, len: u32) -> BlockId {
        BlockId { slice, index: 0, len }
    }

    #[tokio::test]
    async fn a_block_taken_for_a_leak_is_stored_again_or_missed() {
        for cache_bytes in [0, 64 << 20] {
            let Bench { blocks, memory, .. } = bench(cache_bytes);
            let (id, data) = (block(7, BLOCK_BYTES), pattern(BLOCK_BYTES));
            blocks.upload(id, data.clone()).await.unwrap();
            blocks.restore_if_gone(id).await.expect("is there");
            memory.delete(&blocks.key(&id)).await.expect("deleted");
            let outcome = blocks.restore_if_gone(id).await;
            assert_eq!((outcome.is_ok(), memory.objects().len()), if cache_bytes == 0 { (false, 0) } else { (true, 1) }, "{outcome:?}");
        }
    }

    #[tokio::test]
    async fn what_is_uploaded_comes_back() {
        for cache_bytes in [0, 64 << 20] {
            let Bench { blocks, faults, memory, .. } = bench(cache_bytes);
            let (id, data) = (block(1_234_567, BLOCK_BYTES), pattern(BLOCK_BYTES));
            blocks.upload(id, data.clone()).await.unwrap();
            assert_eq!(memory.objects().keys().collect::<Vec<_>>(), ["vol/chunks/1/1234/1234567_0_262144"]);
            assert_eq!(blocks.fetch(id).await, Ok(data.clone()));
            assert_eq!(blocks.fetch_range(id, 1000..3000).await, Ok(data.slice(1000..3000)));
            assert_eq!(blocks.fetch_range(id, 0..BLOCK_BYTES).await, Ok(data));
            assert_eq!(faults.calls(Request::Get), if cache_bytes == 0 { 3 } else { 0 });
            assert!(matches!(blocks.fetch_range(id, 5..BLOCK_BYTES + 1).await, Err(BlockError::Damaged { .. })));
            assert!(blocks.upload(id, pattern(3)).await.is_err());
        }
    }

    #[tokio::test]
    async fn small_blocks_come_from_frames_first() {
        let Bench { blocks, faults, frames, .. } = bench(1 << 20);
        let data = pattern(FRAME_BYTES_MAX);
        frames.0.lock().unwrap().insert(7, data.clone());
        assert_eq!(blocks.fetch(block(7, FRAME_BYTES_MAX)).await, Ok(data.clone()));
        assert_eq!(blocks.fetch_range(block(7, FRAME_BYTES_MAX), 9..12).await, Ok(data.slice(9..12)));
        blocks.note_frame(8, pattern(10));
        assert_eq!(blocks.fetch(block(8, 10)).await, Ok(pattern(10)));
        assert_eq!(faults.calls(Request::Get), 0);
        frames.0.lock().unwrap().insert(9, pattern(3));
        assert!(matches!(blocks.fetch(block(9, 4)).await, Err(BlockError::Damaged { .. })), "a frame of another length");
        assert_eq!(blocks.fetch(block(10, 4)).await, Err(BlockError::Missing { key: "vol/chunks/0/0/10_0_4".into() }));
    }

    #[tokio::test]
    async fn damage_is_found_and_not_cached() {
        let Bench { blocks, faults, memory, .. } = bench(1 << 20);
        let id = block(1, BLOCK_BYTES);
        memory.put(&blocks.key(&id), pattern(BLOCK_BYTES)).await.unwrap();
        faults.inject(Request::Get, 0, 1, Fault::Short(100));
        assert!(matches!(blocks.fetch(id).await, Err(BlockError::Damaged { .. })), "short");
        assert_eq!(blocks.fetch(id).await, Ok(pattern(BLOCK_BYTES)), "found whole the next time");
        let id = block(2, BLOCK_BYTES);
        memory.put(&blocks.key(&id), pattern(BLOCK_BYTES + 1)).await.unwrap();
        assert!(matches!(blocks.fetch(id).await, Err(BlockError::Damaged { .. })), "long");
        memory.put(&blocks.key(&id), pattern(1000)).await.unwrap();
        for range in [900..1100, 2000..2100] {
            assert!(matches!(blocks.fetch_range(id, range).await, Err(BlockError::Damaged { .. })), "a range of a short object");
        }
    }

    #[tokio::test]
    async fn the_disk_answers_before_the_bucket() {
        let temp = tempfile::tempdir().unwrap();
        let open = || {
            let config = DiskCacheConfig {
                uuid: "U",
                hash_prefix: false,
                block_bytes: BLOCK_BYTES,
                queue_bytes: 16 << 20,
                options: &CacheOptions { free_ratio: 0.0, ..CacheOptions::default() },
                dirs: &[temp.path().into()],
            };
            Arc::new(DiskCache::open(&config).unwrap())
        };
        let disk = open();
        let Bench { blocks, faults, memory, .. } = bench_with(0, Codec::default(), Some(disk.clone()));
        let (whole, tail) = (block(1, BLOCK_BYTES), BlockId { slice: 1, index: 1, len: 100_000 });
        for id in [whole, tail] {
            blocks.upload(id, pattern(id.len)).await.unwrap();
        }
        disk.flush(Duration::from_secs(10));
        assert!(!disk.contains(&whole) && disk.contains(&tail), "full blocks are kept once they are read");
        assert_eq!(blocks.fetch(whole).await, Ok(pattern(BLOCK_BYTES)));
        disk.flush(Duration::from_secs(10));
        assert_eq!(faults.calls(Request::Get), 1);
        // On a busy machine a disk read may be given up, so the bucket may be asked again: bytes are right in any case.
        for _ in 0..20 {
            assert_eq!(blocks.fetch(whole).await, Ok(pattern(BLOCK_BYTES)));
            assert_eq!(blocks.fetch_range(whole, 0..5000).await, Ok(pattern(BLOCK_BYTES).slice(..5000)));
            assert_eq!(blocks.fetch_range(whole, 9000..9500).await, Ok(pattern(BLOCK_BYTES).slice(9000..9500)));
            assert_eq!(blocks.fetch(tail).await, Ok(pattern(100_000)));
        }
        assert!(faults.calls(Request::Get) < 40, "{} of 80 reads went to the bucket", faults.calls(Request::Get));
        blocks.delete_slices(&[(1, BLOCK_BYTES + 100_000)]).await[0].clone().unwrap();
        disk.flush(Duration::from_secs(10));
        assert!(memory.objects().is_empty() && !disk.contains(&whole) && !disk.contains(&tail));
        assert!(blocks.fetch(tail).await.is_err(), "nor is a file left");
    }

    #[tokio::test]
    async fn errors_keep_their_meaning() {
        let Bench { blocks, faults, .. } = bench(0);
        let id = block(1, 8);
        faults.inject(Request::Put, 0, 2, Fault::Fail(ObjectError::Retry("busy".into())));
        faults.inject(Request::Put, 2, 1, Fault::FailAfter(ObjectError::Retry("lost answer".into())));
        assert_eq!(blocks.upload(id, pattern(8)).await, Ok(()));
        assert_eq!(faults.calls(Request::Put), 4);
        faults.inject(Request::Get, 0, 1, Fault::Fail(ObjectError::Retry("busy".into())));
        assert_eq!(blocks.fetch(id).await, Ok(pattern(8)));
        faults.inject(Request::Put, 0, 1, Fault::Fail(ObjectError::Full("disk".into())));
        assert_eq!(blocks.upload(id, pattern(8)).await.map_err(|e| e.errno()), Err(Errno::NOSPC));
        faults.inject(Request::Put, 0, 1, Fault::Fail(ObjectError::Denied("read-only".into())));
        assert_eq!(blocks.upload(id, pattern(8)).await.map_err(|e| e.errno()), Err(Errno::IO));
    }

    #[tokio::test]
    async fn coded_blocks_come_back_whole_or_not_at_all() {
        let key = include_str!("../../tests/fixtures/keys/pkcs8.pem");
        for encryption in [None, Some(Encryption::new("", key, None).unwrap())] {
            let Bench { blocks, faults, memory, frames } = coded_bench(0, Codec::new(Compression::Zstd, encryption));
            let id = block(1, BLOCK_BYTES);
            blocks.upload(id, pattern(BLOCK_BYTES)).await.unwrap();
            let object = memory.objects()[&blocks.key(&id)].clone();
            assert!(object.len() < BLOCK_BYTES as usize / 10);
            assert_eq!(blocks.fetch_range(id, 1000..3000).await, Ok(pattern(BLOCK_BYTES).slice(1000..3000)));
            // A frame beside the metadata is exactly the bytes of the object.
            let small = blocks.encode(&pattern(100)).await.unwrap();
            frames.0.lock().unwrap().insert(2, small.clone());
            assert_eq!(blocks.fetch(block(2, 100)).await, Ok(pattern(100)));
            memory.put(&blocks.key(&block(3, 100)), small).await.unwrap();
            assert_eq!(blocks.fetch(block(3, 100)).await, Ok(pattern(100)));
            // Under the name of a longer or a shorter block it is none; and a damaged one is not tried again.
            memory.put(&blocks.key(&block(4, BLOCK_BYTES - 1)), object.clone()).await.unwrap();
            memory.put(&blocks.key(&block(5, BLOCK_BYTES)), object.slice(..object.len() - 1)).await.unwrap();
            memory.put(&blocks.key(&block(6, BLOCK_BYTES)), pattern(2 * BLOCK_BYTES)).await.unwrap();
            for damaged in [block(4, BLOCK_BYTES - 1), block(5, BLOCK_BYTES), block(6, BLOCK_BYTES)] {
                let calls = faults.calls(Request::Get);
                let error = blocks.fetch(damaged).await.unwrap_err();
                assert!(matches!(&error, BlockError::Damaged { key, .. } if *key == blocks.key(&damaged)), "{error}");
                assert_eq!((error.errno(), faults.calls(Request::Get)), (Errno::IO, calls + 1));
            }
        }
    }

    #[tokio::test]
    async fn readers_of_one_block_share_a_fetch() {
        let Bench { blocks, faults, memory, .. } = bench(64 << 20);
        let id = block(1, BLOCK_BYTES);
        memory.put(&blocks.key(&id), pattern(BLOCK_BYTES)).await.unwrap();
        let gate = Arc::new(Semaphore::new(0));
        faults.always(Request::Get, Fault::Hold(Arc::clone(&gate)));
        let mut readers = Vec::new();
        for n in 0..8u32 {
            let blocks = Arc::clone(&blocks);
            readers.push(tokio::spawn(async move { blocks.fetch_range(id, n..n + BLOCK_BYTES / 2).await }));
        }
        while faults.calls(Request::Get) == 0 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(1);
        for (n, reader) in readers.into_iter().enumerate() {
            assert_eq!(reader.await.unwrap().unwrap(), pattern(BLOCK_BYTES).slice(n..n + BLOCK_BYTES as usize / 2));
        }
        assert_eq!(faults.calls(Request::Get), 1);
    }

    #[tokio::test]
    async fn uploads_are_bounded() {
        let Bench { blocks, faults, .. } = bench(0);
        let gate = Arc::new(Semaphore::new(0));
        faults.always(Request::Put, Fault::Hold(Arc::clone(&gate)));
        let uploads: Vec<_> = (1..=5)
            .map(|n| {
                let blocks = Arc::clone(&blocks);
                tokio::spawn(async move { blocks.upload(block(n, 8), pattern(8)).await })
            })
            .collect();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(faults.calls(Request::Put), 2);
        gate.add_permits(5);
        for upload in uploads {
            assert_eq!(upload.await.unwrap(), Ok(()));
        }
    }

    #[tokio::test]
    async fn deleting_a_slice_removes_every_block() {
        let Bench { blocks, memory, .. } = bench(64 << 20);
        let size = 2 * BLOCK_BYTES + 5;
        for index in 0..3 {
            let id = BlockId::of(3, size, index, BLOCK_BYTES).unwrap();
            blocks.upload(id, pattern(id.len)).await.unwrap();
        }
        assert_eq!(memory.objects().len(), 3);
        blocks.delete_slices(&[(3, size)]).await[0].clone().unwrap();
        assert_eq!(memory.objects().len(), 0);
        let first = BlockId::of(3, size, 0, BLOCK_BYTES).unwrap();
        assert!(matches!(blocks.fetch(first).await, Err(BlockError::Missing { .. })), "nor is it cached");
        blocks.delete_slices(&[(3, size)]).await[0].clone().unwrap();
    }
}
