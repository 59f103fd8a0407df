//! `fsck --repair` without a path: what can be mended of a whole volume that nobody uses. Nothing is thrown away that somebody could want back:
//! what has no name gets one in `/lost+found`, a lost record is made anew from what is left of the file, counts are counted. A name of
//! which nothing is left goes.
//!
//! What was looked at is guarded, and that nobody has begun to use the volume since: what was counted would be wrong, and a counter could be set
//! back. Everything is looked at again afterwards: statistics are mended when names and records are right.

use super::{Check, Finding, FsckSummary, Pages};
use crate::env::{Clock, SystemClock};
use crate::meta::codec::{Record, decode_decimal, decode_entry, decode_slice, encode_attr, encode_entry};
use crate::meta::ops::NewNode;
use crate::meta::ops::chunk::parse_chunk;
use crate::meta::store::{Commit, Guard, Key, Query, ScanRange, Sharing, Value, Write};
use crate::meta::{AtimeMode, Meta, MetaConfig, key};
use crate::types::{Attr, CHUNK_BYTES, Caller, Errno, Ino, Kind, Name, SliceId, Time};
use crate::volume::VolumeError;
use crate::volume::stores::Stores;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use tracing::{info, warn};

/// Times everything is looked at: names, then links, then statistics, and once more for each that reveals others.
const ROUNDS_MAX: u32 = 8;
/// Where things without a name go.
const LOST_AND_FOUND: &[u8] = b"lost+found";
/// Mode of a file whose record was lost: only root may look until somebody knows whose it was.
const LOST_MODE: u16 = 0o600;

/// How something is mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mend {
    /// An entry says another type than the record.
    Kind { dir: Ino, name: Bytes },
    /// An entry names an inode without a record.
    Dangling { dir: Ino, name: Bytes },
    /// Nothing names the inode.
    Orphan(Ino),
    /// A counter is below a number that was given out.
    Counter(Key, i64),
    /// A directory lies in another than its record says.
    Parent { dir: Ino, parent: Ino },
    /// Links of a directory.
    Subdirs { dir: Ino, nlink: u32 },
    /// Links and parents of anything else.
    Links(Ino),
    /// References of a slice.
    References(SliceId, u32, u32),
    /// Statistics of a directory: length, space, number.
    Sums(Ino, [i64; 3]),
    /// Usage of the volume.
    Usage { space: i64, inodes: i64 },
}

impl Mend {
    /// What has to be right before: names, what has none, links, statistics.
    fn class(&self) -> u8 {
        match self {
            Mend::Kind { .. } | Mend::Dangling { .. } | Mend::Counter(..) => 0,
            Mend::Orphan(_) => 1,
            Mend::Parent { .. } | Mend::Subdirs { .. } | Mend::Links(_) => 2,
            Mend::References(..) | Mend::Sums(..) | Mend::Usage { .. } => 3,
        }
    }
}

