//! `DiskCache`: decoded blocks in directories of this host, in JuiceFS's layout (data §6), so that both clients share them.
//!
//! Blocks are immutable, so nothing here grows stale by itself; a block that is written replaces what has its name. It never fails a read, and never holds one up longer than the bucket would: reads
//! have a deadline, writes a bounded queue that drops what does not fit, and a disk that fails or hangs is left alone for a while.
//! Several processes may use one directory: files appear by renaming, and a file is looked for by its name, whatever the index says.

mod dir;
mod format;
mod health;
mod index;
mod opened;
mod options;
mod scan;
mod staging;
mod worker;

#[cfg(test)]
mod tests;

pub use options::{CacheOptions, CachePlace, Eviction, Hours, StagingOptions, default_dir};
pub use staging::{DueBlocks, Staging, StagingStats};

use crate::cache::disk::dir::{Dir, DirConfig};
use crate::cache::disk::worker::{Job, Worker};
use crate::env::{Clock, SystemClock};
use crate::types::BlockId;
use bytes::Bytes;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// How long a read waits for the disks: by then the bucket has answered. A disk in order needs a hundredth of it.
const READ_PATIENCE: Duration = Duration::from_millis(300);
/// Reads of one directory at once. Enough to keep a fast disk busy; the most threads that a hanging one can hold.
const READS_MAX: usize = 32;
/// Blocks up to this size are copied when they are queued: they are often cut from a buffer that is much larger.
const COPIED_BYTES_MAX: usize = 128 << 10;

/// What a cache is made of.
pub struct DiskCacheConfig<'a> {
    /// The volume.
    pub uuid: &'a str,
    /// How the names of blocks are spread (data §1.3).
    pub hash_prefix: bool,
    /// Size of a full block.
    pub block_bytes: u32,
    /// Bytes that may wait to be written.
    pub queue_bytes: u64,
    /// What the user wants.
    pub options: &'a CacheOptions,
    /// Where, with wildcards.
    pub dirs: &'a [PathBuf],
}

/// What a cache has done, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Blocks known of.
    pub blocks: u64,
    /// Their bytes, 4096 a block included.
    pub used_bytes: u64,
    /// Reads answered.
    pub hits: u64,
    /// Reads not answered.
    pub misses: u64,
    /// Blocks written.
    pub writes: u64,
    /// Blocks not written: no room, no time, or a disk that fails.
    pub drops: u64,
    /// Blocks removed to make room, or because they were old.
    pub evictions: u64,
    /// Operations that failed or took too long.
    pub failures: u64,
    /// Files that were not what they should be.
    pub damaged: u64,
    /// Bytes of the reads answered.
    pub hit_bytes: u64,
    /// Bytes of those not answered.
    pub miss_bytes: u64,
    /// Bytes of the blocks written.
    pub write_bytes: u64,
}

/// Blocks on the disks of this host.
pub struct DiskCache {
    dirs: Vec<Shelf>,
    hash_prefix: bool,
    block_bytes: u32,
    partial_only: bool,
    large_write: bool,
    queue_bytes: u64,
    queued_bytes: Arc<AtomicU64>,
    staging: Arc<Staging>,
}

/// One directory and those who work on it.
struct Shelf {
    dir: Arc<Dir>,
    reads: Arc<Semaphore>,
    worker: Worker,
}

impl DiskCache {
    /// Begins to use the directories and returns at once: they are made and looked through in the background. `None` if there is no
    /// directory, or no space to be used.
    pub fn open(config: &DiskCacheConfig<'_>) -> Option<DiskCache> {
        DiskCache::with(config, READ_PATIENCE, Arc::new(SystemClock::new()))
    }

