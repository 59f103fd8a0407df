//! `Meta`: one volume's metadata as the rest of the program uses it. Each operation adds its method in `meta/ops/`.

use crate::env::Clock;
use crate::meta::driver::{Basis, Driver, OpenFiles, errno_of};
use crate::meta::facts::{Facts, RecordListener, Told};
use crate::meta::fence::Fence;
use crate::meta::ids::Ids;
use crate::meta::journal::Journal;
use crate::meta::key;
use crate::meta::known::Known;
use crate::meta::lines::Lines;
use crate::meta::lists::Lists;
use crate::meta::ops::append::Appenders;
use crate::meta::ops::quota;
use crate::meta::ops::session::Beat;
use crate::meta::pacing::Pacing;
use crate::meta::setting::Setting;
use crate::meta::store::{Query, Sharing, Store, Value};
use crate::meta::view::{Plan, Stop, View};
use crate::types::{BoxFuture, Caller, Duty, Errno, FrameSource, Ino, SliceId, Time};
use bytes::Bytes;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

/// Inode numbers taken from the counter at once (metadata §3). Numbers 0 and 1 are never handed out.
const INODES: (u64, u64) = (1024, 2);
/// Slice ids taken from the counter at once, and the least one.
const SLICES: (u64, u64) = (4096, 1);

/// Directories of the trash tried for one deletion. One can be emptied away just when it is to be used; twice in a row means a fault.
const TRASH_DIRS_MAX: u32 = 4;

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
    /// The store holds another volume by now: nothing of ours belongs there.
    pub(crate) disowned: std::sync::atomic::AtomicBool,
    /// Replaced as a whole when another client has changed it.
    setting: std::sync::RwLock<Arc<Setting>>,
    pub(crate) atime: AtimeMode,
    duties: mpsc::Sender<Duty>,
    /// 0 until `new_session`.
    pub(crate) sid: std::sync::atomic::AtomicU64,
    inodes: Arc<Ids>,
    slices: Arc<Ids>,
    /// Owners of POSIX and BSD locks held through this process, so that closing can skip what was never locked.
    pub(crate) locked: Mutex<std::collections::HashSet<Ino>>,
    /// Write locks held through this process.
    pub(crate) fence: Fence,
    /// Changes of locks, one at a time for each inode.
    pub(crate) lock_changes: Lines,
    /// Who appends next.
    pub(crate) appenders: Appenders,
    /// When this session was last prolonged.
    pub(crate) beat: Mutex<Beat>,
    /// Held by the one who prolongs a session that is overdue.
    pub(crate) reviving: tokio::sync::Mutex<()>,
    /// What `new_session` has registered; a heartbeat that finds it gone puts it back.
    pub(crate) session_document: Mutex<Bytes>,
    /// What of the volume is remembered from one operation to the next.
    pub(crate) known: Arc<Known>,
    /// Lists of chunks that are read.
    pub(crate) lists: Lists,
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
    /// Write locks of this process.
    pub(crate) fence: &'a Fence,
    /// The directory of the trash that takes what is deleted, for operations that delete; `None` = nothing does.
    pub trash: Option<Ino>,
    /// What is remembered of the volume.
    pub(crate) known: &'a Known,
    /// Small blocks in the store.
    pub(crate) journal: &'a Journal,
}

impl Meta {
    /// Metadata over a store that holds `config.setting`.
    pub fn new(config: MetaConfig) -> Meta {
        let is_far = config.store.sharing() == Sharing::Server;
        let facts = is_far.then(|| Arc::new(Facts::new(config.clock.clone())));
        let ids = |counter, (batch, least)| Arc::new(Ids::new(config.store.clone(), counter, batch, least, is_far));
        Meta {
            inodes: ids(key::NEXT_INODE, INODES),
            slices: ids(key::NEXT_CHUNK, SLICES),
            driver: Driver {
                pacing: Pacing::new(config.clock.clone()),
                journal: Journal::new(config.clock.clone(), is_far),
                store: config.store,
                clock: config.clock,
                open_files: OpenFiles::new(),
                facts,
            },
            fence: Fence::default(),
            lock_changes: Lines::default(),
            appenders: Appenders::default(),
            lists: Lists::new(),
            beat: Mutex::default(),
            reviving: Default::default(),
            disowned: Default::default(),
            setting: std::sync::RwLock::new(Arc::new(config.setting)),
            atime: config.atime,
            duties: config.duties,
            sid: Default::default(),
            locked: Default::default(),
            session_document: Default::default(),
            known: Default::default(),
        }
    }

