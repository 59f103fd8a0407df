//! `restore`: everything that was deleted in an hour goes back, or trees are rebuilt inside the trash.

use crate::meta::ops::undelete::Restored;
use crate::telemetry::progress;
use crate::types::{Errno, Name};
use crate::volume::{MetaUrl, Stores, VolumeError, failed};

/// Restores the hours named, `YYYY-MM-DD-HH`; `hour` is told before each, `done` after it: what was done, or that there is no such hour.
pub async fn restore(
    url: &MetaUrl,
    hours: &[String],
    put_back: bool,
    at_once: usize,
    go_on: &(dyn Fn() -> bool + Sync),
    mut hour: impl FnMut(&str),
    mut done: impl FnMut(&str, Result<Restored, Errno>),
) -> Result<(), VolumeError> {
    let meta = Stores::meta(url).await?;
    Stores::wait_for_kernels(&meta).await;
    let known = meta.trash_hours().await.map_err(|e| failed("cannot list the trash", e))?;
    for text in hours {
        hour(text);
        progress::stage("entries", 0);
        let found = Name::new(text.as_bytes()).ok().and_then(|name| known.iter().find(|(known, ..)| *known == name));
        let outcome = match found {
            None => Err(Errno::NOENT),
            Some((_, ino, _)) => meta.restore_hour(*ino, put_back, at_once, go_on).await,
        };
        let called_off = outcome == Err(Errno::INTR);
        done(text, outcome);
        if called_off {
            break;
        }
    }
    meta.sync().await.map_err(|e| failed("the metadata could not be made durable", e))
}
