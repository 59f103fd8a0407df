//! Several hosts on one volume, and what goes wrong between them and the server: cut connections, failovers, hosts that stood still.

use crate::locks::{lock, unlock};
use crate::proxy::Proxy;
use crate::servers::{RedisServer, wait_until};
use crate::support::{Mount, PANDO, Volume, eventually, finish, run, size, text, worker, worker_arg};
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

/// Makes a volume there with its objects in a directory beside `volume`.
fn format(url: &str, volume: &Volume) {
    let output = run(Command::new(PANDO)
        .args(["format", "--storage", "file", "--trash-days", "0", "--bucket"])
        .arg(volume.temp.path().join("objects"))
        .args([url, "vol"]));
    assert!(output.status.success(), "{}", text(&output));
}

fn mount(volume: &Volume, url: &str, name: &str, args: &[&str]) -> Mount {
    Mount::start(Path::new(url), &volume.temp.path().join(name), args)
}

fn through(url: &str, server: &RedisServer, proxy: &Proxy) -> String {
    url.replace(&server.port.to_string(), &proxy.port.to_string())
}

fn assert_clean(url: &str) {
    let output = run(Command::new(PANDO).args(["fsck", url]));
    assert!(output.status.success(), "fsck: {}", text(&output));
}

/// Changes that each host makes where the other does not look.
const ELSEWHERE: usize = 100;

/// What only one host uses is no news for the other, whatever both read and write beside it: counters, small blocks, statistics.
#[test]
fn a_host_is_told_of_nothing_it_does_not_use() {
    let (server, volume) = (RedisServer::with(&[]), Volume::new());
    let url = server.url(1);
    format(&url, &volume);
    let proxy = Proxy::start(server.address());
    let one = mount(&volume, &url, "one", &[]);
    let two = mount(&volume, &through(&url, &server, &proxy), "two", &["--heartbeat", "600"]);
    for dir in [one.join("a"), two.join("b"), two.join("told")] {
        fs::create_dir(dir).expect("made");
    }
    let work = |dir: &Path, n: usize| {
        let (path, other) = (dir.join(format!("f{n}")), dir.join(format!("g{n}")));
        fs::write(&path, vec![n as u8; 3000]).expect("written");
        fs::rename(&path, &other).expect("renamed");
        fs::metadata(&other).expect("there");
        assert_eq!(fs::read(&other).expect("read").len(), 3000);
        fs::create_dir(&path).expect("made");
        fs::remove_dir(&path).expect("removed");
        if n.is_multiple_of(2) {
            fs::remove_file(&other).expect("removed");
        }
        run(Command::new("stat").arg("-f").arg(dir));
    };
    let before = proxy.told();
    for n in 0..ELSEWHERE {
        work(&two.join("b"), n);
        work(&one.join("a"), n);
    }
    let told = proxy.told() - before;
    // The setting and the like may change now and then; a counter would be told of after each change.
    assert!(told < ELSEWHERE as u64 / 10, "told of {told} keys while the other made {ELSEWHERE} rounds of changes");
    // The test can see what is told.
    fs::metadata(two.join("told")).expect("there");
    fs::write(one.join("told/f"), "x").expect("written");
    eventually("it is told of what it uses", || proxy.told() > before + told);
    one.unmount();
    two.unmount();
    assert_clean(&url);
}

/// Takes clients off again and again: what was asked arrives late, what was done is not answered, nothing special, in turn.
struct Breaking {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<usize>,
}

impl Breaking {
    fn start(proxy: Arc<Proxy>) -> Breaking {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut cuts = 0;
            while !stopped.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(60));
                match cuts % 3 {
                    0 => proxy.hold_requests(true),
                    1 => proxy.hold_replies(true),
                    _ => {}
                }
                std::thread::sleep(Duration::from_millis(3));
                proxy.cut();
                // The next connection is made meanwhile.
                std::thread::sleep(Duration::from_millis(cuts as u64 % 4 * 5));
                proxy.hold_requests(false);
                proxy.hold_replies(false);
                cuts += 1;
            }
            cuts
        });
        Breaking { stop, thread }
    }

    fn end(self) -> usize {
        self.stop.store(true, SeqCst);
        self.thread.join().expect("no panic")
    }
}

