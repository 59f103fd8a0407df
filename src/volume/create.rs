//! A new volume: its setting, its root directory, its place for objects.

use crate::env::{Clock, SystemClock, SystemRandom, uuid_v4};
use crate::meta::codec::encode_attr;
use crate::meta::key;
use crate::meta::setting::{BLOCK_KIB, Setting};
use crate::meta::store::embedded::{LOCK, RESERVE};
use crate::meta::store::redis::Options as RedisOptions;
use crate::meta::store::{Commit, Guard, Query, Store, Write};
use crate::object::{ObjectError, ObjectStore};
use crate::types::{Attr, Ino, Time};
use crate::volume::config::replace_setting;
use crate::volume::objects::{OBJECTS, TESTING, UUID_OBJECT, check_bucket, directories, is_empty, location, open_objects};
use crate::volume::stores::{COMMAND_PATIENCE, DATABASE, load_setting, open_store};
use crate::volume::{MetaUrl, VolumeError, codec, gate, wanted};
use bytes::Bytes;
use serde_json::json;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

/// Block size of a volume that does not say otherwise, in KiB.
pub const BLOCK_KIB_DEFAULT: u64 = 4096;
/// What a volume keeps its objects in if nothing is said.
const STORAGE_DEFAULT: &str = "file";
/// Set, it keeps a creation from testing and looking into the bucket, and from marking it (cli §12).
const NO_CHECK: &str = "JFS_NO_CHECK_OBJECT_STORAGE";
/// Days a volume keeps deleted files unless it is told otherwise (cli §4.1).
const TRASH_DAYS: u64 = 1;
/// The same of a local volume: a directory of one user has other ways back.
const TRASH_DAYS_LOCAL: u64 = 0;
/// Fewest and most characters of a volume's name.
const NAME_CHARS: std::ops::RangeInclusive<usize> = 3..=63;

/// What a new volume is to be. Of an existing one, only what is `Some` is changed.
#[derive(Clone, Debug, Default)]
pub struct NewVolume {
    /// Its name, also the first part of every object's key.
    pub name: String,
    /// Block size in KiB.
    pub block_kib: Option<u64>,
    /// Bytes it may use, 0 = unlimited.
    pub capacity: Option<u64>,
    /// Inodes it may have, 0 = unlimited.
    pub inodes: Option<u64>,
    /// Objects are spread over 256 prefixes.
    pub hash_prefix: Option<bool>,
    /// What keeps the objects: `file`, `s3` or `minio`; `file` if `None`.
    pub storage: Option<String>,
    /// Bucket URL, or directory of the objects: inside the volume's own if `None`.
    pub bucket: Option<String>,
    /// Access key of the bucket; from the environment of every client if `None`.
    pub access_key: Option<String>,
    /// Secret key of the bucket.
    pub secret_key: Option<String>,
    /// Token for temporary keys.
    pub session_token: Option<String>,
    /// Storage class of objects; the bucket's own if `None`.
    pub storage_class: Option<String>,
    /// Compression of blocks, by name; none if `None`.
    pub compression: Option<String>,
    /// The PEM text of the key that encrypts objects; they are not encrypted if `None`.
    pub encrypt_key: Option<String>,
    /// Algorithm of that.
    pub encrypt_algo: Option<String>,
    /// Buckets over which objects are spread.
    pub shards: Option<u64>,
    /// Days deleted files are kept. A volume on a server has 1 if `None`, a local one 0.
    pub trash_days: Option<u64>,
    /// POSIX ACLs; cannot be switched off again.
    pub enable_acl: bool,
    /// Take a bucket that holds objects under the name, or is not known to hold the volume's.
    pub force: bool,
}

/// What `create` found.
#[derive(Debug)]
pub enum Created {
    /// Nothing was there.
    New(Setting),
    /// A volume was there and its setting is now this.
    Updated(Setting),
}

/// What stands in a directory that is to be a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing: it is missing or empty.
    Free,
    /// A volume, possibly one whose creation was cut short.
    Volume,
    /// Something else.
    Foreign,
}

