//! The staged blocks of a cache directory: files of their own, with a second link where the cache looks.

use super::{Dir, UNFINISHED};
use crate::cache::disk::format::{self, ReadError};
use crate::cache::disk::index::cost;
use crate::env::{Random, SystemRandom};
use crate::types::BlockId;
use bytes::Bytes;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tracing::debug;

/// Part of the ratio that is to stay free which staged blocks leave: data that is nowhere else comes before what can be fetched (data §5.5).
const STAGED_FREE_PART: f64 = 0.5;
/// Directories of which it is remembered that they are durable: 1000 slices each.
const DURABLE_MAX: usize = 1024;

impl Dir {
    /// Where staged blocks are.
    pub(in crate::cache::disk) fn staged(&self) -> PathBuf {
        self.root.join("rawstaging")
    }

    /// Stages a block: a file that survives a power cut, and a second link to it where the cache looks.
    pub(in crate::cache::disk) fn stage(&self, block: &BlockId, bytes: &[u8]) -> io::Result<()> {
        let space = self.prepare().and_then(|_| self.space())?;
        let least = |of: u64| (of as f64 * self.free_ratio() * STAGED_FREE_PART) as u64;
        if space.available < least(space.total) + cost(block) || (space.files > 0 && space.files_available <= least(space.files)) {
            return Err(ErrorKind::StorageFull.into());
        }
        let path = self.staged_path(block);
        let parent = path.parent().unwrap_or(&self.root).to_owned();
        let unfinished = path.with_file_name(format!("{block}.{:016x}{UNFINISHED}", SystemRandom.u64()));
        let put = || {
            self.write_file(&unfinished, bytes)?.sync_all()?;
            std::fs::rename(&unfinished, &path)
        };
        let mut written = put();
        // A directory without files may be cleared away by anybody at any time.
        if written.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            written = put();
        }
        if let Err(error) = written.and_then(|()| self.sync_dirs(&parent)) {
            for left in [&unfinished, &path] {
                // What cannot be removed is a block that nothing names; it is uploaded, and `gc` finds it.
                let _ = std::fs::remove_file(left);
            }
            return Err(error);
        }
        let cached = self.path(block);
        self.opened.remove(block);
        self.index().remove(block);
        let link = || match std::fs::hard_link(&path, &cached) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.make_dirs(cached.parent().unwrap_or(&self.root))?;
                std::fs::hard_link(&path, &cached)
            }
            // Of another time: metadata that were set back give ids out again.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                std::fs::remove_file(&cached)?;
                std::fs::hard_link(&path, &cached)
            }
            linked => linked,
        };
        if let Err(error) = link() {
            // It is read where it is staged.
            debug!("cannot link the staged block {}: {error}", path.display());
        }
        Ok(())
    }

    /// Makes a directory and those above it, up to the one that holds the cache directory, durable. Those that are known to be are skipped.
    fn sync_dirs(&self, dir: &Path) -> io::Result<()> {
        let mut durable = self.durable.lock().expect("never poisoned: no code under it panics");
        File::open(dir)?.sync_all()?;
        let last = self.root.parent().unwrap_or(&self.root);
        for dir in dir.ancestors() {
            let meta = std::fs::metadata(dir)?;
            // Another process may have put another one in its place.
            if durable.get(dir) == Some(&meta.ino()) {
                break;
            }
            if let Some(parent) = dir.parent() {
                File::open(parent)?.sync_all()?;
            }
            if durable.len() >= DURABLE_MAX {
                durable.clear();
            }
            durable.insert(dir.into(), meta.ino());
            if dir == last {
                break;
            }
        }
        Ok(())
    }

    fn staged_path(&self, block: &BlockId) -> PathBuf {
        self.staged().join(block.key(self.config.hash_prefix))
    }

    /// A staged block, checked as far as it has checksums.
    pub(in crate::cache::disk) fn read_staged(&self, block: &BlockId) -> Result<Bytes, ReadError> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(self.staged_path(block)).map_err(ReadError::Disk)?;
        let bytes = file.metadata().map_err(ReadError::Disk)?.len();
        format::read(&file, bytes, block.len, 0..block.len, true, true)
    }

    /// A staged block is in the bucket, or not wanted any more: what is left of it is a block of the cache, used long enough ago that a burst of
    /// writes does not push out what is read.
    pub(in crate::cache::disk) fn unstage(&self, block: &BlockId) {
        if let Err(error) = std::fs::remove_file(self.staged_path(block))
            && error.kind() != ErrorKind::NotFound
        {
            // It is found again, with its object.
            self.failed("remove a staged block", &error);
            return;
        }
        self.opened.remove(block);
        if std::fs::metadata(self.path(block)).is_ok_and(|meta| meta.nlink() == 1) {
            let age = u32::try_from(self.config.expire.as_secs() / 2).unwrap_or(u32::MAX);
            self.index().note(block, self.now().saturating_sub(age));
        }
    }
}
