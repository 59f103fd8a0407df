//! Draining: a small block that is kept beside the metadata becomes an object, as every other client expects it.

use crate::chunk::Chunks;
use crate::types::{BlockId, Errno, FrameSource, SliceId};

impl Chunks {
    /// Stores the frame of a slice of `size` bytes as its object, then removes the frame. False if there is none (any more).
    ///
    /// A slice never changes, so nothing needs to be guarded: whoever drains it at the same time writes the same object. If the slice is
    /// deleted meanwhile its object may stay behind as garbage.
    pub async fn drain_frame(&self, id: SliceId, size: u32) -> Result<bool, Errno> {
        if self.meta.frame(id).await?.is_none() {
            return Ok(false);
        }
        let Some(block) = BlockId::of(id, size, 0, self.blocks.block_bytes()) else { return Ok(false) };
        let data = self.blocks.fetch(block).await.map_err(|e| e.errno())?;
        self.blocks.upload(block, data).await.map_err(|e| e.errno())?;
        self.meta.drop_frame(id).await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use crate::chunk::testing::Bench;

    #[tokio::test]
    async fn a_frame_becomes_an_object() {
        let bench = Bench::new(0);
        let ino = bench.world.file(0);
        let small = bench.write(ino, 0, 5, 100).await;
        assert!(bench.world.frame(small).is_some() && bench.memory.objects().is_empty());
        assert_eq!(bench.chunks.drain_frame(small, 100).await, Ok(true));
        assert_eq!((bench.world.frame(small), bench.memory.objects().len()), (None, 1));
        assert_eq!(bench.chunks.drain_frame(small, 100).await, Ok(false));
    }
}
