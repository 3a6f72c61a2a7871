//! Every metric of the process, with help text and unit, in one place.
//!
//! The owner of a value sets it here, `/metrics` reads it. Nothing else reads a metric: no decision
//! of the process depends on one. Names follow the Prometheus conventions (base units, `_total` for
//! counters) and start with `raftmq_`. No label takes a value that a client chooses.

mod log;
mod memory;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};

pub use self::log::{LogMetrics, LogReading};
pub use self::memory::MemoryMetrics;
use crate::status::{RaftRole, RaftStatus};

/// Start of every metric name.
const PREFIX: &str = "raftmq";

/// Upper bounds of latencies. Unit: seconds. From a flush on a fast disk to a request that was
/// held through an election.
const LATENCY_BUCKETS: [f64; 15] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0,
    10.0,
];

/// Upper bounds of counts in a batch: powers of two.
const COUNT_BUCKETS: [f64; 11] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
];

/// Upper bounds of sizes. Unit: bytes; 1 KiB to 16 MiB.
const BYTES_BUCKETS: [f64; 8] = [
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
];

/// All metrics and the registry they are gathered from.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Held while the gauges of the status are set and gathered, so that of two scrapes at a time
    /// neither sees the other's half-set gauges. Never held across an await.
    scrape: Mutex<()>,
    /// Requests of clients and their answers.
    pub requests: RequestMetrics,
    /// Connections by listener.
    pub connections: ConnectionMetrics,
    /// Raft role, term, progress and elections.
    pub raft: RaftMetrics,
    /// The way from a request to the disk, and the log on it.
    pub log: LogMetrics,
    /// The memory that clients hold.
    pub memory: MemoryMetrics,
}

impl Metrics {
    /// Registers everything in a registry of its own.
    pub fn new() -> Self {
        let registry = Registry::new_custom(Some(PREFIX.to_owned()), None)
            .expect("the prefix is a constant and not empty");
        let build = labelled_gauge(&registry, "build_info", "Version; always 1.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Self {
            requests: RequestMetrics::register(&registry),
            connections: ConnectionMetrics::register(&registry),
            raft: RaftMetrics::register(&registry),
            log: LogMetrics::register(&registry),
            memory: MemoryMetrics::register(&registry),
            scrape: Mutex::new(()),
            registry,
        }
    }

    /// Notes a request answered; the names are those of the request and response code tables.
    pub fn request_answered(&self, code: &str, result: &str) {
        self.requests.total.with_label_values(&[code, result]).inc();
    }

    /// Notes that a limit was reached; `limit` is the name of its constant in lower case.
    pub fn limit_reached(&self, limit: &str) {
        self.requests
            .limit_reached_total
            .with_label_values(&[limit])
            .inc();
    }

    /// Notes one proposal of `commands` commands and `bytes` bytes.
    pub fn proposer_batch(&self, commands: u32, bytes: usize) {
        self.log.proposal_commands.observe(f64::from(commands));
        self.log.proposal_bytes.observe(bytes as f64);
    }

    /// Notes one write and sync of `bytes` bytes that took `duration`.
    pub fn flushed(&self, bytes: u64, duration: Duration) {
        self.log.flush_bytes.observe(bytes as f64);
        self.log.flush_seconds.observe(duration.as_secs_f64());
    }

