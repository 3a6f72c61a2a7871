//! Handing the leadership over.
//!
//! openraft's own transfer gives the term away whatever becomes of the target (0.10.0-alpha.37): the
//! leader takes no writes and sends no heartbeats any more, and if the target is gone, the group
//! waits for an election. Here the leader goes on leading until another node has been elected, and a
//! hand-over that fails costs a pause of the intake:
//!
//! 1. The voters are asked whether they may lead; those that do not answer at once are left out.
//! 2. The target catches up while the intake is open, as far as it can.
//! 3. The intake is held back, and the target gets the rest.
//! 4. It is asked to stand for election, which it does at once if the leader is still the same.
//!
//! If it does not lead soon, the intake opens and the next voter is tried. All of it runs in a task
//! of its own: whoever asked may go away.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesOrdered};
use openraft::{
    Raft, RaftMetrics, async_runtime::watch::WatchReceiver, raft::TransferLeaderRequest,
};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{
    ChangeError, Role,
    gate::IntakeGate,
    machine::RaftMachine,
    transport::{PeerClient, Transport},
    types::{LogId, PeerNode, TypeConfig, Vote},
};

/// Longest hand-over. Clients wait as long for an answer.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for the word of a voter that it may lead. One that is well answers within
/// milliseconds; the others are not worth waiting for.
const WORD_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest pause of the intake for one target: an election by request takes two syncs and two round
/// trips, on a busy machine some tenths of a second. Two targets fit into [`TRANSFER_TIMEOUT`].
const HOLD_MAX: Duration = Duration::from_millis(1_500);

/// Hands the leadership of this node over, one call at a time.
pub(super) struct Transfers {
    raft: Raft<TypeConfig, RaftMachine>,
    transport: Transport,
    runtime: Handle,
    role: watch::Receiver<Role>,
    /// Held back while the leadership moves.
    pub intake: IntakeGate,
    /// Held during a hand-over.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for Transfers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transfers").finish_non_exhaustive()
    }
}

/// Another voter that may lead, by its own word.
struct Target {
    id: u64,
    client: PeerClient,
}

impl Transfers {
    pub(super) fn new(
        raft: &Raft<TypeConfig, RaftMachine>,
        transport: &Transport,
        runtime: &Handle,
        role: &watch::Receiver<Role>,
    ) -> Arc<Self> {
        Arc::new(Self {
            raft: raft.clone(),
            transport: transport.clone(),
            runtime: runtime.clone(),
            role: role.clone(),
            intake: IntakeGate::default(),
            turn: Arc::default(),
        })
    }

    /// Makes `to` lead, or the voter that has most of the log and may lead; who leads in the end.
    /// `stalls`: number in a row of the stalled disk that is the reason, 0 for another reason. A call
    /// that is dropped before its turn has done nothing; later, it is carried out all the same.
    pub(super) async fn hand_over(
        self: &Arc<Self>,
        to: Option<u64>,
        stalls: u8,
    ) -> Result<u64, ChangeError> {
        let deadline = Instant::now() + TRANSFER_TIMEOUT;
        let turn = timeout_at(deadline, Arc::clone(&self.turn).lock_owned());
        let turn = turn
            .await
            .map_err(|_| ChangeError::Busy("another hand-over"))?;
        let this = Arc::clone(self);
        let work = async move {
            let result = timeout_at(deadline, this.run(to, stalls)).await;
            drop(turn);
            result.unwrap_or(Err(ChangeError::Timeout("hand-over", TRANSFER_TIMEOUT)))
        };
        let done = self.runtime.spawn(work).await;
        done.unwrap_or_else(|error| Err(ChangeError::Raft(error.to_string())))
    }

    async fn run(&self, to: Option<u64>, stalls: u8) -> Result<u64, ChangeError> {
        let (vote, _) = self.state().await?;
        let voters = self.others(to)?;
        let words = voters.into_iter().map(|(id, node)| {
            let mut client = self.transport.control_client(id, &node);
            async move {
                let word = client.may_lead(stalls, WORD_TIMEOUT).await;
                word.map(|()| Target { id, client })
            }
        });
        let mut words: FuturesOrdered<_> = words.collect();
        let mut refusals = Vec::new();
        while let Some(word) = words.next().await {
            let mut tried = match word {
                Ok(target) => self.try_target(target, vote, stalls).await,
                Err(reason) => Err(reason),
            };
            // Also a node that nobody has heard of again may have been elected.
            if tried.is_err() && self.state().await.map(|state| state.0).ok() != Some(vote) {
                tried = self.successor(vote).await;
            }
            match tried {
                Ok(leader) if to.is_none_or(|to| to == leader) => return Ok(leader),
                Ok(leader) => {
                    return Err(ChangeError::Raft(format!("node {leader} leads instead")));
                }
                Err(reason) => {
                    tracing::info!(reason, "hand over");
                    refusals.push(reason);
                }
            }
        }
        let reasons = refusals.join("; ");
        Err(ChangeError::Raft(format!("nobody takes over: {reasons}")))
    }

