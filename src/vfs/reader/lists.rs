//! `Lists`: the slice lists of chunks, overlaid and kept from one read to the next.
//!
//! A list is only ever used together with the inode's record: whoever changes data changes the record in the same commit, so a list that was
//! read in one state with a record is right for as long as the record is that one. Whether it still is, the reader asks elsewhere.
//! Compaction alone leaves the record as it is: an older list then names other objects of the same bytes, or missing ones.

use crate::types::{Extent, Ino};
use bytes::Bytes;
use lru::LruCache;
use std::sync::{Arc, Mutex, MutexGuard};

/// Memory for lists: those of some 100,000 chunks that were written in order, or of a hundred badly scattered ones.
const BYTES_MAX: usize = 16 << 20;
/// What a list costs beside its extents: the record, links, slots.
const LIST_OVERHEAD: usize = 256;

/// The list of a chunk as a read needs it.
#[derive(Debug)]
pub(super) struct List {
    /// The inode's record it was read with.
    pub record: Bytes,
    /// Length of the file in that state.
    pub length: u64,
    /// What is seen, in order and without gaps.
    pub extents: Vec<Extent>,
}

/// A bounded memory of lists.
pub(super) struct Lists(Mutex<Memory>);

struct Memory {
    lists: LruCache<(Ino, u32), Arc<List>>,
    bytes: usize,
}

impl Lists {
    pub fn new() -> Lists {
        Lists(Mutex::new(Memory { lists: LruCache::unbounded(), bytes: 0 }))
    }

    /// What is known of a chunk.
    pub fn get(&self, ino: Ino, chunk: u32) -> Option<Arc<List>> {
        self.lock().lists.get(&(ino, chunk)).cloned()
    }

    /// Keeps a list. One that would take half of the memory is not kept.
    pub fn put(&self, ino: Ino, chunk: u32, list: &Arc<List>) {
        let bytes = cost(list);
        let mut memory = self.lock();
        if let Some(old) = memory.lists.pop(&(ino, chunk)) {
            memory.bytes -= cost(&old);
        }
        if bytes > BYTES_MAX / 2 {
            return;
        }
        memory.bytes += bytes;
        memory.lists.put((ino, chunk), list.clone());
        while memory.bytes > BYTES_MAX {
            let Some((_, old)) = memory.lists.pop_lru() else { break };
            memory.bytes -= cost(&old);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().expect("never poisoned: no code under it panics")
    }
}

fn cost(list: &List) -> usize {
    LIST_OVERHEAD + list.record.len() + list.extents.len() * size_of::<Extent>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(extents: usize) -> Arc<List> {
        let extent = Extent { pos: 0, id: 1, size: 1, off: 0, len: 1 };
        Arc::new(List { record: Bytes::from_static(b"record"), length: 1, extents: vec![extent; extents] })
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes_first() {
        let lists = Lists::new();
        let large = BYTES_MAX / 4 / size_of::<Extent>();
        for chunk in 0..4 {
            lists.put(Ino(7), chunk, &list(large));
            assert!(lists.get(Ino(7), 0).is_some());
        }
        let kept: Vec<u32> = (0..4).filter(|chunk| lists.get(Ino(7), *chunk).is_some()).collect();
        assert_eq!(kept, [0, 2, 3]);
        lists.put(Ino(7), 0, &list(1));
        lists.put(Ino(8), 1, &list(3 * large));
        assert!(lists.get(Ino(8), 1).is_none(), "it would push out all others");
        let sum: usize = lists.lock().lists.iter().map(|(_, list)| cost(list)).sum();
        assert_eq!(lists.lock().bytes, sum);
    }
}
