//! Whether this node has what its group committed a while ago: the word behind "ready".

use std::time::Duration;

use tokio::time::Instant;

/// A committed entry that is not applied here for longer makes this node not ready: its disk is full
/// or stalled, its log waits for a mend, or it cannot keep up. Long against a pause of a busy
/// machine, so that readiness does not flicker.
const BEHIND_MAX: Duration = Duration::from_secs(5);

/// What the node has to have, and since when. Starts as not caught up.
#[derive(Debug, Default)]
pub(super) struct CatchUp {
    caught_up: bool,
    goal: Option<Goal>,
}

/// An entry known to be committed, and when it was first seen to be missing.
#[derive(Clone, Copy, Debug)]
struct Goal {
    index: u64,
    since: Instant,
}

impl CatchUp {
    /// What is missing, while it is. `applied` and `committed` are the newest such indexes.
    ///
    /// A node that is not caught up has to reach what was committed at the look before: under load
    /// there is always something newer. One that is has [`BEHIND_MAX`] for each step.
    pub(super) fn look(
        &mut self,
        now: Instant,
        has_leader: bool,
        applied: Option<u64>,
        committed: Option<u64>,
    ) -> Option<String> {
        let newest = committed.map(|index| Goal { index, since: now });
        match &mut self.goal {
            // Without a leader nobody tells what is committed, and nobody sends it.
            Some(goal) if !has_leader => goal.since = now,
            Some(goal) if applied >= Some(goal.index) => {
                self.caught_up = true;
                self.goal = newest;
            }
            Some(goal) if self.caught_up => {
                self.caught_up = now.duration_since(goal.since) <= BEHIND_MAX;
            }
            // Time counts from the first look, the goal is the newest.
            Some(goal) => goal.index = goal.index.max(committed.unwrap_or(0)),
            None if has_leader => self.goal = newest,
            None => {}
        }
        let applied = applied.unwrap_or(0);
        let goal = self.goal.map_or(0, |goal| goal.index);
        (!self.caught_up).then(|| format!("catches up: entry {applied} of {goal} is applied"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_ready_once_it_has_what_was_committed_a_moment_ago() {
        let (mut progress, now) = (CatchUp::default(), Instant::now());
        assert!(progress.look(now, false, Some(5), Some(5)).is_some());
        assert!(progress.look(now, true, Some(5), Some(90)).is_some());
        let reason = progress.look(now, true, Some(60), Some(100)).unwrap();
        assert_eq!(reason, "catches up: entry 60 of 100 is applied");
        // There is always something newer under load.
        assert_eq!(progress.look(now, true, Some(101), Some(110)), None);
        assert_eq!(progress.look(now, true, Some(101), Some(999)), None);
        assert_eq!(progress.look(now, false, Some(101), None), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_stops_applying_is_not_ready_any_more_and_comes_back() {
        let (mut progress, begin) = (CatchUp::default(), Instant::now());
        progress.look(begin, true, Some(10), Some(10));
        assert_eq!(progress.look(begin, true, Some(10), Some(20)), None);
        // Its disk is full: the leader commits without it.
        assert_eq!(
            progress.look(begin + seconds(5), true, Some(10), Some(500)),
            None
        );
        let reason = progress.look(begin + seconds(6), true, Some(10), Some(600));
        assert_eq!(reason.unwrap(), "catches up: entry 10 of 20 is applied");
        // It has to reach what was committed a moment ago again, not what it once missed.
        assert!(
            progress
                .look(begin + seconds(7), true, Some(20), Some(700))
                .is_none()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_applies_always_newer_entries_stays_ready_however_long_it_takes() {
        let (mut progress, begin) = (CatchUp::default(), Instant::now());
        progress.look(begin, true, Some(1), Some(1));
        for second in 0..100 {
            let (applied, committed) = (1 + second * 1000, 900 + second * 1000);
            let now = begin + seconds(second);
            assert_eq!(
                progress.look(now, true, Some(applied), Some(committed)),
                None
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_without_a_leader_is_no_lag() {
        let (mut progress, begin) = (CatchUp::default(), Instant::now());
        progress.look(begin, true, Some(10), Some(10));
        assert_eq!(progress.look(begin, true, Some(10), Some(11)), None);
        assert_eq!(
            progress.look(begin + seconds(60), false, Some(10), Some(11)),
            None
        );
        assert_eq!(
            progress.look(begin + seconds(61), true, Some(10), Some(11)),
            None
        );
    }
}
