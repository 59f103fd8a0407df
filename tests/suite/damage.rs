//! A volume damaged in many ways: each is found and named, what can be mended is, and nothing else is touched.

use crate::servers::RedisServer;
use crate::support::{Mount, PANDO, Volume, run, sh, text};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The whole volume, and the copy of its metadata that is damaged.
const WHOLE: &str = "1";
const COPY: &str = "2";

fn pando(args: &[&str]) -> Output {
    run(Command::new(PANDO).args(args))
}

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

struct World {
    server: RedisServer,
    bucket: PathBuf,
    /// Inodes by path.
    inodes: BTreeMap<String, u64>,
    _volume: Volume,
}

/// What becomes of a damage.
enum After {
    /// The metadata are again what they were, but for these keys.
    Mended(Vec<String>),
    /// It stays, as nothing could mend it; these keys may have changed.
    Stays(Vec<String>),
}

use After::{Mended, Stays};

impl World {
    fn new() -> World {
        let (server, volume) = (RedisServer::with(&[]), Volume::new());
        let (url, bucket) = (server.url(1), volume.temp.path().join("objects"));
        ok(&pando(&["format", "--storage", "file", "--trash-days", "1", "--bucket", bucket.to_str().expect("text"), &url, "vol"]));
        let mount = Mount::start(Path::new(&url), &volume.temp.path().join("mnt"), &["--cache-size", "0", "--backup-meta", "0"]);
        sh(
            &mount.path,
            "mkdir -p a b/dir/sub; head -c 300000 /dev/zero > a/f; echo hello > a/small; echo hard > a/hard; ln a/hard b/hard2; ln -s small a/sym
             echo x > b/dir/sub/x; mkfifo a/fifo; head -c 100000 /dev/zero > shared; echo gone > gone; rm gone",
        );
        ok(&run(Command::new(PANDO).args(["clone", "shared", "copy"]).current_dir(&mount.path)));
        let paths = sh(&mount.path, "find . -printf '/%P\\n'");
        let inode = |path: &str| (path.to_owned(), fs::symlink_metadata(mount.join(path.trim_start_matches('/'))).expect("there").ino());
        let inodes = paths.lines().map(inode).collect();
        mount.unmount();
        ok(&pando(&["fsck", &url]));
        World { server, bucket, inodes, _volume: volume }
    }

    fn ino(&self, path: &str) -> u64 {
        self.inodes[path]
    }

    fn redis(&self, db: &str, args: &[&str]) -> String {
        self.server.cli(&[&["-n", db], args].concat())
    }

    /// The key of what is kept of an inode.
    fn key(&self, prefix: &str, path: &str) -> String {
        format!("{prefix}{}", self.ino(path))
    }

    /// The metadata as they were.
    fn begin(&self) -> String {
        self.redis(COPY, &["flushdb"]);
        self.redis(WHOLE, &["eval", "for _,k in ipairs(redis.call('keys','*')) do redis.call('copy',k,k,'db',2) end", "0"]);
        self.server.url(2)
    }

    /// Which keys are not as in the whole volume.
    fn differing(&self) -> BTreeSet<String> {
        let digests = |db: &str| -> BTreeMap<String, String> {
            let keys = self.redis(db, &["keys", "*"]);
            // Outcomes of commits and sessions of commands are nobody's data.
            let keys: Vec<&str> = keys.lines().filter(|key| !key.starts_with("_pando")).collect();
            let digests = self.redis(db, &[&["debug", "digest-value"], &keys[..]].concat());
            keys.iter().map(|key| key.to_string()).zip(digests.lines().map(String::from)).collect()
        };
        let (whole, copy) = (digests(WHOLE), digests(COPY));
        assert!(whole.len() > 20, "{whole:?}");
        whole.keys().chain(copy.keys()).filter(|key| whole.get(*key) != copy.get(*key)).cloned().collect()
    }

    /// An entry as a shell of Redis takes it.
    fn entry(kind: u8, ino: u64) -> String {
        format!("return '\\{kind}'..'{}'", ino.to_be_bytes().iter().map(|byte| format!("\\{byte:03}")).collect::<String>())
    }

    /// Sets a field of a hash to bytes.
    fn set_entry(&self, dir: &str, name: &str, kind: u8, ino: u64) {
        let script = format!("local function v() {} end; redis.call('hset', KEYS[1], ARGV[1], v())", World::entry(kind, ino));
        self.redis(COPY, &["eval", &script, "1", &self.key("d", dir), name]);
    }

