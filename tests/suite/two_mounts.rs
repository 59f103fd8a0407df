//! Two daemons on one volume at once: what one does the other sees, and every race has one winner.

use crate::locks::{lock, lock_byte, unlock};
use crate::support::{Mount, Volume, eventually, finish, sh, size, worker, worker_arg};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

fn two() -> (Volume, Mount, Mount) {
    two_of(Volume::new())
}

fn two_of(volume: Volume) -> (Volume, Mount, Mount) {
    let a = volume.mount_at("a", &[]);
    let b = volume.mount_at("b", &[]);
    (volume, a, b)
}

#[test]
fn what_one_does_the_other_sees_at_once() {
    let (volume, a, b) = two();
    for i in 0..size(100, 5000) {
        let name = format!("f{i}");
        assert!(!b.join(&name).exists());
        fs::write(a.join(&name), format!("first {i}")).expect("written");
        assert_eq!(fs::read_to_string(b.join(&name)).expect("there"), format!("first {i}"));
        fs::write(b.join("tmp"), format!("second {i}, longer")).expect("written");
        fs::rename(b.join("tmp"), b.join(&name)).expect("replaced");
        assert_eq!(fs::read_to_string(a.join(&name)).expect("there"), format!("second {i}, longer"));
        assert_eq!(fs::metadata(a.join(&name)).expect("there").ino(), fs::metadata(b.join(&name)).expect("there").ino());
        fs::remove_file(a.join(&name)).expect("removed");
        assert!(!b.join(&name).exists());
    }
    // An open file shows what the other wrote, at the next read.
    let mut reader = File::create_new(a.join("log")).and_then(|_| File::open(a.join("log"))).expect("opened");
    let mut writer = OpenOptions::new().append(true).open(b.join("log")).expect("opened");
    let mut seen = String::new();
    for i in 0..size(50, 2000) {
        writer.write_all(format!("line {i}\n").as_bytes()).expect("written");
        writer.sync_all().expect("synced");
        reader.read_to_string(&mut seen).expect("readable");
        assert!(seen.ends_with(&format!("line {i}\n")), "after line {i}: {:?}", &seen[seen.len().saturating_sub(40)..]);
    }
    drop((reader, writer));
    a.unmount();
    b.unmount();
    volume.assert_clean();
}

/// In a worker: creates `count` names exclusively and reports how many it won.
pub fn exclusive_worker() {
    let (dir, count) = (worker_arg(0), worker_arg(1).parse::<usize>().expect("a number"));
    let won = (0..count).filter(|i| OpenOptions::new().write(true).create_new(true).open(format!("{dir}/x{i}")).is_ok()).count();
    let mut renamed = 0;
    for i in 0..count {
        renamed += usize::from(fs::rename(format!("{dir}/source{i}"), format!("{dir}/target{i}-{}", std::process::id())).is_ok());
    }
    println!("won {won} renamed {renamed}");
}

#[test]
fn races_have_one_winner() {
    check_races(two(), size(300, 10_000));
}

#[test]
fn races_on_servers_have_one_winner() {
    check_races(two_of(Volume::served(0)), size(100, 10_000));
}

fn check_races((volume, a, b): (Volume, Mount, Mount), count: usize) {
    for i in 0..count {
        fs::write(a.join(format!("source{i}")), "").expect("written");
    }
    let children: Vec<_> = [&a, &b, &a, &b]
        .iter()
        .map(|m| worker("exclusive", &[m.path.as_os_str(), count.to_string().as_ref()]).spawn().expect("started"))
        .collect();
    let mut sums = (0, 0);
    for child in children {
        let out = finish(child);
        let words: Vec<&str> = out.lines().find(|l| l.contains("won ")).expect("a report").split_whitespace().collect();
        let at = words.iter().position(|w| w.ends_with("won")).expect("a report");
        sums.0 += words[at + 1].parse::<usize>().expect("a number");
        sums.1 += words[at + 3].parse::<usize>().expect("a number");
    }
    assert_eq!(sums, (count, count), "every name was created once and renamed once");
    let names = fs::read_dir(&b.path).expect("listed").count();
    assert_eq!(names, 2 * count);
    a.unmount();
    b.unmount();
    volume.assert_clean();
}

