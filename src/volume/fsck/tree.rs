//! Records, entries, links and the statistics of directories.

use super::mend::Mend;
use super::{COPY_OUT, Check, MENDABLE, Node, PAGE, Pages, decimal_of, dir_field, inode_of};
use crate::env::join;
use crate::meta::acl::Rule;
use crate::meta::codec::{Record, decode_entry};
use crate::meta::key;
use crate::meta::store::{Cursor, Key, Query, ScanPage, ScanRange, Sharing, Value};
use crate::telemetry::progress;
use crate::types::{Attr, BoxFuture, FILE_BYTES_MAX, Ino, Kind};
use crate::volume::VolumeError;
use crate::volume::stores::usage;
use bytes::Bytes;

const SET_ACL: &str = "set the ACL of the file anew, or remove it with setfacl -b";

/// Sums over the direct children of a directory (metadata §10.2).
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct DirSums {
    length: i64,
    space: i64,
    inodes: i64,
}

impl DirSums {
    fn numbers(&self) -> [i64; 3] {
        [self.length, self.space, self.inodes]
    }
}

/// A directory as it was at one moment.
struct Standing {
    stored: Stored,
    sums: DirSums,
    nlink: u32,
    subdirs: u32,
}

/// Length, space and number as stored; `None` for what is not there, `Some(None)` for what is no number.
type Stored = [Option<Option<i64>>; 3];

/// Where they are stored.
const SUMS: [Key; 3] = [key::DIR_DATA_LENGTH, key::DIR_USED_SPACE, key::DIR_USED_INODES];
/// How the keys of inodes begin, beside their records and chunks.
const OTHERS: [Prefix; 4] = ["d", "s", "x", "p"];
/// What is before the number in a key of an inode.
type Prefix = &'static str;
/// Directories whose first entries are read together; each may have a page of them.
const DIRS_AT_ONCE: usize = 32;
/// Looks at a directory in use until nothing in it changed meanwhile.
const LOOKS_MAX: u32 = 5;

