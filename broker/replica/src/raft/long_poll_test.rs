//! How long Raft's thread is held with a large state: while a node catches up from segments that
//! have left the memory and takes checkpoints on the way, and while a snapshot is sent and installed.
//!
//! A time limit would fail on a busy machine, so what is checked is the cost: nothing that reaches
//! the disk runs on that thread. The times are printed. With a million queues:
//!
//!     RAFTMQ_LONG_POLL_QUEUES=1000000 cargo test --release -p raftmq-replica --lib long_poll_test -- --nocapture

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use bytes::Bytes;
use futures::StreamExt;
use openraft::storage::{RaftLogReader, RaftStateMachine};
use prometheus::{HistogramOpts, HistogramVec};
use raftmq_remoting::body::TopicConfig;
use raftmq_state::{Command, PayloadBuilder, State};
use raftmq_store::{
    CommitLog, Disk, DiskFile, DiskLock, DiskSpace, EntryKind, FlushOutcome, Flusher, LogConfig,
    LogId as StoreLogId, NewEntry, RealDisk, index::QueueIndex,
};
use tokio::runtime::Handle;

use super::{
    log_store::{LogStore, SnapshotBoundary},
    machine::{RaftMachine, RaftMachineParts, SnapshotTarget, receive_snapshot},
    runtime::{observe_polls, take_longest_poll, timed},
    start_runtime,
};
use crate::{
    checkpoint::{CheckpointWriter, Checkpoints, MembershipRecord},
    long_poll::LongPoll,
    machine::Machine,
    metrics::Metrics,
};

const QUEUES_VARIABLE: &str = "RAFTMQ_LONG_POLL_QUEUES";
const QUEUES_DEFAULT: usize = 10_000;
const QUEUES_PER_TOPIC: u32 = 16;
const TOPICS_PER_ENTRY: usize = 32;
/// Small, so that a few thousand queues fill several; checkpoints are taken at their ends.
const SEGMENT_BYTES: u64 = 16 << 10;
/// Checkpoints of a large state on the way: as many segments.
const SEGMENTS: u64 = 8;

/// The real disk, which counts what Raft's thread asks of it.
#[derive(Clone, Debug, Default)]
struct CountingDisk {
    on_raft_thread: Arc<AtomicUsize>,
}

