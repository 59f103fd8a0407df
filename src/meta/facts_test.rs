//! Tests of `Facts`: what is remembered, for how long it stands.

use super::*;
use crate::env::ManualClock;

fn facts(bytes_max: usize) -> (Arc<ManualClock>, Facts) {
    let clock = Arc::new(ManualClock::new(Duration::from_secs(1000)));
    (clock.clone(), Facts::bounded(clock, bytes_max))
}

fn get(key: &'static str) -> Query {
    Query::Get(key.into())
}

fn bytes(text: &'static str) -> Value {
    Value::Bytes(Some(text.into()))
}

fn entry(dir: &'static str, name: &'static str) -> Query {
    Query::HGet(dir.into(), name.into())
}

fn commit(facts: &Facts, guards: &[Guard], writes: &[Write], replies: &[Value]) {
    facts.ask_to_write(1, writes).committed(guards, replies, &[], &[]);
}

#[test]
fn commits_are_applied_or_make_it_forget() {
    let (_, facts) = facts(BYTES_MAX);
    let all = Query::HGetAll("h".into());
    let record = Value::Bytes(Some(Bytes::from_static(&[0, 0, 0, 7, 9, 9])));
    let pairs = Value::Pairs(vec![("a".into(), "1".into()), ("b".into(), "2".into())]);
    facts.ask(1).learn([(&get("s"), &record), (&all, &pairs), (&Query::List("l".into()), &Value::List(vec!["x".into()]))]);
    let writes = [
        Write::AddU32 { key: "s".into(), offset: 0, delta: -1 },
        Write::Patch { key: "s".into(), offset: 4, bytes: "ab".into() },
        // Of what is not known, and beyond the end of what is.
        Write::Patch { key: "unknown".into(), offset: 0, bytes: "x".into() },
        Write::HSet("h".into(), "a".into(), "3".into()),
        Write::HDel("h".into(), "b".into()),
        Write::HIncrBy("h".into(), "c".into(), 5),
        Write::RPush("l".into(), vec!["y".into()]),
        Write::Del("d".into()),
        Write::IncrBy("n".into(), 3),
    ];
    let mut replies = vec![Value::Done; writes.len()];
    replies[5] = Value::Int(12);
    replies[8] = Value::Int(8);
    commit(&facts, &[Guard::Field("g".into(), "f".into(), None)], &writes, &replies);
    assert_eq!(facts.recall(&[get("s")]), Some(vec![Value::Bytes(Some(Bytes::from_static(b"\0\0\0\x06ab")))]));
    assert_eq!(facts.recall(&[all]), Some(vec![Value::Pairs(vec![("a".into(), "3".into()), ("c".into(), "12".into())])]));
    let known = [get("d"), get("n"), entry("h", "b"), entry("g", "f")];
    assert_eq!(facts.recall(&known), Some(vec![Value::Bytes(None), bytes("8"), Value::Bytes(None), Value::Bytes(None)]));
    for unknown in [get("unknown"), Query::List("l".into()), Query::HLen { key: "h".into(), limit: 1 }] {
        assert_eq!(facts.recall(&[get("d"), unknown]), None);
    }
    commit(&facts, &[], &[Write::Patch { key: "s".into(), offset: 5, bytes: "xyz".into() }], &[Value::Done]);
    assert_eq!(facts.recall(&[get("s")]), None, "it is not what the store has");
}

