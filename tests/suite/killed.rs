//! Commands of an operator that are killed, and commands beside writers: nothing is lost, no false alarm, and running a command again does
//! the rest.

use crate::servers::RedisServer;
use crate::support::{Dice, Mount, PANDO, Volume, eventually, run, seed, sh, size, text};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often each command is killed.
const KILLS: (usize, usize) = (1, 50);
/// How often `gc` and `fsck` run beside writers.
const ROUNDS: (usize, usize) = (3, 100);
/// How long `gc` takes beside writers at most: some waits of 3 s for what a server may lose, on a machine that does other things.
const GC_TIME_MAX: Duration = Duration::from_secs(60);

fn pando(args: &[&str]) -> Output {
    run(Command::new(PANDO).args(args))
}

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

fn old(bucket: &Path) {
    sh(bucket, "find vol/chunks -type f -exec touch -d '2 hours ago' {} +");
}

#[test]
fn gc_and_fsck_are_right_beside_writers() {
    let (server, volume) = (RedisServer::with(&[]), Volume::new());
    let (url, bucket) = (server.url(1), volume.temp.path().join("objects"));
    ok(&pando(&["format", "--storage", "file", "--trash-days", "0", "--bucket", bucket.to_str().expect("text"), &url, "vol"]));
    let mount = Mount::start(Path::new(&url), &volume.temp.path().join("mnt"), &["--cache-size", "0", "--backup-meta", "0"]);
    sh(&mount.path, "mkdir old new; for i in $(seq 20); do head -c 100000 /dev/urandom > old/f0_$i; done");
    let sums = "for i in $(seq 20); do md5sum < $(echo old/f*_$i); done";
    let before = sh(&mount.path, sums);
    old(&bucket);
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let go_on = || !stop.load(Ordering::Relaxed);
    let content = |file: u64, version: u64| Dice::new(file << 32 | version).bytes(100 + (file as usize % 7) * 40_000);
    /// However the test ends, those who write do.
    struct Stopping<'a>(&'a AtomicBool);
    impl Drop for Stopping<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let stopping = Stopping(&stop);
        // Old objects change their files.
        let moved = scope.spawn(|| {
            for round in 0.. {
                sh(&mount.path, &format!("cd old; for i in $(seq 20); do cp f{round}_$i f{}_$i && rm f{round}_$i; done", round + 1));
                if !go_on() {
                    break;
                }
            }
        });
        // New ones are written, overwritten, renamed and removed; a few appends make chunks that can be compacted.
        let writers: Vec<_> = (0..2u64)
            .map(|writer| {
                let (mount, written, go_on) = (&mount, &written, &go_on);
                scope.spawn(move || {
                    let mut versions = Vec::new();
                    for version in 1.. {
                        for file in 0..6u64 {
                            let name = mount.join(format!("new/{writer}-{file}"));
                            let bytes = content(writer * 100 + file, version);
                            if file % 2 == 0 {
                                fs::write(&name, &bytes).expect("written");
                            } else {
                                let aside = mount.join(format!("new/{writer}-aside"));
                                fs::write(&aside, &bytes).expect("written");
                                fs::rename(&aside, &name).expect("renamed");
                            }
                            written.fetch_add(1, Ordering::Relaxed);
                        }
                        let gone = mount.join(format!("new/{writer}-gone"));
                        fs::write(&gone, vec![7; 200_000]).and_then(|()| fs::remove_file(&gone)).expect("removed");
                        if !go_on() {
                            versions.push(version);
                            return versions;
                        }
                    }
                    versions
                })
            })
            .collect();
        for round in 0..size(ROUNDS.0, ROUNDS.1) {
            let least = written.load(Ordering::Relaxed) + 12;
            eventually("writers write", || written.load(Ordering::Relaxed) >= least);
            let stray = bucket.join(format!("vol/chunks/0/0/{}_0_5", 1 + round % 3));
            let leak = fs::write(&stray, "stray").is_ok();
            assert!(leak && run(Command::new("touch").args(["-d", "2 hours ago"]).arg(&stray)).status.success());
            let found = ok(&pando(&["gc", &url]));
            assert!(found.contains(" 1 leaked (5 bytes)"), "round {round}: {found}");
            let args: &[&str] = if round % 2 == 0 { &["gc", "--delete", &url] } else { &["gc", "--delete", "--compact", &url] };
            let began = Instant::now();
            let found = ok(&pando(args));
            assert!(began.elapsed() < GC_TIME_MAX, "round {round}: it runs after the writers, {:?} by now", began.elapsed());
            assert!(found.contains(" 1 leaked (5 bytes)") && !stray.exists(), "round {round}: {found}");
            let checked = pando(&["fsck", &url]);
            assert!(checked.status.success(), "round {round}: a false alarm: {}", text(&checked));
        }
        drop(stopping);
        moved.join().expect("no error");
        for (writer, versions) in writers.into_iter().enumerate() {
            let versions = versions.join().expect("no error");
            for file in 0..6u64 {
                let expected = content(writer as u64 * 100 + file, versions[0]);
                assert!(fs::read(mount.join(format!("new/{writer}-{file}"))).expect("read") == expected, "{writer}-{file}");
            }
        }
    });
    assert_eq!(sh(&mount.path, sums), before);
    mount.unmount();
    let found = ok(&pando(&["gc", &url]));
    assert!(found.contains(" 0 leaked (0 bytes)"), "{found}");
    ok(&pando(&["fsck", &url]));
}

