//! `Listing`: the entries of an open directory by ordinal. A synchronous state machine: it says which page of the directory to read next
//! and is told what was read.
//!
//! An entry keeps the ordinal under which it was first shown for as long as the listing lasts, whatever comes or goes meanwhile: of
//! every page passed there remain its cursor in the store and a 32-bit hash of each name. Going back to a page reads it again and
//! gives each name its old ordinal; names that are new there are left out (readdir(3) may), names that are gone leave a gap. A million
//! entries cost 4 MiB while they are being listed, not a million entries.

use crate::meta::ops::{DirEntry, DirPage};
use crate::meta::store::Cursor;
use crate::types::Name;
use std::collections::{HashMap, HashSet, VecDeque};

/// Entries asked for at once: one read of the store takes about a millisecond, and two pages with their attributes stay below 1 MiB.
pub(crate) const PAGE_ENTRIES: u32 = 1024;
/// The same behind a network, where a read takes a round trip before it begins; two pages stay below 4 MiB.
pub(crate) const PAGE_ENTRIES_FAR: u32 = 4096;
/// Pages kept whole: where the reader is, and the one before, since the kernel steps back a little when its buffer was full.
const WHOLE_PAGES: usize = 2;
/// Entries handed out by one step: about what one reply to the kernel holds, since they are copied out of the page.
const STEP_ENTRIES: usize = 64;

/// An entry and its ordinal.
pub(crate) type Placed = (u64, DirEntry);

/// What to do to get at an ordinal.
#[derive(Debug)]
pub(crate) enum Step {
    /// These entries follow, in order, at least one; the page was read in the turn given (`Listing::turn`).
    Entries(Vec<Placed>, u64),
    /// Read a page from this cursor and tell `learn`.
    Read(Cursor),
    /// There are no more.
    End,
}

/// A page that was read once.
struct Page {
    /// Where it begins in the store.
    cursor: Cursor,
    /// Ordinal of its first entry.
    first: u64,
    /// Of the names as first read.
    hashes: Vec<u32>,
}

impl Page {
    fn end(&self) -> u64 {
        self.first + self.hashes.len() as u64
    }
}

/// The entries of a page, kept.
struct Whole {
    page: usize,
    entries: Vec<Placed>,
    turn: u64,
}

/// A page that is being read again.
struct Again {
    page: usize,
    /// Ordinals not yet found, by hash, last first. The last one stays and is given to every further name of that hash, so that a
    /// collision shows a name twice rather than never.
    places: HashMap<u32, Vec<u64>>,
    missing: usize,
    found: Vec<Placed>,
}

/// The state of one listing.
#[derive(Default)]
pub(crate) struct Listing {
    /// In order, none empty.
    pages: Vec<Page>,
    /// Where the page after the last one begins; `None` if there is none. Before anything was read: the start.
    next: Option<Cursor>,
    started: bool,
    /// Most recently used last.
    whole: VecDeque<Whole>,
    again: Option<Again>,
    turn: u64,
}

impl Listing {
    /// Forgets everything; the directory is listed afresh.
    pub fn restart(&mut self) {
        *self = Listing { turn: self.turn, ..Listing::default() };
    }

