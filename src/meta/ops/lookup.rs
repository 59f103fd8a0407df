//! Looking up: names, attributes, parents, paths (metadata §6.1, §6.2).

use crate::meta::Meta;
use crate::meta::key;
use crate::meta::store::Query;
use crate::meta::view::{Plan, Stop, View};
use crate::types::{Attr, Caller, Errno, Ino, Name};

/// Longest chain of directories that is followed upwards. Deeper trees cannot be named by a path of 4096 bytes; a chain that long
/// means damage.
pub(crate) const DEPTH_MAX: usize = 1 << 16;

pub(crate) fn step(view: &View, parent: Ino, name: &Name) -> Result<Plan<(Ino, Attr)>, Stop> {
    match view.entry(parent, name)? {
        // An entry whose record is gone (a peer's defect, metadata §24) names nothing that could be used.
        None | Some((_, _, None)) => Err(Errno::NOENT.into()),
        Some((_, ino, Some(record))) => Ok(Plan::answer((ino, record.attr))),
    }
}

pub(crate) fn getattr_step(view: &View, ino: Ino) -> Result<Plan<Attr>, Stop> {
    Ok(Plan::answer(view.record(ino)?.ok_or(Errno::NOENT)?.attr))
}

pub(crate) fn parent_step(view: &View, ino: Ino) -> Result<Plan<Ino>, Stop> {
    if ino == Ino::ROOT {
        return Ok(Plan::answer(ino));
    }
    let attr = view.record(ino)?.ok_or(Errno::NOENT)?.attr;
    if attr.parent.0 != 0 {
        return Ok(Plan::answer(attr.parent));
    }
    // Several links: any directory that holds one of them, of the trash only if there is no other. Fields with a count of zero or less
    // are leftovers.
    let found = view.fields(&key::parents(ino))?.iter().filter_map(|(dir, count)| {
        let count: i64 = std::str::from_utf8(count).ok()?.parse().ok()?;
        let dir: u64 = std::str::from_utf8(dir).ok()?.parse().ok()?;
        (count > 0).then_some(Ino(dir))
    });
    Ok(Plan::answer(found.min().ok_or(Errno::NOENT)?))
}

impl Meta {
    /// The inode a name stands for. An entry without record is ENOENT. Changes of others may be seen some milliseconds late.
    pub async fn lookup(&self, caller: &Caller, parent: Ino, name: &Name) -> Result<(Ino, Attr), Errno> {
        self.answer_standing("lookup", caller, |view, _| step(view, parent, name)).await
    }

    /// The attributes of an inode. Changes of others may be seen some milliseconds late.
    pub async fn getattr(&self, ino: Ino) -> Result<Attr, Errno> {
        self.answer_standing("getattr", &Caller::root(), |view, _| getattr_step(view, ino)).await
    }

    /// Whether the store tells what others change, but not of this inode, as its record was found by the way.
    pub fn is_unwatched(&self, ino: Ino) -> bool {
        self.driver.facts.as_ref().is_some_and(|facts| facts.is_heard() && facts.recall_standing(&[Query::Get(key::inode(ino))]).is_none())
    }

    /// The directory that contains an inode; the root contains itself.
    pub async fn parent_of(&self, ino: Ino) -> Result<Ino, Errno> {
        self.answer("parent", &Caller::root(), |view, _| parent_step(view, ino)).await
    }

    /// Follows a path from the root of the volume. Symbolic links are not followed: as an intermediate component they are ENOTDIR.
    pub async fn resolve(&self, path: &str) -> Result<(Ino, Attr), Errno> {
        let caller = Caller::root();
        let mut at = (Ino::ROOT, self.getattr(Ino::ROOT).await?);
        for component in path.split('/') {
            if component.is_empty() || component == "." {
                continue;
            }
            if !at.1.is_dir() {
                return Err(Errno::NOTDIR);
            }
            at = if component == ".." {
                let parent = self.parent_of(at.0).await?;
                (parent, self.getattr(parent).await?)
            } else {
                self.lookup(&caller, at.0, &Name::new(component.as_bytes())?).await?
            };
        }
        Ok(at)
    }
}
