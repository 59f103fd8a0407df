//! Taking things back out of the trash (metadata §9.5): what lies there, and moving it to where it was.

use crate::env::join;
use crate::meta::Meta;
use crate::meta::ops::acl::{self, ENTER, WRITE};
use crate::meta::ops::lookup::DEPTH_MAX;
use crate::meta::ops::parent;
use crate::meta::ops::readdir::DirEntry;
use crate::meta::ops::rename::RenameFlags;
use crate::meta::ops::trash::{ENTRY_BYTES_MAX, entry_name, hour_of};
use crate::meta::store::Cursor;
use crate::meta::view::{Stop, View};
use crate::meta::{Cx, key};
use crate::telemetry::progress;
use crate::types::{Asker, Attr, BoxFuture, Caller, Errno, Ino, Kind, Name};
use std::collections::HashMap;

/// Entries of the trash looked at together.
const PAGE: u32 = 1000;

/// A thing in the trash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trashed {
    /// The directory of the hour.
    pub hour: Ino,
    /// Its name there.
    pub entry: Name,
    /// Where it was.
    pub parent: Ino,
    /// What it is.
    pub ino: Ino,
    /// Type.
    pub kind: Kind,
    /// Attributes; those that are in the trash have the time of their deletion as ctime.
    pub attr: Attr,
    /// What it was called; only the beginning of it if the name in the trash was cut.
    pub name: Name,
}

impl Trashed {
    /// From an entry of the directory of an hour; `None` for what is not the format's, or damaged.
    fn of(hour: Ino, entry: DirEntry) -> Option<Trashed> {
        let text = &entry.name[..];
        let mut parts = text.splitn(3, |byte| *byte == b'-');
        let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok().map(Ino);
        let (parent, ino) = (number()?, number()?);
        let name = Name::new(parts.next()?).ok()?;
        (ino == entry.ino).then_some(Trashed { hour, entry: Name::new(text).ok()?, parent, ino, kind: entry.kind, attr: entry.attr?, name })
    }

    /// Whether this was called so in its directory. A name that was cut is compared as far as it goes.
    pub fn was_called(&self, name: &Name) -> bool {
        self.entry.as_bytes() == entry_name(self.parent, self.ino, name)
    }

    /// Whether the trash has only the beginning of its name.
    pub fn is_cut(&self) -> bool {
        self.entry.as_bytes().len() == ENTRY_BYTES_MAX
    }
}

/// What `restore_hour` did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Things moved.
    pub moved: u64,
    /// Things whose directory is not in the hour: they stay unless they are to be put back.
    pub left: u64,
    /// Things whose name is taken.
    pub conflicts: u64,
    /// Others that could not be moved; each was logged.
    pub failed: u64,
}

impl Restored {
    fn add(&mut self, more: Restored) {
        progress::add(more.moved + more.left + more.conflicts + more.failed, 0);
        self.moved += more.moved;
        self.left += more.left;
        self.conflicts += more.conflicts;
        self.failed += more.failed;
    }
}

impl Meta {
    /// The directories of the trash with the seconds at which their hours begin, newest first.
    pub async fn trash_hours(&self) -> Result<Vec<(Name, Ino, i64)>, Errno> {
        let names = self.names_in(Ino::TRASH).await?;
        let mut hours: Vec<_> = names
            .into_iter()
            .filter(|(_, _, kind)| *kind == Kind::Dir)
            .filter_map(|(name, ino, _)| hour_of(&name).map(|begins| (name, ino, begins)))
            .collect();
        hours.sort_unstable_by_key(|(_, ino, begins)| std::cmp::Reverse((*begins, *ino)));
        Ok(hours)
    }

    /// Some of what is in the directory of an hour, and where the rest begins.
    pub async fn trash_page(&self, hour: Ino, cursor: Cursor) -> Result<(Vec<Trashed>, Option<Cursor>), Errno> {
        let page = self.readdir(hour, cursor, PAGE).await?;
        Ok((page.entries.into_iter().filter_map(|entry| Trashed::of(hour, entry)).collect(), page.next))
    }

    /// Moves a thing out of the trash to a name that must be free. Others than root get back what is theirs, into directories they may
    /// change: EPERM, EACCES. EEXIST if the name is taken, ENOENT if the thing or the directory is gone.
    pub async fn take_back(&self, asker: &Asker, trashed: &Trashed, to: Ino, name: &Name) -> Result<(), Errno> {
        let may = |view: &View, cx: &Cx| -> Result<(), Stop> {
            view.want([crate::meta::store::Query::Entry { dir: key::dir(trashed.hour), name: key::name(&trashed.entry) }])?;
            let (_, ino, record) = view.entry(trashed.hour, &trashed.entry)?.ok_or(Errno::NOENT)?;
            let owner = record.ok_or(Errno::NOENT)?.attr.uid;
            if ino != trashed.ino {
                return Err(Errno::NOENT.into());
            }
            if !asker.is_root() && asker.uid != owner {
                return Err(Errno::PERM.into());
            }
            acl::check(view, cx, asker, &parent::directory(view, to)?.attr, WRITE | ENTER)
        };
        let flags = RenameFlags { noreplace: true, restore: true, exchange: false };
        self.rename_if(&Caller::root(), (trashed.hour, &trashed.entry), (to, name), flags, may).await
    }

