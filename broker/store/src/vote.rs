//! Owns the small file `vote`: the Raft vote, the durable marks of the log (what was purged, where
//! it begins) and the lazy hints (committed, synced). Each has two slots, written in turn:
//!
//! ```text
//!   block 0, 1   vote        block 2, 3   hints        block 4, 5   marks     (4 KiB blocks)
//!   slot: magic u32 | length u32 | sequence u64 | content (at most 488) | crc32c u32  = 512 B
//! ```
//! A slot is alone in its block, so a torn block harms one of the two. A durable save writes and
//! syncs one slot, then the other: afterwards either of the two may rot and the newest value is
//! still known, which matters because an older vote is a second vote in the same term. Hints that
//! are not synced go into one slot until it is synced, then into the other: were both under way, a
//! crash might tear both.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, DiskFile};
use crate::error::StoreError;
use crate::record::{LogId, u32_at, u64_at};

/// Largest vote, in bytes.
pub const VOTE_BYTES_MAX: usize = 64;

const FILE_NAME: &str = "vote";
const BLOCK_BYTES: u64 = 4096;
const SLOT_BYTES: usize = 512;
const HEAD_BYTES: usize = 16;
const MAGIC_VERSION: [u8; 4] = *b"RMV\x01";

/// What the log must remember for certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Marks {
    /// The last purged entry.
    pub(crate) purged: Option<LogId>,
    /// Address where the log begins: base of its first segment.
    pub(crate) start_physical: u64,
    /// CRC of the header before that address.
    pub(crate) start_crc: u32,
    /// A reset has begun: every segment found belongs to the log before it.
    pub(crate) resetting: bool,
    /// Entries that this node may have acknowledged are gone: no vote until they are back (S5).
    pub(crate) guarded: bool,
}

/// What helps at restart but may be old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Hints {
    /// The last entry known as committed.
    pub(crate) committed: Option<LogId>,
    /// Everything below this address was synced: damage there is corruption, not a torn tail.
    pub(crate) synced_physical: u64,
    /// At most this many bytes after the synced part were ever written without a sync.
    pub(crate) unsynced_bytes_max: u64,
}

/// The open file.
#[derive(Debug)]
pub(crate) struct VoteFile {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    vote: Option<Vec<u8>>,
    marks: Marks,
    hints: Hints,
    sequences: [u64; 3],
    /// The slot of the hints that may be under way; what the other one has is durable.
    lazy_slot: u64,
}

#[derive(Debug, Clone, Copy)]
enum Pair {
    Vote = 0,
    Hints = 1,
    Marks = 2,
}

/// Whether a log was ever opened in `dir`: its vote file is the first file that is made.
pub fn has_log(disk: &dyn Disk, dir: &Path) -> Result<bool, StoreError> {
    let path = dir.join(FILE_NAME);
    disk.exists(&path)
        .map_err(|source| StoreError::io("look for", &path, source))
}

impl VoteFile {
    /// Opens the file, or makes it when `may_create` (a folder without segments).
    pub(crate) fn open(disk: &dyn Disk, dir: &Path, may_create: bool) -> Result<Self, StoreError> {
        let path = dir.join(FILE_NAME);
        let io = |source| StoreError::io("open", &path, source);
        let whole_bytes = 6 * BLOCK_BYTES;
        let found = if disk.exists(&path).map_err(io)? {
            let file = disk.open(&path).map_err(io)?;
            (file.len().map_err(io)? >= whole_bytes).then_some(file)
        } else {
            None
        };
        let file = match found {
            Some(file) => file,
            // A file cut short was being made when the process ended.
            None if may_create => {
                let file = disk.create(&path).map_err(io)?;
                file.write_all_at(&vec![0; whole_bytes as usize], 0)
                    .map_err(io)?;
                file.sync_data().map_err(io)?;
                disk.sync_dir(dir).map_err(io)?;
                file
            }
            None => {
                return Err(corrupt(
                    "the file is missing or cut short, though a log exists",
                ));
            }
        };
        let mut opened = Self {
            path,
            file,
            vote: None,
            marks: Marks::default(),
            hints: Hints::default(),
            sequences: [0; 3],
            lazy_slot: 0,
        };
        opened.vote = opened.load(Pair::Vote)?.content;
        let hints = opened.load(Pair::Hints)?;
        opened.lazy_slot = hints.may_be_under_way;
        if let Some(bytes) = hints.content {
            opened.hints = Hints::decode(&bytes)?;
        }
        if let Some(bytes) = opened.load(Pair::Marks)?.content {
            opened.marks = Marks::decode(&bytes)?;
        }
        Ok(opened)
    }