/// Processes that change things at once, and changes of one round.
const CHANGERS: usize = 8;
const CHANGES: usize = 8;

/// Any change that happened twice, or was reported wrongly, fails here or leaves something else behind.
fn change_once(dir: &Path, rounds: usize) {
    fs::create_dir(dir).expect("made");
    let mut log = OpenOptions::new().append(true).create_new(true).open(dir.join("log")).expect("created");
    for n in 0..rounds {
        let [made, file, link, new] = ["d", "f", "l", "n"].map(|kind| dir.join(format!("{kind}{n}")));
        fs::create_dir(&made).expect("made");
        let mut created = File::create_new(&file).expect("created");
        created.write_all(format!("{n}").as_bytes()).expect("written");
        created.sync_all().expect("synced");
        fs::hard_link(&file, &link).expect("linked");
        assert_eq!(created.metadata().expect("attributes").nlink(), 2);
        fs::rename(&link, &new).expect("renamed");
        fs::remove_file(&file).expect("removed");
        assert_eq!(created.metadata().expect("attributes").nlink(), 1);
        log.write_all(format!("{n}\n").as_bytes()).expect("appended");
        log.sync_all().expect("synced");
        fs::remove_dir(&made).expect("removed");
    }
}

#[test]
fn changes_cut_in_the_middle_happen_once_and_are_told_truly() {
    let (server, volume) = (RedisServer::start(), Volume::new());
    let url = server.url(1);
    format(&url, &volume);
    let proxy = Arc::new(Proxy::start(server.address()));
    let quick = format!("{}?min-retry-backoff=2ms&max-retry-backoff=50ms", through(&url, &server, &proxy));
    let one = mount(&volume, &quick, "mnt", &[]);
    let breaking = Breaking::start(proxy.clone());
    let rounds = size(1000, 10_000).div_ceil(CHANGERS * CHANGES);
    std::thread::scope(|scope| {
        for at in 0..CHANGERS {
            let dir = one.join(format!("w{at}"));
            scope.spawn(move || change_once(&dir, rounds));
        }
    });
    let cuts = breaking.end();
    println!("{} changes, the connection was cut {cuts} times", rounds * CHANGERS * CHANGES);
    assert!(cuts > 5, "the connection was cut {cuts} times only");
    one.unmount();
    // Everything is there once, also for the counters.
    let one = mount(&volume, &url, "mnt", &[]);
    let (mut inodes, mut bytes) = (BTreeSet::new(), 0);
    for at in 0..CHANGERS {
        let dir = one.join(format!("w{at}"));
        let names: BTreeSet<String> =
            fs::read_dir(&dir).expect("listed").map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
        let wanted: BTreeSet<String> = (0..rounds).map(|n| format!("n{n}")).chain(["log".to_string()]).collect();
        assert_eq!(names, wanted);
        let log: String = (0..rounds).map(|n| format!("{n}\n")).collect();
        assert_eq!(fs::read_to_string(dir.join("log")).expect("read"), log);
        for path in names.iter().map(|name| dir.join(name)).chain([dir.clone()]) {
            let found = path.metadata().expect("attributes");
            assert_eq!(found.nlink(), if found.is_dir() { 2 } else { 1 }, "{path:?}");
            inodes.insert(found.ino());
            bytes += found.size().div_ceil(4096).max(1) * 4096;
        }
        for n in 0..rounds {
            assert_eq!(fs::read_to_string(dir.join(format!("n{n}"))).expect("read"), n.to_string());
        }
    }
    one.unmount();
    let counter = |name: &str| server.cli(&["-n", "1", "get", name]).trim().parse::<u64>().expect("a number");
    assert_eq!((counter("totalInodes"), counter("usedSpace")), (inodes.len() as u64, bytes));
    assert_clean(&url);
}

