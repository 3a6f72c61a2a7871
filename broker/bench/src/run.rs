//! One run: the clock and the counters that all threads share, the threads with their
//! connections, progress lines, and the end.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::{LocalBoxFuture, join_all};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use super::BenchError;
use super::args::{CommonArgs, WatchedProcess};
use super::process::Usage;
use super::report::ProcessUse;
use super::schedule::{Schedule, nanos};
use super::stats::{Live, Tally};
use raftmq_host::clock::SystemClock;
use raftmq_host::net::Net;

/// Shortest pause before the next attempt after a failure, so that a broker which refuses
/// everything is not asked in a busy loop. Short against an election.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(10);

/// What each connection adds to the pause: all of them together try 1000 times a second at most,
/// and leave the processor to the brokers that elect a leader.
const RETRY_PAUSE_STEP: Duration = Duration::from_millis(1);

/// How often a connection looks for requests without an answer and for the end of the run.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// What all connections of a run share.
#[derive(Debug)]
pub(crate) struct Run {
    pub net: Arc<dyn Net>,
    pub clock: SystemClock,
    pub live: Live,
    /// Requests that started before this moment are not measured. Unit: ns since the start.
    pub measured_from_ns: u64,
    /// Pause of a connection before the next attempt after a failure.
    pub retry_pause: Duration,
    started: Instant,
    /// End of the run by time. Unit: ns since the start.
    end_ns: u64,
    stop: Arc<AtomicBool>,
}

impl Run {
    pub(crate) fn start(net: Arc<dyn Net>, common: &CommonArgs) -> Self {
        Self {
            net,
            clock: SystemClock,
            live: Live::default(),
            measured_from_ns: nanos(common.warmup()),
            retry_pause: RETRY_PAUSE_MIN.max(RETRY_PAUSE_STEP * common.connections),
            started: Instant::now(),
            end_ns: common.duration().map_or(u64::MAX, nanos),
            stop: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Time since the start. Unit: ns.
    pub(crate) fn now_ns(&self) -> u64 {
        nanos(self.started.elapsed())
    }

    /// Whether no request is started any more.
    pub(crate) fn is_over(&self, now_ns: u64) -> bool {
        now_ns >= self.end_ns || self.stop.load(Ordering::Relaxed)
    }

    /// Ends the run: nothing is started any more, what is in flight may finish.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Messages of an open-loop run that `connection` had to send until now, or until the end.
    pub(crate) fn due_share(&self, schedule: Schedule, connection: usize) -> u64 {
        let due = schedule.due_before(self.now_ns().min(self.end_ns));
        let before = connection as u64;
        due.saturating_sub(before).div_ceil(schedule.connections)
    }

    /// Starts the thread that wakes the connections of an open-loop run.
    pub(crate) fn start_pacer(
        &self,
        schedule: Schedule,
        wakers: Vec<Arc<tokio::sync::Notify>>,
    ) -> Result<(), BenchError> {
        let (started, stop) = (self.started, self.stop.clone());
        let pacer = move || super::schedule::pace(schedule, started, &wakers, &stop);
        spawn("bench-pacer", pacer)
    }
}

/// The connections of one thread, by their number in the run.
pub(crate) fn connections_of(thread: u32, threads: u32, connections: u32) -> Vec<usize> {
    (thread..connections)
        .step_by(threads as usize)
        .map(|index| index as usize)
        .collect()
}

/// Runs connections on a thread with a runtime of its own; the receiver gets what they counted.
/// `connections` is called on that thread, so that what it makes need not be `Send`.
pub(crate) fn on_thread(
    connections: impl FnOnce(Rc<RefCell<Tally>>) -> Vec<LocalBoxFuture<'static, ()>> + Send + 'static,
) -> Result<oneshot::Receiver<Tally>, BenchError> {
    let (sender, receiver) = oneshot::channel();
    let thread = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime needs no more than a few file descriptors");
        let local = LocalSet::new();
        let tally = Rc::new(RefCell::new(Tally::new()));
        let tasks = connections(tally.clone()).into_iter();
        let tasks: Vec<_> = tasks.map(|task| local.spawn_local(task)).collect();
        local.block_on(&runtime, join_all(tasks));
        // The receiver is gone only when the run was given up.
        let _ = sender.send(tally.replace(Tally::new()));
    };
    spawn("bench", thread)?;
    Ok(receiver)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), BenchError> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(work).map(drop).map_err(BenchError::Thread)
}

/// What a run measured.
#[derive(Debug)]
pub(crate) struct Measured {
    pub tally: Tally,
    /// From the end of the warm-up to the last success. Unit: seconds.
    pub seconds: f64,
    pub processes: Vec<ProcessUse>,
}

/// Waits for all threads; prints progress, samples processes, ends the run on Ctrl-C.
pub(crate) async fn observe(
    run: &Run,
    common: &CommonArgs,
    threads: Vec<oneshot::Receiver<Tally>>,
) -> Result<Measured, BenchError> {
    let mut watched = vec![WatchedProcess {
        name: "generator".to_owned(),
        pid: std::process::id(),
    }];
    watched.extend(common.pid.iter().cloned());
    let sample = || {
        watched
            .iter()
            .map(|process| Usage::of(process.pid))
            .collect::<Vec<_>>()
    };
    let merged = async {
        let mut merged = Tally::new();
        for thread in threads {
            merged.merge(&thread.await.map_err(|_| BenchError::ThreadDied)?);
        }
        Ok::<_, BenchError>(merged)
    };
    tokio::pin!(merged);
    let mut before = sample();
    let warmup = tokio::time::sleep(common.warmup());
    tokio::pin!(warmup);
    let mut warming_up = !common.warmup().is_zero();
    let mut progress = Progress::new(common.interval);
    let tally = loop {
        tokio::select! { biased;
            tally = &mut merged => break tally?,
            () = &mut warmup, if warming_up => {
                before = sample();
                warming_up = false;
            }
            () = progress.wait() => progress.print(run),
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.map_err(BenchError::Signal)?;
                run.stop();
            }
        }
    };
    run.stop();
    let after = sample();
    let from_ns = run.measured_from_ns;
    let used_seconds = run.now_ns().saturating_sub(from_ns) as f64 / 1e9;
    let uses = watched.iter().zip(before).zip(after);
    let processes = uses
        .map(|((process, before), after)| {
            ProcessUse::between(&process.name, process.pid, before, after, used_seconds)
        })
        .collect();
    Ok(Measured {
        seconds: tally.last_success_ns.saturating_sub(from_ns) as f64 / 1e9,
        tally,
        processes,
    })
}

/// The progress line, on standard error.
struct Progress {
    interval: Option<Duration>,
    printed: tokio::time::Instant,
    messages: u64,
}

impl Progress {
    fn new(seconds: u64) -> Self {
        Self {
            interval: (seconds > 0).then(|| Duration::from_secs(seconds)),
            printed: tokio::time::Instant::now(),
            messages: 0,
        }
    }

    async fn wait(&self) {
        match self.interval {
            Some(interval) => tokio::time::sleep_until(self.printed + interval).await,
            None => std::future::pending().await,
        }
    }

    fn print(&mut self, run: &Run) {
        let (messages, failures) = run.live.counts();
        let seconds = self.printed.elapsed().as_secs_f64();
        let rate = (messages - self.messages) as f64 / seconds;
        eprintln!(
            "{:>6.0} s  {rate:>9.0} messages/s  {messages} in all, {failures} failed",
            run.now_ns() as f64 / 1e9
        );
        self.printed = tokio::time::Instant::now();
        self.messages = messages;
    }
}
