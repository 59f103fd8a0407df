//! Mounting and unmounting: options, what is negotiated with the kernel, and stale mount points.

use crate::env::{MountEntry, mount_entries, mounted_at};
use crate::fuse::FuseConfig;
use fuser::{Config, Filesystem, InitFlags, KernelConfig, MountOption, Request, Session, SessionACL, Version};
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The kernel's default limit on pages of one request (`fs.fuse.max_pages_limit` 256) makes 1 MiB; more is cut down anyway.
pub(crate) const MAX_WRITE_BYTES: u32 = 1 << 20;
/// Below it the protocol's own limits begin.
const MIN_WRITE_BYTES: u32 = 4096;
/// Readahead and asynchronous direct I/O the kernel may have under way: enough to keep eight 4 MiB blocks coming at 128 KiB a request.
const BACKGROUND_MAX: u16 = 256;
/// Linux 5.4: all structures have had their present size and MAX_PAGES has existed since.
const OLDEST_KERNEL: Version = Version(7, 31);
/// The word of `-o` that asks for several requests of one O_DIRECT call at once.
const ASYNC_DIO: &str = "async_dio";
/// Dead mounts stacked on one directory that are removed; a crash loop may leave several.
const STALE_MOUNTS_MAX: u32 = 16;

/// What we want of the kernel, as far as it has it. `fuser` adds ASYNC_READ, BIG_WRITES and MAX_PAGES by itself.
///
/// Absent on purpose: WRITEBACK_CACHE (the kernel would own sizes and times), EXPORT_SUPPORT (a file handle would reach beyond the mount's
/// root), NO_OPEN and NO_OPENDIR (opens are counted), HANDLE_KILLPRIV (the kernel clears set-id bits by SETATTR). ASYNC_DIO only if it is asked
/// for: with it a process in a read or write with O_DIRECT cannot be killed as long as the bucket is away.
fn capabilities() -> InitFlags {
    InitFlags::FUSE_ASYNC_READ
        | InitFlags::FUSE_BIG_WRITES
        | InitFlags::FUSE_MAX_PAGES
        | InitFlags::FUSE_POSIX_LOCKS
        | InitFlags::FUSE_FLOCK_LOCKS
        | InitFlags::FUSE_AUTO_INVAL_DATA
        | InitFlags::FUSE_DO_READDIRPLUS
        | InitFlags::FUSE_READDIRPLUS_AUTO
        | InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_CACHE_SYMLINKS
        | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP
}

/// What is added on a volume with POSIX ACLs: the kernel asks for them and checks them; it leaves the umask to us, because a directory's
/// default ACL stands in for it; and it says when setting one must clear a set-group-id bit.
fn acl_capabilities() -> InitFlags {
    InitFlags::FUSE_POSIX_ACL | InitFlags::FUSE_DONT_MASK | InitFlags::FUSE_SETXATTR_EXT
}

/// The part of a filesystem that `fuser` is asked for: the handshake.
#[derive(Debug)]
pub(crate) struct Handshake {
    max_write: u32,
    acl: bool,
    async_dio: bool,
    /// The kernel can let a directory entry expire.
    expires: Arc<AtomicBool>,
}

