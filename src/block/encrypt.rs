//! Encryption of objects (data §2.2): each has a data key of its own, wrapped with the volume's RSA key.
//!
//! Layout: length of the wrapped key (u16, big-endian), length of the nonce (u8), wrapped key, nonce, ciphertext with its tag of 16 bytes.

use crate::block::private_key::pkcs8_of;
use aws_lc_rs::aead::{self, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey};
use std::fmt;

/// What the wrapping of keys is labelled with.
const LABEL: &[u8] = b"keys";
/// The two lengths at the beginning.
const HEAD_BYTES: usize = 3;
const TAG_BYTES: usize = 16;
/// Data key of both algorithms.
const KEY_BYTES: usize = 32;
/// Least and most bytes by which an object is longer than its content, for any key that is accepted: RSA of 2048 and 8192 bits.
pub(super) const OVERHEAD_BYTES: std::ops::RangeInclusive<usize> =
    HEAD_BYTES + 256 + NONCE_LEN + TAG_BYTES..=HEAD_BYTES + 1024 + NONCE_LEN + TAG_BYTES;

/// The encryption of one volume.
pub struct Encryption {
    algorithm: &'static aead::Algorithm,
    wrap: OaepPublicEncryptingKey,
    unwrap: OaepPrivateDecryptingKey,
}

impl Encryption {
    /// With the algorithm of this name (empty is `aes256gcm-rsa`) and the key in `pem`. The message says what is wrong with them.
    pub fn new(algorithm: &str, pem: &str, passphrase: Option<&str>) -> Result<Encryption, String> {
        let algorithm = match algorithm {
            "" | "aes256gcm-rsa" => &aead::AES_256_GCM,
            "chacha20-rsa" => &aead::CHACHA20_POLY1305,
            "sm4gcm" => return Err("encryption with sm4gcm is not supported by this build; use a client that has it".into()),
            other => return Err(format!("unsupported cipher: {other}")),
        };
        let document = pkcs8_of(pem, passphrase)?;
        let rejected = |e: String| format!("the private key is not usable ({e}): RSA of 2048 to 8192 bits is wanted");
        let key = PrivateDecryptingKey::from_pkcs8(document.as_bytes()).map_err(|e| rejected(e.to_string()))?;
        let wrap = OaepPublicEncryptingKey::new(key.public_key()).map_err(|e| rejected(e.to_string()))?;
        let unwrap = OaepPrivateDecryptingKey::new(key).map_err(|e| rejected(e.to_string()))?;
        Ok(Encryption { algorithm, wrap, unwrap })
    }

    /// Bytes by which an object is longer than its content.
    pub(super) fn overhead_bytes(&self) -> usize {
        HEAD_BYTES + self.wrap.key_size_bytes() + NONCE_LEN + TAG_BYTES
    }

    /// The object that holds `plain`. Fails only if the system has no randomness.
    pub fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, String> {
        let failed = |_| String::from("encryption failed");
        // From the cipher's library and not from `env`: keys must never be reproducible, not even in a simulation.
        let (mut key, mut nonce) = ([0; KEY_BYTES], [0; NONCE_LEN]);
        rand::fill(&mut key).map_err(failed)?;
        rand::fill(&mut nonce).map_err(failed)?;
        let mut object = Vec::with_capacity(self.overhead_bytes() + plain.len());
        let wrapped_bytes = u16::try_from(self.wrap.ciphertext_size()).expect("RSA keys have at most 1024 bytes");
        object.extend_from_slice(&wrapped_bytes.to_be_bytes());
        object.push(NONCE_LEN as u8);
        object.resize(HEAD_BYTES + usize::from(wrapped_bytes), 0);
        let wrapped = self.wrap.encrypt(&OAEP_SHA256_MGF1SHA256, &key, &mut object[HEAD_BYTES..], Some(LABEL)).map_err(failed)?;
        assert_eq!(wrapped.len(), usize::from(wrapped_bytes), "RSA answers as many bytes as its modulus has");
        object.extend_from_slice(&nonce);
        let start = object.len();
        object.extend_from_slice(plain);
        let tag = self
            .data_key(&key)?
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut object[start..])
            .map_err(failed)?;
        object.extend_from_slice(tag.as_ref());
        Ok(object)
    }

    /// What `object` holds. Anything that was not sealed with this key, or was changed since, is an error.
    pub fn open(&self, object: &[u8]) -> Result<Vec<u8>, String> {
        let short = || format!("{} bytes are too few for an encrypted object", object.len());
        let (head, rest) = object.split_first_chunk::<HEAD_BYTES>().ok_or_else(short)?;
        let wrapped_bytes = usize::from(u16::from_be_bytes([head[0], head[1]]));
        if wrapped_bytes != self.unwrap.key_size_bytes() || usize::from(head[2]) != NONCE_LEN {
            return Err("it does not begin like an object encrypted with the volume's key".into());
        }
        let (wrapped, rest) = rest.split_at_checked(wrapped_bytes).ok_or_else(short)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(short)?;
        if sealed.len() < TAG_BYTES {
            return Err(short());
        }
        let wrong = |_| String::from("it was encrypted with another key, or changed since");
        let mut room = vec![0; self.unwrap.min_output_size()];
        let key = self.unwrap.decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut room, Some(LABEL)).map_err(wrong)?;
        let mut plain = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let len = self.data_key(key)?.open_in_place(nonce, Aad::empty(), &mut plain).map_err(wrong)?.len();
        plain.truncate(len);
        Ok(plain)
    }

    fn data_key(&self, key: &[u8]) -> Result<LessSafeKey, String> {
        UnboundKey::new(self.algorithm, key).map(LessSafeKey::new).map_err(|_| "its data key has a wrong length".into())
    }
}

impl fmt::Debug for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encryption").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}
