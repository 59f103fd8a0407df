//! The slice overlay: what a reader sees of a chunk's list (data §1.2).

use crate::types::{SliceId, SliceRecord};
use std::collections::BTreeMap;

/// A visible piece of a chunk. `id` 0 is a hole and reads as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset inside the chunk.
    pub pos: u32,
    /// The slice.
    pub id: SliceId,
    /// Size of the whole slice.
    pub size: u32,
    /// First byte used inside the slice.
    pub off: u32,
    /// Bytes.
    pub len: u32,
}

/// Overlays the records, oldest first; later ones win. The result is ordered and free of gaps from offset 0 to the last byte covered;
/// what no record covers is a hole. Empty records vanish.
pub fn flatten(records: &[SliceRecord]) -> Vec<Extent> {
    // Start of a piece → the piece. Pieces never overlap.
    let mut pieces: BTreeMap<u32, SliceRecord> = BTreeMap::new();
    for record in records.iter().filter(|r| r.len > 0) {
        let (start, end) = (record.pos, record.end());
        // A piece that begins before the record and reaches into it keeps its head; one that reaches past it keeps its tail, too.
        if let Some((&at, &piece)) = pieces.range(..start).next_back()
            && piece.end() > start
        {
            pieces.insert(at, SliceRecord { len: start - at, ..piece });
            if piece.end() > end {
                pieces.insert(end, tail_of(piece, end));
            }
        }
        let covered: Vec<u32> = pieces.range(start..end).map(|(&at, _)| at).collect();
        for at in covered {
            if let Some(piece) = pieces.remove(&at)
                && piece.end() > end
            {
                pieces.insert(end, tail_of(piece, end));
            }
        }
        pieces.insert(start, SliceRecord { len: end - start, ..*record });
    }
    let mut extents = Vec::with_capacity(pieces.len());
    let mut at = 0;
    for piece in pieces.values() {
        if piece.pos > at {
            extents.push(Extent { pos: at, id: 0, size: 0, off: 0, len: piece.pos - at });
        }
        extents.push(Extent { pos: piece.pos, id: piece.id, size: piece.size, off: piece.off, len: piece.len });
        at = piece.end();
    }
    extents
}

fn tail_of(piece: SliceRecord, from: u32) -> SliceRecord {
    let cut = from - piece.pos;
    SliceRecord { pos: from, off: piece.off.saturating_add(cut), len: piece.len - cut, ..piece }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_the_specification() {
        const M: u32 = 1 << 20;
        let record = |pos, id, len| SliceRecord { pos: pos * M, id, size: len * M, off: 0, len: len * M };
        let seen: Vec<_> =
            flatten(&[record(10, 10, 30), record(20, 11, 16), record(16, 12, 10)]).iter().map(|e| (e.id, e.off / M, e.len / M)).collect();
        assert_eq!(seen, [(0, 0, 10), (10, 0, 6), (12, 0, 10), (11, 6, 10), (10, 26, 4)]);
    }

    proptest! {
        /// Against the plainest model: an array of (slice, offset in slice), painted record by record.
        #[test]
        fn agrees_with_painting(records in prop::collection::vec((0u32..200, 0u64..6, 0u32..20, 0u32..60), 0..20)) {
            let records: Vec<_> = records.into_iter().map(|(pos, id, off, len)| SliceRecord { pos, id, size: 100, off, len }).collect();
            let mut model: Vec<Option<(u64, u32)>> = vec![None; 300];
            for r in &records {
                for i in 0..r.len {
                    model[(r.pos + i) as usize] = Some((r.id, r.off + i));
                }
            }
            let extents = flatten(&records);
            let mut at = 0;
            for e in &extents {
                prop_assert_eq!(e.pos, at);
                for i in 0..e.len {
                    let want = model[(e.pos + i) as usize];
                    if e.id == 0 {
                        prop_assert!(want.is_none_or(|(id, _)| id == 0));
                    } else {
                        prop_assert_eq!(want, Some((e.id, e.off + i)));
                    }
                }
                at += e.len;
            }
            prop_assert!(model[at as usize..].iter().all(Option::is_none));
        }
    }
}
