//! `Record`: which process serves a mount. Written by the process, found by the commands through the device number of the mount.

use crate::env::MountEntry;
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What a serving process writes down about one mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The process.
    pub pid: u32,
    /// When it began, in ticks since boot: with the number it names a process for good, numbers alone are used again.
    pub start: u64,
}

impl Record {
    /// This process.
    pub fn own() -> Record {
        let pid = std::process::id();
        Record { pid, start: process_start(pid).unwrap_or(0) }
    }

    /// Writes it down for `entry`; the file goes when the result is dropped.
    pub fn write(&self, entry: &MountEntry) -> io::Result<Written> {
        let dir = directories().into_iter().next().ok_or(io::ErrorKind::NotFound)?;
        make_dir(&dir)?;
        let path = dir.join(file_name(entry));
        let text = json!({
            "Pid": self.pid,
            "Start": self.start,
            "MountPoint": entry.mountpoint.to_string_lossy(),
        });
        // Whole or not at all: a reader may come at any moment.
        let fresh = path.with_extension(format!("new{}", self.pid));
        // A leftover of a process with the same number, which may belong to somebody else.
        let _ = fs::remove_file(&fresh);
        let text = text.to_string();
        fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&fresh)?.write_all(text.as_bytes())?;
        fs::rename(&fresh, &path)?;
        Ok(Written { path, text })
    }

    /// The process that serves a mount, if it left a record and still lives.
    pub fn find(entry: &MountEntry) -> Option<Record> {
        directories().iter().find_map(|dir| {
            let document: Value = serde_json::from_slice(&fs::read(dir.join(file_name(entry))).ok()?).ok()?;
            let record = Record { pid: document["Pid"].as_u64()?.try_into().ok()?, start: document["Start"].as_u64()? };
            record.lives().then_some(record)
        })
    }

    /// Whether the process is still there. One that has ended and only waits to be collected by its parent is not.
    pub fn lives(&self) -> bool {
        process_start(self.pid) == Some(self.start)
    }
}

/// A record on disk.
pub struct Written {
    path: PathBuf,
    /// What was written.
    text: String,
}

impl Drop for Written {
    fn drop(&mut self) {
        // The number of the device is free once the mount is gone: a newer mount may have it already, and a record of its own.
        if fs::read_to_string(&self.path).is_ok_and(|text| text == self.text) {
            // A leftover names a process that is gone and is ignored.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes such a directory. Others must reach the sockets in it, whatever the umask.
pub(super) fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}

/// Where records are, the one to write to first: the system's for root, one's own otherwise.
pub(super) fn directories() -> Vec<PathBuf> {
    let system = PathBuf::from("/run/pando");
    let own = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pando/run"));
    // SAFETY: geteuid has no preconditions.
    match unsafe { libc::geteuid() } {
        0 => vec![system],
        _ => own.into_iter().chain([system]).collect(),
    }
}

fn file_name(entry: &MountEntry) -> String {
    format!("{}.json", entry.device.replace(':', "-"))
}

/// Field 22 of `/proc/PID/stat`; `None` if there is no such process or it has ended.
fn process_start(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything.
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    let ended = matches!(*fields.first()?, "Z" | "X");
    if ended { None } else { fields.get(19)?.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_told_apart_by_their_start() {
        let own = Record::own();
        assert!(own.start > 0 && own.lives());
        assert!(!Record { start: own.start + 1, ..own.clone() }.lives(), "the same number, later");
    }
}
