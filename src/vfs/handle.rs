//! The handle table: what the kernel holds open of this mount.

use crate::types::{Attr, Errno, Ino};
use crate::vfs::listing::Listing;
use crate::vfs::reader::Streams;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock};

/// An inode that is open as a file in this mount, however many handles it has.
pub(crate) struct OpenInode {
    /// The inode, as the volume numbers it.
    pub ino: Ino,
    /// Attributes as last answered. A file that another process unlinked has no record any more; while its data last it is answered from these.
    attr: Mutex<Attr>,
    /// As the inode was when a lock was granted and the kernel told to ask for its attributes anew, the last time. Held while a lock is granted.
    pub told: tokio::sync::Mutex<Option<Attr>>,
    losses: LossesTold,
}

/// Up to which loss of the store (`Store::losses`) somebody was told that what it wrote may be gone. Each handle is told once, and one that is
/// opened later only if nobody was before it.
#[derive(Default)]
pub(crate) struct LossesTold(AtomicU64);

impl LossesTold {
    fn new(losses: u64) -> LossesTold {
        LossesTold(AtomicU64::new(losses))
    }

    /// Fails once for what the store has lost since the last call.
    pub fn tell(&self, losses: u64) -> Result<(), Errno> {
        if self.0.fetch_max(losses, Relaxed) < losses { Err(Errno::IO) } else { Ok(()) }
    }
}

impl OpenInode {
    pub fn attr(&self) -> Attr {
        self.attr.lock().expect("never poisoned: no code under it panics").clone()
    }

    pub fn length(&self) -> u64 {
        self.attr.lock().expect("never poisoned: no code under it panics").length
    }

    pub fn note(&self, attr: &Attr) {
        self.attr.lock().expect("never poisoned: no code under it panics").clone_from(attr);
    }
}

/// One open of a file.
pub(crate) struct FileHandle {
    pub inode: Arc<OpenInode>,
    pub writable: bool,
    /// Opened for appending: its writes go around the kernel's pages.
    pub append: bool,
    /// Owners that took POSIX locks through this handle and have not closed it since. What is left at its release belongs to the open
    /// file description itself (`F_OFD_SETLK`), for which the kernel sends no unlock.
    lock_owners: Mutex<BTreeSet<u64>>,
    /// Where it is being read.
    pub streams: Arc<Streams>,
    /// Something was written through this handle since its last flush.
    wrote: std::sync::atomic::AtomicBool,
    losses: LossesTold,
    /// A write or an fsync was called off, and nothing has been stored through this handle since.
    called_off: std::sync::atomic::AtomicBool,
}

impl FileHandle {
    pub fn ino(&self) -> Ino {
        self.inode.ino
    }

    /// A sync through this handle succeeds only if nothing of what it wrote may be lost; see `LossesTold`.
    pub fn tell_losses(&self, losses: u64) -> Result<(), Errno> {
        // The inode has been told with the handle.
        let _ = self.inode.losses.tell(losses);
        self.losses.tell(losses)
    }

    pub fn add_lock_owner(&self, owner: u64) {
        self.owners().insert(owner);
    }

    pub fn remove_lock_owner(&self, owner: u64) {
        self.owners().remove(&owner);
    }

    /// Those that remain, in order; none remain afterwards.
    pub fn take_lock_owners(&self) -> BTreeSet<u64> {
        std::mem::take(&mut *self.owners())
    }

    /// Notes whether its user was called off.
    pub fn set_called_off(&self, called_off: bool) {
        self.called_off.store(called_off, std::sync::atomic::Ordering::Relaxed);
    }

