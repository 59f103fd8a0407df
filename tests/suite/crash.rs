//! `kill -9` in the middle of a write load: nothing that was fsynced is lost, no byte is wrong, the next mount works at once.

use crate::support::{Dice, Volume, seed, size, worker, worker_arg};
use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Content is a function of name and version, so that any mixture shows.
fn content(file: u64, version: u64, len: usize) -> Vec<u8> {
    Dice::new(file << 32 | version << 8 | 1).bytes(len)
}

fn length(file: u64, version: u64) -> usize {
    // Around the bounds: nothing, a small frame, the largest frame, one block, several blocks.
    let lengths = [0, 100, 4096, 65_536, 65_537, 300_000, 5_000_000];
    lengths[((file * 7 + version * 3) % lengths.len() as u64) as usize]
}

/// In a worker: replaces files by write, fsync, rename, fsync of the directory, and appends to a log, saying what is durable.
pub fn writer_worker() {
    let dir = worker_arg(0);
    let mut dice = Dice::new(worker_arg(1).parse().expect("a number"));
    let mut versions: HashMap<u64, u64> = HashMap::new();
    let mut stdout = std::io::stdout();
    let directory = fs::File::open(&dir).expect("opened");
    for line in 0.. {
        let file = dice.below(12) as u64;
        let version = versions.entry(file).and_modify(|v| *v += 1).or_insert(1);
        let bytes = content(file, *version, length(file, *version));
        let step = || -> std::io::Result<()> {
            let temporary = format!("{dir}/tmp{file}");
            let mut f = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
            for part in bytes.chunks(100_000) {
                f.write_all(part)?;
            }
            f.sync_all()?;
            fs::rename(&temporary, format!("{dir}/file{file}"))?;
            directory.sync_all()?;
            let mut log = OpenOptions::new().append(true).create(true).open(format!("{dir}/log"))?;
            log.write_all(format!("{line}\n").as_bytes())?;
            log.sync_all()
        };
        if let Err(error) = step() {
            // The daemon was killed, where that is what happens.
            writeln!(stdout, "failed: {error}").and_then(|()| stdout.flush()).expect("the parent listens");
            return;
        }
        writeln!(stdout, "durable {file} {version} {line}").and_then(|()| stdout.flush()).expect("the parent listens");
    }
}

/// What a writer has said.
#[derive(Default)]
pub struct Said {
    /// File → highest version that is durable.
    durable: HashMap<u64, u64>,
    /// The last durable line of the log.
    pub line: Option<u64>,
    /// The error that ended it.
    pub failed: Option<String>,
}

impl Said {
    /// Takes note of a line of its output.
    pub fn note(&mut self, line: &str) {
        if let Some((_, error)) = line.split_once("failed: ") {
            self.failed = Some(error.into());
        } else if let Some((_, numbers)) = line.split_once("durable ") {
            let n: Vec<u64> = numbers.split(' ').map(|w| w.parse().expect("a number")).collect();
            self.durable.insert(n[0], n[1]);
            self.line = Some(n[2]);
        }
    }
}

/// The directory of a writer holds what it has said.
pub fn check(dir: &Path, said: &Said, round: usize) {
    for (&file, &version) in &said.durable {
        let bytes = fs::read(dir.join(format!("file{file}"))).unwrap_or_else(|e| panic!("round {round}: file{file}: {e}"));
        // The step after the last one we heard of may have happened, too.
        let fits = [version, version + 1].iter().any(|&v| bytes == content(file, v, length(file, v)));
        assert!(fits, "round {round}: file{file} is neither version {version} nor the next ({} bytes)", bytes.len());
    }
    if let Some(last) = said.line {
        let log = fs::read_to_string(dir.join("log")).expect("the log");
        let numbers: Vec<u64> = log.lines().map(|l| l.parse().unwrap_or_else(|_| panic!("round {round}: damaged line {l:?}"))).collect();
        assert!(numbers.iter().enumerate().all(|(i, n)| i as u64 == *n), "round {round}: lines out of order");
        assert!(numbers.len() as u64 > last, "round {round}: durable line {last} lost, {} there", numbers.len());
    }
}

#[test]
fn killed_under_load() {
    let rounds = size(6, 200);
    let mut dice = Dice::new(seed("killed_under_load"));
    let volume = Volume::new();
    for round in 0..rounds {
        let started = Instant::now();
        let mount = volume.mount();
        let ready = started.elapsed();
        assert!(ready < Duration::from_secs(5), "round {round}: ready after {ready:?}");
        let dir = mount.join(format!("round{round}"));
        fs::create_dir(&dir).expect("created");
        let seed = dice.next().to_string();
        let mut child = worker("crash-writer", &[dir.as_os_str(), seed.as_ref()]).spawn().expect("started");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let kill_at = Instant::now() + Duration::from_millis(50 + dice.below(900) as u64);
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        while Instant::now() < kill_at {
            std::thread::sleep(Duration::from_millis(1));
        }
        mount.kill();
        child.wait().expect("reaped");
        let mut said = Said::default();
        receiver.iter().for_each(|line| said.note(&line));
        let mount = volume.mount();
        check(&mount.join(format!("round{round}")), &said, round);
        if round % 10 == 9 {
            fs::remove_dir_all(mount.join(format!("round{}", round - 5))).expect("removed");
        }
        mount.unmount();
        volume.assert_clean();
    }
    println!("kill -9: {rounds} rounds: nothing durable lost, no wrong byte, metadata clean");
}
