//! Wall clock and monotonic clock.

use crate::types::Time;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What time it is.
pub trait Clock: Send + Sync {
    /// Wall clock.
    fn now(&self) -> Time;
    /// Time since some fixed point; never goes back.
    fn elapsed(&self) -> Duration;

    /// Hour of the day where this host is, 0 to 23.
    fn hour(&self) -> u8 {
        let seconds: libc::time_t = self.now().sec;
        // SAFETY: `tm` is plain old data, for which all zeros are a valid value.
        let mut parts: libc::tm = unsafe { std::mem::zeroed() };
        // SAFETY: both point to live locals.
        let known = unsafe { !libc::localtime_r(&seconds, &mut parts).is_null() };
        if known { u8::try_from(parts.tm_hour).unwrap_or(0) } else { 0 }
    }
}

/// The clocks of the operating system.
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// Starts counting now.
    pub fn new() -> SystemClock {
        SystemClock { start: Instant::now() }
    }
}

/// The monotonic clock for timeouts and for measuring, where no runtime has one that tests can stop. What decides about a volume takes a `Clock`.
pub fn instant() -> Instant {
    Instant::now()
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Time {
        // A clock set before 1970 reads as 1970: it is wrong by more than we could repair.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Time { sec: since.as_secs() as i64, nsec: since.subsec_nanos() }
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that moves only when told to.
pub struct ManualClock(Mutex<Duration>);

impl ManualClock {
    /// Begins at `since_epoch`.
    pub fn new(since_epoch: Duration) -> ManualClock {
        ManualClock(Mutex::new(since_epoch))
    }

    /// Moves on.
    pub fn advance(&self, by: Duration) {
        *self.0.lock().expect("a clock reader never panics") += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Time {
        let since = self.elapsed();
        Time { sec: since.as_secs() as i64, nsec: since.subsec_nanos() }
    }

    fn elapsed(&self) -> Duration {
        *self.0.lock().expect("a clock reader never panics")
    }
}
