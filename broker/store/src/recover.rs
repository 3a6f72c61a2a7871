//! Owns opening a log: which files belong to it, where it ends, and whether it is whole.
//!
//! Three facts decide between a torn end, which is cut, and corruption, which is refused:
//! 1. A segment's file is made after everything in the one before was synced. So every segment but
//!    the last must be whole.
//! 2. Everything below the synced watermark was synced. The watermark is written late, never early.
//! 3. At most `unsynced_bytes_max` bytes were ever written and not synced. So an entry that far
//!    behind a damaged place proves that the place had been synced.
//!
//! All of it is judged before anything is changed.

use std::io;
use std::sync::Arc;

use crate::behind::{is_bad_sector, look_behind};
use crate::commit_log::{CommitLog, End, LogState};
use crate::config::LogConfig;
use crate::cut::{remove_all_segments, remove_if_there};
use crate::disk::{Disk, DiskFile};
use crate::error::StoreError;
use crate::flush::Flusher;
use crate::identity::lock_folder;
use crate::position::LogPosition;
use crate::prealloc::{NEW_SPARE_NAME, Preallocator, find_spare};
use crate::record::{HEADER_BYTES, Header, LogId};
use crate::repair::SPOOL_NAME;
use crate::segment::{Cursor, SCAN_BYTES, ScanStop, Segment, base_of, file_name, scan};
use crate::tail::Tail;
use crate::vote::{Hints, Marks, VoteFile};

/// What opening a log found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Segments of the log.
    pub segments: usize,
    /// Entries verified, payload and all.
    pub scanned_entries: u64,
    /// Their bytes.
    pub scanned_bytes: u64,
    /// Address where the log ends.
    pub end_physical: u64,
    /// The last entry.
    pub last_id: Option<LogId>,
    /// What was cut at the end, if anything.
    pub cut: Option<TornEnd>,
}

/// An end that was being written when the process ended and was never acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornEnd {
    /// Address of the first entry that is not whole.
    pub physical_offset: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// What the scan collects.
struct Recovery<'a> {
    disk: &'a dyn Disk,
    marks: Marks,
    hints: Hints,
    /// Segments with the length of their files.
    segments: Vec<(Arc<Segment>, u64)>,
    cursor: Cursor,
    term_starts: Vec<LogId>,
    scanned_entries: u64,
    scanned_bytes: u64,
    cut: Option<TornEnd>,
}

pub(crate) fn open(
    disk: Arc<dyn Disk>,
    config: LogConfig,
    start: Option<&LogPosition>,
) -> Result<(Arc<CommitLog>, Flusher, Preallocator, RecoveryReport), StoreError> {
    let lock = lock_folder(disk.as_ref(), &config.dir)?;
    let config = LogConfig {
        segment_bytes: config.segment_bytes.max(4096),
        flush_batch_bytes_max: config.flush_batch_bytes_max.max(64 * 1024),
        ..config
    };
    let (mut bases, others) = list(disk.as_ref(), &config)?;
    let mut vote = VoteFile::open(disk.as_ref(), &config.dir, bases.is_empty())?;
    if vote.marks().resetting {
        finish_reset(disk.as_ref(), &config, &mut vote)?;
        bases.clear();
    }
    let mut recovery = Recovery::begin(disk.as_ref(), &config, &vote, &bases, start)?;
    recovery.check_all()?;
    // From here on the log is known to be whole, and changes are allowed. Marks first: by them
    // files are removed.
    vote.save_again()?;
    recovery.repair_end()?;
    recovery.remove_leftovers(&config, &bases, &others)?;
    let spare = find_spare(disk.as_ref(), &config)?;
    let (state, report) = recovery.finish();
    vote.save_hints(Hints {
        committed: state.committed,
        synced_physical: state.end.physical,
        unsynced_bytes_max: config.unsynced_bytes_max(),
    })?;
    let log = Arc::new(CommitLog::assemble(disk, config, state, vote, lock));
    log.prealloc.adopt(spare);
    log.look_at_space()?;
    log.request_first_preallocation();
    Ok((
        log.clone(),
        Flusher::new(log.clone()),
        Preallocator::new(log),
        report,
    ))
}

/// Bases of the segments, ascending, and names of the other files.
fn list(disk: &dyn Disk, config: &LogConfig) -> Result<(Vec<u64>, Vec<String>), StoreError> {
    let names = disk
        .list(&config.dir)
        .map_err(|source| StoreError::io("list", &config.dir, source))?;
    let bases = names.iter().filter_map(|name| base_of(name)).collect();
    Ok((
        bases,
        names
            .into_iter()
            .filter(|name| base_of(name).is_none())
            .collect(),
    ))
}

