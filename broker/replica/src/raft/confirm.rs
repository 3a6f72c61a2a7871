//! Asks a quorum whether this node leads now, for answers that must not be older than what was
//! shown to others: Raft's ReadIndex, over connections of its own. What was committed when the
//! question came is applied before the answer: followers may have applied and shown it earlier than
//! their leader.
//!
//! openraft's `ensure_linearizable` is not enough (0.10.0-alpha.37): of appends that end at the same
//! entry it takes the answer to the first for one to the last. After a partition such an answer may
//! come from before it, and a leader that was replaced meanwhile believes that it still leads. Here
//! a connection carries one question at a time and ends when the answer does not come. A round does
//! not wait for the slower ones; their answers come during a later round, for which they do not
//! count.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared},
    stream::FuturesUnordered,
};
use openraft::{
    Raft, ServerState,
    async_runtime::watch::WatchReceiver,
    network::{RPCOption, RaftNetworkV2},
    raft::{AppendEntriesRequest, AppendEntriesResponse},
};
use tokio::{runtime::Handle, time::timeout};

use super::{
    machine::RaftMachine,
    transport::{PeerClient, Transport},
    types::{LogId, PeerNode, StoredMembership, TypeConfig, Vote},
};

/// Longest wait for a quorum. One that is there answers within milliseconds.
const ROUND_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest wait for one answer. A connection that brings none may lead nowhere and is replaced.
const ANSWER_TIMEOUT: Duration = ROUND_TIMEOUT;

/// Longest wait until what is committed is applied here. It takes milliseconds unless the disk stands
/// still, and a leader whose disk does hands over after a second.
const APPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// Asks for this node. Questions of the same moment share a round.
#[derive(Debug)]
pub(super) struct Confirmer {
    raft: Raft<TypeConfig, RaftMachine>,
    own_id: u64,
    runtime: Handle,
    /// The round that has not begun yet.
    next: Mutex<Option<Round>>,
    /// Held during a round, by the task of the round alone.
    peers: tokio::sync::Mutex<Peers>,
}

type Round = Shared<BoxFuture<'static, Option<u64>>>;

impl Confirmer {
    pub(super) fn new(
        raft: Raft<TypeConfig, RaftMachine>,
        own_id: u64,
        transport: Transport,
        runtime: Handle,
    ) -> Arc<Self> {
        Arc::new(Self {
            raft,
            own_id,
            runtime,
            next: Mutex::default(),
            peers: tokio::sync::Mutex::new(Peers::new(own_id, transport)),
        })
    }

    /// The term in which this node leads, if nobody else led at any time between this call and the
    /// answer. Then it has also applied all that any node had applied at the call.
    pub(super) fn confirm(self: &Arc<Self>) -> impl Future<Output = Option<u64>> + use<> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(round) = &*next {
            return round.clone();
        }
        let this = Arc::clone(self);
        let work = self.runtime.spawn(async move {
            let mut peers = this.peers.lock().await;
            // Whoever asks from here on may know of something that the answers do not.
            let begun = this
                .next
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            drop(begun);
            let (term, committed) = timeout(ROUND_TIMEOUT, this.ask(&mut peers)).await.ok()??;
            // The next round need not wait for this.
            drop(peers);
            let applied = timeout(APPLY_TIMEOUT, this.until_applied(committed)).await;
            applied.ok()?.map(|()| term)
        });
        let round = work.map(|done| done.unwrap_or(None)).boxed().shared();
        *next = Some(round.clone());
        round
    }

    async fn ask(&self, peers: &mut Peers) -> Option<(u64, Option<LogId>)> {
        // A leader that was taken out of the group keeps its vote and leads no more: to ask would
        // only keep the others from electing.
        if self.raft.metrics().borrow_watched().state != ServerState::Leader {
            return None;
        }
        let state = self.raft.with_raft_state(|state| {
            let membership = Arc::clone(state.membership_state.effective());
            (
                *state.vote_ref(),
                membership,
                state.cluster_committed().copied(),
            )
        });
        let (vote, membership, committed) = state.await.ok()?;
        if !vote.committed || vote.leader_id.voted_for != self.own_id {
            return None;
        }
        if !peers.follow(&membership, vote).await {
            return None;
        }
        // Its own voice counts if it has voted for nobody else meanwhile.
        let own = self.raft.with_raft_state(|state| *state.vote_ref()).await;
        (own.ok()? == vote).then_some((vote.leader_id.term, committed))
    }

    /// Waits until this node has applied everything up to `committed`; `None` when Raft has stopped.
    async fn until_applied(&self, committed: Option<LogId>) -> Option<()> {
        let mut metrics = self.raft.metrics();
        while metrics.borrow_watched().last_applied < committed {
            metrics.changed().await.ok()?;
        }
        Some(())
    }
}

