//! Locks and what they mean for caches. The order of things lives here:
//!
//! grant: commit, which brings the inode as it is then → what we believed of it is dropped → the kernel's attributes are dropped if they may be
//! older → reply, so that the holder's next read sees what the last one wrote;
//! release: flush → commit → reply, so that what was written under the lock is there before anybody else can hold it. Among clients of our make
//! the reply does not wait for the commit of the release (`meta/ops/unlock.rs`).

use crate::env::{Random, SystemRandom};
use crate::meta::ops::lock::LockKind;
use crate::meta::ops::unlock::{Locked, Unlocked};
use crate::types::{Attr, Caller, Cancel, Errno, Ino};
use crate::vfs::Vfs;
use crate::vfs::handle::FileHandle;
use std::ops::Range;
use std::time::Duration;

/// First and longest pause between two tries for a lock that somebody else holds: a lock held for the length of a transaction is met
/// quickly, one held for long costs 50 reads a second.
const PAUSES_NEAR: Range<Duration> = Duration::from_millis(1)..Duration::from_millis(20);
/// The same behind a network, where a thousand waiters of many hosts ask one server: 20 questions a second each.
const PAUSES_FAR: Range<Duration> = Duration::from_millis(2)..Duration::from_millis(50);
/// Who does not wait asks again after these times, where unlocks are answered before the store knows of them: an unlock that came before the
/// request has arrived by then, unless its host or its network stands still. No application polls for a lock faster.
const ASK_AGAIN: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(20)];
/// A pause is shortened by up to this part (one n-th), so that waiters which were refused together do not come back together.
const PAUSE_JITTER: u64 = 4;

/// A byte-range lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// What is held or asked for.
    pub kind: LockKind,
    /// The holder's process, 0 if it is on another host.
    pub pid: u32,
}

impl Vfs {
    /// A POSIX lock that keeps `owner` from taking `lock`.
    pub async fn getlk(&self, _caller: &Caller, ino: Ino, fh: u64, owner: u64, lock: Lock) -> Result<Option<Lock>, Errno> {
        let ino = self.mount.inward(ino);
        self.handles.file(ino, fh)?;
        let found = self.meta.get_lock(ino, owner, lock.start, lock.end, lock.kind).await?;
        Ok(found.map(|held| Lock {
            start: held.start,
            end: held.end,
            kind: if held.exclusive { LockKind::Exclusive } else { LockKind::Shared },
            pid: held.pid,
        }))
    }

    /// Takes, changes or releases a lock: that of the open file (`flock`), or of a range of bytes. EAGAIN if somebody else is in the
    /// way and `wait` is not set; EINTR if waiting was called off.
    #[allow(clippy::too_many_arguments)]
    pub async fn setlk(&self, caller: &Caller, ino: Ino, fh: u64, owner: u64, lock: Lock, flock: bool, wait: bool) -> Result<(), Errno> {
        let ino = self.mount.inward(ino);
        let handle = self.handles.file(ino, fh)?;
        if lock.kind == LockKind::Unlock {
            if !self.ever_locked(ino) {
                return Ok(());
            }
            // Released even if the data could not be stored: for the application the lock is gone, and it is told of the data.
            let flushed = self.flush_data(ino).await;
            if self.is_answered(ino, self.meta.unlock_at_once(ino, owner, locked(lock, flock)).await) {
                return flushed;
            }
            let released = self.try_lock(ino, owner, lock, flock).await.map(drop);
            return flushed.and(released);
        }
        // An exclusive lock may become a shared one: others may read from then on.
        if lock.kind == LockKind::Shared && self.ever_locked(ino) {
            self.flush_data(ino).await?;
        }
        if !flock {
            // Before the lock is there, so that no release of the handle can miss it.
            handle.add_lock_owner(owner);
        }
        if self.is_answered(ino, self.meta.relock_at_once(ino, owner, lock.pid, locked(lock, flock), lock.kind).await) {
            return Ok(());
        }
        let again: &[Duration] = if wait || !self.meta.unlocks_at_once() { &[] } else { &ASK_AGAIN };
        let pauses = if self.meta.is_far() { PAUSES_FAR } else { PAUSES_NEAR };
        acquire(&caller.cancel, wait, again, pauses, || self.grant(&handle, owner, lock, flock)).await
    }

    /// Takes a lock, and makes what is known of the inode here as new as the grant.
    ///
    /// The kernel is told to ask for attributes anew only if they are not those it was told to ask for last. For it takes no answer to a question
    /// that it asked before it was told something of the inode: told so for every lock of every process, one that has just got its lock
    /// would go on with the pages and the length of before. Grants of one inode come one after the other, so that none tells what an
    /// earlier one saw.
    async fn grant(&self, handle: &FileHandle, owner: u64, lock: Lock, flock: bool) -> Result<(), Errno> {
        let ino = handle.ino();
        let mut told = handle.inode.told.lock().await;
        let Some(attr) = self.try_lock(ino, owner, lock, flock).await? else { return Ok(()) };
        self.writers.forget_recent(ino);
        let is_told = told.as_ref() == Some(&attr);
        if !is_told {
            *told = Some(attr.clone());
        }
        // The lock is held whatever comes of this; what is not noted costs the kernel its pages at the next open.
        if let Ok(attr) = self.overlaid(ino, attr).await {
            handle.inode.note(&attr);
        }
        if !is_told {
            self.kernel().forget_attr(self.mount.outward(ino));
        }
        Ok(())
    }

