//! Secrets of the setting (metadata §4.1). The key is made of the volume's UUID, which stands beside them: this keeps secrets out of sight,
//! not from whoever can read the setting.

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};

/// What dumps leave in place of a secret.
pub const REMOVED: &str = "removed";

/// The stored form of a secret: base64 of nonce, ciphertext and tag.
pub fn encrypt(uuid: &str, secret: &str) -> Result<String, String> {
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut nonce).map_err(|_| "the system has no randomness to encrypt secrets with")?;
    sealed(uuid, secret, nonce)
}

fn sealed(uuid: &str, secret: &str, nonce: [u8; NONCE_LEN]) -> Result<String, String> {
    let mut bytes = secret.as_bytes().to_vec();
    key(uuid)
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut bytes)
        .map_err(|_| "a secret of the setting cannot be encrypted")?;
    Ok(STANDARD.encode([&nonce[..], &bytes].concat()))
}

/// The secret of a stored form. The message says what is wrong and never shows it.
pub fn decrypt(uuid: &str, stored: &str) -> Result<String, String> {
    if stored == REMOVED {
        return Err("secret was removed; please correct it with `config` command".into());
    }
    let damaged =
        || String::from("a secret of the setting is damaged or belongs to another volume; please correct it with `config` command");
    let bytes = STANDARD.decode(stored).map_err(|_| damaged())?;
    let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>().ok_or_else(damaged)?;
    let mut sealed = sealed.to_vec();
    let plain = key(uuid).open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::empty(), &mut sealed).map_err(|_| damaged())?;
    String::from_utf8(plain.to_vec()).map_err(|_| damaged())
}

fn key(uuid: &str) -> LessSafeKey {
    let key = UnboundKey::new(&AES_128_GCM, &Md5::digest(uuid)).expect("MD5 has the 16 bytes of an AES-128 key");
    LessSafeKey::new(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "3b241101-e2bb-4255-8caf-4136c566a962";

    #[test]
    fn secrets_are_stored_as_the_format_says() {
        let stored = "AAAAAAAAAAAAAAAAn5s749MhUwjTTD9oPSqTlL0/zo73nQ==";
        assert_eq!(sealed(UUID, "secret", [0; NONCE_LEN]).unwrap(), stored);
        assert_eq!(decrypt(UUID, stored).unwrap(), "secret");
        let again = encrypt(UUID, "secret").unwrap();
        assert_ne!(again, encrypt(UUID, "secret").unwrap(), "a nonce is used once");
        assert_eq!(decrypt(UUID, &again).unwrap(), "secret");
    }

    #[test]
    fn what_is_wrong_is_said_without_the_secret() {
        assert_eq!(decrypt(UUID, "removed").unwrap_err(), "secret was removed; please correct it with `config` command");
        let stored = encrypt(UUID, "secret").unwrap();
        let flipped = format!("{}{}", if stored.starts_with('A') { 'B' } else { 'A' }, &stored[1..]);
        for (uuid, stored) in [("another", stored.as_str()), (UUID, "secret"), (UUID, ""), (UUID, "AAAA"), (UUID, &flipped)] {
            assert!(decrypt(uuid, stored).unwrap_err().contains("damaged or belongs to another volume"));
        }
    }

    #[test]
    fn no_text_upsets_the_decoder() {
        let stored = sealed(UUID, "secret", [0; NONCE_LEN]).unwrap();
        crate::env::fuzz::decoder(&[stored.clone().into_bytes(), b"removed".to_vec()], |bytes| {
            if let Ok(text) = std::str::from_utf8(bytes)
                && let Ok(secret) = decrypt(UUID, text)
            {
                assert_eq!(secret, "secret", "{text}");
            }
        });
    }
}
