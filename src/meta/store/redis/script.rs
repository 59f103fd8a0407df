//! The generic script: how guards, writes and reads become its arguments, and its answer a `Commit`.

use super::wire::{SETS_OF_KEYS, bytes, prefixed, sequence, strange, value};
use crate::meta::key;
use crate::meta::store::{Commit, FRAMES_BYTES_MAX, FRAMES_LOOKED_AT_MAX, Guard, Key, Query, StoreError, Value, Write, is_watched};
use crate::types::{FRAME_BYTES_MAX, SliceId};
use bytes::Bytes;
use hashbrown::HashMap;
use redis::{Cmd, Value as Reply};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::Write as _;
use std::mem::discriminant;

/// Guards, checks, writes, reads: see there.
pub(super) const TEXT: &str = include_str!("commit.lua");
/// Elements of one list write or guard. Lua hands them to a command on its stack, which holds 8,000.
const ELEMENTS_MAX: usize = 4000;
/// Guards or writes carried out in one command, for the same reason: up to two words each.
const RUN_MAX: usize = 1000;

/// What proves that a commit is ours and remembers that it happened.
pub(super) struct Fence<'a> {
    pub hash: &'a [u8],
    pub token: &'a [u8],
    pub slot: usize,
    pub number: u64,
}

/// Bytes before the replies in a slot: the number, and the kernel's name of the request (none yet).
const RECORD_HEAD: usize = 16;

/// The answer of the script.
pub(super) enum Answer {
    Commit(Commit),
    /// The token is another one by now; nothing was done.
    Fenced,
}

/// Keys and arguments of one run.
pub(super) struct Program<'a> {
    prefix: &'a [u8],
    keys: Vec<Bytes>,
    index: HashMap<Key, usize>,
    args: Args,
    guards: &'a [Guard],
    writes: &'a [Write],
    reads: &'a [Query],
    /// When it happens, in milliseconds of the server's clock.
    now_ms: i64,
}

/// The hash of a guard that wants it without a field.
fn of_empty_hash(guard: &Guard) -> Option<&Key> {
    match guard {
        Guard::HashEmpty(key) => Some(key),
        Guard::Fields(key, pairs) if pairs.is_empty() => Some(key),
        _ => None,
    }
}

/// Arguments behind each other: a commit about hundreds of names has thousands of them.
#[derive(Default)]
struct Args {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Args {
    fn push(&mut self, arg: impl AsRef<[u8]>) -> &mut Args {
        self.bytes.extend_from_slice(arg.as_ref());
        self.ends.push(self.bytes.len());
        self
    }

    fn number(&mut self, n: impl Display) -> &mut Args {
        write!(self.bytes, "{n}").expect("a vector takes everything");
        self.ends.push(self.bytes.len());
        self
    }

    fn extend<A: AsRef<[u8]>>(&mut self, args: impl IntoIterator<Item = A>) {
        for arg in args {
            self.push(arg);
        }
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }
}

impl<'a> Program<'a> {
    /// `now_ms` is the time of the server in milliseconds, for what is kept by age.
    pub fn new(
        prefix: &'a [u8],
        guards: &'a [Guard],
        writes: &'a [Write],
        reads: &'a [Query],
        now_ms: i64,
    ) -> Result<Program<'a>, StoreError> {
        let (keys, index, args) = (Vec::new(), HashMap::new(), Args::default());
        let mut program = Program { prefix, keys, index, args, guards, writes, reads, now_ms };
        program.args.number(guards.len());
        let mut rest = guards;
        while let [guard, ..] = rest {
            let n = program.guards(rest);
            if n == 1 {
                program.guard(guard)?;
            }
            rest = &rest[n..];
        }
        program.args.number(writes.len());
        let mut rest = writes;
        while let [write, ..] = rest {
            let n = program.writes(rest)?;
            if n == 1 {
                program.write(write)?;
            }
            rest = &rest[n..];
        }
        program.args.number(reads.len());
        for query in reads {
            program.query(query);
        }
        Ok(program)
    }

