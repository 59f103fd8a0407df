//! Noticing that an operator has changed quotas, long before the next heartbeat.

use crate::jobs::Stop;
use crate::jobs::timer::jittered;
use crate::meta::Meta;
use std::sync::Arc;
use std::time::Duration;

/// How often it is asked. A thousand mounts are a hundredth of what a server answers. `quota` waits for longer than this.
const PERIOD: Duration = Duration::from_secs(1);

pub(super) async fn run(meta: Arc<Meta>, mut stop: Stop) {
    while !stop.pause(jittered(PERIOD)).await {
        // A failure was logged where it happened; what is known is used on.
        let _ = meta.notice_quotas().await;
    }
}
