//! `Link`: the one connection everybody shares, made anew when it breaks. Requests wait while the server is away.

use super::connect::{Connector, Layout, ask, ask_together};
use super::error::Fault;
use super::tracking::{Interest, Tracking, ask_told};
use super::wire::{bytes, list};
use crate::env::{Clock, Random, SystemClock, SystemRandom};
use crate::meta::store::{StoreError, Watcher};
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, Value as Reply};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

/// A connection that worked when it was last used.
#[derive(Clone)]
pub(super) struct Live {
    pub conn: MultiplexedConnection,
    /// Counts connections: a later one has a higher number.
    pub generation: u64,
    /// Names one life of the server process; empty if it does not tell.
    pub run_id: String,
    /// The server tells this connection what others change.
    pub is_told: bool,
}

/// The link.
pub(super) struct Link {
    dialling: Arc<Dialling>,
    /// Before every key.
    pub prefix: Bytes,
    /// How long a request waits for the server; `None`: for ever.
    patience: Option<Duration>,
}

/// Making connections, and the one that is in use.
struct Dialling {
    connector: Connector,
    tracking: Arc<Tracking>,
    layout: Layout,
    prefix: Bytes,
    /// A volume is in use over it, which waits for the server whatever that says.
    waits: bool,
    retry: (Duration, Duration),
    live: Mutex<Option<Live>>,
    /// As measured when the connection was made.
    clock_ahead_us: AtomicI64,
    /// The number of the last connection.
    generation: AtomicU64,
    /// What is told to those who wait for a connection, while one is being made.
    under_way: Mutex<Option<Arc<watch::Sender<Dialled>>>>,
}

/// How far it has come.
#[derive(Clone, Default)]
struct Dialled {
    /// What went wrong last.
    why: String,
    /// With success there is a connection, or was a moment ago.
    outcome: Option<Result<(), StoreError>>,
}

/// The pauses of one request.
pub(super) struct Patience {
    deadline: Option<Instant>,
    pauses: u32,
    why: String,
}

impl Patience {
    /// The pause before the next attempt, longer each time, never in step with other clients. Fails when there was enough waiting.
    fn next(&mut self, fault: Fault, (least, most): (Duration, Duration)) -> Result<Duration, StoreError> {
        let why = match fault {
            Fault::Store(error) => return Err(error),
            // The first break is no reason to wait: whoever connects waits if the server is away.
            Fault::Lost(why) if self.pauses == 0 => {
                self.pauses = 1;
                self.why = why;
                return Ok(Duration::ZERO);
            }
            Fault::NoScript => return Ok(Duration::ZERO),
            Fault::Lost(why) | Fault::Later(why) | Fault::Elsewhere(why) => why,
        };
        let longest = least.saturating_mul(1 << self.pauses.min(20)).min(most);
        // Half of it at least, so that pauses do grow.
        let pause = longest / 2 + Duration::from_nanos(SystemRandom.u64() % u64::try_from(longest.as_nanos() / 2 + 1).unwrap_or(u64::MAX));
        self.pauses += 1;
        self.why = why;
        if self.deadline.is_some_and(|deadline| Instant::now() + pause > deadline) {
            return Err(self.gave_up());
        }
        Ok(pause)
    }

    fn gave_up(&self) -> StoreError {
        let why = if self.why.is_empty() { "no answer" } else { &self.why };
        StoreError::Failed(format!("the Redis server cannot be reached: {why}"))
    }
}