    /// Moves what was deleted in an hour back to where it was: everything, or only what was in directories deleted in the same hour, which
    /// rebuilds trees inside the trash. `at_once` things are moved at a time. EINTR when `go_on` says no.
    pub async fn restore_hour(
        &self,
        hour: Ino,
        put_back: bool,
        at_once: usize,
        go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<Restored, Errno> {
        // Directories first, those above before those in them, so that each has its statistics when its entries come.
        let mut dirs: HashMap<Ino, Trashed> = HashMap::new();
        let mut cursor = Some(Cursor::new());
        while let Some(at) = cursor {
            let (page, next) = self.trash_page(hour, at).await?;
            dirs.extend(page.into_iter().filter(|found| found.kind == Kind::Dir).map(|dir| (dir.ino, dir)));
            cursor = next;
        }
        let depth = |dir: &Trashed| {
            let above = std::iter::successors(Some(dir), |dir| dirs.get(&dir.parent));
            above.take(DEPTH_MAX).count()
        };
        let mut ordered: Vec<(usize, &Trashed)> = dirs.values().map(|dir| (depth(dir), dir)).collect();
        ordered.sort_unstable_by_key(|(depth, dir)| (*depth, dir.ino));
        let mut restored = Restored::default();
        for (_, dir) in ordered {
            if !go_on() {
                return Err(Errno::INTR);
            }
            restored.add(self.restore_one(dir, put_back || dirs.contains_key(&dir.parent)).await);
        }
        let mut cursor = Some(Cursor::new());
        while let Some(at) = cursor {
            // What moves meanwhile may be seen again or not at all, in an order of the store's: what is left is seen by another run.
            let (page, next) = self.trash_page(hour, at).await?;
            let files = page.iter().filter(|found| found.kind != Kind::Dir);
            let moving = files.map(|found| -> BoxFuture<'_, Result<Restored, Errno>> {
                let moves = put_back || dirs.contains_key(&found.parent);
                Box::pin(async move { if go_on() { Ok(self.restore_one(found, moves).await) } else { Err(Errno::INTR) } })
            });
            for one in join(moving.collect(), at_once.max(1)).await? {
                restored.add(one);
            }
            cursor = next;
        }
        Ok(restored)
    }

    async fn restore_one(&self, found: &Trashed, moves: bool) -> Restored {
        if !moves {
            return Restored { left: 1, ..Restored::default() };
        }
        match self.take_back(&Asker::default(), found, found.parent, &found.name).await {
            Ok(()) => Restored { moved: 1, ..Restored::default() },
            Err(Errno::EXIST) => Restored { conflicts: 1, ..Restored::default() },
            Err(errno) => {
                let entry = String::from_utf8_lossy(found.entry.as_bytes());
                tracing::warn!("cannot restore {entry}: {errno}");
                Restored { failed: 1, ..Restored::default() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_tell_what_they_were() {
        let attr = Attr::new_dir(0o700, Ino(9), Default::default());
        let entry = |name: &[u8], ino| DirEntry { name: name.to_vec().into(), ino: Ino(ino), kind: Kind::Dir, attr: Some(attr.clone()) };
        let found = Trashed::of(Ino(9), entry(b"12-3456-a-b", 3456)).expect("well formed");
        assert_eq!((found.parent, found.ino, found.name.as_bytes()), (Ino(12), Ino(3456), &b"a-b"[..]));
        let name = |text: &[u8]| Name::new(text).expect("a name");
        assert!(found.was_called(&name(b"a-b")) && !found.was_called(&name(b"a")) && !found.is_cut());
        let long = name(&[b'x'; 255]);
        let cut = Trashed::of(Ino(9), entry(&entry_name(Ino(1), Ino(5), &long), 5)).expect("well formed");
        assert!(cut.is_cut() && cut.was_called(&long) && !cut.was_called(&name(&[b'x'; 100])));
        for (wrong, ino) in [(&b"12-34"[..], 34), (b"x-1-a", 1), (b"1-2-", 2), (b"1-2-a", 3)] {
            assert_eq!(Trashed::of(Ino(9), entry(wrong, ino)), None);
        }
    }
}
