//! The embedded store on a disk: several openings, several processes, kills, damage, speed.

use super::*;
use crate::meta::codec::{self, MTIME_AT, NLINK_AT};
use crate::meta::key;
use crate::meta::store::{BytesRange, Key, conformance};
use crate::types::{Attr, Flags, Ino, Kind, Time};
use bytes::Bytes;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Small enough that a short test starts the log over many times.
const TINY: Limits = Limits { copy_pages: 50, pages_max: 200 };
/// Tells a re-executed test binary what to do and where.
const CHILD_ENV: &str = "PANDO_TEST_STORE_CHILD";

fn now<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn count(store: &EmbeddedStore) -> i64 {
    match now(store.read(&[Query::Get("n".into())])).unwrap().remove(0) {
        Value::Bytes(text) => codec::decode_decimal(text.as_deref()).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// One commit that keeps a counter, a hash and a list in step, and is guarded by what the counter was.
async fn step(store: &EmbeddedStore) -> i64 {
    let n = Query::Get("n".into());
    let mut found = store.read(std::slice::from_ref(&n)).await.unwrap().remove(0);
    loop {
        let Value::Bytes(old) = found else { panic!("{found:?}") };
        let new = codec::decode_decimal(old.as_deref()).unwrap() + 1;
        let writes = [
            Write::Set("n".into(), key::decimal(new)),
            Write::HSet("h".into(), key::decimal(new), vec![7; 300].into()),
            Write::RPush("l".into(), vec![key::decimal(new)]),
            Write::PutFrame(new as u64, vec![9; 3000].into()),
        ];
        match store.commit(&[Guard::Value("n".into(), old)], &writes, &[]).await.unwrap() {
            Commit::Done { .. } => return new,
            Commit::Conflict(mut values) => found = values.remove(0).1,
        }
    }
}

/// What `step` keeps in step, is.
fn check(store: &EmbeddedStore) -> i64 {
    let n = count(store);
    let queries = [Query::HLen { key: "h".into(), limit: u32::MAX }, Query::List("l".into())];
    let values = now(store.read(&queries)).unwrap();
    assert_eq!(values[0], Value::Int(n));
    assert_eq!(values[1], Value::List((1..=n).map(key::decimal).collect()));
    let verdict: String = store.with_writer(|conn| Ok(conn.query_row("PRAGMA integrity_check", [], |row| row.get(0))?)).unwrap();
    assert_eq!(verdict, "ok");
    n
}

fn spawn_child(role: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "meta::store::embedded::tests::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD_ENV, role)
        .env("PANDO_TEST_STORE_DIR", dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "the other process of the tests below"]
fn child() {
    let Ok(role) = std::env::var(CHILD_ENV) else { return };
    let dir = std::path::PathBuf::from(std::env::var("PANDO_TEST_STORE_DIR").unwrap());
    let store = EmbeddedStore::open_with(&dir, TINY).unwrap();
    assert_eq!(store.claim_session(5), Ok(true));
    println!("\nready");
    let steps = if role == "finite" { 300 } else { u32::MAX };
    for _ in 0..steps {
        println!("done {}", now(step(&store)));
    }
}

/// The numbers a child has been acknowledged, as they come.
fn acknowledged(child: &mut Child) -> impl Iterator<Item = i64> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.map_while(Result::ok).filter_map(|line| match line.split_once("done ") {
        Some((_, n)) => n.parse().ok(),
        None => (line == "ready").then_some(0),
    })
}

#[test]
fn conforms_in_memory() {
    now(conformance::run(&EmbeddedStore::open_in_memory().unwrap()));
}

#[test]
fn conforms_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    now(conformance::run(&EmbeddedStore::open(dir.path()).unwrap()));
    now(conformance::run(&EmbeddedStore::open(dir.path()).unwrap()));
}

#[test]
fn two_openings_in_one_process_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!EmbeddedStore::exists(dir.path()));
    let a = EmbeddedStore::open_with(dir.path(), TINY).unwrap();
    assert!(EmbeddedStore::exists(dir.path()) && !a.shared());
    {
        let b = EmbeddedStore::open_with(dir.path(), TINY).unwrap();
        assert!(a.shared() && b.shared());
        std::thread::scope(|scope| {
            for store in [&a, &a, &b, &b] {
                scope.spawn(move || {
                    for n in 0..100 {
                        now(async {
                            step(store).await;
                            if n % 20 == 0 {
                                store.sync().await.unwrap();
                            }
                        });
                    }
                });
            }
        });
        assert_eq!((check(&a), check(&b)), (400, 400));
        assert_eq!((a.claim_session(9), b.claim_session(9)), (Ok(true), Ok(false)));
    }
    assert!(!a.shared());
    now(step(&a));
    drop(a);
    assert!(!dir.path().join(DATABASE_LOG).exists(), "the last one leaves one file");
    assert_eq!(check(&EmbeddedStore::open(dir.path()).unwrap()), 401);
}

