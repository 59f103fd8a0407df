//! Who uses the volume: whether all sessions know frames, looked at again whenever somebody comes or goes.

use super::{BYTES_MAX, BYTES_MAX_UNKNOWN, EXAMINE_AGAIN, FREE_PART, Journal, Sessions, UNSEEN_COUNT_MAX, UNSEEN_MAX};
use crate::meta::driver::errno_of;
use crate::meta::ops::session::is_foreign;
use crate::meta::store::{FramesKept, Query, Value};
use crate::meta::{Meta, key};
use crate::types::Errno;
use bytes::Bytes;
use std::collections::BTreeSet;

/// What an examination has found.
struct Found {
    sessions: Sessions,
    /// Numbers of sessions without a document of ours, of which it is not known whose they are.
    strange: BTreeSet<u64>,
    /// A session of another make lives.
    foreign: bool,
}

impl Meta {
    /// How much is kept in frames. On a server it is also noticed whether anybody has come or gone.
    pub async fn look_at_journal(&self) -> Result<FramesKept, Errno> {
        let queries = [Query::FramesKept, Query::Get(key::NEXT_SESSION), Query::HLen { key: key::SESSION_INFOS, limit: u32::MAX }];
        let wanted = if self.is_far() { &queries[..] } else { &queries[..1] };
        let values = self.driver.read("look at the journal", wanted).await?;
        if let [_, Value::Bytes(next), Value::Int(count)] = &values[..] {
            let seen = Sessions { next: next.clone(), count: u32::try_from(*count).unwrap_or(u32::MAX) };
            if self.journal().is_outdated(&seen) {
                self.examine_sessions().await?;
            }
        }
        match values.first() {
            Some(Value::Kept(kept)) => Ok(*kept),
            _ => Err(Errno::IO),
        }
    }

    /// Somebody has come or gone: finds out at once who, so that a client of ours costs its neighbours two round trips and no request to the bucket.
    pub async fn reconsider_journal(&self) {
        let _turn = self.journal().examining.lock().await;
        if self.journal().state().sessions.is_none() {
            // A failure was logged where it happened, and means that nothing is taken.
            let _ = self.examine_sessions().await;
        }
    }

    /// Finds out whether all sessions know frames. From then on commits with frames guard that it is still these.
    pub async fn examine_sessions(&self) -> Result<(), Errno> {
        if !self.is_far() || !self.journal().is_on() {
            return Ok(());
        }
        let free = self.driver.store.free_bytes().await;
        let queries = [
            Query::Get(key::NEXT_SESSION),
            Query::HGetAll(key::SESSION_INFOS),
            Query::ZRange { key: key::ALL_SESSIONS, max: i64::MAX, limit: u32::MAX },
        ];
        let values = self.driver.store.read(&queries).await.map_err(|e| errno_of("examine sessions", &e))?;
        let [Value::Bytes(next), Value::Pairs(documents), Value::Scored(expiries)] = &values[..] else { return Err(Errno::IO) };
        let mut found = self.journal().compare(next, documents, expiries);
        // Whose they are is found out later than who there are: a number never changes its owner.
        let numbers: Vec<u64> = found.strange.iter().copied().collect();
        let owners: Vec<_> = numbers.iter().map(|sid| Query::HLen { key: key::op(&sid.to_string(), 0), limit: 1 }).collect();
        let values = match &owners[..] {
            [] => Vec::new(),
            owners => self.driver.store.read(owners).await.map_err(|e| errno_of("examine sessions", &e))?,
        };
        for (sid, value) in numbers.iter().zip(values) {
            if value != Value::Int(0) {
                found.strange.remove(sid);
            }
        }
        let listed: BTreeSet<u64> = expiries.iter().filter_map(|(sid, _)| number(sid)).collect();
        found.foreign |= found.strange.iter().any(|sid| listed.contains(sid));
        self.driver.pacing.set_foreign(found.foreign);
        let bytes_max = free.map_or(BYTES_MAX_UNKNOWN, |free| (free / FREE_PART).min(BYTES_MAX));
        self.journal().examined(found, bytes_max);
        Ok(())
    }
}

fn highest(next: &Option<Bytes>) -> u64 {
    next.as_ref().and_then(|next| number(next)).unwrap_or(0)
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

impl Journal {
    /// Whether the sessions are to be examined, now that these are there.
    fn is_outdated(&self, seen: &Sessions) -> bool {
        let state = self.state();
        // Also because the free memory of the server changes.
        let again = (!state.alone || !state.own.is_empty()) && state.examined + EXAMINE_AGAIN <= self.clock.elapsed();
        again || state.sessions.as_ref() != Some(seen) || !state.unseen.is_empty()
    }

    /// Whether somebody has begun a session of whom it is not known yet what client it is.
    pub fn is_unsure(&self) -> bool {
        let state = self.state();
        self.is_on() && (state.sessions.is_none() || !state.unseen.is_empty())
    }

    fn compare(&self, next: &Option<Bytes>, documents: &[(Bytes, Bytes)], expiries: &[(Bytes, i64)]) -> Found {
        let sessions = Sessions { next: next.clone(), count: u32::try_from(documents.len()).unwrap_or(u32::MAX) };
        let known: BTreeSet<u64> = documents.iter().filter_map(|(sid, _)| number(sid)).collect();
        // One that is listed and has no document may be of either make.
        let mut strange: BTreeSet<u64> = expiries.iter().filter_map(|(sid, _)| number(sid)).filter(|sid| !known.contains(sid)).collect();
        let state = self.state();
        strange.extend(state.unseen.keys().filter(|sid| !known.contains(sid)));
        // Who began before the first examination and is not listed has ended, or changes `sessionInfos` when it goes on.
        if let Some(before) = state.numbered_to {
            let now = highest(next);
            strange.extend((before.max(now.saturating_sub(UNSEEN_COUNT_MAX)) + 1..=now).filter(|sid| !known.contains(sid)));
        }
        Found { sessions, strange, foreign: documents.iter().any(|(_, document)| is_foreign(document)) }
    }

    fn examined(&self, found: Found, bytes_max: u64) {
        let now = self.clock.elapsed();
        let mut state = self.state();
        let mut unseen = std::mem::take(&mut state.unseen);
        unseen.retain(|sid, _| found.strange.contains(sid));
        for sid in found.strange {
            unseen.entry(sid).or_insert(now);
        }
        unseen.retain(|_, since| *since + UNSEEN_MAX > now);
        state.unseen = unseen;
        state.alone = !found.foreign;
        state.numbered_to = Some(highest(&found.sessions.next));
        state.examined = now;
        state.sessions = Some(found.sessions);
        state.bytes_max = bytes_max;
        if !state.is_open() {
            // What is there becomes objects at once.
            self.work.notify_one();
        }
    }
}
