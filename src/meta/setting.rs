//! `Setting`: the persisted format of a volume (metadata §4). Unknown fields of the document are kept.

use crate::meta::secret;
use serde_json::{Map, Value, json};

/// Fields in the order in which they stand in the document, and whether they are left out while they are empty, zero or false.
const FIELDS: &[(&str, bool)] = &[
    ("Name", false),
    ("UUID", false),
    ("Storage", false),
    ("StorageClass", true),
    ("Tiers", false),
    ("Bucket", false),
    ("AccessKey", true),
    ("SecretKey", true),
    ("SessionToken", true),
    ("BlockSize", false),
    ("Compression", true),
    ("Shards", true),
    ("HashPrefix", true),
    ("Capacity", true),
    ("Inodes", true),
    ("EncryptKey", true),
    ("EncryptAlgo", true),
    ("KeyEncrypted", true),
    ("UploadLimit", true),
    ("DownloadLimit", true),
    ("TrashDays", false),
    ("MetaVersion", true),
    ("MinClientVersion", true),
    ("MaxClientVersion", true),
    ("DirStats", true),
    ("UserGroupQuota", true),
    ("EnableACL", false),
    ("RangerRestUrl", true),
    ("RangerService", true),
    ("ChangeLog", true),
    ("ChangeLogMaxAge", true),
    ("ChangeLogMaxLines", true),
    ("KerbConf", true),
];
/// Fields that are stored encrypted and never shown.
const SECRETS: [&str; 3] = ["SecretKey", "SessionToken", "EncryptKey"];

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

    /// Sets a field, at its place in the document; one that the format leaves out when it is empty is taken out.
    pub fn set(&mut self, field: &str, value: Value) {
        let place = FIELDS.iter().position(|(name, _)| *name == field);
        let empty = value == json!("") || value == json!(0) || value == json!(false);
        if empty && place.is_some_and(|place| FIELDS[place].1) {
            self.document.shift_remove(field);
        } else if self.document.contains_key(field) {
            self.document.insert(field.into(), value);
        } else {
            let later = |name: &String| FIELDS.iter().position(|(known, _)| known == name) > place;
            let index = self.document.keys().position(later).filter(|_| place.is_some()).unwrap_or(self.document.len());
            self.document.shift_insert(index, field.into(), value);
        }
    }

    /// Sets one of the secrets. It is encrypted, unless the volume was made by an old client and keeps its secrets as they are.
    pub fn set_secret(&mut self, field: &str, text: &str) -> Result<(), String> {
        assert!(SECRETS.contains(&field), "{field} is no secret");
        let plain = !self.switch("KeyEncrypted") && SECRETS.iter().any(|other| *other != field && !self.text(other).is_empty());
        if text.is_empty() || plain {
            self.set(field, json!(text));
            return Ok(());
        }
        self.check_secret_algorithm()?;
        // Encrypted anew it would look changed, and every client would load the format again.
        if self.switch("KeyEncrypted") && self.secret(field).is_ok_and(|kept| kept == text) {
            return Ok(());
        }
        let stored = secret::encrypt(self.uuid(), text)?;
        self.set(field, json!(stored));
        self.set("KeyEncrypted", json!(true));
        Ok(())
    }

    /// Encrypts secrets that an old client stored as they are.
    pub fn encrypt_secrets(&mut self) -> Result<(), String> {
        if self.switch("KeyEncrypted") {
            return Ok(());
        }
        self.check_secret_algorithm()?;
        for field in SECRETS {
            let text = self.text(field).to_string();
            if !text.is_empty() {
                let stored = secret::encrypt(self.uuid(), &text)?;
                self.set(field, json!(stored));
                self.set("KeyEncrypted", json!(true));
            }
        }
        Ok(())
    }

    /// A secret as its owner gave it; empty if there is none.
    fn secret(&self, field: &str) -> Result<String, String> {
        let stored = self.text(field);
        if stored.is_empty() || (!self.switch("KeyEncrypted") && stored != secret::REMOVED) {
            return Ok(stored.into());
        }
        self.check_secret_algorithm()?;
        secret::decrypt(self.uuid(), stored).map_err(|why| format!("format decrypt: {why}"))
    }

    fn check_secret_algorithm(&self) -> Result<(), String> {
        match self.encrypt_algo() {
            "sm4gcm" => Err("the secrets of the setting are encrypted with sm4gcm, which this build does not support".into()),
            _ => Ok(()),
        }
    }

    /// The whole document.
    pub fn document(&self) -> &Map<String, Value> {
        &self.document
    }

    /// The document with secrets replaced by `removed`, for display.
    pub fn without_secrets(&self) -> Map<String, Value> {
        let mut document = self.document.clone();
        for field in SECRETS {
            if let Some(value) = document.get_mut(field).filter(|value| **value != json!("")) {
                *value = json!("removed");
            }
        }
        document
    }

    /// Whether a text field is there and not empty.
    pub fn has(&self, field: &str) -> bool {
        !self.text(field).is_empty()
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

    /// Storage class of new objects, empty for the bucket's own.
    pub fn storage_class(&self) -> &str {
        self.text("StorageClass")
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

    /// The PEM text of the key that encrypts objects, like `secret_key`.
    pub fn encrypt_key(&self) -> Result<String, String> {
        self.secret("EncryptKey")
    }

    /// Algorithm that encrypts objects, if they are encrypted.
    pub fn encrypt_algo(&self) -> &str {
        self.text("EncryptAlgo")
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

    /// Mbit/s each client may upload unless its own flag says otherwise, 0 = unlimited.
    pub fn upload_limit(&self) -> u64 {
        self.number("UploadLimit")
    }

    /// Mbit/s each client may download unless its own flag says otherwise, 0 = unlimited.
    pub fn download_limit(&self) -> u64 {
        self.number("DownloadLimit")
    }

    /// Oldest client that may use the volume, empty for any.
    pub fn min_client_version(&self) -> &str {
        self.text("MinClientVersion")
    }

    /// Newest client that may use the volume, empty for any.
    pub fn max_client_version(&self) -> &str {
        self.text("MaxClientVersion")
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
    fn fields_stand_where_the_format_has_them() {
        let mut setting = Setting::new("vol", "u", "s3", "http://x/", 4096);
        setting.set("FromTheFuture", json!(1));
        for (field, value) in [("Capacity", json!(5)), ("AccessKey", json!("ak")), ("HashPrefix", json!(true)), ("Inodes", json!(0))] {
            setting.set(field, value);
        }
        let names: Vec<&str> = setting.document().keys().map(String::as_str).collect();
        let expected = "Name UUID Storage Tiers Bucket AccessKey BlockSize Compression HashPrefix Capacity EncryptAlgo TrashDays MetaVersion \
                        MinClientVersion DirStats EnableACL FromTheFuture";
        assert_eq!(names, expected.split_whitespace().collect::<Vec<_>>());
        setting.set("Capacity", json!(0));
        setting.set("TrashDays", json!(0));
        assert!(!setting.document().contains_key("Capacity") && setting.document().contains_key("TrashDays"));
    }

    #[test]
    fn secrets_are_encrypted_shown_as_removed_and_read_back() {
        let mut setting = Setting::new("vol", "3b241101-e2bb-4255-8caf-4136c566a962", "s3", "http://x/", 4096);
        assert_eq!((setting.secret_key(), setting.encrypt_key()), (Ok(String::new()), Ok(String::new())));
        setting.set_secret("SecretKey", "sk").unwrap();
        setting.set_secret("SessionToken", "token").unwrap();
        assert!(!String::from_utf8(setting.encode()).unwrap().contains("\"sk\""));
        assert_eq!((setting.secret_key(), setting.session_token()), (Ok("sk".into()), Ok("token".into())));
        let stored = setting.clone();
        setting.set_secret("SecretKey", "sk").unwrap();
        assert_eq!(setting, stored, "the same secret changes nothing");
        let shown = setting.without_secrets();
        assert_eq!((&shown["SecretKey"], &shown["KeyEncrypted"], shown.get("EncryptKey")), (&json!("removed"), &json!(true), None));
        setting.set("SecretKey", json!("removed"));
        assert!(setting.secret_key().unwrap_err().contains("secret was removed; please correct it with `config` command"));
        setting.set("EncryptAlgo", json!("sm4gcm"));
        assert!(setting.session_token().unwrap_err().contains("sm4gcm"));
    }

    #[test]
    fn secrets_of_old_volumes_stay_plain_until_asked() {
        let mut setting = Setting::new("vol", "u", "s3", "http://x/", 4096);
        setting.set("SecretKey", json!("old"));
        setting.set_secret("SessionToken", "token").unwrap();
        assert_eq!(setting.document()["SessionToken"], json!("token"));
        setting.encrypt_secrets().unwrap();
        assert_ne!(setting.document()["SecretKey"], json!("old"));
        assert_eq!((setting.secret_key(), setting.session_token()), (Ok("old".into()), Ok("token".into())));
    }

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

    #[test]
    fn no_bytes_upset_the_decoder() {
        let mut setting = Setting::new("vol", "3b241101-e2bb-4255-8caf-4136c566a962", "s3", "http://h:9000/<b>&", 4096);
        let plain = setting.encode();
        setting.set_secret("SecretKey", "hush").expect("sealed");
        crate::env::fuzz::decoder(&[plain, setting.encode()], |bytes| {
            let Ok(setting) = Setting::parse(bytes) else { return };
            assert_eq!(Setting::parse(&setting.encode()), Ok(setting.clone()));
            let _ = (setting.block_bytes(), setting.compression(), setting.is_encrypted(), setting.encrypt_key(), setting.name());
        });
    }
}