    /// The command that runs it, by the script's digest or with its text.
    pub fn command(&self, digest: Option<&str>, fence: Option<&Fence>) -> Cmd {
        let mut cmd = redis::cmd(if digest.is_some() { "EVALSHA" } else { "EVAL" });
        cmd.arg(digest.unwrap_or(TEXT)).arg(self.keys.len() + usize::from(fence.is_some()));
        for key in &self.keys {
            cmd.arg(&key[..]);
        }
        if let Some(fence) = fence {
            cmd.arg(fence.hash);
        }
        cmd.arg(self.prefix);
        match fence {
            None => {
                cmd.arg("0");
            }
            Some(fence) => {
                cmd.arg("1").arg(self.keys.len() + 1).arg(fence.token).arg(fence.slot).arg(&record_head(fence.number)[..]);
            }
        }
        for arg in self.args.iter() {
            cmd.arg(arg);
        }
        cmd
    }

    /// The keys whose later changes by others are to be told, as the server knows them.
    pub fn watched(&self) -> Vec<Bytes> {
        let (guards, writes, reads) = (self.guards, self.writes, self.reads);
        if !is_watched(guards.len() + writes.len() + reads.len()) {
            return Vec::new();
        }
        let keys = guards.iter().map(Guard::key).chain(writes.iter().map(Write::key)).chain(reads.iter().map(Query::key));
        let keys: BTreeSet<&Key> = keys.filter(|key| key::is_of_inode(key)).collect();
        keys.into_iter().map(|key| prefixed(self.prefix, key)).collect()
    }

    fn word(&mut self, word: &'static str) {
        self.args.push(word);
    }

    /// The place of a key. All are declared, so that a server of a cluster that does not have them says so.
    fn place(&mut self, key: &Key) -> usize {
        if let Some(place) = self.index.get(key) {
            return *place;
        }
        self.keys.push(prefixed(self.prefix, key));
        self.index.insert(key.clone(), self.keys.len());
        self.keys.len()
    }

    fn key(&mut self, key: &Key) {
        let place = self.place(key);
        self.args.number(place);
    }

