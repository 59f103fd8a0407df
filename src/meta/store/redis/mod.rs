//! The Redis store: a server, a master behind sentinels, or the node of a cluster that holds the volume's slot.
//!
//! Reads of one simple value are plain commands; everything else is one run of the generic script (`commit.lua`). All requests of the
//! process share one connection (`link.rs`). While the server is away they wait; what became of a commit whose answer was lost is found
//! out before it is tried again (`lane.rs`).

mod connect;
mod error;
mod lane;
mod link;
mod probe;
mod rollback;
mod scan;
mod script;
#[cfg(test)]
mod tests;
mod tracking;
pub mod url;
mod wire;

use super::{Commit, Cursor, Guard, Query, ScanPage, ScanRange, Sharing, Store, StoreError, Value, Watcher, Write, is_watched};
use crate::env::{Clock, Random, SystemClock, SystemRandom};
use crate::meta::key;
use crate::types::BoxFuture;
use connect::{Connector, ask};
use error::Fault;
use lane::{Lane, Owner, Pass};
use link::{Link, info_field};
use redis::Value as Reply;
use redis::aio::MultiplexedConnection;
use rollback::Counters;
use script::{Answer, Fence, Program};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;
use tracking::Interest;
use url::RedisUrl;

/// How long opening waits for the server: a person, or a service that starts with the machine, is waiting for an answer.
const OPENING_TIME: Duration = Duration::from_secs(10);
/// How long `sync` waits for the replicas before it fails.
const REPLICAS_TIME: Duration = Duration::from_secs(30);
/// One wait for replicas, in milliseconds.
const REPLICAS_WAIT_MS: u64 = 1000;
/// How long the outcomes of a session that was taken for dead are kept: its process may come back and ask.
const LAPSED_TTL_S: u64 = 86_400;
/// How long those of a session that has ended are kept: whoever sees only now that its number was given out learns from them that it was one of
/// ours. Longer than the others wait for it to show up.
const ENDED_TTL_S: u64 = 90;

/// How long what a commit that happened was to read is asked for, where a command would give up earlier.
const LATE_READS_TIME: Duration = Duration::from_secs(60);

/// How a store is used.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long a request waits while the server is away; `None`: for ever, a pause for applications.
    pub patience: Option<Duration>,
    /// Whether anything will be written: then the rights to do so are checked at once.
    pub writes: bool,
}

/// The store.
pub struct RedisStore {
    link: Link,
    digest: String,
    lane: Mutex<Arc<Lane>>,
    /// 0: no session.
    session: AtomicU64,
    counters: Counters,
    fsync_replicas: u32,
    /// For waiting for replicas.
    syncing: tokio::sync::Mutex<Option<MultiplexedConnection>>,
}

impl RedisStore {
    /// Connects, and checks what the server is and allows.
    pub async fn open(url: &RedisUrl, options: Options) -> Result<RedisStore, StoreError> {
        let connector = Connector::new(url.clone())?;
        let opening = options.patience.unwrap_or(OPENING_TIME);
        let link = Link::open(connector, url.db, options.patience, opening, (url.retry_min, url.retry_max)).await?;
        let store = RedisStore {
            link,
            digest: redis::Script::new(script::TEXT).get_hash().to_owned(),
            lane: Mutex::new(Arc::new(Lane::new(Owner::Nobody(SystemRandom.u64())))),
            session: AtomicU64::new(0),
            counters: Counters::default(),
            fsync_replicas: url.fsync_replicas,
            syncing: tokio::sync::Mutex::new(None),
        };
        probe::run(&store.link, &store.digest, options.writes).await?;
        Ok(store)
    }

