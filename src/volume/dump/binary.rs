//! The binary form of a volume's metadata (metadata §16), written: the raw records, in segments.

use super::json::{decode_limits, deleted_files, number, sustained_inodes};
use super::node::{PAGE, damaged};
use super::wire::Message;
use super::{DumpOptions, Slices};
use crate::env::{Begun, join};
use crate::meta::codec::{decode_decimal, decode_entry, decode_slice};
use crate::meta::key;
use crate::meta::setting::Setting;
use crate::meta::store::{Cursor, Key, Query, ScanPage, ScanRange, Store, Value};
use crate::telemetry::progress;
use crate::types::BoxFuture;
use crate::volume::VolumeError;
use bytes::Bytes;
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use tracing::warn;

/// Ends the segments and opens the footer.
pub(super) const MAGIC: u32 = 0x74_7083;
/// Version of the format.
pub(super) const VERSION: u64 = 1;
/// Items of one segment; readers take a segment as a whole.
const ITEMS_MAX: u64 = 10_000;
/// Bytes of one segment, give or take one item.
const SEGMENT_BYTES: usize = 4 << 20;
/// Keys read at once.
const KEYS: usize = 1000;
/// Pages of keys that are read before they are written, so that the server has something to do meanwhile.
const PAGES_AHEAD: usize = 3;
/// Directories of a page of keys whose first entries are read with it; each may be a page of its own. Where every tenth inode is a directory there are fifty.
const DIRECTORIES: usize = 64;

/// What a segment holds: its number, its name in the footer, its field in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub number: u32,
    pub name: &'static str,
    pub field: u32,
}

const fn kind(number: u32, name: &'static str, field: u32) -> Kind {
    Kind { number, name, field }
}

pub(super) const FORMAT: Kind = kind(1, "format", 0);
pub(super) const COUNTER: Kind = kind(2, "counter", 13);
pub(super) const NODE: Kind = kind(3, "node", 1);
pub(super) const EDGE: Kind = kind(4, "edge", 2);
pub(super) const CHUNK: Kind = kind(5, "chunk", 3);
pub(super) const SLICE_REF: Kind = kind(6, "sliceRef", 4);
pub(super) const SYMLINK: Kind = kind(7, "symlink", 7);
pub(super) const SUSTAINED: Kind = kind(8, "sustained", 8);
pub(super) const DEL_FILE: Kind = kind(9, "delFile", 9);
pub(super) const XATTR: Kind = kind(10, "xattr", 5);
pub(super) const ACL: Kind = kind(11, "acl", 12);
pub(super) const STAT: Kind = kind(12, "stat", 10);
pub(super) const QUOTA: Kind = kind(13, "quota", 11);
pub(super) const PARENT: Kind = kind(14, "parent", 6);
pub(super) const CHANGE_LOG: Kind = kind(15, "changeLog", 14);

/// All kinds of segments.
pub(super) const KINDS: [Kind; 15] =
    [FORMAT, COUNTER, NODE, EDGE, CHUNK, SLICE_REF, SYMLINK, SUSTAINED, DEL_FILE, XATTR, ACL, STAT, QUOTA, PARENT, CHANGE_LOG];

/// Counters: name in the dump, key, what the dump says more (metadata §3).
pub(super) fn counters() -> [(&'static str, Key, i64); 6] {
    [
        ("usedSpace", key::USED_SPACE, 0),
        ("totalInodes", key::TOTAL_INODES, 0),
        ("nextInode", key::NEXT_INODE, 1),
        ("nextChunk", key::NEXT_CHUNK, 1),
        ("nextSession", key::NEXT_SESSION, 0),
        ("nextTrash", key::NEXT_TRASH, 0),
    ]
}

/// Hashes of quotas by type: limits, space, inodes.
pub(super) fn quota_keys() -> [[Key; 3]; 3] {
    [
        [key::DIR_QUOTA, key::DIR_QUOTA_USED_SPACE, key::DIR_QUOTA_USED_INODES],
        [key::USER_QUOTA, key::USER_QUOTA_USED_SPACE, key::USER_QUOTA_USED_INODES],
        [key::GROUP_QUOTA, key::GROUP_QUOTA_USED_SPACE, key::GROUP_QUOTA_USED_INODES],
    ]
}

/// Field of a batch for the quotas of each type.
pub(super) const QUOTA_FIELDS: [u32; 3] = [11, 15, 16];

/// A segment being filled.
struct Segment {
    kind: Kind,
    message: Message,
    items: u64,
}

impl Segment {
    fn new(kind: Kind) -> Segment {
        Segment { kind, message: Message::default(), items: 0 }
    }

    fn push(&mut self, item: Message) {
        self.push_as(self.kind.field, item);
    }

    fn push_as(&mut self, field: u32, item: Message) {
        self.message.nested(field, &item.0);
        self.items += 1;
    }

    fn is_full(&self) -> bool {
        self.items >= ITEMS_MAX || self.message.0.len() >= SEGMENT_BYTES
    }
}

/// Keys of inodes, and where the next ones are.
struct Listed {
    keys: Vec<(Key, u64, u32)>,
    next: Option<Cursor>,
}

impl Listed {
    async fn begin(store: &dyn Store, at: Cursor) -> Begun<'_, Result<Listed, VolumeError>> {
        let read = async move {
            let page = store.scan(&ScanRange::Keys(Bytes::new()), at, PAGE).await?;
            Ok(Listed { keys: page.items.into_iter().filter_map(|item| inode_key(item.name)).collect(), next: page.next })
        };
        Begun::begin(Box::pin(read)).await
    }
}

