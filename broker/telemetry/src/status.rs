//! What a node knows about its Raft group, as plain data.
//!
//! The Raft glue publishes it through a watch channel; the HTTP port serves it as JSON on `/status`
//! and as protobuf on the admin service. Nothing here decides anything.

use serde::Serialize;

/// Snapshot of one node's view of its group. Indexes are Raft log indexes, and `None` means that
/// there is no such entry yet. The JSON names are part of the `/status` interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RaftStatus {
    /// Cluster name (`brokerClusterName`).
    pub cluster: String,
    /// Raft group (`dLegerGroup`), by default the broker name.
    pub group: String,
    /// This node; 1 or more.
    pub node_id: u64,
    /// What this node is in `term`.
    pub role: RaftRole,
    /// Current Raft term.
    pub term: u64,
    /// Leader of `term`, `None` while unknown. JSON name: `leader`.
    #[serde(rename = "leader")]
    pub leader_id: Option<u64>,
    /// Members that vote, ordered by id.
    pub voters: Vec<Member>,
    /// Members that receive the log without a vote, ordered by id.
    pub learners: Vec<Member>,
    /// Whether a change of the voters is half done: `voters` then has the old and the new ones, and
    /// a majority of each must agree.
    pub joint: bool,
    /// Newest entry in the log of this node.
    pub last_index: Option<u64>,
    /// Newest entry known to be on a quorum.
    pub committed_index: Option<u64>,
    /// Newest entry applied to the state machine of this node.
    pub applied_index: Option<u64>,
    /// Newest entry that retention has removed.
    pub purged_index: Option<u64>,
    /// Progress of the other nodes; filled by the leader only, ordered by id.
    pub peers: Vec<PeerProgress>,
    /// Whether `/readyz` answers 200.
    pub ready: bool,
    /// Why `ready` is false; `None` when it is true.
    pub not_ready_reason: Option<String>,
    /// Where this node is reached.
    pub addresses: NodeAddresses,
    /// Tells the disk of this node from another one under the same node id.
    pub incarnation: String,
    /// Whether this node belongs to a formed group: its log has a membership.
    pub initialized: bool,
    /// Whether this node leads and a quorum of its voters has answered it within two seconds. False
    /// on every other node: only a leader can tell.
    pub has_quorum: bool,
}

impl RaftStatus {
    /// Whether more than log progress tells the two apart. Progress changes with every entry and
    /// may be reported late; everything else is news that somebody acts upon.
    pub fn differs_beyond_progress(&self, other: &Self) -> bool {
        // Written without `..`: a new field has to be put on one side or the other.
        let Self {
            cluster,
            group,
            node_id,
            role,
            term,
            leader_id,
            voters,
            learners,
            joint,
            last_index: _,
            committed_index: _,
            applied_index: _,
            purged_index: _,
            peers: _,
            ready,
            not_ready_reason: _,
            addresses,
            incarnation,
            initialized,
            has_quorum,
        } = self;
        *role != other.role
            || *term != other.term
            || *leader_id != other.leader_id
            || *ready != other.ready
            || *voters != other.voters
            || *learners != other.learners
            || *joint != other.joint
            || *addresses != other.addresses
            || *node_id != other.node_id
            || *group != other.group
            || *cluster != other.cluster
            || *incarnation != other.incarnation
            || *initialized != other.initialized
            || *has_quorum != other.has_quorum
    }
}

/// Role of a node in the current term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RaftRole {
    /// Leads and serves: it has applied an entry of its own term.
    Leader,
    /// Follows the leader of the term, or waits for one.
    Follower,
    /// Asks for votes, or has won and not yet applied an entry of its own term.
    Candidate,
    /// Receives the log, does not vote.
    Learner,
}

impl RaftRole {
    /// Every role, in the order of the metric labels.
    pub const ALL: [Self; 4] = [Self::Leader, Self::Follower, Self::Candidate, Self::Learner];