/// A volume with something of everything, and copies of it to work on.
struct World {
    server: RedisServer,
    volume: Volume,
    bucket: PathBuf,
    whole: PathBuf,
    /// What is in the files of the volume.
    sums: String,
    /// The hour of the trash.
    hour: String,
    uuid: String,
}

const SUMS: &str = "find tree* many -type f | sort | xargs md5sum";

impl World {
    fn new() -> World {
        let (server, volume) = (RedisServer::with(&[]), Volume::new());
        let bucket = volume.temp.path().join("objects");
        let (url, whole) = (server.url(1), volume.temp.path().join("whole"));
        ok(&pando(&["format", "--storage", "file", "--trash-days", "1", "--bucket", bucket.to_str().expect("text"), &url, "vol"]));
        let path = volume.temp.path().join("mnt");
        let mount = Mount::start(Path::new(&url), &path, &["--cache-size", "0", "--backup-meta", "1", "--show-internal"]);
        sh(
            &mount.path,
            "mkdir -p tree0; for d in $(seq 5); do mkdir tree0/$d; for f in $(seq 40); do echo $d $f > tree0/$d/$f; done; done
             head -c 300000 /dev/urandom > tree0/large; ln tree0/large tree0/1/linked; mkdir many gone",
        );
        for copy in 1..6 {
            ok(&run(Command::new(PANDO).args(["clone", "tree0", &format!("tree{copy}")]).current_dir(&mount.path)));
        }
        // Chunks of many records, and things in the trash.
        sh(
            &mount.path,
            "for f in $(seq 30); do for i in 1 2 3 4; do head -c 70000 /dev/urandom >> many/$f; done; done
             for f in $(seq 200); do echo $f > gone/$f; done; rm -r gone",
        );
        let (sums, hour) = (sh(&mount.path, SUMS), sh(&mount.path, "ls .trash | tail -1").trim().to_owned());
        let count = || fs::read_dir(bucket.join("vol/meta")).into_iter().flatten().count();
        let seen = count();
        eventually("a backup of all of it", || count() >= seen + 2);
        mount.unmount();
        old(&bucket);
        sh(
            &bucket,
            "mkdir -p vol/chunks/0/0; for i in $(seq 50); do echo leak > vol/chunks/0/0/${i}_0_777; done; find vol/chunks -name '*_777' -exec touch -d '2 hours ago' {} +",
        );
        sh(volume.temp.path(), "cp -al objects whole");
        let setting: serde_json::Value = serde_json::from_slice(&pando(&["status", &url]).stdout).expect("a document");
        let uuid = setting["Setting"]["UUID"].as_str().expect("a UUID").to_owned();
        World { server, volume, bucket, whole, sums, hour, uuid }
    }

    fn redis(&self, args: &[&str]) -> String {
        self.server.cli(args)
    }

    /// The volume as it was, at another address.
    fn begin(&self) -> String {
        for db in ["2", "3"] {
            self.redis(&["-n", db, "flushdb"]);
        }
        self.redis(&["-n", "1", "eval", "for _,k in ipairs(redis.call('keys','*')) do redis.call('copy',k,k,'db',2) end", "0"]);
        sh(
            self.volume.temp.path(),
            &format!("rm -rf {} && cp -al {} {}", self.bucket.display(), self.whole.display(), self.bucket.display()),
        );
        self.server.url(2)
    }

