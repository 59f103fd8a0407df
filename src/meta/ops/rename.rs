//! Renaming, replacing and exchanging (metadata §6.10).
//!
//! Where several directories move at once a cycle can arise although every single move was fine. So a directory that changes its
//! parent guards the parent of every directory above its new place: of two moves that would close a cycle the second one fails its
//! guards and is decided anew.

use crate::meta::codec::{self, CTIME_AT, PARENT_AT, Record};
use crate::meta::key;
use crate::meta::ops::lookup::DEPTH_MAX;
use crate::meta::ops::parent;
use crate::meta::ops::quota::{self, Usage};
use crate::meta::ops::rmdir::drop_dir;
use crate::meta::ops::stats::Tally;
use crate::meta::ops::unlink::{Victim, drop_link};
use crate::meta::store::{BytesRange, Guard, Query, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Cx, Meta};
use crate::types::{Attr, Caller, Duty, Errno, Flags, Ino, Kind, Name};
use bytes::Bytes;
use std::collections::HashMap;

/// How an existing target is treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameFlags {
    /// EEXIST if the target exists.
    pub noreplace: bool,
    /// Source and target change places; both must exist.
    pub exchange: bool,
    /// The target may be a directory that is in the trash: what was in it comes back into it.
    pub restore: bool,
}

/// Directories counted for one rename.
const COUNTS_MAX: u32 = 16;
/// First byte after the parent inode of a record.
const PARENT_END: u32 = PARENT_AT + 8;

/// One end of a rename: a directory, a name in it, and what is there.
struct End<'a> {
    dir: Ino,
    name: &'a Name,
    record: Record,
}

/// What an entry names.
struct Node {
    value: Bytes,
    kind: Kind,
    ino: Ino,
    record: Option<Record>,
}

fn node(view: &View, dir: Ino, name: &Name) -> Result<Option<Node>, Stop> {
    let value = view.field(&key::dir(dir), key::name(name))?;
    let found = view.entry(dir, name)?;
    Ok(found.zip(value).map(|((kind, ino, record), value)| Node { value, kind, ino, record }))
}

/// EINVAL if `moved` is `into` or above it; else guards that this stays so. The first directory's parent is guarded by the caller.
fn check_no_cycle(view: &View, moved: Ino, into: Ino, guards: &mut Vec<Guard>) -> Result<(), Stop> {
    let mut at = into;
    for _ in 0..DEPTH_MAX {
        if at == moved {
            return Err(Errno::INVAL.into());
        }
        if at == Ino::ROOT {
            return Ok(());
        }
        // A directory above that vanishes while we look was empty, so the one we came from is gone, too.
        let record = view.record(at)?.ok_or(Errno::NOENT)?;
        let range = BytesRange { from: PARENT_AT, to: Some(PARENT_END) };
        let end = record.bytes.len().min(PARENT_END as usize);
        guards.push(Guard::Bytes(key::inode(at), vec![(range, record.bytes.slice(PARENT_AT as usize..end))]));
        at = record.attr.parent;
    }
    Err(Errno::LOOP.into())
}

/// The inode at its new place `to`, coming from `from`. A directory is patched, so that it can be moved while others create in it.
fn relocate(cx: &Cx, ino: Ino, record: &Record, from: Ino, to: Ino) -> (Guard, Vec<Write>) {
    let old = &record.attr;
    let moves = from != to;
    if old.is_dir() && record.bytes.len() >= PARENT_END as usize {
        let key = key::inode(ino);
        let ctime = codec::encode_touch(cx.now).slice(..12);
        let mut writes = vec![Write::Patch { key: key.clone(), offset: CTIME_AT, bytes: ctime }];
        if moves {
            writes.push(Write::Patch { key, offset: PARENT_AT, bytes: Bytes::copy_from_slice(&to.0.to_be_bytes()) });
        }
        return (parent::identity(ino, record), writes);
    }
    let has_one_parent = old.is_dir() || old.parent.0 != 0;
    let parent = if moves && has_one_parent { to } else { old.parent };
    let mut writes = Vec::new();
    if moves && !has_one_parent {
        writes.push(Write::HIncrBy(key::parents(ino), key::decimal(to), 1));
        writes.push(Write::HIncrBy(key::parents(ino), key::decimal(from), -1));
    }
    writes.push(Write::Set(key::inode(ino), record.rewrite(&Attr { ctime: cx.now, parent, ..old.clone() })));
    (Guard::Value(key::inode(ino), Some(record.bytes.clone())), writes)
}

