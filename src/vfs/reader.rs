//! `Reader`: bytes of a file, as its last commit left them. What this process has buffered is committed first, so that a host always
//! reads what it wrote.
//!
//! The chunk's list, the inode's record and the mark of deletion come from one read, one state. Only so can zeros (no list) be told from
//! data that was reclaimed (ESTALE), and a length never goes with a list of another time.

mod siblings;
mod stream;

pub(crate) use siblings::Listed;
pub(crate) use stream::Streams;

use crate::block::{BlockError, BlockStore};
use crate::chunk::Chunks;
use crate::meta::ops::chunk::ChunkView;
use crate::meta::{List, Meta};
use crate::types::{BlockId, CHUNK_BYTES, Caller, ChunkPart, Errno, FILE_BYTES_MAX, Ino, Kind, chunk_parts, flatten};
use crate::vfs::reader::siblings::Siblings;
use crate::vfs::reader::stream::Window;
use crate::vfs::writer::{INTERRUPT_AFTER, Writers};
use bytes::Bytes;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::error;

/// How often a list is read again because an object it names is missing. Once is what a compaction explains; a second one may run
/// into it.
const REREADS_MAX: u32 = 2;
/// How long the data of a deleted file stays readable for those who have it open in another process (seconds). Reclaim waits as long.
pub(crate) const DELETED_READABLE_SECS: i64 = 60;
/// How old what is known of a file may be when it is read through a handle that was open before, however long the kernel may hold attributes.
const AGE_MAX: Duration = Duration::from_secs(1);
/// Part of the age after which it is asked for anew, nobody waiting.
const RENEWED_PART: u32 = 2;

/// An open file, as its reader knows it.
pub(crate) struct Source<'a> {
    /// The inode.
    pub ino: Ino,
    /// What the handle last knew. It counts only for a file that another process has deleted meanwhile, whose data is readable for a while and
    /// then answers STALE.
    pub length: u64,
    /// Where the handle is being read.
    pub streams: &'a Arc<Streams>,
}

/// Reads files of one volume.
pub struct Reader(Arc<Inner>);

struct Inner {
    meta: Arc<Meta>,
    blocks: Arc<BlockStore>,
    chunks: Arc<Chunks>,
    writers: Arc<Writers>,
    /// How old what is known of a file may be.
    age_max: Duration,
    /// Inodes that are being asked for anew.
    renewing: Mutex<HashSet<Ino>>,
    window: Window,
    /// Bytes that may be fetched ahead and not read yet.
    ahead: Arc<Semaphore>,
    /// Handles that hold a part of it, and some that did.
    holders: Mutex<Vec<Weak<Streams>>>,
    siblings: Siblings,
}

impl Reader {
    /// Over a volume's metadata and data. `attr_ttl` is how long the kernel may use attributes.
    pub fn new(meta: Arc<Meta>, blocks: Arc<BlockStore>, chunks: Arc<Chunks>, writers: Arc<Writers>, attr_ttl: Duration) -> Reader {
        let ahead = blocks.ahead_bytes();
        let window = Window { least: u64::from(blocks.block_bytes()), most: blocks.readahead_bytes().min(ahead) };
        let ahead = Arc::new(Semaphore::new(usize::try_from(ahead).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)));
        let age_max = attr_ttl.min(AGE_MAX);
        let (renewing, holders, siblings) = (Mutex::default(), Mutex::default(), Siblings::new());
        Reader(Arc::new(Inner { meta, blocks, chunks, writers, age_max, renewing, window, ahead, holders, siblings }))
    }

    /// Takes note of a part of a listing: who goes on to read the files in its order finds the next ones fetched.
    pub(crate) fn listed(&self, dir: Ino, entries: impl Iterator<Item = Listed>, first: bool, last: bool) {
        if self.0.blocks.fetches_ahead() {
            self.0.siblings.listed(dir, entries, first, last);
        }
    }

    /// Bytes `range` of the file, as pieces in order; fewer if the file ends before. What takes long can be called off (INTR).
    pub(crate) async fn read(&self, caller: &Caller, source: Source<'_>, range: Range<u64>) -> Result<Vec<Bytes>, Errno> {
        let called_off = async {
            tokio::time::sleep(INTERRUPT_AFTER).await;
            caller.cancel.cancelled().await;
        };
        tokio::select! {
            biased;
            outcome = self.0.read_committed(source, range) => outcome,
            () = called_off => Err(Errno::INTR),
        }
    }
}

impl Inner {
    async fn read_committed(self: &Arc<Inner>, source: Source<'_>, range: Range<u64>) -> Result<Vec<Bytes>, Errno> {
        if self.writers.is_dirty(source.ino) {
            self.writers.flush(source.ino).await?;
        }
        if range.start == 0 && self.blocks.fetches_ahead() {
            self.fetch_siblings(source.ino);
        }
        let mut answer = Vec::new();
        for part in chunk_parts(range.start..range.end.min(FILE_BYTES_MAX)) {
            let pieces = self.read_part(&source, part).await?;
            let got: usize = pieces.iter().map(Bytes::len).sum();
            answer.extend(pieces);
            if got < part.len as usize {
                break;
            }
        }
        Ok(answer)
    }

