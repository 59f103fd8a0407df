//! `Budget`: bytes of memory that several kinds of use share. Each has a part of its own, which no other can take; the rest goes to who needs it.
//!
//! The parts of their own are what keeps them from waiting for each other: data to be written wait in memory for uploads, and an upload may need
//! memory itself.

use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Semaphore;

/// The bytes that belong to nobody for good.
pub struct Budget(Arc<Semaphore>);

impl Budget {
    /// A budget of which `bytes` float.
    pub fn new(bytes: usize) -> Budget {
        Budget(Arc::new(Semaphore::new(bytes.min(u32::MAX as usize))))
    }

    /// A use with `bytes` of its own beside those that float.
    pub fn share(&self, bytes: usize) -> Share {
        let own = bytes.min(u32::MAX as usize);
        let total = own.saturating_add(self.0.available_permits());
        Share {
            own: Semaphore::new(own),
            own_bytes: own,
            floating: self.0.clone(),
            borrowed: Mutex::new(0),
            whole: own.max(total - own),
            total,
        }
    }
}

/// One use of a budget.
pub struct Share {
    own: Semaphore,
    floating: Arc<Semaphore>,
    /// Bytes of those that float which this use has.
    borrowed: Mutex<usize>,
    own_bytes: usize,
    /// The most that is taken at once.
    whole: usize,
    total: usize,
}

impl Share {
    /// A use that shares with no other.
    pub fn alone(bytes: usize) -> Share {
        Budget::new(0).share(bytes)
    }

    /// Bytes this use can have if no other has any.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Bytes that can be taken now.
    pub fn free(&self) -> usize {
        self.own.available_permits() + self.floating.available_permits()
    }

    /// Bytes this use has.
    pub fn held(&self) -> usize {
        let borrowed = *self.borrowed();
        self.own_bytes.saturating_sub(self.own.available_permits()) + borrowed
    }

    /// The most that is taken at once: larger requests get this much and come alone, or nearly.
    pub fn at_most(&self, bytes: usize) -> usize {
        bytes.min(self.whole)
    }

    /// Takes bytes, no more than `at_most`, if they are free and nobody waits. They go back by `give`.
    pub fn try_take(&self, bytes: usize) -> bool {
        let permits = self.permits(bytes);
        if let Ok(own) = self.own.try_acquire_many(permits) {
            own.forget();
            return true;
        }
        let Ok(floating) = self.floating.try_acquire_many(permits) else { return false };
        floating.forget();
        *self.borrowed() += permits as usize;
        true
    }

    /// Waits in line for bytes, no more than `at_most`. Dropping the future leaves the line.
    pub async fn take(&self, bytes: usize) {
        let permits = self.permits(bytes);
        tokio::select! {
            biased;
            own = self.own.acquire_many(permits) => own.expect("never closed").forget(),
            floating = self.floating.acquire_many(permits) => {
                floating.expect("never closed").forget();
                *self.borrowed() += permits as usize;
            }
        }
    }

    /// Waits for `at_most` bytes of these, which go back when the answer is dropped.
    pub async fn hold(&self, bytes: usize) -> Held<'_> {
        let bytes = self.at_most(bytes);
        self.take(bytes).await;
        Held { share: self, bytes }
    }

    /// Gives bytes back; what was borrowed first.
    pub fn give(&self, bytes: usize) {
        let lent = {
            let mut borrowed = self.borrowed();
            let lent = bytes.min(*borrowed);
            *borrowed -= lent;
            lent
        };
        if lent > 0 {
            self.floating.add_permits(lent);
        }
        if bytes > lent {
            self.own.add_permits(bytes - lent);
        }
    }

    fn permits(&self, bytes: usize) -> u32 {
        assert!(bytes <= self.whole, "more than there ever is at once would be waited for in vain");
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    fn borrowed(&self) -> MutexGuard<'_, usize> {
        self.borrowed.lock().expect("never poisoned: no code under it panics")
    }
}

/// Bytes of a share that go back by themselves.
pub struct Held<'a> {
    share: &'a Share,
    bytes: usize,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.share.give(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    async fn waits(share: &Share, bytes: usize) -> bool {
        timeout(Duration::from_millis(20), share.take(bytes)).await.is_err()
    }

    #[tokio::test]
    async fn what_floats_goes_to_who_needs_it() {
        let budget = Budget::new(100);
        let (writing, reading) = (budget.share(30), budget.share(20));
        assert_eq!((writing.total(), reading.total(), writing.free()), (130, 120, 130));
        assert!(writing.try_take(30) && writing.try_take(60) && writing.try_take(40), "all of it");
        assert!(!writing.try_take(1) && waits(&writing, 1).await);
        // The part of its own is left to the other.
        assert!(reading.try_take(20) && !reading.try_take(1));
        reading.give(20);
        // What is given back is what was borrowed.
        writing.give(50);
        assert_eq!((writing.free(), reading.free(), writing.held()), (50, 70, 80));
        assert!(reading.try_take(45) && waits(&writing, 10).await);
        reading.give(45);
        writing.give(80);
        assert_eq!((writing.free(), reading.free()), (130, 120));
    }

    #[tokio::test]
    async fn whoever_waits_gets_the_first_that_is_free() {
        let budget = Budget::new(10);
        let (writing, reading) = (budget.share(10), budget.share(10));
        assert!(writing.try_take(10) && writing.try_take(10) && reading.try_take(10));
        let (waited, ()) = tokio::join!(timeout(Duration::from_secs(10), reading.take(8)), async {
            tokio::task::yield_now().await;
            writing.give(8);
        });
        assert!(waited.is_ok());
        // Who waits for what floats does not hold up those with a part of their own.
        let held = {
            let mut stuck = std::pin::pin!(writing.take(10));
            assert!(timeout(Duration::from_millis(5), stuck.as_mut()).await.is_err());
            reading.give(18);
            timeout(Duration::from_secs(10), reading.hold(5)).await.expect("free")
        };
        drop(held);
        writing.give(12);
        assert_eq!((writing.free(), reading.free()), (20, 20));
    }

    #[tokio::test]
    async fn more_than_all_comes_alone() {
        let share = Share::alone(10);
        let large = share.hold(1000).await;
        assert!(waits(&share, 1).await);
        drop(large);
        assert_eq!(share.free(), 10);
    }
}
