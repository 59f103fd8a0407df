//! `Opened`: cache files that were read lately, kept open, and which pieces of them were found right.
//!
//! Of these a read is answered at once if the system has the bytes in memory: no thread, no path to look up, and no more bytes than are asked for.
//! What the system has to fetch from the disk is checked again: it may have been damaged there since.

use crate::cache::disk::format::{PIECE_BYTES, fill};
use crate::types::BlockId;
use bytes::Bytes;
use lru::LruCache;
use std::fs::{File, Metadata};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Files kept open of one directory: a file of 1 GiB. Their space on the disk is not free before they are closed, so they are few.
const FILES_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// A file that was not read for so long is closed (seconds).
const IDLE_S: u32 = 5;

/// Files of one directory.
pub(super) struct Opened {
    files: Mutex<LruCache<BlockId, Arc<OpenFile>>>,
    /// The file system cannot say what is in memory.
    never_at_once: AtomicBool,
}

/// One file.
pub(super) struct OpenFile {
    file: File,
    /// A bit for each piece that was found right since it was opened. All are, if nothing is to be checked.
    right: Vec<AtomicU64>,
    /// Its number on the disk, and how many names it had.
    number: u64,
    links: u64,
    read_at: AtomicU32,
}

impl OpenFile {
    /// A file of a block of `len` bytes of which `range` was just read and found right, or of which nothing is to be checked.
    pub fn new(file: File, len: u32, meta: &Metadata, right: Option<Range<u32>>, now: u32) -> OpenFile {
        let words = len.div_ceil(PIECE_BYTES).div_ceil(64);
        let words = (0..words).map(|_| AtomicU64::new(0)).collect();
        let opened = OpenFile { file, right: words, number: meta.ino(), links: meta.nlink(), read_at: AtomicU32::new(now) };
        match right {
            Some(range) => opened.note_right(range),
            None => opened.right.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed)),
        }
        opened
    }

    /// Whether it is the file that was found under the name of the block just now. While it is open its number is not given to another.
    pub fn is_same(&self, meta: &Metadata) -> bool {
        self.number == meta.ino()
    }

    /// A staged block, which has a second name, is not counted as one of the cache.
    pub fn staged(&self) -> bool {
        self.links > 1
    }

    /// These bytes were compared with their sums.
    pub fn note_right(&self, range: Range<u32>) {
        for piece in pieces(range) {
            self.right[piece / 64].fetch_or(1 << (piece % 64), Ordering::Relaxed);
        }
    }

    fn is_right(&self, range: Range<u32>) -> bool {
        pieces(range).all(|piece| self.right[piece / 64].load(Ordering::Relaxed) & (1 << (piece % 64)) != 0)
    }
}

fn pieces(range: Range<u32>) -> Range<usize> {
    (range.start / PIECE_BYTES) as usize..range.end.div_ceil(PIECE_BYTES) as usize
}

impl Opened {
    pub fn new() -> Opened {
        Opened { files: Mutex::new(LruCache::new(FILES_MAX)), never_at_once: AtomicBool::new(false) }
    }

    pub fn get(&self, block: &BlockId) -> Option<Arc<OpenFile>> {
        self.lock().get(block).cloned()
    }

    pub fn put(&self, block: &BlockId, file: OpenFile) {
        // Closed after the lock: the last descriptor of a removed file gives its space back.
        let old = self.lock().push(*block, Arc::new(file));
        drop(old);
    }

    /// The file is another one by now, or gone.
    pub fn remove(&self, block: &BlockId) {
        let old = self.lock().pop(block);
        drop(old);
    }

    /// Bytes `range` of a block, if they were found right before and are in the system's memory.
    pub fn read_at_once(&self, block: &BlockId, range: Range<u32>, now: u32) -> Option<(Bytes, Arc<OpenFile>)> {
        if range.is_empty() || self.never_at_once.load(Ordering::Relaxed) {
            return None;
        }
        let opened = self.get(block).filter(|opened| opened.is_right(range.clone()))?;
        match fill(&opened.file, range, libc::RWF_NOWAIT) {
            Ok(bytes) => {
                opened.read_at.store(now, Ordering::Relaxed);
                Some((bytes.freeze(), opened))
            }
            Err(error) => {
                if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)) {
                    self.never_at_once.store(true, Ordering::Relaxed);
                }
                None
            }
        }
    }

    /// Closes what was not read for a while, and what others have removed.
    pub fn close_idle(&self, now: u32) {
        let all: Vec<(BlockId, Arc<OpenFile>)> = self.lock().iter().map(|(block, opened)| (*block, opened.clone())).collect();
        for (block, opened) in all {
            let idle = opened.read_at.load(Ordering::Relaxed).saturating_add(IDLE_S) <= now;
            if idle || opened.file.metadata().is_ok_and(|meta| meta.nlink() == 0) {
                self.remove(&block);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<BlockId, Arc<OpenFile>>> {
        self.files.lock().expect("never poisoned: no code under it panics")
    }
}
