//! `Lists`: the slice lists of chunks, overlaid and kept from one read to the next.
//!
//! A list is only ever used together with the inode's record: whoever changes data changes the record in the same commit, so a list that was
//! read in one state with a record is right for as long as the record is that one. Whether it still is, the reader asks elsewhere.
//! Compaction alone leaves the record as it is: an older list then names other objects of the same bytes, or missing ones.
//!
//! Data committed by this process take what is known along: the commit guards the whole record, so before it the lists were those that are
//! known with that record, and the length that the store tells of the list it has grown shows whether it was compacted since.

use crate::types::{Extent, Ino, SliceRecord, flatten};
use bytes::Bytes;
use lru::LruCache;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Memory for lists: those of some 100,000 chunks that were written in order, or of a hundred badly scattered ones.
const BYTES_MAX: usize = 16 << 20;
/// What a list costs beside its extents: slots and counts.
const LIST_OVERHEAD: usize = 128;
/// What a file costs beside its lists: the record, links, slots.
const FILE_OVERHEAD: usize = 256;
/// Slices that were written since a list was read last. Who writes more in between does not read what it writes.
const LATER_MAX: usize = 256;

/// The list of a chunk as a read needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// Length of the file in that state, in bytes.
    pub length: u64,
    /// What is seen, in order and without gaps.
    pub extents: Arc<Vec<Extent>>,
}

/// A commit of ours that appended slices to the list of one chunk.
pub(crate) struct Growth<'a> {
    /// The record it guarded.
    pub before: &'a Bytes,
    /// The one it wrote.
    pub after: Bytes,
    /// Length of the file after it.
    pub length: u64,
    /// What it appended, in order.
    pub slices: &'a [SliceRecord],
    /// Elements of the list after it, as the store has counted them.
    pub elements: u64,
}

/// A bounded memory of lists.
pub struct Lists(Mutex<Memory>);

struct Memory {
    files: LruCache<Ino, File>,
    bytes: usize,
    bytes_max: usize,
}

/// Lists of a file that go with one record.
struct File {
    record: Bytes,
    length: u64,
    lists: HashMap<u32, Kept>,
    /// What all of it costs.
    bytes: usize,
}

struct Kept {
    extents: Arc<Vec<Extent>>,
    /// Elements of the stored list.
    elements: u64,
    /// Those at its end that are not overlaid yet.
    later: Vec<SliceRecord>,
}

impl Lists {
    pub(crate) fn new() -> Lists {
        Lists::bounded(BYTES_MAX)
    }

    fn bounded(bytes_max: usize) -> Lists {
        Lists(Mutex::new(Memory { files: LruCache::unbounded(), bytes: 0, bytes_max }))
    }

    /// What is known of a chunk, if it goes with this record.
    pub fn get(&self, ino: Ino, chunk: u32, record: &Bytes) -> Option<List> {
        let memory = &mut *self.lock();
        let file = memory.files.get_mut(&ino).filter(|file| file.record == *record)?;
        let before = file.bytes;
        let list = file.read(chunk);
        memory.bytes = memory.bytes - before + file.bytes;
        memory.shrink();
        list
    }

    /// Keeps a list of so many elements that was read together with the record. What goes with another record is forgotten.
    pub fn put(&self, ino: Ino, chunk: u32, record: Bytes, list: &List, elements: u64) {
        let memory = &mut *self.lock();
        let file = memory.files.pop(&ino);
        memory.bytes -= file.as_ref().map_or(0, |file| file.bytes);
        let mut file = file.filter(|file| file.record == record).unwrap_or_else(|| File::new(record, list.length));
        let kept = Kept { extents: list.extents.clone(), elements, later: Vec::new() };
        // One file that fills all of it would push out all others, and itself in the end.
        if file.bytes + kept.cost() > memory.bytes_max / 2 {
            file = File::new(file.record, list.length);
        }
        file.put(chunk, kept);
        memory.bytes += file.bytes;
        memory.files.put(ino, file);
        memory.shrink();
    }

