//! POSIX ACLs: what is stored, shared, inherited, and how modes follow.

use super::*;
use crate::meta::acl::{AclKind, Rule};

async fn world() -> World {
    World::with(|setting| setting.set("EnableACL", true.into())).await
}

fn named() -> Rule {
    Rule { owner: Some(7), group: Some(5), mask: Some(7), other: Some(0), users: vec![(1000, 6)], groups: vec![(2000, 4)] }
}

async fn record(w: &World, ino: Ino) -> (usize, Attr) {
    let Value::Bytes(Some(bytes)) = w.get(Query::Get(key::inode(ino))).await else { panic!("no record") };
    (bytes.len(), codec::Record::decode(bytes).expect("decodes").attr)
}

#[tokio::test]
async fn rules_are_stored_once_and_the_record_changes_its_length() {
    let w = world().await;
    let root = Caller::root();
    let (a, b) = (w.make(Ino::ROOT, "a", Kind::File).await, w.make(Ino::ROOT, "b", Kind::File).await);
    w.edit(a, |attr| attr.mode = 0o6755).await;
    assert_eq!(w.meta.get_acl(a, AclKind::Access).await, Err(Errno::NODATA));
    w.meta.set_acl(&root, a, AclKind::Access, &named(), false).await.unwrap();
    let (len, attr) = record(&w, a).await;
    assert_eq!((len, attr.access_acl, attr.default_acl, attr.mode), (80, 1, 0, 0o6770));
    assert_eq!(w.get(Query::HGet(key::ACL, "1".into())).await, Value::Bytes(Some(named().encode())));
    assert_eq!(w.count(key::ACL_MAX_ID).await, 1);
    // Another client, which has not seen the rule; and a third one that stored one of its own meanwhile.
    let other = w.other(8);
    other.meta.set_acl(&root, b, AclKind::Access, &named(), false).await.unwrap();
    let theirs = Rule { other: Some(1), ..named() };
    other.meta.set_acl(&root, b, AclKind::Access, &theirs, false).await.unwrap();
    assert_eq!((record(&w, b).await.1.access_acl, w.count(key::ACL_MAX_ID).await), (2, 2));
    w.meta.set_acl(&root, b, AclKind::Access, &Rule { other: Some(2), ..named() }, false).await.unwrap();
    w.meta.set_acl(&root, a, AclKind::Access, &theirs, false).await.unwrap();
    assert_eq!((record(&w, b).await.1.access_acl, record(&w, a).await.1.access_acl, w.count(key::ACL_MAX_ID).await), (3, 2, 3));
    assert_eq!(*w.meta.get_acl(a, AclKind::Access).await.unwrap(), theirs);
    assert_eq!(w.meta.list_xattr(a).await.unwrap(), ["system.posix_acl_access"]);
    // A rule a mode can hold is none; the record is as short as before.
    let minimal = Rule { owner: Some(6), group: Some(4), other: Some(0), ..Rule::default() };
    w.meta.set_acl(&root, a, AclKind::Access, &minimal, false).await.unwrap();
    let (len, attr) = record(&w, a).await;
    assert_eq!((len, attr.access_acl, attr.mode), (72, 0, 0o6640));
    let ctime = attr.ctime;
    w.clock.advance(Duration::from_secs(1));
    w.meta.set_acl(&root, a, AclKind::Access, &Rule::default(), false).await.unwrap();
    assert_eq!(record(&w, a).await.1.ctime, ctime, "nothing changes");
    w.check().await;
}

#[tokio::test]
async fn chmod_and_acl_are_two_views_of_one_thing() {
    let w = world().await;
    let root = Caller::root();
    let file = w.make(Ino::ROOT, "a", Kind::File).await;
    w.meta.set_acl(&root, file, AclKind::Access, &named(), false).await.unwrap();
    let chmod = |mode| SetAttr { mode: Some(mode), ..SetAttr::default() };
    let attr = w.meta.setattr(&root, file, chmod(0o4641)).await.unwrap();
    assert_eq!((attr.mode, attr.access_acl), (0o4641, 2));
    let rule = w.meta.get_acl(file, AclKind::Access).await.unwrap();
    assert_eq!(*rule, Rule { owner: Some(6), mask: Some(4), other: Some(1), ..named() });
    // Back: the rule is known.
    assert_eq!(w.meta.setattr(&root, file, chmod(0o770)).await.unwrap().access_acl, 1);
    assert_eq!(w.count(key::ACL_MAX_ID).await, 2);
}

#[test]
fn a_rule_that_a_change_of_owner_brings_is_guarded() {
    use crate::meta::ops::chunk::testing::{World, ready};
    use crate::meta::store::Write;
    let world = World::with(|setting| {
        setting.set("EnableACL", true.into());
        setting.set("UserGroupQuota", true.into());
    });
    let (root, file) = (Caller::root(), world.file(0));
    ready(world.meta.set_acl(&root, file, AclKind::Access, &named(), false)).unwrap();
    let theirs = Rule { other: Some(1), ..named() };
    let store = world.store.clone();
    world.store.before_commit(move || {
        // Another client takes the next id.
        store.put(Write::Set(key::ACL_MAX_ID, "2".into()));
        store.put(Write::HSet(key::ACL, "2".into(), theirs.encode()));
    });
    let change = SetAttr { mode: Some(0o640), uid: Some(5), ..SetAttr::default() };
    assert_eq!(ready(world.meta.setattr(&root, file, change)).unwrap().access_acl, 3);
    let theirs = Rule { other: Some(1), ..named() };
    assert_eq!(world.store.get(Query::HGet(key::ACL, "2".into())), Value::Bytes(Some(theirs.encode())));
}

