//! The socket of a mount: commands ask the process that serves it, so that they see what is buffered there, act under its session, and
//! need neither the address nor the secrets of the volume. It lies beside the record of the mount, and anybody may connect: who asks is
//! told by the kernel, and is held to the permissions of the files.
//!
//! A request is one line, a JSON object with a `Command`. The answers are lines: any number of `{"Progress": …}`, then `{"Done": …}` or
//! `{"Errno": …, "Message": …}`. Who closes the connection before that calls the request off.

use crate::daemon::{mountpoint, record};
use crate::env::{MountEntry, mount_entries};
use crate::types::{Asker, Cancel, Errno};
use crate::volume::{Failure, Operator, Progress};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{self, BufRead, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

/// Longest request: a thousand paths of 4096 bytes, and what JSON adds.
const REQUEST_BYTES_MAX: u64 = 8 << 20;
/// Longest request of another user than root: a few paths. Parsed, it may take thirty times as much memory.
const OTHERS_REQUEST_BYTES_MAX: u64 = 64 << 10;
/// Longest answer a command takes: the table of the blocks of a large file.
const ANSWER_BYTES_MAX: u64 = 1 << 30;
/// Connections served at once; others wait in the kernel's queue. A command holds one, and works with many requests to the stores by itself.
const CONNECTIONS_MAX: usize = 32;
/// Of these, what users other than root may have: root always finds a place.
const OTHERS_CONNECTIONS_MAX: usize = 24;
/// And each of them.
const USER_CONNECTIONS_MAX: usize = 4;
/// How long a connection may be silent between requests. A command sends at once.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// At the end of the mount, how long requests that were called off may take to come to a consistent state. It is one commit.
const END_TIME_MAX: Duration = Duration::from_secs(5);

/// The serving end. Ends when it is stopped.
pub struct Control {
    path: PathBuf,
    operator: Arc<Operator>,
    cancel: Cancel,
    task: tokio::task::JoinHandle<()>,
}

impl Control {
    /// Listens for a mount; must be called inside a runtime.
    pub fn listen(entry: &MountEntry, operator: Arc<Operator>) -> io::Result<Control> {
        let dir = record::directories().into_iter().next().ok_or(io::ErrorKind::NotFound)?;
        record::make_dir(&dir)?;
        let path = dir.join(file_name(entry));
        // That of a mount that had the same device number: the number is ours now.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        let cancel = Cancel::default();
        let task = tokio::spawn(accept(listener, operator.clone(), cancel.clone()));
        Ok(Control { path, operator, cancel, task })
    }

    /// Calls requests off and waits until they have ended.
    pub async fn stop(mut self) {
        // First, so that no command waits for an answer that does not come.
        let _ = std::fs::remove_file(&self.path);
        self.cancel.cancel();
        self.operator.end();
        if tokio::time::timeout(END_TIME_MAX, &mut self.task).await.is_err() {
            warn!("requests of commands did not end within {} s; they are cut off", END_TIME_MAX.as_secs());
            self.task.abort();
            // An error says that it was aborted.
            let _ = (&mut self.task).await;
        }
    }
}

async fn accept(listener: UnixListener, operator: Arc<Operator>, end: Cancel) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let users = Users::default();
    let mut serving = JoinSet::new();
    loop {
        let place = places.clone();
        tokio::select! {
            () = end.cancelled() => break,
            Some(_) = serving.join_next() => {}
            accepted = async { (place.acquire_owned().await, listener.accept().await) } => match accepted {
                (Ok(place), Ok((stream, _))) => {
                    let (operator, end, users) = (operator.clone(), end.clone(), users.clone());
                    serving.spawn(async move {
                        if let Err(error) = serve(stream, &operator, &end, &users).await {
                            debug!("a connection of a command ended: {error}");
                        }
                        drop(place);
                    });
                }
                (_, Err(error)) => {
                    warn!("cannot accept a connection of a command: {error}");
                    // Most likely there are no descriptors left: trying at once would only be busy.
                    tokio::time::sleep(PROGRESS_EVERY).await;
                }
                (Err(_), _) => break,
            },
        }
    }
    while serving.join_next().await.is_some() {}
}

/// Connections of users other than root.
#[derive(Clone, Default)]
struct Users(Arc<Mutex<HashMap<u32, usize>>>);

/// One connection of a user.
struct Place<'a> {
    users: &'a Users,
    uid: u32,
}

impl Users {
    fn enter(&self, uid: u32) -> io::Result<Place<'_>> {
        let mut users = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (own, all) = (users.get(&uid).copied().unwrap_or_default(), users.values().sum::<usize>());
        if uid != 0 && (own >= USER_CONNECTIONS_MAX || all >= OTHERS_CONNECTIONS_MAX) {
            return Err(io::Error::other(format!("user {uid} has {own} connections, others have {all} together")));
        }
        if uid != 0 {
            *users.entry(uid).or_default() += 1;
        }
        Ok(Place { users: self, uid })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut users = self.users.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = users.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.uid);
            }
        }
    }
}

