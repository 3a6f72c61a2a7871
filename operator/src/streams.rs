//! What the API server says, kept warm on every replica of the operator: one watch for each kind
//! (and namespace), each with a backoff of its own, so that one that fails delays no other.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodSpec, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::reflector::{self, ObjectRef, Store, store::Writer};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

use crate::crd::RaftCluster;
use crate::metrics::Metrics;
use crate::names::{LABEL_CLUSTER, LABEL_GROUP, MANAGED_SELECTOR};

/// Signals that a slow listener may leave behind before it is told to look at everything.
const SIGNALS_MAX: usize = 4096;

/// Objects in one page of a first list.
const PAGE_SIZE: u32 = 100;

/// A resource that may be unreadable without keeping the others from being read.
pub type Guarded = DeserializeGuard<RaftCluster>;

/// Which namespaces are watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    All,
    /// These.
    Namespaces(Vec<String>),
}

impl Scope {
    fn parts(&self) -> Vec<Option<String>> {
        match self {
            Self::All => vec![None],
            Self::Namespaces(names) => names.iter().cloned().map(Some).collect(),
        }
    }
}

/// What a signal comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A `RaftCluster`.
    Cluster,
    /// A pod.
    Pod,
    /// The slice of a leader Service.
    Slice,
    /// Any other child.
    Child,
    /// What brokers say.
    Broker,
}

/// Something has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// Look at everything of this source: a list was read anew.
    All(Source),
    /// Look at this cluster, or this group of it.
    One {
        /// What has changed.
        source: Source,
        /// Namespace of the cluster.
        namespace: String,
        /// Name of the cluster.
        cluster: String,
        /// Name of the group, where it concerns one.
        group: Option<String>,
    },
}

/// Sends and hands out signals.
#[derive(Debug, Clone)]
pub struct Signals(broadcast::Sender<Signal>);

impl Default for Signals {
    fn default() -> Self {
        Self(broadcast::channel(SIGNALS_MAX).0)
    }
}

impl Signals {
    /// Tells everybody who listens; nobody need.
    pub fn send(&self, signal: Signal) {
        // An error only says that nobody listens.
        let _ = self.0.send(signal);
    }

    /// A new listener, which hears what is sent from now on.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Signal> {
        self.0.subscribe()
    }
}

/// The objects of one kind, over all watched namespaces.
#[derive(Clone)]
pub struct Cache<K: Resource<DynamicType = ()> + Clone + 'static> {
    parts: Vec<Part<K>>,
}

/// One watch: over all namespaces, or over one.
#[derive(Clone)]
struct Part<K: Resource<DynamicType = ()> + Clone + 'static> {
    namespace: Option<String>,
    store: Store<K>,
    /// True when the first list is there. Not `Store::wait_until_ready`: of several tasks that
    /// wait there, kube wakes only the one that was polled last.
    ready: watch::Receiver<bool>,
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Debug for Cache<K> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Cache<{}>", K::kind(&()))
    }
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Cache<K> {
    fn part(&self, namespace: &str) -> Option<&Store<K>> {
        let covers = |scope: &Option<String>| scope.as_ref().is_none_or(|name| name == namespace);
        let mut parts = self.parts.iter();
        parts
            .find(|part| covers(&part.namespace))
            .map(|part| &part.store)
    }

    /// The object of that name.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.part(namespace)?
            .get(&ObjectRef::new(name).within(namespace))
    }

    /// The objects that carry the label of the cluster.
    #[must_use]
    pub fn of_cluster(&self, namespace: &str, cluster: &str) -> Vec<Arc<K>> {
        let Some(store) = self.part(namespace) else {
            return Vec::new();
        };
        store.state_filter(|object| {
            object.meta().namespace.as_deref() == Some(namespace)
                && label(object, LABEL_CLUSTER) == Some(cluster)
        })
    }

    /// Every object.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<K>> {
        let parts = self.parts.iter();
        parts.flat_map(|part| part.store.state()).collect()
    }

    /// The stores behind it, one for each watched namespace or one for all.
    #[must_use]
    pub fn stores(&self) -> Vec<Store<K>> {
        self.parts.iter().map(|part| part.store.clone()).collect()
    }

    async fn ready(&self) -> bool {
        for part in &self.parts {
            if part.ready.clone().wait_for(|ready| *ready).await.is_err() {
                return false;
            }
        }
        true
    }
}

/// Everything that is watched.
#[derive(Debug, Clone)]
pub struct Caches {
    /// `RaftCluster`s.
    pub clusters: Cache<Guarded>,
    /// Pods of brokers, cut down to what is read.
    pub pods: Cache<Pod>,
    /// Slices of leader Services.
    pub slices: Cache<EndpointSlice>,
    /// Services.
    pub services: Cache<Service>,
    /// ConfigMaps.
    pub config_maps: Cache<ConfigMap>,
    /// StatefulSets.
    pub stateful_sets: Cache<StatefulSet>,
    /// PodDisruptionBudgets.
    pub budgets: Cache<PodDisruptionBudget>,
    /// ServiceAccounts.
    pub accounts: Cache<ServiceAccount>,
}

