//! What a server must be and allow, found out before anything depends on it (metadata §1.6).

use super::error::Fault;
use super::link::{Link, info_field};
use super::script::Program;
use super::wire::{list, prefixed};
use crate::env::{Random, SystemRandom};
use crate::meta::key;
use crate::meta::store::{BytesRange, Guard, Key, Query, StoreError, Write};
use bytes::Bytes;
use std::sync::Once;
use tracing::warn;

/// Oldest server with the commands the script uses.
const VERSION_MIN: (u32, u32) = (4, 0);

/// Runs all checks. What only endangers the data later is a warning.
pub(super) async fn run(link: &Link, digest: &str, writes: bool) -> Result<(), StoreError> {
    server(link).await?;
    let probe = key::probe(SystemRandom.u64());
    let found = rights(link, &prefixed(&link.prefix, &probe), writes).await;
    let found = match found {
        Ok(()) => script(link, digest, &probe, writes).await,
        failed => failed,
    };
    if writes {
        // Also after a failure half way; nothing else names this key.
        let _ = link.request(redis::cmd("DEL").arg(&prefixed(&link.prefix, &probe)[..])).await;
    }
    found
}

async fn server(link: &Link) -> Result<(), StoreError> {
    let info = match link.request(&redis::cmd("INFO")).await {
        Ok(info) => info,
        Err(StoreError::ReadOnly(why)) => {
            warn!("cannot look at the settings of the Redis server: {why}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    if let Some(version) = info_field(&info, "redis_version") {
        let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
        if (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < VERSION_MIN {
            return Err(StoreError::Failed(format!("Redis {version} is too old; version 4.0 or newer is needed")));
        }
    }
    if info_field(&info, "aof_enabled").as_deref() == Some("0") {
        static TOLD: Once = Once::new();
        TOLD.call_once(|| warn!("AOF is not enabled, you may lose data if Redis is not shutdown properly."));
    }
    let policy = info_field(&info, "maxmemory_policy");
    let flash = info_field(&info, "storage_provider").as_deref() == Some("flash");
    if let Some(policy) = policy.filter(|policy| policy != "noeviction" && !flash) {
        let set = link.request(redis::cmd("CONFIG").arg("SET").arg("maxmemory-policy").arg("noeviction")).await;
        let now = link.request(redis::cmd("CONFIG").arg("GET").arg("maxmemory-policy")).await.and_then(list);
        if set.is_err() || !now.is_ok_and(|now| now.iter().any(|value| value == "noeviction")) {
            warn!("maxmemory_policy is {policy:?}, please set it to 'noeviction': this server may throw metadata away when it is full");
        }
    }
    link.request(&redis::cmd("PING")).await?;
    Ok(())
}

/// Every command once, by itself: the refusal names it.
async fn rights(link: &Link, probe: &Key, writes: bool) -> Result<(), StoreError> {
    let commands: &[(&str, &[&str])] = &[
        ("DEL", &[]),
        ("SET", &["v"]),
        ("MSET", &["v"]),
        ("SETRANGE", &["0", "v"]),
        ("GET", &[]),
        ("MGET", &[]),
        ("TYPE", &[]),
        ("DEL", &[]),
        ("INCRBY", &["1"]),
        ("DEL", &[]),
        ("HSET", &["f", "1"]),
        ("HSETNX", &["f", "1"]),
        ("HGET", &["f"]),
        ("HMGET", &["f"]),
        ("HGETALL", &[]),
        ("HLEN", &[]),
        ("HSTRLEN", &["f"]),
        ("EXISTS", &[]),
        ("HSCAN", &["0"]),
        ("HINCRBY", &["f", "1"]),
        ("HDEL", &["g"]),
        ("EXPIRE", &["60"]),
        ("PERSIST", &[]),
        ("DEL", &[]),
        ("RPUSH", &["e"]),
        ("RPUSHX", &["e"]),
        ("LPUSH", &["e"]),
        ("LRANGE", &["0", "-1"]),
        ("LTRIM", &["1", "-1"]),
        ("DEL", &[]),
        ("SADD", &["m"]),
        ("SMEMBERS", &[]),
        ("SREM", &["n"]),
        ("DEL", &[]),
        ("ZADD", &["1", "m"]),
        ("ZSCORE", &["m"]),
        ("ZRANGEBYSCORE", &["-inf", "1"]),
        ("ZRANGE", &["0", "0"]),
        ("ZSCAN", &["0"]),
        ("ZREM", &["m"]),
        ("DEL", &[]),
    ];
    const LOOKS: &[&str] = &[
        "GET",
        "MGET",
        "TYPE",
        "HGET",
        "HMGET",
        "HGETALL",
        "HLEN",
        "HSCAN",
        "LRANGE",
        "SMEMBERS",
        "ZSCORE",
        "ZRANGEBYSCORE",
        "ZRANGE",
        "ZSCAN",
    ];
    for (name, args) in commands.iter().filter(|(name, _)| writes || LOOKS.contains(name)) {
        link.request(redis::cmd(name).arg(&probe[..]).arg(*args)).await.map_err(|error| missing(name, error))?;
    }
    link.request(redis::cmd("SCAN").arg(0).arg("COUNT").arg(1)).await.map_err(|error| missing("SCAN", error))?;
    Ok(())
}

/// The script, with every verb.
async fn script(link: &Link, digest: &str, probe: &Key, writes: bool) -> Result<(), StoreError> {
    let k = || probe.clone();
    let b = Bytes::from_static;
    // The number of no slice.
    let list: [Write; 26] = [
        Write::PutFrame(0, b(b"f")),
        Write::DelFrame(0),
        Write::Del(k()),
        Write::Set(k(), b(&[0; 8])),
        Write::Patch { key: k(), offset: 4, bytes: b(b"abcd") },
        Write::AddU32 { key: k(), offset: 0, delta: 1 },
        Write::Del(k()),
        Write::IncrBy(k(), 1),
        Write::Del(k()),
        Write::HSet(k(), b(b"f"), b(b"1")),
        Write::HIncrBy(k(), b(b"f"), 1),
        Write::HIncrIfPresent(k(), b(b"f"), 1),
        Write::HDel(k(), b(b"g")),
        Write::Del(k()),
        Write::RPush(k(), vec![b(b"1")]),
        Write::RPushX(k(), b(b"2")),
        Write::LPush(k(), vec![b(b"0")]),
        Write::LTrim(k(), 1),
        Write::Del(k()),
        Write::SAdd(k(), b(b"m")),
        Write::SRem(k(), b(b"n")),
        Write::Del(k()),
        Write::ZAdd(k(), 1, b(b"m")),
        Write::ZRem(k(), b(b"n")),
        Write::Del(k()),
        Write::HSet(k(), b(b"f"), b(b"1")),
    ];
    let guards = [Guard::HashEmpty(k())];
    let reads = [Query::HGetAll(k())];
    let bytes_guard = [Guard::Bytes(k(), vec![(BytesRange { from: 0, to: None }, Bytes::new())])];
    let program = if writes {
        Program::new(&link.prefix, &guards, &list, &reads, 0)?
    } else {
        Program::new(&link.prefix, &bytes_guard, &[], &[], 0)?
    };
    let mut patience = link.patience();
    let mut by_digest = Some(digest);
    loop {
        let live = link.live(&mut patience).await?;
        match link.attempt(&live, &program.command(by_digest, None)).await {
            Ok(reply) => return program.decode(reply).map(|_| ()).map_err(|error| missing("EVALSHA", error)),
            Err(Fault::NoScript) => by_digest = None,
            Err(Fault::Store(error)) => {
                let name = if by_digest.is_some() { "EVALSHA" } else { "EVAL" };
                return Err(missing(name, error));
            }
            Err(fault) => link.pause(&mut patience, fault).await?,
        }
    }
}

/// What the operator has to allow.
fn missing(command: &str, error: StoreError) -> StoreError {
    let scripting = command.starts_with("EVAL");
    match error {
        StoreError::ReadOnly(why) if scripting => StoreError::ReadOnly(format!(
            "the Redis user may not run scripts, which every change needs; allow {command} (ACL category @scripting) and what the script uses: {why}"
        )),
        StoreError::ReadOnly(why) => StoreError::ReadOnly(format!("the Redis user may not use {command}; allow it: {why}")),
        StoreError::Failed(why) if scripting => {
            StoreError::Failed(format!("the server cannot run the script that every change needs ({command}): {why}"))
        }
        StoreError::Failed(why) => StoreError::Failed(format!("the server refuses {command}: {why}")),
        error => error,
    }
}
