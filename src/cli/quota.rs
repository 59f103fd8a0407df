//! `pando quota set|get|delete|list|check DIR`

use crate::cli::values::{self, count_shown, human_bytes, table_left};
use crate::cli::{invalid, say, small_runtime, volume_of};
use crate::meta::ops::quota::{Quota, Usage};
use crate::volume::{Checked, Owner, Quotas};
use anyhow::{anyhow, bail};
use clap::ArgAction;
use serde_json::{Value, json};
use tracing::{info, warn};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// set, get, delete (or del), list (or ls), check.
    action: String,
    /// Directory of the volume.
    #[arg(value_name = "DIR|META-URL")]
    volume: String,
    /// A directory, from the root of the volume.
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// A user; not 0.
    #[arg(long, value_name = "N")]
    uid: Option<String>,
    /// A group.
    #[arg(long, value_name = "N")]
    gid: Option<String>,
    /// Most bytes, in GiB; 0 = unlimited.
    #[arg(long, value_name = "SIZE")]
    capacity: Option<String>,
    /// Most inodes; 0 = unlimited.
    #[arg(long, value_name = "N")]
    inodes: Option<String>,
    /// Make the directory if it is missing.
    #[arg(long, action = ArgAction::SetTrue)]
    create: bool,
    /// Correct the usage, with check.
    #[arg(long, action = ArgAction::SetTrue)]
    repair: bool,
    /// Accepted: usage is always counted exactly.
    #[arg(long, action = ArgAction::SetTrue)]
    strict: bool,
    /// Print quotas as a JSON list, with plain numbers.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let url = volume_of(&args.volume)?;
    let owner = owner(args)?;
    let limit = |option: &str, text: Option<&String>, read: &dyn Fn(&str) -> Result<u64, String>| -> anyhow::Result<Option<i64>> {
        let Some(text) = text else { return Ok(None) };
        let number = read(text).and_then(|n| i64::try_from(n).map_err(|_| "it is too large".into()));
        number.map(Some).map_err(|why| invalid(text, option, &why))
    };
    let space = limit("capacity", args.capacity.as_ref(), &|text| values::size(text, 'G'))?;
    let inodes = limit("inodes", args.inodes.as_ref(), &|text| text.parse().map_err(|_| "a number is wanted".into()))?;
    let wanted = || {
        owner.clone().ok_or_else(|| {
            anyhow!("Please specify the directory with `--path <dir>` option or specify user/group with `--uid <uid>`/`--gid <gid>` option")
        })
    };
    let runtime = small_runtime()?;
    let quotas = || runtime.block_on(Quotas::open(&url));
    let explain = |failure: crate::volume::Failure| anyhow!(failure.message);
    match args.action.as_str() {
        "set" => {
            let owner = wanted()?;
            let create = args.create.then(crate::cli::own_umask);
            runtime.block_on(quotas()?.set(&owner, space, inodes, create)).map_err(explain)?;
            // What was asked for, as scripts know it; `get` shows what is stored.
            let max = Usage { space: space.unwrap_or(-1), inodes: inodes.unwrap_or(-1) };
            show(args.json, header(&owner), &[(shown(&owner), Quota { max, used: Usage::default() })]);
        }
        "get" => {
            let owner = wanted()?;
            if let Some(quota) = runtime.block_on(quotas()?.get(&owner)).map_err(explain)? {
                show(args.json, header(&owner), &[(shown(&owner), quota)]);
            } else {
                show(args.json, header(&owner), &[]);
            }
        }
        "delete" | "del" => runtime.block_on(quotas()?.remove(&wanted()?)).map_err(explain)?,
        "list" | "ls" => {
            let all = runtime.block_on(quotas()?.list()).map_err(explain)?;
            let name = owner.as_ref().map(listed);
            let rows: Vec<_> = all.into_iter().filter(|named| name.as_ref().is_none_or(|name| named.name == *name)).collect();
            show(args.json, "Path/ID", &rows.into_iter().map(|named| (named.name, named.quota)).collect::<Vec<_>>());
        }
        "check" => {
            let checked = runtime.block_on(quotas()?.check(owner.as_ref(), args.repair)).map_err(explain)?;
            return report(&checked, args.repair, args.json);
        }
        other => bail!("quota {other}: set, get, delete, list and check are known"),
    }
    Ok(())
}