impl Caches {
    /// Returns when the first list of every kind is there; false when a watch has ended.
    pub async fn ready(&self) -> bool {
        self.clusters.ready().await
            && self.pods.ready().await
            && self.slices.ready().await
            && self.services.ready().await
            && self.config_maps.ready().await
            && self.stateful_sets.ready().await
            && self.budgets.ready().await
            && self.accounts.ready().await
    }
}

/// Starts all watches in `tasks`.
#[must_use]
pub fn start(
    client: &Client,
    scope: &Scope,
    signals: &Signals,
    metrics: &Arc<Metrics>,
    tasks: &mut JoinSet<&'static str>,
) -> Caches {
    let mut starter = Starter {
        client,
        scope,
        signals,
        metrics,
        tasks,
    };
    Caches {
        clusters: starter.watch(Source::Cluster, |_| {}),
        pods: starter.watch(Source::Pod, trim_pod),
        slices: starter.watch(Source::Slice, |_| {}),
        services: starter.watch(Source::Child, |_| {}),
        config_maps: starter.watch(Source::Child, |_| {}),
        stateful_sets: starter.watch(Source::Child, |_| {}),
        budgets: starter.watch(Source::Child, |_| {}),
        accounts: starter.watch(Source::Child, |_| {}),
    }
}

struct Starter<'a> {
    client: &'a Client,
    scope: &'a Scope,
    signals: &'a Signals,
    metrics: &'a Arc<Metrics>,
    tasks: &'a mut JoinSet<&'static str>,
}

impl Starter<'_> {
    fn watch<K>(&mut self, source: Source, trim: fn(&mut K)) -> Cache<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        let mut parts = Vec::new();
        for namespace in self.scope.parts() {
            let api: Api<K> = match &namespace {
                None => Api::all(self.client.clone()),
                Some(name) => Api::namespaced(self.client.clone(), name),
            };
            let (store, writer) = reflector::store();
            let (is_ready, ready) = watch::channel(false);
            let watch = Watch {
                source,
                trim,
                is_ready,
                signals: self.signals.clone(),
                metrics: Arc::clone(self.metrics),
            };
            self.tasks.spawn(watch.run(api, writer));
            parts.push(Part {
                namespace,
                store,
                ready,
            });
        }
        Cache { parts }
    }
}

struct Watch<K> {
    source: Source,
    trim: fn(&mut K),
    is_ready: watch::Sender<bool>,
    signals: Signals,
    metrics: Arc<Metrics>,
}

impl<K> Watch<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// Watches until the process ends.
    async fn run(self, api: Api<K>, writer: Writer<K>) -> &'static str {
        let mut config = watcher::Config::default().page_size(PAGE_SIZE);
        if self.source != Source::Cluster {
            config = config.labels(MANAGED_SELECTOR);
        }
        let kind = K::kind(&()).into_owned();
        let trim = self.trim;
        let events = watcher(api, config)
            .backoff(WatchBackoff::default())
            .modify(move |object: &mut K| {
                object.managed_fields_mut().clear();
                trim(object);
            })
            .reflect(writer);
        pin_mut!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(object) | watcher::Event::Delete(object)) => {
                    self.metrics.watch_event(&kind);
                    self.tell(&object);
                }
                Ok(watcher::Event::InitDone) => {
                    self.is_ready.send_replace(true);
                    self.signals.send(Signal::All(self.source));
                }
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
                Err(error) => {
                    self.metrics.watch_failed(&kind);
                    tracing::warn!(kind, %error, "watch: trying again");
                }
            }
        }
        "a watch"
    }

    fn tell(&self, object: &K) {
        let Some(namespace) = object.namespace() else {
            return;
        };
        let cluster = match self.source {
            Source::Cluster => object.meta().name.clone(),
            _ => label(object, LABEL_CLUSTER).map(str::to_owned),
        };
        let Some(cluster) = cluster else { return };
        self.signals.send(Signal::One {
            source: self.source,
            namespace,
            cluster,
            group: label(object, LABEL_GROUP).map(str::to_owned),
        });
    }
}

/// The value of a label.
pub fn label<'a, K: Resource>(object: &'a K, key: &str) -> Option<&'a str> {
    object.meta().labels.as_ref()?.get(key).map(String::as_str)
}

/// Pods are the many and the large ones; nothing of their specification is read but the node.
fn trim_pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        *spec = PodSpec {
            node_name: spec.node_name.take(),
            ..PodSpec::default()
        };
    }
    pod.metadata.annotations = None;
}

/// Wait between tries of one watch. kube's own goes up to 30 s, for which an operator that has
/// outlived its API server would not see a new pod.
#[derive(Debug, Default)]
struct WatchBackoff {
    failures: u32,
}

impl WatchBackoff {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(5);
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = Self::FIRST.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        Some(wait.min(Self::LONGEST))
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_waits_longer_each_time_up_to_a_bound_and_starts_over_when_it_works() {
        let mut backoff = WatchBackoff::default();
        let waits: Vec<u128> = backoff
            .by_ref()
            .take(7)
            .map(|wait| wait.as_millis())
            .collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 5000, 5000]);
        backoff.reset();
        assert_eq!(backoff.next(), Some(WatchBackoff::FIRST));
    }
}
