//! Mounts of a volume whose metadata is behind a network: how many exchanges requests take, and what two hosts see of each other.

use super::vfs_test::{Sink, World};
use super::*;
use crate::meta::key;
use crate::meta::store::counting::CountingStore;
use crate::meta::store::{Store, Write};
use crate::types::Kind;
use bytes::Bytes;
use std::time::Instant;

const ROOT: Ino = Ino(1);
const RDONLY: u32 = libc::O_RDONLY as u32;
const RDWR: u32 = libc::O_RDWR as u32;
const CREATE: u32 = (libc::O_RDWR | libc::O_CREAT) as u32;
const APPEND: u32 = (libc::O_WRONLY | libc::O_APPEND) as u32;

fn root() -> Caller {
    Caller::root()
}

/// One host's mount.
struct Host {
    store: Arc<CountingStore>,
    vfs: Arc<Vfs>,
}

impl Host {
    async fn of(world: &World, delay: Duration) -> Host {
        let store = Arc::new(CountingStore::new(world.store.clone(), delay));
        let vfs = world.process_on(store.clone(), VfsConfig { xattr: true, ..VfsConfig::default() }).await;
        // What is fetched ahead is there before the first request.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        vfs.getattr(&root(), ROOT, None).await.unwrap();
        store.take();
        Host { store, vfs }
    }

    #[track_caller]
    fn took(&self, calls: &str) {
        assert_eq!(self.store.take(), calls);
    }

    /// Looks up and creates, as the kernel does.
    async fn made(&self, name: &str) -> (Ino, u64) {
        assert_eq!(self.vfs.lookup(&root(), ROOT, name.as_bytes()).await, Err(Errno::NOENT));
        let (entry, open) = self.vfs.create(&root(), ROOT, name.as_bytes(), 0o644, 0, CREATE).await.unwrap();
        (entry.ino, open.fh)
    }

    async fn open(&self, ino: Ino, flags: u32) -> OpenReply {
        self.vfs.open(&root(), ino, flags).await.unwrap()
    }

    async fn put(&self, ino: Ino, fh: u64, offset: u64, text: &'static str, flags: u32) {
        assert_eq!(self.vfs.write(&root(), ino, fh, offset, Bytes::from_static(text.as_bytes()), flags).await, Ok(text.len() as u32));
    }

    async fn text(&self, ino: Ino, fh: u64) -> String {
        String::from_utf8(self.vfs.read(&root(), ino, fh, 0, 1 << 20).await.unwrap().concat()).unwrap()
    }

    async fn close(&self, ino: Ino, fh: u64) -> Result<(), Errno> {
        let flushed = self.vfs.flush(&root(), ino, fh, 1).await;
        self.vfs.release(ino, fh, Some(1)).await?;
        flushed
    }

    async fn flock(&self, ino: Ino, fh: u64, kind: LockKind) -> Result<(), Errno> {
        let lock = Lock { start: 0, end: u64::MAX, kind, pid: 1 };
        self.vfs.setlk(&root(), ino, fh, 1, lock, true, true).await
    }
}

#[tokio::test]
async fn a_small_file_from_the_cradle_to_the_grave() {
    let world = World::new().await;
    let host = Host::of(&world, Duration::ZERO).await;
    let (ino, fh) = host.made("f").await;
    host.took("read commit");
    host.put(ino, fh, 0, "4 KiB", RDWR).await;
    host.took("");
    host.close(ino, fh).await.unwrap();
    host.took("commit");
    // Read: what the open brings is all there is to ask.
    let fh = host.open(ino, RDONLY).await.fh;
    assert_eq!(host.text(ino, fh).await, "4 KiB");
    host.close(ino, fh).await.unwrap();
    host.took("read");
    // Overwritten and appended to.
    let fh = host.open(ino, RDWR).await.fh;
    host.put(ino, fh, 0, "5 KiB", RDWR).await;
    host.close(ino, fh).await.unwrap();
    host.took("read commit");
    let fh = host.open(ino, APPEND).await.fh;
    host.put(ino, fh, 0, "!", APPEND).await;
    host.took("read commit");
    host.close(ino, fh).await.unwrap();
    host.took("");
    // Replaced by way of a temporary name, and removed.
    let (new, fh) = host.made("new").await;
    host.put(new, fh, 0, "new", RDWR).await;
    host.close(new, fh).await.unwrap();
    let (dirty, fh) = host.made("dirty").await;
    host.put(dirty, fh, 0, "dirty", RDWR).await;
    assert_eq!(host.vfs.lookup(&root(), ROOT, b"clean").await, Err(Errno::NOENT));
    host.store.take();
    // What was written to the one that is renamed is stored before; that of others can wait.
    host.vfs.rename(&root(), ROOT, b"new", ROOT, b"f", 0).await.unwrap();
    host.took("commit");
    host.vfs.rename(&root(), ROOT, b"dirty", ROOT, b"clean", 0).await.unwrap();
    host.took("commit commit");
    host.vfs.unlink(&root(), ROOT, b"f").await.unwrap();
    host.took("commit");
}

