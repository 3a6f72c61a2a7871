//! Owns the newest entries in memory. Appended entries are readable here at once; they may leave
//! only after they were written to their segment.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::record::{HEADER_BYTES, StoredEntry};

/// What an entry costs besides its payload, roughly: header, bookkeeping, share of the buffer.
const ENTRY_OVERHEAD_BYTES: u64 = 256;

/// One entry of the tail.
#[derive(Debug, Clone)]
pub(crate) struct TailEntry {
    pub(crate) header: [u8; HEADER_BYTES],
    pub(crate) header_crc: u32,
    pub(crate) entry: StoredEntry,
    /// Number of the append; grows by one per entry over the life of the process, also across
    /// truncations, so that "written" needs no address.
    pub(crate) sequence: u64,
}

/// Contiguous entries up to the end of the log; possibly none.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    entries: VecDeque<TailEntry>,
    bytes: u64,
}

impl Tail {
    /// Adds the newest entry.
    pub(crate) fn push(&mut self, entry: TailEntry) {
        self.bytes += cost(&entry);
        self.entries.push_back(entry);
    }

    /// Drops the oldest entries while the tail costs more than `bytes_max` and they are written.
    pub(crate) fn evict(&mut self, bytes_max: u64, written_sequence: u64) {
        while self.bytes > bytes_max {
            let Some(oldest) = self.entries.front() else {
                return;
            };
            if oldest.sequence > written_sequence {
                return;
            }
            self.bytes -= cost(oldest);
            self.entries.pop_front();
        }
    }

    /// Drops entries at or after `physical` (a truncation).
    pub(crate) fn cut_from(&mut self, physical: u64) {
        while self
            .entries
            .back()
            .is_some_and(|last| last.entry.physical_offset >= physical)
        {
            if let Some(last) = self.entries.pop_back() {
                self.bytes -= cost(&last);
            }
        }
    }

    /// Drops entries before `physical` (a purge).
    pub(crate) fn cut_before(&mut self, physical: u64) {
        while self
            .entries
            .front()
            .is_some_and(|first| first.entry.physical_offset < physical)
        {
            if let Some(first) = self.entries.pop_front() {
                self.bytes -= cost(&first);
            }
        }
    }

    /// Address of the oldest entry here.
    pub(crate) fn start_physical(&self) -> Option<u64> {
        self.entries
            .front()
            .map(|first| first.entry.physical_offset)
    }

    /// Index of the oldest entry here.
    pub(crate) fn first_index(&self) -> Option<u64> {
        self.entries.front().map(|first| first.entry.id.index)
    }

    /// The oldest entry here.
    pub(crate) fn first(&self) -> Option<&TailEntry> {
        self.entries.front()
    }

    /// The entry with this index.
    pub(crate) fn get(&self, index: u64) -> Option<&TailEntry> {
        let at = index.checked_sub(self.first_index()?)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    /// Entries from `from_index` on; none when that one is not here.
    pub(crate) fn iter_from(&self, from_index: u64) -> impl Iterator<Item = &StoredEntry> {
        let at = self
            .first_index()
            .and_then(|first| from_index.checked_sub(first))
            .and_then(|at| usize::try_from(at).ok())
            .unwrap_or(usize::MAX);
        self.entries
            .range(at.min(self.entries.len())..)
            .map(|tail| &tail.entry)
    }

    /// The bytes `physical..physical + len`, which must lie in this tail. Without a copy when they
    /// lie in one payload, as the bytes of messages do.
    pub(crate) fn bytes(&self, physical: u64, len: usize) -> Option<Bytes> {
        let after = self
            .entries
            .partition_point(|tail| tail.entry.physical_offset <= physical);
        let at = after.checked_sub(1)?;
        let entry = &self.entries[at].entry;
        let end = physical + len as u64;
        if physical >= entry.payload_physical() && end <= entry.end_physical() {
            let from = usize::try_from(physical - entry.payload_physical()).ok()?;
            return Some(entry.payload.slice(from..from + len));
        }
        let mut joined = Vec::with_capacity(len);
        let mut position = physical;
        for tail in self.entries.range(at..) {
            if position == end {
                break;
            }
            append_overlap(
                &mut joined,
                &tail.header,
                tail.entry.physical_offset,
                position,
                end,
            );
            position = physical + joined.len() as u64;
            append_overlap(
                &mut joined,
                &tail.entry.payload,
                tail.entry.payload_physical(),
                position,
                end,
            );
            position = physical + joined.len() as u64;
        }
        (position == end).then(|| Bytes::from(joined))
    }
}

/// Appends the part of `piece` (which lies at address `piece_at`) within `position..end`.
fn append_overlap(joined: &mut Vec<u8>, piece: &[u8], piece_at: u64, position: u64, end: u64) {
    let piece_end = piece_at + piece.len() as u64;
    if position < piece_at || position >= piece_end {
        return;
    }
    let from = (position - piece_at) as usize;
    let to = (end.min(piece_end) - piece_at) as usize;
    joined.extend_from_slice(&piece[from..to.max(from)]);
}

fn cost(entry: &TailEntry) -> u64 {
    entry.entry.payload.len() as u64 + ENTRY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{EntryKind, LogId};

    fn tail_of(payloads: &[&'static [u8]]) -> (Tail, Vec<u8>) {
        let mut tail = Tail::default();
        let mut all = Vec::new();
        for (index, payload) in payloads.iter().enumerate() {
            let entry = StoredEntry {
                id: LogId {
                    term: 1,
                    node: 1,
                    index: index as u64 + 5,
                },
                kind: EntryKind::Normal,
                count: 1,
                payload: Bytes::from_static(payload),
                physical_offset: 1000 + all.len() as u64,
            };
            let header = [index as u8 + 1; HEADER_BYTES];
            all.extend_from_slice(&header);
            all.extend_from_slice(payload);
            tail.push(TailEntry {
                header,
                header_crc: 0,
                entry,
                sequence: index as u64 + 1,
            });
        }
        (tail, all)
    }

    #[test]
    fn any_range_of_bytes_equals_the_flat_log() {
        let (tail, all) = tail_of(&[b"abc", b"", b"defgh"]);
        for from in 0..all.len() {
            for to in from..=all.len() {
                let read = tail.bytes(1000 + from as u64, to - from);
                assert_eq!(read.as_deref(), Some(&all[from..to]), "{from}..{to}");
            }
        }
        assert_eq!(tail.bytes(999, 1), None);
        assert_eq!(tail.bytes(1000, all.len() + 1), None);
    }

    #[test]
    fn entries_that_are_not_written_stay_in_memory() {
        let (mut tail, _) = tail_of(&[b"abc", b"def", b"ghi"]);
        tail.evict(0, 2);
        assert_eq!(tail.first_index(), Some(7));
        tail.evict(0, 3);
        assert_eq!(tail.first_index(), None);
    }
}
