//! Copying a tree without its data (metadata §6.17): the new files share the slices of the old ones.
//!
//! A directory is made without a name and listed in `detachedNodes`, filled, and gets its name in the last commit: others see all of it or
//! nothing. What a crash leaves has no name, and is removed after a day, as other clients do it. A new record that names a slice and the
//! reference it counts are one commit, which guards the list it was copied from: a compaction comes before it, and the copy takes its
//! result, or after it, and its references are counted.
//!
//! The tree may change meanwhile: each file is copied as it is at one moment, not all of them as at the same one.

use crate::env::join_in_turns;
use crate::meta::client::Cx;
use crate::meta::codec::{Record, decode_entry, decode_slice, encode_attr, encode_entry};
use crate::meta::driver::errno_of;
use crate::meta::ops::acl::{self, ENTER, READ, WRITE};
use crate::meta::ops::create::NewNode;
use crate::meta::ops::parent;
use crate::meta::ops::quota::{self, Usage};
use crate::meta::ops::remove::{Removal, in_runs};
use crate::meta::ops::stats::Tally;
use crate::meta::store::{Cursor, Guard, Query, ScanRange, Value, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Meta, key};
use crate::types::{Asker, Attr, BoxFuture, CHUNK_BYTES, Caller, Errno, Flags, Ino, Kind, LEVELS_MAX, Name, SliceId};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Semaphore;

/// Things copied in one commit, and chunk lists: some milliseconds of a server, in which others wait.
const BATCH: usize = 128;
const LISTS_MAX: u64 = 512;
/// Batches of one directory under way: while a server carries one out, the next is laid out.
const BATCHES_AT_ONCE: usize = 2;
/// Records of one list that are written in one step; stores take a few thousand.
const PUSHED_MAX: usize = 2000;
/// A file with more chunks (4 GiB) is copied in several commits, before it gets its name.
const WHOLE_CHUNKS_MAX: u64 = 64;
/// How often a large file is copied again because it was changed meanwhile.
const COPIES_MAX: u32 = 5;
/// Entries listed at once.
const PAGE: u32 = 1024;
/// Directories in each other; deeper means damage.
const DEPTH_MAX: usize = 4096;
/// Without a name for so long, in seconds: whoever made it is not there any more (metadata §18).
pub const DETACHED_SECONDS: i64 = 86_400;

/// Who copies, and how.
pub struct Cloning<'a> {
    /// On whose behalf, with its permissions.
    pub asker: &'a Asker,
    /// Owners, modes and times stay, as far as the asker may give them.
    pub preserve: bool,
    /// Bits taken from modes otherwise.
    pub umask: u16,
    /// The directory that gets the copy: its quotas count what is made.
    pub into: Ino,
    places: Semaphore,
    /// Why it ends: what is under way beside the failure ends by itself, and closes what it has opened.
    failed: OnceLock<Errno>,
    /// Something had extended attributes: they are read, no longer presumed to be missing.
    has_xattrs: AtomicBool,
    progress: &'a (dyn Fn(u64, u64) + Sync),
    go_on: &'a (dyn Fn() -> bool + Sync),
}

/// Something to be copied, and the number of its copy.
#[derive(Clone, Debug)]
struct Pair {
    name: Name,
    from: Ino,
    to: Ino,
    /// The record of what is copied, where a listing has told it: the commit guards it.
    known: Option<Bytes>,
}

/// What a batch came to.
#[derive(Debug, Default)]
struct Batch {
    count: u64,
    bytes: u64,
    dirs: Vec<Pair>,
    large: Vec<Pair>,
}

