//! Reading a symbolic link (metadata §6.15).

use crate::meta::Meta;
use crate::meta::key;
use crate::meta::view::{Plan, Stop, View};
use crate::types::{Caller, Errno, Ino, Kind};
use bytes::Bytes;

pub(crate) fn step(view: &View, ino: Ino) -> Result<Plan<Bytes>, Stop> {
    match view.string(&key::symlink(ino))? {
        Some(target) if !target.is_empty() => Ok(Plan::answer(target)),
        _ => match view.record(ino)? {
            None => Err(Errno::NOENT.into()),
            Some(record) if record.attr.kind == Kind::Symlink => Err(Errno::IO.into()),
            Some(_) => Err(Errno::INVAL.into()),
        },
    }
}

impl Meta {
    /// The target of a symbolic link.
    pub async fn readlink(&self, ino: Ino) -> Result<Bytes, Errno> {
        self.answer_standing("readlink", &Caller::root(), |view, _| step(view, ino)).await
    }
}