    /// The volume's format, as it was last seen.
    pub fn setting(&self) -> Arc<Setting> {
        self.setting.read().expect("never poisoned: no code under it panics").clone()
    }

    /// From now on this is the volume's format.
    pub(crate) fn replace_setting(&self, setting: Setting) {
        *self.setting.write().expect("never poisoned: no code under it panics") = Arc::new(setting);
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

    /// Whether asking the store costs a round trip.
    pub fn is_far(&self) -> bool {
        self.driver.facts.is_some()
    }

    /// Whether the store holds another volume by now, or none: nothing of this process may be written any more, neither there nor into the
    /// bucket.
    pub fn is_disowned(&self) -> bool {
        self.disowned.load(std::sync::atomic::Ordering::Relaxed) || self.driver.store.replaced()
    }

    /// Asks for background work.
    pub fn ask(&self, duty: Duty) {
        // Full or closed: the periodic scan finds it again.
        let _ = self.duties.try_send(duty);
    }

    /// Lets the store tell what others change, where it can: from then on answers are remembered until they are changed.
    pub async fn watch(&self) {
        if let Some(facts) = &self.driver.facts {
            self.driver.store.watch(facts.clone()).await;
        }
    }

    /// Everything others change from now on, as far as the store tells.
    pub fn listen(&self, listener: std::sync::Weak<dyn RecordListener>) -> Option<tokio::sync::broadcast::Receiver<Told>> {
        self.driver.facts.as_ref().map(|facts| facts.listen(listener))
    }

    /// Makes everything committed so far as durable as the store makes it.
    pub async fn sync(&self) -> Result<(), Errno> {
        self.driver.store.sync().await.map_err(|e| errno_of("sync", &e))
    }

    /// Runs a mutation; see `Driver::run`. `step` gets the same `now` in every round.
    pub(crate) async fn run<T, F>(&self, what: &'static str, caller: &Caller, step: F) -> Result<T, Errno>
    where
        T: Send + 'static,
        F: Fn(&View, &Cx) -> Result<Plan<T>, Stop> + Send + Sync,
    {
        self.run_presuming(what, caller, Vec::new(), step).await
    }

    /// The same for an operation that deletes.
    pub(crate) async fn run_trashing<T, F>(&self, what: &'static str, caller: &Caller, step: F) -> Result<T, Errno>
    where
        T: Send + 'static,
        F: Fn(&View, &Cx) -> Result<Plan<T>, Stop> + Send + Sync,
    {
        self.run_removing(what, caller, false, step).await
    }

    /// The same, past the trash if it is to.
    pub(crate) async fn run_removing<T, F>(&self, what: &'static str, caller: &Caller, skip_trash: bool, step: F) -> Result<T, Errno>
    where
        T: Send + 'static,
        F: Fn(&View, &Cx) -> Result<Plan<T>, Stop> + Send + Sync,
    {
        self.run_removing_from(what, caller, skip_trash, View::default, step).await
    }

    /// The same with what is known already: what was true once, or is likely.
    pub(crate) async fn run_removing_from<T, F>(
        &self,
        what: &'static str,
        caller: &Caller,
        skip_trash: bool,
        known: impl Fn() -> View + Send + Sync,
        step: F,
    ) -> Result<T, Errno>
    where
        T: Send + 'static,
        F: Fn(&View, &Cx) -> Result<Plan<T>, Stop> + Send + Sync,
    {
        self.begin_mutation().await?;
        for _ in 0..TRASH_DIRS_MAX {
            let trash = if skip_trash { None } else { self.trash_dir().await? };
            match (self.run_with(what, caller, Basis::Memory, known(), trash, &step).await, trash) {
                (Err(Errno::STALE), Some(dir)) => self.forget_trash_dir(dir).await,
                (outcome, _) => return outcome,
            }
        }
        Err(Errno::IO)
    }

    /// Runs an operation that answers what the store says now.
    pub(crate) async fn answer<T, F>(&self, what: &'static str, caller: &Caller, step: F) -> Result<T, Errno>
    where
        T: Send + 'static,
        F: Fn(&View, &Cx) -> Result<Plan<T>, Stop> + Send + Sync,
    {
        self.run_on(what, caller, Basis::Store, View::default(), step).await
    }

    /// Runs an operation that answers what the store says now, as far as it has told us: for those who may be told of a change a moment late.
    pub(crate) async fn answer_standing<T, F>(&self, what: &'static str, caller: &Caller, step: F) -> Result<T, Errno>
    where
        T: Send + 'static,
        F: Fn(&View, &Cx) -> Result<Plan<T>, Stop> + Send + Sync,
    {
        self.run_on(what, caller, Basis::Standing, View::default(), step).await
    }

    /// Runs an operation on whatever is known, whose answer is no promise.
    pub(crate) async fn estimate<T, F>(&self, what: &'static str, caller: &Caller, step: F) -> Result<T, Errno>
    where
        T: Send + 'static,
        F: Fn(&View, &Cx) -> Result<Plan<T>, Stop> + Send + Sync,
    {
        self.run_on(what, caller, Basis::Estimate, View::default(), step).await
    }

    /// Runs a mutation that most often finds these values: where nothing better is known they are presumed, and the commit tells whether that
    /// was right.
    pub(crate) async fn run_presuming<T, F>(
        &self,
        what: &'static str,
        caller: &Caller,
        presumed: Vec<(Query, Value)>,
        step: F,
    ) -> Result<T, Errno>
    where
        T: Send + 'static,
        F: Fn(&View, &Cx) -> Result<Plan<T>, Stop> + Send + Sync,
    {
        self.begin_mutation().await?;
        self.run_on(what, caller, Basis::Memory, self.presume(presumed), step).await
    }

    fn presume(&self, presumed: Vec<(Query, Value)>) -> View {
        let mut view = View::default();
        for (query, value) in presumed {
            let known = self.driver.facts.as_ref().and_then(|facts| facts.recall(std::slice::from_ref(&query))?.pop());
            view.remember([(query, known.unwrap_or(value))]);
        }
        view
    }

    pub(crate) async fn run_on<T, F>(&self, what: &'static str, caller: &Caller, basis: Basis, view: View, step: F) -> Result<T, Errno>
    where
        T: Send + 'static,
        F: Fn(&View, &Cx) -> Result<Plan<T>, Stop> + Send + Sync,
    {
        self.run_with(what, caller, basis, view, None, step).await
    }

    async fn run_with<T, F>(
        &self,
        what: &'static str,
        caller: &Caller,
        basis: Basis,
        view: View,
        trash: Option<Ino>,
        step: F,
    ) -> Result<T, Errno>
    where
        T: Send + 'static,
        F: Fn(&View, &Cx) -> Result<Plan<T>, Stop> + Send + Sync,
    {
        if basis == Basis::Memory && self.is_disowned() {
            return Err(Errno::IO);
        }
        let losses = self.driver.store.losses();
        self.known.outlive(losses);
        self.journal().outlive(losses);
        let now = self.driver.clock.now();
        let sid = self.sid.load(std::sync::atomic::Ordering::Relaxed);
        let setting = self.setting();
        let Driver { open_files, journal, .. } = &self.driver;
        let cx = Cx { caller, now, sid, setting: &setting, open_files, fence: &self.fence, trash, known: &self.known, journal };
        let step = |view: &View| step(view, &cx).map(|plan| self.noted(plan));
        match self.driver.run(what, basis, view, &step).await {
            Err(Errno::DQUOT) if self.reload_before_refusing().await? => self.driver.run(what, basis, View::default(), &step).await,
            outcome => outcome,
        }
    }

    /// The plan, which when it is committed also tells the quotas we remember what it has changed.
    fn noted<T: Send + 'static>(&self, plan: Plan<T>) -> Plan<T> {
        let changes = quota::changes(&plan.writes);
        if changes.is_empty() {
            return plan;
        }
        let (known, finish) = (self.known.clone(), plan.finish);
        let finish = Box::new(move |replies: &[Value], values: &[Value]| {
            known.quotas.note(&changes);
            finish(replies, values)
        });
        Plan { finish, ..plan }
    }

    /// A fresh inode number.
    pub(crate) async fn next_inode(&self) -> Result<Ino, Errno> {
        self.inodes.next().await.map(Ino)
    }

    /// A fresh slice id, for exactly one upload of data.
    pub async fn next_slice(&self) -> Result<SliceId, Errno> {
        if self.is_disowned() {
            return Err(Errno::IO);
        }
        self.slices.next().await
    }

    /// Fetches ids before the first is needed, where that would be waited for.
    pub(crate) fn fetch_ids_ahead(&self) {
        self.inodes.refill();
        self.slices.refill();
    }
}

impl FrameSource for Meta {
    fn frame(&self, id: SliceId) -> BoxFuture<'_, Result<Option<Bytes>, Errno>> {
        if let Some(known) = self.journal().recall(id) {
            return Box::pin(std::future::ready(Ok(known)));
        }
        Box::pin(async move { self.driver.store.frame(id).await.map_err(|e| errno_of("read a frame", &e)) })
    }
}
