//! `Streams`: where a handle is being read in order, and what is fetched ahead of that.
//!
//! What is fetched ahead and not yet read holds a part of the budget. It goes back when the reader has passed it, turns elsewhere, or stops for
//! a while and somebody else needs it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Places in a file followed at once: two for a program that merges or copies within it.
const STREAMS: usize = 2;
/// Bytes read in a row after which blocks are fetched ahead; two requests of the kernel's own readahead.
pub(super) const STREAM_BYTES_MIN: u64 = 256 << 10;
/// The kernel sends neighbouring reads of one stream in any order; a read this near the expected place goes on with it.
const STREAM_SLACK: u64 = 1 << 20;
/// A stream that was not read for so long gives its part of the budget to others that want it.
const IDLE: Duration = Duration::from_secs(2);

/// Sizes that never change while the volume is open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// First window: a block.
    pub least: u64,
    /// Last one; below `least` nothing is fetched ahead.
    pub most: u64,
}

/// The streams of one handle.
#[derive(Default)]
pub(crate) struct Streams(Mutex<State>);

#[derive(Default)]
struct State {
    streams: [Stream; STREAMS],
    reads: u64,
}

/// One place in the file that is read in order.
#[derive(Debug, Default)]
struct Stream {
    /// Where the next read is expected.
    next: u64,
    /// Bytes read in a row.
    run: u64,
    /// Bytes to be there ahead of the reader; 0 before it is known to be one.
    window: u64,
    /// Fetched ahead up to here.
    ahead_to: u64,
    /// Number of the last read.
    read: u64,
    /// When that was.
    at: Duration,
    /// Parts of the budget and where each is passed, in order.
    held: VecDeque<(u64, OwnedSemaphorePermit)>,
}

impl Streams {
    /// Takes note of a read of a file that ends at `file_end`; answers what to fetch ahead of it now. `idle` is called if the budget is
    /// used up, to make others give back what they do not need.
    pub(super) fn read(
        &self,
        range: Range<u64>,
        file_end: u64,
        window: Window,
        budget: &Arc<Semaphore>,
        now: Duration,
        idle: impl FnOnce(),
    ) -> Option<Range<u64>> {
        let mut state = self.lock();
        state.reads += 1;
        let read = state.reads;
        let near =
            |stream: &Stream| stream.run > 0 && range.start + STREAM_SLACK >= stream.next && range.start <= stream.next + STREAM_SLACK;
        let place = state.streams.iter().position(near).unwrap_or_else(|| {
            let oldest = (0..STREAMS).min_by_key(|at| state.streams[*at].read).unwrap_or(0);
            state.streams[oldest] = Stream { next: range.start, ..Stream::default() };
            oldest
        });
        let stream = &mut state.streams[place];
        (stream.read, stream.at) = (read, now);
        stream.run += range.end - range.start;
        stream.next = stream.next.max(range.end);
        while stream.held.front().is_some_and(|(end, _)| *end <= stream.next) {
            stream.held.pop_front();
        }
        let (want, size) = stream.want(file_end, window)?;
        drop(state);
        let take = || u32::try_from(want.end - want.start).ok().and_then(|bytes| budget.clone().try_acquire_many_owned(bytes).ok());
        let taken = take().or_else(|| {
            idle();
            take()
        });
        let mut state = self.lock();
        let stream = &mut state.streams[place];
        if stream.read != read {
            // Another read of this handle has come meanwhile, and decides anew.
            return None;
        }
        let Some(mut permit) = taken else {
            // Half as much the next time.
            stream.window = size / 4;
            return None;
        };
        (stream.window, stream.ahead_to) = (size, want.end);
        let mut at = want.start;
        // In pieces, so that it goes back as the reader goes on.
        while want.end - at > window.least
            && let Some(piece) = permit.split(window.least as usize)
        {
            at += window.least;
            stream.held.push_back((at, piece));
        }
        stream.held.push_back((want.end, permit));
        Some(want)
    }

