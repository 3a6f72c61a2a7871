//! What is done to the store: everything a broker does to it, in an order that a seed decides, on
//! one thread.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use raftmq_store::checkpoint::{Checkpoint, CheckpointDir};
use raftmq_store::{
    CommitLog, EntryKind, FlushPolicy, Flusher, LogConfig, LogId, NewEntry, Preallocator,
};
use raftmq_tests::sim::disk::{Change, SimDisk};
use raftmq_tests::sim::random::Random;

use super::history::{History, Span, Version};

pub const LOG_DIR: &str = "/data/commitlog";
pub const CHECKPOINT_DIR: &str = "/data/checkpoint";

/// Entries that a purge leaves, at least.
const KEPT_ENTRIES: u64 = 12;

/// A workload that was run.
pub struct Recording {
    pub policy: FlushPolicy,
    pub changes: Vec<Change>,
    pub history: History,
}

/// Small, so that segments roll often and a disk is quickly copied.
pub fn config(policy: FlushPolicy) -> LogConfig {
    LogConfig {
        segment_bytes: 4096,
        tail_bytes: 2000,
        preallocate_bytes: 3000,
        flush: policy,
        flush_batch_bytes_max: 64 * 1024,
        ..LogConfig::new(LOG_DIR)
    }
}

/// Runs until the disk was asked for this many changes.
pub fn record(policy: FlushPolicy, seed: u64, changes: usize) -> Recording {
    let disk = SimDisk::recording();
    let mut workload = Workload::begin(disk.clone(), policy, seed);
    while disk.changes_count() < changes {
        workload.step();
    }
    let history = std::mem::take(&mut *lock(&workload.history));
    Recording {
        policy,
        changes: disk.changes(),
        history,
    }
}

struct Workload {
    disk: SimDisk,
    policy: FlushPolicy,
    random: Random,
    history: Arc<Mutex<History>>,
    log: Arc<CommitLog>,
    /// Not run: `CommitLog::flush` does its work on this thread.
    _flusher: Flusher,
    preallocator: Preallocator,
    checkpoints: CheckpointDir,
    term: u64,
}

