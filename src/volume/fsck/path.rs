//! `fsck --path`: one file or directory, or all below it: attributes, link counts and statistics of directories, which can be mended, and the
//! blocks of files.

use super::slices::BlockState;
use super::{Check, Finding, FsckSummary, LOST, Pages, decimal_of, dir_field};
use crate::env::{Clock, SystemClock};
use crate::meta::codec::{Record, decode_entry, decode_slice, encode_attr};
use crate::meta::key;
use crate::meta::ops::chunk::parse_chunk;
use crate::meta::store::{Commit, Guard, Query, ScanRange, Value, Write};
use crate::telemetry::progress;
use crate::types::{Attr, BlockId, CHUNK_BYTES, Ino, Kind, Time, block_count};
use crate::volume::VolumeError;
use crate::volume::stores::{Stores, usage};
use bytes::Bytes;
use std::collections::{BTreeSet, HashSet};
use tracing::{info, warn};

/// Times a directory is looked at that others change meanwhile.
const ROUNDS_MAX: u32 = 10;
/// Chunks of a file looked at together.
const CHUNKS_MAX: usize = 1000;
/// Chunks asked for one by one.
const CHUNKS_ASKED_MAX: u32 = 10_000;
/// Records read at once.
const READ_MAX: usize = 1000;
const REPAIR: &str = "run it again with --repair";
const SYNC: &str = "run it again with --repair --sync-dir-stat";

/// What is to be looked at and mended.
#[derive(Clone, Debug)]
pub struct PathCheck {
    /// From the root of the volume; begins with a slash.
    pub path: String,
    /// Everything below it, too.
    pub recursive: bool,
    /// Mend attributes and link counts of directories.
    pub repair: bool,
    /// Look at statistics of directories, and mend them with `repair`; of the root those of the volume, too.
    pub sync_dir_stat: bool,
    /// Mode of directories whose record is lost.
    pub dir_mode: u16,
}

/// Checks what a path names. Findings are what was not mended.
pub async fn check_path(stores: &Stores, wanted: &PathCheck) -> Result<(Vec<Finding>, FsckSummary), VolumeError> {
    let mut walk = Walk { check: Check::new(stores), wanted, slices: HashSet::new() };
    progress::stage("entries", 0);
    let (parent, ino, kind) = walk.find().await?;
    let path = format!("/{}", wanted.path.trim_matches('/'));
    if kind != Kind::Dir {
        walk.check.summary.inodes += 1;
        walk.blocks(ino, &path).await?;
    } else {
        let mut dirs = vec![(parent, ino, path)];
        while let Some((parent, dir, path)) = dirs.pop() {
            for (name, ino, kind) in walk.dir(parent, dir, &path).await? {
                let path = format!("{}/{name}", path.trim_end_matches('/'));
                match kind {
                    Kind::Dir if wanted.recursive => dirs.push((dir, ino, path)),
                    Kind::File => walk.blocks(ino, &path).await?,
                    _ => {}
                }
            }
        }
        if ino == Ino::ROOT && wanted.sync_dir_stat {
            walk.volume().await?;
        }
    }
    let Check { findings, summary, .. } = walk.check;
    Ok((findings, summary))
}

/// What the entries of a directory say.
struct Listing {
    entries: Vec<(String, Ino, Kind)>,
    subdirs: u32,
    /// Length, space and number of the children.
    sums: [i64; 3],
}

struct Walk<'a> {
    check: Check<'a>,
    wanted: &'a PathCheck,
    /// Slices that were looked at.
    slices: HashSet<(u64, u32)>,
}

