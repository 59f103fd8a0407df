//! Two clients: one has decided on what it saw, then the other commits. The stale plan must fail its guards, or be right all the same.

use super::*;
use crate::meta::store::{Cursor, Guard, ScanPage, StoreError};
use crate::types::{BoxFuture, SliceId};
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

const ROOT: Ino = Ino::ROOT;
const PLAIN: RenameFlags = RenameFlags { noreplace: false, exchange: false, restore: false };

#[tokio::test]
async fn creators_in_one_directory_do_not_conflict() {
    let w = World::new().await;
    let root = Caller::root();
    let plan = w.plan(&root, |view, cx| create::step(view, cx, ROOT, &name("a"), &node(Kind::Dir), Ino(900))).await;
    w.make(ROOT, "b", Kind::Dir).await;
    assert!(w.commits(plan).await);
    w.check().await;
}

#[tokio::test]
async fn the_same_name_twice() {
    let w = World::new().await;
    let root = Caller::root();
    let target = w.make(ROOT, "target", Kind::File).await;
    let create = w.plan(&root, |view, cx| create::step(view, cx, ROOT, &name("a"), &node(Kind::File), Ino(900))).await;
    let link = w.plan(&root, |view, cx| link::step(view, cx, target, ROOT, &name("a"))).await;
    w.make(ROOT, "a", Kind::File).await;
    assert!(!w.commits(create).await);
    assert!(!w.commits(link).await);
    w.check().await;
}

#[tokio::test]
async fn an_inode_number_twice() {
    let w = World::new().await;
    let taken = w.make(ROOT, "a", Kind::File).await;
    let plan = w.plan(&Caller::root(), |view, cx| create::step(view, cx, ROOT, &name("b"), &node(Kind::File), taken)).await;
    assert!(!w.commits(plan).await);
}

/// Everything that puts something into `d` while `d` is removed, replaced or locked down.
#[tokio::test]
async fn nothing_is_created_in_a_directory_that_has_gone() {
    for case in ["rmdir", "replace", "chmod", "move"] {
        let w = World::new().await;
        let root = Caller::root();
        let d = w.make(ROOT, "d", Kind::Dir).await;
        let e = w.make(ROOT, "e", Kind::Dir).await;
        let file = w.make(ROOT, "f", Kind::File).await;
        let create = w.plan(&root, |view, cx| create::step(view, cx, d, &name("x"), &node(Kind::File), Ino(900))).await;
        let link = w.plan(&root, |view, cx| link::step(view, cx, file, d, &name("x"))).await;
        let rename =
            w.plan(&root, |view, cx| rename::step(view, cx, (ROOT, &name("f")), (d, &name("x")), PLAIN, &Default::default())).await;
        let unnamed = w.plan(&root, |view, cx| create::unnamed_step(view, cx, d, &node(Kind::File), Ino(901))).await;
        match case {
            "rmdir" => w.rmdir(ROOT, "d").await.expect("removes"),
            "replace" => w.rename((ROOT, "e"), (ROOT, "d")).await.expect("replaces"),
            "chmod" => {
                let change = SetAttr { mode: Some(0), ..SetAttr::default() };
                w.meta.setattr(&root, d, change).await.expect("sets");
            }
            _ => w.rename((ROOT, "d"), (e, "d")).await.expect("moves"),
        }
        assert!(!w.commits(create).await, "create, {case}");
        assert!(!w.commits(link).await, "link, {case}");
        assert!(!w.commits(rename).await, "rename, {case}");
        assert!(!w.commits(unnamed).await, "create unnamed, {case}");
        w.check().await;
    }
}

#[tokio::test]
async fn a_directory_is_not_removed_while_something_is_put_into_it() {
    let w = World::new().await;
    let root = Caller::root();
    let d = w.make(ROOT, "d", Kind::Dir).await;
    w.make(ROOT, "e", Kind::Dir).await;
    let rmdir = w.plan(&root, |view, cx| rmdir::step(view, cx, ROOT, &name("d"))).await;
    let rename = w.plan(&root, |view, cx| rename::step(view, cx, (ROOT, &name("e")), (ROOT, &name("d")), PLAIN, &Default::default())).await;
    w.make(d, "x", Kind::File).await;
    assert!(!w.commits(rmdir).await);
    assert!(!w.commits(rename).await);
    w.unlink(d, "x").await.expect("unlinks");
    // Empty again, but its record moved: decided anew, and then it goes.
    assert_eq!(w.rmdir(ROOT, "d").await, Ok(()));
    w.check().await;
}

