//! A cache file: the block, then CRC-32C sums of its pieces, big-endian, then what a staging file carries beside (data §6.3).

use crate::env::Buffer;
use bytes::Bytes;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::AsRawFd;

/// Bytes of data one sum covers; the last piece may be shorter.
pub(super) const PIECE_BYTES: u32 = 32 << 10;
const SUM_BYTES: u32 = 4;

/// Why a file gives no bytes.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The disk failed.
    Disk(io::Error),
    /// The file is not what it should be; says how.
    Damaged(String),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> ReadError {
        // The length was looked at before: somebody has cut the file since.
        if error.kind() == ErrorKind::UnexpectedEof { ReadError::Damaged("it ends early".into()) } else { ReadError::Disk(error) }
    }
}

/// The sums of a block.
pub(super) fn trailer(data: &[u8]) -> Vec<u8> {
    data.chunks(PIECE_BYTES as usize).flat_map(|piece| crc32c::crc32c(piece).to_be_bytes()).collect()
}

/// Whether a file of this size holds sums for a block of `len` bytes; `None` if it is no cache file of such a block.
fn has_sums(file_bytes: u64, len: u32) -> Option<bool> {
    let extra = file_bytes.checked_sub(u64::from(len))?;
    let sums = u64::from(len.div_ceil(PIECE_BYTES) * SUM_BYTES);
    match extra {
        0 => Some(false),
        // Behind the sums a staging file has a footer whose length is a multiple of 4, and without sums one whose length is not.
        extra if extra % 4 == 0 => (extra >= sums).then_some(true),
        _ => Some(false),
    }
}

/// Bytes `range` of the block of `len` bytes in this file. With `check` every piece they touch is read and compared with its sum, and a
/// file without sums counts only if `only_copy`: after a power cut a file may have its length and not its data.
pub(super) fn read(file: &File, file_bytes: u64, len: u32, range: Range<u32>, check: bool, only_copy: bool) -> Result<Bytes, ReadError> {
    let sums = has_sums(file_bytes, len).ok_or_else(|| ReadError::Damaged(format!("it has {file_bytes} bytes, for a block of {len}")))?;
    if check && !sums && !only_copy {
        return Err(ReadError::Damaged("it has no checksums".into()));
    }
    if range.is_empty() {
        return Ok(Bytes::new());
    }
    if !check || !sums {
        return Ok(exactly(file, range)?.freeze());
    }
    let pieces = range.start / PIECE_BYTES..range.end.div_ceil(PIECE_BYTES);
    let start = pieces.start * PIECE_BYTES;
    let wide = exactly(file, start..(pieces.end * PIECE_BYTES).min(len))?;
    let expected = exactly(file, len + pieces.start * SUM_BYTES..len + pieces.end * SUM_BYTES)?;
    if trailer(&wide) != **expected {
        return Err(ReadError::Damaged(format!("bytes {}..{} do not match their checksums", range.start, range.end)));
    }
    Ok(wide.freeze().slice((range.start - start) as usize..(range.end - start) as usize))
}

fn exactly(file: &File, range: Range<u32>) -> io::Result<Buffer> {
    fill(file, range, 0)
}

