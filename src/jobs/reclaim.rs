//! Deleting the data of files that are gone, oldest first, from the list the metadata keeps of them.

use crate::chunk::Chunks;
use crate::jobs::Stop;
use crate::jobs::timer::jittered;
use crate::meta::Meta;
use crate::types::Ino;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Files deleted together: some milliseconds of the metadata store, and one sync.
const FILES_MAX: u32 = 100;
/// Files of one batch where their lists are found by looking through all keys of a server, and their objects go some seconds later: with a
/// thousand files, a tree of a million took a thousand looks through its millions of keys. So many take some 20 MiB of memory.
const FILES_FAR_MAX: u32 = 100_000;
/// Of these, how many go in each step.
const STEP_FILES: usize = 1000;
/// After the first file, others are waited for this long: `rm -r` of a small tree then costs one sync.
const GATHER_TIME: Duration = Duration::from_millis(20);
/// Longest pause after a batch. Usually it is as long as the batch took, so the foreground has half of the store at least.
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// How often the list is looked at without being asked.
const PERIOD: Duration = Duration::from_secs(30);
/// While other processes use the volume, the data of a deleted file stays this long: one of them may have the file open, and reads it from
/// its handle until then.
const GRACE_S: i64 = 60;

/// `unasked`: also looks at the list without being asked.
pub(super) async fn run(meta: Arc<Meta>, chunks: Arc<Chunks>, asked: Arc<Notify>, unasked: bool, mut stop: Stop) {
    if unasked {
        drain(&meta, &chunks, &mut stop).await;
    }
    loop {
        tokio::select! {
            biased;
            () = stop.stopped() => return,
            () = asked.notified() => {}
            () = tokio::time::sleep(jittered(PERIOD)), if unasked => {}
        }
        if stop.pause(GATHER_TIME).await {
            return;
        }
        drain(&meta, &chunks, &mut stop).await;
    }
}

/// Batch by batch until nothing is left that may go now, or something fails: then the next period tries again.
async fn drain(meta: &Meta, chunks: &Chunks, stop: &mut Stop) {
    let mut last: Vec<(Ino, u64)> = Vec::new();
    let files_max = if meta.is_far() { FILES_FAR_MAX } else { FILES_MAX };
    while !stop.is_stopped() {
        let begin = crate::env::instant();
        // Alone, the clock does not matter: nobody is left who could have one of them open, but for ourselves. (Who deleted them and has
        // left did not know of our handles.)
        let graced = meta.clock().now().sec - GRACE_S;
        let older_than = if meta.store().shared() { graced } else { i64::MAX };
        let Ok(mut files) = meta.pending_files(older_than, files_max).await else { return };
        if older_than != graced && files.iter().any(|(ino, _)| meta.open_files().is_open(*ino)) {
            let Ok(older) = meta.pending_files(graced, files_max).await else { return };
            files = older;
        }
        // Entries that stay, because their inode exists, were reported where that was noticed.
        if files.is_empty() || files == last {
            return;
        }
        let deleting = async {
            match meta.is_far() {
                true => chunks.delete_many_files(&files, STEP_FILES, PAUSE_MAX).await,
                false => chunks.delete_files(&files).await,
            }
        };
        if !matches!(stop.or(deleting).await, Some(Ok(()))) {
            return;
        }
        last = files;
        if stop.pause(begin.elapsed().min(PAUSE_MAX)).await {
            return;
        }
    }
}
