//! A mount over a volume in memory, request by request.

use super::*;
use crate::block::{BlockConfig, BlockStore, Tuning};
use crate::cache::MemoryCache;
use crate::chunk::Chunks;
use crate::env::{ManualClock, Share};
use crate::meta::setting::Setting;
use crate::meta::store::embedded::EmbeddedStore;
use crate::meta::store::{Store, Write};
use crate::meta::{AtimeMode, MetaConfig, codec, key};
use crate::object::memory::MemoryStore;
use crate::types::{Kind, Time};
use crate::vfs::writer::WritersConfig;
use bytes::Bytes;
use std::sync::Mutex;
use tokio::sync::mpsc;

const BLOCK_BYTES: u32 = 256 << 10;
const NOW: u64 = 1_700_000_000;

/// A volume; each `process` has its own session and mount.
pub(super) struct World {
    pub store: Arc<EmbeddedStore>,
    objects: Arc<MemoryStore>,
    pub clock: Arc<ManualClock>,
}

/// What was forgotten.
#[derive(Default)]
struct Forgotten(Mutex<Vec<Ino>>);

impl KernelCache for Forgotten {
    fn forget_attr(&self, ino: Ino) {
        self.0.lock().unwrap().push(ino);
    }
    fn forget_entry(&self, _parent: Ino, _name: &[u8]) {}
}

/// Takes at most `room` entries: name, cookie, inode and, with attributes, length.
pub(super) struct Sink {
    pub room: usize,
    pub taken: Vec<(String, u64, Ino, Option<u64>)>,
}

impl DirSink for Sink {
    fn add(&mut self, item: &DirItem<'_>) -> bool {
        if self.taken.len() == self.room {
            return false;
        }
        let length = item.entry.as_ref().map(|entry| entry.attr.length);
        self.taken.push((String::from_utf8(item.name.to_vec()).unwrap(), item.cookie, item.ino, length));
        true
    }
}

impl World {
    pub async fn new() -> World {
        let store = Arc::new(EmbeddedStore::open_in_memory().unwrap());
        let root = Attr { kind: Kind::Dir, mode: 0o777, nlink: 2, length: 4096, ..tests::attr() };
        let mut writes = vec![Write::Set(key::inode(Ino::ROOT), codec::encode_attr(&root)), Write::IncrBy(key::NEXT_INODE, 1)];
        writes.extend(
            [key::DIR_DATA_LENGTH, key::DIR_USED_SPACE, key::DIR_USED_INODES]
                .map(|hash| Write::HSet(hash, key::decimal(1), key::decimal(0))),
        );
        store.commit(&[], &writes, &[]).await.unwrap();
        let clock = Arc::new(ManualClock::new(Duration::from_secs(NOW)));
        World { store, objects: Arc::new(MemoryStore::new()), clock }
    }

    async fn process(&self, config: VfsConfig) -> Arc<Vfs> {
        self.process_on(self.store.clone(), config).await
    }

    /// A process that reaches the volume through this store.
    pub async fn process_on(&self, store: Arc<dyn Store>, config: VfsConfig) -> Arc<Vfs> {
        let meta = Arc::new(Meta::new(MetaConfig {
            store,
            clock: self.clock.clone(),
            setting: Setting::new("vol", "uuid", "file", "/", 256),
            duties: mpsc::channel(64).0,
            atime: AtimeMode::Never,
        }));
        meta.new_session("/mnt").await.unwrap();
        let blocks = self.blocks(&meta);
        let chunks = Chunks::new(meta.clone(), blocks.clone());
        let writers = Writers::new(WritersConfig { meta: meta.clone(), blocks: blocks.clone(), memory: Share::alone(64 << 20) });
        Vfs::new(meta, blocks, chunks, writers, config)
    }

    fn blocks(&self, meta: &Arc<Meta>) -> Arc<BlockStore> {
        BlockStore::new(BlockConfig {
            objects: self.objects.clone(),
            prefix: "vol".into(),
            hash_prefix: false,
            block_bytes: BLOCK_BYTES,
            codec: Default::default(),
            cache: MemoryCache::new(16 << 20),
            disk: None,
            frames: meta.clone(),
            tuning: Tuning { uploads_max: 4, downloads_max: 4, ..Tuning::default() },
        })
    }

