//! Owns the consume queue: (queue, queue offset) -> (physical offset, size, tags code, store
//! timestamp) of every message. It is derived from the log and never on the acknowledge path.
//!
//! Units of newly applied messages live in memory. At a checkpoint the memory part is frozen and
//! written as one immutable run file, sorted by queue, so 100k queues need no file each. Eight
//! neighbouring runs of a level are merged into one of the next, in the background. A checkpoint
//! stores the manifest, which names the runs that belong to it; a restart opens those and applies
//! the log from the checkpoint on.
//!
//! A damaged run is reported as [`StoreError::Corrupt`] by the open (header, directory) or by the
//! read that meets it (units). Nothing is lost then: the index is rebuilt from the log.
//!
//! Invariants. Q1: the units of a queue are dense. Q2: physical offsets of a queue never fall from
//! unit to unit, so purged units are at its beginning. Q3: a run file that a checkpoint names from
//! which a restart may begin is not deleted. Q4: the index has one lock, never held during disk access.

mod format;
mod inner;
mod manifest;
mod memory;
mod merge;
mod run;
mod view;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use self::inner::Inner;
use self::manifest::{Manifest, QueueRow};
use self::memory::FrozenPart;
use self::run::{Run, RunWriter, run_id_of, run_name};
use crate::disk::Disk;
use crate::error::StoreError;

/// Number of a queue within this node's index: given by the state machine, one per (topic,
/// queue_id). A number may be used again after [`QueueIndex::remove_queue`].
pub type QueueNo = u32;

/// Where one message of a queue is, and what a pull needs to filter it without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexUnit {
    /// Address of the message's first byte in the log.
    pub physical_offset: u64,
    /// Size of the stored message in bytes.
    pub size: u32,
    /// Hash code of the message's tag as RocketMQ computes it; 0 without a tag.
    pub tags_code: i64,
    /// When the leader stored the message. Unit: ms since 1970.
    pub store_timestamp_ms: u64,
}

/// The index as of one freeze: what a checkpoint of that point says about it.
#[derive(Debug)]
pub struct FrozenIndex {
    /// Counts freezes and clears.
    number: u64,
    /// Where each queue stood.
    table: Vec<QueueRow>,
    /// Units that no run holds yet, waiting to be written; readable in the meantime.
    part: Option<Arc<FrozenPart>>,
}

impl FrozenIndex {
    /// Number of units that will be written.
    pub fn units(&self) -> usize {
        self.part.as_ref().map_or(0, |part| part.memory.units())
    }
}

/// The consume queues of a node. Shared by `Arc`; every method may be called from any thread, but
/// the methods that change queues belong to the apply thread, and the ones that write files to
/// background threads.
#[derive(Debug)]
pub struct QueueIndex {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    inner: RwLock<Inner>,
    /// Held during a merge: two at once would take the same inputs.
    merging: Mutex<()>,
    run_units_max: u64,
}

