//! Backups of the metadata, and the disaster they are for.

use crate::servers::RedisServer;
use crate::support::{Mount, PANDO, Volume, eventually, run, sh, size, text};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Files written before the backup and after the restore.
const FILES: (usize, usize) = (300, 10_000);

fn pando(args: &[&str]) -> Output {
    run(Command::new(PANDO).args(args))
}

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

/// Mounts with a backup every second.
fn mount(volume: &Volume, url: &str, name: &str) -> Mount {
    Mount::start(Path::new(url), &volume.temp.path().join(name), &["--backup-meta", "1", "--cache-size", "0"])
}

fn backups(bucket: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> =
        fs::read_dir(bucket.join("vol/meta")).into_iter().flatten().map(|entry| entry.expect("listed").path()).collect();
    found.sort();
    found
}

/// Every object of a block: which file it is, and when it was written.
fn blocks(bucket: &Path) -> BTreeMap<PathBuf, (u64, i64, i64)> {
    let list = sh(bucket, "find vol/chunks -type f");
    let look = |path: &str| {
        let meta = fs::metadata(bucket.join(path)).expect("there");
        (PathBuf::from(path), (meta.ino(), meta.mtime(), meta.mtime_nsec()))
    };
    list.lines().map(look).collect()
}

#[test]
fn lost_metadata_comes_back_with_one_command_and_no_object_is_overwritten() {
    let files = size(FILES.0, FILES.1);
    let (server, volume) = (RedisServer::start(), Volume::new());
    let (url, bucket) = (server.url(1), volume.temp.path().join("objects"));
    let bucket_text = bucket.to_str().expect("text");
    ok(&pando(&["format", "--storage", "file", "--bucket", bucket_text, &url, "vol"]));
    let one = mount(&volume, &url, "one");
    let write = |mount: &Mount, prefix: &str| {
        sh(&mount.path, &format!("mkdir -p {prefix} && for i in $(seq {files}); do echo {prefix} $i > {prefix}/$i; done"));
        fs::write(mount.join(format!("{prefix}/large")), vec![7; 9_000_000]).expect("written");
    };
    write(&one, "old");
    let sum = sh(&one.path, "cd old && cat $(ls | sort) | md5sum");
    let begun = Instant::now();
    let count = backups(&bucket).len();
    // One that began after everything was written.
    eventually("two more backups", || backups(&bucket).len() >= count + 2);
    assert!(begun.elapsed() < Duration::from_secs(30));
    one.unmount();
    let latest = backups(&bucket).pop().expect("a backup");
    // As if written later: nothing of it is in the backup that is restored.
    let one = Mount::start(Path::new(&url), &volume.temp.path().join("one"), &["--backup-meta", "0"]);
    write(&one, "lost");
    one.unmount();
    let before = blocks(&bucket);
    assert!(before.len() > 2 * files);
    server.cli(&["-n", "1", "flushdb"]);

    let name = latest.file_name().expect("a name").to_str().expect("text").to_owned();
    let listed = ok(&pando(&["restore-meta", &url, "--list", "--bucket", bucket_text]));
    assert!(listed.contains(&name) && listed.lines().next().is_some_and(|line| line.starts_with("vol  dump-")), "{listed}");
    let restored = ok(&pando(&["restore-meta", &url, "--bucket", bucket_text]));
    assert!(restored.contains("is the volume vol as it was at"), "{restored}");
    let again = pando(&["restore-meta", &url, "--bucket", bucket_text]);
    assert!(!again.status.success() && text(&again).contains("is used by volume"), "{}", text(&again));
    let one = mount(&volume, &url, "one");
    assert_eq!(sh(&one.path, "cd old && cat $(ls | sort) | md5sum"), sum, "all files older than the backup");
    assert!(!one.join("lost").exists());
    write(&one, "new");
    assert_eq!(sh(&one.path, "cd old && cat $(ls | sort) | md5sum"), sum);
    one.unmount();
    let after = blocks(&bucket);
    for (path, stat) in &before {
        assert_eq!(after.get(path), Some(stat), "{} was replaced", path.display());
    }
    assert!(after.len() > before.len() + files);
    ok(&pando(&["fsck", &url]));
}

