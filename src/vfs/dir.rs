//! Open directories: opendir, readdir, readdirplus, releasedir.
//!
//! Cookies: 1 is `.`, 2 is `..`, 3 the trash where it is shown, and the entry with ordinal n of the listing is n + 4. A cookie names the entry after which a listing goes on.

use crate::meta::ops::DirEntry;
use crate::meta::ops::trash::TRASH_NAME;
use crate::types::{Caller, Errno, Ino, Kind, Name};
use crate::vfs::listing::{Listing, PAGE_ENTRIES, PAGE_ENTRIES_FAR, Step};
use crate::vfs::reader::Listed;
use crate::vfs::{Entry, OpenReply, Vfs};
use std::time::Duration;

/// Cookie of `.`.
const DOT: u64 = 1;
/// Cookie of `..`.
const DOT_DOT: u64 = 2;

/// Cookie of the trash.
const TRASH: u64 = 3;

/// Takes the entries of a directory one by one.
pub trait DirSink {
    /// False if there is no room; the entry was not taken then.
    fn add(&mut self, item: &DirItem<'_>) -> bool;
}

/// An entry of a directory.
pub struct DirItem<'a> {
    /// The inode, as the kernel numbers it.
    pub ino: Ino,
    /// Its type.
    pub kind: Kind,
    /// The name.
    pub name: &'a [u8],
    /// Where to go on after this entry.
    pub cookie: u64,
    /// What a lookup of the name would answer; only in a listing with attributes, and not for `.`, `..` and what has none.
    pub entry: Option<Entry>,
}

impl Vfs {
    /// A new handle of a directory.
    pub async fn opendir(&self, _caller: &Caller, ino: Ino) -> Result<OpenReply, Errno> {
        let ino = self.mount.inward(ino);
        let losses = self.losses();
        if !self.attr_of(ino).await?.is_dir() {
            return Err(Errno::NOTDIR);
        }
        Ok(OpenReply { fh: self.handles.open_dir(ino, losses), direct_io: false, keep_cache: false })
    }

    /// Entries after cookie `offset` until the sink is full; 0 begins afresh. `plus` adds what a lookup of each name would answer.
    pub async fn readdir(
        &self,
        caller: &Caller,
        ino: Ino,
        fh: u64,
        offset: u64,
        plus: bool,
        sink: &mut (dyn DirSink + Send),
    ) -> Result<(), Errno> {
        let dir = self.mount.inward(ino);
        let handle = self.handles.dir(dir, fh)?;
        let mut listing = handle.listing.lock().await;
        let turn = listing.begin();
        if offset == 0 {
            listing.restart();
            self.touch_atime(dir).await;
        }
        if offset < DOT && !sink.add(&dot(self.mount.outward(dir), b".", DOT)) {
            return Ok(());
        }
        if offset < DOT_DOT {
            let above = self.mount.outward(self.parent_of(dir).await?);
            if !sink.add(&dot(above, b"..", DOT_DOT)) {
                return Ok(());
            }
        }
        if offset < TRASH && self.mount.shows_trash(dir) && self.attr_of(Ino::TRASH).await.is_ok() {
            let item = DirItem { ino: Ino::TRASH, kind: Kind::Dir, name: TRASH_NAME, cookie: TRASH, entry: None };
            if !sink.add(&item) {
                return Ok(());
            }
        }
        let mut ordinal = offset.saturating_sub(TRASH);
        loop {
            let (entries, read_in) = match listing.step(ordinal) {
                Step::End => return Ok(()),
                Step::Entries(entries, read_in) => (entries, read_in),
                Step::Read(cursor) => {
                    self.read_pages(dir, &mut listing, cursor).await?;
                    continue;
                }
            };
            for (at, entry) in entries {
                let attributes = if plus { self.entry_of(caller, dir, &entry, read_in == turn).await } else { None };
                let item = DirItem {
                    ino: attributes.as_ref().map_or(self.mount.outward(entry.ino), |found| found.ino),
                    kind: attributes.as_ref().map_or(entry.kind, |found| found.attr.kind),
                    name: &entry.name,
                    cookie: at.saturating_add(TRASH + 1),
                    entry: attributes,
                };
                if !sink.add(&item) {
                    return Ok(());
                }
                ordinal = at.saturating_add(1);
            }
        }
    }

    async fn read_pages(&self, dir: Ino, listing: &mut Listing, cursor: crate::meta::store::Cursor) -> Result<(), Errno> {
        let mut cursor = Some(cursor);
        while let Some(at) = cursor {
            let limit = if self.meta.is_far() { PAGE_ENTRIES_FAR } else { PAGE_ENTRIES };
            let page = match self.meta.readdir(dir, at.clone(), limit).await {
                Ok(page) => page,
                // Removed while it is open: an empty directory, as on a local filesystem.
                Err(Errno::NOENT) => Default::default(),
                Err(errno) => return Err(errno),
            };
            let entries = page.entries.iter().filter_map(|entry| {
                let attr = entry.attr.as_ref().filter(|attr| matches!(attr.kind, Kind::File | Kind::Dir))?;
                Some(Listed { ino: entry.ino, is_dir: attr.kind == Kind::Dir, length: attr.length, name: entry.name.clone() })
            });
            self.reader.listed(dir, entries, at.is_empty(), page.next.is_none());
            cursor = listing.learn(at, page);
        }
        Ok(())
    }

    /// What a lookup of the name answers now. The kernel takes it for one: it would bind the name to an inode that has another by now,
    /// or cut a file that has grown since, if it were told what an earlier request had read.
    async fn entry_of(&self, caller: &Caller, dir: Ino, entry: &DirEntry, fresh: bool) -> Option<Entry> {
        let name = Name::new(&entry.name).ok()?;
        let (ino, attr, age) = match (&entry.attr, self.meta.recent_entry(dir, &name)) {
            (Some(attr), _) if fresh => (entry.ino, attr.clone(), Duration::ZERO),
            // A round trip for each would take longer than the kernel is told to believe it; what this process has changed is in it.
            (_, Some(recent)) => recent,
            _ => {
                let (ino, attr) = self.meta.lookup(caller, dir, &name).await.ok()?;
                (ino, attr, Duration::ZERO)
            }
        };
        let attr = self.overlaid(ino, attr).await.ok()?;
        let mut found = self.named(dir, name.as_bytes(), ino, attr);
        found.entry_ttl = found.entry_ttl.saturating_sub(age);
        found.attr_ttl = found.attr_ttl.saturating_sub(age);
        Some(found)
    }

    /// Closes the handle.
    pub async fn releasedir(&self, ino: Ino, fh: u64) -> Result<(), Errno> {
        self.handles.close_dir(self.mount.inward(ino), fh);
        Ok(())
    }

    /// Makes the directory's entries as durable as the store's tier says.
    pub async fn fsyncdir(&self, _caller: &Caller, ino: Ino, fh: u64) -> Result<(), Errno> {
        let handle = self.handles.dir(self.mount.inward(ino), fh)?;
        self.meta.sync().await?;
        handle.losses.tell(self.losses())
    }
}

fn dot(ino: Ino, name: &[u8], cookie: u64) -> DirItem<'_> {
    DirItem { ino, kind: Kind::Dir, name, cookie, entry: None }
}
