//! Records that no client wrote, and objects that are not what they should be: an errno or a message, never a panic or an endless walk, and everything
//! else goes on.

use crate::servers::RedisServer;
use crate::support::{Mount, PANDO, Volume, eventually, run, sh, text};
use pando::meta::{codec, key};
use pando::types::{Attr, Flags, Ino, Kind, SliceRecord, Time};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Longest time of a command on a damaged volume, in seconds. An endless walk takes longer.
const PATIENCE_S: &str = "30";

/// Writes to a server whatever it is told to.
struct Writer(BufReader<TcpStream>);

impl Writer {
    fn new(server: &RedisServer, db: &str) -> Writer {
        let mut writer = Writer(BufReader::new(TcpStream::connect(server.address()).expect("connected")));
        writer.run(&[b"SELECT", db.as_bytes()]);
        writer
    }

    fn run(&mut self, words: &[&[u8]]) {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        self.0.get_mut().write_all(&bytes).expect("sent");
        let mut answer = String::new();
        self.0.read_line(&mut answer).expect("answered");
        assert!(answer.starts_with(['+', ':']), "{words:?}: {answer}");
    }

    fn set(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.run(&[b"DEL", key.as_ref()]);
        self.run(&[b"SET", key.as_ref(), value.as_ref()]);
    }

    fn push(&mut self, key: impl AsRef<[u8]>, element: impl AsRef<[u8]>) {
        self.run(&[b"RPUSH", key.as_ref(), element.as_ref()]);
    }

    fn field(&mut self, key: impl AsRef<[u8]>, field: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.run(&[b"HSET", key.as_ref(), field.as_ref(), value.as_ref()]);
    }

    fn entry(&mut self, dir: u64, name: impl AsRef<[u8]>, kind: Kind, ino: u64) {
        self.field(key::dir(Ino(dir)), name, codec::encode_entry(kind, Ino(ino)));
    }

    fn record(&mut self, ino: u64, attr: &Attr) {
        self.set(key::inode(Ino(ino)), codec::encode_attr(attr));
    }
}

fn attr(kind: Kind) -> Attr {
    Attr {
        flags: Flags(0),
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
        nlink: if kind == Kind::Dir { 2 } else { 1 },
        length: if kind == Kind::Dir { 4096 } else { 0 },
        rdev: 0,
        parent: Ino::ROOT,
        access_acl: 0,
        default_acl: 0,
        tier: 0,
    }
}

/// Numbers of inodes that no counter gives out during the test.
const STRANGE: u64 = 1_000_000;

