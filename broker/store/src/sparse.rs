//! Owns the sparse index of one segment: about every 64 KiB one point (index, physical offset), so
//! that a lookup by index reads at most that much before the entry it wants. Derived data: built
//! while entries are appended or recovered, or by walking headers; a sealed segment keeps it in a
//! sidecar file `<base>.sparse`, which may be lost or stale without harm.

use crate::error::StoreError;
use crate::record::{Header, u32_at, u64_at};

/// Distance between two points, in bytes.
pub(crate) const STEP_BYTES: u64 = 64 * 1024;

const MAGIC_VERSION: [u8; 4] = *b"RMX\x01";
const POINT_BYTES: usize = 16;
const HEAD_BYTES: usize = 24;

/// Where one entry begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) index: u64,
    pub(crate) physical: u64,
}

impl Point {
    /// Where the entry after this one begins.
    pub(crate) fn behind(header: &Header) -> Self {
        Self {
            index: header.id.index + 1,
            physical: header.end_physical(),
        }
    }
}

/// Points in ascending order, each at least [`STEP_BYTES`] after the one before, or behind damage.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Sparse {
    points: Vec<Point>,
}

impl Sparse {
    /// Takes note of an entry; entries come in order.
    pub(crate) fn note(&mut self, index: u64, physical: u64) {
        if self
            .points
            .last()
            .is_none_or(|last| physical >= last.physical + STEP_BYTES)
        {
            self.points.push(Point { index, physical });
        }
    }

    /// Takes note of the first entry behind a damaged place: nothing leads there from before.
    pub(crate) fn note_after_gap(&mut self, point: Point) {
        self.points.push(point);
    }

    /// The last point at or before `index`, unless the noted part begins behind it.
    pub(crate) fn at_or_before(&self, index: u64) -> Option<Point> {
        let after = self.points.partition_point(|point| point.index <= index);
        after.checked_sub(1).map(|at| self.points[at])
    }

    /// The last point at or before an address, unless the noted part begins behind it.
    pub(crate) fn at_or_before_physical(&self, physical: u64) -> Option<Point> {
        let after = self
            .points
            .partition_point(|point| point.physical <= physical);
        after.checked_sub(1).map(|at| self.points[at])
    }

    /// The first point behind an address.
    pub(crate) fn after_physical(&self, physical: u64) -> Option<Point> {
        let after = self
            .points
            .partition_point(|point| point.physical <= physical);
        self.points.get(after).copied()
    }

    /// The first point at or after `index`: an upper bound for what must be read to reach it.
    pub(crate) fn at_or_after(&self, index: u64) -> Option<Point> {
        let at = self.points.partition_point(|point| point.index < index);
        self.points.get(at).copied()
    }

    /// The first noted point.
    pub(crate) fn first(&self) -> Option<Point> {
        self.points.first().copied()
    }

    /// Puts points found by a walk over the part before the first noted one in front.
    pub(crate) fn prepend(&mut self, mut front: Sparse) {
        let Some(last) = front.points.last().copied() else {
            return;
        };
        let from = self
            .points
            .partition_point(|point| point.physical <= last.physical);
        front.points.extend_from_slice(&self.points[from..]);
        *self = front;
    }

    /// Forgets points at or after `physical`.
    pub(crate) fn cut(&mut self, physical: u64) {
        self.points.retain(|point| point.physical < physical);
    }

    /// The sidecar of a sealed segment that covers `base..end`.
    pub(crate) fn encode(&self, base: u64, end: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.points.len() * POINT_BYTES + 4);
        bytes.extend_from_slice(&MAGIC_VERSION);
        bytes.extend_from_slice(&(self.points.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&base.to_le_bytes());
        bytes.extend_from_slice(&end.to_le_bytes());
        for point in &self.points {
            bytes.extend_from_slice(&point.index.to_le_bytes());
            bytes.extend_from_slice(&point.physical.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// Reads a sidecar; an error (the caller walks the headers instead) unless it is whole,
    /// describes `base..end` and begins with `first_index`.
    pub(crate) fn decode(
        bytes: &[u8],
        base: u64,
        end: u64,
        first_index: u64,
    ) -> Result<Self, StoreError> {
        let fail = |reason: &str| Err(StoreError::decode("sparse index", reason));
        if bytes.len() < HEAD_BYTES + 4 || bytes[..4] != MAGIC_VERSION {
            return fail("cut short, or magic or version is unknown");
        }
        let (body, crc) = bytes.split_at(bytes.len() - 4);
        if crc32c::crc32c(body) != u32_at(crc, 0) {
            return fail("the CRC does not match");
        }
        if (u64_at(body, 8), u64_at(body, 16)) != (base, end) {
            return fail("it describes another segment");
        }
        let rows = &body[HEAD_BYTES..];
        if rows.len() != (u32_at(body, 4) as usize).saturating_mul(POINT_BYTES) {
            return fail("the length does not match");
        }
        let points: Vec<Point> = rows
            .chunks_exact(POINT_BYTES)
            .map(|row| Point {
                index: u64_at(row, 0),
                physical: u64_at(row, 8),
            })
            .collect();
        let ordered = points
            .windows(2)
            .all(|pair| pair[0].index < pair[1].index && pair[0].physical < pair[1].physical);
        let begins = points.first()
            == Some(&Point {
                index: first_index,
                physical: base,
            });
        if !ordered || !begins || points.last().is_some_and(|last| last.physical >= end) {
            return fail("the points are out of order");
        }
        Ok(Self { points })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_lookup_never_lands_more_than_one_step_before_the_entry() {
        let mut sparse = Sparse::default();
        for index in 0..10_000u64 {
            sparse.note(index, index * 100);
        }
        for index in 0..10_000u64 {
            let point = sparse.at_or_before(index).unwrap();
            assert!(point.index <= index && (index - point.index) * 100 < STEP_BYTES + 100);
        }
        assert_eq!(
            Sparse::decode(&sparse.encode(0, 1_000_000), 0, 1_000_000, 0).unwrap(),
            sparse
        );
    }

    proptest! {
        #[test]
        fn a_damaged_sidecar_is_refused(at in 0usize..100, bit in 0u8..8) {
            let mut sparse = Sparse::default();
            for index in 0..5u64 {
                sparse.note(index, index * STEP_BYTES);
            }
            let mut bytes = sparse.encode(0, 9 * STEP_BYTES);
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(Sparse::decode(&bytes, 0, 9 * STEP_BYTES, 0).is_err());
        }

        #[test]
        fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Sparse::decode(&bytes, 0, 1, 0);
        }
    }
}