fn lock(history: &Mutex<History>) -> std::sync::MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Workload {
    fn begin(disk: SimDisk, policy: FlushPolicy, seed: u64) -> Self {
        let arc = Arc::new(disk.clone());
        let (log, flusher, preallocator, _) =
            CommitLog::open(arc.clone(), config(policy), None).unwrap();
        Self {
            checkpoints: CheckpointDir::open(arc, Path::new(CHECKPOINT_DIR)).unwrap(),
            disk,
            policy,
            random: Random::new(seed),
            history: Arc::default(),
            log,
            _flusher: flusher,
            preallocator,
            term: 1,
        }
    }

    fn step(&mut self) {
        match self.random.below(40) {
            0..=17 => self.append(),
            18..=25 => self.log.flush().unwrap(),
            26..=28 => drop(self.preallocator.run_ready()),
            29..=31 => self.save_vote(),
            32..=33 => self.truncate(),
            34..=35 => self.purge(),
            36 => self.save_committed(),
            37..=38 => self.write_checkpoint(),
            _ => self.reopen(),
        }
    }

    fn now(&self) -> usize {
        self.disk.changes_count()
    }

    fn next_index(&self) -> u64 {
        self.log.last_id().map_or(0, |last| last.index + 1)
    }

    fn append(&mut self) {
        if self.random.once_in(8) {
            self.term += 1;
        }
        let first = self.next_index();
        let count = 1 + self.random.below(4);
        let mut entries = Vec::new();
        for index in first..first + count {
            let bytes = match self.random.below(10) {
                0 => 0,
                1 => 1000 + self.random.below(5000),
                _ => self.random.below(400),
            };
            let payload: Vec<u8> = (0..bytes).map(|_| self.random.number() as u8).collect();
            entries.push(NewEntry {
                id: LogId {
                    term: self.term,
                    node: 0,
                    index,
                },
                kind: EntryKind::Normal,
                count: 1,
                payload: Bytes::from(payload),
            });
        }
        let from = {
            let appended_at = self.now();
            let mut history = lock(&self.history);
            let from = history.entries.len();
            history.entries.extend(entries.iter().map(|entry| Version {
                id: entry.id,
                payload: entry.payload.clone(),
                appended_at,
                acknowledged_at: None,
                cut: None,
            }));
            from
        };
        let (history, disk) = (Arc::clone(&self.history), self.disk.clone());
        let to = from + entries.len();
        let done = move |result: std::io::Result<()>| {
            result.unwrap();
            let now = disk.changes_count();
            for version in &mut lock(&history).entries[from..to] {
                version.acknowledged_at = Some(now);
            }
        };
        self.log.append(entries, Box::new(done)).unwrap();
    }

    fn save_vote(&mut self) {
        self.term += 1;
        let vote = format!("term {} node {}", self.term, self.random.below(3)).into_bytes();
        let begun = self.now();
        lock(&self.history).votes.begin(vote.clone(), begun);
        self.log.save_vote(&vote).unwrap();
        let done = self.now();
        lock(&self.history).votes.done(done);
    }

    fn truncate(&mut self) {
        let (first, next) = (self.log.first_index(), self.next_index());
        if next <= first + 1 {
            return;
        }
        let keep = next - 1 - self.random.below((next - first - 1).min(6));
        // Cutting flushes first: only then is something taken away.
        self.log.flush().unwrap();
        let begun = self.now();
        let cut = |history: &mut History, done| {
            for version in &mut history.entries {
                let is_new = version.cut.is_none_or(|cut| cut.done.is_none());
                if version.id.index > keep && is_new {
                    version.cut = Some(Span { begun, done });
                }
            }
        };
        cut(&mut lock(&self.history), None);
        self.log.truncate_after(Some(keep)).unwrap();
        let done = self.now();
        cut(&mut lock(&self.history), Some(done));
        self.term += 1;
    }

    fn purge(&mut self) {
        let (first, next) = (self.log.first_index(), self.next_index());
        if next < first + 2 * KEPT_ENTRIES {
            return;
        }
        let index = first + self.random.below(next - first - KEPT_ENTRIES);
        self.log.flush().unwrap();
        let id = self.log.entry_id(index).unwrap().unwrap();
        let begun = self.now();
        lock(&self.history).purges.begin(id, begun);
        self.log.purge_upto(id).unwrap();
        let done = self.now();
        lock(&self.history).purges.done(done);
    }

    fn save_committed(&mut self) {
        if let Some(last) = self.log.last_id() {
            self.log.save_committed(last).unwrap();
        }
    }

    fn write_checkpoint(&mut self) {
        let Some(id) = self.log.last_id() else { return };
        let old = self.checkpoints.list().unwrap();
        // A checkpoint is of applied entries, which are never cut: indexes only rise.
        if old.last().is_some_and(|newest| *newest >= id.index) {
            return;
        }
        let size = self.random.below(3000) as usize;
        let checkpoint = Checkpoint {
            id,
            sections: [(1, Bytes::from(vec![7; size]))].into(),
        };
        let begun = self.now();
        lock(&self.history).checkpoints.begin(id.index, begun);
        self.checkpoints.write(&checkpoint).unwrap();
        let done = self.now();
        lock(&self.history).checkpoints.done(done);
        for index in old {
            self.checkpoints.remove(index).unwrap();
        }
    }

    /// A clean stop and start.
    fn reopen(&mut self) {
        self.log.flush().unwrap();
        self.log.close();
        let disk = Arc::new(self.disk.clone());
        // Both hold the log, and the log holds the lock of the folder.
        let empty =
            CommitLog::open(Arc::new(SimDisk::default()), config(self.policy), None).unwrap();
        (self.log, self._flusher, self.preallocator) = (empty.0, empty.1, empty.2);
        let (log, flusher, preallocator, report) =
            CommitLog::open(disk, config(self.policy), None).unwrap();
        assert_eq!(report.cut, None);
        (self.log, self._flusher, self.preallocator) = (log, flusher, preallocator);
    }
}
