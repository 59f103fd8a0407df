//! Options of the reference that this build accepts without acting on them, or refuses with a reason.
//!
//! Ignored is what changes nothing that a user could rely on. Refused is what would leave a promise unkept: rights, limits, data.

use crate::cli::values;

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
    /// Its value decides: nothing, one line, or the message with which the command ends.
    Check(fn(&str) -> Result<Option<&'static str>, String>),
}

use Effect::{Check, Refuse, Silent, Warn};

const ONE_READER: &str = "has no effect: this build reads and writes metadata in one stream";
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
        "config" => CONFIG,
        "dump" => DUMP,
        "load" => LOAD,
        "debug" => DEBUG,
        _ => &[],
    }
}

const MOUNT: &[Flag] = &[
    switch("f", Silent),
    switch("foreground", Silent),
    switch("no-syslog", Silent),
    switch("force", Silent),
    switch("prefix-internal", Warn("has no effect: the trash keeps its name")),
    switch("update-fstab", Refuse(NOT_YET)),
    switch("disable-transparent-hugepage", Warn("has no effect: this program does not depend on huge pages")),
    switch("enable-cap", Refuse(NOT_YET)),
    switch("enable-selinux", Refuse(NOT_YET)),
    switch("enable-ioctl", Refuse(NOT_YET)),
    value("root-squash", Refuse(NOT_YET)),
    value("all-squash", Refuse(NOT_YET)),
    value("skip-dir-nlink", Silent),
    // Parents are always touched: stricter than asked.
    value("skip-dir-mtime", Silent),
    switch("sort-dir", Silent),
    switch("fast-statfs", Silent),
    value("network-interfaces", Warn("has no effect: all addresses of the host are registered")),
    switch("readdir-cache", Warn("has no effect: directories are read afresh")),
    value("open-cache", Check(open_cache)),
    value("open-cache-limit", Silent),
    value("storage", Refuse("cannot be replaced for one client; its setting decides, change it with `config`")),
    value("bucket", Refuse("cannot be replaced for one client; its setting decides, change it with `config`")),
    value("storage-class", Warn("has no effect: the setting of the volume decides")),
    value("tag", Warn("has no effect: this build stores no tags")),
    switch("check-storage", Silent),
    value("consul", Warn("has no effect: this build registers nowhere; let Prometheus find it by other means")),
    switch("no-usage-report", Silent),
];

/// Ignoring it only means asking the store more often than allowed.
fn open_cache(text: &str) -> Result<Option<&'static str>, String> {
    let time = values::duration(text).map_err(|why| format!("Invalid value {text:?} for \"open-cache\": {why}"))?;
    Ok((!time.is_zero()).then_some("has no effect: attributes are asked for at each open"))
}

const FORMAT: &[Flag] = &[
    value("tag", Warn("has no effect: this build stores no tags")),
    value("ranger-rest-url", Refuse(NOT_YET)),
    value("ranger-service", Refuse(NOT_YET)),
    value("kerberos-config-file", Refuse(NOT_YET)),
];

const CONFIG: &[Flag] = &[
    value("tag", Refuse(NOT_YET)),
    value("tier", Refuse(NOT_YET)),
    value("ranger-rest-url", Refuse(NOT_YET)),
    value("ranger-service", Refuse(NOT_YET)),
    value("kerberos-config-file", Refuse(NOT_YET)),
    switch("changelog", Refuse(NOT_YET)),
    value("changelog-max-age", Refuse(NOT_YET)),
    value("changelog-max-lines", Refuse(NOT_YET)),
    switch("user-group-quota", Refuse(NOT_YET)),
];

const DUMP: &[Flag] = &[
    // The order of the result does not depend on them.
    value("threads", Warn(ONE_READER)),
    switch("fast", Silent),
];

const DEBUG: &[Flag] = &[
    value("trace-sec", Warn("has no effect: there is no trace of the Go runtime")),
    value("profile-sec", Warn("has no effect: there is no profile of the Go runtime")),
];

const LOAD: &[Flag] = &[switch("stat", Refuse(NOT_YET)), value("offset", Refuse(NOT_YET)), value("threads", Warn(ONE_READER))];
