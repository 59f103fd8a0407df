//! Answers to the kernel. A `Reply` answers exactly once; dropped unanswered it answers EIO and says so in the log.

use crate::fuse::abi::{self, Plain, bytes_of};
use crate::fuse::device::{Device, PIECES_MAX};
use crate::fuse::interrupt::Requests;
use crate::telemetry::metrics;
use crate::types::{Attr, Cancel, Errno};
use crate::vfs::{AttrReply, DirItem, DirSink, Entry, Lock, LockKind, OpenReply, StatFs};
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// `st_blksize`: what cp, cat and stdio read and write at a time. The default of 4 KiB would cost them a request per page.
const BLKSIZE: u32 = 64 << 10;
/// The unit of `statfs` counts.
const STATFS_BLOCK_BYTES: u32 = 4096;
/// Inode numbers are never used again, so all have the same generation. (0 would do, but some NFS code takes it for "unknown".)
const GENERATION: u64 = 1;
/// The largest errno the kernel takes; above it, it refuses the whole reply.
const ERRNO_MAX: i32 = 511;
/// Listings are collected in memory; the kernel asks for at most this much at a time.
const LISTING_BYTES_MAX: u32 = 1 << 20;

/// The obligation to answer one request.
pub(crate) struct Reply {
    device: Arc<Device>,
    requests: Arc<Requests>,
    unique: u64,
    method: &'static str,
    began: Instant,
    answered: bool,
}

impl Reply {
    /// Enters the request; `Cancel` is how the kernel calls it off.
    pub(crate) fn new(device: Arc<Device>, requests: Arc<Requests>, unique: u64, method: &'static str) -> (Reply, Cancel) {
        let cancel = requests.enter(unique);
        (Reply { device, requests, unique, method, began: Instant::now(), answered: false }, cancel)
    }

