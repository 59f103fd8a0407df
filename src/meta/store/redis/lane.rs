//! `Lane`: how a commit whose answer was lost is found out about.
//!
//! Every commit guards the `token` of a hash of ours and leaves its number and its replies in one of the hash's slots. When a connection
//! breaks, the next one first replaces the token: what is still on its way from the old one fails its guard from then on. Then it reads
//! the slots: a number that is there was committed, one that is not never will be.

use super::error::Fault;
use super::link::{Link, Live};
use super::rollback::{Acknowledged, Counters};
use super::script::record;
use super::wire::{bytes, pairs, prefixed};
use crate::env::{Clock, Random, SystemClock, SystemRandom};
use crate::meta::key;
use crate::meta::ops::session::SESSION_TTL;
use crate::meta::store::StoreError;
use bytes::Bytes;
use redis::Cmd;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::warn;

/// Commits under way at once. They share one connection: at a millisecond per trip this is 64,000 commits a second.
const SLOTS: usize = 64;
/// Seconds for which the hash of a process without a session is kept; a command does not wait longer for an answer.
const SESSIONLESS_TTL_S: u64 = 3600;

/// Whose hash it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A session's: goes with it.
    Session(u64),
    /// A process that has no session: goes by itself.
    Nobody(u64),
}

/// What entitles to commit over one connection.
pub(super) struct Pass {
    /// Of the connection.
    generation: u64,
    pub hash: Bytes,
    pub token: Bytes,
    /// What earlier connections left: numbers and replies.
    pub outcomes: HashMap<u64, Bytes>,
}

/// The hash and its slots.
pub(super) struct Lane {
    owner: Owner,
    /// Tells us from another process that believes to have the same session.
    identity: String,
    number: AtomicU64,
    permits: Semaphore,
    free: Mutex<Vec<usize>>,
    pass: Mutex<Option<Arc<Pass>>>,
    fencing: tokio::sync::Mutex<()>,
    /// What came back over this lane.
    pub acknowledged: Acknowledged,
}

/// A slot in use.
pub(super) struct Slot<'a> {
    pub index: usize,
    lane: &'a Lane,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        unpoisoned(&self.lane.free).push(self.index);
    }
}

/// Sets a field of a hash. A server that is out of memory lets a script go on that has written something, and a removal is always allowed: so
/// a process that comes back to such a server can still learn what became of its commits, and make those that free memory.
const SET: &str = "redis.call('HDEL', KEYS[1], ARGV[1]) return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])";
/// The same for a field that is not there.
const SET_ONCE: &str = "if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 0 end \
    redis.call('HDEL', KEYS[1], ARGV[1]) return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])";
/// The same for the score of a member that is there.
const RENEW: &str = "if redis.call('ZREM', KEYS[1], ARGV[2]) == 1 then redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2]) end";

