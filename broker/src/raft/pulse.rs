//! When something last moved: Raft itself, asked again and again by a task, or the leader, heard by
//! its heartbeats. The age tells whether it still does; any thread may read it.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, time::sleep};

/// Time since the newest beat.
#[derive(Clone, Debug)]
pub(crate) struct Pulse {
    origin: Instant,
    /// When the newest beat was. Unit: ms since `origin`.
    beat_ms: Arc<AtomicU64>,
}

impl Pulse {
    /// A pulse that beats by hand; it counts from now.
    pub(crate) fn new() -> Self {
        Self {
            origin: Instant::now(),
            beat_ms: Arc::default(),
        }
    }

    /// Calls `probe` on `runtime`, and again `pause` after each answer, until one is false. A
    /// probe that hangs, or a thread of the runtime that does, lets the age grow.
    pub(crate) fn start<F, A>(runtime: &Handle, pause: Duration, probe: F) -> Self
    where
        F: Fn() -> A + Send + 'static,
        A: Future<Output = bool> + Send,
    {
        let pulse = Self::new();
        let beating = pulse.clone();
        runtime.spawn(async move {
            while probe().await {
                beating.beat();
                sleep(pause).await;
            }
        });
        pulse
    }

    /// Time since the newest beat, or since the start.
    pub(crate) fn age(&self) -> Duration {
        let beat = Duration::from_millis(self.beat_ms.load(Ordering::Relaxed));
        self.origin.elapsed().saturating_sub(beat)
    }

    pub(crate) fn beat(&self) {
        let since = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beat_ms.store(since, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::sync::watch;

    use super::*;

    const PAUSE: Duration = Duration::from_millis(1);
    /// Age at which the tests call it stuck; far above the pause.
    const STUCK: Duration = Duration::from_millis(300);
    /// Longest wait for anything in these tests.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn await_that(condition: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < end, "gave up waiting");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_blocked_thread_ages_the_pulse_until_it_goes_on() {
        let (runtime, _stop) = crate::raft::start_runtime().unwrap();
        let pulse = Pulse::start(&runtime, PAUSE, || async { true });
        let (release, released) = mpsc::channel::<()>();
        runtime.spawn(async move { released.recv() });
        await_that(|| pulse.age() > STUCK);
        release.send(()).unwrap();
        await_that(|| pulse.age() < STUCK);
    }

    #[test]
    fn a_probe_without_an_answer_ages_the_pulse() {
        let (runtime, _stop) = crate::raft::start_runtime().unwrap();
        let hangs = watch::Sender::new(false);
        let watched = hangs.clone();
        let pulse = Pulse::start(&runtime, PAUSE, move || {
            let mut hangs = watched.subscribe();
            async move { hangs.wait_for(|hangs| !hangs).await.is_ok() }
        });
        hangs.send_replace(true);
        await_that(|| pulse.age() > STUCK);
        hangs.send_replace(false);
        await_that(|| pulse.age() < STUCK);
    }
}