/// Keys of inodes, the values of those that are no directories, and the first entries of some of the others.
struct Page {
    keys: Vec<(Key, u64, u32)>,
    values: Vec<Value>,
    entries: Vec<ScanPage>,
}

/// What is asked for at once.
enum Answer {
    Values(Vec<Value>),
    Entries(ScanPage),
}

impl Page {
    async fn begin(store: &dyn Store, keys: Vec<(Key, u64, u32)>) -> Begun<'_, Result<Page, VolumeError>> {
        Begun::begin(Box::pin(Page::read(store, keys))).await
    }

    /// All of it in one exchange: nobody drives it between its beginning and its end.
    async fn read(store: &dyn Store, keys: Vec<(Key, u64, u32)>) -> Result<Page, VolumeError> {
        let query = |(key, ..): &(Key, u64, u32)| match key[0] {
            b'i' | b's' => Some(Query::Get(key.clone())),
            b'c' => Some(Query::List(key.clone())),
            b'd' => None,
            _ => Some(Query::HGetAll(key.clone())),
        };
        let queries: Vec<Query> = keys.iter().filter_map(query).collect();
        let dirs: Vec<ScanRange> = directories(&keys).take(DIRECTORIES).map(|(key, _)| ScanRange::Hash(key.clone())).collect();
        let reads = queries.chunks(KEYS).map(|part| -> BoxFuture<'_, Result<Answer, VolumeError>> {
            Box::pin(async move { Ok(Answer::Values(store.read(part).await?)) })
        });
        let scans = dirs.iter().map(|dir| -> BoxFuture<'_, Result<Answer, VolumeError>> {
            Box::pin(async move { Ok(Answer::Entries(store.scan(dir, Cursor::new(), PAGE).await?)) })
        });
        let (mut values, mut entries) = (Vec::with_capacity(queries.len()), Vec::with_capacity(dirs.len()));
        for answer in join(reads.chain(scans).collect(), usize::MAX).await? {
            match answer {
                Answer::Values(part) => values.extend(part),
                Answer::Entries(page) => entries.push(page),
            }
        }
        Ok(Page { keys, values, entries })
    }
}

/// The directories among keys of inodes.
fn directories(keys: &[(Key, u64, u32)]) -> impl Iterator<Item = (&Key, u64)> {
    keys.iter().filter(|(key, ..)| key[0] == b'd').map(|(key, ino, _)| (key, *ino))
}

struct Writer<'a> {
    store: &'a dyn Store,
    out: &'a mut dyn Write,
    at: u64,
    /// Offsets of the segments and number of items, by name.
    infos: BTreeMap<&'static str, (Vec<u64>, u64)>,
}

