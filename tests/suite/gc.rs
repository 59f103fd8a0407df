//! `pando gc` and `pando destroy` on volumes in use.

use crate::servers::RedisServer;
use crate::support::{Mount, PANDO, Volume, eventually, run, sh, text};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

fn pando(args: &[&str]) -> Output {
    run(Command::new(PANDO).args(args))
}

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

fn format(server: &RedisServer, volume: &Volume, trash_days: &str) -> (String, PathBuf) {
    let (url, bucket) = (server.url(1), volume.temp.path().join("objects"));
    let text = bucket.to_str().expect("text").to_owned();
    ok(&pando(&["format", "--storage", "file", "--trash-days", trash_days, "--bucket", &text, &url, "vol"]));
    (url, bucket)
}

fn mount(volume: &Volume, url: &str) -> Mount {
    Mount::start(Path::new(url), &volume.temp.path().join("mnt"), &["--cache-size", "0", "--backup-meta", "0"])
}

#[test]
fn leaks_go_while_writers_copy_and_delete_old_data() {
    let (server, volume) = (RedisServer::start(), Volume::new());
    let (url, bucket) = format(&server, &volume, "0");
    let one = mount(&volume, &url);
    let sums = "for i in $(seq 50); do md5sum < $(echo f*_$i); done";
    sh(&one.path, "for i in $(seq 50); do head -c 100000 /dev/urandom > f0_$i; done");
    let before = sh(&one.path, sums);
    // All of it is old, and so is what nobody names.
    sh(&bucket, "mkdir -p vol/chunks/0/3 && echo leak > vol/chunks/0/3/3999_0_5 && echo young > vol/chunks/0/3/3998_0_6");
    sh(&bucket, "find vol/chunks -type f ! -name 3998_0_6 -exec touch -d '2 hours ago' {} +");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                // Records move from file to file: the old slices are never written again.
                sh(&one.path, &format!("for i in $(seq 50); do cp f{round}_$i f{}_$i && rm f{round}_$i; done", round + 1));
                round += 1;
            }
            round
        });
        for _ in 0..6 {
            ok(&pando(&["gc", "--delete", &url]));
        }
        stop.store(true, Ordering::Relaxed);
        assert!(work.join().expect("no error") > 0);
    });
    assert!(!bucket.join("vol/chunks/0/3/3999_0_5").exists() && bucket.join("vol/chunks/0/3/3998_0_6").exists());
    assert_eq!(sh(&one.path, sums), before);
    one.unmount();
    ok(&pando(&["fsck", &url]));
    let found = ok(&pando(&["gc", &url]));
    assert!(found.contains(" 0 leaked (0 bytes)") && found.contains(" 50 valid") && found.contains(" 1 skipped (6 bytes)"), "{found}");
}

#[test]
fn a_file_that_is_open_survives_although_it_has_no_name() {
    let (server, volume) = (RedisServer::start(), Volume::new());
    let (url, bucket) = format(&server, &volume, "0");
    let one = mount(&volume, &url);
    let content = vec![5; 3_000_000];
    fs::write(one.join("open"), &content).expect("written");
    let mut file = fs::File::open(one.join("open")).expect("opened");
    fs::remove_file(one.join("open")).expect("removed");
    sh(&bucket, "find vol/chunks -type f -exec touch -d '2 hours ago' {} +");
    let done = ok(&pando(&["gc", "--delete", "--compact", &url]));
    assert!(done.contains(" 0 leaked (0 bytes)"), "{done}");
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut read).expect("readable");
    assert!(read == content);
    drop(file);
    one.unmount();
}

#[test]
fn wrong_use_of_gc_is_refused() {
    let volume = Volume::new();
    let dir = volume.dir();
    let dir = dir.to_str().expect("text");
    ok(&pando(&["format", dir, "vol"]));
    let refused = pando(&["gc", dir, "--delete", "-p", "0"]);
    assert!(!refused.status.success() && text(&refused).contains("threads should be greater than 0"), "{}", text(&refused));
    let found = ok(&pando(&["gc", dir, "--threads", "0"]));
    assert!(found.contains("scanned 0 objects, 0 valid, 0 pending delete (0 bytes), 0 compacted (0 bytes), 0 leaked (0 bytes), 0 delslices (0 bytes), 0 delfiles (0 bytes), 0 skipped (0 bytes)"), "{found}");
}