impl Filesystem for Handshake {
    fn init(&mut self, _: &Request, kernel: &mut KernelConfig) -> io::Result<()> {
        if kernel.kernel_abi() < OLDEST_KERNEL {
            let message = format!("FUSE protocol {} of this kernel is too old; {OLDEST_KERNEL} (Linux 5.4) is needed", kernel.kernel_abi());
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        let refused = |what: &str| io::Error::other(format!("the kernel adapter refused {what}"));
        let available = kernel.capabilities();
        let asked = if self.async_dio { InitFlags::FUSE_ASYNC_DIO } else { InitFlags::empty() };
        kernel.add_capabilities((capabilities() | asked) & available).map_err(|_| refused("capabilities it offered"))?;
        if self.acl {
            if !available.contains(acl_capabilities()) {
                let message = "the volume has POSIX ACLs, which this kernel cannot check; Linux 5.13 is needed";
                return Err(io::Error::new(io::ErrorKind::Unsupported, message));
            }
            kernel.add_capabilities(acl_capabilities()).map_err(|_| refused("ACL capabilities it offered"))?;
        }
        self.expires.store(available.contains(InitFlags::FUSE_HAS_EXPIRE_ONLY), Ordering::Relaxed);
        let missing = (InitFlags::FUSE_POSIX_LOCKS | InitFlags::FUSE_FLOCK_LOCKS) & !available;
        if !missing.is_empty() {
            tracing::warn!(?missing, "locks are local to this host: the kernel cannot hand them on");
        }
        kernel.set_max_write(self.max_write).map_err(|_| refused("the size of a write"))?;
        kernel.set_max_background(BACKGROUND_MAX).map_err(|_| refused("the number of background requests"))?;
        kernel.set_time_granularity(Duration::from_nanos(1)).map_err(|_| refused("the granularity of times"))?;
        Ok(())
    }
}

/// The size of a write for a wish: whole pages between the bounds.
pub(crate) fn write_bytes(wish: u32) -> u32 {
    wish.clamp(MIN_WRITE_BYTES, MAX_WRITE_BYTES) / MIN_WRITE_BYTES * MIN_WRITE_BYTES
}

/// Mounts and shakes hands. A dead mount in the way is removed first.
pub(crate) fn mount(mountpoint: &Path, config: &FuseConfig) -> io::Result<Shaken> {
    detach_stale(mountpoint)?;
    let path = mountpoint.canonicalize()?;
    let expires = Arc::new(AtomicBool::new(false));
    let async_dio = words(config).any(|word| word == ASYNC_DIO);
    let handshake = Handshake { max_write: write_bytes(config.max_write), acl: config.acl, async_dio, expires: expires.clone() };
    let session = Session::new(handshake, &path, &mount_config(config)?)?;
    Ok(Shaken { session, path, expires: expires.load(Ordering::Relaxed) })
}

/// A mount whose handshake is done.
pub(crate) struct Shaken {
    pub session: Session<Handshake>,
    /// The real path of the mount point, found before the mount, when looking at it did not yet ask us.
    pub path: PathBuf,
    /// The kernel can let a directory entry expire.
    pub expires: bool,
}

/// The words of `-o`.
fn words(config: &FuseConfig) -> impl Iterator<Item = &str> {
    config.options.iter().flat_map(|list| list.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

fn mount_config(config: &FuseConfig) -> io::Result<Config> {
    let mut result = Config::default();
    let mut options = vec![MountOption::FSName(config.fs_name.clone())];
    // `fuser` leaves its own Subtype out when it mounts by itself; as a plain option the kernel shows type `fuse.SUBTYPE`.
    options.push(MountOption::CUSTOM(format!("subtype={}", config.subtype)));
    if config.default_permissions {
        options.push(MountOption::DefaultPermissions);
    }
    let mut allow_other = config.allow_other;
    for word in words(config) {
        match word {
            // Root alone cannot be told apart by the kernel; JuiceFS, too, takes this for everybody.
            "allow_other" | "allow_root" => allow_other = true,
            "auto_unmount" => return Err(io::Error::new(io::ErrorKind::InvalidInput, "mount option auto_unmount is not supported")),
            _ => options.extend(option(word)),
        }
    }
    let mut seen: Vec<MountOption> = Vec::new();
    for option in options {
        if !seen.contains(&option) {
            seen.push(option);
        }
    }
    result.mount_options = seen;
    result.acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
    Ok(result)
}

/// A word of `-o`. Words that are flags of mount(2) must be named: in the option string the kernel refuses them.
fn option(word: &str) -> Option<MountOption> {
    Some(match word {
        "dev" => MountOption::Dev,
        "nodev" => MountOption::NoDev,
        "suid" => MountOption::Suid,
        "nosuid" => MountOption::NoSuid,
        "ro" => MountOption::RO,
        "rw" => MountOption::RW,
        "exec" => MountOption::Exec,
        "noexec" => MountOption::NoExec,
        "atime" => MountOption::Atime,
        "noatime" => MountOption::NoAtime,
        "dirsync" => MountOption::DirSync,
        "sync" => MountOption::Sync,
        "async" => MountOption::Async,
        "default_permissions" => MountOption::DefaultPermissions,
        // Asked of the kernel in the handshake.
        ASYNC_DIO => return None,
        // Words of fstab and of other implementations that ask for nothing here.
        "defaults" | "auto" | "noauto" | "user" | "nouser" | "users" | "nofail" | "_netdev" | "nonempty" | "debug" | "relatime"
        | "writeback_cache" => return None,
        _ if word.starts_with("x-") || word.starts_with("comment=") => return None,
        _ => MountOption::CUSTOM(word.to_owned()),
    })
}

/// Removes mounts whose daemon is dead (ENOTCONN) from the directory.
fn detach_stale(mountpoint: &Path) -> io::Result<()> {
    for _ in 0..STALE_MOUNTS_MAX {
        match std::fs::metadata(mountpoint) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
                tracing::warn!(mountpoint = %mountpoint.display(), "removing a mount whose process is gone");
                detach(mountpoint)?;
            }
            // Any other trouble is reported by the mount itself.
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// Unmounts a session's mount point, from any thread.
#[derive(Clone, Debug)]
pub struct Unmounter {
    mountpoint: PathBuf,
    /// The mount as it was made; none if the system has not told it.
    made: Option<MountEntry>,
    /// The connection has ended: what is mounted there now is not ours.
    ended: Arc<AtomicBool>,
}

impl Unmounter {
    /// Of what has just been mounted there.
    pub(crate) fn new(mountpoint: PathBuf, ended: Arc<AtomicBool>) -> Unmounter {
        let made = mounted_at(&mountpoint).ok().flatten();
        Unmounter { mountpoint, made, ended }
    }

    /// Unmounts; lazily if the mount is busy: it disappears from the tree and ends when its last user is gone. May block while the kernel
    /// asks us for what it needs, so never call it where requests are answered.
    pub fn unmount(&self) -> io::Result<()> {
        if self.ended.load(Ordering::SeqCst) {
            return Ok(());
        }
        let place = match &self.made {
            None => self.mountpoint.clone(),
            Some(made) => match self.place(made) {
                Some(place) => place,
                None => return Ok(()),
            },
        };
        match umount2(&place, 0) {
            Err(error) => match error.raw_os_error() {
                // Not a mount point (any more).
                Some(libc::EINVAL | libc::ENOENT) => Ok(()),
                Some(libc::EBUSY) => {
                    tracing::warn!(mountpoint = %place.display(), "busy: unmounting lazily");
                    detach(&place)
                }
                Some(libc::EPERM) => fusermount(&place, &["-u"]).or_else(|_| detach(&place)),
                _ => Err(error),
            },
            Ok(()) => Ok(()),
        }
    }
}

impl Unmounter {
    /// Where our mount is seen by now; nowhere if it was taken out of the tree while programs still use it, or if another one covers it.
    /// Directories above it may have been renamed, or it was moved.
    fn place(&self, made: &MountEntry) -> Option<PathBuf> {
        let Ok(entries) = mount_entries() else { return Some(self.mountpoint.clone()) };
        // Numbers of devices are given out again.
        let same = |entry: &MountEntry| (&entry.device, &entry.kind, &entry.source) == (&made.device, &made.kind, &made.source);
        let is_ours = |path: &Path| matches!(mounted_at(path), Ok(Some(entry)) if same(&entry));
        let elsewhere = entries.into_iter().filter(|entry| same(entry) && entry.root == Path::new("/"));
        let mut places = std::iter::once(self.mountpoint.clone()).chain(elsewhere.map(|entry| entry.mountpoint));
        let place = places.find(|path| is_ours(path));
        if place.is_none() {
            tracing::warn!(
                "this mount is not at {} any more, or another one is over it: what is there is left alone",
                self.mountpoint.display()
            );
        }
        place
    }
}

/// Takes a mount out of the tree, busy or not.
fn detach(mountpoint: &Path) -> io::Result<()> {
    match umount2(mountpoint, libc::MNT_DETACH) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => fusermount(mountpoint, &["-u", "-z"]),
        result => result,
    }
}

fn umount2(mountpoint: &Path, flags: libc::c_int) -> io::Result<()> {
    let path = CString::new(mountpoint.as_os_str().as_bytes())?;
    // SAFETY: `path` is a NUL-terminated string that lives through the call.
    let result = unsafe { libc::umount2(path.as_ptr(), flags | libc::UMOUNT_NOFOLLOW) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The set-uid program that unmounts for users other than root.
fn fusermount(mountpoint: &Path, flags: &[&str]) -> io::Result<()> {
    let output = Command::new("fusermount3").args(flags).arg("--").arg(mountpoint).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("fusermount3: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags_words_or_nothing() {
        let config = FuseConfig {
            options: vec!["noatime,allow_root".into(), "max_read=65536".into(), "_netdev, x-systemd.automount".into(), "noatime".into()],
            ..FuseConfig::test()
        };
        let mounted = mount_config(&config).unwrap();
        let custom = |word: &str| MountOption::CUSTOM(word.to_owned());
        assert_eq!(
            mounted.mount_options,
            [
                MountOption::FSName("Pando:test".into()),
                custom("subtype=pando"),
                MountOption::DefaultPermissions,
                MountOption::NoAtime,
                custom("max_read=65536")
            ]
        );
        assert_eq!(mounted.acl, SessionACL::All);
        assert!(mount_config(&FuseConfig { options: vec!["auto_unmount".into()], ..FuseConfig::test() }).is_err());
    }

    #[test]
    fn the_size_of_a_write_is_whole_pages_within_bounds() {
        for (wish, size) in [(0, 4096), (4097, 4096), (131_072, 131_072), (u32::MAX, 1 << 20)] {
            assert_eq!(write_bytes(wish), size);
        }
    }

    #[test]
    fn a_mount_that_has_ended_is_left_alone() {
        Unmounter::new("/nowhere".into(), Arc::new(AtomicBool::new(true))).unmount().unwrap();
        Unmounter::new("/nowhere".into(), Arc::new(AtomicBool::new(false))).unmount().unwrap();
    }
}
