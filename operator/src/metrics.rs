//! Every metric of the operator, at `/metrics`. One owner; the rest of the crate calls methods.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::endpoints::{BrokerState, GroupView};
use crate::names::GroupId;

/// Namespace of all names.
const NAMESPACE: &str = "raftmq_operator";

/// Bounds of the histogram of endpoint switches. Unit: seconds. A write takes about 5 ms, an
/// election a few hundred.
const SWITCH_BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Bounds of the histogram of reconciles. Unit: seconds.
const RECONCILE_BUCKETS: [f64; 8] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 5.0, 10.0];

/// What part of an endpoint switch was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwitchPhase {
    /// One write: from the decision to the API server's answer.
    Write,
    /// From the break of the published replica's stream to the stand-in being published.
    StandIn,
    /// From the first word of a new leader to that leader being published.
    Leader,
    /// From the break of the old leader's stream to the new leader being published.
    Gap,
}

impl SwitchPhase {
    const ALL: [Self; 4] = [Self::Write, Self::StandIn, Self::Leader, Self::Gap];

    fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::StandIn => "stand_in",
            Self::Leader => "leader",
            Self::Gap => "gap",
        }
    }
}

/// The metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    endpoints: EndpointMetrics,
    reconcile_seconds: HistogramVec,
    reconcile_failures_total: IntCounterVec,
    writes_total: IntCounterVec,
    steps_total: IntCounterVec,
    watch_events_total: IntCounterVec,
    watch_failures_total: IntCounterVec,
    clusters: IntGaugeVec,
    lease_held: IntGauge,
    lease_changes_total: IntCounter,
}

/// Those of the endpoint fast path.
#[derive(Debug)]
struct EndpointMetrics {
    switch_seconds: HistogramVec,
    failures_total: IntCounterVec,
    leader: IntGaugeVec,
    term: IntGaugeVec,
    brokers: IntGaugeVec,
}

impl EndpointMetrics {
    fn register(registry: &Registry) -> Self {
        let group = &["namespace", "cluster", "group"];
        let gauges = |name, help| gauges(registry, name, help, group);
        let switch = "Duration of an endpoint switch; phase: write, stand_in, leader, gap.";
        let metrics = Self {
            switch_seconds: seconds(
                registry,
                "endpoint_switch_seconds",
                switch,
                "phase",
                &SWITCH_BUCKETS,
            ),
            failures_total: counters(
                registry,
                "endpoint_failures_total",
                "Slices not written; reason: conflict (another operator was faster), error.",
                "reason",
            ),
            leader: gauges(
                "group_leader_published",
                "1 when the published address is the leader's, 0 for a stand-in or nothing.",
            ),
            term: gauges("group_term", "Newest Raft term seen in the group."),
            brokers: gauges(
                "group_brokers_connected",
                "Brokers whose status stream is open.",
            ),
        };
        // A quantile of a phase that has not happened yet is 0, not absent.
        for phase in SwitchPhase::ALL {
            metrics.switch_seconds.with_label_values(&[phase.name()]);
        }
        metrics
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let counters = |name, help, label| counters(&registry, name, help, label);
        let held = options("lease_held", "1 while this operator reconciles.");
        let changes = "Times this operator began or ceased to reconcile.";
        let changes = options("lease_changes_total", changes);
        let build = "Version of the operator; always 1.";
        gauges(&registry, "build_info", build, &["version"])
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        Self {
            endpoints: EndpointMetrics::register(&registry),
            reconcile_seconds: seconds(
                &registry,
                "reconcile_seconds",
                "Duration of a reconcile; result: ok, error.",
                "result",
                &RECONCILE_BUCKETS,
            ),
            reconcile_failures_total: counters(
                "reconcile_failures_total",
                "Failed reconciles by reason.",
                "reason",
            ),
            writes_total: counters(
                "api_writes_total",
                "Writes to the API server by kind; lease and Events are not counted.",
                "kind",
            ),
            steps_total: counters("steps_total", "Steps taken on Raft groups.", "step"),
            watch_events_total: counters("watch_events_total", "Changes seen by kind.", "kind"),
            watch_failures_total: counters(
                "watch_failures_total",
                "Failed watches by kind; each is tried again by itself.",
                "kind",
            ),
            clusters: gauges(
                &registry,
                "clusters",
                "RaftClusters; ready: true, false. Set by the operator that holds the lease.",
                &["ready"],
            ),
            lease_held: register(&registry, IntGauge::with_opts(held)),
            lease_changes_total: register(&registry, IntCounter::with_opts(changes)),
            registry,
        }
    }