impl Link {
    /// Connects for the first time.
    pub async fn open(
        connector: Connector,
        db: u32,
        limit: Option<Duration>,
        opening: Duration,
        retry: (Duration, Duration),
    ) -> Result<Link, StoreError> {
        // Nobody is served yet: a wrong address must end in a message.
        let mut patience = Patience { deadline: Some(Instant::now() + opening), pauses: 0, why: String::new() };
        let mut is_told = false;
        let layout = loop {
            match connector.layout().await {
                Ok(layout) => break layout,
                Err(fault) => pause(&mut patience, fault, retry).await?,
            }
            if patience.pauses > 1 && !is_told {
                is_told = true;
                warn!("the Redis server does not answer yet ({}), trying for {} s: is it running there?", patience.why, opening.as_secs());
            }
        };
        let prefix = if layout == Layout::Cluster { format!("{{{db}}}").into() } else { Bytes::new() };
        let dialling = Dialling {
            connector,
            tracking: Arc::default(),
            layout,
            prefix: prefix.clone(),
            waits: limit.is_none(),
            retry,
            live: Mutex::new(None),
            clock_ahead_us: AtomicI64::new(0),
            generation: AtomicU64::new(0),
            under_way: Mutex::default(),
        };
        // Not cut off in the middle: it may ask several servers one after the other, the first of which are away.
        let live = loop {
            match dialling.connect(1).await {
                Ok((live, _)) => break live,
                Err(fault) => pause(&mut patience, fault, retry).await?,
            }
        };
        *dialling.current() = Some(live);
        dialling.generation.store(1, Ordering::Relaxed);
        Ok(Link { dialling: Arc::new(dialling), prefix, patience: limit })
    }

    /// Begins a request.
    pub fn patience(&self) -> Patience {
        Patience { deadline: self.patience.map(|patience| Instant::now() + patience), pauses: 0, why: String::new() }
    }

    fn current(&self) -> MutexGuard<'_, Option<Live>> {
        self.dialling.current()
    }

    fn tracking(&self) -> &Arc<Tracking> {
        &self.dialling.tracking
    }

    /// The connection; waits for one if there is none.
    pub async fn live(&self, patience: &mut Patience) -> Result<Live, StoreError> {
        loop {
            if let Some(live) = self.current().clone() {
                return Ok(live);
            }
            if let Some(mut dialled) = self.dialling.wait() {
                self.dialled(&mut dialled, patience).await?;
            }
        }
    }

    /// Waits until a connection was made. It is not told which: that one may be given up already, also by who waits.
    async fn dialled(&self, dialled: &mut watch::Receiver<Dialled>, patience: &mut Patience) -> Result<(), StoreError> {
        loop {
            {
                let now = dialled.borrow_and_update();
                if let Some(outcome) = &now.outcome {
                    return outcome.clone();
                }
                if !now.why.is_empty() {
                    patience.why.clone_from(&now.why);
                }
            }
            let changed = match patience.deadline {
                None => dialled.changed().await,
                Some(deadline) => timeout_at(deadline, dialled.changed()).await.map_err(|_| patience.gave_up())?,
            };
            changed.map_err(|_| StoreError::Failed("connecting to Redis broke off".into()))?;
        }
    }

    /// From now on a watcher is told what others change; false if the server does not tell. To be called before the connection is shared.
    pub async fn watch(&self, watcher: Arc<dyn Watcher>) -> bool {
        if self.dialling.layout != Layout::Database {
            return false;
        }
        self.tracking().set(watcher);
        let Some(mut live) = self.current().clone() else { return self.tracking().is_wanted() };
        // Should it break just now, the next connection begins by itself.
        live.is_told = self.tracking().begin(&mut live.conn).await.unwrap_or(false);
        let is_told = live.is_told;
        let mut current = self.current();
        if current.as_ref().is_some_and(|current| current.generation == live.generation) {
            *current = Some(live);
        }
        is_told
    }

    /// What was read so far may have changed without our being told.
    pub fn forget_told(&self) {
        self.tracking().lost();
    }

    /// What the server's clock shows when something sent now arrives, less what ours shows now.
    pub fn clock_ahead_us(&self) -> i64 {
        self.dialling.clock_ahead_us.load(Ordering::Relaxed)
    }

    /// Waits before the next attempt. Fails when the request has waited enough.
    pub async fn pause(&self, patience: &mut Patience, fault: Fault) -> Result<(), StoreError> {
        pause(patience, fault, self.dialling.retry).await
    }

    /// Stops using a connection, unless that has happened already.
    pub fn retire(&self, generation: u64, why: &str) {
        let mut current = self.current();
        if current.as_ref().is_some_and(|live| live.generation == generation) {
            *current = None;
            self.tracking().lost();
            warn!("the connection to Redis is lost, requests wait: {why}");
        }
    }

    /// One attempt. A connection that is of no use is given up.
    pub async fn attempt(&self, live: &Live, cmd: &Cmd) -> Result<Reply, Fault> {
        self.attempt_told(live, cmd, Interest::None).await
    }

    /// The same for a request that wants to be told of later changes.
    pub async fn attempt_told(&self, live: &Live, cmd: &Cmd, interest: Interest<'_>) -> Result<Reply, Fault> {
        let sent = Instant::now();
        let interest = if live.is_told { interest } else { Interest::None };
        let answer = ask_told(&mut live.conn.clone(), cmd, interest).await;
        if live.is_told && answer.is_ok() {
            self.tracking().answered(sent.elapsed());
        }
        if let Err(Fault::Lost(why) | Fault::Elsewhere(why)) = &answer {
            self.retire(live.generation, why);
        }
        answer
    }

    /// Reads that are answered together, nobody interested in later changes; `None` if the server does not let us ask so.
    pub async fn request_together(&self, transaction: &Pipeline) -> Result<Option<Vec<Reply>>, StoreError> {
        let mut patience = self.patience();
        loop {
            let live = self.live(&mut patience).await?;
            let sent = Instant::now();
            match ask_together(&mut live.conn.clone(), transaction).await {
                Ok(replies) => {
                    if live.is_told {
                        self.tracking().answered(sent.elapsed());
                    }
                    return Ok(replies);
                }
                Err(fault) => {
                    if let Fault::Lost(why) | Fault::Elsewhere(why) = &fault {
                        self.retire(live.generation, why);
                    }
                    self.pause(&mut patience, fault).await?;
                }
            }
        }
    }

    /// A request that may happen twice.
    pub async fn request(&self, cmd: &Cmd) -> Result<Reply, StoreError> {
        self.request_told(cmd, Interest::None).await
    }

    /// The same for one that wants to be told of later changes.
    pub async fn request_told(&self, cmd: &Cmd, interest: Interest<'_>) -> Result<Reply, StoreError> {
        let mut patience = self.patience();
        loop {
            let live = self.live(&mut patience).await?;
            match self.attempt_told(&live, cmd, interest).await {
                Ok(reply) => return Ok(reply),
                Err(fault) => self.pause(&mut patience, fault).await?,
            }
        }
    }

    /// A connection beside the shared one, for a command that keeps it busy.
    pub async fn beside(&self) -> Result<MultiplexedConnection, Fault> {
        Ok(self.dialling.connector.connect(self.dialling.layout, &self.prefix, None).await?.0)
    }

    /// The life of the server that is connected now; scans of one life mean nothing in another.
    pub async fn run_id(&self) -> Result<String, StoreError> {
        Ok(self.live(&mut self.patience()).await?.run_id)
    }
}

