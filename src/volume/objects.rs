//! The bucket a setting names, opened; and whether a bucket can be that of a new volume.

use crate::block::retrying;
use crate::env::{Random, Reserve, SystemRandom};
use crate::meta::setting::Setting;
use crate::meta::store::embedded::RESERVE;
use crate::object::file::FileStore;
use crate::object::s3::{Flavor, S3Config, S3Store};
use crate::object::sharded::{SHARDS_MAX, ShardedStore};
use crate::object::{ObjectError, ObjectStore};
use crate::volume::VolumeError;
use bytes::Bytes;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// Default place of the objects, inside the directory of the volume.
pub const OBJECTS: &str = "objects";
/// The object that says whose blocks lie under a name (data §1.5).
pub const UUID_OBJECT: &str = "juicefs_uuid";
/// Below it in the volume's prefix lie objects that only test a bucket (data §1.5).
pub const TESTING: &str = "testing";
/// Bytes of a test object.
const TEST_BYTES: usize = 100;
/// Random characters in its name.
const TEST_NAME_CHARS: usize = 10;
/// Pauses between the three tries of a test (cli §4.1): a bucket or key that was just made may not be known everywhere yet.
const TEST_PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];
/// Objects looked at in one listing when a bucket should be empty.
const LISTED_MAX: usize = 1000;
/// Wait for the first answer of a bucket: longer than the pauses between tries, shorter than the patience of whoever mounts.
const REACHED_TIME_MAX: Duration = Duration::from_secs(30);
/// What stands for the number of a shard in the bucket URL.
const SHARD: &str = "%d";

/// Opens the bucket of a volume. `dir` is the directory of an embedded volume: a bucket that is a relative path lies in it.
pub(super) async fn open_objects(setting: &Setting, dir: Option<&Path>) -> Result<Arc<dyn ObjectStore>, VolumeError> {
    open_objects_within(setting, dir, Duration::ZERO).await
}

/// The same; a request may take `attempt_time_max` if that is more than usual.
pub(super) async fn open_objects_within(
    setting: &Setting,
    dir: Option<&Path>,
    attempt_time_max: Duration,
) -> Result<Arc<dyn ObjectStore>, VolumeError> {
    let mut shards = Vec::new();
    for bucket in buckets(setting)? {
        shards.push(open_bucket(setting, dir, &bucket, attempt_time_max).await?);
    }
    match shards.len() {
        1 => Ok(shards.remove(0)),
        _ => Ok(Arc::new(ShardedStore::new(shards))),
    }
}

/// The directories that hold the objects of a volume; none if a server does.
pub(super) fn directories(setting: &Setting, dir: Option<&Path>) -> Result<Vec<PathBuf>, VolumeError> {
    match setting.storage() {
        "file" => {
            let roots: Vec<_> = buckets(setting)?.iter().map(|bucket| bucket_dir(dir, bucket)).collect();
            roots.iter().try_for_each(|root| check_dir(dir, root))?;
            Ok(roots)
        }
        _ => Ok(Vec::new()),
    }
}

/// Where the objects are, for messages: storage, bucket, prefix, and no secret.
pub fn location(setting: &Setting, dir: Option<&Path>) -> String {
    let (storage, name) = (setting.storage(), setting.name());
    if storage == "file" {
        return format!("file://{}/{name}/", bucket_dir(dir, setting.bucket()).display().to_string().trim_end_matches('/'));
    }
    let bucket = setting.bucket().split('?').next().unwrap_or_default();
    let bucket = bucket.split_once("://").map_or(bucket, |(_, rest)| rest);
    let bucket = bucket.rsplit_once('@').map_or(bucket, |(_, rest)| rest);
    format!("{storage}://{}/{name}/", bucket.trim_matches('/'))
}

/// The bucket of every shard; the one there is if there are none.
fn buckets(setting: &Setting) -> Result<Vec<String>, VolumeError> {
    let (shards, bucket) = (setting.shards(), setting.bucket());
    if shards <= 1 {
        return Ok(vec![bucket.into()]);
    }
    if shards > SHARDS_MAX || bucket.matches(SHARD).count() != 1 {
        return Err(VolumeError::Refused(format!(
            "the volume has Shards = {shards} and Bucket = {bucket:?}; there may be {SHARDS_MAX} at most, and the bucket has {SHARD} for their number"
        )));
    }
    Ok((0..shards).map(|shard| bucket.replace(SHARD, &shard.to_string())).collect())
}

