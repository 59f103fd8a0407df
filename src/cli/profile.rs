//! `pando profile MOUNTPOINT|LOGFILE`: which requests take the time (cli §5.4). A mount tells what it counts; an access log, as JuiceFS writes
//! it, is summed up.

use crate::cli::stats::{interval, mount_at};
use crate::cli::{invalid, say, value};
use crate::env::{Clock, SystemClock};
use crate::types::Civil;
use anyhow::{Context, anyhow, bail};
use clap::ArgAction;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where a volume is mounted, or an access log.
    #[arg(value_name = "MOUNTPOINT|LOGFILE")]
    source: String,
    /// Only requests of these users of an access log, between commas.
    #[arg(long, short = 'u', value_name = "UIDS")]
    uid: Option<String>,
    /// Only of these groups.
    #[arg(long, short = 'g', value_name = "GIDS")]
    gid: Option<String>,
    /// Only of these processes.
    #[arg(long, short = 'p', value_name = "PIDS")]
    pid: Option<String>,
    /// Seconds between two tables of a mount [default: 2].
    #[arg(long, value_name = "DURATION")]
    interval: Option<String>,
    /// Tables shown of a mount; 0 = until it is interrupted [default: 0].
    #[arg(long, short = 'c', value_name = "N")]
    count: Option<String>,
    /// Each table as a JSON object.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

/// How often something was done, and how long all of it took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sum {
    count: u64,
    micros: f64,
}

type Sums = BTreeMap<String, Sum>;

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let filters = [("uid", &args.uid), ("gid", &args.gid), ("pid", &args.pid)];
    if std::fs::metadata(&args.source).with_context(|| format!("open {:?}", args.source))?.is_file() {
        if args.count.is_some() || args.interval.as_ref().is_some_and(|text| text != "0") {
            bail!("--interval and --count are for mounts; a log is summed up at once");
        }
        let mut wanted = Vec::new();
        for (name, text) in filters {
            if let Some(text) = text {
                let ids: Result<Vec<u64>, _> = text.split(',').map(|id| id.trim().parse()).collect();
                wanted.push((name, ids.map_err(|_| invalid(text, name, "numbers between commas are wanted"))?));
            }
        }
        let file = File::open(&args.source).with_context(|| format!("open {:?}", args.source))?;
        let sums = of_log(BufReader::new(file), &wanted).with_context(|| format!("read {:?}", args.source))?;
        if sums.is_empty() {
            bail!("{:?} has no line of an access log that is asked for", args.source);
        }
        show(&sums, "all of the log", args.json);
        return Ok(());
    }
    if let Some((name, _)) = filters.iter().find(|(_, text)| text.is_some()) {
        bail!("--{name} is for access logs: a mount does not count who its requests came from");
    }
    let count = value("count", args.count.as_ref(), 0, |text| text.parse::<u64>().map_err(|_| "a number is wanted".into()))?;
    let interval = interval(args.interval.as_ref(), 2)?;
    let mount = mount_at(&args.source)?;
    let look = || mount.stats().map(|stats| of_mount(&stats)).map_err(|why| anyhow!("{}: {why}", args.source));
    let mut before = look()?;
    for table in 1.. {
        std::thread::sleep(interval);
        let now = look()?;
        show(&grown(&before, &now), &format!("Refresh: {} seconds", interval.as_secs_f64()), args.json);
        if table == count {
            break;
        }
        before = now;
    }
    Ok(())
}

/// What a mount has counted of each kind of request.
fn of_mount(stats: &HashMap<String, f64>) -> Sums {
    let counts = stats.iter().filter_map(|(name, count)| Some((name.strip_prefix("juicefs_fuse_ops_total_")?, *count)));
    let sums = counts.map(|(method, count)| {
        let seconds = stats.get(&format!("juicefs_fuse_ops_durations_seconds_{method}")).copied().unwrap_or(0.0);
        (method.to_owned(), Sum { count: count as u64, micros: seconds * 1e6 })
    });
    sums.collect()
}

fn grown(before: &Sums, now: &Sums) -> Sums {
    let sums = now.iter().map(|(method, now)| {
        let before = before.get(method).copied().unwrap_or_default();
        (method.clone(), Sum { count: now.count.saturating_sub(before.count), micros: (now.micros - before.micros).max(0.0) })
    });
    sums.filter(|(_, sum)| sum.count > 0).collect()
}

