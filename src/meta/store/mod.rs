//! `Store`: where the typed keys of a volume live. Reads and guarded commits, nothing that knows an inode.
//!
//! Keys and values are those of metadata §2. Everything a store is asked is one of the enums below, so that one script on a server and
//! one transaction in a local database can both answer it.

#[doc(hidden)]
pub mod conformance;
#[doc(hidden)]
pub mod counting;
pub mod embedded;
#[doc(hidden)]
pub mod powercut;
pub mod redis;

use crate::meta::key;
use crate::types::{BoxFuture, SliceId};
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A key of the layout of metadata §2, as bytes.
pub type Key = Bytes;

/// A plain read. All queries of one `read` see one state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Query {
    /// A string → `Value::Bytes`.
    Get(Key),
    /// A field of a hash → `Value::Bytes`.
    HGet(Key, Bytes),
    /// All fields of a hash that is known to be small (xattrs, locks, link parents) → `Value::Pairs`.
    HGetAll(Key),
    /// Number of fields, counted no further than `limit` → `Value::Int`.
    HLen {
        /// The hash.
        key: Key,
        /// Counting stops here.
        limit: u32,
    },
    /// All elements of a list → `Value::List`.
    List(Key),
    /// Members of a set → `Value::List`.
    SMembers(Key),
    /// Score of a member of a sorted set → `Value::Score`.
    ZScore(Key, Bytes),
    /// Members with score ≤ `max`, lowest first, at most `limit` → `Value::Scored`.
    ZRange {
        /// The sorted set.
        key: Key,
        /// Highest score wanted.
        max: i64,
        /// Most members wanted.
        limit: u32,
    },
    /// A directory entry and, if it is there and well formed, the attribute record it names → `Value::Entry`.
    Entry {
        /// The directory's `d{ino}`.
        dir: Key,
        /// The name.
        name: Bytes,
    },
    /// The frame of a small block, if it is kept here → `Value::Bytes`.
    Frame(SliceId),
    /// The frames of the small slices that the newest records of a chunk's list name → `Value::Frames`.
    Frames {
        /// The list.
        list: Key,
        /// A slice whose record, and all before it, are not looked at; 0: none.
        until: SliceId,
    },
    /// The slices whose frames were put first, as 8 big-endian bytes, and when (milliseconds of the store's clock, 0 if it is not known)
    /// → `Value::Scored`.
    OldestFrames {
        /// Most slices wanted.
        limit: u32,
    },
    /// How much is kept in frames → `Value::Kept`.
    FramesKept,
}

/// Where frames are, as a place in memory that can be lent.
static FRAMES: Key = key::FRAMES;
static FRAME_AGES: Key = key::FRAME_AGES;

impl Query {
    /// The key that is read, of several the first.
    pub fn key(&self) -> &Key {
        match self {
            Query::Get(key)
            | Query::HGet(key, _)
            | Query::HGetAll(key)
            | Query::HLen { key, .. }
            | Query::List(key)
            | Query::SMembers(key)
            | Query::ZScore(key, _)
            | Query::ZRange { key, .. }
            | Query::Frames { list: key, .. } => key,
            Query::Entry { dir, .. } => dir,
            Query::Frame(_) | Query::FramesKept => &FRAMES,
            Query::OldestFrames { .. } => &FRAME_AGES,
        }
    }
}

/// Slices of one list that `Query::Frames` looks at, the newest: more are rarely read at once.
pub const FRAMES_LOOKED_AT_MAX: usize = 64;
/// Bytes of frames in one answer to it. What does not fit is asked for by itself.
pub const FRAMES_BYTES_MAX: usize = 256 << 10;

/// All frames of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FramesKept {
    /// How many.
    pub count: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// When the oldest was put, in milliseconds of the store's clock, 0 if it does not know; `None` if there is none.
    pub oldest_ms: Option<i64>,
}

