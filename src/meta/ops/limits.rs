//! Setting quotas, and counting anew what they use (metadata §10.4). Holding changes against them is in `quota.rs`.

use crate::meta::client::Cx;
use crate::meta::codec::{Record, decode_decimal, decode_quota, encode_quota};
use crate::meta::driver::errno_of;
use crate::meta::ops::parent;
use crate::meta::ops::quota::{Of, Quota, Usage};
use crate::meta::store::{Cursor, Guard, Query, ScanRange, Value, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Meta, key};
use crate::types::{Caller, Errno, Ino, Kind};
use bytes::Bytes;
use std::collections::HashMap;

/// Entries, or inodes, counted at once.
const PAGE: u32 = 1000;

/// Limits and usage as they are stored, byte for byte.
struct Stored {
    limits: Option<Bytes>,
    space: Option<Bytes>,
    inodes: Option<Bytes>,
}

fn stored(view: &View, of: Of) -> Result<Stored, Stop> {
    let keys = of.keys();
    view.want(keys.iter().map(|hash| Query::HGet(hash.clone(), of.field())))?;
    let [limits, space, inodes] = keys;
    Ok(Stored {
        limits: view.field(&limits, of.field())?,
        space: view.field(&space, of.field())?,
        inodes: view.field(&inodes, of.field())?,
    })
}

/// Every mount looks at this number each second, and reads all quotas when it has changed.
fn tell() -> Write {
    Write::IncrBy(key::QUOTA_CHANGES, 1)
}

fn set_step(view: &View, _cx: &Cx, of: Of, space: Option<i64>, inodes: Option<i64>) -> Result<Plan<bool>, Stop> {
    let mut guards = Vec::new();
    if let Of::Dir(dir) = of {
        let record = parent::directory(view, dir)?;
        if dir.is_trash() || record.attr.parent.is_trash() {
            return Err(Errno::PERM.into());
        }
        // Who removes the directory removes its quota: not before it is set.
        guards.push(parent::identity(dir, &record));
    }
    let [limits, used_space, used_inodes] = of.keys();
    let old = stored(view, of)?;
    let (old_space, old_inodes) = old.limits.as_deref().and_then(decode_quota).unwrap_or((-1, -1));
    let new = encode_quota(space.unwrap_or(old_space), inodes.unwrap_or(old_inodes));
    guards.push(Guard::Field(limits.clone(), of.field(), old.limits.clone()));
    let mut writes = vec![Write::HSet(limits, of.field(), new)];
    // Peers find quotas by their usage: the three fields come together.
    for (hash, value) in [(used_space, &old.space), (used_inodes, &old.inodes)] {
        if value.is_none() {
            guards.push(Guard::Field(hash.clone(), of.field(), None));
            writes.push(Write::HSet(hash, of.field(), Bytes::from_static(b"0")));
        }
    }
    writes.push(tell());
    // What an owner uses is counted whether it is limited or not.
    let is_new = matches!(of, Of::Dir(_)) && (old.limits.is_none() || old.inodes.is_none());
    Ok(Plan::new(guards, writes, is_new))
}

fn remove_step(view: &View, of: Of) -> Result<Plan<bool>, Stop> {
    let old = stored(view, of)?;
    if old.limits.is_none() && old.inodes.is_none() {
        return Ok(Plan::answer(false));
    }
    let [limits, space, inodes] = of.keys();
    let mut writes = match of {
        Of::Dir(_) => [limits, space, inodes].map(|hash| Write::HDel(hash, of.field())).into(),
        // Its usage is counted on.
        Of::User(_) | Of::Group(_) => vec![Write::HSet(limits, of.field(), encode_quota(-1, -1))],
    };
    writes.push(tell());
    Ok(Plan::new(Vec::new(), writes, true))
}

