//! Owns one segment file: its name, its handle, how far it is written and initialised, and walks
//! over its entries. A segment holds entries and nothing else; the file may be longer than they are
//! (zeros), until the segment is sealed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::behind::{headers_behind, is_bad_sector, read_around};
use crate::disk::{Disk, DiskFile};
use crate::error::StoreError;
use crate::record::{HEADER_BYTES, Header, HeaderFault, LogId};
use crate::sparse::{Point, STEP_BYTES, Sparse};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// Bytes read at once while headers are walked.
const WALK_BYTES: usize = 64 * 1024;
/// Bytes read at once while whole entries are verified.
pub(crate) const SCAN_BYTES: usize = 1024 * 1024;
/// A sidecar has 16 bytes per 64 KiB of segment; a larger one is not ours.
const SIDECAR_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Whether the entry `start..start + total_bytes` begins a segment: when it begins at, or reaches
/// across, a multiple of `segment_bytes`. A function of addresses alone, so that replicas roll at
/// the same addresses whatever they were given as their first one.
pub(crate) fn begins_segment(start: u64, total_bytes: u64, segment_bytes: u64) -> bool {
    match start.checked_sub(1) {
        None => true,
        Some(before) => before / segment_bytes != (before + total_bytes) / segment_bytes,
    }
}

/// Name of the file of the segment with this base: 20 digits, as RocketMQ has it.
pub(crate) fn file_name(base: u64) -> String {
    format!("{base:020}")
}

/// The base in a file name; `None` when the file is not a segment.
pub(crate) fn base_of(name: &str) -> Option<u64> {
    let digits = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| name.parse().ok()).flatten()
}

/// A segment. Shared by readers, the flusher and the preallocator.
#[derive(Debug)]
pub(crate) struct Segment {
    /// Address of the first byte.
    pub(crate) base: u64,
    /// Index of the first entry.
    pub(crate) first_index: u64,
    /// CRC of the header before the first entry.
    pub(crate) previous_crc: u32,
    path: PathBuf,
    file: OnceLock<Arc<dyn DiskFile>>,
    on_disk: AtomicBool,
    /// Address up to which entries are written.
    written: AtomicU64,
    /// Address up to which the file's blocks are initialised: written or zero-filled.
    initialised: AtomicU64,
    allocation: Mutex<Allocation>,
    sparse: Mutex<Sparse>,
}

/// Guards the growth of the file: who holds it may write at or after `initialised`.
#[derive(Debug, Default)]
pub(crate) struct Allocation {
    /// The entries end for good here; the file has no zeros behind them.
    pub(crate) sealed: bool,
}

impl Segment {
    /// A segment that begins with the entry `first_index`; its file is made by the flusher.
    pub(crate) fn new(dir: &Path, base: u64, first_index: u64, previous_crc: u32) -> Self {
        Self {
            base,
            first_index,
            previous_crc,
            path: dir.join(file_name(base)),
            file: OnceLock::new(),
            on_disk: AtomicBool::new(false),
            written: AtomicU64::new(base),
            initialised: AtomicU64::new(base),
            allocation: Mutex::default(),
            sparse: Mutex::default(),
        }
    }

    /// Says that the file exists with entries up to `written` and blocks up to `initialised`.
    pub(crate) fn set_found(&self, written: u64, initialised: u64, sealed: bool) {
        self.on_disk.store(true, Ordering::Release);
        self.written.store(written, Ordering::Release);
        self.initialised.store(initialised, Ordering::Release);
        self.allocation().sealed = sealed;
    }

    /// Gives the file just made for this segment, initialised for `initialised_bytes`.
    pub(crate) fn set_file(&self, file: Arc<dyn DiskFile>, initialised_bytes: u64) {
        let _ = self.file.set(file);
        self.initialised
            .store(self.base + initialised_bytes, Ordering::Release);
        self.on_disk.store(true, Ordering::Release);
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn name(&self) -> String {
        file_name(self.base)
    }

    pub(crate) fn is_on_disk(&self) -> bool {
        self.on_disk.load(Ordering::Acquire)
    }

    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    pub(crate) fn set_written(&self, end: u64) {
        self.written.store(end, Ordering::Release);
    }

    pub(crate) fn initialised(&self) -> u64 {
        self.initialised.load(Ordering::Acquire)
    }

    /// Only with the allocation held.
    pub(crate) fn set_initialised(&self, end: u64) {
        self.initialised.store(end, Ordering::Release);
    }

    pub(crate) fn allocation(&self) -> MutexGuard<'_, Allocation> {
        self.allocation.lock().expect("a panic ends the process")
    }

