//! `restore-meta`: a volume whose metadata is lost, from the newest backup in its bucket.

pub(super) mod ids;

use super::backup::{self, Backup};
use super::dump::{Change, DumpInput, Loaded, load_as, nameless};
use super::objects::{OBJECTS, UUID_OBJECT, location, open_objects};
use super::{MetaUrl, VolumeError};
use crate::block::{Encryption, retrying};
use crate::meta::setting::Setting;
use crate::object::{ObjectError, ObjectStore};
use crate::telemetry::progress;
use serde_json::json;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;
use tracing::warn;

/// Bytes of a backup fetched at once.
const FETCHED_BYTES: u64 = 8 << 20;
/// How a file compressed with gzip begins. An encrypted object begins with the length of its key, which is another.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// What stands for the volume before its setting is known; no object is named by it.
const UNKNOWN: &str = "unknown";

/// Where the backups are: the bucket of the lost volume.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// Type of the bucket; `file` if `None`.
    pub storage: Option<String>,
    /// Its URL, or a directory. A local volume has its objects in its own directory.
    pub bucket: Option<String>,
    /// Access key of the bucket.
    pub access_key: Option<String>,
    /// Secret key of the bucket.
    pub secret_key: Option<String>,
    /// Token for temporary keys.
    pub session_token: Option<String>,
    /// Buckets over which the objects are spread.
    pub shards: Option<u64>,
    /// The volume, if the bucket holds the backups of several.
    pub volume: Option<String>,
    /// The PEM text of the key of an encrypted volume.
    pub encrypt_key: Option<String>,
    /// Algorithm of that.
    pub encrypt_algo: Option<String>,
}

/// What was restored.
#[derive(Debug)]
pub struct Restored {
    /// The volume.
    pub volume: String,
    /// From what.
    pub backup: Backup,
    /// What it held.
    pub loaded: Loaded,
}

impl Source {
    fn bucket(&self, url: Option<&MetaUrl>) -> Result<String, VolumeError> {
        match (&self.bucket, url.and_then(MetaUrl::dir)) {
            (Some(bucket), _) => Ok(bucket.clone()),
            (None, Some(_)) if self.storage.is_none() => Ok(format!("{OBJECTS}/")),
            (None, _) => {
                Err(VolumeError::Refused("say where the objects of the volume are: --bucket, and --storage if it is no directory".into()))
            }
        }
    }

    /// Puts into a setting how the bucket was reached here. What was not given comes from the environment, as it does here.
    fn apply(&self, setting: &mut Setting, bucket: &str) -> Result<(), VolumeError> {
        setting.set("Storage", json!(self.storage.as_deref().unwrap_or("file")));
        setting.set("Bucket", json!(bucket));
        setting.set("AccessKey", json!(self.access_key.as_deref().unwrap_or_default()));
        for (field, secret) in [("SecretKey", &self.secret_key), ("SessionToken", &self.session_token)] {
            setting.set_secret(field, secret.as_deref().unwrap_or_default()).map_err(VolumeError::Failed)?;
        }
        if let Some(shards) = self.shards {
            setting.set("Shards", json!(shards));
        }
        Ok(())
    }

    async fn open(&self, url: Option<&MetaUrl>) -> Result<(Arc<dyn ObjectStore>, String), VolumeError> {
        let bucket = self.bucket(url)?;
        let mut setting = Setting::new(UNKNOWN, UNKNOWN, "file", "", 4096);
        self.apply(&mut setting, &bucket)?;
        Ok((open_objects(&setting, url.and_then(MetaUrl::dir)).await?, bucket))
    }

    fn encryption(&self) -> Result<Option<Encryption>, VolumeError> {
        let Some(pem) = &self.encrypt_key else { return Ok(None) };
        let passphrase = std::env::var("JFS_RSA_PASSPHRASE").ok();
        let encryption = Encryption::new(self.encrypt_algo.as_deref().unwrap_or_default(), pem, passphrase.as_deref());
        encryption.map(Some).map_err(|why| VolumeError::Refused(format!("cannot use the key: {why}")))
    }

    /// The backups of every volume in the bucket, or of the one that is wanted; oldest first.
    async fn volumes(&self, objects: &dyn ObjectStore) -> Result<Vec<(String, Vec<Backup>)>, VolumeError> {
        let failed = |e: ObjectError| VolumeError::Failed(format!("cannot look for backups: {e}"));
        let names = match &self.volume {
            Some(name) => vec![name.clone()],
            None => ids::children(objects, "").await.map_err(failed)?,
        };
        let mut volumes = Vec::new();
        for name in names {
            let backups = backup::list(objects, &name).await.map_err(failed)?;
            if !backups.is_empty() {
                volumes.push((name, backups));
            }
        }
        Ok(volumes)
    }
}

/// The backups in a bucket, by volume, the oldest of each first. `url` is where the metadata was, if that is a directory.
pub async fn list_backups(url: &MetaUrl, source: &Source) -> Result<Vec<(String, Vec<Backup>)>, VolumeError> {
    let (objects, _) = source.open(Some(url)).await?;
    source.volumes(objects.as_ref()).await
}