    async fn read_part(self: &Arc<Inner>, source: &Source<'_>, part: ChunkPart) -> Result<Vec<Bytes>, Errno> {
        let ino = source.ino;
        let chunk_start = u64::from(part.index) * CHUNK_BYTES;
        let start = chunk_start + u64::from(part.pos);
        let mut rereads = 0;
        loop {
            // An object that is missing asks for the list as it is now.
            let known = if rereads == 0 { self.known(ino, part.index) } else { None };
            let (list, deleted) = match known {
                Some(list) => (list, false),
                None => self.ask(ino, part.index, source.length).await?,
            };
            let end = list.length.min(start + u64::from(part.len));
            if end <= start {
                return Ok(Vec::new());
            }
            // Before the bytes are there: what follows is on its way while these are waited for.
            self.read_ahead(source, start..end, list.length);
            let in_chunk = part.pos..(end - chunk_start) as u32;
            match self.chunks.read_overlaid(&list.extents, in_chunk).await {
                Ok(pieces) => return Ok(pieces),
                // Compaction does not touch the inode: it replaces the list, and later deletes what the old one named.
                Err(BlockError::Missing { .. }) if rereads < REREADS_MAX => rereads += 1,
                Err(BlockError::Missing { .. }) if deleted => return Err(Errno::STALE),
                Err(e) => {
                    error!(%ino, chunk = part.index, "cannot read: {e}");
                    return Err(e.errno());
                }
            }
        }
    }

    /// The list of a chunk as far as it is known without asking. It is right as long as the inode's record is the one it was read with, and that
    /// was told by the store not longer ago than a kernel may believe it: by a read, an open, a lock, a stat.
    fn known(self: &Arc<Inner>, ino: Ino, chunk: u32) -> Option<List> {
        // First the record: if it changes after this, the list is as old as the read.
        let (record, age) = self.meta.recent_record(ino).filter(|(_, age)| *age <= self.age_max)?;
        if let Some(list) = self.meta.known_list(ino, chunk, &record) {
            if age > self.age_max / RENEWED_PART {
                self.renew(ino);
            }
            return Some(list);
        }
        // What an open or a lock has brought.
        let view = self.meta.recent_chunk(ino, chunk).filter(|view| view.record.as_ref() == Some(&record))?;
        self.learn(ino, chunk, view, 0).ok().map(|(list, _)| list)
    }

    /// Asks the store for the inode's record, so that those who go on reading need not wait for it.
    fn renew(self: &Arc<Inner>, ino: Ino) {
        if !self.renewing().insert(ino) {
            return;
        }
        let inner = self.clone();
        tokio::spawn(async move {
            // What is wrong with it is seen by who reads on.
            let _ = inner.meta.getattr(ino).await;
            inner.renewing().remove(&ino);
        });
    }

    /// The list of a chunk as it is now, and whether the file is deleted.
    async fn ask(&self, ino: Ino, chunk: u32, length: u64) -> Result<(List, bool), Errno> {
        let (view, length) = self.meta.chunk_of_open(ino, chunk, length).await?;
        self.learn(ino, chunk, view, length)
    }

    fn learn(&self, ino: Ino, chunk: u32, view: ChunkView, length: u64) -> Result<(List, bool), Errno> {
        let list = List { length: self.readable_to(&view, length)?, extents: Arc::new(flatten(&view.records)) };
        let deleted = view.record.is_none();
        if let Some(record) = view.record {
            self.meta.note_list(ino, chunk, record, &list, view.records.len() as u64);
        }
        Ok((list, deleted))
    }

    /// The length that goes with a view.
    fn readable_to(&self, view: &ChunkView, length: u64) -> Result<u64, Errno> {
        match (&view.attr, view.deleted_at) {
            (Some(attr), _) if attr.kind == Kind::File => Ok(attr.length),
            (Some(_), _) => Err(Errno::INVAL),
            // Seconds of hosts with differing clocks: the mark may look younger than it is, but then the lists are gone with it, in the
            // same state that this view shows.
            (None, Some(deleted_at)) if deleted_at > self.meta.clock().now().sec - DELETED_READABLE_SECS => Ok(length),
            (None, _) => Err(Errno::STALE),
        }
    }

