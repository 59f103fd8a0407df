//! The thin asynchronous shell around the machines: performs their actions and feeds the outcomes back.

use crate::env::Clock;
use crate::types::{BoxFuture, Errno, Ino};
use crate::vfs::writer::backend::Backend;
use crate::vfs::writer::event::{Action, Event, Now, Shape};
use crate::vfs::writer::machine::Machine;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use tokio::sync::{Semaphore, oneshot};
use tracing::error;

/// An action on its way to the event it ends in.
type Work = BoxFuture<'static, Event<'static>>;

/// The memory of all write buffers, in bytes.
pub(crate) struct Budget {
    free: Semaphore,
    /// All of it.
    pub total: usize,
}

impl Budget {
    /// A budget of `total` bytes.
    pub fn new(total: usize) -> Budget {
        let total = total.min(Semaphore::MAX_PERMITS);
        Budget { free: Semaphore::new(total), total }
    }

    /// Takes bytes if they are free and nobody waits.
    pub fn try_take(&self, bytes: usize) -> bool {
        self.free.try_acquire_many(permits(bytes)).map(|permit| permit.forget()).is_ok()
    }

    /// Waits in line for bytes. Dropping the future leaves the line.
    pub async fn take(&self, bytes: usize) {
        self.free.acquire_many(permits(bytes)).await.expect("the budget is never closed").forget();
    }

    /// Gives bytes back.
    pub fn give(&self, bytes: usize) {
        if bytes > 0 {
            self.free.add_permits(bytes);
        }
    }

    /// Bytes nobody uses.
    pub fn free(&self) -> usize {
        self.free.available_permits()
    }
}

/// Requests are cut into pieces far below 4 GiB before they get here; saturating only makes a wrong one wait.
fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// One inode's machine and who waits for it.
pub(crate) struct Entry {
    /// The inode.
    pub ino: Ino,
    state: Mutex<State>,
}

/// What the lock of an entry guards. It is held for plain computation only.
pub(crate) struct State {
    /// The machine.
    pub machine: Machine,
    /// Writable handles.
    pub handles: u32,
    /// Growth up to this length was found possible.
    pub checked_to: u64,
    waiters: HashMap<u64, oneshot::Sender<Result<(), Errno>>>,
    next_ticket: u64,
    /// Bytes of the budget this inode has; at least what the machine holds.
    taken: usize,
}

impl Entry {
    /// An inode with nothing to write.
    pub fn new(ino: Ino, shape: Shape) -> Entry {
        let machine = Machine::new(shape);
        let state = State { machine, handles: 0, checked_to: 0, waiters: HashMap::new(), next_ticket: 0, taken: 0 };
        Entry { ino, state: Mutex::new(state) }
    }

    /// The state, for a moment.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("an invariant of a machine was broken earlier; its inode must not go on")
    }
}

/// What all entries share.
pub(crate) struct Shell {
    /// Metadata and blocks.
    pub backend: Arc<dyn Backend>,
    /// Both clocks.
    pub clock: Arc<dyn Clock>,
    /// Memory.
    pub budget: Budget,
}

impl Shell {
    /// What every event is stamped with.
    pub fn now(&self) -> Now {
        Now { wall: self.clock.now(), mono: self.clock.elapsed() }
    }

    /// Feeds an event, and performs what follows from it. `permits` bytes of the budget come with it; what the machine does not hold
    /// afterwards goes back. What is ready at once is done here, the rest goes on as tasks.
    pub fn feed(self: &Arc<Shell>, entry: &Arc<Entry>, event: Event<'_>, permits: usize) {
        let actions = self.apply(entry, |_| event, permits);
        self.perform(entry, actions);
    }

    /// Asks for everything written so far to be committed; the receiver is told.
    pub fn flush(self: &Arc<Shell>, entry: &Arc<Entry>) -> oneshot::Receiver<Result<(), Errno>> {
        let (sender, receiver) = oneshot::channel();
        let register = |state: &mut State| {
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.waiters.insert(ticket, sender);
            Event::Flush { ticket }
        };
        let actions = self.apply(entry, register, 0);
        self.perform(entry, actions);
        receiver
    }

