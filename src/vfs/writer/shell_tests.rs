//! The writers with their shell and a fake backend: waiting, memory, errors, appends.

use crate::env::SystemClock;
use crate::types::{Attr, BlockId, BoxFuture, CHUNK_BYTES, Caller, Errno, Ino, SliceId, Time};
use crate::vfs::writer::backend::Backend;
use crate::vfs::writer::event::{Ready, Shape};
use crate::vfs::writer::testing::{Committed, attr};
use crate::vfs::writer::{BUFFER_BYTES_MIN, Writers};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const BLOCK: u32 = 64 << 10;
const SHAPE: Shape = Shape { block_bytes: BLOCK, frame_bytes_max: 4 << 10, uploads_max: 4, whole_blocks: false };
const INO: Ino = Ino(7);

#[derive(Default)]
struct Fake(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    files: BTreeMap<Ino, Committed>,
    next_id: u64,
    upload_fails: Option<Errno>,
    commit_fails: Option<Errno>,
    growth_max: Option<u64>,
    commits: usize,
    slow: bool,
}

impl Fake {
    /// Takes its time or not, as the test wants it.
    fn answer<T: Send + 'static>(&self, f: impl FnOnce(&mut Inner) -> T + Send + 'static) -> BoxFuture<'static, T> {
        let inner = self.0.clone();
        Box::pin(async move {
            if inner.lock().unwrap().slow {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            f(&mut inner.lock().unwrap())
        })
    }
}

impl Backend for Fake {
    fn next_slice(&self) -> BoxFuture<'static, Result<SliceId, Errno>> {
        self.answer(|inner| {
            inner.next_id += 1;
            Ok(inner.next_id)
        })
    }

    fn upload(&self, block: BlockId, data: Bytes) -> BoxFuture<'static, Result<(), Errno>> {
        self.answer(move |inner| {
            inner.upload_fails.map_or(Ok(()), Err)?;
            // All files share the ids, so one bucket per file would do; the check needs the block in the file's own.
            for file in inner.files.values_mut() {
                file.objects.insert(block, data.clone());
            }
            Ok(())
        })
    }

    fn commit(&self, ino: Ino, chunk: u32, slices: Vec<Ready>, mtime: Time) -> BoxFuture<'static, Result<Attr, Errno>> {
        self.answer(move |inner| {
            inner.commit_fails.map_or(Ok(()), Err)?;
            inner.commits += 1;
            inner.files.get_mut(&ino).ok_or(Errno::NOENT)?.commit(chunk, &slices, mtime, BLOCK)
        })
    }

    fn append(&self, ino: Ino, slice: Ready, mtime: Time) -> BoxFuture<'static, Result<(u64, Attr), Errno>> {
        self.answer(move |inner| {
            inner.commit_fails.map_or(Ok(()), Err)?;
            let file = inner.files.get_mut(&ino).ok_or(Errno::NOENT)?;
            let at = file.length;
            let slice = Ready { pos: (at % CHUNK_BYTES) as u32, ..slice };
            Ok((at, file.commit((at / CHUNK_BYTES) as u32, &[slice], mtime, BLOCK)?))
        })
    }

    fn discard(&self, slices: Vec<(SliceId, u32)>) -> BoxFuture<'static, ()> {
        self.answer(move |inner| {
            for file in inner.files.values_mut() {
                file.objects.retain(|block, _| !slices.iter().any(|(id, _)| *id == block.slice));
            }
        })
    }

    fn check_growth(&self, _: Ino, length: u64) -> BoxFuture<'static, Result<(), Errno>> {
        self.answer(move |inner| if inner.growth_max.is_some_and(|max| length > max) { Err(Errno::NOSPC) } else { Ok(()) })
    }
}

fn writers(inodes: u64) -> (Arc<Writers>, Arc<Mutex<Inner>>) {
    let fake = Fake::default();
    let inner = fake.0.clone();
    inner.lock().unwrap().files = (0..inodes).map(|i| (Ino(INO.0 + i), Committed::default())).collect();
    (Writers::over(Arc::new(fake), Arc::new(SystemClock::new()), SHAPE, BUFFER_BYTES_MIN), inner)
}