/// Completes a reset that a crash interrupted.
fn finish_reset(
    disk: &dyn Disk,
    config: &LogConfig,
    vote: &mut VoteFile,
) -> Result<(), StoreError> {
    vote.save_again()?;
    let marks = vote.marks();
    let synced_physical = marks.start_physical;
    vote.save_hints(Hints {
        committed: marks.purged,
        synced_physical,
        ..vote.hints()
    })?;
    remove_all_segments(disk, &config.dir)?;
    vote.save_marks(Marks {
        resetting: false,
        ..marks
    })
}

impl<'a> Recovery<'a> {
    /// Opens the files and finds where the scan begins.
    fn begin(
        disk: &'a dyn Disk,
        config: &LogConfig,
        vote: &VoteFile,
        bases: &[u64],
        start: Option<&LogPosition>,
    ) -> Result<Self, StoreError> {
        let (marks, mut hints) = (vote.marks(), vote.hints());
        if hints.unsynced_bytes_max == 0 {
            hints.unsynced_bytes_max = config.unsynced_bytes_max();
        }
        // A purge that a crash interrupted leaves segments before the beginning.
        let bases: Vec<u64> = bases
            .iter()
            .copied()
            .filter(|base| *base >= marks.start_physical)
            .collect();
        if let Some(first) = bases.first()
            && *first != marks.start_physical
        {
            return Err(missing(
                marks.start_physical,
                "the first segment is missing",
            ));
        }
        let start = start.filter(|start| start.end_physical >= marks.start_physical);
        let cursor = match start {
            Some(start) => Cursor {
                physical: start.end_physical,
                crc: start.crc,
                next_index: Some(start.id.index + 1),
                last: Some(start.id),
            },
            None => Cursor {
                physical: marks.start_physical,
                crc: marks.start_crc,
                next_index: match marks.purged {
                    None => Some(0),
                    // The log may begin before the purged entry, by up to a segment.
                    Some(purged) => bases.is_empty().then_some(purged.index + 1),
                },
                last: None,
            },
        };
        let mut recovery = Self {
            disk,
            marks,
            hints,
            segments: Vec::with_capacity(bases.len()),
            cursor,
            term_starts: start
                .map(|start| start.term_starts.clone())
                .unwrap_or_default(),
            scanned_entries: 0,
            scanned_bytes: 0,
            cut: None,
        };
        for base in bases {
            let segment = recovery.open_segment(config, base)?;
            recovery.segments.push(segment);
        }
        Ok(recovery)
    }

    /// Opens a segment and reads its first header, if it has one.
    fn open_segment(
        &self,
        config: &LogConfig,
        base: u64,
    ) -> Result<(Arc<Segment>, u64), StoreError> {
        let path = config.dir.join(file_name(base));
        let io = |source| StoreError::io("open segment", &path, source);
        let file = self.disk.open(&path).map_err(io)?;
        let len = file.len().map_err(io)?;
        let mut bytes = [0; HEADER_BYTES];
        let read = match file.read_at(&mut bytes, 0) {
            // As damaged as a wrong one.
            Err(error) if is_bad_sector(&error) => 0,
            read => read.map_err(io)?,
        };
        let segment = match Header::decode(&bytes[..read]) {
            Ok((header, _)) if header.physical_offset == base => {
                Segment::new(&config.dir, base, header.id.index, header.previous_crc)
            }
            // Allowed only for the last one, which the scan tells; then it is empty.
            _ => Segment::new(&config.dir, base, u64::MAX, 0),
        };
        segment.set_file(file, len);
        Ok((Arc::new(segment), len))
    }

    /// Verifies everything from the cursor to the end of the last segment.
    fn check_all(&mut self) -> Result<(), StoreError> {
        for at in 0..self.segments.len() {
            let (segment, len) = self.segments[at].clone();
            match self.segments.get(at + 1).map(|(next, _)| next.clone()) {
                Some(next) => self.check_sealed(&segment, len, &next)?,
                None => self.check_last(at, &segment, len)?,
            }
        }
        let end = self.cursor.physical;
        if end < self.hints.synced_physical {
            return Err(missing(end, "the log ends before what was synced"));
        }
        let known_end = self
            .segments
            .last()
            .map_or(self.marks.start_physical, |(last, len)| {
                last.base.saturating_add(*len)
            });
        if end > known_end {
            return Err(missing(known_end, "the log ends before the checkpoint"));
        }
        let last_index = self.cursor.next_index.unwrap_or(0);
        if self
            .marks
            .purged
            .is_some_and(|purged| last_index <= purged.index)
        {
            return Err(missing(end, "the log ends before the purged entry"));
        }
        Ok(())
    }

