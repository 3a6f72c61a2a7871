//! The result of a run, as a table for people and as one JSON object for scripts.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use hdrhistogram::Histogram;
use raftmq_remoting::ResponseCode;
use serde::Serialize;

use super::process::Usage;
use super::stats::{Failure, Tally};

/// Share of one processor from which a generator thread is taken to be the bottleneck.
const GENERATOR_BUSY: f64 = 0.85;

/// A finished run. The field names are those of the JSON form.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// `produce` or `consume`.
    pub command: &'static str,
    pub topic: String,
    pub connections: u32,
    /// Requests that one connection has in flight at most.
    pub in_flight: u32,
    /// Size of one body; of those received, the mean. Unit: bytes.
    pub size_bytes: u64,
    /// Open loop: messages per second that were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    pub threads: u32,
    /// Time that was measured, warm-up excluded. Unit: seconds.
    pub seconds: f64,
    pub messages: u64,
    pub messages_per_second: f64,
    /// Unit: 1e6 bytes of message bodies per second.
    pub megabytes_per_second: f64,
    /// Produce: from the intended start of a send to its answer. Consume: from a message's born
    /// timestamp to its arrival, in whole milliseconds.
    pub latency_ms: Percentiles,
    /// Longest time in which no request of any connection succeeded. Unit: ms.
    pub gap_max_ms: f64,
    pub failed: u64,
    /// Failures by cause.
    pub failures: BTreeMap<String, u64>,
    /// Answers 10, 11 and 12: stored, but not flushed or replicated in time.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub weak: BTreeMap<String, u64>,
    /// Attempts to reach a broker that found no leader or no connection.
    pub vain_attempts: u64,
    /// Open loop: messages due that were not sent before the end.
    pub unsent: u64,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub consumed: Option<Consumed>,
    pub processes: Vec<ProcessUse>,
}

/// What only a consumer counts.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Consumed {
    pub pulls: u64,
    pub empty_pulls: u64,
    pub messages_per_pull: f64,
    pub offsets_missing: u64,
    pub offsets_repeated: u64,
}

/// Latency percentiles. Unit: ms.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Percentiles {
    min: f64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p999: f64,
    #[serde(rename = "p99.99")]
    p9999: f64,
    max: f64,
}

impl Percentiles {
    pub(crate) fn of(latency: &Histogram<u64>) -> Self {
        if latency.is_empty() {
            return Self::default();
        }
        let at = |quantile| millis(latency.value_at_quantile(quantile));
        Self {
            min: millis(latency.min()),
            mean: latency.mean() / 1e6,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: millis(latency.max()),
        }
    }
}

/// What one process used while the run was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProcessUse {
    pub name: String,
    pub pid: u32,
    pub cpu_seconds: f64,
    /// Share of one processor; 2.0 is two processors busy all the time.
    pub cpu_share: f64,
    pub rss_bytes: u64,
    pub rss_peak_bytes: u64,
    pub disk_write_bytes: u64,
}

impl ProcessUse {
    pub(crate) fn between(
        name: &str,
        pid: u32,
        before: Option<Usage>,
        after: Option<Usage>,
        seconds: f64,
    ) -> Self {
        let before = before.unwrap_or_default();
        // A process that is gone used nothing that could still be read.
        let after = after.unwrap_or(before);
        let cpu_seconds = after.cpu_seconds - before.cpu_seconds;
        Self {
            name: name.to_owned(),
            pid,
            cpu_seconds,
            cpu_share: ratio(cpu_seconds, seconds),
            rss_bytes: after.rss_bytes,
            rss_peak_bytes: after.rss_peak_bytes,
            disk_write_bytes: after
                .disk_write_bytes
                .saturating_sub(before.disk_write_bytes),
        }
    }
}

/// Failures by the name that the report gives them.
pub(crate) fn failures_by_name(tally: &Tally) -> BTreeMap<String, u64> {
    let name = |failure: &Failure| match failure {
        Failure::Code(code) => code_name(*code),
        Failure::Timeout => "timeout".to_owned(),
        Failure::ConnectionLost => "connection lost".to_owned(),
    };
    let rows = tally.failures.iter();
    rows.map(|(failure, count)| (name(failure), *count))
        .collect()
}

/// Weak answers by code and name.
pub(crate) fn weak_by_name(tally: &Tally) -> BTreeMap<String, u64> {
    let rows = tally.weak.iter();
    rows.map(|(code, count)| (code_name(*code), *count))
        .collect()
}

fn code_name(code: i32) -> String {
    ResponseCode(code).to_string()
}

/// `part / whole`, 0 when there is no whole.
pub(crate) fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

pub(crate) fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

