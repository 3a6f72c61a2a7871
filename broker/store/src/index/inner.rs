//! Owns what the index keeps in memory under its lock: the queue table, the memory parts and the
//! list of runs. Nothing here touches the disk, so the lock is never held for long.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::manifest::{Manifest, QueueRow};
use super::memory::{FrozenPart, MemoryPart};
use super::run::Run;
use super::view::View;
use super::{IndexUnit, QueueNo};

/// Map overhead of a queue table entry, in bytes (a B-tree node is two thirds full on average).
const ENTRY_OVERHEAD_BYTES: usize = 24;

/// What is known of one queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueEntry {
    /// Queue offset of the next unit.
    pub(crate) next: u64,
    /// Runs and frozen parts with a smaller id hold nothing of this queue.
    pub(crate) born: u64,
    /// First unit at or above the minimum physical offset `min_for`; a lower bound for later ones.
    pub(crate) min: u64,
    /// The minimum physical offset that `min` was found for; none: not looked for yet.
    pub(crate) min_for: Option<u64>,
}

/// The state of the index.
#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) queues: BTreeMap<QueueNo, QueueEntry>,
    /// Units since the last freeze.
    pub(crate) active: MemoryPart,
    /// The part being written; newer than every run, older than `active`.
    pub(crate) frozen: Option<Arc<FrozenPart>>,
    /// Oldest first: the units of a queue rise from run to run.
    pub(crate) runs: Vec<Arc<Run>>,
    /// Runs no longer read, whose files a stored checkpoint may still name.
    pub(crate) dead: BTreeSet<u64>,
    pub(crate) next_run_id: u64,
    /// Units below it are purged; only rises, until `clear`.
    pub(crate) min_physical: u64,
    /// Number of the last freeze.
    freezes: u64,
    /// The newest freeze whose units are all in runs; earlier ones say nothing true any more. A
    /// clear counts as one, so that what was frozen before it is never taken for the index.
    written_freeze: u64,
}

impl Inner {
    pub(crate) fn from_manifest(manifest: Manifest, runs: Vec<Arc<Run>>) -> Self {
        let mut queues = BTreeMap::new();
        for row in &manifest.queues {
            let entry = QueueEntry {
                next: row.next,
                born: row.born,
                min: 0,
                min_for: None,
            };
            queues.insert(row.queue, entry);
        }
        Self {
            queues,
            runs,
            next_run_id: manifest.next_run_id,
            min_physical: manifest.min_physical,
            ..Self::default()
        }
    }

    /// The live runs with the queues of a freeze that is current.
    pub(crate) fn manifest(&self, queues: Vec<QueueRow>) -> Manifest {
        Manifest {
            next_run_id: self.next_run_id,
            min_physical: self.min_physical,
            runs: self.runs.iter().map(|run| run.id).collect(),
            queues,
        }
    }

    pub(crate) fn begin_queue(&mut self, queue: QueueNo, base: u64) {
        self.active.remove(queue);
        // Whatever older runs hold under this number belongs to a removed queue.
        let born = self.next_run_id;
        let min_for = Some(self.min_physical);
        self.queues.insert(
            queue,
            QueueEntry {
                next: base,
                born,
                min: base,
                min_for,
            },
        );
    }

    pub(crate) fn append(&mut self, queue: QueueNo, queue_offset: u64, unit: IndexUnit) {
        if !self.queues.contains_key(&queue) {
            self.begin_queue(queue, 0);
        }
        let entry = self
            .queues
            .get_mut(&queue)
            .expect("the queue was just made sure of");
        assert!(
            queue_offset == entry.next,
            "Q1: queue offsets are dense: queue {queue} is at {}, not at {queue_offset}",
            entry.next
        );
        entry.next += 1;
        self.active.push(queue, queue_offset, unit);
    }

    pub(crate) fn remove_queue(&mut self, queue: QueueNo) {
        self.queues.remove(&queue);
        self.active.remove(queue);
    }

    /// Raises the minimum and lets go of the runs that are wholly below it.
    pub(crate) fn set_min_physical(&mut self, min_physical: u64) {
        if min_physical <= self.min_physical {
            return;
        }
        self.min_physical = min_physical;
        // Only from the old end, so that a queue never gets a gap above the minimum.
        let below = self
            .runs
            .iter()
            .take_while(|run| run.max_physical < min_physical)
            .count();
        self.dead.extend(self.runs.drain(..below).map(|run| run.id));
    }

    /// Empties the index. Run ids go on rising, because files and manifests of old ones remain.
    pub(crate) fn clear(&mut self) {
        let mut dead = std::mem::take(&mut self.dead);
        dead.extend(self.runs.iter().map(|run| run.id));
        *self = Self {
            dead,
            next_run_id: self.next_run_id,
            freezes: self.freezes + 1,
            written_freeze: self.freezes + 1,
            ..Self::default()
        };
    }

    pub(crate) fn take_run_id(&mut self) -> u64 {
        let run_id = self.next_run_id;
        self.next_run_id += 1;
        run_id
    }

