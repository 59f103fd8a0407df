//! Volumes whose metadata is in Redis, on real mounts.

use crate::crash::{self, Said};
use crate::proxy::Proxy;
use crate::servers::RedisServer;
use crate::support::{Mount, PANDO, Volume, eventually, is_mounted, run, sh, size, text, worker};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Makes a volume on the server with its objects in `volume`; answers its address.
fn format(server: &RedisServer, volume: &Volume) -> String {
    let url = server.url(1);
    let bucket = volume.temp.path().join("objects");
    let output = run(Command::new(PANDO).args(["format", "--storage", "file", "--bucket"]).arg(bucket).args([&url, "vol"]));
    assert!(output.status.success(), "{}", text(&output));
    url
}

fn mount(volume: &Volume, url: &str, name: &str) -> Mount {
    Mount::start(Path::new(url), &volume.temp.path().join(name), &[])
}

#[test]
fn a_volume_on_redis_keeps_what_was_written_and_shows_it_to_others() {
    let (server, volume) = (RedisServer::start(), Volume::new());
    let unformatted = run(Command::new(PANDO).args(["status", &server.url(1)]));
    assert!(!unformatted.status.success() && text(&unformatted).contains("database is not formatted"), "{}", text(&unformatted));
    let url = format(&server, &volume);
    let one = mount(&volume, &url, "one");
    sh(
        &one.path,
        "mkdir -p a/b && seq 100000 > a/b/numbers && ln -s b/numbers a/link && echo x > a/small && ln a/small a/hard && rm a/small",
    );
    sh(&one.path, "mkdir many && for i in $(seq 300); do echo $i > many/$i; done && test $(ls many | wc -l) = 300");
    let two = mount(&volume, &url, "two");
    let sum = sh(&one.path, "md5sum < a/b/numbers");
    assert_eq!(sh(&two.path, "md5sum < a/link"), sum);
    fs::write(two.join("from two"), "hello").expect("written");
    // That a name is missing is remembered until the server tells otherwise; then close-to-open holds.
    eventually("the first mount is told of the name", || one.join("from two").exists());
    assert_eq!(fs::read_to_string(one.join("from two")).expect("there"), "hello");
    fs::write(two.join("from two"), "hello again").expect("written");
    assert_eq!(fs::read_to_string(one.join("from two")).expect("there"), "hello again");
    eventually("the kernel of the first mount asks anew", || fs::metadata(one.join("from two")).expect("there").size() == 11);
    let status = run(Command::new(PANDO).args(["status", &url]));
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("a document");
    assert_eq!((status["Sessions"].as_array().map(Vec::len), &status["Setting"]["Storage"]), (Some(2), &"file".into()));
    two.unmount();
    one.unmount();
    assert_eq!(server.cli(&["-n", "1", "zcard", "allSessions"]).trim(), "0");
    assert_eq!(server.cli(&["-n", "1", "exists", "_pando:f"]).trim(), "0", "all data are objects");
    let again = mount(&volume, &url, "one");
    assert_eq!(sh(&again.path, "md5sum < a/b/numbers; cat a/hard; ls many | wc -l"), format!("{sum}x\n300\n"));
    again.unmount();
    let fsck = run(Command::new(PANDO).args(["fsck", &url]));
    assert!(fsck.status.success(), "{}", text(&fsck));
}

#[test]
fn a_server_that_is_away_is_a_pause_for_applications() {
    let (mut server, volume) = (RedisServer::start(), Volume::new());
    let url = format(&server, &volume);
    let proxy = Proxy::start(server.address());
    let one = mount(&volume, &url.replace(&server.port.to_string(), &proxy.port.to_string()), "mnt");
    let (dir, count) = (one.path.clone(), size(150, 3000));
    let work = std::thread::spawn(move || {
        let script = "mkdir d$i && echo $i > d$i/f && mv d$i e$i && ln e$i/f l$i && rm e$i/f";
        sh(&dir, &format!("for i in $(seq {count}); do {script}; done; ls | wc -l"))
    });
    let dir = volume.temp.path().join("mnt/written");
    fs::create_dir(&dir).expect("created");
    let mut writer = worker("crash-writer", &[dir.as_os_str(), "5".as_ref()]).spawn().expect("started");
    let said = Arc::new(Mutex::new(Said::default()));
    let (output, heard) = (BufReader::new(writer.stdout.take().expect("piped")), said.clone());
    let listener = std::thread::spawn(move || {
        output.lines().map_while(Result::ok).for_each(|line| heard.lock().expect("not poisoned").note(&line));
    });
    let line = || said.lock().expect("not poisoned").line;
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(100));
        proxy.cut();
    }
    eventually("something is durable", || line().is_some());
    server.kill();
    std::thread::sleep(Duration::from_secs(size(3, 90) as u64));
    let before = line();
    server.restart();
    eventually("it goes on", || line() > before);
    assert_eq!(work.join().expect("no error").trim(), (2 * count + 1).to_string());
    writer.kill().expect("alive");
    writer.wait().expect("reaped");
    listener.join().expect("no panic");
    one.unmount();
    let one = mount(&volume, &url, "mnt");
    let sums = sh(&one.path, &format!("cat l*| sort -n | md5sum; seq {count} | md5sum"));
    assert_eq!(sums.lines().collect::<BTreeSet<_>>().len(), 1);
    let said = said.lock().expect("not poisoned");
    assert_eq!(said.failed, None);
    crash::check(&dir, &said, 0);
    println!("a server away: {count} changes and {} durable files, of which {} before", said.line.unwrap_or(0), before.unwrap_or(0));
    one.unmount();
    let fsck = run(Command::new(PANDO).args(["fsck", &url]));
    assert!(fsck.status.success(), "{}", text(&fsck));
}

