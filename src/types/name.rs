//! `Name`: one component of a path, checked once at the edge.

use crate::types::Errno;
use std::fmt;

/// A directory entry's name: 1..=255 bytes, no `/`, no NUL, neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

impl Name {
    /// Longest name in bytes (metadata §2.9).
    pub const BYTES_MAX: usize = 255;

    /// Checks the bytes. `ENAMETOOLONG` above 255 bytes; `EINVAL` when empty or holding `/` or NUL; `EEXIST` for `.` and `..`.
    pub fn new(bytes: &[u8]) -> Result<Name, Errno> {
        match bytes {
            b"" => Err(Errno::INVAL),
            b"." | b".." => Err(Errno::EXIST),
            _ if bytes.len() > Self::BYTES_MAX => Err(Errno::NAMETOOLONG),
            _ if bytes.contains(&b'/') || bytes.contains(&0) => Err(Errno::INVAL),
            _ => Ok(Name(bytes.into())),
        }
    }

    /// The raw bytes; names need not be UTF-8.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}