/// The errnos that depend on both ends and flags alone.
fn check(cx: &Cx, from: &End, to: &End, src: &Node, src_record: &Record, dst: Option<&Node>) -> Result<(), Stop> {
    let fixed = Flags::IMMUTABLE | Flags::APPEND;
    if from.record.attr.flags.any(fixed) || to.record.attr.flags.any(Flags::IMMUTABLE) || src_record.attr.flags.any(fixed) {
        return Err(Errno::PERM.into());
    }
    let uid = cx.caller.uid;
    let owns_source = uid == 0 || uid == src_record.attr.uid;
    // Moving somebody else's directory out of a sticky one rewrites its `..`: the owner of the sticky directory may not do that either.
    let sticky = u32::from(from.record.attr.mode) & libc::S_ISVTX != 0;
    if from.dir != to.dir && sticky && !owns_source && (uid != from.record.attr.uid || src.kind == Kind::Dir) {
        return Err(Errno::ACCES.into());
    }
    if let Some(record) = dst.and_then(|dst| dst.record.as_ref()) {
        if record.attr.flags.any(fixed) {
            return Err(Errno::PERM.into());
        }
        parent::check_sticky(cx, &to.record, record)?;
    }
    parent::check_sticky(cx, &from.record, src_record)
}

/// What a rename comes to.
#[derive(Debug)]
pub(crate) enum Renamed {
    /// It is done; the data of this file is to be deleted.
    Done(Option<(Ino, u64)>),
    /// This directory changes quotas: first count what is below it.
    Count(Ino),
}

/// What is below directories that move between quotas, and they themselves.
pub(crate) type Counted = HashMap<Ino, Usage>;

/// A rename that may happen.
struct Move<'a> {
    view: &'a View,
    cx: &'a Cx<'a>,
    from: End<'a>,
    to: End<'a>,
    src: Node,
    src_record: Record,
    /// Directories whose quota the source leaves, and those whose it enters.
    left: Vec<Ino>,
    entered: Vec<Ino>,
    counted: &'a Counted,
    guards: Vec<Guard>,
}

