//! What operations write, verb by verb, against the traces of metadata §27. A record that is patched in place stands for one that is set:
//! to peers that watch the key it is the same. Statistics of directories ride at the end, where that client flushes them later.

use super::*;
use crate::meta::codec::encode_quota;

fn verb(write: &Write) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match write {
        Write::Set(key, _) => format!("SET {}", text(key)),
        Write::Patch { key, .. } | Write::AddU32 { key, .. } => format!("PATCH {}", text(key)),
        Write::Del(key) => format!("DEL {}", text(key)),
        Write::IncrBy(key, by) => format!("INCRBY {} {by}", text(key)),
        Write::HSet(key, field, _) => format!("HSET {} {}", text(key), text(field)),
        Write::HDel(key, field) => format!("HDEL {} {}", text(key), text(field)),
        Write::HIncrBy(key, field, by) => format!("HINCRBY {} {} {by}", text(key), text(field)),
        Write::HIncrIfPresent(key, field, by) => format!("stat {} {} {by}", text(key), text(field)),
        Write::SAdd(key, member) => format!("SADD {} {}", text(key), text(member)),
        Write::ZAdd(key, score, member) => format!("ZADD {} {score} {}", text(key), text(member)),
        other => format!("{other:?}"),
    }
}

/// The writes of a plan without the statistics of directories, and the statistics.
fn trace<T>(plan: Plan<T>) -> (Vec<String>, Vec<String>) {
    let verbs: Vec<String> = plan.writes.iter().map(verb).collect();
    let stat = |verb: &String| verb.starts_with("stat ");
    let mut writes: Vec<String> = verbs.iter().filter(|verb| !stat(verb)).cloned().collect();
    // Patches of one record are one.
    writes.dedup();
    (writes, verbs.into_iter().filter(stat).collect())
}

async fn unlink(w: &World, dir: Ino, text: &str) -> (Vec<String>, Vec<String>) {
    trace(w.plan(&Caller::root(), |view, cx| super::super::unlink::step(view, cx, dir, &name(text))).await)
}

#[tokio::test]
async fn removals_with_and_without_a_trash() {
    const T: u64 = Ino::TRASH.0 + 1;
    for trash in [false, true] {
        let w = World::with(|setting| setting.set("TrashDays", u64::from(trash).into())).await;
        let root = Caller::root();
        w.make(Ino::ROOT, "first", Kind::File).await;
        w.unlink(Ino::ROOT, "first").await.unwrap();
        let d = w.make(Ino::ROOT, "d", Kind::Dir).await;
        let f = w.make(Ino::ROOT, "f", Kind::File).await;
        w.meta.truncate(&root, f, 5000).await.unwrap();
        let h = w.make(d, "h", Kind::File).await;
        w.meta.link(&root, h, Ino::ROOT, &name("l")).await.unwrap();
        let e = w.make(Ino::ROOT, "e", Kind::Dir).await;
        let (writes, stats) = unlink(&w, Ino::ROOT, "f").await;
        let lost = ["stat dirDataLength 1 -5000".to_owned(), "stat dirUsedSpace 1 -8192".into(), "stat dirUsedInodes 1 -1".into()];
        if trash {
            assert_eq!(writes, ["HDEL d1 f", "PATCH i1", &format!("SET i{f}"), &format!("HSET d{T} 1-{f}-f")]);
            let gained = [("dirDataLength", 5000), ("dirUsedSpace", 8192), ("dirUsedInodes", 1)];
            let gained: Vec<String> = gained.map(|(hash, by)| format!("stat {hash} {T} {by}")).into();
            assert_eq!(stats, [gained, lost.into()].concat());
        } else {
            let want = ["HDEL d1 f", "PATCH i1", &format!("ZADD delfiles 5000 {f}:5000"), &format!("DEL i{f}"), &format!("DEL x{f}")];
            assert_eq!(writes, [&want[..], &["INCRBY usedSpace -8192", "INCRBY totalInodes -1"]].concat());
            assert_eq!(stats, lost);
        }
        let (writes, _) = unlink(&w, Ino::ROOT, "l").await;
        let mut want = vec!["HDEL d1 l".into(), "PATCH i1".into(), format!("SET i{h}")];
        if trash {
            want.extend([format!("HSET d{T} 1-{h}-l"), format!("HINCRBY p{h} {T} 1")]);
        }
        want.push(format!("HINCRBY p{h} 1 -1"));
        assert_eq!(writes, want);
        // An empty directory.
        let plan = w.plan(&root, |view, cx| super::super::rmdir::step(view, cx, Ino::ROOT, &name("e"))).await;
        let mut want: Vec<String> = vec!["HDEL d1 e".into(), "PATCH i1".into()];
        want.extend(if trash { [format!("SET i{e}"), format!("HSET d{T} 1-{e}-e")] } else { [format!("DEL i{e}"), format!("DEL x{e}")] });
        for hash in ["dirDataLength", "dirUsedSpace", "dirUsedInodes", "dirQuota", "dirQuotaUsedSpace", "dirQuotaUsedInodes"] {
            want.push(format!("HDEL {hash} {e}"));
        }
        if !trash {
            want.extend(["INCRBY usedSpace -4096".into(), "INCRBY totalInodes -1".into()]);
        }
        assert_eq!(trace(plan).0, want);
        // Replacing a file, and what is open.
        w.meta.open(&root, f, OpenMode::default()).await.unwrap();
        let step = |view: &View, cx: &Cx| {
            super::super::rename::step(view, cx, (d, &name("h")), (Ino::ROOT, &name("f")), RenameFlags::default(), &Default::default())
                .map(|plan| Plan::new(plan.guards, plan.writes, ()))
        };
        let plan = w.plan(&root, step).await;
        let mut want = vec![format!("HDEL d{d} h"), format!("SET i{f}")];
        want.extend(if trash { vec![format!("HSET d{T} 1-{f}-f")] } else { vec![format!("SADD session7 {f}"), format!("DEL x{f}")] });
        want.extend([format!("PATCH i{d}"), format!("HINCRBY p{h} 1 1"), format!("HINCRBY p{h} {d} -1")]);
        want.extend([format!("SET i{h}"), "HSET d1 f".into(), "PATCH i1".into()]);
        assert_eq!(trace(plan).0, want);
    }
}