    /// The text of a scrape.
    ///
    /// # Errors
    /// When a metric cannot be written, which no registered one is.
    pub fn scrape(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// An endpoint switch, or a part of one.
    pub fn endpoint_switch(&self, phase: SwitchPhase, took: Duration) {
        self.endpoints
            .switch_seconds
            .with_label_values(&[phase.name()])
            .observe(took.as_secs_f64());
        if phase == SwitchPhase::Write {
            self.written("EndpointSlice");
        }
    }

    /// Another operator has written a slice first.
    pub fn endpoint_conflict(&self) {
        self.endpoints
            .failures_total
            .with_label_values(&["conflict"])
            .inc();
    }

    /// A slice could not be written.
    pub fn endpoint_write_failed(&self) {
        self.endpoints
            .failures_total
            .with_label_values(&["error"])
            .inc();
    }

    /// What is known of a group now.
    pub fn group_shown(&self, group: &GroupId, view: &GroupView) {
        let labels = [group.namespace.as_str(), &group.cluster, &group.group];
        let live = view
            .brokers
            .values()
            .filter_map(|broker| match &broker.state {
                BrokerState::Live(view) => Some(view),
                _ => None,
            });
        let term = live.clone().map(|view| view.term).max().unwrap_or(0);
        let is_leader = view
            .published
            .as_ref()
            .is_some_and(|published| published.is_leader);
        self.endpoints
            .leader
            .with_label_values(&labels)
            .set(i64::from(is_leader));
        self.endpoints
            .term
            .with_label_values(&labels)
            .set(gauge_value(term));
        self.endpoints
            .brokers
            .with_label_values(&labels)
            .set(gauge_value(live.count() as u64));
    }

    /// A group has no pods any more. A group that was never shown has nothing to remove.
    pub fn forget_group(&self, group: &GroupId) {
        let labels = [group.namespace.as_str(), &group.cluster, &group.group];
        for gauges in [
            &self.endpoints.leader,
            &self.endpoints.term,
            &self.endpoints.brokers,
        ] {
            let _ = gauges.remove_label_values(&labels);
        }
    }

    /// A reconcile has ended; `failure` is the reason when it failed.
    pub fn reconciled(&self, took: Duration, failure: Option<&str>) {
        let result = if failure.is_some() { "error" } else { "ok" };
        self.reconcile_seconds
            .with_label_values(&[result])
            .observe(took.as_secs_f64());
        if let Some(reason) = failure {
            self.reconcile_failures_total
                .with_label_values(&[reason])
                .inc();
        }
    }

    /// An object was written.
    pub fn written(&self, kind: &str) {
        self.writes_total.with_label_values(&[kind]).inc();
    }

    /// A step was taken.
    pub fn step(&self, step: &str) {
        self.steps_total.with_label_values(&[step]).inc();
    }

    /// A watch has seen a change.
    pub fn watch_event(&self, kind: &str) {
        self.watch_events_total.with_label_values(&[kind]).inc();
    }

    /// A watch has failed.
    pub fn watch_failed(&self, kind: &str) {
        self.watch_failures_total.with_label_values(&[kind]).inc();
    }

    /// How many clusters are ready, and how many are not.
    pub fn clusters(&self, ready: usize, unready: usize) {
        self.clusters
            .with_label_values(&["true"])
            .set(gauge_value(ready as u64));
        self.clusters
            .with_label_values(&["false"])
            .set(gauge_value(unready as u64));
    }

    /// Whether this operator reconciles.
    pub fn lease(&self, held: bool) {
        self.lease_held.set(i64::from(held));
        self.lease_changes_total.inc();
    }
}

fn counters(registry: &Registry, name: &str, help: &str, label: &str) -> IntCounterVec {
    register(registry, IntCounterVec::new(options(name, help), &[label]))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(options(name, help), labels))
}

fn seconds(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
    buckets: &[f64],
) -> HistogramVec {
    let options = HistogramOpts::from(options(name, help)).buckets(buckets.to_vec());
    register(registry, HistogramVec::new(options, &[label]))
}

fn options(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace(NAMESPACE)
}

/// A Prometheus gauge is signed.
fn gauge_value(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
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

    #[test]
    fn a_scrape_shows_what_was_counted() {
        let metrics = Metrics::new();
        metrics.endpoint_switch(SwitchPhase::Write, Duration::from_millis(4));
        metrics.endpoint_switch(SwitchPhase::Leader, Duration::from_millis(30));
        metrics.reconciled(Duration::from_millis(3), Some("conflict"));
        let text = metrics.scrape().unwrap();
        for line in [
            "raftmq_operator_endpoint_switch_seconds_bucket{phase=\"write\",le=\"0.0025\"} 0",
            "raftmq_operator_endpoint_switch_seconds_bucket{phase=\"write\",le=\"0.005\"} 1",
            "raftmq_operator_endpoint_switch_seconds_count{phase=\"leader\"} 1",
            "raftmq_operator_endpoint_switch_seconds_count{phase=\"gap\"} 0",
            "raftmq_operator_api_writes_total{kind=\"EndpointSlice\"} 1",
            "raftmq_operator_reconcile_failures_total{reason=\"conflict\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn a_group_without_pods_leaves_the_scrape() {
        let metrics = Metrics::new();
        let group = GroupId {
            namespace: "mq".to_owned(),
            cluster: "orders".to_owned(),
            group: "broker-a".to_owned(),
        };
        metrics.group_shown(&group, &GroupView::default());
        assert!(metrics.scrape().unwrap().contains("group_term{"));
        metrics.forget_group(&group);
        assert!(!metrics.scrape().unwrap().contains("group_term{"));
    }
}
