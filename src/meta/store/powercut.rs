//! A store whose power can be cut: what was committed since the last `sync` may survive or not, as a prefix.

use super::embedded::EmbeddedStore;
use super::{Commit, Cursor, Guard, Query, ScanPage, ScanRange, Store, StoreError, Value, Write};
use crate::types::{BoxFuture, SliceId};
use bytes::Bytes;
use tokio::sync::Mutex;

/// Passes everything on and remembers what a power cut would put at risk.
pub struct PowerCutStore {
    inner: EmbeddedStore,
    /// Held across a commit, so that the commits are remembered in the order in which they happened.
    history: Mutex<History>,
}

struct History {
    /// Everything synced.
    base: EmbeddedStore,
    /// The writes of each commit since.
    commits: Vec<Vec<Write>>,
    /// How many commits went into the base so far.
    synced: usize,
}

impl PowerCutStore {
    /// What `inner` holds now counts as synced.
    pub fn new(inner: EmbeddedStore) -> Result<PowerCutStore, StoreError> {
        let base = inner.copy_in_memory()?;
        Ok(PowerCutStore { inner, history: Mutex::new(History { base, commits: Vec::new(), synced: 0 }) })
    }

    /// How many commits a power cut could take now.
    pub async fn unsynced(&self) -> usize {
        self.history.lock().await.commits.len()
    }

    /// The store after a power cut that let the first `survivors` unsynced commits live (all of them, if there are fewer).
    pub async fn cut(&self, survivors: usize) -> Result<EmbeddedStore, StoreError> {
        let history = self.history.lock().await;
        let store = history.base.copy_in_memory()?;
        replay(&store, history.commits.iter().take(survivors)).await?;
        Ok(store)
    }
}

/// The guards held when the commits first happened, in the same order from the same state.
async fn replay(store: &EmbeddedStore, commits: impl Iterator<Item = &Vec<Write>>) -> Result<(), StoreError> {
    for writes in commits {
        store.commit(&[], writes, &[]).await?;
    }
    Ok(())
}

impl Store for PowerCutStore {
    fn read<'a>(&'a self, queries: &'a [Query]) -> BoxFuture<'a, Result<Vec<Value>, StoreError>> {
        self.inner.read(queries)
    }

    fn commit<'a>(&'a self, guards: &'a [Guard], writes: &'a [Write], reads: &'a [Query]) -> BoxFuture<'a, Result<Commit, StoreError>> {
        Box::pin(async move {
            if writes.is_empty() {
                return self.inner.commit(guards, writes, reads).await;
            }
            let mut history = self.history.lock().await;
            let commit = self.inner.commit(guards, writes, reads).await?;
            if let Commit::Done { .. } = commit {
                history.commits.push(writes.to_vec());
            }
            Ok(commit)
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let covered = {
                let history = self.history.lock().await;
                history.synced + history.commits.len()
            };
            self.inner.sync().await?;
            let mut history = self.history.lock().await;
            // Another sync may have covered some or all of these meanwhile.
            let count = covered.saturating_sub(history.synced);
            let commits: Vec<Vec<Write>> = history.commits.drain(..count).collect();
            replay(&history.base, commits.iter()).await?;
            history.synced += count;
            Ok(())
        })
    }

    fn scan<'a>(&'a self, range: &'a ScanRange, cursor: Cursor, limit: u32) -> BoxFuture<'a, Result<ScanPage, StoreError>> {
        self.inner.scan(range, cursor, limit)
    }

    fn frame(&self, id: SliceId) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>> {
        self.inner.frame(id)
    }

    fn shared(&self) -> bool {
        self.inner.shared()
    }

    fn claim_session(&self, sid: u64) -> Result<bool, StoreError> {
        self.inner.claim_session(sid)
    }

    fn session_alive(&self, sid: u64) -> Option<bool> {
        self.inner.session_alive(sid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::store::conformance;

    fn counter() -> Write {
        Write::IncrBy("n".into(), 1)
    }

    async fn count(store: &dyn Store) -> Value {
        store.read(&[Query::Get("n".into())]).await.unwrap().remove(0)
    }

    #[tokio::test]
    async fn keeps_what_was_synced_and_any_prefix_of_the_rest() {
        let inner = EmbeddedStore::open_in_memory().unwrap();
        inner.commit(&[], &[counter(), Write::PutFrame(9, "f".into()), Write::ZAdd("z".into(), 4, "m".into())], &[]).await.unwrap();
        let store = PowerCutStore::new(inner).unwrap();
        for _ in 0..3 {
            store.commit(&[], &[counter()], &[]).await.unwrap();
        }
        store.sync().await.unwrap();
        assert_eq!(store.unsynced().await, 0);
        for _ in 0..3 {
            store.commit(&[], &[counter()], &[]).await.unwrap();
        }
        let conflict = store.commit(&[Guard::Value("n".into(), None)], &[counter()], &[]).await.unwrap();
        assert!(matches!(conflict, Commit::Conflict(_)));
        assert_eq!(store.unsynced().await, 3, "a conflict is no commit");
        for (survivors, expected) in [(0, "4"), (1, "5"), (3, "7"), (99, "7")] {
            let after = store.cut(survivors).await.unwrap();
            assert_eq!(count(&after).await, Value::Bytes(Some(expected.into())));
            assert_eq!(after.frame(9).await, Ok(Some("f".into())));
            assert_eq!(after.read(&[Query::ZScore("z".into(), "m".into())]).await, Ok(vec![Value::Score(Some(4))]));
        }
        assert_eq!(count(&store).await, Value::Bytes(Some("7".into())), "the store itself goes on");
    }

    #[tokio::test]
    async fn behaves_like_the_store_it_wraps() {
        conformance::run(&PowerCutStore::new(EmbeddedStore::open_in_memory().unwrap()).unwrap()).await;
    }
}
