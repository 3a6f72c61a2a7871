//! A node that comes back with less of the log than its leader counts as acknowledged: after a power
//! cut with `ASYNC_FLUSH`, from a disk that did not keep what it had synced, from an older copy of its
//! volume. It catches up under the same leader; only with `SYNC_FLUSH` it withholds its vote meanwhile.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test program: whatever is not as expected ends it"
)]

use std::path::PathBuf;
use std::sync::Arc;

use raftmq::config::FlushDiskType;
use raftmq_store::{CommitLog, LogConfig, end_guard};
use raftmq_tests::sim::client::Client;
use raftmq_tests::sim::cluster::Cluster;
use raftmq_tests::sim::disk::SimDisk;
use raftmq_tests::sim::history::Outcome;
use raftmq_tests::sim::image::Crash;
use raftmq_tests::sim::node::{End, Node, NodeSettings};

/// How long a cluster may take until a message can be sent. Unit: ms.
const READY_MS: u64 = 15_000;
/// How long a node may take to start and to catch up with a few entries. Unit: ms.
const CATCH_UP_MS: u64 = 10_000;
/// What the other two commit while the node is down.
const MEANWHILE: u64 = 5;

type Files = Vec<(PathBuf, Vec<u8>)>;

struct Group {
    cluster: Cluster,
    sent: u64,
}

impl Group {
    fn start(flush: FlushDiskType, seed: u64) -> Self {
        let settings = NodeSettings {
            nodes: 3,
            segment_bytes: 64 << 10,
            flush,
            deletes: false,
            disk_bytes: 64 << 20,
            formed: false,
            part_bytes: None,
        };
        let mut group = Self {
            cluster: Cluster::new(settings, seed),
            sent: 0,
        };
        let net = Arc::clone(&group.cluster.clients_net);
        let broker = group.cluster.nodes[0].client_address();
        let mut created = false;
        for _ in 0..READY_MS / 1_000 {
            let (net, broker) = (Arc::clone(&net), broker.clone());
            let task = async move { Client::new(net).create_topic(&broker, 1).await };
            created = group.cluster.await_client(3_000, task) == Some(true);
            if created {
                break;
            }
        }
        assert!(created, "no leader");
        group
    }

    /// Sends messages through a node; all are acknowledged.
    fn send(&mut self, through: usize, count: u64) {
        for _ in 0..count {
            let net = Arc::clone(&self.cluster.clients_net);
            let broker = self.cluster.nodes[through].client_address();
            let id = self.sent;
            let task = async move { Client::new(net).send(&broker, 0, id).await };
            let outcome = self.cluster.await_client(5_000, task);
            assert!(matches!(outcome, Some(Outcome::Done(_))), "{outcome:?}");
            self.sent += 1;
        }
    }

    fn leader(&self) -> (usize, u64) {
        leader_of(&self.cluster).unwrap()
    }

    fn last(&self, at: usize) -> Option<u64> {
        self.cluster.nodes[at].status()?.last_index
    }

    /// Lets time pass until all nodes have applied what the leader has; the leader stays the same.
    fn catch_up(&mut self, leader: usize) {
        let term = self.leader().1;
        let done = self.cluster.step_until(CATCH_UP_MS, |cluster| {
            let status = |at: usize| cluster.nodes[at].status();
            let end = status(leader).and_then(|status| status.last_index);
            (0..3).all(|at| status(at).is_some_and(|status| status.applied_index == end))
        });
        let ends: Vec<_> = (0..3).map(|at| self.last(at)).collect();
        assert!(done, "ends of the logs: {ends:?}; {:?}", self.cluster.ends);
        assert_eq!(self.leader(), (leader, term), "another leader");
        assert_eq!(self.cluster.ends, [], "no process may end");
    }
}

#[test]
fn a_follower_catches_up_under_the_same_leader_after_a_power_cut_with_async_flush() {
    let mut group = Group::start(FlushDiskType::AsyncFlush, 1);
    let (leader, _) = group.leader();
    let follower = (leader + 1) % 3;
    group.catch_up(leader);
    group.send(leader, 20);
    let had = group.last(follower).unwrap();
    group.cluster.nodes[follower].kill(End::PowerCut(Crash::Lost));
    let kept = last_on_disk(&mut group.cluster.nodes[follower]);
    assert!(kept < had, "{kept} of {had} are left: nothing was lost");
    group.send(leader, MEANWHILE);
    group.cluster.restart_at(follower, group.cluster.now_ms);
    group.catch_up(leader);
}

#[test]
fn a_follower_with_an_older_copy_of_its_volume_is_guarded_until_it_has_caught_up() {
    let mut group = Group::start(FlushDiskType::SyncFlush, 2);
    let (leader, _) = group.leader();
    let follower = (leader + 1) % 3;
    group.send(leader, 5);
    group.catch_up(leader);
    let node = &mut group.cluster.nodes[follower];
    node.kill(End::Killed);
    let mut older = Files::new();
    node.edit_files(|files| older.clone_from(files));
    node.start();
    group.catch_up(leader);
    group.send(leader, 20);
    group.catch_up(leader);
    let node = &mut group.cluster.nodes[follower];
    node.kill(End::Killed);
    node.edit_files(|files| *files = older);
    group.send(leader, MEANWHILE);
    group.cluster.nodes[follower].start();
    // It is known as soon as the leader's connection is there.
    let mut was_guarded = false;
    group.cluster.step_until(CATCH_UP_MS, |cluster| {
        was_guarded |= log_on_disk(&mut cluster.nodes[follower], |log| log.is_guarded());
        was_guarded
    });
    assert!(
        was_guarded,
        "it votes, though it acknowledged what it lacks"
    );
    group.catch_up(leader);
    let ended = group.cluster.step_until(CATCH_UP_MS, |cluster| {
        !log_on_disk(&mut cluster.nodes[follower], |log| log.is_guarded())
    });
    assert!(ended, "it has everything and does not vote");
}