/// What is wrong, below `/bad`; names tell it.
fn spoil(writer: &mut Writer, bad: u64) {
    let mut next = STRANGE;
    let mut ino = || {
        next += 1;
        next
    };
    let good = codec::encode_attr(&attr(Kind::File)).to_vec();
    for (name, record) in [("record of 10 bytes", &good[..10]), ("record of no bytes", &[][..]), ("record of 62 bytes", &good[..62])] {
        let ino = ino();
        writer.set(key::inode(Ino(ino)), record);
        writer.entry(bad, name, Kind::File, ino);
    }
    let strange = ino();
    writer.set(key::inode(Ino(strange)), [&good[..1], &[0xff, 0xff], &good[3..]].concat());
    writer.entry(bad, "record of an unknown type", Kind::File, strange);
    let list = ino();
    writer.push(key::inode(Ino(list)), "not a string");
    writer.entry(bad, "record that is a list", Kind::File, list);
    writer.entry(bad, "no record", Kind::File, ino());
    let other = ino();
    writer.record(other, &attr(Kind::File));
    writer.entry(bad, "a directory says its entry and a file its record", Kind::Dir, other);
    writer.field(key::dir(Ino(bad)), "entry of 5 bytes", "12345");
    writer.field(key::dir(Ino(bad)), "entry of an unknown type", [&[9][..], &5u64.to_be_bytes()].concat());
    writer.entry(bad, "inode 0", Kind::File, 0);
    writer.entry(bad, "inode of all bits", Kind::File, u64::MAX);
    for name in [&b"with/slash"[..], b"with\0nul", b"", b".", b"..", &[b'n'; 300], &[b'n'; 70_000], b"\xff\xfe"] {
        let ino = ino();
        writer.record(ino, &attr(Kind::File));
        writer.entry(bad, name, Kind::File, ino);
    }
    // Directories that contain themselves and what is above them.
    let (ring, inner) = (ino(), ino());
    writer.record(ring, &Attr { parent: Ino(inner), ..attr(Kind::Dir) });
    writer.record(inner, &Attr { parent: Ino(ring), ..attr(Kind::Dir) });
    writer.entry(bad, "ring", Kind::Dir, ring);
    writer.entry(ring, "inner", Kind::Dir, inner);
    writer.entry(inner, "outer", Kind::Dir, ring);
    writer.entry(inner, "itself", Kind::Dir, inner);
    writer.entry(inner, "root", Kind::Dir, 1);
    let dir = ino();
    writer.record(dir, &attr(Kind::Dir));
    writer.entry(bad, "directory that is a string", Kind::Dir, dir);
    writer.set(key::dir(Ino(dir)), "a string");
    let times = ino();
    let time = |sec, nsec| Time { sec, nsec };
    let at_the_ends =
        Attr { atime: time(i64::MIN, u32::MAX), mtime: time(i64::MAX, 999_999_999), ctime: time(-1, u32::MAX), ..attr(Kind::File) };
    writer.record(times, &Attr { nlink: 0, uid: u32::MAX, rdev: u32::MAX, mode: 0o7777, ..at_the_ends });
    writer.entry(bad, "times at the ends of time", Kind::File, times);
    for (name, target) in [
        ("link without a target", None),
        ("link to nul", Some(&b"a\0b"[..])),
        ("link too long", Some(&[b'l'; 9000])),
        ("link to nothing", Some(b"")),
    ] {
        let link = ino();
        writer.record(link, &Attr { length: 3, ..attr(Kind::Symlink) });
        writer.entry(bad, name, Kind::Symlink, link);
        if let Some(target) = target {
            writer.set(key::symlink(Ino(link)), target);
        }
    }
    // Files whose lists of slices are wrong.
    let slice = SliceRecord { pos: 0, id: 999_999, size: 100_000, off: 0, len: 100_000 };
    let record = codec::encode_slice(&slice).to_vec();
    let beyond = [&codec::encode_slice(&SliceRecord { pos: u32::MAX, ..slice })[..], &record].concat();
    for (name, length, element) in [
        ("slice of 23 bytes", 100_000, &record[..23]),
        ("slice of 48 bytes", 100_000, &beyond),
        ("slice beyond its chunk", 100_000, &beyond[..24]),
        ("slice without an object", 100_000, &record),
        ("slice in a file of all bits", u64::MAX, &record),
        ("slice in a file of 2^62", 1 << 62, &record),
        ("slice that reaches past its own end", 100_000, &codec::encode_slice(&SliceRecord { off: 99_999, ..slice })),
    ] {
        let file = ino();
        writer.record(file, &Attr { length, ..attr(Kind::File) });
        writer.entry(bad, name, Kind::File, file);
        writer.push(key::chunk(Ino(file), 0), element);
    }
    let file = ino();
    writer.record(file, &Attr { length: 100_000, ..attr(Kind::File) });
    writer.entry(bad, "list that is a string", Kind::File, file);
    writer.set(key::chunk(Ino(file), 0), "a string");
    writer.set(key::xattr(Ino(file)), "a string");
    writer.field(key::flock(Ino(file)), "no session", "no lock");
    writer.field(key::plock(Ino(file)), "1_1", "of 12 bytes.");
    let acl = ino();
    writer.record(acl, &Attr { access_acl: 77, default_acl: u32::MAX, ..attr(Kind::Dir) });
    writer.entry(bad, "rules that are not there", Kind::Dir, acl);
    // Beside the tree.
    writer.run(&[b"ZADD", b"allSessions", b"5", b"no number"]);
    writer.run(&[b"ZADD", b"allSessions", b"1e300", b"77"]);
    writer.field("sessionInfos", "77", "{ no document");
    writer.field("sessionInfos", "78", "[]");
    writer.run(&[b"ZADD", b"delfiles", b"1", b"no file"]);
    writer.run(&[b"ZADD", b"delfiles", b"1", b"18446744073709551615:18446744073709551615"]);
    writer.field("delSlices", "no name", "no slices");
    writer.field("sliceRef", "no slice", "no number");
    writer.field("sliceRef", "k999998_4294967295", "-5");
    writer.field("dirUsedSpace", bad.to_string(), "no number");
    writer.field("dirQuota", "no directory", "no quota");
    writer.field("acl", "77", "no rule");
    writer.run(&[b"ZADD", b"detachedNodes", b"5", b"no inode"]);
}

