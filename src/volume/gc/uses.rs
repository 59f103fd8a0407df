//! What the metadata says about slices: who names which.
//!
//! The order of the passes matters, as others change the volume meanwhile. A record may be copied to a list that was looked at already and
//! removed from one that was not yet: then it is seen in neither, but its slice has been counted in `sliceRef`, which is read later. A list
//! may be compacted before it is looked at: then its old slices are in `delSlices`, or below zero in `sliceRef`, both read later.

use super::bins::{Bins, Layout, Note};
use crate::meta::codec::{decode_decimal, decode_slice, decode_slices};
use crate::meta::key;
use crate::meta::ops::chunk::parse_chunk;
use crate::meta::ops::compact::plan_compaction;
use crate::meta::ops::delete::{parse_delfile, parse_slice_ref};
use crate::meta::store::{Cursor, Query, ScanItem, ScanRange, Store, Value};
use crate::telemetry::progress;
use crate::types::{Ino, SliceId, SliceRecord};
use crate::volume::VolumeError;
use crate::volume::stores::usage;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use tracing::warn;

/// Items asked for at once.
const PAGE: u32 = 1000;
/// Inodes without a record that are remembered: what is left is found by the next run.
const ORPHANS_MAX: usize = 1_000_000;

/// What a slice is, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// A record names it.
    Named,
    /// Nothing does, and its objects wait for their deletion.
    Pending,
    /// It was replaced by compaction, and is kept as long as the trash.
    Delayed,
    /// It has a count of references, and was not seen anywhere.
    Counted,
}

const USES: [Use; 4] = [Use::Named, Use::Pending, Use::Delayed, Use::Counted];

/// A chunk that compaction would make shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compactable {
    pub ino: Ino,
    pub chunk: u32,
    /// Records that would be replaced, and the bytes they have together.
    pub records: u64,
    pub bytes: u64,
}

/// All uses, and what else was seen on the way.
pub struct Uses {
    bins: Bins,
    layout: Layout,
    /// Bytes of all slices, counted once for each record that names them.
    pub bytes: u64,
    /// Inodes that have slice lists and no record, and are not listed as deleted.
    pub orphans: BTreeSet<Ino>,
    /// Chunks that compaction would make shorter.
    pub compactable: u64,
}

impl Uses {
    /// Reads all of the metadata that names slices.
    pub async fn of(store: &dyn Store, layout: Layout) -> Result<Uses, VolumeError> {
        // Most files have one.
        progress::stage("slice lists", usage(store).await.map_or(0, |usage| usage.inodes.max(0).unsigned_abs()));
        let mut uses = Uses { bins: Bins::new(layout)?, layout, bytes: 0, orphans: BTreeSet::new(), compactable: 0 };
        let mut lists = Lists::new(store);
        while let Some(page) = lists.next().await? {
            for list in page {
                if !list.has_inode && uses.orphans.len() < ORPHANS_MAX {
                    uses.orphans.insert(list.ino);
                }
                uses.compactable += u64::from(list.compactable().is_some());
                for record in list.records.iter().filter(|record| record.id > 0) {
                    uses.note(record.id, record.size, Use::Named)?;
                }
            }
        }
        uses.delayed(store).await?;
        uses.counted(store).await?;
        uses.deleted(store).await?;
        Ok(uses)
    }

    fn note(&mut self, id: SliceId, size: u32, what: Use) -> Result<(), VolumeError> {
        if what != Use::Counted {
            self.bytes += u64::from(size);
        }
        self.bins.push(Note { id, size, what: what as u32 })
    }

    async fn delayed(&mut self, store: &dyn Store) -> Result<(), VolumeError> {
        let mut pages = Pages::new(store, ScanRange::Hash(key::DEL_SLICES));
        while let Some(items) = pages.next().await? {
            for item in items {
                match decode_slices(&item.value) {
                    Some(slices) => slices.into_iter().try_for_each(|(id, size)| self.note(id, size, Use::Delayed))?,
                    // What it names cannot be known, so nothing may be called a leak.
                    None => return Err(damaged(&item.name, "delSlices")),
                }
            }
        }
        Ok(())
    }

    async fn counted(&mut self, store: &dyn Store) -> Result<(), VolumeError> {
        let mut pages = Pages::new(store, ScanRange::Hash(key::SLICE_REF));
        while let Some(items) = pages.next().await? {
            for item in items {
                let slice = parse_slice_ref(&item.name).zip(decode_decimal(Some(&item.value)));
                let Some(((id, size), count)) = slice else { return Err(damaged(&item.name, "sliceRef")) };
                if id > 0 {
                    self.note(id, size, if count < 0 { Use::Pending } else { Use::Counted })?;
                }
            }
        }
        Ok(())
    }

