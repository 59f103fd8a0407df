//! Reading the slice list of a chunk, and which chunks of a file have one.

use crate::meta::codec::{self, Record};
use crate::meta::driver::errno_of;
use crate::meta::ops::delete::parse_delfile;
use crate::meta::store::{Query, ScanRange, Value};
use crate::meta::{List, Meta, key};
use crate::types::{Attr, Errno, Extent, Ino, SliceRecord, flatten};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

/// Keys asked for at once when the chunk lists of a file are looked for: an answer of some 100 KiB.
const SCAN_KEYS: u32 = 4096;
/// Of so many chunks (64 GiB) each is asked for; of more, all keys of the volume are looked through.
const CHUNKS_ASKED_MAX: usize = 1024;
/// Lists asked for at once: most have one record, few more than a hundred.
const LISTS_AT_ONCE: u32 = 64;

/// What one read tells of a chunk; all of it describes one state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkView {
    /// The slice list, oldest first; empty = zeros.
    pub records: Vec<SliceRecord>,
    /// The inode, `None` if its record is gone.
    pub attr: Option<Attr>,
    /// The inode's record as it is stored. Every change of data changes it, so it tells whether the list is still right.
    pub record: Option<Bytes>,
    /// When a file of this length was deleted under this number, in unix seconds, while its data is not reclaimed.
    pub deleted_at: Option<i64>,
}

impl Meta {
    /// The list of a chunk, the inode's attributes, and whether the file of `length` bytes was deleted: one trip, one state. Only so can a
    /// reader tell an empty list (zeros) from one that was reclaimed (no answer at all).
    pub async fn chunk(&self, ino: Ino, index: u32, length: u64) -> Result<ChunkView, Errno> {
        let list = key::chunk(ino, index);
        let queries = [
            Query::List(list.clone()),
            Query::Get(key::inode(ino)),
            Query::ZScore(key::DELFILES, key::delfile(ino, length)),
            Query::Frames { list, until: 0 },
        ];
        // On this host a frame is asked for when it is needed.
        let wanted = if self.is_far() { &queries[..] } else { &queries[..3] };
        let values = self.driver.read("read a chunk", wanted).await?;
        let [Value::List(elements), Value::Bytes(record), Value::Score(deleted_at), ..] = &values[..] else { return Err(Errno::IO) };
        Ok(ChunkView { deleted_at: *deleted_at, ..view_of(elements, record.as_ref())? })
    }

    /// The first lists of several files in one trip. Those that are gone or damaged are left out.
    pub async fn first_chunks(&self, files: &[Ino]) -> Result<Vec<(Ino, ChunkView)>, Errno> {
        let queries: Vec<_> = files.iter().flat_map(|ino| [Query::List(key::chunk(*ino, 0)), Query::Get(key::inode(*ino))]).collect();
        let values = self.driver.read("read chunks", &queries).await?;
        let mut views = Vec::with_capacity(files.len());
        for (ino, pair) in files.iter().zip(values.chunks(2)) {
            if let [Value::List(elements), Value::Bytes(record)] = pair
                && let Ok(view) = view_of(elements, record.as_ref())
                && view.attr.is_some()
            {
                views.push((*ino, view));
            }
        }
        Ok(views)
    }

    /// The first list of a file as the open, the lock or the read told it that came just before, if this process has committed nothing since.
    pub fn recent_chunk(&self, ino: Ino, index: u32) -> Option<ChunkView> {
        // Opens and locks ask for this one; of others an answer from before them may be known.
        let facts = self.driver.facts.as_ref().filter(|_| index == 0)?;
        let values = facts.recall_recent(&[Query::List(key::chunk(ino, 0)), Query::Get(key::inode(ino))])?;
        let [Value::List(elements), Value::Bytes(Some(record))] = &values[..] else { return None };
        let records: Option<Vec<_>> = elements.iter().map(|e| codec::decode_slice(e)).collect();
        let attr = Some(Record::decode(record.clone())?.attr);
        Some(ChunkView { records: records?, attr, record: Some(record.clone()), deleted_at: None })
    }

    /// The list of a chunk as it was read before and as this process has changed it since, if it goes with this record of the inode.
    pub fn known_list(&self, ino: Ino, index: u32, record: &Bytes) -> Option<List> {
        self.lists.get(ino, index, record)
    }

    /// Remembers a list of so many elements, read together with this record. Of a store on this host it is as quickly read again.
    pub fn note_list(&self, ino: Ino, index: u32, record: Bytes, list: &List, elements: u64) {
        if self.is_far() {
            self.lists.put(ino, index, record, list, elements);
        }
    }

