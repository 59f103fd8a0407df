//! `Backend`: the few things the writer needs of metadata and blocks, narrow enough for a test double; `Live` is the real one.

use crate::block::BlockStore;
use crate::meta::Meta;
use crate::meta::ops::write::NewSlice;
use crate::types::{Attr, BlockId, BoxFuture, Errno, Ino, SliceId, Time};
use crate::vfs::writer::event::Ready;
use bytes::Bytes;
use std::sync::Arc;

/// What the shell performs actions with. Every future owns what it needs: it may outlive the request that made it.
pub(crate) trait Backend: Send + Sync + 'static {
    /// A fresh slice id.
    fn next_slice(&self) -> BoxFuture<'static, Result<SliceId, Errno>>;
    /// Stores a block durably.
    fn upload(&self, block: BlockId, data: Bytes) -> BoxFuture<'static, Result<(), Errno>>;
    /// Commits slices of one chunk, in order, in one transaction.
    fn commit(&self, ino: Ino, chunk: u32, slices: Vec<Ready>, mtime: Time) -> BoxFuture<'static, Result<Attr, Errno>>;
    /// Commits one slice at the end of the file, wherever that is; answers where it was.
    fn append(&self, ino: Ino, slice: Ready, mtime: Time) -> BoxFuture<'static, Result<(u64, Attr), Errno>>;
    /// Whether the file could grow to `length` as far as is known.
    fn check_growth(&self, ino: Ino, length: u64) -> BoxFuture<'static, Result<(), Errno>>;
}

/// The volume's metadata and blocks.
pub(crate) struct Live {
    pub meta: Arc<Meta>,
    pub blocks: Arc<BlockStore>,
}

/// The slice as it is committed; a small one with its frame.
async fn record(blocks: &BlockStore, slice: &Ready) -> Result<NewSlice, Errno> {
    let frame = match &slice.frame {
        Some(data) => Some(blocks.encode(data).await.map_err(|e| e.errno())?),
        None => None,
    };
    Ok(NewSlice { pos: slice.pos, id: slice.id, len: slice.len, frame })
}

impl Backend for Live {
    fn next_slice(&self) -> BoxFuture<'static, Result<SliceId, Errno>> {
        let meta = self.meta.clone();
        Box::pin(async move { meta.next_slice().await })
    }

    fn upload(&self, block: BlockId, data: Bytes) -> BoxFuture<'static, Result<(), Errno>> {
        let (meta, blocks) = (self.meta.clone(), self.blocks.clone());
        Box::pin(async move {
            // The slice may have its number from another volume than the one that has the bucket now.
            if meta.is_disowned() {
                return Err(Errno::IO);
            }
            blocks.upload(block, data).await.map_err(|e| e.errno())
        })
    }

    fn commit(&self, ino: Ino, chunk: u32, slices: Vec<Ready>, mtime: Time) -> BoxFuture<'static, Result<Attr, Errno>> {
        let (meta, blocks) = (self.meta.clone(), self.blocks.clone());
        Box::pin(async move {
            let mut records = Vec::with_capacity(slices.len());
            for slice in &slices {
                records.push(record(&blocks, slice).await?);
            }
            let attr = meta.write(ino, chunk, &records, mtime).await?;
            for Ready { id, frame, .. } in slices {
                if let Some(data) = frame {
                    blocks.note_frame(id, data);
                }
            }
            Ok(attr)
        })
    }

    fn append(&self, ino: Ino, slice: Ready, mtime: Time) -> BoxFuture<'static, Result<(u64, Attr), Errno>> {
        let (meta, blocks) = (self.meta.clone(), self.blocks.clone());
        Box::pin(async move {
            let record = record(&blocks, &slice).await?;
            let done = meta.append(ino, record, mtime).await?;
            if let Some(data) = slice.frame {
                blocks.note_frame(slice.id, data);
            }
            Ok(done)
        })
    }

    fn check_growth(&self, ino: Ino, length: u64) -> BoxFuture<'static, Result<(), Errno>> {
        let meta = self.meta.clone();
        Box::pin(async move { meta.check_growth(ino, length).await })
    }
}
