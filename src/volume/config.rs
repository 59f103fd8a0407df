//! Changing the setting of a volume that is in use (cli §4.2). Mounts see the change with their next heartbeat.

use crate::meta::key;
use crate::meta::setting::Setting;
use crate::meta::store::{Commit, Guard, Query, Store, Value, Write};
use crate::volume::create::{check_objects, trash_root};
use crate::volume::gate::{self, compare_versions};
use crate::volume::stores::usage;
use crate::volume::wanted::ACL_CLIENT;
use crate::volume::{MetaUrl, Stores, VolumeError, status};
use serde_json::{Value as Json, json};
use std::cmp::Ordering;
use std::sync::Arc;

/// What is to be different. `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Type of the bucket.
    pub storage: Option<String>,
    /// Bucket URL or directory.
    pub bucket: Option<String>,
    /// Access key of the bucket.
    pub access_key: Option<String>,
    /// Secret key of the bucket.
    pub secret_key: Option<String>,
    /// Session token for the bucket.
    pub session_token: Option<String>,
    /// Storage class of new objects.
    pub storage_class: Option<String>,
    /// Bytes the volume may use, 0 = unlimited.
    pub capacity: Option<u64>,
    /// Inodes it may have, 0 = unlimited.
    pub inodes: Option<u64>,
    /// Days deleted files are kept.
    pub trash_days: Option<u64>,
    /// Mbit/s each client may upload, 0 = unlimited.
    pub upload_limit: Option<u64>,
    /// Mbit/s each client may download, 0 = unlimited.
    pub download_limit: Option<u64>,
    /// POSIX ACLs; only on.
    pub enable_acl: Option<bool>,
    /// Statistics of directories.
    pub dir_stats: Option<bool>,
    /// Oldest client that may use the volume; only up.
    pub min_client_version: Option<String>,
    /// Newest client that may use the volume.
    pub max_client_version: Option<String>,
    /// Encrypt secrets that an old client stored as they are.
    pub encrypt_secret: bool,
    /// Skip the checks.
    pub force: bool,
}

/// A change that has been looked at and not been made.
pub struct Planned {
    store: Arc<dyn Store>,
    /// The setting as it is.
    pub old: Setting,
    /// The setting as it would be.
    pub new: Setting,
    /// What whoever makes the change should know and agree to.
    pub concerns: Vec<String>,
}

/// The setting of a volume, for display. Nothing about the volume is checked.
pub async fn setting(url: &MetaUrl) -> Result<Setting, VolumeError> {
    Ok(Stores::metadata(url).await?.1)
}

/// Looks at a change.
pub async fn plan_change(url: &MetaUrl, change: &Change) -> Result<Planned, VolumeError> {
    let (store, old) = Stores::metadata(url).await?;
    let mut new = old.clone();
    apply(&mut new, change)?;
    let mut concerns = Vec::new();
    if !change.force && new != old {
        // A change that other clients want may be beyond this one; but none makes a volume so.
        if gate::check(&old).is_ok() {
            gate::check(&new).map_err(VolumeError::Refused)?;
        }
        if change.dir_stats == Some(false) && old.dir_stats() {
            refuse_quotas(store.as_ref()).await?;
        }
        concerns = concerns_of(store.as_ref(), &old, &new).await?;
        let place = |setting: &Setting| {
            let secrets = [setting.secret_key(), setting.session_token()];
            (setting.storage().to_owned(), setting.bucket().to_owned(), setting.access_key().to_owned(), secrets)
        };
        if place(&new) != place(&old) {
            check_objects(url, &new).await?;
        }
    }
    Ok(Planned { store, old, new, concerns })
}

/// Makes a planned change, unless the setting was changed since it was looked at.
pub async fn commit_change(planned: &Planned) -> Result<(), VolumeError> {
    let Planned { store, old, new, .. } = planned;
    replace_setting(store.as_ref(), old, new).await
}

