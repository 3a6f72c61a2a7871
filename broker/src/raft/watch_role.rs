//! Turns openraft's metrics into this node's role and status.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use openraft::{Raft, RaftMetrics, ServerState, async_runtime::watch::WatchReceiver};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{machine::RaftMachine, peer::Local, types::TypeConfig};
use crate::status::{Member, NodeAddresses, PeerProgress, RaftRole, RaftStatus};

/// How often progress is published. Role changes do not wait for it.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// A follower that has not heard of a leader for longer is not ready.
const LEADERLESS_MAX: Duration = Duration::from_secs(5);

/// What this node is to clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// Current term.
    pub term: u64,
    /// Whether this node leads and has applied an entry of its own term: only then does its
    /// state contain everything that was acknowledged before.
    pub serving: bool,
    /// Node id and Raft address of another node that leads.
    pub leader: Option<(u64, String)>,
}

pub(super) struct Watched {
    pub role: watch::Receiver<Role>,
    pub status: watch::Receiver<Arc<RaftStatus>>,
}

/// Starts the task that follows Raft's metrics.
pub(super) fn start(
    runtime: &Handle,
    raft: Raft<TypeConfig, RaftMachine>,
    local: &Local,
    addresses: NodeAddresses,
    stopping: Arc<AtomicBool>,
) -> Watched {
    let first = raft.metrics().borrow_watched().clone();
    let (role, role_watch) = watch::channel(role_of(&first));
    let (status, status_watch) =
        watch::channel(Arc::new(status_of(&first, local, &addresses, None)));
    runtime.spawn(follow(
        raft,
        local.clone(),
        addresses,
        role,
        status,
        stopping,
    ));
    Watched {
        role: role_watch,
        status: status_watch,
    }
}

async fn follow(
    raft: Raft<TypeConfig, RaftMachine>,
    local: Local,
    addresses: NodeAddresses,
    role: watch::Sender<Role>,
    status: watch::Sender<Arc<RaftStatus>>,
    stopping: Arc<AtomicBool>,
) {
    let mut server = raft.server_metrics();
    let mut all = raft.metrics();
    let mut ticks = interval(PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leader_seen = Instant::now();
    loop {
        let metrics = all.borrow_and_update().clone();
        if metrics.current_leader.is_some() {
            leader_seen = Instant::now();
        }
        publish(
            &metrics,
            &local,
            &addresses,
            leader_seen.elapsed(),
            &role,
            &status,
        );
        // A new leader is ready as soon as the state machine has applied an entry of its term,
        // which only the full metrics tell; at other times they change with every entry.
        let becoming_leader = metrics.current_leader == Some(metrics.id) && !role.borrow().serving;
        drop(metrics);
        let ended = tokio::select! {
            biased;
            changed = server.changed() => changed.is_err(),
            changed = all.changed(), if becoming_leader => changed.is_err(),
            _ = ticks.tick() => false,
        };
        if ended || all.borrow_watched().running_state.is_err() {
            stopped(&all.borrow_watched().running_state, &stopping);
            return;
        }
    }
}

/// Raft's tasks have ended. If nobody asked them to, something broke: the log may not be touched
/// again by this process, so it ends at once, and recovery decides at the next start.
fn stopped(state: &Result<(), openraft::errors::Fatal<TypeConfig>>, stopping: &AtomicBool) {
    if stopping.load(Ordering::SeqCst) {
        tracing::info!("raft stopped");
    } else {
        tracing::error!(?state, "raft failed; the process ends");
        std::process::abort();
    }
}

fn publish(
    metrics: &RaftMetrics<TypeConfig>,
    local: &Local,
    addresses: &NodeAddresses,
    leaderless: Duration,
    role: &watch::Sender<Role>,
    status: &watch::Sender<Arc<RaftStatus>>,
) {
    role.send_if_modified(|current| {
        let next = role_of(metrics);
        let changed = *current != next;
        if changed {
            tracing::info!(
                term = next.term,
                serving = next.serving,
                leader = ?next.leader.as_ref().map(|leader| leader.0),
                "role"
            );
            *current = next;
        }
        changed
    });
    let reason = not_ready_reason(metrics, leaderless);
    let next = Arc::new(status_of(metrics, local, addresses, reason));
    status.send_if_modified(|current| {
        let changed = *current != next;
        *current = next;
        changed
    });
}

fn role_of(metrics: &RaftMetrics<TypeConfig>) -> Role {
    let leads = metrics.state == ServerState::Leader;
    let applied_term = metrics
        .last_applied
        .map(|id| id.committed_leader_id().term)
        .unwrap_or_default();
    let leader = metrics
        .current_leader
        .filter(|id| *id != metrics.id)
        .and_then(|id| {
            let node = metrics.membership_config.get_node(&id)?;
            Some((id, node.addr.clone()))
        });
    Role {
        term: metrics.current_term,
        serving: leads && applied_term == metrics.current_term,
        leader,
    }
}

fn not_ready_reason(metrics: &RaftMetrics<TypeConfig>, leaderless: Duration) -> Option<String> {
    if metrics.current_leader.is_none() && leaderless >= LEADERLESS_MAX {
        return Some(format!("no leader for {} s", leaderless.as_secs()));
    }
    let id = metrics.id;
    if metrics.membership_config.get_node(&id).is_none() {
        return Some(format!("node {id} is not a member of the group yet"));
    }
    if metrics.last_applied.is_none() {
        return Some("nothing applied yet".into());
    }
    None
}

fn status_of(
    metrics: &RaftMetrics<TypeConfig>,
    local: &Local,
    addresses: &NodeAddresses,
    not_ready_reason: Option<String>,
) -> RaftStatus {
    let voters: Vec<u64> = metrics.membership_config.voter_ids().collect();
    let members = |voting: bool| {
        metrics
            .membership_config
            .nodes()
            .filter(|(id, _)| voters.contains(id) == voting)
            .map(|(id, node)| Member {
                id: *id,
                address: node.addr.clone(),
            })
            .collect()
    };
    let last = metrics.last_log_index;
    let peers = metrics
        .replication
        .iter()
        .flatten()
        .filter(|(id, _)| **id != metrics.id);
    let peers = peers
        .map(|(id, matched)| {
            let matched_index = matched.map(|id| id.index());
            let next = |index: Option<u64>| index.map_or(0, |index| index + 1);
            PeerProgress {
                id: *id,
                matched_index,
                lag_entries: next(last).saturating_sub(next(matched_index)),
            }
        })
        .collect();
    let role = match metrics.state {
        ServerState::Leader if role_of(metrics).serving => RaftRole::Leader,
        ServerState::Leader | ServerState::Candidate => RaftRole::Candidate,
        ServerState::Learner if !voters.contains(&metrics.id) => RaftRole::Learner,
        ServerState::Learner | ServerState::Follower | ServerState::Shutdown => RaftRole::Follower,
    };
    RaftStatus {
        cluster: local.cluster.clone(),
        group: local.group.clone(),
        node_id: metrics.id,
        role,
        term: metrics.current_term,
        leader_id: metrics.current_leader,
        voters: members(true),
        learners: members(false),
        last_index: last,
        committed_index: metrics.cluster_committed.map(|id| id.index()),
        applied_index: metrics.last_applied.map(|id| id.index()),
        purged_index: metrics.purged.map(|id| id.index()),
        peers,
        ready: not_ready_reason.is_none(),
        not_ready_reason,
        addresses: addresses.clone(),
    }
}