    fn mount(&self, url: &str) -> Mount {
        let path = self.volume.temp.path().join("work");
        Mount::start(Path::new(url), &path, &["--cache-size", "0", "--backup-meta", "0", "--no-bgjob"])
    }

    /// Nothing is lost, and all of it is consistent.
    fn check(&self, what: &str, url: &str) {
        let checked = pando(&["fsck", url]);
        assert!(checked.status.success(), "{what}: {}", text(&checked));
        let mount = self.mount(url);
        assert!(sh(&mount.path, SUMS) == self.sums, "{what}: files differ");
        mount.unmount();
    }
}

/// Kills a command after a while; whether it had ended before.
fn kill(args: &[&str], dir: &Path, wait: Duration) -> bool {
    let mut child = Command::new(PANDO).args(args).current_dir(dir).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started");
    let end = Instant::now() + wait;
    loop {
        if let Some(status) = child.try_wait().expect("ours") {
            assert!(status.success(), "{args:?} ended with {status}");
            return true;
        }
        if Instant::now() >= end {
            child.kill().expect("alive");
            child.wait().expect("reaped");
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs `round` with a command that is killed at a random moment of the time it takes.
fn killed(what: &str, dice: &mut Dice, mut round: impl FnMut(&dyn Fn(&[&str], &Path) -> bool)) {
    let took = std::cell::Cell::new(Duration::ZERO);
    round(&|args, dir| {
        let begin = Instant::now();
        let whole = kill(args, dir, Duration::from_secs(120));
        took.set(begin.elapsed());
        whole
    });
    let (mut cut, kills) = (0, size(KILLS.0, KILLS.1));
    for _ in 0..kills {
        let wait = Duration::from_millis(dice.below(took.get().as_millis() as usize + 2) as u64);
        let is_cut = std::cell::Cell::new(false);
        round(&|args, dir| {
            let whole = kill(args, dir, wait);
            is_cut.set(!whole);
            whole
        });
        cut += u32::from(is_cut.get());
    }
    println!("{what}: takes {:?}, {cut} of {kills} were cut", took.get());
}

#[test]
fn commands_that_are_killed_are_run_again() {
    let w = World::new();
    let mut dice = Dice::new(seed("commands_that_are_killed_are_run_again"));
    let temp = w.volume.temp.path().to_owned();
    let (dump, reference) = (temp.join("dump.json"), temp.join("reference.json"));
    let reference_text = reference.to_str().expect("text");
    let url = w.begin();
    w.check("the volume itself", &url);
    w.begin();
    ok(&pando(&["dump", &url, reference_text]));
    let whole = fs::read(&reference).expect("dumped");

    killed("dump", &mut dice, |kill| {
        let _ = fs::remove_file(&dump);
        let done = kill(&["dump", &url, "dump.json"], &temp);
        assert!(dump.exists() == done || fs::read(&dump).expect("there") == whole, "what has its name is complete");
        ok(&pando(&["dump", &url, dump.to_str().expect("text")]));
        assert!(fs::read(&dump).expect("dumped") == whole);
    });
    let other = w.server.url(3);
    let is_volume = || pando(&["status", &other]).status.success();
    let begin_again = || {
        if !is_volume() {
            w.redis(&["-n", "3", "flushdb"]);
            return true;
        }
        false
    };
    killed("load", &mut dice, |kill| {
        w.begin();
        let done = kill(&["load", &other, reference_text], &temp);
        assert!(is_volume() || !done);
        if begin_again() {
            ok(&pando(&["load", &other, reference_text]));
        }
        w.check("load", &other);
    });
    killed("restore-meta", &mut dice, |kill| {
        w.begin();
        let args = ["restore-meta", &other, "--bucket", w.bucket.to_str().expect("text")];
        let done = kill(&args, &temp);
        assert!(is_volume() || !done);
        if begin_again() {
            ok(&pando(&args));
        }
        w.check("restore-meta", &other);
    });
    killed("gc", &mut dice, |kill| {
        let url = w.begin();
        kill(&["gc", "--delete", "--compact", &url], &temp);
        ok(&pando(&["gc", "--delete", "--compact", &url]));
        // Of what was cut after its object was stored the object is young, and goes another time.
        assert!(sh(&w.bucket, "find vol/chunks -name '*_777' | wc -l").trim() == "0");
        w.check("gc", &url);
    });
    killed("fsck --repair", &mut dice, |kill| {
        let url = w.begin();
        let damage = "for i,k in ipairs(redis.call('keys','i*')) do if string.match(k,'^i%d+$') and k ~= 'i1' then redis.call('setrange',k,47,'\\0\\0\\0\\9') end end
                      redis.call('del','dirUsedSpace','usedSpace','sliceRef')";
        w.redis(&["-n", "2", "eval", damage, "0"]);
        assert!(!pando(&["fsck", &url]).status.success());
        kill(&["fsck", "--repair", &url], &temp);
        ok(&pando(&["fsck", "--repair", &url]));
        w.check("fsck --repair", &url);
    });
    killed("restore", &mut dice, |kill| {
        let url = w.begin();
        let args = ["restore", "--put-back", &url, &w.hour];
        kill(&args, &temp);
        ok(&pando(&args));
        w.check("restore", &url);
        let mount = w.mount(&url);
        assert_eq!(sh(&mount.path, "cat gone/* | sort -n | tail -1; ls gone | wc -l"), "200\n200\n");
        mount.unmount();
    });
    killed("destroy", &mut dice, |kill| {
        let url = w.begin();
        let args = ["destroy", "--yes", &url, &w.uuid];
        let done = kill(&args, &temp);
        let again = pando(&args);
        let gone = !again.status.success() && text(&again).contains("database is not formatted");
        assert!(again.status.success() != gone && (gone || !done), "{}", text(&again));
        assert!(!w.bucket.join("vol").exists());
        assert!(w.redis(&["-n", "2", "keys", "*"]).lines().all(|key| key.is_empty() || key.starts_with("_pando:op:")));
    });
}

#[test]
fn commands_inside_a_mount_that_are_killed_are_run_again() {
    let w = World::new();
    let mut dice = Dice::new(seed("commands_inside_a_mount_that_are_killed_are_run_again"));
    killed("compact", &mut dice, |kill| {
        let url = w.begin();
        let mount = w.mount(&url);
        kill(&["compact", "many"], &mount.path);
        ok(&pando(&["compact", mount.join("many").to_str().expect("text")]));
        mount.unmount();
        let found = ok(&pando(&["gc", &url]));
        assert!(!found.contains("chunks can be compacted"), "{found}");
        w.check("compact", &url);
    });
    killed("rmr", &mut dice, |kill| {
        let url = w.begin();
        let mount = w.mount(&url);
        sh(&mount.path, "mkdir all; mv tree* many all");
        let done = kill(&["rmr", "all"], &mount.path);
        if !done {
            // It may have been too late to call it off.
            let again = pando(&["rmr", mount.join("all").to_str().expect("text")]);
            assert!(again.status.success() || text(&again).contains("no such file"), "{}", text(&again));
        }
        // The kernel is told a moment after the answer.
        eventually("the name is gone", || !mount.join("all").exists());
        // Nothing is lost: it is in the trash.
        ok(&pando(&["undelete", mount.join("all").to_str().expect("text")]));
        sh(&mount.path, "mv all/* . && rmdir all");
        mount.unmount();
        w.check("rmr", &url);
    });
    killed("clone", &mut dice, |kill| {
        let url = w.begin();
        let mount = w.mount(&url);
        sh(&mount.path, "mkdir all; mv tree* all");
        let done = kill(&["clone", "all", "copy"], &mount.path);
        if done {
            eventually("the copy has its name", || mount.join("copy").exists());
        }
        // It may have been too late to call it off.
        let again = pando(&["clone", mount.join("all").to_str().expect("text"), mount.join("copy").to_str().expect("text")]);
        assert!(again.status.success() || text(&again).contains("already exists"), "{}", text(&again));
        sh(&mount.path, "diff -r all copy && mv all/* . && rmdir all");
        mount.unmount();
        w.check("clone", &url);
    });
    killed("undelete", &mut dice, |kill| {
        let url = w.begin();
        let mount = w.mount(&url);
        let gone = mount.join("gone");
        let done = kill(&["undelete", "gone"], &mount.path);
        if done {
            eventually("all are back", || gone.exists() && sh(&gone, "ls | wc -l").trim() == "200");
        }
        ok(&pando(&["undelete", gone.to_str().expect("text")]));
        assert_eq!(sh(&gone, "ls | wc -l").trim(), "200");
        mount.unmount();
        w.check("undelete", &url);
    });
}