/// The answer to a `Query`, or what a `Write` replied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A string or field, `None` if absent.
    Bytes(Option<Bytes>),
    /// Fields and values in the store's order.
    Pairs(Vec<(Bytes, Bytes)>),
    /// A count, a new counter value, a list length, or the number of members added or removed.
    Int(i64),
    /// Elements.
    List(Vec<Bytes>),
    /// A score, `None` if not a member.
    Score(Option<i64>),
    /// Members and scores.
    Scored(Vec<(Bytes, i64)>),
    /// An entry value and the record of the inode it names.
    Entry(Option<(Bytes, Option<Bytes>)>),
    /// Slices that were looked at, newest first, and their frames; `None`: it has none, so its block is an object.
    Frames(Vec<(SliceId, Option<Bytes>)>),
    /// How much is kept.
    Kept(FramesKept),
    /// A write that answers nothing of interest.
    Done,
}

/// A condition of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The string is exactly this, or absent.
    Value(Key, Option<Bytes>),
    /// These byte ranges of a present string are exactly these; a range past the end reads as the shorter bytes that are there.
    Bytes(Key, Vec<(BytesRange, Bytes)>),
    /// The field is exactly this, or absent.
    Field(Key, Bytes, Option<Bytes>),
    /// The hash has exactly these fields and values, in any order.
    Fields(Key, Vec<(Bytes, Bytes)>),
    /// The hash has no field.
    HashEmpty(Key),
    /// The hash has a field.
    HashNotEmpty(Key),
    /// The hash has exactly so many fields.
    HashLen(Key, u32),
    /// The list begins with these elements.
    ListPrefix(Key, Vec<Bytes>),
    /// The list is exactly this.
    ListIs(Key, Vec<Bytes>),
    /// The member's score is exactly this, or it is not a member.
    Score(Key, Bytes, Option<i64>),
}

/// Bytes `from..to` of a value; `to` `None` means to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BytesRange {
    /// First byte.
    pub from: u32,
    /// First byte not included.
    pub to: Option<u32>,
}

impl Guard {
    /// The key that is guarded.
    pub fn key(&self) -> &Key {
        match self {
            Guard::Value(key, _)
            | Guard::Bytes(key, _)
            | Guard::Field(key, ..)
            | Guard::Fields(key, _)
            | Guard::HashEmpty(key)
            | Guard::HashNotEmpty(key)
            | Guard::HashLen(key, _)
            | Guard::ListPrefix(key, _)
            | Guard::ListIs(key, _)
            | Guard::Score(key, ..) => key,
        }
    }

    /// The read that answers what the guarded thing is now; a conflict comes back as these.
    pub fn query(&self) -> Query {
        match self {
            Guard::Value(key, _) | Guard::Bytes(key, _) => Query::Get(key.clone()),
            Guard::Field(key, field, _) => Query::HGet(key.clone(), field.clone()),
            Guard::Fields(key, _) => Query::HGetAll(key.clone()),
            Guard::HashEmpty(key) | Guard::HashNotEmpty(key) => Query::HLen { key: key.clone(), limit: 1 },
            Guard::HashLen(key, _) => Query::HLen { key: key.clone(), limit: u32::MAX },
            Guard::ListPrefix(key, _) | Guard::ListIs(key, _) => Query::List(key.clone()),
            Guard::Score(key, member, _) => Query::ZScore(key.clone(), member.clone()),
        }
    }
}