impl<'a> Cloning<'a> {
    /// `at_once` directories are worked on at a time. `progress` is told how many things and bytes of files are new since it was last told;
    /// EINTR when `go_on` says no.
    pub fn new(
        asker: &'a Asker,
        preserve: bool,
        umask: u16,
        into: Ino,
        at_once: usize,
        progress: &'a (dyn Fn(u64, u64) + Sync),
        go_on: &'a (dyn Fn() -> bool + Sync),
    ) -> Cloning<'a> {
        Cloning {
            asker,
            preserve,
            umask,
            into,
            places: Semaphore::new(at_once.saturating_sub(1)),
            failed: OnceLock::new(),
            has_xattrs: AtomicBool::new(false),
            progress,
            go_on,
        }
    }

    fn check(&self) -> Result<(), Errno> {
        match self.failed.get() {
            Some(errno) => Err(*errno),
            None if (self.go_on)() => Ok(()),
            None => Err(Errno::INTR),
        }
    }

    /// Does these, so many at once. After a failure the others are not dropped in the middle.
    async fn all<T>(&self, parts: Vec<BoxFuture<'_, Result<T, Errno>>>, at_once: usize) -> Result<Vec<T>, Errno> {
        let noted = parts.into_iter().map(|part| {
            let noted = async {
                let outcome = part.await;
                if let Err(errno) = &outcome {
                    self.failed.get_or_init(|| *errno);
                }
                Ok::<_, Errno>(outcome.ok())
            };
            Box::pin(noted) as BoxFuture<'_, _>
        });
        let outcomes = join_in_turns(noted.collect(), at_once).await?;
        self.failed.get().map_or(Ok(()), |errno| Err(*errno))?;
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// The attributes of a copy in `parent`.
    fn attr(&self, cx: &Cx, old: &Attr, parent: Ino) -> Attr {
        let mut new = Attr {
            // A copy that nobody can change would be of little use, and could not be filled.
            flags: Flags(old.flags.0 & !(Flags::IMMUTABLE | Flags::APPEND)),
            nlink: if old.is_dir() { 2 } else { 1 },
            parent,
            ..old.clone()
        };
        let owns = self.asker.is_root() || self.asker.uid == old.uid;
        if !self.preserve || !owns {
            (new.uid, new.gid) = (self.asker.uid, self.asker.caller().gid);
        }
        if !self.preserve {
            (new.atime, new.mtime, new.ctime) = (cx.now, cx.now, cx.now);
            // With an ACL the group's bits are its mask, which the umask leaves alone.
            if old.kind != Kind::Symlink && old.access_acl == 0 {
                new.mode &= !self.umask;
            }
        }
        if !owns && old.kind == Kind::File {
            new.mode &= 0o777;
        }
        new
    }

    /// EACCES if the asker may not read it, EPERM for devices that only root makes.
    fn check_source(&self, view: &View, cx: &Cx, attr: &Attr) -> Result<(), Stop> {
        match attr.kind {
            Kind::Dir => acl::check(view, cx, self.asker, attr, READ | ENTER),
            Kind::File => acl::check(view, cx, self.asker, attr, READ),
            Kind::Block | Kind::Char if !self.asker.is_root() => Err(Errno::PERM.into()),
            _ => Ok(()),
        }
    }

    /// Attributes that are copied. Those the system keeps for root are root's to copy.
    fn xattrs(&self, pairs: &[(Bytes, Bytes)], to: Ino) -> Vec<Write> {
        let may = |name: &Bytes| self.asker.is_root() || name.starts_with(b"user.");
        pairs.iter().filter(|(name, _)| may(name)).map(|(name, value)| Write::HSet(key::xattr(to), name.clone(), value.clone())).collect()
    }
}

fn chunks_of(attr: &Attr) -> u64 {
    if attr.kind == Kind::File { attr.length.div_ceil(CHUNK_BYTES) } else { 0 }
}

/// What the copy of one inode takes beside its record and its name.
#[derive(Default)]
struct Copied {
    guards: Vec<Guard>,
    writes: Vec<Write>,
    references: BTreeMap<(SliceId, u32), i64>,
}

fn copy_content(view: &View, how: &Cloning<'_>, pair: &Pair, record: &Record) -> Result<Copied, Stop> {
    let mut copied = Copied::default();
    let attr = &record.attr;
    let xattrs = view.fields(&key::xattr(pair.from))?.to_vec();
    if !xattrs.is_empty() {
        how.has_xattrs.store(true, Ordering::Relaxed);
    }
    copied.writes = how.xattrs(&xattrs, pair.to);
    // Also where it is the record or a list that has changed: what is looked at again then is all of it.
    copied.guards.push(Guard::Fields(key::xattr(pair.from), xattrs));
    // A target never changes.
    if attr.kind == Kind::Symlink {
        let target = view.string(&key::symlink(pair.from))?.ok_or(Errno::IO)?;
        copied.writes.push(Write::Set(key::symlink(pair.to), target));
    }
    for index in 0..chunks_of(attr) {
        let index = u32::try_from(index).map_err(|_| Errno::FBIG)?;
        let list = key::chunk(pair.from, index);
        let elements = view.list(&list)?.to_vec();
        for element in &elements {
            let record = decode_slice(element).ok_or(Errno::IO)?;
            if record.id != 0 {
                *copied.references.entry((record.id, record.size)).or_default() += 1;
            }
        }
        let pieces = elements.chunks(PUSHED_MAX).map(|piece| Write::RPush(key::chunk(pair.to, index), piece.to_vec()));
        copied.writes.extend(pieces);
        copied.guards.push(Guard::ListIs(list, elements));
    }
    Ok(copied)
}

fn wanted(pair: &Pair, attr: &Attr) -> Vec<Query> {
    let mut queries = vec![Query::HGetAll(key::xattr(pair.from))];
    if attr.kind == Kind::Symlink {
        queries.push(Query::Get(key::symlink(pair.from)));
    }
    let chunks = u32::try_from(chunks_of(attr).min(WHOLE_CHUNKS_MAX)).unwrap_or(u32::MAX);
    queries.extend((0..chunks).map(|index| Query::List(key::chunk(pair.from, index))));
    queries
}

