//! Simulated power cuts: a whole volume over a store and an object directory that lose what was not synced. What was fsynced is there, no
//! byte is wrong, names lead to whole files, and the metadata check is clean.

use crate::support::{Dice, seed, size};
use bytes::Bytes;
use pando::env::Random;
use pando::meta::AtimeMode;
use pando::meta::codec::encode_attr;
use pando::meta::key;
use pando::meta::setting::Setting;
use pando::meta::store::embedded::EmbeddedStore;
use pando::meta::store::powercut::PowerCutStore;
use pando::meta::store::{Store, Write};
use pando::object::ObjectStore;
use pando::object::powercut::{PowerCutDir, Unsynced};
use pando::types::{Attr, Caller, Errno, Flags, Ino, Kind, Time};
use pando::vfs::Vfs;
use pando::volume::{MountOptions, Stores, TransferOptions, Volume, VolumeOptions, fsck};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Names of the play.
const FILES: u64 = 6;

/// Randomness of the model of the disk, from the seed of the round.
struct Seeded(Mutex<Dice>);

impl Random for Seeded {
    fn fill(&self, bytes: &mut [u8]) {
        let len = bytes.len();
        bytes.copy_from_slice(&self.0.lock().expect("not poisoned").bytes(len));
    }
}

fn setting() -> Setting {
    // The smallest blocks, so that a file has several.
    Setting::new("cut", "3b241101-e2bb-4255-8caf-4136c566a962", "file", "objects/", 64)
}

async fn formatted() -> EmbeddedStore {
    let store = EmbeddedStore::open_in_memory().expect("in memory");
    let now = Time { sec: 1_700_000_000, nsec: 0 };
    let root = Attr {
        flags: Flags(0),
        kind: Kind::Dir,
        mode: 0o777,
        uid: 0,
        gid: 0,
        atime: now,
        mtime: now,
        ctime: now,
        nlink: 2,
        length: 4096,
        rdev: 0,
        parent: Ino::ROOT,
        access_acl: 0,
        default_acl: 0,
        tier: 0,
    };
    let writes = [Write::Set(key::SETTING, setting().encode().into()), Write::Set(key::inode(Ino::ROOT), encode_attr(&root))];
    store.commit(&[], &writes, &[]).await.expect("written");
    store
}

async fn open(store: Arc<dyn Store>, objects: Arc<dyn ObjectStore>) -> (Volume, Arc<Vfs>) {
    let options = VolumeOptions {
        read_only: false,
        mountpoint: "/".into(),
        atime: AtimeMode::Never,
        buffer_bytes: 32 << 20,
        transfers: TransferOptions { uploads_max: 4, downloads_max: 4, ..TransferOptions::default() },
        heartbeat: Duration::from_secs(3600),
        cache: pando::cache::CacheOptions::default(),
        backup: None,
        journal: true,
        background: true,
    };
    let volume = Volume::over(Stores { store, setting: setting(), objects }, options).await.expect("opens");
    let ttl = Duration::ZERO;
    let view = MountOptions {
        subdir: None,
        read_only: false,
        xattr: false,
        show_internal: false,
        attr_ttl: ttl,
        entry_ttl: ttl,
        dir_entry_ttl: ttl,
        umask: None,
    };
    let (vfs, _) = volume.vfs(&view).await.expect("a view");
    (volume, vfs)
}

/// Content is a function of file and version.
fn content(file: u64, version: u64) -> Vec<u8> {
    // Nothing, a frame, the largest frame, more than one block.
    let len = [0, 90, 5_000, 65_536, 65_537, 200_000][((file * 5 + version * 7) % 6) as usize];
    Dice::new(file << 32 | version << 8 | 1).bytes(len)
}

/// What an application knows: how far each file and the log came, and how far an fsync has confirmed it.
#[derive(Default)]
struct Known {
    /// Highest version begun.
    begun: [AtomicU64; FILES as usize],
    /// Highest version that a returned fsync covers.
    durable: [AtomicU64; FILES as usize],
    lines_begun: AtomicU64,
    lines_durable: AtomicU64,
    stop: AtomicBool,
}

