//! Pando: one POSIX tree for a fleet of agents. `docs/ARCHITECTURE.md` is the map.

pub mod block;
pub mod cache;
pub mod chunk;
pub mod cli;
pub mod daemon;
pub mod env;
pub mod fuse;
pub mod jobs;
pub mod meta;
pub mod object;
pub mod telemetry;
pub mod types;
pub mod vfs;
pub mod volume;
