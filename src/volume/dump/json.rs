//! The JSON form of a volume's metadata (metadata §15.2), written.
//!
//! One line per attribute set, two spaces per level, byte for byte as the reference writes it. Nothing but the entries of the directories
//! on the way to the current one, and 24 bytes for each deleted file, is kept in memory.

use super::node::{Entry, Node, Nodes, damaged};
use super::text::{escape, html_safe};
use super::{DumpOptions, Slices};
use crate::env::Begun;
use crate::meta::codec::decode_decimal;
use crate::meta::key;
use crate::meta::setting::Setting;
use crate::meta::store::{Cursor, Query, ScanRange, Store, Value};
use crate::telemetry::progress;
use crate::types::{Attr, Ino, Kind};
use crate::volume::VolumeError;
use serde_json::{Map, Value as Json, json};
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::io::{self, Write};
use tracing::warn;

/// Inodes read at once.
const BATCH: usize = 100;
/// Deleted files read at once.
const PAGE: u32 = 4096;
/// How the document says that there are no deleted files.
const NO_DELETED: &str = "\n  \"DelFiles\": []";
/// Sessions at most; a volume has one per mount.
const SESSIONS_MAX: u32 = 100_000;

/// Writes the dump. `slices` is told every slice that the dump names.
pub async fn write(
    store: &dyn Store,
    setting: &Setting,
    options: &DumpOptions,
    slices: &mut Slices<'_>,
    out: &mut (dyn Write + Send),
) -> Result<(), VolumeError> {
    let root = match &options.subdir {
        Some(path) => super::walk_to(store, path).await?,
        None => Ino::ROOT,
    };
    let header = header(store, setting, options, root).await?;
    let text =
        serde_json::to_string_pretty(&Json::Object(header)).map_err(|e| VolumeError::Failed(format!("cannot write the header: {e}")))?;
    let open = text.strip_suffix("\n}").ok_or_else(|| VolumeError::Failed("the header is empty".into()))?;
    // Not part of the document: there may be millions of them. Within a text no line ends.
    let (before, after) = open.split_once(NO_DELETED).ok_or_else(|| VolumeError::Failed("the header has no deleted files".into()))?;
    put(out, &html_safe(before))?;
    write_deleted(&deleted_files(store).await?, out)?;
    put(out, &html_safe(after))?;
    put(out, ",")?;
    let nodes = Nodes::new(store);
    let top = nodes.read(&[root]).await?.into_iter().next().flatten().ok_or_else(|| damaged(format!("the record of inode {root}")))?;
    tree(&nodes, b"FSTree", top, slices, out).await?;
    if root == Ino::ROOT && !options.skip_trash {
        put(out, ",")?;
        // Without a trash there is no record; the reference writes this then.
        let trash = nodes.read(&[Ino::TRASH]).await?.into_iter().next().flatten().unwrap_or_else(no_trash);
        tree(&nodes, b"Trash", trash, slices, out).await?;
    }
    put(out, "\n}\n")
}

/// What stands for the trash of a volume that never had one.
pub(super) fn no_trash() -> Node {
    let attr = Attr { length: 0, ..Attr::new_dir(0, Ino(0), Default::default()) };
    Node { ino: Ino::TRASH, attr, target: Default::default(), xattrs: Vec::new(), access_acl: None, default_acl: None, chunks: Vec::new() }
}

/// Everything before the trees.
async fn header(store: &dyn Store, setting: &Setting, options: &DumpOptions, root: Ino) -> Result<Map<String, Json>, VolumeError> {
    let mut document = setting.document().clone();
    if !options.keep_secrets {
        for field in ["SecretKey", "SessionToken"] {
            if let Some(value) = document.get_mut(field).filter(|value| value.as_str() != Some("")) {
                *value = json!("removed");
            }
        }
    }
    let mut header = Map::new();
    header.insert("Setting".into(), Json::Object(document));
    header.insert("Counters".into(), counters(store).await?);
    header.insert("Sustained".into(), sustained(store).await?);
    header.insert("DelFiles".into(), json!([]));
    let mut kinds = vec![("Quotas", key::DIR_QUOTA)];
    if root == Ino::ROOT {
        kinds.extend([("UserQuotas", key::USER_QUOTA), ("GroupQuotas", key::GROUP_QUOTA)]);
    }
    for (name, hash) in kinds {
        let quotas = quotas(store, hash).await?;
        if !quotas.is_empty() {
            header.insert(name.into(), Json::Object(quotas));
        }
    }
    Ok(header)
}