    pub(crate) fn sparse(&self) -> MutexGuard<'_, Sparse> {
        self.sparse.lock().expect("a panic ends the process")
    }

    /// Keeps the preallocator off `..end`. Waits only when the range is not initialised yet.
    pub(crate) fn claim(&self, end: u64) {
        if end > self.initialised() {
            let _guard = self.allocation();
            if end > self.initialised() {
                self.set_initialised(end);
            }
        }
    }

    /// The handle, opened when first wanted.
    pub(crate) fn file(&self, disk: &dyn Disk) -> Result<&Arc<dyn DiskFile>, StoreError> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = disk
            .open(&self.path)
            .map_err(|source| StoreError::io("open segment", &self.path, source))?;
        Ok(self.file.get_or_init(|| file))
    }

    /// Reads `buf.len()` bytes at an address of this segment.
    pub(crate) fn read_exact(
        &self,
        disk: &dyn Disk,
        buf: &mut [u8],
        physical: u64,
    ) -> Result<(), StoreError> {
        self.file(disk)?
            .read_exact_at(buf, physical - self.base)
            .map_err(|source| self.unread(physical, source))
    }

    /// A read that failed at an address: damage, if it is the disk that cannot give the bytes.
    fn unread(&self, physical: u64, source: io::Error) -> StoreError {
        if is_bad_sector(&source) {
            return self.corrupt(physical, format!("it cannot be read: {source}"));
        }
        StoreError::io("read segment", &self.path, source)
    }

    /// Reader for the entries below `end`, in steps of `chunk_bytes`.
    pub(crate) fn reader<'a>(
        &'a self,
        disk: &dyn Disk,
        end: u64,
        chunk_bytes: usize,
    ) -> Result<ChunkReader<'a>, StoreError> {
        let file = self.file(disk)?.as_ref();
        let (segment, buffer) = (self, Vec::new());
        Ok(ChunkReader {
            segment,
            file,
            end,
            chunk_bytes,
            reads_around: false,
            buffer,
            buffer_at: 0,
        })
    }

    /// Header and header CRC of the entry `index`, which must be stored below `end`.
    pub(crate) fn header_of(
        &self,
        disk: &dyn Disk,
        index: u64,
        end: u64,
    ) -> Result<(Header, u32), StoreError> {
        let point = self.point_before(disk, index, end)?;
        let mut reader = self.reader(disk, end, WALK_BYTES)?;
        let mut at = point;
        loop {
            let (header, crc) = reader.header(at)?;
            if at.index == index {
                return Ok((header, crc));
            }
            at = Point::behind(&header);
        }
    }

    /// The nearest known point at or before the entry `index`.
    pub(crate) fn point_before(
        &self,
        disk: &dyn Disk,
        index: u64,
        end: u64,
    ) -> Result<Point, StoreError> {
        self.known_point(disk, end, |sparse| sparse.at_or_before(index))?
            .ok_or_else(|| self.corrupt(self.base, format!("index {index} is not in it")))
    }

    /// The nearest known point at or before an address.
    pub(crate) fn point_before_physical(
        &self,
        disk: &dyn Disk,
        physical: u64,
        end: u64,
    ) -> Result<Point, StoreError> {
        self.known_point(disk, end, |sparse| sparse.at_or_before_physical(physical))?
            .ok_or_else(|| self.corrupt(self.base, format!("{physical} is not in it")))
    }

    /// The nearest known point at or before an address, and where the next one or `end` is.
    pub(crate) fn block_around(
        &self,
        disk: &dyn Disk,
        physical: u64,
        end: u64,
    ) -> Result<(Point, u64), StoreError> {
        let start = self.point_before_physical(disk, physical, end)?;
        let next = self.sparse().after_physical(physical);
        Ok((start, next.map_or(end, |next| next.physical.min(end))))
    }

    fn known_point(
        &self,
        disk: &dyn Disk,
        end: u64,
        find: impl Fn(&Sparse) -> Option<Point>,
    ) -> Result<Option<Point>, StoreError> {
        if let Some(point) = find(&self.sparse()) {
            return Ok(Some(point));
        }
        // A segment that was not scanned at the start, or only its last part.
        let known_from = self.sparse().first().map_or(end, |first| first.physical);
        let front = match self.load_sidecar(disk, known_from) {
            Some(sparse) => sparse,
            None => self.walk(disk, known_from)?,
        };
        let mut sparse = self.sparse();
        if sparse
            .first()
            .is_none_or(|first| first.physical != self.base)
        {
            sparse.prepend(front);
        }
        Ok(find(&sparse))
    }

    /// An error that says what is wrong with this segment at `physical_offset`.
    pub(crate) fn corrupt(&self, physical_offset: u64, reason: impl Into<String>) -> StoreError {
        StoreError::Corrupt {
            segment: self.name(),
            physical_offset,
            reason: reason.into(),
        }
    }

    pub(crate) fn sidecar_path(&self) -> PathBuf {
        self.path.with_extension("sparse")
    }

    fn load_sidecar(&self, disk: &dyn Disk, end: u64) -> Option<Sparse> {
        let path = self.sidecar_path();
        let file = disk.open(&path).ok()?;
        let len = file.len().ok().filter(|len| *len <= SIDECAR_BYTES_MAX)?;
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0).ok()?;
        Sparse::decode(&bytes, self.base, end, self.first_index).ok()
    }

    fn walk(&self, disk: &dyn Disk, end: u64) -> Result<Sparse, StoreError> {
        let mut sparse = Sparse::default();
        let mut reader = self.reader(disk, end, WALK_BYTES)?;
        let mut at = Point {
            index: self.first_index,
            physical: self.base,
        };
        while at.physical < end {
            let damage = match reader.header(at) {
                Ok((header, _)) => {
                    sparse.note(at.index, at.physical);
                    at = Point::behind(&header);
                    continue;
                }
                Err(error) => error,
            };
            // What is whole in a damaged segment can be read: the walk goes on behind the damage.
            let mut around = self.reader(disk, end, SCAN_BYTES)?.around_bad_sectors();
            let behind = headers_behind(&mut around, at.physical + 1, end, 1)?;
            let Some(next) = behind.first().filter(|next| next.id.index > at.index) else {
                return if sparse.first().is_some() {
                    Ok(sparse)
                } else {
                    Err(damage)
                };
            };
            at = Point {
                index: next.id.index,
                physical: next.physical_offset,
            };
            sparse.note_after_gap(at);
        }
        Ok(sparse)
    }
}

