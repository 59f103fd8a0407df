//! Behaviour of whole caches: the other client's files, limits, sharing, disks that fail.

use super::*;
use crate::env::ManualClock;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use tempfile::TempDir;

/// The volume whose cache the fixture is, as JuiceFS 1.4.1 left it.
const UUID: &str = "b1683e3c-d169-4431-b656-9c18d69fe736";
const BLOCK_BYTES: u32 = 64 << 10;
/// For operations that should succeed, on a machine however busy.
const LONG: Duration = Duration::from_secs(30);

fn pattern(len: u32) -> Bytes {
    (0..len).map(|n| (n % 251) as u8).collect()
}

fn block(slice: u64, len: u32) -> BlockId {
    BlockId { slice, index: 0, len }
}

/// No limits but those a test sets: the disk of the machine may be nearly full.
fn unlimited() -> CacheOptions {
    CacheOptions { free_ratio: 0.0, scan_interval: Duration::ZERO, ..CacheOptions::default() }
}

fn open(dirs: &[&Path], options: &CacheOptions, patience: Duration) -> DiskCache {
    open_at(dirs, options, patience, Arc::new(SystemClock::new()))
}

fn open_at(dirs: &[&Path], options: &CacheOptions, patience: Duration, clock: Arc<dyn Clock>) -> DiskCache {
    let dirs: Vec<PathBuf> = dirs.iter().map(|dir| dir.to_path_buf()).collect();
    let config = DiskCacheConfig { uuid: UUID, hash_prefix: false, block_bytes: BLOCK_BYTES, queue_bytes: 1 << 30, options, dirs: &dirs };
    DiskCache::with(&config, patience, clock).expect("there are directories")
}

fn single(temp: &TempDir) -> DiskCache {
    open(&[temp.path()], &unlimited(), LONG)
}

/// A clock that begins now: the scan in the background sees the times the disk gave to files, and the later one counts.
fn manual_clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap()))
}

/// Writes a block and waits for it.
fn put(cache: &DiskCache, block: BlockId) {
    cache.put(&block, &pattern(block.len));
    cache.flush(LONG);
}

async fn whole(cache: &DiskCache, block: BlockId) -> Option<Bytes> {
    cache.get(&block, 0..block.len).await
}

fn raw(dir: &Path, block: BlockId) -> PathBuf {
    dir.join(UUID).join("raw").join(block.key(false))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn fixture() -> TempDir {
    let temp = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cache");
    let copied = std::process::Command::new("cp").arg("-r").arg(source).arg(temp.path().join("c")).status().unwrap();
    assert!(copied.success());
    temp
}

fn fixture_blocks() -> [(BlockId, Bytes); 4] {
    let large = pattern(150_000);
    [
        (BlockId { slice: 1, index: 1, len: 65_536 }, large.slice(65_536..131_072)),
        (BlockId { slice: 1, index: 2, len: 18_928 }, large.slice(131_072..)),
        (block(2, 38), Bytes::from_static(b"hello world, hello world, hello world\n")),
        (block(3, 33_000), Bytes::from(vec![b'x'; 33_000])),
    ]
}

#[tokio::test]
async fn the_other_client_s_directories_are_read() {
    let temp = fixture();
    let (one, two) = (temp.path().join("c/one"), temp.path().join("c/two"));
    let lock = fs::read(one.join(UUID).join(".lock")).unwrap();
    let cache = open(&[&two, &one], &unlimited(), LONG);
    for (id, bytes) in fixture_blocks() {
        assert_eq!(whole(&cache, id).await, Some(bytes.clone()), "{id}");
        assert_eq!(cache.get(&id, 5..30).await, Some(bytes.slice(5..30)), "{id}");
    }
    assert_eq!((cache.stats().blocks, cache.stats().damaged), (4, 0));
    drop(cache);
    assert_eq!(fs::read(one.join(UUID).join(".lock")).unwrap(), lock, "its name for the directory stays");
}

#[test]
fn our_files_are_those_of_the_other_client() {
    let (theirs, ours) = (fixture(), tempfile::tempdir().unwrap());
    let (one, two) = (theirs.path().join("c/one"), theirs.path().join("c/two"));
    let cache = single(&ours);
    for (id, bytes) in fixture_blocks() {
        cache.put(&id, &bytes);
        cache.flush(LONG);
        let expected = fs::read(raw(&one, id)).or_else(|_| fs::read(raw(&two, id))).unwrap();
        assert_eq!(fs::read(raw(ours.path(), id)).unwrap(), expected, "{id}");
        assert_eq!(mode(&raw(ours.path(), id)), 0o600);
    }
    assert_eq!(mode(&ours.path().join(UUID).join("raw/chunks/0")), 0o700);
    assert_eq!(fs::read(ours.path().join(UUID).join(".lock")).unwrap().len(), 36);
    // Where a client looks that knows another placement (data §6.2).
    assert_eq!([fnv1(b""), fnv1(b"a"), fnv1(b"foobar")], [0x811c_9dc5, 0x050c_5d7e, 0x31f0_b262]);
    let shared = tempfile::tempdir().unwrap();
    let cache = open(&[shared.path()], &CacheOptions { mode: 0o664, ..unlimited() }, LONG);
    put(&cache, block(1, 10));
    assert_eq!(mode(&raw(shared.path(), block(1, 10))), 0o664);
    assert_eq!(mode(&shared.path().join(UUID).join("raw")), 0o775);
}

#[tokio::test]
async fn damage_is_a_miss_and_the_file_goes() {
    let temp = tempfile::tempdir().unwrap();
    let (cache, id) = (single(&temp), block(7, 40_000));
    let path = raw(temp.path(), id);
    for at in [0, 20_000, 39_999, 40_000, 40_007] {
        put(&cache, id);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(whole(&cache, id).await, None, "byte {at}");
        assert!(!path.exists() && !cache.contains(&id));
    }
    for len in [0, 1, 39_999, 40_000, 40_007] {
        put(&cache, id);
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len).unwrap();
        assert_eq!(cache.get(&id, 0..1).await, None, "{len} bytes");
        assert!(!path.exists());
    }
    let stats = cache.stats();
    assert_eq!((stats.damaged, stats.blocks, stats.used_bytes), (10, 0, 0));
}

