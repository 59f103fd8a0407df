//! What is known of the blocks in one directory: at most 64 bytes each.

use crate::types::BlockId;
use hashbrown::HashTable;
use std::hash::{BuildHasher, RandomState};

/// What a file costs beside its data: an inode and the end of its last disk block (data §6.4).
const FILE_BYTES: u64 = 4096;

/// Blocks, when they were last used, and their bytes in all.
pub(super) struct Index {
    entries: Vec<Entry>,
    /// Positions in `entries`.
    places: HashTable<u32>,
    hasher: RandomState,
    used_bytes: u64,
    generation: u8,
    dice: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    slice: u64,
    index: u32,
    len: u32,
    /// Seconds since 1970.
    atime: u32,
    /// Scan that saw it last, or that ran when it came.
    generation: u8,
}

impl Entry {
    fn block(&self) -> BlockId {
        BlockId { slice: self.slice, index: self.index, len: self.len }
    }
}

/// Bytes of the budget a block takes.
pub(super) fn cost(block: &BlockId) -> u64 {
    u64::from(block.len) + FILE_BYTES
}

impl Index {
    /// Knows nothing. `seed` decides the random choices.
    pub(super) fn new(seed: u64) -> Index {
        Index { entries: Vec::new(), places: HashTable::new(), hasher: RandomState::new(), used_bytes: 0, generation: 0, dice: seed }
    }

    /// Number of blocks.
    pub(super) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Their bytes of the budget.
    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    pub(super) fn contains(&self, block: &BlockId) -> bool {
        self.place(block).is_some()
    }

    /// A block is there and was used then.
    pub(super) fn note(&mut self, block: &BlockId, atime: u32) {
        if let Some(place) = self.place(block) {
            let entry = &mut self.entries[place];
            // What this process remembers is more exact than what the disk says.
            entry.atime = entry.atime.max(atime);
            entry.generation = self.generation;
            return;
        }
        let Ok(place) = u32::try_from(self.entries.len()) else { return };
        let BlockId { slice, index, len } = *block;
        self.entries.push(Entry { slice, index, len, atime, generation: self.generation });
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.places.insert_unique(hasher.hash_one(block), place, |at| hasher.hash_one(entries[*at as usize].block()));
        self.used_bytes += cost(block);
    }

    /// A block is gone.
    pub(super) fn remove(&mut self, block: &BlockId) {
        let entries = &self.entries;
        let Ok(found) = self.places.find_entry(self.hasher.hash_one(block), |at| entries[*at as usize].block() == *block) else { return };
        let (place, _) = found.remove();
        self.entries.swap_remove(place as usize);
        self.used_bytes -= cost(block);
        // The last entry has taken the free place.
        if let Some(moved) = self.entries.get(place as usize) {
            let old = self.entries.len() as u32;
            let hash = self.hasher.hash_one(moved.block());
            *self.places.find_mut(hash, |at| *at == old).expect("every entry has its place") = place;
        }
    }

    /// Of two blocks chosen at random the one that was not used for longer.
    pub(super) fn older_of_two(&mut self) -> Option<BlockId> {
        let count = self.entries.len() as u64;
        let mut pick = || {
            let place = self.dice().checked_rem(count)?;
            self.entries.get(place as usize).copied()
        };
        let (one, other) = (pick()?, pick()?);
        Some(if one.atime <= other.atime { one } else { other }.block())
    }

    /// The blocks that have not been used for longest and make up at least `bytes` and `count`, in order.
    pub(super) fn oldest(&self, bytes: u64, count: u64) -> Vec<BlockId> {
        // Twelve bytes a block for a moment, against a list kept for ever; evictions come once in some percent of a cache.
        let mut order: Vec<(u32, u32)> = (0u32..).zip(&self.entries).map(|(place, entry)| (entry.atime, place)).collect();
        order.sort_unstable();
        let mut found = Vec::new();
        let mut sum = 0;
        for (_, place) in order {
            if sum >= bytes && found.len() as u64 >= count {
                break;
            }
            let block = self.entries[place as usize].block();
            sum += cost(&block);
            found.push(block);
        }
        found
    }

