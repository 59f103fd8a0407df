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

pub use file::{DumpInput, DumpOutput, Spool, nameless};
pub use load::Loaded;

use crate::block::FRAME_BYTES_MAX;
use crate::chunk::Chunks;
use crate::env::{Begun, Clock, SystemClock};
use crate::meta::codec::decode_entry;
use crate::meta::key;
use crate::meta::setting::Setting;
use crate::meta::store::embedded::{LOCK, RESERVE};
use crate::meta::store::redis::Options as RedisOptions;
use crate::meta::store::{Query, Sharing, Store, Value, Write};
use crate::telemetry::progress;
use crate::types::{Errno, Ino, Kind, SliceRecord};
use crate::volume::journal::{self, kept};
use crate::volume::objects::OBJECTS;
use crate::volume::restore_meta::ids;
use crate::volume::stores::{COMMAND_PATIENCE, load_setting, open_store, usage};
use crate::volume::{MetaUrl, Place, Stores, Volume, VolumeError, place};
use binary_read::{BinaryReader, Part};
use json_read::JsonReader;
use load::{Check, Loader};
use std::fs;
use std::io::{self, BufRead};
use std::path::Path;
use std::sync::Arc;
use tracing::{info, warn};

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
pub async fn dump(url: &MetaUrl, options: &DumpOptions, out: &mut (dyn io::Write + Send)) -> Result<(), VolumeError> {
    // Without its objects: a dump may hold what this build could not use.
    let (store, setting) = Stores::metadata(url).await?;
    if !options.binary && !options.keep_secrets && ["SecretKey", "SessionToken"].iter().any(|field| setting.has(field)) {
        warn!("Secret key is removed for the sake of safety");
    }
    let mut slices = Slices::of(store.as_ref(), Frames::Of(url));
    progress::stage("inodes", usage(store.as_ref()).await.map_or(0, |usage| usage.inodes.max(0).unsigned_abs()));
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

/// Writes the metadata of a volume that is open as JSON, secrets removed. `chunks` are its own.
pub async fn dump_open(
    store: &dyn Store,
    setting: &Setting,
    chunks: &Chunks,
    skip_trash: bool,
    out: &mut (dyn io::Write + Send),
) -> Result<(), VolumeError> {
    let options = DumpOptions { skip_trash, ..DumpOptions::default() };
    let mut slices = Slices::of(store, Frames::Open(chunks));
    json::write(store, setting, &options, &mut slices, out).await?;
    slices.close().await
}

/// Makes the metadata of a new volume from a dump in the JSON or the binary form.
pub async fn load(url: &MetaUrl, input: &mut DumpInput, binary: bool) -> Result<Loaded, VolumeError> {
    load_as(url, input, binary, None).await
}

/// What becomes of the setting of a dump before it is written.
pub type Change<'a> = &'a (dyn Fn(&mut Setting) -> Result<(), VolumeError> + Sync);

/// The same with a setting that is changed. Such a volume takes the place of one that was in use after the dump was made: numbers given out
/// since are not given out again, or the load fails. Otherwise that is so if the bucket answers.
pub(super) async fn load_as(url: &MetaUrl, input: &mut DumpInput, binary: bool, change: Option<Change<'_>>) -> Result<Loaded, VolumeError> {
    if binary {
        check_binary(input.reader()?)?;
    } else {
        check_json(input.reader()?)?;
    }
    let store = open_target(url).await?;
    load::claim(store.as_ref()).await?;
    let loading = async {
        let store = store.as_ref();
        let loaded = if binary { load_binary(store, input.reader()?).await } else { load_json(store, input.reader()?).await };
        let (mut loaded, mut setting) = loaded?;
        if let Some(change) = change {
            change(&mut setting)?;
        }
        let firmness = if change.is_some() { ids::Firmness::Always } else { ids::Firmness::IfBehind };
        loaded.first_slice = ids::pass_by(store, &setting, url.dir(), firmness).await?;
        loaded.secrets_removed = load::secrets_removed(&setting);
        load::complete(store, &setting).await?;
        Ok(loaded)
    };
    let loaded: Result<Loaded, VolumeError> = loading.await;
    loaded.map_err(|error| VolumeError::Failed(format!("{error}; what was loaded is no volume: empty the target before another try")))
}

fn not_stored(error: Errno) -> VolumeError {
    VolumeError::Failed(format!("cannot store small blocks as objects: {error}"))
}

fn refused(why: String) -> VolumeError {
    VolumeError::Refused(format!("the dump cannot be loaded: {why}"))
}

/// Reads a whole dump; what it says is wrong would otherwise be found when half of it is loaded.
fn check_json(input: impl BufRead) -> Result<(), VolumeError> {
    let mut reader = JsonReader::new(input);
    let mut check = Check::default();
    progress::stage("inodes to check", 0);
    while let Some(event) = reader.next().map_err(refused)? {
        progress::add(1, 0);
        check.event(&event).map_err(refused)?;
    }
    Ok(())
}

fn check_binary(input: impl BufRead) -> Result<(), VolumeError> {
    let mut reader = BinaryReader::new(input);
    let mut settings = 0;
    progress::stage("parts to check", 0);
    while let Some(part) = reader.next().map_err(refused)? {
        progress::add(1, 0);
        settings += u32::from(matches!(part, Part::Setting(_)));
    }
    if settings == 1 { Ok(()) } else { Err(refused(format!("it has {settings} settings of a volume"))) }
}

/// Into a store that was claimed.
async fn load_json(store: &dyn Store, input: impl BufRead) -> Result<(Loaded, Setting), VolumeError> {
    let mut loader = Loader::new(store, SystemClock::new().now());
    let mut reader = JsonReader::new(input);
    // All were read once.
    progress::stage("inodes", progress::now().count);
    while let Some(event) = reader.next().map_err(refused)? {
        progress::add(1, 0);
        loader.event(event).await?;
    }
    loader.finish().await
}

/// Into a store that was claimed.
async fn load_binary(store: &dyn Store, input: impl BufRead) -> Result<(Loaded, Setting), VolumeError> {
    let mut reader = BinaryReader::new(input);
    let (mut setting, mut acls) = (None, 0);
    // While one part is written the next is read.
    let mut committing: Option<Begun<'_, Result<(), VolumeError>>> = None;
    progress::stage("parts", progress::now().count);
    while let Some(part) = reader.next().map_err(refused)? {
        progress::add(1, 0);
        match part {
            Part::Setting(found) => setting = Some(found),
            Part::Writes { writes, acl_max } => {
                acls = acls.max(acl_max);
                if let Some(before) = committing.take() {
                    before.end().await?;
                }
                committing = Some(Begun::begin(Box::pin(load::write(store, writes))).await);
            }
        }
    }
    if let Some(last) = committing {
        last.end().await?;
    }
    if acls > 0 {
        load::write(store, vec![Write::Set(key::ACL_MAX_ID, key::decimal(acls))]).await?;
    }
    let setting = setting.ok_or_else(|| refused("it has no setting of a volume".into()))?;
    let usage = usage(store).await?;
    Ok((Loaded { inodes: usage.inodes, space: usage.space, ..Loaded::default() }, setting))
}

/// The metadata store that is to become a volume.
async fn open_target(url: &MetaUrl) -> Result<Arc<dyn Store>, VolumeError> {
    if let Some(dir) = url.dir() {
        match place(dir).map_err(|e| VolumeError::Failed(format!("cannot look into {}: {e}", dir.display())))? {
            // What is left of a volume whose metadata is lost.
            Place::Foreign if only_objects(dir) => {}
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

/// Whether a directory holds the objects of a volume and nothing else.
fn only_objects(dir: &Path) -> bool {
    let known =
        |entry: io::Result<fs::DirEntry>| entry.is_ok_and(|entry| [OBJECTS, LOCK, RESERVE].iter().any(|name| entry.file_name() == *name));
    fs::read_dir(dir).is_ok_and(|mut entries| entries.all(known))
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

/// Through what the frames of a volume become objects.
enum Frames<'a> {
    /// The volume at this address, opened when the first is found.
    Of(&'a MetaUrl),
    /// The same, open.
    Opened(Box<Volume>),
    /// The chunks of a volume that somebody else has open.
    Open(&'a Chunks),
    /// There are none.
    #[cfg(test)]
    None,
}

/// The slices a dump names. Those whose data is a frame beside the metadata are stored as objects.
pub struct Slices<'a> {
    store: &'a dyn Store,
    frames: Frames<'a>,
    drained: u64,
}

impl<'a> Slices<'a> {
    fn of(store: &'a dyn Store, frames: Frames<'a>) -> Slices<'a> {
        Slices { store, frames, drained: 0 }
    }

    /// Looks at a slice.
    async fn note(&mut self, record: &SliceRecord) -> Result<(), VolumeError> {
        // Those on a server are few, and are looked for together at the end.
        let looks = record.id > 0 && record.size <= FRAME_BYTES_MAX && self.store.sharing() != Sharing::Server;
        if looks && self.store.frame(record.id).await?.is_some() {
            let Some(chunks) = self.chunks().await? else { return Ok(()) };
            let drained = chunks.drain_frames(&[(record.id, Some(record.size))]).await;
            self.drained += drained.and_then(|drained| drained.failed.map_or(Ok(drained.stored), Err)).map_err(not_stored)?;
        }
        Ok(())
    }

    /// Through what frames become objects.
    async fn chunks(&mut self) -> Result<Option<&Chunks>, VolumeError> {
        if let Frames::Of(url) = self.frames {
            self.frames = Frames::Opened(Box::new(Volume::open(url, journal::drainer_options()).await?));
        }
        Ok(match &self.frames {
            Frames::Opened(volume) => Some(&volume.chunks),
            Frames::Open(chunks) => Some(chunks),
            _ => None,
        })
    }

    async fn close(mut self) -> Result<(), VolumeError> {
        if self.store.sharing() == Sharing::Server && kept(self.store).await?.count > 0 {
            // Whatever the dump names and was not an object when it was read is one of these.
            if let Some(chunks) = self.chunks().await? {
                self.drained += chunks.drain_all().await.map_err(not_stored)?;
            }
        }
        if self.drained > 0 {
            info!("{} small blocks that were kept beside the metadata are objects now", self.drained);
        }
        match self.frames {
            Frames::Opened(volume) => volume.close().await,
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
pub(in crate::volume) mod fixture;
#[cfg(test)]
mod tests;
