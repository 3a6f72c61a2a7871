//! Checkpoints of this node: taken by the apply task, written by a task of their own.
//!
//! Two kinds share one file format. A *local* checkpoint (with the index manifest) bounds the
//! work of a restart. A *roll* checkpoint stands at the end of a segment; the retention turns one
//! into the Raft snapshot of its point before it purges the log up to there. A checkpoint never
//! names an entry that is not flushed on this node, since Raft may apply before the local flush.

mod choose;
mod jobs;
mod writer;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        self, Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use raftmq_state::State;
use raftmq_store::{
    CommitLog, Disk, DiskSpace, LogId, LogPosition, Reserve, StoreError,
    checkpoint::{Checkpoint, CheckpointDir},
    index::{FrozenIndex, QueueIndex},
};

pub use self::{choose::begin_index_anew, writer::CheckpointWriter};

/// Section tags of a checkpoint file. Stable: they are on disk.
mod section {
    /// The state machine.
    pub(super) const STATE: u32 = 1;
    /// Where the log continues.
    pub(super) const POSITION: u32 = 2;
    /// Log id (term, index; little endian) and JSON of the membership in force.
    pub(super) const MEMBERSHIP: u32 = 3;
    /// Names of the index runs; only in local checkpoints.
    pub(super) const INDEX: u32 = 4;
    /// Store timestamp of the newest message, 8 bytes little endian, ms since 1970.
    pub(super) const TIMESTAMP: u32 = 5;
    /// Present when the checkpoint stands at the end of a segment.
    pub(super) const ROLL: u32 = 6;
    /// Present when it came from another node: the log here may end before it, see `install`.
    pub(super) const INSTALLED: u32 = 7;
}

/// What a roll point is made of.
const ROLL_SECTIONS: [u32; 3] = [section::POSITION, section::TIMESTAMP, section::ROLL];

/// Local checkpoints kept, so that a damaged newest one does not cost a full scan.
const LOCAL_KEPT: usize = 2;
/// Space held back for the next checkpoint, at least, and as a multiple of the newest one. Unit of
/// the first: bytes. A state of 100k queues takes about 10 MB.
const RESERVE_BYTES: u64 = 16 << 20;
/// See [`RESERVE_BYTES`]. The new one is written before the one it replaces is removed.
const RESERVE_FACTOR: u64 = 2;
/// No more than this part of the disk is held back, so that a small disk is not full of nothing.
const RESERVE_PART: u64 = 16;

/// Membership and the id of the entry that set it (`None`: never set).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembershipRecord {
    /// Term and index of the membership entry.
    pub id: Option<(u64, u64)>,
    /// The membership's JSON; empty when never set.
    pub json: Bytes,
}

/// Everything a checkpoint says, decoded.
#[derive(Debug)]
pub struct Restored {
    /// Log id the checkpoint stands at.
    pub id: LogId,
    /// The state machine at that id.
    pub state: State,
    /// Where the log continues.
    pub position: LogPosition,
    /// Membership in force.
    pub membership: MembershipRecord,
    /// Index manifest, if it is a local checkpoint.
    pub index_manifest: Option<Bytes>,
    /// Newest store timestamp up to there. Unit: ms since 1970; 0 = no message yet.
    pub last_store_timestamp_ms: u64,
    /// It came from another node as a snapshot, and the log may not have been moved there yet.
    pub installed: bool,
}

/// One checkpoint to write.
#[derive(Debug)]
pub struct Job {
    /// The last entry that is in it.
    pub id: LogId,
    /// The state, encoded.
    pub state: Vec<u8>,
    /// The membership in force there.
    pub membership: MembershipRecord,
    /// The consume queue.
    pub index: FrozenIndex,
    /// Store timestamp of the newest entry in it. Unit: ms since 1970.
    pub last_store_timestamp_ms: u64,
    /// Whether it stands at the end of a segment.
    pub roll: bool,
}

/// A point the log may be purged up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RollPoint {
    /// Last log id before the point.
    pub id: LogId,
    /// First address after it: the base of a segment.
    pub physical_offset: u64,
    /// Newest store timestamp below it. Unit: ms since 1970.
    pub last_store_timestamp_ms: u64,
}

/// What is remembered of a checkpoint file.
#[derive(Clone, Debug)]
struct Known {
    /// The index manifest, with which a restart can begin here.
    manifest: Option<Bytes>,
    /// Where the log can be purged up to.
    roll: Option<RollPoint>,
}

