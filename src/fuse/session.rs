//! The life of one mount: its loop threads, and its end.

use crate::env::instant;
use crate::fuse::FuseConfig;
use crate::fuse::decode::{Damaged, Operation, Request, decode};
use crate::fuse::device::{Device, RequestBuffer};
use crate::fuse::dispatch::{dispatch, method};
use crate::fuse::gap::{Gap, LOOK_MAX};
use crate::fuse::interrupt::Requests;
use crate::fuse::mount::{self, Handshake, Shaken, Unmounter};
use crate::fuse::notify::Notifier;
use crate::fuse::parked::start;
use crate::fuse::reply::Reply;
use crate::telemetry::metrics;
use crate::vfs::{NoKernelCache, Vfs};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What a request needs besides the data of a write: header, arguments, names and an extended attribute (64 KiB at most, never with data).
const REQUEST_BYTES_MIN: usize = 128 << 10;
/// A page for header and arguments of a write.
const HEADER_BYTES_MAX: usize = 4096;
/// How long requests may go on after the kernel has stopped waiting for them; they have been called off by then.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// One mount, from the handshake on. Dropped without having run, it unmounts.
pub struct FuseSession {
    mounted: Mounted,
    notifier: Arc<Notifier>,
    server: Arc<Server>,
    threads: usize,
}

impl FuseSession {
    /// Mounts and shakes hands with the kernel. Requests are answered once `run` is called.
    pub fn mount(vfs: Arc<Vfs>, mountpoint: &Path, config: FuseConfig, runtime: tokio::runtime::Handle) -> io::Result<FuseSession> {
        let Shaken { session, path, expires } = mount::mount(mountpoint, &config)?;
        let device = Arc::new(Device::duplicate(&session)?);
        let ended = Arc::new(AtomicBool::new(false));
        let unmounter = Unmounter::new(path, ended.clone());
        let mounted = Mounted { session: Some(session), unmounter, ended };
        let notifier = Arc::new(Notifier::start(device.clone(), expires)?);
        vfs.set_kernel_cache(notifier.clone());
        let buffer_bytes = (mount::write_bytes(config.max_write) as usize + HEADER_BYTES_MAX).max(REQUEST_BYTES_MIN);
        let server = Server { vfs, device, requests: Arc::default(), runtime, xattr: config.xattr, acl: config.acl, buffer_bytes };
        Ok(FuseSession { mounted, notifier, server: Arc::new(server), threads: config.threads.max(1) })
    }

    /// How to unmount while `run` blocks.
    pub fn unmounter(&self) -> Unmounter {
        self.mounted.unmounter.clone()
    }

    /// Answers requests until the filesystem is unmounted, then calls off what is still running and ends the `Vfs`. Blocks: call it on a
    /// thread outside the runtime, or by `spawn_blocking`.
    pub fn run(mut self) -> io::Result<()> {
        let server = &self.server;
        let result = std::thread::scope(|scope| {
            let mut loops = Vec::new();
            for i in 0..self.threads {
                loops.push(std::thread::Builder::new().name(format!("fuse-{i}")).spawn_scoped(scope, || server.serve()));
            }
            // As long as one thread serves, the mount is alive; the errors of others are told at the end.
            let mut result = Ok(());
            for started in loops {
                let ended = started.and_then(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("a loop thread panicked"))));
                result = result.and(ended);
            }
            result
        });
        // Before anything else: nothing may be sent to a connection that is being taken down.
        self.notifier.disarm();
        if result.is_ok() {
            self.mounted.ended.store(true, Ordering::SeqCst);
        }
        self.mounted.close();
        if result.is_ok() {
            self.notifier.join();
        }
        server.requests.interrupt_all();
        let left = server.requests.drain(DRAIN_MAX);
        if left > 0 {
            tracing::error!(left, "requests are still running after the unmount");
        }
        server.runtime.block_on(server.vfs.destroy());
        result
    }
}

impl Drop for FuseSession {
    fn drop(&mut self) {
        self.notifier.disarm();
        // The `Vfs` may live on. The descriptor must not: while it is open, requests of a mount that nobody serves wait instead of failing.
        self.server.vfs.set_kernel_cache(Arc::new(NoKernelCache));
    }
}