async fn counters(store: &dyn Store) -> Result<Json, VolumeError> {
    // The dump names the next number where the store keeps the last one used; not so for sessions and the trash (metadata §3).
    let names = [
        ("usedSpace", key::USED_SPACE, 0),
        ("usedInodes", key::TOTAL_INODES, 0),
        ("nextInodes", key::NEXT_INODE, 1),
        ("nextChunk", key::NEXT_CHUNK, 1),
        ("nextSession", key::NEXT_SESSION, 0),
        ("nextTrash", key::NEXT_TRASH, 0),
    ];
    let queries: Vec<Query> = names.iter().map(|(_, key, _)| Query::Get(key.clone())).collect();
    let mut counters = Map::new();
    for ((name, _, more), value) in names.iter().zip(store.read(&queries).await?) {
        let number = match &value {
            Value::Bytes(text) => decode_decimal(text.as_deref()),
            _ => None,
        };
        let number = number.and_then(|number| number.checked_add(*more)).ok_or_else(|| damaged(format!("the counter {name}")))?;
        counters.insert((*name).into(), json!(number));
    }
    Ok(Json::Object(counters))
}

/// Sessions in order of their expiry, and what they keep.
pub(super) async fn sustained_inodes(store: &dyn Store) -> Result<Vec<(u64, Vec<u64>)>, VolumeError> {
    let query = Query::ZRange { key: key::ALL_SESSIONS, max: i64::MAX, limit: SESSIONS_MAX };
    let Some(Value::Scored(sessions)) = store.read(&[query]).await?.into_iter().next() else {
        return Err(VolumeError::Failed("the metadata store gave no answer about sessions".into()));
    };
    let mut all = Vec::new();
    for (session, _) in sessions {
        let sid = number(&session).ok_or_else(|| damaged(format!("session {:?}", String::from_utf8_lossy(&session))))?;
        let Some(Value::List(members)) = store.read(&[Query::SMembers(key::sustained(sid))]).await?.into_iter().next() else { continue };
        let mut inodes: Vec<u64> = members.iter().filter_map(|ino| number(ino)).collect();
        if !inodes.is_empty() {
            inodes.sort_unstable();
            all.push((sid, inodes));
        }
    }
    Ok(all)
}

async fn sustained(store: &dyn Store) -> Result<Json, VolumeError> {
    let all = sustained_inodes(store).await?;
    Ok(all.into_iter().map(|(sid, inodes)| json!({"sid": sid, "inodes": inodes})).collect())
}

/// Deleted files whose data is still there: inode, length and time of deletion, in the order of the sorted set that lists them.
pub(super) async fn deleted_files(store: &dyn Store) -> Result<Vec<(u64, u64, i64)>, VolumeError> {
    let mut files: Vec<(u64, u64, i64)> = Vec::new();
    let mut cursor = Some(Cursor::new());
    while let Some(at) = cursor {
        let page = store.scan(&ScanRange::Sorted(key::DELFILES), at, PAGE).await?;
        for item in page.items {
            let parts = std::str::from_utf8(&item.name).ok().and_then(|text| text.split_once(':'));
            let file = parts.and_then(|(ino, length)| Some((ino.parse().ok()?, length.parse().ok()?, decode_decimal(Some(&item.value))?)));
            match file {
                Some(file) => files.push(file),
                None => warn!("{:?} among the deleted files names no inode and is left out", String::from_utf8_lossy(&item.name)),
            }
        }
        cursor = page.next;
    }
    files.sort_unstable_by(|(ino, length, time), (other, other_length, other_time)| {
        let length = || length.to_string().cmp(&other_length.to_string());
        time.cmp(other_time).then_with(|| by_text(*ino, *other)).then_with(length)
    });
    // A scan may show one twice.
    files.dedup();
    Ok(files)
}