fn report(checked: &[Checked], repair: bool, json: bool) -> anyhow::Result<()> {
    let mut wrong = 0;
    if json {
        let document = |found: &Checked| {
            let mut document = document(&found.name, &found.quota);
            document["Stored"] = json!({ "Space": found.stored.space, "Inodes": found.stored.inodes });
            document["Consistent"] = json!(found.is_consistent());
            document
        };
        say(&Value::from(checked.iter().map(document).collect::<Vec<_>>()).to_string());
    }
    for found in checked {
        if found.is_consistent() {
            info!("quota of {} is consistent", found.name);
            continue;
        }
        let text = |usage: &Usage| {
            format!("({}, {})", count_shown(usage.inodes.max(0).unsigned_abs()), human_bytes(usage.space.max(0).unsigned_abs()))
        };
        warn!("{}: quota{} != summary{}", found.name, text(&found.stored), text(&found.quota.used));
        wrong += 1;
        if repair {
            info!("repairing...");
        }
    }
    if wrong == 0 || repair {
        let is_dir = checked.iter().any(|found| found.name.starts_with('/'));
        let rows: Vec<_> = checked.iter().map(|found| (found.name.clone(), found.quota)).collect();
        if !json {
            show(false, if is_dir { "Path" } else { "Path/ID" }, &rows);
        }
        return Ok(());
    }
    match checked {
        [one] => bail!("quota of {} is inconsistent, please repair it with --repair flag", one.name),
        _ => bail!("{wrong} quotas are inconsistent, please repair them with --repair flag"),
    }
}

fn owner(args: &Args) -> anyhow::Result<Option<Owner>> {
    let id = |option: &str, text: &String| text.parse::<u32>().map_err(|_| invalid(text, option, "a number is wanted"));
    let given = [("--uid", args.uid.is_some()), ("--gid", args.gid.is_some()), ("--path", args.path.is_some())];
    let given: Vec<&str> = given.into_iter().filter_map(|(name, is)| is.then_some(name)).collect();
    if let [one, other, ..] = given[..] {
        bail!("Cannot specify both {one} and {other} at the same time");
    }
    Ok(match (&args.path, &args.uid, &args.gid) {
        (Some(path), ..) => Some(Owner::Path(format!("/{}", path.trim_matches('/')))),
        (_, Some(uid), _) => match id("uid", uid)? {
            0 => bail!("Invalid --uid: 0 is not allowed"),
            uid => Some(Owner::User(uid)),
        },
        (.., Some(gid)) => Some(Owner::Group(id("gid", gid)?)),
        _ => None,
    })
}

fn header(owner: &Owner) -> &'static str {
    match owner {
        Owner::Path(_) => "Path",
        Owner::User(_) => "User ID",
        Owner::Group(_) => "Group ID",
    }
}

fn shown(owner: &Owner) -> String {
    match owner {
        Owner::Path(path) => path.clone(),
        Owner::User(id) | Owner::Group(id) => id.to_string(),
    }
}

fn listed(owner: &Owner) -> String {
    match owner {
        Owner::Path(path) => path.clone(),
        Owner::User(id) => format!("uid:{id}"),
        Owner::Group(id) => format!("gid:{id}"),
    }
}

/// A quota for programs; a limit that is not set is `null`.
fn document(name: &str, Quota { max, used }: &Quota) -> Value {
    let limit = |max: i64| (max > 0).then_some(max);
    json!({
        "Name": name, "Space": limit(max.space), "UsedSpace": used.space, "Inodes": limit(max.inodes), "UsedInodes": used.inodes,
    })
}

fn show(json: bool, first: &str, rows: &[(String, Quota)]) {
    if json {
        say(&Value::from(rows.iter().map(|(name, quota)| document(name, quota)).collect::<Vec<_>>()).to_string());
        return;
    }
    if rows.is_empty() {
        return;
    }
    let part = |max: i64, used: i64, text: &dyn Fn(u64) -> String| {
        let used = used.max(0).unsigned_abs();
        match u64::try_from(max) {
            Ok(max @ 1..) => [text(max), text(used), format!("{}%", u128::from(used) * 100 / u128::from(max))],
            _ => ["unchanged".into(), text(used), String::new()],
        }
    };
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|(name, Quota { max, used })| {
            let space = part(max.space, used.space, &human_bytes);
            let inodes = part(max.inodes, used.inodes, &count_shown);
            [vec![name.clone()], space.into(), inodes.into()].concat()
        })
        .collect();
    say(table_left(&[first, "Size", "Used", "Use%", "Inodes", "IUsed", "IUse%"], &rows).trim_end());
}
