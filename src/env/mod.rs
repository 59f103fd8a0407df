//! Clock and randomness: the only sources of nondeterminism, so that tests can replace them.

mod clock;
mod random;

pub use clock::{Clock, ManualClock, SystemClock};
pub use random::{Random, SystemRandom, uuid_v4};