pub(crate) fn step<'a>(
    view: &'a View,
    cx: &'a Cx<'a>,
    from: (Ino, &'a Name),
    to: (Ino, &'a Name),
    flags: RenameFlags,
    counted: &'a Counted,
) -> Result<Plan<Renamed>, Stop> {
    if flags.noreplace && flags.exchange {
        return Err(Errno::INVAL.into());
    }
    // What comes out of the trash is restored. Nothing may go there by exchange.
    if flags.exchange {
        parent::check_place(from.0, from.1)?
    } else {
        parent::check_removal(cx, from.0, from.1)?
    }
    parent::check_place(to.0, to.1)?;
    view.want([
        Query::Get(key::inode(from.0)),
        Query::Get(key::inode(to.0)),
        Query::Entry { dir: key::dir(from.0), name: key::name(from.1) },
        Query::Entry { dir: key::dir(to.0), name: key::name(to.1) },
    ])?;
    let from = End { dir: from.0, name: from.1, record: parent::directory(view, from.0)? };
    let to = End { dir: to.0, name: to.1, record: parent::directory(view, to.0)? };
    if to.record.attr.parent.is_trash() && !flags.restore {
        return Err(Errno::NOENT.into());
    }
    let src = node(view, from.dir, from.name)?.ok_or(Errno::NOENT)?;
    let dst = node(view, to.dir, to.name)?;
    if flags.noreplace && dst.is_some() {
        return Err(Errno::EXIST.into());
    }
    if flags.exchange && dst.is_none() {
        return Err(Errno::NOENT.into());
    }
    let nothing_to_do = dst.as_ref().is_some_and(|dst| dst.ino == src.ino);
    if nothing_to_do {
        // Two links of one inode, or one entry under its own name.
        return Ok(Plan::answer(Renamed::Done(None)));
    }
    let src_record = src.record.clone().ok_or(Errno::NOENT)?;
    check(cx, &from, &to, &src, &src_record, dst.as_ref())?;

    let mut guards = vec![parent::identity(from.dir, &from.record)];
    let (mut left, mut entered) = (Vec::new(), Vec::new());
    if from.dir != to.dir {
        guards.push(parent::identity(to.dir, &to.record));
        if src.kind == Kind::Dir {
            check_no_cycle(view, src.ino, to.dir, &mut guards)?;
        }
        (left, entered) = quota::crossed(view, cx, from.dir, to.dir, &mut guards)?;
        if !left.is_empty() || !entered.is_empty() {
            let moving = [Some(&src), dst.as_ref().filter(|_| flags.exchange)];
            let uncounted = |node: &&Node| node.kind == Kind::Dir && !counted.contains_key(&node.ino);
            if let Some(dir) = moving.into_iter().flatten().find(uncounted) {
                return Ok(Plan::answer(Renamed::Count(dir.ino)));
            }
        }
    }
    guards.push(Guard::Field(key::dir(from.dir), key::name(from.name), Some(src.value.clone())));
    guards.push(Guard::Field(key::dir(to.dir), key::name(to.name), dst.as_ref().map(|dst| dst.value.clone())));
    let renaming = Move { view, cx, from, to, src, src_record, left, entered, counted, guards };
    match (dst, flags.exchange) {
        (Some(dst), true) => renaming.exchange(dst),
        (dst, _) => renaming.replace(dst),
    }
}

impl Move<'_> {
    fn exchange(mut self, dst: Node) -> Result<Plan<Renamed>, Stop> {
        let dst_record = dst.record.as_ref().ok_or(Errno::NOENT)?;
        let mut guards = std::mem::take(&mut self.guards);
        let Move { view, cx, from, to, src, src_record, .. } = &self;
        let same_dir = from.dir == to.dir;
        if !same_dir && dst.kind == Kind::Dir {
            check_no_cycle(view, dst.ino, from.dir, &mut guards)?;
        }
        let (dst_guard, dst_writes) = relocate(cx, dst.ino, dst_record, to.dir, from.dir);
        let (src_guard, src_writes) = relocate(cx, src.ino, src_record, from.dir, to.dir);
        guards.extend([dst_guard, src_guard]);
        let subdirs = i32::from(dst.kind == Kind::Dir) - i32::from(src.kind == Kind::Dir);

        let mut writes = dst_writes;
        writes.push(Write::HSet(key::dir(from.dir), key::name(from.name), dst.value.clone()));
        if !same_dir {
            writes.extend(parent::touch(cx, from.dir, &from.record, subdirs));
        }
        writes.extend(src_writes);
        writes.push(Write::HSet(key::dir(to.dir), key::name(to.name), src.value.clone()));
        writes.extend(parent::touch(cx, to.dir, &to.record, if same_dir { 0 } else { -subdirs }));
        let mut tally = Tally::new(view, cx);
        if !same_dir {
            let (there, back) = (self.usage_of(src, src_record), self.usage_of(&dst, dst_record));
            let net = |there: Usage, back: Usage| Usage { space: there.space - back.space, inodes: there.inodes - back.inodes };
            quota::check_entered(cx, &self.entered, net(there, back))?;
            quota::check_entered(cx, &self.left, net(back, there))?;
            self.move_usage(&mut tally, (from.dir, to.dir), &src_record.attr, there);
            self.move_usage(&mut tally, (to.dir, from.dir), &dst_record.attr, back);
        }
        tally.put(&mut guards, &mut writes);
        Ok(Plan::new(guards, writes, Renamed::Done(None)))
    }

    fn replace(mut self, dst: Option<Node>) -> Result<Plan<Renamed>, Stop> {
        let mut guards = std::mem::take(&mut self.guards);
        let Move { view, cx, from, to, src, src_record, .. } = &self;
        let same_dir = from.dir == to.dir;
        let mut writes = vec![Write::HDel(key::dir(from.dir), key::name(from.name))];
        let mut tally = Tally::new(view, cx);
        // Subdirectories that `from` and `to` gain.
        let (mut from_subdirs, mut to_subdirs) = (0, 0);
        let (mut deleted, mut while_closed) = (None, None);
        if let Some(dst) = dst {
            let victim = Victim { dir: to.dir, name: to.name, entry: dst.value, ino: dst.ino, record: dst.record };
            let dropped = match (src.kind == Kind::Dir, dst.kind == Kind::Dir) {
                (true, false) => return Err(Errno::NOTDIR.into()),
                (false, true) => return Err(Errno::ISDIR.into()),
                (true, true) => {
                    if !view.hash_is_empty(&key::dir(dst.ino))? {
                        return Err(Errno::NOTEMPTY.into());
                    }
                    to_subdirs -= 1;
                    drop_dir(view, cx, &victim, &mut tally)?
                }
                (false, false) => drop_link(view, cx, &victim, &mut tally)?,
            };
            guards.extend(dropped.guards);
            writes.extend(dropped.writes);
            (deleted, while_closed) = (dropped.deleted, dropped.while_closed);
        }
        if !same_dir && src.kind == Kind::Dir {
            from_subdirs -= 1;
            to_subdirs += 1;
        }
        let (src_guard, src_writes) = relocate(cx, src.ino, src_record, from.dir, to.dir);
        guards.push(src_guard);
        if !same_dir {
            if !from.dir.is_trash() {
                writes.extend(parent::touch(cx, from.dir, &from.record, from_subdirs));
            } else if src.kind == Kind::Dir && view.hash_is_empty(&key::dir(src.ino))? {
                // It lost its statistics when it was deleted. Those of one that was filled again in the trash are left to the client that counts them.
                guards.push(Guard::HashEmpty(key::dir(src.ino)));
                tally.begin_dir(src.ino, &mut writes);
            }
            let usage = self.usage_of(src, src_record);
            quota::check_entered(cx, &self.entered, usage)?;
            self.move_usage(&mut tally, (from.dir, to.dir), &src_record.attr, usage);
        }
        writes.extend(src_writes);
        writes.push(Write::HSet(key::dir(to.dir), key::name(to.name), src.value.clone()));
        writes.extend(parent::touch(cx, to.dir, &to.record, to_subdirs));
        tally.put(&mut guards, &mut writes);
        let mut plan = Plan::new(guards, writes, Renamed::Done(deleted));
        plan.while_closed = while_closed;
        Ok(plan)
    }

    /// What moves with a node between quotas.
    fn usage_of(&self, node: &Node, record: &Record) -> Usage {
        self.counted.get(&node.ino).copied().unwrap_or(Usage { space: record.attr.space(), inodes: 1 })
    }

    /// What moves leaves the statistics of one directory and enters those of another, and takes all that is below it from quota to quota.
    fn move_usage(&self, tally: &mut Tally, (from, to): (Ino, Ino), attr: &Attr, usage: Usage) {
        tally.listed_child(from, attr, -1);
        tally.listed_child(to, attr, 1);
        let forth = from == self.from.dir;
        let (left, entered) = if forth { (&self.left, &self.entered) } else { (&self.entered, &self.left) };
        left.iter().for_each(|dir| tally.quota(*dir, Usage { space: -usage.space, inodes: -usage.inodes }));
        entered.iter().for_each(|dir| tally.quota(*dir, usage));
    }
}

