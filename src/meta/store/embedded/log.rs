//! The write-ahead log: making it durable for `sync`, and moving it into the database before it grows too long.
//!
//! Why one fdatasync of the -wal file covers every commit acknowledged before it: a commit has written its pages to the log when it
//! returns. Pages leave the log only when a later transaction starts it over, which SQLite allows only once *all* of the log has been
//! copied to the database. With synchronous=NORMAL the copying (`walCheckpoint`) syncs the log first, then copies, then syncs the
//! database, and only then notes the log as copied. So at any moment each acknowledged page is in the log as it is now, or in
//! the synced database.
//!
//! The descriptor synced is our own of the -wal file. Never open the database file beside SQLite: closing any descriptor of it drops the
//! POSIX locks of the whole process on it. On the -wal file SQLite has none.

use super::error::{Trouble, from_io};
use crate::env::{Reserve, offer};
use crate::meta::store::StoreError;
use rusqlite::{Connection, ffi};
use std::ffi::{c_char, c_int, c_void};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::sync::oneshot;
use tracing::{error, warn};

/// How long the log may get.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Pages at which copying begins, and pages added after which it is tried again.
    pub(super) copy_pages: i64,
    /// Pages at which writers are held up until the log is copied completely and can start over. Under steady load the log never rests,
    /// so without this it would grow for ever. At twice this length writers wait at once.
    pub(super) pages_max: i64,
}

impl Limits {
    /// 8 MiB and 64 MiB: read back in a fraction of a second after a crash, and long enough to be copied seldom.
    pub(super) const USUAL: Limits = Limits { copy_pages: 2_048, pages_max: 16_384 };
    /// 1 MiB and 4 MiB, on a disk that is nearly full: copying needs as much room again as the log has new pages, and both have to fit into the reserve.
    const TIGHT: Limits = Limits { copy_pages: 256, pages_max: 1_024 };
}

/// How long copying may hold up writers while it waits for a writer of another process, or for readers of the log.
const RESTART_WAIT: Duration = Duration::from_millis(100);
/// Pause after it waited in vain, in which writers go on.
const RESTART_PAUSE: Duration = Duration::from_millis(200);
/// Pause after a failed copy: a full or failing disk is not helped by haste.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What becomes of a log that is copied completely.
#[derive(Clone, Copy)]
enum Then {
    /// The next writer starts it over.
    Restart,
    /// The file is cut to nothing.
    Truncate,
}

/// Length of the log as commits see it, and the wish to have it copied.
struct Gauge {
    usual: Limits,
    /// The disk is nearly full.
    tight: AtomicBool,
    pages: AtomicI64,
    wake_at: AtomicI64,
    /// Writers of this process are to keep away: SQLite's lock of writers is polled, and whoever commits in a loop would never let the
    /// copier have it.
    held: AtomicBool,
    wish: Mutex<Wish>,
    changed: Condvar,
}

#[derive(Default)]
struct Wish {
    copy: bool,
    stop: bool,
}

impl Gauge {
    fn limits(&self) -> Limits {
        if self.tight.load(Ordering::Relaxed) { Limits::TIGHT } else { self.usual }
    }

    fn note(&self, pages: i64) {
        let limits = self.limits();
        // Shorter than before: it was started over.
        if pages < self.pages.swap(pages, Ordering::Relaxed) {
            self.wake_at.store(limits.copy_pages, Ordering::Relaxed);
        }
        let too_long = pages >= limits.pages_max.saturating_mul(2);
        if too_long {
            // Released by the copier whatever comes of its work, so that a disk that fails slows writers down but does not stop them.
            self.held.store(true, Ordering::Relaxed);
        }
        if too_long || pages >= self.wake_at.load(Ordering::Relaxed) {
            self.wake_at.store(pages.saturating_add(limits.copy_pages), Ordering::Relaxed);
            self.wish.lock().unwrap_or_else(PoisonError::into_inner).copy = true;
            self.changed.notify_one();
        }
    }

    /// Waits for a wish; false means stop.
    fn wait(&self) -> bool {
        let mut wish = self.wish.lock().unwrap_or_else(PoisonError::into_inner);
        while !wish.copy && !wish.stop {
            wish = self.changed.wait(wish).unwrap_or_else(PoisonError::into_inner);
        }
        wish.copy = false;
        !wish.stop
    }

