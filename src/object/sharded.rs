//! Objects spread over several buckets by their keys (data §1.4).

use crate::object::{ObjectError, ObjectMeta, ObjectStore};
use crate::types::BoxFuture;
use bytes::Bytes;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

/// Most buckets of one volume.
pub const SHARDS_MAX: u64 = 256;

/// Buckets in the order of their numbers. Which one holds an object is written nowhere: their number never changes.
pub struct ShardedStore {
    shards: Vec<Arc<dyn ObjectStore>>,
}

impl ShardedStore {
    /// Over these buckets, at least one.
    pub fn new(shards: Vec<Arc<dyn ObjectStore>>) -> ShardedStore {
        assert!(!shards.is_empty(), "an object needs a bucket");
        ShardedStore { shards }
    }

    fn place(&self, key: &str) -> usize {
        fnv1a(key.as_bytes()) as usize % self.shards.len()
    }

    fn shard(&self, key: &str) -> &dyn ObjectStore {
        self.shards[self.place(key)].as_ref()
    }
}

/// FNV-1a of 32 bits.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

impl ObjectStore for ShardedStore {
    fn put<'a>(&'a self, key: &'a str, body: Bytes) -> BoxFuture<'a, Result<(), ObjectError>> {
        self.shard(key).put(key, body)
    }

    fn put_file<'a>(&'a self, key: &'a str, file: &'a File) -> BoxFuture<'a, Result<(), ObjectError>> {
        self.shard(key).put_file(key, file)
    }

    fn get<'a>(&'a self, key: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Bytes, ObjectError>> {
        self.shard(key).get(key, range)
    }

    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<ObjectMeta, ObjectError>> {
        self.shard(key).head(key)
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), ObjectError>> {
        self.shard(key).delete(key)
    }

    fn deletes_at_once(&self) -> usize {
        self.shards.iter().map(|shard| shard.deletes_at_once()).min().unwrap_or(1)
    }

    fn delete_all<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Vec<Result<(), ObjectError>>> {
        Box::pin(async move {
            let mut outcomes = vec![Ok(()); keys.len()];
            for at in 0..self.shards.len() {
                let here: Vec<usize> = (0..keys.len()).filter(|key| self.place(&keys[*key]) == at).collect();
                if here.is_empty() {
                    continue;
                }
                let theirs: Vec<String> = here.iter().map(|key| keys[*key].clone()).collect();
                for (key, outcome) in here.into_iter().zip(self.shards[at].delete_all(&theirs).await) {
                    outcomes[key] = outcome;
                }
            }
            outcomes
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<ObjectMeta>, ObjectError>> {
        Box::pin(async move {
            let mut found = Vec::new();
            // The first `limit` of all are among the first `limit` of each.
            for shard in &self.shards {
                found.extend(shard.list(prefix, after, limit).await?);
            }
            found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            found.truncate(limit);
            Ok(found)
        })
    }

    fn create(&self) -> BoxFuture<'_, Result<(), ObjectError>> {
        Box::pin(async move {
            for shard in &self.shards {
                shard.create().await?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::memory::MemoryStore;

    #[tokio::test]
    async fn shards_conform() {
        let shards: Vec<Arc<dyn ObjectStore>> = (0..4).map(|_| Arc::new(MemoryStore::new()) as Arc<dyn ObjectStore>).collect();
        crate::object::conformance::run(&ShardedStore::new(shards)).await;
    }

    #[tokio::test]
    async fn objects_are_where_other_clients_look() {
        let shards: Vec<Arc<MemoryStore>> = (0..4).map(|_| Arc::new(MemoryStore::new())).collect();
        let store = ShardedStore::new(shards.iter().map(|shard| shard.clone() as Arc<dyn ObjectStore>).collect());
        for (key, hash, shard) in [
            ("myjfs/chunks/0/0/1_0_4194304", 2_521_471_656, 0),
            ("shardv/juicefs_uuid", 1_476_468_995, 3),
            ("shardv/chunks/0/0/1_0_1300000", 2_769_953_414, 2),
            ("shardv/chunks/0/0/3_0_38", 3_740_255_575, 3),
        ] {
            assert_eq!(fnv1a(key.as_bytes()), hash, "{key}");
            store.put(key, Bytes::from_static(b"x")).await.expect("put");
            assert!(shards[shard].objects().contains_key(key), "{key}");
        }
    }
}