/// Reads a segment forwards in large steps.
#[derive(Debug)]
pub(crate) struct ChunkReader<'a> {
    segment: &'a Segment,
    file: &'a dyn DiskFile,
    end: u64,
    chunk_bytes: usize,
    reads_around: bool,
    buffer: Vec<u8>,
    buffer_at: u64,
}

impl ChunkReader<'_> {
    /// From now on what the disk cannot give is taken for zeros. Only for finding out how far
    /// damage goes: whoever decides what may be cut must not take damage for an end.
    pub(crate) fn around_bad_sectors(mut self) -> Self {
        self.reads_around = true;
        self
    }

    /// Up to `len` bytes at `physical`; fewer only at the end.
    pub(crate) fn get(&mut self, physical: u64, len: usize) -> Result<&[u8], StoreError> {
        let buffered = physical
            .checked_sub(self.buffer_at)
            .map(|skip| skip as usize)
            .filter(|skip| skip.saturating_add(len) <= self.buffer.len());
        let skip = match buffered {
            Some(skip) => skip,
            None => {
                let left = usize::try_from(self.end.saturating_sub(physical)).unwrap_or(usize::MAX);
                self.buffer.resize(len.max(self.chunk_bytes).min(left), 0);
                let offset = physical - self.segment.base;
                let read = match self.file.read_at(&mut self.buffer, offset) {
                    Err(error) if self.reads_around && is_bad_sector(&error) => {
                        read_around(self.file, &mut self.buffer, offset)
                    }
                    read => read,
                };
                let read = read.map_err(|source| self.segment.unread(physical, source))?;
                self.buffer.truncate(read);
                self.buffer_at = physical;
                0
            }
        };
        let to = self.buffer.len().min(skip + len);
        Ok(&self.buffer[skip..to])
    }

    /// The header that must be at this point, and its CRC.
    pub(crate) fn header(&mut self, at: Point) -> Result<(Header, u32), StoreError> {
        let segment = self.segment;
        let bytes = self.get(at.physical, HEADER_BYTES)?;
        match Header::decode(bytes) {
            Ok((header, crc))
                if header.physical_offset == at.physical && header.id.index == at.index =>
            {
                Ok((header, crc))
            }
            Ok(_) => Err(segment.corrupt(at.physical, "another entry is stored here")),
            Err(HeaderFault::Zero) => Err(segment.corrupt(at.physical, "the entry is missing")),
            Err(HeaderFault::Damaged(reason)) => Err(segment.corrupt(at.physical, reason)),
        }
    }
}

