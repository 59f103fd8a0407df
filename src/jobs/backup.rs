//! Backing up the metadata every so often: of all clients of a volume the one that finds it due (metadata §17).

use crate::jobs::Stop;
use crate::jobs::timer::jittered;
use crate::meta::Meta;
use crate::types::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// Looks at the time of the last backup per period: a client that ends, or fails, costs a tenth of a period.
const LOOKS: u32 = 10;

/// What the job does, and how often.
pub struct BackupPlan {
    /// One backup each time this has passed.
    pub period: Duration,
    /// Takes one; the message says why there is none.
    pub take: Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>,
}

pub(super) async fn run(meta: Arc<Meta>, plan: BackupPlan, mut stop: Stop) {
    while !stop.pause(jittered(plan.period / LOOKS)).await {
        // A failure was logged where it happened; the next look tries again.
        let Ok(Some(turn)) = meta.elect_backup(plan.period).await else { continue };
        let outcome = stop.or((plan.take)()).await;
        match &outcome {
            Some(Ok(())) => continue,
            Some(Err(why)) => {
                let next = plan.period / LOOKS;
                warn!("the metadata could not be backed up: {why}; the next try comes within {next:?}");
            }
            None => {}
        }
        // Logged; if it fails as well, the next backup comes a period later.
        let _ = meta.give_back_backup(&turn).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::testing::Bench;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::watch;

    #[tokio::test]
    async fn a_failure_is_tried_again_and_a_success_is_not() {
        let bench = Bench::new(0);
        let tries = Arc::new(AtomicU32::new(0));
        let counted = tries.clone();
        let take = Box::new(move || -> BoxFuture<'static, Result<(), String>> {
            let fails = counted.fetch_add(1, Ordering::SeqCst) < 2;
            Box::pin(async move { if fails { Err("no bucket".into()) } else { Ok(()) } })
        });
        let (stop, stopped) = watch::channel(false);
        let plan = BackupPlan { period: Duration::from_secs(1), take };
        let job = tokio::spawn(run(bench.world.meta.clone(), plan, Stop(stopped)));
        let until = async |count| {
            let end = std::time::Instant::now() + Duration::from_secs(20);
            while tries.load(Ordering::SeqCst) < count {
                assert!(std::time::Instant::now() < end, "{count} tries");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        until(3).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(tries.load(Ordering::SeqCst), 3, "the clock of the volume stands still");
        bench.world.clock.advance(Duration::from_secs(1));
        until(4).await;
        stop.send(true).unwrap();
        job.await.unwrap();
    }
}