/// A change. Replies are given where named; otherwise `Value::Done`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a string.
    Set(Key, Bytes),
    /// Overwrites bytes of a present string from `offset`; the range must lie inside it.
    Patch {
        /// The string.
        key: Key,
        /// First byte replaced.
        offset: u32,
        /// The new bytes.
        bytes: Bytes,
    },
    /// Adds to a big-endian u32 inside a present string, wrapping never: the caller has guarded what makes it valid.
    AddU32 {
        /// The string.
        key: Key,
        /// Where the number begins.
        offset: u32,
        /// What is added.
        delta: i32,
    },
    /// Removes a key of any type.
    Del(Key),
    /// Adds to a decimal counter, absent = 0 → `Int`, the new value.
    IncrBy(Key, i64),
    /// Sets a field.
    HSet(Key, Bytes, Bytes),
    /// Removes a field.
    HDel(Key, Bytes),
    /// Adds to a decimal field, absent = 0 → `Int`, the new value.
    HIncrBy(Key, Bytes, i64),
    /// Adds to a decimal field only if it is there; never fails the commit.
    HIncrIfPresent(Key, Bytes, i64),
    /// Appends to a list → `Int`, its new length.
    RPush(Key, Vec<Bytes>),
    /// Appends to a list that exists → `Int`, its new length or 0.
    RPushX(Key, Bytes),
    /// Puts elements before the first, so that they stand in the given order.
    LPush(Key, Vec<Bytes>),
    /// Drops the first n elements.
    LTrim(Key, u32),
    /// Adds to a set.
    SAdd(Key, Bytes),
    /// Removes from a set → `Int`, 1 if it was there.
    SRem(Key, Bytes),
    /// Sets the score of a member.
    ZAdd(Key, i64, Bytes),
    /// Removes from a sorted set → `Int`, 1 if it was there.
    ZRem(Key, Bytes),
    /// Stores the frame of a small block → `Int`, the bytes of all frames, where the store counts them.
    PutFrame(SliceId, Bytes),
    /// Removes a frame → `Int`, 1 if it was there.
    DelFrame(SliceId),
}

impl Write {
    /// The key that is changed, of several the first.
    pub fn key(&self) -> &Key {
        match self {
            Write::Set(key, _)
            | Write::Patch { key, .. }
            | Write::AddU32 { key, .. }
            | Write::Del(key)
            | Write::IncrBy(key, _)
            | Write::HSet(key, ..)
            | Write::HDel(key, _)
            | Write::HIncrBy(key, ..)
            | Write::HIncrIfPresent(key, ..)
            | Write::RPush(key, _)
            | Write::RPushX(key, _)
            | Write::LPush(key, _)
            | Write::LTrim(key, _)
            | Write::SAdd(key, _)
            | Write::SRem(key, _)
            | Write::ZAdd(key, ..)
            | Write::ZRem(key, _) => key,
            Write::PutFrame(..) | Write::DelFrame(_) => &FRAMES,
        }
    }
}

/// What became of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Commit {
    /// All guards held, all writes happened.
    Done {
        /// One per write.
        replies: Vec<Value>,
        /// One per read, answered after the writes.
        values: Vec<Value>,
    },
    /// Some guard did not hold and nothing happened: every guarded thing as it is now.
    Conflict(Vec<(Query, Value)>),
}

/// What a listing runs over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanRange {
    /// Fields of a hash → pairs (field, value).
    Hash(Key),
    /// Entries of a directory hash with the attribute records they name → triples; an empty record means it is missing.
    Dir(Key),
    /// Keys that begin with these bytes → (key, empty).
    Keys(Bytes),
    /// Members of a sorted set → (member, score as decimal).
    Sorted(Key),
}

/// Where a listing goes on: opaque bytes of the store; empty = from the start.
pub type Cursor = Bytes;

/// One item of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanItem {
    /// Field, key or member.
    pub name: Bytes,
    /// Its value.
    pub value: Bytes,
    /// For `ScanRange::Dir`, the record of the inode the entry names; empty if missing or not asked for.
    pub record: Bytes,
}

/// A page of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanPage {
    /// Items in the store's order. What stays during the whole scan is seen at least once.
    pub items: Vec<ScanItem>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<Cursor>,
}

/// Why a store could not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// The store's disk or memory is full.
    Full(String),
    /// A value has another type or shape than the layout says: damage.
    Damaged(String),
    /// The store cannot be written (read-only file, no right).
    ReadOnly(String),
    /// Anything else that ended the request for good.
    Failed(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Full(why) => write!(f, "the metadata store is full: {why}"),
            StoreError::Damaged(why) => write!(f, "the metadata store is damaged: {why}"),
            StoreError::ReadOnly(why) => write!(f, "the metadata store cannot be written: {why}"),
            StoreError::Failed(why) => write!(f, "the metadata store failed: {why}"),
        }
    }
}

impl std::error::Error for StoreError {}

/// Who else may change what is in a store, and what follows for those who remember answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody at the moment, and whoever comes waits until the kernels have forgotten what they were told.
    Alone,
    /// Other processes of this host, right now: kernels are told to remember nothing.
    Neighbours,
    /// Anybody at any time: kernels remember for as long as the flags of the mount say.
    Server,
}

