//! Owns the ground ahead of the log: zero-fills the active segment and a spare file for the next,
//! because an fdatasync that has to grow a file costs several times one that overwrites. When
//! appends come faster than zeros, it steps aside: filling would only take the disk from them. Also
//! writes the sidecars of sealed segments. Nothing here is needed for correctness; a full disk only
//! makes flushing slower.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::commit_log::CommitLog;
use crate::disk::DiskFile;
use crate::error::StoreError;
use crate::segment::Segment;

/// Bytes zero-filled at once: short, so that a flush that needs the same range waits little.
const STEP_BYTES: u64 = 1024 * 1024;
/// After a failure (a full disk), nothing is tried until this much more was appended.
const PAUSE_BYTES: u64 = 16 * 1024 * 1024;

static ZEROS: [u8; STEP_BYTES as usize] = [0; STEP_BYTES as usize];

/// Name of the file that becomes the next segment.
pub(crate) const SPARE_NAME: &str = "spare";

/// Result of one call of [`Preallocator::run_once`].
#[derive(Debug)]
pub enum PreallocOutcome {
    /// This many bytes were zero-filled.
    Filled(u64),
    /// It did not work, for example because the disk is full. Not fatal.
    Failed(StoreError),
    /// The log was closed. Do not call again.
    Stopped,
}

/// Prepares files ahead of the log. Belongs to one thread, which calls [`Preallocator::run_once`]
/// until it stops.
#[derive(Debug)]
pub struct Preallocator {
    log: Arc<CommitLog>,
}

/// What the flusher asks of the preallocator.
#[derive(Debug, Default)]
pub(crate) struct PreallocState {
    requests: Mutex<Requests>,
    work: Condvar,
    spare: Mutex<Option<Spare>>,
    has_spare: AtomicBool,
    paused_until: AtomicU64,
}

#[derive(Debug, Default)]
struct Requests {
    fill: Option<Arc<Segment>>,
    /// The log has no segment yet; make the file of its first.
    first: bool,
    sealed: Vec<Arc<Segment>>,
}

#[derive(Debug)]
struct Spare {
    file: Arc<dyn DiskFile>,
    bytes: u64,
}

impl Preallocator {
    pub(crate) fn new(log: Arc<CommitLog>) -> Self {
        Self { log }
    }

    /// Waits for a request and fulfils it.
    pub fn run_once(&mut self) -> PreallocOutcome {
        let requests = {
            let state = &self.log.prealloc;
            let mut requests = state.requests();
            while requests.is_empty() && !self.log.is_closed() {
                requests = state.work.wait(requests).expect("a panic ends the process");
            }
            std::mem::take(&mut *requests)
        };
        if self.log.is_closed() {
            return PreallocOutcome::Stopped;
        }
        self.fulfil(requests)
    }

    /// Fulfils what was asked for so far, without waiting.
    pub fn run_ready(&mut self) -> PreallocOutcome {
        let requests = std::mem::take(&mut *self.log.prealloc.requests());
        self.fulfil(requests)
    }

    fn fulfil(&self, requests: Requests) -> PreallocOutcome {
        let sidecars = requests
            .sealed
            .iter()
            .try_for_each(|segment| self.write_sidecar(segment));
        let filled = match &requests.fill {
            Some(segment) => self.fill(segment),
            None => Ok(0),
        };
        if filled.is_err() {
            let resume = self.log.max_physical() + PAUSE_BYTES;
            self.log
                .prealloc
                .paused_until
                .store(resume, Ordering::Relaxed);
        }
        match sidecars.and(filled) {
            Ok(bytes) => PreallocOutcome::Filled(bytes),
            Err(error) => PreallocOutcome::Failed(error),
        }
    }

    fn fill(&self, segment: &Segment) -> Result<u64, StoreError> {
        let config = self.log.config();
        let window = config.preallocate_bytes;
        let file = segment.file(self.log.disk())?.as_ref();
        let io = |source| StoreError::io("zero-fill segment", segment.path(), source);
        let mut filled = 0;
        let mut lead = 0;
        let limit = loop {
            let written = segment.written();
            let limit = fill_limit(written, config.segment_bytes);
            let allocation = segment.allocation();
            let from = segment.initialised();
            let target = limit.min(written.saturating_add(window));
            if allocation.sealed || from >= target || self.log.is_closed() {
                break limit;
            }
            let step = STEP_BYTES.min(target - from);
            file.write_all_at(&ZEROS[..step as usize], from - segment.base)
                .map_err(io)?;
            segment.set_initialised(from + step);
            drop(allocation);
            file.sync_data().map_err(io)?;
            filled += step;
            let lead_now = segment.initialised().saturating_sub(segment.written());
            if lead_now <= lead {
                self.pause(window);
                break limit;
            }
            lead = lead_now;
        };
        if limit.saturating_sub(segment.written()) < window {
            filled += self.fill_spare(window.min(config.segment_bytes))?;
        }
        Ok(filled)
    }

