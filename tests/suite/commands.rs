//! The commands around a mount: compressed and encrypted volumes, changing a setting under it, the names it is called by, many at once.

use crate::support::{Mount, PANDO, Volume, die_with_parent, eventually, is_mounted, run, sh, text};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

const PASSPHRASE: (&str, &str) = ("JFS_RSA_PASSPHRASE", "passphrase");

fn key(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/keys").join(name)
}

fn pando(args: &[&str]) -> Output {
    run(Command::new(PANDO).args(args))
}

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// All objects that hold blocks.
fn objects(volume: &Volume) -> Vec<PathBuf> {
    sh(&volume.dir(), "find \"$PWD/objects\" -type f -path '*/chunks/*'").lines().map(PathBuf::from).collect()
}

#[test]
fn compressed_and_encrypted_volumes_keep_what_is_written() {
    let large: Vec<u8> = b"a line of a log\n".iter().copied().cycle().take(3_000_000).collect();
    let key = key("pkcs8.pem");
    let key = key.to_str().expect("text");
    for options in [
        &["--compress", "lz4"][..],
        &["--compress", "zstd", "--block-size", "64K"],
        &["--encrypt-rsa-key", key, "--block-size", "1M"],
        &["--encrypt-rsa-key", key, "--encrypt-algo", "chacha20-rsa", "--compress", "zstd"],
    ] {
        let volume = Volume::new();
        let dir = volume.dir();
        ok(&run(Command::new(PANDO).arg("format").args(options).arg(&dir).arg("vol")));
        let mount = volume.mount();
        fs::write(mount.join("large"), &large).expect("written");
        fs::write(mount.join("small"), b"a secret of a few bytes").expect("written");
        mount.unmount();
        let stored = objects(&volume);
        assert!(!stored.is_empty());
        let bytes: Vec<u8> = stored.iter().flat_map(|object| fs::read(object).expect("readable")).collect();
        if options.contains(&"--compress") {
            assert!(bytes.len() < large.len() / 10, "{options:?}: {} bytes", bytes.len());
        } else {
            assert!(!bytes.windows(16).any(|part| part == &large[..16]), "{options:?}: plain text");
        }
        let secret = |bytes: &[u8]| bytes.windows(8).any(|part| part == b"a secret");
        let database = sh(&dir, "cat pando.db*").into_bytes();
        assert!(!secret(&database) || !options.contains(&"--encrypt-rsa-key"), "the small file lies there in plain text");
        volume.assert_clean();
        let mount = volume.mount();
        assert!(fs::read(mount.join("large")).expect("readable") == large, "{options:?}");
        assert_eq!(fs::read(mount.join("small")).expect("readable"), b"a secret of a few bytes");
        // The middle of a block.
        assert_eq!(sh(&mount.path, "dd if=large bs=1 skip=1000000 count=16 status=none"), "a line of a log\n");
        drop(mount);
        // A damaged object is an error and never wrong bytes.
        for object in stored {
            let mut bytes = fs::read(&object).expect("readable");
            bytes.truncate(bytes.len() - 1);
            fs::write(&object, bytes).expect("written");
        }
        let mount = volume.mount();
        let error = fs::read(mount.join("large")).expect_err("damaged");
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{options:?}");
    }
}

#[test]
fn a_protected_key_needs_its_passphrase_in_every_process() {
    let volume = Volume::new();
    let (dir, mnt) = (volume.dir(), volume.temp.path().join("mnt"));
    let format =
        |command: &mut Command| run(command.arg("format").arg("--encrypt-rsa-key").arg(key("legacy-aes256.pem")).arg(&dir).arg("vol"));
    let wanted = "object storage: passphrase is required to private key: please set the 'JFS_RSA_PASSPHRASE' environment variable";
    let refused = format(&mut Command::new(PANDO));
    assert!(!refused.status.success() && text(&refused).contains(wanted), "{}", text(&refused));
    ok(&format(Command::new(PANDO).env(PASSPHRASE.0, PASSPHRASE.1)));
    let shown = ok(&run(Command::new(PANDO).arg("config").arg(&dir)));
    assert!(shown.contains("\"EncryptKey\": \"removed\"") && shown.contains("\"KeyEncrypted\": true"), "{shown}");
    let refused = run(Command::new(PANDO).arg("mount").arg(&dir).arg(&mnt));
    assert!(!refused.status.success() && text(&refused).contains(wanted), "{}", text(&refused));
    let refused = run(Command::new(PANDO).arg("mount").arg(&dir).arg(&mnt).env(PASSPHRASE.0, "wrong"));
    assert!(!refused.status.success() && text(&refused).contains("private key"), "{}", text(&refused));
}