    /// Where each queue stands now.
    pub(crate) fn table(&self) -> Vec<QueueRow> {
        let rows = self.queues.iter();
        let rows = rows.map(|(&queue, entry)| QueueRow {
            queue,
            next: entry.next,
            born: entry.born,
        });
        rows.collect()
    }

    /// The number of the freeze, and what it took out of memory.
    pub(crate) fn freeze(&mut self) -> (u64, Option<Arc<FrozenPart>>) {
        self.freezes += 1;
        let active = std::mem::take(&mut self.active);
        let memory = match self.frozen.take() {
            // Its write is still to come, or failed (a full disk, say): this one takes it up.
            Some(unwritten) => self.join(&unwritten, &active),
            None => active,
        };
        if memory.is_empty() {
            return (self.freezes, None);
        }
        let part = Arc::new(FrozenPart {
            run_id: self.take_run_id(),
            memory,
        });
        self.frozen = Some(Arc::clone(&part));
        (self.freezes, Some(part))
    }

    fn join(&self, older: &FrozenPart, newer: &MemoryPart) -> MemoryPart {
        let mut joined = MemoryPart::default();
        let alive = |queue: &QueueNo| {
            self.queues
                .get(queue)
                .is_some_and(|entry| older.run_id >= entry.born)
        };
        let older = older.memory.iter().filter(|(queue, _)| alive(queue));
        for (&queue, slice) in older.chain(newer.iter()) {
            for (queue_offset, unit) in (slice.base..).zip(&slice.units) {
                joined.push(queue, queue_offset, *unit);
            }
        }
        joined
    }

    /// Puts the run in the place of the part it was written from. False: the index was cleared, or
    /// frozen anew, in the meantime, and the run must not be used.
    pub(crate) fn install_frozen(
        &mut self,
        number: u64,
        part: &Arc<FrozenPart>,
        run: Arc<Run>,
    ) -> bool {
        if !self.is_pending(part) {
            return false;
        }
        self.frozen = None;
        self.runs.push(run);
        self.written_freeze = number;
        true
    }

    /// Whether the runs hold exactly what the index held at the freeze: its units were written,
    /// or it had none, and nothing was written or cleared since.
    pub(crate) fn is_written(&self, number: u64, had_units: bool) -> bool {
        if had_units {
            self.written_freeze == number
        } else {
            self.written_freeze <= number
        }
    }

    pub(crate) fn is_pending(&self, part: &Arc<FrozenPart>) -> bool {
        self.frozen
            .as_ref()
            .is_some_and(|frozen| Arc::ptr_eq(frozen, part))
    }

    /// Puts a merged run (none: nothing was left) in the place of its inputs. False: an input was
    /// purged or cleared in the meantime, and the merged run must not be used.
    pub(crate) fn install_merged(&mut self, inputs: &[Arc<Run>], merged: Option<Run>) -> bool {
        let Some(range) = self.position(inputs) else {
            return false;
        };
        self.dead.extend(inputs.iter().map(|run| run.id));
        self.runs.splice(range, merged.map(Arc::new));
        true
    }

    fn position(&self, inputs: &[Arc<Run>]) -> Option<Range<usize>> {
        let first = inputs.first()?;
        let start = self.runs.iter().position(|run| Arc::ptr_eq(run, first))?;
        let range = start..start + inputs.len();
        let present = self.runs.get(range.clone())?;
        present
            .iter()
            .zip(inputs)
            .all(|(one, other)| Arc::ptr_eq(one, other))
            .then_some(range)
    }

    /// The frozen and written parts of a queue that hold `from` and what follows it.
    pub(crate) fn view(&self, queue: QueueNo, entry: &QueueEntry, from: u64) -> View {
        let mut view = View::new(queue);
        let lacks_older = |view: &View| view.start().is_none_or(|start| start > from);
        if let Some(part) = self
            .frozen
            .as_ref()
            .filter(|part| part.run_id >= entry.born)
            && let Some(slice) = part.memory.slice(queue)
        {
            view.add_frozen(part, slice.base, slice.end());
        }
        for run in self.runs.iter().rev() {
            if !lacks_older(&view) {
                break;
            }
            if run.id >= entry.born
                && let Some(slice) = run.slice(queue)
            {
                view.add_run(run, slice);
            }
        }
        view
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let entry_bytes = size_of::<(QueueNo, QueueEntry)>() + ENTRY_OVERHEAD_BYTES;
        self.queues.len() * entry_bytes
            + self.active.bytes()
            + self.frozen.as_ref().map_or(0, |part| part.memory.bytes())
            + self
                .runs
                .iter()
                .map(|run| run.memory_bytes())
                .sum::<usize>()
    }

    pub(crate) fn total_units(&self) -> u64 {
        let frozen = self.frozen.as_ref().map_or(0, |part| part.memory.units());
        let written: u64 = self.runs.iter().map(|run| u64::from(run.units)).sum();
        (self.active.units() + frozen) as u64 + written
    }
}
