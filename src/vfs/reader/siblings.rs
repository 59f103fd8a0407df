//! `Siblings`: small files of a directory that are read one after the other, in the order of a listing or of their names, as tar, cp, grep and a
//! shell's `*` do. What comes next is fetched ahead; of somebody who walks through a tree also what the next directories hold.
//!
//! Only a guess: a file that is gone or has grown since the listing is merely fetched in vain.

use crate::types::Ino;
use bytes::Bytes;
use lru::LruCache;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Files up to this size are fetched ahead. Larger ones bring their own readahead.
pub(super) const SMALL_BYTES_MAX: u64 = 512 << 10;
/// Files remembered over all directories: some source trees; about 100 bytes each.
const FILES_MAX: usize = 65_536;
/// Files fetched ahead when an order has just been found, and in the end: at 20 ms for an object and half a millisecond to open and read one that
/// is there, forty are on their way at once.
const AHEAD_FILES: std::ops::RangeInclusive<usize> = 16..=64;
/// Bytes fetched ahead of one directory at once.
pub(super) const AHEAD_BYTES_MAX: u64 = 8 << 20;
/// Files that may be left out, or read by others of the same kind, without that the order is lost.
const GAP: usize = 8;
/// Entries of a directory that is fetched ahead which are looked at: what is fetched ahead of one whose order has just been found.
pub(super) const FIRST_ENTRIES: u32 = 32;
/// Directories fetched ahead of the one that is being read. With a dozen files in each that is as much as is fetched ahead of one large directory.
const AHEAD_DIRS: usize = 4;
/// For so long after files of one directory were read in order those of the next one are expected to be, too: somebody walks through a tree.
const WALK: Duration = Duration::from_secs(2);

/// An entry of a listing, as far as it matters.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    /// The file or directory.
    pub ino: Ino,
    /// It is a directory.
    pub is_dir: bool,
    /// Its length.
    pub length: u64,
    /// Its name.
    pub name: Bytes,
}

/// What to fetch now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ahead {
    /// Files in order, with their lengths.
    pub files: Vec<(Ino, u32)>,
    /// Directories whose first files are to be fetched.
    pub dirs: Vec<Ino>,
}

/// What is known of directories.
pub(super) struct Siblings(Mutex<Memory>);

struct Memory {
    dirs: LruCache<Ino, Dir>,
    /// Of each file its directory and its places.
    places: HashMap<Ino, Place>,
    /// Of each directory the one it is in, and its place there.
    dir_places: HashMap<Ino, (Ino, usize)>,
    /// Listings that have not come to their end.
    begun: LruCache<Ino, Vec<Listed>>,
    /// When files were last read in order.
    walked: Option<Duration>,
}

#[derive(Clone, Copy)]
struct Place {
    dir: Ino,
    at: [u32; 2],
}

/// Small files of one directory, as listed and by name, and its directories as listed.
struct Dir {
    orders: [Order; 2],
    /// With the time when they were last fetched ahead.
    dirs: Vec<(Ino, Option<Duration>)>,
}

impl Dir {
    /// A file of the directory at this place is read by somebody who walks through the tree: the directories to fetch now. However many walk
    /// through it at once, each is fetched once.
    fn walk(&mut self, at: usize, now: Duration) -> Vec<Ino> {
        let next = self.dirs.iter_mut().skip(at + 1).take(AHEAD_DIRS);
        let due = next.filter(|(_, fetched)| fetched.is_none_or(|fetched| fetched + WALK < now));
        due.map(|(ino, fetched)| {
            *fetched = Some(now);
            *ino
        })
        .collect()
    }
}

#[derive(Default)]
struct Order {
    files: Vec<(Ino, u32)>,
    /// Place that is expected to be read next, after `run` in a row.
    next: usize,
    run: usize,
    /// Fetched ahead up to here.
    ahead_to: usize,
}

impl Order {
    /// The file at this place is read: what to fetch now.
    fn read(&mut self, at: usize, walking: bool) -> Option<&[(Ino, u32)]> {
        let first = self.run == 0;
        if at < self.next && at + GAP >= self.next && !first {
            // One of several readers is a little behind.
            return None;
        }
        if at + GAP < self.next || at > self.next + GAP {
            (self.run, self.ahead_to) = (0, 0);
        }
        self.run += 1;
        self.next = at + 1;
        if self.run == 1 && !(first && walking) {
            return None;
        }
        let window = (self.run * 8).clamp(*AHEAD_FILES.start(), *AHEAD_FILES.end());
        let from = self.ahead_to.max(self.next);
        if from > self.next + window / 2 {
            return None;
        }
        let to = (self.next + window).min(self.files.len());
        let mut bytes = 0;
        let fits = |(_, length): &&(Ino, u32)| {
            bytes += u64::from(*length);
            bytes <= AHEAD_BYTES_MAX
        };
        let count = self.files.get(from..to)?.iter().take_while(fits).count();
        self.ahead_to = from + count;
        (count > 0).then(|| &self.files[from..from + count])
    }
}

