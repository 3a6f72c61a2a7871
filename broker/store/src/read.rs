//! Owns reading: entries by index, bytes by address, ids and positions. The tail first, else the
//! segment files, always outside the lock.

use std::sync::Arc;

use bytes::Bytes;

use crate::commit_log::{CommitLog, LogState};
use crate::error::StoreError;
use crate::position::LogPosition;
use crate::record::{HEADER_BYTES, Header, LogId, PAYLOAD_BYTES_MAX, StoredEntry};
use crate::segment::{READ_SLACK_BYTES, Segment};
use crate::sparse::Point;

/// Largest single read of a segment for several entries.
const READ_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Entries on disk to read next.
struct DiskRange {
    segment: Arc<Segment>,
    /// One past the last index that is read from this segment.
    to_index: u64,
    /// Address where these entries end.
    end: u64,
}

/// The part of an address range that lies in one segment.
pub(crate) struct Piece {
    pub(crate) segment: Arc<Segment>,
    /// Address where the part ends.
    pub(crate) to: u64,
    /// Address where the segment's entries end that are not in the tail.
    pub(crate) entries_end: u64,
}

impl CommitLog {
    /// Entries `from_index..to_index` (the end is cut to the log's), until their headers and
    /// payloads exceed `bytes_max`; at least one when there is one. Uncommitted entries too.
    pub fn read(
        &self,
        from_index: u64,
        to_index: u64,
        bytes_max: u64,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        self.unless_cut(|_| self.read_once(from_index, to_index, bytes_max))
    }

    /// Bytes `physical_offset..physical_offset + len` of the address space. Bytes of one payload
    /// that is still in memory are not copied.
    pub fn read_bytes(&self, physical_offset: u64, len: usize) -> Result<Bytes, StoreError> {
        self.unless_cut(|epoch| self.read_bytes_once(epoch, physical_offset, len))
    }

    /// Whether the entries from `index` on are in memory, so that reading them waits for no disk.
    pub fn is_in_tail(&self, index: u64) -> bool {
        let state = self.state();
        match state.tail.first_index() {
            Some(first) => first <= index,
            // Nothing to read.
            None => index >= state.next_index(),
        }
    }

    /// Whether the bytes `physical_offset..physical_offset + len` are in memory now, in the tail or
    /// in blocks that were read before: then reading them waits for no disk, as a rule.
    pub fn is_in_memory(&self, physical_offset: u64, len: usize) -> bool {
        let epoch = self.cut_epoch();
        let end = physical_offset.saturating_add(len as u64);
        let on_disk_until = {
            let state = self.state();
            state.tail.start_physical().unwrap_or(state.end.physical)
        };
        let end = end.min(on_disk_until);
        physical_offset >= end || self.blocks.cover(epoch, physical_offset, end)
    }

    /// Id of a stored entry, or of the last purged one; `None` outside.
    pub fn entry_id(&self, index: u64) -> Result<Option<LogId>, StoreError> {
        Ok(self.state().id_of(index))
    }

    /// First entry of every term among the entries that are not purged, ascending.
    pub fn term_starts(&self) -> Vec<LogId> {
        let state = self.state();
        state.term_starts_until(state.end.id.map_or(0, |last| last.index))
    }

    /// The point after the entry `index`, which must be stored or the last purged one.
    pub fn position_at(&self, index: u64) -> Result<LogPosition, StoreError> {
        self.unless_cut(|_| self.position_once(index))
    }

    /// Repeats a read under which a truncation cut the files. It is given the epoch it began in.
    fn unless_cut<T>(
        &self,
        mut read: impl FnMut(u64) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        loop {
            let epoch = self.cut_epoch();
            let result = read(epoch);
            if self.cut_epoch() == epoch {
                return result.inspect_err(|error| self.note_damage(error));
            }
        }
    }

    fn read_once(
        &self,
        from_index: u64,
        to_index: u64,
        bytes_max: u64,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        let mut entries: Vec<StoredEntry> = Vec::new();
        let mut budget = bytes_max;
        let mut resume = None;
        let mut next = from_index;
        loop {
            let range = {
                let state = self.state();
                let first = state.first_index();
                let end = state.next_index();
                if from_index >= to_index {
                    return Ok(entries);
                }
                if from_index < first || from_index > end {
                    return Err(out_of_range("index", from_index, first, end));
                }
                let to_index = to_index.min(end);
                let used_up = !entries.is_empty() && budget < HEADER_BYTES as u64;
                if next >= to_index || used_up {
                    return Ok(entries);
                }
                if state.tail.first_index().is_some_and(|first| first <= next) {
                    let wanted = (to_index - next).min(usize::MAX as u64) as usize;
                    for entry in state.tail.iter_from(next).take(wanted) {
                        if !take(&mut budget, entry, entries.is_empty()) {
                            break;
                        }
                        entries.push(entry.clone());
                    }
                    return Ok(entries);
                }
                state.disk_range(next, to_index)?
            };
            let full = self.read_segment(&range, next, &mut resume, &mut budget, &mut entries)?;
            next = from_index + entries.len() as u64;
            if full {
                return Ok(entries);
            }
        }
    }

