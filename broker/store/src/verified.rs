//! Owns reading bytes by address so that damaged ones are never handed out: whole entries are read
//! and compared with their CRCs, and the wanted part of them is copied.

use crate::disk::Disk;
use crate::error::StoreError;
use crate::record::HEADER_BYTES;
use crate::segment::{SCAN_BYTES, Segment};
use crate::sparse::Point;

impl Segment {
    /// Reads `buf.len()` bytes at an address; the entries that hold them end at or before `end`.
    pub(crate) fn read_verified(
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
            let (header, _) = reader.header(at)?;
            let entry_end = header.end_physical();
            if entry_end > physical {
                let mut head = [0; HEADER_BYTES];
                head.copy_from_slice(reader.get(at.physical, HEADER_BYTES)?);
                let payload_at = at.physical + HEADER_BYTES as u64;
                let payload_bytes = header.total_bytes as usize - HEADER_BYTES;
                let payload = reader.get(payload_at, payload_bytes)?;
                if payload.len() < payload_bytes || crc32c::crc32c(payload) != header.payload_crc {
                    return Err(self.corrupt(at.physical, "the payload's CRC does not match"));
                }
                copy_overlap(buf, physical, &head, at.physical);
                copy_overlap(buf, physical, payload, payload_at);
            }
            at = Point {
                index: at.index + 1,
                physical: entry_end,
            };
        }
        Ok(())
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
    use std::path::Path;

    use crate::log_tests::{DIR, append_flushed, config, open};
    use crate::test_disk::MemoryDisk;
    use crate::{CommitLog, LogConfig};

    #[test]
    fn every_range_of_the_log_reads_as_it_lies_in_the_files() {
        let disk = MemoryDisk::default();
        let (log, ..) = open(&disk, None).unwrap();
        for size in [0, 1, 700, 90, 3000, 64, 5000, 10, 10, 900] {
            append_flushed(&log, 1, 1, size);
        }
        let all: Vec<u8> = (log
            .segment_bases()
            .iter()
            .zip(log.segment_bases()[1..].iter()))
        .flat_map(|(base, next)| {
            let content = disk.content(&Path::new(DIR).join(format!("{base:020}")));
            content[..(next - base) as usize].to_vec()
        })
        .collect();
        for from in (0..all.len()).step_by(37) {
            for len in [0, 1, 63, 64, 200, 4000] {
                let to = (from + len).min(all.len());
                let read = log.read_bytes(from as u64, to - from).unwrap();
                assert!(read == all[from..to], "{from}..{to}");
            }
        }
    }

    #[test]
    fn bytes_of_a_damaged_entry_are_not_handed_out_and_the_damage_is_noted() {
        let disk = MemoryDisk::default();
        let small_tail = LogConfig {
            tail_bytes: 0,
            ..config()
        };
        let (log, ..) =
            CommitLog::open(std::sync::Arc::new(disk.clone()), small_tail, None).unwrap();
        append_flushed(&log, 1, 3, 500);
        append_flushed(&log, 1, 1, 0);
        let segment = Path::new(DIR).join(format!("{:020}", 0));
        for at in [564 + 70, 564 + 3] {
            disk.edit(&segment, |bytes| bytes[at] ^= 1);
            // The wanted byte itself is whole, but it belongs to the damaged entry.
            for from in [564 + 10, 564 + 300] {
                log.read_bytes(from, 10).unwrap_err();
                assert_eq!(log.take_damaged(), Some(564));
            }
            assert_eq!(log.read_bytes(100, 10).unwrap(), [0; 10][..]);
            assert_eq!(log.take_damaged(), None);
            disk.edit(&segment, |bytes| bytes[at] ^= 1);
        }
        log.read_bytes(564 + 10, 10).unwrap();
    }
}
