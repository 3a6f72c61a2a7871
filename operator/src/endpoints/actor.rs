//! The actor of one group: feeds the rules of `decide` with what streams and watches say, and
//! carries out what they decide.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::decide::{
    Break, Contact, Decision, Handled, Kind, Published, Replica, again_in, decide, is_unknown,
};
use super::{
    BrokerState, BrokerView, Feed, GroupView, PodInfo, PublishedView, Shared, pod_info, slice,
};
use crate::brokers::{Link, LinkState, StatusStream};
use crate::metrics::SwitchPhase;
use crate::names::{GroupId, LABEL_CLUSTER, LABEL_GROUP, MANAGER_ENDPOINTS};
use crate::streams::{Signal, Source};

/// Longest wait for the API server in one try. A write takes a few milliseconds; when it takes
/// this long the server is gone or overloaded, and a new try must not queue behind the old one.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);

/// Wait after a failed write, doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(20);
/// Longest wait between two tries to write: how long a restarted API server is left alone.
const RETRY_MAX: Duration = Duration::from_millis(500);

/// How long the API server's word that a pod exists is good, which the watch has not shown yet.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Writes in a row that may lose against another operator before the next waits: each loss means
/// that the other has written, and then there is most often nothing left to do.
const CONFLICTS_MAX: u32 = 5;

/// Why a slice was not written.
#[derive(Debug, Error)]
enum WriteError {
    /// Read it again: somebody else has written it.
    #[error("the slice has changed")]
    Conflict,
    /// Try again later.
    #[error("{0}")]
    Failed(String),
}

/// The slice as this actor knows it.
struct Known {
    /// `None` when there is no slice, or none any more.
    resource_version: Option<String>,
    /// What it publishes, or published before it was deleted: the term never falls. `None` when
    /// it was made for an earlier resource of the same name.
    published: Option<Published>,
    /// When somebody else's word about it was heard; `None` after an own write.
    learned: Option<Instant>,
}

/// What the API server has said of a published address that no known pod has.
#[derive(Clone, Copy)]
struct Asked {
    ip: IpAddr,
    exists: bool,
    at: Instant,
}

/// A pod and what its broker says.
struct Seen {
    pod: PodInfo,
    link: Link,
}

/// The actor of one group.
pub(super) struct Actor {
    group: GroupId,
    shared: Shared,
    api: Api<EndpointSlice>,
    feed: watch::Receiver<Feed>,
    view: watch::Sender<Arc<GroupView>>,
    changed: Arc<Notify>,
    /// By uid: a pod of the same name is another pod.
    streams: BTreeMap<String, (PodInfo, StatusStream)>,
    /// The resource that everything below belongs to.
    owner: Option<OwnerReference>,
    known: Option<Known>,
    handled: Option<(Break, Instant)>,
    asked: Option<Asked>,
    /// Since when the published leader is lost.
    gap_since: Option<Instant>,
    failures: u32,
}

impl Actor {
    pub(super) fn new(
        group: GroupId,
        shared: Shared,
        feed: watch::Receiver<Feed>,
        view: watch::Sender<Arc<GroupView>>,
    ) -> Self {
        Self {
            api: Api::namespaced(shared.client.clone(), &group.namespace),
            group,
            shared,
            feed,
            view,
            changed: Arc::default(),
            streams: BTreeMap::new(),
            owner: None,
            known: None,
            handled: None,
            asked: None,
            gap_since: None,
            failures: 0,
        }
    }

    /// Runs until the group has no pods any more, which drops it.
    pub(super) async fn run(mut self) {
        self.follow_feed();
        loop {
            let again = self.work().await;
            let again_at = again.map(|wait| Instant::now() + wait);
            tokio::select! {
                biased;
                () = self.changed.notified() => {}
                result = self.feed.changed() => {
                    if result.is_err() {
                        return;
                    }
                    self.follow_feed();
                }
                () = sleep_until(again_at.unwrap_or_else(Instant::now)), if again_at.is_some() => {}
            }
        }
    }

