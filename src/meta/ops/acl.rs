//! POSIX ACLs (metadata §11): reading, setting and inheriting them. The kernel checks them.
//!
//! Rules never change and are never removed: what an id stands for is remembered as long as the store loses nothing. A rule that no id stands for yet gets the next
//! one in the commit that uses it.

use crate::meta::acl::{AclKind, Rule};
use crate::meta::client::Cx;
use crate::meta::codec::decode_decimal;
use crate::meta::store::{Guard, Query, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Meta, key};
use crate::types::{Asker, Attr, Caller, Errno, Flags, Ino};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

const SET_ID: u16 = 0o7000;
const SGID: u16 = libc::S_ISGID as u16;

/// Rules and their ids, as far as they are known.
#[derive(Default)]
pub(crate) struct Acls(Mutex<Table>);

#[derive(Default)]
struct Table {
    rules: HashMap<u32, Arc<Rule>>,
    ids: HashMap<Arc<Rule>, u32>,
    /// All ids up to this one have been looked at.
    complete_to: u32,
}

impl Acls {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().expect("never poisoned: no code under it panics")
    }

    /// Ids may stand for other rules from now on.
    pub fn forget(&self) {
        *self.table() = Table::default();
    }

    fn rule(&self, id: u32) -> Option<Arc<Rule>> {
        self.table().rules.get(&id).cloned()
    }

    fn id(&self, rule: &Rule) -> Option<u32> {
        self.table().ids.get(rule).copied()
    }

    fn note(&self, id: u32, rule: Rule) {
        let rule = Arc::new(rule);
        let mut table = self.table();
        table.rules.insert(id, rule.clone());
        // Two clients may have stored the same rule at once; either id will do.
        table.ids.entry(rule).or_insert(id);
    }
}

/// What an id stands for; a rule that is missing or damaged is EIO.
pub(crate) fn rule(view: &View, cx: &Cx, id: u32) -> Result<Arc<Rule>, Stop> {
    if let Some(rule) = cx.known.acls.rule(id) {
        return Ok(rule);
    }
    let stored = view.field(&key::ACL, key::decimal(id))?.ok_or(Errno::IO)?;
    let rule = Rule::decode(&stored).ok_or(Errno::IO)?;
    cx.known.acls.note(id, rule.clone());
    Ok(Arc::new(rule))
}

/// Read, write, and enter or execute.
pub const READ: u16 = 4;
/// See `READ`.
pub const WRITE: u16 = 2;
/// See `READ`.
pub const ENTER: u16 = 1;

/// EACCES unless `asker` may do all of `want` (the sum of `READ`, `WRITE`, `ENTER`), as the kernel would decide (metadata §11.4).
pub(crate) fn check(view: &View, cx: &Cx, asker: &Asker, attr: &Attr, want: u16) -> Result<(), Stop> {
    if asker.is_root() {
        return Ok(());
    }
    let minimal;
    let stored;
    let rule = if attr.access_acl != 0 && cx.setting.enable_acl() {
        stored = rule(view, cx, attr.access_acl)?;
        &*stored
    } else {
        minimal = Rule { owner: Some(attr.mode >> 6 & 7), group: Some(attr.mode >> 3 & 7), other: Some(attr.mode & 7), ..Rule::default() };
        &minimal
    };
    let grants = |perm: u16| perm & want == want;
    let masked = |perm: u16| perm & rule.mask.unwrap_or(7);
    let allowed = if asker.uid == attr.uid {
        grants(rule.owner.unwrap_or(0))
    } else if let Some((_, perm)) = rule.users.iter().find(|(uid, _)| *uid == asker.uid) {
        grants(masked(*perm))
    } else {
        let own_group = asker.gids.contains(&attr.gid).then_some(rule.group.unwrap_or(0));
        let named = rule.groups.iter().filter(|(gid, _)| asker.gids.contains(gid)).map(|(_, perm)| *perm);
        let mut groups = own_group.into_iter().chain(named).peekable();
        // Any group that grants all of it is enough; others do not matter once a group matches.
        if groups.peek().is_some() { groups.any(|perm| grants(masked(perm))) } else { grants(rule.other.unwrap_or(0)) }
    };
    if allowed { Ok(()) } else { Err(Errno::ACCES.into()) }
}

