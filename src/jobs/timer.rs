//! Periods with jitter, so that the clients of a volume do not all come at once.

use crate::env::{Random, SystemRandom};
use std::time::Duration;

/// `period`, give or take a twentieth.
pub(super) fn jittered(period: Duration) -> Duration {
    let span = (period.as_millis() as u64 / 10).max(1);
    period - period / 20 + Duration::from_millis(SystemRandom.u64() % span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_a_twentieth() {
        for _ in 0..100 {
            let time = jittered(Duration::from_secs(100));
            assert!((95_000..=105_000).contains(&time.as_millis()), "{time:?}");
        }
        assert_eq!(jittered(Duration::ZERO), Duration::ZERO);
    }
}
