//! The machine against a model: random writes, completions in any order, failures, and a crash after every commit.

use crate::types::{CHUNK_BYTES, Errno, SliceId, Time};
use crate::vfs::writer::event::{Action, Event, Now, Shape};
use crate::vfs::writer::machine::{DIRTY_AGE_MAX, Machine};
use crate::vfs::writer::testing::Committed;
use proptest::prelude::*;
use std::collections::HashMap;
use std::time::Duration;

const SHAPE: Shape = Shape { block_bytes: 16, frame_bytes_max: 8, uploads_max: 4, whole_blocks: false };
/// Positions of the model and the offsets they stand for: a stretch across a chunk border and one two chunks later.
const SPAN: u64 = 160;

fn offset_of(position: u64) -> u64 {
    if position < 100 { CHUNK_BYTES - 50 + position } else { 3 * CHUNK_BYTES + position - 100 }
}

fn now(step: u64) -> Now {
    Now { wall: Time { sec: 1000 + step as i64, nsec: 0 }, mono: Duration::from_millis(step) }
}

#[derive(Default)]
struct World {
    machine: Option<Machine>,
    step: u64,
    next_id: u64,
    writes: u64,
    ticket: u64,
    in_flight: Vec<Action>,
    committed: Committed,
    /// Per position, what was written when.
    history: Vec<Vec<(u64, u8)>>,
    /// (step, length as applications of this host see it), growing.
    lengths: Vec<(u64, u64)>,
    /// Of a flush that is not answered: when it was asked.
    flushes: HashMap<u64, u64>,
    /// Per position, when the byte seen by others was written.
    seen: Vec<u64>,
    outcomes: Vec<Result<(), Errno>>,
    dropped: u64,
}

impl World {
    fn new() -> World {
        World {
            machine: Some(Machine::new(SHAPE)),
            history: vec![Vec::new(); SPAN as usize],
            seen: vec![0; SPAN as usize],
            ..World::default()
        }
    }

    fn event(&mut self, event: Event<'_>) {
        self.step += 1;
        let mut machine = self.machine.take().unwrap();
        let before = machine.held();
        let written = if let Event::Written { data, .. } = &event { data.len() + 1024 } else { 0 };
        let actions = machine.handle(event, now(self.step));
        assert!(machine.held() <= before + written, "an event takes no more memory than it brings");
        self.machine = Some(machine);
        for action in actions {
            match action {
                Action::Wake { ticket, result } => {
                    let asked = self.flushes.remove(&ticket).expect("a flush is answered once");
                    if result.is_ok() && self.dropped == 0 {
                        self.check_flushed(asked);
                    }
                    self.outcomes.push(result);
                }
                Action::Dropped { bytes, .. } => self.dropped += bytes,
                Action::Discard { slices } => self.discard(&slices),
                action => self.in_flight.push(action),
            }
        }
        let commits = self.in_flight.iter().filter(|a| matches!(a, Action::Commit { .. })).count();
        let uploads = self.in_flight.iter().filter(|a| matches!(a, Action::Upload { .. })).count();
        assert!(commits <= 1 && uploads <= 4);
    }

    fn write(&mut self, position: u64, len: u64) {
        let end = if position < 100 { 100 } else { SPAN };
        let len = len.min(end - position);
        // Unique, so that a byte tells which write it is of.
        self.writes += 1;
        let value = u8::try_from(self.writes).unwrap();
        let data = vec![value; len as usize];
        self.event(Event::Written { offset: offset_of(position), data: &data });
        for p in position..position + len {
            self.history[p as usize].push((self.step, value));
        }
        let length = offset_of(position + len - 1) + 1;
        if self.lengths.last().is_none_or(|(_, known)| length > *known) {
            self.lengths.push((self.step, length));
        }
    }

    fn flush(&mut self) {
        self.ticket += 1;
        self.flushes.insert(self.ticket, self.step);
        self.event(Event::Flush { ticket: self.ticket });
    }

    /// What is removed is named by no record and on its way into none, nor is a block of it still going up.
    fn discard(&mut self, slices: &[(SliceId, u32)]) {
        assert!(!slices.is_empty());
        for (id, _) in slices {
            assert!(!self.committed.chunks.values().flatten().any(|record| record.id == *id), "slice {id} is in use");
            assert!(!self.in_flight.iter().any(|action| match action {
                Action::Upload { block, .. } => block.slice == *id,
                Action::Commit { slices, .. } => slices.iter().any(|slice| slice.id == *id),
                _ => false,
            }));
        }
        self.committed.objects.retain(|block, _| !slices.iter().any(|(id, _)| *id == block.slice));
    }

