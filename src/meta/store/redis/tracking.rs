//! Being told what others change: the server notes what this connection reads and pushes the names of keys that change (`CLIENT TRACKING`).
//!
//! A push that the server sent before an answer is taken in before the answer is: both come over the same connection, and the connection's
//! own task hands pushes on itself. So whoever has just had an answer, of a lock that was granted say, knows all that happened before it.
//!
//! Interest in keys is registered by nothing but a command that follows on `CLIENT CACHING YES`. Without that (`OPTIN`) a script would register
//! all its KEYS (up to version 7.0), or whatever it reads (later): counters, frames and tokens, and every commit would be told to everybody. A
//! write of our own ends the interest, so it is registered again after it, in one transaction with it.

use super::connect::{as_before, ask};
use super::error::Fault;
use super::wire::bytes;
use crate::meta::store::Watcher;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, PushInfo, PushKind, Value as Reply};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tracing::info;

/// Of what a request wants to be told when others change it.
#[derive(Clone, Copy)]
pub(super) enum Interest<'a> {
    /// Of nothing.
    None,
    /// Of all keys the command reads: it must be a plain one.
    InAll,
    /// Of these keys, which the command only reads.
    Before(&'a [Bytes]),
    /// Of these keys as the command leaves them.
    After(&'a [Bytes]),
}

/// Sends a command and registers the interest with it, in one trip. An answer means that both happened.
pub(super) async fn ask_told(conn: &mut MultiplexedConnection, cmd: &Cmd, interest: Interest<'_>) -> Result<Reply, Fault> {
    let exists = |keys: &[Bytes]| {
        let mut exists = redis::cmd("EXISTS");
        for key in keys {
            exists.arg(&key[..]);
        }
        exists
    };
    let caching = redis::cmd("CLIENT").arg("CACHING").arg("YES").to_owned();
    let (commands, at) = match interest {
        Interest::None | Interest::Before([]) | Interest::After([]) => return ask(conn, cmd).await,
        Interest::InAll => (vec![caching, cmd.clone()], 1),
        Interest::Before(keys) => (vec![caching, exists(keys), cmd.clone()], 2),
        Interest::After(keys) => (vec![redis::cmd("MULTI"), cmd.clone(), caching, exists(keys), redis::cmd("EXEC")], 1),
    };
    let mut pipeline = redis::Pipeline::with_capacity(commands.len());
    for command in commands {
        pipeline.add_command(command);
    }
    let mut replies = conn.send_packed_commands(&pipeline, 0, pipeline.len()).await.map_err(|error| Fault::of(&error))?;
    if replies.len() != pipeline.len() {
        return Err(Fault::Lost("fewer answers than requests".into()));
    }
    if let Reply::ServerError(error) = &replies[at] {
        // Refused, also before a transaction began.
        return Err(Fault::of_reply(error));
    }
    let refused = |replies: &[Reply]| {
        replies.iter().find_map(|reply| if let Reply::ServerError(error) = reply { Some(error.to_string()) } else { None })
    };
    if let Some(why) = refused(&replies) {
        // A right that was taken away, say. The command may have been carried out all the same; a new connection finds out, and how to go on.
        return Err(Fault::Lost(why));
    }
    let last = replies.pop().unwrap_or(Reply::Nil);
    let Interest::After(_) = interest else { return Ok(as_before(last)) };
    match last {
        Reply::Array(mut parts) if parts.len() == 3 => {
            if let Reply::ServerError(error) = &parts[0] {
                return Err(Fault::of_reply(error));
            }
            match refused(&parts) {
                Some(why) => Err(Fault::Lost(why)),
                None => Ok(as_before(parts.swap_remove(0))),
            }
        }
        _ => Err(Fault::Lost("a transaction was not carried out".into())),
    }
}

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
        let begun = async {
            ask(conn, redis::cmd("CLIENT").arg("TRACKING").arg("ON").arg("OPTIN").arg("NOLOOP")).await?;
            // All of what comes with requests from now on must be allowed.
            for (command, args) in [("MULTI", &[][..]), ("DISCARD", &[]), ("CLIENT", &["CACHING", "YES"])] {
                ask(conn, redis::cmd(command).arg(args)).await?;
            }
            Ok(())
        };
        match begun.await {
            Ok(()) => {
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