/// Writes the dump. `slices` is told every slice that the dump names.
pub async fn write(
    store: &dyn Store,
    setting: &Setting,
    options: &DumpOptions,
    slices: &mut Slices<'_>,
    out: &mut dyn Write,
) -> Result<(), VolumeError> {
    let mut writer = Writer { store, out, at: 0, infos: BTreeMap::new() };
    writer.format(setting, options.keep_secrets)?;
    writer.counters().await?;
    writer.inodes(slices).await?;
    writer.sessions().await?;
    writer.references().await?;
    writer.rules().await?;
    writer.quotas().await?;
    writer.stats().await?;
    writer.footer()
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), VolumeError> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|e| VolumeError::Failed(format!("cannot write the dump: {e}")))
    }

    /// Writes a segment, also an empty one: readers know them.
    fn segment(&mut self, segment: Segment) -> Result<(), VolumeError> {
        let info = self.infos.entry(segment.kind.name).or_default();
        info.0.push(self.at);
        info.1 += segment.items;
        self.put(&segment.kind.number.to_be_bytes())?;
        self.put(&(segment.message.0.len() as u64).to_be_bytes())?;
        self.put(&segment.message.0)
    }

    /// Adds an item; a segment that is full is written.
    fn add(&mut self, segment: &mut Segment, item: Message) -> Result<(), VolumeError> {
        segment.push(item);
        if segment.is_full() { self.segment(std::mem::replace(segment, Segment::new(segment.kind))) } else { Ok(()) }
    }

    fn format(&mut self, setting: &Setting, keep_secrets: bool) -> Result<(), VolumeError> {
        let mut setting = setting.clone();
        if !keep_secrets {
            for field in ["SecretKey", "SessionToken", "EncryptKey"] {
                if setting.document().get(field).and_then(Json::as_str).is_some_and(|value| !value.is_empty()) {
                    setting.set(field, json!("removed"));
                    warn!("Secret key is removed for the sake of safety: {field}");
                }
            }
        }
        let message = Message::default().bytes(1, &setting.encode());
        self.segment(Segment { kind: FORMAT, message, items: 1 })
    }

    async fn counters(&mut self) -> Result<(), VolumeError> {
        let counters = counters();
        let queries: Vec<Query> = counters.iter().map(|(_, key, _)| Query::Get(key.clone())).collect();
        let mut segment = Segment::new(COUNTER);
        for ((name, _, more), value) in counters.iter().zip(self.store.read(&queries).await?) {
            let number = match &value {
                Value::Bytes(text) => decode_decimal(text.as_deref()),
                _ => None,
            };
            let number = number.and_then(|number| number.checked_add(*more)).ok_or_else(|| damaged(format!("the counter {name}")))?;
            segment.push(Message::default().bytes(1, name.as_bytes()).signed(2, number));
        }
        self.segment(segment)
    }

    /// All that belongs to inodes, found by the names of the keys.
    async fn inodes(&mut self, slices: &mut Slices<'_>) -> Result<(), VolumeError> {
        let mut segments = [NODE, EDGE, CHUNK, SYMLINK, XATTR, PARENT].map(Segment::new);
        let store = self.store;
        let mut listing = Some(Listed::begin(store, Cursor::new()).await);
        let mut coming = VecDeque::new();
        loop {
            // Listed and read while what came before is written.
            if let Some(listed) = listing.take() {
                let Listed { keys, next } = listed.end().await?;
                if let Some(at) = next {
                    listing = Some(Listed::begin(store, at).await);
                }
                coming.push_back(Page::begin(store, keys).await);
            }
            if listing.is_some() && coming.len() < PAGES_AHEAD {
                continue;
            }
            let Some(page) = coming.pop_front() else { break };
            let page = page.end().await?;
            progress::add(page.keys.iter().filter(|(key, ..)| key[0] == b'i').count() as u64, 0);
            self.page(&mut segments, page, slices).await?;
        }
        // The reference always writes symlinks, also none.
        segments.into_iter().filter(|segment| segment.items > 0 || segment.kind == SYMLINK).try_for_each(|segment| self.segment(segment))
    }

    async fn page(&mut self, segments: &mut [Segment; 6], page: Page, slices: &mut Slices<'_>) -> Result<(), VolumeError> {
        let Page { keys, values, entries } = page;
        let [nodes, edges, chunks, symlinks, xattrs, parents] = segments;
        for ((key, ino, index), value) in keys.iter().filter(|(key, ..)| key[0] != b'd').zip(values) {
            let inode = || Message::default().number(1, *ino);
            match (key[0], value) {
                // Deleted since the keys were listed.
                (_, Value::Bytes(None)) => {}
                (b'i', Value::Bytes(Some(record))) => self.add(nodes, inode().bytes(2, &record))?,
                (b's', Value::Bytes(Some(target))) => self.add(symlinks, inode().bytes(2, &target))?,
                (b'c', Value::List(list)) => {
                    for record in &list {
                        let record =
                            decode_slice(record).ok_or_else(|| damaged(format!("a slice record of chunk {index} of inode {ino}")))?;
                        slices.note(&record).await?;
                    }
                    if !list.is_empty() {
                        self.add(chunks, inode().number(2, (*index).into()).bytes(3, &list.concat()))?;
                    }
                }
                (b'x', Value::Pairs(pairs)) => {
                    for (name, value) in pairs {
                        if std::str::from_utf8(&name).is_err() {
                            warn!("an extended attribute of inode {ino} has a name that is no UTF-8; other programs may refuse this dump");
                        }
                        self.add(xattrs, inode().bytes(2, &name).bytes(3, &value))?;
                    }
                }
                (b'p', Value::Pairs(pairs)) => {
                    for (parent, count) in pairs {
                        let item = number(&parent).zip(decode_decimal(Some(&count)));
                        let (parent, count) = item.ok_or_else(|| damaged(format!("a link count of inode {ino}")))?;
                        self.add(parents, inode().number(2, parent).signed(3, count))?;
                    }
                }
                _ => return Err(damaged(format!("key {:?}", String::from_utf8_lossy(key)))),
            }
        }
        let mut read = entries.into_iter();
        for (key, dir) in directories(&keys) {
            let range = ScanRange::Hash(key.clone());
            let mut page = match read.next() {
                Some(page) => page,
                None => self.store.scan(&range, Cursor::new(), PAGE).await?,
            };
            loop {
                for item in page.items {
                    let wrong = || damaged(format!("entry {:?} of directory {dir}", String::from_utf8_lossy(&item.name)));
                    let (kind, ino) = decode_entry(&item.value).ok_or_else(wrong)?;
                    self.add(edges, Message::default().number(1, dir).number(2, ino.0).bytes(3, &item.name).number(4, kind as u64))?;
                }
                let Some(at) = page.next else { break };
                page = self.store.scan(&range, at, PAGE).await?;
            }
        }
        Ok(())
    }

    async fn sessions(&mut self) -> Result<(), VolumeError> {
        let mut segment = Segment::new(SUSTAINED);
        for (sid, inodes) in sustained_inodes(self.store).await? {
            segment.push(Message::default().number(1, sid).packed(2, &inodes));
        }
        self.segment(segment)?;
        let mut segment = Segment::new(DEL_FILE);
        for (ino, length, time) in deleted_files(self.store).await? {
            self.add(&mut segment, Message::default().number(1, ino).number(2, length).signed(3, time))?;
        }
        self.segment(segment)
    }

    /// All fields of a hash, page by page.
    async fn hash(&self, hash: Key, mut each: impl FnMut(&[u8], &[u8]) -> Option<()>) -> Result<(), VolumeError> {
        let range = ScanRange::Hash(hash.clone());
        let mut cursor = Some(Cursor::new());
        while let Some(at) = cursor {
            let page = self.store.scan(&range, at, PAGE).await?;
            for item in page.items {
                let wrong = || damaged(format!("field {:?} of {:?}", String::from_utf8_lossy(&item.name), String::from_utf8_lossy(&hash)));
                each(&item.name, &item.value).ok_or_else(wrong)?;
            }
            cursor = page.next;
        }
        Ok(())
    }

    async fn references(&mut self) -> Result<(), VolumeError> {
        let range = ScanRange::Hash(key::SLICE_REF);
        let mut segment = Segment::new(SLICE_REF);
        let mut cursor = Some(Cursor::new());
        while let Some(at) = cursor {
            let page = self.store.scan(&range, at, PAGE).await?;
            for item in page.items {
                let text = std::str::from_utf8(&item.name).ok();
                let parts = text.and_then(|text| text.strip_prefix('k')?.split_once('_'));
                let slice = parts.and_then(|(id, size)| Some((id.parse::<u64>().ok()?, size.parse::<u32>().ok()?)));
                let (Some((id, size)), Some(more)) = (slice, decode_decimal(Some(&item.value))) else {
                    return Err(damaged(format!("reference {:?}", String::from_utf8_lossy(&item.name))));
                };
                // One reference or none is what a slice has without a count.
                if more >= 1 {
                    self.add(&mut segment, Message::default().number(1, id).number(2, size.into()).signed(3, more.saturating_add(1)))?;
                }
            }
            cursor = page.next;
        }
        self.segment(segment)
    }

    async fn rules(&mut self) -> Result<(), VolumeError> {
        let mut rules = BTreeMap::new();
        self.hash(key::ACL, |id, rule| number(id).map(|id| drop(rules.insert(id, Bytes::copy_from_slice(rule))))).await?;
        let mut segment = Segment::new(ACL);
        for (id, rule) in rules {
            self.add(&mut segment, Message::default().number(1, id).bytes(2, &rule))?;
        }
        self.segment(segment)
    }

    async fn quotas(&mut self) -> Result<(), VolumeError> {
        let mut segment = Segment::new(QUOTA);
        for (kind, ([limits_key, space_key, inodes_key], field)) in quota_keys().into_iter().zip(QUOTA_FIELDS).enumerate() {
            // By id: limits, space, inodes.
            let mut quotas: BTreeMap<u64, [i64; 4]> = BTreeMap::new();
            const UNLIMITED: [i64; 4] = [-1, -1, 0, 0];
            self.hash(inodes_key, |id, value| {
                quotas.entry(number(id)?).or_insert(UNLIMITED)[3] = decode_decimal(Some(value))?;
                Some(())
            })
            .await?;
            self.hash(space_key, |id, value| {
                if let Some(quota) = quotas.get_mut(&number(id)?) {
                    quota[2] = decode_decimal(Some(value))?;
                }
                Some(())
            })
            .await?;
            self.hash(limits_key, |id, value| {
                let quota = quotas.entry(number(id)?).or_insert(UNLIMITED);
                (quota[0], quota[1]) = decode_limits(value)?;
                Some(())
            })
            .await?;
            for (id, [max_space, max_inodes, space, inodes]) in quotas {
                let item = Message::default().number(1, id).signed(2, max_space).signed(3, max_inodes).signed(4, space).signed(5, inodes);
                segment.push_as(field, item.number(6, kind as u64));
            }
        }
        // Unlike the others this one is left out when it is empty, as the reference does.
        if segment.items > 0 { self.segment(segment) } else { Ok(()) }
    }

    async fn stats(&mut self) -> Result<(), VolumeError> {
        let range = ScanRange::Hash(key::DIR_DATA_LENGTH);
        let mut segment = Segment::new(STAT);
        let mut cursor = Some(Cursor::new());
        while let Some(at) = cursor {
            let page = self.store.scan(&range, at, PAGE).await?;
            let others = page.items.iter().flat_map(|item| {
                [Query::HGet(key::DIR_USED_SPACE, item.name.clone()), Query::HGet(key::DIR_USED_INODES, item.name.clone())]
            });
            let others = self.store.read(&others.collect::<Vec<_>>()).await?;
            for (item, others) in page.items.iter().zip(others.as_chunks::<2>().0) {
                let decimal = |value: &Value| match value {
                    Value::Bytes(text) => decode_decimal(text.as_deref()),
                    _ => None,
                };
                let all = (number(&item.name), decode_decimal(Some(&item.value)), decimal(&others[0]), decimal(&others[1]));
                let (Some(dir), Some(length), Some(space), Some(inodes)) = all else {
                    return Err(damaged(format!("the statistics of directory {}", String::from_utf8_lossy(&item.name))));
                };
                self.add(&mut segment, Message::default().number(1, dir).signed(2, length).signed(3, space).signed(4, inodes))?;
            }
            cursor = page.next;
        }
        self.segment(segment)
    }

    fn footer(mut self) -> Result<(), VolumeError> {
        let mut footer = Message::default().number(1, MAGIC.into()).number(2, VERSION);
        for (name, (offsets, items)) in std::mem::take(&mut self.infos) {
            let info = Message::default().packed(1, &offsets).number(2, items);
            let mut entry = Message::default().bytes(1, name.as_bytes());
            entry.nested(2, &info.0);
            footer.nested(3, &entry.0);
        }
        self.put(&MAGIC.to_be_bytes())?;
        self.put(&footer.0)?;
        self.put(&(footer.0.len() as u64).to_be_bytes())
    }
}

/// Splits a key of an inode: the key, the inode, the index of a chunk. `None` for the other keys that begin alike.
fn inode_key(key: Key) -> Option<(Key, u64, u32)> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let text = std::str::from_utf8(&key).ok()?;
    let rest = text.strip_prefix(['i', 'd', 'c', 's', 'x', 'p'])?;
    let (ino, index) = match text.as_bytes()[0] {
        b'c' => rest.split_once('_')?,
        _ => (rest, "0"),
    };
    let parsed = (digits(ino) && digits(index)).then(|| Some((ino.parse().ok()?, index.parse().ok()?)))??;
    Some((key.clone(), parsed.0, parsed.1))
}
