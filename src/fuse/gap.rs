//! Looking for the next request for a moment instead of sleeping at once.
//!
//! A process that works on many small files sends its next request some microseconds after the answer to the last. To go to sleep and to be
//! woken on another processor costs more than that everywhere, and 30 to 100 us on virtual machines, where an idle processor is given back to
//! the host: more than most answers take. So a loop thread whose last request came soon looks for the next one for a moment.
//!
//! What it costs is bounded: one look in vain, then none for the next requests. A mount that waits for its network, or for nobody, looks never.

use std::time::Duration;

/// How long the next request is looked for: until the program is awake, where that takes long, and has made its next call. With 50 us most looks
/// are in vain on a virtual machine, and more than 100 us finds hardly more.
pub(crate) const LOOK_MAX: Duration = Duration::from_micros(100);
/// A request that was slept for came soon if it was here within this time: the above, and being woken.
const SOON: Duration = Duration::from_micros(200);
/// Requests that are slept for after a look in vain, so that a program with longer steps costs at most a few per cent of its time.
const REST: u32 = 16;

/// What one loop thread has seen of the time between an answer and the next request.
#[derive(Debug, Default)]
pub(crate) struct Gap {
    soon: bool,
    rest: u32,
}

impl Gap {
    /// Whether to look before sleeping.
    pub(crate) fn looks(&self) -> bool {
        self.soon && self.rest == 0
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
        self.rest = self.rest.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAR: Duration = Duration::from_micros(20);
    const FAR: Duration = Duration::from_millis(1);

    #[test]
    fn requests_that_follow_each_other_are_looked_for() {
        let mut gap = Gap::default();
        assert!(!gap.looks(), "nothing is known");
        gap.slept(NEAR);
        for _ in 0..100 {
            assert!(gap.looks());
            gap.looked(true);
        }
        let mut gap = Gap::default();
        for _ in 0..100 {
            gap.slept(FAR);
            assert!(!gap.looks(), "a mount that waits does not look");
        }
    }

    #[test]
    fn looks_in_vain_are_rare() {
        let mut gap = Gap::default();
        let mut vain = 0;
        for _ in 0..1700 {
            // Always a little later than is looked for, and still soon.
            if gap.looks() {
                vain += 1;
                gap.looked(false);
            } else {
                gap.slept(LOOK_MAX + NEAR);
            }
        }
        assert_eq!(vain, 100);
    }
}
