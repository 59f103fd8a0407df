//! Compaction: many small records of a chunk become one slice (metadata §8.3).
//!
//! The new slice is stored first, then the lists are exchanged, then what nothing names is deleted. A crash before the exchange leaves
//! objects that nobody names; after it, slices whose count is below zero, which the periodic scan finds.

use crate::block::{BlockError, FRAME_BYTES_MAX};
use crate::chunk::Chunks;
use crate::meta::ops::compact::{CompactPlan, plan_compaction};
use crate::meta::ops::write::NewSlice;
use crate::telemetry::metrics;
use crate::types::{BlockId, Duty, Errno, Ino, SliceId, SliceRecord, block_count};
use bytes::{Bytes, BytesMut};
use std::collections::HashSet;
use std::sync::Mutex;
use tracing::debug;

/// A result that becomes a frame beside the metadata.
struct Small {
    data: Bytes,
    frame: Bytes,
}

impl Chunks {
    /// Compacts a chunk if there is something to gain; true if its list is shorter now. Does nothing while this process already compacts it.
    pub async fn compact(&self, ino: Ino, chunk: u32) -> Result<bool, Errno> {
        let Some(_turn) = Turn::take(&self.compacting, (ino, chunk)) else { return Ok(false) };
        let view = self.meta.chunk(ino, chunk, 0).await?;
        if view.attr.is_none() {
            return Ok(false);
        }
        let Some(plan) = plan_compaction(&view.records) else { return Ok(false) };
        let taken = &view.records[..plan.taken];
        let id = self.meta.next_slice().await?;
        let small = match self.store_merged(id, &taken[plan.skipped..], &plan).await {
            Ok(small) => small,
            Err(error) => {
                self.discard(id, plan.len).await;
                if let BlockError::Missing { key } = &error {
                    // Overwritten or deleted, and reclaimed, since the list was read.
                    debug!(%ino, chunk, key, "not compacted: a source is gone");
                    return Ok(false);
                }
                return Err(error.errno());
            }
        };
        let new = NewSlice { pos: plan.pos, id, len: plan.len, frame: small.as_ref().map(|small| small.frame.clone()) };
        // An error leaves the new objects alone: it may not be known whether the exchange happened.
        match self.meta.compact_commit(ino, chunk, taken, plan.skipped, new).await? {
            Some(dead) => {
                if let Some(small) = small {
                    self.blocks.note_frame(id, small.data);
                }
                debug!(%ino, chunk, records = plan.taken - plan.skipped, bytes = plan.len, "compacted");
                metrics::COMPACTED.bytes(plan.len.into());
                if self.meta.is_far() {
                    // They have to wait, and the next chunk has not.
                    dead.into_iter().for_each(|(id, size)| self.meta.ask(Duty::DeleteSlice { id, size }));
                    return Ok(true);
                }
                self.delete_slices(&dead).await.map(|()| true)
            }
            None => {
                self.discard(id, plan.len).await;
                Ok(false)
            }
        }
    }

    /// Stores what is visible of `records` in the planned range as slice `id`, a block at a time, so that a chunk never lies in memory as a
    /// whole. A small result is not stored but answered.
    async fn store_merged(&self, id: SliceId, records: &[SliceRecord], plan: &CompactPlan) -> Result<Option<Small>, BlockError> {
        let block_bytes = self.blocks.block_bytes();
        // Nobody waits for it, so what a server keeps for seconds is not spent on it.
        let frames = !self.meta.is_far() && self.meta.journal().is_on();
        if frames && plan.len <= FRAME_BYTES_MAX.min(block_bytes) {
            let data = whole(self.read(records, plan.pos..plan.pos + plan.len).await?);
            let frame = self.blocks.encode(&data).await?;
            return Ok(Some(Small { data, frame }));
        }
        for index in 0..block_count(plan.len, block_bytes) {
            let block = BlockId::of(id, plan.len, index, block_bytes).expect("the index is below the slice's block count");
            let start = plan.pos + index * block_bytes;
            let data = whole(self.read(records, start..start + block.len).await?);
            self.blocks.upload(block, data).await?;
        }
        Ok(None)
    }

    /// Removes what was stored of a slice that no record will ever name.
    async fn discard(&self, id: SliceId, len: u32) {
        for outcome in self.blocks.delete_slices(&[(id, len)]).await {
            if let Err(error) = outcome {
                debug!(id, "objects nobody names are left: {error}");
            }
        }
    }
}

fn whole(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() == 1 {
        return pieces.remove(0);
    }
    let mut bytes = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| bytes.extend_from_slice(piece));
    bytes.freeze()
}

/// The right to compact a chunk, given back when dropped.
struct Turn<'a> {
    busy: &'a Mutex<HashSet<(Ino, u32)>>,
    chunk: (Ino, u32),
}