#[test]
fn a_limit_changed_under_a_mount_holds_without_another_mount() {
    let volume = Volume::new();
    let dir = volume.dir();
    let dir = dir.to_str().expect("text");
    let mount = volume.mount_at("mnt", &["--heartbeat", "1"]);
    assert_eq!(ok(&pando(&["config", dir, "--inodes", "0"])), "Nothing changed.\n");
    assert_eq!(ok(&pando(&["config", dir, "--capacity", "1", "--inodes", "3"])), "  capacity: 0 B -> 1.0 GiB\n    inodes: 0 -> 3\n");
    let mut made = 0;
    eventually("the limit of inodes", || {
        made += 1;
        let refused = fs::write(mount.join(format!("f{made}")), "").is_err_and(|e| e.raw_os_error() == Some(libc::ENOSPC));
        if !refused {
            fs::remove_file(mount.join(format!("f{made}"))).expect("removed");
            for name in ["a", "b", "c"] {
                // Up to the limit both before and after the change is noticed.
                let _ = fs::write(mount.join(name), "");
            }
        }
        refused
    });
    // Asked before it is done; nobody answers.
    let refused = run(Command::new(PANDO).args(["config", dir, "--inodes", "1"]).stdin(Stdio::null()));
    assert!(!refused.status.success() && text(&refused).contains("WARNING") && text(&refused).contains("Aborted."), "{}", text(&refused));
    assert_eq!(ok(&pando(&["config", dir, "--inodes", "1", "--yes"])).lines().last(), Some("    inodes: 3 -> 1"));
    mount.unmount();
    volume.assert_clean();
}

#[test]
fn under_the_name_of_the_reference_it_answers_as_that_does() {
    let volume = Volume::new();
    let temp = volume.temp.path();
    let (dir, mnt) = (volume.dir(), temp.join("mnt"));
    let [juicefs, helper] = ["juicefs", "mount.juicefs"].map(|name| temp.join(name));
    for name in [&juicefs, &helper] {
        std::os::unix::fs::symlink(PANDO, name).expect("linked");
    }
    let version = ok(&run(Command::new(&juicefs).arg("version")));
    assert!(version.starts_with("juicefs version 1.4.1+"), "{version}");
    assert_eq!(ok(&run(Command::new(&juicefs).arg("--version"))), version);
    let missing = run(Command::new(&juicefs).arg("mount").arg(&dir).arg(&mnt));
    assert!(!missing.status.success() && text(&missing).contains("database is not formatted"), "{}", text(&missing));
    assert_eq!(ok(&run(Command::new(&juicefs).args(["format", "--trash-days", "0"]).arg(&dir).arg("vol"))), "");
    assert_eq!(ok(&run(Command::new(&juicefs).args(["format", "--no-update"]).arg(&dir).arg("vol"))), "");
    // As mount(8) calls it; it goes to the background and is ready when it returns.
    let log = temp.join("log");
    let options = format!("rw,_netdev,nofail,read-only=false,attrcacheto=1,log={}", log.display());
    let output = run(Command::new(&helper).arg(&dir).arg(&mnt).args(["-s", "-o", &options]));
    assert_eq!(ok(&output), "");
    assert!(text(&output).contains(&format!("OK, vol is ready at \"{}\"", mnt.display())), "{}", text(&output));
    assert_eq!(fs::metadata(&mnt).expect("mounted").ino(), 1);
    let mounts = fs::read_to_string("/proc/mounts").expect("proc is mounted");
    assert!(mounts.lines().any(|line| line.starts_with(&format!("JuiceFS:vol {} fuse.juicefs ", mnt.display()))), "{mounts}");
    fs::write(mnt.join("f"), "x").expect("written");
    assert!(fs::read_to_string(&log).expect("a log").contains("is mounted"));
    assert_eq!(ok(&run(Command::new(&juicefs).arg("umount").arg(&mnt))), "");
    assert!(!is_mounted(&mnt));
    volume.assert_clean();
}