    /// Gives back what streams hold that have not been read for a while.
    pub(super) fn give_back_idle(&self, now: Duration) {
        for stream in &mut self.lock().streams {
            if stream.at + IDLE <= now && !stream.held.is_empty() {
                stream.held.clear();
                (stream.window, stream.run) = (0, 0);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("never poisoned: no code under it panics")
    }
}

impl Stream {
    /// The bytes that should be on their way and are not, and the window that makes. It is filled in halves, so that not every small read asks
    /// for the next few bytes, and grows each time.
    fn want(&self, file_end: u64, window: Window) -> Option<(Range<u64>, u64)> {
        if self.run < STREAM_BYTES_MIN || window.most < window.least {
            return None;
        }
        let from = self.next.max(self.ahead_to);
        if self.window > 0 && from > self.next + self.window / 2 {
            return None;
        }
        let size = (self.window * 2).clamp(window.least, window.most);
        let to = (self.next + size).min(file_end);
        (from < to).then_some((from..to, size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const WINDOW: Window = Window { least: 4 * MIB, most: 32 * MIB };

    struct Bench {
        streams: Streams,
        budget: Arc<Semaphore>,
        now: Duration,
    }

    impl Bench {
        fn new(budget: u64) -> Bench {
            Bench { streams: Streams::default(), budget: Arc::new(Semaphore::new(budget as usize)), now: Duration::from_secs(100) }
        }

        fn read(&self, at: u64, len: u64) -> Option<Range<u64>> {
            self.streams.read(at..at + len, 1 << 40, WINDOW, &self.budget, self.now, || {})
        }

        fn free(&self) -> u64 {
            self.budget.available_permits() as u64
        }
    }

    #[test]
    fn the_window_grows_to_its_bound_and_what_is_ahead_is_asked_for_once() {
        let bench = Bench::new(64 * MIB);
        assert_eq!(bench.read(0, 128 << 10), None);
        assert_eq!(bench.read(128 << 10, 128 << 10), Some(256 << 10..(256 << 10) + 4 * MIB));
        let (mut asked, mut at) = ((256 << 10) + 4 * MIB, 256 << 10);
        let mut most = 0;
        while at < 200 * MIB {
            if let Some(range) = bench.read(at, 128 << 10) {
                assert_eq!(range.start, asked);
                asked = range.end;
            }
            at += 128 << 10;
            assert!(asked > at, "the reader never gets ahead of it");
            most = most.max(asked - at);
            assert!(asked - at <= 32 * MIB && bench.free() >= 64 * MIB - (asked - at) - WINDOW.least);
        }
        assert!(most > 30 * MIB, "{most}");
    }

    #[test]
    fn random_reads_fetch_nothing_ahead_and_two_streams_do_not_disturb_each_other() {
        let bench = Bench::new(64 * MIB);
        for at in [100, 50, 200, 700, 3, 90] {
            assert_eq!(bench.read(at * MIB, 4096), None);
        }
        let bench = Bench::new(64 * MIB);
        let mut ahead = [0, 0];
        for n in 0..16 {
            for (stream, start) in [(0, 0), (1, 500 * MIB)] {
                ahead[stream] += bench.read(start + n * (128 << 10), 128 << 10).map_or(0, |range| range.end - range.start);
            }
        }
        assert!(ahead[0] >= 4 * MIB && ahead[0] == ahead[1], "{ahead:?}");
    }

    #[test]
    fn the_budget_is_kept_and_comes_back() {
        let bench = Bench::new(6 * MIB);
        bench.read(0, 128 << 10);
        assert!(bench.read(128 << 10, 128 << 10).is_some());
        assert_eq!(bench.free(), 2 * MIB);
        // Another handle gets nothing as long as this one is read,
        let other = Streams::default();
        let read = |now| other.read(0..MIB, 1 << 40, WINDOW, &bench.budget, now, || bench.streams.give_back_idle(now));
        assert!(read(bench.now).is_none());
        // and what it needs when it is not.
        assert!(read(bench.now + IDLE).is_some());
        assert_eq!(bench.free(), 2 * MIB);
        drop(other);
        assert_eq!(bench.free(), 6 * MIB);
        // A reader that turns elsewhere gives back, too.
        bench.read(0, MIB);
        assert_eq!(bench.free(), 2 * MIB);
        bench.read(100 * MIB, 4096);
        bench.read(200 * MIB, 4096);
        assert_eq!(bench.free(), 6 * MIB);
        // Nothing behind the end of the file.
        let ahead = Streams::default().read(0..MIB, MIB + 10, WINDOW, &bench.budget, bench.now, || {});
        assert_eq!(ahead, Some(MIB..MIB + 10));
    }
}
