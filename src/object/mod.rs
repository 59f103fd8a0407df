//! `ObjectStore`: put, get, head, delete, list of immutable objects by key. Knows no blocks.

#[doc(hidden)]
pub mod conformance;
mod dirsync;
#[doc(hidden)]
pub mod fault;
pub mod file;
pub mod memory;
#[doc(hidden)]
pub mod powercut;
pub mod s3;
pub mod sharded;

use crate::types::BoxFuture;
use bytes::Bytes;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Why an object request failed; each variant is something a caller can act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectError {
    /// There is no such object.
    Missing,
    /// The store is full or over quota.
    Full(String),
    /// Not allowed, now or ever (read-only directory, bad credentials).
    Denied(String),
    /// May succeed when tried again.
    Retry(String),
    /// The request cannot succeed (a bad key, a range outside the object).
    Invalid(String),
    /// The object is there, and its bytes are not those that were stored.
    Damaged(String),
}

impl fmt::Display for ObjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ObjectError::Missing => f.write_str("no such object"),
            ObjectError::Full(why) => write!(f, "the object store is full: {why}"),
            ObjectError::Denied(why) => write!(f, "the object store refused: {why}"),
            ObjectError::Retry(why) => write!(f, "the object store failed: {why}"),
            ObjectError::Invalid(why) => write!(f, "not a request the object store can answer: {why}"),
            ObjectError::Damaged(why) => write!(f, "the object is damaged: {why}"),
        }
    }
}

impl std::error::Error for ObjectError {}

/// What `head` and `list` tell of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// The key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Last change, seconds since 1970.
    pub modified: i64,
}

/// A part of a file that is there for as long as it is open.
async fn read_part(file: &File, range: Range<u64>) -> Result<Bytes, ObjectError> {
    let failed = |e: &dyn fmt::Display| ObjectError::Invalid(format!("a part of the file cannot be read: {e}"));
    let file = file.try_clone().map_err(|e| failed(&e))?;
    let read = move || {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).map_err(std::io::Error::other)?];
        file.read_exact_at(&mut bytes, range.start)?;
        Ok::<_, std::io::Error>(bytes.into())
    };
    tokio::task::spawn_blocking(read).await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))
}

/// A bucket. Keys are relative to it and use `/`; an object is there whole or not at all.
pub trait ObjectStore: Send + Sync {
    /// Stores the object; durable when it returns. Replaces an object of the same key.
    fn put<'a>(&'a self, key: &'a str, body: Bytes) -> BoxFuture<'a, Result<(), ObjectError>>;

    /// Bytes `range` of the object; all of it if `None`. A range that ends past the object answers the bytes that are there.
    fn get<'a>(&'a self, key: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Bytes, ObjectError>>;

    /// Whether it is there, and how large.
    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<ObjectMeta, ObjectError>>;

    /// Removes the object; a missing one is no error.
    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), ObjectError>>;

    /// How many objects `delete_all` removes by one request; 1 where it is no better than `delete`.
    fn deletes_at_once(&self) -> usize {
        1
    }

    /// Removes objects; answers for each. Others may be removed although some could not be.
    fn delete_all<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Vec<Result<(), ObjectError>>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(keys.len());
            for key in keys {
                outcomes.push(self.delete(key).await);
            }
            outcomes
        })
    }

    /// Objects whose key begins with `prefix` and sorts after `after`, in key order, at most `limit`.
    fn list<'a>(&'a self, prefix: &'a str, after: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<ObjectMeta>, ObjectError>>;

    /// Stores what a file holds, from its beginning. Stores that can do so read it piece by piece, so that it need not fit into memory.
    fn put_file<'a>(&'a self, key: &'a str, file: &'a File) -> BoxFuture<'a, Result<(), ObjectError>> {
        Box::pin(async move {
            let bytes = file.metadata().map_err(|e| ObjectError::Invalid(format!("the file of {key} cannot be read: {e}")))?.len();
            self.put(key, read_part(file, 0..bytes).await?).await
        })
    }

    /// Makes the bucket if it is not there. Where there is nothing to make, it is.
    fn create(&self) -> BoxFuture<'_, Result<(), ObjectError>> {
        Box::pin(async { Ok(()) })
    }
}
