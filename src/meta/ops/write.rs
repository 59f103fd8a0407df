//! Committing data: slices that are stored become part of a file, in one step with its length, times and usage.
//!
//! The blocks of a slice are durable before its record is committed here, or they come as a frame in the same commit.

use crate::meta::client::Cx;
use crate::meta::codec::{self, Record};
use crate::meta::ops::stats;
use crate::meta::store::{Guard, Query, Value, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Meta, key};
use crate::types::{Attr, CHUNK_BYTES, Caller, Duty, Errno, Ino, Kind, SliceId, SliceRecord, Time};
use bytes::Bytes;

/// No file reaches this length (metadata §19): a chunk index is then below 2^31.
pub const FILE_BYTES_MAX: u64 = 1 << 57;
/// A list longer than this is compacted after every commit (metadata §6.13).
const LIST_LONG: u64 = 350;
/// Below that, whenever the length passes 99, 199, …
const LIST_STEP: u64 = 100;

/// A slice whose data is stored, or comes as a frame, and that no record names yet. `off` is 0 and the slice is `len` bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSlice {
    /// Offset inside the chunk.
    pub pos: u32,
    /// Its id, used for nothing else.
    pub id: SliceId,
    /// Bytes, at least one.
    pub len: u32,
    /// The frame of its only block, if that is not stored as an object.
    pub frame: Option<Bytes>,
}

impl NewSlice {
    pub(crate) fn record(&self) -> SliceRecord {
        SliceRecord { pos: self.pos, id: self.id, size: self.len, off: 0, len: self.len }
    }

    pub(crate) fn frame_write(&self) -> Option<Write> {
        self.frame.as_ref().map(|frame| Write::PutFrame(self.id, frame.clone()))
    }

    /// Whether it lies inside one chunk and holds anything.
    fn is_sound(&self) -> bool {
        self.id != 0 && self.len > 0 && u64::from(self.pos) + u64::from(self.len) <= CHUNK_BYTES
    }
}

impl Meta {
    /// Commits slices of one chunk in order, all or none. `NOENT` when the inode is gone; an unlinked inode that is still kept accepts data.
    /// `mtime` is the time of the last write among them.
    pub async fn write(&self, ino: Ino, chunk: u32, slices: &[NewSlice], mtime: Time) -> Result<Attr, Errno> {
        let written = self.run("write", &Caller::root(), |view, cx| step(view, cx, ino, chunk, slices, mtime)).await?;
        self.ask_compaction(ino, chunk, slices.len() as u64, written.list_len);
        Ok(written.attr)
    }

    /// Commits a slice at the end of the file, wherever that is when the commit happens, and answers its offset. At a chunk border the
    /// slice is named by two records.
    pub async fn append(&self, ino: Ino, slice: NewSlice, mtime: Time) -> Result<(u64, Attr), Errno> {
        let (offset, written) = self.run("append", &Caller::root(), |view, cx| append_step(view, cx, ino, &slice, mtime)).await?;
        self.ask_compaction(ino, (offset / CHUNK_BYTES) as u32, 1, written.list_len);
        Ok((offset, written.attr))
    }

    /// Whether a file may grow to `length` now: asked when data is buffered, so that a full volume is known at write(2), not only at close.
    pub async fn check_growth(&self, ino: Ino, length: u64) -> Result<(), Errno> {
        self.run("check growth", &Caller::root(), |view, cx| check_step(view, cx, ino, length)).await
    }

    fn ask_compaction(&self, ino: Ino, chunk: u32, added: u64, list_len: u64) {
        if is_compaction_due(added, list_len) {
            self.ask(Duty::Compact { ino, chunk });
        }
    }
}

/// Whether a list that has just grown by `added` to `list_len` should be compacted.
fn is_compaction_due(added: u64, list_len: u64) -> bool {
    // Several records may come at once, so the mark is passed rather than met.
    list_len > LIST_LONG || (list_len + 1) / LIST_STEP > (list_len.saturating_sub(added) + 1) / LIST_STEP
}

/// What a commit of data answers.
#[derive(Debug)]
pub(crate) struct Written {
    attr: Attr,
    /// Length of the (first) list after the commit.
    list_len: u64,
}

pub(crate) fn step(view: &View, cx: &Cx, ino: Ino, chunk: u32, slices: &[NewSlice], mtime: Time) -> Result<Plan<Written>, Stop> {
    if slices.is_empty() || !slices.iter().all(NewSlice::is_sound) {
        return Err(Errno::INVAL.into());
    }
    let record = regular_file(view, ino)?;
    let end = slices.iter().map(|slice| u64::from(slice.record().end())).max().unwrap_or(0);
    let length = (u64::from(chunk) * CHUNK_BYTES + end).max(record.attr.length);
    let change = change_data(view, cx, ino, &record, length, mtime)?;
    let elements = slices.iter().map(|slice| codec::encode_slice(&slice.record())).collect();
    let mut writes = vec![Write::RPush(key::chunk(ino, chunk), elements)];
    writes.extend(slices.iter().filter_map(NewSlice::frame_write));
    Ok(change.plan(writes, |attr, replies| Written { attr, list_len: list_len(replies) }))
}