/// Looks at a directory without changing it.
pub fn place(dir: &Path) -> io::Result<Place> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Place::Free),
        Err(error) => Err(error),
        Ok(mut entries) => {
            if dir.join(DATABASE).exists() {
                return Ok(Place::Volume);
            }
            // These alone are what another process leaves that creates the same volume right now.
            let ours = |name: &std::ffi::OsStr| name == LOCK || name == RESERVE;
            let foreign = entries.try_fold(false, |foreign, entry| io::Result::Ok(foreign | !ours(&entry?.file_name())))?;
            Ok(if foreign { Place::Foreign } else { Place::Free })
        }
    }
}

/// The name of a volume that nobody named: that of its directory, if it can be one.
pub fn name_of(dir: &Path) -> String {
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if check_name(&name).is_ok() { name } else { "pando".into() }
}

/// Whether a volume may have this name; the message says why not.
pub fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = name.as_bytes();
    let ok = NAME_CHARS.contains(&bytes.len())
        && bytes.iter().all(|c| plain(*c) || *c == b'-')
        && bytes.first().is_some_and(|c| plain(*c))
        && bytes.last().is_some_and(|c| plain(*c));
    if ok {
        return Ok(());
    }
    Err(format!("invalid name: {name:?}, only alphabet, number and - are allowed, and the length should be 3 to 63 characters."))
}

/// Makes a volume in the directory of `url`, or changes the setting of the one that is there.
pub async fn create(url: &MetaUrl, wanted: &NewVolume) -> Result<Created, VolumeError> {
    check_name(&wanted.name).map_err(VolumeError::Refused)?;
    let Some(dir) = url.dir() else {
        let store = open_store(url, RedisOptions { patience: Some(COMMAND_PATIENCE), writes: true }).await?;
        return create_over(url, store, wanted).await;
    };
    match place(dir).map_err(|e| VolumeError::Failed(format!("cannot look into {}: {e}", dir.display())))? {
        Place::Foreign => {
            return Err(VolumeError::Refused(format!(
                "{} holds other files and no volume; name a directory that is empty or does not exist yet",
                dir.display()
            )));
        }
        Place::Free | Place::Volume => make_dir(dir)?,
    }
    // Nobody waits for a server here.
    let store = open_store(url, RedisOptions { patience: None, writes: true }).await?;
    create_over(url, store, wanted).await
}

async fn create_over(url: &MetaUrl, store: Arc<dyn Store>, wanted: &NewVolume) -> Result<Created, VolumeError> {
    match load_setting(store.as_ref()).await? {
        Some(setting) => update(url, store, setting, wanted).await,
        None => create_in(url, store, wanted).await,
    }
}

async fn create_in(url: &MetaUrl, store: Arc<dyn Store>, wanted: &NewVolume) -> Result<Created, VolumeError> {
    let uuid = uuid_v4(&SystemRandom);
    let block_kib = wanted.block_kib.unwrap_or(BLOCK_KIB_DEFAULT);
    assert!(BLOCK_KIB.contains(&block_kib) && block_kib.is_power_of_two(), "the command line rounds block sizes");
    let storage = wanted.storage.as_deref().unwrap_or(STORAGE_DEFAULT);
    let bucket = match &wanted.bucket {
        Some(bucket) => bucket.clone(),
        None if storage == STORAGE_DEFAULT => bucket_of(url),
        None => return Err(VolumeError::Refused(format!("storage {storage} needs a bucket, e.g. --bucket https://HOST/BUCKET"))),
    };
    let mut setting = Setting::new(&wanted.name, &uuid, storage, &bucket, block_kib);
    wanted::apply_new(&mut setting, wanted, if url.dir().is_some() { TRASH_DAYS_LOCAL } else { TRASH_DAYS })?;
    gate::check(&setting).map_err(VolumeError::Refused)?;
    let uuid_object = match codec::encryption(&setting)? {
        None => Bytes::from(uuid),
        Some(encryption) => encryption.seal(uuid.as_bytes()).map_err(VolumeError::Failed)?.into(),
    };
    let objects = match prepare_bucket(url, &setting, wanted.force).await {
        Ok(objects) => objects,
        // Perhaps another process made the volume meanwhile, and what lies in the bucket is its own.
        Err(error) => match load_setting(store.as_ref()).await? {
            Some(setting) => return update(url, store, setting, wanted).await,
            None => return Err(error),
        },
    };
    let root_record = directory_record(0o777);
    // One commit: there is never a volume without a root. Of two processes that create the same volume the guard lets one win. Counters or
    // a root without a setting are those of a load that was cut, or goes on: new inodes would get the lists of old ones.
    let guards = [key::SETTING, key::NEXT_INODE, key::inode(Ino::ROOT)].map(|key| Guard::Value(key, None));
    let mut writes = vec![Write::Set(key::SETTING, setting.encode().into()), Write::Set(key::inode(Ino::ROOT), root_record)];
    if setting.trash_days() > 0 {
        let (name, record) = trash_root();
        writes.push(Write::Set(name, record));
    }
    match store.commit(&guards, &writes, &[] as &[Query]).await? {
        Commit::Done { .. } => {
            store.sync().await?;
            if checks_buckets() {
                let object = format!("{}/{UUID_OBJECT}", wanted.name);
                if let Err(error) = objects.put(&object, uuid_object).await {
                    tracing::warn!("cannot store {object}: {error}");
                }
            }
            Ok(Created::New(setting))
        }
        Commit::Conflict(_) => match load_setting(store.as_ref()).await? {
            Some(setting) => update(url, store, setting, wanted).await,
            None => Err(VolumeError::Refused(format!(
                "{url} holds metadata of a volume without its setting, as a load that was cut or is under way leaves; empty it first"
            ))),
        },
    }
}

