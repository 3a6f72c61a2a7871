//! Owns the log in memory: what is appended, where it lies, who waits for it. Appending assigns
//! addresses and CRCs and hands the bytes to the [`Flusher`]; `flush.rs` writes, `read.rs` reads,
//! `cut.rs` truncates and purges, `recover.rs` opens.
//!
//! Locks, in the only order they may be nested: `io` (one flush or cut at a time), `state`, then
//! `queue`, `vote`, or the locks of one segment. Files are written under `io` alone.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::blocks::Blocks;
use crate::config::LogConfig;
use crate::disk::{Disk, DiskLock};
use crate::error::StoreError;
use crate::flush::{FlushState, Flusher, Operation, PendingEntry, Queue, complete};
use crate::mend::Noted;
use crate::position::LogPosition;
use crate::prealloc::{PreallocState, Preallocator};
use crate::record::{HEADER_BYTES, Header, LogId, NewEntry, PAYLOAD_BYTES_MAX, StoredEntry};
use crate::recover::{self, RecoveryReport};
use crate::segment::{Segment, begins_segment};
use crate::space::SpaceState;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::tail::{Tail, TailEntry};
use crate::vote::{Hints, VoteFile};

/// Called once, in the order of the appends, when entries are written and, with
/// [`crate::FlushPolicy::Sync`], synced; with an error when that failed. Must not truncate, purge or reset.
pub type Completion = Box<dyn FnOnce(io::Result<()>) + Send>;

/// The Raft log, which is the commit log. Shared by all threads of the broker.
pub struct CommitLog {
    disk: Arc<dyn Disk>,
    config: LogConfig,
    state: RwLock<LogState>,
    cut_epoch: AtomicU64,
    queue: Mutex<Queue>,
    pub(crate) work: Condvar,
    io: Mutex<FlushState>,
    vote: Mutex<VoteFile>,
    pub(crate) closed: AtomicBool,
    pub(crate) prealloc: PreallocState,
    pub(crate) space: SpaceState,
    pub(crate) noted: Noted,
    pub(crate) blocks: Blocks,
    _lock: Box<dyn DiskLock>,
}

/// The log as readers see it.
#[derive(Debug)]
pub(crate) struct LogState {
    /// Ascending, contiguous; the last one takes the appends.
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) tail: Tail,
    pub(crate) end: End,
    pub(crate) purged: Option<LogId>,
    /// Address of the oldest stored byte, and the CRC of the header before it.
    pub(crate) start_physical: u64,
    pub(crate) start_crc: u32,
    /// First entry of each term; may begin before the purged id.
    pub(crate) term_starts: Vec<LogId>,
    pub(crate) flushed_physical: u64,
    pub(crate) flushed_index: Option<u64>,
    pub(crate) committed: Option<LogId>,
    /// Counts appended entries, see [`TailEntry::sequence`].
    pub(crate) sequence: u64,
    pub(crate) written_sequence: u64,
    pub(crate) failed: Option<String>,
}

/// Where the next entry goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// Last entry; the purged one when nothing is stored after it.
    pub(crate) id: Option<LogId>,
    pub(crate) physical: u64,
    pub(crate) crc: u32,
}

impl CommitLog {
    /// Opens the log of a data folder, or begins one. `start` is the position of the newest
    /// checkpoint: entries before it are not verified again, so that the work is bounded by the
    /// checkpoint. The two other values belong to one thread each. Corruption is reported without
    /// changing anything; a torn end that was never acknowledged is cut.
    pub fn open(
        disk: Arc<dyn Disk>,
        config: LogConfig,
        start: Option<&LogPosition>,
    ) -> Result<(Arc<Self>, Flusher, Preallocator, RecoveryReport), StoreError> {
        recover::open(disk, config, start)
    }

    /// Puts the parts together; for `recover.rs`.
    pub(crate) fn assemble(
        disk: Arc<dyn Disk>,
        config: LogConfig,
        state: LogState,
        vote: VoteFile,
        lock: Box<dyn DiskLock>,
    ) -> Self {
        let written_index = state.flushed_index;
        let active = state
            .segments
            .last()
            .filter(|segment| segment.is_on_disk())
            .cloned();
        Self {
            disk,
            config,
            state: RwLock::new(state),
            cut_epoch: AtomicU64::new(0),
            queue: Mutex::default(),
            work: Condvar::new(),
            io: Mutex::new(FlushState::new(active, written_index)),
            vote: Mutex::new(vote),
            closed: AtomicBool::new(false),
            prealloc: PreallocState::default(),
            space: SpaceState::default(),
            noted: Noted::default(),
            blocks: Blocks::default(),
            _lock: lock,
        }
    }