    /// Replaces bytes of a record.
    fn patch(&self, path: &str, offset: u32, bytes: &[u8]) {
        let bytes: String = bytes.iter().map(|byte| format!("\\{byte:03}")).collect();
        let script = format!("redis.call('setrange', KEYS[1], ARGV[1], '{bytes}')");
        self.redis(COPY, &["eval", &script, "1", &self.key("i", path), &offset.to_string()]);
    }

    fn check(&self, name: &str, expected: &[&str], after: After, also: &[&[&str]]) {
        let url = self.server.url(2);
        let (stays, allowed) = match after {
            Mended(keys) => (false, keys),
            Stays(keys) => (true, keys),
        };
        let found = pando(&["fsck", &url]);
        let lines = text(&found);
        assert_eq!(found.status.code(), Some(1), "{name}: not found: {lines}");
        assert!(expected.iter().all(|part| lines.contains(part)), "{name}: {expected:?} in {lines}");
        let repaired = pando(&["fsck", "--repair", &url]);
        assert_eq!(repaired.status.success(), !stays, "{name}: {}", text(&repaired));
        also.iter().for_each(|args| drop(ok(&pando(&[args, &[url.as_str()][..]].concat()))));
        let again = pando(&["fsck", &url]);
        assert_eq!(again.status.success(), !stays, "{name}: {}", text(&again));
        let touched = self.differing();
        let allowed: BTreeSet<String> = allowed.into_iter().collect();
        assert!(touched.is_subset(&allowed), "{name}: {touched:?} were touched, {allowed:?} may be\n{}", text(&repaired));
    }
}

/// Offsets of fields of a record (metadata §3).
const NLINK: u32 = 47;
const PARENT: u32 = 63;

