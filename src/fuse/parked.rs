//! `start`: a request is polled once on the thread that has read it, and goes to the runtime only when what it waits for is there.
//!
//! Handing it over at once would wake a worker that can do nothing but look at it and go to sleep again, beside the one that sends what the
//! request asks for: two changes of threads for each request that waits once. So until it is woken it stays where it is, with a waker that
//! hands it over; whoever wakes it is a worker most often, which then goes on with it, or a thread that offers to go on with it itself.

use crate::env::is_offered;
use crate::fuse::dispatch::Work;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};
use tokio::runtime::Handle;

/// A request on threads that are none of the runtime's: between its first poll and the wake-up that hands it over.
struct Parked {
    place: Mutex<Place>,
    runtime: Handle,
}

enum Place {
    /// On a thread that polls it.
    Polled,
    /// Woken meanwhile: it is handed over as soon as it is back.
    Woken,
    /// Here, until it is woken.
    Waiting(Work),
    /// Done, or handed over.
    Gone,
}

impl Parked {
    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().expect("never poisoned: no code under it panics")
    }
}

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        let mut place = self.place();
        match std::mem::replace(&mut *place, Place::Gone) {
            Place::Polled | Place::Woken => *place = Place::Woken,
            Place::Waiting(work) if is_offered() => {
                *place = Place::Polled;
                drop(place);
                let _inside = self.runtime.enter();
                self.poll(work);
            }
            Place::Waiting(work) => {
                drop(place);
                drop(self.runtime.spawn(work));
            }
            Place::Gone => {}
        }
    }
}

impl Parked {
    /// Polls a request on this thread; `place` is `Polled`.
    fn poll(self: &Arc<Self>, mut work: Work) {
        let waker = Waker::from(self.clone());
        let polled = catch_unwind(AssertUnwindSafe(|| match work.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => Some(work),
            Poll::Ready(()) => {
                // Here: what is dropped with it may panic, too.
                drop(work);
                None
            }
        }));
        match polled {
            // Later wake-ups find nothing.
            Ok(None) => *self.place() = Place::Gone,
            Ok(Some(work)) => {
                let mut place = self.place();
                if matches!(*place, Place::Woken) {
                    *place = Place::Gone;
                    drop(place);
                    drop(self.runtime.spawn(work));
                } else {
                    *place = Place::Waiting(work);
                }
            }
            // The panic has been printed and the reply, dropped with the work, answers EIO. This thread goes on.
            Err(_) => {
                *self.place() = Place::Gone;
                tracing::error!("a request panicked");
            }
        }
    }
}

/// Begins a request: it is answered before this returns, or by the runtime, or by a thread that offers to. To be called inside the runtime's
/// context.
pub(crate) fn start(work: Work, runtime: &Handle) {
    Arc::new(Parked { place: Mutex::new(Place::Polled), runtime: runtime.clone() }).poll(work);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;
    use tokio::sync::{mpsc, oneshot};

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads")
    }

    #[test]
    fn what_is_ready_ends_at_once_and_what_panics_is_dropped() {
        let runtime = runtime();
        let _inside = runtime.enter();
        let (sender, mut receiver) = oneshot::channel();
        start(Box::pin(async move { sender.send(7).expect("somebody waits") }), runtime.handle());
        assert_eq!(receiver.try_recv(), Ok(7));
        let (sender, mut receiver) = oneshot::channel::<u32>();
        start(
            Box::pin(async move {
                let _kept = sender;
                panic!("wanted by the test")
            }),
            runtime.handle(),
        );
        assert_eq!(receiver.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn a_thread_that_offers_to_goes_on_with_what_it_wakes_once() {
        let runtime = runtime();
        let (done, mut all) = mpsc::unbounded_channel();
        let (first, second) = (oneshot::channel::<()>(), oneshot::channel::<()>());
        let both = async move {
            let here = || std::thread::current().name().map(str::to_owned);
            first.1.await.expect("sent");
            done.send(here()).expect("somebody waits");
            second.1.await.expect("sent");
            done.send(here()).expect("somebody waits");
            // In the context of the runtime, wherever it goes on.
            tokio::time::sleep(Duration::from_millis(1)).await;
            panic!("wanted by the test")
        };
        {
            let _inside = runtime.enter();
            start(Box::pin(both), runtime.handle());
        }
        let offers = |sender: oneshot::Sender<()>| {
            let run = move || crate::env::offer(|| sender.send(()).expect("somebody waits"));
            std::thread::Builder::new().name("offers".into()).spawn(run).expect("a thread").join().expect("no panic");
        };
        for sender in [first.0, second.0] {
            offers(sender);
            assert_eq!(all.try_recv(), Ok(Some("offers".into())));
        }
        assert_eq!(all.blocking_recv(), None, "it ended");
        assert!(!crate::env::is_offered());
    }

    #[test]
    fn what_waits_goes_on_when_it_is_woken_also_by_itself_and_meanwhile() {
        let runtime = runtime();
        let _inside = runtime.enter();
        let (done, mut all) = mpsc::unbounded_channel();
        // By another thread, by a timer, during the first poll, again and again.
        let (sender, receiver) = oneshot::channel();
        let send = done.clone();
        start(Box::pin(async move { send.send(receiver.await.expect("sent")).expect("somebody waits") }), runtime.handle());
        sender.send(1).expect("somebody waits");
        let send = done.clone();
        start(
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                send.send(2).expect("somebody waits");
            }),
            runtime.handle(),
        );
        let send = done.clone();
        start(
            Box::pin(async move {
                for _ in 0..50 {
                    tokio::task::yield_now().await;
                }
                send.send(3).expect("somebody waits");
            }),
            runtime.handle(),
        );
        let send = done.clone();
        let polls = Arc::new(AtomicU32::new(0));
        let counted = polls.clone();
        start(
            Box::pin(std::future::poll_fn(move |cx| {
                if counted.fetch_add(1, Ordering::SeqCst) < 2 {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                send.send(4).expect("somebody waits");
                Poll::Ready(())
            })),
            runtime.handle(),
        );
        let mut seen: Vec<i32> = (0..4).map(|_| all.blocking_recv().expect("sent")).collect();
        seen.sort_unstable();
        assert_eq!(seen, [1, 2, 3, 4]);
        assert_eq!(polls.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn what_nobody_can_wake_any_more_is_woken_by_that() {
        let runtime = runtime();
        let _inside = runtime.enter();
        let (sender, receiver) = oneshot::channel::<u32>();
        let (told, tells) = std::sync::mpsc::channel();
        start(Box::pin(async move { told.send(receiver.await.is_err()).expect("somebody waits") }), runtime.handle());
        assert!(tells.try_recv().is_err());
        drop(sender);
        assert_eq!(tells.recv_timeout(Duration::from_secs(60)), Ok(true));
    }
}
