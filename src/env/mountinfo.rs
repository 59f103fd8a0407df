//! What is mounted where, as the system tells it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Its number among the mounts.
    pub id: u64,
    /// The number of the mount it is on.
    pub parent: u64,
    /// `major:minor`, as `st_dev` says.
    pub device: String,
    /// What of the filesystem is there; not `/` where a directory of a mount is mounted once more.
    pub root: PathBuf,
    /// Where it is.
    pub mountpoint: PathBuf,
    /// Type, e.g. `fuse.pando`.
    pub kind: String,
    /// Source, e.g. `Pando:vol`.
    pub source: String,
}

/// What is mounted, in the order in which it was made: where several are stacked any of them may be on top.
pub fn mount_entries() -> io::Result<Vec<MountEntry>> {
    let text = fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|c| *c == b'\n').filter_map(parse_line).collect())
}

/// What is on top at an absolute path without symbolic links, if anything is mounted there.
pub fn mounted_at(path: &Path) -> io::Result<Option<MountEntry>> {
    Ok(top(mount_entries()?, path))
}

/// Of several at one path each but the first is on another, and none is on the one that is seen.
fn top(entries: Vec<MountEntry>, path: &Path) -> Option<MountEntry> {
    let there: Vec<_> = entries.into_iter().filter(|entry| entry.mountpoint == path).collect();
    let is_covered = |id: u64| there.iter().any(|other| other.parent == id);
    there.iter().rfind(|entry| !is_covered(entry.id)).cloned()
}

/// `36 35 98:0 /root /mnt rw - ext3 /dev/root rw`; a variable number of fields stands before the dash.
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let fields: Vec<&[u8]> = line.split(|c| *c == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let text = |at: usize| Some(String::from_utf8_lossy(&unescape(fields.get(at)?)).into_owned());
    let number = |at: usize| text(at)?.parse().ok();
    let path = |at: usize| Some(PathBuf::from(OsString::from_vec(unescape(fields.get(at)?))));
    let (id, parent) = (number(0)?, number(1)?);
    Some(MountEntry { id, parent, device: text(2)?, root: path(3)?, mountpoint: path(4)?, kind: text(dash + 1)?, source: text(dash + 2)? })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|c| (b'0'..=b'7').contains(c)));
        match octal {
            Some(digits) => {
                bytes.push(digits.iter().fold(0u8, |n, digit| n.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let line = b"36 35 0:54 / /mnt/with\\040space\\134 rw,noatime master:1 shared:2 - fuse.pando Pando:vol rw";
        let entry = parse_line(line).expect("a line");
        assert_eq!((entry.device.as_str(), entry.mountpoint.as_path()), ("0:54", Path::new("/mnt/with space\\")));
        assert_eq!((entry.kind.as_str(), entry.source.as_str()), ("fuse.pando", "Pando:vol"));
        assert_eq!((entry.id, entry.parent), (36, 35));
        assert_eq!(parse_line(b"36 35 98:0"), None);
        // Of three at one place, the one that was made first moved there last.
        let lines = ["20 22", "21 9", "22 21"].map(|ids| format!("{ids} 0:54 / /m rw - fuse.pando Pando:vol rw"));
        let entries = lines.iter().filter_map(|line| parse_line(line.as_bytes())).collect();
        assert_eq!(top(entries, Path::new("/m")).map(|entry| entry.id), Some(20));
        assert!(!mount_entries().expect("Linux has it").is_empty());
    }
}