impl Meta {
    /// Gives an entry another name and place. What has that name is replaced, kept (EEXIST), or takes the old place, as `flags` say.
    pub async fn rename(&self, caller: &Caller, from: Ino, name: &Name, to: Ino, new_name: &Name, flags: RenameFlags) -> Result<(), Errno> {
        self.rename_if(caller, (from, name), (to, new_name), flags, |_, _| Ok(())).await
    }

    /// The same on a condition, which is decided on what is read and confirmed with the rest.
    pub(crate) async fn rename_if(
        &self,
        caller: &Caller,
        from: (Ino, &Name),
        to: (Ino, &Name),
        flags: RenameFlags,
        may: impl Fn(&View, &Cx) -> Result<(), Stop> + Send + Sync,
    ) -> Result<(), Errno> {
        let mut counted = Counted::new();
        // Each round counts one directory; there are two at most, and others come only if the entries change meanwhile.
        for _ in 0..COUNTS_MAX {
            let renamed = self
                .run_trashing("rename", caller, |view, cx| may(view, cx).and_then(|()| step(view, cx, from, to, flags, &counted)))
                .await?;
            match renamed {
                Renamed::Done(deleted) => {
                    if let Some((ino, length)) = deleted {
                        self.ask(Duty::DeleteFile { ino, length });
                    }
                    return Ok(());
                }
                Renamed::Count(dir) => drop(counted.insert(dir, self.tree_usage(dir).await?)),
            }
        }
        Err(Errno::IO)
    }
}
