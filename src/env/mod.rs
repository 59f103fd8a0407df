//! Clock and randomness: the only sources of nondeterminism, so that tests can replace them. The disk, and what is mounted. And running several
//! futures at once, and memory that is bounded and used again.

mod budget;
mod buffers;
mod clock;
mod direct;
mod disk;
#[cfg(test)]
pub(crate) mod fuzz;
mod here;
mod join;
mod mountinfo;
mod random;

pub use budget::{Budget, Held, Share};
pub(crate) use buffers::Buffer;
pub use clock::{Clock, ManualClock, SystemClock, instant};
pub(crate) use direct::write_all_direct;
pub use disk::{DiskSpace, Reserve};
pub(crate) use here::{is_offered, offer};
pub(crate) use join::{Begun, join, join_in_turns};
pub use mountinfo::{MountEntry, mount_entries, mounted_at};
pub use random::{Random, SystemRandom, uuid_v4};
