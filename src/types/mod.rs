//! The nouns of the program: plain data and pure arithmetic, importing nothing.

mod attr;
mod caller;
mod duty;
mod errno;
mod frame;
mod name;
mod overlay;
mod slice;
mod time;

pub use attr::{Attr, FILE_BYTES_MAX, Flags, Ino, Kind};
pub use caller::{Asker, Caller, Cancel};
pub use duty::Duty;
pub use errno::Errno;
pub use frame::{FRAME_BYTES_MAX, FrameSource};
pub use name::Name;
pub use overlay::{Extent, flatten};
pub use slice::{BlockId, CHUNK_BYTES, ChunkPart, SliceId, SliceRecord, block_count, chunk_parts};
pub use time::{Civil, Time, parse_rfc3339};

/// Directories in each other that one request walks into. Each takes a part of a stack; what has more is damaged, or nobody's work.
pub const LEVELS_MAX: usize = 1024;
/// Stack of a thread that walks. An unoptimised build takes up to 15 KiB a level; what is not used is never taken from the system.
pub const STACK_BYTES: usize = LEVELS_MAX * (32 << 10);

/// A boxed future, as the narrow traits of the lower layers return it.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
