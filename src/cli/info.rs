//! `pando info PATH…`

use crate::cli::program::Program;
use crate::cli::values::{bytes_shown, printable, table, table_left};
use crate::cli::{invalid, say};
use crate::daemon::{Last, locate};
use anyhow::{Context, bail};
use clap::ArgAction;
use serde_json::{Value, json};
use std::path::Path;
use tracing::error;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files and directories inside a mount; or inode numbers, with --inode.
    #[arg(required = true)]
    path: Vec<String>,
    /// The arguments are inode numbers; the working directory says of which mount. For root only.
    #[arg(long, short = 'i', action = ArgAction::SetTrue)]
    inode: bool,
    /// Count the whole tree below a directory.
    #[arg(long, short = 'r', action = ArgAction::SetTrue)]
    recursive: bool,
    /// Count everything anew, without the statistics of directories.
    #[arg(long, action = ArgAction::SetTrue)]
    strict: bool,
    /// Show slices instead of objects.
    #[arg(long, action = ArgAction::SetTrue)]
    raw: bool,
    /// As the JSON document that is shown otherwise.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

/// Runs the command. A path that cannot be shown is reported and the next one follows; in scripts that call it `juicefs` that is no failure, as
/// they know it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut failed = 0;
    for path in &args.path {
        match describe(args, path) {
            Ok(mut described) if args.json => {
                described["Path"] = json!(path);
                say(&described.to_string());
            }
            Ok(described) => say(shown(path, &described, args.raw).trim_end_matches('\n')),
            Err(error) => {
                failed += 1;
                error!("{error:#}");
            }
        }
    }
    if failed > 0 && Program::called() == Program::Pando {
        bail!("not shown: {failed} of {}", args.path.len());
    }
    Ok(())
}

fn describe(args: &Args, path: &str) -> anyhow::Result<Value> {
    let place = if args.inode { "." } else { path };
    std::fs::metadata(place).with_context(|| format!("lookup inode for {place:?}"))?;
    let inside = locate(Path::new(place), Last::Followed)?;
    let mut request = json!({ "Command": "info", "Path": inside.path, "Recursive": args.recursive, "Strict": args.strict });
    if args.inode {
        request["Inode"] = json!(path.parse::<u64>().map_err(|_| invalid(path, "inode", "a number is wanted"))?);
    }
    Ok(inside.connect()?.ask(&request, &mut |_, _| {})?)
}

fn shown(path: &str, described: &Value, raw: bool) -> String {
    let number = |field: &str| described[field].as_u64().unwrap_or(0);
    let list = |field: &str| described[field].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut text = format!("{} :\n", printable(path));
    text += &format!("  inode: {}\n  files: {}\n   dirs: {}\n", number("Inode"), number("Files"), number("Dirs"));
    text += &format!(" length: {}\n   size: {}\n", bytes_shown(number("Length")), bytes_shown(number("Size")));
    let paths: Vec<&str> = list("Paths").iter().filter_map(Value::as_str).collect();
    match paths.as_slice() {
        [] => text += "   path: unknown\n",
        [one] => text += &format!("   path: {}\n", printable(one)),
        several => {
            text += "  paths:\n";
            several.iter().for_each(|one| text += &format!("\t{}\n", printable(one)));
        }
    }
    text += "   tier: 0-> \n";
    let chunks = list("Chunks");
    if raw && !chunks.is_empty() {
        text += " chunks:\n";
        text +=
            &table(&["chunkIndex", "sliceId", "size", "offset", "length"], &rows(chunks, &["Chunk", "Slice", "Size", "Offset", "Length"]));
    } else if !chunks.is_empty() {
        let mut lines = Vec::new();
        for chunk in chunks {
            let objects = chunk["Objects"].as_array().map(Vec::as_slice).unwrap_or_default();
            if objects.is_empty() {
                lines.push(json!([chunk["Chunk"], "", chunk["Length"], 0, chunk["Length"], chunk["Pos"]]));
            }
            for object in objects {
                lines.push(json!([chunk["Chunk"], object["Name"], object["Size"], object["Offset"], object["Length"], object["Pos"]]));
            }
        }
        let rows: Vec<_> = lines.iter().map(|line| (0..6).map(|at| cell(&line[at])).collect()).collect();
        text += " objects:\n";
        text += &table(&["chunkIndex", "objectName", "size", "offset", "length", "pos"], &rows);
    }
    for (title, header) in [("Flocks", &["Sid", "Owner", "Type"][..]), ("Plocks", &["Sid", "Owner", "Type", "Pid", "Start", "End"])] {
        let locks = list(title);
        if !locks.is_empty() {
            text += &format!(" {}:\n{}", title.to_lowercase(), table_left(header, &rows(locks, header)));
        }
    }
    text
}

fn rows(lines: &[Value], fields: &[&str]) -> Vec<Vec<String>> {
    lines.iter().map(|line| fields.iter().map(|field| cell(&line[*field])).collect()).collect()
}

fn cell(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_looks_as_scripts_expect() {
        let object = json!({ "Name": "myjfs/chunks/0/0/1_0_807955", "Size": 807_955, "Offset": 0, "Length": 807_955, "Pos": 0 });
        let chunk = json!({ "Chunk": 0, "Slice": 1, "Size": 807_955, "Offset": 0, "Length": 807_955, "Pos": 0, "Objects": [object] });
        let mut described = json!({
            "Inode": 2, "Files": 1, "Dirs": 0, "Length": 807_955, "Size": 811_008, "Paths": ["/f"], "Chunks": [chunk],
            "Flocks": [{ "Sid": 1, "Owner": 6_614_157_408_805_317_442u64, "Type": "W" }], "Plocks": [],
        });
        let text = shown("/mnt/jfs/f", &described, false);
        let expected = "/mnt/jfs/f :\n  inode: 2\n  files: 1\n   dirs: 0\n length: 789.02 KiB (807955 Bytes)\n   size: 792.00 KiB (811008 Bytes)\n   \
                        path: /f\n   tier: 0-> \n objects:\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("|          0 | myjfs/chunks/0/0/1_0_807955 | 807955 |      0 | 807955 |   0 |"), "{text}");
        assert!(text.contains(" flocks:\n") && text.contains("| 1   | 6614157408805317442 |    W |"), "{text}");
        described["Paths"] = json!([]);
        assert!(shown("f", &described, true).contains("path: unknown"));
    }
}
