//! Running a few futures of many at once, without tasks: what is ready at once stays on the caller's thread. And one future beside the caller.

use crate::types::BoxFuture;
use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

/// Whoever runs the futures, to be woken when one of them is.
#[derive(Default)]
struct Owner(Mutex<Option<Waker>>);

/// Whether one of them has something to do.
struct Turn {
    woken: AtomicBool,
    owner: Arc<Owner>,
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        // A swap: of two that wake it together the one that polls it sees what both have done.
        self.woken.swap(true, Ordering::AcqRel);
        let owner = self.owner.0.lock().expect("never poisoned: no code under it panics").clone();
        owner.inspect(Waker::wake_by_ref);
    }
}

struct Running<'a, T, E> {
    index: usize,
    future: BoxFuture<'a, Result<T, E>>,
    turn: Arc<Turn>,
}

impl Turn {
    fn take(&self) -> bool {
        self.woken.load(Ordering::Relaxed) && self.woken.swap(false, Ordering::Acquire)
    }
}

/// Results in the order of the futures, of which `at_once` run together. The first failure ends it; what still ran is dropped.
pub(crate) async fn join<T, E>(futures: Vec<BoxFuture<'_, Result<T, E>>>, at_once: usize) -> Result<Vec<T>, E> {
    run(futures, at_once, false).await
}

/// The same for those that compute for milliseconds before they ask a server: after each that waits the thread is given away once, so that
/// what it has asked for is on its way before the next one computes.
pub(crate) async fn join_in_turns<T, E>(futures: Vec<BoxFuture<'_, Result<T, E>>>, at_once: usize) -> Result<Vec<T>, E> {
    run(futures, at_once, true).await
}

async fn run<T, E>(futures: Vec<BoxFuture<'_, Result<T, E>>>, at_once: usize, in_turns: bool) -> Result<Vec<T>, E> {
    let mut results: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    let mut waiting: VecDeque<_> = futures.into_iter().enumerate().collect();
    let mut running: VecDeque<Running<'_, T, E>> = VecDeque::new();
    let owner = Arc::<Owner>::default();
    std::future::poll_fn(|cx| {
        // Before it is looked who has a turn: who gets one later wakes this one.
        *owner.0.lock().expect("never poisoned: no code under it panics") = Some(cx.waker().clone());
        let mut waited = 0;
        loop {
            while running.len() < at_once
                && let Some((index, future)) = waiting.pop_front()
            {
                let turn = Arc::new(Turn { woken: AtomicBool::new(true), owner: owner.clone() });
                running.push_back(Running { index, future, turn });
            }
            if running.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let Some(at) = running.iter().position(|one| one.turn.take()) else { return Poll::Pending };
            let mut one = running.remove(at).expect("it is there");
            match one.future.as_mut().poll(&mut Context::from_waker(&Waker::from(one.turn.clone()))) {
                Poll::Ready(Ok(value)) => results[one.index] = Some(value),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    // Behind the others: each has its turn.
                    running.push_back(one);
                    waited += 1;
                    if !running.iter().any(|one| one.turn.woken.load(Ordering::Relaxed)) {
                        return Poll::Pending;
                    }
                    if in_turns {
                        // Wakes this one when the other tasks of the thread have had their turn.
                        let _ = pin!(tokio::task::yield_now()).poll(cx);
                        return Poll::Pending;
                    }
                    if waited >= running.len() {
                        // They may be woken because this task has used up what the runtime allows it at a time: only a new poll changes that.
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
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
            Poll::Pending => {
                // What it has asked for is sent by another task of this thread.
                tokio::task::yield_now().await;
                Begun::Waits(future)
            }
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
        for (at_once, in_turns) in [(1, false), (3, false), (100, false), (3, true), (100, true)] {
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
            let joined = if in_turns { join_in_turns(futures, at_once).await } else { join(futures, at_once).await };
            assert_eq!(joined, Ok((0..10).collect()));
            assert!(most.into_inner() <= at_once as u32);
        }
        assert_eq!(join(Vec::<BoxFuture<'_, Result<u32, ()>>>::new(), 3).await, Ok(vec![]));
    }

    #[tokio::test]
    async fn others_have_their_turn_before_the_next_one_computes() {
        let said = Mutex::new(Vec::new());
        let say = |what: String| said.lock().unwrap().push(what);
        let futures = (0..3)
            .map(|n| -> BoxFuture<'_, Result<(), ()>> {
                let say = &say;
                Box::pin(async move {
                    say(format!("asks {n}"));
                    tokio::task::yield_now().await;
                    say(format!("ends {n}"));
                    Ok(())
                })
            })
            .collect();
        let beside = async {
            for n in 0..3 {
                say(format!("sends {n}"));
                tokio::task::yield_now().await;
            }
        };
        let (joined, ()) = tokio::join!(join_in_turns(futures, 3), beside);
        assert_eq!(joined, Ok(vec![(), (), ()]));
        let said = said.into_inner().unwrap();
        let at = |what: &str| said.iter().position(|said| said == what).unwrap();
        assert!(at("asks 0") < at("sends 0") && at("sends 0") < at("asks 1") && at("sends 1") < at("asks 2"), "{said:?}");
    }

    #[test]
    fn more_than_the_runtime_allows_at_a_time_is_done_in_several() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let places = tokio::sync::Semaphore::new(1000);
        for in_turns in [false, true] {
            // Each step counts against what a task may do before it has to give its thread away, and whoever may not go on is woken at once.
            let futures = (0..1000)
                .map(|n| -> BoxFuture<'_, Result<u32, ()>> {
                    let places = &places;
                    Box::pin(async move {
                        for _ in 0..3 {
                            let _place = places.acquire().await;
                            tokio::task::yield_now().await;
                        }
                        Ok(n)
                    })
                })
                .collect();
            let joined = runtime.block_on(async { if in_turns { join_in_turns(futures, 10).await } else { join(futures, 10).await } });
            assert_eq!(joined, Ok((0..1000).collect()));
        }
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
