//! Background duties of a volume, one file each. They take what the foreground asks for, and look for the same work periodically, so that
//! nothing is lost when a request is dropped or a process dies.
//!
//! Every duty works in small pieces with pauses between them: the foreground comes first. Each piece may be cut off anywhere, because what
//! it leaves is found by the next scan.

mod backup;
mod compact;
mod dispatch;
mod drain;
mod heartbeat;
mod quotas;
mod reclaim;
mod sessions;
mod slices;
mod staging;
mod timer;
mod trash;

pub use backup::BackupPlan;

use crate::chunk::Chunks;
use crate::meta::Meta;
use crate::meta::ops::session::HEARTBEAT;
use crate::types::Duty;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::warn;

/// What `stop` waits for work that is under way; then it is cut off. A merge of a full chunk takes a second or two on a slow disk.
const STOP_TIME_MAX: Duration = Duration::from_secs(5);

/// What a deletion that is under way gets then, of which most waits for a server to be done with its log.
const CUT_TIME: Duration = Duration::from_millis(500);

/// What the jobs work on.
pub struct JobsConfig {
    /// The metadata.
    pub meta: Arc<Meta>,
    /// The chunks.
    pub chunks: Arc<Chunks>,
    /// What the foreground asks for.
    pub duties: mpsc::Receiver<Duty>,
    /// How often the session is prolonged and stale ones are looked for.
    pub heartbeat: Duration,
    /// Whether this client looks for work: the trash, sessions that ended, what others have left, backups. If not, it does what its own applications cause,
    /// and leaves the rest to other clients.
    pub background: bool,
    /// Backups of the metadata, if there are to be any.
    pub backup: Option<BackupPlan>,
}

impl JobsConfig {
    /// All jobs, with the usual heartbeat.
    pub fn new(meta: Arc<Meta>, chunks: Arc<Chunks>, duties: mpsc::Receiver<Duty>) -> JobsConfig {
        JobsConfig { meta, chunks, duties, heartbeat: HEARTBEAT, background: true, backup: None }
    }
}

/// The running jobs.
pub struct JobsHandle {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// Starts the jobs on the current runtime.
pub fn start(config: JobsConfig) -> JobsHandle {
    let (stop, stopped) = watch::channel(false);
    let stop_of_job = || Stop(stopped.clone());
    let JobsConfig { meta, chunks, duties, heartbeat, background, backup } = config;
    let (queues, ends) = dispatch::queues();
    let mut tasks = vec![
        tokio::spawn(heartbeat::run(Arc::clone(&meta), heartbeat, stop_of_job())),
        tokio::spawn(quotas::run(Arc::clone(&meta), stop_of_job())),
        // Other clients read small blocks only once they are objects.
        tokio::spawn(drain::run(Arc::clone(&meta), Arc::clone(&chunks), stop_of_job())),
        tokio::spawn(reclaim::run(Arc::clone(&meta), Arc::clone(&chunks), ends.reclaim, background, stop_of_job())),
        tokio::spawn(slices::run(Arc::clone(&meta), Arc::clone(&chunks), ends.slices, background, stop_of_job())),
        tokio::spawn(compact::run(Arc::clone(&chunks), ends.compact, stop_of_job())),
        tokio::spawn(dispatch::run(duties, queues, stop_of_job())),
    ];
    if chunks.blocks().staging().is_some() {
        tasks.push(tokio::spawn(staging::run(Arc::clone(&meta), Arc::clone(chunks.blocks()), stop_of_job())));
    }
    if background {
        if let Some(plan) = backup {
            tasks.push(tokio::spawn(backup::run(Arc::clone(&meta), plan, stop_of_job())));
        }
        tasks.push(tokio::spawn(sessions::run(Arc::clone(&meta), heartbeat, stop_of_job())));
        tasks.push(tokio::spawn(trash::run(meta, chunks, stop_of_job())));
    }
    JobsHandle { stop, tasks }
}

impl JobsHandle {
    /// Begins nothing new, and returns when what was under way has ended or was cut off.
    pub async fn stop(self) {
        self.stop_within(STOP_TIME_MAX).await;
    }

