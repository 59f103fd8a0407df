//! Behaviour on real mounts. Every test starts what it needs and leaves nothing behind.

mod commands;
mod crash;
mod differential;
mod faults;
mod files;
mod locks;
mod posix;
mod powercut;
mod programs;
mod s3;
mod s3_server;
mod support;
mod two_mounts;
