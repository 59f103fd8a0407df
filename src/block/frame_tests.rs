//! Frames: round trips, forms of keys, damage.

use super::*;
use proptest::prelude::*;
use std::sync::LazyLock;

const PASSPHRASE: Option<&str> = Some("passphrase");

macro_rules! key {
    ($name:literal) => {
        include_str!(concat!("../../tests/fixtures/keys/", $name, ".pem"))
    };
}

fn encryption(algorithm: &str, pem: &str, passphrase: Option<&str>) -> Encryption {
    Encryption::new(algorithm, pem, passphrase).unwrap()
}

/// Every way to store a block.
static CODECS: LazyLock<Vec<Codec>> = LazyLock::new(|| {
    let keys = [None, Some("aes256gcm-rsa"), Some("chacha20-rsa")];
    let all = [Compression::None, Compression::Lz4, Compression::Zstd];
    let pairs = keys.iter().flat_map(|key| all.map(|compression| (compression, *key)));
    pairs.map(|(compression, key)| Codec::new(compression, key.map(|algorithm| encryption(algorithm, key!("pkcs1"), None)))).collect()
});

fn text(len: usize) -> Bytes {
    b"a line of a log, and another\n".iter().copied().cycle().take(len).collect()
}

#[test]
fn every_form_of_a_key_is_the_same_key() {
    let plain = encryption("", key!("pkcs1"), None);
    let object = plain.seal(b"content").unwrap();
    let protected = [
        key!("legacy-aes128"),
        key!("legacy-aes192"),
        key!("legacy-aes256"),
        key!("legacy-des3"),
        key!("legacy-des"),
        key!("pkcs8-aes256"),
        key!("pkcs8-des3-sha1"),
        key!("pkcs8-scrypt"),
    ];
    for pem in protected {
        assert_eq!(encryption("", pem, PASSPHRASE).open(&object).unwrap(), b"content", "{pem}");
        for missing in [None, Some("")] {
            let error = Encryption::new("", pem, missing).unwrap_err();
            assert_eq!(error, "passphrase is required to private key: please set the 'JFS_RSA_PASSPHRASE' environment variable", "{pem}");
        }
        // A wrong passphrase may leave a right padding by chance; then the key itself is none.
        let error = Encryption::new("", pem, Some("wrong")).unwrap_err();
        assert!(error.contains("private key") && !error.contains("wrong is"), "{error}");
    }
    for pem in [key!("pkcs1"), key!("pkcs8")] {
        for passphrase in [None, PASSPHRASE] {
            assert_eq!(encryption("", pem, passphrase).open(&object).unwrap(), b"content", "{pem}");
        }
    }
}

#[test]
fn what_is_no_key_or_no_algorithm_is_refused() {
    for (pem, what) in [
        ("", "no PEM block"),
        ("-----BEGIN RSA PRIVATE KEY-----\nAAAA\n", "no PEM block"),
        ("-----BEGIN RSA PRIVATE KEY-----\n!\n-----END RSA PRIVATE KEY-----", "damaged"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "damaged"),
        ("-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----", "DEK-Info"),
        ("-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: RC2-CBC,0011223344556677\n\nAAAA\n-----END RSA PRIVATE KEY-----", "RC2-CBC"),
        (key!("ec"), "EC PRIVATE KEY"),
    ] {
        let error = Encryption::new("", pem, PASSPHRASE).unwrap_err();
        assert!(error.contains(what), "{what}: {error}");
    }
    assert!(Encryption::new("sm4gcm", key!("pkcs1"), None).unwrap_err().contains("sm4gcm is not supported"));
    assert!(Encryption::new("rot13", key!("pkcs1"), None).unwrap_err().contains("rot13"));
}

#[test]
fn another_key_and_another_algorithm_open_nothing() {
    let object = encryption("aes256gcm-rsa", key!("pkcs1"), None).seal(b"content").unwrap();
    assert!(encryption("aes256gcm-rsa", key!("other"), None).open(&object).is_err());
    assert!(encryption("chacha20-rsa", key!("pkcs1"), None).open(&object).is_err());
}

