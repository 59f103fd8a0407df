//! Sessions: the lease under which a client holds locks and unlinked open files, and the cleaning up after those that ended (metadata §5).

use crate::meta::client::Cx;
use crate::meta::driver::{Basis, errno_of};
use crate::meta::ops::lock::is_of_session;
use crate::meta::ops::stats::{Tally, begin_root_step};
use crate::meta::store::{Guard, Key, Query, Value, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Meta, key};
use crate::types::{Caller, Civil, Duty, Errno, Ino, Kind, Time};
use bytes::Bytes;
use serde_json::{Map, json};
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tracing::{error, info, warn};

/// Parsed as a semantic version by peers: the format's client we stand for, and ourselves as build metadata.
pub const VERSION: &str = concat!("1.4.1+pando.", env!("CARGO_PKG_VERSION"));
/// How often `heartbeat` is to be called.
pub const HEARTBEAT: Duration = Duration::from_secs(12);
/// A session without a heartbeat for this long is over (metadata §5.1).
pub const SESSION_TTL: Duration = Duration::from_secs(5 * HEARTBEAT.as_secs());
/// A beat that comes this long after the one before means that the store was away, or this host. Two periods and their jitter are far less than
/// what is left of a session by then.
const LATE: Duration = Duration::from_secs(30);
/// Sessions looked at in one round of cleaning.
const SESSIONS_MAX: u32 = 1000;
/// Session numbers tried before giving up; one is in use only if the counter was set back.
const CLAIMS_MAX: u32 = 16;

/// A session as `status` shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionEntry {
    /// Its number.
    pub sid: u64,
    /// Unix seconds after which it is stale.
    pub expiry: i64,
    /// Its document; empty if it is missing or damaged.
    pub document: Map<String, serde_json::Value>,
}

/// When the session was last prolonged, by both clocks: one stands still while the host sleeps, the other may be set.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Beat {
    wall: i64,
    mono: Duration,
    /// Until then (monotonic) nobody's session is cleaned: all may have been kept from prolonging them, as this one was.
    quiet_until: Duration,
}

impl Meta {
    /// Begins this process's session and answers its number.
    pub async fn new_session(&self, mountpoint: &str) -> Result<u64, Errno> {
        let sid = self.claim_session().await?;
        let now = self.driver.clock.now();
        let document = Bytes::from(document(mountpoint, now, &host_name()));
        // The claim comes first: a session that is listed and not claimed would be cleaned at once by a neighbour.
        self.apply(
            "begin session",
            &[
                Write::ZAdd(key::ALL_SESSIONS, expiry(now), key::decimal(sid)),
                Write::HSet(key::SESSION_INFOS, key::decimal(sid), document.clone()),
            ],
        )
        .await?;
        *self.session_document.lock().expect("never poisoned: no code under it panics") = document;
        // Whether the store was away just before is not known.
        self.note_beat(now, self.driver.clock.elapsed(), self.is_far());
        self.sid.store(sid, Ordering::Relaxed);
        self.fetch_ids_ahead();
        self.run("begin statistics", &Caller::root(), begin_root_step).await?;
        Ok(sid)
    }

    async fn claim_session(&self) -> Result<u64, Errno> {
        for _ in 0..CLAIMS_MAX {
            let replies = self.apply("begin session", &[Write::IncrBy(key::NEXT_SESSION, 1)]).await?;
            let [Value::Int(sid)] = replies[..] else { return Err(Errno::IO) };
            let sid = u64::try_from(sid).map_err(|_| Errno::IO)?;
            if self.is_far() {
                // The counter may have been set back with something else that was lost, while the session's owner lives.
                let listed = [Query::HGet(key::SESSION_INFOS, key::decimal(sid))];
                if self.driver.read("begin session", &listed).await? != [Value::Bytes(None)] {
                    continue;
                }
            }
            if self.driver.store.claim_session(sid).map_err(|e| errno_of("claim session", &e))? {
                return Ok(sid);
            }
        }
        error!("no session number is free: is the counter nextsession damaged?");
        Err(Errno::IO)
    }

