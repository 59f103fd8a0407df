//! One cache directory: its files, and what is known of them. Everything here may block for as long as the disk likes.

use crate::cache::disk::format::{self, ReadError};
use crate::cache::disk::health::{Change, Health};
use crate::cache::disk::index::{Index, cost};
use crate::cache::disk::opened::{OpenFile, Opened};
use crate::cache::disk::options::Eviction;
use crate::env::{Clock, DiskSpace, Random, SystemRandom, uuid_v4};
use crate::types::BlockId;
use bytes::Bytes;
use std::collections::HashMap;
use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tracing::{debug, info, warn};

mod staged;

/// Ending of files that are being written (data §6.1).
pub(super) const UNFINISHED: &str = ".tmp";
/// Part of the limits that remains after an eviction, in percent: making room block by block would evict for every write.
const KEPT_PERCENT: u64 = 95;
/// Likewise of the number of blocks.
const KEPT_ITEMS_PERCENT: u64 = 99;
/// Part that stays free at least on the disk of the system once the cache's own disk seems to be gone (data §6.1): what follows is
/// written to the directory below the lost mount.
const FREE_RATIO_LOST: f64 = 0.2;
/// Blocks looked at for their age in one round of the sweep; a round a second walks through a million in some minutes.
const SWEEP_BLOCKS: usize = 1000;

/// Limits and habits of one directory.
#[derive(Clone)]
pub(super) struct DirConfig {
    pub(super) hash_prefix: bool,
    pub(super) capacity_bytes: u64,
    /// 0 = only the disk's inodes limit it.
    pub(super) items: u64,
    pub(super) free_ratio: f64,
    pub(super) mode: u32,
    pub(super) eviction: Eviction,
    pub(super) expire: Duration,
    pub(super) checksums: bool,
    /// A read that takes longer has failed: by then the bucket would have answered.
    pub(super) patience: Duration,
}

/// What has happened, since the start.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) drops: AtomicU64,
    pub(super) evictions: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) damaged: AtomicU64,
    pub(super) hit_bytes: AtomicU64,
    pub(super) miss_bytes: AtomicU64,
    pub(super) write_bytes: AtomicU64,
}

/// One directory.
pub(super) struct Dir {
    /// `{cache directory}/{volume}`.
    root: PathBuf,
    config: DirConfig,
    clock: Arc<dyn Clock>,
    index: Mutex<Index>,
    opened: Opened,
    pub(super) health: Health,
    pub(super) counters: Counters,
    /// The disk has no room that eviction could make; told once.
    full: AtomicBool,
    /// The lock file was there and vanished.
    lost: AtomicBool,
    /// Position of the sweep for blocks that expire.
    sweep: Mutex<usize>,
    /// Directories of staged blocks whose own names are durable, with their inode numbers.
    durable: Mutex<HashMap<PathBuf, u64>>,
}

impl Dir {
    pub(super) fn new(root: PathBuf, config: DirConfig, clock: Arc<dyn Clock>) -> Dir {
        Dir {
            root,
            config,
            clock,
            index: Mutex::new(Index::new(SystemRandom.u64())),
            opened: Opened::new(),
            health: Health::default(),
            counters: Counters::default(),
            full: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            sweep: Mutex::new(0),
            durable: Mutex::default(),
        }
    }

    /// Of the volume.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// There was no room that eviction could make.
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Where the blocks are.
    pub(super) fn raw(&self) -> PathBuf {
        self.root.join("raw")
    }

    pub(super) fn hash_prefix(&self) -> bool {
        self.config.hash_prefix
    }

    pub(super) fn patience(&self) -> Duration {
        self.config.patience
    }

    pub(super) fn path(&self, block: &BlockId) -> PathBuf {
        self.root.join("raw").join(block.key(self.config.hash_prefix))
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect("never poisoned: no code under it panics")
    }

    /// Seconds since 1970.
    pub(super) fn now(&self) -> u32 {
        u32::try_from(self.clock.now().sec).unwrap_or(u32::MAX)
    }