    /// A segment with another behind it must be whole (fact 1).
    fn check_sealed(
        &mut self,
        segment: &Segment,
        len: u64,
        next: &Segment,
    ) -> Result<(), StoreError> {
        segment.set_found(next.base, segment.base + len, true);
        if segment.first_index == u64::MAX {
            return Err(segment.corrupt(segment.base, "the first entry is damaged"));
        }
        if len < next.base - segment.base {
            return Err(segment.corrupt(segment.base + len, "the file is cut short"));
        }
        if self.cursor.physical >= next.base {
            return Ok(());
        }
        match self.scan_segment(segment, next.base)? {
            ScanStop::End => Ok(()),
            ScanStop::Zeros => Err(segment.corrupt(self.cursor.physical, "entries are missing")),
            ScanStop::Damaged(reason) | ScanStop::Stale(reason) => {
                Err(segment.corrupt(self.cursor.physical, reason))
            }
        }
    }

    /// The last segment may end torn.
    fn check_last(&mut self, at: usize, found: &Segment, len: u64) -> Result<(), StoreError> {
        let file_end = found.base + len;
        if self.cursor.physical > file_end {
            // Reported by the caller with the other facts about the end.
            return Ok(());
        }
        let stop = self.scan_segment(found, file_end)?;
        let end = self.cursor.physical;
        if end == found.base {
            let index = self
                .cursor
                .next_index
                .or(self.marks.purged.map(|id| id.index + 1));
            let path = found.path().parent().unwrap_or_else(|| found.path());
            let empty = Segment::new(path, end, index.unwrap_or(0), self.cursor.crc);
            self.cursor.next_index = index;
            self.segments[at].0 = Arc::new(empty);
        } else if found.first_index == u64::MAX {
            return Err(found.corrupt(found.base, "the first entry is damaged"));
        }
        let segment = self.segments[at].0.clone();
        segment.set_found(end, file_end, false);
        let reason = match stop {
            ScanStop::End => return Ok(()),
            ScanStop::Zeros => "entries are missing",
            ScanStop::Damaged(reason) | ScanStop::Stale(reason) => reason,
        };
        let rest = look_behind(
            &mut found.reader(self.disk, file_end, SCAN_BYTES)?,
            end,
            file_end,
        )?;
        if stop == ScanStop::Zeros && rest.all_zero {
            return Ok(());
        }
        if end < self.hints.synced_physical {
            let text = format!("{reason}, though it was synced");
            return Err(segment.corrupt(end, text));
        }
        let far = end.saturating_add(self.hints.unsynced_bytes_max);
        if let Some(valid) = rest.last_header.filter(|valid| *valid >= far) {
            let text = format!("{reason}, though the entry at {valid} was written later");
            return Err(segment.corrupt(end, text));
        }
        self.cut = Some(TornEnd {
            physical_offset: end,
            reason: reason.to_owned(),
        });
        Ok(())
    }

    fn scan_segment(&mut self, segment: &Segment, end: u64) -> Result<ScanStop, StoreError> {
        let mut reader = segment.reader(self.disk, end, SCAN_BYTES)?;
        let (starts, entries) = (&mut self.term_starts, &mut self.scanned_entries);
        let from = self.cursor.physical;
        let first_index_max = self.marks.purged.map_or(0, |purged| purged.index + 1);
        let mut sparse = segment.sparse();
        let is_beginning = self.cursor.next_index.is_none();
        if is_beginning && segment.first_index > first_index_max && segment.first_index != u64::MAX
        {
            return Err(segment.corrupt(from, "entries after the purged one are missing"));
        }
        let stop = scan(&mut reader, &mut self.cursor, end, |header| {
            *entries += 1;
            sparse.note(header.id.index, header.physical_offset);
            if starts
                .last()
                .is_none_or(|start| !start.same_leader(&header.id))
            {
                starts.push(header.id);
            }
        })?;
        self.scanned_bytes += self.cursor.physical - from;
        Ok(stop)
    }