#[tokio::test]
async fn who_has_read_a_file_reads_back_what_it_writes_without_asking() {
    let world = World::new().await;
    let (host, other) = (Host::of(&world, Duration::ZERO).await, Host::of(&world, Duration::ZERO).await);
    let (ino, fh) = host.made("f").await;
    host.put(ino, fh, 0, "0123456789", RDWR).await;
    host.vfs.fsync(&root(), ino, fh, false).await.unwrap();
    assert_eq!(host.text(ino, fh).await, "0123456789");
    host.store.take();
    // No two changes are made at the same moment.
    let tick = || world.clock.advance(Duration::from_micros(1));
    for (text, want) in [("ab", "ab23456789"), ("cde", "cde3456789"), ("f", "fde3456789")] {
        tick();
        host.put(ino, fh, 0, text, RDWR).await;
        assert_eq!(host.text(ino, fh).await, want);
        host.took("commit");
    }
    tick();
    host.put(ino, fh, 9, "xyz", APPEND).await;
    assert_eq!(host.text(ino, fh).await, "fde3456789xyz");
    host.took("commit");
    // The other host writes between two of ours: the record is another one.
    let theirs = other.vfs.lookup(&root(), ROOT, b"f").await.unwrap().ino;
    let open = other.open(theirs, RDWR).await.fh;
    tick();
    other.put(theirs, open, 2, "--", RDWR).await;
    other.close(theirs, open).await.unwrap();
    tick();
    host.put(ino, fh, 0, "A", RDWR).await;
    host.vfs.fsync(&root(), ino, fh, false).await.unwrap();
    assert_eq!(host.text(ino, fh).await, "Ad--456789xyz");
    // It merges the slices: the record stays, and the list is another one.
    assert!(world.compact(&other.vfs, theirs).await);
    tick();
    host.put(ino, fh, 1, "B", RDWR).await;
    assert_eq!(host.text(ino, fh).await, "AB--456789xyz");
    host.close(ino, fh).await.unwrap();
}

#[tokio::test]
async fn a_locked_change() {
    let world = World::new().await;
    let host = Host::of(&world, Duration::ZERO).await;
    let (ino, fh) = host.made("f").await;
    host.store.take();
    host.flock(ino, fh, LockKind::Exclusive).await.unwrap();
    host.took("commit");
    host.put(ino, fh, 0, "x", RDWR).await;
    host.flock(ino, fh, LockKind::Unlock).await.unwrap();
    host.took("commit commit");
    // Closed while it is locked: the data first, then both kinds of locks at once.
    host.flock(ino, fh, LockKind::Exclusive).await.unwrap();
    host.put(ino, fh, 0, "y", RDWR).await;
    host.store.take();
    host.close(ino, fh).await.unwrap();
    host.took("commit commit");
}

