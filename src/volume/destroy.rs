//! `destroy`: a volume with all its objects and all its metadata, for good (cli §4.4).

use crate::block::{delete_all, retrying};
use crate::env::SystemClock;
use crate::meta::ops::session::SessionEntry;
use crate::meta::setting::Setting;
use crate::meta::store::embedded::RESERVE;
use crate::meta::store::{Cursor, Key, ScanRange, Store, Write};
use crate::meta::{AtimeMode, Meta, MetaConfig, key};
use crate::object::{ObjectError, ObjectStore};
use crate::telemetry::progress;
use crate::volume::objects::{OBJECTS, directories, open_objects};
use crate::volume::stores::{DATABASE, Stores, Usage, usage};
use crate::volume::{MetaUrl, VolumeError};
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};

/// Objects deleted at once.
const DELETES_MAX: usize = 8;
/// Objects, or keys, listed at once.
const PAGE: usize = 1000;
/// Times the keys are looked through: a list that changes while it is read may hide some once.
const ROUNDS_MAX: u32 = 8;

/// A volume that may be destroyed.
pub struct Doomed {
    url: MetaUrl,
    store: Arc<dyn Store>,
    setting: Setting,
    objects: Option<Arc<dyn ObjectStore>>,
}

/// What was destroyed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Destroyed {
    /// Objects deleted.
    pub objects: u64,
    /// Keys of the metadata deleted.
    pub keys: u64,
}

impl Doomed {
    /// The volume at an address, if it is the one meant. A bucket that cannot be opened is passed over with `force`.
    pub async fn open(url: &MetaUrl, uuid: &str, force: bool) -> Result<Doomed, VolumeError> {
        let (store, setting) = Stores::metadata(url).await?;
        if setting.uuid() != uuid {
            return Err(VolumeError::Refused(format!("UUID {uuid:?} != expected {:?}", setting.uuid())));
        }
        let objects = match open_objects(&setting, url.dir()).await {
            Ok(objects) => Some(objects),
            Err(error) if force => {
                warn!("{error}; the objects are not deleted");
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Doomed { url: url.clone(), store, setting, objects })
    }

    /// Its setting.
    pub fn setting(&self) -> &Setting {
        &self.setting
    }

    /// What it uses.
    pub async fn usage(&self) -> Result<Usage, VolumeError> {
        usage(self.store.as_ref()).await
    }

    /// Sessions that live, after those that do not have been cleaned up after.
    pub async fn sessions(&self) -> Result<Vec<SessionEntry>, VolumeError> {
        let (duties, _) = mpsc::channel(1);
        let (store, clock, setting) = (self.store.clone(), Arc::new(SystemClock::new()), self.setting.clone());
        let meta = Meta::new(MetaConfig { store, clock, setting, duties, atime: AtimeMode::Never });
        let why = |e| VolumeError::Failed(format!("cannot look at the sessions: {e}"));
        meta.clean_stale_sessions().await.map_err(why)?;
        meta.sessions().await.map_err(why)
    }

    /// Deletes everything: objects first, the setting last, so that one that was cut can be repeated.
    pub async fn destroy(self) -> Result<Destroyed, VolumeError> {
        let mut destroyed = Destroyed::default();
        if let Some(objects) = &self.objects {
            destroyed.objects = self.delete_objects(objects).await?;
        }
        for root in directories(&self.setting, self.url.dir())? {
            remove_empty(&root.join(self.setting.name()));
        }
        destroyed.keys = self.delete_keys().await?;
        let dir = self.url.dir().map(Path::to_owned);
        // Closes the database.
        drop(self);
        if let Some(dir) = dir {
            remove_files(&dir)?;
        }
        Ok(destroyed)
    }

    async fn delete_objects(&self, objects: &Arc<dyn ObjectStore>) -> Result<u64, VolumeError> {
        let prefix = format!("{}/", self.setting.name());
        let why = |what: &str, e: ObjectError| VolumeError::Failed(format!("{what}: {e}; nothing of the metadata is deleted"));
        let (mut after, mut deleted) = (String::new(), 0);
        progress::stage("objects", 0);
        let mut running: JoinSet<Result<(), ObjectError>> = JoinSet::new();
        let done = |outcome: Result<Result<(), ObjectError>, tokio::task::JoinError>| {
            let outcome = outcome.unwrap_or_else(|e| Err(ObjectError::Retry(format!("the task ended: {e}"))));
            outcome.map_err(|e| why("cannot delete an object", e))
        };
        loop {
            let page = retrying("list objects", &prefix, || objects.list(&prefix, &after, PAGE)).await;
            let page = page.map_err(|e| why("cannot list the objects", e))?;
            progress::add(page.len() as u64, page.iter().map(|object| object.size).sum());
            for some in page.chunks(objects.deletes_at_once()) {
                while running.len() >= DELETES_MAX
                    && let Some(outcome) = running.join_next().await
                {
                    done(outcome)?;
                }
                let (objects, keys) = (Arc::clone(objects), some.iter().map(|object| object.key.clone()).collect::<Vec<_>>());
                deleted += keys.len() as u64;
                running.spawn(async move { delete_all(objects.as_ref(), &keys).await.into_iter().collect() });
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after.clone_from(&last.key),
                _ => break,
            }
        }
        while let Some(outcome) = running.join_next().await {
            done(outcome)?;
        }
        Ok(deleted)
    }

    async fn delete_keys(&self) -> Result<u64, VolumeError> {
        let store = self.store.as_ref();
        let mut deleted = 0;
        progress::stage("keys", 0);
        for _ in 0..ROUNDS_MAX {
            let before = deleted;
            let mut cursor = Some(Cursor::new());
            while let Some(at) = cursor {
                let page = store.scan(&ScanRange::Keys(Bytes::new()), at, PAGE as u32).await?;
                // Outcomes of commits, our own among them, go by themselves; the setting goes last.
                let keys = page.items.into_iter().map(|item| item.name);
                let keys: Vec<Key> = keys.filter(|name| !name.starts_with(key::OUTCOMES) && *name != key::SETTING).collect();
                deleted += keys.len() as u64;
                progress::add(keys.len() as u64, 0);
                let writes: Vec<Write> = keys.into_iter().map(Write::Del).collect();
                if !writes.is_empty() {
                    store.commit(&[], &writes, &[]).await?;
                }
                cursor = page.next;
            }
            if deleted == before {
                store.commit(&[], &[Write::Del(key::SETTING)], &[]).await?;
                store.sync().await?;
                return Ok(deleted + 1);
            }
        }
        Err(VolumeError::Failed(format!("somebody goes on writing into {}; stop all mounts and try again", self.url)))
    }
}

/// Removes a directory tree in which there are no files. Whatever is in the way stays.
fn remove_empty(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
}

/// The files of an embedded volume without keys. What is left of the directory can become a volume again.
fn remove_files(dir: &Path) -> Result<(), VolumeError> {
    remove_empty(&dir.join(OBJECTS));
    for name in [DATABASE.to_string(), format!("{DATABASE}-wal"), format!("{DATABASE}-shm"), RESERVE.to_string()] {
        let path = dir.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(VolumeError::Failed(format!("cannot remove {}: {error}", path.display())));
            }
            _ => {}
        }
    }
    info!("the directory {} is left", dir.display());
    Ok(())
}
