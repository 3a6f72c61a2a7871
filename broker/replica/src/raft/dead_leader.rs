//! A leader whose process has died is replaced at once, without waiting for the election timeout.
//!
//! When a connection that the leader sends on ends, this node dials the leader's Raft port. If the
//! leader's machine refuses the connection, the machine is there and nobody listens: the process is
//! dead. The survivor with the most complete log then stands for election the way a leadership
//! transfer does, so that the others vote although they heard from the leader a moment ago.
//! Everything else (no answer, a partition, a paused process) is left to the election timeout.
//!
//! Raft's safety does not depend on when an election happens, and no read here relies on a lease, so
//! a wrong guess costs a change of leaders and nothing else.

use std::{
    cmp::Reverse,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use openraft::{
    Raft,
    network::{RPCOption, RaftNetworkFactory, RaftNetworkV2},
    raft::{TransferLeaderRequest, VoteRequest, VoteResponse},
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    machine::RaftMachine,
    transport::Transport,
    types::{LogId, PeerNode, TypeConfig, Vote},
};

/// Longest wait for a refused connection, and for a survivor's answer. A machine on the same
/// network needs a millisecond; a survivor that is slower is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(50);
/// How often the port is dialed: the system may close the connections of a dying process before
/// its listener.
const DIALS: u32 = 10;
/// Pause before another dial.
const DIAL_PAUSE: Duration = Duration::from_millis(5);
/// Pause before the others are asked: they too have to take in what the leader sent last.
const SETTLE: Duration = Duration::from_millis(10);
/// Pause before they are asked again.
const ASK_PAUSE: Duration = Duration::from_millis(20);
/// Head start of each survivor before the next in rank. An election takes two syncs and two round
/// trips, on a busy machine a tenth of a second; two candidates at once would both fail and wait
/// for the election timeout, or longer.
const HEAD_START: Duration = Duration::from_millis(200);
/// How long a dead leader is looked after. The election timeout has passed by then.
const PATIENCE: Duration = Duration::from_secs(1);

/// Watches for the death of the leader's process.
pub(super) struct DeadLeader {
    id: u64,
    raft: Raft<TypeConfig, RaftMachine>,
    transport: Transport,
    /// Whether this node may stand for election at all.
    stands: AtomicBool,
    /// A suspicion is being looked into; a dying process ends several connections at once.
    checking: AtomicBool,
}

/// A suspicion that is being looked into, until it is dropped.
struct Checking(Arc<DeadLeader>);

impl Drop for Checking {
    fn drop(&mut self) {
        self.0.checking.store(false, Ordering::SeqCst);
    }
}

/// What a survivor knows of the group when the leader is suspected.
struct View {
    vote: Vote,
    leader_address: String,
    /// The other voters but the leader.
    survivors: Vec<(u64, PeerNode)>,
    voters: usize,
    last: Option<LogId>,
}

impl std::fmt::Debug for DeadLeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadLeader")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl DeadLeader {
    pub(super) fn new(
        id: u64,
        raft: Raft<TypeConfig, RaftMachine>,
        transport: Transport,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            raft,
            transport,
            stands: AtomicBool::new(true),
            checking: AtomicBool::new(false),
        })
    }

    /// Whether this node may stand for election from now on.
    pub(super) fn stand(&self, may: bool) {
        self.stands.store(may, Ordering::SeqCst);
    }

    /// Takes note that the connection on which `peer` sends entries has ended.
    pub(super) fn connection_ended(self: &Arc<Self>, peer: u64) {
        if !self.stands.load(Ordering::SeqCst) || self.checking.swap(true, Ordering::SeqCst) {
            return;
        }
        let checking = Checking(Arc::clone(self));
        tokio::spawn(async move { checking.0.replace(peer).await });
    }

    /// Stands for election if `peer` leads and its process is dead, as soon as it is this node's
    /// turn.
    async fn replace(&self, peer: u64) {
        let Some(view) = self.view(peer).await else {
            return;
        };
        if !self.is_dead(&view.leader_address).await {
            tracing::debug!(
                leader = peer,
                "a connection ended, but its process may live"
            );
            return;
        }
        sleep(SETTLE).await;
        let begin = Instant::now();
        // Logs may still grow, and a busy survivor may not answer at once: so everything is looked
        // at anew each time.
        while begin.elapsed() < PATIENCE {
            let Some(view) = self.view(peer).await else {
                // Somebody else was elected, or is being.
                return;
            };
            let answers = self.ask(&view).await;
            let turn = turn(self.id, view.last, &view.vote, view.voters, &answers);
            tracing::debug!(
                leader = peer,
                ?turn,
                answers = answers.len(),
                "the leader is dead"
            );
            match turn {
                Turn::Over => return,
                Turn::Rank(rank) if begin.elapsed() >= HEAD_START * rank => {
                    return self.elect(peer, rank).await;
                }
                Turn::Rank(_) | Turn::NotYet => sleep(ASK_PAUSE).await,
            }
        }
    }

    async fn elect(&self, peer: u64, rank: u32) {
        // The answers took their time.
        let Some(view) = self.view(peer).await else {
            return;
        };
        tracing::info!(
            leader = peer,
            rank,
            "the leader's process is dead; stand for election"
        );
        // Raft compares the vote: if another leader was elected meanwhile, nothing happens.
        let request = TransferLeaderRequest::new(view.vote, self.id, view.last);
        match self.raft.handle_transfer_leader(request).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "no election ahead of time"),
            Err(error) => tracing::debug!(%error, "no election ahead of time"),
        }
    }

    /// `None` when `peer` does not lead or this node does not vote.
    async fn view(&self, peer: u64) -> Option<View> {
        let id = self.id;
        let view = self.raft.with_raft_state(move |state| {
            let vote = *state.vote_ref();
            let membership = state.membership_state.effective();
            let voters: Vec<u64> = membership.voter_ids().collect();
            if !vote.committed || vote.leader_id.voted_for != peer || !voters.contains(&id) {
                return None;
            }
            let survivors = voters.iter().filter(|voter| ![id, peer].contains(voter));
            Some(View {
                vote,
                leader_address: membership.get_node(&peer)?.address.clone(),
                survivors: survivors
                    .filter_map(|voter| Some((*voter, membership.get_node(voter)?.clone())))
                    .collect(),
                voters: voters.len(),
                last: state.log_ids.last().copied(),
            })
        });
        view.await.ok()?
    }

    async fn is_dead(&self, address: &str) -> bool {
        for dial in 0..DIALS {
            if dial > 0 {
                sleep(DIAL_PAUSE).await;
            }
            match timeout(ANSWER_TIMEOUT, self.transport.net.connect(address)).await {
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => return true,
                // It listens, at least still.
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return false,
            }
        }
        false
    }

    /// Asks the other survivors for the end of their log and their vote. A pre-vote does that and
    /// changes nothing.
    async fn ask(&self, view: &View) -> Vec<(u64, VoteResponse<TypeConfig>)> {
        let request = VoteRequest::new(view.vote, view.last);
        let asked = view.survivors.iter().map(|(id, node)| {
            let (mut transport, request) = (self.transport.clone(), request.clone());
            async move {
                let mut client = transport.new_client(*id, node).await;
                let answer = client
                    .pre_vote(request, RPCOption::new(ANSWER_TIMEOUT))
                    .await;
                answer.ok().map(|answer| (*id, answer))
            }
        });
        join_all(asked).await.into_iter().flatten().collect()
    }
}

