//! Commands of an operator beside writers: nothing is lost, no false alarm.

use crate::servers::RedisServer;
use crate::support::{Dice, Mount, PANDO, Volume, eventually, run, sh, size, text};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How often `gc` and `fsck` run beside writers.
const ROUNDS: (usize, usize) = (3, 100);

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
            let found = ok(&pando(args));
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
