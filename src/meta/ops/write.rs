//! Committing data: slices that are stored become part of a file, in one step with its length, times and usage.
//!
//! The blocks of a slice are durable before its record is committed here, or they come as a frame in the same commit.

use crate::meta::client::Cx;
use crate::meta::codec::{self, Record};
use crate::meta::lists::Growth;
use crate::meta::ops::quota::{self, Usage};
use crate::meta::ops::stats::Tally;
use crate::meta::store::{Guard, Key, Value, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Meta, key};
use crate::types::{Attr, CHUNK_BYTES, Caller, Duty, Errno, FILE_BYTES_MAX, Ino, Kind, SliceId, SliceRecord, Time};
use bytes::Bytes;

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

    pub(crate) fn own_frame(&self) -> Option<(SliceId, u32)> {
        self.frame.as_ref().map(|_| (self.id, self.len))
    }

    /// Whether it lies inside one chunk and holds anything.
    fn is_sound(&self) -> bool {
        self.id != 0 && self.len > 0 && u64::from(self.pos) + u64::from(self.len) <= CHUNK_BYTES
    }
}

impl Meta {
    /// Commits slices of one chunk in order, all or none. `NOENT` when the inode is gone; an unlinked inode that is still kept accepts data.
    /// `OWNERDEAD` when a lock under which they may have been written is lost: they must never be committed. `AGAIN` when the store takes no
    /// frames now: nothing happened, and their blocks are to be stored first.
    /// `mtime` is the time of the last write among them.
    pub async fn write(&self, ino: Ino, chunk: u32, slices: &[NewSlice], mtime: Time) -> Result<Attr, Errno> {
        let root = Caller::root();
        let write = || self.run("write", &root, |view, cx| step(view, cx, ino, chunk, slices, mtime));
        let written = self.under_locks(ino, write).await?;
        let records: Vec<_> = slices.iter().map(NewSlice::record).collect();
        self.lists.grown(ino, chunk, written.growth(&records));
        self.journal().note_put(slices.iter().filter_map(NewSlice::own_frame));
        self.ask_compaction(ino, chunk, slices.len() as u64, written.list_len);
        Ok(written.attr)
    }

    /// Whether a file may grow to `length` now: asked when data is buffered, so that a full volume is known at write(2), not only at close.
    pub async fn check_growth(&self, ino: Ino, length: u64) -> Result<(), Errno> {
        self.estimate("check growth", &Caller::root(), |view, cx| check_step(view, cx, ino, length)).await
    }