    /// Cuts a torn end, and makes the end durable: what a killed process had written may be in the
    /// page cache only, or in pages that a failed sync marked clean, so the part behind the
    /// watermark is written once more before it is synced. Cutting is writing zeros, because a
    /// full disk might not give the ground back. A crash leaves the same torn end, or less of it.
    fn repair_end(&mut self) -> Result<(), StoreError> {
        let Some((segment, len)) = self.segments.last() else {
            return Ok(());
        };
        let io = |source| StoreError::io("repair the end of segment", segment.path(), source);
        let file = segment.file(self.disk)?;
        let end = self.cursor.physical;
        let mut buffer = vec![0; SCAN_BYTES];
        if self.cut.is_some() {
            write_zeros(file.as_ref(), end - segment.base, *len, &mut buffer).map_err(io)?;
        }
        let mut from = self.hints.synced_physical.max(segment.base);
        while from < end {
            let step = (end - from).min(SCAN_BYTES as u64) as usize;
            file.read_exact_at(&mut buffer[..step], from - segment.base)
                .map_err(io)?;
            file.write_all_at(&buffer[..step], from - segment.base)
                .map_err(io)?;
            from += step as u64;
        }
        file.sync_data().map_err(io)
    }

    /// Removes files that no longer belong to the log.
    fn remove_leftovers(
        &self,
        config: &LogConfig,
        bases: &[u64],
        others: &[String],
    ) -> Result<(), StoreError> {
        let active = self.segments.last().map_or(u64::MAX, |(last, _)| last.base);
        let start = self.marks.start_physical;
        for base in bases.iter().filter(|base| **base < start) {
            remove_if_there(self.disk, &config.dir.join(file_name(*base)))?;
        }
        for name in others {
            let sidecar = name.strip_suffix(".sparse").and_then(base_of);
            let orphan = sidecar.is_some_and(|base| base < start || base >= active);
            if orphan || name == NEW_SPARE_NAME || name == SPOOL_NAME {
                remove_if_there(self.disk, &config.dir.join(name))?;
            }
        }
        self.disk
            .sync_dir(&config.dir)
            .map_err(|source| StoreError::io("sync", &config.dir, source))
    }

    /// The committed entry of the hint, if it is the one that stands here under its index: a hint may
    /// be older than what was cut and written again.
    fn committed(&self, last: Option<LogId>) -> Option<LogId> {
        let hint = self.hints.committed?;
        let after = self
            .term_starts
            .partition_point(|start| start.index <= hint.index);
        let found = match self.marks.purged {
            Some(purged) if hint.index <= purged.index => {
                return (hint.index < purged.index || hint == purged).then_some(hint);
            }
            _ => self.term_starts.get(after.checked_sub(1)?)?,
        };
        let is_here = last.is_some_and(|last| hint.index <= last.index);
        (is_here && found.same_leader(&hint)).then_some(hint)
    }

    fn finish(self) -> (LogState, RecoveryReport) {
        let id = self.cursor.last.or(self.marks.purged);
        let committed = self.committed(id);
        let report = RecoveryReport {
            segments: self.segments.len(),
            scanned_entries: self.scanned_entries,
            scanned_bytes: self.scanned_bytes,
            end_physical: self.cursor.physical,
            last_id: id,
            cut: self.cut,
        };
        let last_index = id.map(|id| id.index);
        let state = LogState {
            segments: self
                .segments
                .into_iter()
                .map(|(segment, _)| segment)
                .collect(),
            tail: Tail::default(),
            end: End {
                id,
                physical: self.cursor.physical,
                crc: self.cursor.crc,
            },
            purged: self.marks.purged,
            start_physical: self.marks.start_physical,
            start_crc: self.marks.start_crc,
            term_starts: self.term_starts,
            flushed_physical: self.cursor.physical,
            flushed_index: last_index,
            committed,
            sequence: 0,
            written_sequence: 0,
            failed: None,
        };
        (state, report)
    }
}

/// Makes `from..to` of a file zeros where it is not, without a change of its length.
fn write_zeros(file: &dyn DiskFile, mut from: u64, to: u64, buffer: &mut [u8]) -> io::Result<()> {
    while from < to {
        let step = (to - from).min(buffer.len() as u64) as usize;
        let chunk = &mut buffer[..step];
        file.read_exact_at(chunk, from)?;
        if chunk.iter().any(|byte| *byte != 0) {
            chunk.fill(0);
            file.write_all_at(chunk, from)?;
        }
        from += step as u64;
    }
    Ok(())
}

fn missing(physical_offset: u64, reason: &str) -> StoreError {
    StoreError::Corrupt {
        segment: file_name(physical_offset),
        physical_offset,
        reason: reason.to_owned(),
    }
}