    fn with(config: &DiskCacheConfig<'_>, patience: Duration, clock: Arc<dyn Clock>) -> Option<DiskCache> {
        let options = config.options;
        let roots = options::expand(config.dirs, config.uuid);
        let count = roots.len() as u64;
        let size_bytes = options.size_bytes.unwrap_or(options::SIZE_BYTES_DEFAULT);
        if count == 0 || size_bytes == 0 {
            return None;
        }
        let dir_config = DirConfig {
            hash_prefix: config.hash_prefix,
            capacity_bytes: size_bytes / count,
            items: options.items.div_ceil(count),
            free_ratio: options.free_ratio,
            mode: options.mode,
            eviction: options.eviction,
            expire: options.expire,
            checksums: options.checksums,
            patience,
        };
        let queued_bytes = Arc::new(AtomicU64::new(0));
        let shelf = |root| {
            let dir = Arc::new(Dir::new(root, dir_config.clone(), Arc::clone(&clock)));
            let worker = Worker::start(&dir, options.scan_interval, Arc::clone(&queued_bytes));
            Shelf { dir, reads: Arc::new(Semaphore::new(READS_MAX)), worker }
        };
        let dirs: Vec<Shelf> = roots.into_iter().map(shelf).collect();
        let places = dirs.iter().map(|shelf| Arc::clone(&shelf.dir)).collect();
        Some(DiskCache {
            // What waits to be uploaded may be as much as what is cached.
            staging: Arc::new(Staging::new(places, options.staging.clone(), size_bytes, clock)),
            dirs,
            hash_prefix: config.hash_prefix,
            block_bytes: config.block_bytes,
            partial_only: options.partial_only,
            large_write: options.large_write,
            queue_bytes: config.queue_bytes,
            queued_bytes,
        })
    }

    /// Blocks that are not in the bucket yet.
    pub fn staging(&self) -> &Arc<Staging> {
        &self.staging
    }

    /// Stages a block if the options say so, durable when it returns true. Otherwise it has to be uploaded.
    pub async fn stage(&self, block: BlockId, data: &Bytes, time_max: Duration) -> bool {
        data.len() as u64 == u64::from(block.len) && self.staging.stage(self.home(&block), block, data.clone(), time_max).await
    }

    /// Bytes `range` of a block, checked, if a disk gives them in time.
    pub async fn get(&self, block: &BlockId, range: Range<u32>) -> Option<Bytes> {
        let home = self.home(block);
        for at in (home..self.dirs.len()).chain(0..home) {
            let shelf = &self.dirs[at];
            if let Some(bytes) = shelf.dir.read_at_once(block, range.clone()).filter(|_| shelf.dir.allows()) {
                let counters = &self.dirs[home].dir.counters;
                counters.hits.fetch_add(1, Ordering::Relaxed);
                counters.hit_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                return Some(bytes);
            }
        }
        let deadline = Instant::now() + self.dirs[home].dir.patience();
        let mut found = None;
        // The other client may have put it elsewhere, or the list of directories has changed.
        for at in (home..self.dirs.len()).chain(0..home) {
            found = self.dirs[at].get(block, range.clone(), deadline).await;
            if found.is_some() {
                break;
            }
        }
        let counters = &self.dirs[home].dir.counters;
        let (times, bytes) = if found.is_some() { (&counters.hits, &counters.hit_bytes) } else { (&counters.misses, &counters.miss_bytes) };
        times.fetch_add(1, Ordering::Relaxed);
        bytes.fetch_add(u64::from(range.end - range.start), Ordering::Relaxed);
        found
    }

    /// Whether a block is known to be here.
    pub fn contains(&self, block: &BlockId) -> bool {
        self.dirs.iter().any(|shelf| shelf.dir.index().contains(block))
    }

    /// Keeps a block that was downloaded, if the options say so.
    pub fn put_fetched(&self, block: &BlockId, bytes: &Bytes) {
        if (!self.partial_only || block.len < self.block_bytes) && !self.contains(block) {
            self.put(block, bytes);
        }
    }

    /// Keeps a block that was written, if the options say so: full ones are seldom read soon, and the kernel has them. What is here under its
    /// name is of another time: metadata that were set back give ids out again.
    pub fn put_written(&self, block: &BlockId, bytes: &Bytes) {
        if self.large_write || block.len < self.block_bytes {
            self.put(block, bytes);
        } else {
            self.remove(block);
        }
    }

