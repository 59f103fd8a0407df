//! `Caller`: on whose behalf a request runs, and how it is called off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

/// The identity a request came with, and its cancellation.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Process (thread group of the requester), 0 if unknown.
    pub pid: u32,
    /// Set when the kernel interrupts the request.
    pub cancel: Cancel,
}

impl Caller {
    /// The daemon itself, acting as root.
    pub fn root() -> Caller {
        Caller::default()
    }
}

/// Who asks for something beside the kernel, which has checked nothing then: with all its groups, so that it can be held to permissions.
#[derive(Clone, Debug, Default)]
pub struct Asker {
    /// User.
    pub uid: u32,
    /// Groups, the effective one first.
    pub gids: Vec<u32>,
    /// Set when nobody waits for the answer any more.
    pub cancel: Cancel,
}

impl Asker {
    /// As the one on whose behalf operations run.
    pub fn caller(&self) -> Caller {
        Caller { uid: self.uid, gid: self.gids.first().copied().unwrap_or(self.uid), pid: 0, cancel: self.cancel.clone() }
    }

    /// Whether nothing is refused to it.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }
}

/// A request that may be interrupted. Waiting for locks, uploads and reads looks at it; a mutation is never left half done.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    cancelled: AtomicBool,
    notify: Notify,
}

impl Cancel {
    /// Calls the request off; wakes whoever waits in `cancelled`.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
        self.0.notify.notify_waiters();
    }

    /// Whether the request was called off.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// Returns once the request is called off; never otherwise.
    pub async fn cancelled(&self) {
        // Registered before the flag is read, so that a cancel in between is not missed.
        let notified = self.0.notify.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if !self.is_cancelled() {
            notified.await;
        }
    }
}
