//! Quotas (metadata §10.3): what directories with all that is below them, users and groups may use, and what they use.
//!
//! Usage changes in the commit that causes it, so it is exact. Limits are held against usage as this process last knew it, which is at most
//! a heartbeat old but for its own changes: a counter that every commit guarded would put all writers in one row. So limits are soft by what
//! others have added since. A refusal is looked at again with fresh numbers.
//!
//! Which quotas a change counts for depends on the directories above it. Their parents are remembered and guarded: whoever moves one of
//! them moves its usage, and a change that was planned under the old place is planned anew.

use crate::meta::client::Cx;
use crate::meta::codec::{self, PARENT_AT, Record, decode_decimal, decode_quota};
use crate::meta::driver::errno_of;
use crate::meta::ops::lookup::DEPTH_MAX;
use crate::meta::ops::stats;
use crate::meta::store::{BytesRange, Guard, Key, Query, ScanRange, Value, Write};
use crate::meta::view::{Stop, View};
use crate::meta::{Meta, key};
use crate::types::{Errno, Ino};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Fields of a usage hash read at once.
const PAGE: u32 = 1000;
/// Before something is refused, usage is read again unless it is younger than this: what others have deleted counts soon, and a program that
/// goes on writing into a full quota costs one look a second.
const REFUSAL_AGE_MAX: Duration = Duration::from_secs(1);

/// Whose quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Of {
    /// A directory and all that is below it, without itself.
    Dir(Ino),
    /// Everything a user owns.
    User(u32),
    /// Everything of a group.
    Group(u32),
}

impl Of {
    /// Limits, used space, used inodes.
    pub(crate) fn keys(self) -> [Key; 3] {
        match self {
            Of::Dir(_) => [key::DIR_QUOTA, key::DIR_QUOTA_USED_SPACE, key::DIR_QUOTA_USED_INODES],
            Of::User(_) => [key::USER_QUOTA, key::USER_QUOTA_USED_SPACE, key::USER_QUOTA_USED_INODES],
            Of::Group(_) => [key::GROUP_QUOTA, key::GROUP_QUOTA_USED_SPACE, key::GROUP_QUOTA_USED_INODES],
        }
    }

    /// Its field in each of them.
    pub(crate) fn field(self) -> Bytes {
        match self {
            Of::Dir(ino) => key::decimal(ino),
            Of::User(id) | Of::Group(id) => key::decimal(id),
        }
    }

    /// From a usage hash and its field, and whether it counts inodes.
    fn counted_by(hash: &Key, field: &Bytes) -> Option<(Of, bool)> {
        let number = std::str::from_utf8(field).ok()?.parse::<u64>().ok()?;
        let id = u32::try_from(number);
        Some(match hash {
            hash if *hash == key::DIR_QUOTA_USED_SPACE => (Of::Dir(Ino(number)), false),
            hash if *hash == key::DIR_QUOTA_USED_INODES => (Of::Dir(Ino(number)), true),
            hash if *hash == key::USER_QUOTA_USED_SPACE => (Of::User(id.ok()?), false),
            hash if *hash == key::USER_QUOTA_USED_INODES => (Of::User(id.ok()?), true),
            hash if *hash == key::GROUP_QUOTA_USED_SPACE => (Of::Group(id.ok()?), false),
            hash if *hash == key::GROUP_QUOTA_USED_INODES => (Of::Group(id.ok()?), true),
            _ => return None,
        })
    }
}

/// Bytes (in 4 KiB) and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes.
    pub space: i64,
    /// Inodes.
    pub inodes: i64,
}

/// Limits and usage; a limit of zero or less is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Most that may be used.
    pub max: Usage,
    /// What is used; below zero only where a peer crashed.
    pub used: Usage,
}

impl Quota {
    fn exceeds(&self, growth: Usage) -> bool {
        let over = |max: i64, used: i64, growth: i64| max > 0 && growth > 0 && used.max(0).saturating_add(growth) > max;
        over(self.max.space, self.used.space, growth.space) || over(self.max.inodes, self.used.inodes, growth.inodes)
    }