/// The checkpoint folder and what is in it. Shared by the writer, Raft and retention.
#[derive(Debug)]
pub struct Checkpoints {
    dir: CheckpointDir,
    /// By Raft log index; damaged ones are not here.
    known: Mutex<BTreeMap<u64, Known>>,
    reserve: Reserve,
    /// Size of the newest one. Unit: bytes.
    newest_bytes: AtomicU64,
    /// One was found damaged, and none was taken since.
    wanted: AtomicBool,
}

fn damaged(section: &str) -> StoreError {
    StoreError::decode(
        "the checkpoint",
        format!("section {section} is missing or damaged"),
    )
}

pub(crate) fn membership_section(record: &MembershipRecord) -> Bytes {
    let mut bytes = Vec::with_capacity(17 + record.json.len());
    let (term, index) = record.id.unwrap_or_default();
    bytes.push(u8::from(record.id.is_some()));
    bytes.extend_from_slice(&term.to_le_bytes());
    bytes.extend_from_slice(&index.to_le_bytes());
    bytes.extend_from_slice(&record.json);
    Bytes::from(bytes)
}

fn decode_membership_section(bytes: &Bytes) -> Option<MembershipRecord> {
    let (flag, rest) = bytes.split_first()?;
    let (term, rest) = rest.split_first_chunk::<8>()?;
    let (index, json) = rest.split_first_chunk::<8>()?;
    let id = (*flag != 0).then(|| (u64::from_le_bytes(*term), u64::from_le_bytes(*index)));
    Some(MembershipRecord {
        id,
        json: Bytes::copy_from_slice(json),
    })
}

/// A checkpoint of a state (encoded), its membership and its newest store timestamp.
pub fn checkpoint_at(
    position: &LogPosition,
    (state, membership, last_store_timestamp_ms): (Vec<u8>, &MembershipRecord, u64),
) -> Checkpoint {
    let timestamp = last_store_timestamp_ms.to_le_bytes();
    let sections = [
        (section::STATE, Bytes::from(state)),
        (section::POSITION, Bytes::from(position.encode())),
        (section::MEMBERSHIP, membership_section(membership)),
        (section::TIMESTAMP, Bytes::copy_from_slice(&timestamp)),
    ];
    Checkpoint {
        id: position.id,
        sections: BTreeMap::from(sections),
    }
}

/// Decodes all sections of `checkpoint`.
///
/// # Errors
/// When a section is missing or damaged.
pub fn restore(checkpoint: &Checkpoint) -> Result<Restored, StoreError> {
    let section = |tag, name| checkpoint.sections.get(&tag).ok_or_else(|| damaged(name));
    let state = State::decode(section(section::STATE, "state")?)
        .map_err(|error| StoreError::decode("the state in a checkpoint", error.to_string()))?;
    let position = position_of(checkpoint)?;
    let membership = membership_of(checkpoint)?;
    let index_manifest = checkpoint.sections.get(&section::INDEX).cloned();
    let timestamp = section(section::TIMESTAMP, "timestamp")?.first_chunk::<8>();
    let timestamp = timestamp.ok_or_else(|| damaged("timestamp"))?;
    Ok(Restored {
        id: position.id,
        state,
        position,
        membership,
        index_manifest,
        last_store_timestamp_ms: u64::from_le_bytes(*timestamp),
        installed: checkpoint.sections.contains_key(&section::INSTALLED),
    })
}

/// The membership in force at `checkpoint`.
///
/// # Errors
/// When the section is missing or damaged.
pub fn membership_of(checkpoint: &Checkpoint) -> Result<MembershipRecord, StoreError> {
    let section = checkpoint.sections.get(&section::MEMBERSHIP);
    section
        .and_then(decode_membership_section)
        .ok_or_else(|| damaged("membership"))
}

fn position_of(checkpoint: &Checkpoint) -> Result<LogPosition, StoreError> {
    let section = checkpoint.sections.get(&section::POSITION);
    LogPosition::decode(section.ok_or_else(|| damaged("position"))?)
}

fn roll_point(checkpoint: &Checkpoint) -> Option<RollPoint> {
    checkpoint.sections.get(&section::ROLL)?;
    let position = position_of(checkpoint).ok()?;
    let timestamp = checkpoint
        .sections
        .get(&section::TIMESTAMP)?
        .first_chunk::<8>()?;
    Some(RollPoint {
        id: position.id,
        physical_offset: position.end_physical,
        last_store_timestamp_ms: u64::from_le_bytes(*timestamp),
    })
}

