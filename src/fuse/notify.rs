//! Telling the kernel that what it caches is no longer true.
//!
//! An attribute-only invalidation takes neither a page lock nor a directory lock in the kernel and is written on the caller's thread. All
//! others take the lock of the directory, which a request that waits for us may hold: they are written by a thread of their own that nobody
//! waits for. Its queue is bounded and holds each entry once; what finds no place is believed until its timeout ends.
//!
//! Entries are made to expire, never thrown away: with an entry the kernel also takes away whatever is mounted on it, in every namespace, and
//! homes have mounts in them. For the same reason nothing makes all entries invalid at once (INC_EPOCH), and kernels that cannot let one entry
//! expire (before 6.2) are told of none.

use crate::fuse::abi::{self, bytes_of};
use crate::fuse::device::Device;
use crate::types::Ino;
use crate::vfs::KernelCache;
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// Entries waiting to be forgotten: as many as are remembered of a mount (`vfs/handed.rs`), and about as much memory.
const ENTRIES_QUEUED_MAX: usize = 65_536;

/// The kernel's cache of one mount.
pub(crate) struct Notifier {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    device: Arc<Device>,
    /// The kernel can let an entry expire.
    expires: bool,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    entries: BTreeSet<(Ino, Box<[u8]>)>,
    /// Nothing is sent any more.
    disarmed: bool,
}

impl Notifier {
    /// Starts the thread. `expires`: the kernel can let an entry expire.
    pub(crate) fn start(device: Arc<Device>, expires: bool) -> io::Result<Notifier> {
        let shared = Arc::new(Shared { device, expires, queue: Mutex::default(), changed: Condvar::new() });
        let thread = std::thread::Builder::new().name("fuse-notify".into()).spawn({
            let shared = shared.clone();
            move || shared.run()
        })?;
        Ok(Notifier { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Nothing is sent from now on. Does not wait: the thread may be inside the kernel, behind a lock whose holder waits for us.
    pub(crate) fn disarm(&self) {
        self.shared.queue().disarmed = true;
        self.shared.changed.notify_all();
    }

    /// Waits for the thread. Only after the connection has ended, when nothing in the kernel waits for us.
    pub(crate) fn join(&self) {
        self.disarm();
        let thread = self.thread.lock().expect("nobody panics holding this lock").take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the notification thread panicked");
        }
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.disarm();
    }
}

impl KernelCache for Notifier {
    fn forget_attr(&self, ino: Ino) {
        if self.shared.queue().disarmed {
            return;
        }
        // A negative offset leaves the pages alone; with AUTO_INVAL_DATA they go when the new attributes show another mtime or size.
        let message = abi::NotifyInvalInodeOut { ino: ino.0, off: -1, len: 0 };
        self.shared.send(abi::notify::INVAL_INODE, &[bytes_of(&message)]);
    }

    fn forget_entry(&self, parent: Ino, name: &[u8]) {
        let mut queue = self.shared.queue();
        if self.shared.expires && !queue.disarmed && queue.entries.len() < ENTRIES_QUEUED_MAX {
            queue.entries.insert((parent, name.into()));
            self.shared.changed.notify_one();
        }
    }
}

impl Shared {
    fn run(&self) {
        while let Some((parent, name)) = self.wait() {
            self.forget_entry(parent, &name);
        }
    }

    /// The next entry; `None` once disarmed.
    fn wait(&self) -> Option<(Ino, Box<[u8]>)> {
        let mut queue = self.queue();
        loop {
            if queue.disarmed {
                return None;
            }
            if let Some(next) = queue.entries.pop_first() {
                return Some(next);
            }
            queue = self.changed.wait(queue).expect("nobody panics holding this lock");
        }
    }

    fn forget_entry(&self, parent: Ino, name: &[u8]) {
        let Ok(namelen) = u32::try_from(name.len()) else { return };
        let message = abi::NotifyInvalEntryOut { parent: parent.0, namelen, flags: abi::notify::EXPIRE_ONLY };
        self.send(abi::notify::INVAL_ENTRY, &[bytes_of(&message), name, &[0]]);
    }

    fn send(&self, code: i32, pieces: &[&[u8]]) {
        match self.device.write(0, code, pieces) {
            Ok(()) => {}
            // ENOENT: not cached. ENOTEMPTY: a directory that is in use. ENODEV, ENOTCONN: unmounted.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTEMPTY | libc::ENODEV | libc::ENOTCONN | libc::ENOTDIR)) => {
            }
            Err(error) => tracing::debug!(code, %error, "the kernel did not take a notification"),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nobody panics holding this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    /// A connection to nothing: messages are swallowed.
    fn nowhere() -> Arc<Device> {
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        Arc::new(Device::duplicate(OwnedFd::from(null)).unwrap())
    }

    #[test]
    fn entries_coalesce_and_are_bounded() {
        let start = |expires| {
            let shared = Shared { device: nowhere(), expires, queue: Mutex::default(), changed: Condvar::new() };
            Notifier { shared: Arc::new(shared), thread: Mutex::new(None) }
        };
        let notifier = start(true);
        notifier.forget_entry(Ino(1), b"a");
        notifier.forget_entry(Ino(1), b"a");
        notifier.forget_entry(Ino(2), b"a");
        assert_eq!(notifier.shared.queue().entries.len(), 2);
        for i in 0..ENTRIES_QUEUED_MAX {
            notifier.forget_entry(Ino(3), i.to_string().as_bytes());
        }
        assert_eq!(notifier.shared.queue().entries.len(), ENTRIES_QUEUED_MAX);
        assert_eq!(notifier.shared.wait(), Some((Ino(1), b"a"[..].into())));
        notifier.disarm();
        notifier.forget_entry(Ino(1), b"late");
        assert!(notifier.shared.wait().is_none() && notifier.shared.queue().entries.len() < ENTRIES_QUEUED_MAX);
        let old = start(false);
        old.forget_entry(Ino(1), b"a");
        assert!(old.shared.queue().entries.is_empty(), "the kernel would throw away what is mounted there");
    }

    #[test]
    fn the_thread_ends_when_disarmed() {
        let notifier = Notifier::start(nowhere(), true).unwrap();
        notifier.forget_attr(Ino(1));
        notifier.forget_entry(Ino(1), b"a");
        notifier.join();
    }
}
