//! openraft's own suite for storage, over [`LogStore`] and [`RaftMachine`], on the real disk and on a
//! simulated one.
//!
//! Every case of it runs, each on an empty store. After each the disk is taken as a crash leaves it,
//! without any warning to the store, and a log is opened there: what was acknowledged is all there,
//! and nothing else.
//!
//! Some cases do what Raft only does after something else, and which our store refuses otherwise.
//! [`SuiteLog`] and [`SuiteMachine`] do that first, with the means of the broker:
//! - a log that begins at another index than 0, or ends before an index that is purged: a snapshot
//!   up to there came from another node;
//! - a purge: the retention has taken a checkpoint there, which stays the snapshot of what is gone;
//! - a snapshot on demand: a checkpoint at what is applied. Ours are taken where a segment ends, and
//!   the suite applies no messages that could fill one.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use futures::Stream;
use openraft::{
    LogState, OptionalSend, StorageError,
    storage::{EntryResponder, IOFlushed, RaftLogStorage, RaftStateMachine},
    testing::log::{StoreBuilder, Suite},
};
use raftmq_state::State;
use raftmq_store::{
    CommitLog, Disk, FlushOutcome, FlushPolicy, Flusher, LogConfig, LogId as StoreLogId, RealDisk,
    StoreError, StoredEntry, checkpoint::Checkpoint, index::QueueIndex,
};
use raftmq_tests::sim::{
    disk::SimDisk,
    image::{Crash, Standing},
};

use super::{
    log_store::{LogStore, SnapshotBoundary, storage_error},
    machine::{
        RaftMachine, RaftMachineParts, SnapshotBuilder, SnapshotData, SnapshotTarget,
        membership_record,
    },
    types::{Entry, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, Vote, store_id},
};
use crate::{
    checkpoint::{self, CheckpointWriter, Checkpoints, Job, MembershipRecord},
    long_poll::LongPoll,
    machine::Machine,
    metrics::Metrics,
};

/// So small that the larger cases need several segments.
const SEGMENT_BYTES: u64 = 4096;
/// Stores that the suite builds: one for each of its 44 cases, and two that pass a snapshot on.
const STORES: usize = 46;
/// Disks with some of what was not synced, for each case.
const RANDOM_DISKS: u64 = 4;

/// The parts of a broker below Raft, in one folder.
#[derive(Debug)]
struct Node {
    dir: PathBuf,
    flush: FlushPolicy,
    log: Arc<CommitLog>,
    machine: Arc<Machine>,
    checkpoints: Arc<Checkpoints>,
    boundary: SnapshotBoundary,
    target: SnapshotTarget,
}

/// What a log says of itself and promises.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    last: Option<StoreLogId>,
    purged: Option<StoreLogId>,
    vote: Option<Vec<u8>>,
    begin_physical: u64,
    entries: Vec<StoredEntry>,
}

impl Facts {
    fn of(log: &CommitLog) -> Result<Self, StoreError> {
        let end = log.last_id().map_or(0, |last| last.index + 1);
        Ok(Self {
            last: log.last_id(),
            purged: log.purged_id(),
            vote: log.read_vote(),
            begin_physical: log.min_physical(),
            entries: log.read(log.first_index(), end, u64::MAX)?,
        })
    }
}

fn log_config(dir: &Path, flush: FlushPolicy) -> LogConfig {
    LogConfig {
        segment_bytes: SEGMENT_BYTES,
        // Most entries are read from the files.
        tail_bytes: 256,
        preallocate_bytes: 0,
        flush,
        ..LogConfig::new(dir.join("commitlog"))
    }
}

fn job(id: StoreLogId, state: Vec<u8>, membership: MembershipRecord, index: &QueueIndex) -> Job {
    Job {
        id,
        state,
        membership,
        index: index.freeze(),
        last_store_timestamp_ms: 0,
        roll: true,
    }
}

