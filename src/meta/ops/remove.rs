//! Removing many names at once: a tree, the expired part of the trash, a clone that was not completed (metadata §6.8, §6.19).
//!
//! The entries of a directory go hundreds at a time, each batch in one commit with what `unlink` and `rmdir` would write for it. A directory is removed when it is empty,
//! and that is guarded, so what others create meanwhile is found and removed, too. Cut anywhere, what is left is a smaller tree.

use crate::env::join_in_turns;
use crate::meta::codec::{Record, decode_entry};
use crate::meta::driver::errno_of;
use crate::meta::ops::acl::{self, ENTER, READ, WRITE};
use crate::meta::ops::parent;
use crate::meta::ops::rmdir::drop_dir;
use crate::meta::ops::stats::Tally;
use crate::meta::ops::unlink::{self, Victim, drop_link};
use crate::meta::store::{Cursor, Guard, Key, Query, ScanItem, ScanRange, Value, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Cx, Meta, key};
use crate::types::{Asker, Attr, BoxFuture, Duty, Errno, Flags, Ino, Kind, LEVELS_MAX, Name};
use hashbrown::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Semaphore;

/// Entries removed in one commit: some milliseconds of a server, in which others wait.
const BATCH: usize = 256;
/// Entries listed at once.
const PAGE: u32 = 1024;
/// How often a directory is looked through while others put things into it.
const PASSES_MAX: u32 = 64;

/// Who removes, and how.
pub struct Removal<'a> {
    /// On whose behalf, with its permissions.
    pub asker: &'a Asker,
    /// Past the trash.
    pub skip_trash: bool,
    places: Semaphore,
    removed: AtomicU64,
    progress: &'a (dyn Fn(u64, u64) + Sync),
    go_on: &'a (dyn Fn() -> bool + Sync),
}

impl<'a> Removal<'a> {
    /// `at_once` directories are worked on at a time. `progress` is told how many things and bytes are gone since it was last told; EINTR when
    /// `go_on` says no, between two commits.
    pub fn new(
        asker: &'a Asker,
        skip_trash: bool,
        at_once: usize,
        progress: &'a (dyn Fn(u64, u64) + Sync),
        go_on: &'a (dyn Fn() -> bool + Sync),
    ) -> Removal<'a> {
        Removal { asker, skip_trash, places: Semaphore::new(at_once.saturating_sub(1)), removed: AtomicU64::new(0), progress, go_on }
    }

    /// Names removed so far.
    pub fn removed(&self) -> u64 {
        self.removed.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<(), Errno> {
        if (self.go_on)() { Ok(()) } else { Err(Errno::INTR) }
    }
}

/// A name that is to go, with what the listing said of it: the plan guards it, so that nothing has to be read a second time.
struct Listed {
    name: Name,
    kind: Kind,
    known: Option<Value>,
}

impl Listed {
    /// `None` for an entry that cannot be read, which hides nothing else.
    fn of(item: &ScanItem) -> Option<(Listed, Ino)> {
        let (kind, ino) = decode_entry(&item.value)?;
        let record = (!item.record.is_empty()).then(|| item.record.clone());
        let known = Some(Value::Entry(Some((item.value.clone(), record))));
        Some((Listed { name: Name::new(&item.name).ok()?, kind, known }, ino))
    }
}

/// What a batch came to.
#[derive(Debug, Default)]
struct Batch {
    gone: u64,
    bytes: u64,
    /// Files whose data is to be deleted.
    deleted: Vec<(Ino, u64)>,
    /// Left for another commit: open here, a second name of one inode, or not what was listed any more.
    left: Vec<Name>,
    /// Directories that were not empty.
    full: bool,
}