/// Copies things into `dir`: all but large files, which come back, and what is in directories.
/// A directory that is `fresh` most probably has no entry: then that is enough to know of all names.
fn batch_step(view: &View, cx: &Cx, how: &Cloning<'_>, (dir, fresh): (Ino, bool), pairs: &[Pair]) -> Result<Plan<Batch>, Stop> {
    view.want(pairs.iter().map(|pair| Query::Get(key::inode(pair.from))).chain([Query::Get(key::inode(dir))]))?;
    let dir_record = parent::growing(view, dir)?;
    let mut records = Vec::new();
    for pair in pairs {
        // Gone meanwhile: it is not copied.
        let Some(record) = view.record(pair.from)? else { continue };
        how.check_source(view, cx, &record.attr)?;
        records.push((pair, record));
    }
    view.want(records.iter().flat_map(|(pair, record)| wanted(pair, &record.attr)))?;
    let mut guards = vec![parent::identity(dir, &dir_record)];
    let empty = fresh && view.hash_is_empty(&key::dir(dir))?;
    if empty {
        guards.push(Guard::HashEmpty(key::dir(dir)));
    }
    let (mut writes, mut batch, mut subdirs) = (Vec::new(), Batch::default(), 0);
    let mut references: BTreeMap<(SliceId, u32), i64> = BTreeMap::new();
    let mut growth: BTreeMap<(u32, u32), Usage> = BTreeMap::new();
    let mut tally = Tally::new(view, cx);
    for (pair, record) in records {
        if chunks_of(&record.attr) > WHOLE_CHUNKS_MAX {
            batch.large.push(pair.clone());
            continue;
        }
        let attr = how.attr(cx, &record.attr, dir);
        let copied = copy_content(view, how, pair, &record)?;
        // Of a directory only what is copied of it may not change; entries come and go.
        guards.push(match attr.is_dir() {
            true => parent::identity(pair.from, &record),
            false => Guard::Value(key::inode(pair.from), Some(record.bytes.clone())),
        });
        guards.extend(copied.guards);
        guards.push(Guard::Value(key::inode(pair.to), None));
        if !empty {
            guards.push(Guard::Field(key::dir(dir), key::name(&pair.name), None));
        }
        writes.push(Write::Set(key::inode(pair.to), encode_attr(&attr)));
        writes.extend(copied.writes);
        writes.push(Write::HSet(key::dir(dir), key::name(&pair.name), encode_entry(attr.kind, pair.to)));
        copied.references.into_iter().for_each(|(slice, count)| *references.entry(slice).or_default() += count);
        if attr.is_dir() {
            subdirs += 1;
            tally.begin_dir(pair.to, &mut writes);
            batch.dirs.push(pair.clone());
        }
        let usage = growth.entry((attr.uid, attr.gid)).or_default();
        (usage.space, usage.inodes) = (usage.space + attr.space(), usage.inodes + 1);
        tally.inode(&attr, 1)?;
        tally.child(dir, &attr, 1)?;
        batch.count += 1;
        batch.bytes = batch.bytes.saturating_add(attr.data_length() as u64);
    }
    if batch.count == 0 {
        return Ok(Plan::answer(batch));
    }
    for (owner, usage) in growth {
        quota::check(view, cx, owner, &[how.into], usage)?;
    }
    writes.extend(parent::touch(cx, dir, &dir_record, subdirs));
    writes.extend(references.into_iter().map(|((id, size), by)| Write::HIncrBy(key::SLICE_REF, key::slice_ref(id, size), by)));
    in_runs(&mut guards, &mut writes);
    tally.put(&mut guards, &mut writes);
    Ok(Plan::new(guards, writes, batch))
}

/// A copy of a directory, empty and without a name; answers the mark it has in `detachedNodes`.
fn detached_step(view: &View, cx: &Cx, how: &Cloning<'_>, pair: &Pair) -> Result<Plan<i64>, Stop> {
    view.want([Query::Get(key::inode(pair.from)), Query::Get(key::inode(how.into)), Query::HGetAll(key::xattr(pair.from))])?;
    let record = parent::directory(view, pair.from)?;
    how.check_source(view, cx, &record.attr)?;
    let into = parent::growing(view, how.into)?;
    let attr = how.attr(cx, &record.attr, how.into);
    quota::check(view, cx, (attr.uid, attr.gid), &[how.into], Usage { space: attr.space(), inodes: 1 })?;
    let copied = copy_content(view, how, pair, &record)?;
    let mut guards = vec![parent::identity(pair.from, &record), parent::identity(how.into, &into)];
    guards.push(Guard::Value(key::inode(pair.to), None));
    guards.extend(copied.guards);
    let mut writes = vec![Write::Set(key::inode(pair.to), encode_attr(&attr))];
    writes.extend(copied.writes);
    writes.push(Write::ZAdd(key::DETACHED, cx.now.sec, key::decimal(pair.to)));
    let mut tally = Tally::new(view, cx);
    tally.begin_dir(pair.to, &mut writes);
    tally.inode(&attr, 1)?;
    // Quotas above count it from now on, as what is made in it; the directory does when it has the name.
    for dir in quota::above(view, cx, how.into, &mut guards)? {
        tally.quota(dir, Usage { space: attr.space(), inodes: 1 });
    }
    tally.put(&mut guards, &mut writes);
    Ok(Plan::new(guards, writes, cx.now.sec))
}

