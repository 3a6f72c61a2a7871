//! Owns writing the log: what waits is taken as one batch, written with one write, synced with one
//! fdatasync and completed in order, while the next batch gathers. A failed write or sync is final.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::commit_log::{CommitLog, Completion};
use crate::config::FlushPolicy;
use crate::disk::DiskFile;
use crate::error::StoreError;
use crate::record::HEADER_BYTES;
use crate::segment::Segment;
use crate::vote::Hints;

/// With [`FlushPolicy::Async`], a sync is made before more than this was written without one.
pub(crate) const ASYNC_UNSYNCED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Hints (committed, synced) are written at most this often.
const HINT_INTERVAL: Duration = Duration::from_millis(100);
/// Hints are synced at most this often, and this soon after they changed. Damage to what was written
/// since cannot be told from a torn write after a power cut.
const HINT_SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// Payloads up to this size are copied into one buffer with their headers; larger ones are handed
/// to the kernel where they are.
const COPY_BYTES_MAX: usize = 4096;

/// Result of one call of [`Flusher::run_once`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlushOutcome {
    /// A batch was flushed.
    Flushed {
        /// Entries in it.
        entries: usize,
        /// Bytes written.
        bytes: u64,
        /// Time spent in write and fdatasync.
        took: Duration,
    },
    /// There was nothing to write; upkeep may have been done.
    Idle,
    /// The log was closed and everything is on disk. Do not call again.
    Stopped,
    /// A write failed; the process must end.
    Failed(String),
}

/// Writes the log. Belongs to one thread, which calls [`Flusher::run_once`] until it stops.
#[derive(Debug)]
pub struct Flusher {
    pub(crate) log: Arc<CommitLog>,
}

/// What flushing carries from batch to batch; whoever holds its lock is the one who writes.
#[derive(Debug)]
pub(crate) struct FlushState {
    /// The segment last written.
    pub(crate) active: Option<Arc<Segment>>,
    /// Index of the last entry written.
    pub(crate) written_index: Option<u64>,
    scratch: Vec<u8>,
    unsynced_bytes: u64,
    unsynced_since: Option<Instant>,
    hinted: Hints,
    hinted_at: Option<Instant>,
    hints_synced: Hints,
    hints_synced_at: Option<Instant>,
}

/// What waits for the flusher.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) operations: VecDeque<Operation>,
    /// When the oldest operation of the running flush was appended.
    pub(crate) in_flight_since: Option<Instant>,
    /// Since when the flusher writes or syncs.
    pub(crate) writing_since: Option<Instant>,
    /// The flusher sleeps and must be woken.
    pub(crate) idle: bool,
    /// A write has failed; nothing is worth waiting for.
    pub(crate) failed: bool,
}

/// One entry to write, or the completion of an append without entries.
pub(crate) struct Operation {
    pub(crate) entry: Option<PendingEntry>,
    pub(crate) done: Option<Completion>,
    pub(crate) since: Instant,
}

/// An entry on its way to its segment.
#[derive(Debug)]
pub(crate) struct PendingEntry {
    pub(crate) segment: Arc<Segment>,
    pub(crate) header: [u8; HEADER_BYTES],
    pub(crate) payload: Bytes,
    pub(crate) physical: u64,
    pub(crate) index: u64,
    pub(crate) sequence: u64,
}

impl FlushState {
    pub(crate) fn new(active: Option<Arc<Segment>>, written_index: Option<u64>) -> Self {
        Self {
            active,
            written_index,
            scratch: Vec::new(),
            unsynced_bytes: 0,
            unsynced_since: None,
            hinted: Hints::default(),
            hinted_at: None,
            hints_synced: Hints::default(),
            hints_synced_at: None,
        }
    }

    /// After a cut: what was hinted is not the truth any more.
    pub(crate) fn forget_hints(&mut self) {
        self.hinted = Hints::default();
        self.hints_synced = Hints::default();
    }
}

impl Flusher {
    pub(crate) fn new(log: Arc<CommitLog>) -> Self {
        Self { log }
    }

