//! What goes into a machine and what comes out of it.

use crate::types::{Attr, BlockId, Errno, SliceId, Time};
use bytes::Bytes;
use std::time::Duration;

/// Sizes that never change while the volume is open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Block size of the volume.
    pub block_bytes: u32,
    /// Largest only block that is stored beside the metadata.
    pub frame_bytes_max: u32,
    /// Blocks of one inode on their way at once.
    pub uploads_max: usize,
    /// A block that grows gets its whole room at once.
    pub whole_blocks: bool,
}

/// Both clocks, as every event carries them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Now {
    /// Wall clock: what becomes mtime.
    pub wall: Time,
    /// Monotonic clock: ages.
    pub mono: Duration,
}

/// What happens to the machine.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// Bytes were written by an application.
    Written {
        /// Offset in the file.
        offset: u64,
        /// The bytes; copied.
        data: &'a [u8],
    },
    /// A slice got its id, or none could be had.
    Assigned {
        /// Which slice.
        key: u64,
        /// The id.
        result: Result<SliceId, Errno>,
    },
    /// A block is durable, or could not be stored.
    Uploaded {
        /// Which slice.
        key: u64,
        /// Which block of it.
        index: u32,
        /// How it went.
        result: Result<(), Errno>,
    },
    /// The commit under way has ended.
    Committed(Result<Attr, Errno>),
    /// Somebody wants everything written so far committed and be told.
    Flush {
        /// Names the waiter in `Action::Wake`.
        ticket: u64,
    },
    /// Memory is short: send everything off.
    Pressed,
    /// Time has passed.
    Aged,
    /// A writable handle was opened.
    Opened,
    /// The last writable handle was closed: what fails from now on has nobody left to keep it for.
    Closed,
}

/// A slice as it is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    /// Offset inside the chunk.
    pub pos: u32,
    /// The slice.
    pub id: SliceId,
    /// Bytes.
    pub len: u32,
    /// The bytes themselves, if they travel with the record.
    pub frame: Option<Bytes>,
    /// When its first byte was written (monotonic): none of its blocks is stored for longer.
    pub born: Duration,
}

/// What the shell has to do.
#[derive(Debug)]
pub(crate) enum Action {
    /// Fetch a slice id; answer with `Event::Assigned`.
    Assign {
        /// For which slice.
        key: u64,
    },
    /// Store a block; answer with `Event::Uploaded`.
    Upload {
        /// Of which slice.
        key: u64,
        /// The block.
        block: BlockId,
        /// Its bytes.
        data: Bytes,
    },
    /// Commit these slices in one transaction; answer with `Event::Committed`. Never more than one under way.
    Commit {
        /// The chunk.
        chunk: u32,
        /// In creation order.
        slices: Vec<Ready>,
        /// Time of the last write.
        mtime: Time,
    },
    /// Tell a waiter.
    Wake {
        /// Which.
        ticket: u64,
        /// All committed, or the first failure.
        result: Result<(), Errno>,
    },
    /// Remove what may have been stored of these slices: no record names them, and none will.
    Discard {
        /// Each with its bytes.
        slices: Vec<(SliceId, u32)>,
    },
    /// Tell the operator that acknowledged bytes are lost.
    Dropped {
        /// How many.
        bytes: u64,
        /// Why.
        errno: Errno,
    },
}