/// Connections to the other members, and the questions that are under way.
#[derive(Debug)]
struct Peers {
    own_id: u64,
    transport: Transport,
    idle: BTreeMap<u64, (PeerNode, PeerClient)>,
    asked: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// Whose questions these are.
    busy: BTreeSet<u64>,
    /// Number of the round.
    round: u64,
}

/// The answer of a peer, and what comes back with it.
struct Answer {
    id: u64,
    node: PeerNode,
    client: PeerClient,
    round: u64,
    follows: bool,
}

impl Peers {
    fn new(own_id: u64, transport: Transport) -> Self {
        Self {
            own_id,
            transport,
            idle: BTreeMap::new(),
            asked: FuturesUnordered::new(),
            busy: BTreeSet::new(),
            round: 0,
        }
    }

    /// Whether a quorum follows the leader with this vote, asked from now on.
    async fn follow(&mut self, membership: &StoredMembership, vote: Vote) -> bool {
        self.round += 1;
        self.idle
            .retain(|id, (node, _)| membership.get_node(id) == Some(node));
        for (id, node) in membership.nodes() {
            if *id != self.own_id && !self.busy.contains(id) {
                self.question(*id, node, vote);
            }
        }
        let mut following = vec![self.own_id];
        while !is_quorum(membership, &following) {
            let Some(answer) = self.asked.next().await else {
                return false;
            };
            self.busy.remove(&answer.id);
            let Some(node) = membership.get_node(&answer.id) else {
                continue;
            };
            if *node == answer.node {
                self.idle.insert(answer.id, (answer.node, answer.client));
            }
            if answer.round != self.round {
                // It was asked before the round began, so that it may not know enough.
                self.question(answer.id, node, vote);
            } else if answer.follows {
                following.push(answer.id);
            }
        }
        true
    }

    /// Asks one peer in this round.
    fn question(&mut self, id: u64, node: &PeerNode, vote: Vote) {
        let kept = self.idle.remove(&id);
        let (node, mut client) = kept.unwrap_or_else(|| {
            let client = self.transport.heartbeat_client(id, node);
            (node.clone(), client)
        });
        let round = self.round;
        let question = async move {
            let follows = timeout(ANSWER_TIMEOUT, follows(&mut client, vote)).await;
            Answer {
                id,
                node,
                client,
                round,
                follows: follows.unwrap_or(false),
            }
        };
        self.busy.insert(id);
        self.asked.push(question.boxed());
    }
}

/// Whether a peer takes a heartbeat with this vote: then it has voted for no later leader.
async fn follows(client: &mut PeerClient, vote: Vote) -> bool {
    let heartbeat = AppendEntriesRequest {
        vote,
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    };
    let answer = client.append_entries(heartbeat, RPCOption::new(ANSWER_TIMEOUT));
    matches!(answer.await, Ok(AppendEntriesResponse::Success))
}

