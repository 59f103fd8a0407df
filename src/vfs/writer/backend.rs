//! `Backend`: the few things the writer needs of metadata and blocks, narrow enough for a test double; `Live` is the real one.

use crate::block::BlockStore;
use crate::env::join;
use crate::meta::Meta;
use crate::meta::ops::write::NewSlice;
use crate::types::{Attr, BlockId, BoxFuture, Errno, Ino, SliceId, Time, block_count};
use crate::vfs::writer::event::Ready;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

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
    /// Removes what may have been stored of slices that no record names.
    fn discard(&self, slices: Vec<(SliceId, u32)>) -> BoxFuture<'static, ()>;
    /// Whether the file could grow to `length` as far as is known.
    fn check_growth(&self, ino: Ino, length: u64) -> BoxFuture<'static, Result<(), Errno>>;
}

/// The volume's metadata and blocks.
#[derive(Clone)]
pub(crate) struct Live {
    pub meta: Arc<Meta>,
    pub blocks: Arc<BlockStore>,
}

/// Blocks stored at once because the journal does not take them; the upload slots of the volume bound them together with all others.
const UPLOADS_MAX: usize = 16;
/// Times a commit with frames is tried. Each means that a client has come or gone.
const TRIES: u32 = 2;
/// First pause before a store that is out of memory is asked again; each is twice the one before.
const RELIEF_PAUSE: Duration = Duration::from_millis(50);

/// How small blocks are stored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// They come as frames in the commit.
    Journal,
    /// They are objects before the commit, as larger ones are.
    Objects,
}

/// A slice that has waited for so long is looked for before it is committed: what nothing names for an hour is a leak to whoever cleans a bucket
/// up, and a bucket or a metadata server may have been away that long. Half of that hour.
const SUSPECT_AGE: Duration = Duration::from_secs(1800);

impl Live {
    /// That blocks stored long ago are still there; those that are not, and are known here, are stored anew.
    async fn check_old(&self, slices: &[Ready]) -> Result<(), Errno> {
        let now = self.meta.clock().elapsed();
        for slice in slices.iter().filter(|slice| slice.frame.is_none() && slice.born + SUSPECT_AGE < now) {
            for index in 0..block_count(slice.len, self.blocks.block_bytes()) {
                let Some(block) = BlockId::of(slice.id, slice.len, index, self.blocks.block_bytes()) else { continue };
                self.blocks.restore_if_gone(block).await.map_err(|e| e.errno())?;
            }
        }
        Ok(())
    }

    /// Commits slices by `commit`, the small ones as frames if the journal takes them. If the store refuses them nothing has happened, and they
    /// become objects first. The blocks of slices are immutable, so it does no harm if one is stored in both ways. What was committed is in
    /// memory for the reads that follow.
    async fn commit_slices<T, F>(&self, slices: &[Ready], commit: impl Fn(Vec<NewSlice>) -> F) -> Result<T, Errno>
    where
        F: Future<Output = Result<T, Errno>>,
    {
        self.check_old(slices).await?;
        let journal = self.meta.journal();
        let small = || slices.iter().filter_map(|slice| Some((slice, slice.frame.as_ref()?)));
        let (count, bytes) = small().fold((0, 0), |(count, bytes), (_, data)| (count + 1, bytes + data.len() as u64));
        let mut tries = 0;
        while count == 0 || (tries < TRIES && journal.admits(count, bytes)) {
            tries += 1;
            match commit(self.records(slices, Way::Journal).await?).await {
                // Most often it is one of ours that has come or gone.
                Err(Errno::AGAIN) if count > 0 => self.meta.reconsider_journal().await,
                Err(Errno::NOSPC) if count > 0 && journal.is_full() => break,
                outcome => {
                    if outcome.is_ok() {
                        small().for_each(|(slice, data)| self.blocks.note_frame(slice.id, data.clone()));
                    }
                    return outcome;
                }
            }
        }
        let uploads = small().map(|(slice, data)| -> BoxFuture<'_, Result<(), Errno>> {
            let block = BlockId { slice: slice.id, index: 0, len: slice.len };
            Box::pin(async move { self.blocks.store(block, data.clone()).await.map_err(|e| e.errno()) })
        });
        join(uploads.collect(), UPLOADS_MAX).await?;
        let mut pause = RELIEF_PAUSE;
        loop {
            let outcome = commit(self.records(slices, Way::Objects).await?).await;
            // Every frame that leaves makes room. How long a store counts as full is bounded.
            if outcome.as_ref().err() != Some(&Errno::NOSPC) || !journal.is_full() || journal.bytes() == 0 {
                return outcome;
            }
            journal.ask();
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// The slices as they are committed.
    async fn records(&self, slices: &[Ready], way: Way) -> Result<Vec<NewSlice>, Errno> {
        let mut records = Vec::with_capacity(slices.len());
        for slice in slices {
            let frame = match &slice.frame {
                Some(data) if way == Way::Journal => Some(self.blocks.encode(data).await.map_err(|e| e.errno())?),
                _ => None,
            };
            records.push(NewSlice { pos: slice.pos, id: slice.id, len: slice.len, frame });
        }
        Ok(records)
    }
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
            blocks.store(block, data).await.map_err(|e| e.errno())
        })
    }

    fn commit(&self, ino: Ino, chunk: u32, slices: Vec<Ready>, mtime: Time) -> BoxFuture<'static, Result<Attr, Errno>> {
        let live = self.clone();
        Box::pin(async move {
            let commit = |records: Vec<NewSlice>| {
                let meta = &live.meta;
                async move { meta.write(ino, chunk, &records, mtime).await }
            };
            live.commit_slices(&slices, commit).await
        })
    }

    fn append(&self, ino: Ino, slice: Ready, mtime: Time) -> BoxFuture<'static, Result<(u64, Attr), Errno>> {
        let live = self.clone();
        Box::pin(async move {
            let commit = |mut records: Vec<NewSlice>| {
                let meta = &live.meta;
                async move { meta.append(ino, records.pop().ok_or(Errno::INVAL)?, mtime).await }
            };
            live.commit_slices(&[slice], commit).await
        })
    }

    fn discard(&self, slices: Vec<(SliceId, u32)>) -> BoxFuture<'static, ()> {
        let blocks = self.blocks.clone();
        Box::pin(async move {
            if blocks.deletes_max() == 0 {
                return;
            }
            // A failure was logged where it happened, and what is left `gc` finds.
            blocks.delete_slices(&slices).await;
        })
    }

    fn check_growth(&self, ino: Ino, length: u64) -> BoxFuture<'static, Result<(), Errno>> {
        let meta = self.meta.clone();
        Box::pin(async move { meta.check_growth(ino, length).await })
    }
}
