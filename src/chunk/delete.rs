//! Deleting data that nothing names any more: metadata first, made durable, then objects, then the last trace in the metadata.
//!
//! A power cut may undo a metadata change that was not synced, and then its objects must still be there. After the sync a crash anywhere
//! leaves the slices in `sliceRef` with a count below zero, and the periodic scan goes on.

use crate::chunk::Chunks;
use crate::chunk::join::join;
use crate::types::{BoxFuture, Errno, Ino, SliceId};

/// Slices whose objects are deleted at once: enough to keep a disk busy, and a small part of what a store answers at once.
const DELETES_MAX: usize = 4;

impl Chunks {
    /// Deletes the data of a file whose inode is gone.
    pub async fn delete_file(&self, ino: Ino, length: u64) -> Result<(), Errno> {
        self.delete_files(&[(ino, length)]).await
    }

    /// The same for several, with few commits and one sync.
    pub async fn delete_files(&self, files: &[(Ino, u64)]) -> Result<(), Errno> {
        let dead = self.meta.delete_files(files).await?;
        self.delete_slices(&dead).await
    }

    /// Deletes the objects of slices that a commit has left without a reference.
    pub async fn delete_slices(&self, slices: &[(SliceId, u32)]) -> Result<(), Errno> {
        if slices.is_empty() {
            return Ok(());
        }
        self.meta.sync().await?;
        let deletions = slices.iter().map(|&(id, size)| -> BoxFuture<'_, Result<_, Errno>> {
            Box::pin(async move { Ok(((id, size), self.blocks.delete_slice(id, size).await)) })
        });
        let outcomes = join(deletions.collect(), DELETES_MAX).await?;
        // Those whose objects are still there keep their count below zero, and are found again.
        let deleted: Vec<_> = outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).map(|(slice, _)| *slice).collect();
        self.meta.forget_slices(&deleted).await?;
        outcomes.into_iter().try_for_each(|(_, outcome)| outcome.map_err(|e| e.errno()))
    }
}

#[cfg(test)]
mod tests {
    use crate::chunk::testing::Bench;
    use crate::types::CHUNK_BYTES;

    #[tokio::test]
    async fn a_deleted_file_leaves_nothing() {
        let bench = Bench::new(0);
        let (ino, kept) = (bench.world.file(0), bench.world.file(0));
        bench.write(ino, 0, 0, 600_000).await;
        let small = bench.write(ino, 0, 5, 100).await;
        bench.write(ino, 3, 0, 300_000).await;
        bench.write(kept, 0, 0, 300_000).await;
        bench.world.unlink(ino);
        let length = 3 * CHUNK_BYTES + 300_000;
        assert_eq!(bench.world.meta.pending_files(i64::MAX, 10).await.unwrap(), [(ino, length)]);
        bench.chunks.delete_file(ino, length).await.unwrap();
        assert_eq!(bench.memory.objects().len(), 2, "the other file's");
        assert_eq!(bench.world.frame(small), None);
        assert!(bench.world.list(ino, 0).is_empty() && bench.world.list(ino, 3).is_empty());
        assert!(bench.world.meta.pending_files(i64::MAX, 10).await.unwrap().is_empty());
        assert!(bench.world.meta.pending_slices(10).await.unwrap().is_empty());
        bench.chunks.delete_file(ino, length).await.unwrap();
    }
}