    /// A new request begins: pages read from now on bear its number.
    pub fn begin(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    /// How to get at the entries from `ordinal` on.
    pub fn step(&mut self, ordinal: u64) -> Step {
        self.again = None;
        let mut ordinal = ordinal;
        loop {
            let index = self.pages.partition_point(|page| page.end() <= ordinal);
            let Some(page) = self.pages.get(index) else {
                if !self.started {
                    return Step::Read(Cursor::new());
                }
                // Past what is known. An ordinal of an earlier life of this handle is reached by reading up to it.
                return self.next.clone().map_or(Step::End, Step::Read);
            };
            if let Some(whole) = recent(&mut self.whole, index) {
                let from = whole.entries.partition_point(|(at, _)| *at < ordinal);
                if from < whole.entries.len() {
                    let to = whole.entries.len().min(from + STEP_ENTRIES);
                    return Step::Entries(whole.entries[from..to].to_vec(), whole.turn);
                }
                // The rest of this page is gone from the directory.
                ordinal = page.end();
                continue;
            }
            let mut places: HashMap<u32, Vec<u64>> = HashMap::with_capacity(page.hashes.len());
            for (i, hash) in page.hashes.iter().enumerate().rev() {
                places.entry(*hash).or_default().push(page.first + i as u64);
            }
            let cursor = page.cursor.clone();
            self.again = Some(Again { page: index, places, missing: page.hashes.len(), found: Vec::new() });
            return Step::Read(cursor);
        }
    }

    /// What was read from the cursor that `step` (or the last `learn`) named. Answers where to read on for the same page, if it must.
    pub fn learn(&mut self, cursor: Cursor, mut read: DirPage) -> Option<Cursor> {
        // A name the kernel would refuse must not hide the rest of the directory.
        read.entries.retain(|entry| Name::new(&entry.name).is_ok());
        match self.again.take() {
            None => {
                self.learn_new(cursor, read);
                None
            }
            Some(again) => self.learn_again(again, read),
        }
    }

    fn learn_new(&mut self, cursor: Cursor, mut read: DirPage) {
        self.started = true;
        self.next = read.next;
        let last = self.pages.len().wrapping_sub(1);
        {
            // A store whose order shifts while it is read may show an entry again near where it was.
            let before = self.whole.iter().filter(|whole| whole.page == last).flat_map(|whole| &whole.entries);
            let mut names: HashSet<&[u8]> = before.map(|(_, entry)| entry.name.as_ref()).collect();
            let fresh: Vec<bool> = read.entries.iter().map(|entry| names.insert(entry.name.as_ref())).collect();
            let mut fresh = fresh.into_iter();
            read.entries.retain(|_| fresh.next().unwrap_or(true));
        }
        if read.entries.is_empty() {
            return;
        }
        let first = self.pages.last().map_or(0, Page::end);
        let hashes = read.entries.iter().map(|entry| hash(&entry.name)).collect();
        self.pages.push(Page { cursor, first, hashes });
        self.keep(Whole { page: self.pages.len() - 1, entries: (first..).zip(read.entries).collect(), turn: self.turn });
    }

    fn learn_again(&mut self, mut again: Again, read: DirPage) -> Option<Cursor> {
        let following: HashSet<u32> = self.pages.get(again.page + 1).map(|page| page.hashes.iter().copied().collect()).unwrap_or_default();
        let mut past_end = read.next.is_none();
        for entry in read.entries {
            let hash = hash(&entry.name);
            match again.places.get_mut(&hash) {
                Some(places) => {
                    let at = if places.len() > 1 { places.pop() } else { places.last().copied() };
                    let at = at.expect("a hash is entered with an ordinal, and the last one stays");
                    again.missing = again.missing.saturating_sub(1);
                    again.found.push((at, entry));
                }
                // A name of the following page: whatever was not found yet is gone.
                None if following.contains(&hash) => past_end = true,
                // New since: left out.
                None => {}
            }
        }
        if let Some(next) = read.next
            && again.missing > 0
            && !past_end
        {
            self.again = Some(again);
            return Some(next);
        }
        again.found.sort_by_key(|(at, _)| *at);
        self.keep(Whole { page: again.page, entries: again.found, turn: self.turn });
        None
    }

    fn keep(&mut self, whole: Whole) {
        self.whole.push_back(whole);
        if self.whole.len() > WHOLE_PAGES {
            self.whole.pop_front();
        }
    }
}

/// A whole page, from now on the most recently used one; `None` if it is not kept.
fn recent(whole: &mut VecDeque<Whole>, page: usize) -> Option<&Whole> {
    let at = whole.iter().position(|whole| whole.page == page)?;
    let found = whole.remove(at)?;
    whole.push_back(found);
    whole.back()
}

fn hash(name: &[u8]) -> u32 {
    crc32fast::hash(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Ino, Kind};
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// A directory in name order whose cursor is the last name passed.
    struct Directory {
        names: BTreeSet<String>,
        reads: usize,
    }

    impl Directory {
        fn of(names: impl IntoIterator<Item = String>) -> Directory {
            Directory { names: names.into_iter().collect(), reads: 0 }
        }

        fn read(&mut self, cursor: &Cursor, limit: usize) -> DirPage {
            self.reads += 1;
            let after = String::from_utf8(cursor.to_vec()).unwrap();
            let mut rest = self.names.range(after.clone()..).filter(|name| **name != after);
            let entries: Vec<DirEntry> = rest.by_ref().take(limit).map(|name| entry(name)).collect();
            let next = rest.next().and(entries.last()).map(|last| last.name.clone());
            DirPage { entries, next }
        }
    }

    fn entry(name: &str) -> DirEntry {
        DirEntry { name: Bytes::from(name.to_string()), ino: Ino(2), kind: Kind::File, attr: None }
    }

    fn names(n: usize) -> impl Iterator<Item = String> {
        (0..n).map(|i| format!("{i:05}"))
    }

    /// Up to `count` entries from `ordinal`, as a request takes them.
    fn take(listing: &mut Listing, dir: &mut Directory, page: usize, ordinal: u64, count: usize) -> Vec<(u64, String)> {
        let (mut out, mut ordinal) = (Vec::new(), ordinal);
        listing.begin();
        while out.len() < count {
            match listing.step(ordinal) {
                Step::End => break,
                Step::Read(cursor) => {
                    let mut at = Some(cursor);
                    while let Some(cursor) = at {
                        let read = dir.read(&cursor, page);
                        at = listing.learn(cursor, read);
                    }
                }
                Step::Entries(entries, _) => {
                    for (at, entry) in entries.into_iter().take(count - out.len()) {
                        assert!(at >= ordinal);
                        ordinal = at + 1;
                        out.push((at, String::from_utf8(entry.name.to_vec()).unwrap()));
                    }
                }
            }
        }
        out
    }

    #[test]
    fn every_entry_once_in_order_with_growing_ordinals() {
        for count in [0, 1, 9, 10, 11, 20, 95] {
            let mut dir = Directory::of(names(count));
            let all = take(&mut Listing::default(), &mut dir, 10, 0, usize::MAX);
            assert_eq!(all, (0u64..).zip(names(count)).collect::<Vec<_>>());
            assert!(dir.reads <= count / 10 + 1);
        }
    }

    #[test]
    fn a_page_kept_is_not_read_again() {
        let mut dir = Directory::of(names(40));
        let mut listing = Listing::default();
        take(&mut listing, &mut dir, 10, 0, 20);
        let reads = dir.reads;
        assert_eq!(take(&mut listing, &mut dir, 10, 3, 1)[0], (3, "00003".into()));
        assert_eq!(take(&mut listing, &mut dir, 10, 13, 1)[0], (13, "00013".into()));
        assert_eq!(dir.reads, reads);
        take(&mut listing, &mut dir, 10, 20, 20);
        assert_eq!(take(&mut listing, &mut dir, 10, 3, 1)[0], (3, "00003".into()));
        assert_eq!(dir.reads, reads + 3);
    }

    #[test]
    fn going_back_keeps_ordinals_although_entries_came_and_went() {
        let mut dir = Directory::of(names(60));
        let mut listing = Listing::default();
        take(&mut listing, &mut dir, 10, 0, usize::MAX);
        // More new names at the place than a page holds, and some of the old ones gone, one of them just passed.
        dir.names.extend((0..25).map(|i| format!("00004new{i:02}")));
        for gone in ["00003", "00007", "00009"] {
            dir.names.remove(gone);
        }
        let again = take(&mut listing, &mut dir, 10, 4, 7);
        let want: Vec<_> = [4, 5, 6, 8, 10, 11, 12].map(|i| (i, format!("{i:05}"))).into();
        assert_eq!(again, want);
        assert_eq!(take(&mut listing, &mut dir, 10, 3, 1)[0].0, 4);
    }

    #[test]
    fn a_page_whose_rest_is_gone_leads_to_the_next() {
        let mut dir = Directory::of(names(40));
        let mut listing = Listing::default();
        take(&mut listing, &mut dir, 10, 0, usize::MAX);
        for i in 5..10 {
            dir.names.remove(&format!("{i:05}"));
        }
        assert_eq!(take(&mut listing, &mut dir, 10, 5, 2), [(10, "00010".into()), (11, "00011".into())]);
        dir.names.clear();
        let mut listing = Listing::default();
        assert!(take(&mut listing, &mut dir, 10, 0, 5).is_empty());
    }

    #[test]
    fn an_entry_shown_twice_across_a_page_border_is_listed_once() {
        let mut listing = Listing::default();
        let page = |names: &[&str], next: Option<&'static str>| DirPage {
            entries: names.iter().map(|n| entry(n)).collect(),
            next: next.map(|n| Bytes::from_static(n.as_bytes())),
        };
        assert!(matches!(listing.step(0), Step::Read(_)));
        listing.learn(Cursor::new(), page(&["a", "b", "", "x/y"], Some("1")));
        assert!(matches!(listing.step(2), Step::Read(_)));
        listing.learn(Cursor::from_static(b"1"), page(&["b", "a"], Some("2")));
        assert!(matches!(listing.step(2), Step::Read(_)));
        listing.learn(Cursor::from_static(b"2"), page(&["b", "c", "c"], None));
        let Step::Entries(entries, _) = listing.step(2) else { panic!("c is there") };
        assert_eq!(entries.iter().map(|(at, e)| (*at, &e.name[..])).collect::<Vec<_>>(), [(2, &b"c"[..])]);
        assert!(matches!(listing.step(3), Step::End));
    }

