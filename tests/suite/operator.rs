//! Commands an operator uses on a volume that is mounted: what they print, what they do, who may.

use crate::support::{Mount, PANDO, Volume, run, sh, text};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

/// Somebody without privileges.
const NOBODY: u32 = 65534;

fn pando(dir: &Path, args: &[&str]) -> Output {
    run(Command::new(PANDO).args(args).current_dir(dir))
}

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The same as another user, who cannot be expected to reach the directory that was built in.
fn as_nobody(volume: &Volume, dir: &Path, args: &[&str]) -> Output {
    let binary = volume.temp.path().join("pando");
    if !binary.exists() {
        fs::hard_link(PANDO, &binary).or_else(|_| fs::copy(PANDO, &binary).map(drop)).expect("copied");
    }
    run(Command::new(binary).args(args).current_dir(dir).uid_of_nobody())
}

/// A volume that keeps what is deleted, and its mount.
fn with_trash(args: &[&str]) -> (Volume, Mount) {
    let volume = Volume::new();
    let dir = volume.dir();
    ok(&run(Command::new(PANDO).args(["format", "--trash-days", "1"]).arg(&dir).arg("vol")));
    // Others must be able to reach the mount.
    fs::set_permissions(volume.temp.path(), fs::Permissions::from_mode(0o755)).expect("is ours");
    let mount = volume.mount_at("mnt", args);
    (volume, mount)
}

#[test]
fn the_trash_is_shown_to_root_in_the_root_of_a_volume() {
    let (volume, mount) = with_trash(&["--show-internal"]);
    fs::create_dir(mount.join("sub")).expect("made");
    fs::write(mount.join("sub/f"), "content").expect("written");
    fs::remove_file(mount.join("sub/f")).expect("removed");
    let trash = mount.join(".trash");
    assert_eq!(fs::metadata(&trash).expect("there").mode() & 0o7777, 0o500);
    let names: Vec<_> = fs::read_dir(&mount.path).expect("listed").map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(names, [".trash", "sub"]);
    let hour = fs::read_dir(&trash).expect("root looks inside").next().expect("an hour").expect("an entry").path();
    let entry = fs::read_dir(&hour).expect("listed").next().expect("a file").expect("an entry").path();
    assert!(entry.file_name().expect("a name").to_string_lossy().ends_with("-f"));
    assert!(!run(Command::new("ls").arg(&trash).current_dir("/").uid_of_nobody()).status.success());
    for error in [fs::write(trash.join("x"), ""), fs::write(hour.join("x"), ""), fs::create_dir(trash.join("d")), fs::remove_dir(&trash)] {
        assert_eq!(error.expect_err("refused").raw_os_error(), Some(libc::EPERM));
    }
    fs::rename(&entry, mount.join("sub/back")).expect("restored");
    assert_eq!(fs::read(mount.join("sub/back")).expect("readable"), b"content");
    fs::remove_file(mount.join("sub/back")).expect("removed");
    let entry = fs::read_dir(&hour).expect("listed").next().expect("a file").expect("an entry").path();
    fs::remove_file(&entry).expect("for good");
    assert_eq!(fs::read_dir(&hour).expect("listed").count(), 0);
    // Neither there.
    let plain = volume.mount_at("plain", &[]);
    let sub = volume.mount_at("subdir", &["--show-internal", "--subdir", "sub"]);
    for path in [plain.join(".trash"), sub.join(".trash")] {
        assert_eq!(fs::metadata(path).expect_err("nothing").kind(), std::io::ErrorKind::NotFound);
    }
    drop((plain, sub, mount));
    volume.assert_clean();
}

trait Nobody {
    fn uid_of_nobody(&mut self) -> &mut Command;
}

impl Nobody for Command {
    fn uid_of_nobody(&mut self) -> &mut Command {
        use std::os::unix::process::CommandExt;
        self.uid(NOBODY).gid(NOBODY)
    }
}

