//! The JSON form of a volume's metadata, read: a document becomes headers, directories and leaves, one after another.

use super::json::KINDS;
use super::load::{Event, Header};
use super::node::Node;
use super::parse::Parser;
use super::text::unescape;
use crate::types::{Attr, CHUNK_BYTES, Flags, Ino, Kind, Name, SliceRecord, Time};
use bytes::{BufMut, Bytes, BytesMut};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value as Json};
use std::borrow::Cow;
use std::fmt;
use std::io::BufRead;
use std::marker::PhantomData;

/// Members of the document that are small and come before the trees.
const HEADERS: [&str; 7] = ["Setting", "Counters", "Sustained", "Quotas", "UserQuotas", "GroupQuotas", "ChangeLog"];

/// A reader of a dump. Messages name the line.
pub struct JsonReader<R> {
    parser: Parser<R>,
    state: State,
    /// Per open directory, the outermost first: whether no entry was read yet.
    open: Vec<bool>,
    /// Members of the document that were there.
    seen: Vec<String>,
}

enum State {
    Start,
    Document { first: bool },
    Done,
}

impl<R: BufRead> JsonReader<R> {
    /// At the start of a document.
    pub fn new(input: R) -> JsonReader<R> {
        JsonReader { parser: Parser::new(input), state: State::Start, open: Vec::new(), seen: Vec::new() }
    }

    /// What comes next, `None` at the end of a complete document.
    pub fn next(&mut self) -> Result<Option<Event>, String> {
        if let Some(first) = self.open.last_mut() {
            return match self.parser.member(first)? {
                Some(name) => {
                    let name = unescape(&name);
                    if Name::new(&name).is_err() {
                        return Err(self.parser.wrong(format_args!("{:?} is no name of a file", String::from_utf8_lossy(&name))));
                    }
                    self.node(name.into()).map(Some)
                }
                None => {
                    self.open.pop();
                    // The entries were the last member of the directory.
                    self.parser.expect(b'}')?;
                    Ok(Some(Event::Leave))
                }
            };
        }
        loop {
            let first = match &mut self.state {
                State::Start => {
                    self.parser.expect(b'{')?;
                    self.state = State::Document { first: true };
                    continue;
                }
                State::Document { first } => first,
                State::Done => return Ok(None),
            };
            let Some(name) = self.parser.member(first)? else {
                self.parser.end()?;
                self.state = State::Done;
                for wanted in ["Setting", "Counters", "FSTree"] {
                    if !self.seen.iter().any(|seen| seen == wanted) {
                        return Err(format!("it has no {wanted}"));
                    }
                }
                return Ok(None);
            };
            if self.seen.contains(&name) {
                return Err(self.parser.wrong(format_args!("a second {name}")));
            }
            self.seen.push(name.clone());
            if name == "FSTree" || name == "Trash" {
                if !self.seen.iter().any(|seen| seen == "Setting") {
                    return Err(self.parser.wrong(format_args!("{name} comes before the Setting")));
                }
                return match self.node(Bytes::new())? {
                    Event::Enter { name: entry, mut node } => {
                        if name == "FSTree" {
                            // The root of a dumped subdirectory becomes the root of the new volume.
                            node.ino = Ino::ROOT;
                        } else if node.ino != Ino::TRASH {
                            return Err(self.parser.wrong("the trash has another inode"));
                        }
                        Ok(Some(Event::Enter { name: entry, node }))
                    }
                    _ => Err(self.parser.wrong(format_args!("{name} is no directory"))),
                };
            }
            // There may be millions of them.
            if name == "DelFiles" {
                let files: Option<Vec<DeletedText>> = self.parser.value()?;
                let files = files.into_iter().flatten().map(|file| (Ino(file.inode), file.length, file.expire));
                return Ok(Some(Event::Header(Header::Deleted(files.collect()))));
            }
            let value: Json = self.parser.value()?;
            if HEADERS.contains(&name.as_str()) {
                return self.header(&name, value).map(|header| Some(Event::Header(header)));
            }
            // Something of a later version; nothing else depends on it.
            tracing::warn!("the dump has {name}, which is not known and not loaded");
        }
    }

