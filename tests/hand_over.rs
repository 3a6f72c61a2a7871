//! Leaders that hand over and groups that change, in simulated time: callers go away, the node that
//! shall lead is gone or must not lead, disks stall. The group must go on taking messages.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test program: whatever is not as expected ends it"
)]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raftmq::config::FlushDiskType;
use raftmq::http::AdminOps;
use raftmq::status::{RaftRole, RaftStatus};
use raftmq_tests::sim::client::Client;
use raftmq_tests::sim::cluster::Cluster;
use raftmq_tests::sim::history::Outcome;
use raftmq_tests::sim::net::Way;
use raftmq_tests::sim::node::{End, NodeSettings};
use tokio::time::timeout;

/// How long a healthy group may take for anything. Unit: ms.
const SOON_MS: u64 = 10_000;
/// How long a paused node gets no processor time. Unit: ms.
const PAUSE_MS: u64 = 6_000;

/// Three nodes with a leader and a topic.
struct Bed {
    cluster: Cluster,
    sent: u64,
}

impl Bed {
    fn new(seed: u64) -> Self {
        let settings = NodeSettings {
            nodes: 3,
            segment_bytes: 64 << 10,
            flush: FlushDiskType::SyncFlush,
            deletes: false,
            disk_bytes: 64 << 20,
            formed: false,
            part_bytes: None,
        };
        let mut bed = Self {
            cluster: Cluster::new(settings, seed),
            sent: 0,
        };
        let ready = |cluster: &mut Cluster| {
            let statuses = cluster.nodes.iter().map(|node| node.status());
            statuses
                .into_iter()
                .all(|status| status.is_some_and(|status| status.ready))
        };
        assert!(
            bed.cluster.step_until(SOON_MS, ready),
            "a group that is ready"
        );
        let (net, broker) = bed.client(0);
        let create = async move { Client::new(net).create_topic(&broker, 1).await };
        assert_eq!(bed.cluster.await_client(SOON_MS, create), Some(true));
        bed
    }

    fn client(&self, at: usize) -> (Arc<dyn raftmq::net::Net>, String) {
        let brokers = self.cluster.brokers.lock().unwrap();
        (Arc::clone(&self.cluster.clients_net), brokers[at].clone())
    }

    fn leader(&self) -> Option<usize> {
        leader_of(&self.cluster)
    }

    fn status(&self, at: usize) -> Option<Arc<RaftStatus>> {
        self.cluster.nodes[at].status()
    }

    /// The leader and the two others.
    fn places(&self) -> (usize, usize, usize) {
        let leader = self.leader().unwrap();
        (leader, (leader + 1) % 3, (leader + 2) % 3)
    }

    fn id(&self, at: usize) -> u64 {
        self.cluster.nodes[at].raft_id()
    }