    /// Takes what is known along with a commit of ours.
    pub(crate) fn grown(&self, ino: Ino, chunk: u32, growth: Growth<'_>) {
        let memory = &mut *self.lock();
        // That is no use of it: who only writes needs no lists.
        let Some(file) = memory.files.peek_mut(&ino).filter(|file| file.record == *growth.before) else { return };
        let before = file.bytes;
        file.grow(chunk, growth);
        memory.bytes = memory.bytes - before + file.bytes;
        memory.shrink();
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().expect("never poisoned: no code under it panics")
    }
}

impl Memory {
    /// The file that was used least goes first, and as a whole.
    fn shrink(&mut self) {
        while self.bytes > self.bytes_max {
            let Some((_, file)) = self.files.pop_lru() else { break };
            self.bytes -= file.bytes;
        }
    }
}

impl File {
    fn new(record: Bytes, length: u64) -> File {
        File { bytes: FILE_OVERHEAD + record.len(), record, length, lists: HashMap::new() }
    }

    fn put(&mut self, chunk: u32, kept: Kept) {
        self.bytes += kept.cost();
        if let Some(old) = self.lists.insert(chunk, kept) {
            self.bytes -= old.cost();
        }
    }

    fn read(&mut self, chunk: u32) -> Option<List> {
        let kept = self.lists.get_mut(&chunk)?;
        let before = kept.cost();
        kept.settle();
        self.bytes = self.bytes - before + kept.cost();
        Some(List { length: self.length, extents: kept.extents.clone() })
    }

    fn grow(&mut self, chunk: u32, growth: Growth<'_>) {
        self.bytes = self.bytes - self.record.len() + growth.after.len();
        (self.record, self.length) = (growth.after, growth.length);
        let Some(mut kept) = self.lists.remove(&chunk) else { return };
        self.bytes -= kept.cost();
        let is_ours = kept.elements + growth.slices.len() as u64 == growth.elements;
        if is_ours && kept.later.len() + growth.slices.len() <= LATER_MAX {
            kept.elements = growth.elements;
            kept.later.extend(growth.slices);
            self.put(chunk, kept);
        }
    }
}

impl Kept {
    fn cost(&self) -> usize {
        LIST_OVERHEAD + (self.extents.len() + self.later.len()) * size_of::<Extent>()
    }

