//! `Reader`: bytes of a file, as its last commit left them. What this process has buffered is committed first, so that a host always
//! reads what it wrote.
//!
//! The chunk's list, the inode's record and the mark of deletion come from one read, one state. Only so can zeros (no list) be told from
//! data that was reclaimed (ESTALE), and a length never goes with a list of another time.

use crate::block::{BlockError, BlockStore, FRAME_BYTES_MAX};
use crate::chunk::Chunks;
use crate::meta::Meta;
use crate::meta::ops::chunk::{ChunkView, visible};
use crate::types::{BlockId, CHUNK_BYTES, Caller, ChunkPart, Errno, Ino, Kind, SliceRecord, chunk_parts};
use crate::vfs::writer::{FILE_BYTES_MAX, INTERRUPT_AFTER, Writers};
use bytes::Bytes;
use lru::LruCache;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;
use tracing::error;

/// How often a list is read again because an object it names is missing. Once is what a compaction explains; a second one may run
/// into it.
const REREADS_MAX: u32 = 2;
/// How long the data of a deleted file stays readable for those who have it open in another process (seconds). Reclaim waits as long.
pub(crate) const DELETED_READABLE_SECS: i64 = 60;
/// Files whose reading is followed. Forgetting one costs a few blocks of readahead.
const STREAMS_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// Bytes read in a row after which blocks are fetched ahead; two requests of the kernel's own readahead.
const STREAM_BYTES_MIN: u64 = 256 << 10;
/// The kernel sends neighbouring reads of one stream in any order; a read this near the expected place goes on with it.
const STREAM_SLACK: u64 = 1 << 20;
/// Bytes fetched ahead of a stream: two full blocks keep one on its way while another is read.
const AHEAD_BYTES: u64 = 8 << 20;
/// Blocks fetched ahead at once, over all files. Readahead must not take the download slots that somebody waits for.
const AHEAD_FETCHES_MAX: usize = 4;

/// Reads files of one volume.
pub struct Reader {
    meta: Arc<Meta>,
    blocks: Arc<BlockStore>,
    chunks: Arc<Chunks>,
    writers: Arc<Writers>,
    streams: Mutex<LruCache<Ino, Stream>>,
    ahead: Arc<Semaphore>,
}

/// Where a file is being read in order.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// Where the next read is expected.
    next: u64,
    /// Bytes read in a row.
    run: u64,
    /// Fetched ahead up to here.
    ahead_to: u64,
}

impl Stream {
    /// Takes note of a read; answers what to fetch ahead now.
    fn read(&mut self, range: Range<u64>) -> Option<Range<u64>> {
        if range.start + STREAM_SLACK < self.next || range.start > self.next + STREAM_SLACK {
            *self = Stream { next: range.start, ..Stream::default() };
        }
        self.run += range.end - range.start;
        self.next = self.next.max(range.end);
        let from = self.next.max(self.ahead_to);
        let to = self.next + AHEAD_BYTES;
        // In halves, so that not every small read asks for the next few bytes.
        (self.run >= STREAM_BYTES_MIN && from + AHEAD_BYTES / 2 <= to).then(|| {
            self.ahead_to = to;
            from..to
        })
    }
}

impl Reader {
    /// Over a volume's metadata and data.
    pub fn new(meta: Arc<Meta>, blocks: Arc<BlockStore>, chunks: Arc<Chunks>, writers: Arc<Writers>) -> Reader {
        let ahead = Arc::new(Semaphore::new(AHEAD_FETCHES_MAX));
        Reader { meta, blocks, chunks, writers, streams: Mutex::new(LruCache::new(STREAMS_MAX)), ahead }
    }

    /// Bytes `range` of the file, as pieces in order; fewer if the file ends before. `length` is what the handle last knew: it counts
    /// only for a file that another process has deleted meanwhile, whose data is readable for a while and then answers STALE. What takes
    /// long can be called off (INTR).
    pub async fn read(&self, caller: &Caller, ino: Ino, length: u64, range: Range<u64>) -> Result<Vec<Bytes>, Errno> {
        let called_off = async {
            tokio::time::sleep(INTERRUPT_AFTER).await;
            caller.cancel.cancelled().await;
        };
        tokio::select! {
            biased;
            outcome = self.read_committed(ino, length, range) => outcome,
            () = called_off => Err(Errno::INTR),
        }
    }

