//! Deleting on a volume with a trash: what is written, and what applications see of it.

use super::*;
use crate::env::Clock;
use crate::meta::ops::fallocate::Falloc;

/// The directory of the hour in which a test's clock begins.
const T: Ino = Ino(Ino::TRASH.0 + 1);

async fn world() -> World {
    World::with(|setting| setting.set("TrashDays", 1.into())).await
}

impl World {
    async fn in_trash(&self, dir: Ino) -> Vec<(Bytes, Bytes)> {
        self.scan(ScanRange::Hash(key::dir(dir))).await
    }

    async fn counted_parents(&self, ino: Ino) -> Vec<(Bytes, Bytes)> {
        let mut parents = self.scan(ScanRange::Hash(key::parents(ino))).await;
        parents.sort();
        parents
    }

    async fn shown(&self, ino: Ino) -> u32 {
        let attr = self.meta.getattr(ino).await.expect("exists");
        self.meta.shown(ino, attr).await.expect("is shown").nlink
    }
}

#[tokio::test]
async fn a_deleted_file_is_renamed_into_the_hour() {
    let w = world().await;
    let file = w.make(Ino::ROOT, "a-b", Kind::File).await;
    w.meta.truncate(&Caller::root(), file, 5000).await.unwrap();
    let before = w.meta.getattr(file).await.unwrap();
    w.clock.advance(Duration::from_secs(1));
    w.unlink(Ino::ROOT, "a-b").await.unwrap();
    // Clock: 1970-01-01 00:16; the trash itself is made by who needs it first.
    assert_eq!(w.in_trash(Ino::TRASH).await, [("1970-01-01-00".into(), codec::encode_entry(Kind::Dir, T))]);
    assert_eq!(w.in_trash(T).await, [(format!("1-{file}-a-b").into(), codec::encode_entry(Kind::File, file))]);
    let after = w.meta.getattr(file).await.unwrap();
    assert_eq!(after, Attr { parent: T, ctime: w.clock.now(), ..before });
    let hour = w.meta.getattr(T).await.unwrap();
    assert_eq!((hour.parent, hour.mode, hour.nlink, hour.uid, hour.length), (Ino::TRASH, 0o555, 2, 0, 4096));
    assert_eq!(w.meta.getattr(Ino::TRASH).await.unwrap().parent, Ino::ROOT);
    assert_eq!(w.count(key::NEXT_TRASH).await, 1);
    // The file and the directory of the hour, which holds its bytes now.
    assert_eq!((w.count(key::USED_SPACE).await, w.count(key::TOTAL_INODES).await), (8192 + 4096, 2));
    assert_eq!(w.get(Query::HGet(key::DIR_DATA_LENGTH, key::decimal(T))).await, Value::Bytes(Some("5000".into())));
    assert!(w.meta.pending_files(i64::MAX, 10).await.unwrap().is_empty());
    assert_eq!(w.shown(file).await, 1, "to whoever looks into the trash");
    w.check().await;
    // Within the hour nobody asks again, and another client finds what is there.
    w.make(Ino::ROOT, "c", Kind::Symlink).await;
    w.other(8).unlink(Ino::ROOT, "c").await.unwrap();
    assert_eq!((w.in_trash(T).await.len(), w.count(key::NEXT_TRASH).await), (2, 1));
    w.check().await;
    w.clock.advance(Duration::from_secs(3600));
    w.make(Ino::ROOT, "d", Kind::Fifo).await;
    w.unlink(Ino::ROOT, "d").await.unwrap();
    assert_eq!(w.in_trash(Ino(T.0 + 1)).await.len(), 1);
    w.check().await;
}