/// What is acknowledged in this time the replica has not seen.
const LAG: Duration = Duration::from_secs(2);
/// Of a file: more than is kept beside the metadata.
const FILE_BYTES: usize = 100_000;

/// A file says which one it is, and of which generation.
fn content(name: &str, generation: usize) -> Vec<u8> {
    format!("{name} {generation}\n").into_bytes().repeat(FILE_BYTES)[..FILE_BYTES].to_vec()
}

fn objects(volume: &Volume) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![volume.temp.path().join("objects/vol/chunks")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("listed") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                // One that is being deleted may be gone by now.
                found.extend(fs::read(&path).ok().map(|bytes| (path, bytes)));
            }
        }
    }
    found
}

#[test]
fn a_failover_to_a_replica_that_was_behind_is_noticed_and_overwrites_nothing() {
    let (mut master, volume) = (RedisServer::start(), Volume::new());
    let to_replica = Proxy::start(master.address());
    let replica = RedisServer::with(&["--appendonly", "yes", "--replicaof", &format!("127.0.0.1 {}", to_replica.port)]);
    wait_until("the replica follows", || replica.cli(&["info", "replication"]).contains("master_link_status:up"));
    let sentinel = RedisServer::patient_sentinel(master.port, Duration::from_secs(120));
    wait_until("the sentinel knows the replica", || sentinel.cli(&["sentinel", "replicas", "m"]).contains(&replica.port.to_string()));
    let url = format!("redis://m,127.0.0.1:{}/1?min-retry-backoff=5ms&max-retry-backoff=100ms", sentinel.port);
    format(&url, &volume);
    let log = |name: &str| volume.temp.path().join(format!("log-{name}"));
    let mounts = ["one", "two"].map(|name| {
        let file = File::create(log(name)).expect("created");
        Mount::start_logging(Path::new(&url), &volume.temp.path().join(name), &["--heartbeat", "1", "--no-color"], Stdio::from(file))
    });
    let write = |mount: &Mount, name: &str, generation: usize| -> std::io::Result<()> {
        let mut file = File::create(mount.join(name))?;
        file.write_all(&content(name, generation))?;
        file.sync_all()
    };
    for n in 0..20 {
        write(&mounts[n % 2], &format!("before{n}"), 0).expect("written");
    }
    let used = |server: &RedisServer| server.cli(&["-n", "1", "get", "usedSpace"]);
    wait_until("the replica has everything", || used(&master) == used(&replica));
    to_replica.hold_replies(true);
    let begin = std::time::Instant::now();
    let mut during = 0;
    while begin.elapsed() < LAG {
        write(&mounts[during % 2], &format!("during{during}"), 0).expect("written");
        write(&mounts[during % 2], &format!("before{}", during % 20), 1).expect("written");
        during += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    let stored = objects(&volume);
    master.kill();
    // What is under way then may fail: its inode may be one of those that were lost.
    std::thread::scope(|scope| {
        for (at, mount) in mounts.iter().enumerate() {
            scope.spawn(move || {
                for n in 0..10 {
                    let _ = write(mount, &format!("failover{at}-{n}"), 0);
                }
            });
        }
    });
    assert!(replica.cli(&["role"]).contains("master"));
    for n in 0..40 {
        write(&mounts[n % 2], &format!("after{n}"), 0).expect("written");
    }
    let lines = |name: &str| {
        let text = fs::read_to_string(log(name)).expect("read");
        text.lines().filter(|line| line.contains("has lost acknowledged changes")).count()
    };
    eventually("both have noticed", || lines("one") > 0 && lines("two") > 0);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!((lines("one"), lines("two")), (1, 1), "in one line");
    for mount in mounts {
        mount.unmount();
    }
    let now = objects(&volume);
    let changed: Vec<_> =
        stored.iter().filter(|(path, bytes)| now.get(*path).is_some_and(|now| now != *bytes)).map(|(path, _)| path).collect();
    assert_eq!(changed, Vec::<&PathBuf>::new(), "objects were overwritten");
    let one = mount(&volume, &url, "one", &[]);
    let mut counts = BTreeMap::new();
    for entry in fs::read_dir(&one.path).expect("listed") {
        let name = entry.expect("an entry").file_name().into_string().expect("text");
        let bytes = fs::read(one.join(&name)).expect("read");
        // Nobody had synced what was under way when the server went.
        let is_whole =
            [0, 1].iter().any(|generation| bytes == content(&name, *generation)) || (name.starts_with("failover") && bytes.is_empty());
        assert!(is_whole, "{name}: {} bytes, {:?}", bytes.len(), String::from_utf8_lossy(&bytes[..bytes.len().min(30)]));
        *counts.entry(name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned()).or_insert(0) += 1;
    }
    assert_eq!((counts["before"], counts["after"]), (20, 40), "{counts:?}");
    println!("of {during} files written to the master alone {} are left: {counts:?}", counts.get("during").copied().unwrap_or(0));
    assert!(counts.get("during").copied().unwrap_or(0) < during, "the replica was not behind");
    one.unmount();
    assert_clean(&url);
}

/// In a worker: writes under a lock, waits, and tells what becomes of what it goes on to write.
pub fn lost_lock_worker() {
    let (path, said, go) = (worker_arg(0), worker_arg(1), worker_arg(2));
    let mut file = OpenOptions::new().read(true).write(true).open(&path).expect("opened");
    lock(&file, "flock", true).expect("granted");
    file.seek(SeekFrom::End(0)).expect("the end");
    file.write_all(b"written by the one that stood still\n").expect("written");
    fs::write(said, "held").expect("written");
    wait_for(&go);
    let errno = |result: std::io::Result<()>| result.err().and_then(|error| error.raw_os_error()).unwrap_or(0);
    let synced = errno(file.sync_all());
    let written = errno(file.write_all(b"and written again\n"));
    let again = errno(file.sync_all());
    println!("errno: {synced} {written} {again} {:?}", lock(&file, "flock", false));
    // Whoever begins anew may go on.
    drop(file);
    let mut anew = None;
    eventually("the kernel has given the old handle back", || {
        let file = OpenOptions::new().read(true).append(true).open(&path).expect("opened");
        let granted = lock(&file, "flock", true).is_ok();
        anew = granted.then_some(file);
        granted
    });
    let mut file = anew.expect("granted");
    file.write_all(b"record anew\n").expect("written");
    unlock(&file, "flock").expect("released");
}

/// In a worker: a transaction of SQLite that is committed only after its locks are lost.
pub fn lost_transaction_worker() {
    let (path, said, go) = (worker_arg(0), worker_arg(1), worker_arg(2));
    let db = Connection::open(&path).expect("opened");
    db.execute_batch("pragma synchronous = full; begin immediate; insert into t values ('still', 0)").expect("inserted");
    fs::write(said, "held").expect("written");
    wait_for(&go);
    println!("commit: {}", db.execute_batch("commit").err().map_or_else(|| "done".into(), |error| error.to_string()));
    drop(db);
    let db = Connection::open(&path).expect("opened");
    db.busy_timeout(Duration::from_secs(60)).expect("set");
    db.execute("insert into t values ('still', 1)", []).expect("inserted anew");
}

fn wait_for(path: &str) {
    while !Path::new(path).exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(mount: &Mount, signal: i32) {
    // SAFETY: the call takes no pointers; the process is a child that was not waited for.
    assert_eq!(unsafe { libc::kill(mount.pid() as i32, signal) }, 0);
}

/// What other clients do when a session has not been prolonged for a minute.
fn end_session(server: &RedisServer, sid: &str) {
    let cli = |args: &[&str]| server.cli(&[&["-n", "1"], args].concat());
    for key in cli(&["keys", "lock[fp]*"]).lines().filter(|key| !key.is_empty()) {
        for field in cli(&["hkeys", key]).lines().filter(|field| field.starts_with(&format!("{sid}_"))) {
            cli(&["hdel", key, field]);
        }
    }
    cli(&["del", &format!("locked{sid}")]);
    cli(&["zrem", "allSessions", sid]);
    cli(&["hdel", "sessionInfos", sid]);
}

/// A process holds locks on a host that stands still for so long that others take them. In the long run the other host finds that out by itself.
#[test]
fn what_a_host_that_stood_still_writes_under_lost_locks_is_an_error() {
    let is_soak = size(0, 1) == 1;
    let (server, volume) = (RedisServer::with(&[]), Volume::new());
    let url = server.url(1);
    format(&url, &volume);
    let (still, other) = (mount(&volume, &url, "still", &[]), mount(&volume, &url, "other", &["--heartbeat", "1"]));
    let sid = server.cli(&["-n", "1", "zrange", "allSessions", "0", "-1"]);
    let sid = sid.lines().map(str::trim).min_by_key(|sid| sid.parse::<u64>().expect("a number")).expect("a session").to_owned();
    fs::write(still.join("records"), "").expect("created");
    let db = Connection::open(still.join("db")).expect("opened");
    db.execute_batch("pragma journal_mode = delete; create table t(who, n)").expect("created");
    drop(db);
    let (go, temp) = (volume.temp.path().join("go"), volume.temp.path());
    let start = |job: &str, name: &str| {
        let said = temp.join(format!("said-{name}"));
        let child = worker(job, &[still.join(name).as_os_str(), said.as_os_str(), go.as_os_str()]).spawn().expect("started");
        eventually("the worker holds its locks", || said.exists());
        child
    };
    let (records, transaction) = (start("lost-lock", "records"), start("lost-transaction", "db"));
    signal(&still, libc::SIGSTOP);
    let stopped = std::time::Instant::now();
    if !is_soak {
        end_session(&server, &sid);
    }
    // They wait until the locks are free.
    let count = size(20, 500);
    let mut file = OpenOptions::new().read(true).append(true).open(other.join("records")).expect("opened");
    lock(&file, "flock", true).expect("granted");
    for n in 0..count {
        file.write_all(format!("record {n}\n").as_bytes()).expect("written");
    }
    unlock(&file, "flock").expect("released");
    drop(file);
    let db = Connection::open(other.join("db")).expect("opened");
    db.busy_timeout(Duration::from_secs(100)).expect("set");
    for n in 0..count {
        db.execute("insert into t values ('other', ?)", [n as i64]).expect("inserted");
    }
    drop(db);
    if is_soak {
        std::thread::sleep(Duration::from_secs(90).saturating_sub(stopped.elapsed()));
    }
    signal(&still, libc::SIGCONT);
    fs::write(&go, "go").expect("written");
    let (records, transaction) = (finish(records), finish(transaction));
    let said = records.lines().find(|line| line.contains("errno: ")).expect("a report");
    assert!(said.ends_with("errno: 5 5 5 Err(5)"), "{said}");
    let said = transaction.lines().find(|line| line.contains("commit: ")).expect("a report");
    assert!(said.contains("commit: ") && !said.contains("done"), "{said}");
    println!("the stopped transaction ends with: {said}");
    let wanted: String = (0..count).map(|n| format!("record {n}\n")).chain(["record anew\n".into()]).collect();
    for side in [&still, &other] {
        assert_eq!(fs::read_to_string(side.join("records")).expect("read"), wanted);
        let db = Connection::open(side.join("db")).expect("opened");
        db.busy_timeout(Duration::from_secs(60)).expect("set");
        assert_eq!(db.query_row("pragma integrity_check", [], |row| row.get::<_, String>(0)).expect("checked"), "ok");
        let rows: Vec<(String, i64)> = db
            .prepare("select who, n from t order by who, n")
            .expect("prepared")
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .expect("selected")
            .map(|row| row.expect("a row"))
            .collect();
        let wanted: Vec<(String, i64)> = (0..count as i64).map(|n| ("other".into(), n)).chain([("still".into(), 1)]).collect();
        assert_eq!(rows, wanted);
    }
    still.unmount();
    other.unmount();
    assert_clean(&url);
}
