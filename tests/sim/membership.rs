//! An administrator of the group: whoever is there and does not vote yet is taken in, and who was
//! replaced leaves. Also looks who leads.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raftmq::status::{Member, RaftRole};

use super::cluster::Cluster;
use super::node::Node;
use super::random::Random;

/// Pause between two looks. Unit: ms.
const LOOK_MS: u64 = 500;
/// How long an administrator waits who does not give up.
const PATIENCE: Duration = Duration::from_secs(60);
/// A learner becomes a voter when it is no further behind. Unit: entries.
const LAG_MAX: u64 = 50;

/// See the file comment.
#[derive(Debug, Default)]
pub struct Membership {
    next_ms: u64,
    /// Whether administrators give up now and then in the middle of a change.
    pub drops: Option<Random>,
    /// Changes that were given up.
    pub dropped: u64,
    leaders: BTreeMap<u64, u64>,
    /// Changes that were asked for.
    pub changes: u64,
    /// Terms with two leaders.
    pub problems: Vec<String>,
}

impl Membership {
    /// Does what is due; the second leader of a term is a problem.
    pub fn tend(&mut self, cluster: &Cluster) {
        self.look(cluster);
        if cluster.now_ms < self.next_ms {
            return;
        }
        self.next_ms = cluster.now_ms + LOOK_MS;
        self.form(cluster);
        self.complete(cluster);
    }

    /// Forms the group of the nodes that are there, unless they have one.
    fn form(&self, cluster: &Cluster) {
        let statuses = cluster.nodes.iter().map(Node::status);
        let Some(statuses) = statuses.collect::<Option<Vec<_>>>() else {
            return;
        };
        if statuses.iter().any(|status| status.initialized) || !cluster.nodes[0].waits {
            return;
        }
        let members = statuses.iter().map(|status| Member {
            id: status.node_id,
            address: status.addresses.raft.clone(),
            incarnation: status.incarnation.clone(),
        });
        let (members, own) = (members.collect(), statuses[0].incarnation.clone());
        cluster.nodes[0].administrate(|admin| async move {
            // It is asked again until the status shows it.
            let _ = admin.form_group(own, members).await;
        });
    }

    /// How long the next change is waited for.
    fn patience(&mut self) -> Duration {
        let given_up = |random: &mut Random| random.once_in(2).then(|| random.below(60));
        match self.drops.as_mut().and_then(given_up) {
            Some(ms) => {
                self.dropped += 1;
                Duration::from_millis(ms)
            }
            None => PATIENCE,
        }
    }

    /// R5: in one term one node says that it leads.
    fn look(&mut self, cluster: &Cluster) {
        for node in &cluster.nodes {
            let Some(status) = node.status() else {
                continue;
            };
            if status.role != RaftRole::Leader {
                continue;
            }
            let leader = *self.leaders.entry(status.term).or_insert(status.node_id);
            if leader != status.node_id {
                self.problems.push(format!(
                    "R5: {leader} and {} lead in term {}",
                    status.node_id, status.term
                ));
            }
        }
    }

    /// Whether exactly the nodes of the cluster vote, as the newest leader sees it.
    pub fn is_complete(cluster: &Cluster) -> bool {
        let statuses = cluster.nodes.iter().filter_map(|node| node.status());
        let leaders = statuses.filter(|status| status.role == RaftRole::Leader);
        let newest = leaders.max_by_key(|status| status.term);
        newest.is_some_and(|status| {
            let voters: BTreeSet<u64> = status.voters.iter().map(|member| member.id).collect();
            voters == wanted(cluster) && status.learners.is_empty()
        })
    }

    /// Asks every node that takes itself for the leader to take the next step.
    fn complete(&mut self, cluster: &Cluster) {
        let wanted = wanted(cluster);
        for leader in &cluster.nodes {
            let Some(status) = leader.status() else {
                continue;
            };
            let voters: BTreeSet<u64> = status.voters.iter().map(|member| member.id).collect();
            if status.role != RaftRole::Leader || voters == wanted {
                continue;
            }
            let is_member = |id: u64| {
                let learners = status.learners.iter().map(|member| member.id);
                voters.contains(&id) || learners.into_iter().any(|learner| learner == id)
            };
            let stays = |node: &&Node| wanted.contains(&node.raft_id());
            let missing =
                (cluster.nodes.iter().filter(stays)).find(|node| !is_member(node.raft_id()));
            if let Some(node) = missing {
                let Some(own) = node.status() else {
                    continue;
                };
                let (id, address) = (node.raft_id(), node.raft_address());
                let incarnation = own.incarnation.clone();
                leader.administrate_for(self.patience(), move |admin| async move {
                    // It is asked again until the status shows it.
                    let _ = admin.add_learner(id, address, incarnation).await;
                });
                continue;
            }
            let behind = status.peers.iter().any(|peer| {
                let matched = peer.matched_index.unwrap_or(0);
                wanted.contains(&peer.id)
                    && matched + LAG_MAX < status.last_index.unwrap_or(0)
                    && !voters.contains(&peer.id)
            });
            if !behind {
                self.changes += 1;
                let wanted = wanted.clone();
                leader.administrate_for(self.patience(), move |admin| async move {
                    let _ = admin.change_membership(wanted).await;
                });
            }
        }
    }
}

fn wanted(cluster: &Cluster) -> BTreeSet<u64> {
    let nodes = cluster.nodes.iter();
    let staying = nodes.filter(|node| !cluster.leaving.contains(&node.id));
    staying.map(Node::raft_id).collect()
}
