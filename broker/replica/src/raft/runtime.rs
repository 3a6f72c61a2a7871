//! The async runtime handed to openraft: tokio, with changes to very short sleeps and to random
//! numbers, which a simulation decides, and a watch over tasks that hold the thread.
//!
//! openraft forwards flush completions after a sleep of 1 µs. A tokio timer rounds that up to its
//! next tick, about a millisecond, during which every acknowledgement of the node would wait.
//! A sleep of at most [`SHORT_SLEEP`] therefore yields to the other tasks once and is over.

use std::{
    cell::RefCell,
    fmt::Debug,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt::Instant as _;
use openraft_rt_tokio::{TokioInstant, TokioRuntime};
use prometheus::HistogramVec;
use rand::{SeedableRng, rngs::SmallRng};
use tokio::{runtime::Handle, time::Instant};

use crate::host::{is_simulated, random_number};

/// Longest sleep that is replaced by a yield. Unit: time; far below tokio's 1 ms timer tick.
const SHORT_SLEEP: Duration = Duration::from_micros(50);

/// A poll that takes longer counts as long: a heartbeat waits as long as the longest one. All
/// others cost two readings of the clock.
const LONG_POLL: Duration = Duration::from_millis(1);

/// What is known of long polls on a thread.
struct LongPolls {
    seconds: HistogramVec,
    longest: Duration,
}

thread_local! {
    static LONG_POLLS: RefCell<Option<LongPolls>> = const { RefCell::new(None) };
}

/// Observes from now on how long tasks hold the one thread of `runtime`, by the names they were
/// spawned with. In a simulation polls take no time.
pub(super) fn observe_polls(runtime: &Handle, seconds: &HistogramVec) {
    if is_simulated() {
        return;
    }
    let seconds = seconds.clone();
    runtime.spawn(async move {
        let longest = Duration::ZERO;
        LONG_POLLS.set(Some(LongPolls { seconds, longest }));
    });
}

/// The longest poll on this thread since the last call; zero when all were short.
#[cfg(test)]
pub(super) fn take_longest_poll() -> Duration {
    LONG_POLLS.with_borrow_mut(|polls| {
        let longest = polls.as_mut().map(|polls| &mut polls.longest);
        longest.map(std::mem::take).unwrap_or_default()
    })
}

fn note_poll(task: &'static str, took: Duration) {
    LONG_POLLS.with_borrow_mut(|polls| {
        if let Some(polls) = polls {
            polls.longest = polls.longest.max(took);
            let seconds = polls.seconds.with_label_values(&[task]);
            seconds.observe(took.as_secs_f64());
        }
    });
}

/// A task whose long polls are observed.
#[derive(Debug)]
pub struct Timed<F> {
    task: &'static str,
    future: Pin<Box<F>>,
}

/// Names a task of Raft's thread, so that one that holds it is found.
pub fn timed<F: Future>(task: &'static str, future: F) -> Timed<F> {
    Timed {
        task,
        future: Box::pin(future),
    }
}

impl<F: Future> Future for Timed<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let begin = Instant::now();
        let polled = self.future.as_mut().poll(context);
        let took = begin.elapsed();
        if took >= LONG_POLL {
            note_poll(self.task, took);
        }
        polled
    }
}

/// What one of openraft's tasks does, by the path of its type.
fn task_of<F>() -> &'static str {
    let name = std::any::type_name::<F>();
    let known = [
        ("raft_core::RaftCore", "core"),
        ("sm::worker", "apply"),
        ("snapshot_transmitter", "snapshot"),
        ("replication", "replication"),
        ("heartbeat", "heartbeat"),
        ("tick", "tick"),
    ];
    known
        .into_iter()
        .find(|(path, _)| name.contains(path))
        .map_or("other", |(_, task)| task)
}

/// tokio with changes, see the file comment.
#[derive(Debug)]
pub struct RaftRuntime(TokioRuntime);

/// A sleep: a timer, or one turn of the scheduler.
#[derive(Debug)]
pub enum Sleep {
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
        TokioRuntime::spawn(timed(task_of::<T>(), future))
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

    #[test]
    fn a_task_that_holds_the_thread_is_observed_under_its_name() {
        let options = prometheus::HistogramOpts::new("seconds", "help");
        let seconds = HistogramVec::new(options, &["task"]).unwrap();
        let (runtime, _stop) = crate::raft::start_runtime().unwrap();
        observe_polls(&runtime, &seconds);
        let (done, is_done) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            timed("short", async {}).await;
            let hold = async { std::thread::sleep(2 * LONG_POLL) };
            timed("long", hold).await;
            done.send(take_longest_poll())
        });
        assert!(is_done.recv().unwrap() >= 2 * LONG_POLL);
        let count = |task| seconds.with_label_values(&[task]).get_sample_count();
        assert_eq!((count("short"), count("long")), (0, 1));
    }

    #[tokio::test]
    async fn a_microsecond_sleep_does_not_wait_for_a_timer_tick() {
        let start = Instant::now();
        for _ in 0..1000 {
            RaftRuntime::sleep(Duration::from_micros(1)).await;
        }
        assert!(
            start.elapsed() < Duration::from_millis(500),
            "short sleeps must only yield"
        );
    }
}
