//! What every object store must do, as ordinary code: each store's tests run it.

use crate::object::{ObjectError, ObjectStore};
use bytes::Bytes;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

/// Runs the suite on an empty store. Panics with what is wrong.
pub async fn run(store: &dyn ObjectStore) {
    objects_are_replaced_and_removed(store).await;
    ranges(store).await;
    listing_is_in_key_order(store).await;
    files_become_objects(store).await;
}

async fn files_become_objects(store: &dyn ObjectStore) {
    // The second is more than any store takes in one piece.
    for len in [5, (16 << 20) + 7] {
        let body: Vec<u8> = (0..len).map(|n: u32| (n % 251) as u8).collect();
        let temp = OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(std::env::temp_dir());
        let mut file = temp.expect("a file");
        file.write_all(&body).expect("written");
        assert_eq!(store.put_file("v/file.gz", &file).await, Ok(()));
        assert!(store.get("v/file.gz", None).await.as_deref() == Ok(&body[..]), "{len}");
    }
    assert_eq!(store.delete("v/file.gz").await, Ok(()));
}

async fn objects_are_replaced_and_removed(store: &dyn ObjectStore) {
    assert_eq!(store.get("v/none", None).await, Err(ObjectError::Missing));
    assert_eq!(store.head("v/none").await.map(|meta| meta.size), Err(ObjectError::Missing));
    assert_eq!(store.delete("v/none").await, Ok(()), "a missing object is no error");
    for body in [&b"first"[..], b"", b"second, longer"] {
        assert_eq!(store.put("v/a/b/one", Bytes::copy_from_slice(body)).await, Ok(()));
        assert_eq!(store.get("v/a/b/one", None).await.as_deref(), Ok(body));
        let meta = store.head("v/a/b/one").await.expect("it was just put");
        assert_eq!((meta.key.as_str(), meta.size), ("v/a/b/one", body.len() as u64));
    }
    assert_eq!(store.get("v/a", None).await, Err(ObjectError::Missing), "a common prefix is no object");
    assert_eq!(store.head("v/a/b").await.map(|meta| meta.size), Err(ObjectError::Missing));
    assert_eq!(store.get("v/a/b/one/more", None).await, Err(ObjectError::Missing), "nor is what lies below one");
    assert_eq!(store.delete("v/a/b/one").await, Ok(()));
    assert_eq!(store.get("v/a/b/one", None).await, Err(ObjectError::Missing));
}

async fn ranges(store: &dyn ObjectStore) {
    assert_eq!(store.put("v/digits", Bytes::from_static(b"0123456789")).await, Ok(()));
    for (range, expected) in [(0..10, &b"0123456789"[..]), (3..5, b"34"), (8..100, b"89"), (4..4, b"")] {
        assert_eq!(store.get("v/digits", Some(range)).await.as_deref(), Ok(expected));
    }
    let outside = store.get("v/digits", Some(10..11)).await;
    assert!(matches!(outside, Err(ObjectError::Invalid(_))), "a range past the end: {outside:?}");
    assert_eq!(store.get("v/none", Some(0..1)).await, Err(ObjectError::Missing));
    assert_eq!(store.delete("v/digits").await, Ok(()));
}

async fn listing_is_in_key_order(store: &dyn ObjectStore) {
    // `-` sorts before `/` and `0` after it: a walk of directories must not be taken in by that.
    let keys = ["v/c-x", "v/c/1/10_0_5", "v/c/1/9_0_5", "v/c/10/a", "v/c/2/b", "v/c0", "w/z"];
    for key in keys.iter().rev() {
        assert_eq!(store.put(key, Bytes::copy_from_slice(key.as_bytes())).await, Ok(()));
    }
    let list = async |prefix: &str, after: &str, limit: usize| -> Vec<String> {
        store.list(prefix, after, limit).await.expect("listing").into_iter().map(|meta| meta.key).collect()
    };
    assert_eq!(list("", "", 100).await, keys);
    assert_eq!(list("v/", "", 100).await, keys[..6]);
    assert_eq!(list("v/c/1", "", 100).await, keys[1..4]);
    assert_eq!(list("v/c/1/", "", 100).await, keys[1..3]);
    assert_eq!(list("v/c", "v/c/1/10_0_5", 2).await, keys[2..4]);
    assert_eq!(list("v/", "v/c0", 9).await, [""; 0]);
    assert_eq!(list("x", "", 9).await, [""; 0]);
    let mut paged: Vec<String> = Vec::new();
    loop {
        let page = list("v/", paged.last().map_or("", |last| last), 1).await;
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    assert_eq!(paged, keys[..6], "page by page");
    let gone: Vec<String> = keys.iter().map(|key| key.to_string()).chain(["v/none".into()]).collect();
    assert_eq!(store.delete_all(&gone).await, vec![Ok(()); gone.len()]);
    assert_eq!(store.delete_all(&[]).await, []);
    assert_eq!(list("", "", 9).await, [""; 0]);
}
