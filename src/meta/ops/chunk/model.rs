//! Random sequences of data operations against arrays of bytes. Slices have made-up contents; a file is read through its records, as a
//! reader would. Afterwards every reference count must be exact and deleting the files must free every slice once.

use super::testing::{World, ready, slice};
use super::visible;
use crate::meta::codec::decode_slices;
use crate::meta::key;
use crate::meta::ops::compact::plan_compaction;
use crate::meta::ops::fallocate::Falloc;
use crate::meta::store::{Query, Value};
use crate::types::{Attr, CHUNK_BYTES, Caller, Ino, SliceId, SliceRecord};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The files are looked at through a window around the border of their first two chunks. All before it is zeros.
const WINDOW: u64 = 120;
const START: u64 = CHUNK_BYTES - WINDOW / 2;
const FILES: usize = 2;

#[derive(Clone, Debug)]
enum Op {
    Write { file: usize, at: u64, len: u64 },
    Append { file: usize, len: u64 },
    Truncate { file: usize, length: u64 },
    Fallocate { file: usize, mode: Falloc, at: u64, len: u64 },
    Copy { from: usize, at: u64, to: usize, to_at: u64, len: u64 },
    Compact { file: usize, chunk: u32 },
}

fn ops() -> impl Strategy<Value = Op> {
    let (file, at, len) = (0..FILES, 0..WINDOW - 40, 1u64..40);
    let modes = [Falloc::Allocate, Falloc::KeepSize, Falloc::PunchHole, Falloc::ZeroRange, Falloc::ZeroRangeKeepSize];
    prop_oneof![
        4 => (file.clone(), at.clone(), len.clone()).prop_map(|(file, at, len)| Op::Write { file, at, len }),
        1 => (file.clone(), 1u64..20).prop_map(|(file, len)| Op::Append { file, len }),
        2 => (file.clone(), 0..WINDOW).prop_map(|(file, length)| Op::Truncate { file, length }),
        2 => (file.clone(), prop::sample::select(modes.to_vec()), at.clone(), len.clone())
            .prop_map(|(file, mode, at, len)| Op::Fallocate { file, mode, at, len }),
        3 => (file.clone(), at.clone(), file.clone(), at, len).prop_map(|(from, at, to, to_at, len)| Op::Copy { from, at, to, to_at, len }),
        2 => (file, 0u32..2).prop_map(|(file, chunk)| Op::Compact { file, chunk }),
    ]
}

struct Run {
    world: World,
    inos: Vec<Ino>,
    /// What the files should hold in the window, to their ends.
    models: Vec<Vec<u8>>,
    /// What the slices hold.
    slices: BTreeMap<SliceId, Vec<u8>>,
    dead: BTreeSet<SliceId>,
}

impl Run {
    fn new(trash_days: u64) -> Run {
        let world = World::with(|setting| setting.set("TrashDays", trash_days.into()));
        let inos = (0..FILES).map(|_| world.file(START)).collect();
        // The files begin at the window's start already.
        world.store.put(crate::meta::store::Write::Set(key::USED_SPACE, key::decimal(FILES as i64 * Attr::space_of(START))));
        Run { world, inos, models: vec![Vec::new(); FILES], slices: BTreeMap::new(), dead: BTreeSet::new() }
    }

    fn new_slice(&mut self, bytes: Vec<u8>) -> SliceId {
        let id = self.slices.len() as u64 + 1;
        self.slices.insert(id, bytes);
        id
    }

    /// Bytes that tell one slice and offset from another.
    fn pattern(&self, len: u64) -> Vec<u8> {
        let id = self.slices.len() as u64 + 1;
        (0..len).map(|i| (id.wrapping_mul(53).wrapping_add(i) % 255) as u8 + 1).collect()
    }

    fn bytes_of(&self, records: &[SliceRecord], range: Range<u32>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for extent in visible(records, range) {
            match extent.id {
                0 => bytes.extend(vec![0; extent.len as usize]),
                id => {
                    assert!(!self.dead.contains(&id), "slice {id} is read after its last reference went");
                    bytes.extend_from_slice(&self.slices[&id][extent.off as usize..(extent.off + extent.len) as usize]);
                }
            }
        }
        bytes
    }

    fn bury(&mut self, dead: Vec<(SliceId, u32)>) {
        for (id, size) in dead {
            assert_eq!(self.slices[&id].len(), size as usize);
            assert!(self.dead.insert(id), "slice {id} died twice");
        }
    }