/// In a worker: appends numbered records to one file, under a lock or by O_APPEND alone.
pub fn append_worker() {
    let (path, id, how, count) = (worker_arg(0), worker_arg(1), worker_arg(2), worker_arg(3).parse::<usize>().expect("a number"));
    let mut file = OpenOptions::new().read(true).write(true).append(how == "append").open(path).expect("opened");
    for i in 0..count {
        let record = format!("{id:>4} {i:>8} {}\n", "x".repeat(i * 7 % 90));
        if how == "append" {
            assert_eq!(file.write(record.as_bytes()).expect("written"), record.len());
        } else {
            lock(&file, &how, true).expect("granted");
            file.seek(SeekFrom::End(0)).expect("the end");
            file.write_all(record.as_bytes()).expect("written");
            unlock(&file, &how).expect("released");
        }
    }
}

#[test]
fn appended_records_are_all_there() {
    check_appends(two(), |how| size(if how == "append" { 1000 } else { 200 }, 20_000));
}

#[test]
fn appended_records_on_servers_are_all_there() {
    check_appends(two_of(Volume::served(0)), |_| size(50, 2500));
}

fn check_appends((volume, a, b): (Volume, Mount, Mount), count: impl Fn(&str) -> usize) {
    for how in ["append", "flock", "fcntl"] {
        let count = count(how);
        let name = format!("log-{how}");
        fs::write(a.join(&name), "").expect("created");
        let children: Vec<_> = [&a, &b, &a, &b]
            .iter()
            .enumerate()
            .map(|(id, m)| {
                let (path, id, count) = (m.join(&name), id.to_string(), count.to_string());
                worker("append", &[path.as_os_str(), id.as_ref(), how.as_ref(), count.as_ref()]).spawn().expect("started")
            })
            .collect();
        children.into_iter().for_each(|child| {
            finish(child);
        });
        for mount in [&a, &b] {
            let text = fs::read_to_string(mount.join(&name)).expect("text without a byte nobody wrote");
            let mut next = [0; 4];
            for line in text.lines() {
                let mut words = line.split_whitespace();
                let mut number =
                    || words.next().and_then(|w| w.parse::<usize>().ok()).unwrap_or_else(|| panic!("{how}: damaged line {line:?}"));
                let (id, i) = (number(), number());
                assert_eq!(i, next[id], "{how}: record of writer {id} out of order");
                assert_eq!(line.len(), 14 + i * 7 % 90, "{how}: torn record {line:?}");
                next[id] += 1;
            }
            assert_eq!(next, [count; 4], "{how}: records lost");
        }
    }
    a.unmount();
    b.unmount();
    volume.assert_clean();
}

#[test]
fn who_has_a_lock_reads_what_the_last_holder_wrote() {
    check_reads_under_locks(two(), size(1000, 50_000));
}

#[test]
fn who_has_a_lock_on_servers_reads_what_the_last_holder_wrote() {
    check_reads_under_locks(two_of(Volume::served(0)), size(300, 10_000));
}

/// Records in a file whose first byte is locked by who adds one from one side, and by who reads it from the other, while others there lock
/// another byte of it again and again.
fn check_reads_under_locks((volume, a, b): (Volume, Mount, Mount), rounds: usize) {
    const RECORD: usize = 8;
    const LOCKERS: usize = 2;
    let path = |mount: &Mount| mount.join("records");
    fs::write(path(&a), [0; 4096]).expect("written");
    let open = |mount: &Mount| OpenOptions::new().read(true).write(true).open(path(mount)).expect("opened");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..LOCKERS {
            let file = open(&a);
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(SeqCst) {
                    lock_byte(&file, 1, libc::F_RDLCK);
                    lock_byte(&file, 1, libc::F_UNLCK);
                }
            });
        }
        let _stopped = Stopped(&stop);
        let (reader, writer) = (open(&a), open(&b));
        for round in 0..rounds as u64 {
            let (record, end) = (round.to_le_bytes(), 4096 + round * RECORD as u64);
            lock_byte(&writer, 0, libc::F_WRLCK);
            writer.write_all_at(&record, 0).expect("written");
            writer.write_all_at(&record, end).expect("added");
            lock_byte(&writer, 0, libc::F_UNLCK);
            lock_byte(&reader, 0, libc::F_RDLCK);
            for at in [0, end] {
                let mut found = [0; RECORD];
                let count = reader.read_at(&mut found, at).expect("read");
                assert_eq!((count, found), (RECORD, record), "at {at} in round {round}");
            }
            lock_byte(&reader, 0, libc::F_UNLCK);
        }
    });
    a.unmount();
    b.unmount();
    volume.assert_clean();
}

