//! The filesystem as the kernel asks for it: one method per request, in terms of metadata operations and file data.
//!
//! Knows no kernel structure. Each file holds the methods of one concern; `Vfs` is one mount of a volume.
//! What the kernel is told of a file is its record overlaid with what is still buffered (`attr.rs`).

pub mod reader;
pub mod writer;

mod attr;
mod dir;
mod file;
mod handed;
mod handle;
mod kernel;
mod listing;
mod lock;
mod mount;
mod names;
mod range;
mod seen;
mod told;
mod xattr;

#[cfg(test)]
mod trips_test;
#[cfg(test)]
mod vfs_test;

pub use crate::meta::ops::lock::LockKind;
pub use crate::meta::ops::{SetTime, StatFs};
pub use attr::SetAttrRequest;
pub use dir::{DirItem, DirSink};
pub use kernel::{KernelCache, NoKernelCache};
pub use lock::Lock;

use crate::block::BlockStore;
use crate::chunk::Chunks;
use crate::env::DiskSpace;
use crate::meta::Meta;
use crate::meta::store::Sharing;
use crate::types::{Attr, Caller, Errno, Ino};
use crate::vfs::handed::Handed;
use crate::vfs::handle::Handles;
use crate::vfs::mount::Mount;
use crate::vfs::reader::Reader;
use crate::vfs::seen::Seen;
use crate::vfs::writer::Writers;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use tracing::error;

/// Directories read at once ahead of lookups. More would delay what somebody waits for.
const LOADS_MAX: usize = 4;

/// What makes one mount differ from another of the same volume.
#[derive(Clone, Debug)]
pub struct VfsConfig {
    /// The inode shown as the root.
    pub root: Ino,
    /// Every change is EROFS.
    pub read_only: bool,
    /// The trash appears in the root. Never in a mount of a subdirectory, whose root has another inode.
    pub trash: bool,
    /// Extended attributes are offered.
    pub xattr: bool,
    /// How long the kernel may use attributes.
    pub attr_ttl: Duration,
    /// How long the kernel may use the name of anything but a directory.
    pub entry_ttl: Duration,
    /// How long the kernel may use the name of a directory.
    pub dir_entry_ttl: Duration,
    /// Replaces the umask of every caller.
    pub umask: Option<u16>,
    /// A directory on the only disk that all of the volume lies on, if there is one.
    pub disk: Option<PathBuf>,
}

impl Default for VfsConfig {
    fn default() -> Self {
        let second = Duration::from_secs(1);
        VfsConfig {
            root: Ino::ROOT,
            read_only: false,
            trash: false,
            xattr: false,
            attr_ttl: second,
            entry_ttl: second,
            dir_entry_ttl: second,
            umask: None,
            disk: None,
        }
    }
}

/// A name and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The inode, as the kernel numbers it.
    pub ino: Ino,
    /// Its attributes.
    pub attr: Attr,
    /// How long the name may be used.
    pub entry_ttl: Duration,
    /// How long the attributes may be used.
    pub attr_ttl: Duration,
}

/// Attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttrReply {
    /// The inode, as the kernel numbers it.
    pub ino: Ino,
    /// Its attributes.
    pub attr: Attr,
    /// How long they may be used.
    pub ttl: Duration,
}

/// A new handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenReply {
    /// Its number.
    pub fh: u64,
    /// Reads and writes of this handle go around the kernel's pages.
    pub direct_io: bool,
    /// The kernel's pages of the inode are still right.
    pub keep_cache: bool,
}

/// One mount of a volume.
pub struct Vfs {
    meta: Arc<Meta>,
    writers: Arc<Writers>,
    reader: Reader,
    mount: Mount,
    handles: Handles,
    seen: Seen,
    handed: Handed,
    /// Permits to read whole directories ahead of lookups.
    loads: Arc<Semaphore>,
    kernel: RwLock<Arc<dyn KernelCache>>,
}

impl Vfs {
    /// A mount of the volume that `meta` and `blocks` hold.
    pub fn new(meta: Arc<Meta>, blocks: Arc<BlockStore>, chunks: Arc<Chunks>, writers: Arc<Writers>, config: VfsConfig) -> Arc<Vfs> {
        let vfs = Arc::new(Vfs {
            reader: Reader::new(meta.clone(), blocks, chunks, writers.clone(), config.attr_ttl),
            meta,
            writers,
            mount: Mount::new(config),
            handles: Handles::default(),
            seen: Seen::new(),
            handed: Handed::new(),
            loads: Arc::new(Semaphore::new(LOADS_MAX)),
            kernel: RwLock::new(Arc::new(NoKernelCache)),
        });
        vfs.listen();
        vfs
    }