    fn header(&self, name: &str, value: Json) -> Result<Header, String> {
        let wrong = || self.parser.wrong(format_args!("{name} has not the right form"));
        Ok(match (name, value) {
            ("Setting", Json::Object(document)) => Header::Setting(document),
            ("Counters", Json::Object(counters)) => {
                let counter = |name| counters.get(name).map_or(Some(0), Json::as_i64).ok_or_else(wrong);
                Header::Counters {
                    next_inode: counter("nextInodes")?,
                    next_chunk: counter("nextChunk")?,
                    next_session: counter("nextSession")?,
                    next_trash: counter("nextTrash")?,
                }
            }
            ("Quotas" | "UserQuotas" | "GroupQuotas", Json::Object(quotas)) => {
                let limits = |(id, quota): (&String, &Json)| {
                    Some((id.parse::<u64>().ok()?, quota["maxSpace"].as_i64()?, quota["maxInodes"].as_i64()?))
                };
                let quotas = quotas.iter().map(limits).collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
                match name {
                    "Quotas" => Header::DirQuotas(quotas),
                    "UserQuotas" => Header::UserQuotas(quotas),
                    _ => Header::GroupQuotas(quotas),
                }
            }
            // Sessions have ended, and so have the files they kept; a log of changes belongs to the volume it was written for.
            ("Sustained" | "ChangeLog", _) | (_, Json::Null) => Header::Nothing,
            _ => return Err(wrong()),
        })
    }

    /// A node, up to its end or to its entries.
    fn node(&mut self, name: Bytes) -> Result<Event, String> {
        self.parser.expect(b'{')?;
        let mut first = true;
        let mut node: Option<Node> = None;
        while let Some(member) = self.parser.member(&mut first)? {
            if member == "attr" {
                let found = self.parser.value::<Object<AttrText<'_>>>()?.0.node();
                if node.is_some() {
                    return Err(self.parser.wrong("a second attr"));
                }
                node = Some(found.ok_or_else(|| self.parser.wrong("attributes that no inode has"))?);
                continue;
            }
            let Some(node) = &mut node else { return Err(self.parser.wrong(format_args!("{member} comes before attr"))) };
            if member == "entries" {
                if !node.attr.is_dir() {
                    return Err(self.parser.wrong("entries of what is no directory"));
                }
                self.parser.expect(b'{')?;
                self.open.push(true);
                return Ok(Event::Enter { name, node: node.clone() });
            }
            let added = if member == "chunks" && node.attr.kind == Kind::File {
                chunks(&self.parser.value::<Vec<Object<ChunkText>>>()?).map(|chunks| node.chunks = chunks)
            } else {
                add(node, &member, &self.parser.value()?)
            };
            added.ok_or_else(|| self.parser.wrong(format_args!("{member} has not the right form")))?;
        }
        let node = node.ok_or_else(|| self.parser.wrong("a node without attr"))?;
        match node.attr.kind {
            Kind::Dir => Err(self.parser.wrong("a directory without entries")),
            _ => Ok(Event::Leaf { name, node }),
        }
    }
}

fn narrow<T: TryFrom<u64>>(value: &Json) -> Option<T> {
    T::try_from(value.as_u64()?).ok()
}

/// A deleted file as it is written.
#[derive(Deserialize)]
struct DeletedText {
    inode: u64,
    length: u64,
    expire: i64,
}

/// The attributes of a node as they are written.
#[derive(Deserialize)]
struct AttrText<'a> {
    inode: u64,
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(default)]
    flags: u8,
    mode: u16,
    uid: u32,
    gid: u32,
    atime: i64,
    mtime: i64,
    ctime: i64,
    #[serde(default)]
    atimensec: u32,
    #[serde(default)]
    mtimensec: u32,
    #[serde(default)]
    ctimensec: u32,
    length: Option<u64>,
    #[serde(default)]
    rdev: u32,
    #[serde(default)]
    tier: u8,
}

