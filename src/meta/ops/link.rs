//! Hard links (metadata §6.11), and naming a file that was created without a name.

use crate::meta::codec;
use crate::meta::key;
use crate::meta::ops::parent;
use crate::meta::ops::quota::{self, Usage};
use crate::meta::ops::stats::Tally;
use crate::meta::store::{Guard, Query, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Cx, Meta};
use crate::types::{Attr, Caller, Errno, Flags, Ino, Name};

pub(crate) fn step(view: &View, cx: &Cx, ino: Ino, dir: Ino, name: &Name) -> Result<Plan<Attr>, Stop> {
    parent::check_place(dir, name)?;
    view.want([Query::Get(key::inode(ino)), Query::Get(key::inode(dir)), Query::Entry { dir: key::dir(dir), name: key::name(name) }])?;
    let record = view.record(ino)?.ok_or(Errno::NOENT)?;
    let dir_record = parent::growing(view, dir)?;
    let old = &record.attr;
    if old.is_dir() || old.flags.any(Flags::IMMUTABLE | Flags::APPEND) {
        return Err(Errno::PERM.into());
    }
    if view.field(&key::dir(dir), key::name(name))?.is_some() {
        return Err(Errno::EXIST.into());
    }
    let nlink = old.nlink.checked_add(1).ok_or(Errno::MLINK)?;
    // What has lost its last name gets none: whoever keeps it alive deletes it with its last handle, and other clients do not look at names
    // then. A file created without a name is kept by this session.
    if old.nlink == 0 && !view.members(&key::sustained(cx.sid))?.contains(&key::decimal(ino)) {
        return Err(Errno::NOENT.into());
    }
    // The first name of a file without one: it has one parent, and `p{ino}` is empty. From the second on the parents are counted there,
    // also when links go again (metadata §6.11).
    let is_first = old.nlink == 0;
    let attr = Attr { nlink, ctime: cx.now, parent: if is_first { dir } else { Ino(0) }, ..old.clone() };

    // The owner has it already, a directory counts every name.
    quota::check(view, cx, (old.uid, old.gid), &[], Usage { space: 0, inodes: i64::from(!is_first) })?;
    quota::check_entered(cx, &quota::above(view, cx, dir, &mut Vec::new())?, Usage { space: old.space(), inodes: 1 })?;
    let mut guards = vec![
        parent::identity(dir, &dir_record),
        Guard::Field(key::dir(dir), key::name(name), None),
        Guard::Value(key::inode(ino), Some(record.bytes.clone())),
    ];
    let mut writes = vec![Write::HSet(key::dir(dir), key::name(name), codec::encode_entry(old.kind, ino))];
    writes.extend(parent::touch(cx, dir, &dir_record, 0));
    writes.push(Write::Set(key::inode(ino), record.rewrite(&attr)));
    if is_first {
        writes.push(Write::SRem(key::sustained(cx.sid), key::decimal(ino)));
    } else {
        if old.parent.0 != 0 {
            writes.push(Write::HIncrBy(key::parents(ino), key::decimal(old.parent), 1));
        }
        writes.push(Write::HIncrBy(key::parents(ino), key::decimal(dir), 1));
    }
    let mut tally = Tally::new(view, cx);
    tally.child(dir, old, 1)?;
    tally.put(&mut guards, &mut writes);
    // How many of the names are in the trash is what the kernel is told next.
    let counts = !is_first && cx.setting.trash_days() > 0;
    let reads = if counts { vec![Query::HGetAll(key::parents(ino))] } else { Vec::new() };
    Ok(Plan { reads, ..Plan::new(guards, writes, attr) })
}

impl Meta {
    /// Gives an inode one more name. A file created without a name gets its first one and is no longer tied to its handles.
    pub async fn link(&self, caller: &Caller, ino: Ino, parent: Ino, name: &Name) -> Result<Attr, Errno> {
        self.run("link", caller, |view, cx| step(view, cx, ino, parent, name)).await
    }
}
