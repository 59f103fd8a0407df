//! `Pending`: one slice that is being filled, uploaded and committed. Plain data; the machine decides when what happens.

use crate::env::Buffer;
use crate::types::{BlockId, CHUNK_BYTES, SliceId};
use crate::vfs::writer::event::Shape;
use bytes::Bytes;
use std::time::Duration;

/// What a pending slice is charged beside its bytes, so that a flood of one-byte slices is bounded, too.
pub(crate) const SLICE_OVERHEAD: usize = 512;
/// A tail longer than this gets room for its whole block at once instead of being copied at each doubling. It is charged all of the room, so
/// what is written slowly should not have it.
const TAIL_SMALL_BYTES: usize = 512 << 10;

/// Where the slice's id stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IdState {
    /// Not needed yet.
    None,
    /// Asked for, after this many flushes.
    Asked(u64),
    /// Known.
    Known(SliceId),
}

/// A block that can no longer change.
#[derive(Debug)]
pub(crate) enum Block {
    /// Waits for its upload, the first or a repeated one.
    Waiting(Bytes),
    /// On its way since this count of flushes; the bytes are kept in case it fails.
    Uploading(Bytes, u64),
    /// Durable in the object store.
    Stored,
}

/// The last, not yet full block.
#[derive(Debug)]
enum Tail {
    /// May still change.
    Open(Buffer),
    /// The only block of a frozen small slice: it travels in the commit.
    Frame(Bytes),
}

/// A slice between its first byte and its commit.
#[derive(Debug)]
pub(crate) struct Pending {
    /// Creation order over all chunks of the inode.
    pub key: u64,
    /// Index of the chunk.
    pub chunk: u32,
    /// Offset inside the chunk.
    pub pos: u32,
    /// Bytes so far.
    pub len: u32,
    /// Its id.
    pub id: IdState,
    /// Nothing is added any more.
    pub frozen: bool,
    /// The last attempt to move it on failed; nothing is tried before the next flush.
    pub failed: bool,
    /// In the commit that is under way.
    pub committing: bool,
    /// A commit of it failed in a way that leaves a doubt whether a record names it.
    pub doubtful: bool,
    /// When it was created.
    pub born: Duration,
    /// Complete blocks, in order.
    pub blocks: Vec<Block>,
    tail: Tail,
    /// Room the tail has got at once, and is charged for; 0 = it grows as it is filled.
    room: usize,
}

impl Pending {
    /// An empty slice at `pos` of a chunk.
    pub fn new(key: u64, chunk: u32, pos: u32, born: Duration) -> Pending {
        Pending {
            key,
            chunk,
            pos,
            len: 0,
            id: IdState::None,
            frozen: false,
            failed: false,
            committing: false,
            doubtful: false,
            born,
            blocks: Vec::new(),
            tail: Tail::Open(Buffer::default()),
            room: 0,
        }
    }

    /// First offset of the file it covers.
    pub fn start(&self) -> u64 {
        u64::from(self.chunk) * CHUNK_BYTES + u64::from(self.pos)
    }

    /// First offset of the file after it.
    pub fn end(&self) -> u64 {
        self.start() + u64::from(self.len)
    }

    /// First offset of the file that may still change: blocks that are full are on their way and immutable.
    pub fn editable_from(&self, shape: &Shape) -> u64 {
        self.start() + self.blocks.len() as u64 * u64::from(shape.block_bytes)
    }

