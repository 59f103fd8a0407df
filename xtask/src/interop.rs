//! `cargo xtask interop`: this program and a JuiceFS client use the same volumes, in turn and at once.
//!
//! `JUICEFS` names the client. Metadata is in a Redis server of the run, objects and mounts are in a temporary directory. Each check prints a
//! line; the first difference ends the run.

use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than kernels of either client remember names and attributes, and than the other client keeps statistics to itself.
const SETTLED: Duration = Duration::from_millis(2500);
/// Longest wait for the server to listen.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long both clients change the same directories: quickly, and with `PANDO_SOAK` set.
const STORM: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(600));
/// Programs that work through each client in the storm.
const WORKERS: u64 = 3;
/// Inodes from this number on are the trash's.
const TRASH: u64 = 0x7FFF_FFFF_1000_0000;
/// Inodes in one of the two directories that change: a part of what is tried there is refused.
const QUOTA_INODES: &str = "12";
/// Random changes of a file while it is compacted.
const FSX_OPERATIONS: &str = "8000";
/// Programs that create files in one directory through this program, beside one through the other client.
const CREATORS: usize = 16;
/// The entries of the root that each client adds for itself.
const VIRTUAL: &[&str] = &[".trash", ".accesslog", ".stats", ".config"];
/// Mount options that both have, as programs that mount JuiceFS give them.
const MOUNT: &[&str] = &["-d", "--no-usage-report", "--backup-meta", "3600", "--prefetch", "1", "--max-uploads", "20", "--enable-xattr"];

fn storm_length() -> Duration {
    if std::env::var_os("PANDO_SOAK").is_some() { STORM.1 } else { STORM.0 }
}

/// Runs all checks.
pub fn run(root: &Path) -> Result<()> {
    let Some(theirs) = std::env::var_os("JUICEFS").map(PathBuf::from) else {
        bail!("interop needs a JuiceFS client of version 1.4: set JUICEFS to the path of the program");
    };
    ensure!(theirs.is_file(), "JUICEFS: there is no file {}", theirs.display());
    crate::run(&mut crate::cargo(&["build", "--package", "pando"]))?;
    let bench = Bench::new()?;
    // Under this name defaults and output are those of the other client.
    let ours = bench.dir.join("juicefs");
    symlink(root.join("target/debug/pando"), &ours)?;
    in_turn(&bench, "ours-then-theirs", &ours, &theirs, &theirs)?;
    in_turn(&bench, "theirs-then-ours", &theirs, &ours, &theirs)?;
    at_once(&bench, &ours, &theirs)?;
    compacted(&bench, root, &ours, &theirs)
}

/// A temporary directory, the server, and all that is mounted in the directory; nothing of it stays.
struct Bench {
    dir: PathBuf,
    port: u16,
    server: Child,
}

