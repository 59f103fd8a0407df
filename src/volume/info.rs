//! What `info` shows of an inode: its totals, its paths, its slices.

use crate::meta::codec::{LockRecord, Record, decode_decimal, decode_entry, decode_locks, decode_slice};
use crate::meta::key;
use crate::meta::ops::stats::{Leaf, leaves};
use crate::meta::setting::Setting;
use crate::meta::store::{Cursor, Query, ScanRange, Store, Value};
use crate::types::{Attr, BlockId, CHUNK_BYTES, Extent, Ino, Kind, SliceRecord, flatten};
use crate::volume::VolumeError;
use bytes::Bytes;
use serde_json::{Value as Json, json};
use std::collections::HashSet;
use std::sync::Arc;

/// Items asked for at once while listing.
const PAGE: u32 = 1000;
/// Deepest path followed upwards: longer ones cannot be named in a system call, so a loop is the only explanation.
const DEPTH_MAX: usize = 4096;

/// One extent of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkLine {
    /// Index of the chunk.
    pub chunk: u32,
    /// The slice, 0 = zeros.
    pub slice: u64,
    /// Bytes of the whole slice.
    pub size: u32,
    /// First byte used inside the slice.
    pub offset: u32,
    /// Bytes used.
    pub length: u32,
    /// Where it stands inside the chunk.
    pub pos: u32,
    /// The pieces of its blocks, in order; none for zeros.
    pub objects: Vec<ObjectLine>,
}

/// The part of an extent that lies in one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectLine {
    /// Name of the object. A small block gets it when it is copied to the objects; until then it lies beside the metadata.
    pub name: String,
    /// Bytes of the block.
    pub size: u32,
    /// First byte used of it.
    pub offset: u32,
    /// Bytes used of it.
    pub length: u32,
    /// Where it stands inside the chunk.
    pub pos: u32,
}

/// What there is to tell about an inode.
#[derive(Clone, Debug)]
pub struct Description {
    /// The inode.
    pub ino: Ino,
    /// Files under it, itself included.
    pub files: u64,
    /// Directories under it, itself included.
    pub dirs: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes, each inode rounded up to 4 KiB.
    pub size: u64,
    /// Paths from the root of the view; several for hard links, none if it cannot be reached from there.
    pub paths: Vec<String>,
    /// Extents of a file, in order.
    pub chunks: Vec<ChunkLine>,
    /// BSD locks on it, as one document each.
    pub flocks: Vec<Json>,
    /// POSIX locks on it, one document for each range.
    pub plocks: Vec<Json>,
}

/// How much of a directory is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// The whole tree; otherwise only its direct children.
    pub recursive: bool,
    /// Everything is looked at. Otherwise what is in a directory without directories is taken from its statistics.
    pub strict: bool,
}

/// Describes an inode as far as it is committed. Paths are relative to `root`.
pub async fn describe(store: &Arc<dyn Store>, setting: &Setting, ino: Ino, root: Ino, depth: Depth) -> Result<Description, VolumeError> {
    let attr = record(store, ino).await?.ok_or_else(|| VolumeError::Refused(format!("inode {ino} does not exist in this volume")))?;
    let mut described =
        Description { ino, files: 0, dirs: 0, length: 0, size: 0, paths: vec![], chunks: vec![], flocks: vec![], plocks: vec![] };
    described.count(&attr);
    if attr.is_dir() {
        // In a damaged volume a directory may lie inside itself: each counts once. 16 bytes for a directory, as long as it takes.
        let mut seen = HashSet::from([ino]);
        let mut pending = vec![ino];
        while let Some(dir) = pending.pop() {
            let range = ScanRange::Dir(key::dir(dir));
            let mut cursor = Some(Cursor::new());
            while let Some(from) = cursor {
                let page = store.scan(&range, from, PAGE).await?;
                let mut dirs = Vec::new();
                for item in &page.items {
                    let child = Record::decode(item.record.clone());
                    if let (Some((kind, child_ino)), Some(child)) = (decode_entry(&item.value), child) {
                        if kind == Kind::Dir && !seen.insert(child_ino) {
                            continue;
                        }
                        described.count(&child.attr);
                        if depth.recursive && kind == Kind::Dir {
                            dirs.push((child_ino, child.attr));
                        }
                    }
                }
                let listed: Vec<_> = dirs.iter().filter(|_| !depth.strict).map(|(ino, attr)| (*ino, attr)).collect();
                let mut leaves = leaves(&**store, setting, &listed).await?.into_iter();
                for (child, _) in dirs {
                    match leaves.next().flatten() {
                        Some(leaf) => described.count_leaf(&leaf),
                        None => pending.push(child),
                    }
                }
                cursor = page.next;
            }
        }
    } else if attr.kind == Kind::File {
        described.chunks = extents(store, setting, ino, attr.length).await?;
    }
    described.paths = paths(store, ino, &attr, root).await?;
    (described.flocks, described.plocks) = locks(store, ino).await?;
    Ok(described)
}

