//! Consensus: the only folder that names openraft.
//!
//! [`Consensus`] is what the rest of the broker sees: propose a batch, watch the role, forward a
//! request to the leader, change the group. Raft's tasks run on a runtime of their own with one
//! thread, so that a burst of client work never delays a heartbeat.

mod append_stream;
mod boundary;
mod candidacy;
mod candidate;
mod catch_up;
mod confirm;
mod dead_leader;
mod forward;
pub mod fuzzing;
mod gate;
mod group;
mod guard;
mod intake;
mod log_store;
#[cfg(test)]
mod long_poll_test;
mod machine;
mod members;
mod mend;
mod peer;
mod pulse;
mod repair;
mod repair_checkpoint;
mod runtime;
mod server;
mod snapshot_intake;
mod start;
#[cfg(test)]
mod suite_test;
mod transfer;
mod transport;
mod types;
mod watch_role;
mod wire;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use openraft::{Raft, async_runtime::watch::WatchReceiver, errors::ClientWriteError};
use raftmq_remoting::RemotingCommand;
use raftmq_state::Reply;
use raftmq_store::CommitLog;
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    time::{Instant, sleep},
};

use self::{
    candidate::Candidate,
    confirm::Confirmer,
    forward::Forwarder,
    guard::VoteGuard,
    log_store::{LogStore, SnapshotBoundary},
    machine::{RaftMachine, SnapshotTarget},
    peer::Local,
    pulse::{Patience, Pulse},
    runtime::observe_polls,
    server::RaftServer,
    snapshot_intake::SnapshotIntake,
    start::{raft_config, raft_machine, serve_peers, start_raft, start_runtime},
    transfer::Transfers,
    transport::Transport,
    types::{Batch, Callback, TypeConfig},
};
pub use self::{
    candidate::Stalls,
    gate::IntakeGate,
    repair::{Asked, RepairPeers, RepairSource, blocking},
    runtime::timed,
};
pub use self::{
    forward::{ForwardError, ForwardHandler, ForwardOutcome},
    watch_role::Role,
};
use crate::{
    checkpoint::{Checkpoints, MembershipRecord},
    config::RaftConfig,
    disk_guard::{RoomLimits, room},
    host,
    machine::Machine,
    metrics::Metrics,
    net::{Listener, Net},
    status::{NodeAddresses, RaftStatus},
};

/// Log filter of the engine, which tells every step at info.
pub const RAFT_LOG_FILTER: &str = "openraft=error";
/// Pause between looks whether Raft has taken a snapshot or purged.
const PURGE_POLL: Duration = Duration::from_millis(1);
/// How long the answer of a deposed leader is waited for once its successor is known. One that hands
/// over answers what it has taken within milliseconds.
const LATE_ANSWER_MAX: Duration = Duration::from_millis(300);
/// Pause between two questions whether Raft still answers.
const PULSE_PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for Raft to turn a checkpoint into its snapshot, and then to purge the log.
const PURGE_STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a proposed batch was not applied, named by what the caller may do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The batch is not in the log: it may be sent to the leader.
    #[error("not the leader")]
    NotLeader,
    /// The batch may or may not be applied later.
    #[error("outcome unknown: {0}")]
    Unknown(&'static str),
    /// This node cannot go on.
    #[error("raft stopped: {0}")]
    Stopped(String),
}

/// Why a change of the group did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Only the leader can do it.
    #[error("this node does not lead; ask the leader")]
    NotLeader,
    /// It did not finish in time.
    #[error("{0} did not finish in {1:?}")]
    Timeout(&'static str, Duration),
    /// The request makes no sense for this group.
    #[error("{0}")]
    Invalid(String),
    /// The node or group is not the one that the request is meant for.
    #[error("{0}")]
    Precondition(String),
    /// Another one is under way. Nothing was done.
    #[error("{0} is under way")]
    Busy(&'static str),
    /// Raft refused.
    #[error("raft: {0}")]
    Raft(String),
}

/// What consensus is started with.
pub struct ConsensusParts {
    /// `brokerClusterName`.
    pub cluster: String,
    /// Group, peers and timings.
    pub raft: RaftConfig,
    /// Incarnation of the data folder.
    pub incarnation: String,
    /// Where this node is reached; for its status.
    pub addresses: NodeAddresses,
    /// Network.
    pub net: Arc<dyn Net>,
    /// Bound Raft port.
    pub listener: Box<dyn Listener>,
    /// Replicated data, restored from the newest checkpoint.
    pub machine: Arc<Machine>,
    /// Checkpoints on disk.
    pub checkpoints: Arc<Checkpoints>,
    /// Term and index the data was restored at.
    pub applied: Option<raftmq_store::LogId>,
    /// Membership at that point.
    pub membership: MembershipRecord,
    /// Address the checkpoint covers the log up to.
    pub checkpoint_physical: u64,
    /// Receives requests that other replicas forward to this node.
    pub forwards: Arc<dyn ForwardHandler>,
    /// Room that must be left in the log for what.
    pub room: RoomLimits,
    /// Prometheus metrics.
    pub metrics: Arc<Metrics>,
}

impl std::fmt::Debug for ConsensusParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsensusParts")
            .field("raft", &self.raft)
            .finish_non_exhaustive()
    }
}