/// Makes a volume of a backup, the latest if `name` is `None`, in a metadata store that is empty. Its setting says how the bucket was
/// reached, and no number is given out again that was in use since the backup.
pub async fn restore_meta(url: &MetaUrl, source: &Source, name: Option<&str>) -> Result<Restored, VolumeError> {
    let (objects, bucket) = source.open(Some(url)).await?;
    let mut volumes = source.volumes(objects.as_ref()).await?;
    let (volume, mut backups) = match volumes.len() {
        0 => return refused(format!("there are no backups in the bucket {bucket}; does it hold the volume?")),
        1 => volumes.remove(0),
        _ => {
            let names: Vec<_> = volumes.iter().map(|(name, _)| name.as_str()).collect();
            return refused(format!("the bucket has backups of several volumes, name one with --name: {}", names.join(", ")));
        }
    };
    let backup = match name {
        None => backups.pop(),
        Some(name) => backups.iter().position(|backup| backup.name == name).map(|at| backups.swap_remove(at)),
    };
    let Some(backup) = backup else {
        return refused(format!("{volume} has no backup {:?}; --list shows those there are", name.unwrap_or("latest")));
    };
    let encryption = source.encryption()?;
    let key = format!("{}{}", backup::prefix(&volume), backup.name);
    let file = decrypted(fetch(objects.as_ref(), &key, backup.bytes).await?, encryption.as_ref(), &key)?;
    let uuid = uuid(objects.as_ref(), &volume, encryption.as_ref()).await?;
    let change: Change<'_> = &|setting| {
        if setting.name() != volume {
            return refused(format!("{key} is a backup of the volume {}", setting.name()));
        }
        if uuid.as_deref().is_some_and(|uuid| uuid != setting.uuid()) {
            let place = location(setting, None::<&Path>);
            return refused(format!("the objects at {place} are of another volume than the backup: {uuid:?} and {:?}", setting.uuid()));
        }
        source.apply(setting, &bucket)
    };
    let loaded = load_as(url, &mut DumpInput::gzip(file, &key), false, Some(change)).await?;
    Ok(Restored { volume, backup, loaded })
}

fn refused<T>(why: String) -> Result<T, VolumeError> {
    Err(VolumeError::Refused(why))
}

/// Copies an object into a file without a name, a piece at a time.
async fn fetch(objects: &dyn ObjectStore, key: &str, bytes: u64) -> Result<File, VolumeError> {
    let mut file = nameless()?;
    let mut at = 0;
    progress::stage("bytes of the backup", bytes);
    while at < bytes {
        let range = at..bytes.min(at + FETCHED_BYTES);
        let part = retrying("fetch a backup", key, || objects.get(key, Some(range.clone()))).await;
        let part = part.map_err(|e| VolumeError::Failed(format!("cannot fetch {key}: {e}")))?;
        if part.len() as u64 != range.end - range.start {
            return Err(VolumeError::Failed(format!("{key} is shorter than it was listed; was it replaced meanwhile?")));
        }
        file.write_all(&part).map_err(|e| VolumeError::Failed(format!("cannot keep a copy of {key}: {e}")))?;
        at = range.end;
        progress::set(at, 0);
    }
    Ok(file)
}

/// A backup that is only compressed. Large ones of encrypted volumes are so already if other clients took them (data §1.5).
pub fn decrypted(mut file: File, encryption: Option<&Encryption>, name: &str) -> Result<File, VolumeError> {
    let failed = |e: std::io::Error| VolumeError::Failed(format!("cannot read {name}: {e}"));
    let mut head = [0; GZIP.len()];
    file.rewind().map_err(failed)?;
    let is_plain = match file.read_exact(&mut head) {
        Ok(()) => head == GZIP,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => false,
        Err(error) => return Err(failed(error)),
    };
    file.rewind().map_err(failed)?;
    if is_plain {
        return Ok(file);
    }
    let Some(encryption) = encryption else {
        return Err(VolumeError::Refused(format!("{name} is encrypted, or damaged; give the key of the volume with --encrypt-rsa-key")));
    };
    let mut sealed = Vec::new();
    file.read_to_end(&mut sealed).map_err(failed)?;
    let plain = encryption.open(&sealed).map_err(|why| VolumeError::Refused(format!("cannot decrypt {name}: {why}")))?;
    let mut file = nameless()?;
    file.write_all(&plain).map_err(failed)?;
    Ok(file)
}

/// The volume that the objects under a name belong to, if they say so.
async fn uuid(objects: &dyn ObjectStore, volume: &str, encryption: Option<&Encryption>) -> Result<Option<String>, VolumeError> {
    let key = format!("{volume}/{UUID_OBJECT}");
    let stored = match retrying("look", &key, || objects.get(&key, None)).await {
        Ok(stored) => stored,
        Err(ObjectError::Missing) => {
            warn!("there is no {key}; whether the backup belongs to the objects beside it is not known");
            return Ok(None);
        }
        Err(error) => return Err(VolumeError::Failed(format!("cannot read {key}: {error}"))),
    };
    let text = match encryption {
        Some(encryption) => encryption.open(&stored).unwrap_or_else(|_| stored.to_vec()),
        None => stored.to_vec(),
    };
    Ok(String::from_utf8(text).ok().map(|text| text.trim().to_owned()))
}
