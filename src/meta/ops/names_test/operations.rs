//! Each operation: what it does, and each way in which it fails.

use super::*;

const ROOT: Ino = Ino::ROOT;

#[tokio::test]
async fn create_makes_every_kind() {
    let w = World::new().await;
    let kinds = [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo, Kind::Block, Kind::Char, Kind::Socket];
    for (i, kind) in kinds.into_iter().enumerate() {
        w.clock.advance(Duration::from_secs(1));
        let text = format!("n{i}");
        let spec = NewNode { mode: 0o7777, umask: 0o022, rdev: 0x103, ..node(kind) };
        let (ino, attr) = w.meta.create(&user(5), ROOT, &name(&text), spec).await.expect("creates");
        assert_eq!((attr.kind, attr.uid, attr.gid, attr.mode), (kind, 5, 5, 0o7755));
        let has_device = !matches!(kind, Kind::Dir | Kind::Symlink);
        assert_eq!(attr.rdev, if has_device { 0x103 } else { 0 });
        assert_eq!(w.find(ROOT, &text).await, Ok((ino, attr.clone())));
        let root = w.meta.getattr(ROOT).await.expect("root");
        assert_eq!((root.mtime, root.ctime), (attr.ctime, attr.ctime), "the parent is touched");
    }
    assert_eq!(w.meta.getattr(ROOT).await.expect("root").nlink, 3);
    assert_eq!(w.meta.statfs(Ino::ROOT, None).await.expect("statfs").inodes_used, 7);
    w.check().await;
}

#[tokio::test]
async fn create_fails() {
    let w = World::new().await;
    let file = w.make(ROOT, "file", Kind::File).await;
    let fixed = w.make(ROOT, "fixed", Kind::Dir).await;
    w.edit(fixed, |attr| attr.flags = Flags(Flags::IMMUTABLE)).await;
    let link = |target: &'static [u8]| NewNode { target, ..node(Kind::Symlink) };
    const LONG: [u8; 4096] = [b'x'; 4096];
    let table = [
        (ROOT, "file", node(Kind::File), Errno::EXIST),
        (ROOT, "fixed", node(Kind::Dir), Errno::EXIST),
        (Ino(999), "x", node(Kind::File), Errno::NOENT),
        (file, "x", node(Kind::File), Errno::NOTDIR),
        (fixed, "x", node(Kind::File), Errno::PERM),
        (ROOT, ".trash", node(Kind::Dir), Errno::PERM),
        (Ino::TRASH, "x", node(Kind::Dir), Errno::PERM),
        (ROOT, "x", link(b""), Errno::INVAL),
        (ROOT, "x", link(b"a\0b"), Errno::INVAL),
        (ROOT, "x", link(&LONG), Errno::NAMETOOLONG),
    ];
    for (parent, text, spec, errno) in table {
        assert_eq!(w.meta.create(&Caller::root(), parent, &name(text), spec).await, Err(errno), "{text} in {parent}");
    }
    w.check().await;
}

#[tokio::test]
async fn groups_are_inherited_below_setgid_directories() {
    let w = World::new().await;
    let dir = w.make(ROOT, "d", Kind::Dir).await;
    w.edit(dir, |attr| (attr.mode, attr.gid) = (0o2775, 42)).await;
    for (text, kind, mode) in [("sub", Kind::Dir, 0o2644), ("file", Kind::File, 0o644)] {
        let (_, attr) = w.meta.create(&user(5), dir, &name(text), node(kind)).await.expect("creates");
        assert_eq!((attr.uid, attr.gid, attr.mode), (5, 42, mode));
    }
}

#[tokio::test]
async fn limits_of_the_volume() {
    let w = World::with(|setting| {
        setting.set("Inodes", 2.into());
        setting.set("Capacity", (1 << 20).into());
    })
    .await;
    w.make(ROOT, "a", Kind::File).await;
    w.make(ROOT, "b", Kind::File).await;
    assert_eq!(w.meta.create(&Caller::root(), ROOT, &name("c"), node(Kind::Dir)).await, Err(Errno::NOSPC));
    let stat = w.meta.statfs(Ino::ROOT, None).await.expect("statfs");
    assert_eq!((stat.total, stat.used, stat.available), (1 << 20, 8192, (1 << 20) - 8192));
    assert_eq!((stat.inodes, stat.inodes_used, stat.inodes_available), (2, 2, 0));
    w.unlink(ROOT, "a").await.expect("unlinks");
    w.make(ROOT, "c", Kind::File).await;
    w.write(&[Write::IncrBy(key::USED_SPACE, 1 << 20)]).await;
    w.unlink(ROOT, "b").await.expect("unlinks");
    assert_eq!(w.meta.create(&Caller::root(), ROOT, &name("d"), node(Kind::Dir)).await, Err(Errno::NOSPC));
}