    /// Starts and ends streams, and takes over the slice that the watch has seen.
    fn follow_feed(&mut self) {
        let feed = self.feed.borrow_and_update().clone();
        let streams = &mut self.streams;
        streams.retain(|uid, (pod, _)| {
            feed.pods
                .iter()
                .any(|new| new.uid == *uid && new.ip == pod.ip)
        });
        for pod in feed.pods {
            let changed = &self.changed;
            streams
                .entry(pod.uid.clone())
                .and_modify(|(known, _)| known.clone_from(&pod))
                .or_insert_with(|| {
                    let stream = StatusStream::start(pod.ip, Arc::clone(changed));
                    (pod, stream)
                });
        }
        let uid = |owner: &Option<OwnerReference>| owner.as_ref().map(|owner| owner.uid.clone());
        if uid(&self.owner) != uid(&feed.owner) {
            self.known = None;
            self.handled = None;
        }
        self.owner = feed.owner;
        match feed.slice {
            Some(seen) if self.is_newer(&seen) => self.learn(&seen),
            Some(_) => {}
            None => self.lose(),
        }
    }

    /// Takes over a slice that was read, not written here.
    fn learn(&mut self, slice: &EndpointSlice) {
        let is_ours = |owner| slice::is_owned_by(slice, owner);
        let published = self
            .owner
            .as_ref()
            .is_some_and(is_ours)
            .then(|| slice::read(slice));
        if published
            .as_ref()
            .is_some_and(|published| published.kind == Kind::Leader)
        {
            self.gap_since = None;
        }
        self.known = Some(Known {
            resource_version: slice.resource_version(),
            published,
            learned: Some(Instant::now()),
        });
    }

    /// The slice is gone, or the watch has not seen yet that it was made here. In the second case
    /// the next write loses against it and reads it.
    fn lose(&mut self) {
        if let Some(known) = &mut self.known {
            known.resource_version = None;
            if let Some(published) = &mut known.published {
                published.ip = None;
            }
        }
    }

    /// A watch lags behind the answer to an own write; resource versions of one kind are numbers
    /// that rise.
    fn is_newer(&self, seen: &EndpointSlice) -> bool {
        let number = |version: Option<&String>| version.and_then(|text| text.parse::<u64>().ok());
        let known = self
            .known
            .as_ref()
            .and_then(|known| known.resource_version.as_ref());
        match (
            number(known),
            number(seen.metadata.resource_version.as_ref()),
        ) {
            (Some(known), Some(seen)) => seen > known,
            _ => true,
        }
    }

    fn published(&self) -> Option<&Published> {
        self.known.as_ref()?.published.as_ref()
    }

    fn learned(&self) -> Option<Instant> {
        self.known.as_ref()?.learned
    }

    fn look(&self) -> Vec<Seen> {
        let streams = self.streams.values();
        let seen = streams.map(|(pod, stream)| Seen {
            link: checked(&self.group, pod, stream.link()),
            pod: pod.clone(),
        });
        seen.collect()
    }

    /// Decides and writes until nothing is due; returns when to look again without news.
    async fn work(&mut self) -> Option<Duration> {
        for _ in 0..CONFLICTS_MAX {
            let seen = self.look();
            self.show(&seen);
            // Without a resource the pods are on their way out.
            let owner = self.owner.clone()?;
            let handled = self.handled.map(|(of, at)| Handled {
                of,
                age: at.elapsed(),
            });
            let unknown = is_unknown(&replicas(&seen, self.learned()), self.published());
            let exists = match unknown {
                Some(ip) => match self.exists(ip).await {
                    Ok(exists) => exists,
                    Err(error) => return Some(self.retry_after(&error)),
                },
                None => false,
            };
            let replicas = replicas(&seen, self.learned());
            let Some(decision) = decide(&replicas, self.published(), !exists, handled) else {
                self.failures = 0;
                let again = again_in(self.published(), handled);
                return again.into_iter().chain(exists.then_some(ASK_AGAIN)).min();
            };
            match self.carry_out(&decision, &seen, &owner).await {
                Ok(()) => self.failures = 0,
                Err(WriteError::Conflict) => {
                    self.shared.metrics.endpoint_conflict();
                    if let Err(error) = self.read_again(&seen).await {
                        return Some(self.retry_after(&error));
                    }
                }
                Err(error) => return Some(self.retry_after(&error)),
            }
        }
        Some(RETRY_MIN)
    }