    /// Tells how to reach the kernel's caches; before this nothing is forgotten.
    pub fn set_kernel_cache(&self, kernel: Arc<dyn KernelCache>) {
        *self.kernel.write().expect("never poisoned: no code under it panics") = kernel;
    }

    /// Space and inodes.
    pub async fn statfs(&self, _caller: &Caller) -> Result<StatFs, Errno> {
        // Without an answer of the disk the volume is as large as the format says.
        let disk = self.mount.disk().and_then(|dir| DiskSpace::of(dir).ok());
        self.meta.statfs(self.mount.root(), disk).await
    }

    /// Everything written to any file, and every name, is as durable as the store's tier says.
    pub async fn syncfs(&self, _caller: &Caller) -> Result<(), Errno> {
        self.writers.flush_all().await.map_err(write_errno)?;
        self.meta.sync().await?;
        self.handles.losses.tell(self.losses())
    }

    /// How often the store was found to have lost something.
    fn losses(&self) -> u64 {
        self.meta.store().losses()
    }

    /// The mount ends: what is buffered is committed, and handles the kernel still had are closed.
    pub async fn destroy(&self) {
        if let Err(errno) = self.writers.flush_all().await {
            error!("data written before the end of the mount could not be stored: {errno}");
        }
        for (fh, ino) in self.handles.files() {
            // An error has been logged where it arose; nobody is left to be told.
            let _ = self.close_file(ino, fh, None).await;
        }
    }

    fn kernel(&self) -> Arc<dyn KernelCache> {
        self.kernel.read().expect("never poisoned: no code under it panics").clone()
    }

    /// A command has changed what a name of a directory stands for: the kernel knows nothing of that.
    pub fn changed(&self, dir: Ino, name: &crate::types::Name) {
        let dir = self.mount.outward(dir);
        self.kernel().forget_attr(dir);
        self.kernel().forget_entry(dir, name.as_bytes());
    }

    /// Whether kernels are to remember nothing.
    fn shared(&self) -> bool {
        self.meta.store().sharing() == Sharing::Neighbours
    }

    fn entry(&self, ino: Ino, attr: Attr) -> Entry {
        self.mount.entry(ino, attr, self.shared())
    }

    /// What a name of a directory stands for, as the kernel is told and remembers.
    fn named(&self, dir: Ino, name: &[u8], ino: Ino, attr: Attr) -> Entry {
        if self.meta.is_far() {
            self.handed.note(dir, name);
        }
        self.entry(ino, attr)
    }

    fn attr_reply(&self, ino: Ino, attr: Attr) -> AttrReply {
        self.mount.attr(ino, attr, self.shared())
    }

    /// Commits everything written to the inode so far, or tells what went wrong since it was last asked. A file that is gone, or was
    /// never one, is a bad handle to whoever wrote.
    async fn flush_data(&self, ino: Ino) -> Result<(), Errno> {
        self.writers.flush(ino).await.map_err(write_errno)
    }
}

/// Errors of data commits as write(2), fsync(2) and close(2) know them.
fn write_errno(errno: Errno) -> Errno {
    match errno {
        Errno::NOENT | Errno::PERM | Errno::INVAL => Errno::BADF,
        Errno::OWNERDEAD => Errno::IO,
        errno => errno,
    }
}

/// An inode the kernel names and the volume does not have: ESTALE makes the kernel look the name up again, ENOENT would reach the
/// application although the name may stand for another inode by now.
fn inode_errno(errno: Errno) -> Errno {
    match errno {
        Errno::NOENT => Errno::STALE,
        Errno::OWNERDEAD => Errno::IO,
        errno => errno,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Flags, Kind, Time};

    /// Some attributes of a file.
    pub(crate) fn attr() -> Attr {
        let time = Time { sec: 1, nsec: 2 };
        Attr {
            flags: Flags(0),
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            atime: time,
            mtime: time,
            ctime: time,
            nlink: 1,
            length: 0,
            rdev: 0,
            parent: Ino::ROOT,
            access_acl: 0,
            default_acl: 0,
            tier: 0,
        }
    }
}
