//! `Lines`: for each inode a line in which operations of this process stand that would only be in each other's way.

use crate::types::Ino;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::OwnedMutexGuard;

/// All lines. One exists as long as somebody stands in it.
#[derive(Default)]
pub(crate) struct Lines(Mutex<HashMap<Ino, Arc<tokio::sync::Mutex<()>>>>);

/// The first place in a line.
pub(crate) struct Place<'a> {
    lines: &'a Lines,
    ino: Ino,
    first: Option<OwnedMutexGuard<()>>,
}

impl Lines {
    /// Waits until all who came before have left.
    pub async fn first(&self, ino: Ino) -> Place<'_> {
        let line = self.all().entry(ino).or_default().clone();
        // Made before the wait: who gives up waiting leaves no line behind.
        let mut place = Place { lines: self, ino, first: None };
        place.first = Some(line.lock_owned().await);
        place
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Ino, Arc<tokio::sync::Mutex<()>>>> {
        self.0.lock().expect("never poisoned: no code under it panics")
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut all = self.lines.all();
        self.first = None;
        // Who waits holds the line as well, and nobody joins it while the map is locked.
        if all.get(&self.ino).is_some_and(|line| Arc::strong_count(line) == 1) {
            all.remove(&self.ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_ends_with_the_last_who_stands_in_it() {
        let lines = Lines::default();
        let first = lines.first(Ino(1)).await;
        let other = lines.first(Ino(2)).await;
        let mut second = std::pin::pin!(lines.first(Ino(1)));
        assert!(futures_now(second.as_mut()).is_none());
        drop((first, other));
        assert_eq!(lines.all().len(), 1);
        drop(futures_now(second.as_mut()).expect("now it is the first"));
        assert!(lines.all().is_empty());
        // Who waits alone and gives up.
        let first = lines.first(Ino(1)).await;
        let mut second = Box::pin(lines.first(Ino(1)));
        assert!(futures_now(second.as_mut()).is_none());
        drop(first);
        drop(second);
        assert!(lines.all().is_empty());
    }

    fn futures_now<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }
}
