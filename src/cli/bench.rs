//! `pando bench PATH`: how fast files are written and read in a directory, of this or any other filesystem (cli §6, §16.4).
//!
//! Rows about requests are differences of what the process of a mount counts: it is asked for that, or `.stats` in the root of the mount is read.
//! Without either there are no such rows.

use crate::cli::ask::threads;
use crate::cli::counted::Counted;
use crate::cli::values::{human_bytes, size, table};
use crate::cli::{say, value};
use crate::env::{Random, SystemRandom, instant};
use anyhow::Context;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::warn;

/// Largest piece read or written at once; more is held in memory for each thread.
const BLOCK_BYTES_MAX: u64 = 1 << 30;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A directory, which stays as it is.
    path: String,
    /// Bytes read and written at once, in MiB [default: 1M].
    #[arg(long, value_name = "SIZE")]
    block_size: Option<String>,
    /// Bytes of a big file, in MiB; 0 = none [default: 1G].
    #[arg(long, value_name = "SIZE")]
    big_file_size: Option<String>,
    /// Bytes of a small file, in KiB; 0 = none [default: 128K].
    #[arg(long, value_name = "SIZE")]
    small_file_size: Option<String>,
    /// Small files of each thread; 0 = none [default: 100].
    #[arg(long, value_name = "N")]
    small_file_count: Option<String>,
    /// Threads, each with files of its own [default: 1].
    #[arg(long, short = 'p', value_name = "N")]
    threads: Option<String>,
}

/// What is measured.
struct Plan {
    dir: PathBuf,
    block_bytes: u64,
    big_bytes: u64,
    small_bytes: u64,
    small_count: u64,
    threads: usize,
    /// Between the steps the kernel forgets what it has read.
    drops_caches: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let number = |text: &str| text.parse().map_err(|_| "a number is wanted".to_string());
    let block = |text: &str| match size(text, 'M')? {
        bytes @ 1..=BLOCK_BYTES_MAX => Ok(bytes),
        _ => Err("a size up to 1G is wanted".into()),
    };
    let top = fs::canonicalize(&args.path).with_context(|| format!("open {:?}", args.path))?;
    let plan = Plan {
        dir: top.join(format!("__juicefs_benchmark_{}__", SystemRandom.u64())),
        block_bytes: value("block-size", args.block_size.as_ref(), 1 << 20, block)?,
        big_bytes: value("big-file-size", args.big_file_size.as_ref(), 1 << 30, |text| size(text, 'M'))?,
        small_bytes: value("small-file-size", args.small_file_size.as_ref(), 128 << 10, |text| size(text, 'K'))?,
        small_count: value("small-file-count", args.small_file_count.as_ref(), 100, number)?,
        threads: threads(args.threads.as_ref(), 1)?,
        drops_caches: std::env::var_os("SKIP_DROP_CACHES").is_none_or(|value| value != "true"),
    };
    let mount = Counted::of(&top);
    fs::create_dir(&plan.dir).with_context(|| format!("create {}", plan.dir.display()))?;
    let (began, before) = (instant(), mount.look());
    let measured = plan.measure();
    let (elapsed, after) = (began.elapsed(), mount.look());
    // Whatever became of it: it may be gigabytes.
    fs::remove_dir_all(&plan.dir).with_context(|| format!("remove {}", plan.dir.display()))?;
    let mut rows = measured?;
    rows.extend(request_rows(&before.stats, &after.stats));
    say("Benchmark finished!");
    let Plan { block_bytes, big_bytes, small_bytes, small_count, threads, .. } = plan;
    let [block, big, small] = [block_bytes, big_bytes, small_bytes].map(human_bytes);
    say(&format!("BlockSize: {block}, BigFileSize: {big}, SmallFileSize: {small}, SmallFileCount: {small_count}, NumThreads: {threads}"));
    say(&format!("Time used: {:.1} s{}", elapsed.as_secs_f64(), after.shown(&before, elapsed)));
    say(table(&["ITEM", "VALUE", "COST"], &rows).trim_end());
    Ok(())
}

