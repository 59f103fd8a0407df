//! Behaviour on real mounts. Every test starts what it needs and leaves nothing behind.

mod crash;
mod differential;
mod dump;
mod faults;
mod files;
mod locks;
mod posix;
mod powercut;
mod programs;
mod support;
mod two_mounts;