    fn apply(&mut self, op: &Op) {
        let root = Caller::root();
        let now = self.world.now();
        match *op {
            Op::Write { file, at, len } => {
                let bytes = self.pattern(len);
                let id = self.new_slice(bytes.clone());
                let mut done = 0;
                for part in crate::types::chunk_parts(START + at..START + at + len) {
                    // A writer makes one slice per chunk.
                    let part_id = if done == 0 { id } else { self.new_slice(bytes[done..].to_vec()) };
                    if done == 0 {
                        self.slices.insert(id, bytes[..part.len as usize].to_vec());
                    }
                    ready(self.world.meta.write(self.inos[file], part.index, &[slice(part.pos, part_id, part.len)], now)).unwrap();
                    done += part.len as usize;
                }
                let (at, model) = (at as usize, &mut self.models[file]);
                model.resize(model.len().max(at + bytes.len()), 0);
                model[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            Op::Append { file, len } => {
                if self.models[file].len() as u64 + len > WINDOW {
                    return;
                }
                let bytes = self.pattern(len);
                let id = self.new_slice(bytes.clone());
                let (offset, _) = ready(self.world.meta.append(self.inos[file], slice(0, id, len as u32), now)).unwrap();
                assert_eq!(offset, START + self.models[file].len() as u64);
                self.models[file].extend(bytes);
            }
            Op::Truncate { file, length } => {
                ready(self.world.meta.truncate(&root, self.inos[file], START + length)).unwrap();
                self.models[file].resize(length as usize, 0);
            }
            Op::Fallocate { file, mode, at, len } => {
                ready(self.world.meta.fallocate(&root, self.inos[file], mode, START + at, len)).unwrap();
                let (at, end, model) = (at as usize, (at + len) as usize, &mut self.models[file]);
                if !matches!(mode, Falloc::Allocate | Falloc::KeepSize) && at < model.len() {
                    let end = end.min(model.len());
                    model[at..end].fill(0);
                }
                if matches!(mode, Falloc::Allocate | Falloc::ZeroRange) {
                    model.resize(model.len().max(end), 0);
                }
            }
            Op::Copy { from, at, to, to_at, len } => {
                let len = len.min((self.models[from].len() as u64).saturating_sub(at));
                if from == to && at < to_at + len && to_at < at + len {
                    return;
                }
                let (copied, _) =
                    ready(self.world.meta.copy_range(&root, self.inos[from], START + at, self.inos[to], START + to_at, len)).unwrap();
                assert_eq!(copied, len);
                if len > 0 {
                    let bytes = self.models[from][at as usize..(at + len) as usize].to_vec();
                    let (at, model) = (to_at as usize, &mut self.models[to]);
                    model.resize(model.len().max(at + bytes.len()), 0);
                    model[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
            Op::Compact { file, chunk } => {
                let records = self.world.list(self.inos[file], chunk);
                let Some(plan) = plan_compaction(&records) else { return };
                let taken = &records[..plan.taken];
                let bytes = self.bytes_of(&taken[plan.skipped..], plan.pos..plan.pos + plan.len);
                let id = self.new_slice(bytes);
                let new = slice(plan.pos, id, plan.len);
                let dead = ready(self.world.meta.compact_commit(self.inos[file], chunk, taken, plan.skipped, new)).unwrap();
                self.bury(dead.expect("nobody else changes the list"));
            }
        }
    }

    fn check(&self) {
        let mut space = 0;
        for (ino, model) in self.inos.iter().zip(&self.models) {
            let attr = self.world.attr(*ino);
            assert_eq!(attr.length, START + model.len() as u64);
            space += attr.space();
            let first = self.bytes_of(&self.world.list(*ino, 0), START as u32..CHUNK_BYTES as u32);
            let second = self.bytes_of(&self.world.list(*ino, 1), 0..(WINDOW / 2) as u32);
            let bytes = [first, second].concat();
            assert_eq!(bytes[..model.len()], model[..], "file {ino}");
        }
        assert_eq!(self.world.counter(key::USED_SPACE), space);
        // Stored counts are records − 1, absent is 1 record.
        let mut counts: BTreeMap<SliceId, i64> = BTreeMap::new();
        for ino in &self.inos {
            for record in (0..2).flat_map(|chunk| self.world.list(*ino, chunk)).filter(|record| record.id != 0) {
                *counts.entry(record.id).or_default() += 1;
            }
        }
        // What compaction has replaced on a volume with a trash counts as well, until it is let go.
        let Value::Pairs(delayed) = self.world.store.get(Query::HGetAll(key::DEL_SLICES)) else { panic!("not a hash") };
        for (id, _) in delayed.iter().flat_map(|(_, value)| decode_slices(value).expect("ids and sizes")) {
            *counts.entry(id).or_default() += 1;
        }
        for (id, bytes) in &self.slices {
            let stored = self.world.reference(*id, bytes.len() as u32).unwrap_or(0);
            assert_eq!(counts.get(id).copied().unwrap_or(0), stored + 1, "references of slice {id}");
            assert_eq!(self.dead.contains(id), stored < 0, "slice {id}");
        }
    }

    fn delete_all(mut self) {
        for ino in self.inos.clone() {
            let length = self.world.attr(ino).length;
            self.world.unlink(ino);
            let dead = ready(self.world.meta.delete_file(ino, length)).unwrap();
            self.bury(dead);
        }
        let delayed = ready(self.world.meta.drop_delayed(i64::MAX, usize::MAX)).unwrap();
        self.bury(delayed.dead);
        assert_eq!(self.dead.len(), self.slices.len(), "every slice is freed");
    }
}

proptest! {
    #[test]
    fn files_hold_what_was_written_and_counts_are_exact(ops in prop::collection::vec(ops(), 1..30), trash_days in 0u64..2) {
        let mut run = Run::new(trash_days);
        for op in &ops {
            run.apply(op);
            run.check();
        }
        run.delete_all();
    }
}