    fn complete(&mut self, pick: usize, fault: Option<Errno>) {
        if self.in_flight.is_empty() {
            return;
        }
        let result = fault.map_or(Ok(()), Err);
        let event = match self.in_flight.remove(pick % self.in_flight.len()) {
            Action::Assign { key } => {
                self.next_id += 1;
                Event::Assigned { key, result: result.map(|()| self.next_id) }
            }
            Action::Upload { key, block, data } => {
                assert_eq!(data.len(), block.len as usize);
                if result.is_ok()
                    && let Some(old) = self.committed.objects.insert(block, data.clone())
                {
                    assert_eq!(old, data, "a block never changes");
                }
                Event::Uploaded { key, index: block.index, result }
            }
            Action::Commit { chunk, slices, mtime } => {
                let result = result.and_then(|()| self.committed.commit(chunk, &slices, mtime, SHAPE.block_bytes));
                self.check_crash();
                Event::Committed(result)
            }
            Action::Wake { .. } | Action::Dropped { .. } | Action::Discard { .. } => unreachable!(),
        };
        self.event(event);
    }

    /// What another host sees, or a remount after a crash: no byte nobody wrote, none that goes back, no length ahead of its data.
    fn check_crash(&mut self) {
        let bytes = self.committed.bytes(SHAPE.block_bytes);
        let length = self.committed.length;
        let grown = self.lengths.iter().find(|(_, local)| *local >= length).map_or(0, |(step, _)| *step);
        for p in 0..SPAN {
            let history = &self.history[p as usize];
            match bytes.get(&offset_of(p)) {
                Some(value) => {
                    let written = history.iter().rev().find(|(_, v)| v == value).expect("somebody wrote it").0;
                    assert!(written >= self.seen[p as usize], "position {p} went back");
                    self.seen[p as usize] = written;
                }
                None if offset_of(p) < length => {
                    let first = history.first().map_or(u64::MAX, |(step, _)| *step);
                    assert!(first > grown, "zeros at {p}, written in step {first}, under a length of step {grown}");
                }
                None => assert_eq!(self.seen[p as usize], 0, "position {p} vanished"),
            }
        }
    }

    fn check_flushed(&self, asked: u64) {
        for p in 0..SPAN as usize {
            let due = self.history[p].iter().rev().find(|(step, _)| *step <= asked).map_or(0, |(step, _)| *step);
            assert!(self.seen[p] >= due, "position {p} of step {due} is not there after a flush of step {asked}");
        }
    }

    fn finish(&mut self) {
        for _ in 0..10_000 {
            if self.in_flight.is_empty() && self.flushes.is_empty() {
                break;
            }
            self.complete(0, None);
        }
        assert!(self.flushes.is_empty(), "every flush is answered");
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, u64),
    Complete(usize),
    Fail(usize),
    Flush,
    Press,
    Age,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..SPAN, 1u64..40).prop_map(|(p, l)| Op::Write(p, l)),
        6 => (0..SPAN / 8, 1u64..9).prop_map(|(p, l)| Op::Write(p * 8, l)),
        8 => (0usize..8).prop_map(Op::Complete),
        1 => (0usize..8).prop_map(Op::Fail),
        1 => Just(Op::Flush),
        1 => Just(Op::Press),
        1 => Just(Op::Age),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn every_crash_leaves_a_file_that_was(ops in prop::collection::vec(op(), 1..120)) {
        let mut world = World::new();
        for op in ops {
            match op {
                Op::Write(p, l) => world.write(p, l),
                Op::Complete(pick) => world.complete(pick, None),
                Op::Fail(pick) => world.complete(pick, Some(Errno::IO)),
                Op::Flush => world.flush(),
                Op::Press => world.event(Event::Pressed),
                Op::Age => { world.step += 6000; world.event(Event::Aged) }
            }
        }
        // The cause is gone: one flush takes everything along.
        world.finish();
        world.flush();
        world.finish();
        prop_assert_eq!(world.outcomes.last(), Some(&Ok(())));
        let bytes = world.committed.bytes(SHAPE.block_bytes);
        for p in 0..SPAN {
            prop_assert_eq!(bytes.get(&offset_of(p)).copied(), world.history[p as usize].last().map(|(_, v)| *v));
        }
        let machine = world.machine.unwrap();
        prop_assert!(!machine.is_dirty() && machine.held() == 0 && world.dropped == 0);
    }
}

/// Runs everything that is started, without faults.
fn settle(world: &mut World) {
    while !world.in_flight.is_empty() {
        world.complete(0, None);
    }
}

#[test]
fn appends_and_overwrites_of_the_tail_stay_one_slice() {
    let mut world = World::new();
    for p in 100..140 {
        world.write(p, 1);
    }
    world.write(133, 3);
    world.flush();
    settle(&mut world);
    assert_eq!(world.committed.chunks[&3].len(), 1);
    assert_eq!(world.outcomes, [Ok(())]);
}

#[test]
fn full_blocks_go_up_before_any_flush_and_small_slices_travel_as_frames() {
    let mut world = World::new();
    world.write(100, 40);
    settle(&mut world);
    assert_eq!(world.committed.objects.len(), 2);
    assert!(world.committed.chunks.is_empty());
    world.flush();
    settle(&mut world);
    assert_eq!(world.committed.objects.len(), 3);
    world.write(0, 8);
    world.flush();
    settle(&mut world);
    assert_eq!((world.committed.objects.len(), world.committed.frames.len()), (3, 1));
}