    /// One large read of a segment. Returns whether `budget` is used up. `resume` carries the
    /// place of the next entry from read to read.
    fn read_segment(
        &self,
        range: &DiskRange,
        from_index: u64,
        resume: &mut Option<Point>,
        budget: &mut u64,
        entries: &mut Vec<StoredEntry>,
    ) -> Result<bool, StoreError> {
        let segment = &range.segment;
        let disk = self.disk();
        let (mut at, slack) = match resume.take().filter(|point| point.index == from_index) {
            Some(point) => (point, HEADER_BYTES as u64),
            None => (
                segment.point_before(disk, from_index, range.end)?,
                READ_SLACK_BYTES,
            ),
        };
        // The point behind the last wanted entry bounds what is worth reading.
        let until = segment
            .sparse()
            .at_or_after(range.to_index)
            .map_or(range.end, |p| p.physical);
        let wanted = (*budget).min(READ_BYTES_MAX).saturating_add(slack);
        let mut len = until.min(range.end).saturating_sub(at.physical).min(wanted);
        let start = entries.len();
        loop {
            let mut buffer = vec![0; len as usize];
            segment.read_exact(disk, &mut buffer, at.physical)?;
            let buffer = Bytes::from(buffer);
            let buffer_at = at.physical;
            while at.index < range.to_index {
                let rest = &buffer[(at.physical - buffer_at) as usize..];
                if rest.len() < HEADER_BYTES {
                    break;
                }
                let header = self.header_in(segment, rest, at)?;
                let next = Point::behind(&header);
                if at.index >= from_index {
                    if !entries.is_empty() && u64::from(header.total_bytes) > *budget {
                        return Ok(true);
                    }
                    if rest.len() < header.total_bytes as usize {
                        break;
                    }
                    let entry = slice_entry(segment, &buffer, buffer_at, &header)?;
                    if !take(budget, &entry, entries.is_empty()) {
                        return Ok(true);
                    }
                    entries.push(entry);
                }
                at = next;
                if at.physical - buffer_at > buffer.len() as u64 {
                    break;
                }
            }
            if entries.len() > start || at.index >= range.to_index {
                *resume = Some(at);
                return Ok(false);
            }
            // The wanted entry is longer than the buffer: read just that one.
            let mut reader = segment.reader(disk, range.end, HEADER_BYTES)?;
            len = u64::from(reader.header(at)?.0.total_bytes);
        }
    }

    fn header_in(&self, segment: &Segment, bytes: &[u8], at: Point) -> Result<Header, StoreError> {
        match Header::decode(bytes) {
            Ok((header, _))
                if header.physical_offset == at.physical && header.id.index == at.index =>
            {
                Ok(header)
            }
            _ => Err(segment.corrupt(at.physical, format!("entry {} is not there", at.index))),
        }
    }

    fn read_bytes_once(
        &self,
        epoch: u64,
        physical_offset: u64,
        len: usize,
    ) -> Result<Bytes, StoreError> {
        let limit = HEADER_BYTES + PAYLOAD_BYTES_MAX;
        if len > limit {
            let (size, max) = (len as u64, limit as u64);
            return Err(StoreError::TooLarge {
                what: "read",
                size,
                max,
            });
        }
        let end = physical_offset.saturating_add(len as u64);
        let (pieces, in_tail) = {
            let state = self.state();
            let (min, max) = (state.start_physical, state.end.physical);
            if physical_offset < min || end > max {
                return Err(out_of_range("physical offset", physical_offset, min, max));
            }
            let tail_start = state.tail.start_physical().unwrap_or(max);
            if physical_offset >= tail_start {
                let found = state.tail.bytes(physical_offset, len);
                return Ok(found.unwrap_or_default());
            }
            // The part in memory is taken under the same lock, so the parts fit together.
            let in_tail = (end > tail_start)
                .then(|| state.tail.bytes(tail_start, (end - tail_start) as usize))
                .flatten();
            (
                state.segments_of(physical_offset, end.min(tail_start), tail_start),
                in_tail,
            )
        };
        let mut parts = Vec::with_capacity(2);
        let mut position = physical_offset;
        for piece in &pieces {
            while position < piece.to {
                let part = self.verified_part(epoch, piece, position)?;
                position += part.len() as u64;
                parts.push(part);
            }
        }
        parts.extend(in_tail);
        Ok(match parts.len() {
            1 => parts.remove(0),
            _ => parts.concat().into(),
        })
    }

