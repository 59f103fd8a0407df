//! `Listings`: directories all of whose names are known, so that also a name that is not there can be answered from memory.

use crate::meta::changes::{Changes, Stamp};
use crate::meta::store::Key;
use bytes::Bytes;
use lru::LruCache;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::time::Duration;

/// Names of a directory that is remembered as a whole. Larger ones are rarely gone through.
pub(crate) const NAMES_MAX: usize = 4096;
/// Memory for all of them: the names of some 150,000 files.
const BYTES_MAX: usize = 16 << 20;
/// What a name takes beside its bytes.
const NAME_OVERHEAD: usize = 96;
/// Directories of which it is remembered when they were last loaded.
const ATTEMPTS_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// A directory is loaded no sooner again.
const PAUSE_MIN: Duration = Duration::from_secs(2);
/// One that others keep changing is loaded less and less often, down to this.
const PAUSE_MAX: Duration = Duration::from_secs(64);

struct Listing {
    names: HashMap<Bytes, Bytes>,
    stamp: Stamp,
    bytes: usize,
}

struct Attempt {
    at: Duration,
    pause: Duration,
}

pub(crate) struct Listings {
    listings: LruCache<Key, Listing>,
    bytes: usize,
    attempts: LruCache<Key, Attempt>,
}

fn bytes_of(name: &[u8], entry: &[u8]) -> usize {
    NAME_OVERHEAD + name.len() + entry.len()
}

impl Listings {
    pub fn new() -> Listings {
        Listings { listings: LruCache::unbounded(), bytes: 0, attempts: LruCache::new(ATTEMPTS_MAX) }
    }

    /// Keeps all names of a directory with their entries.
    pub fn put(&mut self, dir: Key, names: impl IntoIterator<Item = (Bytes, Bytes)>, stamp: Stamp) {
        self.remove(&dir);
        let names: HashMap<_, _> = names.into_iter().collect();
        if names.len() > NAMES_MAX {
            return;
        }
        let bytes = NAME_OVERHEAD + names.iter().map(|(name, entry)| bytes_of(name, entry)).sum::<usize>();
        self.bytes += bytes;
        self.listings.put(dir, Listing { names, stamp, bytes });
        self.shrink();
    }

    /// What a name stands for, `Some(None)` if for nothing; `None` if that is not known for sure.
    pub fn entry(&mut self, changes: &Changes, dir: &Key, name: &Bytes) -> Option<Option<Bytes>> {
        let listing = self.listings.get(dir)?;
        changes.stands(dir, listing.stamp).then(|| listing.names.get(name).cloned())
    }

    /// A commit of ours, sent at `asked` and taken in at `turn`, gave a name an entry or took it away.
    pub fn set(&mut self, changes: &Changes, dir: &Key, name: &Bytes, entry: Option<Bytes>, asked: u64, turn: u64) {
        let Some(listing) = self.listings.get_mut(dir) else { return };
        listing.stamp = changes.after_commit(dir, listing.stamp, asked, turn);
        let (mut added, mut removed) = (0, 0);
        let old = match entry {
            Some(entry) => {
                added = bytes_of(name, &entry);
                listing.names.insert(Bytes::copy_from_slice(name), entry)
            }
            None => listing.names.remove(name),
        };
        if let Some(old) = old {
            removed = bytes_of(name, &old);
        }
        listing.bytes = (listing.bytes + added).saturating_sub(removed);
        self.bytes = (self.bytes + added).saturating_sub(removed);
        let is_useful = listing.names.len() <= NAMES_MAX && changes.stands(dir, listing.stamp);
        if !is_useful {
            self.remove(dir);
        }
        self.shrink();
    }

    /// Forgets a directory.
    pub fn remove(&mut self, dir: &Key) {
        if let Some(old) = self.listings.pop(dir) {
            self.bytes = self.bytes.saturating_sub(old.bytes);
        }
    }

    /// Others have changed a directory. Answers what is known to have been in it.
    pub fn changed(&mut self, dir: &Key, now: Duration) -> Option<HashMap<Bytes, Bytes>> {
        if self.listings.contains(dir)
            && let Some(attempt) = self.attempts.peek_mut(dir)
        {
            let soon = now.saturating_sub(attempt.at) < PAUSE_MAX;
            attempt.pause = if soon { (attempt.pause * 2).min(PAUSE_MAX) } else { PAUSE_MIN };
        }
        let old = self.listings.pop(dir)?;
        self.bytes = self.bytes.saturating_sub(old.bytes);
        Some(old.names)
    }

    /// Which of these names do not stand for the same any more; `None` if that is not known.
    pub fn differing(&self, changes: &Changes, dir: &Key, before: &HashMap<Bytes, Bytes>) -> Option<Vec<Bytes>> {
        let now = self.listings.peek(dir).filter(|listing| changes.stands(dir, listing.stamp))?;
        Some(before.iter().filter(|(name, entry)| now.names.get(*name) != Some(entry)).map(|(name, _)| name.clone()).collect())
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.listings.clear();
        self.bytes = 0;
    }

    /// Whether it is time to load a directory; if so, the caller does.
    pub fn wants(&mut self, changes: &Changes, dir: &Key, now: Duration) -> bool {
        if self.listings.peek(dir).is_some_and(|listing| changes.stands(dir, listing.stamp)) {
            return false;
        }
        match self.attempts.get_mut(dir) {
            Some(attempt) if now < attempt.at + attempt.pause => false,
            Some(attempt) => {
                attempt.at = now;
                true
            }
            None => {
                self.attempts.put(dir.clone(), Attempt { at: now, pause: PAUSE_MIN });
                true
            }
        }
    }

    fn shrink(&mut self) {
        while self.bytes > BYTES_MAX {
            let Some((_, oldest)) = self.listings.pop_lru() else { break };
            self.bytes = self.bytes.saturating_sub(oldest.bytes);
        }
    }
}
