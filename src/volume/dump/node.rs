//! `Node`: an inode with all that belongs to it, read from a store.

use crate::meta::codec::{Record, decode_entry, decode_slice};
use crate::meta::key;
use crate::meta::store::{Cursor, Query, ScanRange, Store, Value};
use crate::types::{Attr, CHUNK_BYTES, Ino, Kind, SliceRecord};
use crate::volume::VolumeError;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Mutex;
use tracing::warn;

/// Queries of one read: few round trips, and a store is not kept busy for long.
const READ_MAX: usize = 1000;
/// Items of one page of a listing.
pub(super) const PAGE: u32 = 1000;
/// Chunks asked for one by one. Of a longer file, which is mostly holes, those that exist are listed.
const CHUNKS_ASKED_MAX: u64 = 10_000;

/// An inode.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its number.
    pub ino: Ino,
    /// Its attributes.
    pub attr: Attr,
    /// Target of a symlink.
    pub target: Bytes,
    /// Extended attributes, by name.
    pub xattrs: Vec<(Bytes, Bytes)>,
    /// Encoded rule of the access ACL (metadata §2.7).
    pub access_acl: Option<Bytes>,
    /// Encoded rule of the default ACL.
    pub default_acl: Option<Bytes>,
    /// Slice lists by index of the chunk, none of them empty.
    pub chunks: Vec<(u32, Vec<SliceRecord>)>,
}

/// A directory entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Raw bytes.
    pub name: Bytes,
    /// The inode.
    pub ino: Ino,
}

/// Reads nodes and directories.
pub struct Nodes<'a> {
    store: &'a dyn Store,
    /// Rules by id: few, and shared by all inodes.
    rules: Mutex<HashMap<u32, Bytes>>,
}

