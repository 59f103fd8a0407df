//! fallocate(2): growing a file without data, and zeroing a range of it. No space is reserved beyond what the length counts.

use crate::meta::Meta;
use crate::meta::client::Cx;
use crate::meta::ops::truncate::{Outcome, Present, zero};
use crate::meta::ops::write::change_data;
use crate::meta::view::{Plan, Stop, View};
use crate::types::{Attr, Caller, Errno, FILE_BYTES_MAX, Flags, Ino, Kind};

/// What fallocate(2) shall do with the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Falloc {
    /// Extends the file to the end of the range.
    Allocate,
    /// Changes nothing but the times.
    KeepSize,
    /// Zeros the range inside the file.
    PunchHole,
    /// Zeros the range and extends the file to its end.
    ZeroRange,
    /// Zeros the range inside the file, like `PunchHole`.
    ZeroRangeKeepSize,
}

impl Falloc {
    fn extends(self) -> bool {
        matches!(self, Falloc::Allocate | Falloc::ZeroRange)
    }

    fn zeros(self) -> bool {
        !matches!(self, Falloc::Allocate | Falloc::KeepSize)
    }
}

impl Meta {
    /// Applies fallocate(2) to `len` bytes from `off`.
    pub async fn fallocate(&self, caller: &Caller, ino: Ino, mode: Falloc, off: u64, len: u64) -> Result<Attr, Errno> {
        self.run_listed("fallocate", caller, ino, |view, cx, present| step(view, cx, ino, mode, off, len, present)).await
    }
}

pub(crate) fn step(
    view: &View,
    cx: &Cx,
    ino: Ino,
    mode: Falloc,
    off: u64,
    len: u64,
    present: Option<&Present>,
) -> Result<Plan<Outcome>, Stop> {
    if len == 0 {
        return Err(Errno::INVAL.into());
    }
    let end = off.checked_add(len).filter(|end| *end < FILE_BYTES_MAX).ok_or(Errno::FBIG)?;
    let record = view.record(ino)?.ok_or(Errno::NOENT)?;
    let old = &record.attr;
    match old.kind {
        Kind::File => {}
        Kind::Fifo => return Err(Errno::PIPE.into()),
        _ => return Err(Errno::PERM.into()),
    }
    if old.flags.any(Flags::IMMUTABLE) || old.flags.any(Flags::APPEND) && mode.zeros() {
        return Err(Errno::PERM.into());
    }
    let length = if mode.extends() { old.length.max(end) } else { old.length };
    let change = change_data(view, cx, ino, &record, length, cx.now)?;
    // Beyond the end everything is zero already.
    let zeroed = if mode.zeros() { off.min(old.length)..end.min(old.length) } else { 0..0 };
    match zero(ino, zeroed, &record.bytes, present) {
        Some(writes) => Ok(change.plan(writes, |attr, _| Outcome::Done(attr))),
        None => Ok(Plan::answer(Outcome::List(record.bytes))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::key;
    use crate::meta::ops::chunk::testing::{World, ready};
    use crate::types::CHUNK_BYTES;

    #[test]
    fn length_and_holes_by_mode() {
        use Falloc::{Allocate, KeepSize, PunchHole, ZeroRange, ZeroRangeKeepSize};
        const C: u64 = CHUNK_BYTES;
        // Mode, old length, offset, length → new length, holes (chunk, pos, len).
        type Row<'a> = (Falloc, u64, u64, u64, u64, &'a [(u32, u64, u64)]);
        let table: &[Row] = &[
            (Allocate, 10, 5, 20, 25, &[]),
            (Allocate, 100, 5, 20, 100, &[]),
            (KeepSize, 10, 5, 20, 10, &[]),
            (PunchHole, 100, 5, 20, 100, &[(0, 5, 20)]),
            (PunchHole, 10, 5, 20, 10, &[(0, 5, 5)]),
            (PunchHole, 10, 10, 20, 10, &[]),
            (PunchHole, 2 * C, C - 5, 10, 2 * C, &[(0, C - 5, 5), (1, 0, 5)]),
            (ZeroRange, 10, 5, 20, 25, &[(0, 5, 5)]),
            (ZeroRange, 10, 50, 20, 70, &[]),
            (ZeroRangeKeepSize, 10, 5, 20, 10, &[(0, 5, 5)]),
        ];
        for &(mode, old, off, len, new, holes) in table {
            let world = World::new();
            let ino = world.file(old);
            let attr = ready(world.meta.fallocate(&Caller::root(), ino, mode, off, len)).unwrap();
            assert_eq!((attr.length, attr.mtime), (new, world.now()), "{mode:?}");
            let mut seen = Vec::new();
            for chunk in 0..3 {
                seen.extend(world.list(ino, chunk).iter().map(|r| (chunk, u64::from(r.pos), u64::from(r.len))));
            }
            assert_eq!(seen, holes, "{mode:?}");
            assert_eq!(world.counter(key::USED_SPACE), Attr::space_of(new) - Attr::space_of(old));
        }
    }

    #[test]
    fn what_is_refused() {
        let world = World::with(|setting| setting.set("Capacity", 8192.into()));
        let kind = |kind| world.inode(|attr| attr.kind = kind);
        let flagged = |bit| world.inode(|attr| attr.flags = Flags(bit));
        let table = [
            (Ino(99), Falloc::Allocate, 0, 1, Err(Errno::NOENT)),
            (kind(Kind::Fifo), Falloc::Allocate, 0, 1, Err(Errno::PIPE)),
            (kind(Kind::Dir), Falloc::Allocate, 0, 1, Err(Errno::PERM)),
            (flagged(Flags::IMMUTABLE), Falloc::Allocate, 0, 1, Err(Errno::PERM)),
            (flagged(Flags::APPEND), Falloc::PunchHole, 0, 1, Err(Errno::PERM)),
            (flagged(Flags::APPEND), Falloc::Allocate, 0, 1, Ok(1)),
            (world.file(0), Falloc::Allocate, 0, 0, Err(Errno::INVAL)),
            (world.file(0), Falloc::Allocate, u64::MAX, 2, Err(Errno::FBIG)),
            (world.file(0), Falloc::Allocate, 1 << 57, 1, Err(Errno::FBIG)),
            (world.file(0), Falloc::Allocate, 0, 20_000, Err(Errno::NOSPC)),
            (world.file(0), Falloc::KeepSize, 0, 20_000, Ok(0)),
        ];
        for (ino, mode, off, len, want) in table {
            let got = ready(world.meta.fallocate(&Caller::root(), ino, mode, off, len)).map(|attr| attr.length);
            assert_eq!(got, want, "{ino} {mode:?}");
        }
    }
}
