//! `Rule`: one POSIX ACL; how it is stored (metadata §2.7), how the kernel sends it (§11.6), what it means for a mode.

use bytes::{BufMut, Bytes, BytesMut};

/// Permission bits of one entry: read 4, write 2, execute 1.
type Perm = u16;

/// What a stored rule has for an entry that is not there.
const ABSENT: u16 = 0xFFFF;
/// Version of the form the kernel sends.
const WIRE_VERSION: u32 = 2;
/// Bytes of an entry as the kernel sends it.
const WIRE_ENTRY: usize = 8;
/// What the kernel sends where an entry needs no id.
const WIRE_NO_ID: u32 = u32::MAX;
const PERM_BITS: u16 = 7;

const TAG_OWNER: u16 = 0x01;
const TAG_USER: u16 = 0x02;
const TAG_GROUP: u16 = 0x04;
const TAG_NAMED_GROUP: u16 = 0x08;
const TAG_MASK: u16 = 0x10;
const TAG_OTHER: u16 = 0x20;

/// Named entries of one rule, of either kind; a value of 64 KiB holds no more.
const NAMED_MAX: usize = 8192;

/// One ACL. Equal rules are stored once and shared by their id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The owner.
    pub owner: Option<Perm>,
    /// The owning group.
    pub group: Option<Perm>,
    /// The most that named entries and the owning group get.
    pub mask: Option<Perm>,
    /// Everybody else.
    pub other: Option<Perm>,
    /// Named users, in the order given.
    pub users: Vec<(u32, Perm)>,
    /// Named groups, in the order given.
    pub groups: Vec<(u32, Perm)>,
}

/// Which of the two ACLs of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AclKind {
    /// Who may do what.
    Access,
    /// What new things in a directory get.
    Default,
}

impl AclKind {
    /// The attribute under which the kernel asks for it.
    pub fn of_xattr(name: &[u8]) -> Option<AclKind> {
        match name {
            b"system.posix_acl_access" => Some(AclKind::Access),
            b"system.posix_acl_default" => Some(AclKind::Default),
            _ => None,
        }
    }

    /// See `of_xattr`.
    pub fn xattr(self) -> &'static [u8] {
        match self {
            AclKind::Access => b"system.posix_acl_access",
            AclKind::Default => b"system.posix_acl_default",
        }
    }
}

impl Rule {
    /// Whether it has no entry at all.
    pub fn is_empty(&self) -> bool {
        *self == Rule::default()
    }

    /// Whether a mode says as much: neither named entries nor a mask.
    pub fn is_minimal(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty() && self.mask.is_none()
    }

