//! Directories that are damaged and mended.

use super::*;
use crate::meta::codec::encode_entry;
use crate::volume::{MetaUrl, NewVolume, create};

/// /d (inode 2) with /d/e (inode 3) and /d/f (inode 4, 5 bytes in slice 1).
async fn volume(dir: &std::path::Path) -> Stores {
    let url = MetaUrl::Embedded(dir.join("vol"));
    create(&url, &NewVolume { name: "vol".into(), ..NewVolume::default() }).await.unwrap();
    let stores = Stores::open(&url).await.unwrap();
    let wanted = check("/");
    let walk = Walk { check: Check::new(&stores), wanted: &wanted, slices: HashSet::new() };
    let attr = |parent, nlink| walk.new_attr(Ino(parent), nlink);
    let file = Attr { kind: Kind::File, nlink: 1, length: 5, ..attr(2, 1) };
    let record = crate::types::SliceRecord { pos: 0, id: 1, size: 5, off: 0, len: 5 };
    let mut writes = vec![
        Write::Set(key::inode(Ino::ROOT), encode_attr(&attr(1, 3))),
        Write::Set(key::inode(Ino(2)), encode_attr(&attr(1, 3))),
        Write::Set(key::inode(Ino(3)), encode_attr(&attr(2, 2))),
        Write::Set(key::inode(Ino(4)), encode_attr(&file)),
        Write::HSet(key::dir(Ino::ROOT), "d".into(), encode_entry(Kind::Dir, Ino(2))),
        Write::HSet(key::dir(Ino(2)), "e".into(), encode_entry(Kind::Dir, Ino(3))),
        Write::HSet(key::dir(Ino(2)), "f".into(), encode_entry(Kind::File, Ino(4))),
        Write::RPush(key::chunk(Ino(4), 0), vec![crate::meta::codec::encode_slice(&record)]),
        Write::PutFrame(1, Bytes::from_static(b"hello")),
        Write::Set(key::USED_SPACE, key::decimal(3 * 4096)),
        Write::Set(key::TOTAL_INODES, key::decimal(3)),
        Write::Set(key::NEXT_INODE, key::decimal(100)),
        Write::Set(key::NEXT_CHUNK, key::decimal(100)),
    ];
    for (ino, sums) in [(1, [0, 4096, 1]), (2, [5, 8192, 2]), (3, [0, 0, 0])] {
        let hashes = [key::DIR_DATA_LENGTH, key::DIR_USED_SPACE, key::DIR_USED_INODES];
        writes.extend(hashes.into_iter().zip(sums).map(|(hash, sum)| Write::HSet(hash, key::decimal(ino), key::decimal(sum))));
    }
    drop(walk);
    write(&stores, writes).await;
    stores
}

async fn write(stores: &Stores, writes: Vec<Write>) {
    stores.store.commit(&[], &writes, &[]).await.unwrap();
}

fn check(path: &str) -> PathCheck {
    PathCheck { path: path.into(), recursive: false, repair: false, sync_dir_stat: false, dir_mode: 0o700 }
}

async fn found(stores: &Stores, wanted: &PathCheck) -> Vec<String> {
    let (findings, _) = check_path(stores, wanted).await.unwrap();
    findings.into_iter().map(|finding| format!("{}: {}", finding.subject, finding.what)).collect()
}

#[tokio::test]
async fn a_sound_tree_is_sound() {
    let temp = tempfile::tempdir().unwrap();
    let stores = volume(temp.path()).await;
    for path in ["/", "/d", "/d/e", "/d/f", "/d/"] {
        let all = PathCheck { recursive: true, sync_dir_stat: true, ..check(path) };
        assert_eq!(found(&stores, &all).await, [""; 0], "{path}");
    }
    let (_, summary) = check_path(&stores, &PathCheck { recursive: true, ..check("/") }).await.unwrap();
    assert_eq!((summary.inodes, summary.entries, summary.slices, summary.blocks), (3, 3, 1, 1));
    for path in ["/x", "/d/f/x"] {
        assert!(check_path(&stores, &check(path)).await.is_err(), "{path}");
    }
    // The whole volume is, too.
    assert_eq!(super::super::fsck(&stores).await.unwrap().0, []);
}

