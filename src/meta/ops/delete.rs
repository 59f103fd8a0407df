//! Deleting the data of files that are gone, and forgetting slices whose objects are gone (metadata §8.4, §8.5).
//!
//! A file's inode is removed first, by the operation that takes its last link, which leaves a member in `delfiles`. Then its chunk lists go,
//! each in one step with the references it held. A slice whose count fell below zero stays in `sliceRef` until its objects are deleted, so a
//! crash anywhere loses no work.

use crate::meta::client::Cx;
use crate::meta::codec;
use crate::meta::driver::errno_of;
use crate::meta::store::{Commit, Guard, Key, Query, ScanItem, ScanRange, Value, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Meta, key};
use crate::types::{Caller, Errno, Ino, SliceId, SliceRecord};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use tracing::warn;

/// Chunk lists removed in one commit: some milliseconds of a local transaction.
const LISTS_MAX: usize = 100;
/// Fields of `sliceRef` read at once: an answer of some 100 KiB.
const SCAN_FIELDS: u32 = 4096;
/// Slices forgotten in one commit.
const FORGET_MAX: usize = 1000;

/// One chunk list of a deleted file, or its end.
#[derive(Clone, Copy, Debug)]
enum Part {
    List { ino: Ino, chunk: u32 },
    End { ino: Ino, length: u64 },
}

impl Meta {
    /// Removes the chunk lists of a deleted file and its `delfiles` member. Answers the slices that no record names any more, as
    /// `compact_commit` does.
    pub async fn delete_file(&self, ino: Ino, length: u64) -> Result<Vec<(SliceId, u32)>, Errno> {
        self.delete_files(&[(ino, length)]).await
    }

    /// The same for several files, with few commits. A file whose inode exists is left alone.
    pub async fn delete_files(&self, files: &[(Ino, u64)]) -> Result<Vec<(SliceId, u32)>, Errno> {
        let lists = self.lists_of_deleted(files).await?;
        self.delete_listed(files, lists).await
    }

    /// Which chunks of these files have a list. Also beyond the length: a file that was truncated before it was deleted has lists there.
    pub async fn lists_of_deleted(&self, files: &[(Ino, u64)]) -> Result<BTreeMap<Ino, BTreeSet<u32>>, Errno> {
        self.lists_of(&files.iter().map(|(ino, _)| *ino).collect()).await
    }

    /// `delete_files` with the lists of these files, or of more. A list that is not among them stays, and `gc` finds it.
    pub async fn delete_listed(&self, files: &[(Ino, u64)], mut lists: BTreeMap<Ino, BTreeSet<u32>>) -> Result<Vec<(SliceId, u32)>, Errno> {
        let mut parts = Vec::new();
        for &(ino, length) in files {
            let chunks = lists.remove(&ino).unwrap_or_default();
            parts.extend(chunks.into_iter().map(|chunk| Part::List { ino, chunk }));
            parts.push(Part::End { ino, length });
        }
        let mut dead = Vec::new();
        for group in parts.chunks(LISTS_MAX) {
            dead.extend(self.run("delete file data", &Caller::root(), |view, cx| step(view, cx, group)).await?);
        }
        Ok(dead)
    }

    /// Removes the counts of slices whose objects are deleted.
    pub async fn forget_slices(&self, slices: &[(SliceId, u32)]) -> Result<(), Errno> {
        for group in slices.chunks(FORGET_MAX) {
            let writes: Vec<_> = group.iter().map(|&(id, size)| Write::HDel(key::SLICE_REF, key::slice_ref(id, size))).collect();
            let commit = self.driver.store.commit(&[], &writes, &[]).await.map_err(|e| errno_of("forget slices", &e))?;
            if !matches!(commit, Commit::Done { .. }) {
                return Err(Errno::IO);
            }
        }
        Ok(())
    }

    /// Those of these slices that still no record names.
    pub async fn still_dead(&self, slices: &[(SliceId, u32)]) -> Result<Vec<(SliceId, u32)>, Errno> {
        let mut dead = Vec::new();
        for group in slices.chunks(FORGET_MAX) {
            let queries: Vec<_> = group.iter().map(|&(id, size)| Query::HGet(key::SLICE_REF, key::slice_ref(id, size))).collect();
            let values = self.driver.store.read(&queries).await.map_err(|e| errno_of("look at slices", &e))?;
            let is_dead = |value: &Value| matches!(value, Value::Bytes(Some(count)) if codec::decode_decimal(Some(count)).is_some_and(|count| count < 0));
            dead.extend(group.iter().zip(&values).filter(|(_, value)| is_dead(value)).map(|(slice, _)| *slice));
        }
        Ok(dead)
    }

