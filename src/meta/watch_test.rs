//! What stands in memory is what the store has: several clients change a small tree at random, on a real server.

// Shared with the tests of whole mounts, which use other parts of it.
#[allow(dead_code)]
#[path = "../../tests/suite/servers.rs"]
mod servers;

use crate::env::SystemClock;
use crate::meta::ops::{NewNode, RenameFlags, SetAttr, SetTime};
use crate::meta::store::redis::url::{ProcessEnvironment, RedisUrl};
use crate::meta::store::redis::{Options, RedisStore};
use crate::meta::store::{Query, Store, Value, Write};
use crate::meta::{AtimeMode, Meta, MetaConfig, codec, key, setting::Setting};
use crate::types::{Attr, Caller, Errno, Flags, Ino, Kind, Name, Time};
use bytes::Bytes;
use servers::RedisServer;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const OPTIONS: Options = Options { patience: None, writes: true };
/// Rounds of changes; after each everything is compared.
const ROUNDS: u64 = 40;
const HOSTS: usize = 3;
/// Operations at once on each host, and how many one after the other.
const TASKS: u64 = 3;
const STEPS: u64 = 6;

async fn open(url: &str) -> Arc<RedisStore> {
    let url = RedisUrl::parse(url, &ProcessEnvironment).expect("an address");
    Arc::new(RedisStore::open(&url, OPTIONS).await.expect("opens"))
}

async fn volume(store: &RedisStore) -> Setting {
    let root = Attr {
        flags: Flags(0),
        kind: Kind::Dir,
        mode: 0o777,
        uid: 0,
        gid: 0,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
        nlink: 2,
        length: 4096,
        rdev: 0,
        parent: Ino::ROOT,
        access_acl: 0,
        default_acl: 0,
        tier: 0,
    };
    let mut writes = vec![Write::Set(key::inode(Ino::ROOT), codec::encode_attr(&root)), Write::Set(key::NEXT_INODE, "1".into())];
    for hash in [key::DIR_DATA_LENGTH, key::DIR_USED_SPACE, key::DIR_USED_INODES] {
        writes.push(Write::HSet(hash, key::decimal(1), Bytes::from_static(b"0")));
    }
    let setting = Setting::new("vol", "uuid", "file", "/", 4096);
    writes.push(Write::Set(key::SETTING, setting.encode().into()));
    store.commit(&[], &writes, &[]).await.expect("commits");
    setting
}

async fn host(url: &str, setting: &Setting) -> Arc<Meta> {
    let (duties, _) = mpsc::channel(100);
    let (store, clock) = (open(url).await, Arc::new(SystemClock::new()));
    let meta = Arc::new(Meta::new(MetaConfig { store, clock, setting: setting.clone(), duties, atime: AtimeMode::Never }));
    meta.watch().await;
    meta.new_session("/mnt").await.expect("begins");
    meta
}

fn name(n: u64) -> Name {
    Name::new(format!("n{}", n % 5).as_bytes()).expect("valid")
}

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

/// Some operation; most fail, as names are few.
async fn change(meta: &Meta, dirs: &[Ino], dice: &mut Dice) -> Option<Ino> {
    let root = Caller::root();
    let (dir, other) = (dirs[dice.roll() as usize % dirs.len()], dirs[dice.roll() as usize % dirs.len()]);
    let (a, b) = (name(dice.roll()), name(dice.roll()));
    let node = |kind| NewNode { kind, mode: 0o755, umask: 0, rdev: 0, target: b"target" };
    // The kernel looks names up before it does anything with them.
    let found = meta.lookup(&root, dir, &a).await;
    if meta.wants_names(dir) {
        meta.load_names(dir).await;
    }
    match dice.roll() % 9 {
        0 | 1 => drop(meta.create(&root, dir, &a, node(Kind::File)).await),
        2 => return meta.create(&root, dir, &a, node(Kind::Dir)).await.ok().map(|(ino, _)| ino),
        3 => drop(meta.create(&root, dir, &a, node(Kind::Symlink)).await),
        4 => drop(meta.unlink(&root, dir, &a).await),
        5 => drop(meta.rmdir(&root, dir, &a).await),
        6 => {
            let flags = RenameFlags { exchange: dice.roll().is_multiple_of(4), ..RenameFlags::default() };
            let _ = meta.rename(&root, dir, &a, other, &b, flags).await;
        }
        7 => {
            if let Ok((ino, _)) = found {
                drop(meta.setattr(&root, ino, SetAttr { mtime: Some(SetTime::Now), mode: Some(0o700), ..SetAttr::default() }).await);
            }
        }
        _ => {
            if let Ok((ino, _)) = found {
                drop(meta.link(&root, ino, other, &b).await);
            }
        }
    }
    None
}

async fn change_some(meta: Arc<Meta>, mut dirs: Vec<Ino>, seed: u64) -> Vec<Ino> {
    let (mut dice, mut made) = (Dice(seed), Vec::new());
    for _ in 0..STEPS {
        if let Some(dir) = change(&meta, &dirs, &mut dice).await {
            dirs.push(dir);
            made.push(dir);
        }
    }
    made
}

