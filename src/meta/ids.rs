//! `Ids`: numbers of one counter of the store, taken in batches. Behind a network the next batch is fetched before this one is used up, so that
//! nobody waits for it.

use crate::meta::driver::errno_of;
use crate::meta::store::{Commit, Key, Store, Value, Write};
use crate::types::Errno;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::runtime::Handle;

/// The next batch is fetched when this part (one n-th) of a batch is left: at a thousand files a second there is a quarter of a second
/// for the round trip.
const REFILL_SHARE: u64 = 4;

/// Numbers nobody else has.
pub(crate) struct Ids {
    store: Arc<dyn Store>,
    counter: Key,
    /// Numbers taken at once.
    batch: u64,
    /// The least number ever handed out.
    least: u64,
    /// Whether to fetch before it is needed.
    ahead: bool,
    stock: Mutex<Stock>,
    /// Held while a batch is fetched by those who have to wait for it.
    fetching: tokio::sync::Mutex<()>,
    refilling: AtomicBool,
}

/// What is left of the batch in use, and the one that was fetched ahead.
#[derive(Default)]
struct Stock {
    now: Range<u64>,
    next: Range<u64>,
    /// How often the store had lost something when these were fetched.
    losses: u64,
}

impl Stock {
    /// Numbers from before a loss may have been given out again.
    fn drop_outdated(&mut self, losses: u64) {
        if self.losses != losses {
            *self = Stock { losses, ..Stock::default() };
        }
    }

    fn take(&mut self, losses: u64) -> Option<u64> {
        self.drop_outdated(losses);
        if self.now.is_empty() {
            self.now = std::mem::take(&mut self.next);
        }
        self.now.next()
    }

    /// What does not fit is left unused: numbers are plenty.
    fn add(&mut self, batch: Range<u64>, losses: u64) {
        self.drop_outdated(losses);
        if self.now.is_empty() {
            self.now = batch;
        } else if self.next.is_empty() {
            self.next = batch;
        }
    }

    fn left(&self) -> u64 {
        (self.now.end - self.now.start) + (self.next.end - self.next.start)
    }
}

impl Ids {
    /// Numbers of `counter` from `least` on, in batches of `batch`.
    pub fn new(store: Arc<dyn Store>, counter: Key, batch: u64, least: u64, ahead: bool) -> Ids {
        Ids {
            store,
            counter,
            batch,
            least,
            ahead,
            stock: Mutex::default(),
            fetching: Default::default(),
            refilling: AtomicBool::new(false),
        }
    }

    /// A number that was never handed out.
    pub async fn next(self: &Arc<Ids>) -> Result<u64, Errno> {
        loop {
            let taken = {
                let mut stock = self.stock();
                stock.take(self.store.losses()).map(|id| (id, stock.left()))
            };
            if let Some((id, left)) = taken {
                if left <= self.batch / REFILL_SHARE {
                    self.refill();
                }
                return Ok(id);
            }
            let _fetching = self.fetching.lock().await;
            // Whoever held it before may have fetched for all.
            if self.stock().left() == 0 {
                self.fetch().await?;
            }
        }
    }

    /// Fetches a batch in the background, one at a time.
    pub fn refill(self: &Arc<Ids>) {
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.ahead || self.refilling.swap(true, Ordering::AcqRel) {
            return;
        }
        let ids = self.clone();
        runtime.spawn(async move {
            let _fetching = ids.fetching.lock().await;
            if ids.stock().left() <= ids.batch / REFILL_SHARE {
                // After a failure, which is logged, the next taker tries again.
                let _ = ids.fetch().await;
            }
            ids.refilling.store(false, Ordering::Release);
        });
    }

    /// Adds a batch to the stock, unless the store has lost something meanwhile: then nobody knows from which counter it is.
    async fn fetch(&self) -> Result<(), Errno> {
        let losses = self.store.losses();
        // Bounded above by the batches, so it fits.
        let write = Write::IncrBy(self.counter.clone(), self.batch as i64);
        let commit = self.store.commit(&[], &[write], &[]).await.map_err(|e| errno_of("allocate ids", &e))?;
        let Commit::Done { replies, .. } = commit else { return Err(Errno::IO) };
        let [Value::Int(last)] = replies[..] else { return Err(Errno::IO) };
        // A counter below what was just added to it was negative: damage.
        let last = u64::try_from(last).map_err(|_| Errno::IO)?;
        let first = (last + 1).checked_sub(self.batch).ok_or(Errno::IO)?;
        if self.store.losses() == losses {
            self.stock().add(first.max(self.least)..last + 1, losses);
        }
        Ok(())
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().expect("never poisoned: no code under it panics")
    }
}
