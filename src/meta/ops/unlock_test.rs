//! Unlocking without waiting: who finds what free, what the store is told and when, and what becomes of it when things go wrong.

use super::trips_test::Host;
use crate::meta::Meta;
use crate::meta::key;
use crate::meta::ops::lock::LockKind::{self, Exclusive as W, Shared as R, Unlock as U};
use crate::meta::ops::unlock::{Locked, RELEASE_AFTER, Unlocked};
use crate::meta::store::{Query, Store, Value, Write};
use crate::types::{Errno, Ino, Kind};
use bytes::Bytes;
use std::time::Duration;

const ROOT: Ino = Ino::ROOT;

/// Two hosts which know that they are alone on the volume, and a file.
async fn hosts() -> (Host, Host, Ino) {
    let a = Host::new().await;
    let b = a.other().await;
    let file = a.make(ROOT, "f", Kind::File).await;
    for host in [&a, &b] {
        host.meta.examine_sessions().await.expect("examines");
        host.store.take();
        assert!(host.meta.unlocks_at_once());
    }
    (a, b, file)
}

async fn lock(host: &Host, file: Ino, owner: u64, range: (u64, u64), kind: LockKind) -> Result<(), Errno> {
    host.meta.set_lock(file, owner, 1, range.0, range.1, kind).await.map(drop)
}

async fn unlock(host: &Host, file: Ino, owner: u64, range: (u64, u64)) -> Unlocked {
    host.meta.unlock_at_once(file, owner, Locked::Range(range.0, range.1)).await
}

async fn relock(host: &Host, file: Ino, owner: u64, range: (u64, u64), kind: LockKind) -> bool {
    host.meta.relock_at_once(file, owner, 1, Locked::Range(range.0, range.1), kind).await != Unlocked::No
}

async fn stored(host: &Host, hash: &[u8]) -> usize {
    let values = host.volume.read(&[Query::HGetAll(Bytes::copy_from_slice(hash))]).await.expect("reads");
    let [Value::Pairs(fields)] = &values[..] else { panic!("{values:?}") };
    fields.len()
}

async fn listed(host: &Host) -> usize {
    let values = host.volume.read(&[Query::SMembers(key::locked(1))]).await.expect("reads");
    let [Value::List(members)] = &values[..] else { panic!("{values:?}") };
    members.len()
}

#[tokio::test]
async fn an_unlock_costs_no_exchange_and_the_next_lock_carries_it() {
    let (a, b, file) = hosts().await;
    lock(&a, file, 1, (0, 0), W).await.expect("is free");
    lock(&a, file, 1, (5, 5), W).await.expect("is free");
    a.store.take();
    assert_eq!(unlock(&a, file, 1, (5, 5)).await, Unlocked::First);
    a.took("");
    lock(&a, file, 1, (9, 9), W).await.expect("is free");
    a.took("commit");
    lock(&b, file, 1, (5, 5), W).await.expect("was released by the same commit");
    assert_eq!(lock(&b, file, 1, (0, 0), W).await, Err(Errno::AGAIN));
    // What is left of it is told by whoever is on the way.
    assert_eq!(unlock(&a, file, 1, (0, u64::MAX)).await, Unlocked::Noted);
    assert_eq!(lock(&b, file, 1, (0, 0), W).await, Err(Errno::AGAIN));
    a.store.take();
    a.meta.release_now(file).await.expect("tells");
    // This store does not tell a of b's lock.
    a.took("conflict commit");
    lock(&b, file, 1, (0, 9), W).await.expect("is free");
    assert_eq!((stored(&a, &key::plock(file)).await, listed(&a).await), (1, 0), "b's");
}

#[tokio::test]
async fn other_owners_of_the_process_find_it_free() {
    let (a, b, file) = hosts().await;
    lock(&a, file, 1, (0, 9), W).await.expect("is free");
    assert_eq!(unlock(&a, file, 1, (0, 9)).await, Unlocked::First);
    assert_eq!(a.meta.get_lock(file, 2, 0, 9, W).await, Ok(None));
    a.store.take();
    lock(&a, file, 2, (0, 9), W).await.expect("is free here");
    a.took("commit");
    assert_eq!((stored(&a, &key::plock(file)).await, listed(&a).await), (1, 1));
    assert_eq!(lock(&a, file, 1, (0, 0), R).await, Err(Errno::AGAIN), "it is the other's now");
    // The same of BSD locks.
    a.meta.flock(file, 1, W).await.expect("is free");
    assert_eq!(a.meta.unlock_at_once(file, 1, Locked::File).await, Unlocked::Noted);
    a.meta.flock(file, 2, W).await.expect("is free here");
    assert_eq!(b.meta.flock(file, 1, R).await, Err(Errno::AGAIN));
    assert_eq!(stored(&a, &key::flock(file)).await, 1);
}