impl Dialling {
    fn current(&self) -> MutexGuard<'_, Option<Live>> {
        // Only plain assignments happen under it.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn under_way(&self) -> MutexGuard<'_, Option<Arc<watch::Sender<Dialled>>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to make a connection, unless somebody has; the result is how it goes on, `None` if there is one. A task of its own makes it: a
    /// request that was begun, and that nobody drives just then, must not keep the others from it.
    fn wait(self: &Arc<Dialling>) -> Option<watch::Receiver<Dialled>> {
        let mut under_way = self.under_way();
        if let Some(sender) = &*under_way {
            return Some(sender.subscribe());
        }
        // One that was made since the caller looked is there before it is no longer under way.
        if self.current().is_some() {
            return None;
        }
        let (sender, receiver) = watch::channel(Dialled::default());
        let task = Task { dialling: self.clone(), told: Arc::new(sender) };
        *under_way = Some(task.told.clone());
        drop(under_way);
        tokio::spawn(async move { task.dialling.dial(&task.told).await });
        Some(receiver)
    }

    /// Makes a connection, as long as somebody waits for it.
    async fn dial(&self, told: &watch::Sender<Dialled>) {
        let begin = Instant::now();
        let mut patience = Patience { deadline: None, pauses: 0, why: String::new() };
        while !self.ends_unwanted(told) {
            let last = self.generation.load(Ordering::Relaxed);
            let fault = match self.connect(last + 1).await {
                Ok((live, place)) => {
                    self.generation.store(live.generation, Ordering::Relaxed);
                    self.end(told, Ok(live));
                    info!("connected to Redis at {place} again after {:.1} s", begin.elapsed().as_secs_f64());
                    return;
                }
                // A volume in use waits even for what looks like a wrong password: an operator may be at work.
                Err(Fault::Store(error)) if self.waits => Fault::Elsewhere(error.to_string()),
                Err(fault) => fault,
            };
            match patience.next(fault, self.retry) {
                Ok(pause) => {
                    told.send_modify(|dialled| dialled.why.clone_from(&patience.why));
                    sleep(pause).await;
                }
                Err(error) => return self.end(told, Err(error)),
            }
        }
    }