/// Request by request, until the other end closes or is silent for too long.
async fn serve(stream: UnixStream, operator: &Arc<Operator>, end: &Cancel, users: &Users) -> io::Result<()> {
    let (uid, gids) = identity(&stream)?;
    let _place = users.enter(uid)?;
    let request_bytes_max = if uid == 0 { REQUEST_BYTES_MAX } else { OTHERS_REQUEST_BYTES_MAX };
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut read).take(request_bytes_max);
        let count = tokio::select! {
            () = end.cancelled() => return Ok(()),
            read = tokio::time::timeout(SILENCE_MAX, limited.read_until(b'\n', &mut line)) => read??,
        };
        if count == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a request without end"));
        }
        let (cancel, progress) = (Cancel::default(), Arc::new(Progress::default()));
        let asker = Asker { uid, gids: gids.clone(), cancel: cancel.clone() };
        // A task of its own: work on a store that is near may never pause, and the end of the connection must be seen all the same.
        let mut answers = JoinSet::new();
        answers.spawn({
            let (operator, progress) = (operator.clone(), progress.clone());
            async move { answer(&operator, &asker, &line, &progress).await }
        });
        let mut tick = tokio::time::interval(PROGRESS_EVERY);
        tick.tick().await;
        let mut told = (0, 0);
        let mut is_there = true;
        let answer = loop {
            tokio::select! {
                biased;
                answer = answers.join_next() => break match answer {
                    Some(Ok(answer)) => answer,
                    // It has panicked, and said so.
                    _ => json!({ "Errno": libc::EIO, "Message": "the request failed; the log of the mount tells why" }),
                },
                // Called off, it comes to its end by itself, between two commits.
                () = end.cancelled(), if !cancel.is_cancelled() => cancel.cancel(),
                // Nothing is sent before the answer: whatever comes is the end.
                _ = read.fill_buf(), if is_there => {
                    is_there = false;
                    cancel.cancel();
                }
                _ = tick.tick(), if is_there => {
                    let now = progress.get();
                    let line = format!("{}\n", json!({ "Progress": { "Count": now.0, "Bytes": now.1 } }));
                    // Whoever cannot be told is gone; the request still comes to its end by itself.
                    if now != told && write.write_all(line.as_bytes()).await.is_err() {
                        is_there = false;
                        cancel.cancel();
                    }
                    told = now;
                }
            }
        };
        if !is_there {
            return Ok(());
        }
        write.write_all(format!("{answer}\n").as_bytes()).await?;
    }
}

async fn answer(operator: &Arc<Operator>, asker: &Asker, line: &[u8], progress: &Progress) -> Value {
    let request: Value = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => return json!({ "Errno": libc::EINVAL, "Message": format!("the request is no JSON: {error}") }),
    };
    match operator.answer(asker, &request, progress).await {
        Ok(done) => json!({ "Done": done }),
        Err(Failure { errno, message }) => json!({ "Errno": errno.0, "Message": message }),
    }
}

