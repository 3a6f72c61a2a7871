//! When each message of an open-loop run is due, and the thread that wakes connections for it.
//!
//! Message `n` of the run is due `n / rate` seconds after the start, whatever the server does, and
//! belongs to connection `n % connections`. Its latency counts from that moment: a server that
//! stalls cannot make the generator ask less (no coordinated omission).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Shortest sleep of the pacer. Messages due within it leave together, up to this late; shorter
/// sleeps would cost more processor time than they gain in accuracy.
const PACE_MIN: Duration = Duration::from_micros(100);

/// Longest sleep of the pacer, so that it sees the end of the run.
const PACE_MAX: Duration = Duration::from_millis(50);

/// The due times of an open-loop run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    /// Messages per second over all connections; above 0.
    pub rate: f64,
    /// Connections that share the rate.
    pub connections: u64,
}

impl Schedule {
    /// When message `place` of `connection` is due after the start of the run. Unit: ns.
    pub(crate) fn due_ns(&self, connection: u64, place: u64) -> u64 {
        self.at_ns(place * self.connections + connection)
    }

    /// Messages of the whole run that are due before `now_ns`.
    pub(crate) fn due_before(&self, now_ns: u64) -> u64 {
        let mut count = (now_ns as f64 * self.rate / 1e9).ceil() as u64;
        while count > 0 && self.at_ns(count - 1) >= now_ns {
            count -= 1;
        }
        while self.at_ns(count) < now_ns {
            count += 1;
        }
        count
    }

    fn at_ns(&self, message: u64) -> u64 {
        (message as f64 * 1e9 / self.rate) as u64
    }
}

/// Wakes each connection when it has a message due, until `stop` is set. Runs on a thread of its
/// own, because the timers of the runtime round up to a whole millisecond.
pub(crate) fn pace(
    schedule: Schedule,
    origin: Instant,
    wakers: &[Arc<Notify>],
    stop: &Arc<AtomicBool>,
) {
    let mut woken = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let now_ns = nanos(origin.elapsed());
        let due = schedule.due_before(now_ns);
        let count = (due - woken).min(schedule.connections);
        for message in due - count..due {
            let connection = usize::try_from(message % schedule.connections).unwrap_or(0);
            if let Some(waker) = wakers.get(connection) {
                waker.notify_one();
            }
        }
        woken = due;
        let next = Duration::from_nanos(schedule.at_ns(due).saturating_sub(now_ns));
        std::thread::sleep(next.clamp(PACE_MIN, PACE_MAX));
    }
}

/// A duration as ns; a run never lasts the 584 years that would not fit.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_share_the_rate_in_turn() {
        let schedule = Schedule {
            rate: 1000.0,
            connections: 4,
        };
        assert_eq!(schedule.due_ns(0, 0), 0);
        assert_eq!(schedule.due_ns(1, 0), 1_000_000);
        assert_eq!(schedule.due_ns(3, 0), 3_000_000);
        assert_eq!(schedule.due_ns(0, 1), 4_000_000);
    }

    #[test]
    fn due_before_counts_exactly_the_messages_whose_time_has_come() {
        for rate in [0.5, 3.0, 777.0, 1000.0, 123_456.7] {
            let schedule = Schedule {
                rate,
                connections: 1,
            };
            for now_ns in [0, 1, 999_999, 1_000_000, 1_000_001, 5_123_456_789] {
                let due = schedule.due_before(now_ns);
                assert!(due == 0 || schedule.at_ns(due - 1) < now_ns);
                assert!(schedule.at_ns(due) >= now_ns);
            }
        }
    }
}