/// `held`: no file is opened by this process until this is committed.
fn step(view: &View, cx: &Cx, asker: &Asker, dir: Ino, names: &[Listed], held: bool) -> Result<Plan<Batch>, Stop> {
    let entry_of = |name: &Name| Query::Entry { dir: key::dir(dir), name: key::name(name) };
    view.want(std::iter::once(Query::Get(key::inode(dir))).chain(names.iter().map(|listed| entry_of(&listed.name))))?;
    let dir_record = parent::shrinking(view, dir)?;
    acl::check(view, cx, asker, &dir_record.attr, WRITE | ENTER)?;
    let mut guards = vec![parent::identity(dir, &dir_record)];
    let (mut writes, mut more) = (Vec::new(), Vec::new());
    let mut tally = Tally::new(view, cx);
    let mut batch = Batch::default();
    let mut seen = HashSet::new();
    let mut subdirs = 0;
    for Listed { name, kind: listed, .. } in names {
        parent::check_removal(cx, dir, name)?;
        // Somebody else was first.
        let Some(entry) = view.field(&key::dir(dir), key::name(name))? else { continue };
        let (kind, ino) = decode_entry(&entry).ok_or(Errno::IO)?;
        let record = view.record(ino)?;
        let skips = record.as_ref().is_some_and(|record| record.attr.flags.any(Flags::SKIP_TRASH));
        let is_kept = cx.trash.is_some() && !dir.is_trash() && !skips;
        let is_alone = kind == Kind::File && (cx.open_files.is_open(ino) || (cx.sid > 0 && !is_kept && !held));
        if (kind == Kind::Dir) != (*listed == Kind::Dir) || !seen.insert(ino) || is_alone {
            batch.left.push(name.clone());
            continue;
        }
        if let Some(record) = &record {
            parent::check_sticky(cx, &dir_record, record)?;
            if kind != Kind::Dir && record.attr.flags.any(Flags::IMMUTABLE | Flags::APPEND) {
                return Err(Errno::PERM.into());
            }
        }
        let length = record.as_ref().map_or(0, |record| record.attr.data_length() as u64);
        let victim = Victim { dir, name, entry: entry.clone(), ino, record };
        let dropped = if kind == Kind::Dir {
            if !view.hash_is_empty(&key::dir(ino))? {
                batch.full = true;
                continue;
            }
            subdirs += 1;
            drop_dir(view, cx, &victim, &mut tally)?
        } else {
            drop_link(view, cx, &victim, &mut tally)?
        };
        guards.push(Guard::Field(key::dir(dir), key::name(name), Some(entry)));
        guards.extend(dropped.guards);
        writes.push(Write::HDel(key::dir(dir), key::name(name)));
        more.extend(dropped.writes);
        batch.deleted.extend(dropped.deleted);
        batch.gone += 1;
        batch.bytes = batch.bytes.saturating_add(length);
    }
    if batch.gone == 0 {
        return Ok(Plan::answer(batch));
    }
    writes.extend(more);
    if !dir.is_trash() {
        writes.extend(parent::touch(cx, dir, &dir_record, -subdirs));
    }
    in_runs(&mut guards, &mut writes);
    tally.put(&mut guards, &mut writes);
    Ok(Plan::new(guards, writes, batch))
}

/// Puts what a store may carry out together side by side. Writes of one kind to one key stay in their order.
pub(crate) fn in_runs(guards: &mut [Guard], writes: &mut [Write]) {
    // Numbers are compared faster than keys, and of hashes there are few.
    let mut hashes: HashMap<Key, u32> = HashMap::new();
    let mut of_hash = |key: &Key| match hashes.get(key) {
        Some(number) => *number,
        None => {
            let number = u32::try_from(hashes.len()).unwrap_or(u32::MAX);
            hashes.insert(key.clone(), number);
            number
        }
    };
    guards.sort_by_cached_key(|guard| match guard {
        Guard::Value(_, value) => (1 + u8::from(value.is_some()), 0),
        Guard::Field(hash, _, value) => (3 + u8::from(value.is_some()), of_hash(hash)),
        Guard::Fields(_, pairs) if pairs.is_empty() => (5, 0),
        Guard::HashEmpty(_) => (6, 0),
        _ => (0, 0),
    });
    writes.sort_by_cached_key(|write| match write {
        Write::HDel(hash, _) => (0, of_hash(hash)),
        Write::Set(..) => (1, 0),
        Write::HSet(hash, ..) => (2, of_hash(hash)),
        Write::ZAdd(set, ..) => (3, of_hash(set)),
        // Those of one kind stand in the order of the inodes, as their guards do.
        Write::Del(key) => (4, key.first().copied().map_or(0, u32::from)),
        Write::RPush(..) => (5, 0),
        Write::HIncrBy(hash, ..) => (6, of_hash(hash)),
        _ => (7, 0),
    });
}

impl Meta {
    /// Removes a name and, if it is a directory, everything below it. What cannot be removed ends it with its errno; what is gone stays so.
    pub async fn remove_tree(&self, dir: Ino, name: &Name, removal: &Removal<'_>) -> Result<(), Errno> {
        let (ino, attr) = self.lookup(&removal.asker.caller(), dir, name).await?;
        for _ in 0..PASSES_MAX {
            if attr.is_dir() {
                self.empty_dir(ino, &attr, removal, LEVELS_MAX).await?;
            }
            if !self.remove_batch(dir, &[Listed { name: name.clone(), kind: attr.kind, known: None }], removal).await? {
                return Ok(());
            }
        }
        Err(Errno::NOTEMPTY)
    }

