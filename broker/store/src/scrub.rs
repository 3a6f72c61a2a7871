//! Owns reading sealed segments again and again, so that damage is found while peers can still mend
//! it. One step reads about a megabyte; whoever calls decides how often.

use std::sync::Arc;

use crate::commit_log::CommitLog;
use crate::error::StoreError;
use crate::segment::{Cursor, ScanStop, Segment, scan_until};

/// Bytes of one step; an entry is finished, so it may be a little more. Small, so that a step holds
/// little memory and leaves the disk to others soon.
const STEP_BYTES: u64 = 1024 * 1024;
/// Bytes read at once.
const READ_BYTES: usize = 256 * 1024;

/// How far a pass has come.
#[derive(Debug, Default)]
pub struct Scrub {
    /// Sealed segments from this address on are left.
    from: u64,
    /// The segment under way.
    at: Option<(Arc<Segment>, Cursor)>,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scrubbed {
    /// This many bytes are whole.
    Whole(u64),
    /// The entry at this address is damaged. It is noted as by a read, and the rest of its segment
    /// is left to whoever mends it; the pass goes on with the next one.
    Damaged(u64),
    /// The pass is over; the next step begins another.
    Over,
}

impl Scrub {
    /// Leaves out the rest of the segment under way, which could not be read.
    pub fn skip_segment(&mut self) {
        self.from += 1;
        self.at = None;
    }
}

impl CommitLog {
    /// Verifies the next entries of sealed segments.
    pub fn scrub_step(&self, scrub: &mut Scrub) -> Result<Scrubbed, StoreError> {
        let sealed = {
            let state = self.state();
            let first = state.segments.partition_point(|one| one.base < scrub.from);
            let mut pairs = state.segments[first.min(state.segments.len())..].windows(2);
            pairs.next().map(|pair| (pair[0].clone(), pair[1].base))
        };
        let Some((segment, end)) = sealed else {
            *scrub = Scrub::default();
            return Ok(Scrubbed::Over);
        };
        scrub.from = segment.base;
        let mut cursor = match scrub.at.take() {
            Some((at, cursor)) if Arc::ptr_eq(&at, &segment) => cursor,
            _ => Cursor {
                physical: segment.base,
                crc: segment.previous_crc,
                next_index: Some(segment.first_index),
                last: None,
            },
        };
        if segment.written() < end {
            // Sealed in memory, and still being written.
            *scrub = Scrub::default();
            return Ok(Scrubbed::Over);
        }
        let (from, epoch) = (cursor.physical, self.cut_epoch());
        let damaged = self.verify_some(&segment, &mut cursor, end)?;
        if self.cut_epoch() != epoch {
            return Ok(Scrubbed::Whole(0));
        }
        if let Some(reason) = damaged {
            scrub.from = segment.base + 1;
            self.note_damage(&segment.corrupt(cursor.physical, reason));
            return Ok(Scrubbed::Damaged(cursor.physical));
        }
        let bytes = cursor.physical - from;
        if cursor.physical >= end {
            scrub.from = segment.base + 1;
        } else {
            scrub.at = Some((segment, cursor));
        }
        Ok(Scrubbed::Whole(bytes))
    }

    /// Verifies entries for one step. Returns what is wrong with the one at the cursor.
    fn verify_some(
        &self,
        segment: &Segment,
        cursor: &mut Cursor,
        end: u64,
    ) -> Result<Option<&'static str>, StoreError> {
        let mut reader = segment.reader(self.disk(), end, READ_BYTES)?;
        let until = cursor.physical.saturating_add(STEP_BYTES).min(end);
        let stop = scan_until(&mut reader, cursor, end, until, |_| ())?;
        Ok(match stop {
            ScanStop::End => None,
            ScanStop::Zeros => Some("entries are missing"),
            ScanStop::Damaged(reason) | ScanStop::Stale(reason) => Some(reason),
        })
    }
}
