//! Record encodings (metadata §2.1–§2.8): the only code that knows how values are laid out. All integers are big-endian.

use crate::types::{Attr, Flags, Ino, Kind, SliceId, SliceRecord, Time};
use bytes::{BufMut, Bytes, BytesMut};

/// First byte of mtime; mtime and ctime are the 24 bytes from here.
pub const MTIME_AT: u32 = 23;
/// First byte of ctime.
pub const CTIME_AT: u32 = 35;
/// First byte of nlink.
pub const NLINK_AT: u32 = 47;
/// First byte of the length.
pub const LENGTH_AT: u32 = 51;
/// First byte of the parent inode; what follows it belongs to the identity of a directory, too.
pub const PARENT_AT: u32 = 63;
/// First byte after type, mode, uid and gid.
pub const OWNER_END: u32 = 11;

const PARENT_END: usize = 71;
/// End of the two ACL ids, where they are.
const ACL_END: usize = PARENT_END + 8;

/// An attribute record as stored, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The bytes of the store.
    pub bytes: Bytes,
    /// Decoded.
    pub attr: Attr,
}

impl Record {
    /// Decodes a stored record; `None` if it is damaged (too short, unknown type).
    pub fn decode(bytes: Bytes) -> Option<Record> {
        let attr = decode_attr(&bytes)?;
        Some(Record { bytes, attr })
    }

    /// The record with new attributes. What follows the ACL ids is kept byte for byte, so that trailing fields of a later format survive.
    pub fn rewrite(&self, attr: &Attr) -> Bytes {
        if attr.tier != self.attr.tier {
            return encode_attr(attr);
        }
        let has_ids = self.bytes.len() >= ACL_END;
        // Tier, whatever comes after it, and the pad byte; records before 1.0 may have none of them.
        let tail = self.bytes.get(if has_ids { ACL_END } else { PARENT_END }..).filter(|tail| !tail.is_empty()).unwrap_or(&[0]);
        let mut bytes = BytesMut::with_capacity(ACL_END + tail.len());
        put_fixed(&mut bytes, attr);
        // A long tail would be taken for ids.
        if attr.access_acl != 0 || attr.default_acl != 0 || tail.len() >= ACL_END - PARENT_END {
            bytes.put_u32(attr.access_acl);
            bytes.put_u32(attr.default_acl);
        }
        bytes.put_slice(tail);
        bytes.freeze()
    }
}

/// Encodes a new record: 72, 73, 80 or 81 bytes (metadata §2.1).
pub fn encode_attr(attr: &Attr) -> Bytes {
    let mut bytes = BytesMut::with_capacity(81);
    put_fixed(&mut bytes, attr);
    if attr.access_acl != 0 || attr.default_acl != 0 {
        bytes.put_u32(attr.access_acl);
        bytes.put_u32(attr.default_acl);
    }
    if attr.tier != 0 {
        bytes.put_u8(attr.tier);
    }
    bytes.put_u8(0);
    bytes.freeze()
}

fn put_fixed(bytes: &mut BytesMut, attr: &Attr) {
    bytes.put_u8(attr.flags.0);
    bytes.put_u16(u16::from(attr.kind as u8) << 12 | attr.mode & 0o7777);
    bytes.put_u32(attr.uid);
    bytes.put_u32(attr.gid);
    for time in [attr.atime, attr.mtime, attr.ctime] {
        put_time(bytes, time);
    }
    bytes.put_u32(attr.nlink);
    bytes.put_u64(attr.length);
    bytes.put_u32(attr.rdev);
    bytes.put_u64(attr.parent.0);
}

fn put_time(bytes: &mut BytesMut, time: Time) {
    bytes.put_i64(time.sec);
    bytes.put_u32(time.nsec);
}

/// The 24 bytes of mtime and ctime, both `time`: what touching a directory patches at `MTIME_AT`.
pub fn encode_touch(time: Time) -> Bytes {
    let mut bytes = BytesMut::with_capacity(24);
    put_time(&mut bytes, time);
    put_time(&mut bytes, time);
    bytes.freeze()
}