/// Gives a complete copy its name, while its mark is the one it was made with: who takes it for abandoned changes that first.
fn attach_step(view: &View, cx: &Cx, how: &Cloning<'_>, name: &Name, (ino, mark): (Ino, i64)) -> Result<Plan<()>, Stop> {
    let dir = how.into;
    let member = key::decimal(ino);
    view.want([
        Query::Get(key::inode(dir)),
        Query::Get(key::inode(ino)),
        Query::HGet(key::dir(dir), key::name(name)),
        Query::ZScore(key::DETACHED, member.clone()),
    ])?;
    let dir_record = parent::growing(view, dir)?;
    acl::check(view, cx, how.asker, &dir_record.attr, WRITE | ENTER)?;
    if view.field(&key::dir(dir), key::name(name))?.is_some() {
        return Err(Errno::EXIST.into());
    }
    let record = view.record(ino)?.ok_or(Errno::NOENT)?;
    if view.score(&key::DETACHED, member.clone())? != Some(mark) {
        // Taken for abandoned by somebody: it may be half gone.
        return Err(Errno::NOENT.into());
    }
    let mut guards = vec![
        parent::identity(dir, &dir_record),
        parent::identity(ino, &record),
        Guard::Field(key::dir(dir), key::name(name), None),
        Guard::Score(key::DETACHED, member.clone(), Some(mark)),
    ];
    let mut writes = vec![Write::HSet(key::dir(dir), key::name(name), encode_entry(Kind::Dir, ino))];
    writes.extend(parent::touch(cx, dir, &dir_record, 1));
    writes.push(Write::ZRem(key::DETACHED, member));
    let mut tally = Tally::new(view, cx);
    tally.listed_child(dir, &record.attr, 1);
    tally.put(&mut guards, &mut writes);
    Ok(Plan::new(guards, writes, ()))
}

/// Whether the directory still has no name; then it gets another mark, with which it cannot be given one any more. That is older by a second, so
/// that whoever comes after a crash goes on at once.
fn claim_step(view: &View, ino: Ino) -> Result<Plan<bool>, Stop> {
    let member = key::decimal(ino);
    let Some(score) = view.score(&key::DETACHED, member.clone())? else { return Ok(Plan::answer(false)) };
    let guards = vec![Guard::Score(key::DETACHED, member.clone(), Some(score))];
    Ok(Plan::new(guards, vec![Write::ZAdd(key::DETACHED, score.saturating_sub(1), member)], true))
}

/// Removes a directory without a name that is empty.
fn forget_step(view: &View, cx: &Cx, ino: Ino) -> Result<Plan<()>, Stop> {
    let member = key::decimal(ino);
    view.want([Query::Get(key::inode(ino)), Query::ZScore(key::DETACHED, member.clone())])?;
    let Some(score) = view.score(&key::DETACHED, member.clone())? else { return Ok(Plan::answer(())) };
    let mut guards = vec![Guard::Score(key::DETACHED, member.clone(), Some(score))];
    let mut writes = vec![Write::ZRem(key::DETACHED, member.clone())];
    let mut tally = Tally::new(view, cx);
    if let Some(record) = view.record(ino)? {
        if !view.hash_is_empty(&key::dir(ino))? {
            return Err(Errno::NOTEMPTY.into());
        }
        guards.push(Guard::HashEmpty(key::dir(ino)));
        guards.push(Guard::Value(key::inode(ino), Some(record.bytes.clone())));
        writes.extend([Write::Del(key::inode(ino)), Write::Del(key::xattr(ino))]);
        writes.extend([key::DIR_DATA_LENGTH, key::DIR_USED_SPACE, key::DIR_USED_INODES].map(|hash| Write::HDel(hash, member.clone())));
        tally.inode(&record.attr, -1)?;
        for dir in quota::above(view, cx, record.attr.parent, &mut guards)? {
            tally.quota(dir, Usage { space: -record.attr.space(), inodes: -1 });
        }
    }
    tally.put(&mut guards, &mut writes);
    Ok(Plan::new(guards, writes, ()))
}

/// A large copy has its bytes: now it gets what else the source has, if that has not changed since `before` was read and copying began.
fn dress_step(view: &View, cx: &Cx, how: &Cloning<'_>, pair: &Pair, before: &Bytes) -> Result<Plan<bool>, Stop> {
    view.want([Query::Get(key::inode(pair.from)), Query::Get(key::inode(pair.to)), Query::HGetAll(key::xattr(pair.from))])?;
    let source = view.record(pair.from)?.ok_or(Errno::NOENT)?;
    if source.bytes != *before {
        return Ok(Plan::answer(false));
    }
    let record = view.record(pair.to)?.ok_or(Errno::NOENT)?;
    let xattrs = view.fields(&key::xattr(pair.from))?.to_vec();
    let attr = Attr { nlink: record.attr.nlink, ..how.attr(cx, &source.attr, record.attr.parent) };
    // The directories above were asked when it was made and written.
    if (attr.uid, attr.gid) != (record.attr.uid, record.attr.gid) {
        quota::check(view, cx, (attr.uid, attr.gid), &[], Usage { space: attr.space(), inodes: 1 })?;
    }
    let mut guards = vec![
        Guard::Value(key::inode(pair.from), Some(source.bytes.clone())),
        Guard::Value(key::inode(pair.to), Some(record.bytes.clone())),
    ];
    let mut writes = vec![Write::Set(key::inode(pair.to), encode_attr(&attr))];
    writes.extend(how.xattrs(&xattrs, pair.to));
    guards.push(Guard::Fields(key::xattr(pair.from), xattrs));
    let mut tally = Tally::new(view, cx);
    tally.owner((record.attr.uid, record.attr.gid), -record.attr.space(), -1)?;
    tally.owner((attr.uid, attr.gid), attr.space(), 1)?;
    tally.put(&mut guards, &mut writes);
    Ok(Plan::new(guards, writes, true))
}

/// EINVAL if `dir` is `tree` or below it.
fn outside_step(view: &View, tree: Ino, dir: Ino) -> Result<Plan<()>, Stop> {
    let mut at = dir;
    for _ in 0..DEPTH_MAX {
        if at == tree {
            return Err(Errno::INVAL.into());
        }
        if at == Ino::ROOT {
            return Ok(Plan::answer(()));
        }
        at = view.record(at)?.ok_or(Errno::NOENT)?.attr.parent;
    }
    Err(Errno::LOOP.into())
}