    /// The saved vote.
    pub(crate) fn vote(&self) -> Option<&[u8]> {
        self.vote.as_deref()
    }

    /// The saved marks.
    pub(crate) fn marks(&self) -> Marks {
        self.marks
    }

    /// The hints last given.
    pub(crate) fn hints(&self) -> Hints {
        self.hints
    }

    /// Saves a vote; durable on return.
    pub(crate) fn save_vote(&mut self, vote: &[u8]) -> Result<(), StoreError> {
        if vote.len() > VOTE_BYTES_MAX {
            return Err(StoreError::TooLarge {
                what: "vote",
                size: vote.len() as u64,
                max: VOTE_BYTES_MAX as u64,
            });
        }
        self.save_durably(Pair::Vote, vote)?;
        self.vote = Some(vote.to_vec());
        Ok(())
    }

    /// Saves the marks; durable on return.
    pub(crate) fn save_marks(&mut self, marks: Marks) -> Result<(), StoreError> {
        self.save_durably(Pair::Marks, &marks.encode())?;
        self.marks = marks;
        Ok(())
    }

    /// Saves where the log begins; whether the node may vote is not the caller's to change.
    pub(crate) fn save_start(&mut self, marks: Marks) -> Result<(), StoreError> {
        self.save_marks(Marks {
            guarded: self.marks.guarded,
            ..marks
        })
    }

    /// Saves what was found once more. It may stand in the page cache alone, after a process was
    /// killed or in pages that a failed sync marked clean: a restart that went by it, and a power cut
    /// that takes it away, would make a second vote in the same term.
    pub(crate) fn save_again(&mut self) -> Result<(), StoreError> {
        if let Some(vote) = self.vote.clone() {
            self.save_durably(Pair::Vote, &vote)?;
        }
        if self.sequences[Pair::Marks as usize] > 0 {
            self.save_durably(Pair::Marks, &self.marks.encode())?;
        }
        Ok(())
    }

    /// Hands the hints to the operating system without waiting for the disk.
    pub(crate) fn write_hints(&mut self, hints: Hints) -> Result<(), StoreError> {
        self.sequences[Pair::Hints as usize] += 1;
        self.write_slot(Pair::Hints, self.lazy_slot, &hints.encode())?;
        self.hints = hints;
        Ok(())
    }

    /// Saves the hints with one sync; durable on return. Should they rot, older ones are found.
    pub(crate) fn sync_hints(&mut self, hints: Hints) -> Result<(), StoreError> {
        self.write_hints(hints)?;
        self.sync()?;
        self.lazy_slot = 1 - self.lazy_slot;
        Ok(())
    }

    /// Saves the hints in both copies; durable on return.
    pub(crate) fn save_hints(&mut self, hints: Hints) -> Result<(), StoreError> {
        self.save_durably(Pair::Hints, &hints.encode())?;
        self.hints = hints;
        Ok(())
    }