#[tokio::test]
async fn files_that_are_read_again_stay_open_until_they_change_or_rest() {
    let temp = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    let cache = open_at(&[temp.path()], &unlimited(), LONG, clock.clone());
    let id = block(7, 100_000);
    put(&cache, id);
    let dir = &cache.dirs[0].dir;
    assert_eq!(dir.read_at_once(&id, 0..10), None, "not before it was checked");
    assert_eq!(cache.get(&id, 40_000..40_010).await, Some(pattern(100_000).slice(40_000..40_010)));
    assert_eq!(dir.read_at_once(&id, 33_000..65_000), Some(pattern(100_000).slice(33_000..65_000)), "of the same piece");
    assert_eq!(dir.read_at_once(&id, 33_000..66_000), None, "of another one");
    assert_eq!(whole(&cache, id).await, Some(pattern(100_000)));
    assert_eq!(dir.read_at_once(&id, 33_000..66_000), Some(pattern(100_000).slice(33_000..66_000)));
    // It is replaced, as with a number that is given out again.
    let other: Bytes = pattern(100_000).iter().map(|byte| byte ^ 1).collect();
    cache.put(&id, &other);
    cache.flush(LONG);
    assert_eq!(whole(&cache, id).await, Some(other.clone()));
    assert_eq!(dir.read_at_once(&id, 0..100_000), Some(other));
    clock.advance(Duration::from_secs(60));
    dir.close_idle();
    assert_eq!(dir.read_at_once(&id, 0..10), None, "closed");
    // Removed by us, and by somebody else.
    assert!(whole(&cache, id).await.is_some() && dir.read_at_once(&id, 0..10).is_some());
    fs::remove_file(raw(temp.path(), id)).unwrap();
    dir.close_idle();
    assert_eq!(whole(&cache, id).await, None);
    put(&cache, id);
    assert!(whole(&cache, id).await.is_some());
    cache.remove(&id);
    cache.flush(LONG);
    assert_eq!(whole(&cache, id).await, None);
}

#[tokio::test]
async fn staged_blocks_are_read_and_never_touched() {
    let temp = tempfile::tempdir().unwrap();
    let (cache, id) = (single(&temp), block(7, 5));
    let path = raw(temp.path(), id);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(temp.path().join("staged"), b"abcde").unwrap();
    fs::hard_link(temp.path().join("staged"), &path).unwrap();
    assert_eq!(whole(&cache, id).await.as_deref(), Some(&b"abcde"[..]));
    assert!(!cache.contains(&id), "not counted, so never evicted");
    fs::write(&path, b"abc").unwrap();
    assert_eq!(whole(&cache, id).await, None);
    assert!(path.exists());
}

