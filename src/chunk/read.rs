//! Reading a range of a chunk: the visible pieces, block by block, without copying.

use crate::block::BlockError;
use crate::chunk::Chunks;
use crate::env::join;
use crate::meta::ops::chunk::clipped;
use crate::types::{BlockId, BoxFuture, Extent, SliceRecord, flatten};
use bytes::Bytes;
use std::ops::Range;

/// Holes are handed out as pieces of this buffer. A kernel request is at most 1 MiB, so one piece is enough for it.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
/// Blocks of one read fetched at once: eight of 4 MiB hide the latency of a store and bound what one reader keeps in memory.
const FETCHES_MAX: usize = 8;

/// What one piece of an answer is made of.
enum Piece {
    Zeros(u32),
    Block(BlockId, Range<u32>),
}

impl Chunks {
    /// Bytes `range` of a chunk with these records, as pieces in order that cover all of it; what no record covers is zeros.
    pub async fn read(&self, records: &[SliceRecord], range: Range<u32>) -> Result<Vec<Bytes>, BlockError> {
        self.read_overlaid(&flatten(records), range).await
    }

    /// The same of a list that is overlaid already.
    pub async fn read_overlaid(&self, overlaid: &[Extent], range: Range<u32>) -> Result<Vec<Bytes>, BlockError> {
        let mut pieces = Vec::new();
        for extent in clipped(overlaid, range) {
            self.cut(&extent, &mut pieces)?;
        }
        let mut answer: Vec<Bytes> = Vec::with_capacity(pieces.len());
        let mut far: Vec<usize> = Vec::new();
        let mut fetches: Vec<BoxFuture<'_, Result<Bytes, BlockError>>> = Vec::new();
        for (index, piece) in pieces.into_iter().enumerate() {
            answer.push(match piece {
                Piece::Zeros(len) => Bytes::from_static(&ZEROS[..len as usize]),
                Piece::Block(block, part) => match self.blocks.cached(&block) {
                    Some(bytes) => bytes.slice(part.start as usize..part.end as usize),
                    None => {
                        far.push(index);
                        fetches.push(Box::pin(self.blocks.fetch_range(block, part)));
                        Bytes::new()
                    }
                },
            });
        }
        let fetched = join(fetches, FETCHES_MAX).await?;
        for (index, bytes) in far.into_iter().zip(fetched) {
            answer[index] = bytes;
        }
        Ok(answer)
    }

    /// Cuts an extent at block borders, a hole into pieces of `ZEROS`.
    fn cut(&self, extent: &Extent, pieces: &mut Vec<Piece>) -> Result<(), BlockError> {
        let block_bytes = self.blocks.block_bytes();
        let (mut at, mut rest) = (extent.off, extent.len);
        while rest > 0 {
            let len = if extent.id == 0 {
                let len = rest.min(ZEROS.len() as u32);
                pieces.push(Piece::Zeros(len));
                len
            } else {
                let index = at / block_bytes;
                let start = at % block_bytes;
                let len = rest.min(block_bytes - start);
                let block = BlockId::of(extent.id, extent.size, index, block_bytes).filter(|block| start + len <= block.len);
                let Some(block) = block else {
                    let why = format!("a record names bytes {at}+{len} of a slice of {}", extent.size);
                    return Err(BlockError::Damaged { key: format!("slice {}", extent.id), why });
                };
                pieces.push(Piece::Block(block, start..start + len));
                len
            };
            // A hole's offset means nothing.
            at = at.wrapping_add(len);
            rest -= len;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::testing::{BLOCK_BYTES, Bench};
    use crate::object::fault::Request;

    fn record(pos: u32, id: u64, size: u32, off: u32, len: u32) -> SliceRecord {
        SliceRecord { pos, id, size, off, len }
    }

    #[tokio::test]
    async fn pieces_blocks_and_holes() {
        for cache_bytes in [0, 64 << 20] {
            let bench = Bench::new(cache_bytes);
            let size = 3 * BLOCK_BYTES + 100;
            bench.store_slice(1, size).await;
            bench.store_slice(2, 500).await;
            let records = [
                record(1000, 1, size, 0, size),
                SliceRecord::hole(2000, 10),
                record(BLOCK_BYTES, 2, 500, 100, 300),
                record(5 << 20, 1, size, BLOCK_BYTES - 5, 10),
            ];
            let mut model = vec![0u8; (8 << 20) as usize];
            for r in records {
                let data = if r.id == 0 {
                    vec![0; r.len as usize]
                } else {
                    bench.pattern(r.id, r.size)[r.off as usize..][..r.len as usize].to_vec()
                };
                model[r.pos as usize..r.end() as usize].copy_from_slice(&data);
            }
            for range in
                [0..10, 0..model.len() as u32, 990..1010, 1995..2015, BLOCK_BYTES - 1..3 * BLOCK_BYTES, 5 << 20..(5 << 20) + 20, 7..7]
            {
                let pieces = bench.chunks.read(&records, range.clone()).await.unwrap();
                assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= 1 << 20));
                assert!(pieces.concat() == model[range.start as usize..range.end as usize], "{range:?}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_cached_is_shared_and_not_copied() {
        let bench = Bench::new(64 << 20);
        bench.store_slice(1, BLOCK_BYTES).await;
        let records = [record(0, 1, BLOCK_BYTES, 0, BLOCK_BYTES)];
        let first = bench.chunks.read(&records, 0..BLOCK_BYTES).await.unwrap();
        let second = bench.chunks.read(&records, 10..20).await.unwrap();
        assert_eq!(first[0][10..].as_ptr(), second[0].as_ptr());
        assert_eq!(bench.faults.calls(Request::Get), 0, "uploads stay in memory");
    }

    #[tokio::test]
    async fn missing_objects_and_impossible_records_are_errors() {
        let bench = Bench::new(0);
        let missing = bench.chunks.read(&[record(0, 9, 100_000, 0, 100_000)], 0..5).await;
        assert!(matches!(missing, Err(BlockError::Missing { .. })), "{missing:?}");
        let damaged = bench.chunks.read(&[record(0, 9, 10, 0, 100)], 0..50).await;
        assert!(matches!(damaged, Err(BlockError::Damaged { .. })), "{damaged:?}");
    }
}