#[tokio::test]
async fn who_unlocked_it_has_it_back_for_a_moment() {
    let (a, b, file) = hosts().await;
    lock(&a, file, 1, (0, 9), W).await.expect("is free");
    assert!(!relock(&a, file, 1, (0, 9), W).await, "nothing is unlocked");
    unlock(&a, file, 1, (0, 9)).await;
    a.store.take();
    assert!(relock(&a, file, 1, (0, 4), R).await, "less of it");
    assert!(relock(&a, file, 1, (2, 2), W).await);
    assert!(!relock(&a, file, 1, (0, 10), R).await, "more than the store says");
    assert!(!relock(&a, file, 2, (0, 1), R).await, "somebody else");
    a.took("");
    // Only what it has now is what it holds.
    a.meta.release_now(file).await.expect("tells");
    lock(&b, file, 1, (5, 9), W).await.expect("is free");
    lock(&b, file, 1, (0, 1), R).await.expect("is shared");
    assert_eq!(lock(&b, file, 1, (2, 2), R).await, Err(Errno::AGAIN));
    lock(&b, file, 1, (0, 9), U).await.expect("releases");
    // Again and again is for others to have a turn, too.
    lock(&a, file, 1, (0, 9), W).await.expect("is free");
    unlock(&a, file, 1, (0, 9)).await;
    assert!(relock(&a, file, 1, (0, 9), W).await);
    a.clock.advance(RELEASE_AFTER);
    unlock(&a, file, 1, (0, 9)).await;
    assert!(!relock(&a, file, 1, (0, 9), W).await);
    lock(&a, file, 1, (0, 9), W).await.expect("by the store");
    unlock(&a, file, 1, (0, 9)).await;
    assert!(relock(&a, file, 1, (0, 9), W).await, "the store was told in between");
    // A BSD lock only as it was.
    a.meta.flock(file, 1, R).await.expect("is free");
    a.meta.unlock_at_once(file, 1, Locked::File).await;
    assert_eq!(a.meta.relock_at_once(file, 1, 1, Locked::File, W).await, Unlocked::No);
    assert_eq!(a.meta.relock_at_once(file, 1, 1, Locked::File, R).await, Unlocked::Noted);
    assert_eq!(b.meta.flock(file, 1, W).await, Err(Errno::AGAIN));
}

#[tokio::test]
async fn a_writer_becomes_a_reader_without_an_exchange() {
    let (a, b, file) = hosts().await;
    lock(&a, file, 1, (0, 9), W).await.expect("is free");
    a.store.take();
    assert!(!relock(&a, file, 1, (0, 9), W).await, "it has that");
    assert!(!relock(&a, file, 1, (5, 10), R).await, "more than it has");
    assert!(relock(&a, file, 1, (0, 4), R).await);
    a.took("");
    assert_eq!(lock(&a, file, 2, (5, 5), R).await, Err(Errno::AGAIN));
    lock(&a, file, 2, (0, 4), R).await.expect("is shared here");
    lock(&b, file, 1, (0, 4), R).await.expect("is shared: the other owner's commit has told");
    assert_eq!(lock(&b, file, 1, (5, 5), R).await, Err(Errno::AGAIN));
    a.meta.flock(file, 1, W).await.expect("is free");
    assert_ne!(a.meta.relock_at_once(file, 1, 1, Locked::File, R).await, Unlocked::No);
    a.meta.release_now(file).await.expect("tells");
    b.meta.flock(file, 1, R).await.expect("is shared");
    assert_eq!(b.meta.flock(file, 1, W).await, Err(Errno::AGAIN));
}