    /// Puts `data` at offset `at` of the file, which lies between `editable_from` and `end`, and seals the blocks it fills.
    pub fn put(&mut self, at: u64, data: &[u8], shape: &Shape) {
        assert!(!self.frozen && at >= self.editable_from(shape) && at <= self.end(), "a slice changes only in its open tail");
        let block_bytes = shape.block_bytes as usize;
        let mut offset = (at - self.editable_from(shape)) as usize;
        let mut rest = data;
        while !rest.is_empty() {
            let Tail::Open(tail) = &mut self.tail else { unreachable!("only frozen slices have frames") };
            let part = rest.len().min(block_bytes - offset);
            let (now, later) = rest.split_at(part);
            let overwritten = now.len().min(tail.len() - offset);
            tail[offset..offset + overwritten].copy_from_slice(&now[..overwritten]);
            if shape.whole_blocks && self.room == 0 && tail.len() + part - overwritten > TAIL_SMALL_BYTES {
                let mut whole = Buffer::with_room(block_bytes);
                whole.extend_from_slice(tail);
                *tail = whole;
                self.room = block_bytes;
            }
            tail.extend_from_slice(&now[overwritten..]);
            self.len += (part - overwritten) as u32;
            rest = later;
            offset += part;
            if tail.len() == block_bytes {
                // What is left of `rest` goes on in the next block; a full tail was filled to its end, so `offset` is there.
                self.blocks.push(Block::Waiting(std::mem::take(tail).freeze()));
                self.room = 0;
                offset = 0;
            }
        }
    }

    /// No more changes. A slice of one small block becomes a frame, everything else a list of blocks to upload.
    pub fn freeze(&mut self, shape: &Shape) {
        if self.frozen {
            return;
        }
        self.frozen = true;
        self.room = 0;
        if let Tail::Open(tail) = &mut self.tail {
            let tail = std::mem::take(tail).freeze();
            if self.blocks.is_empty() && tail.len() <= shape.frame_bytes_max as usize {
                self.tail = Tail::Frame(tail);
            } else if !tail.is_empty() {
                self.blocks.push(Block::Waiting(tail));
            }
        }
    }

    /// The frame it travels as, if it is a frozen small slice.
    pub fn frame(&self) -> Option<&Bytes> {
        match &self.tail {
            Tail::Frame(frame) => Some(frame),
            Tail::Open(_) => None,
        }
    }

    /// Everything it needs before its record may be committed is done.
    pub fn is_ready(&self) -> bool {
        self.frozen && !self.failed && matches!(self.id, IdState::Known(_)) && self.blocks.iter().all(|b| matches!(b, Block::Stored))
    }

    /// It could move on if it had an id.
    pub fn wants_id(&self) -> bool {
        self.id == IdState::None && !self.failed && (self.frozen || !self.blocks.is_empty())
    }

    /// The next block to upload. Marks it as on its way.
    pub fn take_upload(&mut self, flushes: u64) -> Option<(BlockId, Bytes)> {
        let IdState::Known(slice) = self.id else { return None };
        if self.failed {
            return None;
        }
        let index = self.blocks.iter().position(|b| matches!(b, Block::Waiting(_)))?;
        let Block::Waiting(data) = &self.blocks[index] else { return None };
        let data = data.clone();
        self.blocks[index] = Block::Uploading(data.clone(), flushes);
        Some((BlockId { slice, index: index as u32, len: data.len() as u32 }, data))
    }

    /// The upload of a block has ended; answers how many flushes there had been when it began.
    pub fn uploaded(&mut self, index: u32, ok: bool) -> u64 {
        let Some(block) = self.blocks.get_mut(index as usize) else { return 0 };
        let Block::Uploading(data, begun) = block else { return 0 };
        let begun = *begun;
        *block = if ok { Block::Stored } else { Block::Waiting(std::mem::take(data)) };
        begun
    }

    /// Bytes of the memory budget it holds.
    pub fn held(&self) -> usize {
        let blocks: usize = self.blocks.iter().map(|b| if let Block::Waiting(d) | Block::Uploading(d, _) = b { d.len() } else { 0 }).sum();
        blocks + self.loose() + SLICE_OVERHEAD
    }

    /// Bytes that are not on their way to the object store: freezing or committing the slice is what frees them.
    pub fn loose(&self) -> usize {
        match &self.tail {
            Tail::Open(tail) => tail.len().max(self.room),
            Tail::Frame(frame) => frame.len(),
        }
    }
}