/// Replaces the setting, and makes what goes with it.
pub(super) async fn replace_setting(store: &dyn Store, old: &Setting, new: &Setting) -> Result<(), VolumeError> {
    // What was read, byte for byte: another client may write it in another form.
    let values = store.read(&[Query::Get(key::SETTING), Query::Get(key::inode(crate::types::Ino::TRASH))]).await?;
    let [Value::Bytes(Some(stored)), Value::Bytes(trash)] = values.as_slice() else {
        return Err(VolumeError::Failed("the setting of the volume is gone".into()));
    };
    let conflict = || VolumeError::Failed("somebody else changed the setting at the same time; try again".into());
    if Setting::parse(stored).ok().as_ref() != Some(old) {
        return Err(conflict());
    }
    let mut guards = vec![Guard::Value(key::SETTING, Some(stored.clone()))];
    let mut writes = Vec::new();
    if new.dir_stats() && !old.dir_stats() {
        // They were not kept meanwhile. Clients count afresh what is missing.
        writes.extend([Write::Del(key::DIR_USED_INODES), Write::Del(key::DIR_USED_SPACE), Write::Del(key::DIR_DATA_LENGTH)]);
    }
    if new.trash_days() > 0 && trash.is_none() {
        let (name, record) = trash_root();
        guards.push(Guard::Value(name.clone(), None));
        writes.push(Write::Set(name, record));
    }
    writes.push(Write::Set(key::SETTING, new.encode().into()));
    match store.commit(&guards, &writes, &[] as &[Query]).await? {
        Commit::Done { .. } => Ok(store.sync().await?),
        Commit::Conflict(_) => Err(conflict()),
    }
}

fn apply(setting: &mut Setting, change: &Change) -> Result<(), VolumeError> {
    for (field, value) in [("Storage", &change.storage), ("Bucket", &change.bucket), ("AccessKey", &change.access_key)] {
        if let Some(value) = value {
            setting.set(field, json!(value));
        }
    }
    for (field, value) in [("SecretKey", &change.secret_key), ("SessionToken", &change.session_token)] {
        if let Some(value) = value {
            setting.set_secret(field, value).map_err(VolumeError::Refused)?;
        }
    }
    if change.encrypt_secret {
        setting.encrypt_secrets().map_err(VolumeError::Refused)?;
    }
    if let Some(class) = &change.storage_class {
        setting.set("StorageClass", json!(class));
        let mut tiers = setting.document().get("Tiers").and_then(Json::as_object).cloned().unwrap_or_default();
        let tier = tiers.entry("0").or_insert_with(|| json!({"ID": 0, "StorageClass": "", "Tag": ""}));
        tier["StorageClass"] = json!(class);
        setting.set("Tiers", tiers.into());
    }
    for (field, value) in [
        ("Capacity", change.capacity),
        ("Inodes", change.inodes),
        ("TrashDays", change.trash_days),
        ("UploadLimit", change.upload_limit),
        ("DownloadLimit", change.download_limit),
    ] {
        if let Some(value) = value {
            setting.set(field, json!(value));
        }
    }
    if let Some(on) = change.dir_stats {
        setting.set("DirStats", json!(on));
    }
    match change.enable_acl {
        Some(true) if !setting.enable_acl() => {
            setting.set("EnableACL", json!(true));
            if compare_versions(setting.min_client_version(), ACL_CLIENT) != Some(Ordering::Greater) {
                setting.set("MinClientVersion", json!(ACL_CLIENT));
            }
        }
        Some(false) if setting.enable_acl() => return Err(VolumeError::Refused("cannot disable acl".into())),
        _ => {}
    }
    for version in [&change.min_client_version, &change.max_client_version].into_iter().flatten() {
        if !version.is_empty() && compare_versions(version, version).is_none() {
            return Err(VolumeError::Refused(format!("{version:?} is no version, such as 1.4.0")));
        }
    }
    if let Some(version) = &change.min_client_version {
        let old = setting.min_client_version();
        if !old.is_empty() && compare_versions(version, old) == Some(Ordering::Less) {
            return Err(VolumeError::Refused(format!("cannot lower min-client-version from {old} to {version}")));
        }
        setting.set("MinClientVersion", json!(version));
    }
    if let Some(version) = &change.max_client_version {
        setting.set("MaxClientVersion", json!(version));
    }
    Ok(())
}

async fn refuse_quotas(store: &dyn Store) -> Result<(), VolumeError> {
    match store.read(&[Query::HGetAll(key::DIR_QUOTA)]).await?.first() {
        Some(Value::Pairs(quotas)) if !quotas.is_empty() => {
            Err(VolumeError::Refused(format!("cannot disable dir stats when there are still {} dir quotas", quotas.len())))
        }
        _ => Ok(()),
    }
}