/// This node's part in its Raft group.
#[derive(Debug)]
pub struct Consensus {
    raft: Raft<TypeConfig, RaftMachine>,
    local: Local,
    log: Arc<CommitLog>,
    runtime: Handle,
    role: watch::Receiver<Role>,
    status: watch::Receiver<Arc<RaftStatus>>,
    forwarder: Forwarder,
    confirmer: Arc<Confirmer>,
    guard: Arc<VoteGuard>,
    snapshot_target: SnapshotTarget,
    checkpoints: Arc<Checkpoints>,
    /// Set before Raft is stopped on purpose.
    stopping: Arc<AtomicBool>,
    transfers: Arc<Transfers>,
    stalls: Arc<Stalls>,
    /// Held during a change of the members.
    changing: Arc<tokio::sync::Mutex<()>>,
    pulse: Pulse,
    /// Held while the group is formed: two calls at a time must not both find no group.
    forming: Arc<tokio::sync::Mutex<()>>,
    /// Dropped at the end: the runtime thread then stops.
    _stop: oneshot::Sender<()>,
}

impl Consensus {
    /// Starts Raft over the restored data and forms the group on first start.
    ///
    /// # Errors
    /// When the timings are impossible, a thread cannot be started, or Raft finds its storage
    /// inconsistent.
    pub async fn start(parts: ConsensusParts) -> Result<Arc<Self>, io::Error> {
        let (runtime, stop) = start_runtime()?;
        observe_polls(&runtime, &parts.metrics.raft.long_poll_seconds);
        let may_lead = may_lead(&parts) && !parts.machine.log().is_guarded();
        let config = raft_config(&parts.cluster, &parts.raft, may_lead)?;
        let heard = Pulse::new();
        let transport = transport(&parts, Patience::new(&runtime, &heard, &parts.raft));
        let local = transport.local.clone();
        let boundary = SnapshotBoundary::default();
        let log = Arc::clone(parts.machine.log());
        let (machine, snapshot_target) = raft_machine(&parts, &boundary)?;
        mend::start(&runtime, &transport, &parts);
        let store = LogStore::new(Arc::clone(&log), Arc::clone(&boundary), local.id);
        let raft = start_raft(&runtime, config, &transport, store, machine).await?;
        let guard = VoteGuard::start(&runtime, &raft, &transport, &parts);
        let candidate = Candidate::new(local.id, &raft, &guard, &log);
        let stalls = Arc::clone(&candidate.stalls);
        let server = RaftServer {
            raft: raft.clone(),
            local: local.clone(),
            formation: parts.raft.formation,
            boundary,
            snapshots: SnapshotIntake::default(),
            guard: Arc::clone(&guard),
            candidate,
            forwards: parts.forwards,
            heard: heard.clone(),
            log: Arc::clone(&log),
            checkpoints: Arc::clone(&parts.checkpoints),
            room: parts.room,
            metrics: Arc::clone(&parts.metrics),
        };
        let confirmer = Confirmer::new(raft.clone(), local.id, transport.clone(), runtime.clone());
        let stopping = Arc::<AtomicBool>::default();
        let pulse = pulse_of(&runtime, raft.clone());
        let watched = watch_role::start(
            &runtime,
            raft.clone(),
            &local,
            parts.addresses,
            heard,
            Arc::clone(&stopping),
            parts.metrics,
        );
        let consensus = Arc::new(Self {
            transfers: Transfers::new(&raft, &transport, &runtime, &watched.role),
            changing: group::finish_changes(&runtime, &raft),
            raft,
            local,
            log,
            confirmer,
            guard,
            forwarder: Forwarder::new(transport, runtime.clone()),
            runtime: runtime.clone(),
            role: watched.role,
            status: watched.status,
            snapshot_target,
            checkpoints: parts.checkpoints,
            stopping,
            stalls,
            pulse,
            forming: Arc::default(),
            _stop: stop,
        });
        // Before the first vote: a node that has the first entry knows who belongs to the group.
        consensus.form_group_of_peers(&parts.raft).await?;
        serve_peers(&runtime, server, parts.listener);
        Ok(consensus)
    }

