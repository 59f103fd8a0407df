//! When the journal takes frames, and what it remembers.

use super::*;
use crate::meta::ops::chunk::testing::{World, ready, slice};
use crate::meta::ops::write::NewSlice;
use crate::types::Ino;
use std::sync::atomic::Ordering;

/// A volume on a server, one client that journals, and a file.
fn world() -> (World, Arc<Meta>, Ino) {
    let world = World::new();
    world.store.far.store(true, Ordering::Relaxed);
    let meta = client(&world);
    ready(meta.examine_sessions()).unwrap();
    let ino = world.file(0);
    (world, meta, ino)
}

fn client(world: &World) -> Arc<Meta> {
    let meta = world.neighbour();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    // Numbers are fetched ahead in a task.
    runtime.block_on(meta.new_session("/mnt")).unwrap();
    meta
}

fn framed(id: SliceId) -> NewSlice {
    NewSlice { frame: Some(Bytes::from_static(b"frame")), ..slice(0, id, 5) }
}

fn write(world: &World, meta: &Meta, ino: Ino, id: SliceId) -> Result<(), Errno> {
    ready(meta.write(ino, 0, &[framed(id)], world.now())).map(|_| ())
}

/// What a client of another make does when it begins: a number, and only then its document.
fn number_of_a_stranger(world: &World) -> u64 {
    let next = world.counter(key::NEXT_SESSION) + 1;
    world.store.put(Write::Set(key::NEXT_SESSION, key::decimal(next)));
    next as u64
}

fn document(world: &World, sid: u64, version: &str) {
    world.store.put(Write::ZAdd(key::ALL_SESSIONS, world.now().sec + 60, key::decimal(sid)));
    world.store.put(Write::HSet(key::SESSION_INFOS, key::decimal(sid), format!("{{\"Version\":\"{version}\"}}").into()));
}

fn leaves(world: &World, sid: u64) {
    world.store.put(Write::ZRem(key::ALL_SESSIONS, key::decimal(sid)));
    world.store.put(Write::HDel(key::SESSION_INFOS, key::decimal(sid)));
}

#[test]
fn a_client_of_another_make_stops_the_very_next_frame() {
    // With its number alone, when its document comes, or when it comes back without a number.
    for step in ["number", "document", "back"] {
        let (world, meta, ino) = world();
        assert_eq!(write(&world, &meta, ino, 1), Ok(()));
        let sid = if step == "back" { 77 } else { number_of_a_stranger(&world) };
        if step != "number" {
            document(&world, sid, "1.4.1");
        }
        assert!(meta.journal().admits(1, 5), "it is not known yet");
        assert_eq!(write(&world, &meta, ino, 2), Err(Errno::AGAIN), "{step}");
        assert_eq!((world.list(ino, 0).len(), world.frame(2)), (1, None), "nothing happened");
        assert!(!meta.journal().admits(1, 5) && meta.journal().is_unsure());
        assert_eq!(ready(meta.write(ino, 0, &[slice(0, 2, 5)], world.now())).map(|_| ()), Ok(()), "what is an object is not concerned");
        // What is there is due at once.
        assert_eq!(meta.journal().due(10, false).0.iter().map(|frame| frame.id).collect::<Vec<_>>(), [1]);
        ready(meta.look_at_journal()).unwrap();
        assert!(!meta.journal().admits(1, 5));
        assert_eq!(meta.journal().is_unsure(), step == "number");
        document(&world, sid, "1.4.1");
        world.clock.advance(EXAMINE_AGAIN);
        ready(meta.look_at_journal()).unwrap();
        assert!(!meta.journal().admits(1, 5));
        leaves(&world, sid);
        ready(meta.look_at_journal()).unwrap();
        assert!(meta.journal().admits(1, 5), "it has left");
        assert_eq!(write(&world, &meta, ino, 3), Ok(()));
    }
}

