//! Removing an empty directory (metadata §6.9).

use crate::meta::codec::Record;
use crate::meta::key;
use crate::meta::ops::{parent, stats};
use crate::meta::store::{Guard, Query, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Cx, Meta};
use crate::types::{Caller, Errno, Ino, Kind, Name};

/// The writes that remove an empty directory, and the counters to stand behind everything else. Its statistics go as well, or a later
/// repair would count a directory that is no more.
pub(crate) fn remove_dir(cx: &Cx, parent: Ino, ino: Ino, record: Option<&Record>) -> (Vec<Write>, Vec<Write>) {
    let mut writes = vec![Write::Del(key::inode(ino)), Write::Del(key::xattr(ino))];
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
    let space = 4096;
    // A missing record has been counted off the volume by whoever removed it.
    let mut counters = if record.is_some() { stats::volume(-space, -1) } else { Vec::new() };
    counters.extend(stats::usage(cx, parent, 0, -space, -1));
    (writes, counters)
}

/// The guards under which a directory may be removed: nobody has put anything into it, changed or moved it.
pub(crate) fn removable(ino: Ino, record: Option<&Record>) -> [Guard; 2] {
    [Guard::HashEmpty(key::dir(ino)), Guard::Value(key::inode(ino), record.map(|record| record.bytes.clone()))]
}

pub(crate) fn step(view: &View, cx: &Cx, dir: Ino, name: &Name) -> Result<Plan<()>, Stop> {
    parent::check_place(dir, name)?;
    view.want([Query::Get(key::inode(dir)), Query::Entry { dir: key::dir(dir), name: key::name(name) }])?;
    let entry = view.field(&key::dir(dir), key::name(name))?;
    let Some((kind, ino, record)) = view.entry(dir, name)? else {
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
    let mut guards = vec![parent::identity(dir, &dir_record), Guard::Field(key::dir(dir), key::name(name), entry)];
    guards.extend(removable(ino, record.as_ref()));
    let mut writes = vec![Write::HDel(key::dir(dir), key::name(name))];
    writes.extend(parent::touch(cx, dir, &dir_record, -1));
    let (removal, counters) = remove_dir(cx, dir, ino, record.as_ref());
    writes.extend(removal);
    writes.extend(counters);
    Ok(Plan::new(guards, writes, ()))
}

impl Meta {
    /// Removes an empty directory.
    pub async fn rmdir(&self, caller: &Caller, parent: Ino, name: &Name) -> Result<(), Errno> {
        self.run("rmdir", caller, |view, cx| step(view, cx, parent, name)).await
    }
}