impl Meta {
    /// Copies `from`, a file or a tree, to a free name. EEXIST, EINVAL for a place inside the tree, EDQUOT, ENOSPC, EACCES for what the asker may
    /// not read. After a failure nothing is left of it.
    pub async fn clone_tree(&self, from: Ino, name: &Name, how: &Cloning<'_>) -> Result<(), Errno> {
        let root = Caller::root();
        parent_check(from, how.into, name)?;
        let attr = self.getattr(from).await?;
        let to = self.next_inode().await?;
        let pair = Pair { name: name.clone(), from, to, known: None };
        let into = self.getattr(how.into).await?;
        self.check_access(how.asker, &into, WRITE | ENTER).await?;
        if self.lookup(&root, how.into, name).await.is_ok() {
            return Err(Errno::EXIST);
        }
        if !attr.is_dir() {
            return self.clone_file(how.into, &pair, how).await;
        }
        self.answer("clone", &root, |view, _| outside_step(view, from, how.into)).await?;
        let mark = self.run("clone", &root, |view, cx| detached_step(view, cx, how, &pair)).await?;
        (how.progress)(1, 0);
        let outcome = match self.fill(from, to, how, LEVELS_MAX).await {
            Ok(()) => self.run("clone", &root, |view, cx| attach_step(view, cx, how, name, (to, mark))).await,
            failed => failed,
        };
        if outcome.is_err() {
            // If this fails, too, it is found after a day.
            let _ = self.remove_detached(to, &|| true).await;
        }
        outcome
    }

    async fn clone_file(&self, dir: Ino, pair: &Pair, how: &Cloning<'_>) -> Result<(), Errno> {
        let pairs = std::slice::from_ref(pair);
        let batch = self.run("clone", &Caller::root(), |view, cx| batch_step(view, cx, how, (dir, false), pairs)).await?;
        (how.progress)(batch.count, batch.bytes);
        match batch.large.first() {
            Some(pair) => self.clone_large(dir, pair, how).await,
            None if batch.count == 0 => Err(Errno::NOENT),
            None => Ok(()),
        }
    }

    /// A file of many chunks: made without a name, as by `O_TMPFILE`, so that nothing is left of it if this process dies, and named when it is complete.
    async fn clone_large(&self, dir: Ino, pair: &Pair, how: &Cloning<'_>) -> Result<(), Errno> {
        let root = Caller::root();
        for _ in 0..COPIES_MAX {
            let before = self.source(pair.from).await?;
            let node = NewNode { kind: Kind::File, mode: 0o600, umask: 0, rdev: 0, target: b"" };
            let opened = self.create_unnamed(&root, dir, node).await?;
            let pair = Pair { to: opened.ino, ..pair.clone() };
            let outcome = self.copy_whole(&pair, before.attr.length, how).await;
            let named = match outcome {
                Ok(true) => match self.run("clone", &root, |view, cx| dress_step(view, cx, how, &pair, &before.bytes)).await {
                    Ok(true) => self.link(&root, pair.to, dir, &pair.name).await.map(|_| true),
                    other => other,
                },
                other => other,
            };
            // Without a name it is deleted here.
            self.close(pair.to).await?;
            match named {
                Ok(true) => {
                    (how.progress)(1, before.attr.length);
                    return Ok(());
                }
                Ok(false) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::BUSY)
    }

    /// The record of what is copied, as the store has it: what others have changed may not have been told yet.
    async fn source(&self, ino: Ino) -> Result<Record, Errno> {
        self.answer("clone", &Caller::root(), |view, _| Ok(Plan::answer(view.record(ino)?.ok_or(Errno::NOENT)?))).await
    }

    /// Copies so many bytes; false if there were not so many any more.
    async fn copy_whole(&self, pair: &Pair, length: u64, how: &Cloning<'_>) -> Result<bool, Errno> {
        let mut at = 0;
        while at < length {
            how.check()?;
            let (copied, _) = self.copy_range(&Caller::root(), pair.from, at, pair.to, at, length - at).await?;
            if copied == 0 {
                return Ok(false);
            }
            at += copied;
        }
        Ok(true)
    }

    /// Copies what is in `from` into the new directory `to`.
    fn fill<'a>(&'a self, from: Ino, to: Ino, how: &'a Cloning<'_>, depth: usize) -> BoxFuture<'a, Result<(), Errno>> {
        Box::pin(async move {
            if depth == 0 {
                return Err(Errno::LOOP);
            }
            let (mut cursor, mut fresh) = (Some(Cursor::new()), true);
            // A listing may show an entry twice.
            let mut seen = std::collections::HashSet::new();
            while let Some(at) = cursor {
                how.check()?;
                // Past what is remembered of names: a large tree would push all of it out.
                let page =
                    self.store().scan(&ScanRange::Dir(key::dir(from)), at, PAGE).await.map_err(|e| errno_of("list a directory", &e))?;
                let (mut batches, mut lists) = (vec![Vec::new()], 0);
                for item in page.items {
                    // An entry that cannot be read, or whose record is missing, names nothing.
                    let (Some((_, ino)), Some(record)) = (decode_entry(&item.value), Record::decode(item.record.clone())) else { continue };
                    if !seen.insert(item.name.clone()) {
                        continue;
                    }
                    let chunks = chunks_of(&record.attr).min(WHOLE_CHUNKS_MAX);
                    let batch = batches.last().map_or(0, Vec::len);
                    if batch >= BATCH || (lists + chunks > LISTS_MAX && batch > 0) {
                        batches.push(Vec::new());
                        lists = 0;
                    }
                    lists += chunks;
                    let (name, to) = (Name::new(&item.name)?, self.next_inode().await?);
                    // Of a directory more changes than is guarded of it.
                    let known = (!record.attr.is_dir()).then_some(item.record);
                    if let Some(batch) = batches.last_mut() {
                        batch.push(Pair { name, from: ino, to, known });
                    }
                }
                let mut rest = &batches[..];
                let mut copied = Vec::new();
                if let [first, more @ ..] = rest
                    && fresh
                {
                    copied.push(self.clone_batch((to, true), first, how).await?);
                    (rest, fresh) = (more, false);
                }
                let rest = rest.iter().map(|batch| Box::pin(self.clone_batch((to, false), batch, how)) as BoxFuture<'_, _>).collect();
                copied.extend(how.all(rest, BATCHES_AT_ONCE).await?);
                for pair in copied.iter().flat_map(|batch| &batch.large) {
                    match self.clone_large(to, pair, how).await {
                        // Gone meanwhile.
                        Err(Errno::NOENT) => {}
                        outcome => outcome?,
                    }
                }
                let dirs: Vec<Pair> = copied.into_iter().flat_map(|batch| batch.dirs).collect();
                let wanted = u32::try_from(dirs.len().saturating_sub(1)).unwrap_or(u32::MAX);
                let free = wanted.min(u32::try_from(how.places.available_permits()).unwrap_or(u32::MAX));
                let more = how.places.try_acquire_many(free).ok();
                let at_once = 1 + more.as_ref().map_or(0, |more| more.num_permits());
                how.all(dirs.iter().map(|pair| self.fill(pair.from, pair.to, how, depth - 1)).collect(), at_once).await?;
                cursor = page.next;
            }
            Ok(())
        })
    }

