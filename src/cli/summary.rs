//! `pando summary PATH`

use crate::cli::ask;
use crate::cli::progress::Watch;
use crate::cli::values::{human_bytes, table_left};
use crate::cli::{say, value};
use crate::daemon::Last;
use crate::telemetry::progress;
use anyhow::{Context, anyhow};
use clap::ArgAction;
use serde_json::{Value, json};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file or directory inside a mount.
    path: String,
    /// Levels shown [default: 2; at most 10].
    #[arg(long, short = 'd', value_name = "N")]
    depth: Option<String>,
    /// Entries shown of each directory, the largest [default: 10; at most 100].
    #[arg(long, short = 'e', value_name = "N")]
    entries: Option<String>,
    /// Count everything anew, without the statistics of directories.
    #[arg(long, action = ArgAction::SetTrue)]
    strict: bool,
    /// As comma-separated values, with plain numbers.
    #[arg(long, action = ArgAction::SetTrue)]
    csv: bool,
    /// As the JSON document the table is made of.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let number = |option: &str, text: Option<&String>, default: u64| {
        value(option, text, default, |text| text.parse().map_err(|_| "a number is wanted".into()))
    };
    let request = json!({
        "Command": "summary",
        "Strict": args.strict,
        "Depth": number("depth", args.depth.as_ref(), 2)?,
        "Entries": number("entries", args.entries.as_ref(), 10)?,
    });
    std::fs::metadata(&args.path)
        .map_err(|error| anyhow!(crate::types::Errno::from(error).text()))
        .with_context(|| format!("lookup inode for {:?}", args.path))?;
    let watch = Watch::start("summary", args.json || args.csv);
    progress::stage("inodes", 0);
    let answer = ask::about(&args.path, Last::Followed, request)?;
    drop(watch);
    if args.json {
        say(&answer.to_string());
        return Ok(());
    }
    let mut rows = Vec::new();
    flat(&answer, "", &mut rows);
    let header = ["PATH", "SIZE", "DIRS", "FILES"];
    let cells = |(path, node): &(String, &Value), size: &dyn Fn(u64) -> String| {
        let number = |field: &str| node[field].as_u64().unwrap_or(0);
        vec![path.clone(), size(number("Size")), number("Dirs").to_string(), number("Files").to_string()]
    };
    if args.csv {
        say(&header.join(","));
        rows.iter()
            .for_each(|row| say(&cells(row, &|size| size.to_string()).iter().map(|cell| quoted(cell)).collect::<Vec<_>>().join(",")));
    } else {
        let rows: Vec<_> = rows.iter().map(|row| cells(row, &human_bytes)).collect();
        say(table_left(&header, &rows).trim_end());
    }
    Ok(())
}

/// The tree line by line: what is above first, directories end in a slash.
fn flat<'a>(node: &'a Value, above: &str, rows: &mut Vec<(String, &'a Value)>) {
    let name = node["Name"].as_str().unwrap_or_default();
    let path = match (name, node["IsDir"].as_bool()) {
        ("/", _) => "/".to_string(),
        (name, Some(true)) => format!("{above}{name}/"),
        (name, _) => format!("{above}{name}"),
    };
    rows.push((path.clone(), node));
    let above = if path == "/" { String::new() } else { path };
    node["Children"].as_array().into_iter().flatten().for_each(|child| flat(child, &above, rows));
}

/// A field that holds a comma, a quote or a line break is quoted.
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_the_top() {
        let leaf = |name: &str| json!({ "Name": name, "IsDir": false, "Size": 4096, "Files": 1, "Dirs": 0, "Children": [] });
        let dir = json!({ "Name": "b", "IsDir": true, "Size": 8192, "Files": 1, "Dirs": 1, "Children": [leaf("small"), leaf("...")] });
        let top = json!({ "Name": "/", "IsDir": true, "Size": 12288, "Files": 2, "Dirs": 2, "Children": [dir, leaf("sym")] });
        let mut rows = Vec::new();
        flat(&top, "", &mut rows);
        assert_eq!(rows.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["/", "b/", "b/small", "b/...", "sym"]);
        assert_eq!((quoted("a b"), quoted("a,\"b")), ("a b".into(), "\"a,\"\"b\"".into()));
    }
}
