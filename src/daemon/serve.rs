//! The serving process: opens the volume, mounts it, waits for the end, leaves nothing unwritten.

use crate::daemon::control::Control;
use crate::daemon::{MountError, MountPlan, Record, metrics, system};
use crate::env::mounted_at;
use crate::fuse::{FuseConfig, FuseSession, Unmounter};
use crate::types::STACK_BYTES;
use crate::volume::{self, Created, Operator, Volume, VolumeError};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

/// After a signal, time for programs that still have files open on a mount that is gone. Half of the 10 s that container runtimes
/// give before they kill; the other half is for writing what is buffered.
const GRACE_TIME: Duration = Duration::from_secs(5);
/// How often it is said that what is left cannot be stored yet.
const CLOSE_TOLD_EVERY: Duration = Duration::from_secs(10);
/// Open files wanted: each open block, connection and lock takes one.
const OPEN_FILES: libc::rlim_t = 100_000;
/// How far before others the daemon goes (`nice`): every program on the mount waits for it, and it waits for disks and the network most of the time.
const NICE: libc::c_int = -19;
/// `PR_SET_IO_FLUSHER` of linux/prctl.h.
const SET_IO_FLUSHER: libc::c_int = 57;
/// It is the last to be killed for want of memory: with it everything on the mount would end.
const OOM_SCORE: &str = "-1000";
/// Threads that decode and answer requests. The local store carries out one commit at a time: with more threads than that, each
/// request may have to wait for the store's lock on another thread. Not yet compared in isolation: `docs/adr/0002-one-loop-thread-and-a-short-log.md`.
const LOOP_THREADS: usize = 1;

/// Requests whose data fit into the buffers together.
const REQUESTS_HELD: usize = 256;
/// What the kernel sends at once where nothing else is said; smaller requests cost too much.
const REQUEST_BYTES_MIN: u32 = 128 << 10;
/// Larger allocations are memory of their own.
#[cfg(target_env = "gnu")]
const ALLOCATION_BYTES_MAX: libc::c_int = 256 << 10;
/// Heaps of the allocator. It would make eight for each processor, and what lies free in one is of no use to another.
#[cfg(target_env = "gnu")]
const HEAPS_MAX: libc::c_int = 4;

/// Serves until the mount ends. `ready` is called once it can be used.
pub fn serve(plan: &MountPlan, ready: impl FnOnce(&str)) -> Result<(), MountError> {
    raise_open_files();
    go_first();
    give_memory_back();
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .thread_name("pando")
        .thread_stack_size(STACK_BYTES)
        .build()
        .map_err(system("cannot start threads"))?;
    // Before the volume is opened: from then on a signal must lead through the orderly end.
    let mut signals = Signals::listen(&runtime).map_err(system("cannot listen for signals"))?;
    let volume = runtime.block_on(open(plan))?;
    let served = mount_and_serve(plan, &runtime, &volume, &mut signals, ready);
    let closed = runtime.block_on(close(volume, &mut signals));
    // Requests of stragglers must not hold the process: whatever was acknowledged is stored now.
    runtime.shutdown_background();
    served?;
    closed?;
    info!("the mount at {} has ended", plan.mountpoint.display());
    Ok(())
}

async fn open(plan: &MountPlan) -> Result<Volume, VolumeError> {
    match (Volume::open(&plan.url, plan.volume.clone()).await, &plan.fresh) {
        // Beside a server it must be said where the objects go: `format` does.
        (Err(VolumeError::NotFormatted(place)), Some(fresh)) if !plan.volume.read_only => {
            if let Created::New(setting) = volume::create(&plan.url, fresh).await? {
                info!("made volume {} in {place}", setting.name());
            }
            Volume::open(&plan.url, plan.volume.clone()).await
        }
        (opened, _) => opened,
    }
}

