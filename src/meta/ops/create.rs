//! Creating: mknod, mkdir, symlink, and files without a name (metadata §6.6).

use crate::meta::codec;
use crate::meta::key;
use crate::meta::ops::quota::{self, Usage};
use crate::meta::ops::stats::Tally;
use crate::meta::ops::{acl, parent};
use crate::meta::store::{Guard, Query, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Cx, Meta};
use crate::types::{Attr, Caller, Errno, Flags, Ino, Kind, Name};
use bytes::Bytes;

/// Length of a directory in its record.
const DIR_BYTES: u64 = 4096;
/// A symlink's target is shorter than this (metadata §6.6).
const TARGET_BYTES_MAX: usize = 4096;

/// What is to be created.
#[derive(Clone, Copy, Debug)]
pub struct NewNode<'a> {
    /// Type.
    pub kind: Kind,
    /// Permission bits as asked for.
    pub mode: u16,
    /// Bits that are taken away from them.
    pub umask: u16,
    /// Device number, for what has one.
    pub rdev: u32,
    /// Target, for a symlink.
    pub target: &'a [u8],
}

impl NewNode<'_> {
    fn check(&self) -> Result<(), Stop> {
        if self.kind != Kind::Symlink {
            return Ok(());
        }
        if self.target.is_empty() || self.target.contains(&0) {
            return Err(Errno::INVAL.into());
        }
        if self.target.len() >= TARGET_BYTES_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        Ok(())
    }

    /// The attributes of what is created in `parent`; a new ACL rule among them is stored with the commit.
    fn attr(&self, view: &View, cx: &Cx, parent: Ino, dir: &Attr, guards: &mut Vec<Guard>, writes: &mut Vec<Write>) -> Result<Attr, Stop> {
        let inherits_group = u32::from(dir.mode) & libc::S_ISGID != 0;
        let mut mode = self.mode & !self.umask & 0o7777;
        let (mut access_acl, mut default_acl) = (0, 0);
        if cx.setting.enable_acl() && dir.default_acl != 0 && self.kind != Kind::Symlink {
            // The directory says what its new things get, instead of the umask.
            let (rule, bits) = acl::rule(view, cx, dir.default_acl)?.inherited(self.mode & 0o7777);
            mode = bits;
            if let Some(rule) = rule {
                access_acl = acl::id_of(view, cx, &rule, guards, writes)?;
            }
            if self.kind == Kind::Dir {
                default_acl = dir.default_acl;
            }
        }
        if inherits_group && self.kind == Kind::Dir {
            mode |= libc::S_ISGID as u16;
        }
        Ok(Attr {
            flags: Flags(dir.flags.0 & Flags::SKIP_TRASH),
            kind: self.kind,
            mode,
            uid: cx.caller.uid,
            gid: if inherits_group { dir.gid } else { cx.caller.gid },
            atime: cx.now,
            mtime: cx.now,
            ctime: cx.now,
            nlink: if self.kind == Kind::Dir { 2 } else { 1 },
            length: match self.kind {
                Kind::Dir => DIR_BYTES,
                Kind::Symlink => self.target.len() as u64,
                _ => 0,
            },
            rdev: if matches!(self.kind, Kind::Dir | Kind::Symlink) { 0 } else { self.rdev },
            parent,
            access_acl,
            default_acl,
            tier: dir.tier,
        })
    }
}

/// `ino` is fresh. Its record is guarded absent all the same: if the counter of inode numbers has ever gone back, an error is better
/// than two files in one.
pub(crate) fn step(view: &View, cx: &Cx, dir: Ino, name: &Name, node: &NewNode, ino: Ino) -> Result<Plan<(Ino, Attr)>, Stop> {
    parent::check_place(dir, name)?;
    node.check()?;
    view.want([Query::Get(key::inode(dir)), Query::Entry { dir: key::dir(dir), name: key::name(name) }])?;
    let dir_record = parent::growing(view, dir)?;
    if view.field(&key::dir(dir), key::name(name))?.is_some() {
        return Err(Errno::EXIST.into());
    }
    let (mut acl_guards, mut acl_writes) = (Vec::new(), Vec::new());
    let attr = node.attr(view, cx, dir, &dir_record.attr, &mut acl_guards, &mut acl_writes)?;
    quota::check(view, cx, (attr.uid, attr.gid), &[dir], Usage { space: attr.space(), inodes: 1 })?;

    let is_dir = node.kind == Kind::Dir;
    let mut guards =
        vec![parent::identity(dir, &dir_record), Guard::Field(key::dir(dir), key::name(name), None), Guard::Value(key::inode(ino), None)];
    guards.extend(acl_guards);
    let mut writes = acl_writes;
    writes.push(Write::Set(key::inode(ino), codec::encode_attr(&attr)));
    writes.extend(parent::touch(cx, dir, &dir_record, i32::from(is_dir)));
    if node.kind == Kind::Symlink {
        writes.push(Write::Set(key::symlink(ino), Bytes::copy_from_slice(node.target)));
    }
    writes.push(Write::HSet(key::dir(dir), key::name(name), codec::encode_entry(node.kind, ino)));
    let mut tally = Tally::new(view, cx);
    if is_dir {
        tally.begin_dir(ino, &mut writes);
    }
    tally.inode(&attr, 1)?;
    tally.child(dir, &attr, 1)?;
    tally.put(&mut guards, &mut writes);
    // That a fresh directory is empty is worth knowing: whoever makes one often goes on to fill it.
    let reads = if is_dir { vec![Query::HLen { key: key::dir(ino), limit: 1 }] } else { Vec::new() };
    Ok(Plan { reads, ..Plan::new(guards, writes, (ino, attr)) })
}

/// A file that no directory names: nlink 0, kept by the session until its last handle closes or it is linked. The directory only
/// lends its group and records where it was made; nothing in it changes.
pub(crate) fn unnamed_step(view: &View, cx: &Cx, dir: Ino, node: &NewNode, ino: Ino) -> Result<Plan<Attr>, Stop> {
    // Without a session nobody would ever find the file again to delete it.
    if cx.sid == 0 {
        return Err(Errno::NOTSUP.into());
    }
    if dir.is_trash() {
        return Err(Errno::PERM.into());
    }
    let dir_record = parent::growing(view, dir)?;
    let (mut acl_guards, mut acl_writes) = (Vec::new(), Vec::new());
    let attr = node.attr(view, cx, dir, &dir_record.attr, &mut acl_guards, &mut acl_writes)?;
    let attr = Attr { nlink: 0, ..attr };
    quota::check(view, cx, (attr.uid, attr.gid), &[], Usage { space: attr.space(), inodes: 1 })?;
    let mut guards = vec![parent::identity(dir, &dir_record), Guard::Value(key::inode(ino), None)];
    guards.extend(acl_guards);
    let mut writes = acl_writes;
    writes.push(Write::Set(key::inode(ino), codec::encode_attr(&attr)));
    writes.push(Write::SAdd(key::sustained(cx.sid), key::decimal(ino)));
    let mut tally = Tally::new(view, cx);
    tally.inode(&attr, 1)?;
    tally.put(&mut guards, &mut writes);
    Ok(Plan::new(guards, writes, attr))
}

impl Meta {
    /// Creates a file, directory, symlink or special file. EEXIST if the name is taken.
    pub async fn create(&self, caller: &Caller, parent: Ino, name: &Name, node: NewNode<'_>) -> Result<(Ino, Attr), Errno> {
        let ino = self.next_inode().await?;
        self.run("create", caller, |view, cx| step(view, cx, parent, name, &node, ino)).await
    }
}
