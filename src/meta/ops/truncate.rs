//! Changing the length of a file. What lies between the old and the new length becomes zeros, whichever is the greater: data beyond the end
//! must not come back when the file grows again.

use crate::meta::client::Cx;
use crate::meta::codec;
use crate::meta::ops::trash;
use crate::meta::ops::write::{change_data, regular_file};
use crate::meta::store::Write;
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Meta, key};
use crate::types::{Attr, CHUNK_BYTES, Caller, Errno, Flags, Ino, SliceRecord, chunk_parts};
use bytes::Bytes;
use std::ops::Range;

/// Ranges of more chunks than this are zeroed only where a chunk list exists, found by a scan: a sparse file of 2^56 bytes has 2^30 chunks.
const CHUNKS_BLIND_MAX: u32 = 1000;
/// Scans of one operation. Each that is in vain means that the file was written meanwhile.
const SCANS_MAX: u32 = 16;

/// The chunk lists of a file, valid while its record is exactly this: no list begins to exist without a change of the record.
pub(crate) struct Present {
    record: Bytes,
    chunks: Vec<u32>,
}

/// How an operation over a range of chunks ended.
pub(crate) enum Outcome {
    /// Committed.
    Done(Attr),
    /// The range is long: list the chunks first. Carries the record that must not change meanwhile.
    List(Bytes),
}

impl Meta {
    /// Sets the length of a file. Changes mtime even if the length stays, as ftruncate(2) and O_TRUNC do.
    pub async fn truncate(&self, caller: &Caller, ino: Ino, length: u64) -> Result<Attr, Errno> {
        self.run_listed("truncate", caller, ino, |view, cx, present| step(view, cx, ino, length, present)).await
    }

