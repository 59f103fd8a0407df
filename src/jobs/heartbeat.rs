//! Prolonging this process's session, and learning what others have changed of the setting and of quotas, and used of them.

use crate::jobs::Stop;
use crate::jobs::timer::jittered;
use crate::meta::Meta;
use std::sync::Arc;
use std::time::Duration;

pub(super) async fn run(meta: Arc<Meta>, period: Duration, mut stop: Stop) {
    while !stop.pause(jittered(period)).await {
        // A failure was logged where it happened; the next beat comes long before the session expires.
        let _ = meta.heartbeat().await;
        // Those that are known are used on.
        let _ = meta.load_quotas().await;
        // Likewise; limits that others set take effect now.
        let _ = meta.reload_setting().await;
    }
}