/// Whether these nodes are a majority in each of the configurations in force.
fn is_quorum(membership: &StoredMembership, nodes: &[u64]) -> bool {
    membership
        .membership()
        .get_joint_config()
        .iter()
        .all(|voters| {
            let present = voters.iter().filter(|voter| nodes.contains(voter)).count();
            present > voters.len() / 2
        })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::SocketAddr};

    use openraft::{Membership, vote::leader_id_std::LeaderId};
    use tokio::time::sleep;

    use super::*;
    use crate::{
        net::{Listener, Net, memory::MemoryNet},
        raft::{
            peer::{self, Local},
            wire,
        },
    };

    fn address(id: u64) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 40_910 + u16::try_from(id).unwrap()))
    }

    /// A peer that follows whoever asks, `pause` after each question; counts its connections.
    async fn serve(
        id: u64,
        mut listener: Box<dyn Listener>,
        pause: Duration,
        count: Arc<Mutex<u32>>,
    ) {
        while let Ok(accepted) = listener.accept().await {
            *count.lock().unwrap() += 1;
            tokio::spawn(async move {
                let (mut connection, _) = peer::accept(accepted.stream, &Local::of_test(id))
                    .await
                    .unwrap();
                while let Ok(Some(_)) = connection.reader.next().await {
                    sleep(pause).await;
                    let mut answer = bytes::BytesMut::new();
                    wire::put_append_result(&mut answer, &Ok(None));
                    connection.writer.send(&answer).await.unwrap();
                }
            });
        }
    }

    /// Nodes 1 to 3, of which the last two answer after these pauses.
    async fn three(pauses: [Duration; 2]) -> (Peers, StoredMembership, [Arc<Mutex<u32>>; 2]) {
        let net = MemoryNet::default();
        let counts = <[Arc<Mutex<u32>>; 2]>::default();
        for ((id, pause), count) in (2..).zip(pauses).zip(&counts) {
            let listener = net.bind(address(id)).await.unwrap();
            tokio::spawn(serve(id, listener, pause, Arc::clone(count)));
        }
        let nodes = (1..=3).map(|id| {
            let node = PeerNode {
                address: address(id).to_string(),
                incarnation: String::new(),
            };
            (id, node)
        });
        let voters = vec![BTreeSet::from([1, 2, 3])];
        let membership = Membership::new(voters, nodes.collect::<BTreeMap<_, _>>()).unwrap();
        let transport = Transport::on(net, Local::of_test(1));
        let peers = Peers::new(1, transport);
        (peers, StoredMembership::new(None, membership), counts)
    }

    fn vote() -> Vote {
        Vote {
            leader_id: LeaderId {
                term: 9,
                voted_for: 1,
            },
            committed: true,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_slower_peer_keeps_its_connection() {
        let pauses = [1, 30].map(Duration::from_millis);
        let (mut peers, membership, counts) = three(pauses).await;
        for _ in 0..100 {
            assert!(peers.follow(&membership, vote()).await);
        }
        assert_eq!(counts.map(|count| *count.lock().unwrap()), [1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_an_earlier_question_counts_for_nothing() {
        // The answers of the first round come long after it.
        let (mut peers, membership, counts) = three([Duration::from_millis(300); 2]).await;
        let round = timeout(Duration::from_millis(10), peers.follow(&membership, vote()));
        assert!(round.await.is_err());
        sleep(ROUND_TIMEOUT).await;
        let begin = tokio::time::Instant::now();
        assert!(peers.follow(&membership, vote()).await);
        assert!(begin.elapsed() >= Duration::from_millis(300), "asked anew");
        assert_eq!(counts.map(|count| *count.lock().unwrap()), [1, 1]);
    }

    #[test]
    fn a_quorum_is_a_majority_of_every_configuration() {
        let config = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        let nodes: BTreeMap<u64, PeerNode> = (1..=5).map(|id| (id, PeerNode::default())).collect();
        let stored = |configs: Vec<BTreeSet<u64>>| {
            let membership = Membership::new(configs, nodes.clone()).unwrap();
            StoredMembership::new(None, membership)
        };
        let simple = stored(vec![config(&[1, 2, 3])]);
        assert!(!is_quorum(&simple, &[1]));
        assert!(!is_quorum(&simple, &[1, 4, 5]));
        assert!(is_quorum(&simple, &[1, 3]));
        let joint = stored(vec![config(&[1, 2, 3]), config(&[1, 4, 5])]);
        assert!(!is_quorum(&joint, &[1, 2]));
        assert!(is_quorum(&joint, &[1, 2, 5]));
        assert!(is_quorum(&stored(vec![config(&[1])]), &[1]));
    }
}