#[tokio::test]
async fn hard_links_move_one_count_each() {
    let w = world().await;
    let dir = w.make(Ino::ROOT, "dir", Kind::Dir).await;
    let file = w.make(Ino::ROOT, "a", Kind::File).await;
    w.meta.link(&Caller::root(), file, dir, &name("b")).await.unwrap();
    w.unlink(Ino::ROOT, "a").await.unwrap();
    assert_eq!(w.counted_parents(file).await, [("1".into(), "0".into()), (key::decimal(dir), "1".into()), (key::decimal(T), "1".into())]);
    assert_eq!(w.meta.getattr(file).await.unwrap().nlink, 2);
    assert_eq!(w.shown(file).await, 1);
    assert_eq!(w.meta.parent_of(file).await, Ok(dir));
    // The same name once more in the same hour: one entry stands for one link, so this one goes.
    w.meta.link(&Caller::root(), file, Ino::ROOT, &name("a")).await.unwrap();
    w.unlink(Ino::ROOT, "a").await.unwrap();
    assert_eq!(w.meta.getattr(file).await.unwrap().nlink, 2);
    w.check().await;
    w.unlink(dir, "b").await.unwrap();
    assert_eq!((w.meta.getattr(file).await.unwrap().nlink, w.shown(file).await), (2, 2));
    w.meta.open(&Caller::root(), file, OpenMode::default()).await.unwrap();
    assert_eq!(w.shown(file).await, 0);
    w.meta.close(file).await.unwrap();
    w.check().await;
}

#[tokio::test]
async fn directories_and_what_is_replaced() {
    let w = world().await;
    let (a, b) = (w.make(Ino::ROOT, "a", Kind::Dir).await, w.make(Ino::ROOT, "b", Kind::Dir).await);
    let (f, g) = (w.make(a, "f", Kind::File).await, w.make(b, "g", Kind::File).await);
    w.rename((a, "f"), (b, "g")).await.unwrap();
    assert_eq!(w.in_trash(T).await, [(format!("{b}-{g}-g").into(), codec::encode_entry(Kind::File, g))]);
    w.check().await;
    w.write(&[Write::HSet(key::DIR_QUOTA, key::decimal(a), "x".into())]).await;
    w.rmdir(Ino::ROOT, "a").await.unwrap();
    assert_eq!(w.get(Query::HGet(key::DIR_QUOTA, key::decimal(a))).await, Value::Bytes(None));
    assert_eq!(w.meta.getattr(a).await.unwrap().parent, T);
    w.check().await;
    let c = w.make(Ino::ROOT, "c", Kind::Dir).await;
    let d = w.make(Ino::ROOT, "d", Kind::Dir).await;
    w.rename((Ino::ROOT, "c"), (Ino::ROOT, "d")).await.unwrap();
    assert_eq!((w.meta.getattr(d).await.unwrap().parent, w.find(Ino::ROOT, "d").await.unwrap().0), (T, c));
    w.check().await;
    // Nothing is made or put into what is in the trash.
    let made = w.meta.create(&Caller::root(), a, &name("x"), node(Kind::File)).await;
    assert_eq!(made.map(|_| ()), Err(Errno::NOENT));
    assert_eq!(w.rename((b, "g"), (a, "x")).await, Err(Errno::NOENT));
    // A file that bypasses the trash.
    w.edit(f, |attr| attr.flags = Flags(Flags::SKIP_TRASH)).await;
    w.unlink(b, "g").await.unwrap();
    assert_eq!(w.meta.getattr(f).await, Err(Errno::NOENT));
    w.check().await;
}