#[test]
fn deleted_things_come_back_by_their_path() {
    let (volume, mount) = with_trash(&[]);
    let dir = &mount.path;
    sh(dir, "mkdir -p a/b; echo one > a/b/f; ln a/b/f a/hard; ln -s f a/sym; rm -r a");
    assert!(text(&pando(dir, &["undelete", "never"])).contains("nothing that was called /never"));
    assert_eq!(ok(&pando(dir, &["undelete", "--list", "a/b/f"])).lines().count(), 1);
    // A file alone: with the directories it was in.
    ok(&pando(dir, &["undelete", "a/b/f"]));
    assert_eq!(sh(dir, "find . | sort; cat a/b/f"), ".\n./a\n./a/b\n./a/b/f\none\n");
    ok(&pando(dir, &["undelete", "a"]));
    assert_eq!(sh(dir, "find . | sort; cat a/hard"), ".\n./a\n./a/b\n./a/b/f\n./a/hard\n./a/sym\none\n");
    // Two versions; the newest comes back into a directory that was made anew.
    sh(dir, "rm -r a; mkdir -p a/b; echo two > a/b/f; rm -r a; mkdir a");
    let listed = ok(&pando(dir, &["undelete", "--list", "a/b/f"]));
    assert_eq!(listed.lines().count(), 2, "{listed}");
    ok(&pando(dir, &["undelete", "a/b/f"]));
    assert_eq!(sh(dir, "cat a/b/f"), "two\n");
    let taken = pando(dir, &["undelete", "a/b/f"]);
    assert!(!taken.status.success() && text(&taken).contains("exists; rename it first"), "{}", text(&taken));
    sh(dir, "mv a/b/f a/b/g");
    ok(&pando(dir, &["undelete", "--pick", "1", "a/b/f"]));
    assert_eq!(sh(dir, "cat a/b/f a/b/g"), "one\ntwo\n");
    drop(mount);
    volume.assert_clean();
}

#[test]
fn undeleting_is_for_owners_and_stays_in_the_mount() {
    let (volume, mount) = with_trash(&[]);
    let dir = &mount.path;
    sh(dir, "mkdir -m 777 home; echo own > home/own; chown nobody home/own; echo other > home/other; echo top > top; rm home/* top");
    let refused = as_nobody(&volume, dir, &["undelete", "home/other"]);
    assert!(!refused.status.success() && text(&refused).contains("is yours to restore"), "{}", text(&refused));
    ok(&as_nobody(&volume, dir, &["undelete", "home/own"]));
    assert_eq!(sh(dir, "cat home/own"), "own\n");
    let sub = volume.mount_at("sub", &["--subdir", "home"]);
    assert!(!pando(&sub.path, &["undelete", "top"]).status.success());
    ok(&pando(&sub.path, &["undelete", "other"]));
    assert_eq!(sh(dir, "cat home/other"), "other\n");
    assert!(text(&pando(Path::new("/"), &["undelete", "tmp/x"])).contains("is not inside a Pando mount"));
}

#[test]
fn an_hour_is_restored() {
    let (volume, mount) = with_trash(&["--show-internal"]);
    let url = volume.dir();
    let url = url.to_str().expect("text");
    sh(&mount.path, "mkdir -p a/b; echo one > a/b/f; echo two > top; rm -r a top");
    let hours: Vec<String> = sh(&mount.path, "ls .trash").lines().map(String::from).collect();
    let rebuilt = pando(&mount.path, &["restore", url, &hours[0]]);
    ok(&rebuilt);
    assert!(text(&rebuilt).contains(&format!("restore files in \"{}\" ...", hours[0])), "{}", text(&rebuilt));
    assert_eq!(sh(&mount.path, "cat .trash/*/*-a/b/f"), "one\n");
    let put_back = pando(&mount.path, &["restore", "--put-back", "--threads", "3", url, &hours[0], "2020-01-01-00"]);
    ok(&put_back);
    assert!(text(&put_back).contains("lookup \"2020-01-01-00\": no such file or directory"), "{}", text(&put_back));
    assert_eq!(sh(&mount.path, "cat a/b/f top; ls .trash/*"), "one\ntwo\n");
    let refused = as_nobody(&volume, Path::new("/"), &["restore", url, &hours[0]]);
    assert!(!refused.status.success() && text(&refused).contains("only root can restore files from trash"), "{}", text(&refused));
    drop(mount);
    volume.assert_clean();
}

