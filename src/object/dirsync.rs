//! Making directory entries durable, many callers by one fsync.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

/// Syncs directories. Callers of the same directory that come while a sync runs share the next one.
#[derive(Default)]
pub(crate) struct DirSync {
    groups: Mutex<HashMap<PathBuf, Arc<Group>>>,
}

#[derive(Default)]
struct Group {
    state: Mutex<State>,
    changed: Condvar,
}

/// Syncs of one directory are numbered from 1 in the order in which they begin.
#[derive(Default)]
struct State {
    begun: u64,
    running: bool,
    done: u64,
    /// The last one that failed, and how.
    failed: Option<(u64, i32)>,
}

impl DirSync {
    /// Returns once every entry made in `dir` before the call is durable. Blocks the thread.
    pub(crate) fn sync(&self, dir: &Path) -> io::Result<()> {
        let group = Arc::clone(self.lock().entry(dir.to_path_buf()).or_default());
        let result = group.sync(|| File::open(dir)?.sync_all());
        let mut groups = self.lock();
        // The map's and ours: nobody else waits, and nobody can join while the map is locked.
        if Arc::strong_count(&group) == 2 {
            groups.remove(dir);
        }
        drop(group);
        result
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Arc<Group>>> {
        self.groups.lock().expect("never poisoned: no code under it panics")
    }
}

impl Group {
    fn sync(&self, fsync: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.state.lock().expect("never poisoned: no code under it panics");
        // One that has begun already may have passed our entry by: only the next one counts.
        let wanted = state.begun + 1;
        loop {
            if state.done >= wanted {
                return match state.failed {
                    // The kernel forgets what it could not write: a later success says nothing about our entry.
                    Some((number, errno)) if number >= wanted => Err(io::Error::from_raw_os_error(errno)),
                    _ => Ok(()),
                };
            }
            if state.running {
                state = self.changed.wait(state).expect("never poisoned: no code under it panics");
                continue;
            }
            state.running = true;
            state.begun += 1;
            let number = state.begun;
            drop(state);
            let result = fsync();
            state = self.state.lock().expect("never poisoned: no code under it panics");
            state.running = false;
            state.done = number;
            if let Err(error) = &result {
                state.failed = Some((number, error.raw_os_error().unwrap_or(libc::EIO)));
            }
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    #[test]
    fn callers_share_the_sync_that_begins_after_them() {
        let group = Group::default();
        let syncs = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    group.sync(|| {
                        syncs.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(20));
                        Ok(())
                    })
                });
            }
        });
        let syncs = syncs.load(Ordering::SeqCst);
        assert!((1..16).contains(&syncs), "{syncs} syncs for 16 callers");
    }

    #[test]
    fn a_failure_reaches_the_caller_and_does_not_stick() {
        let group = Group::default();
        let failed = group.sync(|| Err(io::Error::from_raw_os_error(libc::EIO)));
        assert_eq!(failed.map_err(|e| e.raw_os_error()), Err(Some(libc::EIO)));
        assert!(group.sync(|| Ok(())).is_ok());
    }

    #[test]
    fn groups_do_not_pile_up() {
        let dir = tempfile::tempdir().unwrap();
        let syncs = DirSync::default();
        syncs.sync(dir.path()).unwrap();
        assert!(syncs.sync(&dir.path().join("none")).is_err());
        assert!(syncs.lock().is_empty());
    }
}