/// Whether a node may stand for election.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// After so many others. Those with more of the log come first, and of equals the ones with a
    /// smaller id.
    Rank(u32),
    /// It could not win: too few answered that have no more of the log than this node. To try
    /// would only raise the term and delay the one who can.
    NotYet,
    /// Somebody has moved on to a later vote.
    Over,
}

fn turn(
    id: u64,
    last: Option<LogId>,
    vote: &Vote,
    voters: usize,
    answers: &[(u64, VoteResponse<TypeConfig>)],
) -> Turn {
    if answers.iter().any(|(_, answer)| answer.vote > *vote) {
        return Turn::Over;
    }
    let votes = answers
        .iter()
        .filter(|(_, answer)| answer.last_log_id <= last);
    if votes.count() + 1 < voters / 2 + 1 {
        return Turn::NotYet;
    }
    let before = answers
        .iter()
        .filter(|(other, answer)| (answer.last_log_id, Reverse(*other)) > (last, Reverse(id)));
    u32::try_from(before.count()).map_or(Turn::NotYet, Turn::Rank)
}

#[cfg(test)]
mod tests {
    use openraft::vote::leader_id_std::LeaderId;

    use super::*;

    fn vote(term: u64) -> Vote {
        Vote {
            leader_id: LeaderId { term, voted_for: 1 },
            committed: true,
        }
    }