    /// Runs a step that may have to know which chunk lists exist.
    pub(crate) async fn run_listed<F>(&self, what: &'static str, caller: &Caller, ino: Ino, step: F) -> Result<Attr, Errno>
    where
        F: Fn(&View, &Cx, Option<&Present>) -> Result<Plan<Outcome>, Stop> + Send + Sync,
    {
        let mut present = None;
        for _ in 0..SCANS_MAX {
            match self.under_locks(ino, || self.run(what, caller, |view, cx| step(view, cx, present.as_ref()))).await? {
                Outcome::Done(attr) => return Ok(attr),
                Outcome::List(record) => present = Some(Present { record, chunks: self.chunks_present(ino, 0..u32::MAX).await? }),
            }
        }
        Err(Errno::IO)
    }
}

pub(crate) fn step(view: &View, cx: &Cx, ino: Ino, length: u64, present: Option<&Present>) -> Result<Plan<Outcome>, Stop> {
    let record = regular_file(view, ino)?;
    let old = &record.attr;
    if old.flags.any(Flags::IMMUTABLE | Flags::APPEND) {
        return Err(Errno::PERM.into());
    }
    trash::check_changeable(cx, ino, old)?;
    let change = change_data(view, cx, ino, &record, length, cx.now)?;
    match zero(ino, length.min(old.length)..length.max(old.length), &record.bytes, present) {
        Some(writes) => Ok(change.plan(writes, |attr, _| Outcome::Done(attr))),
        None => Ok(Plan::answer(Outcome::List(record.bytes))),
    }
}

/// The hole records that zero a range of a file below `FILE_BYTES_MAX`. A list is begun only where the range begins or ends; whole chunks
/// between are zero already if they have none. `None`: too many chunks to try blindly, and `present` does not belong to this record.
pub(crate) fn zero(ino: Ino, range: Range<u64>, record: &Bytes, present: Option<&Present>) -> Option<Vec<Write>> {
    let Some(first) = chunk_parts(range.clone()).next() else { return Some(Vec::new()) };
    let last = ((range.end - 1) / CHUNK_BYTES) as u32;
    let hole = |pos, len| codec::encode_slice(&SliceRecord::hole(pos, len));
    let mut writes = vec![Write::RPush(key::chunk(ino, first.index), vec![hole(first.pos, first.len)])];
    if last == first.index {
        return Some(writes);
    }
    let whole = |index: u32| Write::RPushX(key::chunk(ino, index), hole(0, CHUNK_BYTES as u32));
    if last - first.index <= CHUNKS_BLIND_MAX {
        writes.extend((first.index + 1..last).map(whole));
    } else {
        let present = present.filter(|present| present.record == *record)?;
        writes.extend(present.chunks.iter().copied().filter(|index| (first.index + 1..last).contains(index)).map(whole));
    }
    let tail = (range.end - u64::from(last) * CHUNK_BYTES) as u32;
    writes.push(if u64::from(tail) == CHUNK_BYTES { whole(last) } else { Write::RPush(key::chunk(ino, last), vec![hole(0, tail)]) });
    Some(writes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::ops::chunk::testing::{World, ready, slice};
    use crate::types::{Kind, Time};

    const C: u64 = CHUNK_BYTES;

    #[test]
    fn holes_cover_what_lies_between_the_lengths() {
        // Old and new length → (chunk, pos, len) of the holes; chunks 1 and 2 have a list, no other has.
        type Hole = (u32, u64, u64);
        let table: &[(u64, u64, &[Hole])] = &[
            (0, 10, &[(0, 0, 10)]),
            (10, 0, &[(0, 0, 10)]),
            (10, 30, &[(0, 10, 20)]),
            (C, C + 1, &[(1, 0, 1)]),
            (10, C, &[(0, 10, C - 10)]),
            (C + 5, 10, &[(0, 10, C - 10), (1, 0, 5)]),
            (4 * C + 5, C - 1, &[(0, C - 1, 1), (1, 0, C), (2, 0, C), (4, 0, 5)]),
            (0, 4 * C, &[(0, 0, C), (1, 0, C), (2, 0, C)]),
            (7, 7, &[]),
        ];
        for &(old, new, holes) in table {
            let world = World::new();
            let ino = world.file(old);
            for chunk in [1, 2] {
                world.store.put(Write::RPush(key::chunk(ino, chunk), vec![codec::encode_slice(&slice(0, 5, 5).record())]));
            }
            let attr = ready(world.meta.truncate(&Caller::root(), ino, new)).unwrap();
            assert_eq!((attr.length, attr.mtime, attr.ctime), (new, world.now(), world.now()));
            assert_eq!(attr, world.attr(ino));
            let mut seen = Vec::new();
            for chunk in 0..6 {
                seen.extend(world.list(ino, chunk).iter().filter(|r| r.id == 0).map(|r| (chunk, u64::from(r.pos), u64::from(r.len))));
            }
            assert_eq!(seen, holes, "{old} → {new}");
            let space = Attr::space_of(new) - Attr::space_of(old);
            assert_eq!(world.counter(key::USED_SPACE), space);
            assert_eq!(world.dir_stats(Ino::ROOT), (new as i64 - old as i64, space));
        }
    }

    #[test]
    fn what_is_refused() {
        let world = World::with(|setting| setting.set("Capacity", 8192.into()));
        let flagged = |bit| world.inode(|attr| attr.flags = Flags(bit));
        let table = [
            (Ino(99), 1, Errno::NOENT),
            (world.inode(|attr| attr.kind = Kind::Dir), 1, Errno::PERM),
            (flagged(Flags::IMMUTABLE), 1, Errno::PERM),
            (flagged(Flags::APPEND), 1, Errno::PERM),
            (world.file(0), 1 << 57, Errno::FBIG),
            (world.file(0), u64::MAX, Errno::FBIG),
            (world.file(0), 20_000, Errno::NOSPC),
        ];
        for (ino, length, errno) in table {
            assert_eq!(ready(world.meta.truncate(&Caller::root(), ino, length)), Err(errno), "{ino} to {length}");
        }
    }

    #[test]
    fn a_frozen_clock_still_changes_mtime() {
        let world = World::new();
        let ino = world.file(5);
        let first = ready(world.meta.truncate(&Caller::root(), ino, 5)).unwrap().mtime;
        let second = ready(world.meta.truncate(&Caller::root(), ino, 4)).unwrap().mtime;
        assert_eq!((first, second), (world.now(), Time::next(world.now())));
    }

    #[test]
    fn huge_ranges_touch_only_lists_that_exist_even_new_ones() {
        let world = World::new();
        let ino = world.file((1 << 57) - 1);
        world.write_at(ino, 5000, 0, 1, 10);
        let (other, now) = (world.neighbour(), world.now());
        // Between the scan and the commit a list comes into being.
        world.store.before_commit(move || {
            ready(other.write(ino, 7000, &[slice(0, 2, 10)], now)).unwrap();
        });
        ready(world.meta.truncate(&Caller::root(), ino, 3)).unwrap();
        for chunk in [5000, 7000] {
            assert_eq!(world.list(ino, chunk).last(), Some(&SliceRecord::hole(0, C as u32)));
        }
        assert_eq!(ready(world.meta.chunks_present(ino, 0..u32::MAX)).unwrap(), [0, 5000, 7000, (1 << 31) - 1]);
    }
}
