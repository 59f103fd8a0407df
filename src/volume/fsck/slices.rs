//! Chunk lists, reference counts, blocks.

use super::{COPY_OUT, Check, LOST, Pages, RECOUNT, inode_of};
use crate::block::{Codec, Compression, retrying};
use crate::meta::codec::{decode_slice, decode_slices};
use crate::meta::key;
use crate::meta::store::{Query, ScanRange, Sharing, Value};
use crate::object::ObjectError;
use crate::types::{BlockId, Ino, Kind, SliceId, block_count};
use crate::volume::VolumeError;
use bytes::Bytes;
use std::collections::HashMap;

/// How often a slice is used.
#[derive(Default)]
struct SliceUse {
    records: u32,
    /// Whether `sliceRef` has a field for it.
    counted: bool,
}

type Uses = HashMap<(SliceId, u32), SliceUse>;

impl Check<'_> {
    pub(super) async fn slices(&mut self) -> Result<(), VolumeError> {
        let mut uses = Uses::new();
        let mut pages = Pages::new(ScanRange::Keys(Bytes::from_static(b"c")));
        while let Some(items) = pages.next(self.store).await? {
            let chunks: Vec<(Ino, u32)> = items.iter().filter_map(|item| chunk_of(&item.name)).collect();
            let queries: Vec<Query> = chunks.iter().map(|(ino, index)| Query::List(key::chunk(*ino, *index))).collect();
            let values = self.store.read(&queries).await?;
            for ((ino, index), value) in chunks.into_iter().zip(values) {
                if let Value::List(elements) = value {
                    self.chunk(ino, index, &elements, &mut uses).await?;
                }
            }
        }
        self.delayed(&mut uses).await?;
        self.summary.slices = uses.len() as u64;
        self.references(&mut uses).await
    }

    async fn chunk(&mut self, ino: Ino, index: u32, elements: &[Bytes], uses: &mut Uses) -> Result<(), VolumeError> {
        let is_file = self.nodes.get(&ino).map(|node| node.kind == Kind::File);
        if is_file != Some(true) && !self.deleted.contains(&ino) && !elements.is_empty() {
            let what = format!("chunk {index} belongs to an inode that is no file");
            self.report("chunk", format!("inode {ino}"), what, "it only takes space; copy the tree to a new volume to be rid of it");
        }
        for element in elements {
            let Some(record) = decode_slice(element) else {
                self.report_at("slice", ino, format!("a slice record of chunk {index} is damaged"), COPY_OUT).await?;
                continue;
            };
            if record.id == 0 {
                continue;
            }
            let used = uses.entry((record.id, record.size)).or_default();
            used.records += 1;
            if used.records == 1 {
                self.blocks(ino, record.id, record.size).await?;
            }
        }
        Ok(())
    }

    /// The blocks of a slice: each an object of the right size, or the only one a frame.
    async fn blocks(&mut self, ino: Ino, slice: SliceId, size: u32) -> Result<(), VolumeError> {
        let setting = &self.stores.setting;
        let block_bytes = setting.block_bytes();
        let compression = Compression::named(setting.compression()).map_err(VolumeError::Refused)?;
        for index in 0..block_count(size, block_bytes) {
            let Some(block) = BlockId::of(slice, size, index, block_bytes) else { continue };
            let sizes = Codec::frame_bytes(compression, setting.is_encrypted(), block.len);
            self.summary.blocks += 1;
            self.summary.block_bytes += u64::from(block.len);
            let key = format!("{}/{}", self.stores.setting.name(), block.key(self.stores.setting.hash_prefix()));
            let found = self.frame_or_object(&block, size, &key).await?;
            let what = match found {
                Some(found) if sizes.contains(&found) => continue,
                Some(found) if sizes.start() == sizes.end() => format!("block {key} has {found} bytes instead of {}", block.len),
                Some(found) => format!("block {key} has {found} bytes, which cannot be {} encoded", block.len),
                None => format!("can't find block {key}"),
            };
            self.summary.lost += 1;
            self.report_at("block", ino, what, LOST).await?;
        }
        Ok(())
    }

    async fn frame_or_object(&self, block: &BlockId, size: u32, key: &str) -> Result<Option<u64>, VolumeError> {
        let object = async || match retrying("look", key, || self.stores.objects.head(key)).await {
            Ok(object) => Ok(Some(object.size)),
            Err(ObjectError::Missing) => Ok(None),
            Err(error) => Err(VolumeError::Failed(format!("cannot look at object {key}: {error}"))),
        };
        let frame = async || -> Result<Option<u64>, VolumeError> {
            // Only the one block of a slice has a frame.
            let frame = if block.len == size { self.store.frame(block.slice).await? } else { None };
            Ok(frame.map(|frame| frame.len() as u64))
        };
        // Where frames are rare it is asked for one only when there is no object. It may become one between two looks.
        let is_far = self.store.sharing() == Sharing::Server;
        for _ in 0..2 {
            let first = if is_far { object().await? } else { frame().await? };
            let found = match first {
                None if is_far => frame().await?,
                None => object().await?,
                found => found,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Slices whose deletion is delayed are referenced by that.
    async fn delayed(&mut self, uses: &mut Uses) -> Result<(), VolumeError> {
        let mut pages = Pages::new(ScanRange::Hash(key::DEL_SLICES));
        while let Some(items) = pages.next(self.store).await? {
            for item in items {
                match decode_slices(&item.value) {
                    Some(slices) => slices.into_iter().for_each(|slice| uses.entry(slice).or_default().records += 1),
                    None => {
                        let name = String::from_utf8_lossy(&item.name).into_owned();
                        self.report("delayed", format!("delSlices {name}"), "is damaged".into(), COPY_OUT);
                    }
                }
            }
        }
        Ok(())
    }

    /// `sliceRef` holds references − 1; absent means one.
    async fn references(&mut self, uses: &mut Uses) -> Result<(), VolumeError> {
        let mut pages = Pages::new(ScanRange::Hash(key::SLICE_REF));
        while let Some(items) = pages.next(self.store).await? {
            for item in items {
                let stored = std::str::from_utf8(&item.value).ok().and_then(|text| text.parse::<i64>().ok());
                let (Some(slice), Some(stored)) = (slice_of(&item.name), stored) else {
                    let name = String::from_utf8_lossy(&item.name).into_owned();
                    self.report("reference", format!("sliceRef {name}"), "is damaged".into(), COPY_OUT);
                    continue;
                };
                let records = match uses.get_mut(&slice) {
                    Some(used) => {
                        used.counted = true;
                        used.records
                    }
                    None => 0,
                };
                // Below zero: nothing refers to it and its objects wait for deletion. Zero may stand for a slice just replaced.
                let waits = records == 0 && stored <= 0;
                if stored + 1 != i64::from(records) && !waits {
                    self.miscounted(slice, stored + 1, records);
                }
            }
        }
        let uncounted: Vec<_> =
            uses.iter().filter(|(_, used)| used.records > 1 && !used.counted).map(|(s, used)| (*s, used.records)).collect();
        for (slice, records) in uncounted {
            self.miscounted(slice, 1, records);
        }
        Ok(())
    }

    fn miscounted(&mut self, (id, size): (SliceId, u32), counted: i64, records: u32) {
        let what = format!("counts {counted} references, there are {records}");
        // Too few is the dangerous side: deleting one file would take the other's data.
        let advice =
            if counted < i64::from(records) { "copy the files that share data to a new volume before deleting any" } else { RECOUNT };
        self.report("reference", format!("slice {id} of {size} bytes"), what, advice);
    }
}

fn chunk_of(key: &[u8]) -> Option<(Ino, u32)> {
    let at = key.iter().position(|c| *c == b'_')?;
    let index = std::str::from_utf8(&key[at + 1..]).ok()?.parse().ok()?;
    Some((inode_of(&key[..at], "c")?, index))
}

fn slice_of(field: &[u8]) -> Option<(SliceId, u32)> {
    let (id, size) = std::str::from_utf8(field).ok()?.strip_prefix('k')?.split_once('_')?;
    Some((id.parse().ok()?, size.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_chunks_and_slices() {
        assert_eq!(chunk_of(b"c12_3"), Some((Ino(12), 3)));
        for other in [&b"c12"[..], b"c_3", b"cx_3", b"c1_x", b"counter_1"] {
            assert_eq!(chunk_of(other), None);
        }
        assert_eq!(slice_of(b"k7_4096"), Some((7, 4096)));
        assert_eq!(slice_of(b"7_4096"), None);
    }
}