#[test]
fn a_volume_is_destroyed_only_if_nobody_uses_it() {
    let server = RedisServer::start();
    for local in [true, false] {
        let volume = Volume::new();
        let (url, bucket) = if local {
            ok(&run(Command::new(PANDO).arg("format").arg(volume.dir()).arg("vol")));
            (volume.dir().to_str().expect("text").to_owned(), volume.dir().join("objects"))
        } else {
            format(&server, &volume, "1")
        };
        let one = mount(&volume, &url);
        fs::write(one.join("f"), vec![1; 200_000]).expect("written");
        let setting: serde_json::Value = serde_json::from_slice(&pando(&["status", &url]).stdout).expect("a document");
        let uuid = setting["Setting"]["UUID"].as_str().expect("a UUID").to_owned();
        let wrong = pando(&["destroy", &url, "x", "--yes"]);
        assert!(!wrong.status.success() && text(&wrong).contains(&format!("UUID \"x\" != expected \"{uuid}\"")), "{}", text(&wrong));
        let refused = pando(&["destroy", &url, &uuid, "--yes"]);
        assert!(!refused.status.success() && text(&refused).contains("1 sessions are active"), "{}", text(&refused));
        assert!(text(&refused).contains(one.path.to_str().expect("text")));
        one.unmount();
        // Nobody answers.
        let refused = run(Command::new(PANDO).args(["destroy", &url, &uuid]).stdin(std::process::Stdio::null()));
        assert!(!refused.status.success() && text(&refused).contains("will be permanently destroyed"), "{}", text(&refused));
        assert!(bucket.join("vol").exists());
        let done = ok(&pando(&["destroy", &url, &uuid, "--yes"]));
        assert!(done.contains("The volume has been destroyed!") && done.contains("Deleted 2 objects"), "{done}");
        assert!(!bucket.join("vol").exists());
        let gone = pando(&["status", &url]);
        assert!(!gone.status.success() && text(&gone).contains("database is not formatted"), "{}", text(&gone));
        if local {
            // What is left of the directory can become a volume again.
            volume.mount().unmount();
            continue;
        }
        eventually("no key of the volume is left", || {
            server.cli(&["-n", "1", "keys", "*"]).lines().all(|key| key.is_empty() || key.starts_with("_pando:op:"))
        });
        ok(&pando(&["format", "--storage", "file", "--bucket", bucket.to_str().expect("text"), &url, "vol"]));
    }
}

#[test]
fn a_lost_object_is_found_with_all_files_that_need_it() {
    let (server, volume) = (RedisServer::start(), Volume::new());
    let (url, bucket) = format(&server, &volume, "0");
    let one = mount(&volume, &url);
    sh(&one.path, "mkdir d && head -c 300000 /dev/urandom > d/a && cp d/a 'd/a copy' && echo whole > whole");
    one.unmount();
    ok(&pando(&["fsck", &url]));
    let object = sh(&bucket, "find vol/chunks -type f -size +100k");
    assert_eq!(object.lines().count(), 1, "the copy shares it: {object}");
    fs::remove_file(bucket.join(object.trim())).expect("removed");
    for args in [&["fsck", &url][..], &["fsck", &url, "--path", "/d", "-r"]] {
        let lost = pando(args);
        let lines = text(&lost);
        assert_eq!(lost.status.code(), Some(1), "{lines}");
        assert!(lines.contains("can't find block vol/chunks/0/0/") && lines.contains("1 objects are lost (300000 bytes)"), "{lines}");
        assert!(lines.contains("        INODE: PATH") && lines.contains(": /d/a\n"), "{lines}");
    }
    let all = text(&pando(&["fsck", &url]));
    assert!(all.contains("2 broken files") && all.contains(": /d/a copy\n"), "{all}");
    ok(&pando(&["fsck", &url, "--path", "/whole"]));
    let refused = pando(&["fsck", &url, "--recursive"]);
    assert!(!refused.status.success() && text(&refused).contains("need --path"), "{}", text(&refused));
}
