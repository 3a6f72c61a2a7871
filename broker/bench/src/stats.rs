//! What a run counts: answers, failures, latencies. One [`Tally`] per thread, merged at the end,
//! and one [`Live`] for the progress line.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;

/// Longest latency that is told apart from a longer one. Unit: ns. 10 min: far above any timeout,
/// reached only by an open-loop backlog.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// Accuracy of the percentiles: three significant digits.
const LATENCY_DIGITS: u8 = 3;

/// Why a request did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Failure {
    /// The broker answered with this code.
    Code(i32),
    /// No answer within the timeout; the outcome is unknown.
    Timeout,
    /// The connection ended first; the outcome is unknown.
    ConnectionLost,
}

/// Counts of one thread.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Requests that succeeded (messages sent, or pulls that brought messages).
    pub succeeded: u64,
    /// Messages of those requests.
    pub messages: u64,
    /// Body bytes of those messages.
    pub bytes: u64,
    /// Pulls that brought nothing.
    pub empty: u64,
    /// Queue offsets that were skipped: expected and not delivered.
    pub offsets_missing: u64,
    /// Messages delivered with a queue offset below the expected one.
    pub offsets_repeated: u64,
    /// Answers that say "stored, but not as safely as configured" (10, 11, 12), by code.
    pub weak: BTreeMap<i32, u64>,
    /// Requests that failed.
    pub failures: BTreeMap<Failure, u64>,
    /// Attempts to reach a broker that found no leader or no connection; nothing was sent.
    pub vain_attempts: u64,
    /// Open loop: messages due in the run that were never sent.
    pub unsent: u64,
    /// Latencies. Unit: ns.
    pub latency: Histogram<u64>,
    /// Moment of the last success on the clock of the run. Unit: ns.
    pub last_success_ns: u64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            succeeded: 0,
            messages: 0,
            bytes: 0,
            empty: 0,
            offsets_missing: 0,
            offsets_repeated: 0,
            weak: BTreeMap::new(),
            failures: BTreeMap::new(),
            vain_attempts: 0,
            unsent: 0,
            latency: Histogram::new_with_bounds(1, LATENCY_NS_MAX, LATENCY_DIGITS)
                .expect("the bounds are constants that the histogram accepts"),
            last_success_ns: 0,
        }
    }

    pub(crate) fn fail(&mut self, failure: Failure) {
        *self.failures.entry(failure).or_insert(0) += 1;
    }

    pub(crate) fn record_latency(&mut self, nanos: u64) {
        self.latency.saturating_record(nanos.max(1));
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Adds the counts of another thread.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.succeeded += other.succeeded;
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.empty += other.empty;
        self.offsets_missing += other.offsets_missing;
        self.offsets_repeated += other.offsets_repeated;
        self.vain_attempts += other.vain_attempts;
        self.unsent += other.unsent;
        for (code, count) in &other.weak {
            *self.weak.entry(*code).or_insert(0) += count;
        }
        for (failure, count) in &other.failures {
            *self.failures.entry(*failure).or_insert(0) += count;
        }
        self.latency
            .add(&other.latency)
            .expect("every histogram has the same bounds");
        self.last_success_ns = self.last_success_ns.max(other.last_success_ns);
    }
}

/// Counters that every thread shares, written once per batch of answers.
#[derive(Debug, Default)]
pub(crate) struct Live {
    messages: AtomicU64,
    failures: AtomicU64,
    last_success_ns: AtomicU64,
    gap_max_ns: AtomicU64,
}

impl Live {
    /// `messages` succeeded just now.
    pub(crate) fn succeed(&self, messages: u64, now_ns: u64) {
        self.messages.fetch_add(messages, Ordering::Relaxed);
        let before = self.last_success_ns.fetch_max(now_ns, Ordering::Relaxed);
        // The first success has nothing before it to be a gap to.
        if before > 0 && now_ns > before {
            self.gap_max_ns
                .fetch_max(now_ns - before, Ordering::Relaxed);
        }
    }

    pub(crate) fn fail(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Messages and failures so far.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let messages = self.messages.load(Ordering::Relaxed);
        (messages, self.failures.load(Ordering::Relaxed))
    }

    /// Longest time between two successes, over all connections. Unit: ns.
    pub(crate) fn gap_max_ns(&self) -> u64 {
        self.gap_max_ns.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_tallies_count_what_their_parts_counted() {
        let mut one = Tally::new();
        one.succeeded = 2;
        one.record_latency(100);
        one.record_latency(200);
        one.fail(Failure::Timeout);
        one.last_success_ns = 9;
        let mut two = Tally::new();
        two.succeeded = 1;
        two.record_latency(400);
        two.fail(Failure::Timeout);
        two.fail(Failure::Code(14));
        one.merge(&two);
        assert_eq!((one.succeeded, one.latency.len(), one.failed()), (3, 3, 3));
        assert_eq!(one.failures[&Failure::Timeout], 2);
        assert_eq!(one.last_success_ns, 9);
    }

    #[test]
    fn the_gap_is_the_longest_time_without_a_success_anywhere() {
        let live = Live::default();
        for now_ns in [500, 510, 700, 690, 720] {
            live.succeed(1, now_ns);
        }
        assert_eq!(live.gap_max_ns(), 190);
        assert_eq!(live.counts(), (5, 0));
    }
}