#[tokio::test]
async fn an_open_file_without_a_name_is_an_ordinary_one() {
    let w = world().await;
    let root = Caller::root();
    let write = OpenMode { write: true, ..OpenMode::default() };
    let file = w.make(Ino::ROOT, "a", Kind::File).await;
    w.meta.open(&root, file, write).await.unwrap();
    w.unlink(Ino::ROOT, "a").await.unwrap();
    assert_eq!(w.shown(file).await, 0);
    let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    assert_eq!(w.meta.setattr(&root, file, mode).await.unwrap().mode, 0o600);
    assert_eq!(w.meta.truncate(&root, file, 9).await.unwrap().length, 9);
    assert_eq!(w.meta.fallocate(&root, file, Falloc::Allocate, 0, 5000).await.unwrap().length, 5000);
    w.meta.open(&root, file, write).await.unwrap();
    w.check().await;
    // Another client has no handle: to it the file is in the trash, and may only be read.
    let other = w.other(8);
    assert_eq!(other.meta.setattr(&root, file, mode).await, Err(Errno::PERM));
    assert_eq!(other.meta.truncate(&root, file, 1).await, Err(Errno::PERM));
    assert_eq!(other.meta.open(&root, file, write).await, Err(Errno::PERM));
    other.meta.open(&root, file, OpenMode::default()).await.unwrap();
    for _ in 0..2 {
        w.meta.close(file).await.unwrap();
    }
    assert_eq!(w.meta.open(&root, file, write).await, Err(Errno::PERM));
    assert_eq!(w.meta.getattr(file).await.unwrap().length, 5000);
    w.check().await;
}

#[tokio::test]
async fn root_alone_empties_the_trash() {
    let w = world().await;
    let file = w.make(Ino::ROOT, "a", Kind::File).await;
    w.unlink(Ino::ROOT, "a").await.unwrap();
    let entry = format!("1-{file}-a");
    let by = |uid| user(uid);
    assert_eq!(w.meta.unlink(&by(5), T, &name(&entry)).await, Err(Errno::PERM));
    assert_eq!(w.rmdir(Ino::TRASH, "1970-01-01-00").await, Err(Errno::PERM));
    assert_eq!(w.unlink(Ino::ROOT, ".trash").await, Err(Errno::PERM));
    let hour = w.meta.getattr(T).await.unwrap();
    w.unlink(T, &entry).await.unwrap();
    assert_eq!(w.meta.getattr(file).await, Err(Errno::NOENT));
    assert_eq!(w.meta.getattr(T).await.unwrap(), hour, "the record of the hour is not touched");
    w.check().await;
}

#[tokio::test]
async fn the_hour_that_was_emptied_away_is_made_again() {
    let w = world().await;
    let first = w.make(Ino::ROOT, "first", Kind::File).await;
    w.unlink(Ino::ROOT, "first").await.unwrap();
    let (second, dir) = (w.make(Ino::ROOT, "second", Kind::File).await, w.make(Ino::ROOT, "dir", Kind::Dir).await);
    // Another client empties it and takes it away.
    w.unlink(T, &format!("1-{first}-first")).await.unwrap();
    let mut writes = vec![Write::HDel(key::dir(Ino::TRASH), "1970-01-01-00".into()), Write::Del(key::inode(T))];
    writes.extend([key::DIR_DATA_LENGTH, key::DIR_USED_SPACE, key::DIR_USED_INODES].map(|hash| Write::HDel(hash, key::decimal(T))));
    writes.extend([Write::IncrBy(key::USED_SPACE, -4096), Write::IncrBy(key::TOTAL_INODES, -1)]);
    w.write(&writes).await;
    w.unlink(Ino::ROOT, "second").await.unwrap();
    let again = Ino(T.0 + 1);
    assert_eq!(w.in_trash(again).await, [(format!("1-{second}-second").into(), codec::encode_entry(Kind::File, second))]);
    w.rmdir(Ino::ROOT, "dir").await.unwrap();
    assert_eq!(w.meta.getattr(dir).await.unwrap().parent, again);
    w.check().await;
    // Just before the commit.
    let third = w.make(Ino::ROOT, "third", Kind::File).await;
    let plan = w.plan(&Caller::root(), |view, cx| super::super::unlink::step(view, cx, Ino::ROOT, &name("third"))).await;
    w.write(&[Write::Del(key::inode(again))]).await;
    assert!(!w.commits(plan).await, "nothing enters a directory that is gone");
    assert!(w.meta.getattr(third).await.is_ok());
}