/// The mount itself, until it is closed.
struct Mounted {
    session: Option<fuser::Session<Handshake>>,
    unmounter: Unmounter,
    /// The kernel has ended the connection.
    ended: Arc<AtomicBool>,
}

impl Mounted {
    /// Unmounts if the kernel has not done so, and closes the session's descriptor.
    fn close(&mut self) {
        let Some(session) = self.session.take() else { return };
        if let Err(error) = self.unmounter.unmount() {
            tracing::error!(%error, "cannot unmount");
        }
        self.ended.store(true, Ordering::SeqCst);
        // The session would unmount once more when dropped, whatever is mounted there by then (0.18 takes a dead connection for a live one).
        let descriptor = session.as_fd().as_raw_fd();
        std::mem::forget(session);
        // SAFETY: the descriptor was owned by the session alone, which is forgotten; nobody uses or closes it any more.
        drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the loop threads share.
struct Server {
    vfs: Arc<Vfs>,
    device: Arc<Device>,
    requests: Arc<Requests>,
    runtime: tokio::runtime::Handle,
    xattr: bool,
    /// What goes with ACLs was agreed on, SETXATTR_EXT among it.
    acl: bool,
    buffer_bytes: usize,
}

impl Server {
    /// Reads and answers requests until the connection ends.
    fn serve(&self) -> io::Result<()> {
        let _inside = self.runtime.enter();
        let mut buffer = RequestBuffer::new(self.buffer_bytes);
        let mut gap = Gap::new(std::thread::available_parallelism().map_or(1, usize::from));
        loop {
            let read = if gap.looks() && self.requests.is_empty() {
                gap.looked(self.device.look(LOOK_MAX));
                self.device.read(&mut buffer)
            } else {
                let began = instant();
                let read = self.device.read(&mut buffer);
                gap.slept(began.elapsed());
                read
            };
            match read {
                Ok(()) => match decode(&mut buffer, self.acl) {
                    Ok(request) => self.answer(request),
                    Err(damaged) => self.refuse(damaged),
                },
                Err(error) => match error.raw_os_error() {
                    // The request was withdrawn before it was read; a signal; nothing there after all.
                    Some(libc::ENOENT | libc::EINTR | libc::EAGAIN) => {}
                    Some(libc::ENODEV) => return Ok(()),
                    Some(libc::ECONNABORTED) => {
                        tracing::warn!("the mount was aborted from outside (`umount -f`, or its connection in /sys/fs/fuse); ending");
                        return Ok(());
                    }
                    _ => {
                        tracing::error!(%error, "cannot read requests");
                        return Err(error);
                    }
                },
            }
        }
    }

    fn answer(&self, request: Request) {
        match request.operation {
            Operation::Ignored => return,
            Operation::Interrupt { unique } => return self.interrupt(request.unique, unique),
            _ => {}
        }
        if let Operation::Write { data, .. } = &request.operation {
            metrics::FUSE_WRITTEN.bytes(data.len() as u64);
        }
        let method = method(&request.operation);
        let (reply, cancel) = Reply::new(self.device.clone(), self.requests.clone(), request.unique, method);
        if let Some(work) = dispatch(self.vfs.clone(), self.xattr, request, cancel, reply) {
            start(work, &self.runtime);
        }
    }

    fn interrupt(&self, own: u64, target: u64) {
        if self.requests.interrupt(target) {
            // No answer: the answer of the request itself is all the kernel waits for.
            return;
        }
        // The kernel sends it again at once; let the thread that has just read the request get on.
        std::thread::yield_now();
        if let Err(error) = self.device.write(own, -libc::EAGAIN, &[]) {
            tracing::debug!(%error, "an interrupt could not be sent back");
        }
    }

    fn refuse(&self, damaged: Damaged) {
        tracing::error!(?damaged, "the kernel sent a request that cannot be read");
        if let Damaged::Arguments { unique: Some(unique), .. } = damaged
            && let Err(error) = self.device.write(unique, -libc::EIO, &[])
        {
            tracing::debug!(%error, "a damaged request could not be answered");
        }
    }
}
