//! `undelete`: things come back from the trash by the path they had.
//!
//! A name in the trash tells the inode of the directory it was in, not the path. So the path is followed from the root of the mount through
//! every directory that was called so, those that exist and those that are in the trash themselves: a file is found also if its directory
//! was deleted after it, or made anew.

use crate::meta::ops::acl::{ENTER, READ};
use crate::meta::ops::undelete::Trashed;
use crate::meta::store::Cursor;
use crate::types::{Asker, Caller, Errno, Ino, Kind, Name};
use crate::volume::operator::walk::parts;
use crate::volume::operator::{Failure, Operator, Progress, switch, text};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};

/// Things of the right names looked at for one path, some 200 bytes each. More means that the name is one of very many files.
const MATCHES_MAX: usize = 1 << 20;
/// Directories whose entries are looked for at once.
const DIRS_MAX: usize = 1 << 20;

/// What of a path is in the trash, and what exists.
struct Trace {
    names: Vec<Name>,
    /// Directories that exist at the beginning of the path, the root first.
    existing: Vec<Ino>,
    /// What exists at the path itself.
    there: Option<(Ino, Kind)>,
    /// Things in the trash that had the path, newest first.
    versions: Vec<Trashed>,
    /// Directories in the trash on the way, by inode.
    above: HashMap<Ino, Trashed>,
}

#[derive(Default)]
struct Counts {
    restored: u64,
    conflicts: u64,
    failed: u64,
}

impl Operator {
    /// Brings back what had a path, or lists its versions.
    pub(super) async fn undelete(&self, asker: &Asker, request: &Value, progress: &Progress) -> Result<Value, Failure> {
        let path = text(request, "Path")?;
        let trace = self.trace(asker, path).await?;
        if switch(request, "List") {
            let version = |found: &Trashed| {
                json!({
                    "Deleted": found.attr.ctime.sec, "Kind": kind_name(found.kind), "Length": found.attr.length, "Uid": found.attr.uid,
                    "Inode": found.ino.0,
                })
            };
            return Ok(json!({ "Versions": trace.versions.iter().map(version).collect::<Vec<_>>(), "Exists": trace.there.is_some() }));
        }
        self.writable()?;
        let at = |errno| Failure::at(format!("/{path}"), errno);
        let mut counts = Counts::default();
        let wanted = request["Version"].as_u64();
        let tree = match (&trace.there, wanted) {
            // The directory is there: what is missing below it comes back.
            (Some((ino, Kind::Dir)), None) => Some(*ino),
            (Some(_), _) => {
                let message = format!("/{path} exists; rename it first, then undelete what had this name before");
                return Err(Failure { errno: Errno::EXIST, message });
            }
            (None, wanted) => {
                let index = wanted.unwrap_or(1).checked_sub(1).and_then(|index| usize::try_from(index).ok());
                let found = index.and_then(|index| trace.versions.get(index)).ok_or_else(|| Failure {
                    errno: Errno::NOENT,
                    message: match trace.versions.len() {
                        0 => format!("nothing that was called /{path} and is yours to restore is in the trash"),
                        count => format!("there are {count} versions of /{path} in the trash"),
                    },
                })?;
                let dir = self.existing_dir(asker, &trace, found).await.map_err(at)?;
                let name = trace.names.last().ok_or_else(|| at(Errno::INVAL))?;
                self.meta.take_back(asker, found, dir, name).await.map_err(at)?;
                self.vfs.changed(dir, name);
                counts.restored += 1;
                progress.add(1, 0);
                (found.kind == Kind::Dir).then_some(found.ino)
            }
        };
        if let Some(dir) = tree {
            self.undelete_below(asker, dir, &mut counts, progress).await.map_err(at)?;
        }
        Ok(json!({ "Restored": counts.restored, "Conflicts": counts.conflicts, "Failed": counts.failed }))
    }

    /// Everything that had this path.
    async fn trace(&self, asker: &Asker, path: &str) -> Result<Trace, Failure> {
        let at = |errno| Failure::at(format!("/{path}"), errno);
        let names: Vec<Name> = parts(path).map(|part| Name::new(part.as_bytes())).collect::<Result<_, _>>().map_err(at)?;
        let mut matches: Vec<Trashed> = Vec::new();
        self.scan_trash(asker, |found| {
            if names.iter().any(|name| found.was_called(name)) {
                matches.push(found);
            }
            if matches.len() > MATCHES_MAX { Err(Errno::TOOBIG) } else { Ok(()) }
        })
        .await
        .map_err(at)?;
        let mut trace = Trace { names, existing: vec![self.root], there: None, versions: Vec::new(), above: HashMap::new() };
        let mut level: HashSet<Ino> = HashSet::from([self.root]);
        let mut live = Some(self.root);
        for (depth, name) in trace.names.iter().enumerate() {
            let is_last = depth + 1 == trace.names.len();
            let mut next = HashSet::new();
            if let Some(dir) = live {
                self.meta.check_access(asker, &self.meta.getattr(dir).await.map_err(at)?, ENTER).await.map_err(at)?;
                live = None;
                match self.meta.lookup(&Caller::root(), dir, name).await {
                    Ok((ino, attr)) if is_last => trace.there = Some((ino, attr.kind)),
                    Ok((ino, attr)) if attr.is_dir() => {
                        live = Some(ino);
                        trace.existing.push(ino);
                        next.insert(ino);
                    }
                    Ok(_) => return Err(at(Errno::NOTDIR)),
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(at(errno)),
                }
            }
            for found in matches.iter().filter(|found| level.contains(&found.parent) && found.was_called(name)) {
                let is_owner = asker.is_root() || found.attr.uid == asker.uid;
                if is_last && is_owner {
                    trace.versions.push(found.clone());
                } else if !is_last && found.kind == Kind::Dir && self.meta.check_access(asker, &found.attr, ENTER).await.is_ok() {
                    next.insert(found.ino);
                    trace.above.insert(found.ino, found.clone());
                }
            }
            level = next;
        }
        if trace.names.is_empty() {
            trace.there = Some((self.root, Kind::Dir));
        }
        trace.versions.sort_by_key(|found| std::cmp::Reverse((found.attr.ctime.sec, found.attr.ctime.nsec, found.hour, found.ino)));
        Ok(trace)
    }