    /// Blocks not used since `before` among the `count` at `from` and after it.
    pub(super) fn unused_since(&self, before: u32, from: usize, count: usize) -> Vec<BlockId> {
        self.entries.iter().skip(from).take(count).filter(|entry| entry.atime < before).map(Entry::block).collect()
    }

    /// A scan begins: from here on `note` marks what is there.
    pub(super) fn begin_scan(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// It saw everything: what it did not see, and did not come meanwhile, is gone.
    pub(super) fn end_scan(&mut self) {
        let gone: Vec<BlockId> = self.entries.iter().filter(|entry| entry.generation != self.generation).map(Entry::block).collect();
        for block in gone {
            self.remove(&block);
        }
    }

    fn place(&self, block: &BlockId) -> Option<usize> {
        let hash = self.hasher.hash_one(block);
        self.places.find(hash, |at| self.entries[*at as usize].block() == *block).map(|place| *place as usize)
    }

    /// Sebastiano Vigna's splitmix64: good enough to choose blocks.
    fn dice(&mut self) -> u64 {
        self.dice = self.dice.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn block(slice: u64) -> BlockId {
        BlockId { slice, index: (slice % 3) as u32, len: 1000 + (slice % 7) as u32 }
    }

    #[test]
    fn the_same_as_a_map() {
        let mut index = Index::new(1);
        let mut model: BTreeMap<u64, u32> = BTreeMap::new();
        let mut dice = Index::new(42);
        for step in 0..20_000u32 {
            let slice = dice.dice() % 500;
            if dice.dice().is_multiple_of(3) {
                index.remove(&block(slice));
                model.remove(&slice);
            } else {
                index.note(&block(slice), step);
                model.insert(slice, step);
            }
            if step % 1000 == 0 {
                assert_eq!(index.len(), model.len() as u64);
                assert_eq!(index.used_bytes(), model.keys().map(|slice| cost(&block(*slice))).sum::<u64>());
                assert!((0..500).all(|slice| index.contains(&block(slice)) == model.contains_key(&slice)));
            }
        }
        let mut by_age: Vec<(u32, u64)> = model.iter().map(|(slice, atime)| (*atime, *slice)).collect();
        by_age.sort_unstable();
        let oldest: Vec<u64> = index.oldest(0, 10).iter().map(|block| block.slice).collect();
        assert_eq!(oldest, by_age[..10].iter().map(|(_, slice)| *slice).collect::<Vec<_>>());
    }

    #[test]
    fn small() {
        let mut index = Index::new(1);
        for n in 0..100_000 {
            index.note(&block(n), 0);
            if n > 1000 {
                // A byte of control for each place that the table has room for.
                let table = (index.places.capacity() as u64 * 8 / 7) * 5;
                let bytes = index.entries.capacity() as u64 * size_of::<Entry>() as u64 + table;
                assert!(bytes <= 64 * index.len(), "{} bytes a block at {n}", bytes / index.len());
            }
        }
    }

    #[test]
    fn random_choices_prefer_the_old() {
        let mut index = Index::new(7);
        assert_eq!(index.older_of_two(), None);
        for n in 0..1000 {
            index.note(&block(n), n as u32);
        }
        let old = (0..500).filter(|_| index.older_of_two().unwrap().slice < 500).count();
        assert!((325..425).contains(&old), "three quarters: {old} of 500");
    }

    #[test]
    fn a_scan_drops_what_is_gone_and_keeps_what_came() {
        let mut index = Index::new(1);
        for n in 0..3 {
            index.note(&block(n), 5);
        }
        index.begin_scan();
        index.note(&block(1), 3);
        index.note(&block(9), 6);
        index.end_scan();
        let kept: Vec<u64> = (0..10).filter(|n| index.contains(&block(*n))).collect();
        assert_eq!(kept, [1, 9]);
        assert_eq!(index.unused_since(6, 0, 10), [block(1)]);
    }
}
