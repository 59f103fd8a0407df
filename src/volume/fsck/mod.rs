//! `fsck`: does the volume keep its own promises? Reads everything, changes nothing; `path.rs` looks at one directory and may mend it.
//!
//! Three passes over the store, page by page: `tree` (records, entries, links, usage), `slices` (chunk lists, references, blocks), and
//! the counters at the end. What stays in memory is one `Node` per inode and one `SliceUse` per slice, about 100 bytes each with their
//! tables: 100 MB for a million inodes. Each directory, symbolic link and list of attributes or parents costs 24 bytes more until the strays are told.
//!
//! While another process uses the volume the passes see different moments. Further runs then tell damage from change: only what all of
//! them found at the same place, and the same, is reported; statistics and links of a directory only if it stood still while they were
//! counted, and the usage of the volume only if it is the same before and after.

mod mend;
mod path;
mod slices;
mod tree;

pub use mend::repair;
pub use path::{PathCheck, check_path};

use crate::env::Begun;
use crate::meta::codec::decode_entry;
use crate::meta::key;
use crate::meta::store::{Cursor, Key, Query, ScanItem, ScanPage, ScanRange, Store, StoreError, Value};
use crate::types::{Ino, Kind};
use crate::volume::VolumeError;
use crate::volume::stores::{Stores, usage};
use mend::Mend;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Items asked for at once while listing.
const PAGE: u32 = 1000;
/// Findings kept. Ten thousand lines tell that a volume is broken; a loop of damage must not fill the memory.
const FINDINGS_MAX: usize = 10_000;
/// Runs on a volume in use. What changes all the time is found wrong in one by chance, in all of them hardly ever; one without findings is
/// the last.
const RUNS_MAX: u32 = 5;
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
    /// How it is mended, if it can be.
    mend: Option<mend::Mend>,
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
    /// Blocks, in objects or frames; also those that nothing names.
    pub blocks: u64,
    /// Their bytes as they are stored.
    pub block_bytes: u64,
    /// Blocks that are lost or have the wrong size.
    pub lost: u64,
    /// Bytes of the files that were in them.
    pub lost_bytes: u64,
    /// Files that have something in them, with their paths.
    pub broken: BTreeMap<Ino, String>,
    /// Damage beyond the most that is listed.
    pub unlisted: u64,
    /// Another process used the volume during the check.
    pub shared: bool,
}

