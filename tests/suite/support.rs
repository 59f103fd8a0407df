//! Mounts that cannot leak, sizes of long tests, and programs to run.

use crate::s3_server::{ACCESS_KEY, SECRET_KEY, Server};
use crate::servers::RedisServer;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The binary under test.
pub const PANDO: &str = env!("CARGO_BIN_EXE_pando");

/// Longest wait for a mount to be ready or gone. Far above what it takes, far below what a person waits.
const PATIENCE: Duration = Duration::from_secs(30);

/// The quick size, or the full one under `cargo xtask soak`.
pub fn size(quick: usize, full: usize) -> usize {
    if std::env::var_os("PANDO_SOAK").is_some() { full } else { quick }
}

/// A seed for random tests: printed, and taken from `PANDO_SEED` to repeat a run.
pub fn seed(what: &str) -> u64 {
    let seed = std::env::var("PANDO_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos() as u64);
    println!("{what}: PANDO_SEED={seed}");
    seed
}

/// A small generator: reproducible from its seed, good enough to choose operations.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 11) % n as u64) as usize
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// A volume directory and a mount point, removed at the end.
pub struct Volume {
    pub temp: TempDir,
    served: Option<Served>,
}

/// Where a volume is that is not in a directory.
struct Served {
    url: String,
    _redis: RedisServer,
    _s3: Server,
}

impl Volume {
    pub fn new() -> Volume {
        Volume { temp: tempfile::Builder::new().prefix("pando-test-").tempdir().expect("a temporary directory"), served: None }
    }

    /// A volume whose metadata are in Redis and whose objects are in a bucket.
    pub fn served(trash_days: u32) -> Volume {
        let mut volume = Volume::new();
        let (redis, root) = (RedisServer::with(&[]), volume.temp.path().join("s3"));
        std::fs::create_dir_all(&root).expect("made");
        let (url, s3) = (redis.url(1), Server::start(&root));
        let keys = ["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY];
        let mut format = Command::new(PANDO);
        format.args(["format", "--storage", "s3", "--bucket", &s3.bucket("data")]).args(keys);
        let output = run(format.args(["--trash-days", &trash_days.to_string(), &url, "vol"]));
        assert!(output.status.success(), "{}", text(&output));
        volume.served = Some(Served { url, _redis: redis, _s3: s3 });
        volume
    }

    /// The directory, or the address, that is mounted.
    pub fn dir(&self) -> PathBuf {
        self.served.as_ref().map_or_else(|| self.temp.path().join("volume"), |served| PathBuf::from(&served.url))
    }

    pub fn mount(&self) -> Mount {
        self.mount_at("mnt", &[])
    }

    /// Mounts the volume on `name` beside it.
    pub fn mount_at(&self, name: &str, args: &[&str]) -> Mount {
        let cache = self.temp.path().join(format!("cache-{name}")).display().to_string();
        let mut all = args.to_vec();
        if self.served.is_some() {
            all.extend(["--cache-dir", &cache]);
        }
        Mount::start(&self.dir(), &self.temp.path().join(name), &all)
    }

    /// `pando fsck`, which must find nothing.
    pub fn assert_clean(&self) {
        let output = run(Command::new(PANDO).arg("fsck").arg(self.dir()));
        assert!(output.status.success(), "fsck: {}", text(&output));
    }
}

/// How often, and after which pause, a mount that is busy is unmounted again.
const BUSY_TRIES: u32 = 40;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// A mounted volume: a foreground daemon that dies with the test.
pub struct Mount {
    pub path: PathBuf,
    daemon: Option<Child>,
}

impl Mount {
    /// Starts a daemon and waits until it says that it is ready.
    pub fn start(dir: &Path, path: &Path, args: &[&str]) -> Mount {
        Mount::start_logging(dir, path, args, Stdio::inherit())
    }

    /// The same with its log in a place of its own.
    pub fn start_logging(dir: &Path, path: &Path, args: &[&str], log: Stdio) -> Mount {
        // A dead mount is there and cannot be looked at: whether it can be mounted over is the daemon's business.
        let _ = std::fs::create_dir_all(path);
        let mut command = Command::new(PANDO);
        command.arg("mount").args(args).arg(dir).arg(path);
        // So that tests of backups need not wait five minutes.
        command.env("SKIP_BACKUP_META_CHECK", "true");
        command.stdout(Stdio::piped()).stderr(log);
        die_with_parent(&mut command);
        let mut daemon = command.spawn().expect("the binary starts");
        let mut ready = String::new();
        let stdout = daemon.stdout.take().expect("piped");
        let mut stdout = BufReader::new(stdout);
        stdout.read_line(&mut ready).expect("readable");
        let mount = Mount { path: path.to_path_buf(), daemon: Some(daemon) };
        assert!(ready.contains("ready"), "the daemon did not get ready: {ready:?}");
        // Whatever else it prints must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        mount
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("running").id()
    }

    /// Resident memory of the daemon in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("running");
        let line = status.lines().find(|l| l.starts_with("VmHWM:")).expect("a kernel with VmHWM");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
    }

    /// `kill -9` of the daemon; the dead mount point is left as a crash leaves it.
    pub fn kill(mut self) {
        let mut daemon = self.daemon.take().expect("running");
        daemon.kill().expect("alive");
        daemon.wait().expect("reaped");
        // The path stays in /proc/mounts: the next mount must replace it. `Drop` of the temporary directory needs it gone.
        let path = self.path.clone();
        std::mem::forget(self);
        KILLED.lock().expect("not poisoned").push(path);
    }

    /// Ends the daemon by a signal, as a supervisor does, and waits for it; it must end well.
    pub fn terminate(mut self) {
        let mut daemon = self.daemon.take().expect("running");
        // SAFETY: a system call on a process that is a child of ours and not waited for.
        assert_eq!(unsafe { libc::kill(daemon.id() as i32, libc::SIGTERM) }, 0);
        // What is away is waited for, half a minute at most.
        let status = wait(&mut daemon).or_else(|| wait(&mut daemon)).expect("the daemon ends after SIGTERM");
        assert!(status.success(), "the daemon ended with {status}");
        assert!(!is_mounted(&self.path), "the daemon has left its mount behind");
    }

    /// Unmounts as a user does and waits for the daemon; it must end well.
    pub fn unmount(mut self) {
        let mut output = run(Command::new(PANDO).arg("umount").arg(&self.path));
        // A program another test is just starting holds, for the moment between fork and exec, whatever file this one had open.
        for _ in 0..BUSY_TRIES {
            if output.status.success() || !text(&output).contains("Device or resource busy") {
                break;
            }
            std::thread::sleep(BUSY_PAUSE);
            output = run(Command::new(PANDO).arg("umount").arg(&self.path));
        }
        assert!(output.status.success(), "umount: {}", text(&output));
        let mut daemon = self.daemon.take().expect("running");
        let status = wait(&mut daemon).expect("the daemon ends after umount");
        assert!(status.success(), "the daemon ended with {status}");
    }
}

static KILLED: std::sync::Mutex<Vec<PathBuf>> = std::sync::Mutex::new(Vec::new());

impl Drop for Volume {
    fn drop(&mut self) {
        let mut killed = KILLED.lock().unwrap_or_else(|e| e.into_inner());
        killed.retain(|path| {
            let ours = path.starts_with(self.temp.path());
            if ours {
                detach(path);
            }
            !ours
        });
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        detach(&self.path);
        if let Some(mut daemon) = self.daemon.take()
            && wait(&mut daemon).is_none()
        {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// Takes whatever is mounted there away at once.
fn detach(path: &Path) {
    let quiet = |program: &str, args: &[&str]| {
        Command::new(program).args(args).arg(path).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    };
    while is_mounted(path) && (quiet("umount", &["-l"]) || quiet("fusermount3", &["-uz"])) {}
}

/// Whether something is mounted on exactly this path.
pub fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/mounts").expect("proc is mounted");
    mounts.lines().filter_map(|line| line.split(' ').nth(1)).any(|at| Path::new(at) == path)
}

fn wait(child: &mut Child) -> Option<std::process::ExitStatus> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}

/// The child is told to end when this process dies, however it dies.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl with PR_SET_PDEATHSIG only sets a flag of the calling process and is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        });
    }
}