#[test]
fn an_answer_that_overlaps_another_or_a_commit_stands_for_nothing_that_follows() {
    let (clock, facts) = facts(BYTES_MAX);
    let two = [get("a"), get("b")];
    let learn = |asked: Asked| asked.learn([(&two[0], &bytes("1")), (&two[1], &bytes("2"))]);
    learn(facts.ask(2));
    assert_eq!(facts.recall_recent(&two), Some(vec![bytes("1"), bytes("2")]));
    // Of two answers.
    facts.ask(1).learn([(&two[0], &bytes("3"))]);
    assert_eq!(facts.recall_recent(&two), None);
    // A commit came after the question.
    let asked = facts.ask(2);
    commit(&facts, &[], &[Write::Set("a".into(), "4".into())], &[Value::Done]);
    learn(asked);
    assert_eq!((facts.recall_recent(&two), facts.recent(&two[0])), (None, None));
    assert_eq!(facts.recall(&two[..1]), Some(vec![bytes("4")]), "to start from it is good enough");
    // The answer to a later question arrived before this one. If both say the same it is so.
    let (first, second) = (facts.ask(2), facts.ask(2));
    learn(second);
    learn(first);
    assert!(facts.recall_recent(&two).is_some());
    let (first, second) = (facts.ask(2), facts.ask(2));
    learn(second);
    first.learn([(&two[0], &bytes("0"))]);
    assert_eq!((facts.recall_recent(&two), facts.recent(&two[0])), (None, None));
    // The answer to a later question arrived before a commit.
    let writes = [Write::Set("a".into(), "5".into())];
    let asked = facts.ask_to_write(1, &writes);
    learn(facts.ask(2));
    asked.committed(&[], &[Value::Done], &[], &[]);
    assert_eq!(facts.recent(&two[0]), None);
    // Readers that never stop asking: each answer overlaps another, and all say the same.
    learn(facts.ask(2));
    let mut asked = facts.ask(2);
    for _ in 0..5 {
        clock.advance(RECENT);
        let next = facts.ask(2);
        learn(std::mem::replace(&mut asked, next));
        assert_eq!(facts.recent(&two[0]), Some((Some("1".into()), RECENT)), "it may be as old as the question");
    }
    drop(asked);
    // Too long ago.
    learn(facts.ask(2));
    clock.advance(RECENT);
    assert!(facts.recall_recent(&two).is_some());
    assert_eq!(facts.recent(&two[0]), Some((Some("1".into()), RECENT)));
    clock.advance(Duration::from_millis(1));
    assert_eq!((facts.recall_recent(&two), facts.recent(&two[0])), (None, None));
}

#[test]
fn what_was_long_on_its_way_is_as_old_as_its_question() {
    let (clock, facts) = facts(BYTES_MAX);
    let late = RECENT + Duration::from_millis(1);
    let asked = facts.ask(1);
    clock.advance(late);
    asked.learn([(&get("a"), &bytes("1"))]);
    assert_eq!((facts.recall_recent(&[get("a")]), facts.recent(&get("a"))), (None, None));
    // A commit whose answer was found after the connection was lost.
    let writes = [Write::Set("a".into(), "2".into())];
    let asked = facts.ask_to_write(1, &writes);
    clock.advance(late);
    asked.committed(&[], &[Value::Done], &[], &[]);
    assert_eq!((facts.recent(&get("a")), facts.recall(&[get("a")])), (None, Some(vec![bytes("2")])));
}

#[test]
fn of_two_commits_that_are_told_in_the_wrong_order_an_answer_between_them_confirms_none() {
    let (_, facts) = facts(BYTES_MAX);
    let (first, second) = ([Write::Set("a".into(), "1".into())], [Write::Set("a".into(), "2".into())]);
    let one = facts.ask_to_write(1, &first);
    let between = facts.ask(1);
    let two = facts.ask_to_write(1, &second);
    two.committed(&[], &[Value::Done], &[], &[]);
    one.committed(&[], &[Value::Done], &[], &[]);
    between.learn([(&get("a"), &bytes("1"))]);
    assert_eq!(facts.recent(&get("a")), None);
    // Nor does changing a part of it.
    let between = facts.ask(1);
    commit(&facts, &[], &[Write::Patch { key: "a".into(), offset: 0, bytes: "3".into() }], &[Value::Done]);
    between.learn([(&get("a"), &bytes("3"))]);
    assert_eq!((facts.recent(&get("a")), facts.recall(&[get("a")])), (None, Some(vec![bytes("3")])));
    facts.ask(1).learn([(&get("a"), &bytes("2"))]);
    assert_eq!(facts.recent(&get("a")), Some((Some("2".into()), Duration::ZERO)));
}