/// Most guards, writes and reads of a request through which a watcher gets interested in keys: noting them takes the server some microseconds
/// then. What is changed in larger steps is rarely asked for right afterwards.
const WATCHED_PARTS_MAX: usize = 64;

/// Whether a request of so many guards, writes and reads makes a store that is watched tell of later changes of all keys in it that are
/// kept for one inode (`key::is_of_inode`), those it writes itself included.
pub fn is_watched(parts: usize) -> bool {
    parts <= WATCHED_PARTS_MAX
}

/// Is told what others change in a store. What it is told before an answer of the store is handed out happened before that answer.
pub trait Watcher: Send + Sync {
    /// Others have changed this key, or may have.
    fn changed(&self, key: &[u8]);
    /// Anything may have changed, and nobody is interested in anything any more.
    fn flushed(&self);
    /// Everything that was changed up to `age` ago has been told.
    fn heard(&self, age: Duration);
}

/// A metadata store. Implementations never block for longer than a local transaction takes without yielding.
pub trait Store: Send + Sync {
    /// Answers all queries from one state, one value each.
    fn read<'a>(&'a self, queries: &'a [Query]) -> BoxFuture<'a, Result<Vec<Value>, StoreError>>;

    /// All guards hold → all writes happen, then `reads` are answered, in one atomic step. Otherwise nothing happened.
    fn commit<'a>(&'a self, guards: &'a [Guard], writes: &'a [Write], reads: &'a [Query]) -> BoxFuture<'a, Result<Commit, StoreError>>;

    /// Everything committed before the call is as durable as this store makes it once this returns.
    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Resumable iteration; `limit` ≥ 1 items a page.
    fn scan<'a>(&'a self, range: &'a ScanRange, cursor: Cursor, limit: u32) -> BoxFuture<'a, Result<ScanPage, StoreError>>;

    /// The frame of a small block, if it is kept here.
    fn frame(&self, id: SliceId) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>> {
        Box::pin(async move {
            match self.read(&[Query::Frame(id)]).await?.pop() {
                Some(Value::Bytes(frame)) => Ok(frame),
                _ => Err(StoreError::Failed("the store gave no answer about a frame".into())),
            }
        })
    }

    /// Bytes that the store could still take as it is now; `u64::MAX` if it has no bound that it knows of.
    fn free_bytes(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(std::future::ready(Ok(u64::MAX)))
    }

    /// Whether other processes use the store right now: if so nothing may be remembered beyond one answer.
    fn shared(&self) -> bool;

    /// The same in more detail.
    fn sharing(&self) -> Sharing {
        if self.shared() { Sharing::Neighbours } else { Sharing::Alone }
    }

    /// How often the store was found to have lost what it had acknowledged. After each time, numbers taken from its counters and not yet
    /// used must be dropped: they may have been given out again.
    fn losses(&self) -> u64 {
        0
    }

    /// From now on tells what others change of the keys that were read or written in watched requests (`is_watched`). False if the store cannot;
    /// then the watcher hears nothing.
    fn watch(&self, _watcher: Arc<dyn Watcher>) -> BoxFuture<'_, bool> {
        Box::pin(std::future::ready(false))
    }

    /// Whether the store was found to hold another volume than it did, or none: nothing of this process belongs there any more, and no commit
    /// will happen.
    fn replaced(&self) -> bool {
        false
    }

    /// Takes the lock that says session `sid` lives; held until the store is dropped. False if another process holds it.
    fn claim_session(&self, sid: u64) -> Result<bool, StoreError>;

    /// Whether the process of session `sid` still lives. `None` if this store cannot tell and its expiry decides.
    fn session_alive(&self, sid: u64) -> Option<bool>;

    /// Removes what the store keeps about a session of its own accord; called when it was closed or cleaned.
    fn forget_session(&self, _sid: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// What the store's clock will show when a commit sent now arrives there, less what ours shows now, in microseconds; 0 if it has none of
    /// its own.
    fn clock_ahead_us(&self) -> i64 {
        0
    }
}
