//! How many exchanges with the store an operation takes, in the sequences in which a kernel asks for them.

use crate::env::{Clock, ManualClock};
use crate::meta::ops::chunk::testing::slice;
use crate::meta::ops::lock::LockKind;
use crate::meta::ops::*;
use crate::meta::setting::Setting;
use crate::meta::store::counting::CountingStore;
use crate::meta::store::embedded::EmbeddedStore;
use crate::meta::store::{Query, Store, Value, Write};
use crate::meta::{AtimeMode, Meta, MetaConfig, codec, key};
use crate::types::{Attr, Caller, Errno, Ino, Kind, Name, Time};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const ROOT: Ino = Ino::ROOT;

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).expect("a test's name is valid")
}

fn node(kind: Kind) -> NewNode<'static> {
    NewNode { kind, mode: 0o644, umask: 0, rdev: 0, target: if kind == Kind::Symlink { b"target" } else { b"" } }
}

/// A client of a volume behind a network.
pub(super) struct Host {
    pub store: Arc<CountingStore>,
    pub clock: Arc<ManualClock>,
    pub meta: Arc<Meta>,
    pub volume: Arc<EmbeddedStore>,
}

impl Host {
    /// The first client of a new volume.
    pub async fn new() -> Host {
        Host::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Setting)) -> Host {
        let mut setting = Setting::new("vol", "uuid", "file", "/", 4096);
        change(&mut setting);
        let volume = Arc::new(EmbeddedStore::open_in_memory().expect("memory"));
        let root = Attr::new_dir(0o777, ROOT, Time::default());
        let mut writes = vec![Write::Set(key::inode(ROOT), codec::encode_attr(&root))];
        for hash in [key::DIR_DATA_LENGTH, key::DIR_USED_SPACE, key::DIR_USED_INODES] {
            writes.push(Write::HSet(hash, key::decimal(1), Bytes::from_static(b"0")));
        }
        volume.commit(&[], &writes, &[]).await.expect("commit");
        Host::joining(volume, Arc::new(ManualClock::new(Duration::from_secs(1000))), setting, Duration::ZERO).await
    }

    async fn joining(volume: Arc<EmbeddedStore>, clock: Arc<ManualClock>, setting: Setting, delay: Duration) -> Host {
        let store = Arc::new(CountingStore::new(volume.clone(), delay));
        let (duties, _) = mpsc::channel(100);
        let config = MetaConfig { store: store.clone(), clock: clock.clone(), setting, duties, atime: AtimeMode::Never };
        let meta = Arc::new(Meta::new(config));
        meta.new_session("/mnt").await.expect("begins");
        let host = Host { store, clock, meta, volume };
        // What is fetched ahead is there before the first request.
        host.settle().await;
        host.meta.getattr(ROOT).await.expect("the root");
        host.store.take();
        host
    }

    /// Another client of the same volume.
    pub async fn other(&self) -> Host {
        Host::joining(self.volume.clone(), self.clock.clone(), (*self.meta.setting()).clone(), Duration::ZERO).await
    }

    /// Lets background work end; nothing waits on this store.
    async fn settle(&self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    async fn lookup(&self, parent: Ino, text: &str) -> Result<(Ino, Attr), Errno> {
        let found = self.meta.lookup(&Caller::root(), parent, &name(text)).await;
        assert_eq!(self.store.take(), "read", "lookup {text}");
        found
    }

    /// Looks up the free name and creates it, as the kernel does.
    pub async fn make(&self, parent: Ino, text: &str, kind: Kind) -> Ino {
        assert_eq!(self.lookup(parent, text).await, Err(Errno::NOENT));
        let made = self.meta.create(&Caller::root(), parent, &name(text), node(kind)).await.expect("creates");
        assert_eq!(self.store.take(), "commit", "create {text}");
        made.0
    }

    #[track_caller]
    pub fn took(&self, calls: &str) {
        assert_eq!(self.store.take(), calls);
    }
}