    pub(crate) fn empty(self, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.send(&[]),
            Err(errno) => self.fail(errno),
        }
    }

    pub(crate) fn error(self, errno: Errno) {
        self.fail(errno);
    }

    pub(crate) fn entry(self, result: Result<Entry, Errno>) {
        self.plain(result.map(|entry| entry_out(&entry)));
    }

    pub(crate) fn attr(self, result: Result<AttrReply, Errno>) {
        self.plain(result.map(|AttrReply { ino, attr, ttl }| abi::AttrOut {
            attr_valid: ttl.as_secs(),
            attr_valid_nsec: ttl.subsec_nanos(),
            dummy: 0,
            attr: fuse_attr(ino.0, &attr),
        }));
    }

    pub(crate) fn opened(self, result: Result<OpenReply, Errno>) {
        self.plain(result.map(|open| open_out(&open)));
    }

    pub(crate) fn created(self, result: Result<(Entry, OpenReply), Errno>) {
        let result = result.map(|(entry, open)| (entry_out(&entry), open_out(&open)));
        match result {
            Ok((entry, open)) => self.send(&[bytes_of(&entry), bytes_of(&open)]),
            Err(errno) => self.error(errno),
        }
    }

    pub(crate) fn bytes(self, result: Result<Bytes, Errno>) {
        match result {
            Ok(bytes) => self.send(&[&bytes]),
            Err(errno) => self.error(errno),
        }
    }

    /// What a READ of `size` bytes found, in order.
    pub(crate) fn data(self, size: u32, result: Result<Vec<Bytes>, Errno>) {
        let pieces = match result {
            Ok(pieces) => pieces,
            Err(errno) => return self.error(errno),
        };
        let total: usize = pieces.iter().map(Bytes::len).sum();
        metrics::FUSE_READ.bytes(total as u64);
        if total > size as usize {
            // The kernel has no room for it and would leave the reader waiting.
            tracing::error!(total, size, "a read found more than was asked for");
            return self.error(Errno::IO);
        }
        if pieces.len() <= PIECES_MAX {
            let slices: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
            self.send(&slices);
        } else {
            self.send(&[&pieces.concat()]);
        }
    }

    /// The count of a WRITE or of a copy.
    pub(crate) fn written(self, result: Result<u32, Errno>) {
        self.plain(result.map(|size| abi::WriteOut { size, padding: 0 }));
    }

    pub(crate) fn copied(self, result: Result<u64, Errno>) {
        self.plain(result.map(|bytes_copied| abi::CopyFileRangeOut { bytes_copied }));
    }

    pub(crate) fn offset(self, result: Result<u64, Errno>) {
        self.plain(result.map(|offset| abi::LseekOut { offset }));
    }

    pub(crate) fn statfs(self, result: Result<StatFs, Errno>) {
        self.plain(result.map(|stat| {
            let block = u64::from(STATFS_BLOCK_BYTES);
            // `available` may be above `total - used` or below it: free for root is what is not used, free for others what may be used.
            let free = stat.total.saturating_sub(stat.used).max(stat.available);
            abi::StatfsOut {
                blocks: stat.total / block,
                bfree: free / block,
                bavail: stat.available / block,
                files: stat.inodes,
                ffree: stat.inodes_available,
                bsize: STATFS_BLOCK_BYTES,
                namelen: 255,
                frsize: STATFS_BLOCK_BYTES,
                ..abi::StatfsOut::default()
            }
        }));
    }

    /// The value of an attribute or the list of their names, or how long it is if `size` is 0.
    pub(crate) fn xattr(self, size: u32, result: Result<Bytes, Errno>) {
        match result {
            Ok(value) => match u32::try_from(value.len()) {
                Ok(len) if size == 0 => self.plain(Ok(abi::GetxattrOut { size: len, padding: 0 })),
                Ok(len) if len <= size => self.send(&[&value]),
                _ => self.error(Errno::RANGE),
            },
            Err(errno) => self.error(errno),
        }
    }

    /// The lock in the way, if any.
    pub(crate) fn lock(self, result: Result<Option<Lock>, Errno>) {
        let unlocked = libc::F_UNLCK;
        self.plain(result.map(|lock| {
            let (start, end, pid) = lock.as_ref().map_or((0, 0, 0), |lock| (lock.start, lock.end, lock.pid));
            let kind = match lock.map(|lock| lock.kind) {
                Some(LockKind::Shared) => libc::F_RDLCK,
                Some(LockKind::Exclusive) => libc::F_WRLCK,
                Some(LockKind::Unlock) | None => unlocked,
            };
            abi::LkOut { lk: abi::FileLock { start, end, kind: kind as u32, pid } }
        }));
    }

    pub(crate) fn listing(self, result: Result<Listing, Errno>) {
        match result {
            Ok(listing) => self.send(&[&listing.bytes]),
            Err(errno) => self.error(errno),
        }
    }

    fn plain<T: Plain>(self, result: Result<T, Errno>) {
        match result {
            Ok(value) => self.send(&[bytes_of(&value)]),
            Err(errno) => self.error(errno),
        }
    }

    fn send(mut self, pieces: &[&[u8]]) {
        match self.device.write(self.unique, 0, pieces) {
            Err(error) if !is_gone(&error) => {
                // The kernel did not like it and still waits.
                tracing::error!(unique = self.unique, %error, "a reply was refused");
                self.fail(Errno::IO);
            }
            _ => self.answered = true,
        }
    }

    fn fail(mut self, errno: Errno) {
        let errno = if (1..=ERRNO_MAX).contains(&errno.0) { errno } else { Errno::IO };
        if errno == Errno::IO {
            metrics::FUSE_ERRORS.add("EIO", 1, 0);
        }
        if let Err(error) = self.device.write(self.unique, -errno.0, &[])
            && !is_gone(&error)
        {
            tracing::error!(unique = self.unique, %error, "an error reply was refused");
        }
        self.answered = true;
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            tracing::error!(unique = self.unique, "a request was dropped without an answer");
            if let Err(error) = self.device.write(self.unique, -libc::EIO, &[])
                && !is_gone(&error)
            {
                tracing::error!(unique = self.unique, %error, "an error reply was refused");
            }
        }
        // After the answer: an INTERRUPT that no longer finds the request may take it for answered (see `interrupt.rs`).
        self.requests.leave(self.unique);
        metrics::FUSE.done(self.method, self.began.elapsed());
    }
}

/// The requester or the whole mount is gone; nobody waits for an answer.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

fn fuse_attr(ino: u64, attr: &Attr) -> abi::FuseAttr {
    abi::FuseAttr {
        ino,
        size: attr.length,
        blocks: attr.length.div_ceil(512),
        atime: attr.atime.sec,
        mtime: attr.mtime.sec,
        ctime: attr.ctime.sec,
        atimensec: attr.atime.nsec,
        mtimensec: attr.mtime.nsec,
        ctimensec: attr.ctime.nsec,
        mode: attr.st_mode(),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLKSIZE,
        flags: 0,
    }
}

fn entry_out(entry: &Entry) -> abi::EntryOut {
    let (secs, nanos) = (Duration::as_secs, Duration::subsec_nanos);
    abi::EntryOut {
        nodeid: entry.ino.0,
        generation: GENERATION,
        entry_valid: secs(&entry.entry_ttl),
        attr_valid: secs(&entry.attr_ttl),
        entry_valid_nsec: nanos(&entry.entry_ttl),
        attr_valid_nsec: nanos(&entry.attr_ttl),
        attr: fuse_attr(entry.ino.0, &entry.attr),
    }
}

fn open_out(open: &OpenReply) -> abi::OpenOut {
    let flag = |set, bit| if set { bit } else { 0 };
    let open_flags = flag(open.direct_io, abi::FOPEN_DIRECT_IO) | flag(open.keep_cache, abi::FOPEN_KEEP_CACHE);
    abi::OpenOut { fh: open.fh, open_flags, backing_id: 0 }
}

/// Collects directory entries in the form of READDIR or READDIRPLUS.
pub(crate) struct Listing {
    bytes: Vec<u8>,
    limit: usize,
    plus: bool,
}

