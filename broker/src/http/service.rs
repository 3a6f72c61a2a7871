//! The admin gRPC service: protobuf to and from [`AdminOps`].

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt as _};
use raftmq_api::admin;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status};

use super::admin::{AdminError, AdminOps};
use super::listener::IDLE_TIMEOUT;
use super::stopped;
use crate::status::{Member, PeerProgress, RaftRole, RaftStatus};

/// Bounds of the time between two messages of a status stream. Unit: ms. The upper one keeps the
/// connection clear of [`IDLE_TIMEOUT`].
const PROGRESS_INTERVAL_MS: std::ops::RangeInclusive<u32> = 100..=30_000;

/// Time between two messages of a status stream when the caller names none. Unit: ms.
const PROGRESS_INTERVAL_DEFAULT_MS: u32 = 1_000;

/// Longest run of an operation on the group. A membership change with a healthy quorum takes
/// milliseconds; after this long its outcome is unknown.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Status streams at a time: one per operator replica, console and person watching, with room to
/// spare. Reached: the call fails with RESOURCE_EXHAUSTED.
pub(super) const STREAMS_MAX: usize = 64;

/// Voters a group may have; more than the largest sensible quorum.
const VOTERS_MAX: usize = 31;

/// Longest Raft address. Unit: bytes; a DNS name of 253, a colon and a port.
const ADDRESS_BYTES_MAX: usize = 259;

/// Longest incarnation. Unit: bytes; a node makes 32 hexadecimal digits.
const INCARNATION_BYTES_MAX: usize = 64;

/// Metadata key that names the leader when this node is not it. Part of the interface.
const LEADER_KEY: &str = "raftmq-leader-id";

const _: () = assert!((*PROGRESS_INTERVAL_MS.end() as u64) < IDLE_TIMEOUT.as_millis() as u64);
const _: () = assert!(OPERATION_TIMEOUT.as_millis() < IDLE_TIMEOUT.as_millis());

/// Serves `raftmq.admin.v1.Admin`.
pub(super) struct AdminService {
    ops: Arc<dyn AdminOps>,
    streams: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
}

impl AdminService {
    /// A service over `ops` whose streams end when `stopping` turns true.
    pub(super) fn new(ops: Arc<dyn AdminOps>, stopping: watch::Receiver<bool>) -> Self {
        Self {
            ops,
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            stopping,
        }
    }
}

#[tonic::async_trait]
impl admin::admin_server::Admin for AdminService {
    type WatchStatusStream = Pin<Box<dyn Stream<Item = Result<admin::NodeStatus, Status>> + Send>>;

    async fn watch_status(
        &self,
        request: Request<admin::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let Ok(permit) = Arc::clone(&self.streams).try_acquire_owned() else {
            return Err(Status::resource_exhausted("too many status streams"));
        };
        let feed = StatusFeed::new(
            self.ops.status(),
            self.stopping.clone(),
            progress_interval(request.get_ref().progress_interval_ms),
            permit,
        );
        let messages = stream::unfold(feed, |mut feed| async move {
            let message = feed.next().await?;
            Some((message, feed))
        });
        Ok(Response::new(messages.boxed()))
    }

    async fn get_status(
        &self,
        _request: Request<admin::GetStatusRequest>,
    ) -> Result<Response<admin::NodeStatus>, Status> {
        let status = Arc::clone(&self.ops.status().borrow());
        Ok(Response::new(to_message(&status)))
    }

    async fn transfer_leader(
        &self,
        request: Request<admin::TransferLeaderRequest>,
    ) -> Result<Response<admin::TransferLeaderResponse>, Status> {
        let to = Some(request.get_ref().to).filter(|to| *to != 0);
        tracing::info!(?to, "transfer leader: asked");
        finish("transfer leader", self.ops.transfer_leader(to)).await?;
        Ok(Response::new(admin::TransferLeaderResponse {}))
    }

    async fn add_learner(
        &self,
        request: Request<admin::AddLearnerRequest>,
    ) -> Result<Response<admin::AddLearnerResponse>, Status> {
        let admin::AddLearnerRequest {
            id,
            address,
            incarnation,
        } = request.into_inner();
        let member = Member {
            id,
            address,
            incarnation,
        };
        check_member(&member).map_err(Status::invalid_argument)?;
        tracing::info!(?member, "add learner: asked");
        let Member {
            id,
            address,
            incarnation,
        } = member;
        let added = self.ops.add_learner(id, address, incarnation);
        finish("add learner", added).await?;
        Ok(Response::new(admin::AddLearnerResponse {}))
    }