impl AttrText<'_> {
    /// A node of one link and no content; `None` if there can be no such inode.
    fn node(&self) -> Option<Node> {
        let kind = KINDS.iter().find(|(_, name)| self.kind == *name)?.0;
        let time = |sec, nsec| (nsec < 1_000_000_000).then_some(Time { sec, nsec });
        let attr = Attr {
            flags: Flags(self.flags),
            kind,
            mode: Some(self.mode).filter(|mode| *mode <= 0o7777)?,
            uid: self.uid,
            gid: self.gid,
            atime: time(self.atime, self.atimensec)?,
            mtime: time(self.mtime, self.mtimensec)?,
            ctime: time(self.ctime, self.ctimensec)?,
            nlink: 1,
            length: match kind {
                // 2^57 is what a file can have; more is damage, and sums of it must not overflow.
                Kind::File => self.length.filter(|length| *length <= 1 << 57)?,
                Kind::Dir => 4096,
                _ => 0,
            },
            rdev: self.rdev,
            parent: Ino(0),
            access_acl: 0,
            default_acl: 0,
            tier: self.tier,
        };
        let ino = Some(Ino(self.inode)).filter(|ino| ino.0 > 0)?;
        Some(Node { ino, attr, target: Bytes::new(), xattrs: Vec::new(), access_acl: None, default_acl: None, chunks: Vec::new() })
    }
}

/// A chunk as it is written.
#[derive(Deserialize)]
struct ChunkText {
    index: u32,
    slices: Vec<Object<SliceText>>,
}

/// A slice as it is written.
#[derive(Deserialize)]
struct SliceText {
    #[serde(default)]
    pos: u32,
    #[serde(default)]
    id: u64,
    /// What `id` was called before 1.0.
    #[serde(default)]
    chunkid: u64,
    #[serde(default)]
    size: u32,
    #[serde(default)]
    off: u32,
    len: u32,
}

impl SliceText {
    fn record(&self) -> Option<SliceRecord> {
        let id = if self.id == 0 { self.chunkid } else { self.id };
        let record = SliceRecord { pos: self.pos, id, size: self.size, off: self.off, len: self.len };
        let fits = u64::from(record.pos) + u64::from(record.len) <= CHUNK_BYTES;
        let within = id == 0 || u64::from(record.off) + u64::from(record.len) <= u64::from(record.size);
        (fits && within).then_some(record)
    }
}

/// The chunks of a file that have slices.
fn chunks(written: &[Object<ChunkText>]) -> Option<Vec<(u32, Vec<SliceRecord>)>> {
    let written = written.iter().map(|Object(chunk)| chunk).filter(|chunk| !chunk.slices.is_empty());
    written.map(|chunk| Some((chunk.index, chunk.slices.iter().map(|Object(slice)| slice.record()).collect::<Option<_>>()?))).collect()
}

/// What is written with the names of its members; without this an array of their values would do, too.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = T;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(members))
            }
        }
        deserializer.deserialize_map(Members(PhantomData)).map(Object)
    }
}

/// A member of a node other than its attributes and entries.
fn add(node: &mut Node, member: &str, value: &Json) -> Option<()> {
    match member {
        "symlink" => {
            node.target = unescape(value.as_str()?).into();
            node.attr.length = node.target.len() as u64;
        }
        "xattrs" => {
            let pair = |pair: &Json| Some((Bytes::from(pair["name"].as_str()?.to_owned()), unescape(pair["value"].as_str()?).into()));
            node.xattrs = value.as_array()?.iter().map(pair).collect::<Option<_>>()?;
        }
        "posix_acl_access" => node.access_acl = Some(acl(value.as_object()?)?),
        "posix_acl_default" => node.default_acl = Some(acl(value.as_object()?)?),
        // Of a later version; the node is complete without it for whoever knows only this one.
        _ => {}
    }
    Some(())
}

/// The bytes of a rule (metadata §2.7).
fn acl(rule: &Map<String, Json>) -> Option<Bytes> {
    let mut bytes = BytesMut::new();
    for class in ["owner", "group", "mask", "other"] {
        bytes.put_u16(narrow(rule.get(class)?)?);
    }
    for named in ["users", "groups"] {
        let entries = match rule.get(named) {
            None | Some(Json::Null) => &[],
            Some(entries) => entries.as_array()?.as_slice(),
        };
        bytes.put_u32(u32::try_from(entries.len()).ok()?);
        for entry in entries {
            bytes.put_u32(narrow(&entry["id"])?);
            bytes.put_u16(narrow(&entry["perm"])?);
        }
    }
    Some(bytes.freeze())
}
