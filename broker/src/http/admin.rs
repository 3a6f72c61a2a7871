//! What the HTTP port needs from the Raft side: status, health and the operations on the group.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::BoxFuture;
use thiserror::Error;
use tokio::sync::watch;

use crate::metrics::LogReading;
use crate::status::{Member, RaftStatus};

/// Status, health and operations of this node's Raft group. The Raft glue implements it.
///
/// Arguments are checked for form before they arrive here; whether they fit the group is for the
/// implementation to say.
pub trait AdminOps: Send + Sync {
    /// The newest status of this node. The sender stays alive as long as the node runs.
    fn status(&self) -> watch::Receiver<Arc<RaftStatus>>;

    /// What the metrics of the log show now.
    fn log(&self) -> LogReading;

    /// Starts handing the leader role to voter `to`, or to the voter with the most complete log.
    /// Done when the transfer has been started, not when it has succeeded.
    fn transfer_leader(&self, to: Option<u64>) -> BoxFuture<'_, Result<(), AdminError>>;

    /// Adds node `id`, reached at Raft address `address` (`host:port`), without a vote. Done when
    /// the membership entry is committed. Its data folder must have `incarnation`, unless that is
    /// empty. Idempotent.
    fn add_learner(
        &self,
        id: u64,
        address: String,
        incarnation: String,
    ) -> BoxFuture<'_, Result<(), AdminError>>;

    /// Forms the group of `members` if this node, whose data folder must have `incarnation`,
    /// belongs to none. True: it belonged to the group before. Idempotent.
    fn form_group(
        &self,
        incarnation: String,
        members: Vec<Member>,
    ) -> BoxFuture<'_, Result<bool, AdminError>>;

    /// Makes exactly `voters`, all of them members already, the voters of the group; others leave.
    /// Done when the final membership entry is committed.
    fn change_membership(&self, voters: BTreeSet<u64>) -> BoxFuture<'_, Result<(), AdminError>>;

    /// Whether clients should be sent here: a leader is known and this node has caught up. The
    /// error says what is missing.
    fn ready(&self) -> Result<(), String>;

    /// Whether the process works at all. The error says why it should be restarted; a missing
    /// quorum or leader is no reason, because a restart does not help.
    fn live(&self) -> Result<(), String>;
}

/// Why an operation was not carried out, named by what the caller should do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AdminError {
    /// Ask the leader instead.
    #[error("this node is not the leader")]
    NotLeader {
        /// Node id of the leader; `None` while unknown.
        leader: Option<u64>,
    },
    /// Do not repeat: the group as it is does not allow it.
    #[error("{0}")]
    Invalid(String),
    /// Look at the status first: this is not the node, or not the group, that was meant.
    #[error("{0}")]
    Precondition(String),
    /// Repeat later: another change of the group is under way.
    #[error("{0}")]
    Busy(String),
    /// Repeat later: nothing was done.
    #[error("{0}")]
    Unavailable(String),
    /// Look at the status first: it may have been done.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// This node is broken and about to end.
    #[error("{0}")]
    Fatal(String),
}
