//! The driver loop: the only code that carries plans of operations to a store.

use crate::env::Clock;
use crate::meta::facts::Facts;
use crate::meta::journal::Journal;
use crate::meta::pacing::Pacing;
use crate::meta::store::{Commit, Guard, Query, Store, StoreError, Value, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::telemetry::metrics;
use crate::types::{Errno, Ino};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::Instant;
use tracing::error;

/// Conflicts after which an operation gives up. Each means that somebody else made progress; 64 in a row mean a fault.
const ROUNDS_MAX: u32 = 64;
/// Time of conflicts after which an operation gives up. Long before it an application would have been told by its user.
const CONFLICTS_TIME_MAX: Duration = Duration::from_secs(30);
/// Stripes of the lock between opening an inode and deleting it. Two unlinks share one rarely; a stripe is 40 bytes.
const OPEN_STRIPES: usize = 64;

/// The handles of one inode.
#[derive(Default)]
struct Handles {
    count: u32,
    /// The last link went while it was open: closing has to look after what is left of it.
    unlinked: bool,
}

/// Which inodes this process has open. An inode with handles keeps its data when its last link goes.
pub struct OpenFiles {
    handles: Mutex<HashMap<Ino, Handles>>,
    stripes: Vec<Arc<RwLock<()>>>,
    /// What those hold who take all stripes.
    all: tokio::sync::Mutex<Weak<NoneOpens>>,
    /// How many wait for a stripe.
    waiting: AtomicUsize,
}

/// All stripes: while somebody has this, no file is opened.
pub struct NoneOpens {
    _stripes: Vec<OwnedRwLockWriteGuard<()>>,
    since: Instant,
}

/// So long after it was taken others may join who holds all stripes although somebody waits to open a file. Then that one has its turn.
const NONE_OPENS_JOIN: Duration = Duration::from_millis(5);

impl OpenFiles {
    /// None open.
    pub fn new() -> OpenFiles {
        OpenFiles {
            handles: Mutex::default(),
            stripes: (0..OPEN_STRIPES).map(|_| Arc::default()).collect(),
            all: tokio::sync::Mutex::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    fn handles(&self) -> MutexGuard<'_, HashMap<Ino, Handles>> {
        self.handles.lock().expect("never poisoned: no code under it panics")
    }

    /// Whether this process has a handle of the inode.
    pub fn is_open(&self, ino: Ino) -> bool {
        self.handles().contains_key(&ino)
    }

    /// Handles of all inodes.
    pub fn count(&self) -> u64 {
        self.handles().values().map(|handles| u64::from(handles.count)).sum()
    }

    /// Counts one more handle.
    pub fn add(&self, ino: Ino) {
        self.handles().entry(ino).or_default().count += 1;
    }

    /// Takes note that an open inode has no link any more.
    pub fn unlinked(&self, ino: Ino) {
        if let Some(handles) = self.handles().get_mut(&ino) {
            handles.unlinked = true;
        }
    }

    /// Counts one less; true if it was the last of an inode whose last link went while it was open.
    pub fn remove(&self, ino: Ino) -> bool {
        let mut all = self.handles();
        let Some(handles) = all.get_mut(&ino) else { return false };
        handles.count = handles.count.saturating_sub(1);
        let (last, unlinked) = (handles.count == 0, handles.unlinked);
        if last {
            all.remove(&ino);
        }
        last && unlinked
    }

    fn stripe(&self, ino: Ino) -> &Arc<RwLock<()>> {
        &self.stripes[(ino.0 % OPEN_STRIPES as u64) as usize]
    }

    /// Held while an inode is opened: its last link is not removed meanwhile.
    pub async fn keep_link(&self, ino: Ino) -> RwLockReadGuard<'_, ()> {
        let stripe = self.stripe(ino);
        match stripe.try_read() {
            Ok(held) => held,
            Err(_) => self.wait(stripe.read()).await,
        }
    }

    /// Held while the last link of an inode is removed on the ground that it is not open.
    pub async fn keep_closed(&self, ino: Ino) -> RwLockWriteGuard<'_, ()> {
        let stripe = self.stripe(ino);
        match stripe.try_write() {
            Ok(held) => held,
            Err(_) => self.wait(stripe.write()).await,
        }
    }

    /// Waits for a stripe, in sight of those who would join the one who has it.
    async fn wait<T>(&self, stripe: impl Future<Output = T>) -> T {
        struct Waits<'a>(&'a AtomicUsize);
        impl Drop for Waits<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waits = Waits(&self.waiting);
        stripe.await
    }

    /// All stripes, for commits that remove many names: it does not matter then which inodes these stand for when it is committed. Several such
    /// commits hold them together, as they do not exclude each other.
    pub async fn none_opens(&self) -> Arc<NoneOpens> {
        let mut all = self.all.lock().await;
        let may_join = |held: &Arc<NoneOpens>| self.waiting.load(Ordering::Relaxed) == 0 || held.since.elapsed() < NONE_OPENS_JOIN;
        if let Some(held) = all.upgrade().filter(may_join) {
            return held;
        }
        // In one order, as everybody who takes several. Whoever has them gives them back without this mutex.
        let mut stripes = Vec::with_capacity(self.stripes.len());
        for stripe in &self.stripes {
            stripes.push(stripe.clone().write_owned().await);
        }
        let held = Arc::new(NoneOpens { _stripes: stripes, since: Instant::now() });
        *all = Arc::downgrade(&held);
        held
    }
}

