//! `pando info PATH…`

use crate::cli::values::{bytes_shown, table};
use crate::cli::{invalid, say, small_runtime};
use crate::daemon::{MountEntry, Record, entries};
use crate::types::Ino;
use crate::volume::{self, Description, MetaUrl, Stores};
use anyhow::{Context, anyhow};
use clap::ArgAction;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tracing::error;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files and directories inside a mount; or inode numbers, with --inode.
    #[arg(required = true)]
    path: Vec<String>,
    /// The arguments are inode numbers; the working directory says of which mount.
    #[arg(long, short = 'i', action = ArgAction::SetTrue)]
    inode: bool,
    /// Count the whole tree below a directory.
    #[arg(long, short = 'r', action = ArgAction::SetTrue)]
    recursive: bool,
    /// Accepted: usage is always counted exactly.
    #[arg(long, action = ArgAction::SetTrue)]
    strict: bool,
    /// Show slices instead of objects.
    #[arg(long, action = ArgAction::SetTrue)]
    raw: bool,
}

/// Runs the command. A path that cannot be shown is reported and the next one follows; that is no failure.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = small_runtime()?;
    for path in &args.path {
        match runtime.block_on(describe(args, path)) {
            Ok(described) => say(shown(path, &described, args.raw).trim_end_matches('\n')),
            Err(error) => error!("{error:#}"),
        }
    }
    Ok(())
}

async fn describe(args: &Args, path: &str) -> anyhow::Result<Description> {
    let place = if args.inode { "." } else { path };
    let found = std::fs::metadata(place).with_context(|| format!("lookup inode for {place:?}"))?;
    let server = server_of(place, found.dev())?;
    let ino = match args.inode {
        true => Ino(path.parse().map_err(|_| invalid(path, "inode", "a number is wanted"))?),
        // The root of a mount is shown as 1, whatever directory it is.
        false if found.ino() == Ino::ROOT.0 => Ino(server.root),
        false => Ino(found.ino()),
    };
    let url = MetaUrl::parse(&server.volume).map_err(|why| anyhow!(why))?;
    let stores = Stores::open(&url).await?;
    Ok(volume::describe(&stores, ino, Ino(server.root), args.recursive).await?)
}

/// The process that serves the mount of a file, told by the device the file is on.
fn server_of(path: &str, device: u64) -> anyhow::Result<Record> {
    let device = format!("{}:{}", libc::major(device), libc::minor(device));
    let shown = Path::new(path).display();
    let entry: MountEntry = entries()
        .context("cannot read the list of mounts")?
        .into_iter()
        .find(|entry| entry.device == device && entry.is_ours())
        .ok_or_else(|| anyhow!("{shown} is not inside a Pando mount"))?;
    Record::find(&entry).ok_or_else(|| {
        anyhow!("cannot find the process that serves {}; is it another user's? Run as the user who mounted it", entry.mountpoint.display())
    })
}

fn shown(path: &str, described: &Description, raw: bool) -> String {
    let mut text = format!("{path} :\n");
    text += &format!("  inode: {}\n  files: {}\n   dirs: {}\n", described.ino, described.files, described.dirs);
    text += &format!(" length: {}\n   size: {}\n", bytes_shown(described.length), bytes_shown(described.size));
    match described.paths.as_slice() {
        [] => text += "   path: unknown\n",
        [one] => text += &format!("   path: {one}\n"),
        several => {
            text += "  paths:\n";
            several.iter().for_each(|one| text += &format!("\t{one}\n"));
        }
    }
    text += "   tier: 0-> \n";
    let cells = |numbers: &[&dyn std::fmt::Display]| numbers.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    if raw && !described.chunks.is_empty() {
        let rows: Vec<_> =
            described.chunks.iter().map(|line| cells(&[&line.chunk, &line.slice, &line.size, &line.offset, &line.length])).collect();
        text += " chunks:\n";
        text += &table(&["chunkIndex", "sliceId", "size", "offset", "length"], &rows);
    } else if !described.chunks.is_empty() {
        let mut rows = Vec::new();
        for line in &described.chunks {
            if line.objects.is_empty() {
                rows.push(cells(&[&line.chunk, &"", &line.length, &0, &line.length, &line.pos]));
            }
            for object in &line.objects {
                rows.push(cells(&[&line.chunk, &object.name, &object.size, &object.offset, &object.length, &object.pos]));
            }
        }
        text += " objects:\n";
        text += &table(&["chunkIndex", "objectName", "size", "offset", "length", "pos"], &rows);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{ChunkLine, ObjectLine};

    #[test]
    fn a_file_looks_as_scripts_expect() {
        let object = ObjectLine { name: "myjfs/chunks/0/0/1_0_807955".into(), size: 807_955, offset: 0, length: 807_955, pos: 0 };
        let chunk = ChunkLine { chunk: 0, slice: 1, size: 807_955, offset: 0, length: 807_955, pos: 0, objects: vec![object] };
        let described =
            Description { ino: Ino(2), files: 1, dirs: 0, length: 807_955, size: 811_008, paths: vec!["/f".into()], chunks: vec![chunk] };
        let text = shown("/mnt/jfs/f", &described, false);
        let expected = "/mnt/jfs/f :\n  inode: 2\n  files: 1\n   dirs: 0\n length: 789.02 KiB (807955 Bytes)\n   size: 792.00 KiB (811008 Bytes)\n   \
                        path: /f\n   tier: 0-> \n objects:\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("|          0 | myjfs/chunks/0/0/1_0_807955 | 807955 |      0 | 807955 |   0 |"), "{text}");
        assert!(shown("f", &Description { paths: vec![], ..described }, true).contains("path: unknown"));
    }
}
