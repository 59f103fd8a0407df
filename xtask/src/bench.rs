//! `cargo xtask bench`: the same work in several directories, in turn, with figures and ratios.
//!
//! Without arguments it builds a release binary, mounts a fresh volume, and compares it with a plain directory beside it.
//! With `NAME=DIR…` it compares those directories, whatever is mounted there. Works alternate between the directories, so that a drift
//! of the machine's speed hits all of them; the figure is the median of the rounds.

use anyhow::{Context, Result, bail};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Rounds of each work. Odd, so that the median is one of them.
const ROUNDS: usize = 3;

/// A directory under test.
struct Place {
    name: String,
    dir: PathBuf,
}

/// Seconds or operations per second; the latter are better when larger.
enum Unit {
    PerSecond(&'static str),
    Seconds,
}

struct Work {
    name: &'static str,
    unit: Unit,
    /// Prepares and runs the work in an empty directory, answers the figure.
    run: fn(&Path) -> Result<f64>,
}

const WORKS: &[Work] = &[
    Work { name: "create empty file", unit: Unit::PerSecond("/s"), run: create },
    Work { name: "stat (just created)", unit: Unit::PerSecond("/s"), run: stat },
    Work { name: "write 4 KiB file", unit: Unit::PerSecond("/s"), run: write_small },
    Work { name: "read 4 KiB file", unit: Unit::PerSecond("/s"), run: read_small },
    Work { name: "replace JSON (write, fsync, rename)", unit: Unit::PerSecond("/s"), run: replace_json },
    Work { name: "append 100 B + fsync", unit: Unit::PerSecond("/s"), run: append },
    Work { name: "SQLite insert (journal=delete)", unit: Unit::PerSecond("/s"), run: sqlite },
    Work { name: "rename", unit: Unit::PerSecond("/s"), run: rename },
    Work { name: "unlink", unit: Unit::PerSecond("/s"), run: unlink },
    Work { name: "git clone of 5000 files", unit: Unit::Seconds, run: clone },
    Work { name: "git status (second run)", unit: Unit::Seconds, run: status },
    Work { name: "rm -rf of the clone", unit: Unit::Seconds, run: remove },
    Work { name: "sequential write 256 MiB", unit: Unit::PerSecond(" MiB/s"), run: sequential_write },
    Work { name: "sequential write 256 MiB + fsync", unit: Unit::PerSecond(" MiB/s"), run: sequential_write_synced },
    Work { name: "sequential read 256 MiB", unit: Unit::PerSecond(" MiB/s"), run: sequential_read },
];

/// Files of the small-file works.
const FILES: usize = 2000;
/// Bytes of the large file.
const LARGE: usize = 256 << 20;

/// Runs every work whose name contains the `--only` word in every place.
pub fn run(root: &Path, args: &[String]) -> Result<()> {
    let only = args.iter().find_map(|a| a.strip_prefix("--only=")).unwrap_or_default();
    let mut places: Vec<Place> = args
        .iter()
        .filter(|a| !a.starts_with("--"))
        .map(|a| a.split_once('=').map(|(name, dir)| Place { name: name.into(), dir: dir.into() }))
        .collect::<Option<_>>()
        .context("places are given as NAME=DIR")?;
    let own = if places.is_empty() { Some(OwnMount::start(root)?) } else { None };
    if let Some(own) = &own {
        places.push(Place { name: "host".into(), dir: own.scratch.join("host") });
        places.push(Place { name: "pando".into(), dir: own.scratch.join("mnt") });
    }
    print!("{:<38}", "");
    places.iter().for_each(|p| print!("{:>16}", p.name));
    println!("   ratio to {}", places[0].name);
    for work in WORKS.iter().filter(|w| w.name.contains(only)) {
        let mut figures = vec![Vec::new(); places.len()];
        for round in 0..ROUNDS {
            for (place, figures) in places.iter().zip(&mut figures) {
                let dir = place.dir.join(format!("bench-{}-{round}", std::process::id()));
                fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
                figures.push((work.run)(&dir).with_context(|| format!("{} in {}", work.name, dir.display()))?);
                fs::remove_dir_all(&dir)?;
            }
        }
        let medians: Vec<f64> = figures
            .iter_mut()
            .map(|f| {
                f.sort_by(f64::total_cmp);
                f[f.len() / 2]
            })
            .collect();
        print!("{:<38}", work.name);
        for median in &medians {
            match work.unit {
                Unit::PerSecond(unit) => print!("{:>16}", format!("{median:.0}{unit}")),
                Unit::Seconds => print!("{:>16}", format!("{median:.2} s")),
            }
        }
        for median in &medians[1..] {
            let ratio = match work.unit {
                Unit::PerSecond(_) => median / medians[0],
                Unit::Seconds => medians[0] / median,
            };
            print!("   {ratio:.2}x");
        }
        println!();
    }
    Ok(())
}

/// A fresh volume, mounted for the length of the run.
struct OwnMount {
    scratch: PathBuf,
    daemon: std::process::Child,
}

impl OwnMount {
    fn start(root: &Path) -> Result<OwnMount> {
        crate::run(&mut crate::cargo(&["build", "--release", "--quiet"]))?;
        let scratch = root.join("target/bench");
        let _ = fs::remove_dir_all(&scratch);
        fs::create_dir_all(scratch.join("host"))?;
        fs::create_dir_all(scratch.join("mnt"))?;
        let mut daemon = Command::new(root.join("target/release/pando"))
            .arg("mount")
            .args([scratch.join("volume"), scratch.join("mnt")])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(daemon.stdout.take().expect("piped")), &mut line)?;
        if !line.contains("ready") {
            bail!("the daemon did not get ready: {line}");
        }
        Ok(OwnMount { scratch, daemon })
    }
}