    /// Waits for entries and flushes one batch. Returns `Idle` now and then.
    pub fn run_once(&mut self) -> FlushOutcome {
        self.log.wait_for_work();
        self.run_ready()
    }

    /// Says that the disk is at work from now on, although the next call of
    /// [`Flusher::run_ready`] comes later: for a disk that takes its time before the work is done.
    pub fn begin(&self) {
        self.log.begin_writing();
    }

    /// As [`Flusher::run_once`], but without waiting.
    pub fn run_ready(&mut self) -> FlushOutcome {
        let mut io = self.log.io();
        if let Err(error) = self.log.check_alive() {
            return FlushOutcome::Failed(error.to_string());
        }
        // Before the batch is taken: an append that was accepted is in the queue once it is closed,
        // but one may come, and the log be closed, behind a batch without entries.
        let is_closed = self.log.is_closed();
        let outcome = self.log.flush_batch(&mut io);
        if outcome == FlushOutcome::Idle && is_closed {
            return match self.log.finish(&mut io) {
                Ok(()) => FlushOutcome::Stopped,
                Err(error) => self.log.flush_failed(Vec::new(), &error),
            };
        }
        outcome
    }
}

impl CommitLog {
    /// Flushes everything appended so far on the caller's thread, and syncs it whatever the policy.
    pub fn flush(&self) -> Result<(), StoreError> {
        let mut io = self.io();
        self.flush_all(&mut io)
    }

    /// As [`CommitLog::flush`], for callers that hold `io`.
    pub(crate) fn flush_all(&self, io: &mut FlushState) -> Result<(), StoreError> {
        loop {
            self.check_alive()?;
            match self.flush_batch(io) {
                FlushOutcome::Flushed { .. } => {}
                FlushOutcome::Failed(reason) => return Err(StoreError::Failed(reason)),
                FlushOutcome::Idle | FlushOutcome::Stopped => break,
            }
        }
        self.sync_unsynced(io)
            .inspect_err(|error| self.fail(&error.to_string()))
    }

    /// Sleeps until something waits, upkeep is due, or the log is closed or has failed.
    pub(crate) fn wait_for_work(&self) {
        let must_not_wait =
            |queue: &Queue| !queue.operations.is_empty() || queue.failed || self.is_closed();
        if must_not_wait(&self.queue()) {
            return;
        }
        let upkeep_in = self.upkeep_due_in();
        let mut queue = self.queue();
        if !must_not_wait(&queue) {
            queue.idle = true;
            queue = match upkeep_in {
                Some(wait) => {
                    self.work
                        .wait_timeout(queue, wait)
                        .expect("a panic ends the process")
                        .0
                }
                None => self.work.wait(queue).expect("a panic ends the process"),
            };
            queue.idle = false;
        }
    }

    pub(crate) fn upkeep_due_in(&self) -> Option<Duration> {
        let hints = self.current_hints();
        let io = self.io();
        let hint = (hints != io.hinted).then_some(HINT_INTERVAL);
        let hint_sync = (hints != io.hints_synced).then(|| {
            let since = io.hints_synced_at.map(|at| self.age(at));
            HINT_SYNC_INTERVAL.saturating_sub(since.unwrap_or(HINT_SYNC_INTERVAL))
        });
        let sync = match (self.config().flush, io.unsynced_since) {
            (FlushPolicy::Async { interval }, Some(since)) => {
                Some(interval.saturating_sub(self.age(since)))
            }
            _ => None,
        };
        hint.into_iter().chain(hint_sync).chain(sync).min()
    }

    /// Takes what waits, as far as it goes into one write of one segment.
    pub(crate) fn take_batch(&self) -> Vec<Operation> {
        let bytes_max = self.config().flush_batch_bytes_max;
        let mut queue = self.queue();
        let mut segment: Option<u64> = None;
        let mut bytes = 0;
        let mut count = 0;
        for operation in &queue.operations {
            if let Some(entry) = &operation.entry {
                bytes += entry.bytes();
                let base = entry.segment.base;
                if *segment.get_or_insert(base) != base || (count > 0 && bytes > bytes_max) {
                    break;
                }
            }
            count += 1;
        }
        let batch: Vec<Operation> = queue.operations.drain(..count).collect();
        queue.in_flight_since = batch.first().map(|operation| operation.since);
        batch
    }