    /// The bytes of the hash `acl`.
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(16 + 6 * (self.users.len() + self.groups.len()));
        for perm in [self.owner, self.group, self.mask, self.other] {
            bytes.put_u16(perm.unwrap_or(ABSENT));
        }
        for named in [&self.users, &self.groups] {
            bytes.put_u32(u32::try_from(named.len()).expect("no more than NAMED_MAX"));
            for (id, perm) in named {
                bytes.put_u32(*id);
                bytes.put_u16(*perm);
            }
        }
        bytes.freeze()
    }

    /// `None` if the value is damaged.
    pub fn decode(bytes: &[u8]) -> Option<Rule> {
        let mut at = Reader(bytes);
        let mut perm = || at.u16().map(|perm| (perm != ABSENT).then_some(perm & PERM_BITS));
        let (owner, group, mask, other) = (perm()?, perm()?, perm()?, perm()?);
        let users = at.named()?;
        let groups = at.named()?;
        at.0.is_empty().then_some(Rule { owner, group, mask, other, users, groups })
    }

    /// The value of the attribute that the kernel reads and writes.
    pub fn to_wire(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(4 + WIRE_ENTRY * (4 + self.users.len() + self.groups.len()));
        bytes.put_u32_le(WIRE_VERSION);
        let mut entry = |tag: u16, perm: Perm, id: u32| {
            bytes.put_u16_le(tag);
            bytes.put_u16_le(perm);
            bytes.put_u32_le(id);
        };
        let single = |tag: u16, perm: Option<Perm>, entry: &mut dyn FnMut(u16, Perm, u32)| {
            if let Some(perm) = perm {
                entry(tag, perm, WIRE_NO_ID);
            }
        };
        single(TAG_OWNER, self.owner, &mut entry);
        self.users.iter().for_each(|(id, perm)| entry(TAG_USER, *perm, *id));
        single(TAG_GROUP, self.group, &mut entry);
        self.groups.iter().for_each(|(id, perm)| entry(TAG_NAMED_GROUP, *perm, *id));
        single(TAG_MASK, self.mask, &mut entry);
        single(TAG_OTHER, self.other, &mut entry);
        bytes.freeze()
    }

    /// `None` if the value is not an ACL: wrong length or version, an entry twice or unknown, named entries without a mask.
    pub fn of_wire(bytes: &[u8]) -> Option<Rule> {
        if bytes.is_empty() {
            return Some(Rule::default());
        }
        let (head, entries) = bytes.split_first_chunk::<4>()?;
        let (entries, rest) = entries.as_chunks::<WIRE_ENTRY>();
        if u32::from_le_bytes(*head) != WIRE_VERSION || !rest.is_empty() {
            return None;
        }
        let mut rule = Rule::default();
        for entry in entries {
            let tag = u16::from_le_bytes([entry[0], entry[1]]);
            let perm = u16::from_le_bytes([entry[2], entry[3]]);
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            if perm & !PERM_BITS != 0 {
                return None;
            }
            let single = match tag {
                TAG_OWNER => &mut rule.owner,
                TAG_GROUP => &mut rule.group,
                TAG_MASK => &mut rule.mask,
                TAG_OTHER => &mut rule.other,
                TAG_USER | TAG_NAMED_GROUP => {
                    let named = if tag == TAG_USER { &mut rule.users } else { &mut rule.groups };
                    if named.len() >= NAMED_MAX || named.iter().any(|(other, _)| *other == id) {
                        return None;
                    }
                    named.push((id, perm));
                    continue;
                }
                _ => return None,
            };
            if single.replace(perm).is_some() {
                return None;
            }
        }
        let needs_mask = !rule.users.is_empty() || !rule.groups.is_empty();
        (!needs_mask || rule.mask.is_some()).then_some(rule)
    }

    /// Fills owner, group and other from a mode where they are not there.
    pub fn filled(mut self, mode: u16) -> Rule {
        self.owner.get_or_insert(mode >> 6 & PERM_BITS);
        self.group.get_or_insert(mode >> 3 & PERM_BITS);
        self.other.get_or_insert(mode & PERM_BITS);
        self
    }

    /// The nine permission bits an inode with this access ACL shows; the group's are the mask, if there is one.
    pub fn mode_bits(&self) -> u16 {
        let group = self.mask.or(self.group).unwrap_or(0);
        (self.owner.unwrap_or(0) & PERM_BITS) << 6 | (group & PERM_BITS) << 3 | self.other.unwrap_or(0) & PERM_BITS
    }

    /// The access ACL after a chmod.
    pub fn with_mode(&self, mode: u16) -> Rule {
        let (owner, group, other) = (Some(mode >> 6 & PERM_BITS), Some(mode >> 3 & PERM_BITS), Some(mode & PERM_BITS));
        // Where there is a mask, chmod sets that: named entries shall not get more than the group's bits say.
        match self.mask {
            Some(_) => Rule { owner, mask: group, other, ..self.clone() },
            None => Rule { owner, group, other, ..self.clone() },
        }
    }

    /// What something created with `mode` under this default ACL gets: its access ACL, `None` if its mode says it all, and its mode. The
    /// umask does not count (metadata §11.3).
    pub fn inherited(&self, mode: u16) -> (Option<Rule>, u16) {
        if self.is_minimal() {
            return (None, mode & (0o7000 | self.mode_bits()));
        }
        let keep = |perm: Option<Perm>, shift: u16| Some(perm.unwrap_or(PERM_BITS) & mode >> shift & PERM_BITS);
        let rule = Rule { owner: keep(self.owner, 6), mask: keep(self.mask, 3), other: keep(self.other, 0), ..self.clone() };
        let mode = mode & 0o7000 | rule.mode_bits();
        (Some(rule), mode)
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn u16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*bytes))
    }

    fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*bytes))
    }

    fn named(&mut self) -> Option<Vec<(u32, Perm)>> {
        let count = self.u32()?;
        // Six bytes each: more than there are is damage, and must not make us allocate.
        if count as usize > self.0.len() / 6 {
            return None;
        }
        (0..count).map(|_| Some((self.u32()?, self.u16()? & PERM_BITS))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden() -> Rule {
        Rule { owner: Some(7), group: Some(5), mask: Some(7), other: Some(0), users: vec![(1000, 6)], groups: vec![(2000, 4)] }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn the_stored_form_is_that_of_the_specification() {
        let bytes = golden().encode();
        assert_eq!(hex(&bytes), "000700050007000000000001000003e8000600000001000007d00004");
        assert_eq!(Rule::decode(&bytes), Some(golden()));
        let minimal = Rule { mask: None, users: vec![], groups: vec![], ..golden() };
        assert_eq!(hex(&minimal.encode()), "00070005ffff00000000000000000000");
        assert_eq!(Rule::decode(&minimal.encode()), Some(minimal));
        for cut in 0..bytes.len() {
            assert_eq!(Rule::decode(&bytes[..cut]), None, "{cut}");
        }
        assert_eq!(Rule::decode(&[0, 7, 0, 7, 0, 7, 0, 7, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]), None);
    }

    #[test]
    fn the_kernels_form_there_and_back() {
        let wire = golden().to_wire();
        let want = "02000000\
                    01000700ffffffff 02000600e8030000 04000500ffffffff 08000400d0070000 10000700ffffffff 20000000ffffffff";
        assert_eq!(hex(&wire), want.replace(' ', ""));
        assert_eq!(Rule::of_wire(&wire), Some(golden()));
        assert_eq!(Rule::of_wire(b""), Some(Rule::default()));
        let entry = |tag: u16, perm: u16, id: u32| {
            let mut bytes = tag.to_le_bytes().to_vec();
            bytes.extend(perm.to_le_bytes());
            bytes.extend(id.to_le_bytes());
            bytes
        };
        let of = |version: u32, entries: &[Vec<u8>]| Rule::of_wire(&[version.to_le_bytes().to_vec(), entries.concat()].concat());
        assert!(of(2, &[entry(1, 7, 0)]).is_some());
        for (version, entries) in [
            (1, vec![entry(1, 7, 0)]),
            (2, vec![entry(1, 7, 0), entry(1, 6, 0)]),
            (2, vec![entry(3, 7, 0)]),
            (2, vec![entry(1, 8, 0)]),
            (2, vec![entry(2, 7, 5)]),
            (2, vec![entry(0x10, 7, 0), entry(2, 7, 5), entry(2, 6, 5)]),
            (2, vec![vec![1, 0, 7]]),
        ] {
            assert_eq!(of(version, &entries), None, "{entries:?}");
        }
    }

    #[test]
    fn modes() {
        assert_eq!(golden().mode_bits(), 0o770);
        let after = golden().with_mode(0o641);
        assert_eq!((after.owner, after.group, after.mask, after.other), (Some(6), Some(5), Some(4), Some(1)));
        let minimal = Rule { mask: None, users: vec![], groups: vec![], ..golden() };
        assert_eq!(minimal.with_mode(0o641).group, Some(4));
        assert_eq!(minimal.inherited(0o2666), (None, 0o2640));
        let (rule, mode) = golden().inherited(0o1664);
        let rule = rule.unwrap();
        assert_eq!((rule.owner, rule.group, rule.mask, rule.other, mode), (Some(6), Some(5), Some(6), Some(0), 0o1660));
        assert_eq!(rule.users, golden().users);
        assert_eq!(Rule { mask: Some(4), users: vec![(1, 2)], ..Rule::default() }.filled(0o751).mode_bits(), 0o741);
    }

    #[test]
    fn no_bytes_upset_the_decoders() {
        let rule =
            Rule { owner: Some(7), group: Some(5), mask: Some(6), other: Some(1), users: vec![(5, 4), (6, 2)], groups: vec![(9, 7)] };
        let plain = Rule { mask: None, users: Vec::new(), groups: Vec::new(), ..rule.clone() };
        crate::env::fuzz::decoder(&[rule.encode().into(), plain.encode().into()], |bytes| {
            if let Some(rule) = Rule::decode(bytes) {
                assert_eq!(Rule::decode(&rule.encode()), Some(rule));
            }
        });
        crate::env::fuzz::decoder(&[rule.to_wire().into(), plain.to_wire().into(), Vec::new()], |bytes| {
            if let Some(rule) = Rule::of_wire(bytes) {
                assert_eq!(Rule::decode(&rule.encode()), Some(rule.clone()));
                if !bytes.is_empty() {
                    assert_eq!(Rule::of_wire(&rule.to_wire()), Some(rule));
                }
            }
        });
    }
}
