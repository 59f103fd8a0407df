//! Numbers that metadata from before some moment must not give out again: those of slices whose objects are in the bucket already.
//!
//! The keys of blocks name directories after the thousands and millions of their slice (data §1.3), so the highest one is found without
//! looking at all objects.

use crate::block::retrying;
use crate::meta::codec::decode_decimal;
use crate::meta::key;
use crate::meta::setting::Setting;
use crate::meta::store::{Commit, Key, Query, Store, Value, Write};
use crate::object::{ObjectError, ObjectStore};
use crate::types::{BlockId, SliceId};
use crate::volume::VolumeError;
use crate::volume::objects::{location, open_objects};
use std::path::Path;
use tracing::warn;

/// Numbers left out: more than clients of the lost metadata can have taken ahead of what they had stored, and nothing of 2^63.
const SKIPPED: i64 = 1_000_000;
/// Objects listed at once.
const PAGE: usize = 1000;

/// When numbers are raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmness {
    /// If the bucket has slices that the metadata does not know. One that does not answer is only warned of.
    IfBehind,
    /// Whatever the bucket has, which must answer. The numbers of inodes and sessions are raised, too: others may remember those they had.
    Always,
}

/// Raises the counters of a store above what is in the bucket of `setting`. Answers the id of the first new slice if it was raised.
pub async fn pass_by(store: &dyn Store, setting: &Setting, dir: Option<&Path>, firmness: Firmness) -> Result<Option<SliceId>, VolumeError> {
    let highest = async {
        let objects = open_objects(setting, dir).await?;
        let highest = highest_slice(objects.as_ref(), setting.name(), setting.hash_prefix()).await;
        highest.map_err(|e| VolumeError::Failed(format!("cannot list {}: {e}", location(setting, dir))))
    };
    let highest = match highest.await {
        Ok(highest) => i64::try_from(highest).unwrap_or(i64::MAX - SKIPPED),
        Err(error) if firmness == Firmness::Always => return Err(error),
        Err(error) => {
            warn!(
                "{error}; if the bucket holds data that was written after the dump, new data will replace it: see to it that \
                 `nextchunk` is above all of its slices before the volume is mounted"
            );
            return Ok(None);
        }
    };
    let known = counter(store, &key::NEXT_CHUNK).await?;
    if firmness == Firmness::IfBehind && highest <= known {
        return Ok(None);
    }
    let above = |number: i64| number.saturating_add(SKIPPED);
    let slice = above(highest.max(known));
    let mut writes = vec![Write::Set(key::NEXT_CHUNK, key::decimal(slice))];
    if firmness == Firmness::Always {
        for number in [key::NEXT_INODE, key::NEXT_SESSION] {
            let known = counter(store, &number).await?;
            writes.push(Write::Set(number, key::decimal(above(known))));
        }
    }
    match store.commit(&[], &writes, &[]).await? {
        Commit::Done { .. } => Ok(u64::try_from(slice).ok().map(|slice| slice + 1)),
        Commit::Conflict(_) => Err(VolumeError::Failed("the metadata store saw a conflict where nothing was guarded".into())),
    }
}

async fn counter(store: &dyn Store, name: &Key) -> Result<i64, VolumeError> {
    let number = match store.read(&[Query::Get(name.clone())]).await?.first() {
        Some(Value::Bytes(text)) => decode_decimal(text.as_deref()),
        _ => None,
    };
    number.ok_or_else(|| VolumeError::Failed(format!("the counter {} is no number", String::from_utf8_lossy(name))))
}

/// The highest slice of which the bucket has a block; 0 if it has none.
pub async fn highest_slice(objects: &dyn ObjectStore, volume: &str, hash_prefix: bool) -> Result<SliceId, ObjectError> {
    let root = format!("{volume}/chunks/");
    if !hash_prefix {
        return highest_below(objects, &root, 2).await;
    }
    let mut highest = 0;
    for part in children(objects, &root).await? {
        highest = highest.max(highest_below(objects, &format!("{root}{part}/"), 1).await?);
    }
    Ok(highest)
}

/// The highest slice below a directory with so many levels of numbered ones.
async fn highest_below(objects: &dyn ObjectStore, dir: &str, levels: u32) -> Result<SliceId, ObjectError> {
    let mut waiting = vec![(dir.to_owned(), levels)];
    while let Some((dir, levels)) = waiting.pop() {
        if levels == 0 {
            match highest_in(objects, &dir).await? {
                0 => continue,
                highest => return Ok(highest),
            }
        }
        let mut numbers: Vec<u64> = children(objects, &dir).await?.iter().filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        // The highest comes from the stack first; the others only if it has no blocks.
        waiting.extend(numbers.into_iter().map(|number| (format!("{dir}{number}/"), levels - 1)));
    }
    Ok(0)
}