    /// Whether the session may have expired: until it is prolonged others may take what it holds.
    pub(super) fn is_overdue(&self) -> bool {
        let beat = *self.beat();
        let ttl = SESSION_TTL.as_secs() as i64;
        let late = self.driver.clock.elapsed().saturating_sub(beat.mono) > SESSION_TTL || self.driver.clock.now().sec - beat.wall > ttl;
        late && self.sid.load(Ordering::Relaxed) != 0
    }

    /// Whether beats were missed. The sessions of others, whose last beat may have come earlier, may have expired then.
    fn is_late(&self) -> bool {
        let beat = *self.beat();
        let late =
            self.driver.clock.elapsed().saturating_sub(beat.mono) > LATE || self.driver.clock.now().sec - beat.wall > LATE.as_secs() as i64;
        late && self.is_far() && self.sid.load(Ordering::Relaxed) != 0
    }

    /// After the store was away the first thing it is told is that this session lives.
    pub(crate) async fn begin_mutation(&self) -> Result<(), Errno> {
        if !self.is_far() || !self.is_overdue() {
            return Ok(());
        }
        let _reviving = self.reviving.lock().await;
        if self.is_overdue() { self.heartbeat().await } else { Ok(()) }
    }

    fn beat(&self) -> MutexGuard<'_, Beat> {
        self.beat.lock().expect("never poisoned: no code under it panics")
    }

    fn note_beat(&self, now: Time, mono: Duration, was_away: bool) {
        let mut beat = self.beat();
        let quiet_until = if was_away { self.driver.clock.elapsed() + SESSION_TTL } else { beat.quiet_until };
        *beat = Beat { wall: now.sec, mono, quiet_until };
    }

    /// Prolongs this process's session.
    pub async fn heartbeat(&self) -> Result<(), Errno> {
        let document = self.session_document.lock().expect("never poisoned: no code under it panics").clone();
        let (now, mono, was_away) = (self.driver.clock.now(), self.driver.clock.elapsed(), self.is_late());
        let step = |view: &View, cx: &Cx| heartbeat_step(view, cx, &document);
        let Beaten { lapsed, foreign } = self.run_on("heartbeat", &Caller::root(), Basis::Memory, View::default(), step).await?;
        self.note_beat(now, mono, was_away);
        self.driver.pacing.set_foreign(foreign);
        if lapsed {
            error!("the session was ended by another client; locks and the data of unlinked open files may be lost");
        }
        Ok(())
    }

    /// Ends this process's session: its locks go, and the files it kept although they were unlinked.
    pub async fn close_session(&self) -> Result<(), Errno> {
        let sid = self.sid.load(Ordering::Relaxed);
        if sid == 0 {
            return Ok(());
        }
        self.clean_session(sid, None).await?;
        self.sid.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Cleans up after sessions that ended without doing so. Answers how many.
    pub async fn clean_stale_sessions(&self) -> Result<usize, Errno> {
        let now = self.driver.clock.now().sec;
        let own = self.sid.load(Ordering::Relaxed);
        let expiries = self.session_expiries().await?;
        if self.is_late() {
            // The store may have been away until it gave this answer: nobody could prolong anything.
            let _reviving = self.reviving.lock().await;
            if self.is_late() {
                self.heartbeat().await?;
            }
        }
        let quiet_until = self.beat().quiet_until;
        let mut cleaned = 0;
        for (sid, expiry) in expiries {
            // Where the store knows whether the process lives, its clock may be as wrong as it likes.
            let is_stale = match self.driver.store.session_alive(sid) {
                Some(alive) => !alive,
                None => expiry <= now && self.driver.clock.elapsed() >= quiet_until,
            };
            if sid == own || !is_stale {
                continue;
            }
            info!(sid, "cleaning up after a session that ended");
            match self.clean_session(sid, Some(expiry)).await {
                Ok(()) => cleaned += 1,
                // It was slow and not dead, or somebody else was faster.
                Err(Errno::BUSY) => info!(sid, "the session has been prolonged, or is cleaned already"),
                // The others shall not wait for this one; it is tried again next time.
                Err(errno) => warn!(sid, %errno, "a stale session could not be cleaned"),
            }
        }
        Ok(cleaned)
    }

    /// The sessions of the volume, by number; stale ones are among them until they are cleaned.
    pub async fn sessions(&self) -> Result<Vec<SessionEntry>, Errno> {
        let queries = [Query::HGetAll(key::SESSION_INFOS)];
        let values = self.driver.store.read(&queries).await.map_err(|e| errno_of("list sessions", &e))?;
        let [Value::Pairs(documents)] = &values[..] else { return Err(Errno::IO) };
        let entry = |(sid, expiry): (u64, i64)| {
            let stored = documents.iter().find(|(field, _)| *field == key::decimal(sid));
            let document = stored.and_then(|(_, text)| serde_json::from_slice(text).ok()).unwrap_or_default();
            SessionEntry { sid, expiry, document }
        };
        let mut sessions: Vec<_> = self.session_expiries().await?.into_iter().map(entry).collect();
        sessions.sort_by_key(|session| session.sid);
        Ok(sessions)
    }

    async fn session_expiries(&self) -> Result<Vec<(u64, i64)>, Errno> {
        let query = [Query::ZRange { key: key::ALL_SESSIONS, max: i64::MAX, limit: SESSIONS_MAX }];
        let values = self.driver.store.read(&query).await.map_err(|e| errno_of("list sessions", &e))?;
        let [Value::Scored(members)] = &values[..] else { return Err(Errno::IO) };
        Ok(members.iter().filter_map(|(sid, expiry)| Some((number(sid)?, *expiry))).collect())
    }

    /// Locks first, then kept files, the session itself last: whoever finds it again after a crash repeats all of it. Two cleaners do no harm.
    /// A session of which it is not known that it is dead has the expiry `seen`; once that is another, nothing more is taken from it: EBUSY.
    async fn clean_session(&self, sid: u64, seen: Option<i64>) -> Result<(), Errno> {
        for hash in self.members(&key::locked(sid)).await? {
            let step = |view: &View, cx: &Cx| while_stale(view, sid, seen, drop_locks_step(view, cx, sid, &hash));
            self.run("clean locks", &Caller::root(), step).await?;
        }
        for member in self.members(&key::sustained(sid)).await? {
            let Some(ino) = number(&member).map(Ino) else {
                warn!(sid, "a session keeps something that is no inode number: {:?}", member);
                continue;
            };
            let step = |view: &View, cx: &Cx| while_stale(view, sid, seen, drop_sustained_step(view, cx, sid, ino));
            let deleted = self.run("clean kept file", &Caller::root(), step).await?;
            if let Some(length) = deleted {
                self.ask(Duty::DeleteFile { ino, length });
            }
        }
        let end = [Write::HDel(key::SESSION_INFOS, key::decimal(sid)), Write::ZRem(key::ALL_SESSIONS, key::decimal(sid))];
        let step = |view: &View, _: &Cx| while_stale(view, sid, seen, Ok(Plan::new(Vec::new(), end.to_vec(), ())));
        self.run("end session", &Caller::root(), step).await?;
        self.driver.store.forget_session(sid).await.map_err(|e| errno_of("end session", &e))
    }

    async fn members(&self, set: &Key) -> Result<Vec<Bytes>, Errno> {
        let values = self.driver.store.read(&[Query::SMembers(set.clone())]).await.map_err(|e| errno_of("read a set", &e))?;
        match values.into_iter().next() {
            Some(Value::List(members)) => Ok(members),
            _ => Err(Errno::IO),
        }
    }

    async fn apply(&self, what: &'static str, writes: &[Write]) -> Result<Vec<Value>, Errno> {
        let writes = writes.to_vec();
        let step = |_: &View, _: &Cx| -> Result<Plan<Vec<Value>>, Stop> {
            let mut plan = Plan::new(Vec::new(), writes.clone(), Vec::new());
            plan.finish = Box::new(|replies, _| Ok(replies.to_vec()));
            Ok(plan)
        };
        self.run(what, &Caller::root(), step).await
    }
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn expiry(now: Time) -> i64 {
    now.sec + SESSION_TTL.as_secs() as i64
}

/// What a heartbeat tells.
#[derive(Default)]
struct Beaten {
    /// The session had been removed meanwhile.
    lapsed: bool,
    /// Another kind of client has a session.
    foreign: bool,
}

/// Whether a session document is of a client that is none of ours.
pub(crate) fn is_foreign(document: &[u8]) -> bool {
    let document: Option<Map<String, serde_json::Value>> = serde_json::from_slice(document).ok();
    let version = document.as_ref().and_then(|document| document.get("Version")?.as_str()).unwrap_or_default();
    !version.contains("+pando.")
}

fn heartbeat_step(view: &View, cx: &Cx, document: &Bytes) -> Result<Plan<Beaten>, Stop> {
    if cx.sid == 0 {
        return Ok(Plan::answer(Beaten::default()));
    }
    let sid = key::decimal(cx.sid);
    let stored = view.field(&key::SESSION_INFOS, sid.clone())?;
    let mut writes = vec![Write::ZAdd(key::ALL_SESSIONS, expiry(cx.now), sid.clone())];
    let lapsed = stored.is_none();
    if lapsed {
        writes.push(Write::HSet(key::SESSION_INFOS, sid.clone(), document.clone()));
    }
    let finish = move |_: &[Value], values: &[Value]| {
        let Some(Value::Pairs(sessions)) = values.first() else { return Err(Errno::IO) };
        Ok(Beaten { lapsed, foreign: sessions.iter().any(|(_, document)| is_foreign(document)) })
    };
    let guards = vec![Guard::Field(key::SESSION_INFOS, sid, stored)];
    Ok(Plan { guards, writes, reads: vec![Query::HGetAll(key::SESSION_INFOS)], while_closed: None, finish: Box::new(finish) })
}

/// A plan that takes something from a session, for as long as the session has not been prolonged.
fn while_stale<T>(view: &View, sid: u64, seen: Option<i64>, plan: Result<Plan<T>, Stop>) -> Result<Plan<T>, Stop> {
    let Some(expiry) = seen else { return plan };
    if view.score(&key::ALL_SESSIONS, key::decimal(sid))? != Some(expiry) {
        return Err(Errno::BUSY.into());
    }
    let mut plan = plan?;
    plan.guards.push(Guard::Score(key::ALL_SESSIONS, key::decimal(sid), Some(expiry)));
    Ok(plan)
}

/// Removes what a session holds in one lock hash.
fn drop_locks_step(view: &View, _cx: &Cx, sid: u64, hash: &Key) -> Result<Plan<()>, Stop> {
    let unlist = Write::SRem(key::locked(sid), hash.clone());
    // Whatever else stands in the list is not ours to touch.
    if !hash.starts_with(b"lockf") && !hash.starts_with(b"lockp") {
        return Ok(Plan::new(Vec::new(), vec![unlist], ()));
    }
    let fields = view.fields(hash)?;
    let held = fields.iter().filter(|(field, _)| is_of_session(field, sid));
    let mut writes: Vec<_> = held.map(|(field, _)| Write::HDel(hash.clone(), field.clone())).collect();
    writes.push(unlist);
    Ok(Plan::new(vec![Guard::Fields(hash.clone(), fields.to_vec())], writes, ()))
}

/// Deletes an inode a session kept although it was unlinked (metadata §6.16), unless it has a name again. Answers its length if its data is
/// to be deleted.
fn drop_sustained_step(view: &View, cx: &Cx, sid: u64, ino: Ino) -> Result<Plan<Option<u64>>, Stop> {
    let unlist = Write::SRem(key::sustained(sid), key::decimal(ino));
    let record_key = key::inode(ino);
    let record = view.record(ino)?;
    let guard = Guard::Value(record_key.clone(), record.as_ref().map(|record| record.bytes.clone()));
    let Some(attr) = record.map(|record| record.attr).filter(|attr| attr.nlink == 0) else {
        return Ok(Plan::new(vec![guard], vec![unlist], None));
    };
    let mut writes = vec![unlist, Write::Del(record_key), Write::Del(key::xattr(ino))];
    let is_file = attr.kind == Kind::File;
    if is_file {
        writes.push(Write::ZAdd(key::DELFILES, cx.now.sec, key::delfile(ino, attr.length)));
    }
    let mut guards = vec![guard];
    let mut tally = Tally::new(view, cx);
    tally.inode(&attr, -1)?;
    tally.put(&mut guards, &mut writes);
    Ok(Plan::new(guards, writes, is_file.then_some(attr.length)))
}

/// The session document: one line (metadata §5.2).
fn document(mountpoint: &str, now: Time, host: &str) -> String {
    json!({
        "Version": VERSION,
        "HostName": host,
        "MountPoint": mountpoint,
        "MountTime": rfc3339(now),
        "ProcessID": std::process::id(),
    })
    .to_string()
}

/// What this host calls itself.
pub fn host_name() -> String {
    match std::fs::read_to_string("/proc/sys/kernel/hostname") {
        Ok(name) => name.trim_end().to_owned(),
        // Only shown to people.
        Err(_) => "unknown".to_owned(),
    }
}

/// `2026-08-21T10:00:00.123456789Z`.
fn rfc3339(time: Time) -> String {
    let Civil { year, month, day, hour, minute, second } = Civil::of(time.sec);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", time.nsec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::ops::chunk::testing::{World, ready};
    use crate::meta::ops::lock::LockKind;
    use crate::meta::setting::Setting;

    #[test]
    fn the_document_is_one_line_of_the_format() {
        let text = document("/mnt/a b", Time { sec: 1_700_000_000, nsec: 5 }, "h");
        let want = format!(
            r#"{{"Version":"1.4.1+pando.0.1.0","HostName":"h","MountPoint":"/mnt/a b","MountTime":"2023-11-14T22:13:20.000000005Z","ProcessID":{}}}"#,
            std::process::id()
        );
        assert_eq!(text, want);
        for (sec, date) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_799, "2000-02-29T23:59:59"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
            (-1, "1969-12-31T23:59:59"),
        ] {
            assert_eq!(rfc3339(Time { sec, nsec: 0 }), format!("{date}.000000000Z"));
        }
    }

    #[test]
    fn a_session_begins_lives_and_ends() {
        let world = World::new();
        ready(world.meta.heartbeat()).unwrap();
        assert_eq!(ready(world.meta.sessions()).unwrap(), [], "none yet");
        assert_eq!(ready(world.meta.new_session("/mnt")), Ok(1));
        let sessions = ready(world.meta.sessions()).unwrap();
        assert_eq!((sessions[0].sid, sessions[0].expiry), (1, world.now().sec + 60));
        assert_eq!(sessions[0].document["MountPoint"], "/mnt");
        world.clock.advance(Duration::from_secs(12));
        ready(world.meta.heartbeat()).unwrap();
        assert_eq!(ready(world.meta.sessions()).unwrap()[0].expiry, world.now().sec + 60);
        // Another client took it for dead: the next heartbeat brings it back.
        world.store.put(Write::HDel(key::SESSION_INFOS, key::decimal(1)));
        world.store.put(Write::ZRem(key::ALL_SESSIONS, key::decimal(1)));
        ready(world.meta.heartbeat()).unwrap();
        assert_eq!(ready(world.meta.sessions()).unwrap()[0].document, sessions[0].document);
        ready(world.meta.close_session()).unwrap();
        assert_eq!(ready(world.meta.sessions()).unwrap(), []);
        ready(world.meta.close_session()).unwrap();
        assert_eq!(ready(world.neighbour().new_session("/mnt")), Ok(2), "numbers are not used twice");
    }

    #[test]
    fn the_statistics_of_an_empty_root_begin_with_the_first_session() {
        let hashes = [key::DIR_DATA_LENGTH, key::DIR_USED_SPACE, key::DIR_USED_INODES];
        let of_root = |world: &World| hashes.clone().map(|hash| world.store.get(Query::HGet(hash, key::decimal(Ino::ROOT))));
        let formatted = |change: fn(&mut Setting)| {
            let world = World::with(change);
            hashes.clone().into_iter().for_each(|hash| world.store.put(Write::HDel(hash, key::decimal(Ino::ROOT))));
            world
        };
        let (absent, zero) = (Value::Bytes(None), Value::Bytes(Some(Bytes::from_static(b"0"))));
        let world = formatted(|_| {});
        ready(world.meta.new_session("/mnt")).unwrap();
        assert!(of_root(&world).iter().all(|value| *value == zero));

        // What is counted already stays, and so do entries that nobody has counted.
        world.store.put(Write::HSet(key::DIR_USED_INODES, key::decimal(Ino::ROOT), key::decimal(7)));
        ready(world.neighbour().new_session("/mnt")).unwrap();
        assert_eq!(of_root(&world)[2], Value::Bytes(Some(key::decimal(7))));
        let world = formatted(|_| {});
        world.store.put(Write::HSet(key::dir(Ino::ROOT), "f".into(), Bytes::from_static(b"\x01\0\0\0\0\0\0\0\x05")));
        ready(world.meta.new_session("/mnt")).unwrap();
        assert!(of_root(&world).iter().all(|value| *value == absent));

        let world = formatted(|setting| setting.set("DirStats", false.into()));
        ready(world.meta.new_session("/mnt")).unwrap();
        assert!(of_root(&world).iter().all(|value| *value == absent));
    }

    #[test]
    fn what_a_dead_session_held_is_cleaned_up() {
        let world = World::new();
        let dead = world.neighbour();
        let sid = ready(dead.new_session("/dead")).unwrap();
        ready(world.meta.new_session("/alive")).unwrap();
        let (kept, named, missing) = (world.inode(|attr| (attr.nlink, attr.length) = (0, 5000)), world.file(3), Ino(99));
        world.store.put(Write::HSet(key::xattr(kept), "user.a".into(), "b".into()));
        for ino in [kept, named, missing] {
            world.store.put(Write::SAdd(key::sustained(sid), key::decimal(ino)));
        }
        world.store.put(Write::SAdd(key::locked(sid), "setting".into()));
        ready(dead.flock(Ino(5), 1, LockKind::Shared)).unwrap();
        ready(dead.set_lock(Ino(6), 1, 1, 0, 9, LockKind::Exclusive)).unwrap();
        ready(world.meta.flock(Ino(5), 1, LockKind::Shared)).unwrap();
        assert_eq!(ready(world.meta.clean_stale_sessions()), Ok(0), "it lives");
        world.clock.advance(Duration::from_secs(59));
        ready(world.meta.heartbeat()).unwrap();
        assert_eq!(ready(world.meta.clean_stale_sessions()), Ok(0));
        world.clock.advance(Duration::from_secs(1));
        assert_eq!(ready(world.meta.clean_stale_sessions()), Ok(1));
        assert_eq!(ready(world.meta.sessions()).unwrap().len(), 1);
        // Locks: only its own.
        ready(world.meta.flock(Ino(5), 1, LockKind::Exclusive)).unwrap();
        ready(world.meta.set_lock(Ino(6), 1, 1, 0, 9, LockKind::Exclusive)).unwrap();
        // Files: the one without a name goes, in the way every deleted file goes.
        assert_eq!(world.find(kept), None);
        assert_eq!(world.store.get(Query::HGetAll(key::xattr(kept))), Value::Pairs(vec![]));
        assert_eq!(ready(world.meta.pending_files(i64::MAX, 10)).unwrap(), [(kept, 5000)]);
        assert_eq!(world.duty(), Some(Duty::DeleteFile { ino: kept, length: 5000 }));
        assert_eq!((world.counter(key::USED_SPACE), world.counter(key::TOTAL_INODES)), (-8192, -1));
        assert!(world.find(named).is_some(), "it has a name again");
        for set in [key::sustained(sid), key::locked(sid)] {
            assert_eq!(world.store.get(Query::SMembers(set)), Value::List(vec![]));
        }
    }

    #[test]
    fn a_session_that_beats_while_it_is_cleaned_keeps_what_it_holds() {
        let world = World::new();
        let slow = world.neighbour();
        let sid = ready(slow.new_session("/slow")).unwrap();
        ready(world.meta.new_session("/alive")).unwrap();
        ready(slow.set_lock(Ino(6), 1, 1, 0, 9, LockKind::Exclusive)).unwrap();
        let kept = world.inode(|attr| attr.nlink = 0);
        world.store.put(Write::SAdd(key::sustained(sid), key::decimal(kept)));
        world.clock.advance(Duration::from_secs(61));
        ready(world.meta.heartbeat()).unwrap();
        // Between the list of sessions and the first commit that takes something.
        let beats = slow.clone();
        world.store.before_commit(move || ready(beats.heartbeat()).unwrap());
        assert_eq!(ready(world.meta.clean_stale_sessions()), Ok(0));
        assert_eq!(ready(world.meta.sessions()).unwrap().len(), 2);
        assert_eq!(ready(world.meta.set_lock(Ino(6), 1, 1, 0, 9, LockKind::Exclusive)), Err(Errno::AGAIN));
        assert!(world.find(kept).is_some());
    }

    #[test]
    fn a_store_that_knows_the_living_decides_before_the_expiry() {
        let world = World::new();
        let sid = ready(world.neighbour().new_session("/dead")).unwrap();
        world.store.dead_sessions.lock().unwrap().insert(sid);
        assert_eq!(ready(world.meta.clean_stale_sessions()), Ok(1));
    }

    #[test]
    fn a_kept_file_that_gets_a_name_in_time_survives() {
        let world = std::sync::Arc::new(World::new());
        let sid = ready(world.meta.new_session("/m")).unwrap();
        let ino = world.inode(|attr| attr.nlink = 0);
        world.store.put(Write::SAdd(key::sustained(sid), key::decimal(ino)));
        let other = world.clone();
        world.store.before_commit(move || {
            let attr = other.attr(ino);
            other.set_attr(ino, &crate::types::Attr { nlink: 1, ..attr });
        });
        ready(world.meta.close_session()).unwrap();
        assert_eq!(world.attr(ino).nlink, 1);
        assert_eq!(world.counter(key::TOTAL_INODES), 0);
    }

    #[test]
    fn no_document_upsets_the_reader() {
        let ours = document("/mnt", Time { sec: 1_700_000_000, nsec: 5 }, "host").into_bytes();
        let theirs = b"{\"Version\":\"1.4.1+2024-01-01.abc\",\"HostName\":\"h\",\"ProcessID\":7}".to_vec();
        assert!(!is_foreign(&ours) && is_foreign(&theirs));
        crate::env::fuzz::decoder(&[ours, theirs], |bytes| {
            let _ = is_foreign(bytes);
        });
    }
}
