//! Prolonging this process's session, and noticing changes of the setting.

use crate::jobs::Stop;
use crate::jobs::timer::jittered;
use crate::meta::Meta;
use std::sync::Arc;
use std::time::Duration;

pub(super) async fn run(meta: Arc<Meta>, period: Duration, mut stop: Stop) {
    while !stop.pause(jittered(period)).await {
        // A failure was logged where it happened; the next beat comes long before the session expires.
        let _ = meta.heartbeat().await;
        // Likewise; limits that others set take effect now.
        let _ = meta.reload_setting().await;
    }
}
