//! What an answer, or the lack of one, means: another try, another server, or the end.

use crate::meta::store::StoreError;
use redis::{ErrorKind, RedisError, ServerError};

/// Why an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The connection broke or no answer came: it may have happened.
    Lost(String),
    /// The server did nothing and will soon do it.
    Later(String),
    /// This server does nothing, another one may: a failover or a cluster that moves.
    Elsewhere(String),
    /// The script is not loaded; nothing was done.
    NoScript,
    /// For good; nothing was done.
    Store(StoreError),
}

impl Fault {
    pub(super) fn of(error: &RedisError) -> Fault {
        let detail = error.detail().unwrap_or_default();
        match error.kind() {
            ErrorKind::Server(kind) => of_server(ServerCode { code: error.code().unwrap_or_default(), detail, kind: Some(kind) }),
            ErrorKind::Extension => of_server(ServerCode { code: error.code().unwrap_or_default(), detail, kind: None }),
            ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig => Fault::Store(StoreError::Failed(error.to_string())),
            // A reply that is no RESP leaves the stream out of step: the connection is of no use any more.
            _ => Fault::Lost(error.to_string()),
        }
    }

    pub(super) fn of_reply(error: &ServerError) -> Fault {
        of_server(ServerCode { code: error.code(), detail: error.details().unwrap_or_default(), kind: error.kind() })
    }
}

struct ServerCode<'a> {
    code: &'a str,
    detail: &'a str,
    kind: Option<redis::ServerErrorKind>,
}

fn of_server(ServerCode { code, detail, kind }: ServerCode) -> Fault {
    // Before Redis 7 an error inside a script is quoted in the text of another one.
    let quotes = |word: &str| code == word || (code == "ERR" && detail.contains(word));
    let text = format!("{code} {detail}");
    if kind == Some(redis::ServerErrorKind::NoScript) {
        return Fault::NoScript;
    }
    // MISCONF: it cannot save to its disk at the moment.
    if ["LOADING", "TRYAGAIN", "BUSY", "MASTERDOWN", "NOREPLICAS", "ASK", "MISCONF"].contains(&code)
        || quotes("MISCONF ")
        || detail.contains("max number of clients")
        || quotes("NOREPLICAS ")
        // A key of the slot is on its way to another node.
        || detail.contains("attempted to access a non local key")
    {
        return Fault::Later(text);
    }
    if ["READONLY", "MOVED", "CLUSTERDOWN", "UNBLOCKED"].contains(&code) || quotes("READONLY ") || quotes("CLUSTERDOWN ") {
        return Fault::Elsewhere(text);
    }
    Fault::Store(if quotes("OOM ") || code == "OOM" {
        StoreError::Full(text)
    } else if quotes("WRONGTYPE ") || code == "WRONGTYPE" {
        StoreError::Damaged(text)
    } else if code == "NOPERM" || detail.contains("can't run this command") || detail.contains("can't access at least one of the keys") {
        StoreError::ReadOnly(text)
    } else {
        StoreError::Failed(text)
    })
}
