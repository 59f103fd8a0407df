//! How many exchanges with Redis a system call of a warm client takes, counted between the two.

use crate::locks::{lock, unlock};
use crate::proxy::Proxy;
use crate::servers::RedisServer;
use crate::support::{Mount, PANDO, Volume, run, text};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Calls of each kind; the median counts.
const CALLS: usize = 200;
/// What follows a call without anybody waiting has begun by then, and goes on without longer pauses.
const AFTERWARDS: Duration = Duration::from_millis(1);

/// Entries of the directory that is listed.
const LISTED: usize = 100;

struct Counter {
    proxy: Proxy,
    failures: Vec<String>,
}

impl Counter {
    fn new(proxy: Proxy) -> Counter {
        println!("{:<44} {:>6} {:>6} {:>10}", "median of the exchanges of a call", "budget", "waited", "afterwards");
        Counter { proxy, failures: Vec::new() }
    }

    /// Runs one call many times; at most `budget` exchanges may lie between its begin and its end in the median.
    fn check(&mut self, what: &str, budget: u64, mut call: impl FnMut(usize)) {
        self.check_prepared(what, budget, |n| n, &mut call);
    }

    /// The same of calls that need something before, which is not counted.
    fn check_prepared<T>(&mut self, what: &str, budget: u64, mut prepare: impl FnMut(usize) -> T, mut call: impl FnMut(T)) {
        let (mut waited, mut later) = (Vec::new(), Vec::new());
        for n in 0..CALLS {
            let idle = self.proxy.exchanges();
            let prepared = prepare(n);
            let before = if self.proxy.exchanges() == idle { idle } else { self.settled() };
            call(prepared);
            let during = self.proxy.exchanges();
            waited.push(during - before);
            later.push(self.settled() - during);
        }
        waited.sort_unstable();
        later.sort_unstable();
        let (median, after) = (waited[CALLS / 2], later[CALLS / 2]);
        let line = format!("{what:<44} {budget:>6} {median:>6} {after:>10}");
        println!("{line}");
        if median > budget {
            self.failures.push(line);
        }
    }