    /// Merges the slices of a file's first chunk, as the background work of that process does.
    pub async fn compact(&self, vfs: &Vfs, ino: Ino) -> bool {
        Chunks::new(vfs.meta.clone(), self.blocks(&vfs.meta)).compact(ino, 0).await.unwrap()
    }

    async fn mount(&self) -> Arc<Vfs> {
        self.process(VfsConfig { xattr: true, ..VfsConfig::default() }).await
    }

    fn now(&self) -> Time {
        crate::env::Clock::now(&*self.clock)
    }
}

const ROOT: Ino = Ino(1);
const RDWR: u32 = libc::O_RDWR as u32;
const APPEND: u32 = (libc::O_RDWR | libc::O_APPEND) as u32;

fn root() -> Caller {
    Caller::root()
}

impl Vfs {
    async fn made(&self, name: &str) -> (Ino, u64) {
        let (entry, open) = self.create(&root(), ROOT, name.as_bytes(), 0o644, 0, RDWR).await.unwrap();
        (entry.ino, open.fh)
    }

    async fn put(&self, ino: Ino, fh: u64, offset: u64, text: &str) {
        let data = Bytes::copy_from_slice(text.as_bytes());
        assert_eq!(self.write(&root(), ino, fh, offset, data, RDWR).await, Ok(text.len() as u32));
    }

    async fn text(&self, ino: Ino, fh: u64) -> Result<String, Errno> {
        let data = self.read(&root(), ino, fh, 0, 1 << 20).await?.concat();
        Ok(String::from_utf8(data).unwrap())
    }

    async fn stat(&self, ino: Ino) -> Result<Attr, Errno> {
        self.getattr(&root(), ino, None).await.map(|reply| reply.attr)
    }

    async fn list(&self, dir: Ino, fh: u64, offset: u64, plus: bool, room: usize) -> Vec<(String, u64, Ino, Option<u64>)> {
        let mut sink = Sink { room, taken: Vec::new() };
        self.readdir(&root(), dir, fh, offset, plus, &mut sink).await.unwrap();
        sink.taken
    }
}

fn range(kind: LockKind, start: u64, end: u64) -> Lock {
    Lock { start, end, kind, pid: 7 }
}

#[tokio::test]
async fn a_file_is_written_seen_and_read_back() {
    let world = World::new().await;
    let vfs = world.mount().await;
    let (ino, fh) = vfs.made("a").await;
    vfs.put(ino, fh, 0, "hello").await;
    // Seen before it is committed, by number and by name.
    assert_eq!(vfs.stat(ino).await.unwrap().length, 5);
    assert_eq!(vfs.lookup(&root(), ROOT, b"a").await.unwrap().attr.length, 5);
    assert_eq!(vfs.text(ino, fh).await.unwrap(), "hello");
    assert_eq!(vfs.flush(&root(), ino, fh, 1).await, Ok(()));
    assert_eq!(vfs.fsync(&root(), ino, fh, false).await, Ok(()));
    assert_eq!(vfs.release(ino, fh, None).await, Ok(()));
    assert_eq!(vfs.text(ino, fh).await, Err(Errno::BADF));
    assert!(!vfs.meta.open_files().is_open(ino));
    let other = world.mount().await;
    let open = other.open(&root(), ino, libc::O_RDONLY as u32).await.unwrap();
    assert_eq!(other.text(ino, open.fh).await.unwrap(), "hello");
    assert_eq!(other.write(&root(), ino, open.fh, 0, Bytes::from_static(b"x"), 0).await, Err(Errno::BADF));
}

#[tokio::test]
async fn chmod_of_a_dirty_file_keeps_its_length_and_a_set_time_sticks() {
    let world = World::new().await;
    let vfs = world.mount().await;
    let (ino, fh) = vfs.made("a").await;
    vfs.put(ino, fh, 0, "hello").await;
    let change = SetAttrRequest { mode: Some(0o100_600), ..SetAttrRequest::default() };
    let attr = vfs.setattr(&root(), ino, change).await.unwrap().attr;
    assert_eq!((attr.mode, attr.length), (0o600, 5));
    let then = Time { sec: 5, nsec: 6 };
    vfs.put(ino, fh, 5, " world").await;
    world.clock.advance(Duration::from_secs(1));
    let change = SetAttrRequest { mtime: Some(SetTime::At(then)), ..SetAttrRequest::default() };
    assert_eq!(vfs.setattr(&root(), ino, change).await.unwrap().attr.mtime, then);
    vfs.flush(&root(), ino, fh, 1).await.unwrap();
    vfs.release(ino, fh, None).await.unwrap();
    let attr = vfs.stat(ino).await.unwrap();
    assert_eq!((attr.mtime, attr.length), (then, 11));
}

