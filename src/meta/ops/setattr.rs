//! Changing mode, owner and times (metadata §6.3), and noting an access (§6.12).
//!
//! Only what is decided on is guarded, and only the bytes that change are written: a chmod neither disturbs a writer of the same file
//! nor is disturbed by one.

use crate::meta::codec::{self, CTIME_AT, MTIME_AT, OWNER_END, Record};
use crate::meta::key;
use crate::meta::ops::stats::Tally;
use crate::meta::ops::{acl, parent, trash};
use crate::meta::store::{Guard, Query, Value, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{AtimeMode, Cx, Meta};
use crate::types::{Attr, Caller, Errno, Ino, Time};

/// A time to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the call.
    Now,
    /// This time; before 1970 is fine.
    At(Time),
}

/// What is to be changed; `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Time of the last change of the data.
    pub mtime: Option<SetTime>,
}

const SUID: u16 = libc::S_ISUID as u16;
const SGID: u16 = libc::S_ISGID as u16;
const GROUP_EXEC: u16 = libc::S_IXGRP as u16;
/// First byte of atime in a record.
const ATIME_AT: u32 = OWNER_END;
/// First byte of the id of the access ACL, in records that have one.
const ACCESS_ACL_AT: u32 = codec::PARENT_AT + 8;
/// Relative access times are renewed after a day at the latest.
const RELATIME_SECONDS: i64 = 24 * 3600;
/// Strict ones are no finer than this.
const STRICTATIME_SECONDS: i64 = 1;

/// The mode a file has after its owner or group was set: set-id bits are a promise of the old owner. A set-group-id bit without group
/// execution only means mandatory locking, and root keeps that. Directories keep both.
fn mode_after_chown(old: &Attr, uid: u32) -> u16 {
    if old.is_dir() || old.mode & (SUID | SGID) == 0 {
        old.mode
    } else if uid != 0 || old.mode & GROUP_EXEC != 0 {
        old.mode & !(SUID | SGID)
    } else {
        old.mode & !SUID
    }
}

/// The attributes after the change, or the errno that says why the caller may not make it.
fn changed(cx: &Cx, old: &Attr, change: &SetAttr) -> Result<Attr, Errno> {
    let uid = cx.caller.uid;
    let is_owner = uid == 0 || uid == old.uid;
    let mut new = Attr { ctime: cx.now, ..old.clone() };
    let chowns = change.uid.is_some() || change.gid.is_some();
    if chowns {
        new.mode = mode_after_chown(old, uid);
    }
    if let Some(gid) = change.gid {
        if !is_owner {
            return Err(Errno::PERM);
        }
        new.gid = gid;
    }
    if let Some(to) = change.uid {
        // Only root gives files away; the owner may name itself.
        if uid != 0 && (to != old.uid || !is_owner) {
            return Err(Errno::PERM);
        }
        new.uid = to;
    }
    if let Some(mode) = change.mode {
        // A mode that comes with an owner is the kernel's idea of what is left after it; the set-id bits are decided here.
        let mode = if chowns { mode & 0o1777 | new.mode & (SUID | SGID) } else { mode & 0o7777 };
        let adds_set_id = mode & !old.mode & (SUID | SGID) != 0;
        if !is_owner && (mode & 0o1777 != old.mode & 0o1777 || adds_set_id) {
            return Err(Errno::PERM);
        }
        new.mode = mode;
    }
    for (to, time) in [(change.atime, &mut new.atime), (change.mtime, &mut new.mtime)] {
        match to {
            // Whoever may write may set the present time; the kernel has checked that.
            Some(SetTime::Now) => *time = cx.now,
            Some(SetTime::At(at)) if is_owner => *time = at,
            Some(SetTime::At(_)) => return Err(Errno::PERM),
            None => {}
        }
    }
    Ok(new)
}

