//! What the process of a mount counts, for `bench`, `stats`, `profile` and `debug`: a mount of ours is asked for it, of one of JuiceFS `.stats`
//! in its root is read. Names are those of that file: labels but the method are left out.

use crate::cli::ask;
use crate::daemon::{Last, Record};
use crate::env::mounted_at;
use serde_json::json;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Ticks of the processor times in `/proc`, per second, on every Linux.
const TICKS: f64 = 100.0;

/// The mount a directory is in.
pub struct Counted {
    root: PathBuf,
    /// Who serves it, if it is one of ours on this host.
    pid: Option<u32>,
}

/// What it has done and used until now.
#[derive(Default)]
pub struct Look {
    /// By name.
    pub stats: HashMap<String, f64>,
    cpu_seconds: Option<f64>,
    resident_bytes: u64,
}

impl Counted {
    /// Of any path that exists.
    pub fn of(dir: &Path) -> Counted {
        use std::os::unix::fs::MetadataExt;
        let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
        let here = device(dir);
        let root = dir.ancestors().take_while(|above| device(above) == here).last().unwrap_or(dir).to_path_buf();
        let entry = mounted_at(&root).ok().flatten();
        Counted { root, pid: entry.and_then(|entry| Record::find(&entry)).map(|record| record.pid) }
    }

    /// The process, if it is one of ours on this host.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// The text for Prometheus of a mount of ours, or `.stats` of another; why there is neither.
    pub fn text(&self) -> Result<String, String> {
        if self.pid.is_none() {
            let path = self.root.join(".stats");
            return fs::read_to_string(&path)
                .map_err(|error| format!("{} is no mount that tells what it does: {error}", self.root.display()));
        }
        let root = self.root.to_str().ok_or("its path is no UTF-8")?;
        let answer = ask::about(root, Last::Followed, json!({ "Command": "metrics" })).map_err(|error| error.to_string())?;
        Ok(answer["Page"].as_str().unwrap_or_default().to_owned())
    }

    /// The numbers; why there are none.
    pub fn stats(&self) -> Result<HashMap<String, f64>, String> {
        let text = self.text()?;
        Ok(if self.pid.is_some() { page(&text) } else { parse(&text) })
    }

    /// The numbers, as far as there are any, and what the process has used.
    pub fn look(&self) -> Look {
        let mut look = Look { stats: self.stats().unwrap_or_default(), ..Look::default() };
        if let Some(pid) = self.pid {
            let of = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            (look.cpu_seconds, look.resident_bytes) = (cpu_seconds(&of("stat")), resident_bytes(&of("status")));
        } else {
            look.cpu_seconds = look.stats.get("juicefs_cpu_usage").copied();
            look.resident_bytes = look.stats.get("juicefs_memory").copied().unwrap_or(0.0) as u64;
        }
        look
    }
}

impl Look {
    /// Processor and memory, for the end of a line.
    pub fn shown(&self, before: &Look, elapsed: Duration) -> String {
        let (Some(now), Some(then)) = (self.cpu_seconds, before.cpu_seconds) else { return String::new() };
        let percent = (now - then) * 100.0 / elapsed.as_secs_f64();
        format!(", CPU: {percent:.1}%, Memory: {:.1} MiB", self.resident_bytes as f64 / f64::from(1 << 20))
    }
}

/// Processor time of a process, from its `stat`: the second field is its name in parentheses and may hold anything.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS)
}

fn resident_bytes(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// `.stats`: a name and a number each line. The same name stands there once for each label that is left out.
pub fn parse(text: &str) -> HashMap<String, f64> {
    let mut stats = HashMap::new();
    for (name, number) in text.lines().filter_map(|line| line.split_once(' ')) {
        if let Ok(number) = number.trim().parse::<f64>() {
            *stats.entry(name.to_string()).or_default() += number;
        }
    }
    stats
}

/// The same of a page for Prometheus: histograms are counts and sums, and of the labels only the method matters.
fn page(text: &str) -> HashMap<String, f64> {
    let line = |line: &str| {
        let (name, number) = line.rsplit_once(' ')?;
        let (name, labels) = name.split_once('{').unwrap_or((name, ""));
        let (name, what) = match (name.strip_suffix("_count"), name.strip_suffix("_sum"), name.strip_suffix("_bucket")) {
            (Some(name), ..) => (name, "_total"),
            (_, Some(name), _) => (name, "_sum"),
            (.., Some(_)) => return None,
            _ => (name, ""),
        };
        let method = labels
            .split_once("method=\"")
            .and_then(|(_, rest)| rest.split('"').next())
            .map_or(String::new(), |method| format!("_{method}"));
        Some((format!("{name}{method}{what}"), number.parse::<f64>().ok()?))
    };
    let mut stats = HashMap::new();
    for (name, number) in text.lines().filter(|line| !line.starts_with('#')).filter_map(line) {
        *stats.entry(name).or_default() += number;
    }
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_the_same() {
        let text = "# TYPE juicefs_fuse_ops_durations_histogram_seconds histogram\n\
                    juicefs_fuse_ops_durations_histogram_seconds_bucket{le=\"+Inf\"} 3\n\
                    juicefs_fuse_ops_durations_histogram_seconds_sum 0.5\njuicefs_fuse_ops_durations_histogram_seconds_count 3\n\
                    juicefs_fuse_ops_total{method=\"read\"} 3\njuicefs_memory{} 4096\n\
                    juicefs_object_request_durations_histogram_seconds_count{method=\"PUT\",storage_class=\"\"} 2\n";
        let same = "juicefs_fuse_ops_durations_histogram_seconds_sum 0.5\njuicefs_fuse_ops_durations_histogram_seconds_total 3\n\
                    juicefs_fuse_ops_total_read 3\njuicefs_memory 4096\njuicefs_object_request_durations_histogram_seconds_PUT_total 2\n";
        assert_eq!(page(text), parse(same));
    }

    #[test]
    fn what_a_process_has_used() {
        assert_eq!(cpu_seconds("7 (a (b) c) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 9 0"), Some(2.0));
        assert_eq!(cpu_seconds(""), None);
        assert_eq!(resident_bytes("VmPeak:\t 9 kB\nVmRSS:\t    2048 kB\n"), 2 << 20);
        let look = |cpu_seconds| Look { cpu_seconds, resident_bytes: 3 << 19, ..Look::default() };
        assert_eq!(look(Some(2.0)).shown(&look(Some(1.5)), Duration::from_secs(2)), ", CPU: 25.0%, Memory: 1.5 MiB");
        assert_eq!(look(None).shown(&look(None), Duration::from_secs(2)), "");
    }
}
