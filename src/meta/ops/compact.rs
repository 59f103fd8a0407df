//! Compaction: the oldest records of a chunk are replaced by one slice that reads the same (metadata §8.3). The data is copied elsewhere;
//! here is what to copy and how the lists are exchanged. The inode's record stays as it is.

use crate::meta::client::Cx;
use crate::meta::codec;
use crate::meta::ops::delete::drop_references;
use crate::meta::ops::write::NewSlice;
use crate::meta::store::{Guard, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Meta, key};
use crate::types::{Caller, Errno, Extent, Ino, SliceId, SliceRecord, flatten};

/// Records of one compaction; bounds what is read and guarded.
const RECORDS_MAX: usize = 1000;
/// A leading slice smaller than this is always rewritten.
const SKIP_BYTES_MIN: u32 = 1 << 20;
/// A leading slice is left alone if it is at least this part (one n-th) of what would be written.
const SKIP_SHARE: u64 = 5;

/// What a compaction should do. The range `pos..pos + len` of the view of `records[skipped..taken]` becomes one slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactPlan {
    /// Leading records that stay: big, and untouched by later ones.
    pub skipped: usize,
    /// Leading records looked at, the skipped ones included.
    pub taken: usize,
    /// Where the new slice begins in the chunk.
    pub pos: u32,
    /// Its bytes. All holes become one byte of zeros.
    pub len: u32,
}

/// What to compact of a chunk with these records; `None` if there is nothing to gain.
pub fn plan_compaction(records: &[SliceRecord]) -> Option<CompactPlan> {
    let records = &records[..records.len().min(RECORDS_MAX)];
    let mut skipped = 0;
    let (pos, len) = loop {
        let rest = &records[skipped..];
        let (first, others) = rest.split_first()?;
        let (seen, len) = trimmed(rest)?;
        // If the first record is seen whole, no later one touches it, not even a hole: so it can stay below the new slice.
        let is_whole = seen == Extent { pos: first.pos, id: first.id, size: first.size, off: first.off, len: first.len };
        let is_big = first.len >= SKIP_BYTES_MIN && u64::from(first.len) * SKIP_SHARE >= u64::from(len);
        if !is_whole || !is_big || others.contains(first) {
            break (seen.pos, len);
        }
        skipped += 1;
    };
    (records.len() - skipped >= 2).then_some(CompactPlan { skipped, taken: records.len(), pos, len })
}

/// The view without holes at both ends: its first piece, and its bytes. `None` if it is empty.
fn trimmed(records: &[SliceRecord]) -> Option<(Extent, u32)> {
    let extents = flatten(records);
    let is_data = |extent: &Extent| extent.id != 0;
    match (extents.iter().position(is_data), extents.iter().rposition(is_data)) {
        (Some(first), Some(last)) => Some((extents[first], extents[last].pos + extents[last].len - extents[first].pos)),
        _ => extents.last().map(|hole| (*hole, 1)),
    }
}

/// Slices (id, size) that no record names any more.
pub type Dead = Vec<(SliceId, u32)>;

impl Meta {
    /// Replaces `taken[skipped..]`, the oldest records of a chunk after the skipped ones, by the slice `new`. `None`: the list does not begin
    /// with `taken` any more, and `new` is unused. Otherwise the slices that no record names any more; their frames are gone, their objects
    /// may be deleted once this commit is durable, then `forget_slices`.
    pub async fn compact_commit(
        &self,
        ino: Ino,
        chunk: u32,
        taken: &[SliceRecord],
        skipped: usize,
        new: NewSlice,
    ) -> Result<Option<Dead>, Errno> {
        self.run("compact", &Caller::root(), |view, cx| step(view, cx, ino, chunk, taken, skipped, &new)).await
    }
}