/// User and groups of the other end, as the kernel knows them.
fn identity(stream: &UnixStream) -> io::Result<(u32, Vec<u32>)> {
    let peer = stream.peer_cred()?;
    let mut gids = vec![peer.gid()];
    let mut groups = vec![0 as libc::gid_t; 64];
    loop {
        let mut bytes = libc::socklen_t::try_from(groups.len() * size_of::<libc::gid_t>()).map_err(|_| io::ErrorKind::InvalidData)?;
        // SAFETY: `groups` has room for `bytes` bytes and `bytes` is valid; both live through the call.
        let failed = unsafe {
            libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERGROUPS, groups.as_mut_ptr().cast(), &mut bytes) == -1
        };
        let count = bytes as usize / size_of::<libc::gid_t>();
        if !failed {
            gids.extend_from_slice(&groups[..count.min(groups.len())]);
            return Ok((peer.uid(), gids));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// Where a path leads: which mount, and what is inside it.
#[derive(Clone, Debug)]
pub struct Inside {
    /// Where the mount is.
    pub mountpoint: PathBuf,
    /// From the root of the mount, without symbolic links; empty for the root itself.
    pub path: String,
    entry: MountEntry,
}

/// Whether the last part of a path is followed if it is a symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// It is.
    Followed,
    /// The link itself is meant.
    Itself,
}

/// Finds the mount a path is in. What does not exist is in the mount of what does.
pub fn locate(path: &Path, last: Last) -> Result<Inside, AskError> {
    let shown = || path.display().to_string();
    let failed = |error| AskError::Failed(format!("cannot look at {}", path.display()), error);
    let absolute = std::path::absolute(path).map_err(failed)?;
    let real = match (last, absolute.parent(), absolute.file_name()) {
        (Last::Itself, Some(parent), Some(name)) => mountpoint::existing_part(parent).join(name),
        _ => mountpoint::existing_part(&absolute),
    };
    let device = real.ancestors().find_map(|at| std::fs::symlink_metadata(at).ok()).map(|found| found.dev()).unwrap_or(0);
    let device = format!("{}:{}", libc::major(device), libc::minor(device));
    let entry = mount_entries()
        .map_err(failed)?
        .into_iter()
        .filter(|entry| entry.device == device && entry.is_ours() && real.starts_with(&entry.mountpoint))
        .max_by_key(|entry| entry.mountpoint.as_os_str().len())
        .ok_or_else(|| AskError::Outside(shown()))?;
    let rest = real.strip_prefix(&entry.mountpoint).map_err(|_| AskError::Outside(shown()))?;
    let inside = entry.root.join(rest);
    let text = inside.to_str().ok_or_else(|| AskError::Outside(format!("{} is no UTF-8, it", path.display())))?;
    Ok(Inside { mountpoint: entry.mountpoint.clone(), path: text.trim_matches('/').into(), entry })
}

/// The mounts of this host, each as its root, without touching any of them: one may not answer.
pub fn mounts() -> io::Result<Vec<Inside>> {
    let mut devices = HashSet::new();
    let ours = mount_entries()?.into_iter().filter(|entry| entry.is_ours() && devices.insert(entry.device.clone()));
    Ok(ours.map(|entry| Inside { mountpoint: entry.mountpoint.clone(), path: String::new(), entry }).collect())
}

/// Why a mount did not do what it was asked.
#[derive(Debug)]
pub enum AskError {
    /// The path is in no mount of ours.
    Outside(String),
    /// The mount refused or failed.
    Refused(Errno, String),
    /// It cannot be asked.
    Failed(String, io::Error),
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AskError::Outside(path) => write!(f, "{path} is not inside a Pando mount"),
            AskError::Refused(_, message) => f.write_str(message),
            AskError::Failed(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for AskError {}

/// A connection to the process that serves a mount.
pub struct Connection(io::BufReader<std::os::unix::net::UnixStream>);

impl Inside {
    /// Whether another path is in the same mount.
    pub fn is_beside(&self, other: &Inside) -> bool {
        self.entry.device == other.entry.device
    }

    /// Whether it seems to be a mount of the volume with this name; another volume may have the same.
    pub fn is_of(&self, volume: &str) -> bool {
        self.entry.source.split_once(':').is_some_and(|(_, name)| name == volume)
    }

    /// Connects to the process that serves the mount.
    pub fn connect(&self) -> Result<Connection, AskError> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for dir in record::directories() {
            match std::os::unix::net::UnixStream::connect(dir.join(file_name(&self.entry))) {
                Ok(stream) => return Ok(Connection(io::BufReader::new(stream))),
                Err(error) => last = error,
            }
        }
        let what = format!(
            "cannot reach the process that serves {} (it must run on this host, as root or as the same user)",
            self.mountpoint.display()
        );
        Err(AskError::Failed(what, last))
    }
}

impl Connection {
    /// Asks, and waits for the answer; `progress` is told how many things and bytes are done meanwhile.
    pub fn ask(&mut self, request: &Value, progress: &mut dyn FnMut(u64, u64)) -> Result<Value, AskError> {
        let failed = |error| AskError::Failed("the process that serves the mount gave no answer".into(), error);
        self.0.get_mut().write_all(format!("{request}\n").as_bytes()).map_err(failed)?;
        loop {
            let mut line = String::new();
            let count = io::Read::take(&mut self.0, ANSWER_BYTES_MAX).read_line(&mut line).map_err(failed)?;
            if count == 0 || !line.ends_with('\n') {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            let mut answer: Value = serde_json::from_str(&line).map_err(|error| failed(error.into()))?;
            if let Some(now) = answer.get("Progress") {
                progress(now["Count"].as_u64().unwrap_or(0), now["Bytes"].as_u64().unwrap_or(0));
            } else if let Some(done) = answer.get_mut("Done") {
                return Ok(done.take());
            } else {
                let errno = Errno(answer["Errno"].as_i64().and_then(|errno| i32::try_from(errno).ok()).unwrap_or(libc::EIO));
                return Err(AskError::Refused(errno, answer["Message"].as_str().unwrap_or("no reason was given").into()));
            }
        }
    }
}

fn file_name(entry: &MountEntry) -> String {
    format!("{}.sock", entry.device.replace(':', "-"))
}
