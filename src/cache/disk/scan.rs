//! Looking through a cache directory: what it holds at the start, and what others have put there or taken away since.

use crate::cache::disk::dir::{Dir, UNFINISHED};
use crate::types::BlockId;
use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Seconds after which an unfinished file has no writer any more, and an empty directory nobody who is about to use it (data §6.4).
const LEFT_OVER_SECONDS: i64 = 60;
/// Levels below `raw`: `chunks`, two of numbers, files.
const DEPTH: u32 = 3;

/// Notes every block of the directory, and drops from the index what is gone. `go_on` is asked all the time; `false` ends the scan.
pub(super) fn scan(dir: &Dir, go_on: &dyn Fn() -> bool) -> io::Result<()> {
    dir.index().begin_scan();
    let mut note = |block: BlockId, meta: &Metadata| {
        // A second link is that of a block that is staged: not ours to count or evict.
        if meta.nlink() == 1 {
            dir.index().note(&block, u32::try_from(meta.atime()).unwrap_or(0));
        }
    };
    match blocks_in(dir, &dir.raw(), go_on, &mut note) {
        Ok(true) => dir.index().end_scan(),
        Ok(false) => {}
        // There is nothing in it.
        Err(error) if error.kind() == ErrorKind::NotFound => dir.index().end_scan(),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Tells of all files below `top` that are blocks, and clears away what was left unfinished. Answers whether it went to the end.
pub(super) fn blocks_in(dir: &Dir, top: &Path, go_on: &dyn Fn() -> bool, found: &mut dyn FnMut(BlockId, &Metadata)) -> io::Result<bool> {
    walk(dir, top, "", DEPTH, go_on, found)
}

fn walk(
    dir: &Dir,
    path: &Path,
    key: &str,
    depth: u32,
    go_on: &dyn Fn() -> bool,
    found: &mut dyn FnMut(BlockId, &Metadata),
) -> io::Result<bool> {
    for entry in std::fs::read_dir(path)? {
        if !go_on() {
            return Ok(false);
        }
        let entry = entry?;
        // Gone since, or a name we never give.
        let (Ok(meta), Ok(name)) = (entry.metadata(), entry.file_name().into_string()) else { continue };
        let key = if key.is_empty() { name.clone() } else { format!("{key}/{name}") };
        if meta.is_dir() {
            if depth > 0 {
                match walk(dir, &entry.path(), &key, depth - 1, go_on, found) {
                    Ok(true) => {}
                    Ok(false) => return Ok(false),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            if left_over(dir, &meta) {
                // Succeeds only if it is empty.
                let _ = std::fs::remove_dir(entry.path());
            }
        } else if meta.is_file() && name.ends_with(UNFINISHED) {
            if left_over(dir, &meta) {
                // Somebody else may have done it.
                let _ = std::fs::remove_file(entry.path());
            }
        } else if meta.is_file()
            && let Some(block) = BlockId::parse(&name).filter(|block| block.len > 0 && block.key(dir.hash_prefix()) == key)
        {
            found(block, &meta);
        }
    }
    Ok(true)
}

/// Whether nobody can be working on it any more.
pub(super) fn left_over(dir: &Dir, meta: &Metadata) -> bool {
    i64::from(dir.now()) - meta.mtime() > LEFT_OVER_SECONDS
}
