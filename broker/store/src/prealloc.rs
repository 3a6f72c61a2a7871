//! Owns the ground ahead of the log: zero-fills the active segment and a spare file for the next,
//! because an fdatasync that has to grow a file costs several times one that overwrites. When
//! appends come faster than zeros, it steps aside: filling would only take the disk from them. Also
//! writes the sidecars of sealed segments. Nothing here is needed for correctness. A disk that is
//! full stops it without harm; the ground made before is what the log has left then, so it is kept
//! across restarts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::commit_log::CommitLog;
use crate::config::LogConfig;
use crate::cut::remove_if_there;
use crate::disk::{Disk, DiskFile};
use crate::error::StoreError;
use crate::segment::Segment;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// Bytes zero-filled at once: short, so that a flush that needs the same range waits little.
const STEP_BYTES: u64 = 1024 * 1024;
/// After a failure (a full disk), nothing is tried until this much is available again.
const RESUME_BYTES: u64 = 2 * STEP_BYTES;

static ZEROS: [u8; STEP_BYTES as usize] = [0; STEP_BYTES as usize];

/// Name of the file that becomes the next segment: zeros, all of them synced.
const SPARE_NAME: &str = "spare";
/// Its name while it is being filled.
pub(crate) const NEW_SPARE_NAME: &str = "spare.new";

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
    pub(crate) log: Arc<CommitLog>,
}

/// What the flusher asks of the preallocator.
#[derive(Debug, Default)]
pub(crate) struct PreallocState {
    requests: Mutex<Requests>,
    pub(crate) work: Condvar,
    spare: Mutex<Option<Spare>>,
    /// Size of the spare file; 0 = none.
    pub(crate) spare_bytes: AtomicU64,
    paused_until: AtomicU64,
    /// The last try failed; whoever looks at the space ends the pause.
    has_failed: AtomicBool,
}

#[derive(Debug, Default)]
pub(crate) struct Requests {
    fill: Option<Arc<Segment>>,
    /// The log has no segment yet; make the file of its first.
    pub(crate) first: bool,
    sealed: Vec<Arc<Segment>>,
}

#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) bytes: u64,
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

    /// As [`Preallocator::run_once`], but without waiting.
    pub fn run_ready(&mut self) -> PreallocOutcome {
        if self.log.is_closed() {
            return PreallocOutcome::Stopped;
        }
        let requests = std::mem::take(&mut *self.log.prealloc.requests());
        self.fulfil(requests)
    }

    pub(crate) fn fulfil(&self, requests: Requests) -> PreallocOutcome {
        let sidecars = requests
            .sealed
            .iter()
            .try_for_each(|segment| self.write_sidecar(segment));
        let filled = match &requests.fill {
            Some(segment) => self.fill(segment),
            None if requests.first => self.fill_spare(),
            None => Ok(0),
        };
        if filled.is_err() {
            let state = &self.log.prealloc;
            state.paused_until.store(u64::MAX, Ordering::Relaxed);
            state.has_failed.store(true, Ordering::Release);
            // Whoever decides what may still be appended must not go by an older answer. Without
            // an answer the one before stays.
            let _ = self.log.measure_space();
        }
        self.log.note_ground(&self.log.state());
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
            // The file may hold entries whose sync this one took the place of: its failure may be
            // theirs, and would not be told a second time.
            file.sync_data()
                .map_err(io)
                .inspect_err(|error| self.log.fail(&error.to_string()))?;
            filled += step;
            let lead_now = segment.initialised().saturating_sub(segment.written());
            if lead_now <= lead {
                self.pause(window);
                break limit;
            }
            lead = lead_now;
        };
        if limit.saturating_sub(segment.written()) < window {
            filled += self.fill_spare()?;
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

    /// Makes the spare file if there is none.
    fn fill_spare(&self) -> Result<u64, StoreError> {
        let state = &self.log.prealloc;
        let config = self.log.config();
        let bytes = config.preallocate_bytes.min(config.segment_bytes);
        if state.spare_bytes() > 0 || bytes == 0 {
            return Ok(0);
        }
        let path = self.log.dir().join(NEW_SPARE_NAME);
        let made = self.make_spare(&path, bytes);
        if !matches!(made, Ok(Some(_))) {
            // Half a spare would only hold space.
            remove_if_there(self.log.disk(), &path)?;
        }
        let Some(file) = made? else { return Ok(0) };
        state.put_spare(Some(Spare { file, bytes }));
        Ok(bytes)
    }

    /// None when the log was closed meanwhile.
    pub(crate) fn make_spare(
        &self,
        path: &Path,
        bytes: u64,
    ) -> Result<Option<Arc<dyn DiskFile>>, StoreError> {
        let io = |source| StoreError::io("zero-fill", path, source);
        let file = self.log.disk().create(path).map_err(io)?;
        let mut from = 0;
        while from < bytes {
            if self.log.is_closed() {
                return Ok(None);
            }
            let step = STEP_BYTES.min(bytes - from);
            file.write_all_at(&ZEROS[..step as usize], from)
                .map_err(io)?;
            file.sync_data().map_err(io)?;
            from += step;
        }
        // Only now: under this name a restart takes it for zeros.
        self.log
            .disk()
            .rename(path, &self.log.spare_path())
            .map_err(io)?;
        Ok(Some(file))
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
        let disk = self.log.disk();
        let written = disk
            .create(&path)
            .and_then(|file| file.write_all_at(&bytes, 0));
        written.map_err(|source| {
            // It can be done without; half of one only holds space.
            let _ = disk.remove(&path);
            StoreError::io("write", path, source)
        })
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
        let needs_spare = limit - written < window && self.prealloc.spare_bytes() == 0;
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
                self.prealloc.spare_bytes.store(0, Ordering::Release);
                segment.set_file(spare.file, spare.bytes);
            }
            None => segment.set_file(self.disk().create(segment.path()).map_err(io)?, 0),
        }
        Ok(())
    }

    pub(crate) fn spare_path(&self) -> PathBuf {
        self.dir().join(SPARE_NAME)
    }
}