impl Siblings {
    pub fn new() -> Siblings {
        let begun = LruCache::new(std::num::NonZeroUsize::new(16).expect("not zero"));
        let (places, dir_places) = (HashMap::new(), HashMap::new());
        Siblings(Mutex::new(Memory { dirs: LruCache::unbounded(), places, dir_places, begun, walked: None }))
    }

    /// Takes note of a part of a listing; `first` begins it, `last` ends it.
    pub fn listed(&self, dir: Ino, files: impl Iterator<Item = Listed>, first: bool, last: bool) {
        let mut memory = self.lock();
        let mut so_far = if first { Vec::new() } else { memory.begun.pop(&dir).unwrap_or_default() };
        let room = FILES_MAX.saturating_sub(so_far.len());
        so_far.extend(files.filter(|file| file.is_dir || (file.length > 0 && file.length <= SMALL_BYTES_MAX)).take(room));
        if last {
            memory.learn(dir, so_far);
        } else {
            memory.begun.put(dir, so_far);
        }
    }

    /// A file is read from its beginning: what to fetch now.
    pub fn read(&self, ino: Ino, now: Duration) -> Ahead {
        let mut memory = self.lock();
        let Some(place) = memory.places.get(&ino).copied() else { return Ahead::default() };
        let walking = memory.walked.is_some_and(|walked| walked + WALK >= now);
        let Some(dir) = memory.dirs.get_mut(&place.dir) else { return Ahead::default() };
        let mut ahead = Ahead::default();
        let mut in_order = false;
        for (order, at) in dir.orders.iter_mut().zip(place.at) {
            let found = order.read(at as usize, walking).map(<[_]>::to_vec);
            in_order |= order.run > 1;
            if ahead.files.is_empty() {
                ahead.files = found.unwrap_or_default();
            }
        }
        if (walking || in_order)
            && let Some((parent, at)) = memory.dir_places.get(&place.dir).copied()
            && let Some(parent) = memory.dirs.get_mut(&parent)
        {
            ahead.dirs = parent.walk(at, now);
        }
        if in_order {
            memory.walked = Some(now);
        }
        ahead
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().expect("never poisoned: no code under it panics")
    }
}

impl Memory {
    fn learn(&mut self, dir: Ino, listed: Vec<Listed>) {
        if let Some(old) = self.dirs.pop(&dir) {
            self.forget(dir, &old);
        }
        if listed.is_empty() {
            return;
        }
        let (dirs, mut files): (Vec<_>, Vec<_>) = listed.into_iter().partition(|entry| entry.is_dir);
        let dirs: Vec<_> = dirs.into_iter().map(|entry| (entry.ino, None)).collect();
        self.dir_places.extend(dirs.iter().enumerate().map(|(at, (ino, _))| (*ino, (dir, at))));
        let order =
            |files: &[Listed]| Order { files: files.iter().map(|file| (file.ino, file.length as u32)).collect(), ..Order::default() };
        let listed = order(&files);
        for (at, (ino, _)) in (0..).zip(&listed.files) {
            self.places.insert(*ino, Place { dir, at: [at, at] });
        }
        files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let named = order(&files);
        for (at, (ino, _)) in (0..).zip(&named.files) {
            if let Some(place) = self.places.get_mut(ino) {
                place.at[1] = at;
            }
        }
        self.dirs.put(dir, Dir { orders: [listed, named], dirs });
        while self.places.len() + self.dir_places.len() > FILES_MAX {
            let Some((dir, old)) = self.dirs.pop_lru() else { break };
            self.forget(dir, &old);
        }
    }

