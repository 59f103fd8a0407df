//! Chunks, slices and blocks: the arithmetic of where a byte of a file lives (data §1).

use std::fmt;
use std::ops::Range;

/// Window of a file that has its own slice list: 64 MiB.
pub const CHUNK_BYTES: u64 = 64 << 20;

/// Identity of one immutable slice. 0 is a hole.
pub type SliceId = u64;

/// One element of a chunk's list (metadata §2.3). `pos + len` and `off + len` stay within a chunk in every record we write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SliceRecord {
    /// Offset inside the chunk where the data starts.
    pub pos: u32,
    /// The slice; 0 = zeros.
    pub id: SliceId,
    /// Bytes of the whole stored slice; decides the names of its objects.
    pub size: u32,
    /// First byte used inside the slice.
    pub off: u32,
    /// Bytes used.
    pub len: u32,
}

impl SliceRecord {
    /// A record that reads as zeros.
    pub fn hole(pos: u32, len: u32) -> SliceRecord {
        SliceRecord { pos, id: 0, size: 0, off: 0, len }
    }

    /// First offset after the record. Damaged records saturate.
    pub fn end(&self) -> u32 {
        self.pos.saturating_add(self.len)
    }
}

/// One block of a slice: the unit of upload and cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockId {
    /// The slice.
    pub slice: SliceId,
    /// Index inside the slice, from 0.
    pub index: u32,
    /// Bytes of original data in this block: the block size, less for the last one.
    pub len: u32,
}

impl BlockId {
    /// The `index`-th block of a slice of `size` bytes cut into blocks of `block_bytes`; `None` past its end.
    pub fn of(slice: SliceId, size: u32, index: u32, block_bytes: u32) -> Option<BlockId> {
        let start = u64::from(index) * u64::from(block_bytes);
        let rest = u64::from(size).checked_sub(start).filter(|rest| *rest > 0)?;
        Some(BlockId { slice, index, len: rest.min(u64::from(block_bytes)) as u32 })
    }

    /// The block an object's name stands for, the last part of its key; `None` if it is no name of a block.
    pub fn parse(name: &str) -> Option<BlockId> {
        let mut parts = name.split('_');
        let mut number = || parts.next().filter(|part| part.bytes().all(|c| c.is_ascii_digit()));
        let block = BlockId { slice: number()?.parse().ok()?, index: number()?.parse().ok()?, len: number()?.parse().ok()? };
        parts.next().is_none().then_some(block)
    }

    /// The object's key below the volume's prefix (data §1.3).
    pub fn key(&self, hash_prefix: bool) -> String {
        let BlockId { slice, index, len } = self;
        if hash_prefix {
            format!("chunks/{:02X}/{}/{slice}_{index}_{len}", slice % 256, slice / 1_000_000)
        } else {
            format!("chunks/{}/{}/{slice}_{index}_{len}", slice / 1_000_000, slice / 1000)
        }
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}_{}", self.slice, self.index, self.len)
    }
}

/// How many blocks a slice of `size` bytes has.
pub fn block_count(size: u32, block_bytes: u32) -> u32 {
    size.div_ceil(block_bytes)
}

/// A byte range of a file that lies inside one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkPart {
    /// Index of the chunk.
    pub index: u32,
    /// Offset inside the chunk.
    pub pos: u32,
    /// Bytes.
    pub len: u32,
}

/// Splits a byte range of a file (below 2^57) at chunk borders, in order.
pub fn chunk_parts(range: Range<u64>) -> impl Iterator<Item = ChunkPart> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        (at < range.end).then(|| {
            let pos = at % CHUNK_BYTES;
            let len = (CHUNK_BYTES - pos).min(range.end - at);
            let part = ChunkPart { index: (at / CHUNK_BYTES) as u32, pos: pos as u32, len: len as u32 };
            at += len;
            part
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_specification() {
        let block = BlockId { slice: 1_234_567, index: 3, len: 4_194_304 };
        assert_eq!(block.key(false), "chunks/1/1234/1234567_3_4194304");
        assert_eq!(block.key(true), "chunks/87/1/1234567_3_4194304");
        let sizes: Vec<u32> = (0..4).filter_map(|i| BlockId::of(1, 10 << 20, i, 4 << 20)).map(|b| b.len).collect();
        assert_eq!(sizes, [4_194_304, 4_194_304, 2_097_152]);
    }

    #[test]
    fn names_of_blocks_and_others() {
        assert_eq!(BlockId::parse("1234567_3_4194304"), Some(BlockId { slice: 1_234_567, index: 3, len: 4_194_304 }));
        for other in ["", "1_2", "1_2_3_4", "1_2_x", "+1_2_3", "1__3", "1_0_5.tmp/a", "99999999999999999999_0_1"] {
            assert_eq!(BlockId::parse(other), None, "{other}");
        }
    }

    #[test]
    fn ranges_split_at_chunk_borders() {
        let parts: Vec<_> = chunk_parts(CHUNK_BYTES - 1..2 * CHUNK_BYTES + 5).collect();
        assert_eq!(parts.len(), 3);
        assert_eq!(parts[0], ChunkPart { index: 0, pos: CHUNK_BYTES as u32 - 1, len: 1 });
        assert_eq!(parts[1], ChunkPart { index: 1, pos: 0, len: CHUNK_BYTES as u32 });
        assert_eq!(parts[2], ChunkPart { index: 2, pos: 0, len: 5 });
        assert_eq!(chunk_parts(7..7).count(), 0);
    }

    #[test]
    fn no_name_upsets_the_parser() {
        crate::env::fuzz::decoder(&[b"1_0_4194304".to_vec(), b"18446744073709551615_15_1".to_vec()], |bytes| {
            let Some(block) = std::str::from_utf8(bytes).ok().and_then(BlockId::parse) else { return };
            for hash_prefix in [false, true] {
                let key = block.key(hash_prefix);
                assert_eq!(BlockId::parse(key.rsplit('/').next().expect("a name")), Some(block));
            }
        });
    }
}