#[tokio::test]
async fn names() {
    let (host, root) = (Host::new().await, Caller::root());
    let meta = &host.meta;
    let (a, b) = (name("a"), name("b"));
    let dir = host.make(ROOT, "d", Kind::Dir).await;
    // Into a directory just made, and of every kind.
    let file = host.make(dir, "a", Kind::File).await;
    let link = host.make(dir, "l", Kind::Symlink).await;
    host.make(dir, "p", Kind::Fifo).await;
    meta.getattr(file).await.expect("there");
    host.took("read");
    meta.readlink(link).await.expect("there");
    host.took("read");
    assert_eq!(meta.create(&root, dir, &a, node(Kind::File)).await, Err(Errno::EXIST));
    host.took("commit");

    assert_eq!(host.lookup(dir, "b").await, Err(Errno::NOENT));
    meta.link(&root, file, dir, &b).await.expect("links");
    host.took("commit");
    meta.unlink(&root, dir, &b).await.expect("unlinks");
    host.took("commit");
    assert_eq!(meta.unlink(&root, dir, &b).await, Err(Errno::NOENT));
    host.took("commit");
    assert_eq!(meta.rmdir(&root, ROOT, &name("d")).await, Err(Errno::NOTEMPTY));
    host.took("conflict");

    // To a new name, over a file, over a directory, to another directory.
    assert_eq!(host.lookup(dir, "c").await, Err(Errno::NOENT));
    meta.rename(&root, dir, &a, dir, &name("c"), RenameFlags::default()).await.expect("renames");
    host.took("commit");
    host.make(dir, "x", Kind::File).await;
    meta.rename(&root, dir, &name("c"), dir, &name("x"), RenameFlags::default()).await.expect("renames");
    host.took("commit");
    let (one, _) = (host.make(ROOT, "one", Kind::Dir).await, host.make(ROOT, "two", Kind::Dir).await);
    meta.rename(&root, ROOT, &name("one"), ROOT, &name("two"), RenameFlags::default()).await.expect("renames");
    host.took("commit");
    assert_eq!(host.lookup(one, "moved").await, Err(Errno::NOENT));
    meta.rename(&root, ROOT, &name("d"), one, &name("moved"), RenameFlags::default()).await.expect("renames");
    host.took("commit");
    // What the kernel knows from a listing needs no lookup either.
    let page = meta.readdir(dir, Default::default(), 100).await.expect("lists");
    host.took("scan");
    for entry in page.entries {
        let name = Name::new(&entry.name).expect("a name");
        meta.unlink(&root, dir, &name).await.expect("unlinks");
        host.took("commit");
    }
    meta.rmdir(&root, one, &name("moved")).await.expect("removes");
    host.took("commit");
}

#[tokio::test]
async fn what_was_not_looked_up_costs_one_more() {
    let (first, root) = (Host::new().await, Caller::root());
    let file = first.make(ROOT, "f", Kind::File).await;
    first.make(ROOT, "d", Kind::Dir).await;
    first.make(ROOT, "g", Kind::File).await;
    let host = first.other().await;
    let meta = &host.meta;
    meta.create(&root, ROOT, &name("new"), node(Kind::File)).await.expect("creates");
    host.took("read commit");
    meta.rename(&root, ROOT, &name("f"), ROOT, &name("h"), RenameFlags::default()).await.expect("renames");
    host.took("read commit");
    meta.rmdir(&root, ROOT, &name("d")).await.expect("removes");
    host.took("read commit");
    meta.unlink(&root, ROOT, &name("g")).await.expect("unlinks");
    host.took("read commit");
    let other = first.other().await;
    other.meta.setattr(&root, file, SetAttr { mode: Some(0o600), ..SetAttr::default() }).await.expect("sets");
    other.took("read commit");
}