/// The bucket of a new volume: it works, and nobody else's objects lie under the name.
async fn prepare_bucket(url: &MetaUrl, setting: &Setting, force: bool) -> Result<Arc<dyn ObjectStore>, VolumeError> {
    let dir = url.dir();
    for root in directories(setting, dir)? {
        make_dir(&root)?;
    }
    let objects = open_objects(setting, dir).await?;
    if !checks_buckets() {
        return Ok(objects);
    }
    let place = location(setting, dir);
    let wrong = |why: String| VolumeError::Failed(format!("Storage {place} is not configured correctly: {why}"));
    check_bucket(objects.as_ref(), setting.name()).await.map_err(wrong)?;
    if let Some(root) = dir.filter(|_| setting.bucket() == bucket_of(url)) {
        let stray = objects.list("", "", 1).await.map_err(|e| wrong(format!("cannot list objects: {e}")))?;
        let of_volume = stray.first().filter(|object| object.size > 0 && !object.key.contains(TESTING));
        if let (Some(object), false) = (of_volume, force) {
            let volume = object.key.split('/').next().unwrap_or_default();
            return Err(VolumeError::Refused(format!(
                "the objects of volume {volume} are in {}, and its metadata are not: {DATABASE} is lost or was emptied; put it back, or see `pando restore-meta --help`",
                root.display()
            )));
        }
    }
    let empty = is_empty(objects.as_ref(), setting.name()).await.map_err(|e| wrong(format!("cannot list objects: {e}")))?;
    if !empty && !force {
        return Err(VolumeError::Refused(format!("Storage {place} is not empty; please clean it up or pick another volume name")));
    }
    Ok(objects)
}

fn checks_buckets() -> bool {
    std::env::var_os(NO_CHECK).is_none_or(|value| value.is_empty())
}

async fn update(url: &MetaUrl, store: Arc<dyn Store>, old: Setting, wanted: &NewVolume) -> Result<Created, VolumeError> {
    gate::check(&old).and_then(|()| gate::check_writable(&old)).map_err(VolumeError::Refused)?;
    let mut new = old.clone();
    wanted::apply_update(&mut new, wanted)?;
    if let Some(storage) = &wanted.storage {
        new.set("Storage", json!(storage));
    }
    if let Some(bucket) = &wanted.bucket {
        new.set("Bucket", json!(bucket));
    }
    gate::check(&new).map_err(VolumeError::Refused)?;
    if (new.storage(), new.bucket()) != (old.storage(), old.bucket()) && !wanted.force {
        check_objects(url, &new).await?;
    }
    if new != old {
        replace_setting(store.as_ref(), &old, &new).await?;
    }
    Ok(Created::Updated(new))
}