/// Sets the usage if it is still `was`; false if it is not.
fn usage_step(view: &View, of: Of, was: Option<Usage>, usage: Usage) -> Result<Plan<bool>, Stop> {
    let old = stored(view, of)?;
    let number = |bytes: &Option<Bytes>| decode_decimal(bytes.as_deref());
    if was.is_some_and(|was| (number(&old.space), number(&old.inodes)) != (Some(was.space), Some(was.inodes))) {
        return Ok(Plan::answer(false));
    }
    let [limits, space, inodes] = of.keys();
    let mut guards = vec![Guard::Field(space.clone(), of.field(), old.space), Guard::Field(inodes.clone(), of.field(), old.inodes)];
    let mut writes = vec![
        Write::HSet(space, of.field(), key::decimal(usage.space)),
        Write::HSet(inodes, of.field(), key::decimal(usage.inodes)),
        tell(),
    ];
    match of {
        // One that was removed meanwhile stays so.
        Of::Dir(_) if old.limits.is_none() => return Ok(Plan::answer(true)),
        Of::Dir(_) => guards.push(Guard::Field(limits, of.field(), old.limits)),
        Of::User(_) | Of::Group(_) if old.limits.is_none() => {
            guards.push(Guard::Field(limits.clone(), of.field(), None));
            writes.insert(0, Write::HSet(limits, of.field(), encode_quota(-1, -1)));
        }
        Of::User(_) | Of::Group(_) => {}
    }
    Ok(Plan::new(guards, writes, true))
}

impl Meta {
    /// Sets limits, `None` leaves one as it is, 0 or less is none. Answers whether a directory has a quota for the first time: then its usage
    /// is still to be counted. ENOENT, ENOTDIR; EPERM for the trash.
    pub async fn set_limits(&self, of: Of, space: Option<i64>, inodes: Option<i64>) -> Result<bool, Errno> {
        self.run("set a quota", &Caller::root(), |view, cx| set_step(view, cx, of, space, inodes)).await
    }

    /// Removes the quota of a directory, or the limits of an owner; false if there is none.
    pub async fn remove_limits(&self, of: Of) -> Result<bool, Errno> {
        self.run("remove a quota", &Caller::root(), |view, _| remove_step(view, of)).await
    }

    /// Limits and usage as they are stored now; `None` if there is no quota.
    pub async fn quota(&self, of: Of) -> Result<Option<Quota>, Errno> {
        self.answer("read a quota", &Caller::root(), |view, _| {
            let stored = stored(view, of)?;
            let number = |bytes: &Option<Bytes>| decode_decimal(bytes.as_deref()).unwrap_or(0);
            let Some((space, inodes)) = stored.limits.as_deref().and_then(decode_quota) else { return Ok(Plan::answer(None)) };
            let used = Usage { space: number(&stored.space), inodes: number(&stored.inodes) };
            Ok(Plan::answer(Some(Quota { max: Usage { space, inodes }, used })))
        })
        .await
    }

    /// Sets what is used, if nothing was counted since it was `was`; `None` sets it in any case.
    pub async fn set_usage(&self, of: Of, was: Option<Usage>, usage: Usage) -> Result<bool, Errno> {
        self.run("repair a quota", &Caller::root(), |view, _| usage_step(view, of, was, usage)).await
    }

    /// Space and inodes below a directory, without itself, counted now. A file counts at each of its names. Changes made meanwhile may be
    /// counted or not.
    pub async fn count_below(&self, dir: Ino) -> Result<Usage, Errno> {
        let mut usage = Usage::default();
        let mut dirs = vec![dir];
        while let Some(at) = dirs.pop() {
            let mut cursor = Some(Cursor::new());
            while let Some(from) = cursor {
                let page = self.readdir(at, from, PAGE).await?;
                for entry in page.entries {
                    if entry.kind == Kind::Dir {
                        dirs.push(entry.ino);
                    }
                    usage.space = usage.space.saturating_add(entry.attr.as_ref().map_or(4096, |attr| attr.space()));
                    usage.inodes += 1;
                }
                cursor = page.next;
            }
        }
        Ok(usage)
    }

    /// What every user and group owns, the trash included, counted now.
    pub async fn count_owners(&self) -> Result<HashMap<Of, Usage>, Errno> {
        let failed = |e| errno_of("count owners", &e);
        let mut owners: HashMap<Of, Usage> = HashMap::new();
        // A scan may show a key twice.
        let mut seen = std::collections::HashSet::new();
        let range = ScanRange::Keys(Bytes::from_static(b"i"));
        let mut cursor = Some(Cursor::new());
        while let Some(from) = cursor {
            let page = self.driver.store.scan(&range, from, PAGE).await.map_err(failed)?;
            let inodes: Vec<Ino> = page
                .items
                .iter()
                .filter_map(|item| std::str::from_utf8(&item.name).ok()?.strip_prefix('i')?.parse().ok().map(Ino))
                .collect();
            let inodes: Vec<Ino> = inodes.into_iter().filter(|ino| *ino != Ino::ROOT && !ino.is_trash() && seen.insert(*ino)).collect();
            let queries: Vec<Query> = inodes.iter().map(|ino| Query::Get(key::inode(*ino))).collect();
            for value in self.driver.store.read(&queries).await.map_err(failed)? {
                let Value::Bytes(Some(bytes)) = value else { continue };
                let Some(Record { attr, .. }) = Record::decode(bytes) else { continue };
                for of in [Of::User(attr.uid), Of::Group(attr.gid)] {
                    let usage = owners.entry(of).or_default();
                    usage.space = usage.space.saturating_add(attr.space());
                    usage.inodes += 1;
                }
            }
            cursor = page.next;
        }
        Ok(owners)
    }