impl Description {
    /// As commands get it.
    pub fn document(&self) -> Json {
        let object = |object: &ObjectLine| json!({ "Name": object.name, "Size": object.size, "Offset": object.offset, "Length": object.length, "Pos": object.pos });
        let chunk = |line: &ChunkLine| {
            json!({
                "Chunk": line.chunk, "Slice": line.slice, "Size": line.size, "Offset": line.offset, "Length": line.length, "Pos": line.pos,
                "Objects": line.objects.iter().map(object).collect::<Vec<_>>(),
            })
        };
        json!({
            "Inode": self.ino.0, "Files": self.files, "Dirs": self.dirs, "Length": self.length, "Size": self.size, "Paths": self.paths,
            "Chunks": self.chunks.iter().map(chunk).collect::<Vec<_>>(), "Flocks": self.flocks, "Plocks": self.plocks,
        })
    }

    fn count_leaf(&mut self, leaf: &Leaf) {
        self.files = self.files.saturating_add(leaf.inodes);
        self.length = self.length.saturating_add(leaf.length);
        self.size = self.size.saturating_add(leaf.space);
    }

    fn count(&mut self, attr: &Attr) {
        if attr.is_dir() {
            self.dirs += 1;
        } else {
            self.files += 1;
        }
        if attr.kind == Kind::File {
            self.length = self.length.saturating_add(attr.length);
        }
        self.size = self.size.saturating_add(u64::try_from(attr.space()).unwrap_or(0));
    }
}

async fn record(store: &Arc<dyn Store>, ino: Ino) -> Result<Option<Attr>, VolumeError> {
    Ok(match store.read(&[Query::Get(key::inode(ino))]).await?.into_iter().next() {
        Some(Value::Bytes(Some(bytes))) => Record::decode(bytes).map(|record| record.attr),
        _ => None,
    })
}

async fn extents(store: &Arc<dyn Store>, setting: &Setting, ino: Ino, length: u64) -> Result<Vec<ChunkLine>, VolumeError> {
    let mut lines = Vec::new();
    for index in 0..u32::try_from(length.div_ceil(CHUNK_BYTES)).unwrap_or(u32::MAX) {
        let values = store.read(&[Query::List(key::chunk(ino, index))]).await?;
        let Some(Value::List(elements)) = values.into_iter().next() else { continue };
        let records: Option<Vec<SliceRecord>> = elements.iter().map(|element| decode_slice(element)).collect();
        let Some(records) = records else {
            return Err(VolumeError::Failed(format!("the slice list of chunk {index} of inode {ino} is damaged; run `pando fsck`")));
        };
        for extent in flatten(&records) {
            lines.push(line(setting, index, &extent));
        }
    }
    Ok(lines)
}

fn line(setting: &Setting, chunk: u32, extent: &Extent) -> ChunkLine {
    let block_bytes = setting.block_bytes();
    let mut objects = Vec::new();
    // Records are checked to lie inside their slice, which is at most a chunk; the sums cannot overflow.
    let mut at = extent.off;
    while extent.id != 0 && at < extent.off + extent.len {
        let Some(block) = BlockId::of(extent.id, extent.size, at / block_bytes, block_bytes) else { break };
        let offset = at % block_bytes;
        let length = (block.len - offset).min(extent.off + extent.len - at);
        let name = format!("{}/{}", setting.name(), block.key(setting.hash_prefix()));
        objects.push(ObjectLine { name, size: block.len, offset, length, pos: extent.pos + (at - extent.off) });
        at += length;
    }
    ChunkLine { chunk, slice: extent.id, size: extent.size, offset: extent.off, length: extent.len, pos: extent.pos, objects }
}

