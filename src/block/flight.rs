//! Single flight: requests for one block that come together share one fetch.

use crate::block::BlockError;
use crate::types::BlockId;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use tokio::sync::OnceCell;

type Outcome = Result<Bytes, BlockError>;
type Cell = OnceCell<Outcome>;

/// The fetches under way.
#[derive(Default)]
pub(super) struct Flights {
    cells: Mutex<HashMap<BlockId, Weak<Cell>>>,
}

impl Flights {
    /// The outcome of the fetch of `block` that is under way, or of `fetch`. Whoever runs it may give up (its request was interrupted):
    /// then the next of those that wait runs its own.
    pub(super) async fn join(&self, block: BlockId, fetch: impl Future<Output = Outcome>) -> Outcome {
        let seat = Seat::take(self, block);
        seat.cell().get_or_init(|| fetch).await.clone()
    }

    /// Whether somebody fetches the block right now.
    pub(super) fn under_way(&self, block: &BlockId) -> bool {
        self.lock().contains_key(block)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<BlockId, Weak<Cell>>> {
        self.cells.lock().expect("never poisoned: no code under it panics")
    }
}

/// One request's share in a flight.
struct Seat<'a> {
    flights: &'a Flights,
    block: BlockId,
    /// `None` only while it is dropped.
    cell: Option<Arc<Cell>>,
}

impl<'a> Seat<'a> {
    fn take(flights: &'a Flights, block: BlockId) -> Seat<'a> {
        let mut cells = flights.lock();
        let entry = cells.entry(block).or_default();
        let cell = entry.upgrade().unwrap_or_else(|| {
            let cell = Arc::new(Cell::new());
            *entry = Arc::downgrade(&cell);
            cell
        });
        drop(cells);
        Seat { flights, block, cell: Some(cell) }
    }

    fn cell(&self) -> &Cell {
        self.cell.as_ref().expect("taken only by drop")
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        // Given back under the lock, so that exactly the last one sees itself alone and removes the entry.
        let mut cells = self.flights.lock();
        if let Some(cell) = self.cell.take()
            && Arc::strong_count(&cell) == 1
        {
            cells.remove(&self.block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::Semaphore;

    const BLOCK: BlockId = BlockId { slice: 1, index: 0, len: 3 };

    #[tokio::test]
    async fn one_fetch_for_many_even_if_the_first_gives_up() {
        let flights = Arc::new(Flights::default());
        let gate = Arc::new(Semaphore::new(0));
        let fetches = Arc::new(AtomicU32::new(0));
        let request = || {
            let (flights, gate, fetches) = (Arc::clone(&flights), Arc::clone(&gate), Arc::clone(&fetches));
            tokio::spawn(async move {
                let fetch = async {
                    fetches.fetch_add(1, Ordering::SeqCst);
                    gate.acquire().await.expect("open").forget();
                    Ok(Bytes::from_static(b"abc"))
                };
                flights.join(BLOCK, fetch).await
            })
        };
        let first = request();
        while fetches.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..8).map(|_| request()).collect();
        tokio::task::yield_now().await;
        assert!(flights.under_way(&BLOCK));
        first.abort();
        assert!(first.await.is_err());
        gate.add_permits(1);
        for other in others {
            assert_eq!(other.await.unwrap(), Ok(Bytes::from_static(b"abc")));
        }
        assert_eq!(fetches.load(Ordering::SeqCst), 2, "the one that gave up, and one for all others");
        assert!(!flights.under_way(&BLOCK), "nothing is left behind");
    }
}
