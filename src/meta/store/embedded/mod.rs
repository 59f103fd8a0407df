//! The embedded store: one SQLite database in a directory, usable by several processes of one host; or in memory.
//!
//! Statements run on the calling thread, so futures are ready at once; only contention with another process (1 to 20 ms polls) and
//! `sync` wait. Connections must not cross a fork: open after it.

mod error;
mod guard;
mod lock;
mod log;
mod query;
mod room;
mod scan;
mod schema;
mod write;

use super::{Commit, Cursor, Guard, Query, ScanPage, ScanRange, Store, StoreError, Value, Write};
use crate::env::Reserve;
use crate::types::BoxFuture;
use error::{Trouble, from_io};
use lock::LockFile;
use log::{Limits, Log};
use rusqlite::Connection;
use schema::Role;
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The database inside the directory.
const DATABASE: &str = "pando.db";
/// Its write-ahead log, named by SQLite.
const DATABASE_LOG: &str = "pando.db-wal";
/// Presence and sessions.
pub const LOCK: &str = "lock";
/// Room for removing on a full disk.
pub const RESERVE: &str = "reserve";
/// Free pages in the database (8 MiB) with which data may be added although the disk is full: more than the largest commit takes, which is 4 MiB of
/// small blocks.
const FREE_PAGES_MIN: i64 = 2_048;
/// Connections for reads that meet a commit. More than the threads that serve requests would never be used at once.
const READERS: usize = 4;
/// First and longest pause while another process has the write lock. Its transactions take some 50 µs; polling gives it turns.
const POLL_MIN: Duration = Duration::from_millis(1);
const POLL_MAX: Duration = Duration::from_millis(20);
/// Pauses after which another process is taken for stuck: about 30 s.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(30);

/// Filesystems that several hosts may write, or that hand shared memory out per client: a write-ahead log needs one kernel.
const NETWORK_FILESYSTEMS: [(i64, &str); 7] = [
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB2"),
    (0x0102_1997, "9P"),
    (0x00C3_6400, "CephFS"),
    (0x5346_414F, "AFS"),
];

/// The store.
pub struct EmbeddedStore {
    /// Commits, and reads while nobody commits: its page cache survives our own commits, those of the readers do not.
    writer: Mutex<Option<Connection>>,
    /// Empty in memory: such a database belongs to its connection.
    readers: Vec<Mutex<Connection>>,
    next_reader: AtomicUsize,
    home: Home,
}

enum Home {
    Memory { claimed: Mutex<HashSet<u64>> },
    Disk { log: Log, lock: LockFile, reserve: Arc<Reserve> },
}

impl EmbeddedStore {
    /// Whether there is a database in this directory.
    pub fn exists(dir: &Path) -> bool {
        dir.join(DATABASE).is_file()
    }

    /// Opens the store in a directory. Both are created if they are missing.
    pub fn open(dir: &Path) -> Result<EmbeddedStore, StoreError> {
        EmbeddedStore::open_with(dir, Limits::USUAL)
    }