impl Node {
    fn open(disk: &Arc<dyn Disk>, dir: &Path, flush: FlushPolicy) -> (Self, Flusher) {
        let (log, flusher, ..) =
            CommitLog::open(Arc::clone(disk), log_config(dir, flush), None).unwrap();
        let index = QueueIndex::open(Arc::clone(disk), &dir.join("consumequeue"), None).unwrap();
        let machine = Machine::new(
            State::new(),
            Arc::new(index),
            Arc::clone(&log),
            Arc::new(LongPoll::default()),
            0,
        );
        let checkpoints = Checkpoints::open(Arc::clone(disk), &dir.join("checkpoint")).unwrap();
        let node = Self {
            dir: dir.to_owned(),
            flush,
            log,
            machine: Arc::new(machine),
            checkpoints: Arc::new(checkpoints),
            boundary: SnapshotBoundary::default(),
            target: SnapshotTarget::default(),
        };
        (node, flusher)
    }

    fn raft_machine(&self) -> RaftMachine {
        // Nothing is ever queued, as no messages are applied. So the writer gets a folder of its
        // own, on a disk without space to hold back.
        let disk = SimDisk::default();
        disk.set_quota(Some(0));
        let idle = Checkpoints::open(Arc::new(disk), Path::new("/idle")).unwrap();
        let writer = CheckpointWriter::start(
            Arc::new(idle),
            Arc::clone(&self.log),
            Arc::clone(self.machine.index()),
        );
        RaftMachine::new(RaftMachineParts {
            machine: Arc::clone(&self.machine),
            checkpoints: Arc::clone(&self.checkpoints),
            writer,
            snapshot_target: self.target.clone(),
            boundary: Arc::clone(&self.boundary),
            applied: None,
            membership: MembershipRecord::default(),
            checkpoint_physical: 0,
            metrics: Arc::new(Metrics::new()),
        })
        .unwrap()
    }

    /// Makes a checkpoint at `id` Raft's snapshot: one of our own when the log has that entry, as
    /// the retention does, else one that another node has sent.
    fn take_snapshot(&self, id: &LogId, membership: MembershipRecord) -> Result<(), StoreError> {
        let id = store_id(id);
        let (index, state) = (self.machine.index(), self.machine.state().encode());
        if self.log.entry_id(id.index)? == Some(id) {
            // A checkpoint names no entry that is not flushed; the writer's task waits for that.
            self.log.flush()?;
            let job = job(id, state, membership, index);
            self.checkpoints.write(job, &self.log, index)?;
        } else {
            let physical = self.log.max_physical() + 1000;
            let sent = checkpoint_of_another(id, physical, state, membership)?;
            let position = checkpoint::restore(&sent)?.position;
            let manifest = index.write_frozen(&index.freeze())?;
            self.checkpoints.install(sent, manifest.unwrap())?;
            self.boundary.note(position);
        }
        self.target.raise(id.index);
        Ok(())
    }

    /// A log opened on `disk` is this one, and the snapshot is there too.
    fn check_survived(&self, disk: SimDisk, what: &str) {
        let disk: Arc<dyn Disk> = Arc::new(disk);
        let config = log_config(&self.dir, self.flush);
        let (log, ..) = CommitLog::open(Arc::clone(&disk), config, None).unwrap();
        let (found, known) = (Facts::of(&log).unwrap(), Facts::of(&self.log).unwrap());
        assert_eq!(found, known, "{what}");
        let target = self.target.get();
        if target > 0 {
            let checkpoints = Checkpoints::open(disk, &self.dir.join("checkpoint")).unwrap();
            let snapshot = checkpoints.read(target).unwrap();
            assert_eq!(checkpoint::restore(&snapshot).unwrap().id.index, target);
        }
    }
}