    /// Appends entries whose indexes follow the last one's (the first of a log is 0). They are
    /// readable on return; `done` is called when they are flushed. On an error nothing was
    /// appended and `done` is dropped uncalled.
    pub fn append(&self, entries: Vec<NewEntry>, done: Completion) -> Result<(), StoreError> {
        let since = self.now();
        let mut crcs = Vec::with_capacity(entries.len());
        for entry in &entries {
            if entry.payload.len() > PAYLOAD_BYTES_MAX {
                let (size, max) = (entry.payload.len() as u64, PAYLOAD_BYTES_MAX as u64);
                return Err(StoreError::TooLarge {
                    what: "entry",
                    size,
                    max,
                });
            }
            crcs.push(crc32c::crc32c(&entry.payload));
        }
        let mut operations = Vec::with_capacity(entries.len().max(1));
        let mut state = self.state_mut();
        if let Some(reason) = &state.failed {
            return Err(StoreError::Failed(reason.clone()));
        }
        if self.is_closed() {
            return Err(StoreError::Closed);
        }
        state.check_continuous(&entries)?;
        for (entry, payload_crc) in entries.into_iter().zip(crcs) {
            let entry = Some(state.push(&self.config, entry, payload_crc));
            operations.push(Operation {
                entry,
                done: None,
                since,
            });
        }
        let (bytes_max, written) = (self.config.tail_bytes, state.written_sequence);
        state.tail.evict(bytes_max, written);
        self.note_ground(&state);
        match operations.last_mut() {
            Some(last) => last.done = Some(done),
            None => operations.push(Operation {
                entry: None,
                done: Some(done),
                since,
            }),
        }
        // Under the state lock, so that the queue has the order of the addresses.
        let mut queue = self.queue();
        queue.operations.extend(operations);
        if queue.idle {
            self.work.notify_one();
        }
        Ok(())
    }

    /// Saves the Raft vote, at most 64 bytes; durable on return, and before any later append.
    pub fn save_vote(&self, vote: &[u8]) -> Result<(), StoreError> {
        self.check_alive()?;
        let saved = self.vote_file().save_vote(vote);
        if let Err(error @ StoreError::Io { .. }) = &saved {
            self.fail(&error.to_string());
        }
        saved
    }

    /// The saved vote.
    pub fn read_vote(&self) -> Option<Vec<u8>> {
        self.vote_file().vote().map(<[u8]>::to_vec)
    }

    /// Remembers the last committed entry as a hint for the next start. Costs nothing: the flusher
    /// writes it now and then, without a sync.
    pub fn save_committed(&self, committed: LogId) -> Result<(), StoreError> {
        self.state_mut().committed = Some(committed);
        Ok(())
    }

    /// The last committed entry as far as remembered; may be older than the truth.
    pub fn committed(&self) -> Option<LogId> {
        self.state().committed
    }

    /// Index of the first entry that is not purged (which may not exist yet).
    pub fn first_index(&self) -> u64 {
        self.state().first_index()
    }

    /// The last entry; the purged one when nothing is stored after it.
    pub fn last_id(&self) -> Option<LogId> {
        self.state().end.id
    }

    /// The last purged entry.
    pub fn purged_id(&self) -> Option<LogId> {
        self.state().purged
    }

    /// Address of the oldest stored byte.
    pub fn min_physical(&self) -> u64 {
        self.state().start_physical
    }

    /// Address one past the last appended byte.
    pub fn max_physical(&self) -> u64 {
        self.state().end.physical
    }

    /// Address up to which everything is synced.
    pub fn flushed_physical(&self) -> u64 {
        self.state().flushed_physical
    }

    /// Index of the last synced entry.
    pub fn flushed_index(&self) -> Option<u64> {
        self.state().flushed_index
    }

    /// Addresses where segments begin, ascending.
    pub fn segment_bases(&self) -> Vec<u64> {
        self.state()
            .segments
            .iter()
            .map(|segment| segment.base)
            .collect()
    }

    /// Whether a segment begins at this address.
    pub fn is_segment_base(&self, physical_offset: u64) -> bool {
        let state = self.state();
        state
            .segments
            .binary_search_by_key(&physical_offset, |segment| segment.base)
            .is_ok()
    }

    /// How long the oldest entry that is not flushed has waited; for the watch over stalled disks.
    pub fn oldest_unflushed_since(&self) -> Option<Duration> {
        let queue = self.queue();
        let waiting = queue.operations.front().map(|operation| operation.since);
        queue
            .in_flight_since
            .or(waiting)
            .map(|since| self.age(since))
    }

    /// How long the oldest entry that is not flushed has waited for the disk itself. Unlike
    /// [`CommitLog::oldest_unflushed_since`] without the time until the flusher took it, which may be
    /// short of processor time only.
    pub fn waits_for_disk_since(&self) -> Option<Duration> {
        let unflushed = self.oldest_unflushed_since()?;
        let writing = self.queue().writing_since?;
        Some(self.age(writing).min(unflushed))
    }

    /// Takes no more appends. The flusher writes what waits and then, like the preallocator,
    /// returns that it has stopped.
    pub fn close(&self) {
        // Under the state lock: no append is half done.
        let state = self.state_mut();
        self.closed.store(true, Ordering::Release);
        drop(state);
        let _queue = self.queue();
        self.work.notify_all();
        self.prealloc.wake();
    }