#[tokio::test]
async fn links_gained_and_lost_at_once() {
    let w = World::new().await;
    let root = Caller::root();
    let file = w.make(ROOT, "f", Kind::File).await;
    let unlink = w.plan(&root, |view, cx| unlink::step(view, cx, ROOT, &name("f"))).await;
    let link = w.plan(&root, |view, cx| link::step(view, cx, file, ROOT, &name("h"))).await;
    w.meta.link(&root, file, ROOT, &name("g")).await.expect("links");
    assert!(!w.commits(unlink).await, "it was the last link then");
    assert!(!w.commits(link).await, "its parent moved to p");
    let unlink = w.plan(&root, |view, cx| unlink::step(view, cx, ROOT, &name("f"))).await;
    w.unlink(ROOT, "g").await.expect("unlinks");
    assert!(!w.commits(unlink).await, "now it is the last");
    w.check().await;
}

#[tokio::test]
async fn a_name_that_means_something_else_now() {
    let w = World::new().await;
    let root = Caller::root();
    w.make(ROOT, "a", Kind::File).await;
    w.make(ROOT, "b", Kind::File).await;
    let unlink = w.plan(&root, |view, cx| unlink::step(view, cx, ROOT, &name("a"))).await;
    let over = w.plan(&root, |view, cx| rename::step(view, cx, (ROOT, &name("b")), (ROOT, &name("a")), PLAIN, &Default::default())).await;
    let away = w.plan(&root, |view, cx| rename::step(view, cx, (ROOT, &name("a")), (ROOT, &name("c")), PLAIN, &Default::default())).await;
    w.make(ROOT, "new", Kind::File).await;
    w.rename((ROOT, "new"), (ROOT, "a")).await.expect("replaces");
    assert!(!w.commits(unlink).await);
    assert!(!w.commits(over).await);
    assert!(!w.commits(away).await);
    w.check().await;
}

#[tokio::test]
async fn two_moves_make_no_cycle() {
    let w = World::new().await;
    let root = Caller::root();
    // a/b/c and x/y/z: a → z and x → c would hang both off themselves.
    let a = w.make(ROOT, "a", Kind::Dir).await;
    let b = w.make(a, "b", Kind::Dir).await;
    let c = w.make(b, "c", Kind::Dir).await;
    let x = w.make(ROOT, "x", Kind::Dir).await;
    let y = w.make(x, "y", Kind::Dir).await;
    let z = w.make(y, "z", Kind::Dir).await;
    let plan = w.plan(&root, |view, cx| rename::step(view, cx, (ROOT, &name("a")), (z, &name("a")), PLAIN, &Default::default())).await;
    let swap = RenameFlags { exchange: true, ..RenameFlags::default() };
    let exchange = w.plan(&root, |view, cx| rename::step(view, cx, (a, &name("b")), (x, &name("y")), swap, &Default::default())).await;
    w.rename((ROOT, "x"), (c, "x")).await.expect("moves");
    assert!(!w.commits(plan).await);
    assert!(!w.commits(exchange).await);
    assert_eq!(w.rename((ROOT, "a"), (z, "a")).await, Err(Errno::INVAL));
    w.check().await;
}

#[tokio::test]
async fn attributes_and_writes_do_not_disturb_each_other() {
    let w = World::new().await;
    let file = w.make(ROOT, "f", Kind::File).await;
    let change = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    let plan = w.plan(&Caller::root(), |view, cx| setattr::step(view, cx, file, &change)).await;
    w.edit(file, |attr| (attr.length, attr.mtime) = (77, Time { sec: 4000, nsec: 1 })).await;
    assert!(w.commits(plan).await);
    let attr = w.meta.getattr(file).await.expect("is there");
    assert_eq!((attr.mode, attr.length, attr.mtime.sec, attr.ctime.sec), (0o600, 77, 4000, 5000));
    // Two changes of the mode are decided one after the other.
    let plan = w.plan(&Caller::root(), |view, cx| setattr::step(view, cx, file, &change)).await;
    w.meta.setattr(&Caller::root(), file, SetAttr { uid: Some(9), ..SetAttr::default() }).await.expect("sets");
    assert!(!w.commits(plan).await);
}

