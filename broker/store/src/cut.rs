//! Owns taking entries away: truncation of a conflicting end, purge of an old beginning, and the
//! reset after a snapshot was installed. Each is ordered with the appends, holds `io`, and can be
//! interrupted by a crash at any point: what is found then is the log before, after, or a prefix
//! of the log before.

use std::path::Path;
use std::sync::Arc;

use crate::commit_log::{CommitLog, End};
use crate::disk::Disk;
use crate::error::StoreError;
use crate::flush::FlushState;
use crate::record::LogId;
use crate::segment::{Segment, base_of};
use crate::tail::Tail;
use crate::vote::Marks;

impl CommitLog {
    /// Removes every entry after `index` (`None`: every entry), durably; none when the log ends
    /// before. `index` must not be purged, unless it is the last that was. Nobody may append at the same time, and no [`crate::Completion`] may call this.
    pub fn truncate_after(&self, index: Option<u64>) -> Result<(), StoreError> {
        let mut io = self.io();
        self.flush_all(&mut io)?;
        let keep = match index {
            Some(index) if self.state().next_index() <= index => return Ok(()),
            Some(index) => {
                let position = self.position_at(index)?;
                End {
                    id: Some(position.id),
                    physical: position.end_physical,
                    crc: position.crc,
                }
            }
            None => {
                let state = self.state();
                if let Some(purged) = state.purged {
                    let (min, max) = (purged.index, state.next_index());
                    return Err(StoreError::OutOfRange {
                        what: "index",
                        wanted: 0,
                        min,
                        max,
                    });
                }
                End {
                    id: None,
                    physical: state.start_physical,
                    crc: state.start_crc,
                }
            }
        };
        if keep.physical >= self.max_physical() {
            return Ok(());
        }
        self.truncate_to(&mut io, keep)
            .inspect_err(|error| self.fail(&error.to_string()))
    }

    fn truncate_to(&self, io: &mut FlushState, keep: End) -> Result<(), StoreError> {
        // First the watermark comes down, or a restart would take the cut for a loss.
        let mut hints = self.current_hints();
        hints.synced_physical = hints.synced_physical.min(keep.physical);
        self.vote_file().save_hints(hints)?;
        io.forget_hints();
        let (dropped, last) = {
            let mut state = self.state_mut();
            self.advance_cut_epoch();
            let kept = state
                .segments
                .partition_point(|segment| segment.base < keep.physical);
            let dropped = state.segments.split_off(kept);
            state.tail.cut_from(keep.physical);
            let last_index = keep.id.map(|id| id.index);
            state
                .term_starts
                .retain(|start| Some(start.index) <= last_index);
            state.committed = state.committed.filter(|id| Some(id.index) <= last_index);
            state.end = keep;
            state.flushed_physical = keep.physical;
            state.flushed_index = last_index;
            (dropped, state.segments.last().cloned())
        };
        // Newest first, each durable before the next: never a gap.
        for segment in dropped.iter().rev() {
            remove_segment(self.disk(), segment)?;
            self.sync_dir()?;
        }
        if let Some(last) = &last {
            self.cut_segment(last, keep.physical)?;
        }
        io.active = last;
        io.written_index = keep.id.map(|id| id.index);
        self.note_ground(&self.state());
        Ok(())
    }

    /// Cuts the file, which a crash leaves as it was or cut, and opens it for appends again.
    fn cut_segment(&self, segment: &Segment, end: u64) -> Result<(), StoreError> {
        let file = segment.file(self.disk())?;
        let io = |source| StoreError::io("cut segment", segment.path(), source);
        let mut allocation = segment.allocation();
        remove_if_there(self.disk(), &segment.sidecar_path())?;
        file.set_len(end - segment.base).map_err(io)?;
        file.sync_data().map_err(io)?;
        segment.set_written(end);
        segment.set_initialised(end);
        segment.sparse().cut(end);
        allocation.sealed = false;
        Ok(())
    }

    /// Forgets entries up to and including `id`, and unlinks the segments that hold nothing else.
    /// Does nothing when that was done already.
    pub fn purge_upto(&self, id: LogId) -> Result<(), StoreError> {
        let dropped = {
            let mut io = self.io();
            if self
                .purged_id()
                .is_some_and(|purged| id.index <= purged.index)
            {
                return Ok(());
            }
            let (first, next) = (self.first_index(), self.state().next_index());
            match self.entry_id(id.index)? {
                Some(stored) if stored == id => {}
                Some(_) => {
                    return Err(StoreError::NotContinuous {
                        expected: next,
                        found: id.to_string(),
                    });
                }
                None => {
                    let wanted = id.index;
                    return Err(StoreError::OutOfRange {
                        what: "index",
                        wanted,
                        min: first,
                        max: next,
                    });
                }
            }
            // Only what is on disk may lose its copy in memory.
            self.flush_all(&mut io)?;
            self.purge_flushed(id)
                .inspect_err(|error| self.fail(&error.to_string()))?
        };
        // Without `io`: unlinking a large file takes long, and a crash here leaves only files that
        // the next start removes.
        for segment in &dropped {
            remove_segment(self.disk(), segment)?;
        }
        if dropped.is_empty() {
            Ok(())
        } else {
            self.sync_dir()
        }
    }

