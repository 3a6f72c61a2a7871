//! Faults that are only bearable alone, one after the other, each in a cluster that was well before.
//! Afterwards it must be well again, soon.

use std::sync::Arc;
use std::time::Duration;

use raftmq::status::{RaftRole, RaftStatus};

use super::classes::{Class, Classes};
use super::client::Client;
use super::cluster::{Cluster, STEP_MS};
use super::damage;
use super::image::Crash;
use super::membership::Membership;
use super::net::Way;
use super::node::{End, Node};
use super::random::Random;
use super::workload::Workload;

/// How long a node that was down may take to have everything that the others have. Machines start
/// within 3.2 s. Unit: ms.
const CATCH_UP_MS: u64 = 30_000;
/// How long a damaged place may take until it is mended: the scrub reads everything in that time.
/// Unit: ms.
const MEND_MS: u64 = 60_000;
/// Pause between two looks at it. Unit: ms.
const LOOK_MS: u64 = 500;
/// How long deletions are waited for. Unit: ms.
const DELETE_MS: u64 = 120_000;
/// Clients that ask one node again and again.
const ASKERS: u32 = 12;

/// See the file comment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// A disk lies about its syncs for a while, and the power goes.
    LyingSync,
    /// The power of one node goes, and sends are not synced.
    SinglePowerCut,
    /// A node goes on with an older copy of its disk.
    OlderDisk,
    /// A node was down while others deleted.
    LongDown,
    /// The same, and what it has of what they deleted is damaged.
    LongDownDamaged,
    /// A checkpoint is damaged, and the node starts again.
    DamagedCheckpoint,
    /// A checkpoint of the leader is damaged, and a new node takes the place of another.
    DamagedSnapshot,
    /// The same place is damaged on two nodes.
    SamePlace,
    /// A hand-over is given up by whoever asked for it.
    DroppedTransfer,
    /// The target of a hand-over dies.
    FailedTransfer,
    /// A replaced leader leads again at once.
    Relapse,
}

/// What may happen to a group of three in this life.
pub(super) fn possible(classes: Classes, deletes: bool, damages: bool) -> Vec<Scenario> {
    let rows = [
        (Class::Lies, Scenario::LyingSync, true),
        (Class::Async, Scenario::SinglePowerCut, true),
        (Class::OlderDisk, Scenario::OlderDisk, true),
        (Class::LongDown, Scenario::LongDown, deletes),
        (Class::LongDown, Scenario::LongDownDamaged, deletes),
        (Class::Checkpoints, Scenario::DamagedCheckpoint, true),
        (
            Class::Checkpoints,
            Scenario::DamagedSnapshot,
            deletes && !damages,
        ),
        (Class::SamePlace, Scenario::SamePlace, true),
        (Class::Drops, Scenario::DroppedTransfer, true),
        (Class::FailedTransfer, Scenario::FailedTransfer, true),
        (Class::Relapse, Scenario::Relapse, true),
    ];
    let meant = rows.iter().filter(|row| classes.has(row.0) && row.2);
    meant.map(|row| row.1).collect()
}

/// The status of the newest leader.
fn leader(cluster: &Cluster) -> Option<Arc<RaftStatus>> {
    let statuses = cluster.nodes.iter().filter_map(Node::status);
    let leaders = statuses.filter(|status| status.role == RaftRole::Leader);
    leaders.max_by_key(|status| status.term)
}

/// Waits until every node has applied what the leader has in its log now.
///
/// # Errors
/// When that takes too long.
pub(super) fn catch_up(cluster: &mut Cluster) -> Result<(), String> {
    let mut goal = None;
    let done = cluster.step_until(CATCH_UP_MS, |cluster| {
        let Some(leader) = leader(cluster) else {
            return false;
        };
        let goal = *goal.get_or_insert(leader.last_index);
        let has_all = |node: &Node| {
            let status = node.status();
            status.is_some_and(|status| status.applied_index >= goal) && !node.is_guarded()
        };
        Membership::is_complete(cluster) && cluster.nodes.iter().all(has_all)
    });
    if done {
        return Ok(());
    }
    let states: Vec<String> = cluster.nodes.iter().map(state).collect();
    Err(format!(
        "not all nodes have entry {goal:?} after {CATCH_UP_MS} ms: {}",
        states.join("; ")
    ))
}