    fn position_once(&self, index: u64) -> Result<LogPosition, StoreError> {
        let (id, term_starts, range) = {
            let state = self.state();
            let Some(id) = state.id_of(index) else {
                let (first, next) = (state.first_index(), state.next_index());
                return Err(out_of_range("index", index, first, next));
            };
            let term_starts = state.term_starts_until(index);
            let known = if state.end.id == Some(id) {
                Some((state.end.physical, state.end.crc))
            } else if let Some(tail) = state.tail.get(index) {
                Some((tail.entry.end_physical(), tail.header_crc))
            } else if state
                .segments
                .first()
                .is_none_or(|first| index < first.first_index)
            {
                Some((state.start_physical, state.start_crc))
            } else {
                None
            };
            if let Some((end_physical, crc)) = known {
                return Ok(LogPosition {
                    id,
                    end_physical,
                    crc,
                    term_starts,
                });
            }
            (id, term_starts, state.disk_range(index, index + 1)?)
        };
        let (header, crc) = range.segment.header_of(self.disk(), index, range.end)?;
        Ok(LogPosition {
            id,
            end_physical: header.end_physical(),
            crc,
            term_starts,
        })
    }
}

impl LogState {
    /// Id of a stored or the last purged entry.
    fn id_of(&self, index: u64) -> Option<LogId> {
        if let Some(purged) = self.purged
            && index <= purged.index
        {
            return (index == purged.index).then_some(purged);
        }
        if index >= self.next_index() {
            return None;
        }
        let after = self
            .term_starts
            .partition_point(|start| start.index <= index);
        let start = self.term_starts.get(after.checked_sub(1)?)?;
        Some(LogId { index, ..*start })
    }

    /// First unpurged entry of every term up to `index`.
    fn term_starts_until(&self, index: u64) -> Vec<LogId> {
        let first = self.first_index();
        if first >= self.next_index() || index < first {
            return Vec::new();
        }
        let mut starts: Vec<LogId> = self.id_of(first).into_iter().collect();
        let inside = |start: &&LogId| start.index > first && start.index <= index;
        starts.extend(self.term_starts.iter().filter(inside));
        starts
    }

    /// Where entries that are not in the tail lie.
    fn disk_range(&self, from_index: u64, to_index: u64) -> Result<DiskRange, StoreError> {
        let after = self
            .segments
            .partition_point(|segment| segment.first_index <= from_index);
        let Some(at) = after.checked_sub(1) else {
            let (first, next) = (self.first_index(), self.next_index());
            return Err(out_of_range("index", from_index, first, next));
        };
        let mut end = self.tail.start_physical().unwrap_or(self.end.physical);
        let mut to_index = to_index.min(self.tail.first_index().unwrap_or(u64::MAX));
        if let Some(next) = self.segments.get(after) {
            end = end.min(next.base);
            to_index = to_index.min(next.first_index);
        }
        Ok(DiskRange {
            segment: self.segments[at].clone(),
            to_index,
            end,
        })
    }

    /// The segments of an address range.
    fn segments_of(&self, from: u64, to: u64, tail_start: u64) -> Vec<Piece> {
        let first = self
            .segments
            .partition_point(|segment| segment.base <= from)
            .saturating_sub(1);
        let mut pieces = Vec::with_capacity(1);
        for (at, segment) in self.segments.iter().enumerate().skip(first) {
            if segment.base >= to {
                break;
            }
            let next = self.segments.get(at + 1);
            let entries_end = next.map_or(tail_start, |next| next.base.min(tail_start));
            pieces.push(Piece {
                segment: segment.clone(),
                to: entries_end.min(to),
                entries_end,
            });
        }
        pieces
    }
}

fn slice_entry(
    segment: &Segment,
    buffer: &Bytes,
    buffer_at: u64,
    header: &Header,
) -> Result<StoredEntry, StoreError> {
    let from = (header.physical_offset - buffer_at) as usize;
    let payload = buffer.slice(from + HEADER_BYTES..from + header.total_bytes as usize);
    if crc32c::crc32c(&payload) != header.payload_crc {
        return Err(segment.corrupt(header.physical_offset, "the payload's CRC does not match"));
    }
    Ok(StoredEntry {
        id: header.id,
        kind: header.kind,
        count: header.count,
        payload,
        physical_offset: header.physical_offset,
    })
}

/// Takes an entry's bytes from the budget; the first entry always fits.
fn take(budget: &mut u64, entry: &StoredEntry, is_first: bool) -> bool {
    let bytes = entry.end_physical() - entry.physical_offset;
    if bytes > *budget && !is_first {
        return false;
    }
    *budget = budget.saturating_sub(bytes);
    true
}

fn out_of_range(what: &'static str, wanted: u64, min: u64, max: u64) -> StoreError {
    StoreError::OutOfRange {
        what,
        wanted,
        min,
        max,
    }
}