#[tokio::test]
async fn what_may_have_lapsed_goes_to_the_store() {
    let (a, _b, file) = hosts().await;
    lock(&a, file, 1, (0, 9), W).await.expect("is free");
    a.clock.advance(Duration::from_secs(2));
    assert_eq!(unlock(&a, file, 1, (0, 9)).await, Unlocked::No);
    // So does whatever another make of client may be waiting for, and what was never locked.
    lock(&a, file, 1, (0, 8), W).await.expect("is held");
    let document = Bytes::from_static(br#"{"Version":"1.4.1","HostName":"h"}"#);
    let join = [Write::HSet(key::SESSION_INFOS, key::decimal(77), document)];
    a.volume.commit(&[], &join, &[]).await.expect("joins");
    a.meta.examine_sessions().await.expect("examines");
    assert_eq!(unlock(&a, file, 1, (0, 9)).await, Unlocked::No);
    assert_eq!(unlock(&a, file, 2, (0, 9)).await, Unlocked::No);
}

#[tokio::test]
async fn a_lock_lost_before_its_release_is_no_lock() {
    let (a, b, file) = hosts().await;
    lock(&a, file, 1, (0, 9), W).await.expect("is free");
    unlock(&a, file, 1, (0, 4)).await;
    // Away: another client has cleaned up, and taken it.
    let gone = Write::HDel(key::plock(file), key::lock_field(1, 1));
    a.volume.commit(&[], &[gone], &[]).await.expect("cleans");
    lock(&b, file, 1, (0, 9), W).await.expect("is free");
    a.meta.release_now(file).await.expect("there is nothing to release");
    assert_eq!(stored(&a, &key::plock(file)).await, 1, "what b holds stays");
    assert_eq!(lock(&a, file, 1, (5, 5), W).await, Err(Errno::IO), "5-9 was not unlocked, and is not ours any more");
    assert!(a.meta.is_lock_lost(file));
}

#[tokio::test]
async fn closing_releases_what_was_unlocked_before() {
    let (a, b, file) = hosts().await;
    lock(&a, file, 1, (0, 9), W).await.expect("is free");
    unlock(&a, file, 1, (0, 4)).await;
    a.meta.release_locks(file, 1).await.expect("releases");
    lock(&b, file, 1, (0, 9), W).await.expect("is free");
    a.store.take();
    a.meta.release_now(file).await.expect("nothing to do");
    a.took("");
    assert_eq!(stored(&a, &key::plock(file)).await, 1);
}

#[tokio::test]
async fn somebody_tells_the_store_by_himself() {
    let (a, b, file) = hosts().await;
    lock(&a, file, 1, (0, 9), W).await.expect("is free");
    assert_eq!(unlock(&a, file, 1, (0, 9)).await, Unlocked::First);
    a.meta.release_unlocked(file).await;
    lock(&b, file, 1, (0, 9), W).await.expect("is free");
    lock(&b, file, 1, (0, 9), U).await.expect("releases");
    // And the next one begins anew.
    lock(&a, file, 1, (0, 9), W).await.expect("is free");
    assert_eq!(unlock(&a, file, 1, (0, 9)).await, Unlocked::First);
}

/// Owners of two hosts that lock, unlock and lock again at random never hold the same byte exclusively, as they see it themselves; what they
/// hold is there, and when everything is unlocked nothing is left.
#[tokio::test]
async fn at_random_nobody_holds_what_another_does() {
    let (a, b, file) = hosts().await;
    let mut random = 0x2545_F491_4F6C_DD17_u64;
    let mut next = |n: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % n
    };
    const BYTES: usize = 6;
    let owners: [(&Meta, u64); 4] = [(&a.meta, 1), (&a.meta, 2), (&b.meta, 1), (&b.meta, 2)];
    let mut held = [[U; BYTES]; 4];
    let mut granted = [0; 2];
    for round in 0..3000 {
        let n = next(4) as usize;
        let (meta, owner) = owners[n];
        let start = next(BYTES as u64);
        let end = start + next(BYTES as u64 - start);
        let bytes = start as usize..=end as usize;
        let what = Locked::Range(start, end);
        match next(8) {
            0 => a.clock.advance(Duration::from_micros(300)),
            1 => owners[n].0.release_now(file).await.expect("tells"),
            2..=4 => {
                if meta.unlock_at_once(file, owner, what).await == Unlocked::No {
                    meta.set_lock(file, owner, 1, start, end, U).await.expect("unlocks");
                }
                held[n][bytes].fill(U);
            }
            _ => {
                let kind = if next(2) == 0 { R } else { W };
                let at_once = meta.relock_at_once(file, owner, 1, what, kind).await != Unlocked::No;
                let ours = at_once || meta.set_lock(file, owner, 1, start, end, kind).await.is_ok();
                granted[usize::from(at_once)] += u32::from(ours);
                if ours {
                    held[n][bytes.clone()].fill(kind);
                    for (other, has) in held.iter().enumerate().filter(|(other, _)| *other != n) {
                        let excluded = has[bytes.clone()].iter().any(|has| *has == W || kind == W && *has == R);
                        assert!(!excluded, "round {round}: {n} got {kind:?} {start}-{end}, {other} has {has:?}");
                    }
                }
            }
        }
    }
    assert!(granted.iter().all(|n| *n > 20), "both ways: {granted:?}");
    for (meta, owner) in owners {
        meta.set_lock(file, owner, 1, 0, 9, U).await.expect("unlocks");
    }
    assert_eq!((stored(&a, &key::plock(file)).await, listed(&a).await), (0, 0));
}

#[tokio::test]
async fn a_writer_that_became_a_reader_and_asks_again_leaves_nothing_behind() {
    let (a, b, file) = hosts().await;
    a.meta.flock(file, 1, W).await.expect("is free");
    assert_eq!(a.meta.relock_at_once(file, 1, 1, Locked::File, R).await, Unlocked::First);
    // Before the store is told: it is asked for anew, as the kernel does.
    assert_eq!(a.meta.relock_at_once(file, 1, 1, Locked::File, R).await, Unlocked::No);
    a.meta.flock(file, 1, R).await.expect("has it");
    b.meta.flock(file, 1, R).await.expect("is shared by now");
    assert_eq!(a.meta.unlock_at_once(file, 1, Locked::File).await, Unlocked::Noted);
    a.meta.release_now(file).await.expect("tells");
    b.meta.flock(file, 1, W).await.expect("is alone");
    assert_eq!(stored(&a, &key::flock(file)).await, 1);
}
