//! Cleaning up after sessions that ended without doing so: locks, and unlinked files they had open.

use crate::jobs::Stop;
use crate::jobs::timer::jittered;
use crate::meta::Meta;
use std::sync::Arc;
use std::time::Duration;

pub(super) async fn run(meta: Arc<Meta>, period: Duration, mut stop: Stop) {
    loop {
        // At once after the start, too: most often the session that crashed was on this very host. Failures are logged where they happen.
        let _ = meta.clean_stale_sessions().await;
        if stop.pause(jittered(period)).await {
            return;
        }
    }
}
