//! Listings with the server's cursors: what stays is seen at least once, what comes or goes may be seen, and a table that shrinks
//! meanwhile shows some names twice.
//!
//! Our cursor is the server's, behind a mark of the server's life: its order depends on a seed it draws at start. A cursor of another
//! life begins anew, so that nothing is missed.

use super::link::Link;
use super::tracking::Interest;
use super::wire::{bytes, list, pairs, prefixed, score, sequence, stripped};
use crate::meta::codec;
use crate::meta::key;
use crate::meta::store::{Cursor, ScanItem, ScanPage, ScanRange, StoreError};
use bytes::Bytes;
use redis::Value as Reply;

/// Items asked for at once: the server stops for everybody else for about as long as for a commit or two.
const COUNT_MAX: u32 = 1000;
/// Keys looked at per answer. Most of them may be others than those asked for.
const KEYS_COUNT: u32 = 1000;

/// One page. May hold some more than `limit`, as the server's tables are cut.
pub(super) async fn page(link: &Link, range: &ScanRange, cursor: Cursor, limit: u32) -> Result<ScanPage, StoreError> {
    let life = crc32fast::hash(link.run_id().await?.as_bytes()).to_be_bytes();
    let mut at = match cursor.strip_prefix(&life) {
        Some(at) => Bytes::copy_from_slice(at),
        None => Bytes::from_static(b"0"),
    };
    loop {
        let (next, items) = step(link, range, &at, limit.clamp(1, COUNT_MAX)).await?;
        let next = (next.as_ref() != b"0").then_some(next);
        match next {
            // Empty pages are no news to the caller.
            Some(next) if items.is_empty() => at = next,
            next => {
                let items = if let ScanRange::Dir(_) = range { with_records(link, items).await? } else { items };
                return Ok(ScanPage { items, next: next.map(|next| [&life[..], &next].concat().into()) });
            }
        }
    }
}

async fn step(link: &Link, range: &ScanRange, at: &Bytes, count: u32) -> Result<(Bytes, Vec<ScanItem>), StoreError> {
    let prefix = &link.prefix;
    let cmd = match range {
        ScanRange::Hash(key) | ScanRange::Dir(key) => {
            redis::cmd("HSCAN").arg(&prefixed(prefix, key)[..]).arg(&at[..]).arg("COUNT").arg(count).to_owned()
        }
        ScanRange::Sorted(key) => redis::cmd("ZSCAN").arg(&prefixed(prefix, key)[..]).arg(&at[..]).arg("COUNT").arg(count).to_owned(),
        ScanRange::Keys(begin) => {
            redis::cmd("SCAN").arg(&at[..]).arg("MATCH").arg(&pattern(&prefixed(prefix, begin))[..]).arg("COUNT").arg(KEYS_COUNT).to_owned()
        }
    };
    // What a listing tells is remembered as long as nobody changes it.
    let interest = match range {
        ScanRange::Hash(key) | ScanRange::Dir(key) if key::is_of_inode(key) => Interest::InAll,
        _ => Interest::None,
    };
    let mut parts = sequence(link.request_told(&cmd, interest).await?)?.into_iter();
    let (Some(next), Some(found)) = (parts.next(), parts.next()) else {
        return Err(StoreError::Failed("the server sent half a page".into()));
    };
    let next = bytes(next)?.unwrap_or_default();
    let item = |name, value| ScanItem { name, value, record: Bytes::new() };
    let items = match range {
        ScanRange::Hash(_) | ScanRange::Dir(_) => pairs(found)?.into_iter().map(|(name, value)| item(name, value)).collect(),
        ScanRange::Sorted(_) => {
            let scored = pairs(found)?.into_iter().map(|(member, text)| Ok(item(member, key::decimal(score(&text)?))));
            scored.collect::<Result<_, StoreError>>()?
        }
        ScanRange::Keys(_) => list(found)?.into_iter().map(|name| item(stripped(prefix, &name), Bytes::new())).collect(),
    };
    Ok((next, items))
}

/// Fetches the records the entries name.
async fn with_records(link: &Link, mut items: Vec<ScanItem>) -> Result<Vec<ScanItem>, StoreError> {
    for part in items.chunks_mut(COUNT_MAX as usize) {
        let mut cmd = redis::cmd("MGET");
        let mut named = Vec::new();
        for item in part.iter_mut() {
            if let Some((_, ino)) = codec::decode_entry(&item.value) {
                cmd.arg(&prefixed(&link.prefix, &key::inode(ino))[..]);
                named.push(item);
            }
        }
        if named.is_empty() {
            continue;
        }
        let records = sequence(link.request_told(&cmd, Interest::InAll).await?)?;
        for (item, record) in named.into_iter().zip(records) {
            item.record = match record {
                Reply::Nil => Bytes::new(),
                record => bytes(record)?.unwrap_or_default(),
            };
        }
    }
    Ok(items)
}

/// Matches exactly the keys that begin with these bytes.
fn pattern(begin: &[u8]) -> Vec<u8> {
    let mut pattern = Vec::with_capacity(begin.len() + 1);
    for byte in begin {
        if b"*?[]^\\".contains(byte) {
            pattern.push(b'\\');
        }
        pattern.push(*byte);
    }
    pattern.push(b'*');
    pattern
}