    /// Writes, syncs as the policy says, publishes and completes one batch.
    pub(crate) fn flush_batch(&self, io: &mut FlushState) -> FlushOutcome {
        let batch = self.take_batch();
        let started = self.now();
        self.begin_writing();
        let entries = batch
            .iter()
            .filter(|operation| operation.entry.is_some())
            .count();
        let bytes = batch
            .iter()
            .flat_map(|op| &op.entry)
            .map(PendingEntry::bytes)
            .sum();
        let result = self.write_batch(io, &batch).and_then(|()| self.upkeep(io));
        if let Err(error) = result {
            return self.flush_failed(batch, &error);
        }
        let took = self.age(started);
        self.queue().writing_since = None;
        if batch.is_empty() {
            return FlushOutcome::Idle;
        }
        self.queue().in_flight_since = None;
        complete(batch, None);
        FlushOutcome::Flushed {
            entries,
            bytes,
            took,
        }
    }

    fn begin_writing(&self) {
        let now = self.now();
        self.queue().writing_since.get_or_insert(now);
    }

    fn flush_failed(&self, batch: Vec<Operation>, error: &StoreError) -> FlushOutcome {
        let reason = error.to_string();
        // First the failure, so that a completion that looks sees it; then in order.
        self.state_mut()
            .failed
            .get_or_insert_with(|| reason.clone());
        complete(batch, Some(&reason));
        self.fail(&reason);
        FlushOutcome::Failed(reason)
    }

