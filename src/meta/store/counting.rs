//! A store as if it were behind a network: every call is counted and may be delayed. For tests of how many round trips things take, and of what
//! happens when others come in between.

use crate::meta::store::{Commit, Cursor, Guard, Query, ScanPage, ScanRange, Sharing, Store, StoreError, Value, Write};
use crate::types::{BoxFuture, SliceId};
use bytes::Bytes;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Decorates a store; each call is one exchange with it.
pub struct CountingStore {
    inner: Arc<dyn Store>,
    /// On the way there, and again on the way back.
    delay: Duration,
    calls: Mutex<Vec<&'static str>>,
}

impl CountingStore {
    /// Every answer takes twice `delay`.
    pub fn new(inner: Arc<dyn Store>, delay: Duration) -> CountingStore {
        CountingStore { inner, delay, calls: Mutex::default() }
    }

    /// The calls since this was last asked, in order and separated by spaces.
    pub fn take(&self) -> String {
        std::mem::take(&mut *self.calls.lock().expect("never poisoned: no code under it panics")).join(" ")
    }

    async fn call<T>(&self, name: &'static str, answer: impl Future<Output = T>) -> T {
        self.calls.lock().expect("never poisoned: no code under it panics").push(name);
        if self.delay.is_zero() {
            return answer.await;
        }
        tokio::time::sleep(self.delay).await;
        let answer = answer.await;
        tokio::time::sleep(self.delay).await;
        answer
    }
}

impl Store for CountingStore {
    fn read<'a>(&'a self, queries: &'a [Query]) -> BoxFuture<'a, Result<Vec<Value>, StoreError>> {
        Box::pin(self.call("read", self.inner.read(queries)))
    }

    fn commit<'a>(&'a self, guards: &'a [Guard], writes: &'a [Write], reads: &'a [Query]) -> BoxFuture<'a, Result<Commit, StoreError>> {
        Box::pin(async move {
            let commit = self.call("commit", self.inner.commit(guards, writes, reads)).await;
            if matches!(commit, Ok(Commit::Conflict(_)))
                && let Some(last) = self.calls.lock().expect("never poisoned: no code under it panics").last_mut()
                && self.delay.is_zero()
            {
                *last = "conflict";
            }
            commit
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.call("sync", self.inner.sync()))
    }

    fn scan<'a>(&'a self, range: &'a ScanRange, cursor: Cursor, limit: u32) -> BoxFuture<'a, Result<ScanPage, StoreError>> {
        Box::pin(self.call("scan", self.inner.scan(range, cursor, limit)))
    }

    fn frame(&self, id: SliceId) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>> {
        Box::pin(self.call("frame", self.inner.frame(id)))
    }

    fn shared(&self) -> bool {
        true
    }

    fn sharing(&self) -> Sharing {
        Sharing::Server
    }

    fn claim_session(&self, _sid: u64) -> Result<bool, StoreError> {
        Ok(true)
    }

    fn session_alive(&self, _sid: u64) -> Option<bool> {
        None
    }
}
