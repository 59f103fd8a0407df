//! Backups of a volume in memory: what they hold, how they fail, and what is kept.

use super::*;
use crate::block::{BlockConfig, BlockStore};
use crate::cache::MemoryCache;
use crate::env::SystemClock;
use crate::meta::store::Store;
use crate::meta::{AtimeMode, MetaConfig};
use crate::object::fault::{Fault, FaultStore, Request};
use crate::object::memory::MemoryStore;
use crate::volume::dump::{DumpInput, fixture};
use crate::volume::stores::load_setting;
use bytes::Bytes;

const KEY: &str = include_str!("../../../tests/fixtures/keys/pkcs8.pem");

struct Bench {
    backups: Backups,
    memory: Arc<MemoryStore>,
    faults: Arc<FaultStore>,
}

/// A volume of the reference.
async fn bench(encryption: Option<Encryption>) -> Bench {
    let store: Arc<dyn Store> = Arc::new(fixture::store("plain").await);
    let setting = load_setting(store.as_ref()).await.unwrap().unwrap();
    let memory = Arc::new(MemoryStore::new());
    let faults = Arc::new(FaultStore::new(memory.clone()));
    let (duties, _) = tokio::sync::mpsc::channel(1);
    let clock = Arc::new(SystemClock::new());
    let meta = Arc::new(Meta::new(MetaConfig { store, clock, setting: setting.clone(), duties, atime: AtimeMode::Never }));
    let blocks = BlockStore::new(BlockConfig {
        objects: faults.clone(),
        prefix: setting.name().into(),
        hash_prefix: false,
        block_bytes: setting.block_bytes(),
        codec: Default::default(),
        cache: MemoryCache::new(0),
        disk: None,
        frames: meta.clone(),
        tuning: Default::default(),
    });
    let chunks = Chunks::new(meta.clone(), blocks);
    let encryption = encryption.map(Arc::new);
    Bench { backups: Backups { meta, chunks, objects: faults.clone(), encryption, skip_trash: false }, memory, faults }
}

/// The one backup there is.
fn only(memory: &MemoryStore) -> Bytes {
    let objects: Vec<_> = memory.objects().into_iter().collect();
    let [(key, body)] = &objects[..] else { panic!("{objects:?}") };
    assert!(key.strip_prefix("plain/meta/").and_then(parse_name).is_some(), "{key}");
    body.clone()
}

fn unpacked(body: &[u8]) -> String {
    let mut file = crate::volume::dump::nameless().unwrap();
    std::io::Write::write_all(&mut file, body).unwrap();
    let mut text = String::new();
    DumpInput::gzip(file, "the backup").reader().unwrap().read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn a_backup_is_the_dump_of_the_volume() {
    let Bench { backups, memory, .. } = bench(None).await;
    backups.take().await.unwrap();
    let text = unpacked(&only(&memory));
    let reference = String::from_utf8(fixture::file("plain", "dump.json")).unwrap();
    assert_eq!(text, reference.replace("\"%EF-replacement\"", "\"\u{fffd}-replacement\""));
}

#[tokio::test]
async fn of_an_encrypted_volume_it_is_encrypted() {
    let encryption = || Encryption::new("aes256gcm-rsa", KEY, None).unwrap();
    let Bench { backups, memory, .. } = bench(Some(encryption())).await;
    backups.take().await.unwrap();
    let sealed = only(&memory);
    assert_ne!(sealed[..2], [0x1f, 0x8b]);
    assert!(unpacked(&encryption().open(&sealed).unwrap()).contains("\"FSTree\""));
}

#[tokio::test]
async fn what_is_outdated_goes_after_a_success_only() {
    let Bench { backups, memory, faults } = bench(None).await;
    let old = "plain/meta/dump-2001-01-01-000000.json.gz";
    for key in [old, "plain/meta/notes.txt", "plain/chunks/0/0/1_0_5", "plainer/meta/dump-2001-01-01-000000.json.gz"] {
        memory.put(key, Bytes::from_static(b"x")).await.unwrap();
    }
    faults.inject(Request::Put, 0, 1, Fault::Fail(ObjectError::Denied("read-only".into())));
    let why = backups.take().await.unwrap_err();
    assert!(why.contains("cannot store plain/meta/dump-") && why.contains("read-only"), "{why}");
    assert_eq!(memory.objects().len(), 4);
    // A listing that fails is no failure of the backup.
    faults.inject(Request::List, 0, 1, Fault::Fail(ObjectError::Denied("no".into())));
    backups.take().await.unwrap();
    assert_eq!(memory.objects().len(), 5);
    backups.take().await.unwrap();
    assert!(!memory.objects().contains_key(old));
    assert!(memory.objects().len() >= 4);
}
