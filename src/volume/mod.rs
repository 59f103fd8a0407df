//! `Volume`: one volume, opened and composed. The only place that names concrete stores.
//!
//! A volume is opened once per process; mounts are views of it. Opening is also the moment when this process becomes visible to others:
//! the order in `Volume::open` matters.

mod backup;
mod cache;
mod codec;
mod config;
mod create;
mod destroy;
mod dump;
mod fsck;
mod gate;
mod gauges;
mod gc;
mod info;
mod journal;
mod objects;
mod operator;
mod quota;
mod restore;
mod restore_meta;
mod status;
mod stores;
mod url;
mod wanted;

pub use backup::{Backup, BackupOptions};
pub use config::{Change, Planned, commit_change, plan_change, setting};
pub use create::{BLOCK_KIB_DEFAULT, Created, NewVolume, Place, check_name, create, name_of, place};
pub use destroy::{Destroyed, Doomed};
pub use dump::{DumpInput, DumpOptions, DumpOutput, Loaded, dump, load};
pub use fsck::{Finding, FsckSummary, PathCheck, check_path, fsck, repair};
pub use gate::CLIENT_LEVEL;
pub use gauges::Gauges;
pub use gc::{Amount, GcOptions, GcSummary, gc};
pub use info::{ChunkLine, Description, ObjectLine, describe};
pub use journal::{drain, status as journal_status};
pub use objects::{check_bucket, location};
pub use operator::{Failure, Operator, Progress};
pub use quota::{Checked, Named, Owner, Quotas};
pub use restore::restore;
pub use restore_meta::{Restored, Source, list_backups, restore_meta};
pub use status::{session, status};
pub use stores::{COMMAND_PATIENCE, Stores};
pub use url::MetaUrl;

pub use crate::meta::ops::session::SessionEntry;

use crate::block::{Bandwidth, BlockConfig, BlockStore, Tuning};
use crate::cache::{CacheOptions, DiskCache};
use crate::chunk::Chunks;
use crate::env::{Budget, Clock, Share, SystemClock};
use crate::jobs::{self, JobsConfig, JobsHandle};
use crate::meta::ops::session::{VERSION, host_name};
use crate::meta::setting::Setting;
use crate::meta::store::redis::Options as RedisOptions;
use crate::meta::store::{Sharing, Store, StoreError};
use crate::meta::{AtimeMode, Meta, MetaConfig};
use crate::types::{Caller, Duty, Errno, FrameSource, Ino, Kind, Name};
use crate::vfs::writer::{Writers, WritersConfig};
use crate::vfs::{Vfs, VfsConfig};
use backup::Backups;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{info, warn};

/// Longest time for which a kernel may believe what a process that has a volume for itself told it. A process that joins waits this long
/// before it changes anything, so it is also the delay of a second mount; the usual timeout of the command line.
pub const KERNEL_TTL_MAX: Duration = Duration::from_secs(1);
/// Added to that wait: the timeout is counted from the kernel's receipt of an answer that the other process may just be writing.
const KERNEL_TTL_SLACK: Duration = Duration::from_millis(100);
/// Background work waiting. More is found again by the periodic scans; one entry is 24 bytes.
const DUTIES_QUEUED_MAX: usize = 16 * 1024;
/// How often it is looked whether the metadata are still those of the volume. Whoever notices it stops writing at once.
const DISOWNED_LOOK: Duration = Duration::from_secs(1);
/// How long the end of a volume waits for small blocks to become objects: what a bucket that answers takes for as many as there can be. What is
/// left is as safe as the metadata.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(20);
/// How long it waits for metadata that cannot be reached, where nothing is lost without them: twice within the half minute that container
/// runtimes often give.
const END_TIME_MAX: Duration = Duration::from_secs(5);
/// The same for staged blocks if somebody asked for all of them, and waits for this process: less than he does.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(100);
/// How long the end of a volume waits for blocks that are still to be cached on disk. They are in the bucket already.
const CACHE_FLUSH: Duration = Duration::from_secs(1);

/// Why a volume cannot be used.
#[derive(Debug)]
pub enum VolumeError {
    /// There is no volume at this address.
    NotFormatted(String),
    /// It is there, but must not or cannot be used this way; says what to do.
    Refused(String),
    /// Something outside failed.
    Failed(String),
}