    fn add(&mut self, change: Usage) {
        self.used.space = self.used.space.saturating_add(change.space);
        self.used.inodes = self.used.inodes.saturating_add(change.inodes);
    }
}

/// The quotas of the volume as last read, with what this process has changed since.
#[derive(Default)]
pub(crate) struct Quotas {
    table: Mutex<Table>,
    /// Whether any directory has one: asked by every operation.
    of_dirs: AtomicBool,
}

#[derive(Default)]
struct Table {
    quotas: HashMap<Of, Quota>,
    read_at: Option<Duration>,
    /// How often an operator had changed them then.
    changes: i64,
}

impl Quotas {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().expect("never poisoned: no code under it panics")
    }

    /// Whether any directory has a quota.
    pub fn of_dirs(&self) -> bool {
        self.of_dirs.load(Ordering::Acquire)
    }

    fn get(&self, of: Of) -> Option<Quota> {
        self.table().quotas.get(&of).copied()
    }

    /// How often an operator had changed quotas when they were read.
    pub fn changes(&self) -> i64 {
        self.table().changes
    }

    /// All that are known, in no order.
    pub fn all(&self) -> Vec<(Of, Quota)> {
        self.table().quotas.iter().map(|(of, quota)| (*of, *quota)).collect()
    }

    fn replace(&self, quotas: HashMap<Of, Quota>, now: Duration, changes: i64) {
        let of_dirs = quotas.keys().any(|of| matches!(of, Of::Dir(_)));
        *self.table() = Table { quotas, read_at: Some(now), changes };
        self.of_dirs.store(of_dirs, Ordering::Release);
    }

    fn is_older(&self, now: Duration, age: Duration) -> bool {
        self.table().read_at.is_none_or(|read_at| now.saturating_sub(read_at) > age)
    }

    /// Takes note of what was committed. Users and groups that were not known are now.
    pub fn note(&self, changes: &[(Of, Usage)]) {
        let mut table = self.table();
        for (of, change) in changes {
            match of {
                Of::Dir(_) => {
                    if let Some(quota) = table.quotas.get_mut(of) {
                        quota.add(*change);
                    }
                }
                Of::User(_) | Of::Group(_) => table.quotas.entry(*of).or_default().add(*change),
            }
        }
    }
}

/// What the writes of a plan change in usage.
pub(crate) fn changes(writes: &[Write]) -> Vec<(Of, Usage)> {
    let change = |write: &Write| {
        let (Write::HIncrBy(hash, field, delta) | Write::HIncrIfPresent(hash, field, delta)) = write else { return None };
        let (of, inodes) = Of::counted_by(hash, field)?;
        Some((of, if inodes { Usage { space: 0, inodes: *delta } } else { Usage { space: *delta, inodes: 0 } }))
    };
    writes.iter().filter_map(change).collect()
}

/// The directories with a quota from `dir` upwards. Guards say that it stays below them.
pub(crate) fn above(view: &View, cx: &Cx, dir: Ino, guards: &mut Vec<Guard>) -> Result<Vec<Ino>, Stop> {
    let mut found = Vec::new();
    if !cx.known.quotas.of_dirs() || !cx.setting.dir_stats() {
        return Ok(found);
    }
    let mut at = dir;
    for _ in 0..DEPTH_MAX {
        // What is in the trash counts for nobody but its owner.
        if at.is_trash() {
            return Ok(Vec::new());
        }
        if cx.known.quotas.get(Of::Dir(at)).is_some() {
            found.push(at);
        }
        if at == Ino::ROOT {
            return Ok(found);
        }
        match parent_of(view, cx, at, guards)? {
            Some(parent) => at = parent,
            // Damage: what is not below the root counts for what is known above it.
            None => return Ok(found),
        }
    }
    Err(Errno::LOOP.into())
}

