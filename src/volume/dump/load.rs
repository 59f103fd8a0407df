//! A dump becomes the metadata of a new volume.
//!
//! An inode that comes again is a hard link, or was moved while the dump was taken: it is looked for in the store. Memory holds one batch, one line
//! per open directory, and a bit for each inode and slice. The setting is written last, so that a load that was cut leaves no volume.

use super::node::Node;
use crate::env::Begun;
use crate::meta::codec::{Record, encode_attr, encode_entry, encode_slice};
use crate::meta::key;
use crate::meta::ops::remove::in_runs;
use crate::meta::setting::Setting;
use crate::meta::store::{Commit, Cursor, Guard, Key, Query, ScanItem, ScanRange, Store, Value, Write};
use crate::types::{Attr, Ino, Kind, Time};
use crate::volume::VolumeError;
use bytes::Bytes;
use serde_json::{Map, Value as Json};
use std::collections::{HashMap, HashSet};
use tracing::warn;

/// Writes of one commit: many enough that a round trip does not matter, and a fraction of what a server lets a script do at once.
const WRITES_MAX: usize = 1000;
/// Keys looked at in one step when a target should be empty.
const STRANGERS_PAGE: u32 = 100;

/// A piece of a dump, in the order of the document.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Something about the whole volume.
    Header(Header),
    /// A directory begins; what follows until its `Leave` lies in it. The roots have no name.
    Enter {
        /// Its name.
        name: Bytes,
        /// The directory.
        node: Node,
    },
    /// Anything else.
    Leaf {
        /// Its name.
        name: Bytes,
        /// The inode.
        node: Node,
    },
    /// The end of the current directory.
    Leave,
}

/// What comes before the trees.
#[derive(Clone, Debug, PartialEq)]
pub enum Header {
    /// The format of the volume.
    Setting(Map<String, Json>),
    /// Numbers that must not be given out again: the next inode and slice, the last session and trash directory.
    Counters {
        /// First inode number that is free.
        next_inode: i64,
        /// First slice id that is free.
        next_chunk: i64,
        /// Last session id used.
        next_session: i64,
        /// Last directory of the trash.
        next_trash: i64,
    },
    /// Deleted files with data: inode, length, time.
    Deleted(Vec<(Ino, u64, i64)>),
    /// Limits of directories: inode, space, inodes.
    DirQuotas(Vec<(u64, i64, i64)>),
    /// Limits of users.
    UserQuotas(Vec<(u64, i64, i64)>),
    /// Limits of groups.
    GroupQuotas(Vec<(u64, i64, i64)>),
    /// Known, and of no meaning for a new volume.
    Nothing,
}

/// Whether a dump can be loaded: everything that can be said without a store. Keeps the numbers of the directories, 16 bytes each.
#[derive(Default)]
pub struct Check {
    dirs: HashSet<Ino>,
    setting: bool,
}

impl Check {
    /// Looks at one piece.
    pub fn event(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::Header(Header::Setting(document)) => {
                setting_of(document)?;
                self.setting = true;
            }
            Event::Enter { node, .. } if !self.dirs.insert(node.ino) => {
                return Err(format!("directory {} is there twice: it was moved while the dump was taken; take another", node.ino));
            }
            Event::Leaf { node, .. } if node.ino == Ino::ROOT || node.ino.is_trash() => {
                return Err(format!("inode {} can only be a directory", node.ino));
            }
            _ => {}
        }
        Ok(())
    }
}

fn setting_of(document: &Map<String, Json>) -> Result<Setting, String> {
    Setting::parse(Json::Object(document.clone()).to_string().as_bytes())
}

/// A directory that is being loaded.
struct Level {
    node: Node,
    /// Directories among its entries.
    subdirs: u32,
    /// Sums over its entries (metadata §10.2).
    direct: Usage,
    length: i64,
    /// Sum over everything below it.
    below: Usage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    space: i64,
    inodes: i64,
}

impl Usage {
    fn add(&mut self, space: i64, inodes: i64) {
        self.space = self.space.saturating_add(space);
        self.inodes = self.inodes.saturating_add(inodes);
    }
}

/// Highest numbers, as the counters keep them.
#[derive(Default)]
struct Highest {
    inode: i64,
    chunk: i64,
    session: i64,
    trash: i64,
}

/// Numbers that have come. They are dense, so that one takes hardly more than a bit.
#[derive(Default)]
struct Numbers(HashMap<u64, u64>);