/// The order of two numbers as texts that are followed by a colon, which comes after all digits.
fn by_text(one: u64, other: u64) -> Ordering {
    let digits = |n: u64| n.checked_ilog10().unwrap_or(0);
    match digits(one).cmp(&digits(other)) {
        Ordering::Equal => one.cmp(&other),
        Ordering::Less => one.cmp(&(other / 10u64.pow(digits(other) - digits(one)))).then(Ordering::Greater),
        Ordering::Greater => by_text(other, one).reverse(),
    }
}

fn write_deleted(files: &[(u64, u64, i64)], out: &mut (dyn Write + Send)) -> Result<(), VolumeError> {
    let Some(rest) = NO_DELETED.strip_suffix("]").filter(|_| !files.is_empty()) else { return put(out, NO_DELETED) };
    put(out, rest)?;
    for (n, (ino, length, time)) in files.iter().enumerate() {
        let comma = if n > 0 { "," } else { "" };
        put(out, &format!("{comma}\n    {{\n      \"inode\": {ino},\n      \"length\": {length},\n      \"expire\": {time}\n    }}"))?;
    }
    put(out, "\n  ]")
}

/// Limits by id, sorted as text; those that limit nothing are left out.
async fn quotas(store: &dyn Store, hash: crate::meta::store::Key) -> Result<Map<String, Json>, VolumeError> {
    let Some(Value::Pairs(mut pairs)) = store.read(&[Query::HGetAll(hash)]).await?.into_iter().next() else {
        return Err(VolumeError::Failed("the metadata store gave no answer about quotas".into()));
    };
    pairs.sort();
    let mut quotas = Map::new();
    for (id, limits) in pairs {
        let text = String::from_utf8_lossy(&id).into_owned();
        let limits = number(&id).and(decode_limits(&limits)).ok_or_else(|| damaged(format!("quota {text}")))?;
        if limits != (-1, -1) {
            quotas.insert(text, json!({"maxSpace": limits.0, "maxInodes": limits.1}));
        }
    }
    Ok(quotas)
}

/// The limits of a quota (metadata §2.6): space and inodes.
pub(super) fn decode_limits(bytes: &[u8]) -> Option<(i64, i64)> {
    let (space, inodes) = bytes.split_at_checked(8)?;
    Some((i64::from_be_bytes(space.try_into().ok()?), i64::from_be_bytes(inodes.try_into().ok()?)))
}

/// A decimal field or member.
pub(super) fn number(bytes: &[u8]) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// A directory that is being written.
struct Level<'a> {
    ino: Ino,
    /// Entries not read yet.
    entries: std::vec::IntoIter<Entry>,
    /// The next of them, which are on their way while those before are written.
    coming: Option<Batch<'a>>,
    /// Entries read and not written yet.
    ready: VecDeque<(Entry, Node)>,
    written: bool,
}

/// Entries, and what they name.
type Batch<'a> = Begun<'a, Result<Vec<(Entry, Option<Node>)>, VolumeError>>;

impl<'a> Level<'a> {
    /// Begins to read what the next entries name.
    async fn ask(&mut self, nodes: &'a Nodes<'_>) {
        let batch: Vec<Entry> = self.entries.by_ref().take(BATCH).collect();
        if batch.is_empty() {
            return;
        }
        let read = async move {
            let inodes: Vec<Ino> = batch.iter().map(|entry| entry.ino).collect();
            Ok(batch.into_iter().zip(nodes.read(&inodes).await?).collect())
        };
        self.coming = Some(Begun::begin(Box::pin(read)).await);
    }
}

