//! Looking for the next request for a moment instead of sleeping at once.
//!
//! A process that works on many small files sends its next request some microseconds after the answer to the last. To go to sleep and to be
//! woken on another processor costs more than that everywhere, and 30 to 100 us on virtual machines, where an idle processor is given back to
//! the host: more than most answers take. So a loop thread whose last request came soon looks for the next one for a moment.
//!
//! What it costs: while requests follow each other within that moment the thread keeps its processor. A look in vain is followed by a time of
//! sleep that makes it a few per cent. It is not looked while requests are under way (a mount on a server: others need the processor to answer
//! them; also a process that waits for a lock), nor if there is one processor: the program could not send anything. One loop thread is assumed:
//! of several only one should look.

use std::time::Duration;

/// How long the next request is looked for: until the program is awake, where that takes long, and has made its next call. With 50 us most looks
/// are in vain on a virtual machine, and more than 100 us finds hardly more.
pub(crate) const LOOK_MAX: Duration = Duration::from_micros(100);
/// A request that was slept for came soon if it was here within this time: the above, and being woken.
const SOON: Duration = Duration::from_micros(200);
/// Time slept after a look in vain before the next one, so that those cost at most four per cent of a processor.
const REST: Duration = Duration::from_micros(2500);

/// What one loop thread has seen of the time between an answer and the next request.
#[derive(Debug)]
pub(crate) struct Gap {
    /// There is a processor for the thread and one for the program.
    two: bool,
    soon: bool,
    rest: Duration,
}

impl Gap {
    /// Nothing is known yet. `processors` this process may use.
    pub(crate) fn new(processors: usize) -> Gap {
        Gap { two: processors > 1, soon: false, rest: Duration::ZERO }
    }

    /// Whether to look before sleeping.
    pub(crate) fn looks(&self) -> bool {
        self.two && self.soon && self.rest.is_zero()
    }

    /// It was looked for; whether it came meanwhile.
    pub(crate) fn looked(&mut self, found: bool) {
        if !found {
            self.rest = REST;
        }
    }

    /// It was slept for, so long.
    pub(crate) fn slept(&mut self, waited: Duration) {
        self.soon = waited <= SOON;
        self.rest = self.rest.saturating_sub(waited);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAR: Duration = Duration::from_micros(20);
    const FAR: Duration = Duration::from_millis(1);

    #[test]
    fn requests_that_follow_each_other_are_looked_for() {
        let mut gap = Gap::new(2);
        assert!(!gap.looks(), "nothing is known");
        gap.slept(NEAR);
        for _ in 0..100 {
            assert!(gap.looks());
            gap.looked(true);
        }
        let mut gap = Gap::new(2);
        for _ in 0..100 {
            gap.slept(FAR);
            assert!(!gap.looks(), "a mount that waits does not look");
        }
    }

    #[test]
    fn looks_in_vain_cost_little_time() {
        for step in [LOOK_MAX + Duration::from_micros(1), LOOK_MAX + NEAR, SOON] {
            let mut gap = Gap::new(2);
            let (mut vain, mut all) = (Duration::ZERO, Duration::ZERO);
            // Always a little later than is looked for, and still soon.
            for _ in 0..10_000 {
                all += step;
                if gap.looks() {
                    vain += LOOK_MAX;
                    gap.looked(false);
                } else {
                    gap.slept(step);
                }
            }
            assert!(!vain.is_zero() && vain * 25 <= all, "{vain:?} of {all:?}");
        }
    }

    #[test]
    fn one_processor_is_left_to_the_program() {
        let mut gap = Gap::new(1);
        gap.slept(NEAR);
        assert!(!gap.looks());
    }
}