async fn write_whole(vfs: &Vfs, name: &str, bytes: &[u8], sync: bool) -> Result<(), Errno> {
    let caller = Caller::root();
    let flags = (libc::O_WRONLY | libc::O_TRUNC | libc::O_CREAT) as u32;
    let (ino, fh) = match vfs.lookup(&caller, Ino::ROOT, name.as_bytes()).await {
        Ok(entry) => (entry.ino, vfs.open(&caller, entry.ino, flags).await?.fh),
        Err(_) => {
            let (entry, open) = vfs.create(&caller, Ino::ROOT, name.as_bytes(), 0o644, 0, flags).await?;
            (entry.ino, open.fh)
        }
    };
    let work = async {
        for (i, part) in bytes.chunks(50_000).enumerate() {
            vfs.write(&caller, ino, fh, i as u64 * 50_000, Bytes::copy_from_slice(part), flags).await?;
        }
        if sync {
            vfs.fsync(&caller, ino, fh, false).await?;
        }
        vfs.flush(&caller, ino, fh, 1).await
    };
    let done = work.await;
    let released = vfs.release(ino, fh, None).await;
    done.and(released)
}

/// Replaces one file again and again, sometimes with an fsync, sometimes removing it first.
async fn replacer(vfs: Arc<Vfs>, known: Arc<Known>, file: u64, mut dice: Dice) {
    let caller = Caller::root();
    for version in 1.. {
        if known.stop.load(Ordering::SeqCst) {
            return;
        }
        let sync = dice.below(3) == 0;
        known.begun[file as usize].store(version, Ordering::SeqCst);
        let (temporary, name) = (format!("tmp{file}"), format!("file{file}"));
        let step = async {
            write_whole(&vfs, &temporary, &content(file, version), sync).await?;
            vfs.rename(&caller, Ino::ROOT, temporary.as_bytes(), Ino::ROOT, name.as_bytes(), 0).await?;
            if sync {
                vfs.fsyncdir(&caller, Ino::ROOT, 0).await?;
                known.durable[file as usize].store(version, Ordering::SeqCst);
            }
            Ok::<(), Errno>(())
        };
        if step.await.is_err() {
            return; // The power is off.
        }
        tokio::task::yield_now().await;
    }
}

async fn logger(vfs: Arc<Vfs>, known: Arc<Known>, mut dice: Dice) {
    let caller = Caller::root();
    let flags = (libc::O_WRONLY | libc::O_APPEND) as u32;
    let Ok((entry, open)) = vfs.create(&caller, Ino::ROOT, b"log", 0o644, 0, flags).await else { return };
    for line in 0.. {
        if known.stop.load(Ordering::SeqCst) {
            break;
        }
        let text = Bytes::from(format!("{line:07}\n"));
        known.lines_begun.store(line + 1, Ordering::SeqCst);
        if vfs.write(&caller, entry.ino, open.fh, 0, text, flags).await.is_err() {
            break;
        }
        if dice.below(4) == 0 {
            if vfs.fsync(&caller, entry.ino, open.fh, true).await.is_err() {
                break;
            }
            known.lines_durable.store(line + 1, Ordering::SeqCst);
        }
        tokio::task::yield_now().await;
    }
    let _ = vfs.release(entry.ino, open.fh, None).await;
}

async fn read_whole(vfs: &Vfs, name: &str) -> Result<Vec<u8>, Errno> {
    let caller = Caller::root();
    let entry = vfs.lookup(&caller, Ino::ROOT, name.as_bytes()).await?;
    let open = vfs.open(&caller, entry.ino, libc::O_RDONLY as u32).await?;
    let mut bytes = Vec::new();
    loop {
        let parts = vfs.read(&caller, entry.ino, open.fh, bytes.len() as u64, 1 << 20).await?;
        let before = bytes.len();
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        if bytes.len() == before {
            break;
        }
    }
    vfs.release(entry.ino, open.fh, None).await?;
    Ok(bytes)
}

