//! Owns run files: [`Run`] reads one, [`RunWriter`] makes one. A run is immutable; its directory is
//! in memory, its units are read and checked block by block. The bytes are in `format.rs`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{self, PAGE_BYTES, Row, RunHeader, UNITS_PER_BLOCK};
use super::{IndexUnit, QueueNo};
use crate::disk::{Disk, DiskFile};
use crate::error::StoreError;

/// Blocks read by one call: large enough for a merge to stream, small enough to bound the buffer.
pub(crate) const BLOCKS_PER_READ: u32 = 64;
/// Bytes collected before they are written.
const WRITE_BYTES: usize = 1024 * 1024;
/// Bytes written between two syncs: one large sync at the end would stall the log's own syncs.
const SYNC_BYTES: u64 = 8 * 1024 * 1024;

/// File name of a run.
pub(crate) fn run_name(run_id: u64) -> String {
    format!("{run_id:020}.run")
}

/// The run id of a file name, if it is one of ours.
pub(crate) fn run_id_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".run")?;
    if digits.len() != 20 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// A contiguous part of one queue inside a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) queue: QueueNo,
    /// Queue offset of the first unit.
    pub(crate) base: u64,
    /// Number of units, at least 1.
    pub(crate) count: u32,
    /// Position of the first unit among the units of the run.
    pub(crate) first_unit: u32,
}

impl Slice {
    /// One past the last queue offset.
    pub(crate) fn end(&self) -> u64 {
        self.base + u64::from(self.count)
    }
}

/// An open, immutable run file.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) id: u64,
    /// How many merges its units went through.
    pub(crate) level: u32,
    /// Number of units, at least 1.
    pub(crate) units: u32,
    /// Largest physical offset of its units: below the minimum of the log, the run is of no use.
    pub(crate) max_physical: u64,
    rows: Box<[Row]>,
    file: Arc<dyn DiskFile>,
    path: PathBuf,
}

impl Run {
    pub(crate) fn open(disk: &dyn Disk, dir: &Path, id: u64) -> Result<Self, StoreError> {
        let path = dir.join(run_name(id));
        let file = disk
            .open(&path)
            .map_err(|error| StoreError::io("open", &path, error))?;
        let corrupt = |at: u64, reason: &str| corrupt(&path, at, reason);
        let read = |buffer: &mut [u8], at: u64| {
            file.read_exact_at(buffer, at)
                .map_err(|error| StoreError::io("read", &path, error))
        };
        let len = file
            .len()
            .map_err(|error| StoreError::io("stat", &path, error))?;
        if len < PAGE_BYTES as u64 {
            return Err(corrupt(0, "the header is cut off"));
        }
        let mut page = vec![0; PAGE_BYTES];
        read(&mut page, 0)?;
        let header = RunHeader::decode(&page).map_err(|reason| corrupt(0, reason))?;
        if header.run_id != id {
            return Err(corrupt(0, "the header names another run"));
        }
        // Compared before the directory is allocated: the file's size is what justifies it.
        let directory_at = header.directory_at();
        if len != directory_at + header.directory_bytes() {
            return Err(corrupt(0, "the file has another size than its header says"));
        }
        let mut directory = vec![0; (len - directory_at) as usize];
        read(&mut directory, directory_at)?;
        let rows = format::decode_directory(&directory, &header)
            .map_err(|reason| corrupt(directory_at, reason))?;
        let RunHeader {
            level,
            units,
            max_physical,
            ..
        } = header;
        Ok(Self {
            id,
            level,
            units,
            max_physical,
            rows,
            file,
            path,
        })
    }

    /// The part of a queue that this run holds.
    pub(crate) fn slice(&self, queue: QueueNo) -> Option<Slice> {
        let row = self
            .rows
            .binary_search_by_key(&queue, |row| row.queue)
            .ok()?;
        self.slice_at(row)
    }

    /// The slice of the directory row at this position.
    pub(crate) fn slice_at(&self, row: usize) -> Option<Slice> {
        let Row {
            queue,
            first_unit,
            base,
        } = *self.rows.get(row)?;
        let end = self
            .rows
            .get(row + 1)
            .map_or(self.units, |next| next.first_unit);
        Some(Slice {
            queue,
            base,
            count: end - first_unit,
            first_unit,
        })
    }

    /// Memory held by the directory, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.rows)
    }

    /// Appends `count` units, beginning with `first`, to `units`; every block is checked.
    pub(crate) fn read_units(
        &self,
        first: u32,
        count: u32,
        units: &mut Vec<IndexUnit>,
    ) -> Result<(), StoreError> {
        debug_assert!(u64::from(first) + u64::from(count) <= u64::from(self.units));
        let (mut next, end) = (first, first + count);
        units.reserve(count as usize);
        let mut buffer = Vec::new();
        while next < end {
            let block_first = next / UNITS_PER_BLOCK;
            let blocks = (end.div_ceil(UNITS_PER_BLOCK) - block_first).min(BLOCKS_PER_READ);
            let at = (1 + u64::from(block_first)) * PAGE_BYTES as u64;
            buffer.resize(blocks as usize * PAGE_BYTES, 0);
            self.file
                .read_exact_at(&mut buffer, at)
                .map_err(|error| StoreError::io("read", &self.path, error))?;
            for (number, block) in (block_first..).zip(buffer.chunks_exact(PAGE_BYTES)) {
                format::check_block(block, number).map_err(|reason| {
                    corrupt(
                        &self.path,
                        (1 + u64::from(number)) * PAGE_BYTES as u64,
                        reason,
                    )
                })?;
                let block_units_end = end - number * UNITS_PER_BLOCK;
                for slot in next % UNITS_PER_BLOCK..block_units_end.min(UNITS_PER_BLOCK) {
                    units.push(format::unit_in_block(block, slot));
                    next += 1;
                }
            }
        }
        Ok(())
    }

    /// One unit, by its position in the run.
    pub(crate) fn unit(&self, position: u32) -> Result<IndexUnit, StoreError> {
        let mut units = Vec::with_capacity(1);
        self.read_units(position, 1, &mut units)?;
        Ok(units[0])
    }
}

