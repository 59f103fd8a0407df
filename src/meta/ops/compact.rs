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
    ) -> Result<Option<Vec<(SliceId, u32)>>, Errno> {
        self.run("compact", &Caller::root(), |view, cx| step(view, cx, ino, chunk, taken, skipped, &new)).await
    }
}

pub(crate) fn step(
    view: &View,
    _cx: &Cx,
    ino: Ino,
    chunk: u32,
    taken: &[SliceRecord],
    skipped: usize,
    new: &NewSlice,
) -> Result<Plan<Option<Vec<(SliceId, u32)>>>, Stop> {
    let (kept, replaced) = taken.split_at_checked(skipped).filter(|(_, replaced)| !replaced.is_empty()).ok_or(Errno::INVAL)?;
    let list = key::chunk(ino, chunk);
    let expected: Vec<_> = taken.iter().map(codec::encode_slice).collect();
    if !view.list(&list)?.starts_with(&expected) {
        return Ok(Plan::answer(None));
    }
    let dropped = drop_references(view, replaced)?;
    let front = kept.iter().chain([&new.record()]).map(codec::encode_slice).collect();
    let mut writes = vec![Write::LTrim(list.clone(), taken.len() as u32), Write::LPush(list.clone(), front)];
    writes.extend(new.frame_write());
    writes.extend(dropped.writes);
    let mut guards = vec![Guard::ListPrefix(list, expected)];
    guards.extend(dropped.guards);
    Ok(Plan::new(guards, writes, Some(dropped.dead)))
}