/// Checks a volume and mends what can be mended. Answers what is left.
pub async fn repair(stores: &Stores) -> Result<(Vec<Finding>, FsckSummary), VolumeError> {
    let (meta, begun) = unused(stores).await?;
    let mut tried: HashSet<(&'static str, String, String)> = HashSet::new();
    for _ in 0..ROUNDS_MAX {
        let (findings, summary) = Check::run(stores).await?;
        // What did not help is not tried again.
        let untried = |finding: &&Finding| finding.mend.is_some() && !tried.contains(&finding.trial());
        let Some(class) = findings.iter().filter(untried).filter_map(|finding| Some(finding.mend.as_ref()?.class())).min() else {
            return Ok((findings, summary));
        };
        let due: Vec<_> =
            findings.iter().filter(untried).filter(|finding| finding.mend.as_ref().is_some_and(|mend| mend.class() == class)).collect();
        let mending = Mending { stores, meta: &meta, begun: begun.clone(), names: names(stores, &due).await? };
        for finding in &due {
            let Some(mend) = &finding.mend else { continue };
            match mending.apply(mend).await? {
                Some(done) => info!("repaired {}: {}{done}", finding.subject, finding.what),
                None => warn!("{} was changed meanwhile; it is looked at again", finding.subject),
            }
        }
        tried.extend(due.iter().map(|finding| finding.trial()));
    }
    let (findings, summary) = Check::run(stores).await?;
    Ok((findings, summary))
}

impl Finding {
    fn trial(&self) -> (&'static str, String, String) {
        (self.key.0, self.key.1.clone(), self.what.clone())
    }
}

fn in_use(who: &str) -> VolumeError {
    VolumeError::Refused(format!("the volume is in use{who}; unmount it everywhere, or repair a directory with --path"))
}

/// The metadata of a volume that nobody uses, and the number of the last session: whoever begins one changes it.
async fn unused(stores: &Stores) -> Result<(Meta, Option<Bytes>), VolumeError> {
    if stores.store.sharing() == Sharing::Neighbours {
        return Err(in_use(""));
    }
    crate::volume::gate::check_writable(&stores.setting).map_err(VolumeError::Refused)?;
    let (duties, _) = tokio::sync::mpsc::channel(1);
    let (store, clock, setting) = (stores.store.clone(), Arc::new(SystemClock::new()), stores.setting.clone());
    let meta = Meta::new(MetaConfig { store, clock, setting, duties, atime: AtimeMode::Never });
    let why = |e| VolumeError::Failed(format!("cannot look at the sessions: {e}"));
    meta.clean_stale_sessions().await.map_err(why)?;
    // Before it is looked who there is.
    let begun = get(stores, &key::NEXT_SESSION).await?;
    match meta.sessions().await.map_err(why)?.first() {
        Some(session) => Err(in_use(&format!(" by session {}", session.sid))),
        None => Ok((meta, begun)),
    }
}

async fn get(stores: &Stores, key: &Key) -> Result<Option<Bytes>, VolumeError> {
    read(stores, Query::Get(key.clone())).await
}

async fn read(stores: &Stores, query: Query) -> Result<Option<Bytes>, VolumeError> {
    match stores.store.read(&[query]).await?.into_iter().next() {
        Some(Value::Bytes(value)) => Ok(value),
        _ => Err(VolumeError::Failed("the metadata store gave no answer".into())),
    }
}

/// In which directories the things are whose links are to be mended, and how often.
type Names = HashMap<Ino, BTreeMap<Ino, i64>>;

async fn names(stores: &Stores, due: &[&Finding]) -> Result<Names, VolumeError> {
    let wanted = due.iter().filter_map(|finding| match finding.mend {
        Some(Mend::Links(ino)) => Some((ino, BTreeMap::new())),
        _ => None,
    });
    let mut names: Names = wanted.collect();
    let mut dirs = Pages::new(ScanRange::Keys(Bytes::from_static(b"d")));
    while !names.is_empty()
        && let Some(page) = dirs.next(&stores.store).await?
    {
        for dir in page.iter().filter_map(|item| super::inode_of(&item.name, "d")) {
            let mut entries = Pages::new(ScanRange::Hash(key::dir(dir)));
            while let Some(page) = entries.next(&stores.store).await? {
                for (_, ino) in page.iter().filter_map(|item| decode_entry(&item.value)) {
                    if let Some(parents) = names.get_mut(&ino) {
                        *parents.entry(dir).or_default() += 1;
                    }
                }
            }
        }
    }
    Ok(names)
}

struct Mending<'a> {
    stores: &'a Stores,
    meta: &'a Meta,
    /// `nextsession` when nobody used the volume.
    begun: Option<Bytes>,
    names: Names,
}

fn now() -> Time {
    Time { nsec: 0, ..SystemClock::new().now() }
}