impl<'a> Turn<'a> {
    fn take(busy: &'a Mutex<HashSet<(Ino, u32)>>, chunk: (Ino, u32)) -> Option<Turn<'a>> {
        let is_free = busy.lock().expect("never poisoned: no code under it panics").insert(chunk);
        // Only now, and only then: one that is dropped takes the lock, and gives back what another has.
        if is_free { Some(Turn { busy, chunk }) } else { None }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.busy.lock().expect("never poisoned: no code under it panics").remove(&self.chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::testing::{BLOCK_BYTES, Bench};
    use crate::object::ObjectError;
    use crate::object::fault::{Fault, Request};

    #[test]
    fn who_finds_a_chunk_busy_leaves_it_busy() {
        let busy = Mutex::default();
        let first = Turn::take(&busy, (Ino(2), 0)).expect("nobody has it");
        for _ in 0..2 {
            assert!(Turn::take(&busy, (Ino(2), 0)).is_none());
        }
        assert!(Turn::take(&busy, (Ino(2), 1)).is_some(), "another chunk");
        drop(first);
        assert!(Turn::take(&busy, (Ino(2), 0)).is_some());
    }

    #[tokio::test]
    async fn many_records_become_one_that_reads_the_same() {
        // The last column: whether the result is a frame.
        let table: [(&[(u32, u32)], bool); 4] = [
            (&[(0, 100), (50, 100), (4096, 10)], true),
            (&[(0, 100_000), (90_000, 100_000), (500_000, 7)], false),
            (&[(10, 70_000), (0, 70_100)], false),
            (&[(1000, 5), (1000, 5), (1000, 5)], true),
        ];
        for (writes, is_frame) in table {
            let bench = Bench::new(0);
            let ino = bench.world.file(0);
            for &(pos, len) in writes {
                bench.write(ino, 0, pos, len).await;
            }
            let before = bench.content(ino, 0).await;
            bench.chunks.compact(ino, 0).await.unwrap();
            let list = bench.world.list(ino, 0);
            assert_eq!(list.len(), 1, "{writes:?}");
            assert!(bench.content(ino, 0).await == before, "{writes:?}");
            assert_eq!(bench.world.frame(list[0].id).is_some(), is_frame, "{writes:?}");
            let objects = if is_frame { 0 } else { block_count(list[0].size, BLOCK_BYTES) as usize };
            assert_eq!(bench.memory.objects().len(), objects, "the replaced objects are gone");
            assert!(bench.world.meta.pending_slices(10).await.unwrap().is_empty());
            bench.chunks.compact(ino, 0).await.unwrap();
            assert_eq!(bench.world.list(ino, 0), list, "nothing is left to do");
        }
    }

    #[tokio::test]
    async fn a_list_that_changed_meanwhile_stays() {
        let bench = Bench::new(0);
        let ino = bench.world.file(0);
        bench.write(ino, 0, 0, 100_000).await;
        bench.write(ino, 0, 0, 100_000).await;
        let objects = bench.memory.objects();
        bench.world.store.before_commit({
            let store = bench.world.store.clone();
            move || {
                let key = crate::meta::key::chunk(ino, 0);
                store.put(crate::meta::store::Write::Del(key));
            }
        });
        bench.chunks.compact(ino, 0).await.unwrap();
        assert_eq!(bench.world.list(ino, 0), []);
        assert_eq!(bench.memory.objects(), objects, "the merged slice is removed, the others are not ours to remove");
    }

    #[tokio::test]
    async fn failures_leave_everything_as_it_was() {
        let bench = Bench::new(0);
        let ino = bench.world.file(0);
        for pos in [0, 200_000, 400_000] {
            bench.write(ino, 0, pos, 150_000).await;
        }
        let (list, objects) = (bench.world.list(ino, 0), bench.memory.objects());
        bench.faults.inject(Request::Put, 1, 1, Fault::Fail(ObjectError::Full("disk".into())));
        assert_eq!(bench.chunks.compact(ino, 0).await, Err(Errno::NOSPC));
        assert_eq!((bench.world.list(ino, 0), bench.memory.objects()), (list.clone(), objects));
        bench.faults.inject(Request::Get, 1, 1, Fault::Fail(ObjectError::Missing));
        assert_eq!(bench.chunks.compact(ino, 0).await, Ok(false), "a source that is gone is no failure");
        assert_eq!(bench.world.list(ino, 0), list);
        assert_eq!(bench.chunks.compact(ino, 0).await, Ok(true));
        assert_eq!(bench.world.list(ino, 0).len(), 1);
    }

    #[tokio::test]
    async fn objects_that_cannot_be_deleted_are_found_again() {
        let bench = Bench::new(0);
        let ino = bench.world.file(0);
        bench.write(ino, 0, 0, 100_000).await;
        bench.write(ino, 0, 0, 100_000).await;
        bench.faults.inject(Request::Delete, 0, 1, Fault::Fail(ObjectError::Denied("no".into())));
        assert_eq!(bench.chunks.compact(ino, 0).await, Err(Errno::IO));
        let pending = bench.world.meta.pending_slices(10).await.unwrap();
        assert_eq!(pending.len(), 1);
        bench.chunks.delete_slices(&pending).await.unwrap();
        assert_eq!(bench.memory.objects().len(), 1);
        assert!(bench.world.meta.pending_slices(10).await.unwrap().is_empty());
    }
}
