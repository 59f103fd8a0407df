//! The stores of a volume, opened: metadata, setting, objects. What commands that only look or check need; a mount builds on it.

use crate::meta::codec::decode_decimal;
use crate::meta::key;
use crate::meta::setting::Setting;
use crate::meta::store::embedded::EmbeddedStore;
use crate::meta::store::redis::{Options as RedisOptions, RedisStore};
use crate::meta::store::{Query, Store, Value};
use crate::object::ObjectStore;
use crate::object::file::FileStore;
use crate::volume::{MetaUrl, VolumeError, gate};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// The database of an embedded volume, inside its directory.
pub const DATABASE: &str = "pando.db";
/// Default place of the objects, inside the directory of the volume.
pub const OBJECTS: &str = "objects";

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
    /// Opens what is there, for a command: it gives up when a server stays away. A volume this build must not touch is refused.
    pub async fn open(url: &MetaUrl) -> Result<Stores, VolumeError> {
        Stores::open_for(url, RedisOptions { patience: Some(COMMAND_PATIENCE), writes: false }).await
    }

    /// The same with a choice of how a server is used.
    pub async fn open_for(url: &MetaUrl, options: RedisOptions) -> Result<Stores, VolumeError> {
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
        gate::check(&setting, has_quotas(store.as_ref()).await?).map_err(VolumeError::Refused)?;
        let root = bucket_dir(url.dir(), setting.bucket())?;
        if !root.is_dir() {
            // Not created silently: a missing bucket is most likely a disk that is not mounted, and a new one would read as lost data.
            return Err(VolumeError::Refused(format!(
                "the objects of the volume are not at {}; mount or restore it first",
                root.display()
            )));
        }
        let objects = open_objects(root)?;
        Ok(Stores { store, setting, objects })
    }
}

/// Opens the metadata store of a volume. That of an embedded one is created if there is none.
pub(super) async fn open_store(url: &MetaUrl, options: RedisOptions) -> Result<Arc<dyn Store>, VolumeError> {
    let failed = |e| VolumeError::Failed(format!("cannot open the volume in {url}: {e}"));
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

/// Opens the object store in a directory that exists.
pub(super) fn open_objects(root: PathBuf) -> Result<Arc<dyn ObjectStore>, VolumeError> {
    let shown = root.display().to_string();
    let objects = FileStore::open(root).map_err(|e| VolumeError::Failed(format!("cannot open the objects in {shown}: {e}")))?;
    Ok(Arc::new(objects))
}

/// Where the objects are: a relative bucket lies in the directory of the volume, so that a volume can be moved as a whole.
pub(super) fn bucket_dir(dir: Option<&Path>, bucket: &str) -> Result<PathBuf, VolumeError> {
    let bucket = bucket.strip_prefix("file://").unwrap_or(bucket);
    match dir {
        Some(dir) => Ok(if bucket.is_empty() { dir.join(OBJECTS) } else { dir.join(bucket) }),
        None if Path::new(bucket).is_absolute() => Ok(bucket.into()),
        None => Err(VolumeError::Refused(format!("the directory of the objects must be an absolute path, and is {bucket:?}"))),
    }
}

/// The setting, `None` if the store holds no volume.
pub(super) async fn load_setting(store: &dyn Store) -> Result<Option<Setting>, VolumeError> {
    match store.read(&[Query::Get(key::SETTING)]).await?.into_iter().next() {
        Some(Value::Bytes(Some(bytes))) => Setting::parse(&bytes).map(Some).map_err(VolumeError::Refused),
        Some(Value::Bytes(None)) => Ok(None),
        _ => Err(VolumeError::Failed("the metadata store gave no answer about the setting".into())),
    }
}

async fn has_quotas(store: &dyn Store) -> Result<bool, VolumeError> {
    let values = store.read(&[Query::HLen { key: key::DIR_QUOTA, limit: 1 }]).await?;
    Ok(values.iter().any(|value| matches!(value, Value::Int(n) if *n > 0)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_move_with_the_volume_unless_they_are_elsewhere() {
        for (bucket, place) in [("", "/v/objects"), ("objects/", "/v/objects"), ("/data/x/", "/data/x"), ("file:///data", "/data")] {
            assert_eq!(bucket_dir(Some(Path::new("/v")), bucket).expect("a place"), Path::new(place), "{bucket}");
        }
        assert_eq!(bucket_dir(None, "/data/").expect("a place"), Path::new("/data/"));
        assert!(bucket_dir(None, "data").is_err(), "beside a server there is no directory it could be relative to");
    }
}