    pub fn was_called_off(&self) -> bool {
        self.called_off.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub fn set_wrote(&self) {
        self.wrote.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Whether something was written since this was last asked.
    pub fn take_wrote(&self) -> bool {
        self.wrote.swap(false, std::sync::atomic::Ordering::Relaxed)
    }

    fn owners(&self) -> std::sync::MutexGuard<'_, BTreeSet<u64>> {
        self.lock_owners.lock().expect("never poisoned: no code under it panics")
    }
}

/// One open of a directory.
pub(crate) struct DirHandle {
    pub ino: Ino,
    /// Held across reads of the store: two calls on one handle continue the same listing, so the second waits for the first.
    pub listing: tokio::sync::Mutex<Listing>,
    pub losses: LossesTold,
}

#[derive(Clone)]
enum Handle {
    File(Arc<FileHandle>),
    Dir(Arc<DirHandle>),
}

#[derive(Default)]
struct Table {
    handles: HashMap<u64, Handle>,
    /// Open files and how many handles each has.
    inodes: HashMap<Ino, (Arc<OpenInode>, usize)>,
    /// The last number given out; numbers are never used twice.
    last: u64,
}

/// All handles of one mount. Numbers that are not in it were never given out, or are released: EBADF.
#[derive(Default)]
pub(crate) struct Handles {
    table: RwLock<Table>,
    /// Of the whole mount.
    pub losses: LossesTold,
}

impl Handles {
    /// A new handle of a file with the attributes it was opened with. `losses` are those of the store before it was opened.
    pub fn open_file(&self, ino: Ino, attr: &Attr, writable: bool, append: bool, losses: u64) -> u64 {
        let mut table = self.write();
        let (inode, count) = table.inodes.entry(ino).or_insert_with(|| {
            (Arc::new(OpenInode { ino, attr: Mutex::new(attr.clone()), told: Default::default(), losses: LossesTold::new(losses) }), 0)
        });
        *count += 1;
        inode.note(attr);
        let losses = LossesTold::new(inode.losses.0.load(Relaxed));
        let (inode, lock_owners, streams) = (inode.clone(), Mutex::default(), Arc::default());
        let (wrote, called_off) = Default::default();
        let handle = FileHandle { inode, writable, append, lock_owners, streams, wrote, called_off, losses };
        table.add(Handle::File(Arc::new(handle)))
    }

    /// A new handle of a directory; likewise.
    pub fn open_dir(&self, ino: Ino, losses: u64) -> u64 {
        self.write().add(Handle::Dir(Arc::new(DirHandle { ino, listing: Default::default(), losses: LossesTold::new(losses) })))
    }

    /// The open file `fh`, which must be a handle of `ino`.
    pub fn file(&self, ino: Ino, fh: u64) -> Result<Arc<FileHandle>, Errno> {
        match self.read().handles.get(&fh) {
            Some(Handle::File(file)) if file.ino() == ino => Ok(file.clone()),
            _ => Err(Errno::BADF),
        }
    }

    /// The open directory `fh`, which must be a handle of `ino`.
    pub fn dir(&self, ino: Ino, fh: u64) -> Result<Arc<DirHandle>, Errno> {
        match self.read().handles.get(&fh) {
            Some(Handle::Dir(dir)) if dir.ino == ino => Ok(dir.clone()),
            _ => Err(Errno::BADF),
        }
    }

    /// The inode, if it is open as a file.
    pub fn inode(&self, ino: Ino) -> Option<Arc<OpenInode>> {
        self.read().inodes.get(&ino).map(|(inode, _)| inode.clone())
    }

