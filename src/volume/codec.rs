//! How the blocks of a volume are stored, as its setting says.

use crate::block::{Codec, Compression, Encryption};
use crate::meta::setting::Setting;
use crate::volume::VolumeError;

/// The codec of a volume. The passphrase of its key comes from `JFS_RSA_PASSPHRASE`.
pub(super) fn codec(setting: &Setting) -> Result<Codec, VolumeError> {
    codec_with(setting, std::env::var("JFS_RSA_PASSPHRASE").ok().as_deref())
}

fn codec_with(setting: &Setting, passphrase: Option<&str>) -> Result<Codec, VolumeError> {
    let compression = Compression::named(setting.compression()).map_err(VolumeError::Refused)?;
    Ok(Codec::new(compression, encryption_with(setting, passphrase)?))
}

/// The encryption of a volume's objects, if they are encrypted. All its objects are, not only blocks.
pub(super) fn encryption(setting: &Setting) -> Result<Option<Encryption>, VolumeError> {
    encryption_with(setting, std::env::var("JFS_RSA_PASSPHRASE").ok().as_deref())
}

fn encryption_with(setting: &Setting, passphrase: Option<&str>) -> Result<Option<Encryption>, VolumeError> {
    if !setting.is_encrypted() {
        return Ok(None);
    }
    let pem = setting.encrypt_key().map_err(|why| VolumeError::Refused(format!("object storage: {why}")))?;
    let encryption = Encryption::new(setting.encrypt_algo(), &pem, passphrase);
    encryption.map(Some).map_err(|why| VolumeError::Refused(format!("object storage: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BlockId, block_count};
    use serde_json::Value;
    use std::fs;
    use std::path::{Path, PathBuf};

    /// Volumes of JuiceFS 1.4.1: settings, objects, and in `files.jsonl` the slices and checksums of some of their files.
    fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/frames")
    }

    fn open(volume: &str) -> (Setting, Codec) {
        let setting = Setting::parse(&fs::read(fixtures().join(volume).join("setting.json")).unwrap()).unwrap();
        let codec = codec_with(&setting, Some("fixture-passphrase")).unwrap();
        (setting, codec)
    }

    /// The content of a file: its slices decoded and laid over each other.
    fn content(volume: &str, file: &Value) -> Vec<u8> {
        let (setting, codec) = open(volume);
        let mut bytes = vec![0; file["size"].as_u64().unwrap() as usize];
        for slice in file["slices"].as_array().unwrap() {
            let number = |at: usize| slice[at].as_u64().unwrap();
            let (pos, id, size, off, len) = (number(0) as usize, number(1), number(2) as u32, number(3) as usize, number(4) as usize);
            let mut data = vec![0; len];
            if id > 0 {
                let mut whole = Vec::new();
                for index in 0..block_count(size, setting.block_bytes()) {
                    let block = BlockId::of(id, size, index, setting.block_bytes()).unwrap();
                    let frame = fs::read(fixtures().join(volume).join(block.key(setting.hash_prefix()))).unwrap();
                    whole.extend_from_slice(&codec.decode(frame.into(), block.len).unwrap());
                }
                data.copy_from_slice(&whole[off..off + len]);
            }
            // Records may reach beyond the end of a file.
            let end = bytes.len().min(pos + len);
            bytes[pos..end].copy_from_slice(&data[..end - pos]);
        }
        bytes
    }

    #[test]
    fn volumes_of_the_reference_are_decoded_to_what_it_shows() {
        let files = fs::read_to_string(fixtures().join("files.jsonl")).unwrap();
        let mut count = 0;
        for line in files.lines() {
            let file: Value = serde_json::from_str(line).unwrap();
            let volume = file["volume"].as_str().unwrap();
            let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &content(volume, &file));
            let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hash, file["sha256"].as_str().unwrap(), "{volume} {}", file["path"]);
            count += 1;
        }
        assert!(count >= 19, "the list of files is complete");
    }

    #[test]
    fn other_objects_are_encrypted_too() {
        for volume in ["encrypted", "encrypted-chacha"] {
            let (setting, _) = open(volume);
            let encryption = encryption_with(&setting, Some("fixture-passphrase")).unwrap().unwrap();
            let object = fs::read(fixtures().join(volume).join("juicefs_uuid")).unwrap();
            assert_eq!(encryption.open(&object).unwrap(), setting.uuid().as_bytes());
            let error = codec_with(&setting, None).unwrap_err().to_string();
            assert_eq!(
                error,
                "object storage: passphrase is required to private key: please set the 'JFS_RSA_PASSPHRASE' environment variable"
            );
            assert!(codec_with(&setting, Some("wrong")).is_err());
        }
    }
}