#[tokio::test]
async fn syncfs_stores_what_any_handle_wrote() {
    let world = World::new().await;
    let (a, b) = (world.mount().await, world.mount().await);
    let (ino, fh) = a.made("a").await;
    a.put(ino, fh, 0, "hello").await;
    assert_eq!(b.stat(ino).await.unwrap().length, 0);
    assert_eq!(a.syncfs(&root()).await, Ok(()));
    assert_eq!(b.stat(ino).await.unwrap().length, 5);
}

#[tokio::test]
async fn a_new_name_leads_to_all_that_was_written() {
    let world = World::new().await;
    let (a, b) = (world.mount().await, world.mount().await);
    let seen = async |name: &str| b.lookup(&root(), ROOT, name.as_bytes()).await.unwrap().attr.length;
    let (ino, fh) = a.made("new").await;
    a.put(ino, fh, 0, "renamed").await;
    a.rename(&root(), ROOT, b"new", ROOT, b"name", 0).await.unwrap();
    assert_eq!(seen("name").await, 7);
    a.put(ino, fh, 0, "linked to").await;
    a.link(&root(), ino, ROOT, b"link").await.unwrap();
    assert_eq!(seen("link").await, 9);
    let (other, other_fh) = a.made("other").await;
    a.put(other, other_fh, 0, "exchanged").await;
    a.put(ino, fh, 0, "exchanged, too").await;
    a.rename(&root(), ROOT, b"name", ROOT, b"other", libc::RENAME_EXCHANGE).await.unwrap();
    assert_eq!((seen("name").await, seen("other").await), (9, 14));
}

#[tokio::test]
async fn truncation_by_size_and_by_open() {
    let world = World::new().await;
    let vfs = world.mount().await;
    let (ino, fh) = vfs.made("a").await;
    vfs.put(ino, fh, 0, "hello").await;
    let change = SetAttrRequest { size: Some(2), fh: Some(fh), ..SetAttrRequest::default() };
    assert_eq!(vfs.setattr(&root(), ino, change).await.unwrap().attr.length, 2);
    assert_eq!(vfs.text(ino, fh).await.unwrap(), "he");
    vfs.put(ino, fh, 2, "llo").await;
    let open = vfs.open(&root(), ino, (libc::O_WRONLY | libc::O_TRUNC) as u32).await.unwrap();
    assert_eq!(vfs.stat(ino).await.unwrap().length, 0);
    assert_eq!(vfs.text(ino, fh).await.unwrap(), "");
    vfs.put(ino, open.fh, 3, "x").await;
    assert_eq!(vfs.text(ino, fh).await.unwrap(), "\0\0\0x");
    let (_, again) = vfs.create(&root(), ROOT, b"a", 0o644, 0, (libc::O_RDWR | libc::O_TRUNC) as u32).await.unwrap();
    assert_eq!(vfs.text(ino, again.fh).await.unwrap(), "");
    let exclusive = (libc::O_RDWR | libc::O_EXCL) as u32;
    assert_eq!(vfs.create(&root(), ROOT, b"a", 0o644, 0, exclusive).await, Err(Errno::EXIST));
}

#[tokio::test]
async fn a_found_file_that_may_not_be_open_to_the_caller_is_looked_up_again() {
    let world = World::new().await;
    let vfs = world.mount().await;
    let (ino, fh) = vfs.made("a").await;
    vfs.release(ino, fh, None).await.unwrap();
    let stranger = Caller { uid: 9, gid: 9, ..Caller::default() };
    assert_eq!(vfs.create(&stranger, ROOT, b"a", 0o644, 0, RDWR).await, Err(Errno::STALE));
    assert!(!vfs.meta.open_files().is_open(ino));
    assert!(vfs.create(&stranger, ROOT, b"a", 0o644, 0, libc::O_RDONLY as u32).await.is_ok());
}

