//! copy_file_range(2): two files share slices. No byte of data moves; every new record of a slice counts as one more reference.

use crate::meta::client::Cx;
use crate::meta::codec;
use crate::meta::ops::chunk::visible;
use crate::meta::ops::write::change_data;
use crate::meta::store::{BytesRange, Guard, Query, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Meta, key};
use crate::types::{Attr, CHUNK_BYTES, Caller, Errno, FILE_BYTES_MAX, Flags, Ino, Kind, SliceId, SliceRecord, chunk_parts};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Most bytes of one commit, the reply's limit of 32 bits in whole chunks (data §5.6). The caller of copy_file_range goes on from there.
const COPY_BYTES_MAX: u64 = (1 << 32) - CHUNK_BYTES;

impl Meta {
    /// Copies up to `len` bytes from `off` of one file to `to_off` of another (or the same, without overlap). Answers how many bytes were
    /// copied, 0 at the end of the source, and the target's attributes. Buffered data of both is committed before.
    pub async fn copy_range(&self, caller: &Caller, from: Ino, off: u64, to: Ino, to_off: u64, len: u64) -> Result<(u64, Attr), Errno> {
        self.under_locks(to, || self.run("copy", caller, |view, cx| step(view, cx, from, off, to, to_off, len))).await
    }
}

