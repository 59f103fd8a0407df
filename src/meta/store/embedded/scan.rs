//! Listings, in the order of the names' bytes. The cursor is the last name seen, so a listing goes on wherever entries come and go, and
//! what stays is seen exactly once. Names are never empty.

use super::error::Trouble;
use super::query::{blob, record_of, row, rows};
use crate::meta::store::{ScanItem, ScanPage, ScanRange};
use bytes::Bytes;
use rusqlite::Connection;

/// One page. Runs inside the caller's read transaction.
pub(super) fn page(conn: &Connection, range: &ScanRange, cursor: &[u8], limit: u32) -> Result<ScanPage, Trouble> {
    let limit = limit.max(1) as usize;
    // One more than asked for tells whether there is a next page.
    let more = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
    let pair = |row: &rusqlite::Row<'_>| Ok((blob(row, 0)?, blob(row, 1)?));
    let mut found: Vec<(Bytes, Bytes)> = match range {
        ScanRange::Hash(key) | ScanRange::Dir(key) => {
            let sql = "SELECT f, v FROM hash WHERE k = ?1 AND f > ?2 ORDER BY f LIMIT ?3";
            rows(conn, sql, (&key[..], cursor, more), pair)?
        }
        ScanRange::Sorted(key) => {
            let sql = "SELECT m, s FROM score WHERE k = ?1 AND m > ?2 ORDER BY m LIMIT ?3";
            rows(conn, sql, (&key[..], cursor, more), |row| Ok((blob(row, 0)?, row.get::<_, i64>(1)?.to_string().into())))?
        }
        ScanRange::Keys(prefix) => keys(conn, prefix, cursor, limit.saturating_add(1))?,
    };
    let next = (found.len() > limit).then(|| {
        found.truncate(limit);
        found.last().expect("a page holds at least one item when there are more than its limit").0.clone()
    });
    let mut items = Vec::with_capacity(found.len());
    for (name, value) in found {
        let record = match range {
            ScanRange::Dir(_) => record_of(conn, &value)?.unwrap_or_default(),
            _ => Bytes::new(),
        };
        items.push(ScanItem { name, value, record });
    }
    Ok(ScanPage { items, next })
}

/// For each table of keys, the first key at or after, and the first key after, a given one. A key with a million rows is skipped by one seek.
const KEY_SEEKS: [(&str, &str); 5] = [
    ("SELECT k FROM string WHERE k >= ?1 ORDER BY k LIMIT 1", "SELECT k FROM string WHERE k > ?1 ORDER BY k LIMIT 1"),
    ("SELECT k FROM hash WHERE k >= ?1 ORDER BY k LIMIT 1", "SELECT k FROM hash WHERE k > ?1 ORDER BY k LIMIT 1"),
    ("SELECT k FROM list WHERE k >= ?1 ORDER BY k LIMIT 1", "SELECT k FROM list WHERE k > ?1 ORDER BY k LIMIT 1"),
    ("SELECT k FROM member WHERE k >= ?1 ORDER BY k LIMIT 1", "SELECT k FROM member WHERE k > ?1 ORDER BY k LIMIT 1"),
    ("SELECT k FROM score WHERE k >= ?1 ORDER BY k LIMIT 1", "SELECT k FROM score WHERE k > ?1 ORDER BY k LIMIT 1"),
];

/// Merges the keys of all tables.
fn keys(conn: &Connection, prefix: &[u8], cursor: &[u8], count: usize) -> Result<Vec<(Bytes, Bytes)>, Trouble> {
    let seek = |sql: &str, from: &[u8]| Ok::<_, Trouble>(row(conn, sql, [from], |row| blob(row, 0))?.filter(|key| key.starts_with(prefix)));
    let mut heads = Vec::with_capacity(KEY_SEEKS.len());
    for (at, after) in KEY_SEEKS {
        heads.push(if cursor < prefix {
            seek(at, prefix)?
        } else if cursor.is_empty() {
            seek(at, b"")?
        } else {
            seek(after, cursor)?
        });
    }
    let mut found = Vec::new();
    while found.len() < count {
        let Some(least) = heads.iter().flatten().min().cloned() else { break };
        for (head, (_, after)) in heads.iter_mut().zip(KEY_SEEKS) {
            if head.as_ref() == Some(&least) {
                *head = seek(after, &least)?;
            }
        }
        found.push((least, Bytes::new()));
    }
    Ok(found)
}