    /// How many of these keys stand in a row, and where the first does.
    fn row<'k>(&mut self, keys: impl Iterator<Item = &'k Key>) -> (usize, usize) {
        let (mut first, mut n) = (0, 0);
        for key in keys {
            let place = self.place(key);
            if n == 0 {
                first = place;
            } else if place != first + n {
                break;
            }
            n += 1;
        }
        (n, first)
    }

    /// Guards of one kind that are looked at in one command: how many of them the first ones are. A single one is left to be laid out alone.
    fn guards(&mut self, guards: &[Guard]) -> usize {
        match &guards[0] {
            Guard::Value(_, first) => {
                let alike = guards.iter().take(RUN_MAX).map_while(|guard| match guard {
                    Guard::Value(key, value) if value.is_some() == first.is_some() => Some((key, value)),
                    _ => None,
                });
                let (n, place) = self.row(alike.clone().map(|(key, _)| key));
                if n > 1 {
                    self.word(if first.is_some() { "V+" } else { "V-" });
                    self.args.number(n).number(place);
                    self.args.extend(alike.take(n).filter_map(|(_, value)| value.as_ref()));
                }
                n
            }
            Guard::Field(hash, _, first) => {
                let alike = guards.iter().take(RUN_MAX).map_while(|guard| match guard {
                    Guard::Field(key, field, value) if key == hash && value.is_some() == first.is_some() => Some((field, value)),
                    _ => None,
                });
                let n = alike.clone().count();
                if n > 1 {
                    self.word(if first.is_some() { "F+" } else { "F-" });
                    self.args.number(n);
                    self.key(hash);
                    self.args.extend(alike.clone().map(|(field, _)| field));
                    self.args.extend(alike.filter_map(|(_, value)| value.as_ref()));
                }
                n
            }
            first if of_empty_hash(first).is_some() => {
                let word = discriminant(first);
                let alike = guards.iter().take(RUN_MAX).take_while(|guard| discriminant(*guard) == word).map_while(of_empty_hash);
                let (n, place) = self.row(alike);
                if n > 1 {
                    self.word(if matches!(first, Guard::Fields(..)) { "H-" } else { "e-" });
                    self.args.number(n).number(place);
                }
                n
            }
            _ => 1,
        }
    }

    /// The same for writes, of fields to one hash.
    fn writes(&mut self, writes: &[Write]) -> Result<usize, StoreError> {
        let kind = discriminant(&writes[0]);
        let alike = writes.iter().take(RUN_MAX).take_while(|write| discriminant(*write) == kind);
        let word = match &writes[0] {
            Write::Set(..) => "set+",
            Write::Del(_) => "del+",
            Write::RPush(..) => "rpu+",
            Write::HSet(..) => "hse+",
            Write::HDel(..) => "hde+",
            Write::HIncrBy(..) => "hin+",
            Write::ZAdd(..) => "zad+",
            _ => return Ok(1),
        };
        let is_of_keys = matches!(&writes[0], Write::Set(..) | Write::Del(_) | Write::RPush(..));
        let (n, place) = match is_of_keys {
            true => self.row(alike.map(Write::key)),
            false => (alike.take_while(|write| write.key() == writes[0].key()).count(), self.place(writes[0].key())),
        };
        if n == 1 {
            return Ok(1);
        }
        self.word(word);
        self.args.number(n).number(place);
        for write in &writes[..n] {
            match write {
                Write::Set(_, value) => {
                    self.args.push(value);
                }
                Write::RPush(_, elements) => self.elements(elements.iter())?,
                Write::HSet(_, field, value) => self.args.extend([field, value]),
                Write::HDel(_, field) => {
                    self.args.push(field);
                }
                Write::HIncrBy(_, field, delta) => {
                    self.args.push(field).number(delta);
                }
                Write::ZAdd(_, score, member) => {
                    self.args.number(score).push(member);
                }
                _ => {}
            }
        }
        Ok(n)
    }

    fn elements<'e>(&mut self, elements: impl ExactSizeIterator<Item = &'e Bytes>) -> Result<(), StoreError> {
        if elements.len() > ELEMENTS_MAX {
            return Err(StoreError::Failed(format!("{} elements in one step, at most {ELEMENTS_MAX} are possible", elements.len())));
        }
        self.args.number(elements.len());
        self.args.extend(elements);
        Ok(())
    }

    fn optional(&mut self, value: Option<&Bytes>) {
        match value {
            None => self.word("0"),
            Some(value) => {
                self.word("1");
                self.args.push(value);
            }
        }
    }

    fn guard(&mut self, guard: &Guard) -> Result<(), StoreError> {
        match guard {
            Guard::Value(key, expected) => {
                self.word("V");
                self.key(key);
                self.optional(expected.as_ref());
            }
            Guard::Bytes(key, ranges) => {
                self.word("B");
                self.key(key);
                self.args.number(ranges.len());
                for (range, expected) in ranges {
                    // Lua counts from 1, and its last position is included.
                    self.args.number(u64::from(range.from) + 1);
                    match range.to {
                        Some(to) => self.args.number(to),
                        None => self.args.push("-1"),
                    };
                    self.args.push(expected);
                }
            }
            Guard::Field(key, field, expected) => {
                self.word("F");
                self.key(key);
                self.args.push(field);
                self.optional(expected.as_ref());
            }
            Guard::Fields(key, pairs) => {
                self.word("H");
                self.key(key);
                self.args.number(pairs.len());
                self.args.extend(pairs.iter().flat_map(|(field, value)| [field, value]));
            }
            Guard::HashEmpty(key) => {
                self.word("e");
                self.key(key);
            }
            Guard::HashNotEmpty(key) => {
                self.word("n");
                self.key(key);
            }
            Guard::HashLen(key, len) => {
                self.word("c");
                self.key(key);
                self.args.number(len);
            }
            Guard::ListPrefix(key, elements) => {
                self.word("p");
                self.key(key);
                self.args.number(elements.len());
                self.args.extend(elements);
            }
            Guard::ListIs(key, elements) => {
                self.word("l");
                self.key(key);
                self.args.number(elements.len());
                self.args.extend(elements);
            }
            Guard::Score(key, member, score) => {
                self.word("s");
                self.key(key);
                self.args.push(member);
                match score {
                    None => self.word("0"),
                    Some(score) => {
                        self.args.push("1").number(score);
                    }
                }
            }
        }
        Ok(())
    }

    fn query(&mut self, query: &Query) {
        self.word(match query {
            Query::Get(_) => "G",
            Query::HGet(..) | Query::Frame(_) => "F",
            Query::HGetAll(_) => "A",
            Query::HLen { .. } => "N",
            Query::List(_) => "L",
            Query::SMembers(_) => "M",
            Query::ZScore(..) => "Z",
            Query::ZRange { .. } | Query::OldestFrames { .. } => "R",
            Query::Entry { .. } => "E",
            Query::Frames { .. } => "C",
            Query::FramesKept => "K",
        });
        self.key(query.key());
        match query {
            Query::HGet(_, name) | Query::ZScore(_, name) | Query::Entry { name, .. } => {
                self.args.push(name);
            }
            Query::ZRange { max, limit, .. } => {
                self.args.number(max).number(limit);
            }
            Query::Frame(id) => {
                self.args.push(frame_field(*id));
            }
            Query::Frames { until, .. } => {
                self.args.number(FRAMES_LOOKED_AT_MAX);
                self.key(&key::FRAMES);
                self.args.number(FRAMES_BYTES_MAX).number(FRAME_BYTES_MAX).push(frame_field(*until));
            }
            Query::OldestFrames { limit } => {
                self.args.push("+inf").number(limit);
            }
            Query::FramesKept => {
                self.key(&key::FRAME_BYTES);
                self.key(&key::FRAME_AGES);
            }
            _ => {}
        }
    }

    fn write(&mut self, write: &Write) -> Result<(), StoreError> {
        let word = match write {
            Write::Set(..) => "set",
            Write::Patch { .. } => "pat",
            Write::AddU32 { .. } => "add",
            Write::Del(_) => "del",
            Write::IncrBy(..) => "inc",
            Write::HSet(..) => "hse",
            Write::HDel(..) => "hde",
            Write::HIncrBy(..) => "hin",
            Write::HIncrIfPresent(..) => "hip",
            Write::RPush(..) => "rpu",
            Write::RPushX(..) => "rpx",
            Write::LPush(..) => "lpu",
            Write::LTrim(..) => "ltr",
            Write::SAdd(..) => "sad",
            Write::SRem(..) => "sre",
            Write::ZAdd(..) => "zad",
            Write::ZRem(..) => "zre",
            Write::PutFrame(..) => "fpu",
            Write::DelFrame(_) => "fde",
        };
        let key = write.key();
        self.word(word);
        self.key(key);
        match write {
            Write::Set(_, value) | Write::RPushX(_, value) => {
                if word == "rpx" {
                    self.word("1");
                }
                self.args.push(value);
            }
            Write::Patch { offset, bytes, .. } => {
                self.args.number(offset).push(bytes);
            }
            Write::AddU32 { offset, delta, .. } => {
                self.args.number(offset).number(delta);
            }
            Write::Del(_) => {}
            Write::IncrBy(_, delta) => {
                self.args.number(delta);
            }
            Write::HSet(_, field, value) => self.args.extend([field, value]),
            Write::HDel(_, name) | Write::ZRem(_, name) => {
                self.args.push(name);
            }
            Write::HIncrBy(_, field, delta) | Write::HIncrIfPresent(_, field, delta) => {
                self.args.push(field).number(delta);
            }
            Write::RPush(_, elements) => self.elements(elements.iter())?,
            // The server puts the first one in first, so that it ends up behind the others.
            Write::LPush(_, elements) => self.elements(elements.iter().rev())?,
            Write::LTrim(_, count) => {
                self.args.number(count);
            }
            Write::SAdd(_, member) | Write::SRem(_, member) => {
                let member = if key.starts_with(SETS_OF_KEYS) { prefixed(self.prefix, member) } else { member.clone() };
                self.args.push(member);
            }
            Write::ZAdd(_, score, member) => {
                self.args.number(score).push(member);
            }
            Write::PutFrame(id, frame) => {
                self.key(&key::FRAME_AGES);
                self.key(&key::FRAME_BYTES);
                self.args.push(frame_field(*id)).push(frame).number(self.now_ms);
            }
            Write::DelFrame(id) => {
                self.key(&key::FRAME_AGES);
                self.key(&key::FRAME_BYTES);
                self.args.push(frame_field(*id));
            }
        }
        Ok(())
    }

    /// What the script answered.
    pub fn decode(&self, reply: Reply) -> Result<Answer, StoreError> {
        let mut parts = sequence(reply)?.into_iter();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(Reply::Int(0)), Some(found), None) => {
                let found = sequence(found)?;
                if found.len() != self.guards.len() {
                    return Err(strange("a conflict without all guarded values"));
                }
                let queries = self.guards.iter().map(Guard::query);
                let values = queries.zip(found).map(|(query, reply)| value(self.prefix, &query, reply).map(|value| (query, value)));
                Ok(Answer::Commit(Commit::Conflict(values.collect::<Result<_, _>>()?)))
            }
            (Some(Reply::Int(1)), Some(replies), Some(values)) => {
                let replies = self.replies(&bytes(replies)?.unwrap_or_default())?;
                let values = sequence(values)?;
                if values.len() != self.reads.len() {
                    return Err(strange("fewer values than were asked for"));
                }
                let values =
                    self.reads.iter().zip(values).map(|(query, reply)| value(self.prefix, query, reply)).collect::<Result<_, _>>()?;
                Ok(Answer::Commit(Commit::Done { replies, values }))
            }
            (Some(Reply::Int(2)), None, None) => Ok(Answer::Fenced),
            (Some(Reply::Int(3)), Some(why), None) => {
                Err(StoreError::Damaged(String::from_utf8_lossy(&bytes(why)?.unwrap_or_default()).into_owned()))
            }
            _ => Err(strange("an answer of the script in another shape")),
        }
    }

    /// The replies of the writes from the text the script made of them.
    pub fn replies(&self, told: &[u8]) -> Result<Vec<Value>, StoreError> {
        let told = std::str::from_utf8(told).map_err(|_| strange("replies that are no text"))?;
        let mut numbers = told.split(',');
        let replies = self.writes.iter().map(|write| {
            if !is_told(write) {
                return Ok(Value::Done);
            }
            let number = numbers.next().unwrap_or_default();
            number.parse().map(Value::Int).map_err(|_| StoreError::Damaged(format!("no number came of {write:?}")))
        });
        replies.collect()
    }
}