    /// Whether the disk may be asked now.
    pub(super) fn allows(&self) -> bool {
        self.health.allows(self.clock.elapsed())
    }

    /// Makes the directory and its lock file; answers whether the lock file had to be made.
    pub(super) fn prepare(&self) -> io::Result<bool> {
        let lock = self.root.join(".lock");
        if lock.try_exists()? {
            return Ok(false);
        }
        self.make_dirs(&self.root)?;
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o666).open(&lock)?;
        let mut id = String::new();
        file.read_to_string(&mut id)?;
        if id.is_empty() {
            file.write_all(uuid_v4(&SystemRandom).as_bytes())?;
        }
        Ok(true)
    }

    /// The directory has vanished while it was in use: cleared by hand, or its disk is no longer mounted.
    pub(super) fn note_lost(&self) {
        if !self.lost.swap(true, Ordering::Relaxed) {
            warn!("cache directory {} had been removed; it is made anew", self.root.display());
        }
    }

    /// Bytes `range` of a block, if they are here and right. A file that is neither is removed.
    pub(super) fn read(&self, block: &BlockId, range: Range<u32>) -> Option<Bytes> {
        let started = self.clock.elapsed();
        let path = self.path(block);
        // Looked up by its name even if it is open: it may have been removed or replaced.
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path);
        let looked = opened.and_then(|file| file.metadata().map(|meta| (file, meta)));
        let (file, meta) = match looked {
            Ok(found) => found,
            Err(error) => {
                if error.kind() == ErrorKind::NotFound {
                    self.index().remove(block);
                } else {
                    self.failed("read", &error);
                }
                return None;
            }
        };
        // A second link is that of a staged block: perhaps the only copy, and not ours to remove.
        let staged = meta.nlink() > 1;
        match format::read(&file, meta.len(), block.len, range.clone(), self.config.checksums, staged) {
            Ok(bytes) => {
                self.keep_open(block, file, &meta, range);
                if !staged {
                    self.index().note(block, self.now());
                }
                if self.clock.elapsed() - started < self.config.patience {
                    self.worked();
                }
                Some(bytes)
            }
            Err(ReadError::Disk(error)) => {
                self.failed("read", &error);
                None
            }
            Err(ReadError::Damaged(why)) => {
                self.counters.damaged.fetch_add(1, Ordering::Relaxed);
                warn!("cached block {} is not used: {why}", path.display());
                if !staged {
                    self.remove(block);
                }
                None
            }
        }
    }

    /// Keeps a file open of which `range` was read and found right.
    fn keep_open(&self, block: &BlockId, file: File, meta: &Metadata, range: Range<u32>) {
        let right = self.config.checksums.then_some(range);
        let known = self.opened.get(block).filter(|opened| opened.is_same(meta));
        match (known, right) {
            (Some(opened), Some(range)) => opened.note_right(range),
            (Some(_), None) => {}
            (None, right) => self.opened.put(block, OpenFile::new(file, block.len, meta, right, self.now())),
        }
    }

    /// Bytes `range` of a block, if its file is open, they were found right before, and the system has them in memory.
    pub(super) fn read_at_once(&self, block: &BlockId, range: Range<u32>) -> Option<Bytes> {
        let now = self.now();
        let (bytes, opened) = self.opened.read_at_once(block, range, now)?;
        if !opened.staged() {
            self.index().note(block, now);
        }
        Some(bytes)
    }

    /// Closes files that are not read any more, or are removed.
    pub(super) fn close_idle(&self) {
        self.opened.close_idle(self.now());
    }

    /// Keeps a block if there is room or room can be made.
    pub(super) fn write(&self, block: &BlockId, bytes: &[u8]) {
        if !self.make_room(cost(block)) {
            self.counters.drops.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let path = self.path(block);
        // Unlike any other name: two daemons may write one block at once.
        let unfinished = path.with_file_name(format!("{block}.{:016x}{UNFINISHED}", SystemRandom.u64()));
        let written = self.write_file(&unfinished, bytes).and_then(|_| std::fs::rename(&unfinished, &path));
        match written {
            Ok(()) => {
                self.counters.writes.fetch_add(1, Ordering::Relaxed);
                self.counters.write_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                self.opened.remove(block);
                self.index().note(block, self.now());
                self.worked();
            }
            Err(error) => {
                self.counters.drops.fetch_add(1, Ordering::Relaxed);
                // If that fails too, the next scan removes it.
                let _ = std::fs::remove_file(&unfinished);
                if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
                    self.note_full(true);
                } else {
                    self.failed("write", &error);
                }
            }
        }
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(self.config.mode);
        let mut file = match options.open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.make_dirs(path.parent().unwrap_or(&self.root))?;
                options.open(path)?
            }
            opened => opened?,
        };
        // The mask of this process may have taken permissions away.
        file.set_permissions(Permissions::from_mode(self.config.mode))?;
        file.write_all(bytes)?;
        if self.config.checksums {
            file.write_all(&format::trailer(bytes))?;
        }
        Ok(file)
    }

    /// Makes a directory and those above it. Who may read the files may enter it.
    fn make_dirs(&self, dir: &Path) -> io::Result<()> {
        let mode = self.config.mode | (self.config.mode & 0o444) >> 2;
        match DirBuilder::new().mode(mode).create(dir) {
            Ok(()) => {
                // Numbers of inodes are used again: what was known of one that was removed says nothing of this one.
                self.durable.lock().expect("never poisoned: no code under it panics").clear();
                std::fs::set_permissions(dir, Permissions::from_mode(mode))
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let Some(parent) = dir.parent() else { return Err(error) };
                self.make_dirs(parent)?;
                self.make_dirs(dir)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes a block.
    pub(super) fn remove(&self, block: &BlockId) {
        self.opened.remove(block);
        self.index().remove(block);
        if let Err(error) = std::fs::remove_file(self.path(block))
            && error.kind() != ErrorKind::NotFound
        {
            self.failed("remove", &error);
        }
    }

    /// Removes blocks that were not used for the time after which they expire: a part of them with each call.
    pub(super) fn expire(&self) {
        if self.config.expire.is_zero() {
            return;
        }
        let before = self.now().saturating_sub(u32::try_from(self.config.expire.as_secs()).unwrap_or(u32::MAX));
        let expired = {
            let index = self.index();
            let mut sweep = self.sweep.lock().expect("never poisoned: no code under it panics");
            if *sweep as u64 >= index.len() {
                *sweep = 0;
            }
            let expired = index.unused_since(before, *sweep, SWEEP_BLOCKS);
            // Others take the places of those that go.
            *sweep += SWEEP_BLOCKS - expired.len();
            expired
        };
        self.evict(&expired);
    }

    /// Keeps the limits with `incoming` bytes more; answers whether they are kept.
    pub(super) fn make_room(&self, incoming: u64) -> bool {
        let space = match self.space() {
            Ok(space) => space,
            // Not there yet: writing makes it.
            Err(error) if error.kind() == ErrorKind::NotFound => return true,
            Err(error) => {
                self.failed("look at", &error);
                return false;
            }
        };
        let ratio = self.free_ratio();
        let part = |of: u64, ratio: f64| (of as f64 * ratio) as u64;
        let capacity = self.config.capacity_bytes.min(part(space.total, 1.0 - ratio));
        let mut items = part(space.files, 1.0 - ratio);
        if self.config.items > 0 && (self.config.items < items || space.files == 0) {
            items = self.config.items;
        }
        let items = if items == 0 { u64::MAX } else { items };
        let bytes_short = |space: &DiskSpace| (part(space.total, ratio) + incoming).saturating_sub(space.available);
        let files_short = |space: &DiskSpace| part(space.files, ratio).saturating_sub(space.files_available);
        let kept = |of: u64, percent: u64| of - of / 100 * (100 - percent);
        if incoming > kept(capacity, KEPT_PERCENT) {
            return false;
        }
        let (short, short_files) = (bytes_short(&space), files_short(&space));
        let victims = {
            let mut index = self.index();
            let coming = u64::from(incoming > 0);
            let over = index.used_bytes() + incoming > capacity || index.len() + coming > items || short > 0 || short_files > 0;
            if !over {
                drop(index);
                self.note_full(false);
                return true;
            }
            // Only what is over is brought down: a disk without room for more files says nothing about bytes.
            let mut bytes_goal = index.used_bytes();
            if bytes_goal + incoming > capacity {
                bytes_goal = kept(capacity, KEPT_PERCENT) - incoming;
            }
            if short > 0 {
                bytes_goal = bytes_goal.min(kept(index.used_bytes().saturating_sub(short), KEPT_PERCENT));
            }
            let mut items_goal = index.len();
            if items_goal + coming > items {
                items_goal = kept(items, KEPT_ITEMS_PERCENT).saturating_sub(coming);
            }
            if short_files > 0 {
                items_goal = items_goal.min(kept(index.len().saturating_sub(short_files), KEPT_ITEMS_PERCENT));
            }
            choose(&mut index, self.config.eviction, bytes_goal, items_goal)
        };
        self.evict(&victims);
        // Others may fill the disk faster than we give way, and `none` gives way to nobody.
        let fits = {
            let index = self.index();
            index.used_bytes() + incoming <= capacity && index.len() < items
        };
        let room = match self.space() {
            Ok(space) => bytes_short(&space) == 0 && files_short(&space) == 0,
            Err(_) => false,
        };
        self.note_full(!room);
        fits && room
    }

    fn evict(&self, blocks: &[BlockId]) {
        for block in blocks {
            self.counters.evictions.fetch_add(1, Ordering::Relaxed);
            self.remove(block);
        }
    }

    fn free_ratio(&self) -> f64 {
        let on_system_disk = || {
            let device = |path: &Path| std::fs::metadata(path).map(|meta| meta.dev()).ok();
            device(&self.root).is_some_and(|dev| Some(dev) == device(Path::new("/")))
        };
        if self.lost.load(Ordering::Relaxed) && on_system_disk() {
            return self.config.free_ratio.max(FREE_RATIO_LOST);
        }
        self.config.free_ratio
    }

    fn space(&self) -> io::Result<DiskSpace> {
        DiskSpace::of(&self.root)
    }

    fn note_full(&self, full: bool) {
        if self.full.swap(full, Ordering::Relaxed) != full {
            let root = self.root.display();
            if full {
                info!("cache directory {root} has no room; blocks are not kept until there is some");
            } else {
                debug!("cache directory {root} has room again");
            }
        }
    }

    /// An operation failed.
    pub(super) fn failed(&self, what: &str, why: &dyn std::fmt::Display) {
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        debug!("cannot {what} in cache directory {}: {why}", self.root.display());
        if self.health.failed(self.clock.elapsed()) == Change::Tripped {
            warn!("cannot {what} in cache directory {}: {why}; it is left alone until it works again", self.root.display());
        }
    }

    /// An operation that reached the disk succeeded in time.
    fn worked(&self) {
        if self.health.worked(self.clock.elapsed()) == Change::Recovered {
            info!("cache directory {} works again", self.root.display());
        }
    }
}

/// Blocks that have to go until at most so much remains; they leave the index.
fn choose(index: &mut Index, eviction: Eviction, bytes_goal: u64, items_goal: u64) -> Vec<BlockId> {
    let mut chosen = Vec::new();
    match eviction {
        Eviction::None => {}
        Eviction::Lru => {
            chosen = index.oldest(index.used_bytes().saturating_sub(bytes_goal), index.len().saturating_sub(items_goal));
            for block in &chosen {
                index.remove(block);
            }
        }
        Eviction::TwoRandom => {
            while index.used_bytes() > bytes_goal || index.len() > items_goal {
                let Some(block) = index.older_of_two() else { break };
                index.remove(&block);
                chosen.push(block);
            }
        }
    }
    chosen
}