    /// Waits out a pause; false means stop.
    fn pause(&self, pause: Duration) -> bool {
        let wish = self.wish.lock().unwrap_or_else(PoisonError::into_inner);
        let (wish, _) = self.changed.wait_timeout_while(wish, pause, |wish| !wish.stop).unwrap_or_else(PoisonError::into_inner);
        !wish.stop
    }

    fn stop(&self) {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.changed.notify_all();
    }
}

/// Called by SQLite on the committing thread after each commit, with the length of the log.
unsafe extern "C" fn on_commit(context: *mut c_void, _db: *mut ffi::sqlite3, _name: *const c_char, pages: c_int) -> c_int {
    // SAFETY: the context is the `Gauge` of the `Log` that outlives the connection (see `watch`).
    let gauge = unsafe { &*context.cast::<Gauge>() };
    gauge.note(i64::from(pages));
    ffi::SQLITE_OK
}

/// The two threads of a database file.
pub(super) struct Log {
    gauge: Arc<Gauge>,
    copier: Option<JoinHandle<()>>,
    syncer: Syncer,
    /// Shared by both threads: the copier's work, and the way out after a failed sync.
    conn: Arc<Mutex<Connection>>,
    reserve: Arc<Reserve>,
}

impl Log {
    /// `conn` is a connection of its own, for copying only. The log exists by now, because a connection has read.
    pub(super) fn open(path: &Path, conn: Connection, usual: Limits, reserve: Arc<Reserve>) -> Result<Log, StoreError> {
        let what = path.display().to_string();
        let file = File::open(path).map_err(|e| from_io(&what, &e))?;
        conn.busy_timeout(RESTART_WAIT).map_err(|e| StoreError::Failed(e.to_string()))?;
        let conn = Arc::new(Mutex::new(conn));
        let tight = reserve.is_nearly_full();
        let gauge = Arc::new(Gauge {
            usual,
            tight: AtomicBool::new(tight),
            pages: AtomicI64::new(0),
            // The first commit tells how long the log is that others left.
            wake_at: AtomicI64::new(if tight { Limits::TIGHT } else { usual }.copy_pages),
            held: AtomicBool::new(false),
            wish: Mutex::default(),
            changed: Condvar::new(),
        });
        let copier = {
            let (gauge, conn, reserve) = (gauge.clone(), conn.clone(), reserve.clone());
            spawn("pando-copy-log", move || copy_until_stopped(&gauge, &conn, &reserve))?
        };
        let suspect = AtomicBool::new(false);
        let sync_conn = conn.clone();
        let syncer = Syncer::start(move || {
            // After a failed sync the kernel calls the pages clean although they are not on the disk, and the next sync would succeed for
            // nothing. What the log holds is then made durable by copying all of it into the database.
            if suspect.load(Ordering::Relaxed) {
                if !copy_all(&sync_conn, Then::Truncate)? {
                    return Err(StoreError::Failed("syncing the log failed before, and it is too busy to be copied now".into()));
                }
                suspect.store(false, Ordering::Relaxed);
            }
            sync_file(&what, &file).inspect_err(|_| suspect.store(true, Ordering::Relaxed))
        })?;
        Ok(Log { gauge, copier: Some(copier), syncer, conn, reserve })
    }

    /// Has the connection tell the log's length after each commit. The connection must be closed before this log is dropped.
    pub(super) fn watch(&self, conn: &Connection) {
        let gauge: *const Gauge = &*self.gauge;
        // SAFETY: the handle is valid; `gauge` is owned by `self` (and never replaced), which outlives the connection; `Gauge` is Sync.
        unsafe { ffi::sqlite3_wal_hook(conn.handle(), Some(on_commit), gauge.cast_mut().cast()) };
    }

    /// Whether writers are to try again later.
    pub(super) fn held(&self) -> bool {
        self.gauge.held.load(Ordering::Relaxed)
    }

    /// Makes room on a full disk for a commit that is to be tried once more: gives the reserve back, and if that was done before, the room of
    /// the log itself. False if there is nothing more to give.
    pub(super) fn make_room(&self) -> bool {
        self.gauge.tight.store(true, Ordering::Relaxed);
        match give_back(&self.reserve) {
            true => true,
            false => copy_all(&self.conn, Then::Truncate).unwrap_or(false),
        }
    }

    pub(super) fn sync(&self) -> oneshot::Receiver<Result<(), StoreError>> {
        self.syncer.request()
    }