#[tokio::test]
async fn lookup_and_paths() {
    let w = World::new().await;
    let a = w.make(ROOT, "a", Kind::Dir).await;
    let b = w.make(a, "b", Kind::Dir).await;
    let f = w.make(b, "f", Kind::File).await;
    for (path, want) in [
        ("", Ok(ROOT)),
        ("/", Ok(ROOT)),
        ("/a/b/f", Ok(f)),
        ("a//b/./..", Ok(a)),
        ("../..", Ok(ROOT)),
        ("/a/x", Err(Errno::NOENT)),
        ("/a/b/f/g", Err(Errno::NOTDIR)),
    ] {
        assert_eq!(w.meta.resolve(path).await.map(|(ino, _)| ino), want, "{path}");
    }
    assert_eq!(w.meta.parent_of(f).await, Ok(b));
    assert_eq!(w.meta.parent_of(Ino(99)).await, Err(Errno::NOENT));
    assert_eq!(w.meta.getattr(Ino(99)).await, Err(Errno::NOENT));
    w.meta.link(&Caller::root(), f, a, &name("g")).await.expect("links");
    w.unlink(b, "f").await.expect("unlinks");
    assert_eq!(w.meta.parent_of(f).await, Ok(a));
    // A peer can leave a name without a record (metadata §24): it is not there, and it can be removed.
    w.write(&[Write::HSet(key::dir(ROOT), "ghost".into(), codec::encode_entry(Kind::File, Ino(77)))]).await;
    assert_eq!(w.find(ROOT, "ghost").await, Err(Errno::NOENT));
    w.unlink(ROOT, "ghost").await.expect("unlinks");
    assert_eq!(w.count(key::TOTAL_INODES).await, 3);
}

#[tokio::test]
async fn links_count_and_remember_their_parents() {
    let mut w = World::new().await;
    let dir = w.make(ROOT, "d", Kind::Dir).await;
    let file = w.make(ROOT, "f", Kind::File).await;
    w.meta.set_xattr(&Caller::root(), file, b"user.a", "v".into(), XattrMode::Any).await.expect("sets");
    for (parent, text, nlink) in [(dir, "g", 2), (dir, "h", 3), (ROOT, "i", 4)] {
        w.clock.advance(Duration::from_secs(1));
        let attr = w.meta.link(&Caller::root(), file, parent, &name(text)).await.expect("links");
        assert_eq!((attr.nlink, attr.parent, attr.ctime.sec), (nlink, Ino(0), w.meta.clock().now().sec));
        w.check().await;
    }
    for (parent, text) in [(ROOT, "f"), (dir, "h"), (ROOT, "i")] {
        w.unlink(parent, text).await.expect("unlinks");
        w.check().await;
    }
    assert!(w.duties.try_recv().is_err(), "a link is left");
    w.unlink(dir, "g").await.expect("unlinks");
    assert_eq!(w.duties.try_recv(), Ok(Duty::DeleteFile { ino: file, length: 0 }));
    let score = w.get(Query::ZScore(key::DELFILES, key::delfile(file, 0))).await;
    assert_eq!(score, Value::Score(Some(w.meta.clock().now().sec)));
    assert_eq!(w.get(Query::HGetAll(key::parents(file))).await, Value::Pairs(vec![]));
    w.check().await;
}

#[tokio::test]
async fn link_fails() {
    let w = World::new().await;
    let dir = w.make(ROOT, "d", Kind::Dir).await;
    let file = w.make(ROOT, "f", Kind::File).await;
    let fixed = w.make(ROOT, "fixed", Kind::File).await;
    w.edit(fixed, |attr| attr.flags = Flags(Flags::APPEND)).await;
    let symlink = w.make(ROOT, "s", Kind::Symlink).await;
    for (ino, parent, text, errno) in [
        (file, ROOT, "d", Errno::EXIST),
        (dir, ROOT, "x", Errno::PERM),
        (fixed, ROOT, "x", Errno::PERM),
        (Ino(99), ROOT, "x", Errno::NOENT),
        (file, Ino(99), "x", Errno::NOENT),
        (file, symlink, "x", Errno::NOTDIR),
    ] {
        assert_eq!(w.meta.link(&Caller::root(), ino, parent, &name(text)).await, Err(errno), "{ino} in {parent}");
    }
    assert_eq!(w.meta.link(&Caller::root(), symlink, ROOT, &name("t")).await.expect("links").nlink, 2);
    w.check().await;
    // The count of the record is full.
    w.edit(file, |attr| attr.nlink = u32::MAX).await;
    assert_eq!(w.meta.link(&Caller::root(), file, ROOT, &name("x")).await, Err(Errno::MLINK));
}

