//! `FrameSource`: where blocks live that have no object yet.

use crate::types::{BoxFuture, Errno, SliceId};
use bytes::Bytes;

/// A slice that is one block of at most this size may be kept beside the metadata: larger ones are better off as objects.
pub const FRAME_BYTES_MAX: u32 = 64 << 10;

/// Small blocks are first kept beside the metadata. `block` asks this source before it goes to the bucket; `meta` implements it.
pub trait FrameSource: Send + Sync {
    /// The frame of the only block of this slice, exactly the bytes of its future object; `None` if it is (or will be) in the bucket.
    fn frame(&self, id: SliceId) -> BoxFuture<'_, Result<Option<Bytes>, Errno>>;
}
