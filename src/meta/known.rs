//! `Known`: what this process remembers of a volume from one operation to the next, so that an ordinary operation need not ask.
//!
//! Nothing here is trusted without end: either it cannot change, or a commit that rests on it guards it, or its age is bounded.

use crate::types::Ino;

/// What is known.
#[derive(Default)]
pub(crate) struct Known {
    /// An hour since 1970, and the directory of the trash that takes what is deleted in it.
    pub trash_hour: tokio::sync::Mutex<Option<(i64, Ino)>>,
}
