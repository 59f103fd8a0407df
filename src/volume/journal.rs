//! What the life of a volume needs to know of small blocks that are kept beside the metadata.

use crate::cache::CacheOptions;
use crate::meta::AtimeMode;
use crate::meta::ops::session::HEARTBEAT;
use crate::meta::store::{FramesKept, Query, Store, Value};
use crate::volume::{MetaUrl, Volume, VolumeError, VolumeOptions};

/// Uploads of a command that drains.
const UPLOADS_MAX: usize = 16;

/// How much a volume keeps in frames.
pub async fn kept(store: &dyn Store) -> Result<FramesKept, VolumeError> {
    match store.read(&[Query::FramesKept]).await?.first() {
        Some(Value::Kept(kept)) => Ok(*kept),
        _ => Err(VolumeError::Failed("the metadata store gave no answer about small blocks".into())),
    }
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
        uploads_max: UPLOADS_MAX,
        downloads_max: 4,
        heartbeat: HEARTBEAT,
        journal: false,
    }
}
