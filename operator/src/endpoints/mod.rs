//! The endpoint fast path: leads clients to the leader of every group. It runs on every replica
//! of the operator, holds no lease and waits for no reconcile. One actor for each group owns the
//! streams to its brokers and is the only one that writes its slice.
//!
//! It works from pods, not from specifications: a group whose resource cannot be read, or is
//! paused, still gets its new leader published.

mod actor;
pub mod decide;
mod slice;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Client, Resource as _};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use crate::brokers::NodeView;
use crate::metrics::Metrics;
use crate::names::{GroupId, LABEL_CLUSTER, LABEL_GROUP};
use crate::streams::{Caches, Signal, Signals, Source, label};

use self::decide::Kind;

/// A pod that may be published.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PodInfo {
    name: String,
    uid: String,
    ip: IpAddr,
    node: Option<String>,
    terminating: bool,
}

/// What the actor of a group needs to know from the API server.
#[derive(Debug, Clone, Default, PartialEq)]
struct Feed {
    pods: Vec<PodInfo>,
    slice: Option<Arc<EndpointSlice>>,
    /// The resource; `None` when there is none, and then nothing is written.
    owner: Option<OwnerReference>,
}

/// What a broker says, or why it says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerState {
    /// Not known yet.
    Connecting,
    /// Its newest status.
    Live(Arc<NodeView>),
    /// It cannot be reached, and why.
    Unreachable(String),
}

/// A broker as the fast path sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerView {
    /// Address of its pod.
    pub ip: IpAddr,
    /// What it says.
    pub state: BrokerState,
}

/// What is published for a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedView {
    /// The address; `None` in an emptied slice.
    pub ip: Option<IpAddr>,
    /// Whether it is the leader's.
    pub is_leader: bool,
}

/// A group as the fast path sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupView {
    /// Brokers by the names of their pods.
    pub brokers: BTreeMap<String, BrokerView>,
    /// What is published; `None` before the first time.
    pub published: Option<PublishedView>,
}

/// The groups as the fast path sees them; shared with the reconciler, which only reads.
#[derive(Debug, Clone, Default)]
pub struct Views(Arc<RwLock<HashMap<GroupId, watch::Receiver<Arc<GroupView>>>>>);

impl Views {
    /// The newest view of a group; empty when it has no pods.
    #[must_use]
    pub fn get(&self, group: &GroupId) -> Arc<GroupView> {
        let views = self.0.read().unwrap_or_else(PoisonError::into_inner);
        views
            .get(group)
            .map(|view| Arc::clone(&view.borrow()))
            .unwrap_or_default()
    }

    fn insert(&self, group: GroupId, view: watch::Receiver<Arc<GroupView>>) {
        let mut views = self.0.write().unwrap_or_else(PoisonError::into_inner);
        views.insert(group, view);
    }

    fn remove(&self, group: &GroupId) {
        let mut views = self.0.write().unwrap_or_else(PoisonError::into_inner);
        views.remove(group);
    }
}

/// What every actor shares.
#[derive(Clone)]
struct Shared {
    client: Client,
    signals: Signals,
    metrics: Arc<Metrics>,
}

/// An actor and its feed. Dropping it ends the actor.
struct Running {
    feed: watch::Sender<Feed>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts and feeds the actors.
pub struct Supervisor {
    shared: Shared,
    caches: Caches,
    views: Views,
    groups: BTreeMap<GroupId, Running>,
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Supervisor of {} groups", self.groups.len())
    }
}

