//! Who belongs to the group: forming it, adding learners, changing the voters.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    future::Future,
    io,
    sync::Arc,
    time::Duration,
};

use openraft::{
    ChangeMembers, Raft, ServerState,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, InitializeError, RaftError},
    metrics::RaftServerMetrics,
};
use tokio::{
    runtime::Handle,
    sync::{Mutex, OwnedMutexGuard},
    time::{sleep, timeout},
};

use super::{
    ChangeError, Consensus,
    machine::RaftMachine,
    types::{Membership, PeerNode, StoredMembership, TypeConfig, decode_membership},
};
use crate::{
    config::{GroupFormation, RaftConfig},
    host::blocking,
    status::Member,
};

/// Longest wait for another change of the members to end. One with a healthy quorum takes
/// milliseconds.
const TURN_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause before a change that another leader has begun is tried to be finished again: this one has
/// lost its quorum or its role for the moment.
const FINISH_PAUSE: Duration = Duration::from_millis(500);

/// What came of the first entry of a group.
enum Formed {
    /// It is written.
    Now,
    /// The log is not empty any more, or this node has voted.
    NotAllowed,
}

impl Consensus {
    /// On the very first start with `raftFormGroup=peers`, every node writes the same first entry: the
    /// members of the configuration. It is safe for all of them to do so.
    ///
    /// # Errors
    /// When Raft stopped or the configuration does not name this node.
    pub(super) async fn form_group_of_peers(&self, config: &RaftConfig) -> Result<(), io::Error> {
        if config.formation != GroupFormation::Peers || self.log.is_guarded() {
            // When guarded, it has a group, whether or not its log tells any more.
            return Ok(());
        }
        let members = config.peers.iter().map(|peer| {
            let node = PeerNode {
                address: peer.address.clone(),
                incarnation: String::new(),
            };
            (peer.id, node)
        });
        // Not allowed: a restart, or a peer's leader was faster and has sent its log already.
        self.initialize(members.collect(), None)
            .await
            .map(|_| ())
            .map_err(io::Error::other)
    }

    /// Forms the group of `members`, this node among them, if this node belongs to none yet.
    /// `incarnation` says which node is meant. True: it belonged to the group before.
    ///
    /// The first entry has term 0 and index 0 and holds the members, whoever writes it. So it does
    /// no harm when several of the members are called with the same members: they write the same
    /// entry and elect one leader. Different members for nodes of one group would be different
    /// logs with the same ids: the caller must not do that.
    ///
    /// # Errors
    /// When another node is meant, or this one belongs to a group that does not name it.
    pub async fn form_group(
        &self,
        incarnation: &str,
        members: &[Member],
    ) -> Result<bool, ChangeError> {
        if incarnation != self.local.incarnation {
            return Err(ChangeError::Precondition(format!(
                "this node's incarnation is {}, not {incarnation}",
                self.local.incarnation
            )));
        }
        let nodes = first_members(self.local.id, incarnation, members)?;
        let one_at_a_time = Arc::clone(&self.forming).lock_owned().await;
        let membership = self.membership().await?;
        if membership.log_id().is_some() {
            return self.already_formed(&membership);
        }
        match self.initialize(nodes, Some(one_at_a_time)).await? {
            Formed::Now => Ok(false),
            Formed::NotAllowed => {
                let membership = self.membership().await?;
                if membership.log_id().is_some() {
                    self.already_formed(&membership)
                } else {
                    // It voted for a leader of a group that names it; that one sends its log.
                    Err(ChangeError::Raft(
                        "this node is being taken into a group; ask again".into(),
                    ))
                }
            }
        }
    }

    /// Writes the first entry of a group; done when it is flushed. `guard` is held until then, also
    /// when the caller goes away: the next one must not take an entry for written that is not.
    async fn initialize(
        &self,
        members: BTreeMap<u64, PeerNode>,
        guard: Option<OwnedMutexGuard<()>>,
    ) -> Result<Formed, ChangeError> {
        let (raft, log) = (self.raft.clone(), Arc::clone(&self.log));
        let work = async move {
            let result = raft.initialize(members).await;
            // openraft answers when it has handed the entry to the log.
            let flushed = blocking(move || log.flush()).await;
            drop(guard);
            (result, flushed)
        };
        let stopped = |error: &dyn Display| ChangeError::Raft(error.to_string());
        let (result, flushed) = self.runtime.spawn(work).await.map_err(|e| stopped(&e))?;
        flushed.map_err(|e| stopped(&e))?.map_err(|e| stopped(&e))?;
        match result {
            Ok(()) => Ok(Formed::Now),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(Formed::NotAllowed),
            Err(RaftError::APIError(error)) => Err(ChangeError::Invalid(error.to_string())),
            Err(error) => Err(ChangeError::Raft(error.to_string())),
        }
    }