    /// Whether a message is taken within so long.
    fn takes_message(&mut self, at: usize, most_ms: u64) -> bool {
        self.sent += 1;
        let (net, broker) = self.client(at);
        let first = self.sent << 32;
        let send = async move {
            let mut client = Client::new(net);
            for id in first.. {
                match client.send(&broker, 0, id).await {
                    Outcome::Done(_) => return,
                    _ => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        self.cluster.await_client(most_ms, send).is_some()
    }

    /// Asks the node at `at` for something that its caller drops after `ms`, unless it is done.
    fn ask<T: Future<Output = ()> + Send + 'static>(
        &self,
        at: usize,
        ms: u64,
        work: impl FnOnce(Arc<dyn AdminOps>) -> T,
    ) {
        self.cluster.nodes[at].administrate(|admin| {
            let work = work(admin);
            async move {
                let _ = timeout(Duration::from_millis(ms), work).await;
            }
        });
    }

    /// Asks the node at `at` to hand over and waits for its answer.
    fn hand_over(&mut self, at: usize, to: Option<u64>) -> Result<(), String> {
        let answer = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&answer);
        self.ask(at, SOON_MS, |admin| async move {
            let result = admin.transfer_leader(to).await;
            *slot.lock().unwrap() = Some(result.map_err(|error| error.to_string()));
        });
        let done = Arc::clone(&answer);
        let in_time = |_: &mut Cluster| done.lock().unwrap().is_some();
        assert!(self.cluster.step_until(SOON_MS, in_time), "an answer");
        answer.lock().unwrap().take().unwrap()
    }

    /// Cuts a node off from the other two.
    fn cut_off(&self, at: usize) {
        let ids: Vec<_> = self.cluster.nodes.iter().map(|node| node.id).collect();
        for other in ids.iter().filter(|id| **id != ids[at]) {
            for (from, to) in [(ids[at], *other), (*other, ids[at])] {
                let way = self.cluster.network.way(from, to);
                self.cluster
                    .network
                    .set_way(from, to, Way { cut: true, ..way });
            }
        }
    }

    fn run(&mut self, ms: u64) {
        self.cluster.step_until(ms, |_| false);
    }
}

#[test]
fn a_hand_over_whose_caller_goes_away_does_not_stop_the_intake() {
    let mut bed = Bed::new(1);
    let (leader, target, _) = bed.places();
    bed.cluster.pause(target, PAUSE_MS);
    // So that the target lacks something.
    assert!(bed.takes_message(leader, 1_000));
    let to = Some(bed.id(target));
    bed.ask(leader, 500, move |admin| async move {
        let _ = admin.transfer_leader(to).await;
    });
    bed.run(600);
    assert!(
        bed.takes_message(leader, 1_000),
        "while the target is paused"
    );
    bed.run(PAUSE_MS + 4_000);
    assert!(bed.takes_message(leader, SOON_MS), "after it has returned");
}

#[test]
fn a_target_that_is_gone_costs_nothing_although_the_leader_is_asked_for_the_truth_all_the_time() {
    let mut bed = Bed::new(2);
    let (leader, target, _) = bed.places();
    let to = Some(bed.id(target));
    bed.ask(leader, SOON_MS, move |admin| async move {
        let _ = admin.transfer_leader(to).await;
    });
    // It has everything, and is gone before it hears that it shall lead.
    bed.cut_off(target);
    let (net, broker) = bed.client(leader);
    let asks = bed.cluster.with_clients(|| {
        tokio::spawn(async move {
            let mut client = Client::new(net);
            loop {
                let _ = client.end(&broker, 0).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    });
    bed.run(1_000);
    assert!(bed.takes_message(leader, SOON_MS), "somebody leads");
    asks.abort();
}

#[test]
fn a_target_whose_disk_stalls_holds_the_intake_up_for_a_moment_only() {
    let mut bed = Bed::new(9);
    let (leader, target, _) = bed.places();
    let to = Some(bed.id(target));
    // It has everything and may lead, and cannot make its vote durable.
    bed.cluster.nodes[target].slow = Duration::from_secs(10);
    bed.hand_over(leader, to).unwrap_err();
    assert_eq!(bed.leader(), Some(leader));
    assert!(bed.takes_message(leader, 1_000));
}

#[test]
fn a_change_of_voters_whose_caller_goes_away_is_finished() {
    for ms in [2, 4, 6, 8, 12] {
        let mut bed = Bed::new(3);
        let (leader, other, gone) = bed.places();
        let voters = BTreeSet::from([bed.id(leader), bed.id(other)]);
        let wanted = voters.clone();
        bed.ask(leader, ms, move |admin| async move {
            let _ = admin.change_membership(voters).await;
        });
        let is_changed = |cluster: &mut Cluster| voters_of(cluster, leader) == Some(wanted.clone());
        let changed = bed.cluster.step_until(SOON_MS, is_changed);
        assert!(changed, "dropped after {ms} ms: node {gone} still votes");
    }
}

#[test]
fn the_next_leader_finishes_a_change_of_voters() {
    let mut bed = Bed::new(4);
    let (leader, other, _) = bed.places();
    let voters = BTreeSet::from([bed.id(leader), bed.id(other)]);
    let wanted = voters.clone();
    bed.ask(leader, SOON_MS, move |admin| async move {
        let _ = admin.change_membership(voters).await;
    });
    // The others have the first of the two entries.
    let begun = |cluster: &mut Cluster| {
        (0..3).all(|at| {
            at == leader
                || cluster.nodes[at]
                    .status()
                    .is_some_and(|status| status.joint)
        })
    };
    assert!(bed.cluster.step_until(SOON_MS, begun), "the first step");
    bed.cluster.nodes[leader].kill(End::Killed);
    bed.cluster.restart_at(leader, bed.cluster.now_ms + 3_000);
    let is_changed = |cluster: &mut Cluster| {
        (0..3).any(|at| at != leader && voters_of(cluster, at) == Some(wanted.clone()))
    };
    assert!(bed.cluster.step_until(SOON_MS, is_changed));
}

/// Where the leader of the newest term is.
fn leader_of(cluster: &Cluster) -> Option<usize> {
    let leads = |at: usize| {
        let status = cluster.nodes[at].status()?;
        (status.role == RaftRole::Leader).then_some((status.term, at))
    };
    let places = 0..cluster.nodes.len();
    places.filter_map(leads).max().map(|(_, at)| at)
}

/// The voters that the node at `at` knows, once no change is under way.
fn voters_of(cluster: &Cluster, at: usize) -> Option<BTreeSet<u64>> {
    let status = cluster.nodes[at].status()?;
    (!status.joint).then(|| status.voters.iter().map(|member| member.id).collect())
}

#[test]
fn a_voter_that_does_not_say_that_it_may_lead_is_passed_over() {
    // Whoever has the larger id comes first, as both have everything.
    for silent in [1, 2] {
        let mut bed = Bed::new(5);
        let (leader, ..) = bed.places();
        let silent = (leader + silent) % 3;
        let other = 3 - leader - silent;
        let before = bed.status(leader).unwrap().term;
        bed.cluster.pause(silent, PAUSE_MS);
        let refused = bed.hand_over(leader, Some(bed.id(silent)));
        assert!(refused.is_err(), "not the one that was asked for");
        assert_eq!(bed.leader(), Some(leader), "this node leads on");
        assert_eq!(bed.hand_over(leader, None), Ok(()));
        let moved = |cluster: &mut Cluster| leader_of(cluster) == Some(other);
        assert!(bed.cluster.step_until(500, moved));
        assert_eq!(bed.status(other).unwrap().term, before + 1);
    }
}

#[test]
fn a_node_whose_disk_is_full_is_not_made_leader() {
    let mut bed = Bed::new(5);
    let (leader, full, other) = bed.places();
    let disk = bed.cluster.nodes[full].disk().clone();
    disk.set_quota(Some(disk.used_bytes()));
    // Until the space ahead of its log is used up as well.
    for _ in 0..400 {
        assert!(bed.takes_message(leader, SOON_MS));
    }
    bed.run(2_000);
    assert_eq!(bed.leader(), Some(leader));
    let refused = bed.hand_over(leader, Some(bed.id(full)));
    assert!(refused.is_err(), "it must not lead");
    assert_eq!(bed.leader(), Some(leader), "and nothing has changed");
    assert_eq!(bed.hand_over(leader, None), Ok(()));
    let moved = |cluster: &mut Cluster| leader_of(cluster) == Some(other);
    assert!(bed.cluster.step_until(500, moved), "the one that may lead");
}

#[test]
fn a_disk_that_all_brokers_share_does_not_send_the_leadership_round() {
    let mut bed = Bed::new(6);
    let (leader, ..) = bed.places();
    let before = bed.status(leader).unwrap().term;
    for _ in 0..4 {
        for node in &mut bed.cluster.nodes {
            node.slow = Duration::from_millis(900);
        }
        for _ in 0..3 {
            bed.takes_message(leader, 3_000);
        }
        for node in &mut bed.cluster.nodes {
            node.slow = Duration::ZERO;
        }
        bed.run(1_000);
    }
    let now = bed.leader().unwrap();
    let after = bed.status(now).unwrap().term;
    assert_eq!((now, after), (leader, before), "nobody has a better disk");
}

#[test]
fn a_leader_whose_disk_alone_stalls_is_replaced_once() {
    let mut bed = Bed::new(7);
    let (leader, other, _) = bed.places();
    let before = bed.status(leader).unwrap().term;
    bed.cluster.nodes[leader].slow = Duration::from_secs(5);
    // Something that waits for the disk.
    assert!(bed.takes_message(other, SOON_MS));
    let moved = |cluster: &mut Cluster| leader_of(cluster).is_some_and(|now| now != leader);
    assert!(bed.cluster.step_until(3_000, moved), "another one leads");
    let now = bed.leader().unwrap();
    bed.cluster.nodes[leader].slow = Duration::ZERO;
    for _ in 0..20 {
        assert!(bed.takes_message(other, SOON_MS));
        bed.run(500);
    }
    assert_eq!(bed.leader(), Some(now));
    assert_eq!(bed.status(now).unwrap().term, before + 1);
}

#[test]
fn what_a_follower_has_shown_is_in_the_answers_of_a_slower_leader() {
    let mut bed = Bed::new(8);
    let (leader, follower, _) = bed.places();
    let ((net, at_leader), (_, at_follower)) = (bed.client(leader), bed.client(follower));
    bed.cluster.nodes[leader].slow = Duration::from_millis(300);
    let mut sender = Client::new(Arc::clone(&net));
    let broker = at_leader.clone();
    let send = async move {
        for id in 1..=600 {
            sender.send(&broker, 0, id).await;
        }
    };
    let look = async move {
        let mut client = Client::new(net);
        let mut looks = Vec::new();
        while looks.last().is_none_or(|(shown, _)| *shown < 600) {
            let shown = client.end_of_own(&at_follower, (0, 0)).await.unwrap();
            let answered = client.end(&at_leader, 0).await.unwrap();
            looks.push((shown, answered));
        }
        looks
    };
    let both = async move { tokio::join!(send, look).1 };
    let looks = bed.cluster.await_client(60_000, both).expect("in time");
    let older: Vec<_> = looks.iter().filter(|(shown, end)| end < shown).collect();
    assert!(older.is_empty(), "{older:?}");
    assert_eq!(bed.leader(), Some(leader));
}