    /// Takes the handle of a file out of the table; `None` if it is not there (any more).
    pub fn close_file(&self, ino: Ino, fh: u64) -> Option<Arc<FileHandle>> {
        let mut table = self.write();
        let Some(Handle::File(file)) =
            table.handles.get(&fh).filter(|handle| matches!(handle, Handle::File(file) if file.ino() == ino)).cloned()
        else {
            return None;
        };
        table.handles.remove(&fh);
        if let Some((_, count)) = table.inodes.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                table.inodes.remove(&ino);
            }
        }
        Some(file)
    }

    /// Takes the handle of a directory out of the table.
    pub fn close_dir(&self, ino: Ino, fh: u64) {
        let mut table = self.write();
        if matches!(table.handles.get(&fh), Some(Handle::Dir(dir)) if dir.ino == ino) {
            table.handles.remove(&fh);
        }
    }

    /// All open files, by number.
    pub fn files(&self) -> Vec<(u64, Ino)> {
        let mut files: Vec<_> = self
            .read()
            .handles
            .iter()
            .filter_map(|(fh, handle)| match handle {
                Handle::File(file) => Some((*fh, file.ino())),
                Handle::Dir(_) => None,
            })
            .collect();
        files.sort_unstable();
        files
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Table> {
        self.table.read().expect("never poisoned: no code under it panics")
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Table> {
        self.table.write().expect("never poisoned: no code under it panics")
    }
}

impl Table {
    fn add(&mut self, handle: Handle) -> u64 {
        self.last += 1;
        self.handles.insert(self.last, handle);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_open_as_long_as_one_handle_is() {
        let handles = Handles::default();
        let attr = crate::vfs::tests::attr();
        let a = handles.open_file(Ino(5), &attr, false, false, 0);
        let b = handles.open_file(Ino(5), &Attr { length: 9, ..attr }, true, false, 0);
        assert_ne!(a, b);
        assert_eq!(handles.inode(Ino(5)).map(|inode| inode.attr().length), Some(9));
        assert!(handles.close_file(Ino(5), a).is_some());
        assert!(handles.close_file(Ino(5), a).is_none());
        assert!(handles.file(Ino(5), a).is_err());
        assert!(handles.inode(Ino(5)).is_some());
        assert_eq!(handles.files(), [(b, Ino(5))]);
        assert!(handles.close_file(Ino(5), b).is_some());
        assert!(handles.inode(Ino(5)).is_none());
    }

    #[test]
    fn a_number_is_good_only_for_its_inode_and_kind() {
        let handles = Handles::default();
        let file = handles.open_file(Ino(5), &crate::vfs::tests::attr(), false, false, 0);
        let dir = handles.open_dir(Ino(6), 0);
        assert!(handles.file(Ino(5), file).is_ok());
        assert!(handles.file(Ino(6), file).is_err());
        assert!(handles.dir(Ino(5), file).is_err());
        assert!(handles.dir(Ino(6), dir).is_ok());
        assert!(handles.file(Ino(6), dir).is_err());
        handles.close_dir(Ino(5), file);
        assert!(handles.file(Ino(5), file).is_ok());
        assert!(handles.close_file(Ino(6), dir).is_none());
        handles.close_dir(Ino(6), dir);
        assert!(handles.dir(Ino(6), dir).is_err());
    }

    #[test]
    fn each_handle_is_told_once_what_is_lost() {
        let handles = Handles::default();
        let attr = crate::vfs::tests::attr();
        let open = |losses| {
            let fh = handles.open_file(Ino(5), &attr, true, false, losses);
            handles.file(Ino(5), fh).unwrap()
        };
        let (first, second) = (open(3), open(3));
        assert_eq!(first.tell_losses(3), Ok(()));
        // Nobody was told of the fourth loss when this one was opened: what the others wrote may be gone.
        let third = open(4);
        assert_eq!([&third, &third, &first, &first].map(|handle| handle.tell_losses(4)), [Err(Errno::IO), Ok(()), Err(Errno::IO), Ok(())]);
        assert_eq!([&open(4), &second].map(|handle| handle.tell_losses(4)), [Ok(()), Err(Errno::IO)]);
    }

    #[test]
    fn owners_that_closed_the_handle_do_not_remain() {
        let handles = Handles::default();
        let fh = handles.open_file(Ino(5), &crate::vfs::tests::attr(), false, false, 0);
        let file = handles.file(Ino(5), fh).unwrap();
        file.add_lock_owner(1);
        file.add_lock_owner(2);
        file.remove_lock_owner(1);
        assert_eq!(file.take_lock_owners().into_iter().collect::<Vec<_>>(), [2]);
        assert!(file.take_lock_owners().is_empty());
    }
}
