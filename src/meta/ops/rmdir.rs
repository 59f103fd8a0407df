//! Removing an empty directory (metadata §6.9).

use crate::meta::key;
use crate::meta::ops::stats::Tally;
use crate::meta::ops::unlink::{Dropped, Victim};
use crate::meta::ops::{parent, trash};
use crate::meta::store::{Guard, Query, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Cx, Meta};
use crate::types::{Attr, Caller, Errno, Ino, Kind, Name};

/// Takes an empty directory away: it moves to the trash, or is deleted. Either way its statistics go and its quota: a later repair would
/// count a directory that is no more.
pub(crate) fn drop_dir(view: &View, cx: &Cx, victim: &Victim, tally: &mut Tally) -> Result<Dropped, Stop> {
    let &Victim { dir, name, ino, .. } = victim;
    let record = victim.record.as_ref();
    // Nobody has put anything into it, changed or moved it.
    let mut guards = vec![Guard::HashEmpty(key::dir(ino)), Guard::Value(key::inode(ino), record.map(|record| record.bytes.clone()))];
    let place = match record {
        Some(record) => trash::place(view, cx, dir, name, ino, &record.attr, &mut guards)?,
        None => None,
    };
    let mut writes = match (&place, record) {
        (Some(place), Some(record)) => {
            let attr = Attr { parent: place.dir, ctime: cx.now, ..record.attr.clone() };
            tally.child(place.dir, &attr, 1)?;
            vec![Write::Set(key::inode(ino), record.rewrite(&attr)), place.write(&victim.entry)]
        }
        _ => vec![Write::Del(key::inode(ino)), Write::Del(key::xattr(ino))],
    };
    for hash in [
        key::DIR_DATA_LENGTH,
        key::DIR_USED_SPACE,
        key::DIR_USED_INODES,
        key::DIR_QUOTA,
        key::DIR_QUOTA_USED_SPACE,
        key::DIR_QUOTA_USED_INODES,
    ] {
        writes.push(Write::HDel(hash, key::decimal(ino)));
    }
    // A missing record has been counted off the volume by whoever removed it.
    if let (None, Some(record)) = (&place, record) {
        tally.inode(&record.attr, -1)?;
    }
    tally.children(dir, 0, -Attr::space_of(0), -1)?;
    Ok(Dropped { guards, writes, ..Dropped::default() })
}

pub(crate) fn step(view: &View, cx: &Cx, dir: Ino, name: &Name) -> Result<Plan<()>, Stop> {
    parent::check_removal(cx, dir, name)?;
    view.want([Query::Get(key::inode(dir)), Query::Entry { dir: key::dir(dir), name: key::name(name) }])?;
    let (Some(entry), Some((kind, ino, record))) = (view.field(&key::dir(dir), key::name(name))?, view.entry(dir, name)?) else {
        parent::directory(view, dir)?;
        return Err(Errno::NOENT.into());
    };
    if kind != Kind::Dir {
        return Err(Errno::NOTDIR.into());
    }
    let dir_record = parent::shrinking(view, dir)?;
    if !view.hash_is_empty(&key::dir(ino))? {
        return Err(Errno::NOTEMPTY.into());
    }
    if let Some(record) = &record {
        parent::check_sticky(cx, &dir_record, record)?;
    }
    let mut guards = vec![parent::identity(dir, &dir_record), Guard::Field(key::dir(dir), key::name(name), Some(entry.clone()))];
    let mut writes = vec![Write::HDel(key::dir(dir), key::name(name))];
    if !dir.is_trash() {
        writes.extend(parent::touch(cx, dir, &dir_record, -1));
    }
    let mut tally = Tally::new(view, cx);
    let dropped = drop_dir(view, cx, &Victim { dir, name, entry, ino, record }, &mut tally)?;
    guards.extend(dropped.guards);
    writes.extend(dropped.writes);
    tally.put(&mut guards, &mut writes);
    Ok(Plan::new(guards, writes, ()))
}

impl Meta {
    /// Removes an empty directory: to the trash, if the volume has one.
    pub async fn rmdir(&self, caller: &Caller, parent: Ino, name: &Name) -> Result<(), Errno> {
        self.run_trashing("rmdir", caller, |view, cx| step(view, cx, parent, name)).await
    }
}