fn parent_of(view: &View, cx: &Cx, dir: Ino, guards: &mut Vec<Guard>) -> Result<Option<Ino>, Stop> {
    let key = key::inode(dir);
    let is_known = view.want([Query::Get(key.clone())]).is_ok();
    let parent = match cx.known.parent(dir) {
        Some(parent) if !is_known => parent,
        _ => {
            let Some(Record { attr, .. }) = view.record(dir)? else { return Ok(None) };
            cx.known.note_parent(dir, attr.parent);
            attr.parent
        }
    };
    let range = BytesRange { from: PARENT_AT, to: Some(PARENT_AT + 8) };
    // A record before 1.0 has none; its first change gives it one.
    if parent != Ino(0) {
        guards.push(Guard::Bytes(key, vec![(range, Bytes::copy_from_slice(&parent.0.to_be_bytes()))]));
        return Ok(Some(parent));
    }
    Ok(None)
}

/// Whether an owner may use this much more, and the volume, and each of the directories: EDQUOT, ENOSPC, EDQUOT, in this order.
pub(crate) fn check(view: &View, cx: &Cx, (uid, gid): (u32, u32), dirs: &[Ino], growth: Usage) -> Result<(), Stop> {
    if growth.space <= 0 && growth.inodes <= 0 {
        return Ok(());
    }
    let is_full = |of| cx.known.quotas.get(of).is_some_and(|quota| quota.exceeds(growth));
    if cx.setting.user_group_quota() && (is_full(Of::User(uid)) || is_full(Of::Group(gid))) {
        return Err(Errno::DQUOT.into());
    }
    stats::check_room(view, cx, growth.space, growth.inodes)?;
    for dir in dirs {
        if above(view, cx, *dir, &mut Vec::new())?.into_iter().any(|dir| is_full(Of::Dir(dir))) {
            return Err(Errno::DQUOT.into());
        }
    }
    Ok(())
}

/// The counters of a quota, by `change`.
pub(crate) fn charge_dir(dir: Ino, change: Usage) -> [Write; 2] {
    let of = Of::Dir(dir);
    let [_, space, inodes] = of.keys();
    // If the quota is removed meanwhile it stays so.
    [Write::HIncrIfPresent(space, of.field(), change.space), Write::HIncrIfPresent(inodes, of.field(), change.inodes)]
}

/// The counters of an owner. One that was never counted gets all three fields: without them peers do not see it.
pub(crate) fn charge_owner(view: &View, cx: &Cx, of: Of, change: Usage, guards: &mut Vec<Guard>) -> Result<Vec<Write>, Stop> {
    let [limits, space, inodes] = of.keys();
    let mut writes = Vec::new();
    if cx.known.quotas.get(of).is_none() && view.field(&limits, of.field())?.is_none() {
        guards.push(Guard::Field(limits.clone(), of.field(), None));
        writes.push(Write::HSet(limits, of.field(), codec::encode_quota(-1, -1)));
    }
    writes.push(Write::HIncrBy(space, of.field(), change.space));
    writes.push(Write::HIncrBy(inodes, of.field(), change.inodes));
    Ok(writes)
}

/// The quotas a thing leaves and those it enters when it moves from one directory to another.
pub(crate) fn crossed(view: &View, cx: &Cx, from: Ino, to: Ino, guards: &mut Vec<Guard>) -> Result<(Vec<Ino>, Vec<Ino>), Stop> {
    let (mut left, mut entered) = (above(view, cx, from, guards)?, above(view, cx, to, guards)?);
    let both: Vec<Ino> = left.iter().copied().filter(|dir| entered.contains(dir)).collect();
    left.retain(|dir| !both.contains(dir));
    entered.retain(|dir| !both.contains(dir));
    Ok((left, entered))
}

/// EDQUOT if one of the directories cannot take this much more.
pub(crate) fn check_entered(cx: &Cx, dirs: &[Ino], growth: Usage) -> Result<(), Stop> {
    let full = dirs.iter().any(|dir| cx.known.quotas.get(Of::Dir(*dir)).is_some_and(|quota| quota.exceeds(growth)));
    if full { Err(Errno::DQUOT.into()) } else { Ok(()) }
}

impl Meta {
    /// The quotas as they were last read, in no order.
    pub fn quotas(&self) -> Vec<(Of, Quota)> {
        self.known.quotas.all()
    }

