//! The stores of a volume, opened: metadata, setting, objects. What commands that only look or check need; a mount builds on it.

use crate::meta::codec::decode_decimal;
use crate::meta::key;
use crate::meta::setting::Setting;
use crate::meta::store::embedded::EmbeddedStore;
use crate::meta::store::{Query, Store, Value};
use crate::object::ObjectStore;
use crate::volume::objects::open_objects;
use crate::volume::{MetaUrl, VolumeError, gate};
use std::path::Path;
use std::sync::Arc;

/// The database of an embedded volume, inside its directory.
pub const DATABASE: &str = "pando.db";

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
    /// Metadata and setting alone, whatever the volume is.
    pub(super) async fn metadata(url: &MetaUrl) -> Result<(Arc<dyn Store>, Setting), VolumeError> {
        match url.dir().join(DATABASE).try_exists() {
            Ok(true) => {}
            Ok(false) => return Err(VolumeError::NotFormatted(url.dir().into())),
            // Most likely it is another user's: whether it holds a volume cannot be told.
            Err(error) => return Err(VolumeError::Failed(format!("cannot look into {url}: {error}"))),
        }
        let store = open_store(url.dir())?;
        let setting = load_setting(store.as_ref()).await?.ok_or_else(|| VolumeError::NotFormatted(url.dir().into()))?;
        Ok((store, setting))
    }

    /// Opens what is there. A volume this build must not touch is refused.
    pub async fn open(url: &MetaUrl) -> Result<Stores, VolumeError> {
        let (store, setting) = Stores::metadata(url).await?;
        gate::check(&setting, has_quotas(store.as_ref()).await?).map_err(VolumeError::Refused)?;
        let objects = open_objects(&setting, url.local_dir()).await?;
        Ok(Stores { store, setting, objects })
    }
}

/// Opens the metadata store of an embedded volume; creates an empty one if there is none.
pub(super) fn open_store(dir: &Path) -> Result<Arc<dyn Store>, VolumeError> {
    let store = EmbeddedStore::open(dir).map_err(|e| VolumeError::Failed(format!("cannot open the volume in {}: {e}", dir.display())))?;
    Ok(Arc::new(store))
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
