//! What is kept of the bucket on this host: in memory and on its disks.

mod disk;
mod memory;

pub use disk::{
    CacheOptions, CachePlace, CacheStats, DiskCache, DiskCacheConfig, DueBlocks, Eviction, Hours, Staging, StagingOptions, StagingStats,
    default_dir,
};
pub use memory::MemoryCache;