    /// Copies these but for large files, which it answers with the directories among them, which are empty yet.
    async fn clone_batch(&self, (dir, fresh): (Ino, bool), pairs: &[Pair], how: &Cloning<'_>) -> Result<Batch, Errno> {
        if pairs.is_empty() {
            return Ok(Batch::default());
        }
        how.check()?;
        let mut known = Vec::new();
        for pair in pairs {
            known.extend(pair.known.clone().map(|record| (Query::Get(key::inode(pair.from)), Value::Bytes(Some(record)))));
            // Few have any.
            if !how.has_xattrs.load(Ordering::Relaxed) {
                known.push((Query::HGetAll(key::xattr(pair.from)), Value::Pairs(Vec::new())));
            }
        }
        let batch = self.run_presuming("clone", &Caller::root(), known, |view, cx| batch_step(view, cx, how, (dir, fresh), pairs)).await?;
        (how.progress)(batch.count, batch.bytes);
        Ok(batch)
    }

    /// Removes a copy that never got its name; EINTR when `go_on` says no.
    pub async fn remove_detached(&self, ino: Ino, go_on: &(dyn Fn() -> bool + Sync)) -> Result<(), Errno> {
        let root = Asker::default();
        // It may have its name by now, also if giving it seemed to fail.
        if !self.run("remove a clone", &Caller::root(), |view, _| claim_step(view, ino)).await? {
            return Ok(());
        }
        match self.getattr(ino).await {
            Ok(attr) if attr.is_dir() => self.empty_dir(ino, &attr, &Removal::new(&root, true, 1, &|_, _| {}, go_on), LEVELS_MAX).await?,
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        self.run("remove a clone", &Caller::root(), |view, cx| forget_step(view, cx, ino)).await
    }

    /// Copies without a name that were begun at or before `older_than` (unix seconds).
    pub async fn detached(&self, older_than: i64) -> Result<Vec<Ino>, Errno> {
        let query = [Query::ZRange { key: key::DETACHED, max: older_than, limit: PAGE }];
        let values = self.driver.read("list clones", &query).await?;
        let [Value::Scored(members)] = &values[..] else { return Err(Errno::IO) };
        Ok(members.iter().filter_map(|(member, _)| std::str::from_utf8(member).ok()?.parse().ok().map(Ino)).collect())
    }
}

fn parent_check(from: Ino, into: Ino, name: &Name) -> Result<(), Errno> {
    match parent::check_place(into, name) {
        Ok(()) if !from.is_trash() => Ok(()),
        _ => Err(Errno::PERM),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::ops::chunk::testing::{World as Chunked, ready};
    use crate::meta::ops::names_test::{World, name};
    use std::sync::atomic::AtomicU64;

    fn how<'a>(asker: &'a Asker, preserve: bool, into: Ino, go_on: &'a (dyn Fn() -> bool + Sync)) -> Cloning<'a> {
        Cloning::new(asker, preserve, 0o22, into, 3, &|_, _| {}, go_on)
    }

    #[test]
    fn slices_are_shared_and_counted() {
        let world = Chunked::new();
        // Past the numbers the test gives out itself.
        world.store.put(Write::IncrBy(key::NEXT_INODE, 1000));
        let dir = world.inode(|attr| (attr.kind, attr.length) = (Kind::Dir, 4096));
        let ino = world.file(0);
        world.write(ino, 0, 1, 10);
        world.write(ino, 5, 2, 10);
        world.write_at(ino, 1, 0, 3, 10);
        let root = Asker::default();
        ready(world.meta.clone_tree(ino, &name("copy"), &how(&root, false, dir, &|| true))).unwrap();
        let (copy, attr) = ready(world.meta.lookup(&Caller::root(), dir, &name("copy"))).unwrap();
        assert_eq!((attr.length, attr.nlink, attr.parent), (world.attr(ino).length, 1, dir));
        for chunk in 0..2 {
            assert_eq!(world.list(copy, chunk), world.list(ino, chunk));
        }
        assert_eq!((world.reference(1, 10), world.reference(2, 10), world.reference(3, 10)), (Some(1), Some(1), Some(1)));
        // A compaction just before the commit: the copy has its result.
        let other = world.neighbour();
        let taken = world.list(ino, 0);
        world.store.before_commit(move || {
            let new = crate::meta::ops::chunk::testing::slice(0, 9, 15);
            ready(other.compact_commit(ino, 0, &taken, 0, new)).unwrap();
        });
        ready(world.meta.clone_tree(ino, &name("again"), &how(&root, false, dir, &|| true))).unwrap();
        let (again, _) = ready(world.meta.lookup(&Caller::root(), dir, &name("again"))).unwrap();
        assert_eq!(world.list(again, 0), world.list(ino, 0));
        assert_eq!(world.reference(9, 15), Some(1), "compacted list and copy");
        assert_eq!(world.reference(1, 10), Some(0), "the first copy has it");
        for (text, errno) in [("copy", Errno::EXIST), (".", Errno::EXIST)] {
            let outcome =
                Name::new(text.as_bytes()).and_then(|name| ready(world.meta.clone_tree(ino, &name, &how(&root, false, dir, &|| true))));
            assert_eq!(outcome, Err(errno));
        }
    }

    #[test]
    fn an_attribute_set_just_before_the_commit_is_copied_with_its_record() {
        let world = Chunked::new();
        world.store.put(Write::IncrBy(key::NEXT_INODE, 1000));
        let dir = world.inode(|attr| (attr.kind, attr.length) = (Kind::Dir, 4096));
        let ino = world.file(0);
        world.write(ino, 0, 1, 10);
        let other = world.neighbour();
        // So that the next commit is that of the copy.
        ready(world.meta.next_inode()).unwrap();
        world.store.before_commit(move || {
            let any = crate::meta::ops::xattr::XattrMode::Any;
            ready(other.set_xattr(&Caller::root(), ino, b"user.a", Bytes::from_static(b"v"), any)).unwrap();
        });
        let root = Asker::default();
        ready(world.meta.clone_tree(ino, &name("copy"), &how(&root, false, dir, &|| true))).unwrap();
        let (copy, _) = ready(world.meta.lookup(&Caller::root(), dir, &name("copy"))).unwrap();
        assert_eq!(ready(world.meta.get_xattr(copy, b"user.a")), Ok(Bytes::from_static(b"v")));
    }

    #[test]
    fn a_large_file_is_copied_in_parts_and_named_at_the_end() {
        let world = Chunked::new();
        // Past the numbers the test gives out itself.
        world.store.put(Write::IncrBy(key::NEXT_INODE, 1000));
        let dir = world.inode(|attr| (attr.kind, attr.length) = (Kind::Dir, 4096));
        let ino = world.file(0);
        for chunk in [0, 70, 200] {
            world.write_at(ino, chunk, 0, u64::from(chunk) + 1, 10);
        }
        ready(world.meta.new_session("/mnt")).unwrap();
        let root = Asker::default();
        ready(world.meta.clone_tree(ino, &name("copy"), &how(&root, true, dir, &|| true))).unwrap();
        let (copy, attr) = ready(world.meta.lookup(&Caller::root(), dir, &name("copy"))).unwrap();
        assert_eq!(attr, Attr { parent: dir, ctime: attr.ctime, ..world.attr(ino) });
        assert_eq!(world.reference(201, 10), Some(1));
        assert_eq!(world.list(copy, 200).first(), world.list(ino, 200).first());
    }

    #[test]
    fn a_tree_appears_at_once_or_not_at_all() {
        for calls in [0, 1, 2, 3, 1000] {
            let w = ready(World::new());
            let (src, dst) = ready(async {
                let src = w.make(Ino::ROOT, "src", Kind::Dir).await;
                let mut dir = src;
                for _ in 0..3 {
                    for n in 0..4 {
                        w.make(dir, &format!("f{n}"), if n == 2 { Kind::Symlink } else { Kind::File }).await;
                    }
                    dir = w.make(dir, "d", Kind::Dir).await;
                }
                (src, w.make(Ino::ROOT, "dst", Kind::Dir).await)
            });
            let before = ready(w.count(key::TOTAL_INODES));
            let root = Asker::default();
            let left = AtomicU64::new(calls);
            let some = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
            let outcome = ready(w.meta.clone_tree(src, &name("copy"), &how(&root, false, dst, &some)));
            ready(w.check());
            if calls < 1000 {
                assert_eq!(outcome, Err(Errno::INTR));
                assert_eq!((ready(w.find(dst, "copy")).err(), ready(w.count(key::TOTAL_INODES))), (Some(Errno::NOENT), before));
                assert_eq!(ready(w.meta.detached(i64::MAX)).unwrap(), []);
                continue;
            }
            assert_eq!((outcome, ready(w.count(key::TOTAL_INODES))), (Ok(()), before + 16));
            let copy = ready(w.find(dst, "copy")).unwrap().0;
            let inside = how(&root, false, copy, &|| true);
            assert_eq!(ready(w.meta.clone_tree(dst, &name("x"), &inside)), Err(Errno::INVAL));
            assert_eq!(ready(w.meta.clone_tree(Ino::TRASH, &name("x"), &inside)), Err(Errno::PERM));
        }
    }

    #[test]
    fn what_a_crash_leaves_is_found() {
        let w = ready(World::new());
        let src = ready(w.make(Ino::ROOT, "src", Kind::Dir));
        ready(w.make(src, "f", Kind::File));
        let before = ready(w.count(key::TOTAL_INODES));
        let root = Asker::default();
        let cloning = how(&root, false, Ino::ROOT, &|| true);
        let to = ready(w.meta.next_inode()).unwrap();
        let pair = Pair { name: name("copy"), from: src, to, known: None };
        let mark = ready(w.meta.run("clone", &Caller::root(), |view, cx| detached_step(view, cx, &cloning, &pair))).unwrap();
        ready(w.meta.fill(src, to, &cloning, 9)).unwrap();
        let other = w.other(8);
        let now = crate::env::Clock::now(&*w.clock).sec;
        assert_eq!(ready(other.meta.detached(now - 1)).unwrap(), []);
        assert_eq!(ready(other.meta.detached(now)).unwrap(), [to]);
        ready(other.meta.remove_detached(to, &|| true)).unwrap();
        ready(w.check());
        assert_eq!((ready(w.count(key::TOTAL_INODES)), ready(other.meta.detached(i64::MAX)).unwrap()), (before, vec![]));
        // Whoever was only slow does not name what is gone.
        assert_eq!(
            ready(w.meta.run("clone", &Caller::root(), |view, cx| attach_step(view, cx, &cloning, &pair.name, (to, mark)))),
            Err(Errno::NOENT)
        );
    }

    #[test]
    fn either_gets_its_name_or_is_taken_for_abandoned() {
        let w = ready(World::new());
        let src = ready(w.make(Ino::ROOT, "src", Kind::Dir));
        ready(w.make(src, "f", Kind::File));
        let (root, before) = (Asker::default(), ready(w.count(key::TOTAL_INODES)));
        let cloning = how(&root, false, Ino::ROOT, &|| true);
        let other = w.other(8);
        for claimed in [true, false] {
            let to = ready(w.meta.next_inode()).unwrap();
            let pair = Pair { name: name("copy"), from: src, to, known: None };
            let mark = ready(w.meta.run("clone", &Caller::root(), |view, cx| detached_step(view, cx, &cloning, &pair))).unwrap();
            ready(w.meta.fill(src, to, &cloning, 9)).unwrap();
            let attach = || ready(w.meta.run("clone", &Caller::root(), |view, cx| attach_step(view, cx, &cloning, &pair.name, (to, mark))));
            if claimed {
                // The cleaner has just begun.
                assert_eq!(ready(other.meta.run("remove a clone", &Caller::root(), |view, _| claim_step(view, to))), Ok(true));
                assert_eq!(attach(), Err(Errno::NOENT));
                ready(other.meta.remove_detached(to, &|| true)).unwrap();
                assert_eq!(ready(w.count(key::TOTAL_INODES)), before);
            } else {
                assert_eq!(attach(), Ok(()));
                ready(other.meta.remove_detached(to, &|| true)).unwrap();
                assert!(ready(w.find(to, "f")).is_ok(), "what has a name is left alone");
            }
            ready(w.check());
        }
    }

    #[test]
    fn others_copy_what_they_may_read_and_own_the_copy() {
        let w = ready(World::new());
        let src = ready(w.make(Ino::ROOT, "src", Kind::File));
        let open = ready(w.make(Ino::ROOT, "open", Kind::Dir));
        ready(w.edit(open, |attr| attr.mode = 0o777));
        ready(w.edit(src, |attr| attr.mode = 0o4755));
        let asker = Asker { uid: 5, gids: vec![6], ..Asker::default() };
        for (preserve, mode) in [(false, 0o755), (true, 0o755)] {
            let copy = name(if preserve { "p" } else { "c" });
            ready(w.meta.clone_tree(src, &copy, &how(&asker, preserve, open, &|| true))).unwrap();
            let attr = ready(w.meta.lookup(&Caller::root(), open, &copy)).unwrap().1;
            assert_eq!((attr.uid, attr.gid, attr.mode), (5, 6, mode));
        }
        ready(w.edit(src, |attr| attr.mode = 0o700));
        assert_eq!(ready(w.meta.clone_tree(src, &name("no"), &how(&asker, false, open, &|| true))), Err(Errno::ACCES));
        ready(w.edit(src, |attr| attr.mode = 0o755));
        assert_eq!(ready(w.meta.clone_tree(src, &name("no"), &how(&asker, false, Ino::ROOT, &|| true))), Ok(()), "its root is 0777");
        ready(w.check());
    }
}
