//! What SQLite's result codes mean to a caller.

use crate::meta::store::StoreError;
use rusqlite::{Connection, Error, ErrorCode, ffi};

/// The part of a result code that names its class.
const PRIMARY_CODE: i32 = 0xFF;

/// Why an attempt ended.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Another connection or process has the lock; worth another try.
    Busy(String),
    /// For good.
    Store(StoreError),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Trouble {
        Trouble::Store(error)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        let text = error.to_string();
        let code = match &error {
            // A column holds another type than the schema says, or a number out of range: somebody else wrote it.
            Error::FromSqlConversionFailure(..) | Error::IntegralValueOutOfRange(..) | Error::InvalidColumnType(..) => {
                return StoreError::Damaged(text).into();
            }
            Error::SqliteFailure(failure, _) => failure.code,
            _ => return StoreError::Failed(text).into(),
        };
        match code {
            // "Locking protocol" is what SQLite says after many lost races for a lock of the log; it is contention, too.
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed => Trouble::Busy(text),
            ErrorCode::DiskFull => StoreError::Full(text).into(),
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => StoreError::Damaged(text).into(),
            ErrorCode::ReadOnly | ErrorCode::PermissionDenied => StoreError::ReadOnly(text).into(),
            _ => StoreError::Failed(text).into(),
        }
    }
}

impl Trouble {
    /// Looks at the system's errno where SQLite's code says only "I/O error": quotas and the shared memory file run full that way.
    pub(super) fn explain(self, conn: &Connection) -> Trouble {
        let Trouble::Store(StoreError::Failed(text)) = self else { return self };
        // SAFETY: the handle is valid while `conn` lives, and only read here.
        let (code, errno) = unsafe { (ffi::sqlite3_errcode(conn.handle()), ffi::sqlite3_system_errno(conn.handle())) };
        if !matches!(code & PRIMARY_CODE, ffi::SQLITE_IOERR | ffi::SQLITE_CANTOPEN) {
            return StoreError::Failed(text).into();
        }
        let io = std::io::Error::from_raw_os_error(errno);
        match errno {
            libc::ENOSPC | libc::EDQUOT => StoreError::Full(format!("{text} ({io})")).into(),
            libc::EROFS | libc::EACCES | libc::EPERM => StoreError::ReadOnly(format!("{text} ({io})")).into(),
            0 => StoreError::Failed(text).into(),
            _ => StoreError::Failed(format!("{text} ({io})")).into(),
        }
    }
}

/// An I/O error of our own files.
pub(super) fn from_io(what: &str, error: &std::io::Error) -> StoreError {
    let text = format!("{what}: {error}");
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => StoreError::Full(text),
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => StoreError::ReadOnly(text),
        _ => StoreError::Failed(text),
    }
}
