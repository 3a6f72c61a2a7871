//! Owns the parts of segments that were read and verified last. Consumers that read old messages
//! want a few records here and there, and what lies between them next, often for another queue:
//! without the memory of it every record would cost the reading and the CRCs of 64 KiB.

use crate::sync::Mutex;
use std::collections::VecDeque;

use bytes::Bytes;

/// Memory for blocks. Unit: bytes. A block has about 64 KiB, so that 128 places of the log can be
/// read at a time.
const BYTES_MAX: usize = 8 * 1024 * 1024;
/// Larger blocks hold one large entry, which is hardly read twice. Unit: bytes.
pub(crate) const BLOCK_BYTES_MAX: u64 = 512 * 1024;

/// Whole verified entries, one after the other.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    /// Address of the first byte.
    pub(crate) start: u64,
    pub(crate) bytes: Bytes,
}

impl Block {
    /// The bytes `from..to`, or as many of them as the block has; `None` when it lacks the first.
    pub(crate) fn part(&self, from: u64, to: u64) -> Option<Bytes> {
        let from = usize::try_from(from.checked_sub(self.start)?).ok()?;
        let to = usize::try_from(to - self.start).ok()?;
        let to = to.min(self.bytes.len());
        (from < to).then(|| self.bytes.slice(from..to))
    }
}

/// The blocks read last. Those of an older epoch than the newest one asked for are forgotten: the
/// log may have been cut and other entries written at their addresses.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    epoch: u64,
    bytes: usize,
    /// The one used last is at the end.
    blocks: VecDeque<Block>,
}

impl Blocks {
    /// The bytes `from..to` of the log of that epoch, or the first of them.
    pub(crate) fn part(&self, epoch: u64, from: u64, to: u64) -> Option<Bytes> {
        let mut held = self.held.lock().expect("a panic ends the process");
        if !held.is_of(epoch) {
            return None;
        }
        let (at, part) = (held.blocks.iter().enumerate().rev())
            .find_map(|(at, block)| Some((at, block.part(from, to)?)))?;
        if let Some(block) = held.blocks.remove(at) {
            held.blocks.push_back(block);
        }
        Some(part)
    }

    /// Whether all bytes `from..to` of the log of that epoch are held.
    pub(crate) fn cover(&self, epoch: u64, from: u64, to: u64) -> bool {
        let held = self.held.lock().expect("a panic ends the process");
        if epoch != held.epoch {
            return false;
        }
        let mut next = from;
        while next < to {
            // The newest ones are asked for most.
            let blocks = held.blocks.iter().rev();
            let Some(part) = blocks.into_iter().find_map(|block| block.part(next, to)) else {
                return false;
            };
            next += part.len() as u64;
        }
        true
    }

    /// Keeps a block of the log of that epoch in place of one that begins at the same address.
    pub(crate) fn put(&self, epoch: u64, block: Block) {
        let mut held = self.held.lock().expect("a panic ends the process");
        if !held.is_of(epoch) {
            return;
        }
        let same = held.blocks.iter().position(|one| one.start == block.start);
        if let Some(shorter) = same.and_then(|at| held.blocks.remove(at)) {
            held.bytes -= shorter.bytes.len();
        }
        held.bytes += block.bytes.len();
        held.blocks.push_back(block);
        while held.bytes > BYTES_MAX
            && let Some(oldest) = held.blocks.pop_front()
        {
            held.bytes -= oldest.bytes.len();
        }
    }
}

impl Held {
    /// Moves on to an epoch; false when it is over already.
    fn is_of(&mut self, epoch: u64) -> bool {
        if epoch > self.epoch {
            *self = Self {
                epoch,
                ..Self::default()
            };
        }
        epoch == self.epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(start: u64, len: usize) -> Block {
        let bytes = vec![start as u8; len].into();
        Block { start, bytes }
    }

    #[test]
    fn a_part_is_given_as_far_as_its_block_goes() {
        let blocks = Blocks::default();
        blocks.put(0, block(100, 50));
        assert_eq!(blocks.part(0, 100, 101).unwrap().len(), 1);
        assert_eq!(blocks.part(0, 120, 500).unwrap().len(), 30);
        assert!(blocks.cover(0, 100, 150) && !blocks.cover(0, 100, 151));
        assert!(!blocks.cover(0, 99, 110) && !blocks.cover(1, 100, 110));
        blocks.put(0, block(150, 10));
        assert!(blocks.cover(0, 120, 160));
        for outside in [99, 160] {
            assert!(blocks.part(0, outside, 200).is_none());
        }
        // The last block of a log that grows is read again, and longer.
        blocks.put(0, block(100, 90));
        assert_eq!(blocks.part(0, 120, 500).unwrap().len(), 70);
    }

    #[test]
    fn those_used_longest_ago_make_room() {
        let blocks = Blocks::default();
        let size = BYTES_MAX / 4;
        let starts = [0, 1, 2, 3, 4].map(|nth| nth * size as u64);
        for start in &starts[..4] {
            blocks.put(0, block(*start, size));
        }
        blocks.part(0, 0, 1).unwrap();
        blocks.put(0, block(starts[4], size));
        let held = starts.map(|start| blocks.part(0, start, start + 1).is_some());
        assert_eq!(held, [true, false, true, true, true]);
    }

    #[test]
    fn after_a_cut_nothing_of_before_is_held_or_taken() {
        let blocks = Blocks::default();
        blocks.put(0, block(0, 10));
        assert!(blocks.part(1, 0, 1).is_none());
        // Of a read that began before the cut.
        blocks.put(0, block(0, 10));
        assert!(blocks.part(0, 0, 1).is_none());
        assert!(blocks.part(1, 0, 1).is_none());
        blocks.put(1, block(0, 10));
        assert!(blocks.part(1, 0, 1).is_some());
    }
}
