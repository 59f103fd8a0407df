//! Which client of a volume does a periodic job (metadata §5.5, §17): the one that finds its last run long enough ago.

use crate::meta::client::Cx;
use crate::meta::codec::decode_decimal;
use crate::meta::store::{Guard, Key, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Meta, key};
use crate::types::{Caller, Civil, Errno, Ino, parse_rfc3339};
use bytes::Bytes;
use std::time::Duration;
use tracing::warn;

fn step(view: &View, cx: &Cx, counter: &Key, seconds: i64) -> Result<Plan<bool>, Stop> {
    let stored = view.string(counter)?;
    let last = decode_decimal(stored.as_deref()).ok_or(Errno::IO)?;
    if last > cx.now.sec.saturating_sub(seconds) {
        return Ok(Plan::answer(false));
    }
    Ok(Plan::new(vec![Guard::Value(counter.clone(), stored)], vec![Write::Set(counter.clone(), key::decimal(cx.now.sec))], true))
}

/// The right to take the backup that is due.
#[derive(Debug, PartialEq, Eq)]
pub struct BackupTurn {
    /// What others now take for the time of the last backup.
    ours: Bytes,
    /// What stood there before.
    before: Option<Bytes>,
}

/// The time of the last backup is an extended attribute of the root (metadata §17), unlike that of other jobs.
fn backup_step(view: &View, cx: &Cx, period: i64) -> Result<Plan<Option<BackupTurn>>, Stop> {
    let hash = key::xattr(Ino::ROOT);
    let before = view.field(&hash, key::LAST_BACKUP)?;
    let last = before.as_ref().and_then(|text| parse_rfc3339(std::str::from_utf8(text).ok()?));
    if let (None, Some(text)) = (last, &before) {
        warn!("the time of the last backup cannot be read: {:?}; taking one now", String::from_utf8_lossy(text));
    }
    // A time that is far ahead comes from a clock that was wrong, and would keep everybody from ever taking one.
    if last.is_some_and(|last| last > cx.now.sec.saturating_sub(period) && last <= cx.now.sec.saturating_add(period)) {
        return Ok(Plan::answer(None));
    }
    let ours = Bytes::from(Civil::of(cx.now.sec).rfc3339());
    let guards = vec![Guard::Field(hash.clone(), key::LAST_BACKUP, before.clone())];
    let writes = vec![Write::HSet(hash, key::LAST_BACKUP, ours.clone())];
    Ok(Plan::new(guards, writes, Some(BackupTurn { ours, before })))
}

fn give_back_step(view: &View, turn: &BackupTurn) -> Result<Plan<()>, Stop> {
    let hash = key::xattr(Ino::ROOT);
    let now = view.field(&hash, key::LAST_BACKUP)?;
    if now.as_ref() != Some(&turn.ours) {
        return Ok(Plan::answer(()));
    }
    let write = match &turn.before {
        Some(before) => Write::HSet(hash.clone(), key::LAST_BACKUP, before.clone()),
        None => Write::HDel(hash.clone(), key::LAST_BACKUP),
    };
    Ok(Plan::new(vec![Guard::Field(hash, key::LAST_BACKUP, now)], vec![write], ()))
}

impl Meta {
    /// Whether this client is to take a backup now, of which one is due every `period`. Until then all others take it for taken.
    pub async fn elect_backup(&self, period: Duration) -> Result<Option<BackupTurn>, Errno> {
        let period = i64::try_from(period.as_secs()).unwrap_or(i64::MAX);
        self.run("elect backup", &Caller::root(), |view, cx| backup_step(view, cx, period)).await
    }

    /// There was no backup after all: it is due again, for anybody.
    pub async fn give_back_backup(&self, turn: &BackupTurn) -> Result<(), Errno> {
        self.run("give back a backup", &Caller::root(), |view, _| give_back_step(view, turn)).await
    }

    /// Whether this client is to do a job now that is due every `seconds`; if so the others will not, until then. `counter` is the job's key.
    pub async fn elect(&self, counter: &Key, seconds: i64) -> Result<bool, Errno> {
        self.run("elect", &Caller::root(), |view, cx| step(view, cx, counter, seconds)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::ops::chunk::testing::{World, ready};
    use crate::meta::store::{Query, Value};

    #[test]
    fn one_client_takes_the_backup_and_a_failure_leaves_it_due() {
        let world = World::new();
        let other = world.neighbour();
        let (hour, stored) = (Duration::from_secs(3600), || world.store.get(Query::HGet(key::xattr(Ino::ROOT), key::LAST_BACKUP)));
        let elect = |meta: &Meta| ready(meta.elect_backup(hour)).unwrap();
        let turn = elect(&world.meta).expect("none was ever taken");
        assert_eq!(stored(), Value::Bytes(Some(Civil::of(world.now().sec).rfc3339().into())));
        assert_eq!(elect(&other), None);
        ready(world.meta.give_back_backup(&turn)).unwrap();
        assert_eq!(stored(), Value::Bytes(None));
        let turn = elect(&other).expect("due again");
        world.clock.advance(hour - Duration::from_secs(1));
        assert_eq!(elect(&world.meta), None);
        world.clock.advance(Duration::from_secs(1));
        let rival = world.neighbour();
        world.store.before_commit(move || assert!(ready(rival.elect_backup(hour)).unwrap().is_some()));
        assert_eq!(elect(&world.meta), None, "the rival was first");
        // Whose turn is long over changes nothing.
        let before = stored();
        ready(other.give_back_backup(&turn)).unwrap();
        assert_eq!(stored(), before);
        for (text, due) in [("2001-01-01T00:00:00+02:00", true), ("2101-01-01T00:00:00Z", true), ("yesterday", true)] {
            world.store.put(Write::HSet(key::xattr(Ino::ROOT), key::LAST_BACKUP, text.into()));
            assert_eq!(elect(&world.neighbour()).is_some(), due, "{text}");
        }
    }

    #[test]
    fn one_of_several_and_again_when_it_is_due() {
        let world = World::new();
        let other = world.neighbour();
        let elect = |meta: &Meta| ready(meta.elect(&key::LAST_CLEANUP_TRASH, 3240)).unwrap();
        assert!(elect(&world.meta));
        assert_eq!(world.counter(key::LAST_CLEANUP_TRASH), world.now().sec);
        assert!(!elect(&other) && !elect(&world.meta));
        world.clock.advance(Duration::from_secs(3240));
        // Two at the same moment: the second one meets what the first has written.
        let rival = world.neighbour();
        world.store.before_commit(move || assert!(ready(rival.elect(&key::LAST_CLEANUP_TRASH, 3240)).unwrap()));
        assert!(!elect(&other));
    }
}
