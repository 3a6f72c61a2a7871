//! What brokers say about themselves: one status stream to each pod, and the call that forms a
//! group. Everything behind this module works with [`NodeView`], never with protobuf.

mod stream;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use raftmq_api::admin::{self, admin_client::AdminClient};
use thiserror::Error;
use tonic::transport::{Channel, Endpoint};

pub use self::stream::{Link, LinkState, PROGRESS_INTERVAL, StatusStream};

use crate::crd::BootstrapMember;
use crate::names::PORT_HTTP;

/// Longest wait for a connection to a broker. A pod network answers in well under a millisecond;
/// a dead node does not answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest wait for the answer of a single call. Forming a group syncs a few small files.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Most members of a group, voters and learners, that a status may name; more is nonsense.
const MEMBERS_MAX: usize = 64;

/// What a node of a group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Leads and has applied an entry of its own term: a quorum has elected it. Whether one still
    /// follows is [`NodeView::has_quorum`].
    Leader,
    /// Follows or waits.
    Follower,
    /// Asks for votes, or has won and does not serve yet.
    Candidate,
    /// Receives the log without a vote.
    Learner,
}

/// A member of a group as a node knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Raft node id.
    pub id: u64,
    /// Raft address.
    pub address: String,
    /// Incarnation of its data directory; empty while unknown.
    pub incarnation: String,
}

/// What a node says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// `brokerClusterName`.
    pub cluster: String,
    /// `dLegerGroup`.
    pub group: String,
    /// Its Raft node id.
    pub node_id: u64,
    /// What it is in `term`.
    pub role: Role,
    /// Its current term.
    pub term: u64,
    /// Newest entry in its log; 0 when there is none.
    pub last_index: u64,
    /// Voters and learners it knows.
    pub members: Vec<Member>,
    /// Incarnation of its data directory.
    pub incarnation: String,
    /// Whether it belongs to a formed group.
    pub initialized: bool,
    /// Whether it leads and a quorum answers it; false on every other node.
    pub has_quorum: bool,
    /// Whether it has caught up and knows a leader.
    pub ready: bool,
    /// Why it is not ready.
    pub not_ready_reason: String,
    /// Its Raft address, as its peers reach it.
    pub raft_address: String,
}

impl NodeView {
    /// Whether more than log progress tells the two apart.
    #[must_use]
    pub fn differs_beyond_progress(&self, other: &Self) -> bool {
        let level = Self {
            last_index: other.last_index,
            ..self.clone()
        };
        level != *other
    }
}

impl From<admin::NodeStatus> for NodeView {
    fn from(status: admin::NodeStatus) -> Self {
        let role = match status.role() {
            admin::Role::Leader => Role::Leader,
            admin::Role::Candidate => Role::Candidate,
            admin::Role::Learner => Role::Learner,
            admin::Role::Follower | admin::Role::Unspecified => Role::Follower,
        };
        let members = status.voters.into_iter().chain(status.learners);
        Self {
            cluster: status.cluster,
            group: status.group,
            node_id: status.node_id,
            role,
            term: status.term,
            last_index: status.last_index.unwrap_or(0),
            members: members
                .take(MEMBERS_MAX)
                .map(|member| Member {
                    id: member.id,
                    address: member.address,
                    incarnation: member.incarnation,
                })
                .collect(),
            incarnation: status.incarnation,
            initialized: status.initialized,
            has_quorum: status.has_quorum,
            ready: status.ready,
            not_ready_reason: status.not_ready_reason,
            raft_address: status.addresses.unwrap_or_default().raft,
        }
    }
}

/// Why a broker did not do what it was asked to.
#[derive(Debug, Error)]
pub enum BrokerError {
    /// Repeat later: the broker was not reached, or did not answer.
    #[error("reach {address}: {message}")]
    Unreachable {
        /// Where it should have been.
        address: SocketAddr,
        /// What happened.
        message: String,
    },
    /// Look at it: the broker has said no.
    #[error("{address} refuses: {message}")]
    Refused {
        /// Who refused.
        address: SocketAddr,
        /// Why.
        message: String,
    },
}

/// Asks the node at `ip` to form its group from `members`. True when the group existed already.
///
/// # Errors
/// When the node could not be asked or has refused.
pub async fn form_group(
    ip: IpAddr,
    incarnation: &str,
    members: &[BootstrapMember],
) -> Result<bool, BrokerError> {
    let address = SocketAddr::new(ip, PORT_HTTP);
    let request = admin::FormGroupRequest {
        incarnation: incarnation.to_owned(),
        members: members
            .iter()
            .map(|member| admin::Member {
                id: member.node_id.try_into().unwrap_or_default(),
                address: member.address.clone(),
                incarnation: member.incarnation.clone(),
            })
            .collect(),
    };
    let unreachable = |message: String| BrokerError::Unreachable { address, message };
    let endpoint = endpoint(address).map_err(|error| unreachable(error.to_string()))?;
    let channel = endpoint
        .timeout(CALL_TIMEOUT)
        .connect()
        .await
        .map_err(|error| unreachable(describe(&error)))?;
    match AdminClient::new(channel).form_group(request).await {
        Ok(response) => Ok(response.into_inner().already_formed),
        Err(status) => {
            let message = format!("{}: {}", status.code(), status.message());
            Err(match status.code() {
                tonic::Code::Unavailable
                | tonic::Code::DeadlineExceeded
                | tonic::Code::Cancelled
                | tonic::Code::Unknown => unreachable(message),
                _ => BrokerError::Refused { address, message },
            })
        }
    }
}

/// How a broker is connected to: HTTP/2 without TLS inside the pod network.
fn endpoint(address: SocketAddr) -> Result<Endpoint, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true))
}

async fn connect(address: SocketAddr) -> Result<AdminClient<Channel>, tonic::transport::Error> {
    Ok(AdminClient::new(endpoint(address)?.connect().await?))
}

/// An error with its causes; tonic's own text is only "transport error".
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
