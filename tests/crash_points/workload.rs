//! What is done to the store: everything a broker does to it, in an order that a seed decides, on
//! one thread and by a clock of its own.

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use raftmq_store::checkpoint::{Checkpoint, CheckpointDir};
use raftmq_store::{
    CommitLog, EntryKind, FORMAT_VERSION, FlushPolicy, Flusher, Identity, LogConfig, LogId,
    NewEntry, Preallocator, StoreError,
};
use raftmq_tests::sim::disk::{Change, SimDisk};
use raftmq_tests::sim::random::Random;

use super::history::{History, Span, Version};

pub const DATA_DIR: &str = "/data";
pub const LOG_DIR: &str = "/data/commitlog";
pub const CHECKPOINT_DIR: &str = "/data/checkpoint";
/// Section of a checkpoint that holds the position in the log.
pub const POSITION: u32 = 1;

/// Entries that a purge leaves, at least.
const KEPT_ENTRIES: u64 = 12;

thread_local! {
    /// Time of the workload on this thread.
    static ELAPSED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// A workload that was run.
pub struct Recording {
    pub policy: FlushPolicy,
    pub changes: Vec<Change>,
    pub history: History,
}

fn now() -> Instant {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    *BEGIN.get_or_init(Instant::now) + ELAPSED.get()
}

/// Small, so that segments roll often and a disk is quickly copied.
pub fn config(policy: FlushPolicy) -> LogConfig {
    LogConfig {
        segment_bytes: 4096,
        tail_bytes: 2000,
        preallocate_bytes: 3000,
        flush: policy,
        flush_batch_bytes_max: 64 * 1024,
        now,
        ..LogConfig::new(LOG_DIR)
    }
}

/// The identity that a broker is configured with, whatever its incarnation.
pub fn identity() -> Identity {
    Identity {
        cluster: "cluster".to_owned(),
        group: "group".to_owned(),
        node_id: 1,
        incarnation: String::new(),
        format_version: FORMAT_VERSION,
    }
}

/// Runs until the disk was asked for this many changes.
pub fn record(policy: FlushPolicy, seed: u64, changes: usize) -> Recording {
    let disk = SimDisk::recording();
    let mut workload = Workload::begin(disk.clone(), policy, seed).unwrap();
    while disk.changes_count() < changes {
        workload.step().unwrap();
    }
    workload.end()
}

pub struct Workload {
    disk: SimDisk,
    policy: FlushPolicy,
    random: Random,
    history: Arc<Mutex<History>>,
    log: Arc<CommitLog>,
    /// False when a stop was not followed by a start.
    is_open: bool,
    /// Not run: `CommitLog::flush` does its work on this thread.
    _flusher: Flusher,
    preallocator: Preallocator,
    checkpoints: CheckpointDir,
    /// Index of the last checkpoint; nothing up to it is cut, and nothing behind it purged.
    checkpoint: Option<u64>,
    term: u64,
}

fn lock(history: &Mutex<History>) -> std::sync::MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Workload {
    pub fn begin(disk: SimDisk, policy: FlushPolicy, seed: u64) -> Result<Self, StoreError> {
        ELAPSED.set(Duration::ZERO);
        let arc = Arc::new(disk.clone());
        let (log, flusher, preallocator, _) = CommitLog::open(arc.clone(), config(policy), None)?;
        Ok(Self {
            checkpoints: CheckpointDir::open(arc, Path::new(CHECKPOINT_DIR))?,
            disk,
            policy,
            random: Random::new(seed),
            history: Arc::default(),
            log,
            is_open: true,
            _flusher: flusher,
            preallocator,
            checkpoint: None,
            term: 1,
        })
    }

    /// The log, unless it could not be opened again.
    pub fn log(&self) -> Option<&CommitLog> {
        self.is_open.then_some(&*self.log)
    }

    /// The process ends here, as if it was killed.
    pub fn end(self) -> Recording {
        Recording {
            policy: self.policy,
            changes: self.disk.changes(),
            history: std::mem::take(&mut *lock(&self.history)),
        }
    }

    /// Does the next thing. An error would end the broker.
    pub fn step(&mut self) -> Result<(), StoreError> {
        ELAPSED.set(ELAPSED.get() + Duration::from_micros(self.random.below(20_000)));
        match self.random.below(400) {
            0..=179 => self.append(),
            180..=259 => self.log.flush(),
            260..=289 => {
                // It may fail without harm.
                drop(self.preallocator.run_ready());
                Ok(())
            }
            290..=319 => self.save_vote(),
            320..=339 => self.truncate(),
            340..=359 => self.purge(),
            360..=369 => self.save_committed(),
            370..=386 => {
                // So may this: the checkpoint before is still there.
                drop(self.write_checkpoint());
                Ok(())
            }
            387..=388 => self.reset(),
            389..=391 => {
                self.take_identity();
                Ok(())
            }
            _ => self.reopen(),
        }
    }

    fn now(&self) -> usize {
        self.disk.changes_count()
    }

    fn next_index(&self) -> u64 {
        self.log.last_id().map_or(0, |last| last.index + 1)
    }

    fn append(&mut self) -> Result<(), StoreError> {
        if self.random.once_in(8) {
            self.term += 1;
        }
        let first = self.next_index();
        let count = 1 + self.random.below(4);
        let entries: Vec<NewEntry> = (first..first + count)
            .map(|index| self.entry(index))
            .collect();
        let from = lock(&self.history).entries.len();
        for entry in &entries {
            lock(&self.history).append(Version {
                id: entry.id,
                payload: entry.payload.clone(),
                appended_at: self.now(),
                acknowledged_at: None,
                cut: None,
            });
        }
        let (history, disk) = (Arc::clone(&self.history), self.disk.clone());
        let to = from + entries.len();
        let done = move |result: io::Result<()>| {
            let now = result.is_ok().then(|| disk.changes_count());
            for version in &mut lock(&history).entries[from..to] {
                version.acknowledged_at = now;
            }
        };
        self.log.append(entries, Box::new(done))
    }

    fn entry(&mut self, index: u64) -> NewEntry {
        let bytes = match self.random.below(10) {
            0 => 0,
            1 => 1000 + self.random.below(5000),
            _ => self.random.below(400),
        };
        let payload: Vec<u8> = (0..bytes).map(|_| self.random.number() as u8).collect();
        NewEntry {
            id: LogId {
                term: self.term,
                node: 0,
                index,
            },
            kind: EntryKind::Normal,
            count: 1,
            payload: Bytes::from(payload),
        }
    }

    fn save_vote(&mut self) -> Result<(), StoreError> {
        self.term += 1;
        let vote = format!("term {} node {}", self.term, self.random.below(3)).into_bytes();
        let begun = self.now();
        lock(&self.history).votes.begin(vote.clone(), begun);
        self.log.save_vote(&vote)?;
        let done = self.now();
        lock(&self.history).votes.done(done);
        Ok(())
    }

    fn truncate(&mut self) -> Result<(), StoreError> {
        let (first, next) = (self.log.first_index(), self.next_index());
        if next <= first + 1 {
            return Ok(());
        }
        let keep = next - 1 - self.random.below((next - first - 1).min(6));
        let keep = keep.max(self.checkpoint.unwrap_or(0));
        // Cutting flushes first: only then is something taken away.
        self.log.flush()?;
        let (keep, begun) = (Some(keep), self.now());
        lock(&self.history).cut_after(keep, Span { begun, done: None });
        self.log.truncate_after(keep)?;
        let done = Some(self.now());
        lock(&self.history).cut_after(keep, Span { begun, done });
        self.term += 1;
        Ok(())
    }

    fn purge(&mut self) -> Result<(), StoreError> {
        let (first, next) = (self.log.first_index(), self.next_index());
        if next < first + 2 * KEPT_ENTRIES {
            return Ok(());
        }
        let index = first + self.random.below(next - first - KEPT_ENTRIES);
        if Some(index) > self.checkpoint {
            return Ok(());
        }
        self.log.flush()?;
        let Some(id) = self.log.entry_id(index)? else {
            return Ok(());
        };
        let begun = self.now();
        lock(&self.history).purges.begin(id, begun);
        match self.log.purge_upto(id) {
            // The mark is durable; files left lying are removed by the next start.
            Err(_) if self.log.purged_id() == Some(id) => {}
            result => result?,
        }
        let done = self.now();
        lock(&self.history).purges.done(done);
        Ok(())
    }

    /// The log goes on behind a snapshot of another node, of which there is no entry here.
    fn reset(&mut self) -> Result<(), StoreError> {
        self.log.flush()?;
        self.term += 1;
        let purged = LogId {
            term: self.term,
            node: 0,
            index: self.next_index() + self.random.below(30),
        };
        let physical = self.log.max_physical() + self.random.below(10_000);
        let begun = self.now();
        {
            let mut history = lock(&self.history);
            history.cut_after(None, Span { begun, done: None });
            history.purges.begin(purged, begun);
        }
        self.log
            .reset(purged, physical, self.random.number() as u32)?;
        let done = self.now();
        let span = Span {
            begun,
            done: Some(done),
        };
        let mut history = lock(&self.history);
        history.cut_after(None, span);
        history.purges.done(done);
        Ok(())
    }

    fn save_committed(&mut self) -> Result<(), StoreError> {
        let Some(last) = self.log.last_id() else {
            return Ok(());
        };
        let now = self.now();
        lock(&self.history).committed.push((last, now));
        self.log.save_committed(last)
    }

    fn write_checkpoint(&mut self) -> Result<(), StoreError> {
        let Some(id) = self.log.last_id() else {
            return Ok(());
        };
        let old = self.checkpoints.list()?;
        // A checkpoint is of applied entries, which are never cut: indexes only rise.
        if old.last().is_some_and(|newest| *newest >= id.index) {
            return Ok(());
        }
        self.log.flush()?;
        let position = self.log.position_at(id.index)?.encode();
        let size = self.random.below(2000) as usize;
        let sections = [
            (POSITION, Bytes::from(position)),
            (2, Bytes::from(vec![7; size])),
        ];
        let checkpoint = Checkpoint {
            id,
            sections: sections.into(),
        };
        let begun = self.now();
        lock(&self.history).checkpoints.begin(id.index, begun);
        // It may be found from here on, whether its writing succeeds or not.
        self.checkpoint = Some(id.index);
        self.checkpoints.write(&checkpoint)?;
        let done = self.now();
        lock(&self.history).checkpoints.done(done);
        for index in old {
            self.checkpoints.remove(index)?;
        }
        Ok(())
    }

    /// The folder gets another incarnation, as after the loss of the disk that held the log.
    fn take_identity(&mut self) {
        let fresh = format!("incarnation {}", self.random.below(1 << 30));
        let begun = self.now();
        lock(&self.history).identities.begin(fresh.clone(), begun);
        let (disk, dir) = (&self.disk, Path::new(DATA_DIR));
        if Identity::open_or_create(disk, dir, &identity(), &fresh, false).is_ok() {
            let done = self.now();
            lock(&self.history).identities.done(done);
        }
    }

    /// A clean stop and start.
    fn reopen(&mut self) -> Result<(), StoreError> {
        self.log.flush()?;
        self.log.close();
        self.is_open = false;
        let disk = Arc::new(self.disk.clone());
        // These hold the log, and the log holds the lock of the folder.
        let empty = CommitLog::open(Arc::new(SimDisk::default()), config(self.policy), None)?;
        (self.log, self._flusher, self.preallocator) = (empty.0, empty.1, empty.2);
        let (log, flusher, preallocator, report) =
            CommitLog::open(disk, config(self.policy), None)?;
        assert_eq!(report.cut, None);
        (self.log, self._flusher, self.preallocator) = (log, flusher, preallocator);
        self.is_open = true;
        Ok(())
    }
}
