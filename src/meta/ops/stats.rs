//! Usage counters: of the volume (metadata §10.1), of directories (§10.2), of quotas (§10.3), and the limits they are held against.

use crate::meta::codec::decode_decimal;
use crate::meta::driver::errno_of;
use crate::meta::key;
use crate::meta::ops::quota::{self, Of, Usage};
use crate::meta::setting::Setting;
use crate::meta::store::{Guard, Key, Query, Store, StoreError, Value, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Cx, Meta};
use crate::types::{Attr, Errno, Ino};
use bytes::Bytes;

/// The hashes of the statistics of directories.
const STATISTICS: [Key; 3] = [key::DIR_USED_INODES, key::DIR_DATA_LENGTH, key::DIR_USED_SPACE];

/// Begins the statistics of an empty root at nothing. `format` does not make them, changes do not make absent ones, and the check of other clients calls a
/// root without them broken. Those of a root that has entries already are left to the client that counts them.
pub(crate) fn begin_root_step(view: &View, cx: &Cx) -> Result<Plan<()>, Stop> {
    let (root, field) = (key::dir(Ino::ROOT), key::decimal(Ino::ROOT));
    let queries = STATISTICS.map(|hash| Query::HGet(hash, field.clone()));
    view.want(queries.into_iter().chain([Query::HLen { key: root.clone(), limit: 1 }]))?;
    let mut absent = cx.setting.dir_stats();
    for hash in STATISTICS {
        absent &= view.field(&hash, field.clone())?.is_none();
    }
    if !absent || !view.hash_is_empty(&root)? {
        return Ok(Plan::new(Vec::new(), Vec::new(), ()));
    }
    let (mut guards, mut writes) = (vec![Guard::HashEmpty(root)], Vec::new());
    guards.extend(STATISTICS.map(|hash| Guard::Field(hash, field.clone(), None)));
    Tally::new(view, cx).begin_dir(Ino::ROOT, &mut writes);
    Ok(Plan::new(guards, writes, ()))
}

/// What is in a directory that contains no other, by its statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Bytes of its files.
    pub length: u64,
    /// Bytes, each inode rounded up to 4 KiB.
    pub space: u64,
    /// Names.
    pub inodes: u64,
}

/// Directories asked about at once.
const LEAVES_AT_ONCE: usize = 256;

/// The statistics of those among these directories that contain none (two links); `None` for the others, and where there are none that can
/// be right. They are as good as all clients keep them: whoever wants to be sure counts.
pub async fn leaves(store: &dyn Store, setting: &Setting, dirs: &[(Ino, &Attr)]) -> Result<Vec<Option<Leaf>>, StoreError> {
    let is_leaf = |attr: &Attr| attr.is_dir() && attr.nlink == 2 && setting.dir_stats();
    let mut found = Vec::with_capacity(dirs.len());
    for dirs in dirs.chunks(LEAVES_AT_ONCE) {
        let wanted = dirs.iter().filter(|(_, attr)| is_leaf(attr));
        let queries: Vec<Query> = wanted.flat_map(|(ino, _)| STATISTICS.map(|hash| Query::HGet(hash, key::decimal(ino)))).collect();
        let values = store.read(&queries).await?;
        let mut numbers = values.iter().map(|value| match value {
            Value::Bytes(Some(text)) => decode_decimal(Some(text)).and_then(|number| u64::try_from(number).ok()),
            _ => None,
        });
        for (_, attr) in dirs {
            let leaf = if is_leaf(attr) { [(); 3].map(|()| numbers.next().flatten()) } else { [None; 3] };
            found.push(match leaf {
                [Some(inodes), Some(length), Some(space)] => Some(Leaf { length, space, inodes }),
                _ => None,
            });
        }
    }
    Ok(found)
}

impl Meta {
    /// `leaves` of this volume.
    pub async fn leaves(&self, dirs: &[(Ino, &Attr)]) -> Result<Vec<Option<Leaf>>, Errno> {
        leaves(&**self.store(), &self.setting(), dirs).await.map_err(|e| errno_of("read the statistics of directories", &e))
    }
}

/// What one commit changes in counters. They commute, so they stand behind all other writes and are not guarded.
pub(crate) struct Tally<'a> {
    view: &'a View,
    cx: &'a Cx<'a>,
    guards: Vec<Guard>,
    counters: Vec<Write>,
}