#[test]
fn quotas_are_set_under_a_mount_and_hold_soon() {
    let (volume, mount) = with_trash(&[]);
    let url = volume.dir();
    let url = url.to_str().expect("text");
    let quota = |args: &[&str]| pando(Path::new("/"), &[&["quota", args[0], url], &args[1..]].concat());
    sh(&mount.path, "mkdir -p d/e; head -c 10000 /dev/zero > d/f; ln d/f d/e/g");
    let table = ok(&quota(&["set", "--path", "/d", "--inodes", "4"]));
    let expected = "+------+-----------+------+------+--------+-------+-------+\n\
                    | Path |    Size   | Used | Use% | Inodes | IUsed | IUse% |\n\
                    +------+-----------+------+------+--------+-------+-------+\n\
                    | /d   | unchanged |  0 B |      |      4 |     0 |    0% |\n\
                    +------+-----------+------+------+--------+-------+-------+\n";
    assert_eq!(table, expected);
    // Known to the mount when the command returns.
    fs::write(mount.join("d/h"), "").expect("the fourth");
    let refused = fs::write(mount.join("d/i"), "").expect_err("over the quota");
    assert_eq!(refused.raw_os_error(), Some(libc::EDQUOT));
    let shown = ok(&quota(&["get", "--path", "d"]));
    assert!(shown.contains("| /d   | unchanged | 32 KiB |      |      4 |     4 |  100% |"), "{shown}");
    ok(&quota(&["set", "--path", "/new/x", "--capacity", "1", "--create"]));
    ok(&quota(&["set", "--path", "/d", "--capacity", "2"]));
    let listed = ok(&quota(&["list"]));
    assert!(
        listed.contains("| Path/ID |") && listed.contains("| /d      | 2.0 GiB | 32 KiB |   0% |         4 |     4 |  100% |"),
        "{listed}"
    );
    assert!(listed.contains("| /new/x  | 1.0 GiB |    0 B |   0% | unchanged |     0 |       |"), "{listed}");
    let sub = volume.mount_at("sub", &["--subdir", "d"]);
    let df = sh(&sub.path, "df --output=itotal,iused,iavail . | tail -1");
    assert_eq!(df.split_whitespace().collect::<Vec<_>>(), ["4", "4", "0"]);
    drop(sub);
    let checked = quota(&["check", "--path", "/d"]);
    assert!(text(&checked).contains("quota of /d is consistent"), "{}", text(&checked));
    for (args, message) in [
        (&["set", "--path", "/nope", "--capacity", "1"][..], "resolve dir /nope: no such file or directory"),
        (&["set", "--capacity", "1"], "Please specify the directory with `--path <dir>`"),
        (&["set", "--path", "/d", "--uid", "3", "--inodes", "2"], "Cannot specify both --uid and --path at the same time"),
        (&["set", "--uid", "0", "--inodes", "2"], "Invalid --uid: 0 is not allowed"),
    ] {
        let refused = quota(args);
        assert!(!refused.status.success() && text(&refused).contains(message), "{}", text(&refused));
    }
    ok(&quota(&["delete", "--path", "/d"]));
    assert_eq!(ok(&quota(&["get", "--path", "/d"])), "");
    crate::support::eventually("the quota is gone", || fs::write(mount.join("d/i"), "").is_ok());
    drop(mount);
    // Nobody uses the volume: owners are counted at once.
    ok(&quota(&["set", "--uid", "65534", "--inodes", "1"]));
    let mount = volume.mount();
    let as_user = |path: &str| run(Command::new("touch").arg(mount.join(path)).uid_of_nobody()).status.success();
    fs::set_permissions(mount.join("d"), fs::Permissions::from_mode(0o777)).expect("is ours");
    assert!(as_user("d/one") && !as_user("d/two"));
    drop(mount);
    let checked = quota(&["check"]);
    assert!(checked.status.success() && text(&checked).contains("quota of uid:65534 is consistent"), "{}", text(&checked));
    volume.assert_clean();
}

#[test]
fn a_summary_shows_the_largest_first() {
    let (_volume, mount) = with_trash(&[]);
    sh(
        &mount.path,
        "mkdir -p t/a/b; head -c 300000 /dev/zero > t/a/f3; head -c 100000 /dev/zero > t/a/f1; echo hi > t/a/b/small; ln -s f3 t/a/sym",
    );
    let expected = "+---------+---------+------+-------+\n\
                    |   PATH  |   SIZE  | DIRS | FILES |\n\
                    +---------+---------+------+-------+\n\
                    | /       | 412 KiB |    2 |     4 |\n\
                    | f3      | 296 KiB |    0 |     1 |\n\
                    | f1      | 100 KiB |    0 |     1 |\n\
                    | b/      | 8.0 KiB |    1 |     1 |\n\
                    | b/small | 4.0 KiB |    0 |     1 |\n\
                    | sym     | 4.0 KiB |    0 |     1 |\n\
                    +---------+---------+------+-------+\n";
    assert_eq!(ok(&pando(&mount.path, &["summary", "t/a"])), expected);
    assert_eq!(
        ok(&pando(&mount.path, &["summary", "--csv", "-d", "1", "-e", "1", "t/a"])),
        "PATH,SIZE,DIRS,FILES\n/,421888,2,4\nf3,303104,0,1\n...,114688,1,3\n"
    );
    assert_eq!(ok(&pando(&mount.path, &["summary", "--csv", "-d", "0", "t"])), "PATH,SIZE,DIRS,FILES\n/,425984,3,4\n");
    // Statistics and count agree.
    for path in ["t", "t/a"] {
        for command in [&["summary", "--csv", "-d", "1"][..], &["info", "-r"]] {
            let quick = ok(&pando(&mount.path, &[command, &[path]].concat()));
            assert_eq!(ok(&pando(&mount.path, &[command, &["--strict", path]].concat())), quick);
        }
    }
    let missing = pando(&mount.path, &["summary", "nosuch"]);
    assert!(
        !missing.status.success() && text(&missing).contains("lookup inode for \"nosuch\": no such file or directory"),
        "{}",
        text(&missing)
    );
}

