//! Trying an object request again while that may help.

use crate::env::{Random, SystemRandom};
use crate::object::{ObjectError, ObjectStore};
use std::time::Duration;
use tracing::debug;

/// Pauses before the second, third, … attempt, the last one before each that follows. Short ones first, because a busy disk is back at once;
/// 21 s in all, so that a caller hears of a store that is really gone within half a minute.
pub(super) const PAUSES_MS: [u64; 10] = [50, 100, 250, 500, 1000, 2000, 3000, 4500, 5000, 5000];
/// Retries of who does not wait for as long as it takes.
pub(super) const RETRIES_DEFAULT: u32 = PAUSES_MS.len() as u32;

/// Runs `request` until it succeeds, fails for good, or the pauses are used up.
pub(crate) async fn retrying<T, F>(what: &'static str, key: &str, request: impl FnMut() -> F) -> Result<T, ObjectError>
where
    F: Future<Output = Result<T, ObjectError>>,
{
    retrying_up_to(Some(RETRIES_DEFAULT), &PAUSES_MS, what, key, request, |_| ()).await
}

/// The same with so many retries, or for as long as it takes. `failing` is told of every failure after which it goes on.
pub(super) async fn retrying_up_to<T, F>(
    retries: Option<u32>,
    pauses_ms: &[u64],
    what: &'static str,
    key: &str,
    mut request: impl FnMut() -> F,
    failing: impl Fn(&str),
) -> Result<T, ObjectError>
where
    F: Future<Output = Result<T, ObjectError>>,
{
    let mut failures: u32 = 0;
    loop {
        match request().await {
            Err(ObjectError::Retry(why)) if retries.is_none_or(|max| failures < max) => {
                debug!(what, key, why, "trying again");
                failing(&why);
            }
            result => return result,
        }
        pause(pauses_ms, failures).await;
        failures = failures.saturating_add(1);
    }
}

/// Removes objects; those whose removal fails are tried again while that may help. Answers for each.
pub(crate) async fn delete_all(objects: &dyn ObjectStore, keys: &[String]) -> Vec<Result<(), ObjectError>> {
    delete_all_up_to(RETRIES_DEFAULT, &PAUSES_MS, objects, keys).await
}

/// The same with so many retries.
pub(super) async fn delete_all_up_to(
    retries: u32,
    pauses_ms: &[u64],
    objects: &dyn ObjectStore,
    keys: &[String],
) -> Vec<Result<(), ObjectError>> {
    let mut outcomes = objects.delete_all(keys).await;
    for failures in 0..retries {
        let again: Vec<usize> = (0..keys.len()).filter(|at| matches!(outcomes[*at], Err(ObjectError::Retry(_)))).collect();
        let Some(first) = again.first() else { break };
        debug!(count = again.len(), "trying again to delete {} and others: {:?}", keys[*first], outcomes[*first]);
        pause(pauses_ms, failures).await;
        let some: Vec<String> = again.iter().map(|at| keys[*at].clone()).collect();
        for (at, outcome) in again.into_iter().zip(objects.delete_all(&some).await) {
            outcomes[at] = outcome;
        }
    }
    outcomes
}

/// Waits after so many failures.
async fn pause(pauses_ms: &[u64], failures: u32) {
    let pause = pauses_ms[(failures as usize).min(pauses_ms.len() - 1)];
    // Half to all of the pause: many requests that failed together do not come back together.
    let jitter = SystemRandom.u64() % (pause / 2).max(1);
    tokio::time::sleep(Duration::from_millis(pause - jitter)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_may_help_is_tried_again() {
        let mut calls = 0;
        let result = retrying("test", "k", || {
            calls += 1;
            let answer = if calls < 3 { Err(ObjectError::Retry("busy".into())) } else { Ok(calls) };
            async move { answer }
        });
        assert_eq!(result.await, Ok(3));
        let mut calls = 0;
        let result: Result<(), _> = retrying("test", "k", || {
            calls += 1;
            async { Err(ObjectError::Full("disk".into())) }
        })
        .await;
        assert_eq!((result, calls), (Err(ObjectError::Full("disk".into())), 1));
    }
}