    fn forget(&mut self, dir: Ino, old: &Dir) {
        for (ino, _) in &old.orders[0].files {
            // A file with several names belongs to the directory that was listed last.
            if self.places.get(ino).is_some_and(|place| place.dir == dir) {
                self.places.remove(ino);
            }
        }
        for (ino, _) in &old.dirs {
            if self.dir_places.get(ino).is_some_and(|(parent, _)| *parent == dir) {
                self.dir_places.remove(ino);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: Ino = Ino(1);

    /// Files whose names sort the other way round than they are listed.
    fn listed(dir: u64, count: u64) -> Vec<Listed> {
        (0..count)
            .map(|n| Listed { ino: Ino(dir * 1000 + n), is_dir: false, length: 1000, name: Bytes::from(format!("{:05}", 1000 - n)) })
            .collect()
    }

    fn numbers(ahead: &Ahead) -> Vec<u64> {
        ahead.files.iter().map(|(ino, _)| ino.0 % 1000).collect()
    }

    #[test]
    fn files_read_in_either_order_are_fetched_ahead_once() {
        for backwards in [false, true] {
            let siblings = Siblings::new();
            let files = listed(1, 200);
            siblings.listed(DIR, files[..50].iter().cloned(), true, false);
            siblings.listed(DIR, files[50..].iter().cloned(), false, true);
            let mut fetched = Vec::new();
            let mut least = usize::MAX;
            for n in 0..200 {
                let n = if backwards { 199 - n } else { n };
                fetched.extend(numbers(&siblings.read(Ino(1000 + n), Duration::from_secs(9))));
                if (10..140).contains(&n) && !backwards {
                    least = least.min(fetched.len() + 1 - n as usize);
                }
            }
            let expected: Vec<u64> = if backwards { (0..198).rev().collect() } else { (2..200).collect() };
            assert_eq!(fetched, expected);
            assert!(backwards || least >= 8, "{least} files ahead");
        }
    }

    #[test]
    fn random_reads_fetch_nothing_and_a_walk_goes_on_in_the_next_directory() {
        let siblings = Siblings::new();
        for dir in 1..=3 {
            siblings.listed(Ino(dir), listed(dir, 100).into_iter(), true, true);
        }
        let at = Duration::from_secs;
        for n in [50, 3, 80, 20, 99, 35] {
            assert_eq!(siblings.read(Ino(1000 + n), at(9)), Ahead::default(), "{n}");
        }
        assert_eq!(siblings.read(Ino(2000), at(9)), Ahead::default());
        assert_eq!(numbers(&siblings.read(Ino(2001), at(9))), (2..18).collect::<Vec<_>>());
        assert_eq!(numbers(&siblings.read(Ino(3000), at(10))), (1..17).collect::<Vec<_>>(), "at once");
        // It is long over.
        siblings.listed(Ino(4), listed(4, 100).into_iter(), true, true);
        assert_eq!(siblings.read(Ino(4000), at(20)), Ahead::default());
    }

    #[test]
    fn a_walk_fetches_the_next_directories_once() {
        let siblings = Siblings::new();
        let dirs = (1..=9).map(|dir| Listed { ino: Ino(dir), is_dir: true, length: 4096, name: Bytes::from(dir.to_string()) });
        siblings.listed(Ino(100), dirs.clone(), true, true);
        let read = |dir: u64, second: u64| {
            siblings.listed(Ino(dir), listed(dir, 3).into_iter(), true, true);
            (0..3).flat_map(|n| siblings.read(Ino(dir * 1000 + n), Duration::from_secs(second)).dirs).map(|ino| ino.0).collect::<Vec<_>>()
        };
        assert_eq!(read(1, 1), [2, 3, 4, 5]);
        assert_eq!(read(2, 1), [6]);
        assert_eq!(read(5, 1), [7, 8, 9]);
        assert_eq!(read(9, 1), [] as [u64; 0]);
        assert_eq!(read(1, 2), [] as [u64; 0], "another walk, at the same time");
        assert_eq!(read(5, 2), [] as [u64; 0], "and at another place");
        assert_eq!(read(1, 9), [2, 3, 4, 5], "again");
        let memory = siblings.lock();
        assert_eq!(memory.dir_places.len(), 9);
        drop(memory);
        siblings.listed(Ino(100), dirs.take(1), true, true);
        assert_eq!(siblings.lock().dir_places.len(), 1);
    }

    #[test]
    fn memory_is_bounded_and_large_files_are_left_out() {
        let siblings = Siblings::new();
        let many = |dir: u64, count: u64| {
            (0..count).map(move |n| Listed { ino: Ino((dir << 32) + n), is_dir: false, length: 1, name: Bytes::new() })
        };
        siblings.listed(Ino(1), many(1, 40_000), true, true);
        siblings.listed(Ino(2), many(2, 40_000), true, true);
        siblings.listed(Ino(2), many(2, 30_000), true, true);
        let memory = siblings.lock();
        assert_eq!((memory.dirs.len(), memory.places.len()), (1, 30_000));
        drop(memory);
        let mut files = listed(3, 10);
        files[4].length = SMALL_BYTES_MAX + 1;
        for file in &mut files[6..] {
            file.length = AHEAD_BYTES_MAX / 16;
        }
        siblings.listed(Ino(3), files.into_iter(), true, true);
        siblings.read(Ino(3000), Duration::ZERO);
        assert_eq!(numbers(&siblings.read(Ino(3001), Duration::ZERO)), [2, 3, 5, 6, 7, 8, 9]);
    }
}