    /// Everything in the Prometheus text format, version 0.0.4; the gauges of Raft and of the log
    /// show `node`. A process without Raft has none.
    pub fn scrape(
        &self,
        node: Option<(&RaftStatus, LogReading)>,
    ) -> Result<String, prometheus::Error> {
        // The lock guards no data, so a poisoned one is as good as any.
        let _guard = self.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((status, log)) = node {
            self.raft.observe(status);
            self.log.observe(log);
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Requests of clients and their answers.
#[derive(Debug)]
pub struct RequestMetrics {
    /// Requests answered; `code` is the name of the request code, `result` of the response code.
    pub total: IntCounterVec,
    /// Times a limit was reached; `limit` is the name of its constant in lower case.
    pub limit_reached_total: IntCounterVec,
    /// From a send request's last byte read to its answer handed to the socket.
    pub send_seconds: Histogram,
    /// Messages acknowledged to producers.
    pub messages_stored_total: IntCounter,
    /// Bytes of the stored records of those messages.
    pub messages_stored_bytes_total: IntCounter,
    /// Messages handed to consumers.
    pub messages_pulled_total: IntCounter,
    /// Bytes of the stored records of those messages.
    pub messages_pulled_bytes_total: IntCounter,
    /// Pulls that wait for a message.
    pub parked_pulls: IntGauge,
    /// Requests passed on to the leader, by `result` (`answered`, `failed`).
    pub forwards_total: IntCounterVec,
    held_requests: IntGauge,
    held_bytes: IntGauge,
    holds_total: IntCounterVec,
    /// Sends refused because the disk is too full.
    pub disk_full_total: IntCounter,
    registrations_total: IntCounterVec,
}

impl RequestMetrics {
    fn register(registry: &Registry) -> Self {
        let counter = |name, help| counter(registry, name, help);
        let labelled = |name, help, labels| labelled_counter(registry, name, help, labels);
        let gauge = |name, help| gauge(registry, name, help);
        Self {
            total: labelled(
                "requests_total",
                "Requests answered, by request code and response code.",
                &["code", "result"],
            ),
            limit_reached_total: labelled(
                "limit_reached_total",
                "Times a limit was reached.",
                &["limit"],
            ),
            send_seconds: histogram(
                registry,
                "send_seconds",
                "Time from a send request read to its answer.",
                &LATENCY_BUCKETS,
            ),
            messages_stored_total: counter("messages_stored_total", "Messages acknowledged."),
            messages_stored_bytes_total: counter(
                "messages_stored_bytes_total",
                "Bytes of the acknowledged messages as stored.",
            ),
            messages_pulled_total: counter("messages_pulled_total", "Messages handed out."),
            messages_pulled_bytes_total: counter(
                "messages_pulled_bytes_total",
                "Bytes of the messages handed out as stored.",
            ),
            parked_pulls: gauge("parked_pulls", "Pulls that wait for a message."),
            forwards_total: labelled(
                "forwards_total",
                "Requests passed on to the leader, by result.",
                &["result"],
            ),
            held_requests: gauge("held_requests", "Requests that wait for a leader."),
            held_bytes: gauge("held_bytes", "Bytes of requests that wait for a leader."),
            holds_total: labelled(
                "holds_total",
                "Requests whose wait for a leader ended, by result.",
                &["result"],
            ),
            disk_full_total: counter(
                "sends_refused_disk_full_total",
                "Sends refused because the disk is too full.",
            ),
            registrations_total: labelled(
                "registrations_total",
                "Registrations at name servers, by result.",
                &["result"],
            ),
        }
    }
}

impl RequestMetrics {
    /// Notes a request of `bytes` bytes that waits for a leader from now on.
    pub fn held(&self, bytes: usize) {
        self.held_requests.inc();
        self.held_bytes.add(gauge_value(bytes as u64));
    }

    /// Notes that it waits no longer.
    pub fn released(&self, bytes: usize) {
        self.held_requests.dec();
        self.held_bytes.sub(gauge_value(bytes as u64));
    }

    /// Notes how the wait of a request ended: `served`, `expired` or `refused`.
    pub fn hold_ended(&self, result: &str) {
        self.holds_total.with_label_values(&[result]).inc();
    }

    /// Notes an attempt to register at a name server.
    pub fn registration(&self, succeeded: bool) {
        let result = if succeeded { "ok" } else { "failed" };
        self.registrations_total.with_label_values(&[result]).inc();
    }
}

/// Connections by `listener` (`remoting`, `raft`, `http`).
#[derive(Debug)]
pub struct ConnectionMetrics {
    /// Connections open now.
    pub open: IntGaugeVec,
    /// Connections accepted.
    pub accepted_total: IntCounterVec,
    /// Connections closed at once because their listener was full.
    pub refused_total: IntCounterVec,
}

impl ConnectionMetrics {
    fn register(registry: &Registry) -> Self {
        let labels = &["listener"];
        Self {
            open: labelled_gauge(registry, "connections", "Connections open now.", labels),
            accepted_total: labelled_counter(
                registry,
                "connections_accepted_total",
                "Connections accepted.",
                labels,
            ),
            refused_total: labelled_counter(
                registry,
                "connections_refused_total",
                "Connections closed at once because their listener was full.",
                labels,
            ),
        }
    }
}

/// Counts an open connection until it is dropped.
#[derive(Debug)]
pub struct OpenConnection(IntGauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl ConnectionMetrics {
    /// Notes a connection that `listener` has accepted.
    pub fn accepted(&self, listener: &str) -> OpenConnection {
        self.accepted_total.with_label_values(&[listener]).inc();
        let open = self.open.with_label_values(&[listener]);
        open.inc();
        OpenConnection(open)
    }

    /// Notes a connection that was closed at once because `listener` was full.
    pub fn refused(&self, listener: &str) {
        self.refused_total.with_label_values(&[listener]).inc();
    }
}

/// Raft role, term, progress and elections. The gauges are set from the node's status whenever
/// `/metrics` is read; an index that does not exist reads 0.
#[derive(Debug)]
pub struct RaftMetrics {
    /// Elections this node has started.
    pub elections_total: IntCounter,
    /// Times this node saw another leader than before.
    pub leader_changes_total: IntCounter,
    /// Snapshots (checkpoints) this node has received and installed.
    pub snapshots_installed_total: IntCounter,
    /// Connections refused because the peer returned with another disk.
    pub refused_peers_total: IntCounter,
    /// 1 while this node casts no vote, because entries it may have acknowledged were lost.
    pub votes_withheld: IntGauge,
    /// How long tasks have held Raft's thread in one go, by task, from a millisecond on.
    pub long_poll_seconds: HistogramVec,
    node: IntGaugeVec,
    role: IntGaugeVec,
    term: IntGauge,
    leader: IntGauge,
    voters: IntGauge,
    learners: IntGauge,
    ready: IntGauge,
    has_quorum: IntGauge,
    last_index: IntGauge,
    committed_index: IntGauge,
    applied_index: IntGauge,
    purged_index: IntGauge,
    peer_lag: IntGaugeVec,
}

impl RaftMetrics {
    fn register(registry: &Registry) -> Self {
        let counter = |name, help| counter(registry, name, help);
        let gauge = |name, help| gauge(registry, name, help);
        let labelled = |name, help, labels| labelled_gauge(registry, name, help, labels);
        Self {
            elections_total: counter("raft_elections_total", "Elections started by this node."),
            leader_changes_total: counter("raft_leader_changes_total", "New leaders seen."),
            snapshots_installed_total: counter(
                "raft_snapshots_installed_total",
                "Snapshots received and installed.",
            ),
            refused_peers_total: counter(
                "raft_refused_peers_total",
                "Connections with nodes that returned with another disk.",
            ),
            votes_withheld: gauge(
                "raft_votes_withheld",
                "1 while this node casts no vote because it lost a part of its log, else 0.",
            ),
            long_poll_seconds: long_poll_seconds(registry),
            node: labelled(
                "node_info",
                "Names of this node; always 1.",
                &["cluster", "group", "node"],
            ),
            role: labelled(
                "raft_role",
                "1 for the role of this node, else 0.",
                &["role"],
            ),
            term: gauge("raft_term", "Current term."),
            leader: gauge("raft_leader_id", "Node id of the leader; 0 while unknown."),
            voters: gauge("raft_voters", "Members that vote."),
            learners: gauge("raft_learners", "Members that do not vote."),
            ready: gauge("ready", "1 when the readiness probe succeeds, else 0."),
            has_quorum: gauge(
                "raft_has_quorum",
                "1 while this node leads and a quorum answers it, else 0.",
            ),
            last_index: gauge("raft_last_index", "Newest entry in the log."),
            committed_index: gauge("raft_committed_index", "Newest entry known on a quorum."),
            applied_index: gauge("raft_applied_index", "Newest entry applied."),
            purged_index: gauge("raft_purged_index", "Newest entry removed by retention."),
            peer_lag: labelled(
                "raft_peer_lag_entries",
                "Entries a peer is not known to have; set by the leader only.",
                &["peer"],
            ),
        }
    }

    fn observe(&self, status: &RaftStatus) {
        let node_id = status.node_id.to_string();
        // Names may change with the configuration, peers come and go: start from nothing.
        self.node.reset();
        self.node
            .with_label_values(&[status.cluster.as_str(), status.group.as_str(), &node_id])
            .set(1);
        self.peer_lag.reset();
        for peer in &status.peers {
            self.peer_lag
                .with_label_values(&[&peer.id.to_string()])
                .set(gauge_value(peer.lag_entries));
        }
        for role in RaftRole::ALL {
            self.role
                .with_label_values(&[role.name()])
                .set(i64::from(role == status.role));
        }
        self.term.set(gauge_value(status.term));
        self.leader.set(gauge_value(status.leader_id.unwrap_or(0)));
        self.voters.set(gauge_value(status.voters.len() as u64));
        self.learners.set(gauge_value(status.learners.len() as u64));
        self.ready.set(i64::from(status.ready));
        self.has_quorum.set(i64::from(status.has_quorum));
        for (gauge, index) in [
            (&self.last_index, status.last_index),
            (&self.committed_index, status.committed_index),
            (&self.applied_index, status.applied_index),
            (&self.purged_index, status.purged_index),
        ] {
            gauge.set(gauge_value(index.unwrap_or(0)));
        }
    }
}

/// A Prometheus gauge is signed; a value beyond 2^63 stays at the largest one.
fn gauge_value(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::new(name, help))
}

fn labelled_counter(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::new(name, help))
}

fn float_gauge(registry: &Registry, name: &str, help: &str) -> Gauge {
    register(registry, Gauge::new(name, help))
}

fn labelled_gauge(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    register(registry, Histogram::with_opts(options))
}

fn long_poll_seconds(registry: &Registry) -> HistogramVec {
    let help =
        "Times a task held Raft's thread for a millisecond or longer; heartbeats wait for it.";
    let buckets = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];
    let options = HistogramOpts::new("raft_long_poll_seconds", help).buckets(buckets.to_vec());
    register(registry, HistogramVec::new(options, &["task"]))
}

/// Both steps fail only for a malformed or repeated name. All names are constants of this file and
/// a test registers every one of them.
fn register<M: Collector + Clone + 'static>(
    registry: &Registry,
    metric: Result<M, prometheus::Error>,
) -> M {
    let metric = metric.expect("metric names and labels are constants that a test registers");
    registry
        .register(Box::new(metric.clone()))
        .expect("metric names are constants that a test registers");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::sample;

    fn scrape(metrics: &Metrics, status: &RaftStatus) -> String {
        let log = LogReading {
            first_physical: 100,
            end_physical: 350,
            ground_bytes: 64,
            waiting_bytes: 7,
            oldest_unflushed: Duration::from_millis(250),
            disk_used_percent: 91,
            disk_full: true,
        };
        metrics.scrape(Some((status, log))).unwrap()
    }

    #[test]
    fn a_scrape_shows_the_status_and_what_was_counted() {
        let metrics = Metrics::new();
        metrics.request_answered("SEND_MESSAGE_V2", "SUCCESS");
        metrics.proposer_batch(3, 5000);
        metrics.flushed(5064, Duration::from_micros(300));
        let text = scrape(&metrics, &sample::leader());
        for line in [
            "raftmq_node_info{cluster=\"DefaultCluster\",group=\"broker-a\",node=\"1\"} 1",
            "raftmq_raft_role{role=\"LEADER\"} 1",
            "raftmq_raft_role{role=\"FOLLOWER\"} 0",
            "raftmq_raft_term 7",
            "raftmq_raft_committed_index 119",
            "raftmq_raft_peer_lag_entries{peer=\"2\"} 3",
            "raftmq_requests_total{code=\"SEND_MESSAGE_V2\",result=\"SUCCESS\"} 1",
            "raftmq_send_seconds_count 0",
            "raftmq_proposal_commands_bucket{le=\"4\"} 1",
            "raftmq_flush_seconds_bucket{le=\"0.00025\"} 0",
            "raftmq_flush_seconds_bucket{le=\"0.0005\"} 1",
            "raftmq_log_first_physical_offset 100",
            "raftmq_log_end_physical_offset 350",
            "raftmq_log_bytes 250",
            "raftmq_log_ground_bytes 64",
            "raftmq_proposer_waiting_bytes 7",
            "raftmq_flush_oldest_seconds 0.25",
            "raftmq_disk_used_ratio 0.91",
            "raftmq_disk_full 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn a_removed_peer_leaves_the_scrape() {
        let metrics = Metrics::new();
        let mut status = sample::leader();
        let before = scrape(&metrics, &status);
        assert!(before.contains("peer_lag_entries{"));
        status.peers.clear();
        let after = scrape(&metrics, &status);
        assert!(!after.contains("peer_lag_entries{"));
    }

    #[test]
    fn buckets_rise() {
        for buckets in [&LATENCY_BUCKETS[..], &COUNT_BUCKETS, &BYTES_BUCKETS] {
            assert!(buckets.is_sorted_by(|lower, upper| lower < upper));
        }
    }
}
