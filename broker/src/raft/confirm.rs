//! Asks a quorum whether this node leads now, for answers that must not be older than what was
//! acknowledged to others: Raft's ReadIndex, over connections of its own.
//!
//! openraft's `ensure_linearizable` is not enough (0.10.0-alpha.37): of appends that end at the same
//! entry it takes the answer to the first for one to the last. After a partition such an answer may
//! come from before it, and a leader that was replaced meanwhile believes that it still leads. Here
//! a connection carries one question at a time and ends when the answer does not come.

use std::{
    collections::BTreeMap,
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
    Raft,
    network::{RPCOption, RaftNetworkV2},
    raft::{AppendEntriesRequest, AppendEntriesResponse},
};
use tokio::{runtime::Handle, time::timeout};

use super::{
    machine::RaftMachine,
    transport::{PeerClient, Transport},
    types::{PeerNode, StoredMembership, TypeConfig, Vote},
};

/// Longest wait for a quorum. One that is there answers within milliseconds.
const ROUND_TIMEOUT: Duration = Duration::from_millis(500);

/// Asks for this node. Questions of the same moment share a round.
#[derive(Debug)]
pub(super) struct Confirmer {
    raft: Raft<TypeConfig, RaftMachine>,
    own_id: u64,
    transport: Transport,
    runtime: Handle,
    /// The round that has not begun yet.
    next: Mutex<Option<Round>>,
    /// Held during a round, by the task of the round alone.
    clients: tokio::sync::Mutex<BTreeMap<u64, (PeerNode, PeerClient)>>,
}

type Round = Shared<BoxFuture<'static, bool>>;

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
            transport,
            runtime,
            next: Mutex::default(),
            clients: tokio::sync::Mutex::default(),
        })
    }

    /// Whether nobody else led at any time between this call and the answer.
    pub(super) fn confirm(self: &Arc<Self>) -> impl Future<Output = bool> + use<> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(round) = &*next {
            return round.clone();
        }
        let this = Arc::clone(self);
        let work = self.runtime.spawn(async move {
            let mut clients = this.clients.lock().await;
            // Whoever asks from here on may know of something that the answers do not.
            let begun = this
                .next
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            drop(begun);
            let asked = timeout(ROUND_TIMEOUT, this.ask(&mut clients)).await;
            asked.unwrap_or(false)
        });
        let round = work.map(|done| done.unwrap_or(false)).boxed().shared();
        *next = Some(round.clone());
        round
    }

    async fn ask(&self, clients: &mut BTreeMap<u64, (PeerNode, PeerClient)>) -> bool {
        let state = self.raft.with_raft_state(|state| {
            let membership = Arc::clone(state.membership_state.effective());
            (*state.vote_ref(), membership)
        });
        let Ok((vote, membership)) = state.await else {
            return false;
        };
        if !vote.committed || vote.leader_id.voted_for != self.own_id {
            return false;
        }
        clients.retain(|id, (node, _)| membership.get_node(id) == Some(node));
        for (id, node) in membership.nodes() {
            if *id != self.own_id && !clients.contains_key(id) {
                let client = self.transport.heartbeat_client(*id, node);
                clients.insert(*id, (node.clone(), client));
            }
        }
        let mut answers: FuturesUnordered<_> = clients
            .iter_mut()
            .map(|(id, (_, client))| follows(*id, client, vote))
            .collect();
        let mut following = vec![self.own_id];
        while !is_quorum(&membership, &following) {
            match answers.next().await {
                Some((id, true)) => following.push(id),
                Some((_, false)) => {}
                None => return false,
            }
        }
        // Its own voice counts if it has voted for nobody else meanwhile.
        let own = self.raft.with_raft_state(|state| *state.vote_ref()).await;
        own.is_ok_and(|own| own == vote)
    }
}

/// Whether a peer takes a heartbeat with this vote: then it has voted for no later leader.
async fn follows(id: u64, client: &mut PeerClient, vote: Vote) -> (u64, bool) {
    let heartbeat = AppendEntriesRequest {
        vote,
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    };
    let answer = client.append_entries(heartbeat, RPCOption::new(ROUND_TIMEOUT));
    let follows = matches!(answer.await, Ok(AppendEntriesResponse::Success));
    (id, follows)
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
    use std::collections::BTreeSet;

    use openraft::Membership;

    use super::*;

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