/// Whether the script reports a number for the write.
fn is_told(write: &Write) -> bool {
    matches!(
        write,
        Write::IncrBy(..)
            | Write::HIncrBy(..)
            | Write::RPush(..)
            | Write::RPushX(..)
            | Write::LPush(..)
            | Write::SRem(..)
            | Write::ZRem(..)
            | Write::PutFrame(..)
            | Write::DelFrame(_)
    )
}

/// The plain command that answers a query by itself; `None` if only the script can.
pub(super) fn plain(prefix: &[u8], query: &Query) -> Option<Cmd> {
    let (name, key) = match query {
        Query::Get(key) => ("GET", key),
        Query::HGet(key, _) => ("HGET", key),
        Query::HGetAll(key) => ("HGETALL", key),
        Query::HLen { key, .. } => ("HLEN", key),
        Query::List(key) => ("LRANGE", key),
        Query::SMembers(key) => ("SMEMBERS", key),
        Query::ZScore(key, _) => ("ZSCORE", key),
        Query::ZRange { key, .. } => ("ZRANGEBYSCORE", key),
        Query::Frame(_) => ("HGET", &key::FRAMES),
        Query::OldestFrames { .. } => ("ZRANGEBYSCORE", &key::FRAME_AGES),
        Query::Entry { .. } | Query::Frames { .. } | Query::FramesKept => return None,
    };
    let mut cmd = redis::cmd(name);
    cmd.arg(&prefixed(prefix, key)[..]);
    match query {
        Query::HGet(_, name) | Query::ZScore(_, name) => {
            cmd.arg(&name[..]);
        }
        Query::List(_) => {
            cmd.arg(0).arg(-1);
        }
        Query::ZRange { max, limit, .. } => {
            cmd.arg("-inf").arg(*max).arg("WITHSCORES").arg("LIMIT").arg(0).arg(*limit);
        }
        Query::OldestFrames { limit } => {
            cmd.arg("-inf").arg("+inf").arg("WITHSCORES").arg("LIMIT").arg(0).arg(*limit);
        }
        Query::Frame(id) => {
            cmd.arg(&frame_field(*id)[..]);
        }
        _ => {}
    }
    Some(cmd)
}

/// A slice as a field of the frames.
fn frame_field(id: SliceId) -> Bytes {
    Bytes::copy_from_slice(&id.to_be_bytes())
}

fn record_head(number: u64) -> [u8; RECORD_HEAD] {
    let mut head = [0; RECORD_HEAD];
    head[..8].copy_from_slice(&number.to_be_bytes());
    head
}

/// Number and replies of a slot.
pub(super) fn record(slot: &Bytes) -> Option<(u64, Bytes)> {
    let number = slot.get(..8)?.try_into().ok().map(u64::from_be_bytes)?;
    (slot.len() >= RECORD_HEAD).then(|| (number, slot.slice(RECORD_HEAD..)))
}