    /// Deleted files whose data waits to be removed, deleted at or before `older_than` (unix seconds), oldest first.
    pub async fn pending_files(&self, older_than: i64, limit: u32) -> Result<Vec<(Ino, u64)>, Errno> {
        let query = [Query::ZRange { key: key::DELFILES, max: older_than, limit }];
        let values = self.driver.store.read(&query).await.map_err(|e| errno_of("list deleted files", &e))?;
        let [Value::Scored(members)] = &values[..] else { return Err(Errno::IO) };
        Ok(members.iter().filter_map(|(member, _)| parse_delfile(member)).collect())
    }

    /// Slices that no record names and whose objects are not known to be deleted.
    pub async fn pending_slices(&self, limit: u32) -> Result<Vec<(SliceId, u32)>, Errno> {
        let scan = ScanRange::Hash(key::SLICE_REF);
        // A scan may see a field twice.
        let mut pending = BTreeSet::new();
        let mut cursor = Some(Default::default());
        while let Some(from) = cursor {
            let page = self.driver.store.scan(&scan, from, SCAN_FIELDS).await.map_err(|e| errno_of("list slices", &e))?;
            for item in &page.items {
                if codec::decode_decimal(Some(&item.value)).is_some_and(|count| count < 0)
                    && let Some(slice) = parse_slice_ref(&item.name)
                {
                    pending.insert(slice);
                    if pending.len() >= limit as usize {
                        return Ok(pending.into_iter().collect());
                    }
                }
            }
            cursor = page.next;
        }
        Ok(pending.into_iter().collect())
    }
}

impl Meta {
    /// Takes the references of slices that were replaced while the volume had a trash, at or before `older_than` (unix seconds). At most
    /// `limit` replacements.
    pub async fn drop_delayed(&self, older_than: i64, limit: usize) -> Result<DroppedDelayed, Errno> {
        let scan = ScanRange::Hash(key::DEL_SLICES);
        let mut due = BTreeSet::new();
        let mut cursor = Some(Default::default());
        while let Some(from) = cursor {
            let page = self.driver.store.scan(&scan, from, SCAN_FIELDS).await.map_err(|e| errno_of("list delayed slices", &e))?;
            // Others are not the format's, or damaged: they are left alone.
            let is_due = |item: &ScanItem| {
                delayed_since(&item.name).is_some_and(|at| at <= older_than) && codec::decode_slices(&item.value).is_some()
            };
            due.extend(page.items.into_iter().filter(is_due).map(|item| item.name));
            cursor = if due.len() < limit { page.next } else { None };
        }
        let mut dropped = DroppedDelayed { taken: due.len().min(limit), dead: Vec::new() };
        for field in due.into_iter().take(limit) {
            dropped.dead.extend(self.run("drop delayed slices", &Caller::root(), |view, _| delayed_step(view, &field)).await?);
        }
        Ok(dropped)
    }
}

/// What `drop_delayed` did.
#[derive(Debug, PartialEq, Eq)]
pub struct DroppedDelayed {
    /// Replacements that were looked at; 0 = nothing is due.
    pub taken: usize,
    /// Slices that no record names any more: what `compact_commit` says of them holds here.
    pub dead: Vec<(SliceId, u32)>,
}

/// When the slices of a field of `delSlices` were replaced; `None` if it is none of the format's.
fn delayed_since(field: &[u8]) -> Option<i64> {
    let (by, at) = std::str::from_utf8(field).ok()?.split_once('_')?;
    by.parse::<u64>().ok().and(at.parse().ok())
}

fn delayed_step(view: &View, field: &Bytes) -> Result<Plan<Vec<(SliceId, u32)>>, Stop> {
    // Another client was first.
    let Some(value) = view.field(&key::DEL_SLICES, field.clone())? else { return Ok(Plan::answer(Vec::new())) };
    let slices = codec::decode_slices(&value).ok_or(Errno::IO)?;
    let records: Vec<_> = slices.into_iter().map(|(id, size)| SliceRecord { pos: 0, id, size, off: 0, len: 0 }).collect();
    let dropped = drop_references(view, &records)?;
    let mut guards = vec![Guard::Field(key::DEL_SLICES, field.clone(), Some(value))];
    guards.extend(dropped.guards);
    let mut writes = dropped.writes;
    writes.push(Write::HDel(key::DEL_SLICES, field.clone()));
    Ok(Plan::new(guards, writes, dropped.dead))
}