impl Supervisor {
    /// A supervisor over what `caches` hold.
    #[must_use]
    pub fn new(
        client: Client,
        caches: Caches,
        signals: Signals,
        views: Views,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            shared: Shared {
                client,
                signals,
                metrics,
            },
            caches,
            views,
            groups: BTreeMap::new(),
        }
    }

    /// Runs until the process ends.
    pub async fn run(mut self) -> &'static str {
        let mut signals = self.shared.signals.listen();
        if !self.caches.ready().await {
            return "a watch of the endpoint fast path";
        }
        self.look_at_all();
        loop {
            match signals.recv().await {
                Ok(Signal::One {
                    source: Source::Pod | Source::Slice,
                    namespace,
                    cluster,
                    group: Some(group),
                }) => self.look_at(GroupId {
                    namespace,
                    cluster,
                    group,
                }),
                Ok(Signal::One {
                    source: Source::Cluster,
                    namespace,
                    cluster,
                    ..
                }) => {
                    for group in self.known_groups() {
                        if group.namespace == namespace && group.cluster == cluster {
                            self.look_at(group);
                        }
                    }
                }
                Ok(Signal::All(Source::Pod | Source::Slice | Source::Cluster))
                | Err(broadcast::error::RecvError::Lagged(_)) => self.look_at_all(),
                Ok(Signal::All(_) | Signal::One { .. }) => {}
                Err(broadcast::error::RecvError::Closed) => return "the signals",
            }
        }
    }

    fn look_at_all(&mut self) {
        for group in self.known_groups() {
            self.look_at(group);
        }
    }

    /// Groups that have pods, or an actor.
    fn known_groups(&self) -> BTreeSet<GroupId> {
        let pods = self.caches.pods.all();
        let with_pods = pods.iter().filter_map(|pod| group_of(pod));
        with_pods.chain(self.groups.keys().cloned()).collect()
    }

    fn look_at(&mut self, group: GroupId) {
        let feed = self.feed(&group);
        if feed.pods.is_empty() {
            if self.groups.remove(&group).is_some() {
                self.views.remove(&group);
                self.shared.metrics.forget_group(&group);
            }
            return;
        }
        match self.groups.get(&group) {
            Some(running) => {
                running.feed.send_if_modified(|before| {
                    let is_news = *before != feed;
                    *before = feed;
                    is_news
                });
            }
            None => self.start(group, feed),
        }
    }

    fn start(&mut self, group: GroupId, feed: Feed) {
        let (feed, receiver) = watch::channel(feed);
        let (view, views) = watch::channel(Arc::default());
        let actor = actor::Actor::new(group.clone(), self.shared.clone(), receiver, view);
        let task = tokio::spawn(actor.run());
        self.views.insert(group.clone(), views);
        self.groups.insert(group, Running { feed, task });
    }

    fn feed(&self, group: &GroupId) -> Feed {
        let pods = self
            .caches
            .pods
            .of_cluster(&group.namespace, &group.cluster);
        let mut pods: Vec<PodInfo> = pods
            .iter()
            .filter(|pod| label(&***pod, LABEL_GROUP) == Some(&group.group))
            .filter_map(|pod| pod_info(pod))
            .collect();
        pods.sort_by(|left, right| left.name.cmp(&right.name));
        let slice = pods.first().and_then(|pod| {
            let name = slice::name(group, pod.ip);
            self.caches.slices.get(&group.namespace, &name)
        });
        let cluster = self.caches.clusters.get(&group.namespace, &group.cluster);
        Feed {
            pods,
            slice,
            owner: cluster.and_then(|cluster| cluster.controller_owner_ref(&())),
        }
    }
}

fn group_of(pod: &Pod) -> Option<GroupId> {
    Some(GroupId {
        namespace: pod.metadata.namespace.clone()?,
        cluster: label(pod, LABEL_CLUSTER)?.to_owned(),
        group: label(pod, LABEL_GROUP)?.to_owned(),
    })
}

/// A pod that has an address and whose containers may run. Readiness does not matter: a broker
/// becomes ready by what is done here.
fn pod_info(pod: &Pod) -> Option<PodInfo> {
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    Some(PodInfo {
        name: pod.metadata.name.clone()?,
        uid: pod.metadata.uid.clone()?,
        ip: status.pod_ip.as_ref()?.parse().ok()?,
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        terminating: pod.metadata.deletion_timestamp.is_some(),
    })
}

impl PublishedView {
    fn of(published: &decide::Published) -> Self {
        Self {
            ip: published.ip,
            is_leader: published.kind == Kind::Leader,
        }
    }
}