impl Drop for OwnMount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.scratch.join("mnt")).status();
        let _ = self.daemon.wait();
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

fn rate(count: usize, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

fn seconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    rate(1, work).map(|rate| 1.0 / rate)
}

fn create_all(dir: &Path, bytes: &[u8]) -> Result<()> {
    for i in 0..FILES {
        File::create_new(dir.join(format!("f{i}")))?.write_all(bytes)?;
    }
    Ok(())
}

fn create(dir: &Path) -> Result<f64> {
    rate(FILES, || create_all(dir, b""))
}

fn stat(dir: &Path) -> Result<f64> {
    create_all(dir, b"")?;
    rate(5 * FILES, || {
        for i in 0..5 * FILES {
            fs::metadata(dir.join(format!("f{}", i % FILES)))?;
        }
        Ok(())
    })
}

fn write_small(dir: &Path) -> Result<f64> {
    rate(FILES, || create_all(dir, &[7; 4096]))
}

fn read_small(dir: &Path) -> Result<f64> {
    create_all(dir, &[7; 4096])?;
    rate(FILES, || {
        let mut bytes = Vec::new();
        for i in 0..FILES {
            bytes.clear();
            File::open(dir.join(format!("f{i}")))?.read_to_end(&mut bytes)?;
        }
        Ok(())
    })
}

fn replace_json(dir: &Path) -> Result<f64> {
    let count = FILES / 4;
    let text = format!("[{}]", (0..300).map(|i| i.to_string()).collect::<Vec<_>>().join(","));
    rate(count, || {
        for i in 0..count {
            let mut file = File::create(dir.join("tmp"))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(dir.join("tmp"), dir.join(format!("x{}.json", i % 10)))?;
        }
        Ok(())
    })
}

fn append(dir: &Path) -> Result<f64> {
    let count = FILES / 4;
    let mut file = OpenOptions::new().append(true).create(true).open(dir.join("log"))?;
    rate(count, || {
        for _ in 0..count {
            file.write_all(&[b'x'; 100])?;
            file.sync_all()?;
        }
        Ok(())
    })
}

fn sqlite(dir: &Path) -> Result<f64> {
    let count = 200;
    let script = format!("pragma synchronous=full; create table t(a);\n{}", "insert into t values(hex(randomblob(50)));\n".repeat(count));
    rate(count, || {
        let mut child =
            Command::new("sqlite3").arg(dir.join("db")).stdin(Stdio::piped()).spawn().context("sqlite3 (`cargo xtask setup`)")?;
        child.stdin.take().expect("piped").write_all(script.as_bytes())?;
        if !child.wait()?.success() {
            bail!("sqlite3 failed");
        }
        Ok(())
    })
}

fn rename(dir: &Path) -> Result<f64> {
    create_all(dir, b"")?;
    rate(FILES, || {
        for i in 0..FILES {
            fs::rename(dir.join(format!("f{i}")), dir.join(format!("g{i}")))?;
        }
        Ok(())
    })
}

fn unlink(dir: &Path) -> Result<f64> {
    create_all(dir, &[7; 100])?;
    rate(FILES, || {
        for i in 0..FILES {
            fs::remove_file(dir.join(format!("f{i}")))?;
        }
        Ok(())
    })
}

/// A repository of 5000 files, made once outside the places.
fn repository() -> Result<PathBuf> {
    let at = std::env::temp_dir().join(format!("pando-bench-repository-{}", std::process::id()));
    if !at.join(".git").exists() {
        for i in 0..5000 {
            let dir = at.join(format!("d{}", i % 100));
            fs::create_dir_all(&dir)?;
            fs::write(dir.join(format!("f{i}")), format!("file {i}\n").repeat(i % 400))?;
        }
        git(&at, &["init", "-q"])?;
        git(&at, &["add", "-A"])?;
        git(&at, &["-c", "user.name=b", "-c", "user.email=b@example.org", "commit", "-qm", "all"])?;
    }
    Ok(at)
}

fn git(dir: &Path, args: &[&str]) -> Result<()> {
    crate::run(Command::new("git").args(args).current_dir(dir).stdout(Stdio::null()))
}

fn clone_into(dir: &Path) -> Result<()> {
    let from = repository()?;
    git(dir, &["clone", "-q", "--no-hardlinks", &from.to_string_lossy(), "clone"])
}

fn clone(dir: &Path) -> Result<f64> {
    repository()?;
    seconds(|| clone_into(dir))
}

fn status(dir: &Path) -> Result<f64> {
    clone_into(dir)?;
    git(&dir.join("clone"), &["status", "--porcelain"])?;
    seconds(|| git(&dir.join("clone"), &["status", "--porcelain"]))
}

fn remove(dir: &Path) -> Result<f64> {
    clone_into(dir)?;
    seconds(|| Ok(fs::remove_dir_all(dir.join("clone"))?))
}

fn write_large(dir: &Path, sync: bool) -> Result<f64> {
    let part = vec![0x5A; 1 << 20];
    rate(LARGE >> 20, || {
        let mut file = File::create(dir.join("large"))?;
        for _ in 0..LARGE >> 20 {
            file.write_all(&part)?;
        }
        if sync {
            file.sync_all()?;
        }
        Ok(())
    })
}

fn sequential_write(dir: &Path) -> Result<f64> {
    write_large(dir, false)
}

fn sequential_write_synced(dir: &Path) -> Result<f64> {
    write_large(dir, true)
}

fn sequential_read(dir: &Path) -> Result<f64> {
    write_large(dir, false)?;
    let mut part = vec![0; 1 << 20];
    rate(LARGE >> 20, || {
        let mut file = File::open(dir.join("large"))?;
        while file.read(&mut part)? > 0 {}
        Ok(())
    })
}