    /// Reads the quotas again if somebody says that they were changed. One small request.
    pub async fn notice_quotas(&self) -> Result<(), Errno> {
        if self.quota_changes().await? != self.known.quotas.changes() {
            // A first quota may have changed the setting, too. What is wrong with it was logged.
            let _ = self.reload_setting().await;
            self.load_quotas().await?;
        }
        Ok(())
    }

    /// How often quotas were changed.
    pub(crate) async fn quota_changes(&self) -> Result<i64, Errno> {
        let values =
            self.driver.store.read(&[Query::Get(key::QUOTA_CHANGES)]).await.map_err(|e| errno_of("look for changed quotas", &e))?;
        match values.first() {
            Some(Value::Bytes(count)) => Ok(decode_decimal(count.as_deref()).unwrap_or(0)),
            _ => Err(Errno::IO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::ops::chunk::testing::{World, ready};

    #[test]
    fn what_a_check_finds_is_repaired_unless_it_changed_meanwhile() {
        let world = World::new();
        let dir = world.inode(|attr| attr.kind = Kind::Dir);
        let of = Of::Dir(dir);
        assert_eq!(ready(world.meta.set_limits(of, Some(1 << 30), None)), Ok(true));
        assert_eq!(ready(world.meta.set_limits(of, None, Some(9))), Ok(false), "it has one");
        let quota = ready(world.meta.quota(of)).unwrap().unwrap();
        assert_eq!((quota.max, quota.used), (Usage { space: 1 << 30, inodes: 9 }, Usage::default()));
        let wrong = Usage { space: 4096, inodes: 7 };
        assert_eq!(ready(world.meta.set_usage(of, None, wrong)), Ok(true));
        let right = Usage { space: 8192, inodes: 2 };
        assert_eq!(ready(world.meta.set_usage(of, Some(Usage::default()), right)), Ok(false), "it is another");
        assert_eq!(ready(world.meta.set_usage(of, Some(wrong), right)), Ok(true));
        assert_eq!(ready(world.meta.quota(of)).unwrap().unwrap().used, right);
        // Other mounts notice by one number.
        let other = world.neighbour();
        ready(other.notice_quotas()).unwrap();
        assert_eq!(other.quotas().len(), 1);
        assert_eq!(ready(world.meta.remove_limits(of)), Ok(true));
        assert_eq!(ready(world.meta.remove_limits(of)), Ok(false));
        assert_eq!(ready(world.meta.set_usage(of, None, right)), Ok(true));
        assert_eq!(ready(world.meta.quota(of)), Ok(None), "what was removed stays so");
        ready(other.notice_quotas()).unwrap();
        assert_eq!(other.quotas(), []);
        assert_eq!(ready(world.meta.set_limits(Of::Dir(world.file(0)), Some(1), None)), Err(Errno::NOTDIR));
        assert_eq!(ready(world.meta.set_limits(Of::Dir(Ino(99)), Some(1), None)), Err(Errno::NOENT));
    }

    #[test]
    fn owners_are_counted_over_all_inodes() {
        let world = World::new();
        world.inode(|attr| (attr.uid, attr.gid, attr.length) = (5, 6, 5000));
        world.inode(|attr| (attr.uid, attr.gid, attr.kind) = (5, 7, Kind::Symlink));
        let owners = ready(world.meta.count_owners()).unwrap();
        assert_eq!(owners[&Of::User(5)], Usage { space: 8192 + 4096, inodes: 2 });
        assert_eq!(owners[&Of::Group(6)], Usage { space: 8192, inodes: 1 });
    }
}