    /// Copies the log and cuts it to nothing, unless others use it. Nobody commits any more.
    pub(super) fn close(&mut self, alone: bool) {
        self.stop();
        if !alone {
            return;
        }
        let copied = match copy_all(&self.conn, Then::Truncate) {
            Err(StoreError::Full(_)) if give_back(&self.reserve) => copy_all(&self.conn, Then::Truncate),
            copied => copied,
        };
        if let Err(why) = copied {
            warn!("the log of the metadata store stays, it is read at the next start: {why}");
        }
    }

    fn stop(&mut self) {
        self.gauge.stop();
        if let Some(copier) = self.copier.take() {
            let _ = copier.join();
        }
        self.syncer.stop();
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|e| from_io("start a thread", &e))
}

fn sync_file(what: &str, file: &File) -> Result<(), StoreError> {
    file.sync_data().and_then(|()| file.metadata()).map_err(|e| from_io(what, &e)).and_then(|found| match found.nlink() {
        // What was synced is not what the next start will read.
        0 => Err(StoreError::Failed(format!("{what} was removed while in use"))),
        _ => Ok(()),
    })
}

/// Gives the reserve back to a full disk; false if that was done before.
fn give_back(reserve: &Reserve) -> bool {
    let given = reserve.give_back().unwrap_or_else(|error| {
        error!("the reserve of the volume cannot be given back to its disk, which is full: {error}");
        false
    });
    if given {
        warn!("the disk below the volume is full; until there is room again nothing can be added, only removed");
    }
    given
}

fn copy_until_stopped(gauge: &Gauge, conn: &Mutex<Connection>, reserve: &Reserve) {
    while gauge.wait() {
        gauge.tight.store(reserve.is_nearly_full(), Ordering::Relaxed);
        let copied = copy(gauge, conn);
        gauge.held.store(false, Ordering::Relaxed);
        let go_on = match copied {
            Ok(true) => true,
            Ok(false) => {
                // The next commit asks again.
                gauge.wake_at.store(0, Ordering::Relaxed);
                gauge.pause(RESTART_PAUSE)
            }
            Err(StoreError::Full(why)) => {
                // The reserve is for those who remove: when they find no room, it is given back and this is done again.
                warn!("the disk below the volume is full: {why}");
                gauge.tight.store(true, Ordering::Relaxed);
                gauge.wake_at.store(0, Ordering::Relaxed);
                gauge.pause(RETRY_PAUSE)
            }
            Err(why) => {
                error!("copying the log of the metadata store into its database: {why}");
                gauge.wake_at.store(0, Ordering::Relaxed);
                gauge.pause(RETRY_PAUSE)
            }
        };
        if !go_on {
            return;
        }
    }
}

/// False if the log is too long and could not be started over.
fn copy(gauge: &Gauge, conn: &Mutex<Connection>) -> Result<bool, StoreError> {
    let (pages, copied) = copy_some(conn)?;
    let complete = copied == pages && !gauge.held.load(Ordering::Relaxed);
    if complete || pages < gauge.limits().pages_max {
        return Ok(true);
    }
    // Most of it is copied and synced before writers are held up; they wait for the rest only.
    sync_database(conn)?;
    gauge.held.store(true, Ordering::Relaxed);
    copy_all(conn, if gauge.tight.load(Ordering::Relaxed) { Then::Truncate } else { Then::Restart })
}

/// Runs a checkpoint: whether it was kept from finishing, the length of the log, and how much of it is copied.
fn run(conn: &Mutex<Connection>, sql: &str) -> Result<(bool, i64, i64), StoreError> {
    let conn = conn.lock().unwrap_or_else(PoisonError::into_inner);
    let told = conn.query_row(sql, [], |row| Ok((row.get::<_, i64>(0)? != 0, row.get(1)?, row.get(2)?)));
    told.map_err(|e| match Trouble::from(e).explain(&conn) {
        Trouble::Store(error) => error,
        Trouble::Busy(why) => StoreError::Failed(why),
    })
}

/// Copies what can be copied without waiting for anybody: the length of the log, and how much of it is copied.
fn copy_some(conn: &Mutex<Connection>) -> Result<(i64, i64), StoreError> {
    let (_, pages, copied) = run(conn, "PRAGMA wal_checkpoint(PASSIVE)")?;
    Ok((pages, copied))
}