#[test]
fn the_least_recently_used_go_first_and_large_values_are_not_kept() {
    let (_, facts) = facts(10 * (FACT_OVERHEAD + 50));
    let set = |key: String, len| commit(&facts, &[], &[Write::Set(key.into(), vec![0; len].into())], &[Value::Done]);
    set("kept".into(), 10);
    for n in 0..100 {
        set(format!("k{n}"), 10);
        assert!(facts.recall(&[get("kept")]).is_some());
    }
    assert!(facts.recall(&[get("k1")]).is_none() && facts.recall(&[get("k99")]).is_some());
    set("kept".into(), VALUE_BYTES_MAX + 1);
    assert!(facts.recall(&[get("kept")]).is_none());
}

#[test]
fn what_is_watched_stands_until_it_is_changed_or_nothing_is_heard() {
    let (clock, facts) = facts(BYTES_MAX);
    facts.ask(2).learn([(&get("i7"), &bytes("1")), (&get("other"), &bytes("2"))]);
    assert_eq!(facts.recall_standing(&[get("i7")]), None, "nothing was ever heard");
    facts.heard(Duration::ZERO);
    assert_eq!(facts.recall_standing(&[get("i7")]), Some(vec![bytes("1")]));
    assert_eq!(facts.recall_standing(&[get("other")]), None, "of no inode");
    facts.changed(b"i7");
    assert_eq!(facts.recall_standing(&[get("i7")]), None);
    assert_eq!(facts.recall(&[get("i7")]), Some(vec![bytes("1")]), "plans are guarded");
    facts.ask(1).learn([(&get("i7"), &bytes("3"))]);
    clock.advance(Duration::from_millis(1001));
    assert_eq!(facts.recall_standing(&[get("i7")]), None, "silence");
    facts.heard(Duration::from_secs(1));
    assert!(facts.recall_standing(&[get("i7")]).is_some());
    // However long ago it was said.
    clock.advance(Duration::from_secs(100));
    assert_eq!(facts.recent(&get("i7")), None);
    facts.heard(Duration::ZERO);
    assert_eq!(facts.recent(&get("i7")), Some((Some("3".into()), Duration::ZERO)));
    // Too many things in one request: nothing is watched.
    facts.ask(1000).learn([(&get("i8"), &bytes("1"))]);
    assert_eq!(facts.recall_standing(&[get("i8")]), None);
    facts.flushed();
    facts.heard(Duration::ZERO);
    assert_eq!(facts.recall_standing(&[get("i7")]), None);
}

#[test]
fn what_was_changed_by_others_is_not_recent_either() {
    let (_, facts) = facts(BYTES_MAX);
    // Too large a request to be watched: news may come all the same, by another one.
    facts.ask(100).learn([(&get("i7"), &bytes("1"))]);
    assert!(facts.recent(&get("i7")).is_some() && facts.recall_recent(&[get("i7")]).is_some());
    facts.changed(b"i7");
    assert_eq!((facts.recent(&get("i7")), facts.recall_recent(&[get("i7")])), (None, None));
    facts.ask(100).learn([(&get("i7"), &bytes("2"))]);
    assert!(facts.recent(&get("i7")).is_some());
    facts.flushed();
    assert!(facts.recent(&get("i7")).is_none());
}

#[test]
fn a_record_that_the_store_looked_up_for_us_is_not_watched_but_what_stood_stays() {
    let (_, facts) = facts(BYTES_MAX);
    facts.heard(Duration::ZERO);
    let (dir, name) = (Key::from("d1"), Bytes::from("n"));
    let value = codec::encode_entry(crate::types::Kind::File, crate::types::Ino(7));
    let found = Value::Entry(Some((value.clone(), Some("record".into()))));
    let query = Query::Entry { dir: dir.clone(), name: name.clone() };
    facts.ask(1).learn([(&query, &found)]);
    assert!(facts.recall_standing(&[Query::HGet(dir, name)]).is_some());
    assert_eq!(facts.recall_standing(std::slice::from_ref(&query)), None);
    facts.ask(1).learn([(&get("i7"), &bytes("record"))]);
    assert_eq!(facts.recall_standing(std::slice::from_ref(&query)), Some(vec![found.clone()]));
    facts.ask(1).learn([(&query, &found)]);
    assert_eq!(facts.recall_standing(std::slice::from_ref(&query)), Some(vec![found]));
}

