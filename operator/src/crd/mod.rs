//! `RaftCluster`, the one custom resource: its specification as Rust types. `raftmq-operator crd`
//! prints the definition that is generated from them; `crds/` holds a copy that a test compares.
//!
//! Every default is here, so that a name and `storage.size` are enough and `kubectl get -o yaml`
//! shows what holds. Rules that the API server checks are in [`rules`].

pub mod rules;
mod status;

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

pub use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

pub use self::status::{
    Bootstrap, BootstrapMember, GroupStatus, MemberRole, MemberStatus, RaftClusterStatus, Summary,
};

/// Groups a cluster may have. Clients keep a connection to the leader of each, and each is a
/// StatefulSet that the operator holds streams to.
pub const GROUPS_MAX: usize = 32;

/// User keys of `spec.config`; RocketMQ 5.5.0 knows about three hundred, nobody sets half of them.
pub const CONFIG_KEYS_MAX: usize = 128;

/// Longest value of a user key. Unit: characters.
pub const CONFIG_VALUE_LENGTH_MAX: usize = 1024;

/// A RocketMQ-compatible message broker whose commit log is a Raft log: one or more groups of
/// brokers, each with a leader that is replaced by itself.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "raftmq.io",
    version = "v1alpha1",
    kind = "RaftCluster",
    plural = "raftclusters",
    shortname = "raft",
    category = "mq",
    namespaced,
    status = "RaftClusterStatus",
    derive = "PartialEq",
    doc = "A cluster of RocketMQ-compatible brokers, replicated by Raft.",
    validation = rules::cluster_name(),
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Leaders", type_ = "string", json_path = ".status.summary.leaders",
        description = "Groups that have a leader, of all groups"
    ),
    printcolumn(
        name = "Members", type_ = "string", json_path = ".status.summary.members",
        description = "Brokers that have caught up, of all brokers"
    ),
    printcolumn(
        name = "Reason", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Leading", type_ = "string", json_path = ".status.summary.leading", priority = 1,
        description = "The pods that lead"
    ),
    printcolumn(
        name = "Name-Server", type_ = "string", json_path = ".status.nameServer", priority = 1,
        description = "What clients set as namesrvAddr"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct RaftClusterSpec {
    /// Brokers in each group: 1, 3, 5, 7 or 9. Half of them, rounded down, may fail at a time. It
    /// cannot be changed yet.
    #[serde(default = "default_replicas")]
    #[schemars(schema_with = "replicas_schema")]
    #[x_kube(validation = rules::odd_replicas(), validation = rules::same_replicas())]
    pub replicas: u32,

    /// Raft groups. Each has its own leader, queues and volumes; RocketMQ calls a group a broker
    /// name. Topics spread over all groups. Groups can be added, not removed or renamed. The pods
    /// of the first group are the name servers.
    #[serde(default = "default_groups")]
    #[schemars(length(min = 1, max = GROUPS_MAX))]
    #[x_kube(
        merge_strategy = kube::core::ListMerge::Map(vec!["name".to_owned()]),
        validation = rules::groups_stay(),
        validation = rules::first_group_stays()
    )]
    pub groups: Vec<Group>,

    /// Volume of each broker.
    #[x_kube(validation = rules::same_storage())]
    pub storage: Storage,

    /// Image of the brokers.
    #[serde(default, skip_serializing_if = "Image::is_default")]
    pub image: Image,

    /// Keys of RocketMQ's broker.conf, such as `fileReservedTime` or `flushDiskType`. Values are
    /// strings. A change takes effect when a broker restarts; condition ConfigApplied says which
    /// pods still have to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "config_schema")]
    #[x_kube(validation = rules::config_keys(), validation = rules::config_values(), validation = rules::config_not_owned())]
    pub config: BTreeMap<String, String>,

    /// Timing of leader election.
    #[serde(default)]
    #[x_kube(validation = rules::heartbeats_fit(), validation = rules::timeouts_differ())]
    pub raft: RaftTiming,

    /// Where clients find the brokers.
    #[serde(default)]
    pub name_server: NameServer,

    /// When true, the operator changes nothing in this cluster; leaders are still published.
    #[serde(default)]
    pub paused: bool,

    /// Merged over the pods that the operator builds, as a strategic merge: containers, volumes and
    /// environment variables by name. The container of the broker is called `broker`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,
}

