//! Reads what the broker saves in its vote file out of the changes of a disk: votes, and whether the
//! node keeps back its vote. The form is that of `broker/store/src/vote.rs`.

use super::disk::{Change, FileId};

const MAGIC: &[u8] = b"RMV\x01";
const BLOCK_BYTES: u64 = 4_096;
const SLOT_BYTES: usize = 512;
const HEAD_BYTES: usize = 16;
/// Blocks of each kind; the kinds are votes, hints and marks.
const COPIES: u64 = 2;
/// Kinds of content, in the order of the file.
pub(super) const KINDS: u64 = 3;
/// Marks of a node that keeps back its vote have one more number.
const GUARDED_MARKS_BYTES: usize = 52;

/// A vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vote {
    /// Term.
    pub term: u64,
    /// Raft id of the node that is voted for.
    pub node: u64,
    /// Whether a quorum voted so: the node leads.
    pub committed: bool,
}

/// What is durable from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saved {
    /// A vote.
    Vote(Vote),
    /// Whether the node keeps back its vote.
    Guarded(bool),
}

/// Follows the changes of one disk.
#[derive(Debug, Default)]
pub struct VoteFile {
    pending: Vec<(FileId, Saved)>,
}

impl VoteFile {
    /// Takes in the next change; what became durable by it.
    pub fn see(&mut self, change: &Change) -> Vec<Saved> {
        match change {
            Change::Write(id, offset, bytes) => {
                let saved = parse(*offset, bytes);
                self.pending.extend(saved.map(|saved| (*id, saved)));
                Vec::new()
            }
            Change::Sync(id) if !self.pending.is_empty() => {
                let (durable, left) = (self.pending.drain(..)).partition(|(own, _)| own == id);
                self.pending = left;
                let durable: Vec<(FileId, Saved)> = durable;
                durable.into_iter().map(|(_, saved)| saved).collect()
            }
            Change::SyncFailed(id) => {
                self.pending.retain(|(own, _)| own != id);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// The process has ended: what was under way may be lost.
    pub fn restart(&mut self) {
        self.pending.clear();
    }
}

fn parse(offset: u64, slot: &[u8]) -> Option<Saved> {
    if !is_whole(slot) || !offset.is_multiple_of(BLOCK_BYTES) {
        return None;
    }
    let content = content(slot)?;
    match offset / BLOCK_BYTES / COPIES {
        0 => {
            let (term, rest) = content.split_first_chunk()?;
            let (node, committed) = rest.split_first_chunk()?;
            Some(Saved::Vote(Vote {
                term: u64::from_le_bytes(*term),
                node: u64::from_le_bytes(*node),
                committed: *committed == [1],
            }))
        }
        2 => Some(Saved::Guarded(
            content.len() == GUARDED_MARKS_BYTES && content[48] != 0,
        )),
        _ => None,
    }
}

fn content(slot: &[u8]) -> Option<&[u8]> {
    let length = slot.get(4..8)?.try_into().ok()?;
    slot.get(HEAD_BYTES..HEAD_BYTES + u32::from_le_bytes(length) as usize)
}

fn is_whole(slot: &[u8]) -> bool {
    let Some((body, crc)) = slot.split_last_chunk::<4>() else {
        return false;
    };
    slot.len() == SLOT_BYTES
        && slot.starts_with(MAGIC)
        && crc32c::crc32c(body) == u32::from_le_bytes(*crc)
}

/// Address of one copy of one kind of content, if the file holds both copies whole and equal: only
/// then is one enough.
pub(super) fn spare_copy(file: &[u8], kind: u64, copy: u64) -> Option<u64> {
    let at = |copy: u64| {
        let begin = ((kind * COPIES + copy) * BLOCK_BYTES) as usize;
        file.get(begin..begin + SLOT_BYTES)
    };
    let (one, other) = (at(0)?, at(1)?);
    let equal = content(one) == content(other) && is_whole(one) && is_whole(other);
    equal.then_some((kind * COPIES + copy % COPIES) * BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use raftmq_store::{CommitLog, LogConfig};

    use super::super::disk::SimDisk;
    use super::*;

    #[test]
    fn a_vote_that_the_store_saves_is_seen_when_it_is_durable() {
        let disk = SimDisk::recording();
        let config = LogConfig::new(Path::new("/log"));
        let (log, ..) = CommitLog::open(Arc::new(disk.clone()), config, None).unwrap();
        disk.take_changes();
        let mut bytes = [0; 17];
        (bytes[0], bytes[8], bytes[16]) = (7, 3, 1);
        log.save_vote(&bytes).unwrap();
        let vote = Saved::Vote(Vote {
            term: 7,
            node: 3,
            committed: true,
        });
        let changes = disk.take_changes();
        let mut file = VoteFile::default();
        let seen: Vec<Saved> = changes.iter().flat_map(|change| file.see(change)).collect();
        assert_eq!(seen, [vote, vote], "two copies");
        let mut file = VoteFile::default();
        let written = |change: &&Change| matches!(change, Change::Write(..));
        for change in changes.iter().filter(written) {
            assert_eq!(file.see(change), []);
        }
        let files = disk.files();
        let (path, content) = files
            .iter()
            .find(|(path, _)| path.ends_with("vote"))
            .unwrap();
        assert_eq!(spare_copy(content, 0, 1), Some(4_096));
        assert!(disk.flip_bit(path, 4_096 + 20, 1));
        let damaged = disk.files();
        let (_, content) = damaged.iter().find(|(other, _)| other == path).unwrap();
        assert_eq!(spare_copy(content, 0, 0), None);
    }

    #[test]
    fn marks_tell_whether_a_vote_is_kept_back() {
        for (length, guarded) in [(48, false), (52, true)] {
            let mut slot = vec![0; SLOT_BYTES];
            slot[..4].copy_from_slice(MAGIC);
            slot[4] = length;
            slot[HEAD_BYTES + 48] = 1;
            let crc = crc32c::crc32c(&slot[..SLOT_BYTES - 4]);
            slot[SLOT_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(parse(4 * 4_096, &slot), Some(Saved::Guarded(guarded)));
            assert_eq!(parse(2 * 4_096, &slot), None, "hints");
        }
    }
}