impl Walk<'_> {
    /// Parent, inode and kind of what the path names. Only entries are used: a directory whose record is lost is found, too.
    async fn find(&self) -> Result<(Ino, Ino, Kind), VolumeError> {
        let mut at = (Ino::ROOT, Ino::ROOT, Kind::Dir);
        for part in self.wanted.path.split('/').filter(|part| !part.is_empty()) {
            let missing = || VolumeError::Refused(format!("{}: there is no {part:?}", self.wanted.path));
            if at.2 != Kind::Dir {
                return Err(missing());
            }
            let entry = self.check.store.read(&[Query::HGet(key::dir(at.1), Bytes::copy_from_slice(part.as_bytes()))]).await?;
            let Some(Value::Bytes(Some(entry))) = entry.first() else { return Err(missing()) };
            let (kind, ino) = decode_entry(entry).ok_or_else(|| VolumeError::Failed(format!("the entry {part:?} is damaged")))?;
            at = (at.1, ino, kind);
        }
        Ok(at)
    }

    /// Looks at a directory, mends it if that is wanted, and answers its entries.
    async fn dir(&mut self, parent: Ino, dir: Ino, path: &str) -> Result<Vec<(String, Ino, Kind)>, VolumeError> {
        self.check.summary.inodes += 1;
        let fields = [key::DIR_DATA_LENGTH, key::DIR_USED_SPACE, key::DIR_USED_INODES];
        let queries: Vec<Query> =
            [Query::Get(key::inode(dir))].into_iter().chain(fields.iter().map(|hash| dir_field(hash.clone(), dir))).collect();
        for _ in 0..ROUNDS_MAX {
            // Before the entries are: what changes them changes this, too.
            let values = self.check.store.read(&queries).await?;
            let listing = self.entries(dir, path).await?;
            let Some(Value::Bytes(stored)) = values.first() else {
                return Err(VolumeError::Failed("the metadata store gave no answer about a directory".into()));
            };
            let mut found: Vec<(&'static str, String, &'static str)> = Vec::new();
            let mut writes = Vec::new();
            let nlink = 2 + listing.subdirs;
            match stored.clone().and_then(Record::decode) {
                None => {
                    found.push(("record", "attribute of it is missing or damaged".into(), REPAIR));
                    writes.push(Write::Set(key::inode(dir), encode_attr(&self.new_attr(parent, nlink))));
                }
                Some(record) if record.attr.nlink != nlink && !dir.is_trash() => {
                    let links = record.attr.nlink;
                    found.push(("nlink", format!("it has {links} links, {nlink} would be right"), REPAIR));
                    writes.push(Write::Set(key::inode(dir), record.rewrite(&Attr { nlink, ..record.attr.clone() })));
                }
                Some(_) => {}
            }
            if self.check.stores.setting.dir_stats() && dir != Ino::TRASH {
                let stored = || (0..3).map(|at| decimal_of(values.get(at + 1)).flatten());
                let is_there = stored().all(|sum| sum.is_some_and(|sum| sum >= 0));
                let is_right = stored().eq(listing.sums.iter().copied().map(Some));
                // Other clients change them some time after the entries: what is merely not exact is looked at when that is asked for.
                if !is_there || (self.wanted.sync_dir_stat && !is_right) {
                    let what = format!("usage stat of {path} is missing or broken (inode {dir})");
                    found.push(("dirstat", what, SYNC));
                    if self.wanted.sync_dir_stat {
                        let sets = fields.iter().zip(listing.sums);
                        writes.extend(sets.map(|(hash, sum)| Write::HSet(hash.clone(), key::decimal(dir), key::decimal(sum))));
                    }
                }
            }
            if self.wanted.repair && !writes.is_empty() {
                let mut guards = vec![Guard::Value(key::inode(dir), stored.clone())];
                for (hash, value) in fields.iter().zip(&values[1..]) {
                    let Value::Bytes(old) = value else { continue };
                    guards.push(Guard::Field(hash.clone(), key::decimal(dir), old.clone()));
                }
                match self.check.store.commit(&guards, &writes, &[]).await? {
                    Commit::Conflict(_) => continue,
                    Commit::Done { .. } => {
                        found.iter().for_each(|(_, what, _)| info!("repaired {path}: {what}"));
                        let is_mended = |code: &str| code != "dirstat" || self.wanted.sync_dir_stat;
                        found.retain(|(code, ..)| !is_mended(code));
                    }
                }
            }
            for (code, what, advice) in found {
                self.check.report(code, path.into(), what, advice);
            }
            return Ok(listing.entries);
        }
        warn!("{path} is changed all the time");
        self.check.report("busy", path.into(), "it was changed whenever it was looked at".into(), "try again when it is quiet");
        Ok(self.entries(dir, path).await?.entries)
    }

    async fn entries(&mut self, dir: Ino, path: &str) -> Result<Listing, VolumeError> {
        let mut listing = Listing { entries: Vec::new(), subdirs: 0, sums: [0; 3] };
        let mut pages = Pages::new(ScanRange::Hash(key::dir(dir)));
        let mut seen = HashSet::new();
        while let Some(items) = pages.next(self.check.store).await? {
            let mut named = Vec::new();
            // A listing may show an entry twice.
            for item in items.into_iter().filter(|item| seen.insert(item.name.clone())) {
                let name = String::from_utf8_lossy(&item.name).into_owned();
                match decode_entry(&item.value) {
                    Some((kind, ino)) => named.push((name, ino, kind)),
                    None => self.check.report("entry", path.into(), format!("its entry {name:?} is damaged"), super::COPY_OUT),
                }
            }
            for part in named.chunks(READ_MAX) {
                let queries: Vec<Query> = part.iter().map(|(_, ino, _)| Query::Get(key::inode(*ino))).collect();
                for ((name, ino, kind), value) in part.iter().zip(self.check.store.read(&queries).await?) {
                    let attr = match value {
                        Value::Bytes(Some(bytes)) => Record::decode(bytes).map(|record| record.attr),
                        _ => None,
                    };
                    listing.subdirs += u32::from(*kind == Kind::Dir);
                    // That of a directory is mended where it is looked at.
                    if attr.is_none() && *kind != Kind::Dir {
                        let what = format!("its entry {name:?} names inode {ino}, which has no record");
                        self.check.report("dangling", path.into(), what, super::COPY_OUT);
                        continue;
                    }
                    listing.sums[1] = listing.sums[1].saturating_add(attr.as_ref().map_or(4096, Attr::space));
                    listing.sums[2] += 1;
                    listing.sums[0] = listing.sums[0].saturating_add(attr.map_or(0, |attr| attr.data_length()));
                }
            }
            listing.entries.extend(named);
        }
        self.check.summary.entries += listing.entries.len() as u64;
        progress::add(listing.entries.len() as u64, 0);
        Ok(listing)
    }

    /// A record for a directory that has lost its own.
    fn new_attr(&self, parent: Ino, nlink: u32) -> Attr {
        let now = Time { nsec: 0, ..SystemClock::new().now() };
        Attr {
            flags: Default::default(),
            kind: Kind::Dir,
            mode: self.wanted.dir_mode,
            uid: 0,
            gid: 0,
            atime: now,
            mtime: now,
            ctime: now,
            nlink,
            length: 4096,
            rdev: 0,
            parent,
            access_acl: 0,
            default_acl: 0,
            tier: 0,
        }
    }

    /// Looks at the blocks of a file.
    async fn blocks(&mut self, ino: Ino, path: &str) -> Result<(), VolumeError> {
        let Some(Value::Bytes(Some(bytes))) = self.check.store.read(&[Query::Get(key::inode(ino))]).await?.into_iter().next() else {
            return Ok(());
        };
        let Some(record) = Record::decode(bytes) else { return Ok(()) };
        let indexes = self.chunks(ino, record.attr.length).await?;
        for part in indexes.chunks(CHUNKS_MAX) {
            let queries: Vec<Query> = part.iter().map(|index| Query::List(key::chunk(ino, *index))).collect();
            for value in self.check.store.read(&queries).await? {
                let Value::List(elements) = value else { continue };
                for element in elements {
                    match decode_slice(&element) {
                        Some(record) if record.id > 0 => self.slice(ino, path, record.id, record.size).await?,
                        Some(_) => {}
                        None => self.check.report("slice", path.into(), "a slice record is damaged".into(), super::COPY_OUT),
                    }
                }
            }
        }
        Ok(())
    }

    /// The chunks of a file of this length that may have a list. Of a long one, which is mostly holes, those that exist are looked for.
    async fn chunks(&self, ino: Ino, length: u64) -> Result<Vec<u32>, VolumeError> {
        let count = u32::try_from(length.div_ceil(CHUNK_BYTES)).unwrap_or(u32::MAX);
        if count <= CHUNKS_ASKED_MAX {
            return Ok((0..count).collect());
        }
        let mut found = BTreeSet::new();
        let mut pages = Pages::new(ScanRange::Keys(format!("c{ino}_").into()));
        while let Some(items) = pages.next(self.check.store).await? {
            found.extend(items.iter().filter_map(|item| parse_chunk(&item.name)).map(|(_, index)| index).filter(|index| *index < count));
        }
        Ok(found.into_iter().collect())
    }

    async fn slice(&mut self, ino: Ino, path: &str, id: u64, size: u32) -> Result<(), VolumeError> {
        if !self.slices.insert((id, size)) {
            return Ok(());
        }
        self.check.summary.slices += 1;
        let block_bytes = self.check.stores.setting.block_bytes();
        for block in (0..block_count(size, block_bytes)).filter_map(|index| BlockId::of(id, size, index, block_bytes)) {
            match self.check.look(&block, size).await? {
                BlockState::Whole(bytes) => {
                    self.check.summary.blocks += 1;
                    self.check.summary.block_bytes += bytes;
                }
                BlockState::Broken(what) => {
                    self.check.summary.lost += 1;
                    self.check.summary.lost_bytes += u64::from(block.len);
                    self.check.summary.broken.insert(ino, path.into());
                    self.check.report("block", path.into(), what, LOST);
                }
            }
        }
        Ok(())
    }

    /// The usage of the volume, from all inodes.
    async fn volume(&mut self) -> Result<(), VolumeError> {
        for _ in 0..ROUNDS_MAX {
            let store = self.check.store;
            let before = usage(store.as_ref()).await?;
            self.check.nodes.clear();
            let (mut space, mut inodes) = (0, 0);
            let mut seen = HashSet::new();
            let mut pages = Pages::new(ScanRange::Keys(Bytes::from_static(b"i")));
            while let Some(items) = pages.next(store).await? {
                let found: Vec<Ino> =
                    items.iter().filter_map(|item| super::inode_of(&item.name, "i")).filter(|ino| seen.insert(*ino)).collect();
                let queries: Vec<Query> = found.iter().map(|ino| Query::Get(key::inode(*ino))).collect();
                for (ino, value) in found.into_iter().zip(store.read(&queries).await?) {
                    if let Value::Bytes(Some(bytes)) = value
                        && let Some(record) = Record::decode(bytes)
                        && ino != Ino::ROOT
                        && ino != Ino::TRASH
                    {
                        space = i64::saturating_add(space, record.attr.space());
                        inodes += 1;
                    }
                }
            }
            if (before.space, before.inodes) == (space, inodes) {
                return Ok(());
            }
            let what = format!("its usage is {} bytes and {} inodes, counted {space} and {inodes}", before.space, before.inodes);
            if !self.wanted.repair {
                self.check.report("counter", "the volume".into(), what, SYNC);
                return Ok(());
            }
            let counters = [(key::USED_SPACE, before.space, space), (key::TOTAL_INODES, before.inodes, inodes)];
            let values = store.read(&counters.clone().map(|(name, ..)| Query::Get(name))).await?;
            let mut guards = Vec::new();
            for ((name, before, _), value) in counters.iter().zip(values) {
                let Value::Bytes(text) = value else { continue };
                // Changed since it was counted.
                if crate::meta::codec::decode_decimal(text.as_deref()) != Some(*before) {
                    guards.clear();
                    break;
                }
                guards.push(Guard::Value(name.clone(), text));
            }
            let writes: Vec<Write> = counters.into_iter().map(|(name, _, counted)| Write::Set(name, key::decimal(counted))).collect();
            if guards.len() == writes.len() && matches!(store.commit(&guards, &writes, &[]).await?, Commit::Done { .. }) {
                info!("repaired the volume: {what}");
                return Ok(());
            }
        }
        let what = "its usage changed whenever it was counted".into();
        self.check.report("busy", "the volume".into(), what, "try again when it is quiet");
        Ok(())
    }
}

#[cfg(test)]
mod tests;
