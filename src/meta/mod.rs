//! The metadata: typed keys, transactions, one file per operation, the stores. Knows no file bytes.

pub mod acl;
pub mod codec;
pub mod driver;
pub mod key;
mod known;
pub mod ops;
mod secret;
pub mod setting;
pub mod store;
pub mod view;

mod changes;
mod client;
mod facts;
mod fence;
mod ids;
pub mod journal;
mod lines;
mod listings;
mod lists;
mod pacing;
mod reload;
pub use client::{AtimeMode, Cx, Meta, MetaConfig};
pub use facts::{RecordListener, Told};
pub use lists::List;

#[cfg(test)]
mod watch_test;
