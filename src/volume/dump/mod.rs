//! `dump` and `load`: the metadata of a volume as a file, from any store and into any store (metadata §15, §16).
//!
//! A dump reads page by page while others may use the volume. An inode is dumped as it was at one moment; what is renamed or deleted
//! meanwhile may be there, or not, or under its old name. Small blocks kept beside the metadata are no part of a dump: those that a dump
//! names are stored as objects before it ends.
//!
//! A load reads the whole dump first and refuses a damaged one before it writes. The setting is written last: until then the target is no
//! volume.

mod binary;
mod binary_read;
mod file;
mod json;
mod json_read;
mod load;
mod node;
mod parse;
mod text;
mod wire;

pub use file::{DumpInput, DumpOutput};
pub use load::Loaded;

use crate::block::FRAME_BYTES_MAX;
use crate::env::{Clock, SystemClock};
use crate::meta::AtimeMode;
use crate::meta::codec::decode_entry;
use crate::meta::key;
use crate::meta::store::redis::Options as RedisOptions;
use crate::meta::store::{Query, Store, Value, Write};
use crate::types::{Ino, Kind, SliceRecord};
use crate::volume::stores::{COMMAND_PATIENCE, load_setting, open_store, usage};
use crate::volume::{CacheOptions, MetaUrl, Place, Stores, TransferOptions, Volume, VolumeError, VolumeOptions, place};
use binary_read::{BinaryReader, Part};
use json_read::JsonReader;
use load::{Check, Loader};
use std::io::{self, BufRead};
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// Retries of an upload before a dump fails: some twenty seconds.
const COMMAND_RETRIES: u32 = 10;

/// What a dump is to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DumpOptions {
    /// Only this directory and what is below it, from the root of the volume.
    pub subdir: Option<String>,
    /// Keep the secret key and the session token of the object store; otherwise they read `removed`.
    pub keep_secrets: bool,
    /// Without the trash.
    pub skip_trash: bool,
    /// The binary form, which always holds the whole volume.
    pub binary: bool,
}

/// Writes the metadata of a volume.
pub async fn dump(url: &MetaUrl, options: &DumpOptions, out: &mut dyn io::Write) -> Result<(), VolumeError> {
    // Without its objects: a dump may hold what this build could not use.
    let (store, setting) = Stores::metadata(url).await?;
    let mut slices = Slices { store: store.as_ref(), url: store.keeps_frames().then_some(url), volume: None, drained: 0 };
    if options.binary {
        if store.shared() {
            // Its records are raw and found one after another: what is created between two of them may have an entry and no inode.
            warn!("the volume is in use: a binary dump is consistent only while nothing changes; unmount it, or dump as JSON");
        }
        binary::write(store.as_ref(), &setting, options, &mut slices, out).await?;
    } else {
        json::write(store.as_ref(), &setting, options, &mut slices, out).await?;
    }
    slices.close().await
}

/// Makes the metadata of a new volume from a dump in the JSON or the binary form.
pub async fn load(url: &MetaUrl, input: &mut DumpInput, binary: bool) -> Result<Loaded, VolumeError> {
    if binary {
        check_binary(input.reader()?)?;
    } else {
        check_json(input.reader()?)?;
    }
    let store = open_target(url).await?;
    load::claim(store.as_ref()).await?;
    let loaded = if binary { load_binary(store.as_ref(), input.reader()?).await } else { load_json(store.as_ref(), input.reader()?).await };
    loaded.map_err(|error| VolumeError::Failed(format!("{error}; what was loaded is no volume: empty the target before another try")))
}

fn refused(why: String) -> VolumeError {
    VolumeError::Refused(format!("the dump cannot be loaded: {why}"))
}

/// Reads a whole dump; what it says is wrong would otherwise be found when half of it is loaded.
fn check_json(input: impl BufRead) -> Result<(), VolumeError> {
    let mut reader = JsonReader::new(input);
    let mut check = Check::default();
    while let Some(event) = reader.next().map_err(refused)? {
        check.event(&event).map_err(refused)?;
    }
    Ok(())
}

fn check_binary(input: impl BufRead) -> Result<(), VolumeError> {
    let mut reader = BinaryReader::new(input);
    let mut settings = 0;
    while let Some(part) = reader.next().map_err(refused)? {
        settings += u32::from(matches!(part, Part::Setting(_)));
    }
    if settings == 1 { Ok(()) } else { Err(refused(format!("it has {settings} settings of a volume"))) }
}