#[tokio::test]
async fn stale_memory_costs_one_more_and_is_never_believed() {
    let (host, root) = (Host::new().await, Caller::root());
    let other = host.other().await;
    host.make(ROOT, "f", Kind::File).await;
    other.lookup(ROOT, "f").await.expect("there");
    assert_eq!(host.lookup(ROOT, "g").await, Err(Errno::NOENT));
    // The other host takes both names.
    other.meta.unlink(&root, ROOT, &name("f")).await.expect("unlinks");
    other.meta.create(&root, ROOT, &name("g"), node(Kind::File)).await.expect("creates");
    assert_eq!(meta_errno(host.meta.unlink(&root, ROOT, &name("f")).await), Errno::NOENT);
    host.took("conflict");
    assert_eq!(meta_errno(host.meta.create(&root, ROOT, &name("g"), node(Kind::File)).await.map(drop)), Errno::EXIST);
    host.took("conflict");
    host.lookup(ROOT, "g").await.expect("there");
    // And gives one back: the failure that memory suggests is not so any more.
    other.meta.unlink(&root, ROOT, &name("g")).await.expect("unlinks");
    host.meta.create(&root, ROOT, &name("g"), node(Kind::File)).await.expect("creates");
    host.took("conflict commit");
    // An answer that no guard covers is read: two names of one inode stay as they are.
    let (g, _) = host.lookup(ROOT, "g").await.expect("there");
    host.meta.link(&root, g, ROOT, &name("h")).await.expect("links");
    host.store.take();
    other.meta.unlink(&root, ROOT, &name("h")).await.expect("unlinks");
    host.meta.rename(&root, ROOT, &name("g"), ROOT, &name("h"), RenameFlags::default()).await.expect("renames");
    host.took("read commit");
    assert_eq!(host.lookup(ROOT, "h").await.expect("there").0, g);
}

fn meta_errno(outcome: Result<(), Errno>) -> Errno {
    outcome.expect_err("fails")
}

#[tokio::test]
async fn creators_in_one_directory_do_not_conflict() {
    let host = Host::new().await;
    let others = [host.other().await, host.other().await];
    for n in 0..20 {
        for (which, creator) in others.iter().enumerate() {
            host.clock.advance(Duration::from_millis(1));
            creator.make(ROOT, &format!("{which}-{n}"), if n % 2 == 0 { Kind::File } else { Kind::Dir }).await;
        }
    }
}

#[tokio::test]
async fn attributes_and_data() {
    let (host, root) = (Host::new().await, Caller::root());
    let meta = &host.meta;
    let file = host.make(ROOT, "f", Kind::File).await;
    let id = meta.next_slice().await.expect("an id");
    host.took("");
    meta.check_growth(file, 4096).await.expect("there is room");
    host.took("");
    meta.write(file, 0, &[slice(0, id, 4096)], host.meta.clock().now()).await.expect("writes");
    host.took("commit");
    let id = meta.next_slice().await.expect("an id");
    let (at, _) = meta.append(file, slice(0, id, 10), host.meta.clock().now()).await.expect("appends");
    assert_eq!(at, 4096);
    host.took("commit");
    meta.setattr(&root, file, SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() }).await.expect("sets");
    host.took("commit");
    meta.truncate(&root, file, 100).await.expect("truncates");
    host.took("commit");
    meta.set_xattr(&root, file, b"user.a", Bytes::from_static(b"1"), XattrMode::Any).await.expect("sets");
    host.took("commit");
    meta.get_xattr(file, b"user.a").await.expect("there");
    host.took("read");
    meta.open(&root, file, OpenMode::default()).await.expect("opens");
    host.took("read");
    // The first list came along; a commit of our own makes it old.
    let view = meta.recent_chunk(file, 0).expect("known");
    assert_eq!((view.attr.map(|attr| attr.length), view.records.is_empty()), (Some(100), false));
    let id = meta.next_slice().await.expect("an id");
    meta.write(file, 0, &[slice(0, id, 10)], host.meta.clock().now()).await.expect("writes");
    assert_eq!(meta.recent_chunk(file, 0), None);
    host.store.take();
    meta.close(file).await.expect("closes");
    host.took("");
}