fn content(inner: &Mutex<Inner>, ino: Ino) -> Vec<u8> {
    inner.lock().unwrap().files[&ino].content(BLOCK)
}

#[tokio::test]
async fn small_files_are_flushed_without_any_task() {
    let (writers, inner) = writers(1);
    let caller = Caller::root();
    writers.write(&caller, INO, 0, Bytes::from_static(b"hello")).await.unwrap();
    writers.write(&caller, INO, 5, Bytes::from_static(b" world")).await.unwrap();
    assert!(writers.is_dirty(INO));
    let mut seen = attr(0, Time::default());
    writers.overlay(INO, &mut seen);
    assert_eq!(seen.length, 11);
    // Ready at the first poll: with a local store, close(2) costs no task switch.
    let mut flush = Box::pin(writers.flush(INO));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert_eq!(flush.as_mut().poll(&mut context), std::task::Poll::Ready(Ok(())));
    assert!(!writers.is_dirty(INO));
    assert_eq!(content(&inner, INO), b"hello world");
    assert_eq!(inner.lock().unwrap().commits, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_in_little_memory_all_get_on() {
    let (writers, inner) = writers(8);
    inner.lock().unwrap().slow = true;
    let tasks: Vec<_> = (0..8u64)
        .map(|i| {
            let writers = writers.clone();
            tokio::spawn(async move {
                // Together six times the budget. Half of the inodes stay below a block, so that only sending them off frees memory.
                let step = if i % 2 == 0 { 3000 } else { 100_000 };
                let mut at = 0;
                while at < 3 << 20 {
                    writers.write(&Caller::root(), Ino(INO.0 + i), at, vec![i as u8 + 1; step].into()).await.unwrap();
                    at += step as u64 * if i % 2 == 0 { 2 } else { 1 };
                }
                writers.flush(Ino(INO.0 + i)).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(60), task).await.expect("no deadlock").unwrap();
    }
    assert_eq!(writers.shell.budget.free(), BUFFER_BYTES_MIN);
    for i in (1..8).step_by(2) {
        assert!(content(&inner, Ino(INO.0 + i)).iter().all(|b| *b == i as u8 + 1));
    }
}

#[tokio::test]
async fn a_writer_that_waits_for_memory_can_be_interrupted() {
    let (writers, inner) = writers(2);
    inner.lock().unwrap().upload_fails = Some(Errno::NOSPC);
    let caller = Caller::root();
    writers.write(&caller, INO, 0, vec![1; 3 << 20].into()).await.unwrap();
    let (other, waiting) = (writers.clone(), caller.clone());
    let task = tokio::spawn(async move { other.write(&waiting, Ino(INO.0 + 1), 0, vec![2; 1 << 20].into()).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    caller.cancel.cancel();
    assert_eq!(task.await.unwrap(), Err(Errno::INTR));
    // The full disk is told to the next write of the inode it concerns, once; when there is room again, all goes on.
    assert_eq!(writers.write(&Caller::root(), INO, 0, Bytes::from_static(b"x")).await, Err(Errno::NOSPC));
    assert_eq!(writers.flush(INO).await, Err(Errno::NOSPC));
    inner.lock().unwrap().upload_fails = None;
    writers.flush(INO).await.unwrap();
    writers.write(&Caller::root(), INO, 0, Bytes::from_static(b"x")).await.unwrap();
    writers.flush_all().await.unwrap();
    assert_eq!(writers.shell.budget.free(), BUFFER_BYTES_MIN);
    let content = content(&inner, INO);
    assert_eq!((content.len(), content[0], content[1]), (3 << 20, b'x', 1));
}

#[tokio::test]
async fn failed_commits_are_kept_until_the_last_close() {
    let (writers, inner) = writers(1);
    writers.opened(INO);
    writers.write(&Caller::root(), INO, 0, Bytes::from_static(b"abc")).await.unwrap();
    inner.lock().unwrap().commit_fails = Some(Errno::DQUOT);
    assert_eq!(writers.flush(INO).await, Err(Errno::DQUOT));
    assert!(writers.is_dirty(INO));
    assert_eq!(writers.flush(INO).await, Err(Errno::DQUOT));
    writers.closed(INO);
    assert!(!writers.is_dirty(INO));
    assert_eq!(writers.shell.budget.free(), BUFFER_BYTES_MIN);
}

#[tokio::test]
async fn what_was_stored_of_writes_that_are_given_up_is_removed() {
    let (writers, inner) = writers(1);
    let objects = || inner.lock().unwrap().files[&INO].objects.len();
    writers.opened(INO);
    writers.write(&Caller::root(), INO, 0, vec![1; 300_000].into()).await.unwrap();
    inner.lock().unwrap().commit_fails = Some(Errno::NOSPC);
    assert_eq!(writers.flush(INO).await, Err(Errno::NOSPC));
    assert!(objects() > 0, "kept for the next attempt");
    writers.closed(INO);
    while objects() > 0 {
        tokio::task::yield_now().await;
    }
    // Appends have no buffer that they could be kept in.
    assert_eq!(writers.append(&Caller::root(), INO, vec![2; 300_000].into()).await, Err(Errno::NOSPC));
    while objects() > 0 {
        tokio::task::yield_now().await;
    }
    // An outcome that is not certain leaves the objects to a collection.
    writers.opened(INO);
    writers.write(&Caller::root(), INO, 0, vec![1; 300_000].into()).await.unwrap();
    inner.lock().unwrap().commit_fails = Some(Errno::IO);
    assert_eq!(writers.flush(INO).await, Err(Errno::IO));
    let stored = objects();
    writers.closed(INO);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(stored > 0 && objects() == stored);
}

#[tokio::test]
async fn a_full_volume_is_told_at_write() {
    let (writers, inner) = writers(1);
    inner.lock().unwrap().growth_max = Some(1000);
    assert_eq!(writers.write(&Caller::root(), INO, 999, Bytes::from_static(b"ab")).await, Err(Errno::NOSPC));
    writers.write(&Caller::root(), INO, 998, Bytes::from_static(b"ab")).await.unwrap();
    assert_eq!(writers.write(&Caller::root(), INO, 1 << 57, Bytes::from_static(b"a")).await, Err(Errno::FBIG));
}

#[tokio::test]
async fn appends_land_behind_what_was_buffered_and_at_the_real_end() {
    let (writers, inner) = writers(1);
    let caller = Caller::root();
    writers.write(&caller, INO, 0, Bytes::from_static(b"abc")).await.unwrap();
    assert_eq!(writers.append(&caller, INO, Bytes::from_static(b"def")).await, Ok(3));
    let big = Bytes::from(vec![b'g'; 200_000]);
    assert_eq!(writers.append(&caller, INO, big.clone()).await, Ok(6));
    assert_eq!(content(&inner, INO), [b"abcdef", &big[..]].concat());
    assert_eq!(writers.shell.budget.free(), BUFFER_BYTES_MIN);
}

#[tokio::test]
async fn buffered_bytes_leave_by_age_and_idle_entries_are_forgotten() {
    let fake = Fake::default();
    let inner = fake.0.clone();
    inner.lock().unwrap().files.insert(INO, Committed::default());
    let clock = Arc::new(crate::env::ManualClock::new(Duration::from_secs(100)));
    let writers = Writers::over(Arc::new(fake), clock.clone(), SHAPE, BUFFER_BYTES_MIN);
    writers.write(&Caller::root(), INO, 0, Bytes::from_static(b"abc")).await.unwrap();
    assert!(writers.sweep());
    assert!(writers.is_dirty(INO));
    clock.advance(Duration::from_secs(6));
    assert!(writers.sweep());
    assert!(!writers.is_dirty(INO));
    assert_eq!(content(&inner, INO), b"abc");
    clock.advance(Duration::from_secs(6));
    assert!(!writers.sweep());
    assert!(writers.table().entries.is_empty());
}
