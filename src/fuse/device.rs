//! The FUSE device: one request a read, one reply or notification a write.

use crate::env::Buffer;
use crate::fuse::abi::{OutHeader, bytes_of};
use bytes::Bytes;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// Most pieces a reply is written in besides its header: `UIO_MAXIOV` is 1024.
pub(crate) const PIECES_MAX: usize = 1023;

/// An open `/dev/fuse` that is connected to a mount.
pub(crate) struct Device(OwnedFd);

impl Device {
    /// A descriptor of our own for the same connection.
    pub(crate) fn duplicate(of: impl AsFd) -> io::Result<Device> {
        of.as_fd().try_clone_to_owned().map(Device)
    }

    /// Looks for a request for at most `limit` without sleeping. Whether one came in time: one that was found much later came while others had
    /// the processor.
    pub(crate) fn look(&self, limit: Duration) -> bool {
        let mut of = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let began = crate::env::instant();
        loop {
            // SAFETY: one structure that lives through the call, as it is told; with no time to wait the call returns at once.
            let count = unsafe { libc::poll(&raw mut of, 1, 0) };
            if count != 0 || began.elapsed() >= limit {
                return count != 0 && began.elapsed() <= limit * 2;
            }
            std::hint::spin_loop();
        }
    }

    /// Waits for a request. `ENODEV`: unmounted. `ENOENT`: the request was withdrawn while it was read.
    pub(crate) fn read(&self, buffer: &mut RequestBuffer) -> io::Result<()> {
        if buffer.bytes.capacity() < buffer.capacity {
            buffer.bytes = Buffer::with_room(buffer.capacity);
        }
        buffer.bytes.clear();
        // SAFETY: the vector is empty and has room for `capacity` bytes, which is what the kernel is told; the descriptor is open.
        let count = unsafe { libc::read(self.0.as_raw_fd(), buffer.bytes.as_mut_ptr().cast(), buffer.capacity) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        // SAFETY: the kernel has initialised the first `count` bytes, and `count` is at most `capacity`.
        unsafe { buffer.bytes.set_len(count) };
        Ok(())
    }

    /// Writes one message: `code` is 0, a negative errno, or the code of a notification (with `unique` 0).
    pub(crate) fn write(&self, unique: u64, code: i32, pieces: &[&[u8]]) -> io::Result<()> {
        assert!(pieces.len() <= PIECES_MAX, "the caller joins pieces");
        let total = size_of::<OutHeader>() + pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let len = u32::try_from(total).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let header = OutHeader { len, error: code, unique };
        let mut vectors = Vec::with_capacity(pieces.len() + 1);
        for piece in std::iter::once(bytes_of(&header)).chain(pieces.iter().copied()) {
            vectors.push(libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() });
        }
        let count = i32::try_from(vectors.len()).expect("at most 1024");
        // SAFETY: every vector describes a live slice for the time of the call; writev only reads them; the descriptor is open.
        let written = unsafe { libc::writev(self.0.as_raw_fd(), vectors.as_ptr(), count) };
        // The device takes a message whole or not at all.
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Holds the request that was read last.
pub(crate) struct RequestBuffer {
    bytes: Buffer,
    /// The longest request.
    capacity: usize,
}

impl RequestBuffer {
    /// For requests of up to `capacity` bytes.
    pub(crate) fn new(capacity: usize) -> RequestBuffer {
        RequestBuffer { bytes: Buffer::default(), capacity }
    }

    /// The request.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A part of the request that outlives the buffer's next use. A part of at least half the buffer takes the buffer with it, uncopied,
    /// and the next read gets a new one: so what is kept alive is at most twice what is asked for. The request is gone afterwards.
    pub(crate) fn take_part(&mut self, part: Range<usize>) -> Bytes {
        if part.len() >= self.capacity / 2 {
            std::mem::take(&mut self.bytes).freeze_all().slice(part)
        } else {
            Bytes::copy_from_slice(&self.bytes[part])
        }
    }

    #[cfg(test)]
    pub(crate) fn holding(bytes: &[u8]) -> RequestBuffer {
        let mut buffer = RequestBuffer::new(4096);
        buffer.bytes.extend_from_slice(bytes);
        buffer
    }
}
