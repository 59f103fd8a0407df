//! `Setting`: the persisted format of a volume (metadata §4). Unknown fields of the document are kept.

use serde_json::{Map, Value, json};

/// The `setting` document. The document itself is the truth; accessors read it, so that nothing we do not know is ever lost.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    document: Map<String, Value>,
}

/// Smallest and largest block size in KiB (data §1.3).
pub const BLOCK_KIB: std::ops::RangeInclusive<u64> = 64..=16384;

impl Setting {
    /// The document of a new volume, fields in the order of metadata §4. `block_kib` is a power of two in `BLOCK_KIB`.
    pub fn new(name: &str, uuid: &str, storage: &str, bucket: &str, block_kib: u64) -> Setting {
        let document = json!({
            "Name": name,
            "UUID": uuid,
            "Storage": storage,
            "Tiers": {"0": {"ID": 0, "StorageClass": "", "Tag": ""}},
            "Bucket": bucket,
            "BlockSize": block_kib,
            "Compression": "none",
            "EncryptAlgo": "aes256gcm-rsa",
            "TrashDays": 0,
            "MetaVersion": 1,
            "MinClientVersion": "1.1.0-A",
            "DirStats": true,
            "EnableACL": false,
        });
        match document {
            Value::Object(document) => Setting { document },
            _ => unreachable!("json! of braces is an object"),
        }
    }

    /// Reads a stored document. The message says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Setting, String> {
        let document: Map<String, Value> = serde_json::from_slice(bytes).map_err(|e| format!("the setting is not a JSON object: {e}"))?;
        let setting = Setting { document };
        let kib = setting.number("BlockSize");
        if !BLOCK_KIB.contains(&kib) || !kib.is_power_of_two() {
            return Err(format!("the setting has block size {kib} KiB; it must be a power of two from 64 to 16384"));
        }
        if setting.number("MetaVersion") > 1 {
            return Err(format!("the volume has metadata version {}; this client knows version 1", setting.number("MetaVersion")));
        }
        if setting.name().is_empty() || setting.uuid().is_empty() {
            return Err("the setting has no name or no UUID".into());
        }
        Ok(setting)
    }

    /// The document as it is stored: one token a line, no indentation, HTML-escaped (metadata §4).
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"");
        let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
        serde::Serialize::serialize(&self.document, &mut serializer).expect("a JSON map with string keys always serializes");
        let text = String::from_utf8(bytes).expect("serde_json writes UTF-8");
        text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026").into_bytes()
    }

    /// Sets a field, at its place if it is there, at the end otherwise.
    pub fn set(&mut self, field: &str, value: Value) {
        self.document.insert(field.into(), value);
    }

    /// The whole document.
    pub fn document(&self) -> &Map<String, Value> {
        &self.document
    }

    /// The document with secrets replaced by `removed`, for display.
    pub fn without_secrets(&self) -> Map<String, Value> {
        let mut document = self.document.clone();
        for field in ["SecretKey", "SessionToken", "EncryptKey"] {
            if let Some(value) = document.get_mut(field) {
                *value = json!("removed");
            }
        }
        document
    }

    fn text(&self, field: &str) -> &str {
        self.document.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    fn number(&self, field: &str) -> u64 {
        self.document.get(field).and_then(Value::as_u64).unwrap_or(0)
    }

    fn switch(&self, field: &str) -> bool {
        self.document.get(field).and_then(Value::as_bool).unwrap_or(false)
    }

    /// Volume name; also the first component of every object key.
    pub fn name(&self) -> &str {
        self.text("Name")
    }

    /// Identity of the volume.
    pub fn uuid(&self) -> &str {
        self.text("UUID")
    }

    /// Storage type, `file` or `s3`.
    pub fn storage(&self) -> &str {
        self.text("Storage")
    }

    /// Bucket URL or directory.
    pub fn bucket(&self) -> &str {
        self.text("Bucket")
    }

    /// Access key of the bucket, empty if there is none. It is no secret.
    pub fn access_key(&self) -> &str {
        self.text("AccessKey")
    }

    /// Secret key of the bucket, empty if there is none. The message says why it cannot be read.
    pub fn secret_key(&self) -> Result<String, String> {
        self.secret("SecretKey")
    }

    /// Session token for the bucket, like `secret_key`.
    pub fn session_token(&self) -> Result<String, String> {
        self.secret("SessionToken")
    }

    fn secret(&self, field: &str) -> Result<String, String> {
        match self.text(field) {
            "" => Ok(String::new()),
            _ if self.switch("KeyEncrypted") => Err(format!("the volume has an encrypted {field}, which this build does not support")),
            text => Ok(text.into()),
        }
    }

    /// Block size in bytes.
    pub fn block_bytes(&self) -> u32 {
        (self.number("BlockSize") * 1024) as u32
    }

    /// Compression, empty for none.
    pub fn compression(&self) -> &str {
        match self.text("Compression") {
            "none" => "",
            other => other,
        }
    }

    /// Whether blocks are encrypted.
    pub fn is_encrypted(&self) -> bool {
        !self.text("EncryptKey").is_empty()
    }

    /// Object naming variant (data §1.3).
    pub fn hash_prefix(&self) -> bool {
        self.switch("HashPrefix")
    }

    /// Number of buckets; above 1 objects are spread over them.
    pub fn shards(&self) -> u64 {
        self.number("Shards")
    }

    /// Bytes the volume may use, 0 = unlimited.
    pub fn capacity(&self) -> u64 {
        self.number("Capacity")
    }

    /// Inodes the volume may have, 0 = unlimited.
    pub fn inodes(&self) -> u64 {
        self.number("Inodes")
    }

    /// Days deleted files stay in the trash, 0 = no trash.
    pub fn trash_days(&self) -> u64 {
        self.number("TrashDays")
    }

    /// Whether statistics of directories are kept.
    pub fn dir_stats(&self) -> bool {
        self.switch("DirStats")
    }

    /// Whether POSIX ACLs are enabled.
    pub fn enable_acl(&self) -> bool {
        self.switch("EnableACL")
    }

    /// Whether usage is accounted by user and group.
    pub fn user_group_quota(&self) -> bool {
        self.switch("UserGroupQuota")
    }

    /// Whether a log of changes is kept.
    pub fn change_log(&self) -> bool {
        self.switch("ChangeLog")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_survive_and_damage_is_named() {
        let mut setting = Setting::new("vol", "u", "file", "/x<y/", 4096);
        setting.set("FromTheFuture", json!([1, 2]));
        let bytes = setting.encode();
        let text = String::from_utf8(bytes.clone()).expect("text");
        assert!(text.starts_with("{\n\"Name\": \"vol\",\n\"UUID\": \"u\",\n"), "{text}");
        assert!(text.contains("\\u003c"));
        assert_eq!(Setting::parse(&bytes).expect("parses"), setting);
        for (damage, what) in
            [("[]", "not a JSON object"), (r#"{"BlockSize": 100}"#, "block size"), (r#"{"BlockSize":64,"MetaVersion":2}"#, "version 2")]
        {
            assert!(Setting::parse(damage.as_bytes()).expect_err("refused").contains(what));
        }
    }
}