    /// Deleted files have slice lists and no record for a while, and somebody sees to them.
    async fn deleted(&mut self, store: &dyn Store) -> Result<(), VolumeError> {
        if self.orphans.is_empty() {
            return Ok(());
        }
        let mut pages = Pages::new(store, ScanRange::Sorted(key::DELFILES));
        while let Some(items) = pages.next().await? {
            for (ino, _) in items.iter().filter_map(|item| parse_delfile(&item.name)) {
                self.orphans.remove(&ino);
            }
        }
        Ok(())
    }

    /// What is known of the slices of one bin.
    pub fn bin(&self, number: u64) -> Result<UsesOfBin, VolumeError> {
        let mut uses = BTreeMap::new();
        self.bins.read(number, |Note { id, size, what }| {
            let what = USES[what as usize];
            let known = uses.entry((id, size)).or_insert(what);
            *known = what.min(*known);
        })?;
        Ok(UsesOfBin(uses))
    }

    /// The number of slices that are named or kept.
    pub fn count(&self) -> Result<u64, VolumeError> {
        let mut count = 0;
        for number in self.bins.numbers() {
            count += self.bin(number)?.0.values().filter(|what| matches!(what, Use::Named | Use::Delayed)).count() as u64;
        }
        Ok(count)
    }

    /// How slices are spread over bins.
    pub fn layout(&self) -> Layout {
        self.layout
    }
}

/// The slices of one bin by id and size.
pub struct UsesOfBin(BTreeMap<(SliceId, u32), Use>);

impl UsesOfBin {
    /// What a slice of this id is, with each size under which it is known.
    pub fn of(&self, id: SliceId) -> impl Iterator<Item = (u32, Use)> {
        self.0.range((id, 0)..=(id, u32::MAX)).map(|((_, size), what)| (*size, *what))
    }
}

/// The slice list of a chunk.
pub struct List {
    pub ino: Ino,
    pub chunk: u32,
    pub records: Vec<SliceRecord>,
    /// Whether the inode has a record.
    pub has_inode: bool,
}

impl List {
    /// What compaction would do.
    pub fn compactable(&self) -> Option<Compactable> {
        let plan = plan_compaction(&self.records).filter(|_| self.has_inode)?;
        let taken = &self.records[plan.skipped..plan.taken];
        let bytes = taken.iter().map(|record| u64::from(record.len)).sum();
        Some(Compactable { ino: self.ino, chunk: self.chunk, records: taken.len() as u64, bytes })
    }
}

/// All slice lists, page by page.
pub struct Lists<'a>(Pages<'a>);

impl<'a> Lists<'a> {
    pub fn new(store: &'a dyn Store) -> Lists<'a> {
        Lists(Pages::new(store, ScanRange::Keys(Bytes::from_static(b"c"))))
    }

    /// List and inode are of one moment.
    pub async fn next(&mut self) -> Result<Option<Vec<List>>, VolumeError> {
        let Some(items) = self.0.next().await? else { return Ok(None) };
        let chunks: Vec<(Ino, u32)> = items.iter().filter_map(|item| parse_chunk(&item.name)).collect();
        let queries: Vec<Query> =
            chunks.iter().flat_map(|(ino, chunk)| [Query::List(key::chunk(*ino, *chunk)), Query::Get(key::inode(*ino))]).collect();
        let values = self.0.store.read(&queries).await?;
        let mut lists = Vec::with_capacity(chunks.len());
        for ((ino, chunk), values) in chunks.into_iter().zip(values.chunks(2)) {
            let [Value::List(elements), Value::Bytes(record)] = values else {
                return Err(VolumeError::Failed(format!("the metadata store gave no answer about chunk {chunk} of inode {ino}")));
            };
            let records: Option<Vec<_>> = elements.iter().map(|element| decode_slice(element)).collect();
            // What a damaged record names cannot be known.
            let records = records.ok_or_else(|| damaged(&key::chunk(ino, chunk), "the slice lists"))?;
            // Gone since the page was listed.
            if !records.is_empty() {
                lists.push(List { ino, chunk, records, has_inode: record.is_some() });
            }
        }
        Ok(Some(lists))
    }
}

fn damaged(name: &[u8], place: &str) -> VolumeError {
    let name = String::from_utf8_lossy(name);
    warn!("{name} in {place} is damaged");
    VolumeError::Failed(format!("what {name} in {place} names cannot be read, so nothing can be called unused; run `pando fsck`"))
}

/// A scan, page after page.
pub struct Pages<'a> {
    store: &'a dyn Store,
    range: ScanRange,
    cursor: Option<Cursor>,
}

impl<'a> Pages<'a> {
    pub fn new(store: &'a dyn Store, range: ScanRange) -> Pages<'a> {
        Pages { store, range, cursor: Some(Cursor::new()) }
    }

    pub async fn next(&mut self) -> Result<Option<Vec<ScanItem>>, VolumeError> {
        let Some(cursor) = self.cursor.take() else { return Ok(None) };
        let page = self.store.scan(&self.range, cursor, PAGE).await?;
        self.cursor = page.next;
        progress::add(page.items.len() as u64, 0);
        Ok(Some(page.items))
    }
}
