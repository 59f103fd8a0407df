//! A volume in memory whose objects may fail, for the tests of this module and of the jobs.

use crate::block::{BlockConfig, BlockStore, Tuning};
use crate::cache::MemoryCache;
use crate::chunk::Chunks;
use crate::meta::ops::chunk::testing::World;
use crate::meta::ops::write::NewSlice;
use crate::object::fault::FaultStore;
use crate::object::memory::MemoryStore;
use crate::types::{BlockId, CHUNK_BYTES, Ino, SliceId, block_count};
use bytes::Bytes;
use std::sync::Arc;

pub(crate) const BLOCK_BYTES: u32 = 256 << 10;

pub(crate) struct Bench {
    pub world: World,
    pub blocks: Arc<BlockStore>,
    pub chunks: Arc<Chunks>,
    pub faults: Arc<FaultStore>,
    pub memory: Arc<MemoryStore>,
}

impl Bench {
    pub fn new(cache_bytes: u64) -> Bench {
        let world = World::new();
        let memory = Arc::new(MemoryStore::new());
        let faults = Arc::new(FaultStore::new(memory.clone()));
        let blocks = BlockStore::new(BlockConfig {
            objects: faults.clone(),
            prefix: "vol".into(),
            hash_prefix: false,
            block_bytes: BLOCK_BYTES,
            codec: Default::default(),
            cache: MemoryCache::new(cache_bytes),
            disk: None,
            frames: world.meta.clone(),
            tuning: Tuning { uploads_max: 4, downloads_max: 4, ..Tuning::default() },
        });
        let chunks = Chunks::new(world.meta.clone(), blocks.clone());
        Bench { world, blocks, chunks, faults, memory }
    }

    /// The bytes of a slice; no two slices are alike.
    pub fn pattern(&self, id: SliceId, size: u32) -> Bytes {
        (0..size).map(|n| (n.wrapping_mul(31).wrapping_add(id as u32 * 7) % 255 + 1) as u8).collect()
    }

    /// Stores the objects of a slice.
    pub async fn store_slice(&self, id: SliceId, size: u32) {
        let data = self.pattern(id, size);
        for index in 0..block_count(size, BLOCK_BYTES) {
            let block = BlockId::of(id, size, index, BLOCK_BYTES).unwrap();
            let start = (index * BLOCK_BYTES) as usize;
            self.blocks.upload(block, data.slice(start..start + block.len as usize)).await.unwrap();
        }
    }

    /// Writes a new slice into a file: objects, or a frame for a small one.
    pub async fn write(&self, ino: Ino, chunk: u32, pos: u32, len: u32) -> SliceId {
        let id = self.world.meta.next_slice().await.unwrap();
        let frame = (len <= crate::block::FRAME_BYTES_MAX).then(|| self.pattern(id, len));
        if frame.is_none() {
            self.store_slice(id, len).await;
        }
        self.world.meta.write(ino, chunk, &[NewSlice { pos, id, len, frame }], self.world.now()).await.unwrap();
        id
    }

    /// What a chunk reads as, to its end.
    pub async fn content(&self, ino: Ino, chunk: u32) -> Vec<u8> {
        let view = self.world.meta.chunk(ino, chunk, 0).await.unwrap();
        let end = view.records.iter().map(|record| record.end()).max().unwrap_or(0);
        assert!(u64::from(end) <= CHUNK_BYTES);
        self.chunks.read(&view.records, 0..end).await.unwrap().concat()
    }
}
