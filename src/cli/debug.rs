//! `pando debug MOUNTPOINT`: what somebody needs who is to find out what is wrong with a mount, in a directory and an archive (cli §5.5).
//! Secrets are in none of it: the setting is shown without them, and a process hides those of its command line.

use crate::cli::stats::mount_at;
use crate::cli::zip::Zip;
use crate::cli::{ask, invalid, say, value, values, version_line};
use crate::daemon::Last;
use crate::env::{Clock, SystemClock};
use crate::types::Civil;
use anyhow::{Context, bail};
use serde_json::json;
use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::{info, warn};

/// Most bytes of the end of a log that are looked at: a hundred times what 5000 lines take.
const LOG_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the volume is mounted.
    mountpoint: String,
    /// Directory in which the results are placed [default: debug].
    #[arg(long, value_name = "DIR")]
    out_dir: Option<String>,
    /// Lines of the end of the log [default: 5000].
    #[arg(long, value_name = "N")]
    limit: Option<String>,
    /// Seconds between two looks at what the mount counts [default: 5].
    #[arg(long, value_name = "SECONDS")]
    stats_sec: Option<String>,
}

/// Where it is collected.
struct Collection {
    dir: PathBuf,
    names: Vec<String>,
}

impl Collection {
    fn add(&mut self, name: &str, content: impl AsRef<[u8]>) -> anyhow::Result<()> {
        let path = self.dir.join(name);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let written = file.as_mut().map_err(|error| std::io::Error::from(error.kind())).and_then(|file| file.write_all(content.as_ref()));
        written.with_context(|| format!("write {}", path.display()))?;
        self.names.push(name.into());
        Ok(())
    }

    /// What cannot be had is told in its place: the rest may be enough.
    fn add_if(&mut self, name: &str, content: Result<String, String>) -> anyhow::Result<()> {
        let content = content.unwrap_or_else(|why| {
            warn!("{name}: {why}");
            format!("not available: {why}\n")
        });
        self.add(name, content)
    }

    /// Packs all of it beside the directory.
    fn pack(&self) -> anyhow::Result<PathBuf> {
        let path = self.dir.with_extension("zip");
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let mut zip = Zip::new(file.with_context(|| format!("write {}", path.display()))?);
        let top = self.dir.file_name().and_then(|name| name.to_str()).unwrap_or("debug");
        for name in &self.names {
            zip.add(&format!("{top}/{name}"), &fs::read(self.dir.join(name))?)?;
        }
        zip.finish()?.sync_all()?;
        Ok(path)
    }
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let limit = value("limit", args.limit.as_ref(), 5000, |text| text.parse::<usize>().map_err(|_| "a number is wanted".into()))?;
    let seconds = value("stats-sec", args.stats_sec.as_ref(), Duration::from_secs(5), values::duration)?;
    let mount = mount_at(&args.mountpoint)?;
    let Some(pid) = mount.pid() else {
        bail!("{} is no mount of this program on this host", args.mountpoint);
    };
    let place = fs::canonicalize(&args.mountpoint)?;
    let text = place.to_str().ok_or_else(|| invalid(&args.mountpoint, "MOUNTPOINT", "its path is no UTF-8"))?;
    let Civil { year, month, day, hour, minute, second } = Civil::of(SystemClock::new().now().sec);
    let name = format!(
        "{}-{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}",
        text.trim_matches('/').replace('/', "-").replace('.', "_")
    );
    let dir = Path::new(args.out_dir.as_deref().unwrap_or("debug")).join(name);
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    // Names of files are in it.
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
    let mut collection = Collection { dir, names: Vec::new() };
    collection.add("system-info.log", system(pid, text))?;
    collection.add_if("config.txt", setting(text))?;
    collection.add("process.txt", process(pid))?;
    collection.add("threads.txt", threads(pid))?;
    collection.add_if("stats.txt", mount.text())?;
    info!("waiting {} seconds for a second look ...", seconds.as_secs_f64());
    std::thread::sleep(seconds);
    collection.add_if(&format!("stats.{}s.txt", seconds.as_secs_f64()), mount.text())?;
    collection.add("threads.later.txt", threads(pid))?;
    collection.add_if("pando.log", log(pid, limit))?;
    let archive = collection.pack()?;
    say(&format!("{}\n{}", collection.dir.display(), archive.display()));
    Ok(())
}