impl Mending<'_> {
    /// What was done beside what was wrong, for people; `None` if it was changed meanwhile.
    async fn apply(&self, mend: &Mend) -> Result<Option<&'static str>, VolumeError> {
        match mend {
            Mend::Kind { dir, name } => self.kind(*dir, name).await,
            Mend::Dangling { dir, name } => self.dangling(*dir, name).await,
            Mend::Orphan(ino) => self.orphan(*ino).await,
            Mend::Counter(counter, least) => {
                let stored = self.get(counter).await?;
                // Only ever raised.
                if decode_decimal(stored.as_deref()).is_some_and(|stored| stored >= *least) {
                    return Ok(None);
                }
                self.commit(&[Guard::Value(counter.clone(), stored)], &[Write::Set(counter.clone(), key::decimal(least))], "").await
            }
            Mend::Parent { dir, parent } => self.rewrite(*dir, |attr| attr.parent = *parent, Vec::new()).await,
            Mend::Subdirs { dir, nlink } => self.rewrite(*dir, |attr| attr.nlink = *nlink, Vec::new()).await,
            Mend::Links(ino) => self.links(*ino).await,
            Mend::References(id, size, records) => {
                let field = key::slice_ref(*id, *size);
                let stored = self.field(&key::SLICE_REF, &field).await?;
                // One reference is not counted.
                let write = match records {
                    0 | 1 => Write::HDel(key::SLICE_REF, field.clone()),
                    more => Write::HSet(key::SLICE_REF, field.clone(), key::decimal(more - 1)),
                };
                self.commit(&[Guard::Field(key::SLICE_REF, field, stored)], &[write], "").await
            }
            Mend::Sums(dir, sums) => {
                let hashes = [key::DIR_DATA_LENGTH, key::DIR_USED_SPACE, key::DIR_USED_INODES];
                let writes: Vec<_> =
                    hashes.into_iter().zip(sums).map(|(hash, sum)| Write::HSet(hash, key::decimal(dir), key::decimal(sum))).collect();
                self.commit(&[], &writes, "").await
            }
            Mend::Usage { space, inodes } => {
                let writes = [Write::Set(key::USED_SPACE, key::decimal(space)), Write::Set(key::TOTAL_INODES, key::decimal(inodes))];
                self.commit(&[], &writes, "").await
            }
        }
    }

    async fn kind(&self, dir: Ino, name: &Bytes) -> Result<Option<&'static str>, VolumeError> {
        let Some((entry, _, ino)) = self.entry(dir, name).await? else { return Ok(None) };
        let Some(record) = self.get(&key::inode(ino)).await?.and_then(Record::decode) else { return Ok(None) };
        let guards = [Guard::Field(key::dir(dir), name.clone(), Some(entry)), Guard::Value(key::inode(ino), Some(record.bytes.clone()))];
        self.commit(&guards, &[Write::HSet(key::dir(dir), name.clone(), encode_entry(record.attr.kind, ino))], "").await
    }

    /// A record from what is left of the inode, or the name goes.
    async fn dangling(&self, dir: Ino, name: &Bytes) -> Result<Option<&'static str>, VolumeError> {
        let Some((entry, kind, ino)) = self.entry(dir, name).await? else { return Ok(None) };
        let guards = [Guard::Field(key::dir(dir), name.clone(), Some(entry)), Guard::Value(key::inode(ino), None)];
        let new = |kind, length, nlink| Attr {
            kind,
            length,
            nlink,
            mode: if kind == Kind::Dir { 0o700 } else { LOST_MODE },
            ..Attr::new_dir(0, dir, now())
        };
        let attr = match kind {
            // Links are counted when its names are right.
            Kind::Dir => Some(new(kind, 4096, 2)),
            Kind::Symlink => self.get(&key::symlink(ino)).await?.map(|target| new(kind, target.len() as u64, 1)),
            Kind::File => self.length(ino).await?.map(|length| new(kind, length, 1)),
            _ => None,
        };
        match attr {
            Some(attr) => self.commit(&guards, &[Write::Set(key::inode(ino), encode_attr(&attr))], "; it has a new record").await,
            None => {
                self.commit(&guards, &[Write::HDel(key::dir(dir), name.clone())], "; nothing of it was left, the name is removed").await
            }
        }
    }

    /// Where the data of a file without record ends; `None` if it has none.
    async fn length(&self, ino: Ino) -> Result<Option<u64>, VolumeError> {
        let mut length = None;
        let mut pages = Pages::new(ScanRange::Keys(format!("c{ino}_").into()));
        while let Some(items) = pages.next(&self.stores.store).await? {
            for (_, index) in items.iter().filter_map(|item| parse_chunk(&item.name)) {
                let values = self.stores.store.read(&[Query::List(key::chunk(ino, index))]).await?;
                let Some(Value::List(elements)) = values.first() else { continue };
                let end = elements
                    .iter()
                    .filter_map(|element| decode_slice(element))
                    .map(|record| u64::from(record.pos) + u64::from(record.len))
                    .max();
                length = length.max(end.map(|end| u64::from(index) * CHUNK_BYTES + end));
            }
        }
        Ok(length)
    }

    /// A name in `/lost+found`; what was deleted while it was open is deleted.
    async fn orphan(&self, ino: Ino) -> Result<Option<&'static str>, VolumeError> {
        let Some(record) = self.get(&key::inode(ino)).await?.and_then(Record::decode) else { return Ok(None) };
        let guard = Guard::Value(key::inode(ino), Some(record.bytes.clone()));
        if record.attr.nlink == 0 {
            let mut writes = vec![
                Write::Del(key::inode(ino)),
                Write::Del(key::xattr(ino)),
                Write::Del(key::symlink(ino)),
                Write::Del(key::parents(ino)),
            ];
            if record.attr.kind == Kind::File {
                writes.push(Write::ZAdd(key::DELFILES, now().sec, key::delfile(ino, record.attr.length)));
            }
            return self.commit(&[guard], &writes, "; it was deleted before, and is now").await;
        }
        let dir = self.lost_and_found().await?;
        let (name, nlink) = (key::decimal(ino), if record.attr.is_dir() { record.attr.nlink } else { 1 });
        let attr = Attr { parent: dir, nlink, ..record.attr.clone() };
        let writes = [
            Write::HSet(key::dir(dir), name.clone(), encode_entry(attr.kind, ino)),
            Write::Set(key::inode(ino), record.rewrite(&attr)),
            Write::Del(key::parents(ino)),
        ];
        self.commit(&[guard, Guard::Field(key::dir(dir), name, None)], &writes, "; it is in /lost+found").await
    }

    async fn lost_and_found(&self) -> Result<Ino, VolumeError> {
        let (root, name) = (Caller::root(), Name::new(LOST_AND_FOUND).expect("a valid name"));
        let failed = |e: Errno| VolumeError::Failed(format!("cannot make /lost+found: {e}"));
        let found = match self.meta.lookup(&root, Ino::ROOT, &name).await {
            Err(Errno::NOENT) => {
                let node = NewNode { kind: Kind::Dir, mode: 0o700, umask: 0, rdev: 0, target: b"" };
                self.meta.create(&root, Ino::ROOT, &name, node).await
            }
            found => found,
        };
        match found.map_err(failed)? {
            (ino, attr) if attr.is_dir() => Ok(ino),
            _ => Err(failed(Errno::NOTDIR)),
        }
    }

    /// Link count, parent and parents of anything but a directory, from the names that were found.
    async fn links(&self, ino: Ino) -> Result<Option<&'static str>, VolumeError> {
        let Some(parents) = self.names.get(&ino).filter(|parents| !parents.is_empty()) else { return Ok(None) };
        let count: i64 = parents.values().sum();
        let Some(record) = self.get(&key::inode(ino)).await?.and_then(Record::decode) else { return Ok(None) };
        let only = parents.keys().next().copied().filter(|_| count == 1 && record.attr.parent != Ino(0));
        let mut writes = vec![Write::Del(key::parents(ino))];
        if only.is_none() {
            writes.extend(parents.iter().map(|(dir, count)| Write::HSet(key::parents(ino), key::decimal(dir), key::decimal(count))));
        }
        let change = |attr: &mut Attr| {
            attr.parent = only.unwrap_or(Ino(0));
            attr.nlink = u32::try_from(count).unwrap_or(u32::MAX);
        };
        self.rewrite(ino, change, writes).await
    }

    async fn rewrite(&self, ino: Ino, change: impl FnOnce(&mut Attr), mut writes: Vec<Write>) -> Result<Option<&'static str>, VolumeError> {
        let Some(record) = self.get(&key::inode(ino)).await?.and_then(Record::decode) else { return Ok(None) };
        let mut attr = record.attr.clone();
        change(&mut attr);
        writes.push(Write::Set(key::inode(ino), record.rewrite(&attr)));
        self.commit(&[Guard::Value(key::inode(ino), Some(record.bytes))], &writes, "").await
    }

    async fn entry(&self, dir: Ino, name: &Bytes) -> Result<Option<(Bytes, Kind, Ino)>, VolumeError> {
        let entry = self.field(&key::dir(dir), name).await?;
        Ok(entry.and_then(|entry| decode_entry(&entry).map(|(kind, ino)| (entry, kind, ino))))
    }

    async fn get(&self, key: &Key) -> Result<Option<Bytes>, VolumeError> {
        get(self.stores, key).await
    }

    async fn field(&self, hash: &Key, field: &Bytes) -> Result<Option<Bytes>, VolumeError> {
        read(self.stores, Query::HGet(hash.clone(), field.clone())).await
    }

    async fn commit(&self, guards: &[Guard], writes: &[Write], done: &'static str) -> Result<Option<&'static str>, VolumeError> {
        let alone = Guard::Value(key::NEXT_SESSION, self.begun.clone());
        let guards: Vec<_> = std::iter::once(alone.clone()).chain(guards.iter().cloned()).collect();
        match self.stores.store.commit(&guards, writes, &[]).await? {
            Commit::Done { .. } => Ok(Some(done)),
            Commit::Conflict(found)
                if found.iter().any(|(query, value)| *query == alone.query() && *value != Value::Bytes(self.begun.clone())) =>
            {
                Err(in_use(" by a session that began meanwhile"))
            }
            Commit::Conflict(_) => Ok(None),
        }
    }
}

