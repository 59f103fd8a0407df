//! Whether a cache disk is worth asking: after some failures in a row of time it is left alone for a while.

use std::sync::Mutex;
use std::time::Duration;

/// Failures within `WINDOW` after which a disk is left alone: one may be chance, and every one costs a reader its patience.
const FAILURES_MAX: u32 = 3;
/// Failures further apart than this have nothing to do with each other.
const WINDOW: Duration = Duration::from_secs(60);
/// How long it is left alone. Afterwards the first failure begins the next rest.
pub(super) const REST: Duration = Duration::from_secs(60);

/// What a disk has done lately. Times are those of a monotonic clock.
#[derive(Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Default)]
struct State {
    failures: u32,
    first_failure: Duration,
    rest_until: Option<Duration>,
}

/// What became of a disk by the last operation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// It begins a rest after a time of health.
    Tripped,
    /// It works after a rest.
    Recovered,
}

impl Health {
    /// Whether the disk may be used.
    pub(super) fn allows(&self, now: Duration) -> bool {
        self.lock().rest_until.is_none_or(|until| now >= until)
    }

    /// An operation failed, or took too long.
    pub(super) fn failed(&self, now: Duration) -> Change {
        let mut state = self.lock();
        match state.rest_until {
            // It failed again after its rest; what was still under way when the rest began says nothing new.
            Some(until) => {
                if now >= until {
                    state.rest_until = Some(now + REST);
                }
                Change::None
            }
            None => {
                if state.failures == 0 || now - state.first_failure > WINDOW {
                    (state.failures, state.first_failure) = (0, now);
                }
                state.failures += 1;
                if state.failures < FAILURES_MAX {
                    return Change::None;
                }
                state.rest_until = Some(now + REST);
                Change::Tripped
            }
        }
    }

    /// An operation that reached the disk succeeded in time.
    pub(super) fn worked(&self, now: Duration) -> Change {
        let mut state = self.lock();
        match state.rest_until {
            Some(until) if now >= until => {
                *state = State::default();
                Change::Recovered
            }
            _ => Change::None,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("never poisoned: no code under it panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_rests_after_some_failures_and_is_tried_again() {
        let at = Duration::from_secs;
        let health = Health::default();
        assert_eq!([health.failed(at(0)), health.failed(at(1))], [Change::None, Change::None]);
        assert_eq!(health.failed(at(100)), Change::None, "the first two are long ago");
        assert_eq!([health.failed(at(101)), health.failed(at(102))], [Change::None, Change::Tripped]);
        assert!(!health.allows(at(103)));
        assert_eq!(health.worked(at(103)), Change::None, "it began before the rest");
        assert_eq!(health.failed(at(104)), Change::None);
        assert!(health.allows(at(162)));
        assert_eq!(health.failed(at(163)), Change::None, "one is enough now, and it is told once");
        assert!(!health.allows(at(164)));
        assert_eq!(health.worked(at(300)), Change::Recovered);
        assert!(health.allows(at(300)));
        assert_eq!(health.failed(at(301)), Change::None);
        assert!(health.allows(at(301)));
    }
}