    /// Exchanges so far, once nothing is under way any more.
    fn settled(&self) -> u64 {
        loop {
            let before = self.proxy.exchanges();
            std::thread::sleep(AFTERWARDS);
            if self.proxy.exchanges() == before {
                return before;
            }
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
    let mut counter = Counter::new(proxy);
    let count = &mut counter;

    count.check("create and close", 1, |n| drop(File::create_new(path(&dir, "f", n)).expect("created")));
    count.check("mkdir", 1, |n| fs::create_dir(path(&dir, "d", n)).expect("made"));
    count.check("symlink", 1, |n| symlink("target", path(&dir, "s", n)).expect("made"));
    count.check("mknod", 1, |n| {
        // SAFETY: the path is a C string that lives through the call.
        assert_eq!(unsafe { libc::mkfifo(c(&path(&dir, "p", n)).as_ptr(), 0o644) }, 0);
    });
    count.check("link", 1, |n| fs::hard_link(path(&dir, "f", n), path(&dir, "l", n)).expect("linked"));
    count.check("setattr: chmod", 1, |n| fs::set_permissions(path(&dir, "f", n), fs::Permissions::from_mode(0o600)).expect("changed"));
    count.check("setattr: utimensat", 1, |n| {
        // SAFETY: the path is a C string that lives through the call; no times means now.
        assert_eq!(unsafe { libc::utimensat(libc::AT_FDCWD, c(&path(&dir, "f", n)).as_ptr(), std::ptr::null(), 0) }, 0);
    });
    count.check("rename", 1, |n| fs::rename(path(&dir, "l", n), path(&dir, "r", n)).expect("renamed"));
    count.check("rename over a file", 1, |n| fs::rename(path(&dir, "r", n), path(&dir, "s", n)).expect("renamed"));
    count.check("symlink again", 1, |n| symlink("target", path(&dir, "t", n)).expect("made"));
    count.check("unlink", 1, |n| fs::remove_file(path(&dir, "p", n)).expect("removed"));
    count.check("rmdir", 1, |n| fs::remove_dir(path(&dir, "d", n)).expect("removed"));
    count.check("create, write 4 KiB and close", 2, |n| fs::write(path(&dir, "w", n), [n as u8; 4096]).expect("written"));
    count.check("truncate within a chunk", 1, |n| {
        // SAFETY: the path is a C string that lives through the call.
        assert_eq!(unsafe { libc::truncate(c(&path(&dir, "w", n)).as_ptr(), 100) }, 0);
    });
    let open_file = |n| File::open(path(&dir, "w", n)).expect("opened");
    count.check("open and close", 1, |n| drop(open_file(n)));
    count.check_prepared("close without changes", 0, open_file, drop);
    count.check("open, read and close", 1, |n| assert_eq!(fs::read(path(&dir, "w", n)).expect("read"), [n as u8; 100]));
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
    let mut log = OpenOptions::new().append(true).create(true).open(dir.join("log")).expect("opened");
    count.check("append and fsync", 1, |_| {
        log.write_all(&[b'x'; 100]).expect("appended");
        log.sync_all().expect("synced");
    });
    let locked = |kind, on: bool| if on { lock(&file, kind, false) } else { unlock(&file, kind) }.expect("granted");
    for kind in ["flock", "fcntl"] {
        count.check_prepared(&format!("{kind}: lock"), 1, |_| locked(kind, false), |()| locked(kind, true));
        count.check_prepared(&format!("{kind}: unlock"), 0, |_| locked(kind, true), |()| locked(kind, false));
    }
    file.seek(SeekFrom::Start(0)).expect("moved");
    file.read_exact(&mut [0; 10]).expect("read");
    let listed = dir.join("listed");
    fs::create_dir(&listed).expect("made");
    for n in 0..LISTED {
        File::create_new(path(&listed, "f", n)).expect("created");
    }
    let list = || {
        fs::read_dir(&listed)
            .expect("listed")
            .filter(|entry| entry.as_ref().expect("an entry").metadata().expect("attributes").is_file())
            .count()
    };
    count.check(&format!("readdirplus of {LISTED} entries"), 1 + LISTED.div_ceil(4096) as u64 * 2, |_| assert_eq!(list(), LISTED));
    forget();
    count.check("lookup of a name that is not there", 1, |n| assert!(!path(&dir, "no", n).exists()));
    drop((file, log));
    mount.unmount();

    // A kernel that remembers nothing asks each time; and what nobody has asked for yet is in nobody's memory.
    let forgetful = [&options[..], &["--attr-cache", "0", "--entry-cache", "0", "--dir-entry-cache", "0"]].concat();
    let mount = Mount::start(Path::new(&url), &volume.temp.path().join("mnt"), &forgetful);
    for when in ["first", "again"] {
        count.check(&format!("lookup, {when}"), 1, |n| assert!(fs::symlink_metadata(path(&dir, "w", n)).is_ok()));
        count.check_prepared(&format!("getattr, {when}"), 1, open_file, |file| assert!(file.metadata().is_ok()));
        count.check(&format!("lookup and readlink, {when}"), 2, |n| drop(fs::read_link(path(&dir, "t", n)).expect("a link")));
        count.check_prepared(&format!("getxattr, {when}"), 1, open_file, |file| {
            // SAFETY: the descriptor is open, the name lives through the call; nothing is written to a buffer of no bytes.
            assert_eq!(unsafe { libc::fgetxattr(file.as_raw_fd(), c"user.a".as_ptr(), std::ptr::null_mut(), 0) }, -1);
        });
    }

    let failures = std::mem::take(&mut counter.failures);
    mount.unmount();
    assert!(failures.is_empty(), "{failures:#?}");
}