/// Whether the objects of a volume are where its setting says; says what to do if not.
pub(super) async fn check_objects(url: &MetaUrl, setting: &Setting) -> Result<(), VolumeError> {
    let place = location(setting, url.dir());
    let failed = |why: String| VolumeError::Refused(format!("cannot look for the objects of the volume at {place}: {why}"));
    let objects = open_objects(setting, url.dir()).await.map_err(|e| failed(e.to_string()))?;
    match objects.head(&format!("{}/{UUID_OBJECT}", setting.name())).await {
        Ok(_) => Ok(()),
        Err(ObjectError::Missing) => Err(VolumeError::Refused(format!(
            "{place} does not hold the objects of volume {}; copy them there first, or add --force",
            setting.name()
        ))),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Directory of the objects if none is named: inside that of the volume; beside a server where the format's client puts them.
fn bucket_of(url: &MetaUrl) -> String {
    // SAFETY: geteuid has no preconditions.
    let home = std::env::var("HOME").ok().filter(|_| unsafe { libc::geteuid() } != 0);
    match (url.dir(), home) {
        (Some(_), _) => format!("{OBJECTS}/"),
        (None, None) => "/var/jfs/".into(),
        (None, Some(home)) => format!("{home}/.juicefs/local/"),
    }
}

/// Key and record of the directory that holds what was deleted.
pub(super) fn trash_root() -> (Bytes, Bytes) {
    (key::inode(Ino::TRASH), directory_record(0o555))
}

/// A directory of the top, as it is made with the volume.
fn directory_record(mode: u16) -> Bytes {
    let now = Time { sec: SystemClock::new().now().sec, nsec: 0 };
    encode_attr(&Attr::new_dir(mode, Ino::ROOT, now))
}

/// Creates a directory and makes its own entry durable, or a power cut could take a new volume with all its synced files.
fn make_dir(dir: &Path) -> Result<(), VolumeError> {
    let failed = |e: io::Error| VolumeError::Failed(format!("cannot create the directory {}: {e}", dir.display()));
    let missing: Vec<&Path> = dir.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    // Whoever could read the database and the objects would pass by all permissions of the files inside.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    for path in missing {
        if let Some(parent) = path.parent() {
            fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["abc", "a-b", "0123", "vol-1"] {
            assert_eq!(check_name(good), Ok(()));
        }
        for bad in ["", "ab", "A_bad", "-abc", "abc-", "a b", &"x".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert_eq!(name_of(Path::new("/tmp/my-vol")), "my-vol");
        assert_eq!(name_of(Path::new("/tmp/My Vol")), "pando");
        assert_eq!(name_of(Path::new("/")), "pando");
    }

    #[tokio::test]
    async fn what_is_left_of_another_volume_is_no_place_for_a_new_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let url = MetaUrl::Embedded(dir.path().join("volume"));
        make_dir(&dir.path().join("volume")).expect("made");
        let store = open_store(&url, RedisOptions { patience: None, writes: true }).await.expect("opens");
        let wanted = NewVolume { name: "new".into(), ..NewVolume::default() };
        for left in [key::NEXT_INODE, key::inode(Ino::ROOT)] {
            store.commit(&[], &[Write::Set(left.clone(), "1".into())], &[]).await.expect("commits");
            assert!(matches!(create_over(&url, store.clone(), &wanted).await, Err(VolumeError::Refused(_))), "{left:?}");
            store.commit(&[], &[Write::Del(left)], &[]).await.expect("commits");
        }
        assert!(matches!(create_over(&url, store, &wanted).await, Ok(Created::New(_))));
    }

    #[test]
    fn places() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(place(&dir.path().join("missing")).expect("looks"), Place::Free);
        assert_eq!(place(dir.path()).expect("looks"), Place::Free);
        fs::write(dir.path().join("letter"), "x").expect("writes");
        assert_eq!(place(dir.path()).expect("looks"), Place::Foreign);
        fs::write(dir.path().join(DATABASE), "").expect("writes");
        assert_eq!(place(dir.path()).expect("looks"), Place::Volume);
    }
}
