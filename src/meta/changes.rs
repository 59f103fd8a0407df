//! `Changes`: whether what a watched store once said is still so.
//!
//! Time is counted in turns: every question to the store, every answer, every commit of our own and everything that others are said to have
//! changed is one. What the store said stands if nothing of its key was changed since it was *asked*: news of a change reach us before the
//! answers that were given after it, but not before those that were on their way.

use crate::meta::store::Key;
use std::time::Duration;

/// Keys are told apart by their hash in so many classes. A collision costs a trip. Half a megabyte each.
const CLASSES: usize = 1 << 16;
/// How long the store is believed to have told everything when nothing was heard of it: the bound of staleness when it is silently cut off.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// When something was said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The turn of the question.
    asked: u64,
    /// The turn of the answer.
    arrived: u64,
    /// The store tells of changes of it, and it is known what commits of ours made of it.
    is_sure: bool,
}

impl Stamp {
    /// What is known by this is not relied on any more.
    pub fn doubt(&mut self) {
        self.is_sure = false;
    }

    /// The stamp of an answer that says what was known, and may include a commit of ours that is not taken in yet.
    pub fn seen_again(self, turn: u64) -> Stamp {
        Stamp { arrived: turn, ..self }
    }

    /// Whether it came in this turn.
    pub fn is_of(&self, turn: u64) -> bool {
        self.arrived == turn
    }
}

pub(crate) struct Changes {
    turn: u64,
    /// For each class the turn in which others were last said to have changed something, or our interest ended.
    by_others: Vec<u64>,
    /// For each class the turn in which a commit of ours was last taken in.
    by_us: Vec<u64>,
    /// When everything may have changed.
    flushed: u64,
    /// Everything that happened before this time has been told.
    heard: Option<Duration>,
}

fn class(key: &[u8]) -> usize {
    crc32fast::hash(key) as usize % CLASSES
}

impl Changes {
    /// Nothing is watched.
    pub fn new() -> Changes {
        Changes { turn: 0, by_others: vec![0; CLASSES], by_us: vec![0; CLASSES], flushed: 0, heard: None }
    }

    /// The next turn, beginning at 1.
    pub fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    /// Something of the key was changed behind our back, or will be without us being told.
    pub fn changed(&mut self, key: &[u8]) {
        self.by_others[class(key)] = self.next_turn();
    }

    /// Nothing stands any more.
    pub fn flush(&mut self) {
        self.flushed = self.next_turn();
        self.heard = None;
    }

    /// All changes up to this time have been told.
    pub fn heard(&mut self, until: Duration) {
        self.heard = self.heard.max(Some(until));
    }

    /// Whether the store can be trusted to have told what has changed.
    pub fn is_heard(&self, now: Duration) -> bool {
        self.heard.is_some_and(|heard| now.saturating_sub(heard) <= SILENCE_MAX)
    }

    /// Notes a commit of ours that was taken in at `turn`.
    pub fn committed(&mut self, key: &Key, turn: u64) {
        self.by_us[class(key)] = turn;
    }

    /// The stamp of an answer to a question that was asked at `asked`. It may be of before or after a commit of ours that was taken in since.
    pub fn stamp(&self, key: &[u8], asked: u64, arrived: u64) -> Stamp {
        Stamp { asked, arrived, is_sure: self.by_us[class(key)] <= asked }
    }

    /// The stamp of an answer about something whose changes the store does not tell.
    pub fn unwatched(asked: u64, arrived: u64) -> Stamp {
        Stamp { asked, arrived, is_sure: false }
    }

    /// The stamp of a value that had this one and that a commit of ours, sent at `asked` and taken in at `turn`, changed in part.
    pub fn after_commit(&self, key: &[u8], before: Stamp, asked: u64, turn: u64) -> Stamp {
        // Known before the commit was sent, and not changed by another one of ours: else nobody knows which was the later.
        let in_order = self.by_us[class(key)] <= asked && (before.arrived < asked || before.arrived == turn);
        Stamp { arrived: turn, is_sure: before.is_sure && in_order, ..before }
    }

    /// Whether what has this stamp is still so, as far as we have been told.
    pub fn stands(&self, key: &[u8], stamp: Stamp) -> bool {
        stamp.is_sure && !self.is_outdated(key, stamp)
    }

    /// Whether a change of what has this stamp has been told, or may have been missed.
    pub fn is_outdated(&self, key: &[u8], stamp: Stamp) -> bool {
        stamp.asked <= self.by_others[class(key)] || stamp.asked <= self.flushed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_stands_until_a_change_that_came_after_its_question() {
        let (mut changes, key) = (Changes::new(), Key::from("i7"));
        assert!(!changes.stands(&key, Stamp::default()));
        let asked = changes.next_turn();
        let arrived = changes.next_turn();
        let stamp = changes.stamp(&key, asked, arrived);
        assert!(changes.stands(&key, stamp));
        changes.changed(b"i8");
        assert!(changes.stands(&key, stamp));
        changes.changed(&key);
        assert!(!changes.stands(&key, stamp));
        // The news came while the answer was on its way.
        let asked = changes.next_turn();
        changes.changed(&key);
        let arrived = changes.next_turn();
        assert!(!changes.stands(&key, changes.stamp(&key, asked, arrived)));
        let asked = changes.next_turn();
        let stamp = changes.stamp(&key, asked, asked + 1);
        changes.flush();
        assert!(!changes.stands(&key, stamp));
    }

    #[test]
    fn what_overlaps_a_commit_of_ours_does_not_stand() {
        let (mut changes, key) = (Changes::new(), Key::from("i7"));
        let known = {
            let asked = changes.next_turn();
            let arrived = changes.next_turn();
            changes.stamp(&key, asked, arrived)
        };
        let (first, second, question) = (changes.next_turn(), changes.next_turn(), changes.next_turn());
        let taken_in = changes.next_turn();
        let after = changes.after_commit(&key, known, first, taken_in);
        assert!(changes.stands(&key, after));
        changes.committed(&key, taken_in);
        // Another commit that was under way at the same time, and an answer.
        let arrived = changes.next_turn();
        assert!(!changes.stands(&key, changes.after_commit(&key, after, second, arrived)));
        assert!(!changes.stands(&key, changes.stamp(&key, question, arrived)));
        // An answer that came while a commit was under way.
        let (question, commit) = (changes.next_turn(), changes.next_turn());
        let arrived = changes.next_turn();
        let stamp = changes.stamp(&key, question, arrived);
        let taken_in = changes.next_turn();
        assert!(changes.stands(&key, stamp) && !changes.stands(&key, changes.after_commit(&key, stamp, commit, taken_in)));
    }

    #[test]
    fn silence_is_believed_for_a_while() {
        let mut changes = Changes::new();
        let second = Duration::from_secs(1);
        assert!(!changes.is_heard(Duration::ZERO));
        changes.heard(5 * second);
        changes.heard(4 * second);
        assert!(changes.is_heard(5 * second + SILENCE_MAX) && !changes.is_heard(7 * second));
        changes.flush();
        assert!(!changes.is_heard(5 * second));
    }
}