    /// Settings the log was opened with.
    pub fn config(&self) -> &LogConfig {
        &self.config
    }

    pub(crate) fn now(&self) -> Instant {
        (self.config.now)()
    }

    pub(crate) fn age(&self, since: Instant) -> Duration {
        self.now().saturating_duration_since(since)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        self.disk.as_ref()
    }

    pub(crate) fn disk_handle(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.config.dir
    }

    /// Grows with every cut of the log's end; a read that saw it change is repeated.
    pub(crate) fn cut_epoch(&self) -> u64 {
        self.cut_epoch.load(Ordering::Acquire)
    }

    /// Only with the state locked for writing.
    pub(crate) fn advance_cut_epoch(&self) {
        self.cut_epoch.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn state(&self) -> RwLockReadGuard<'_, LogState> {
        self.state.read().expect("a panic ends the process")
    }

    pub(crate) fn state_mut(&self) -> RwLockWriteGuard<'_, LogState> {
        self.state.write().expect("a panic ends the process")
    }

    pub(crate) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("a panic ends the process")
    }

    pub(crate) fn io(&self) -> MutexGuard<'_, FlushState> {
        self.io.lock().expect("a panic ends the process")
    }

    pub(crate) fn vote_file(&self) -> MutexGuard<'_, VoteFile> {
        self.vote.lock().expect("a panic ends the process")
    }

    /// An error once a write has failed.
    pub(crate) fn check_alive(&self) -> Result<(), StoreError> {
        match &self.state().failed {
            Some(reason) => Err(StoreError::Failed(reason.clone())),
            None => Ok(()),
        }
    }

    /// Takes note of a failed write: nothing is accepted any more, and whoever waits is told.
    pub(crate) fn fail(&self, reason: &str) {
        self.state_mut()
            .failed
            .get_or_insert_with(|| reason.to_owned());
        let waiting: Vec<Operation> = {
            let mut queue = self.queue();
            queue.failed = true;
            self.work.notify_all();
            queue.operations.drain(..).collect()
        };
        complete(waiting, Some(reason));
    }

    /// The hints as they are now.
    pub(crate) fn current_hints(&self) -> Hints {
        let state = self.state();
        Hints {
            committed: state.committed,
            synced_physical: state.flushed_physical,
            unsynced_bytes_max: self.config.unsynced_bytes_max(),
        }
    }
}

impl LogState {
    /// Index of the first entry that is not purged.
    pub(crate) fn first_index(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    /// Index the next entry must have.
    pub(crate) fn next_index(&self) -> u64 {
        self.end.id.map_or(0, |last| last.index + 1)
    }

    fn check_continuous(&self, entries: &[NewEntry]) -> Result<(), StoreError> {
        let mut last = self.end.id;
        for entry in entries {
            let expected = last.map_or(0, |last| last.index + 1);
            let falls = last.is_some_and(|last| entry.id.term < last.term);
            if entry.id.index != expected || falls {
                return Err(StoreError::NotContinuous {
                    expected,
                    found: entry.id.to_string(),
                });
            }
            last = Some(entry.id);
        }
        Ok(())
    }

    /// Takes in one entry: gives it its place and puts it into the tail.
    fn push(&mut self, config: &LogConfig, entry: NewEntry, payload_crc: u32) -> PendingEntry {
        let NewEntry {
            id,
            kind,
            count,
            payload,
        } = entry;
        let total_bytes = (HEADER_BYTES + payload.len()) as u32;
        let physical = self.end.physical;
        let segment = match self.segments.last() {
            Some(active)
                if active.base == physical
                    || !begins_segment(physical, total_bytes.into(), config.segment_bytes) =>
            {
                active.clone()
            }
            _ => {
                let segment = Segment::new(&config.dir, physical, id.index, self.end.crc);
                self.segments.push(Arc::new(segment));
                self.segments[self.segments.len() - 1].clone()
            }
        };
        let previous_crc = self.end.crc;
        let (header, crc) = Header {
            total_bytes,
            id,
            physical_offset: physical,
            count,
            kind,
            payload_crc,
            previous_crc,
        }
        .encode();
        segment.sparse().note(id.index, physical);
        if self
            .term_starts
            .last()
            .is_none_or(|start| !start.same_leader(&id))
        {
            self.term_starts.push(id);
        }
        self.sequence += 1;
        self.end = End {
            id: Some(id),
            physical: physical + u64::from(total_bytes),
            crc,
        };
        let stored = StoredEntry {
            id,
            kind,
            count,
            payload: payload.clone(),
            physical_offset: physical,
        };
        let sequence = self.sequence;
        self.tail.push(TailEntry {
            header,
            header_crc: crc,
            entry: stored,
            sequence,
        });
        PendingEntry {
            segment,
            header,
            payload,
            physical,
            index: id.index,
            sequence,
        }
    }
}

impl fmt::Debug for CommitLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        formatter
            .debug_struct("CommitLog")
            .field("dir", &self.config.dir)
            .field("last_id", &state.end.id)
            .field("max_physical", &state.end.physical)
            .finish_non_exhaustive()
    }
}