/// Writes a directory and all below it as the member `name` of the document.
async fn tree(nodes: &Nodes<'_>, name: &[u8], top: Node, slices: &mut Slices<'_>, out: &mut (dyn Write + Send)) -> Result<(), VolumeError> {
    let mut levels: Vec<Level<'_>> = Vec::new();
    enter(nodes, &mut levels, name, top, out).await?;
    while let Some(level) = levels.last_mut() {
        if level.ready.is_empty() {
            if level.coming.is_none() {
                level.ask(nodes).await;
            }
            let Some(batch) = level.coming.take() else {
                levels.pop();
                let indent = "  ".repeat(levels.len() * 2 + 1);
                put(out, &format!("\n{indent}  }}\n{indent}}}"))?;
                continue;
            };
            let batch = batch.end().await?;
            level.ask(nodes).await;
            progress::add(batch.len() as u64, 0);
            for (entry, node) in batch {
                match node {
                    Some(node) => level.ready.push_back((entry, node)),
                    // Deleted since the directory was listed, or damaged before.
                    None => warn!(
                        "entry {:?} of directory {} names inode {}, which has no record; it is left out",
                        String::from_utf8_lossy(&entry.name),
                        level.ino,
                        entry.ino
                    ),
                }
            }
            continue;
        }
        let Some((entry, node)) = level.ready.pop_front() else { continue };
        if std::mem::replace(&mut level.written, true) {
            put(out, ",")?;
        }
        if node.attr.is_dir() {
            if levels.iter().any(|level| level.ino == node.ino) {
                return Err(damaged(format!("directory {} lies inside of itself and", node.ino)));
            }
            enter(nodes, &mut levels, &entry.name, node, out).await?;
        } else {
            for record in node.chunks.iter().flat_map(|(_, records)| records) {
                slices.note(record).await?;
            }
            let indent = "  ".repeat(levels.len() * 2 + 1);
            put(out, &members(&entry.name, &node, &indent)?)?;
            put(out, &format!("\n{indent}}}"))?;
        }
    }
    Ok(())
}

/// Writes the head of a directory and makes it the current one.
async fn enter<'a>(
    nodes: &'a Nodes<'_>,
    levels: &mut Vec<Level<'a>>,
    name: &[u8],
    dir: Node,
    out: &mut (dyn Write + Send),
) -> Result<(), VolumeError> {
    let indent = "  ".repeat(levels.len() * 2 + 1);
    put(out, &members(name, &dir, &indent)?)?;
    put(out, &format!(",\n{indent}  \"entries\": {{"))?;
    let entries = nodes.entries(dir.ino).await?.into_iter();
    levels.push(Level { ino: dir.ino, entries, coming: None, ready: VecDeque::new(), written: false });
    Ok(())
}

/// Name and members of a node; the brace stays open.
fn members(name: &[u8], node: &Node, indent: &str) -> Result<String, VolumeError> {
    let mut text = format!("\n{indent}\"{}\": {{\n{indent}  \"attr\": {}", escape(name), attr_json(node));
    let mut member = |name: &str, value: &str| text.push_str(&format!(",\n{indent}  \"{name}\": {value}"));
    if !node.target.is_empty() {
        member("symlink", &format!("\"{}\"", escape(&node.target)));
    }
    if !node.xattrs.is_empty() {
        let pairs: Json =
            node.xattrs.iter().map(|(name, value)| json!({"name": xattr_name(node.ino, name), "value": escape(value)})).collect();
        member("xattrs", &html_safe(&pairs.to_string()));
    }
    for (name, rule) in [("posix_acl_access", &node.access_acl), ("posix_acl_default", &node.default_acl)] {
        if let Some(rule) = rule {
            let rule = acl_json(rule).ok_or_else(|| damaged(format!("an ACL of inode {}", node.ino)))?;
            member(name, &rule.to_string());
        }
    }
    let chunk = |(index, records): &(u32, Vec<_>)| {
        let slices: Vec<String> = records.iter().map(slice_json).collect();
        format!("{{\"index\":{index},\"slices\":[{}]}}", slices.join(","))
    };
    match node.chunks.as_slice() {
        [] => {}
        [only] => member("chunks", &format!("[{}]", chunk(only))),
        several => {
            let lines: Vec<String> = several.iter().map(|part| format!("\n{indent}    {}", chunk(part))).collect();
            member("chunks", &format!("[{}\n{indent}  ]", lines.join(",")));
        }
    }
    Ok(text)
}

