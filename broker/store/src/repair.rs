//! Owns mending a damaged range: bytes of peers are taken only as far as they continue the log from
//! the last whole entry before the damage, and are written only once they reach an anchor, which is
//! the first place behind the damage where this node knows the CRC of the header before. Then they
//! are what stood here, and nothing else (S2).
//!
//! Until that is proven they are gathered in a spool file. A crash leaves the damage as it was, or
//! some of it overwritten with the right bytes, which the next start tells apart entry by entry.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::behind::SECTOR_BYTES;
use crate::disk::{Disk, DiskFile};
use crate::error::StoreError;
use crate::range::RangeRequest;
use crate::record::{HEADER_BYTES, Header};
use crate::segment::{Cursor, SCAN_BYTES, begins_segment, file_name};

/// Name of the spool file. Left behind by a crash, the next start removes it.
pub(crate) const SPOOL_NAME: &str = "repair.new";
/// Places tried as the end of the damage: bytes that only look like an entry may come first.
pub(crate) const ANCHORS_MAX: usize = 16;

/// A place behind the damage where the log goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Anchor {
    pub(crate) physical: u64,
    /// CRC of the header before it.
    pub(crate) crc: u32,
}

/// A range of the log that is damaged, and how bytes for it are recognised as the right ones.
#[derive(Debug, Clone)]
pub struct Damage {
    /// After the last whole entry.
    pub(crate) from: Cursor,
    /// Ascending, at least one.
    pub(crate) anchors: Vec<Anchor>,
    pub(crate) reason: String,
    /// Where entries go to.
    pub(crate) layout: Layout,
}

/// The segment files of a log.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
    pub(crate) segment_bytes: u64,
    /// Bases, ascending, each with the address where its file, or at most the next one, ends.
    pub(crate) files: Vec<(u64, u64)>,
}

/// Part of a mended range that lies in one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) base: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// What came of bytes from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// They continue the log; more are needed.
    More,
    /// The range is complete and proven.
    Proven,
    /// They are not this log's: everything taken so far is dropped.
    Wrong,
}

/// Gathers the right bytes for a [`Damage`].
#[derive(Debug)]
pub struct Mender {
    disk: Arc<dyn Disk>,
    damage: Damage,
    spool: Arc<dyn DiskFile>,
    cursor: Cursor,
    /// The beginning of an entry whose end is not here yet.
    pending: Vec<u8>,
    pieces: Vec<Piece>,
    anchor: usize,
}

impl Damage {
    /// Address of the first damaged entry.
    pub fn from_physical(&self) -> u64 {
        self.from.physical
    }

    /// Address where the log goes on, as far as can be told before it is mended.
    pub fn to_physical(&self) -> u64 {
        self.anchors
            .first()
            .map_or(self.from.physical, |anchor| anchor.physical)
    }

    /// What is wrong there.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl Mender {
    /// Begins with nothing.
    pub fn new(disk: Arc<dyn Disk>, damage: Damage) -> Result<Self, StoreError> {
        let path = damage.layout.dir.join(SPOOL_NAME);
        let spool = disk
            .create(&path)
            .map_err(|source| StoreError::io("create", &path, source))?;
        Ok(Self {
            disk,
            cursor: damage.from.clone(),
            damage,
            spool,
            pending: Vec::new(),
            pieces: Vec::new(),
            anchor: 0,
        })
    }

    /// The range.
    pub fn damage(&self) -> &Damage {
        &self.damage
    }

    /// What is needed next.
    pub fn wanted(&self) -> RangeRequest {
        RangeRequest {
            physical: self.cursor.physical,
            previous_crc: self.cursor.crc,
            skip: self.pending.len() as u32,
        }
    }

    /// Bytes of whole entries taken so far.
    pub fn bytes(&self) -> u64 {
        self.cursor.physical - self.damage.from.physical
    }

    /// Drops what was taken.
    pub fn start_again(&mut self) {
        self.cursor = self.damage.from.clone();
        self.pending.clear();
        self.pieces.clear();
        self.anchor = 0;
    }

    /// Takes what a peer gave for [`Self::wanted`].
    pub fn take(&mut self, bytes: &[u8]) -> Result<Taken, StoreError> {
        self.pending.extend_from_slice(bytes);
        let mut used = 0;
        let taken = loop {
            match self.next_entry(used) {
                Next::Incomplete => break Taken::More,
                Next::Wrong => break Taken::Wrong,
                Next::Entry(header, crc) => {
                    let end = used + header.total_bytes as usize;
                    self.keep(&header, used..end)?;
                    self.cursor = Cursor {
                        physical: header.end_physical(),
                        crc,
                        next_index: Some(header.id.index + 1),
                        last: Some(header.id),
                    };
                    used = end;
                }
            }
            match self.at_anchor() {
                Some(Taken::More) | None => {}
                Some(end) => break end,
            }
        };
        self.pending.drain(..used);
        if taken == Taken::Wrong {
            self.start_again();
        }
        Ok(taken)
    }