impl fmt::Display for VolumeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VolumeError::NotFormatted(url) => {
                write!(f, "database is not formatted: {url} holds no volume; the command `format {url} NAME` makes one")
            }
            VolumeError::Refused(why) | VolumeError::Failed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for VolumeError {}

impl From<StoreError> for VolumeError {
    fn from(error: StoreError) -> VolumeError {
        VolumeError::Failed(error.to_string())
    }
}

/// How a volume is used by this process.
#[derive(Clone, Debug)]
pub struct VolumeOptions {
    /// Nothing is changed: no session, no background work.
    pub read_only: bool,
    /// What others see as the place of this session.
    pub mountpoint: String,
    /// When access times are kept.
    pub atime: AtimeMode,
    /// Bytes for buffers and the memory cache together.
    pub buffer_bytes: usize,
    /// How blocks are carried, as far as the user has said.
    pub transfers: TransferOptions,
    /// How often the session is renewed.
    pub heartbeat: Duration,
    /// Blocks cached on this host.
    pub cache: CacheOptions,
    /// Backups of the metadata; `None`: this process takes none.
    pub backup: Option<BackupOptions>,
    /// Whether small blocks may be kept beside the metadata.
    pub journal: bool,
    /// Whether this process does work that other clients of the volume could do as well, backups included.
    pub background: bool,
}

/// What a user can say about uploads and downloads (cli §6.1).
#[derive(Clone, Debug, PartialEq)]
pub struct TransferOptions {
    /// Most uploads at once.
    pub uploads_max: usize,
    /// Most downloads at once.
    pub downloads_max: usize,
    /// Most objects removed at once; 0 = others of the volume's clients remove what is to go.
    pub deletes_max: usize,
    /// Mbit/s to the bucket, 0 = unlimited; `None` = as the setting says.
    pub upload_limit: Option<u64>,
    /// Mbit/s from the bucket.
    pub download_limit: Option<u64>,
    /// Longest time of one attempt to store a block.
    pub put_time_max: Duration,
    /// Longest time of one attempt to fetch one.
    pub get_time_max: Duration,
    /// Retries; `None` = as long as it takes if the bucket is on a server.
    pub retries: Option<u32>,
    /// Bytes fetched ahead of one reader; `None` = eight blocks.
    pub readahead_bytes: Option<u64>,
    /// Whole blocks fetched at once after a part of them was read.
    pub prefetches_max: usize,
}

impl Default for TransferOptions {
    fn default() -> TransferOptions {
        let Tuning { uploads_max, downloads_max, deletes_max, put_time_max, get_time_max, .. } = Tuning::default();
        TransferOptions {
            uploads_max,
            downloads_max,
            deletes_max,
            upload_limit: None,
            download_limit: None,
            put_time_max,
            get_time_max,
            retries: None,
            readahead_bytes: None,
            prefetches_max: 1,
        }
    }
}

/// One view of a volume.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Directory that becomes the root, `/`-separated from the root of the volume; made if it is missing.
    pub subdir: Option<String>,
    /// Whether changes are refused.
    pub read_only: bool,
    /// Whether extended attributes are offered.
    pub xattr: bool,
    /// Whether `.trash` appears in the root of a volume; never in that of a subdirectory.
    pub show_internal: bool,
    /// Kernel timeouts for attributes, names of files, names of directories; on an embedded volume
    /// never above `KERNEL_TTL_MAX`.
    pub attr_ttl: Duration,
    /// See `attr_ttl`.
    pub entry_ttl: Duration,
    /// See `attr_ttl`.
    pub dir_entry_ttl: Duration,
    /// Replaces the umask of callers.
    pub umask: Option<u16>,
}

/// Part of the memory for buffers that writers keep whatever is being fetched, and as much the other way round; the rest goes to who needs it.
const OWN_PART: usize = 4;

/// A volume in use by this process.
pub struct Volume {
    name: String,
    meta: Arc<Meta>,
    blocks: Arc<BlockStore>,
    disk: Option<Arc<DiskCache>>,
    chunks: Arc<Chunks>,
    writers: Arc<Writers>,
    /// `None` on a read-only volume.
    jobs: Option<JobsHandle>,
    read_only: bool,
    /// A directory on the disk that holds all of it; `None` if a server holds a part.
    disk_dir: Option<PathBuf>,
}