pub(crate) fn parse_delfile(member: &[u8]) -> Option<(Ino, u64)> {
    let (ino, length) = std::str::from_utf8(member).ok()?.split_once(':')?;
    Some((Ino(ino.parse().ok()?), length.parse().ok()?))
}

pub(crate) fn parse_slice_ref(field: &[u8]) -> Option<(SliceId, u32)> {
    let (id, size) = std::str::from_utf8(field).ok()?.strip_prefix('k')?.split_once('_')?;
    Some((id.parse().ok()?, size.parse().ok()?))
}

fn step(view: &View, _cx: &Cx, parts: &[Part]) -> Result<Plan<Vec<(SliceId, u32)>>, Stop> {
    view.want(parts.iter().map(|part| match *part {
        Part::List { ino, chunk } => Query::List(key::chunk(ino, chunk)),
        Part::End { ino, .. } => Query::Get(key::inode(ino)),
    }))?;
    let (mut guards, mut writes, mut records) = (Vec::new(), Vec::new(), Vec::new());
    let mut gone = BTreeSet::new();
    for part in parts {
        let (Part::List { ino, .. } | Part::End { ino, .. }) = *part;
        // No inode number is used twice, so this is damage, a restore or a member of another client's making: keep the data.
        if view.string(&key::inode(ino))?.is_some() {
            warn!(%ino, "listed as deleted but its inode exists; its data is kept");
            continue;
        }
        if gone.insert(ino) {
            guards.push(Guard::Value(key::inode(ino), None));
        }
        match *part {
            Part::List { chunk, .. } => {
                let list = key::chunk(ino, chunk);
                let elements = view.list(&list)?.to_vec();
                // A damaged element names no slice that could be counted; if there was one, gc finds its objects.
                records.extend(elements.iter().filter_map(|element| codec::decode_slice(element)));
                guards.push(Guard::ListIs(list.clone(), elements));
                writes.push(Write::Del(list));
            }
            Part::End { length, .. } => writes.push(Write::ZRem(key::DELFILES, key::delfile(ino, length))),
        }
    }
    let dropped = drop_references(view, &records)?;
    guards.extend(dropped.guards);
    writes.extend(dropped.writes);
    Ok(Plan::new(guards, writes, dropped.dead))
}

/// What it takes to drop references.
pub(crate) struct Dropped {
    pub guards: Vec<Guard>,
    pub writes: Vec<Write>,
    /// Slices without a reference afterwards, by id.
    pub dead: Vec<(SliceId, u32)>,
}