#[test]
fn every_damage_is_found_named_and_mended_where_that_is_possible() {
    let w = World::new();
    let k = |prefix: &str, path: &str| w.key(prefix, path);
    let root_stats = || {
        vec![
            k("d", "/"),
            k("i", "/"),
            "dirDataLength".into(),
            "dirUsedSpace".into(),
            "dirUsedInodes".into(),
            "usedSpace".into(),
            "totalInodes".into(),
            "nextinode".into(),
        ]
    };
    // Of things that get a name in /lost+found, which is new, and takes an inode. The directory they were in has new statistics.
    let found_again = |path: &str, parent: &str| {
        let lost = 1 + w.redis(WHOLE, &["get", "nextinode"]).trim().parse::<u64>().expect("a number");
        let mut keys = root_stats();
        // Numbers are taken in batches.
        keys.extend((lost..lost + 2048).flat_map(|ino| [format!("i{ino}"), format!("d{ino}")]));
        keys.extend([k("i", path), k("p", path), k("d", parent), k("i", parent), "nextsession".into()]);
        keys
    };

    // Entries and records.
    w.begin();
    w.redis(COPY, &["hdel", &k("d", "/a"), "small"]);
    w.check("an orphan", &[&format!("inode {}: nothing names it", w.ino("/a/small"))], Mended(found_again("/a/small", "/a")), &[]);
    w.begin();
    w.redis(COPY, &["hdel", &k("d", "/b"), "dir"]);
    w.check("an orphan tree", &[&format!("inode {}: nothing names it", w.ino("/b/dir"))], Mended(found_again("/b/dir", "/b")), &[]);
    w.begin();
    w.set_entry("/a", "ghost", 1, 999_999);
    w.check("a dangling entry", &["/a (inode ", "its entry \"ghost\" names inode 999999, which has no record"], Mended(vec![]), &[]);
    w.begin();
    w.redis(COPY, &["del", &k("i", "/a/f")]);
    w.check("a lost record of a file", &["its entry \"f\" names inode"], Mended(vec![k("i", "/a/f")]), &[]);
    w.begin();
    w.redis(COPY, &["del", &k("i", "/b/dir")]);
    w.check("a lost record of a directory", &["/b (inode ", "its entry \"dir\" names inode"], Mended(vec![k("i", "/b/dir")]), &[]);
    w.begin();
    w.redis(COPY, &["del", &k("i", "/a/sym")]);
    w.check("a lost record of a link", &["its entry \"sym\" names inode"], Mended(vec![k("i", "/a/sym")]), &[]);
    w.begin();
    w.set_entry("/a", "small", 4, w.ino("/a/small"));
    w.check("a wrong type", &["/a/small (inode ", "says Fifo, the record File"], Mended(vec![]), &[]);
    w.begin();
    w.redis(COPY, &["hset", &k("d", "/a"), "small", "?"]);
    // What it stood for is an orphan, and gets a name; the entry stays.
    w.check("a damaged entry", &["/a (inode ", "its entry \"small\" is damaged"], Stays(found_again("/a/small", "/a")), &[]);
    w.begin();
    w.redis(COPY, &["set", &k("i", "/a/fifo"), "short"]);
    w.check(
        "a damaged record",
        &[&format!("inode {}: its record is damaged", w.ino("/a/fifo"))],
        Stays([root_stats(), vec![k("i", "/a/fifo"), k("d", "/a"), k("i", "/a")]].concat()),
        &[],
    );
    w.begin();
    w.redis(COPY, &["del", &k("s", "/a/sym")]);
    w.check("a lost target", &[&format!("inode {}: a symbolic link without target", w.ino("/a/sym"))], Stays(vec![k("s", "/a/sym")]), &[]);

    // Links and parents.
    w.begin();
    w.patch("/a/small", NLINK, &7u32.to_be_bytes());
    w.check("a wrong link count", &["/a/small (inode ", "it has 7 links and 1 names"], Mended(vec![]), &[]);
    w.begin();
    w.patch("/b", NLINK, &9u32.to_be_bytes());
    w.check(
        "a wrong link count of a directory",
        &["/b (inode ", "it has 9 links and 1 directories; 3 links would be right"],
        Mended(vec![]),
        &[],
    );
    w.begin();
    w.patch("/a/small", PARENT, &w.ino("/b").to_be_bytes());
    w.check("a wrong parent", &["inode ", "its record says "], Mended(vec![]), &[]);
    w.begin();
    w.patch("/b/dir", PARENT, &w.ino("/a").to_be_bytes());
    w.check("a wrong parent of a directory", &["it is in directory ", "its record says "], Mended(vec![]), &[]);
    w.begin();
    w.redis(COPY, &["hset", &k("p", "/a/hard"), &w.ino("/a").to_string(), "5"]);
    w.check("wrong parents of a link", &["its list of parents counts 6 links, there are 2"], Mended(vec![]), &[]);
    w.begin();
    w.redis(COPY, &["del", &k("p", "/a/hard")]);
    w.check("lost parents of a link", &["its list of parents counts 0 links, there are 2"], Mended(vec![]), &[]);

    // Counters and statistics.
    w.begin();
    w.redis(COPY, &["del", "usedSpace"]);
    w.check("a lost counter", &["counter usedSpace: says 0, counted "], Mended(vec![]), &[]);
    w.begin();
    w.redis(COPY, &["del", "nextchunk"]);
    w.check("lost numbers of slices", &["counter nextchunk: says 0, but slice "], Mended(vec!["nextchunk".into()]), &[]);
    w.begin();
    w.redis(COPY, &["set", "nextinode", "3"]);
    w.check("lost numbers of inodes", &["counter nextinode: says 3, but inode "], Mended(vec!["nextinode".into()]), &[]);
    w.begin();
    w.redis(COPY, &["hset", "dirUsedSpace", &w.ino("/a").to_string(), "7"]);
    w.check("wrong statistics", &["/a (inode ", "its dirUsedSpace says 7, counted "], Mended(vec![]), &[]);
    w.begin();
    assert_eq!(w.redis(COPY, &["hlen", "sliceRef"]).trim(), "1", "the clone shares a slice");
    w.redis(COPY, &["del", "sliceRef"]);
    w.check("a lost reference", &["counts 1 references, there are 2", "delete none of the files that share data"], Mended(vec![]), &[]);

    // What `gc` sees to.
    w.begin();
    w.redis(COPY, &["eval", "redis.call('rpush', KEYS[1], string.rep('\\0', 24))", "1", "c999999_0"]);
    w.check("a list of no file", &["inode 999999: chunk 0 belongs to an inode that is no file"], Stays(vec!["c999999_0".into()]), &[]);
    assert!(ok(&pando(&["gc", "--delete", &w.server.url(2)])).contains("1 inodes that do not exist have slice lists"));
    ok(&pando(&["fsck", &w.server.url(2)]));
    assert!(w.differing().is_empty(), "{:?}", w.differing());
}