    pub(crate) fn ask_compaction(&self, ino: Ino, chunk: u32, added: u64, list_len: u64) {
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
    /// The attributes after it.
    pub attr: Attr,
    /// Length of the (first) list after the commit.
    pub list_len: u64,
    /// The inode's record before and after it.
    pub records: (Bytes, Bytes),
}

impl Written {
    /// What it tells of the only list it has changed, by these slices.
    pub fn growth<'a>(&'a self, slices: &'a [SliceRecord]) -> Growth<'a> {
        let (before, after) = &self.records;
        Growth { before, after: after.clone(), length: self.attr.length, slices, elements: self.list_len }
    }
}

pub(crate) fn step(view: &View, cx: &Cx, ino: Ino, chunk: u32, slices: &[NewSlice], mtime: Time) -> Result<Plan<Written>, Stop> {
    if slices.is_empty() || !slices.iter().all(NewSlice::is_sound) {
        return Err(Errno::INVAL.into());
    }
    let record = regular_file(view, ino)?;
    let end = slices.iter().map(|slice| u64::from(slice.record().end())).max().unwrap_or(0);
    let length = (u64::from(chunk) * CHUNK_BYTES + end).max(record.attr.length);
    let mut change = change_data(view, cx, ino, &record, length, mtime)?;
    if slices.iter().any(|slice| slice.frame.is_some()) {
        change.guard(cx.journal.guards(view)?);
    }
    let elements = slices.iter().map(|slice| codec::encode_slice(&slice.record())).collect();
    let mut writes = vec![Write::RPush(key::chunk(ino, chunk), elements)];
    writes.extend(slices.iter().filter_map(NewSlice::frame_write));
    let records = (record.bytes, change.after());
    Ok(change.plan(writes, |attr, replies| Written { attr, list_len: list_len(replies), records }))
}

pub(crate) fn append_step(view: &View, cx: &Cx, ino: Ino, slice: &NewSlice, mtime: Time) -> Result<Plan<(u64, Written)>, Stop> {
    if slice.id == 0 || slice.len == 0 || u64::from(slice.len) > CHUNK_BYTES {
        return Err(Errno::INVAL.into());
    }
    let record = regular_file(view, ino)?;
    let offset = record.attr.length;
    let length = offset.checked_add(u64::from(slice.len)).ok_or(Errno::FBIG)?;
    let mut change = change_data(view, cx, ino, &record, length, mtime)?;
    if slice.frame.is_some() {
        change.guard(cx.journal.guards(view)?);
    }
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
    let records = (record.bytes, change.after());
    Ok(change.plan(writes, move |attr, replies| (offset, Written { attr, list_len: list_len(replies), records })))
}

fn check_step(view: &View, cx: &Cx, ino: Ino, length: u64) -> Result<Plan<()>, Stop> {
    let record = regular_file(view, ino)?;
    // Without quotas of directories nobody asks which directories these are.
    let parents = if cx.known.quotas.of_dirs() { parents(view, cx, ino, &record.attr, &mut Vec::new())? } else { Vec::new() };
    check_length(view, cx, &record.attr, length, &parents)?;
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
    key: Key,
    record: Bytes,
    counters: Vec<Write>,
}

impl DataChange {
    /// The plan that also makes `writes`; they come first, so their replies do, too.
    pub fn plan<T: Send + 'static>(mut self, mut writes: Vec<Write>, finish: impl FnOnce(Attr, &[Value]) -> T + Send + 'static) -> Plan<T> {
        writes.push(Write::Set(self.key, self.record));
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

    /// The inode's record after it, as it is stored.
    pub fn after(&self) -> Bytes {
        self.record.clone()
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
    let mut guards = vec![Guard::Value(key::inode(ino), Some(record.bytes.clone()))];
    let parents = if length == old.length { Vec::new() } else { parents(view, cx, ino, old, &mut guards)? };
    check_length(view, cx, old, length, &parents)?;
    // A commit that left mtime as it was, or took it back to a time that another kernel has seen, would be invisible to its page cache:
    // buffered data may be committed after somebody else's later write. A time in the future was set by hand and is left behind.
    let seen = mtime <= old.mtime && (old.mtime <= old.ctime || mtime == old.mtime);
    let mtime = if seen { old.mtime.next() } else { mtime };
    let attr = Attr { length, mtime, ctime: cx.now, ..old.clone() };
    guards.extend(fenced(view, cx, ino)?);
    let mut counters = Vec::new();
    if length != old.length {
        let (bytes, space) = (attr.data_length() - old.data_length(), attr.space() - old.space());
        let mut tally = Tally::new(view, cx);
        tally.owned(old, space, 0)?;
        for (parent, links) in parents {
            tally.children(parent, bytes.saturating_mul(links), space.saturating_mul(links), 0)?;
        }
        tally.put(&mut guards, &mut counters);
    }
    let (key, record) = (key::inode(ino), record.rewrite(&attr));
    Ok(DataChange { attr, guards, key, record, counters })
}

/// Data written under a lock is committed only while the lock is there; OWNERDEAD if it is not.
fn fenced(view: &View, cx: &Cx, ino: Ino) -> Result<Vec<Guard>, Stop> {
    let mut guards = Vec::new();
    for (hash, field, value) in cx.fence.held(ino) {
        if view.field_or(&hash, &field, Some(&value)).as_ref() != Some(&value) {
            return Err(Errno::OWNERDEAD.into());
        }
        guards.push(Guard::Field(hash, field, Some(value)));
    }
    Ok(guards)
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

/// Whether a file may have this length: the format's limit, and for growth those of the volume, the owner and the directories.
fn check_length(view: &View, cx: &Cx, attr: &Attr, length: u64, parents: &[(Ino, i64)]) -> Result<(), Stop> {
    if length >= FILE_BYTES_MAX {
        return Err(Errno::FBIG.into());
    }
    let dirs: Vec<Ino> = parents.iter().map(|(dir, _)| *dir).collect();
    let growth = Usage { space: Attr::space_of(length) - attr.space(), inodes: 0 };
    quota::check(view, cx, (attr.uid, attr.gid), &dirs, growth)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::ops::chunk::testing::{World, ready, slice};
    use crate::meta::store::Query;
    use crate::types::Flags;
    use std::time::Duration;

    const CHUNK: u32 = CHUNK_BYTES as u32;

    #[test]
    fn a_commit_writes_what_the_format_says() {
        let world = World::new();
        let ino = world.file(0);
        world.clock.advance(Duration::from_nanos(7));
        let mtime = Time { sec: 1_650_000_000, nsec: 1 };
        let attr = ready(world.meta.write(ino, 1, &[slice(4096, 0x0102_0304_0506_0708, 65536)], mtime)).unwrap();
        assert_eq!(attr, world.attr(ino));
        assert_eq!((attr.length, attr.mtime, attr.ctime), (CHUNK_BYTES + 4096 + 65536, mtime, world.now()));
        let Value::List(elements) = world.store.get(Query::List(format!("c{ino}_1").into())) else { panic!() };
        let hex: String = elements[0].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "000010000102030405060708000100000000000000010000");
        let space = Attr::space_of(attr.length) - 4096;
        assert_eq!(world.counter(key::USED_SPACE), space);
        assert_eq!(world.dir_stats(Ino::ROOT), (attr.length as i64, space));
        assert_eq!(world.reference(0x0102_0304_0506_0708, 65536), None, "a fresh slice has no count");
    }

    #[test]
    fn several_slices_and_their_frames_are_one_commit() {
        let world = World::new();
        let ino = world.file(0);
        let frame = Bytes::from_static(b"frame");
        let slices = [slice(0, 1, 10), NewSlice { frame: Some(frame.clone()), ..slice(5, 2, 5) }, slice(3, 3, 4)];
        let attr = ready(world.meta.write(ino, 0, &slices, world.now())).unwrap();
        assert_eq!(attr.length, 10);
        assert_eq!(world.list(ino, 0).iter().map(|r| r.id).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(world.frame(2), Some(frame));
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let world = World::with(|setting| setting.set("Capacity", 8192.into()));
        let (ino, dir) = (world.file(0), world.inode(|attr| attr.kind = Kind::Dir));
        let one = [slice(0, 1, 1)];
        let table: &[(Ino, u32, &[NewSlice], Errno)] = &[
            (Ino(99), 0, &one, Errno::NOENT),
            (dir, 0, &one, Errno::PERM),
            (ino, 0, &[], Errno::INVAL),
            (ino, 0, &[slice(CHUNK, 1, 1)], Errno::INVAL),
            (ino, 0, &[slice(0, 1, 0)], Errno::INVAL),
            (ino, 0, &[slice(0, 0, 1)], Errno::INVAL),
            (ino, u32::MAX, &one, Errno::FBIG),
            (ino, 0, &[slice(12288, 1, 1)], Errno::NOSPC),
        ];
        for (ino, chunk, slices, errno) in table {
            assert_eq!(ready(world.meta.write(*ino, *chunk, slices, world.now())), Err(*errno), "{slices:?}");
            assert_eq!(world.list(*ino, *chunk), []);
        }
        assert_eq!(ready(world.meta.append(Ino(99), slice(0, 1, 1), world.now())), Err(Errno::NOENT));
        assert_eq!(ready(world.meta.check_growth(ino, 12289)), Err(Errno::NOSPC));
        assert_eq!(ready(world.meta.check_growth(ino, 12288)), Ok(()));
        assert_eq!(ready(world.meta.check_growth(Ino(99), 1)), Err(Errno::NOENT));
    }

    #[test]
    fn mtime_never_stays() {
        let world = World::new();
        let ino = world.file(0);
        let mut last = world.attr(ino).mtime;
        for id in 1..5 {
            // The clock stands still.
            let mtime = world.write(ino, 0, id, 1).mtime;
            assert_ne!(mtime, last);
            last = mtime;
        }
    }

    #[test]
    fn statistics_follow_the_names_of_the_file() {
        let world = World::new();
        let (kept, linked) = (world.inode(|attr| attr.nlink = 0), world.inode(|attr| (attr.parent, attr.nlink) = (Ino(0), 3)));
        world.write(kept, 0, 1, 5000);
        assert_eq!(world.dir_stats(Ino::ROOT), (0, 0), "an unlinked file is in no directory");
        assert_eq!(world.counter(key::USED_SPACE), 4096);
        for (dir, count) in [(1, 2), (5, 1), (6, 0)] {
            world.store.put(Write::HSet(key::parents(linked), key::decimal(dir), key::decimal(count)));
            world.store.put(Write::HSet(key::DIR_DATA_LENGTH, key::decimal(dir), key::decimal(0)));
        }
        world.write(linked, 0, 2, 5000);
        let lengths = [1, 5, 6].map(|dir| world.dir_stats(Ino(dir)).0);
        assert_eq!(lengths, [10000, 5000, 0], "once per name");
        assert_eq!(world.counter(key::USED_SPACE), 8192);
    }

    #[test]
    fn long_lists_ask_for_compaction() {
        assert_eq!((1..=451).filter(|n| is_compaction_due(1, *n)).count(), 3 + 101);
        assert!(is_compaction_due(1, 99) && !is_compaction_due(1, 98) && !is_compaction_due(1, 100));
        assert!(is_compaction_due(4, 102) && !is_compaction_due(3, 102));
        let world = World::new();
        let ino = world.file(0);
        for id in 1..99 {
            world.write(ino, 0, id, 1);
        }
        assert_eq!(world.duty(), None);
        world.write(ino, 0, 99, 1);
        assert_eq!(world.duty(), Some(Duty::Compact { ino, chunk: 0 }));
    }

    #[test]
    fn concurrent_commits_lose_no_length() {
        let world = World::new();
        let ino = world.file(0);
        let (other, now) = (world.neighbour(), world.now());
        world.store.before_commit(move || {
            ready(other.write(ino, 0, &[slice(1000, 2, 1000)], now)).unwrap();
        });
        let attr = world.write(ino, 0, 1, 500);
        assert_eq!(attr.length, 2000);
        assert_eq!(world.list(ino, 0).len(), 2);
        assert_eq!(world.dir_stats(Ino::ROOT).0, 2000);
    }

    #[test]
    fn a_file_that_vanishes_before_the_commit_takes_nothing() {
        let world = std::sync::Arc::new(World::new());
        let ino = world.file(0);
        let other = world.clone();
        world.store.before_commit(move || other.unlink(ino));
        assert_eq!(ready(world.meta.write(ino, 0, &[slice(0, 1, 5)], world.now())), Err(Errno::NOENT));
        assert_eq!(world.list(ino, 0), []);
    }

    #[test]
    fn appends_land_at_the_real_end() {
        let world = World::new();
        let ino = world.file(100);
        let (other, now) = (world.neighbour(), world.now());
        world.store.before_commit(move || {
            assert_eq!(ready(other.append(ino, slice(0, 2, 30), now)).unwrap().0, 100);
        });
        let (offset, attr) = ready(world.meta.append(ino, slice(0, 1, 20), now)).unwrap();
        assert_eq!((offset, attr.length), (130, 150));
        assert_eq!(world.list(ino, 0).iter().map(|r| (r.id, r.pos)).collect::<Vec<_>>(), [(2, 100), (1, 130)]);
    }

    #[test]
    fn an_append_over_a_chunk_border_is_two_records_of_one_slice() {
        let world = World::new();
        let ino = world.inode(|attr| (attr.length, attr.flags) = (CHUNK_BYTES - 10, Flags(Flags::APPEND)));
        let frame = Some(Bytes::from_static(b"x"));
        let (offset, attr) = ready(world.meta.append(ino, NewSlice { frame, ..slice(0, 9, 25) }, world.now())).unwrap();
        assert_eq!((offset, attr.length), (CHUNK_BYTES - 10, CHUNK_BYTES + 15));
        assert_eq!(world.list(ino, 0), [SliceRecord { pos: CHUNK - 10, id: 9, size: 25, off: 0, len: 10 }]);
        assert_eq!(world.list(ino, 1), [SliceRecord { pos: 0, id: 9, size: 25, off: 10, len: 15 }]);
        assert_eq!(world.reference(9, 25), Some(1), "two references");
        assert!(world.frame(9).is_some());
    }
}
