//! Metrics of the way from a request to the disk, and of the log on it.

use std::time::Duration;

use prometheus::{Gauge, Histogram, IntCounter, IntGauge, Registry};

use super::{
    BYTES_BUCKETS, COUNT_BUCKETS, LATENCY_BUCKETS, counter, float_gauge, gauge, gauge_value,
    histogram,
};

/// What the gauges of the log show: read when `/metrics` is.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogReading {
    /// Oldest physical offset that can be read.
    pub first_physical: u64,
    /// End of the log as a physical offset.
    pub end_physical: u64,
    /// Zero-filled bytes behind the log's end.
    pub ground_bytes: u64,
    /// Bytes of commands that wait for their entry, or for its outcome.
    pub waiting_bytes: u64,
    /// Age of the oldest write that is not synced yet; zero when nothing waits.
    pub oldest_unflushed: Duration,
    /// Used part of the fullest file system of the broker. Unit: percent.
    pub disk_used_percent: u8,
    /// Whether sends are refused for want of space.
    pub disk_full: bool,
}

/// The way from a request to the disk, and the log on it.
#[derive(Debug)]
pub struct LogMetrics {
    /// Commands that one proposal carried.
    pub proposal_commands: Histogram,
    /// Payload of one proposal. Unit: bytes.
    pub proposal_bytes: Histogram,
    /// One write and sync of the flush thread.
    pub flush_seconds: Histogram,
    /// Bytes that one flush wrote.
    pub flush_bytes: Histogram,
    /// Segments removed by retention.
    pub segments_removed_total: IntCounter,
    /// Bytes of sealed segments that the scrub has found whole.
    pub scrubbed_bytes_total: IntCounter,
    /// Damaged places found in the log, at the start or later.
    pub damages_total: IntCounter,
    /// Damaged ranges mended with bytes of peers.
    pub repaired_ranges_total: IntCounter,
    /// Their bytes.
    pub repaired_bytes_total: IntCounter,
    waiting_bytes: IntGauge,
    flush_oldest_seconds: Gauge,
    bytes: IntGauge,
    first_physical_offset: IntGauge,
    end_physical_offset: IntGauge,
    ground_bytes: IntGauge,
    disk_used_ratio: Gauge,
    disk_full: IntGauge,
}

impl LogMetrics {
    pub(super) fn register(registry: &Registry) -> Self {
        let histogram = |name, help, buckets| histogram(registry, name, help, buckets);
        let gauge = |name, help| gauge(registry, name, help);
        let float = |name, help| float_gauge(registry, name, help);
        let counter = |name, help| counter(registry, name, help);
        Self {
            proposal_commands: histogram(
                "proposal_commands",
                "Commands in one proposal.",
                &COUNT_BUCKETS,
            ),
            proposal_bytes: histogram("proposal_bytes", "Bytes in one proposal.", &BYTES_BUCKETS),
            flush_seconds: histogram(
                "flush_seconds",
                "Duration of one write and sync of the log.",
                &LATENCY_BUCKETS,
            ),
            flush_bytes: histogram("flush_bytes", "Bytes in one flush.", &BYTES_BUCKETS),
            scrubbed_bytes_total: counter(
                "log_scrubbed_bytes_total",
                "Bytes of sealed segments read again and found whole.",
            ),
            damages_total: counter("log_damages_total", "Damaged places found in the log."),
            repaired_ranges_total: counter(
                "log_repaired_ranges_total",
                "Damaged ranges of the log mended from peers.",
            ),
            repaired_bytes_total: counter(
                "log_repaired_bytes_total",
                "Bytes of the log mended from peers.",
            ),
            segments_removed_total: counter(
                "log_segments_removed_total",
                "Segments removed by retention.",
            ),
            waiting_bytes: gauge(
                "proposer_waiting_bytes",
                "Bytes of commands that wait for their entry or for its outcome.",
            ),
            flush_oldest_seconds: float(
                "flush_oldest_seconds",
                "Age of the oldest write that is not synced yet.",
            ),
            bytes: gauge("log_bytes", "Bytes of the entries that the log holds."),
            first_physical_offset: gauge(
                "log_first_physical_offset",
                "Oldest physical offset that can be read.",
            ),
            end_physical_offset: gauge(
                "log_end_physical_offset",
                "End of the log as a physical offset.",
            ),
            ground_bytes: gauge(
                "log_ground_bytes",
                "Zero-filled bytes behind the end of the log.",
            ),
            disk_used_ratio: float(
                "disk_used_ratio",
                "Used part of the fullest file system of the broker, 0 to 1.",
            ),
            disk_full: gauge(
                "disk_full",
                "1 while sends are refused for want of space, else 0.",
            ),
        }
    }

    /// Sets the gauges.
    pub(super) fn observe(&self, log: LogReading) {
        let bytes = log.end_physical.saturating_sub(log.first_physical);
        for (gauge, value) in [
            (&self.bytes, bytes),
            (&self.first_physical_offset, log.first_physical),
            (&self.end_physical_offset, log.end_physical),
            (&self.ground_bytes, log.ground_bytes),
            (&self.waiting_bytes, log.waiting_bytes),
        ] {
            gauge.set(gauge_value(value));
        }
        self.flush_oldest_seconds
            .set(log.oldest_unflushed.as_secs_f64());
        self.disk_used_ratio
            .set(f64::from(log.disk_used_percent) / 100.0);
        self.disk_full.set(i64::from(log.disk_full));
    }
}