#[tokio::test]
async fn appends_land_at_the_real_end_and_go_around_the_pages() {
    let world = World::new().await;
    let (a, b) = (world.mount().await, world.mount().await);
    let (ino, fh) = a.made("log").await;
    a.release(ino, fh, None).await.unwrap();
    let (on_a, on_b) = (a.open(&root(), ino, APPEND).await.unwrap(), b.open(&root(), ino, APPEND).await.unwrap());
    assert!(on_a.direct_io && on_b.direct_io);
    for (vfs, fh, text) in [(&a, on_a.fh, "one "), (&b, on_b.fh, "two "), (&a, on_a.fh, "three")] {
        vfs.write(&root(), ino, fh, 0, Bytes::from_static(text.as_bytes()), APPEND).await.unwrap();
    }
    assert_eq!(b.text(ino, on_b.fh).await.unwrap(), "one two three");
    // The flag belongs to the request.
    a.put(ino, on_a.fh, 0, "ONE").await;
    assert_eq!(a.text(ino, on_a.fh).await.unwrap(), "ONE two three");
    assert!(!a.open(&root(), ino, (libc::O_RDONLY | libc::O_APPEND) as u32).await.unwrap().direct_io);
}

#[tokio::test]
async fn pages_are_kept_over_opens_until_another_writes() {
    let world = World::new().await;
    let (a, b) = (world.mount().await, world.mount().await);
    let (ino, fh) = a.made("a").await;
    a.put(ino, fh, 0, "hello").await;
    a.flush(&root(), ino, fh, 1).await.unwrap();
    a.release(ino, fh, None).await.unwrap();
    let open = |vfs: Arc<Vfs>| async move { vfs.open(&root(), ino, RDWR).await.unwrap() };
    assert!(open(a.clone()).await.keep_cache);
    let on_b = open(b.clone()).await;
    assert!(!on_b.keep_cache);
    b.put(ino, on_b.fh, 0, "HELLO").await;
    b.flush(&root(), ino, on_b.fh, 1).await.unwrap();
    assert!(!open(a.clone()).await.keep_cache);
    assert!(open(a).await.keep_cache);
}

#[tokio::test]
async fn a_file_removed_by_another_process_answers_for_a_minute() {
    let world = World::new().await;
    let (a, b) = (world.mount().await, world.mount().await);
    let (ino, fh) = a.made("a").await;
    a.put(ino, fh, 0, "hello").await;
    a.flush(&root(), ino, fh, 1).await.unwrap();
    // The file has grown since the handle last heard of it.
    let on_b = b.open(&root(), ino, APPEND).await.unwrap();
    b.write(&root(), ino, on_b.fh, 0, Bytes::from_static(b", world"), APPEND).await.unwrap();
    b.release(ino, on_b.fh, None).await.unwrap();
    b.unlink(&root(), ROOT, b"a").await.unwrap();
    assert_eq!(a.text(ino, fh).await.unwrap(), "hello, world");
    let attr = a.stat(ino).await.unwrap();
    assert_eq!((attr.length, attr.nlink), (12, 0));
    assert_eq!(a.text(ino, fh).await.unwrap(), "hello, world");
    // Whoever has no handle is sent to look again.
    assert_eq!(b.stat(ino).await, Err(Errno::STALE));
    assert_eq!(b.open(&root(), ino, RDWR).await, Err(Errno::STALE));
    world.clock.advance(Duration::from_secs(60));
    assert_eq!(a.stat(ino).await, Err(Errno::STALE));
    assert_eq!(a.text(ino, fh).await, Err(Errno::STALE));
    a.put(ino, fh, 0, "lost").await;
    assert_eq!(a.flush(&root(), ino, fh, 1).await, Err(Errno::BADF));
}

