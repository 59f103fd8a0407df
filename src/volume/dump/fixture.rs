//! Volumes of the reference as test data: the raw keys of a server in a store in memory.

use crate::meta::store::embedded::EmbeddedStore;
use crate::meta::store::{Commit, Store, Write};
use bytes::Bytes;
use serde_json::Value as Json;
use std::io::Read;
use std::path::PathBuf;

/// The names of all fixtures.
pub const FIXTURES: [&str; 7] = ["plain", "acl", "hashprefix", "lz4", "zstd", "encrypted", "encrypted-chacha"];

/// A file of a fixture, decompressed.
pub fn file(fixture: &str, name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/dump/{fixture}/{name}.gz"));
    let mut bytes = Vec::new();
    let packed = std::fs::File::open(&path).expect("the fixture is there");
    flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).expect("it decompresses");
    bytes
}

/// The keys of a fixture as writes.
pub fn writes(fixture: &str) -> Vec<Write> {
    let keys: serde_json::Map<String, Json> = serde_json::from_slice(&file(fixture, "redis.json")).expect("an object");
    keys.iter().flat_map(|(key, entry)| key_writes(key, entry)).collect()
}

fn key_writes(key: &str, entry: &Json) -> Vec<Write> {
    let key = Bytes::from(key.to_owned());
    let value = &entry["value"];
    let items = || value.as_array().expect("an array").iter();
    match entry["type"].as_str().expect("a type") {
        "string" => vec![Write::Set(key, bytes(value))],
        "list" => vec![Write::RPush(key, items().map(bytes).collect())],
        "set" => items().map(|member| Write::SAdd(key.clone(), bytes(member))).collect(),
        "hash" => items().map(|pair| Write::HSet(key.clone(), bytes(&pair[0]), bytes(&pair[1]))).collect(),
        "zset" => items()
            .map(|pair| {
                let score: f64 = pair[1].as_str().expect("text").parse().expect("a number");
                Write::ZAdd(key.clone(), score as i64, bytes(&pair[0]))
            })
            .collect(),
        other => panic!("a key of type {other}"),
    }
}

fn bytes(value: &Json) -> Bytes {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(value.as_str().expect("text")).expect("base64").into()
}

/// A fixture in a store in memory.
pub async fn store(fixture: &str) -> EmbeddedStore {
    let store = EmbeddedStore::open_in_memory().expect("a store in memory");
    for part in writes(fixture).chunks(1000) {
        assert!(matches!(store.commit(&[], part, &[]).await, Ok(Commit::Done { .. })));
    }
    store
}
