//! Owns the units that are not in a run file yet: per queue a plain vector.

use std::collections::BTreeMap;
use std::collections::btree_map::{Entry, Iter};

use super::{IndexUnit, QueueNo};

/// What a slice costs besides its units: map entry and allocator overhead, in bytes.
const SLICE_BYTES: usize = size_of::<(QueueNo, MemorySlice)>() + 24;

/// The newest units of one queue, contiguous from `base`, never empty.
#[derive(Debug, Clone)]
pub(crate) struct MemorySlice {
    pub(crate) base: u64,
    pub(crate) units: Vec<IndexUnit>,
}

impl MemorySlice {
    /// One past the last queue offset.
    pub(crate) fn end(&self) -> u64 {
        self.base + self.units.len() as u64
    }

    /// The units of the offsets `from..to`, both inside the slice.
    pub(crate) fn range(&self, from: u64, to: u64) -> &[IndexUnit] {
        &self.units[(from - self.base) as usize..(to - self.base) as usize]
    }
}

/// Slices of many queues, with running counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryPart {
    slices: BTreeMap<QueueNo, MemorySlice>,
    units: usize,
    bytes: usize,
}

impl MemoryPart {
    pub(crate) fn push(&mut self, queue: QueueNo, queue_offset: u64, unit: IndexUnit) {
        let slice = match self.slices.entry(queue) {
            Entry::Occupied(slice) => slice.into_mut(),
            Entry::Vacant(place) => {
                self.bytes += SLICE_BYTES;
                place.insert(MemorySlice {
                    base: queue_offset,
                    units: Vec::new(),
                })
            }
        };
        debug_assert_eq!(slice.end(), queue_offset);
        let capacity = slice.units.capacity();
        slice.units.push(unit);
        self.bytes += (slice.units.capacity() - capacity) * size_of::<IndexUnit>();
        self.units += 1;
    }

    pub(crate) fn slice(&self, queue: QueueNo) -> Option<&MemorySlice> {
        self.slices.get(&queue)
    }

    pub(crate) fn iter(&self) -> Iter<'_, QueueNo, MemorySlice> {
        self.slices.iter()
    }

    pub(crate) fn remove(&mut self, queue: QueueNo) {
        if let Some(slice) = self.slices.remove(&queue) {
            self.units -= slice.units.len();
            self.bytes -= SLICE_BYTES + slice.units.capacity() * size_of::<IndexUnit>();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.units == 0
    }

    pub(crate) fn units(&self) -> usize {
        self.units
    }

    /// Memory held, in bytes, counted by capacity.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A part that takes no more units and waits to be written as the run of this id.
#[derive(Debug)]
pub(crate) struct FrozenPart {
    pub(crate) run_id: u64,
    pub(crate) memory: MemoryPart,
}