#[tokio::test]
async fn two_caches_share_a_directory() {
    let temp = tempfile::tempdir().unwrap();
    let options = CacheOptions { scan_interval: Duration::from_millis(20), ..unlimited() };
    let (one, two) = (single(&temp), open(&[temp.path()], &options, LONG));
    put(&one, block(1, 1000));
    put(&one, block(2, 1000));
    assert_eq!(whole(&two, block(1, 1000)).await, Some(pattern(1000)), "found by its name");
    assert!(two.contains(&block(1, 1000)));
    let until = std::time::Instant::now() + LONG;
    while two.stats().blocks < 2 {
        assert!(std::time::Instant::now() < until, "a scan finds what was never read");
        std::thread::yield_now();
    }
    assert_eq!(two.stats().used_bytes, 2 * (1000 + 4096));
    one.remove(&block(1, 1000));
    one.flush(LONG);
    while whole(&two, block(1, 1000)).await.is_some() {
        assert!(std::time::Instant::now() < until, "a removed file is closed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fs::remove_file(raw(temp.path(), block(2, 1000))).unwrap();
    while two.stats().blocks > 0 {
        assert!(std::time::Instant::now() < until, "a scan finds what is gone");
        std::thread::yield_now();
    }
    // Both write the same at once.
    for n in 10..60 {
        one.put(&block(n, 3000), &pattern(3000));
        two.put(&block(n, 3000), &pattern(3000));
    }
    one.flush(LONG);
    two.flush(LONG);
    for n in 10..60 {
        assert_eq!(whole(&one, block(n, 3000)).await, Some(pattern(3000)));
    }
    assert_eq!(one.stats().damaged + two.stats().damaged, 0);
}

#[tokio::test]
async fn several_directories() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let cache = open(&[a.path(), b.path()], &unlimited(), LONG);
    for n in 0..40 {
        put(&cache, block(n, 100));
    }
    let mut paths = [a.path(), b.path()];
    paths.sort();
    for n in 0..40 {
        let home = fnv1(block(n, 100).key(false).as_bytes()) as usize % 2;
        assert!(raw(paths[home], block(n, 100)).exists() && !raw(paths[1 - home], block(n, 100)).exists());
        assert_eq!(whole(&cache, block(n, 100)).await, Some(pattern(100)));
    }
    assert_eq!((cache.stats().blocks, cache.stats().hits, cache.stats().misses), (40, 40, 0));
    drop(cache);
    // Alone again: half are here.
    let alone = open(&[paths[0]], &unlimited(), LONG);
    let mut here = 0;
    for n in 0..40 {
        here += u32::from(whole(&alone, block(n, 100)).await.is_some());
    }
    assert!((5..35).contains(&here), "{here}");
}

#[tokio::test]
async fn limits_are_kept() {
    let cost = 10_000 + 4096;
    for eviction in [Eviction::TwoRandom, Eviction::Lru, Eviction::None] {
        let temp = tempfile::tempdir().unwrap();
        let clock = manual_clock();
        let options = CacheOptions { size_bytes: Some(20 * cost), eviction, ..unlimited() };
        let cache = open_at(&[temp.path()], &options, LONG, clock.clone());
        for n in 0..100 {
            put(&cache, block(n, 10_000));
            clock.advance(Duration::from_secs(1));
            assert!(cache.stats().used_bytes <= 20 * cost);
            if n >= 5 {
                // Read all the time.
                whole(&cache, block(5, 10_000)).await;
            }
        }
        let stats = cache.stats();
        let files = fs::read_dir(raw(temp.path(), block(0, 1)).parent().unwrap()).unwrap().count() as u64;
        assert_eq!(files, stats.blocks);
        match eviction {
            Eviction::None => assert_eq!((stats.blocks, stats.evictions, stats.drops), (20, 0, 80)),
            _ => assert_eq!((stats.writes, stats.writes - stats.evictions), (100, stats.blocks)),
        }
        if eviction == Eviction::Lru {
            assert!(cache.contains(&block(5, 10_000)) && cache.contains(&block(99, 10_000)) && !cache.contains(&block(50, 10_000)));
        }
    }
    let temp = tempfile::tempdir().unwrap();
    let cache = open(&[temp.path()], &CacheOptions { items: 7, size_bytes: Some(1 << 20), ..unlimited() }, LONG);
    for n in 0..30 {
        put(&cache, block(n, 10));
        assert!(cache.stats().blocks <= 7);
    }
    put(&cache, block(99, 1 << 20));
    assert!(cache.stats().blocks >= 6 && !cache.contains(&block(99, 1 << 20)), "what never fits evicts nothing");
}

#[tokio::test]
async fn old_blocks_expire() {
    let temp = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    let cache = open_at(&[temp.path()], &CacheOptions { expire: Duration::from_secs(60), ..unlimited() }, LONG, clock.clone());
    for n in 0..5 {
        put(&cache, block(n, 10));
    }
    clock.advance(Duration::from_secs(50));
    assert!(whole(&cache, block(3, 10)).await.is_some());
    clock.advance(Duration::from_secs(50));
    cache.dirs[0].dir.expire();
    cache.dirs[0].dir.expire();
    assert_eq!((0..5).filter(|n| cache.contains(&block(*n, 10))).collect::<Vec<_>>(), [3]);
    assert!(!raw(temp.path(), block(0, 10)).exists());
}

#[tokio::test]
async fn a_directory_may_vanish() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("cache");
    let cache = open(&[&dir], &unlimited(), LONG);
    put(&cache, block(1, 1000));
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(whole(&cache, block(1, 1000)).await, None);
    put(&cache, block(1, 1000));
    assert_eq!(whole(&cache, block(1, 1000)).await, Some(pattern(1000)));
    assert!(cache.dirs[0].dir.prepare().unwrap(), "the lock file is made again");
    assert_eq!(cache.stats().failures, 0);
}