impl Default for OpenFiles {
    fn default() -> Self {
        Self::new()
    }
}

/// What an operation may rest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Only what is read now: the answer is what the store says.
    Store,
    /// What was learned before, where the plan guards it; anything else is read. Mutations.
    Memory,
    /// What was learned before, guarded or not, unless the operation fails: the answer is an estimate.
    Estimate,
    /// What the store said and would have told us the change of; anything else is read. Lookups and the like.
    Standing,
}

/// What the loop needs beside the operation.
pub struct Driver {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) open_files: OpenFiles,
    /// `None` where reading costs nothing to speak of.
    pub(crate) facts: Option<Arc<Facts>>,
    pub(crate) pacing: Pacing,
    pub(crate) journal: Journal,
}

impl Driver {
    /// Runs an operation to its end. `step` is pure: it is called again whenever the store has told something new. The result describes
    /// a state that existed: a success by its guards, a failure by a commit that changes nothing and guards what it was decided on.
    pub async fn run<T, F>(&self, what: &'static str, basis: Basis, view: View, step: F) -> Result<T, Errno>
    where
        T: Send + 'static,
        F: Fn(&View) -> Result<Plan<T>, Stop> + Send + Sync,
    {
        let began = Instant::now();
        let outcome = self.run_to_end(what, basis, view, step).await;
        metrics::META.done(what, began.elapsed());
        outcome
    }

    async fn run_to_end<T, F>(&self, what: &'static str, basis: Basis, view: View, step: F) -> Result<T, Errno>
    where
        T: Send + 'static,
        F: Fn(&View) -> Result<Plan<T>, Stop> + Send + Sync,
    {
        let mut view = view;
        let mut conflicts = 0;
        let mut first_conflict = None;
        let mut fence: Option<Ino> = None;
        loop {
            // Taken before the step decides whether the inode is open, held until its decision is committed.
            let closed = match fence {
                Some(ino) => Some((ino, self.open_files.keep_closed(ino).await)),
                None => None,
            };
            view.begin();
            let conflict = match step(&view) {
                Err(Stop::Need(queries)) => {
                    match self.recall(basis, &queries) {
                        Some(values) => view.remember(queries.into_iter().zip(values)),
                        None => self.read_into(what, &mut view, queries).await?,
                    }
                    continue;
                }
                Err(Stop::Fail(errno)) if basis == Basis::Standing => return Err(errno),
                Err(Stop::Fail(errno)) => {
                    let Some(guards) = view.confirmation() else { return Err(errno) };
                    match self.commit(what, &guards, &[], &[]).await? {
                        Commit::Done { .. } => return Err(errno),
                        Commit::Conflict(values) => values,
                    }
                }
                Ok(plan) => {
                    let unguarded =
                        if matches!(basis, Basis::Estimate | Basis::Standing) { Vec::new() } else { view.unguarded(&plan.guards) };
                    if !unguarded.is_empty() {
                        self.read_into(what, &mut view, unguarded).await?;
                        continue;
                    }
                    if plan.while_closed.is_some() && plan.while_closed != closed.as_ref().map(|(ino, _)| *ino) {
                        fence = plan.while_closed;
                        continue;
                    }
                    if plan.guards.is_empty() && plan.writes.is_empty() && plan.reads.is_empty() {
                        return (plan.finish)(&[], &[]);
                    }
                    match self.commit(what, &plan.guards, &plan.writes, &plan.reads).await? {
                        Commit::Done { replies, values } => {
                            if let Some(ino) = plan.while_closed {
                                // Still under the stripe: no handle comes or goes between the decision and this note.
                                self.open_files.unlinked(ino);
                            }
                            return (plan.finish)(&replies, &values);
                        }
                        Commit::Conflict(values) => values,
                    }
                }
            };
            drop(closed);
            conflicts += 1;
            metrics::RESTARTS.add(what, 1, 0);
            let now = self.clock.elapsed();
            let began = *first_conflict.get_or_insert(now);
            if conflicts >= ROUNDS_MAX || now.saturating_sub(began) > CONFLICTS_TIME_MAX {
                error!(operation = what, conflicts, keys = ?conflict.iter().map(|(query, _)| query).collect::<Vec<&Query>>(),
                    "gave up after repeated conflicts with other writers of these keys");
                return Err(Errno::IO);
            }
            view.learn(conflict);
        }
    }

    fn recall(&self, basis: Basis, queries: &[Query]) -> Option<Vec<Value>> {
        let facts = self.facts.as_ref()?;
        match basis {
            Basis::Store => None,
            Basis::Memory | Basis::Estimate => facts.recall(queries),
            Basis::Standing => facts.recall_standing(queries),
        }
    }

    /// One read; what it tells is remembered.
    pub(crate) async fn read(&self, what: &'static str, queries: &[Query]) -> Result<Vec<Value>, Errno> {
        let asked = self.facts.as_ref().map(|facts| facts.ask(queries.len()));
        let values = self.store.read(queries).await.map_err(|e| errno_of(what, &e))?;
        if let Some(asked) = asked {
            asked.learn(queries.iter().zip(&values));
        }
        self.journal.learn(queries.iter().zip(&values));
        Ok(values)
    }

    async fn read_into(&self, what: &'static str, view: &mut View, queries: Vec<Query>) -> Result<(), Errno> {
        let values = self.read(what, &queries).await?;
        view.learn(queries.into_iter().zip(values));
        Ok(())
    }

    /// One commit; what it wrote, or met instead of what it guarded, is remembered.
    async fn commit(&self, what: &'static str, guards: &[Guard], writes: &[Write], reads: &[Query]) -> Result<Commit, Errno> {
        let pause = self.pacing.pause(writes, self.store.clock_ahead_us());
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let parts = guards.len() + writes.len() + reads.len();
        let asked = self.facts.as_ref().map(|facts| facts.ask_to_write(parts, writes));
        let began = Instant::now();
        let commit = self.store.commit(guards, writes, reads).await;
        metrics::TRANSACTIONS.time(began.elapsed());
        let commit = commit.map_err(|e| {
            if matches!(e, StoreError::Full(_)) && writes.iter().any(|write| matches!(write, Write::PutFrame(..))) {
                self.journal.note_full();
            }
            errno_of(what, &e)
        })?;
        if let Commit::Done { replies, values } = &commit {
            self.journal.committed(writes, replies);
            self.journal.learn(reads.iter().zip(values));
        }
        if let Some(asked) = asked {
            match &commit {
                Commit::Done { replies, values } => asked.committed(guards, replies, reads, values),
                Commit::Conflict(values) => asked.learn(values.iter().map(|(query, value)| (query, value))),
            }
        }
        Ok(commit)
    }
}

/// What an application is told when the store fails; the operator gets the log line.
pub fn errno_of(what: &'static str, error: &StoreError) -> Errno {
    error!(operation = what, "{error}");
    match error {
        StoreError::Full(_) => Errno::NOSPC,
        StoreError::ReadOnly(_) => Errno::ROFS,
        StoreError::Damaged(_) | StoreError::Failed(_) => Errno::IO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    #[tokio::test]
    async fn removals_share_the_stripes_until_somebody_waits_to_open() {
        let files = OpenFiles::new();
        let first = files.none_opens().await;
        tokio::time::sleep(NONE_OPENS_JOIN * 3).await;
        let second = files.none_opens().await;
        assert!(Arc::ptr_eq(&first, &second), "nobody waits");
        let mut opens = pin!(files.keep_link(Ino(7)));
        assert!(as_far_as_it_goes(&mut opens).await.is_none());
        let mut third = pin!(files.none_opens());
        assert!(as_far_as_it_goes(&mut third).await.is_none(), "who waits to open has his turn");
        drop((first, second));
        let opened = as_far_as_it_goes(&mut opens).await.expect("nobody removes now");
        assert!(as_far_as_it_goes(&mut third).await.is_none(), "the file is being opened");
        drop(opened);
        let third = third.await;
        assert!(Arc::ptr_eq(&third, &files.none_opens().await), "nobody waits any more");
    }

    #[tokio::test]
    async fn who_has_given_up_waiting_keeps_nobody_out() {
        let files = OpenFiles::new();
        let first = files.none_opens().await;
        {
            let mut opens = pin!(files.keep_closed(Ino(7)));
            assert!(as_far_as_it_goes(&mut opens).await.is_none());
        }
        tokio::time::sleep(NONE_OPENS_JOIN * 3).await;
        assert!(Arc::ptr_eq(&first, &files.none_opens().await));
    }

    /// Takes a future as far as it goes.
    async fn as_far_as_it_goes<T>(future: &mut std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            std::task::Poll::Ready(done) => std::task::Poll::Ready(Some(done)),
            std::task::Poll::Pending => std::task::Poll::Ready(None),
        })
        .await
    }
}