#[tokio::test]
async fn a_file_of_this_process_lives_until_its_last_handle() {
    let world = World::new().await;
    let vfs = world.mount().await;
    let (ino, fh) = vfs.made("a").await;
    vfs.put(ino, fh, 0, "hello").await;
    vfs.unlink(&root(), ROOT, b"a").await.unwrap();
    let attr = vfs.stat(ino).await.unwrap();
    assert_eq!((attr.nlink, attr.length), (0, 5));
    assert_eq!(vfs.text(ino, fh).await.unwrap(), "hello");
    vfs.release(ino, fh, None).await.unwrap();
    assert_eq!(vfs.stat(ino).await, Err(Errno::STALE));
    let (entry, open) = vfs.tmpfile(&root(), ROOT, 0o600, 0, RDWR).await.unwrap();
    assert_eq!(entry.attr.nlink, 0);
    vfs.put(entry.ino, open.fh, 0, "temporary").await;
    let linked = vfs.link(&root(), entry.ino, ROOT, b"kept").await.unwrap();
    assert_eq!((linked.attr.nlink, linked.attr.length), (1, 9));
    vfs.release(entry.ino, open.fh, None).await.unwrap();
    assert_eq!(vfs.lookup(&root(), ROOT, b"kept").await.unwrap().attr.length, 9);
}

#[tokio::test]
async fn a_subdirectory_is_a_root_of_its_own() {
    let world = World::new().await;
    let whole = world.mount().await;
    let home = whole.mkdir(&root(), ROOT, b"home", 0o777, 0o22).await.unwrap();
    assert_eq!(home.attr.mode, 0o755);
    let below = whole.mkdir(&root(), home.ino, b"below", 0o755, 0).await.unwrap();
    let sub = world.process(VfsConfig { root: home.ino, ..VfsConfig::default() }).await;
    assert_eq!(sub.lookup(&root(), ROOT, b"below").await.unwrap().ino, below.ino);
    for (dir, name) in [(ROOT, b"..".as_slice()), (ROOT, b"."), (below.ino, b"..")] {
        assert_eq!(sub.lookup(&root(), dir, name).await.unwrap().ino, ROOT);
    }
    assert_eq!(sub.lookup(&root(), ROOT, b"home").await, Err(Errno::NOENT));
    let fh = sub.opendir(&root(), ROOT).await.unwrap().fh;
    let list: Vec<_> = sub.list(ROOT, fh, 0, false, 9).await.into_iter().map(|(name, _, ino, _)| (name, ino)).collect();
    assert_eq!(list, [(".".into(), ROOT), ("..".into(), ROOT), ("below".into(), below.ino)]);
    let fh = sub.opendir(&root(), below.ino).await.unwrap().fh;
    assert_eq!(sub.list(below.ino, fh, 1, false, 1).await, [("..".into(), 2, ROOT, None)]);
    // Moved out from under it while it is known here: what is above is still not shown.
    whole.rename(&root(), home.ino, b"below", ROOT, b"out", 0).await.unwrap();
    assert_eq!(sub.lookup(&root(), below.ino, b"..").await.unwrap().attr.mode, 0o755);
}

#[tokio::test]
async fn nothing_changes_on_a_read_only_mount() {
    let world = World::new().await;
    let rw = world.mount().await;
    let (ino, _) = rw.made("a").await;
    let ro = world.process(VfsConfig { read_only: true, xattr: true, ..VfsConfig::default() }).await;
    let c = root();
    assert_eq!(ro.unlink(&c, ROOT, b"a").await, Err(Errno::ROFS));
    assert_eq!(ro.mkdir(&c, ROOT, b"d", 0o755, 0).await, Err(Errno::ROFS));
    assert_eq!(ro.create(&c, ROOT, b"b", 0o644, 0, RDWR).await, Err(Errno::ROFS));
    assert_eq!(ro.open(&c, ino, RDWR).await, Err(Errno::ROFS));
    assert_eq!(ro.open(&c, ino, libc::O_TRUNC as u32).await, Err(Errno::ROFS));
    assert_eq!(ro.setattr(&c, ino, SetAttrRequest::default()).await, Err(Errno::ROFS));
    assert_eq!(ro.setxattr(&c, ino, b"user.a", Bytes::new(), 0, false).await, Err(Errno::ROFS));
    assert!(ro.open(&c, ino, libc::O_RDONLY as u32).await.is_ok());
}

