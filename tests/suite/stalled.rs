//! A process that waits for a server that is away can be killed.

use crate::journal::World;
use crate::support::{eventually, sh, size, worker, worker_arg};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Of a file: more than is kept beside the metadata.
const FILE_BYTES: usize = 300_000;
/// Time a process has to begin its read after it was let go.
const BEGIN: Duration = Duration::from_millis(50);
/// Seconds a killed process has: on a machine that does much else, and on one that does nothing else.
const DEATH_SECONDS_MAX: (usize, usize) = (5, 1);

/// In a worker: reads an open file once it is let go: through the kernel's pages, past them, or behind a write that is not stored.
pub fn stalled_worker() {
    let (path, how, said, go) = (worker_arg(0), worker_arg(1), worker_arg(2), worker_arg(3));
    let flags = if how == "pages" { 0 } else { libc::O_DIRECT };
    let file = OpenOptions::new().read(true).write(how == "write").custom_flags(flags).open(path).expect("opened");
    if how == "write" {
        file.write_all_at(&[1; 4096], 0).expect("buffered");
    }
    fs::write(said, "").expect("written");
    while !Path::new(&go).exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = file.read_at(&mut [0; 8192], 0);
    panic!("the server answers");
}

#[test]
fn a_process_whose_read_is_stalled_dies_within_a_second() {
    let world = World::new();
    let mount = world.mount("mnt", &[]);
    let names = ["pages", "direct", "write"];
    for name in names {
        fs::write(mount.join(name), vec![7; FILE_BYTES]).expect("written");
    }
    mount.unmount();
    let mount = world.mount("mnt", &[]);
    for name in names {
        let [said, go] = ["said", "go"].map(|what| world.volume.temp.path().join(format!("{name}-{what}")));
        let path = mount.join(name);
        let mut reader = worker("stalled", &[path.as_os_str(), name.as_ref(), said.as_os_str(), go.as_os_str()]).spawn().expect("started");
        eventually("the reader has opened its file", || said.exists());
        world.to_bucket.hold_requests(true);
        fs::write(&go, "").expect("written");
        std::thread::sleep(BEGIN);
        assert!(reader.try_wait().expect("a child of ours").is_none(), "{name}: the read is not stalled");
        let begin = Instant::now();
        reader.kill().expect("alive");
        reader.wait().expect("reaped");
        let took = begin.elapsed();
        world.to_bucket.hold_requests(false);
        println!("{name}: died after {took:?}");
        assert!(took < Duration::from_secs(size(DEATH_SECONDS_MAX.0, DEATH_SECONDS_MAX.1) as u64), "{name}: died after {took:?}");
        // The mount goes on, and what was written is stored, though nobody waits for it.
        let first = if name == "write" { 1 } else { 7 };
        eventually("the file is whole", || {
            fs::read(&path).is_ok_and(|bytes| bytes[0] == first && bytes[4096..] == vec![7; FILE_BYTES - 4096])
        });
    }
    mount.unmount();
    world.nothing_is_left();
}

/// Commands that wait for the metadata, and what shows that each was carried out.
const WAITING: [(&str, &str); 8] = [
    ("stat $D/a/f", "true"),
    ("ls -l $D/b", "true"),
    ("cat $D/c/f", "true"),
    ("touch $D/d/new", "test -e $D/d/new"),
    ("mkdir $D/e/new", "test -d $D/e/new"),
    ("rm -f $D/g/f", "test ! -e $D/g/f"),
    ("mv $D/h/f $D/h/moved", "test -e $D/h/moved"),
    ("chmod 0400 $D/i/f", "test $(stat -c %a $D/i/f) = 400"),
];

#[test]
fn a_process_that_waits_for_the_metadata_dies_within_a_second() {
    let world = World::new();
    let mount = world.mount("mnt", &[]);
    sh(&mount.path, "for d in a b c d e g h i; do mkdir $d; echo content > $d/f; done");
    mount.unmount();
    let mount = world.mount("mnt", &[]);
    // What is changed is known, so that it is the change that waits.
    sh(&mount.path, "for d in d e g h i; do ls -l $d; stat $d/new $d/moved || true; done > /dev/null 2>&1");
    world.to_redis.hold_replies(true);
    let start = |command: &str| {
        // The shell may not go there itself: it would wait before it begins.
        Command::new("sh").args(["-c", &format!("exec {command}")]).env("D", &mount.path).spawn().expect("started")
    };
    // At once: what is known of directories does not stand for long while nothing is heard.
    let waiting = WAITING.map(|(command, _)| (command, start(command)));
    std::thread::sleep(Duration::from_millis(300));
    let mut slowest = Duration::ZERO;
    for (command, mut waiting) in waiting {
        assert!(waiting.try_wait().expect("a child of ours").is_none(), "{command}: does not wait");
        let begin = Instant::now();
        waiting.kill().expect("alive");
        waiting.wait().expect("reaped");
        slowest = slowest.max(begin.elapsed());
    }
    world.to_redis.hold_replies(false);
    println!("the last died after {slowest:?}");
    assert!(slowest < Duration::from_secs(size(DEATH_SECONDS_MAX.0, DEATH_SECONDS_MAX.1) as u64), "{slowest:?}");
    for (command, later) in WAITING {
        // It was killed while it asked for what it needs to know, or while it waited for the change: this has happened then, or happens now.
        let script = format!("({command}) > /dev/null 2>&1; {later}");
        let is_so = || Command::new("sh").args(["-c", &script]).env("D", &mount.path).status().is_ok_and(|status| status.success());
        eventually(&format!("{command} is carried out"), is_so);
    }
    // Nobody has these files open: an ordinary unmount ends.
    mount.unmount();
    world.nothing_is_left();
}

#[test]
fn a_signal_ends_a_mount_whose_metadata_are_away() {
    let world = World::new();
    let mount = world.mount("mnt", &[]);
    fs::write(mount.join("f"), "stored").expect("written");
    world.to_redis.hold_replies(true);
    let begin = Instant::now();
    mount.terminate();
    println!("ended after {:?}", begin.elapsed());
    world.to_redis.hold_replies(false);
    let mount = world.mount("again", &[]);
    assert_eq!(fs::read(mount.join("f")).expect("there"), b"stored");
    mount.unmount();
}
