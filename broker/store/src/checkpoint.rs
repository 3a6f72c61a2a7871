//! Owns checkpoints: the state of the node at one log id, as named sections whose content this file
//! does not look into. The same bytes are the payload of a Raft snapshot.
//!
//! ```text
//! magic "RMQC" @0, version u32 @4, length of everything u64 @8, term u64 @16, node u64 @24,
//! index u64 @32, number of sections u32 @40, then per section tag u32, length u64, bytes
//! (tags rising), at the end crc32c u32 of everything before; little endian
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, Bytes};

use crate::disk::{Disk, DiskSpace};
use crate::error::StoreError;
use crate::record::LogId;

const MAGIC: &[u8; 4] = b"RMQC";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 44;
const SECTION_HEAD_BYTES: usize = 12;
const CRC_BYTES: usize = 4;

const PREFIX: &str = "checkpoint-";
const TMP_SUFFIX: &str = ".tmp";

/// The state of a node just after it applied the entry `id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The last entry that the sections contain.
    pub id: LogId,
    /// Sections by tag; who adds a section chooses its tag and owns its format.
    pub sections: BTreeMap<u32, Bytes>,
}

impl Checkpoint {
    /// Size of [`Checkpoint::encode`]'s answer.
    pub fn encoded_bytes(&self) -> usize {
        let content: usize = self
            .sections
            .values()
            .map(|section| SECTION_HEAD_BYTES + section.len())
            .sum();
        HEAD_BYTES + content + CRC_BYTES
    }

    /// The bytes of the checkpoint, for its file or for a snapshot payload.
    pub fn encode(&self) -> Bytes {
        let length = self.encoded_bytes();
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        for number in [length as u64, self.id.term, self.id.node, self.id.index] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&(self.sections.len() as u32).to_le_bytes());
        for (tag, section) in &self.sections {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&(section.len() as u64).to_le_bytes());
            bytes.extend_from_slice(section);
        }
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        Bytes::from(bytes)
    }

    /// Reads what [`Checkpoint::encode`] made; the sections are slices of `bytes`, not copies.
    pub fn decode(bytes: Bytes) -> Result<Self, StoreError> {
        parse(bytes).map_err(|reason| StoreError::decode("the checkpoint", reason))
    }
}

fn parse(mut bytes: Bytes) -> Result<Checkpoint, &'static str> {
    let length = bytes.len();
    if length < HEAD_BYTES + CRC_BYTES {
        return Err("the head is cut off");
    }
    let mut crc = bytes.split_off(length - CRC_BYTES);
    if bytes[..4] != *MAGIC {
        return Err("these are not the bytes of a checkpoint");
    }
    bytes.advance(4);
    let mut head = bytes.clone();
    if head.get_u32_le() != VERSION {
        return Err("the version is unknown");
    }
    if head.get_u64_le() != length as u64 {
        return Err("the length is not the one it was made with");
    }
    let checked = crc32c::crc32c_append(crc32c::crc32c(MAGIC), &bytes);
    if crc.get_u32_le() != checked {
        return Err("the checksum is wrong");
    }
    let id = LogId {
        term: head.get_u64_le(),
        node: head.get_u64_le(),
        index: head.get_u64_le(),
    };
    let count = head.get_u32_le();
    let mut sections = BTreeMap::new();
    for _ in 0..count {
        if head.len() < SECTION_HEAD_BYTES {
            return Err("a section head is cut off");
        }
        let (tag, length) = (head.get_u32_le(), head.get_u64_le());
        if length > head.len() as u64 {
            return Err("a section is cut off");
        }
        if sections
            .last_key_value()
            .is_some_and(|(before, _)| *before >= tag)
        {
            return Err("the sections are out of order");
        }
        sections.insert(tag, head.split_to(length as usize));
    }
    if !head.is_empty() {
        return Err("bytes follow the last section");
    }
    Ok(Checkpoint { id, sections })
}

/// A checkpoint file that could not be used, for the log and the operator.
#[derive(Debug)]
pub struct SkippedCheckpoint {
    /// Raft log index in the file's name.
    pub index: u64,
    /// Why it was skipped.
    pub error: StoreError,
}

/// What [`CheckpointDir::newest_valid`] found.
#[derive(Debug, Default)]
pub struct NewestCheckpoint {
    /// The newest checkpoint that is whole; none on a new node.
    pub checkpoint: Option<Checkpoint>,
    /// Newer ones that are damaged: worth a warning each, and removal.
    pub skipped: Vec<SkippedCheckpoint>,
}

