//! The binary form of a volume's metadata, read: segments become writes of the raw records.
//!
//! Every write says what a key is, not what changes about it, so an item that is there twice does no harm.

use super::binary::{
    ACL, CHANGE_LOG, CHUNK, COUNTER, DEL_FILE, EDGE, FORMAT, KINDS, Kind, MAGIC, NODE, PARENT, QUOTA, QUOTA_FIELDS, SLICE_REF, STAT,
    SUSTAINED, SYMLINK, VERSION, XATTR, counters, quota_keys,
};
use super::wire::{Field, bytes, fields, number, numbers};
use crate::meta::codec::{Record, decode_slice, encode_entry};
use crate::meta::key;
use crate::meta::setting::Setting;
use crate::meta::store::Write;
use crate::types::{self, Ino, Name};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use tracing::warn;

/// Largest segment and footer read. The reference puts ten thousand items into one, so that megabytes are usual.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// A reader of a dump.
pub struct BinaryReader<R> {
    input: R,
    at: u64,
    /// Items by the number of their kind, to be compared with the footer.
    items: BTreeMap<u32, u64>,
    done: bool,
}

/// What a segment holds.
pub enum Part {
    /// The format of the volume.
    Setting(Setting),
    /// Changes of an empty store, and the highest ACL id among them.
    Writes {
        /// To be done in any order.
        writes: Vec<Write>,
        /// 0 if there is none.
        acl_max: u64,
    },
}

impl<R: BufRead> BinaryReader<R> {
    /// At the start of a dump.
    pub fn new(input: R) -> BinaryReader<R> {
        BinaryReader { input, at: 0, items: BTreeMap::new(), done: false }
    }

    /// The next segment, `None` at the end of a complete dump.
    pub fn next(&mut self) -> Result<Option<Part>, String> {
        if self.done {
            return Ok(None);
        }
        let at = self.at;
        let number = u32::from_be_bytes(self.array()?);
        if number == MAGIC {
            self.footer()?;
            self.done = true;
            return Ok(None);
        }
        let kind = *KINDS.iter().find(|kind| kind.number == number).ok_or_else(|| format!("byte {at}: no segment begins here"))?;
        let length = u64::from_be_bytes(self.array()?);
        let body = self.take(length)?;
        let (part, items) = segment(kind, &body).map_err(|why| format!("byte {at}: {why} in a segment of kind {}", kind.name))?;
        *self.items.entry(number).or_default() += items;
        Ok(Some(part))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        self.input.read_exact(&mut array).map_err(|e| self.cut(&e))?;
        self.at += N as u64;
        Ok(array)
    }

    fn take(&mut self, length: u64) -> Result<Vec<u8>, String> {
        if length > SEGMENT_BYTES_MAX {
            return Err(format!("byte {}: a segment of {length} bytes", self.at));
        }
        let mut body = Vec::new();
        self.input.by_ref().take(length).read_to_end(&mut body).map_err(|e| self.cut(&e))?;
        if body.len() as u64 != length {
            return Err(format!("byte {}: it ends in the middle", self.at + body.len() as u64));
        }
        self.at += length;
        Ok(body)
    }

    fn cut(&self, error: &std::io::Error) -> String {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => format!("byte {}: it ends in the middle", self.at),
            _ => format!("byte {}: cannot read on: {error}", self.at),
        }
    }

    /// Checks the rest of the file: the footer, and that it counts what was there.
    fn footer(&mut self) -> Result<(), String> {
        let at = self.at;
        let mut rest = Vec::new();
        self.input.by_ref().take(SEGMENT_BYTES_MAX).read_to_end(&mut rest).map_err(|e| self.cut(&e))?;
        let wrong = |why: &str| format!("byte {at}: the footer {why}");
        let (footer, length) = rest.split_last_chunk::<8>().ok_or_else(|| wrong("is cut"))?;
        if u64::from_be_bytes(*length) != footer.len() as u64 {
            return Err(wrong("has another length than it says"));
        }
        let footer = fields(footer).ok_or_else(|| wrong("is damaged"))?;
        if number(&footer, 1) != Some(MAGIC.into()) {
            return Err(wrong("is that of another format"));
        }
        if number(&footer, 2) != Some(VERSION) {
            return Err(wrong("is of another version than 1"));
        }
        for (_, info) in footer.iter().filter(|(field, _)| *field == 3) {
            let entry = info.bytes().and_then(fields).ok_or_else(|| wrong("is damaged"))?;
            let info = bytes(&entry, 2).and_then(fields).ok_or_else(|| wrong("is damaged"))?;
            let (name, counted) = (bytes(&entry, 1).unwrap_or_default(), number(&info, 2));
            let kind = KINDS.iter().find(|kind| kind.name.as_bytes() == name).ok_or_else(|| wrong("names an unknown kind"))?;
            if counted != Some(self.items.remove(&kind.number).unwrap_or_default()) {
                return Err(wrong(&format!("counts other items of kind {} than there are", kind.name)));
            }
        }
        match self.items.values().all(|items| *items == 0) {
            true => Ok(()),
            false => Err(wrong("does not count all kinds of items")),
        }
    }
}