#[tokio::test]
async fn unlink_and_rmdir_fail() {
    let w = World::new().await;
    let sticky = w.make(ROOT, "sticky", Kind::Dir).await;
    w.make(sticky, "f", Kind::File).await;
    w.make(sticky, "d", Kind::Dir).await;
    w.edit(sticky, |attr| (attr.mode, attr.uid) = (0o1777, 3)).await;
    let full = w.make(ROOT, "full", Kind::Dir).await;
    let file = w.make(full, "f", Kind::File).await;
    let fixed = w.make(full, "fixed", Kind::File).await;
    w.edit(fixed, |attr| attr.flags = Flags(Flags::IMMUTABLE)).await;
    let log = w.make(ROOT, "log", Kind::Dir).await;
    w.make(log, "f", Kind::File).await;
    w.make(log, "d", Kind::Dir).await;
    w.edit(log, |attr| attr.flags = Flags(Flags::APPEND)).await;
    for (uid, parent, text, unlink, rmdir) in [
        (0, ROOT, "none", Errno::NOENT, Errno::NOENT),
        (0, Ino(99), "none", Errno::NOENT, Errno::NOENT),
        (0, file, "none", Errno::NOTDIR, Errno::NOTDIR),
        (0, ROOT, "full", Errno::PERM, Errno::NOTEMPTY),
        (0, ROOT, ".trash", Errno::PERM, Errno::PERM),
        (0, full, "fixed", Errno::PERM, Errno::NOTDIR),
        (0, log, "f", Errno::PERM, Errno::NOTDIR),
        (0, log, "d", Errno::PERM, Errno::PERM),
        (5, sticky, "f", Errno::ACCES, Errno::NOTDIR),
        (5, sticky, "d", Errno::PERM, Errno::ACCES),
    ] {
        assert_eq!(w.meta.unlink(&user(uid), parent, &name(text)).await, Err(unlink), "unlink {text} in {parent}");
        assert_eq!(w.meta.rmdir(&user(uid), parent, &name(text)).await, Err(rmdir), "rmdir {text} in {parent}");
    }
    w.check().await;
    // The owner of the sticky directory may.
    w.meta.unlink(&user(3), sticky, &name("f")).await.expect("unlinks");
    w.meta.rmdir(&user(3), sticky, &name("d")).await.expect("removes");
    w.rmdir(ROOT, "sticky").await.expect("removes");
    assert_eq!(w.meta.getattr(sticky).await, Err(Errno::NOENT));
    w.check().await;
}

#[tokio::test]
async fn an_open_file_outlives_its_last_link() {
    let mut w = World::new().await;
    let file = w.make(ROOT, "f", Kind::File).await;
    w.edit(file, |attr| attr.length = 10_000).await;
    w.write(&[
        Write::IncrBy(key::USED_SPACE, 8192),
        Write::HIncrBy(key::DIR_USED_SPACE, "1".into(), 8192),
        Write::HIncrBy(key::DIR_DATA_LENGTH, "1".into(), 10_000),
    ])
    .await;
    w.check().await;
    let (one, two) = (OpenMode::default(), OpenMode { write: true, ..OpenMode::default() });
    w.meta.open(&Caller::root(), file, one).await.expect("opens");
    w.meta.open(&Caller::root(), file, two).await.expect("opens");
    w.unlink(ROOT, "f").await.expect("unlinks");
    assert_eq!(w.meta.getattr(file).await.expect("still there").nlink, 0);
    w.meta.set_xattr(&Caller::root(), file, b"user.a", "v".into(), XattrMode::Any).await.expect("sets");
    w.check().await;
    w.meta.close(file).await.expect("closes");
    assert!(w.duties.try_recv().is_err());
    assert!(w.meta.getattr(file).await.is_ok(), "one handle is left");
    w.meta.close(file).await.expect("closes");
    assert_eq!(w.duties.try_recv(), Ok(Duty::DeleteFile { ino: file, length: 10_000 }));
    assert_eq!(w.meta.getattr(file).await, Err(Errno::NOENT));
    assert_eq!(w.count(key::USED_SPACE).await, 0);
    assert_eq!(w.meta.open(&Caller::root(), file, one).await, Err(Errno::NOENT));
    assert!(!w.meta.open_files().is_open(file));
    w.check().await;
}

