//! Listing a bucket in key order, page by page, whichever version of the request the server knows.

use crate::object::s3::S3Store;
use crate::object::s3::error::classify;
use crate::object::{ObjectError, ObjectMeta};
use aws_sdk_s3::types::Object;
use std::sync::atomic::Ordering;

/// Most keys a server puts on a page.
const PAGE_KEYS_MAX: usize = 1000;

/// Where the next page begins.
enum Position {
    /// Version 2, after a key.
    After(String),
    /// Version 2, where the last page ended.
    Token(String),
    /// Version 1, after a key.
    Marker(String),
}

struct Page {
    objects: Vec<Object>,
    next: Option<Position>,
}

impl S3Store {
    /// See `ObjectStore::list`. A server that begins at the first key in spite of `after` is read past it.
    pub(super) async fn list_all(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<ObjectMeta>, ObjectError> {
        let mut found: Vec<ObjectMeta> = Vec::new();
        let mut at = if self.lists_v1.load(Ordering::Relaxed) { Position::Marker(after.into()) } else { Position::After(after.into()) };
        let mut last = String::new();
        while found.len() < limit {
            let keys_max = limit - found.len();
            let page = match self.within(self.page(prefix, &at, keys_max)).await {
                // No server refuses a listing by what it asks for, except one that does not know version 2.
                Err(ObjectError::Invalid(why)) if matches!(at, Position::After(_)) && !why.contains("NoSuchBucket") => {
                    at = Position::Marker(after.into());
                    let page = self.within(self.page(prefix, &at, keys_max)).await?;
                    self.lists_v1.store(true, Ordering::Relaxed);
                    page
                }
                page => page?,
            };
            for object in page.objects {
                let meta = meta_of(object)?;
                // Whoever pages by the last key would miss or repeat keys of such a server.
                if meta.key <= last && !last.is_empty() {
                    return Err(ObjectError::Invalid(format!("the server lists {} after {last}, which is not in order", meta.key)));
                }
                last.clone_from(&meta.key);
                if meta.key.as_str() > after && meta.key.starts_with(prefix) && found.len() < limit {
                    found.push(meta);
                }
            }
            match page.next {
                None => break,
                Some(next) => at = next,
            }
        }
        Ok(found)
    }

    async fn page(&self, prefix: &str, at: &Position, keys_max: usize) -> Result<Page, ObjectError> {
        let keys_max = i32::try_from(keys_max.min(PAGE_KEYS_MAX)).expect("a thousand fits");
        // Empty parameters are left out: some servers take an empty delimiter for one.
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        if let Position::Marker(marker) = at {
            let request = self.client.list_objects().bucket(&self.bucket).set_prefix(given(prefix)).set_marker(given(marker));
            let answer = request.max_keys(keys_max).send().await.map_err(|e| classify(e, &self.bucket))?;
            let objects = answer.contents.unwrap_or_default();
            let last = answer.next_marker.or_else(|| objects.last().and_then(|object| object.key.clone()));
            let next = last.filter(|last| answer.is_truncated == Some(true) && last > marker).map(Position::Marker);
            return Ok(Page { objects, next });
        }
        let (after, token) = match at {
            Position::After(after) => (given(after), None),
            Position::Token(token) | Position::Marker(token) => (None, given(token)),
        };
        let request = self.client.list_objects_v2().bucket(&self.bucket).set_prefix(given(prefix)).set_start_after(after);
        let request = request.set_continuation_token(token).max_keys(keys_max);
        let answer = request.send().await.map_err(|e| classify(e, &self.bucket))?;
        let objects = answer.contents.unwrap_or_default();
        let next = match (answer.is_truncated == Some(true), answer.next_continuation_token) {
            (false, _) => None,
            (true, Some(token)) => Some(Position::Token(token)),
            // A server that took the request for one of version 1.
            (true, None) => objects.last().and_then(|object| object.key.clone()).map(Position::Marker),
        };
        Ok(Page { objects, next })
    }
}

fn meta_of(object: Object) -> Result<ObjectMeta, ObjectError> {
    let key = object.key.ok_or_else(|| ObjectError::Invalid("the server lists an object without a key".into()))?;
    let size = object.size.and_then(|size| u64::try_from(size).ok());
    let size = size.ok_or_else(|| ObjectError::Invalid(format!("the server lists {key} without a size")))?;
    Ok(ObjectMeta { key, size, modified: object.last_modified.map_or(0, |time| time.secs()) })
}