#[test]
fn lost_and_stray_objects_and_cut_copies() {
    let w = World::new();
    let url = w.begin();
    let object = sh(&w.bucket, "find vol/chunks -type f -size +200k").trim().to_owned();
    let (path, aside) = (w.bucket.join(&object), w.bucket.join("aside"));
    fs::rename(&path, &aside).expect("moved");
    w.check(
        "a lost object",
        &["/a/f (inode ", &format!("can't find block {object}"), "1 objects are lost (300000 bytes)", ": /a/f\n"],
        Stays(vec![]),
        &[],
    );
    fs::write(&path, "short").expect("written");
    w.check("a cut object", &["/a/f (inode ", "has 5 bytes instead of 300000", ": /a/f\n"], Stays(vec![]), &[]);
    fs::rename(&aside, &path).expect("moved back");
    ok(&pando(&["fsck", &url]));
    // A leak above all numbers that were given out: the next slice would replace it.
    let next: u64 = w.redis(COPY, &["get", "nextchunk"]).trim().parse().expect("a number");
    let block = |slice: u64| w.bucket.join(format!("vol/chunks/{}/{}/{slice}_0_5", slice / 1_000_000, slice / 1000));
    let stray = block(next + 5_000_000);
    fs::create_dir_all(stray.parent().expect("a directory")).expect("made");
    fs::write(&stray, "stray").expect("written");
    sh(&w.bucket, "find vol -type f -exec touch -d '2 hours ago' {} +");
    let before = sh(&w.bucket, "find vol -type f | sort");
    w.check("a stray object", &["counter nextchunk: says ", "new ones would replace what exists"], Mended(vec!["nextchunk".into()]), &[]);
    assert!(ok(&pando(&["gc", &url])).contains(" 1 leaked (5 bytes)"));
    assert_eq!(sh(&w.bucket, "find vol -type f | sort"), before, "without --delete it stays");
    assert!(ok(&pando(&["gc", "--delete", &url])).contains(" 1 leaked (5 bytes)"));
    let left = sh(&w.bucket, "find vol -type f | sort");
    assert_eq!(before.lines().filter(|line| !left.contains(line)).count(), 1);
    assert!(!stray.exists());

    // A copy that was cut: a directory with something in it, without a name.
    w.begin();
    let (dir, file) = (900_000u64, 900_001u64);
    let script = "redis.call('copy', KEYS[1], ARGV[1]); redis.call('copy', KEYS[2], ARGV[2])
                  redis.call('zadd', 'detachedNodes', 1, string.sub(ARGV[1], 2)); redis.call('incrby', 'usedSpace', 8192)
                  redis.call('incrby', 'totalInodes', 2); redis.call('set', 'nextinode', 900100)";
    w.redis(COPY, &["eval", script, "2", &w.key("i", "/b/dir/sub"), &w.key("i", "/a/small"), &format!("i{dir}"), &format!("i{file}")]);
    let script = format!("local function v() {} end; redis.call('hset', KEYS[1], 'x', v())", World::entry(1, file));
    w.redis(COPY, &["eval", &script, "1", &format!("d{dir}")]);
    let patch =
        format!("redis.call('setrange', KEYS[1], 63, '{}')", dir.to_be_bytes().iter().map(|b| format!("\\{b:03}")).collect::<String>());
    w.redis(COPY, &["eval", &patch, "1", &format!("i{file}")]);
    ok(&pando(&["fsck", &url]));
    assert!(ok(&pando(&["gc", &url])).contains("1 copies that were cut can be removed"));
    assert!(w.redis(COPY, &["exists", &format!("i{dir}")]).starts_with('1'));
    assert!(ok(&pando(&["gc", "--delete", &url])).contains("1 copies that were cut are removed"));
    ok(&pando(&["fsck", &url]));
    let touched = w.differing();
    let known = |key: &String| ["nextinode", "delfiles", "sliceRef", "nextsession"].contains(&key.as_str());
    assert!(touched.iter().all(known), "{touched:?}");
}

#[test]
fn a_volume_in_use_is_not_repaired_as_a_whole() {
    for volume in [Volume::new(), Volume::served(1)] {
        let mount = volume.mount();
        let refused = run(Command::new(PANDO).args(["fsck", "--repair"]).arg(volume.dir()));
        assert!(!refused.status.success() && text(&refused).contains("the volume is in use"), "{}", text(&refused));
        mount.unmount();
        ok(&run(Command::new(PANDO).args(["fsck", "--repair"]).arg(volume.dir())));
    }
}