    /// The entry at `from` of what is pending, if it is one that continues the log.
    fn next_entry(&self, from: usize) -> Next {
        let rest = &self.pending[from..];
        if rest.len() < HEADER_BYTES {
            return Next::Incomplete;
        }
        let Ok((header, crc)) = Header::decode(rest) else {
            return Next::Wrong;
        };
        let cursor = &self.cursor;
        let follows = header.physical_offset == cursor.physical
            && header.previous_crc == cursor.crc
            && cursor
                .next_index
                .is_none_or(|index| index == header.id.index)
            && cursor.last.is_none_or(|last| header.id.term >= last.term);
        if !follows {
            return Next::Wrong;
        }
        let Some(payload) = rest.get(HEADER_BYTES..header.total_bytes as usize) else {
            return Next::Incomplete;
        };
        if crc32c::crc32c(payload) != header.payload_crc {
            return Next::Wrong;
        }
        Next::Entry(header, crc)
    }

    fn keep(&mut self, header: &Header, entry: std::ops::Range<usize>) -> Result<(), StoreError> {
        let (from, to) = (header.physical_offset, header.end_physical());
        let offset = from - self.damage.from.physical;
        self.spool
            .write_all_at(&self.pending[entry], offset)
            .map_err(|source| StoreError::io("write", self.spool_path(), source))?;
        let base = self.base_of(from, header.total_bytes.into());
        match self.pieces.last_mut() {
            Some(last) if last.base == base => last.to = to,
            _ => self.pieces.push(Piece { base, from, to }),
        }
        Ok(())
    }

    /// The file of the next entry. A missing one is made where its first entry has to begin it.
    fn base_of(&self, physical: u64, total_bytes: u64) -> u64 {
        let Layout {
            files,
            segment_bytes,
            ..
        } = &self.damage.layout;
        let after = files.partition_point(|(base, _)| *base <= physical);
        let known = after.checked_sub(1).map(|at| files[at]);
        if let Some((base, end)) = known
            && (physical == base || physical < end)
        {
            return base;
        }
        let before = self.pieces.last().map(|piece| piece.base);
        match before.max(known.map(|(base, _)| base)) {
            Some(base) if !begins_segment(physical, total_bytes, *segment_bytes) => base,
            _ => physical,
        }
    }

    /// Whether the cursor has come to an anchor; `None` before the next one.
    fn at_anchor(&mut self) -> Option<Taken> {
        while let Some(anchor) = self.damage.anchors.get(self.anchor) {
            if anchor.physical > self.cursor.physical {
                return None;
            }
            if anchor.physical == self.cursor.physical && anchor.crc == self.cursor.crc {
                return Some(Taken::Proven);
            }
            self.anchor += 1;
        }
        Some(Taken::Wrong)
    }

    /// Writes a proven range where it belongs; durable on return.
    pub(crate) fn write(&self) -> Result<(), StoreError> {
        for piece in &self.pieces {
            let path = self.damage.layout.dir.join(file_name(piece.base));
            let io = |source| StoreError::io("repair segment", &path, source);
            let is_new = !self.disk.exists(&path).map_err(io)?;
            let file = if is_new {
                self.disk.create(&path).map_err(io)?
            } else {
                self.disk.open(&path).map_err(io)?
            };
            self.write_piece(*piece, |bytes, physical| {
                file.write_all_at(bytes, physical - piece.base).map_err(io)
            })?;
            file.sync_data().map_err(io)?;
            if is_new {
                self.sync_dir()?;
            }
        }
        self.remove_spool()
    }

    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Hands a piece on in steps.
    pub(crate) fn write_piece(
        &self,
        piece: Piece,
        mut write: impl FnMut(&[u8], u64) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut buffer = vec![0; SCAN_BYTES];
        let mut at = piece.from;
        while at < piece.to {
            // Whole sectors: one that cannot be read must be written as a whole.
            let inside = (at - piece.base) % SECTOR_BYTES;
            let step = (piece.to - at).min(SCAN_BYTES as u64 - inside) as usize;
            self.spool
                .read_exact_at(&mut buffer[..step], at - self.damage.from.physical)
                .map_err(|source| StoreError::io("read", self.spool_path(), source))?;
            write(&buffer[..step], at)?;
            at += step as u64;
        }
        Ok(())
    }

    /// Removes the spool file.
    pub(crate) fn remove_spool(&self) -> Result<(), StoreError> {
        crate::cut::remove_if_there(self.disk.as_ref(), &self.spool_path())
    }

    fn spool_path(&self) -> PathBuf {
        self.damage.layout.dir.join(SPOOL_NAME)
    }

    fn sync_dir(&self) -> Result<(), StoreError> {
        let dir: &Path = &self.damage.layout.dir;
        self.disk
            .sync_dir(dir)
            .map_err(|source| StoreError::io("sync", dir, source))
    }
}

enum Next {
    Incomplete,
    Wrong,
    Entry(Header, u32),
}