    fn at(index: u64) -> Option<LogId> {
        Some(LogId::new_term_index(3, index))
    }

    fn answer(id: u64, index: u64) -> (u64, VoteResponse<TypeConfig>) {
        (id, VoteResponse::new(vote(3), at(index), false))
    }

    fn turn_of(id: u64, index: u64, answers: &[(u64, VoteResponse<TypeConfig>)]) -> Turn {
        turn(id, at(index), &vote(3), answers.len() + 2, answers)
    }

    #[test]
    fn the_most_complete_log_goes_first_then_the_smaller_id() {
        assert_eq!(turn_of(2, 9, &[answer(3, 8)]), Turn::Rank(0));
        assert_eq!(turn_of(2, 9, &[answer(3, 9)]), Turn::Rank(0));
        assert_eq!(turn_of(3, 9, &[answer(2, 9)]), Turn::Rank(1));
        let others = [answer(2, 9), answer(3, 12), answer(5, 9)];
        assert_eq!(turn_of(4, 9, &others), Turn::Rank(2));
    }

    #[test]
    fn survivors_that_see_each_other_have_different_ranks() {
        let logs = [(2, 7), (3, 9), (4, 9), (5, 8)];
        let turns: Vec<Turn> = logs
            .iter()
            .map(|(id, index)| {
                let others: Vec<_> = logs
                    .iter()
                    .filter(|(other, _)| other != id)
                    .map(|(other, index)| answer(*other, *index))
                    .collect();
                turn_of(*id, *index, &others)
            })
            .collect();
        // The votes of two more are needed, and nobody votes for a shorter log.
        let expected = [Turn::NotYet, Turn::Rank(0), Turn::Rank(1), Turn::NotYet];
        assert_eq!(turns, expected);
    }

    #[test]
    fn a_log_that_is_behind_a_quorum_never_stands() {
        assert_eq!(turn_of(2, 9, &[answer(3, 10)]), Turn::NotYet);
        assert_eq!(
            turn_of(2, 9, &[answer(3, 10), answer(4, 9), answer(5, 2)]),
            Turn::Rank(1)
        );
    }

    #[test]
    fn without_a_quorum_or_after_a_later_vote_nobody_stands() {
        assert_eq!(turn(2, at(9), &vote(3), 3, &[]), Turn::NotYet);
        assert_eq!(turn(2, at(9), &vote(3), 5, &[answer(3, 1)]), Turn::NotYet);
        assert_eq!(
            turn(2, at(9), &vote(3), 5, &[answer(3, 1), answer(4, 1)]),
            Turn::Rank(0)
        );
        let later = (3, VoteResponse::new(vote(4), at(1), false));
        assert_eq!(turn(2, at(9), &vote(3), 3, &[later]), Turn::Over);
    }
}