#[tokio::test]
async fn listings_go_on_where_they_were_and_tell_the_present() {
    let world = World::new().await;
    let vfs = world.mount().await;
    for i in 0..5 {
        let (ino, fh) = vfs.made(&format!("f{i}")).await;
        vfs.release(ino, fh, None).await.unwrap();
    }
    let fh = vfs.opendir(&root(), ROOT).await.unwrap().fh;
    let names = |list: Vec<(String, u64, Ino, Option<u64>)>| list.into_iter().map(|item| (item.0, item.1)).collect::<Vec<_>>();
    let first = vfs.list(ROOT, fh, 0, true, 4).await;
    assert_eq!(first[2].3, Some(0));
    assert_eq!(names(first), [(".".into(), 1), ("..".into(), 2), ("f0".into(), 4), ("f1".into(), 5)]);
    // Between two requests one file grows, one is replaced, one goes.
    let (grown, growing) = (vfs.lookup(&root(), ROOT, b"f2").await.unwrap().ino, vfs.made("new").await);
    let open = vfs.open(&root(), grown, RDWR).await.unwrap();
    vfs.put(grown, open.fh, 0, "hello").await;
    vfs.put(growing.0, growing.1, 0, "longer").await;
    vfs.rename(&root(), ROOT, b"new", ROOT, b"f3", 0).await.unwrap();
    vfs.unlink(&root(), ROOT, b"f4").await.unwrap();
    let rest = vfs.list(ROOT, fh, 5, true, 9).await;
    assert_eq!(rest[0], ("f2".into(), 6, grown, Some(5)));
    assert_eq!(rest[1], ("f3".into(), 7, growing.0, Some(6)));
    // Gone: shown as it was when the page was read, but nothing is said of it.
    assert_eq!((rest[2].0.as_str(), rest[2].1, rest[2].3), ("f4", 8, None));
    assert!(vfs.list(ROOT, fh, 8, true, 9).await.is_empty());
    assert_eq!(names(vfs.list(ROOT, fh, 0, false, 9).await).len(), 6);
    vfs.releasedir(ROOT, fh).await.unwrap();
    let mut sink = Sink { room: 1, taken: Vec::new() };
    assert_eq!(vfs.readdir(&root(), ROOT, fh, 0, false, &mut sink).await, Err(Errno::BADF));
}

#[tokio::test]
async fn a_grant_drops_the_kernels_attributes_and_a_release_stores_the_data() {
    let world = World::new().await;
    let (a, b) = (world.mount().await, world.mount().await);
    let forgotten = Arc::new(Forgotten::default());
    b.set_kernel_cache(forgotten.clone());
    let (ino, on_a) = a.made("a").await;
    let on_b = b.open(&root(), ino, RDWR).await.unwrap().fh;
    for flock in [true, false] {
        let (lock, unlock) = (range(LockKind::Exclusive, 0, i64::MAX as u64), range(LockKind::Unlock, 0, i64::MAX as u64));
        a.setlk(&root(), ino, on_a, 1, lock, flock, false).await.unwrap();
        a.put(ino, on_a, 0, if flock { "flock" } else { "fcntl" }).await;
        assert_eq!(b.setlk(&root(), ino, on_b, 2, lock, flock, false).await, Err(Errno::AGAIN));
        assert!(forgotten.0.lock().unwrap().is_empty());
        let waiting = {
            let b = b.clone();
            tokio::spawn(async move { b.setlk(&root(), ino, on_b, 2, lock, flock, true).await })
        };
        tokio::task::yield_now().await;
        a.setlk(&root(), ino, on_a, 1, unlock, flock, false).await.unwrap();
        assert_eq!(waiting.await.unwrap(), Ok(()));
        assert_eq!(std::mem::take(&mut *forgotten.0.lock().unwrap()), [ino]);
        assert_eq!(b.text(ino, on_b).await.unwrap(), if flock { "flock" } else { "fcntl" });
        b.setlk(&root(), ino, on_b, 2, unlock, flock, false).await.unwrap();
    }
}