    /// True when the current or the first membership names this node.
    fn already_formed(&self, current: &StoredMembership) -> Result<bool, ChangeError> {
        let first = self.first_membership();
        let named = [Some(current.membership()), first.as_ref()]
            .into_iter()
            .flatten()
            .filter_map(|membership| membership.get_node(&self.local.id))
            .any(|node| node.incarnation.is_empty() || node.incarnation == self.local.incarnation);
        if named {
            return Ok(true);
        }
        Err(ChangeError::Precondition(format!(
            "this node has the log of a group that does not name node {} with incarnation {}",
            self.local.id, self.local.incarnation
        )))
    }

    /// The membership of the first entry, while the log still has it.
    fn first_membership(&self) -> Option<Membership> {
        let entries = self.log.read(0, 1, u64::MAX).ok()?;
        decode_membership(&entries.first()?.payload).ok()
    }

    /// The membership in force: the newest in the log, committed or not.
    async fn membership(&self) -> Result<Arc<StoredMembership>, ChangeError> {
        self.raft
            .with_raft_state(|state| Arc::clone(state.membership_state.effective()))
            .await
            .map_err(|error| ChangeError::Raft(error.to_string()))
    }

    /// Adds a node that receives the log without a vote. Its data folder must have `incarnation`,
    /// unless that is empty.
    ///
    /// # Errors
    /// When this node does not lead, Raft refuses, or the id is that of another member.
    pub async fn add_learner(
        &self,
        id: u64,
        address: String,
        incarnation: String,
    ) -> Result<(), ChangeError> {
        check_same(&*self.membership().await?, id, &incarnation)?;
        let node = PeerNode {
            address,
            incarnation: incarnation.clone(),
        };
        let raft = self.raft.clone();
        let added = self.change(async move { raft.add_learner(id, node, false).await });
        added.await?;
        // A member that was added meanwhile stays as it is.
        check_same(&*self.membership().await?, id, &incarnation)
    }

    /// Makes exactly `voters` the voters. They must be members already.
    ///
    /// # Errors
    /// When this node does not lead or Raft refuses.
    pub async fn change_membership(&self, voters: Vec<u64>) -> Result<(), ChangeError> {
        if voters.is_empty() {
            return Err(ChangeError::Invalid(
                "a group needs at least one voter".into(),
            ));
        }
        let raft = self.raft.clone();
        let change = ChangeMembers::ReplaceAllVoters(voters.into_iter().collect());
        self.change(async move { raft.change_membership(change, false).await })
            .await
    }

    /// Makes a change of the members, one at a time. It takes two entries in the log, so it is
    /// carried out to its end also when the caller goes away.
    async fn change<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, WriteError>> + Send + 'static,
    ) -> Result<(), ChangeError> {
        let busy = |_| ChangeError::Busy("another change of the members");
        let turn = timeout(TURN_TIMEOUT, Arc::clone(&self.changing).lock_owned());
        let turn = turn.await.map_err(busy)?;
        let done = self.runtime.spawn(async move {
            let result = work.await;
            drop(turn);
            result.map(|_| ()).map_err(change_error)
        });
        done.await
            .unwrap_or_else(|error| Err(ChangeError::Raft(error.to_string())))
    }
}

/// Starts to finish changes of the voters that a leader before this one has begun, while this node
/// leads: as long as the old and the new voters must both agree, the group bears fewer failures.
/// Whoever makes a change holds what is returned.
pub(super) fn finish_changes(
    runtime: &Handle,
    raft: &Raft<TypeConfig, RaftMachine>,
) -> Arc<Mutex<()>> {
    let changing = Arc::<Mutex<()>>::default();
    runtime.spawn(finish(raft.clone(), Arc::clone(&changing)));
    changing
}

async fn finish(raft: Raft<TypeConfig, RaftMachine>, changing: Arc<Mutex<()>>) {
    let mut metrics = raft.server_metrics();
    loop {
        if unfinished(&metrics.borrow_and_update()).is_none() {
            if metrics.changed().await.is_err() {
                // Raft has stopped.
                return;
            }
            continue;
        }
        // A change that is under way here finishes itself.
        let turn = changing.lock().await;
        let voters = unfinished(&metrics.borrow_and_update());
        if let Some(voters) = voters {
            tracing::info!(?voters, "finish a change of the voters");
            // Adds nobody to the new voters, whoever they are by now.
            let nobody = ChangeMembers::AddVoterIds(BTreeSet::new());
            match raft.change_membership(nobody, false).await {
                Ok(_) => {}
                Err(RaftError::Fatal(_)) => return,
                Err(error) => {
                    tracing::warn!(%error, "finish a change of the voters");
                    sleep(FINISH_PAUSE).await;
                }
            }
        }
        drop(turn);
    }
}

