//! `Staging`: blocks that count as stored once they are durable on a disk of this host, and are uploaded afterwards (data §5.5).
//!
//! A staged block is a file below `rawstaging`, and by a second link one of the cache, where it is read. Whose process may die when:
//! * before the file has its name: what is unfinished is removed by a later scan;
//! * before the commit that names the block: it is uploaded all the same, and `gc` finds an object that nothing names;
//! * before the upload: the next mount with this cache directory finds the file and uploads it;
//! * before the file is removed: whoever finds it finds the object, too, and only removes it.

use crate::cache::disk::StagingOptions;
use crate::cache::disk::dir::Dir;
use crate::cache::disk::format::ReadError;
use crate::cache::disk::scan::{blocks_in, left_over};
use crate::env::Clock;
use crate::types::BlockId;
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap};
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tracing::{info, warn};

/// Blocks known of at once: 100 bytes each. More are uploaded directly, and those of others are found by later scans.
const BLOCKS_MAX: usize = 500_000;
/// Threads that write staged blocks. More do not make a disk faster; those that wait are bounded by the option.
const THREADS_MAX: usize = 16;
/// Bytes of a staged block beside its data, as the cache counts them.
const BLOCK_COST: u64 = 4096;
/// A block that could not be uploaded is tried again after this time, and after twice as long each time; others come first.
const AGAIN: Duration = Duration::from_secs(5);
/// Longest such time. A block that is due even later was staged by a clock that was ahead: it is due now.
const AGAIN_MAX: Duration = Duration::from_secs(300);
/// Outside of the hours for uploads it is looked again so often: a clock may be set.
const HOURS_LOOK: Duration = Duration::from_secs(30);
/// How often the end of a mount looks whether everything is uploaded.
const SETTLED_LOOK: Duration = Duration::from_millis(20);
/// How often it is told that blocks cannot be staged.
const TOLD: Duration = Duration::from_secs(60);

/// Staged blocks of this host that this process knows of.
pub struct Staging {
    dirs: Vec<Arc<Dir>>,
    /// `None`: nothing is staged, and what others have left is uploaded.
    options: Option<StagingOptions>,
    bytes_max: u64,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    bell: Notify,
    threads: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Everything is to be uploaded now, whatever the options say.
    hurried: AtomicBool,
}

#[derive(Default)]
struct State {
    blocks: HashMap<BlockId, Staged>,
    /// By the time from which they may be uploaded, in seconds since 1970.
    order: BTreeSet<(i64, (u64, u32, u32))>,
    /// Of `blocks` and of what is being written, each with `BLOCK_COST`.
    bytes: u64,
    /// When it was told last that something cannot be staged.
    told: Option<Duration>,
    /// Since the start: blocks that could not be staged, bytes staged, seconds from staging to the bucket.
    errors: u64,
    written_bytes: u64,
    delay_seconds: u64,
}

struct Staged {
    /// Index of the directory that has it.
    dir: usize,
    /// Seconds since 1970.
    since: i64,
    due: i64,
    /// This process has staged it, so no object has its name.
    own: bool,
    /// Attempts to upload it that failed.
    failures: u32,
}

/// What is staged and not uploaded yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StagingStats {
    /// Blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Seconds since the oldest was staged; 0 if there is none.
    pub oldest_seconds: u64,
    /// Blocks that could not be staged, since the start.
    pub errors: u64,
    /// Bytes staged, since the start.
    pub written_bytes: u64,
    /// Seconds from staging to the bucket, of all blocks together.
    pub delay_seconds: u64,
}

/// What may be uploaded now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct DueBlocks {
    /// Oldest first.
    pub blocks: Vec<BlockId>,
    /// When to ask again if there are none; `None`: when something is staged.
    pub next: Option<Duration>,
}

fn cost(block: &BlockId) -> u64 {
    u64::from(block.len) + BLOCK_COST
}

fn order_of(due: i64, block: &BlockId) -> (i64, (u64, u32, u32)) {
    (due, (block.slice, block.index, block.len))
}