#[test]
fn clients_of_ours_are_no_reason_to_stop() {
    let (world, meta, ino) = world();
    let other = client(&world);
    assert_eq!(write(&world, &meta, ino, 1), Err(Errno::AGAIN), "somebody has come");
    ready(meta.look_at_journal()).unwrap();
    assert_eq!(write(&world, &meta, ino, 1), Ok(()));
    ready(other.close_session()).unwrap();
    ready(meta.look_at_journal()).unwrap();
    assert_eq!(write(&world, &meta, ino, 2), Ok(()));
    // One that has come and gone since is known by the outcomes of its commits.
    let sid = number_of_a_stranger(&world);
    world.store.put(Write::HSet(key::op(&sid.to_string(), 0), "token".into(), "x".into()));
    ready(meta.look_at_journal()).unwrap();
    assert!(meta.journal().admits(1, 5) && !meta.journal().is_unsure());
}

#[test]
fn a_number_that_never_shows_up_is_given_up() {
    let (world, meta, _) = world();
    number_of_a_stranger(&world);
    ready(meta.look_at_journal()).unwrap();
    world.clock.advance(UNSEEN_MAX - Duration::from_millis(1));
    ready(meta.look_at_journal()).unwrap();
    assert!(!meta.journal().admits(1, 5));
    world.clock.advance(Duration::from_millis(1));
    ready(meta.look_at_journal()).unwrap();
    assert!(meta.journal().admits(1, 5));
    // A counter that was raised by a repair is not followed number by number.
    world.store.put(Write::Set(key::NEXT_SESSION, "9000000000000000000".into()));
    ready(meta.look_at_journal()).unwrap();
    assert_eq!(meta.journal().state().unseen.len(), UNSEEN_COUNT_MAX as usize);
}

#[test]
fn one_that_is_listed_without_a_document_is_a_stranger() {
    let (world, meta, _) = world();
    let sid = number_of_a_stranger(&world);
    world.store.put(Write::ZAdd(key::ALL_SESSIONS, world.now().sec, key::decimal(sid)));
    ready(meta.look_at_journal()).unwrap();
    world.clock.advance(UNSEEN_MAX + EXAMINE_AGAIN);
    ready(meta.look_at_journal()).unwrap();
    assert!(!meta.journal().admits(1, 5), "however long it takes");
}

#[test]
fn nothing_is_taken_before_the_first_look_or_when_it_is_switched_off() {
    let (world, _, ino) = world();
    let meta = client(&world);
    assert!(!meta.journal().admits(1, 5));
    assert_eq!(write(&world, &meta, ino, 1), Err(Errno::AGAIN));
    ready(meta.look_at_journal()).unwrap();
    assert!(meta.journal().admits(1, 5));
    meta.journal().switch_off();
    assert!(!meta.journal().admits(1, 5));
}

#[test]
fn bytes_rate_and_age_are_bounded() {
    let (world, meta, ino) = world();
    let journal = meta.journal();
    // In bytes of the whole volume, whoever has put them.
    assert_eq!(journal.state().bytes_max, BYTES_MAX, "a store without a bound");
    journal.note_kept(BYTES_MAX - 4);
    assert!(!journal.admits(1, 5) && journal.admits(1, 4));
    journal.note_kept(0);
    // In rate, shared by the clients.
    world.clock.advance(Duration::from_secs(2));
    let frame = 64 << 10;
    let taken = (0..1000).filter(|_| journal.admits(1, frame)).count() as u64;
    assert_eq!(taken, BYTES_PER_SECOND / frame);
    world.clock.advance(Duration::from_millis(500));
    assert_eq!((0..1000).filter(|_| journal.admits(1, frame)).count() as u64, BYTES_PER_SECOND / frame / 2);
    let _other = client(&world);
    ready(meta.look_at_journal()).unwrap();
    world.clock.advance(Duration::from_secs(2));
    assert_eq!((0..1000).filter(|_| journal.admits(1, frame)).count() as u64, BYTES_PER_SECOND / frame / 2);
    // In age, as long as others become objects.
    world.clock.advance(Duration::from_secs(2));
    assert_eq!(write(&world, &meta, ino, 1), Ok(()));
    world.clock.advance(AGE_MAX + Duration::from_millis(1));
    assert!(journal.admits(1, 5), "the bucket is away");
    journal.note_stored();
    assert!(!journal.admits(1, 5));
    journal.settle(&[1].into());
    assert!(journal.admits(1, 5));
}