#[tokio::test]
async fn extended_attributes_of_a_file_that_has_gone() {
    let w = World::new().await;
    let file = w.make(ROOT, "f", Kind::File).await;
    let (text, value) = (Bytes::from("user.a"), Bytes::from("v"));
    let any = w.plan(&Caller::root(), |view, cx| xattr::set_step(view, cx, file, &text, &value, XattrMode::Any)).await;
    let create = w.plan(&Caller::root(), |view, cx| xattr::set_step(view, cx, file, &text, &value, XattrMode::Create)).await;
    w.meta.set_xattr(&Caller::root(), file, b"user.a", "w".into(), XattrMode::Any).await.expect("sets");
    assert!(!w.commits(create).await);
    w.unlink(ROOT, "f").await.expect("unlinks");
    assert!(!w.commits(any).await);
    w.check().await;
}

#[tokio::test]
async fn the_last_close_and_a_new_link() {
    let w = World::new().await;
    let made = w.meta.create_unnamed(&Caller::root(), ROOT, node(Kind::File)).await.expect("creates");
    w.meta.open_files().remove(made.ino);
    let close = w.plan(&Caller::root(), |view, cx| open::close_step(view, cx, made.ino)).await;
    assert_eq!(close.while_closed, Some(made.ino));
    w.meta.link(&Caller::root(), made.ino, ROOT, &name("f")).await.expect("links");
    assert!(!w.commits(close).await);
    w.check().await;
    let fenced = w.plan(&Caller::root(), |view, cx| unlink::step(view, cx, ROOT, &name("f"))).await;
    assert_eq!(fenced.while_closed, Some(made.ino), "whether the file is open decides");
}

