//! `warmup`: blocks of files are brought into the caches of the mount, taken out of them, or looked for there.

use crate::block::FRAME_BYTES_MAX;
use crate::env::join;
use crate::meta::ops::acl::READ;
use crate::types::{Asker, Attr, BlockId, BoxFuture, CHUNK_BYTES, Errno, FrameSource, Ino, flatten};
use crate::volume::operator::tree::Files;
use crate::volume::operator::{Failure, Operator, Progress, text, threads};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Semaphore;

/// What is done with each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Fill,
    Evict,
    Check,
}

/// Bytes found in each place.
struct Found {
    /// For so many blocks at a time, of however many files.
    places: Semaphore,
    memory: AtomicU64,
    disk: AtomicU64,
    /// Beside the metadata, where a cache would gain nothing.
    frames: AtomicU64,
    blocks: AtomicU64,
}

impl Found {
    fn with(at_once: usize) -> Found {
        let [memory, disk, frames, blocks] = Default::default();
        Found { places: Semaphore::new(at_once), memory, disk, frames, blocks }
    }
}

impl Operator {
    /// Fills, empties or looks into the caches for some paths.
    pub(super) async fn warmup(self: &Arc<Self>, asker: &Asker, request: &Value, progress: &Progress) -> Result<Value, Failure> {
        let action = match text(request, "Action")? {
            "fill" => Action::Fill,
            "evict" => Action::Evict,
            "check" => Action::Check,
            other => return Err(Failure::at(format!("action {other:?}"), Errno::INVAL)),
        };
        let paths = request["Paths"].as_array().ok_or_else(|| Failure::at("the request has no Paths", Errno::INVAL))?;
        let paths: Vec<String> = paths.iter().filter_map(|path| path.as_str().map(String::from)).collect();
        let at_once = threads(request);
        if request["Background"].as_bool() == Some(true) {
            let Ok(place) = self.background.clone().try_acquire_owned() else {
                return Err(Failure { errno: Errno::BUSY, message: "others are warming up in the background; wait for them".into() });
            };
            let (operator, asker) = (self.clone(), Asker { cancel: self.end.clone(), ..asker.clone() });
            tokio::spawn(async move {
                let progress = Progress::default();
                match operator.warm(&asker, &paths, action, at_once, &progress).await {
                    Ok(_) => tracing::info!("warmup cache: {} files", progress.get().0),
                    Err(failure) => tracing::warn!("warmup in the background: {}", failure.message),
                }
                drop(place);
            });
            return Ok(json!({}));
        }
        let found = self.warm(asker, &paths, action, at_once, progress).await?;
        let (files, bytes) = progress.get();
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Ok(json!({
            "Files": files, "Bytes": bytes, "Blocks": load(&found.blocks), "Memory": load(&found.memory), "Disk": load(&found.disk),
            "Metadata": load(&found.frames),
        }))
    }

    async fn warm(&self, asker: &Asker, paths: &[String], action: Action, at_once: usize, progress: &Progress) -> Result<Found, Failure> {
        let found = Found::with(at_once);
        for path in paths {
            let at = |errno| Failure::at(format!("/{path}"), errno);
            let top = self.walk(asker, path).await?;
            let mut files = Files::of(top.ino, top.attr);
            while let Some(some) = self.next_files(asker, &mut files).await.map_err(at)? {
                let found = &found;
                let jobs = some.iter().map(|(ino, attr)| -> BoxFuture<'_, Result<(), Errno>> {
                    Box::pin(async move {
                        self.meta.check_access(asker, attr, READ).await?;
                        self.warm_file(asker, *ino, attr, action, at_once, found).await?;
                        progress.add(1, attr.length);
                        Ok(())
                    })
                });
                join(jobs.collect(), at_once).await.map_err(at)?;
            }
        }
        Ok(found)
    }

    async fn warm_file(&self, asker: &Asker, ino: Ino, attr: &Attr, action: Action, at_once: usize, found: &Found) -> Result<(), Errno> {
        if self.writers.is_dirty(ino) {
            self.writers.flush(ino).await?;
        }
        let block_bytes = self.blocks.block_bytes();
        let chunks = u32::try_from(attr.length.div_ceil(CHUNK_BYTES)).map_err(|_| Errno::FBIG)?;
        for chunk in self.meta.chunks_present(ino, 0..chunks).await? {
            if asker.cancel.is_cancelled() {
                return Err(Errno::INTR);
            }
            let view = self.meta.chunk(ino, chunk, attr.length).await?;
            // What is covered by later writes is not read by anybody.
            let mut blocks = BTreeSet::new();
            for extent in flatten(&view.records).into_iter().filter(|extent| extent.id != 0 && extent.len > 0) {
                let last = (extent.off.saturating_add(extent.len - 1)) / block_bytes;
                blocks.extend((extent.off / block_bytes..=last).map(|index| (extent.id, extent.size, index)));
            }
            let blocks = blocks.into_iter().filter_map(|(id, size, index)| BlockId::of(id, size, index, block_bytes));
            let jobs = blocks.map(|block| -> BoxFuture<'_, Result<(), Errno>> { Box::pin(self.warm_block(block, action, found)) });
            join(jobs.collect(), at_once).await?;
        }
        Ok(())
    }

    async fn warm_block(&self, block: BlockId, action: Action, found: &Found) -> Result<(), Errno> {
        let _place = found.places.acquire().await.map_err(|_| Errno::IO)?;
        let len = u64::from(block.len);
        found.blocks.fetch_add(len, Ordering::Relaxed);
        if action == Action::Evict {
            self.blocks.evict(&block);
            return Ok(());
        }
        let place = if self.blocks.is_on_disk(&block) {
            &found.disk
        } else if self.blocks.cached(&block).is_some() {
            &found.memory
        } else if block.index == 0 && block.len <= FRAME_BYTES_MAX && self.meta.frame(block.slice).await?.is_some() {
            &found.frames
        } else {
            if action == Action::Fill {
                match self.blocks.fetch(block).await {
                    Ok(_) => {}
                    // Replaced by a compaction since the list was read: nobody reads it any more.
                    Err(crate::block::BlockError::Missing { .. }) => return Ok(()),
                    Err(error) => return Err(error.errno()),
                }
            }
            return Ok(());
        };
        place.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }
}
