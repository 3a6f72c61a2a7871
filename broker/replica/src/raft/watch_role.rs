//! Turns openraft's metrics into this node's role and status.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use openraft::{Instant as _, Raft, RaftMetrics, ServerState, async_runtime::watch::WatchReceiver};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    catch_up::CatchUp, group::is_joint, machine::RaftMachine, peer::Local, pulse::Pulse,
    types::TypeConfig,
};
use crate::status::{Member, NodeAddresses, PeerProgress, RaftRole, RaftStatus};
use crate::{host::end_process, metrics::Metrics};

/// How often progress is published. Role changes do not wait for it.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Silence after which a leader does not count as at work. A multiple of every sensible heartbeat
/// interval; short against [`LEADERLESS_MAX`], which decides.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// A node whose group has had no leader at work for longer is not ready.
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

impl Role {
    /// The term in which this node serves; `None` while it does not.
    pub fn serving_term(&self) -> Option<u64> {
        self.serving.then_some(self.term)
    }
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
    heard: Pulse,
    stopping: Arc<AtomicBool>,
    counters: Arc<Metrics>,
) -> Watched {
    let first = raft.metrics().borrow_watched().clone();
    let (role, role_watch) = watch::channel(role_of(&first));
    let (status, status_watch) =
        watch::channel(Arc::new(status_of(&first, local, &addresses, None)));
    let seen = Seen {
        counters,
        term: first.current_term,
        leader: None,
    };
    let follower = Follower {
        raft,
        local: local.clone(),
        addresses,
        role,
        status,
        heard,
        stopping,
        seen,
    };
    runtime.spawn(follower.run());
    Watched {
        role: role_watch,
        status: status_watch,
    }
}

/// The task that follows Raft's metrics.
struct Follower {
    raft: Raft<TypeConfig, RaftMachine>,
    local: Local,
    addresses: NodeAddresses,
    role: watch::Sender<Role>,
    status: watch::Sender<Arc<RaftStatus>>,
    heard: Pulse,
    stopping: Arc<AtomicBool>,
    seen: Seen,
}

impl Follower {
    async fn run(mut self) {
        let mut server = self.raft.server_metrics();
        let mut all = self.raft.metrics();
        let mut ticks = interval(PROGRESS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leader_seen = Instant::now();
        let mut refused_by = self.local.members.refused_by();
        let mut progress = CatchUp::default();
        loop {
            let metrics = all.borrow_and_update().clone();
            self.seen.count(&metrics);
            self.local.members.set(&metrics.membership_config);
            let refused = refused_by.borrow_and_update().clone();
            if is_led(&metrics, self.heard.age()) {
                leader_seen = Instant::now();
            }
            let lacks = progress.look(
                Instant::now(),
                metrics.current_leader.is_some(),
                metrics.last_applied.map(|id| id.index()),
                metrics.cluster_committed.map(|id| id.index()),
            );
            let reason = refused
                .or_else(|| not_ready_reason(&metrics, leader_seen.elapsed()))
                .or(lacks);
            publish(
                &metrics,
                &self.local,
                &self.addresses,
                reason,
                &self.role,
                &self.status,
            );
            // A new leader is ready as soon as the state machine has applied an entry of its term,
            // which only the full metrics tell; at other times they change with every entry.
            let leads = metrics.current_leader == Some(metrics.id);
            let becoming_leader = leads && !self.role.borrow().serving;
            drop(metrics);
            let ended = tokio::select! {
                biased;
                changed = server.changed() => changed.is_err(),
                changed = all.changed(), if becoming_leader => changed.is_err(),
                _ = refused_by.changed() => false,
                _ = ticks.tick() => false,
            };
            if ended || all.borrow_watched().running_state.is_err() {
                stopped(&all.borrow_watched().running_state, &self.stopping);
                return;
            }
        }
    }
}

/// What was counted last.
struct Seen {
    counters: Arc<Metrics>,
    term: u64,
    leader: Option<u64>,
}

impl Seen {
    /// Counts elections that this node has started and leaders that are new to it.
    fn count(&mut self, metrics: &RaftMetrics<TypeConfig>) {
        // A vote for itself in a new term is what begins an election.
        if metrics.current_term > self.term && metrics.vote.leader_id.voted_for == metrics.id {
            self.counters.raft.elections_total.inc();
        }
        self.term = metrics.current_term;
        if metrics.current_leader.is_some() && metrics.current_leader != self.leader {
            self.counters.raft.leader_changes_total.inc();
            self.leader = metrics.current_leader;
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
        end_process("raft failed");
    }
}

fn publish(
    metrics: &RaftMetrics<TypeConfig>,
    local: &Local,
    addresses: &NodeAddresses,
    not_ready_reason: Option<String>,
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
    let next = Arc::new(status_of(metrics, local, addresses, not_ready_reason));
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
            Some((id, node.address.clone()))
        });
    Role {
        term: metrics.current_term,
        serving: leads && applied_term == metrics.current_term,
        leader,
    }
}

