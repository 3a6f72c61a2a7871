//! Progress of scheduled delivery, per delay level: the queue offset in the schedule topic up to
//! which messages were delivered.

use std::collections::BTreeMap;

use crate::limits::SCHEDULE_LEVELS_MAX;
use crate::output::Reject;

/// Progress by level.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ScheduleProgress {
    pub(crate) levels: BTreeMap<u32, u64>,
}

impl ScheduleProgress {
    /// Progress of a level, 0 before its first delivery.
    pub(crate) fn get(&self, level: u32) -> u64 {
        self.levels.get(&level).copied().unwrap_or(0)
    }

    /// Moves a level from `expected` to `next`. A delivery proposed twice (by an old and a new
    /// leader, or after a timeout) finds the progress moved and is refused (invariant D1); that
    /// holds because progress only ever moves up.
    pub(crate) fn advance(&mut self, level: u32, expected: u64, next: u64) -> Result<(), Reject> {
        if self.get(level) != expected {
            return Err(Reject::StaleDelivery);
        }
        if next <= expected {
            return Err(Reject::InvalidCommand);
        }
        if !self.levels.contains_key(&level) && self.levels.len() >= SCHEDULE_LEVELS_MAX {
            return Err(Reject::LimitReached);
        }
        self.levels.insert(level, next);
        Ok(())
    }
}