#[test]
fn a_server_without_memory_takes_nothing_for_a_while() {
    let (world, meta, ino) = world();
    assert_eq!(write(&world, &meta, ino, 1), Ok(()));
    meta.journal().note_full();
    assert!(meta.journal().is_full() && !meta.journal().admits(1, 5));
    assert_eq!(meta.journal().due(10, false).0.len(), 1, "and what is there makes room at once");
    world.clock.advance(FULL_PAUSE);
    assert!(!meta.journal().is_full() && meta.journal().admits(1, 5));
}

#[test]
fn what_a_list_brought_is_not_asked_for() {
    let (world, meta, ino) = world();
    assert_eq!(write(&world, &meta, ino, 1), Ok(()));
    assert_eq!(ready(meta.write(ino, 0, &[slice(5, 2, 5)], world.now())).map(|_| ()), Ok(()));
    let other = client(&world);
    assert_eq!((other.journal().recall(1), other.journal().recall(2)), (None, None));
    ready(other.chunk(ino, 0, 10)).unwrap();
    assert_eq!((other.journal().recall(1), other.journal().recall(2)), (Some(Some(Bytes::from_static(b"frame"))), Some(None)));
    // Memory for it is bounded.
    let many: Vec<_> = (10..2000).map(|id| (id, Some(Bytes::from(vec![0; 10_000])))).collect();
    other.journal().told().learn(&many);
    let bytes = other.journal().told().bytes;
    assert!(bytes <= TOLD_BYTES_MAX && other.journal().recall(1999).is_some());
    let many: Vec<_> = (10_000..40_000).map(|id| (id, None)).collect();
    other.journal().told().learn(&many);
    let told = other.journal().told();
    assert_eq!((told.frames.len(), told.bytes), (TOLD_MAX, 0));
}

#[test]
fn own_frames_settle_in_any_order() {
    let (world, meta, ino) = world();
    for id in 1..=5 {
        assert_eq!(write(&world, &meta, ino, id), Ok(()));
    }
    let ids = |limit| meta.journal().due(limit, true).0.iter().map(|frame| frame.id).collect::<Vec<_>>();
    assert_eq!(meta.journal().due(9, false), (Vec::new(), Some(SETTLED)));
    assert_eq!(ids(3), [1, 2, 3]);
    meta.journal().settle(&[2].into());
    assert_eq!(ids(9), [1, 3, 4, 5]);
    meta.journal().settle(&[1, 3, 99].into());
    assert_eq!(ids(9), [4, 5]);
}

#[test]
fn a_lock_brings_the_frames_of_others_only() {
    let (world, meta, ino) = world();
    let until = |meta: &Meta| match meta.journal().frames_behind_known(key::chunk(ino, 0)) {
        Query::Frames { until, .. } => until,
        other => panic!("{other:?}"),
    };
    assert_eq!(until(&meta), 0);
    assert_eq!(write(&world, &meta, ino, 1), Ok(()));
    assert_eq!((until(&meta), meta.journal().recall(1)), (1, Some(Some(Bytes::from_static(b"frame")))));
    // A record alone says nothing of a frame: it may be a copy, and then there is one.
    assert_eq!(ready(meta.write(ino, 0, &[slice(5, 2, 5)], world.now())).map(|_| ()), Ok(()));
    assert_eq!((until(&meta), meta.journal().recall(2)), (1, None));
    let other = client(&world);
    ready(other.examine_sessions()).unwrap();
    assert_eq!(write(&world, &other, ino, 3), Ok(()));
    ready(meta.flock(ino, 7, crate::meta::ops::lock::LockKind::Exclusive)).unwrap().unwrap();
    assert_eq!(until(&meta), 3);
    assert_eq!((meta.journal().recall(2), meta.journal().recall(3)), (Some(None), Some(Some(Bytes::from_static(b"frame")))));
    // What was forgotten is brought again.
    meta.journal().told().frames.pop(&3);
    assert_eq!(until(&meta), 0);
}
