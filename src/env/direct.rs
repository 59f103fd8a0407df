//! Writing large contents past the page cache.
//!
//! What is written through the page cache is copied into pages fresh from the system, and on a virtual machine each of them may have to come from the
//! host first: there a block takes longer to copy than to write. It would also be kept twice, because the kernel caches the files of the mount.

use crate::env::Buffer;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;

/// Shorter contents are read again soon more often than not, and cost little to copy.
const DIRECT_BYTES_MIN: usize = 1 << 20;
/// Bytes copied and written at a time: enough to keep a disk busy, little memory for each writer.
const PIECE_BYTES: usize = 1 << 20;
/// What places, lengths and memory are multiples of: no disk wants more, and a filesystem that does is written to through its cache.
const ALIGNMENT: usize = 4096;

/// Writes `bytes` to `file` as `write_all` does; large ones past the page cache if the filesystem can and the place is the beginning of a page.
/// Not durable before the file is synced.
pub(crate) fn write_all_direct(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    if bytes.len() < DIRECT_BYTES_MIN || set_direct(file, true).is_err() {
        return file.write_all(bytes);
    }
    let direct = write_pieces(file, &bytes[..bytes.len() / ALIGNMENT * ALIGNMENT]);
    set_direct(file, false)?;
    // What is left of a page, or all if a filesystem that took the flag refuses such a write.
    file.write_all(&bytes[direct?..])
}

/// Writes whole pages; answers how many bytes were taken before the filesystem refused, which is all as a rule.
fn write_pieces(file: &mut File, bytes: &[u8]) -> io::Result<usize> {
    let mut room = Buffer::with_room(PIECE_BYTES + ALIGNMENT);
    let start = room.as_ptr().align_offset(ALIGNMENT);
    let mut written = 0;
    while written < bytes.len() {
        let piece = &bytes[written..bytes.len().min(written + PIECE_BYTES)];
        room.resize(start, 0);
        room.extend_from_slice(piece);
        match file.write(&room[start..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Alignment, or a file that can only be written through its cache: compressed, for one.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(written)
}

/// Whether the page cache is passed by from now on. Fails where a filesystem cannot.
fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    // SAFETY: the descriptor is open while `file` lives; the call takes no pointers.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    let wanted = if direct { flags | libc::O_DIRECT } else { flags & !libc::O_DIRECT };
    // SAFETY: as above.
    if flags == -1 || unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, wanted) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn round_trip(dir: &Path) {
        for len in [0, 1, DIRECT_BYTES_MIN - 1, DIRECT_BYTES_MIN, DIRECT_BYTES_MIN + 1, 4 << 20, (4 << 20) - 5, (3 << 20) + ALIGNMENT] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + i / 4096) as u8).collect();
            let path = dir.join("content");
            let mut file = File::create(&path).unwrap();
            write_all_direct(&mut file, &bytes).unwrap();
            // It is an ordinary file afterwards.
            file.write_all(b"end").unwrap();
            assert!(std::fs::read(&path).unwrap() == [&bytes[..], b"end"].concat(), "{len} bytes");
        }
    }

    #[test]
    fn whatever_the_length_all_arrives() {
        round_trip(tempfile::tempdir().unwrap().path());
        // In memory, where there is nothing to pass by.
        round_trip(tempfile::tempdir_in("/dev/shm").unwrap().path());
    }

    #[test]
    fn what_the_filesystem_refuses_goes_through_its_cache() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = File::create(dir.path().join("odd")).unwrap();
        // Behind three bytes no write past the cache is aligned.
        file.write_all(b"odd").unwrap();
        write_all_direct(&mut file, &vec![5; DIRECT_BYTES_MIN]).unwrap();
        assert!(std::fs::read(dir.path().join("odd")).unwrap() == [b"odd", &vec![5; DIRECT_BYTES_MIN][..]].concat());
    }
}