#[tokio::test]
async fn times_that_memory_believes_to_be_so_are_set_all_the_same() {
    let (host, root) = (Host::new().await, Caller::root());
    let other = host.other().await;
    let file = host.make(ROOT, "f", Kind::File).await;
    let at = |sec| SetAttr { atime: Some(SetTime::At(Time { sec, nsec: 0 })), ..SetAttr::default() };
    host.meta.setattr(&root, file, at(5)).await.expect("sets");
    other.meta.setattr(&root, file, at(6)).await.expect("sets");
    assert_eq!(host.meta.setattr(&root, file, at(5)).await.expect("sets").atime.sec, 5);
}

#[tokio::test]
async fn locks() {
    let host = Host::new().await;
    let other = host.other().await;
    let file = host.make(ROOT, "f", Kind::File).await;
    for (kind, calls) in [(LockKind::Exclusive, "commit"), (LockKind::Shared, "commit"), (LockKind::Unlock, "commit")] {
        host.meta.flock(file, 1, kind).await.expect("is free");
        host.took(calls);
    }
    for (kind, calls) in [(LockKind::Exclusive, "commit"), (LockKind::Unlock, "commit")] {
        host.meta.set_lock(file, 1, 1, 0, 9, kind).await.expect("is free");
        host.took(calls);
    }
    // Somebody else's lock is found by the same exchange that would have taken it.
    host.meta.flock(file, 1, LockKind::Exclusive).await.expect("is free");
    for calls in ["conflict", "commit"] {
        assert_eq!(other.meta.flock(file, 1, LockKind::Exclusive).await, Err(Errno::AGAIN));
        other.took(calls);
    }
    host.meta.flock(file, 1, LockKind::Unlock).await.expect("released");
    other.meta.flock(file, 1, LockKind::Exclusive).await.expect("is free");
    other.took("conflict commit");
}

#[tokio::test]
async fn data_written_under_a_lock_that_is_lost_is_never_committed() {
    let (host, root) = (Host::new().await, Caller::root());
    let other = host.other().await;
    let file = host.make(ROOT, "f", Kind::File).await;
    let meta = &host.meta;
    meta.open(&root, file, OpenMode::default()).await.expect("opens");
    let now = host.clock.now();
    meta.flock(file, 1, LockKind::Exclusive).await.expect("is free");
    meta.set_lock(file, 2, 1, 0, 9, LockKind::Exclusive).await.expect("is free");
    host.store.take();
    meta.write(file, 0, &[slice(0, 1, 10)], now).await.expect("under both locks");
    host.took("commit");
    // Own changes of a lock are no loss.
    meta.set_lock(file, 2, 1, 5, 20, LockKind::Exclusive).await.expect("is free");
    meta.flock(file, 1, LockKind::Shared).await.expect("converts");
    meta.flock(file, 1, LockKind::Exclusive).await.expect("converts");
    host.store.take();
    meta.write(file, 0, &[slice(0, 2, 10)], now).await.expect("under both locks");
    host.took("commit");

    // Nor are those of several threads at once.
    let threads: Vec<_> = (0..8u64)
        .map(|n| {
            let meta = meta.clone();
            tokio::spawn(async move { meta.set_lock(file, 2, 1, 10 * n, 10 * n + 4, LockKind::Exclusive).await })
        })
        .collect();
    for thread in threads {
        thread.await.expect("ends").expect("is free");
    }
    meta.write(file, 0, &[slice(0, 5, 10)], now).await.expect("under both locks");

    // As after a session that was away for too long.
    let sid = meta.sid.load(std::sync::atomic::Ordering::Relaxed);
    let gone = Write::HDel(key::flock(file), key::lock_field(sid, 1));
    host.volume.commit(&[], &[gone], &[]).await.expect("commit");
    let granted = other.meta.flock(file, 1, LockKind::Exclusive).await.expect("is free");
    let before = other.meta.getattr(file).await.expect("there");
    assert_eq!(granted, Some(before.clone()), "a grant brings the inode");
    for _ in 0..2 {
        assert_eq!(meta.write(file, 0, &[slice(0, 3, 10)], now).await, Err(Errno::OWNERDEAD));
        assert_eq!(meta.append(file, slice(0, 3, 10), now).await, Err(Errno::OWNERDEAD));
        assert_eq!(meta.truncate(&root, file, 0).await, Err(Errno::OWNERDEAD));
        assert_eq!(meta.fallocate(&root, file, fallocate::Falloc::Allocate, 0, 50).await, Err(Errno::OWNERDEAD));
    }
    assert_eq!(other.meta.getattr(file).await, Ok(before));
    // Giving back what is left of the locks heals nothing, closing does.
    meta.release_locks(file, 1).await.expect("released");
    assert_eq!(meta.flock(file, 1, LockKind::Shared).await, Err(Errno::IO));
    assert!(meta.is_lock_lost(file));
    meta.release_locks(file, 2).await.expect("released");
    meta.close(file).await.expect("closes");
    assert_eq!(meta.flock(file, 1, LockKind::Exclusive).await, Err(Errno::AGAIN));
    other.meta.flock(file, 1, LockKind::Unlock).await.expect("released");
    meta.flock(file, 1, LockKind::Exclusive).await.expect("is free");
    meta.write(file, 0, &[slice(0, 4, 10)], now).await.expect("under the new lock");
}