    pub(crate) fn write_batch(
        &self,
        io: &mut FlushState,
        batch: &[Operation],
    ) -> Result<(), StoreError> {
        let entries: Vec<&PendingEntry> = batch.iter().filter_map(|op| op.entry.as_ref()).collect();
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return Ok(());
        };
        let segment = &first.segment;
        if io
            .active
            .as_ref()
            .is_none_or(|active| !Arc::ptr_eq(active, segment))
        {
            self.roll(io, segment)?;
        }
        let end = last.physical + last.bytes();
        if end > segment.initialised() {
            // Beyond the ground: what the file system has left is what decides now, and it may
            // have changed. Without an answer the one before stays.
            let _ = self.measure_space();
        }
        segment.claim(end);
        let file = segment.file(self.disk())?;
        write_entries(
            file.as_ref(),
            &entries,
            &mut io.scratch,
            first.physical - segment.base,
        )
        .map_err(|source| StoreError::io("write segment", segment.path(), source))?;
        segment.set_written(end);
        io.written_index = Some(last.index);
        io.unsynced_bytes += end - first.physical;
        let since = batch
            .first()
            .map_or_else(|| self.now(), |first| first.since);
        io.unsynced_since.get_or_insert(since);
        let sync_now = match self.config().flush {
            FlushPolicy::Sync => true,
            FlushPolicy::Async { .. } => io.unsynced_bytes >= ASYNC_UNSYNCED_BYTES_MAX,
        };
        self.state_mut().written_sequence = last.sequence;
        if sync_now {
            self.sync_unsynced(io)?;
        }
        self.request_preallocation(segment);
        Ok(())
    }

    /// Makes everything written durable and says so.
    fn sync_unsynced(&self, io: &mut FlushState) -> Result<(), StoreError> {
        let (Some(segment), Some(_)) = (&io.active, io.unsynced_since) else {
            return Ok(());
        };
        segment
            .file(self.disk())?
            .sync_data()
            .map_err(|source| StoreError::io("fdatasync segment", segment.path(), source))?;
        io.unsynced_since = None;
        io.unsynced_bytes = 0;
        let written = segment.written();
        let mut state = self.state_mut();
        state.flushed_physical = written;
        state.flushed_index = io.written_index;
        Ok(())
    }

    /// Ends the present segment and makes the file of the next. Everything in the old one is
    /// synced first: that a segment exists proves that the one before it is whole.
    fn roll(&self, io: &mut FlushState, next: &Arc<Segment>) -> Result<(), StoreError> {
        self.sync_unsynced(io)?;
        if let Some(old) = io.active.take().filter(|old| old.base < next.base) {
            let file = old.file(self.disk())?;
            let mut allocation = old.allocation();
            allocation.sealed = true;
            file.set_len(old.written() - old.base)
                .map_err(|source| StoreError::io("seal segment", old.path(), source))?;
            drop(allocation);
            self.prealloc.add_sealed(old);
        }
        if !next.is_on_disk() {
            self.make_segment_file(next)?;
            self.disk()
                .sync_dir(self.dir())
                .map_err(|source| StoreError::io("sync", self.dir(), source))?;
        }
        io.active = Some(next.clone());
        Ok(())
    }

    /// What is due by time: the sync of [`FlushPolicy::Async`], and the hints.
    fn upkeep(&self, io: &mut FlushState) -> Result<(), StoreError> {
        if let (FlushPolicy::Async { interval }, Some(since)) =
            (self.config().flush, io.unsynced_since)
            && self.age(since) >= interval
        {
            self.sync_unsynced(io)?;
        }
        let is_fresh = |at: Option<Instant>, interval| at.is_some_and(|at| self.age(at) < interval);
        if is_fresh(io.hinted_at, HINT_INTERVAL) && is_fresh(io.hints_synced_at, HINT_SYNC_INTERVAL)
        {
            return Ok(());
        }
        let hints = self.current_hints();
        if hints != io.hints_synced && !is_fresh(io.hints_synced_at, HINT_SYNC_INTERVAL) {
            self.vote_file().sync_hints(hints)?;
            io.hints_synced = hints;
            io.hints_synced_at = Some(self.now());
        } else if hints != io.hinted {
            self.vote_file().write_hints(hints)?;
        }
        io.hinted = hints;
        io.hinted_at = Some(self.now());
        Ok(())
    }

    /// Last work of a closed log.
    pub(crate) fn finish(&self, io: &mut FlushState) -> Result<(), StoreError> {
        self.sync_unsynced(io)?;
        let hints = self.current_hints();
        self.vote_file().save_hints(hints)
    }
}

impl PendingEntry {
    fn bytes(&self) -> u64 {
        (HEADER_BYTES + self.payload.len()) as u64
    }
}

/// One write: headers and small payloads joined in `scratch`, large payloads from where they are.
fn write_entries(
    file: &dyn DiskFile,
    entries: &[&PendingEntry],
    scratch: &mut Vec<u8>,
    offset: u64,
) -> io::Result<()> {
    scratch.clear();
    // Where `scratch` is interrupted by a payload that stays where it is.
    let mut breaks: Vec<(usize, &[u8])> = Vec::new();
    for entry in entries {
        scratch.extend_from_slice(&entry.header);
        if entry.payload.len() <= COPY_BYTES_MAX {
            scratch.extend_from_slice(&entry.payload);
        } else {
            breaks.push((scratch.len(), &entry.payload));
        }
    }
    if breaks.is_empty() {
        return file.write_all_at(scratch, offset);
    }
    let mut parts: Vec<&[u8]> = Vec::with_capacity(breaks.len() * 2 + 1);
    let mut from = 0;
    for (at, payload) in breaks {
        parts.push(&scratch[from..at]);
        parts.push(payload);
        from = at;
    }
    parts.push(&scratch[from..]);
    file.write_parts_at(&parts, offset)
}

/// Calls the completions in order.
pub(crate) fn complete(operations: Vec<Operation>, failure: Option<&str>) {
    for operation in operations {
        if let Some(done) = operation.done {
            done(match failure {
                None => Ok(()),
                Some(reason) => Err(io::Error::other(reason.to_owned())),
            });
        }
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Operation")
            .field("entry", &self.entry)
            .finish_non_exhaustive()
    }
}