    /// Leaves the log alone until this much more was appended.
    fn pause(&self, bytes: u64) {
        let resume = self.log.max_physical() + bytes;
        self.log
            .prealloc
            .paused_until
            .store(resume, Ordering::Relaxed);
    }

    fn fill_spare(&self, bytes: u64) -> Result<u64, StoreError> {
        let state = &self.log.prealloc;
        if state.has_spare.load(Ordering::Acquire) {
            return Ok(0);
        }
        let path = self.log.spare_path();
        let io = |source| StoreError::io("zero-fill", &path, source);
        let file = self.log.disk().create(&path).map_err(io)?;
        let mut from = 0;
        while from < bytes {
            if self.log.is_closed() {
                return Ok(from);
            }
            let step = STEP_BYTES.min(bytes - from);
            file.write_all_at(&ZEROS[..step as usize], from)
                .map_err(io)?;
            file.sync_data().map_err(io)?;
            from += step;
        }
        *state.spare() = Some(Spare { file, bytes });
        state.has_spare.store(true, Ordering::Release);
        Ok(bytes)
    }

    fn write_sidecar(&self, segment: &Segment) -> Result<(), StoreError> {
        // A truncation that opens the segment again removes the sidecar under the same lock.
        let allocation = segment.allocation();
        let sparse = segment.sparse().clone();
        let whole = sparse
            .first()
            .is_some_and(|first| first.physical == segment.base);
        if !allocation.sealed || !whole {
            return Ok(());
        }
        let path = segment.sidecar_path();
        let bytes = sparse.encode(segment.base, segment.written());
        let written = self
            .log
            .disk()
            .create(&path)
            .and_then(|file| file.write_all_at(&bytes, 0));
        written.map_err(|source| StoreError::io("write", path, source))
    }
}

impl CommitLog {
    /// Asks for zero-filled ground when less than half of the window is left.
    pub(crate) fn request_preallocation(&self, segment: &Arc<Segment>) {
        let window = self.config().preallocate_bytes;
        let written = segment.written();
        if window == 0 || written < self.prealloc.paused_until.load(Ordering::Relaxed) {
            return;
        }
        let limit = fill_limit(written, self.config().segment_bytes);
        let is_low = segment.initialised() < limit.min(written + window / 2);
        let needs_spare =
            limit - written < window && !self.prealloc.has_spare.load(Ordering::Acquire);
        if is_low || needs_spare {
            self.prealloc.requests().fill = Some(segment.clone());
            self.prealloc.work.notify_one();
        }
    }

    /// Asks for the ground a log that was just opened needs.
    pub(crate) fn request_first_preallocation(&self) {
        let active = self.state().segments.last().cloned();
        match active {
            Some(segment) => self.request_preallocation(&segment),
            None if self.config().preallocate_bytes > 0 => {
                self.prealloc.requests().first = true;
            }
            None => {}
        }
    }

    /// Makes the file of a segment, from the spare when there is one. The caller syncs the folder.
    pub(crate) fn make_segment_file(&self, segment: &Segment) -> Result<(), StoreError> {
        let io = |source| StoreError::io("create segment", segment.path(), source);
        let spare = self.prealloc.spare().take();
        match spare {
            Some(spare) => {
                self.disk()
                    .rename(&self.spare_path(), segment.path())
                    .map_err(io)?;
                self.prealloc.has_spare.store(false, Ordering::Release);
                segment.set_file(spare.file, spare.bytes);
            }
            None => segment.set_file(self.disk().create(segment.path()).map_err(io)?, 0),
        }
        Ok(())
    }

    fn spare_path(&self) -> PathBuf {
        self.dir().join(SPARE_NAME)
    }
}

impl PreallocState {
    /// Hands over a sealed segment for its sidecar.
    pub(crate) fn add_sealed(&self, segment: Arc<Segment>) {
        self.requests().sealed.push(segment);
        self.work.notify_one();
    }

    /// Wakes the preallocator to see that the log was closed.
    pub(crate) fn wake(&self) {
        let _requests = self.requests();
        self.work.notify_all();
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().expect("a panic ends the process")
    }

    fn spare(&self) -> MutexGuard<'_, Option<Spare>> {
        self.spare.lock().expect("a panic ends the process")
    }
}

impl Requests {
    fn is_empty(&self) -> bool {
        self.fill.is_none() && !self.first && self.sealed.is_empty()
    }
}

/// Address behind which no entry of this segment lies, see [`crate::segment::begins_segment`].
fn fill_limit(written: u64, segment_bytes: u64) -> u64 {
    (written.max(1) - 1) / segment_bytes * segment_bytes + segment_bytes
}