    fn put(&self, block: &BlockId, bytes: &Bytes) {
        let shelf = &self.dirs[self.home(block)];
        if bytes.len() as u64 != u64::from(block.len) || bytes.is_empty() {
            return;
        }
        let len = bytes.len() as u64;
        let queued = self.queued_bytes.fetch_add(len, Ordering::Relaxed);
        // One is always taken: a full block may be larger than what is left of a small buffer.
        let fits = queued == 0 || queued + len <= self.queue_bytes;
        let bytes = if bytes.len() <= COPIED_BYTES_MAX { Bytes::copy_from_slice(bytes) } else { bytes.clone() };
        if !(fits && shelf.dir.allows() && shelf.worker.ask(Job::Put(*block, bytes))) {
            self.queued_bytes.fetch_sub(len, Ordering::Relaxed);
            shelf.dir.counters.drops.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Removes a block that nothing names any more. If the disk is too busy for that, it goes when room is made.
    pub fn remove(&self, block: &BlockId) {
        for (at, shelf) in self.dirs.iter().enumerate() {
            // Elsewhere only what the other client put there, and what is not known yet goes by itself one day.
            if at == self.home(block) || shelf.dir.index().contains(block) {
                shelf.worker.ask(Job::Remove(*block));
            }
        }
    }

    /// Waits until what was put before is written, or `patience` is over. Blocks the thread.
    pub fn flush(&self, patience: Duration) {
        let until = crate::env::instant() + patience;
        for shelf in &self.dirs {
            shelf.worker.flush(until);
        }
    }

    /// Counters of all directories together.
    pub fn stats(&self) -> CacheStats {
        let mut sum = CacheStats::default();
        for shelf in &self.dirs {
            let counters = &shelf.dir.counters;
            let index = shelf.dir.index();
            sum.blocks += index.len();
            sum.used_bytes += index.used_bytes();
            for (total, counter) in [
                (&mut sum.hits, &counters.hits),
                (&mut sum.misses, &counters.misses),
                (&mut sum.writes, &counters.writes),
                (&mut sum.drops, &counters.drops),
                (&mut sum.evictions, &counters.evictions),
                (&mut sum.failures, &counters.failures),
                (&mut sum.damaged, &counters.damaged),
                (&mut sum.hit_bytes, &counters.hit_bytes),
                (&mut sum.miss_bytes, &counters.miss_bytes),
                (&mut sum.write_bytes, &counters.write_bytes),
            ] {
                *total += counter.load(Ordering::Relaxed);
            }
        }
        sum
    }

    /// The directory a block belongs to. The other client places blocks on a ring, and looks here next (data §6.2): a function of the name
    /// and the number of directories alone, which cannot drift apart between two programs.
    fn home(&self, block: &BlockId) -> usize {
        fnv1(block.key(self.hash_prefix).as_bytes()) as usize % self.dirs.len()
    }
}

impl Shelf {
    async fn get(&self, block: &BlockId, range: Range<u32>, deadline: Instant) -> Option<Bytes> {
        if !self.dir.allows() {
            return None;
        }
        // Too many are reading: no failure of the disk, and no reason to wait longer.
        let permit = timeout_at(deadline, Arc::clone(&self.reads).acquire_owned()).await.ok()?.expect("never closed");
        let begun = Arc::new(AtomicBool::new(false));
        let asked = Instant::now();
        let task = tokio::task::spawn_blocking({
            let (dir, block, begun) = (Arc::clone(&self.dir), *block, Arc::clone(&begun));
            move || {
                // Kept until the disk answers, even if nobody waits any more.
                let _permit = permit;
                begun.store(true, Ordering::Relaxed);
                dir.read(&block, range)
            }
        });
        match timeout_at(deadline, task).await {
            // Nothing in it panics; the runtime may be ending.
            Ok(joined) => joined.ok().flatten(),
            Err(_) => {
                // It says nothing about the disk if the thread had not begun, or had hardly any time left.
                if begun.load(Ordering::Relaxed) && asked.elapsed() > self.dir.patience() / 2 {
                    self.dir.failed("read", &"no answer in time");
                }
                None
            }
        }
    }
}

/// FNV-1 of 32 bits.
fn fnv1(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811C_9DC5, |hash, byte| hash.wrapping_mul(0x0100_0193) ^ u32::from(*byte))
}