/// Runs a program to its end with its output captured.
pub fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; run `cargo xtask setup` to install what the tests need"))
}

/// Runs a shell script in a directory; it must succeed. Answers its output.
pub fn sh(dir: &Path, script: &str) -> String {
    let output = run(Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(dir));
    assert!(output.status.success(), "{script}\nended with {}:\n{}", output.status, text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Both outputs of a program as text.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A test program that `cargo xtask setup` installs.
pub fn tool(name: impl AsRef<OsStr>) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin").join(Path::new(&name));
    assert!(path.exists(), "{} is missing: run `cargo xtask setup`", path.display());
    path
}

/// Waits for something that other processes make true.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < until, "not seen in {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Reads a child's whole output after it ended; it must succeed.
pub fn finish(mut child: Child) -> String {
    let mut out = String::new();
    if let Some(stdout) = child.stdout.as_mut() {
        stdout.read_to_string(&mut out).expect("text");
    }
    let status = child.wait().expect("a child of ours");
    assert!(status.success(), "a child ended with {status}: {out}");
    out
}

/// Runs `work(i)` in `n` child processes at once, by forking this one's test binary through `bash`-free closures is not possible from a
/// threaded test; so workers are small Python-free programs: this binary itself, re-executed with a job in its environment.
pub fn worker(job: &str, args: &[&OsStr]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("running"));
    // The test `support::worker_entry` runs the job and nothing else.
    command.args(["--exact", "support::worker_entry", "--nocapture"]);
    command.env("PANDO_TEST_JOB", job);
    for (i, arg) in args.iter().enumerate() {
        command.env(format!("PANDO_TEST_ARG{i}"), arg);
    }
    command.stdout(Stdio::piped());
    die_with_parent(&mut command);
    command
}

/// The argument `i` of a worker.
pub fn worker_arg(i: usize) -> String {
    std::env::var(format!("PANDO_TEST_ARG{i}")).expect("the parent sets it")
}

/// In a worker process: its job. In an ordinary run it does nothing.
#[test]
fn worker_entry() {
    match std::env::var("PANDO_TEST_JOB").ok().as_deref() {
        None => {}
        Some("append") => crate::two_mounts::append_worker(),
        Some("sqlite") => crate::programs::sqlite_worker(),
        Some("exclusive") => crate::two_mounts::exclusive_worker(),
        Some("hold") => crate::locks::hold_worker(),
        Some("stalled") => crate::stalled::stalled_worker(),
        Some("make-minio") => crate::s3::make_minio_worker(),
        Some("lost-lock") => crate::hosts::lost_lock_worker(),
        Some("lost-transaction") => crate::hosts::lost_transaction_worker(),
        Some("crash-writer") => crate::crash::writer_worker(),
        Some(other) => panic!("no such job: {other}"),
    }
}