    /// Overlays what was written since.
    fn settle(&mut self) {
        if self.later.is_empty() {
            return;
        }
        let seen = self.extents.iter().map(|e| SliceRecord { pos: e.pos, id: e.id, size: e.size, off: e.off, len: e.len });
        let all: Vec<_> = seen.chain(std::mem::take(&mut self.later)).collect();
        self.extents = Arc::new(flatten(&all));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: Ino = Ino(7);

    fn record(n: u8) -> Bytes {
        Bytes::from(vec![n; 80])
    }

    fn slice(pos: u32, id: u64, len: u32) -> SliceRecord {
        SliceRecord { pos, id, size: len, off: 0, len }
    }

    fn list(slices: &[SliceRecord], length: u64) -> List {
        List { length, extents: Arc::new(flatten(slices)) }
    }

    fn put(lists: &Lists, chunk: u32, n: u8, slices: &[SliceRecord]) {
        lists.put(INO, chunk, record(n), &list(slices, 100), slices.len() as u64);
    }

    fn grown(lists: &Lists, chunk: u32, n: u8, slices: &[SliceRecord], elements: u64) {
        let growth = Growth { before: &record(n), after: record(n + 1), length: 200, slices, elements };
        lists.grown(INO, chunk, growth);
    }

    fn check(lists: &Lists) {
        let memory = lists.lock();
        let cost = |file: &File| FILE_OVERHEAD + file.record.len() + file.lists.values().map(Kept::cost).sum::<usize>();
        assert!(memory.files.iter().all(|(_, file)| file.bytes == cost(file)));
        assert_eq!(memory.bytes, memory.files.iter().map(|(_, file)| file.bytes).sum::<usize>());
        assert!(memory.bytes <= memory.bytes_max);
    }

    #[test]
    fn a_list_goes_with_its_record() {
        let lists = Lists::new();
        put(&lists, 0, 1, &[slice(0, 1, 10)]);
        put(&lists, 3, 1, &[slice(0, 2, 10)]);
        assert_eq!(lists.get(INO, 0, &record(1)), Some(list(&[slice(0, 1, 10)], 100)));
        assert_eq!((lists.get(INO, 0, &record(2)), lists.get(INO, 1, &record(1)), lists.get(Ino(8), 0, &record(1))), (None, None, None));
        // Read with another record, also if that is the older one: nobody can tell.
        put(&lists, 3, 2, &[slice(0, 3, 10)]);
        assert_eq!((lists.get(INO, 0, &record(1)), lists.get(INO, 0, &record(2))), (None, None));
        check(&lists);
    }

    #[test]
    fn what_this_process_writes_is_laid_over_what_is_known() {
        let lists = Lists::new();
        let (old, other) = ([slice(0, 1, 10), slice(10, 2, 10)], [slice(0, 9, 5)]);
        put(&lists, 0, 1, &old);
        put(&lists, 3, 1, &other);
        let (second, third) = ([slice(5, 3, 10), slice(6, 4, 1)], [slice(40, 5, 2)]);
        grown(&lists, 0, 1, &second, 4);
        assert_eq!(lists.get(INO, 0, &record(1)), None);
        check(&lists);
        grown(&lists, 0, 2, &third, 5);
        let all = [&old[..], &second, &third].concat();
        assert_eq!(lists.get(INO, 0, &record(3)), Some(list(&all, 200)));
        assert_eq!(lists.get(INO, 0, &record(3)), Some(list(&all, 200)));
        assert_eq!(lists.get(INO, 3, &record(3)), Some(list(&other, 200)), "the file has another length, too");
        // A list that nobody has read says nothing of its beginning.
        grown(&lists, 1, 3, &third, 1);
        assert_eq!(lists.get(INO, 1, &record(4)), None);
        assert!(lists.get(INO, 0, &record(4)).is_some());
        check(&lists);
    }

    #[test]
    fn commits_of_others_and_compactions_between_are_noticed() {
        let lists = Lists::new();
        put(&lists, 0, 1, &[slice(0, 1, 10), slice(5, 2, 10)]);
        put(&lists, 1, 1, &[slice(0, 3, 10)]);
        // Compacted to one, and one more.
        grown(&lists, 0, 1, &[slice(0, 4, 1)], 2);
        assert_eq!(lists.get(INO, 0, &record(2)), None);
        assert!(lists.get(INO, 1, &record(2)).is_some());
        // Another record was there.
        grown(&lists, 1, 5, &[slice(0, 4, 1)], 2);
        assert_eq!(lists.get(INO, 1, &record(6)), None);
        assert!(lists.get(INO, 1, &record(2)).is_some());
        check(&lists);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes_first() {
        let lists = Lists::bounded(100_000);
        let many: Vec<_> = (0..1000).map(|n| slice(2 * n, 1 + u64::from(n), 1)).collect();
        for ino in 1..6 {
            lists.put(Ino(ino), 0, record(1), &list(&many[..500], 100), 500);
            check(&lists);
        }
        assert!(lists.get(Ino(1), 0, &record(1)).is_none() && lists.get(Ino(5), 0, &record(1)).is_some());
        // Written and never read.
        put(&lists, 0, 1, &many[..1]);
        for n in 0..=LATER_MAX as u64 {
            let growth = Growth { before: &record(1), after: record(1), length: 1, slices: &many[..1], elements: n + 2 };
            lists.grown(INO, 0, growth);
            check(&lists);
        }
        assert_eq!(lists.get(INO, 0, &record(1)), None);
    }
}
