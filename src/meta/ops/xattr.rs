//! Extended attributes (metadata §6.15). Unlike the other client, changing one changes ctime.

use crate::meta::acl::AclKind;
use crate::meta::codec::{self, CTIME_AT, Record};
use crate::meta::key;
use crate::meta::ops::parent;
use crate::meta::store::{Guard, Query, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Cx, Meta};
use crate::types::{Caller, Errno, Flags, Ino};
use bytes::Bytes;

/// Longest name in bytes, as Linux has it.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Longest value in bytes, as Linux has it.
pub const XATTR_VALUE_BYTES_MAX: usize = 65536;

/// POSIX ACLs are records of their own (`acl.rs`), never plain attributes.
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

/// Whether the attribute must be absent or present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XattrMode {
    /// Either.
    #[default]
    Any,
    /// Absent, or EEXIST.
    Create,
    /// Present, or ENODATA.
    Replace,
}

fn check_name(name: &[u8]) -> Result<(), Errno> {
    if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX || name.contains(&0) {
        return Err(Errno::RANGE);
    }
    if name.starts_with(ACL_PREFIX) { Err(Errno::NOTSUP) } else { Ok(()) }
}

/// The inode whose attributes are to change.
fn changeable(view: &View, ino: Ino) -> Result<Record, Stop> {
    let record = view.record(ino)?.ok_or(Errno::NOENT)?;
    if record.attr.flags.any(Flags::IMMUTABLE | Flags::APPEND) { Err(Errno::PERM.into()) } else { Ok(record) }
}

fn touch_ctime(cx: &Cx, ino: Ino) -> Write {
    Write::Patch { key: key::inode(ino), offset: CTIME_AT, bytes: codec::encode_touch(cx.now).slice(..12) }
}

pub(crate) fn set_step(view: &View, cx: &Cx, ino: Ino, name: &Bytes, value: &Bytes, mode: XattrMode) -> Result<Plan<()>, Stop> {
    let hash = key::xattr(ino);
    let record = if mode == XattrMode::Any {
        changeable(view, ino)?
    } else {
        view.want([Query::Get(key::inode(ino)), Query::HGet(hash.clone(), name.clone())])?;
        changeable(view, ino)?
    };
    let mut guards = vec![parent::identity(ino, &record)];
    if mode != XattrMode::Any {
        let present = view.field(&hash, name.clone())?;
        match (&present, mode) {
            (Some(_), XattrMode::Create) => return Err(Errno::EXIST.into()),
            (None, XattrMode::Replace) => return Err(Errno::NODATA.into()),
            _ => guards.push(Guard::Field(hash.clone(), name.clone(), present)),
        }
    }
    Ok(Plan::new(guards, vec![Write::HSet(hash, name.clone(), value.clone()), touch_ctime(cx, ino)], ()))
}

pub(crate) fn remove_step(view: &View, cx: &Cx, ino: Ino, name: &Bytes) -> Result<Plan<()>, Stop> {
    let hash = key::xattr(ino);
    view.want([Query::Get(key::inode(ino)), Query::HGet(hash.clone(), name.clone())])?;
    let record = changeable(view, ino)?;
    let Some(value) = view.field(&hash, name.clone())? else { return Err(Errno::NODATA.into()) };
    let guards = vec![parent::identity(ino, &record), Guard::Field(hash.clone(), name.clone(), Some(value))];
    Ok(Plan::new(guards, vec![Write::HDel(hash, name.clone()), touch_ctime(cx, ino)], ()))
}

pub(crate) fn list_step(view: &View, ino: Ino) -> Result<Plan<Vec<Bytes>>, Stop> {
    view.want([Query::Get(key::inode(ino)), Query::HGetAll(key::xattr(ino))])?;
    let attr = view.record(ino)?.ok_or(Errno::NOENT)?.attr;
    let mut names: Vec<Bytes> = view.fields(&key::xattr(ino))?.iter().map(|(name, _)| name.clone()).collect();
    for (kind, id) in [(AclKind::Access, attr.access_acl), (AclKind::Default, attr.default_acl)] {
        if id != 0 {
            names.push(Bytes::from_static(kind.xattr()));
        }
    }
    Ok(Plan::answer(names))
}

impl Meta {
    /// The value of an attribute; ENODATA if there is none.
    pub async fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes, Errno> {
        check_name(name)?;
        let name = Bytes::copy_from_slice(name);
        self.answer_standing("get xattr", &Caller::root(), |view, _| {
            let value = view.field(&key::xattr(ino), name.clone())?;
            Ok(Plan::answer(value.ok_or(Errno::NODATA)?))
        })
        .await
    }

    /// Sets an attribute. ERANGE if name or value is too long.
    pub async fn set_xattr(&self, caller: &Caller, ino: Ino, name: &[u8], value: Bytes, mode: XattrMode) -> Result<(), Errno> {
        check_name(name)?;
        if value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(Errno::RANGE);
        }
        let name = Bytes::copy_from_slice(name);
        self.run("set xattr", caller, |view, cx| set_step(view, cx, ino, &name, &value, mode)).await
    }

    /// The names of all attributes, ACLs among them.
    pub async fn list_xattr(&self, ino: Ino) -> Result<Vec<Bytes>, Errno> {
        self.answer_standing("list xattrs", &Caller::root(), |view, _| list_step(view, ino)).await
    }

    /// Removes an attribute; ENODATA if there is none.
    pub async fn remove_xattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<(), Errno> {
        check_name(name)?;
        let name = Bytes::copy_from_slice(name);
        self.run("remove xattr", caller, |view, cx| remove_step(view, cx, ino, &name)).await
    }
}
