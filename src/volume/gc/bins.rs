//! `Bins`: notes about slices on disk, sorted as far as the listing of the bucket needs it, so that memory does not grow with the volume.
//!
//! A bin holds what is noted of the slices whose objects lie in one directory of the bucket (data §1.3): a million slices at most, or one of
//! 256 parts of them. One bin at a time is in memory.

use crate::types::SliceId;
use crate::volume::VolumeError;
use crate::volume::dump::nameless;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of a bin that are written together. So much memory per bin is in use: 4 MiB for a billion slices.
const EXTENT_BYTES: usize = 4096;
const NOTE_BYTES: usize = 16;

/// Something noted of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// The slice.
    pub id: SliceId,
    /// Its size, or that of one of its blocks.
    pub size: u32,
    /// What it is to whom, or the index of the block.
    pub what: u32,
}

/// Which directory of the bucket a slice is in.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// As in the volume's setting.
    pub hash_prefix: bool,
}

impl Layout {
    /// The bin of a slice.
    pub fn bin(self, id: SliceId) -> u64 {
        if self.hash_prefix { id % 256 } else { id / 1_000_000 }
    }
}

#[derive(Default)]
struct Bin {
    /// Not written yet.
    buffer: Vec<u8>,
    /// Where the rest is in the file, `EXTENT_BYTES` each.
    extents: Vec<u64>,
}

/// The notes.
pub struct Bins {
    layout: Layout,
    file: File,
    end: u64,
    bins: BTreeMap<u64, Bin>,
}

impl Bins {
    /// None yet.
    pub fn new(layout: Layout) -> Result<Bins, VolumeError> {
        Ok(Bins { layout, file: nameless()?, end: 0, bins: BTreeMap::new() })
    }

    /// Takes a note.
    pub fn push(&mut self, note: Note) -> Result<(), VolumeError> {
        let bin = self.bins.entry(self.layout.bin(note.id)).or_default();
        bin.buffer.extend_from_slice(&note.id.to_be_bytes());
        bin.buffer.extend_from_slice(&note.size.to_be_bytes());
        bin.buffer.extend_from_slice(&note.what.to_be_bytes());
        if bin.buffer.len() >= EXTENT_BYTES {
            self.file.write_all_at(&bin.buffer, self.end).map_err(failed)?;
            bin.extents.push(self.end);
            self.end += bin.buffer.len() as u64;
            bin.buffer.clear();
        }
        Ok(())
    }

    /// The numbers of the bins that hold something.
    pub fn numbers(&self) -> Vec<u64> {
        self.bins.keys().copied().collect()
    }

    /// Looks at all notes of a bin.
    pub fn read(&self, number: u64, mut look: impl FnMut(Note)) -> Result<(), VolumeError> {
        let Some(bin) = self.bins.get(&number) else { return Ok(()) };
        let mut extent = vec![0; EXTENT_BYTES];
        for at in &bin.extents {
            self.file.read_exact_at(&mut extent, *at).map_err(failed)?;
            notes(&extent).for_each(&mut look);
        }
        notes(&bin.buffer).for_each(look);
        Ok(())
    }
}

fn notes(bytes: &[u8]) -> impl Iterator<Item = Note> {
    let (notes, rest) = bytes.as_chunks::<NOTE_BYTES>();
    assert!(rest.is_empty(), "an extent holds whole notes");
    notes.iter().map(|note| {
        let word = |at: usize| u32::from_be_bytes([note[at], note[at + 1], note[at + 2], note[at + 3]]);
        Note { id: u64::from(word(0)) << 32 | u64::from(word(4)), size: word(8), what: word(12) }
    })
}

fn failed(error: io::Error) -> VolumeError {
    VolumeError::Failed(format!("cannot keep notes in {}: {error}", std::env::temp_dir().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_note_comes_back_from_its_bin() {
        for hash_prefix in [false, true] {
            let layout = Layout { hash_prefix };
            let mut bins = Bins::new(layout).unwrap();
            let note = |n: u64| Note { id: n * 7919 % 3_000_000 + (u64::from(u32::MAX) << 8), size: n as u32, what: (n % 5) as u32 };
            let mut all: Vec<Note> = (0..10_000).map(note).collect();
            for note in &all {
                bins.push(*note).unwrap();
            }
            let mut found = Vec::new();
            for number in bins.numbers() {
                bins.read(number, |note| {
                    assert_eq!(layout.bin(note.id), number);
                    found.push(note);
                })
                .unwrap();
            }
            all.sort();
            found.sort();
            assert!(found == all);
            bins.read(u64::MAX, |_| panic!("nothing is there")).unwrap();
        }
    }
}
