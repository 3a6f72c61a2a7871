//! The types openraft is instantiated with, and the conversion between its entries and the
//! entries of the commit log. Nothing outside this folder sees these types.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
};

use bytes::Bytes;
use openraft::{
    EntryPayload, RaftTypeConfig,
    entry::RaftPayload,
    impls::{BoxedErrorSource, InlineBatch, leader_id_std},
    raft::responder::Responder,
    vote::leader_id_std::CommittedLeaderId,
};
use raftmq_state::Reply;
use raftmq_store::{EntryKind, LogId as StoreLogId, NewEntry, StoredEntry};
use serde::{Deserialize, Serialize};

use super::{machine::SnapshotData, runtime::RaftRuntime};

/// What one Raft entry carries: the encoded commands of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Encoded commands, see `raftmq_state::command`.
    pub payload: Bytes,
    /// Number of commands in `payload`.
    pub count: u32,
    /// Address of the first byte of `payload` in the commit log. Filled in by the log reader;
    /// zero in a batch that has not been appended yet.
    pub physical_offset: u64,
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands, {} bytes", self.count, self.payload.len())
    }
}

/// A member as the membership names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerNode {
    /// Raft address, `host:port`; resolved anew at each connect.
    pub address: String,
    /// Incarnation of its data folder; empty = any.
    pub incarnation: String,
}

/// Result of applying one entry: one reply for each command, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replies(pub Vec<Reply>);

impl fmt::Display for Replies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} replies", self.0.len())
    }
}

/// Calls back where the result is produced, which saves the hand-off a channel would cost.
pub(crate) struct Callback<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Callback<T> {
    /// A responder that runs `call` on the task that completes the write.
    pub(crate) fn new(call: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(call))
    }
}

impl<T> fmt::Debug for Callback<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Callback")
    }
}

impl<T: Send + 'static> Responder<TypeConfig, T> for Callback<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

/// The type configuration of the broker's Raft group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Batch;
    type R = Replies;
    type NodeId = u64;
    type Node = PeerNode;
    type Term = u64;
    /// One leader per term, which keeps committed ids small and files simple.
    type LeaderId = leader_id_std::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = EntryPayload<Batch, u64, PeerNode>;
    type Entry = openraft::impls::Entry<CommittedLeaderId<u64>, Self::Payload>;
    type AsyncRuntime = RaftRuntime;
    type Responder<T>
        = Callback<T>
    where
        T: Send + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: Send + 'static;
    type ErrorSource = BoxedErrorSource;
}

/// Raft's log id.
pub(crate) type LogId = openraft::LogId<CommittedLeaderId<u64>>;
/// Raft's vote.
pub(crate) type Vote = openraft::impls::Vote<leader_id_std::LeaderId<u64, u64>>;
/// Raft's log entry.
pub(crate) type Entry = <TypeConfig as RaftTypeConfig>::Entry;
/// The membership of the group at some log id.
pub(crate) type StoredMembership =
    openraft::StoredMembership<CommittedLeaderId<u64>, u64, PeerNode>;
/// Voters, learners and their addresses.
pub(crate) type Membership = openraft::Membership<u64, PeerNode>;
/// Description of a snapshot.
pub(crate) type SnapshotMeta =
    openraft::storage::SnapshotMeta<CommittedLeaderId<u64>, u64, PeerNode>;
/// A snapshot: the encoded checkpoint.
pub(crate) type Snapshot =
    openraft::storage::Snapshot<CommittedLeaderId<u64>, u64, PeerNode, SnapshotData>;

/// Log id of openraft from one of the store.
pub(crate) fn log_id(id: StoreLogId) -> LogId {
    LogId::new_term_index(id.term, id.index)
}

/// Log id of the store from one of openraft. The leader's node id is not part of a committed id
/// (one leader per term), so the stored field stays zero on every replica.
pub(crate) fn store_id(id: &LogId) -> StoreLogId {
    StoreLogId {
        term: id.committed_leader_id().term,
        node: 0,
        index: id.index(),
    }
}