/// Reads a segment: what it holds and how many items.
fn segment(kind: Kind, body: &[u8]) -> Result<(Part, u64), String> {
    let body = fields(body).ok_or("no message")?;
    if kind == FORMAT {
        let setting = bytes(&body, 1).ok_or("no setting")?;
        return Ok((Part::Setting(Setting::parse(setting)?), 1));
    }
    let (mut writes, mut acl_max, mut items) = (Vec::new(), 0, 0);
    for (field, item) in &body {
        let quota_type = QUOTA_FIELDS.iter().position(|quota| kind == QUOTA && quota == field);
        if *field != kind.field && quota_type.is_none() {
            return Err(format!("a field {field}, which does not belong there,"));
        }
        let item = item.bytes().and_then(fields).ok_or("no message")?;
        items += 1;
        let done = match quota_type {
            // In the first list the type is a field.
            Some(0) => number(&item, 6).and_then(|kind| quota(usize::try_from(kind).ok()?, &item, &mut writes)),
            Some(kind) => quota(kind, &item, &mut writes),
            None => write(kind, &item, &mut writes),
        };
        done.ok_or_else(|| format!("item {items} is damaged"))?;
        if kind == ACL {
            acl_max = acl_max.max(number(&item, 1).unwrap_or_default());
        }
    }
    Ok((Part::Writes { writes, acl_max }, items))
}

/// The writes of one item; `None` if it is damaged.
fn write(kind: Kind, item: &[(u32, Field<'_>)], writes: &mut Vec<Write>) -> Option<()> {
    let num = |field| number(item, field);
    let raw = |field| bytes(item, field);
    let owned = |field| bytes(item, field).map(Bytes::copy_from_slice);
    let signed = |field| number(item, field).map(u64::cast_signed);
    let ino = |field| number(item, field).filter(|ino| *ino > 0).map(Ino);
    let size = |field| number(item, field).and_then(|size| u32::try_from(size).ok());
    match kind {
        COUNTER => {
            let name = raw(1)?;
            match counters().into_iter().find(|(known, ..)| known.as_bytes() == name) {
                Some((_, key, more)) => writes.push(Write::Set(key, key::decimal(signed(2)?.checked_sub(more)?))),
                None => warn!("the dump has a counter {:?}, which is not known and not loaded", String::from_utf8_lossy(name)),
            }
        }
        NODE => {
            Record::decode(owned(2)?)?;
            writes.push(Write::Set(key::inode(ino(1)?), owned(2)?));
        }
        EDGE => {
            let name = Name::new(raw(3)?).ok()?;
            let kind = types::Kind::from_u8(u8::try_from(num(4)?).ok()?)?;
            writes.push(Write::HSet(key::dir(ino(1)?), key::name(&name), encode_entry(kind, ino(2)?)));
        }
        CHUNK => {
            let (records, rest) = raw(3)?.as_chunks::<24>();
            if records.is_empty() || !rest.is_empty() || !records.iter().all(|record| decode_slice(record).is_some()) {
                return None;
            }
            let key = key::chunk(ino(1)?, size(2)?);
            writes.push(Write::Del(key.clone()));
            writes.push(Write::RPush(key, records.iter().map(|record| Bytes::copy_from_slice(record)).collect()));
        }
        SLICE_REF => writes.push(Write::HSet(key::SLICE_REF, key::slice_ref(num(1)?, size(2)?), key::decimal(signed(3)?.checked_sub(1)?))),
        SYMLINK => writes.push(Write::Set(key::symlink(ino(1)?), owned(2)?)),
        SUSTAINED => {
            let sid = num(1)?;
            writes.extend(numbers(item, 2)?.into_iter().map(|ino| Write::SAdd(key::sustained(sid), key::decimal(ino))));
        }
        DEL_FILE => writes.push(Write::ZAdd(key::DELFILES, signed(3)?, key::delfile(ino(1)?, num(2)?))),
        XATTR => writes.push(Write::HSet(key::xattr(ino(1)?), owned(2)?, owned(3)?)),
        ACL => writes.push(Write::HSet(key::ACL, key::decimal(size(1)?), owned(2).filter(|rule| super::json::acl_json(rule).is_some())?)),
        STAT => {
            let dir = key::decimal(ino(1)?);
            for (hash, field) in [(key::DIR_DATA_LENGTH, 2), (key::DIR_USED_SPACE, 3), (key::DIR_USED_INODES, 4)] {
                writes.push(Write::HSet(hash, dir.clone(), key::decimal(signed(field)?)));
            }
        }
        PARENT => writes.push(Write::HSet(key::parents(ino(1)?), key::decimal(num(2)?), key::decimal(signed(3)?))),
        // Of the volume that the log was written for.
        CHANGE_LOG => {}
        _ => return None,
    }
    Some(())
}

fn quota(kind: usize, item: &[(u32, Field<'_>)], writes: &mut Vec<Write>) -> Option<()> {
    let signed = |field| number(item, field).map(u64::cast_signed);
    let [limits, space, inodes] = quota_keys().into_iter().nth(kind)?;
    let id = key::decimal(number(item, 1)?);
    let bytes: Vec<u8> = [signed(2)?, signed(3)?].iter().flat_map(|limit| limit.to_be_bytes()).collect();
    writes.push(Write::HSet(limits, id.clone(), bytes.into()));
    writes.push(Write::HSet(space, id.clone(), key::decimal(signed(4)?)));
    writes.push(Write::HSet(inodes, id, key::decimal(signed(5)?)));
    Some(())
}