impl Plan {
    fn measure(&self) -> anyhow::Result<Vec<Vec<String>>> {
        let mut rows = Vec::new();
        let mut data = vec![0; usize::try_from(self.block_bytes)?];
        fill(&mut data);
        let big = |thread: usize| self.dir.join(format!("bigfile.{thread}"));
        if self.big_bytes > 0 {
            let took = self.each(|thread| write(&big(thread), self.big_bytes, &data))?;
            rows.push(self.big_row("Write big file", took));
            self.drop_caches();
            let took = self.each(|thread| read(&big(thread), self.big_bytes, self.block_bytes))?;
            rows.push(self.big_row("Read big file", took));
            self.drop_caches();
        }
        if self.small_bytes > 0 && self.small_count > 0 {
            let dir = |thread: usize| self.dir.join(format!("smallfiles.{thread}"));
            for thread in 0..self.threads {
                fs::create_dir(dir(thread))?;
            }
            let all = |work: &(dyn Fn(&Path) -> anyhow::Result<()> + Sync)| {
                self.each(|thread| (0..self.small_count).try_for_each(|n| work(&dir(thread).join(format!("smallfile.{n}")))))
            };
            let took = all(&|path| write(path, self.small_bytes, &data))?;
            rows.push(self.small_row("Write small file", took));
            self.drop_caches();
            let took = all(&|path| read(path, self.small_bytes, self.block_bytes))?;
            rows.push(self.small_row("Read small file", took));
            self.drop_caches();
            let took = all(&|path| Ok(fs::metadata(path).map(drop)?))?;
            rows.push(self.small_row("Stat file", took));
        }
        Ok(rows)
    }

    /// Runs `work` on every thread; how long until the last has ended.
    fn each(&self, work: impl Fn(usize) -> anyhow::Result<()> + Sync) -> anyhow::Result<Duration> {
        let began = instant();
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..self.threads)
                .map(|thread| {
                    scope.spawn({
                        let work = &work;
                        move || work(thread)
                    })
                })
                .collect();
            running.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked"))))
        })?;
        Ok(began.elapsed())
    }

    fn big_row(&self, item: &str, took: Duration) -> Vec<String> {
        let mib = (self.big_bytes * self.threads as u64) as f64 / f64::from(1 << 20);
        let seconds = took.as_secs_f64();
        vec![item.into(), format!("{:.2} MiB/s", mib / seconds), format!("{seconds:.2} s/file")]
    }

    fn small_row(&self, item: &str, took: Duration) -> Vec<String> {
        let (count, seconds) = (self.small_count as f64, took.as_secs_f64());
        let rate = count * self.threads as f64 / seconds;
        vec![item.into(), format!("{rate:.1} files/s"), format!("{:.2} ms/file", seconds * 1000.0 / count)]
    }

    fn drop_caches(&self) {
        if !self.drops_caches {
            return warn!("Clear cache operation has been skipped");
        }
        // SAFETY: sync has no preconditions.
        unsafe { libc::sync() };
        if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "3") {
            warn!("cannot clear the kernel's caches, so what is read next may come from them: {error}");
        }
    }
}

/// Bytes that no compression makes smaller: George Marsaglia's xorshift.
fn fill(data: &mut [u8]) {
    let mut word = SystemRandom.u64() | 1;
    for piece in data.chunks_mut(8) {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        piece.copy_from_slice(&word.to_le_bytes()[..piece.len()]);
    }
}

fn write(path: &Path, bytes: u64, data: &[u8]) -> anyhow::Result<()> {
    let put = || {
        let mut file = File::create_new(path)?;
        let mut left = bytes;
        while left > 0 {
            let piece = left.min(data.len() as u64);
            file.write_all(&data[..piece as usize])?;
            left -= piece;
        }
        close(file)
    };
    put().with_context(|| format!("write {}", path.display()))
}

