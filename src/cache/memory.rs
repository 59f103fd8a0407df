//! Decoded blocks in memory, bounded by bytes; the least recently used go first.

use crate::types::BlockId;
use bytes::Bytes;
use lru::LruCache;
use std::sync::Mutex;

/// Blocks up to this size are copied when they enter. They are often cut from a request's buffer of a megabyte, which a reference of a
/// few kilobytes would keep alive, uncounted. Larger ones fill their buffers well enough.
const COPIED_BYTES_MAX: usize = 128 << 10;
/// What an entry costs beside its bytes: key, list links, table slot, the buffer's own header.
const ENTRY_BYTES: u64 = 160;

/// A cache of blocks. They are immutable, so it never holds anything stale.
pub struct MemoryCache {
    capacity_bytes: u64,
    state: Mutex<State>,
}

struct State {
    blocks: LruCache<BlockId, Bytes>,
    used_bytes: u64,
}

impl MemoryCache {
    /// An empty cache; 0 keeps nothing.
    pub fn new(capacity_bytes: u64) -> MemoryCache {
        MemoryCache { capacity_bytes, state: Mutex::new(State { blocks: LruCache::unbounded(), used_bytes: 0 }) }
    }

    /// Bytes it may hold.
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// The block, if it is here.
    pub fn get(&self, block: &BlockId) -> Option<Bytes> {
        self.lock().blocks.get(block).cloned()
    }

    /// Keeps a block. One that is larger than the whole cache is not kept.
    pub fn insert(&self, block: BlockId, bytes: Bytes) {
        if cost(&bytes) > self.capacity_bytes {
            return;
        }
        let bytes = if bytes.len() <= COPIED_BYTES_MAX { Bytes::copy_from_slice(&bytes) } else { bytes };
        // Freed after the lock: giving back megabytes takes long.
        let mut evicted = Vec::new();
        let mut state = self.lock();
        state.used_bytes += cost(&bytes);
        if let Some(old) = state.blocks.put(block, bytes) {
            state.used_bytes -= cost(&old);
            evicted.push(old);
        }
        while state.used_bytes > self.capacity_bytes {
            let Some((_, old)) = state.blocks.pop_lru() else { break };
            state.used_bytes -= cost(&old);
            evicted.push(old);
        }
        drop(state);
    }

    /// Forgets a block.
    pub fn remove(&self, block: &BlockId) {
        let mut state = self.lock();
        if let Some(old) = state.blocks.pop(block) {
            state.used_bytes -= cost(&old);
        }
    }

    /// Bytes accounted for.
    pub fn used_bytes(&self) -> u64 {
        self.lock().used_bytes
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("never poisoned: no code under it panics")
    }
}

fn cost(bytes: &Bytes) -> u64 {
    bytes.len() as u64 + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(slice: u64) -> BlockId {
        BlockId { slice, index: 0, len: 1000 }
    }

    #[test]
    fn the_least_recently_used_block_goes_first() {
        let cache = MemoryCache::new(3 * (1000 + ENTRY_BYTES));
        let body = Bytes::from(vec![7; 1000]);
        for n in 0..3 {
            cache.insert(block(n), body.clone());
        }
        assert_eq!(cache.get(&block(0)), Some(body.clone()));
        cache.insert(block(3), body.clone());
        cache.insert(block(3), body.clone());
        let kept: Vec<u64> = (0..4).filter(|n| cache.get(&block(*n)).is_some()).collect();
        assert_eq!(kept, [0, 2, 3]);
        assert_eq!(cache.used_bytes(), 3 * (1000 + ENTRY_BYTES));
        cache.remove(&block(2));
        cache.remove(&block(2));
        assert_eq!(cache.used_bytes(), 2 * (1000 + ENTRY_BYTES));
        cache.insert(block(9), Bytes::from(vec![0; 4000]));
        assert_eq!(cache.get(&block(9)), None, "larger than the cache");
        assert_eq!(cache.used_bytes(), 2 * (1000 + ENTRY_BYTES));
    }

    #[test]
    fn small_blocks_do_not_keep_large_buffers() {
        let cache = MemoryCache::new(1 << 20);
        let request = Bytes::from(vec![1; 1 << 20]);
        cache.insert(block(1), request.slice(..1000));
        assert!(request.is_unique());
    }
}