#[tokio::test]
async fn after_the_store_was_away_sessions_come_back_before_anybody_is_cleaned() {
    let (host, root) = (Host::new().await, Caller::root());
    let (other, dead) = (host.other().await, host.other().await);
    let file = host.make(ROOT, "f", Kind::File).await;
    for holder in [&host, &dead] {
        holder.meta.set_lock(file, 1, 1, 0, 9, LockKind::Shared).await.expect("is free");
        holder.store.take();
    }
    host.clock.advance(Duration::from_secs(90));
    // The first commit of the one says that its session lives.
    host.meta.setattr(&root, file, SetAttr { mode: Some(0o600), ..SetAttr::default() }).await.expect("sets");
    host.took("commit commit");
    other.meta.heartbeat().await.expect("beats");
    assert_eq!(other.meta.clean_stale_sessions().await, Ok(0));
    // One that joins does not know how long the store was away.
    let newcomer = host.other().await;
    for _ in 0..5 {
        for living in [&host, &other, &newcomer] {
            assert_eq!(living.meta.clean_stale_sessions().await, Ok(0));
            living.meta.heartbeat().await.expect("beats");
        }
        host.clock.advance(Duration::from_secs(12));
    }
    assert_eq!(other.meta.clean_stale_sessions().await, Ok(1));
    assert_eq!(other.meta.sessions().await.expect("listed").len(), 3);
    other.meta.set_lock(file, 1, 1, 0, 9, LockKind::Shared).await.expect("is free");
    assert_eq!(other.meta.get_lock(file, 2, 0, 9, LockKind::Exclusive).await.expect("read").map(|lock| lock.exclusive), Some(false));
}

#[tokio::test]
async fn the_lists_of_many_deleted_files_are_found_by_one_scan() {
    let host = Host::new().await;
    let now = host.clock.now();
    let mut files = Vec::new();
    for n in 0..20u64 {
        let ino = host.make(ROOT, &format!("f{n}"), Kind::File).await;
        for chunk in [0, 7] {
            host.meta.write(ino, chunk, &[slice(0, 100 + 2 * n + u64::from(chunk % 2), 10)], now).await.expect("written");
        }
        files.push((ino, 10));
        host.store.take();
    }
    let kept = host.make(ROOT, "kept", Kind::File).await;
    host.meta.write(kept, 0, &[slice(0, 99, 10)], now).await.expect("written");
    for (ino, _) in &files {
        host.volume.commit(&[], &[Write::Del(key::inode(*ino))], &[]).await.expect("commit");
    }
    host.store.take();
    let dead = host.meta.delete_files(&files).await.expect("deleted");
    assert_eq!(host.store.take().matches("scan").count(), 1);
    assert_eq!(dead.len(), 40);
    assert_eq!(host.meta.chunks_present(kept, 0..u32::MAX).await, Ok(vec![0]));
}

