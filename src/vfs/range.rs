//! Requests about ranges of files: fallocate, lseek, copy_file_range. All see what was written before: it is committed first.

use crate::meta::ops::fallocate::Falloc;
use crate::types::{CHUNK_BYTES, Caller, Errno, Ino, SliceRecord, flatten};
use crate::vfs::{Vfs, inode_errno, write_errno};

/// Most bytes of one copy: what a commit may carry, 64 chunk lists. copy_file_range(2) may answer less than it was asked for.
const COPY_BYTES_MAX: u64 = 64 * CHUNK_BYTES;

/// What lseek looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sought {
    Data,
    Hole,
}

impl Vfs {
    /// Allocates, punches or zeroes; `mode` as in fallocate(2).
    pub async fn fallocate(&self, caller: &Caller, ino: Ino, fh: u64, offset: u64, length: u64, mode: u32) -> Result<(), Errno> {
        self.mount.writable()?;
        let ino = self.mount.inward(ino);
        let handle = self.handles.file(ino, fh)?;
        if !handle.writable {
            return Err(Errno::BADF);
        }
        let mode = falloc_of(mode)?;
        if length == 0 {
            return Err(Errno::INVAL);
        }
        offset.checked_add(length).ok_or(Errno::FBIG)?;
        self.flush_data(ino).await?;
        let attr = self.meta.fallocate(caller, ino, mode, offset, length).await.map_err(inode_errno)?;
        handle.inode.note(&attr);
        Ok(())
    }

    /// The next data or hole at or after `offset`; `whence` as in lseek(2). The kernel asks for nothing else.
    pub async fn lseek(&self, _caller: &Caller, ino: Ino, fh: u64, offset: u64, whence: u32) -> Result<u64, Errno> {
        let ino = self.mount.inward(ino);
        let sought = match i32::try_from(whence) {
            Ok(libc::SEEK_DATA) => Sought::Data,
            Ok(libc::SEEK_HOLE) => Sought::Hole,
            _ => return Err(Errno::INVAL),
        };
        self.handles.file(ino, fh)?;
        self.flush_data(ino).await?;
        let length = self.attr_of(ino).await?.length;
        if offset >= length {
            return Err(Errno::NXIO);
        }
        let last = chunk_of(length - 1);
        let mut index = chunk_of(offset);
        while index <= last {
            let start = u64::from(index) * CHUNK_BYTES;
            let from = offset.saturating_sub(start).min(CHUNK_BYTES) as u32;
            let to = (length - start).min(CHUNK_BYTES) as u32;
            let view = self.meta.chunk(ino, index, length).await?;
            if let Some(at) = seek_in_chunk(sought, &view.records, from, to) {
                return Ok(start + u64::from(at));
            }
            index += 1;
            // A file may have millions of chunks without a list; they are not asked for one by one.
            if sought == Sought::Data && view.records.is_empty() && index <= last {
                match self.meta.chunks_present(ino, index..last.saturating_add(1)).await?.first() {
                    Some(present) => index = *present,
                    None => break,
                }
            }
        }
        match sought {
            Sought::Data => Err(Errno::NXIO),
            // The end of a file is a hole.
            Sought::Hole => Ok(length),
        }
    }

    /// Copies without moving data; answers how many bytes it came to.
    #[allow(clippy::too_many_arguments)]
    pub async fn copy_file_range(
        &self,
        caller: &Caller,
        ino: Ino,
        fh: u64,
        offset: u64,
        out_ino: Ino,
        out_fh: u64,
        out_offset: u64,
        len: u64,
        flags: u64,
    ) -> Result<u64, Errno> {
        self.mount.writable()?;
        let (ino, out_ino) = (self.mount.inward(ino), self.mount.inward(out_ino));
        self.handles.file(ino, fh)?;
        let out = self.handles.file(out_ino, out_fh)?;
        if !out.writable {
            return Err(Errno::BADF);
        }
        if flags != 0 {
            return Err(Errno::INVAL);
        }
        let (end, out_end) = (offset.checked_add(len).ok_or(Errno::OVERFLOW)?, out_offset.checked_add(len).ok_or(Errno::OVERFLOW)?);
        if ino == out_ino && offset < out_end && out_offset < end {
            return Err(Errno::INVAL);
        }
        self.flush_data(ino).await?;
        self.flush_data(out_ino).await?;
        let len = len.min(COPY_BYTES_MAX);
        let (copied, attr) = self.meta.copy_range(caller, ino, offset, out_ino, out_offset, len).await.map_err(write_errno_of_copy)?;
        out.inode.note(&attr);
        Ok(copied)
    }
}