    /// Runs tasks next to Raft's: what talks to it for every batch saves a wake-up across threads.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// This node's role. Changes when a leader is elected, lost, or ready to serve.
    pub fn role(&self) -> watch::Receiver<Role> {
        self.role.clone()
    }

    /// Everything known about the group; changes of the role at once, progress a few times a second.
    pub fn status(&self) -> watch::Receiver<Arc<RaftStatus>> {
        self.status.clone()
    }

    /// Lets this node stand for election, or not: a leader must be able to write.
    pub fn stand_for_election(&self, may: bool) {
        self.guard.stand(may);
    }

    /// Through which new batches go to Raft, unless the leadership moves.
    pub fn intake(&self) -> IntakeGate {
        self.transfers.intake.clone()
    }

    /// Proposes a batch of `count` commands. `done` runs exactly once, on the task that applies
    /// the batch or finds that it cannot be. With a `term` it is proposed in that one only.
    pub async fn propose(
        &self,
        payload: Bytes,
        count: u32,
        term: Option<u64>,
        done: impl FnOnce(Result<Vec<Reply>, ProposeError>) + Send + 'static,
    ) {
        let batch = Batch {
            payload,
            count,
            physical_offset: 0,
        };
        let done = Arc::new(std::sync::Mutex::new(Some(done)));
        let finish = move |result| {
            let done = done
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .take();
            if let Some(done) = done {
                done(result);
            }
        };
        let refuse = finish.clone();
        let responder = Callback::new(
            move |result: openraft::raft::ClientWriteResult<TypeConfig>| {
                finish(match result {
                    Ok(response) => Ok(response.data.0),
                    Err(ClientWriteError::ForwardToLeader(_)) => Err(ProposeError::NotLeader),
                    Err(ClientWriteError::LogEntryDiscarded(_)) => Err(ProposeError::Unknown(
                        "the leader changed before the entry was committed",
                    )),
                    Err(error) => Err(ProposeError::Stopped(error.to_string())),
                });
            },
        );
        let write = self.raft.write(batch).responder(responder);
        let write = match term {
            Some(term) => write.with_leader(term),
            None => write,
        };
        if let Err(fatal) = write.await {
            refuse(Err(ProposeError::Stopped(fatal.to_string())));
        }
    }

    /// The term in which a quorum confirms that this node leads now. A leader that was cut off or
    /// paused does not know at once that it was replaced: until then it would answer with what was
    /// true before.
    pub async fn confirm_leadership(&self) -> Option<u64> {
        self.confirmer.confirm().await
    }

    /// Sends a client's request to the current leader and waits for its answer until `deadline`. May
    /// be dropped at any time.
    ///
    /// # Errors
    /// When there is no leader, it cannot be reached, or does not answer in time.
    pub async fn forward(
        &self,
        peer: SocketAddr,
        command: &RemotingCommand,
        deadline: Instant,
    ) -> Result<Option<RemotingCommand>, ForwardError> {
        let mut role = self.role.clone();
        let leader = role.borrow_and_update().leader.clone();
        let Some((leader, address)) = leader else {
            return Err(ForwardError::NotLeader);
        };
        let superseded = superseded(role, leader);
        self.forwarder
            .forward((leader, &address), (peer, command), superseded, deadline)
            .await
    }

    /// Hands the leadership to `to`, or to the follower that has most of the log and may lead; who
    /// leads in the end. New batches wait meanwhile, so that no send fails. If nobody takes over,
    /// this node goes on leading. Also done if the caller goes away.
    ///
    /// # Errors
    /// When this node does not lead, `to` is not another voter, or nobody takes over in time.
    pub async fn transfer_leader(&self, to: Option<u64>) -> Result<u64, ChangeError> {
        self.transfers.hand_over(to, 0).await
    }

    /// As [`Self::transfer_leader`], to a follower whose disk is better than this node's.
    ///
    /// # Errors
    /// As there.
    pub async fn leave_stalled_disk(&self) -> Result<u64, ChangeError> {
        let in_a_row = self.stalls.in_a_row().saturating_add(1);
        let moved = self.transfers.hand_over(None, in_a_row).await;
        // Also if nobody took over: it is not tried again at once.
        self.stalls.note(in_a_row, true);
        moved
    }

