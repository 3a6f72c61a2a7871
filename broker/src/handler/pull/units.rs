//! Units of the consume queue that were read from its files last. A consumer that reads old messages
//! wants the next ones a moment later: with what was read ahead it is served at once, without
//! another wait for the disk.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use raftmq_store::{
    StoreError,
    index::{IndexUnit, QueueIndex},
};

/// Units that one read of the files brings, at least: four of its pages, and about as many small
/// messages as a block of the log has.
const READ_AHEAD: usize = 512;
/// Parts of queues that are kept. With [`READ_AHEAD`] 4 MiB.
const PARTS_MAX: usize = 256;

/// A part of a queue.
#[derive(Debug)]
struct Part {
    queue: u32,
    /// Queue offset of the first unit.
    base: u64,
    units: Arc<[IndexUnit]>,
}

impl Part {
    /// Up to `units_max` units from an offset on, if this part has the first of them.
    fn get(&self, queue: u32, from: u64, units_max: usize) -> Option<&[IndexUnit]> {
        let at = from
            .checked_sub(self.base)
            .filter(|_| queue == self.queue)?;
        let rest = self.units.get(usize::try_from(at).ok()?..)?;
        (!rest.is_empty()).then(|| &rest[..rest.len().min(units_max)])
    }
}

/// What is kept. A unit never changes, and the number of a queue is never given to another.
#[derive(Debug, Default)]
pub(crate) struct KeptUnits {
    /// The part used last is at the end.
    parts: Mutex<VecDeque<Part>>,
}

impl KeptUnits {
    /// Up to `units_max` units from `from` on; `None` when the first is not in memory.
    pub(super) fn in_memory(
        &self,
        index: &QueueIndex,
        queue: u32,
        from: u64,
        units_max: usize,
    ) -> Result<Option<Vec<IndexUnit>>, StoreError> {
        if index.is_in_memory(queue, from) {
            return index.read(queue, from, units_max).map(Some);
        }
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let found = parts.iter().enumerate().rev().find_map(|(at, part)| {
            let units = part.get(queue, from, units_max)?;
            Some((at, units.to_vec()))
        });
        Ok(found.map(|(at, units)| {
            if let Some(part) = parts.remove(at) {
                parts.push_back(part);
            }
            units
        }))
    }

    /// As [`QueueIndex::read`]; keeps what was read ahead in the files.
    pub(super) fn anywhere(
        &self,
        index: &QueueIndex,
        queue: u32,
        from: u64,
        units_max: usize,
    ) -> Result<Vec<IndexUnit>, StoreError> {
        if index.is_in_memory(queue, from) {
            return index.read(queue, from, units_max);
        }
        let mut units = index.read(queue, from, units_max.max(READ_AHEAD))?;
        if units.len() > units_max {
            self.keep(queue, from, units.as_slice().into());
            units.truncate(units_max);
        }
        Ok(units)
    }

    fn keep(&self, queue: u32, base: u64, units: Arc<[IndexUnit]>) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.retain(|part| (part.queue, part.base) != (queue, base));
        if parts.len() >= PARTS_MAX {
            parts.pop_front();
        }
        parts.push_back(Part { queue, base, units });
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use raftmq_tests::sim::disk::SimDisk;

    use super::*;

    fn unit(number: u64) -> IndexUnit {
        IndexUnit {
            physical_offset: 100 * number,
            size: 100,
            tags_code: 0,
            store_timestamp_ms: number,
        }
    }

    /// An index whose first `written` units are in a file, and two more in memory.
    fn index(written: u64) -> QueueIndex {
        let index = QueueIndex::open(Arc::new(SimDisk::default()), Path::new("/i"), None).unwrap();
        for number in 0..written {
            index.append(&[(7, number, unit(number))]);
        }
        index.write_frozen(&index.freeze()).unwrap().unwrap();
        for number in written..written + 2 {
            index.append(&[(7, number, unit(number))]);
        }
        index
    }

    #[test]
    fn units_of_files_are_in_memory_after_the_first_read_and_equal() {
        let (kept, index) = (KeptUnits::default(), index(1000));
        let from_memory = |from| kept.in_memory(&index, 7, from, 32).unwrap();
        assert_eq!(from_memory(0), None);
        assert_eq!(kept.anywhere(&index, 7, 0, 32).unwrap().len(), 32);
        for from in [0, 32, 300, 480] {
            assert_eq!(from_memory(from), Some(index.read(7, from, 32).unwrap()));
        }
        assert_eq!(from_memory(500).unwrap().len(), 12, "as far as was read");
        assert_eq!(from_memory(512), None);
        assert_eq!(kept.in_memory(&index, 8, 0, 32).unwrap(), Some(vec![]));
        // What the index itself holds needs nothing kept.
        assert_eq!(from_memory(1000).unwrap().len(), 2);
        let read = kept.anywhere(&index, 7, 990, 32).unwrap();
        assert_eq!(read, index.read(7, 990, 32).unwrap());
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_goes_first() {
        let kept = KeptUnits::default();
        let index = index(10);
        for queue in 0..=u32::try_from(PARTS_MAX).unwrap() {
            kept.keep(queue, 0, [unit(0)].as_slice().into());
            kept.keep(queue, 0, [unit(1)].as_slice().into());
        }
        assert_eq!(kept.parts.lock().unwrap().len(), PARTS_MAX);
        let parts = kept.parts.lock().unwrap();
        assert!(parts.iter().all(|part| part.queue > 0));
        drop(parts);
        // 7 is a queue of this index.
        let found = kept.in_memory(&index, 7, 0, 9).unwrap();
        assert_eq!(found, Some(vec![unit(1)]));
    }
}