/// Takes one reference per record. The counts are guarded, so that it is known which slices die and their frames leave in the same commit
/// as the last record that names them.
pub(crate) fn drop_references(view: &View, records: &[SliceRecord]) -> Result<Dropped, Stop> {
    let mut counts: BTreeMap<(SliceId, u32), i64> = BTreeMap::new();
    for record in records.iter().filter(|record| record.id != 0) {
        *counts.entry((record.id, record.size)).or_default() += 1;
    }
    let field_of = |&(id, size): &(SliceId, u32)| -> (Key, Bytes) { (key::SLICE_REF, key::slice_ref(id, size)) };
    view.want(counts.keys().map(field_of).map(|(hash, field)| Query::HGet(hash, field)))?;
    let mut dropped = Dropped { guards: Vec::new(), writes: Vec::new(), dead: Vec::new() };
    for (slice, count) in counts {
        let (hash, field) = field_of(&slice);
        let stored = view.field(&hash, field.clone())?;
        // Stored is references − 1; absent means one.
        let left = codec::decode_decimal(stored.as_deref()).and_then(|stored| stored.checked_sub(count)).ok_or(Errno::IO)?;
        dropped.guards.push(Guard::Field(hash.clone(), field.clone(), stored));
        dropped.writes.push(Write::HIncrBy(hash, field, -count));
        if left < 0 {
            dropped.writes.push(Write::DelFrame(slice.0));
            dropped.dead.push(slice);
        }
    }
    Ok(dropped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::ops::chunk::testing::{World, ready, slice};
    use crate::meta::ops::write::NewSlice;
    use crate::types::CHUNK_BYTES;

    #[test]
    fn all_lists_go_also_those_beyond_the_length() {
        let world = World::new();
        let (ino, copy) = (world.file(0), world.file(0));
        world.write(ino, 0, 1, 10);
        world.write_at(ino, 7, 0, 2, 10);
        ready(world.meta.write(ino, 7, &[NewSlice { frame: Some(Bytes::from_static(b"f")), ..slice(3, 3, 1) }], world.now())).unwrap();
        ready(world.meta.copy_range(&Caller::root(), ino, 0, copy, 0, 4)).unwrap();
        ready(world.meta.truncate(&Caller::root(), ino, 2)).unwrap();
        world.unlink(ino);
        assert_eq!(ready(world.meta.pending_files(world.now().sec, 10)).unwrap(), [(ino, 2)]);
        assert_eq!(ready(world.meta.pending_files(world.now().sec - 1, 10)).unwrap(), []);
        let dead = ready(world.meta.delete_file(ino, 2)).unwrap();
        assert_eq!(dead, [(2, 10), (3, 1)]);
        assert_eq!(world.frame(3), None);
        assert_eq!(world.reference(1, 10), Some(0), "the copy still has it");
        assert_eq!(ready(world.meta.chunks_present(ino, 0..u32::MAX)).unwrap(), [0u32; 0]);
        assert_eq!(ready(world.meta.pending_files(i64::MAX, 10)).unwrap(), []);
        assert_eq!(ready(world.meta.pending_slices(10)).unwrap(), dead, "until their objects are gone");
        assert_eq!(ready(world.meta.pending_slices(1)).unwrap().len(), 1);
        ready(world.meta.forget_slices(&dead)).unwrap();
        assert_eq!(ready(world.meta.pending_slices(10)).unwrap(), []);
        assert_eq!(world.reference(2, 10), None);
    }

    #[test]
    fn many_files_go_together_and_a_living_one_stays() {
        let world = World::new();
        let files: Vec<_> = (0..70).map(|_| world.file(0)).collect();
        for (n, &ino) in files.iter().enumerate() {
            world.write(ino, 0, n as u64 + 1, 10);
            world.write_at(ino, 1, 0, 1000 + n as u64, 10);
        }
        let gone: Vec<_> = files.iter().map(|ino| (*ino, CHUNK_BYTES + 10)).collect();
        for ino in &files[1..] {
            world.unlink(*ino);
        }
        let dead = ready(world.meta.delete_files(&gone)).unwrap();
        assert_eq!(dead.len(), 138);
        assert_eq!(world.list(files[0], 0).len(), 1, "its inode exists");
        assert_eq!(ready(world.meta.pending_files(i64::MAX, 100)).unwrap(), []);
        assert_eq!(ready(world.meta.delete_files(&gone[1..])).unwrap(), [], "nothing is dropped twice");
    }

    #[test]
    fn two_deleters_drop_each_reference_once() {
        let world = World::new();
        let ino = world.file(0);
        world.write(ino, 0, 1, 10);
        world.unlink(ino);
        let other = world.neighbour();
        world.store.before_commit(move || assert_eq!(ready(other.delete_file(ino, 10)).unwrap(), [(1, 10)]));
        assert_eq!(ready(world.meta.delete_file(ino, 10)).unwrap(), []);
        assert_eq!(world.reference(1, 10), Some(-1));
    }

    #[test]
    fn strangers_among_the_names_are_passed_over() {
        assert_eq!(parse_delfile(b"12:34"), Some((Ino(12), 34)));
        assert_eq!(parse_slice_ref(b"k12_34"), Some((12, 34)));
        for text in ["", "12", "12:", "a:1", "1:2:3", "12_34", "k1", "k1_2_3"] {
            assert_eq!((parse_delfile(text.as_bytes()), parse_slice_ref(text.as_bytes())), (None, None), "{text}");
        }
    }

    #[test]
    fn no_field_upsets_the_parser() {
        crate::env::fuzz::decoder(&[b"k123_4194304".to_vec(), b"k18446744073709551615_0".to_vec()], |bytes| {
            if let Some((id, size)) = parse_slice_ref(bytes) {
                assert_eq!(parse_slice_ref(&key::slice_ref(id, size)), Some((id, size)));
            }
        });
    }
}