impl Known {
    fn of(checkpoint: &Checkpoint) -> Self {
        Self {
            // Copied: a section is a slice that would keep the whole checkpoint in memory.
            manifest: (checkpoint.sections.get(&section::INDEX))
                .map(|manifest| Bytes::copy_from_slice(manifest)),
            roll: roll_point(checkpoint),
        }
    }
}

impl Checkpoints {
    /// Opens the folder and reads what the checkpoints in it are good for.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, StoreError> {
        let reserve_dir = dir;
        let dir = CheckpointDir::open(Arc::clone(&disk), dir)?;
        let mut known = BTreeMap::new();
        let mut newest_bytes = 0;
        let mut locals = 0;
        for index in dir.list()?.into_iter().rev() {
            // A restart begins from one of the newest. Of the others, which may be as many as
            // there are segments, only the point is wanted; they are verified before a purge.
            let found = if locals < LOCAL_KEPT {
                dir.read(index)
            } else {
                dir.peek(index, &ROLL_SECTIONS)
            };
            match found {
                Ok(checkpoint) => {
                    newest_bytes = newest_bytes.max(checkpoint.encoded_bytes() as u64);
                    let one = Known::of(&checkpoint);
                    locals += usize::from(one.manifest.is_some());
                    known.insert(index, one);
                }
                Err(error) => tracing::warn!(index, %error, "skip damaged checkpoint"),
            }
        }
        Ok(Self {
            dir,
            known: Mutex::new(known),
            reserve: Reserve::open(disk, reserve_dir)?,
            newest_bytes: AtomicU64::new(newest_bytes),
            wanted: AtomicBool::new(false),
        })
    }

    /// Space of the file system that holds the folder.
    ///
    /// # Errors
    /// When the file system does not say.
    pub fn space(&self) -> Result<DiskSpace, StoreError> {
        self.dir.space()
    }

    /// Bytes of the disk with this space that are held back, released for a checkpoint and taken
    /// again.
    pub fn reserve_bytes(&self, space: &DiskSpace) -> u64 {
        let newest = self.newest_bytes.load(Ordering::Relaxed);
        let wanted = RESERVE_BYTES.max(newest.saturating_mul(RESERVE_FACTOR));
        wanted.min(space.total_bytes() / RESERVE_PART)
    }

    /// Holds space back for the next checkpoint, as far as the disk has it. Blocks for a write of
    /// some MiB when the reserve was spent.
    pub fn hold_reserve(&self) {
        let held = self
            .space()
            .and_then(|space| self.reserve.hold(self.reserve_bytes(&space)));
        if let Err(error) = held {
            tracing::warn!(%error, "hold space back for checkpoints");
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<u64, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest intact checkpoint that a restart can begin from.
    #[must_use]
    pub fn newest(&self) -> Option<Restored> {
        let locals = newest_locals(&self.known());
        let read = |index: u64| self.dir.read(index).and_then(|read| restore(&read));
        locals.into_iter().find_map(|index| {
            read(index)
                .inspect_err(|error| tracing::warn!(index, %error, "skip damaged checkpoint"))
                .ok()
        })
    }

    /// From where the log has to be verified when `restored` is what a restart begins from. The
    /// log need not reach to an installed one: then it is the position of the one before, as far as
    /// that can be read.
    #[must_use]
    pub fn verified_position(&self, restored: &Restored) -> Option<LogPosition> {
        if !restored.installed {
            return Some(restored.position.clone());
        }
        let locals = newest_locals(&self.known());
        let older = locals
            .into_iter()
            .filter(|index| *index < restored.id.index);
        older
            .filter_map(|index| self.dir.read(index).ok())
            .find(|before| !before.sections.contains_key(&section::INSTALLED))
            .and_then(|before| position_of(&before).ok())
    }

    /// Points the log may be purged up to, oldest first.
    #[must_use]
    pub fn rolls(&self) -> Vec<RollPoint> {
        self.known()
            .values()
            .filter_map(|known| known.roll)
            .collect()
    }

    /// Makes sure that the checkpoint at `index` can be the snapshot for which entries are given
    /// up; when it is damaged, it is no roll point any more.
    ///
    /// # Errors
    /// When it does not exist or is damaged.
    pub fn verify(&self, index: u64) -> Result<(), StoreError> {
        let verified = self.dir.read(index).and_then(|read| restore(&read));
        verified
            .map(|_| ())
            .inspect_err(|error| self.found_damaged(index, error))
    }

    /// The checkpoint at `index`.
    ///
    /// # Errors
    /// When it does not exist or is damaged.
    #[cfg(any(test, feature = "testing"))]
    pub fn read(&self, index: u64) -> Result<Checkpoint, StoreError> {
        self.dir.read(index)
    }

    /// Stores a checkpoint that came from another node as a snapshot, with the manifest of the
    /// index that now begins there. Raft moves the log there only afterwards: a restart in between
    /// finds a log that ends before its newest checkpoint, and moves it then.
    pub fn install(&self, mut checkpoint: Checkpoint, manifest: Vec<u8>) -> Result<(), StoreError> {
        let sections = &mut checkpoint.sections;
        sections.insert(section::INDEX, Bytes::from(manifest));
        sections.insert(section::INSTALLED, Bytes::new());
        self.store(&checkpoint)
    }

    fn store(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        self.reserve.spend_on(|| self.dir.write(checkpoint))?;
        let bytes = checkpoint.encoded_bytes() as u64;
        self.newest_bytes.store(bytes, Ordering::Relaxed);
        self.known()
            .insert(checkpoint.id.index, Known::of(checkpoint));
        Ok(())
    }

    /// Drops checkpoints that nothing needs any more: local ones but the newest few, roll points
    /// below `purged`, and damaged ones that others have overtaken.
    pub fn prune(&self, purged: Option<u64>) -> Result<(), StoreError> {
        let purged = purged.unwrap_or(0);
        let (locals, rolls) = {
            let mut known = self.known();
            let locals = newest_locals(&known);
            for (index, known) in known.iter_mut() {
                known.manifest = known.manifest.take().filter(|_| locals.contains(index));
            }
            let rolls = known.iter().filter(|(_, known)| known.roll.is_some());
            let rolls: Vec<u64> = rolls.map(|(index, _)| *index).collect();
            (locals, rolls)
        };
        // A later one is being stored by another thread.
        let newest = locals.first().copied().unwrap_or(0);
        for index in self.dir.list()? {
            let is_roll = index >= purged && rolls.contains(&index);
            if index < newest && !locals.contains(&index) && !is_roll {
                self.known().remove(&index);
                self.dir.remove(index)?;
            }
        }
        Ok(())
    }

    /// Writes a checkpoint; the log is flushed up to its index.
    pub fn write(&self, job: Job, log: &CommitLog, index: &QueueIndex) -> Result<(), StoreError> {
        if !is_flushed(log, job.id.index) {
            let what = format!("entry {} of a checkpoint is not flushed", job.id.index);
            return Err(StoreError::Failed(what));
        }
        let position = log.position_at(job.id.index)?;
        let written = self.reserve.spend_on(|| index.write_frozen(&job.index));
        let manifest = match written {
            Ok(manifest) => manifest,
            // Without its index it cannot begin a restart, but the log can be purged up to it,
            // which is what a full disk needs.
            Err(error) if job.roll => {
                tracing::error!(index = job.id.index, %error, "write the index of a checkpoint");
                None
            }
            Err(error) => return Err(error),
        };
        if manifest.is_none() && !job.roll {
            return Ok(());
        }
        let content = (job.state, &job.membership, job.last_store_timestamp_ms);
        let mut checkpoint = checkpoint_at(&position, content);
        let sections = &mut checkpoint.sections;
        if let Some(manifest) = manifest {
            sections.insert(section::INDEX, Bytes::from(manifest));
        }
        if job.roll {
            sections.insert(section::ROLL, Bytes::new());
        }
        self.store(&checkpoint)?;
        self.prune(log.purged_id().map(|id| id.index))?;
        self.retire_runs(index)
    }

    /// Lets the index delete run files that no checkpoint names from which a restart may begin.
    fn retire_runs(&self, index: &QueueIndex) -> Result<(), StoreError> {
        let manifests: Vec<Bytes> = {
            let known = self.known();
            let locals = newest_locals(&known).into_iter();
            locals
                .filter_map(|index| known.get(&index)?.manifest.clone())
                .collect()
        };
        index.retire(&manifests).map(|_| ())
    }
}

/// The newest checkpoints that a restart can begin from, newest first. Older ones may name run
/// files that are gone.
fn newest_locals(known: &BTreeMap<u64, Known>) -> Vec<u64> {
    known
        .iter()
        .rev()
        .filter(|(_, known)| known.manifest.is_some())
        .map(|(index, _)| *index)
        .take(LOCAL_KEPT)
        .collect()
}

/// Whether a crash would leave the entry at `index` in the log.
fn is_flushed(log: &CommitLog, index: u64) -> bool {
    log.flushed_index().is_some_and(|flushed| flushed >= index)
}

#[cfg(test)]
#[path = "checkpoint_test.rs"]
mod tests;
