//! Metadata of volumes written by JuiceFS: it is found sound, and the operations show what that client showed.

use super::*;
use crate::meta::acl::AclKind;
use crate::meta::setting::Setting;
use crate::meta::store::embedded::EmbeddedStore;
use crate::meta::store::{Commit, Write};
use crate::meta::{Meta, MetaConfig};
use crate::object::memory::MemoryStore;
use crate::types::{Attr, Caller, Errno, Name};
use bytes::Bytes;
use serde_json::Value as Json;

/// Writes of one commit while loading.
const BATCH: usize = 500;

fn bytes_of(text: &Json) -> Bytes {
    let text = text.as_str().expect("base64 is text").trim_end_matches('=');
    let value = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut bytes = Vec::new();
    for group in text.as_bytes().chunks(4) {
        let bits = group.iter().fold(0u32, |bits, c| bits << 6 | u32::from(value(*c))) << (6 * (4 - group.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    bytes.into()
}

fn file(fixture: &str, name: &str) -> String {
    let path = format!("{}/tests/fixtures/{fixture}/{name}.zst", env!("CARGO_MANIFEST_DIR"));
    let packed = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    String::from_utf8(zstd::decode_all(&packed[..]).expect("zstd")).expect("text")
}

fn writes_of(key: &str, entry: &Json) -> Vec<Write> {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let value = &entry["value"];
    let items = || value.as_array().expect("a list").iter();
    match entry["type"].as_str() {
        Some("string") => vec![Write::Set(key, bytes_of(value))],
        Some("list") => vec![Write::RPush(key, items().map(bytes_of).collect())],
        Some("set") => items().map(|member| Write::SAdd(key.clone(), bytes_of(member))).collect(),
        Some("hash") => items().map(|pair| Write::HSet(key.clone(), bytes_of(&pair[0]), bytes_of(&pair[1]))).collect(),
        Some("zset") => items()
            .map(|pair| {
                Write::ZAdd(key.clone(), pair[1].as_str().and_then(|score| score.parse().ok()).expect("a score"), bytes_of(&pair[0]))
            })
            .collect(),
        other => panic!("type {other:?}"),
    }
}

async fn load(fixture: &str) -> (Stores, Meta) {
    let store = Arc::new(EmbeddedStore::open_in_memory().expect("memory"));
    let keys: Json = serde_json::from_str(&file(fixture, "redis.json")).expect("JSON");
    let writes: Vec<Write> = keys.as_object().expect("an object").iter().flat_map(|(key, entry)| writes_of(key, entry)).collect();
    for batch in writes.chunks(BATCH) {
        assert!(matches!(store.commit(&[], batch, &[]).await, Ok(Commit::Done { .. })));
    }
    let setting = Setting::parse(&bytes_of(&keys["setting"]["value"])).expect("a setting");
    let clock = Arc::new(crate::env::ManualClock::new(std::time::Duration::from_secs(1_800_000_000)));
    let duties = tokio::sync::mpsc::channel(1).0;
    let meta = Meta::new(MetaConfig { store: store.clone(), clock, setting: setting.clone(), duties, atime: Default::default() });
    (Stores { store, setting, objects: Arc::new(MemoryStore::new()) }, meta)
}

/// The inode at a path of `tree.jsonl`.
async fn walk(meta: &Meta, path: &[u8]) -> (Ino, Attr) {
    let mut at = Ino::ROOT;
    for (depth, part) in path.split(|c| *c == b'/').filter(|part| !part.is_empty()).enumerate() {
        at = match part {
            b".trash" if depth == 0 => Ino::TRASH,
            part => {
                let name = Name::new(part).expect("a name");
                meta.lookup(&Caller::root(), at, &name).await.unwrap_or_else(|e| panic!("{name:?} in {at}: {e}")).0
            }
        };
    }
    (at, meta.getattr(at).await.expect("has attributes"))
}

async fn xattr(meta: &Meta, ino: Ino, name: &[u8]) -> Bytes {
    match AclKind::of_xattr(name) {
        Some(kind) => meta.get_acl(ino, kind).await.expect("has the ACL").to_wire(),
        None => meta.get_xattr(ino, name).await.expect("has the attribute"),
    }
}

async fn check_line(meta: &Meta, line: &Json) {
    let path = bytes_of(&line["path_b64"]);
    // Shown by that client on a volume that never had a trash, too.
    if path == ".trash" && meta.getattr(Ino::TRASH).await == Err(Errno::NOENT) {
        return;
    }
    let (ino, attr) = walk(meta, &path).await;
    let number = |field: &str| line[field].as_u64().unwrap_or_else(|| panic!("{field} of {line}"));
    let kind = match line["type"].as_str() {
        Some("file") => Kind::File,
        Some("dir") => Kind::Dir,
        Some("symlink") => Kind::Symlink,
        Some("fifo") => Kind::Fifo,
        Some("blockdev") => Kind::Block,
        Some("chardev") => Kind::Char,
        _ => Kind::Socket,
    };
    let got = (ino.0, attr.kind, u64::from(attr.mode), u64::from(attr.uid), u64::from(attr.gid), u64::from(attr.nlink));
    assert_eq!(got, (number("ino"), kind, number("mode"), number("uid"), number("gid"), number("nlink")), "{line}");
    // That client makes up size and times of the trash itself.
    if ino != Ino::TRASH {
        let mtime = attr.mtime.sec as i128 * 1_000_000_000 + i128::from(attr.mtime.nsec);
        assert_eq!((attr.length, mtime), (number("size"), line["mtime_ns"].as_i64().map(i128::from).expect("a time")), "{line}");
    }
    if let Some(rdev) = line["rdev"].as_array() {
        let (major, minor) = (attr.rdev >> 8 & 0xFFF, attr.rdev & 0xFF | attr.rdev >> 12 & 0xF_FF00);
        assert_eq!([Some(u64::from(major)), Some(u64::from(minor))], [rdev[0].as_u64(), rdev[1].as_u64()], "{line}");
    }
    if kind == Kind::Symlink {
        assert_eq!(meta.readlink(ino).await.expect("a target"), bytes_of(&line["target_b64"]), "{line}");
    }
    let mut names = meta.list_xattr(ino).await.expect("lists");
    names.sort();
    let wanted = line["xattrs_b64"].as_object();
    assert_eq!(names.len(), wanted.map_or(0, serde_json::Map::len), "{line}");
    for (name, value) in wanted.into_iter().flatten() {
        assert_eq!(xattr(meta, ino, name.as_bytes()).await, bytes_of(value), "{name} of {line}");
    }
}

/// `known`: what that client had miscounted itself.
async fn check_fixture(fixture: &str, known: &[&str]) {
    let (stores, meta) = load(fixture).await;
    let (findings, summary) = fsck(&stores).await.expect("checks");
    // The objects are not among the fixtures.
    let damage = findings.iter().filter(|finding| finding.key.0 != "block");
    let damage: Vec<String> = damage.map(|finding| format!("{}: {}", finding.subject, finding.what)).collect();
    assert_eq!(damage, known);
    let tree = file(fixture, "tree.jsonl");
    for line in tree.lines() {
        check_line(&meta, &serde_json::from_str(line).expect("JSON")).await;
    }
    // All but the root and the trash have an entry.
    assert!(summary.entries + 2 >= tree.lines().count() as u64);
}

#[tokio::test]
async fn a_volume_with_everything_in_it() {
    check_fixture("plain", &["/a (inode 2): its dirDataLength says 75038500, counted 75038485"]).await;
}

#[tokio::test]
async fn a_volume_with_acls_and_quotas() {
    check_fixture("acl", &[]).await;
}