/// Patches for everything setattr may change. Adjacent times go in one.
fn patches(ino: Ino, record: &Record, new: &Attr, change: &SetAttr) -> Vec<Write> {
    let old = &record.attr;
    let bytes = record.rewrite(new);
    let patch = |from: u32, to: u32| Write::Patch { key: key::inode(ino), offset: from, bytes: bytes.slice(from as usize..to as usize) };
    let mut writes = Vec::new();
    if (old.mode, old.uid, old.gid) != (new.mode, new.uid, new.gid) {
        writes.push(patch(0, OWNER_END));
    }
    if old.access_acl != new.access_acl {
        // Both before and after there is one, so the record keeps its length.
        writes.push(patch(ACCESS_ACL_AT, ACCESS_ACL_AT + 4));
    }
    // Times are written whenever named: the stored ones may have moved since they were looked at.
    if change.atime.is_some() {
        writes.push(patch(ATIME_AT, MTIME_AT));
    }
    if change.mtime.is_some() {
        writes.push(patch(MTIME_AT, CTIME_AT));
    }
    writes.push(patch(CTIME_AT, codec::NLINK_AT));
    writes
}

pub(crate) fn step(view: &View, cx: &Cx, ino: Ino, change: &SetAttr) -> Result<Plan<Attr>, Stop> {
    let record = view.record(ino)?.ok_or(Errno::NOENT)?;
    trash::check_changeable(cx, ino, &record.attr)?;
    let mut new = changed(cx, &record.attr, change)?;
    let (mut guards, mut writes) = (vec![parent::identity(ino, &record)], Vec::new());
    if change.mode.is_some() && record.attr.access_acl != 0 {
        // The mode and the ACL are two views of the same permissions.
        let rule = acl::rule(view, cx, record.attr.access_acl)?.with_mode(new.mode);
        new.access_acl = acl::id_of(view, cx, &rule, &mut guards, &mut writes)?;
    }
    writes.extend(patches(ino, &record, &new, change));
    let old = &record.attr;
    if cx.setting.user_group_quota() && (old.uid, old.gid) != (new.uid, new.gid) {
        // What it uses is somebody else's now. Its length must not change before that is done.
        guards[0] = Guard::Value(key::inode(ino), Some(record.bytes.clone()));
        let mut tally = Tally::new(view, cx);
        tally.owner((old.uid, old.gid), -old.space(), -1)?;
        tally.owner((new.uid, new.gid), old.space(), 1)?;
        tally.put(&mut guards, &mut writes);
    }
    Ok(Plan {
        guards,
        writes,
        // Length, link count and the times that were not named are whatever they are by now.
        reads: vec![Query::Get(key::inode(ino))],
        while_closed: None,
        finish: Box::new(|_, values| match values {
            [Value::Bytes(Some(bytes))] => Record::decode(bytes.clone()).map(|record| record.attr).ok_or(Errno::IO),
            _ => Err(Errno::IO),
        }),
    })
}

fn access_is_due(mode: AtimeMode, attr: &Attr, now: Time) -> bool {
    let age = now.sec.saturating_sub(attr.atime.sec);
    match mode {
        AtimeMode::Never => false,
        AtimeMode::Relative => attr.mtime > attr.atime || attr.ctime > attr.atime || age >= RELATIME_SECONDS,
        AtimeMode::Strict => attr.mtime > attr.atime || attr.ctime > attr.atime || age >= STRICTATIME_SECONDS,
    }
}

pub(crate) fn atime_step(view: &View, cx: &Cx, ino: Ino, mode: AtimeMode) -> Result<Plan<()>, Stop> {
    let record = view.record(ino)?.ok_or(Errno::NOENT)?;
    if !access_is_due(mode, &record.attr, cx.now) {
        return Ok(Plan::answer(()));
    }
    let bytes = codec::encode_touch(cx.now).slice(..12);
    let writes = vec![Write::Patch { key: key::inode(ino), offset: ATIME_AT, bytes }];
    Ok(Plan::new(vec![parent::identity(ino, &record)], writes, ()))
}

impl Meta {
    /// Changes attributes. The change time always moves, also when every value stays.
    pub async fn setattr(&self, caller: &Caller, ino: Ino, change: SetAttr) -> Result<Attr, Errno> {
        self.run("setattr", caller, |view, cx| step(view, cx, ino, &change)).await
    }

    /// Notes that an inode was read, as the volume's access time mode wants it.
    pub async fn touch_atime(&self, ino: Ino) -> Result<(), Errno> {
        if self.atime == AtimeMode::Never {
            return Ok(());
        }
        self.estimate("touch atime", &Caller::root(), |view, cx| atime_step(view, cx, ino, self.atime)).await
    }
}
