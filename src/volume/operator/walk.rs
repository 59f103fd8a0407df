//! From a path to an inode, as the asker may go it.

use crate::meta::ops::acl::ENTER;
use crate::meta::ops::trash::TRASH_NAME;
use crate::types::{Asker, Attr, Caller, Errno, Ino, Name};
use crate::volume::operator::{Failure, Operator};

/// What a path leads to.
pub(super) struct Found {
    pub ino: Ino,
    pub attr: Attr,
}

/// What is above the last part of a path.
pub(super) struct Above {
    pub dir: Ino,
    pub name: Name,
}

impl Operator {
    /// Follows a path from the root of the mount. Symbolic links are not followed: who asks has resolved them.
    pub(super) async fn walk(&self, asker: &Asker, path: &str) -> Result<Found, Failure> {
        let at = |errno| Failure::at(format!("/{path}"), errno);
        let attr = self.meta.getattr(self.root).await.map_err(at)?;
        let mut found = Found { ino: self.root, attr };
        for part in parts(path) {
            found = self.step(asker, (found.ino, &found.attr), part.as_bytes()).await.map_err(at)?;
        }
        Ok(found)
    }

    /// Follows all but the last part; EINVAL if there is none.
    pub(super) async fn walk_above(&self, asker: &Asker, path: &str) -> Result<Above, Failure> {
        let at = |errno| Failure::at(format!("/{path}"), errno);
        let last = parts(path).last().ok_or_else(|| at(Errno::INVAL))?;
        let above = path.trim_end_matches('/').strip_suffix(last).unwrap_or_default();
        let found = self.walk(asker, above).await?;
        if !found.attr.is_dir() {
            return Err(at(Errno::NOTDIR));
        }
        self.meta.check_access(asker, &found.attr, ENTER).await.map_err(at)?;
        let name = Name::new(last.as_bytes()).map_err(at)?;
        Ok(Above { dir: found.ino, name })
    }

    async fn step(&self, asker: &Asker, (dir, attr): (Ino, &Attr), part: &[u8]) -> Result<Found, Errno> {
        if !attr.is_dir() {
            return Err(Errno::NOTDIR);
        }
        self.meta.check_access(asker, attr, ENTER).await?;
        let name = Name::new(part)?;
        if dir == Ino::ROOT && part == TRASH_NAME {
            if !asker.is_root() {
                return Err(Errno::ACCES);
            }
            return Ok(Found { ino: Ino::TRASH, attr: self.meta.getattr(Ino::TRASH).await? });
        }
        let (ino, attr) = self.meta.lookup(&Caller::root(), dir, &name).await?;
        Ok(Found { ino, attr })
    }
}

/// The names of a path. `..` is one like others here, and names nothing.
pub(super) fn parts(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".")
}