/// The entry as the commit log stores it. Membership is JSON: rare, small, and its maps are
/// ordered, so that every replica stores the same bytes.
pub(crate) fn to_stored(entry: Entry) -> Result<NewEntry, io::Error> {
    let id = store_id(&entry.log_id);
    let (kind, count, payload) = match entry.payload {
        EntryPayload::Blank => (EntryKind::Blank, 0, Bytes::new()),
        EntryPayload::Normal(batch) => (EntryKind::Normal, batch.count, batch.payload),
        EntryPayload::Membership(membership) => {
            (EntryKind::Membership, 1, encode_membership(&membership)?)
        }
    };
    Ok(NewEntry {
        id,
        kind,
        count,
        payload,
    })
}

/// The entry as Raft sees it, with the address of its payload filled in.
pub(crate) fn from_stored(entry: StoredEntry) -> Result<Entry, io::Error> {
    let physical_offset = entry.payload_physical();
    let payload = match entry.kind {
        EntryKind::Blank => EntryPayload::blank(),
        EntryKind::Normal => EntryPayload::Normal(Batch {
            payload: entry.payload,
            count: entry.count,
            physical_offset,
        }),
        EntryKind::Membership => EntryPayload::Membership(decode_membership(&entry.payload)?),
    };
    Ok(Entry {
        log_id: log_id(entry.id),
        payload,
    })
}

/// JSON form of a membership, in the log and in checkpoints.
#[derive(Serialize, Deserialize)]
struct MembershipJson {
    /// One voter set, or two while a change is under way (joint consensus).
    configs: Vec<BTreeSet<u64>>,
    /// Raft address of every member, learners included.
    nodes: BTreeMap<u64, String>,
    /// Incarnation of the members that have one. Absent when none has: these are then the bytes
    /// that versions without incarnations write.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    incarnations: BTreeMap<u64, String>,
}

/// The membership as JSON.
pub(crate) fn encode_membership(membership: &Membership) -> Result<Bytes, io::Error> {
    let json = MembershipJson {
        configs: membership.get_joint_config().clone(),
        nodes: membership
            .nodes()
            .map(|(id, node)| (*id, node.address.clone()))
            .collect(),
        incarnations: membership
            .nodes()
            .filter(|(_, node)| !node.incarnation.is_empty())
            .map(|(id, node)| (*id, node.incarnation.clone()))
            .collect(),
    };
    serde_json::to_vec(&json)
        .map(Bytes::from)
        .map_err(io::Error::other)
}

/// Membership from its JSON form.
pub(crate) fn decode_membership(json: &[u8]) -> Result<Membership, io::Error> {
    let invalid = |reason: String| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("decode membership: {reason}"),
        )
    };
    let MembershipJson {
        configs,
        nodes,
        mut incarnations,
    } = serde_json::from_slice(json).map_err(|error| invalid(error.to_string()))?;
    let nodes: BTreeMap<u64, PeerNode> = nodes
        .into_iter()
        .map(|(id, address)| {
            let incarnation = incarnations.remove(&id).unwrap_or_default();
            let node = PeerNode {
                address,
                incarnation,
            };
            (id, node)
        })
        .collect();
    Membership::new(configs, nodes).map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership(incarnation: &str) -> Membership {
        let node = |address: &str, incarnation: &str| PeerNode {
            address: address.into(),
            incarnation: incarnation.into(),
        };
        let nodes = BTreeMap::from([(1, node("a:1", "")), (2, node("b:2", incarnation))]);
        Membership::new(vec![BTreeSet::from([1, 2])], nodes).unwrap()
    }

    #[test]
    fn a_membership_without_incarnations_has_the_bytes_of_versions_that_know_none() {
        let json = r#"{"configs":[[1,2]],"nodes":{"1":"a:1","2":"b:2"}}"#;
        assert_eq!(encode_membership(&membership("")).unwrap(), json.as_bytes());
        assert_eq!(decode_membership(json.as_bytes()).unwrap(), membership(""));
    }

    #[test]
    fn incarnations_stand_beside_the_addresses_and_read_back() {
        let json = r#"{"configs":[[1,2]],"nodes":{"1":"a:1","2":"b:2"},"incarnations":{"2":"x"}}"#;
        let with = membership("x");
        assert_eq!(encode_membership(&with).unwrap(), json.as_bytes());
        assert_eq!(decode_membership(json.as_bytes()).unwrap(), with);
        assert!(decode_membership(b"{}").is_err());
    }
}