async fn open_bucket(
    setting: &Setting,
    dir: Option<&Path>,
    bucket: &str,
    attempt_time_max: Duration,
) -> Result<Arc<dyn ObjectStore>, VolumeError> {
    let flavor = match setting.storage() {
        "file" => {
            let root = bucket_dir(dir, bucket);
            check_dir(dir, &root)?;
            return open_dir(dir, root);
        }
        "s3" => Flavor::S3,
        "minio" => Flavor::Minio,
        other => {
            return Err(VolumeError::Refused(format!("Storage {other:?} is not supported by this build; it knows file, s3 and minio")));
        }
    };
    let mut config = S3Config::new(flavor, bucket);
    config.request_time_max = config.request_time_max.max(attempt_time_max);
    config.access_key = setting.access_key().into();
    config.secret_key = setting.secret_key().map_err(VolumeError::Refused)?;
    config.session_token = setting.session_token().map_err(VolumeError::Refused)?;
    (config.storage_class, config.tag) = class_and_tag(setting);
    match S3Store::open(config).await {
        Ok(store) => Ok(Arc::new(store)),
        Err(error) => Err(VolumeError::Failed(format!("cannot use the bucket of the volume {}: {error}", setting.name()))),
    }
}

fn open_dir(dir: Option<&Path>, root: PathBuf) -> Result<Arc<dyn ObjectStore>, VolumeError> {
    let shown = root.display().to_string();
    if !root.is_dir() {
        // Not created silently: a missing bucket is most likely a disk that is not mounted, and a new one would read as lost data.
        return Err(VolumeError::Refused(format!("the objects of the volume are not at {shown}; mount or restore it first")));
    }
    // On the disk of the metadata they may not take what is kept for removing. Without the file they take it, and removing has to wait for others.
    let reserve = dir.and_then(|dir| Reserve::open(&dir.join(RESERVE)).ok()).filter(|reserve| reserve.is_beside(&root));
    let opened = match reserve {
        Some(reserve) => FileStore::open_beside(root, reserve),
        None => FileStore::open(root),
    };
    let objects = opened.map_err(|e| VolumeError::Failed(format!("cannot open the objects in {shown}: {e}")))?;
    Ok(Arc::new(objects))
}

/// Where the objects are: a relative bucket lies in the directory of the volume, so that a volume can be moved as a whole.
fn bucket_dir(dir: Option<&Path>, bucket: &str) -> PathBuf {
    let bucket = bucket.strip_prefix("file://").unwrap_or(bucket);
    let bucket = if bucket.is_empty() { OBJECTS } else { bucket };
    dir.map_or_else(|| PathBuf::from(bucket), |dir| dir.join(bucket))
}

/// Beside a server there is no directory that a relative path could lie in.
fn check_dir(dir: Option<&Path>, root: &Path) -> Result<(), VolumeError> {
    if dir.is_some() || root.is_absolute() {
        return Ok(());
    }
    Err(VolumeError::Refused(format!("the directory of the objects must be an absolute path, and is {:?}", root.display())))
}

/// Storage class and tag of new objects: those of tier 0, which older settings do not have (data §2.5).
fn class_and_tag(setting: &Setting) -> (String, String) {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let document = setting.document();
    let tier = document.get("Tiers").and_then(|tiers| tiers.get("0"));
    let of_tier = |field: &str| text(tier.and_then(|tier| tier.get(field)));
    let class = Some(of_tier("StorageClass")).filter(|class| !class.is_empty());
    (class.unwrap_or_else(|| text(document.get("StorageClass"))), of_tier("Tag"))
}