fn setting(mountpoint: &str) -> Result<String, String> {
    let answer = ask::about(mountpoint, Last::Followed, json!({ "Command": "config" })).map_err(|error| error.to_string())?;
    serde_json::to_string_pretty(&answer).map_err(|error| error.to_string())
}

fn read(path: impl AsRef<Path>) -> String {
    match fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).replace('\0', " "),
        Err(error) => format!("{}: {error}\n", path.as_ref().display()),
    }
}

fn system(pid: u32, mountpoint: &str) -> String {
    let mut text = format!("{}\n{}", version_line(), read("/proc/version"));
    text += &format!("uptime {}load {}", read("/proc/uptime"), read("/proc/loadavg"));
    text += &read("/etc/os-release");
    let cpus = read("/proc/cpuinfo").lines().filter(|line| line.starts_with("model name")).count();
    text += &format!("{cpus} processors\n{}", read("/proc/meminfo"));
    for line in read("/proc/mounts").lines().filter(|line| line.split(' ').nth(1) == Some(mountpoint)) {
        text += &format!("mount: {line}\n");
    }
    text + &format!("process {pid}: {}\n", read(format!("/proc/{pid}/cmdline")).trim_end())
}

fn process(pid: u32) -> String {
    let mut text = String::new();
    for file in ["status", "limits", "io", "smaps_rollup", "cgroup", "mountinfo"] {
        text += &format!("== {file}\n{}\n", read(format!("/proc/{pid}/{file}")));
    }
    let open: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().collect();
    text += &format!("== fd\n{} open\n", open.len());
    for entry in open {
        let target = fs::read_link(entry.path()).map_or_else(|error| error.to_string(), |target| target.display().to_string());
        text += &format!("{} {target}\n", entry.file_name().to_string_lossy());
    }
    text
}

/// What every thread is doing: its name, its state and times, and where in the kernel it waits.
fn threads(pid: u32) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let of = |file: &str| read(entry.path().join(file));
        text += &format!("{} wchan {}\nsyscall {}{}\n", of("stat").trim_end(), of("wchan"), of("syscall"), of("stack"));
    }
    text
}

/// The last lines of the log, if the process writes one into a file.
fn log(pid: u32, limit: usize) -> Result<String, String> {
    let path = format!("/proc/{pid}/fd/2");
    let target = fs::read_link(&path).map_err(|error| format!("{path}: {error}"))?;
    if !fs::metadata(&path).is_ok_and(|found| found.is_file()) {
        return Err(format!("the log goes to {}, which is no file", target.display()));
    }
    last_lines(&target, limit).map_err(|error| format!("{}: {error}", target.display()))
}

fn last_lines(path: &Path, limit: usize) -> std::io::Result<String> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_MAX)))?;
    let mut lines = VecDeque::new();
    for line in BufReader::new(file.take(LOG_BYTES_MAX)).split(b'\n') {
        if lines.len() >= limit {
            lines.pop_front();
        }
        lines.push_back(line?);
    }
    let lines: Vec<String> = lines.iter().take(limit).map(|line| format!("{}\n", String::from_utf8_lossy(line))).collect();
    Ok(lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "1\n2\n3\n").unwrap();
        assert_eq!(last_lines(&path, 2).unwrap(), "2\n3\n");
        assert_eq!(last_lines(&path, 9).unwrap(), "1\n2\n3\n");
        assert_eq!(last_lines(&path, 0).unwrap(), "");
    }
}