async fn round(seed: u64) {
    let mut dice = Dice::new(seed);
    let store = Arc::new(PowerCutStore::new(formatted().await).expect("in memory"));
    let disk = Arc::new(PowerCutDir::new());
    let (volume, vfs) = open(store.clone(), disk.clone()).await;
    let known = Arc::new(Known::default());
    let mut tasks: Vec<_> = (0..FILES).map(|f| tokio::spawn(replacer(vfs.clone(), known.clone(), f, Dice::new(dice.next())))).collect();
    tasks.push(tokio::spawn(logger(vfs.clone(), known.clone(), Dice::new(dice.next()))));
    tokio::time::sleep(Duration::from_micros(500 + dice.below(60_000) as u64)).await;
    // What is confirmed is read before the cut: a confirmation that comes later proves nothing about it.
    let durable: Vec<u64> = known.durable.iter().map(|v| v.load(Ordering::SeqCst)).collect();
    let lines_durable = known.lines_durable.load(Ordering::SeqCst);
    let torn = if dice.below(2) == 0 { Unsynced::Whole } else { Unsynced::Torn };
    // The disk first: after it no object comes or goes, so whatever the metadata says later must fit what the disk holds.
    let objects = Arc::new(disk.cut(&Seeded(Mutex::new(Dice::new(dice.next()))), torn));
    let survivors = if dice.below(3) == 0 { usize::MAX } else { dice.below(store.unsynced().await + 1) };
    let after = store.cut(survivors).await.expect("in memory");
    known.stop.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.expect("no panic");
    }
    let begun: Vec<u64> = known.begun.iter().map(|v| v.load(Ordering::SeqCst)).collect();
    drop(vfs);
    // It cannot store anything any more; that it says so is all we ask of it.
    let _ = volume.close().await;

    let store: Arc<dyn Store> = Arc::new(after);
    let (volume, vfs) = open(store.clone(), objects.clone()).await;
    for file in 0..FILES {
        let (low, high) = (durable[file as usize], begun[file as usize]);
        match read_whole(&vfs, &format!("file{file}")).await {
            Ok(bytes) => {
                let version = (low.max(1)..=high).find(|v| bytes == content(file, *v));
                assert!(version.is_some(), "seed {seed}: file{file} has {} bytes of no version in {low}..={high}", bytes.len());
            }
            Err(Errno::NOENT) => assert_eq!(low, 0, "seed {seed}: file{file} is gone, version {low} was durable"),
            Err(errno) => panic!("seed {seed}: file{file}: {errno}"),
        }
    }
    let log = match read_whole(&vfs, "log").await {
        Ok(bytes) => String::from_utf8(bytes).unwrap_or_else(|_| panic!("seed {seed}: bytes in the log that nobody wrote")),
        Err(Errno::NOENT) if lines_durable == 0 => String::new(),
        Err(errno) => panic!("seed {seed}: the log: {errno}"),
    };
    let lines: Vec<&str> = log.lines().collect();
    let whole = log.len() == 8 * lines.len() && lines.iter().enumerate().all(|(i, line)| *line == format!("{i:07}"));
    assert!(whole, "seed {seed}: the log is not a prefix of what was appended");
    let range = lines_durable..=known.lines_begun.load(Ordering::SeqCst);
    assert!(range.contains(&(lines.len() as u64)), "seed {seed}: {} lines, expected {range:?}", lines.len());
    drop(vfs);
    volume.close().await.expect("closes");
    let (findings, _) = fsck(&Stores { store, setting: setting(), objects }).await.expect("checked");
    assert!(findings.is_empty(), "seed {seed}: {findings:?}");
}

#[test]
fn what_was_synced_survives_power_cuts() {
    let rounds = size(60, 1000);
    let mut dice = Dice::new(seed("power cuts"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    for _ in 0..rounds {
        runtime.block_on(round(dice.next()));
    }
    println!("power cuts: {rounds} rounds: nothing synced lost, no wrong byte, metadata clean");
}
