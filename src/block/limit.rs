//! `Limit`: a bandwidth that all transfers of one direction share.

use std::sync::Mutex;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// What may be transferred at once after a pause, as time at the limit: enough for the smallest transfers to run side by side, and far below
/// the second over which anybody measures.
const BURST: Duration = Duration::from_millis(100);
/// Bytes a second of one Mbit/s (cli §2).
const MBIT: f64 = 1_000_000.0 / 8.0;
/// Longest debt of one transfer: the largest block at the smallest limit.
const DEBT_MAX: Duration = Duration::from_secs(600);

/// When the line is free again, as what is on its way would take it at the limit.
#[derive(Default)]
pub(super) struct Limit(Mutex<Option<Instant>>);

impl Limit {
    /// Waits until `bytes` more may be on their way at `mbps` Mbit/s, 0 = unlimited. Who comes first goes first.
    pub async fn wait(&self, mbps: u64, bytes: u64) {
        if mbps > 0 {
            sleep_until(self.reserve(Instant::now(), mbps, bytes)).await;
        }
    }

    /// When that is.
    fn reserve(&self, now: Instant, mbps: u64, bytes: u64) -> Instant {
        let mut free = self.0.lock().expect("no code under it panics");
        let start = free.map_or(now, |free| free.max(now.checked_sub(BURST).unwrap_or(now)));
        *free = Some(start + Duration::from_secs_f64(bytes as f64 / (mbps as f64 * MBIT)).min(DEBT_MAX));
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_take_what_they_would_at_the_limit() {
        let (limit, begin) = (Limit::default(), Instant::now());
        let at = |seconds: f64| begin + Duration::from_secs_f64(seconds);
        // A MB a second: the tenth has waited for nine.
        let starts: Vec<_> = (0..10).map(|_| limit.reserve(at(0.0), 8, 1_000_000)).collect();
        assert_eq!(starts, (0..10).map(|n| at(f64::from(n))).collect::<Vec<_>>());
        // A pause saves up no more than a burst.
        let starts: Vec<_> = (0..3).map(|_| limit.reserve(at(100.0), 8, 1_000_000)).collect();
        assert_eq!(starts, [at(99.9), at(100.9), at(101.9)]);
        // It may be changed while the volume is in use.
        assert_eq!(limit.reserve(at(100.0), 80, 1_000_000), at(102.9));
        assert_eq!(limit.reserve(at(100.0), 80, u64::MAX), at(103.0));
        assert_eq!(limit.reserve(at(100.0), 80, 1), at(703.0), "a debt is bounded");
    }

    #[tokio::test]
    async fn without_a_limit_nobody_waits() {
        let limit = Limit::default();
        for _ in 0..2 {
            tokio::time::timeout(Duration::from_secs(5), limit.wait(0, u64::MAX)).await.unwrap();
        }
    }
}
