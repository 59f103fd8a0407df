//! Dumps of the fixtures are those of the reference, and what is loaded from them is the same volume.

use super::binary_read::{BinaryReader, Part};
use super::fixture::{FIXTURES, file, store};
use super::{DumpOptions, Frames, Loaded, Slices, binary, json, load};
use crate::meta::key;
use crate::meta::store::embedded::EmbeddedStore;
use crate::meta::store::{Store, Write};
use crate::types::Ino;
use crate::volume::VolumeError;
use crate::volume::stores::{load_setting, usage};
use proptest::prelude::*;
use serde_json::Value as Json;
use std::collections::BTreeSet;

async fn dump_json(store: &dyn Store, options: &DumpOptions) -> String {
    let setting = load_setting(store).await.expect("reads").expect("a volume");
    let mut slices = Slices::of(store, Frames::None);
    let mut out = Vec::new();
    json::write(store, &setting, options, &mut slices, &mut out).await.expect("dumps");
    String::from_utf8(out).expect("text")
}

async fn load_json(store: &dyn Store, text: &[u8]) -> Result<Loaded, VolumeError> {
    super::check_json(text)?;
    load::claim(store).await?;
    let (loaded, setting) = super::load_json(store, text).await?;
    load::complete(store, &setting).await?;
    Ok(loaded)
}

/// The reference's dump, with the one name it damages put right.
fn reference(fixture: &str) -> String {
    let text = String::from_utf8(file(fixture, "dump.json")).expect("text");
    text.replace("\"%EF-replacement\"", "\"\u{fffd}-replacement\"")
}

/// Where two long texts part.
fn assert_same(ours: &str, theirs: &str, what: &str) {
    for (number, (ours, theirs)) in ours.lines().zip(theirs.lines()).enumerate() {
        assert_eq!(ours, theirs, "{what}, line {}", number + 1);
    }
    assert!(ours == theirs, "{what}: {} and {} bytes", ours.len(), theirs.len());
}

#[tokio::test]
async fn json_dumps_are_those_of_the_reference() {
    for fixture in FIXTURES {
        let store = store(fixture).await;
        assert_same(&dump_json(&store, &DumpOptions::default()).await, &reference(fixture), fixture);
    }
}

/// A dump without what a load does not bring back: sessions have ended, and with them the files they kept, which were counted.
fn without_sessions(text: &str) -> String {
    let (head, rest) = text.split_once("  \"Sustained\": [").expect("a header");
    let (_, rest) = rest.split_once("\"DelFiles\"").expect("a header");
    head.lines().filter(|line| !line.contains("\"used")).collect::<Vec<_>>().join("\n") + rest
}

/// By time, then by the text of the member, as a server lists a sorted set; laid out like everything else.
#[tokio::test]
async fn deleted_files_are_listed_in_their_order() {
    let store = store("plain").await;
    let numbers = [1, 2, 9, 10, 11, 99, 100, 101, 109, 110, 1000, 9_007_199_254_740_993, u64::MAX];
    let files = numbers.iter().enumerate().map(|(n, ino)| (*ino, 12, 5 + n as i64 % 2)).chain([(10, 3, 5), (10, 21, 5)]);
    let writes = files.map(|(ino, length, time)| Write::ZAdd(key::DELFILES, time, key::delfile(Ino(ino), length)));
    store.commit(&[], &writes.collect::<Vec<_>>(), &[]).await.expect("written");
    let text = dump_json(&store, &DumpOptions::default()).await;
    let document: Json = serde_json::from_str(&text).expect("a document");
    let file = |file: &Json| (file["expire"].as_i64().expect("a time"), format!("{}:{}", file["inode"], file["length"]));
    let listed: Vec<_> = document["DelFiles"].as_array().expect("a list").iter().map(file).collect();
    assert!(listed.is_sorted() && listed.len() >= numbers.len() + 2, "{listed:?}");
    let list = |text: &str| {
        let (_, rest) = text.split_once("\"DelFiles\"").expect("a header");
        rest.split_once(']').expect("its end").0.to_owned()
    };
    assert_eq!(list(&text), list(&serde_json::to_string_pretty(&document).expect("text")));
}

