//! Slices as blocks, blocks as objects: upload, fetch, delete. Knows no inodes.
//!
//! Blocks are immutable: what is cached or fetched once is never stale. Every object that comes back is decoded to exactly the length of its
//! block, or is damaged.

mod compress;
mod encrypt;
mod flight;
mod frame;
mod hedge;
mod limit;
mod private_key;
mod retry;
mod store;
mod transfers;

pub use compress::Compression;
pub use encrypt::Encryption;
pub use frame::Codec;
pub(crate) use retry::{delete_all, retrying};
pub use store::{BlockConfig, BlockStore};
pub use transfers::{Bandwidth, Tuning};

use crate::object::ObjectError;
pub use crate::types::FRAME_BYTES_MAX;

use crate::types::Errno;
use std::fmt;

/// Why a block could not be read, written or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// There is no object. After a compaction that is no damage: the chunk's list has changed and is to be read again.
    Missing {
        /// The object.
        key: String,
    },
    /// The object, or the record that names it, is not what it should be.
    Damaged {
        /// The object.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// A block could not be made an object: the system has no randomness or no thread for it.
    Encode(String),
    /// The object store failed, for good or for longer than we try.
    Store(ObjectError),
    /// The place where small blocks live beside the metadata failed; logged there.
    Frames(Errno),
}

impl BlockError {
    /// What an application is told.
    pub fn errno(&self) -> Errno {
        match self {
            BlockError::Store(ObjectError::Full(_)) => Errno::NOSPC,
            BlockError::Frames(errno) => *errno,
            BlockError::Missing { .. } | BlockError::Damaged { .. } | BlockError::Encode(_) | BlockError::Store(_) => Errno::IO,
        }
    }
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BlockError::Missing { key } => write!(f, "object {key} is missing"),
            BlockError::Damaged { key, why } => write!(f, "object {key} is damaged: {why}"),
            BlockError::Encode(why) => write!(f, "a block cannot be encoded: {why}"),
            BlockError::Store(error) => write!(f, "{error}"),
            BlockError::Frames(errno) => write!(f, "a small block cannot be read: {errno}"),
        }
    }
}

impl std::error::Error for BlockError {}