    fn lane(&self) -> Arc<Lane> {
        // Only plain assignments happen under it.
        self.lane.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_lane(&self, owner: Owner) {
        *self.lane.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(Lane::new(owner));
    }

    /// Runs a program without writes; it may happen twice.
    async fn look(&self, program: &Program<'_>) -> Result<Commit, StoreError> {
        let mut patience = self.link.patience();
        let mut digest = Some(self.digest.as_str());
        let watched = program.watched();
        loop {
            let live = self.link.live(&mut patience).await?;
            match self.link.attempt_told(&live, &program.command(digest, None), Interest::Before(&watched)).await {
                Ok(reply) => {
                    return match program.decode(reply)? {
                        Answer::Commit(commit) => Ok(commit),
                        Answer::Fenced => Err(StoreError::Failed("the server fenced a request without a fence".into())),
                    };
                }
                Err(Fault::NoScript) => digest = None,
                Err(fault) => self.link.pause(&mut patience, fault).await?,
            }
        }
    }

    /// Many plain reads, which cost the server a fraction of what they do inside a script; `None` if they are not, or the server does not let us. A
    /// key of another type is a missing string to it.
    async fn read_together(&self, queries: &[Query]) -> Result<Option<Vec<Value>>, StoreError> {
        let prefix = &self.link.prefix;
        let (mut strings, mut is_any) = (redis::cmd("MGET"), false);
        let mut others = Vec::new();
        for query in queries {
            match query {
                Query::Get(key) => {
                    strings.arg(&wire::prefixed(prefix, key)[..]);
                    is_any = true;
                }
                query => match script::plain(prefix, query) {
                    Some(cmd) => others.push(cmd),
                    None => return Ok(None),
                },
            }
        }
        let mut transaction = redis::Pipeline::with_capacity(others.len() + 3);
        transaction.add_command(redis::cmd("MULTI"));
        if is_any {
            transaction.add_command(strings);
        }
        others.into_iter().for_each(|cmd| {
            transaction.add_command(cmd);
        });
        transaction.add_command(redis::cmd("EXEC"));
        let Some(replies) = self.link.request_together(&transaction).await? else { return Ok(None) };
        let mut replies = replies.into_iter();
        let mut strings = if is_any { wire::sequence(replies.next().unwrap_or(Reply::Nil))?.into_iter() } else { Vec::new().into_iter() };
        let mut values = Vec::with_capacity(queries.len());
        for query in queries {
            let reply = if matches!(query, Query::Get(_)) { strings.next() } else { replies.next() };
            let reply = reply.ok_or_else(|| StoreError::Failed("the server gave fewer answers than it was asked for".into()))?;
            values.push(wire::value(prefix, query, reply)?);
        }
        Ok(Some(values))
    }

    /// Runs a program with writes: it happens once, whatever becomes of the connection.
    async fn change(&self, program: &Program<'_>, writes: &[Write], reads: &[Query]) -> Result<Commit, StoreError> {
        let lane = self.lane();
        let slot = lane.slot().await;
        let number = lane.number();
        let mut patience = self.link.patience();
        let mut digest = Some(self.digest.as_str());
        let mut unknown = false;
        let watched = program.watched();
        loop {
            let live = self.link.live(&mut patience).await.map_err(|error| after(unknown, error))?;
            let pass = match lane.pass(&self.link, &live, &self.counters).await {
                Ok(pass) => pass,
                Err(fault) => {
                    self.link.pause(&mut patience, fault).await.map_err(|error| after(unknown, error))?;
                    continue;
                }
            };
            if unknown {
                // This pass was made after the connection that got no answer was given up.
                if let Some(told) = pass.outcomes.get(&number) {
                    let replies = program.replies(told).map_err(|error| after(true, error))?;
                    self.counters.note(writes, &replies);
                    lane.acknowledged.note(slot.index, number);
                    let values = self.read_late(reads).await?;
                    return Ok(Commit::Done { replies, values });
                }
                unknown = false;
            }
            let fence = Fence { hash: &pass.hash, token: &pass.token, slot: slot.index, number };
            match self.link.attempt_told(&live, &program.command(digest, Some(&fence)), Interest::After(&watched)).await {
                Ok(reply) => match program.decode(reply)? {
                    Answer::Commit(commit) => {
                        if let Commit::Done { replies, .. } = &commit {
                            self.counters.note(writes, replies);
                            lane.acknowledged.note(slot.index, number);
                        }
                        return Ok(commit);
                    }
                    // Somebody removed our hash, or a newer connection has replaced the token. Nothing was done.
                    Answer::Fenced => {
                        self.void(&lane, &pass);
                        self.link.pause(&mut patience, Fault::Later("the token of this process was removed".into())).await?;
                    }
                },
                Err(Fault::NoScript) => digest = None,
                Err(fault) => {
                    if let Fault::Lost(_) = fault {
                        unknown = true;
                        self.link.retire(live.generation, "a commit was not answered");
                    }
                    self.link.pause(&mut patience, fault).await.map_err(|error| after(unknown, error))?;
                }
            }
        }
    }

    /// The token of a pass is gone. The database may be another one by now, of whose changes nothing was told.
    fn void(&self, lane: &Lane, pass: &Arc<Pass>) {
        lane.void(pass);
        self.link.forget_told();
    }

    /// About what the server's clock shows, in milliseconds.
    fn now_ms(&self) -> i64 {
        let now = SystemClock::new().now();
        now.sec.saturating_mul(1000) + i64::from(now.nsec / 1_000_000) + self.link.clock_ahead_us() / 1000
    }

    /// What was to be read after the writes of a commit that was found to have happened: no older than it would have been. As it has
    /// happened, the caller must not be told otherwise for as long as there is hope for an answer.
    async fn read_late(&self, reads: &[Query]) -> Result<Vec<Value>, StoreError> {
        let begin = Instant::now();
        loop {
            match self.read(reads).await {
                Err(StoreError::Failed(why)) if begin.elapsed() < LATE_READS_TIME => warn!("{why}; asking again"),
                Err(StoreError::Failed(why)) => {
                    return Err(StoreError::Failed(format!("the change was made, and what it led to cannot be read: {why}")));
                }
                answer => return answer,
            }
        }
    }

    /// Every answer tells numbers that are in use.
    fn seen<'a>(&self, answers: impl Iterator<Item = (&'a Query, &'a Value)>) {
        answers.for_each(|(query, value)| self.counters.see(query, value));
    }

