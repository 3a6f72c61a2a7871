//! Snapshots when checkpoints are damaged.

use std::path::Path;

use raftmq_state::State;
use raftmq_store::{EntryKind, LogConfig, LogId as StoreLogId, NewEntry, index::QueueIndex};
use raftmq_tests::sim::disk::SimDisk;

use super::*;
use crate::long_poll::LongPoll;

/// What is purged, with a checkpoint for it.
const PURGED: u64 = 10;
/// Another checkpoint.
const LATER: u64 = 20;
const APPLIED: u64 = 29;

struct Node {
    disk: SimDisk,
    checkpoints: Arc<Checkpoints>,
    raft_machine: RaftMachine,
}

fn id(index: u64) -> StoreLogId {
    StoreLogId {
        term: 1,
        node: 0,
        index,
    }
}

fn job(index: u64, queues: &QueueIndex) -> Job {
    Job {
        id: id(index),
        state: State::new().encode(),
        membership: MembershipRecord::default(),
        index: queues.freeze(),
        last_store_timestamp_ms: 0,
        roll: index == PURGED,
    }
}

/// A node that has purged, and applied everything.
fn node() -> Node {
    let disk = SimDisk::default();
    let shared: Arc<dyn raftmq_store::Disk> = Arc::new(disk.clone());
    let config = LogConfig {
        preallocate_bytes: 0,
        ..LogConfig::new("/log")
    };
    let (log, ..) = CommitLog::open(Arc::clone(&shared), config, None).unwrap();
    let entry = |index| NewEntry {
        id: id(index),
        kind: EntryKind::Blank,
        count: 0,
        payload: Bytes::new(),
    };
    log.append((0..=APPLIED).map(entry).collect(), Box::new(|_| ()))
        .unwrap();
    log.flush().unwrap();
    let queues =
        Arc::new(QueueIndex::open(Arc::clone(&shared), Path::new("/queue"), None).unwrap());
    let checkpoints = Checkpoints::open(Arc::clone(&shared), Path::new("/checkpoint")).unwrap();
    for index in [PURGED, LATER] {
        checkpoints
            .write(job(index, &queues), &log, &queues)
            .unwrap();
    }
    log.purge_upto(id(PURGED)).unwrap();
    let checkpoints = Arc::new(checkpoints);
    let long_poll = Arc::new(LongPoll::default());
    let machine = Machine::new(State::new(), Arc::clone(&queues), log, long_poll, 0);
    let machine = Arc::new(machine);
    let writer =
        CheckpointWriter::start(Arc::clone(&checkpoints), Arc::clone(machine.log()), queues);
    let raft_machine = RaftMachine::new(RaftMachineParts {
        snapshot_target: SnapshotTarget::begin(machine.log(), &checkpoints, Some(id(APPLIED))),
        machine,
        checkpoints: Arc::clone(&checkpoints),
        writer,
        boundary: SnapshotBoundary::default(),
        applied: Some(log_id(id(APPLIED))),
        membership: MembershipRecord::default(),
        checkpoint_physical: 0,
        metrics: Arc::new(Metrics::new()),
    });
    Node {
        disk,
        checkpoints,
        raft_machine: raft_machine.unwrap(),
    }
}

impl Node {
    fn flip(&self, index: u64) {
        let path = format!("/checkpoint/checkpoint-{index:020}");
        assert!(self.disk.flip_bit(Path::new(&path), 60, 1));
    }

    /// Where the snapshot for a follower stands.
    async fn snapshot(&mut self) -> u64 {
        let snapshot = self.raft_machine.get_current_snapshot().await.unwrap();
        let snapshot = snapshot.unwrap();
        let found = Checkpoint::decode(snapshot.snapshot.bytes).unwrap();
        let restored = checkpoint::restore(&found).unwrap();
        assert_eq!(snapshot.meta.last_log_id, Some(log_id(restored.id)));
        let log = &self.raft_machine.log;
        let position = log.position_at(restored.id.index).unwrap();
        let found = (restored.position.end_physical, restored.position.crc);
        assert_eq!(found, (position.end_physical, position.crc));
        restored.id.index
    }
}

#[tokio::test]
async fn a_damaged_checkpoint_is_replaced_by_another_or_by_the_state_in_memory() {
    let mut node = node();
    assert_eq!(node.snapshot().await, PURGED);
    assert!(!node.checkpoints.is_one_wanted());
    node.flip(PURGED);
    assert_eq!(node.snapshot().await, LATER);
    // Another checkpoint is to be taken for it.
    assert!(node.checkpoints.is_one_wanted());
    let mut builder = node.raft_machine.get_snapshot_builder().await;
    let built = builder.build_snapshot().await.unwrap();
    assert_eq!(built.meta.last_log_id, Some(log_id(id(LATER))));
    node.flip(LATER);
    assert_eq!(node.snapshot().await, APPLIED);
}

#[tokio::test]
async fn the_scrub_finds_a_damaged_checkpoint() {
    let node = node();
    assert_eq!(node.checkpoints.indexes(), [PURGED, LATER]);
    assert!(node.checkpoints.scrub(LATER).is_some_and(|bytes| bytes > 0));
    node.flip(LATER);
    assert_eq!(node.checkpoints.scrub(LATER), None);
    assert_eq!(node.checkpoints.indexes(), [PURGED]);
    assert!(node.checkpoints.is_one_wanted());
    // One that is gone is not damaged.
    assert_eq!(node.checkpoints.scrub(LATER), Some(0));
}

#[tokio::test]
async fn the_snapshot_never_moves_back_to_what_a_later_one_has_replaced() {
    let mut node = node();
    let target = node.raft_machine.snapshot_target.clone();
    assert_eq!(target.get(), PURGED);
    let log = &node.raft_machine.log;
    let position = raftmq_store::LogPosition {
        id: id(100),
        end_physical: log.max_physical() + 1000,
        crc: 7,
        term_starts: vec![id(0)],
    };
    let content = (State::new().encode(), &MembershipRecord::default(), 0);
    let sent = pieces_of(&checkpoint_at(&position, content)).unwrap();
    let sent = snapshot_of(sent).unwrap();
    let installed = node
        .raft_machine
        .install_snapshot(&sent.meta, sent.snapshot);
    installed.await.unwrap();
    // A purge that had chosen its point before.
    target.raise(LATER);
    assert_eq!(target.get(), 100);
}
