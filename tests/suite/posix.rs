//! POSIX by the two suites everybody trusts: pjdfstest and fsx.

use crate::support::{Dice, PANDO, Volume, run, seed, size, text, tool};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

/// Cases the suite skips here, one a line with the reason.
const SKIPPED: &str = include_str!("../pjdfstest-skipped.txt");

#[test]
fn pjdfstest() {
    check_posix(&Volume::new());
}

/// With a trash every rule about links and times of unlinked files holds all the same.
#[test]
fn pjdfstest_with_a_trash() {
    check_posix(&Volume::with(&[("TrashDays", 1.into())]));
}

#[test]
fn pjdfstest_on_servers() {
    check_posix(&Volume::served(0));
}

#[test]
fn pjdfstest_on_servers_with_a_trash() {
    check_posix(&Volume::served(1));
}

fn check_posix(volume: &Volume) {
    let mount = volume.mount();
    let config = volume.temp.path().join("pjdfstest.toml");
    let group = if Path::new("/etc/debian_version").exists() { "nogroup" } else { "nobody" };
    let text_of_config = format!(
        "[features]\nposix_fallocate = {{}}\nrename_ctime = {{}}\nutimensat = {{}}\nutime_now = {{}}\n\
         [settings]\nnaptime = 0.01\nallow_remount = false\n\
         [dummy_auth]\nentries = [ [\"nobody\", \"{group}\"], [\"tests\", \"tests\"] ]\n"
    );
    fs::write(&config, text_of_config).expect("written");
    let output = run(Command::new(tool("pjdfstest")).arg("-c").arg(&config).arg("-p").arg(&mount.path).arg("-s").arg(volume.temp.path()));
    let report = text(&output);
    let summary = report.lines().rev().find(|line| line.contains("total")).unwrap_or_default().to_string();
    println!("pjdfstest: {summary}");
    let bad: Vec<&str> = report.lines().filter(|line| !line.ends_with("ok\u{1b}[0m") && !line.ends_with("ok")).collect();
    assert!(output.status.success(), "pjdfstest failed:\n{}", bad.join("\n"));
    // A case that is skipped without being listed is a case nobody runs; one that is listed and runs has lost its reason.
    let listed: BTreeSet<&str> =
        SKIPPED.lines().filter_map(|line| line.split('#').next()).map(str::trim).filter(|case| !case.is_empty()).collect();
    let skipped: BTreeSet<&str> = report
        .lines()
        .filter(|line| line.contains("skipped") && line.contains("::"))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(skipped, listed, "skipped cases on the left, listed ones on the right");
    mount.unmount();
    volume.assert_clean();
}

#[test]
fn fsx() {
    check_fsx(&Volume::new(), 3, size(10_000, 1_000_000), false);
}

#[test]
fn fsx_on_servers_while_slices_are_merged() {
    check_fsx(&Volume::served(0), size(1, 2) as u32, size(2_000, 200_000), true);
}

#[test]
fn fsx_on_servers_with_a_trash_while_slices_are_merged() {
    check_fsx(&Volume::served(1), size(1, 2) as u32, size(2_000, 200_000), true);
}

/// Compacts a file again and again.
struct Compactor {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Compactor {
    fn start(file: &Path) -> Compactor {
        let (file, stop) = (file.to_path_buf(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !stopped.load(SeqCst) {
                if file.exists() {
                    let output = run(Command::new(PANDO).arg("compact").arg(&file));
                    assert!(output.status.success(), "{}", text(&output));
                    count += 1;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            count
        });
        Compactor { stop, thread }
    }

    /// How often it did; at least once.
    fn stop(self) -> usize {
        self.stop.store(true, SeqCst);
        let count = self.thread.join().expect("every compaction succeeds");
        assert!(count > 0, "nothing was compacted");
        count
    }
}

/// Operations of one run of fsx. It never unmaps what it has mapped to read: after half a million operations the kernel refuses to map more
/// (65,530 mappings), and long before that every change of the file spends its time in walking them.
const FSX_LEG: usize = 20_000;

/// `rounds` times `operations` operations of fsx on one file, each leg with a seed of its own.
fn check_fsx(volume: &Volume, rounds: u32, operations: usize, compactor: bool) {
    let mut dice = Dice::new(seed("fsx"));
    let mount = volume.mount();
    let config = volume.temp.path().join("fsx.toml");
    // Sizes around the block size of small files and the frame bound; long enough files that several blocks take part.
    fs::write(
        &config,
        "flen = 1048576\n[opsize]\nmax = 131072\nmin = 1\n[weights]\nclose_open = 1\ninvalidate = 1\nmapread = 5\nmapwrite = 5\nread = 10\n\
         write = 10\ntruncate = 3\nfsync = 0.3\nfdatasync = 0.3\nposix_fallocate = 1\npunch_hole = 2\nsendfile = 1\ncopy_file_range = 2\n",
    )
    .expect("written");
    for round in 0..rounds {
        let artifacts = volume.temp.path().join("artifacts");
        fs::create_dir_all(&artifacts).expect("created");
        let started = std::time::Instant::now();
        let file = mount.join(format!("fsx-{round}"));
        let compactor = compactor.then(|| Compactor::start(&file));
        for first in (0..operations).step_by(FSX_LEG) {
            let (seed, count) = (dice.next() >> 32, FSX_LEG.min(operations - first));
            let output = run(Command::new(tool("fsx"))
                .arg("-f")
                .arg(&config)
                .args(["-N", &count.to_string(), "-S", &seed.to_string(), "-P"])
                .arg(&artifacts)
                .arg(&file));
            assert!(output.status.success(), "fsx -N {count} -S {seed} failed:\n{}", text(&output));
        }
        println!("fsx: {operations} operations, {:.1} s: ok", started.elapsed().as_secs_f64());
        if let Some(compactor) = compactor {
            println!("compacted {} times meanwhile", compactor.stop());
        }
    }
    mount.unmount();
    volume.assert_clean();
}