impl State {
    /// Its cost is counted already.
    fn insert(&mut self, block: BlockId, staged: Staged) {
        self.order.insert(order_of(staged.due, &block));
        if let Some(before) = self.blocks.insert(block, staged) {
            let due = self.blocks[&block].due;
            if before.due != due {
                self.order.remove(&order_of(before.due, &block));
            }
            self.bytes = self.bytes.saturating_sub(cost(&block));
        }
    }

    fn remove(&mut self, block: &BlockId) -> Option<Staged> {
        let staged = self.blocks.remove(block)?;
        self.order.remove(&order_of(staged.due, block));
        self.bytes = self.bytes.saturating_sub(cost(block));
        Some(staged)
    }
}

/// One of those who wait for a thread.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Staging {
    /// Over these directories; at most `bytes_max` bytes are staged by this process.
    pub(super) fn new(dirs: Vec<Arc<Dir>>, options: Option<StagingOptions>, bytes_max: u64, clock: Arc<dyn Clock>) -> Staging {
        Staging {
            dirs,
            options,
            bytes_max,
            clock,
            state: Mutex::default(),
            bell: Notify::new(),
            threads: Arc::new(Semaphore::new(THREADS_MAX)),
            waiting: AtomicUsize::new(0),
            hurried: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("never poisoned: no code under it panics")
    }

    fn now(&self) -> i64 {
        self.clock.now().sec
    }

    /// Whether this process stages what it writes.
    pub fn is_on(&self) -> bool {
        self.options.is_some()
    }

    /// Whether the block is here and not known to be in the bucket.
    pub fn contains(&self, block: &BlockId) -> bool {
        self.state().blocks.contains_key(block)
    }

    /// Whether this process has staged the block, so that no object can have its name.
    pub fn is_own(&self, block: &BlockId) -> bool {
        self.state().blocks.get(block).is_some_and(|staged| staged.own)
    }

    /// What waits.
    pub fn stats(&self) -> StagingStats {
        let (now, state) = (self.now(), self.state());
        let oldest = state.blocks.values().map(|staged| staged.since).min();
        StagingStats {
            blocks: state.blocks.len() as u64,
            bytes: state.blocks.keys().map(|block| u64::from(block.len)).sum(),
            oldest_seconds: oldest.map_or(0, |oldest| u64::try_from(now - oldest).unwrap_or(0)),
            errors: state.errors,
            written_bytes: state.written_bytes,
            delay_seconds: state.delay_seconds,
        }
    }

    /// Stages a block in the directory `home`, durable when it returns true. Otherwise there is no room, no time or no wish for it, and it
    /// has to be uploaded.
    pub(super) async fn stage(self: &Arc<Self>, home: usize, block: BlockId, data: Bytes, time_max: Duration) -> bool {
        let Some(options) = &self.options else { return false };
        if data.is_empty() || (options.below_bytes > 0 && u64::from(block.len) >= options.below_bytes) {
            return false;
        }
        let waiting = Waiting(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= options.writes_max {
            return false;
        }
        {
            let mut state = self.state();
            if state.bytes + cost(&block) > self.bytes_max || state.blocks.len() >= BLOCKS_MAX {
                return false;
            }
            state.bytes += cost(&block);
        }
        let staging = Arc::clone(self);
        let work = async move {
            let permit = Arc::clone(&staging.threads).acquire_owned().await.expect("never closed");
            let write = move || {
                let _permit = permit;
                let written = staging.dirs[home].stage(&block, &data);
                let now = staging.now();
                match &written {
                    // Known even if nobody waits any more: it is a file that has to go.
                    Ok(()) => staging.state().insert(block, Staged { dir: home, since: now, due: now, own: true, failures: 0 }),
                    Err(_) => staging.refund(&block),
                }
                written
            };
            tokio::task::spawn_blocking(write).await.unwrap_or_else(|e| Err(io::Error::other(e)))
        };
        let written = tokio::time::timeout(time_max, tokio::spawn(work)).await;
        drop(waiting);
        match written {
            Ok(Ok(Ok(()))) => {
                self.state().written_bytes += u64::from(block.len);
                self.bell.notify_one();
                true
            }
            Ok(Ok(Err(error))) => self.not_staged(home, &error),
            Ok(Err(error)) => self.not_staged(home, &error),
            Err(_) => self.not_staged(home, &format!("no answer in {time_max:?}")),
        }
    }

    fn refund(&self, block: &BlockId) {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(cost(block));
    }

    fn not_staged(&self, dir: usize, why: &dyn std::fmt::Display) -> bool {
        let now = self.clock.elapsed();
        let mut state = self.state();
        state.errors += 1;
        if state.told.is_none_or(|told| now >= told + TOLD) {
            state.told = Some(now);
            warn!("cannot stage blocks in {}: {why}; they are uploaded directly", self.dirs[dir].root().display());
        }
        false
    }

    /// Blocks to be uploaded now, at most `most`.
    pub fn due(&self, most: usize) -> DueBlocks {
        let now = self.now();
        let options = self.options.as_ref().filter(|_| !self.is_hurried());
        // A cache that has no room for what is read gets it back.
        let delay = options.filter(|_| !self.dirs.iter().any(|dir| dir.is_full())).map_or(0, |options| options.delay.as_secs() as i64);
        let state = self.state();
        let Some(&(first, _)) = state.order.first() else { return DueBlocks::default() };
        if options.and_then(|options| options.hours).is_some_and(|hours| !hours.contains(self.clock.hour())) {
            return DueBlocks { blocks: Vec::new(), next: Some(HOURS_LOOK) };
        }
        let ahead = now.saturating_add(AGAIN_MAX.as_secs() as i64);
        let is_due = |&&(due, _): &&(i64, _)| due.saturating_add(delay) <= now;
        let is_ahead = |&&(due, _): &&(i64, _)| due > ahead;
        let block = |&(_, (slice, index, len)): &(i64, (u64, u32, u32))| BlockId { slice, index, len };
        let due = state.order.iter().take_while(is_due).chain(state.order.iter().rev().take_while(is_ahead));
        let blocks: Vec<BlockId> = due.take(most).map(block).collect();
        let seconds = first.saturating_add(delay).saturating_sub(now);
        let wait = Duration::from_secs(u64::try_from(seconds).unwrap_or(0).max(1)).min(HOURS_LOOK);
        DueBlocks { next: blocks.is_empty().then_some(wait), blocks }
    }

    /// Whether a block of this age is left where it is on purpose, or for no longer than `patience`.
    pub fn waits_for(&self, age_seconds: u64, patience: Duration) -> bool {
        let options = self.options.as_ref();
        let delay = options.map_or(Duration::ZERO, |options| options.delay);
        options.is_some_and(|options| options.hours.is_some()) || Duration::from_secs(age_seconds) < delay + patience
    }

    /// Returns when something was staged, or is to be uploaded at once, since it was called last.
    pub async fn work(&self) {
        self.bell.notified().await;
    }

    /// Where blocks are staged.
    pub fn places(&self) -> Vec<PathBuf> {
        self.dirs.iter().map(|dir| dir.staged()).collect()
    }

    /// Whether everything is uploaded at once.
    pub fn is_hurried(&self) -> bool {
        self.hurried.load(Ordering::Relaxed)
    }

    /// From now on everything is uploaded at once.
    pub fn hurry(&self) {
        self.hurried.store(true, Ordering::Relaxed);
        self.bell.notify_one();
    }

    /// Waits until everything is uploaded that is not kept back on purpose, or `time` is over. Answers what is left.
    pub async fn settled(&self, time: Duration) -> StagingStats {
        let end = tokio::time::Instant::now() + time;
        let kept_back = self.options.as_ref().is_some_and(|options| !options.delay.is_zero() || options.hours.is_some());
        loop {
            let none = self.state().blocks.is_empty();
            if none || (kept_back && !self.is_hurried()) || tokio::time::Instant::now() >= end {
                return self.stats();
            }
            tokio::time::sleep(SETTLED_LOOK).await;
        }
    }

    /// A staged block, checked; `None` if its file is gone. Says what is wrong with one that cannot be used.
    pub async fn read(self: &Arc<Self>, block: BlockId) -> Result<Option<Bytes>, String> {
        let Some(dir) = self.state().blocks.get(&block).map(|staged| Arc::clone(&self.dirs[staged.dir])) else { return Ok(None) };
        let read = move || match dir.read_staged(&block) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(ReadError::Disk(error)) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(ReadError::Disk(error)) => Err(format!("the staged block {block} in {} cannot be read: {error}", dir.root().display())),
            Err(ReadError::Damaged(why)) => Err(format!("the staged block {block} in {} is damaged: {why}", dir.root().display())),
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|e| Err(e.to_string()))
    }

    /// The block is in the bucket, or its file is gone: what is left is a block of the cache. Answers whether it was still wanted.
    pub async fn done(self: &Arc<Self>, block: BlockId) -> bool {
        let staged = {
            let (now, mut state) = (self.now(), self.state());
            let Some(staged) = state.remove(&block) else { return false };
            state.delay_seconds += u64::try_from(now - staged.since).unwrap_or(0);
            staged
        };
        let dir = Arc::clone(&self.dirs[staged.dir]);
        // A thread that cannot be started leaves the file, which is found again.
        let _ = tokio::task::spawn_blocking(move || dir.unstage(&block)).await;
        true
    }

    /// The block could not be uploaded: later again.
    pub fn put_off(&self, block: &BlockId) {
        let (now, mut state) = (self.now(), self.state());
        if let Some(staged) = state.blocks.get_mut(block) {
            let wait = AGAIN.saturating_mul(1 << staged.failures.min(10)).min(AGAIN_MAX);
            staged.failures += 1;
            let due = now + wait.as_secs() as i64;
            let before = std::mem::replace(&mut staged.due, due);
            state.order.remove(&order_of(before, block));
            state.order.insert(order_of(due, block));
        }
    }

    /// Nothing names these blocks any more: they are not uploaded. One that is on its way is told by `done`.
    pub async fn forget(self: &Arc<Self>, blocks: &[BlockId]) {
        let gone: Vec<(BlockId, Arc<Dir>)> = {
            let mut state = self.state();
            if state.blocks.is_empty() {
                return;
            }
            blocks.iter().filter_map(|block| Some((*block, Arc::clone(&self.dirs[state.remove(block)?.dir])))).collect()
        };
        if !gone.is_empty() {
            let remove = move || gone.iter().for_each(|(block, dir)| dir.unstage(block));
            // As in `done`.
            let _ = tokio::task::spawn_blocking(remove).await;
        }
    }

    /// Looks for blocks that others have staged, or this process in an earlier life; answers how many are new. May block for long.
    pub fn scan(&self) -> io::Result<usize> {
        let mut count = 0;
        for (at, dir) in self.dirs.iter().enumerate() {
            let mut found = |block: BlockId, since: i64| {
                let mut state = self.state();
                if state.blocks.len() < BLOCKS_MAX && !state.blocks.contains_key(&block) {
                    state.bytes += cost(&block);
                    // A clock may have been ahead.
                    let since = since.clamp(0, self.now());
                    state.insert(block, Staged { dir: at, since, due: since, own: false, failures: 0 });
                    count += 1;
                }
            };
            match blocks_in(dir, &dir.staged(), &|| true, &mut |block, meta| {
                use std::os::unix::fs::MetadataExt;
                if meta.len() >= u64::from(block.len) {
                    found(block, meta.mtime());
                } else if left_over(dir, meta) {
                    warn!("{} has {} bytes for the staged block {block}; it cannot be used", dir.root().display(), meta.len());
                }
            }) {
                Ok(_) => {}
                // Nothing was ever staged here.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if count > 0 {
            info!("Found {count} staging blocks; they are uploaded");
            self.bell.notify_one();
        }
        Ok(count)
    }
}
