//! Running a few futures of many at once, without tasks: what is ready at once stays on the caller's thread. And one future beside the caller.

use crate::types::BoxFuture;
use std::collections::VecDeque;
use std::task::Poll;

/// Results in the order of the futures, of which `at_once` run together. The first failure ends it; what still ran is dropped.
pub(crate) async fn join<T, E>(futures: Vec<BoxFuture<'_, Result<T, E>>>, at_once: usize) -> Result<Vec<T>, E> {
    let mut results: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    let mut waiting: VecDeque<_> = futures.into_iter().enumerate().collect();
    let mut running: Vec<(usize, BoxFuture<'_, Result<T, E>>)> = Vec::new();
    std::future::poll_fn(|cx| {
        loop {
            while running.len() < at_once
                && let Some(next) = waiting.pop_front()
            {
                running.push(next);
            }
            if running.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let before = running.len();
            let mut failed = None;
            running.retain_mut(|(index, future)| match future.as_mut().poll(cx) {
                Poll::Pending => true,
                Poll::Ready(Ok(value)) => {
                    results[*index] = Some(value);
                    false
                }
                Poll::Ready(Err(error)) => {
                    failed = Some(error);
                    false
                }
            });
            if let Some(error) = failed {
                return Poll::Ready(Err(error));
            }
            // All that run have been polled; those that take a free place have not.
            if running.len() == before || (waiting.is_empty() && !running.is_empty()) {
                return Poll::Pending;
            }
        }
    })
    .await?;
    Ok(results.into_iter().map(|result| result.expect("the loop ends when every future has answered")).collect())
}

/// A future that was begun: what it asks of others is on its way while its owner does something else.
pub(crate) enum Begun<'a, T> {
    /// It waits.
    Waits(BoxFuture<'a, T>),
    /// It is done.
    Done(T),
}

impl<'a, T> Begun<'a, T> {
    /// Takes it as far as it goes without waiting.
    pub async fn begin(mut future: BoxFuture<'a, T>) -> Begun<'a, T> {
        let first = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        match first {
            Poll::Ready(done) => Begun::Done(done),
            Poll::Pending => Begun::Waits(future),
        }
    }

    /// Waits for it.
    pub async fn end(self) -> T {
        match self {
            Begun::Waits(future) => future.await,
            Begun::Done(done) => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_begun_goes_on_and_is_not_lost() {
        assert_eq!(Begun::begin(Box::pin(async { 1 })).await.end().await, 1);
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let (asked, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let begun = Begun::begin(Box::pin(async move {
            asked.send(2).expect("somebody listens");
            receiver.await.expect("sent")
        }))
        .await;
        assert_eq!(heard.try_recv(), Ok(2), "it has asked before anybody waits for it");
        sender.send(3).expect("somebody waits");
        assert_eq!(begun.end().await, 3);
    }
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn results_are_in_order_and_few_run_at_once() {
        for at_once in [1, 3, 100] {
            let (running, most) = (AtomicU32::new(0), AtomicU32::new(0));
            let futures = (0..10u32)
                .map(|n| -> BoxFuture<'_, Result<u32, ()>> {
                    let (running, most) = (&running, &most);
                    Box::pin(async move {
                        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        for _ in 0..(10 - n) % 4 {
                            tokio::task::yield_now().await;
                        }
                        running.fetch_sub(1, Ordering::SeqCst);
                        Ok(n)
                    })
                })
                .collect();
            assert_eq!(join(futures, at_once).await, Ok((0..10).collect()));
            assert!(most.into_inner() <= at_once as u32);
        }
        assert_eq!(join(Vec::<BoxFuture<'_, Result<u32, ()>>>::new(), 3).await, Ok(vec![]));
    }

    #[tokio::test]
    async fn the_first_failure_ends_it() {
        let never: BoxFuture<'_, Result<(), u8>> = Box::pin(std::future::pending());
        let fails: BoxFuture<'_, Result<(), u8>> = Box::pin(async {
            tokio::task::yield_now().await;
            Err(7)
        });
        assert_eq!(join(vec![never, fails], 2).await, Err(7));
    }
}