    async fn read_committed(&self, ino: Ino, length: u64, range: Range<u64>) -> Result<Vec<Bytes>, Errno> {
        if self.writers.is_dirty(ino) {
            self.writers.flush(ino).await?;
        }
        let mut answer = Vec::new();
        for part in chunk_parts(range.start..range.end.min(FILE_BYTES_MAX)) {
            let pieces = self.read_part(ino, length, part).await?;
            let got: usize = pieces.iter().map(Bytes::len).sum();
            answer.extend(pieces);
            if got < part.len as usize {
                break;
            }
        }
        Ok(answer)
    }

    async fn read_part(&self, ino: Ino, length: u64, part: ChunkPart) -> Result<Vec<Bytes>, Errno> {
        let chunk_start = u64::from(part.index) * CHUNK_BYTES;
        let start = chunk_start + u64::from(part.pos);
        let mut rereads = 0;
        loop {
            // An object that is missing asks for the list as it is now.
            let recent = if rereads == 0 { self.meta.recent_chunk(ino, part.index) } else { None };
            let (view, length) = match recent {
                Some(view) => (view, length),
                None => self.meta.chunk_of_open(ino, part.index, length).await?,
            };
            let file_end = self.readable_to(&view, length)?;
            let end = file_end.min(start + u64::from(part.len));
            if end <= start {
                return Ok(Vec::new());
            }
            let in_chunk = part.pos..(end - chunk_start) as u32;
            match self.chunks.read(&view.records, in_chunk).await {
                Ok(pieces) => {
                    self.read_ahead(ino, &view.records, chunk_start, start..end, file_end);
                    return Ok(pieces);
                }
                // Compaction does not touch the inode: it replaces the list, and later deletes what the old one named.
                Err(BlockError::Missing { .. }) if rereads < REREADS_MAX => rereads += 1,
                Err(BlockError::Missing { .. }) if view.attr.is_none() => return Err(Errno::STALE),
                Err(e) => {
                    error!(%ino, chunk = part.index, "cannot read: {e}");
                    return Err(e.errno());
                }
            }
        }
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

    /// Fetches the blocks behind a sequential read into memory, nobody waiting. Only within the chunk whose list is at hand; the first
    /// read of the next one goes on from there.
    fn read_ahead(&self, ino: Ino, records: &[SliceRecord], chunk_start: u64, range: Range<u64>, file_end: u64) {
        let plan = {
            let mut streams = self.streams.lock().expect("no code under it panics");
            streams.get_or_insert_mut(ino, Stream::default).read(range)
        };
        let Some(plan) = plan else { return };
        let end = plan.end.min(file_end).min(chunk_start + CHUNK_BYTES);
        if plan.start < chunk_start || plan.start >= end {
            return;
        }
        for block in self.blocks_of(records, (plan.start - chunk_start) as u32..(end - chunk_start) as u32) {
            if self.blocks.cached(&block).is_some() {
                continue;
            }
            let Ok(permit) = self.ahead.clone().try_acquire_owned() else { return };
            let blocks = self.blocks.clone();
            tokio::spawn(async move {
                // Who really reads it will see what is wrong with it.
                let _ = blocks.fetch(block).await;
                drop(permit);
            });
        }
    }

    /// The blocks with visible bytes in a range of a chunk, in order. Small slices are left out: they come quickly when they are asked for.
    fn blocks_of(&self, records: &[SliceRecord], range: Range<u32>) -> Vec<BlockId> {
        let block_bytes = self.blocks.block_bytes();
        let mut blocks = Vec::new();
        for extent in visible(records, range).into_iter().filter(|e| e.id != 0 && e.size > FRAME_BYTES_MAX && e.len > 0) {
            let last = extent.off.saturating_add(extent.len - 1) / block_bytes;
            blocks.extend((extent.off / block_bytes..=last).map_while(|index| BlockId::of(extent.id, extent.size, index, block_bytes)));
        }
        blocks.dedup();
        blocks
    }
}

#[cfg(test)]
mod tests;