impl Display for Report {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let size = self.size_bytes;
        write!(out, "{} {}: ", self.command, self.topic)?;
        write!(out, "{} connections", self.connections)?;
        write!(out, " x {} in flight, {size} B", self.in_flight)?;
        match (self.rate, &self.consumed) {
            (Some(rate), _) => writeln!(out, ", open loop at {rate}/s")?,
            (None, None) => writeln!(out, ", closed loop")?,
            (None, Some(_)) => writeln!(out)?,
        }
        let rate = self.messages_per_second;
        write!(
            out,
            "  messages   {} in {:.2} s",
            self.messages, self.seconds
        )?;
        writeln!(out, " = {rate:.0}/s, {:.2} MB/s", self.megabytes_per_second)?;
        self.latency_ms.write_row(out)?;
        writeln!(
            out,
            "  longest gap without a success {:.1} ms",
            self.gap_max_ms
        )?;
        if let Some(consumed) = &self.consumed {
            consumed.write_rows(out)?;
        }
        write!(out, "  failed     {}", self.failed)?;
        for (name, count) in &self.failures {
            write!(out, "  [{name}: {count}]")?;
        }
        writeln!(out)?;
        for (name, count) in &self.weak {
            writeln!(out, "  stored, but {name}: {count}")?;
        }
        if self.vain_attempts > 0 {
            writeln!(out, "  {} attempts reached no leader", self.vain_attempts)?;
        }
        if self.unsent > 0 {
            write!(out, "  the broker did not keep up: ")?;
            writeln!(out, "{} messages were due and never sent", self.unsent)?;
        }
        self.write_processes(out)
    }
}

impl Report {
    fn write_processes(&self, out: &mut Formatter<'_>) -> fmt::Result {
        for used in &self.processes {
            write!(out, "  {:<10} cpu {:.2} s", used.name, used.cpu_seconds)?;
            write!(out, " ({:.0} %)", used.cpu_share * 100.0)?;
            write!(out, ", memory {:.1} MiB", mebibytes(used.rss_bytes))?;
            write!(out, " (peak {:.1})", mebibytes(used.rss_peak_bytes))?;
            writeln!(out, ", disk {:.1} MiB", mebibytes(used.disk_write_bytes))?;
        }
        let generator = self.processes.first();
        let busy = generator
            .is_some_and(|used| ratio(used.cpu_share, f64::from(self.threads)) > GENERATOR_BUSY);
        if busy {
            writeln!(
                out,
                "  note: the generator itself was busy; --threads may give more load"
            )?;
        }
        Ok(())
    }
}

impl Percentiles {
    fn write_row(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "  latency ms min {:.3}  mean {:.3}",
            self.min, self.mean
        )?;
        write!(
            out,
            "  p50 {:.3}  p90 {:.3}  p99 {:.3}",
            self.p50, self.p90, self.p99
        )?;
        write!(out, "  p99.9 {:.3}  p99.99 {:.3}", self.p999, self.p9999)?;
        writeln!(out, "  max {:.3}", self.max)
    }
}

impl Consumed {
    fn write_rows(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write!(out, "  pulls      {} with messages", self.pulls)?;
        write!(out, " ({:.1} each)", self.messages_per_pull)?;
        writeln!(out, ", {} empty", self.empty_pulls)?;
        write!(out, "  offsets    {} missing", self.offsets_missing)?;
        writeln!(out, ", {} repeated", self.offsets_repeated)
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut tally = Tally::new();
        for nanos in [1_000_000, 2_000_000, 3_000_000] {
            tally.record_latency(nanos);
        }
        tally.fail(Failure::Timeout);
        Report {
            command: "produce",
            topic: "T".to_owned(),
            connections: 2,
            in_flight: 1,
            size_bytes: 128,
            rate: None,
            threads: 1,
            seconds: 2.0,
            messages: 3,
            messages_per_second: 1.5,
            megabytes_per_second: 0.0,
            latency_ms: Percentiles::of(&tally.latency),
            gap_max_ms: 1.0,
            failed: tally.failed(),
            failures: failures_by_name(&tally),
            weak: BTreeMap::new(),
            vain_attempts: 0,
            unsent: 0,
            consumed: None,
            processes: Vec::new(),
        }
    }

    #[test]
    fn the_json_form_has_percentiles_in_milliseconds_by_name() {
        let json = serde_json::to_value(report()).unwrap();
        assert!((json["latencyMs"]["p50"].as_f64().unwrap() - 2.0).abs() < 0.01);
        assert!((json["latencyMs"]["p99.9"].as_f64().unwrap() - 3.0).abs() < 0.01);
        assert_eq!(json["failures"]["timeout"], 1);
        assert!(json.get("emptyPulls").is_none());
    }

    #[test]
    fn the_text_form_names_every_failure() {
        let text = report().to_string();
        assert!(text.contains("2 connections x 1 in flight, 128 B, closed loop"));
        assert!(text.contains("failed     1  [timeout: 1]"));
    }

    #[test]
    fn an_empty_run_has_zero_percentiles() {
        assert_eq!(Percentiles::of(&Tally::new().latency).max, 0.0);
    }
}