#[test]
fn a_clone_has_the_same_content_and_outlives_its_source() {
    let (volume, mount) = with_trash(&[]);
    let dir = &mount.path;
    sh(
        dir,
        "mkdir -p src/d; for i in 1 2 3; do head -c 200000 /dev/urandom >> src/f; done; head -c 40 /dev/urandom > src/d/small; ln src/f src/d/hard; ln -s f src/sym; mkfifo src/p; touch -d @1000 src/f",
    );
    ok(&pando(dir, &["clone", "src", "copy"]));
    ok(&pando(dir, &["clone", "--preserve", "src/d", "copy/d2"]));
    ok(&pando(dir, &["clone", "src/f", "copy/d2/"]));
    ok(&pando(dir, &["clone", "-p", "src/f", "copy/d2/kept"]));
    assert_eq!(
        sh(
            dir,
            "cmp src/f copy/f; cmp src/d/small copy/d/small; readlink copy/sym; test -p copy/p; cat copy/d/hard | cmp - src/f; stat -c %h copy/f"
        ),
        "f\n1\n"
    );
    assert_eq!(sh(dir, "cmp src/d/hard copy/d2/hard; cmp src/f copy/d2/f; stat -c %Y copy/d2/kept; test copy/d2/f -nt src/f"), "1000\n");
    for (args, message) in [
        (["src", "copy"], "copy already exists"),
        (["src", "src/d/inside"], "invalid argument"),
        (["/", "other"], "is not inside a Pando mount"),
        (["nosuch", "other"], "no such file or directory"),
    ] {
        let refused = pando(dir, &["clone", args[0], args[1]]);
        assert!(!refused.status.success() && text(&refused).contains(message), "{}", text(&refused));
    }
    let sums = sh(dir, "md5sum copy/f copy/d/small copy/d/hard");
    // Gone for good, and what was shared is rewritten and compacted.
    ok(&pando(dir, &["rmr", "--skip-trash", "src"]));
    sh(dir, "for i in 1 2 3 4 5 6; do echo x | dd of=copy/d2/hard bs=1 seek=$((i*1000)) conv=notrunc status=none; done");
    let compacted = pando(dir, &["compact", "copy"]);
    ok(&compacted);
    assert!(text(&compacted).contains("success."), "{}", text(&compacted));
    assert!(ok(&pando(dir, &["info", "--raw", "copy/d2/hard"])).contains(" chunks:"));
    mount.unmount();
    volume.assert_clean();
    let mount = volume.mount();
    assert_eq!(sh(&mount.path, "md5sum copy/f copy/d/small copy/d/hard"), sums);
}

#[test]
fn a_killed_clone_or_removal_leaves_nothing_half_done() {
    let volume = Volume::new();
    let mount = volume.mount();
    sh(&mount.path, "mkdir src; for d in $(seq 8); do mkdir src/$d; for f in $(seq 60); do echo $f > src/$d/$f; done; done");
    mount.unmount();
    for wait in [0, 15, 50] {
        let mount = volume.mount();
        let [src, copy] = ["src", "copy"].map(|name| mount.join(name).to_str().expect("text").to_owned());
        let to = copy.clone();
        let clone = std::thread::spawn(move || pando(Path::new("/"), &["clone", &src, &to]).status.success());
        std::thread::sleep(std::time::Duration::from_millis(wait));
        mount.kill();
        let done = clone.join().expect("not panicked");
        volume.assert_clean();
        let mount = volume.mount();
        let there = mount.join("copy").exists();
        assert!(there || !done, "what was reported is there");
        if !there {
            ok(&pando(&mount.path, &["clone", "src", "copy"]));
        }
        sh(&mount.path, "diff -r src copy");
        let removal = std::thread::spawn(move || pando(Path::new("/"), &["rmr", &copy]).status.success());
        std::thread::sleep(std::time::Duration::from_millis(wait));
        mount.kill();
        let done = removal.join().expect("not panicked");
        volume.assert_clean();
        let mount = volume.mount();
        assert!(!(done && mount.join("copy").exists()));
        if mount.join("copy").exists() {
            ok(&pando(&mount.path, &["rmr", "copy"]));
        }
        assert_eq!(sh(&mount.path, "ls; find src -type f | wc -l"), "src\n480\n");
        mount.unmount();
        volume.assert_clean();
    }
}