#[test]
fn secrets_do_not_stand_in_the_list_of_processes() {
    let volume = Volume::new();
    let mut command = Command::new(PANDO);
    // Reading the pipe keeps it where the arguments can be looked at.
    let pipe = volume.temp.path().join("key");
    sh(volume.temp.path(), "mkfifo key");
    command.args(["format", "--secret-key", "hush-hush", "--session-token=hush-too", "--encrypt-rsa-key"]);
    command.arg(&pipe).arg(volume.dir()).arg("vol").stderr(Stdio::null());
    die_with_parent(&mut command);
    let mut child = command.spawn().expect("starts");
    let shown = || fs::read(format!("/proc/{}/cmdline", child.id())).unwrap_or_default();
    eventually("a masked command line", || {
        let text = String::from_utf8_lossy(&shown()).replace('\0', " ");
        text.contains("--secret-key ****") && text.contains("--session-token=****") && !text.contains("hush")
    });
    fs::write(&pipe, "no key").expect("written");
    assert!(!child.wait().expect("a child of ours").success());
}

#[test]
fn mounts_made_at_once_do_not_disturb_each_other() {
    let volume = Volume::new();
    let cache = volume.temp.path().join("cache");
    let cache = cache.to_str().expect("text").to_string();
    let (started, mounts) = mpsc::channel();
    // A daemon ends with the thread that started it, so the threads stay until the end.
    let mut stay = Vec::new();
    for number in 0..6 {
        let (dir, mnt) = (volume.temp.path().join(format!("volume{number}")), volume.temp.path().join(format!("mnt{number}")));
        let (started, cache) = (started.clone(), cache.clone());
        let (leave, left) = mpsc::channel::<()>();
        stay.push(leave);
        std::thread::spawn(move || {
            let sent = started.send(Mount::start(&dir, &mnt, &["--cache-dir", &cache]));
            // Ends when the test drops the other end.
            let _ = left.recv();
            sent
        });
    }
    drop(started);
    let mut mounts: Vec<Mount> = (0..6).map(|_| mounts.recv().expect("mounted")).collect();
    for (number, mount) in mounts.iter().enumerate() {
        fs::write(mount.join("number"), number.to_string()).expect("written");
    }
    // One inside another; and one that dies.
    let inner = Mount::start(&volume.temp.path().join("inner"), &mounts[0].join("a/b"), &[]);
    fs::write(inner.join("f"), "inner").expect("written");
    mounts.remove(1).kill();
    for mount in &mounts {
        assert!(fs::read_to_string(mount.join("number")).is_ok(), "{:?}", mount.path);
    }
    assert_eq!(fs::read_to_string(inner.join("f")).expect("readable"), "inner");
    inner.unmount();
    assert!(mounts[0].join("a/b").is_dir());
    mounts.into_iter().for_each(Mount::unmount);
}

/// While a program still uses the first, it lives on without a place.
#[test]
fn a_mount_that_has_lost_its_place_leaves_the_next_one_there_alone() {
    let (first, second) = (Volume::new(), Volume::new());
    let place = first.temp.path().join("mnt");
    let mut old = Mount::start(&first.dir(), &place, &[]);
    let file = fs::File::create(old.join("f")).expect("made");
    assert!(run(Command::new("umount").arg("-l").arg(&place)).status.success());
    old.path = first.temp.path().join("no longer");
    let new = Mount::start(&second.dir(), &place, &[]);
    fs::write(new.join("g"), "here").expect("written");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(500));
            (&file).write_all(b"late").expect("written");
            drop(file);
        });
        old.terminate();
    });
    assert_eq!(fs::read(new.join("g")).expect("read"), b"here");
    new.unmount();
    let again = Mount::start(&first.dir(), &place, &[]);
    assert_eq!(fs::read(again.join("f")).expect("read"), b"late");
    again.unmount();
}