#[tokio::test]
async fn another_process_does_not_delete_what_this_one_keeps() {
    let w = World::new().await;
    let other = w.other(8);
    let file = w.make(ROOT, "f", Kind::File).await;
    w.meta.open(&Caller::root(), file, OpenMode::default()).await.expect("opens");
    other.meta.open(&Caller::root(), file, OpenMode::default()).await.expect("opens");
    w.unlink(ROOT, "f").await.expect("unlinks");
    other.meta.close(file).await.expect("closes");
    assert!(w.meta.getattr(file).await.is_ok());
    w.meta.close(file).await.expect("closes");
    assert_eq!(w.meta.getattr(file).await, Err(Errno::NOENT));
    w.check().await;
}

#[tokio::test]
async fn a_file_without_a_name() {
    let mut w = World::new().await;
    let dir = w.make(ROOT, "d", Kind::Dir).await;
    let root_before = w.meta.getattr(ROOT).await;
    let lost = w.meta.create_unnamed(&user(5), ROOT, node(Kind::File)).await.expect("creates");
    let kept = w.meta.create_unnamed(&user(5), ROOT, node(Kind::File)).await.expect("creates");
    assert_eq!((kept.attr.nlink, kept.attr.parent), (0, ROOT));
    assert_eq!(w.meta.getattr(ROOT).await, root_before);
    w.check().await;
    let attr = w.meta.link(&user(5), kept.ino, dir, &name("named")).await.expect("links");
    assert_eq!((attr.nlink, attr.parent), (1, dir));
    w.check().await;
    w.meta.close(kept.ino).await.expect("closes");
    assert_eq!(w.find(dir, "named").await, Ok((kept.ino, attr)));
    w.meta.close(lost.ino).await.expect("closes");
    assert_eq!(w.duties.try_recv(), Ok(Duty::DeleteFile { ino: lost.ino, length: 0 }));
    assert_eq!(w.meta.getattr(lost.ino).await, Err(Errno::NOENT));
    w.check().await;
    // Without a session nobody would clean it up.
    let guest = w.other(0);
    assert_eq!(guest.meta.create_unnamed(&user(5), ROOT, node(Kind::File)).await, Err(Errno::NOTSUP));
}

/// What another session keeps alive without a name goes with its last handle there, whatever names it has by then.
#[tokio::test]
async fn only_who_keeps_a_file_alive_gives_it_a_name_again() {
    let w = World::new().await;
    let other = w.other(8);
    let file = w.make(ROOT, "f", Kind::File).await;
    for process in [&w, &other] {
        process.meta.open(&Caller::root(), file, OpenMode::default()).await.expect("opens");
    }
    w.unlink(ROOT, "f").await.expect("unlinks");
    assert_eq!(other.meta.link(&Caller::root(), file, ROOT, &name("again")).await, Err(Errno::NOENT));
    w.meta.link(&Caller::root(), file, ROOT, &name("again")).await.expect("links");
    // Named by another make of client, which leaves the mark of this session alone: it goes with the last handle.
    w.write(&[Write::SAdd(key::sustained(w.meta.sid.load(std::sync::atomic::Ordering::Relaxed)), key::decimal(file))]).await;
    w.meta.close(file).await.expect("closes");
    assert_eq!(w.get(Query::SMembers(key::sustained(w.meta.sid.load(std::sync::atomic::Ordering::Relaxed)))).await, Value::List(vec![]));
    other.meta.close(file).await.expect("closes");
    assert!(w.find(ROOT, "again").await.is_ok());
    w.check().await;
}

#[tokio::test]
async fn open_or_create() {
    let w = World::new().await;
    w.make(ROOT, "d", Kind::Dir).await;
    w.make(ROOT, "s", Kind::Symlink).await;
    let root = Caller::root();
    let made = w.meta.open_or_create(&root, ROOT, &name("f"), node(Kind::File), true).await.expect("creates");
    assert!(made.created && w.meta.open_files().is_open(made.ino));
    let found = w.meta.open_or_create(&root, ROOT, &name("f"), node(Kind::File), false).await.expect("opens");
    assert_eq!((found.ino, found.created), (made.ino, false));
    for (text, exclusive, errno) in
        [("f", true, Errno::EXIST), ("d", false, Errno::ISDIR), ("d", true, Errno::EXIST), ("s", false, Errno::STALE)]
    {
        assert_eq!(w.meta.open_or_create(&root, ROOT, &name(text), node(Kind::File), exclusive).await, Err(errno), "{text}");
    }
    w.meta.close(made.ino).await.expect("closes");
    assert!(w.meta.open_files().is_open(made.ino));
    w.meta.close(made.ino).await.expect("closes");
    assert!(!w.meta.open_files().is_open(made.ino));
    w.check().await;
}

