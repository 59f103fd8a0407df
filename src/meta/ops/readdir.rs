//! Listing a directory (metadata §6.15).

use crate::meta::Meta;
use crate::meta::codec::{self, Record};
use crate::meta::driver::errno_of;
use crate::meta::key;
use crate::meta::listings::NAMES_MAX;
use crate::meta::store::{Cursor, Query, ScanItem, ScanRange, Value};
use crate::types::{Attr, Errno, Ino, Kind, Name};
use bytes::Bytes;
use std::collections::HashMap;
use std::time::Duration;
use tracing::error;

/// Names read at once when all are read.
const LOAD_PAGE: u32 = 1000;

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: Bytes,
    /// What it names.
    pub ino: Ino,
    /// Type of that.
    pub kind: Kind,
    /// Attributes, `None` if the record is missing.
    pub attr: Option<Attr>,
}

/// Some entries, and where the next ones are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirPage {
    /// In the store's order; `.` and `..` are not among them.
    pub entries: Vec<DirEntry>,
    /// `None` at the end.
    pub next: Option<Cursor>,
}

/// A damaged entry hides nothing but itself: the rest of the directory stays readable, the operator is told.
fn entry(dir: Ino, item: ScanItem) -> Option<DirEntry> {
    let Some((kind, ino)) = codec::decode_entry(&item.value) else {
        error!(%dir, name = %String::from_utf8_lossy(&item.name), "damaged directory entry left out of a listing");
        return None;
    };
    let attr = if item.record.is_empty() { None } else { Record::decode(item.record).map(|record| record.attr) };
    (!item.name.is_empty()).then_some(DirEntry { name: item.name, ino, kind, attr })
}

impl Meta {
    /// What a name of a directory that was just listed stands for, and how long ago that was the store's word. `None` where the store is near,
    /// or if it is not known or too long ago.
    pub fn recent_entry(&self, dir: Ino, name: &Name) -> Option<(Ino, Attr, Duration)> {
        let facts = self.driver.facts.as_ref()?;
        let (entry, entry_age) = facts.recent(&Query::HGet(key::dir(dir), key::name(name)))?;
        let (_, ino) = codec::decode_entry(&entry?)?;
        let (attr, attr_age) = self.recent_attr(ino)?;
        Some((ino, attr, entry_age.max(attr_age)))
    }

    /// The same of the attributes of an inode.
    pub fn recent_attr(&self, ino: Ino) -> Option<(Attr, Duration)> {
        let (record, age) = self.driver.facts.as_ref()?.recent(&Query::Get(key::inode(ino)))?;
        Some((Record::decode(record?)?.attr, age))
    }

    /// Whether it pays to read all names of a directory now, so that lookups in it are answered from memory; if so, the caller calls `load_names`.
    pub fn wants_names(&self, dir: Ino) -> bool {
        self.driver.facts.as_ref().is_some_and(|facts| facts.wants_names(&key::dir(dir)))
    }

    /// Which of the names that were in a directory do not stand for the same any more. None if it is not worth finding out.
    pub async fn differing_names(&self, dir: Ino, before: &HashMap<Bytes, Bytes>) -> Vec<Bytes> {
        if self.wants_names(dir) {
            self.load_names(dir).await;
        }
        self.driver.facts.as_ref().and_then(|facts| facts.differing(&key::dir(dir), before)).unwrap_or_default()
    }

    /// Reads all names of a directory and the records they name, if they are not too many. Nobody waits for it.
    pub async fn load_names(&self, dir: Ino) {
        let Some(facts) = &self.driver.facts else { return };
        let (hash, limit) = (key::dir(dir), NAMES_MAX as u32 + 1);
        let length = self.store().read(&[Query::HLen { key: hash.clone(), limit }]).await;
        if !matches!(length.as_deref(), Ok([Value::Int(count)]) if *count <= NAMES_MAX as i64) {
            return;
        }
        let range = ScanRange::Dir(hash.clone());
        let asked = facts.ask(1);
        let (mut names, mut next) = (Vec::new(), Some(Cursor::default()));
        while let Some(cursor) = next {
            // Whoever needs the store will say so if it fails.
            let Ok(page) = self.store().scan(&range, cursor, LOAD_PAGE).await else { return };
            asked.learn_page(&hash, &page.items);
            names.extend(page.items.into_iter().map(|item| (item.name, item.value)));
            next = page.next.filter(|_| names.len() <= NAMES_MAX);
        }
        // Nothing changed from the first page to the last, or this is not kept.
        asked.learn_names(hash, names);
    }

    /// A page of at most `limit` entries from `cursor` on, with attributes. What stays during the whole listing is seen.
    pub async fn readdir(&self, ino: Ino, cursor: Cursor, limit: u32) -> Result<DirPage, Errno> {
        let range = ScanRange::Dir(key::dir(ino));
        let asked = self.driver.facts.as_ref().map(|facts| facts.ask(1));
        let page = self.store().scan(&range, cursor, limit.max(1)).await.map_err(|e| errno_of("readdir", &e))?;
        if let Some(asked) = asked {
            asked.learn_page(&key::dir(ino), &page.items);
        }
        Ok(DirPage { entries: page.items.into_iter().filter_map(|item| entry(ino, item)).collect(), next: page.next })
    }
}