    async fn wait_for_replicas(&self) -> Result<(), StoreError> {
        let (begin, losses) = (Instant::now(), self.counters.losses());
        let mut patience = self.link.patience();
        let mut conn = self.syncing.lock().await;
        let lane = self.lane();
        loop {
            let live = self.link.live(&mut patience).await?;
            let asked = async {
                let pass = lane.pass(&self.link, &live, &self.counters).await?;
                let conn = match &mut *conn {
                    Some(conn) => conn,
                    none => none.insert(self.link.beside().await?),
                };
                // Nothing may have been asked since the server started anew, or another took its place.
                let token = wire::bytes(ask(conn, redis::cmd("HGET").arg(&pass.hash[..]).arg("token")).await?).map_err(Fault::Store)?;
                if token.as_ref() != Some(&pass.token) {
                    self.void(&lane, &pass);
                    return Err(Fault::Later("the token of this process was removed".into()));
                }
                // WAIT counts from the last write of its own connection, and this one comes after everything committed before.
                ask(conn, &lane::set_field(&pass.hash, "sync", live.generation.to_string().as_bytes())).await?;
                ask(conn, redis::cmd("WAIT").arg(self.fsync_replicas).arg(REPLICAS_WAIT_MS)).await
            };
            match asked.await {
                // They have what the server has, which is not what it had.
                Ok(Reply::Int(_)) if self.counters.losses() != losses => {
                    return Err(StoreError::Failed("the server has lost changes that were to be synced".into()));
                }
                Ok(Reply::Int(count)) if count >= i64::from(self.fsync_replicas) => return Ok(()),
                Ok(reply) if begin.elapsed() > REPLICAS_TIME => {
                    return Err(StoreError::Failed(format!(
                        "{} replicas are wanted and {reply:?} have the changes after {} s",
                        self.fsync_replicas,
                        REPLICAS_TIME.as_secs()
                    )));
                }
                Ok(_) => {}
                Err(fault) => {
                    *conn = None;
                    self.link.pause(&mut patience, fault).await?;
                }
            }
        }
    }

    async fn forget(&self, sid: u64) -> Result<(), StoreError> {
        let own = self.session.load(Ordering::Relaxed) == sid;
        if own {
            // What is still committed gets a hash that goes by itself.
            self.session.store(0, Ordering::Relaxed);
            self.set_lane(Owner::Nobody(SystemRandom.u64()));
        }
        for conn in 0..key::OP_CONNECTIONS_MAX {
            let hash = wire::prefixed(&self.link.prefix, &key::op(&sid.to_string(), conn));
            self.link.request(redis::cmd("EXPIRE").arg(&hash[..]).arg(if own { ENDED_TTL_S } else { LAPSED_TTL_S })).await?;
        }
        Ok(())
    }
}

