//! Chunk lists, reference counts, blocks.

use super::mend::Mend;
use super::{COPY_OUT, Check, FINDINGS_MAX, LOST, MENDABLE, Pages, RECOUNT};
use crate::block::{Codec, Compression, retrying};
use crate::meta::codec::{decode_slice, decode_slices};
use crate::meta::key;
use crate::meta::ops::chunk::parse_chunk;
use crate::meta::ops::delete::parse_slice_ref;
use crate::meta::store::{Query, ScanRange, Sharing, Value};
use crate::object::ObjectError;
use crate::telemetry::progress;
use crate::types::{BlockId, Ino, Kind, SliceId, block_count};
use crate::volume::VolumeError;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// Objects listed at once.
const LISTED_MAX: usize = 1000;

/// How a slice is used.
#[derive(Default)]
struct SliceUse {
    records: u32,
    /// Whether `sliceRef` has a field for it.
    counted: bool,
    /// Whether a file names it that is not deleted.
    needed: bool,
    /// Blocks that the bucket lists with a right size.
    found: u32,
}

/// By id and size.
type Uses = BTreeMap<(SliceId, u32), SliceUse>;

/// What is wrong with the blocks of a slice.
type Damage = BTreeMap<(SliceId, u32), Vec<String>>;

/// What a look at one block tells.
pub(super) enum BlockState {
    /// It is there, with so many bytes.
    Whole(u64),
    /// What is wrong.
    Broken(String),
}

