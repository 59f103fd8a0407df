//! Quotas: what is counted where, what is refused, and what moves with a directory.

use super::*;
use crate::meta::codec::{decode_quota, encode_quota};
use crate::meta::ops::quota::Usage;

/// A directory quota as another client sets it.
async fn set(w: &World, dir: Ino, space: i64, inodes: i64, used: Usage) {
    let field = key::decimal(dir);
    w.write(&[
        Write::HSet(key::DIR_QUOTA, field.clone(), encode_quota(space, inodes)),
        Write::HSet(key::DIR_QUOTA_USED_SPACE, field.clone(), key::decimal(used.space)),
        Write::HSet(key::DIR_QUOTA_USED_INODES, field, key::decimal(used.inodes)),
    ])
    .await;
    w.meta.load_quotas().await.expect("quotas load");
}

async fn field(w: &World, hash: Bytes, field: impl std::fmt::Display) -> Option<i64> {
    match w.get(Query::HGet(hash, key::decimal(field))).await {
        Value::Bytes(value) => value.map(|value| decode_decimal(Some(&value)).expect("a number")),
        other => panic!("{other:?}"),
    }
}

async fn used(w: &World, dir: Ino) -> (i64, i64) {
    let get = |hash| field(w, hash, dir);
    (get(key::DIR_QUOTA_USED_SPACE).await.expect("has usage"), get(key::DIR_QUOTA_USED_INODES).await.expect("has usage"))
}

async fn user_used(w: &World, uid: u32) -> Option<(i64, i64)> {
    let space = field(w, key::USER_QUOTA_USED_SPACE, uid).await?;
    Some((space, field(w, key::USER_QUOTA_USED_INODES, uid).await?))
}

const NOTHING: Usage = Usage { space: 0, inodes: 0 };

#[tokio::test]
async fn usage_counts_for_every_directory_above() {
    for trash_days in [0, 1] {
        let w = World::with(|setting| setting.set("TrashDays", trash_days.into())).await;
        let root = Caller::root();
        let a = w.make(Ino::ROOT, "a", Kind::Dir).await;
        let b = w.make(a, "b", Kind::Dir).await;
        set(&w, Ino::ROOT, 0, 0, Usage { space: 8192, inodes: 2 }).await;
        set(&w, a, 0, 0, Usage { space: 4096, inodes: 1 }).await;
        set(&w, b, 0, 0, NOTHING).await;
        let file = w.make(b, "f", Kind::File).await;
        w.meta.truncate(&root, file, 10_000).await.unwrap();
        assert_eq!((used(&w, b).await, used(&w, a).await, used(&w, Ino::ROOT).await), ((12_288, 1), (16_384, 2), (20_480, 3)));
        w.meta.link(&root, file, a, &name("l")).await.unwrap();
        w.meta.truncate(&root, file, 1).await.unwrap();
        // Both names count in what is above both.
        assert_eq!((used(&w, b).await, used(&w, a).await, used(&w, Ino::ROOT).await), ((4096, 1), (12_288, 3), (16_384, 4)));
        w.unlink(a, "l").await.unwrap();
        w.unlink(b, "f").await.unwrap();
        assert_eq!((used(&w, b).await, used(&w, a).await, used(&w, Ino::ROOT).await), ((0, 0), (4096, 1), (8192, 2)));
        w.rmdir(a, "b").await.unwrap();
        assert_eq!((used(&w, a).await, used(&w, Ino::ROOT).await), ((0, 0), (4096, 1)));
        assert_eq!(field(&w, key::DIR_QUOTA_USED_SPACE, b).await, None, "a quota goes with its directory");
        w.check().await;
    }
}

#[tokio::test]
async fn a_full_directory_refuses_and_what_is_freed_elsewhere_counts() {
    let w = World::new().await;
    let root = Caller::root();
    let dir = w.make(Ino::ROOT, "d", Kind::Dir).await;
    let outside = w.make(Ino::ROOT, "o", Kind::File).await;
    w.meta.truncate(&root, outside, 9000).await.unwrap();
    set(&w, dir, 16_384, 3, NOTHING).await;
    let file = w.make(dir, "f", Kind::File).await;
    assert_eq!(w.meta.truncate(&root, file, 16_384).await.map(|_| ()), Ok(()));
    let full = Err(Errno::DQUOT);
    assert_eq!(w.meta.truncate(&root, file, 16_385).await.map(|_| ()), full);
    assert_eq!(w.meta.check_growth(file, 16_385).await, full);
    assert_eq!(w.meta.create(&root, dir, &name("x"), node(Kind::Dir)).await.map(|_| ()), full);
    assert_eq!(w.meta.link(&root, outside, dir, &name("x")).await.map(|_| ()), full);
    assert_eq!(w.rename((Ino::ROOT, "o"), (dir, "o")).await, full);
    // A file of another size fits when the numbers are fresh again; another client has made room.
    let other = w.other(8);
    other.meta.load_quotas().await.unwrap();
    other.meta.truncate(&root, file, 4096).await.unwrap();
    w.clock.advance(Duration::from_secs(2));
    assert_eq!(w.rename((Ino::ROOT, "o"), (dir, "o")).await, Ok(()));
    assert_eq!(used(&w, dir).await, (16_384, 2));
    w.make(Ino::ROOT, "free", Kind::Symlink).await;
    // The number of inodes: shrinking and replacing need none.
    w.meta.truncate(&root, file, 0).await.unwrap();
    w.unlink(dir, "o").await.unwrap();
    for text in ["x", "y"] {
        w.make(dir, text, Kind::Fifo).await;
    }
    assert_eq!(w.meta.create(&root, dir, &name("z"), node(Kind::Fifo)).await.map(|_| ()), full);
    w.rename((dir, "x"), (dir, "y")).await.unwrap();
    w.make(dir, "z", Kind::Fifo).await;
    // A limit that is taken away is known after the next heartbeat.
    w.write(&[Write::HSet(key::DIR_QUOTA, key::decimal(dir), encode_quota(-1, -1))]).await;
    w.meta.load_quotas().await.unwrap();
    w.make(dir, "more", Kind::File).await;
    w.check().await;
}

