//! Frames one by one, for those who make objects of them, and whose turn that is.

use crate::meta::driver::errno_of;
use crate::meta::store::{Commit, Guard, Query, Value, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Cx, Meta, key};
use crate::types::{Caller, Errno, SliceId};
use bytes::Bytes;

/// A turn to drain frames of others is over when it was not prolonged for so long: a batch takes less, unless the bucket is away.
const TURN_SECONDS: u64 = 10;

impl Meta {
    /// What the store's clock shows now, in milliseconds.
    pub fn store_ms(&self) -> i64 {
        let now = self.driver.clock.now();
        now.sec.saturating_mul(1000) + i64::from(now.nsec / 1_000_000) + self.driver.store.clock_ahead_us() / 1000
    }

    /// Takes the turn to drain frames of others, or prolongs it. False: it is somebody else's. A turn that is taken from somebody who still
    /// uses it only means that some blocks are stored twice.
    pub async fn begin_drain(&self) -> Result<bool, Errno> {
        let (own, now) = (self.journal().name, self.driver.clock.now().sec);
        let step = |view: &View, _: &Cx| -> Result<Plan<bool>, Stop> {
            let stored = view.string(&key::DRAINER)?;
            let holder = stored.as_ref().and_then(|value| {
                let (name, since) = std::str::from_utf8(value).ok()?.split_once(' ')?;
                Some((name.parse::<u64>().ok()?, since.parse::<i64>().ok()?))
            });
            if holder.is_some_and(|(name, since)| name != own && now.abs_diff(since) < TURN_SECONDS) {
                return Ok(Plan::answer(false));
            }
            let value = Bytes::from(format!("{own} {now}"));
            Ok(Plan::new(vec![Guard::Value(key::DRAINER, stored)], vec![Write::Set(key::DRAINER, value)], true))
        };
        self.run("take the turn to drain", &Caller::root(), step).await
    }

    /// Gives the turn back, if it is ours.
    pub async fn end_drain(&self) -> Result<(), Errno> {
        let own = format!("{} ", self.journal().name);
        let step = |view: &View, _: &Cx| -> Result<Plan<()>, Stop> {
            match view.string(&key::DRAINER)? {
                Some(value) if value.starts_with(own.as_bytes()) => {
                    Ok(Plan::new(vec![Guard::Value(key::DRAINER, Some(value))], vec![Write::Del(key::DRAINER)], ()))
                }
                _ => Ok(Plan::answer(())),
            }
        };
        self.run("end the turn to drain", &Caller::root(), step).await
    }

    /// Removes the frames of slices whose blocks are objects now.
    pub async fn drop_frames(&self, ids: impl IntoIterator<Item = SliceId>) -> Result<(), Errno> {
        let writes: Vec<_> = ids.into_iter().map(Write::DelFrame).collect();
        if writes.is_empty() {
            return Ok(());
        }
        match self.driver.store.commit(&[], &writes, &[]).await.map_err(|e| errno_of("remove frames", &e))? {
            Commit::Done { .. } => Ok(()),
            Commit::Conflict(_) => Err(Errno::IO),
        }
    }

    /// The frames of these slices, and how much is kept.
    pub async fn frames_of(&self, ids: &[SliceId]) -> Result<Vec<Option<Bytes>>, Errno> {
        let mut queries: Vec<_> = ids.iter().map(|id| Query::Frame(*id)).collect();
        queries.push(Query::FramesKept);
        let mut values = self.driver.store.read(&queries).await.map_err(|e| errno_of("read frames", &e))?;
        if let Some(Value::Kept(kept)) = values.pop() {
            self.journal().note_kept(kept.bytes);
        }
        let frame = |value| if let Value::Bytes(frame) = value { Ok(frame) } else { Err(Errno::IO) };
        values.into_iter().map(frame).collect()
    }

    /// The oldest frames, and when they were put, in milliseconds of the store's clock; 0 if it does not know.
    pub async fn oldest_frames(&self, limit: u32) -> Result<Vec<(SliceId, i64)>, Errno> {
        let values = self.driver.store.read(&[Query::OldestFrames { limit }]).await.map_err(|e| errno_of("list frames", &e))?;
        let [Value::Scored(ids)] = &values[..] else { return Err(Errno::IO) };
        let slice = |id: &Bytes| id[..].try_into().ok().map(u64::from_be_bytes);
        Ok(ids.iter().filter_map(|(id, ms)| Some((slice(id)?, *ms))).collect())
    }
}
