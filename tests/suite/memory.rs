//! How much memory a daemon takes while everything goes on at once.

use crate::staging::Bench;
use crate::support::{Mount, size};
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Files written, and as many read, at once.
const STREAMS: usize = 64;
/// `--buffer-size`, in MiB: so little that everything waits for it.
const BUFFER_MIB: u64 = 64;
/// What a daemon may take beside its buffers and its cache index.
const REST_MIB: u64 = 100;
/// Of a cached block, in the index.
const INDEX_ENTRY_BYTES: u64 = 64;
const MIB: usize = 1 << 20;

/// Unlike in any other file and any other place of it.
fn pattern(file: usize, mib: usize) -> Vec<u8> {
    (0..MIB / 8).flat_map(|n| ((file << 40 | mib << 20 | n) as u64).to_le_bytes()).collect()
}

fn write(path: &Path, file: usize, mibs: usize) {
    let mut out = fs::File::create(path).expect("made");
    (0..mibs).for_each(|mib| out.write_all(&pattern(file, mib)).expect("written"));
    out.sync_all().expect("durable");
}

fn check(path: &Path, file: usize, mibs: usize) {
    let mut found = fs::File::open(path).expect("there");
    let mut piece = vec![0; MIB];
    for mib in 0..mibs {
        found.read_exact(&mut piece).expect("read");
        assert!(piece == pattern(file, mib), "MiB {mib} of file {file}");
    }
    assert_eq!(found.read(&mut piece).expect("read"), 0);
}

/// Runs `work` for each stream on a thread of its own; the most memory the daemon had meanwhile.
fn peak(bench: &Bench, mount: &Mount, work: impl Fn(usize) + Sync) -> u64 {
    let (running, mut most) = (AtomicUsize::new(STREAMS), 0);
    std::thread::scope(|scope| {
        for n in 0..STREAMS {
            let (work, running) = (&work, Ended(&running));
            scope.spawn(move || {
                let _running = running;
                work(n);
            });
        }
        while running.load(Ordering::SeqCst) > 0 {
            most = most.max(mount.resident_bytes());
            // The server remembers what it was asked, bodies too.
            bench.server.take_asked();
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    most
}

/// A stream ends, be it in a panic.
struct Ended<'a>(&'a AtomicUsize);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn it_stays_within_the_buffer_and_the_index() {
    let bench = Bench::new();
    let mibs = size(4, 32);
    let blocks = size(20_000, 1_000_000);
    let buffer = BUFFER_MIB.to_string();
    let options = ["--buffer-size", buffer.as_str(), "--free-space-ratio", "0.01", "--cache-dir", bench.cache.as_str()];
    let mount = bench.volume.mount_at("mnt", &options);
    peak(&bench, &mount, |n| write(&mount.join(format!("old{n}")), n, mibs));
    mount.unmount();
    // A cache that knows of many blocks, of slices that are far away.
    let volume = fs::read_dir(&bench.cache).expect("there").flatten().next().expect("the volume's directory").path();
    for thousand in 0..blocks / 1000 {
        let dir = volume.join(format!("raw/chunks/9000/{}", 9_000_000 + thousand));
        fs::create_dir_all(&dir).expect("made");
        (0..1000).for_each(|n| drop(fs::File::create(dir.join(format!("{}_0_1", 9_000_000_000 + thousand * 1000 + n))).expect("made")));
    }
    let mount = bench.volume.mount_at("mnt", &options);
    let most = peak(&bench, &mount, |n| {
        std::thread::scope(|scope| {
            scope.spawn(|| write(&mount.join(format!("new{n}")), STREAMS + n, mibs));
            scope.spawn(|| check(&mount.join(format!("old{n}")), n, mibs));
        });
    });
    let bound = (BUFFER_MIB + REST_MIB) * MIB as u64 + blocks as u64 * INDEX_ENTRY_BYTES;
    println!("{STREAMS} writers and readers took {} of {} MiB", most >> 20, bound >> 20);
    assert!(most <= bound, "{} MiB are more than {}", most >> 20, bound >> 20);
    mount.unmount();
    let mount = bench.volume.mount_at("mnt", &options);
    peak(&bench, &mount, |n| check(&mount.join(format!("new{n}")), STREAMS + n, mibs));
    mount.unmount();
}
