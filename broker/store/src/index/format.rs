//! Owns the bytes of a run file. All numbers are little endian.
//!
//! ```text
//! page 0          header: 64 bytes, zeros up to 4096
//! page 1..=n      blocks: 146 units of 28 bytes, block number u32, crc32c u32 (over 0..4092)
//! after page n    directory: one row of 16 bytes per queue, queues rising
//!
//! header          magic "RMQX" @0, version u32 @4, run id u64 @8, level u32 @16, rows u32 @20,
//!                 units u64 @24, largest physical offset u64 @32, directory crc32c u32 @40,
//!                 zeros @44, header crc32c u32 @60 (over 0..60)
//! unit            physical offset u64 @0, size u32 @8, tags code i64 @12, store timestamp u64 @20
//! directory row   queue u32 @0, count u32 @4, queue offset of the first unit u64 @8
//! ```
//! The units of the rows follow each other without gaps, so a row's position is the sum of the
//! counts before it. The last block is filled up with zeros.

use super::{IndexUnit, QueueNo};
use crate::record::{u32_at, u64_at};

/// Size of the header page and of a block, in bytes: one page of the page cache.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Size of a stored unit, in bytes.
pub(crate) const UNIT_BYTES: usize = 28;
/// Units in a block: as many as leave room for the block number and the checksum.
pub(crate) const UNITS_PER_BLOCK: u32 = 146;
/// Size of a directory row, in bytes.
pub(crate) const ROW_BYTES: usize = 16;

const MAGIC: &[u8; 4] = b"RMQX";
const VERSION: u32 = 1;
const HEADER_CRC_AT: usize = 60;
const BLOCK_NUMBER_AT: usize = 4088;
const BLOCK_CRC_AT: usize = 4092;

const _: () = assert!(UNITS_PER_BLOCK as usize * UNIT_BYTES == BLOCK_NUMBER_AT);

/// What the first page of a run file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunHeader {
    pub(crate) run_id: u64,
    pub(crate) level: u32,
    pub(crate) rows: u32,
    pub(crate) units: u32,
    pub(crate) max_physical: u64,
    pub(crate) directory_crc: u32,
}

impl RunHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut page = Vec::with_capacity(PAGE_BYTES);
        page.extend_from_slice(MAGIC);
        page.extend_from_slice(&VERSION.to_le_bytes());
        page.extend_from_slice(&self.run_id.to_le_bytes());
        page.extend_from_slice(&self.level.to_le_bytes());
        page.extend_from_slice(&self.rows.to_le_bytes());
        page.extend_from_slice(&u64::from(self.units).to_le_bytes());
        page.extend_from_slice(&self.max_physical.to_le_bytes());
        page.extend_from_slice(&self.directory_crc.to_le_bytes());
        page.resize(HEADER_CRC_AT, 0);
        let crc = crc32c::crc32c(&page);
        page.extend_from_slice(&crc.to_le_bytes());
        page.resize(PAGE_BYTES, 0);
        page
    }

    pub(crate) fn decode(page: &[u8]) -> Result<Self, &'static str> {
        if page.len() < HEADER_CRC_AT + 4 {
            return Err("the header is cut off");
        }
        if crc32c::crc32c(&page[..HEADER_CRC_AT]) != u32_at(page, HEADER_CRC_AT) {
            return Err("the header checksum is wrong");
        }
        if &page[..4] != MAGIC || u32_at(page, 4) != VERSION {
            return Err("this is not a run file of version 1");
        }
        let Ok(units) = u32::try_from(u64_at(page, 24)) else {
            return Err("the run has more units than a run can have");
        };
        Ok(Self {
            run_id: u64_at(page, 8),
            level: u32_at(page, 16),
            rows: u32_at(page, 20),
            units,
            max_physical: u64_at(page, 32),
            directory_crc: u32_at(page, 40),
        })
    }

    /// Position of the directory in the file, in bytes.
    pub(crate) fn directory_at(&self) -> u64 {
        (1 + u64::from(self.units.div_ceil(UNITS_PER_BLOCK))) * PAGE_BYTES as u64
    }

    /// Size of the directory, in bytes.
    pub(crate) fn directory_bytes(&self) -> u64 {
        u64::from(self.rows) * ROW_BYTES as u64
    }
}