#[test]
fn a_mount_is_found_where_it_is_when_a_directory_above_was_renamed() {
    let volume = Volume::new();
    let (before, after) = (volume.temp.path().join("a"), volume.temp.path().join("b"));
    let mut mount = Mount::start(&volume.dir(), &before.join("mnt"), &[]);
    fs::write(mount.join("f"), "text").expect("written");
    fs::rename(&before, &after).expect("renamed");
    mount.path = after.join("mnt");
    assert!(is_mounted(&mount.path));
    // Nothing is left there.
    mount.terminate();
}

#[test]
fn bench_measures_and_leaves_nothing() {
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.path.to_string_lossy().into_owned();
    let sizes = ["--big-file-size", "4M", "--block-size", "1M", "--small-file-size", "10K", "--small-file-count", "5", "-p", "2"];
    let bench = |args: &[&str]| run(Command::new(PANDO).arg("bench").args(args).arg(&path).env("SKIP_DROP_CACHES", "true"));
    let output = bench(&sizes);
    let (shown, all) = (ok(&output), text(&output));
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[0], "Benchmark finished!");
    assert_eq!(lines[1], "BlockSize: 1.0 MiB, BigFileSize: 4.0 MiB, SmallFileSize: 10 KiB, SmallFileCount: 5, NumThreads: 2");
    assert!(lines[2].starts_with("Time used: ") && lines[2].contains(" s, CPU: ") && lines[2].ends_with(" MiB"), "{}", lines[2]);
    let rows: Vec<Vec<&str>> =
        lines.iter().filter(|line| line.starts_with('|')).map(|line| line.split('|').map(str::trim).collect()).collect();
    let items: Vec<&str> = rows.iter().map(|row| row[1]).collect();
    let files = ["ITEM", "Write big file", "Read big file", "Write small file", "Read small file", "Stat file"];
    let requests = ["FUSE operation", "Update meta", "Put object", "Get object", "Delete object"];
    assert_eq!(items, [&files[..], &requests[..]].concat(), "{shown}");
    let operations =
        |item: &str| rows.iter().find(|row| row[1] == item).expect("there")[2].split(' ').next().expect("a number").parse::<u32>();
    assert!(operations("FUSE operation").expect("a number") > 50 && operations("Put object").expect("a number") >= 2, "{shown}");
    for row in &rows[1..files.len()] {
        let (value, unit) = row[2].split_once(' ').expect("a number and a unit");
        assert!(value.parse::<f64>().expect("a number") > 0.0 && ["MiB/s", "files/s"].contains(&unit), "{row:?}");
        assert!(row[3].ends_with("/file"), "{row:?}");
    }
    assert_eq!(all.matches("Clear cache operation has been skipped").count(), 4, "{all}");
    assert_eq!(fs::read_dir(&mount.path).expect("listed").count(), 0);
    // One kind of files alone, and what cannot be done.
    assert_eq!(ok(&bench(&["--big-file-size", "0", "--small-file-count", "1"])).matches("small file").count(), 2);
    assert!(!bench(&["-p", "0"]).status.success() && !bench(&["--block-size", "0"]).status.success());
    let missing = run(Command::new(PANDO).args(["bench", "/nowhere/at/all"]));
    assert!(!missing.status.success() && text(&missing).contains("/nowhere/at/all"));
    mount.unmount();
}

#[test]
fn the_daemon_goes_first_and_is_killed_last() {
    let volume = Volume::new();
    let mount = volume.mount();
    // What a process may ask for here.
    let nice = sh(volume.temp.path(), "nice -n -19 nice 2>/dev/null");
    let oom = sh(volume.temp.path(), "sh -c 'echo -1000 > /proc/self/oom_score_adj; cat /proc/self/oom_score_adj' 2>/dev/null");
    let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", mount.pid())).expect("running");
    assert_eq!(read("oom_score_adj").trim(), oom.trim());
    // Threads, too, which have their own.
    for thread in fs::read_dir(format!("/proc/{}/task", mount.pid())).expect("running") {
        let stat = fs::read_to_string(thread.expect("listed").path().join("stat")).expect("running");
        let after_name = stat.rsplit(')').next().expect("a name in parentheses");
        assert_eq!(after_name.split_whitespace().nth(16), Some(nice.trim()), "{stat}");
    }
    mount.unmount();
}