#[tokio::test]
async fn open_obeys_the_flags() {
    let w = World::new().await;
    let file = w.make(ROOT, "f", Kind::File).await;
    let mode = |write, append, truncate| OpenMode { write, append, truncate };
    for (flags, mode, want) in [
        (Flags::IMMUTABLE, mode(false, false, false), Ok(())),
        (Flags::IMMUTABLE, mode(true, true, false), Err(Errno::PERM)),
        (Flags::IMMUTABLE, mode(false, false, true), Err(Errno::PERM)),
        (Flags::APPEND, mode(true, true, false), Ok(())),
        (Flags::APPEND, mode(true, false, false), Err(Errno::PERM)),
        (Flags::APPEND, mode(true, true, true), Err(Errno::PERM)),
        (0, mode(true, false, true), Ok(())),
    ] {
        w.edit(file, |attr| attr.flags = Flags(flags)).await;
        let got = w.meta.open(&Caller::root(), file, mode).await.map(|_| ());
        assert_eq!(got, want, "flags {flags} {mode:?}");
        if got.is_ok() {
            w.meta.close(file).await.expect("closes");
        }
        assert!(!w.meta.open_files().is_open(file));
    }
}

#[tokio::test]
async fn rename_moves_and_replaces() {
    let mut w = World::new().await;
    let (a, b) = (w.make(ROOT, "a", Kind::Dir).await, w.make(ROOT, "b", Kind::Dir).await);
    let file = w.make(a, "f", Kind::File).await;
    let victim = w.make(b, "v", Kind::File).await;
    let sub = w.make(a, "sub", Kind::Dir).await;
    w.make(b, "empty", Kind::Dir).await;
    w.clock.advance(Duration::from_secs(10));
    let now = w.meta.clock().now();

    w.rename((a, "f"), (a, "g")).await.expect("renames");
    let attr = w.find(a, "g").await.expect("is there").1;
    assert_eq!((attr.ctime, attr.parent), (now, a));
    assert_eq!(w.find(a, "f").await, Err(Errno::NOENT));
    w.check().await;
    w.rename((a, "g"), (b, "v")).await.expect("replaces");
    assert_eq!(w.find(b, "v").await.expect("is there").0, file);
    assert_eq!(w.duties.try_recv(), Ok(Duty::DeleteFile { ino: victim, length: 0 }));
    assert_eq!(w.meta.parent_of(file).await, Ok(b));
    w.check().await;
    w.rename((a, "sub"), (b, "empty")).await.expect("replaces an empty directory");
    let attr = w.meta.getattr(sub).await.expect("is there");
    assert_eq!((attr.parent, attr.ctime), (b, now));
    for dir in [a, b] {
        let attr = w.meta.getattr(dir).await.expect("is there");
        assert_eq!((attr.mtime.sec, attr.ctime.sec), (now.sec, now.sec));
    }
    w.check().await;
    w.rename((ROOT, "a"), (sub, "a")).await.expect("moves a directory down");
    w.check().await;
    w.rename((sub, "a"), (ROOT, "z")).await.expect("and up");
    w.check().await;
}

#[tokio::test]
async fn rename_of_links() {
    let w = World::new().await;
    let d = w.make(ROOT, "d", Kind::Dir).await;
    let file = w.make(ROOT, "f", Kind::File).await;
    w.meta.link(&Caller::root(), file, d, &name("g")).await.expect("links");
    let before = w.meta.getattr(d).await;
    w.rename((ROOT, "f"), (d, "g")).await.expect("does nothing");
    assert!(w.find(ROOT, "f").await.is_ok() && w.find(d, "g").await.is_ok());
    assert_eq!(w.meta.getattr(d).await, before);
    w.check().await;
    w.rename((ROOT, "f"), (d, "h")).await.expect("moves a link");
    w.check().await;
    w.make(d, "other", Kind::Symlink).await;
    w.rename((d, "other"), (d, "h")).await.expect("replaces a link");
    assert_eq!(w.meta.getattr(file).await.expect("one is left").nlink, 1);
    w.check().await;
    // Over a file that is open here.
    w.meta.open(&Caller::root(), file, OpenMode::default()).await.expect("opens");
    w.rename((d, "h"), (d, "g")).await.expect("replaces");
    assert_eq!(w.meta.getattr(file).await.expect("kept").nlink, 0);
    w.check().await;
    w.meta.close(file).await.expect("closes");
    w.check().await;
}