/// Closes a file and tells what went wrong with what was written, which dropping it does not.
fn close(file: File) -> std::io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor is ours alone, and given up here.
    if unsafe { libc::close(file.into_raw_fd()) } == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn read(path: &Path, bytes: u64, block_bytes: u64) -> anyhow::Result<()> {
    let get = || -> std::io::Result<()> {
        let mut file = File::open(path)?;
        let mut block = vec![0; block_bytes.min(bytes) as usize];
        let mut found = 0;
        loop {
            match file.read(&mut block)? {
                0 if found == bytes => return Ok(()),
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                count => found += count as u64,
            }
        }
    };
    get().with_context(|| format!("read {}", path.display()))
}

/// How many requests of each kind that is counted there were, and how long one took.
fn request_rows(before: &HashMap<String, f64>, after: &HashMap<String, f64>) -> Vec<Vec<String>> {
    let kinds = [
        ("FUSE operation", "fuse_ops_durations_histogram_seconds"),
        ("Update meta", "transaction_durations_histogram_seconds"),
        ("Put object", "object_request_durations_histogram_seconds_PUT"),
        ("Get object", "object_request_durations_histogram_seconds_GET"),
        ("Delete object", "object_request_durations_histogram_seconds_DELETE"),
        ("Write into cache", "blockcache_write_hist_seconds"),
        ("Read from cache", "blockcache_read_hist_seconds"),
    ];
    let counted = kinds.into_iter().filter(|(_, name)| after.contains_key(&format!("juicefs_{name}_total")));
    let rows = counted.map(|(item, name)| {
        let grown = |what: &str| {
            let name = format!("juicefs_{name}_{what}");
            after.get(&name).unwrap_or(&0.0) - before.get(&name).unwrap_or(&0.0)
        };
        let (count, seconds) = (grown("total"), grown("sum"));
        let each = if count > 0.0 { seconds * 1000.0 / count } else { 0.0 };
        vec![item.to_string(), format!("{count:.0} operations"), format!("{each:.2} ms/op")]
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::counted::parse;

    #[test]
    fn requests_are_what_was_added() {
        let before =
            parse("juicefs_fuse_ops_durations_histogram_seconds_total 100\njuicefs_fuse_ops_durations_histogram_seconds_sum 1.5\n");
        let after = "juicefs_fuse_ops_durations_histogram_seconds_total 150\njuicefs_fuse_ops_durations_histogram_seconds_sum 1.75\n\
                     juicefs_object_request_durations_histogram_seconds_PUT_total 1\njuicefs_object_request_durations_histogram_seconds_PUT_total 3\n\
                     juicefs_object_request_durations_histogram_seconds_PUT_sum 0.08\nnonsense\n";
        let rows = request_rows(&before, &parse(after));
        assert_eq!(rows[0], ["FUSE operation", "50 operations", "5.00 ms/op"]);
        assert_eq!(rows[1], ["Put object", "4 operations", "20.00 ms/op"]);
        assert_eq!(rows.len(), 2, "what is not counted has no row");
        assert!(request_rows(&before, &HashMap::new()).is_empty(), "no file, no rows");
    }

    #[test]
    fn values_and_costs() {
        let plan = Plan {
            dir: PathBuf::new(),
            block_bytes: 1 << 20,
            big_bytes: 16 << 20,
            small_bytes: 1,
            small_count: 20,
            threads: 2,
            drops_caches: false,
        };
        assert_eq!(plan.big_row("Write big file", Duration::from_millis(500)), ["Write big file", "64.00 MiB/s", "0.50 s/file"]);
        assert_eq!(plan.small_row("Stat file", Duration::from_millis(100)), ["Stat file", "400.0 files/s", "5.00 ms/file"]);
        let mut data = [0; 20];
        fill(&mut data);
        assert!(data.chunks(8).all(|piece| piece.iter().any(|byte| *byte != 0)));
    }
}
