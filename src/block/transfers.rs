//! `Transfers`: objects on their way to and from the bucket: how many at once, in how much memory, how fast, for how long, how often tried.

use crate::block::hedge::Hedge;
use crate::block::limit::Limit;
use crate::block::retry::{PAUSES_MS, RETRIES_DEFAULT, delete_all_up_to, retrying_up_to};
use crate::env::{Held, Share};
use crate::object::{ObjectError, ObjectStore};
use crate::telemetry::metrics;
use bytes::Bytes;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

/// A bucket that fails for so long is called away in the log, and again each time this has passed.
const AWAY_TOLD: Duration = Duration::from_secs(60);
/// What is called away after this time at first: longer than the hiccups of a server, short enough for who wonders why nothing moves.
const AWAY_FIRST_TOLD: Duration = Duration::from_secs(15);

/// Mbit/s, 0 = unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// To the bucket.
    pub upload: u64,
    /// From it.
    pub download: u64,
}

/// How blocks are carried.
#[derive(Clone)]
pub struct Tuning {
    /// Uploads at once.
    pub uploads_max: usize,
    /// Downloads at once.
    pub downloads_max: usize,
    /// Objects removed at once; 0 = none are ever removed.
    pub deletes_max: usize,
    /// Memory of what is on its way, apart from blocks that wait to be uploaded, which is the writers'.
    pub memory: Arc<Share>,
    /// Bytes fetched ahead of one reader; `None` = eight blocks.
    pub readahead_bytes: Option<u64>,
    /// Whole blocks fetched at once after a part of them was read; 0 = none.
    pub prefetches_max: usize,
    /// Retries of what may succeed when tried again; `None` = for as long as it takes.
    pub retries: Option<u32>,
    /// Longest time of one attempt to store a block.
    pub put_time_max: Duration,
    /// Longest time of one attempt to fetch a block or a part of it.
    pub get_time_max: Duration,
    /// The bucket is on a server: a request takes a while, many run side by side, and what comes late is asked for a second time.
    pub on_server: bool,
    /// The limits as they are now.
    pub bandwidth: Arc<dyn Fn() -> Bandwidth + Send + Sync>,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            uploads_max: 20,
            downloads_max: 200,
            deletes_max: 10,
            memory: Arc::new(Share::alone(64 << 20)),
            readahead_bytes: None,
            prefetches_max: 0,
            retries: Some(RETRIES_DEFAULT),
            put_time_max: Duration::from_secs(60),
            get_time_max: Duration::from_secs(60),
            on_server: false,
            bandwidth: Arc::new(Bandwidth::default),
        }
    }
}

/// The way to the bucket.
pub(super) struct Transfers {
    objects: Arc<dyn ObjectStore>,
    tuning: Tuning,
    uploads: Semaphore,
    downloads: Semaphore,
    deletes: Semaphore,
    up: Limit,
    down: Limit,
    whole: Hedge,
    part: Hedge,
    away: Mutex<Option<Away>>,
    pauses_ms: &'static [u64],
}

/// Since when nothing succeeds.
struct Away {
    since: Instant,
    told: Option<Instant>,
}

/// The right to download a block and to hold it until it is decoded.
pub(super) struct Slot<'a> {
    _bytes: Held<'a>,
    _download: SemaphorePermit<'a>,
}

impl Transfers {
    pub fn new(objects: Arc<dyn ObjectStore>, tuning: Tuning) -> Transfers {
        Transfers {
            objects,
            uploads: Semaphore::new(tuning.uploads_max.max(1)),
            downloads: Semaphore::new(tuning.downloads_max.max(1)),
            deletes: Semaphore::new(tuning.deletes_max.max(1)),
            up: Limit::default(),
            down: Limit::default(),
            whole: Hedge::new(),
            part: Hedge::new(),
            away: Mutex::default(),
            pauses_ms: &PAUSES_MS,
            tuning,
        }
    }

