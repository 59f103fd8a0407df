//! The database: opening a connection, creating the tables, recognising what is not ours.

use super::error::Trouble;
use crate::meta::store::StoreError;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;

/// `PRAGMA application_id`: "Pndo".
const APPLICATION_ID: i32 = 0x506E_646F;
/// `PRAGMA user_version`: raised when the tables change.
const SCHEMA_VERSION: i32 = 1;
/// Statements a connection keeps compiled: all of ours are fewer.
const STATEMENTS_MAX: usize = 64;
/// Bytes of a page: that of the filesystem, so that copying the log never reads a block to write half of it. Smaller pages made commits
/// no cheaper when measured.
const PAGE_BYTES: u32 = 4096;
/// Page cache of the connection that writes (and reads while nobody writes), in KiB. Not larger: when a page splits, SQLite walks all of
/// its cache's hash table at the end of the commit.
const WRITER_CACHE_KIB: i32 = 32_768;
/// Page cache of a connection that only reads, in KiB. It is emptied by every commit anyway.
const READER_CACHE_KIB: i32 = 4_096;

const TABLES: [&str; 6] = ["string", "hash", "list", "member", "score", "frame"];

/// One table per type of key. The columns: key, field, position, value, member, score.
const SCHEMA: &str = "
    CREATE TABLE string (k BLOB NOT NULL PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE hash (k BLOB NOT NULL, f BLOB NOT NULL, v BLOB NOT NULL, PRIMARY KEY (k, f)) WITHOUT ROWID;
    CREATE TABLE list (k BLOB NOT NULL, n INTEGER NOT NULL, v BLOB NOT NULL, PRIMARY KEY (k, n)) WITHOUT ROWID;
    CREATE TABLE member (k BLOB NOT NULL, m BLOB NOT NULL, PRIMARY KEY (k, m)) WITHOUT ROWID;
    CREATE TABLE score (k BLOB NOT NULL, m BLOB NOT NULL, s INTEGER NOT NULL, PRIMARY KEY (k, m)) WITHOUT ROWID;
    CREATE INDEX score_order ON score (k, s, m);
    CREATE TABLE frame (id INTEGER PRIMARY KEY, v BLOB NOT NULL);
";

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Commits.
    Writer,
    /// Reads, or moves the log into the database.
    Reader,
}

/// A connection to the database file, which is created if it is missing. Busy means: try again.
pub(super) fn connect(path: &Path, role: Role) -> Result<Connection, Trouble> {
    // Our own mutexes keep each connection to one thread at a time.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    let ready = (|| {
        // Waiting is done by the caller, without a lock of this process.
        conn.busy_timeout(std::time::Duration::ZERO)?;
        // Comes before the first page is written, and is ignored later.
        conn.execute_batch(&format!("PRAGMA page_size = {PAGE_BYTES}"))?;
        recognise(&conn)?;
        if conn.is_readonly("main")? {
            return Err(StoreError::ReadOnly("the database file is read-only".into()).into());
        }
        let mode: String = conn.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        if mode != "wal" {
            let why = format!(
                "{} cannot hold a write-ahead log (journal mode {mode}): its filesystem lacks shared memory or locks",
                path.display()
            );
            return Err(StoreError::Failed(why).into());
        }
        settle(&conn, role)?;
        // Commits never move the log into the database: the checkpoint thread does.
        // A log that is started over is cut first. Its frames are not aligned to pages, so writing over old ones that have left the page
        // cache would read each back from the disk: measured, that was half of the time of a commit.
        conn.execute_batch("PRAGMA wal_autocheckpoint = 0; PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = 0")?;
        create(&conn)?;
        check(&conn)
    })();
    match ready {
        Ok(()) => Ok(conn),
        Err(trouble) => Err(trouble.explain(&conn)),
    }
}

/// A database that lives as long as its only connection.
pub(super) fn connect_in_memory() -> Result<Connection, Trouble> {
    let conn = Connection::open_in_memory()?;
    conn.execute_batch(&format!("PRAGMA page_size = {PAGE_BYTES}"))?;
    settle(&conn, Role::Writer)?;
    create(&conn)?;
    Ok(conn)
}

fn settle(conn: &Connection, role: Role) -> Result<(), Trouble> {
    let cache = if role == Role::Writer { WRITER_CACHE_KIB } else { READER_CACHE_KIB };
    conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    conn.execute_batch(&format!("PRAGMA temp_store = MEMORY; PRAGMA cache_size = -{cache}"))?;
    Ok(())
}

fn number(conn: &Connection, sql: &str) -> Result<i32, Trouble> {
    Ok(conn.query_row(sql, [], |row| row.get(0))?)
}

/// Whether this is our database: `Ok(true)` yes, `Ok(false)` it is empty; anything else is refused before a byte of it is changed.
fn recognise(conn: &Connection) -> Result<bool, Trouble> {
    let id = number(conn, "PRAGMA application_id")?;
    let version = number(conn, "PRAGMA user_version")?;
    if id == APPLICATION_ID {
        return match version {
            SCHEMA_VERSION => Ok(true),
            newer if newer > SCHEMA_VERSION => {
                Err(StoreError::Failed(format!("the database has version {newer}, this program knows {SCHEMA_VERSION}: use a newer one"))
                    .into())
            }
            other => Err(StoreError::Damaged(format!("the database has version {other}")).into()),
        };
    }
    let things = number(conn, "SELECT count(*) FROM sqlite_schema")?;
    if id == 0 && version == 0 && things == 0 {
        return Ok(false);
    }
    Err(StoreError::Damaged(format!("the database belongs to another program (application id {id:#x})")).into())
}

/// Creates the tables in one transaction: another process sees none of them or all.
fn create(conn: &Connection) -> Result<(), Trouble> {
    if recognise(conn)? {
        return Ok(());
    }
    conn.execute_batch("BEGIN IMMEDIATE")?;
    let created = (|| {
        // Another process may have been faster.
        if !recognise(conn)? {
            conn.execute_batch(SCHEMA)?;
            conn.execute_batch(&format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}"))?;
        }
        conn.execute_batch("COMMIT")?;
        Ok(())
    })();
    if created.is_err() && !conn.is_autocommit() {
        let _ = conn.execute_batch("ROLLBACK");
    }
    created
}

/// A quick look: the tables are there and their first pages can be read.
fn check(conn: &Connection) -> Result<(), Trouble> {
    for table in TABLES {
        match conn.query_row(&format!("SELECT count(*) FROM (SELECT 1 FROM {table} LIMIT 1)"), [], |_| Ok(())) {
            Ok(()) => {}
            Err(error) => {
                return Err(match Trouble::from(error) {
                    Trouble::Store(StoreError::Failed(why)) => StoreError::Damaged(why).into(),
                    other => other,
                });
            }
        }
    }
    Ok(())
}

/// Copies every row into an empty database.
pub(super) fn copy(from: &Connection, to: &Connection) -> Result<(), Trouble> {
    to.execute_batch("BEGIN")?;
    for table in TABLES {
        let mut select = from.prepare(&format!("SELECT * FROM {table}"))?;
        let columns = select.column_count();
        let places = vec!["?"; columns].join(", ");
        let mut insert = to.prepare(&format!("INSERT INTO {table} VALUES ({places})"))?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let values = (0..columns).map(|column| row.get(column)).collect::<rusqlite::Result<Vec<rusqlite::types::Value>>>()?;
            insert.execute(rusqlite::params_from_iter(values))?;
        }
    }
    to.execute_batch("COMMIT")?;
    Ok(())
}
