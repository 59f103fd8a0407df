//! Objects as files below a directory.
//!
//! Invariant: a file at an object's path is whole and durable, and so are the directories that lead to it. A put writes and syncs a
//! temporary file, renames it, then syncs the directory; whoever dies in between leaves a temporary file, or an object nobody names yet.
//! Directories are never removed: another process may just have found one there and count on its being durable.

use crate::env::{Buffer, Clock, Reserve, SystemClock, write_all_direct};
use crate::object::dirsync::DirSync;
use crate::object::memory::clip;
use crate::object::{ObjectError, ObjectMeta, ObjectStore};
use crate::types::BoxFuture;
use bytes::Bytes;
use lru::LruCache;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;
use tracing::warn;

/// Where unfinished objects are written; no key may begin with it.
const TEMPORARY_DIR: &str = ".tmp";
/// Age after which an unfinished object has no writer any more: a put lasts seconds, even on a disk that struggles.
const TEMPORARY_AGE_MAX_S: i64 = 3600;
/// Puts on threads at once: enough to share directory syncs well, and a fraction of the runtime's 512 blocking threads.
const PUTS_MAX: usize = 32;
/// Gets on threads at once, apart from puts: a reader does not wait for a disk that flushes.
const GETS_MAX: usize = 64;
/// Deletes and listings on threads at once: background work, which must leave the disk to the foreground.
const DELETES_MAX: usize = 4;
/// Directories known to be durable. One holds the blocks of a thousand slices; a forgotten one costs one fsync more.
const KNOWN_DIRS_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("4096 is not zero");
/// Longest component of a key: what every Linux filesystem takes as a name.
const COMPONENT_BYTES_MAX: usize = 255;
/// Longest key; with the root before it, a path stays below PATH_MAX.
const KEY_BYTES_MAX: usize = 1024;

/// An object store in a directory of a local filesystem. Several processes may use one directory.
pub struct FileStore {
    files: Arc<Files>,
    puts: Arc<Semaphore>,
    gets: Arc<Semaphore>,
    deletes: Arc<Semaphore>,
}

struct Files {
    root: PathBuf,
    next_temporary: AtomicU64,
    known_dirs: Mutex<LruCache<PathBuf, ()>>,
    dir_sync: DirSync,
    /// Objects are stored only while it is whole.
    reserve: Option<Reserve>,
}

impl FileStore {
    /// Opens the directory, which is made if it is not there, and removes what dead writers left.
    pub fn open(root: PathBuf) -> Result<FileStore, ObjectError> {
        FileStore::open_with(root, None)
    }

    /// The same on a disk on which something else has a reserve.
    pub fn open_beside(root: PathBuf, reserve: Reserve) -> Result<FileStore, ObjectError> {
        FileStore::open_with(root, Some(reserve))
    }

    fn open_with(root: PathBuf, reserve: Option<Reserve>) -> Result<FileStore, ObjectError> {
        let files = Files {
            root,
            next_temporary: AtomicU64::new(0),
            known_dirs: Mutex::new(LruCache::new(KNOWN_DIRS_MAX)),
            dir_sync: DirSync::default(),
            reserve,
        };
        match files.prepare() {
            // A full one, too.
            Err(e) if matches!(classify(&e), ObjectError::Full(_)) && files.root.is_dir() => {}
            // A directory that is there and cannot be written can still be read.
            Err(e) if matches!(classify(&e), ObjectError::Denied(_)) && files.root.is_dir() => {}
            result => result.map_err(|e| classify(&e))?,
        }
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Ok(FileStore { files: Arc::new(files), puts: semaphore(PUTS_MAX), gets: semaphore(GETS_MAX), deletes: semaphore(DELETES_MAX) })
    }

    /// Runs `work` on a thread that may block. The permit goes with it: a caller that gives up does not free a thread that still runs.
    async fn blocking<T: Send + 'static>(
        &self,
        bound: &Arc<Semaphore>,
        work: impl FnOnce(&Files) -> Result<T, ObjectError> + Send + 'static,
    ) -> Result<T, ObjectError> {
        let permit = Arc::clone(bound).acquire_owned().await.expect("these semaphores are never closed");
        let files = Arc::clone(&self.files);
        let task = tokio::task::spawn_blocking(move || {
            let result = work(&files);
            drop(permit);
            result
        });
        task.await.unwrap_or_else(|e| Err(ObjectError::Retry(format!("the I/O thread ended: {e}"))))
    }
}

