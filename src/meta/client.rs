//! `Meta`: one volume's metadata as the rest of the program uses it. Each operation adds its method in `meta/ops/`.

use crate::env::Clock;
use crate::meta::driver::{Driver, OpenFiles, errno_of};
use crate::meta::key;
use crate::meta::setting::Setting;
use crate::meta::store::{Commit, Key, Store, Value, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::types::{BoxFuture, Caller, Duty, Errno, FrameSource, Ino, SliceId, Time};
use bytes::Bytes;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

/// Inode numbers taken from the counter at once (metadata §3).
const INODE_BATCH: u64 = 1024;
/// Slice ids taken from the counter at once.
const SLICE_BATCH: u64 = 4096;

/// What a `Meta` is made of.
pub struct MetaConfig {
    /// Where the keys are.
    pub store: Arc<dyn Store>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// The volume's format.
    pub setting: Setting,
    /// Background work; full means dropped, the periodic scans find it again.
    pub duties: mpsc::Sender<Duty>,
    /// Access times (cli §6.1): never, when stale, always.
    pub atime: AtimeMode,
}

/// When reading updates the access time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtimeMode {
    /// Never.
    #[default]
    Never,
    /// When it is older than mtime or ctime, or than a day.
    Relative,
    /// When it is older than a second.
    Strict,
}

/// The metadata of one volume, with this process's session. Open files and locks are process-wide.
pub struct Meta {
    pub(crate) driver: Driver,
    pub(crate) setting: Setting,
    pub(crate) atime: AtimeMode,
    duties: mpsc::Sender<Duty>,
    /// 0 until `new_session`.
    pub(crate) sid: std::sync::atomic::AtomicU64,
    inodes: tokio::sync::Mutex<std::ops::Range<u64>>,
    slices: tokio::sync::Mutex<std::ops::Range<u64>>,
    /// Owners of POSIX and BSD locks held through this process, so that closing can skip what was never locked.
    pub(crate) locked: Mutex<std::collections::HashSet<Ino>>,
    /// What `new_session` has registered; a heartbeat that finds it gone puts it back.
    pub(crate) session_document: Mutex<Bytes>,
}

/// What every step knows beside the store: who asks, what time it is, what this process has open.
pub struct Cx<'a> {
    /// On whose behalf.
    pub caller: &'a Caller,
    /// Now.
    pub now: Time,
    /// This process's session, 0 = none.
    pub sid: u64,
    /// The volume's format.
    pub setting: &'a Setting,
    /// Handles of this process.
    pub open_files: &'a OpenFiles,
}

impl Meta {
    /// Metadata over a store that holds `config.setting`.
    pub fn new(config: MetaConfig) -> Meta {
        Meta {
            driver: Driver { store: config.store, clock: config.clock, open_files: OpenFiles::new() },
            setting: config.setting,
            atime: config.atime,
            duties: config.duties,
            sid: Default::default(),
            inodes: Default::default(),
            slices: Default::default(),
            locked: Default::default(),
            session_document: Default::default(),
        }
    }

    /// The volume's format.
    pub fn setting(&self) -> &Setting {
        &self.setting
    }

    /// The store, for jobs that list and check.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.driver.store
    }

    /// The clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.driver.clock
    }

    /// Handles of this process.
    pub fn open_files(&self) -> &OpenFiles {
        &self.driver.open_files
    }

    /// Asks for background work.
    pub fn ask(&self, duty: Duty) {
        // Full or closed: the periodic scan finds it again.
        let _ = self.duties.try_send(duty);
    }

    /// Makes everything committed so far as durable as the tier says.
    pub async fn sync(&self) -> Result<(), Errno> {
        self.driver.store.sync().await.map_err(|e| errno_of("sync", &e))
    }

    /// Removes the frame of a slice whose block is an object now.
    pub async fn drop_frame(&self, id: SliceId) -> Result<(), Errno> {
        let dropped = self.driver.store.commit(&[], &[Write::DelFrame(id)], &[]).await;
        dropped.map(|_| ()).map_err(|e| errno_of("remove a frame", &e))
    }

    /// Runs one operation; see `Driver::run`. `step` gets the same `now` in every round.
    pub(crate) async fn run<T, F>(&self, what: &'static str, caller: &Caller, step: F) -> Result<T, Errno>
    where
        T: Send + 'static,
        F: Fn(&View, &Cx) -> Result<Plan<T>, Stop> + Send + Sync,
    {
        let now = self.driver.clock.now();
        let sid = self.sid.load(std::sync::atomic::Ordering::Relaxed);
        self.driver
            .run(what, View::default(), |view| {
                step(view, &Cx { caller, now, sid, setting: &self.setting, open_files: &self.driver.open_files })
            })
            .await
    }

    /// A fresh inode number.
    pub(crate) async fn next_inode(&self) -> Result<Ino, Errno> {
        let mut batch = self.inodes.lock().await;
        // Numbers 0 and 1 are never handed out.
        Ok(Ino(self.next_id(&mut batch, key::NEXT_INODE, INODE_BATCH, 2).await?))
    }

    /// A fresh slice id, for exactly one upload of data.
    pub async fn next_slice(&self) -> Result<SliceId, Errno> {
        let mut batch = self.slices.lock().await;
        self.next_id(&mut batch, key::NEXT_CHUNK, SLICE_BATCH, 1).await
    }

    async fn next_id(&self, batch: &mut std::ops::Range<u64>, counter: Key, count: u64, least: u64) -> Result<u64, Errno> {
        if batch.is_empty() {
            let commit = self.driver.store.commit(&[], &[Write::IncrBy(counter, count as i64)], &[]).await;
            let last = match commit.map_err(|e| errno_of("allocate ids", &e))? {
                Commit::Done { replies, .. } => match replies.first() {
                    Some(Value::Int(last)) if *last > 0 => *last as u64,
                    _ => return Err(Errno::IO),
                },
                Commit::Conflict(_) => return Err(Errno::IO),
            };
            // A counter below what was just added to it was negative: damage.
            let first = (last + 1).checked_sub(count).ok_or(Errno::IO)?;
            *batch = first.max(least)..last + 1;
        }
        let id = batch.start;
        batch.start += 1;
        Ok(id)
    }
}

impl FrameSource for Meta {
    fn frame(&self, id: SliceId) -> BoxFuture<'_, Result<Option<Bytes>, Errno>> {
        Box::pin(async move { self.driver.store.frame(id).await.map_err(|e| errno_of("read a frame", &e)) })
    }
}