#[test]
fn a_tree_is_removed_with_the_rights_of_the_caller() {
    let (volume, mount) = with_trash(&[]);
    let dir = &mount.path;
    sh(
        dir,
        "mkdir -p a/b/c; for i in $(seq 300); do : > a/b/$i; done; ln -s / a/root; mkdir -m 777 open; mkdir open/closed; : > open/closed/f",
    );
    let refused = as_nobody(&volume, dir, &["rmr", "open/closed"]);
    assert!(!refused.status.success() && text(&refused).contains("RMR \"open/closed\": permission denied"), "{}", text(&refused));
    let refused = as_nobody(&volume, dir, &["rmr", "--skip-trash", "a"]);
    assert!(!refused.status.success() && text(&refused).contains("only root may skip the trash"), "{}", text(&refused));
    assert_eq!(ok(&pando(dir, &["rmr", "a"])), "");
    assert_eq!(sh(dir, "ls"), "open\n");
    let missing = pando(dir, &["rmr", "nosuch"]);
    assert!(!missing.status.success() && text(&missing).contains("RMR \"nosuch\": no such file or directory"), "{}", text(&missing));
    let outside = pando(dir, &["rmr", "/tmp"]);
    assert!(!outside.status.success() && text(&outside).contains("/tmp is not inside a Pando mount"), "{}", text(&outside));
    ok(&run(Command::new(PANDO).arg0("juicefs").args(["rmr", "/tmp"]).current_dir(dir)));
    let unseen = pando(dir, &["info", "nosuch"]);
    assert!(!unseen.status.success() && text(&unseen).contains("not shown: 1 of 1"), "{}", text(&unseen));
    ok(&run(Command::new(PANDO).arg0("juicefs").args(["info", "nosuch"]).current_dir(dir)));
    ok(&pando(dir, &["undelete", "a"]));
    assert_eq!(sh(dir, "find a | wc -l"), "304\n");
    drop(mount);
    volume.assert_clean();
}

#[test]
fn files_are_brought_into_the_cache_and_out_of_it() {
    let volume = Volume::new();
    let cache = volume.temp.path().join("cache");
    let mount = volume.mount_at("mnt", &["--cache-dir", cache.to_str().expect("text")]);
    sh(
        &mount.path,
        "mkdir d; head -c 1000000 /dev/urandom > d/large; head -c 100000 /dev/urandom > d/other; printf 'd/large\\n\\nd/other\\n' > ../list",
    );
    let warmup = |args: &[&str]| text(&pando(&mount.path, &[&["warmup"], args].concat()));
    assert!(warmup(&["--evict", "d"]).contains("evict cache: 2 files (1.0 MiB bytes)"));
    assert!(warmup(&["--check", "d"]).contains("check cache: 2 files checked, 0 B of 1.0 MiB (0.0%) cached"));
    assert!(warmup(&["-f", "../list"]).contains("warmup cache: 2 files (1.0 MiB bytes)"));
    crate::support::eventually("the blocks are in the directory", || {
        let checked = warmup(&["--check", "d"]);
        checked.contains("| disk     | 1.0 MiB |     100.0% |") && checked.contains("(100.0%) cached")
    });
    assert!(sh(&cache, "find . -name '*_1000000' | wc -l").trim() == "1");
    assert!(warmup(&["--evict", "d/other"]).contains("evict cache: 1 files"));
    assert!(warmup(&["-b", "d"]).contains("warmup cache for 1 paths in background"));
    crate::support::eventually("the mount has gone on", || warmup(&["--check", "d"]).contains("(100.0%) cached"));
    assert!(warmup(&[]).contains("no path"));
    assert!(warmup(&["--evict", "--check", "d"]).contains("exclude each other"));
}