impl Check<'_> {
    pub(super) async fn slices(&mut self) -> Result<(), VolumeError> {
        let mut uses = Uses::new();
        progress::stage("slice lists", self.nodes.values().filter(|node| node.kind == Kind::File).count() as u64);
        let mut lists = Pages::ahead(ScanRange::Keys(Bytes::from_static(b"c")));
        while let Some(page) = self.lists(&mut lists).await? {
            progress::add(page.len() as u64, 0);
            for (ino, index, elements) in page {
                self.chunk(ino, index, &elements, &mut uses).await?;
            }
        }
        self.listed(&mut uses).await?;
        let damage = self.unlisted(&uses).await?;
        self.broken(&damage).await?;
        self.delayed(&mut uses).await?;
        self.summary.slices = uses.len() as u64;
        self.references(&mut uses).await
    }

    /// A page of slice lists.
    async fn lists(&self, pages: &mut Pages) -> Result<Option<Vec<(Ino, u32, Vec<Bytes>)>>, VolumeError> {
        let Some(items) = pages.next(self.store).await? else { return Ok(None) };
        let chunks: Vec<(Ino, u32)> = items.iter().filter_map(|item| parse_chunk(&item.name)).collect();
        let queries: Vec<Query> = chunks.iter().map(|(ino, index)| Query::List(key::chunk(*ino, *index))).collect();
        let values = self.store.read(&queries).await?;
        let list = |((ino, index), value)| match value {
            Value::List(elements) => Some((ino, index, elements)),
            _ => None,
        };
        Ok(Some(chunks.into_iter().zip(values).filter_map(list).collect()))
    }

    async fn chunk(&mut self, ino: Ino, index: u32, elements: &[Bytes], uses: &mut Uses) -> Result<(), VolumeError> {
        let is_file = self.nodes.get(&ino).map(|node| node.kind == Kind::File);
        if is_file != Some(true) && !self.deleted.contains(&ino) && !elements.is_empty() {
            let what = format!("chunk {index} belongs to an inode that is no file");
            self.report("chunk", format!("inode {ino}"), what, "it only takes space; `pando gc --delete` removes it");
        }
        for element in elements {
            let Some(record) = decode_slice(element) else {
                self.report_at("slice", ino, format!("a slice record of chunk {index} is damaged"), COPY_OUT).await?;
                continue;
            };
            if record.id > 0 {
                self.highest_slice = self.highest_slice.max(record.id);
                let used = uses.entry((record.id, record.size)).or_default();
                used.records += 1;
                used.needed |= !self.deleted.contains(&ino);
            }
        }
        Ok(())
    }

    /// Counts the blocks of each slice that the bucket lists. One request answers for a thousand.
    async fn listed(&mut self, uses: &mut Uses) -> Result<(), VolumeError> {
        let (setting, objects) = (&self.stores.setting, &self.stores.objects);
        let block_bytes = setting.block_bytes();
        let prefix = format!("{}/chunks/", setting.name());
        let mut after = String::new();
        // As a slice has one, or more.
        progress::stage("objects", uses.len() as u64);
        loop {
            let page = retrying("list objects", &prefix, || objects.list(&prefix, &after, LISTED_MAX)).await;
            let page = page.map_err(|e| VolumeError::Failed(format!("list all blocks: {e}")))?;
            progress::add(page.len() as u64, page.iter().map(|object| object.size).sum());
            for object in &page {
                let Some(block) = object.key.rsplit('/').next().and_then(BlockId::parse) else { continue };
                // In its place: nobody looks elsewhere.
                if object.key[prefix.len() - "chunks/".len()..] != block.key(setting.hash_prefix()) {
                    continue;
                }
                // A server that was set back may be behind objects that somebody still writes or deletes. A store of this host loses, if anything,
                // its last commits, number and record together; what it does not know of then nobody does, and it may be replaced.
                if self.stores.store.sharing() == Sharing::Server {
                    self.highest_slice = self.highest_slice.max(block.slice);
                }
                self.summary.blocks += 1;
                self.summary.block_bytes += object.size;
                let is_right = self.sizes(&block)?.contains(&object.size);
                for ((_, size), used) in uses.range_mut((block.slice, 0)..=(block.slice, u32::MAX)) {
                    if BlockId::of(block.slice, *size, block.index, block_bytes) == Some(block) && is_right {
                        used.found += 1;
                    }
                }
            }
            match page.last() {
                Some(last) if page.len() == LISTED_MAX => after.clone_from(&last.key),
                _ => return Ok(()),
            }
        }
    }

    /// Sizes the object of a block may have.
    fn sizes(&self, block: &BlockId) -> Result<RangeInclusive<u64>, VolumeError> {
        let setting = &self.stores.setting;
        let compression = Compression::named(setting.compression()).map_err(VolumeError::Refused)?;
        Ok(Codec::frame_bytes(compression, setting.is_encrypted(), block.len))
    }

    /// Looks at the blocks of slices that were not listed completely: frames, blocks stored meanwhile, and what is lost.
    async fn unlisted(&mut self, uses: &Uses) -> Result<Damage, VolumeError> {
        let block_bytes = self.stores.setting.block_bytes();
        let mut damage = Damage::new();
        for (&(id, size), used) in uses.iter().filter(|((_, size), used)| used.needed && used.found < block_count(*size, block_bytes)) {
            for block in (0..block_count(size, block_bytes)).filter_map(|index| BlockId::of(id, size, index, block_bytes)) {
                match self.look(&block, size).await? {
                    BlockState::Whole(bytes) => {
                        // Those that were listed are counted.
                        if used.found == 0 {
                            self.summary.blocks += 1;
                            self.summary.block_bytes += bytes;
                        }
                    }
                    BlockState::Broken(what) => {
                        self.summary.lost += 1;
                        self.summary.lost_bytes += u64::from(block.len);
                        damage.entry((id, size)).or_default().push(what);
                    }
                }
            }
        }
        Ok(damage)
    }

    /// Names all files that have something of these slices.
    async fn broken(&mut self, damage: &Damage) -> Result<(), VolumeError> {
        let mut lists = Pages::new(ScanRange::Keys(Bytes::from_static(b"c")));
        while !damage.is_empty()
            && let Some(page) = self.lists(&mut lists).await?
        {
            for (ino, _, elements) in &page {
                if self.deleted.contains(ino) {
                    continue;
                }
                let records = elements.iter().filter_map(|element| decode_slice(element));
                let slices: BTreeSet<_> = records.map(|record| (record.id, record.size)).collect();
                for what in slices.iter().filter_map(|slice| damage.get(slice)).flatten() {
                    if !self.summary.broken.contains_key(ino) && self.summary.broken.len() < FINDINGS_MAX {
                        let subject = self.subject(*ino).await?;
                        let path = subject.strip_suffix(&format!(" (inode {ino})")).unwrap_or(&subject);
                        self.summary.broken.insert(*ino, path.to_owned());
                    }
                    self.report_at("block", *ino, what.clone(), LOST).await?;
                }
            }
        }
        Ok(())
    }

    /// Looks at one block of a slice of `size` bytes: an object of a right size, or a frame if it is the only one.
    pub(super) async fn look(&self, block: &BlockId, size: u32) -> Result<BlockState, VolumeError> {
        let key = format!("{}/{}", self.stores.setting.name(), block.key(self.stores.setting.hash_prefix()));
        let sizes = self.sizes(block)?;
        let found = self.frame_or_object(block, size, &key).await?;
        Ok(match found {
            Some(found) if sizes.contains(&found) => BlockState::Whole(found),
            Some(found) if sizes.start() == sizes.end() => {
                BlockState::Broken(format!("block {key} has {found} bytes instead of {}", block.len))
            }
            Some(found) => BlockState::Broken(format!("block {key} has {found} bytes, which cannot be {} encoded", block.len)),
            None => BlockState::Broken(format!("can't find block {key}")),
        })
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
                let (Some(slice), Some(stored)) = (parse_slice_ref(&item.name), stored) else {
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
        let advice = match (counted < i64::from(records), records) {
            (true, _) => "delete none of the files that share data; unmount the volume everywhere, and run it again with --repair",
            (false, 0) => RECOUNT,
            (false, _) => MENDABLE,
        };
        self.report("reference", format!("slice {id} of {size} bytes"), what, advice);
        // What nothing seems to name is left to `gc`, which looks twice.
        if records > 0 {
            self.mend(Mend::References(id, size, records));
        }
    }
}