#[tokio::test]
async fn what_is_created_inherits() {
    let w = world().await;
    let root = Caller::root();
    let dir = w.make(Ino::ROOT, "d", Kind::Dir).await;
    w.meta.set_acl(&root, dir, AclKind::Default, &named(), false).await.unwrap();
    assert_eq!((record(&w, dir).await.0, record(&w, dir).await.1.default_acl), (80, 1));
    let umask = |kind| NewNode { mode: 0o666, umask: 0o077, ..node(kind) };
    let (file, attr) = w.meta.create(&root, dir, &name("f"), umask(Kind::File)).await.unwrap();
    assert_eq!((attr.mode, attr.access_acl, attr.default_acl), (0o660, 2, 0), "no umask");
    assert_eq!(*w.meta.get_acl(file, AclKind::Access).await.unwrap(), Rule { owner: Some(6), mask: Some(6), ..named() });
    let (_, attr) = w.meta.create(&root, dir, &name("g"), umask(Kind::File)).await.unwrap();
    assert_eq!((attr.access_acl, w.count(key::ACL_MAX_ID).await), (2, 2), "shared");
    let (_, attr) = w.meta.create(&root, dir, &name("sub"), NewNode { mode: 0o777, ..umask(Kind::Dir) }).await.unwrap();
    assert_eq!((attr.mode, attr.access_acl, attr.default_acl), (0o770, 1, 1));
    let (_, attr) = w.meta.create(&root, dir, &name("l"), NewNode { umask: 0o077, ..node(Kind::Symlink) }).await.unwrap();
    assert_eq!((attr.access_acl, attr.mode), (0, 0o600));
    let opened = w.meta.create_unnamed(&root, dir, umask(Kind::File)).await.unwrap();
    assert_eq!((opened.attr.access_acl, opened.attr.nlink), (2, 0));
    w.meta.close(opened.ino).await.unwrap();
    // A default rule without names.
    let minimal = Rule { owner: Some(7), group: Some(4), other: Some(0), ..Rule::default() };
    w.meta.set_acl(&root, dir, AclKind::Default, &minimal, false).await.unwrap();
    let (_, attr) = w.meta.create(&root, dir, &name("h"), umask(Kind::File)).await.unwrap();
    assert_eq!((attr.mode, attr.access_acl), (0o640, 0));
    w.check().await;
}

#[tokio::test]
async fn who_may_set_one() {
    let w = world().await;
    let file = w.make(Ino::ROOT, "a", Kind::File).await;
    w.edit(file, |attr| (attr.uid, attr.mode) = (5, 0o2755)).await;
    let set = |caller: Caller, kind, clears| {
        let meta = &w.meta;
        async move { meta.set_acl(&caller, file, kind, &named(), clears).await }
    };
    assert_eq!(set(user(6), AclKind::Access, false).await, Err(Errno::PERM));
    assert_eq!(set(user(5), AclKind::Default, false).await, Err(Errno::ACCES), "only directories have one");
    assert_eq!(w.meta.set_acl(&user(5), file, AclKind::Default, &Rule::default(), false).await, Ok(()));
    assert_eq!(set(Caller::root(), AclKind::Access, true).await, Ok(()));
    assert_eq!(record(&w, file).await.1.mode, 0o2770);
    assert_eq!(set(user(5), AclKind::Access, true).await, Ok(()));
    assert_eq!(record(&w, file).await.1.mode, 0o770, "the kernel said that the owner is not in the group");
    w.edit(file, |attr| attr.flags = Flags(Flags::IMMUTABLE)).await;
    assert_eq!(set(Caller::root(), AclKind::Access, false).await, Err(Errno::PERM));
}

#[tokio::test]
async fn who_asks_beside_the_kernel_is_held_to_the_same_permissions() {
    use crate::meta::ops::acl::{ENTER, READ, WRITE};
    let w = world().await;
    let file = w.make(Ino::ROOT, "f", Kind::File).await;
    w.edit(file, |attr| (attr.uid, attr.gid, attr.mode) = (1, 2, 0o642)).await;
    let asker = |uid, gids: &[u32]| crate::types::Asker { uid, gids: gids.into(), ..Default::default() };
    let allowed = async |uid, gids: &[u32]| {
        let attr = w.meta.getattr(file).await.unwrap();
        let mut bits = 0;
        for want in [READ, WRITE, ENTER] {
            bits |= w.meta.check_access(&asker(uid, gids), &attr, want).await.map_or(0, |()| want);
        }
        bits
    };
    // Owner, group, another group of many, others; the first class that matches decides.
    for (uid, gids, bits) in [(1, &[2][..], 6), (5, &[2], 4), (5, &[7, 2], 4), (5, &[7], 2), (0, &[7], 7)] {
        assert_eq!(allowed(uid, gids).await, bits, "{uid} {gids:?}");
    }
    let rule = Rule { owner: Some(6), group: Some(4), mask: Some(5), other: Some(1), users: vec![(5, 7)], groups: vec![(8, 6), (9, 1)] };
    w.meta.set_acl(&Caller::root(), file, AclKind::Access, &rule, false).await.unwrap();
    // The mask limits all but the owner and others; of several groups any may grant.
    for (uid, gids, bits) in [(1, &[2][..], 6), (5, &[2], 5), (6, &[8], 4), (6, &[9], 1), (6, &[8, 9], 5), (6, &[2], 4), (6, &[7], 1)] {
        assert_eq!(allowed(uid, gids).await, bits, "{uid} {gids:?}");
    }
}