fn mount_and_serve(
    plan: &MountPlan,
    runtime: &Runtime,
    volume: &Volume,
    signals: &mut Signals,
    ready: impl FnOnce(&str),
) -> Result<(), MountError> {
    let (vfs, root) = runtime.block_on(volume.vfs(&plan.view))?;
    let config = FuseConfig {
        fs_name: format!("{}:{}", plan.source, volume.name()),
        subtype: plan.subtype.into(),
        allow_other: plan.allow_other,
        default_permissions: plan.default_permissions,
        options: plan.options.clone(),
        max_write: request_bytes(plan),
        threads: LOOP_THREADS,
        xattr: plan.view.xattr || volume.acl(),
        acl: volume.acl(),
    };
    let place = plan.mountpoint.display();
    let session = FuseSession::mount(vfs.clone(), &plan.mountpoint, config, runtime.handle().clone())
        .map_err(|error| system(format!("cannot mount at {place}{}", hint(&error)))(error))?;
    let unmounter = session.unmounter();
    if let Some(wanted) = &plan.metrics {
        metrics::serve(wanted, runtime, volume.gauges(root, &plan.mountpoint.to_string_lossy(), &wanted.labels));
    }
    let (_record, control) = reachable(plan, runtime, volume.operator(vfs, root, plan.view.read_only));
    read_ahead(plan);
    let (tell, mut ended) = oneshot::channel();
    // Its own thread, so that this one can give up waiting for it.
    std::thread::Builder::new()
        .name("pando-fuse".into())
        .spawn(move || {
            // Nobody listens once the grace time is over.
            let _ = tell.send(session.run());
        })
        .map_err(system("cannot start a thread"))?;
    ready(volume.name());
    info!("{} is mounted at {place}", volume.name());
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = &mut ended => outcome.unwrap_or(Ok(())),
            name = signals.next() => {
                info!("{name}: unmounting {place}");
                end(unmounter, &mut ended, signals, &place).await
            }
            () = volume.disowned() => {
                error!("the metadata are not those of volume {} any more; unmounting {place}", volume.name());
                end(unmounter, &mut ended, signals, &place).await.and(Err(io::Error::other("the volume was replaced or destroyed")))
            }
        }
    });
    if let Some(control) = control {
        runtime.block_on(control.stop());
    }
    outcome.map_err(system(format!("the mount at {place} ended")))
}

/// Stores what is not stored yet. That may wait for a server that is away, and says so; whoever has been told and sends a signal then has it end
/// without.
async fn close(volume: Volume, signals: &mut Signals) -> Result<(), VolumeError> {
    let name = volume.name().to_owned();
    let mut closing = std::pin::pin!(volume.close());
    let mut is_told = false;
    let mut telling = tokio::time::interval_at(tokio::time::Instant::now() + CLOSE_TOLD_EVERY, CLOSE_TOLD_EVERY);
    loop {
        tokio::select! {
            closed = &mut closing => return closed,
            name_of_signal = signals.next() => {
                if is_told {
                    return Err(VolumeError::Failed(format!("{name_of_signal} before everything was stored: what was not is lost")));
                }
            }
            // However many signals come before.
            _ = telling.tick() => {
                is_told = true;
                warn!("volume {name} is not closed yet: its bucket or its metadata do not answer; a signal ends this process, and what is not stored is lost");
            }
        }
    }
}

/// Takes the mount away, and gives those who use it some time.
async fn end(
    unmounter: Unmounter,
    ended: &mut oneshot::Receiver<io::Result<()>>,
    signals: &mut Signals,
    place: &std::path::Display<'_>,
) -> io::Result<()> {
    // It may start a helper program and wait for it.
    let unmounted = tokio::task::spawn_blocking(move || unmounter.unmount()).await.map_err(io::Error::other);
    if let Err(error) = unmounted.and_then(|outcome| outcome) {
        error!("unmounting {place} failed: {error}");
    }
    tokio::select! {
        outcome = ended => outcome.unwrap_or(Ok(())),
        () = tokio::time::sleep(GRACE_TIME) => {
            warn!("programs still use the mount {} s after it was taken away; ending without them", GRACE_TIME.as_secs());
            Ok(())
        }
        _ = signals.next() => Ok(()),
    }
}

/// What to look at after the system refused a mount. What `fusermount3` or the options have to say speaks for itself.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => "; is /dev/fuse there and allowed, and fusermount3 installed?",
        _ => "",
    }
}