    async fn form_group(
        &self,
        request: Request<admin::FormGroupRequest>,
    ) -> Result<Response<admin::FormGroupResponse>, Status> {
        let admin::FormGroupRequest {
            incarnation,
            members,
        } = request.into_inner();
        let ids: Vec<u64> = members.iter().map(|member| member.id).collect();
        check_voters(&ids).map_err(Status::invalid_argument)?;
        let members: Vec<Member> = members.into_iter().map(from_member).collect();
        for member in &members {
            check_member(member).map_err(Status::invalid_argument)?;
        }
        check_incarnation(&incarnation).map_err(Status::invalid_argument)?;
        tracing::info!(incarnation, ?members, "form group: asked");
        let formed = self.ops.form_group(incarnation, members);
        let already_formed = finish("form group", formed).await?;
        Ok(Response::new(admin::FormGroupResponse { already_formed }))
    }

    async fn change_membership(
        &self,
        request: Request<admin::ChangeMembershipRequest>,
    ) -> Result<Response<admin::ChangeMembershipResponse>, Status> {
        let voters = check_voters(&request.get_ref().voters).map_err(Status::invalid_argument)?;
        tracing::info!(?voters, "change membership: asked");
        finish("change membership", self.ops.change_membership(voters)).await?;
        Ok(Response::new(admin::ChangeMembershipResponse {}))
    }
}

/// One status stream: decides when the newest status is sent.
pub(super) struct StatusFeed {
    status: watch::Receiver<Arc<RaftStatus>>,
    stopping: watch::Receiver<bool>,
    progress: Interval,
    /// What the caller knows; `None` before the first message.
    sent: Option<Arc<RaftStatus>>,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl StatusFeed {
    /// A stream that sends at once and then at least every `period`.
    pub(super) fn new(
        status: watch::Receiver<Arc<RaftStatus>>,
        stopping: watch::Receiver<bool>,
        period: Duration,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let mut progress = interval(period);
        // A reader that was blocked for a while gets one message, not one per missed period.
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            status,
            stopping,
            progress,
            sent: None,
            ended: false,
            _permit: permit,
        }
    }

    /// Waits for the next message; `None` after the one that says why the stream ends.
    pub(super) async fn next(&mut self) -> Option<Result<admin::NodeStatus, Status>> {
        if self.ended {
            return None;
        }
        loop {
            let due = tokio::select! {
                biased;
                () = stopped(&mut self.stopping) => None,
                _ = self.progress.tick() => Some(true),
                changed = self.status.changed() => changed.ok().map(|()| false),
            };
            let Some(due) = due else {
                self.ended = true;
                return Some(Err(Status::unavailable("the node is stopping")));
            };
            let newest = Arc::clone(&self.status.borrow_and_update());
            let is_news = match &self.sent {
                Some(sent) => newest.differs_beyond_progress(sent),
                None => true,
            };
            if due || is_news {
                self.progress.reset();
                let message = to_message(&newest);
                self.sent = Some(newest);
                return Some(Ok(message));
            }
        }
    }
}

/// Waits for an operation, bounds it and turns its failure into a gRPC status.
async fn finish<T>(
    what: &'static str,
    operation: impl Future<Output = Result<T, AdminError>>,
) -> Result<T, Status> {
    let result = match timeout(OPERATION_TIMEOUT, operation).await {
        Ok(result) => result,
        Err(_) => Err(AdminError::Unknown(format!(
            "not finished in {} s",
            OPERATION_TIMEOUT.as_secs()
        ))),
    };
    match &result {
        Ok(_) => tracing::info!("{what}: done"),
        Err(error) => tracing::warn!(%error, "{what}: failed"),
    }
    result.map_err(|error| to_grpc_status(&error))
}

fn to_grpc_status(error: &AdminError) -> Status {
    let code = match error {
        AdminError::NotLeader { .. } | AdminError::Precondition(_) => Code::FailedPrecondition,
        AdminError::Invalid(_) => Code::InvalidArgument,
        AdminError::Busy(_) => Code::Aborted,
        AdminError::Unavailable(_) => Code::Unavailable,
        AdminError::Unknown(_) => Code::DeadlineExceeded,
        AdminError::Fatal(_) => Code::Internal,
    };
    let mut status = Status::new(code, error.to_string());
    if let AdminError::NotLeader {
        leader: Some(leader),
    } = error
    {
        let leader = MetadataValue::from(*leader);
        status.metadata_mut().insert(LEADER_KEY, leader);
    }
    status
}

