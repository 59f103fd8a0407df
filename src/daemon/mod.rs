//! The life of a mount: getting ready, going to the background, serving, ending.
//!
//! Nothing here opens a runtime, a database or a thread before the fork of `background`: neither survives it.

mod background;
mod control;
mod metrics;
mod mountpoint;
mod record;
mod serve;
mod umount;

pub use control::{AskError, Connection, Inside, Last, locate, mounts};
pub use metrics::ADDRESS_DEFAULT;
pub use mountpoint::{MountpointError, prepare};
pub use record::Record;
pub use umount::{Unmount, UnmountError, umount};

use crate::volume::{MetaUrl, MountOptions, NewVolume, VolumeError, VolumeOptions};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Types under which mounts of this program appear in `/proc/mounts`, after `fuse.`: its own name, and that of the program it stands for.
pub const SUBTYPES: [&str; 2] = ["pando", "juicefs"];

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsPlan {
    /// `HOST:PORT`; port 0 is any.
    pub address: String,
    /// Otherwise another port is as good if this one is taken.
    pub asked_for: bool,
    /// Stand at every value, beside those of the mount.
    pub labels: Vec<(String, String)>,
}

/// Everything a mount needs to know, decided before any process is started.
#[derive(Clone, Debug)]
pub struct MountPlan {
    /// The volume.
    pub url: MetaUrl,
    /// What it becomes if there is none yet; `None`: that is an error.
    pub fresh: Option<NewVolume>,
    /// One of `SUBTYPES`.
    pub subtype: &'static str,
    /// What `/proc/mounts` shows as the source, before the colon and the name of the volume.
    pub source: &'static str,
    /// Where it appears; absolute.
    pub mountpoint: PathBuf,
    /// How the volume is used.
    pub volume: VolumeOptions,
    /// What is shown of it.
    pub view: MountOptions,
    /// Whether other users may use the mount.
    pub allow_other: bool,
    /// Whether the kernel checks permissions.
    pub default_permissions: bool,
    /// Further options for the kernel.
    pub options: Vec<String>,
    /// Largest request in bytes.
    pub request_bytes: u32,
    /// Where a background process writes its log; `None` stays in the foreground.
    pub log: Option<PathBuf>,
    /// Where metrics are served; `None`: nowhere.
    pub metrics: Option<MetricsPlan>,
    /// How long the launcher of a background process waits for the mount. `JFS_MOUNT_TIMEOUT` replaces it.
    pub ready_time_max: Duration,
}

/// Why a mount did not come about or did not end well.
#[derive(Debug)]
pub enum MountError {
    /// The volume cannot be used.
    Volume(VolumeError),
    /// Something of the system failed.
    System(String, io::Error),
    /// The background process told this.
    Background(String),
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MountError::Volume(error) => write!(f, "{error}"),
            MountError::System(what, error) => write!(f, "{what}: {error}"),
            MountError::Background(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for MountError {}

impl From<VolumeError> for MountError {
    fn from(error: VolumeError) -> MountError {
        MountError::Volume(error)
    }
}

/// Mounts and serves. In the foreground it returns when the mount has ended; with a log file, in the launching process, as soon as it is
/// ready. `ready` is called with the name of the volume.
pub fn run(plan: &MountPlan, started: impl FnOnce(), ready: impl FnOnce(&str)) -> Result<(), MountError> {
    match &plan.log {
        None => {
            started();
            serve::serve(plan, ready)
        }
        Some(log) => background::run(plan, log, started, ready),
    }
}

fn last_error() -> io::Error {
    io::Error::last_os_error()
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> MountError {
    let what = what.into();
    move |error| MountError::System(what, error)
}