#[tokio::test]
async fn root_renames_out_of_the_trash() {
    let w = world().await;
    let dir = w.make(Ino::ROOT, "dir", Kind::Dir).await;
    let file = w.make(dir, "f", Kind::File).await;
    let link = w.make(Ino::ROOT, "l", Kind::File).await;
    w.meta.link(&Caller::root(), link, dir, &name("l2")).await.unwrap();
    let before = w.meta.getattr(file).await.unwrap();
    for text in ["f", "l2"] {
        w.unlink(dir, text).await.unwrap();
    }
    w.rmdir(Ino::ROOT, "dir").await.unwrap();
    let entry = |parent: Ino, ino: Ino, text: &str| format!("{parent}-{ino}-{text}");
    let own = user(5);
    let out = entry(dir, file, "f");
    let refused = w.meta.rename(&own, T, &name(&out), Ino::ROOT, &name("x"), RenameFlags::default()).await;
    assert_eq!(refused, Err(Errno::PERM));
    let exchange = RenameFlags { exchange: true, ..RenameFlags::default() };
    assert_eq!(w.meta.rename(&Caller::root(), T, &name(&out), Ino::ROOT, &name("l"), exchange).await, Err(Errno::PERM));
    assert_eq!(w.rename((Ino::ROOT, "l"), (T, "x")).await, Err(Errno::PERM));
    assert_eq!(w.rename((T, &out), (dir, "f")).await, Err(Errno::NOENT), "its directory is in the trash");
    w.rename((T, &entry(Ino::ROOT, dir, "dir")), (Ino::ROOT, "dir")).await.unwrap();
    w.check().await;
    w.rename((T, &out), (dir, "f")).await.unwrap();
    w.rename((T, &entry(dir, link, "l2")), (dir, "l2")).await.unwrap();
    w.check().await;
    let after = w.meta.getattr(file).await.unwrap();
    assert_eq!(after, Attr { ctime: after.ctime, ..before });
    assert_eq!((w.shown(link).await, w.in_trash(T).await.len()), (2, 0));
}

#[tokio::test]
async fn an_owner_takes_back_what_is_its_own() {
    let w = world().await;
    let asker = |uid| crate::types::Asker { uid, gids: vec![uid], ..Default::default() };
    let shared = w.make(Ino::ROOT, "shared", Kind::Dir).await;
    let closed = w.make(Ino::ROOT, "closed", Kind::Dir).await;
    w.edit(shared, |attr| attr.mode = 0o777).await;
    w.edit(closed, |attr| attr.mode = 0o755).await;
    for dir in [shared, closed] {
        let made = w.meta.create(&user(5), dir, &name("f"), node(Kind::File)).await.unwrap().0;
        w.meta.unlink(&Caller::root(), dir, &name("f")).await.unwrap();
        let found = w.meta.trash_page(T, Default::default()).await.unwrap().0.into_iter().find(|found| found.ino == made).unwrap();
        assert_eq!((found.parent, found.name.clone()), (dir, name("f")));
        assert_eq!(w.meta.take_back(&asker(6), &found, dir, &name("f")).await, Err(Errno::PERM));
        let expected = if dir == shared { Ok(()) } else { Err(Errno::ACCES) };
        assert_eq!(w.meta.take_back(&asker(5), &found, dir, &name("f")).await, expected);
        w.check().await;
    }
    let found = w.meta.trash_page(T, Default::default()).await.unwrap().0.remove(0);
    w.make(closed, "f", Kind::Fifo).await;
    assert_eq!(w.meta.take_back(&asker(0), &found, closed, &name("f")).await, Err(Errno::EXIST));
    assert_eq!(w.meta.take_back(&asker(0), &found, closed, &name("g")).await, Ok(()));
    assert_eq!(w.meta.take_back(&asker(0), &found, closed, &name("h")).await, Err(Errno::NOENT));
    w.check().await;
}

