//! `Buffer`: room for blocks and requests that is used again. Memory fresh from the system costs a fault for every 4 KiB of it, which for a
//! block is as much as copying it; and what was given back to an allocator may stay with it for ever, unknown to any bound.

use bytes::Bytes;
use std::mem::take;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Smaller buffers are left to the allocator, which is good at them.
const REUSED_BYTES_MIN: usize = 256 << 10;
/// Bytes that may lie unused: what a stream of blocks has on its way to a bucket in one direction.
const FREE_BYTES_MAX: usize = 32 << 20;
/// What was not needed for so long goes back to the system.
const KEPT: Duration = Duration::from_secs(1);
/// Part of a buffer that must be used, in quarters: what is kept alive for some bytes is at most a third more than they are.
const USED_QUARTERS: usize = 3;

/// Bytes that grow within their room.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    /// An empty one with room for `bytes`.
    pub fn with_room(bytes: usize) -> Buffer {
        let used_again = if bytes < REUSED_BYTES_MIN { None } else { free().take(bytes) };
        Buffer(used_again.unwrap_or_else(|| Vec::with_capacity(bytes)))
    }

    /// The bytes, which nobody changes any more. The room comes back when the last reference is gone.
    pub fn freeze(mut self) -> Bytes {
        if self.0.len() < self.0.capacity() / 4 * USED_QUARTERS {
            return Bytes::copy_from_slice(&self.0);
        }
        if self.0.capacity() < REUSED_BYTES_MIN { take(&mut self.0).into() } else { Bytes::from_owner(self) }
    }

    /// The same however little of the room is used: for who lets go of them soon.
    pub fn freeze_all(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.0.capacity() >= REUSED_BYTES_MIN {
            let unused = free().give(take(&mut self.0));
            // After the lock: giving back megabytes takes long.
            drop(unused);
        }
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;
    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Of the whole process: memory is.
static FREE: Mutex<Free> = Mutex::new(Free { rooms: Vec::new(), bytes: 0, least: 0, watched: false });

fn free() -> MutexGuard<'static, Free> {
    FREE.lock().expect("never poisoned: no code under it panics")
}

/// Rooms nobody uses; the ones that were used last are taken first.
#[derive(Debug)]
struct Free {
    rooms: Vec<Vec<u8>>,
    bytes: usize,
    /// The least there was since somebody looked: so much was not needed.
    least: usize,
    /// A thread looks.
    watched: bool,
}

impl Free {
    fn take(&mut self, bytes: usize) -> Option<Vec<u8>> {
        let fits = |room: &Vec<u8>| room.capacity() >= bytes && room.capacity() / 4 * USED_QUARTERS <= bytes;
        let room = self.rooms.remove(self.rooms.iter().rposition(fits)?);
        self.bytes -= room.capacity();
        self.least = self.least.min(self.bytes);
        Some(room)
    }

    /// Keeps a room; answers with what is one too many.
    fn give(&mut self, mut room: Vec<u8>) -> Option<Vec<u8>> {
        if self.bytes + room.capacity() > FREE_BYTES_MAX {
            return Some(room);
        }
        if !self.watched {
            // Without the thread nothing is kept.
            if std::thread::Builder::new().name("buffers".into()).spawn(watch).is_err() {
                return Some(room);
            }
            self.watched = true;
        }
        room.clear();
        self.bytes += room.capacity();
        self.rooms.push(room);
        None
    }

    /// What was not needed lately.
    fn surplus(&mut self) -> Vec<Vec<u8>> {
        let (mut count, mut bytes) = (0, 0);
        while count < self.rooms.len() && bytes + self.rooms[count].capacity() <= self.least {
            bytes += self.rooms[count].capacity();
            count += 1;
        }
        self.bytes -= bytes;
        self.least = self.bytes;
        self.rooms.drain(..count).collect()
    }
}

/// Gives back what is not needed, until there is nothing left.
fn watch() {
    loop {
        std::thread::sleep(KEPT);
        let (surplus, more) = {
            let mut free = free();
            let surplus = free.surplus();
            free.watched = !free.rooms.is_empty();
            (surplus, free.watched)
        };
        drop(surplus);
        if !more {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(bytes: usize) -> Vec<u8> {
        Vec::with_capacity(bytes)
    }

    fn empty() -> Free {
        Free { rooms: Vec::new(), bytes: 0, least: 0, watched: true }
    }

    const MIB: usize = 1 << 20;

    #[test]
    fn rooms_are_used_again_if_they_fit() {
        let mut free = empty();
        for bytes in [MIB, 4 * MIB] {
            assert_eq!(free.give(room(bytes)), None);
        }
        assert_eq!(free.take(2 * MIB), None, "one is too small and one too large");
        assert_eq!(free.take(4 * MIB - 9).map(|room| (room.capacity(), room.len())), Some((4 * MIB, 0)));
        assert_eq!(free.take(4 * MIB), None);
        assert_eq!(free.bytes, MIB);
    }

    #[test]
    fn what_lies_there_is_bounded_and_goes_back_when_it_is_not_needed() {
        let mut free = empty();
        let kept = (0..20).filter(|_| free.give(room(4 * MIB)).is_none()).count();
        assert_eq!((kept, free.bytes), (8, FREE_BYTES_MAX));
        // Nothing is known yet of how much is needed.
        assert!(free.surplus().is_empty());
        for _ in 0..3 {
            let taken: Vec<_> = (0..5).map(|_| free.take(4 * MIB).unwrap()).collect();
            taken.into_iter().for_each(|room| assert_eq!(free.give(room), None));
        }
        assert_eq!(free.surplus().len(), 3);
        assert_eq!(free.surplus().len(), 5);
        assert_eq!((free.bytes, free.rooms.len()), (0, 0));
    }

    #[test]
    fn frozen_bytes_keep_little_more_than_they_are() {
        let mut little = Buffer::with_room(MIB);
        little.extend_from_slice(&[7; 1000]);
        let at = little.as_ptr();
        let bytes = little.freeze();
        assert!(bytes == [7; 1000][..] && bytes.as_ptr() != at);
        let mut much = Buffer::with_room(MIB);
        much.resize(MIB - 5, 9);
        let at = much.as_ptr();
        let bytes = much.freeze();
        assert!(bytes.len() == MIB - 5 && bytes.as_ptr() == at);
    }
}