/// The checkpoint at the end of another node's log, which ends with `id`.
fn checkpoint_of_another(
    id: StoreLogId,
    physical: u64,
    state: Vec<u8>,
    membership: MembershipRecord,
) -> Result<Checkpoint, StoreError> {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::default());
    let (other, _) = Node::open(&disk, Path::new("/other"), FlushPolicy::Sync);
    other.log.reset(id, physical, 7)?;
    let index = other.machine.index();
    let job = job(id, state, membership, index);
    other.checkpoints.write(job, &other.log, index)?;
    other.checkpoints.read(id.index)
}

/// Runs the flusher as the broker does.
fn start_flusher(mut flusher: Flusher) -> JoinHandle<()> {
    thread::spawn(move || {
        loop {
            match flusher.run_once() {
                FlushOutcome::Stopped => return,
                FlushOutcome::Failed(reason) => panic!("the flusher fails: {reason}"),
                FlushOutcome::Idle | FlushOutcome::Flushed { .. } => {}
            }
        }
    })
}

/// [`LogStore`], see the file comment.
struct SuiteLog {
    store: LogStore,
    node: Arc<Node>,
}

impl SuiteLog {
    /// What happens before Raft purges up to `id`. Nothing when it has been purged already.
    fn before_purge(&self, id: &LogId) -> Result<(), io::Error> {
        let purged = self.node.log.purged_id();
        if purged.is_some_and(|purged| id.index() <= purged.index) {
            return Ok(());
        }
        let taken = self.node.take_snapshot(id, MembershipRecord::default());
        taken.map_err(storage_error)
    }
}

impl RaftLogStorage<TypeConfig> for SuiteLog {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        self.store.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.store.get_log_reader().await
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.store.save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.store.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        self.store.read_committed().await
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        if let (None, Some(first)) = (self.node.log.last_id(), entries.first())
            && let Some(before) = first.log_id.index().checked_sub(1)
        {
            let term = first.log_id.committed_leader_id().term;
            self.purge(LogId::new_term_index(term, before)).await?;
        }
        self.store.append(entries, callback).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.store.truncate_after(last).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.before_purge(&upto)?;
        self.store.purge(upto).await
    }
}

/// [`RaftMachine`], see the file comment.
struct SuiteMachine {
    machine: RaftMachine,
    node: Arc<Node>,
}

impl SuiteMachine {
    /// What the retention does before Raft builds a snapshot.
    async fn before_snapshot(&mut self) -> Result<(), io::Error> {
        let (applied, membership) = self.machine.applied_state().await?;
        let Some(applied) = applied else {
            return Ok(());
        };
        if self.node.checkpoints.read(applied.index()).is_ok() {
            return Ok(());
        }
        let membership = membership_record(&membership)?;
        let taken = self.node.take_snapshot(&applied, membership);
        taken.map_err(storage_error)
    }
}

impl RaftStateMachine<TypeConfig> for SuiteMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        self.machine.applied_state().await
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        self.machine.apply(entries).await
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        self.before_snapshot().await.unwrap();
        let builder = self.machine.try_create_snapshot_builder(force).await;
        match builder {
            Some(builder) => Some(builder),
            // Index 0 stands for no snapshot: no group of ours has one of its very first entry.
            None => Some(self.machine.get_snapshot_builder().await),
        }
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.machine.get_snapshot_builder().await
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        self.machine.install_snapshot(meta, snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        self.machine.get_current_snapshot().await
    }
}

/// The disk of one case.
enum CaseDisk {
    Real(tempfile::TempDir),
    Simulated(SimDisk),
}

/// Lives as long as a case; then looks at what a crash leaves.
struct Case {
    node: Arc<Node>,
    disk: CaseDisk,
    flusher: Option<JoinHandle<()>>,
    checked: Arc<AtomicUsize>,
}

