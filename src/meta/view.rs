//! What an operation knows of the store, and what it wants to do: `View`, `Stop`, `Plan`.

use crate::meta::codec::{self, Record};
use crate::meta::key;
use crate::meta::store::{Guard, Key, Query, Value, Write};
use crate::types::{Errno, Ino, Kind, Name, SliceRecord};
use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use std::cell::RefCell;

/// The batch of facts that were not read in this run: remembered from earlier ones, or presumed. They are true only where a guard says so.
const REMEMBERED: u32 = 0;

/// The values known so far in one run of an operation. Reading a value that is not known stops the step with what it needs; every value
/// that was looked at is remembered, so that a failure can be confirmed by guarding exactly what it was decided on.
#[derive(Default)]
pub struct View {
    facts: HashMap<Query, (Value, u32)>,
    batch: u32,
    used: RefCell<Used>,
}

/// What a step has looked at, in order, each once: an operation on hundreds of names looks at thousands of things.
#[derive(Default)]
struct Used {
    queries: Vec<Query>,
    known: HashSet<Query>,
}

/// Why a step did not yield a plan.
#[derive(Debug)]
pub enum Stop {
    /// These values are missing.
    Need(Vec<Query>),
    /// The operation fails with this errno, on the ground of the values it looked at.
    Fail(Errno),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Stop {
        Stop::Fail(errno)
    }
}

/// A directory entry and the record it names; the record is `None` if the inode is missing.
pub type Found = (Kind, Ino, Option<Record>);

/// An entry with its record is two facts.
fn each_fact(answers: impl IntoIterator<Item = (Query, Value)>, mut take: impl FnMut(Query, Value)) {
    for (query, value) in answers {
        match (query, value) {
            (Query::Entry { dir, name }, Value::Entry(found)) => {
                let (entry, record) = found.unzip();
                if let Some(entry) = &entry
                    && let Some((_, ino)) = codec::decode_entry(entry)
                {
                    take(Query::Get(key::inode(ino)), Value::Bytes(record.flatten()));
                }
                take(Query::HGet(dir, name), Value::Bytes(entry));
            }
            (query, value) => take(query, value),
        }
    }
}

impl View {
    /// Takes in the answers of one read, or the values of a conflict: they describe one state.
    pub fn learn(&mut self, answers: impl IntoIterator<Item = (Query, Value)>) {
        self.batch += 1;
        each_fact(answers, |query, value| drop(self.facts.insert(query, (value, self.batch))));
    }

    /// Takes in what was true once, or is likely. What was read in this run stays.
    pub fn remember(&mut self, answers: impl IntoIterator<Item = (Query, Value)>) {
        each_fact(answers, |query, value| {
            self.facts.entry(query).or_insert((value, REMEMBERED));
        });
    }

    /// Forgets what was looked at; called before each step.
    pub fn begin(&self) {
        *self.used.borrow_mut() = Used::default();
    }

    /// Stops the step unless all of these are known: asks for several values in one trip.
    pub fn want(&self, queries: impl IntoIterator<Item = Query>) -> Result<(), Stop> {
        let missing: Vec<_> = queries.into_iter().filter(|query| !self.knows(query)).collect();
        if missing.is_empty() { Ok(()) } else { Err(Stop::Need(missing)) }
    }

    fn knows(&self, query: &Query) -> bool {
        match query {
            Query::Entry { dir, name } => self.facts.contains_key(&Query::HGet(dir.clone(), name.clone())),
            query => self.facts.contains_key(query),
        }
    }

    fn fact(&self, query: Query) -> Result<&Value, Stop> {
        match self.facts.get(&query) {
            None => Err(Stop::Need(vec![query])),
            Some((value, _)) => {
                self.note_used(query);
                Ok(value)
            }
        }
    }

    /// A value that is known, without its being what the step decides on.
    pub fn peek(&self, query: &Query) -> Option<&Value> {
        self.facts.get(query).map(|(value, _)| value)
    }

