//! What a command line asks of the setting of a volume, new or there already (cli §4.1).

use crate::block::{Compression, Encryption};
use crate::meta::setting::Setting;
use crate::volume::{NewVolume, VolumeError};
use serde_json::json;
use tracing::warn;

/// Lowest client that knows ACLs.
pub(super) const ACL_CLIENT: &str = "1.2.0-A";

/// Puts into the setting of a new volume what was asked for. `trash_days` is what its kind of volume has otherwise.
pub(super) fn apply_new(setting: &mut Setting, wanted: &NewVolume, trash_days: u64) -> Result<(), VolumeError> {
    if let Some(name) = &wanted.compression {
        Compression::named(name).map_err(VolumeError::Refused)?;
        setting.set("Compression", json!(name.to_ascii_lowercase()));
    }
    setting.set("Shards", json!(wanted.shards.unwrap_or(0)));
    setting.set("HashPrefix", json!(wanted.hash_prefix.unwrap_or(false)));
    setting.set("TrashDays", json!(wanted.trash_days.unwrap_or(trash_days)));
    if wanted.enable_acl {
        setting.set("EnableACL", json!(true));
        setting.set("MinClientVersion", json!(ACL_CLIENT));
    }
    if let Some(class) = &wanted.storage_class {
        setting.set("StorageClass", json!(class));
        setting.set("Tiers", json!({"0": {"ID": 0, "StorageClass": class, "Tag": ""}}));
    }
    if let Some(algorithm) = &wanted.encrypt_algo {
        setting.set("EncryptAlgo", json!(algorithm));
    }
    if let Some(pem) = &wanted.encrypt_key {
        // A key that cannot be used is told now, and not after the first data is stored.
        let passphrase = std::env::var("JFS_RSA_PASSPHRASE").ok();
        Encryption::new(setting.encrypt_algo(), pem, passphrase.as_deref())
            .map_err(|why| VolumeError::Refused(format!("object storage: {why}")))?;
        setting.set_secret("EncryptKey", pem).map_err(VolumeError::Failed)?;
    }
    apply(setting, wanted)
}

/// Changes what may change in the setting of a volume that is there, as far as it was asked for.
pub(super) fn apply_update(setting: &mut Setting, wanted: &NewVolume) -> Result<(), VolumeError> {
    let refuse = |what: &str, from: &dyn std::fmt::Display, to: &dyn std::fmt::Display| {
        Err(VolumeError::Refused(format!("format: update format: cannot update volume {what} from {from} to {to}")))
    };
    if setting.name() != wanted.name {
        // Objects are found by the name; even --force does not move them.
        return refuse("name", &setting.name(), &wanted.name);
    }
    let block_kib = u64::from(setting.block_bytes()) / 1024;
    if let Some(kib) = wanted.block_kib.filter(|kib| *kib != block_kib) {
        return refuse("block size", &block_kib, &kib);
    }
    if let Some(hash_prefix) = wanted.hash_prefix.filter(|on| *on != setting.hash_prefix()) {
        return refuse("hash prefix", &setting.hash_prefix(), &hash_prefix);
    }
    if let Some(name) = &wanted.compression {
        let (old, new) = (Compression::named(setting.compression()), Compression::named(name));
        if old.map_err(VolumeError::Refused)? != new.map_err(VolumeError::Refused)? {
            return refuse("compression", &setting.compression(), name);
        }
    }
    // None and one are both a single bucket.
    if let Some(shards) = wanted.shards.filter(|shards| (*shards).max(1) != setting.shards().max(1)) {
        return refuse("shards", &setting.shards(), &shards);
    }
    if wanted.encrypt_key.is_some() {
        warn!("the encryption of a volume cannot be changed; --encrypt-rsa-key is ignored");
    }
    if let Some(days) = wanted.trash_days {
        setting.set("TrashDays", json!(days));
    }
    apply(setting, wanted)
}

fn apply(setting: &mut Setting, wanted: &NewVolume) -> Result<(), VolumeError> {
    if let Some(capacity) = wanted.capacity {
        setting.set("Capacity", json!(capacity));
    }
    if let Some(inodes) = wanted.inodes {
        setting.set("Inodes", json!(inodes));
    }
    if let Some(key) = &wanted.access_key {
        setting.set("AccessKey", json!(key));
    }
    for (field, value) in [("SecretKey", &wanted.secret_key), ("SessionToken", &wanted.session_token)] {
        if let Some(value) = value {
            setting.set_secret(field, value).map_err(VolumeError::Failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> NewVolume {
        NewVolume { name: "vol".into(), ..NewVolume::default() }
    }

    fn setting() -> Setting {
        Setting::new("vol", "u", "file", "objects/", 4096)
    }

    #[test]
    fn a_new_volume_is_what_was_asked_for() {
        let mut plain = setting();
        apply_new(&mut plain, &wanted(), 1).unwrap();
        assert_eq!((plain.trash_days(), plain.compression(), plain.is_encrypted()), (1, "", false));
        let mut all = setting();
        let asked = NewVolume {
            compression: Some("LZ4".into()),
            trash_days: Some(7),
            enable_acl: true,
            secret_key: Some("sk".into()),
            encrypt_key: Some(include_str!("../../tests/fixtures/keys/pkcs8.pem").into()),
            encrypt_algo: Some("chacha20-rsa".into()),
            ..wanted()
        };
        apply_new(&mut all, &asked, 0).unwrap();
        assert_eq!((all.trash_days(), all.compression(), all.enable_acl()), (7, "lz4", true));
        assert_eq!((all.secret_key(), all.encrypt_key()), (Ok("sk".into()), Ok(asked.encrypt_key.clone().unwrap())));
        assert_eq!(all.document()["MinClientVersion"], json!("1.2.0-A"));
        for broken in [
            NewVolume { compression: Some("gzip".into()), ..wanted() },
            NewVolume { encrypt_key: Some("no key".into()), ..wanted() },
            NewVolume { encrypt_algo: Some("sm4gcm".into()), encrypt_key: asked.encrypt_key, ..wanted() },
        ] {
            assert!(apply_new(&mut setting(), &broken, 0).is_err());
        }
    }

    #[test]
    fn what_decides_how_objects_are_read_cannot_change() {
        for (asked, message) in [
            (NewVolume { name: "other".into(), ..wanted() }, "cannot update volume name from vol to other"),
            (NewVolume { block_kib: Some(1024), ..wanted() }, "cannot update volume block size from 4096 to 1024"),
            (NewVolume { compression: Some("zstd".into()), ..wanted() }, "cannot update volume compression"),
            (NewVolume { shards: Some(4), ..wanted() }, "cannot update volume shards from 0 to 4"),
            (NewVolume { hash_prefix: Some(true), ..wanted() }, "cannot update volume hash prefix from false to true"),
        ] {
            let error = apply_update(&mut setting(), &asked).unwrap_err().to_string();
            assert!(error.starts_with("format: update format: ") && error.contains(message), "{error}");
        }
        let mut changed = setting();
        let asked = NewVolume { capacity: Some(5), compression: Some("none".into()), shards: Some(1), trash_days: Some(3), ..wanted() };
        apply_update(&mut changed, &asked).unwrap();
        assert_eq!((changed.capacity(), changed.trash_days()), (5, 3));
    }
}
