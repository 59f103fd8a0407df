//! What the life of a volume needs to know of small blocks that are kept beside the metadata.

use crate::cache::CacheOptions;
use crate::env::{Clock, SystemClock};
use crate::meta::AtimeMode;
use crate::meta::ops::session::HEARTBEAT;
use crate::meta::store::{FramesKept, Query, Store, Value};
use crate::volume::{MetaUrl, Stores, TransferOptions, Volume, VolumeError, VolumeOptions};
use serde_json::{Value as Json, json};

/// Uploads of a command that drains.
const UPLOADS_MAX: usize = 16;

/// Retries of an upload before a command fails: some twenty seconds.
const COMMAND_RETRIES: u32 = 10;

/// How much a volume keeps in frames.
pub async fn kept(store: &dyn Store) -> Result<FramesKept, VolumeError> {
    match store.read(&[Query::FramesKept]).await?.first() {
        Some(Value::Kept(kept)) => Ok(*kept),
        _ => Err(VolumeError::Failed("the metadata store gave no answer about small blocks".into())),
    }
}

/// What `status` shows of it: how many small blocks are not objects yet, their bytes, and the age of the oldest where it is known.
pub async fn status(stores: &Stores) -> Result<Json, VolumeError> {
    let FramesKept { count, bytes, oldest_ms } = kept(stores.store.as_ref()).await?;
    let mut status = json!({"Blocks": count, "Bytes": bytes});
    if let Some(oldest @ 1..) = oldest_ms {
        let now = SystemClock::new().now();
        let age_ms = now.sec * 1000 + i64::from(now.nsec / 1_000_000) + stores.store.clock_ahead_us() / 1000 - oldest;
        status["OldestSeconds"] = json!(age_ms.max(0) as f64 / 1000.0);
    }
    Ok(status)
}

/// Stores every frame that is there now as an object. Answers how many; what mounts commit meanwhile is not waited for.
pub async fn drain(url: &MetaUrl) -> Result<u64, VolumeError> {
    let volume = Volume::open(url, drainer_options()).await?;
    let drained = volume.chunks.drain_all().await;
    volume.close().await?;
    drained.map_err(|e| VolumeError::Failed(format!("cannot store small blocks as objects: {e}")))
}

/// For a process that only drains: it has no session, so that nobody takes it for one more client.
pub(super) fn drainer_options() -> VolumeOptions {
    VolumeOptions {
        read_only: true,
        mountpoint: String::new(),
        atime: AtimeMode::Never,
        buffer_bytes: 16 << 20,
        cache: CacheOptions::default(),
        // A command gives up in the end.
        transfers: TransferOptions { uploads_max: UPLOADS_MAX, retries: Some(COMMAND_RETRIES), ..TransferOptions::default() },
        heartbeat: HEARTBEAT,
        journal: false,
        background: false,
        backup: None,
    }
}