impl Numbers {
    /// False if it has come before.
    fn insert(&mut self, number: u64) -> bool {
        let (bits, bit) = (self.0.entry(number / 64).or_default(), 1 << (number % 64));
        let is_new = *bits & bit == 0;
        *bits |= bit;
        is_new
    }
}

/// What was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Inodes, without the root and the trash.
    pub inodes: i64,
    /// Their space in bytes.
    pub space: i64,
    /// Secrets that the dump does not have.
    pub secrets_removed: bool,
    /// The id of the first new slice, if it was raised above those of slices that the dump does not know.
    pub first_slice: Option<u64>,
}

/// Loads the pieces of one dump into a store.
pub struct Loader<'a> {
    store: &'a dyn Store,
    now: Time,
    setting: Option<Setting>,
    deleted: Vec<(Ino, u64, i64)>,
    dir_quotas: HashMap<u64, (i64, i64)>,
    user_quotas: HashMap<u64, (i64, i64)>,
    group_quotas: HashMap<u64, (i64, i64)>,
    levels: Vec<Level>,
    /// Ids of rules by their bytes.
    rules: HashMap<Bytes, u32>,
    writes: Vec<Write>,
    leaves: Vec<(Ino, Node)>,
    /// A commit under way, while the next part of the dump is read.
    committing: Option<Begun<'a, Result<(), VolumeError>>>,
    inodes: Numbers,
    slices: Numbers,
    used: Usage,
    users: HashMap<u64, Usage>,
    groups: HashMap<u64, Usage>,
    highest: Highest,
    trash: bool,
}