#[test]
fn two_processes_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open_with(dir.path(), TINY).unwrap();
    assert_eq!(store.session_alive(5), Some(false));
    let mut child = spawn_child("finite", dir.path());
    let mut numbers = acknowledged(&mut child);
    assert_eq!(numbers.next(), Some(0));
    assert!(store.shared());
    assert_eq!((store.session_alive(5), store.claim_session(5)), (Some(true), Ok(false)));
    for _ in 0..300 {
        now(step(&store));
    }
    // Reading its output to the end, so that it is never held up by a full pipe.
    assert_eq!(numbers.count(), 300);
    assert!(child.wait().unwrap().success());
    assert_eq!((store.shared(), store.session_alive(5)), (false, Some(false)));
    assert_eq!(check(&store), 600, "no update is lost");
}

#[test]
fn a_kill_in_the_middle_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..5 {
        // Every other round somebody else has it open and sees the other one die.
        let witness = (round % 2 == 1).then(|| EmbeddedStore::open_with(dir.path(), TINY).unwrap());
        let mut child = spawn_child("endless", dir.path());
        let mut numbers = acknowledged(&mut child);
        let enough = numbers.by_ref().take(100 + round * 37).last().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let last = numbers.last().unwrap_or(enough);
        let store = EmbeddedStore::open_with(dir.path(), TINY).unwrap();
        let found = check(&store);
        assert!((last..=last + 1).contains(&found), "acknowledged {last}, found {found}");
        assert_eq!(store.session_alive(5), Some(false));
        if let Some(witness) = witness {
            assert_eq!(check(&witness), found);
            assert_eq!(now(step(&witness)), found + 1);
        }
    }
}

#[test]
fn what_was_synced_is_in_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open_with(dir.path(), TINY).unwrap();
    for _ in 0..50 {
        now(step(&store));
    }
    now(store.sync()).unwrap();
    // By another process: closing a descriptor of the database here would drop our locks on it.
    let files = [dir.path().join(DATABASE), dir.path().join(DATABASE_LOG)];
    assert!(Command::new("cp").args(&files).arg(copy.path()).status().unwrap().success());
    assert_eq!(check(&EmbeddedStore::open(copy.path()).unwrap()), 50);
}

#[test]
fn the_log_stays_bounded_under_steady_load() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open_with(dir.path(), TINY).unwrap();
    let mut longest = 0;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..500).for_each(|_| assert!(now(step(&store)) > 0)));
        }
        while count(&store) < 1000 {
            longest = longest.max(fs::metadata(dir.path().join(DATABASE_LOG)).unwrap().len());
            std::thread::yield_now();
        }
    });
    let written = fs::metadata(dir.path().join(DATABASE)).unwrap().len();
    // Twice the bound, and what the commits under way add.
    assert!(longest < 2 << 20, "{longest} bytes of log for {written} bytes of database");
    assert_eq!(check(&store), 1000);
}

#[test]
fn what_is_not_ours_is_refused_and_left_alone() {
    type Make = fn(&Path);
    let table: [(&str, Make); 4] = [
        ("no database", |path| fs::write(path, vec![b'x'; 8192]).unwrap()),
        ("of another program", |path| Connection::open(path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap()),
        ("of another program", |path| Connection::open(path).unwrap().execute_batch("PRAGMA application_id = 77").unwrap()),
        ("cut short", |path| {
            let dir = tempfile::tempdir().unwrap();
            let store = EmbeddedStore::open(dir.path()).unwrap();
            (0..20).for_each(|_| assert!(now(step(&store)) > 0));
            drop(store);
            let bytes = fs::read(dir.path().join(DATABASE)).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }),
    ];
    for (what, make) in table {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DATABASE);
        make(&path);
        let before = fs::read(&path).unwrap();
        let refused = EmbeddedStore::open(dir.path()).map(drop);
        assert!(matches!(refused, Err(StoreError::Damaged(_))), "{what}: {refused:?}");
        assert_eq!(fs::read(&path).unwrap(), before, "{what}");
    }
    let dir = tempfile::tempdir().unwrap();
    drop(EmbeddedStore::open(dir.path()).unwrap());
    Connection::open(dir.path().join(DATABASE)).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
    assert!(matches!(EmbeddedStore::open(dir.path()), Err(StoreError::Failed(why)) if why.contains("version 99")));
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(EmbeddedStore::open(&file), Err(StoreError::Failed(_))), "not a directory");
    // The filesystem of /proc is read-only for everybody.
    assert!(EmbeddedStore::open(Path::new("/proc/pando")).is_err());
}