/// Says so if a request that is given up may have happened. Every other kind of failure promises that nothing did.
fn after(unknown: bool, error: StoreError) -> StoreError {
    if unknown { StoreError::Failed(format!("{error}; whether the last change happened is not known")) } else { error }
}

impl Store for RedisStore {
    fn read<'a>(&'a self, queries: &'a [Query]) -> BoxFuture<'a, Result<Vec<Value>, StoreError>> {
        Box::pin(async move {
            match queries {
                [] => return Ok(Vec::new()),
                [query] => {
                    if let Some(cmd) = script::plain(&self.link.prefix, query) {
                        let interest = if key::is_of_inode(query.key()) { Interest::InAll } else { Interest::None };
                        let reply = self.link.request_told(&cmd, interest).await?;
                        let value = wire::value(&self.link.prefix, query, reply)?;
                        self.counters.see(query, &value);
                        return Ok(vec![value]);
                    }
                }
                _ => {}
            }
            if !is_watched(queries.len())
                && let Some(values) = self.read_together(queries).await?
            {
                self.seen(queries.iter().zip(&values));
                return Ok(values);
            }
            let program = Program::new(&self.link.prefix, &[], &[], queries, 0)?;
            match self.look(&program).await? {
                Commit::Done { values, .. } => {
                    self.seen(queries.iter().zip(&values));
                    Ok(values)
                }
                Commit::Conflict(_) => Err(StoreError::Failed("the server saw a conflict in a read".into())),
            }
        })
    }

    fn commit<'a>(&'a self, guards: &'a [Guard], writes: &'a [Write], reads: &'a [Query]) -> BoxFuture<'a, Result<Commit, StoreError>> {
        Box::pin(async move {
            let program = Program::new(&self.link.prefix, guards, writes, reads, self.now_ms())?;
            let commit = if writes.is_empty() { self.look(&program).await } else { self.change(&program, writes, reads).await }?;
            match &commit {
                Commit::Done { values, .. } => self.seen(reads.iter().zip(values)),
                Commit::Conflict(values) => self.seen(values.iter().map(|(query, value)| (query, value))),
            }
            Ok(commit)
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        if self.fsync_replicas == 0 {
            return Box::pin(std::future::ready(Ok(())));
        }
        Box::pin(self.wait_for_replicas())
    }

    fn scan<'a>(&'a self, range: &'a ScanRange, cursor: Cursor, limit: u32) -> BoxFuture<'a, Result<ScanPage, StoreError>> {
        Box::pin(async move {
            let page = scan::page(&self.link, range, cursor, limit).await?;
            if let ScanRange::Dir(_) = range {
                page.items.iter().for_each(|item| self.counters.see_entry(&item.value));
            }
            Ok(page)
        })
    }

    fn free_bytes(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move {
            let info = self.link.request(redis::cmd("INFO").arg("memory")).await?;
            let number = |field: &str| info_field(&info, field)?.parse::<u64>().ok();
            let limit = number("maxmemory").filter(|limit| *limit > 0).or_else(|| number("total_system_memory"));
            match (limit, number("used_memory")) {
                (Some(limit), Some(used)) => Ok(limit.saturating_sub(used)),
                _ => Err(StoreError::Failed("the server does not tell how much memory it has".into())),
            }
        })
    }

    fn shared(&self) -> bool {
        true
    }

    fn sharing(&self) -> Sharing {
        Sharing::Server
    }

    fn clock_ahead_us(&self) -> i64 {
        self.link.clock_ahead_us()
    }

    fn watch(&self, watcher: Arc<dyn Watcher>) -> BoxFuture<'_, bool> {
        Box::pin(self.link.watch(watcher))
    }

    fn losses(&self) -> u64 {
        self.counters.losses()
    }

    fn replaced(&self) -> bool {
        self.counters.replaced().is_some()
    }

    fn claim_session(&self, sid: u64) -> Result<bool, StoreError> {
        self.session.store(sid, Ordering::Relaxed);
        self.set_lane(Owner::Session(sid));
        Ok(true)
    }

    fn session_alive(&self, _sid: u64) -> Option<bool> {
        None
    }

    fn forget_session(&self, sid: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.forget(sid))
    }
}