    #[test]
    fn an_ordinal_never_seen_is_reached_by_reading_up_to_it() {
        let mut dir = Directory::of(names(40));
        assert_eq!(take(&mut Listing::default(), &mut dir, 10, 33, 1), [(33, "00033".into())]);
        assert!(take(&mut Listing::default(), &mut dir, 10, 99, 1).is_empty());
    }

    #[test]
    fn a_restart_sees_what_is_new() {
        let mut dir = Directory::of(names(3));
        let mut listing = Listing::default();
        take(&mut listing, &mut dir, 10, 0, usize::MAX);
        dir.names.insert("0new".into());
        assert_eq!(take(&mut listing, &mut dir, 10, 0, usize::MAX).len(), 3);
        listing.restart();
        assert_eq!(take(&mut listing, &mut dir, 10, 0, usize::MAX).len(), 4);
    }

    #[test]
    fn a_collision_shows_a_name_twice_rather_than_never() {
        // Both have the same CRC-32.
        let (one, two) = ("plumless", "buckeroo");
        assert_eq!(hash(one.as_bytes()), hash(two.as_bytes()));
        let mut dir = Directory::of(names(40).chain([one.to_string(), two.to_string()]));
        let mut listing = Listing::default();
        let all = take(&mut listing, &mut dir, 21, 0, usize::MAX);
        listing.whole.clear();
        assert_eq!(take(&mut listing, &mut dir, 21, 0, usize::MAX), all);
    }

