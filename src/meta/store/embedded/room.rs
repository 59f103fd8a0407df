//! Which commits add to a volume and which are needed to make room in it.

use crate::meta::codec::decode_slice;
use crate::meta::key;
use crate::meta::store::Write;

/// Whether a commit adds names, data or extended attributes. Those that do not, as removals, renames, truncations and whatever sessions and
/// background work note, need a few pages for a moment and leave the database about as large as it was.
pub(super) fn adds(writes: &[Write]) -> bool {
    // A rename takes a name away and adds one.
    let removes_name = writes.iter().any(|write| matches!(write, Write::HDel(key, _) if key::is_dir(key)));
    writes.iter().any(|write| match write {
        Write::PutFrame(..) => true,
        Write::HSet(key, ..) => key::is_xattr(key) || (key::is_dir(key) && !removes_name),
        Write::RPush(key, elements) => key::is_chunk(key) && elements.iter().any(|element| has_data(element)),
        Write::RPushX(key, element) => key::is_chunk(key) && has_data(element),
        _ => false,
    })
}

/// Truncating adds records of holes.
fn has_data(element: &[u8]) -> bool {
    decode_slice(element).is_none_or(|record| record.id != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::codec::encode_slice;
    use crate::types::{Ino, SliceRecord};
    use bytes::Bytes;

    #[test]
    fn what_adds_is_told_from_what_removes() {
        let (dir, chunk, name) = (key::dir(Ino(7)), key::chunk(Ino(9), 0), Bytes::from_static(b"name"));
        let put = Write::HSet(dir.clone(), name.clone(), name.clone());
        let remove = Write::HDel(dir, name.clone());
        let data = encode_slice(&SliceRecord { pos: 0, id: 5, size: 9, off: 0, len: 9 });
        for adding in [
            vec![put.clone()],
            vec![Write::RPush(chunk.clone(), vec![data.clone()])],
            vec![Write::RPushX(chunk.clone(), data)],
            vec![Write::PutFrame(5, name.clone())],
            vec![remove.clone(), Write::PutFrame(5, name.clone())],
            vec![Write::HSet(key::xattr(Ino(9)), name.clone(), name.clone())],
        ] {
            assert!(adds(&adding), "{adding:?}");
        }
        for other in [
            vec![remove.clone(), Write::Del(key::inode(Ino(9)))],
            vec![remove, put],
            vec![Write::RPush(chunk, vec![encode_slice(&SliceRecord::hole(0, 4096))])],
            vec![Write::HSet(key::SESSION_INFOS, name.clone(), name.clone())],
            vec![Write::HSet(key::flock(Ino(9)), name.clone(), name)],
            vec![Write::IncrBy(key::NEXT_INODE, 100)],
        ] {
            assert!(!adds(&other), "{other:?}");
        }
    }
}
