//! What is kept of the bucket on this host: the memory tier.

mod memory;

pub use memory::MemoryCache;