#[tokio::test]
async fn a_disk_that_hangs_costs_some_patience_and_then_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let patience = Duration::from_millis(400);
    let cache = open(&[temp.path()], &unlimited(), patience);
    put(&cache, block(9, 10));
    // Opening a pipe without a writer hangs like a disk that does not answer.
    let pipes: Vec<PathBuf> = (0..4).map(|n| raw(temp.path(), block(n, 10))).collect();
    for pipe in &pipes {
        let path = std::ffi::CString::new(pipe.as_os_str().as_bytes()).unwrap();
        // SAFETY: the path is a C string.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    }
    let before = std::time::Instant::now();
    let mut asked = 0;
    while cache.dirs[0].dir.allows() {
        assert_eq!(whole(&cache, block(asked % 4, 10)).await, None);
        asked += 1;
        assert!(before.elapsed() < LONG, "it is still asked");
    }
    assert!(asked >= 3 && before.elapsed() >= 3 * patience / 2);
    let (failures, before) = (cache.stats().failures, std::time::Instant::now());
    for _ in 0..1000 {
        assert_eq!(whole(&cache, block(9, 10)).await, None);
        cache.put(&block(77, 10), &pattern(10));
    }
    assert!(before.elapsed() < LONG / 2, "nobody waits for it");
    assert_eq!((cache.stats().failures, cache.contains(&block(77, 10))), (failures, false));
    // Lets go of the threads. A pipe that nobody has open any more refuses a writer.
    for pipe in pipes {
        let _ = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(pipe);
    }
}

#[tokio::test]
async fn a_disk_that_fails_is_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    let cache = open_at(&[temp.path()], &unlimited(), LONG, clock.clone());
    cache.flush(LONG);
    // Neither can anything be read in a place that is no directory, nor written.
    fs::write(temp.path().join(UUID).join("raw"), b"").unwrap();
    assert_eq!(whole(&cache, block(1, 10)).await, None);
    for n in 1..9 {
        put(&cache, block(n, 10));
    }
    let stats = cache.stats();
    assert_eq!((stats.writes, stats.failures, stats.drops), (0, 3, 8));
    fs::remove_file(temp.path().join(UUID).join("raw")).unwrap();
    put(&cache, block(1, 10));
    assert!(!cache.contains(&block(1, 10)), "still left alone");
    clock.advance(health::REST);
    put(&cache, block(1, 10));
    assert_eq!(whole(&cache, block(1, 10)).await, Some(pattern(10)));
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let temp = tempfile::tempdir().unwrap();
    let mut cache = single(&temp);
    cache.queue_bytes = 1000;
    cache.queued_bytes.store(500, Ordering::Relaxed);
    put(&cache, block(1, 501));
    assert!(!cache.contains(&block(1, 501)));
    put(&cache, block(1, 500));
    assert!(cache.contains(&block(1, 500)));
    cache.queued_bytes.store(0, Ordering::Relaxed);
    put(&cache, block(2, 5000));
    assert!(cache.contains(&block(2, 5000)), "one is always taken");
    assert_eq!((cache.queued_bytes.load(Ordering::Relaxed), cache.stats().drops), (0, 1));
}

