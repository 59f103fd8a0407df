//! Whether a guard holds, given the answer to its query.

use crate::meta::store::{BytesRange, Guard, Value};
use bytes::Bytes;

/// `value` answers `guard.query()`.
pub(super) fn holds(guard: &Guard, value: &Value) -> bool {
    match (guard, value) {
        (Guard::Value(_, expected) | Guard::Field(_, _, expected), Value::Bytes(found)) => expected == found,
        (Guard::Bytes(_, ranges), Value::Bytes(Some(found))) => ranges.iter().all(|(range, expected)| slice(found, *range) == expected),
        (Guard::Fields(_, expected), Value::Pairs(found)) => {
            // The store answers in the order of the names.
            let mut expected: Vec<&(Bytes, Bytes)> = expected.iter().collect();
            expected.sort();
            expected.into_iter().eq(found)
        }
        (Guard::HashEmpty(_), Value::Int(count)) => *count == 0,
        (Guard::HashNotEmpty(_), Value::Int(count)) => *count != 0,
        (Guard::HashLen(_, expected), Value::Int(count)) => *count == i64::from(*expected),
        (Guard::ListPrefix(_, expected), Value::List(found)) => found.starts_with(expected),
        (Guard::ListIs(_, expected), Value::List(found)) => expected == found,
        (Guard::Score(_, _, expected), Value::Score(found)) => expected == found,
        _ => false,
    }
}

/// A range past the end reads as the shorter bytes that are there.
fn slice(bytes: &[u8], range: BytesRange) -> &[u8] {
    let to = range.to.map_or(bytes.len(), |to| (to as usize).min(bytes.len()));
    bytes.get(range.from as usize..to).unwrap_or_default()
}
