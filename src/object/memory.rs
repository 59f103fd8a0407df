//! Objects in memory: for tests, simulation and throw-away volumes.

use crate::object::{ObjectError, ObjectMeta, ObjectStore};
use crate::types::BoxFuture;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

/// A bucket that lives as long as the value. Everything in it has the same time, 0 unless it is set.
#[derive(Default)]
pub struct MemoryStore {
    objects: Mutex<BTreeMap<String, Bytes>>,
    modified: AtomicI64,
}

impl MemoryStore {
    /// An empty bucket.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// A bucket of these objects.
    pub fn from_objects(objects: BTreeMap<String, Bytes>) -> MemoryStore {
        MemoryStore { objects: Mutex::new(objects), ..MemoryStore::default() }
    }

    /// Sets when everything in it was changed, now and later, in seconds since 1970.
    pub fn set_modified(&self, sec: i64) {
        self.modified.store(sec, Ordering::Relaxed);
    }

    /// A copy of everything in it.
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.objects.lock().expect("never poisoned: no code under it panics")
    }
}

/// The part of an object a range asks for, by the rules of `ObjectStore::get`.
pub(crate) fn cut(object: &Bytes, range: Option<Range<u64>>) -> Result<Bytes, ObjectError> {
    let Some(range) = range else { return Ok(object.clone()) };
    let range = clip(object.len() as u64, range)?;
    Ok(object.slice(range.start as usize..range.end as usize))
}

/// The bytes of `range` that an object of `size` bytes has. An empty range is fine; one that begins at or past the end is an error.
pub(crate) fn clip(size: u64, range: Range<u64>) -> Result<Range<u64>, ObjectError> {
    if range.is_empty() {
        return Ok(0..0);
    }
    if range.start >= size {
        return Err(ObjectError::Invalid(format!("bytes {}..{} of an object of {size}", range.start, range.end)));
    }
    Ok(range.start..range.end.min(size))
}

impl ObjectStore for MemoryStore {
    fn put<'a>(&'a self, key: &'a str, body: Bytes) -> BoxFuture<'a, Result<(), ObjectError>> {
        Box::pin(async move {
            self.lock().insert(key.into(), body);
            Ok(())
        })
    }

    fn get<'a>(&'a self, key: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Bytes, ObjectError>> {
        Box::pin(async move {
            let object = self.lock().get(key).cloned().ok_or(ObjectError::Missing)?;
            cut(&object, range)
        })
    }

    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<ObjectMeta, ObjectError>> {
        Box::pin(async move {
            let size = self.lock().get(key).map(|object| object.len() as u64).ok_or(ObjectError::Missing)?;
            Ok(ObjectMeta { key: key.into(), size, modified: self.modified.load(Ordering::Relaxed) })
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), ObjectError>> {
        Box::pin(async move {
            self.lock().remove(key);
            Ok(())
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<ObjectMeta>, ObjectError>> {
        Box::pin(async move {
            // The first key wanted is above `after` and not below `prefix`.
            let from = if after >= prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
            let modified = self.modified.load(Ordering::Relaxed);
            let objects = self.lock();
            let found = objects.range::<str, _>((from, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(prefix)).take(limit);
            Ok(found.map(|(key, object)| ObjectMeta { key: key.clone(), size: object.len() as u64, modified }).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn conforms() {
        crate::object::conformance::run(&MemoryStore::new()).await;
    }
}
