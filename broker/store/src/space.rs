//! Owns knowing how far the log may still grow. There are two kinds of room: the *ground* behind the
//! log's end, which is zero-filled and therefore the log's already, and what the file system has
//! left, which anybody may take at any time. On a full disk the ground is what entries go into that
//! must not fail: those of Raft itself, consumer offsets and metadata.

use crate::commit_log::{CommitLog, LogState};
use crate::disk::DiskSpace;
use crate::error::StoreError;
use crate::prealloc::fill_limit;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The room as last looked at. Read for every send, so it takes no lock.
#[derive(Debug, Default)]
pub(crate) struct SpaceState {
    ground: AtomicU64,
    available: AtomicU64,
    claimed: AtomicU64,
}

impl CommitLog {
    /// Asks the file system for its space and remembers the answer. When zero-filling had stopped
    /// for want of space and there is some again, it goes on.
    pub fn look_at_space(&self) -> Result<DiskSpace, StoreError> {
        let space = self.measure_space()?;
        let last = {
            let state = self.state();
            self.note_ground(&state);
            state.segments.last().cloned()
        };
        if self.prealloc.resume(self.available_bytes())
            && let Some(last) = last.filter(|last| last.is_on_disk())
        {
            self.request_preallocation(&last);
        }
        Ok(space)
    }

    /// Bytes the file system had available when it was last asked, without those that are claimed:
    /// at most a look ago, or since the log last grew beyond its ground or failed to get more of it.
    pub fn available_bytes(&self) -> u64 {
        let claimed = self.space.claimed.load(Ordering::Relaxed);
        let available = self.space.available.load(Ordering::Relaxed);
        available.saturating_sub(claimed)
    }

    /// Says how much of the file system others of this process may give back and take again at any
    /// moment. It never counts as available: between two looks they may have taken it.
    pub fn claim_space(&self, bytes: u64) {
        self.space.claimed.store(bytes, Ordering::Relaxed);
    }

    /// Bytes of ground behind the log's end. The last entry that fits may leave some of them
    /// unused at the end of a segment.
    pub fn ground_bytes(&self) -> u64 {
        self.space.ground.load(Ordering::Relaxed)
    }

    pub(crate) fn measure_space(&self) -> Result<DiskSpace, StoreError> {
        let space = self
            .disk()
            .space(self.dir())
            .map_err(|source| StoreError::io("stat", self.dir(), source))?;
        self.space
            .available
            .store(space.available_bytes, Ordering::Relaxed);
        Ok(space)
    }