#[tokio::test]
async fn a_directory_takes_what_is_below_it_along() {
    let w = World::new().await;
    let root = Caller::root();
    let (a, b) = (w.make(Ino::ROOT, "a", Kind::Dir).await, w.make(Ino::ROOT, "b", Kind::Dir).await);
    let tree = w.make(a, "tree", Kind::Dir).await;
    let deep = w.make(tree, "deep", Kind::Dir).await;
    let file = w.make(deep, "f", Kind::File).await;
    w.meta.truncate(&root, file, 5000).await.unwrap();
    set(&w, Ino::ROOT, 0, 0, Usage { space: 24_576, inodes: 5 }).await;
    set(&w, a, 0, 0, Usage { space: 16_384, inodes: 3 }).await;
    set(&w, b, 16_383, 0, NOTHING).await;
    assert_eq!(w.rename((a, "tree"), (b, "tree")).await, Err(Errno::DQUOT));
    set(&w, b, 16_384, 0, NOTHING).await;
    w.rename((a, "tree"), (b, "tree")).await.unwrap();
    w.check().await;
    assert_eq!((used(&w, a).await, used(&w, b).await, used(&w, Ino::ROOT).await), ((0, 0), (16_384, 3), (24_576, 5)));
    // Back, in exchange for a file, with a quota of its own that says how much it is.
    set(&w, tree, 0, 0, Usage { space: 12_288, inodes: 2 }).await;
    w.make(a, "x", Kind::File).await;
    let flags = RenameFlags { exchange: true, ..RenameFlags::default() };
    w.meta.rename(&root, a, &name("x"), b, &name("tree"), flags).await.unwrap();
    assert_eq!((used(&w, a).await, used(&w, b).await, used(&w, tree).await), ((16_384, 3), (4096, 1), (12_288, 2)));
    // What happens in it now counts for its new place, also where the old one is remembered.
    let other = w.other(8);
    other.meta.load_quotas().await.unwrap();
    other.make(deep, "g", Kind::File).await;
    assert_eq!(used(&w, a).await, (20_480, 4));
    assert_eq!(w.rename((a, "x"), (b, "t")).await, Err(Errno::DQUOT));
    set(&w, b, 0, 0, Usage { space: 4096, inodes: 1 }).await;
    w.rename((a, "x"), (b, "t")).await.unwrap();
    other.make(deep, "h", Kind::File).await;
    assert_eq!((used(&w, a).await, used(&w, b).await), ((0, 0), (28_672, 6)));
    w.check().await;
}

#[tokio::test]
async fn owners_are_counted_and_limited() {
    let w = World::with(|setting| setting.set("UserGroupQuota", true.into())).await;
    let (five, root) = (user(5), Caller::root());
    assert_eq!(user_used(&w, 5).await, None);
    let (file, _) = w.meta.create(&five, Ino::ROOT, &name("f"), node(Kind::File)).await.unwrap();
    w.meta.truncate(&five, file, 5000).await.unwrap();
    assert_eq!(user_used(&w, 5).await, Some((8192, 1)));
    let Value::Bytes(Some(limits)) = w.get(Query::HGet(key::USER_QUOTA, "5".into())).await else { panic!() };
    assert_eq!(decode_quota(&limits), Some((-1, -1)));
    assert_eq!(field(&w, key::GROUP_QUOTA_USED_INODES, 5).await, Some(1));
    w.write(&[Write::HSet(key::USER_QUOTA, "5".into(), encode_quota(8192, -1))]).await;
    w.meta.load_quotas().await.unwrap();
    assert_eq!(w.meta.create(&five, Ino::ROOT, &name("g"), node(Kind::File)).await.map(|_| ()), Err(Errno::DQUOT));
    assert_eq!(w.meta.truncate(&root, file, 9000).await.map(|_| ()), Err(Errno::DQUOT), "the owner's quota counts, whoever writes");
    // Another name is no more space.
    w.meta.link(&five, file, Ino::ROOT, &name("l")).await.unwrap();
    assert_eq!(user_used(&w, 5).await, Some((8192, 1)));
    // Given away, with all it has.
    let chown = SetAttr { uid: Some(6), ..SetAttr::default() };
    w.meta.setattr(&root, file, chown).await.unwrap();
    assert_eq!((user_used(&w, 5).await, user_used(&w, 6).await), (Some((0, 0)), Some((8192, 1))));
    assert_eq!(field(&w, key::GROUP_QUOTA_USED_SPACE, 5).await, Some(8192));
    w.unlink(Ino::ROOT, "f").await.unwrap();
    w.meta.open(&root, file, OpenMode::default()).await.unwrap();
    w.unlink(Ino::ROOT, "l").await.unwrap();
    assert_eq!(user_used(&w, 6).await, Some((8192, 1)), "it is still there");
    w.meta.close(file).await.unwrap();
    assert_eq!((user_used(&w, 6).await, field(&w, key::GROUP_QUOTA_USED_INODES, 5).await), (Some((0, 0)), Some(0)));
    w.check().await;
}