impl PreallocState {
    /// Takes over the spare file that a restart found.
    pub(crate) fn adopt(&self, found: Option<Spare>) {
        self.put_spare(found);
    }

    /// Counted before anybody can take it: whoever takes it counts it as gone.
    fn put_spare(&self, made: Option<Spare>) {
        let mut spare = self.spare();
        let bytes = made.as_ref().map_or(0, |spare| spare.bytes);
        self.spare_bytes.store(bytes, Ordering::Release);
        *spare = made;
    }

    /// Size of the spare file; 0 = none.
    pub(crate) fn spare_bytes(&self) -> u64 {
        self.spare_bytes.load(Ordering::Acquire)
    }

    /// Ends the pause after a failure when enough is available; true when it did.
    pub(crate) fn resume(&self, available_bytes: u64) -> bool {
        let resumes =
            available_bytes >= RESUME_BYTES && self.has_failed.swap(false, Ordering::AcqRel);
        if resumes {
            self.paused_until.store(0, Ordering::Relaxed);
        }
        resumes
    }

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

    pub(crate) fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().expect("a panic ends the process")
    }

    pub(crate) fn spare(&self) -> MutexGuard<'_, Option<Spare>> {
        self.spare.lock().expect("a panic ends the process")
    }
}

impl Requests {
    pub(crate) fn is_empty(&self) -> bool {
        self.fill.is_none() && !self.first && self.sealed.is_empty()
    }
}

/// The spare file of a folder, if the next segment can be made of it. It is kept over a restart
/// because a full disk would not give its space again.
pub(crate) fn find_spare(disk: &dyn Disk, config: &LogConfig) -> Result<Option<Spare>, StoreError> {
    let path = config.dir.join(SPARE_NAME);
    let io = |source| StoreError::io("open", &path, source);
    if !disk.exists(&path).map_err(io)? {
        return Ok(None);
    }
    let file = disk.open(&path).map_err(io)?;
    let bytes = file.len().map_err(io)?;
    if bytes > 0 && bytes <= config.segment_bytes.min(config.preallocate_bytes) {
        return Ok(Some(Spare { file, bytes }));
    }
    // The settings have changed since.
    remove_if_there(disk, &path)?;
    Ok(None)
}

/// Address behind which no entry of this segment lies, see [`crate::segment::begins_segment`].
pub(crate) fn fill_limit(written: u64, segment_bytes: u64) -> u64 {
    (written.max(1) - 1) / segment_bytes * segment_bytes + segment_bytes
}