    /// Counts the ground behind the end that `state` names.
    pub(crate) fn note_ground(&self, state: &LogState) {
        let spare = self.prealloc.spare_bytes();
        let end = state.end.physical;
        let ground = match state.segments.last() {
            Some(last) if last.is_on_disk() => {
                let limit = fill_limit(end.max(last.base + 1), self.config().segment_bytes);
                let own = last.initialised().min(limit).saturating_sub(end);
                own + spare
            }
            // Its file will be the spare one.
            Some(last) => spare.saturating_sub(end - last.base),
            None => spare,
        };
        self.space.ground.store(ground, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::disk::Disk as _;
    use crate::log_tests::{DIR, append_flushed, config, entry, open};
    use crate::test_disk::MemoryDisk;
    use crate::{LogConfig, NewEntry, PreallocOutcome};

    /// Bytes of an entry's header.
    const HEADER: u64 = crate::HEADER_BYTES as u64;

    fn append(log: &CommitLog, payload_bytes: usize) -> Result<(), StoreError> {
        let next = log.last_id().map_or(0, |last| last.index + 1);
        let entries: Vec<NewEntry> = vec![entry(1, next, &vec![1; payload_bytes])];
        log.append(entries, Box::new(|_| ())).unwrap();
        log.flush()
    }

    #[test]
    fn a_full_disk_takes_entries_as_long_as_there_is_ground_and_not_one_byte_more() {
        let disk = MemoryDisk::default();
        let (log, _flusher, mut preallocator, _) = open(&disk, None).unwrap();
        append_flushed(&log, 1, 1, 100);
        preallocator.run_ready();
        disk.set_available(0);
        log.look_at_space().unwrap();
        assert_eq!(log.available_bytes(), 0);
        // All of the window's ground, less the part that one flush has used.
        assert_eq!(log.ground_bytes(), 3000);
        while log.ground_bytes() >= HEADER + 50 {
            let before = log.ground_bytes();
            append(&log, 50).unwrap();
            assert_eq!(log.ground_bytes(), before - HEADER - 50);
        }
        let rest = log.ground_bytes();
        let error = append(&log, usize::try_from(rest).unwrap()).unwrap_err();
        assert!(error.to_string().contains("write segment"), "{error}");
    }

    #[test]
    fn what_others_may_take_back_is_not_available() {
        let disk = MemoryDisk::default();
        let (log, ..) = open(&disk, None).unwrap();
        log.claim_space(1000);
        for (free, available) in [(400, 0), (1000, 0), (1500, 500)] {
            disk.set_available(free);
            log.look_at_space().unwrap();
            assert_eq!(log.available_bytes(), available);
        }
    }

    #[test]
    fn the_spare_file_is_ground_until_the_next_segment_uses_it() {
        let disk = MemoryDisk::default();
        let (log, _flusher, mut preallocator, _) = open(&disk, None).unwrap();
        // 1200 bytes before the end of the first segment of 4096.
        append_flushed(&log, 1, 1, 2896 - HEADER as usize);
        preallocator.run_ready();
        assert_eq!(log.ground_bytes(), 1200 + 3000);
        disk.set_available(0);
        append(&log, 2000).unwrap();
        // The rest of the first segment was too small, and so is lost.
        assert_eq!(log.ground_bytes(), 3000 - 2000 - HEADER);
        append(&log, 900 - HEADER as usize).unwrap();
        assert_eq!(log.ground_bytes(), 100 - HEADER);
    }

    #[test]
    fn ground_and_votes_outlast_a_restart_on_a_full_disk() {
        let disk = MemoryDisk::default();
        let (log, _flusher, mut preallocator, _) = open(&disk, None).unwrap();
        append_flushed(&log, 1, 1, 2896 - HEADER as usize);
        preallocator.run_ready();
        disk.set_available(0);
        let ground = log.ground_bytes();
        drop((log, _flusher, preallocator));
        for term in 1..5 {
            let (log, ..) = open(&disk, None).unwrap();
            assert_eq!(log.ground_bytes(), ground - (term - 1) * (HEADER + 10));
            log.save_vote(&[term as u8]).unwrap();
            append(&log, 10).unwrap();
            disk.crash();
        }
        let (log, ..) = open(&disk, None).unwrap();
        assert_eq!(log.read_vote(), Some(vec![4]));
        assert_eq!(log.last_id().unwrap().index, 4);
    }

    #[test]
    fn a_torn_end_is_cut_without_giving_up_ground() {
        let disk = MemoryDisk::default();
        let (log, _flusher, mut preallocator, _) = open(&disk, None).unwrap();
        append_flushed(&log, 1, 1, 100);
        preallocator.run_ready();
        let (end, ground) = (log.max_physical() as usize, log.ground_bytes());
        drop((log, _flusher, preallocator));
        let segment = Path::new(DIR).join(crate::segment::file_name(0));
        disk.edit(&segment, |bytes| bytes[end + 5..end + 700].fill(9));
        disk.set_available(0);
        let (log, _, _, report) = open(&disk, None).unwrap();
        assert_eq!(report.cut.unwrap().physical_offset, end as u64);
        assert_eq!(log.ground_bytes(), ground);
        assert!(disk.content(&segment)[end..].iter().all(|byte| *byte == 0));
        append(&log, 500).unwrap();
    }

    #[test]
    fn zero_filling_goes_on_by_itself_when_there_is_space_again() {
        let disk = MemoryDisk::default();
        let config = LogConfig {
            segment_bytes: 64 << 20,
            preallocate_bytes: 8 << 20,
            ..config()
        };
        let opened = CommitLog::open(Arc::new(disk.clone()), config, None).unwrap();
        let (log, _flusher, mut preallocator, _) = opened;
        append_flushed(&log, 1, 1, 100);
        disk.set_available(3 << 20);
        assert!(matches!(
            preallocator.run_ready(),
            PreallocOutcome::Failed(error) if error.is_out_of_space()
        ));
        assert!(log.available_bytes() < 1 << 20, "it looked at the space");
        let ground = log.ground_bytes();
        append_flushed(&log, 1, 1, 100);
        log.look_at_space().unwrap();
        assert!(matches!(
            preallocator.run_ready(),
            PreallocOutcome::Filled(0)
        ));
        disk.set_available(100 << 20);
        log.look_at_space().unwrap();
        assert!(matches!(
            preallocator.run_ready(),
            PreallocOutcome::Filled(bytes) if bytes > 4 << 20
        ));
        assert!(log.ground_bytes() > ground + (4 << 20));
        assert!(!disk.exists(&Path::new(DIR).join("spare.new")).unwrap());
    }
}