/// Compares everything that stands with the store; answers how much did.
async fn compare(meta: &Meta, truth: &RedisStore, dirs: &[Ino]) -> usize {
    // Whatever was changed before this is answered has been told by then.
    meta.store().read(&[Query::Get("nothing".into())]).await.expect("an answer");
    let facts = meta.driver.facts.as_ref().expect("the store is far");
    let mut standing = 0;
    for &dir in dirs {
        let mut queries = vec![Query::Get(key::inode(dir))];
        for n in 0..5 {
            queries.push(Query::HGet(key::dir(dir), key::name(&name(n))));
            queries.push(Query::Entry { dir: key::dir(dir), name: key::name(&name(n)) });
        }
        let values = truth.read(&queries).await.expect("an answer");
        for (query, value) in queries.iter().zip(&values) {
            if let Some(known) = facts.recall_standing(std::slice::from_ref(query)) {
                assert_eq!(&known[0], value, "{query:?}");
                standing += 1;
            }
        }
    }
    standing
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_is_what_the_store_has() {
    let server = RedisServer::with(&[]);
    let (url, truth) = (server.url(1), open(&server.url(1)).await);
    let setting = volume(&truth).await;
    let mut hosts = Vec::new();
    for _ in 0..HOSTS {
        hosts.push(host(&url, &setting).await);
    }
    let (mut dirs, mut standing) = (vec![Ino::ROOT], 0);
    for round in 0..ROUNDS {
        // Now all of them, now one that the others only hear of.
        let busy = if round % 2 == 0 { &hosts[..] } else { &hosts[round as usize / 2 % HOSTS..][..1] };
        let tasks: Vec<_> = busy
            .iter()
            .enumerate()
            .flat_map(|(at, meta)| (0..TASKS).map(move |task| (meta, (at as u64) << 8 | task)))
            .map(|(meta, which)| tokio::spawn(change_some(meta.clone(), dirs.clone(), round << 16 | which)))
            .collect();
        for task in tasks {
            dirs.extend(task.await.expect("no panic"));
        }
        if dirs.len() > 12 {
            dirs.drain(1..dirs.len() - 11);
        }
        for meta in &hosts {
            standing += compare(meta, &truth, &dirs).await;
        }
    }
    // Else nothing was tested.
    assert!(standing > 1000, "{standing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_others_are_told_also_after_the_connection_was_lost() {
    let server = RedisServer::with(&[]);
    let (url, truth) = (server.url(1), open(&server.url(1)).await);
    let setting = volume(&truth).await;
    let (one, two, root) = (host(&url, &setting).await, host(&url, &setting).await, Caller::root());
    let node = NewNode { kind: Kind::Dir, mode: 0o755, umask: 0, rdev: 0, target: b"" };
    let (dir, _) = one.create(&root, Ino::ROOT, &name(0), node).await.expect("creates");
    let absent = [Query::HGet(key::dir(dir), key::name(&name(1)))];
    let facts = one.driver.facts.as_ref().expect("the store is far");
    assert_eq!(facts.recall_standing(&absent), Some(vec![Value::Bytes(None)]), "a directory of our own is known to be empty");
    let told = async |what: &str| {
        for _ in 0..500 {
            if facts.recall_standing(&absent).is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what} was not told");
    };
    two.create(&root, dir, &name(1), NewNode { kind: Kind::File, ..node }).await.expect("creates");
    told("a creation").await;
    assert!(one.lookup(&root, dir, &name(1)).await.is_ok());
    two.unlink(&root, dir, &name(1)).await.expect("unlinks");
    told("a removal").await;
    assert_eq!(one.lookup(&root, dir, &name(1)).await.map(drop), Err(Errno::NOENT));
    assert_eq!(facts.recall_standing(&absent), Some(vec![Value::Bytes(None)]));
    // Cut off, and something happens meanwhile.
    server.cli(&["client", "kill", "type", "normal"]);
    truth
        .commit(&[], &[Write::HSet(key::dir(dir), key::name(&name(1)), codec::encode_entry(Kind::File, Ino(77)))], &[])
        .await
        .expect("commits");
    told("the end of a connection").await;
    let also = [Query::HGet(key::dir(dir), key::name(&name(2)))];
    // What was asked before the new connection was made does not stand.
    for _ in 0..2 {
        one.lookup(&root, dir, &name(2)).await.expect_err("not there");
    }
    assert!(facts.recall_standing(&also).is_some(), "the next connection is told again");
    truth
        .commit(&[], &[Write::HSet(key::dir(dir), key::name(&name(2)), codec::encode_entry(Kind::File, Ino(78)))], &[])
        .await
        .expect("commits");
    for _ in 0..500 {
        if facts.recall_standing(&also).is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("a change after the new connection was not told");
}