/// Where a scan is: what the next entry must carry.
#[derive(Debug, Clone)]
pub(crate) struct Cursor {
    pub(crate) physical: u64,
    pub(crate) crc: u32,
    /// `None` only before the first entry of a log whose beginning was purged.
    pub(crate) next_index: Option<u64>,
    pub(crate) last: Option<LogId>,
}

/// Why a scan ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScanStop {
    /// The end of the scanned range, exactly.
    End,
    /// Zeros: nothing was written here.
    Zeros,
    /// Bytes that are no whole entry.
    Damaged(&'static str),
    /// A whole header that belongs to another log or another time.
    Stale(&'static str),
}

/// Verifies entries (header, chain, index, payload) from the cursor to `end`, moving the cursor.
pub(crate) fn scan(
    reader: &mut ChunkReader<'_>,
    cursor: &mut Cursor,
    end: u64,
    on_entry: impl FnMut(&Header),
) -> Result<ScanStop, StoreError> {
    scan_until(reader, cursor, end, end, on_entry)
}

/// As [`scan`], but it ends with the entry that reaches `until`.
pub(crate) fn scan_until(
    reader: &mut ChunkReader<'_>,
    cursor: &mut Cursor,
    end: u64,
    until: u64,
    mut on_entry: impl FnMut(&Header),
) -> Result<ScanStop, StoreError> {
    while cursor.physical < until {
        let bytes = reader.get(cursor.physical, HEADER_BYTES)?;
        let (header, crc) = match Header::decode(bytes) {
            Ok(decoded) => decoded,
            Err(HeaderFault::Zero) => return Ok(ScanStop::Zeros),
            Err(HeaderFault::Damaged(_)) if bytes.iter().all(|byte| *byte == 0) => {
                return Ok(ScanStop::Zeros);
            }
            Err(HeaderFault::Damaged(reason)) => return Ok(ScanStop::Damaged(reason)),
        };
        if header.physical_offset != cursor.physical {
            return Ok(ScanStop::Stale(
                "an entry of another address is stored here",
            ));
        }
        if header.previous_crc != cursor.crc {
            return Ok(ScanStop::Stale(
                "the entry does not follow the one before it",
            ));
        }
        let falls = cursor.last.is_some_and(|last| header.id.term < last.term);
        if falls
            || cursor
                .next_index
                .is_some_and(|index| index != header.id.index)
        {
            return Ok(ScanStop::Stale("the entry's index or term does not follow"));
        }
        if header.end_physical() > end {
            return Ok(ScanStop::Damaged("the entry runs past the end of the file"));
        }
        let payload_bytes = header.total_bytes as usize - HEADER_BYTES;
        let payload = reader.get(cursor.physical + HEADER_BYTES as u64, payload_bytes)?;
        if payload.len() < payload_bytes || crc32c::crc32c(payload) != header.payload_crc {
            return Ok(ScanStop::Damaged("the payload's CRC does not match"));
        }
        on_entry(&header);
        cursor.physical = header.end_physical();
        cursor.crc = crc;
        cursor.next_index = Some(header.id.index + 1);
        cursor.last = Some(header.id);
    }
    Ok(ScanStop::End)
}

/// How far a read may begin before the entry it wants.
pub(crate) const READ_SLACK_BYTES: u64 = STEP_BYTES + HEADER_BYTES as u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_twenty_digits_and_come_back() {
        assert_eq!(file_name(1_073_741_824), "00000000001073741824");
        assert_eq!(base_of("00000000001073741824"), Some(1_073_741_824));
        for other in [
            "vote",
            "0000000000107374182",
            "0000000000107374182x",
            "99999999999999999999",
        ] {
            assert_eq!(base_of(other), None, "{other}");
        }
    }

    #[test]
    fn an_entry_that_reaches_across_a_multiple_begins_a_segment() {
        assert!(begins_segment(0, 10, 100));
        assert!(!begins_segment(10, 90, 100));
        assert!(begins_segment(10, 91, 100));
        assert!(begins_segment(100, 1, 100));
        assert!(!begins_segment(101, 99, 100));
    }
}
