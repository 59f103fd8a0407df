//! `fsck`: does the volume keep its own promises? Reads everything, changes nothing.
//!
//! Three passes over the store, page by page: `tree` (records, entries, links, usage), `slices` (chunk lists, references, blocks), and
//! the counters at the end. What stays in memory is one `Node` per inode and one `SliceUse` per slice, about 100 bytes each with their
//! tables: 100 MB for a million inodes.
//!
//! While another process uses the volume the passes see different moments. A second run then tells damage from change: only what both
//! found at the same place is reported.

mod slices;
mod tree;

use crate::meta::codec::decode_entry;
use crate::meta::key;
use crate::meta::store::{Cursor, Key, Query, ScanItem, ScanRange, Store, Value};
use crate::types::{Ino, Kind};
use crate::volume::VolumeError;
use crate::volume::stores::{Stores, usage};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Items asked for at once while listing.
const PAGE: u32 = 1000;
/// Findings kept. Ten thousand lines tell that a volume is broken; a loop of damage must not fill the memory.
const FINDINGS_MAX: usize = 10_000;
/// Deepest path followed upwards when a finding is named; more is a loop.
const DEPTH_MAX: usize = 4096;

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Path, or what else it is about.
    pub subject: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub advice: &'static str,
    /// Same damage, same key: findings of two runs are compared by it.
    key: (&'static str, String),
}

/// What was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsckSummary {
    /// Inodes.
    pub inodes: u64,
    /// Directory entries.
    pub entries: u64,
    /// Slices.
    pub slices: u64,
    /// Blocks, in objects or frames.
    pub blocks: u64,
    /// Their bytes.
    pub block_bytes: u64,
    /// Blocks that are lost or have the wrong size.
    pub lost: u64,
    /// Damage beyond the most that is listed.
    pub unlisted: u64,
    /// Another process used the volume during the check.
    pub shared: bool,
}

/// Checks a volume.
pub async fn fsck(stores: &Stores) -> Result<(Vec<Finding>, FsckSummary), VolumeError> {
    let (mut findings, mut summary) = Check::run(stores).await?;
    summary.shared = stores.store.shared();
    if summary.shared && !findings.is_empty() {
        let (again, _) = Check::run(stores).await?;
        let keys: HashSet<_> = again.into_iter().map(|finding| finding.key).collect();
        findings.retain(|finding| keys.contains(&finding.key));
    }
    Ok((findings, summary))
}

/// What is remembered of an inode.
struct Node {
    kind: Kind,
    nlink: u32,
    parent: Ino,
    length: u64,
    /// Entries that name it.
    entries: u32,
    /// Directories among its entries.
    subdirs: u32,
}

struct Check<'a> {
    stores: &'a Stores,
    store: &'a Arc<dyn Store>,
    nodes: HashMap<Ino, Node>,
    /// Inodes some session keeps although their last link is gone.
    sustained: HashSet<Ino>,
    /// Deleted files whose data is still there.
    deleted: HashSet<Ino>,
    findings: Vec<Finding>,
    summary: FsckSummary,
}

impl<'a> Check<'a> {
    async fn run(stores: &'a Stores) -> Result<(Vec<Finding>, FsckSummary), VolumeError> {
        let mut check = Check {
            stores,
            store: &stores.store,
            nodes: HashMap::new(),
            sustained: HashSet::new(),
            deleted: HashSet::new(),
            findings: Vec::new(),
            summary: FsckSummary::default(),
        };
        check.tree().await?;
        check.slices().await?;
        check.counters().await?;
        Ok((check.findings, check.summary))
    }

    /// The counters of the whole volume, from what the other passes have seen.
    async fn counters(&mut self) -> Result<(), VolumeError> {
        let counted = self.nodes.iter().filter(|(ino, _)| **ino != Ino::ROOT && **ino != Ino::TRASH);
        let (mut space, mut inodes) = (0, 0);
        for (_, node) in counted {
            space += node.space();
            inodes += 1;
        }
        let stored = usage(self.store.as_ref()).await?;
        for (name, stored, found) in [("usedSpace", stored.space, space), ("totalInodes", stored.inodes, inodes)] {
            if stored != found {
                self.report("counter", format!("counter {name}"), format!("says {stored}, counted {found}"), RECOUNT);
            }
        }
        Ok(())
    }