#[test]
fn foreign_values_are_damage_not_a_panic() {
    let store = EmbeddedStore::open_in_memory().unwrap();
    let spoil = "INSERT INTO string VALUES (x'6B', 5); INSERT INTO hash VALUES (x'6B', x'66', 'text'); INSERT INTO list VALUES (x'6B', 9223372036854775807, x'00');
                 INSERT INTO score VALUES (x'6B', x'6D', 1.5); INSERT INTO member VALUES (x'6B', 3); INSERT INTO frame VALUES (1, 2.5)";
    store.with_writer(|conn| Ok(conn.execute_batch(spoil)?)).unwrap();
    let k = || Key::from("k");
    for query in [Query::Get(k()), Query::HGetAll(k()), Query::HGet(k(), "f".into()), Query::SMembers(k()), Query::ZScore(k(), "m".into())]
    {
        assert!(matches!(now(store.read(std::slice::from_ref(&query))), Err(StoreError::Damaged(_))), "{query:?}");
    }
    for write in [Write::IncrBy(k(), 1), Write::HIncrBy(k(), "f".into(), 1), Write::RPush(k(), vec!["x".into(), "y".into()])] {
        assert!(matches!(now(store.commit(&[], std::slice::from_ref(&write), &[])), Err(StoreError::Damaged(_))), "{write:?}");
    }
    assert!(matches!(now(store.frame(1)), Err(StoreError::Damaged(_))));
    assert!(matches!(now(store.scan(&ScanRange::Hash(k()), Cursor::new(), 9)), Err(StoreError::Damaged(_))));
}

#[test]
fn a_full_disk_is_full_and_a_lost_log_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path()).unwrap();
    now(step(&store));
    store
        .with_writer(|conn| {
            let pages: i64 = conn.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            Ok(conn.query_row(&format!("PRAGMA max_page_count = {}", pages + 4), [], |_| Ok(()))?)
        })
        .unwrap();
    let big = [Write::Set("n".into(), "99".into()), Write::PutFrame(8, vec![0; 60_000].into())];
    assert!(matches!(now(store.commit(&[], &big, &[])), Err(StoreError::Full(_))));
    assert_eq!(check(&store), 1);
    now(store.commit(&[], &[Write::Set("small".into(), "1".into())], &[])).expect("the store goes on");
    now(store.sync()).unwrap();
    fs::remove_file(dir.path().join(DATABASE_LOG)).unwrap();
    assert!(matches!(now(store.sync()), Err(StoreError::Failed(_))), "never durable in a file without a name");
}

/// Processor time of this thread, which a busy machine does not change.
fn cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is ours.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A create as an operation plans it: two guards, ten writes.
fn create_plan(dir: Ino, ino: u64, time: Time) -> ([Guard; 2], [Write; 10]) {
    let name: Bytes = format!("file-{ino}.txt").into();
    let attr = Attr {
        flags: Flags(0),
        kind: Kind::File,
        mode: 0o644,
        uid: 1000,
        gid: 1000,
        atime: time,
        mtime: time,
        ctime: time,
        nlink: 1,
        length: 0,
        rdev: 0,
        parent: dir,
        access_acl: 0,
        default_acl: 0,
        tier: 0,
    };
    let parent = codec::encode_attr(&Attr { kind: Kind::Dir, parent: Ino(1), ..attr.clone() });
    let field = || key::decimal(dir);
    let ranges = vec![
        (BytesRange { from: 0, to: Some(codec::OWNER_END) }, parent.slice(..codec::OWNER_END as usize)),
        (BytesRange { from: codec::PARENT_AT, to: None }, parent.slice(codec::PARENT_AT as usize..)),
    ];
    let guards = [Guard::Field(key::dir(dir), name.clone(), None), Guard::Bytes(key::inode(dir), ranges)];
    let writes = [
        Write::HSet(key::dir(dir), name, codec::encode_entry(Kind::File, Ino(ino))),
        Write::Set(key::inode(Ino(ino)), codec::encode_attr(&attr)),
        Write::Patch { key: key::inode(dir), offset: MTIME_AT, bytes: codec::encode_touch(time) },
        Write::AddU32 { key: key::inode(dir), offset: NLINK_AT, delta: 0 },
        Write::SAdd(key::sustained(1), key::decimal(ino % 100)),
        Write::IncrBy(key::USED_SPACE, 4096),
        Write::IncrBy(key::TOTAL_INODES, 1),
        Write::HIncrIfPresent(key::DIR_DATA_LENGTH, field(), 0),
        Write::HIncrIfPresent(key::DIR_USED_SPACE, field(), 4096),
        Write::HIncrIfPresent(key::DIR_USED_INODES, field(), 1),
    ];
    (guards, writes)
}

