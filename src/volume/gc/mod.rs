//! `gc`: what takes space and is of no use (cli §4.6, data §7.3): objects that nothing names, what waits for its deletion, and chunks whose
//! lists have grown long.
//!
//! Objects are stored before the record that names them, so one that is young is never called a leak. Nor is one called so because it was
//! not seen once: before any is deleted the whole metadata is read a second time. Time is linear in the records and objects; memory holds
//! the slices of one directory of the bucket, the rest is on disk (`bins.rs`).

mod bins;
mod uses;

use crate::block::{delete_all, retrying};
use crate::chunk::Chunks;
use crate::env::{Clock, Random, SystemClock, SystemRandom};
use crate::meta::AtimeMode;
use crate::meta::key;
use crate::meta::ops::clone::DETACHED_SECONDS;
use crate::meta::ops::delete::parse_slice_ref;
use crate::meta::store::ScanRange;
use crate::meta::store::redis::Options as RedisOptions;
use crate::object::{ObjectError, ObjectMeta, ObjectStore};
use crate::telemetry::progress;
use crate::types::{BlockId, Ino, SliceId};
use crate::volume::stores::COMMAND_PATIENCE;
use crate::volume::{CacheOptions, MetaUrl, Stores, TransferOptions, Volume, VolumeError, VolumeOptions, gate};
use bins::{Bins, Layout, Note};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};
use uses::{Compactable, Lists, Pages, Use, Uses, UsesOfBin};

/// Objects listed at once.
const PAGE: usize = 1000;
/// Deleted files, or slices, that go together: behind one wait for what a server may lose, and one look for the lists of all these files.
const BATCH: usize = 50_000;
/// A deleted file may still be read by a process of another host for so long.
const GRACE_S: i64 = 60;
/// Times a chunk is compacted in one run: each takes the first thousand records.
const COMPACTIONS_MAX: u32 = 16;
const DAY_S: i64 = 86_400;

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct GcOptions {
    /// Delete what is of no use; otherwise it is only counted.
    pub delete: bool,
    /// Compact all chunks first.
    pub compact: bool,
    /// Deletions and compactions at once, at least 1.
    pub threads: usize,
    /// Objects that are younger are passed over, in seconds.
    pub age_min_s: i64,
}

/// How many, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// What was found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcSummary {
    /// Slices in use, with their bytes counted for each record.
    pub slices: Amount,
    /// Chunks that compaction would make shorter, after it if it was done.
    pub compactable: u64,
    /// Chunks that were compacted, with the bytes of the records that were replaced.
    pub compacted_chunks: Amount,
    /// Those records.
    pub compacted_records: u64,
    /// Slices nothing named, deleted.
    pub deleted_slices: u64,
    /// Objects looked at.
    pub scanned: u64,
    /// Objects in use.
    pub valid: u64,
    /// Objects of slices that wait for deletion.
    pub pending: Amount,
    /// Objects of slices that compaction has replaced and the trash keeps.
    pub compacted: Amount,
    /// Objects nothing names.
    pub leaked: Amount,
    /// Replaced slices that were deleted as the trash does not keep them any longer.
    pub delayed: Amount,
    /// Deleted files whose data was deleted.
    pub files: Amount,
    /// Copies that were cut before they had a name, more than a day ago; removed with `delete`.
    pub cut: u64,
    /// Objects too young to be judged.
    pub skipped: Amount,
    /// Leaks that could not be deleted.
    pub failed: u64,
}

/// Looks for what is of no use, and deletes it if that is asked for.
pub async fn gc(url: &MetaUrl, options: GcOptions) -> Result<GcSummary, VolumeError> {
    let changes = options.delete || options.compact;
    let stores = Stores::open_for(url, RedisOptions { patience: Some(COMMAND_PATIENCE), writes: changes }, Duration::ZERO).await?;
    if changes {
        gate::check_writable(&stores.setting).map_err(VolumeError::Refused)?;
    }
    gc_in(stores, options).await
}

/// The same in a volume whose stores are open.
async fn gc_in(stores: Stores, options: GcOptions) -> Result<GcSummary, VolumeError> {
    let (objects, name) = (stores.objects.clone(), stores.setting.name().to_owned());
    let layout = Layout { hash_prefix: stores.setting.hash_prefix() };
    let bucket = Bucket { objects, name, layout, block_bytes: stores.setting.block_bytes() };
    // No session is registered: nothing is kept open here, and nobody has to clean up after it.
    let volume = Volume::over(stores, volume_options(options.threads)).await?;
    let outcome = run(&volume, &bucket, options).await;
    let closed = volume.close().await;
    let summary = outcome?;
    closed.map(|()| summary)
}

