//! Going to the background: one fork, a pipe that carries the outcome back.

use crate::daemon::{MountError, MountPlan, last_error, serve, system};
use crate::telemetry;
use std::fs::{File, OpenOptions, create_dir_all};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

/// Longest text a background process sends back.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// First byte of the answer: the mount is ready.
const READY: u8 = b'+';
/// First byte of the answer: there will be none.
const FAILED: u8 = b'-';

/// Starts the background process and waits for its answer. Must be called before anything of this process has started a thread.
pub fn run(plan: &MountPlan, log: &Path, started: impl FnOnce(), ready: impl FnOnce(&str)) -> Result<(), MountError> {
    let inherited = inherited();
    // Opened before the fork: what is wrong with it is reported on the terminal.
    let log_file = open_log(log).map_err(system(format!("cannot write the log file {}; choose another with --log", log.display())))?;
    let (answer, sender) = pipe().map_err(system("cannot make a pipe"))?;
    // SAFETY: no thread, runtime or database exists yet (see the module above), so the child is a whole process; both sides go on in
    // ordinary code.
    match unsafe { libc::fork() } {
        -1 => Err(MountError::System("cannot start a background process".into(), last_error())),
        0 => {
            drop(answer);
            for descriptor in inherited {
                // SAFETY: it was open before this program opened anything, so nothing of ours owns it.
                unsafe { libc::close(descriptor) };
            }
            let code = child(plan, &log_file, sender, started);
            std::process::exit(code)
        }
        pid => {
            drop(sender);
            drop(log_file);
            wait_for(answer, pid, plan.ready_time_max, log, ready)
        }
    }
}

/// Descriptors this process was started with beside the three of every program. A lock file among them, as `flock FILE pando mount -d …` leaves
/// one, would be locked as long as the mount lives.
fn inherited() -> Vec<RawFd> {
    let names = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<RawFd> = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // That of the listing is closed by now.
    // SAFETY: asking for flags changes nothing, whatever the number.
    numbers.into_iter().filter(|descriptor| *descriptor > 2 && unsafe { libc::fcntl(*descriptor, libc::F_GETFD) } != -1).collect()
}

/// The background process; returns its exit code.
fn child(plan: &MountPlan, log: &File, sender: File, started: impl FnOnce()) -> i32 {
    // Before this becomes the log. Closed when ready: who waits for the end of the output of `mount -d` must not wait for the end of the mount.
    telemetry::witness(io::stderr().as_fd().try_clone_to_owned().ok().map(File::from));
    if let Err(error) = detach(log) {
        tell(sender, FAILED, &format!("cannot become a background process: {error}"));
        return 1;
    }
    started();
    let mut sender = Some(sender);
    let outcome = serve::serve(plan, |name| {
        telemetry::witness(None);
        if let Some(sender) = sender.take() {
            tell(sender, READY, name);
        }
    });
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            telemetry::fatal(&error.to_string());
            if let Some(sender) = sender {
                tell(sender, FAILED, &error.to_string());
            }
            1
        }
    }
}

/// Leaves the terminal: own session, no input, output into the log, no directory kept busy.
fn detach(log: &File) -> io::Result<()> {
    let null = File::open("/dev/null")?;
    // SAFETY: plain system calls on descriptors that live through the call.
    unsafe {
        if libc::setsid() == -1
            || libc::dup2(null.as_raw_fd(), 0) == -1
            || libc::dup2(log.as_raw_fd(), 1) == -1
            || libc::dup2(log.as_raw_fd(), 2) == -1
        {
            return Err(last_error());
        }
    }
    std::env::set_current_dir("/")
}

/// The launcher: waits, prints, and leaves the background process alone, unless it takes too long.
fn wait_for(answer: File, pid: libc::pid_t, usual: Duration, log: &Path, ready: impl FnOnce(&str)) -> Result<(), MountError> {
    let wait = match std::env::var("JFS_MOUNT_TIMEOUT").ok().and_then(|text| text.parse().ok()) {
        Some(seconds) => Duration::from_secs(seconds),
        None => usual,
    };
    let end = crate::env::instant() + wait;
    let mut polled = libc::pollfd { fd: answer.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        let rest = i32::try_from(end.saturating_duration_since(crate::env::instant()).as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one valid pollfd.
        match unsafe { libc::poll(&mut polled, 1, rest) } {
            -1 if last_error().kind() == io::ErrorKind::Interrupted => {}
            0 => {
                // SAFETY: a signal to our own child, which nobody has waited for, so that its number cannot be another's.
                unsafe { libc::kill(pid, libc::SIGTERM) };
                return Err(MountError::Background(format!(
                    "The mount point is not ready in {} seconds, please check the log ({}) or mount in the foreground, without -d",
                    wait.as_secs(),
                    log.display()
                )));
            }
            _ => break,
        }
    }
    let mut text = String::new();
    answer.take(ANSWER_BYTES_MAX).read_to_string(&mut text).map_err(system("cannot read what the background process says"))?;
    match text.as_bytes().first() {
        Some(&READY) => {
            ready(&text[1..]);
            Ok(())
        }
        Some(&FAILED) => Err(MountError::Background(text[1..].into())),
        _ => Err(MountError::Background(format!("the background process ended before it was ready; see {}", log.display()))),
    }
}

fn tell(mut sender: File, kind: u8, text: &str) {
    // If nobody listens any more there is nobody to tell.
    let _ = sender.write_all(&[&[kind], text.as_bytes()].concat());
}

fn open_log(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        create_dir_all(parent)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// A pipe: its end to read, its end to write. Neither goes to programs we start: `fusermount3` must not keep the launcher waiting.
fn pipe() -> io::Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } == -1 {
        return Err(last_error());
    }
    // SAFETY: pipe2 has just made these descriptors and nobody else owns them.
    let [read, write] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
    Ok((read.into(), write.into()))
}
