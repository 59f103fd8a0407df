//! Queries and frames as SQL. Every function runs inside the transaction its caller began, or is one statement.

use super::error::Trouble;
use crate::meta::codec;
use crate::meta::key;
use crate::meta::store::{FRAMES_BYTES_MAX, FRAMES_LOOKED_AT_MAX, FramesKept, Key, Query, Value};
use crate::types::{FRAME_BYTES_MAX, SliceId};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Params, Row};

/// A blob column; anything else is damage.
pub(super) fn blob(row: &Row<'_>, column: usize) -> rusqlite::Result<Bytes> {
    row.get::<_, Vec<u8>>(column).map(Bytes::from)
}

/// All rows of a statement.
pub(super) fn rows<T>(
    conn: &Connection,
    sql: &str,
    params: impl Params,
    read: fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, Trouble> {
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map(params, read)?.collect::<rusqlite::Result<Vec<T>>>()?;
    Ok(rows)
}

/// The only row of a statement, if there is one.
pub(super) fn row<T>(
    conn: &Connection,
    sql: &str,
    params: impl Params,
    read: fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>, Trouble> {
    Ok(conn.prepare_cached(sql)?.query_row(params, read).optional()?)
}

/// Pages of the database that hold nothing.
pub(super) fn free_pages(conn: &Connection) -> Result<i64, Trouble> {
    Ok(row(conn, "PRAGMA freelist_count", [], |row| row.get(0))?.unwrap_or(0))
}

/// A string.
pub(super) fn string(conn: &Connection, key: &[u8]) -> Result<Option<Bytes>, Trouble> {
    row(conn, "SELECT v FROM string WHERE k = ?1", [key], |row| blob(row, 0))
}

/// A field of a hash.
pub(super) fn field(conn: &Connection, key: &[u8], name: &[u8]) -> Result<Option<Bytes>, Trouble> {
    row(conn, "SELECT v FROM hash WHERE k = ?1 AND f = ?2", [key, name], |row| blob(row, 0))
}

/// The record a directory entry names; `None` if the entry is damaged or the record missing.
pub(super) fn record_of(conn: &Connection, entry: &[u8]) -> Result<Option<Bytes>, Trouble> {
    match codec::decode_entry(entry) {
        Some((_, ino)) => string(conn, &key::inode(ino)),
        None => Ok(None),
    }
}

/// A frame by slice id. Ids are stored as the signed number of the same bits.
fn frame(conn: &Connection, id: SliceId) -> Result<Option<Bytes>, Trouble> {
    row(conn, "SELECT v FROM frame WHERE id = ?1", [id.cast_signed()], |row| blob(row, 0))
}

/// Answers one query.
pub(super) fn answer(conn: &Connection, query: &Query) -> Result<Value, Trouble> {
    Ok(match query {
        Query::Get(key) => Value::Bytes(string(conn, key)?),
        Query::HGet(key, name) => Value::Bytes(field(conn, key, name)?),
        Query::HGetAll(key) => {
            Value::Pairs(rows(conn, "SELECT f, v FROM hash WHERE k = ?1 ORDER BY f", [&key[..]], |row| Ok((blob(row, 0)?, blob(row, 1)?)))?)
        }
        Query::HLen { key, limit } => {
            let sql = "SELECT count(*) FROM (SELECT 1 FROM hash WHERE k = ?1 LIMIT ?2)";
            Value::Int(row(conn, sql, (&key[..], limit), |row| row.get(0))?.unwrap_or(0))
        }
        Query::List(key) => Value::List(list(conn, key)?),
        Query::SMembers(key) => Value::List(rows(conn, "SELECT m FROM member WHERE k = ?1 ORDER BY m", [&key[..]], |row| blob(row, 0))?),
        Query::ZScore(key, member) => {
            Value::Score(row(conn, "SELECT s FROM score WHERE k = ?1 AND m = ?2", [&key[..], member], |row| row.get(0))?)
        }
        Query::ZRange { key, max, limit } => {
            let sql = "SELECT m, s FROM score WHERE k = ?1 AND s <= ?2 ORDER BY s, m LIMIT ?3";
            Value::Scored(rows(conn, sql, (&key[..], max, limit), |row| Ok((blob(row, 0)?, row.get(1)?)))?)
        }
        Query::Entry { dir, name } => Value::Entry(match field(conn, dir, name)? {
            None => None,
            Some(entry) => {
                let record = record_of(conn, &entry)?;
                Some((entry, record))
            }
        }),
        Query::Frame(id) => Value::Bytes(frame(conn, *id)?),
        Query::Frames { list: key, until } => Value::Frames(frames(conn, &list(conn, key)?, *until)?),
        Query::OldestFrames { limit } => {
            let ids = rows(conn, "SELECT id FROM frame ORDER BY id LIMIT ?1", [limit], |row| row.get::<_, i64>(0))?;
            Value::Scored(ids.into_iter().map(|id| (Bytes::copy_from_slice(&id.to_be_bytes()), 0)).collect())
        }
        Query::FramesKept => {
            let kept =
                row(conn, "SELECT count(*), total(length(v)) FROM frame", [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, f64>(1)?)))?;
            let (count, bytes) = kept.unwrap_or_default();
            Value::Kept(FramesKept { count: count.unsigned_abs(), bytes: bytes as u64, oldest_ms: (count > 0).then_some(0) })
        }
    })
}

/// The frames that the newest elements of a list name, those behind `until`.
fn frames(conn: &Connection, elements: &[Bytes], until: SliceId) -> Result<Vec<(SliceId, Option<Bytes>)>, Trouble> {
    let (mut found, mut room) = (Vec::new(), FRAMES_BYTES_MAX);
    for record in elements.iter().rev().take(FRAMES_LOOKED_AT_MAX).filter_map(|element| codec::decode_slice(element)) {
        if until != 0 && record.id == until {
            break;
        }
        if record.id == 0 || record.size > FRAME_BYTES_MAX {
            continue;
        }
        let frame = frame(conn, record.id)?;
        let Some(left) = room.checked_sub(frame.as_ref().map_or(0, Bytes::len)) else { break };
        room = left;
        found.push((record.id, frame));
    }
    Ok(found)
}

fn list(conn: &Connection, key: &Key) -> Result<Vec<Bytes>, Trouble> {
    rows(conn, "SELECT v FROM list WHERE k = ?1 ORDER BY n", [&key[..]], |row| blob(row, 0))
}

/// Whether a query is answered by a single statement, so that it needs no transaction to see one state.
pub(super) fn is_single(query: &Query) -> bool {
    !matches!(query, Query::Entry { .. } | Query::Frames { .. })
}
