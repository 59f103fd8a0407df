//! The caches of a volume, as the user wants them: in memory, and on the disks of this host.

use crate::cache::{CacheOptions, CachePlace, DiskCache, DiskCacheConfig, MemoryCache, default_dir};
use crate::meta::setting::Setting;
use std::path::PathBuf;
use std::sync::Arc;
use tracing::warn;

/// Share of the buffer budget that caches decoded blocks in memory, what is fetched ahead among them.
const MEMORY_SHARE: usize = 4;
/// Share of it for blocks that wait to be written to the disk cache.
const QUEUE_SHARE: usize = 10;

/// Caches, and what they leave of the buffer.
pub(super) struct Caches {
    pub(super) memory: MemoryCache,
    pub(super) disk: Option<Arc<DiskCache>>,
    /// For data being written, and for blocks on their way.
    pub(super) left_bytes: usize,
}

/// Opens the caches of this volume.
pub(super) fn open(options: &CacheOptions, setting: &Setting, buffer_bytes: usize) -> Caches {
    let share = buffer_bytes / MEMORY_SHARE;
    let dirs: Vec<PathBuf> = match &options.place {
        CachePlace::Memory => {
            if options.staging.is_some() {
                warn!("--writeback has no effect with --cache-dir memory: blocks are uploaded before they count as stored");
            }
            // A size that was asked for comes on top of the buffer.
            return match options.size_bytes {
                Some(bytes) => Caches { memory: MemoryCache::new(bytes), disk: None, left_bytes: buffer_bytes },
                None => Caches { memory: MemoryCache::new(share as u64), disk: None, left_bytes: buffer_bytes - share },
            };
        }
        CachePlace::Dirs(dirs) => dirs.clone(),
        // The objects are files of this host: keeping them twice makes nothing faster.
        CachePlace::Default if setting.storage() == "file" => {
            if *options != CacheOptions::default() {
                warn!("the cache options have no effect without --cache-dir: the objects of the volume are files of this host");
            }
            Vec::new()
        }
        CachePlace::Default => default_dir().into_iter().collect(),
    };
    let queue_bytes = buffer_bytes / QUEUE_SHARE;
    let disk = DiskCache::open(&DiskCacheConfig {
        uuid: setting.uuid(),
        hash_prefix: setting.hash_prefix(),
        block_bytes: setting.block_bytes(),
        queue_bytes: queue_bytes as u64,
        options,
        dirs: &dirs,
    });
    if disk.is_none() && options.staging.is_some() {
        warn!("--writeback has no effect without a cache on disk: blocks are uploaded before they count as stored");
    }
    if disk.is_none() && options.size_bytes != Some(0) && matches!(options.place, CachePlace::Dirs(_)) {
        warn!("no directory is named by --cache-dir; blocks are cached in memory only");
    }
    let queue_bytes = if disk.is_some() { queue_bytes } else { 0 };
    Caches { memory: MemoryCache::new(share as u64), disk: disk.map(Arc::new), left_bytes: buffer_bytes - share - queue_bytes }
}
