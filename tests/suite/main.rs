//! Behaviour on real mounts. Every test starts what it needs and leaves nothing behind.

mod backup;
mod commands;
mod crash;
mod damage;
mod differential;
mod dump;
mod faults;
mod files;
mod fleet;
mod full;
mod gc;
mod hostile;
mod hosts;
mod inspect;
mod journal;
mod killed;
mod locks;
mod memory;
mod metrics;
mod operator;
mod posix;
mod powercut;
mod programs;
mod s3;
mod s3_server;
// Shared with the tests of the Redis store, which use other parts of them.
#[allow(dead_code)]
mod proxy;
mod redis;
mod semantics;
#[allow(dead_code)]
mod servers;
mod staging;
mod stalled;
mod support;
mod trips;
mod two_mounts;