#[tokio::test]
async fn what_is_known_of_an_open_file_is_asked_for_once_a_second() {
    const SECOND_CHUNK: u64 = crate::types::CHUNK_BYTES;
    let world = World::new().await;
    let (a, b) = (Host::of(&world, Duration::ZERO).await, Host::of(&world, Duration::ZERO).await);
    let (ino, fh) = a.made("f").await;
    a.put(ino, fh, SECOND_CHUNK, "end", RDWR).await;
    a.put(ino, fh, 0, "old", RDWR).await;
    a.vfs.fsync(&root(), ino, fh, false).await.unwrap();
    let write = async |text| {
        a.put(ino, fh, 0, text, RDWR).await;
        a.vfs.fsync(&root(), ino, fh, false).await.unwrap();
    };
    let open = b.open(ino, RDONLY).await.fh;
    b.took("read");
    let read = async |at, expected: &str, calls: &str| {
        assert_eq!(b.vfs.read(&root(), ino, open, at, 3).await.unwrap().concat(), expected.as_bytes());
        // What goes on behind the read is counted with it.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        b.took(calls);
    };
    for calls in ["", ""] {
        read(0, "old", calls).await;
    }
    for calls in ["read", ""] {
        read(SECOND_CHUNK, "end", calls).await;
        read(0, "old", "").await;
    }
    // Not yet seen; but once the kernel has been told that the file has changed, it is not given what the file held before.
    write("new").await;
    read(0, "old", "").await;
    b.vfs.getattr(&root(), ino, None).await.unwrap();
    b.took("read");
    read(0, "new", "read").await;
    // Never for longer than a second.
    write("two").await;
    world.clock.advance(Duration::from_millis(1001));
    read(0, "two", "read").await;
    // Who reads on need not wait: it is asked for before it is too old.
    for _ in 0..3 {
        world.clock.advance(Duration::from_millis(600));
        read(0, "two", "read").await;
    }
    // A later open is exact, for all handles.
    write("six").await;
    let second = b.open(ino, RDONLY).await.fh;
    b.took("read");
    assert_eq!(b.vfs.read(&root(), ino, second, 0, 3).await.unwrap().concat(), b"six");
    read(0, "six", "").await;
    read(SECOND_CHUNK, "end", "read").await;
    // What this host does itself is seen at once.
    let own = b.open(ino, RDWR).await.fh;
    b.put(ino, own, 0, "own", RDWR).await;
    assert_eq!(b.vfs.read(&root(), ino, open, 0, 3).await.unwrap().concat(), b"own");
    b.vfs.setattr(&root(), ino, SetAttrRequest { size: Some(1), ..SetAttrRequest::default() }).await.unwrap();
    assert_eq!(b.vfs.read(&root(), ino, open, 0, 3).await.unwrap().concat(), b"o");
}

#[tokio::test]
async fn without_attribute_times_every_read_asks() {
    let world = World::new().await;
    let a = Host::of(&world, Duration::ZERO).await;
    let store = Arc::new(CountingStore::new(world.store.clone(), Duration::ZERO));
    let vfs = world.process_on(store.clone(), VfsConfig { attr_ttl: Duration::ZERO, ..VfsConfig::default() }).await;
    let b = Host { store, vfs };
    let (ino, fh) = a.made("f").await;
    let open = b.open(ino, RDONLY).await.fh;
    for text in ["1", "2", "3"] {
        a.put(ino, fh, 0, text, RDWR).await;
        a.vfs.fsync(&root(), ino, fh, false).await.unwrap();
        world.clock.advance(Duration::from_micros(1));
        assert_eq!(b.text(ino, open).await, text);
    }
}

#[tokio::test]
async fn listing_with_attributes() {
    let world = World::new().await;
    let host = Host::of(&world, Duration::ZERO).await;
    let dir = host.vfs.mkdir(&root(), ROOT, b"d", 0o755, 0).await.unwrap().ino;
    for n in 0..200 {
        host.vfs.mknod(&root(), dir, format!("{n:03}").as_bytes(), libc::S_IFREG, 0, 0).await.unwrap();
    }
    host.store.take();
    let fh = host.vfs.opendir(&root(), dir).await.unwrap().fh;
    let (mut names, mut cookie) = (Vec::new(), 0);
    loop {
        // As much as a small buffer of the kernel holds.
        let mut sink = Sink { room: 25, taken: Vec::new() };
        host.vfs.readdir(&root(), dir, fh, cookie, true, &mut sink).await.unwrap();
        let Some(last) = sink.taken.last() else { break };
        cookie = last.1;
        assert!(sink.taken.iter().all(|(name, .., length)| name.starts_with('.') || length.is_some()));
        names.extend(sink.taken.into_iter().map(|(name, ..)| name));
    }
    assert_eq!(names.len(), 202);
    host.took("read scan");
    // What this host changes in the middle of a listing is seen, and what is too old is asked for.
    let mut sink = Sink { room: 3, taken: Vec::new() };
    host.vfs.readdir(&root(), dir, fh, 0, true, &mut sink).await.unwrap();
    let cookie = sink.taken[2].1;
    host.vfs.unlink(&root(), dir, b"001").await.unwrap();
    let (entry, _) = host.vfs.create(&root(), dir, b"001", 0o644, 0, CREATE).await.unwrap();
    let mut sink = Sink { room: 1, taken: Vec::new() };
    host.vfs.readdir(&root(), dir, fh, cookie, true, &mut sink).await.unwrap();
    assert_eq!((sink.taken[0].0.as_str(), sink.taken[0].2), ("001", entry.ino));
    world.clock.advance(Duration::from_secs(2));
    host.store.take();
    let mut sink = Sink { room: 5, taken: Vec::new() };
    host.vfs.readdir(&root(), dir, fh, cookie, true, &mut sink).await.unwrap();
    host.took("read read read read read read");
}

