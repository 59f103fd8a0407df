//! Options of the reference that this build accepts without acting on them, or refuses with a reason.
//!
//! Ignored is what changes nothing that a user could rely on. Refused is what would leave a promise unkept: rights, limits, data.

/// An option that has no field in a command's arguments.
#[derive(Debug)]
pub struct Flag {
    /// Its name without dashes.
    pub name: &'static str,
    /// Whether a value follows.
    pub takes_value: bool,
    /// What happens.
    pub effect: Effect,
}

/// What an option without function does.
#[derive(Debug)]
pub enum Effect {
    /// Nothing; what it asks for is so anyway.
    Silent,
    /// Nothing, and one line says so.
    Warn(&'static str),
    /// The command ends with this reason.
    Refuse(&'static str),
}

use Effect::{Refuse, Silent, Warn};

const LOCAL: &str = "has no effect on a local volume";
const NOT_YET: &str = "is not supported by this build; leave it out";

const fn switch(name: &'static str, effect: Effect) -> Flag {
    Flag { name, takes_value: false, effect }
}

const fn value(name: &'static str, effect: Effect) -> Flag {
    Flag { name, takes_value: true, effect }
}

/// Options every command accepts.
pub const GLOBAL: &[Flag] = &[switch("no-agent", Silent), value("pyroscope", Warn("has no effect: this build sends no profiles"))];

/// The options a command accepts beside its own.
pub fn flags(command: &str) -> &'static [Flag] {
    match command {
        "mount" => MOUNT,
        "format" => FORMAT,
        "fsck" => FSCK,
        "dump" => DUMP,
        "load" => LOAD,
        _ => &[],
    }
}

const MOUNT: &[Flag] = &[
    switch("f", Silent),
    switch("foreground", Silent),
    switch("no-syslog", Silent),
    switch("force", Silent),
    // There are no internal files to hide or rename.
    switch("hide-internal", Silent),
    switch("prefix-internal", Silent),
    switch("update-fstab", Refuse(NOT_YET)),
    switch("disable-transparent-hugepage", Warn("has no effect: this program does not depend on huge pages")),
    switch("enable-cap", Refuse(NOT_YET)),
    switch("enable-selinux", Refuse(NOT_YET)),
    switch("enable-ioctl", Refuse(NOT_YET)),
    value("root-squash", Refuse(NOT_YET)),
    value("all-squash", Refuse(NOT_YET)),
    value("backup-meta", Warn("has no effect on a local volume: copy its directory while nothing is mounted to back it up")),
    switch("backup-skip-trash", Silent),
    switch("no-bgjob", Refuse("is not supported by this build; a local volume needs its background work, as no other client does it")),
    value("skip-dir-nlink", Silent),
    // Parents are always touched: stricter than asked.
    value("skip-dir-mtime", Silent),
    switch("sort-dir", Silent),
    switch("fast-statfs", Silent),
    value("network-interfaces", Warn(LOCAL)),
    switch("readdir-cache", Warn(LOCAL)),
    value("open-cache", Warn(LOCAL)),
    value("open-cache-limit", Silent),
    value("storage", Refuse("cannot be replaced for a local volume; its setting decides")),
    value("bucket", Refuse("cannot be replaced for a local volume; change it with `pando format --bucket`")),
    value("storage-class", Warn(LOCAL)),
    value("tag", Warn(LOCAL)),
    value("get-timeout", Warn(LOCAL)),
    value("put-timeout", Warn(LOCAL)),
    value("io-retries", Warn(LOCAL)),
    value("max-stage-write", Warn(LOCAL)),
    value("max-deletes", Refuse(NOT_YET)),
    value("upload-limit", Refuse(NOT_YET)),
    value("download-limit", Refuse(NOT_YET)),
    switch("check-storage", Silent),
    value("max-readahead", Warn(NO_TUNING)),
    value("prefetch", Warn(NO_TUNING)),
    // The objects are files of this host already: staging them first would store everything twice.
    switch("writeback", Warn(LOCAL)),
    value("writeback-threshold-size", Warn(LOCAL)),
    value("upload-delay", Warn(LOCAL)),
    value("upload-hours", Warn(LOCAL)),
    value("cache-dir", Warn(LOCAL)),
    value("cache-mode", Warn(LOCAL)),
    value("cache-size", Warn(LOCAL)),
    value("cache-items", Warn(LOCAL)),
    value("free-space-ratio", Warn(LOCAL)),
    switch("cache-partial-only", Warn(LOCAL)),
    switch("cache-large-write", Warn(LOCAL)),
    value("verify-cache-checksum", Warn(LOCAL)),
    value("cache-eviction", Warn(LOCAL)),
    value("cache-scan-interval", Warn(LOCAL)),
    value("cache-expire", Warn(LOCAL)),
    value("metrics", Warn(NO_METRICS)),
    value("custom-labels", Warn(NO_METRICS)),
    value("consul", Warn(NO_METRICS)),
    switch("no-usage-report", Silent),
];

const NO_TUNING: &str = "has no effect: reading ahead adapts itself";
const NO_METRICS: &str = "has no effect: this build serves no metrics";

const FORMAT: &[Flag] = &[
    value("access-key", Refuse("belongs to remote storage; this build stores objects in a directory")),
    value("secret-key", Refuse("belongs to remote storage; this build stores objects in a directory")),
    value("session-token", Refuse("belongs to remote storage; this build stores objects in a directory")),
    value("storage-class", Refuse("belongs to remote storage; this build stores objects in a directory")),
    value("tag", Refuse("belongs to remote storage; this build stores objects in a directory")),
    value("encrypt-rsa-key", Refuse(NOT_YET)),
    // The algorithm of an encryption that is not asked for.
    value("encrypt-algo", Silent),
    value("shards", Refuse(NOT_YET)),
    switch("enable-acl", Refuse(NOT_YET)),
    value("ranger-rest-url", Refuse(NOT_YET)),
    value("ranger-service", Refuse(NOT_YET)),
    value("kerberos-config-file", Refuse(NOT_YET)),
];

const FSCK: &[Flag] = &[
    value("path", Refuse("is not supported by this build; the whole volume is checked")),
    switch("repair", Refuse("is not supported by this build: it checks and changes nothing")),
    switch("r", Silent),
    switch("recursive", Silent),
    switch("sync-dir-stat", Refuse("is not supported by this build: it checks and changes nothing")),
    value("repair-dir-mode", Silent),
];

const DUMP: &[Flag] = &[
    // The order of the result does not depend on them.
    value("threads", Silent),
    switch("fast", Silent),
];

const LOAD: &[Flag] = &[
    switch("stat", Refuse(NOT_YET)),
    value("offset", Refuse(NOT_YET)),
    value("threads", Silent),
    value("encrypt-rsa-key", Refuse("is not supported by this build; decrypt the backup first")),
    value("encrypt-algo", Silent),
    value("encrypt-alg", Silent),
];