impl<'a> Loader<'a> {
    /// Into a store that was claimed.
    pub fn new(store: &'a dyn Store, now: Time) -> Loader<'a> {
        Loader {
            store,
            now,
            setting: None,
            deleted: Vec::new(),
            dir_quotas: HashMap::new(),
            user_quotas: HashMap::new(),
            group_quotas: HashMap::new(),
            levels: Vec::new(),
            rules: HashMap::new(),
            writes: Vec::new(),
            leaves: Vec::new(),
            committing: None,
            inodes: Numbers::default(),
            slices: Numbers::default(),
            used: Usage::default(),
            users: HashMap::new(),
            groups: HashMap::new(),
            highest: Highest { inode: 1, ..Highest::default() },
            trash: false,
        }
    }

    /// Loads one piece. Pieces have passed a `Check`.
    pub async fn event(&mut self, event: Event) -> Result<(), VolumeError> {
        match event {
            Event::Header(header) => self.header(header)?,
            Event::Enter { name, node } => {
                if let Some(level) = self.levels.last_mut() {
                    level.subdirs = level.subdirs.saturating_add(1);
                }
                self.entry(name, &node);
                self.count(&node);
                self.levels.push(Level { node, subdirs: 0, direct: Usage::default(), length: 0, below: Usage::default() });
            }
            Event::Leaf { name, node } => {
                self.entry(name, &node);
                let parent = self.levels.last().map_or(Ino::ROOT, |level| level.node.ino);
                self.leaves.push((parent, node));
            }
            Event::Leave => self.leave(),
        }
        // A leaf is some four writes.
        if self.writes.len() + 4 * self.leaves.len() >= WRITES_MAX {
            self.flush().await?;
        }
        Ok(())
    }

    fn header(&mut self, header: Header) -> Result<(), VolumeError> {
        match header {
            Header::Setting(document) => self.setting = Some(setting_of(&document).map_err(VolumeError::Refused)?),
            Header::Counters { next_inode, next_chunk, next_session, next_trash } => {
                // Numbers handed out and not seen in the dump may still name objects or be remembered somewhere.
                let highest = &mut self.highest;
                highest.inode = highest.inode.max(next_inode.saturating_sub(1));
                highest.chunk = highest.chunk.max(next_chunk.saturating_sub(1));
                highest.session = highest.session.max(next_session);
                highest.trash = highest.trash.max(next_trash);
            }
            Header::Deleted(files) => self.deleted = files,
            Header::DirQuotas(quotas) => self.dir_quotas = by_id(quotas),
            Header::UserQuotas(quotas) => self.user_quotas = by_id(quotas),
            Header::GroupQuotas(quotas) => self.group_quotas = by_id(quotas),
            Header::Nothing => {}
        }
        Ok(())
    }

    /// The entry of a node in the current directory, and what it adds to the sums.
    fn entry(&mut self, name: Bytes, node: &Node) {
        let Some(level) = self.levels.last_mut() else { return };
        self.writes.push(Write::HSet(key::dir(level.node.ino), name, encode_entry(node.attr.kind, node.ino)));
        level.direct.add(node.attr.space(), 1);
        level.below.add(node.attr.space(), 1);
        level.length = level.length.saturating_add(node.attr.data_length());
    }

    /// Counts an inode that was not there before.
    fn count(&mut self, node: &Node) {
        let Node { ino, attr, .. } = node;
        if ino.is_trash() {
            self.highest.trash = self.highest.trash.max((ino.0 - Ino::TRASH.0) as i64);
        } else {
            self.highest.inode = self.highest.inode.max(ino.0 as i64);
        }
        if *ino == Ino::ROOT || *ino == Ino::TRASH {
            return;
        }
        self.used.add(attr.space(), 1);
        if matches!(attr.kind, Kind::File | Kind::Dir) {
            self.users.entry(attr.uid.into()).or_default().add(attr.space(), 1);
            self.groups.entry(attr.gid.into()).or_default().add(attr.space(), 1);
        }
    }

    fn leave(&mut self) {
        let Some(Level { node, subdirs, direct, length, below }) = self.levels.pop() else { return };
        let ino = node.ino;
        if let Some(parent) = self.levels.last_mut() {
            parent.below.add(below.space, below.inodes);
        }
        if ino == Ino::TRASH {
            let absent = (node.attr.mode, node.attr.ctime) == (0, Time::default());
            if direct.inodes == 0 && absent {
                // Stands for a trash that was never there.
                return;
            }
            self.trash = true;
        }
        let mut attr = node.attr.clone();
        attr.parent = self.levels.last().map_or(Ino::ROOT, |level| level.node.ino);
        attr.nlink = if ino.is_trash() { 2 } else { subdirs.saturating_add(2) };
        self.common(&node, &mut attr);
        self.writes.push(Write::Set(key::inode(ino), encode_attr(&attr)));
        let field = key::decimal(ino);
        let statistics = [(key::DIR_DATA_LENGTH, length), (key::DIR_USED_SPACE, direct.space), (key::DIR_USED_INODES, direct.inodes)];
        // The root of the trash has none.
        for (hash, value) in statistics.into_iter().filter(|_| ino != Ino::TRASH) {
            self.writes.push(Write::HSet(hash, field.clone(), key::decimal(value)));
        }
        if let Some(limits) = self.dir_quotas.remove(&ino.0) {
            let keys = [key::DIR_QUOTA, key::DIR_QUOTA_USED_SPACE, key::DIR_QUOTA_USED_INODES];
            self.writes.extend(quota(&keys, ino.0, limits, below));
        }
    }

    /// Writes that any inode may need: extended attributes and ACLs, whose ids are new ones.
    fn common(&mut self, node: &Node, attr: &mut Attr) {
        for (name, value) in &node.xattrs {
            self.writes.push(Write::HSet(key::xattr(node.ino), name.clone(), value.clone()));
        }
        for (rule, id) in [(&node.access_acl, &mut attr.access_acl), (&node.default_acl, &mut attr.default_acl)] {
            let Some(rule) = rule else { continue };
            let next = self.rules.len() as u32 + 1;
            *id = *self.rules.entry(rule.clone()).or_insert(next);
            if *id == next {
                self.writes.push(Write::HSet(key::ACL, key::decimal(next), rule.clone()));
            }
        }
    }

    /// Commits what is queued.
    async fn flush(&mut self) -> Result<(), VolumeError> {
        let mut again = Vec::new();
        for (parent, node) in std::mem::take(&mut self.leaves) {
            if !self.inodes.insert(node.ino.0) {
                again.push((parent, node));
                continue;
            }
            let mut attr = Attr { parent, nlink: 1, ..node.attr.clone() };
            self.count(&node);
            self.common(&node, &mut attr);
            self.data(&node);
            self.writes.push(Write::Set(key::inode(node.ino), encode_attr(&attr)));
        }
        self.commit().await?;
        if again.is_empty() {
            return Ok(());
        }
        self.settle().await?;
        let mut there = self.records(&again).await?;
        for (parent, node) in again {
            let ino = node.ino;
            let attr = there.get_mut(&ino).ok_or_else(|| VolumeError::Failed(format!("inode {ino} was removed while it was loaded")))?;
            let add = |parent: Ino| Write::HIncrBy(key::parents(ino), key::decimal(parent), 1);
            if attr.parent != Ino(0) {
                self.writes.push(add(attr.parent));
                attr.parent = Ino(0);
            }
            self.writes.push(add(parent));
            attr.nlink = attr.nlink.saturating_add(1);
        }
        self.writes.extend(there.iter().map(|(ino, attr)| Write::Set(key::inode(*ino), encode_attr(attr))));
        self.commit().await
    }

    /// Inodes of these leaves that were loaded before.
    async fn records(&self, leaves: &[(Ino, Node)]) -> Result<HashMap<Ino, Attr>, VolumeError> {
        let inodes: HashSet<Ino> = leaves.iter().map(|(_, node)| node.ino).collect();
        let inodes: Vec<Ino> = inodes.into_iter().collect();
        let queries: Vec<Query> = inodes.iter().map(|ino| Query::Get(key::inode(*ino))).collect();
        let mut there = HashMap::new();
        for (ino, value) in inodes.into_iter().zip(self.store.read(&queries).await?) {
            if let Value::Bytes(Some(bytes)) = value {
                let record =
                    Record::decode(bytes).ok_or_else(|| VolumeError::Failed(format!("inode {ino} was changed while it was loaded")))?;
                there.insert(ino, record.attr);
            }
        }
        Ok(there)
    }

    /// Target and slices.
    fn data(&mut self, node: &Node) {
        if node.attr.kind == Kind::Symlink {
            self.writes.push(Write::Set(key::symlink(node.ino), node.target.clone()));
        }
        for (index, records) in &node.chunks {
            self.writes.push(Write::RPush(key::chunk(node.ino, *index), records.iter().map(encode_slice).collect()));
            for record in records.iter().filter(|record| record.id > 0) {
                self.highest.chunk = self.highest.chunk.max(i64::try_from(record.id).unwrap_or(i64::MAX - 1));
                // The format counts the references after the first.
                if !self.slices.insert(record.id) {
                    self.writes.push(Write::HIncrBy(key::SLICE_REF, key::slice_ref(record.id, record.size), 1));
                }
            }
        }
    }

    /// Begins to commit what is queued, once what was before is done.
    async fn commit(&mut self) -> Result<(), VolumeError> {
        let writes = std::mem::take(&mut self.writes);
        self.settle().await?;
        self.committing = Some(Begun::begin(Box::pin(write(self.store, writes))).await);
        Ok(())
    }

    /// Waits for the commit under way.
    async fn settle(&mut self) -> Result<(), VolumeError> {
        match self.committing.take() {
            Some(committing) => committing.end().await,
            None => Ok(()),
        }
    }

    /// Writes what only the whole dump tells. Answers the setting, which is still to be written.
    pub async fn finish(mut self) -> Result<(Loaded, Setting), VolumeError> {
        self.flush().await?;
        let setting = self.setting.take().ok_or_else(|| VolumeError::Refused("the dump has no Setting".into()))?;
        for (ino, time, length) in self.deleted.iter().map(|(ino, length, time)| (*ino, *time, *length)) {
            self.writes.push(Write::ZAdd(key::DELFILES, time, key::delfile(ino, length)));
        }
        for id in self.dir_quotas.keys() {
            warn!("the dump has a quota of directory {id}, and no such directory; it is left out");
        }
        if setting.user_group_quota() || !self.user_quotas.is_empty() || !self.group_quotas.is_empty() {
            let kinds: [([Key; 3], _, _); 2] = [
                ([key::USER_QUOTA, key::USER_QUOTA_USED_SPACE, key::USER_QUOTA_USED_INODES], &self.user_quotas, &mut self.users),
                ([key::GROUP_QUOTA, key::GROUP_QUOTA_USED_SPACE, key::GROUP_QUOTA_USED_INODES], &self.group_quotas, &mut self.groups),
            ];
            for (keys, limits, usage) in kinds {
                for id in limits.keys() {
                    usage.entry(*id).or_default();
                }
                for (id, usage) in usage {
                    self.writes.extend(quota(&keys, *id, limits.get(id).copied().unwrap_or((-1, -1)), *usage));
                }
            }
        }
        if !self.trash && setting.trash_days() > 0 {
            // The dump was taken without the trash; the volume cannot be without.
            self.writes.push(Write::Set(key::inode(Ino::TRASH), encode_attr(&trash_root(self.now))));
        }
        if !self.rules.is_empty() {
            self.writes.push(Write::Set(key::ACL_MAX_ID, key::decimal(self.rules.len())));
        }
        let counters = [
            (key::USED_SPACE, self.used.space),
            (key::TOTAL_INODES, self.used.inodes),
            (key::NEXT_INODE, self.highest.inode),
            (key::NEXT_CHUNK, self.highest.chunk),
            (key::NEXT_SESSION, self.highest.session),
            (key::NEXT_TRASH, self.highest.trash),
        ];
        self.writes.extend(counters.into_iter().map(|(key, value)| Write::Set(key, key::decimal(value))));
        self.commit().await?;
        self.settle().await?;
        Ok((Loaded { inodes: self.used.inodes, space: self.used.space, ..Loaded::default() }, setting))
    }
}

/// Makes sure that a store is empty and takes it, so that nobody else loads into it.
pub(super) async fn claim(store: &dyn Store) -> Result<(), VolumeError> {
    // What this process keeps of the outcomes of its own commits is no content.
    let stranger = |item: &&ScanItem| !item.name.starts_with(key::OUTCOMES);
    let (mut cursor, mut found) = (Cursor::new(), None);
    while found.is_none() {
        let page = store.scan(&ScanRange::Keys(Bytes::new()), cursor, STRANGERS_PAGE).await?;
        found = page.items.iter().find(stranger).cloned();
        match page.next {
            Some(next) => cursor = next,
            None => break,
        }
    }
    if let Some(item) = found {
        return Err(VolumeError::Refused(format!(
            "the target is not empty (it has the key {:?}); load into an empty one",
            String::from_utf8_lossy(&item.name)
        )));
    }
    let claim = [Guard::Value(key::NEXT_INODE, None), Guard::Value(key::SETTING, None)];
    match store.commit(&claim, &[Write::Set(key::NEXT_INODE, "1".into())], &[]).await? {
        Commit::Done { .. } => Ok(()),
        Commit::Conflict(_) => Err(VolumeError::Refused("somebody else is loading into the same target".into())),
    }
}

/// Commits writes in parts, in an order in which a store carries many of one kind out together. No two are about one field or one string, unless
/// they add to it.
pub(super) async fn write(store: &dyn Store, mut writes: Vec<Write>) -> Result<(), VolumeError> {
    in_runs(&mut [], &mut writes);
    for part in writes.chunks(WRITES_MAX) {
        store.commit(&[], part, &[]).await?;
    }
    Ok(())
}

/// Whether the setting lacks a secret that a dump does not hold.
pub(super) fn secrets_removed(setting: &Setting) -> bool {
    ["SecretKey", "SessionToken", "EncryptKey"].iter().any(|field| setting.document().get(*field) == Some(&"removed".into()))
}

/// The last commit of a load: with the setting the store is a volume.
pub(super) async fn complete(store: &dyn Store, setting: &Setting) -> Result<(), VolumeError> {
    let guards = [Guard::Value(key::SETTING, None)];
    match store.commit(&guards, &[Write::Set(key::SETTING, setting.encode().into())], &[]).await? {
        Commit::Done { .. } => Ok(store.sync().await?),
        Commit::Conflict(_) => Err(VolumeError::Failed("somebody else made a volume of the target meanwhile".into())),
    }
}

/// The root of the trash as it is made with a volume (metadata §4.3).
fn trash_root(now: Time) -> Attr {
    let now = Time { sec: now.sec, nsec: 0 };
    let mut attr = super::json::no_trash().attr;
    (attr.mode, attr.atime, attr.mtime, attr.ctime) = (0o555, now, now, now);
    Attr { length: 4096, parent: Ino::ROOT, ..attr }
}

fn by_id(quotas: Vec<(u64, i64, i64)>) -> HashMap<u64, (i64, i64)> {
    quotas.into_iter().map(|(id, space, inodes)| (id, (space, inodes))).collect()
}

fn quota([limits_key, space_key, inodes_key]: &[Key; 3], id: u64, limits: (i64, i64), usage: Usage) -> [Write; 3] {
    let field = key::decimal(id);
    let bytes: Vec<u8> = [limits.0, limits.1].iter().flat_map(|limit| limit.to_be_bytes()).collect();
    [
        Write::HSet(limits_key.clone(), field.clone(), bytes.into()),
        Write::HSet(space_key.clone(), field.clone(), key::decimal(usage.space)),
        Write::HSet(inodes_key.clone(), field, key::decimal(usage.inodes)),
    ]
}