    /// Whether a pod of the group has this address, by the API server's word: another operator may
    /// have published a pod that the watch here has not shown yet.
    async fn exists(&mut self, ip: IpAddr) -> Result<bool, WriteError> {
        if let Some(asked) = self.asked.filter(|asked| asked.ip == ip)
            && (!asked.exists || asked.at.elapsed() < ASK_AGAIN)
        {
            return Ok(asked.exists);
        }
        let pods: Api<Pod> = Api::namespaced(self.shared.client.clone(), &self.group.namespace);
        let (cluster, group) = (&self.group.cluster, &self.group.group);
        let labels = format!("{LABEL_CLUSTER}={cluster},{LABEL_GROUP}={group}");
        let parameters = ListParams::default().labels(&labels);
        let pods = match timeout(WRITE_TIMEOUT, pods.list(&parameters)).await {
            Ok(Ok(pods)) => pods,
            Ok(Err(error)) => return Err(WriteError::Failed(error.to_string())),
            Err(_) => {
                return Err(WriteError::Failed(
                    "the API server does not answer".to_owned(),
                ));
            }
        };
        let exists = pods
            .iter()
            .filter_map(pod_info)
            .any(|pod| pod.ip == ip && !pod.terminating);
        self.asked = Some(Asked {
            ip,
            exists,
            at: Instant::now(),
        });
        Ok(exists)
    }

    fn retry_after(&mut self, error: &WriteError) -> Duration {
        self.shared.metrics.endpoint_write_failed();
        tracing::warn!(group = %self.group, %error, "publish: trying again");
        let wait = RETRY_MIN.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        wait.min(RETRY_MAX)
    }

    /// Shows the reconciler what is known here, and wakes it when that has changed.
    fn show(&self, seen: &[Seen]) {
        let brokers = seen.iter().map(|Seen { pod, link }| {
            let state = match &link.state {
                LinkState::Connecting => BrokerState::Connecting,
                LinkState::Live(view) => BrokerState::Live(Arc::clone(view)),
                LinkState::Broken(reason) => BrokerState::Unreachable(reason.clone()),
            };
            (pod.name.clone(), BrokerView { ip: pod.ip, state })
        });
        let view = Arc::new(GroupView {
            brokers: brokers.collect(),
            published: self.published().map(PublishedView::of),
        });
        self.shared.metrics.group_shown(&self.group, &view);
        let is_news = self.view.send_if_modified(|before| {
            let is_news = differs(before, &view);
            *before = view;
            is_news
        });
        if is_news {
            self.shared.signals.send(Signal::One {
                source: Source::Broker,
                namespace: self.group.namespace.clone(),
                cluster: self.group.cluster.clone(),
                group: Some(self.group.group.clone()),
            });
        }
    }

    async fn carry_out(
        &mut self,
        decision: &Decision,
        seen: &[Seen],
        owner: &OwnerReference,
    ) -> Result<(), WriteError> {
        let published_ip = self.published().and_then(|published| published.ip);
        let find = |ip: Option<IpAddr>| seen.iter().find(|seen| Some(seen.pod.ip) == ip);
        let Some(target) = find(decision.publish.ip) else {
            return Err(WriteError::Failed("the pod is gone".to_owned()));
        };
        let lost = decision.handles.and_then(|_| find(published_ip));
        let started = Instant::now();
        self.write(&decision.publish, owner, &target.pod).await?;
        self.record(
            decision,
            started,
            target.link.since,
            lost.map(|seen| seen.link.since),
        );
        if let Some(answered) = decision.handles {
            self.handled = Some((answered, Instant::now()));
        }
        Ok(())
    }

    async fn write(
        &mut self,
        publish: &Published,
        owner: &OwnerReference,
        pod: &PodInfo,
    ) -> Result<(), WriteError> {
        let target = slice::Target {
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            node: pod.node.clone(),
        };
        let version = self
            .known
            .as_ref()
            .and_then(|known| known.resource_version.clone());
        let is_new = version.is_none();
        let body = slice::build(&self.group, owner, publish, pod.ip, &target, version);
        let written = if is_new {
            // Unlike an apply it fails when another operator has made the slice meanwhile.
            let parameters = PostParams {
                field_manager: Some(MANAGER_ENDPOINTS.to_owned()),
                ..PostParams::default()
            };
            timeout(WRITE_TIMEOUT, self.api.create(&parameters, &body)).await
        } else {
            let parameters = PatchParams::apply(MANAGER_ENDPOINTS).force();
            let name = slice::name(&self.group, pod.ip);
            timeout(
                WRITE_TIMEOUT,
                self.api.patch(&name, &parameters, &Patch::Apply(&body)),
            )
            .await
        };
        match written {
            Ok(Ok(written)) => {
                self.known = Some(Known {
                    resource_version: written.resource_version(),
                    published: Some(slice::read(&written)),
                    learned: None,
                });
                Ok(())
            }
            Ok(Err(kube::Error::Api(status)))
                if status.is_conflict() || status.is_already_exists() || status.is_not_found() =>
            {
                Err(WriteError::Conflict)
            }
            Ok(Err(error)) => Err(WriteError::Failed(error.to_string())),
            Err(_) => Err(WriteError::Failed(
                "the API server does not answer".to_owned(),
            )),
        }
    }

