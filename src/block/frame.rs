//! `Codec`: between a block and its frame, the bytes of its object: compressed, then encrypted (data §2).

use crate::block::compress::Compression;
use crate::block::encrypt::{Encryption, OVERHEAD_BYTES};
use bytes::Bytes;
use std::ops::RangeInclusive;

/// Blocks up to this size are compressed where they are: that takes a fraction of a millisecond, and a hand-over to another thread
/// would cost as much.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// How the blocks of one volume become objects.
#[derive(Debug, Default)]
pub struct Codec {
    compression: Compression,
    encryption: Option<Encryption>,
}

impl Codec {
    /// Compresses, then encrypts if there is a key. `Codec::default()` leaves blocks as they are.
    pub fn new(compression: Compression, encryption: Option<Encryption>) -> Codec {
        Codec { compression, encryption }
    }

    /// Whether frames are the blocks themselves, so that parts of objects are parts of blocks.
    pub fn is_plain(&self) -> bool {
        self.compression == Compression::None && self.encryption.is_none()
    }

    /// Whether coding a block of `len` bytes takes so little that a thread that serves others may do it. Unwrapping a key takes a millisecond.
    pub(super) fn is_quick(&self, len: usize) -> bool {
        self.is_plain() || (self.encryption.is_none() && len <= INLINE_BYTES_MAX)
    }

    /// The frame of a block. Fails only if the system has no randomness or no memory.
    pub fn encode(&self, block: &Bytes) -> Result<Bytes, String> {
        if self.is_plain() {
            return Ok(block.clone());
        }
        let Some(encryption) = &self.encryption else { return self.compression.compress(block).map(Bytes::from) };
        let object = match self.compression {
            Compression::None => encryption.seal(block)?,
            compression => encryption.seal(&compression.compress(block)?)?,
        };
        Ok(object.into())
    }

    /// The block of exactly `len` bytes that `frame` holds. The message says what is wrong with the frame.
    pub fn decode(&self, frame: Bytes, len: u32) -> Result<Bytes, String> {
        let len = len as usize;
        let most = self.compression.bound(len) + self.encryption.as_ref().map_or(0, Encryption::overhead_bytes);
        // Before anything is allocated for it.
        if frame.len() > most || (self.is_plain() && frame.len() != len) {
            return Err(format!("{} bytes, which cannot be a block of {len}", frame.len()));
        }
        if self.is_plain() {
            return Ok(frame);
        }
        let Some(encryption) = &self.encryption else { return self.compression.decompress(&frame, len).map(Bytes::from) };
        let opened = encryption.open(&frame)?;
        match self.compression {
            Compression::None if opened.len() == len => Ok(opened.into()),
            Compression::None => Err(format!("{} bytes instead of {len}", opened.len())),
            compression => compression.decompress(&opened, len).map(Bytes::from),
        }
    }

    /// Bytes of the block in a frame of at most `most`: the name of its object tells them, the frame itself only when it is read.
    pub(super) fn block_len(&self, frame: &[u8], most: u32) -> Result<u32, String> {
        let len = match &self.encryption {
            Some(encryption) => self.compression.block_len(&encryption.open(frame)?, most as usize)?,
            None => self.compression.block_len(frame, most as usize)?,
        };
        u32::try_from(len).ok().filter(|len| (1..=most).contains(len)).ok_or_else(|| format!("a block of {len} bytes"))
    }

    /// Sizes the object of a block of `len` bytes can have; all that can be said without the key.
    pub fn frame_bytes(compression: Compression, encrypted: bool, len: u32) -> RangeInclusive<u64> {
        let least = if compression == Compression::None { len as usize } else { 1 };
        let most = compression.bound(len as usize);
        let (more_least, more_most) = if encrypted { (*OVERHEAD_BYTES.start(), *OVERHEAD_BYTES.end()) } else { (0, 0) };
        (least + more_least) as u64..=(most + more_most) as u64
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