#[tokio::test]
async fn what_two_hosts_see_of_each_other() {
    let world = World::new().await;
    let (a, b) = (Host::of(&world, Duration::ZERO).await, Host::of(&world, Duration::ZERO).await);
    let (ino, fh) = a.made("f").await;
    a.put(ino, fh, 0, "one", RDWR).await;
    a.close(ino, fh).await.unwrap();
    // Kernels may hold what they are told, pages as long as an open finds nothing changed.
    assert_eq!(b.vfs.lookup(&root(), ROOT, b"f").await.unwrap().attr_ttl, Duration::from_secs(1));
    let first = b.open(ino, RDONLY).await;
    assert_eq!((first.keep_cache, b.text(ino, first.fh).await.as_str()), (false, "one"));
    let again = b.open(ino, RDONLY).await;
    assert!(again.keep_cache);

    let fh = a.open(ino, RDWR).await.fh;
    world.clock.advance(Duration::from_millis(10));
    a.put(ino, fh, 0, "two", RDWR).await;
    a.vfs.flush(&root(), ino, fh, 1).await.unwrap();
    // Close to open: exact, and the pages go. Handles that were open may read what was there, for a second.
    assert_eq!(b.text(ino, first.fh).await, "one");
    let open = b.open(ino, RDONLY).await;
    assert_eq!((open.keep_cache, b.text(ino, open.fh).await.as_str()), (false, "two"));
    world.clock.advance(Duration::from_millis(10));
    a.put(ino, fh, 0, "six", RDWR).await;
    a.vfs.flush(&root(), ino, fh, 1).await.unwrap();
    world.clock.advance(Duration::from_secs(2));
    assert_eq!(b.text(ino, first.fh).await, "six");
    // Own writes go through pages that may be older next to them: the next open drops them.
    let open = a.open(ino, RDONLY).await;
    assert!(!open.keep_cache);

    // A lock is exact for handles that were open before.
    a.flock(ino, fh, LockKind::Exclusive).await.unwrap();
    assert_eq!(b.text(ino, first.fh).await, "six");
    world.clock.advance(Duration::from_millis(10));
    a.put(ino, fh, 0, "seven", RDWR).await;
    a.flock(ino, fh, LockKind::Unlock).await.unwrap();
    b.flock(ino, first.fh, LockKind::Shared).await.unwrap();
    assert_eq!(b.text(ino, first.fh).await, "seven");
    assert_eq!(b.vfs.getattr(&root(), ino, None).await.unwrap().attr.length, 5);
}

#[tokio::test]
async fn bytes_written_under_a_lost_lock_are_refused_until_the_file_is_closed() {
    let world = World::new().await;
    let (a, b) = (Host::of(&world, Duration::ZERO).await, Host::of(&world, Duration::ZERO).await);
    let (ino, fh) = a.made("f").await;
    a.flock(ino, fh, LockKind::Exclusive).await.unwrap();
    a.put(ino, fh, 0, "mine", RDWR).await;
    // The store was away, and another client has cleaned the session up and given the lock to somebody else.
    world.store.commit(&[], &[Write::Del(key::flock(ino))], &[]).await.unwrap();
    let other = b.open(ino, RDWR).await.fh;
    b.flock(ino, other, LockKind::Exclusive).await.unwrap();
    b.put(ino, other, 0, "yours", RDWR).await;
    b.vfs.fsync(&root(), ino, other, false).await.unwrap();
    assert_eq!(a.vfs.fsync(&root(), ino, fh, false).await, Err(Errno::IO));
    assert_eq!(a.vfs.write(&root(), ino, fh, 0, Bytes::from_static(b"mine"), RDWR).await, Err(Errno::IO));
    assert_eq!(a.flock(ino, fh, LockKind::Exclusive).await, Err(Errno::IO));
    a.close(ino, fh).await.unwrap();
    assert_eq!(b.text(ino, other).await, "yours");
    b.flock(ino, other, LockKind::Unlock).await.unwrap();
    let fh = a.open(ino, RDWR).await.fh;
    a.flock(ino, fh, LockKind::Exclusive).await.unwrap();
    a.put(ino, fh, 0, "again", RDWR).await;
    a.close(ino, fh).await.unwrap();
    world.clock.advance(Duration::from_secs(2));
    assert_eq!(b.text(ino, other).await, "again");
}

