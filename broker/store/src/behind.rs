//! Owns looking for entries behind a damaged place: what was ever written there, and where the log
//! may be joined again.

use std::io;

use crate::disk::DiskFile;
use crate::error::StoreError;
use crate::record::{HEADER_BYTES, Header, MAGIC_VERSION};
use crate::segment::{ChunkReader, SCAN_BYTES};

/// What a disk gives up as a whole. Unit: bytes.
pub(crate) const SECTOR_BYTES: u64 = 4096;

/// Whether a read failed because the disk cannot give the bytes any more (EIO).
pub(crate) fn is_bad_sector(error: &io::Error) -> bool {
    error.raw_os_error() == Some(5)
}

/// Whether a damaged range may end at this offset: a sector that cannot be read is written as a whole.
pub(crate) fn may_end_at(file: &dyn DiskFile, offset: u64) -> bool {
    !matches!(file.read_at(&mut [0], offset), Err(error) if is_bad_sector(&error))
}

/// Reads as [`DiskFile::read_at`] does, with zeros for the sectors that cannot be read.
pub(crate) fn read_around(file: &dyn DiskFile, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        let at = offset + filled as u64;
        let left = (SECTOR_BYTES - at % SECTOR_BYTES) as usize;
        let end = buf.len().min(filled + left);
        let sector = &mut buf[filled..end];
        let read = match file.read_at(sector, at) {
            Err(error) if is_bad_sector(&error) => {
                sector.fill(0);
                sector.len()
            }
            read => read?,
        };
        filled += read;
        if filled < end {
            break;
        }
    }
    Ok(filled)
}

/// What lies behind the last whole entry.
pub(crate) struct Behind {
    pub(crate) all_zero: bool,
    /// Address of the last header that is whole and belongs where it is.
    pub(crate) last_header: Option<u64>,
}

/// Looks through `from..file_end` for anything that was ever written there.
pub(crate) fn look_behind(
    reader: &mut ChunkReader<'_>,
    from: u64,
    file_end: u64,
) -> Result<Behind, StoreError> {
    let mut last_header = None;
    let all_zero = each_header(reader, from, file_end, |header| {
        last_header = Some(header.physical_offset);
        true
    })?;
    Ok(Behind {
        all_zero,
        last_header,
    })
}

/// The first headers in `from..file_end` that are whole and belong where they are, `count_max` at
/// most.
pub(crate) fn headers_behind(
    reader: &mut ChunkReader<'_>,
    from: u64,
    file_end: u64,
    count_max: usize,
) -> Result<Vec<Header>, StoreError> {
    let mut found = Vec::new();
    if count_max == 0 {
        return Ok(found);
    }
    each_header(reader, from, file_end, |header| {
        found.push(header);
        found.len() < count_max
    })?;
    Ok(found)
}

/// Calls `visit` with each such header until it returns false. Returns whether everything that was
/// looked at is zero.
fn each_header(
    reader: &mut ChunkReader<'_>,
    from: u64,
    file_end: u64,
    mut visit: impl FnMut(Header) -> bool,
) -> Result<bool, StoreError> {
    /// Candidates begin below this distance from the chunk's start; the rest is their headers.
    const STEP_BYTES: usize = SCAN_BYTES - HEADER_BYTES;
    static ZEROS: [u8; SCAN_BYTES] = [0; SCAN_BYTES];
    let mut all_zero = true;
    let mut at = from;
    while at < file_end {
        let chunk = reader.get(at, SCAN_BYTES)?;
        if chunk.is_empty() {
            break;
        }
        if chunk != &ZEROS[..chunk.len()] {
            all_zero = false;
            for place in 0..chunk.len().min(STEP_BYTES) {
                if chunk[place] != MAGIC_VERSION[0] || !chunk[place..].starts_with(&MAGIC_VERSION) {
                    continue;
                }
                if let Ok((header, _)) = Header::decode(&chunk[place..])
                    && header.physical_offset == at + place as u64
                    && !visit(header)
                {
                    return Ok(false);
                }
            }
        }
        at += STEP_BYTES as u64;
    }
    Ok(all_zero)
}