/// Retries of a request before a command fails: some twenty seconds.
const COMMAND_RETRIES: u32 = 10;

fn volume_options(threads: usize) -> VolumeOptions {
    VolumeOptions {
        read_only: true,
        mountpoint: String::new(),
        atime: AtimeMode::Never,
        buffer_bytes: 64 << 20,
        cache: CacheOptions::default(),
        transfers: TransferOptions {
            uploads_max: threads,
            downloads_max: threads,
            deletes_max: threads,
            retries: Some(COMMAND_RETRIES),
            ..TransferOptions::default()
        },
        heartbeat: Duration::from_secs(12),
        backup: None,
        journal: false,
        background: false,
    }
}

async fn run(volume: &Volume, bucket: &Bucket, options: GcOptions) -> Result<GcSummary, VolumeError> {
    let mut summary = GcSummary::default();
    let store = volume.meta.store().as_ref();
    if options.delete {
        let expired = volume.meta.expire_trash(&|| true).await.map_err(|e| failed("cannot empty the trash", e))?;
        info!("{expired} hours of the trash have expired");
        cut_copies(volume, &mut summary, true).await?;
        deleted_files(volume, &mut summary).await?;
    }
    if !options.delete {
        cut_copies(volume, &mut summary, false).await?;
    }
    if options.compact {
        compact_all(volume, options.threads, &mut summary).await?;
    }
    if options.delete {
        delayed_slices(volume, &mut summary).await?;
    }
    if options.delete || options.compact {
        pending_slices(volume, &mut summary).await?;
    }
    let mut uses = Uses::of(store, bucket.layout).await?;
    if options.delete && !uses.orphans.is_empty() {
        info!("{} inodes that do not exist have slice lists, which are removed", uses.orphans.len());
        let orphans: Vec<_> = uses.orphans.iter().map(|ino| (*ino, 0)).collect();
        for group in orphans.chunks(BATCH) {
            volume.chunks.delete_files(group).await.map_err(|e| failed("cannot delete slice lists", e))?;
        }
        uses = Uses::of(store, bucket.layout).await?;
    }
    summary.slices = Amount { count: uses.count()?, bytes: uses.bytes };
    summary.compactable = uses.compactable;
    // Objects bear the time of their server. It is asked only where being wrong would delete.
    let now = if options.delete { bucket.now().await? } else { SystemClock::new().now().sec };
    let leaks = bucket.judge(&uses, now - options.age_min_s, &mut summary).await?;
    if options.delete && summary.leaked.count > 0 {
        let again = Uses::of(store, bucket.layout).await?;
        summary.failed = bucket.delete(leaks, &again, options.threads).await?;
    }
    Ok(summary)
}

fn failed(what: &str, error: impl std::fmt::Display) -> VolumeError {
    VolumeError::Failed(format!("{what}: {error}"))
}

/// Counts, and removes, what `clone` has left that was cut. Whoever makes one for longer than a day has it taken away.
async fn cut_copies(volume: &Volume, summary: &mut GcSummary, delete: bool) -> Result<(), VolumeError> {
    let meta = &volume.meta;
    let why = |e| failed("cannot remove a copy that was cut", e);
    progress::stage("copies that were cut", 0);
    loop {
        let copies = meta.detached(meta.clock().now().sec.saturating_sub(DETACHED_SECONDS)).await.map_err(why)?;
        summary.cut += copies.len() as u64;
        if !delete || copies.is_empty() {
            return Ok(());
        }
        for ino in copies {
            meta.remove_detached(ino, &|| true).await.map_err(why)?;
            progress::add(1, 0);
        }
    }
}

/// Deletes the data of files that were deleted long enough ago that nobody has them open. Those that become so meanwhile are left to others:
/// beside those who delete all the time there would be no end.
async fn deleted_files(volume: &Volume, summary: &mut GcSummary) -> Result<(), VolumeError> {
    let meta = &volume.meta;
    let why = |e| failed("cannot delete the data of deleted files", e);
    let mut last = Vec::new();
    let graced = meta.clock().now().sec - GRACE_S;
    progress::stage("deleted files", 0);
    loop {
        let files = meta.pending_files(graced, BATCH as u32).await.map_err(why)?;
        // Those that stay, because their inode exists, were warned of.
        if files.is_empty() || files == last {
            return Ok(());
        }
        volume.chunks.delete_files(&files).await.map_err(why)?;
        files.iter().for_each(|(_, length)| summary.files.add(*length));
        progress::set(summary.files.count, summary.files.bytes);
        last = files;
    }
}

