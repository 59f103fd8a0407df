//! `Errno`: what a system call answers when it fails.

use std::fmt;

/// A Linux error number (positive). The only error type that crosses into the kernel adapter.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident = $libc:ident),* $(,)?) => {
        impl Errno {
            $(#[doc = concat!("`", stringify!($libc), "`")] pub const $name: Errno = Errno(libc::$libc);)*

            /// The symbolic name, where this program uses it.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $(libc::$libc => Some(stringify!($libc)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    PERM = EPERM, NOENT = ENOENT, INTR = EINTR, IO = EIO, NXIO = ENXIO, BADF = EBADF, AGAIN = EAGAIN, NOMEM = ENOMEM,
    ACCES = EACCES, BUSY = EBUSY, EXIST = EEXIST, XDEV = EXDEV, NOTDIR = ENOTDIR, ISDIR = EISDIR, INVAL = EINVAL,
    FBIG = EFBIG, NOSPC = ENOSPC, ROFS = EROFS, MLINK = EMLINK, PIPE = EPIPE, RANGE = ERANGE, NAMETOOLONG = ENAMETOOLONG,
    NOLCK = ENOLCK, NOSYS = ENOSYS, NOTEMPTY = ENOTEMPTY, LOOP = ELOOP, NODATA = ENODATA, OVERFLOW = EOVERFLOW,
    NOTSUP = EOPNOTSUPP, STALE = ESTALE, DQUOT = EDQUOT, NOTTY = ENOTTY, TIMEDOUT = ETIMEDOUT, DEADLK = EDEADLK, NOTCONN = ENOTCONN,
    TOOBIG = E2BIG, OWNERDEAD = EOWNERDEAD,
}

impl Errno {
    /// As messages of commands have it, the way scripts know: `no such file or directory`.
    pub fn text(self) -> String {
        let text = self.to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        let mut letters = text.chars();
        letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
    }
}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Self {
        Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::io::Error::from_raw_os_error(self.0))
    }
}

impl std::error::Error for Errno {}
