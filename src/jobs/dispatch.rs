//! Hands each duty to the job it belongs to.

use crate::jobs::Stop;
use crate::types::{Duty, Ino, SliceId};
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};

/// Duties waiting for one job: 1 MiB at most. What does not fit is dropped, and found by the scan or asked for again.
const QUEUE_MAX: usize = 32 << 10;

/// Where duties go.
pub(super) struct Queues {
    /// A deleted file is in `delfiles`, so the job only has to be woken.
    reclaim: Arc<Notify>,
    slices: mpsc::Sender<(SliceId, u32)>,
    compact: mpsc::Sender<(Ino, u32)>,
}

/// Where the jobs take them from.
pub(super) struct Ends {
    pub reclaim: Arc<Notify>,
    pub slices: mpsc::Receiver<(SliceId, u32)>,
    pub compact: mpsc::Receiver<(Ino, u32)>,
}

pub(super) fn queues() -> (Queues, Ends) {
    let reclaim = Arc::new(Notify::new());
    let (slices, slices_end) = mpsc::channel(QUEUE_MAX);
    let (compact, compact_end) = mpsc::channel(QUEUE_MAX);
    (Queues { reclaim: Arc::clone(&reclaim), slices, compact }, Ends { reclaim, slices: slices_end, compact: compact_end })
}

pub(super) async fn run(mut duties: mpsc::Receiver<Duty>, queues: Queues, mut stop: Stop) {
    loop {
        let duty = tokio::select! {
            biased;
            () = stop.stopped() => return,
            duty = duties.recv() => duty,
        };
        // `None`: nobody can ask any more. The queues stay open until the jobs are stopped, or their ends would report it without pause.
        let Some(duty) = duty else { return stop.stopped().await };
        match duty {
            Duty::DeleteFile { .. } => queues.reclaim.notify_one(),
            Duty::DeleteSlice { id, size } => drop(queues.slices.try_send((id, size))),
            Duty::Compact { ino, chunk } => drop(queues.compact.try_send((ino, chunk))),
        }
    }
}