    async fn stop_within(self, time: Duration) {
        // Nobody listens any more if all have ended.
        let _ = self.stop.send(true);
        let deadline = tokio::time::Instant::now() + time;
        for mut task in self.tasks {
            match tokio::time::timeout_at(deadline, &mut task).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!("a background job failed: {error}"),
                Err(_) => {
                    task.abort();
                    // Whatever it was doing has ended when this returns: nothing runs behind the back of a closed volume.
                    let _ = task.await;
                }
            }
        }
    }
}

/// Tells a job to end.
#[derive(Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Returns once the jobs are stopped, or their handle is gone.
    async fn stopped(&mut self) {
        // An error means that the handle is gone.
        let _ = self.0.wait_for(|stopped| *stopped).await;
    }

    fn is_stopped(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// What the work came to; `None` if the jobs were stopped before it ended, and it was cut off.
    async fn or<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            outcome = work => Some(outcome),
            () = self.cut() => None,
        }
    }

    /// Returns some time after the jobs are stopped: what is under way by then only waits.
    async fn cut(&mut self) {
        self.stopped().await;
        tokio::time::sleep(CUT_TIME).await;
    }

    /// Waits; true if the jobs were stopped meanwhile.
    async fn pause(&mut self, time: Duration) -> bool {
        tokio::select! {
            biased;
            () = self.stopped() => true,
            () = tokio::time::sleep(time) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::testing::Bench;
    use crate::object::ObjectError;
    use crate::object::fault::{Fault, Request};
    use crate::types::Duty;
    use tokio::sync::Semaphore;

    struct Running {
        bench: Bench,
        duties: mpsc::Sender<Duty>,
        jobs: JobsHandle,
    }

    fn running(bench: Bench) -> Running {
        let (duties, receiver) = mpsc::channel(64);
        let jobs = start(JobsConfig::new(bench.world.meta.clone(), bench.chunks.clone(), receiver));
        Running { bench, duties, jobs }
    }

    /// Waits until it holds; the time is for a machine that is busy with other tests.
    async fn until(what: &str, holds: impl Fn() -> bool) {
        let begin = std::time::Instant::now();
        while !holds() {
            assert!(begin.elapsed() < Duration::from_secs(20), "never: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    #[tokio::test]
    async fn deleted_files_go_in_batches() {
        let bench = Bench::new(0);
        let mut files = Vec::new();
        for _ in 0..40 {
            let ino = bench.world.file(0);
            bench.write(ino, 0, 0, 70_000).await;
            files.push(ino);
        }
        let Running { bench, duties, jobs } = running(bench);
        for ino in files {
            bench.world.unlink(ino);
            duties.send(Duty::DeleteFile { ino, length: 70_000 }).await.unwrap();
        }
        until("all objects are gone", || bench.memory.objects().is_empty()).await;
        jobs.stop().await;
        assert!(bench.world.meta.pending_files(i64::MAX, 100).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_this_process_has_open_stays_although_it_is_alone() {
        let bench = Bench::new(0);
        let ino = bench.world.file(0);
        bench.write(ino, 0, 0, 70_000).await;
        let handle = bench.world.meta.open(&crate::types::Caller::root(), ino, Default::default()).await;
        assert!(handle.is_ok());
        // By a process that has left.
        bench.world.unlink(ino);
        let (objects, now) = (bench.memory.objects(), bench.world.now().sec);
        let Running { bench, duties, jobs } = running(bench);
        duties.send(Duty::DeleteFile { ino, length: 70_000 }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(bench.memory.objects(), objects);
        assert_eq!(bench.world.meta.pending_files(now, 10).await.unwrap().len(), 1);
        bench.world.clock.advance(Duration::from_secs(60));
        duties.send(Duty::DeleteFile { ino, length: 70_000 }).await.unwrap();
        until("the minute is over", || bench.memory.objects().is_empty()).await;
        jobs.stop().await;
    }

    #[tokio::test]
    async fn what_was_left_is_found_at_the_start() {
        let bench = Bench::new(0);
        let ino = bench.world.file(0);
        bench.write(ino, 0, 0, 70_000).await;
        bench.world.unlink(ino);
        let dead = bench.world.file(0);
        bench.write(dead, 0, 0, 80_000).await;
        bench.world.unlink(dead);
        // As after a crash between the metadata commit and the deletion of the objects.
        assert_eq!(bench.world.meta.delete_files(&[(dead, 80_000)]).await.unwrap().len(), 1);
        let Running { bench, jobs, .. } = running(bench);
        until("all objects are gone", || bench.memory.objects().is_empty()).await;
        jobs.stop().await;
        assert!(bench.world.meta.pending_slices(100).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn who_looks_for_no_work_does_its_own() {
        let bench = Bench::new(0);
        let (left, own) = (bench.world.file(0), bench.world.file(0));
        bench.write(left, 0, 0, 70_000).await;
        bench.world.unlink(left);
        assert_eq!(bench.world.meta.delete_files(&[(left, 70_000)]).await.unwrap().len(), 1);
        bench.write(own, 0, 0, 80_000).await;
        let (duties, receiver) = mpsc::channel(64);
        let config = JobsConfig::new(bench.world.meta.clone(), bench.chunks.clone(), receiver);
        let jobs = start(JobsConfig { background: false, ..config });
        bench.world.unlink(own);
        duties.send(Duty::DeleteFile { ino: own, length: 80_000 }).await.unwrap();
        until("our object is gone", || bench.memory.objects().len() == 1).await;
        jobs.stop().await;
        assert_eq!(bench.world.meta.pending_slices(10).await.unwrap().len(), 1, "what was left stays for others");
    }

    #[tokio::test]
    async fn compaction_and_slices_on_demand() {
        let bench = Bench::new(0);
        let ino = bench.world.file(0);
        for pos in 0..5 {
            bench.write(ino, 0, pos * 1000, 70_000).await;
        }
        bench.store_slice(99_999, 10).await;
        let Running { bench, duties, jobs } = running(bench);
        for _ in 0..3 {
            duties.send(Duty::Compact { ino, chunk: 0 }).await.unwrap();
        }
        duties.send(Duty::DeleteSlice { id: 99_999, size: 10 }).await.unwrap();
        until("one record, one object", || bench.world.list(ino, 0).len() == 1 && bench.memory.objects().len() == 1).await;
        jobs.stop().await;
    }

    #[tokio::test]
    async fn a_failing_bucket_does_not_end_the_jobs() {
        let bench = Bench::new(0);
        let ino = bench.world.file(0);
        bench.write(ino, 0, 0, 70_000).await;
        bench.world.unlink(ino);
        bench.faults.always(Request::Delete, Fault::Fail(ObjectError::Denied("read-only".into())));
        let Running { bench, duties, jobs } = running(bench);
        until("it was tried", || bench.faults.calls(Request::Delete) > 0).await;
        bench.faults.heal();
        let size = 70_000;
        let pending = bench.world.meta.pending_slices(10).await.unwrap();
        assert_eq!(pending.len(), 1);
        duties.send(Duty::DeleteSlice { id: pending[0].0, size }).await.unwrap();
        until("the object is gone", || bench.memory.objects().is_empty()).await;
        jobs.stop().await;
    }

    #[tokio::test]
    async fn stopping_does_not_wait_for_ever() {
        let bench = Bench::new(0);
        let ino = bench.world.file(0);
        bench.write(ino, 0, 0, 70_000).await;
        bench.world.unlink(ino);
        bench.faults.always(Request::Delete, Fault::Hold(Arc::new(Semaphore::new(0))));
        let Running { bench, jobs, .. } = running(bench);
        until("a deletion hangs", || bench.faults.calls(Request::Delete) > 0).await;
        jobs.stop_within(Duration::from_millis(50)).await;
        assert_eq!(bench.memory.objects().len(), 1);
    }
}
