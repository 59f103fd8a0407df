//! Noticing that the server lost what it had acknowledged: a failover to a replica that was behind, or a restart from an older file.

use super::error::Fault;
use super::link::{Link, Live};
use super::script::{bytes, prefixed};
use crate::meta::key;
use crate::meta::store::{Key, Value, Write};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;
use tracing::error;

const COUNTERS_COUNT: usize = 3;
/// Counters that hand out what must never be handed out twice.
static COUNTERS: [Key; COUNTERS_COUNT] = [key::NEXT_INODE, key::NEXT_CHUNK, key::NEXT_SESSION];

/// What was answered over one lane: by slot the last number, and when.
#[derive(Default)]
pub(super) struct Acknowledged(Mutex<HashMap<usize, (u64, Instant)>>);

impl Acknowledged {
    fn numbers(&self) -> MutexGuard<'_, HashMap<usize, (u64, Instant)>> {
        // Only plain assignments happen under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A commit was answered.
    pub fn note(&self, slot: usize, number: u64) {
        self.numbers().insert(slot, (number, Instant::now()));
    }

    /// When those were answered that the slots do not hold any more.
    fn missing(&self, slots: &HashMap<usize, (u64, Bytes)>) -> Vec<Instant> {
        let numbers = self.numbers();
        let gone = numbers.iter().filter(|(slot, (number, _))| slots.get(slot).is_none_or(|(there, _)| there < number));
        gone.map(|(_, (_, when))| *when).collect()
    }
}

/// The highest values of counters this process has seen.
#[derive(Default)]
pub(super) struct Counters {
    highest: [AtomicI64; COUNTERS_COUNT],
    losses: AtomicU64,
}

impl Counters {
    /// A commit was answered.
    pub fn note(&self, writes: &[Write], replies: &[Value]) {
        for (write, reply) in writes.iter().zip(replies) {
            if let (Write::IncrBy(counter, _), Value::Int(value)) = (write, reply)
                && let Some(at) = COUNTERS.iter().position(|known| known == counter)
            {
                self.highest[at].fetch_max(*value, Ordering::Relaxed);
            }
        }
    }

    /// How often the server was found to have lost something.
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    /// Compares the slots of our hash with what was answered. If something is gone, the counters are raised above everything this
    /// process has seen before anybody commits again: a second batch of the same ids would overwrite another slice's object.
    pub async fn examine(
        &self,
        link: &Link,
        live: &Live,
        acknowledged: &Acknowledged,
        slots: &HashMap<usize, (u64, Bytes)>,
    ) -> Result<(), Fault> {
        let lost = acknowledged.missing(slots);
        let (Some(first), Some(last)) = (lost.iter().min(), lost.iter().max()) else { return Ok(()) };
        for (counter, highest) in COUNTERS.iter().zip(&self.highest) {
            let highest = highest.load(Ordering::Relaxed);
            let key = prefixed(&link.prefix, counter);
            let now = bytes(link.attempt(live, redis::cmd("GET").arg(&key[..])).await?).map_err(Fault::Store)?;
            let now: i64 = now.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()).unwrap_or(0);
            if now < highest {
                // Others may raise it at the same time: numbers are skipped then, which does no harm.
                link.attempt(live, redis::cmd("INCRBY").arg(&key[..]).arg(highest - now)).await?;
            }
        }
        self.losses.fetch_add(1, Ordering::Relaxed);
        error!(
            "the Redis server has lost acknowledged changes: at least those committed between {:.1} s and {:.1} s ago; run `pando fsck`",
            first.elapsed().as_secs_f64(),
            last.elapsed().as_secs_f64()
        );
        acknowledged.numbers().clear();
        Ok(())
    }
}
