//! Compression of blocks (data §2.1). There is no framing of our own: the length of a block is known from its name, and whether blocks are
//! compressed from the volume's setting.

/// Level of zstd that the format uses.
const ZSTD_LEVEL: i32 = 1;

/// How the blocks of a volume are compressed: all of them, also those that grow by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// They are not.
    #[default]
    None,
    /// One raw LZ4 block, without length or checksum.
    Lz4,
    /// One zstd frame that tells the length of its content.
    Zstd,
}

impl Compression {
    /// The algorithm of this name, in any case; empty is none. The message for others is that of the format.
    pub fn named(name: &str) -> Result<Compression, String> {
        match name.to_ascii_lowercase().as_str() {
            "" | "none" => Ok(Compression::None),
            "lz4" => Ok(Compression::Lz4),
            "zstd" => Ok(Compression::Zstd),
            _ => Err(format!("Unsupported compress algorithm: {name:?}")),
        }
    }

    /// Most bytes that `len` bytes become. Other clients read no more of an object than this.
    pub fn bound(self, len: usize) -> usize {
        match self {
            Compression::None => len,
            Compression::Lz4 => len + len / 255 + 16,
            Compression::Zstd => zstd::zstd_safe::compress_bound(len),
        }
    }

    pub(super) fn compress(self, block: &[u8]) -> Result<Vec<u8>, String> {
        let frame = match self {
            Compression::None => block.to_vec(),
            Compression::Lz4 => lz4_flex::block::compress(block),
            Compression::Zstd => zstd::bulk::compress(block, ZSTD_LEVEL).map_err(|e| format!("zstd: {e}"))?,
        };
        // Literals alone stay below the bound, and no match costs more than the literals it replaces.
        assert!(frame.len() <= self.bound(block.len()), "a compressed block is within the bound of the format");
        Ok(frame)
    }

    /// Bytes of the block in a frame that holds at most `most`.
    pub(super) fn block_len(self, frame: &[u8], most: usize) -> Result<usize, String> {
        let mut block = vec![0; most];
        match self {
            Compression::None => Ok(frame.len()),
            Compression::Lz4 => lz4_flex::block::decompress_into(frame, &mut block).map_err(|e| format!("lz4: {e}")),
            Compression::Zstd => zstd::bulk::decompress_to_buffer(frame, &mut block).map_err(|e| format!("zstd: {e}")),
        }
    }

    /// The block of exactly `len` bytes. Never allocates more than that, whatever the frame claims.
    pub(super) fn decompress(self, frame: &[u8], len: usize) -> Result<Vec<u8>, String> {
        let mut block = vec![0; len];
        let found = match self {
            Compression::None if frame.len() == len => return Ok(frame.to_vec()),
            Compression::None => frame.len(),
            Compression::Lz4 => lz4_flex::block::decompress_into(frame, &mut block).map_err(|e| format!("lz4: {e}"))?,
            Compression::Zstd => zstd::bulk::decompress_to_buffer(frame, &mut block).map_err(|e| format!("zstd: {e}"))?,
        };
        if found == len { Ok(block) } else { Err(format!("{found} bytes instead of {len}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &[u8] = b"hello world, hello world, hello world\n";

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn frames_of_the_reference_are_read() {
        let lz4 = hex("df 68656c6c6f20776f726c642c20 0d00 01 50 6f726c640a");
        assert_eq!(Compression::Lz4.decompress(&lz4, HELLO.len()).unwrap(), HELLO);
        let zstd = hex("28b52ffd 20 26 a50000 70 68656c6c6f20776f726c642c20 0a 010000ce2f");
        assert_eq!(Compression::Zstd.decompress(&zstd, HELLO.len()).unwrap(), HELLO);
        for (algorithm, frame) in [(Compression::Lz4, lz4), (Compression::Zstd, zstd)] {
            for len in [HELLO.len() - 1, HELLO.len() + 1, 0, 4 << 20] {
                assert!(algorithm.decompress(&frame, len).is_err(), "{algorithm:?} {len}");
            }
            for cut in 0..frame.len() {
                assert!(algorithm.decompress(&frame[..cut], HELLO.len()).is_err(), "{algorithm:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn zstd_frames_tell_the_length_of_their_content() {
        for len in [1, 38, 300, 70_000, 1_300_000] {
            let frame = Compression::Zstd.compress(&vec![7; len]).unwrap();
            assert_eq!(zstd::zstd_safe::get_frame_content_size(&frame).ok(), Some(Some(len as u64)));
            assert_eq!(zstd::zstd_safe::find_frame_compressed_size(&frame), Ok(frame.len()), "a single frame");
        }
    }

    #[test]
    fn names() {
        for (name, algorithm) in
            [("", Compression::None), ("none", Compression::None), ("LZ4", Compression::Lz4), ("Zstd", Compression::Zstd)]
        {
            assert_eq!(Compression::named(name), Ok(algorithm));
        }
        assert_eq!(Compression::named("gzip"), Err("Unsupported compress algorithm: \"gzip\"".into()));
    }
}