/// A Raft group.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// Name of the group: RocketMQ's broker name, and part of the names of its pods.
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = rules::group_name())]
    pub name: String,
}

/// Volume of each broker.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// Size of the volume, such as `100Gi`. Messages are kept until `fileReservedTime` is over or
    /// the volume is nearly full. It cannot be changed yet.
    #[schemars(schema_with = "size_schema")]
    #[x_kube(validation = rules::size_suffices())]
    pub size: Quantity,

    /// Storage class of the claims; the default class of the Kubernetes cluster when absent. It
    /// cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

/// Image of the brokers.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Full name with tag or digest. When absent, the image that the operator was installed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = rules::image_name())]
    pub name: Option<String>,

    /// When a node pulls the image; Kubernetes' own rule when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,

    /// Names of Secrets to pull with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Set)]
    pub pull_secrets: Vec<String>,
}

impl Image {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// When a node pulls an image.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Before every start.
    Always,
    /// When the node does not have it.
    IfNotPresent,
    /// Not at all.
    Never,
}

impl PullPolicy {
    /// As Kubernetes spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Timing of leader election. The defaults suit nodes of one data centre.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct RaftTiming {
    /// Time between heartbeats of a leader. Unit: ms.
    #[schemars(range(min = 5, max = 10_000), extend("format" = "int32"))]
    pub heartbeat_ms: u32,
    /// Shortest silence of a leader after which a broker asks for votes. Unit: ms.
    #[schemars(range(min = 10, max = 60_000), extend("format" = "int32"))]
    pub election_timeout_min_ms: u32,
    /// Longest silence of a leader after which a broker asks for votes. Unit: ms.
    #[schemars(range(min = 10, max = 120_000), extend("format" = "int32"))]
    pub election_timeout_max_ms: u32,
}

impl Default for RaftTiming {
    /// The broker's own defaults.
    fn default() -> Self {
        Self {
            heartbeat_ms: 75,
            election_timeout_min_ms: 225,
            election_timeout_max_ms: 375,
        }
    }
}

/// Where clients find the brokers.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct NameServer {
    /// `Embedded`: inside the brokers of the first group, behind one Service.
    pub mode: NameServerMode,
}

/// Where the name servers run.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NameServerMode {
    /// Inside the brokers of the first group.
    #[default]
    Embedded,
}

/// What is merged over the pods that the operator builds.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplate {
    /// Labels and annotations of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<PodMetadata>,
    /// Any field of a pod's `spec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_form_schema")]
    pub spec: Option<serde_json::Value>,
}

/// Labels and annotations of the pods.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct PodMetadata {
    /// More labels. Those of the operator cannot be replaced.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels_schema")]
    #[x_kube(validation = rules::labels_not_owned())]
    pub labels: BTreeMap<String, String>,
    /// More annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "labels_schema")]
    #[x_kube(validation = rules::labels_not_owned())]
    pub annotations: BTreeMap<String, String>,
}

fn default_replicas() -> u32 {
    3
}

fn default_groups() -> Vec<Group> {
    vec![Group {
        name: "broker-a".to_owned(),
    }]
}

fn replicas_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 9})
}

/// Without the two kilobytes of description that the type brings along.
fn size_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "maxLength": 32
    })
}

fn config_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": CONFIG_KEYS_MAX,
        "additionalProperties": {"type": "string", "maxLength": CONFIG_VALUE_LENGTH_MAX}
    })
}

fn labels_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": {"type": "string", "maxLength": 4096}
    })
}

fn free_form_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// The definition as YAML, as it is kept in `crds/` and printed by `raftmq-operator crd`.
///
/// # Errors
/// When the definition cannot be written as YAML, which a test rules out.
pub fn yaml() -> Result<String, serde_yaml::Error> {
    use kube::CustomResourceExt as _;
    serde_yaml::to_string(&RaftCluster::crd())
}

#[cfg(test)]
mod tests;