/// Checks a volume.
pub async fn fsck(stores: &Stores) -> Result<(Vec<Finding>, FsckSummary), VolumeError> {
    let (mut findings, mut summary) = Check::run(stores).await?;
    summary.shared = stores.store.shared();
    let mut runs = 1;
    while summary.shared && !findings.is_empty() && runs < RUNS_MAX {
        let (again, later) = Check::run(stores).await?;
        let found: HashSet<_> = again.into_iter().map(|finding| (finding.key, finding.what)).collect();
        summary = FsckSummary { shared: true, ..later };
        findings.retain(|finding| found.contains(&(finding.key.clone(), finding.what.clone())));
        runs += 1;
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
    /// ACL rules that are there and can be read.
    acls: HashSet<u32>,
    /// Deleted files whose data is still there.
    deleted: HashSet<Ino>,
    findings: Vec<Finding>,
    summary: FsckSummary,
    /// There are entries of a directory whose record cannot be read: what seems to have no name may have one there.
    has_hidden: bool,
    /// Space and inodes as the counters said before the inodes were looked at.
    usage_before: Option<(i64, i64)>,
    /// Highest slice of which there is a record or a block.
    highest_slice: u64,
}

impl<'a> Check<'a> {
    fn new(stores: &'a Stores) -> Check<'a> {
        Check {
            stores,
            store: &stores.store,
            nodes: HashMap::new(),
            sustained: HashSet::new(),
            acls: HashSet::new(),
            deleted: HashSet::new(),
            findings: Vec::new(),
            summary: FsckSummary::default(),
            has_hidden: false,
            usage_before: None,
            highest_slice: 0,
        }
    }

    async fn run(stores: &'a Stores) -> Result<(Vec<Finding>, FsckSummary), VolumeError> {
        let mut check = Check::new(stores);
        check.tree().await?;
        check.slices().await?;
        check.counters().await?;
        check.numbers().await?;
        Ok((check.findings, check.summary))
    }

    /// The counters of the whole volume, from what the other passes have seen.
    async fn counters(&mut self) -> Result<(), VolumeError> {
        let counted = self.nodes.iter().filter(|(ino, _)| **ino != Ino::ROOT && **ino != Ino::TRASH);
        let (mut space, mut inodes) = (0, 0);
        for (_, node) in counted {
            space = i64::saturating_add(space, node.space());
            inodes += 1;
        }
        let stored = usage(self.store.as_ref()).await?;
        // What changes meanwhile cannot be counted.
        if self.store.shared() && self.usage_before != Some((stored.space, stored.inodes)) {
            return Ok(());
        }
        for (name, stored, found) in [("usedSpace", stored.space, space), ("totalInodes", stored.inodes, inodes)] {
            if stored != found {
                self.report("counter", format!("counter {name}"), format!("says {stored}, counted {found}"), MENDABLE);
                self.mend(Mend::Usage { space, inodes });
            }
        }
        Ok(())
    }

    fn report(&mut self, code: &'static str, subject: String, what: String, advice: &'static str) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { key: (code, subject.clone()), subject, what, advice, mend: None });
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
            if at == Ino::TRASH {
                parts.push(".trash".into());
                break;
            }
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

const MENDABLE: &str = "unmount the volume everywhere, and run it again with --repair";
const RECOUNT: &str = "only statistics are wrong, no data; files can be copied to a new volume, which counts anew";
const COPY_OUT: &str = "copy what is readable to a new volume, or restore this one from a backup";
const LOST: &str = "restore the file from a backup; if the directory of the objects was moved or cut, put it back first";

/// A scan, page after page.
struct Pages {
    range: ScanRange,
    coming: Option<Coming>,
    /// The next page is read while one is looked at.
    ahead: bool,
}

/// Where a page comes from.
enum Coming {
    /// It was read.
    Read(ScanPage),
    /// From here on.
    At(Cursor),
    /// It is on its way while the one before is looked at.
    Begun(Begun<'static, Result<ScanPage, StoreError>>),
}

impl Pages {
    fn new(range: ScanRange) -> Pages {
        Pages { range, coming: Some(Coming::At(Cursor::new())), ahead: false }
    }

    /// Read ahead, for who is told of damage only if it is found again.
    fn ahead(range: ScanRange) -> Pages {
        Pages { ahead: true, ..Pages::new(range) }
    }

    /// The same with the first page at hand.
    fn after(range: ScanRange, first: ScanPage) -> Pages {
        Pages { coming: Some(Coming::Read(first)), ..Pages::ahead(range) }
    }

    async fn next(&mut self, store: &Arc<dyn Store>) -> Result<Option<Vec<ScanItem>>, VolumeError> {
        let page = match self.coming.take() {
            None => return Ok(None),
            Some(Coming::Read(page)) => page,
            Some(Coming::At(cursor)) => store.scan(&self.range, cursor, PAGE).await?,
            Some(Coming::Begun(page)) => page.end().await?,
        };
        if let Some(cursor) = page.next {
            if !self.ahead {
                self.coming = Some(Coming::At(cursor));
                return Ok(Some(page.items));
            }
            let (store, range) = (store.clone(), self.range.clone());
            let read = async move { store.scan(&range, cursor, PAGE).await };
            self.coming = Some(Coming::Begun(Begun::begin(Box::pin(read)).await));
        }
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

#[cfg(test)]
mod fixtures_test;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::codec::{Record, encode_attr, encode_entry, encode_slice};
    use crate::meta::store::{Commit, Write};
    use crate::types::{Attr, SliceRecord};
    use crate::volume::{MetaUrl, NewVolume, create};
    use bytes::Bytes;

    /// A volume with /f (inode 2, 5 bytes in the frame of slice 1), /l (a link of it) and the directory /d (inode 3).
    async fn volume(dir: &std::path::Path) -> Stores {
        let url = MetaUrl::Embedded(dir.join("vol"));
        create(&url, &NewVolume { name: "vol".into(), ..NewVolume::default() }).await.expect("a new volume");
        let stores = Stores::open(&url).await.expect("opens");
        let root = attr_of(&stores, Ino::ROOT).await;
        let file = Attr { kind: Kind::File, nlink: 2, length: 5, parent: Ino(0), ..root.clone() };
        let record = encode_slice(&SliceRecord { pos: 0, id: 1, size: 5, off: 0, len: 5 });
        let entry = |name: &'static str, kind, ino| Write::HSet(key::dir(Ino::ROOT), name.into(), encode_entry(kind, Ino(ino)));
        write(
            &stores,
            vec![
                Write::Set(key::inode(Ino(2)), encode_attr(&file)),
                Write::Set(key::inode(Ino(3)), encode_attr(&Attr { nlink: 2, parent: Ino::ROOT, ..root.clone() })),
                Write::Set(key::inode(Ino::ROOT), encode_attr(&Attr { nlink: 3, ..root })),
                entry("f", Kind::File, 2),
                entry("l", Kind::File, 2),
                entry("d", Kind::Dir, 3),
                Write::HSet(key::parents(Ino(2)), "1".into(), "2".into()),
                Write::RPush(key::chunk(Ino(2), 0), vec![record]),
                Write::PutFrame(1, Bytes::from_static(b"hello")),
                Write::IncrBy(key::USED_SPACE, 8192),
                Write::IncrBy(key::TOTAL_INODES, 2),
                Write::IncrBy(key::NEXT_INODE, 100),
                Write::IncrBy(key::NEXT_CHUNK, 100),
            ],
        )
        .await;
        stores
    }

    async fn attr_of(stores: &Stores, ino: Ino) -> Attr {
        match stores.store.read(&[Query::Get(key::inode(ino))]).await.expect("reads").remove(0) {
            Value::Bytes(Some(bytes)) => Record::decode(bytes).expect("a record").attr,
            other => panic!("{other:?}"),
        }
    }

    async fn write(stores: &Stores, writes: Vec<Write>) {
        assert!(matches!(stores.store.commit(&[], &writes, &[]).await.expect("commits"), Commit::Done { .. }));
    }

    #[tokio::test]
    async fn a_sound_volume_has_no_findings() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (findings, summary) = fsck(&volume(dir.path()).await).await.expect("checks");
        assert_eq!(findings, []);
        assert_eq!((summary.inodes, summary.entries, summary.slices, summary.blocks, summary.block_bytes), (3, 3, 1, 1, 5));
    }

    #[tokio::test]
    async fn every_kind_of_damage_is_found_and_named() {
        let root = || key::dir(Ino::ROOT);
        let dir = attr_of(&volume(tempfile::tempdir().expect("a temporary directory").path()).await, Ino(3)).await;
        let table: Vec<(Vec<Write>, &str, &str)> = vec![
            (vec![Write::DelFrame(1)], "(inode 2)", "can't find block vol/chunks/0/0/1_0_5"),
            (vec![Write::PutFrame(1, Bytes::from_static(b"hell"))], "(inode 2)", "has 4 bytes instead of 5"),
            (vec![Write::HSet(root(), "x".into(), encode_entry(Kind::File, Ino(9)))], "/ (inode 1)", "inode 9, which has no record"),
            (vec![Write::HSet(root(), "x".into(), "?".into())], "/ (inode 1)", "entry \"x\" is damaged"),
            (vec![Write::HDel(root(), "l".into())], "/f (inode 2)", "2 links and 1 names"),
            (vec![Write::HDel(root(), "d".into())], "inode 3", "nothing names it"),
            (vec![Write::HSet(root(), "f".into(), encode_entry(Kind::Fifo, Ino(2)))], "(inode 2)", "says Fifo, the record File"),
            (vec![Write::HSet(key::parents(Ino(2)), "1".into(), "1".into())], "(inode 2)", "counts 1 links, there are 2"),
            (vec![Write::AddU32 { key: key::inode(Ino(3)), offset: 47, delta: 1 }], "/d (inode 3)", "3 links and 0 directories"),
            (vec![Write::RPush(key::chunk(Ino(2), 1), vec!["short".into()])], "(inode 2)", "slice record of chunk 1 is damaged"),
            (vec![Write::RPush(key::chunk(Ino(7), 0), vec!["x".into()])], "inode 7", "belongs to an inode that is no file"),
            (vec![Write::HSet(key::SLICE_REF, key::slice_ref(1, 5), "1".into())], "slice 1", "counts 2 references, there are 1"),
            (vec![Write::HSet(key::SLICE_REF, key::slice_ref(1, 5), "-1".into())], "slice 1", "counts 0 references, there are 1"),
            (vec![Write::IncrBy(key::USED_SPACE, 1)], "counter usedSpace", "says 8193, counted 8192"),
            (vec![Write::HSet(key::DIR_USED_INODES, "1".into(), "7".into())], "/ (inode 1)", "dirUsedInodes says 7, counted 3"),
            (vec![Write::Set(key::inode(Ino(3)), "short".into())], "inode 3", "its record is damaged"),
            (
                vec![Write::Set(key::inode(Ino(3)), encode_attr(&Attr { access_acl: 7, ..dir.clone() }))],
                "inode 3",
                "has ACL 7, which is not there",
            ),
            (vec![Write::HSet(key::ACL, "1".into(), "short".into())], "ACL 1", "is damaged"),
            (vec![Write::HSet(key::DEL_SLICES, "1_1".into(), "short".into())], "delSlices 1_1", "is damaged"),
            (vec![Write::Set(key::symlink(Ino(8)), "x".into())], "inode 8", "belongs to an inode without record"),
        ];
        for (writes, subject, what) in table {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let stores = volume(dir.path()).await;
            write(&stores, writes).await;
            let (findings, _) = fsck(&stores).await.expect("checks");
            let found = findings.iter().any(|finding| finding.subject.contains(subject) && finding.what.contains(what));
            assert!(found, "{subject}: {what}\n{findings:#?}");
        }
    }

    #[tokio::test]
    async fn what_waits_for_deletion_is_no_damage() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let stores = volume(dir.path()).await;
        let file = Attr { nlink: 0, ..attr_of(&stores, Ino(2)).await };
        write(
            &stores,
            vec![
                // Inode 4 is open in session 1; inode 5 is deleted, its data is not; slice 6 only waits for its objects to go.
                Write::Set(key::inode(Ino(4)), encode_attr(&Attr { length: 0, ..file })),
                Write::SAdd(key::sustained(1), "4".into()),
                Write::IncrBy(key::USED_SPACE, 4096),
                Write::IncrBy(key::TOTAL_INODES, 1),
                Write::ZAdd(key::DELFILES, 1, key::delfile(Ino(5), 5)),
                Write::RPush(key::chunk(Ino(5), 0), vec![encode_slice(&SliceRecord { pos: 0, id: 1, size: 5, off: 0, len: 5 })]),
                Write::HSet(key::SLICE_REF, key::slice_ref(1, 5), "1".into()),
                Write::HSet(key::SLICE_REF, key::slice_ref(6, 9), "-1".into()),
            ],
        )
        .await;
        assert_eq!(fsck(&stores).await.expect("checks").0, []);
    }
}