/// One queue's slice of a run, as kept in memory: 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) queue: QueueNo,
    /// Position of the slice's first unit among the units of the run.
    pub(crate) first_unit: u32,
    /// Queue offset of the slice's first unit.
    pub(crate) base: u64,
}

pub(crate) fn encode_directory(rows: &[Row], units: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(rows.len() * ROW_BYTES);
    for (i, row) in rows.iter().enumerate() {
        let end = rows.get(i + 1).map_or(units, |next| next.first_unit);
        bytes.extend_from_slice(&row.queue.to_le_bytes());
        bytes.extend_from_slice(&(end - row.first_unit).to_le_bytes());
        bytes.extend_from_slice(&row.base.to_le_bytes());
    }
    bytes
}

pub(crate) fn decode_directory(
    bytes: &[u8],
    header: &RunHeader,
) -> Result<Box<[Row]>, &'static str> {
    if bytes.len() as u64 != header.directory_bytes() {
        return Err("the directory is cut off");
    }
    if crc32c::crc32c(bytes) != header.directory_crc {
        return Err("the directory checksum is wrong");
    }
    let mut rows: Vec<Row> = Vec::with_capacity(bytes.len() / ROW_BYTES);
    let mut first_unit = 0u32;
    for row in bytes.chunks_exact(ROW_BYTES) {
        let (queue, count, base) = (u32_at(row, 0), u32_at(row, 4), u64_at(row, 8));
        if rows.last().is_some_and(|before| before.queue >= queue) {
            return Err("the queues of the directory do not rise");
        }
        if count == 0 || base.checked_add(u64::from(count)).is_none() {
            return Err("a directory row is out of range");
        }
        rows.push(Row {
            queue,
            first_unit,
            base,
        });
        first_unit = first_unit
            .checked_add(count)
            .ok_or("the directory counts too many units")?;
    }
    if first_unit != header.units {
        return Err("the directory and the header count different units");
    }
    Ok(rows.into_boxed_slice())
}

pub(crate) fn encode_unit(unit: &IndexUnit, to: &mut Vec<u8>) {
    to.extend_from_slice(&unit.physical_offset.to_le_bytes());
    to.extend_from_slice(&unit.size.to_le_bytes());
    to.extend_from_slice(&unit.tags_code.to_le_bytes());
    to.extend_from_slice(&unit.store_timestamp_ms.to_le_bytes());
}

/// Fills the block that begins at `start` of `buffer` up to its end and seals it with its number.
pub(crate) fn seal_block(buffer: &mut Vec<u8>, start: usize, number: u32) {
    buffer.resize(start + BLOCK_NUMBER_AT, 0);
    buffer.extend_from_slice(&number.to_le_bytes());
    let crc = crc32c::crc32c(&buffer[start..]);
    buffer.extend_from_slice(&crc.to_le_bytes());
}

/// Checks a whole block: content, and that it is the block of this number.
pub(crate) fn check_block(block: &[u8], number: u32) -> Result<(), &'static str> {
    if crc32c::crc32c(&block[..BLOCK_CRC_AT]) != u32_at(block, BLOCK_CRC_AT) {
        return Err("the block checksum is wrong");
    }
    if u32_at(block, BLOCK_NUMBER_AT) != number {
        return Err("the block belongs elsewhere");
    }
    Ok(())
}

/// The unit at position `slot` (below [`UNITS_PER_BLOCK`]) of a checked block.
pub(crate) fn unit_in_block(block: &[u8], slot: u32) -> IndexUnit {
    let at = slot as usize * UNIT_BYTES;
    IndexUnit {
        physical_offset: u64_at(block, at),
        size: u32_at(block, at + 8),
        tags_code: u64_at(block, at + 12).cast_signed(),
        store_timestamp_ms: u64_at(block, at + 20),
    }
}