pub(crate) fn step(view: &View, cx: &Cx, from: Ino, off: u64, to: Ino, to_off: u64, len: u64) -> Result<Plan<(u64, Attr)>, Stop> {
    view.want([Query::Get(key::inode(from)), Query::Get(key::inode(to))])?;
    let source = view.record(from)?.ok_or(Errno::NOENT)?;
    let target = view.record(to)?.ok_or(Errno::NOENT)?;
    if source.attr.kind != Kind::File || target.attr.kind != Kind::File {
        return Err(Errno::INVAL.into());
    }
    if target.attr.flags.any(Flags::IMMUTABLE | Flags::APPEND) {
        return Err(Errno::PERM.into());
    }
    let len = len.min(source.attr.length.saturating_sub(off)).min(COPY_BYTES_MAX);
    if len == 0 {
        return Ok(Plan::answer((0, target.attr)));
    }
    let end = to_off.checked_add(len).filter(|end| *end < FILE_BYTES_MAX).ok_or(Errno::FBIG)?;
    if from == to && off < end && to_off < off + len {
        return Err(Errno::INVAL.into());
    }
    let mut change = change_data(view, cx, to, &target, target.attr.length.max(end), cx.now)?;
    if from != to {
        // Of the source only the length matters here; its bytes are guarded by the lists below.
        let range = BytesRange { from: codec::LENGTH_AT, to: Some(codec::LENGTH_AT + 8) };
        let length = Bytes::copy_from_slice(&source.attr.length.to_be_bytes());
        change.guard([Guard::Bytes(key::inode(from), vec![(range, length)])]);
    }
    let parts: Vec<_> = chunk_parts(off..off + len).collect();
    view.want(parts.iter().map(|part| Query::List(key::chunk(from, part.index))))?;
    let mut lists: BTreeMap<u32, Vec<Bytes>> = BTreeMap::new();
    let mut references: BTreeMap<(SliceId, u32), i64> = BTreeMap::new();
    let mut at = to_off;
    for part in &parts {
        let list = key::chunk(from, part.index);
        // A compaction that replaces the slices while we copy them would leave us with records of deleted objects.
        change.guard([Guard::ListIs(list.clone(), view.list(&list)?.to_vec())]);
        for extent in visible(&view.slices(from, part.index)?, part.pos..part.pos + part.len) {
            let mut slice_off = extent.off;
            for piece in chunk_parts(at..at + u64::from(extent.len)) {
                let record = if extent.id == 0 {
                    SliceRecord::hole(piece.pos, piece.len)
                } else {
                    *references.entry((extent.id, extent.size)).or_default() += 1;
                    SliceRecord { pos: piece.pos, id: extent.id, size: extent.size, off: slice_off, len: piece.len }
                };
                lists.entry(piece.index).or_default().push(codec::encode_slice(&record));
                slice_off = slice_off.saturating_add(piece.len);
            }
            at += u64::from(extent.len);
        }
    }
    let mut writes: Vec<_> = lists.into_iter().map(|(index, records)| Write::RPush(key::chunk(to, index), records)).collect();
    writes.extend(references.into_iter().map(|((id, size), by)| Write::HIncrBy(key::SLICE_REF, key::slice_ref(id, size), by)));
    Ok(change.plan(writes, move |attr, _| (len, attr)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::ops::chunk::testing::{World, ready, slice};

    const CHUNK: u32 = CHUNK_BYTES as u32;

    fn copy(world: &World, from: Ino, off: u64, to: Ino, to_off: u64, len: u64) -> Result<u64, Errno> {
        ready(world.meta.copy_range(&Caller::root(), from, off, to, to_off, len)).map(|(copied, attr)| {
            assert_eq!(attr, world.attr(to));
            copied
        })
    }

    #[test]
    fn records_are_clipped_split_and_counted() {
        let world = World::new();
        let (from, to) = (world.file(1000), world.file(0));
        world.write(from, 100, 1, 200);
        world.write(from, 150, 2, 50);
        assert_eq!(copy(&world, from, 120, to, CHUNK_BYTES - 40, 500), Ok(500));
        // Source: 120..150 of 1, 150..200 of 2, 200..300 of 1, zeros to 620; the border comes after 40 bytes.
        let record = |pos, id, size, off, len| SliceRecord { pos, id, size, off, len };
        assert_eq!(world.list(to, 0), [record(CHUNK - 40, 1, 200, 20, 30), record(CHUNK - 10, 2, 50, 0, 10)]);
        assert_eq!(world.list(to, 1), [record(0, 2, 50, 10, 40), record(40, 1, 200, 100, 100), SliceRecord::hole(140, 320)]);
        assert_eq!((world.reference(1, 200), world.reference(2, 50)), (Some(2), Some(2)), "three records each");
        let attr = world.attr(to);
        assert_eq!((attr.length, attr.mtime, attr.ctime), (CHUNK_BYTES + 460, world.now(), world.now()));
        assert_eq!(world.counter(key::USED_SPACE), Attr::space_of(attr.length) - 4096);
    }

    #[test]
    fn lengths_and_errors() {
        let world = World::new();
        let (from, to) = (world.file(100), world.file(0));
        let dir = world.inode(|attr| attr.kind = Kind::Dir);
        let flagged = |bit| world.inode(|attr| attr.flags = Flags(bit));
        let table = [
            (from, 100, to, 0, 10, Ok(0)),
            (from, 0, to, 0, 0, Ok(0)),
            (from, 90, to, 0, 50, Ok(10)),
            (from, 0, from, 50, 60, Err(Errno::INVAL)),
            (from, 50, from, 0, 60, Ok(50)),
            (from, 50, from, 100, 60, Ok(50)),
            (Ino(99), 0, to, 0, 1, Err(Errno::NOENT)),
            (from, 0, Ino(99), 0, 1, Err(Errno::NOENT)),
            (dir, 0, to, 0, 1, Err(Errno::INVAL)),
            (from, 0, dir, 0, 1, Err(Errno::INVAL)),
            (from, 0, flagged(Flags::IMMUTABLE), 0, 1, Err(Errno::PERM)),
            (from, 0, flagged(Flags::APPEND), 0, 1, Err(Errno::PERM)),
            (from, 0, to, u64::MAX, 1, Err(Errno::FBIG)),
        ];
        for (from, off, to, to_off, len, want) in table {
            assert_eq!(copy(&world, from, off, to, to_off, len), want, "{from}+{off} → {to}+{to_off}, {len}");
        }
    }

    #[test]
    fn a_compaction_before_the_commit_is_seen() {
        let world = World::new();
        let (from, to) = (world.file(0), world.file(0));
        world.write(from, 0, 1, 10);
        world.write(from, 5, 2, 10);
        let other = world.neighbour();
        let taken = world.list(from, 0);
        world.store.before_commit(move || {
            let dead = ready(other.compact_commit(from, 0, &taken, 0, slice(0, 3, 15))).unwrap();
            assert_eq!(dead, Some(vec![(1, 10), (2, 10)]));
        });
        assert_eq!(copy(&world, from, 0, to, 0, 15), Ok(15));
        assert_eq!(world.list(to, 0), [slice(0, 3, 15).record()], "no record of a deleted slice");
        assert_eq!((world.reference(1, 10), world.reference(2, 10), world.reference(3, 15)), (Some(-1), Some(-1), Some(1)));
    }

    #[test]
    fn a_source_cut_before_the_commit_is_seen() {
        let world = World::new();
        let (from, to) = (world.file(0), world.file(0));
        world.write(from, 0, 1, 10);
        let other = world.neighbour();
        world.store.before_commit(move || {
            ready(other.truncate(&Caller::root(), from, 4)).unwrap();
        });
        assert_eq!(copy(&world, from, 0, to, 0, 10), Ok(4));
        assert_eq!(world.attr(to).length, 4);
    }

    #[test]
    fn one_commit_has_a_bound() {
        let world = World::new();
        let (from, to) = (world.file(1 << 40), world.file(0));
        assert_eq!(copy(&world, from, 5, to, 0, u64::MAX), Ok(COPY_BYTES_MAX));
    }
}
