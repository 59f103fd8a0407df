//! Telling the kernel that what it caches is no longer true.
//!
//! An attribute-only invalidation takes neither a page lock nor a directory lock in the kernel and is written on the caller's thread. All
//! others take the lock of the directory, which a request that waits for us may hold: they are written by a thread of their own that nobody
//! waits for. Its queue is bounded and holds each entry once; when it is full, everything is forgotten instead.

use crate::fuse::abi::{self, bytes_of};
use crate::fuse::device::Device;
use crate::types::Ino;
use crate::vfs::KernelCache;
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// Entries waiting to be forgotten. Beyond it, looking everything up again is cheaper than telling one by one.
const ENTRIES_QUEUED_MAX: usize = 4096;

/// The kernel's cache of one mount.
pub(crate) struct Notifier {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    device: Arc<Device>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    entries: BTreeSet<(Ino, Box<[u8]>)>,
    all: bool,
    /// Nothing is sent any more.
    disarmed: bool,
}

impl Notifier {
    /// Starts the thread.
    pub(crate) fn start(device: Arc<Device>) -> io::Result<Notifier> {
        let shared = Arc::new(Shared { device, queue: Mutex::default(), changed: Condvar::new() });
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
        self.shared.put(|queue| {
            if queue.all || queue.entries.len() >= ENTRIES_QUEUED_MAX {
                queue.forget_all();
            } else {
                queue.entries.insert((parent, name.into()));
            }
        });
    }

    fn forget_all(&self) {
        self.shared.put(Queue::forget_all);
    }
}

/// One piece of work.
enum Next {
    Entry(Ino, Box<[u8]>),
    All,
}

impl Queue {
    fn forget_all(&mut self) {
        self.entries.clear();
        self.all = true;
    }

    fn next(&mut self) -> Option<Next> {
        if std::mem::take(&mut self.all) {
            return Some(Next::All);
        }
        self.entries.pop_first().map(|(parent, name)| Next::Entry(parent, name))
    }
}

impl Shared {
    fn put(&self, put: impl FnOnce(&mut Queue)) {
        let mut queue = self.queue();
        if !queue.disarmed {
            put(&mut queue);
            self.changed.notify_one();
        }
    }

    fn run(&self) {
        while let Some(next) = self.wait() {
            match next {
                Next::Entry(parent, name) => self.forget_entry(parent, &name),
                Next::All => self.forget_all(),
            }
        }
    }

    /// The next piece of work; `None` once disarmed.
    fn wait(&self) -> Option<Next> {
        let mut queue = self.queue();
        loop {
            if queue.disarmed {
                return None;
            }
            if let Some(next) = queue.next() {
                return Some(next);
            }
            queue = self.changed.wait(queue).expect("nobody panics holding this lock");
        }
    }

    fn forget_entry(&self, parent: Ino, name: &[u8]) {
        let Ok(namelen) = u32::try_from(name.len()) else { return };
        let message = abi::NotifyInvalEntryOut { parent: parent.0, namelen, flags: 0 };
        self.send(abi::notify::INVAL_ENTRY, &[bytes_of(&message), name, &[0]]);
    }

    /// Every cached entry is looked up again, which brings fresh attributes, too. Attributes of what is open and not looked up again are
    /// fresh after their timeout. Kernels before 6.16 don't know this message and rely on the timeouts for both.
    fn forget_all(&self) {
        self.send(abi::notify::INC_EPOCH, &[]);
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
    fn entries_coalesce_and_overflow_into_forgetting_all() {
        let shared = Shared { device: nowhere(), queue: Mutex::default(), changed: Condvar::new() };
        let notifier = Notifier { shared: Arc::new(shared), thread: Mutex::new(None) };
        notifier.forget_entry(Ino(1), b"a");
        notifier.forget_entry(Ino(1), b"a");
        notifier.forget_entry(Ino(2), b"a");
        assert_eq!(notifier.shared.queue().entries.len(), 2);
        for i in 0..ENTRIES_QUEUED_MAX {
            notifier.forget_entry(Ino(3), i.to_string().as_bytes());
        }
        assert!(notifier.shared.queue().all && notifier.shared.queue().entries.is_empty());
        assert!(matches!(notifier.shared.wait(), Some(Next::All)));
        notifier.disarm();
        notifier.forget_entry(Ino(1), b"late");
        assert!(notifier.shared.wait().is_none() && notifier.shared.queue().entries.is_empty());
    }

    #[test]
    fn the_thread_ends_when_disarmed() {
        let notifier = Notifier::start(nowhere()).unwrap();
        notifier.forget_attr(Ino(1));
        notifier.forget_all();
        notifier.join();
    }
}