#[tokio::test]
async fn the_number_of_a_session_that_is_listed_is_not_taken() {
    let host = Host::new().await;
    host.volume.commit(&[], &[Write::Set(key::NEXT_SESSION, "0".into())], &[]).await.expect("commit");
    let other = host.other().await;
    let sid = |host: &Host| host.meta.sid.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((sid(&host), sid(&other)), (1, 2));
}

#[tokio::test]
async fn a_cleaner_that_finds_the_store_back_first_beats_and_leaves_the_others_time_to() {
    for (away, since_beat) in [(90, 0), (55, 6)] {
        let host = Host::new().await;
        let other = host.other().await;
        // The time is over for which a newcomer cleans nobody.
        for _ in 0..6 {
            host.clock.advance(Duration::from_secs(12));
            other.meta.heartbeat().await.expect("beats");
            host.clock.advance(Duration::from_secs(since_beat));
            host.meta.heartbeat().await.expect("beats");
        }
        host.clock.advance(Duration::from_secs(away));
        assert_eq!(host.meta.clean_stale_sessions().await, Ok(0), "away for {away} s");
        other.meta.heartbeat().await.expect("beats");
        assert_eq!(host.meta.clean_stale_sessions().await, Ok(0));
        assert_eq!(host.meta.sessions().await.expect("listed").len(), 2);
    }
}

#[tokio::test]
async fn clients_of_another_make_are_seen_at_the_heartbeat() {
    let host = Host::new().await;
    let pause = |host: &Host| host.meta.driver.pacing.pause(&[Write::Set(key::inode(ROOT), Bytes::new())], 0);
    let session =
        |sid: &'static str, version: &str| Write::HSet(key::SESSION_INFOS, sid.into(), format!(r#"{{"Version":"{version}"}}"#).into());
    for (write, foreign) in [
        (session("98", "1.4.1+pando.0.9.9"), false),
        (session("99", "1.4.1+2026-01-01.abcdef"), true),
        (Write::HSet(key::SESSION_INFOS, "99".into(), "damaged".into()), true),
        (Write::HDel(key::SESSION_INFOS, "99".into()), false),
    ] {
        host.volume.commit(&[], std::slice::from_ref(&write), &[]).await.expect("commit");
        host.store.take();
        host.meta.heartbeat().await.expect("beats");
        host.took("commit");
        pause(&host);
        assert_eq!(!pause(&host).is_zero(), foreign, "{write:?}");
    }
}

/// Appends from two hosts; what the places are when all are done.
async fn append_from_two_hosts(delays_us: [u64; 2], writers: usize, each: usize) -> Vec<(u64, usize)> {
    let first = Host::new().await;
    let file = first.make(ROOT, "log", Kind::File).await;
    let mut tasks = Vec::new();
    for (which, delay) in delays_us.into_iter().enumerate() {
        let setting = (*first.meta.setting()).clone();
        let host = Host::joining(first.volume.clone(), first.clock.clone(), setting, Duration::from_micros(delay)).await;
        for _ in 0..writers {
            let meta = host.meta.clone();
            tasks.push(tokio::spawn(async move {
                let mut places = Vec::new();
                for _ in 0..each {
                    let id = meta.next_slice().await.expect("an id");
                    let (at, _) = meta.append(file, slice(0, id, 10), meta.clock().now()).await.expect("gets through");
                    places.push((at, which));
                }
                places
            }));
        }
    }
    let mut places = Vec::new();
    for task in tasks {
        places.extend(task.await.expect("ends"));
    }
    places.sort_unstable();
    let expected: Vec<u64> = (0..2 * writers * each).map(|n| 10 * n as u64).collect();
    assert_eq!(places.iter().map(|(at, _)| *at).collect::<Vec<_>>(), expected);
    assert_eq!(first.volume.read(&[Query::HGetAll(key::TURNS)]).await, Ok(vec![Value::Pairs(Vec::new())]));
    places
}

