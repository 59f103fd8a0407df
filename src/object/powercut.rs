//! A directory of objects that can lose its power: a model of what a local disk keeps.
//!
//! A put that has returned is durable. One that has not is absent or there, whole; never partly, because it is renamed into place. A
//! deletion is not synced and may be undone. With `Unsynced::Torn` a put that has not returned may also leave an object with a part of
//! its bytes: no file store of ours does that, but nothing above it may depend on objects whose put has not returned.

use crate::env::Random;
use crate::object::memory::{MemoryStore, cut};
use crate::object::{ObjectError, ObjectMeta, ObjectStore};
use crate::types::BoxFuture;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

/// What a power cut makes of a put that has not returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsynced {
    /// Absent or whole.
    Whole,
    /// Absent, whole, or the first bytes of it.
    Torn,
}

/// The model. After the cut every request of it fails.
#[derive(Default)]
pub struct PowerCutDir {
    disk: Mutex<Disk>,
}

#[derive(Default)]
struct Disk {
    off: bool,
    objects: BTreeMap<String, Bytes>,
    /// Deleted, and nobody has synced that.
    undeletable: BTreeMap<String, Bytes>,
    /// Begun and not returned, by number. Those whose caller gave up stay for good: the thread goes on without it.
    in_flight: BTreeMap<u64, (String, Bytes)>,
    next: u64,
}

impl PowerCutDir {
    /// An empty directory.
    pub fn new() -> PowerCutDir {
        PowerCutDir::default()
    }

    /// Cuts the power: what a later mount finds.
    pub fn cut(&self, random: &dyn Random, unsynced: Unsynced) -> MemoryStore {
        let mut disk = self.lock();
        disk.off = true;
        let mut objects = disk.objects.clone();
        for (key, body) in &disk.undeletable {
            if random.u64().is_multiple_of(2) {
                objects.entry(key.clone()).or_insert_with(|| body.clone());
            }
        }
        for (key, body) in disk.in_flight.values() {
            match (random.u64() % 3, unsynced) {
                (0, _) => {}
                (1, Unsynced::Torn) => {
                    objects.insert(key.clone(), body.slice(..(random.u64() % (body.len() as u64 + 1)) as usize));
                }
                _ => {
                    objects.insert(key.clone(), body.clone());
                }
            }
        }
        MemoryStore::from_objects(objects)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Disk> {
        self.disk.lock().expect("never poisoned: no code under it panics")
    }

    fn powered(&self) -> Result<std::sync::MutexGuard<'_, Disk>, ObjectError> {
        let disk = self.lock();
        if disk.off { Err(ObjectError::Denied("the power is off".into())) } else { Ok(disk) }
    }
}

impl ObjectStore for PowerCutDir {
    fn put<'a>(&'a self, key: &'a str, body: Bytes) -> BoxFuture<'a, Result<(), ObjectError>> {
        Box::pin(async move {
            let number = {
                let mut disk = self.powered()?;
                disk.next += 1;
                let number = disk.next;
                disk.in_flight.insert(number, (key.into(), body.clone()));
                number
            };
            // Others run, and the power may go, while the disk writes.
            tokio::task::yield_now().await;
            let mut disk = self.powered()?;
            disk.in_flight.remove(&number);
            // The sync of the directory covers earlier deletions of this key, too.
            disk.undeletable.remove(key);
            disk.objects.insert(key.into(), body);
            Ok(())
        })
    }

    fn get<'a>(&'a self, key: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Bytes, ObjectError>> {
        Box::pin(async move {
            let object = self.powered()?.objects.get(key).cloned().ok_or(ObjectError::Missing)?;
            cut(&object, range)
        })
    }

    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<ObjectMeta, ObjectError>> {
        Box::pin(async move {
            let size = self.powered()?.objects.get(key).map(|object| object.len() as u64).ok_or(ObjectError::Missing)?;
            Ok(ObjectMeta { key: key.into(), size, modified: 0 })
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), ObjectError>> {
        Box::pin(async move {
            let mut disk = self.powered()?;
            if let Some(body) = disk.objects.remove(key) {
                disk.undeletable.insert(key.into(), body);
            }
            Ok(())
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<ObjectMeta>, ObjectError>> {
        Box::pin(async move {
            let objects = self.powered()?.objects.clone();
            MemoryStore::from_objects(objects).list(prefix, after, limit).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Counts up, so that every outcome is met.
    struct Counting(AtomicU64);

    impl Random for Counting {
        fn fill(&self, bytes: &mut [u8]) {
            let next = self.0.fetch_add(1, Ordering::Relaxed).to_ne_bytes();
            bytes.iter_mut().zip(next).for_each(|(byte, value)| *byte = value);
        }
    }

    #[tokio::test]
    async fn conforms_while_there_is_power() {
        crate::object::conformance::run(&PowerCutDir::new()).await;
    }

    #[tokio::test]
    async fn what_a_cut_leaves() {
        let disk = PowerCutDir::new();
        disk.put("kept", Bytes::from_static(b"1")).await.unwrap();
        disk.put("deleted", Bytes::from_static(b"2")).await.unwrap();
        disk.delete("deleted").await.unwrap();
        let mut unfinished = disk.put("unfinished", Bytes::from_static(b"0123456789"));
        let waker = std::task::Waker::noop();
        assert!(unfinished.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
        let random = Counting(AtomicU64::new(0));
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..24 {
            let mode = if round < 12 { Unsynced::Whole } else { Unsynced::Torn };
            let after = disk.cut(&random, mode).objects();
            assert_eq!(after["kept"], "1");
            let unfinished = after.get("unfinished").map(|body| body.len());
            assert!(mode == Unsynced::Torn || unfinished.is_none_or(|len| len == 10));
            seen.insert((after.contains_key("deleted"), unfinished.map(|len| len == 10)));
        }
        assert!(seen.contains(&(true, None)) || seen.contains(&(false, None)), "absent");
        assert!(seen.iter().any(|(_, whole)| *whole == Some(false)), "torn");
        assert!(seen.iter().any(|(deleted, _)| *deleted) && seen.iter().any(|(deleted, _)| !*deleted), "deletions may be undone");
        assert!(unfinished.await.is_err() && disk.get("kept", None).await.is_err(), "the power is off");
    }
}