/// The folder that holds a node's checkpoints, one file each, named by their Raft log index.
#[derive(Debug)]
pub struct CheckpointDir {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

impl CheckpointDir {
    /// Opens the folder, made if missing, and removes files of writes that a crash interrupted.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, StoreError> {
        disk.create_dir_all(dir)
            .map_err(|error| StoreError::io("create", dir, error))?;
        for name in disk
            .list(dir)
            .map_err(|error| StoreError::io("list", dir, error))?
        {
            if name.strip_suffix(TMP_SUFFIX).and_then(index_of).is_some() {
                let path = dir.join(name);
                disk.remove(&path)
                    .map_err(|error| StoreError::io("remove", &path, error))?;
            }
        }
        Ok(Self {
            disk,
            dir: dir.to_path_buf(),
        })
    }

    /// The newest whole checkpoint. Damaged files are left in place and reported; an I/O error is
    /// returned, because an older checkpoint would hide a failing disk.
    pub fn newest_valid(&self) -> Result<NewestCheckpoint, StoreError> {
        let mut skipped = Vec::new();
        for index in self.list()?.into_iter().rev() {
            match self.read(index) {
                Ok(checkpoint) => {
                    return Ok(NewestCheckpoint {
                        checkpoint: Some(checkpoint),
                        skipped,
                    });
                }
                Err(error @ StoreError::Io { .. }) => return Err(error),
                Err(error) => skipped.push(SkippedCheckpoint { index, error }),
            }
        }
        Ok(NewestCheckpoint {
            checkpoint: None,
            skipped,
        })
    }

    /// Raft log indexes of the stored checkpoints, rising; whole or not.
    pub fn list(&self) -> Result<Vec<u64>, StoreError> {
        let names = self.disk.list(&self.dir);
        let names = names.map_err(|error| StoreError::io("list", &self.dir, error))?;
        let mut indexes: Vec<u64> = names.iter().filter_map(|name| index_of(name)).collect();
        indexes.sort_unstable();
        Ok(indexes)
    }

    /// Reads and checks one checkpoint.
    pub fn read(&self, index: u64) -> Result<Checkpoint, StoreError> {
        let path = self.path(index);
        let read = || {
            let file = self.disk.open(&path)?;
            let mut bytes = vec![0; file.len()? as usize];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|error| StoreError::io("read", &path, error))?;
        let checkpoint = Checkpoint::decode(Bytes::from(bytes))?;
        if checkpoint.id.index != index {
            let reason = format!(
                "it is of index {}, its name says {index}",
                checkpoint.id.index
            );
            return Err(StoreError::decode("the checkpoint", reason));
        }
        Ok(checkpoint)
    }

    /// Bytes of the file of a checkpoint from an offset on, `bytes_max` at most, and the length of
    /// all of it. Nothing is checked: whoever has all of it decodes it.
    pub fn read_part(
        &self,
        index: u64,
        offset: u64,
        bytes_max: usize,
    ) -> Result<(Bytes, u64), StoreError> {
        let path = self.path(index);
        let io = |error| StoreError::io("read", &path, error);
        let file = self.disk.open(&path).map_err(io)?;
        let length = file.len().map_err(io)?;
        let left = length.saturating_sub(offset).min(bytes_max as u64);
        let mut bytes = vec![0; left as usize];
        file.read_exact_at(&mut bytes, offset).map_err(io)?;
        Ok((Bytes::from(bytes), length))
    }

