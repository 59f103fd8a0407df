//! What a user can say about the cache, and the directories it lies in (cli §6.1, data §6.1).

use std::ffi::{CStr, CString, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How blocks are cached on this host.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheOptions {
    /// Where.
    pub place: CachePlace,
    /// Bytes over all directories, 4096 a block included; 0 = no cache beside the buffer. Without it: 100 GiB on disk, and in
    /// memory its share of the buffer.
    pub size_bytes: Option<u64>,
    /// Blocks over all directories; 0 = as many as there are inodes for.
    pub items: u64,
    /// Part of each disk, of its bytes and of its inodes, that stays free: 0 to 1.
    pub free_ratio: f64,
    /// Permissions of the files.
    pub mode: u32,
    /// What goes first.
    pub eviction: Eviction,
    /// Blocks not used for so long are removed; 0 = never.
    pub expire: Duration,
    /// How often a directory is looked through for what others put there and took away; 0 = only at the start.
    pub scan_interval: Duration,
    /// Keep no full blocks that were downloaded.
    pub partial_only: bool,
    /// Keep full blocks that were uploaded.
    pub large_write: bool,
    /// Write checksums, and check what is read.
    pub checksums: bool,
    /// Stage what is written; `None` = it is uploaded before it counts as stored.
    pub staging: Option<StagingOptions>,
}

/// How written blocks are staged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagingOptions {
    /// Blocks shorter than this are staged; 0 = all.
    pub below_bytes: u64,
    /// Blocks being written at once; more are uploaded directly.
    pub writes_max: usize,
    /// Age from which a block is uploaded.
    pub delay: Duration,
    /// When blocks are uploaded; `None` = always.
    pub hours: Option<Hours>,
}

/// Hours of the day, by the local clock; may go past midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hours {
    /// First hour, 0 to 23.
    pub start: u8,
    /// The hour after the last, 0 to 23.
    pub end: u8,
}

impl Hours {
    /// Whether this hour is one of them.
    pub fn contains(&self, hour: u8) -> bool {
        if self.start < self.end { (self.start..self.end).contains(&hour) } else { hour >= self.start || hour < self.end }
    }
}

/// Where blocks are cached.
#[derive(Clone, Debug, PartialEq)]
pub enum CachePlace {
    /// Nowhere for volumes whose objects are files of this host, else in `default_dir`.
    Default,
    /// In memory only.
    Memory,
    /// In these directories, which may have the wildcards of a shell.
    Dirs(Vec<PathBuf>),
}

/// How a full directory makes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// Not at all: new blocks are not kept.
    None,
    /// Of two blocks chosen at random the older goes.
    TwoRandom,
    /// The block that was not used for longest goes.
    Lru,
}

/// Bytes of a cache on disk if nothing is said.
pub(super) const SIZE_BYTES_DEFAULT: u64 = 100 << 30;

impl Default for CacheOptions {
    fn default() -> CacheOptions {
        CacheOptions {
            place: CachePlace::Default,
            size_bytes: None,
            items: 0,
            free_ratio: 0.1,
            mode: 0o600,
            eviction: Eviction::TwoRandom,
            expire: Duration::ZERO,
            scan_interval: Duration::from_secs(3600),
            partial_only: false,
            large_write: false,
            checksums: true,
            staging: None,
        }
    }
}

impl CachePlace {
    /// From the text of `--cache-dir`: `memory`, or directories between colons (between commas if there is no colon).
    pub fn parse(text: &str) -> CachePlace {
        if text == "memory" {
            return CachePlace::Memory;
        }
        let separator = if text.contains(':') { ':' } else { ',' };
        CachePlace::Dirs(text.split(separator).map(str::trim).filter(|dir| !dir.is_empty()).map(PathBuf::from).collect())
    }
}

/// Where the cache is if nothing is said; shared with JuiceFS. `None` if this user has no home.
pub fn default_dir() -> Option<PathBuf> {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } == 0 {
        return Some("/var/jfsCache".into());
    }
    std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".juicefs/cache"))
}

/// The directories of one volume: wildcards replaced, in the order on which all clients agree, each once.
pub(super) fn expand(dirs: &[PathBuf], uuid: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = dirs.iter().flat_map(|dir| matching(dir)).map(|dir| dir.join(uuid)).collect();
    // By bytes: parts of a path compared one by one have another order.
    found.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    found.dedup();
    found
}

/// The paths a pattern stands for; itself if it is none.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    if !pattern.as_os_str().as_bytes().iter().any(|c| b"*?[\\".contains(c)) {
        return vec![pattern.into()];
    }
    let Ok(text) = CString::new(pattern.as_os_str().as_bytes()) else { return Vec::new() };
    // SAFETY: `glob_t` is plain old data, for which all zeros are a valid value.
    let mut list: libc::glob_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pattern is a C string and `list` a live local; no callback is given.
    let code = unsafe { libc::glob(text.as_ptr(), 0, None, &mut list) };
    let mut paths = Vec::new();
    if code == 0 {
        for n in 0..list.gl_pathc {
            // SAFETY: after success `gl_pathv` holds `gl_pathc` C strings, alive until globfree.
            let path = unsafe { CStr::from_ptr(*list.gl_pathv.add(n)) };
            paths.push(PathBuf::from(OsString::from_vec(path.to_bytes().into())));
        }
    }
    // SAFETY: `list` was filled by glob, or is still all zeros.
    unsafe { libc::globfree(&mut list) };
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let dirs = |text: &str| CachePlace::parse(text);
        let of = |list: &[&str]| CachePlace::Dirs(list.iter().map(PathBuf::from).collect());
        assert_eq!(dirs("memory"), CachePlace::Memory);
        assert_eq!(dirs("/b:/a,x"), of(&["/b", "/a,x"]));
        assert_eq!(dirs("/b,/a"), of(&["/b", "/a"]));
        assert_eq!(dirs("/b:"), of(&["/b"]));
    }

    #[test]
    fn wildcards_stand_for_what_is_there() {
        let temp = tempfile::tempdir().unwrap();
        for name in ["disk2", "disk1", "disk1-b", "other"] {
            std::fs::create_dir(temp.path().join(name)).unwrap();
        }
        let dirs = [temp.path().join("disk*"), temp.path().join("disk1"), temp.path().join("missing"), temp.path().join("none*")];
        let found = expand(&dirs, "U");
        // A hyphen sorts before the slash.
        let expected: Vec<PathBuf> = ["disk1-b/U", "disk1/U", "disk2/U", "missing/U"].map(|name| temp.path().join(name)).into();
        assert_eq!(found, expected);
    }
}
