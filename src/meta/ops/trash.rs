//! The trash (metadata §9): what is deleted keeps its record and its data, under a name in the directory of the hour.
//!
//! For the format such a thing has not lost a link: its record still counts the name in the trash. For an application it is deleted. So
//! records are written as the format wants them, and what an application is shown (`Meta::shown`) counts only names outside the trash.

use crate::meta::Meta;
use crate::meta::client::Cx;
use crate::meta::codec::{PARENT_AT, decode_decimal, encode_attr, encode_entry};
use crate::meta::ops::remove::Removal;
use crate::meta::ops::stats::Tally;
use crate::meta::store::{BytesRange, Guard, Query, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{driver::errno_of, key};
use crate::types::{Asker, Attr, Caller, Civil, Errno, Flags, Ino, Kind, LEVELS_MAX, Name, Time};
use bytes::Bytes;

/// Name under which the trash appears in the root of the volume; never an entry there (metadata §2.9).
pub(crate) const TRASH_NAME: &[u8] = b".trash";
/// Names in the trash are cut to this many bytes, wherever that is.
pub(super) const ENTRY_BYTES_MAX: usize = 255;
const HOUR_SECONDS: i64 = 3600;
const DIR_MODE: u16 = 0o555;
/// What a mount shows of the trash: root alone looks inside. What is deleted has lost the directories that kept others out of it.
const SHOWN_MODE: u16 = 0o500;

/// Where a deleted thing goes.
pub(crate) struct Place {
    /// The directory of the hour.
    pub dir: Ino,
    name: Bytes,
}

impl Place {
    /// The new name, with the value the old one had.
    pub fn write(&self, entry: &Bytes) -> Write {
        Write::HSet(key::dir(self.dir), self.name.clone(), entry.clone())
    }
}

/// The name in the trash of what was `name` in `parent`.
pub(super) fn entry_name(parent: Ino, ino: Ino, name: &Name) -> Bytes {
    let mut entry = format!("{parent}-{ino}-").into_bytes();
    entry.extend_from_slice(name.as_bytes());
    entry.truncate(ENTRY_BYTES_MAX);
    entry.into()
}

/// Where a thing goes that loses its name; `None`: it is deleted for good, because the trash is off, or the thing is to bypass it or
/// comes out of it.
pub(crate) fn place(
    view: &View,
    cx: &Cx,
    parent: Ino,
    name: &Name,
    ino: Ino,
    attr: &Attr,
    guards: &mut Vec<Guard>,
) -> Result<Option<Place>, Stop> {
    let Some(dir) = cx.trash.filter(|_| !parent.is_trash() && !attr.flags.any(Flags::SKIP_TRASH)) else { return Ok(None) };
    guard_hour(view, dir, guards)?;
    let place = Place { dir, name: entry_name(parent, ino, name) };
    if !attr.is_dir() && attr.nlink > 1 {
        // Another link of the same name may have gone to the trash in this hour: one entry stands for one link.
        let hash = key::dir(dir);
        if view.field(&hash, place.name.clone())?.is_some() {
            return Ok(None);
        }
        guards.push(Guard::Field(hash, place.name.clone(), None));
    }
    Ok(Some(place))
}

/// ESTALE if the directory of the hour is known to be gone; else guards that it is there when something enters it: whoever empties the trash
/// may remove it at any time. A record that nobody has read is presumed to be there, because the guard brings the truth as a read would.
fn guard_hour(view: &View, dir: Ino, guards: &mut Vec<Guard>) -> Result<(), Stop> {
    let record = key::inode(dir);
    if view.want([Query::Get(record.clone())]).is_ok() && view.record(dir)?.is_none() {
        return Err(Errno::STALE.into());
    }
    let parent = BytesRange { from: PARENT_AT, to: Some(PARENT_AT + 8) };
    guards.push(Guard::Bytes(record, vec![(parent, Bytes::copy_from_slice(&Ino::TRASH.0.to_be_bytes()))]));
    Ok(())
}

/// EPERM for what lies in the trash (metadata §9.6), unless this process has it open: for whoever holds the handle it is an ordinary file
/// without a name.
pub(crate) fn check_changeable(cx: &Cx, ino: Ino, attr: &Attr) -> Result<(), Errno> {
    if attr.is_trashed() && !cx.open_files.is_open(ino) { Err(Errno::PERM) } else { Ok(()) }
}

fn hour_name(hour: i64) -> Name {
    let Civil { year, month, day, hour, .. } = Civil::of(hour * HOUR_SECONDS);
    Name::new(format!("{year:04}-{month:02}-{day:02}-{hour:02}").as_bytes()).expect("a date is a valid name")
}

/// The directory of an hour, made if it is missing; and the trash itself, on a volume whose trash was turned on by a client that left that
/// to others.
fn hour_step(view: &View, cx: &Cx, name: &Name, ino: Ino) -> Result<Plan<Ino>, Stop> {
    view.want([Query::Get(key::inode(Ino::TRASH)), Query::Entry { dir: key::dir(Ino::TRASH), name: key::name(name) }])?;
    if let Some((_, found, Some(_))) = view.entry(Ino::TRASH, name)? {
        return Ok(Plan::answer(found));
    }
    let entry = view.field(&key::dir(Ino::TRASH), key::name(name))?;
    let trash = view.string(&key::inode(Ino::TRASH))?;
    let mut guards = vec![Guard::Field(key::dir(Ino::TRASH), key::name(name), entry), Guard::Value(key::inode(ino), None)];
    let mut writes = Vec::new();
    if trash.is_none() {
        writes.push(Write::Set(key::inode(Ino::TRASH), encode_attr(&Attr::new_dir(DIR_MODE, Ino::ROOT, Time { nsec: 0, ..cx.now }))));
    }
    guards.push(Guard::Value(key::inode(Ino::TRASH), trash));
    let attr = Attr::new_dir(DIR_MODE, Ino::TRASH, cx.now);
    writes.push(Write::Set(key::inode(ino), encode_attr(&attr)));
    writes.push(Write::HSet(key::dir(Ino::TRASH), key::name(name), encode_entry(Kind::Dir, ino)));
    let mut tally = Tally::new(view, cx);
    tally.begin_dir(ino, &mut writes);
    tally.volume(attr.space(), 1);
    tally.put(&mut guards, &mut writes);
    Ok(Plan::new(guards, writes, ino))
}

impl Meta {
    /// The directory that takes what is deleted now; `None` if the volume has no trash. Known to this process for the rest of the hour.
    pub(crate) async fn trash_dir(&self) -> Result<Option<Ino>, Errno> {
        if self.setting().trash_days() == 0 {
            return Ok(None);
        }
        let hour = self.driver.clock.now().sec.div_euclid(HOUR_SECONDS);
        let mut known = self.known.trash_hour.lock().await;
        let losses = self.driver.store.losses();
        if let Some((of, ino, at)) = *known
            && (of, at) == (hour, losses)
        {
            return Ok(Some(ino));
        }
        let ino = self.hour_dir(&hour_name(hour)).await?;
        *known = Some((hour, ino, losses));
        Ok(Some(ino))
    }

    /// The directory of the hour is gone: the next one who deletes finds or makes another.
    pub(crate) async fn forget_trash_dir(&self, gone: Ino) {
        self.known.trash_hour.lock().await.take_if(|(_, ino, _)| *ino == gone);
    }

    async fn hour_dir(&self, name: &Name) -> Result<Ino, Errno> {
        let root = Caller::root();
        let found = self.answer("find the trash", &root, |view, _| Ok(Plan::answer(view.entry(Ino::TRASH, name)?))).await?;
        if let Some((_, ino, Some(_))) = found {
            return Ok(ino);
        }
        // As for other numbers: whoever loses the race wastes one.
        let ordinal = self.next_of(key::NEXT_TRASH).await?;
        let ino = Ino::TRASH.0.checked_add(ordinal).map(Ino).ok_or(Errno::IO)?;
        self.run("create the trash", &root, |view, cx| hour_step(view, cx, name, ino)).await
    }

    async fn next_of(&self, counter: crate::meta::store::Key) -> Result<u64, Errno> {
        let commit = self.driver.store.commit(&[], &[Write::IncrBy(counter, 1)], &[]).await.map_err(|e| errno_of("count on", &e))?;
        match commit {
            crate::meta::store::Commit::Done { replies, .. } => match replies.first() {
                Some(crate::meta::store::Value::Int(n)) if *n > 0 => Ok(*n as u64),
                _ => Err(Errno::IO),
            },
            crate::meta::store::Commit::Conflict(_) => Err(Errno::IO),
        }
    }

    /// Attributes as an application must see them: names in the trash are no links, but for what is only there and not open. Only hard-linked inodes of a volume with a trash cost
    /// a look at the metadata.
    pub async fn shown(&self, ino: Ino, attr: Attr) -> Result<Attr, Errno> {
        if ino == Ino::TRASH {
            return Ok(Attr { mode: SHOWN_MODE, ..attr });
        }
        if attr.is_dir() || attr.nlink == 0 {
            return Ok(attr);
        }
        let trashed = if attr.parent != Ino(0) {
            if attr.is_trashed() { attr.nlink } else { 0 }
        } else if self.setting().trash_days() == 0 {
            0
        } else {
            self.answer_standing("count links", &Caller::root(), |view, _| Ok(Plan::answer(trashed_links(view, ino)?))).await?
        };
        let nlink = attr.nlink.saturating_sub(trashed);
        // Nobody who has not looked into the trash asks for it then.
        if nlink == 0 && !self.open_files().is_open(ino) {
            return Ok(attr);
        }
        Ok(Attr { nlink, ..attr })
    }
}

/// Entries of a directory of the trash looked at together.
const EXPIRE_PAGE: u32 = 1000;

impl Meta {
    /// Deletes for good what was put into the trash more than `TrashDays` (and two hours, metadata §9.4) ago, oldest first, until `go_on` says
    /// no. Answers how many directories of hours went.
    pub async fn expire_trash(&self, go_on: &(dyn Fn() -> bool + Sync)) -> Result<usize, Errno> {
        let kept = i64::try_from(self.setting().trash_days()).unwrap_or(i64::MAX).saturating_mul(24).saturating_add(2);
        let edge = self.driver.clock.now().sec.saturating_sub(kept.saturating_mul(HOUR_SECONDS));
        let mut hours = Vec::new();
        for (name, ino, kind) in self.names_in(Ino::TRASH).await? {
            // Anything else than an hour is not ours to judge.
            if let (Kind::Dir, Some(hour)) = (kind, hour_of(&name)) {
                hours.push((ino, hour, name));
            }
        }
        hours.sort_unstable_by_key(|(ino, ..)| *ino);
        let (root, mut gone) = (Asker::default(), 0);
        for (ino, _, name) in hours.iter().take_while(|(_, hour, _)| *hour < edge) {
            let attr = self.getattr(*ino).await?;
            match self.empty_dir(*ino, &attr, &Removal::new(&root, true, 1, &|_, _| {}, go_on), LEVELS_MAX).await {
                Err(Errno::INTR) => break,
                outcome => outcome?,
            }
            self.run("expire the trash", &Caller::root(), |view, cx| remove_hour_step(view, cx, *ino, name)).await?;
            gone += 1;
        }
        Ok(gone)
    }

    pub(super) async fn names_in(&self, dir: Ino) -> Result<Vec<(Name, Ino, Kind)>, Errno> {
        let mut names = Vec::new();
        let mut cursor = Some(Default::default());
        while let Some(at) = cursor {
            let page = self.readdir(dir, at, EXPIRE_PAGE).await?;
            names.extend(page.entries.into_iter().filter_map(|entry| Some((Name::new(&entry.name).ok()?, entry.ino, entry.kind))));
            cursor = page.next;
        }
        Ok(names)
    }
}

/// The seconds at which the hour of a directory begins; `None` if it is no such directory.
pub(super) fn hour_of(name: &Name) -> Option<i64> {
    let text = std::str::from_utf8(name.as_bytes()).ok()?;
    let parts: Vec<i64> = text.split('-').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let &[year, month, day, hour] = &parts[..] else { return None };
    let sec = Civil { year, month, day, hour, minute: 0, second: 0 }.seconds();
    // Only what we would write ourselves is a date.
    (hour_name(sec.div_euclid(HOUR_SECONDS)) == *name).then_some(sec)
}

/// Removes an empty directory of an hour; fails if something is in it.
fn remove_hour_step(view: &View, cx: &Cx, ino: Ino, name: &Name) -> Result<Plan<()>, Stop> {
    let (hash, field) = (key::dir(Ino::TRASH), key::name(name));
    view.want([Query::HGet(hash.clone(), field.clone()), Query::Get(key::inode(ino)), Query::HLen { key: key::dir(ino), limit: 1 }])?;
    let entry = view.field(&hash, field.clone())?;
    let record = view.record(ino)?;
    if !view.hash_is_empty(&key::dir(ino))? {
        return Err(Errno::NOTEMPTY.into());
    }
    let mut guards = vec![
        Guard::Field(hash.clone(), field.clone(), entry),
        Guard::Value(key::inode(ino), record.as_ref().map(|record| record.bytes.clone())),
        Guard::HashEmpty(key::dir(ino)),
    ];
    let mut writes = vec![Write::HDel(hash, field), Write::Del(key::inode(ino)), Write::Del(key::xattr(ino))];
    for statistic in [key::DIR_DATA_LENGTH, key::DIR_USED_SPACE, key::DIR_USED_INODES] {
        writes.push(Write::HDel(statistic, key::decimal(ino)));
    }
    let mut tally = Tally::new(view, cx);
    if let Some(record) = record {
        tally.volume(-record.attr.space(), -1);
    }
    tally.put(&mut guards, &mut writes);
    Ok(Plan::new(guards, writes, ()))
}

/// How many of an inode's links are names in the trash.
fn trashed_links(view: &View, ino: Ino) -> Result<u32, Stop> {
    let mut links = 0;
    for (parent, count) in view.fields(&key::parents(ino))? {
        let parent: Option<u64> = std::str::from_utf8(parent).ok().and_then(|text| text.parse().ok());
        if parent.is_some_and(|parent| Ino(parent).is_trash()) {
            // Counts of zero and less are leftovers.
            links += decode_decimal(Some(count)).unwrap_or(0).max(0);
        }
    }
    Ok(u32::try_from(links).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_format() {
        let name = |text: &[u8]| Name::new(text).expect("a test's name is valid");
        assert_eq!(entry_name(Ino(1), Ino(5), &name(b"a-b")), "1-5-a-b");
        let long = entry_name(Ino(12), Ino(3456), &name(&[b'x'; 255]));
        assert_eq!((long.len(), &long[..8]), (255, &b"12-3456-"[..]));
        assert_eq!(hour_name(1_700_000_000 / 3600).as_bytes(), b"2023-11-14-22");
        assert_eq!(hour_name(-1).as_bytes(), b"1969-12-31-23");
    }
}
