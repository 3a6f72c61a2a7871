//! Owns [`LogPosition`]: a point between two entries, as a checkpoint remembers it.

use crate::error::StoreError;
use crate::record::{LogId, u32_at, u64_at};

const MAGIC_VERSION: [u8; 4] = *b"RMP\x01";
const HEAD_BYTES: usize = 44;
const ID_BYTES: usize = 24;

/// The point after one entry. Enough to open the log from there, or to go on from there after a
/// snapshot was installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPosition {
    /// The last entry before this point.
    pub id: LogId,
    /// Address where that entry ends and the next begins.
    pub end_physical: u64,
    /// CRC of that entry's header; the next header carries it on.
    pub crc: u32,
    /// First stored entry of every term up to this point, ascending.
    pub term_starts: Vec<LogId>,
}

impl LogPosition {
    /// The bytes for a checkpoint; a CRC is left to the checkpoint.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.term_starts.len() * ID_BYTES);
        bytes.extend_from_slice(&MAGIC_VERSION);
        bytes.extend_from_slice(&self.crc.to_le_bytes());
        put_id(&mut bytes, &self.id);
        bytes.extend_from_slice(&self.end_physical.to_le_bytes());
        bytes.extend_from_slice(&(self.term_starts.len() as u32).to_le_bytes());
        for start in &self.term_starts {
            put_id(&mut bytes, start);
        }
        bytes
    }

    /// Reads what [`LogPosition::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let fail = |reason: &str| Err(StoreError::decode("log position", reason));
        if bytes.len() < HEAD_BYTES || bytes[..4] != MAGIC_VERSION {
            return fail("cut short, or magic or version is unknown");
        }
        let rows = &bytes[HEAD_BYTES..];
        if rows.len() != (u32_at(bytes, 40) as usize).saturating_mul(ID_BYTES) {
            return fail("the length does not match");
        }
        let id = id_at(bytes, 8);
        let term_starts: Vec<LogId> = rows
            .chunks_exact(ID_BYTES)
            .map(|row| id_at(row, 0))
            .collect();
        let ordered = term_starts
            .windows(2)
            .all(|pair| pair[0].index < pair[1].index);
        if !ordered || term_starts.last().is_some_and(|last| last.index > id.index) {
            return fail("the terms are out of order");
        }
        Ok(Self {
            id,
            end_physical: u64_at(bytes, 32),
            crc: u32_at(bytes, 4),
            term_starts,
        })
    }
}

fn put_id(bytes: &mut Vec<u8>, id: &LogId) {
    for number in [id.term, id.node, id.index] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
}

fn id_at(bytes: &[u8], at: usize) -> LogId {
    LogId {
        term: u64_at(bytes, at),
        node: u64_at(bytes, at + 8),
        index: u64_at(bytes, at + 16),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_position_comes_back_as_it_was() {
        let id = |term, index| LogId {
            term,
            node: 1,
            index,
        };
        let position = LogPosition {
            id: id(4, 100),
            end_physical: 1 << 40,
            crc: 0xfeed,
            term_starts: vec![id(1, 0), id(4, 77)],
        };
        assert_eq!(LogPosition::decode(&position.encode()).unwrap(), position);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = LogPosition::decode(&bytes);
            let marked = [&MAGIC_VERSION[..], &bytes].concat();
            let _ = LogPosition::decode(&marked);
        }
    }
}