/// The command that sets a field of a hash of ours, also on a server that is out of memory.
pub(super) fn set_field(hash: &[u8], field: &str, value: &[u8]) -> Cmd {
    redis::cmd("EVAL").arg(SET).arg(1).arg(hash).arg(field).arg(value).to_owned()
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Only plain assignments happen under these.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane {
    pub fn new(owner: Owner) -> Lane {
        Lane {
            owner,
            identity: format!("{:016x}", SystemRandom.u64()),
            number: AtomicU64::new(1),
            permits: Semaphore::new(SLOTS),
            free: Mutex::new((0..SLOTS).collect()),
            pass: Mutex::new(None),
            fencing: tokio::sync::Mutex::new(()),
            acknowledged: Acknowledged::default(),
        }
    }

    /// Waits for a free slot.
    pub async fn slot(&self) -> Slot<'_> {
        let permit = self.permits.acquire().await.expect("the semaphore is never closed");
        let index = unpoisoned(&self.free).pop().expect("there are as many slots as permits");
        Slot { index, lane: self, _permit: permit }
    }

    /// A number that no other commit of this lane has.
    pub fn number(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    /// The pass for a connection: puts up the fence if the connection has none yet.
    pub async fn pass(&self, link: &Link, live: &Live, counters: &Counters) -> Result<Arc<Pass>, Fault> {
        if let Some(pass) = self.valid(live)? {
            return Ok(pass);
        }
        let _turn = self.fencing.lock().await;
        if let Some(pass) = self.valid(live)? {
            return Ok(pass);
        }
        let again = unpoisoned(&self.pass).is_some();
        if let Owner::Session(_) = self.owner {
            // Before anything is written: what is there may not be ours.
            counters.check_volume(link, live).await?;
        }
        let hash = self.hash(link, live).await?;
        let token = Bytes::from(format!("{:016x}", SystemRandom.u64()));
        // In this order over one connection: what the slots do not hold when they are read will never be there.
        link.attempt(live, &set_field(&hash, "token", &token)).await?;
        let fields = pairs(link.attempt(live, redis::cmd("HGETALL").arg(&hash[..])).await?).map_err(Fault::Store)?;
        let slots: HashMap<usize, (u64, Bytes)> =
            fields.iter().filter_map(|(field, value)| Some((std::str::from_utf8(field).ok()?.parse().ok()?, record(value)?))).collect();
        if let (Owner::Session(sid), true) = (self.owner, again) {
            // A server that never stopped may have been emptied, or loaded from a file. Others remove a hash only a day after they took its
            // session for dead.
            counters.examine(link, live, &self.acknowledged, &slots).await?;
            // What waited for the server was planned while the session lived. It must not end while that is carried out.
            let sessions = prefixed(&link.prefix, &key::ALL_SESSIONS);
            let expiry = SystemClock::new().now().sec + SESSION_TTL.as_secs() as i64;
            link.attempt(live, redis::cmd("EVAL").arg(RENEW).arg(1).arg(&sessions[..]).arg(expiry).arg(sid)).await?;
        }
        let outcomes = slots.into_values().collect();
        let pass = Arc::new(Pass { generation: live.generation, hash, token, outcomes });
        *unpoisoned(&self.pass) = Some(pass.clone());
        Ok(pass)
    }

    fn valid(&self, live: &Live) -> Result<Option<Arc<Pass>>, Fault> {
        match &*unpoisoned(&self.pass) {
            Some(pass) if pass.generation == live.generation => Ok(Some(pass.clone())),
            Some(pass) if pass.generation > live.generation => Err(Fault::Later("a newer connection is in use".into())),
            _ => Ok(None),
        }
    }

    /// The hash this process owns; made if it is not there.
    async fn hash(&self, link: &Link, live: &Live) -> Result<Bytes, Fault> {
        let who = match self.owner {
            Owner::Session(sid) => sid.to_string(),
            Owner::Nobody(random) => format!("r{random:016x}"),
        };
        for conn in 0..key::OP_CONNECTIONS_MAX {
            let hash = prefixed(&link.prefix, &key::op(&who, conn));
            link.attempt(live, redis::cmd("EVAL").arg(SET_ONCE).arg(1).arg(&hash[..]).arg("owner").arg(&self.identity)).await?;
            let owner = bytes(link.attempt(live, redis::cmd("HGET").arg(&hash[..]).arg("owner")).await?).map_err(Fault::Store)?;
            if owner.as_deref() == Some(self.identity.as_bytes()) {
                // Others let a session's hash expire when they take the session for dead.
                match self.owner {
                    Owner::Nobody(_) => link.attempt(live, redis::cmd("EXPIRE").arg(&hash[..]).arg(SESSIONLESS_TTL_S)).await?,
                    Owner::Session(_) => link.attempt(live, redis::cmd("PERSIST").arg(&hash[..])).await?,
                };
                return Ok(hash);
            }
            warn!("another process uses the session {who}, too; was the metadata set back?");
        }
        Err(Fault::Store(StoreError::Failed(format!("too many processes use the session {who}"))))
    }

    /// A pass turned out to be void: somebody removed the hash, or the server forgot it.
    pub fn void(&self, pass: &Arc<Pass>) {
        let mut current = unpoisoned(&self.pass);
        if let Some(now) = &*current
            && Arc::ptr_eq(now, pass)
        {
            // Kept, so that the next fence knows that there was one.
            *current = Some(Arc::new(Pass { generation: 0, hash: now.hash.clone(), token: Bytes::new(), outcomes: HashMap::new() }));
        }
    }
}