#[test]
fn what_is_kept() {
    let temp = tempfile::tempdir().unwrap();
    let kept = |options: CacheOptions, n: u64| {
        let cache = open(&[temp.path()], &CacheOptions { free_ratio: 0.0, ..options }, LONG);
        let blocks = [block(n, BLOCK_BYTES), block(n + 1, 100), block(n + 2, BLOCK_BYTES), block(n + 3, 100)];
        for id in &blocks[..2] {
            cache.put_fetched(id, &pattern(id.len));
        }
        for id in &blocks[2..] {
            cache.put_written(id, &pattern(id.len));
        }
        cache.flush(LONG);
        blocks.map(|id| cache.contains(&id))
    };
    assert_eq!(kept(unlimited(), 10), [true, true, false, true]);
    assert_eq!(kept(CacheOptions { partial_only: true, ..unlimited() }, 20), [false, true, false, true]);
    assert_eq!(kept(CacheOptions { large_write: true, ..unlimited() }, 30), [true, true, true, true]);
}

#[tokio::test]
async fn what_is_written_replaces_what_has_its_name() {
    let temp = tempfile::tempdir().unwrap();
    let (part, full) = (block(1, 100), block(2, BLOCK_BYTES));
    let cache = single(&temp);
    for id in [part, full] {
        // As before the metadata were set back, and its id given out again.
        cache.put_fetched(&id, &pattern(id.len));
        cache.flush(LONG);
        cache.put_written(&id, &Bytes::from(vec![7; id.len as usize]));
    }
    cache.flush(LONG);
    assert_eq!(whole(&cache, part).await, Some(Bytes::from(vec![7; 100])));
    assert_eq!(whole(&cache, full).await, None);
    assert_eq!(cache.stats().blocks, 1);
}

#[test]
fn what_is_left_over_goes_and_what_is_there_is_found() {
    let temp = tempfile::tempdir().unwrap();
    put(&single(&temp), block(1, 1000));
    let dir = raw(temp.path(), block(1, 1000)).parent().unwrap().to_path_buf();
    let old = std::time::SystemTime::now() - Duration::from_secs(120);
    for (name, age) in [("2_0_10.0123456789abcdef.tmp", old), ("3_0_10.tmp", old), ("4_0_10.tmp", std::time::SystemTime::now())] {
        fs::File::create(dir.join(name)).unwrap().set_modified(age).unwrap();
    }
    fs::write(dir.join("notes"), b"x").unwrap();
    fs::write(dir.join("5000_0_10"), pattern(10)).unwrap();
    let cache = single(&temp);
    let listed = || {
        let mut left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        left
    };
    let until = std::time::Instant::now() + LONG;
    while !cache.contains(&block(1, 1000)) || listed() != ["1_0_1000", "4_0_10.tmp", "5000_0_10", "notes"] {
        assert!(std::time::Instant::now() < until, "{:?}", listed());
        std::thread::yield_now();
    }
    assert_eq!(cache.stats().blocks, 1, "names that are none, or in the wrong place, are not ours");
}

/// A small filesystem in memory, gone with the test; `None` if this user may not mount.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new(size: &str) -> Option<SmallDisk> {
        let temp = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(temp.path());
        mount.output().is_ok_and(|output| output.status.success()).then(|| SmallDisk(temp))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_small_disk_keeps_its_free_part_and_a_full_one_takes_nothing() {
    let Some(disk) = SmallDisk::new("4m") else {
        println!("skipped: a disk of four megabytes needs root");
        return;
    };
    let path = disk.0.path();
    let cache = open(&[path], &CacheOptions { free_ratio: 0.25, ..unlimited() }, LONG);
    for n in 0..100 {
        put(&cache, block(n, BLOCK_BYTES));
    }
    let stats = cache.stats();
    assert!((1_500_000..3 << 20).contains(&stats.used_bytes) && stats.failures == 0 && stats.evictions > 40, "{stats:?}");
    for n in 0..100 {
        if let Some(bytes) = whole(&cache, block(n, BLOCK_BYTES)).await {
            assert_eq!(bytes, pattern(BLOCK_BYTES));
        }
    }
    for n in 0..100 {
        cache.remove(&block(n, BLOCK_BYTES));
    }
    cache.flush(LONG);
    assert_eq!(cache.stats().used_bytes, 0);
    // Others fill it to the last byte, and nothing that could be evicted is left.
    let filler = fs::write(path.join("filler"), vec![1; 4 << 20]);
    assert!(filler.is_err());
    for n in 200..210 {
        put(&cache, block(n, BLOCK_BYTES));
        assert!(whole(&cache, block(n, BLOCK_BYTES)).await.is_none());
    }
    assert_eq!(cache.stats().failures, 0);
    fs::remove_file(path.join("filler")).unwrap();
    put(&cache, block(300, BLOCK_BYTES));
    assert!(whole(&cache, block(300, BLOCK_BYTES)).await.is_some());
}