/// What may surprise those who use the volume.
async fn concerns_of(store: &dyn Store, old: &Setting, new: &Setting) -> Result<Vec<String>, VolumeError> {
    let mut concerns = Vec::new();
    if (new.capacity(), new.inodes()) != (old.capacity(), old.inodes()) {
        let used = usage(store).await?;
        let (space, inodes) = (u64::try_from(used.space).unwrap_or(0), u64::try_from(used.inodes).unwrap_or(0));
        let over = |limit: u64, used: u64| limit > 0 && used >= limit;
        if over(new.capacity(), space) || over(new.inodes(), inodes) {
            concerns.push(format!(
                "New quota is too small (used / quota): {space} / {} bytes, {inodes} / {} inodes.",
                new.capacity(),
                new.inodes()
            ));
        }
    }
    if new.trash_days() == 0 && old.trash_days() > 0 {
        concerns.push("The current trash will be emptied and future removed files will purged immediately.".into());
    }
    let range = |setting: &Setting| (setting.min_client_version().to_owned(), setting.max_client_version().to_owned());
    if range(new) != range(old) {
        let refused: Vec<String> = status::sessions_of(store)
            .await?
            .iter()
            .filter(|session| gate::check_version(new, session["Version"].as_str().unwrap_or_default()).is_err())
            .map(|session| format!("{} {}", session["HostName"].as_str().unwrap_or("?"), session["MountPoint"].as_str().unwrap_or("?")))
            .collect();
        if !refused.is_empty() {
            concerns.push(format!("Clients of these sessions will not be allowed to mount again: {}", refused.join(", ")));
        }
    }
    Ok(concerns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Created, NewVolume, create};

    async fn volume(dir: &std::path::Path) -> MetaUrl {
        let url = MetaUrl::Embedded(dir.join("vol"));
        let made = create(&url, &NewVolume { name: "vol".into(), ..NewVolume::default() }).await.unwrap();
        assert!(matches!(made, Created::New(_)));
        url
    }

    #[tokio::test]
    async fn a_change_is_planned_then_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let url = volume(dir.path()).await;
        let change = Change { capacity: Some(1 << 40), upload_limit: Some(100), secret_key: Some("sk".into()), ..Change::default() };
        let planned = plan_change(&url, &change).await.unwrap();
        assert_eq!(planned.concerns, Vec::<String>::new());
        assert_eq!(setting(&url).await.unwrap(), planned.old, "nothing has changed yet");
        commit_change(&planned).await.unwrap();
        let now = setting(&url).await.unwrap();
        assert_eq!((now.capacity(), now.secret_key()), (1 << 40, Ok("sk".into())));
        assert!(commit_change(&planned).await.unwrap_err().to_string().contains("at the same time"));
        let same = plan_change(&url, &Change { capacity: Some(1 << 40), ..Change::default() }).await.unwrap();
        assert_eq!(same.old, same.new);
    }

    #[tokio::test]
    async fn what_breaks_a_volume_is_refused_and_what_surprises_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let url = volume(dir.path()).await;
        for (change, what) in [
            (
                Change { min_client_version: Some("1.0.0".into()), ..Change::default() },
                "cannot lower min-client-version from 1.1.0-A to 1.0.0",
            ),
            (Change { max_client_version: Some("new".into()), ..Change::default() }, "is no version"),
            (Change { min_client_version: Some("9.0".into()), ..Change::default() }, "MinClientVersion"),
            (Change { bucket: Some("/no/such/dir/".into()), ..Change::default() }, "/no/such/dir"),
        ] {
            let error = plan_change(&url, &change).await.err().expect(what).to_string();
            assert!(error.contains(what), "{error}");
        }
        let forced = Change { bucket: Some("/no/such/dir/".into()), force: true, ..Change::default() };
        assert_eq!(plan_change(&url, &forced).await.unwrap().new.bucket(), "/no/such/dir/");
        let store = Stores::metadata(&url).await.unwrap().0;
        store.commit(&[], &[Write::IncrBy(key::USED_SPACE, 5000)], &[]).await.unwrap();
        let planned = plan_change(&url, &Change { capacity: Some(4096), ..Change::default() }).await.unwrap();
        assert!(planned.concerns[0].contains("5000 / 4096 bytes"), "{:?}", planned.concerns);
    }
}