    /// The directory a version comes back into: the one that exists at the path, or the one it was in, which is restored with those above it.
    async fn existing_dir(&self, asker: &Asker, trace: &Trace, version: &Trashed) -> Result<Ino, Errno> {
        let last = trace.names.len().saturating_sub(1);
        let mut at = *trace.existing.last().ok_or(Errno::NOENT)?;
        // From the version upwards to what exists.
        let mut chain = Vec::new();
        let mut dir = version.parent;
        for _ in trace.existing.len()..=last {
            let found = trace.above.get(&dir).ok_or(Errno::NOENT)?;
            dir = found.parent;
            chain.push(found);
        }
        for (found, name) in chain.into_iter().rev().zip(&trace.names[trace.existing.len() - 1..]) {
            match self.meta.take_back(asker, found, at, name).await {
                Ok(()) => at = found.ino,
                // Somebody has made it meanwhile.
                Err(Errno::EXIST) => at = self.meta.lookup(&Caller::root(), at, name).await?.0,
                Err(errno) => return Err(errno),
            }
        }
        Ok(at)
    }

    /// Brings back, newest first, what is missing below a directory.
    async fn undelete_below(&self, asker: &Asker, top: Ino, counts: &mut Counts, progress: &Progress) -> Result<(), Errno> {
        let mut dirs = self.dirs_below(asker, top).await?;
        while !dirs.is_empty() {
            let mut newest: HashMap<(Ino, Name), Trashed> = HashMap::new();
            self.scan_trash(asker, |found| {
                if !dirs.contains(&found.parent) || !(asker.is_root() || asker.uid == found.attr.uid) {
                    return Ok(());
                }
                let place = (found.parent, found.name.clone());
                if newest
                    .get(&place)
                    .is_none_or(|other| (other.attr.ctime.sec, other.attr.ctime.nsec) < (found.attr.ctime.sec, found.attr.ctime.nsec))
                {
                    newest.insert(place, found);
                }
                if newest.len() > MATCHES_MAX { Err(Errno::TOOBIG) } else { Ok(()) }
            })
            .await?;
            let mut restored_dirs = HashSet::new();
            let mut found: Vec<Trashed> = newest.into_values().collect();
            found.sort_by_key(|found| (found.parent, found.ino));
            for found in found {
                if asker.cancel.is_cancelled() {
                    return Err(Errno::INTR);
                }
                match self.meta.take_back(asker, &found, found.parent, &found.name).await {
                    Ok(()) => {
                        counts.restored += 1;
                        progress.add(1, 0);
                        if found.kind == Kind::Dir {
                            restored_dirs.insert(found.ino);
                        }
                    }
                    Err(Errno::EXIST) => counts.conflicts += 1,
                    Err(errno) => {
                        tracing::warn!(ino = %found.ino, "cannot be taken back from the trash: {errno}");
                        counts.failed += 1;
                    }
                }
            }
            dirs = restored_dirs;
        }
        Ok(())
    }

    /// A directory and all below it that the asker may list.
    async fn dirs_below(&self, asker: &Asker, top: Ino) -> Result<HashSet<Ino>, Errno> {
        let mut dirs = HashSet::from([top]);
        let mut pending = vec![(top, self.meta.getattr(top).await?)];
        while let Some((dir, attr)) = pending.pop() {
            if self.meta.check_access(asker, &attr, READ | ENTER).await.is_err() {
                continue;
            }
            let mut cursor = Some(Cursor::new());
            while let Some(at) = cursor {
                let page = self.meta.readdir(dir, at, super::PAGE).await?;
                for entry in page.entries {
                    if let (Kind::Dir, Some(attr)) = (entry.kind, entry.attr)
                        && dirs.insert(entry.ino)
                    {
                        pending.push((entry.ino, attr));
                    }
                }
                if dirs.len() > DIRS_MAX {
                    return Err(Errno::TOOBIG);
                }
                cursor = page.next;
            }
        }
        Ok(dirs)
    }

    /// Shows everything in the trash, newest hour first.
    async fn scan_trash(&self, asker: &Asker, mut look: impl FnMut(Trashed) -> Result<(), Errno> + Send) -> Result<(), Errno> {
        for (_, hour, _) in self.meta.trash_hours().await? {
            let mut cursor = Some(Cursor::new());
            while let Some(at) = cursor {
                if asker.cancel.is_cancelled() {
                    return Err(Errno::INTR);
                }
                let (page, next) = self.meta.trash_page(hour, at).await?;
                page.into_iter().try_for_each(&mut look)?;
                cursor = next;
            }
        }
        Ok(())
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Dir => "directory",
        Kind::Symlink => "symlink",
        _ => "special",
    }
}