#[tokio::test]
async fn damage_is_found_where_it_is_and_mended_when_that_is_asked() {
    const LOST: &str = "/d/f: can't find block vol/chunks/0/0/1_0_5";
    const ENTRY: &str = "/d/e: its entry \"x\" is damaged";
    let table: Vec<(Vec<Write>, &str, &str, bool)> = vec![
        (vec![Write::Del(key::inode(Ino(2)))], "/d: attribute of it is missing or damaged", "", false),
        (vec![Write::Set(key::inode(Ino(3)), "short".into())], "/d/e: attribute of it is missing or damaged", "", false),
        (vec![Write::AddU32 { key: key::inode(Ino(2)), offset: 47, delta: 4 }], "/d: it has 7 links, 3 would be right", "", false),
        (vec![Write::HSet(key::DIR_USED_INODES, "2".into(), "9".into())], "/d: usage stat of /d is missing or broken (inode 2)", "", true),
        (vec![Write::HDel(key::DIR_USED_SPACE, "3".into())], "/d/e: usage stat of /d/e is missing or broken (inode 3)", "", true),
        (vec![Write::IncrBy(key::USED_SPACE, 7)], "the volume: its usage is 12295 bytes and 3 inodes, counted 12288 and 3", "", true),
        (vec![Write::DelFrame(1)], LOST, LOST, false),
        (vec![Write::HSet(key::dir(Ino(3)), "x".into(), "?".into())], ENTRY, ENTRY, false),
    ];
    for (writes, finding, left, statistics) in table {
        let temp = tempfile::tempdir().unwrap();
        let stores = volume(temp.path()).await;
        write(&stores, writes).await;
        // A lost record has also changed what the usage is counted from.
        let record = finding.contains("attribute");
        let all = PathCheck { recursive: true, sync_dir_stat: !record, ..check("/") };
        let at_first = found(&stores, &all).await;
        assert!(at_first.contains(&finding.to_owned()) && (record || at_first.len() == 1), "{at_first:?}");
        assert_eq!(found(&stores, &all).await, at_first, "nothing was changed");
        let left: Vec<&str> = [left].into_iter().filter(|left| !left.is_empty()).collect();
        if statistics {
            // Only with its own option.
            let attributes = PathCheck { repair: true, sync_dir_stat: false, ..all.clone() };
            let still = found(&stores, &attributes).await;
            let is_missing = finding.starts_with("/d/e");
            assert_eq!(still, [finding].into_iter().filter(|_| is_missing).collect::<Vec<_>>());
        }
        assert_eq!(found(&stores, &PathCheck { repair: true, ..all.clone() }).await, left, "{finding}");
        assert_eq!(found(&stores, &all).await, left, "{finding}");
    }
}

#[tokio::test]
async fn one_level_and_a_new_record() {
    let temp = tempfile::tempdir().unwrap();
    let stores = volume(temp.path()).await;
    write(&stores, vec![Write::Del(key::inode(Ino(3))), Write::Del(key::inode(Ino(2)))]).await;
    assert_eq!(found(&stores, &PathCheck { repair: true, ..check("/d") }).await, [""; 0]);
    let Value::Bytes(Some(bytes)) = stores.store.read(&[Query::Get(key::inode(Ino(2)))]).await.unwrap().remove(0) else { panic!() };
    let attr = Record::decode(bytes).unwrap().attr;
    assert_eq!((attr.kind, attr.mode, attr.uid, attr.nlink, attr.parent), (Kind::Dir, 0o700, 0, 3, Ino::ROOT));
    assert_eq!(stores.store.read(&[Query::Get(key::inode(Ino(3)))]).await.unwrap(), [Value::Bytes(None)], "below it nothing was looked at");
}