/// Lets commands find and ask this process. They do without, or fail with a reason, if that cannot be.
fn reachable(plan: &MountPlan, runtime: &Runtime, operator: Arc<Operator>) -> (Option<impl Drop + use<>>, Option<Control>) {
    let entry = || mounted_at(&plan.mountpoint)?.ok_or(io::Error::from(io::ErrorKind::NotFound));
    let record = || Record::own().write(&entry()?);
    let record = record().inspect_err(|error| warn!("`umount` will not wait for this process: cannot write its record: {error}"));
    let _inside = runtime.enter();
    let control = || Control::listen(&entry()?, operator);
    let control = control().inspect_err(|error| warn!("commands cannot ask this process: cannot make its socket: {error}"));
    (record.ok(), control.ok())
}

/// Lets the kernel read as far ahead of a program as one request of this mount holds. It offers 128 KiB when it mounts, and one request for each of
/// these costs more than twice the processor time. Where only the offer stands, as for others than root, it reads in smaller steps.
fn read_ahead(plan: &MountPlan) {
    let write = || -> io::Result<()> {
        let entry = mounted_at(&plan.mountpoint)?.ok_or(io::ErrorKind::NotFound)?;
        let path = format!("/sys/class/bdi/{}/read_ahead_kb", entry.device);
        let offered: u32 = std::fs::read_to_string(&path)?.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
        let wanted = request_bytes(plan) / 1024;
        if wanted > offered { std::fs::write(&path, wanted.to_string()) } else { Ok(()) }
    };
    if let Err(error) = write() {
        debug!("the kernel reads no further ahead than it offered: {error}");
    }
}

/// The largest request. What an application has handed over and the buffers have no room for waits outside of them, one request for each of its
/// threads: smaller buffers get smaller requests, so that this is within reason.
fn request_bytes(plan: &MountPlan) -> u32 {
    let part = u32::try_from(plan.volume.buffer_bytes / REQUESTS_HELD).unwrap_or(u32::MAX);
    plan.request_bytes.min(part.max(REQUEST_BYTES_MIN).checked_next_power_of_two().unwrap_or(u32::MAX))
}

/// Memory of what is large goes back to the system as soon as it is free, instead of becoming part of heaps that never shrink: buffers that are
/// needed again and again are kept elsewhere, within a bound.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_MMAP_THRESHOLD, ALLOCATION_BYTES_MAX), (libc::M_ARENA_MAX, HEAPS_MAX)] {
        // SAFETY: no other thread has been started yet; the call changes numbers of the allocator.
        if unsafe { libc::mallopt(parameter, value) } == 0 {
            debug!("the allocator does not take parameter {parameter}");
        }
    }
}

/// The signals that end a mount.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen(runtime: &Runtime) -> io::Result<Signals> {
        let _inside = runtime.enter();
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            // Without a handler a closed terminal would kill the process with data unwritten.
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

/// Asks the system to be served before others and killed after them, and not to have its allocations wait for data that it would have to write
/// itself. Whoever may not ask for that, as all but root, goes without. Before any thread is made: threads are born with what is asked here.
fn go_first() {
    // SAFETY: a system call on numbers.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } == -1 {
        debug!(error = %io::Error::last_os_error(), "this process is served like others");
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        debug!(%error, "this process is killed like others when memory runs out");
    }
    // SAFETY: a system call on numbers.
    if unsafe { libc::prctl(SET_IO_FLUSHER, 1, 0, 0, 0) } == -1 {
        debug!(error = %io::Error::last_os_error(), "allocations may wait for data to be written");
    }
}

/// As many open files as we may have. A smaller limit still works, for fewer files at once.
fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == -1 || limit.rlim_cur >= OPEN_FILES {
        return;
    }
    let wanted = [OPEN_FILES.max(limit.rlim_max), limit.rlim_max];
    for max in wanted {
        let raised = libc::rlimit { rlim_cur: OPEN_FILES.min(max), rlim_max: max };
        // SAFETY: `raised` is a valid limit that lives through the call.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } == 0 {
            return;
        }
    }
}