/// Everything an application may try with a name. What comes back does not matter, as long as something does.
fn try_all(path: &Path) {
    let _ = fs::symlink_metadata(path);
    let _ = fs::metadata(path);
    let _ = fs::read_link(path);
    let _ = fs::read_dir(path).map(|entries| entries.take(100).for_each(drop));
    if let Ok(file) = File::open(path) {
        let mut bytes = vec![0; 5000];
        let _ = file.read_at(&mut bytes, 0);
        let _ = file.read_at(&mut bytes, 1 << 40);
        let _ = file.read_at(&mut bytes, (1 << 57) - 1);
    }
    if let Ok(mut file) = OpenOptions::new().write(true).open(path) {
        let _ = file.write_at(b"changed", 70_000);
        let _ = file.sync_all();
        let _ = crate::locks::lock(&file, "flock", false);
        let _ = crate::locks::lock(&file, "fcntl", false);
        let _ = file.write_all(b"at the start");
        let _ = file.sync_all();
    }
    if let Ok(mut file) = OpenOptions::new().append(true).open(path) {
        let _ = file.write_all(b"at the end");
        let _ = file.set_len(10);
        let _ = file.sync_all();
    }
    let _ = fs::write(path.join("below"), "x");
    let _ = fs::rename(path, path.with_extension("moved"));
    let _ = fs::rename(path.with_extension("moved"), path);
    let _ = fs::hard_link(path, path.with_extension("linked"));
    let _ = fs::remove_file(path.with_extension("linked"));
}

fn command(args: &[&str]) -> Output {
    let output = run(Command::new("timeout").arg(PATIENCE_S).arg(PANDO).args(args));
    assert!(output.status.code() != Some(124), "{args:?} does not end: {}", text(&output));
    assert!(output.status.code().is_some() && !text(&output).contains("panicked"), "{args:?}: {}", text(&output));
    output
}