impl Listing {
    /// For a request of `size` bytes.
    pub(crate) fn new(size: u32, plus: bool) -> Listing {
        let limit = size.min(LISTING_BYTES_MAX) as usize;
        Listing { bytes: Vec::with_capacity(limit), limit, plus }
    }
}

impl DirSink for Listing {
    fn add(&mut self, item: &DirItem<'_>) -> bool {
        let Ok(namelen) = u32::try_from(item.name.len()) else { return false };
        let head = if self.plus { size_of::<abi::Direntplus>() } else { size_of::<abi::Dirent>() };
        let end = self.bytes.len() + (head + item.name.len()).next_multiple_of(8);
        if end > self.limit {
            return false;
        }
        if self.plus {
            // Node id 0: the kernel learns no inode from this entry (".", "..", a record that is missing) and counts no lookup.
            let entry = item.entry.as_ref().map(entry_out).unwrap_or_default();
            self.bytes.extend_from_slice(bytes_of(&entry));
        }
        // DT_* are the S_IFMT bits, moved down.
        let dirent = abi::Dirent { ino: item.ino.0, off: item.cookie, namelen, kind: item.kind.mode_bits() >> 12 };
        self.bytes.extend_from_slice(bytes_of(&dirent));
        self.bytes.extend_from_slice(item.name);
        self.bytes.resize(end, 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::abi::{OutHeader, split};
    use crate::types::{Ino, Kind};
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    /// The bytes that one reply writes.
    fn written(answer: impl FnOnce(Reply)) -> (OutHeader, Vec<u8>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ours = OwnedFd::from(ours);
        let requests = Arc::new(Requests::default());
        let (reply, _) = Reply::new(Arc::new(Device::duplicate(&ours).unwrap()), requests.clone(), 42, "test");
        drop(ours);
        answer(reply);
        assert_eq!(requests.drain(Duration::ZERO), 0, "an answered request is no longer waited for");
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).unwrap();
        let (header, rest) = split::<OutHeader>(&bytes).unwrap();
        assert_eq!((header.len as usize, header.unique), (bytes.len(), 42), "one message and its length");
        (header, rest.to_vec())
    }

    #[test]
    fn every_request_is_answered_once() {
        let pieces = |n: usize| (0..n).map(|_| Bytes::from_static(b"ab")).collect::<Vec<_>>();
        type Answer = Box<dyn FnOnce(Reply)>;
        let table: Vec<(Answer, i32, usize)> = vec![
            (Box::new(|r| r.empty(Ok(()))), 0, 0),
            (Box::new(|r| r.error(Errno::NOENT)), -libc::ENOENT, 0),
            // The kernel refuses numbers outside 1..=511.
            (Box::new(|r| r.error(Errno(100_000))), -libc::EIO, 0),
            (Box::new(|r| r.error(Errno(0))), -libc::EIO, 0),
            (Box::new(drop), -libc::EIO, 0),
            (Box::new(move |r| r.data(6, Ok(pieces(3)))), 0, 6),
            (Box::new(move |r| r.data(5, Ok(pieces(3)))), -libc::EIO, 0),
            (Box::new(move |r| r.data(4000, Ok(pieces(2000)))), 0, 4000),
            (Box::new(|r| r.xattr(0, Ok(Bytes::from_static(b"abc")))), 0, 8),
            (Box::new(|r| r.xattr(2, Ok(Bytes::from_static(b"abc")))), -libc::ERANGE, 0),
            (Box::new(|r| r.xattr(3, Ok(Bytes::from_static(b"abc")))), 0, 3),
            (Box::new(|r| r.lock(Ok(None))), 0, 24),
        ];
        for (i, (answer, error, len)) in table.into_iter().enumerate() {
            let (header, rest) = written(answer);
            assert_eq!((header.error, rest.len()), (error, len), "row {i}");
        }
    }

    #[test]
    fn a_listing_takes_what_fits_and_pads_it() {
        let item = |name: &'static [u8], cookie| DirItem { ino: Ino(3), kind: Kind::Dir, name, cookie, entry: None };
        // 24 bytes and the name, rounded up to 8: 32 each.
        let mut listing = Listing::new(64, false);
        assert!(listing.add(&item(b"a", 1)) && listing.add(&item(b"12345678", 2)));
        assert!(!listing.add(&item(b"c", 3)));
        let (dirent, rest) = split::<abi::Dirent>(&listing.bytes).unwrap();
        assert_eq!(dirent, abi::Dirent { ino: 3, off: 1, namelen: 1, kind: u32::from(libc::DT_DIR) });
        assert_eq!(rest[..8], *b"a\0\0\0\0\0\0\0");
        assert_eq!(listing.bytes.len(), 64);
        let mut plus = Listing::new(4096, true);
        assert!(plus.add(&item(b".", 1)));
        let (entry, _) = split::<abi::Direntplus>(&plus.bytes).unwrap();
        assert_eq!((entry.entry.nodeid, entry.dirent.namelen, plus.bytes.len()), (0, 1, 160));
    }
}