#[tokio::test]
async fn a_view_of_a_directory_shows_what_is_left_of_its_quota() {
    let w = World::new().await;
    let a = w.make(Ino::ROOT, "a", Kind::Dir).await;
    let b = w.make(a, "b", Kind::Dir).await;
    set(&w, a, 1 << 20, 10, Usage { space: 40_960, inodes: 9 }).await;
    let stat = w.meta.statfs(b, None).await.unwrap();
    assert_eq!((stat.used, stat.available, stat.total), (40_960, (1 << 20) - 40_960, 1 << 20));
    assert_eq!((stat.inodes_used, stat.inodes_available), (9, 1));
    set(&w, b, 4096, 0, Usage { space: 8192, inodes: 0 }).await;
    let stat = w.meta.statfs(b, None).await.unwrap();
    assert_eq!((stat.used, stat.available, stat.inodes_available), (8192, 0, 1));
    assert_eq!(w.meta.statfs(Ino::ROOT, None).await.unwrap().inodes_used, 2);
}

/// What is below a directory, by the links that were found.
fn below(dir: Ino, records: &BTreeMap<Ino, Attr>, links: &HashMap<Ino, Vec<Ino>>) -> (i64, i64) {
    let (mut space, mut inodes) = (0, 0);
    for (child, _) in links.iter().flat_map(|(child, dirs)| dirs.iter().filter(|of| **of == dir).map(move |of| (child, of))) {
        let attr = &records[child];
        space += attr.space();
        inodes += 1;
        if attr.is_dir() {
            let (more, others) = below(*child, records, links);
            space += more;
            inodes += others;
        }
    }
    (space, inodes)
}

impl World {
    /// Gives a directory that is there and in use a quota without limits, with the right usage.
    pub async fn begin_quota(&self, dir: Ino) {
        let Ok(attr) = self.meta.getattr(dir).await else { return };
        if attr.is_trashed() {
            return;
        }
        let usage = self.meta.tree_usage(dir).await.expect("counts");
        set(self, dir, 0, 0, Usage { space: usage.space - 4096, inodes: usage.inodes - 1 }).await;
    }

    /// The usage of every quota is what is there.
    pub async fn check_quotas(&self, records: &BTreeMap<Ino, Attr>, links: &HashMap<Ino, Vec<Ino>>) {
        for (hash, _) in self.scan(ScanRange::Hash(key::DIR_QUOTA_USED_INODES)).await {
            let dir = Ino(std::str::from_utf8(&hash).expect("text").parse().expect("a number"));
            assert_eq!(used(self, dir).await, below(dir, records, links), "quota of {dir}");
        }
        if !self.meta.setting().user_group_quota() {
            return;
        }
        let mut owned: BTreeMap<(bool, u32), (i64, i64)> = BTreeMap::new();
        for (_, attr) in records.iter().filter(|(ino, _)| **ino != Ino::ROOT && !ino.is_trash()) {
            for owner in [(false, attr.uid), (true, attr.gid)] {
                let sums = owned.entry(owner).or_default();
                *sums = (sums.0 + attr.space(), sums.1 + 1);
            }
        }
        for (is_group, space, inodes) in [
            (false, key::USER_QUOTA_USED_SPACE, key::USER_QUOTA_USED_INODES),
            (true, key::GROUP_QUOTA_USED_SPACE, key::GROUP_QUOTA_USED_INODES),
        ] {
            for (id, count) in self.scan(ScanRange::Hash(inodes.clone())).await {
                let id: u32 = std::str::from_utf8(&id).expect("text").parse().expect("a number");
                let sums = owned.remove(&(is_group, id)).unwrap_or_default();
                let got = (field(self, space.clone(), id).await, decode_decimal(Some(&count)));
                assert_eq!(got, (Some(sums.0), Some(sums.1)), "owner {id}, group: {is_group}");
            }
        }
        assert!(owned.is_empty(), "not counted: {owned:?}");
    }
}
