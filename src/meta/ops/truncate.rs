//! Changing the length of a file. What lies between the old and the new length becomes zeros, whichever is the greater: data beyond the end
//! must not come back when the file grows again.

use crate::meta::client::Cx;
use crate::meta::codec;
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
            match self.run(what, caller, |view, cx| step(view, cx, present.as_ref())).await? {
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
