//! What goes over the wire: keys with the prefix of the volume, and replies of the server as values.

use crate::meta::codec;
use crate::meta::store::{FramesKept, Query, StoreError, Value};
use crate::types::SliceId;
use bytes::Bytes;
use redis::Value as Reply;

/// Keys under which sets keep names of keys: these bear the prefix, too (metadata §1.5).
pub(super) const SETS_OF_KEYS: &[u8] = b"locked";

/// A reply as the value of a query.
pub(super) fn value(prefix: &[u8], query: &Query, reply: Reply) -> Result<Value, StoreError> {
    Ok(match query {
        Query::Get(_) | Query::HGet(..) | Query::Frame(_) => Value::Bytes(bytes(reply)?),
        Query::HGetAll(_) => {
            let mut pairs = pairs(reply)?;
            // The server's order says nothing; a fixed one makes answers comparable.
            pairs.sort();
            Value::Pairs(pairs)
        }
        Query::HLen { limit, .. } => match reply {
            Reply::Int(count) => Value::Int(count.min(i64::from(*limit))),
            _ => return Err(strange("a length that is no number")),
        },
        Query::List(_) => Value::List(list(reply)?),
        Query::SMembers(key) => {
            let mut members = list(reply)?;
            if key.starts_with(SETS_OF_KEYS) {
                members.iter_mut().for_each(|member| *member = stripped(prefix, member));
            }
            members.sort();
            Value::List(members)
        }
        Query::ZScore(..) => Value::Score(bytes(reply)?.map(|text| score(&text)).transpose()?),
        Query::ZRange { .. } | Query::OldestFrames { .. } => {
            Value::Scored(pairs(reply)?.into_iter().map(|(member, text)| Ok((member, score(&text)?))).collect::<Result<_, StoreError>>()?)
        }
        Query::Entry { .. } => {
            if reply == Reply::Nil {
                return Ok(Value::Entry(None));
            }
            let mut parts = sequence(reply)?.into_iter();
            let (Some(entry), Some(record)) = (parts.next(), parts.next()) else { return Err(strange("half an entry")) };
            let entry = bytes(entry)?.ok_or_else(|| strange("an entry without its value"))?;
            // The script looks at the length only.
            let record = if codec::decode_entry(&entry).is_some() { bytes(record)? } else { None };
            Value::Entry(Some((entry, record)))
        }
        Query::Frames { .. } => Value::Frames(frames(reply)?),
        Query::FramesKept => Value::Kept(kept(reply)?),
    })
}

fn frames(reply: Reply) -> Result<Vec<(SliceId, Option<Bytes>)>, StoreError> {
    let mut items = sequence(reply)?.into_iter();
    let mut frames = Vec::new();
    while let (Some(id), Some(frame)) = (items.next(), items.next()) {
        let id = bytes(id)?.and_then(|id| id[..].try_into().ok()).ok_or_else(|| strange("a frame of no slice"))?;
        frames.push((u64::from_be_bytes(id), bytes(frame)?));
    }
    Ok(frames)
}

fn kept(reply: Reply) -> Result<FramesKept, StoreError> {
    let mut parts = sequence(reply)?.into_iter();
    let (Some(Reply::Int(count)), Some(total), Some(oldest)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(strange("half of what is kept"));
    };
    let count = u64::try_from(count).unwrap_or(0);
    let total = bytes(total)?.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()).unwrap_or(0);
    let oldest_ms = list(oldest)?.get(1).map(|text| score(text)).transpose()?;
    Ok(FramesKept { count, bytes: total, oldest_ms })
}

/// A key as the server knows it.
pub(super) fn prefixed(prefix: &[u8], key: &Bytes) -> Bytes {
    if prefix.is_empty() { key.clone() } else { [prefix, key].concat().into() }
}

/// A key as the rest of the program knows it.
pub(super) fn stripped(prefix: &[u8], key: &Bytes) -> Bytes {
    if key.starts_with(prefix) { key.slice(prefix.len()..) } else { key.clone() }
}

pub(super) fn strange(what: &str) -> StoreError {
    StoreError::Failed(format!("the server sent {what}"))
}

pub(super) fn bytes(reply: Reply) -> Result<Option<Bytes>, StoreError> {
    match reply {
        Reply::BulkString(bytes) => Ok(Some(bytes.into())),
        Reply::SimpleString(text) => Ok(Some(text.into())),
        Reply::Int(number) => Ok(Some(number.to_string().into())),
        Reply::Nil => Ok(None),
        _ => Err(strange("something else than a string")),
    }
}

pub(super) fn sequence(reply: Reply) -> Result<Vec<Reply>, StoreError> {
    match reply {
        Reply::Array(items) | Reply::Set(items) => Ok(items),
        _ => Err(strange("something else than a list")),
    }
}

pub(super) fn list(reply: Reply) -> Result<Vec<Bytes>, StoreError> {
    sequence(reply)?.into_iter().map(|item| bytes(item)?.ok_or_else(|| strange("a list with a hole"))).collect()
}

pub(super) fn pairs(reply: Reply) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
    // The newer protocol sends scores beside their members.
    let flat = match sequence(reply)? {
        items if items.first().is_some_and(|item| matches!(item, Reply::Array(_))) => {
            items.into_iter().map(list).collect::<Result<Vec<_>, _>>()?.concat()
        }
        items => list(Reply::Array(items))?,
    };
    Ok(flat.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect())
}

/// Scores are times and the like; the server keeps them as doubles.
pub(super) fn score(text: &[u8]) -> Result<i64, StoreError> {
    let text = std::str::from_utf8(text).unwrap_or_default();
    if let Ok(whole) = text.parse() {
        return Ok(whole);
    }
    match text.parse::<f64>() {
        // Beyond the range of an i64 the nearest is as good.
        #[allow(clippy::cast_possible_truncation)]
        Ok(number) if number.fract() == 0.0 => Ok(number as i64),
        _ => Err(StoreError::Damaged(format!("a score that is no whole number: {text}"))),
    }
}