    /// Changes the number of writable handles, and tells the machine in the same moment: an open that meets the last close must not be
    /// overtaken by it, or the machine would give up data that a handle can still flush.
    pub fn count(self: &Arc<Shell>, entry: &Arc<Entry>, change: impl FnOnce(u32) -> u32) {
        let register = |state: &mut State| {
            let before = state.handles;
            state.handles = change(before);
            if before == 1 && state.handles == 0 { Event::Closed } else { Event::Opened }
        };
        let actions = self.apply(entry, register, 0);
        self.perform(entry, actions);
    }

    /// One step of the machine: under the lock plan, after it act.
    fn apply<'a>(&self, entry: &Entry, event: impl FnOnce(&mut State) -> Event<'a>, permits: usize) -> VecDeque<Action> {
        let now = self.now();
        let mut wakes = Vec::new();
        let (actions, surplus) = {
            let mut state = entry.state();
            let event = event(&mut state);
            let mut actions = VecDeque::from(state.machine.handle(event, now));
            actions.retain(|action| {
                let Action::Wake { ticket, result } = action else { return true };
                wakes.extend(state.waiters.remove(ticket).map(|sender| (sender, *result)));
                false
            });
            state.taken += permits;
            let surplus = state.taken.checked_sub(state.machine.held()).expect("every write brings the bytes it buffers");
            state.taken -= surplus;
            (actions, surplus)
        };
        self.budget.give(surplus);
        for (sender, result) in wakes {
            // Who no longer waits need not be told: the data stays in the machine if the flush failed.
            let _ = sender.send(result);
        }
        actions
    }

    fn perform(self: &Arc<Shell>, entry: &Arc<Entry>, mut actions: VecDeque<Action>) {
        while let Some(action) = actions.pop_front() {
            let ino = entry.ino;
            // Metadata is often answered at once (a local store): then it is done on this thread, and no task is made. Each future
            // ends in the event it leads to; a loop instead of a recursion, because one event may lead to hundreds of commits.
            let (mut work, broken): (Work, Event<'static>) = match action {
                Action::Assign { key } => {
                    let id = self.backend.next_slice();
                    let broken = Event::Assigned { key, result: Err(Errno::IO) };
                    (Box::pin(async move { Event::Assigned { key, result: id.await } }), broken)
                }
                Action::Commit { chunk, slices, mtime } => {
                    let commit = self.backend.commit(ino, chunk, slices, mtime);
                    (Box::pin(async move { Event::Committed(commit.await) }), Event::Committed(Err(Errno::IO)))
                }
                Action::Upload { key, block, data } => {
                    let upload = self.backend.upload(block, data);
                    let broken = Event::Uploaded { key, index: block.index, result: Err(Errno::IO) };
                    let work = async move { Event::Uploaded { key, index: block.index, result: upload.await } };
                    // Never on this thread: it may be the one that answers the kernel.
                    self.spawn(entry, Box::pin(work), broken);
                    continue;
                }
                Action::Discard { slices } => {
                    // Nobody waits for it.
                    tokio::spawn(self.backend.discard(slices));
                    continue;
                }
                Action::Dropped { bytes, errno } => {
                    error!(%ino, bytes, "written data is lost: {errno}");
                    continue;
                }
                Action::Wake { .. } => continue,
            };
            match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(event) => actions.extend(self.apply(entry, |_| event, 0)),
                // The task polls it again with a waker of its own.
                Poll::Pending => self.spawn(entry, work, broken),
            }
        }
    }

    /// Runs an action as a task. One that breaks ends in `broken`, so that nobody waits for it for ever.
    fn spawn(self: &Arc<Shell>, entry: &Arc<Entry>, work: Work, broken: Event<'static>) {
        let (shell, entry) = (self.clone(), entry.clone());
        let work = tokio::spawn(work);
        tokio::spawn(async move {
            let event = work.await.unwrap_or_else(|e| {
                error!(ino = %entry.ino, "an upload or a commit broke off: {e}");
                broken
            });
            shell.feed(&entry, event, 0);
        });
    }
}
