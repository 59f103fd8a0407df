//! A ZIP archive of small files: what `debug` collects is handed on as one. The entries are deflated, names are UTF-8.

use anyhow::{Context, bail};
use flate2::Compression;
use flate2::write::DeflateEncoder;
use std::io::Write;

/// Version 2.0 of the format: directories and deflate.
const VERSION: u16 = 20;
/// Names are UTF-8.
const UTF8: u16 = 1 << 11;
const DEFLATED: u16 = 8;
/// The first of January 1980, midnight: times are in the names of the files.
const DATE: u16 = 0x21;

/// An archive that is being written.
pub struct Zip<W: Write> {
    out: W,
    written: u64,
    directory: Vec<u8>,
    count: u16,
}

impl<W: Write> Zip<W> {
    /// An empty archive.
    pub fn new(out: W) -> Zip<W> {
        Zip { out, written: 0, directory: Vec::new(), count: 0 }
    }

    /// Adds a file.
    pub fn add(&mut self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let mut deflated = DeflateEncoder::new(Vec::new(), Compression::default());
        deflated.write_all(content)?;
        let deflated = deflated.finish()?;
        let (Ok(length), Ok(stored), Ok(name_length)) =
            (u32::try_from(content.len()), u32::try_from(deflated.len()), u16::try_from(name.len()))
        else {
            bail!("{name} is too large for an archive");
        };
        let offset = u32::try_from(self.written).context("the archive is too large")?;
        // What both headers of a file have in common.
        let mut common = Vec::new();
        for word in [VERSION, UTF8, DEFLATED, 0, DATE] {
            common.extend_from_slice(&word.to_le_bytes());
        }
        for number in [crc32fast::hash(content), stored, length] {
            common.extend_from_slice(&number.to_le_bytes());
        }
        common.extend_from_slice(&name_length.to_le_bytes());
        common.extend_from_slice(&0u16.to_le_bytes());
        let head = [b"PK\x03\x04", common.as_slice(), name.as_bytes()].concat();
        for part in [&head, &deflated] {
            self.out.write_all(part)?;
            self.written += part.len() as u64;
        }
        self.directory.extend_from_slice(b"PK\x01\x02");
        self.directory.extend_from_slice(&VERSION.to_le_bytes());
        self.directory.extend_from_slice(&common);
        // No comment, disk 0, nothing known of attributes.
        self.directory.extend_from_slice(&[0; 10]);
        self.directory.extend_from_slice(&offset.to_le_bytes());
        self.directory.extend_from_slice(name.as_bytes());
        self.count = self.count.checked_add(1).context("the archive has too many files")?;
        Ok(())
    }

    /// Writes the table of contents.
    pub fn finish(mut self) -> anyhow::Result<W> {
        let (start, length) = (u32::try_from(self.written)?, u32::try_from(self.directory.len())?);
        self.out.write_all(&self.directory)?;
        self.out.write_all(b"PK\x05\x06\0\0\0\0")?;
        for count in [self.count, self.count] {
            self.out.write_all(&count.to_le_bytes())?;
        }
        for number in [length, start] {
            self.out.write_all(&number.to_le_bytes())?;
        }
        self.out.write_all(&[0, 0])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn an_archive_holds_what_was_added() {
        let mut zip = Zip::new(Vec::new());
        zip.add("a/stats.txt", b"hello hello hello hello").unwrap();
        zip.add("a/empty", b"").unwrap();
        let bytes = zip.finish().unwrap();
        // The end tells where the table is, the table where the files are.
        let end = bytes.len() - 22;
        assert_eq!(bytes[end..end + 4], *b"PK\x05\x06");
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]) as usize;
        let number = |at: usize| word(at) + (word(at + 2) << 16);
        assert_eq!(word(end + 10), 2);
        let table = number(end + 16);
        assert_eq!((bytes[table..table + 4].to_vec(), number(table + 42), word(table + 28)), (b"PK\x01\x02".to_vec(), 0, 11));
        assert_eq!(&bytes[table + 46..table + 57], b"a/stats.txt");
        let (stored, length) = (number(table + 20), number(table + 24));
        assert_eq!(&bytes[30..41], b"a/stats.txt");
        let mut text = String::new();
        flate2::read::DeflateDecoder::new(&bytes[41..41 + stored]).read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), length), ("hello hello hello hello", 23));
        assert_eq!(number(table + 16) as u32, crc32fast::hash(text.as_bytes()));
        let second = table + 46 + 11;
        assert_eq!(number(second + 42), 41 + stored);
    }
}