    /// The inode's record as the store told it within the last second, or as this process has changed it since; and how long ago that was.
    pub fn recent_record(&self, ino: Ino) -> Option<(Bytes, Duration)> {
        let (record, age) = self.driver.facts.as_ref()?.recent(&Query::Get(key::inode(ino)))?;
        Some((record?, age))
    }

    /// The same for a handle that may know an old length: who deleted the file marked it with the length it had in the end. Answers the
    /// length that counts.
    pub async fn chunk_of_open(&self, ino: Ino, index: u32, length: u64) -> Result<(ChunkView, u64), Errno> {
        let view = self.chunk(ino, index, length).await?;
        if view.attr.is_some() || view.deleted_at.is_some() {
            return Ok((view, length));
        }
        match self.deleted_length(ino).await? {
            Some(length) => Ok((self.chunk(ino, index, length).await?, length)),
            None => Ok((view, length)),
        }
    }

    /// The length of a deleted file whose data is not reclaimed.
    async fn deleted_length(&self, ino: Ino) -> Result<Option<u64>, Errno> {
        let scan = ScanRange::Sorted(key::DELFILES);
        let mut cursor = Some(Default::default());
        while let Some(from) = cursor {
            let page = self.driver.store.scan(&scan, from, SCAN_KEYS).await.map_err(|e| errno_of("list deleted files", &e))?;
            let length = page.items.iter().filter_map(|item| parse_delfile(&item.name)).find(|(deleted, _)| *deleted == ino);
            if let Some((_, length)) = length {
                return Ok(Some(length));
            }
            cursor = page.next;
        }
        Ok(None)
    }

    /// Which chunks of these files have a list. A server looks through all of its keys for the lists of one file, and no longer for those of
    /// many.
    pub(crate) async fn lists_of(&self, files: &BTreeSet<Ino>) -> Result<BTreeMap<Ino, BTreeSet<u32>>, Errno> {
        let mut lists: BTreeMap<Ino, BTreeSet<u32>> = BTreeMap::new();
        if !self.is_far() || files.len() <= 1 {
            for ino in files {
                lists.insert(*ino, self.chunks_present(*ino, 0..u32::MAX).await?.into_iter().collect());
            }
            return Ok(lists);
        }
        let scan = ScanRange::Keys(Bytes::from_static(b"c"));
        let mut cursor = Some(Default::default());
        while let Some(from) = cursor {
            let page = self.driver.store.scan(&scan, from, SCAN_KEYS).await.map_err(|e| errno_of("list chunks", &e))?;
            for (ino, chunk) in page.items.iter().filter_map(|item| parse_chunk(&item.name)).filter(|(ino, _)| files.contains(ino)) {
                lists.entry(ino).or_default().insert(chunk);
            }
            cursor = page.next;
        }
        Ok(lists)
    }

    /// Which chunks of `range` have a list, ascending. A chunk that gets its first list meanwhile may be missed.
    pub async fn chunks_present(&self, ino: Ino, range: Range<u32>) -> Result<Vec<u32>, Errno> {
        // Scanning takes the server time for every key of the volume.
        if range.len() <= CHUNKS_ASKED_MAX {
            let mut present = Vec::new();
            for first in range.clone().step_by(LISTS_AT_ONCE as usize) {
                let part = first..first.saturating_add(LISTS_AT_ONCE).min(range.end);
                let queries: Vec<Query> = part.clone().map(|index| Query::List(key::chunk(ino, index))).collect();
                let values = self.driver.read("list chunks", &queries).await?;
                let is_there = |value: &Value| matches!(value, Value::List(records) if !records.is_empty());
                present.extend(part.zip(&values).filter(|(_, value)| is_there(value)).map(|(index, _)| index));
            }
            return Ok(present);
        }
        // `c{ino}_0` without its last character.
        let first = key::chunk(ino, 0);
        let prefix = first.slice(..first.len() - 1);
        let scan = ScanRange::Keys(prefix.clone());
        let mut present = Vec::new();
        let mut cursor = Some(Default::default());
        while let Some(from) = cursor {
            let page = self.driver.store.scan(&scan, from, SCAN_KEYS).await.map_err(|e| errno_of("list chunks", &e))?;
            let indexes =
                page.items.iter().filter_map(|item| std::str::from_utf8(item.name.get(prefix.len()..)?).ok()?.parse::<u32>().ok());
            present.extend(indexes.filter(|index| range.contains(index)));
            cursor = page.next;
        }
        present.sort_unstable();
        // A scan may see a key twice.
        present.dedup();
        Ok(present)
    }
}