#[tokio::test]
async fn a_loaded_dump_dumps_the_same() {
    for fixture in FIXTURES {
        let store = EmbeddedStore::open_in_memory().expect("a store");
        let loaded = load_json(&store, reference(fixture).as_bytes()).await.expect("loads");
        assert!(!loaded.secrets_removed);
        let again = dump_json(&store, &DumpOptions::default()).await;
        assert_same(&without_sessions(&again), &without_sessions(&reference(fixture)), fixture);
        // Two sessions' files of 4 KiB each are gone in `plain`.
        let used = usage(&store).await.expect("reads");
        let before = usage(&super::fixture::store(fixture).await).await.expect("reads");
        let kept = if fixture == "plain" { 2 } else { 0 };
        assert_eq!((used.inodes, used.space), (before.inodes - kept, before.space - 4096 * kept), "{fixture}");
        // Raw records: links, parents, references and statistics came back as they were. Rules of ACLs have new numbers.
        if fixture == "acl" {
            continue;
        }
        let records = |keys: BTreeSet<String>| keys.into_iter().filter(|key| !is_of_session(key)).collect::<BTreeSet<_>>();
        let (ours, theirs) = (dump_binary(&store).await, dump_binary(&super::fixture::store(fixture).await).await);
        assert_same_set(&records(changes(&ours)), &records(changes(&theirs)), fixture);
    }
}

fn assert_same_set(ours: &BTreeSet<String>, theirs: &BTreeSet<String>, what: &str) {
    let (more, less): (Vec<_>, Vec<_>) = (ours.difference(theirs).collect(), theirs.difference(ours).collect());
    assert!(more.is_empty() && less.is_empty(), "{what}: only ours {more:#?}, only theirs {less:#?}");
}

/// Inodes that only a session kept, the counters that counted them, and a statistic that still did.
fn is_of_session(change: &str) -> bool {
    if change.starts_with("HSet(b\"dirDataLength\", b\"2\", ") {
        return true;
    }
    ["usedSpace", "totalInodes", "session1", "i3059", "i3060", "c3059_0", "c3060_0"]
        .iter()
        .any(|key| change.contains(&format!("b\"{key}\"")))
}

async fn dump_binary(store: &dyn Store) -> Vec<u8> {
    let setting = load_setting(store).await.expect("reads").expect("a volume");
    let mut slices = Slices::of(store, Frames::None);
    let mut out = Vec::new();
    binary::write(store, &setting, &DumpOptions::default(), &mut slices, &mut out).await.expect("dumps");
    out
}

/// What a binary dump says, in an order of its own: that of the file depends on the server.
fn changes(dump: &[u8]) -> BTreeSet<String> {
    let mut reader = BinaryReader::new(dump);
    let mut changes = BTreeSet::new();
    while let Some(part) = reader.next().expect("a sound dump") {
        match part {
            Part::Setting(setting) => drop(changes.insert(String::from_utf8(setting.encode()).expect("text"))),
            Part::Writes { writes, acl_max } => {
                changes.extend(writes.iter().map(|write| format!("{write:?}")));
                changes.insert(format!("highest ACL {acl_max}"));
            }
        }
    }
    changes
}

#[tokio::test]
async fn binary_dumps_are_those_of_the_reference() {
    for fixture in FIXTURES {
        let (ours, theirs) = (dump_binary(&store(fixture).await).await, file(fixture, "dump.bin"));
        // The reference unescapes one target that was never escaped.
        let damaged = |change: &String| change.contains("b\"s23\"") && fixture == "plain";
        let (mut our_changes, mut their_changes) = (changes(&ours), changes(&theirs));
        our_changes.retain(|change| !damaged(change));
        their_changes.retain(|change| !damaged(change));
        assert_same_set(&our_changes, &their_changes, fixture);
        // The same segments and items: the readers compared them with the footers. Only offsets in the footer, which depend on the order of
        // segments, may be longer or shorter.
        assert!(ours.len().abs_diff(theirs.len()) <= 16, "{fixture}: {} and {} bytes", ours.len(), theirs.len());
    }
}

#[tokio::test]
async fn a_loaded_binary_dump_is_the_volume() {
    for fixture in FIXTURES {
        let original = store(fixture).await;
        let dump = dump_binary(&original).await;
        let loaded = EmbeddedStore::open_in_memory().expect("a store");
        super::check_binary(&dump[..]).expect("sound");
        load::claim(&loaded).await.expect("empty");
        let (_, setting) = super::load_binary(&loaded, &dump[..]).await.expect("loads");
        load::complete(&loaded, &setting).await.expect("completes");
        let mut expected = changes(&dump);
        // A session that has ended is not listed.
        expected.retain(|change| !change.contains("b\"session1\""));
        assert_same_set(&changes(&dump_binary(&loaded).await), &expected, fixture);
        let text = dump_json(&loaded, &DumpOptions::default()).await;
        let before = dump_json(&original, &DumpOptions::default()).await;
        assert_same(&without_sessions(&text).replace("removed", ""), &without_secret(&without_sessions(&before)), fixture);
    }
}