/// The new voters of a change whose first entry is committed, if this node leads.
fn unfinished(metrics: &RaftServerMetrics<TypeConfig>) -> Option<BTreeSet<u64>> {
    let stored = &metrics.membership_config;
    let committed = stored.log_id() == metrics.committed_membership_config.log_id();
    let leads = metrics.state == ServerState::Leader;
    (leads && committed && is_joint(stored))
        .then(|| stored.membership().get_joint_config().last().cloned())
        .flatten()
}

/// Whether a change of the voters is half done.
pub(super) fn is_joint(membership: &StoredMembership) -> bool {
    membership.membership().get_joint_config().len() > 1
}

/// The members of a new group, checked.
fn first_members(
    id: u64,
    incarnation: &str,
    members: &[Member],
) -> Result<BTreeMap<u64, PeerNode>, ChangeError> {
    let mut nodes = BTreeMap::new();
    let mut addresses = BTreeSet::new();
    for member in members {
        if member.incarnation.is_empty() {
            // An empty node votes only for a group that names its folder, so that the group would
            // wait for this one in vain.
            return Err(ChangeError::Invalid(format!(
                "member {} of the new group needs its incarnation",
                member.id
            )));
        }
        let node = PeerNode {
            address: member.address.clone(),
            incarnation: member.incarnation.clone(),
        };
        let fresh = addresses.insert(&member.address);
        if nodes.insert(member.id, node).is_some() || !fresh {
            return Err(ChangeError::Invalid(format!(
                "member {} or its address {} is named twice",
                member.id, member.address
            )));
        }
    }
    match nodes.get(&id) {
        Some(node) if node.incarnation == incarnation => Ok(nodes),
        _ => Err(ChangeError::Precondition(format!(
            "the members do not contain this node: id {id}, incarnation {incarnation}"
        ))),
    }
}

/// A member keeps the disk it was added with.
fn check_same(
    membership: &StoredMembership,
    id: u64,
    incarnation: &str,
) -> Result<(), ChangeError> {
    match membership.get_node(&id) {
        Some(node) if !incarnation.is_empty() && node.incarnation != incarnation => {
            let held = if node.incarnation.is_empty() {
                "no incarnation"
            } else {
                node.incarnation.as_str()
            };
            Err(ChangeError::Precondition(format!(
                "node {id} is a member with {held}, not with {incarnation}; a node whose disk was \
                 lost needs a new id"
            )))
        }
        _ => Ok(()),
    }
}

type WriteError = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

fn change_error(error: WriteError) -> ChangeError {
    match error {
        RaftError::APIError(
            ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_),
        ) => ChangeError::NotLeader,
        error => ChangeError::Raft(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, address: &str, incarnation: &str) -> Member {
        Member {
            id,
            address: address.into(),
            incarnation: incarnation.into(),
        }
    }

    #[test]
    fn the_first_members_are_different_nodes_and_this_one_is_among_them() {
        let two = [member(1, "a:1", "x"), member(2, "b:1", "y")];
        assert_eq!(first_members(1, "x", &two).unwrap().len(), 2);
        let refused = |id, incarnation, members: &[Member]| {
            first_members(id, incarnation, members)
                .unwrap_err()
                .to_string()
        };
        assert!(refused(1, "z", &two).contains("do not contain this node"));
        assert!(refused(3, "x", &two).contains("do not contain this node"));
        assert!(refused(1, "x", &[]).contains("do not contain this node"));
        let nameless = [member(1, "a:1", "x"), member(2, "b:1", "")];
        assert!(refused(1, "x", &nameless).contains("member 2"));
        for other in [member(1, "b:1", "y"), member(2, "a:1", "y")] {
            let twice = [member(1, "a:1", "x"), other];
            assert!(refused(1, "x", &twice).contains("twice"));
        }
    }

    #[test]
    fn a_member_keeps_its_disk() {
        let nodes = [(1, "x"), (2, "")].map(|(id, incarnation)| {
            let node = PeerNode {
                address: format!("n{id}:1"),
                incarnation: incarnation.into(),
            };
            (id, node)
        });
        let membership =
            Membership::new(vec![BTreeSet::from([1, 2])], BTreeMap::from(nodes)).unwrap();
        let membership = StoredMembership::new(None, membership);
        assert!(check_same(&membership, 1, "x").is_ok());
        assert!(check_same(&membership, 1, "").is_ok());
        assert!(check_same(&membership, 1, "y").is_err());
        assert!(check_same(&membership, 2, "y").is_err());
        assert!(check_same(&membership, 3, "y").is_ok());
    }
}
