//! Deleting data that nothing names any more: metadata first, made durable, then objects, then the last trace in the metadata.
//!
//! A power cut may undo a metadata change that was not synced, and then its objects must still be there. After the sync a crash anywhere
//! leaves the slices in `sliceRef` with a count below zero, and the periodic scan goes on. Of a server it is not known when a change is durable:
//! objects go some seconds later, if the change is still there.

use crate::chunk::Chunks;
use crate::types::{Errno, Ino, SliceId};
use std::time::Duration;

/// A server that writes its log every second loses up to two of them when it crashes. What was deleted in them is there again then, and its
/// objects must be, too.
pub(super) const LOSS_WINDOW: Duration = Duration::from_secs(3);

/// Slices whose objects are named at once: some megabytes of keys, and many requests' worth of them.
const SLICES_AT_ONCE: usize = 4096;

impl Chunks {
    /// Deletes the data of a file whose inode is gone.
    pub async fn delete_file(&self, ino: Ino, length: u64) -> Result<(), Errno> {
        self.delete_files(&[(ino, length)]).await
    }

    /// The same for several, with few commits and one sync.
    pub async fn delete_files(&self, files: &[(Ino, u64)]) -> Result<(), Errno> {
        if self.blocks.deletes_max() == 0 {
            return Ok(());
        }
        let dead = self.meta.delete_files(files).await?;
        self.delete_slices(&dead).await
    }

    /// The same for very many: their lists are found first, then `at_once` files go in each step, and whoever else uses the store has as long
    /// as a step took, at most `pause_max`. Cut anywhere, what has begun is found again like that of a crash.
    pub async fn delete_many_files(&self, files: &[(Ino, u64)], at_once: usize, pause_max: Duration) -> Result<(), Errno> {
        if self.blocks.deletes_max() == 0 {
            return Ok(());
        }
        let mut lists = self.meta.lists_of_deleted(files).await?;
        let (mut dead, mut outcome) = (Vec::new(), Ok(()));
        for group in files.chunks(at_once) {
            let began = crate::env::instant();
            let listed = group.iter().filter_map(|(ino, _)| lists.remove_entry(ino)).collect();
            match self.meta.delete_listed(group, listed).await {
                Ok(more) => dead.extend(more),
                Err(errno) => {
                    outcome = Err(errno);
                    break;
                }
            }
            tokio::time::sleep(began.elapsed().min(pause_max)).await;
        }
        // One wait for what a server may lose, for all of them.
        self.delete_slices(&dead).await.and(outcome)
    }

    /// Deletes the objects of slices that a commit has left without a reference. If this process is to delete nothing, another client finds them.
    pub async fn delete_slices(&self, slices: &[(SliceId, u32)]) -> Result<(), Errno> {
        if slices.is_empty() || self.blocks.deletes_max() == 0 {
            return Ok(());
        }
        self.meta.sync().await?;
        let slices = if self.meta.is_far() {
            tokio::time::sleep(self.loss_window).await;
            self.meta.still_dead(slices).await?
        } else {
            slices.to_vec()
        };
        let mut outcomes = Vec::with_capacity(slices.len());
        for some in slices.chunks(SLICES_AT_ONCE) {
            outcomes.extend(self.blocks.delete_slices(some).await);
        }
        // Those whose objects are still there keep their count below zero, and are found again.
        let deleted: Vec<_> = slices.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok()).map(|(slice, _)| *slice).collect();
        self.meta.forget_slices(&deleted).await?;
        outcomes.into_iter().try_for_each(|outcome| outcome.map_err(|e| e.errno()))
    }
}

#[cfg(test)]
mod tests {
    use crate::chunk::Chunks;
    use crate::chunk::testing::Bench;
    use crate::meta::key;
    use crate::meta::store::Write;
    use crate::types::CHUNK_BYTES;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    #[tokio::test]
    async fn what_a_server_has_lost_the_deletion_of_keeps_its_objects() {
        let bench = Bench::new(0);
        bench.world.store.far.store(true, Ordering::Relaxed);
        let (meta, blocks, loss_window) = (bench.world.neighbour(), bench.blocks.clone(), Duration::from_millis(50));
        let chunks = Chunks { meta, blocks, loss_window, compacting: Default::default() };
        let (back, gone) = (bench.world.file(0), bench.world.file(0));
        let slices = [bench.write(back, 0, 0, 100_000).await, bench.write(gone, 0, 0, 100_000).await];
        for ino in [back, gone] {
            bench.world.unlink(ino);
        }
        let crash = async {
            // This runs when the deletion waits.
            assert_eq!(bench.memory.objects().len(), 2, "not yet");
            // The server starts again from a log that ends before the count of the first was taken.
            bench.world.store.put(Write::HDel(key::SLICE_REF, key::slice_ref(slices[0], 100_000)));
        };
        let files = [(back, 100_000), (gone, 100_000)];
        let (deleted, ()) = tokio::join!(chunks.delete_files(&files), crash);
        deleted.unwrap();
        let left: Vec<_> = bench.memory.objects().into_iter().collect();
        assert_eq!(left.len(), 1);
        assert!(format!("{left:?}").contains(&format!("/{}_0_", slices[0])));
    }

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