impl Volume {
    /// Opens a volume, joins its other users, starts the background work.
    pub async fn open(url: &MetaUrl, options: VolumeOptions) -> Result<Volume, VolumeError> {
        // A server that is away later is a pause for applications, not a failure.
        let server = RedisOptions { patience: None, writes: !options.read_only };
        let attempt_time_max = options.transfers.put_time_max.max(options.transfers.get_time_max);
        let stores = Stores::open_for(url, server, attempt_time_max).await?;
        objects::check_reachable(&stores.setting, stores.objects.as_ref()).await?;
        let disk_dir = match (url.dir(), objects::directories(&stores.setting, url.dir())?.as_slice()) {
            (Some(_), [objects]) => Some(objects.clone()),
            _ => None,
        };
        Ok(Volume { disk_dir, ..Volume::over(stores, options).await? })
    }

    /// The same over stores that are open; tests bring stores that fail.
    pub async fn over(stores: Stores, options: VolumeOptions) -> Result<Volume, VolumeError> {
        let Stores { store, setting, objects } = stores;
        if !options.read_only {
            gate::check_writable(&setting).map_err(VolumeError::Refused)?;
        }
        // A missing passphrase is told before others see a session.
        let codec = codec::codec(&setting)?;
        // From here on others see that they are not alone and let kernels remember nothing. What they told them before still holds for a
        // while: a change made now would not be seen through those mounts.
        if !options.read_only && store.sharing() == Sharing::Neighbours {
            info!("volume {} is in use by another process; waiting for its kernel timeouts to end", setting.name());
            tokio::time::sleep(KERNEL_TTL_MAX + KERNEL_TTL_SLACK).await;
        }
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let (ask, duties) = mpsc::channel::<Duty>(DUTIES_QUEUED_MAX);
        let meta = Arc::new(Meta::new(MetaConfig { store, clock, setting: setting.clone(), duties: ask, atime: options.atime }));
        meta.watch().await;
        if !options.journal {
            meta.journal().switch_off();
        }
        meta.load_quotas().await.map_err(|e| failed("cannot read the quotas", e))?;
        let frames: Arc<dyn FrameSource> = meta.clone();
        let cache::Caches { memory, disk, left_bytes } = cache::open(&options.cache, &setting, options.buffer_bytes);
        let budget = Budget::new(left_bytes - 2 * (left_bytes / OWN_PART));
        let [written, carried] = [(); 2].map(|()| budget.share(left_bytes / OWN_PART));
        let tuning = tuning(&options, &setting, carried, meta.clone());
        let blocks = BlockStore::new(BlockConfig {
            objects: objects.clone(),
            prefix: setting.name().into(),
            hash_prefix: setting.hash_prefix(),
            block_bytes: setting.block_bytes(),
            codec,
            cache: memory,
            disk: disk.clone(),
            frames,
            tuning,
        });
        let chunks = Chunks::new(meta.clone(), blocks.clone());
        let writers = Writers::new(WritersConfig { meta: meta.clone(), blocks: blocks.clone(), memory: written });
        let mut jobs = None;
        if !options.read_only {
            let sid = meta.new_session(&options.mountpoint).await.map_err(|e| failed("cannot register the session", e))?;
            let cleaned = if options.background { meta.clean_stale_sessions().await } else { Ok(0) };
            match cleaned {
                Ok(0) => {}
                Ok(count) => info!(count, "cleaned up after sessions that ended without closing"),
                // The periodic job tries again.
                Err(error) => warn!("cannot clean up after stale sessions: {error}"),
            }
            info!(sid, "volume {} is open", setting.name());
            let backup = match options.backup {
                Some(BackupOptions { period, skip_trash }) => {
                    Some(Backups::new(meta.clone(), chunks.clone(), objects, &setting, skip_trash)?.every(period))
                }
                None => None,
            };
            let config = JobsConfig {
                heartbeat: options.heartbeat,
                background: options.background,
                backup,
                ..JobsConfig::new(meta.clone(), chunks.clone(), duties)
            };
            jobs = Some(jobs::start(config));
        }
        Ok(Volume { name: setting.name().into(), meta, blocks, disk, chunks, writers, jobs, read_only: options.read_only, disk_dir: None })
    }