/// EINVAL and EPERM say something about the ranges and flags of a copy; only a missing file is a bad handle.
fn write_errno_of_copy(errno: Errno) -> Errno {
    if errno == Errno::NOENT { write_errno(errno) } else { errno }
}

fn chunk_of(offset: u64) -> u32 {
    u32::try_from(offset / CHUNK_BYTES).unwrap_or(u32::MAX)
}

fn falloc_of(mode: u32) -> Result<Falloc, Errno> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;
    const PUNCH_KEEP: i32 = PUNCH | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = ZERO | KEEP;
    match i32::try_from(mode).map_err(|_| Errno::NOTSUP)? {
        0 => Ok(Falloc::Allocate),
        KEEP => Ok(Falloc::KeepSize),
        PUNCH_KEEP => Ok(Falloc::PunchHole),
        ZERO => Ok(Falloc::ZeroRange),
        ZERO_KEEP => Ok(Falloc::ZeroRangeKeepSize),
        _ => Err(Errno::NOTSUP),
    }
}

/// The first byte of `from..to` of a chunk that is data (or a hole). What no record covers is a hole.
fn seek_in_chunk(sought: Sought, records: &[SliceRecord], from: u32, to: u32) -> Option<u32> {
    let extents = flatten(records);
    let covered = extents.last().map_or(0, |extent| extent.pos.saturating_add(extent.len));
    let of_kind = extents.iter().filter(|extent| (extent.id == 0) == (sought == Sought::Hole));
    let found = of_kind.map(|extent| (extent.pos.max(from), extent.pos.saturating_add(extent.len))).find(|(at, end)| at < end);
    let found = match sought {
        Sought::Data => found.map(|(at, _)| at),
        Sought::Hole => Some(found.map_or(covered.max(from), |(at, _)| at)),
    };
    found.filter(|at| *at < to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_and_holes_of_a_chunk() {
        let data = |pos, len| SliceRecord { pos, id: 7, size: len, off: 0, len };
        let records = [data(10, 10), SliceRecord::hole(15, 2), data(30, 10)];
        let data_at = |from, to| seek_in_chunk(Sought::Data, &records, from, to);
        let hole_at = |from, to| seek_in_chunk(Sought::Hole, &records, from, to);
        assert_eq!([data_at(0, 100), data_at(12, 100), data_at(15, 100), data_at(20, 100)], [Some(10), Some(12), Some(17), Some(30)]);
        assert_eq!([data_at(39, 100), data_at(40, 100), data_at(20, 25), data_at(0, 10)], [Some(39), None, None, None]);
        assert_eq!([hole_at(0, 100), hole_at(10, 100), hole_at(17, 100), hole_at(31, 100)], [Some(0), Some(15), Some(20), Some(40)]);
        assert_eq!([hole_at(30, 40), hole_at(30, 41), hole_at(16, 17)], [None, Some(40), Some(16)]);
        assert_eq!(seek_in_chunk(Sought::Data, &[], 5, 9), None);
        assert_eq!(seek_in_chunk(Sought::Hole, &[], 5, 9), Some(5));
    }

    #[test]
    fn modes_of_fallocate() {
        for (mode, want) in [
            (0, Falloc::Allocate),
            (1, Falloc::KeepSize),
            (3, Falloc::PunchHole),
            (0x10, Falloc::ZeroRange),
            (0x11, Falloc::ZeroRangeKeepSize),
        ] {
            assert_eq!(falloc_of(mode), Ok(want));
        }
        for mode in [2, 8, 0x12, 0x20, 0x40, 1 << 31] {
            assert_eq!(falloc_of(mode), Err(Errno::NOTSUP));
        }
    }
}
