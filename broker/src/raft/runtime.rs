//! The async runtime handed to openraft: tokio, with changes to very short sleeps and to random
//! numbers, which a simulation decides.
//!
//! openraft forwards flush completions after a sleep of 1 µs. A tokio timer rounds that up to its
//! next tick, about a millisecond, during which every acknowledgement of the node would wait.
//! A sleep of at most [`SHORT_SLEEP`] therefore yields to the other tasks once and is over.

use std::{
    fmt::Debug,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt::Instant as _;
use openraft_rt_tokio::{TokioInstant, TokioRuntime};
use rand::{SeedableRng, rngs::SmallRng};

use crate::host::random_number;

/// Longest sleep that is replaced by a yield. Unit: time; far below tokio's 1 ms timer tick.
const SHORT_SLEEP: Duration = Duration::from_micros(50);

/// tokio with changes, see the file comment.
#[derive(Debug)]
pub(crate) struct RaftRuntime(TokioRuntime);

/// A sleep: a timer, or one turn of the scheduler.
#[derive(Debug)]
pub(crate) enum Sleep {
    /// Ready at the second poll, so that waiting tasks run in between.
    Yield {
        /// Whether the first poll has happened.
        polled: bool,
    },
    /// An ordinary tokio timer.
    Timer(Pin<Box<tokio::time::Sleep>>),
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match &mut *self {
            Self::Yield { polled: true } => Poll::Ready(()),
            Self::Yield { polled } => {
                *polled = true;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Self::Timer(timer) => timer.as_mut().poll(context),
        }
    }
}

impl AsyncRuntime for RaftRuntime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = TokioInstant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = SmallRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Sleep {
        if duration <= SHORT_SLEEP {
            Sleep::Yield { polled: false }
        } else {
            Sleep::Timer(Box::pin(TokioRuntime::sleep(duration)))
        }
    }

    fn sleep_until(deadline: Self::Instant) -> Sleep {
        let left = deadline.saturating_duration_since(TokioInstant::now());
        if left <= SHORT_SLEEP {
            Sleep::Yield { polled: false }
        } else {
            Sleep::Timer(Box::pin(TokioRuntime::sleep_until(deadline)))
        }
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        SmallRng::seed_from_u64(random_number())
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtime_passes_the_suite_of_openraft() {
        openraft_rt::testing::Suite::<RaftRuntime>::test_all();
    }

    #[tokio::test]
    async fn a_microsecond_sleep_does_not_wait_for_a_timer_tick() {
        let start = tokio::time::Instant::now();
        for _ in 0..1000 {
            RaftRuntime::sleep(Duration::from_micros(1)).await;
        }
        assert!(
            start.elapsed() < Duration::from_millis(500),
            "short sleeps must only yield"
        );
    }
}