    /// Whether a change of a lock needs no exchange with the store now. Somebody tells it later.
    fn is_answered(&self, ino: Ino, unlocked: Unlocked) -> bool {
        if unlocked == Unlocked::First {
            let meta = self.meta.clone();
            tokio::spawn(async move { meta.release_unlocked(ino).await });
        }
        unlocked != Unlocked::No
    }

    async fn try_lock(&self, ino: Ino, owner: u64, lock: Lock, flock: bool) -> Result<Option<Attr>, Errno> {
        if flock {
            self.meta.flock(ino, owner, lock.kind).await
        } else {
            self.meta.set_lock(ino, owner, lock.pid, lock.start, lock.end, lock.kind).await
        }
    }

    /// Whether this process ever locked the inode; most files never are, and closing them costs nothing then.
    pub(crate) fn ever_locked(&self, ino: Ino) -> bool {
        self.meta.may_be_locked(ino)
    }
}

fn locked(lock: Lock, flock: bool) -> Locked {
    if flock { Locked::File } else { Locked::Range(lock.start, lock.end) }
}

/// Tries until it succeeds, or fails for another reason than somebody else's lock. Only the pauses are called off, never a try: so a
/// waiter that gives up has nothing committed, and one that has something committed is told.
/// Without `wait` it tries once, and again after each of the times in `again`.
async fn acquire<F, T, G>(cancel: &Cancel, wait: bool, again: &[Duration], pauses: Range<Duration>, attempt: F) -> Result<G, Errno>
where
    F: Fn() -> T,
    T: Future<Output = Result<G, Errno>>,
{
    let mut pause = pauses.start;
    let mut again = again.iter();
    loop {
        match attempt().await {
            Err(Errno::AGAIN) if wait => {}
            Err(Errno::AGAIN) => match again.next() {
                Some(next) => pause = *next,
                None => return Err(Errno::AGAIN),
            },
            outcome => return outcome,
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Errno::INTR),
            () = tokio::time::sleep(shortened(pause)) => pause = (pause * 2).min(pauses.end),
        }
    }
}

/// A pause less its random part.
fn shortened(pause: Duration) -> Duration {
    let span = (pause.as_micros() as u64 / PAUSE_JITTER).max(1);
    pause - Duration::from_micros(SystemRandom.u64() % span)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Fails with EAGAIN `busy` times, then gives `outcome`; counts the tries.
    async fn run(cancel: Cancel, wait: bool, again: &[Duration], busy: u32, outcome: Result<(), Errno>) -> (Result<(), Errno>, u32) {
        let tries = AtomicU32::new(0);
        let attempt = || {
            let n = tries.fetch_add(1, Ordering::Relaxed);
            async move { if n < busy { Err(Errno::AGAIN) } else { outcome } }
        };
        let result = acquire(&cancel, wait, again, PAUSES_FAR, attempt).await;
        (result, tries.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn without_waiting_there_is_one_try() {
        assert_eq!(run(Cancel::default(), false, &[], 1, Ok(())).await, (Err(Errno::AGAIN), 1));
        assert_eq!(run(Cancel::default(), false, &[], 0, Ok(())).await, (Ok(()), 1));
    }

    #[tokio::test]
    async fn who_does_not_wait_asks_again_where_unlocks_lag() {
        assert_eq!(run(Cancel::default(), false, &ASK_AGAIN, 1, Ok(())).await, (Ok(()), 2));
        assert_eq!(run(Cancel::default(), false, &ASK_AGAIN, 9, Ok(())).await, (Err(Errno::AGAIN), 3));
    }

    #[tokio::test]
    async fn a_waiter_tries_until_it_is_granted_or_fails() {
        assert_eq!(run(Cancel::default(), true, &[], 4, Ok(())).await, (Ok(()), 5));
        assert_eq!(run(Cancel::default(), true, &[], 2, Err(Errno::NOLCK)).await, (Err(Errno::NOLCK), 3));
    }

    #[tokio::test]
    async fn a_waiter_called_off_leaves_at_once() {
        let cancel = Cancel::default();
        let waiting = tokio::spawn(run(cancel.clone(), true, &[], u32::MAX, Ok(())));
        tokio::task::yield_now().await;
        cancel.cancel();
        let (result, _) = waiting.await.unwrap();
        assert_eq!(result, Err(Errno::INTR));
        // Called off before it began to wait: it still tried, and a grant is a grant.
        assert_eq!(run(cancel.clone(), true, &[], 0, Ok(())).await, (Ok(()), 1));
        assert_eq!(run(cancel, true, &[], 1, Ok(())).await, (Err(Errno::INTR), 1));
    }
}