/// The time between two messages that a request asks for.
pub(super) fn progress_interval(asked_ms: u32) -> Duration {
    let interval_ms = match asked_ms {
        0 => PROGRESS_INTERVAL_DEFAULT_MS,
        _ => asked_ms.clamp(*PROGRESS_INTERVAL_MS.start(), *PROGRESS_INTERVAL_MS.end()),
    };
    Duration::from_millis(interval_ms.into())
}

/// Accepts `host:port`, where the host is a name, an IPv4 address or an IPv6 address in brackets.
pub(super) fn check_address(address: &str) -> Result<(), String> {
    let well_formed = address.len() <= ADDRESS_BYTES_MAX
        && address.rsplit_once(':').is_some_and(|(host, port)| {
            let bracketed = host.starts_with('[') && host.ends_with(']');
            !host.is_empty()
                && (bracketed || !host.contains(':'))
                && host.chars().all(|char| char.is_ascii_graphic())
                && port.parse::<u16>().is_ok_and(|port| port != 0)
        });
    if well_formed {
        return Ok(());
    }
    let shown: String = address.chars().take(ADDRESS_BYTES_MAX).collect();
    Err(format!("address must be host:port, not '{shown}'"))
}

/// Accepts a text of visible characters, or none.
pub(super) fn check_incarnation(incarnation: &str) -> Result<(), String> {
    let well_formed = incarnation.len() <= INCARNATION_BYTES_MAX
        && incarnation.chars().all(|char| char.is_ascii_graphic());
    if well_formed {
        return Ok(());
    }
    Err(format!(
        "incarnation must be at most {INCARNATION_BYTES_MAX} visible ASCII characters"
    ))
}

fn check_member(member: &Member) -> Result<(), String> {
    if member.id == 0 {
        return Err("id must be 1 or more".to_owned());
    }
    check_address(&member.address)?;
    check_incarnation(&member.incarnation)
}

/// Accepts 1 to [`VOTERS_MAX`] node ids without 0 and without repetition.
pub(super) fn check_voters(voters: &[u64]) -> Result<BTreeSet<u64>, String> {
    if voters.is_empty() || voters.len() > VOTERS_MAX {
        return Err(format!(
            "voters must be 1 to {VOTERS_MAX}, not {}",
            voters.len()
        ));
    }
    let unique: BTreeSet<u64> = voters.iter().copied().collect();
    if unique.len() != voters.len() || unique.contains(&0) {
        return Err("voters must be different node ids of 1 or more".to_owned());
    }
    Ok(unique)
}

fn to_message(status: &RaftStatus) -> admin::NodeStatus {
    let role = match status.role {
        RaftRole::Leader => admin::Role::Leader,
        RaftRole::Follower => admin::Role::Follower,
        RaftRole::Candidate => admin::Role::Candidate,
        RaftRole::Learner => admin::Role::Learner,
    };
    admin::NodeStatus {
        cluster: status.cluster.clone(),
        group: status.group.clone(),
        node_id: status.node_id,
        role: role.into(),
        term: status.term,
        leader_id: status.leader_id,
        voters: status.voters.iter().map(to_member).collect(),
        learners: status.learners.iter().map(to_member).collect(),
        last_index: status.last_index,
        committed_index: status.committed_index,
        applied_index: status.applied_index,
        purged_index: status.purged_index,
        peers: status.peers.iter().map(to_peer).collect(),
        ready: status.ready,
        not_ready_reason: status.not_ready_reason.clone().unwrap_or_default(),
        addresses: Some(admin::NodeAddresses {
            broker: status.addresses.broker.clone(),
            raft: status.addresses.raft.clone(),
            http: status.addresses.http.clone(),
        }),
        incarnation: status.incarnation.clone(),
        initialized: status.initialized,
        has_quorum: status.has_quorum,
        joint: status.joint,
    }
}

fn from_member(member: admin::Member) -> Member {
    Member {
        id: member.id,
        address: member.address,
        incarnation: member.incarnation,
    }
}

fn to_member(member: &Member) -> admin::Member {
    admin::Member {
        id: member.id,
        address: member.address.clone(),
        incarnation: member.incarnation.clone(),
    }
}

fn to_peer(peer: &PeerProgress) -> admin::PeerProgress {
    admin::PeerProgress {
        id: peer.id,
        matched_index: peer.matched_index,
        lag_entries: peer.lag_entries,
    }
}
