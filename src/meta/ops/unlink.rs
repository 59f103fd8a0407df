//! Removing a name of anything but a directory (metadata §6.7).

use crate::meta::codec::Record;
use crate::meta::key;
use crate::meta::ops::stats::Tally;
use crate::meta::ops::{parent, trash};
use crate::meta::store::{Guard, Query, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Cx, Meta};
use crate::types::{Attr, Caller, Duty, Errno, Flags, Ino, Kind, Name};
use bytes::Bytes;

/// A name that goes, and what it names.
pub(crate) struct Victim<'a> {
    /// The directory.
    pub dir: Ino,
    /// The name.
    pub name: &'a Name,
    /// The value of the entry.
    pub entry: Bytes,
    /// The inode.
    pub ino: Ino,
    /// Its record; whoever removed it has counted it off the volume, so only the directory's usage changes.
    pub record: Option<Record>,
}

/// What taking a name from an inode means. Shared by `unlink`, `rmdir`, and `rename`, which takes one from what it replaces.
#[derive(Default)]
pub(crate) struct Dropped {
    /// The inode is as it was seen.
    pub guards: Vec<Guard>,
    /// What becomes of its records.
    pub writes: Vec<Write>,
    /// The file whose data is to be deleted once this is committed.
    pub deleted: Option<(Ino, u64)>,
    /// The decision rests on whether this process has the file open.
    pub while_closed: Option<Ino>,
}

/// Takes the link from an inode that is no directory: it moves to the trash, or is dropped.
pub(crate) fn drop_link(view: &View, cx: &Cx, victim: &Victim, tally: &mut Tally) -> Result<Dropped, Stop> {
    let &Victim { dir, name, ino, .. } = victim;
    let Some(record) = &victim.record else {
        tally.children(dir, 0, -Attr::space_of(0), -1)?;
        return Ok(Dropped { guards: vec![Guard::Value(key::inode(ino), None)], ..Dropped::default() });
    };
    let attr = &record.attr;
    let mut dropped = Dropped { guards: vec![Guard::Value(key::inode(ino), Some(record.bytes.clone()))], ..Dropped::default() };
    let has_one_parent = attr.parent != Ino(0);
    if let Some(place) = trash::place(view, cx, dir, name, ino, attr, &mut dropped.guards)? {
        let parent = if has_one_parent { place.dir } else { Ino(0) };
        dropped.writes.push(Write::Set(key::inode(ino), record.rewrite(&Attr { parent, ctime: cx.now, ..attr.clone() })));
        dropped.writes.push(place.write(&victim.entry));
        if !has_one_parent {
            dropped.writes.push(Write::HIncrBy(key::parents(ino), key::decimal(place.dir), 1));
            dropped.writes.push(Write::HIncrBy(key::parents(ino), key::decimal(dir), -1));
        }
        tally.child(place.dir, attr, 1)?;
    } else if attr.nlink > 1 {
        dropped.writes.push(Write::Set(key::inode(ino), record.rewrite(&Attr { nlink: attr.nlink - 1, ctime: cx.now, ..attr.clone() })));
        if !has_one_parent {
            dropped.writes.push(Write::HIncrBy(key::parents(ino), key::decimal(dir), -1));
        }
    } else {
        drop_last(cx, ino, record, &mut dropped, tally)?;
    }
    tally.child(dir, attr, -1)?;
    Ok(dropped)
}

fn drop_last(cx: &Cx, ino: Ino, record: &Record, dropped: &mut Dropped, tally: &mut Tally) -> Result<(), Stop> {
    let attr = &record.attr;
    let is_file = attr.kind == Kind::File;
    let has_session = is_file && cx.sid > 0;
    // Both answers need the fence: a file seen open must not lose its last handle before it is in the session's set, or nobody
    // deletes it; one seen closed must not be opened before its record is gone.
    dropped.while_closed = has_session.then_some(ino);
    if has_session && cx.open_files.is_open(ino) {
        dropped.writes.push(Write::Set(key::inode(ino), record.rewrite(&Attr { nlink: 0, ctime: cx.now, ..attr.clone() })));
        dropped.writes.push(Write::SAdd(key::sustained(cx.sid), key::decimal(ino)));
    } else {
        if is_file {
            dropped.writes.push(Write::ZAdd(key::DELFILES, cx.now.sec, key::delfile(ino, attr.length)));
            dropped.deleted = Some((ino, attr.length));
        }
        if attr.kind == Kind::Symlink {
            dropped.writes.push(Write::Del(key::symlink(ino)));
        }
        dropped.writes.push(Write::Del(key::inode(ino)));
        tally.inode(attr, -1)?;
    }
    dropped.writes.push(Write::Del(key::xattr(ino)));
    if attr.parent == Ino(0) {
        dropped.writes.push(Write::Del(key::parents(ino)));
    }
    Ok(())
}

pub(crate) fn step(view: &View, cx: &Cx, dir: Ino, name: &Name) -> Result<Plan<Option<(Ino, u64)>>, Stop> {
    parent::check_removal(cx, dir, name)?;
    view.want([Query::Get(key::inode(dir)), Query::Entry { dir: key::dir(dir), name: key::name(name) }])?;
    let (Some(entry), Some((kind, ino, record))) = (view.field(&key::dir(dir), key::name(name))?, view.entry(dir, name)?) else {
        parent::directory(view, dir)?;
        return Err(Errno::NOENT.into());
    };
    if kind == Kind::Dir {
        return Err(Errno::PERM.into());
    }
    let dir_record = parent::shrinking(view, dir)?;
    if let Some(record) = &record {
        parent::check_sticky(cx, &dir_record, record)?;
        if record.attr.flags.any(Flags::IMMUTABLE | Flags::APPEND) {
            return Err(Errno::PERM.into());
        }
    }
    let mut guards = vec![parent::identity(dir, &dir_record), Guard::Field(key::dir(dir), key::name(name), Some(entry.clone()))];
    let mut writes = vec![Write::HDel(key::dir(dir), key::name(name))];
    if !dir.is_trash() {
        writes.extend(parent::touch(cx, dir, &dir_record, 0));
    }
    let mut tally = Tally::new(view, cx);
    let dropped = drop_link(view, cx, &Victim { dir, name, entry, ino, record }, &mut tally)?;
    guards.extend(dropped.guards);
    writes.extend(dropped.writes);
    tally.put(&mut guards, &mut writes);
    let mut plan = Plan::new(guards, writes, dropped.deleted);
    plan.while_closed = dropped.while_closed;
    Ok(plan)
}

impl Meta {
    /// Removes a name: to the trash, if the volume has one. Otherwise the data of a file goes with its last link, or with its last handle if this process has it open.
    pub async fn unlink(&self, caller: &Caller, parent: Ino, name: &Name) -> Result<(), Errno> {
        if let Some((ino, length)) = self.run_trashing("unlink", caller, |view, cx| step(view, cx, parent, name)).await? {
            self.ask(Duty::DeleteFile { ino, length });
        }
        Ok(())
    }
}