#[tokio::test]
async fn an_hour_is_put_back_or_rebuilt_inside() {
    for put_back in [false, true] {
        let w = world().await;
        let (a, kept) = (w.make(Ino::ROOT, "a", Kind::Dir).await, w.make(Ino::ROOT, "kept", Kind::Dir).await);
        let b = w.make(a, "b", Kind::Dir).await;
        let (f, g) = (w.make(b, "f", Kind::File).await, w.make(kept, "g", Kind::File).await);
        for (dir, text) in [(b, "f"), (kept, "g")] {
            w.unlink(dir, text).await.unwrap();
        }
        w.rmdir(a, "b").await.unwrap();
        w.rmdir(Ino::ROOT, "a").await.unwrap();
        assert_eq!(w.meta.restore_hour(T, put_back, 4, &|| false).await, Err(Errno::INTR));
        let restored = w.meta.restore_hour(T, put_back, 4, &|| true).await.unwrap();
        let moved = if put_back { 4 } else { 2 };
        assert_eq!((restored.moved, restored.left, restored.failed), (moved, 4 - moved, 0));
        assert_eq!(w.meta.getattr(f).await.unwrap().parent, b);
        assert_eq!(w.meta.getattr(a).await.unwrap().parent, if put_back { Ino::ROOT } else { T });
        assert_eq!(w.meta.getattr(g).await.unwrap().parent, if put_back { kept } else { T });
        w.check().await;
        assert_eq!(w.meta.restore_hour(T, put_back, 4, &|| true).await.unwrap().moved, 0);
    }
}

#[tokio::test]
async fn what_is_old_enough_expires() {
    let w = world().await;
    let dir = w.make(Ino::ROOT, "dir", Kind::Dir).await;
    let file = w.make(dir, "f", Kind::File).await;
    w.unlink(dir, "f").await.unwrap();
    w.rmdir(Ino::ROOT, "dir").await.unwrap();
    // A restored tree inside the trash: the file in its directory.
    w.rename_in_trash(file, dir).await;
    w.check().await;
    w.clock.advance(Duration::from_secs(25 * 3600));
    w.make(Ino::ROOT, "young", Kind::File).await;
    w.unlink(Ino::ROOT, "young").await.unwrap();
    assert_eq!(w.meta.expire_trash(&|| true).await, Ok(0), "26 hours must have passed since the hour began");
    w.clock.advance(Duration::from_secs(3600));
    assert_eq!(w.meta.expire_trash(&|| false).await, Ok(0), "called off");
    assert_eq!(w.meta.expire_trash(&|| true).await, Ok(1));
    w.check().await;
    assert_eq!((w.meta.getattr(T).await, w.meta.getattr(dir).await), (Err(Errno::NOENT), Err(Errno::NOENT)));
    assert_eq!(w.meta.pending_files(i64::MAX, 10).await.unwrap(), [(file, 0)]);
    assert_eq!(w.in_trash(Ino::TRASH).await.len(), 1);
}

impl World {
    /// As a peer's `restore` does: moves a file from the hour into a directory there.
    async fn rename_in_trash(&self, file: Ino, dir: Ino) {
        let entry = self.in_trash(T).await.into_iter().find(|(_, value)| codec::decode_entry(value) == Some((Kind::File, file))).unwrap();
        self.edit(file, |attr| attr.parent = dir).await;
        self.write(&[Write::HDel(key::dir(T), entry.0), Write::HSet(key::dir(dir), "f".into(), entry.1)]).await;
        let mut writes = Vec::new();
        for (hash, delta) in [(key::DIR_USED_SPACE, -4096), (key::DIR_USED_INODES, -1)] {
            writes.push(Write::HIncrIfPresent(hash, key::decimal(T), delta));
        }
        self.write(&writes).await;
    }
}