/// A binary dump does not hold the key of encrypted volumes, a JSON dump does.
fn without_secret(text: &str) -> String {
    let lines = text.lines().map(|line| match line.split_once("\"EncryptKey\": ") {
        Some((indent, _)) => format!("{indent}\"EncryptKey\": \"\","),
        None => line.to_string(),
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

#[tokio::test]
async fn subdirectories_become_roots_and_the_trash_can_be_left_out() {
    let original = store("plain").await;
    let options = DumpOptions { subdir: Some("/c".into()), ..DumpOptions::default() };
    let text = dump_json(&original, &options).await;
    assert!(text.contains("\"FSTree\": {\n    \"attr\": {\"inode\":4,") && !text.contains("\"Trash\": {"));
    let loaded = EmbeddedStore::open_in_memory().expect("a store");
    // /c/d/hl3, /c/fifo-hl and /c/d, of which two had more names elsewhere.
    assert_eq!(load_json(&loaded, text.as_bytes()).await.expect("loads").inodes, 3);
    let again = dump_json(&loaded, &DumpOptions { skip_trash: true, ..DumpOptions::default() }).await;
    assert!(again.contains("\"hl3\"") && again.contains("\"nlink\":1,") && !again.contains("\"Trash\": {"));
    for path in ["/nothing", "/a/hello"] {
        assert!(super::walk_to(&original, path).await.is_err(), "{path}");
    }
}

#[tokio::test]
async fn damaged_dumps_and_full_targets_are_refused_before_anything_is_written() {
    let text = reference("acl");
    let whole = text.trim_end().len();
    for end in [0, 1, 100, whole / 3, whole / 2, whole - 20, whole - 1] {
        assert!(super::check_json(&text.as_bytes()[..end]).is_err(), "cut at {end}");
    }
    for (from, to) in [
        ("\"type\":\"regular\"", "\"type\":\"what\""),
        ("\"inode\":14,", "\"inode\":-1,"),
        ("\"len\":5000}", "\"len\":5001}"),
        ("\"child\": {", "\"a/b\": {"),
        ("\"BlockSize\": 4096", "\"BlockSize\": 4097"),
        ("\"inode\":8,", "\"inode\":1,"),
        ("\"inode\":9,", "\"inode\":2,"),
        ("\"FSTree\"", "\"Tree\""),
    ] {
        assert!(text.contains(from) && super::check_json(text.replacen(from, to, 1).as_bytes()).is_err(), "{from}");
    }
    let dump = file("acl", "dump.bin");
    super::check_binary(&dump[..]).expect("sound");
    for end in [0, 3, 4, 100, dump.len() / 2, dump.len() - 1] {
        assert!(super::check_binary(&dump[..end]).is_err(), "cut at {end}");
    }
    let store = store("acl").await;
    let before = dump_binary(&store).await;
    let refused = load_json(&store, text.as_bytes()).await.expect_err("not empty");
    assert!(refused.to_string().contains("not empty"), "{refused}");
    assert_eq!(dump_binary(&store).await, before);
}

proptest! {
    #[test]
    fn no_change_of_a_dump_makes_a_reader_panic(at in 0usize..1_000_000, byte: u8) {
        for (name, binary) in [("dump.json", false), ("dump.bin", true)] {
            let mut bytes = file("acl", name);
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = if binary { super::check_binary(&bytes[..]) } else { super::check_json(&bytes[..]) };
        }
    }
}

/// What a reader accepts can be loaded, or is refused with a message, and what was loaded can be dumped.
fn load_and_dump(bytes: &[u8], binary: bool) {
    let sound = if binary { super::check_binary(bytes).is_ok() } else { super::check_json(bytes).is_ok() };
    if !sound {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let store = EmbeddedStore::open_in_memory().expect("a store");
        load::claim(&store).await.expect("empty");
        let loaded = if binary { super::load_binary(&store, bytes).await } else { super::load_json(&store, bytes).await };
        let Ok((_, setting)) = loaded else { return };
        if load::complete(&store, &setting).await.is_ok() {
            let mut slices = Slices::of(&store, Frames::None);
            let _ = json::write(&store, &setting, &DumpOptions::default(), &mut slices, &mut Vec::new()).await;
        }
    });
}

#[test]
fn no_dump_upsets_the_readers() {
    crate::env::fuzz::decoder_of(150, &[file("acl", "dump.json")], |bytes| load_and_dump(bytes, false));
    crate::env::fuzz::decoder_of(150, &[file("acl", "dump.bin")], |bytes| load_and_dump(bytes, true));
}
