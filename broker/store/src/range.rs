//! Owns giving a part of this node's log to a peer whose own is damaged there. It works on the
//! files alone, so it needs no opened log and no Raft: a node that is damaged itself gives what it
//! has that is whole. Nothing leaves that does not match its CRCs.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::Disk;
use crate::error::StoreError;
use crate::record::{HEADER_BYTES, Header};
use crate::segment::{Segment, base_of};

/// Where a peer's log has to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeRequest {
    /// Address where an entry begins.
    pub physical: u64,
    /// CRC of the header before it: the whole log up to there must be the same.
    pub previous_crc: u32,
    /// Bytes of this entry that the asker has already.
    pub skip: u32,
}

/// What a node can give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangeAnswer {
    /// Bytes from the requested place on: a part of the entry, or all of it and whole ones after it.
    Bytes(Bytes),
    /// An entry begins there, but it follows another one than the asker's.
    Different,
    /// There is no whole entry: not written yet, or damaged here too.
    Missing,
    /// The log here begins later: what stood there was deleted by the retention of the group.
    Purged,
    /// The log here ends before: it was never written here, or not yet.
    Behind,
}

/// The files of a log, opened or not.
#[derive(Debug, Clone)]
pub struct RangeSource {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Where the log begins and ends, of one that is open.
    bounds: Option<(u64, u64)>,
}

impl RangeSource {
    /// The files in the folder of a log.
    pub fn new(disk: Arc<dyn Disk>, dir: impl Into<PathBuf>) -> Self {
        Self {
            disk,
            dir: dir.into(),
            bounds: None,
        }
    }

    /// Says where the log begins and ends now, so that it can be told why something is not there.
    pub(crate) fn between(mut self, min_physical: u64, max_physical: u64) -> Self {
        self.bounds = Some((min_physical, max_physical));
        self
    }

    /// What there is to say of an address where no whole entry is found.
    fn absent(&self, physical: u64) -> RangeAnswer {
        match self.bounds {
            Some((begin, _)) if physical < begin => RangeAnswer::Purged,
            Some((_, end)) if physical >= end => RangeAnswer::Behind,
            _ => RangeAnswer::Missing,
        }
    }

    /// Entries from the requested place on, `bytes_max` bytes at most.
    pub fn read(&self, wanted: RangeRequest, bytes_max: usize) -> Result<RangeAnswer, StoreError> {
        let bases = self.bases()?;
        let base = bases.iter().filter(|base| **base <= wanted.physical).max();
        let Some(base) = base else {
            // A node without any log has purged nothing.
            return Ok(if bases.is_empty() {
                self.absent(wanted.physical)
            } else {
                RangeAnswer::Purged
            });
        };
        let segment = Segment::new(&self.dir, *base, 0, 0);
        let mut bytes = Vec::new();
        let (mut at, mut previous_crc) = (wanted.physical, wanted.previous_crc);
        while bytes.len() + HEADER_BYTES <= bytes_max {
            let (header, crc, entry) = match self.entry_at(&segment, at) {
                Ok(Some(found)) => found,
                Ok(None) => break,
                // Purged or cut meanwhile.
                Err(StoreError::Io { source, .. }) if is_gone(&source) => break,
                Err(error) => return Err(error),
            };
            if header.previous_crc != previous_crc {
                if at == wanted.physical {
                    return Ok(RangeAnswer::Different);
                }
                break;
            }
            if at == wanted.physical {
                let Some(rest) = entry.get(wanted.skip as usize..).filter(|r| !r.is_empty()) else {
                    break;
                };
                bytes.extend_from_slice(&rest[..rest.len().min(bytes_max)]);
            } else if bytes.len() + entry.len() > bytes_max {
                break;
            } else {
                bytes.extend_from_slice(&entry);
            }
            (at, previous_crc) = (header.end_physical(), crc);
        }
        if bytes.is_empty() {
            return Ok(self.absent(wanted.physical));
        }
        Ok(RangeAnswer::Bytes(bytes.into()))
    }

    fn bases(&self) -> Result<Vec<u64>, StoreError> {
        let names = self
            .disk
            .list(&self.dir)
            .map_err(|source| StoreError::io("list", &self.dir, source))?;
        Ok(names.iter().filter_map(|name| base_of(name)).collect())
    }

    /// The entry at an address with its header's CRC, if it is whole.
    fn entry_at(
        &self,
        segment: &Segment,
        physical: u64,
    ) -> Result<Option<(Header, u32, Vec<u8>)>, StoreError> {
        let io = |source| StoreError::io("read segment", segment.path(), source);
        let file = segment.file(self.disk.as_ref())?;
        let offset = physical - segment.base;
        let mut entry = vec![0; HEADER_BYTES];
        let read = file.read_at(&mut entry, offset).map_err(io)?;
        let (header, crc) = match Header::decode(&entry[..read]) {
            Ok(decoded) if decoded.0.physical_offset == physical => decoded,
            _ => return Ok(None),
        };
        entry.resize(header.total_bytes as usize, 0);
        let read = file
            .read_at(&mut entry[HEADER_BYTES..], offset + HEADER_BYTES as u64)
            .map_err(io)?;
        let is_whole = read == entry.len() - HEADER_BYTES
            && crc32c::crc32c(&entry[HEADER_BYTES..]) == header.payload_crc;
        Ok(is_whole.then_some((header, crc, entry)))
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
    )
}