/// Whether a leader is at work: this node with a quorum behind it, or one whose heartbeats come. Raft
/// itself remembers the leader of the term also when that has gone silent.
fn is_led(metrics: &RaftMetrics<TypeConfig>, leader_silent: Duration) -> bool {
    let Some(leader) = metrics.current_leader else {
        return false;
    };
    if leader != metrics.id {
        return leader_silent < SILENCE_MAX;
    }
    has_quorum(metrics)
}

/// Whether this node leads and has heard from a quorum of its voters lately. Only a leader can tell.
fn has_quorum(metrics: &RaftMetrics<TypeConfig>) -> bool {
    let alone = metrics.membership_config.voter_ids().count() < 2;
    let acked = metrics.last_quorum_acked.as_ref();
    let answered = alone || acked.is_some_and(|acked| acked.elapsed() < SILENCE_MAX);
    metrics.state == ServerState::Leader && answered
}

fn not_ready_reason(metrics: &RaftMetrics<TypeConfig>, leaderless: Duration) -> Option<String> {
    if metrics.membership_config.log_id().is_none() {
        return Some("waits to be formed into its group".into());
    }
    if leaderless >= LEADERLESS_MAX {
        return Some(format!(
            "no leader with a quorum for {} s",
            leaderless.as_secs()
        ));
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
                address: node.address.clone(),
                incarnation: node.incarnation.clone(),
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
        joint: is_joint(&metrics.membership_config),
        last_index: last,
        committed_index: metrics.cluster_committed.map(|id| id.index()),
        applied_index: metrics.last_applied.map(|id| id.index()),
        purged_index: metrics.purged.map(|id| id.index()),
        peers,
        ready: not_ready_reason.is_none(),
        not_ready_reason,
        addresses: addresses.clone(),
        incarnation: local.incarnation.clone(),
        initialized: metrics.membership_config.log_id().is_some(),
        has_quorum: has_quorum(metrics),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::{LogId, PeerNode, StoredMembership};

    #[test]
    fn a_leader_serves_once_it_has_applied_an_entry_of_its_own_term() {
        let mut metrics = RaftMetrics::new_initial(1);
        metrics.current_term = 5;
        metrics.state = ServerState::Leader;
        metrics.last_applied = Some(LogId::new_term_index(4, 90));
        // What its predecessor acknowledged may not be applied yet.
        assert!(!role_of(&metrics).serving);
        metrics.last_applied = Some(LogId::new_term_index(5, 91));
        assert!(role_of(&metrics).serving);
        metrics.state = ServerState::Follower;
        assert!(!role_of(&metrics).serving);
    }

    #[test]
    fn a_leader_has_a_quorum_while_one_answers() {
        let mut metrics = RaftMetrics::new_initial(1);
        let now = openraft_rt_tokio::TokioInstant::now;
        let voters = |ids: &[u64]| {
            let ids: std::collections::BTreeSet<u64> = ids.iter().copied().collect();
            let nodes = ids.iter().map(|id| (*id, PeerNode::default()));
            let nodes: std::collections::BTreeMap<u64, PeerNode> = nodes.collect();
            let membership = openraft::Membership::new(vec![ids], nodes).unwrap();
            Arc::new(StoredMembership::new(None, membership))
        };
        metrics.membership_config = voters(&[1, 2, 3]);
        metrics.state = ServerState::Leader;
        assert!(!has_quorum(&metrics), "nobody has answered yet");
        metrics.last_quorum_acked = Some(now().into());
        assert!(has_quorum(&metrics));
        // A follower cannot tell: whom it hears may be cut off from the others.
        metrics.state = ServerState::Follower;
        assert!(!has_quorum(&metrics));
        metrics.state = ServerState::Leader;
        metrics.last_quorum_acked = Some((now() - SILENCE_MAX).into());
        assert!(!has_quorum(&metrics));
        metrics.membership_config = voters(&[1]);
        assert!(has_quorum(&metrics), "a voter alone is its own quorum");
    }
}
