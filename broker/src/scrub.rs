//! Reads the sealed part of the log and the checkpoints again and again, so that what rots on the
//! disk is found while other replicas still have it. What is found in the log is mended by
//! `raft/mend.rs`; for a damaged checkpoint another one is taken.

use std::{sync::Arc, time::Duration};

use raftmq_store::{Scrub, Scrubbed};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{broker::Broker, host::blocking};

/// Rate at which the log is read. A hundredth of what a disk gives, so that sends do not notice;
/// a terabyte takes 18 hours. Unit: bytes a second.
const BYTES_PER_SECOND: u64 = 16 << 20;
/// Pause after the start: a node first catches up with its group.
const START_PAUSE: Duration = Duration::from_secs(5);
/// Time from the beginning of a pass to that of the next, unless the pass takes longer.
const PASS_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// Pause after a segment that could not be read, or was purged under the read.
const ERROR_PAUSE: Duration = Duration::from_secs(1);

/// Reads for as long as the process runs.
pub(crate) async fn run(broker: Arc<Broker>) {
    sleep(START_PAUSE).await;
    let mut scrub = Scrub::default();
    let mut pass_began = Instant::now();
    loop {
        let step_began = Instant::now();
        let log = Arc::clone(broker.machine.log());
        let mut at = std::mem::take(&mut scrub);
        let step = blocking(move || {
            let scrubbed = log.scrub_step(&mut at);
            (at, scrubbed)
        });
        let Ok((at, scrubbed)) = step.await else {
            // Only a runtime that shuts down loses a task that does not panic.
            return;
        };
        scrub = at;
        match scrubbed {
            Ok(Scrubbed::Whole(bytes)) => {
                broker.metrics.log.scrubbed_bytes_total.inc_by(bytes);
                sleep_until(step_began + duration_of(bytes)).await;
            }
            Ok(Scrubbed::Damaged(physical)) => {
                tracing::error!(physical, "the scrub found damage in the log");
            }
            Ok(Scrubbed::Over) => {
                checkpoints(&broker).await;
                sleep_until(pass_began + PASS_INTERVAL).await;
                pass_began = Instant::now();
            }
            Err(error) => {
                tracing::warn!(%error, "scrub the log");
                scrub.skip_segment();
                sleep(ERROR_PAUSE).await;
            }
        }
    }
}

/// Reads each checkpoint once.
async fn checkpoints(broker: &Arc<Broker>) {
    let Some(consensus) = broker.consensus() else {
        return;
    };
    for index in consensus.checkpoints().indexes() {
        let began = Instant::now();
        let checkpoints = Arc::clone(consensus.checkpoints());
        match blocking(move || checkpoints.scrub(index)).await {
            Ok(Some(bytes)) => {
                broker.metrics.log.scrubbed_bytes_total.inc_by(bytes);
                sleep_until(began + duration_of(bytes)).await;
            }
            Ok(None) => broker.metrics.log.damages_total.inc(),
            Err(_) => return,
        }
    }
}

/// How long reading so many bytes shall take.
fn duration_of(bytes: u64) -> Duration {
    Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / BYTES_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_take_as_long_as_the_rate_says() {
        assert_eq!(duration_of(0), Duration::ZERO);
        assert_eq!(duration_of(BYTES_PER_SECOND), Duration::from_secs(1));
        assert_eq!(duration_of(1 << 20), Duration::from_micros(62_500));
        assert_eq!(duration_of(64 << 20), Duration::from_secs(4));
    }
}
