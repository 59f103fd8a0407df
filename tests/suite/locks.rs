//! Locks: both kinds are kept apart, they exclude and wake, and a process that waits for one can be killed.

use crate::support::{Volume, eventually, worker, worker_arg};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// The locks a process can take.
const KINDS: &[&str] = &["flock", "fcntl", "ofd"];

/// Takes an exclusive lock on the whole file. Errno as the system call gave it.
pub fn lock(file: &File, kind: &str, wait: bool) -> Result<(), i32> {
    control(file, kind, libc::F_WRLCK, wait)
}

pub fn unlock(file: &File, kind: &str) -> Result<(), i32> {
    control(file, kind, libc::F_UNLCK, false)
}

/// Takes or releases, for the open file, a lock on one byte; waits.
pub fn lock_byte(file: &File, byte: i64, lock_type: i32) {
    let range = libc::flock { l_type: lock_type as i16, l_whence: libc::SEEK_SET as i16, l_start: byte, l_len: 1, l_pid: 0 };
    // SAFETY: the descriptor is open for the length of the call and the structure lives through it.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLKW, &range) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn control(file: &File, kind: &str, lock_type: i32, wait: bool) -> Result<(), i32> {
    let fd = file.as_raw_fd();
    let range = libc::flock { l_type: lock_type as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    // SAFETY: the descriptor is open for the length of the call and the structure lives through it.
    let result = unsafe {
        match (kind, wait) {
            ("flock", _) => {
                let operation = if lock_type == libc::F_UNLCK { libc::LOCK_UN } else { libc::LOCK_EX };
                libc::flock(fd, operation | if wait { 0 } else { libc::LOCK_NB })
            }
            ("fcntl", true) => libc::fcntl(fd, libc::F_SETLKW, &range),
            ("fcntl", false) => libc::fcntl(fd, libc::F_SETLK, &range),
            ("ofd", true) => libc::fcntl(fd, libc::F_OFD_SETLKW, &range),
            ("ofd", false) => libc::fcntl(fd, libc::F_OFD_SETLK, &range),
            _ => panic!("no such kind of lock: {kind}"),
        }
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("opened")
}

/// In a worker: takes the lock, says so in a file, and holds it until it is killed.
pub fn hold_worker() {
    let (path, kind, said) = (worker_arg(0), worker_arg(1), worker_arg(2));
    let file = open(Path::new(&path));
    lock(&file, &kind, true).expect("granted");
    std::fs::write(said, "held").expect("written");
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn locks_exclude_wake_and_die_with_their_holder() {
    let volume = Volume::new();
    let mount = volume.mount();
    for kind in KINDS {
        let path = mount.join(format!("file-{kind}"));
        let file = open(&path);
        let said = volume.temp.path().join(format!("held-{kind}"));
        let mut holder = worker("hold", &[path.as_os_str(), kind.as_ref(), said.as_os_str()]).spawn().expect("started");
        eventually("the holder has the lock", || said.exists());
        let errno = lock(&file, kind, false).expect_err("somebody else holds it");
        assert!([libc::EAGAIN, libc::EACCES].contains(&errno), "{kind}: errno {errno}");
        // The other kind of lock is another lock.
        let other = if *kind == "flock" { "fcntl" } else { "flock" };
        lock(&file, other, false).unwrap_or_else(|e| panic!("{other} beside {kind}: errno {e}"));
        unlock(&file, other).expect("released");
        holder.kill().expect("alive");
        holder.wait().expect("reaped");
        let started = Instant::now();
        lock(&file, kind, true).expect("free again");
        assert!(started.elapsed() < Duration::from_secs(2), "{kind}: woken after {:?}", started.elapsed());
        unlock(&file, kind).expect("released");
    }
    mount.unmount();
}

#[test]
fn a_process_waiting_for_a_lock_dies_within_a_second() {
    let volume = Volume::new();
    let mount = volume.mount();
    for kind in KINDS {
        let path = mount.join(format!("file-{kind}"));
        let file = open(&path);
        lock(&file, kind, false).expect("free");
        let said = volume.temp.path().join(format!("never-{kind}"));
        let mut waiter = worker("hold", &[path.as_os_str(), kind.as_ref(), said.as_os_str()]).spawn().expect("started");
        let syscall = format!("/proc/{}/wchan", waiter.id());
        // It sleeps in the kernel's FUSE code once the request is with the daemon.
        let tasks = format!("/proc/{}/task", waiter.id());
        eventually("the waiter waits", || {
            std::fs::read_dir(&tasks).is_ok_and(|mut tasks| {
                tasks.any(|task| {
                    let wchan = task.ok().map(|t| t.path().join("wchan"));
                    wchan.and_then(|w| std::fs::read_to_string(w).ok()).is_some_and(|w| w.contains("fuse") || w.contains("request_wait"))
                })
            }) || !Path::new(&syscall).exists()
        });
        let started = Instant::now();
        waiter.kill().expect("alive");
        waiter.wait().expect("reaped");
        assert!(started.elapsed() < Duration::from_secs(1), "{kind}: died after {:?}", started.elapsed());
        assert!(!said.exists(), "it never had the lock");
        unlock(&file, kind).expect("released");
        // Nothing of the dead waiter is left behind.
        let again = open(&path);
        lock(&again, kind, false).unwrap_or_else(|e| panic!("{kind}: errno {e} after the waiter died"));
    }
    mount.unmount();
}