pub(crate) fn step(
    view: &View,
    cx: &Cx,
    ino: Ino,
    chunk: u32,
    taken: &[SliceRecord],
    skipped: usize,
    new: &NewSlice,
) -> Result<Plan<Option<Dead>>, Stop> {
    let (kept, replaced) = taken.split_at_checked(skipped).filter(|(_, replaced)| !replaced.is_empty()).ok_or(Errno::INVAL)?;
    let list = key::chunk(ino, chunk);
    let expected: Vec<_> = taken.iter().map(codec::encode_slice).collect();
    if !view.list(&list)?.starts_with(&expected) {
        return Ok(Plan::answer(None));
    }
    let front = kept.iter().chain([&new.record()]).map(codec::encode_slice).collect();
    let mut writes = vec![Write::LTrim(list.clone(), taken.len() as u32), Write::LPush(list.clone(), front)];
    writes.extend(new.frame_write());
    let mut guards = vec![Guard::ListPrefix(list, expected)];
    if cx.setting.trash_days() > 0 {
        // A copy of the volume's metadata that is as old as the trash may still be used: what it names must be there.
        let delayed = codec::encode_slices(replaced.iter().filter(|record| record.id != 0).map(|record| (record.id, record.size)));
        if !delayed.is_empty() {
            writes.push(Write::HSet(key::DEL_SLICES, key::delayed_slices(new.id, cx.now.sec), delayed));
        }
        return Ok(Plan::new(guards, writes, Some(Dead::new())));
    }
    let dropped = drop_references(view, replaced)?;
    writes.extend(dropped.writes);
    guards.extend(dropped.guards);
    Ok(Plan::new(guards, writes, Some(dropped.dead)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::ops::chunk::testing::{World, ready, slice};
    use crate::meta::store::{Query, Value};
    use bytes::Bytes;

    const M: u32 = 1 << 20;

    #[test]
    fn what_to_compact() {
        let data = |pos, id, len| SliceRecord { pos, id, size: len, off: 0, len };
        let hole = SliceRecord::hole;
        let plan = |skipped, taken, pos, len| Some(CompactPlan { skipped, taken, pos, len });
        let table: &[(&[SliceRecord], Option<CompactPlan>)] = &[
            (&[], None),
            (&[data(0, 1, 10)], None),
            (&[data(0, 1, 0), data(0, 2, 0)], None),
            (&[data(5, 1, 10), data(20, 2, 10)], plan(0, 2, 5, 25)),
            (&[hole(0, 100), data(5, 1, 10), hole(12, 50)], plan(0, 3, 5, 7)),
            // Nothing but holes: one byte of zeros, where the last of them begins.
            (&[hole(0, 10), hole(3, 4)], plan(0, 2, 7, 1)),
            // A big slice nobody touches stays; so does the second.
            (&[data(0, 1, 2 * M), data(2 * M, 2, 10), data(2 * M, 3, 10)], plan(1, 3, 2 * M, 10)),
            (&[data(0, 1, 2 * M), data(2 * M, 2, 2 * M), data(4 * M, 3, 10), data(4 * M, 4, 5)], plan(2, 4, 4 * M, 10)),
            // One record would be left: nothing to do.
            (&[data(0, 1, 2 * M), data(2 * M, 2, 10)], None),
            // Touched, also by a hole; or too small a part; or seen later than another; or named again.
            (&[data(0, 1, 2 * M), data(2 * M - 1, 2, 10), data(9, 3, 1)], plan(0, 3, 0, 2 * M + 9)),
            (&[data(0, 1, 2 * M), hole(2 * M - 1, 10), data(3 * M, 3, 1)], plan(0, 3, 0, 3 * M + 1)),
            (&[data(0, 1, M), data(M, 2, 10 * M), data(M, 3, 10)], plan(0, 3, 0, 11 * M)),
            (&[data(M, 1, 2 * M), data(0, 2, 10), data(0, 3, 10)], plan(0, 3, 0, 3 * M)),
            (&[data(0, 1, 2 * M), data(0, 1, 2 * M)], plan(0, 2, 0, 2 * M)),
        ];
        for (records, want) in table {
            assert_eq!(plan_compaction(records), *want, "{records:?}");
        }
        let long: Vec<_> = (0..1500).map(|i| data(i, u64::from(i) + 1, 1)).collect();
        assert_eq!(plan_compaction(&long), plan(0, 1000, 0, 1000));
    }

    #[test]
    fn lists_references_and_frames_are_exchanged_in_one_step() {
        let world = World::new();
        let (ino, copy) = (world.file(0), world.file(0));
        let framed = |pos, id, len| NewSlice { frame: Some(Bytes::from_static(b"f")), ..slice(pos, id, len) };
        ready(world.meta.write(ino, 0, &[slice(0, 1, 5), framed(5, 2, 5), framed(10, 3, 5)], world.now())).unwrap();
        ready(world.meta.truncate(&Caller::root(), ino, 12)).unwrap();
        ready(world.meta.copy_range(&Caller::root(), ino, 10, copy, 0, 2)).unwrap();
        let before = world.attr(ino);
        let taken = world.list(ino, 0);
        // Meanwhile one more record is appended: it stays on top.
        let (other, now) = (world.neighbour(), world.now());
        world.store.before_commit(move || {
            ready(other.write(ino, 0, &[slice(0, 4, 1)], now)).unwrap();
        });
        let dead = ready(world.meta.compact_commit(ino, 0, &taken, 1, framed(5, 9, 7))).unwrap();
        assert_eq!(dead, Some(vec![(2, 5)]), "slice 3 is still in the copy");
        assert_eq!(world.list(ino, 0).iter().map(|r| r.id).collect::<Vec<_>>(), [1, 9, 4]);
        assert_eq!((world.reference(1, 5), world.reference(2, 5), world.reference(3, 5)), (None, Some(-1), Some(0)));
        assert_eq!([2, 3, 9].map(|id| world.frame(id).is_some()), [false, true, true]);
        assert_eq!(world.attr(ino).length, before.length);
    }

    #[test]
    fn with_a_trash_replaced_slices_wait_as_long() {
        let world = World::with(|setting| setting.set("TrashDays", 1.into()));
        let ino = world.file(0);
        world.write(ino, 0, 1, 5);
        let framed = NewSlice { frame: Some(Bytes::from_static(b"f")), ..slice(5, 2, 5) };
        ready(world.meta.write(ino, 0, &[framed], world.now())).unwrap();
        ready(world.meta.copy_range(&Caller::root(), ino, 0, ino, 10, 5)).unwrap();
        ready(world.meta.truncate(&Caller::root(), ino, 14)).unwrap();
        let at = world.now().sec;
        let dead = ready(world.meta.compact_commit(ino, 0, &world.list(ino, 0), 0, slice(0, 3, 14))).unwrap();
        assert_eq!((dead, world.list(ino, 0)), (Some(vec![]), vec![slice(0, 3, 14).record()]));
        assert_eq!((world.reference(1, 5), world.reference(2, 5), world.reference(3, 14)), (Some(1), None, None), "as before");
        let Value::Pairs(delayed) = world.store.get(Query::HGetAll(key::DEL_SLICES)) else { panic!() };
        let (field, value) = &delayed[0];
        assert_eq!(field, &format!("3_{at}"));
        assert_eq!(codec::decode_slices(value), Some(vec![(1, 5), (2, 5), (1, 5)]), "one for each record");
        // Fields that are none of the format's are left alone.
        for (field, value) in [("4_x", "123456789012"), ("4_1", "short")] {
            world.store.put(Write::HSet(key::DEL_SLICES, field.into(), value.into()));
        }
        assert_eq!(ready(world.meta.drop_delayed(at - 1, 10)).unwrap().taken, 0, "too early");
        let dropped = ready(world.meta.drop_delayed(at, 10)).unwrap();
        assert_eq!((dropped.taken, dropped.dead), (1, vec![(1, 5), (2, 5)]));
        assert_eq!((world.reference(1, 5), world.frame(2)), (Some(-1), None));
        assert_eq!(ready(world.meta.drop_delayed(at, 10)).unwrap().taken, 0);
        let Value::Pairs(delayed) = world.store.get(Query::HGetAll(key::DEL_SLICES)) else { panic!() };
        assert_eq!(delayed.len(), 2);
    }

    #[test]
    fn a_list_that_changed_at_its_head_is_left_alone() {
        let world = World::new();
        let ino = world.file(0);
        world.write(ino, 0, 1, 5);
        world.write(ino, 3, 2, 5);
        let taken = world.list(ino, 0);
        let (other, theirs) = (world.neighbour(), taken.clone());
        world.store.before_commit(move || {
            ready(other.compact_commit(ino, 0, &theirs, 0, slice(0, 8, 8))).unwrap().unwrap();
        });
        assert_eq!(ready(world.meta.compact_commit(ino, 0, &taken, 0, slice(0, 9, 8))), Ok(None));
        assert_eq!(world.list(ino, 0), [slice(0, 8, 8).record()]);
        assert_eq!((world.reference(1, 5), world.reference(2, 5)), (Some(-1), Some(-1)), "dropped once");
        assert_eq!(ready(world.meta.compact_commit(ino, 0, &taken, 2, slice(0, 9, 8))), Err(Errno::INVAL));
    }

    #[test]
    fn a_slice_named_twice_loses_two_references() {
        let world = World::new();
        let ino = world.file(0);
        world.write(ino, 0, 1, 5);
        ready(world.meta.copy_range(&Caller::root(), ino, 0, ino, 5, 5)).unwrap();
        assert_eq!(world.reference(1, 5), Some(1));
        let dead = ready(world.meta.compact_commit(ino, 0, &world.list(ino, 0), 0, slice(0, 2, 10))).unwrap();
        assert_eq!((dead, world.reference(1, 5)), (Some(vec![(1, 5)]), Some(-1)));
    }

    #[test]
    fn a_copy_before_the_commit_keeps_the_slices() {
        let world = World::new();
        let (ino, to) = (world.file(0), world.file(0));
        world.write(ino, 0, 1, 5);
        world.write(ino, 3, 2, 5);
        let other = world.neighbour();
        world.store.before_commit(move || {
            ready(other.copy_range(&Caller::root(), ino, 0, to, 0, 8)).unwrap();
        });
        let dead = ready(world.meta.compact_commit(ino, 0, &world.list(ino, 0), 0, slice(0, 9, 8))).unwrap();
        assert_eq!((dead, world.reference(1, 5), world.reference(2, 5)), (Some(vec![]), Some(0), Some(0)));
        assert_eq!(world.list(to, 0).iter().map(|r| r.id).collect::<Vec<_>>(), [1, 2]);
    }
}