/// Writes one run file from front to back. Its name means nothing until [`RunWriter::finish`]
/// returned and a manifest names it.
#[derive(Debug)]
pub(crate) struct RunWriter {
    id: u64,
    level: u32,
    dir: PathBuf,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    rows: Vec<Row>,
    units: u32,
    max_physical: u64,
    /// Queue offset that the next unit of the present queue has.
    next_offset: u64,
    /// Bytes not yet written; begins at `written` of the file and at a block's begin.
    buffer: Vec<u8>,
    /// Where in `buffer` the block being filled begins.
    block_start: usize,
    written: u64,
    synced: u64,
}

impl RunWriter {
    pub(crate) fn create(
        disk: &dyn Disk,
        dir: &Path,
        id: u64,
        level: u32,
    ) -> Result<Self, StoreError> {
        let path = dir.join(run_name(id));
        let file = disk
            .create(&path)
            .map_err(|error| StoreError::io("create", &path, error))?;
        Ok(Self {
            id,
            level,
            dir: dir.to_path_buf(),
            path,
            file,
            rows: Vec::new(),
            units: 0,
            max_physical: 0,
            next_offset: 0,
            buffer: Vec::new(),
            block_start: 0,
            written: PAGE_BYTES as u64,
            synced: 0,
        })
    }

    /// Adds a unit. Queues come in rising order, the offsets of a queue without gaps.
    pub(crate) fn push(
        &mut self,
        queue: QueueNo,
        queue_offset: u64,
        unit: &IndexUnit,
    ) -> Result<(), StoreError> {
        match self.rows.last() {
            Some(row) if row.queue == queue => {
                assert!(
                    queue_offset == self.next_offset,
                    "Q1: queue offsets are dense"
                );
            }
            before => {
                assert!(
                    before.is_none_or(|row| row.queue < queue),
                    "queues of a run rise"
                );
                self.rows.push(Row {
                    queue,
                    first_unit: self.units,
                    base: queue_offset,
                });
            }
        }
        self.next_offset = queue_offset + 1;
        self.max_physical = self.max_physical.max(unit.physical_offset);
        format::encode_unit(unit, &mut self.buffer);
        self.units = self
            .units
            .checked_add(1)
            .expect("a merge bounds the units of a run");
        if self.units.is_multiple_of(UNITS_PER_BLOCK) {
            self.seal_block();
            if self.buffer.len() >= WRITE_BYTES {
                self.write_buffer()?;
            }
        }
        Ok(())
    }

    /// Completes the file and makes it and its name durable. `None` when nothing was pushed: a run
    /// is never empty, the caller removes the file.
    pub(crate) fn finish(mut self, disk: &dyn Disk) -> Result<Option<Run>, StoreError> {
        if self.units == 0 {
            return Ok(None);
        }
        if !self.units.is_multiple_of(UNITS_PER_BLOCK) {
            self.seal_block();
        }
        let directory = format::encode_directory(&self.rows, self.units);
        self.buffer.extend_from_slice(&directory);
        self.write_buffer()?;
        let header = RunHeader {
            run_id: self.id,
            level: self.level,
            rows: self.rows.len() as u32,
            units: self.units,
            max_physical: self.max_physical,
            directory_crc: crc32c::crc32c(&directory),
        };
        self.file
            .write_all_at(&header.encode(), 0)
            .map_err(|error| StoreError::io("write", &self.path, error))?;
        self.sync()?;
        disk.sync_dir(&self.dir)
            .map_err(|error| StoreError::io("sync", &self.dir, error))?;
        Ok(Some(Run {
            id: self.id,
            level: self.level,
            units: self.units,
            max_physical: self.max_physical,
            rows: self.rows.into_boxed_slice(),
            file: self.file,
            path: self.path,
        }))
    }

    fn seal_block(&mut self) {
        let number = (self.units - 1) / UNITS_PER_BLOCK;
        format::seal_block(&mut self.buffer, self.block_start, number);
        self.block_start = self.buffer.len();
    }

    fn write_buffer(&mut self) -> Result<(), StoreError> {
        self.file
            .write_all_at(&self.buffer, self.written)
            .map_err(|error| StoreError::io("write", &self.path, error))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        self.block_start = 0;
        if self.written - self.synced >= SYNC_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.file
            .sync_data()
            .map_err(|error| StoreError::io("fdatasync", &self.path, error))?;
        self.synced = self.written;
        Ok(())
    }
}

fn corrupt(path: &Path, at: u64, reason: &str) -> StoreError {
    let segment = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    StoreError::Corrupt {
        segment,
        physical_offset: at,
        reason: reason.to_owned(),
    }
}