pub(crate) fn append_step(view: &View, cx: &Cx, ino: Ino, slice: &NewSlice, mtime: Time) -> Result<Plan<(u64, Written)>, Stop> {
    if slice.id == 0 || slice.len == 0 || u64::from(slice.len) > CHUNK_BYTES {
        return Err(Errno::INVAL.into());
    }
    let record = regular_file(view, ino)?;
    let offset = record.attr.length;
    let length = offset.checked_add(u64::from(slice.len)).ok_or(Errno::FBIG)?;
    let change = change_data(view, cx, ino, &record, length, mtime)?;
    let mut writes = Vec::new();
    let mut off = 0;
    for part in crate::types::chunk_parts(offset..length) {
        let piece = SliceRecord { pos: part.pos, id: slice.id, size: slice.len, off, len: part.len };
        writes.push(Write::RPush(key::chunk(ino, part.index), vec![codec::encode_slice(&piece)]));
        if off > 0 {
            writes.push(Write::HIncrBy(key::SLICE_REF, key::slice_ref(slice.id, slice.len), 1));
        }
        off += part.len;
    }
    writes.extend(slice.frame_write());
    Ok(change.plan(writes, move |attr, replies| (offset, Written { attr, list_len: list_len(replies) })))
}

fn check_step(view: &View, cx: &Cx, ino: Ino, length: u64) -> Result<Plan<()>, Stop> {
    let record = regular_file(view, ino)?;
    check_length(view, cx, &record.attr, length)?;
    Ok(Plan::answer(()))
}

fn list_len(replies: &[Value]) -> u64 {
    match replies.first() {
        Some(Value::Int(length)) => *length as u64,
        _ => 0,
    }
}

/// The record of a regular file. `NOENT` if it is gone; other kinds hold no data: `PERM` (metadata §6.13).
pub(crate) fn regular_file(view: &View, ino: Ino) -> Result<Record, Stop> {
    let record = view.record(ino)?.ok_or(Errno::NOENT)?;
    if record.attr.kind != Kind::File {
        return Err(Errno::PERM.into());
    }
    Ok(record)
}

/// A change of the data of an inode, as every operation that makes one commits it.
pub(crate) struct DataChange {
    /// The attributes after it.
    pub attr: Attr,
    guards: Vec<Guard>,
    record: Write,
    counters: Vec<Write>,
}

impl DataChange {
    /// The plan that also makes `writes`; they come first, so their replies do, too.
    pub fn plan<T: Send + 'static>(mut self, mut writes: Vec<Write>, finish: impl FnOnce(Attr, &[Value]) -> T + Send + 'static) -> Plan<T> {
        writes.push(self.record);
        writes.append(&mut self.counters);
        let attr = self.attr;
        Plan {
            guards: self.guards,
            writes,
            reads: Vec::new(),
            while_closed: None,
            finish: Box::new(move |replies, _| Ok(finish(attr, replies))),
        }
    }

    /// Adds conditions.
    pub fn guard(&mut self, guards: impl IntoIterator<Item = Guard>) {
        self.guards.extend(guards);
    }
}

/// Gives the inode a new length and new times, guarded by its whole record: two commits that both extend a file cannot lose a length, and
/// peers that watch the record see every change of data.
pub(crate) fn change_data(view: &View, cx: &Cx, ino: Ino, record: &Record, length: u64, mtime: Time) -> Result<DataChange, Stop> {
    let old = &record.attr;
    if old.length > FILE_BYTES_MAX {
        // Damage; the sums below would overflow.
        return Err(Errno::IO.into());
    }
    check_length(view, cx, old, length)?;
    // A commit that left mtime as it was would be invisible to the page caches of other kernels.
    let mtime = if mtime == old.mtime { mtime.next() } else { mtime };
    let attr = Attr { length, mtime, ctime: cx.now, ..old.clone() };
    let mut guards = vec![Guard::Value(key::inode(ino), Some(record.bytes.clone()))];
    let mut counters = Vec::new();
    if length != old.length {
        let (bytes, space) = (length as i64 - old.length as i64, attr.space() - old.space());
        counters.extend(stats::volume(space, 0));
        for (parent, links) in parents(view, cx, ino, old, &mut guards)? {
            counters.extend(stats::usage(cx, parent, bytes * links, space * links, 0));
        }
    }
    let write = Write::Set(key::inode(ino), record.rewrite(&attr));
    Ok(DataChange { attr, guards, record: write, counters })
}

/// The directories whose statistics hold this inode, and how many links each has. An unlinked inode is in none.
fn parents(view: &View, cx: &Cx, ino: Ino, attr: &Attr, guards: &mut Vec<Guard>) -> Result<Vec<(Ino, i64)>, Stop> {
    if attr.nlink == 0 || !cx.setting.dir_stats() {
        return Ok(Vec::new());
    }
    if attr.parent != Ino(0) {
        return Ok(vec![(attr.parent, 1)]);
    }
    let key = key::parents(ino);
    let fields = view.fields(&key)?.to_vec();
    let links = fields.iter().filter_map(|(parent, count)| {
        let parent = std::str::from_utf8(parent).ok()?.parse().ok()?;
        let count = codec::decode_decimal(Some(count)).filter(|count| *count > 0)?;
        Some((Ino(parent), count))
    });
    let links = links.collect();
    // The record guards it as well, but after a conflict only what is guarded is known anew.
    guards.push(Guard::Fields(key, fields));
    Ok(links)
}

/// Whether a file may have this length: the format's limit, and for growth the volume's capacity. The latter is soft: nothing guards the
/// counter, or every commit of every client would wait for every other.
fn check_length(view: &View, cx: &Cx, attr: &Attr, length: u64) -> Result<(), Stop> {
    if length >= FILE_BYTES_MAX {
        return Err(Errno::FBIG.into());
    }
    let growth = Attr::space_of(length) - attr.space();
    let capacity = cx.setting.capacity();
    if length > attr.length && growth > 0 && capacity > 0 {
        view.want([Query::Get(key::USED_SPACE)])?;
        let used = codec::decode_decimal(view.string(&key::USED_SPACE)?.as_deref()).ok_or(Errno::IO)?;
        if used.saturating_add(growth) > i64::try_from(capacity).unwrap_or(i64::MAX) {
            return Err(Errno::NOSPC.into());
        }
    }
    Ok(())
}