    /// Removes everything in a directory.
    pub(crate) fn empty_dir<'a>(
        &'a self,
        dir: Ino,
        attr: &'a Attr,
        removal: &'a Removal<'_>,
        depth: usize,
    ) -> BoxFuture<'a, Result<(), Errno>> {
        Box::pin(async move {
            if depth == 0 {
                return Err(Errno::LOOP);
            }
            self.check_access(removal.asker, attr, READ | ENTER).await?;
            for _ in 0..PASSES_MAX {
                let mut is_complete = true;
                let mut cursor = Some(Cursor::new());
                while let Some(at) = cursor {
                    removal.check()?;
                    // Past what is remembered of names: a large tree would push all of it out, and is never asked about again.
                    let page =
                        self.store().scan(&ScanRange::Dir(key::dir(dir)), at, PAGE).await.map_err(|e| errno_of("list a directory", &e))?;
                    let (mut files, mut names, mut dirs) = (Vec::new(), Vec::new(), Vec::new());
                    for item in &page.items {
                        let Some((listed, ino)) = Listed::of(item) else { continue };
                        let record = if listed.kind == Kind::Dir { Record::decode(item.record.clone()) } else { None };
                        match record {
                            Some(record) => {
                                // What is known of it will have changed when it is empty.
                                names.push(Listed { known: None, ..listed });
                                dirs.push((ino, record.attr));
                            }
                            None => files.push(listed),
                        }
                    }
                    for batch in files.chunks(BATCH) {
                        is_complete &= !self.remove_batch(dir, batch, removal).await?;
                    }
                    self.empty_each(&dirs, removal, depth).await?;
                    for batch in names.chunks(BATCH) {
                        is_complete &= !self.remove_batch(dir, batch, removal).await?;
                    }
                    cursor = page.next;
                }
                if is_complete {
                    return Ok(());
                }
            }
            Err(Errno::NOTEMPTY)
        })
    }

    /// Empties directories, several at a time if there are free places.
    async fn empty_each(&self, dirs: &[(Ino, Attr)], removal: &Removal<'_>, depth: usize) -> Result<(), Errno> {
        let wanted = u32::try_from(dirs.len().saturating_sub(1)).unwrap_or(u32::MAX);
        let free = wanted.min(u32::try_from(removal.places.available_permits()).unwrap_or(u32::MAX));
        // Others may have been faster; this one goes on alone then.
        let more = removal.places.try_acquire_many(free).ok();
        let at_once = 1 + more.as_ref().map_or(0, |more| more.num_permits());
        join_in_turns(dirs.iter().map(|(ino, attr)| self.empty_dir(*ino, attr, removal, depth - 1)).collect(), at_once).await?;
        Ok(())
    }

    /// Removes these names; true if some of them are still there.
    async fn remove_batch(&self, dir: Ino, names: &[Listed], removal: &Removal<'_>) -> Result<bool, Errno> {
        if names.is_empty() {
            return Ok(false);
        }
        removal.check()?;
        let caller = removal.asker.caller();
        // A file that is open here keeps its data; which are is decided in the commit, and none may be opened until that is done.
        let deletes = self.deletes_files(dir, names, removal.skip_trash);
        let held = if deletes { Some(self.open_files().none_opens().await) } else { None };
        let known = || {
            let mut view = View::default();
            let entry = |listed: &Listed| Query::Entry { dir: key::dir(dir), name: key::name(&listed.name) };
            view.remember(names.iter().filter_map(|listed| Some((entry(listed), listed.known.clone()?))));
            view
        };
        let step = |view: &View, cx: &Cx| step(view, cx, removal.asker, dir, names, deletes);
        let batch = self.run_removing_from("remove", &caller, removal.skip_trash, known, step).await?;
        drop(held);
        let count = |gone: u64, bytes: u64| {
            removal.removed.fetch_add(gone, Ordering::Relaxed);
            (removal.progress)(gone, bytes);
        };
        count(batch.gone, batch.bytes);
        for (ino, length) in batch.deleted {
            self.ask(Duty::DeleteFile { ino, length });
        }
        let mut remains = batch.full;
        for name in batch.left {
            let unlinked = self.run_removing("unlink", &caller, removal.skip_trash, |view, cx| unlink::step(view, cx, dir, &name)).await;
            match unlinked {
                Ok(deleted) => {
                    deleted.into_iter().for_each(|(ino, length)| self.ask(Duty::DeleteFile { ino, length }));
                    count(1, 0);
                }
                Err(Errno::NOENT) => {}
                // It is a directory now.
                Err(Errno::PERM) if self.lookup(&caller, dir, &name).await.is_ok_and(|(_, attr)| attr.is_dir()) => remains = true,
                Err(errno) => return Err(errno),
            }
        }
        Ok(remains)
    }

    /// Whether the data of files may go with their names, and handles of this process matter.
    fn deletes_files(&self, dir: Ino, names: &[Listed], skip_trash: bool) -> bool {
        let is_kept = self.setting().trash_days() > 0 && !skip_trash && !dir.is_trash();
        !is_kept && self.sid.load(Ordering::Relaxed) > 0 && names.iter().any(|listed| listed.kind == Kind::File)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::ops::chunk::testing::ready;
    use crate::meta::ops::names_test::{World, name, user};

    fn tree(w: &World, deep: usize) -> Ino {
        ready(async {
            let top = w.make(Ino::ROOT, "top", Kind::Dir).await;
            let mut dir = top;
            for level in 0..deep {
                for n in 0..7 {
                    w.make(dir, &format!("f{n}"), if n == 3 { Kind::Symlink } else { Kind::File }).await;
                }
                let (one, other) = (w.make(dir, "d", Kind::Dir).await, w.make(dir, "e", Kind::Dir).await);
                w.meta.link(&crate::types::Caller::root(), w.find(dir, "f0").await.unwrap().0, other, &name("link")).await.unwrap();
                dir = if level % 2 == 0 { one } else { other };
            }
            top
        })
    }

    fn removal<'a>(asker: &'a Asker, skip_trash: bool, go_on: &'a (dyn Fn() -> bool + Sync)) -> Removal<'a> {
        Removal::new(asker, skip_trash, 4, &|_, _| {}, go_on)
    }

    #[test]
    fn a_tree_goes_to_the_trash_or_for_good() {
        for (trash, skip) in [(0, false), (1, false), (1, true)] {
            let w = ready(World::with(|setting| setting.set("TrashDays", trash.into())));
            tree(&w, 5);
            let root = Asker::default();
            // Called off in between, it goes on another time.
            let left = AtomicU64::new(3);
            let some = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
            assert_eq!(ready(w.meta.remove_tree(Ino::ROOT, &name("top"), &removal(&root, skip, &some))), Err(Errno::INTR));
            ready(w.check());
            ready(w.meta.remove_tree(Ino::ROOT, &name("top"), &removal(&root, skip, &|| true))).unwrap();
            ready(w.check());
            assert_eq!(ready(w.find(Ino::ROOT, "top")).err(), Some(Errno::NOENT));
            let trashed = ready(w.count(key::TOTAL_INODES));
            assert!(if trash > 0 && !skip { trashed > 40 } else { trashed <= 1 }, "{trashed}");
        }
    }

    #[test]
    fn what_is_open_here_keeps_its_data_and_permissions_hold() {
        let w = ready(World::new());
        let top = tree(&w, 2);
        let (file, _) = ready(w.find(top, "f1")).unwrap();
        ready(w.meta.open(&crate::types::Caller::root(), file, Default::default())).unwrap();
        let other = Asker { uid: 5, gids: vec![5], ..Asker::default() };
        assert_eq!(user(5).uid, 5);
        assert_eq!(ready(w.meta.remove_tree(Ino::ROOT, &name("top"), &removal(&other, false, &|| true))), Err(Errno::ACCES));
        let root = Asker::default();
        ready(w.meta.remove_tree(Ino::ROOT, &name("top"), &removal(&root, false, &|| true))).unwrap();
        ready(w.check());
        assert_eq!(ready(w.meta.getattr(file)).unwrap().nlink, 0);
        ready(w.meta.close(file)).unwrap();
        ready(w.check());
        assert_eq!(ready(w.count(key::TOTAL_INODES)), 0);
    }

    #[test]
    fn lengths_that_no_file_has_are_summed_without_overflow() {
        let w = ready(World::new());
        let top = tree(&w, 1);
        for n in ["f0", "f1", "f2", "f4", "f5"] {
            let (file, _) = ready(w.find(top, n)).unwrap();
            ready(w.edit(file, |attr| attr.length = if n == "f5" { 1 << 63 } else { u64::MAX }));
        }
        let (file, _) = ready(w.find(top, "f5")).unwrap();
        assert_eq!(ready(w.meta.truncate(&crate::types::Caller::root(), file, 10)).err(), Some(Errno::IO));
        let (root, told) = (Asker::default(), AtomicU64::new(0));
        let count = |_, bytes| {
            told.fetch_max(bytes, Ordering::Relaxed);
        };
        ready(w.meta.remove_tree(Ino::ROOT, &name("top"), &Removal::new(&root, false, 4, &count, &|| true))).unwrap();
        assert!(told.into_inner() >= 5 * crate::types::FILE_BYTES_MAX);
        assert_eq!(ready(w.find(Ino::ROOT, "top")).err(), Some(Errno::NOENT));
    }
}
