//! `Duty`: background work the foreground asks for.

use crate::types::{Ino, SliceId};

/// A piece of background work. Queues of duties are bounded and may drop: the periodic scans find the same work again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// The last link of a file is gone; its data, `length` bytes of it, may be deleted (metadata §8.5).
    DeleteFile {
        /// The file that was.
        ino: Ino,
        /// Its length when it was deleted, as in its `delfiles` member.
        length: u64,
    },
    /// No record names this slice any more; its objects may go (metadata §8.4).
    DeleteSlice {
        /// The slice.
        id: SliceId,
        /// Its size in bytes.
        size: u32,
    },
    /// The slice list of a chunk has grown long (metadata §6.13).
    Compact {
        /// The file.
        ino: Ino,
        /// Index of the chunk.
        chunk: u32,
    },
}
