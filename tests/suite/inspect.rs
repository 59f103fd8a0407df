//! What commands tell: numbers of a running mount, results for programs, progress on a terminal and elsewhere.

use crate::support::{PANDO, Volume, run, sh, text};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn pando(dir: &Path, args: &[&str]) -> Output {
    run(Command::new(PANDO).args(args).current_dir(dir))
}

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The documents a command prints, one a line.
fn documents(output: &Output) -> Vec<Value> {
    out(output).lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

#[test]
fn stats_and_profile_show_what_a_mount_does() {
    let volume = Volume::new();
    let mount = volume.mount();
    let at = mount.path.to_str().expect("text");
    let first = out(&pando(&mount.path, &["stats", "-c", "1", "."]));
    let lines: Vec<&str> = first.lines().collect();
    assert_eq!(lines[0], "------usage------ ----------fuse--------- ----meta--- -blockcache ---object--");
    assert_eq!(lines[1], " cpu   mem   buf | ops   lat   read write| ops   lat | read write| get   put ");
    assert_eq!((lines.len(), lines[2].len()), (3, lines[1].len()), "{first}");
    let stats = std::thread::scope(|scope| {
        let stats = scope.spawn(|| documents(&pando(Path::new("/"), &["stats", "--json", "--interval", "0.5", "-c", "4", at])));
        let profile = scope.spawn(|| documents(&pando(Path::new("/"), &["profile", "--json", "--interval", "0.5", "-c", "3", at])));
        while !stats.is_finished() || !profile.is_finished() {
            fs::write(mount.join("f"), vec![1; 300_000]).expect("written");
            assert_eq!(fs::read(mount.join("f")).expect("read").len(), 300_000);
        }
        let profile = profile.join().expect("not panicked");
        assert_eq!(profile.len(), 3);
        let operations = profile[2]["Operations"].as_array().expect("a list");
        assert!(operations.iter().any(|row| row["Operation"] == "write" && row["Count"].as_u64() > Some(0)), "{}", profile[2]);
        stats.join().expect("not panicked")
    });
    assert_eq!(stats.len(), 4);
    assert_eq!(stats[0]["FuseOps"], 0.0, "the first line has no rates");
    for name in ["FuseOps", "FuseMillis", "FuseWrittenBytes", "MetaOps", "Transactions", "PutBytes", "Puts", "MemoryBytes", "CpuPercent"] {
        assert!(stats[3][name].as_f64() > Some(0.0), "{name} in {}", stats[3]);
    }
    let shown = out(&pando(&mount.path, &["profile", "-c", "1", "--interval", "0.2", "."]));
    assert!(shown.contains("Operation           Count     Average(us)          Total(us)     Percent(%)"), "{shown}");
    for (args, why) in [
        (&["stats", "/"][..], "path \"/\" is not a mount point"),
        (&["stats", "--schema", "x", at], "Invalid value \"x\" for \"schema\""),
        (&["stats", "--interval", "0", at], "at least 0.01"),
        (&["profile", "--uid", "0", at], "--uid is for access logs"),
    ] {
        let refused = pando(Path::new("/"), args);
        assert!(!refused.status.success() && text(&refused).contains(why), "{args:?}: {}", text(&refused));
    }
    mount.unmount();
}

#[test]
fn debug_collects_and_tells_no_secret() {
    let volume = Volume::served(1);
    let mount = volume.mount();
    fs::write(mount.join("f"), "x").expect("written");
    let temp = volume.temp.path();
    let told = out(&pando(temp, &["debug", "--out-dir", "collected", "--stats-sec", "0.1", "mnt"]));
    let [dir, archive] = told.lines().collect::<Vec<_>>()[..] else { panic!("{told}") };
    let read = |name: &str| fs::read_to_string(temp.join(dir).join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(read("config.txt").contains("\"SecretKey\": \"removed\"") && read("config.txt").contains("\"Name\": \"vol\""));
    assert!(read("stats.txt").contains("juicefs_fuse_ops_total") && read("stats.0.1s.txt").contains("juicefs_memory"));
    assert!(read("system-info.log").contains("pando version") && read("process.txt").contains("VmHWM"));
    assert!(read("threads.txt").contains("fuse-0"), "{}", read("threads.txt"));
    // That of a mount in the foreground goes where ours goes.
    let is_kept = fs::metadata("/proc/self/fd/2").is_ok_and(|found| found.is_file());
    assert_eq!(read("pando.log").starts_with("not available"), !is_kept, "{}", read("pando.log"));
    let all = sh(&temp.join(dir), "cat *");
    assert!(!all.contains(crate::s3_server::SECRET_KEY), "a secret is told");
    let names = sh(temp, &format!("python3 -m zipfile -l {archive} && python3 -m zipfile -t {archive}"));
    assert!(names.contains("/threads.later.txt") && names.contains("Done testing"), "{names}");
    mount.unmount();
}

#[test]
fn results_are_for_programs_too() {
    let volume = Volume::new();
    let (dir, temp) = (volume.dir(), volume.temp.path());
    let dir = dir.to_str().expect("text");
    out(&pando(temp, &["format", "--trash-days", "1", dir, "vol"]));
    let mount = volume.mount();
    sh(&mount.path, "mkdir -p t/d; echo hello > t/f; head -c 200000 /dev/urandom > t/d/g; echo x > gone; rm gone");
    let one = |args: &[&str]| {
        let all = documents(&pando(&mount.path, args));
        assert_eq!(all.len(), 1, "{args:?}");
        all.into_iter().next().expect("one")
    };
    assert_eq!(one(&["info", "--json", "t/f"])["Length"], 6);
    assert_eq!(one(&["summary", "--json", "t"])["Files"], 2);
    assert_eq!(one(&["clone", "--json", "t", "copy"])["Count"], 4);
    assert_eq!(one(&["rmr", "--json", "copy"])["Removed"], 4);
    assert_eq!(one(&["compact", "--json", "t"])["Files"], 2);
    assert_eq!(one(&["warmup", "--json", "t"])["Files"], 2);
    assert_eq!(one(&["undelete", "--json", "--list", "gone"])["Versions"][0]["Length"], 2);
    assert_eq!(one(&["undelete", "--json", "gone"])["Restored"], 1);
    let set = one(&["quota", "set", dir, "--path", "/t", "--inodes", "100", "--json"]);
    assert_eq!((&set[0]["Name"], &set[0]["Inodes"], &set[0]["Space"]), (&"/t".into(), &100.into(), &Value::Null));
    assert_eq!(one(&["quota", "list", dir, "--json"])[0]["UsedInodes"], 3);
    assert_eq!(one(&["quota", "check", dir, "--path", "/t", "--json"])[0]["Consistent"], true);
    mount.unmount();
    let one = |args: &[&str]| documents(&pando(temp, args)).pop().expect("a document");
    assert_eq!(one(&["gc", "--json", dir])["Leaked"]["Count"], 0);
    let checked = one(&["fsck", "--json", dir]);
    assert!(checked["Inodes"].as_u64() > Some(5) && checked["Findings"].as_array().is_some_and(Vec::is_empty), "{checked}");
    let dumped = one(&["dump", "--json", dir, "dump.json"]);
    assert!(dumped["File"] == "dump.json" && dumped["Inodes"].as_u64() > Some(5), "{dumped}");
    assert!(one(&["load", "--json", "./copy", "dump.json"])["Inodes"].as_u64() > Some(5));
    let refused = pando(temp, &["dump", "--json", dir]);
    assert!(!refused.status.success() && text(&refused).contains("--json needs FILE"), "{}", text(&refused));
    let refused = pando(temp, &["destroy", "--json", dir, "x"]);
    assert!(!refused.status.success() && text(&refused).contains("--json needs --yes"), "{}", text(&refused));
    // Damage is a document, and a failure.
    sh(Path::new(dir), "rm -r objects/vol/chunks");
    let lost = pando(temp, &["fsck", "--json", dir]);
    let document: Value = serde_json::from_slice(&lost.stdout).expect("a document");
    assert!(lost.status.code() == Some(1) && document["LostBlocks"].as_u64() > Some(0), "{document}");
    let paths: Vec<&str> = document["BrokenFiles"].as_array().expect("a list").iter().filter_map(|file| file["Path"].as_str()).collect();
    assert!(paths.contains(&"/t/d/g") && paths.iter().any(|path| path.starts_with("/.trash/")), "{paths:?}");
    let setting: Value = serde_json::from_slice(&pando(temp, &["status", dir]).stdout).expect("a document");
    let uuid = setting["Setting"]["UUID"].as_str().expect("a UUID");
    assert!(one(&["destroy", "--json", "--yes", dir, uuid])["Keys"].as_u64() > Some(5));
}

#[test]
fn progress_is_drawn_on_a_terminal_only() {
    let volume = Volume::new();
    let mount = volume.mount();
    // Enough for a removal that is seen: the tree is copied without data.
    sh(&mount.path, "mkdir t; for d in $(seq 10); do mkdir t/$d; for f in $(seq 100); do : > t/$d/$f; done; done");
    for copy in 0..8 {
        out(&pando(&mount.path, &["clone", "t", &format!("t{copy}")]));
    }
    sh(&mount.path, "mkdir all; mv t? all");
    out(&pando(&mount.path, &["clone", "all", "other"]));
    // `script` gives the program a terminal.
    let drawn = sh(&mount.path, &format!("script -qec '{PANDO} rmr all' /dev/null"));
    assert!(drawn.contains("\r\x1b[Krmr inodes: ") && drawn.contains("removed 8,0"), "{drawn:?}");
    let plain = pando(&mount.path, &["rmr", "other"]);
    assert_eq!(out(&plain), "");
    assert!(!text(&plain).contains('\r') && text(&plain).contains("removed 8,0"), "{}", text(&plain));
    mount.unmount();
}