    /// Hand-overs because of stalled disks.
    pub fn stalls(&self) -> &Stalls {
        &self.stalls
    }

    /// Purges the log up to the checkpoint at `index`: makes it Raft's snapshot first, so that a
    /// node that is further behind can be brought up to date from it. Returns when the segments
    /// are gone.
    ///
    /// # Errors
    /// When the checkpoint is damaged, or Raft stopped or does not take the snapshot.
    pub async fn purge(&self, index: u64) -> Result<(), ChangeError> {
        let fatal =
            |error: openraft::errors::Fatal<TypeConfig>| ChangeError::Raft(error.to_string());
        let checkpoints = Arc::clone(&self.checkpoints);
        let verified = host::blocking(move || checkpoints.verify(index)).await;
        let invalid = |error: String| ChangeError::Invalid(format!("checkpoint {index}: {error}"));
        verified
            .map_err(|error| invalid(error.to_string()))?
            .map_err(|error| invalid(error.to_string()))?;
        // A snapshot from the leader may have come meanwhile: then this purge has been done.
        self.snapshot_target.raise(index);
        self.raft.trigger().snapshot().await.map_err(fatal)?;
        self.await_metrics("snapshot", |metrics| {
            metrics.snapshot.is_some_and(|id| id.index() >= index)
        })
        .await?;
        self.raft.trigger().purge_log(index).await.map_err(fatal)?;
        self.await_metrics("purge", |metrics| {
            metrics.purged.is_some_and(|id| id.index() >= index)
        })
        .await
    }

    async fn await_metrics(
        &self,
        what: &'static str,
        reached: impl Fn(&openraft::RaftMetrics<TypeConfig>) -> bool,
    ) -> Result<(), ChangeError> {
        let deadline = Instant::now() + PURGE_STEP_TIMEOUT;
        let metrics = self.raft.metrics();
        while !reached(&metrics.borrow_watched()) {
            if Instant::now() >= deadline {
                return Err(ChangeError::Timeout(what, PURGE_STEP_TIMEOUT));
            }
            sleep(PURGE_POLL).await;
        }
        Ok(())
    }

    /// How long Raft's tasks and the state machine have not answered; a second when all is well.
    #[must_use]
    pub fn silent_for(&self) -> Duration {
        self.pulse.age()
    }

    /// Checkpoints on disk; the retention chooses among their roll points.
    #[must_use]
    pub fn checkpoints(&self) -> &Arc<Checkpoints> {
        &self.checkpoints
    }

    /// Stops Raft's tasks. Sends that are under way end with "outcome unknown".
    pub async fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Whoever waits for a damaged entry must not hold the stop up.
        self.log.set_repairable(false);
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "stop raft");
        }
    }
}

/// How this node talks to its peers.
fn transport(parts: &ConsensusParts, patience: Patience) -> Transport {
    let local = Local::new(
        &parts.cluster,
        &parts.raft,
        &parts.incarnation,
        &parts.metrics,
    );
    Transport::new(&parts.net, &local, patience)
}

/// Whether the disk has room for the entries of a leader.
fn may_lead(parts: &ConsensusParts) -> bool {
    room(parts.machine.log()) >= parts.room.election_room
}

/// Ready when another node has led for long enough that `leader` would have answered.
async fn superseded(mut role: watch::Receiver<Role>, leader: u64) {
    let leads_now = |role: &Role| {
        let other = role.leader.as_ref().is_some_and(|(id, _)| *id != leader);
        role.serving || other
    };
    // An error means that the process is stopping; then connections end as well.
    if role.wait_for(leads_now).await.is_err() {
        std::future::pending::<()>().await;
    }
    sleep(LATE_ANSWER_MAX).await;
}

/// Whether Raft still answers, for the liveness probe.
fn pulse_of(runtime: &Handle, raft: Raft<TypeConfig, RaftMachine>) -> Pulse {
    Pulse::start(runtime, PULSE_PAUSE, move || answers(raft.clone()))
}

/// Waits until Raft's core and the state machine have answered; false when they have stopped.
async fn answers(raft: Raft<TypeConfig, RaftMachine>) -> bool {
    raft.with_raft_state(|_| ()).await.is_ok()
        && raft
            .with_state_machine(|_| Box::pin(async {}))
            .await
            .is_ok()
}
