//! Going on with what is woken on the thread that has woken it.
//!
//! A task that is woken goes to a worker of the runtime, which has to be woken first. Where the rest is short (an answer after a sync, as a rule)
//! that takes longer than the rest itself, so a thread that has nothing better to do offers to go on with it.

use std::cell::Cell;

thread_local! {
    static OFFERED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `wake`, which wakes others. Those that ask `is_offered` may go on right here meanwhile, as long as they do not block.
pub(crate) fn offer(wake: impl FnOnce()) {
    /// Also if what is woken panics.
    struct Offer;
    impl Drop for Offer {
        fn drop(&mut self) {
            OFFERED.set(false);
        }
    }
    OFFERED.set(true);
    let offer = Offer;
    wake();
    drop(offer);
}

/// Whether this thread offers to go on with what it wakes. Once for each: what goes on here and wakes others leaves these to the runtime.
pub(crate) fn is_offered() -> bool {
    OFFERED.replace(false)
}
