//! What every store must do, as ordinary code: `run` panics where a store differs. Give it an empty store.

use super::{
    BytesRange, Commit, Cursor, FRAMES_BYTES_MAX, FRAMES_LOOKED_AT_MAX, Guard, Key, Query, ScanItem, ScanRange, Store, StoreError, Value,
    Write,
};
use crate::meta::codec::{self, encode_entry};
use crate::meta::key;
use crate::types::{Ino, Kind, SliceRecord};
use bytes::Bytes;
use std::collections::BTreeSet;

/// Runs everything.
pub async fn run(store: &dyn Store) {
    let suite = Suite { store };
    suite.guards().await;
    suite.writes().await;
    suite.failing_writes_undo_everything().await;
    suite.conflicts_tell_everything_and_change_nothing().await;
    suite.many_of_a_kind().await;
    suite.reads_see_one_commit().await;
    suite.entries().await;
    suite.scans().await;
    suite.scans_under_change().await;
    suite.scans_of_keys().await;
    suite.frames().await;
    suite.sessions().await;
    store.sync().await.expect("sync");
}

struct Suite<'a> {
    store: &'a dyn Store,
}

impl Suite<'_> {
    /// Neighbours of one kind, which a store may carry out together: every reply and every value of a conflict as if they stood alone.
    async fn many_of_a_kind(&self) {
        let field = |n: usize| Bytes::from(format!("f{n}"));
        let name = |n: usize| Bytes::from(format!("many{n}"));
        let fields = |range: std::ops::Range<usize>, value: Option<&'static str>| -> Vec<Guard> {
            range.map(|n| Guard::Field(k(), field(n), value.map(b))).collect()
        };
        let strings = |range: std::ops::Range<usize>, value: Option<&'static str>| -> Vec<Guard> {
            range.map(|n| Guard::Value(name(n), value.map(b))).collect()
        };
        let mut guards = [strings(0..9, None), fields(0..9, None), vec![Guard::HashEmpty(b("other"))]].concat();
        let mut writes: Vec<Write> = (0..9).map(|n| Write::Set(name(n), b("v"))).collect();
        writes.extend((0..9).map(|n| Write::HSet(k(), field(n), b("w"))));
        writes.extend((0..9).map(|n| Write::HSet(b("other"), field(n), b("x"))));
        writes.extend((0..4).map(|n| Write::ZAdd(b("sorted"), n, field(n as usize))));
        let commit = self.store.commit(&guards, &writes, &[Query::HGet(b("other"), field(8)), Query::ZScore(b("sorted"), field(3))]).await;
        let Ok(Commit::Done { replies, values }) = commit else { panic!("{commit:?}") };
        assert_eq!((replies.len(), values), (31, vec![Value::Bytes(Some(b("x"))), Value::Score(Some(3))]));
        // One of many does not hold: every value comes back, in order.
        guards = [fields(0..5, Some("w")), strings(3..6, Some("v")), fields(5..8, Some("no")), strings(6..12, Some("v"))].concat();
        let commit = self.store.commit(&guards, &[Write::Del(k())], &[]).await;
        let Ok(Commit::Conflict(found)) = commit else { panic!("{commit:?}") };
        assert_eq!(found.iter().map(|(query, _)| query.clone()).collect::<Vec<_>>(), guards.iter().map(Guard::query).collect::<Vec<_>>());
        for (query, value) in found {
            let want = match &query {
                Query::HGet(..) => Some(b("w")),
                Query::Get(key) if (9..12).any(|n| *key == name(n)) => None,
                _ => Some(b("v")),
            };
            assert_eq!(value, Value::Bytes(want), "{query:?}");
        }
        // What is there and what is not; several kinds in turn.
        let mut writes: Vec<Write> = (6..12).map(|n| Write::HDel(k(), field(n))).collect();
        writes.push(Write::IncrBy(b("count"), 5));
        writes.extend((0..6).map(|n| Write::HDel(k(), field(n))));
        writes.extend((0..12).map(|n| Write::Del(name(n))));
        writes.extend([Write::Set(name(1), b("again")), Write::Set(name(1), b("last"))]);
        let commit = self.store.commit(&[], &writes, &[Query::Get(name(0)), Query::Get(name(1)), Query::HLen { key: k(), limit: 9 }]).await;
        let Ok(Commit::Done { replies, values }) = commit else { panic!("{commit:?}") };
        let told: Vec<i64> = replies.iter().filter_map(|reply| if let Value::Int(n) = reply { Some(*n) } else { None }).collect();
        assert_eq!(told, [5]);
        assert_eq!(values, [Value::Bytes(None), Value::Bytes(Some(b("last"))), Value::Int(0)]);
        self.lists_and_counters_in_a_row().await;
        self.counters_of_all_sizes_in_a_row().await;
        self.empty_hashes_in_a_row().await;
        let rest = [Write::Del(name(1)), Write::Del(b("other")), Write::Del(b("sorted")), Write::Del(b("count"))];
        self.store.commit(&[], &rest, &[]).await.expect("commit");
    }

    /// Also where a double is too small for them, where one is named twice, and where a write before has changed them.
    async fn counters_of_all_sizes_in_a_row(&self) {
        let count = |name: &'static str, by: i64| Write::HIncrBy(k(), b(name), by);
        let outcome = self.done(&[], &[count("a", 1), count("b", 1 << 53), count("c", -3), count("d", (1 << 60) + 1)], &[]).await;
        assert_eq!(outcome.0, [1, 1 << 53, -3, (1 << 60) + 1].map(Value::Int));
        let outcome = self.done(&[], &[count("a", 1), count("b", 1), count("d", 1)], &[]).await;
        assert_eq!(outcome.0, [2, (1 << 53) + 1, (1 << 60) + 2].map(Value::Int));
        let outcome = self.done(&[], &[count("a", 5), count("c", 3), count("a", -8), count("e", 0)], &[]).await;
        assert_eq!(outcome.0, [7, 0, -1, 0].map(Value::Int));
        let other = Write::IncrBy(b("between"), 1);
        for (first, want) in
            [(Write::HIncrIfPresent(k(), b("a"), 5), [14, 1]), (hset("a", "30"), [40, 2]), (Write::HDel(k(), b("a")), [10, 3])]
        {
            let outcome = self.done(&[], &[first, other.clone(), count("a", 10), count("f", 1)], &[]).await;
            assert_eq!(outcome.0.iter().rev().take(2).rev().cloned().collect::<Vec<_>>(), want.map(Value::Int));
        }
        let outcome = self.done(&[], &[count("a", 1), count("f", 1), other, count("f", 1), count("a", -1)], &[]).await;
        assert_eq!(outcome.0, [11, 4, 4, 5, 10].map(Value::Int));
        let want = [("a", 10), ("b", (1 << 53) + 1), ("c", 0), ("d", (1 << 60) + 2), ("e", 0), ("f", 5)];
        let Value::Pairs(mut pairs) = self.ask(Query::HGetAll(k())).await else { panic!("pairs") };
        pairs.sort();
        assert_eq!(pairs, want.map(|(name, value): (_, i64)| (b(name), Bytes::from(value.to_string()))));
        self.write(&[Write::Del(k()), Write::Del(b("between"))]).await;
    }

    /// One that is not is told with all it has.
    async fn empty_hashes_in_a_row(&self) {
        let name = |n: usize| Bytes::from(format!("hash{n}"));
        let none = |range: std::ops::Range<usize>| range.map(move |n| Guard::Fields(name(n), vec![]));
        let empty = |range: std::ops::Range<usize>| range.map(move |n| Guard::HashEmpty(name(n)));
        let guards: Vec<Guard> = none(0..4).chain(empty(4..8)).collect();
        let made: Vec<Write> = [2, 6].map(|n| Write::HSet(name(n), b("f"), b("v"))).to_vec();
        self.done(&guards, &made, &[]).await;
        let outcome = self.store.commit(&guards, &[set("no")], &[]).await;
        let Ok(Commit::Conflict(found)) = outcome else { panic!("{outcome:?}") };
        let value = |n: usize| match n {
            2 => Value::Pairs(pairs(&[("f", "v")])),
            0..4 => Value::Pairs(vec![]),
            _ => Value::Int(i64::from(n == 6)),
        };
        let want: Vec<_> = guards.iter().enumerate().map(|(n, guard)| (guard.query(), value(n))).collect();
        assert_eq!(found, want);
        self.write(&[Write::Del(name(2)), Write::Del(name(6))]).await;
        self.done(&guards, &[set("yes")], &[]).await;
        self.write(&[Write::Del(k())]).await;
    }

    /// Each is told of, and one that cannot be done leaves all undone.
    async fn lists_and_counters_in_a_row(&self) {
        let name = |n: usize| Bytes::from(format!("list{n}"));
        let field = |n: usize| Bytes::from(format!("f{n}"));
        let push = |n: usize| Write::RPush(name(n), (0..=n).map(field).collect());
        let count = |n: usize| Write::HIncrBy(b("counts"), field(n), n as i64 - 2);
        let writes: Vec<Write> = (0..4).map(push).chain((0..4).map(count)).collect();
        let told = |numbers: [i64; 8]| numbers.map(Value::Int).to_vec();
        assert_eq!(self.done(&[], &writes, &[]).await.0, told([1, 2, 3, 4, -2, -1, 0, 1]));
        // The lists are there now, but for one.
        self.write(&[Write::Del(name(2))]).await;
        let absent: Vec<Guard> = (4..9).map(|n| Guard::Value(name(n), None)).collect();
        assert_eq!(self.done(&absent, &writes, &[]).await.0, told([2, 4, 3, 8, -4, -2, 0, 2]));
        let queries: Vec<Query> = (0..4).map(|n| Query::List(name(n))).chain([Query::HGetAll(b("counts"))]).collect();
        let before = self.store.read(&queries).await.expect("read");
        assert_eq!(before[2], Value::List((0..3).map(field).collect()));
        self.write(&[Write::HSet(b("counts"), field(1), b("no number"))]).await;
        let outcome = self.store.commit(&[], &writes, &[]).await;
        assert!(matches!(outcome, Err(StoreError::Damaged(_))), "{outcome:?}");
        self.write(&[Write::HSet(b("counts"), field(1), b("-2"))]).await;
        assert_eq!(self.store.read(&queries).await.expect("read"), before);
        // Many are answered as each alone.
        self.write(&[Write::Set(b("string"), b("v")), Write::ZAdd(b("scores"), 7, b("m")), Write::SAdd(b("members"), b("m"))]).await;
        let mut many: Vec<Query> = (0..30).flat_map(|n| [Query::List(name(n)), Query::HGet(b("counts"), field(n))]).collect();
        many.extend([Query::Get(b("string")), Query::HGetAll(b("counts")), Query::Get(b("absent")), Query::SMembers(b("members"))]);
        many.extend([Query::HLen { key: b("counts"), limit: 9 }, Query::ZScore(b("scores"), b("m")), Query::Get(b("string"))]);
        many.push(Query::ZRange { key: b("scores"), max: 9, limit: 2 });
        let mut alone = Vec::new();
        for query in &many {
            alone.extend(self.store.read(std::slice::from_ref(query)).await.expect("read"));
        }
        assert!(!crate::meta::store::is_watched(many.len()));
        assert_eq!(self.store.read(&many).await.expect("read"), alone);
        self.write(&[Write::Del(b("string")), Write::Del(b("scores")), Write::Del(b("members"))]).await;
        let rest: Vec<Write> = (0..4).map(|n| Write::Del(name(n))).chain([Write::Del(b("counts"))]).collect();
        self.write(&rest).await;
    }
}