fn decode_attr(b: &[u8]) -> Option<Attr> {
    // Records before 1.0 end after rdev, some with the pad byte.
    if b.len() < PARENT_AT as usize {
        return None;
    }
    let type_mode = u16::from_be_bytes(b[1..3].try_into().ok()?);
    let u32_at = |at: usize| b.get(at..at + 4).and_then(|s| s.try_into().ok()).map(u32::from_be_bytes);
    let u64_at = |at: usize| b.get(at..at + 8).and_then(|s| s.try_into().ok()).map(u64::from_be_bytes);
    let time_at = |at: usize| Some(Time { sec: u64_at(at)? as i64, nsec: u32_at(at + 8)? });
    let (access_acl, default_acl, tail) = match (u32_at(71), u32_at(75)) {
        (Some(access), Some(default)) => (access, default, 79),
        _ => (0, 0, 71),
    };
    Some(Attr {
        flags: Flags(b[0]),
        kind: Kind::from_u8((type_mode >> 12) as u8)?,
        mode: type_mode & 0o7777,
        uid: u32_at(3)?,
        gid: u32_at(7)?,
        atime: time_at(11)?,
        mtime: time_at(23)?,
        ctime: time_at(35)?,
        nlink: u32_at(47)?,
        length: u64_at(51)?,
        rdev: u32_at(59)?,
        parent: Ino(u64_at(63).unwrap_or(0)),
        access_acl,
        default_acl,
        // The pad byte of a record without tier reads as tier 0.
        tier: b.get(tail).copied().unwrap_or(0),
    })
}

/// A directory entry: 9 bytes (metadata §2.2).
pub fn encode_entry(kind: Kind, ino: Ino) -> Bytes {
    let mut bytes = BytesMut::with_capacity(9);
    bytes.put_u8(kind as u8);
    bytes.put_u64(ino.0);
    bytes.freeze()
}

/// `None` if the value is not a directory entry.
pub fn decode_entry(b: &[u8]) -> Option<(Kind, Ino)> {
    let (kind, ino) = b.split_first()?;
    Some((Kind::from_u8(*kind)?, Ino(u64::from_be_bytes(ino.try_into().ok()?))))
}

/// A slice record: 24 bytes (metadata §2.3).
pub fn encode_slice(record: &SliceRecord) -> Bytes {
    let mut bytes = BytesMut::with_capacity(24);
    bytes.put_u32(record.pos);
    bytes.put_u64(record.id);
    bytes.put_u32(record.size);
    bytes.put_u32(record.off);
    bytes.put_u32(record.len);
    bytes.freeze()
}

/// `None` if the element is not a slice record of a 64 MiB chunk: another length, or ends beyond the chunk or the slice.
pub fn decode_slice(b: &[u8]) -> Option<SliceRecord> {
    let b: &[u8; 24] = b.try_into().ok()?;
    let u32_at = |at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let id = u64::from_be_bytes(b[4..12].try_into().ok()?);
    let record = SliceRecord { pos: u32_at(0), id, size: u32_at(12), off: u32_at(16), len: u32_at(20) };
    let fits = u64::from(record.pos) + u64::from(record.len) <= crate::types::CHUNK_BYTES;
    let within = id == 0 || u64::from(record.off) + u64::from(record.len) <= u64::from(record.size);
    (fits && within).then_some(record)
}

/// The value of `delSlices`: ids and sizes of slices, 12 bytes each (metadata §2.5).
pub fn encode_slices(slices: impl IntoIterator<Item = (SliceId, u32)>) -> Bytes {
    let mut bytes = BytesMut::new();
    for (id, size) in slices {
        bytes.put_u64(id);
        bytes.put_u32(size);
    }
    bytes.freeze()
}

/// `None` if the value is damaged.
pub fn decode_slices(b: &[u8]) -> Option<Vec<(SliceId, u32)>> {
    let (pairs, rest) = b.as_chunks::<12>();
    let pair = |pair: &[u8; 12]| Some((u64::from_be_bytes(pair[..8].try_into().ok()?), u32::from_be_bytes(pair[8..].try_into().ok()?)));
    if rest.is_empty() { pairs.iter().map(pair).collect() } else { None }
}

/// A quota: most bytes and inodes, 16 bytes (metadata §2.6).
pub fn encode_quota(space: i64, inodes: i64) -> Bytes {
    let mut bytes = BytesMut::with_capacity(16);
    bytes.put_i64(space);
    bytes.put_i64(inodes);
    bytes.freeze()
}

/// `None` if the value is damaged.
pub fn decode_quota(b: &[u8]) -> Option<(i64, i64)> {
    let b: &[u8; 16] = b.try_into().ok()?;
    let (space, inodes) = b.split_at(8);
    Some((i64::from_be_bytes(space.try_into().ok()?), i64::from_be_bytes(inodes.try_into().ok()?)))
}

/// A POSIX lock of one owner (metadata §2.8). `end` is inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRecord {
    /// Exclusive (`F_WRLK`) or shared (`F_RDLCK`).
    pub exclusive: bool,
    /// Process that holds it.
    pub pid: u32,
    /// First byte.
    pub start: u64,
    /// Last byte; 2^63 − 1 means to the end.
    pub end: u64,
}

