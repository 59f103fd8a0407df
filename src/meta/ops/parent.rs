//! A directory in its role as parent: how it is checked, guarded and touched.
//!
//! Only identity is guarded (flags, type, mode, owner; parent and what follows it), never times and link count: those are patched in
//! place, so that any number of clients change entries of one directory without conflict. What must not slip through is that the
//! directory is removed, moved or locked down meanwhile, and all of these change guarded bytes.

use crate::meta::Cx;
use crate::meta::codec::{self, MTIME_AT, NLINK_AT, OWNER_END, PARENT_AT, Record};
use crate::meta::key;
use crate::meta::ops::trash::TRASH_NAME;
use crate::meta::store::{BytesRange, Guard, Write};
use crate::meta::view::{Stop, View};
use crate::types::{Errno, Flags, Ino, Name};

/// Refuses the reserved name, and the trash as a place for anything.
pub(crate) fn check_place(parent: Ino, name: &Name) -> Result<(), Stop> {
    if parent.is_trash() || (parent == Ino::ROOT && name.as_bytes() == TRASH_NAME) {
        return Err(Errno::PERM.into());
    }
    Ok(())
}

/// The same for taking something away: root may do that in the trash, but for the directories of the hours.
pub(crate) fn check_removal(cx: &Cx, parent: Ino, name: &Name) -> Result<(), Stop> {
    if parent > Ino::TRASH && cx.caller.uid == 0 { Ok(()) } else { check_place(parent, name) }
}

/// The record of a directory whose entries are to be changed: ENOENT or ENOTDIR.
pub(crate) fn directory(view: &View, ino: Ino) -> Result<Record, Stop> {
    let record = view.record(ino)?.ok_or(Errno::NOENT)?;
    if record.attr.is_dir() { Ok(record) } else { Err(Errno::NOTDIR.into()) }
}

/// The same for gaining an entry: not in a directory that is in the trash, nor in an immutable one.
pub(crate) fn growing(view: &View, ino: Ino) -> Result<Record, Stop> {
    let record = directory(view, ino)?;
    if record.attr.parent.is_trash() {
        return Err(Errno::NOENT.into());
    }
    if record.attr.flags.any(Flags::IMMUTABLE) {
        return Err(Errno::PERM.into());
    }
    Ok(record)
}

/// The same for losing an entry: neither immutable nor append-only.
pub(crate) fn shrinking(view: &View, ino: Ino) -> Result<Record, Stop> {
    let record = directory(view, ino)?;
    if record.attr.flags.any(Flags::IMMUTABLE | Flags::APPEND) {
        return Err(Errno::PERM.into());
    }
    Ok(record)
}

/// In a sticky directory only root and the owners of the directory and of the thing itself remove or rename.
pub(crate) fn check_sticky(cx: &Cx, parent: &Record, victim: &Record) -> Result<(), Stop> {
    let uid = cx.caller.uid;
    let sticky = u32::from(parent.attr.mode) & libc::S_ISVTX != 0;
    if sticky && uid != 0 && uid != parent.attr.uid && uid != victim.attr.uid {
        return Err(Errno::ACCES.into());
    }
    Ok(())
}

/// Everything about an inode but its times, link count and length stays as it was seen.
pub(crate) fn identity(ino: Ino, record: &Record) -> Guard {
    let owner_end = OWNER_END as usize;
    // A record before 1.0 has no parent: the second range is empty then, and still fails if one appears.
    Guard::Bytes(
        key::inode(ino),
        vec![
            (BytesRange { from: 0, to: Some(OWNER_END) }, record.bytes.slice(..owner_end)),
            (BytesRange { from: PARENT_AT, to: None }, record.bytes.slice(PARENT_AT as usize..)),
        ],
    )
}

/// Marks the directory as changed; `subdirs` is added to its link count.
pub(crate) fn touch(cx: &Cx, ino: Ino, record: &Record, subdirs: i32) -> Vec<Write> {
    // A change within the clock's granularity must still be visible to whoever compares times.
    let now = if cx.now == record.attr.mtime { cx.now.next() } else { cx.now };
    let key = key::inode(ino);
    let mut writes = vec![Write::Patch { key: key.clone(), offset: MTIME_AT, bytes: codec::encode_touch(now) }];
    if subdirs != 0 {
        writes.push(Write::AddU32 { key, offset: NLINK_AT, delta: subdirs });
    }
    writes
}