#[test]
#[ignore = "measures; run in release mode"]
fn speed() {
    const CREATES: u64 = 100_000;
    let dir = tempfile::tempdir_in(std::env::var("PANDO_TEST_DIR").unwrap_or_else(|_| "/tmp".into())).unwrap();
    let store = EmbeddedStore::open(dir.path()).unwrap();
    now(async {
        let parents: Vec<Ino> = (2..12).map(Ino).collect();
        for dir in &parents {
            let (guards, _) = create_plan(*dir, 0, Time::default());
            let Guard::Bytes(_, ranges) = &guards[1] else { unreachable!() };
            let mut record = vec![0; 72];
            record[..11].copy_from_slice(&ranges[0].1);
            record[63..].copy_from_slice(&ranges[1].1);
            let field = key::decimal(dir);
            let stats = [key::DIR_DATA_LENGTH, key::DIR_USED_SPACE, key::DIR_USED_INODES];
            let writes: Vec<Write> = std::iter::once(Write::Set(key::inode(*dir), record.into()))
                .chain(stats.into_iter().map(|stat| Write::HSet(stat, field.clone(), "0".into())))
                .collect();
            store.commit(&[], &writes, &[]).await.unwrap();
        }
        for round in 0..3 {
            let mut slowest = Duration::ZERO;
            let (begin, busy) = (Instant::now(), cpu());
            for n in 0..CREATES {
                let ino = 1000 + round * CREATES + n;
                let (guards, writes) = create_plan(parents[(n / 1000 % 10) as usize], ino, Time { sec: n as i64, nsec: 0 });
                let start = Instant::now();
                let commit = store.commit(&guards, &writes, &[]).await.unwrap();
                slowest = slowest.max(start.elapsed());
                assert!(matches!(commit, Commit::Done { .. }), "{commit:?}");
            }
            let rate = CREATES as f64 / begin.elapsed().as_secs_f64();
            let log = fs::metadata(dir.path().join(DATABASE_LOG)).unwrap().len() >> 20;
            let each = (cpu() - busy) / CREATES as u32;
            println!("create: {rate:.0}/s, {each:?} of processor time each, slowest {slowest:?}, log {log} MiB");
        }
        for (what, warm) in [("lookup", true), ("lookup beside a writer", false)] {
            let begin = Instant::now();
            let held = (!warm).then(|| lock(&store.writer));
            for n in 0..CREATES {
                let query =
                    Query::Entry { dir: key::dir(parents[(n / 1000 % 10) as usize]), name: format!("file-{}.txt", 1000 + n).into() };
                assert!(matches!(&store.read(&[query]).await.unwrap()[..], [Value::Entry(Some((_, Some(_))))]));
            }
            drop(held);
            println!("{what}: {:.0}/s", CREATES as f64 / begin.elapsed().as_secs_f64());
        }
        let begin = Instant::now();
        let (mut cursor, mut seen) = (Cursor::new(), 0);
        loop {
            let page = store.scan(&ScanRange::Dir(key::dir(parents[0])), cursor, 1000).await.unwrap();
            seen += page.items.len();
            let Some(next) = page.next else { break };
            cursor = next;
        }
        println!("scan: {:.0} entries/s", seen as f64 / begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        for _ in 0..100 {
            step(&store).await;
            store.sync().await.unwrap();
        }
        println!("commit + sync: {:?} each", begin.elapsed() / 100);
        let begin = Instant::now();
        (0..100_000).for_each(|_| assert!(!store.shared()));
        println!("shared(): {:?} each", begin.elapsed() / 100_000);
    });
}