    fn open_with(dir: &Path, limits: Limits) -> Result<EmbeddedStore, StoreError> {
        let what = dir.display().to_string();
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| from_io(&what, &e))?;
        refuse_network(dir)?;
        let lock = LockFile::open(&dir.join(LOCK))?;
        let path = dir.join(DATABASE);
        let reserve = Arc::new(Reserve::open(&dir.join(RESERVE)).map_err(|e| from_io(&dir.join(RESERVE).display().to_string(), &e))?);
        let connect = |role| {
            let try_it = || patiently_blocking(|| schema::connect(&path, role));
            let opened = match try_it() {
                // Opening writes a little: the index of the log.
                Err(StoreError::Full(_)) if reserve.give_back().unwrap_or(false) => try_it(),
                opened => opened,
            };
            opened.map_err(|e| name(&path, e))
        };
        let writer = connect(Role::Writer)?;
        let readers = (0..READERS).map(|_| connect(Role::Reader).map(Mutex::new)).collect::<Result<_, _>>()?;
        // The names of the files must be as durable as what `sync` promises of their content.
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| from_io(&what, &e))?;
        if let Some(parent) = fs::canonicalize(dir).ok().as_deref().and_then(Path::parent) {
            // May lie outside of what we can read; then it was there before us.
            let _ = File::open(parent).and_then(|parent| parent.sync_all());
        }
        let log = Log::open(&dir.join(DATABASE_LOG), connect(Role::Reader)?, limits, reserve.clone())?;
        log.watch(&writer);
        Ok(EmbeddedStore {
            writer: Mutex::new(Some(writer)),
            readers,
            next_reader: AtomicUsize::new(0),
            home: Home::Disk { log, lock, reserve },
        })
    }

    /// A store that is gone when it is dropped.
    pub fn open_in_memory() -> Result<EmbeddedStore, StoreError> {
        let writer = patiently_blocking(schema::connect_in_memory)?;
        let home = Home::Memory { claimed: Mutex::default() };
        Ok(EmbeddedStore { writer: Mutex::new(Some(writer)), readers: Vec::new(), next_reader: AtomicUsize::new(0), home })
    }

    /// A copy in memory of everything committed.
    pub fn copy_in_memory(&self) -> Result<EmbeddedStore, StoreError> {
        let copy = EmbeddedStore::open_in_memory()?;
        patiently_blocking(|| {
            let from = lock(&self.writer);
            let from = writer_of(&from)?;
            transaction(from, Begin::Read, |from| schema::copy(from, writer_of(&lock(&copy.writer))?).map(End::Keep))
        })?;
        Ok(copy)
    }

    fn with_writer<T>(&self, work: impl FnOnce(&Connection) -> Result<T, Trouble>) -> Result<T, Trouble> {
        let writer = lock(&self.writer);
        let conn = writer_of(&writer)?;
        work(conn).map_err(|e| e.explain(conn))
    }

    fn with_reader<T>(&self, work: impl FnOnce(&Connection) -> Result<T, Trouble>) -> Result<T, Trouble> {
        if self.readers.is_empty() {
            return self.with_writer(work);
        }
        if let Ok(writer) = self.writer.try_lock() {
            let conn = writer_of(&writer)?;
            return work(conn).map_err(|e| e.explain(conn));
        }
        self.with_pooled(work)
    }

    /// For reads that take long: commits must not wait for them.
    fn with_pooled<T>(&self, work: impl FnOnce(&Connection) -> Result<T, Trouble>) -> Result<T, Trouble> {
        if self.readers.is_empty() {
            return self.with_writer(work);
        }
        let turn = self.next_reader.fetch_add(1, Ordering::Relaxed) % self.readers.len();
        let conn = self.readers.iter().find_map(|reader| reader.try_lock().ok()).unwrap_or_else(|| lock(&self.readers[turn]));
        work(&conn).map_err(|e| e.explain(&conn))
    }

    fn read_now(&self, queries: &[Query]) -> Result<Vec<Value>, Trouble> {
        if let [query @ Query::FramesKept] = queries {
            return self.with_pooled(|conn| Ok(vec![query::answer(conn, query)?]));
        }
        self.with_reader(|conn| match queries {
            [query] if query::is_single(query) => Ok(vec![query::answer(conn, query)?]),
            queries => transaction(conn, Begin::Read, |conn| {
                queries.iter().map(|query| query::answer(conn, query)).collect::<Result<_, _>>().map(End::Keep)
            }),
        })
    }

    fn commit_now(&self, guards: &[Guard], writes: &[Write], reads: &[Query]) -> Result<Commit, Trouble> {
        let work = |conn: &Connection| {
            Ok(match write::run(conn, guards, writes, reads)? {
                conflict @ Commit::Conflict(_) => End::Undo(conflict),
                done => End::Keep(done),
            })
        };
        if writes.is_empty() {
            return self.with_reader(|conn| transaction(conn, Begin::Read, work));
        }
        let write = || self.with_writer(|conn| transaction(conn, Begin::Write, work));
        let Home::Disk { log, reserve, .. } = &self.home else { return write() };
        if log.held() {
            return Err(Trouble::Busy("the log is being started over".into()));
        }
        if room::adds(writes) {
            // What was given back to a full disk serves those who remove. What they have removed from the database is room, too.
            if !reserve.is_ready() && self.with_writer(query::free_pages)? < FREE_PAGES_MIN {
                return Err(StoreError::Full("there is no room on the disk below the volume; remove something".into()).into());
            }
            return write();
        }
        loop {
            match write() {
                Err(Trouble::Store(StoreError::Full(_))) if log.make_room() => {}
                done => return done,
            }
        }
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        // The connections go first: the log is told the length by the writer, and is cut only when no reader needs it.
        *lock(&self.writer) = None;
        self.readers.clear();
        if let Home::Disk { log, lock, .. } = &mut self.home {
            log.close(!lock.shared());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under the lock leaves at most an open transaction, which the next one rolls back.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn writer_of(writer: &Option<Connection>) -> Result<&Connection, Trouble> {
    writer.as_ref().ok_or_else(|| StoreError::Failed("the store is closed".into()).into())
}

/// Says which file an error at open is about.
fn name(path: &Path, error: StoreError) -> StoreError {
    let name = |why: String| format!("{}: {why}", path.display());
    match error {
        StoreError::Full(why) => StoreError::Full(name(why)),
        StoreError::Damaged(why) => StoreError::Damaged(name(why)),
        StoreError::ReadOnly(why) => StoreError::ReadOnly(name(why)),
        StoreError::Failed(why) => StoreError::Failed(name(why)),
    }
}

fn refuse_network(dir: &Path) -> Result<(), StoreError> {
    let what = dir.display();
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes()).map_err(|_| StoreError::Failed(format!("{what}: not a path")))?;
    // SAFETY: `statfs` is plain data, all zeros is a value of it.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with NUL, the structure is ours.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut found) } != 0 {
        return Err(from_io(&what.to_string(), &std::io::Error::last_os_error()));
    }
    match NETWORK_FILESYSTEMS.iter().find(|(magic, _)| *magic == found.f_type) {
        Some((_, kind)) => Err(StoreError::Failed(format!("{what} is on {kind}: the embedded store needs a local filesystem"))),
        None => Ok(()),
    }
}