    /// Reads the quotas of the volume. Called at the start and with every heartbeat.
    pub async fn load_quotas(&self) -> Result<(), Errno> {
        // First: what is changed from here on is noticed again.
        let changes = self.quota_changes().await?;
        let mut quotas = HashMap::new();
        if self.setting().dir_stats() {
            self.load(key::DIR_QUOTA_USED_INODES, &mut quotas).await?;
        }
        if self.setting().user_group_quota() {
            self.load(key::USER_QUOTA_USED_INODES, &mut quotas).await?;
            self.load(key::GROUP_QUOTA_USED_INODES, &mut quotas).await?;
        }
        self.known.quotas.replace(quotas, self.driver.clock.elapsed(), changes);
        Ok(())
    }

    async fn load(&self, hash: Key, quotas: &mut HashMap<Of, Quota>) -> Result<(), Errno> {
        let failed = |e| errno_of("read quotas", &e);
        let scan = ScanRange::Hash(hash.clone());
        let mut cursor = Some(Default::default());
        while let Some(at) = cursor {
            let page = self.driver.store.scan(&scan, at, PAGE).await.map_err(failed)?;
            let owners: Vec<(Of, i64)> = page
                .items
                .iter()
                .filter_map(|item| Some((Of::counted_by(&hash, &item.name)?.0, decode_decimal(Some(&item.value))?)))
                .collect();
            let queries: Vec<Query> = owners
                .iter()
                .flat_map(|(of, _)| {
                    let [limits, space, _] = of.keys();
                    [Query::HGet(limits, of.field()), Query::HGet(space, of.field())]
                })
                .collect();
            let values = self.driver.store.read(&queries).await.map_err(failed)?;
            for ((of, inodes), values) in owners.iter().zip(values.as_chunks::<2>().0) {
                let [Value::Bytes(limits), Value::Bytes(space)] = values else { return Err(Errno::IO) };
                let (max_space, max_inodes) = limits.as_deref().and_then(decode_quota).unwrap_or((-1, -1));
                let used = Usage { space: decode_decimal(space.as_deref()).unwrap_or(0), inodes: *inodes };
                quotas.insert(*of, Quota { max: Usage { space: max_space, inodes: max_inodes }, used });
            }
            cursor = page.next;
        }
        Ok(())
    }

    /// Whether a refusal should be looked at again: usage was read anew, because what was known was old.
    pub(crate) async fn reload_before_refusing(&self) -> Result<bool, Errno> {
        if !self.known.quotas.is_older(self.driver.clock.elapsed(), REFUSAL_AGE_MAX) {
            return Ok(false);
        }
        self.load_quotas().await.map(|()| true)
    }

    /// What is below a directory and the directory itself, as its quota or a count of it says. Changes made meanwhile below it may be
    /// missed, so a caller that moves it between quotas can leave these off by as much.
    pub(crate) async fn tree_usage(&self, dir: Ino) -> Result<Usage, Errno> {
        let of = Of::Dir(dir);
        let [_, space, inodes] = of.keys();
        let queries = [Query::HGet(space, of.field()), Query::HGet(inodes, of.field())];
        let values = self.driver.store.read(&queries).await.map_err(|e| errno_of("read a quota", &e))?;
        let mut usage = Usage { space: 4096, inodes: 1 };
        if let [Value::Bytes(Some(space)), Value::Bytes(Some(inodes))] = &values[..]
            && let (Some(space), Some(inodes)) = (decode_decimal(Some(space)), decode_decimal(Some(inodes)))
        {
            usage.space = usage.space.saturating_add(space.max(0));
            usage.inodes = usage.inodes.saturating_add(inodes.max(0));
            return Ok(usage);
        }
        let below = self.count_below(dir).await?;
        usage.space = usage.space.saturating_add(below.space);
        usage.inodes = usage.inodes.saturating_add(below.inodes);
        Ok(usage)
    }

    /// The quotas that limit a directory, nearest first.
    pub(crate) async fn quotas_above(&self, dir: Ino) -> Result<Vec<Quota>, Errno> {
        let caller = crate::types::Caller::root();
        let dirs = self
            .run("find quotas", &caller, |view, cx| Ok(crate::meta::view::Plan::answer(above(view, cx, dir, &mut Vec::new())?)))
            .await?;
        Ok(dirs.into_iter().filter_map(|dir| self.known.quotas.get(Of::Dir(dir))).collect())
    }
}
