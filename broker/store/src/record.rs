//! Owns the bytes of one log entry. All numbers are little endian; the golden test freezes them.
//!
//! ```text
//!   0        4        8                16               24               32
//!   +--------+--------+----------------+----------------+----------------+
//!   | magic, | total  | term           | index          | physical       |
//!   | version| length |                |                | offset         |
//!   +--------+--------+----------------+----------------+----------------+
//!   32               40       44 45   48       52       56       60      64
//!   +----------------+--------+--+----+--------+--------+--------+--------+
//!   | node           | count  |k.| 0  | payload| previous 0      | header |
//!   |                |        |  |    | crc    | header |        | crc    |
//!   |                |        |  |    |        | crc    |        |        |
//!   +----------------+--------+--+----+--------+--------+--------+--------+
//!   | payload ...
//! ```
//! The length counts header and payload. The header CRC covers bytes 0..60, and so, through the
//! payload CRC and the CRC of the header before, the whole log up to the end of this payload: two
//! replicas with the same header CRC at an address hold the same bytes below it.

use bytes::Bytes;

/// Size of the header before each payload, in bytes.
pub const HEADER_BYTES: usize = 64;

/// Largest payload of an entry, in bytes. Bounds the memory one damaged length can ask for.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// `RMQ` and the version of the format.
pub(crate) const MAGIC_VERSION: [u8; 4] = *b"RMQ\x01";

/// Identity of a Raft log entry: the term and node id of the leader that made it, and its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogId {
    /// Raft term of the leader that made the entry.
    pub term: u64,
    /// Node id of that leader.
    pub node: u64,
    /// Position in the Raft log; the first entry has index 0.
    pub index: u64,
}

impl LogId {
    /// Whether both entries were made by the same leader in the same term.
    pub(crate) fn same_leader(&self, other: &Self) -> bool {
        self.term == other.term && self.node == other.node
    }
}

impl std::fmt::Display for LogId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}-{}-{}", self.term, self.node, self.index)
    }
}

/// What an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// The empty entry a new leader commits first.
    Blank,
    /// A batch of commands.
    Normal,
    /// A membership of the Raft group.
    Membership,
}

impl EntryKind {
    fn code(self) -> u8 {
        match self {
            Self::Blank => 0,
            Self::Normal => 1,
            Self::Membership => 2,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Blank),
            1 => Some(Self::Normal),
            2 => Some(Self::Membership),
            _ => None,
        }
    }
}

/// An entry to append. Its physical offset and CRCs are assigned by the append, by the same rule
/// on every replica.
#[derive(Debug, Clone)]
pub struct NewEntry {
    /// Identity of the entry.
    pub id: LogId,
    /// What the payload is.
    pub kind: EntryKind,
    /// Number of commands in the payload; for people and metrics.
    pub count: u32,
    /// The content, at most [`PAYLOAD_BYTES_MAX`].
    pub payload: Bytes,
}

/// An entry read from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEntry {
    /// Identity of the entry.
    pub id: LogId,
    /// What the payload is.
    pub kind: EntryKind,
    /// Number of commands in the payload.
    pub count: u32,
    /// The content.
    pub payload: Bytes,
    /// Address of the entry's header; the payload begins [`HEADER_BYTES`] later.
    pub physical_offset: u64,
}

impl StoredEntry {
    /// Address of the first byte of the payload.
    pub fn payload_physical(&self) -> u64 {
        self.physical_offset + HEADER_BYTES as u64
    }

    /// Address one past the payload: where the next entry begins.
    pub fn end_physical(&self) -> u64 {
        self.payload_physical() + self.payload.len() as u64
    }
}

/// The header, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) total_bytes: u32,
    pub(crate) id: LogId,
    pub(crate) physical_offset: u64,
    pub(crate) count: u32,
    pub(crate) kind: EntryKind,
    pub(crate) payload_crc: u32,
    pub(crate) previous_crc: u32,
}

/// Why 64 bytes are not a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    /// All zeros: never written.
    Zero,
    /// Anything else; the text names the first thing that is wrong.
    Damaged(&'static str),
}

impl Header {
    /// The 64 bytes, and the CRC in their last four, which the next header carries on.
    pub(crate) fn encode(&self) -> ([u8; HEADER_BYTES], u32) {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC_VERSION);
        bytes[4..8].copy_from_slice(&self.total_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.id.term.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.id.index.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.physical_offset.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.id.node.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.count.to_le_bytes());
        bytes[44] = self.kind.code();
        bytes[48..52].copy_from_slice(&self.payload_crc.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.previous_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        (bytes, crc)
    }

    /// Reads a header and its CRC from the first 64 bytes of `bytes`.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, u32), HeaderFault> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(HeaderFault::Damaged("the header is cut short"));
        };
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(HeaderFault::Zero);
        }
        if bytes[..4] != MAGIC_VERSION {
            return Err(HeaderFault::Damaged("magic or version is unknown"));
        }
        let crc = u32_at(bytes, 60);
        if crc32c::crc32c(&bytes[..60]) != crc {
            return Err(HeaderFault::Damaged("the header's CRC does not match"));
        }
        let total_bytes = u32_at(bytes, 4);
        let bounds = HEADER_BYTES as u32..=(HEADER_BYTES + PAYLOAD_BYTES_MAX) as u32;
        if !bounds.contains(&total_bytes) {
            return Err(HeaderFault::Damaged("the length is out of range"));
        }
        let Some(kind) = EntryKind::from_code(bytes[44]) else {
            return Err(HeaderFault::Damaged("the kind is unknown"));
        };
        if bytes[45..48] != [0; 3] || bytes[56..60] != [0; 4] {
            return Err(HeaderFault::Damaged("reserved bytes are set"));
        }
        let header = Self {
            total_bytes,
            id: LogId {
                term: u64_at(bytes, 8),
                node: u64_at(bytes, 32),
                index: u64_at(bytes, 16),
            },
            physical_offset: u64_at(bytes, 24),
            count: u32_at(bytes, 40),
            kind,
            payload_crc: u32_at(bytes, 48),
            previous_crc: u32_at(bytes, 52),
        };
        Ok((header, crc))
    }

    /// Address where the next entry begins.
    pub(crate) fn end_physical(&self) -> u64 {
        self.physical_offset
            .saturating_add(u64::from(self.total_bytes))
    }
}

/// The little-endian number at `at`; the caller has checked the length.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

/// The little-endian number at `at`; the caller has checked the length.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> Header {
        Header {
            total_bytes: 64 + 5,
            id: LogId {
                term: 3,
                node: 2,
                index: 0x0102_0304,
            },
            physical_offset: 0x1122_3344_5566,
            count: 7,
            kind: EntryKind::Membership,
            payload_crc: crc32c::crc32c(b"hello"),
            previous_crc: 0xdead_beef,
        }
    }

    #[test]
    fn the_bytes_of_a_header_never_change() {
        let (bytes, crc) = example().encode();
        let text: Vec<String> = bytes
            .chunks(8)
            .map(|row| {
                row.iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect::<String>()
            })
            .collect();
        assert_eq!(
            text.join(" "),
            include_str!("../golden/entry_header.hex").trim()
        );
        assert_eq!(crc, u32_at(&bytes, 60));
        assert_eq!(Header::decode(&bytes), Ok((example(), crc)));
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let (bytes, _) = example().encode();
        for bit in 0..HEADER_BYTES * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&damaged).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Header::decode(&bytes);
        }
    }
}