    async fn read_again(&mut self, seen: &[Seen]) -> Result<(), WriteError> {
        let Some(first) = seen.first() else {
            return Err(WriteError::Failed("the pods are gone".to_owned()));
        };
        let name = slice::name(&self.group, first.pod.ip);
        match timeout(WRITE_TIMEOUT, self.api.get_opt(&name)).await {
            Ok(Ok(Some(found))) => self.learn(&found),
            Ok(Ok(None)) => self.lose(),
            Ok(Err(error)) => return Err(WriteError::Failed(error.to_string())),
            Err(_) => {
                return Err(WriteError::Failed(
                    "the API server does not answer".to_owned(),
                ));
            }
        }
        Ok(())
    }

    fn record(
        &mut self,
        decision: &Decision,
        started: Instant,
        heard_at: Instant,
        lost_at: Option<Instant>,
    ) {
        let metrics = &self.shared.metrics;
        metrics.endpoint_switch(SwitchPhase::Write, started.elapsed());
        let (phase, since) = match decision.publish.kind {
            Kind::Leader => (SwitchPhase::Leader, Some(heard_at)),
            Kind::StandIn => (SwitchPhase::StandIn, lost_at),
        };
        if let Some(since) = since {
            metrics.endpoint_switch(phase, since.elapsed());
        }
        match decision.publish.kind {
            Kind::Leader => {
                if let Some(since) = self.gap_since.take() {
                    metrics.endpoint_switch(SwitchPhase::Gap, since.elapsed());
                }
            }
            Kind::StandIn => self.gap_since = self.gap_since.or(lost_at),
        }
        tracing::info!(
            group = %self.group,
            pod = decision.pod,
            kind = decision.publish.kind.name(),
            term = decision.publish.term,
            write_ms = started.elapsed().as_secs_f64() * 1000.0,
            after_ms = since.map(|since| since.elapsed().as_secs_f64() * 1000.0),
            "published"
        );
    }
}

fn replicas(seen: &[Seen], learned: Option<Instant>) -> Vec<Replica<'_>> {
    seen.iter()
        .map(|Seen { pod, link }| Replica {
            pod: &pod.name,
            ip: pod.ip,
            terminating: pod.terminating,
            has_spoken: learned.is_none_or(|learned| link.heard > learned),
            contact: match &link.state {
                LinkState::Connecting => Contact::Unknown,
                LinkState::Live(view) => Contact::Live(view),
                LinkState::Broken(_) => Contact::Broken(link.epoch),
            },
        })
        .collect()
}

/// An address may belong to another pod by the time somebody answers at it. A broker is believed
/// when it says that it is this pod: by the name its peers know it by, or by the pod's address.
fn checked(group: &GroupId, pod: &PodInfo, link: Link) -> Link {
    let LinkState::Live(view) = &link.state else {
        return link;
    };
    let host = view
        .raft_address
        .rsplit_once(':')
        .map_or("", |(host, _)| host);
    let is_host = host == group.pod_host(&pod.name);
    let is_address = host.trim_matches(['[', ']']).parse() == Ok(pod.ip);
    if view.cluster == group.cluster && view.group == group.group && (is_host || is_address) {
        return link;
    }
    let reason = format!(
        "another broker answers: {} of group {} in cluster {}",
        view.raft_address, view.group, view.cluster
    );
    Link {
        state: LinkState::Broken(reason),
        ..link
    }
}

/// Whether the reconciler would act or report differently. Log progress does not count.
fn differs(before: &GroupView, after: &GroupView) -> bool {
    if before.published != after.published || before.brokers.len() != after.brokers.len() {
        return true;
    }
    before
        .brokers
        .iter()
        .zip(&after.brokers)
        .any(|(left, right)| {
            let (left_pod, left) = left;
            let (right_pod, right) = right;
            left_pod != right_pod
                || left.ip != right.ip
                || match (&left.state, &right.state) {
                    (BrokerState::Live(left), BrokerState::Live(right)) => {
                        left.differs_beyond_progress(right)
                    }
                    // The reason of a failure changes with every try.
                    (BrokerState::Unreachable(_), BrokerState::Unreachable(_)) => false,
                    (left, right) => left != right,
                }
        })
}
