//! The RSA key file of a volume (data §2.2): PKCS#1 or PKCS#8 in PEM, with or without passphrase.

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockModeDecrypt, KeyIvInit};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use pkcs8::der::Encode;
use pkcs8::der::asn1::OctetStringRef;
use pkcs8::{AlgorithmIdentifierRef, EncryptedPrivateKeyInfoRef, ObjectIdentifier, PrivateKeyInfoRef, SecretDocument};

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// The salt of a legacy key is the beginning of its initialisation vector.
const SALT_BYTES: usize = 8;
const WRONG: &str = "cannot decrypt the private key: the passphrase is wrong, or the file is damaged";

/// The first PEM block of `text` as a PKCS#8 document. The passphrase is not looked at if the key is not protected.
pub(super) fn pkcs8_of(text: &str, passphrase: Option<&str>) -> Result<SecretDocument, String> {
    let pem = Pem::first(text)?;
    let passphrase = || {
        passphrase
            .filter(|text| !text.is_empty())
            .ok_or_else(|| String::from("passphrase is required to private key: please set the 'JFS_RSA_PASSPHRASE' environment variable"))
    };
    match pem.label {
        "RSA PRIVATE KEY" => match pem.header("DEK-Info") {
            Some(how) => wrapped(&decrypt_legacy(&pem.body, how, passphrase()?)?),
            None => wrapped(&pem.body),
        },
        "PRIVATE KEY" => SecretDocument::try_from(pem.body.as_slice()).map_err(|e| format!("the private key is damaged: {e}")),
        "ENCRYPTED PRIVATE KEY" => {
            let sealed =
                EncryptedPrivateKeyInfoRef::try_from(pem.body.as_slice()).map_err(|e| format!("the private key is damaged: {e}"))?;
            sealed.decrypt(passphrase()?).map_err(|e| format!("{WRONG} ({e})"))
        }
        other => Err(format!("a private key of RSA is wanted, as PKCS#1 or PKCS#8 in PEM; the file holds {other:?}")),
    }
}

/// A PKCS#1 key as PKCS#8, which is what the cipher reads.
fn wrapped(pkcs1: &[u8]) -> Result<SecretDocument, String> {
    let algorithm = AlgorithmIdentifierRef { oid: RSA, parameters: Some(pkcs8::der::asn1::AnyRef::NULL) };
    let damaged = |e: pkcs8::der::Error| format!("the private key is damaged: {e}");
    let info = PrivateKeyInfoRef::new(algorithm, OctetStringRef::new(pkcs1).map_err(damaged)?);
    SecretDocument::try_from(info.to_der().map_err(damaged)?).map_err(damaged)
}

/// Undoes the protection of `Proc-Type: 4,ENCRYPTED`: CBC, with a key that is a chain of MD5 over passphrase and salt.
fn decrypt_legacy(body: &[u8], how: &str, passphrase: &str) -> Result<Vec<u8>, String> {
    let (cipher, iv) = how.split_once(',').ok_or("the DEK-Info of the private key is damaged")?;
    let iv = unhex(iv.trim()).filter(|iv| iv.len() >= SALT_BYTES).ok_or("the DEK-Info of the private key is damaged")?;
    let key = |len: usize| {
        let mut key = Vec::new();
        let mut last: Vec<u8> = Vec::new();
        while key.len() < len {
            last = Md5::new().chain_update(&last).chain_update(passphrase).chain_update(&iv[..SALT_BYTES]).finalize().to_vec();
            key.extend_from_slice(&last);
        }
        key.truncate(len);
        key
    };
    match cipher.trim() {
        "AES-128-CBC" => cbc::<aes::Aes128>(body, &key(16), &iv),
        "AES-192-CBC" => cbc::<aes::Aes192>(body, &key(24), &iv),
        "AES-256-CBC" => cbc::<aes::Aes256>(body, &key(32), &iv),
        "DES-EDE3-CBC" => cbc::<des::TdesEde3>(body, &key(24), &iv),
        "DES-CBC" => cbc::<des::Des>(body, &key(8), &iv),
        other => Err(format!("the private key is protected with {other}; AES and DES in CBC mode are known")),
    }
}

fn cbc<C>(body: &[u8], key: &[u8], iv: &[u8]) -> Result<Vec<u8>, String>
where
    C: aes::cipher::BlockCipherDecrypt + aes::cipher::KeyInit,
{
    let cipher = cbc::Decryptor::<C>::new_from_slices(key, iv).map_err(|_| "the DEK-Info of the private key is damaged")?;
    let mut plain = body.to_vec();
    let len = cipher.decrypt_padded::<Pkcs7>(&mut plain).map_err(|_| WRONG)?.len();
    plain.truncate(len);
    Ok(plain)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |c: u8| char::from(c).to_digit(16);
    digits.chunks(2).map(|pair| u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()).collect()
}

/// One block of a PEM file.
struct Pem<'a> {
    label: &'a str,
    headers: Vec<(&'a str, &'a str)>,
    body: Vec<u8>,
}

impl<'a> Pem<'a> {
    fn first(text: &'a str) -> Result<Pem<'a>, String> {
        let none = || String::from("there is no PEM block in the private key");
        let mut lines = text.lines().map(str::trim);
        let label = lines.find_map(|line| line.strip_prefix("-----BEGIN ")?.strip_suffix("-----")).ok_or_else(none)?;
        let end = format!("-----END {label}-----");
        let (mut headers, mut base64) = (Vec::new(), String::new());
        for line in lines {
            if line == end {
                let body = STANDARD.decode(&base64).map_err(|e| format!("the private key is damaged: {e}"))?;
                return Ok(Pem { label, headers, body });
            }
            match line.split_once(':') {
                Some((name, value)) => headers.push((name.trim(), value.trim())),
                None => base64.push_str(line),
            }
        }
        Err(none())
    }

    fn header(&self, name: &str) -> Option<&'a str> {
        self.headers.iter().find(|(found, _)| *found == name).map(|(_, value)| *value)
    }
}