    fn save_durably(&mut self, pair: Pair, content: &[u8]) -> Result<(), StoreError> {
        self.sequences[pair as usize] += 1;
        let first = match pair {
            // Its last content may be under way still.
            Pair::Hints => self.lazy_slot,
            Pair::Vote | Pair::Marks => self.sequences[pair as usize] % 2,
        };
        for slot in [first, 1 - first] {
            self.write_slot(pair, slot, content)?;
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.file
            .sync_data()
            .map_err(|source| StoreError::io("fdatasync", &self.path, source))
    }

    fn write_slot(&self, pair: Pair, slot: u64, content: &[u8]) -> Result<(), StoreError> {
        let mut bytes = [0; SLOT_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC_VERSION);
        bytes[4..8].copy_from_slice(&(content.len() as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequences[pair as usize].to_le_bytes());
        bytes[HEAD_BYTES..HEAD_BYTES + content.len()].copy_from_slice(content);
        let crc = crc32c::crc32c(&bytes[..SLOT_BYTES - 4]);
        bytes[SLOT_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        self.file
            .write_all_at(&bytes, slot_at(pair, slot))
            .map_err(|source| StoreError::io("write", &self.path, source))
    }

    /// The newest whole value of a pair.
    fn load(&mut self, pair: Pair) -> Result<Loaded, StoreError> {
        let mut newest: Option<(u64, Vec<u8>, u64)> = None;
        let mut damaged = Vec::new();
        for slot in 0..2 {
            let mut bytes = [0; SLOT_BYTES];
            self.file
                .read_exact_at(&mut bytes, slot_at(pair, slot))
                .map_err(|source| StoreError::io("read", &self.path, source))?;
            if bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            let Some((sequence, content)) = parse_slot(&bytes) else {
                damaged.push(slot);
                continue;
            };
            if newest.as_ref().is_none_or(|(best, ..)| sequence > *best) {
                newest = Some((sequence, content.to_vec(), slot));
            }
        }
        let may_be_under_way = (damaged.first().copied())
            .or(newest.as_ref().map(|(.., slot)| *slot))
            .unwrap_or(0);
        if newest.is_none() && damaged.len() == 2 {
            return Err(corrupt(match pair {
                Pair::Vote => "both copies of the vote are damaged; replace this node's id",
                Pair::Hints => "both copies of the hints are damaged",
                Pair::Marks => "both copies of the marks are damaged",
            }));
        }
        // One damaged slot beside an empty one: the very first save was torn, and so never
        // acknowledged.
        let content = newest.map(|(sequence, content, _)| {
            self.sequences[pair as usize] = sequence;
            content
        });
        Ok(Loaded {
            content,
            may_be_under_way,
        })
    }
}

/// What a pair of slots holds.
struct Loaded {
    content: Option<Vec<u8>>,
    /// A process that was killed may have left this slot in the page cache alone: the newest one, or
    /// one that is torn. The other one is durable.
    may_be_under_way: u64,
}

impl Marks {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = encode_id(self.purged);
        bytes.extend_from_slice(&self.start_physical.to_le_bytes());
        bytes.extend_from_slice(&self.start_crc.to_le_bytes());
        bytes.extend_from_slice(&u32::from(self.resetting).to_le_bytes());
        if self.guarded {
            // A longer form, so that a version which does not know of it refuses the file.
            bytes.extend_from_slice(&1_u32.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        if bytes.len() != 48 && bytes.len() != 52 {
            return Err(StoreError::decode(
                "marks of the log",
                "the length does not match",
            ));
        }
        Ok(Self {
            purged: decode_id(bytes),
            start_physical: u64_at(bytes, 32),
            start_crc: u32_at(bytes, 40),
            resetting: u32_at(bytes, 44) != 0,
            guarded: bytes.len() == 52 && u32_at(bytes, 48) != 0,
        })
    }
}

impl Hints {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = encode_id(self.committed);
        bytes.extend_from_slice(&self.synced_physical.to_le_bytes());
        bytes.extend_from_slice(&self.unsynced_bytes_max.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        if bytes.len() != 48 {
            return Err(StoreError::decode(
                "hints of the log",
                "the length does not match",
            ));
        }
        Ok(Self {
            committed: decode_id(bytes),
            synced_physical: u64_at(bytes, 32),
            unsynced_bytes_max: u64_at(bytes, 40),
        })
    }
}

fn parse_slot(bytes: &[u8; SLOT_BYTES]) -> Option<(u64, &[u8])> {
    if bytes[..4] != MAGIC_VERSION
        || crc32c::crc32c(&bytes[..SLOT_BYTES - 4]) != u32_at(bytes, SLOT_BYTES - 4)
    {
        return None;
    }
    let content = bytes[HEAD_BYTES..SLOT_BYTES - 4].get(..u32_at(bytes, 4) as usize)?;
    Some((u64_at(bytes, 8), content))
}

fn slot_at(pair: Pair, slot: u64) -> u64 {
    (pair as u64 * 2 + slot) * BLOCK_BYTES
}

fn encode_id(id: Option<LogId>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(48);
    bytes.extend_from_slice(&u64::from(id.is_some()).to_le_bytes());
    let id = id.unwrap_or_default();
    for number in [id.term, id.node, id.index] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes
}

fn decode_id(bytes: &[u8]) -> Option<LogId> {
    (u64_at(bytes, 0) != 0).then(|| LogId {
        term: u64_at(bytes, 8),
        node: u64_at(bytes, 16),
        index: u64_at(bytes, 24),
    })
}

fn corrupt(reason: &str) -> StoreError {
    StoreError::Corrupt {
        segment: FILE_NAME.to_owned(),
        physical_offset: 0,
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_disk::MemoryDisk;

    fn open(disk: &MemoryDisk) -> Result<VoteFile, StoreError> {
        VoteFile::open(disk, Path::new("/data"), true)
    }

    #[test]
    fn a_saved_vote_survives_a_crash_and_the_loss_of_either_copy() {
        for rotten in 0..2 {
            let disk = MemoryDisk::default();
            let mut file = open(&disk).unwrap();
            file.save_vote(b"term 1").unwrap();
            file.save_vote(b"term 2").unwrap();
            disk.crash();
            disk.edit(Path::new("/data/vote"), |bytes| {
                bytes[rotten * 4096 + 20] ^= 1
            });
            assert_eq!(open(&disk).unwrap().vote(), Some(&b"term 2"[..]));
        }
    }

    #[test]
    fn a_torn_save_leaves_the_vote_before() {
        let disk = MemoryDisk::default();
        let mut file = open(&disk).unwrap();
        file.save_vote(b"term 1").unwrap();
        // Sequence 2 goes to slot 0 first; half of it arrives.
        disk.edit(Path::new("/data/vote"), |bytes| bytes[8..300].fill(7));
        assert_eq!(open(&disk).unwrap().vote(), Some(&b"term 1"[..]));
    }

    #[test]
    fn a_lost_vote_is_an_error_not_a_fresh_start() {
        let disk = MemoryDisk::default();
        open(&disk).unwrap().save_vote(b"term 1").unwrap();
        disk.edit(Path::new("/data/vote"), |bytes| {
            bytes[20] ^= 1;
            bytes[4096 + 20] ^= 1;
        });
        assert!(matches!(open(&disk), Err(StoreError::Corrupt { .. })));
        disk.remove(Path::new("/data/vote")).unwrap();
        let missing = VoteFile::open(&disk, Path::new("/data"), false);
        assert!(matches!(missing, Err(StoreError::Corrupt { .. })));
    }

    #[test]
    fn hints_torn_in_every_block_that_may_be_under_way_leave_the_ones_that_were_synced() {
        let synced = Hints {
            synced_physical: 100,
            ..Hints::default()
        };
        let disk = MemoryDisk::default();
        let mut file = open(&disk).unwrap();
        file.save_hints(synced).unwrap();
        let path = Path::new("/data/vote");
        let durable = disk.content(path);
        for synced_physical in [200, 300, 400] {
            file.write_hints(Hints {
                synced_physical,
                ..synced
            })
            .unwrap();
        }
        let written = disk.content(path);
        let blocks = written.chunks(4096).zip(durable.chunks(4096));
        for (number, _) in blocks.enumerate().filter(|(_, (new, old))| new != old) {
            disk.edit(path, |bytes| bytes[number * 4096 + 8..][..100].fill(7));
        }
        assert_ne!(disk.content(path), written, "some hint was written");
        assert_eq!(open(&disk).unwrap().hints(), synced);
    }

    #[test]
    fn hints_are_never_under_way_in_both_slots_whatever_comes_after_what() {
        let path = Path::new("/data/vote");
        let hints = |synced_physical| Hints {
            synced_physical,
            ..Hints::default()
        };
        // 0: lazy, 1: synced, 2: saved, 3: the process is killed, and another one opens the file and
        // saves what it finds.
        for order in 0..256 {
            let disk = MemoryDisk::default();
            let mut file = open(&disk).unwrap();
            let mut durable = (hints(0), disk.content(path));
            for at in 0..4 {
                let next = hints(100 * (at + 1));
                match (order >> (2 * at)) & 3 {
                    0 => file.write_hints(next).unwrap(),
                    1 => file.sync_hints(next).unwrap(),
                    2 => file.save_hints(next).unwrap(),
                    _ => {
                        file = open(&disk).unwrap();
                        file.save_hints(file.hints()).unwrap();
                    }
                }
                if (order >> (2 * at)) & 3 > 0 {
                    durable = (file.hints(), disk.content(path));
                }
                // What may be under way is torn.
                let torn = disk.fork();
                let written = disk.content(path);
                for (number, (new, old)) in
                    (written.chunks(4096).zip(durable.1.chunks(4096))).enumerate()
                {
                    if new != old {
                        torn.edit(path, |bytes| bytes[number * 4096 + 8..][..100].fill(7));
                    }
                }
                assert_eq!(open(&torn).unwrap().hints(), durable.0, "{order} {at}");
            }
        }
    }

    #[test]
    fn marks_and_hints_come_back() {
        let disk = MemoryDisk::default();
        let id = LogId {
            term: 2,
            node: 3,
            index: 4,
        };
        let marks = Marks {
            purged: Some(id),
            start_physical: 99,
            start_crc: 7,
            resetting: true,
            guarded: true,
        };
        let hints = Hints {
            committed: Some(id),
            synced_physical: 200,
            unsynced_bytes_max: 4096,
        };
        let mut file = open(&disk).unwrap();
        assert_eq!((file.marks(), file.hints()), Default::default());
        file.save_marks(marks).unwrap();
        file.write_hints(Hints::default()).unwrap();
        file.write_hints(hints).unwrap();
        let file = open(&disk).unwrap();
        assert_eq!((file.marks(), file.hints()), (marks, hints));
    }
}
