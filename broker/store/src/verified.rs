//! Owns reading bytes by address so that damaged ones are never handed out: whole entries are read
//! and compared with their CRCs, and the wanted part of them is given.

use bytes::Bytes;

use crate::blocks::{BLOCK_BYTES_MAX, Block};
use crate::commit_log::CommitLog;
use crate::disk::Disk;
use crate::error::StoreError;
use crate::read::Piece;
use crate::record::{HEADER_BYTES, Header};
use crate::segment::{ChunkReader, SCAN_BYTES, Segment};
use crate::sparse::Point;

impl CommitLog {
    /// The bytes of `piece` from an address on, or the first of them: at least one. `epoch` is the
    /// one in which `piece` was looked up.
    pub(crate) fn verified_part(
        &self,
        epoch: u64,
        piece: &Piece,
        from: u64,
    ) -> Result<Bytes, StoreError> {
        if let Some(part) = self.blocks.part(epoch, from, piece.to) {
            return Ok(part);
        }
        let (disk, segment) = (self.disk(), &piece.segment);
        let (start, end) = segment.block_around(disk, from, piece.entries_end)?;
        if end - start.physical <= BLOCK_BYTES_MAX
            && let Ok(bytes) = segment.read_block(disk, start, end)
        {
            let start = start.physical;
            let block = Block { start, bytes };
            if let Some(part) = block.part(from, piece.to) {
                self.blocks.put(epoch, block);
                return Ok(part);
            }
        }
        // Large entries, or damage: perhaps beside what is wanted, which then is given all the same.
        let mut part = vec![0; (piece.to - from) as usize];
        segment.read_verified(disk, &mut part, from, piece.entries_end)?;
        Ok(part.into())
    }
}

impl Segment {
    /// Reads the entries from `start` to `end`, all of which must be whole.
    fn read_block(&self, disk: &dyn Disk, start: Point, end: u64) -> Result<Bytes, StoreError> {
        let len = (end - start.physical) as usize;
        let mut reader = self.reader(disk, end, len)?;
        let mut at = start;
        while at.physical < end {
            let header = reader.header(at)?.0;
            self.verified_payload(&mut reader, &header)?;
            at = Point::behind(&header);
        }
        Ok(Bytes::copy_from_slice(reader.get(start.physical, len)?))
    }

    /// Reads `buf.len()` bytes at an address; the entries that hold them end at or before `end`.
    /// Other entries need not be whole, but for the headers of those shortly before.
    fn read_verified(
        &self,
        disk: &dyn Disk,
        buf: &mut [u8],
        physical: u64,
        end: u64,
    ) -> Result<(), StoreError> {
        let wanted_end = physical + buf.len() as u64;
        let mut at = self.point_before_physical(disk, physical, end)?;
        // One read for everything up to the last wanted byte, as a rule.
        let chunk = (wanted_end - at.physical).min(SCAN_BYTES as u64) as usize;
        let mut reader = self.reader(disk, end, chunk.max(HEADER_BYTES))?;
        while at.physical < wanted_end {
            let header = reader.header(at)?.0;
            if header.end_physical() > physical {
                let mut head = [0; HEADER_BYTES];
                head.copy_from_slice(reader.get(at.physical, HEADER_BYTES)?);
                let payload = self.verified_payload(&mut reader, &header)?;
                copy_overlap(buf, physical, &head, at.physical);
                copy_overlap(buf, physical, payload, at.physical + HEADER_BYTES as u64);
            }
            at = Point::behind(&header);
        }
        Ok(())
    }

    fn verified_payload<'a>(
        &self,
        reader: &'a mut ChunkReader<'_>,
        header: &Header,
    ) -> Result<&'a [u8], StoreError> {
        let len = header.total_bytes as usize - HEADER_BYTES;
        let payload = reader.get(header.physical_offset + HEADER_BYTES as u64, len)?;
        if payload.len() < len || crc32c::crc32c(payload) != header.payload_crc {
            return Err(self.corrupt(header.physical_offset, "the payload's CRC does not match"));
        }
        Ok(payload)
    }
}

