//! Who drains what, and when.

use super::*;
use crate::chunk::testing::Bench;
use crate::jobs::{JobsConfig, JobsHandle, start};
use crate::meta::key;
use crate::meta::store::Query;
use tokio::sync::mpsc;

/// A client of a volume on a server, as a neighbour of the one in `bench`.
async fn client(bench: &Bench) -> (Arc<Meta>, Arc<Chunks>) {
    let meta = bench.world.neighbour();
    meta.new_session("/mnt").await.unwrap();
    let chunks = Chunks::new(meta.clone(), bench.blocks.clone());
    (meta, chunks)
}

fn far() -> Bench {
    let bench = Bench::new(0);
    bench.world.store.far.store(true, std::sync::atomic::Ordering::Relaxed);
    bench
}

fn jobs(meta: &Arc<Meta>, chunks: &Arc<Chunks>) -> JobsHandle {
    start(JobsConfig::new(meta.clone(), chunks.clone(), mpsc::channel(1).1))
}

async fn frames(bench: &Bench) -> u64 {
    bench.world.neighbour().look_at_journal().await.unwrap().count
}

async fn until_drained(bench: &Bench) {
    let begin = std::time::Instant::now();
    while frames(bench).await > 0 {
        assert!(begin.elapsed() < Duration::from_secs(20), "never drained");
        // The manual clock of the volume goes on.
        bench.world.clock.advance(Duration::from_millis(100));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn own_frames_are_drained_when_they_are_a_second_old() {
    let bench = far();
    let (meta, chunks) = client(&bench).await;
    meta.examine_sessions().await.unwrap();
    let ino = bench.world.file(0);
    let frame = Some(bench.pattern(1, 100));
    let new = crate::meta::ops::write::NewSlice { pos: 0, id: 1, len: 100, frame };
    meta.write(ino, 0, &[new], bench.world.now()).await.unwrap();
    assert_eq!(chunks.drain_own(false).await, Ok(Some(Duration::from_secs(1))));
    assert_eq!((frames(&bench).await, bench.memory.objects().len()), (1, 0));
    let handle = jobs(&meta, &chunks);
    until_drained(&bench).await;
    handle.stop().await;
    assert_eq!(bench.memory.objects().len(), 1);
    assert_eq!(chunks.drain_own(false).await, Ok(None));
}

#[tokio::test]
async fn an_end_does_not_wait_for_a_bucket_that_is_away() {
    use crate::object::ObjectError;
    use crate::object::fault::{Fault, Request};
    let bench = far();
    let (meta, chunks) = client(&bench).await;
    meta.examine_sessions().await.unwrap();
    let ino = bench.world.file(0);
    let new = crate::meta::ops::write::NewSlice { pos: 0, id: 1, len: 100, frame: Some(bench.pattern(1, 100)) };
    meta.write(ino, 0, &[new], bench.world.now()).await.unwrap();
    bench.faults.always(Request::Put, Fault::Hold(Arc::new(tokio::sync::Semaphore::new(0))));
    assert_eq!(chunks.drain_own_within(Duration::from_millis(20)).await, 1);
    bench.faults.heal();
    bench.faults.always(Request::Put, Fault::Fail(ObjectError::Denied("no".into())));
    assert_eq!(chunks.drain_own_within(Duration::from_secs(20)).await, 1);
    bench.faults.heal();
    assert_eq!((chunks.drain_own_within(Duration::from_secs(20)).await, frames(&bench).await), (0, 0));
}

#[tokio::test]
async fn what_a_client_has_left_is_drained_by_whoever_has_the_turn() {
    let bench = far();
    let (dead, _) = client(&bench).await;
    dead.examine_sessions().await.unwrap();
    let ino = bench.world.file(0);
    for id in 1..=100 {
        let frame = Some(bench.pattern(id, 100));
        let new = crate::meta::ops::write::NewSlice { pos: 0, id, len: 100, frame };
        dead.write(ino, 0, &[new], bench.world.now()).await.unwrap();
    }
    let (meta, chunks) = client(&bench).await;
    // Somebody else has the turn, and is gone as well.
    assert_eq!(dead.begin_drain().await, Ok(true));
    let (_, stopped) = tokio::sync::watch::channel(false);
    let stop = Stop(stopped);
    assert_eq!(meta.begin_drain().await, Ok(false));
    bench.world.clock.advance(Duration::from_secs(11));
    assert_eq!(meta.begin_drain().await, Ok(true));
    assert_eq!(dead.begin_drain().await, Ok(false));
    meta.end_drain().await.unwrap();
    dead.end_drain().await.unwrap();
    assert_eq!(bench.world.store.get(Query::Get(key::DRAINER)), crate::meta::store::Value::Bytes(None), "nothing is left of a turn");
    drop(stop);
    let handle = jobs(&meta, &chunks);
    until_drained(&bench).await;
    handle.stop().await;
    assert_eq!(bench.memory.objects().len(), 100);
}

#[tokio::test]
async fn a_store_of_this_host_keeps_what_it_may() {
    let bench = Bench::new(0);
    let ino = bench.world.file(0);
    let mut ids = Vec::new();
    for _ in 0..200 {
        ids.push(bench.write(ino, 0, 0, 1000).await);
    }
    let (_keep, stopped) = tokio::sync::watch::channel(false);
    let stop = Stop(stopped);
    let kept = bench.world.meta.look_at_journal().await.unwrap();
    assert_eq!((kept.count, kept.bytes), (200, 200_000));
    shrink(&bench.world.meta, &bench.chunks, kept.bytes, 200_000, 100_000, &stop).await.unwrap();
    assert!(bench.memory.objects().is_empty());
    shrink(&bench.world.meta, &bench.chunks, kept.bytes, 199_999, 100_000, &stop).await.unwrap();
    let left = bench.world.meta.look_at_journal().await.unwrap().count as usize;
    assert!((1..=100).contains(&left), "{left}");
    assert_eq!(bench.memory.objects().len(), 200 - left);
    // The oldest went.
    assert!(ids[..200 - left].iter().all(|id| bench.world.frame(*id).is_none()));
    assert_eq!(bench.content(ino, 0).await, bench.pattern(ids[199], 1000));
}
