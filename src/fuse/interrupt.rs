//! The requests that have no answer yet, by the kernel's number, so that INTERRUPT finds what it means.
//!
//! A request is entered before it is looked at and removed after its answer was written. An INTERRUPT that does not find its request has
//! overtaken it on another thread, or comes after the answer. It is answered EAGAIN: the kernel sends it again in the first case and forgets
//! it in the second. So none is lost (a lost one leaves a process that cannot be killed) and nothing needs to be remembered.

use crate::types::Cancel;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// The unanswered requests of a connection.
#[derive(Default)]
pub(crate) struct Requests {
    live: Mutex<HashMap<u64, Cancel>>,
    /// Somebody waits for the last of them. To tell nobody costs a call of the system on each request.
    drained: AtomicBool,
    emptied: Condvar,
}

impl Requests {
    /// Enters a request; the result is how it is called off.
    pub(crate) fn enter(&self, unique: u64) -> Cancel {
        let cancel = Cancel::default();
        self.live().insert(unique, cancel.clone());
        cancel
    }

    /// Removes a request that was answered.
    pub(crate) fn leave(&self, unique: u64) {
        let mut live = self.live();
        live.remove(&unique);
        if live.is_empty() && self.drained.load(Ordering::Relaxed) {
            self.emptied.notify_all();
        }
    }

    /// Whether all are answered.
    pub(crate) fn is_empty(&self) -> bool {
        self.live().is_empty()
    }

    /// Calls a request off; false if it is not (or no longer) here.
    pub(crate) fn interrupt(&self, unique: u64) -> bool {
        let cancel = self.live().get(&unique).cloned();
        // Outside the lock: it wakes a task.
        cancel.inspect(Cancel::cancel).is_some()
    }

    /// Calls all requests off.
    pub(crate) fn interrupt_all(&self) {
        let all: Vec<Cancel> = self.live().values().cloned().collect();
        all.iter().for_each(Cancel::cancel);
    }

    /// Waits until all requests are answered, for at most `limit`; the number of those that are not.
    pub(crate) fn drain(&self, limit: Duration) -> usize {
        let deadline = crate::env::instant() + limit;
        let mut live = self.live();
        // Set and read under the lock.
        self.drained.store(true, Ordering::Relaxed);
        while !live.is_empty() {
            let Some(left) = deadline.checked_duration_since(crate::env::instant()) else { break };
            (live, _) = self.emptied.wait_timeout(live, left).expect("nobody panics holding this lock");
        }
        live.len()
    }

    fn live(&self) -> MutexGuard<'_, HashMap<u64, Cancel>> {
        self.live.lock().expect("nobody panics holding this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_reaches_its_request_and_no_other() {
        let requests = Requests::default();
        assert!(!requests.interrupt(2), "overtook its request: to be sent again");
        let (first, second) = (requests.enter(2), requests.enter(4));
        assert!(requests.interrupt(2));
        assert!(first.is_cancelled() && !second.is_cancelled());
        requests.leave(2);
        assert!(!requests.interrupt(2), "answered already");
        requests.interrupt_all();
        assert!(second.is_cancelled());
        assert_eq!(requests.drain(Duration::ZERO), 1);
        requests.leave(4);
        assert_eq!(requests.drain(Duration::ZERO), 0);
    }

    #[test]
    fn draining_ends_with_the_last_answer() {
        let requests = Requests::default();
        requests.enter(6);
        std::thread::scope(|scope| {
            scope.spawn(|| requests.leave(6));
            assert_eq!(requests.drain(Duration::from_secs(60)), 0);
        });
    }
}
