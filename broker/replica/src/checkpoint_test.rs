//! Tests of the checkpoint folder: what a restart can begin from, and what is kept.

use raftmq_state::State;
use raftmq_store::{EntryKind, LogConfig, NewEntry, RealDisk, index::IndexUnit};

use super::*;

struct Folder {
    dir: tempfile::TempDir,
    log: Arc<CommitLog>,
    index: QueueIndex,
    checkpoints: Checkpoints,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig {
            preallocate_bytes: 0,
            ..LogConfig::new(dir.path().join("commitlog"))
        };
        let (log, ..) = CommitLog::open(Arc::new(RealDisk), config, None).unwrap();
        let index = QueueIndex::open(Arc::new(RealDisk), &dir.path().join("index"), None).unwrap();
        Self {
            checkpoints: open(&dir),
            dir,
            log,
            index,
        }
    }

    /// One entry in the log, and as many units in queue 1 as its payload has bytes.
    fn append(&self, units: u64) {
        self.append_unflushed();
        self.log.flush().unwrap();
        let (_, next) = self.index.bounds(1);
        let unit = IndexUnit {
            physical_offset: self.log.max_physical(),
            size: 1,
            tags_code: 0,
            store_timestamp_ms: 1,
        };
        let units: Vec<_> = (next..next + units).map(|at| (1, at, unit)).collect();
        self.index.append(&units);
    }

    /// One entry that only the memory has.
    fn append_unflushed(&self) {
        let index = self.log.last_id().map_or(0, |last| last.index + 1);
        let entry = NewEntry {
            id: LogId {
                term: 1,
                node: 0,
                index,
            },
            kind: EntryKind::Normal,
            count: 1,
            payload: Bytes::from_static(b"payload"),
        };
        self.log.append(vec![entry], Box::new(|_| ())).unwrap();
    }

    /// A checkpoint of what is there now, to be written later.
    fn job(&self, roll: bool) -> Job {
        Job {
            id: self.log.last_id().unwrap(),
            state: State::new().encode(),
            membership: MembershipRecord::default(),
            index: self.index.freeze(),
            last_store_timestamp_ms: 1,
            roll,
        }
    }

    fn write(&self, job: Job) {
        self.checkpoints.write(job, &self.log, &self.index).unwrap();
    }

    /// Index of the checkpoint that a restart begins from, and where queue 1 ends there.
    fn restart(&self) -> Option<(u64, u64)> {
        let newest = open(&self.dir).newest()?;
        let manifest = newest.index_manifest.as_deref();
        let dir = self.dir.path().join("index");
        let index = QueueIndex::open(Arc::new(RealDisk), &dir, manifest).unwrap();
        Some((newest.id.index, index.bounds(1).1))
    }

    fn rolls(&self) -> Vec<u64> {
        let rolls = self.checkpoints.rolls().into_iter();
        rolls.map(|roll| roll.id.index).collect()
    }
}

fn open(dir: &tempfile::TempDir) -> Checkpoints {
    Checkpoints::open(Arc::new(RealDisk), &dir.path().join("checkpoint")).unwrap()
}

#[test]
fn a_restart_begins_from_the_newest_checkpoint_also_without_new_messages() {
    let folder = Folder::new();
    assert_eq!(folder.restart(), None);
    folder.append(3);
    folder.write(folder.job(false));
    for index in 1..5 {
        folder.append(0);
        folder.write(folder.job(false));
        assert_eq!(folder.restart(), Some((index, 3)));
    }
}

#[tokio::test]
async fn a_checkpoint_names_no_entry_that_is_not_flushed_and_is_written_once_it_is() {
    let folder = Folder::new();
    folder.append_unflushed();
    let refused = folder
        .checkpoints
        .write(folder.job(false), &folder.log, &folder.index);
    assert!(matches!(refused, Err(StoreError::Failed(_))));
    assert_eq!(folder.restart(), None);
    let (log, job) = (Arc::clone(&folder.log), folder.job(false));
    let Folder {
        dir,
        index,
        checkpoints,
        ..
    } = folder;
    let writer = CheckpointWriter::start(Arc::new(checkpoints), Arc::clone(&log), Arc::new(index));
    writer.submit(job);
    // The writer has looked whether the entry is flushed, and waits.
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    assert!(!writer.is_idle() && open(&dir).newest().is_none());
    log.flush().unwrap();
    while !writer.is_idle() {
        tokio::task::yield_now().await;
    }
    assert_eq!(open(&dir).newest().unwrap().id.index, 0);
}

#[test]
fn checkpoints_without_their_index_do_not_push_out_those_with_it() {
    let folder = Folder::new();
    folder.append(3);
    folder.write(folder.job(false));
    // Rolls in quick succession: each takes up the units of the one before.
    let jobs = [1, 2, 3, 4].map(|_| {
        folder.append(2);
        folder.job(true)
    });
    let [first, second, third, last] = jobs;
    for job in [first, second, third] {
        folder.write(job);
        assert_eq!(folder.restart(), Some((0, 3)));
    }
    folder.write(last);
    assert_eq!(folder.restart(), Some((4, 11)));
    assert_eq!(folder.rolls(), [1, 2, 3, 4]);
}

#[test]
fn only_what_a_restart_or_a_purge_needs_is_kept() {
    let folder = Folder::new();
    for index in 0..8 {
        folder.append(1);
        folder.write(folder.job(index % 2 == 1));
    }
    assert_eq!(folder.rolls(), [1, 3, 5, 7]);
    assert_eq!(folder.checkpoints.dir.list().unwrap(), [1, 3, 5, 6, 7]);
    folder.checkpoints.prune(Some(5)).unwrap();
    assert_eq!(folder.rolls(), [5, 7]);
    assert_eq!(folder.checkpoints.dir.list().unwrap(), [5, 6, 7]);
    assert_eq!(folder.restart(), Some((7, 8)));
}

#[test]
fn space_is_held_back_in_proportion_to_the_disk() {
    let folder = Folder::new();
    folder.checkpoints.hold_reserve();
    let held = folder.checkpoints.reserve.held_bytes();
    let disk = folder.checkpoints.space().unwrap().total_bytes();
    assert!(held > 0 && held <= RESERVE_BYTES && held <= disk / RESERVE_PART);
}

#[test]
fn many_roll_points_are_found_again_and_a_damaged_one_is_no_point_to_purge_to() {
    let folder = Folder::new();
    for _ in 0..6 {
        folder.append(1);
        folder.write(folder.job(true));
    }
    let path = folder.dir.path().join("checkpoint");
    let file = RealDisk
        .open(&path.join("checkpoint-00000000000000000002"))
        .unwrap();
    // Inside the first section, the state, which only a whole read looks at.
    file.write_all_at(b"rotten", 64).unwrap();
    let reopened = open(&folder.dir);
    assert_eq!(reopened.rolls(), folder.checkpoints.rolls());
    assert_eq!(reopened.newest().unwrap().id.index, 5);
    reopened.verify(1).unwrap();
    assert!(reopened.verify(2).is_err());
    let rolls: Vec<u64> = reopened.rolls().iter().map(|roll| roll.id.index).collect();
    assert_eq!(rolls, [0, 1, 3, 4, 5]);
}
