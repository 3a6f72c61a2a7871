//! When something last moved: Raft itself, asked again and again by a task, or the leader, heard by
//! its heartbeats. The age tells whether it still does; any thread may read it. And how late the
//! timers of Raft's thread are: one that is not run itself cannot tell that a leader is silent.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, sleep, sleep_until},
};

use crate::config::RaftConfig;

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
        self.beat_ms.store(since.max(1), Ordering::Relaxed);
    }

    /// Whether there was a beat at all.
    fn has_beaten(&self) -> bool {
        self.beat_ms.load(Ordering::Relaxed) > 0
    }
}

/// Pause between two looks at how late a timer is.
const LATENESS_LOOK: Duration = Duration::from_millis(100);
/// How long a late timer counts: at least this, at most twice.
const LATENESS_KEPT: Duration = Duration::from_secs(5);
/// Lateness of a machine that is well: timers have a grain of a millisecond.
const LATENESS_CALM: Duration = Duration::from_millis(30);
/// How often the lateness goes into the silence of a leader. A heartbeat waits for its turn at the
/// leader's timer, core and stream and at this node's stream and core, a few of them in a row.
const LATENESS_FACTOR: u32 = 8;
/// Longest silence that is borne, however late the timers are.
const BORNE_MAX: Duration = Duration::from_secs(2);
/// Pause before a silence is believed: what has arrived meanwhile is taken in first.
const TAKE_IN: Duration = Duration::from_millis(10);

/// How late timers of Raft's thread were of late. Everything else that it did was as late.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lateness {
    /// The worst of the last seconds. Unit: ms.
    worst_ms: Arc<AtomicU64>,
}

impl Lateness {
    /// Looks at it on `runtime` from now on, for as long as that runs.
    pub(crate) fn watch(runtime: &Handle) -> Self {
        let lateness = Self::default();
        let watched = lateness.clone();
        runtime.spawn(async move {
            let mut before = 0;
            loop {
                let mut now = 0;
                let begin = Instant::now();
                while begin.elapsed() < LATENESS_KEPT {
                    let due = Instant::now() + LATENESS_LOOK;
                    sleep_until(due).await;
                    let late = u64::try_from(due.elapsed().as_millis()).unwrap_or(u64::MAX);
                    now = late.max(now);
                    watched.worst_ms.store(before.max(now), Ordering::Relaxed);
                }
                before = now;
            }
        });
        lateness
    }

    pub(crate) fn worst(&self) -> Duration {
        Duration::from_millis(self.worst_ms.load(Ordering::Relaxed))
    }
}

/// Decides whether the leader is silent, or this node was too late to hear it.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    pub heard: Pulse,
    pub lateness: Lateness,
    /// Silence after which an election starts on a machine that is well, at most.
    pub election_timeout: Duration,
}

impl Patience {
    /// Judges by the timers of `runtime` and the heartbeats of a leader that `heard` takes down.
    pub(crate) fn new(runtime: &Handle, heard: &Pulse, raft: &RaftConfig) -> Self {
        Self {
            heard: heard.clone(),
            lateness: Lateness::watch(runtime),
            election_timeout: Duration::from_millis(2 * raft.election_max_ms),
        }
    }

    /// How long a leader may be silent before this node stands because of it; zero = as long as
    /// Raft says.
    fn borne(&self) -> Duration {
        let late = self.lateness.worst();
        // A start is late with everything, and has no leader to be patient with.
        if late < LATENESS_CALM || !self.heard.has_beaten() {
            return Duration::ZERO;
        }
        let borne = self.election_timeout + late * LATENESS_FACTOR;
        borne.min(BORNE_MAX)
    }

    /// Whether this node has been patient enough, when Raft says that it has.
    pub(crate) async fn is_over(&self) -> bool {
        if self.borne().is_zero() {
            return true;
        }
        sleep(TAKE_IN).await;
        self.heard.age() >= self.borne()
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

    fn patience(lateness: Lateness) -> Patience {
        Patience {
            heard: Pulse::new(),
            lateness,
            election_timeout: Duration::from_millis(750),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_machine_that_is_well_nobody_is_more_patient_than_raft() {
        let patience = patience(Lateness::watch(&Handle::current()));
        for _ in 0..100 {
            sleep(Duration::from_millis(33)).await;
            let begin = Instant::now();
            assert!(patience.is_over().await);
            assert!(begin.elapsed().is_zero());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_is_late_itself_bears_a_longer_silence_and_no_longer_than_two_seconds() {
        let patience = patience(Lateness::watch(&Handle::current()));
        sleep(Duration::from_secs(1)).await;
        // Nothing of this thread ran for so long.
        tokio::time::advance(Duration::from_millis(180)).await;
        sleep(LATENESS_LOOK).await;
        assert!(patience.lateness.worst() >= Duration::from_millis(80));
        patience.heard.beat();
        sleep(Duration::from_millis(800)).await;
        assert!(!patience.is_over().await, "it may have been late to hear");
        sleep(Duration::from_millis(1200)).await;
        assert!(patience.is_over().await);
        tokio::time::advance(Duration::from_secs(60)).await;
        sleep(LATENESS_LOOK).await;
        patience.heard.beat();
        sleep(BORNE_MAX).await;
        assert!(patience.is_over().await);
        // And back when all is well again.
        sleep(3 * LATENESS_KEPT).await;
        patience.heard.beat();
        assert!(patience.is_over().await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_that_waits_to_be_taken_in_ends_the_silence() {
        let patience = patience(Lateness::default());
        patience.lateness.worst_ms.store(100, Ordering::Relaxed);
        assert!(
            patience.is_over().await,
            "no leader was heard since the start"
        );
        patience.heard.beat();
        sleep(BORNE_MAX).await;
        let heard = patience.heard.clone();
        tokio::spawn(async move {
            sleep(TAKE_IN / 2).await;
            heard.beat();
        });
        assert!(!patience.is_over().await);
    }
}