    /// This node's vote and the end of its log, if it leads.
    async fn state(&self) -> Result<(Vote, Option<LogId>), ChangeError> {
        let own = self.transport.local.id;
        let state = self
            .raft
            .with_raft_state(|state| (*state.vote_ref(), state.log_ids.last().copied()));
        let (vote, last) = state
            .await
            .map_err(|error| ChangeError::Raft(error.to_string()))?;
        if !vote.committed || vote.leader_id.voted_for != own {
            return Err(ChangeError::NotLeader);
        }
        Ok((vote, last))
    }

    /// The voter that is asked for, or all others; those with most of the log come first.
    fn others(&self, to: Option<u64>) -> Result<Vec<(u64, PeerNode)>, ChangeError> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.current_leader != Some(metrics.id) {
            return Err(ChangeError::NotLeader);
        }
        let membership = &metrics.membership_config;
        let others = membership.voter_ids().filter(|id| *id != metrics.id);
        let mut others: Vec<(u64, PeerNode)> = others
            .filter(|id| to.is_none_or(|to| to == *id))
            .filter_map(|id| Some((id, membership.get_node(&id)?.clone())))
            .collect();
        others.sort_by_key(|(id, _)| (std::cmp::Reverse(matched(&metrics, *id)), *id));
        match (others.is_empty(), to) {
            (false, _) => Ok(others),
            (true, None) => Err(ChangeError::Invalid("the group has no other voter".into())),
            (true, Some(id)) => Err(ChangeError::Invalid(format!(
                "node {id} is not another voter"
            ))),
        }
    }

    /// Lets one node take over. Who leads then; or why this node leads still.
    async fn try_target(&self, target: Target, vote: Vote, stalls: u8) -> Result<u64, String> {
        let Target { id, mut client } = target;
        let state = |error: ChangeError| error.to_string();
        // Without a pause as far as it goes: it may lack much.
        let (_, last) = self.state().await.map_err(state)?;
        self.has(id, last, vote).await?;
        let deadline = Instant::now() + HOLD_MAX;
        let hold = self.intake.hold();
        let moved = async {
            hold.quiet().await;
            let (now, last) = self.state().await.map_err(state)?;
            if now != vote {
                return Err("the term has changed".to_owned());
            }
            self.has(id, last, vote).await?;
            let request = TransferLeaderRequest::new(vote, id, last);
            client.take_over(&request, stalls, HOLD_MAX).await?;
            self.successor(vote).await
        };
        let moved = timeout_at(deadline, moved).await;
        moved.unwrap_or_else(|_| Err(format!("node {id} did not take over in {HOLD_MAX:?}")))
    }

    /// Waits until node `id` has the log up to `last`.
    async fn has(&self, id: u64, last: Option<LogId>, vote: Vote) -> Result<(), String> {
        let last = last.map(|last| last.index());
        let reached = self
            .raft
            .wait(Some(TRANSFER_TIMEOUT))
            .metrics(
                |metrics| metrics.vote != vote || matched(metrics, id) >= last,
                "a successor",
            )
            .await;
        match reached {
            Ok(metrics) if metrics.vote == vote => Ok(()),
            Ok(_) => Err("the term has changed".into()),
            Err(_) => Err(format!("node {id} does not catch up")),
        }
    }

    /// Waits until somebody leads in a later term.
    async fn successor(&self, vote: Vote) -> Result<u64, String> {
        let mut role = self.role.clone();
        let later = |role: &Role| {
            role.term > vote.leader_id.term && (role.serving || role.leader.is_some())
        };
        let role = role.wait_for(later).await.map_err(|e| e.to_string())?;
        let leader = role.leader.as_ref().map(|(id, _)| *id);
        leader.ok_or_else(|| "this node was elected again".into())
    }
}

/// Index up to which node `id` has the log, as this leader knows.
fn matched(metrics: &RaftMetrics<TypeConfig>, id: u64) -> Option<u64> {
    let replication = metrics.replication.as_ref()?;
    replication.get(&id)?.as_ref().map(openraft::LogId::index)
}
