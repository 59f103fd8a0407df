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
use std::ops::Range;

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

    /// Objects whose key begins with `prefix` and sorts after `after`, in key order, at most `limit`.
    fn list<'a>(&'a self, prefix: &'a str, after: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<ObjectMeta>, ObjectError>>;

    /// Makes the bucket if it is not there. Where there is nothing to make, it is.
    fn create(&self) -> BoxFuture<'_, Result<(), ObjectError>> {
        Box::pin(async { Ok(()) })
    }
}
