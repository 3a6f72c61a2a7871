//! Owns merging: which runs become one ([`pick`]) and how their units are streamed ([`merge`]).

use std::ops::Range;
use std::sync::Arc;

use super::format::UNITS_PER_BLOCK;
use super::run::{BLOCKS_PER_READ, Run, RunWriter, Slice};
use super::{IndexUnit, QueueNo};
use crate::error::StoreError;

/// Neighbours of one level that become one run of the next.
pub(crate) const RUNS_PER_MERGE: usize = 8;
/// Units in a merged run (1.75 GiB): bounds the work of one merge, and the space that purged units
/// hold until their whole run falls below the minimum physical offset.
pub(crate) const RUN_UNITS_MAX: u64 = 64 * 1024 * 1024;

/// The oldest neighbours worth merging, as positions in `runs` given as (level, units), oldest
/// first. Only neighbours are merged, so the units of a queue stay in order from run to run.
pub(crate) fn pick(runs: &[(u32, u64)], units_max: u64) -> Option<Range<usize>> {
    let full = |units: u64| units > units_max / 2;
    let mut start = 0;
    while start < runs.len() {
        let (level, units) = runs[start];
        let alike = |run: &&(u32, u64)| run.0 == level && !full(run.1);
        let stretch = runs[start..].iter().take_while(alike).count();
        if full(units) || stretch < RUNS_PER_MERGE {
            start += stretch.max(1);
            continue;
        }
        let mut total = 0;
        let fits = runs[start..start + RUNS_PER_MERGE]
            .iter()
            .take_while(|run| {
                total += run.1;
                total <= units_max
            });
        // Two always fit, because neither is full.
        return Some(start..start + fits.count());
    }
    None
}

/// Streams the units of `inputs` (oldest first) into `writer`, without those below `min_physical`
/// and without queues that are gone. `born` tells from which run id on a queue's slices count.
pub(crate) fn merge(
    inputs: &[Arc<Run>],
    min_physical: u64,
    born: impl Fn(QueueNo) -> Option<u64>,
    writer: &mut RunWriter,
) -> Result<(), StoreError> {
    let mut cursors: Vec<Cursor<'_>> = inputs.iter().map(|run| Cursor::new(run)).collect();
    loop {
        let heads = cursors
            .iter()
            .filter_map(|cursor| cursor.head().map(|slice| slice.queue));
        let Some(queue) = heads.min() else {
            return Ok(());
        };
        let born = born(queue);
        let mut slices: Vec<(usize, Slice)> = Vec::with_capacity(cursors.len());
        for (i, cursor) in cursors.iter_mut().enumerate() {
            let Some(slice) = cursor.take_slice(queue) else {
                continue;
            };
            if born.is_some_and(|born| cursor.run.id >= born) {
                // What comes before a gap was purged already by an earlier merge's measure.
                if slices
                    .last()
                    .is_some_and(|(_, before)| before.end() != slice.base)
                {
                    slices.clear();
                }
                slices.push((i, slice));
            }
        }
        let mut purging = true;
        for (i, slice) in slices {
            for position in 0..slice.count {
                let unit = cursors[i].unit(slice.first_unit + position)?;
                purging = purging && unit.physical_offset < min_physical;
                if !purging {
                    writer.push(queue, slice.base + u64::from(position), &unit)?;
                }
            }
        }
    }
}

/// Walks the slices and the units of one run, from front to back, with large reads.
#[derive(Debug)]
struct Cursor<'run> {
    run: &'run Run,
    row: usize,
    window_first: u32,
    window: Vec<IndexUnit>,
}

impl<'run> Cursor<'run> {
    fn new(run: &'run Run) -> Self {
        Self {
            run,
            row: 0,
            window_first: 0,
            window: Vec::new(),
        }
    }

    fn head(&self) -> Option<Slice> {
        self.run.slice_at(self.row)
    }

    fn take_slice(&mut self, queue: QueueNo) -> Option<Slice> {
        let slice = self.head().filter(|slice| slice.queue == queue)?;
        self.row += 1;
        Some(slice)
    }

    fn unit(&mut self, position: u32) -> Result<IndexUnit, StoreError> {
        if let Some(slot) = position.checked_sub(self.window_first)
            && let Some(unit) = self.window.get(slot as usize)
        {
            return Ok(*unit);
        }
        self.window_first = position - position % UNITS_PER_BLOCK;
        self.window.clear();
        let count = (self.run.units - self.window_first).min(BLOCKS_PER_READ * UNITS_PER_BLOCK);
        self.run
            .read_units(self.window_first, count, &mut self.window)?;
        Ok(self.window[(position - self.window_first) as usize])
    }
}