impl Bench {
    fn new() -> Result<Bench> {
        let dir = std::env::temp_dir().join(format!("pando-interop-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--databases", "16", "--port"]).arg(port.to_string()).arg("--dir").arg(&dir);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: prctl is async-signal-safe and touches nothing of ours.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let server = command.spawn().context("redis-server; `cargo xtask setup` installs it")?;
        let bench = Bench { dir, port, server };
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(Instant::now() < end, "redis-server does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(bench)
    }

    fn url(&self, database: u32) -> String {
        format!("redis://127.0.0.1:{}/{database}", self.port)
    }

    /// Mounts a volume; the path of the mount.
    fn mount(&self, client: &Path, url: &str, name: &str) -> Result<PathBuf> {
        self.mount_with(client, url, name, &[])
    }

    /// The same with further options.
    fn mount_with(&self, client: &Path, url: &str, name: &str, options: &[&str]) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::create_dir_all(&path)?;
        let mut command = Command::new(client);
        command.arg("mount").args(MOUNT).args(options).arg("--cache-dir").arg(self.dir.join("cache"));
        command.arg("--log").arg(self.dir.join(format!("{name}.log"))).arg(url).arg(&path);
        quiet(&mut command)?;
        Ok(path)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        for at in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| Path::new(at).starts_with(&self.dir)) {
            let _ = Command::new("umount").args(["-l", at]).status();
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// One writes a tree and unmounts, the other must show the same, and the checks of both find nothing.
fn in_turn(bench: &Bench, name: &str, writer: &Path, reader: &Path, theirs: &Path) -> Result<()> {
    let url = bench.url(if writer == theirs { 1 } else { 2 });
    let bucket = bench.dir.join(format!("{name}-bucket/"));
    quiet(
        Command::new(reader)
            .args(["format", "--storage", "file", "--trash-days", "7", "--compress", "lz4", "--enable-acl", "--bucket"])
            .arg(&bucket)
            .args([&url, "vol"]),
    )?;
    let mount = bench.mount(writer, &url, name)?;
    write_tree(&mount).context("writing the tree")?;
    thread::sleep(SETTLED);
    let written = listing(&mount)?;
    quiet(Command::new(writer).arg("umount").arg(&mount))?;
    let mount = bench.mount(reader, &url, name)?;
    same(&written, &listing(&mount)?)?;
    quiet(Command::new(reader).arg("umount").arg(&mount))?;
    println!("{name}: {} paths are the same", written.len());
    check(bench, name, &url, theirs)
}

/// `fsck` of both, and what else of the other client reads all metadata.
fn check(bench: &Bench, name: &str, url: &str, theirs: &Path) -> Result<()> {
    quiet(Command::new(bench.dir.join("juicefs")).args(["fsck", url]))?;
    println!("{name}: fsck finds nothing");
    quiet(Command::new(theirs).args(["fsck", url]))?;
    quiet(Command::new(theirs).args(["fsck", "--path", "/", "--recursive", "--sync-dir-stat", url]))?;
    quiet(Command::new(theirs).args(["gc", url]))?;
    for binary in [&[][..], &["--binary"]] {
        quiet(Command::new(theirs).arg("dump").args(binary).arg(url).arg(bench.dir.join("dump")))?;
    }
    println!("{name}: fsck, gc and dump of the other client find nothing");
    Ok(())
}

/// Both mounted: changes of the same directories, exclusive creation, many creators in one directory.
fn at_once(bench: &Bench, ours: &Path, theirs: &Path) -> Result<()> {
    let (name, url) = ("at-once", bench.url(3));
    let bucket = bench.dir.join("at-once-bucket/");
    quiet(Command::new(theirs).args(["format", "--storage", "file", "--trash-days", "0", "--bucket"]).arg(&bucket).args([&url, "vol"]))?;
    // Behind its attribute cache the other client appends where a file ended a second ago, also under a lock.
    let (here, there) = (bench.mount(ours, &url, "here")?, bench.mount_with(theirs, &url, "there", &["--attr-cache", "0"])?);
    for dir in ["a", "b", "exclusive", "creators"] {
        fs::create_dir(here.join(dir))?;
    }
    fs::write(here.join("number"), 0u64.to_le_bytes())?;
    fs::write(here.join("log"), "")?;
    quiet(Command::new(ours).args(["quota", "set", "--path", "/a", "--inodes", QUOTA_INODES, &url]))?;
    thread::sleep(SETTLED);
    let workers: Vec<_> = (0..2 * WORKERS)
        .map(|seed| {
            let mount = if seed % 2 == 0 { here.clone() } else { there.clone() };
            thread::spawn(move || storm(&mount, seed))
        })
        .collect();
    let mut won = Vec::new();
    let mut locked = Vec::new();
    for worker in workers {
        let (numbers, count) = worker.join().expect("workers do not panic")?;
        won.extend(numbers);
        locked.push(count);
    }
    let winners = won.len();
    won.sort_unstable();
    won.dedup();
    ensure!(won.len() == winners, "{} files were created exclusively by two programs", winners - won.len());
    thread::sleep(SETTLED);
    let (left, right) = (listing(&here)?, listing(&there)?);
    same(&left, &right)?;
    println!("{name}: {} paths are the same from both sides, {winners} exclusive creations had one winner", left.len());
    for mount in [&here, &there] {
        logged(&mount.join("log"), &locked)?;
        let number = fs::read(mount.join("number"))?;
        let wanted = locked.iter().sum::<u64>();
        ensure!(number == wanted.to_le_bytes(), "{wanted} times one was added under a lock, {} shows {number:?}", mount.display());
    }
    println!("{name}: {} records appended and numbers raised under locks are all there", locked.iter().sum::<u64>());

    let creators: Vec<_> = (0..=CREATORS)
        .map(|i| {
            let dir = if i < CREATORS { here.join("creators") } else { there.join("creators") };
            thread::spawn(move || create_many(&dir, i))
        })
        .collect();
    let mut created = 0;
    for creator in creators {
        created += creator.join().expect("creators do not panic")?;
    }
    thread::sleep(SETTLED);
    for mount in [&here, &there] {
        let found = fs::read_dir(mount.join("creators"))?.count();
        ensure!(found == created, "{created} files were created, {} shows {found}", mount.display());
    }
    println!("{name}: {created} files created in one directory without an error");
    // What the other client still keeps alive without a name goes with its session; what is left then is ours.
    quiet(Command::new(theirs).arg("umount").arg(&there))?;
    recounted(bench, 3, &here)?;
    quiet(Command::new(ours).arg("umount").arg(&here))?;
    // Statistics of directories that several clients change drift where the other client counts, also between two of its own mounts. Its repair counts them
    // anew; everything else has to be right.
    quiet(Command::new(theirs).args(["fsck", "--path", "/", "--recursive", "--repair", "--sync-dir-stat", &url]))?;
    check(bench, name, &url, theirs)
}

/// A file changes at random through this program while the other client merges its slices, with and without a trash: every byte read is compared.
fn compacted(bench: &Bench, root: &Path, ours: &Path, theirs: &Path) -> Result<()> {
    let fsx = root.join("target/tools/bin/fsx");
    ensure!(fsx.is_file(), "{} is missing: run `cargo xtask setup`", fsx.display());
    let config = bench.dir.join("fsx.toml");
    fs::write(
        &config,
        "flen = 1048576\n[opsize]\nmax = 131072\nmin = 1\n[weights]\nclose_open = 1\ninvalidate = 1\nread = 10\nwrite = 10\ntruncate = 3\n\
         fsync = 2\npunch_hole = 2\ncopy_file_range = 2\n",
    )?;
    for (database, days) in [(4, "0"), (5, "1")] {
        let (name, url) = (format!("compacted-trash-{days}"), bench.url(database));
        let bucket = bench.dir.join(format!("{name}-bucket/"));
        quiet(
            Command::new(theirs).args(["format", "--storage", "file", "--trash-days", days, "--bucket"]).arg(&bucket).args([&url, "vol"]),
        )?;
        let (here, there) = (bench.mount(ours, &url, &format!("{name}-here"))?, bench.mount(theirs, &url, &format!("{name}-there"))?);
        let mut child = Command::new(&fsx)
            .arg("-f")
            .arg(&config)
            .args(["-N", FSX_OPERATIONS, "-S", days, "-P"])
            .arg(&bench.dir)
            .arg(here.join("file"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut compactions = 0;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if there.join("file").exists() {
                quiet(Command::new(theirs).arg("compact").arg(there.join("file")))?;
                compactions += 1;
            }
        };
        ensure!(status.success(), "{name}: fsx -S {days} ended with {status}");
        println!("{name}: fsx, {FSX_OPERATIONS} operations, while the other client compacted {compactions} times");
        quiet(Command::new(ours).arg("umount").arg(&here))?;
        quiet(Command::new(theirs).arg("umount").arg(&there))?;
        check(bench, &name, &url, theirs)?;
    }
    Ok(())
}

/// What the volume counts as used is what is there.
fn recounted(bench: &Bench, database: u32, mount: &Path) -> Result<()> {
    let (mut seen, mut bytes, mut todo) = (BTreeSet::new(), 0, vec![mount.to_path_buf()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if dir == mount && VIRTUAL.iter().any(|name| path.ends_with(name)) {
                continue;
            }
            let is = fs::symlink_metadata(&path)?;
            if seen.insert(is.ino()) {
                bytes += is.size().div_ceil(4096).max(1) * 4096;
            }
            if is.is_dir() {
                todo.push(path);
            }
        }
    }
    let ask = |question: &[&str]| -> Result<String> {
        let (port, database) = (bench.port.to_string(), database.to_string());
        let output = Command::new("redis-cli").args(["-p", &port, "-n", &database]).args(question).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let (inodes, space) = (ask(&["get", "totalInodes"])?, ask(&["get", "usedSpace"])?);
    if inodes != seen.len().to_string() || space != bytes.to_string() {
        // Whose they are that nobody sees.
        for key in ask(&["--scan", "--pattern", "i[1-9]*"])?.lines() {
            let number: u64 = key[1..].parse()?;
            if number > 1 && number < TRASH && !seen.contains(&number) {
                println!("{key} is in no directory: {:?}, names {}", ask(&["get", key])?, ask(&["hgetall", &format!("p{number}")])?);
                for sustained in ask(&["--scan", "--pattern", "session[0-9]*"])?.lines() {
                    println!("in {sustained}: {}", ask(&["sismember", sustained, &number.to_string()])?);
                }
            }
        }
        bail!("{inodes} inodes and {space} bytes are counted, {} and {bytes} are there", seen.len());
    }
    println!("usage is as counted anew: {inodes} inodes, {space} bytes");
    Ok(())
}

/// Each worker's records are in the log, in order, and nothing else is.
fn logged(log: &Path, counts: &[u64]) -> Result<()> {
    let text = fs::read_to_string(log).with_context(|| log.display().to_string())?;
    let mut next = vec![0; counts.len()];
    for line in text.lines() {
        let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        let &[worker, number] = &numbers[..] else { bail!("{}: a damaged record {line:?}", log.display()) };
        let expected = next.get_mut(worker as usize).filter(|expected| **expected == number);
        let Some(expected) = expected else { bail!("{}: {line:?} is not the next of its worker", log.display()) };
        *expected += 1;
    }
    ensure!(next == counts, "{}: {next:?} records of {counts:?}", log.display());
    Ok(())
}

/// Under a lock of both kinds: one more record at the end of a file, and a number raised by one.
fn under_lock(mount: &Path, worker: u64, count: u64) -> Result<()> {
    let lock = |file: &File, kind: i32| {
        let range = libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
        let whole = if kind == libc::F_UNLCK { libc::LOCK_UN } else { libc::LOCK_EX };
        // SAFETY: the descriptor is open for the length of the calls and the structure lives through them.
        let result = unsafe { libc::flock(file.as_raw_fd(), whole) | libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLKW, &range) };
        ensure!(result == 0, "lock: {}", std::io::Error::last_os_error());
        Ok(())
    };
    let guard = OpenOptions::new().write(true).create(true).truncate(false).open(mount.join("lock"))?;
    lock(&guard, libc::F_WRLCK)?;
    // Opened under the lock: all that the other client promises is that an open sees what was closed.
    OpenOptions::new().append(true).open(mount.join("log"))?.write_all(format!("{worker} {count}\n").as_bytes())?;
    let number = OpenOptions::new().read(true).write(true).open(mount.join("number"))?;
    let mut bytes = [0; 8];
    number.read_exact_at(&mut bytes, 0)?;
    number.write_all_at(&(u64::from_le_bytes(bytes) + 1).to_le_bytes(), 0)?;
    drop(number);
    lock(&guard, libc::F_UNLCK)
}

/// Random changes of two directories; answers the numbers of the files this one created exclusively, and how often it held the lock.
fn storm(mount: &Path, seed: u64) -> Result<(Vec<u64>, u64)> {
    let mut state = (seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut below = |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % n
    };
    let (end, mut won, mut locked) = (Instant::now() + storm_length(), Vec::new(), 0);
    while Instant::now() < end {
        let mut path = || mount.join(["a", "b"][below(2) as usize]).join(format!("n{}", below(20)));
        let (from, to) = (path(), path());
        let number = below(2000);
        let done = match below(8) {
            0 => OpenOptions::new().write(true).create_new(true).open(&from).and_then(|mut file| file.write_all(&[seed as u8; 5000])),
            1 => fs::rename(&from, &to),
            2 => fs::remove_file(&from),
            3 => fs::create_dir(&from),
            4 => fs::remove_dir(&from),
            5 => fs::hard_link(&from, &to),
            6 => {
                under_lock(mount, seed, locked).with_context(|| format!("under a lock, {}", mount.display()))?;
                locked += 1;
                Ok(())
            }
            _ => {
                let file = mount.join("exclusive").join(number.to_string());
                OpenOptions::new().write(true).create_new(true).open(file).map(|_| won.push(number))
            }
        };
        if let Err(error) = done {
            // What another did a moment before; anything else is a failure.
            let usual = [
                libc::ENOENT,
                libc::EEXIST,
                libc::ENOTEMPTY,
                libc::ENOTDIR,
                libc::EISDIR,
                libc::EINVAL,
                libc::EPERM,
                libc::ESTALE,
                libc::EDQUOT,
                // A write to a file that another client has removed (data §5.4).
                libc::EBADF,
            ];
            ensure!(error.raw_os_error().is_some_and(|errno| usual.contains(&errno)), "{} or {}: {error}", from.display(), to.display());
        }
    }
    Ok((won, locked))
}

/// Creates empty files; how many.
fn create_many(dir: &Path, creator: usize) -> Result<usize> {
    let (end, mut created) = (Instant::now() + storm_length() / 2, 0);
    while Instant::now() < end {
        let path = dir.join(format!("{creator}-{created}"));
        OpenOptions::new().write(true).create_new(true).open(&path).with_context(|| path.display().to_string())?;
        created += 1;
    }
    Ok(created)
}

/// A tree with every kind of inode and of change.
fn write_tree(mount: &Path) -> Result<()> {
    let top = mount.join("tree");
    let path = |name: &str| top.join(name);
    fs::create_dir_all(path("d/e/f"))?;
    for i in 0..40usize {
        fs::write(path(&format!("d/f{i}")), vec![i as u8; i * 2000])?;
    }
    let large: Vec<u8> = (0..9_000_000u32).flat_map(|i| (i / 3).to_le_bytes()).collect();
    fs::write(path("large"), &large[..9 << 20])?;
    OpenOptions::new().write(true).open(path("large"))?.set_len((5 << 20) + 77)?;
    let sparse = File::create(path("sparse"))?;
    sparse.write_all_at(b"end", 70 << 20)?;
    sparse.write_all_at(b"middle", 3 << 20)?;
    let overlapping = File::create(path("overlapping"))?;
    for i in 0..12 {
        overlapping.write_all_at(&vec![i as u8; 150_000], i * 70_000)?;
        overlapping.sync_all()?;
    }
    fs::rename(path("d/f1"), path("d/e/moved"))?;
    fs::rename(path("d/f2"), path("d/f3"))?;
    fs::hard_link(path("d/f4"), path("d/e/link"))?;
    fs::hard_link(path("d/f4"), path("link"))?;
    symlink("d/f4", path("symlink"))?;
    symlink("x".repeat(200), path("dangling"))?;
    fs::set_permissions(path("d/f6"), fs::Permissions::from_mode(0o4755))?;
    let (fifo, file) = (text(&path("fifo"))?, text(&path("d/f7"))?);
    // SAFETY: both strings end in NUL and live through the calls; the value is as long as it is said to be.
    let failed =
        unsafe { libc::mkfifo(fifo.as_ptr(), 0o640) | libc::setxattr(file.as_ptr(), XATTR.as_ptr(), c"value".as_ptr().cast(), 5, 0) };
    ensure!(failed == 0, "mkfifo, setxattr: {}", std::io::Error::last_os_error());
    for i in 10..20 {
        fs::remove_file(path(&format!("d/f{i}")))?;
    }
    fs::create_dir(path("removed"))?;
    fs::remove_dir(path("removed"))?;
    Ok(())
}

const XATTR: &std::ffi::CStr = c"user.interop";

fn text(path: &Path) -> Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Path → all that `stat` shows except access and change times, target, contents, and one extended attribute.
fn listing(mount: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let (mut found, mut todo) = (BTreeMap::new(), vec![mount.to_path_buf()]);
    while let Some(path) = todo.pop() {
        let is = fs::symlink_metadata(&path).with_context(|| path.display().to_string())?;
        let contents = match is.file_type() {
            kind if kind.is_file() => {
                let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
                // FNV-1a: tells contents apart, which is all that is asked.
                let hash =
                    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3));
                format!("{hash:x}")
            }
            kind if kind.is_symlink() => fs::read_link(&path)?.display().to_string(),
            _ => String::new(),
        };
        if is.is_dir() {
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                if path != mount || !VIRTUAL.iter().any(|name| entry.file_name() == *name) {
                    todo.push(entry.path());
                }
            }
        }
        let (name, mut value) = (text(&path)?, [0u8; 16]);
        // SAFETY: the names end in NUL, and the buffer is as long as it is said to be.
        let len = unsafe { libc::lgetxattr(name.as_ptr(), XATTR.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        let line = format!(
            "inode {} mode {:o} links {} owner {}:{} device {} size {} mtime {}.{:09} contents {contents} xattr {len} {value:?}",
            is.ino(),
            is.mode(),
            is.nlink(),
            is.uid(),
            is.gid(),
            is.rdev(),
            is.size(),
            is.mtime(),
            is.mtime_nsec(),
        );
        found.insert(path.strip_prefix(mount)?.to_path_buf(), line);
    }
    Ok(found)
}

fn same(one: &BTreeMap<PathBuf, String>, other: &BTreeMap<PathBuf, String>) -> Result<()> {
    for path in one.keys().chain(other.keys()) {
        let (left, right) = (one.get(path), other.get(path));
        ensure!(left == right, "{} differs:\n  {left:?}\n  {right:?}", path.display());
    }
    Ok(())
}

/// Runs a command; its output is shown only if it fails.
fn quiet(command: &mut Command) -> Result<()> {
    let output = match command.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => bail!("{command:?} is not there"),
        output => output.with_context(|| format!("cannot start {command:?}"))?,
    };
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