#[test]
fn an_old_dump_over_a_younger_bucket_reuses_no_number() {
    let volume = Volume::new();
    let (dir, dump) = (volume.dir(), volume.temp.path().join("dump.json"));
    let [dir_text, dump_text] = [&dir, &dump].map(|path| path.to_str().expect("text"));
    let write = |mount: &Mount, name: &str| fs::write(mount.join(name), vec![name.as_bytes()[0]; 5_000_000]).expect("written");
    let mount = volume.mount_at("mnt", &["--backup-meta", "0"]);
    write(&mount, "a");
    fs::File::open(mount.join("a")).and_then(|file| file.sync_all()).expect("synced");
    ok(&pando(&["dump", dir_text, dump_text]));
    mount.unmount();
    // Numbers go in batches: a second mount begins another.
    let mount = volume.mount_at("mnt", &["--backup-meta", "0"]);
    write(&mount, "b");
    mount.unmount();
    let bucket = dir.join("objects");
    let name = fs::read_dir(&bucket).expect("a bucket").map(|e| e.expect("listed").file_name()).find(|n| n != ".tmp").expect("a volume");
    let list = |bucket: &Path| sh(&bucket.join(&name), "find chunks -type f -printf '%p %i %T@\\n' | sort");
    let before = list(&bucket);
    sh(&dir, "rm pando.db*");
    let loaded = ok(&pando(&["load", dir_text, dump_text]));
    assert!(loaded.contains("the bucket has slices that the dump does not know"), "{loaded}");
    let mount = volume.mount_at("mnt", &["--backup-meta", "0"]);
    assert_eq!(fs::read(mount.join("a")).expect("there"), vec![b'a'; 5_000_000]);
    for name in ["c", "d"] {
        write(&mount, name);
    }
    mount.unmount();
    let after = list(&bucket);
    assert!(before.lines().all(|line| after.contains(line)), "{before}\n{after}");
    assert!(after.lines().count() >= before.lines().count() + 4);
}

#[test]
fn an_encrypted_local_volume_is_backed_up_encrypted_by_one_of_two_mounts() {
    let volume = Volume::new();
    let dir = volume.dir();
    let key = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/keys/pkcs8.pem");
    let (dir_text, key) = (dir.to_str().expect("text"), key.to_str().expect("text"));
    ok(&pando(&["format", "--encrypt-rsa-key", key, dir_text, "vol"]));
    let one = mount(&volume, dir_text, "one");
    let two = mount(&volume, dir_text, "two");
    fs::write(one.join("a-name-nobody-may-see"), "content").expect("written");
    let bucket = dir.join("objects");
    eventually("three backups", || backups(&bucket).len() >= 3);
    // Names are seconds, so two mounts that both took each would have shown here only as overwritten; the election is tested elsewhere.
    one.unmount();
    two.unmount();
    for backup in backups(&bucket) {
        let bytes = fs::read(backup).expect("readable");
        assert_ne!(bytes[..2], [0x1f, 0x8b]);
    }
    sh(&dir, "rm pando.db*");
    let refused = pando(&["restore-meta", dir_text]);
    assert!(!refused.status.success() && text(&refused).contains("--encrypt-rsa-key"), "{}", text(&refused));
    ok(&pando(&["restore-meta", dir_text, "--encrypt-rsa-key", key]));
    let one = volume.mount_at("one", &["--backup-meta", "0"]);
    assert_eq!(fs::read_to_string(one.join("a-name-nobody-may-see")).expect("there"), "content");
    one.unmount();
    volume.assert_clean();
    // As a file for `load`.
    let copy = Volume::new();
    let backup = backups(&bucket).pop().expect("a backup");
    let output = run(Command::new(PANDO).args(["load", "--encrypt-rsa-key", key]).arg(copy.dir()).arg(backup));
    assert!(ok(&output).contains("Loaded 1 inodes"), "{}", text(&output));
}

#[test]
fn a_bucket_that_is_away_delays_the_backup() {
    let (server, volume) = (RedisServer::start(), Volume::new());
    let (url, bucket) = (server.url(1), volume.temp.path().join("objects"));
    ok(&pando(&["format", "--storage", "file", "--bucket", bucket.to_str().expect("text"), &url, "vol"]));
    fs::write(bucket.join("vol/meta"), "a file where a directory belongs").expect("written");
    let one = mount(&volume, &url, "one");
    fs::write(one.join("f"), "x").expect("written");
    let taken = || server.cli(&["-n", "1", "hexists", "x1", "lastBackup"]).trim() == "1";
    eventually("the turn is taken", taken);
    eventually("the turn is given back", || !taken());
    fs::remove_file(bucket.join("vol/meta")).expect("removed");
    eventually("a backup", || !backups(&bucket).is_empty());
    one.unmount();
}