fn view_of(elements: &[Bytes], record: Option<&Bytes>) -> Result<ChunkView, Errno> {
    let records: Option<Vec<_>> = elements.iter().map(|e| codec::decode_slice(e)).collect();
    let attr = match record {
        None => None,
        Some(bytes) => Some(Record::decode(bytes.clone()).ok_or(Errno::IO)?.attr),
    };
    Ok(ChunkView { records: records.ok_or(Errno::IO)?, attr, record: record.cloned(), deleted_at: None })
}

/// What a reader sees in `range` of a chunk: pieces in order that cover all of it; what no record covers is a hole.
pub(crate) fn visible(records: &[SliceRecord], range: Range<u32>) -> Vec<Extent> {
    clipped(&flatten(records), range)
}

/// The same of a list that is overlaid already.
pub(crate) fn clipped(overlaid: &[Extent], range: Range<u32>) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut at = range.start;
    let first = overlaid.partition_point(|extent| extent.pos.saturating_add(extent.len) <= range.start);
    for extent in overlaid[first..].iter().take_while(|extent| extent.pos < range.end) {
        let (start, end) = (extent.pos.max(range.start), (extent.pos + extent.len).min(range.end));
        if start < end {
            extents.push(Extent { pos: start, off: extent.off.wrapping_add(start - extent.pos), len: end - start, ..*extent });
            at = end;
        }
    }
    if at < range.end {
        extents.push(Extent { pos: at, id: 0, size: 0, off: 0, len: range.end - at });
    }
    extents
}

/// The inode and index of a slice list's key; `None` for other keys that begin alike.
pub(crate) fn parse_chunk(name: &[u8]) -> Option<(Ino, u32)> {
    let (ino, chunk) = std::str::from_utf8(name.strip_prefix(b"c")?).ok()?.split_once('_')?;
    Some((Ino(ino.parse().ok()?), chunk.parse().ok()?))
}

#[cfg(test)]
mod damage_tests {
    use super::*;

    #[test]
    fn the_offset_of_a_hole_means_nothing() {
        let hole = SliceRecord { pos: 0, id: 0, size: 0, off: u32::MAX, len: 100 };
        assert_eq!(visible(&[hole], 50..60).iter().map(|extent| (extent.pos, extent.id, extent.len)).collect::<Vec<_>>(), [(50, 0, 10)]);
    }
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::testing::{World, ready};
    use super::*;

    #[test]
    fn one_read_tells_list_attributes_and_deletion() {
        let world = World::new();
        let ino = world.file(0);
        world.write(ino, 0, 7, 100);
        let view = ready(world.meta.chunk(ino, 0, 100)).unwrap();
        assert_eq!(view.records, [SliceRecord { pos: 0, id: 7, size: 100, off: 0, len: 100 }]);
        assert_eq!((view.attr.unwrap().length, view.deleted_at), (100, None));
        world.unlink(ino);
        let view = ready(world.meta.chunk(ino, 0, 100)).unwrap();
        assert_eq!((view.attr, view.deleted_at), (None, Some(world.now().sec)));
        assert_eq!(view.records.len(), 1, "the data stays until it is reclaimed");
        assert_eq!(ready(world.meta.chunk(ino, 0, 99)).unwrap().deleted_at, None);
    }

    #[test]
    fn damage_is_an_error_and_never_zeros() {
        let world = World::new();
        let ino = world.file(0);
        world.store.put(crate::meta::store::Write::RPush(key::chunk(ino, 0), vec![bytes::Bytes::from_static(b"short")]));
        assert_eq!(ready(world.meta.chunk(ino, 0, 0)), Err(Errno::IO));
    }

    #[test]
    fn present_chunks_are_those_of_this_inode_in_order() {
        let world = World::new();
        let (ino, other) = (world.file(0), world.file(0));
        for chunk in [10, 2, 0] {
            world.write_at(ino, chunk, 0, 1 + u64::from(chunk), 5);
        }
        world.write_at(other, 3, 0, 100, 5);
        assert_eq!(ready(world.meta.chunks_present(ino, 0..u32::MAX)).unwrap(), [0, 2, 10]);
        assert_eq!(ready(world.meta.chunks_present(ino, 1..10)).unwrap(), [2]);
    }

    #[test]
    fn visible_covers_the_range_exactly() {
        let record = |pos, id, len| SliceRecord { pos, id, size: len, off: 0, len };
        let seen: Vec<_> = visible(&[record(10, 1, 30), record(20, 2, 5)], 5..60).iter().map(|e| (e.pos, e.id, e.off, e.len)).collect();
        assert_eq!(seen, [(5, 0, 5, 5), (10, 1, 0, 10), (20, 2, 0, 5), (25, 1, 15, 15), (40, 0, 0, 20)]);
        assert_eq!(visible(&[], 3..9), [Extent { pos: 3, id: 0, size: 0, off: 0, len: 6 }]);
    }
}