/// What came of a group in which one node is guarded and another one, the leader, never comes back.
struct Left {
    group: Group,
    guarded: usize,
}

impl Left {
    /// `later_term`: with an election after the guarded node had acknowledged for the last time.
    fn new(later_term: bool, seed: u64) -> Self {
        let mut group = Group::start(FlushDiskType::SyncFlush, seed);
        let (leader, term) = group.leader();
        let guarded = (leader + 1) % 3;
        group.send(leader, 5);
        group.catch_up(leader);
        let node = &mut group.cluster.nodes[guarded];
        node.kill(End::Killed);
        node.edit_files(guard);
        if later_term {
            group.cluster.nodes[leader].kill(End::Killed);
            group.cluster.nodes[leader].start();
            let elected = group.cluster.step_until(READY_MS, |cluster| {
                leader_of(cluster).is_some_and(|(_, later)| later > term)
            });
            assert!(elected, "no leader of two");
        }
        let (leader, _) = group.leader();
        group.send(leader, MEANWHILE);
        group.cluster.nodes[leader].kill(End::Killed);
        group.cluster.nodes[guarded].start();
        Self { group, guarded }
    }

    fn has_leader(&mut self) -> bool {
        let cluster = &mut self.group.cluster;
        cluster.step_until(READY_MS, |cluster| leader_of(cluster).is_some())
    }
}

#[test]
fn a_guarded_node_helps_one_that_ends_in_a_later_term() {
    let mut left = Left::new(true, 3);
    assert!(
        left.has_leader(),
        "the third node has everything for certain"
    );
    let (leader, _) = left.group.leader();
    assert_ne!(leader, left.guarded, "a guarded node does not stand");
    left.group.send(leader, 1);
}

#[test]
fn a_guarded_node_helps_nobody_who_may_lack_what_is_lost_but_on_the_word_of_an_operator() {
    let mut left = Left::new(false, 4);
    assert!(!left.has_leader(), "the third node may lack something");
    let node = &mut left.group.cluster.nodes[left.guarded];
    node.kill(End::Killed);
    node.edit_files(|files| {
        let disk = SimDisk::of_files(files.clone());
        assert!(end_guard(&disk, &Node::segments()).unwrap());
        *files = disk.files();
    });
    node.start();
    assert!(left.has_leader(), "nothing keeps it from voting");
}

#[test]
fn a_node_that_voted_in_a_later_term_is_not_kept_out_when_it_starts_again() {
    let mut group = Group::start(FlushDiskType::SyncFlush, 6);
    let (leader, term) = group.leader();
    let follower = (leader + 1) % 3;
    group.send(leader, 5);
    group.catch_up(leader);
    let node = &mut group.cluster.nodes[follower];
    node.kill(End::Killed);
    // It stood and was not elected: the others hear their leader.
    let id = node.raft_id();
    let vote = [(term + 1).to_le_bytes(), id.to_le_bytes()].concat();
    let vote = [vote, vec![0]].concat();
    node.edit_files(|files| edit_log(files, |log| log.save_vote(&vote).unwrap()));
    node.start();
    let follows = |cluster: &Cluster| {
        let status = cluster.nodes[follower].status()?;
        let (_, now) = leader_of(cluster)?;
        (now > term && status.term == now && status.leader_id.is_some()).then_some(())
    };
    let done = (group.cluster).step_until(CATCH_UP_MS, |cluster| follows(cluster).is_some());
    assert!(done, "{:?}", group.cluster.nodes[follower].status());
    let (leader, _) = group.leader();
    group.send(follower, 1);
    group.catch_up(leader);
}

/// The last entry on the disk of a machine that is switched off.
fn leader_of(cluster: &Cluster) -> Option<(usize, u64)> {
    (0..3).find_map(|at| {
        let status = cluster.nodes[at].status()?;
        (status.leader_id == Some(status.node_id)).then_some((at, status.term))
    })
}

/// Marks a log as one that lost its end.
fn guard(files: &mut Files) {
    edit_log(files, |log| log.begin_guard().unwrap());
}

/// Changes the log of a node that is down.
fn edit_log(files: &mut Files, work: impl FnOnce(&CommitLog)) {
    let disk = Arc::new(SimDisk::of_files(files.clone()));
    let config = LogConfig {
        segment_bytes: 64 << 10,
        ..LogConfig::new(Node::segments())
    };
    let (log, ..) = CommitLog::open(Arc::clone(&disk) as _, config, None).unwrap();
    work(&log);
    drop(log);
    *files = disk.files();
}

/// What the log of a node is like that opens what is on its disk now.
fn log_on_disk<T>(node: &mut Node, look: impl FnOnce(&CommitLog) -> T) -> T {
    let config = LogConfig {
        segment_bytes: node.segment_bytes(),
        ..LogConfig::new(Node::segments())
    };
    let disk = Arc::new(SimDisk::of_files(node.disk().files()));
    let (log, ..) = CommitLog::open(disk, config, None).unwrap();
    look(&log)
}

fn last_on_disk(node: &mut Node) -> u64 {
    log_on_disk(node, |log| log.last_id().map_or(0, |id| id.index))
}
