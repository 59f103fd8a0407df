//! Blocks that are staged on a disk of this host before they are uploaded.

use super::BlockStore;
use crate::block::BlockError;
use crate::cache::Staging;
use crate::object::ObjectError;
use crate::types::BlockId;
use bytes::Bytes;
use std::sync::Arc;
use tracing::error;

/// Retries of one attempt to upload a staged block, half a second of pauses in all. It is tried again later.
const RETRIES: u32 = 3;

impl BlockStore {
    /// Stores a block, durable when it returns: on a disk of this host if that is wanted and possible, else in the bucket. `data` is exactly the
    /// block.
    pub async fn store(&self, block: BlockId, data: Bytes) -> Result<(), BlockError> {
        if let Some(disk) = &self.config.disk
            && disk.stage(block, &data, self.config.tuning.put_time_max).await
        {
            self.config.cache.insert(block, data);
            return Ok(());
        }
        self.upload(block, data).await
    }

    /// Blocks that are not in the bucket yet; `None` without a directory for them.
    pub fn staging(&self) -> Option<&Arc<Staging>> {
        self.config.disk.as_ref().map(|disk| disk.staging())
    }

    /// Makes sure that a block that was stored and is not named yet still is: if somebody took it for a leak it is stored once more from where it
    /// is remembered. `Missing`, and a line in the log, if it is not.
    pub async fn restore_if_gone(&self, block: BlockId) -> Result<(), BlockError> {
        if self.staging().is_some_and(|staging| staging.contains(&block)) {
            return Ok(());
        }
        let key = self.key(&block);
        match self.config.objects.head(&key).await {
            Ok(_) => return Ok(()),
            Err(ObjectError::Missing) => {}
            Err(e) => return Err(BlockError::Store(e)),
        }
        let remembered = match self.cached(&block) {
            Some(data) => Some(data),
            None => self.on_disk(&block, 0..block.len).await,
        };
        match remembered {
            Some(data) => self.upload(block, data).await,
            None => {
                error!("{key} was deleted before its data was committed, by `gc` most likely: what was written there is lost");
                Err(BlockError::Missing { key })
            }
        }
    }

    /// Uploads a staged block. One that is deleted meanwhile leaves no object. That the bucket failed is for the caller to tell.
    pub async fn upload_staged(&self, block: BlockId) -> Result<(), BlockError> {
        let Some(staging) = self.staging().filter(|staging| staging.contains(&block)) else { return Ok(()) };
        let key = self.key(&block);
        let _slot = self.transfers.upload_slot().await;
        // One that was left behind may have been uploaded; and where metadata were set back, the object may be of a later time than it is.
        if !staging.is_own(&block) {
            match self.config.objects.head(&key).await {
                Ok(_) => {
                    staging.done(block).await;
                    return Ok(());
                }
                Err(ObjectError::Missing) => {}
                // AWS tells whom it does not let list a bucket nothing about what is not there.
                Err(ObjectError::Denied(why)) => {
                    let why = format!("{key} cannot be looked for; the right to list the bucket is needed (s3:ListBucket): {why}");
                    return Err(BlockError::Store(ObjectError::Denied(why)));
                }
                Err(e) => return Err(BlockError::Store(e)),
            }
        }
        // The block, and what it becomes.
        let copies = if self.codec.is_plain() { 1 } else { 2 };
        let _room = self.transfers.frame_room(copies * block.len as usize).await;
        let Some(data) = self.staged(block).await? else {
            // Another process has done it, or the cache directory was cleared: then the log of whoever reads the block tells.
            staging.done(block).await;
            return Ok(());
        };
        let frame = self.encode(&data).await?;
        // The slot is for others, too: one that fails waits where it is.
        self.transfers.put_up_to(Some(RETRIES), &key, &frame).await.map_err(BlockError::Store)?;
        if !staging.done(block).await {
            let mut told = self.transfers.delete_all(std::slice::from_ref(&key)).await;
            told.pop().unwrap_or(Ok(())).map_err(|e| self.failed("delete", key, e))?;
        }
        Ok(())
    }

    pub(super) fn is_staged(&self, block: &BlockId) -> bool {
        self.staging().is_some_and(|staging| staging.contains(block))
    }

    /// The block, if it is staged. There is no object to turn to if the cache was too slow, or has lost its link to it.
    pub(super) async fn staged(&self, block: BlockId) -> Result<Option<Bytes>, BlockError> {
        let Some(staging) = self.staging().filter(|staging| staging.contains(&block)) else { return Ok(None) };
        staging.read(block).await.map_err(|why| self.damaged(self.key(&block), why))
    }
}

#[cfg(test)]
mod tests;
