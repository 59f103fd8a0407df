//! Noticing that the server lost what it had acknowledged: a failover to a replica that was behind, a restart from an older file, a database
//! that was emptied; and that it holds another volume by now.

use super::error::Fault;
use super::link::{Link, Live};
use super::wire::{bytes, prefixed};
use crate::meta::codec;
use crate::meta::key;
use crate::meta::setting::Setting;
use crate::meta::store::{Key, Query, StoreError, Value, Write};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
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

/// How long a volume may be without its setting: that of a server that is being loaded comes last. Then it is gone.
const SETTING_TIME_MAX: Duration = Duration::from_secs(60);

/// What is known of the volume in the database.
#[derive(Default)]
enum Volume {
    /// It was not looked at yet.
    #[default]
    Unknown,
    /// There was none: nothing can be compared.
    None,
    /// Its UUID, and since when it was not there.
    Known { uuid: String, missing: Option<Instant> },
}

/// The highest values of counters this process has seen.
#[derive(Default)]
pub(super) struct Counters {
    highest: [AtomicI64; COUNTERS_COUNT],
    losses: AtomicU64,
    volume: Mutex<Volume>,
    /// Why nothing may be committed any more.
    replaced: OnceLock<String>,
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

    /// A read was answered: numbers that are in use somewhere are above none that may be given out.
    pub fn see(&self, query: &Query, value: &Value) {
        match (query, value) {
            // Slice lists; of all lists only these have such keys.
            (Query::List(key), Value::List(elements)) if key.starts_with(b"c") => {
                let highest = elements.iter().filter_map(|element| Some(codec::decode_slice(element)?.id)).max();
                self.see_number(1, highest.unwrap_or(0));
            }
            (Query::Entry { .. }, Value::Entry(Some((entry, _)))) => self.see_entry(entry),
            (Query::Get(key), Value::Bytes(Some(text))) => {
                if let Some(at) = COUNTERS.iter().position(|known| known == key) {
                    self.see_number(at, codec::decode_decimal(Some(text)).and_then(|n| u64::try_from(n).ok()).unwrap_or(0));
                }
            }
            _ => {}
        }
    }

    /// An entry of a directory was seen.
    pub fn see_entry(&self, entry: &[u8]) {
        // Directories of the trash have numbers of their own.
        if let Some((_, ino)) = codec::decode_entry(entry).filter(|(_, ino)| !ino.is_trash()) {
            self.see_number(0, ino.0);
        }
    }

    fn see_number(&self, counter: usize, number: u64) {
        // One that does not fit is damage, and no number to count on from.
        if let Ok(number) = i64::try_from(number) {
            self.highest[counter].fetch_max(number, Ordering::Relaxed);
        }
    }

    /// Why nothing may be committed any more.
    pub fn replaced(&self) -> Option<&str> {
        self.replaced.get().map(String::as_str)
    }

    fn volume(&self) -> MutexGuard<'_, Volume> {
        // Only plain assignments happen under it.
        self.volume.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the database still holds the volume it held when this was first asked. Without its setting the volume is waited for.
    pub async fn check_volume(&self, link: &Link, live: &Live) -> Result<(), Fault> {
        if let Some(why) = self.replaced() {
            return Err(Fault::Store(StoreError::Failed(why.into())));
        }
        let key = prefixed(&link.prefix, &key::SETTING);
        let setting = bytes(link.attempt(live, redis::cmd("GET").arg(&key[..])).await?).map_err(Fault::Store)?;
        let found = setting.and_then(|text| Some(Setting::parse(&text).ok()?.uuid().to_owned()));
        let mut volume = self.volume();
        let why = match (&mut *volume, found) {
            (Volume::None, _) => return Ok(()),
            (first @ Volume::Unknown, found) => {
                *first = found.map_or(Volume::None, |uuid| Volume::Known { uuid, missing: None });
                return Ok(());
            }
            (Volume::Known { uuid, missing }, Some(found)) if *uuid == found => {
                *missing = None;
                return Ok(());
            }
            (Volume::Known { uuid, .. }, Some(found)) => {
                format!("the database holds another volume now: its UUID is {found}, and was {uuid}")
            }
            (Volume::Known { uuid, missing }, None) => {
                if missing.is_none() {
                    error!("the volume {uuid} has vanished from the database; waiting {SETTING_TIME_MAX:?} for it to be loaded again");
                }
                if missing.get_or_insert_with(Instant::now).elapsed() < SETTING_TIME_MAX {
                    return Err(Fault::Later("the volume has vanished from the database".into()));
                }
                format!("the volume {uuid} has vanished from the database")
            }
        };
        error!("{why}; nothing is written any more");
        let why = self.replaced.get_or_init(|| why);
        Err(Fault::Store(StoreError::Failed(why.clone())))
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