#[tokio::test]
async fn exchange() {
    let w = World::new().await;
    let (a, b) = (w.make(ROOT, "a", Kind::Dir).await, w.make(ROOT, "b", Kind::Dir).await);
    let file = w.make(a, "f", Kind::File).await;
    let dir = w.make(b, "d", Kind::Dir).await;
    w.make(dir, "inside", Kind::File).await;
    w.meta.link(&Caller::root(), file, ROOT, &name("link")).await.expect("links");
    let flags = RenameFlags { exchange: true, ..RenameFlags::default() };
    let swap =
        async |from: (Ino, &str), to: (Ino, &str)| w.meta.rename(&Caller::root(), from.0, &name(from.1), to.0, &name(to.1), flags).await;
    swap((a, "f"), (b, "d")).await.expect("exchanges");
    assert_eq!(w.find(a, "f").await.map(|found| found.0), Ok(dir));
    assert_eq!(w.find(b, "d").await.map(|found| found.0), Ok(file));
    w.check().await;
    swap((a, "f"), (ROOT, "b")).await.expect("exchanges two directories");
    w.check().await;
    assert_eq!(w.find(a, "f").await.map(|found| found.0), Ok(b));
    swap((ROOT, "a"), (ROOT, "link")).await.expect("exchanges in one directory");
    w.check().await;
    assert_eq!(swap((ROOT, "link"), (ROOT, "none")).await, Err(Errno::NOENT));
    assert_eq!(swap((ROOT, "link"), (b, "d")).await, Err(Errno::INVAL), "a is above b");
    assert_eq!(swap((b, "d"), (ROOT, "link")).await, Err(Errno::INVAL), "from the other side");
    w.check().await;
}

#[tokio::test]
async fn rename_fails() {
    let w = World::new().await;
    let a = w.make(ROOT, "a", Kind::Dir).await;
    let b = w.make(a, "b", Kind::Dir).await;
    let c = w.make(b, "c", Kind::Dir).await;
    let file = w.make(ROOT, "f", Kind::File).await;
    w.make(ROOT, "g", Kind::File).await;
    w.make(ROOT, "empty", Kind::Dir).await;
    let fixed = w.make(ROOT, "fixed", Kind::File).await;
    w.edit(fixed, |attr| attr.flags = Flags(Flags::IMMUTABLE)).await;
    let sticky = w.make(ROOT, "sticky", Kind::Dir).await;
    w.edit(sticky, |attr| (attr.mode, attr.uid) = (0o1777, 3)).await;
    w.make(sticky, "f", Kind::File).await;
    w.make(sticky, "d", Kind::Dir).await;
    let keep = RenameFlags { noreplace: true, ..RenameFlags::default() };
    let both = RenameFlags { noreplace: true, exchange: true, restore: false };
    let plain = RenameFlags::default();
    for (uid, from, to, flags, errno) in [
        (0, (ROOT, "none"), (ROOT, "x"), plain, Errno::NOENT),
        (0, (Ino(99), "x"), (ROOT, "x"), plain, Errno::NOENT),
        (0, (ROOT, "f"), (Ino(99), "x"), plain, Errno::NOENT),
        (0, (file, "x"), (ROOT, "x"), plain, Errno::NOTDIR),
        (0, (ROOT, "a"), (file, "x"), plain, Errno::NOTDIR),
        (0, (ROOT, "f"), (ROOT, "g"), keep, Errno::EXIST),
        (0, (ROOT, "f"), (ROOT, "f"), keep, Errno::EXIST),
        (0, (ROOT, "f"), (ROOT, "g"), both, Errno::INVAL),
        (0, (ROOT, "a"), (ROOT, "f"), plain, Errno::NOTDIR),
        (0, (ROOT, "f"), (ROOT, "empty"), plain, Errno::ISDIR),
        (0, (ROOT, "empty"), (ROOT, "a"), plain, Errno::NOTEMPTY),
        (0, (b, "c"), (ROOT, "a"), plain, Errno::NOTEMPTY),
        (0, (ROOT, "a"), (a, "x"), plain, Errno::INVAL),
        (0, (ROOT, "a"), (c, "x"), plain, Errno::INVAL),
        (0, (a, "b"), (c, "x"), plain, Errno::INVAL),
        (0, (ROOT, "fixed"), (ROOT, "x"), plain, Errno::PERM),
        (0, (ROOT, "f"), (ROOT, "fixed"), plain, Errno::PERM),
        (0, (ROOT, "f"), (ROOT, ".trash"), plain, Errno::PERM),
        (5, (sticky, "f"), (sticky, "x"), plain, Errno::ACCES),
        (5, (ROOT, "f"), (sticky, "f"), plain, Errno::ACCES),
        (3, (sticky, "d"), (ROOT, "x"), plain, Errno::ACCES),
    ] {
        let got = w.meta.rename(&user(uid), from.0, &name(from.1), to.0, &name(to.1), flags).await;
        assert_eq!(got, Err(errno), "{uid}: {from:?} to {to:?} {flags:?}");
    }
    w.rename((ROOT, "f"), (ROOT, "f")).await.expect("nothing to do");
    w.meta.rename(&user(3), sticky, &name("f"), ROOT, &name("x"), plain).await.expect("the directory's owner may");
    w.check().await;
}