/// The id of a rule; 0 for an empty one. A new rule is stored with the commit.
pub(crate) fn id_of(view: &View, cx: &Cx, rule: &Rule, guards: &mut Vec<Guard>, writes: &mut Vec<Write>) -> Result<u32, Stop> {
    if rule.is_empty() {
        return Ok(0);
    }
    if let Some(id) = cx.known.acls.id(rule) {
        return Ok(id);
    }
    // Others may have stored it since we looked.
    let stored = view.string(&key::ACL_MAX_ID)?;
    let last = decode_decimal(stored.as_deref()).and_then(|last| u32::try_from(last).ok()).ok_or(Errno::IO)?;
    let first = cx.known.acls.table().complete_to.saturating_add(1);
    let unseen = || (first..=last).map(key::decimal);
    view.want(unseen().map(|id| Query::HGet(key::ACL, id)))?;
    for id in first..=last {
        // An id that was taken for a rule that was never stored, or is damaged, is none of ours.
        if let Some(other) = view.field(&key::ACL, key::decimal(id))?.and_then(|bytes| Rule::decode(&bytes)) {
            cx.known.acls.note(id, other);
        }
    }
    {
        let mut table = cx.known.acls.table();
        table.complete_to = table.complete_to.max(last);
    }
    if let Some(id) = cx.known.acls.id(rule) {
        return Ok(id);
    }
    let id = last.checked_add(1).ok_or(Errno::IO)?;
    guards.push(Guard::Value(key::ACL_MAX_ID, stored));
    guards.push(Guard::Field(key::ACL, key::decimal(id), None));
    writes.push(Write::IncrBy(key::ACL_MAX_ID, 1));
    writes.push(Write::HSet(key::ACL, key::decimal(id), rule.encode()));
    Ok(id)
}

fn stored_id(attr: &Attr, kind: AclKind) -> u32 {
    match kind {
        AclKind::Access => attr.access_acl,
        AclKind::Default => attr.default_acl,
    }
}

fn get_step(view: &View, cx: &Cx, ino: Ino, kind: AclKind) -> Result<Plan<Arc<Rule>>, Stop> {
    let attr = view.record(ino)?.ok_or(Errno::NOENT)?.attr;
    match stored_id(&attr, kind) {
        0 => Err(Errno::NODATA.into()),
        id => Ok(Plan::answer(rule(view, cx, id)?)),
    }
}

/// `clears_sgid`: the kernel has found that the caller is not in the group of the inode.
fn set_step(view: &View, cx: &Cx, ino: Ino, kind: AclKind, rule: &Rule, clears_sgid: bool) -> Result<Plan<()>, Stop> {
    let record = view.record(ino)?.ok_or(Errno::NOENT)?;
    let old = &record.attr;
    if old.is_trashed() && !cx.open_files.is_open(ino) || ino.is_trash() || old.flags.any(Flags::IMMUTABLE) {
        return Err(Errno::PERM.into());
    }
    if cx.caller.uid != 0 && cx.caller.uid != old.uid {
        return Err(Errno::PERM.into());
    }
    if kind == AclKind::Default && !old.is_dir() {
        return if rule.is_empty() { Ok(Plan::answer(())) } else { Err(Errno::ACCES.into()) };
    }
    let (mut guards, mut writes) = (Vec::new(), Vec::new());
    let mut new = old.clone();
    if clears_sgid && cx.caller.uid != 0 {
        new.mode &= !SGID;
    }
    match kind {
        AclKind::Default => {
            let rule = if rule.is_empty() { Rule::default() } else { rule.clone().filled(old.mode) };
            new.default_acl = id_of(view, cx, &rule, &mut guards, &mut writes)?;
        }
        AclKind::Access if rule.is_empty() => new.access_acl = 0,
        AclKind::Access => {
            let rule = rule.clone().filled(old.mode);
            new.mode = new.mode & SET_ID | rule.mode_bits();
            new.access_acl = if rule.is_minimal() { 0 } else { id_of(view, cx, &rule, &mut guards, &mut writes)? };
        }
    }
    if new == *old {
        return Ok(Plan::answer(()));
    }
    new.ctime = cx.now;
    // The record may change its length: it is written whole.
    guards.push(Guard::Value(key::inode(ino), Some(record.bytes.clone())));
    writes.push(Write::Set(key::inode(ino), record.rewrite(&new)));
    Ok(Plan::new(guards, writes, ()))
}

impl Meta {
    /// EACCES unless `asker` may do all of `want` with what has these attributes.
    pub async fn check_access(&self, asker: &Asker, attr: &Attr, want: u16) -> Result<(), Errno> {
        self.answer("check access", &Caller::root(), |view, cx| check(view, cx, asker, attr, want).map(Plan::answer)).await
    }

    /// An ACL of an inode; ENODATA if it has none.
    pub async fn get_acl(&self, ino: Ino, kind: AclKind) -> Result<Arc<Rule>, Errno> {
        self.answer("get ACL", &Caller::root(), |view, cx| get_step(view, cx, ino, kind)).await
    }

    /// Sets an ACL; an empty rule removes it. `clears_sgid`: the caller may not keep the set-group-id bit.
    pub async fn set_acl(&self, caller: &Caller, ino: Ino, kind: AclKind, rule: &Rule, clears_sgid: bool) -> Result<(), Errno> {
        self.run("set ACL", caller, |view, cx| set_step(view, cx, ino, kind, rule, clears_sgid)).await
    }
}