/// Copies the part of `bytes`, which lie at `bytes_at`, that `buf`, which begins at `buf_at`, wants.
fn copy_overlap(buf: &mut [u8], buf_at: u64, bytes: &[u8], bytes_at: u64) {
    let from = buf_at.max(bytes_at);
    let to = (buf_at + buf.len() as u64).min(bytes_at + bytes.len() as u64);
    if from < to {
        let source = &bytes[(from - bytes_at) as usize..(to - bytes_at) as usize];
        buf[(from - buf_at) as usize..(to - buf_at) as usize].copy_from_slice(source);
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use crate::log_tests::{DIR, append_flushed, config, open};
    use crate::record::{HEADER_BYTES, StoredEntry};
    use crate::sparse::STEP_BYTES;
    use crate::test_disk::MemoryDisk;
    use crate::{CommitLog, LogConfig};

    /// A log that keeps nothing in memory, with segments of several blocks.
    fn open_on_disk(disk: &MemoryDisk) -> Arc<CommitLog> {
        let config = LogConfig {
            tail_bytes: 0,
            segment_bytes: 10 * STEP_BYTES,
            flush_batch_bytes_max: 4 << 20,
            ..config()
        };
        CommitLog::open(Arc::new(disk.clone()), config, None)
            .unwrap()
            .0
    }

    /// Appends entries and one more, with which these leave the memory.
    fn append_to_disk(log: &CommitLog, term: u64, count: u64, payload_bytes: usize) {
        append_flushed(log, term, count, payload_bytes);
        append_flushed(log, term, 1, 0);
        let last = log.state().tail.first_index();
        assert_eq!(last, log.last_id().map(|last| last.index));
    }

    fn first_segment() -> PathBuf {
        Path::new(DIR).join(format!("{:020}", 0))
    }

    /// What lies in the files, one after the other.
    fn content(disk: &MemoryDisk, log: &CommitLog) -> Vec<u8> {
        let bases = log.segment_bases();
        (bases.iter().zip(bases[1..].iter()))
            .flat_map(|(base, next)| {
                let content = disk.content(&Path::new(DIR).join(format!("{base:020}")));
                content[..(next - base) as usize].to_vec()
            })
            .collect()
    }

    fn assert_reads_equal(log: &CommitLog, all: &[u8], step: usize, lengths: &[usize]) {
        for from in (0..all.len()).step_by(step) {
            for len in lengths {
                let to = (from + len).min(all.len());
                let read = log.read_bytes(from as u64, to - from).unwrap();
                assert!(read == all[from..to], "{from}..{to}");
            }
        }
    }

    #[test]
    fn every_range_of_the_log_reads_as_it_lies_in_the_files() {
        let disk = MemoryDisk::default();
        let (log, ..) = open(&disk, None).unwrap();
        for size in [0, 1, 700, 90, 3000, 64, 5000, 10, 10, 900] {
            append_flushed(&log, 1, 1, size);
        }
        let all = content(&disk, &log);
        assert_reads_equal(&log, &all, 37, &[0, 1, 63, 64, 200, 4000]);
    }

    #[test]
    fn ranges_read_alike_over_blocks_and_entries_larger_than_a_block() {
        let disk = MemoryDisk::default();
        let log = open_on_disk(&disk);
        for size in [900, 300_000, 10, 700_000, 40_000] {
            append_flushed(&log, 1, 1, size);
            append_flushed(&log, 1, 90, 1500);
        }
        append_flushed(&log, 1, 1, 10 * STEP_BYTES as usize);
        let all = content(&disk, &log);
        assert!(all.len() > 1 << 20);
        assert_reads_equal(&log, &all, 7919, &[1, 1564, 70_000, 400_000]);
    }

    #[test]
    fn bytes_of_a_damaged_entry_are_not_handed_out_and_the_damage_is_noted() {
        let disk = MemoryDisk::default();
        let log = open_on_disk(&disk);
        append_to_disk(&log, 1, 3, 500);
        for at in [564 + 70, 564 + 3] {
            disk.edit(&first_segment(), |bytes| bytes[at] ^= 1);
            // The wanted byte itself is whole, but it belongs to the damaged entry.
            for from in [564 + 10, 564 + 300] {
                log.read_bytes(from, 10).unwrap_err();
                assert_eq!(log.take_damaged(), Some(564));
            }
            assert_eq!(log.read_bytes(100, 10).unwrap(), [0; 10][..]);
            assert_eq!(log.take_damaged(), None);
            disk.edit(&first_segment(), |bytes| bytes[at] ^= 1);
        }
        log.read_bytes(564 + 10, 10).unwrap();
    }

    #[test]
    fn whole_entries_around_damage_are_given() {
        let disk = MemoryDisk::default();
        let log = open_on_disk(&disk);
        append_to_disk(&log, 1, 150, 1000);
        let size = (HEADER_BYTES + 1000) as u64;
        // A payload: the entries before and behind it in its block are whole.
        disk.edit(&first_segment(), |bytes| {
            bytes[(20 * size) as usize + 500] ^= 1;
        });
        for index in 0..150 {
            let read = log.read_bytes(index * size + 64, 1000);
            assert_eq!(read.is_err(), index == 20, "{index}");
            assert!(read.is_err() || read.unwrap() == vec![index as u8; 1000]);
        }
        assert_eq!(log.take_damaged(), Some(20 * size));
        assert_eq!(log.take_damaged(), None);
    }

    #[test]
    fn a_range_is_read_from_the_disk_once_for_all_that_want_records_of_it() {
        let disk = MemoryDisk::default();
        let log = open_on_disk(&disk);
        append_to_disk(&log, 1, 150, 1000);
        let size = (HEADER_BYTES + 1000) as u64;
        log.read_bytes(0, 1).unwrap();
        // Had it been read again, the damage would have been met.
        disk.edit(&first_segment(), |bytes| bytes[500] ^= 1);
        for index in 0..40 {
            log.read_bytes(index * size + 64, 1000).unwrap();
        }
    }

    #[test]
    fn after_a_truncation_the_new_entries_are_read() {
        let disk = MemoryDisk::default();
        let log = open_on_disk(&disk);
        append_to_disk(&log, 1, 20, 1000);
        let size = (HEADER_BYTES + 1000) as u64;
        log.read_bytes(15 * size, 1000).unwrap();
        log.truncate_after(Some(9)).unwrap();
        append_to_disk(&log, 2, 10, 1000);
        let entries: Vec<StoredEntry> = log.read(10, 20, u64::MAX).unwrap();
        for entry in entries {
            let header = log.read_bytes(entry.physical_offset, HEADER_BYTES).unwrap();
            let (header, _) = crate::record::Header::decode(&header).unwrap();
            assert_eq!(header.id, entry.id);
            assert_eq!(header.id.term, 2);
        }
    }
}
