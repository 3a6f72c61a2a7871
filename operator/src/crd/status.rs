//! What the operator reports about a `RaftCluster`. Nothing in it moves by itself: log positions,
//! lag and times are metrics, because a status that changes wakes everybody who watches it.
//!
//! Two parts are also the operator's memory and are written before anything acts on them: which
//! node id a pod has, and with which data directories a group was formed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Status of a `RaftCluster`.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct RaftClusterStatus {
    /// Generation of the specification that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Broker pods that exist in the smallest group; for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Label selector of the broker pods; for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// What clients set as `namesrvAddr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_server: Option<String>,
    /// The cluster in a few words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// Every group, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["name".to_owned()]))]
    pub groups: Vec<GroupStatus>,
    /// Ready, Available, Progressing, Degraded, ConfigApplied, Paused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
}

impl RaftClusterStatus {
    /// The group of that name.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<&GroupStatus> {
        self.groups.iter().find(|group| group.name == name)
    }
}

/// The cluster in a few words.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Summary {
    /// Groups that have a leader, of all groups, such as `2/2`.
    pub leaders: String,
    /// Brokers that have caught up, of all brokers, such as `6/6`.
    pub members: String,
    /// The pods that lead, separated by commas.
    pub leading: String,
}

/// Status of a group.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct GroupStatus {
    /// Name of the group.
    pub name: String,
    /// Pod that leads; absent while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Raft term of that leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<i64>,
    /// Address of the leader Service, which brokers give to clients as the address of the leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader_address: Option<String>,
    /// The brokers of the group, by pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["pod".to_owned()]))]
    pub members: Vec<MemberStatus>,
    /// The node id that the next new member gets. Ids are never used twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_node_id: Option<i64>,
    /// With which data directories the group is or was formed; written before it is formed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<Bootstrap>,
}

impl GroupStatus {
    /// The member that runs in `pod`.
    #[must_use]
    pub fn member(&self, pod: &str) -> Option<&MemberStatus> {
        self.members.iter().find(|member| member.pod == pod)
    }
}

/// A broker.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Name of its pod.
    pub pod: String,
    /// Its Raft node id: belongs to the data on the claim, not to the pod.
    pub node_id: i64,
    /// What it is in the newest term.
    pub role: MemberRole,
    /// Whether it has what the leader has, as far as it matters to clients.
    pub caught_up: bool,
}

/// What a broker is in its group.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberRole {
    /// Leads and serves.
    Leader,
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Receives the log, does not vote.
    Learner,
    /// Waits for the group to be formed.
    New,
    /// Its data directory is not the one that belongs to its node id.
    DiskLost,
    /// Cannot be reached.
    Unreachable,
}

impl MemberRole {
    /// As it stands in the status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Leader => "Leader",
            Self::Follower => "Follower",
            Self::Candidate => "Candidate",
            Self::Learner => "Learner",
            Self::New => "New",
            Self::DiskLost => "DiskLost",
            Self::Unreachable => "Unreachable",
        }
    }
}

/// How a group was formed. Once written, no other set of data directories is ever formed.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Bootstrap {
    /// The first voters.
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["nodeId".to_owned()]))]
    pub members: Vec<BootstrapMember>,
    /// Whether a broker has answered that the group exists.
    #[serde(default)]
    pub formed: bool,
}

/// A first voter.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BootstrapMember {
    /// Raft node id.
    pub node_id: i64,
    /// Raft address, `host:port`.
    pub address: String,
    /// Incarnation of its data directory.
    pub incarnation: String,
}
