//! Backups of the metadata in the bucket (data §1.5, §11; metadata §17).
//!
//! A backup is the JSON dump of the whole volume, compressed, as the object `NAME/meta/dump-YYYY-MM-DD-HHMMSS.json.gz`. Which client takes
//! it, and when, is decided in `jobs`. The dump is written into a file without a name, as nobody knows how large it becomes, and stored
//! from there.

mod rotation;

pub use rotation::Backup;
use rotation::parse_name;

use super::codec::encryption;
use super::dump::{Spool, dump_open};
use super::objects::location;
use crate::block::{Encryption, retrying};
use crate::chunk::Chunks;
use crate::jobs::BackupPlan;
use crate::meta::Meta;
use crate::meta::setting::Setting;
use crate::object::{ObjectError, ObjectStore};
use crate::types::{BoxFuture, Civil};
use crate::volume::VolumeError;
use rotation::outdated;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// Backups listed at once.
const PAGE: usize = 1000;

/// Whether and how the metadata is backed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupOptions {
    /// One each time this has passed, by any client of the volume.
    pub period: Duration,
    /// Without the trash.
    pub skip_trash: bool,
}

/// What it takes to back up a volume that is open.
pub(super) struct Backups {
    pub meta: Arc<Meta>,
    pub chunks: Arc<Chunks>,
    pub objects: Arc<dyn ObjectStore>,
    /// All objects of an encrypted volume are encrypted.
    pub encryption: Option<Arc<Encryption>>,
    pub skip_trash: bool,
}

/// Where the backups of a volume are.
pub(super) fn prefix(volume: &str) -> String {
    format!("{volume}/meta/")
}

impl Backups {
    /// Of this volume.
    pub fn new(
        meta: Arc<Meta>,
        chunks: Arc<Chunks>,
        objects: Arc<dyn ObjectStore>,
        setting: &Setting,
        skip_trash: bool,
    ) -> Result<Backups, VolumeError> {
        let encryption = encryption(setting)?.map(Arc::new);
        Ok(Backups { meta, chunks, objects, encryption, skip_trash })
    }

    /// The same as a plan of the background work.
    pub fn every(self, period: Duration) -> BackupPlan {
        let backups = Arc::new(self);
        let take = Box::new(move || -> BoxFuture<'static, Result<(), String>> {
            let backups = backups.clone();
            Box::pin(async move { backups.take().await })
        });
        BackupPlan { period, take }
    }

    /// Takes one, then removes those that are not kept any longer. The message says why there is none.
    pub async fn take(&self) -> Result<(), String> {
        let begin = crate::env::instant();
        let now = self.meta.clock().now().sec;
        let setting = self.meta.setting();
        let mut spool = Spool::create().map_err(|e| e.to_string())?;
        let dumped = dump_open(self.meta.store().as_ref(), &setting, &self.chunks, self.skip_trash, &mut spool).await;
        let file = dumped.and_then(|()| spool.finish()).map_err(|e| e.to_string())?;
        let name = rotation::name(&Civil::of(now));
        let key = format!("{}{name}", prefix(setting.name()));
        let bytes = file.metadata().map_err(|e| e.to_string())?.len();
        let stored = match &self.encryption {
            None => retrying("store a backup", &key, || self.objects.put_file(&key, &file)).await,
            Some(encryption) => {
                let sealed = bytes::Bytes::from(sealed(encryption.clone(), file).await?);
                retrying("store a backup", &key, || self.objects.put(&key, sealed.clone())).await
            }
        };
        stored.map_err(|e| format!("cannot store {key}: {e}"))?;
        let place = location(&setting, None::<&Path>);
        info!("backup metadata succeed, path: \"{place}meta/{name}\", {bytes} bytes, used {:?}", begin.elapsed());
        self.rotate(setting.name(), now).await;
        Ok(())
    }

    /// Removes backups that are not kept any longer. What fails is tried again after the next one.
    async fn rotate(&self, volume: &str, now: i64) {
        let backups = match list(self.objects.as_ref(), volume).await {
            Ok(backups) => backups,
            Err(error) => return warn!("the backups of the metadata cannot be listed, none is removed: {error}"),
        };
        for backup in outdated(&backups, now) {
            let key = format!("{}{}", prefix(volume), backup.name);
            match self.objects.delete(&key).await {
                Ok(()) => info!("removed the backup {key}"),
                Err(error) => warn!("cannot remove the backup {key}: {error}"),
            }
        }
    }
}

/// What a file holds, encrypted. The format seals a backup as one piece, so it lies in memory here.
async fn sealed(encryption: Arc<Encryption>, mut file: File) -> Result<Vec<u8>, String> {
    let seal = move || {
        let mut plain = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut plain)).map_err(|e| e.to_string())?;
        encryption.seal(&plain)
    };
    tokio::task::spawn_blocking(seal).await.unwrap_or_else(|e| Err(format!("the thread that encrypts ended: {e}")))
}

/// The backups of a volume, oldest first. Other objects among them are passed over.
pub(super) async fn list(objects: &dyn ObjectStore, volume: &str) -> Result<Vec<Backup>, ObjectError> {
    let prefix = prefix(volume);
    let (mut backups, mut after) = (Vec::new(), String::new());
    loop {
        let page = retrying("list backups", &prefix, || objects.list(&prefix, &after, PAGE)).await?;
        for object in &page {
            let name = object.key.strip_prefix(&prefix).unwrap_or_default();
            if let Some(sec) = parse_name(name) {
                backups.push(Backup { name: name.into(), sec, bytes: object.size });
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after.clone_from(&last.key),
            _ => return Ok(backups),
        }
    }
}

#[cfg(test)]
mod tests;