/// Whether the bucket answers before anybody counts on it. A mount that cannot read its bucket is no use, and its user is still there to be told.
pub(super) async fn check_reachable(setting: &Setting, objects: &dyn ObjectStore) -> Result<(), VolumeError> {
    if setting.storage() == "file" {
        // That the directory is there was seen when it was opened.
        return Ok(());
    }
    let key = format!("{}/{UUID_OBJECT}", setting.name());
    let ask = async {
        match retrying("look", &key, || objects.head(&key)).await {
            // The answer to a head does not say whether there is a bucket.
            Err(ObjectError::Missing) => match objects.list(&key, "", 1).await {
                Err(error @ ObjectError::Invalid(_)) => Err(error),
                _ => {
                    warn!("there is no {key} in the bucket; if this is not the bucket of the volume, its files cannot be read");
                    Ok(())
                }
            },
            found => found.map(|_| ()),
        }
    };
    let late = |_| Err(ObjectError::Retry(format!("no answer in {REACHED_TIME_MAX:?}")));
    let reached = tokio::time::timeout(REACHED_TIME_MAX, ask).await.unwrap_or_else(late);
    reached.map_err(|e| VolumeError::Failed(format!("cannot use {}: {e}", location(setting, None))))
}

/// Tests a bucket as a volume will use it: an object is put, read back and deleted. A bucket that is not there is made.
/// The message says what failed.
pub async fn check_bucket(objects: &dyn ObjectStore, name: &str) -> Result<(), String> {
    check_with(objects, name, &TEST_PAUSES).await
}

