//! fallocate(2): growing a file without data, and zeroing a range of it. No space is reserved beyond what the length counts.

use crate::meta::Meta;
use crate::meta::client::Cx;
use crate::meta::ops::truncate::{Outcome, Present, zero};
use crate::meta::ops::write::{FILE_BYTES_MAX, change_data};
use crate::meta::view::{Plan, Stop, View};
use crate::types::{Attr, Caller, Errno, Flags, Ino, Kind};

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
