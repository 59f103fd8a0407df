//! The stores of a volume, opened: metadata, setting, objects. What commands that only look or check need; a mount builds on it.

use crate::env::SystemClock;
use crate::meta::codec::decode_decimal;
use crate::meta::key;
use crate::meta::setting::Setting;
use crate::meta::store::embedded::EmbeddedStore;
use crate::meta::store::redis::{Options as RedisOptions, RedisStore};
use crate::meta::store::{Query, Sharing, Store, Value};
use crate::meta::{AtimeMode, Meta, MetaConfig};
use crate::object::ObjectStore;
use crate::volume::objects::open_objects_within;
use crate::volume::{KERNEL_TTL_MAX, KERNEL_TTL_SLACK, MetaUrl, VolumeError, failed, gate};
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// The database of an embedded volume, inside its directory.
pub const DATABASE: &str = "pando.db";

/// How long a command waits for a server that is away.
pub const COMMAND_PATIENCE: Duration = Duration::from_secs(10);

/// Metadata, setting and objects of one volume.
pub struct Stores {
    /// The typed keys.
    pub store: Arc<dyn Store>,
    /// The volume's format.
    pub setting: Setting,
    /// The blocks; keys begin with the volume's name.
    pub objects: Arc<dyn ObjectStore>,
}

impl Stores {
    /// Metadata and setting alone, whatever the volume is, for a command: it gives up when a server stays away.
    pub(super) async fn metadata(url: &MetaUrl) -> Result<(Arc<dyn Store>, Setting), VolumeError> {
        Stores::metadata_for(url, RedisOptions { patience: Some(COMMAND_PATIENCE), writes: false }).await
    }

    async fn metadata_for(url: &MetaUrl, options: RedisOptions) -> Result<(Arc<dyn Store>, Setting), VolumeError> {
        let not_formatted = || VolumeError::NotFormatted(url.to_string());
        if let Some(dir) = url.dir() {
            match dir.join(DATABASE).try_exists() {
                Ok(true) => {}
                Ok(false) => return Err(not_formatted()),
                // Most likely it is another user's: whether it holds a volume cannot be told.
                Err(error) => return Err(VolumeError::Failed(format!("cannot look into {url}: {error}"))),
            }
        }
        let store = open_store(url, options).await?;
        let setting = load_setting(store.as_ref()).await?.ok_or_else(not_formatted)?;
        Ok((store, setting))
    }

    /// Opens what is there, for a command. A volume this build must not touch is refused.
    pub async fn open(url: &MetaUrl) -> Result<Stores, VolumeError> {
        Stores::open_for(url, RedisOptions { patience: Some(COMMAND_PATIENCE), writes: false }, Duration::ZERO).await
    }

    /// The metadata alone, to be changed by a command: without a session, beside whoever uses the volume.
    pub(super) async fn meta(url: &MetaUrl) -> Result<Meta, VolumeError> {
        let (store, setting) = Stores::metadata_for(url, RedisOptions { patience: Some(COMMAND_PATIENCE), writes: true }).await?;
        gate::check(&setting).and_then(|()| gate::check_writable(&setting)).map_err(VolumeError::Refused)?;
        // Nobody does background work here: it is found by the mounts.
        let (ask, _) = tokio::sync::mpsc::channel(1);
        let clock = Arc::new(SystemClock::new());
        let meta = Meta::new(MetaConfig { store, clock, setting, duties: ask, atime: AtimeMode::Never });
        meta.load_quotas().await.map_err(|e| failed("cannot read the quotas", e))?;
        Ok(meta)
    }

    /// Waits, before a command changes names, until kernels have forgotten what they were told when nobody else was there.
    pub(super) async fn wait_for_kernels(meta: &Meta) {
        if meta.store().sharing() == Sharing::Neighbours {
            tokio::time::sleep(KERNEL_TTL_MAX + KERNEL_TTL_SLACK).await;
        }
    }

    /// The same with a choice of how a server is used. Requests to the bucket may take `attempt_time_max` each, if that is more than usual.
    pub async fn open_for(url: &MetaUrl, options: RedisOptions, attempt_time_max: Duration) -> Result<Stores, VolumeError> {
        let (store, setting) = Stores::metadata_for(url, options).await?;
        gate::check(&setting).map_err(VolumeError::Refused)?;
        let objects = open_objects_within(&setting, url.dir(), attempt_time_max).await?;
        Ok(Stores { store, setting, objects })
    }
}

/// Opens the metadata store of a volume. That of an embedded one is created if there is none.
pub(super) async fn open_store(url: &MetaUrl, options: RedisOptions) -> Result<Arc<dyn Store>, VolumeError> {
    let failed = |e| VolumeError::Failed(format!("cannot open the volume in {url}: {e}{}", url.hint()));
    Ok(match url {
        MetaUrl::Embedded(dir) => Arc::new(EmbeddedStore::open(dir).map_err(failed)?),
        MetaUrl::Redis(redis) => {
            for warning in &redis.warnings {
                warn!("{warning}");
            }
            Arc::new(RedisStore::open(redis, options).await.map_err(failed)?)
        }
    })
}

/// The setting, `None` if the store holds no volume.
pub(super) async fn load_setting(store: &dyn Store) -> Result<Option<Setting>, VolumeError> {
    match store.read(&[Query::Get(key::SETTING)]).await?.into_iter().next() {
        Some(Value::Bytes(Some(bytes))) => Setting::parse(&bytes).map(Some).map_err(VolumeError::Refused),
        Some(Value::Bytes(None)) => Ok(None),
        _ => Err(VolumeError::Failed("the metadata store gave no answer about the setting".into())),
    }
}

/// Counters of the volume.
pub struct Usage {
    /// `usedSpace`.
    pub space: i64,
    /// `totalInodes`.
    pub inodes: i64,
}

/// Reads the counters; damage is an error.
pub async fn usage(store: &dyn Store) -> Result<Usage, VolumeError> {
    let values = store.read(&[Query::Get(key::USED_SPACE), Query::Get(key::TOTAL_INODES)]).await?;
    let mut numbers = [0; 2];
    for (number, value) in numbers.iter_mut().zip(&values) {
        *number = match value {
            Value::Bytes(bytes) => decode_decimal(bytes.as_deref()),
            _ => None,
        }
        .ok_or_else(|| VolumeError::Failed("a usage counter is no number; run `pando fsck`".into()))?;
    }
    Ok(Usage { space: numbers[0], inodes: numbers[1] })
}