    /// Reads some sections of a checkpoint and skips the others, so that a large one costs little.
    /// Only the structure is checked: a damaged one is noticed when it is read as a whole.
    pub fn peek(&self, index: u64, tags: &[u32]) -> Result<Checkpoint, StoreError> {
        let path = self.path(index);
        let io = |error| StoreError::io("read", &path, error);
        let fail = |reason: &str| StoreError::decode("the checkpoint", reason.to_owned());
        let file = self.disk.open(&path).map_err(io)?;
        let length = file.len().map_err(io)?;
        let read = |at: u64, bytes: u64| {
            let end = at.checked_add(bytes).filter(|end| *end <= length);
            end.ok_or_else(|| fail("it is cut off"))?;
            let mut buffer = vec![0; bytes as usize];
            file.read_exact_at(&mut buffer, at).map_err(io)?;
            Ok::<_, StoreError>(Bytes::from(buffer))
        };
        let mut head = read(0, HEAD_BYTES as u64)?;
        let is_ours = head.starts_with(MAGIC);
        head.advance(MAGIC.len());
        if !is_ours || head.get_u32_le() != VERSION || head.get_u64_le() != length {
            return Err(fail("magic, version or length is wrong"));
        }
        let id = LogId {
            term: head.get_u64_le(),
            node: head.get_u64_le(),
            index: head.get_u64_le(),
        };
        let mut at = HEAD_BYTES as u64;
        let mut sections = BTreeMap::new();
        for _ in 0..head.get_u32_le() {
            let mut section = read(at, SECTION_HEAD_BYTES as u64)?;
            let (tag, bytes) = (section.get_u32_le(), section.get_u64_le());
            at += SECTION_HEAD_BYTES as u64;
            if tags.contains(&tag) {
                sections.insert(tag, read(at, bytes)?);
            }
            at = at.saturating_add(bytes);
        }
        Ok(Checkpoint { id, sections })
    }

    /// Space of the file system that holds the folder.
    pub fn space(&self) -> Result<DiskSpace, StoreError> {
        let space = self.disk.space(&self.dir);
        space.map_err(|error| StoreError::io("stat", &self.dir, error))
    }

    /// Stores a checkpoint; durable on return. One of the same index is replaced. A crash leaves
    /// either the whole checkpoint or none, and so does a failure, which leaves no file behind.
    pub fn write(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let path = self.path(checkpoint.id.index);
        let tmp = self
            .dir
            .join(format!("{}{TMP_SUFFIX}", name_of(checkpoint.id.index)));
        let write = || {
            let file = self.disk.create(&tmp)?;
            file.write_all_at(&checkpoint.encode(), 0)?;
            file.sync_data()?;
            self.disk.rename(&tmp, &path)?;
            self.disk.sync_dir(&self.dir)
        };
        write().map_err(|error| {
            // Half a file would only hold space; what is left of it goes with the next open.
            let _ = self.disk.remove(&tmp);
            StoreError::io("write", &path, error)
        })
    }

    /// Deletes a checkpoint. The caller makes sure that a newer whole one is stored.
    pub fn remove(&self, index: u64) -> Result<(), StoreError> {
        let path = self.path(index);
        let remove = || {
            self.disk.remove(&path)?;
            self.disk.sync_dir(&self.dir)
        };
        remove().map_err(|error| StoreError::io("remove", &path, error))
    }

    fn path(&self, index: u64) -> PathBuf {
        self.dir.join(name_of(index))
    }
}

fn name_of(index: u64) -> String {
    format!("{PREFIX}{index:020}")
}