fn state(node: &Node) -> String {
    let Some(status) = node.status() else {
        return format!("n{} serves nothing (up: {})", node.id, node.is_up());
    };
    format!(
        "n{} {:?} term {} last {:?} applied {:?}{}",
        node.id,
        status.role,
        status.term,
        status.last_index,
        status.applied_index,
        if node.is_guarded() { " guarded" } else { "" },
    )
}

/// What a scenario is played with.
pub(super) struct Stage<'a> {
    pub(super) cluster: &'a mut Cluster,
    pub(super) workload: &'a Arc<Workload>,
    pub(super) random: &'a mut Random,
    /// Whether logs are damaged in this life: then only the first node may lose its end.
    pub(super) damages: bool,
}

impl Stage<'_> {
    /// Plays one; false when it makes no sense now.
    ///
    /// # Errors
    /// What did not hold meanwhile.
    pub(super) fn play(&mut self, scenario: Scenario) -> Result<bool, String> {
        tracing::info!(?scenario, "begins");
        let all = self.cluster.nodes.len() as u64;
        let at = if self.damages {
            0
        } else {
            self.random.below(all) as usize
        };
        match scenario {
            Scenario::LyingSync => {
                self.cluster.nodes[at].disk().lie("commitlog/0");
                self.run_for(100, 3_000);
                self.restart(at, End::PowerCut(Crash::Lost));
            }
            Scenario::SinglePowerCut => self.restart(at, End::PowerCut(Crash::Lost)),
            Scenario::OlderDisk => return self.older_disk(at),
            Scenario::LongDown => return Ok(self.long_down(false)),
            Scenario::LongDownDamaged => return Ok(self.long_down(true)),
            Scenario::DamagedCheckpoint => {
                if !damage::checkpoint(self.random, self.cluster, at) {
                    return Ok(false);
                }
                self.restart(at, End::Killed);
            }
            Scenario::DamagedSnapshot => return Ok(self.damaged_snapshot()),
            Scenario::SamePlace => return self.same_place(),
            Scenario::DroppedTransfer => return Ok(self.dropped_transfer()),
            Scenario::FailedTransfer => return self.failed_transfer(),
            Scenario::Relapse => return Ok(self.relapse()),
        }
        Ok(true)
    }

    fn run_for(&mut self, least_ms: u64, most_ms: u64) {
        let ms = least_ms + self.random.below(most_ms - least_ms);
        self.cluster.step_until(ms, |_| false);
    }

    fn restart(&mut self, at: usize, end: End) {
        if self.cluster.nodes[at].is_up() {
            self.cluster.nodes[at].kill(end);
        }
        self.cluster.restart_later(at);
    }

    /// Places of the leader and of some follower.
    fn leader_and_follower(&mut self) -> Option<(usize, usize)> {
        let id = leader(self.cluster)?.node_id;
        let nodes = self.cluster.nodes.iter();
        let leader = nodes.clone().position(|node| node.raft_id() == id)?;
        let others: Vec<usize> = (0..nodes.count()).filter(|at| *at != leader).collect();
        let chosen = self.random.below(others.len() as u64) as usize;
        Some((leader, others[chosen]))
    }

    fn older_disk(&mut self, at: usize) -> Result<bool, String> {
        self.cluster.nodes[at].kill(End::Killed);
        let older = self.cluster.nodes[at].disk().files();
        self.cluster.restart_later(at);
        catch_up(self.cluster)?;
        self.run_for(500, 20_000);
        self.cluster.nodes[at].kill(End::Killed);
        self.cluster.nodes[at].restore(older);
        self.cluster.restart_later(at);
        Ok(true)
    }

    /// Asks nodes to delete until they begin where one ends, or, `damaged`, behind its beginning.
    fn long_down(&mut self, damaged: bool) -> bool {
        let Some((_, at)) = self.leader_and_follower() else {
            return false;
        };
        self.cluster.nodes[at].kill(End::Killed);
        let own = damage::segments(&self.cluster.nodes[at]);
        let Some(goal) = (if damaged { own.get(1) } else { own.last() }) else {
            self.cluster.restart_later(at);
            return false;
        };
        let goal = goal.0;
        let others: Vec<usize> = (0..self.cluster.nodes.len())
            .filter(|other| *other != at)
            .collect();
        let reached = |cluster: &Cluster, at: usize| {
            let first = damage::segments(&cluster.nodes[at]);
            first.first().is_some_and(|(base, ..)| *base >= goal)
        };
        for _ in 0..DELETE_MS / 5_000 {
            for other in &others {
                let net = Arc::clone(&self.cluster.clients_net);
                let target = self.cluster.nodes[*other].client_address();
                self.cluster.await_client(3_000, async move {
                    Client::new(net).delete_expired(&target).await;
                });
            }
            self.cluster.step_until(2_000, |_| false);
            // One of them is enough where the other is not heard at first.
            if (others.iter().take(if damaged { 1 } else { 2 }))
                .all(|other| reached(self.cluster, *other))
            {
                break;
            }
        }
        let done = reached(self.cluster, others[0]);
        if done && damaged {
            damage::first_header(self.random, self.cluster, at);
            self.cut(at, others[1]);
            self.cluster.restart_at(at, self.cluster.now_ms + 200);
            self.cluster.step_until(8_000, |_| false);
            self.cluster.free_ways();
        } else {
            self.cluster.restart_later(at);
        }
        done
    }

    fn cut(&self, one: usize, other: usize) {
        let (one, other) = (self.cluster.nodes[one].id, self.cluster.nodes[other].id);
        for (from, to) in [(one, other), (other, one)] {
            let way = Way {
                cut: true,
                ..Way::default()
            };
            self.cluster.network.set_way(from, to, way);
        }
    }

    fn damaged_snapshot(&mut self) -> bool {
        let Some((leader, other)) = self.leader_and_follower() else {
            return false;
        };
        if !damage::checkpoint(self.random, self.cluster, leader) {
            return false;
        }
        self.cluster.replace(other)
    }

    /// The same block of two nodes is damaged; the third one has it. All must have it again.
    fn same_place(&mut self) -> Result<bool, String> {
        let Some((path, offset)) = damage::same_place(self.random, self.cluster) else {
            return Ok(false);
        };
        // Running nodes read everything once a day, and soon after a start.
        for at in 0..2 {
            self.restart(at, End::Killed);
        }
        let mended = (0..MEND_MS / LOOK_MS).any(|_| {
            self.cluster.step_until(LOOK_MS, |_| false);
            damage::is_equal(self.cluster, &path, offset)
        });
        if mended {
            return Ok(true);
        }
        Err(format!(
            "{} is not mended at {offset} after {MEND_MS} ms",
            path.display()
        ))
    }

    fn dropped_transfer(&mut self) -> bool {
        let Some((leader, other)) = self.leader_and_follower() else {
            return false;
        };
        self.cluster.pause(other, 1_500);
        let to = Some(self.cluster.nodes[other].raft_id());
        let after = Duration::from_millis(100 + self.random.below(800));
        self.cluster.nodes[leader].administrate_for(after, move |admin| async move {
            // Nobody waits for the answer.
            let _ = admin.transfer_leader(to).await;
        });
        self.cluster.step_until(3_000, |_| false);
        true
    }

    /// Two of three are left: they must work, whatever the hand-over to the third came to.
    fn failed_transfer(&mut self) -> Result<bool, String> {
        let Some((leader, other)) = self.leader_and_follower() else {
            return Ok(false);
        };
        self.ask(leader, 20_000);
        let to = Some(self.cluster.nodes[other].raft_id());
        self.cluster.nodes[leader].administrate(|admin| async move {
            let _ = admin.transfer_leader(to).await;
        });
        let after = STEP_MS * self.random.below(8);
        self.cluster.step_until(after, |_| false);
        self.cluster.nodes[other].kill(End::PowerCut(Crash::Kept));
        let target = self.cluster.nodes[leader].client_address();
        let works = self.works_through(&target, 15_000);
        self.cluster.restart_later(other);
        works.then_some(true).ok_or_else(|| {
            format!(
                "nothing can be sent through {target} 15 s after the target of a hand-over died"
            )
        })
    }

    /// Whether a message is taken in this time.
    fn works_through(&mut self, target: &str, ms: u64) -> bool {
        let end = self.cluster.now_ms + ms;
        while self.cluster.now_ms < end {
            let (net, target) = (Arc::clone(&self.cluster.clients_net), target.to_owned());
            let work = Arc::clone(self.workload);
            let left = end - self.cluster.now_ms;
            let sent = async move { work.probe(net, &target).await };
            if self.cluster.await_client(left, sent) == Some(true) {
                return true;
            }
        }
        false
    }

    /// Lets clients ask one node for what only a leader knows, without a pause.
    fn ask(&mut self, at: usize, ms: u64) {
        let target = self.cluster.nodes[at].client_address();
        for number in 0..ASKERS {
            let (net, target) = (Arc::clone(&self.cluster.clients_net), target.clone());
            let work = Arc::clone(self.workload);
            let asking = async move { work.ask_at(net, &target, number, ms).await };
            self.cluster.with_clients(|| tokio::spawn(asking));
        }
    }

    /// A leader is cut off and another one acknowledges; they meet again, the new one dies, and the
    /// old one leads once more.
    fn relapse(&mut self) -> bool {
        let Some((old, other)) = self.leader_and_follower() else {
            return false;
        };
        let third = 3 - old - other;
        let term = leader(self.cluster).map_or(0, |leader| leader.term);
        self.cut(old, other);
        self.cut(old, third);
        let led = |cluster: &Cluster| leader(cluster).filter(|leader| leader.term > term);
        if !self
            .cluster
            .step_until(6_000, |cluster| led(cluster).is_some())
        {
            return false;
        }
        let new = led(self.cluster).map_or(0, |leader| leader.node_id);
        let mut nodes = self.cluster.nodes.iter();
        let Some(new) = nodes.position(|node| node.raft_id() == new) else {
            return false;
        };
        let target = self.cluster.nodes[new].client_address();
        self.works_through(&target, 3_000);
        let own = self.cluster.nodes[old].client_address();
        tracing::info!(old = own, new = target, "the replaced leader is asked");
        self.ask(old, 2_000);
        self.run_for(STEP_MS, 500);
        let rest = 3 - old - new;
        self.cluster.nodes[rest].slow = Duration::from_millis(self.random.below(80));
        self.cluster.free_ways();
        let last = leader(self.cluster).and_then(|leader| leader.last_index);
        let has_all = |cluster: &mut Cluster| {
            let status = cluster.nodes[old].status();
            status.is_some_and(|status| status.last_index >= last && status.term > term)
        };
        self.cluster.step_until(2_000, has_all);
        let after = STEP_MS * self.random.below(20);
        self.cluster.step_until(after, |_| false);
        self.restart(new, End::Killed);
        self.cluster.step_until(3_000, |_| false);
        true
    }
}

#[cfg(test)]
mod tests {
    use raftmq::config::FlushDiskType;

    use super::super::node::NodeSettings;
    use super::*;

    #[test]
    fn a_node_that_does_not_catch_up_is_found() {
        let settings = NodeSettings {
            nodes: 3,
            segment_bytes: 64 << 10,
            flush: FlushDiskType::SyncFlush,
            deletes: false,
            disk_bytes: 64 << 20,
            formed: true,
            part_bytes: None,
        };
        let mut cluster = Cluster::new(settings, 7);
        assert_eq!(catch_up(&mut cluster), Ok(()));
        cluster.nodes[1].kill(End::Killed);
        let problem = catch_up(&mut cluster).unwrap_err();
        assert!(
            problem.contains("n2 serves nothing (up: false)"),
            "{problem}"
        );
        cluster.heal();
        assert_eq!(catch_up(&mut cluster), Ok(()));
    }
}