#[test]
fn any_change_of_an_encrypted_frame_is_found() {
    let block = text(200);
    for codec in CODECS.iter().filter(|codec| codec.encryption.is_some()) {
        let frame = codec.encode(&block).unwrap();
        for at in 0..frame.len() {
            let mut changed = frame.to_vec();
            changed[at] ^= 1 << (at % 8);
            assert!(codec.decode(changed.into(), 200).is_err(), "byte {at} of {codec:?}");
            assert!(codec.decode(frame.slice(..at), 200).is_err(), "cut at {at} of {codec:?}");
        }
        let longer = Bytes::from([&frame[..], b"x"].concat());
        assert!(codec.decode(longer, 200).is_err());
        for len in [0, 199, 201, 4 << 20] {
            assert!(codec.decode(frame.clone(), len).is_err(), "{len} of {codec:?}");
        }
        assert_eq!(codec.decode(frame, 200), Ok(block.clone()));
    }
}

#[test]
fn sealing_twice_gives_two_objects() {
    let encryption = encryption("", key!("pkcs1"), None);
    let [first, second] = [(); 2].map(|()| encryption.seal(b"content").unwrap());
    assert_eq!((first.len(), &first[..3]), (7 + 287, &[1, 0, 12][..]));
    // Wrapped key, nonce, ciphertext.
    for range in [3..259, 259..271, 271..278] {
        assert_ne!(first[range.clone()], second[range]);
    }
}

#[test]
fn a_frame_that_claims_too_much_is_refused_before_it_is_unpacked() {
    // 64 MiB of zeros in a few kilobytes, and more bytes than any frame of the block can have.
    let bomb = Bytes::from(Compression::Zstd.compress(&vec![0; 64 << 20]).unwrap());
    let codec = Codec::new(Compression::Zstd, None);
    assert!(codec.decode(bomb, 65536).is_err());
    let long = Bytes::from(vec![0; (64 << 10) + 1000]);
    for codec in CODECS.iter() {
        assert!(codec.decode(long.clone(), 1000).unwrap_err().contains("cannot be a block of 1000"), "{codec:?}");
    }
}

proptest! {
    #[test]
    fn blocks_come_back_and_frames_have_a_possible_size(
        // Noise, and noise repeated so that it compresses.
        noise in proptest::collection::vec(any::<u8>(), 1..5000),
        repeats in 1..20usize,
        which in 0..9usize,
    ) {
        let block = Bytes::from(noise.repeat(repeats));
        let codec = &CODECS[which];
        let frame = codec.encode(&block).unwrap();
        let len = block.len() as u32;
        let sizes = Codec::frame_bytes(codec.compression, codec.encryption.is_some(), len);
        prop_assert!(sizes.contains(&(frame.len() as u64)), "{} is not in {sizes:?}", frame.len());
        prop_assert_eq!(codec.decode(frame.clone(), len), Ok(block));
        prop_assert!(codec.decode(frame, len + 1).is_err());
    }

    #[test]
    fn arbitrary_frames_never_panic_or_give_another_length(
        frame in proptest::collection::vec(any::<u8>(), 0..600),
        len in 0..100_000u32,
        which in 0..9usize,
    ) {
        if let Ok(block) = CODECS[which].decode(frame.into(), len) {
            prop_assert_eq!(block.len() as u32, len);
        }
    }
}

#[test]
fn no_bytes_upset_the_decoders() {
    for codec in CODECS.iter() {
        let blocks = [text(3000), text(1), Bytes::from(vec![0; 5000])];
        let frames: Vec<Vec<u8>> = blocks.iter().map(|block| codec.encode(block).unwrap().to_vec()).collect();
        // Unwrapping a key takes a millisecond.
        let count = if codec.encryption.is_some() { 100 } else { 2000 };
        crate::env::fuzz::decoder_of(count, &frames, |frame| {
            for len in [3000, 1, 5000] {
                if let Ok(block) = codec.decode(Bytes::copy_from_slice(frame), len) {
                    assert_eq!(block.len() as u32, len);
                }
            }
            if let Ok(len) = codec.block_len(frame, 1 << 20) {
                assert!(len <= 1 << 20);
            }
        });
    }
}