/// BSD and POSIX locks on an inode.
async fn locks(store: &Arc<dyn Store>, ino: Ino) -> Result<(Vec<Json>, Vec<Json>), VolumeError> {
    let values = store.read(&[Query::HGetAll(key::flock(ino)), Query::HGetAll(key::plock(ino))]).await?;
    let [Value::Pairs(flocks), Value::Pairs(plocks)] = &values[..] else {
        return Err(VolumeError::Failed("the metadata store gave no answer about locks".into()));
    };
    // `{session}_{owner in hexadecimal}`; anything else is none of the format's.
    let holder = |field: &[u8]| {
        let (sid, owner) = std::str::from_utf8(field).ok()?.split_once('_')?;
        Some((sid.parse::<u64>().ok()?, u64::from_str_radix(owner, 16).ok()?))
    };
    let flock = |(field, value): &(Bytes, Bytes)| {
        let (sid, owner) = holder(field)?;
        Some(json!({ "Sid": sid, "Owner": owner, "Type": String::from_utf8_lossy(value) }))
    };
    let plock = |(field, value): &(Bytes, Bytes)| {
        let (sid, owner) = holder(field)?;
        let range = move |lock: LockRecord| {
            let kind = if lock.exclusive { "W" } else { "R" };
            json!({ "Sid": sid, "Owner": owner, "Type": kind, "Pid": lock.pid, "Start": lock.start, "End": lock.end })
        };
        Some(decode_locks(value)?.into_iter().map(range))
    };
    Ok((flocks.iter().filter_map(flock).collect(), plocks.iter().filter_map(plock).flatten().collect()))
}

/// All names of an inode. A file with several links has its parents in a hash of its own.
async fn paths(store: &Arc<dyn Store>, ino: Ino, attr: &Attr, root: Ino) -> Result<Vec<String>, VolumeError> {
    if ino == root {
        return Ok(vec!["/".into()]);
    }
    let parents = match attr.parent {
        Ino(0) => match store.read(&[Query::HGetAll(key::parents(ino))]).await?.into_iter().next() {
            Some(Value::Pairs(pairs)) => pairs
                .iter()
                .filter(|(_, count)| decode_decimal(Some(count)).is_some_and(|count| count > 0))
                .filter_map(|(parent, _)| Some(Ino(std::str::from_utf8(parent).ok()?.parse().ok()?)))
                .collect(),
            _ => Vec::new(),
        },
        parent => vec![parent],
    };
    let mut paths = Vec::new();
    for parent in parents {
        let Some(dir) = dir_path(store, parent, root).await? else { continue };
        for name in names_in(store, parent, ino).await? {
            paths.push(format!("{dir}/{name}"));
        }
    }
    paths.sort();
    Ok(paths)
}

/// Path of a directory from `root`, empty for `root` itself; `None` if it does not lie below it.
pub(super) async fn dir_path(store: &Arc<dyn Store>, dir: Ino, root: Ino) -> Result<Option<String>, VolumeError> {
    let mut parts = Vec::new();
    let mut at = dir;
    while at != root {
        if at == Ino::ROOT || parts.len() > DEPTH_MAX {
            return Ok(None);
        }
        let Some(attr) = record(store, at).await? else { return Ok(None) };
        let Some(name) = names_in(store, attr.parent, at).await?.into_iter().next() else { return Ok(None) };
        parts.push(name);
        at = attr.parent;
    }
    Ok(Some(parts.iter().rev().map(|part| format!("/{part}")).collect()))
}

async fn names_in(store: &Arc<dyn Store>, dir: Ino, ino: Ino) -> Result<Vec<String>, VolumeError> {
    let range = ScanRange::Hash(key::dir(dir));
    let mut names = Vec::new();
    let mut cursor = Some(Cursor::new());
    while let Some(from) = cursor {
        let page = store.scan(&range, from, PAGE).await?;
        let found = page.items.iter().filter(|item| decode_entry(&item.value).is_some_and(|(_, child)| child == ino));
        names.extend(found.map(|item| String::from_utf8_lossy(&item.name).into_owned()));
        cursor = page.next;
    }
    Ok(names)
}