async fn check_with(objects: &dyn ObjectStore, name: &str, pauses: &[Duration]) -> Result<(), String> {
    let mut pauses = pauses.iter();
    loop {
        let failure = match test_bucket(objects, name).await {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        match pauses.next().filter(|_| failure.may_pass) {
            None => return Err(failure.why),
            Some(pause) => {
                warn!("the test of the storage failed, {}; trying again in {pause:?}", failure.why);
                tokio::time::sleep(*pause).await;
            }
        }
    }
}

/// Why a test failed, and whether another try may end better.
struct Failure {
    why: String,
    may_pass: bool,
}

impl Failure {
    fn of(what: &str, error: &ObjectError) -> Failure {
        Failure { why: format!("cannot {what}: {error}"), may_pass: !matches!(error, ObjectError::Denied(_)) }
    }
}

async fn test_bucket(objects: &dyn ObjectStore, name: &str) -> Result<(), Failure> {
    let mut bytes = vec![0; TEST_BYTES];
    SystemRandom.fill(&mut bytes);
    let body = Bytes::from(bytes);
    let key = format!("{name}/{TESTING}/{}", test_name());
    let put = async || objects.put(&key, body.clone()).await.map_err(|e| (Failure::of("put an object", &e), e));
    match put().await {
        Ok(()) => {}
        Err((failure, ObjectError::Denied(_))) => return Err(failure),
        Err((failure, _)) => {
            if let Err(error) = objects.create().await {
                return Err(Failure { why: format!("{}; nor can the bucket be made: {error}", failure.why), ..failure });
            }
            put().await.map_err(|(failure, _)| failure)?;
        }
    }
    let found = objects.get(&key, None).await.map_err(|e| Failure::of("get an object", &e))?;
    if found != body {
        let why = format!("{} bytes came back that are not the {TEST_BYTES} stored", found.len());
        return Err(Failure { why, may_pass: true });
    }
    if let Err(error) = objects.delete(&key).await {
        // A bucket that keeps everything can be used; what is deleted stays and costs.
        warn!("objects cannot be deleted from the storage: {error}");
    }
    Ok(())
}

fn test_name() -> String {
    const CHARS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let mut bytes = [0; TEST_NAME_CHARS];
    SystemRandom.fill(&mut bytes);
    bytes.iter().map(|byte| char::from(CHARS[usize::from(*byte) % CHARS.len()])).collect()
}

/// Whether a bucket holds anything under a name that is not left of a test.
pub(super) async fn is_empty(objects: &dyn ObjectStore, name: &str) -> Result<bool, ObjectError> {
    let prefix = format!("{name}/");
    let mut after = String::new();
    loop {
        let page = objects.list(&prefix, &after, LISTED_MAX).await?;
        let ours = |key: &str| key.strip_prefix(&prefix).is_some_and(|rest| rest == TESTING || rest.starts_with("testing/"));
        if page.iter().any(|object| object.size > 0 && !ours(&object.key)) {
            return Ok(false);
        }
        match page.last() {
            Some(last) if page.len() == LISTED_MAX => after.clone_from(&last.key),
            _ => return Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::fault::{Fault, FaultStore, Request};
    use crate::object::memory::MemoryStore;
    use serde_json::json;

    fn setting(storage: &str, bucket: &str) -> Setting {
        Setting::new("vol", "u", storage, bucket, 4096)
    }

    #[test]
    fn buckets_move_with_the_volume_unless_they_are_elsewhere() {
        for (bucket, place) in [("", "/v/objects"), ("objects/", "/v/objects"), ("/data/x/", "/data/x"), ("file:///data", "/data")] {
            assert_eq!(bucket_dir(Some(Path::new("/v")), bucket), Path::new(place), "{bucket}");
        }
        assert_eq!(location(&setting("file", "/data/x/"), None), "file:///data/x/vol/");
        assert_eq!(location(&setting("s3", "http://k:hush@h:9000/b/?disable-checksum=true"), None), "s3://h:9000/b/vol/");
    }

    #[tokio::test]
    async fn a_setting_opens_its_buckets() {
        let temp = tempfile::tempdir().expect("a directory");
        let mut sharded = setting("file", "part-%d/");
        sharded.set("Shards", json!(3));
        let dirs = directories(&sharded, Some(temp.path())).expect("three");
        assert_eq!(dirs, ["part-0", "part-1", "part-2"].map(|name| temp.path().join(name)));
        assert!(open_objects(&sharded, Some(temp.path())).await.is_err(), "directories that are missing");
        for dir in &dirs {
            std::fs::create_dir(dir).expect("made");
        }
        let objects = open_objects(&sharded, Some(temp.path())).await.expect("opens");
        objects.put("shardv/chunks/0/0/1_0_13", Bytes::from_static(b"x")).await.expect("put");
        assert_eq!(objects.list("", "", 9).await.expect("listed").len(), 1);
        sharded.set("Bucket", json!("part/"));
        assert!(buckets(&sharded).expect_err("no number").to_string().contains("%d"));
        assert!(directories(&setting("s3", "http://127.0.0.1:9/b"), None).expect("none").is_empty());
        let error = open_objects(&setting("oss", "b"), None).await.err().expect("refused");
        assert!(error.to_string().contains("oss"));
    }

    #[test]
    fn class_and_tag_are_those_of_tier_0() {
        let mut setting = setting("s3", "b");
        assert_eq!(class_and_tag(&setting), (String::new(), String::new()));
        setting.set("StorageClass", json!("STANDARD_IA"));
        assert_eq!(class_and_tag(&setting).0, "STANDARD_IA");
        setting.set("Tiers", json!({"0": {"ID": 0, "StorageClass": "GLACIER_IR", "Tag": "a=b"}}));
        assert_eq!(class_and_tag(&setting), ("GLACIER_IR".into(), "a=b".into()));
    }

    #[tokio::test]
    async fn a_bucket_is_tested_three_times_unless_it_refuses() {
        let store = FaultStore::new(Arc::new(MemoryStore::new()));
        assert_eq!(check_with(&store, "vol", &[Duration::ZERO; 2]).await, Ok(()));
        assert_eq!(store.calls(Request::Delete), 1);
        assert_eq!(is_empty(&store, "vol").await, Ok(true));
        store.inject(Request::Get, 0, 2, Fault::Short(99));
        assert_eq!(check_with(&store, "vol", &[Duration::ZERO; 2]).await, Ok(()), "at the third try");
        store.inject(Request::Get, 0, 3, Fault::Short(99));
        assert!(check_with(&store, "vol", &[Duration::ZERO; 2]).await.expect_err("wrong bytes").contains("99 bytes"));
        let puts = store.calls(Request::Put);
        store.inject(Request::Put, 0, 1, Fault::Fail(ObjectError::Denied("no".into())));
        assert!(check_with(&store, "vol", &[Duration::ZERO; 2]).await.expect_err("denied").contains("refused: no"));
        assert_eq!(store.calls(Request::Put), puts + 1);
        store.inject(Request::Delete, 0, 1, Fault::Fail(ObjectError::Denied("kept".into())));
        assert_eq!(check_with(&store, "vol", &[Duration::ZERO; 2]).await, Ok(()), "a bucket that deletes nothing");
        assert_eq!(is_empty(&store, "vol").await, Ok(true), "what a test left is no stranger");
        store.put("vol/zzz", Bytes::from_static(b"x")).await.expect("put");
        assert_eq!(is_empty(&store, "vol").await, Ok(false));
        assert_eq!(is_empty(&store, "vo").await, Ok(true), "another name");
    }
}
