//! Owns reading one queue outside the lock: a [`View`] holds the runs and the frozen memory that
//! make up a range of the queue, so that they stay readable whatever is installed meanwhile.

use std::sync::Arc;

use super::memory::FrozenPart;
use super::run::{Run, Slice};
use super::{IndexUnit, QueueNo};
use crate::error::StoreError;

/// Where the units of a piece are.
#[derive(Debug)]
enum Source {
    Run { run: Arc<Run>, first_unit: u32 },
    Frozen(Arc<FrozenPart>),
}

/// A contiguous part `base..end` of the queue.
#[derive(Debug)]
struct Piece {
    base: u64,
    end: u64,
    source: Source,
}

/// The written or frozen part of one queue. Gaps between pieces can only be purged units.
#[derive(Debug)]
pub(crate) struct View {
    queue: QueueNo,
    /// Oldest first.
    pieces: Vec<Piece>,
}

impl View {
    pub(crate) fn new(queue: QueueNo) -> Self {
        Self {
            queue,
            pieces: Vec::new(),
        }
    }

    /// Puts a slice of a run before the pieces that are there.
    pub(crate) fn add_run(&mut self, run: &Arc<Run>, slice: Slice) {
        let source = Source::Run {
            run: Arc::clone(run),
            first_unit: slice.first_unit,
        };
        self.pieces.insert(
            0,
            Piece {
                base: slice.base,
                end: slice.end(),
                source,
            },
        );
    }

    /// Adds the frozen slice `base..end`; called first, because it is the newest.
    pub(crate) fn add_frozen(&mut self, part: &Arc<FrozenPart>, base: u64, end: u64) {
        self.pieces.insert(
            0,
            Piece {
                base,
                end,
                source: Source::Frozen(Arc::clone(part)),
            },
        );
    }

    /// First queue offset that is there.
    pub(crate) fn start(&self) -> Option<u64> {
        self.pieces.first().map(|piece| piece.base)
    }

    /// The units of `from..to`, dense from `from` and ending early at a gap.
    pub(crate) fn read(&self, from: u64, to: u64) -> Result<Vec<IndexUnit>, StoreError> {
        let mut units = Vec::new();
        let mut next = from;
        for piece in &self.pieces {
            if piece.end <= next {
                continue;
            }
            if piece.base > next || next >= to {
                break;
            }
            let end = piece.end.min(to);
            match &piece.source {
                Source::Run { run, first_unit } => {
                    // Both differences are within the slice, whose count is a u32.
                    let first = first_unit + (next - piece.base) as u32;
                    run.read_units(first, (end - next) as u32, &mut units)?;
                }
                Source::Frozen(part) => {
                    if let Some(slice) = part.memory.slice(self.queue) {
                        units.extend_from_slice(slice.range(next, end));
                    }
                }
            }
            next = end;
        }
        Ok(units)
    }

    /// First offset of `from..to` for which `before` no longer holds, `to` if it holds for all.
    /// A purged unit (a gap) counts as before; `before` decides about one that cannot be read.
    pub(crate) fn partition(
        &self,
        from: u64,
        to: u64,
        before: impl Fn(Result<IndexUnit, StoreError>) -> Result<bool, StoreError>,
    ) -> Result<u64, StoreError> {
        let (mut low, mut high) = (from, to);
        while low < high {
            let middle = low + (high - low) / 2;
            let is_before = match self.unit(middle) {
                Ok(None) => true,
                Ok(Some(unit)) => before(Ok(unit))?,
                Err(error) => before(Err(error))?,
            };
            if is_before {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    fn unit(&self, queue_offset: u64) -> Result<Option<IndexUnit>, StoreError> {
        let after = self
            .pieces
            .partition_point(|piece| piece.end <= queue_offset);
        let Some(piece) = self
            .pieces
            .get(after)
            .filter(|piece| piece.base <= queue_offset)
        else {
            return Ok(None);
        };
        match &piece.source {
            Source::Run { run, first_unit } => run
                .unit(first_unit + (queue_offset - piece.base) as u32)
                .map(Some),
            Source::Frozen(part) => Ok(part
                .memory
                .slice(self.queue)
                .and_then(|slice| slice.range(queue_offset, queue_offset + 1).first().copied())),
        }
    }
}
