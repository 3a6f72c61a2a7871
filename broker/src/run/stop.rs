//! The time that a stop has. All steps share one end, so that none of them, nor all of them one
//! after the other, keeps a process that supervisors want gone.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, timeout_at};

/// Longest stop. Supervisors that kill wait for ten seconds at least.
const STOP_TIMEOUT: Duration = Duration::from_secs(9);
/// What is left of it for the last steps, Raft and the disk, however long the others take.
const CLOSE_RESERVE: Duration = Duration::from_secs(1);

/// A stop that is under way.
#[derive(Debug)]
pub(super) struct StopClock {
    end: Instant,
}

impl StopClock {
    pub(super) fn start() -> Self {
        Self {
            end: Instant::now() + STOP_TIMEOUT,
        }
    }

    /// Does `work` for no longer than `most` and than the stop may take; `None` when it was given
    /// up. It is dropped then.
    pub(super) async fn step<T>(
        &self,
        what: &'static str,
        most: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let end = (Instant::now() + most).min(self.end - CLOSE_RESERVE);
        until(what, end, work).await
    }

    /// As [`step`](Self::step), with all the time that is left.
    pub(super) async fn last_step<T>(
        &self,
        what: &'static str,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        until(what, self.end, work).await
    }
}

async fn until<T>(what: &'static str, end: Instant, work: impl Future<Output = T>) -> Option<T> {
    let begin = Instant::now();
    let done = timeout_at(end, work).await.ok();
    if done.is_none() {
        tracing::warn!(after = ?begin.elapsed(), "the stop goes on without: {what}");
    }
    done
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn steps_that_never_end_leave_time_for_the_last_one_and_together_end_in_time() {
        let begin = Instant::now();
        let clock = StopClock::start();
        let most = Duration::from_secs(3);
        assert_eq!(clock.step("a", most, pending::<()>()).await, None);
        assert_eq!(begin.elapsed(), most);
        for _ in 0..10 {
            assert_eq!(clock.step("b", most, pending::<()>()).await, None);
        }
        assert_eq!(begin.elapsed(), STOP_TIMEOUT - CLOSE_RESERVE);
        assert_eq!(clock.last_step("c", ready(7)).await, Some(7));
        assert_eq!(clock.last_step("c", pending::<()>()).await, None);
        assert_eq!(clock.last_step("d", pending::<()>()).await, None);
        assert_eq!(begin.elapsed(), STOP_TIMEOUT);
    }
}