fn xattr_name(ino: Ino, name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    if text.as_bytes() != name {
        warn!("an extended attribute of inode {ino} has the name {text:?}, which is no UTF-8 and cannot be kept in JSON; use --binary");
    }
    text.into_owned()
}

fn attr_json(node: &Node) -> String {
    let attr = &node.attr;
    let mut text = format!("{{\"inode\":{}", node.ino);
    let mut field = |name: &str, value: &dyn std::fmt::Display| text.push_str(&format!(",\"{name}\":{value}"));
    if attr.flags.0 != 0 {
        field("flags", &attr.flags.0);
    }
    field("type", &format!("\"{}\"", kind_name(attr.kind)));
    field("mode", &attr.mode);
    field("uid", &attr.uid);
    field("gid", &attr.gid);
    for (name, time) in [("atime", attr.atime), ("mtime", attr.mtime), ("ctime", attr.ctime)] {
        field(name, &time.sec);
    }
    for (name, time) in [("atimensec", attr.atime), ("mtimensec", attr.mtime), ("ctimensec", attr.ctime)] {
        if time.nsec != 0 {
            field(name, &time.nsec);
        }
    }
    field("nlink", &attr.nlink);
    field("length", &if attr.kind == Kind::File { attr.length } else { 0 });
    for (name, value) in [("rdev", attr.rdev), ("tier", u32::from(attr.tier))] {
        if value != 0 {
            field(name, &value);
        }
    }
    text + "}"
}

fn slice_json(slice: &crate::types::SliceRecord) -> String {
    let mut text = format!("{{\"id\":{}", slice.id);
    if slice.pos != 0 {
        text += &format!(",\"pos\":{}", slice.pos);
    }
    text += &format!(",\"size\":{}", slice.size);
    if slice.off != 0 {
        text += &format!(",\"off\":{}", slice.off);
    }
    text + &format!(",\"len\":{}}}", slice.len)
}

/// Types as the dump names them, in the order of their numbers.
pub(super) const KINDS: [(Kind, &str); 7] = [
    (Kind::File, "regular"),
    (Kind::Dir, "directory"),
    (Kind::Symlink, "symlink"),
    (Kind::Fifo, "fifo"),
    (Kind::Block, "blockdev"),
    (Kind::Char, "chardev"),
    (Kind::Socket, "socket"),
];

fn kind_name(kind: Kind) -> &'static str {
    KINDS.iter().find(|(known, _)| *known == kind).map_or("regular", |(_, name)| name)
}

/// A rule as the dump shows it; `None` if its bytes are no rule.
pub(super) fn acl_json(rule: &[u8]) -> Option<Json> {
    let (head, mut rest) = rule.split_first_chunk::<8>()?;
    let half = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let mut named = || {
        let (count, entries) = rest.split_first_chunk::<4>()?;
        let bytes = usize::try_from(u32::from_be_bytes(*count)).ok()?.checked_mul(6)?;
        let (entries, after) = entries.split_at_checked(bytes)?;
        rest = after;
        let entries: Vec<Json> = entries
            .as_chunks::<6>()
            .0
            .iter()
            .map(|[a, b, c, d, e, f]| json!({"id": u32::from_be_bytes([*a, *b, *c, *d]), "perm": u16::from_be_bytes([*e, *f])}))
            .collect();
        Some(if entries.is_empty() { Json::Null } else { Json::Array(entries) })
    };
    let (users, groups) = (named()?, named()?);
    rest.is_empty()
        .then(|| json!({"owner": half(0), "group": half(2), "other": half(6), "mask": half(4), "users": users, "groups": groups}))
}

fn put(out: &mut (dyn Write + Send), text: &str) -> Result<(), VolumeError> {
    out.write_all(text.as_bytes()).map_err(|e: io::Error| VolumeError::Failed(format!("cannot write the dump: {e}")))
}
