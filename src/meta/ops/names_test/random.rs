//! Random operations in a small tree: after each of them everything agrees.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Create(u8, u8, Kind),
    Link(u8, u8, u8, u8),
    Unlink(u8, u8),
    Rmdir(u8, u8),
    Rename(u8, u8, u8, u8, bool),
    Open(u8, u8),
    Close,
    Unnamed(u8),
    LinkUnnamed(u8, u8),
    Truncate(u8, u8, u16),
    Chown(u8, u8, u8),
    Quota(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let (d, n) = (0u8..6, 0u8..4);
    let kind = prop_oneof![3 => Just(Kind::Dir), 3 => Just(Kind::File), 1 => Just(Kind::Symlink)];
    prop_oneof![
        4 => (d.clone(), n.clone(), kind).prop_map(|(d, n, kind)| Op::Create(d, n, kind)),
        2 => (d.clone(), n.clone(), d.clone(), n.clone()).prop_map(|(a, b, c, d)| Op::Link(a, b, c, d)),
        2 => (d.clone(), n.clone()).prop_map(|(d, n)| Op::Unlink(d, n)),
        1 => (d.clone(), n.clone()).prop_map(|(d, n)| Op::Rmdir(d, n)),
        5 => (d.clone(), n.clone(), d.clone(), n.clone(), any::<bool>()).prop_map(|(a, b, c, d, e)| Op::Rename(a, b, c, d, e)),
        1 => (d.clone(), n.clone()).prop_map(|(d, n)| Op::Open(d, n)),
        1 => Just(Op::Close),
        1 => d.clone().prop_map(Op::Unnamed),
        1 => (d.clone(), n.clone()).prop_map(|(d, n)| Op::LinkUnnamed(d, n)),
        1 => (d.clone(), n.clone(), any::<u16>()).prop_map(|(d, n, length)| Op::Truncate(d, n, length)),
        1 => (d.clone(), n, 0u8..3).prop_map(|(d, n, uid)| Op::Chown(d, n, uid)),
        1 => d.prop_map(Op::Quota),
    ]
}

fn text(n: u8) -> Name {
    name(&format!("n{n}"))
}

async fn run(ops: Vec<Op>, trash_days: u64) {
    let w = World::with(|setting| {
        setting.set("TrashDays", trash_days.into());
        setting.set("UserGroupQuota", (trash_days == 0).into());
    })
    .await;
    let root = Caller::root();
    // Directories are named by when they were made; those that are gone answer ENOENT.
    let mut dirs = vec![Ino::ROOT];
    let (mut open, mut unnamed) = (Vec::new(), Vec::new());
    for op in ops {
        w.clock.advance(Duration::from_millis(1));
        let dir = |d: u8| dirs[usize::from(d) % dirs.len()];
        match op {
            Op::Create(d, n, kind) => {
                if let Ok((ino, attr)) = w.meta.create(&root, dir(d), &text(n), node(kind)).await
                    && attr.is_dir()
                {
                    dirs.push(ino);
                }
            }
            Op::Link(d, n, to, m) => {
                if let Ok((ino, _)) = w.meta.lookup(&root, dir(d), &text(n)).await {
                    let _ = w.meta.link(&root, ino, dir(to), &text(m)).await;
                }
            }
            Op::Unlink(d, n) => drop(w.meta.unlink(&root, dir(d), &text(n)).await),
            Op::Rmdir(d, n) => drop(w.meta.rmdir(&root, dir(d), &text(n)).await),
            Op::Rename(d, n, to, m, exchange) => {
                let flags = RenameFlags { exchange, ..RenameFlags::default() };
                let _ = w.meta.rename(&root, dir(d), &text(n), dir(to), &text(m), flags).await;
            }
            Op::Open(d, n) => {
                if let Ok((ino, attr)) = w.meta.lookup(&root, dir(d), &text(n)).await
                    && attr.kind == Kind::File
                {
                    w.meta.open(&root, ino, OpenMode::default()).await.expect("opens");
                    open.push(ino);
                }
            }
            Op::Close => {
                if let Some(ino) = open.pop() {
                    w.meta.close(ino).await.expect("closes");
                }
            }
            Op::Unnamed(d) => {
                if let Ok(opened) = w.meta.create_unnamed(&root, dir(d), node(Kind::File)).await {
                    open.push(opened.ino);
                    unnamed.push(opened.ino);
                }
            }
            Op::Truncate(d, n, length) => {
                if let Ok((ino, _)) = w.meta.lookup(&root, dir(d), &text(n)).await {
                    let _ = w.meta.truncate(&root, ino, length.into()).await;
                }
            }
            Op::Chown(d, n, uid) => {
                if let Ok((ino, _)) = w.meta.lookup(&root, dir(d), &text(n)).await {
                    let change = SetAttr { uid: Some(uid.into()), gid: Some(u32::from(uid) + 10), ..SetAttr::default() };
                    w.meta.setattr(&root, ino, change).await.expect("root may");
                }
            }
            Op::Quota(d) => w.begin_quota(dir(d)).await,
            Op::LinkUnnamed(d, n) => {
                if let Some(ino) = unnamed.pop() {
                    let _ = w.meta.link(&root, ino, dir(d), &text(n)).await;
                }
            }
        }
        w.check().await;
    }
    for ino in open {
        w.meta.close(ino).await.expect("closes");
    }
    w.check().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn everything_agrees_after_each_operation(ops in prop::collection::vec(op(), 1..60), trash_days in 0u64..2) {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(run(ops, trash_days));
    }
}