/// Says so when it is dropped, be it in a panic.
struct Stopped<'a>(&'a AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn sqlite_written_from_both_keeps_every_row() {
    check_sqlite(two(), size(25, 1000));
}

#[test]
fn sqlite_on_servers_keeps_every_row() {
    check_sqlite(two_of(Volume::served(0)), size(5, 250));
}

fn check_sqlite((volume, a, b): (Volume, Mount, Mount), count: usize) {
    crate::programs::sqlite_writers(&[a.join("db"), b.join("db"), a.join("db"), b.join("db")], "delete", count);
    a.unmount();
    b.unmount();
    volume.assert_clean();
}

/// Commits from both sides in one repository, each after it was told that the other is done.
#[test]
fn git_commits_from_both_sides_are_all_there() {
    let (volume, a, b) = two_of(Volume::served(0));
    sh(&a.path, "git init -q -b main r && cd r && git config user.name t && git config user.email t@example.org && git config gc.auto 0");
    let count = size(6, 200);
    for i in 0..count {
        let side = if i % 2 == 0 { &a } else { &b };
        sh(&side.join("r"), &format!("mkdir -p d{} && echo {i} > d{}/f{i} && git add -A && git commit -qm {i}", i % 3, i % 3));
    }
    for side in [&a, &b] {
        let found =
            sh(&side.join("r"), "git fsck --full --strict 2>&1; git log --oneline | wc -l; git status --porcelain; cat d*/f* | wc -l");
        assert_eq!(found, format!("{count}\n{count}\n"));
    }
    a.unmount();
    b.unmount();
    volume.assert_clean();
}

#[test]
fn a_file_unlinked_elsewhere_keeps_its_bytes_for_a_minute() {
    let (volume, a, b) = two();
    let small = b"small enough for a frame".repeat(10);
    let large = vec![7u8; 300_000];
    for (name, bytes) in [("small", &small), ("large", &large)] {
        fs::write(a.join(name), bytes).expect("written");
    }
    let held: Vec<File> = ["small", "large"].iter().map(|name| File::open(b.join(name)).expect("opened")).collect();
    fs::remove_file(a.join("small")).expect("removed");
    fs::remove_file(a.join("large")).expect("removed");
    let removed = Instant::now();
    let read = |file: &File, len: usize| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0).map(|()| bytes)
    };
    // A fresh page each time: what the kernel still has would prove nothing.
    let drop_pages = |file: &File| {
        use std::os::fd::AsRawFd;
        // SAFETY: the descriptor is open; the call takes no pointers.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    };
    let until = Duration::from_secs(size(3, 55) as u64);
    while removed.elapsed() < until {
        for (file, bytes) in held.iter().zip([&small, &large]) {
            drop_pages(file);
            assert_eq!(&read(file, bytes.len()).expect("the old bytes"), bytes);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    if std::env::var_os("PANDO_SOAK").is_some() {
        std::thread::sleep(Duration::from_secs(90));
        for (file, bytes) in held.iter().zip([&small, &large]) {
            drop_pages(file);
            let error = read(file, bytes.len()).expect_err("gone for good");
            assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
        }
    }
    drop(held);
    a.unmount();
    b.unmount();
    volume.assert_clean();
}

#[test]
fn the_second_mount_may_come_and_go() {
    let volume = Volume::new();
    let a = volume.mount_at("a", &[]);
    for round in 0..size(3, 20) {
        fs::write(a.join("file"), format!("before {round}")).expect("written");
        fs::metadata(a.join("file")).expect("cached by the kernel of the first");
        let b = volume.mount_at("b", &[]);
        fs::write(b.join("new"), "x").expect("written");
        fs::rename(b.join("new"), b.join("file")).expect("replaced");
        assert_eq!(fs::read_to_string(a.join("file")).expect("there"), "x", "the first must not answer from before the second came");
        if round % 2 == 0 {
            b.unmount();
        } else {
            b.kill();
        }
        eventually("the first still works", || Path::new(&a.join("file")).exists());
    }
    a.unmount();
    volume.assert_clean();
}