#[test]
fn slices_of_one_chunk_share_a_commit() {
    let mut world = World::new();
    for p in [150, 140, 130, 120] {
        world.write(p, 4);
    }
    world.flush();
    for _ in 0..4 {
        world.complete(0, None);
    }
    let [Action::Commit { slices, .. }] = &world.in_flight[..] else { panic!("{:?}", world.in_flight) };
    assert_eq!(slices.len(), 4);
}

#[test]
fn a_failed_flush_keeps_the_data_and_the_next_one_commits_it() {
    let mut world = World::new();
    world.write(100, 40);
    world.flush();
    world.complete(0, None);
    while let Some(upload) = world.in_flight.iter().position(|a| matches!(a, Action::Upload { .. })) {
        world.complete(upload, Some(Errno::NOSPC));
    }
    assert_eq!(world.outcomes, [Err(Errno::NOSPC)]);
    assert!(world.in_flight.is_empty() && world.machine.as_ref().unwrap().is_dirty());
    world.flush();
    settle(&mut world);
    assert_eq!(world.outcomes.last(), Some(&Ok(())));
    assert_eq!(world.committed.bytes(16).len(), 40);
}

#[test]
fn a_flush_is_not_told_a_failure_of_an_attempt_that_began_before_it() {
    let mut world = World::new();
    world.write(100, 16);
    world.complete(0, None);
    // The upload is under way; its cause to fail is gone when the flush is asked for.
    world.flush();
    world.complete(0, Some(Errno::IO));
    assert!(world.outcomes.is_empty());
    // A failure of its own attempt is told, to this flush; the second, which came later, tries again.
    world.flush();
    world.complete(0, Some(Errno::IO));
    assert_eq!(world.outcomes, [Err(Errno::IO)]);
    settle(&mut world);
    assert_eq!(world.outcomes, [Err(Errno::IO), Ok(())]);
}

#[test]
fn a_background_failure_is_told_once() {
    let mut world = World::new();
    world.write(100, 20);
    world.complete(0, Some(Errno::IO));
    let machine = world.machine.as_mut().unwrap();
    assert_eq!(machine.take_error(), Some(Errno::IO));
    assert_eq!(machine.take_error(), None);
    world.flush();
    settle(&mut world);
    assert_eq!(world.outcomes, [Ok(())]);
}

#[test]
fn a_deleted_inode_drops_its_data_and_says_so_once() {
    let mut world = World::new();
    world.committed.deleted = true;
    world.write(100, 20);
    world.flush();
    settle(&mut world);
    assert_eq!(world.outcomes, [Err(Errno::NOENT)]);
    assert_eq!(world.dropped, 20);
    world.flush();
    assert_eq!(world.outcomes.last(), Some(&Ok(())));
    // In the background nobody is there to be told; the next flush is.
    world.write(100, 4);
    world.event(Event::Pressed);
    settle(&mut world);
    world.flush();
    world.flush();
    assert_eq!(world.outcomes[2..], [Err(Errno::NOENT), Ok(())]);
}

#[test]
fn the_last_close_gives_up_what_failed_and_sends_off_what_did_not() {
    let mut world = World::new();
    world.write(100, 4);
    world.event(Event::Closed);
    settle(&mut world);
    assert_eq!(world.committed.bytes(16).len(), 4);
    world.event(Event::Opened);
    world.write(120, 4);
    world.flush();
    world.complete(0, Some(Errno::IO));
    world.event(Event::Closed);
    assert!(!world.machine.as_ref().unwrap().is_dirty());
    assert_eq!(world.dropped, 4);
}

#[test]
fn old_data_is_sent_off() {
    let mut world = World::new();
    world.write(100, 4);
    world.event(Event::Aged);
    assert!(world.in_flight.is_empty());
    world.step += DIRTY_AGE_MAX.as_millis() as u64;
    world.event(Event::Aged);
    settle(&mut world);
    assert_eq!(world.committed.bytes(16).len(), 4);
}

#[test]
fn attributes_read_before_a_commit_do_not_shrink_the_file() {
    let mut world = World::new();
    let mut before = crate::vfs::writer::testing::attr(0, now(0).wall);
    world.write(100, 10);
    let machine = world.machine.as_ref().unwrap();
    let mut while_dirty = before.clone();
    machine.overlay(&mut while_dirty, now(world.step));
    assert_eq!(while_dirty.length, 3 * CHUNK_BYTES + 10);
    world.flush();
    settle(&mut world);
    world.machine.as_ref().unwrap().overlay(&mut before, now(world.step));
    assert_eq!((before.length, before.mtime), (while_dirty.length, while_dirty.mtime));
    // A truncation after the commit is believed.
    let mut cut = crate::vfs::writer::testing::attr(1, now(world.step + 1).wall);
    world.machine.as_ref().unwrap().overlay(&mut cut, now(world.step + 1));
    assert_eq!(cut.length, 1);
}