/// Deletes slices that compaction has replaced so long ago that the trash does not keep them.
async fn delayed_slices(volume: &Volume, summary: &mut GcSummary) -> Result<(), VolumeError> {
    let meta = &volume.meta;
    let why = |e| failed("cannot delete replaced slices", e);
    let kept = i64::try_from(meta.setting().trash_days()).unwrap_or(i64::MAX).saturating_mul(DAY_S);
    progress::stage("replaced slices", 0);
    let older_than = meta.clock().now().sec.saturating_sub(kept).saturating_sub(1);
    loop {
        let dropped = meta.drop_delayed(older_than, BATCH).await.map_err(why)?;
        if dropped.taken == 0 {
            return Ok(());
        }
        volume.chunks.delete_slices(&dropped.dead).await.map_err(why)?;
        dropped.dead.iter().for_each(|(_, size)| summary.delayed.add(u64::from(*size)));
        progress::set(summary.delayed.count, summary.delayed.bytes);
    }
}

/// Deletes the objects of slices that nothing names any more.
async fn pending_slices(volume: &Volume, summary: &mut GcSummary) -> Result<(), VolumeError> {
    let why = |e| failed("cannot delete slices that nothing names", e);
    let mut batch: Vec<(SliceId, u32)> = Vec::new();
    progress::stage("references", 0);
    let mut pages = Pages::new(volume.meta.store().as_ref(), ScanRange::Hash(key::SLICE_REF));
    loop {
        let page = pages.next().await?;
        let end = page.is_none();
        for item in page.into_iter().flatten().filter(|item| item.value.starts_with(b"-")) {
            batch.extend(parse_slice_ref(&item.name));
        }
        if batch.len() >= BATCH || (end && !batch.is_empty()) {
            // A scan may show one twice.
            batch.sort_unstable();
            batch.dedup();
            volume.chunks.delete_slices(&batch).await.map_err(why)?;
            summary.deleted_slices += batch.len() as u64;
            batch.clear();
        }
        if end {
            return Ok(());
        }
    }
}

/// Compacts every chunk that gets shorter by it.
async fn compact_all(volume: &Volume, threads: usize, summary: &mut GcSummary) -> Result<(), VolumeError> {
    progress::stage("slice lists", 0);
    let mut lists = Lists::new(volume.meta.store().as_ref());
    let mut running: JoinSet<bool> = JoinSet::new();
    let mut failures = 0;
    let mut note = |done: Result<bool, tokio::task::JoinError>| failures += u64::from(!matches!(done, Ok(true)));
    while let Some(page) = lists.next().await? {
        for Compactable { ino, chunk, records, bytes } in page.iter().filter_map(|list| list.compactable()) {
            while running.len() >= threads
                && let Some(done) = running.join_next().await
            {
                note(done);
            }
            summary.compacted_chunks.add(bytes);
            summary.compacted_records += records;
            running.spawn(compact(Arc::clone(&volume.chunks), ino, chunk));
        }
    }
    while let Some(done) = running.join_next().await {
        note(done);
    }
    if failures > 0 {
        warn!("{failures} chunks could not be compacted, for reasons that were logged");
    }
    Ok(())
}

/// Until nothing is to be gained any more; false if it failed.
async fn compact(chunks: Arc<Chunks>, ino: Ino, chunk: u32) -> bool {
    for _ in 0..COMPACTIONS_MAX {
        match chunks.compact(ino, chunk).await {
            Ok(true) => {}
            Ok(false) => return true,
            // Logged where it happened.
            Err(_) => return false,
        }
    }
    true
}

/// Deletes objects; answers how many could not be deleted.
async fn delete_batch(objects: Arc<dyn ObjectStore>, keys: Vec<String>) -> u64 {
    let mut failures = 0;
    for (key, outcome) in keys.iter().zip(delete_all(objects.as_ref(), &keys).await) {
        if let Err(error) = outcome {
            warn!("delete {key}: {error}");
            failures += 1;
        }
    }
    failures
}

/// The objects of the volume.
struct Bucket {
    objects: Arc<dyn ObjectStore>,
    name: String,
    layout: Layout,
    block_bytes: u32,
}

impl Bucket {
    /// What the clock of the bucket shows, by an object that is stored to see it.
    async fn now(&self) -> Result<i64, VolumeError> {
        let key = format!("{}/testing/gc{:016x}", self.name, SystemRandom.u64());
        let why = |e: ObjectError| failed("cannot ask the bucket for the time by storing an object", e);
        retrying("store", &key, || self.objects.put(&key, bytes::Bytes::from_static(b"now"))).await.map_err(why)?;
        let found = retrying("look", &key, || self.objects.head(&key)).await.map_err(why)?;
        if let Err(error) = self.objects.delete(&key).await {
            warn!("cannot delete {key}: {error}");
        }
        // A bucket without times makes everything young.
        Ok(found.modified)
    }

