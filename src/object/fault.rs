//! A store that fails as it is told, around any other: for tests of everything above the object store.

use crate::object::{ObjectError, ObjectMeta, ObjectStore};
use crate::types::BoxFuture;
use bytes::Bytes;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;

/// A request of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// `put`
    Put,
    /// `get`
    Get,
    /// `head`
    Head,
    /// `delete`
    Delete,
    /// `list`
    List,
}

const REQUESTS: usize = 5;

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing happens, and this is the answer.
    Fail(ObjectError),
    /// It happens, and this is the answer nevertheless.
    FailAfter(ObjectError),
    /// It takes this long.
    Slow(Duration),
    /// It waits until the test adds a permit.
    Hold(Arc<Semaphore>),
    /// A get answers only the first n bytes.
    Short(usize),
}

/// When a fault happens.
struct Rule {
    request: Request,
    /// Requests of the kind to let pass first.
    skip: u32,
    /// Requests to hit; then the rule is used up.
    times: u32,
    fault: Fault,
}

/// Wraps a store. Without rules it only counts.
pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    calls: [u64; REQUESTS],
}

impl FaultStore {
    /// A store that works, until told otherwise.
    pub fn new(inner: Arc<dyn ObjectStore>) -> FaultStore {
        FaultStore { inner, state: Mutex::default() }
    }

    /// Lets `skip` requests of this kind pass, then hits the next `times` of them.
    pub fn inject(&self, request: Request, skip: u32, times: u32, fault: Fault) {
        self.lock().rules.push(Rule { request, skip, times, fault });
    }

    /// Hits every request of this kind from now on.
    pub fn always(&self, request: Request, fault: Fault) {
        self.inject(request, 0, u32::MAX, fault);
    }

    /// Everything works again.
    pub fn heal(&self) {
        self.lock().rules.clear();
    }

    /// Requests of this kind so far, failed ones included.
    pub fn calls(&self, request: Request) -> u64 {
        self.lock().calls[request as usize]
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("never poisoned: no code under it panics")
    }

    /// Counts the request; the faults that hit it.
    fn next(&self, request: Request) -> Vec<Fault> {
        let mut state = self.lock();
        state.calls[request as usize] += 1;
        let mut hit = Vec::new();
        for rule in state.rules.iter_mut().filter(|rule| rule.request == request) {
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if rule.times > 0 {
                // `always` is a number no test reaches.
                rule.times -= 1;
                hit.push(rule.fault.clone());
            }
        }
        state.rules.retain(|rule| rule.times > 0);
        hit
    }

    /// What happens before the request reaches the store.
    async fn before(faults: &[Fault]) -> Result<(), ObjectError> {
        for fault in faults {
            match fault {
                Fault::Fail(error) => return Err(error.clone()),
                Fault::Slow(time) => tokio::time::sleep(*time).await,
                Fault::Hold(gate) => gate.acquire().await.map_err(|_| ObjectError::Retry("the gate is closed".into()))?.forget(),
                Fault::FailAfter(_) | Fault::Short(_) => {}
            }
        }
        Ok(())
    }

    async fn around<T>(&self, request: Request, inner: impl Future<Output = Result<T, ObjectError>>) -> Result<T, ObjectError> {
        let faults = self.next(request);
        Self::before(&faults).await?;
        let result = inner.await;
        Self::after(&faults, result)
    }

    fn after<T>(faults: &[Fault], result: Result<T, ObjectError>) -> Result<T, ObjectError> {
        match faults.iter().find_map(|fault| if let Fault::FailAfter(error) = fault { Some(error) } else { None }) {
            Some(error) => Err(error.clone()),
            None => result,
        }
    }
}

impl ObjectStore for FaultStore {
    fn put<'a>(&'a self, key: &'a str, body: Bytes) -> BoxFuture<'a, Result<(), ObjectError>> {
        Box::pin(self.around(Request::Put, self.inner.put(key, body)))
    }

    fn get<'a>(&'a self, key: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Bytes, ObjectError>> {
        Box::pin(async move {
            let faults = self.next(Request::Get);
            Self::before(&faults).await?;
            let bytes = Self::after(&faults, self.inner.get(key, range).await)?;
            let short = faults.iter().find_map(|fault| if let Fault::Short(len) = fault { Some(*len) } else { None });
            Ok(bytes.slice(..short.unwrap_or(bytes.len()).min(bytes.len())))
        })
    }

    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<ObjectMeta, ObjectError>> {
        Box::pin(self.around(Request::Head, self.inner.head(key)))
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), ObjectError>> {
        Box::pin(self.around(Request::Delete, self.inner.delete(key)))
    }

    fn list<'a>(&'a self, prefix: &'a str, after: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<ObjectMeta>, ObjectError>> {
        Box::pin(self.around(Request::List, self.inner.list(prefix, after, limit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::memory::MemoryStore;

    fn store() -> FaultStore {
        FaultStore::new(Arc::new(MemoryStore::new()))
    }

    #[tokio::test]
    async fn conforms_while_nothing_fails() {
        crate::object::conformance::run(&store()).await;
    }

    #[tokio::test]
    async fn the_nth_put_fails() {
        let store = store();
        let failed = ObjectError::Retry("no".into());
        store.inject(Request::Put, 1, 1, Fault::Fail(failed.clone()));
        store.inject(Request::Put, 2, 1, Fault::FailAfter(failed.clone()));
        let mut answers = Vec::new();
        for key in ["a", "b", "c", "d"] {
            answers.push(store.put(key, Bytes::from_static(b"0123")).await.is_ok());
        }
        assert_eq!(answers, [true, false, false, true]);
        assert_eq!(store.calls(Request::Put), 4);
        assert_eq!(store.head("b").await, Err(ObjectError::Missing), "failed, and did not happen");
        assert!(store.head("c").await.is_ok(), "failed, and happened");
        store.always(Request::Get, Fault::Short(2));
        assert_eq!(store.get("a", None).await.as_deref(), Ok(&b"01"[..]));
        store.heal();
        assert_eq!(store.get("a", None).await.as_deref(), Ok(&b"0123"[..]));
    }
}
