//! The store against real servers.

// Shared with the tests of whole mounts, which use other parts of them.
#[allow(dead_code)]
#[path = "../../../../tests/suite/proxy.rs"]
mod proxy;
#[allow(dead_code)]
#[path = "../../../../tests/suite/servers.rs"]
mod servers;

use super::url::{ProcessEnvironment, RedisUrl};
use super::{Options, RedisStore};
use crate::meta::key;
use crate::meta::store::{Commit, Cursor, Guard, Query, ScanRange, Store, StoreError, Value, Write, conformance};
use bytes::Bytes;
use proxy::Proxy;
use servers::{RedisServer, certificates, cluster, wait_until};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const MOUNTED: Options = Options { patience: None, writes: true };
const COMMAND: Options = Options { patience: Some(Duration::from_secs(2)), writes: true };

async fn open(url: &str, options: Options) -> Result<RedisStore, StoreError> {
    RedisStore::open(&RedisUrl::parse(url, &ProcessEnvironment).unwrap(), options).await
}

fn url_of(port: u16) -> String {
    format!("redis://127.0.0.1:{port}/0?min-retry-backoff=2ms&max-retry-backoff=50ms&read-timeout=2s")
}

fn b(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

async fn works(store: &RedisStore) {
    let writes = [Write::IncrBy(b("n"), 5), Write::HSet(b("h"), b("f"), b("v"))];
    let done = store.commit(&[Guard::HashEmpty(b("h"))], &writes, &[Query::HGet(b("h"), b("f"))]).await;
    assert_eq!(done, Ok(Commit::Done { replies: vec![Value::Int(5), Value::Done], values: vec![Value::Bytes(Some(b("v")))] }));
    assert_eq!(store.read(&[Query::Get(b("n"))]).await, Ok(vec![Value::Bytes(Some(b("5")))]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_passes_the_suite() {
    let server = RedisServer::start();
    conformance::run(&open(&server.url(3), MOUNTED).await.unwrap()).await;
    let left = server.cli(&["-n", "3", "keys", "*"]);
    let goes =
        |key: &str| key.starts_with("_pando:op:r") || (key == "_pando:op:3_0" && server.cli(&["-n", "3", "ttl", key]).trim() != "-1");
    assert!(left.lines().all(goes), "only what goes by itself is left: {left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_beyond_doubles_survive() {
    let server = RedisServer::start();
    let store = open(&server.url(0), MOUNTED).await.unwrap();
    // An entry of the trash, the largest counters, and text that must not pass through a number.
    let ino = crate::types::Ino(0x7FFF_FFFF_1000_0001);
    let entry = crate::meta::codec::encode_entry(crate::types::Kind::Dir, ino);
    let writes = [
        Write::HSet(key::dir(crate::types::Ino(1)), b("t"), entry.clone()),
        Write::Set(key::inode(ino), b("record")),
        Write::IncrBy(b("n"), (1 << 53) + 1),
        Write::HIncrBy(b("h"), b("f"), -(1 << 60) - 3),
    ];
    let reads = [Query::Entry { dir: key::dir(crate::types::Ino(1)), name: b("t") }];
    let done = store.commit(&[], &writes, &reads).await.unwrap();
    let replies = vec![Value::Done, Value::Done, Value::Int((1 << 53) + 1), Value::Int(-(1 << 60) - 3)];
    assert_eq!(done, Commit::Done { replies, values: vec![Value::Entry(Some((entry, Some(b("record")))))] });
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_address_works() {
    let dir = tempfile::tempdir().unwrap();
    let [ca, cert, key] = certificates(dir.path()).map(|path| path.display().to_string());
    let tls_port = servers::free_port();
    let server = RedisServer::with(&[
        "--unixsocket",
        "DIR/sock",
        "--tls-port",
        &tls_port.to_string(),
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
    ]);
    server.cli(&["acl", "setuser", "ann", "on", ">se@cret", "~*", "+@all"]);
    let socket = server.dir().join("sock").display().to_string();
    let tls = format!("tls-ca-cert-file={ca}&tls-cert-file={cert}&tls-key-file={key}");
    let urls = [
        format!("unix://{socket}?db=1"),
        format!("redis://ann:se%40cret@127.0.0.1:{}/2", server.port),
        format!("rediss://localhost:{tls_port}/4?{tls}"),
        format!("rediss://127.0.0.1:{tls_port}/5?{tls}&tls-server-name=localhost"),
        format!("rediss://127.0.0.1:{tls_port}/6?tls-cert-file={cert}&tls-key-file={key}&insecure-skip-verify=1"),
    ];
    for url in urls {
        works(&open(&url, COMMAND).await.unwrap_or_else(|e| panic!("{url}: {e}"))).await;
    }
    for (url, what) in [
        (format!("redis://ann:wrong@127.0.0.1:{}/2", server.port), "authentication failed"),
        (format!("rediss://localhost:{tls_port}/4?tls-cert-file={cert}&tls-key-file={key}"), "certificate"),
        (format!("rediss://localhost:{tls_port}/4?tls-cert-file={cert}"), "belong together"),
        (format!("redis://127.0.0.1:{}/99", server.port), "DB index"),
    ] {
        let error = open(&url, COMMAND).await.err().unwrap_or_else(|| panic!("{url} is refused")).to_string();
        assert!(error.contains(what) && !error.contains("wrong@"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_rights_are_named() {
    let server = RedisServer::start();
    for (rule, what) in [("-@scripting", "@scripting"), ("-hset", "HSET"), ("-ltrim", "LTRIM"), ("-scan", "SCAN"), ("-config", "")] {
        server.cli(&["acl", "setuser", "bob", "reset", "on", ">x", "~*", "+@all", rule]);
        let url = format!("redis://bob:x@127.0.0.1:{}/0", server.port);
        match open(&url, COMMAND).await {
            Ok(_) => assert!(what.is_empty(), "{rule}"),
            Err(error) => assert!(!what.is_empty() && error.to_string().contains(what), "{rule}: {error}"),
        }
    }
    let port = servers::free_port();
    let error = open(&url_of(port), COMMAND).await.err().unwrap().to_string();
    assert!(error.contains("cannot be reached"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_refuses_a_commit_as_a_whole() {
    let server = RedisServer::with(&["--maxmemory-policy", "noeviction"]);
    let store = open(&server.url(0), MOUNTED).await.unwrap();
    store.commit(&[], &[Write::HSet(b("d"), b("name"), b("x"))], &[]).await.unwrap();
    server.cli(&["config", "set", "maxmemory", "1"]);
    let writes = [Write::Set(b("a"), b("1")), Write::HSet(b("b"), b("f"), b("1")), Write::IncrBy(b("c"), 1)];
    assert!(matches!(store.commit(&[], &writes, &[]).await, Err(StoreError::Full(_))));
    // Removing must go on, or nobody could make room.
    let removal = [Write::HDel(b("d"), b("name")), Write::IncrBy(b("c"), -1)];
    let replies = vec![Value::Done, Value::Int(-1)];
    assert_eq!(store.commit(&[], &removal, &[]).await, Ok(Commit::Done { replies, values: vec![] }));
    server.cli(&["config", "set", "maxmemory", "0"]);
    let values = store.read(&[Query::Get(b("a")), Query::HGet(b("b"), b("f")), Query::Get(b("c"))]).await;
    assert_eq!(values, Ok(vec![Value::Bytes(None), Value::Bytes(None), Value::Bytes(Some(b("-1")))]));
}

/// "Full" would be taken for "nothing has happened", and what frees memory must go on over a new connection, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_does_not_make_a_commit_without_an_answer_undone() {
    let server = RedisServer::with(&["--maxmemory-policy", "noeviction"]);
    let proxy = Proxy::start(server.address());
    let store = Arc::new(open(&url_of(proxy.port), MOUNTED).await.unwrap());
    works(&store).await;
    proxy.hold_replies(true);
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.commit(&[], &[Write::Set(b("a"), b("1"))], &[]).await }
    });
    servers::wait_until("it has happened", || server.cli(&["get", "a"]).trim() == "1");
    server.cli(&["config", "set", "maxmemory", "1"]);
    proxy.cut();
    proxy.hold_replies(false);
    let outcome = waiting.await.unwrap();
    assert_eq!(outcome, Ok(Commit::Done { replies: vec![Value::Done], values: vec![] }));
    assert!(matches!(store.commit(&[], &[Write::Set(b("b"), b("1"))], &[]).await, Err(StoreError::Full(_))));
    assert!(store.commit(&[], &[Write::Del(b("c"))], &[]).await.is_ok());
    server.cli(&["config", "set", "maxmemory", "0"]);
    assert_eq!(store.read(&[Query::Get(b("a"))]).await, Ok(vec![Value::Bytes(Some(b("1")))]));
}

/// Commits that would show a second application: each takes a number of its own from a counter and leaves its name in a list.
async fn tally(store: &Arc<RedisStore>, tasks: usize, each: usize) {
    let mut running = Vec::new();
    for task in 0..tasks {
        let store = store.clone();
        running.push(tokio::spawn(async move {
            let mut numbers = Vec::new();
            for n in 0..each {
                let name = Bytes::from(format!("{task}-{n}"));
                let list = Bytes::from(format!("l{task}"));
                let writes = [Write::RPush(list.clone(), vec![name]), Write::IncrBy(b("tally"), 1)];
                match store.commit(&[Guard::Value(b("never"), None)], &writes, &[Query::Get(b("never"))]).await {
                    Ok(Commit::Done { replies, values }) => {
                        assert_eq!((&replies[0], &values[0]), (&Value::Int(n as i64 + 1), &Value::Bytes(None)), "in its order");
                        let Value::Int(number) = replies[1] else { panic!("{replies:?}") };
                        numbers.push(number);
                    }
                    other => panic!("{other:?}"),
                }
            }
            numbers
        }));
    }
    let mut numbers = Vec::new();
    for task in running {
        numbers.extend(task.await.unwrap());
    }
    numbers.sort_unstable();
    let all: Vec<i64> = (1..=(tasks * each) as i64).collect();
    assert_eq!(numbers, all, "every commit happened once and was answered truly");
    for task in 0..tasks {
        let names = (0..each).map(|n| Bytes::from(format!("{task}-{n}"))).collect();
        assert_eq!(store.read(&[Query::List(Bytes::from(format!("l{task}")))]).await, Ok(vec![Value::List(names)]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_happen_once_however_often_the_connection_breaks() {
    let server = RedisServer::start();
    let proxy = Arc::new(Proxy::start(server.address()));
    let store = Arc::new(open(&url_of(proxy.port), MOUNTED).await.unwrap());
    store.claim_session(7).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let breaking = {
        let (stop, proxy) = (stop.clone(), proxy.clone());
        std::thread::spawn(move || {
            let mut cuts = 0;
            while !stop.load(Ordering::SeqCst) && cuts < 40 {
                std::thread::sleep(Duration::from_millis(60));
                // In turn: what was asked arrives late, what was done is not answered, nothing special.
                match cuts % 3 {
                    0 => proxy.hold_requests(true),
                    1 => proxy.hold_replies(true),
                    _ => {}
                }
                std::thread::sleep(Duration::from_millis(3));
                proxy.cut();
                proxy.hold_requests(false);
                proxy.hold_replies(false);
                cuts += 1;
            }
            cuts
        })
    };
    tally(&store, 100, 60).await;
    stop.store(true, Ordering::SeqCst);
    let cuts = breaking.join().unwrap();
    assert!(cuts > 5, "the connection was cut {cuts} times");
    assert_eq!(store.losses(), 0);
    assert!(server.cli(&["exists", "_pando:op:7_0"]).contains('1'));
    store.forget_session(7).await.unwrap();
    let ttl: i64 = server.cli(&["ttl", "_pando:op:7_0"]).trim().parse().unwrap();
    assert!((1..=90).contains(&ttl), "others still learn from it whose number it was: {ttl}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_arrive_after_the_fence_do_nothing() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.address());
    let store = Arc::new(open(&url_of(proxy.port), MOUNTED).await.unwrap());
    store.commit(&[], &[Write::IncrBy(b("n"), 1)], &[]).await.unwrap();
    proxy.hold_requests(true);
    let late = {
        let store = store.clone();
        tokio::spawn(async move { store.commit(&[], &[Write::IncrBy(b("n"), 10)], &[]).await })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    // The new connection waits in the proxy as well; the old bytes go first or last, both must come out the same.
    proxy.cut();
    tokio::time::sleep(Duration::from_millis(50)).await;
    proxy.hold_requests(false);
    assert_eq!(late.await.unwrap(), Ok(Commit::Done { replies: vec![Value::Int(11)], values: vec![] }));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(store.read(&[Query::Get(b("n"))]).await, Ok(vec![Value::Bytes(Some(b("11")))]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_and_comes_back_is_a_pause() {
    let mut server = RedisServer::start();
    let store = Arc::new(open(&url_of(server.port), MOUNTED).await.unwrap());
    store.claim_session(7).unwrap();
    let commits = {
        let store = store.clone();
        tokio::spawn(async move { tally(&store, 50, 80).await })
    };
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        server.kill();
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.restart();
    }
    commits.await.unwrap();
    assert_eq!(store.losses(), 0, "the append-only file held everything");
}

#[tokio::test]
async fn a_request_that_nobody_drives_keeps_nobody_from_a_connection() {
    let server = RedisServer::start();
    let store = open(&url_of(server.port), MOUNTED).await.unwrap();
    works(&store).await;
    for generation in 1..=3 {
        store.link.retire(generation, "wanted by the test");
        let queries = [Query::Get(b("n"))];
        let ahead = crate::env::Begun::begin(Box::pin(store.read(&queries))).await;
        let other = tokio::time::timeout(Duration::from_secs(5), store.read(&[Query::Get(b("n"))])).await;
        assert_eq!(other, Ok(Ok(vec![Value::Bytes(Some(b("5")))])), "it waited for the other");
        assert_eq!(ahead.end().await, Ok(vec![Value::Bytes(Some(b("5")))]));
    }
    // Nor does one that is given up keep anything going.
    store.link.retire(4, "wanted by the test");
    let queries = [Query::Get(b("n"))];
    drop(crate::env::Begun::begin(Box::pin(store.read(&queries))).await);
    assert_eq!(store.read(&queries).await, Ok(vec![Value::Bytes(Some(b("5")))]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_lost_is_noticed_and_numbers_are_not_given_out_again() {
    let mut server = RedisServer::with(&["--appendonly", "no"]);
    let store = open(&url_of(server.port), MOUNTED).await.unwrap();
    store.claim_session(7).unwrap();
    let chunks = [Write::IncrBy(key::NEXT_CHUNK, 4096)];
    store.commit(&[], &chunks, &[]).await.unwrap();
    // Nothing was saved: it comes back empty.
    server.restart();
    let done = store.commit(&[], &chunks, &[]).await.unwrap();
    assert_eq!(done, Commit::Done { replies: vec![Value::Int(8192)], values: vec![] }, "above what was seen");
    assert_eq!(store.losses(), 1);
}

fn setting(uuid: &str) -> Bytes {
    crate::meta::setting::Setting::new("vol", uuid, "file", "/", 4096).encode().into()
}

/// A session in the volume `one`, whose counter of slices stands at 4096.
async fn in_volume_one(server: &RedisServer) -> Arc<RedisStore> {
    let store = Arc::new(open(&url_of(server.port), MOUNTED).await.unwrap());
    store.commit(&[], &[Write::Set(key::SETTING, setting("one"))], &[]).await.unwrap();
    store.claim_session(7).unwrap();
    store.commit(&[], &[Write::IncrBy(key::NEXT_CHUNK, 4096)], &[]).await.unwrap();
    store
}

fn as_text(bytes: &Bytes) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_holds_another_volume_is_not_written_to() {
    let server = RedisServer::start();
    let store = in_volume_one(&server).await;
    // The server goes on, and so does the connection.
    server.cli(&["flushdb"]);
    server.cli(&["set", "setting", as_text(&setting("two"))]);
    for _ in 0..2 {
        let error = store.commit(&[], &[Write::IncrBy(key::NEXT_CHUNK, 1)], &[]).await.unwrap_err().to_string();
        assert!(error.contains("another volume") && error.contains("two"), "{error}");
    }
    assert!(store.replaced());
    assert_eq!(server.cli(&["keys", "*"]).trim(), "setting");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_loaded_anew_is_waited_for_and_its_numbers_are_raised() {
    let server = RedisServer::start();
    let store = in_volume_one(&server).await;
    server.cli(&["flushdb"]);
    let commit = {
        let store = store.clone();
        tokio::spawn(async move { store.commit(&[], &[Write::IncrBy(key::NEXT_CHUNK, 4096)], &[]).await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!commit.is_finished());
    assert_eq!(server.cli(&["keys", "*"]).trim(), "", "nothing disturbs the load");
    server.cli(&["set", "nextchunk", "100"]);
    server.cli(&["set", "setting", as_text(&setting("one"))]);
    assert_eq!(commit.await.unwrap(), Ok(Commit::Done { replies: vec![Value::Int(8192)], values: vec![] }), "above what was seen");
    assert_eq!((store.losses(), store.replaced()), (1, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_others_that_were_seen_are_not_given_out_again() {
    let mut server = RedisServer::with(&["--appendonly", "no"]);
    let store = open(&url_of(server.port), MOUNTED).await.unwrap();
    store.claim_session(7).unwrap();
    let record = |id| crate::meta::codec::encode_slice(&crate::types::SliceRecord { pos: 0, id, size: 5, off: 0, len: 5 });
    let entry = |ino| crate::meta::codec::encode_entry(crate::types::Kind::File, crate::types::Ino(ino));
    let (list, dir) = (key::chunk(crate::types::Ino(5), 0), key::dir(crate::types::Ino(1)));
    let writes = [
        Write::RPush(list.clone(), vec![record(9000), record(9100)]),
        Write::HSet(dir.clone(), b("f"), entry(777)),
        Write::HSet(dir.clone(), b("t"), entry(crate::types::Ino::TRASH.0 + 5)),
    ];
    store.commit(&[], &writes, &[]).await.unwrap();
    // Alone, and behind others.
    store.read(&[Query::List(list.clone())]).await.unwrap();
    store.read(&[Query::Get(b("x")), Query::Entry { dir, name: b("f") }]).await.unwrap();
    server.restart();
    let numbers = [Write::IncrBy(key::NEXT_CHUNK, 4096), Write::IncrBy(key::NEXT_INODE, 1024)];
    let done = store.commit(&[], &numbers, &[]).await.unwrap();
    assert_eq!(done, Commit::Done { replies: vec![Value::Int(9100 + 4096), Value::Int(777 + 1024)], values: vec![] });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_prolonged_before_what_waited_for_the_server_is_committed() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.address());
    let store = open(&url_of(proxy.port), MOUNTED).await.unwrap();
    store.claim_session(7).unwrap();
    store.commit(&[], &[Write::ZAdd(key::ALL_SESSIONS, 5, b("7"))], &[]).await.unwrap();
    proxy.cut();
    let reads = [Query::ZScore(key::ALL_SESSIONS, b("7"))];
    let done = store.commit(&[], &[Write::IncrBy(b("n"), 1)], &reads).await.unwrap();
    let Commit::Done { values, .. } = done else { panic!("{done:?}") };
    let [Value::Score(Some(expiry))] = values[..] else { panic!("{values:?}") };
    assert!(expiry > 1_700_000_000, "{expiry}");
    // One that others have ended does not come back by this.
    server.cli(&["zrem", "allSessions", "7"]);
    proxy.cut();
    let done = store.commit(&[], &[Write::IncrBy(b("n"), 1)], &reads).await.unwrap();
    assert_eq!(done, Commit::Done { replies: vec![Value::Int(2)], values: vec![Value::Score(None)] });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_commit_that_happened_was_to_read_is_asked_for_until_there_is_an_answer() {
    let mut server = RedisServer::start();
    let store = Arc::new(open(&url_of(server.port), Options { patience: Some(Duration::from_millis(200)), writes: true }).await.unwrap());
    store.commit(&[], &[Write::Set(b("k"), b("v"))], &[]).await.unwrap();
    server.kill();
    assert!(store.read(&[Query::Get(b("k"))]).await.is_err(), "a command gives up");
    let read = {
        let store = store.clone();
        tokio::spawn(async move { store.read_late(&[Query::Get(b("k"))]).await })
    };
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(!read.is_finished());
    server.restart();
    assert_eq!(read.await.unwrap(), Ok(vec![Value::Bytes(Some(b("v")))]));
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_have_what_is_left_make_no_sync_a_success() {
    let mut master = RedisServer::with(&["--appendonly", "no"]);
    let replica = RedisServer::with(&["--replicaof", &format!("127.0.0.1 {}", master.port)]);
    let follows = || replica.cli(&["info", "replication"]).contains("master_link_status:up");
    wait_until("the replica follows", follows);
    let store = open(&format!("{}&fsync-replicas=1", url_of(master.port)), MOUNTED).await.unwrap();
    store.claim_session(7).unwrap();
    store.commit(&[], &[Write::IncrBy(b("n"), 1)], &[]).await.unwrap();
    store.sync().await.unwrap();
    store.commit(&[], &[Write::IncrBy(b("n"), 1)], &[]).await.unwrap();
    master.restart();
    let error = store.sync().await.unwrap_err().to_string();
    assert!(error.contains("lost changes"), "{error}");
    assert_eq!(store.losses(), 1);
    store.commit(&[], &[Write::IncrBy(b("n"), 1)], &[]).await.unwrap();
    store.sync().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_give_up_with_a_reason() {
    let mut server = RedisServer::start();
    let store = open(&url_of(server.port), COMMAND).await.unwrap();
    server.kill();
    let error = store.read(&[Query::Get(b("x"))]).await.unwrap_err().to_string();
    assert!(error.contains("cannot be reached"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_with_one_session_do_not_share_outcomes() {
    let server = RedisServer::start();
    let (one, two) = (open(&server.url(0), MOUNTED).await.unwrap(), open(&server.url(0), MOUNTED).await.unwrap());
    for store in [&one, &two] {
        store.claim_session(7).unwrap();
        store.commit(&[], &[Write::IncrBy(b("n"), 1)], &[]).await.unwrap();
    }
    assert_eq!(server.cli(&["exists", "_pando:op:7_0", "_pando:op:7_1"]).trim(), "2");
    // A third takes the session for dead: what it kept stays for a while, its process may still ask.
    let three = open(&server.url(0), MOUNTED).await.unwrap();
    three.forget_session(7).await.unwrap();
    assert!(server.cli(&["ttl", "_pando:op:7_0"]).trim().parse::<i64>().unwrap() > 80_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_a_volume_under_one_tag() {
    let nodes = cluster();
    let list: Vec<String> = nodes.iter().map(|node| node.address().to_string()).collect();
    conformance::run(&open(&format!("redis://{}/2", list.join(",")), MOUNTED).await.unwrap()).await;
    // A single node answers that it belongs to one; and sets of keys hold whole names.
    let store = open(&format!("redis://{}/1", list[0]), MOUNTED).await.unwrap();
    works(&store).await;
    store.commit(&[], &[Write::SAdd(key::locked(3), b("lockf5"))], &[]).await.unwrap();
    assert_eq!(store.read(&[Query::SMembers(key::locked(3))]).await, Ok(vec![Value::List(vec![b("lockf5")])]));
    let members = |node: &RedisServer| node.cli(&["-c", "smembers", "{1}locked3"]);
    assert_eq!(members(&nodes[0]).trim(), "{1}lockf5");
    let page = store.scan(&ScanRange::Keys(b("locked")), Cursor::new(), 100).await.unwrap();
    assert_eq!(page.items.iter().map(|item| item.name.clone()).collect::<Vec<_>>(), [b("locked3")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_lead_to_the_new_master() {
    let mut master = RedisServer::start();
    let replica = RedisServer::with(&["--appendonly", "yes", "--replicaof", &format!("127.0.0.1 {}", master.port)]);
    wait_until("the replica follows", || replica.cli(&["info", "replication"]).contains("master_link_status:up"));
    let sentinel = RedisServer::sentinel(master.port);
    wait_until("the sentinel knows the replica", || sentinel.cli(&["sentinel", "replicas", "m"]).contains(&replica.port.to_string()));
    let url = format!("redis://m,127.0.0.1:{}/1?fsync-replicas=1&read-timeout=2s&max-retry-backoff=100ms", sentinel.port);
    let store = open(&url, MOUNTED).await.unwrap();
    store.claim_session(7).unwrap();
    works(&store).await;
    store.sync().await.unwrap();
    master.kill();
    assert_eq!(store.read(&[Query::Get(b("n"))]).await, Ok(vec![Value::Bytes(Some(b("5")))]), "it was replicated");
    let replies = vec![Value::Int(6)];
    assert_eq!(store.commit(&[], &[Write::IncrBy(b("n"), 1)], &[]).await, Ok(Commit::Done { replies, values: vec![] }));
    assert!(replica.cli(&["role"]).contains("master"));
    assert_eq!(store.losses(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_survives_a_restart_of_the_server() {
    let mut server = RedisServer::start();
    let store = open(&url_of(server.port), MOUNTED).await.unwrap();
    let names: BTreeSet<Bytes> = (0..3000).map(|n| Bytes::from(format!("{n}"))).collect();
    for part in names.iter().collect::<Vec<_>>().chunks(1000) {
        let writes: Vec<Write> = part.iter().map(|name| Write::HSet(b("h"), (*name).clone(), b(""))).collect();
        store.commit(&[], &writes, &[]).await.unwrap();
    }
    let (mut seen, mut cursor, mut pages) = (BTreeSet::new(), Cursor::new(), 0);
    loop {
        let page = store.scan(&ScanRange::Hash(b("h")), cursor, 100).await.unwrap();
        seen.extend(page.items.into_iter().map(|item| item.name));
        let Some(next) = page.next else { break };
        cursor = next;
        pages += 1;
        if pages == 10 {
            server.restart();
        }
        assert!(pages < 100, "it ends");
    }
    assert_eq!(seen, names);
}

/// Memory in use.
fn used_memory(server: &RedisServer) -> u64 {
    let info = server.cli(&["info", "memory"]);
    info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_are_counted_and_leave_a_server_that_is_out_of_memory() {
    let server = RedisServer::start();
    let store = open(&server.url(0), MOUNTED).await.unwrap();
    let kept = async || match &store.read(&[Query::FramesKept]).await.unwrap()[..] {
        [Value::Kept(kept)] => *kept,
        other => panic!("{other:?}"),
    };
    let frame = |len: usize| Bytes::from(vec![7; len]);
    let put = async |id: u64, len: usize| match store.commit(&[], &[Write::PutFrame(id, frame(len))], &[]).await {
        Ok(Commit::Done { replies, .. }) => Ok(replies),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    };
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    assert_eq!(put(1, 60_000).await, Ok(vec![Value::Int(60_000)]));
    assert_eq!(put(2, 40_000).await, Ok(vec![Value::Int(100_000)]));
    assert_eq!(put(1, 50_000).await, Ok(vec![Value::Int(90_000)]), "replaced");
    let found = kept().await;
    assert_eq!((found.count, found.bytes), (2, 90_000));
    assert!((before - 5000..before + 5000).contains(&found.oldest_ms.unwrap()), "{found:?} {before}");
    // A counter that went wrong does not outlive the frames.
    server.cli(&["set", "_pando:bytes", "123456"]);
    assert!(store.free_bytes().await.unwrap() > 1 << 20);
    // Far more than the buffers of connections, which the server gives back when it likes.
    let more = 10..30;
    for id in more.clone() {
        put(id, 50_000).await.unwrap();
    }
    let limit = used_memory(&server) - 500_000;
    server.cli(&["config", "set", "maxmemory", &limit.to_string()]);
    assert!(store.free_bytes().await.unwrap() < 1 << 20);
    assert!(matches!(put(3, 10).await, Err(StoreError::Full(_))));
    // What leaves makes room, all of it in one commit.
    let mut writes = vec![Write::DelFrame(1), Write::DelFrame(9), Write::DelFrame(2), Write::Set(b("k"), b("v"))];
    let mut replies = vec![Value::Int(1), Value::Int(0), Value::Int(1), Value::Done];
    writes.extend(more.clone().map(Write::DelFrame));
    replies.extend(more.map(|_| Value::Int(1)));
    assert_eq!(store.commit(&[], &writes, &[]).await, Ok(Commit::Done { replies, values: Vec::new() }));
    assert_eq!(kept().await, Default::default());
    assert_eq!(server.cli(&["exists", "_pando:f", "_pando:age", "_pando:bytes"]).trim(), "0");
    assert_eq!(put(3, 10).await, Ok(vec![Value::Int(10)]));
}

/// A server that is out of memory refuses a commit as a whole, whatever comes after the first write.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_takes_no_part_of_a_commit() {
    let server = RedisServer::with(&[]);
    let store = open(&server.url(0), MOUNTED).await.unwrap();
    let before = [Write::RPush(b("l"), vec![b("1")]), Write::HSet(b("turns"), b("f"), b("v")), Write::Set(b("s"), b("old"))];
    store.commit(&[], &before, &[]).await.unwrap();
    server.cli(&["config", "set", "maxmemory", "1"]);
    // The second needs no memory: with it done, the server would take all others.
    let writes =
        [Write::RPush(b("l"), vec![b("2")]), Write::HDel(b("turns"), b("f")), Write::Set(b("s"), b("new")), Write::IncrBy(b("n"), 1)];
    assert!(matches!(store.commit(&[], &writes, &[]).await, Err(StoreError::Full(_))));
    server.cli(&["config", "set", "maxmemory", "0"]);
    let queries = [Query::List(b("l")), Query::HGet(b("turns"), b("f")), Query::Get(b("s")), Query::Get(b("n"))];
    let bytes = |text| Value::Bytes(Some(b(text)));
    assert_eq!(store.read(&queries).await, Ok(vec![Value::List(vec![b("1")]), bytes("v"), bytes("old"), Value::Bytes(None)]));
}

/// One key of another type among many of one kind: nothing happens, and it is damage.
#[tokio::test(flavor = "multi_thread")]
async fn a_strange_key_in_a_row_is_damage() {
    let server = RedisServer::with(&[]);
    let store = open(&server.url(0), MOUNTED).await.unwrap();
    let name = |n: usize| Bytes::from(format!("k{n}"));
    let push = |n: usize| Write::RPush(name(n), vec![b("e")]);
    store.commit(&[], &[push(2), Write::Set(name(9), b("string"))], &[]).await.unwrap();
    let no_strings: Vec<Guard> = (0..4).map(|n| Guard::Value(name(n), None)).collect();
    let strings: Vec<Guard> = (0..4).map(|n| Guard::Value(name(n), Some(b("v")))).collect();
    let (lists, members): (Vec<Write>, Vec<Write>) =
        ((7..11).map(push).collect(), (0..3).map(|n| Write::ZAdd(name(2), n, name(n as usize))).collect());
    let fields: Vec<Write> = (0..3).map(|n| Write::HIncrBy(name(2), name(n), 1)).collect();
    let no_hashes: Vec<Guard> = (0..4).map(|n| Guard::Fields(name(n), vec![])).collect();
    let empty: Vec<Guard> = (8..11).map(|n| Guard::HashEmpty(name(n))).collect();
    let empty = [(no_hashes, vec![push(5)]), (empty, vec![push(5)])];
    let others = [(no_strings, vec![push(5)]), (strings, vec![push(5)]), (vec![], lists), (vec![], members), (vec![], fields)];
    for (guards, writes) in empty.into_iter().chain(others) {
        let writes = [vec![push(5)], writes].concat();
        let outcome = store.commit(&guards, &writes, &[]).await;
        assert!(matches!(outcome, Err(StoreError::Damaged(_))), "{guards:?} {writes:?}: {outcome:?}");
        assert_eq!(store.read(&[Query::List(name(5)), Query::List(name(7))]).await, Ok(vec![Value::List(vec![]), Value::List(vec![])]));
    }
}

#[test]
fn no_answer_upsets_the_decoders() {
    crate::env::fuzz::decoder(&[[&7u64.to_be_bytes()[..], &[0; 8], b"1,2,3"].concat()], |bytes| {
        let bytes = Bytes::copy_from_slice(bytes);
        if let Some((_, told)) = super::script::record(&bytes) {
            let writes = [Write::IncrBy(b("n"), 1), Write::Del(b("k")), Write::RPush(b("l"), vec![b("e")])];
            let program = super::script::Program::new(b"", &[], &writes, &[], 0).unwrap();
            let _ = program.replies(&told);
        }
        let _ = super::wire::score(&bytes);
    });
}

#[derive(Default)]
struct Heard(std::sync::Mutex<Vec<Vec<u8>>>);

impl Heard {
    fn take(&self) -> Vec<Vec<u8>> {
        let mut keys = std::mem::take(&mut *self.0.lock().unwrap());
        keys.sort();
        keys
    }
}

impl crate::meta::store::Watcher for Heard {
    fn changed(&self, key: &[u8]) {
        self.0.lock().unwrap().push(key.into());
    }

    fn flushed(&self) {}

    fn heard(&self, _age: Duration) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_or_written_is_told_and_nothing_else() {
    let server = RedisServer::start();
    let (store, heard) = (open(&server.url(0), MOUNTED).await.unwrap(), Arc::new(Heard::default()));
    let other = open(&server.url(0), MOUNTED).await.unwrap();
    assert!(store.watch(heard.clone()).await);
    let keys = ["i1", "i2", "d1", "c1_0", "x1", "usedSpace", "dirUsedSpace", "_pando:f", "lockf1", "sessionInfos", "setting"];
    let change_all = async || {
        let writes: Vec<Write> = keys
            .iter()
            .map(|key| match key.as_bytes() {
                [b'i', ..] | b"usedSpace" | b"setting" => Write::Set(b(key), b("5")),
                [b'c', ..] => Write::RPush(b(key), vec![b("e")]),
                _ => Write::HSet(b(key), b("f"), b("v")),
            })
            .collect();
        other.commit(&[], &writes, &[]).await.unwrap();
        // Behind everything that was told before.
        store.read(&[Query::Get(b("none"))]).await.unwrap();
        heard.take().into_iter().map(|key| String::from_utf8(key).unwrap()).collect::<Vec<_>>()
    };
    change_all().await;
    // Plain reads.
    for query in [Query::Get(b("i1")), Query::Get(b("usedSpace")), Query::HGet(b("_pando:f"), b("f")), Query::HGetAll(b("sessionInfos"))] {
        store.read(&[query]).await.unwrap();
    }
    assert_eq!(change_all().await, ["i1"]);
    assert_eq!(change_all().await, [""; 0], "once");
    // Reads together, and a listing.
    store
        .read(&[Query::Get(b("i1")), Query::Get(b("usedSpace")), Query::Frames { list: b("c1_0"), until: 0 }, Query::HGetAll(b("lockf1"))])
        .await
        .unwrap();
    assert_eq!(change_all().await, ["c1_0", "i1"]);
    store.scan(&ScanRange::Dir(b("d1")), Cursor::new(), 10).await.unwrap();
    store.scan(&ScanRange::Hash(b("sessionInfos")), Cursor::new(), 10).await.unwrap();
    assert_eq!(change_all().await, ["d1"]);
    // What is guarded, written and read by a commit; one that does not happen, too.
    let guards = [Guard::Value(b("i1"), Some(b("5"))), Guard::Field(b("lockf1"), b("f"), Some(b("v")))];
    let writes = [Write::Set(b("i2"), b("6")), Write::IncrBy(b("usedSpace"), 1), Write::HIncrIfPresent(b("dirUsedSpace"), b("g"), 1)];
    let reads = [Query::HGetAll(b("x1")), Query::Get(b("setting"))];
    assert!(matches!(store.commit(&guards, &writes, &reads).await, Ok(Commit::Done { .. })));
    assert_eq!(change_all().await, ["i1", "i2", "x1"]);
    assert!(matches!(store.commit(&[Guard::Value(b("i1"), None)], &writes, &reads).await, Ok(Commit::Conflict(_))));
    assert_eq!(change_all().await, ["i1", "i2", "x1"]);
}

/// Being told needs rights; without them everything else goes on.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_be_told_works_on() {
    let server = RedisServer::start();
    for rule in ["-client|tracking", "-client|caching", "-multi"] {
        server.cli(&["acl", "setuser", "bob", "reset", "on", ">x", "~*", "&*", "+@all", rule]);
        let url = format!("redis://bob:x@127.0.0.1:{}/0", server.port);
        let store = open(&url, COMMAND).await.unwrap();
        assert!(!store.watch(Arc::new(Heard::default())).await, "{rule}");
        server.cli(&["flushall"]);
        works(&store).await;
    }
    // A right that is taken away while it is used: the next connection goes on without.
    server.cli(&["acl", "setuser", "bob", "reset", "on", ">x", "~*", "&*", "+@all"]);
    let store = open(&format!("redis://bob:x@127.0.0.1:{}/0", server.port), MOUNTED).await.unwrap();
    assert!(store.watch(Arc::new(Heard::default())).await);
    let add = async || store.commit(&[Guard::Value(b("i1"), None)], &[Write::IncrBy(b("m"), 1)], &[]).await;
    assert_eq!(add().await, Ok(Commit::Done { replies: vec![Value::Int(1)], values: vec![] }));
    server.cli(&["acl", "setuser", "bob", "-multi"]);
    assert_eq!(add().await, Ok(Commit::Done { replies: vec![Value::Int(2)], values: vec![] }));
    assert_eq!(server.cli(&["get", "m"]).trim(), "2", "once");
}
