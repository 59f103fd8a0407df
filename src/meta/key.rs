//! The names of keys (metadata §2). Nothing else in the program spells one.

use crate::meta::store::{Key, Query};
use crate::types::{Ino, Name, SliceId};
use bytes::Bytes;

macro_rules! fixed {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        $($(#[$doc])* pub const $name: Key = Bytes::from_static($text.as_bytes());)*
    };
}

fixed! {
    /// The volume format document.
    SETTING = "setting",
    /// Highest inode number handed out.
    NEXT_INODE = "nextinode",
    /// Highest slice id handed out.
    NEXT_CHUNK = "nextchunk",
    /// Highest session id used.
    NEXT_SESSION = "nextsession",
    /// Highest ordinal of a directory of the trash.
    NEXT_TRASH = "nextTrash",
    /// Bytes used, 4 KiB-rounded per inode.
    USED_SPACE = "usedSpace",
    /// Inodes used.
    TOTAL_INODES = "totalInodes",
    /// Sorted set: session id → expiry.
    ALL_SESSIONS = "allSessions",
    /// Hash: session id → session document.
    SESSION_INFOS = "sessionInfos",
    /// Sorted set of deleted files.
    DELFILES = "delfiles",
    /// Sorted set: directories of clones that are not complete and have no name → since when, in unix seconds.
    DETACHED = "detachedNodes",
    /// Hash of slices whose deletion is delayed.
    DEL_SLICES = "delSlices",
    /// Hash: `k{id}_{size}` → references − 1.
    SLICE_REF = "sliceRef",
    /// Hash: directory → bytes of its direct children.
    DIR_DATA_LENGTH = "dirDataLength",
    /// Hash: directory → space of its direct children.
    DIR_USED_SPACE = "dirUsedSpace",
    /// Hash: directory → number of its direct children.
    DIR_USED_INODES = "dirUsedInodes",
    /// Hash: directory → quota.
    DIR_QUOTA = "dirQuota",
    /// Hash: directory → space under it.
    DIR_QUOTA_USED_SPACE = "dirQuotaUsedSpace",
    /// Hash: directory → inodes under it.
    DIR_QUOTA_USED_INODES = "dirQuotaUsedInodes",
    /// Hash: user → limits.
    USER_QUOTA = "userQuota",
    /// Hash: user → space of what it owns.
    USER_QUOTA_USED_SPACE = "userQuotaUsedSpace",
    /// Hash: user → inodes it owns.
    USER_QUOTA_USED_INODES = "userQuotaUsedInodes",
    /// Hash: group → limits.
    GROUP_QUOTA = "groupQuota",
    /// Hash: group → space of what it owns.
    GROUP_QUOTA_USED_SPACE = "groupQuotaUsedSpace",
    /// Hash: group → inodes it owns.
    GROUP_QUOTA_USED_INODES = "groupQuotaUsedInodes",
    /// Hash: ACL id → rule.
    ACL = "acl",
    /// Highest ACL id used.
    ACL_MAX_ID = "aclMaxId",
    /// Last run of the stale-session job, unix seconds.
    LAST_CLEANUP_SESSIONS = "lastCleanupSessions",
    /// Last run of the deleted-files job.
    LAST_CLEANUP_FILES = "lastCleanupFiles",
    /// Last run of the slice job.
    NEXT_CLEANUP_SLICES = "nextCleanupSlices",
    /// Pando's own, hash: inode → the client whose turn it is to append. Empty but for moments.
    TURNS = "_pando:turns",
    /// Last run of the job that empties the trash and deletes delayed slices.
    LAST_CLEANUP_TRASH = "lastCleanupTrash",
    /// Pando's own: frames of small blocks, by the 8 big-endian bytes of the slice id.
    FRAMES = "_pando:f",
    /// Pando's own: how often quotas were changed by an operator.
    QUOTA_CHANGES = "_pando:quotas",
    /// Pando's own, sorted set: the same bytes → when the frame was put, in milliseconds of the server's clock.
    FRAME_AGES = "_pando:age",
    /// Pando's own: bytes of all frames of a server. Goes with the last one.
    FRAME_BYTES = "_pando:bytes",
    /// Pando's own: whose turn it is to store frames that their writer has left, and since when. Empty but for moments.
    DRAINER = "_pando:drain",
}

/// A short text of words and numbers. One operation on hundreds of names makes thousands of keys.
struct Text {
    bytes: [u8; Text::BYTES_MAX],
    len: usize,
}

impl Text {
    /// Two numbers of 20 digits and two words.
    const BYTES_MAX: usize = 56;

    fn new(word: &str) -> Text {
        Text { bytes: [0; Text::BYTES_MAX], len: 0 }.then(word)
    }

    fn then(mut self, word: &str) -> Text {
        self.bytes[self.len..][..word.len()].copy_from_slice(word.as_bytes());
        self.len += word.len();
        self
    }

    fn number(mut self, mut n: u64) -> Text {
        let digits = n.checked_ilog10().unwrap_or(0) as usize + 1;
        for place in self.bytes[self.len..][..digits].iter_mut().rev() {
            *place = b'0' + (n % 10) as u8;
            n /= 10;
        }
        self.len += digits;
        self
    }

    fn done(self) -> Bytes {
        Bytes::copy_from_slice(&self.bytes[..self.len])
    }
}

/// Attribute record of an inode.
pub fn inode(ino: Ino) -> Key {
    Text::new("i").number(ino.0).done()
}

/// Entries of a directory.
pub fn dir(ino: Ino) -> Key {
    Text::new("d").number(ino.0).done()
}

/// Link parents of an inode with several.
pub fn parents(ino: Ino) -> Key {
    Text::new("p").number(ino.0).done()
}

/// Slice list of a chunk.
pub fn chunk(ino: Ino, index: u32) -> Key {
    Text::new("c").number(ino.0).then("_").number(index.into()).done()
}

/// Target of a symlink.
pub fn symlink(ino: Ino) -> Key {
    Text::new("s").number(ino.0).done()
}

/// Extended attributes.
pub fn xattr(ino: Ino) -> Key {
    Text::new("x").number(ino.0).done()
}

/// BSD locks.
pub fn flock(ino: Ino) -> Key {
    Text::new("lockf").number(ino.0).done()
}

/// POSIX locks.
pub fn plock(ino: Ino) -> Key {
    Text::new("lockp").number(ino.0).done()
}

/// Keys of the lock hashes in which a session holds something.
pub fn locked(sid: u64) -> Key {
    format!("locked{sid}").into()
}

/// Inodes a session keeps although their last link is gone.
pub fn sustained(sid: u64) -> Key {
    format!("session{sid}").into()
}

/// Field of a lock hash: session and owner (metadata §7).
pub fn lock_field(sid: u64, owner: u64) -> Bytes {
    format!("{sid}_{owner:016X}").into()
}

/// Whether a key holds something of one inode that is remembered and watched: record, entries, a slice list,
/// link parents, target, extended attributes.
pub fn is_of_inode(key: &[u8]) -> bool {
    matches!(key, [b'i' | b'd' | b'c' | b'p' | b's' | b'x', b'0'..=b'9', ..])
}

/// The inode a record or the entries of a directory belong to.
pub fn inode_of(key: &[u8]) -> Option<Ino> {
    let digits = key.strip_prefix(b"i").or_else(|| key.strip_prefix(b"d"))?;
    std::str::from_utf8(digits).ok()?.parse().ok().map(Ino)
}

/// Whether a key holds the entries of a directory.
pub fn is_dir(key: &[u8]) -> bool {
    matches!(key, [b'd', b'0'..=b'9', ..])
}

/// Whether a key holds the slice list of a chunk.
pub fn is_chunk(key: &[u8]) -> bool {
    matches!(key, [b'c', b'0'..=b'9', ..])
}

/// Whether a key holds extended attributes.
pub fn is_xattr(key: &[u8]) -> bool {
    matches!(key, [b'x', b'0'..=b'9', ..])
}

/// Whether a value is a counter of use. Plans decide on these and do not guard them: everybody changes them all the time.
pub fn is_counter(query: &Query) -> bool {
    match query {
        Query::Get(key) => *key == USED_SPACE || *key == TOTAL_INODES,
        Query::HGet(key, _) => *key == DIR_QUOTA_USED_SPACE || *key == DIR_QUOTA_USED_INODES,
        _ => false,
    }
}

/// Field of `sliceRef`.
pub fn slice_ref(id: SliceId, size: u32) -> Bytes {
    Text::new("k").number(id).then("_").number(size.into()).done()
}

/// Field of `delSlices`: the slice that replaced them, and when, in unix seconds.
pub fn delayed_slices(by: SliceId, sec: i64) -> Bytes {
    format!("{by}_{sec}").into()
}

/// Member of `delfiles`.
pub fn delfile(ino: Ino, length: u64) -> Bytes {
    Text::new("").number(ino.0).then(":").number(length).done()
}

/// A number as field, member or counter text.
pub fn decimal(n: impl std::fmt::Display) -> Bytes {
    n.to_string().into()
}

/// A name as a field of a directory.
pub fn name(name: &Name) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

/// Extended attribute of the root that holds the time of the last backup (metadata §17).
pub const LAST_BACKUP: Bytes = Bytes::from_static(b"lastBackup");

/// How the keys of the outcomes of commits begin.
pub const OUTCOMES: &[u8] = b"_pando:op:";

/// Connections of one session that may have a hash of their own: more than one only after its number was given out twice.
pub const OP_CONNECTIONS_MAX: u32 = 8;

/// Pando's own: outcomes of the commits of one connection. `who` is a session id, or a word of a process without one.
pub fn op(who: &str, connection: u32) -> Key {
    format!("_pando:op:{who}_{connection}").into()
}

/// Pando's own: what the start-up checks try commands on.
pub fn probe(random: u64) -> Key {
    format!("_pando:probe:{random:016x}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_all_lengths_are_written_as_elsewhere() {
        for n in [0, 1, 9, 10, 99, 100, 1 << 32, u64::MAX / 10, u64::MAX - 1, u64::MAX] {
            assert_eq!(dir(Ino(n)), format!("d{n}"));
            assert_eq!(plock(Ino(n)), format!("lockp{n}"));
            assert_eq!(chunk(Ino(n), u32::MAX), format!("c{n}_{}", u32::MAX));
            assert_eq!(slice_ref(n, 0), format!("k{n}_0"));
            assert_eq!(delfile(Ino(n), n), format!("{n}:{n}"));
        }
    }
}