impl QueueIndex {
    /// Opens the index as of the checkpoint that holds `manifest`; empty without one. Run files
    /// that the manifest does not name are deleted, after all named ones were opened successfully.
    /// [`StoreError::Corrupt`] or a missing file means: open without a manifest and rebuild.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        manifest: Option<&[u8]>,
    ) -> Result<Self, StoreError> {
        disk.create_dir_all(dir)
            .map_err(|error| StoreError::io("create", dir, error))?;
        let manifest = manifest
            .map(Manifest::decode)
            .transpose()?
            .unwrap_or_default();
        let mut runs = Vec::new();
        for &run_id in &manifest.runs {
            runs.push(Arc::new(Run::open(&*disk, dir, run_id)?));
        }
        for name in disk
            .list(dir)
            .map_err(|error| StoreError::io("list", dir, error))?
        {
            if run_id_of(&name).is_some_and(|run_id| !manifest.runs.contains(&run_id)) {
                remove_file(&*disk, &dir.join(name))?;
            }
        }
        Ok(Self {
            disk,
            dir: dir.to_path_buf(),
            inner: RwLock::new(Inner::from_manifest(manifest, runs)),
            merging: Mutex::new(()),
            run_units_max: merge::RUN_UNITS_MAX,
        })
    }

    /// Adds the units of newly applied messages. A queue not seen before begins at offset 0.
    /// Invariant Q1: each offset is the `max` of its queue, else the process ends.
    pub fn append(&self, batch: &[(QueueNo, u64, IndexUnit)]) {
        let mut inner = self.write_lock();
        for &(queue, queue_offset, unit) in batch {
            inner.append(queue, queue_offset, unit);
        }
    }

    /// Makes a queue without units whose first unit will have this offset (after the install of a
    /// snapshot, whose messages are not all in the log any more). Replaces a queue of this number.
    pub fn begin_queue(&self, queue: QueueNo, base_offset: u64) {
        self.write_lock().begin_queue(queue, base_offset);
    }

    /// Up to `units_max` units, dense from `from_offset`; empty outside the bounds of the queue.
    pub fn read(
        &self,
        queue: QueueNo,
        from_offset: u64,
        units_max: usize,
    ) -> Result<Vec<IndexUnit>, StoreError> {
        let (view, tail, written_end, min_physical) = {
            let inner = self.read_lock();
            let Some(entry) = inner.queues.get(&queue) else {
                return Ok(Vec::new());
            };
            let to = entry.next.min(from_offset.saturating_add(units_max as u64));
            if from_offset >= to {
                return Ok(Vec::new());
            }
            let active = inner.active.slice(queue);
            let written_end = active.map_or(entry.next, |slice| slice.base).min(to);
            let tail_from = from_offset.max(written_end);
            let tail = active.filter(|_| tail_from < to);
            let tail = tail.map_or_else(Vec::new, |slice| slice.range(tail_from, to).to_vec());
            let view = (from_offset < written_end).then(|| inner.view(queue, entry, from_offset));
            (view, tail, written_end, inner.min_physical)
        };
        let units = match view {
            None => tail,
            Some(view) => {
                let mut units = view.read(from_offset, written_end)?;
                if units.len() as u64 == written_end - from_offset {
                    units.extend_from_slice(&tail);
                }
                units
            }
        };
        // Q2: when the first one is not purged, none is.
        let purged = units
            .first()
            .is_some_and(|unit| unit.physical_offset < min_physical);
        Ok(if purged { Vec::new() } else { units })
    }

    /// Whether [`bounds`](Self::bounds) of the queue, and its units from `from_offset` on, are in
    /// memory now: then reading them waits for no disk.
    pub fn is_in_memory(&self, queue: QueueNo, from_offset: u64) -> bool {
        let inner = self.read_lock();
        let Some(entry) = inner.queues.get(&queue) else {
            return true;
        };
        let active = inner.active.slice(queue);
        let active_from = active.map_or(entry.next, |slice| slice.base);
        let frozen = inner.frozen.as_ref();
        let frozen = frozen.filter(|part| part.run_id >= entry.born);
        let frozen = frozen.and_then(|part| part.memory.slice(queue));
        let memory_from = frozen.map_or(active_from, |slice| slice.base);
        entry.min_for == Some(inner.min_physical) && memory_from <= from_offset.max(entry.min)
    }

    /// (min, max) of a queue: the first unit that is not purged and the offset of the next unit;
    /// (0, 0) for an unknown queue. The first call after a purge may read a few blocks. A damaged
    /// unit counts as there: the read that follows reports it.
    pub fn bounds(&self, queue: QueueNo) -> (u64, u64) {
        let (entry, min_physical) = {
            let inner = self.read_lock();
            let Some(entry) = inner.queues.get(&queue) else {
                return (0, 0);
            };
            (*entry, inner.min_physical)
        };
        if entry.min_for == Some(min_physical) {
            return (entry.min, entry.next);
        }
        let is_purged = |unit: Result<IndexUnit, StoreError>| {
            Ok(unit.is_ok_and(|unit| unit.physical_offset < min_physical))
        };
        let min = self
            .partition(queue, entry.min, is_purged)
            .unwrap_or(entry.min);
        let mut inner = self.write_lock();
        let unchanged = inner.min_physical == min_physical;
        if let Some(now) = inner.queues.get_mut(&queue)
            && unchanged
            && now.born == entry.born
        {
            now.min = min;
            now.min_for = Some(min_physical);
        }
        (min, entry.next.max(min))
    }

    /// First offset whose store timestamp is at or after `timestamp_ms`; max if all are older, min
    /// if all are newer. Source: RocketMQ SEARCH_OFFSET_BY_TIMESTAMP (29), lower boundary. Store
    /// timestamps are taken to rise along a queue.
    pub fn offset_by_time(&self, queue: QueueNo, timestamp_ms: u64) -> Result<u64, StoreError> {
        let (min, _) = self.bounds(queue);
        self.partition(queue, min, |unit| {
            Ok(unit?.store_timestamp_ms < timestamp_ms)
        })
    }

    /// Forgets a queue. Its units in run files go with the next merge.
    pub fn remove_queue(&self, queue: QueueNo) {
        self.write_lock().remove_queue(queue);
    }

    /// Tells where the log now begins: units below are purged. Lower values than before are
    /// ignored.
    pub fn set_min_physical(&self, min_physical: u64) {
        self.write_lock().set_min_physical(min_physical);
    }

    /// Forgets all queues and units, and the minimum physical offset (before the install of a
    /// snapshot).
    pub fn clear(&self) {
        self.write_lock().clear();
    }

    /// Takes the units since the last freeze out of the active memory, and notes where each queue
    /// stands. Called by the apply thread at the log id of the checkpoint; measured at 8 ms for
    /// 100k queues, during which reads go on. If an earlier freeze is not written yet, or its write
    /// failed, its units are part of this one.
    pub fn freeze(&self) -> FrozenIndex {
        // Only the apply thread changes queues, so the table still holds under the second lock.
        let table = self.read_lock().table();
        let (number, part) = self.write_lock().freeze();
        FrozenIndex {
            number,
            table,
            part,
        }
    }

    /// Writes frozen units as a run file, durable on return, reads them from there from then on,
    /// and returns the manifest: the live runs, and each queue as of the freeze. None when a later
    /// freeze took the units up, or the index was cleared: then no manifest is true of that point.
    /// Freezes are written in their order. After an error the units stay readable in memory and
    /// the next freeze takes them up.
    pub fn write_frozen(&self, frozen: &FrozenIndex) -> Result<Option<Vec<u8>>, StoreError> {
        let FrozenIndex {
            number,
            table,
            part,
        } = frozen;
        if let Some(part) = part {
            if !self.read_lock().is_pending(part) {
                return Ok(None);
            }
            let fill = |writer: &mut RunWriter| {
                for (&queue, slice) in part.memory.iter() {
                    for (queue_offset, unit) in (slice.base..).zip(&slice.units) {
                        writer.push(queue, queue_offset, unit)?;
                    }
                }
                Ok(())
            };
            let run = self.write_run(part.run_id, 0, fill)?;
            let run = run.expect("a freeze without units gives no part");
            if !self
                .write_lock()
                .install_frozen(*number, part, Arc::new(run))
            {
                remove_file(&*self.disk, &self.run_path(part.run_id))?;
            }
        }
        let inner = self.read_lock();
        let is_true = inner.is_written(*number, part.is_some());
        Ok(is_true.then(|| inner.manifest(table.clone()).encode()))
    }

    /// Merges runs once, if enough are there; false: nothing to do. Replaced files stay until
    /// [`QueueIndex::retire`]. One merge writes at most 1.75 GiB.
    pub fn merge_step(&self) -> Result<bool, StoreError> {
        let _one_at_a_time = self
            .merging
            .lock()
            .expect("no thread panics during a merge");
        let (inputs, run_id, min_physical) = {
            let mut inner = self.write_lock();
            let sizes: Vec<_> = inner
                .runs
                .iter()
                .map(|run| (run.level, u64::from(run.units)))
                .collect();
            let Some(range) = merge::pick(&sizes, self.run_units_max) else {
                return Ok(false);
            };
            (
                inner.runs[range].to_vec(),
                inner.take_run_id(),
                inner.min_physical,
            )
        };
        let level = inputs.first().map_or(0, |run| run.level).saturating_add(1);
        let born = |queue| self.read_lock().queues.get(&queue).map(|entry| entry.born);
        let merged = self.write_run(run_id, level, |writer| {
            merge::merge(&inputs, min_physical, born, writer)
        })?;
        let written = merged.is_some();
        if !self.write_lock().install_merged(&inputs, merged) && written {
            remove_file(&*self.disk, &self.run_path(run_id))?;
        }
        Ok(true)
    }

    /// Deletes the files of replaced and purged runs that none of `live_manifests` names, and
    /// returns how many. Invariant Q3: the caller passes the manifest of every checkpoint that a
    /// restart may begin from, so it calls this from the thread that writes checkpoints.
    pub fn retire<M: AsRef<[u8]>>(&self, live_manifests: &[M]) -> Result<usize, StoreError> {
        let mut named = BTreeSet::new();
        for manifest in live_manifests {
            named.extend(Manifest::decode(manifest.as_ref())?.runs);
        }
        let unnamed: Vec<u64> = self.read_lock().dead.difference(&named).copied().collect();
        for run_id in &unnamed {
            remove_file(&*self.disk, &self.run_path(*run_id))?;
            self.write_lock().dead.remove(run_id);
        }
        Ok(unnamed.len())
    }

    /// Memory held for units, directories and the queue table, in bytes (counted, not measured).
    pub fn memory_bytes(&self) -> usize {
        self.read_lock().memory_bytes()
    }

    /// Units in memory and in live runs, including purged ones that no merge has dropped yet.
    pub fn total_units(&self) -> u64 {
        self.read_lock().total_units()
    }

    /// Number of live run files.
    pub fn runs(&self) -> usize {
        self.read_lock().runs.len()
    }

    /// First offset at or after `from` for which `before` no longer holds; max if it always holds.
    fn partition(
        &self,
        queue: QueueNo,
        from: u64,
        before: impl Fn(Result<IndexUnit, StoreError>) -> Result<bool, StoreError>,
    ) -> Result<u64, StoreError> {
        let (view, written_end) = {
            let inner = self.read_lock();
            let Some(entry) = inner.queues.get(&queue) else {
                return Ok(0);
            };
            let mut written_end = entry.next;
            if let Some(slice) = inner.active.slice(queue) {
                // The active units can only be looked at under the lock, and that is quick.
                let skipped = from
                    .saturating_sub(slice.base)
                    .min(slice.units.len() as u64);
                let units = &slice.units[skipped as usize..];
                let after = units.partition_point(|unit| before(Ok(*unit)).unwrap_or(false));
                if after > 0 || skipped > 0 {
                    return Ok(slice.base + skipped + after as u64);
                }
                written_end = slice.base;
            }
            (inner.view(queue, entry, from), written_end)
        };
        let from = view.start().map_or(written_end, |start| start.max(from));
        view.partition(from.min(written_end), written_end, before)
    }

    /// Writes a run file; none when `fill` pushes nothing. An error leaves no file behind, so that
    /// a full disk does not get fuller with every try.
    fn write_run(
        &self,
        run_id: u64,
        level: u32,
        fill: impl FnOnce(&mut RunWriter) -> Result<(), StoreError>,
    ) -> Result<Option<Run>, StoreError> {
        let write = || {
            let mut writer = RunWriter::create(&*self.disk, &self.dir, run_id, level)?;
            fill(&mut writer)?;
            writer.finish(&*self.disk)
        };
        let written = write();
        if !matches!(written, Ok(Some(_))) {
            let removed = remove_file(&*self.disk, &self.run_path(run_id));
            // The first error is the one that matters; a leftover file goes with the next open.
            return written.and_then(|run| removed.map(|()| run));
        }
        written
    }

    fn run_path(&self, run_id: u64) -> PathBuf {
        self.dir.join(run_name(run_id))
    }

    fn read_lock(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner
            .read()
            .expect("no thread panics while it holds the index lock")
    }

    fn write_lock(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner
            .write()
            .expect("no thread panics while it holds the index lock")
    }
}

/// Removes a file; one that is gone already is fine, because a crash may come between the removal
/// and the note of it.
fn remove_file(disk: &dyn Disk, path: &Path) -> Result<(), StoreError> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path, error))
        }
        _ => Ok(()),
    }
}