    /// Looks at all objects. Answers the blocks nothing names.
    async fn judge(&self, uses: &Uses, edge: i64, summary: &mut GcSummary) -> Result<Bins, VolumeError> {
        let mut leaks = Bins::new(self.layout)?;
        let prefix = format!("{}/chunks/", self.name);
        let mut after = String::new();
        let mut bin: Option<(u64, UsesOfBin)> = None;
        // As a slice has one, or more.
        progress::stage("objects", summary.slices.count);
        loop {
            let page = retrying("list objects", &prefix, || self.objects.list(&prefix, &after, PAGE)).await;
            let page = page.map_err(|e| failed("list all blocks", e))?;
            progress::add(page.len() as u64, page.iter().map(|object| object.size).sum());
            for object in &page {
                let Some(block) = self.block_of(&object.key) else { continue };
                let number = uses.layout().bin(block.slice);
                if bin.as_ref().is_none_or(|(there, _)| *there != number) {
                    bin = Some((number, uses.bin(number)?));
                }
                let (_, uses) = bin.as_ref().expect("it was just put there");
                if self.judge_one(object, block, uses, edge, summary).await {
                    leaks.push(Note { id: block.slice, size: block.len, what: block.index })?;
                }
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after.clone_from(&last.key),
                _ => return Ok(leaks),
            }
        }
    }

    /// The block of an object; `None` for one that no reader would ever look for.
    fn block_of(&self, key: &str) -> Option<BlockId> {
        let block = BlockId::parse(key.rsplit('/').next()?)?;
        let own = key.strip_prefix(&self.name)?.strip_prefix('/')? == block.key(self.layout.hash_prefix);
        own.then_some(block)
    }

    /// Whether it is a leak.
    async fn judge_one(&self, object: &ObjectMeta, block: BlockId, uses: &UsesOfBin, edge: i64, summary: &mut GcSummary) -> bool {
        summary.scanned += 1;
        let modified = match object.modified {
            // Some servers do not tell it in listings.
            0 => self.objects.head(&object.key).await.map_or(0, |object| object.modified),
            modified => modified,
        };
        if modified == 0 || modified > edge {
            debug!("{} is too young to be judged", object.key);
            summary.skipped.add(object.size);
            return false;
        }
        match self.use_of(block, uses) {
            Some(Use::Named | Use::Counted) => summary.valid += 1,
            Some(Use::Pending) => summary.pending.add(object.size),
            Some(Use::Delayed) => summary.compacted.add(object.size),
            None => {
                if let Some((size, _)) = uses.of(block.slice).next() {
                    let end = u64::from(block.index) * u64::from(self.block_bytes) + u64::from(block.len);
                    warn!("size of slice {} is {end}, but expect {size}", block.slice);
                }
                debug!("{} is a leak", object.key);
                summary.leaked.add(object.size);
                return true;
            }
        }
        false
    }

    /// What a block is, if it is one of a slice that is known.
    fn use_of(&self, block: BlockId, uses: &UsesOfBin) -> Option<Use> {
        let fits = |size| BlockId::of(block.slice, size, block.index, self.block_bytes) == Some(block);
        uses.of(block.slice).filter(|(size, _)| fits(*size)).map(|(_, what)| what).min()
    }

    /// Deletes those of the blocks that still nothing names. Answers how many could not be deleted.
    async fn delete(&self, leaks: Bins, again: &Uses, threads: usize) -> Result<u64, VolumeError> {
        let mut running: JoinSet<u64> = JoinSet::new();
        let (mut failures, mut batch) = (0, Vec::new());
        let count = |done: Result<u64, tokio::task::JoinError>| done.unwrap_or(1);
        progress::stage("leaks", 0);
        for number in leaks.numbers() {
            let uses = again.bin(number)?;
            let mut blocks = Vec::new();
            leaks.read(number, |Note { id, size, what }| blocks.push(BlockId { slice: id, index: what, len: size }))?;
            for block in blocks {
                if self.use_of(block, &uses).is_some() {
                    debug!("{block} is named by now");
                    continue;
                }
                progress::add(1, u64::from(block.len));
                batch.push(format!("{}/{}", self.name, block.key(self.layout.hash_prefix)));
                if batch.len() < self.objects.deletes_at_once() {
                    continue;
                }
                while running.len() >= threads
                    && let Some(done) = running.join_next().await
                {
                    failures += count(done);
                }
                running.spawn(delete_batch(Arc::clone(&self.objects), std::mem::take(&mut batch)));
            }
        }
        running.spawn(delete_batch(Arc::clone(&self.objects), batch));
        while let Some(done) = running.join_next().await {
            failures += count(done);
        }
        Ok(failures)
    }
}

#[cfg(test)]
mod tests;
