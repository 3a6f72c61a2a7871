//! Heartbeats do not hide a stalled disk: a leader that cannot flush hands over.
//!
//! Not every slow flush is a stalled disk. Where brokers share a disk, nobody is better off, and the
//! others say so when they are asked. On a machine that is short of processor time the flush thread
//! itself waits: only the time that it is in a write or a sync counts, and of that only what this
//! task, which needs the processor too, has looked at in time. After each hand-over, or vain try, the
//! next stall must be twice as long, for this node and for the one that took over.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use crate::broker::Broker;

/// Pause between two looks.
const INTERVAL: Duration = Duration::from_millis(100);
/// Most that counts for one look: a later one was short of processor time.
const LOOK_MAX: Duration = Duration::from_millis(150);
/// A leader whose disk does nothing for longer hands over. Heartbeats and elections take as long.
const STALL_MAX: Duration = Duration::from_millis(500);
/// How often that doubles at most, to 16 s.
const DOUBLINGS_MAX: u8 = 5;

/// Watches the disk while this node leads.
pub(super) async fn run(broker: Arc<Broker>) {
    let Some(consensus) = broker.consensus() else {
        return;
    };
    let mut stall = Stall::default();
    loop {
        broker.until_serving().await;
        let begin = Instant::now();
        sleep(INTERVAL).await;
        let waits = broker.machine.log().waits_for_disk_since();
        let stalled = stall.look(waits, begin.elapsed());
        if broker.is_serving() && stalled > stall_max(consensus.stalls().in_a_row()) {
            tracing::warn!(?stalled, "the disk is stalled; hand over");
            if let Err(error) = consensus.leave_stalled_disk().await {
                tracing::warn!(%error, "hand over from a stalled disk");
            }
        }
    }
}

/// How long a stall may take after so many hand-overs in a row.
fn stall_max(in_a_row: u8) -> Duration {
    STALL_MAX * (1 << in_a_row.min(DOUBLINGS_MAX))
}

/// The stall that is under way.
#[derive(Default)]
struct Stall {
    seen: Duration,
}

impl Stall {
    /// Takes in that a write `waits` for the disk, `passed` after the look before. How long it has
    /// been seen to wait.
    fn look(&mut self, waits: Option<Duration>, passed: Duration) -> Duration {
        let seen = self.seen + passed.min(LOOK_MAX);
        self.seen = waits.map_or(Duration::ZERO, |waits| seen.min(waits));
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_stall_is_as_long_as_one_write_takes() {
        let mut stall = Stall::default();
        assert_eq!(stall.look(Some(ms(80)), ms(100)), ms(80));
        assert_eq!(stall.look(Some(ms(180)), ms(100)), ms(180));
        assert_eq!(stall.look(Some(ms(20)), ms(100)), ms(20), "the next write");
        assert_eq!(stall.look(None, ms(100)), ms(0));
    }

    #[test]
    fn a_task_that_gets_no_processor_time_sees_no_stall() {
        let mut stall = Stall::default();
        let seen = stall.look(Some(ms(2_000)), ms(2_000));
        assert!(seen < STALL_MAX, "the flush thread may wait for the same");
        for _ in 0..4 {
            stall.look(Some(ms(9_000)), ms(100));
        }
        assert!(stall.seen > STALL_MAX);
    }

    #[test]
    fn each_hand_over_doubles_the_patience() {
        assert_eq!(stall_max(0), STALL_MAX);
        assert_eq!(stall_max(1), 2 * STALL_MAX);
        assert_eq!(stall_max(200), ms(16_000));
    }
}