#[tokio::test]
async fn unrelated_files_do_not_wait_for_each_other() {
    const FILES: usize = 32;
    let world = World::new().await;
    let host = Arc::new(Host::of(&world, Duration::from_millis(20)).await);
    let begin = Instant::now();
    let mut tasks = Vec::new();
    for n in 0..FILES {
        let host = host.clone();
        tasks.push(tokio::spawn(async move {
            let name = format!("{n}");
            host.vfs.lookup(&root(), ROOT, name.as_bytes()).await.unwrap_err();
            let (entry, open) = host.vfs.create(&root(), ROOT, name.as_bytes(), 0o644, 0, CREATE).await.unwrap();
            host.put(entry.ino, open.fh, 0, "x", RDWR).await;
            host.close(entry.ino, open.fh).await.unwrap();
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    // Three round trips of 40 ms each; one after the other they would take four seconds.
    assert!(begin.elapsed() < Duration::from_millis(1500), "{:?}", begin.elapsed());
    let kinds = host.vfs.lookup(&root(), ROOT, b"31").await.unwrap().attr.kind;
    assert_eq!(kinds, Kind::File);
}

#[tokio::test]
async fn small_files_in_the_journal_cost_what_their_names_cost() {
    let world = World::new().await;
    let (host, other) = (Host::of(&world, Duration::ZERO).await, Host::of(&world, Duration::ZERO).await);
    host.vfs.meta.look_at_journal().await.unwrap();
    host.store.take();
    let (ino, fh) = host.made("f").await;
    host.took("read commit");
    host.put(ino, fh, 0, "4 KiB", RDWR).await;
    host.close(ino, fh).await.unwrap();
    host.took("commit");
    assert_eq!(host.vfs.meta.look_at_journal().await.unwrap().count, 1);
    host.store.take();
    // On another host the open brings the data along.
    let open = other.open(ino, RDONLY).await;
    assert_eq!(other.text(ino, open.fh).await, "4 KiB");
    other.close(ino, open.fh).await.unwrap();
    other.took("read");
    // A log line is one commit, and a look at who has come if somebody has.
    let fh = host.open(ino, RDWR).await.fh;
    for text in ["one", "two"] {
        host.put(ino, fh, 0, text, RDWR).await;
        host.vfs.fsync(&root(), ino, fh, false).await.unwrap();
    }
    host.took("read commit sync commit sync");
    let _third = Host::of(&world, Duration::ZERO).await;
    host.store.take();
    host.put(ino, fh, 0, "six", RDWR).await;
    host.vfs.fsync(&root(), ino, fh, false).await.unwrap();
    host.took("conflict read commit sync");
    host.put(ino, fh, 0, "ten", RDWR).await;
    host.vfs.fsync(&root(), ino, fh, false).await.unwrap();
    host.took("commit sync");
    assert_eq!(host.vfs.meta.look_at_journal().await.unwrap().count, 5);
    // One that is not ours: its block is an object first.
    world.store.commit(&[], &[Write::HSet(key::SESSION_INFOS, "99".into(), "{}".into())], &[]).await.unwrap();
    host.store.take();
    host.put(ino, fh, 0, "ten", RDWR).await;
    host.vfs.fsync(&root(), ino, fh, false).await.unwrap();
    host.took("conflict read commit sync");
    assert_eq!(host.vfs.meta.look_at_journal().await.unwrap().count, 5);
    let open = other.open(ino, RDONLY).await;
    assert_eq!(other.text(ino, open.fh).await, "teniB");
}

#[tokio::test]
async fn an_unlock_is_answered_at_once_and_the_store_is_told_a_moment_later() {
    let world = World::new().await;
    let (a, b) = (Host::of(&world, Duration::ZERO).await, Host::of(&world, Duration::ZERO).await);
    for host in [&a, &b] {
        host.vfs.meta.examine_sessions().await.unwrap();
    }
    let (ino, fh) = a.made("f").await;
    let other = b.open(ino, RDWR).await.fh;
    a.flock(ino, fh, LockKind::Exclusive).await.unwrap();
    a.put(ino, fh, 0, "of a", RDWR).await;
    a.store.take();
    a.flock(ino, fh, LockKind::Unlock).await.unwrap();
    a.took("commit");
    // The store says it is held, and in a moment it will not.
    let lock = Lock { start: 0, end: u64::MAX, kind: LockKind::Exclusive, pid: 1 };
    while let Err(errno) = b.vfs.setlk(&root(), ino, other, 1, lock, true, false).await {
        assert_eq!(errno, Errno::AGAIN);
    }
    a.took("commit");
    assert_eq!(b.text(ino, other).await, "of a");
    // One that is held is refused after all.
    assert_eq!(a.vfs.setlk(&root(), ino, fh, 1, lock, true, false).await, Err(Errno::AGAIN));
}