    /// Name of the volume.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has POSIX ACLs.
    pub fn acl(&self) -> bool {
        self.meta.setting().enable_acl()
    }

    /// The store, for those who look at it.
    pub fn store(&self) -> &Arc<dyn Store> {
        self.meta.store()
    }

    /// Returns when the metadata are found to be those of another volume, or gone: the mount must end.
    pub async fn disowned(&self) {
        while !self.meta.is_disowned() {
            tokio::time::sleep(DISOWNED_LOOK).await;
        }
    }

    /// A view of the volume, and the inode that is its root.
    pub async fn vfs(&self, options: &MountOptions) -> Result<(Arc<Vfs>, Ino), VolumeError> {
        let root = match &options.subdir {
            Some(path) => self.subdir(path).await?,
            None => Ino::ROOT,
        };
        let longest = if self.store().sharing() == Sharing::Server { Duration::MAX } else { KERNEL_TTL_MAX };
        let config = VfsConfig {
            root,
            read_only: options.read_only || self.read_only,
            trash: options.show_internal && options.subdir.is_none(),
            // ACLs are asked for as extended attributes.
            xattr: options.xattr || self.acl(),
            attr_ttl: options.attr_ttl.min(longest),
            entry_ttl: options.entry_ttl.min(longest),
            dir_entry_ttl: options.dir_entry_ttl.min(longest),
            umask: options.umask,
            disk: self.disk_dir.clone(),
        };
        Ok((Vfs::new(self.meta.clone(), self.blocks.clone(), self.chunks.clone(), self.writers.clone(), config), root))
    }

    /// What commands may ask of a mount whose root is `root`.
    pub fn operator(&self, vfs: Arc<Vfs>, root: Ino, read_only: bool) -> Arc<Operator> {
        Arc::new(Operator {
            meta: self.meta.clone(),
            blocks: self.blocks.clone(),
            chunks: self.chunks.clone(),
            writers: self.writers.clone(),
            vfs,
            gauges: self.gauges_with(root, Vec::new()),
            root,
            read_only: read_only || self.read_only,
            background: Arc::new(tokio::sync::Semaphore::new(operator::BACKGROUND_MAX)),
            end: Default::default(),
        })
    }

    /// What metrics tell of the mount at `mountpoint`; `labels` stand at every value, beside those every client gives (cli §9.1).
    pub fn gauges(&self, root: Ino, mountpoint: &str, labels: &[(String, String)]) -> Gauges {
        let host = host_name();
        let own = [("instance", host.as_str()), ("juicefs_version", VERSION), ("mp", mountpoint), ("vol_name", &self.name)];
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        self.gauges_with(root, own.chain(labels.iter().cloned()).collect())
    }

    fn gauges_with(&self, root: Ino, labels: Vec<(String, String)>) -> Gauges {
        let clock = SystemClock::new();
        let (meta, blocks, writers) = (self.meta.clone(), self.blocks.clone(), self.writers.clone());
        Gauges { meta, blocks, disk: self.disk.clone(), writers, root, labels, clock }
    }