impl<'a> Nodes<'a> {
    /// Of this store.
    pub fn new(store: &'a dyn Store) -> Nodes<'a> {
        Nodes { store, rules: Mutex::default() }
    }

    /// The entries of a directory, sorted by the bytes of their names.
    pub async fn entries(&self, dir: Ino) -> Result<Vec<Entry>, VolumeError> {
        let mut entries = Vec::new();
        let range = ScanRange::Hash(key::dir(dir));
        let mut cursor = Some(Cursor::new());
        while let Some(at) = cursor {
            let page = self.store.scan(&range, at, PAGE).await?;
            for item in page.items {
                let (_, ino) = decode_entry(&item.value)
                    .ok_or_else(|| damaged(format!("entry {:?} of directory {dir}", String::from_utf8_lossy(&item.name))))?;
                entries.push(Entry { name: item.name, ino });
            }
            cursor = page.next;
        }
        entries.sort();
        // A store may list an entry twice while others come and go.
        entries.dedup_by(|later, first| later.name == first.name);
        Ok(entries)
    }

    /// Reads inodes; `None` for those without a record. Record, attributes, target and the list of the first chunk are of one moment.
    pub async fn read(&self, inodes: &[Ino]) -> Result<Vec<Option<Node>>, VolumeError> {
        let queries: Vec<Query> = inodes
            .iter()
            .flat_map(|ino| {
                [
                    Query::Get(key::inode(*ino)),
                    Query::HGetAll(key::xattr(*ino)),
                    Query::Get(key::symlink(*ino)),
                    Query::List(key::chunk(*ino, 0)),
                ]
            })
            .collect();
        let values = self.store.read(&queries).await?;
        let mut nodes = Vec::with_capacity(inodes.len());
        for (ino, values) in inodes.iter().zip(values.chunks(4)) {
            let [Value::Bytes(record), Value::Pairs(xattrs), Value::Bytes(target), Value::List(first)] = values else {
                return Err(VolumeError::Failed(format!("the metadata store gave no answer about inode {ino}")));
            };
            let Some(record) = record else {
                nodes.push(None);
                continue;
            };
            let attr = Record::decode(record.clone()).ok_or_else(|| damaged(format!("the record of inode {ino}")))?.attr;
            let mut node = Node {
                ino: *ino,
                target: Bytes::new(),
                xattrs: xattrs.clone(),
                access_acl: self.rule(*ino, attr.access_acl).await?,
                default_acl: self.rule(*ino, attr.default_acl).await?,
                chunks: Vec::new(),
                attr,
            };
            node.xattrs.sort();
            match node.attr.kind {
                Kind::Symlink => match target {
                    Some(target) => node.target = target.clone(),
                    None => warn!("symlink {ino} has no target; run `pando fsck`"),
                },
                Kind::File if node.attr.length > 0 => {
                    push_chunk(&mut node, 0, first)?;
                    self.later_chunks(&mut node).await?;
                }
                _ => {}
            }
            nodes.push(Some(node));
        }
        Ok(nodes)
    }

    /// The lists of the chunks after the first.
    async fn later_chunks(&self, node: &mut Node) -> Result<(), VolumeError> {
        let chunks = node.attr.length.div_ceil(CHUNK_BYTES);
        let index = |chunk: u64| u32::try_from(chunk).map_err(|_| damaged(format!("the length of inode {}", node.ino)));
        let last = index(chunks.saturating_sub(1))?;
        let indexes: Vec<u32> = match chunks {
            0..=CHUNKS_ASKED_MAX => (1..=last).collect(),
            _ => self.chunks_of(node.ino).await?.into_iter().filter(|chunk| (1..=last).contains(chunk)).collect(),
        };
        for part in indexes.chunks(READ_MAX) {
            let queries: Vec<Query> = part.iter().map(|chunk| Query::List(key::chunk(node.ino, *chunk))).collect();
            let values = self.store.read(&queries).await?;
            for (chunk, value) in part.iter().zip(&values) {
                let Value::List(list) = value else {
                    return Err(VolumeError::Failed(format!("the metadata store gave no answer about inode {}", node.ino)));
                };
                push_chunk(node, *chunk, list)?;
            }
        }
        Ok(())
    }

    /// Indexes of the chunks that have a list, ascending.
    async fn chunks_of(&self, ino: Ino) -> Result<Vec<u32>, VolumeError> {
        let prefix = format!("c{ino}_");
        let range = ScanRange::Keys(prefix.clone().into());
        let mut indexes = Vec::new();
        let mut cursor = Some(Cursor::new());
        while let Some(at) = cursor {
            let page = self.store.scan(&range, at, PAGE).await?;
            let numbers =
                page.items.iter().filter_map(|item| std::str::from_utf8(&item.name).ok()?.strip_prefix(&prefix)?.parse::<u32>().ok());
            indexes.extend(numbers);
            cursor = page.next;
        }
        indexes.sort_unstable();
        indexes.dedup();
        Ok(indexes)
    }

    async fn rule(&self, ino: Ino, id: u32) -> Result<Option<Bytes>, VolumeError> {
        if id == 0 {
            return Ok(None);
        }
        let rules = || self.rules.lock().expect("never poisoned: no code under it panics");
        let known = rules().get(&id).cloned();
        if known.is_some() {
            return Ok(known);
        }
        match self.store.read(&[Query::HGet(key::ACL, key::decimal(id))]).await?.into_iter().next() {
            Some(Value::Bytes(Some(rule))) => {
                rules().insert(id, rule.clone());
                Ok(Some(rule))
            }
            // Left out, the inode would be open to others than its owner said.
            _ => Err(damaged(format!("inode {ino} has ACL {id}, which does not exist: it"))),
        }
    }
}

fn push_chunk(node: &mut Node, index: u32, list: &[Bytes]) -> Result<(), VolumeError> {
    if list.is_empty() {
        return Ok(());
    }
    let records = list.iter().map(|record| decode_slice(record)).collect::<Option<Vec<_>>>();
    node.chunks.push((index, records.ok_or_else(|| damaged(format!("a slice record of chunk {index} of inode {}", node.ino)))?));
    Ok(())
}

pub(super) fn damaged(what: String) -> VolumeError {
    VolumeError::Failed(format!("{what} is damaged; nothing complete can be dumped, run `pando fsck` for more"))
}