    /// Name in JSON, metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leader => "LEADER",
            Self::Follower => "FOLLOWER",
            Self::Candidate => "CANDIDATE",
            Self::Learner => "LEARNER",
        }
    }
}

/// A member of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Node id.
    pub id: u64,
    /// Raft address, `host:port`.
    pub address: String,
    /// Incarnation that its data folder must have; empty = any.
    pub incarnation: String,
}

/// How far another node has come, as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerProgress {
    /// Node id.
    pub id: u64,
    /// Newest entry known to be stored there; `None` while unknown.
    pub matched_index: Option<u64>,
    /// Entries that the leader has and that node is not known to have.
    pub lag_entries: u64,
}

/// Where a node is reached. Each is `host:port`, empty when not served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeAddresses {
    /// RocketMQ remoting protocol (`brokerIP1`, `listenPort`).
    pub broker: String,
    /// Raft, between the nodes of the group.
    pub raft: String,
    /// Metrics, probes and the admin service.
    pub http: String,
}

#[cfg(any(test, feature = "testing"))]
pub mod sample {
    //! A status for tests.
    use super::{Member, NodeAddresses, PeerProgress, RaftRole, RaftStatus};

    /// Node 1 of three leads term 7.
    pub fn leader() -> RaftStatus {
        let member = |id: u64| Member {
            id,
            address: format!("127.0.0.1:4091{id}"),
            incarnation: format!("disk-{id}"),
        };
        RaftStatus {
            cluster: "DefaultCluster".to_owned(),
            group: "broker-a".to_owned(),
            node_id: 1,
            role: RaftRole::Leader,
            term: 7,
            leader_id: Some(1),
            voters: vec![member(1), member(2), member(3)],
            learners: vec![],
            joint: false,
            last_index: Some(120),
            committed_index: Some(119),
            applied_index: Some(118),
            purged_index: None,
            peers: vec![PeerProgress {
                id: 2,
                matched_index: Some(117),
                lag_entries: 3,
            }],
            ready: true,
            not_ready_reason: None,
            addresses: NodeAddresses {
                broker: "127.0.0.1:30911".to_owned(),
                raft: "127.0.0.1:40911".to_owned(),
                http: "127.0.0.1:5557".to_owned(),
            },
            incarnation: "disk-1".to_owned(),
            initialized: true,
            has_quorum: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_alone_is_no_news_and_a_role_is() {
        let before = sample::leader();
        let mut after = before.clone();
        after.last_index = Some(500);
        after.committed_index = Some(499);
        after.peers.clear();
        assert!(!after.differs_beyond_progress(&before));
        after.role = RaftRole::Follower;
        assert!(after.differs_beyond_progress(&before));
    }

    #[test]
    fn json_names_are_stable() {
        let json = serde_json::to_value(sample::leader()).unwrap();
        let expected = serde_json::json!({
            "cluster": "DefaultCluster", "group": "broker-a", "nodeId": 1,
            "role": "LEADER", "term": 7, "leader": 1,
            "voters": [
                {"id": 1, "address": "127.0.0.1:40911", "incarnation": "disk-1"},
                {"id": 2, "address": "127.0.0.1:40912", "incarnation": "disk-2"},
                {"id": 3, "address": "127.0.0.1:40913", "incarnation": "disk-3"},
            ],
            "learners": [], "joint": false,
            "lastIndex": 120, "committedIndex": 119, "appliedIndex": 118, "purgedIndex": null,
            "peers": [{"id": 2, "matchedIndex": 117, "lagEntries": 3}],
            "ready": true, "notReadyReason": null,
            "addresses": {
                "broker": "127.0.0.1:30911", "raft": "127.0.0.1:40911", "http": "127.0.0.1:5557",
            },
            "incarnation": "disk-1", "initialized": true, "hasQuorum": true,
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn role_names_equal_their_json_form() {
        for role in RaftRole::ALL {
            assert_eq!(serde_json::to_value(role).unwrap(), role.name());
        }
    }
}
