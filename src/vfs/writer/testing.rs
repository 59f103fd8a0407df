//! Test doubles of the writer's tests: a committed file as a reader on another host sees it.

use crate::types::{Attr, BlockId, CHUNK_BYTES, Errno, Extent, Flags, Ino, Kind, SliceId, SliceRecord, Time, block_count, flatten};
use crate::vfs::writer::event::Ready;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};

/// A regular file of `length` bytes, last changed at `time`.
pub(crate) fn attr(length: u64, time: Time) -> Attr {
    Attr {
        flags: Flags(0),
        kind: Kind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        atime: time,
        mtime: time,
        ctime: time,
        nlink: 1,
        length,
        rdev: 0,
        parent: Ino::ROOT,
        access_acl: 0,
        default_acl: 0,
        tier: 0,
    }
}

/// What is in the bucket and in the metadata of one file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Committed {
    pub objects: HashMap<BlockId, Bytes>,
    pub frames: HashMap<SliceId, Bytes>,
    pub chunks: BTreeMap<u32, Vec<SliceRecord>>,
    pub length: u64,
    pub mtime: Time,
    pub deleted: bool,
}

impl Committed {
    /// What `Meta::write` does, with the check that everything it names is stored.
    pub fn commit(&mut self, chunk: u32, slices: &[Ready], mtime: Time, block_bytes: u32) -> Result<Attr, Errno> {
        if self.deleted {
            return Err(Errno::NOENT);
        }
        for slice in slices {
            match &slice.frame {
                Some(frame) => {
                    assert_eq!(frame.len(), slice.len as usize);
                    assert!(self.frames.insert(slice.id, frame.clone()).is_none(), "an id is used once");
                }
                None => {
                    for index in 0..block_count(slice.len, block_bytes) {
                        let block = BlockId::of(slice.id, slice.len, index, block_bytes).unwrap();
                        assert!(self.objects.contains_key(&block), "{block} is named before it is stored");
                    }
                }
            }
            assert!(u64::from(slice.pos) + u64::from(slice.len) <= CHUNK_BYTES);
            let record = SliceRecord { pos: slice.pos, id: slice.id, size: slice.len, off: 0, len: slice.len };
            self.chunks.entry(chunk).or_default().push(record);
            self.length = self.length.max(u64::from(chunk) * CHUNK_BYTES + u64::from(record.end()));
        }
        self.mtime = mtime;
        Ok(attr(self.length, mtime))
    }

    /// Every byte that a slice covers, by offset; what is absent and below `length` is zero.
    pub fn bytes(&self, block_bytes: u32) -> BTreeMap<u64, u8> {
        let mut bytes = BTreeMap::new();
        for (chunk, records) in &self.chunks {
            for extent in flatten(records).into_iter().filter(|e| e.id != 0) {
                for i in 0..extent.len {
                    let at = extent.off + i;
                    let byte = self.byte(&extent, at, block_bytes);
                    bytes.insert(u64::from(*chunk) * CHUNK_BYTES + u64::from(extent.pos + i), byte);
                }
            }
        }
        bytes.retain(|at, _| *at < self.length);
        bytes
    }

    /// The whole file, as long as it lies in its first chunk.
    pub fn content(&self, block_bytes: u32) -> Vec<u8> {
        let mut content = vec![0; self.length as usize];
        for extent in flatten(self.chunks.get(&0).map_or(&[], Vec::as_slice)).into_iter().filter(|e| e.id != 0) {
            for i in 0..extent.len {
                content[(extent.pos + i) as usize] = self.byte(&extent, extent.off + i, block_bytes);
            }
        }
        content
    }

    fn byte(&self, extent: &Extent, at: u32, block_bytes: u32) -> u8 {
        match self.frames.get(&extent.id) {
            Some(frame) => frame[at as usize],
            None => {
                let block = BlockId::of(extent.id, extent.size, at / block_bytes, block_bytes).unwrap();
                self.objects[&block][(at % block_bytes) as usize]
            }
        }
    }
}