#[tokio::test]
async fn creations_and_growth_with_quotas() {
    let w = World::with(|setting| setting.set("UserGroupQuota", true.into())).await;
    let root = Caller::root();
    let d = w.make(Ino::ROOT, "d", Kind::Dir).await;
    for (hash, value) in
        [(key::DIR_QUOTA, encode_quota(0, 0)), (key::DIR_QUOTA_USED_SPACE, "0".into()), (key::DIR_QUOTA_USED_INODES, "0".into())]
    {
        w.write(&[Write::HSet(hash, key::decimal(d), value)]).await;
    }
    w.meta.load_quotas().await.unwrap();
    let plan = w.plan(&user(5), |view, cx| create::step(view, cx, d, &name("f"), &node(Kind::File), Ino(900))).await;
    let (writes, stats) = trace(plan);
    let want = [
        "SET i900",
        &format!("PATCH i{d}"),
        &format!("HSET d{d} f"),
        "INCRBY usedSpace 4096",
        "INCRBY totalInodes 1",
        "HSET userQuota 5",
        "HINCRBY userQuotaUsedSpace 5 4096",
        "HINCRBY userQuotaUsedInodes 5 1",
        "HSET groupQuota 5",
        "HINCRBY groupQuotaUsedSpace 5 4096",
        "HINCRBY groupQuotaUsedInodes 5 1",
    ];
    assert_eq!(writes, want);
    let want = ["dirUsedSpace", "dirUsedInodes", "dirQuotaUsedSpace", "dirQuotaUsedInodes"]
        .map(|hash| format!("stat {hash} {d} {}", if hash.ends_with("Space") { 4096 } else { 1 }));
    assert_eq!(stats, want);
    let file = w.make(d, "g", Kind::File).await;
    let plan = w.plan(&root, |view, cx| {
        super::super::write::step(view, cx, file, 0, &[crate::meta::ops::write::NewSlice { pos: 0, id: 9, len: 5000, frame: None }], cx.now)
    });
    let (writes, stats) = trace(plan.await);
    let want = [&format!("SET i{file}"), "INCRBY usedSpace 4096", "HINCRBY userQuotaUsedSpace 0 4096", "HINCRBY userQuotaUsedInodes 0 0"];
    assert_eq!(writes[1..], [&want[..], &["HINCRBY groupQuotaUsedSpace 0 4096", "HINCRBY groupQuotaUsedInodes 0 0"]].concat());
    assert!(writes[0].starts_with("RPush"));
    assert_eq!(
        stats,
        ["dirDataLength", "dirUsedSpace", "dirQuotaUsedSpace"]
            .map(|hash| { format!("stat {hash} {d} {}", if hash.ends_with("Space") { 4096 } else { 5000 }) })
    );
}