/// Encodes the records of one owner.
pub fn encode_locks(records: &[LockRecord]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(records.len() * 24);
    for r in records {
        bytes.put_u32(u32::from(r.exclusive));
        bytes.put_u32(r.pid);
        bytes.put_u64(r.start);
        bytes.put_u64(r.end);
    }
    bytes.freeze()
}

/// `None` if the value is damaged.
pub fn decode_locks(b: &[u8]) -> Option<Vec<LockRecord>> {
    let (records, rest) = b.as_chunks::<24>();
    if !rest.is_empty() {
        return None;
    }
    records
        .iter()
        .map(|r| {
            Some(LockRecord {
                exclusive: match u32::from_be_bytes(r[..4].try_into().ok()?) {
                    0 => false,
                    1 => true,
                    _ => return None,
                },
                pid: u32::from_be_bytes(r[4..8].try_into().ok()?),
                start: u64::from_be_bytes(r[8..16].try_into().ok()?),
                end: u64::from_be_bytes(r[16..24].try_into().ok()?),
            })
        })
        .collect()
}

/// A decimal counter or field; absent reads as 0, damage as `None`.
pub fn decode_decimal(value: Option<&[u8]>) -> Option<i64> {
    match value {
        None => Some(0),
        Some(text) => std::str::from_utf8(text).ok()?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::fuzz::decoder;

    fn golden() -> Attr {
        Attr {
            flags: Flags(1),
            kind: Kind::File,
            mode: 0o4755,
            uid: 1000,
            gid: 1001,
            atime: Time { sec: 1_700_000_000, nsec: 3 },
            mtime: Time { sec: 1_700_000_001, nsec: 4 },
            ctime: Time { sec: 1_700_000_002, nsec: 5 },
            nlink: 1,
            length: 12_345_678_901,
            rdev: 0,
            parent: Ino(0x7FFF_FFFF_1000_0001),
            access_acl: 0,
            default_acl: 0,
            tier: 0,
        }
    }

    const FIXED: &str = "0119ed000003e8000003e9000000006553f10000000003000000006553f10100000004000000006553f10200000005\
                         0000000100000002dfdc1c35000000007fffffff10000001";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn attribute_records_are_those_of_the_specification() {
        let table = [
            (golden(), "00"),
            (Attr { access_acl: 7, ..golden() }, "000000070000000000"),
            (Attr { tier: 2, ..golden() }, "0200"),
            (Attr { access_acl: 7, tier: 2, ..golden() }, "00000007000000000200"),
        ];
        for (attr, tail) in table {
            let bytes = encode_attr(&attr);
            assert_eq!(hex(&bytes), format!("{FIXED}{tail}"));
            assert_eq!(Record::decode(bytes).expect("decodes").attr, attr);
        }
    }

    #[test]
    fn old_and_future_records() {
        let plain = encode_attr(&golden());
        for short in [63, 64] {
            let old = Record::decode(plain.slice(..short)).expect("records before 1.0 decode");
            assert_eq!(old.attr, Attr { parent: Ino(0), ..golden() });
            assert_eq!(old.rewrite(&old.attr).len(), 72);
        }
        assert_eq!(Record::decode(plain.slice(..62)), None);
        let mut future = plain.to_vec();
        future.extend_from_slice(b"later");
        let record = Record::decode(future.into()).expect("decodes");
        let rewritten = record.rewrite(&Attr { nlink: 9, ..record.attr.clone() });
        assert!(rewritten.ends_with(b"later"), "bytes we do not know are kept");
        // ACLs come and go, the tier and what follows it stay.
        let long = [&encode_attr(&Attr { tier: 3, ..golden() })[..], b"a later field"].concat();
        for stored in [encode_attr(&golden()), encode_attr(&Attr { tier: 2, ..golden() }), record.bytes.clone(), long.into()] {
            let plain = Record::decode(stored.clone()).expect("decodes");
            let with = Record::decode(plain.rewrite(&Attr { access_acl: 7, ..plain.attr.clone() })).expect("decodes");
            assert_eq!((with.attr.access_acl, with.attr.tier), (7, plain.attr.tier));
            let without = Record::decode(with.rewrite(&Attr { access_acl: 0, ..with.attr.clone() })).expect("decodes");
            assert_eq!(without.attr, Attr { access_acl: 0, ..plain.attr.clone() });
            let tail = if plain.bytes.len() >= ACL_END { &stored[ACL_END..] } else { &stored[PARENT_END..] };
            assert!(with.bytes.ends_with(tail) && without.bytes.ends_with(tail));
        }
        for (attr, len) in [(golden(), 72), (Attr { access_acl: 7, ..golden() }, 80), (Attr { tier: 1, ..golden() }, 73)] {
            let record = Record::decode(encode_attr(&attr)).expect("decodes");
            assert_eq!(record.rewrite(&attr).len(), len);
        }
        let short = Record::decode(plain.slice(..71)).expect("decodes");
        assert_eq!(short.rewrite(&short.attr), plain);
    }

    #[test]
    fn slices_entries_and_locks() {
        let record = SliceRecord { pos: 4096, id: 0x0102_0304_0506_0708, size: 65536, off: 16, len: 1024 };
        assert_eq!(hex(&encode_slice(&record)), "000010000102030405060708000100000000001000000400");
        assert_eq!(decode_slice(&encode_slice(&record)), Some(record));
        assert_eq!(decode_slice(&encode_slice(&SliceRecord { off: 65000, ..record })), None, "reaches past its slice");
        assert_eq!(decode_entry(&encode_entry(Kind::Dir, Ino(7))), Some((Kind::Dir, Ino(7))));
        assert_eq!(decode_entry(b"\x09\0\0\0\0\0\0\0\x01"), None);
        let lock = LockRecord { exclusive: true, pid: 42, start: 0, end: i64::MAX as u64 };
        assert_eq!(hex(&encode_locks(&[lock])), "000000010000002a00000000000000007fffffffffffffff");
        assert_eq!(decode_locks(&encode_locks(&[lock])), Some(vec![lock]));
    }

    #[test]
    fn no_bytes_upset_the_decoders() {
        let acls = Attr { access_acl: 7, default_acl: 8, tier: 2, ..golden() };
        let mut records: Vec<Vec<u8>> =
            [golden(), acls.clone(), Attr { kind: Kind::Dir, tier: 1, ..golden() }].iter().map(|attr| encode_attr(attr).to_vec()).collect();
        records.push([&encode_attr(&acls)[..], b"of later clients"].concat());
        records.push(records[0][..PARENT_AT as usize].to_vec());
        decoder(&records, |bytes| {
            let Some(record) = Record::decode(Bytes::copy_from_slice(bytes)) else { return };
            assert_eq!(decode_attr(&encode_attr(&record.attr)), Some(record.attr.clone()));
            assert_eq!(decode_attr(&record.rewrite(&record.attr)), Some(record.attr.clone()));
            let changed = Attr { nlink: 77, length: 5, ..record.attr.clone() };
            assert_eq!(decode_attr(&record.rewrite(&changed)), Some(changed));
        });
        decoder(&[encode_entry(Kind::Dir, Ino(7)).into(), encode_entry(Kind::File, Ino(u64::MAX)).into()], |bytes| {
            if let Some((kind, ino)) = decode_entry(bytes) {
                assert_eq!(encode_entry(kind, ino), bytes);
            }
        });
        let slice = SliceRecord { pos: 4096, id: 5, size: 65536, off: 16, len: 1024 };
        decoder(&[encode_slice(&slice).into(), encode_slice(&SliceRecord { id: 0, ..slice }).into()], |bytes| {
            if let Some(slice) = decode_slice(bytes) {
                assert_eq!(encode_slice(&slice), bytes);
                assert!(u64::from(slice.pos) + u64::from(slice.len) <= crate::types::CHUNK_BYTES);
            }
        });
        decoder(&[encode_slices([(1, 2), (3, 4)]).into(), Vec::new()], |bytes| {
            if let Some(slices) = decode_slices(bytes) {
                assert_eq!(encode_slices(slices), bytes);
            }
        });
        decoder(&[encode_quota(1 << 40, -1).into()], |bytes| {
            if let Some((space, inodes)) = decode_quota(bytes) {
                assert_eq!(encode_quota(space, inodes), bytes);
            }
        });
        let lock = LockRecord { exclusive: true, pid: 42, start: 0, end: i64::MAX as u64 };
        decoder(&[encode_locks(&[lock, LockRecord { exclusive: false, ..lock }]).into()], |bytes| {
            if let Some(locks) = decode_locks(bytes) {
                assert_eq!(encode_locks(&locks), bytes);
            }
        });
        decoder(&[b"123".to_vec(), b"-9223372036854775808".to_vec()], |bytes| {
            if let Some(number) = decode_decimal(Some(bytes)) {
                assert_eq!(decode_decimal(Some(number.to_string().as_bytes())), Some(number));
            }
        });
    }
}
