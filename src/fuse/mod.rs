//! The kernel adapter: mounts, reads requests, calls `vfs`, writes the answers.
//!
//! The way of a request: `session` (read, poll once) → `decode` (bytes to `Request`) → `dispatch` (the table) → `vfs` → `reply`.
//! No kernel structure leaves this module, and nothing here knows metadata or blocks.

mod abi;
mod decode;
mod device;
mod dispatch;
mod gap;
mod interrupt;
mod killed;
mod mount;
mod notify;
mod parked;
mod reply;
mod session;

pub use mount::Unmounter;
pub use session::FuseSession;

/// How a volume is mounted.
#[derive(Clone, Debug)]
pub struct FuseConfig {
    /// The source in `/proc/mounts`: `Pando:` and the volume's name.
    pub fs_name: String,
    /// The type in `/proc/mounts` is `fuse.` and this.
    pub subtype: String,
    /// Other users than the mounting one may enter.
    pub allow_other: bool,
    /// The kernel checks permissions.
    pub default_permissions: bool,
    /// Words of `-o`, several in one string separated by commas.
    pub options: Vec<String>,
    /// Largest write in bytes; at most 1 MiB.
    pub max_write: u32,
    /// Threads that read requests.
    pub threads: usize,
    /// Extended attributes are handed on; otherwise the kernel is told that there are none.
    pub xattr: bool,
    /// The kernel asks for POSIX ACLs, checks them, and leaves the umask to us.
    pub acl: bool,
}

#[cfg(test)]
impl FuseConfig {
    fn test() -> FuseConfig {
        FuseConfig {
            fs_name: "Pando:test".into(),
            subtype: "pando".into(),
            allow_other: false,
            default_permissions: true,
            options: Vec::new(),
            max_write: 1 << 20,
            threads: 2,
            xattr: true,
            acl: false,
        }
    }
}
