//! copy_file_range(2): two files share slices. No byte of data moves; every new record of a slice counts as one more reference.

use crate::meta::client::Cx;
use crate::meta::codec;
use crate::meta::ops::chunk::visible;
use crate::meta::ops::write::{FILE_BYTES_MAX, change_data};
use crate::meta::store::{BytesRange, Guard, Query, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Meta, key};
use crate::types::{Attr, CHUNK_BYTES, Caller, Errno, Flags, Ino, Kind, SliceId, SliceRecord, chunk_parts};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Most bytes of one commit, the reply's limit of 32 bits in whole chunks (data §5.6). The caller of copy_file_range goes on from there.
const COPY_BYTES_MAX: u64 = (1 << 32) - CHUNK_BYTES;

impl Meta {
    /// Copies up to `len` bytes from `off` of one file to `to_off` of another (or the same, without overlap). Answers how many bytes were
    /// copied, 0 at the end of the source, and the target's attributes. Buffered data of both is committed before.
    pub async fn copy_range(&self, caller: &Caller, from: Ino, off: u64, to: Ino, to_off: u64, len: u64) -> Result<(u64, Attr), Errno> {
        self.run("copy", caller, |view, cx| step(view, cx, from, off, to, to_off, len)).await
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