    fn note_used(&self, query: Query) {
        let mut used = self.used.borrow_mut();
        if used.known.insert(query.clone()) {
            used.queries.push(query);
        }
    }

    /// A fact as last known. Of hashes whose emptiness was asked about and is not known emptiness was presumed.
    fn known(&self, query: &Query) -> Option<&(Value, u32)> {
        const EMPTY: &(Value, u32) = &(Value::Int(0), REMEMBERED);
        let presumed = matches!(query, Query::HLen { .. }).then_some(EMPTY);
        self.facts.get(query).or(presumed)
    }

    /// A string.
    pub fn string(&self, key: &Key) -> Result<Option<Bytes>, Stop> {
        match self.fact(Query::Get(key.clone()))? {
            Value::Bytes(value) => Ok(value.clone()),
            _ => Err(Errno::IO.into()),
        }
    }

    /// A field of a hash.
    pub fn field(&self, key: &Key, field: Bytes) -> Result<Option<Bytes>, Stop> {
        match self.fact(Query::HGet(key.clone(), field))? {
            Value::Bytes(value) => Ok(value.clone()),
            _ => Err(Errno::IO.into()),
        }
    }

    /// A field of a hash that the plan guards whatever it is: unless it is known otherwise it is presumed to be this, because the guard
    /// brings the truth as a read would.
    pub fn field_or(&self, key: &Key, field: &Bytes, presumed: Option<&Bytes>) -> Option<Bytes> {
        match self.facts.get(&Query::HGet(key.clone(), field.clone())) {
            Some((Value::Bytes(known), _)) => known.clone(),
            _ => presumed.cloned(),
        }
    }

    /// All fields of a small hash.
    pub fn fields(&self, key: &Key) -> Result<&[(Bytes, Bytes)], Stop> {
        match self.fact(Query::HGetAll(key.clone()))? {
            Value::Pairs(pairs) => Ok(pairs),
            _ => Err(Errno::IO.into()),
        }
    }

    /// Whether a hash has no field. Asked by those who can go on only if it has none: unless it is known otherwise it is presumed to be so,
    /// because the guard they need brings the truth as a read would.
    pub fn hash_is_empty(&self, key: &Key) -> Result<bool, Stop> {
        let query = Query::HLen { key: key.clone(), limit: 1 };
        self.note_used(query.clone());
        match self.known(&query) {
            Some((Value::Int(count), _)) => Ok(*count == 0),
            _ => Err(Errno::IO.into()),
        }
    }

    /// The elements of a list, as stored.
    pub fn list(&self, key: &Key) -> Result<&[Bytes], Stop> {
        match self.fact(Query::List(key.clone()))? {
            Value::List(elements) => Ok(elements),
            _ => Err(Errno::IO.into()),
        }
    }

    /// The members of a set, as stored.
    pub fn members(&self, key: &Key) -> Result<&[Bytes], Stop> {
        match self.fact(Query::SMembers(key.clone()))? {
            Value::List(members) => Ok(members),
            _ => Err(Errno::IO.into()),
        }
    }

    /// The score of a member.
    pub fn score(&self, key: &Key, member: Bytes) -> Result<Option<i64>, Stop> {
        match self.fact(Query::ZScore(key.clone(), member))? {
            Value::Score(score) => Ok(*score),
            _ => Err(Errno::IO.into()),
        }
    }

    /// The slice list of a chunk. A damaged element makes the chunk unreadable: EIO.
    pub fn slices(&self, ino: Ino, chunk: u32) -> Result<Vec<SliceRecord>, Stop> {
        let elements = self.list(&key::chunk(ino, chunk))?;
        let records: Option<Vec<_>> = elements.iter().map(|e| codec::decode_slice(e)).collect();
        records.ok_or(Stop::Fail(Errno::IO))
    }

    /// The record of an inode, `None` if it does not exist. A damaged record is EIO.
    pub fn record(&self, ino: Ino) -> Result<Option<Record>, Stop> {
        match self.string(&key::inode(ino))? {
            None => Ok(None),
            Some(bytes) => Record::decode(bytes).map(Some).ok_or(Stop::Fail(Errno::IO)),
        }
    }

