//! Where metadata and blocks meet: reading a chunk, compacting it, deleting what nothing names any more.

mod compact;
mod delete;
mod drain;
mod read;

pub use drain::{DRAINED_MAX, Drained};

use crate::block::BlockStore;
use crate::meta::Meta;
use crate::types::Ino;
use std::collections::HashSet;
use std::sync::{Arc, Mutex};

/// The chunks of one volume.
pub struct Chunks {
    meta: Arc<Meta>,
    blocks: Arc<BlockStore>,
    /// See `delete`.
    loss_window: std::time::Duration,
    /// Being compacted by this process.
    compacting: Mutex<HashSet<(Ino, u32)>>,
}

impl Chunks {
    /// Over this metadata and these blocks.
    pub fn new(meta: Arc<Meta>, blocks: Arc<BlockStore>) -> Arc<Chunks> {
        Arc::new(Chunks { meta, blocks, loss_window: delete::LOSS_WINDOW, compacting: Mutex::default() })
    }

    /// The blocks of the volume.
    pub fn blocks(&self) -> &Arc<BlockStore> {
        &self.blocks
    }
}

#[cfg(test)]
pub(crate) mod testing;
