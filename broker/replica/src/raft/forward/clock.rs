//! The clock of the leader's end of a link, as the other end knows it.
//!
//! A request that waits in the buffers of a leader that is paused or cut off gets old without anybody
//! seeing it. So its deadline is told as a time on the leader's clock, and the leader tells the other
//! end every [`INTERVAL`] what that clock shows. What was told arrives a little late; so the other end
//! takes the clock for a little behind what it is, and a deadline for a little earlier: never later.
//! Clocks run at slightly different speeds, which within [`SILENCE_MAX`] makes no difference.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::raft::peer::WRITE_TIMEOUT;

/// How often the leader's end tells its clock.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// Silence after which a link is dead: the leader's end has told nothing although one frame was on
/// its way for as long as a write may take.
pub(super) const SILENCE_MAX: Duration = INTERVAL.saturating_add(WRITE_TIMEOUT);

/// Milliseconds since the leader's end of the link began.
#[derive(Debug)]
pub(super) struct LeaderClock {
    /// What it showed last, and when that came.
    told: Mutex<(u64, Instant)>,
}

impl LeaderClock {
    pub(super) fn new(ms: u64) -> Self {
        Self {
            told: Mutex::new((ms, Instant::now())),
        }
    }

    pub(super) fn set(&self, ms: u64) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = (ms, Instant::now());
    }

    /// What it shows at `time`, or a little less.
    pub(super) fn at(&self, time: Instant) -> u64 {
        let (ms, told) = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        ms.saturating_add(millis(time.saturating_duration_since(told)))
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