    proptest! {
        /// Random changes and jumps: a name that is there all the time keeps its ordinal, and a walk from any ordinal shows every such
        /// name behind it.
        #[test]
        fn stable_under_change(page in 2usize..9, walked in 0usize..40, steps in prop::collection::vec((0u8..4, 0usize..60), 1..60)) {
            let stays: BTreeSet<String> = names(30).map(|n| format!("{n}s")).collect();
            let mut dir = Directory::of(stays.iter().cloned());
            let mut listing = Listing::default();
            let mut known: HashMap<String, u64> =
                take(&mut listing, &mut dir, page, 0, walked).into_iter().map(|(at, name)| (name, at)).collect();
            for (what, n) in steps {
                match what {
                    0 => { dir.names.insert(format!("{:05}x{n}", n / 2)); }
                    1 => { dir.names.remove(&format!("{:05}x{n}", n / 2)); }
                    2 => for (at, name) in take(&mut listing, &mut dir, page, n as u64, 5) {
                        prop_assert_eq!(*known.entry(name).or_insert(at), at);
                    },
                    _ => {
                        let seen: Vec<_> = take(&mut listing, &mut dir, page, n as u64, usize::MAX);
                        for (at, name) in &seen {
                            prop_assert_eq!(*known.entry(name.clone()).or_insert(*at), *at);
                        }
                        let shown: BTreeSet<_> = seen.iter().map(|(_, name)| name).collect();
                        for name in &stays {
                            prop_assert!(known.get(name).is_none_or(|at| *at < n as u64) || shown.contains(name));
                        }
                    }
                }
            }
        }
    }
}
