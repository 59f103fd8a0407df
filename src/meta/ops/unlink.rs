//! Removing a name of anything but a directory (metadata §6.7).

use crate::meta::codec::Record;
use crate::meta::key;
use crate::meta::ops::{parent, stats};
use crate::meta::store::{Guard, Query, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Cx, Meta};
use crate::types::{Attr, Caller, Duty, Errno, Flags, Ino, Kind, Name};

/// What taking one link from an inode means. Shared with `rename`, which takes one from what it replaces.
pub(crate) struct Dropped {
    /// The inode is as it was seen.
    pub guard: Guard,
    /// What becomes of its records.
    pub writes: Vec<Write>,
    /// Counters, to stand behind everything else.
    pub counters: Vec<Write>,
    /// The file whose data is to be deleted once this is committed.
    pub deleted: Option<(Ino, u64)>,
    /// The decision rests on whether this process has the file open.
    pub while_closed: Option<Ino>,
}

/// Takes the link that `dir` has from `ino`, which is no directory. A missing record has nothing left to take; whoever removed it has
/// counted it off the volume, so only the directory's statistics change.
pub(crate) fn drop_link(cx: &Cx, dir: Ino, ino: Ino, record: Option<&Record>) -> Dropped {
    let Some(record) = record else {
        return Dropped {
            guard: Guard::Value(key::inode(ino), None),
            writes: Vec::new(),
            counters: stats::usage(cx, dir, 0, -Attr::space_of(0), -1),
            deleted: None,
            while_closed: None,
        };
    };
    let attr = &record.attr;
    let mut dropped = Dropped {
        guard: Guard::Value(key::inode(ino), Some(record.bytes.clone())),
        writes: Vec::new(),
        counters: Vec::new(),
        deleted: None,
        while_closed: None,
    };
    if attr.nlink > 1 {
        dropped.writes.push(Write::Set(key::inode(ino), record.rewrite(&Attr { nlink: attr.nlink - 1, ctime: cx.now, ..attr.clone() })));
        if attr.parent.0 == 0 {
            dropped.writes.push(Write::HIncrBy(key::parents(ino), key::decimal(dir), -1));
        }
    } else {
        drop_last(cx, ino, record, &mut dropped);
    }
    dropped.counters.extend(stats::child(cx, dir, attr, -1));
    dropped
}

fn drop_last(cx: &Cx, ino: Ino, record: &Record, dropped: &mut Dropped) {
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
        dropped.counters.extend(stats::volume(-attr.space(), -1));
    }
    dropped.writes.push(Write::Del(key::xattr(ino)));
    if attr.parent.0 == 0 {
        dropped.writes.push(Write::Del(key::parents(ino)));
    }
}

pub(crate) fn step(view: &View, cx: &Cx, dir: Ino, name: &Name) -> Result<Plan<Option<(Ino, u64)>>, Stop> {
    parent::check_place(dir, name)?;
    view.want([Query::Get(key::inode(dir)), Query::Entry { dir: key::dir(dir), name: key::name(name) }])?;
    let entry = view.field(&key::dir(dir), key::name(name))?;
    let Some((kind, ino, record)) = view.entry(dir, name)? else {
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
    let dropped = drop_link(cx, dir, ino, record.as_ref());
    let guards = vec![parent::identity(dir, &dir_record), Guard::Field(key::dir(dir), key::name(name), entry), dropped.guard];
    let mut writes = vec![Write::HDel(key::dir(dir), key::name(name))];
    writes.extend(parent::touch(cx, dir, &dir_record, 0));
    writes.extend(dropped.writes);
    writes.extend(dropped.counters);
    let mut plan = Plan::new(guards, writes, dropped.deleted);
    plan.while_closed = dropped.while_closed;
    Ok(plan)
}

impl Meta {
    /// Removes a name. The data of a file goes with its last link, or with its last handle if this process has it open.
    pub async fn unlink(&self, caller: &Caller, parent: Ino, name: &Name) -> Result<(), Errno> {
        if let Some((ino, length)) = self.run("unlink", caller, |view, cx| step(view, cx, parent, name)).await? {
            self.ask(Duty::DeleteFile { ino, length });
        }
        Ok(())
    }
}
