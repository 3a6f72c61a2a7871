//! The flush thread and the preallocation thread. A flush that fails ends the process: a node that
//! cannot write must not answer as if it could.

use std::{io, sync::Arc, thread, time::Duration};

use raftmq_store::{FlushOutcome, Flusher, PreallocOutcome, Preallocator};
use tokio::time::sleep;

use crate::{
    host::{end_process, is_simulated, simulated},
    metrics::Metrics,
};

/// How often the tasks that stand in for the threads in a simulation look for work.
const SIMULATED_LOOK: Duration = Duration::from_millis(2);

/// Starts both.
pub(super) fn start_disk_threads(
    flusher: Flusher,
    preallocator: Preallocator,
    metrics: &Arc<Metrics>,
) -> Result<(), io::Error> {
    let flush = Flush {
        flusher,
        metrics: Arc::clone(metrics),
    };
    let fill = Fill {
        preallocator,
        works: true,
    };
    if is_simulated() {
        tokio::spawn(flush.run_in_turn());
        tokio::spawn(fill.run_in_turn());
        return Ok(());
    }
    thread::Builder::new()
        .name("flush".into())
        .spawn(move || flush.run())?;
    thread::Builder::new()
        .name("preallocate".into())
        .spawn(move || fill.run())?;
    Ok(())
}

struct Flush {
    flusher: Flusher,
    metrics: Arc<Metrics>,
}

impl Flush {
    fn run(mut self) {
        loop {
            let outcome = self.flusher.run_once();
            if !self.goes_on(outcome) {
                return;
            }
        }
    }

    async fn run_in_turn(mut self) {
        loop {
            let pause = simulated(|simulation| simulation.disk_pause()).unwrap_or_default();
            if !pause.is_zero() {
                self.flusher.begin();
            }
            sleep(pause.max(SIMULATED_LOOK)).await;
            let outcome = self.flusher.run_ready();
            if !self.goes_on(outcome) {
                return;
            }
        }
    }

    fn goes_on(&self, outcome: FlushOutcome) -> bool {
        match outcome {
            FlushOutcome::Flushed { bytes, took, .. } => self.metrics.flushed(bytes, took),
            FlushOutcome::Idle => {}
            FlushOutcome::Stopped => return false,
            FlushOutcome::Failed(reason) => {
                let reason = format!("the log cannot be written: {reason}");
                tracing::error!(reason, "the process ends");
                end_process(&reason);
                return false;
            }
        }
        true
    }
}

struct Fill {
    preallocator: Preallocator,
    /// Whether the last try worked.
    works: bool,
}

impl Fill {
    fn run(mut self) {
        loop {
            let outcome = self.preallocator.run_once();
            if !self.goes_on(outcome) {
                return;
            }
        }
    }

    async fn run_in_turn(mut self) {
        loop {
            sleep(SIMULATED_LOOK).await;
            let outcome = self.preallocator.run_ready();
            if !self.goes_on(outcome) {
                return;
            }
        }
    }

    fn goes_on(&mut self, outcome: PreallocOutcome) -> bool {
        match outcome {
            PreallocOutcome::Stopped => return false,
            PreallocOutcome::Failed(error) => {
                // The log lives on the ground it has, and then grows as it is written. Once is
                // enough to know: it is tried again whenever there is space.
                if self.works {
                    tracing::warn!(%error, "fill the log ahead");
                }
                self.works = false;
            }
            PreallocOutcome::Filled(0) => {}
            PreallocOutcome::Filled(_) => self.works = true,
        }
        true
    }
}