impl Check<'_> {
    pub(super) async fn tree(&mut self) -> Result<(), VolumeError> {
        self.expected_orphans().await?;
        self.acl_rules().await?;
        let others = self.keys().await?;
        let dirs: Vec<Ino> = self.nodes.iter().filter(|(_, node)| node.kind == Kind::Dir).map(|(ino, _)| *ino).collect();
        progress::stage("directories", dirs.len() as u64);
        for dirs in dirs.chunks(DIRS_AT_ONCE) {
            self.directories(dirs).await?;
        }
        self.strays(&others);
        self.links().await?;
        Ok(())
    }

    /// Inodes that rightly have no entry, beside those that are unlinked but open: clones that are not complete, or deleted with their data
    /// still waiting.
    async fn expected_orphans(&mut self) -> Result<(), VolumeError> {
        let mut pages = Pages::new(ScanRange::Sorted(key::DETACHED));
        while let Some(items) = pages.next(self.store).await? {
            self.sustained.extend(items.iter().filter_map(|item| inode_of(&item.name, "")));
        }
        let mut pages = Pages::new(ScanRange::Sorted(key::DELFILES));
        while let Some(items) = pages.next(self.store).await? {
            for item in items {
                match std::str::from_utf8(&item.name).ok().and_then(|text| text.split_once(':')) {
                    Some((ino, _)) => self.deleted.extend(ino.parse().map(Ino)),
                    None => self.report("delfile", "delfiles".into(), format!("has a member of an old form: {:?}", item.name), COPY_OUT),
                }
            }
        }
        Ok(())
    }

    async fn acl_rules(&mut self) -> Result<(), VolumeError> {
        let mut pages = Pages::new(ScanRange::Hash(key::ACL));
        while let Some(items) = pages.next(self.store).await? {
            for item in items {
                let id = std::str::from_utf8(&item.name).ok().and_then(|text| text.parse().ok());
                match (id, Rule::decode(&item.value)) {
                    (Some(id), Some(_)) => drop(self.acls.insert(id)),
                    _ => {
                        let name = String::from_utf8_lossy(&item.name).into_owned();
                        self.report("acl", format!("ACL {name}"), "is damaged".into(), SET_ACL);
                    }
                }
            }
        }
        Ok(())
    }

    /// All keys of inodes: reads the records and what sessions keep open, and answers with the others.
    async fn keys(&mut self) -> Result<Vec<(Prefix, Ino)>, VolumeError> {
        self.usage_before = usage(self.store.as_ref()).await.ok().map(|usage| (usage.space, usage.inodes));
        progress::stage("inodes", self.usage_before.map_or(0, |(_, inodes)| inodes.max(0).unsigned_abs()));
        // A server goes through all its keys, whichever are asked for; a store of this host only through those.
        let ranges: &[&str] = if self.store.sharing() == Sharing::Server { &[""] } else { &["i", "d", "s", "x", "p"] };
        let mut others = Vec::new();
        for range in ranges {
            let mut pages = Pages::ahead(ScanRange::Keys(Bytes::from_static(range.as_bytes())));
            while let Some(items) = pages.next(self.store).await? {
                let (mut inodes, mut sessions) = (Vec::new(), Vec::new());
                for item in &items {
                    if let Some(ino) = inode_of(&item.name, "i") {
                        inodes.push(ino);
                    } else if inode_of(&item.name, "session").is_some() {
                        sessions.push(Query::SMembers(item.name.clone()));
                    } else {
                        others.extend(OTHERS.into_iter().find_map(|prefix| Some((prefix, inode_of(&item.name, prefix)?))));
                    }
                }
                for kept in self.store.read(&sessions).await? {
                    if let Value::List(members) = kept {
                        self.sustained.extend(members.iter().filter_map(|member| inode_of(member, "")));
                    }
                }
                self.records(&inodes).await?;
            }
        }
        if self.nodes.get(&Ino::ROOT).is_none_or(|root| root.kind != Kind::Dir) {
            self.report("root", "/".into(), "the root directory has no record, or is none".into(), COPY_OUT);
        }
        Ok(others)
    }

    async fn records(&mut self, inodes: &[Ino]) -> Result<(), VolumeError> {
        progress::add(inodes.len() as u64, 0);
        let queries: Vec<Query> = inodes.iter().map(|ino| Query::Get(key::inode(*ino))).collect();
        let values = self.store.read(&queries).await?;
        let mut symlinks = Vec::new();
        for (ino, value) in inodes.iter().zip(values) {
            // Deleted since the page was read.
            let Value::Bytes(Some(bytes)) = value else { continue };
            self.summary.inodes += 1;
            match Record::decode(bytes) {
                Some(Record { attr, .. }) => {
                    self.record(*ino, &attr);
                    symlinks.extend((attr.kind == Kind::Symlink).then_some((*ino, attr.length)));
                }
                None => self.report("record", format!("inode {ino}"), "its record is damaged".into(), COPY_OUT),
            }
        }
        let queries: Vec<Query> = symlinks.iter().map(|(ino, _)| Query::Get(key::symlink(*ino))).collect();
        for ((ino, length), target) in symlinks.into_iter().zip(self.store.read(&queries).await?) {
            match target {
                Value::Bytes(Some(target)) if target.len() as u64 == length => {}
                Value::Bytes(Some(_)) => {
                    self.report("target", format!("inode {ino}"), "its target has another length than its record says".into(), COPY_OUT);
                }
                _ => self.report("target", format!("inode {ino}"), "a symbolic link without target".into(), COPY_OUT),
            }
        }
        Ok(())
    }

    fn record(&mut self, ino: Ino, attr: &Attr) {
        let node = Node { kind: attr.kind, nlink: attr.nlink, parent: attr.parent, length: attr.length, entries: 0, subdirs: 0 };
        self.nodes.insert(ino, node);
        for id in [attr.access_acl, attr.default_acl] {
            if id != 0 && !self.acls.contains(&id) {
                self.report("acl", format!("inode {ino}"), format!("has ACL {id}, which is not there"), SET_ACL);
            }
        }
    }

    /// The entries and the statistics of some directories; the first entries of all are asked for together.
    async fn directories(&mut self, dirs: &[Ino]) -> Result<(), VolumeError> {
        let store = self.store.as_ref();
        let scans = dirs.iter().map(|dir| -> BoxFuture<'_, Result<ScanPage, VolumeError>> {
            Box::pin(async move { Ok(store.scan(&ScanRange::Hash(key::dir(*dir)), Cursor::new(), PAGE).await?) })
        });
        let first = join(scans.collect(), DIRS_AT_ONCE).await?;
        let stored = match self.stores.setting.dir_stats() {
            true => {
                let fields = dirs.iter().flat_map(|dir| SUMS.map(|hash| dir_field(hash, *dir)));
                let values = self.store.read(&fields.collect::<Vec<_>>()).await?;
                values.as_chunks::<3>().0.iter().map(|values| values.each_ref().map(|value| decimal_of(Some(value)))).collect()
            }
            false => Vec::new(),
        };
        for (at, (dir, first)) in dirs.iter().zip(first).enumerate() {
            progress::add(1, 0);
            let sums = self.entries(*dir, first).await?;
            if let Some(stored) = stored.get(at) {
                self.dir_stats(*dir, *stored, &sums).await?;
            }
        }
        Ok(())
    }

    /// Looks at all entries of a directory, of which the first were read.
    async fn entries(&mut self, dir: Ino, first: ScanPage) -> Result<DirSums, VolumeError> {
        let mut sums = DirSums::default();
        let mut pages = Pages::after(ScanRange::Hash(key::dir(dir)), first);
        while let Some(items) = pages.next(self.store).await? {
            for item in items {
                self.summary.entries += 1;
                let name = String::from_utf8_lossy(&item.name).into_owned();
                let Some((kind, ino)) = decode_entry(&item.value) else {
                    self.report_at("entry", dir, format!("its entry {name:?} is damaged"), COPY_OUT).await?;
                    continue;
                };
                let Some(child) = self.nodes.get_mut(&ino) else {
                    let what = format!("its entry {name:?} names inode {ino}, which has no record");
                    self.report_at("dangling", dir, what, MENDABLE).await?;
                    self.mend(Mend::Dangling { dir, name: item.name.clone() });
                    continue;
                };
                child.entries += 1;
                sums.inodes += 1;
                sums.space = sums.space.saturating_add(child.space());
                if child.kind == Kind::File {
                    sums.length = sums.length.saturating_add(child.length.min(FILE_BYTES_MAX) as i64);
                }
                let (is, parent) = (child.kind, child.parent);
                if is != kind {
                    self.report_at("kind", ino, format!("the entry {name:?} says {kind:?}, the record {is:?}"), MENDABLE).await?;
                    self.mend(Mend::Kind { dir, name: item.name.clone() });
                }
                if is == Kind::Dir
                    && let Some(node) = self.nodes.get_mut(&dir)
                {
                    node.subdirs += 1;
                }
                // Inodes with several links keep their parents apart; `links` looks at them.
                if parent != dir && parent != Ino(0) {
                    let what = format!("it is in directory {dir}, its record says {parent}");
                    self.report_at("parent", ino, what, MENDABLE).await?;
                    self.mend(if is == Kind::Dir { Mend::Parent { dir: ino, parent: dir } } else { Mend::Links(ino) });
                }
            }
        }
        Ok(sums)
    }

    /// Statistics as they are stored against those counted.
    async fn dir_stats(&mut self, dir: Ino, stored: Stored, sums: &DirSums) -> Result<(), VolumeError> {
        if stored.iter().zip(sums.numbers()).all(|(stored, counted)| stored.is_none_or(|stored| stored == Some(counted))) {
            return Ok(());
        }
        let (stored, sums) = match self.store.shared() {
            // What is known of the files in it is older than the statistics.
            true => match self.standing(dir).await? {
                Some(Standing { stored, sums, .. }) => (stored, sums),
                None => return Ok(()),
            },
            false => (stored, *sums),
        };
        for ((name, stored), counted) in ["dirDataLength", "dirUsedSpace", "dirUsedInodes"].into_iter().zip(stored).zip(sums.numbers()) {
            // Absent is right: such statistics are counted when they are needed.
            if let Some(stored) = stored
                && stored != Some(counted)
            {
                let stored = stored.map_or("no number".into(), |n| n.to_string());
                self.report_at("dirstat", dir, format!("its {name} says {stored}, counted {counted}"), MENDABLE).await?;
                self.mend(Mend::Sums(dir, sums.numbers()));
            }
        }
        Ok(())
    }

    /// Length, space and number as stored.
    async fn stored_sums(&self, dir: Ino) -> Result<Stored, VolumeError> {
        let values = self.store.read(&SUMS.map(|hash| dir_field(hash, dir))).await?;
        Ok([0, 1, 2].map(|at| decimal_of(values.get(at))))
    }

    /// A directory in use, looked at while nothing in it changed; `None` if it changes all the time, or is gone.
    async fn standing(&self, dir: Ino) -> Result<Option<Standing>, VolumeError> {
        let record = async || -> Result<Option<Bytes>, VolumeError> {
            match self.store.read(&[Query::Get(key::inode(dir))]).await?.into_iter().next() {
                Some(Value::Bytes(bytes)) => Ok(bytes),
                _ => Ok(None),
            }
        };
        for _ in 0..LOOKS_MAX {
            let (before, stored) = (record().await?, self.stored_sums(dir).await?);
            let Some(nlink) = before.clone().and_then(Record::decode).map(|record| record.attr.nlink) else { return Ok(None) };
            let (mut sums, mut subdirs) = (DirSums::default(), 0);
            let mut pages = Pages::new(ScanRange::Dir(key::dir(dir)));
            while let Some(items) = pages.next(self.store).await? {
                for item in items {
                    let (Some((kind, _)), Some(child)) = (decode_entry(&item.value), Record::decode(item.record)) else { continue };
                    subdirs += u32::from(kind == Kind::Dir);
                    sums.inodes += 1;
                    sums.space = sums.space.saturating_add(child.attr.space());
                    sums.length = sums.length.saturating_add(child.attr.data_length());
                }
            }
            // Names change the record of the directory, lengths the statistics.
            if (record().await?, self.stored_sums(dir).await?) == (before, stored) {
                return Ok(Some(Standing { stored, sums, nlink, subdirs }));
            }
        }
        Ok(None)
    }

    /// Link counts against the entries that were seen.
    async fn links(&mut self) -> Result<(), VolumeError> {
        let inodes: Vec<Ino> = self.nodes.keys().copied().collect();
        for ino in inodes {
            let Some(node) = self.nodes.get(&ino) else { continue };
            let (kind, nlink, parent, entries, subdirs) = (node.kind, node.nlink, node.parent, node.entries, node.subdirs);
            // Directories of the trash do not count what is in them.
            let mut wrong = kind == Kind::Dir && nlink != 2 + subdirs && !ino.is_trash();
            let (mut nlink, mut subdirs) = (nlink, subdirs);
            if wrong && self.store.shared() {
                let standing = self.standing(ino).await?;
                wrong = standing.as_ref().is_some_and(|standing| standing.nlink != 2 + standing.subdirs);
                (nlink, subdirs) = standing.map_or((nlink, subdirs), |standing| (standing.nlink, standing.subdirs));
            }
            if wrong {
                let what = format!("it has {nlink} links and {subdirs} directories; {} links would be right", 2 + subdirs);
                self.report_at("nlink", ino, what, MENDABLE).await?;
                self.mend(Mend::Subdirs { dir: ino, nlink: 2 + subdirs });
            }
            if ino == Ino::ROOT || ino == Ino::TRASH {
                continue;
            }
            match (kind, entries) {
                (_, 0) if self.sustained.contains(&ino) => {}
                (_, 0) => {
                    let what = "nothing names it, and no session keeps it open".into();
                    self.report("orphan", format!("inode {ino}"), what, MENDABLE);
                    if !self.has_hidden {
                        self.mend(Mend::Orphan(ino));
                    }
                }
                (Kind::Dir, 1) => {}
                (Kind::Dir, entries) => {
                    self.report_at("links", ino, format!("a directory with {entries} names"), COPY_OUT).await?;
                }
                (_, entries) if nlink != entries => {
                    self.report_at("nlink", ino, format!("it has {nlink} links and {entries} names"), MENDABLE).await?;
                    self.mend(Mend::Links(ino));
                }
                _ if parent == Ino(0) => {
                    let known: i64 = self.link_parents(ino).await?.values().sum();
                    if known != i64::from(entries) {
                        let what = format!("its list of parents counts {known} links, there are {entries}");
                        self.report_at("parents", ino, what, MENDABLE).await?;
                        self.mend(Mend::Links(ino));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Keys of inodes that have no record.
    fn strays(&mut self, keys: &[(Prefix, Ino)]) {
        for &(prefix, ino) in keys {
            if !self.nodes.contains_key(&ino) && !self.deleted.contains(&ino) {
                self.has_hidden |= prefix == "d";
                let what = format!("key {prefix}{ino} belongs to an inode without record");
                self.report("stray", format!("inode {ino}"), what, COPY_OUT);
            }
        }
    }
}