    fn report(&mut self, code: &'static str, subject: String, what: String, advice: &'static str) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { key: (code, subject.clone()), subject, what, advice });
        } else {
            self.summary.unlisted += 1;
        }
    }

    /// Reports about an inode, named by its path.
    async fn report_at(&mut self, code: &'static str, ino: Ino, what: String, advice: &'static str) -> Result<(), VolumeError> {
        // Paths are looked up only for what is listed: naming an inode reads its directories.
        let subject = if self.findings.len() < FINDINGS_MAX { self.subject(ino).await? } else { String::new() };
        self.report(code, subject, what, advice);
        Ok(())
    }

    /// `path (inode n)`, or only the inode if no path leads to it.
    async fn subject(&self, ino: Ino) -> Result<String, VolumeError> {
        let mut parts = Vec::new();
        let mut at = ino;
        while at != Ino::ROOT {
            let parent = match self.nodes.get(&at) {
                Some(node) if node.parent != Ino(0) => node.parent,
                // Several parents: any of them makes a path.
                Some(_) => match self.link_parents(at).await?.into_keys().next() {
                    Some(parent) => parent,
                    None => return Ok(format!("inode {ino}")),
                },
                None => return Ok(format!("inode {ino}")),
            };
            let Some(name) = self.name_in(parent, at).await? else { return Ok(format!("inode {ino}")) };
            parts.push(name);
            at = parent;
            if parts.len() > DEPTH_MAX {
                return Ok(format!("inode {ino}"));
            }
        }
        let path: String = parts.iter().rev().map(|part| format!("/{part}")).collect();
        Ok(format!("{} (inode {ino})", if path.is_empty() { "/" } else { &path }))
    }

    async fn name_in(&self, dir: Ino, ino: Ino) -> Result<Option<String>, VolumeError> {
        let mut pages = Pages::new(ScanRange::Hash(key::dir(dir)));
        while let Some(items) = pages.next(self.store).await? {
            for item in items {
                if decode_entry(&item.value).is_some_and(|(_, child)| child == ino) {
                    return Ok(Some(String::from_utf8_lossy(&item.name).into_owned()));
                }
            }
        }
        Ok(None)
    }

    /// The directories that hold links of an inode with several, and how many.
    async fn link_parents(&self, ino: Ino) -> Result<BTreeMap<Ino, i64>, VolumeError> {
        let Some(Value::Pairs(pairs)) = self.store.read(&[Query::HGetAll(key::parents(ino))]).await?.into_iter().next() else {
            return Ok(BTreeMap::new());
        };
        let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse::<i64>().ok();
        Ok(pairs
            .iter()
            .filter_map(|(parent, count)| Some((Ino(number(parent)? as u64), number(count)?)))
            .filter(|(_, count)| *count > 0)
            .collect())
    }
}

impl Node {
    fn space(&self) -> i64 {
        match self.kind {
            Kind::File => crate::types::Attr::space_of(self.length),
            _ => 4096,
        }
    }
}

const RECOUNT: &str = "only statistics are wrong, no data; files can be copied to a new volume, which counts anew";
const COPY_OUT: &str = "copy what is readable to a new volume, or restore this one from a backup";
const LOST: &str = "restore the file from a backup; if the directory of the objects was moved or cut, put it back first";

/// A scan, page after page.
struct Pages {
    range: ScanRange,
    cursor: Option<Cursor>,
}

impl Pages {
    fn new(range: ScanRange) -> Pages {
        Pages { range, cursor: Some(Cursor::new()) }
    }

    async fn next(&mut self, store: &Arc<dyn Store>) -> Result<Option<Vec<ScanItem>>, VolumeError> {
        let Some(cursor) = self.cursor.take() else { return Ok(None) };
        let page = store.scan(&self.range, cursor, PAGE).await?;
        self.cursor = page.next;
        Ok(Some(page.items))
    }
}

/// The inode of a key such as `i12`; `None` for keys that only begin alike, such as `info`.
fn inode_of(key: &[u8], prefix: &str) -> Option<Ino> {
    let digits = std::str::from_utf8(key).ok()?.strip_prefix(prefix)?;
    if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().map(Ino)
}

/// A field of a hash of decimals, `None` if absent, `Some(None)` if it is no number.
fn decimal_of(value: Option<&Value>) -> Option<Option<i64>> {
    match value {
        Some(Value::Bytes(Some(text))) => Some(std::str::from_utf8(text).ok().and_then(|text| text.parse().ok())),
        _ => None,
    }
}

fn dir_field(hash: Key, ino: Ino) -> Query {
    Query::HGet(hash, key::decimal(ino))
}
