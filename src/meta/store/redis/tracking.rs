//! Being told what others change: the server notes what this connection reads and pushes the names of keys that change (`CLIENT TRACKING`).
//!
//! A push that the server sent before an answer is taken in before the answer is: both come over the same connection, and the connection's
//! own task hands pushes on itself. So whoever has just had an answer, of a lock that was granted say, knows all that happened before it.
//!
//! What registers interest in a key: reading it by a plain command; or naming it in the KEYS of a script that reads something after its last
//! write (up to version 7.0 all of KEYS count, later versions count what is read: `commit.lua` does both). A write of our own ends it.

use super::connect::ask;
use super::error::Fault;
use super::script::bytes;
use crate::meta::store::Watcher;
use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind, Value as Reply};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tracing::info;

/// Who wants to be told, if anybody.
#[derive(Default)]
pub(super) struct Tracking {
    watcher: OnceLock<Arc<dyn Watcher>>,
    /// The server does not know the protocol or the command, or does not allow it.
    refused: AtomicBool,
}

impl Tracking {
    /// From the next connection on.
    pub fn set(&self, watcher: Arc<dyn Watcher>) {
        // A second one would be a mistake of ours, and the first goes on to be told.
        let _ = self.watcher.set(watcher);
    }

    /// Whether a connection should be made so that it can be told.
    pub fn is_wanted(&self) -> bool {
        !self.refused.load(Ordering::Relaxed)
    }

    /// The server cannot do it.
    pub fn refuse(&self, why: &str) {
        if !self.refused.swap(true, Ordering::Relaxed) {
            info!(
                "the Redis server does not tell what other clients change; what they do is seen when the timeouts of the mount end: {why}"
            );
        }
    }

    /// Makes the server tell. Everything known before means nothing for this connection.
    pub async fn begin(&self, conn: &mut MultiplexedConnection) -> Result<bool, Fault> {
        let Some(watcher) = self.watcher.get().filter(|_| self.is_wanted()) else { return Ok(false) };
        match ask(conn, redis::cmd("CLIENT").arg("TRACKING").arg("ON").arg("NOLOOP")).await {
            Ok(_) => {
                watcher.flushed();
                Ok(true)
            }
            Err(Fault::Store(error)) => {
                self.refuse(&error.to_string());
                Ok(false)
            }
            Err(fault) => Err(fault),
        }
    }

    /// Takes in a push.
    pub fn pushed(&self, push: PushInfo) {
        let Some(watcher) = self.watcher.get() else { return };
        match push.kind {
            PushKind::Invalidate => match push.data.into_iter().next() {
                Some(Reply::Array(keys)) => {
                    for key in keys {
                        match bytes(key) {
                            Ok(Some(key)) => watcher.changed(&key),
                            _ => watcher.flushed(),
                        }
                    }
                }
                // The database was emptied, or something was said that is not understood.
                _ => watcher.flushed(),
            },
            PushKind::Disconnection => watcher.flushed(),
            _ => {}
        }
    }

    /// A request that was sent `age` ago was answered by a connection that is told.
    pub fn answered(&self, age: Duration) {
        if let Some(watcher) = self.watcher.get() {
            watcher.heard(age);
        }
    }

    /// The connection is not used any more.
    pub fn lost(&self) {
        if let Some(watcher) = self.watcher.get() {
            watcher.flushed();
        }
    }
}