/// The highest slice that has a block directly in a directory.
async fn highest_in(objects: &dyn ObjectStore, dir: &str) -> Result<SliceId, ObjectError> {
    let (mut highest, mut after) = (0, String::new());
    loop {
        let page = retrying("list objects", dir, || objects.list(dir, &after, PAGE)).await?;
        let slices = page.iter().filter_map(|object| Some(BlockId::parse(&object.key[dir.len()..])?.slice));
        highest = slices.fold(highest, SliceId::max);
        match page.last() {
            Some(last) if page.len() == PAGE => after.clone_from(&last.key),
            _ => return Ok(highest),
        }
    }
}

/// The names of the directories in a directory: one listing of one key for each.
pub(super) async fn children(objects: &dyn ObjectStore, dir: &str) -> Result<Vec<String>, ObjectError> {
    let (mut names, mut after) = (Vec::new(), String::new());
    loop {
        let page = retrying("list objects", dir, || objects.list(dir, &after, 1)).await?;
        let Some(first) = page.first() else { return Ok(names) };
        match first.key[dir.len()..].split_once('/') {
            Some((name, _)) => {
                // `0` comes after the slash, so this passes over everything in the directory and over nothing else.
                after = format!("{dir}{name}0");
                names.push(name.to_owned());
            }
            None => after.clone_from(&first.key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::store::embedded::EmbeddedStore;
    use crate::object::memory::MemoryStore;
    use bytes::Bytes;

    async fn bucket(hash_prefix: bool, slices: &[u64]) -> MemoryStore {
        let store = MemoryStore::new();
        for slice in slices {
            for index in 0..3 {
                let block = BlockId { slice: *slice, index, len: 5 };
                store.put(&format!("vol/{}", block.key(hash_prefix)), Bytes::from_static(b"x")).await.unwrap();
            }
        }
        store
    }

    #[tokio::test]
    async fn the_highest_slice_is_found_in_either_layout() {
        for (slices, highest) in [
            (&[][..], 0),
            (&[1], 1),
            (&[9, 10, 999, 1000, 2000], 2000),
            (&[999_999, 10_000_001, 9_000_001, 2_000_000], 10_000_001),
            (&[5, 1_234_567_890_123, 1_234_567_890_122, 999_999_999_999], 1_234_567_890_123),
        ] {
            for hash_prefix in [false, true] {
                let store = bucket(hash_prefix, slices).await;
                // Strangers, also where the highest would be.
                for key in [
                    "vol/chunks/x",
                    "vol/chunks/99999999/7/notes",
                    "vol/chunks/zz/1/1_0_5.tmp/a",
                    "voles/chunks/9/9/9000_0_5",
                    "vol/meta/x",
                ] {
                    store.put(key, Bytes::from_static(b"x")).await.unwrap();
                }
                assert_eq!(highest_slice(&store, "vol", hash_prefix).await, Ok(highest), "{slices:?} {hash_prefix}");
            }
        }
    }

    #[tokio::test]
    async fn directories_are_listed_past_names_that_begin_alike() {
        let store = MemoryStore::new();
        for key in ["d/1/a", "d/10/a", "d/10/b", "d/100/a", "d/1-0/a", "d/10", "d/100.x", "d/2/a/b/c"] {
            store.put(key, Bytes::from_static(b"x")).await.unwrap();
        }
        let mut names = children(&store, "d/").await.unwrap();
        names.sort();
        assert_eq!(names, ["1", "1-0", "10", "100", "2"]);
    }

    #[tokio::test]
    async fn counters_are_raised_when_they_are_behind() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("objects/vol/chunks/0/7")).unwrap();
        std::fs::write(temp.path().join("objects/vol/chunks/0/7/7001_0_5"), b"12345").unwrap();
        let setting = Setting::new("vol", "u", "file", "objects/", 4096);
        for (known, firmness, raised, next) in [
            (7001, Firmness::IfBehind, None, 7001),
            (7000, Firmness::IfBehind, Some(1_007_002), 1_007_001),
            (7001, Firmness::Always, Some(1_007_002), 1_007_001),
            (9000, Firmness::Always, Some(1_009_001), 1_009_000),
        ] {
            let store = EmbeddedStore::open_in_memory().unwrap();
            let writes = [(key::NEXT_CHUNK, known), (key::NEXT_INODE, 5)].map(|(name, n)| Write::Set(name, key::decimal(n)));
            store.commit(&[], &writes, &[]).await.unwrap();
            assert_eq!(pass_by(&store, &setting, Some(temp.path()), firmness).await.unwrap(), raised);
            let inodes = if firmness == Firmness::Always { 1_000_005 } else { 5 };
            assert_eq!(
                (counter(&store, &key::NEXT_CHUNK).await.unwrap(), counter(&store, &key::NEXT_INODE).await.unwrap()),
                (next, inodes)
            );
            // Without the bucket.
            let nowhere = Some(Path::new("/nowhere"));
            assert_eq!(pass_by(&store, &setting, nowhere, firmness).await.is_ok(), firmness == Firmness::IfBehind);
        }
    }
}
