//! `Hedge`: when an answer is so late that asking a second time is likely to be faster. One server of many is slow, or one packet was lost.

use std::sync::Mutex;
use std::time::Duration;

/// Answers remembered of each kind; also how many it takes before anything is called late.
const ANSWERS: usize = 128;
/// Of so many the slowest is late.
const LATE_ONE_OF: usize = 100;
/// Nothing is late before: a second request costs more than it saves.
const LATE_LEAST: Duration = Duration::from_millis(30);
/// At most one request in so many is made twice, so that a server that grows slower is not asked more than that.
const DOUBLED_ONE_OF: u32 = 50;
/// Credit saved up for it: a burst of so many.
const CREDIT_MAX: u32 = 4 * DOUBLED_ONE_OF;

/// What was seen of answers of one kind (whole blocks, or parts).
pub(super) struct Hedge(Mutex<State>);

struct State {
    /// Microseconds, in a ring.
    took: Vec<u32>,
    next: usize,
    late: Option<Duration>,
    credit: u32,
}

impl Hedge {
    pub fn new() -> Hedge {
        Hedge(Mutex::new(State { took: Vec::with_capacity(ANSWERS), next: 0, late: None, credit: 0 }))
    }

    /// After this time without an answer a second request is due; `None` while too little is known.
    pub fn late(&self) -> Option<Duration> {
        self.0.lock().expect("no code under it panics").late
    }

    /// Whether a second request may be made now.
    pub fn may_double(&self) -> bool {
        let mut state = self.0.lock().expect("no code under it panics");
        let may = state.credit >= DOUBLED_ONE_OF;
        if may {
            state.credit -= DOUBLED_ONE_OF;
        }
        may
    }

    /// An answer came.
    pub fn note(&self, took: Duration) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let mut state = self.0.lock().expect("no code under it panics");
        state.credit = (state.credit + 1).min(CREDIT_MAX);
        if state.took.len() < ANSWERS {
            state.took.push(took);
        } else {
            let next = state.next;
            state.took[next] = took;
        }
        state.next = (state.next + 1) % ANSWERS;
        // Once a round, and when there are enough for the first time.
        if state.took.len() == ANSWERS && state.next.is_multiple_of(ANSWERS / 8) {
            let mut sorted = state.took.clone();
            sorted.sort_unstable();
            let micros = sorted[ANSWERS - 1 - ANSWERS / LATE_ONE_OF].max(sorted[ANSWERS / 2].saturating_mul(2));
            state.late = Some(Duration::from_micros(micros.into()).max(LATE_LEAST));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_percent_is_late_and_few_are_asked_for_twice() {
        let hedge = Hedge::new();
        for n in 0..ANSWERS as u64 {
            assert_eq!(hedge.late(), None);
            hedge.note(Duration::from_millis(20 + n % 20 + if n == 7 { 5000 } else { 0 }));
        }
        let late = hedge.late().unwrap();
        assert!(late >= Duration::from_millis(39) && late < Duration::from_millis(100), "{late:?}");
        let doubled = (0..100).filter(|_| hedge.may_double()).count();
        assert_eq!(doubled, ANSWERS / DOUBLED_ONE_OF as usize);
        // Answers from next door are never late by a blink.
        for _ in 0..ANSWERS {
            hedge.note(Duration::from_micros(300));
        }
        assert_eq!(hedge.late(), Some(LATE_LEAST));
    }
}