    /// The entry of a directory and the record it names, in one trip if nothing is known.
    pub fn entry(&self, dir: Ino, name: &Name) -> Result<Option<Found>, Stop> {
        let dir_key = key::dir(dir);
        let query = Query::Entry { dir: dir_key.clone(), name: key::name(name) };
        self.want([query])?;
        match self.field(&dir_key, key::name(name))? {
            None => Ok(None),
            Some(value) => {
                let (kind, ino) = codec::decode_entry(&value).ok_or(Stop::Fail(Errno::IO))?;
                Ok(Some((kind, ino, self.record(ino)?)))
            }
        }
    }

    /// Guards of everything the last step looked at; `None` if it all came from one answer of the store, which is a state that existed.
    pub fn confirmation(&self) -> Option<Vec<Guard>> {
        let used = self.used.borrow();
        let facts: Vec<_> = used.queries.iter().filter_map(|query| self.known(query).map(|fact| (query, fact))).collect();
        let mut batches = facts.iter().map(|(_, (_, batch))| *batch);
        let first = batches.next()?;
        if first != REMEMBERED && batches.all(|batch| batch == first) {
            return None;
        }
        Some(facts.into_iter().filter_map(|(query, (value, _))| guard_of(query, value)).collect())
    }

    /// What the last step looked at and did not read in this run, although none of these guards will tell whether it is still so.
    pub fn unguarded(&self, guards: &[Guard]) -> Vec<Query> {
        let used = self.used.borrow();
        let rests_on_memory = |query: &&Query| self.known(query).is_some_and(|(_, batch)| *batch == REMEMBERED);
        let remembered = used.queries.iter().filter(rests_on_memory).filter(|query| !key::is_counter(query));
        let guarded: HashSet<Query> = guards.iter().map(Guard::query).collect();
        remembered.filter(|query| !guarded.contains(*query)).cloned().collect()
    }
}

fn guard_of(query: &Query, value: &Value) -> Option<Guard> {
    Some(match (query.clone(), value.clone()) {
        (Query::Get(key), Value::Bytes(value)) => Guard::Value(key, value),
        (Query::HGet(key, field), Value::Bytes(value)) => Guard::Field(key, field, value),
        (Query::HGetAll(key), Value::Pairs(pairs)) => Guard::Fields(key, pairs),
        (Query::HLen { key, .. }, Value::Int(0)) => Guard::HashEmpty(key),
        (Query::HLen { key, .. }, Value::Int(_)) => Guard::HashNotEmpty(key),
        (Query::List(key), Value::List(elements)) => Guard::ListIs(key, elements),
        (Query::ZScore(key, member), Value::Score(score)) => Guard::Score(key, member, score),
        _ => return None,
    })
}

/// What an operation wants to do, and what it will answer.
pub struct Plan<T> {
    /// All must hold.
    pub guards: Vec<Guard>,
    /// All happen, in order; commutative counters last.
    pub writes: Vec<Write>,
    /// Answered after the writes, in the same step.
    pub reads: Vec<Query>,
    /// The plan is right only while this process has no open handle of this inode: the driver keeps opens out until it is committed.
    pub while_closed: Option<Ino>,
    /// Replies of the writes and values of the reads → the result. Pure.
    pub finish: Finish<T>,
}

/// The last part of a plan.
pub type Finish<T> = Box<dyn FnOnce(&[Value], &[Value]) -> Result<T, Errno> + Send>;

impl<T: Send + 'static> Plan<T> {
    /// A plan that answers `result` once it is committed.
    pub fn new(guards: Vec<Guard>, writes: Vec<Write>, result: T) -> Plan<T> {
        Plan { guards, writes, reads: Vec::new(), while_closed: None, finish: Box::new(|_, _| Ok(result)) }
    }

    /// Nothing to write: the answer is what was read.
    pub fn answer(result: T) -> Plan<T> {
        Plan::new(Vec::new(), Vec::new(), result)
    }
}