impl Check<'_> {
    /// How the last finding is mended.
    pub(super) fn mend(&mut self, mend: Mend) {
        // Beyond the most that is listed, the last is another one.
        if self.summary.unlisted == 0
            && let Some(last) = self.findings.last_mut()
        {
            last.mend = Some(mend);
        }
    }

    /// Numbers that were given out and would be again. The counters are read after what bears the numbers: they are raised before it is made.
    pub(super) async fn numbers(&mut self) -> Result<(), VolumeError> {
        let inodes = self.nodes.keys().filter(|ino| !ino.is_trash() && **ino != Ino::ROOT).map(|ino| ino.0).max().unwrap_or(0);
        for (counter, name, least, what) in
            [(key::NEXT_INODE, "nextinode", inodes, "inode"), (key::NEXT_CHUNK, "nextchunk", self.highest_slice, "slice")]
        {
            let values = self.store.read(&[Query::Get(counter.clone())]).await?;
            let stored = match values.first() {
                Some(Value::Bytes(text)) => decode_decimal(text.as_deref()),
                _ => None,
            };
            let least = i64::try_from(least).unwrap_or(i64::MAX);
            if stored.is_none_or(|stored| stored < least) {
                let stored = stored.map_or("no number".into(), |stored| stored.to_string());
                let what = format!("says {stored}, but {what} {least} is there: new ones would replace what exists");
                self.report(
                    "number",
                    format!("counter {name}"),
                    what,
                    "do not mount the volume; unmount it everywhere and run it again with --repair",
                );
                self.mend(Mend::Counter(counter, least));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{MetaUrl, NewVolume, create};

    #[tokio::test]
    async fn nothing_is_mended_past_a_session_that_began_meanwhile_and_no_counter_is_lowered() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let url = MetaUrl::Embedded(dir.path().join("vol"));
        create(&url, &NewVolume { name: "vol".into(), ..NewVolume::default() }).await.expect("made");
        let stores = Stores::open(&url).await.expect("opened");
        let (meta, begun) = unused(&stores).await.expect("nobody is there");
        let mending = Mending { stores: &stores, meta: &meta, begun, names: Names::new() };
        let (counter, ten) = (key::NEXT_CHUNK, Some(key::decimal(10)));
        assert_eq!(mending.apply(&Mend::Counter(counter.clone(), 10)).await.expect("raises"), Some(""));
        for lower in [5, 10] {
            assert_eq!(mending.apply(&Mend::Counter(counter.clone(), lower)).await.expect("leaves it"), None);
        }
        assert_eq!(mending.get(&counter).await.expect("reads"), ten);
        // Somebody mounts the volume.
        stores.store.commit(&[], &[Write::IncrBy(key::NEXT_SESSION, 1)], &[]).await.expect("begins");
        for mend in [Mend::Counter(counter.clone(), 20), Mend::Usage { space: 7, inodes: 7 }, Mend::Sums(Ino::ROOT, [7; 3])] {
            let refused = mending.apply(&mend).await;
            assert!(matches!(&refused, Err(VolumeError::Refused(why)) if why.contains("in use")), "{mend:?}: {refused:?}");
        }
        assert_eq!(mending.get(&counter).await.expect("reads"), ten);
        assert_ne!(mending.get(&key::USED_SPACE).await.expect("reads"), Some(key::decimal(7)));
    }
}
