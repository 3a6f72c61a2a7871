//! The wall clock: the only file that names `SystemTime`.
//!
//! Durations and timeouts use the monotonic clock of the runtime; this one is for timestamps that
//! other processes see (store timestamps, data versions, expiry of registrations).

use std::fmt::Debug;
use std::time::{SystemTime, UNIX_EPOCH};

/// Reads the wall clock; a simulation puts its own in place.
pub trait Clock: Send + Sync + Debug {
    /// Milliseconds since 1970-01-01 UTC. May step backwards when the machine's clock is set.
    fn now_ms(&self) -> u64;

    /// Distance of local time from UTC, added to get local time. Unit: ms, as a positive number
    /// below one day. Hours in configuration (`deleteWhen`) are local.
    fn local_offset_ms(&self) -> u64;
}

/// The clock of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        // A machine set to before 1970 reads as 1970.
        let elapsed = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    }

    fn local_offset_ms(&self) -> u64 {
        let seconds = chrono::Local::now().offset().local_minus_utc();
        let day: i32 = 86_400;
        u64::try_from(seconds.rem_euclid(day)).unwrap_or(0) * 1000
    }
}