#[tokio::test]
async fn setattr_rules() {
    let w = World::new().await;
    let file = w.make(ROOT, "f", Kind::File).await;
    let set = SetAttr::default();
    let at = |sec| Some(SetTime::At(Time { sec, nsec: 5 }));
    // (mode before, caller, change, mode, uid, gid after) for a file of 10:10
    let table = [
        (0o644, 10, SetAttr { mode: Some(0o600), ..set }, Ok((0o600, 10, 10))),
        (0o644, 11, SetAttr { mode: Some(0o600), ..set }, Err(Errno::PERM)),
        (0o644, 11, SetAttr { mode: Some(0o4644), ..set }, Err(Errno::PERM)),
        (0o644, 0, SetAttr { mode: Some(0o7777), ..set }, Ok((0o7777, 10, 10))),
        (0o644, 10, SetAttr { gid: Some(20), ..set }, Ok((0o644, 10, 20))),
        (0o644, 11, SetAttr { gid: Some(20), ..set }, Err(Errno::PERM)),
        (0o644, 10, SetAttr { uid: Some(11), ..set }, Err(Errno::PERM)),
        (0o644, 11, SetAttr { uid: Some(11), ..set }, Err(Errno::PERM)),
        (0o644, 0, SetAttr { uid: Some(11), gid: Some(12), ..set }, Ok((0o644, 11, 12))),
        (0o6555, 10, SetAttr { uid: Some(10), gid: Some(20), ..set }, Ok((0o555, 10, 20))),
        (0o6555, 10, SetAttr { uid: Some(10), mode: Some(0o555), ..set }, Ok((0o555, 10, 10))),
        (0o6555, 0, SetAttr { uid: Some(11), ..set }, Ok((0o555, 11, 10))),
        (0o6545, 0, SetAttr { uid: Some(11), ..set }, Ok((0o2545, 11, 10))),
        (0o6545, 10, SetAttr { gid: Some(20), ..set }, Ok((0o545, 10, 20))),
        (0o644, 10, SetAttr { atime: at(-7), mtime: at(-9), ..set }, Ok((0o644, 10, 10))),
        (0o644, 11, SetAttr { atime: at(1), ..set }, Err(Errno::PERM)),
        (0o644, 11, SetAttr { mtime: at(1), ..set }, Err(Errno::PERM)),
        (0o644, 11, SetAttr { mtime: Some(SetTime::Now), ..set }, Ok((0o644, 10, 10))),
        (0o644, 10, set, Ok((0o644, 10, 10))),
    ];
    for (mode, uid, change, want) in table {
        w.clock.advance(Duration::from_secs(1));
        w.edit(file, |attr| (attr.mode, attr.uid, attr.gid) = (mode, 10, 10)).await;
        let before = w.meta.getattr(file).await.expect("is there");
        let got = w.meta.setattr(&user(uid), file, change).await;
        assert_eq!(got.clone().map(|attr| (attr.mode, attr.uid, attr.gid)), want, "{mode:o} {uid} {change:?}");
        let after = w.meta.getattr(file).await.expect("is there");
        let Ok(attr) = got else {
            assert_eq!(after, before);
            continue;
        };
        assert_eq!((&after, after.ctime), (&attr, w.meta.clock().now()), "ctime always moves");
        let time = |to: Option<SetTime>, was| match to {
            None => was,
            Some(SetTime::Now) => w.meta.clock().now(),
            Some(SetTime::At(time)) => time,
        };
        assert_eq!((attr.atime, attr.mtime), (time(change.atime, before.atime), time(change.mtime, before.mtime)));
    }
    assert_eq!(w.meta.setattr(&user(0), Ino(99), set).await, Err(Errno::NOENT));
    // A directory keeps its set-id bits when it changes hands.
    let dir = w.make(ROOT, "d", Kind::Dir).await;
    w.edit(dir, |attr| attr.mode = 0o6777).await;
    let attr = w.meta.setattr(&user(0), dir, SetAttr { uid: Some(4), ..set }).await.expect("sets");
    assert_eq!(attr.mode, 0o6777);
    w.check().await;
}

#[tokio::test]
async fn access_times() {
    let w = World::new().await;
    let file = w.make(ROOT, "f", Kind::File).await;
    let made = w.meta.getattr(file).await.expect("is there");
    for (seconds, moves) in [(10, false), (24 * 3600, true), (10, false)] {
        let before = w.meta.getattr(file).await.expect("is there");
        w.clock.advance(Duration::from_secs(seconds));
        w.meta.touch_atime(file).await.expect("touches");
        let after = w.meta.getattr(file).await.expect("is there");
        assert_eq!(after.atime != before.atime, moves);
        assert_eq!((after.mtime, after.ctime), (made.mtime, made.ctime));
    }
    assert_eq!(w.meta.touch_atime(Ino(99)).await, Err(Errno::NOENT));
}

