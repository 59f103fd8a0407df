//! `Pacing`: while clients of another make use the volume, keys that are written again and again are left alone for a part of each period.
//!
//! Such a client changes things in an optimistic transaction: it watches keys, reads them, and is turned away if they changed before it
//! commits. That takes about four round trips, and after 50 refusals its application is told EIO. One host that appends or creates as fast
//! as it can would keep it from ever succeeding. All hosts keep to the clock of the store, so that the pauses fall together.

use crate::env::Clock;
use crate::meta::store::{Key, Write};
use lru::LruCache;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A period of the store's clock.
const PERIOD: Duration = Duration::from_millis(50);
/// Its beginning, in which contended keys are left alone: four round trips of 2 ms, and something for the client itself.
const QUIET: Duration = Duration::from_millis(10);
/// A key that was written this recently is contended: at fewer writes than ten a second the others find their gaps.
const RECENT: Duration = Duration::from_millis(100);
/// Keys whose last write is known. More than are written within `RECENT` by one host.
const KEYS_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// When to wait before a commit.
pub(crate) struct Pacing {
    clock: Arc<dyn Clock>,
    foreign: AtomicBool,
    written: Mutex<LruCache<Key, Duration>>,
}

impl Pacing {
    /// Nobody else is there yet.
    pub fn new(clock: Arc<dyn Clock>) -> Pacing {
        Pacing { clock, foreign: AtomicBool::new(false), written: Mutex::new(LruCache::new(KEYS_MAX)) }
    }

    /// Whether sessions of other clients live.
    pub fn set_foreign(&self, foreign: bool) {
        self.foreign.store(foreign, Ordering::Relaxed);
    }

    /// What to wait before a commit with these writes. `ahead_us` is what the store's clock will show at its arrival, less ours now.
    pub fn pause(&self, writes: &[Write], ahead_us: i64) -> Duration {
        if !self.foreign.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        let now = self.clock.elapsed();
        let mut contended = false;
        {
            let mut written = self.written.lock().expect("never poisoned: no code under it panics");
            for key in writes.iter().filter_map(guard_key) {
                contended |= written.put(key.clone(), now).is_some_and(|before| before + RECENT > now);
            }
        }
        if contended { quiet_left(self.wall_us().saturating_add(ahead_us)) } else { Duration::ZERO }
    }

    fn wall_us(&self) -> i64 {
        let now = self.clock.now();
        now.sec.saturating_mul(1_000_000).saturating_add(i64::from(now.nsec / 1000))
    }
}

/// How much of the quiet part of a period is left at this time of the store.
fn quiet_left(store_us: i64) -> Duration {
    let into = Duration::from_micros(store_us.rem_euclid(PERIOD.as_micros() as i64).unsigned_abs());
    QUIET.saturating_sub(into)
}

/// The key a transaction of other clients watches (metadata §20.2), if this write changes one: a record, a directory, a list or a lock.
fn guard_key(write: &Write) -> Option<&Key> {
    let (Write::Set(key, _)
    | Write::Patch { key, .. }
    | Write::AddU32 { key, .. }
    | Write::HSet(key, ..)
    | Write::HDel(key, _)
    | Write::RPush(key, _)
    | Write::RPushX(key, _)) = write
    else {
        return None;
    };
    let is_numbered = |prefix: &[u8]| key.strip_prefix(prefix).is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_digit));
    [&b"i"[..], b"d", b"c", b"x", b"lockf", b"lockp"].iter().any(|prefix| is_numbered(prefix)).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::ManualClock;

    fn set(key: &'static str) -> [Write; 1] {
        [Write::Set(key.into(), "v".into())]
    }

    #[test]
    fn contended_keys_are_left_alone_at_the_start_of_each_period() {
        let clock = Arc::new(ManualClock::new(Duration::from_secs(1000)));
        let pacing = Pacing::new(clock.clone());
        for _ in 0..3 {
            assert_eq!(pacing.pause(&set("i5"), 0), Duration::ZERO, "nobody else is there");
        }
        pacing.set_foreign(true);
        assert_eq!(pacing.pause(&set("i5"), 0), Duration::ZERO, "the first write");
        assert_eq!(pacing.pause(&set("i5"), 0), QUIET);
        assert_eq!(pacing.pause(&set("i6"), 0), Duration::ZERO, "another key");
        // The store's clock counts, wherever it is.
        for (ahead_us, left_ms) in [(4_000, 6), (10_000, 0), (49_000, 0), (50_000, 10), (-1_000, 0), (-45_000, 5)] {
            assert_eq!(pacing.pause(&set("i5"), ahead_us), Duration::from_millis(left_ms), "{ahead_us}");
        }
        clock.advance(RECENT);
        assert_eq!(pacing.pause(&set("i5"), 0), Duration::ZERO, "rarely written");
        for key in ["usedSpace", "dirDataLength", "sliceRef", "sessionInfos"] {
            let write = [Write::HSet(key.into(), "1".into(), "v".into())];
            pacing.pause(&write, 0);
            assert_eq!(pacing.pause(&write, 0), Duration::ZERO, "{key} is no guard of anybody");
        }
        pacing.set_foreign(false);
        assert_eq!(pacing.pause(&set("i5"), 0), Duration::ZERO);
    }

    #[test]
    fn a_transaction_of_four_trips_gets_through() {
        // One of ours writes as fast as it can, a trip of 1 ms each; another's begins at any time and needs 4 ms without a write.
        let clock = Arc::new(ManualClock::new(Duration::from_secs(1000)));
        let pacing = Pacing::new(clock.clone());
        pacing.set_foreign(true);
        let (mut writes, mut last, mut longest) = (0, clock.elapsed(), Duration::ZERO);
        while writes < 1000 {
            clock.advance(pacing.pause(&set("d1"), 0));
            longest = longest.max(clock.elapsed() - last);
            last = clock.elapsed();
            clock.advance(Duration::from_millis(1));
            writes += 1;
        }
        assert!(longest >= QUIET, "{longest:?}");
        let rate = f64::from(writes) / (clock.elapsed() - Duration::from_secs(1000)).as_secs_f64();
        assert!(rate > 750.0, "four fifths of the speed are left: {rate}");
    }
}