/// Copies everything, while writers wait; false if somebody was in the way for too long.
fn copy_all(conn: &Mutex<Connection>, then: Then) -> Result<bool, StoreError> {
    let (busy, ..) = run(
        conn,
        match then {
            Then::Restart => "PRAGMA wal_checkpoint(RESTART)",
            Then::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
        },
    )?;
    Ok(!busy)
}

/// Syncs the database file through SQLite's own descriptor, so that a restart finds little left to sync while writers wait.
fn sync_database(conn: &Mutex<Connection>) -> Result<(), StoreError> {
    let conn = conn.lock().unwrap_or_else(PoisonError::into_inner);
    let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
    // SAFETY: the handle is valid and locked; this opcode stores the pointer of the main database's file, which lives as long as the
    // connection; its methods are set while it is open.
    let code = unsafe {
        ffi::sqlite3_file_control(conn.handle(), c"main".as_ptr(), ffi::SQLITE_FCNTL_FILE_POINTER, (&raw mut file).cast());
        match file.as_ref().and_then(|f| f.pMethods.as_ref()).and_then(|methods| methods.xSync) {
            Some(sync) => sync(file, ffi::SQLITE_SYNC_NORMAL),
            None => ffi::SQLITE_OK,
        }
    };
    match code {
        ffi::SQLITE_OK => Ok(()),
        code => Err(StoreError::Failed(format!("syncing the database file: code {code}"))),
    }
}

type Waiter = oneshot::Sender<Result<(), StoreError>>;

/// One thread that syncs for everybody who asked before it began.
struct Syncer {
    queue: Arc<(Mutex<SyncQueue>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct SyncQueue {
    /// Bounded by the number of requests under way.
    waiters: Vec<Waiter>,
    stop: bool,
}

impl Syncer {
    fn start(mut sync: impl FnMut() -> Result<(), StoreError> + Send + 'static) -> Result<Syncer, StoreError> {
        let queue = Arc::new((Mutex::<SyncQueue>::default(), Condvar::new()));
        let mine = queue.clone();
        let thread = spawn("pando-sync-log", move || {
            let (queue, changed) = &*mine;
            loop {
                let waiters = {
                    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                    while queue.waiters.is_empty() && !queue.stop {
                        queue = changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                    }
                    if queue.waiters.is_empty() {
                        return;
                    }
                    // Who comes from here on may have committed after the sync began, and waits for the next.
                    std::mem::take(&mut queue.waiters)
                };
                let result = sync();
                let only = waiters.len() == 1;
                for waiter in waiters {
                    // A waiter that has gone needs no answer. What is left to do for an only one is to answer its fsync, as a rule; where
                    // there are several others may ask by now, and the next sync is not to wait for the answers.
                    let tell = || drop(waiter.send(result.clone()));
                    if only { offer(tell) } else { tell() }
                }
            }
        })?;
        Ok(Syncer { queue, thread: Some(thread) })
    }

    fn request(&self) -> oneshot::Receiver<Result<(), StoreError>> {
        let (waiter, answer) = oneshot::channel();
        let (queue, changed) = &*self.queue;
        queue.lock().unwrap_or_else(PoisonError::into_inner).waiters.push(waiter);
        changed.notify_one();
        answer
    }

    /// Answers who is waiting, then ends.
    fn stop(&mut self) {
        let (queue, changed) = &*self.queue;
        queue.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        changed.notify_one();
        // An fsync that is answered on that thread may be the last that keeps the store.
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != thread::current().id()) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use std::sync::mpsc;

    #[test]
    fn syncs_are_grouped_and_a_failure_reaches_every_waiter() {
        let (go, gate) = mpsc::channel::<Result<(), StoreError>>();
        let runs = Arc::new(AtomicU32::new(0));
        let counted = runs.clone();
        let mut syncer = Syncer::start(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            gate.recv().unwrap()
        })
        .unwrap();
        let first = syncer.request();
        while runs.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        // These come while the first sync runs: it may have begun before their commits.
        let late: Vec<_> = (0..10).map(|_| syncer.request()).collect();
        go.send(Ok(())).unwrap();
        go.send(Err(StoreError::Failed("disk".into()))).unwrap();
        assert_eq!(first.blocking_recv().unwrap(), Ok(()));
        for waiter in late {
            assert_eq!(waiter.blocking_recv().unwrap(), Err(StoreError::Failed("disk".into())));
        }
        assert_eq!(runs.load(Ordering::SeqCst), 2);
        syncer.stop();
    }
}
