//! Extended attributes.

use crate::meta::acl::{AclKind, Rule};
use crate::meta::ops::XattrMode;
use crate::types::{Caller, Errno, Ino};
use crate::vfs::{Vfs, inode_errno};
use bytes::Bytes;

/// Longest name and value, as Linux has them.
const NAME_BYTES_MAX: usize = 255;
const VALUE_BYTES_MAX: usize = 64 << 10;
/// Names that mean something to the kernel which a volume (without ACLs) does not keep: a stored value would look as if it had effect. The kernel
/// asks for `security.capability` at every write; it is answered without a look at the metadata.
const UNKEPT: [&[u8]; 4] = [b"security.capability", b"security.selinux", b"system.posix_acl_access", b"system.posix_acl_default"];

impl Vfs {
    /// The value of one.
    pub async fn getxattr(&self, _caller: &Caller, ino: Ino, name: &[u8]) -> Result<Bytes, Errno> {
        self.offers_xattr()?;
        check_name(name)?;
        if let Some(kind) = self.acl_of(name) {
            return Ok(self.meta.get_acl(self.mount.inward(ino), kind).await.map_err(inode_errno)?.to_wire());
        }
        if UNKEPT.contains(&name) {
            return Err(Errno::NODATA);
        }
        self.meta.get_xattr(self.mount.inward(ino), name).await.map_err(inode_errno)
    }

    /// Sets one; `flags` are those of setxattr(2). `clears_sgid` goes with an ACL: the kernel found that the caller is not in the group.
    pub async fn setxattr(&self, caller: &Caller, ino: Ino, name: &[u8], value: Bytes, flags: u32, clears_sgid: bool) -> Result<(), Errno> {
        self.offers_xattr()?;
        self.mount.writable()?;
        check_name(name)?;
        let mode = mode_of(flags)?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(Errno::TOOBIG);
        }
        if let Some(kind) = self.acl_of(name) {
            let rule = Rule::of_wire(&value).ok_or(Errno::INVAL)?;
            return self.meta.set_acl(caller, self.mount.inward(ino), kind, &rule, clears_sgid).await.map_err(inode_errno);
        }
        if UNKEPT.contains(&name) {
            return Err(Errno::NOTSUP);
        }
        self.meta.set_xattr(caller, self.mount.inward(ino), name, value, mode).await.map_err(inode_errno)
    }

    /// All names, each ended by a NUL.
    pub async fn listxattr(&self, _caller: &Caller, ino: Ino) -> Result<Bytes, Errno> {
        self.offers_xattr()?;
        let names = self.meta.list_xattr(self.mount.inward(ino)).await.map_err(inode_errno)?;
        let mut list = Vec::with_capacity(names.iter().map(|name| name.len() + 1).sum());
        for name in names {
            list.extend_from_slice(&name);
            list.push(0);
        }
        Ok(list.into())
    }

    /// Removes one.
    pub async fn removexattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<(), Errno> {
        self.offers_xattr()?;
        self.mount.writable()?;
        check_name(name)?;
        if let Some(kind) = self.acl_of(name) {
            return self.meta.set_acl(caller, self.mount.inward(ino), kind, &Rule::default(), false).await.map_err(inode_errno);
        }
        if UNKEPT.contains(&name) {
            return Err(Errno::NOTSUP);
        }
        self.meta.remove_xattr(caller, self.mount.inward(ino), name).await.map_err(inode_errno)
    }

    /// Which ACL an attribute is, on a volume that has them.
    fn acl_of(&self, name: &[u8]) -> Option<AclKind> {
        AclKind::of_xattr(name).filter(|_| self.meta.setting().enable_acl())
    }

    /// ENOSYS keeps the kernel from asking again, which spares a request per write.
    fn offers_xattr(&self) -> Result<(), Errno> {
        if self.mount.xattr() { Ok(()) } else { Err(Errno::NOSYS) }
    }
}

fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX { Err(Errno::RANGE) } else { Ok(()) }
}

fn mode_of(flags: u32) -> Result<XattrMode, Errno> {
    match i32::try_from(flags) {
        Ok(0) => Ok(XattrMode::Any),
        Ok(libc::XATTR_CREATE) => Ok(XattrMode::Create),
        Ok(libc::XATTR_REPLACE) => Ok(XattrMode::Replace),
        _ => Err(Errno::INVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        assert_eq!(check_name(b""), Err(Errno::RANGE));
        assert_eq!(check_name(&[b'a'; 255]), Ok(()));
        assert_eq!(check_name(&[b'a'; 256]), Err(Errno::RANGE));
        assert!(matches!(mode_of(0), Ok(XattrMode::Any)));
        assert!(matches!(mode_of(1), Ok(XattrMode::Create)));
        assert!(matches!(mode_of(2), Ok(XattrMode::Replace)));
        assert!(matches!(mode_of(3), Err(Errno::INVAL)));
        assert!(matches!(mode_of(1 << 31), Err(Errno::INVAL)));
    }
}