#[test]
fn records_that_nobody_wrote() {
    let (server, volume) = (RedisServer::with(&[]), Volume::new());
    let (url, bucket) = (server.url(1), volume.temp.path().join("objects"));
    let output = run(Command::new(PANDO)
        .args(["format", "--storage", "file", "--enable-acl", "--trash-days", "1", "--bucket"])
        .arg(&bucket)
        .args([&url, "vol"]));
    assert!(output.status.success(), "{}", text(&output));
    let log_path = volume.temp.path().join("log");
    let log = || fs::read_to_string(&log_path).expect("read");
    let options = ["--heartbeat", "1", "--enable-xattr", "--no-color"];
    let start = || {
        let log = OpenOptions::new().create(true).append(true).open(&log_path).expect("created");
        Mount::start_logging(Path::new(&url), &volume.temp.path().join("mnt"), &options, Stdio::from(log))
    };
    for round in 0..2 {
        let mount = start();
        let at = mount.path.clone();
        if round == 0 {
            fs::create_dir_all(at.join("bad")).expect("made");
            fs::create_dir_all(at.join("good/d")).expect("made");
            fs::write(at.join("good/d/f"), vec![7; 300_000]).expect("written");
            // While it is mounted; the second round finds it so.
            spoil(&mut Writer::new(&server, "1"), fs::metadata(at.join("bad")).expect("there").ino());
        }
        // An entry that is kept keeps the directory open.
        let listed = fs::read_dir(at.join("bad")).expect("listed").take(1000).filter_map(Result::ok);
        let paths: Vec<_> = listed
            .map(|entry| {
                assert!(entry.ino() != 0 && !entry.file_name().is_empty());
                entry.path()
            })
            .collect();
        println!("{} names are shown", paths.len());
        for path in &paths {
            try_all(path);
        }
        for path in ["ring/inner/outer/inner/itself/root/good/d/f", "ring/inner/itself/itself", "with", "no such name"] {
            try_all(&at.join("bad").join(path));
        }
        let find =
            run(Command::new("timeout").args([PATIENCE_S, "find"]).arg(at.join("bad")).args(["-maxdepth", "12"]).stdout(Stdio::null()));
        assert_ne!(find.status.code(), Some(124), "find does not end");
        let bad_path = at.join("bad").display().to_string();
        for args in [&["info", "-r", &bad_path][..], &["summary", &bad_path], &["compact", &bad_path], &["warmup", &bad_path]] {
            command(args);
        }
        command(&["clone", &bad_path, &at.join(format!("copy{round}")).display().to_string()]);
        assert_eq!(fs::read(at.join("good/d/f")).unwrap_or_else(|e| panic!("{e}: {}", log())), vec![7; 300_000]);
        fs::write(at.join("good/new"), "still works").expect("written");
        if round == 0 {
            // The heartbeat, the scans and the drain meet them, too.
            std::thread::sleep(Duration::from_secs(3));
        } else {
            let removal = run(Command::new("timeout").args([PATIENCE_S, "rm", "-rf"]).arg(at.join("bad/ring")));
            assert_ne!(removal.status.code(), Some(124), "rm does not end");
            command(&["rmr", &bad_path]);
            assert_eq!(fs::read(at.join("good/d/f")).unwrap_or_else(|e| panic!("{e}: {}", log())), vec![7; 300_000]);
        }
        mount.unmount();
    }
    let output = command(&["fsck", &url]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    command(&["gc", &url]);
    command(&["gc", "--delete", "--compact", &url]);
    command(&["status", &url]);
    let dumped = volume.temp.path().join("dump").display().to_string();
    command(&["dump", &url, &dumped]);
    command(&["dump", "--binary", &url, &dumped]);
    assert!(!log().contains("panicked"), "{}", log());
}

/// Counters and the setting are what everything begins with.
#[test]
fn counters_and_a_setting_that_nobody_wrote() {
    let (server, volume) = (RedisServer::with(&[]), Volume::new());
    let url = server.url(1);
    let output = run(Command::new(PANDO)
        .args(["format", "--storage", "file", "--trash-days", "0", "--bucket"])
        .arg(volume.temp.path().join("objects"))
        .args([&url, "vol"]));
    assert!(output.status.success(), "{}", text(&output));
    let log_path = volume.temp.path().join("log");
    let log = File::create(&log_path).expect("created");
    let mount = Mount::start_logging(Path::new(&url), &volume.temp.path().join("mnt"), &["--heartbeat", "1"], Stdio::from(log));
    fs::write(mount.join("f"), vec![1; 200_000]).expect("written");
    let mut writer = Writer::new(&server, "1");
    let get = |name: &str| server.cli(&["-n", "1", "get", name]).trim().to_owned();
    let setting = get("setting");
    for (name, value) in
        [("usedSpace", "no number"), ("totalInodes", "99999999999999999999"), ("setting", "{ \"Name\": 5"), ("setting", "")]
    {
        let before = get(name);
        writer.set(name, value);
        let written = fs::write(mount.join("g"), vec![2; 200_000]);
        println!("{name} = {value:?}: {written:?}");
        assert_eq!(fs::read(mount.join("f")).expect("whole"), vec![1; 200_000]);
        for args in [&["status", &url][..], &["fsck", &url], &["gc", &url]] {
            command(args);
        }
        std::thread::sleep(Duration::from_millis(1500));
        writer.set(name, if name == "setting" { &setting } else { &before });
    }
    for (name, value) in [("nextinode", "no number"), ("nextchunk", "9223372036854775807"), ("nextsession", "x")] {
        let before = get(name);
        writer.set(name, value);
        // Numbers fetched before are used up first.
        for n in 0..2 {
            let _ = fs::write(mount.join(format!("{name}{n}")), vec![2; 200_000]);
        }
        let at = volume.temp.path().join("other");
        let output = run(Command::new("timeout").args(["20", PANDO, "mount", &url]).arg(&at));
        let _ = run(Command::new("umount").arg("-l").arg(&at));
        assert!(!text(&output).contains("panicked"), "{name}: {}", text(&output));
        writer.set(name, &before);
    }
    eventually("it works again", || fs::write(mount.join("h"), vec![3; 200_000]).is_ok());
    assert_eq!(fs::read(mount.join("h")).expect("read"), vec![3; 200_000]);
    mount.unmount();
    let log = fs::read_to_string(&log_path).expect("read");
    assert!(!log.contains("panicked"), "{log}");
}

/// An object may be longer than its block, or another one altogether.
#[test]
fn objects_that_are_too_long_or_of_another_block() {
    let volume = Volume::new();
    let mount = volume.mount();
    for (name, byte) in [("long", 1), ("short", 2), ("directory", 3), ("whole", 4)] {
        fs::write(mount.join(name), vec![byte; 200_000]).expect("written");
    }
    mount.unmount();
    let find = "find objects -type f | grep chunks/ | sort -V";
    let objects: Vec<_> = sh(&volume.dir(), find).lines().map(|path| volume.dir().join(path)).collect();
    OpenOptions::new().append(true).open(&objects[0]).and_then(|mut file| file.write_all(&[1; 100])).expect("extended");
    File::create(&objects[1]).expect("emptied");
    fs::remove_file(&objects[2]).and_then(|()| fs::create_dir(&objects[2])).expect("replaced");
    let mount = volume.mount();
    for name in ["long", "short", "directory"] {
        let mut bytes = Vec::new();
        let error = File::open(mount.join(name)).and_then(|mut file| file.read_to_end(&mut bytes)).expect_err("damaged");
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}");
    }
    assert_eq!(fs::read(mount.join("whole")).expect("whole"), vec![4; 200_000]);
    mount.unmount();
}