    /// Walks to a directory and makes what is missing of the way, 0777 and owned by root.
    async fn subdir(&self, path: &str) -> Result<Ino, VolumeError> {
        let mut at = Ino::ROOT;
        for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
            let why = |e: Errno| failed(&format!("cannot use --subdir {path}, at {part:?}"), e);
            let name = Name::new(part.as_bytes()).map_err(|_| why(Errno::INVAL))?;
            let root = Caller::root();
            let found = match self.meta.lookup(&root, at, &name).await {
                Err(Errno::NOENT) if !self.read_only => {
                    let node = crate::meta::ops::NewNode { kind: Kind::Dir, mode: 0o777, umask: 0, rdev: 0, target: b"" };
                    match self.meta.create(&root, at, &name, node).await {
                        // Somebody else made it in between.
                        Err(Errno::EXIST) => self.meta.lookup(&root, at, &name).await,
                        made => made,
                    }
                }
                Err(Errno::NOENT) => Err(Errno::ROFS),
                found => found,
            };
            let (ino, attr) = found.map_err(why)?;
            if !attr.is_dir() {
                return Err(why(Errno::NOTDIR));
            }
            at = ino;
        }
        Ok(at)
    }

    /// Writes what is buffered, ends the background work and the session, makes all of it durable. Goes on after a failure, so that
    /// as much as possible is saved; reports the first.
    pub async fn close(mut self) -> Result<(), VolumeError> {
        if self.meta.is_disowned() {
            if let Some(jobs) = self.jobs.take() {
                jobs.stop().await;
            }
            return Err(VolumeError::Failed(format!(
                "the metadata of volume {} are gone or were replaced; what was not stored is lost",
                self.name
            )));
        }
        let mut first = None;
        if let Err(error) = self.writers.flush_all().await {
            first = first.or(Some(failed("some written data could not be stored", error)));
        }
        if let Some(disk) = self.disk.take() {
            let flushed = tokio::task::spawn_blocking(move || disk.flush(CACHE_FLUSH)).await;
            // What is not cached is fetched again.
            flushed.unwrap_or_else(|error| warn!("the disk cache was not flushed: {error}"));
        }
        if let (Some(staging), Some(_)) = (self.blocks.staging(), &self.jobs) {
            let time = if staging.is_hurried() { FLUSH_TIME_MAX } else { DRAIN_TIME_MAX };
            let left = staging.settled(time).await;
            if left.blocks > 0 {
                warn!(
                    "{} staged blocks ({} bytes) are not in the bucket; other hosts cannot read them until this volume is mounted here again with the \
                     same --cache-dir",
                    left.blocks, left.bytes
                );
            }
        }
        if let Some(jobs) = self.jobs.take() {
            if tokio::time::timeout(END_TIME_MAX, jobs.stop()).await.is_err() {
                warn!("work in the background still waits for the metadata: it is ended where it is");
            }
            let left = self.chunks.drain_own_within(DRAIN_TIME_MAX).await;
            if left > 0 {
                warn!("{left} small blocks are not in the bucket yet; they are safe beside the metadata, and another mount stores them");
            }
            // The session lapses or its lock ends with this process; the next mount cleans up.
            match tokio::time::timeout(END_TIME_MAX, self.meta.close_session()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!("cannot close the session: {error}"),
                Err(_) => warn!("the metadata cannot be reached: the session is not closed, it lapses"),
            }
        }
        if let Err(error) = self.meta.sync().await {
            first = first.or(Some(failed("the metadata could not be made durable", error)));
        }
        first.map_or(Ok(()), Err)
    }
}

/// How blocks of this volume are carried.
fn tuning(options: &VolumeOptions, setting: &Setting, memory: Share, meta: Arc<Meta>) -> Tuning {
    let asked = &options.transfers;
    let on_server = setting.storage() != "file";
    // Kept nowhere, a block fetched for others is fetched in vain; and files of this host are near enough.
    let keeps = on_server && options.cache.size_bytes != Some(0);
    let (upload_limit, download_limit) = (asked.upload_limit, asked.download_limit);
    Tuning {
        uploads_max: asked.uploads_max,
        downloads_max: asked.downloads_max,
        deletes_max: asked.deletes_max,
        memory: Arc::new(memory),
        readahead_bytes: asked.readahead_bytes,
        prefetches_max: if keeps { asked.prefetches_max } else { 0 },
        // A server comes back; a disk that fails is told to who uses it.
        retries: if on_server { asked.retries } else { asked.retries.or(Tuning::default().retries) },
        put_time_max: asked.put_time_max,
        get_time_max: asked.get_time_max,
        on_server,
        bandwidth: Arc::new(move || {
            let setting = meta.setting();
            Bandwidth {
                upload: upload_limit.unwrap_or_else(|| setting.upload_limit()),
                download: download_limit.unwrap_or_else(|| setting.download_limit()),
            }
        }),
    }
}

fn failed(what: &str, error: Errno) -> VolumeError {
    VolumeError::Failed(format!("{what}: {error}"))
}