    /// Ends it if nobody waits any more.
    fn ends_unwanted(&self, told: &watch::Sender<Dialled>) -> bool {
        // Who comes to wait does so under this lock.
        let mut under_way = self.under_way();
        let unwanted = told.receiver_count() == 0;
        if unwanted {
            *under_way = None;
        }
        unwanted
    }

    /// Ends it. The connection is there before it is no longer under way, and both in one moment: who has just given up a connection must not be
    /// told of that one, nor another be made beside it.
    fn end(&self, told: &watch::Sender<Dialled>, outcome: Result<Live, StoreError>) {
        let outcome = {
            let mut under_way = self.under_way();
            let outcome = outcome.map(|live| *self.current() = Some(live));
            *under_way = None;
            outcome
        };
        told.send_modify(|dialled| dialled.outcome = Some(outcome));
    }

    async fn connect(&self, generation: u64) -> Result<(Live, String), Fault> {
        let tracking = (self.layout == Layout::Database).then_some(&self.tracking);
        let (mut conn, place) = self.connector.connect(self.layout, &self.prefix, tracking).await?;
        let run_id = match ask(&mut conn, redis::cmd("INFO").arg("server")).await {
            Ok(reply) => info_field(&reply, "run_id").unwrap_or_default(),
            // Not everybody may ask.
            Err(Fault::Store(_)) => String::new(),
            Err(fault) => return Err(fault),
        };
        let sent = SystemClock::new().now();
        match ask(&mut conn, &redis::cmd("TIME")).await.map(list) {
            Ok(Ok(parts)) => {
                let mut parts = parts.iter().filter_map(|part| std::str::from_utf8(part).ok()?.parse::<i64>().ok());
                if let (Some(sec), Some(us)) = (parts.next(), parts.next()) {
                    let ahead = (sec - sent.sec).saturating_mul(1_000_000) + us - i64::from(sent.nsec / 1000);
                    self.clock_ahead_us.store(ahead, Ordering::Relaxed);
                }
            }
            Ok(Err(_)) | Err(Fault::Store(_)) => {}
            Err(fault) => return Err(fault),
        }
        let is_told = match tracking {
            Some(tracking) => tracking.begin(&mut conn).await?,
            None => false,
        };
        Ok((Live { conn, generation, run_id, is_told }, place))
    }
}

/// What makes a connection. When it is dropped, whenever that is, nothing is under way any more, and who waits is told.
struct Task {
    dialling: Arc<Dialling>,
    told: Arc<watch::Sender<Dialled>>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.dialling.under_way().take_if(|sender| Arc::ptr_eq(sender, &self.told));
    }
}

/// Waits before the next attempt. Fails when there was enough waiting.
async fn pause(patience: &mut Patience, fault: Fault, retry: (Duration, Duration)) -> Result<(), StoreError> {
    let pause = patience.next(fault, retry)?;
    if !pause.is_zero() {
        sleep(pause).await;
    }
    Ok(())
}

/// A field of what INFO answers.
pub(super) fn info_field(reply: &Reply, field: &str) -> Option<String> {
    let text = bytes(reply.clone()).ok().flatten()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).map(|value| value.trim().to_owned())
}
