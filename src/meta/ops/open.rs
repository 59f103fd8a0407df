//! Opening and closing (metadata §6.12, §6.16), and creating what is opened at once.
//!
//! Nothing in the store says that a file is open: this process counts its handles. A handle is counted before the record is read, and
//! whoever removes a last link decides under the inode's stripe; so either the opener is seen, or it sees that the file is gone.

use crate::meta::key;
use crate::meta::ops::create::{self, NewNode};
use crate::meta::ops::stats::Tally;
use crate::meta::store::{Guard, Query, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Cx, Meta};
use crate::types::{Attr, Caller, Duty, Errno, Flags, Ino, Kind, Name};

/// Times an open that creates starts over because the file it found was removed before it could be opened. Each means that somebody
/// else made progress.
const RACES_MAX: u32 = 64;

/// A file that was opened, perhaps just created. One handle is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The file.
    pub ino: Ino,
    /// Its attributes.
    pub attr: Attr,
    /// Whether this call created it.
    pub created: bool,
}

/// What a handle is going to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMode {
    /// Write.
    pub write: bool,
    /// Only at the end.
    pub append: bool,
    /// Drop the content first. Only checked here; the caller truncates.
    pub truncate: bool,
}

impl OpenMode {
    /// EPERM if the flags of the inode forbid it.
    pub fn check(&self, attr: &Attr) -> Result<(), Errno> {
        let writes = self.write || self.truncate;
        let immutable = attr.flags.any(Flags::IMMUTABLE) && writes;
        let append_only = attr.flags.any(Flags::APPEND) && (self.truncate || (self.write && !self.append));
        if immutable || append_only { Err(Errno::PERM) } else { Ok(()) }
    }
}

/// What lies in the trash is not written through a new handle, unless it is one more of a file this process has open already
/// (`/proc/self/fd`).
pub(crate) fn step(view: &View, ino: Ino, mode: OpenMode, is_open: bool) -> Result<Plan<Attr>, Stop> {
    let attr = view.record(ino)?.ok_or(Errno::NOENT)?.attr;
    mode.check(&attr)?;
    if attr.is_trashed() && (mode.write || mode.truncate) && !is_open {
        return Err(Errno::PERM.into());
    }
    Ok(Plan::answer(attr))
}

/// After the last handle of this process is gone: a file that it kept alive without a link is deleted. Whether it was linked again is
/// looked at, and whether it is this session that kept it: another process may have the file open.
pub(crate) fn close_step(view: &View, cx: &Cx, ino: Ino) -> Result<Plan<Option<u64>>, Stop> {
    if cx.sid == 0 || cx.open_files.is_open(ino) {
        return Ok(Plan::answer(None));
    }
    let sustained = key::sustained(cx.sid);
    let Some(record) = view.record(ino)? else {
        // Another process removed it for good. Its mark in our set, if there is one, names nothing any more.
        return Ok(Plan::new(vec![Guard::Value(key::inode(ino), None)], vec![Write::SRem(sustained, key::decimal(ino))], None));
    };
    let attr = &record.attr;
    if attr.nlink > 0 && attr.kind == Kind::File {
        // It got a name again, perhaps elsewhere. A mark left in our set would make others delete it when they clean up after this session.
        let guard = Guard::Value(key::inode(ino), Some(record.bytes.clone()));
        return Ok(Plan::new(vec![guard], vec![Write::SRem(sustained, key::decimal(ino))], None));
    }
    if attr.kind != Kind::File || !view.members(&sustained)?.contains(&key::decimal(ino)) {
        return Ok(Plan::answer(None));
    }
    let mut guards = vec![Guard::Value(key::inode(ino), Some(record.bytes.clone()))];
    let mut writes = vec![
        Write::ZAdd(key::DELFILES, cx.now.sec, key::delfile(ino, attr.length)),
        Write::Del(key::inode(ino)),
        Write::SRem(sustained, key::decimal(ino)),
        // Attributes set after the last link was gone.
        Write::Del(key::xattr(ino)),
    ];
    let mut tally = Tally::new(view, cx);
    tally.inode(attr, -1)?;
    tally.put(&mut guards, &mut writes);
    let mut plan = Plan::new(guards, writes, Some(attr.length));
    plan.while_closed = Some(ino);
    Ok(plan)
}

/// What an open that may create comes to.
pub(crate) enum Target {
    /// It was created.
    Created(Attr),
    /// There is such a file.
    Exists(Ino),
}

