//! The threads of one cache directory: one writes and makes room, one looks through it.

use crate::cache::disk::dir::Dir;
use crate::cache::disk::scan::scan;
use crate::types::BlockId;
use bytes::Bytes;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// Jobs waiting. Their bytes have a limit of their own; this one is for small blocks and removals.
const JOBS_MAX: usize = 1024;
/// How often the limits are looked at (data §6.4).
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two looks for the lock file: every ten seconds.
const LOCK_TICKS: u32 = 10;
/// How long the end of a cache waits for its threads. One that hangs on its disk is left behind.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// What the writing thread is asked to do.
pub(super) enum Job {
    Put(BlockId, Bytes),
    Remove(BlockId),
    /// Answer when everything before is done.
    Flush(SyncSender<()>),
}

/// The threads of one directory; dropping it ends them.
pub(super) struct Worker {
    /// `None` only while it is dropped.
    jobs: Option<SyncSender<Job>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stop: bool,
    rescan: bool,
    threads: u32,
}

impl Worker {
    pub(super) fn start(dir: &Arc<Dir>, scan_interval: Duration, queued_bytes: Arc<AtomicU64>) -> Worker {
        let (ask, jobs) = sync_channel(JOBS_MAX);
        let shared = Arc::new(Shared::default());
        let writer = Writer { dir: Arc::clone(dir), shared: Arc::clone(&shared), queued_bytes, ready: false };
        spawn(&shared, "cache-write", move || writer.run(&jobs));
        let (scanned, dir) = (Arc::clone(&shared), Arc::clone(dir));
        spawn(&shared, "cache-scan", move || scanned.scan_again_and_again(&dir, scan_interval));
        Worker { jobs: Some(ask), shared }
    }

    /// Queues a job; `false` if there is no room.
    pub(super) fn ask(&self, job: Job) -> bool {
        self.jobs.as_ref().is_some_and(|jobs| jobs.try_send(job).is_ok())
    }

    /// Waits until what was asked before is done.
    pub(super) fn flush(&self, until: Instant) {
        let (done, wait) = sync_channel(1);
        // A queue without room for the question is not done in time either.
        if self.ask(Job::Flush(done)) {
            let _ = wait.recv_timeout(until.saturating_duration_since(crate::env::instant()));
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        self.jobs = None;
        let patience = |state: &mut State| state.threads > 0;
        drop(self.shared.changed.wait_timeout_while(self.shared.lock(), STOP_PATIENCE, patience));
    }
}

fn spawn(shared: &Arc<Shared>, name: &str, run: impl FnOnce() + Send + 'static) {
    shared.lock().threads += 1;
    let ended = Ended(Arc::clone(shared));
    let spawned = std::thread::Builder::new().name(name.into()).spawn(move || {
        let _ended = ended;
        run();
    });
    if let Err(error) = spawned {
        // Without it nothing is written, or nothing known of what is there: a smaller cache, no wrong one.
        warn!("cannot start a thread of the disk cache: {error}");
    }
}

/// Tells the end of a thread, or that it never began.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.lock().threads -= 1;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("never poisoned: no code under it panics")
    }

    fn scan_again_and_again(&self, dir: &Dir, interval: Duration) {
        loop {
            if let Err(error) = scan(dir, &|| !self.lock().stop) {
                // What was found until then counts; the rest is found when it is read.
                dir.failed("scan", &error);
            }
            debug!(blocks = dir.index().len(), "scanned {}", dir.raw().display());
            let mut state = self.lock();
            let idle = |state: &mut State| !state.stop && !state.rescan;
            state = if interval.is_zero() {
                self.changed.wait_while(state, idle).expect("never poisoned: no code under it panics")
            } else {
                self.changed.wait_timeout_while(state, interval, idle).expect("never poisoned: no code under it panics").0
            };
            if state.stop {
                return;
            }
            state.rescan = false;
        }
    }
}

struct Writer {
    dir: Arc<Dir>,
    shared: Arc<Shared>,
    queued_bytes: Arc<AtomicU64>,
    /// The directory was seen or made.
    ready: bool,
}

impl Writer {
    fn run(mut self, jobs: &Receiver<Job>) {
        self.look_for_lock();
        let (mut next_tick, mut ticks) = (crate::env::instant() + TICK, 0);
        loop {
            match jobs.recv_timeout(next_tick.saturating_duration_since(crate::env::instant())) {
                Ok(job) => self.work(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if crate::env::instant() >= next_tick {
                ticks += 1;
                self.tick(ticks % LOCK_TICKS == 0);
                next_tick = crate::env::instant() + TICK;
            }
        }
    }

    fn work(&self, job: Job) {
        match job {
            Job::Put(block, bytes) => {
                // The disk may have begun to fail, and the cache may have ended, since it was queued.
                if self.dir.allows() && !self.shared.lock().stop {
                    self.dir.write(&block, &bytes);
                } else {
                    self.dir.counters.drops.fetch_add(1, Ordering::Relaxed);
                }
                self.queued_bytes.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
            }
            Job::Remove(block) => self.dir.remove(&block),
            Job::Flush(done) => {
                // Who asked may have given up.
                let _ = done.try_send(());
            }
        }
    }

    fn tick(&mut self, lock: bool) {
        self.dir.close_idle();
        if !self.dir.allows() {
            return;
        }
        if lock {
            self.look_for_lock();
        }
        self.dir.expire();
        self.dir.make_room(0);
    }

    fn look_for_lock(&mut self) {
        match self.dir.prepare() {
            Ok(made) => {
                if made && self.ready {
                    self.dir.note_lost();
                    self.shared.lock().rescan = true;
                    self.shared.changed.notify_all();
                }
                self.ready = true;
            }
            Err(error) => self.dir.failed("prepare", &error),
        }
    }
}
