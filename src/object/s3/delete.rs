//! Removing many objects by one request (`DeleteObjects`), where the server has that.
//!
//! The SDK sends a CRC-32 of the request, as the protocol wants a checksum there. Servers that know no such request, or insist on another checksum,
//! are asked for one object after the other from then on.

use super::S3Store;
use super::error::{classify, of_code};
use crate::env::join;
use crate::object::{ObjectError, ObjectStore};
use crate::types::BoxFuture;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use tracing::info;

/// Most keys of one request, by the protocol.
pub(super) const KEYS_MAX: usize = 1000;
/// Single requests at once, for what one request did not do.
const SINGLES_AT_ONCE: usize = 8;

type Outcome = Result<(), ObjectError>;

impl S3Store {
    pub(super) async fn delete_many(&self, keys: &[String]) -> Vec<Outcome> {
        let mut outcomes = vec![None; keys.len()];
        let mut refused = None;
        if keys.len() > 1 && !self.deletes_singly.load(Ordering::Relaxed) {
            for (keys, outcomes) in keys.chunks(KEYS_MAX).zip(outcomes.chunks_mut(KEYS_MAX)) {
                match self.within(self.delete_batch(keys)).await {
                    Ok(told) => outcomes.clone_from_slice(&told),
                    Err(error @ (ObjectError::Retry(_) | ObjectError::Full(_))) => outcomes.fill(Some(Err(error))),
                    Err(why) => {
                        refused = Some(why);
                        break;
                    }
                }
            }
        }
        let left: Vec<usize> = (0..keys.len()).filter(|at| outcomes[*at].is_none()).collect();
        let singles = left.iter().map(|at| -> BoxFuture<'_, Result<Outcome, std::convert::Infallible>> {
            Box::pin(async { Ok(self.delete(&keys[*at]).await) })
        });
        let Ok(told) = join(singles.collect(), SINGLES_AT_ONCE).await;
        if let Some(why) = refused.filter(|_| told.iter().all(Result::is_ok))
            && !self.deletes_singly.swap(true, Ordering::Relaxed)
        {
            info!("the server of the bucket {} does not delete several objects by one request: {why}", self.bucket);
        }
        for (at, outcome) in left.into_iter().zip(told) {
            outcomes[at] = Some(outcome);
        }
        outcomes.into_iter().map(|outcome| outcome.unwrap_or(Ok(()))).collect()
    }

    /// What the server tells of each; `None` for one that it does not name.
    async fn delete_batch(&self, keys: &[String]) -> Result<Vec<Option<Outcome>>, ObjectError> {
        let invalid = |e: aws_sdk_s3::error::BuildError| ObjectError::Invalid(e.to_string());
        let objects: Result<Vec<_>, _> = keys.iter().map(|key| ObjectIdentifier::builder().key(key).build()).collect();
        let wanted = Delete::builder().set_objects(Some(objects.map_err(invalid)?)).quiet(false).build().map_err(invalid)?;
        let answer = self.client.delete_objects().bucket(&self.bucket).delete(wanted).send().await;
        let answer = answer.map_err(|e| classify(e, &self.bucket))?;
        let mut told: HashMap<&str, Outcome> = answer.deleted().iter().filter_map(|deleted| Some((deleted.key()?, Ok(())))).collect();
        for error in answer.errors() {
            if let Some(key) = error.key() {
                let outcome = match of_code(error.code().unwrap_or_default(), error.message().unwrap_or_default(), &self.bucket) {
                    ObjectError::Missing => Ok(()),
                    error => Err(error),
                };
                told.insert(key, outcome);
            }
        }
        Ok(keys.iter().map(|key| told.remove(key.as_str())).collect())
    }
}