pub(crate) fn open_or_create_step(
    view: &View,
    cx: &Cx,
    dir: Ino,
    name: &Name,
    node: &NewNode,
    exclusive: bool,
    ino: Ino,
) -> Result<Plan<Target>, Stop> {
    if !exclusive {
        view.want([Query::Get(key::inode(dir)), Query::Entry { dir: key::dir(dir), name: key::name(name) }])?;
        match view.entry(dir, name)? {
            Some((Kind::File, found, Some(_))) => return Ok(Plan::answer(Target::Exists(found))),
            Some((Kind::Dir, ..)) => return Err(Errno::ISDIR.into()),
            // The kernel believed that there was nothing; now that there is something it does not open through us, it looks again.
            Some((_, _, Some(_))) => return Err(Errno::STALE.into()),
            // An entry without a record cannot be opened, and is not replaced behind anybody's back.
            Some((_, _, None)) => return Err(Errno::NOENT.into()),
            None => {}
        }
    }
    let created = create::step(view, cx, dir, name, node, ino)?;
    Ok(Plan {
        guards: created.guards,
        writes: created.writes,
        reads: created.reads,
        while_closed: None,
        finish: Box::new(move |replies, values| (created.finish)(replies, values).map(|(_, attr)| Target::Created(attr))),
    })
}

impl Meta {
    /// Opens an inode: one handle is counted on success.
    pub async fn open(&self, caller: &Caller, ino: Ino, mode: OpenMode) -> Result<Attr, Errno> {
        let is_open = self.open_files().is_open(ino);
        self.count_handle(ino).await;
        let opened = self
            .answer("open", caller, |view, _| {
                if self.is_far() {
                    // Most files have one list, and the first read asks for it, and for what is not an object yet.
                    let list = key::chunk(ino, 0);
                    view.want([Query::Get(key::inode(ino)), Query::List(list.clone()), Query::Frames { list, until: 0 }])?;
                }
                step(view, ino, mode, is_open)
            })
            .await;
        // The file may have lost its last link to a process of ours whose last handle went just before this one came: that handle's
        // close saw this one and left the file to it.
        if opened.as_ref().map_or(true, |attr| attr.nlink == 0) {
            self.open_files().unlinked(ino);
        }
        if opened.is_err() {
            // Somebody may have seen the handle and kept the file alive for it. Whatever goes wrong now, the session's end cleans up.
            let _ = self.close(ino).await;
        }
        opened
    }

    /// Opens a regular file, creating it if there is none (always, if `exclusive`): one handle is counted on success. Anything else of
    /// that name is EISDIR, or ESTALE so that the kernel looks the name up again.
    pub async fn open_or_create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &Name,
        node: NewNode<'_>,
        exclusive: bool,
    ) -> Result<Opened, Errno> {
        if node.kind != Kind::File {
            return Err(Errno::INVAL);
        }
        let ino = self.next_inode().await?;
        // Counted before the commit: the moment it is done, anybody may remove the file.
        self.count_handle(ino).await;
        let mut outcome = Err(Errno::IO);
        for _ in 0..RACES_MAX {
            let target =
                self.run("open or create", caller, |view, cx| open_or_create_step(view, cx, parent, name, &node, exclusive, ino)).await;
            match target {
                Ok(Target::Created(attr)) => return Ok(Opened { ino, attr, created: true }),
                // No handle writes yet: what it may do is the caller's to check against the attributes.
                Ok(Target::Exists(found)) => match self.open(caller, found, OpenMode::default()).await {
                    Ok(attr) => outcome = Ok(Opened { ino: found, attr, created: false }),
                    // Removed since: look again.
                    Err(Errno::NOENT) => continue,
                    Err(errno) => outcome = Err(errno),
                },
                Err(errno) => outcome = Err(errno),
            }
            break;
        }
        self.open_files().remove(ino);
        outcome
    }

    /// Creates a file without a name (`O_TMPFILE`): one handle is counted on success, and the file goes with the last one unless it
    /// has been linked.
    pub async fn create_unnamed(&self, caller: &Caller, parent: Ino, node: NewNode<'_>) -> Result<Opened, Errno> {
        if node.kind != Kind::File {
            return Err(Errno::INVAL);
        }
        let ino = self.next_inode().await?;
        self.count_handle(ino).await;
        match self.run("create unnamed", caller, |view, cx| create::unnamed_step(view, cx, parent, &node, ino)).await {
            Ok(attr) => {
                self.open_files().unlinked(ino);
                Ok(Opened { ino, attr, created: true })
            }
            Err(errno) => {
                self.open_files().remove(ino);
                Err(errno)
            }
        }
    }

    /// Gives back one handle. With the last one of a file that has no link any more the file is deleted.
    pub async fn close(&self, ino: Ino) -> Result<(), Errno> {
        let last_of_unlinked = {
            // A removal that saw the handle is committed before the handle goes, so that the look at the record below meets it.
            let _removals = self.open_files().keep_link(ino).await;
            self.open_files().remove(ino)
        };
        if !self.open_files().is_open(ino) {
            self.fence.closed(ino);
        }
        if !last_of_unlinked {
            return Ok(());
        }
        if let Some(length) = self.run("close", &Caller::root(), |view, cx| close_step(view, cx, ino)).await? {
            self.ask(Duty::DeleteFile { ino, length });
        }
        Ok(())
    }

    async fn count_handle(&self, ino: Ino) {
        let _removals = self.open_files().keep_link(ino).await;
        self.open_files().add(ino);
    }
}