impl Case {
    /// The disks that may be left when the process or the machine dies now.
    fn disks_after_a_crash(&self) -> Vec<(SimDisk, String)> {
        let sim = match &self.disk {
            CaseDisk::Real(dir) => {
                let died = "the process dies".to_owned();
                return vec![(copy_of(dir.path()), died)];
            }
            CaseDisk::Simulated(sim) => sim,
        };
        let (changes, mut standing) = (sim.changes(), Standing::default());
        for change in &changes {
            standing.apply(change);
        }
        let mut crashes = vec![Crash::Kept];
        // With asynchronous flush an acknowledgement is no promise that the power may go.
        if self.node.flush == FlushPolicy::Sync {
            crashes.push(Crash::Lost);
            crashes.extend((0..RANDOM_DISKS).map(Crash::Some));
        }
        let last = changes.last().unwrap();
        let after = |crash| (standing.after(crash, last), format!("{crash:?}"));
        crashes.into_iter().map(after).collect()
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        // A failed case has said what is wrong.
        if !thread::panicking() {
            for (disk, crash) in self.disks_after_a_crash() {
                self.node.check_survived(disk, &crash);
            }
            self.checked.fetch_add(1, Ordering::SeqCst);
        }
        self.node.log.close();
        let ended = self.flusher.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(()))) || thread::panicking());
    }
}

/// The files below `dir`, as another process would find them.
fn copy_of(dir: &Path) -> SimDisk {
    let mut files = Vec::new();
    for folder in ["commitlog", "checkpoint"].map(|name| dir.join(name)) {
        for name in RealDisk.list(&folder).unwrap() {
            let file = RealDisk.open(&folder.join(&name)).unwrap();
            let mut content = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
            file.read_exact_at(&mut content, 0).unwrap();
            files.push((folder.join(name), content));
        }
    }
    SimDisk::of_files(files)
}

/// Builds an empty store for each case.
struct Builder {
    simulated: bool,
    flush: FlushPolicy,
    checked: Arc<AtomicUsize>,
}

impl StoreBuilder<TypeConfig, SuiteLog, SuiteMachine, Case> for Builder {
    async fn build(&self) -> Result<(Case, SuiteLog, SuiteMachine), StorageError<TypeConfig>> {
        let (case_disk, disk, dir): (_, Arc<dyn Disk>, _) = if self.simulated {
            let sim = SimDisk::recording();
            let disk = Arc::new(sim.clone());
            (CaseDisk::Simulated(sim), disk, PathBuf::from("/data"))
        } else {
            let temporary = tempfile::tempdir().unwrap();
            let dir = temporary.path().to_owned();
            (CaseDisk::Real(temporary), Arc::new(RealDisk), dir)
        };
        let (node, flusher) = Node::open(&disk, &dir, self.flush);
        let node = Arc::new(node);
        let log = SuiteLog {
            store: LogStore::new(Arc::clone(&node.log), Arc::clone(&node.boundary), 1),
            node: Arc::clone(&node),
        };
        let machine = SuiteMachine {
            machine: node.raft_machine(),
            node: Arc::clone(&node),
        };
        let case = Case {
            node,
            disk: case_disk,
            flusher: Some(start_flusher(flusher)),
            checked: Arc::clone(&self.checked),
        };
        Ok((case, log, machine))
    }
}

async fn run(simulated: bool, flush: FlushPolicy) {
    let checked = Arc::new(AtomicUsize::new(0));
    let builder = Builder {
        simulated,
        flush,
        checked: Arc::clone(&checked),
    };
    Suite::test_all(builder).await.unwrap();
    assert_eq!(checked.load(Ordering::SeqCst), STORES);
}

#[tokio::test]
async fn the_storage_suite_of_openraft_on_the_real_disk() {
    run(false, FlushPolicy::Sync).await;
}

#[tokio::test]
async fn the_storage_suite_of_openraft_with_a_power_cut_after_each_case() {
    run(true, FlushPolicy::Sync).await;
}

#[tokio::test]
async fn the_storage_suite_of_openraft_with_asynchronous_flush() {
    let interval = Duration::from_millis(500);
    run(true, FlushPolicy::Async { interval }).await;
}