#[derive(Clone, Copy)]
enum Begin {
    Read,
    Write,
}

enum End<T> {
    Keep(T),
    Undo(T),
}

/// Runs `work` in a transaction; an error rolls it back.
fn transaction<T>(conn: &Connection, begin: Begin, work: impl FnOnce(&Connection) -> Result<End<T>, Trouble>) -> Result<T, Trouble> {
    if !conn.is_autocommit() {
        // Left by a panic, or by a rollback that failed.
        run(conn, "ROLLBACK")?;
    }
    run(conn, if matches!(begin, Begin::Write) { "BEGIN IMMEDIATE" } else { "BEGIN" })?;
    let done = work(conn).and_then(|end| match end {
        End::Keep(value) => run(conn, "COMMIT").map(|()| value),
        End::Undo(value) => run(conn, "ROLLBACK").map(|()| value),
    });
    // Some errors have ended the transaction already.
    if done.is_err() && !conn.is_autocommit() {
        let _ = run(conn, "ROLLBACK");
    }
    done
}

fn run(conn: &Connection, sql: &str) -> Result<(), Trouble> {
    conn.prepare_cached(sql)?.execute([])?;
    Ok(())
}

/// The pauses between attempts while another process is busy.
struct Patience {
    pause: Duration,
    waited: Duration,
}

impl Patience {
    fn new() -> Patience {
        Patience { pause: POLL_MIN, waited: Duration::ZERO }
    }

    fn next(&mut self, why: String) -> Result<Duration, StoreError> {
        if self.waited >= BUSY_WAIT_MAX {
            return Err(StoreError::Failed(format!("another process kept the database locked for {:?}: {why}", self.waited)));
        }
        let pause = self.pause;
        self.waited += pause;
        self.pause = (pause * 2).min(POLL_MAX);
        Ok(pause)
    }
}

/// Tries until nobody else is busy. No lock of this process is held in the pauses.
async fn patiently<T>(mut attempt: impl FnMut() -> Result<T, Trouble>) -> Result<T, StoreError> {
    let mut patience = Patience::new();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(Trouble::Store(error)) => return Err(error),
            Err(Trouble::Busy(why)) => {
                let pause = patience.next(why)?;
                match tokio::runtime::Handle::try_current() {
                    Ok(_) => tokio::time::sleep(pause).await,
                    Err(_) => std::thread::sleep(pause),
                }
            }
        }
    }
}

fn patiently_blocking<T>(mut attempt: impl FnMut() -> Result<T, Trouble>) -> Result<T, StoreError> {
    let mut patience = Patience::new();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(Trouble::Store(error)) => return Err(error),
            Err(Trouble::Busy(why)) => std::thread::sleep(patience.next(why)?),
        }
    }
}

impl Store for EmbeddedStore {
    fn read<'a>(&'a self, queries: &'a [Query]) -> BoxFuture<'a, Result<Vec<Value>, StoreError>> {
        Box::pin(patiently(|| self.read_now(queries)))
    }

    fn commit<'a>(&'a self, guards: &'a [Guard], writes: &'a [Write], reads: &'a [Query]) -> BoxFuture<'a, Result<Commit, StoreError>> {
        Box::pin(patiently(|| self.commit_now(guards, writes, reads)))
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        match &self.home {
            Home::Memory { .. } => Box::pin(std::future::ready(Ok(()))),
            Home::Disk { log, .. } => {
                Box::pin(async { log.sync().await.unwrap_or_else(|_| Err(StoreError::Failed("the thread that syncs has ended".into()))) })
            }
        }
    }

    fn scan<'a>(&'a self, range: &'a ScanRange, cursor: Cursor, limit: u32) -> BoxFuture<'a, Result<ScanPage, StoreError>> {
        Box::pin(patiently(move || {
            self.with_pooled(|conn| transaction(conn, Begin::Read, |conn| scan::page(conn, range, &cursor, limit).map(End::Keep)))
        }))
    }

    fn shared(&self) -> bool {
        match &self.home {
            Home::Memory { .. } => false,
            Home::Disk { lock, .. } => lock.shared(),
        }
    }

    fn claim_session(&self, sid: u64) -> Result<bool, StoreError> {
        match &self.home {
            Home::Memory { claimed } => {
                lock(claimed).insert(sid);
                Ok(true)
            }
            Home::Disk { lock, .. } => lock.claim(sid),
        }
    }

    fn session_alive(&self, sid: u64) -> Option<bool> {
        match &self.home {
            Home::Memory { claimed } => Some(lock(claimed).contains(&sid)),
            Home::Disk { lock, .. } => lock.alive(sid),
        }
    }
}

#[cfg(test)]
mod tests;