/// All of these bytes of a file, read with the flags of preadv2(2). With `RWF_NOWAIT` it is an error if the system would have to wait for them.
pub(super) fn fill(file: &File, range: Range<u32>, flags: i32) -> io::Result<Buffer> {
    let len = range.len();
    let mut bytes = Buffer::with_room(len);
    while bytes.len() < len {
        let done = bytes.len();
        let at = i64::from(range.start) + done as i64;
        let free = &mut bytes.spare_capacity_mut()[..len - done];
        let piece = libc::iovec { iov_base: free.as_mut_ptr().cast(), iov_len: free.len() };
        // SAFETY: `piece` is the unused part of a live buffer that nobody else knows; the descriptor is open.
        let count = unsafe { libc::preadv2(file.as_raw_fd(), &piece, 1, at, flags) };
        match count {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            // SAFETY: the kernel has filled so many bytes behind those that were there, within the capacity.
            1.. => unsafe { bytes.set_len(done + count as usize) },
            _ => match io::Error::last_os_error() {
                error if error.kind() == ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn read_of(bytes: &[u8], len: u32, range: Range<u32>, check: bool, only_copy: bool) -> Result<Bytes, ReadError> {
        read(&file_of(bytes), bytes.len() as u64, len, range, check, only_copy)
    }

    #[test]
    fn sums_are_those_of_the_specification() {
        assert_eq!(trailer(b"helloworld"), [0x56, 0xcb, 0xb4, 0x80]);
        assert_eq!(trailer(&[0; 40_000]), [0xbc, 0x43, 0xba, 0xad, 0xa5, 0xf9, 0x28, 0x03]);
        assert_eq!(trailer(b"hello world, hello world, hello world\n"), [0xa0, 0x62, 0xf3, 0x5c]);
        assert_eq!(trailer(&vec![1; 3_000_000]).len(), 368);
        assert_eq!(trailer(&vec![1; 4 << 20]).len(), 512);
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_found() {
        let data: Vec<u8> = (0..40_000u32).map(|n| (n % 251) as u8).collect();
        let mut whole = data.clone();
        whole.extend(trailer(&data));
        for range in [0..40_000, 0..1, 32_767..32_769, 32_768..40_000, 39_999..40_000, 7..7] {
            let expected = &data[range.start as usize..range.end as usize];
            assert_eq!(read_of(&whole, 40_000, range, true, false).unwrap(), expected);
        }
        for at in (0..whole.len()).step_by(397).chain(39_990..whole.len()) {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x40;
            assert!(matches!(read_of(&flipped, 40_000, 0..40_000, true, true), Err(ReadError::Damaged(_))), "byte {at}");
            assert!(matches!(read_of(&whole[..at], 40_000, 5..6, true, false), Err(ReadError::Damaged(_))), "cut at {at}");
        }
        let mut flipped = whole.clone();
        flipped[0] ^= 1;
        assert_eq!(read_of(&flipped, 40_000, 32_768..33_000, true, false).unwrap(), data[32_768..33_000], "another piece");
        assert_eq!(read_of(&flipped, 40_000, 0..1, false, false).unwrap(), flipped[..1], "unchecked as asked for");
    }

    #[test]
    fn files_of_other_writers() {
        let data = b"helloworld";
        let with = |extra: &[u8]| [&data[..], extra].concat();
        // The footers of staging files of tier 2 in the specification.
        let padded = [0x46, 0x53, 0, 0x10, 0x82, 0xa4, b't', b'i', b'e', b'r', 0xcc, 2, 0xa3, b'p', b'a', b'd', 0xc4, 2, 0, 0];
        let bare = [0x46, 0x53, 0, 0x0e, 0x82, 0xa4, b't', b'i', b'e', b'r', 0xcc, 2, 0xa3, b'p', b'a', b'd', 0xc4, 0];
        let summed = [&[0x56, 0xcb, 0xb4, 0x80], &padded[..]].concat();
        assert_eq!(read_of(&with(&summed), 10, 2..5, true, false).unwrap(), "llo");
        assert_eq!(read_of(&with(&bare), 10, 2..5, true, true).unwrap(), "llo");
        assert_eq!(read_of(data, 10, 2..5, true, true).unwrap(), "llo", "the only copy");
        assert_eq!(read_of(data, 10, 2..5, false, false).unwrap(), "llo");
        assert!(matches!(read_of(data, 10, 2..5, true, false), Err(ReadError::Damaged(_))), "lengths alone prove nothing");
    }

    #[test]
    fn no_file_gives_other_bytes() {
        let data: Vec<u8> = (0..1000u32).map(|n| (n % 251) as u8).collect();
        let whole = [&data[..], &trailer(&data)].concat();
        let staged = [&whole[..], &[0x46, 0x53, 0, 4]].concat();
        crate::env::fuzz::decoder(&[whole, staged], |bytes| {
            for (range, only_copy) in [(0..1000, false), (990..1000, false), (5..6, true)] {
                let found = read_of(bytes, 1000, range.clone(), true, only_copy);
                if let (Ok(found), false) = (found, only_copy) {
                    assert_eq!(found, data[range.start as usize..range.end as usize]);
                }
            }
        });
    }
}