impl ObjectStore for FileStore {
    fn put<'a>(&'a self, key: &'a str, body: Bytes) -> BoxFuture<'a, Result<(), ObjectError>> {
        Box::pin(async move {
            let path = self.files.path(key)?;
            self.blocking(&self.puts, move |files| files.put(&path, &Content::Bytes(body))).await
        })
    }

    fn put_file<'a>(&'a self, key: &'a str, file: &'a File) -> BoxFuture<'a, Result<(), ObjectError>> {
        Box::pin(async move {
            let path = self.files.path(key)?;
            let file = file.try_clone().map_err(|e| classify(&e))?;
            self.blocking(&self.puts, move |files| files.put(&path, &Content::File(file))).await
        })
    }

    fn get<'a>(&'a self, key: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Bytes, ObjectError>> {
        Box::pin(async move {
            let path = self.files.path(key)?;
            self.blocking(&self.gets, move |_| get(&path, range)).await
        })
    }

    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<ObjectMeta, ObjectError>> {
        Box::pin(async move {
            let path = self.files.path(key)?;
            let found = self.blocking(&self.gets, move |_| fs::metadata(&path).map_err(|e| classify(&e))).await?;
            object_meta(key.into(), &found).ok_or(ObjectError::Missing)
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), ObjectError>> {
        Box::pin(async move {
            let path = self.files.path(key)?;
            // Not synced: a power cut may bring the object back, and then it is a leak that a collection of strays finds.
            let remove = move |_: &Files| match fs::remove_file(&path).map_err(|e| classify(&e)) {
                Err(ObjectError::Missing) => Ok(()),
                result => result,
            };
            self.blocking(&self.deletes, remove).await
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<ObjectMeta>, ObjectError>> {
        Box::pin(async move {
            let (prefix, after) = (prefix.to_owned(), after.to_owned());
            let walk = move |files: &Files| {
                let mut walk = Walk { prefix, after, limit, found: Vec::new() };
                walk.dir(&files.root, "").map_err(|e| classify(&e))?;
                Ok(walk.found)
            };
            self.blocking(&self.deletes, walk).await
        })
    }
}

/// What an object is to hold.
enum Content {
    Bytes(Bytes),
    /// What this file holds, from its beginning.
    File(File),
}

impl Content {
    fn write_to(&self, target: &mut File) -> io::Result<()> {
        match self {
            Content::Bytes(bytes) => write_all_direct(target, bytes),
            Content::File(file) => {
                let mut source = file;
                source.seek(SeekFrom::Start(0))?;
                io::copy(&mut source, target).map(|_| ())
            }
        }
    }
}

impl Files {
    /// The file of a key. Refuses whatever could lead out of the root or to an unfinished object.
    fn path(&self, key: &str) -> Result<PathBuf, ObjectError> {
        let bad = |component: &str| matches!(component, "" | "." | "..") || component.len() > COMPONENT_BYTES_MAX;
        let refused =
            key.len() > KEY_BYTES_MAX || key.contains('\0') || key.split('/').any(bad) || key.split('/').next() == Some(TEMPORARY_DIR);
        if refused { Err(ObjectError::Invalid(format!("not a key for a file: {key:?}"))) } else { Ok(self.root.join(key)) }
    }

    fn prepare(&self) -> io::Result<()> {
        let missing: Vec<&Path> = self.root.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
        for dir in missing.into_iter().rev() {
            make_dir(dir)?;
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            self.dir_sync.sync(parent)?;
        }
        let temporaries = self.root.join(TEMPORARY_DIR);
        make_dir(&temporaries)?;
        let now = SystemClock::new().now().sec;
        for entry in fs::read_dir(&temporaries)? {
            let entry = entry?;
            // One that vanishes meanwhile was finished by its writer.
            if entry.metadata().is_ok_and(|meta| meta.mtime() < now - TEMPORARY_AGE_MAX_S) {
                warn!(file = %entry.path().display(), "removing an unfinished object");
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    fn put(&self, path: &Path, body: &Content) -> Result<(), ObjectError> {
        if self.reserve.as_ref().is_some_and(|reserve| !reserve.is_ready()) {
            return Err(ObjectError::Full(format!("there is no room on the disk of {}", self.root.display())));
        }
        match self.try_put(path, body) {
            // Somebody removed directories by hand: what we knew of them is void.
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.known_dirs().clear();
                self.try_put(path, body)
            }
            result => result,
        }
        .map_err(|e| match e.kind() {
            ErrorKind::NotADirectory => ObjectError::Invalid(format!("a part of {} is an object", path.display())),
            ErrorKind::NotFound => ObjectError::Retry(format!("{} vanished while an object was written", self.root.display())),
            _ => classify(&e),
        })
    }

    fn try_put(&self, path: &Path, body: &Content) -> io::Result<()> {
        let dir = path.parent().expect("a key has a component, so its path lies below the root");
        self.make_dirs(dir)?;
        let temporary = self.write_temporary(body)?;
        if let Err(e) = fs::rename(&temporary, path) {
            let _ = fs::remove_file(&temporary);
            return Err(e);
        }
        self.dir_sync.sync(dir)
    }

    /// Makes a directory below the root and those above it, durable. One that is there already may have been made by another process a
    /// moment ago and not be durable yet, so each is synced when this process first uses it.
    fn make_dirs(&self, dir: &Path) -> io::Result<()> {
        if dir == self.root || self.known_dirs().get(dir).is_some() {
            return Ok(());
        }
        let parent = dir.parent().expect("it lies below the root");
        self.make_dirs(parent)?;
        make_dir(dir)?;
        self.dir_sync.sync(parent)?;
        self.known_dirs().put(dir.into(), ());
        Ok(())
    }

    /// A durable file with this content, under a name nobody else uses.
    fn write_temporary(&self, body: &Content) -> io::Result<PathBuf> {
        loop {
            let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
            let path = self.root.join(TEMPORARY_DIR).join(format!("{}-{number}", std::process::id()));
            let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => file,
                // Left by a dead process of the same number, or in use by one of another process namespace.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    make_dir(&self.root.join(TEMPORARY_DIR))?;
                    continue;
                }
                Err(e) => return Err(e),
            };
            let written = body.write_to(&mut file).and_then(|()| file.sync_data());
            return match written {
                Ok(()) => Ok(path),
                Err(e) => {
                    let _ = fs::remove_file(&path);
                    Err(e)
                }
            };
        }
    }

    fn known_dirs(&self) -> std::sync::MutexGuard<'_, LruCache<PathBuf, ()>> {
        self.known_dirs.lock().expect("never poisoned: no code under it panics")
    }
}

/// Private to the user: the objects hold the data of everybody who uses the volume.
fn make_dir(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

fn get(path: &Path, range: Option<Range<u64>>) -> Result<Bytes, ObjectError> {
    let read = || -> io::Result<Result<Bytes, ObjectError>> {
        let mut file = File::open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Ok(Err(ObjectError::Missing));
        }
        let range = match clip(meta.len(), range.unwrap_or(0..meta.len())) {
            Ok(range) => range,
            Err(e) => return Ok(Err(e)),
        };
        let len = range.end - range.start;
        let mut bytes = Buffer::with_room(len as usize);
        file.seek(SeekFrom::Start(range.start))?;
        // Fewer, if somebody cuts files short under us: the caller, who knows how long the object should be, reports it.
        file.take(len).read_to_end(&mut bytes)?;
        Ok(Ok(bytes.freeze()))
    };
    read().map_err(|e| classify(&e))?
}

fn object_meta(key: String, meta: &fs::Metadata) -> Option<ObjectMeta> {
    meta.is_file().then(|| ObjectMeta { key, size: meta.len(), modified: meta.mtime() })
}

/// A walk in key order that enters only directories which can hold wanted keys.
struct Walk {
    prefix: String,
    after: String,
    limit: usize,
    found: Vec<ObjectMeta>,
}

impl Walk {
    /// `at` is the key prefix of `dir`: empty or with a slash at its end.
    fn dir(&mut self, dir: &Path, at: &str) -> io::Result<()> {
        let mut keys = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            // No key of ours has a name that is not UTF-8.
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if at.is_empty() && name == TEMPORARY_DIR {
                continue;
            }
            // With its slash a directory sorts as the keys in it do.
            keys.push(format!("{at}{name}{}", if entry.file_type()?.is_dir() { "/" } else { "" }));
        }
        keys.sort_unstable();
        for key in keys {
            if self.found.len() >= self.limit {
                break;
            }
            let path = dir.join(&key[at.len()..]);
            let gone = |e: &io::Error| e.kind() == ErrorKind::NotFound;
            if key.ends_with('/') {
                let wanted = key.starts_with(&self.prefix) || self.prefix.starts_with(&key);
                let passed = self.after > key && !self.after.starts_with(&key);
                if wanted && !passed {
                    self.dir(&path, &key).or_else(|e| if gone(&e) { Ok(()) } else { Err(e) })?;
                }
            } else if key.starts_with(&self.prefix) && key > self.after {
                match fs::metadata(&path) {
                    Ok(meta) => self.found.extend(object_meta(key, &meta)),
                    Err(e) if gone(&e) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }
}

fn classify(error: &io::Error) -> ObjectError {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => ObjectError::Missing,
        Some(libc::ENOSPC | libc::EDQUOT) => ObjectError::Full(error.to_string()),
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => ObjectError::Denied(error.to_string()),
        Some(libc::EISDIR | libc::ENAMETOOLONG | libc::EINVAL | libc::EFBIG | libc::ENOTEMPTY) => ObjectError::Invalid(error.to_string()),
        _ => ObjectError::Retry(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, FileStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path().join("deep/objects")).unwrap();
        (dir, store)
    }

    #[tokio::test]
    async fn conforms() {
        let (_dir, store) = store();
        crate::object::conformance::run(&store).await;
    }

    #[tokio::test]
    async fn keys_that_lead_elsewhere_are_refused() {
        let (_dir, store) = store();
        let long = "n".repeat(256);
        for key in ["", "/etc/passwd", "a//b", "a/", "..", "a/../../b", "a/./b", ".tmp/x", ".tmp", "a\0b", &long, &"a/".repeat(600)] {
            assert!(matches!(store.put(key, Bytes::new()).await, Err(ObjectError::Invalid(_))), "{key:?}");
            assert!(matches!(store.get(key, None).await, Err(ObjectError::Invalid(_))), "{key:?}");
            assert!(matches!(store.delete(key).await, Err(ObjectError::Invalid(_))), "{key:?}");
        }
        assert_eq!(store.put("a", Bytes::new()).await, Ok(()));
        assert!(matches!(store.put("a/b", Bytes::new()).await, Err(ObjectError::Invalid(_))), "below an object");
        assert_eq!(store.put("d/e", Bytes::new()).await, Ok(()));
        assert!(matches!(store.put("d", Bytes::new()).await, Err(ObjectError::Invalid(_))), "in place of a directory");
        assert_eq!(temporaries(&store), [""; 0], "a failed put leaves nothing");
    }

    fn temporaries(store: &FileStore) -> Vec<String> {
        let dir = store.files.root.join(TEMPORARY_DIR);
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[tokio::test]
    async fn old_leftovers_go_at_open_and_are_never_listed() {
        let (_dir, store) = store();
        let root = store.files.root.clone();
        for (name, age) in [("1-1", 2 * TEMPORARY_AGE_MAX_S), ("1-2", 60)] {
            let file = File::create(root.join(TEMPORARY_DIR).join(name)).unwrap();
            file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(age as u64)).unwrap();
        }
        let store = FileStore::open(root).unwrap();
        assert_eq!(temporaries(&store), ["1-2"]);
        assert_eq!(store.list("", "", 10).await, Ok(vec![]));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_puts_at_once() {
        let (_dir, store) = store();
        let store = Arc::new(store);
        // The name of a temporary file that is taken is passed over.
        File::create(store.files.root.join(TEMPORARY_DIR).join(format!("{}-0", std::process::id()))).unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..200u32 {
            let store = Arc::clone(&store);
            tasks.spawn(async move {
                let key = format!("vol/chunks/{}/{}/{n}_0_4", n % 2, n % 7);
                store.put(&key, Bytes::copy_from_slice(&n.to_be_bytes())).await.unwrap();
                assert_eq!(store.get(&key, None).await.unwrap()[..], n.to_be_bytes());
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        assert_eq!(store.list("vol/", "", 1000).await.unwrap().len(), 200);
        assert_eq!(temporaries(&store).len(), 1);
    }

    #[tokio::test]
    async fn directories_removed_by_hand_come_back() {
        let (_dir, store) = store();
        store.put("v/a/b/1", Bytes::from_static(b"1")).await.unwrap();
        fs::remove_dir_all(store.files.root.join("v")).unwrap();
        fs::remove_dir_all(store.files.root.join(TEMPORARY_DIR)).unwrap();
        store.put("v/a/b/2", Bytes::from_static(b"2")).await.unwrap();
        assert_eq!(store.get("v/a/b/2", None).await.as_deref(), Ok(&b"2"[..]));
    }

    #[test]
    fn errors_say_what_to_do() {
        let class = |errno| classify(&io::Error::from_raw_os_error(errno));
        assert!(matches!(class(libc::ENOSPC), ObjectError::Full(_)));
        assert!(matches!(class(libc::EDQUOT), ObjectError::Full(_)));
        assert!(matches!(class(libc::EROFS), ObjectError::Denied(_)));
        assert!(matches!(class(libc::EIO), ObjectError::Retry(_)));
        assert_eq!(class(libc::ENOENT), ObjectError::Missing);
    }
}
