//! `pando stats MOUNTPOINT`: what a mount does, a line each second (cli §5.3, §16.4).

use crate::cli::counted::Counted;
use crate::cli::{invalid, say, value, values};
use crate::env::{Clock, SystemClock, instant};
use anyhow::{anyhow, bail};
use clap::ArgAction;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use tracing::warn;

/// Lines between two headers, so that one is always on the screen.
const LINES: u64 = 30;
/// Width of a number in characters.
const WIDTH: usize = 5;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the volume is mounted.
    mountpoint: String,
    /// Sections shown: t time, u usage, f fuse, m meta, c blockcache, o object [default: ufmco].
    #[arg(long, value_name = "LETTERS")]
    schema: Option<String>,
    /// Seconds between two lines [default: 1].
    #[arg(long, value_name = "DURATION")]
    interval: Option<String>,
    /// 1 shows more numbers [default: 0].
    #[arg(long, short = 'l', value_name = "N")]
    verbosity: Option<String>,
    /// Lines shown; 0 = until it is interrupted [default: 0].
    #[arg(long, short = 'c', value_name = "N")]
    count: Option<String>,
    /// Each line as a JSON object with all numbers: rates a second, bytes, milliseconds, percent.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

/// How a number is made of what is counted.
#[derive(Clone, Copy)]
enum Number {
    /// Seconds of processor time, as percent of one processor.
    Percent(&'static str),
    /// Bytes at the moment.
    Now(&'static str),
    /// How many a second.
    Rate(&'static str),
    /// Bytes a second.
    Flow(&'static str),
    /// Mean milliseconds of one, of a histogram; the part of the name before the method, and the method.
    Mean(&'static str, &'static str),
    /// How many a second of all methods.
    RateOfAll(&'static str),
}

/// A column: its title, its name in JSON, whether it is shown only on demand, and its number.
type Column = (&'static str, &'static str, bool, Number);

struct Section {
    letter: char,
    title: &'static str,
    columns: &'static [Column],
}

use Number::{Flow, Mean, Now, Percent, Rate, RateOfAll};

const OBJECT: &str = "object_request_durations_histogram_seconds";

const SECTIONS: &[Section] = &[
    Section {
        letter: 'u',
        title: "usage",
        columns: &[
            ("cpu", "CpuPercent", false, Percent("cpu_usage")),
            ("mem", "MemoryBytes", false, Now("memory")),
            ("buf", "BufferBytes", false, Now("used_buffer_size_bytes")),
            ("cache", "CacheBytes", true, Now("store_cache_size_bytes")),
        ],
    },
    Section {
        letter: 'f',
        title: "fuse",
        columns: &[
            ("ops", "FuseOps", false, Rate("fuse_ops_durations_histogram_seconds_total")),
            ("lat", "FuseMillis", false, Mean("fuse_ops_durations_histogram_seconds", "")),
            ("read", "FuseReadBytes", false, Flow("fuse_read_size_bytes_sum")),
            ("write", "FuseWrittenBytes", false, Flow("fuse_written_size_bytes_sum")),
        ],
    },
    Section {
        letter: 'm',
        title: "meta",
        columns: &[
            ("ops", "MetaOps", false, Rate("meta_ops_durations_histogram_seconds_total")),
            ("lat", "MetaMillis", false, Mean("meta_ops_durations_histogram_seconds", "")),
            ("txn", "Transactions", true, Rate("transaction_durations_histogram_seconds_total")),
            ("lat", "TransactionMillis", true, Mean("transaction_durations_histogram_seconds", "")),
            ("retry", "Restarts", true, RateOfAll("transaction_restart")),
        ],
    },
    Section {
        letter: 'c',
        title: "blockcache",
        columns: &[
            ("read", "CacheHitBytes", false, Flow("blockcache_hit_bytes")),
            ("write", "CacheWrittenBytes", false, Flow("blockcache_write_bytes")),
        ],
    },
    Section {
        letter: 'o',
        title: "object",
        columns: &[
            ("get", "GetBytes", false, Flow("object_request_data_bytes_GET")),
            ("get_c", "Gets", true, Rate("object_request_durations_histogram_seconds_GET_total")),
            ("lat", "GetMillis", true, Mean(OBJECT, "_GET")),
            ("put", "PutBytes", false, Flow("object_request_data_bytes_PUT")),
            ("put_c", "Puts", true, Rate("object_request_durations_histogram_seconds_PUT_total")),
            ("lat", "PutMillis", true, Mean(OBJECT, "_PUT")),
            ("del_c", "Deletes", true, Rate("object_request_durations_histogram_seconds_DELETE_total")),
            ("lat", "DeleteMillis", true, Mean(OBJECT, "_DELETE")),
        ],
    },
];

/// The section of the time, which no mount counts.
const TIME: char = 't';

/// A moment and what was counted by then.
struct Sample {
    stats: HashMap<String, f64>,
    /// Seconds since the one before; 0 for the first.
    seconds: f64,
}

/// The root of a mount; a path that is none is refused.
pub fn mount_at(path: &str) -> anyhow::Result<Counted> {
    let found = std::fs::metadata(path).map_err(|error| anyhow!("{path:?}: {}", crate::types::Errno::from(error).text()))?;
    if found.ino() != 1 {
        bail!("path {path:?} is not a mount point");
    }
    Ok(Counted::of(&std::fs::canonicalize(path)?))
}

/// An interval of at least a hundredth of a second: less would only measure the asking.
pub fn interval(text: Option<&String>, default: u64) -> anyhow::Result<Duration> {
    let least = Duration::from_millis(10);
    value("interval", text, Duration::from_secs(default), |text| match values::duration(text)? {
        time if time >= least => Ok(time),
        _ => Err("a duration of at least 0.01 is wanted".into()),
    })
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let number = |option: &str, text: Option<&String>| {
        value(option, text, 0, |text| text.parse::<u64>().map_err(|_| "a number is wanted".to_string()))
    };
    let (more, count) = (number("verbosity", args.verbosity.as_ref())? > 0, number("count", args.count.as_ref())?);
    let interval = interval(args.interval.as_ref(), 1)?;
    let letters = args.schema.as_deref().unwrap_or("ufmco");
    let mut shown = Vec::new();
    let mut is_timed = false;
    for letter in letters.chars() {
        match SECTIONS.iter().find(|section| section.letter == letter) {
            Some(section) => shown.push(section),
            None if letter == TIME => is_timed = true,
            None => warn!("no item defined for {letter}"),
        }
    }
    if shown.is_empty() && !is_timed {
        return Err(invalid(letters, "schema", "t, u, f, m, c and o name sections"));
    }
    let mount = mount_at(&args.mountpoint)?;
    let why = |error| anyhow!("{}: {error}", args.mountpoint);
    let (mut before, mut taken) = (mount.stats().map_err(why)?, instant());
    // Rates need two moments: the first line has none.
    let mut sample = Sample { stats: before.clone(), seconds: 0.0 };
    for line in 0.. {
        let time = SystemClock::new().now().sec;
        if args.json {
            say(&document(&before, &sample, time).to_string());
        } else {
            if line % LINES == 0 {
                say(&header(&shown, is_timed, more));
            }
            say(&row(&shown, is_timed.then_some(time), more, &before, &sample));
        }
        if line + 1 == count {
            break;
        }
        std::thread::sleep(interval);
        let stats = mount.stats().map_err(why)?;
        let seconds = taken.elapsed().as_secs_f64();
        taken = instant();
        before = std::mem::replace(&mut sample, Sample { stats, seconds }).stats;
    }
    Ok(())
}

/// `None` if there is nothing to divide by.
fn measure(number: Number, before: &HashMap<String, f64>, now: &Sample) -> Option<f64> {
    let at = |stats: &HashMap<String, f64>, name: &str| stats.get(&format!("juicefs_{name}")).copied().unwrap_or(0.0);
    let grown = |name: &str| at(&now.stats, name) - at(before, name);
    let rate = |grown: f64| (now.seconds > 0.0).then(|| grown / now.seconds);
    match number {
        Percent(name) => rate(grown(name)).map(|rate| rate * 100.0),
        Now(name) => Some(at(&now.stats, name)),
        Rate(name) | Flow(name) => rate(grown(name)),
        Mean(name, method) => {
            let count = grown(&format!("{name}{method}_total"));
            (count > 0.0).then(|| grown(&format!("{name}{method}_sum")) * 1000.0 / count)
        }
        RateOfAll(name) => {
            let prefix = format!("juicefs_{name}");
            let sum =
                |stats: &HashMap<String, f64>| stats.iter().filter(|(name, _)| name.starts_with(&prefix)).map(|(_, n)| n).sum::<f64>();
            rate(sum(&now.stats) - sum(before))
        }
    }
}

fn document(before: &HashMap<String, f64>, sample: &Sample, time: i64) -> Value {
    let mut document = Map::from_iter([("Time".to_string(), json!(crate::types::Civil::of(time).rfc3339()))]);
    for (_, name, _, number) in SECTIONS.iter().flat_map(|section| section.columns) {
        document.insert((*name).into(), json!(measure(*number, before, sample).unwrap_or(0.0)));
    }
    document.into()
}

fn columns(section: &Section, more: bool) -> impl Iterator<Item = &Column> {
    section.columns.iter().filter(move |(_, _, on_demand, _)| more || !on_demand)
}

/// In the middle of so many characters; the odd one stands in front.
fn centred(text: &str, width: usize, fill: &str) -> String {
    let free = width.saturating_sub(text.chars().count());
    format!("{}{text}{}", fill.repeat(free.div_ceil(2)), fill.repeat(free / 2))
}

fn header(sections: &[&Section], is_timed: bool, more: bool) -> String {
    let (mut titles, mut names) = (Vec::new(), Vec::new());
    if is_timed {
        titles.push(centred("time", 8, "-"));
        names.push(centred("", 8, " "));
    }
    for section in sections {
        let cells: Vec<String> = columns(section, more).map(|(title, ..)| centred(title, WIDTH, " ")).collect();
        titles.push(centred(section.title, cells.len() * (WIDTH + 1) - 1, "-"));
        names.push(cells.join(" "));
    }
    format!("{}\n{}", titles.join(" "), names.join("|"))
}

fn row(sections: &[&Section], time: Option<i64>, more: bool, before: &HashMap<String, f64>, sample: &Sample) -> String {
    let mut cells = Vec::new();
    if let Some(time) = time {
        let crate::types::Civil { hour, minute, second, .. } = crate::types::Civil::of(time);
        cells.push(format!("{hour:02}:{minute:02}:{second:02}"));
    }
    for section in sections {
        let numbers = columns(section, more).map(|(_, _, _, number)| {
            let value = measure(*number, before, sample).unwrap_or(0.0);
            match number {
                Percent(_) => format!("{:>WIDTH$}", format!("{value:.1}%")),
                Now(_) | Flow(_) => scaled(value, 1024.0),
                Rate(_) | RateOfAll(_) => scaled(value, 1000.0),
                Mean(..) => millis(value),
            }
        });
        cells.push(numbers.collect::<Vec<_>>().join(" "));
    }
    cells.join("|")
}

/// Four digits and the letter of the unit.
fn scaled(mut value: f64, step: f64) -> String {
    for unit in [" ", "K", "M", "G", "T", "P"] {
        if value < 9999.5 {
            return format!("{value:>4.0}{unit}");
        }
        value /= step;
    }
    " many".into()
}

/// Four characters of milliseconds.
fn millis(value: f64) -> String {
    match value {
        0.0 => "   0 ".into(),
        ..9.995 => format!("{value:>4.2} "),
        ..99.95 => format!("{value:>4.1} "),
        _ => scaled(value, 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(pairs: &[(&str, f64)]) -> HashMap<String, f64> {
        pairs.iter().map(|(name, number)| (format!("juicefs_{name}"), *number)).collect()
    }

    fn some(letters: &str) -> Vec<&'static Section> {
        SECTIONS.iter().filter(|section| letters.contains(section.letter)).collect()
    }

    #[test]
    fn headers_and_rows_are_as_scripts_read_them() {
        let expected = "------usage------ ----------fuse--------- ----meta--- -blockcache ---object--\n \
                        cpu   mem   buf | ops   lat   read write| ops   lat | read write| get   put ";
        assert_eq!(header(&some("ufmco"), false, false), expected);
        let expected = "---------usage--------- ----------fuse--------- -------------meta------------ -blockcache \
                        ---------------------object--------------------\n cpu   mem   buf  cache| ops   lat   read write| ops   lat   txn   \
                        lat  retry| read write| get  get_c  lat   put  put_c  lat  del_c  lat ";
        assert_eq!(header(&some("ufmco"), false, true), expected);
        let before = stats(&[("cpu_usage", 1.0), ("fuse_ops_durations_histogram_seconds_total", 10.0)]);
        let now = stats(&[
            ("cpu_usage", 1.005),
            ("memory", 59.0 * 1048576.0),
            ("used_buffer_size_bytes", 3968.0 * 1024.0),
            ("fuse_ops_durations_histogram_seconds_total", 24.0),
            ("fuse_ops_durations_histogram_seconds_sum", 0.00238),
            ("object_request_data_bytes_PUT", 5e6),
        ]);
        let sample = Sample { stats: now, seconds: 1.0 };
        let expected = " 0.5%   59M 3968K|  14  0.17     0     0 |   0     0 |   0     0 |   0  4883K";
        assert_eq!(row(&some("ufmco"), None, false, &before, &sample), expected);
        let first = Sample { seconds: 0.0, ..sample };
        let expected = "01:02:03|   0     0     0     0 ";
        assert_eq!(row(&some("f"), Some(3723), false, &first.stats, &first), expected);
        let document = document(&before, &Sample { seconds: 2.0, ..first }, 0);
        assert_eq!((document["FuseOps"].as_f64(), document["MemoryBytes"].as_f64()), (Some(7.0), Some(61_865_984.0)));
    }

    #[test]
    fn restarts_are_those_of_all_operations() {
        let (before, stats) = (
            stats(&[("transaction_restart_write", 1.0)]),
            stats(&[("transaction_restart_write", 3.0), ("transaction_restart_rename", 4.0)]),
        );
        assert_eq!(measure(RateOfAll("transaction_restart"), &before, &Sample { stats, seconds: 2.0 }), Some(3.0));
    }

    #[test]
    fn numbers_take_five_characters() {
        for number in [0.0, 0.004, 9.994, 9.996, 99.96, 123.4, 9999.4, 9999.6, 1e6, 1e15] {
            assert_eq!((scaled(number, 1000.0).len(), millis(number).len()), (WIDTH, WIDTH), "{number}");
        }
        assert_eq!((scaled(1e18, 1024.0).as_str(), scaled(1e30, 1024.0).as_str()), (" 888P", " many"));
    }
}
