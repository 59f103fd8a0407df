//! `Handed`: which names the kernel was told, directory by directory, so that they can be taken back when another host changes the directory.

use crate::types::Ino;
use bytes::Bytes;
use lru::LruCache;
use std::collections::HashSet;
use std::sync::Mutex;

/// Names remembered of one directory. Taking back more costs more than looking for those that changed.
const NAMES_MAX: usize = 128;
/// Names remembered of all: about 8 MiB. One that is not remembered is believed until the kernel's timeout ends.
const ALL_NAMES_MAX: usize = 65_536;

/// What is to be taken back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// These, if anything.
    These(Vec<Bytes>),
    /// Too many to take all back.
    Many,
}

#[derive(Default)]
struct Dir {
    names: HashSet<Bytes>,
    is_many: bool,
}

struct Dirs {
    dirs: LruCache<Ino, Dir>,
    names: usize,
}

/// The names of one mount.
pub(crate) struct Handed(Mutex<Dirs>);

impl Handed {
    pub fn new() -> Handed {
        Handed(Mutex::new(Dirs { dirs: LruCache::unbounded(), names: 0 }))
    }

    /// The kernel is about to be told what a name stands for.
    pub fn note(&self, dir: Ino, name: &[u8]) {
        let mut all = self.lock();
        let known = all.dirs.get_or_insert_mut(dir, Dir::default);
        if known.is_many || known.names.contains(name) {
            return;
        }
        if known.names.len() == NAMES_MAX {
            known.is_many = true;
            known.names = HashSet::new();
            all.names -= NAMES_MAX;
            return;
        }
        known.names.insert(Bytes::copy_from_slice(name));
        all.names += 1;
        // A directory of many names counts for one, so that they are bounded, too.
        while all.names + all.dirs.len() > ALL_NAMES_MAX {
            let Some((_, oldest)) = all.dirs.pop_lru() else { break };
            all.names -= oldest.names.len();
        }
    }

    /// The directory was changed: what the kernel was told of it so far.
    pub fn take(&self, dir: Ino) -> Names {
        let mut all = self.lock();
        if all.dirs.peek(&dir).is_some_and(|known| known.is_many) {
            return Names::Many;
        }
        let names = all.dirs.pop(&dir).unwrap_or_default().names;
        all.names -= names.len();
        Names::These(names.into_iter().collect())
    }

    /// What the kernel was told of all directories so far. Names of large ones are believed until the kernel's timeout ends.
    pub fn take_all(&self) -> Vec<(Ino, Vec<Bytes>)> {
        let mut all = self.lock();
        all.names = 0;
        let dirs = all.dirs.iter_mut().map(|(dir, known)| (*dir, known.names.drain().collect())).collect();
        let small: Vec<Ino> = all.dirs.iter().filter(|(_, known)| !known.is_many).map(|(dir, _)| *dir).collect();
        for dir in small {
            all.dirs.pop(&dir);
        }
        dirs
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Dirs> {
        self.0.lock().expect("never poisoned: no code under it panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_back_once_and_remembered_within_bounds() {
        let handed = Handed::new();
        handed.note(Ino(1), b"a");
        handed.note(Ino(1), b"a");
        assert_eq!(handed.take(Ino(1)), Names::These(vec![Bytes::from("a")]));
        assert_eq!(handed.take(Ino(1)), Names::These(Vec::new()));
        for n in 0..=NAMES_MAX {
            handed.note(Ino(2), n.to_string().as_bytes());
        }
        assert_eq!((handed.take(Ino(2)), handed.take(Ino(2))), (Names::Many, Names::Many));
        for dir in 0..2000u64 {
            for n in 0..50u8 {
                handed.note(Ino(10 + dir), &[n]);
            }
        }
        assert_eq!(handed.take(Ino(10)), Names::These(Vec::new()));
        let Names::These(names) = handed.take(Ino(2009)) else { panic!("not so many") };
        assert_eq!(names.len(), 50);
        {
            let all = handed.lock();
            assert!(all.names + all.dirs.len() <= ALL_NAMES_MAX);
            assert_eq!(all.names, all.dirs.iter().map(|(_, dir)| dir.names.len()).sum::<usize>());
        }
        handed.note(Ino(2008), b"new");
        let taken = handed.take_all();
        assert_eq!(taken.iter().find(|(dir, _)| *dir == Ino(2008)).map(|(_, names)| names.len()), Some(51));
        let none: Vec<_> = handed.take_all().into_iter().filter(|(_, names)| !names.is_empty()).collect();
        assert_eq!((none, handed.lock().names), (Vec::new(), 0));
    }
}