    /// Waits until one more block may be uploaded.
    pub async fn upload_slot(&self) -> SemaphorePermit<'_> {
        self.uploads.acquire().await.expect("never closed")
    }

    /// Waits until `bytes` more may be downloaded. Memory first: whoever has it waits only for what ends by itself.
    pub async fn download_slot(&self, bytes: u32) -> Slot<'_> {
        let bytes = self.tuning.memory.hold(bytes as usize).await;
        Slot { _bytes: bytes, _download: self.downloads.acquire().await.expect("never closed") }
    }

    /// Waits for memory for `bytes` of a block as it is stored, of who has an upload slot. Downloads that hold memory end without uploads, and what
    /// writers hold is another part: so an upload that frees their memory never waits for it.
    pub async fn frame_room(&self, bytes: usize) -> Held<'_> {
        self.tuning.memory.hold(bytes).await
    }

    /// Stores an object, durable when it returns.
    pub async fn put(&self, key: &str, body: &Bytes) -> Result<(), ObjectError> {
        self.put_up_to(self.tuning.retries, key, body).await
    }

    /// The same with retries of its own, for what can wait elsewhere.
    pub async fn put_up_to(&self, retries: Option<u32>, key: &str, body: &Bytes) -> Result<(), ObjectError> {
        let once = || async {
            self.up.wait((self.tuning.bandwidth)().upload, body.len() as u64).await;
            let _uploading = metrics::UPLOADING.enter();
            let began = Instant::now();
            let outcome = within(self.tuning.put_time_max, self.objects.put(key, body.clone())).await;
            metrics::object("PUT", began.elapsed(), body.len() as u64, outcome.is_err());
            outcome
        };
        self.done(retrying_up_to(retries, self.pauses_ms, "upload", key, once, |why| self.failing(why)).await)
    }

    /// An object of about `bytes` bytes, or a part of it, by who has a slot.
    pub async fn get(&self, key: &str, range: Option<Range<u64>>, bytes: u64) -> Result<Bytes, ObjectError> {
        let once = || async {
            self.down.wait((self.tuning.bandwidth)().download, bytes).await;
            self.get_hedged(key, range.clone()).await
        };
        self.done(retrying_up_to(self.tuning.retries, self.pauses_ms, "fetch", key, once, |why| self.failing(why)).await)
    }

    /// How many objects are best removed together.
    pub fn deletes_at_once(&self) -> usize {
        self.objects.deletes_at_once()
    }

    /// Removes objects; answers for each. Nobody waits for it, so it is not tried for ever.
    pub async fn delete_all(&self, keys: &[String]) -> Vec<Result<(), ObjectError>> {
        let _slot = self.deletes.acquire().await.expect("never closed");
        let retries = self.tuning.retries.unwrap_or(RETRIES_DEFAULT);
        let began = Instant::now();
        let outcomes = delete_all_up_to(retries, self.pauses_ms, self.objects.as_ref(), keys).await;
        metrics::object("DELETE", began.elapsed(), 0, outcomes.iter().any(Result::is_err));
        outcomes.into_iter().map(|outcome| self.done(outcome)).collect()
    }

    async fn get_once(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, ObjectError> {
        let began = Instant::now();
        let outcome = within(self.tuning.get_time_max, self.objects.get(key, range)).await;
        let bytes = outcome.as_ref().map_or(0, |bytes| bytes.len() as u64);
        // What is not there is an answer, and none that anybody has to look into.
        metrics::object("GET", began.elapsed(), bytes, !matches!(outcome, Ok(_) | Err(ObjectError::Missing)));
        outcome
    }

    /// One get; a second one if it is late. The first answer counts, and a failure only if both fail or it is sure.
    async fn get_hedged(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, ObjectError> {
        let hedge = if range.is_some() { &self.part } else { &self.whole };
        let began = Instant::now();
        let first = self.get_once(key, range.clone());
        tokio::pin!(first);
        let outcome = 'answer: {
            let Some(late) = hedge.late().filter(|_| self.tuning.on_server) else { break 'answer first.await };
            tokio::select! {
                biased;
                outcome = &mut first => break 'answer outcome,
                () = tokio::time::sleep(late) => {}
            }
            // Only what nobody else wants is used for it.
            let Some(_slot) = self.downloads.try_acquire().ok().filter(|_| hedge.may_double()) else { break 'answer first.await };
            let second = self.get_once(key, range);
            tokio::pin!(second);
            tokio::select! {
                biased;
                outcome = &mut first => match outcome {
                    Err(ObjectError::Retry(_)) => second.await,
                    outcome => outcome,
                },
                outcome = &mut second => match outcome {
                    Err(ObjectError::Retry(_)) => first.await,
                    outcome => outcome,
                },
            }
        };
        if outcome.is_ok() {
            hedge.note(began.elapsed());
        }
        outcome
    }

    /// An attempt has failed and there will be another.
    fn failing(&self, why: &str) {
        let now = Instant::now();
        let mut away = self.away.lock().expect("no code under it panics");
        let away = away.get_or_insert(Away { since: now, told: None });
        let due = away.told.map_or(away.since + AWAY_FIRST_TOLD, |told| told + AWAY_TOLD);
        if now >= due {
            away.told = Some(now);
            let seconds = (now - away.since).as_secs();
            warn!("the bucket has not answered a request for {seconds} s; readers and writers wait: {why}");
        }
    }

    /// The end of a request, which tells that the bucket is there if it is not one of patience.
    fn done<T>(&self, outcome: Result<T, ObjectError>) -> Result<T, ObjectError> {
        if !matches!(outcome, Err(ObjectError::Retry(_)))
            && let Some(away) = self.away.lock().expect("no code under it panics").take()
            && away.told.is_some()
        {
            info!("the bucket answers again after {} s", away.since.elapsed().as_secs());
        }
        outcome
    }
}

/// One attempt in bounded time. What is given up is dropped, and its connection with it.
async fn within<T>(time_max: Duration, request: impl Future<Output = Result<T, ObjectError>>) -> Result<T, ObjectError> {
    timeout(time_max, request).await.unwrap_or_else(|_| Err(ObjectError::Retry(format!("no answer in {time_max:?}"))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::fault::{Fault, FaultStore, Request};
    use crate::object::memory::MemoryStore;

    fn bench(tuning: Tuning) -> (Arc<FaultStore>, Arc<Transfers>) {
        let faults = Arc::new(FaultStore::new(Arc::new(MemoryStore::new())));
        // A second of pauses takes a millisecond.
        let transfers = Transfers { pauses_ms: &[1, 1, 1, 2, 2, 3, 5], ..Transfers::new(faults.clone(), tuning) };
        (faults, Arc::new(transfers))
    }

    fn busy() -> Fault {
        Fault::Fail(ObjectError::Retry("away".into()))
    }

    #[tokio::test]
    async fn an_outage_is_waited_for() {
        let (faults, transfers) = bench(Tuning { retries: None, ..Tuning::default() });
        transfers.put("k", &Bytes::from_static(b"0123")).await.unwrap();
        faults.always(Request::Get, busy());
        let waiting = tokio::spawn({
            let transfers = transfers.clone();
            async move { (transfers.get("k", None, 4).await, transfers.put("l", &Bytes::from_static(b"x")).await) }
        });
        // Ten minutes of pauses of five seconds.
        while faults.calls(Request::Get) < 120 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        faults.always(Request::Put, busy());
        faults.heal();
        assert_eq!(waiting.await.unwrap(), (Ok(Bytes::from_static(b"0123")), Ok(())));
        assert!(transfers.away.lock().unwrap().is_none());
        // What nobody waits for is given up.
        faults.always(Request::Delete, busy());
        assert!(transfers.delete_all(&["k".into()]).await[0].is_err());
    }

    #[tokio::test]
    async fn retries_and_times_are_bounded_as_asked() {
        let time_max = Duration::from_millis(20);
        let (faults, transfers) = bench(Tuning { retries: Some(3), put_time_max: time_max, get_time_max: time_max, ..Tuning::default() });
        faults.always(Request::Get, busy());
        assert!(matches!(transfers.get("k", None, 4).await, Err(ObjectError::Retry(_))));
        assert_eq!(faults.calls(Request::Get), 4);
        faults.heal();
        let began = Instant::now();
        for request in [Request::Get, Request::Put] {
            faults.always(request, Fault::Slow(Duration::from_secs(100)));
        }
        for outcome in [transfers.get("k", None, 4).await.map(drop), transfers.put("k", &Bytes::new()).await] {
            assert!(matches!(outcome, Err(ObjectError::Retry(why)) if why.contains("20ms")));
        }
        assert!(began.elapsed() < Duration::from_secs(50));
    }

    #[tokio::test]
    async fn what_is_late_is_asked_for_a_second_time() {
        for on_server in [false, true] {
            let (faults, transfers) = bench(Tuning { on_server, ..Tuning::default() });
            transfers.put("k", &Bytes::from_static(b"0123")).await.unwrap();
            for _ in 0..200 {
                transfers.get("k", None, 4).await.unwrap();
            }
            let slow = if on_server { 100_000 } else { 300 };
            faults.inject(Request::Get, 0, 1, Fault::Slow(Duration::from_millis(slow)));
            let before = faults.calls(Request::Get);
            assert_eq!(transfers.get("k", None, 4).await, Ok(Bytes::from_static(b"0123")));
            assert_eq!(faults.calls(Request::Get) - before, if on_server { 2 } else { 1 });
            // One that says the object is not there is an answer; one that failed is none.
            faults.inject(Request::Get, 0, 1, Fault::Slow(Duration::from_millis(slow)));
            faults.inject(Request::Get, 1, 1, Fault::Fail(ObjectError::Missing));
            assert_eq!(transfers.get("k", None, 4).await == Err(ObjectError::Missing), on_server);
        }
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let (_, transfers) = bench(Tuning { memory: Arc::new(Share::alone(10)), ..Tuning::default() });
        let soon = Duration::from_millis(20);
        let first = transfers.download_slot(6).await;
        assert!(timeout(soon, transfers.download_slot(6)).await.is_err());
        drop(first);
        // A block larger than all of it comes alone.
        let large = transfers.download_slot(1000).await;
        assert!(timeout(soon, transfers.download_slot(1)).await.is_err());
        drop(large);
        transfers.download_slot(1).await;
    }

    #[tokio::test]
    async fn bandwidth_is_what_it_is_now() {
        let bandwidth = Arc::new(Mutex::new(Bandwidth::default()));
        let now = bandwidth.clone();
        let (_, transfers) = bench(Tuning { bandwidth: Arc::new(move || *now.lock().unwrap()), ..Tuning::default() });
        let body = Bytes::from(vec![0; 1_000_000]);
        *bandwidth.lock().unwrap() = Bandwidth { upload: 80, download: 160 };
        let began = Instant::now();
        for _ in 0..3 {
            transfers.put("k", &body).await.unwrap();
        }
        assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
        let began = Instant::now();
        for _ in 0..3 {
            transfers.get("k", None, 1_000_000).await.unwrap();
        }
        assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
    }
}