#[tokio::test]
async fn extended_attributes() {
    let w = World::new().await;
    let root = Caller::root();
    let file = w.make(ROOT, "f", Kind::File).await;
    let set = async |text: &str, value: &'static str, mode| w.meta.set_xattr(&root, file, text.as_bytes(), value.into(), mode).await;
    let changed = w.meta.getattr(file).await.expect("is there").ctime;
    w.clock.advance(Duration::from_secs(1));
    assert_eq!(set("user.a", "1", XattrMode::Replace).await, Err(Errno::NODATA));
    assert_eq!(w.meta.getattr(file).await.expect("is there").ctime, changed);
    assert_eq!(set("user.a", "1", XattrMode::Create).await, Ok(()));
    assert_eq!(w.meta.getattr(file).await.expect("is there").ctime, w.meta.clock().now());
    assert_eq!(set("user.a", "2", XattrMode::Create).await, Err(Errno::EXIST));
    assert_eq!(set("user.a", "3", XattrMode::Replace).await, Ok(()));
    assert_eq!(set("user.b", "", XattrMode::Any).await, Ok(()));
    assert_eq!(set(&"n".repeat(256), "", XattrMode::Any).await, Err(Errno::RANGE));
    assert_eq!(set("system.posix_acl_access", "", XattrMode::Any).await, Err(Errno::NOTSUP));
    let large = Bytes::from(vec![0; 65537]);
    assert_eq!(w.meta.set_xattr(&root, file, b"user.c", large, XattrMode::Any).await, Err(Errno::RANGE));
    assert_eq!(w.meta.set_xattr(&root, Ino(99), b"user.c", Bytes::new(), XattrMode::Any).await, Err(Errno::NOENT));
    assert_eq!(w.meta.get_xattr(file, b"user.a").await, Ok("3".into()));
    assert_eq!(w.meta.get_xattr(file, b"user.b").await, Ok(Bytes::new()));
    assert_eq!(w.meta.get_xattr(file, b"user.c").await, Err(Errno::NODATA));
    let mut names = w.meta.list_xattr(file).await.expect("lists");
    names.sort();
    assert_eq!(names, ["user.a", "user.b"]);
    assert_eq!(w.meta.list_xattr(Ino(99)).await, Err(Errno::NOENT));
    w.clock.advance(Duration::from_secs(1));
    assert_eq!(w.meta.remove_xattr(&root, file, b"user.a").await, Ok(()));
    assert_eq!(w.meta.getattr(file).await.expect("is there").ctime, w.meta.clock().now());
    assert_eq!(w.meta.remove_xattr(&root, file, b"user.a").await, Err(Errno::NODATA));
    w.unlink(ROOT, "f").await.expect("unlinks");
    w.check().await;
}

#[tokio::test]
async fn symlinks_and_listings() {
    let w = World::new().await;
    let link = w.make(ROOT, "s", Kind::Symlink).await;
    let file = w.make(ROOT, "f", Kind::File).await;
    assert_eq!(w.meta.readlink(link).await, Ok("target".into()));
    assert_eq!(w.meta.readlink(file).await, Err(Errno::INVAL));
    assert_eq!(w.meta.readlink(Ino(99)).await, Err(Errno::NOENT));
    w.write(&[
        Write::HSet(key::dir(ROOT), "ghost".into(), codec::encode_entry(Kind::Fifo, Ino(77))),
        Write::HSet(key::dir(ROOT), "damaged".into(), Bytes::from_static(b"?")),
    ])
    .await;
    for limit in [1, 2, 100] {
        let (mut cursor, mut seen) = (Bytes::new(), BTreeMap::new());
        loop {
            let page = w.meta.readdir(ROOT, cursor, limit).await.expect("lists");
            for entry in page.entries {
                seen.insert(entry.name.clone(), entry);
            }
            match page.next {
                Some(next) => cursor = next,
                None => break,
            }
        }
        let seen: Vec<_> = seen.into_values().map(|e| (e.name, e.ino, e.kind, e.attr.map(|attr| attr.kind))).collect();
        assert_eq!(
            seen,
            [
                ("f".into(), file, Kind::File, Some(Kind::File)),
                ("ghost".into(), Ino(77), Kind::Fifo, None),
                ("s".into(), link, Kind::Symlink, Some(Kind::Symlink)),
            ]
        );
    }
    assert_eq!(w.meta.readdir(Ino(99), Bytes::new(), 10).await, Ok(DirPage::default()));
}
