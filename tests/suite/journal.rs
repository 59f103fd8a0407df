//! Small blocks that are acknowledged beside the metadata of a server and become objects a moment later.

use crate::proxy::Proxy;
use crate::s3_server::{ACCESS_KEY, SECRET_KEY, Server};
use crate::servers::RedisServer;
use crate::support::{Dice, Mount, PANDO, Volume, eventually, run, sh, text};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// A volume in Redis and a bucket, both behind proxies.
pub struct World {
    redis: RedisServer,
    _bucket: Server,
    pub to_redis: Proxy,
    pub to_bucket: Proxy,
    pub volume: Volume,
    url: String,
}

impl World {
    pub fn new() -> World {
        let (redis, volume) = (RedisServer::start(), Volume::new());
        let root = volume.temp.path().join("s3");
        fs::create_dir_all(&root).expect("made");
        let bucket = Server::start(&root);
        let (to_redis, to_bucket) = (Proxy::start(redis.address()), Proxy::start(bucket.addr()));
        let url = redis.url(1);
        let place = format!("http://127.0.0.1:{}/data", to_bucket.port);
        let mut format = Command::new(PANDO);
        format.args(["format", "--storage", "s3", "--bucket", &place, "--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]);
        let output = run(format.args(["--trash-days", "0", &url, "vol"]));
        assert!(output.status.success(), "{}", text(&output));
        World { redis, _bucket: bucket, to_redis, to_bucket, volume, url }
    }

    pub fn mount(&self, name: &str, args: &[&str]) -> Mount {
        let url = self.url.replace(&self.redis.port.to_string(), &self.to_redis.port.to_string());
        let args = [&["--cache-size", "0"], args].concat();
        Mount::start(Path::new(&url), &self.volume.temp.path().join(name), &args)
    }

    /// The same, once it keeps small blocks.
    fn journaling(&self, name: &str) -> Mount {
        let mount = self.mount(name, &[]);
        self.wait_for_journal(&mount);
        mount
    }

    fn wait_for_journal(&self, mount: &Mount) {
        self.to_bucket.hold_requests(false);
        eventually("the journal takes something", || {
            let before = self.frames();
            fs::write(mount.join("first"), "x").expect("written");
            self.frames() > before
        });
    }

    fn frames(&self) -> u64 {
        self.redis.cli(&["-n", "1", "hlen", "_pando:f"]).trim().parse().expect("a number")
    }

    fn objects(&self) -> usize {
        sh(self.volume.temp.path(), "find s3/data -path '*/chunks/*' -type f | wc -l").trim().parse().expect("a number")
    }

    fn pando(&self, args: &[&str]) -> String {
        let output = run(Command::new(PANDO).args(args).arg(&self.url));
        assert!(output.status.success(), "{args:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn nothing_is_left(&self) {
        assert_eq!(self.redis.cli(&["-n", "1", "exists", "_pando:f", "_pando:age", "_pando:bytes", "_pando:drain"]).trim(), "0");
        self.pando(&["fsck"]);
    }
}

const FILES: usize = 40;

fn content(n: usize) -> Vec<u8> {
    Dice::new(n as u64 + 1).bytes(4096)
}

fn write_files(dir: &Path) {
    for n in 0..FILES {
        fs::write(dir.join(format!("f{n}")), content(n)).expect("written");
    }
}

#[track_caller]
fn assert_files(dir: &Path) {
    for n in 0..FILES {
        assert!(fs::read(dir.join(format!("f{n}"))).expect("there") == content(n), "f{n}");
    }
}

#[test]
fn small_writes_do_not_wait_for_the_bucket() {
    let world = World::new();
    let (one, two) = (world.journaling("one"), world.mount("two", &[]));
    // Somebody has come: until it is known who it is nothing is taken.
    world.wait_for_journal(&one);
    // A put takes 0.4 s, one after the other those of all files 16 s.
    world.to_bucket.delay(Duration::from_millis(200));
    let (before, begin) = (world.to_redis.exchanges(), Instant::now());
    write_files(&one.path);
    let (took, exchanges) = (begin.elapsed(), world.to_redis.exchanges() - before);
    assert!(took < Duration::from_secs(4), "{took:?}");
    // The kernel asks for the directory's attributes and the name, then come the creation and the commit with the data; and what the jobs of
    // two mounts ask in that time.
    assert!(exchanges <= 4 * FILES as u64 + 30, "{exchanges} exchanges");
    assert!(world.frames() > 0);
    let status: serde_json::Value = serde_json::from_str(&world.pando(&["status"])).expect("a document");
    assert!(status["Journal"]["Bytes"].as_u64() > Some(0) && status["Journal"]["OldestSeconds"].is_number(), "{status}");
    assert_files(&two.path);
    let begin = Instant::now();
    eventually("all are objects", || world.frames() == 0);
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    world.to_bucket.delay(Duration::ZERO);
    assert!(world.objects() >= FILES, "{}", world.objects());
    assert_files(&two.path);
    // Overwritten many times: one object at most for each second. On a machine that is too busy to drain in time the journal takes nothing for
    // a while, and each is an object; it is not so all the time.
    let overwritten = || {
        let (objects, begin) = (world.objects(), Instant::now());
        for n in 0..100 {
            fs::write(one.join("log"), content(n)).expect("written");
        }
        let seconds = begin.elapsed().as_secs() as usize;
        eventually("the last is an object", || world.frames() == 0);
        let made = world.objects() - objects;
        println!("{made} objects in {seconds} s");
        made < 20 + 2 * seconds
    };
    assert!((0..3).any(|_| overwritten()));
    one.unmount();
    assert_eq!(world.frames(), 0, "an end leaves nothing behind");
    assert!(fs::read(two.join("log")).expect("there") == content(99));
    two.unmount();
    world.nothing_is_left();
}

#[test]
fn what_a_killed_mount_has_left_is_read_and_drained_by_others() {
    let world = World::new();
    let one = world.journaling("one");
    world.to_bucket.hold_requests(true);
    write_files(&one.path);
    let log = fs::OpenOptions::new().append(true).create(true).open(one.join("log")).expect("opened");
    for n in 0..5 {
        std::io::Write::write_all(&mut &log, &content(n)).expect("written");
        log.sync_all().expect("synced");
    }
    drop(log);
    assert!(world.frames() >= FILES as u64);
    one.kill();
    // What hung in the proxy arrives late, or never.
    world.to_bucket.cut();
    world.to_bucket.hold_requests(false);
    let two = world.mount("two", &[]);
    assert_files(&two.path);
    assert!(fs::read(two.join("log")).expect("there") == (0..5).flat_map(content).collect::<Vec<_>>());
    eventually("all are objects", || world.frames() == 0);
    assert_files(&two.path);
    two.unmount();
    world.nothing_is_left();
}

#[test]
fn a_client_of_another_make_finds_objects_only() {
    let world = World::new();
    let mount = world.journaling("one");
    let cli = |args: &[&str]| world.redis.cli(&[&["-n", "1"], args].concat());
    // As it begins its session.
    let sid = cli(&["incr", "nextsession"]).trim().to_owned();
    cli(&["zadd", "allSessions", "99999999999", &sid]);
    cli(&["hset", "sessionInfos", &sid, r#"{"Version":"1.4.1+2026-01-01.abcdef","HostName":"other"}"#]);
    write_files(&mount.path);
    eventually("all are objects", || world.frames() == 0);
    let objects = world.objects();
    assert!(objects >= FILES, "{objects}");
    fs::write(mount.join("more"), "x").expect("written");
    assert_eq!((world.frames(), world.objects()), (0, objects + 1), "it is an object when close returns");
    // It leaves.
    cli(&["zrem", "allSessions", &sid]);
    cli(&["hdel", "sessionInfos", &sid]);
    world.wait_for_journal(&mount);
    mount.unmount();
    world.nothing_is_left();
}

#[test]
fn a_server_that_is_out_of_memory_gets_no_frames() {
    let world = World::new();
    let mount = world.journaling("one");
    let used = || -> u64 {
        let info = world.redis.cli(&["info", "memory"]);
        info.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("told").trim().parse().expect("a number")
    };
    world.to_bucket.delay(Duration::from_millis(20));
    let big = |n: usize| Dice::new(n as u64 + 1).bytes(60_000);
    // Room for a few; the mount has not looked at the memory since.
    world.redis.cli(&["config", "set", "maxmemory", &(used() + 400_000).to_string()]);
    for n in 0..30 {
        fs::write(mount.join(format!("big{n}")), big(n)).expect("goes on by way of the bucket");
    }
    for n in 0..30 {
        assert!(fs::read(mount.join(format!("big{n}"))).expect("there") == big(n), "{n}");
    }
    world.redis.cli(&["config", "set", "maxmemory", "0"]);
    mount.unmount();
    world.nothing_is_left();
}

#[test]
fn drained_by_hand_and_switched_off() {
    let world = World::new();
    let mount = world.journaling("one");
    world.to_bucket.delay(Duration::from_millis(100));
    write_files(&mount.path);
    let said = world.pando(&["journal", "drain"]);
    assert!(said.contains("small blocks are objects now"), "{said}");
    assert_eq!(world.frames(), 0);
    assert!(world.objects() >= FILES);
    world.to_bucket.delay(Duration::ZERO);
    mount.unmount();
    let mount = world.mount("one", &["--no-journal"]);
    for n in 0..20 {
        fs::write(mount.join("plain"), content(n)).expect("written");
        assert_eq!(world.frames(), 0);
    }
    // A dump is complete without them.
    let other = world.journaling("two");
    world.to_bucket.delay(Duration::from_millis(100));
    write_files(&other.path);
    let dump = world.volume.temp.path().join("dump");
    let output = run(Command::new(PANDO).args(["dump", &world.url]).arg(&dump));
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(world.frames(), 0);
    world.to_bucket.delay(Duration::ZERO);
    other.unmount();
    mount.unmount();
    world.nothing_is_left();
}