/// With timeouts of minutes only being told can make a change seen.
#[test]
fn changes_of_another_host_reach_the_kernel_before_its_timeouts_end() {
    let (server, volume) = (RedisServer::start(), Volume::new());
    let url = format(&server, &volume);
    let minutes = ["--attr-cache", "300", "--entry-cache", "300", "--dir-entry-cache", "300"];
    let one = Mount::start(Path::new(&url), &volume.temp.path().join("one"), &minutes);
    let two = mount(&volume, &url, "two");
    fs::create_dir(two.join("dir")).expect("made");
    for name in ["grows", "goes", "is replaced", "stays"] {
        fs::write(two.join("dir").join(name), "1").expect("written");
    }
    let look = |name: &str| fs::metadata(one.join("dir").join(name));
    // Names and attributes are in the kernel, and the directory is known as a whole.
    for name in ["grows", "goes", "is replaced", "stays", "comes"] {
        let _ = look(name);
    }
    std::thread::sleep(Duration::from_millis(300));
    let before = look("is replaced").expect("there").ino();
    let mut log = fs::OpenOptions::new().append(true).open(two.join("dir/grows")).expect("opened");
    std::io::Write::write_all(&mut log, b"23").expect("appended");
    eventually("the new length is seen", || look("grows").expect("there").size() == 3);
    assert_eq!(fs::read(one.join("dir/grows")).expect("read"), b"123");
    fs::write(two.join("dir/comes"), "here").expect("written");
    eventually("the new name is seen", || look("comes").is_ok());
    fs::remove_file(two.join("dir/goes")).expect("removed");
    eventually("the name is gone", || look("goes").is_err());
    fs::write(two.join("dir/new"), "other").expect("written");
    fs::rename(two.join("dir/new"), two.join("dir/is replaced")).expect("renamed");
    eventually("the name stands for another file", || look("is replaced").is_ok_and(|found| found.ino() != before && found.size() == 5));
    assert_eq!(look("stays").expect("there").size(), 1);
    drop(log);
    one.unmount();
    two.unmount();
}

#[test]
fn a_sync_fails_once_after_the_server_has_lost_something() {
    let (mut server, volume) = (RedisServer::with(&["--appendonly", "no"]), Volume::new());
    let url = format(&server, &volume);
    let mount = mount(&volume, &url, "mnt");
    server.cli(&["save"]);
    let file = fs::File::create(mount.join("f")).expect("created");
    file.sync_all().expect("synced");
    fs::write(mount.join("g"), "x").expect("written");
    // Back to the moment of the save.
    server.restart();
    fs::write(mount.join("h"), "noticed by this").expect("written");
    let error = file.sync_all().expect_err("it may be lost");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    file.sync_all().expect("it was told");
    let fresh = fs::File::create(mount.join("i")).expect("created");
    fresh.sync_all().expect("nothing of it is lost");
    drop((file, fresh));
    mount.unmount();
}

#[test]
fn a_mount_ends_when_its_volume_is_replaced() {
    let (server, volume) = (RedisServer::start(), Volume::new());
    let url = format(&server, &volume);
    let one = Mount::start(Path::new(&url), &volume.temp.path().join("mnt"), &["--heartbeat", "1", "--backup-meta", "0"]);
    fs::write(one.join("f"), vec![1; 200_000]).expect("written");
    let held = fs::File::create(one.join("held")).expect("created");
    let objects = || sh(volume.temp.path(), "find objects -type f -path '*/chunks/*' | sort");
    let before = objects();
    server.cli(&["-n", "1", "flushdb"]);
    let bucket = volume.temp.path().join("objects");
    let output = run(Command::new(PANDO).args(["format", "--force", "--storage", "file", "--bucket"]).arg(bucket).args([&url, "vol"]));
    assert!(output.status.success(), "{}", text(&output));
    eventually("the mount is gone", || !is_mounted(&one.path));
    drop(held);
    assert_eq!(objects(), before);
    let keys = server.cli(&["-n", "1", "keys", "*"]);
    // What `format` leaves of its own commits goes by itself.
    let keys: BTreeSet<_> = keys.split_whitespace().filter(|key| !key.starts_with("_pando:op:r")).collect();
    assert_eq!(keys, ["i1", "i9223372032828243968", "setting"].into());
}
