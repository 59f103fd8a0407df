//! Requests about whole trees: `rmr`, `clone`, `compact`.

use crate::env::join;
use crate::meta::ops::acl::{ENTER, READ, WRITE};
use crate::meta::ops::clone::Cloning;
use crate::meta::ops::remove::Removal;
use crate::meta::store::Cursor;
use crate::types::{Asker, Attr, BoxFuture, CHUNK_BYTES, Errno, Ino, Kind};
use crate::volume::operator::{Failure, Operator, PAGE, Progress, switch, text, threads};
use serde_json::{Value, json};
use std::collections::HashSet;

impl Operator {
    /// Removes a name and all below it.
    pub(super) async fn rmr(&self, asker: &Asker, request: &Value, progress: &Progress) -> Result<Value, Failure> {
        self.writable()?;
        let path = text(request, "Path")?;
        let skip_trash = switch(request, "SkipTrash");
        if skip_trash && !asker.is_root() {
            return Err(Failure { errno: Errno::PERM, message: "only root may skip the trash".into() });
        }
        let above = self.walk_above(asker, path).await?;
        let (count, go_on) = (|count, bytes| progress.add(count, bytes), || !asker.cancel.is_cancelled());
        let removal = Removal::new(asker, skip_trash, threads(request), &count, &go_on);
        let outcome = self.meta.remove_tree(above.dir, &above.name, &removal).await;
        self.vfs.changed(above.dir, &above.name);
        outcome?;
        Ok(json!({ "Removed": removal.removed() }))
    }

    /// Copies a file or a tree without its data.
    pub(super) async fn clone_tree(&self, asker: &Asker, request: &Value, progress: &Progress) -> Result<Value, Failure> {
        self.writable()?;
        let from = self.walk(asker, text(request, "Path")?).await?;
        let above = self.walk_above(asker, text(request, "To")?).await?;
        // What was written through this mount is copied, too, also if nobody has closed it.
        if self.writers.any_dirty() {
            self.writers.flush_all().await?;
        }
        let umask = request["Umask"].as_u64().and_then(|umask| u16::try_from(umask & 0o777).ok()).unwrap_or(0o22);
        let (count, go_on) = (|count, bytes| progress.add(count, bytes), || !asker.cancel.is_cancelled());
        let how = Cloning::new(asker, switch(request, "Preserve"), umask, above.dir, threads(request), &count, &go_on);
        let outcome = self.meta.clone_tree(from.ino, &above.name, &how).await;
        self.vfs.changed(above.dir, &above.name);
        outcome?;
        let (count, bytes) = progress.get();
        Ok(json!({ "Count": count, "Bytes": bytes }))
    }

    /// Compacts the chunks of a file, or of all files below a directory that the asker may write.
    pub(super) async fn compact(&self, asker: &Asker, request: &Value, progress: &Progress) -> Result<Value, Failure> {
        self.writable()?;
        let path = text(request, "Path")?;
        let found = self.walk(asker, path).await?;
        let at = |errno| Failure::at(format!("/{path}"), errno);
        self.meta.check_access(asker, &found.attr, WRITE).await.map_err(at)?;
        if self.writers.any_dirty() {
            self.writers.flush_all().await.map_err(at)?;
        }
        let at_once = threads(request);
        let ino = found.ino;
        let mut files = Files::of(ino, found.attr);
        while let Some(some) = self.next_files(asker, &mut files).await.map_err(at)? {
            let chunks = some.iter().map(|(ino, attr)| -> BoxFuture<'_, Result<Vec<(Ino, u32)>, Errno>> {
                Box::pin(async move {
                    if self.meta.check_access(asker, attr, WRITE).await.is_err() {
                        return Ok(Vec::new());
                    }
                    progress.add(1, 0);
                    let chunks = u32::try_from(attr.length.div_ceil(CHUNK_BYTES)).map_err(|_| Errno::FBIG)?;
                    Ok(self.meta.chunks_present(*ino, 0..chunks).await?.into_iter().map(|chunk| (*ino, chunk)).collect())
                })
            });
            let chunks = join(chunks.collect(), at_once).await.map_err(at)?;
            let jobs = chunks.into_iter().flatten().map(|(ino, chunk)| -> BoxFuture<'_, Result<(), Errno>> {
                Box::pin(async move {
                    if asker.cancel.is_cancelled() {
                        return Err(Errno::INTR);
                    }
                    self.chunks.compact(ino, chunk).await.map(drop)
                })
            });
            join(jobs.collect(), at_once).await.map_err(at)?;
        }
        Ok(json!({ "Inode": ino.0, "Files": progress.get().0 }))
    }

    /// The next files of a tree; `None` at its end. EACCES for a directory the asker may not list.
    pub(super) async fn next_files(&self, asker: &Asker, files: &mut Files) -> Result<Option<Vec<(Ino, Attr)>>, Errno> {
        loop {
            if asker.cancel.is_cancelled() {
                return Err(Errno::INTR);
            }
            let Some((dir, at)) = files.at.take() else {
                let Some((ino, attr)) = files.pending.pop() else { return Ok(None) };
                match attr.kind {
                    Kind::File => return Ok(Some(vec![(ino, attr)])),
                    Kind::Dir => {
                        self.meta.check_access(asker, &attr, READ | ENTER).await?;
                        files.at = Some((ino, Cursor::new()));
                    }
                    _ => {}
                }
                continue;
            };
            let page = self.meta.readdir(dir, at, PAGE).await?;
            files.at = page.next.map(|next| (dir, next));
            let mut found = Vec::new();
            for entry in page.entries {
                match (entry.kind, entry.attr) {
                    (Kind::Dir, Some(attr)) if files.seen.insert(entry.ino) => files.pending.push((entry.ino, attr)),
                    (Kind::File, Some(attr)) => found.push((entry.ino, attr)),
                    _ => {}
                }
            }
            return Ok(Some(found));
        }
    }
}

/// Where a walk through the files of a tree is.
pub(super) struct Files {
    pending: Vec<(Ino, Attr)>,
    at: Option<(Ino, Cursor)>,
    /// Directories: in a damaged volume one may lie inside itself, and is walked through once.
    seen: HashSet<Ino>,
}

impl Files {
    /// Before the first.
    pub fn of(top: Ino, attr: Attr) -> Files {
        Files { pending: vec![(top, attr)], at: None, seen: HashSet::from([top]) }
    }
}
