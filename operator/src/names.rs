//! Names, labels, annotations and ports of everything the operator makes. They are an interface:
//! a changed name is another object, so none of them changes between releases.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Longest name of a `RaftCluster`. With a group name of 20, the label `<name>-<group>-<hash>` of
/// pods stays below 63 characters.
pub const CLUSTER_NAME_LENGTH_MAX: usize = 30;

/// Field manager of the children and of the status.
pub const MANAGER_CLUSTER: &str = "raftmq-operator/cluster";
/// Field manager of the leader's endpoint.
pub const MANAGER_ENDPOINTS: &str = "raftmq-operator/endpoints";

/// The value of `app.kubernetes.io/managed-by`, and the reporter of Events.
pub const OPERATOR: &str = "raftmq-operator";
/// Selects everything the operator has made.
pub const MANAGED_SELECTOR: &str = "app.kubernetes.io/managed-by=raftmq-operator";

/// Label: name of the `RaftCluster`.
pub const LABEL_CLUSTER: &str = "raftmq.io/cluster";
/// Label: name of the group.
pub const LABEL_GROUP: &str = "raftmq.io/group";
const LABEL_NAME: &str = "app.kubernetes.io/name";
const LABEL_INSTANCE: &str = "app.kubernetes.io/instance";
const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Annotation of a child: hash of what the operator wants it to be. A field that the operator no
/// longer sets is found by it.
pub const ANNOTATION_DESIRED: &str = "raftmq.io/desired";
/// Annotation of a pod template: hash of the configuration that its broker starts with.
pub const ANNOTATION_CONFIG: &str = "raftmq.io/config";
/// Annotation of the leader's slice: Raft term of the leader that was published last.
pub const ANNOTATION_TERM: &str = "raftmq.io/term";
/// Annotation of the leader's slice: node id of the leader of that term.
pub const ANNOTATION_LEADER: &str = "raftmq.io/leader";
/// Annotation of the leader's slice: `Leader`, or `StandIn` for a replica that holds and forwards.
pub const ANNOTATION_PUBLISHED: &str = "raftmq.io/published";

/// Label that ties a slice to its Service.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label that keeps other controllers away from a slice.
pub const LABEL_SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Label that names the pod revision; set by the StatefulSet controller.
pub const LABEL_REVISION: &str = "controller-revision-hash";

/// RocketMQ's remoting protocol. Unit: port; RocketMQ's default.
pub const PORT_REMOTING: u16 = 10911;
/// Raft between the brokers of a group.
pub const PORT_RAFT: u16 = 40911;
/// Metrics, probes and the admin service of a broker.
pub const PORT_HTTP: u16 = 5557;
/// Name server; RocketMQ's default.
pub const PORT_NAMESRV: u16 = 9876;

/// The container of the broker.
pub const CONTAINER: &str = "broker";
/// The volume and the claim template that hold the data.
pub const DATA_VOLUME: &str = "data";
/// Where the data is mounted.
pub const DATA_PATH: &str = "/var/lib/raftmq";
/// The volume of the configuration.
pub const CONFIG_VOLUME: &str = "config";
/// Where the configuration is mounted.
pub const CONFIG_PATH: &str = "/etc/raftmq";
/// The configuration that all brokers of a group share.
pub const CONFIG_FILE: &str = "broker.conf";

/// A group of a cluster: what children are named after.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId {
    /// Namespace of the cluster.
    pub namespace: String,
    /// Name of the `RaftCluster`.
    pub cluster: String,
    /// Name of the group.
    pub group: String,
}

impl std::fmt::Display for GroupId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{}/{}/{}",
            self.namespace, self.cluster, self.group
        )
    }
}

impl GroupId {
    /// Common start of all names; name of the StatefulSet and of the PodDisruptionBudget.
    #[must_use]
    pub fn base(&self) -> String {
        format!("{}-{}", self.cluster, self.group)
    }

    /// Headless Service through which brokers find each other.
    #[must_use]
    pub fn peers(&self) -> String {
        format!("{}-peers", self.base())
    }

    /// Service that leads to the leader.
    #[must_use]
    pub fn leader(&self) -> String {
        format!("{}-leader", self.base())
    }

    /// ConfigMap.
    #[must_use]
    pub fn config(&self) -> String {
        format!("{}-config", self.base())
    }

    /// Pod of ordinal `ordinal`.
    #[must_use]
    pub fn pod(&self, ordinal: u32) -> String {
        format!("{}-{ordinal}", self.base())
    }

    /// Name of a pod of this group that other pods can resolve, before it is ready too.
    #[must_use]
    pub fn pod_host(&self, pod: &str) -> String {
        format!("{pod}.{}.{}.svc", self.peers(), self.namespace)
    }

    /// Labels of everything that belongs to the group.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = cluster_labels(&self.cluster);
        labels.insert(LABEL_GROUP.to_owned(), self.group.clone());
        labels
    }

    /// Selects the broker pods of the group. Immutable in a StatefulSet.
    #[must_use]
    pub fn selector(&self) -> LabelSelector {
        LabelSelector {
            match_labels: Some(self.selector_labels()),
            ..LabelSelector::default()
        }
    }

    /// [`Self::selector`] as a map, for Services.
    #[must_use]
    pub fn selector_labels(&self) -> BTreeMap<String, String> {
        [
            (LABEL_NAME, "raftmq"),
            (LABEL_CLUSTER, &self.cluster),
            (LABEL_GROUP, &self.group),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }
}

/// Labels of everything that belongs to a cluster.
#[must_use]
pub fn cluster_labels(cluster: &str) -> BTreeMap<String, String> {
    [
        (LABEL_NAME, "raftmq"),
        (LABEL_INSTANCE, cluster),
        (LABEL_COMPONENT, "broker"),
        (LABEL_MANAGED_BY, OPERATOR),
        (LABEL_CLUSTER, cluster),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Selector of all broker pods of a cluster, as text for the scale subresource.
#[must_use]
pub fn cluster_selector(cluster: &str) -> String {
    format!("{LABEL_NAME}=raftmq,{LABEL_CLUSTER}={cluster}")
}

/// Service of the name servers.
#[must_use]
pub fn namesrv(cluster: &str) -> String {
    format!("{cluster}-namesrv")
}

/// ServiceAccount of the brokers.
#[must_use]
pub fn service_account(cluster: &str) -> String {
    format!("{cluster}-broker")
}