#[tokio::test]
async fn a_waiter_called_off_holds_nothing() {
    let world = World::new().await;
    let vfs = world.mount().await;
    let (ino, fh) = vfs.made("a").await;
    let lock = range(LockKind::Exclusive, 0, 9);
    vfs.setlk(&root(), ino, fh, 1, lock, false, false).await.unwrap();
    let caller = root();
    let waiting = {
        let (vfs, caller) = (vfs.clone(), caller.clone());
        tokio::spawn(async move { vfs.setlk(&caller, ino, fh, 2, lock, false, true).await })
    };
    tokio::task::yield_now().await;
    caller.cancel.cancel();
    assert_eq!(waiting.await.unwrap(), Err(Errno::INTR));
    vfs.setlk(&root(), ino, fh, 1, range(LockKind::Unlock, 0, 9), false, false).await.unwrap();
    assert_eq!(vfs.getlk(&root(), ino, fh, 3, lock).await, Ok(None));
}

#[tokio::test]
async fn locks_end_with_the_descriptor_the_handle_or_the_open_file() {
    let world = World::new().await;
    let vfs = world.mount().await;
    let (ino, fh) = vfs.made("a").await;
    let other = vfs.open(&root(), ino, RDWR).await.unwrap().fh;
    let lock = range(LockKind::Exclusive, 5, 9);
    let held = |owner| {
        let vfs = vfs.clone();
        async move { vfs.getlk(&root(), ino, other, owner, lock).await.unwrap() }
    };
    // POSIX: any close(2) of the inode by the owner.
    vfs.setlk(&root(), ino, fh, 1, lock, false, false).await.unwrap();
    assert_eq!(held(99).await, Some(lock));
    vfs.flush(&root(), ino, other, 2).await.unwrap();
    assert_eq!(held(99).await, Some(lock));
    vfs.flush(&root(), ino, other, 1).await.unwrap();
    assert_eq!(held(99).await, None);
    // The open file description: with its last descriptor, although nobody flushes for its owner.
    vfs.setlk(&root(), ino, fh, 3, lock, false, false).await.unwrap();
    vfs.setlk(&root(), ino, fh, 4, range(LockKind::Exclusive, 0, i64::MAX as u64), true, false).await.unwrap();
    vfs.flush(&root(), ino, fh, 1).await.unwrap();
    assert_eq!(held(99).await, Some(lock));
    vfs.release(ino, fh, Some(4)).await.unwrap();
    assert_eq!(held(99).await, None);
    vfs.setlk(&root(), ino, other, 5, lock, true, false).await.unwrap();
}

#[tokio::test]
async fn ranges() {
    let world = World::new().await;
    let vfs = world.mount().await;
    let c = root();
    let (ino, fh) = vfs.made("a").await;
    let far = 200 << 20;
    vfs.put(ino, fh, 0, "hello").await;
    vfs.put(ino, fh, far, "far").await;
    let (data, hole) = (libc::SEEK_DATA as u32, libc::SEEK_HOLE as u32);
    assert_eq!(vfs.lseek(&c, ino, fh, 0, data).await, Ok(0));
    assert_eq!(vfs.lseek(&c, ino, fh, 0, hole).await, Ok(5));
    assert_eq!(vfs.lseek(&c, ino, fh, 5, data).await, Ok(far));
    assert_eq!(vfs.lseek(&c, ino, fh, far, hole).await, Ok(far + 3));
    assert_eq!(vfs.lseek(&c, ino, fh, far + 3, data).await, Err(Errno::NXIO));
    assert_eq!(vfs.lseek(&c, ino, fh, 0, libc::SEEK_SET as u32).await, Err(Errno::INVAL));
    let punch = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
    vfs.fallocate(&c, ino, fh, 1, 3, punch).await.unwrap();
    assert_eq!(&vfs.text(ino, fh).await.unwrap()[..6], "h\0\0\0o\0");
    vfs.fallocate(&c, ino, fh, far, 3, punch).await.unwrap();
    assert_eq!(vfs.lseek(&c, ino, fh, 5, data).await, Err(Errno::NXIO));
    assert_eq!(vfs.fallocate(&c, ino, fh, 0, 1, libc::FALLOC_FL_COLLAPSE_RANGE as u32).await, Err(Errno::NOTSUP));
    let (to, to_fh) = vfs.made("b").await;
    vfs.put(ino, fh, 1, "ell").await;
    assert_eq!(vfs.copy_file_range(&c, ino, fh, 0, to, to_fh, 2, 5, 0).await, Ok(5));
    assert_eq!(vfs.text(to, to_fh).await.unwrap(), "\0\0hello");
    assert_eq!(vfs.copy_file_range(&c, to, to_fh, 0, to, to_fh, 1, 5, 0).await, Err(Errno::INVAL));
    assert_eq!(vfs.copy_file_range(&c, to, to_fh, 0, to, to_fh, 7, 5, 1).await, Err(Errno::INVAL));
}

