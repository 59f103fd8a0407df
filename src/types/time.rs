//! `Time`: seconds and nanoseconds since the epoch, as attribute records keep them.

/// A point in time. `sec` may be negative; `nsec` is 0..=999_999_999.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Whole seconds since 1970, floor.
    pub sec: i64,
    /// Nanoseconds within the second.
    pub nsec: u32,
}

impl Time {
    /// The smallest time after this one; a data commit uses it so that mtime never stays as it was.
    pub fn next(self) -> Time {
        if self.nsec >= 999_999_999 {
            Time { sec: self.sec.saturating_add(1), nsec: 0 }
        } else {
            Time { sec: self.sec, nsec: self.nsec + 1 }
        }
    }
}