#[test]
fn own_commits_keep_what_they_change_unless_they_overlap_or_are_lost() {
    let (_, facts) = facts(BYTES_MAX);
    facts.heard(Duration::ZERO);
    let now = || facts.recall_standing(&[get("i7")]);
    let patch = |bytes: &'static str| [Write::Patch { key: "i7".into(), offset: 0, bytes: bytes.into() }];
    facts.ask(1).learn([(&get("i7"), &bytes("abcd"))]);
    commit(&facts, &[], &patch("x"), &[Value::Done]);
    assert_eq!(now(), Some(vec![bytes("xbcd")]));
    // Two at once: the store did them in some order.
    let (one, two) = (patch("1"), patch("2"));
    let (first, second) = (facts.ask_to_write(1, &one), facts.ask_to_write(1, &two));
    second.committed(&[], &[Value::Done], &[], &[]);
    first.committed(&[], &[Value::Done], &[], &[]);
    assert_eq!(now(), None);
    facts.ask(1).learn([(&get("i7"), &bytes("abcd"))]);
    // It may have happened.
    drop(facts.ask_to_write(1, &one));
    assert_eq!(now(), None);
    facts.ask(1).learn([(&get("i7"), &bytes("abcd"))]);
    // It did not happen.
    facts.ask_to_write(1, &one).learn([(&get("i7"), &bytes("abcd"))]);
    assert_eq!(now(), Some(vec![bytes("abcd")]));
    // What a commit read is of after its writes.
    facts.ask_to_write(1, &one).committed(&[], &[Value::Done], &[get("i7")], &[bytes("1bcd")]);
    assert_eq!(now(), Some(vec![bytes("1bcd")]));
    let add = [Write::AddU32 { key: "i7".into(), offset: 0, delta: 1 }];
    facts.ask_to_write(1, &add).committed(&[], &[Value::Done], &[get("i7")], &[bytes("1bce")]);
    assert_eq!(now(), Some(vec![bytes("1bce")]));
    // Too large to be watched.
    facts.ask_to_write(1000, &one).committed(&[], &[Value::Done], &[], &[]);
    assert_eq!(now(), None);
}

#[test]
fn a_directory_known_as_a_whole_answers_for_names_that_are_not_there() {
    let (clock, facts) = facts(BYTES_MAX);
    facts.heard(Duration::ZERO);
    let dir = || Key::from("d7");
    let now = |name| facts.recall_standing(&[entry("d7", name)]);
    // Made by us: it was empty after it was made.
    let made = [Write::Set("i7".into(), "record".into())];
    let length = Query::HLen { key: dir(), limit: 1 };
    facts.ask_to_write(3, &made).committed(&[], &[Value::Done], std::slice::from_ref(&length), &[Value::Int(0)]);
    assert_eq!(now("a"), Some(vec![Value::Bytes(None)]));
    commit(&facts, &[], &[Write::HSet(dir(), "a".into(), "1".into())], &[Value::Done]);
    assert_eq!((now("a"), now("b")), (Some(vec![bytes("1")]), Some(vec![Value::Bytes(None)])));
    commit(&facts, &[], &[Write::HDel(dir(), "a".into())], &[Value::Int(1)]);
    assert_eq!(now("a"), Some(vec![Value::Bytes(None)]));
    assert!(!facts.wants_names(&dir()));
    facts.changed(b"d7");
    assert_eq!(now("a"), None);
    // Loaded; not again at once, and less often while others change it.
    assert!(facts.wants_names(&dir()) && !facts.wants_names(&dir()));
    let asked = facts.ask(1);
    asked.learn_names(dir(), [("x".into(), "1".into())]);
    assert_eq!((now("x"), now("y")), (Some(vec![bytes("1")]), Some(vec![Value::Bytes(None)])));
    facts.changed(b"d7");
    clock.advance(Duration::from_secs(3));
    facts.heard(Duration::ZERO);
    assert!(!facts.wants_names(&dir()));
    clock.advance(Duration::from_secs(3));
    facts.heard(Duration::ZERO);
    assert!(facts.wants_names(&dir()));
    // Changed while it was being loaded.
    let asked = facts.ask(1);
    facts.changed(b"d7");
    asked.learn_names(dir(), []);
    assert_eq!(now("x"), None);
}
