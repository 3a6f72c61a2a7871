//! The index against a naive model: a map of vectors that does the same without files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::{IndexUnit, QueueIndex, QueueNo};
use crate::test_disk::MemoryDisk;

const QUEUES: QueueNo = 4;

#[derive(Debug, Clone)]
enum Step {
    Append {
        queue: QueueNo,
        units: u64,
    },
    /// Freeze, append meanwhile, write, keep the manifest.
    Checkpoint {
        meanwhile: u64,
    },
    /// The same, but the disk is full.
    FailedCheckpoint,
    Merge,
    /// Purges this share (of 100) of the addresses in use.
    Purge {
        percent: u64,
    },
    Remove {
        queue: QueueNo,
    },
    Begin {
        queue: QueueNo,
        base: u64,
    },
    Retire,
    Clear,
    /// Crash and restart from the last checkpoint.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let queue = 0..QUEUES;
    prop_oneof![
        8 => (queue.clone(), 1..400u64).prop_map(|(queue, units)| Step::Append { queue, units }),
        8 => (0..5u64).prop_map(|meanwhile| Step::Checkpoint { meanwhile }),
        1 => Just(Step::FailedCheckpoint),
        4 => Just(Step::Merge),
        2 => (0..=100u64).prop_map(|percent| Step::Purge { percent }),
        1 => queue.clone().prop_map(|queue| Step::Remove { queue }),
        1 => (queue, 0..1000u64).prop_map(|(queue, base)| Step::Begin { queue, base }),
        2 => Just(Step::Retire),
        1 => Just(Step::Clear),
        2 => Just(Step::Reopen),
    ]
}

/// Per queue the offset of the first unit and the units.
type Model = BTreeMap<QueueNo, (u64, Vec<IndexUnit>)>;

struct Pair {
    disk: MemoryDisk,
    index: QueueIndex,
    model: Model,
    stored: Option<(Vec<u8>, Model)>,
    /// Address and time of the next message: rise over the whole test, as in a log.
    physical: u64,
    time_ms: u64,
    min_physical: u64,
}

fn open(disk: &MemoryDisk, manifest: Option<&[u8]>) -> QueueIndex {
    let mut index =
        QueueIndex::open(Arc::new(disk.clone()), Path::new("/index"), manifest).unwrap();
    // Small, so that full runs and merges of fewer than eight occur.
    index.run_units_max = 3000;
    index
}

impl Pair {
    fn new() -> Self {
        let disk = MemoryDisk::default();
        let index = open(&disk, None);
        let model = Model::new();
        Self {
            disk,
            index,
            model,
            stored: None,
            physical: 64,
            time_ms: 10,
            min_physical: 0,
        }
    }

    fn append(&mut self, queue: QueueNo, units: u64) {
        let (base, stored) = self.model.entry(queue).or_default();
        let mut batch = Vec::new();
        for i in 0..units {
            let unit = IndexUnit {
                physical_offset: self.physical,
                size: 100 + i as u32,
                tags_code: -(self.physical as i64),
                store_timestamp_ms: self.time_ms,
            };
            self.physical += 100 + i;
            self.time_ms += i % 3;
            batch.push((queue, *base + stored.len() as u64, unit));
            stored.push(unit);
        }
        self.index.append(&batch);
    }

    fn checkpoint(&mut self, meanwhile: u64) {
        let model = self.model.clone();
        let frozen = self.index.freeze();
        if meanwhile > 0 {
            self.append(meanwhile as QueueNo % QUEUES, meanwhile);
            self.check(1);
        }
        if meanwhile == 3 {
            self.index.remove_queue(0);
            self.model.remove(&0);
        }
        let manifest = self.index.write_frozen(&frozen).unwrap();
        self.stored = Some((manifest.unwrap(), model));
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Append { queue, units } => self.append(queue, units),
            Step::Checkpoint { meanwhile } => self.checkpoint(meanwhile),
            Step::FailedCheckpoint => {
                self.disk.fail_writes(true);
                let frozen = self.index.freeze();
                let fails = frozen.units() > 0;
                assert_eq!(self.index.write_frozen(&frozen).is_err(), fails);
                self.disk.fail_writes(false);
            }
            Step::Merge => while self.index.merge_step().unwrap() {},
            Step::Purge { percent } => {
                let purged = (self.physical - self.min_physical) * percent / 100;
                self.min_physical += purged;
                self.index.set_min_physical(self.min_physical);
            }
            Step::Remove { queue } => {
                self.model.remove(&queue);
                self.index.remove_queue(queue);
            }
            Step::Begin { queue, base } => {
                self.model.insert(queue, (base, Vec::new()));
                self.index.begin_queue(queue, base);
            }
            Step::Retire => {
                let live: Vec<_> = self.stored.iter().map(|(manifest, _)| manifest).collect();
                self.index.retire(&live).unwrap();
            }
            Step::Clear => {
                self.model.clear();
                self.index.clear();
                self.index.set_min_physical(self.min_physical);
            }
            Step::Reopen => {
                self.disk.crash();
                let (manifest, model) = self.stored.clone().unzip();
                self.index = open(&self.disk, manifest.as_deref());
                self.index.set_min_physical(self.min_physical);
                self.model = model.unwrap_or_default();
            }
        }
    }

    /// Compares everything that can be asked; `stride` is the distance between the offsets asked.
    fn check(&self, stride: usize) {
        for queue in 0..QUEUES {
            let (base, units) = self.model.get(&queue).cloned().unwrap_or_default();
            let max = base + units.len() as u64;
            let purged = units.partition_point(|unit| unit.physical_offset < self.min_physical);
            let min = base + purged as u64;
            assert_eq!(
                self.index.bounds(queue),
                (min, max),
                "bounds of queue {queue}"
            );
            let there = &units[purged..];
            assert_eq!(self.index.read(queue, min, usize::MAX).unwrap(), there);
            for outside in [max, max + 1, u64::MAX] {
                assert!(self.index.read(queue, outside, 10).unwrap().is_empty());
            }
            for i in (0..purged).step_by(stride * 37) {
                assert!(
                    self.index
                        .read(queue, base + i as u64, 10)
                        .unwrap()
                        .is_empty()
                );
            }
            for i in (0..there.len()).step_by(stride * 37) {
                let read = self.index.read(queue, min + i as u64, 33).unwrap();
                assert_eq!(read, there[i..there.len().min(i + 33)]);
                let time = there[i].store_timestamp_ms;
                for time in [time - 1, time, time + 1] {
                    let first = there.partition_point(|unit| unit.store_timestamp_ms < time);
                    let found = self.index.offset_by_time(queue, time).unwrap();
                    assert_eq!(found, min + first as u64, "queue {queue} at {time}");
                }
            }
            assert_eq!(self.index.offset_by_time(queue, 0).unwrap(), min);
            assert_eq!(self.index.offset_by_time(queue, u64::MAX).unwrap(), max);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn the_index_does_what_the_model_does(steps in prop::collection::vec(step(), 1..60)) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.take(step);
            pair.check(5);
        }
        pair.check(1);
    }
}