impl<'a> Tally<'a> {
    /// Nothing changes yet.
    pub fn new(view: &'a View, cx: &'a Cx<'a>) -> Tally<'a> {
        Tally { view, cx, guards: Vec::new(), counters: Vec::new() }
    }

    /// Counters of the volume.
    pub fn volume(&mut self, dspace: i64, dinodes: i64) {
        self.add(Write::IncrBy(key::USED_SPACE, dspace));
        self.add(Write::IncrBy(key::TOTAL_INODES, dinodes));
    }

    /// Counters of the volume and of the owner of an inode.
    pub fn owned(&mut self, attr: &Attr, dspace: i64, dinodes: i64) -> Result<(), Stop> {
        self.volume(dspace, dinodes);
        self.owner((attr.uid, attr.gid), dspace, dinodes)
    }

    /// Counters of a user and a group.
    pub fn owner(&mut self, (uid, gid): (u32, u32), dspace: i64, dinodes: i64) -> Result<(), Stop> {
        if self.cx.setting.user_group_quota() {
            for of in [Of::User(uid), Of::Group(gid)] {
                let change = Usage { space: dspace, inodes: dinodes };
                quota::charge_owner(self.view, self.cx, of, change, &mut self.guards)?.into_iter().for_each(|write| self.add(write));
            }
        }
        Ok(())
    }

    /// The volume gains (`sign` 1) or loses (−1) this inode.
    pub fn inode(&mut self, attr: &Attr, sign: i64) -> Result<(), Stop> {
        self.owned(attr, sign * attr.space(), sign)
    }

    /// The statistics of a new directory begin at nothing.
    pub fn begin_dir(&self, dir: Ino, writes: &mut Vec<Write>) {
        if self.cx.setting.dir_stats() {
            writes.extend(STATISTICS.map(|hash| Write::HSet(hash, key::decimal(dir), Bytes::from_static(b"0"))));
        }
    }

    /// The direct children of a directory change, and with them what is used below every directory above.
    pub fn children(&mut self, dir: Ino, dlen: i64, dspace: i64, dinodes: i64) -> Result<(), Stop> {
        self.listed(dir, dlen, dspace, dinodes);
        for dir in quota::above(self.view, self.cx, dir, &mut self.guards)? {
            self.quota(dir, Usage { space: dspace, inodes: dinodes });
        }
        Ok(())
    }

    /// The usage of the quota of a directory changes.
    pub fn quota(&mut self, dir: Ino, change: Usage) {
        quota::charge_dir(dir, change).into_iter().for_each(|write| self.add(write));
    }

    /// Statistics of the direct children of a directory change. Only statistics that are there are changed: an absent one means "not counted yet", and a
    /// number that begins with our delta would be believed.
    pub fn listed(&mut self, dir: Ino, dlen: i64, dspace: i64, dinodes: i64) {
        if self.cx.setting.dir_stats() {
            self.add(Write::HIncrIfPresent(key::DIR_DATA_LENGTH, key::decimal(dir), dlen));
            self.add(Write::HIncrIfPresent(key::DIR_USED_SPACE, key::decimal(dir), dspace));
            self.add(Write::HIncrIfPresent(key::DIR_USED_INODES, key::decimal(dir), dinodes));
        }
    }

    /// A directory gains (`sign` 1) or loses (−1) a child.
    pub fn child(&mut self, dir: Ino, attr: &Attr, sign: i64) -> Result<(), Stop> {
        self.children(dir, sign * attr.data_length(), sign * attr.space(), sign)
    }

    /// The same for statistics alone: what moves is charged to quotas with all that is below it.
    pub fn listed_child(&mut self, dir: Ino, attr: &Attr, sign: i64) {
        self.listed(dir, sign * attr.data_length(), sign * attr.space(), sign);
    }

    /// Adds a counter, or to one that is there already.
    fn add(&mut self, write: Write) {
        let Some((place, delta)) = delta_of(&write) else { return self.counters.push(write) };
        for counter in &mut self.counters {
            if delta_of(counter).is_some_and(|(other, _)| other == place) {
                match counter {
                    Write::IncrBy(_, sum) | Write::HIncrBy(_, _, sum) | Write::HIncrIfPresent(_, _, sum) => {
                        *sum = sum.saturating_add(delta)
                    }
                    _ => {}
                }
                return;
            }
        }
        self.counters.push(write);
    }

    /// Ends the tally: its conditions, and its counters behind what is written already.
    pub fn put(self, guards: &mut Vec<Guard>, writes: &mut Vec<Write>) {
        guards.extend(self.guards);
        // Usage of owners is written also where it stays: the field must be there.
        let counts = |counter: &Write| !matches!(counter, Write::IncrBy(_, 0) | Write::HIncrIfPresent(_, _, 0));
        writes.extend(self.counters.into_iter().filter(counts));
    }
}

/// Which counter a write changes, and by how much.
fn delta_of(write: &Write) -> Option<((Key, Option<Bytes>), i64)> {
    match write {
        Write::IncrBy(key, delta) => Some(((key.clone(), None), *delta)),
        Write::HIncrBy(key, field, delta) | Write::HIncrIfPresent(key, field, delta) => Some(((key.clone(), Some(field.clone())), *delta)),
        _ => None,
    }
}

/// Space and inodes the volume uses now. Crashed peers can leave a counter below zero; it reads as zero.
pub(crate) fn used(view: &View) -> Result<(u64, u64), Stop> {
    view.want([Query::Get(key::USED_SPACE), Query::Get(key::TOTAL_INODES)])?;
    let read = |key| {
        let value = view.string(&key)?;
        decode_decimal(value.as_deref()).map(|n| u64::try_from(n).unwrap_or(0)).ok_or(Stop::Fail(Errno::IO))
    };
    Ok((read(key::USED_SPACE)?, read(key::TOTAL_INODES)?))
}

/// ENOSPC if growing by this much would pass a limit of the volume. The counters are not guarded: every creator would conflict with
/// every other one. So limits are soft by what is in flight.
pub(crate) fn check_room(view: &View, cx: &Cx, dspace: i64, dinodes: i64) -> Result<(), Stop> {
    let (capacity, inodes) = (cx.setting.capacity(), cx.setting.inodes());
    let limits = (capacity > 0 && dspace > 0) || (inodes > 0 && dinodes > 0);
    if !limits {
        return Ok(());
    }
    let (space_used, inodes_used) = used(view)?;
    let exceeds = |limit: u64, used: u64, delta: i64| limit > 0 && delta > 0 && used.saturating_add_signed(delta) > limit;
    if exceeds(capacity, space_used, dspace) || exceeds(inodes, inodes_used, dinodes) {
        return Err(Errno::NOSPC.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::ops::chunk::testing::ready;
    use crate::meta::ops::names_test::World;
    use crate::types::Kind;

    #[test]
    fn leaves_are_told_by_their_statistics_and_others_are_not() {
        let w = ready(World::new());
        let made = ready(async {
            let (leaf, full, strange) = (
                w.make(Ino::ROOT, "leaf", Kind::Dir).await,
                w.make(Ino::ROOT, "full", Kind::Dir).await,
                w.make(Ino::ROOT, "no", Kind::Dir).await,
            );
            w.make(full, "inner", Kind::Dir).await;
            for name in ["a", "b"] {
                w.make(leaf, name, Kind::File).await;
            }
            w.write(&[Write::HSet(key::DIR_USED_SPACE, key::decimal(strange), "-4096".into())]).await;
            [leaf, full, strange, w.make(leaf, "file", Kind::File).await]
        });
        let attrs = made.map(|ino| ready(w.meta.getattr(ino)).unwrap());
        let dirs: Vec<_> = made.into_iter().zip(&attrs).collect();
        let leaf = Some(Leaf { length: 0, space: 3 * 4096, inodes: 3 });
        assert_eq!(ready(w.meta.leaves(&dirs)), Ok(vec![leaf, None, None, None]));
        assert_eq!(ready(w.meta.leaves(&[])), Ok(vec![]));
        ready(w.write(&[Write::HDel(key::DIR_DATA_LENGTH, key::decimal(made[0]))]));
        assert_eq!(ready(w.meta.leaves(&dirs[..1])), Ok(vec![None]));
    }
}