fn b(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn k() -> Key {
    b("k")
}

fn list(elements: &[&'static str]) -> Vec<Bytes> {
    elements.iter().map(|text| b(text)).collect()
}

fn pairs(fields: &[(&'static str, &'static str)]) -> Vec<(Bytes, Bytes)> {
    fields.iter().map(|(field, value)| (b(field), b(value))).collect()
}

fn set(value: &'static str) -> Write {
    Write::Set(k(), b(value))
}

fn hset(field: &'static str, value: &'static str) -> Write {
    Write::HSet(k(), b(field), b(value))
}

fn rpush(elements: &[&'static str]) -> Write {
    Write::RPush(k(), list(elements))
}

fn patch(offset: u32, bytes: &'static str) -> Write {
    Write::Patch { key: k(), offset, bytes: b(bytes) }
}

fn add_u32(offset: u32, delta: i32) -> Write {
    Write::AddU32 { key: k(), offset, delta }
}

fn text(value: &'static str) -> Value {
    Value::Bytes(Some(b(value)))
}

const ABSENT: Value = Value::Bytes(None);

impl Suite<'_> {
    async fn done(&self, guards: &[Guard], writes: &[Write], reads: &[Query]) -> (Vec<Value>, Vec<Value>) {
        match self.store.commit(guards, writes, reads).await {
            Ok(Commit::Done { replies, values }) => {
                assert_eq!((replies.len(), values.len()), (writes.len(), reads.len()), "one answer each");
                (replies, values)
            }
            other => panic!("{guards:?} {writes:?}: {other:?}"),
        }
    }

    async fn write(&self, writes: &[Write]) {
        self.done(&[], writes, &[]).await;
    }

    async fn ask(&self, query: Query) -> Value {
        let mut values = self.store.read(std::slice::from_ref(&query)).await.expect("read");
        assert_eq!(values.len(), 1);
        let value = values.remove(0);
        // Two queries take another way than one.
        let twice = self.store.read(&[query.clone(), query]).await.expect("read");
        assert_eq!(twice, [value.clone(), value.clone()]);
        value
    }

    /// The key as a string and as a hash; whether a store takes the wrong type for absent or for damage is left to it.
    async fn look(&self) -> [Result<Vec<Value>, StoreError>; 2] {
        [self.store.read(&[Query::Get(k())]).await, self.store.read(&[Query::HGetAll(k())]).await]
    }

    async fn guards(&self) {
        let bytes = |ranges: &[(u32, Option<u32>, &'static str)]| {
            Guard::Bytes(k(), ranges.iter().map(|(from, to, bytes)| (BytesRange { from: *from, to: *to }, b(bytes))).collect())
        };
        let value = |expected: Option<&'static str>| Guard::Value(k(), expected.map(b));
        let field = |expected: Option<&'static str>| Guard::Field(k(), b("f"), expected.map(b));
        let fields = |expected: &[(&'static str, &'static str)]| Guard::Fields(k(), pairs(expected));
        let score = |expected| Guard::Score(k(), b("m"), expected);
        let hash = [hset("f", "1"), hset("g", "2")];
        let zset = [Write::ZAdd(k(), -3, b("m"))];
        let numbers = [rpush(&["1", "2", "3"])];
        let table: &[(&[Write], Guard, bool)] = &[
            (&[], value(None), true),
            (&[], value(Some("")), false),
            (&[set("abc")], value(Some("abc")), true),
            (&[set("abc")], value(Some("ab")), false),
            (&[set("abc")], value(None), false),
            (&[set("")], value(Some("")), true),
            (&[set("")], value(None), false),
            (&[], bytes(&[]), false),
            (&[set("abcdef")], bytes(&[]), true),
            (&[set("abcdef")], bytes(&[(0, Some(2), "ab"), (4, None, "ef")]), true),
            (&[set("abcdef")], bytes(&[(0, Some(2), "ab"), (4, None, "eg")]), false),
            (&[set("abcdef")], bytes(&[(0, Some(2), "abc")]), false),
            (&[set("abcdef")], bytes(&[(4, Some(99), "ef")]), true),
            (&[set("abcdef")], bytes(&[(6, None, "")]), true),
            (&[set("abcdef")], bytes(&[(99, Some(100), "")]), true),
            (&[set("abcdef")], bytes(&[(99, None, "x")]), false),
            (&[set("abcdef")], bytes(&[(4, Some(2), "")]), true),
            (&[], field(None), true),
            (&[], field(Some("1")), false),
            (&hash, field(Some("1")), true),
            (&hash, field(Some("2")), false),
            (&hash, field(None), false),
            (&[], fields(&[]), true),
            (&hash, fields(&[]), false),
            (&hash, fields(&[("g", "2"), ("f", "1")]), true),
            (&hash, fields(&[("f", "1")]), false),
            (&hash, fields(&[("f", "1"), ("g", "3")]), false),
            (&hash, fields(&[("f", "1"), ("g", "2"), ("h", "3")]), false),
            (&[], Guard::HashEmpty(k()), true),
            (&[], Guard::HashNotEmpty(k()), false),
            (&hash, Guard::HashEmpty(k()), false),
            (&hash, Guard::HashNotEmpty(k()), true),
            (&[], Guard::HashLen(k(), 0), true),
            (&hash, Guard::HashLen(k(), 0), false),
            (&hash, Guard::HashLen(k(), 2), true),
            (&[], Guard::ListPrefix(k(), vec![]), true),
            (&[], Guard::ListPrefix(k(), list(&["1"])), false),
            (&numbers, Guard::ListPrefix(k(), list(&["1", "2"])), true),
            (&numbers, Guard::ListPrefix(k(), list(&["2"])), false),
            (&numbers, Guard::ListPrefix(k(), list(&["1", "2", "3", "4"])), false),
            (&[], Guard::ListIs(k(), vec![]), true),
            (&numbers, Guard::ListIs(k(), list(&["1", "2", "3"])), true),
            (&numbers, Guard::ListIs(k(), list(&["1", "2"])), false),
            (&numbers, Guard::ListIs(k(), list(&["1", "3", "2"])), false),
            (&[], score(None), true),
            (&[], score(Some(0)), false),
            (&zset, score(Some(-3)), true),
            (&zset, score(Some(3)), false),
            (&zset, score(None), false),
        ];
        for (setup, guard, holds) in table {
            self.write(setup).await;
            // With and without writes a guard means the same.
            for writes in [&[][..], &[Write::Set(b("witness"), b("1"))]] {
                let before = self.ask(guard.query()).await;
                let commit = self.store.commit(std::slice::from_ref(guard), writes, &[]).await.expect("commit");
                match commit {
                    Commit::Done { .. } => assert!(holds, "{setup:?} {guard:?} held"),
                    Commit::Conflict(values) => {
                        assert!(!holds, "{setup:?} {guard:?} did not hold");
                        assert_eq!(values, [(guard.query(), before)]);
                    }
                }
                let expected = if *holds && !writes.is_empty() { text("1") } else { ABSENT };
                assert_eq!(self.ask(Query::Get(b("witness"))).await, expected, "{setup:?} {guard:?}");
            }
            self.write(&[Write::Del(k()), Write::Del(b("witness"))]).await;
        }
    }

    async fn writes(&self) {
        let get = || Query::Get(k());
        let field = || Query::HGet(k(), b("f"));
        let elements = || Query::List(k());
        let all = || Query::HGetAll(k());
        let members = || Query::SMembers(k());
        let ranked = |max, limit| Query::ZRange { key: k(), max, limit };
        let count = |limit| Query::HLen { key: k(), limit };
        let done = || Value::Done;
        let scored = |items: &[(&'static str, i64)]| Value::Scored(items.iter().map(|(member, score)| (b(member), *score)).collect());
        let hash = [hset("f", "1"), hset("g", "2"), hset("h", "3")];
        let numbers = [rpush(&["1", "2"])];
        let zset = [Write::ZAdd(k(), 5, b("a")), Write::ZAdd(k(), -7, b("b")), Write::ZAdd(k(), 5, b("0"))];
        let set_of_two = [Write::SAdd(k(), b("a")), Write::SAdd(k(), b("b"))];
        // What is there, one write, its reply, a question and its answer.
        let table: &[(&[Write], Write, Value, Query, Value)] = &[
            (&[], set("v"), done(), get(), text("v")),
            (&[set("old")], set(""), done(), get(), text("")),
            (&[set("abcdef")], patch(2, "XY"), done(), get(), text("abXYef")),
            (&[set("abcdef")], patch(4, "XY"), done(), get(), text("abcdXY")),
            (&[set("abcdef")], patch(6, ""), done(), get(), text("abcdef")),
            (&[set("a\0\0\u{1}\0b")], add_u32(1, 2), done(), get(), text("a\0\0\u{1}\u{2}b")),
            (&[set("a\0\0\u{1}\0b")], add_u32(1, -1), done(), get(), Value::Bytes(Some(Bytes::from_static(b"a\0\0\0\xFFb")))),
            (&[], Write::IncrBy(k(), 5), Value::Int(5), get(), text("5")),
            (&[set("7")], Write::IncrBy(k(), -9), Value::Int(-2), get(), text("-2")),
            (&[set("7")], Write::IncrBy(k(), 0), Value::Int(7), get(), text("7")),
            (&[set("v")], Write::Del(k()), done(), get(), ABSENT),
            (&[], Write::Del(k()), done(), get(), ABSENT),
            (&hash, Write::Del(k()), done(), all(), Value::Pairs(vec![])),
            (&numbers, Write::Del(k()), done(), elements(), Value::List(vec![])),
            (&set_of_two, Write::Del(k()), done(), members(), Value::List(vec![])),
            (&zset, Write::Del(k()), done(), ranked(99, 9), scored(&[])),
            (&[], hset("f", "1"), done(), field(), text("1")),
            (&hash, hset("f", ""), done(), field(), text("")),
            (&hash, hset("e", "0"), done(), all(), Value::Pairs(pairs(&[("e", "0"), ("f", "1"), ("g", "2"), ("h", "3")]))),
            (&hash, Write::HDel(k(), b("f")), done(), field(), ABSENT),
            (&hash, Write::HDel(k(), b("x")), done(), count(9), Value::Int(3)),
            (&hash, Write::HIncrBy(k(), b("f"), 10), Value::Int(11), field(), text("11")),
            (&[], Write::HIncrBy(k(), b("f"), -1), Value::Int(-1), field(), text("-1")),
            (&hash, Write::HIncrIfPresent(k(), b("f"), -3), done(), field(), text("-2")),
            (&[], Write::HIncrIfPresent(k(), b("f"), 3), done(), field(), ABSENT),
            (&[hset("f", "no number")], Write::HIncrIfPresent(k(), b("f"), 3), done(), field(), text("no number")),
            (&hash, hset("f", "1"), done(), count(2), Value::Int(2)),
            (&hash, hset("f", "1"), done(), count(0), Value::Int(0)),
            (&[], rpush(&["1", "2"]), Value::Int(2), elements(), Value::List(list(&["1", "2"]))),
            (&numbers, rpush(&["3", "1"]), Value::Int(4), elements(), Value::List(list(&["1", "2", "3", "1"]))),
            (&numbers, Write::RPushX(k(), b("3")), Value::Int(3), elements(), Value::List(list(&["1", "2", "3"]))),
            (&[], Write::RPushX(k(), b("3")), Value::Int(0), elements(), Value::List(vec![])),
            (&numbers, Write::LPush(k(), list(&["x", "y"])), Value::Int(4), elements(), Value::List(list(&["x", "y", "1", "2"]))),
            (&[], Write::LPush(k(), list(&["x", "y"])), Value::Int(2), elements(), Value::List(list(&["x", "y"]))),
            (&numbers, Write::LTrim(k(), 0), done(), elements(), Value::List(list(&["1", "2"]))),
            (&numbers, Write::LTrim(k(), 1), done(), elements(), Value::List(list(&["2"]))),
            (&numbers, Write::LTrim(k(), 2), done(), elements(), Value::List(vec![])),
            (&numbers, Write::LTrim(k(), u32::MAX), done(), elements(), Value::List(vec![])),
            (&[], Write::LTrim(k(), 1), done(), elements(), Value::List(vec![])),
            (&set_of_two, Write::SAdd(k(), b("a")), done(), members(), Value::List(list(&["a", "b"]))),
            (&set_of_two, Write::SRem(k(), b("a")), Value::Int(1), members(), Value::List(list(&["b"]))),
            (&set_of_two, Write::SRem(k(), b("c")), Value::Int(0), members(), Value::List(list(&["a", "b"]))),
            (&zset, Write::ZAdd(k(), 6, b("a")), done(), ranked(99, 9), scored(&[("b", -7), ("0", 5), ("a", 6)])),
            (&zset, Write::ZAdd(k(), i64::MAX, b("z")), done(), Query::ZScore(k(), b("z")), Value::Score(Some(i64::MAX))),
            (&zset, Write::ZRem(k(), b("b")), Value::Int(1), ranked(5, 1), scored(&[("0", 5)])),
            (&zset, Write::ZRem(k(), b("c")), Value::Int(0), ranked(4, 9), scored(&[("b", -7)])),
            (&zset, Write::ZRem(k(), b("a")), Value::Int(1), Query::ZScore(k(), b("a")), Value::Score(None)),
        ];
        for (setup, write, reply, query, answer) in table {
            self.write(setup).await;
            let (replies, values) = self.done(&[], std::slice::from_ref(write), std::slice::from_ref(query)).await;
            assert_eq!((&replies[0], &values[0]), (reply, answer), "{setup:?} {write:?}");
            assert_eq!(&self.ask(query.clone()).await, answer, "{setup:?} {write:?}");
            self.write(&[Write::Del(k())]).await;
        }
        // Writes of one commit see each other.
        let writes = [
            set("\0\0\0\u{1}"),
            add_u32(0, 1),
            patch(0, "\u{1}"),
            Write::Del(k()),
            Write::IncrBy(k(), 3),
            Write::IncrBy(k(), 4),
            Write::Del(k()),
        ];
        let (replies, values) = self.done(&[], &writes, &[get()]).await;
        assert_eq!((&replies[4..6], &values[..]), (&[Value::Int(3), Value::Int(7)][..], &[ABSENT][..]));
        let writes = [rpush(&["1", "2"]), Write::Del(k()), rpush(&["3"]), Write::LTrim(k(), 1), Write::RPushX(k(), b("4"))];
        let (replies, values) = self.done(&[], &writes, &[elements()]).await;
        assert_eq!((&replies[2], &replies[4], &values[0]), (&Value::Int(1), &Value::Int(0), &Value::List(vec![])));
    }

    async fn failing_writes_undo_everything(&self) {
        let number = Write::HIncrBy(k(), b("f"), 1);
        let table: &[(&[Write], Write)] = &[
            (&[], patch(0, "x")),
            (&[set("abc")], patch(3, "x")),
            (&[set("abc")], patch(2, "xy")),
            (&[set("abc")], patch(u32::MAX, "xy")),
            (&[], add_u32(0, 1)),
            (&[set("abc")], add_u32(0, 1)),
            (&[set("abcd")], add_u32(1, 1)),
            (&[set("\0\0\0\0")], add_u32(0, -1)),
            (&[set("abc")], Write::IncrBy(k(), 1)),
            (&[set("9223372036854775807")], Write::IncrBy(k(), 1)),
            (&[hset("f", "1.5")], number),
        ];
        for (setup, write) in table {
            self.write(setup).await;
            let before = self.look().await;
            let writes = [
                Write::Set(b("w1"), b("1")),
                Write::HSet(b("w2"), b("f"), b("1")),
                Write::RPush(b("w3"), list(&["1"])),
                Write::SAdd(b("w4"), b("1")),
                Write::ZAdd(b("w5"), 1, b("1")),
                Write::PutFrame(1, b("frame")),
                write.clone(),
                Write::Set(b("w6"), b("1")),
            ];
            let result = self.store.commit(&[], &writes, &[]).await;
            assert!(matches!(result, Err(StoreError::Damaged(_))), "{setup:?} {write:?}: {result:?}");
            assert_eq!(self.look().await, before);
            assert_eq!(self.keys("w", 99).await, Vec::<Bytes>::new(), "nothing happened");
            assert_eq!(self.store.frame(1).await, Ok(None));
            self.write(&[Write::Del(k())]).await;
        }
    }

    async fn conflicts_tell_everything_and_change_nothing(&self) {
        self.write(&[set("v"), Write::HSet(b("h"), b("f"), b("1"))]).await;
        let guards = [Guard::Value(k(), Some(b("v"))), Guard::Field(b("h"), b("f"), Some(b("2"))), Guard::ListIs(b("l"), list(&["x"]))];
        let result = self.store.commit(&guards, &[set("changed")], &[]).await;
        let expected =
            vec![(Query::Get(k()), text("v")), (Query::HGet(b("h"), b("f")), text("1")), (Query::List(b("l")), Value::List(vec![]))];
        assert_eq!(result, Ok(Commit::Conflict(expected)), "also those that hold");
        assert_eq!(self.ask(Query::Get(k())).await, text("v"));
        self.write(&[Write::Del(k()), Write::Del(b("h"))]).await;
    }

    async fn reads_see_one_commit(&self) {
        self.write(&[set("1")]).await;
        let (_, values) =
            self.done(&[Guard::Value(k(), Some(b("1")))], &[set("2")], &[Query::Get(k()), Query::HGet(b("no"), b("f"))]).await;
        assert_eq!(values, [text("2"), ABSENT], "reads are answered after the writes");
        assert_eq!(self.store.read(&[]).await, Ok(vec![]));
        self.write(&[Write::Del(k())]).await;
    }

    async fn entries(&self) {
        let dir = key::dir(Ino(1));
        let named = |name: &'static str| Query::Entry { dir: dir.clone(), name: b(name) };
        let there = encode_entry(Kind::File, Ino(5));
        let lost = encode_entry(Kind::Dir, Ino(6));
        self.write(&[
            Write::Set(key::inode(Ino(5)), b("record")),
            Write::HSet(dir.clone(), b("there"), there.clone()),
            Write::HSet(dir.clone(), b("lost"), lost.clone()),
            Write::HSet(dir.clone(), b("bad"), b("not an entry")),
        ])
        .await;
        assert_eq!(self.ask(named("absent")).await, Value::Entry(None));
        assert_eq!(self.ask(named("there")).await, Value::Entry(Some((there.clone(), Some(b("record"))))));
        assert_eq!(self.ask(named("lost")).await, Value::Entry(Some((lost.clone(), None))));
        assert_eq!(self.ask(named("bad")).await, Value::Entry(Some((b("not an entry"), None))));
        let items = self.all(&ScanRange::Dir(dir.clone()), 2).await;
        let mut seen: Vec<_> = items.into_iter().map(|item| (item.name, item.value, item.record)).collect();
        seen.sort();
        assert_eq!(seen, [(b("bad"), b("not an entry"), b("")), (b("lost"), lost, b("")), (b("there"), there, b("record"))]);
        self.write(&[Write::Del(dir), Write::Del(key::inode(Ino(5)))]).await;
    }

    async fn all(&self, range: &ScanRange, limit: u32) -> Vec<ScanItem> {
        let mut items = Vec::new();
        let mut cursor = Cursor::new();
        loop {
            let page = self.store.scan(range, cursor, limit).await.expect("scan");
            items.extend(page.items);
            match page.next {
                Some(next) => cursor = next,
                None => return items,
            }
        }
    }

    async fn keys(&self, prefix: &'static str, limit: u32) -> Vec<Bytes> {
        self.all(&ScanRange::Keys(b(prefix)), limit).await.into_iter().map(|item| item.name).collect()
    }

    async fn scans(&self) {
        assert_eq!(self.store.scan(&ScanRange::Hash(k()), Cursor::new(), 1).await, Ok(Default::default()), "nothing there");
        let names: Vec<Bytes> = (0..100u32).map(|n| format!("{}", n * 7 % 101).into()).chain([Bytes::from_static(b"\xFF\0\xFE")]).collect();
        let mut writes: Vec<Write> = names.iter().map(|name| Write::HSet(k(), name.clone(), format!("v{name:?}").into())).collect();
        writes.extend(names.iter().enumerate().map(|(n, name)| Write::ZAdd(b("z"), n as i64 - 50, name.clone())));
        writes.extend([Write::HSet(b("j"), b("other"), b("")), Write::HSet(b("kk"), b("other"), b(""))]);
        self.write(&writes).await;
        for limit in [1, 2, 7, 100, 101, 102, u32::MAX] {
            let items = self.all(&ScanRange::Hash(k()), limit).await;
            assert_eq!(items.len(), names.len(), "each once while nothing changes");
            assert!(items.iter().all(|item| item.value == format!("v{:?}", item.name) && item.record.is_empty()));
            let seen: BTreeSet<_> = items.into_iter().map(|item| item.name).collect();
            assert_eq!(seen, names.iter().cloned().collect());
            let items = self.all(&ScanRange::Sorted(b("z")), limit).await;
            assert_eq!(items.len(), names.len());
            for item in items {
                let n = names.iter().position(|name| *name == item.name).expect("a member");
                assert_eq!(item.value, (n as i64 - 50).to_string());
            }
        }
        self.write(&[Write::Del(k()), Write::Del(b("z")), Write::Del(b("j")), Write::Del(b("kk"))]).await;
    }

    async fn scans_under_change(&self) {
        let name = |n: u32| Bytes::from(format!("{n:03}"));
        self.write(&(0..200).map(|n| Write::HSet(k(), name(n), b("")).clone()).collect::<Vec<_>>()).await;
        let mut seen = BTreeSet::new();
        let mut cursor = Cursor::new();
        let mut round = 0;
        loop {
            let page = self.store.scan(&ScanRange::Hash(k()), cursor, 10).await.expect("scan");
            seen.extend(page.items.into_iter().map(|item| item.name));
            let Some(next) = page.next else { break };
            cursor = next;
            // Odd names go, the one the cursor stands on among them, and others come before and after it.
            let gone = (0..10).map(|n| Write::HDel(k(), name(round * 10 + n * 2 % 10 + 1)));
            let come = [Write::HSet(k(), format!("{round:03}new").into(), b("")), Write::HSet(k(), format!("~{round}").into(), b(""))];
            self.write(&gone.chain(come).collect::<Vec<_>>()).await;
            round += 1;
            assert!(round < 100, "the scan ends");
        }
        for n in (0..200).step_by(2) {
            assert!(seen.contains(&name(n)), "{n} stayed and was not seen");
        }
        self.write(&[Write::Del(k())]).await;
    }

    async fn scans_of_keys(&self) {
        let mut writes = vec![
            Write::Set(b("a1"), b("")),
            Write::RPush(b("b2"), list(&["x", "y"])),
            Write::SAdd(b("b3"), b("x")),
            Write::SAdd(b("b3"), b("y")),
            Write::ZAdd(b("b4"), 1, b("x")),
            Write::ZAdd(b("b4"), 2, b("y")),
            Write::Set(b("b5"), b("")),
            Write::Set(b("c"), b("")),
            Write::Set(Bytes::from_static(b"b\xFF\xFF"), b("")),
        ];
        writes.extend((0..50u32).map(|n| Write::HSet(b("b1"), format!("{n}").into(), b(""))));
        self.write(&writes).await;
        let expected: Vec<Bytes> = [&b"b1"[..], b"b2", b"b3", b"b4", b"b5", b"b\xFF\xFF"].map(Bytes::from_static).to_vec();
        for limit in [1, 2, 5, 6, 7, 1000] {
            let mut keys = self.keys("b", limit).await;
            keys.sort();
            assert_eq!(keys, expected, "each key once, whatever it holds");
            let own = |keys: Vec<Bytes>| keys.into_iter().filter(|key| !key.starts_with(b"_pando:op:")).count();
            assert_eq!(own(self.keys("", limit).await), 8);
            assert_eq!(self.keys("b1", limit).await, [b("b1")]);
            assert_eq!(self.keys("zz", limit).await, Vec::<Bytes>::new());
        }
        self.write(&expected.into_iter().chain([b("a1"), b("c")]).map(Write::Del).collect::<Vec<_>>()).await;
        for prefix in ["a", "b", "c", "d", "h", "i", "k", "l", "w", "z"] {
            assert_eq!(self.keys(prefix, 1).await, Vec::<Bytes>::new(), "the suite leaves nothing behind");
        }
    }

    async fn frames(&self) {
        let big = Bytes::from(vec![0xA5; 64 << 10]);
        self.write(&[Write::PutFrame(u64::MAX, big.clone()), Write::PutFrame(0, b("")), Write::PutFrame(7, b("old"))]).await;
        self.write(&[Write::PutFrame(7, b("new"))]).await;
        let found = [self.store.frame(u64::MAX).await, self.store.frame(0).await, self.store.frame(7).await, self.store.frame(8).await];
        assert_eq!(found, [Ok(Some(big)), Ok(Some(b(""))), Ok(Some(b("new"))), Ok(None)]);
        let conflict = self.store.commit(&[Guard::HashNotEmpty(k())], &[Write::DelFrame(7)], &[]).await;
        assert!(matches!(conflict, Ok(Commit::Conflict(_))));
        assert_eq!(self.store.frame(7).await, Ok(Some(b("new"))));
        assert_eq!(self.kept().await, (3, (64 << 10) + 3));
        let oldest = self.store.read(&[Query::OldestFrames { limit: 2 }, Query::OldestFrames { limit: 9 }]).await.expect("read");
        let ids = |value: &Value| match value {
            Value::Scored(ids) => ids.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!((ids(&oldest[0]).len(), ids(&oldest[1]).len()), (2, 3));
        assert!(ids(&oldest[1]).contains(&Bytes::copy_from_slice(&7u64.to_be_bytes())));
        let gone = [Write::DelFrame(7), Write::DelFrame(8), Write::DelFrame(0)];
        assert_eq!(self.done(&[], &gone, &[]).await.0, [Value::Int(1), Value::Int(0), Value::Int(1)]);
        assert_eq!((self.store.frame(7).await, self.kept().await), (Ok(None), (1, 64 << 10)));
        self.write(&[Write::DelFrame(u64::MAX)]).await;
        assert_eq!(self.kept().await, (0, 0));
        self.frames_of_a_list().await;
    }

    /// How many frames there are, and their bytes.
    async fn kept(&self) -> (u64, u64) {
        match &self.store.read(&[Query::FramesKept]).await.expect("read")[..] {
            [Value::Kept(kept)] => (kept.count, kept.bytes),
            other => panic!("{other:?}"),
        }
    }

    async fn frames_of_a_list(&self) {
        let record = |id: u64, size: u32| codec::encode_slice(&SliceRecord { pos: 0, id, size, off: 0, len: size });
        let half = Bytes::from(vec![1; FRAMES_BYTES_MAX / 2]);
        let hole = codec::encode_slice(&SliceRecord::hole(0, 9));
        // Of a large slice, a hole and what is no record nothing is said.
        let elements = vec![record(1, 5), record(2, 70_000), hole, b("no record"), record(3, 64 << 10), record(4, 1)];
        let frames = [Write::PutFrame(2, b("x")), Write::PutFrame(3, half.clone()), Write::PutFrame(4, b("4"))];
        self.write(&[&[Write::RPush(k(), elements)], &frames[..]].concat()).await;
        let frames = [(k(), 0), (b("nothing"), 0), (k(), 3), (k(), 4), (k(), 77)].map(|(list, until)| Query::Frames { list, until });
        let told = Value::Frames(vec![(4, Some(b("4"))), (3, Some(half.clone())), (1, None)]);
        let nothing = Value::Frames(Vec::new());
        let new = Value::Frames(vec![(4, Some(b("4")))]);
        assert_eq!(self.store.read(&frames).await, Ok(vec![told.clone(), nothing.clone(), new, nothing, told.clone()]));
        assert_eq!(self.done(&[], &[Write::Set(b("other"), b("v"))], &frames[..1]).await.1, vec![told]);
        // The answer is bounded, in slices and in bytes.
        let more = (10..10 + FRAMES_LOOKED_AT_MAX as u64).map(|id| record(id, 1)).collect();
        self.write(&[Write::RPush(k(), more)]).await;
        match &self.store.read(&frames[..1]).await.expect("read")[..] {
            [Value::Frames(told)] => {
                assert!(told.len() == FRAMES_LOOKED_AT_MAX && told.iter().all(|(id, frame)| *id >= 10 && frame.is_none()))
            }
            other => panic!("{other:?}"),
        }
        let elements = (1..=4).map(|id| record(id, 60_000)).collect();
        self.write(&[Write::Del(k()), Write::RPush(k(), elements), Write::PutFrame(1, half.clone()), Write::PutFrame(4, half)]).await;
        match &self.store.read(&frames[..1]).await.expect("read")[..] {
            [Value::Frames(told)] => assert_eq!(told.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [4, 3]),
            other => panic!("{other:?}"),
        }
        self.write(&[&[1, 2, 3, 4].map(Write::DelFrame)[..], &[Write::Del(k()), Write::Del(b("other"))]].concat()).await;
        assert_eq!(self.kept().await, (0, 0));
    }

    async fn sessions(&self) {
        assert_eq!(self.store.claim_session(3), Ok(true));
        assert_ne!(self.store.session_alive(3), Some(false));
        assert_ne!(self.store.session_alive(4), Some(true));
        self.write(&[set("1"), Write::Del(k())]).await;
        assert_eq!(self.store.forget_session(3).await, Ok(()));
        assert_eq!(self.store.forget_session(99).await, Ok(()), "nothing is kept of it");
        self.write(&[set("1"), Write::Del(k())]).await;
    }
}