impl CountingDisk {
    fn note(&self) {
        if thread::current().name() == Some("raft") {
            self.on_raft_thread.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counted(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        let disk = self.clone();
        Arc::new(CountingFile { disk, file })
    }
}

impl Disk for CountingDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.note();
        RealDisk.create(path).map(|file| self.counted(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.note();
        RealDisk.open(path).map(|file| self.counted(file))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.note();
        RealDisk.exists(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.note();
        RealDisk.list(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.note();
        RealDisk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note();
        RealDisk.rename(from, to)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.note();
        RealDisk.create_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.note();
        RealDisk.sync_dir(dir)
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        self.note();
        RealDisk.space(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        RealDisk.lock(path)
    }
}

#[derive(Debug)]
struct CountingFile {
    disk: CountingDisk,
    file: Arc<dyn DiskFile>,
}

impl DiskFile for CountingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.note();
        self.file.read_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.disk.note();
        self.file.write_all_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.note();
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.note();
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.note();
        self.file.set_len(len)
    }
}

/// The parts of a node below Raft.
struct Node {
    store: LogStore,
    machine: RaftMachine,
    target: SnapshotTarget,
    checkpoints: Arc<Checkpoints>,
    log: Arc<CommitLog>,
}

fn run_flusher(mut flusher: Flusher) {
    thread::spawn(move || {
        while matches!(
            flusher.run_once(),
            FlushOutcome::Idle | FlushOutcome::Flushed { .. }
        ) {}
    });
}

impl Node {
    fn open(disk: &CountingDisk, dir: &Path, segment_bytes: u64) -> Self {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let config = LogConfig {
            segment_bytes,
            tail_bytes: 256,
            preallocate_bytes: 0,
            ..LogConfig::new(dir.join("commitlog"))
        };
        let (log, flusher, ..) = CommitLog::open(Arc::clone(&disk), config, None).unwrap();
        run_flusher(flusher);
        let index = QueueIndex::open(Arc::clone(&disk), &dir.join("consumequeue"), None).unwrap();
        let machine = Arc::new(Machine::new(
            State::new(),
            Arc::new(index),
            Arc::clone(&log),
            Arc::new(LongPoll::default()),
            0,
        ));
        let checkpoints = Arc::new(Checkpoints::open(disk, &dir.join("checkpoint")).unwrap());
        let boundary = SnapshotBoundary::default();
        let target = SnapshotTarget::default();
        let writer = CheckpointWriter::start(
            Arc::clone(&checkpoints),
            Arc::clone(&log),
            Arc::clone(machine.index()),
        );
        let machine = RaftMachine::new(RaftMachineParts {
            machine,
            checkpoints: Arc::clone(&checkpoints),
            writer,
            snapshot_target: target.clone(),
            boundary: Arc::clone(&boundary),
            applied: None,
            membership: MembershipRecord::default(),
            checkpoint_physical: 0,
            metrics: Arc::new(Metrics::new()),
        })
        .unwrap();
        Self {
            store: LogStore::new(Arc::clone(&log), boundary, 1),
            machine,
            target,
            checkpoints,
            log,
        }
    }
}

/// Entries that make topics with so many queues together.
fn entries(queues: usize) -> Vec<NewEntry> {
    let topics: Vec<usize> = (0..queues.div_ceil(QUEUES_PER_TOPIC as usize)).collect();
    let entry = |(index, topics): (u64, &[usize])| {
        let mut payload = PayloadBuilder::new(1);
        for topic in topics {
            let config = TopicConfig::new(format!("topic-{topic}"), QUEUES_PER_TOPIC, 6);
            let command = Command::PutTopic {
                config,
                only_if_absent: false,
            };
            payload.push(&command.encode());
        }
        NewEntry {
            id: StoreLogId {
                term: 1,
                node: 0,
                index,
            },
            kind: EntryKind::Normal,
            count: payload.count(),
            payload: payload.finish(),
        }
    };
    let blank = NewEntry {
        id: StoreLogId {
            term: 1,
            node: 0,
            index: 0,
        },
        kind: EntryKind::Blank,
        count: 0,
        payload: Bytes::new(),
    };
    let normal = (1..).zip(topics.chunks(TOPICS_PER_ENTRY)).map(entry);
    std::iter::once(blank).chain(normal).collect()
}

/// Runs one step as a task of Raft's thread and tells how long that was held in one go.
async fn step<T: Send + 'static>(
    raft: &Handle,
    what: &str,
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    let work = async move {
        take_longest_poll();
        let done = timed("step", work).await;
        (done, take_longest_poll())
    };
    let begin = std::time::Instant::now();
    let (done, longest) = raft.spawn(work).await.unwrap();
    println!("{what}: {:?}, longest poll {longest:?}", begin.elapsed());
    done
}

#[tokio::test]
async fn raft_s_thread_waits_for_no_disk_whatever_a_large_state_needs() {
    let variable = std::env::var(QUEUES_VARIABLE).ok();
    let queues = variable.map_or(QUEUES_DEFAULT, |queues| queues.parse().unwrap());
    let (dir, disk) = (tempfile::tempdir().unwrap(), CountingDisk::default());
    let (raft, _stop) = start_runtime().unwrap();
    let options = HistogramOpts::new("seconds", "help");
    observe_polls(&raft, &HistogramVec::new(options, &["task"]).unwrap());

    let entries = entries(queues);
    let end = entries.len() as u64;
    let bytes: u64 = entries.iter().map(|entry| entry.payload.len() as u64).sum();
    let mut leader = Node::open(
        &disk,
        &dir.path().join("leader"),
        (bytes / SEGMENTS).max(SEGMENT_BYTES),
    );
    for entry in entries {
        leader.log.append(vec![entry], Box::new(|_| {})).unwrap();
    }
    leader.log.flush().unwrap();
    println!("{queues} queues, {end} entries, {bytes} bytes");

    let mut leader = step(&raft, "catch up, taking checkpoints", async move {
        let entries = leader.store.entries_stream(0..end).await;
        let entries = entries.map(|entry| entry.map(|entry| (entry, None)));
        leader.machine.apply(Box::pin(entries)).await.unwrap();
        leader
    })
    .await;
    // The writer has its own pace.
    let roll = loop {
        if let Some(roll) = leader.checkpoints.rolls().last() {
            break *roll;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    leader.target.raise(roll.id.index);
    let snapshot = step(&raft, "send a snapshot", async move {
        leader
            .machine
            .get_current_snapshot()
            .await
            .unwrap()
            .unwrap()
    })
    .await;
    println!("a snapshot of {} bytes", snapshot.snapshot.bytes.len());

    let mut follower = Node::open(&disk, &dir.path().join("follower"), SEGMENT_BYTES);
    let bytes = snapshot.snapshot.bytes;
    let received = step(&raft, "receive it", receive_snapshot(bytes))
        .await
        .unwrap();
    assert!(received.snapshot.decoded.is_some(), "read once");
    step(&raft, "install it", async move {
        let (meta, data) = (received.meta, received.snapshot);
        follower
            .machine
            .install_snapshot(&meta, data)
            .await
            .unwrap();
    })
    .await;
    assert_eq!(disk.on_raft_thread.load(Ordering::SeqCst), 0);
}