#[tokio::test]
async fn extended_attributes() {
    let world = World::new().await;
    let vfs = world.mount().await;
    let c = root();
    let (ino, _) = vfs.made("a").await;
    let value = Bytes::from_static(b"v");
    assert_eq!(vfs.setxattr(&c, ino, b"user.a", value.clone(), libc::XATTR_REPLACE as u32, false).await, Err(Errno::NODATA));
    assert_eq!(vfs.setxattr(&c, ino, b"user.a", value.clone(), 0, false).await, Ok(()));
    assert_eq!(vfs.setxattr(&c, ino, b"user.a", value.clone(), libc::XATTR_CREATE as u32, false).await, Err(Errno::EXIST));
    assert_eq!(vfs.getxattr(&c, ino, b"user.a").await, Ok(value.clone()));
    assert_eq!(vfs.listxattr(&c, ino).await, Ok(Bytes::from_static(b"user.a\0")));
    assert_eq!(vfs.setxattr(&c, ino, b"user.a", vec![0; 65_537].into(), 0, false).await, Err(Errno::TOOBIG));
    assert_eq!(vfs.getxattr(&c, ino, b"security.capability").await, Err(Errno::NODATA));
    assert_eq!(vfs.setxattr(&c, ino, b"system.posix_acl_access", value, 0, false).await, Err(Errno::NOTSUP));
    assert_eq!(vfs.removexattr(&c, ino, b"user.a").await, Ok(()));
    assert_eq!(vfs.removexattr(&c, ino, b"user.a").await, Err(Errno::NODATA));
    assert_eq!(vfs.getxattr(&c, Ino(999), b"user.a").await, Err(Errno::NODATA));
    let off = world.process(VfsConfig::default()).await;
    assert_eq!(off.listxattr(&c, ino).await, Err(Errno::NOSYS));
}

#[tokio::test]
async fn symbolic_links_and_special_files() {
    let world = World::new().await;
    let vfs = world.mount().await;
    let c = root();
    let link = vfs.symlink(&c, ROOT, b"l", b"some/where").await.unwrap();
    assert_eq!(vfs.readlink(&c, link.ino).await, Ok(Bytes::from_static(b"some/where")));
    assert_eq!(vfs.symlink(&c, ROOT, b"m", &[b'a'; 4096]).await, Err(Errno::NAMETOOLONG));
    let pipe = vfs.mknod(&c, ROOT, b"p", libc::S_IFIFO | 0o600, 0, 0).await.unwrap();
    assert_eq!((pipe.attr.kind, pipe.attr.mode), (Kind::Fifo, 0o600));
    assert_eq!(vfs.mknod(&c, ROOT, b"d", libc::S_IFDIR | 0o600, 0, 0).await, Err(Errno::PERM));
    assert_eq!(vfs.lookup(&c, ROOT, &[b'a'; 256]).await, Err(Errno::NAMETOOLONG));
    assert_eq!(vfs.rmdir(&c, ROOT, b".").await, Err(Errno::INVAL));
    assert!(vfs.stat(pipe.ino).await.unwrap().mtime <= world.now());
    vfs.destroy().await;
}

#[test]
fn requests_move_between_threads() {
    fn is_send<T: Send>(_: T) {}
    #[allow(dead_code)]
    fn all(vfs: &Vfs, c: &Caller, sink: &mut (dyn DirSink + Send), lock: Lock) {
        is_send(vfs.readdir(c, ROOT, 1, 0, true, sink));
        is_send(vfs.setlk(c, ROOT, 1, 1, lock, true, true));
        is_send(vfs.create(c, ROOT, b"a", 0, 0, 0));
        is_send(vfs.release(ROOT, 1, None));
        is_send(vfs.copy_file_range(c, ROOT, 1, 0, ROOT, 1, 0, 0, 0));
        is_send(vfs.setattr(c, ROOT, SetAttrRequest::default()));
    }
}