#[tokio::test]
async fn appenders_of_two_hosts_all_get_through() {
    append_from_two_hosts([500, 500], 8, 12).await;
}

#[tokio::test]
async fn a_distant_appender_is_not_starved_by_a_near_one() {
    let places = append_from_two_hosts([200, 5000], 8, 12).await;
    // The distant host does not have to wait until the near one has nothing left to say.
    let first_of_distant = places.iter().position(|(_, which)| *which == 1);
    assert!(first_of_distant < Some(96), "{places:?}");
}

#[tokio::test]
async fn a_turn_that_nobody_uses_is_ended() {
    let host = Host::new().await;
    let file = host.make(ROOT, "log", Kind::File).await;
    let stuck = Write::HSet(key::TURNS, key::decimal(file), "77_0".into());
    host.volume.commit(&[], &[stuck], &[]).await.expect("commit");
    let meta = host.meta.clone();
    let waiting = tokio::spawn(async move { meta.append(file, slice(0, 1, 10), meta.clock().now()).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!waiting.is_finished());
    host.clock.advance(Duration::from_secs(3));
    assert_eq!(waiting.await.expect("ends").map(|(at, _)| at), Ok(0));
    assert_eq!(host.volume.read(&[Query::HGetAll(key::TURNS)]).await, Ok(vec![Value::Pairs(Vec::new())]));
}

#[tokio::test]
async fn nobody_waits_for_ids() {
    let host = Host::new().await;
    for n in 0..3000u64 {
        host.meta.next_slice().await.expect("an id");
        host.meta.next_inode().await.expect("an id");
        if n % 64 == 0 {
            // As long as a round trip.
            host.settle().await;
        }
        let calls = host.store.take();
        assert!(n % 64 == 0 || calls.is_empty(), "{n}: {calls}");
    }
}

#[tokio::test]
async fn limits_of_the_volume_are_soft_by_a_second() {
    let (host, root) = (Host::with(|setting| setting.set("Inodes", 10.into())).await, Caller::root());
    let other = host.other().await;
    let create = |host: &Host, n: u32| {
        let meta = host.meta.clone();
        async move { meta.create(&Caller::root(), ROOT, &name(&n.to_string()), node(Kind::File)).await.map(drop) }
    };
    create(&host, 0).await.expect("creates");
    host.store.take();
    // Own use is known from the replies of commits.
    create(&host, 1).await.expect("creates");
    host.took("read commit");
    for n in 2..10 {
        create(&other, n).await.expect("creates");
    }
    assert_eq!(create(&other, 10).await, Err(Errno::NOSPC));
    host.clock.advance(Duration::from_secs(2));
    assert_eq!(host.lookup(ROOT, "11").await, Err(Errno::NOENT));
    assert_eq!(create(&host, 11).await, Err(Errno::NOSPC));
    other.meta.unlink(&root, ROOT, &name("5")).await.expect("unlinks");
    create(&host, 11).await.expect("a failure is confirmed");
}

#[tokio::test]
async fn memory_is_bounded() {
    let host = Host::new().await;
    let facts = host.meta.driver.facts.as_ref().expect("the store is far");
    for n in 0..200_000u64 {
        let writes = [Write::Set(key::inode(Ino(n)), Bytes::from(vec![1; 73]))];
        facts.ask_to_write(1, &writes).committed(&[], &[], &[], &[]);
    }
    assert!(facts.recall(&[Query::Get(key::inode(Ino(199_999)))]).is_some());
    assert!(facts.recall(&[Query::Get(key::inode(Ino(5)))]).is_none());
    // An embedded store has none.
    assert!(crate::meta::ops::chunk::testing::World::new().meta.driver.facts.is_none());
}
