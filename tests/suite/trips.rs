//! How many exchanges with Redis a system call of a warm client takes, counted between the two.

use crate::proxy::Proxy;
use crate::servers::RedisServer;
use crate::support::{Mount, PANDO, Volume, run, text};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Calls of each kind; the median counts.
const CALLS: usize = 40;
/// What follows a call without anybody waiting has been sent by then.
const AFTERWARDS: Duration = Duration::from_millis(3);

struct Counter {
    proxy: Proxy,
    failures: Vec<String>,
}

impl Counter {
    /// Runs one call many times; at most `budget` exchanges may lie between its begin and its end in the median.
    fn check(&mut self, what: &str, budget: u64, mut call: impl FnMut(usize)) {
        let (mut waited, mut later) = (Vec::new(), Vec::new());
        for n in 0..CALLS {
            let before = self.proxy.exchanges();
            call(n);
            let during = self.proxy.exchanges();
            std::thread::sleep(AFTERWARDS);
            waited.push(during - before);
            later.push(self.proxy.exchanges() - during);
        }
        waited.sort_unstable();
        later.sort_unstable();
        let (median, after) = (waited[CALLS / 2], later[CALLS / 2]);
        let line = format!("{what}: {median} exchanges (budget {budget}), {after} afterwards");
        println!("{line}");
        if median > budget {
            self.failures.push(line);
        }
    }
}

fn path(dir: &Path, kind: &str, n: usize) -> PathBuf {
    dir.join(format!("{kind}{n}"))
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no zero in it")
}

/// Forgets what the kernel remembers of names and attributes, so that it has to ask.
fn forget() {
    std::thread::sleep(Duration::from_millis(1100));
}

#[test]
fn a_warm_client_pays_one_exchange_for_a_change() {
    let (server, volume) = (RedisServer::with(&[]), Volume::new());
    let bucket = volume.temp.path().join("objects");
    let output = run(Command::new(PANDO).args(["format", "--storage", "file", "--bucket"]).arg(bucket).args([&server.url(1), "vol"]));
    assert!(output.status.success(), "{}", text(&output));
    let proxy = Proxy::start(server.address());
    let url = server.url(1).replace(&server.port.to_string(), &proxy.port.to_string());
    let cache = volume.temp.path().join("cache").display().to_string();
    let options = ["--cache-dir", &cache, "--heartbeat", "600", "--enable-xattr"];
    let mount = Mount::start(Path::new(&url), &volume.temp.path().join("mnt"), &options);
    let dir = mount.path.join("dir");
    fs::create_dir(&dir).expect("made");
    let mut counter = Counter { proxy, failures: Vec::new() };
    let count = &mut counter;

    count.check("create and close", 1, |n| drop(File::create_new(path(&dir, "f", n)).expect("created")));
    count.check("mkdir", 1, |n| fs::create_dir(path(&dir, "d", n)).expect("made"));
    count.check("symlink", 1, |n| std::os::unix::fs::symlink("target", path(&dir, "s", n)).expect("made"));
    count.check("mknod", 1, |n| {
        // SAFETY: the path is a C string that lives through the call.
        assert_eq!(unsafe { libc::mkfifo(c(&path(&dir, "p", n)).as_ptr(), 0o644) }, 0);
    });
    count.check("link", 1, |n| fs::hard_link(path(&dir, "f", n), path(&dir, "l", n)).expect("linked"));
    count.check("chmod", 1, |n| fs::set_permissions(path(&dir, "f", n), fs::Permissions::from_mode(0o600)).expect("changed"));
    count.check("rename", 1, |n| fs::rename(path(&dir, "l", n), path(&dir, "r", n)).expect("renamed"));
    count.check("rename over a file", 1, |n| fs::rename(path(&dir, "r", n), path(&dir, "s", n)).expect("renamed"));
    count.check("symlink again", 1, |n| std::os::unix::fs::symlink("target", path(&dir, "t", n)).expect("made"));
    count.check("unlink", 1, |n| fs::remove_file(path(&dir, "p", n)).expect("removed"));
    count.check("rmdir", 1, |n| fs::remove_dir(path(&dir, "d", n)).expect("removed"));
    count.check("open, write 4 KiB and close", 2, |n| fs::write(path(&dir, "w", n), [n as u8; 4096]).expect("written"));
    count.check("truncate", 1, |n| {
        // SAFETY: the path is a C string that lives through the call.
        assert_eq!(unsafe { libc::truncate(c(&path(&dir, "w", n)).as_ptr(), 100) }, 0);
    });
    forget();
    count.check("stat", 1, |n| drop(fs::metadata(path(&dir, "w", n)).expect("there")));
    count.check("open and close", 1, |n| drop(File::open(path(&dir, "w", n)).expect("opened")));
    count.check("open, read and close", 1, |n| assert_eq!(fs::read(path(&dir, "w", n)).expect("read"), [n as u8; 100]));
    count.check("readlink", 1, |n| drop(fs::read_link(path(&dir, "t", n)).expect("a link")));
    count.check("getxattr", 1, |n| {
        let (path, name) = (c(&path(&dir, "w", n)), c"user.a");
        // SAFETY: both are C strings that live through the call; nothing is written to a buffer of no bytes.
        assert_eq!(unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) }, -1);
    });
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(dir.join("data")).expect("opened");
    count.check("write and fsync", 1, |n| {
        file.write_all_at(&[n as u8; 100], 4096 * n as u64).expect("written");
        file.sync_all().expect("synced");
    });
    count.check("read what was just written", 0, |n| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, 4096 * n as u64).expect("read");
        assert_eq!(byte[0], n as u8);
    });
    let mut log = OpenOptions::new().append(true).create(true).custom_flags(libc::O_CLOEXEC).open(dir.join("log")).expect("opened");
    count.check("append and fsync", 1, |_| {
        log.write_all(&[b'x'; 100]).expect("appended");
        log.sync_all().expect("synced");
    });
    count.check("flock", 1, |n| {
        let operation = if n % 2 == 0 { libc::LOCK_EX } else { libc::LOCK_UN };
        // SAFETY: the descriptor is open.
        assert_eq!(unsafe { libc::flock(file.as_raw_fd(), operation) }, 0);
    });
    count.check("fcntl lock", 1, |n| {
        // SAFETY: zero is a valid value of every field.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = if n % 2 == 0 { libc::F_WRLCK } else { libc::F_UNLCK } as libc::c_short;
        // SAFETY: the descriptor is open, the structure lives through the call.
        assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &lock) }, 0);
    });
    file.seek(SeekFrom::Start(0)).expect("moved");
    let mut first = [0; 10];
    file.read_exact(&mut first).expect("read");
    count.check("list 200 names with attributes", 3, |_| {
        let names = fs::read_dir(&dir).expect("listed").map(|entry| entry.expect("an entry").metadata().expect("attributes").len());
        assert!(names.count() >= 120);
    });
    forget();
    count.check("a name that is not there", 0, |n| assert!(!path(&dir, "no", n).exists()));

    let failures = std::mem::take(&mut counter.failures);
    drop((file, log));
    mount.unmount();
    assert!(failures.is_empty(), "{failures:#?}");
}