    /// Fetches the blocks behind a sequential read into memory, nobody waiting.
    fn read_ahead(self: &Arc<Inner>, source: &Source<'_>, range: Range<u64>, file_end: u64) {
        let now = self.meta.clock().elapsed();
        let idle = || self.give_back_idle(now);
        let Some(ahead) = source.streams.read(range, file_end, self.window, &self.ahead, now, idle) else { return };
        self.note_holder(source.streams);
        let (inner, ino) = (self.clone(), source.ino);
        tokio::spawn(async move {
            for part in chunk_parts(ahead) {
                let list = match inner.known(ino, part.index) {
                    Some(list) => list,
                    // Who really reads it will see what is wrong with it.
                    None => match inner.ask(ino, part.index, file_end).await {
                        Ok((list, false)) => list,
                        _ => return,
                    },
                };
                for block in inner.blocks_of(&list, part.pos..part.pos + part.len) {
                    let blocks = inner.blocks.clone();
                    tokio::spawn(async move { blocks.fetch_ahead(block).await });
                }
            }
        });
    }

    /// Fetches the small files that are likely to be read after this one.
    fn fetch_siblings(self: &Arc<Inner>, ino: Ino) {
        let siblings::Ahead { files, dirs } = self.siblings.read(ino, self.meta.clock().elapsed());
        for dir in dirs {
            let inner = self.clone();
            tokio::spawn(async move { inner.fetch_first_of(dir).await });
        }
        if !files.is_empty() {
            self.fetch_small(&files);
        }
    }

    /// Fetches the first small files of a directory that is likely to be read next.
    async fn fetch_first_of(self: &Arc<Inner>, dir: Ino) {
        // Who really lists it will see what is wrong with it.
        let Ok(page) = self.meta.readdir(dir, Vec::new().into(), siblings::FIRST_ENTRIES).await else { return };
        let mut bytes = 0;
        let small = page.entries.iter().filter_map(|entry| {
            let attr = entry.attr.as_ref().filter(|attr| attr.kind == Kind::File)?;
            let length = u32::try_from(attr.length).ok().filter(|length| (1..=siblings::SMALL_BYTES_MAX).contains(&u64::from(*length)))?;
            Some((entry.ino, length))
        });
        let files: Vec<_> = small
            .take_while(|(_, length)| {
                bytes += u64::from(*length);
                bytes <= siblings::AHEAD_BYTES_MAX
            })
            .collect();
        if !files.is_empty() {
            self.fetch_small(&files);
        }
    }

    /// Fetches small files, nobody waiting, unless too much is being fetched ahead already.
    fn fetch_small(self: &Arc<Inner>, files: &[(Ino, u32)]) {
        let bytes: u32 = files.iter().map(|(_, length)| length).sum();
        let Ok(permit) = self.ahead.clone().try_acquire_many_owned(bytes) else { return };
        let (inner, inodes) = (self.clone(), files.iter().map(|(ino, _)| *ino).collect::<Vec<_>>());
        tokio::spawn(async move {
            // One trip for all of them. Who really reads one will see what is wrong with it.
            let Ok(views) = inner.meta.first_chunks(&inodes).await else { return };
            let mut fetches = JoinSet::new();
            for (ino, view) in views {
                let Ok((list, false)) = inner.learn(ino, 0, view, 0) else { continue };
                // It may have grown since it was listed.
                let end = list.length.min(siblings::SMALL_BYTES_MAX) as u32;
                for block in inner.blocks_of(&list, 0..end) {
                    let blocks = inner.blocks.clone();
                    fetches.spawn(async move { blocks.fetch_ahead(block).await });
                }
            }
            fetches.join_all().await;
            drop(permit);
        });
    }

    /// The blocks with visible bytes in a range of a chunk that are not on this host, in order.
    fn blocks_of(&self, list: &List, range: Range<u32>) -> Vec<BlockId> {
        let block_bytes = self.blocks.block_bytes();
        let mut blocks = Vec::new();
        for extent in crate::meta::ops::chunk::clipped(&list.extents, range).into_iter().filter(|e| e.id != 0 && e.len > 0) {
            let last = extent.off.saturating_add(extent.len - 1) / block_bytes;
            blocks.extend((extent.off / block_bytes..=last).map_while(|index| BlockId::of(extent.id, extent.size, index, block_bytes)));
        }
        blocks.dedup();
        blocks.retain(|block| !self.blocks.is_near(block));
        blocks
    }

    fn note_holder(&self, streams: &Arc<Streams>) {
        let mut holders = self.holders.lock().expect("no code under it panics");
        holders.retain(|holder| holder.strong_count() > 0);
        if !holders.iter().any(|holder| std::ptr::eq(holder.as_ptr(), Arc::as_ptr(streams))) {
            holders.push(Arc::downgrade(streams));
        }
    }

    fn give_back_idle(&self, now: Duration) {
        let holders: Vec<_> = self.holders.lock().expect("no code under it panics").iter().filter_map(Weak::upgrade).collect();
        for streams in holders {
            streams.give_back_idle(now);
        }
    }

    fn renewing(&self) -> std::sync::MutexGuard<'_, HashSet<Ino>> {
        self.renewing.lock().expect("no code under it panics")
    }
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