fn index_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?;
    if digits.len() != 20 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_disk::MemoryDisk;
    use proptest::prelude::*;

    fn checkpoint(index: u64) -> Checkpoint {
        let sections = [
            (1, Bytes::from_static(b"position")),
            (7, Bytes::from(vec![9; 5000])),
        ];
        Checkpoint {
            id: LogId {
                term: 3,
                node: 2,
                index,
            },
            sections: sections.into(),
        }
    }

    fn dir(disk: &MemoryDisk) -> CheckpointDir {
        CheckpointDir::open(Arc::new(disk.clone()), Path::new("/checkpoints")).unwrap()
    }

    fn edit(disk: &MemoryDisk, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        disk.edit(&Path::new("/checkpoints").join(name), change);
    }

    proptest! {
        #[test]
        fn a_checkpoint_comes_back_as_it_was(
            numbers: (u64, u64, u64),
            sections: BTreeMap<u32, Vec<u8>>,
        ) {
            let (term, node, index) = numbers;
            let sections = sections.into_iter().map(|(tag, bytes)| (tag, Bytes::from(bytes)));
            let made = Checkpoint { id: LogId { term, node, index }, sections: sections.collect() };
            prop_assert_eq!(Checkpoint::decode(made.encode()).unwrap(), made);
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes: Vec<u8>) {
            prop_assert!(Checkpoint::decode(Bytes::from(bytes)).is_err());
        }

        #[test]
        fn sections_that_lie_are_refused_without_a_panic(
            at in 40usize..80,
            value: u8,
        ) {
            let mut bytes = checkpoint(1).encode().to_vec();
            prop_assume!(bytes[at] != value);
            bytes[at] = value;
            let end = bytes.len() - CRC_BYTES;
            let crc = crc32c::crc32c(&bytes[..end]);
            bytes[end..].copy_from_slice(&crc.to_le_bytes());
            // The checksum is right, so only the structure can be refused (or the content differs).
            prop_assert!(Checkpoint::decode(Bytes::from(bytes)).ok() != Some(checkpoint(1)));
        }
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_noticed() {
        let whole = checkpoint(1).encode();
        for at in 0..whole.len() {
            let mut damaged = whole.to_vec();
            damaged[at] ^= 0x10;
            assert!(
                Checkpoint::decode(Bytes::from(damaged)).is_err(),
                "byte {at}"
            );
            assert!(
                Checkpoint::decode(whole.slice(..at)).is_err(),
                "cut at {at}"
            );
        }
    }

    #[test]
    fn a_written_checkpoint_survives_a_crash() {
        let disk = MemoryDisk::default();
        dir(&disk).write(&checkpoint(5)).unwrap();
        disk.crash();
        assert_eq!(
            dir(&disk).newest_valid().unwrap().checkpoint,
            Some(checkpoint(5))
        );
    }

    #[test]
    fn the_newest_whole_checkpoint_is_found_and_damaged_ones_are_reported() {
        let disk = MemoryDisk::default();
        let checkpoints = dir(&disk);
        for index in [9, 100, 20] {
            checkpoints.write(&checkpoint(index)).unwrap();
        }
        edit(&disk, "checkpoint-00000000000000000100", |bytes| {
            bytes[50] ^= 1
        });
        assert_eq!(checkpoints.list().unwrap(), [9, 20, 100]);
        let newest = checkpoints.newest_valid().unwrap();
        assert_eq!(newest.checkpoint, Some(checkpoint(20)));
        assert_eq!(
            newest
                .skipped
                .iter()
                .map(|one| one.index)
                .collect::<Vec<_>>(),
            [100]
        );
        checkpoints.remove(20).unwrap();
        assert_eq!(
            checkpoints.newest_valid().unwrap().checkpoint,
            Some(checkpoint(9))
        );
    }

    #[test]
    fn chosen_sections_are_read_without_the_others() {
        let disk = MemoryDisk::default();
        let checkpoints = dir(&disk);
        let mut stored = checkpoint(5);
        stored.sections.insert(9, Bytes::new());
        checkpoints.write(&stored).unwrap();
        let peeked = checkpoints.peek(5, &[1, 9, 77]).unwrap();
        assert_eq!(peeked.id, stored.id);
        stored.sections.remove(&7);
        assert_eq!(peeked.sections, stored.sections);
        let name = "checkpoint-00000000000000000005";
        for at in 0..150 {
            edit(&disk, name, |bytes| bytes[at] ^= 0x10);
            // Whatever is damaged, it ends, and takes no more memory than the file has bytes.
            let _ = checkpoints.peek(5, &[1, 7, 9]);
            edit(&disk, name, |bytes| bytes[at] ^= 0x10);
        }
        edit(&disk, name, |bytes| bytes.truncate(100));
        assert!(checkpoints.peek(5, &[1]).is_err());
        assert!(checkpoints.peek(6, &[1]).is_err());
    }

    #[test]
    fn a_checkpoint_under_a_wrong_name_is_not_used() {
        let disk = MemoryDisk::default();
        let checkpoints = dir(&disk);
        checkpoints.write(&checkpoint(5)).unwrap();
        let folder = Path::new("/checkpoints");
        disk.rename(&folder.join(name_of(5)), &folder.join(name_of(6)))
            .unwrap();
        let newest = checkpoints.newest_valid().unwrap();
        assert!(newest.checkpoint.is_none());
        assert_eq!(newest.skipped.len(), 1);
    }

    #[test]
    fn an_interrupted_write_leaves_nothing_behind() {
        let disk = MemoryDisk::default();
        let checkpoints = dir(&disk);
        disk.fail_writes(true);
        assert!(checkpoints.write(&checkpoint(5)).is_err());
        disk.fail_writes(false);
        assert!(disk.list(Path::new("/checkpoints")).unwrap().is_empty());
        // The power fails between the writing and the renaming.
        disk.stop_after(Some(2));
        assert!(checkpoints.write(&checkpoint(5)).is_err());
        disk.stop_after(None);
        assert!(!disk.list(Path::new("/checkpoints")).unwrap().is_empty());
        assert!(dir(&disk).list().unwrap().is_empty());
        assert!(disk.list(Path::new("/checkpoints")).unwrap().is_empty());
    }
}