    fn purge_flushed(&self, id: LogId) -> Result<Vec<Arc<Segment>>, StoreError> {
        let (marks, kept_from) = {
            let state = self.state();
            let begun = state
                .segments
                .partition_point(|segment| segment.first_index <= id.index + 1);
            let kept_from = begun.saturating_sub(1);
            let (start_physical, start_crc) = match state.segments.get(kept_from) {
                Some(segment) => (segment.base, segment.previous_crc),
                None => (state.start_physical, state.start_crc),
            };
            let marks = Marks {
                purged: Some(id),
                start_physical,
                start_crc,
                ..Marks::default()
            };
            (marks, kept_from)
        };
        self.vote_file().save_start(marks)?;
        let mut state = self.state_mut();
        state.purged = Some(id);
        state.start_physical = marks.start_physical;
        state.start_crc = marks.start_crc;
        state.tail.cut_before(marks.start_physical);
        let next = id.index + 1;
        let begun = state
            .term_starts
            .partition_point(|start| start.index <= next);
        state.term_starts.drain(..begun.saturating_sub(1));
        Ok(state.segments.drain(..kept_from).collect())
    }

    /// Drops the whole log and goes on after `purged`, at the address and with the CRC that the
    /// installed snapshot's position names. Durable on return. Nobody may append at the same time.
    pub fn reset(
        &self,
        purged: LogId,
        next_physical: u64,
        previous_crc: u32,
    ) -> Result<(), StoreError> {
        let mut io = self.io();
        self.flush_all(&mut io)?;
        let marks = Marks {
            purged: Some(purged),
            start_physical: next_physical,
            start_crc: previous_crc,
            resetting: true,
            ..Marks::default()
        };
        self.reset_to(&mut io, purged, marks)
            .inspect_err(|error| self.fail(&error.to_string()))
    }

    fn reset_to(&self, io: &mut FlushState, purged: LogId, marks: Marks) -> Result<(), StoreError> {
        // From here on a restart finishes the reset.
        self.vote_file().save_start(marks)?;
        {
            let mut state = self.state_mut();
            self.advance_cut_epoch();
            state.segments.clear();
            state.tail = Tail::default();
            state.term_starts.clear();
            state.purged = Some(purged);
            state.start_physical = marks.start_physical;
            state.start_crc = marks.start_crc;
            state.end = End {
                id: Some(purged),
                physical: marks.start_physical,
                crc: marks.start_crc,
            };
            state.flushed_physical = marks.start_physical;
            state.flushed_index = Some(purged.index);
            state.committed = Some(purged);
            self.note_ground(&state);
        }
        io.active = None;
        io.written_index = Some(purged.index);
        io.forget_hints();
        let hints = self.current_hints();
        let mut vote = self.vote_file();
        vote.save_hints(hints)?;
        remove_all_segments(self.disk(), self.dir())?;
        vote.save_start(Marks {
            resetting: false,
            ..marks
        })
    }

    fn sync_dir(&self) -> Result<(), StoreError> {
        self.disk()
            .sync_dir(self.dir())
            .map_err(|source| StoreError::io("sync", self.dir(), source))
    }
}

/// Unlinks every segment and sidecar of a folder, durably.
pub(crate) fn remove_all_segments(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    let names = disk
        .list(dir)
        .map_err(|source| StoreError::io("list", dir, source))?;
    for name in names {
        if base_of(name.strip_suffix(".sparse").unwrap_or(&name)).is_some() {
            remove_if_there(disk, &dir.join(name))?;
        }
    }
    disk.sync_dir(dir)
        .map_err(|source| StoreError::io("sync", dir, source))
}

fn remove_segment(disk: &dyn Disk, segment: &Segment) -> Result<(), StoreError> {
    // Opened first, so that a reader that just looked the segment up can still read it.
    segment.file(disk)?;
    remove_if_there(disk, &segment.sidecar_path())?;
    remove_if_there(disk, segment.path())
}

/// Unlinks a file unless it is gone already.
pub(crate) fn remove_if_there(disk: &dyn Disk, path: &Path) -> Result<(), StoreError> {
    match disk.remove(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path, error))
        }
        _ => Ok(()),
    }
}
