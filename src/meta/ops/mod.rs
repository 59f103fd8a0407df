//! One file per operation: each a pure step from what is known to a plan, and the method of `Meta` that runs it.
//!
//! A step reads through a `View`, decides, and yields guards and writes; `Meta::run` carries them to the store. Writes stand in the
//! order of metadata §6, commutative counters last.

pub mod acl;
pub mod append;
pub mod chunk;
pub mod clone;
pub mod compact;
pub mod copy;
pub mod create;
pub mod delete;
pub mod election;
pub mod fallocate;
pub mod frames;
pub mod limits;
pub mod link;
pub mod lock;
pub mod lookup;
pub mod open;
pub(crate) mod parent;
pub mod quota;
pub mod readdir;
pub mod readlink;
pub mod remove;
pub mod rename;
pub mod rmdir;
pub mod session;
pub mod setattr;
pub mod statfs;
pub mod stats;
pub mod trash;
pub mod truncate;
pub mod undelete;
pub mod unlink;
pub mod unlock;
pub mod write;
pub mod xattr;

#[cfg(test)]
mod names_test;
#[cfg(test)]
mod trips_test;
#[cfg(test)]
mod unlock_test;

pub use create::NewNode;
pub use open::{OpenMode, Opened};
pub use readdir::{DirEntry, DirPage};
pub use rename::RenameFlags;
pub use setattr::{SetAttr, SetTime};
pub use statfs::StatFs;
pub use xattr::XattrMode;
