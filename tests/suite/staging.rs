//! `--writeback` on real mounts: what is acknowledged is on this host's disk, and in the bucket afterwards, whatever happens in between.

use crate::s3;
use crate::s3_server::{Answer, Fault, Server};
use crate::support::{Dice, Mount, PANDO, Volume, eventually, run};
use serde_json::{Value as Json, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// A volume with its objects on a server, and a cache directory.
pub struct Bench {
    pub volume: Volume,
    pub server: Server,
    pub cache: String,
}

impl Bench {
    pub fn new() -> Bench {
        let volume = Volume::new();
        let server = s3::server(&volume);
        s3::make(volume.dir(), &s3::wanted("s3", &server.bucket("data"))).expect("made");
        let cache = volume.temp.path().join("cache").to_string_lossy().into_owned();
        Bench { volume, server, cache }
    }

    fn mount(&self, options: &[&str]) -> Mount {
        // The memory cache is as small as it gets, and everything is read.
        let always = ["--cache-dir", self.cache.as_str(), "--free-space-ratio", "0.01", "--buffer-size", "32"];
        self.volume.mount_at("mnt", &[&always[..], options].concat())
    }

    /// What `status` says is staged on this host.
    fn staging(&self) -> Json {
        let output = run(Command::new(PANDO).arg("status").arg(self.volume.dir()));
        serde_json::from_slice::<Json>(&output.stdout).expect("a document")["Staging"].take()
    }

    fn objects(&self) -> usize {
        files(&self.volume.temp.path().join("s3/data/vol/chunks")).len()
    }

    fn staged(&self) -> Vec<PathBuf> {
        files(Path::new(&self.cache)).into_iter().filter(|path| path.components().any(|part| part.as_os_str() == "rawstaging")).collect()
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().flat_map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { vec![entry.path()] }).collect()
}

#[test]
fn staged_files_survive_the_daemon_and_reach_the_bucket_with_the_next_mount() {
    let bench = Bench::new();
    let (large, other) = (Dice::new(1).bytes(9 << 20), Dice::new(2).bytes(200_000));
    let mount = bench.mount(&["--writeback", "--upload-delay", "1h"]);
    for (name, content) in [("large", &large), ("other", &other)] {
        let file = fs::File::create(mount.join(name)).expect("made");
        std::io::Write::write_all(&mut &file, content).expect("written");
        file.sync_all().expect("durable");
    }
    // Memory may have been short, and a block cut in two.
    let blocks = bench.staged().len();
    assert!(blocks >= 4 && bench.objects() == 0, "{:?}", bench.staged());
    // A mount of another volume says nothing of this one.
    let other_volume = Volume::new();
    let beside = other_volume.mount();
    let staging = bench.staging();
    assert_eq!((staging.as_array().map(Vec::len), &staging[0]["Blocks"]), (Some(1), &json!(blocks)), "{staging}");
    assert_eq!(staging[0]["Bytes"], json!((9 << 20) + 200_000), "{staging}");
    assert_eq!(
        (staging[0]["MountPoint"].as_str(), staging[0]["Dirs"].as_array().map(Vec::len)),
        (mount.path.to_str(), Some(1)),
        "{staging}"
    );
    beside.unmount();
    mount.kill();
    // Nobody has asked for staging this time.
    let mount = bench.mount(&[]);
    assert!(fs::read(mount.join("large")).expect("read") == large, "other bytes came back");
    eventually("everything is uploaded", || bench.staged().is_empty() && bench.objects() == blocks);
    mount.unmount();
    fs::remove_dir_all(&bench.cache).expect("removed");
    let mount = bench.mount(&[]);
    assert!(fs::read(mount.join("large")).expect("read") == large && fs::read(mount.join("other")).expect("read") == other);
    mount.unmount();
    bench.volume.assert_clean();
}

#[test]
fn a_bucket_that_is_away_holds_nobody_up() {
    let bench = Bench::new();
    let content = Dice::new(3).bytes(20 << 20);
    let mount = bench.mount(&["--writeback"]);
    for _ in 0..6 {
        bench.server.fail_next("PUT", Fault::Answer(Answer::error(503, "SlowDown")));
    }
    let began = Instant::now();
    let file = fs::File::create(mount.join("f")).expect("made");
    std::io::Write::write_all(&mut &file, &content).expect("written");
    file.sync_all().expect("durable on this disk");
    drop(file);
    assert!(!bench.staged().is_empty(), "nothing waits after {:?}", began.elapsed());
    assert!(fs::read(mount.join("f")).expect("read") == content, "other bytes came back");
    // Memory may have been short, and a block cut in two.
    eventually("the bucket has it", || bench.staged().is_empty() && bench.objects() >= 5);
    // What is removed before it was uploaded never is.
    for _ in 0..3 {
        bench.server.fail_next("PUT", Fault::Answer(Answer::error(503, "SlowDown")));
    }
    fs::write(mount.join("short"), &content[..200_000]).expect("written");
    fs::remove_file(mount.join("short")).expect("removed");
    fs::remove_file(mount.join("f")).expect("removed");
    eventually("nothing is left", || bench.staged().is_empty() && bench.objects() == 0);
    mount.unmount();
    bench.volume.assert_clean();
}

#[test]
fn a_mount_that_changes_nothing_leaves_what_is_staged() {
    let bench = Bench::new();
    let mount = bench.mount(&["--writeback", "--upload-delay", "1h"]);
    let file = fs::File::create(mount.join("f")).expect("made");
    std::io::Write::write_all(&mut &file, &Dice::new(5).bytes(200_000)).expect("written");
    file.sync_all().expect("durable");
    drop(file);
    mount.kill();
    let mount = bench.mount(&["--read-only"]);
    assert!(fs::read(mount.join("f")).expect("read where it is staged") == Dice::new(5).bytes(200_000));
    // Nor is there anything to wait for.
    let output = run(Command::new(PANDO).args(["umount", "--flush"]).arg(mount.join("")));
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert_eq!((bench.staged().len(), bench.objects()), (1, 0));
    drop(mount);
}

#[test]
fn umount_flush_uploads_what_is_kept_back() {
    let bench = Bench::new();
    let mount = bench.mount(&["--writeback", "--upload-delay", "1h"]);
    fs::write(mount.join("f"), Dice::new(4).bytes(6 << 20)).expect("written");
    let file = fs::File::open(mount.join("f")).expect("opened");
    file.sync_all().expect("durable");
    drop(file);
    let blocks = bench.staged().len();
    assert!(blocks >= 2 && bench.objects() == 0, "{:?}", bench.staged());
    let output = run(Command::new(PANDO).args(["umount", "--flush"]).arg(mount.join("")));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "All staging chunks are flushed\n");
    assert_eq!((bench.staged().len(), bench.objects()), (0, blocks));
    eventually("the daemon has ended", || !crate::support::is_mounted(&mount.join("")));
    drop(mount);
}