/// A store in which another request comes in at the worst moment: when the next commit is decided on and not yet made.
struct Interrupted {
    store: Arc<EmbeddedStore>,
    between: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Store for Interrupted {
    fn read<'a>(&'a self, queries: &'a [Query]) -> BoxFuture<'a, Result<Vec<Value>, StoreError>> {
        self.store.read(queries)
    }

    fn commit<'a>(&'a self, guards: &'a [Guard], writes: &'a [Write], reads: &'a [Query]) -> BoxFuture<'a, Result<Commit, StoreError>> {
        let between = self.between.lock().expect("not poisoned").take();
        if let Some(between) = between {
            between();
        }
        self.store.commit(guards, writes, reads)
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.sync()
    }

    fn scan<'a>(&'a self, range: &'a ScanRange, cursor: Cursor, limit: u32) -> BoxFuture<'a, Result<ScanPage, StoreError>> {
        self.store.scan(range, cursor, limit)
    }

    fn frame(&self, id: SliceId) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>> {
        self.store.frame(id)
    }

    fn shared(&self) -> bool {
        self.store.shared()
    }

    fn claim_session(&self, sid: u64) -> Result<bool, StoreError> {
        self.store.claim_session(sid)
    }

    fn session_alive(&self, sid: u64) -> Option<bool> {
        self.store.session_alive(sid)
    }
}

type Request = BoxFuture<'static, Result<(), Errno>>;

#[tokio::test]
async fn opens_and_closes_wait_for_a_removal_that_looked_at_them() {
    for case in ["open during unlink", "close during unlink", "open during the last close", "close during rename"] {
        let w = World::new().await;
        let file = w.make(ROOT, "f", Kind::File).await;
        w.make(ROOT, "g", Kind::File).await;
        let store = Arc::new(Interrupted { store: w.store.clone(), between: Mutex::default() });
        let (duties, _asked) = mpsc::channel(10);
        let (clock, setting) = (w.clock.clone(), (*w.meta.setting()).clone());
        let meta = Arc::new(Meta::new(MetaConfig { store: store.clone(), clock, setting, duties, atime: AtimeMode::Never }));
        meta.sid.store(7, Ordering::Relaxed);
        if case != "open during unlink" {
            meta.open(&Caller::root(), file, OpenMode::default()).await.expect("opens");
        }
        if case == "open during the last close" {
            meta.unlink(&Caller::root(), ROOT, &name("f")).await.expect("unlinks");
        }
        let opens = case.starts_with("open");
        let second: Request = {
            let meta = meta.clone();
            Box::pin(async move {
                if opens { meta.open(&Caller::root(), file, OpenMode::default()).await.map(drop) } else { meta.close(file).await }
            })
        };
        let waiting: Arc<Mutex<Option<Request>>> = Arc::default();
        let kept = waiting.clone();
        let between = move || {
            let mut second = second;
            let polled = second.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(polled, Poll::Pending, "{case}");
            *kept.lock().expect("not poisoned") = Some(second);
        };
        *store.between.lock().expect("not poisoned") = Some(Box::new(between));
        match case {
            "open during the last close" => meta.close(file).await.expect("closes"),
            "close during rename" => {
                meta.rename(&Caller::root(), ROOT, &name("g"), ROOT, &name("f"), PLAIN).await.expect("renames");
            }
            _ => meta.unlink(&Caller::root(), ROOT, &name("f")).await.expect("unlinks"),
        }
        let second = waiting.lock().expect("not poisoned").take().expect("the commit was interrupted");
        assert_eq!(second.await, if opens { Err(Errno::NOENT) } else { Ok(()) }, "{case}");
        assert_eq!(meta.getattr(file).await, Err(Errno::NOENT), "{case}");
        assert!(!meta.open_files().is_open(file), "{case}");
        w.check().await;
    }
}

/// The last handle of an unlinked file goes, and before its close looks at the record another one comes: the file is left to that one.
#[tokio::test]
async fn a_handle_that_comes_while_the_last_one_closes_inherits_the_file() {
    let w = World::new().await;
    let file = w.make(ROOT, "f", Kind::File).await;
    let append = OpenMode { write: true, append: true, truncate: false };
    for second in ["opens", "may not open"] {
        let file = if second == "opens" { file } else { w.make(ROOT, "f", Kind::File).await };
        w.meta.open(&Caller::root(), file, append).await.expect("opens");
        w.meta.unlink(&Caller::root(), ROOT, &name("f")).await.expect("unlinks");
        // The first half of a close.
        assert!(w.meta.open_files().remove(file), "the last handle of an unlinked file");
        if second == "opens" {
            w.meta.open(&Caller::root(), file, append).await.expect("opens: the record is still there");
            let close = w.plan(&Caller::root(), |view, cx| open::close_step(view, cx, file)).await;
            assert!(close.writes.is_empty(), "the file is open again");
            w.meta.close(file).await.expect("closes");
        } else {
            w.edit(file, |attr| attr.flags = Flags(Flags::IMMUTABLE)).await;
            assert_eq!(w.meta.open(&Caller::root(), file, append).await, Err(Errno::PERM));
        }
        assert_eq!(w.meta.getattr(file).await, Err(Errno::NOENT), "{second}");
        w.check().await;
    }
}

/// Opening, unlinking and closing from many tasks on real threads: whoever opened keeps the file, and nothing is left behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn openers_and_removers() {
    let w = Arc::new(World::new().await);
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..4 {
        let w = w.clone();
        tasks.spawn(async move {
            for round in 0..200 {
                let caller = Caller::root();
                if (round + worker) % 3 == 0 {
                    let _ = w.unlink(ROOT, "f").await;
                    continue;
                }
                let opened = w.meta.open_or_create(&caller, ROOT, &name("f"), node(Kind::File), false).await.expect("opens");
                tokio::task::yield_now().await;
                assert!(w.meta.getattr(opened.ino).await.is_ok(), "an open file keeps its record");
                w.meta.close(opened.ino).await.expect("closes");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no worker fails");
    }
    let _ = w.unlink(ROOT, "f").await;
    w.check().await;
    assert_eq!(w.count(key::TOTAL_INODES).await, 0);
}