/// Lines such as `2026.11.21 05:14:27.123456 [uid:0,gid:0,pid:4403] write (17,8192,0,1): OK <0.000010>`; others are passed over.
fn of_log(log: impl BufRead, wanted: &[(&str, Vec<u64>)]) -> std::io::Result<Sums> {
    let mut sums = Sums::new();
    for line in log.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let Some((who, method, micros)) = parts(&line) else { continue };
        let id = |name: &str| who.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix(':')?.parse::<u64>().ok());
        if wanted.iter().all(|(name, ids)| id(name).is_some_and(|id| ids.contains(&id))) {
            let sum = sums.entry(method.to_owned()).or_default();
            sum.count += 1;
            sum.micros += micros;
        }
    }
    Ok(sums)
}

fn parts(line: &str) -> Option<(&str, &str, f64)> {
    let (who, rest) = line.split_once('[')?.1.split_once("] ")?;
    let method = rest.split([' ', '(']).next().filter(|method| !method.is_empty())?;
    let seconds: f64 = rest.trim_end().strip_suffix('>')?.rsplit_once('<')?.1.parse().ok()?;
    Some((who, method, seconds * 1e6))
}

fn sorted(sums: &Sums) -> Vec<(&str, Sum)> {
    let mut rows: Vec<_> = sums.iter().map(|(method, sum)| (method.as_str(), *sum)).collect();
    rows.sort_by(|a, b| b.1.micros.total_cmp(&a.1.micros).then(a.0.cmp(b.0)));
    rows
}

fn show(sums: &Sums, title: &str, json: bool) {
    let now = Civil::of(SystemClock::new().now().sec).rfc3339();
    if json {
        let row = |(method, sum): (&str, Sum)| json!({ "Operation": method, "Count": sum.count, "Micros": sum.micros.round() });
        let rows: Vec<Value> = sorted(sums).into_iter().map(row).collect();
        return say(&json!({ "Time": now, "Operations": rows }).to_string());
    }
    say(&format!("\n> Profiling                {title}  {now}"));
    say(&table(sums));
}

fn table(sums: &Sums) -> String {
    let all: f64 = sums.values().map(|sum| sum.micros).sum();
    let mut text = format!("{:<17}{:>8}{:>16}{:>19}{:>15}", "Operation", "Count", "Average(us)", "Total(us)", "Percent(%)");
    for (method, Sum { count, micros }) in sorted(sums) {
        let percent = if all > 0.0 { micros * 100.0 / all } else { 0.0 };
        text += &format!("\n{method:<17}{count:>8}{:>16.0}{micros:>19.0}{percent:>15.1}", micros / count.max(1) as f64);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026.11.21 05:14:27.123456 [uid:0,gid:0,pid:10] write (17,8192,0,1): OK <0.000010>\n\
                       2026.11.21 05:14:27.123457 [uid:1000,gid:5,pid:11] write (17,8192,0,1): OK <0.000030>\n\
                       2026.11.21 05:14:28 [uid:0,gid:0,pid:10] lookup (1,a] <x>): no such file or directory <0.000060>\n\
                       #\nnonsense\n[uid:0,gid:0,pid:1] open\n";

    #[test]
    fn a_log_is_summed_up() {
        let all = of_log(LOG.as_bytes(), &[]).unwrap();
        assert_eq!(
            all.iter().map(|(method, sum)| (method.as_str(), sum.count, sum.micros.round())).collect::<Vec<_>>(),
            [("lookup", 1, 60.0), ("write", 2, 40.0)]
        );
        let count = |wanted: &[(&str, Vec<u64>)]| of_log(LOG.as_bytes(), wanted).unwrap().values().map(|sum| sum.count).sum::<u64>();
        assert_eq!(count(&[("uid", vec![0])]), 2);
        assert_eq!(count(&[("uid", vec![0, 1000]), ("pid", vec![11])]), 1);
        assert_eq!(count(&[("gid", vec![7])]), 0);
        let expected = "Operation           Count     Average(us)          Total(us)     Percent(%)\n\
                        lookup                  1              60                 60           60.0\n\
                        write                   2              20                 40           40.0";
        assert_eq!(table(&all), expected);
    }

    #[test]
    fn of_a_mount_what_was_added_counts() {
        let stats = |count: f64, seconds: f64| {
            HashMap::from([
                ("juicefs_fuse_ops_total_read".to_string(), count),
                ("juicefs_fuse_ops_durations_seconds_read".to_string(), seconds),
                ("juicefs_fuse_ops_total_open".to_string(), 1.0),
                ("juicefs_memory".to_string(), 1.0),
            ])
        };
        let found = grown(&of_mount(&stats(2.0, 0.5)), &of_mount(&stats(5.0, 2.0)));
        assert_eq!(found, Sums::from([("read".into(), Sum { count: 3, micros: 1.5e6 })]));
    }
}
