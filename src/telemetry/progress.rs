//! How far the long command of this process has come: stages one after the other, each with what is done and how much there will be. A process
//! runs one command, so all of it is the process's own. Whoever works tells it a page at a time; whoever looks never makes them wait.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    /// What is counted, in the plural; empty before the first.
    pub what: &'static str,
    /// How many are done.
    pub count: u64,
    /// Bytes of these, 0 if they have none.
    pub bytes: u64,
    /// How many there will be, as far as it is known; 0 = unknown.
    pub total: u64,
}

static STAGE: Mutex<Stage> = Mutex::new(Stage { what: "", count: 0, bytes: 0, total: 0 });

fn stage_now() -> MutexGuard<'static, Stage> {
    // A number is as good as before whoever held it panicked.
    STAGE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stage begins. `total` may be an estimate; 0 = unknown.
pub fn stage(what: &'static str, total: u64) {
    *stage_now() = Stage { what, total, ..Stage::default() };
}

/// So many more are done.
pub fn add(count: u64, bytes: u64) {
    let mut stage = stage_now();
    stage.count += count;
    stage.bytes += bytes;
}

/// So many are done by now.
pub fn set(count: u64, bytes: u64) {
    let mut stage = stage_now();
    (stage.count, stage.bytes) = (count, bytes);
}

/// How far it is.
pub fn now() -> Stage {
    *stage_now()
}