/// Into a store that was claimed.
async fn load_json(store: &dyn Store, input: impl BufRead) -> Result<Loaded, VolumeError> {
    let mut loader = Loader::new(store, SystemClock::new().now());
    let mut reader = JsonReader::new(input);
    while let Some(event) = reader.next().map_err(refused)? {
        loader.event(event).await?;
    }
    loader.finish().await
}

/// Into a store that was claimed.
async fn load_binary(store: &dyn Store, input: impl BufRead) -> Result<Loaded, VolumeError> {
    let mut reader = BinaryReader::new(input);
    let (mut setting, mut acls) = (None, 0);
    while let Some(part) = reader.next().map_err(refused)? {
        match part {
            Part::Setting(found) => setting = Some(found),
            Part::Writes { writes, acl_max } => {
                acls = acls.max(acl_max);
                load::write(store, writes).await?;
            }
        }
    }
    if acls > 0 {
        load::write(store, vec![Write::Set(key::ACL_MAX_ID, key::decimal(acls))]).await?;
    }
    let setting = setting.ok_or_else(|| refused("it has no setting of a volume".into()))?;
    load::complete(store, &setting).await?;
    let usage = usage(store).await?;
    Ok(Loaded { inodes: usage.inodes, space: usage.space, secrets_removed: load::secrets_removed(&setting) })
}

/// The metadata store that is to become a volume.
async fn open_target(url: &MetaUrl) -> Result<Arc<dyn Store>, VolumeError> {
    if let Some(dir) = url.dir() {
        match place(dir).map_err(|e| VolumeError::Failed(format!("cannot look into {}: {e}", dir.display())))? {
            Place::Foreign => {
                return Err(VolumeError::Refused(format!(
                    "{} holds other files and no volume; name a directory that is empty or does not exist yet",
                    dir.display()
                )));
            }
            Place::Free | Place::Volume => {}
        }
    }
    let store = open_store(url, RedisOptions { patience: Some(COMMAND_PATIENCE), writes: true }).await?;
    if let Some(setting) = load_setting(store.as_ref()).await? {
        return Err(VolumeError::Refused(format!("database {url} is used by volume {}", setting.name())));
    }
    Ok(store)
}

/// The directory at a path from the root.
async fn walk_to(store: &dyn Store, path: &str) -> Result<Ino, VolumeError> {
    let mut at = Ino::ROOT;
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        let answer = store.read(&[Query::HGet(key::dir(at), part.as_bytes().to_vec().into())]).await?;
        at = match answer.first() {
            Some(Value::Bytes(Some(entry))) => match decode_entry(entry) {
                Some((Kind::Dir, ino)) => ino,
                _ => return Err(VolumeError::Refused(format!("--subdir {path}: {part:?} is no directory"))),
            },
            _ => return Err(VolumeError::Refused(format!("--subdir {path}: there is no {part:?}"))),
        };
    }
    Ok(at)
}

/// The slices a dump names. Those whose data is a frame beside the metadata are stored as objects.
pub struct Slices<'a> {
    store: &'a dyn Store,
    /// Of the volume; `None` if it is known to have no frames.
    url: Option<&'a MetaUrl>,
    /// Opened when the first frame is found.
    volume: Option<Volume>,
    drained: u64,
}

impl Slices<'_> {
    /// Looks at a slice.
    async fn note(&mut self, record: &SliceRecord) -> Result<(), VolumeError> {
        if record.id > 0 && record.size <= FRAME_BYTES_MAX { self.drain(record.id, record.size).await } else { Ok(()) }
    }

    async fn drain(&mut self, id: u64, size: u32) -> Result<(), VolumeError> {
        let Some(url) = self.url else { return Ok(()) };
        if self.store.frame(id).await?.is_none() {
            return Ok(());
        }
        if self.volume.is_none() {
            let options = VolumeOptions {
                read_only: true,
                mountpoint: String::new(),
                atime: AtimeMode::Never,
                buffer_bytes: 16 << 20,
                cache: CacheOptions::default(),
                // A command gives up in the end.
                transfers: TransferOptions { retries: Some(COMMAND_RETRIES), ..TransferOptions::default() },
                heartbeat: Duration::from_secs(12),
            };
            self.volume = Some(Volume::open(url, options).await?);
        }
        if let Some(volume) = &self.volume {
            let drained = volume.chunks.drain_frame(id, size).await;
            self.drained += u64::from(drained.map_err(|e| VolumeError::Failed(format!("cannot store slice {id} as an object: {e}")))?);
        }
        Ok(())
    }

    async fn close(self) -> Result<(), VolumeError> {
        if self.drained > 0 {
            info!("{} small blocks that were kept beside the metadata are objects now", self.drained);
        }
        match self.volume {
            Some(volume) => volume.close().await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
