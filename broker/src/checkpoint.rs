//! Checkpoints of this node: taken by the apply task, written by a thread of their own.
//!
//! Two kinds share one file format. A *local* checkpoint (with the index manifest) bounds the
//! work of a restart. A *roll* checkpoint stands at the end of a segment; the retention turns one
//! into the Raft snapshot of its point before it purges the log up to there. A checkpoint never
//! names an entry that is not flushed on this node, since Raft may apply before the local flush.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use raftmq_state::State;
use raftmq_store::{
    CommitLog, Disk, LogId, LogPosition, StoreError,
    checkpoint::{Checkpoint, CheckpointDir},
    index::{FrozenMemory, QueueIndex},
};

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
}

/// Jobs that may wait for the writer. Beyond it no checkpoint is taken: the next one covers it.
const JOBS_MAX: usize = 4;
/// Local checkpoints kept, so that a damaged newest one does not cost a full scan.
const LOCAL_KEPT: usize = 2;
/// Pause between looks at the flushed index, and how often to look before giving up.
const FLUSH_WAIT: Duration = Duration::from_millis(2);
const FLUSH_WAITS_MAX: u32 = 5_000;

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
}

/// One checkpoint to write.
#[derive(Debug)]
pub(crate) struct Job {
    pub id: LogId,
    pub state: Vec<u8>,
    pub membership: MembershipRecord,
    pub frozen: Option<FrozenMemory>,
    pub last_store_timestamp_ms: u64,
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

/// The checkpoint folder and the roll points in it. Shared by the writer, Raft and retention.
#[derive(Debug)]
pub struct Checkpoints {
    dir: CheckpointDir,
    rolls: Mutex<Vec<RollPoint>>,
}

fn damaged(section: &str) -> StoreError {
    StoreError::decode(
        "the checkpoint",
        format!("section {section} is missing or damaged"),
    )
}

fn membership_section(record: &MembershipRecord) -> Bytes {
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

/// Decodes all sections of `checkpoint`.
///
/// # Errors
/// When a section is missing or damaged.
pub fn restore(checkpoint: &Checkpoint) -> Result<Restored, StoreError> {
    let section = |tag, name| checkpoint.sections.get(&tag).ok_or_else(|| damaged(name));
    let state = State::decode(section(section::STATE, "state")?)
        .map_err(|error| StoreError::decode("the state in a checkpoint", error.to_string()))?;
    let position = LogPosition::decode(section(section::POSITION, "position")?)?;
    let membership = decode_membership_section(section(section::MEMBERSHIP, "membership")?)
        .ok_or_else(|| damaged("membership"))?;
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
    })
}

fn roll_point(checkpoint: &Checkpoint) -> Option<RollPoint> {
    checkpoint.sections.get(&section::ROLL)?;
    let position = LogPosition::decode(checkpoint.sections.get(&section::POSITION)?).ok()?;
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

impl Checkpoints {
    /// Opens the folder and reads which checkpoints stand at the end of a segment.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, StoreError> {
        let dir = CheckpointDir::open(disk, dir)?;
        let mut rolls = Vec::new();
        for index in dir.list()? {
            match dir.read(index) {
                Ok(checkpoint) => rolls.extend(roll_point(&checkpoint)),
                Err(error) => tracing::warn!(index, %error, "skip damaged checkpoint"),
            }
        }
        Ok(Self {
            dir,
            rolls: Mutex::new(rolls),
        })
    }

    /// The newest intact checkpoint that a restart can begin from.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn newest(&self) -> Result<Option<Restored>, StoreError> {
        for index in self.dir.list()?.into_iter().rev() {
            match self
                .dir
                .read(index)
                .and_then(|checkpoint| restore(&checkpoint))
            {
                Ok(restored) if restored.index_manifest.is_some() => return Ok(Some(restored)),
                Ok(_) => {}
                Err(error) => tracing::warn!(index, %error, "skip damaged checkpoint"),
            }
        }
        Ok(None)
    }

    /// Points the log may be purged up to, oldest first.
    #[must_use]
    pub fn rolls(&self) -> Vec<RollPoint> {
        self.rolls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The checkpoint at `index`.
    ///
    /// # Errors
    /// When it does not exist or is damaged.
    pub fn read(&self, index: u64) -> Result<Checkpoint, StoreError> {
        self.dir.read(index)
    }

    /// Stores a checkpoint that came from another node as a snapshot. It can begin a restart: its
    /// index is empty by definition.
    pub(crate) fn install(
        &self,
        mut checkpoint: Checkpoint,
        empty_manifest: Vec<u8>,
    ) -> Result<(), StoreError> {
        checkpoint
            .sections
            .insert(section::INDEX, Bytes::from(empty_manifest));
        self.dir.write(&checkpoint)?;
        if let Some(roll) = roll_point(&checkpoint) {
            let mut rolls = self.rolls.lock().unwrap_or_else(PoisonError::into_inner);
            rolls.retain(|known| known.id.index != roll.id.index);
            rolls.push(roll);
            rolls.sort_by_key(|known| known.id.index);
        }
        Ok(())
    }

    /// Drops checkpoints that nothing needs any more: local ones but the newest few, and roll
    /// points below `purged`.
    pub(crate) fn prune(&self, purged: Option<u64>) -> Result<(), StoreError> {
        let keep_from = purged.unwrap_or(0);
        let rolls: Vec<u64> = {
            let mut rolls = self.rolls.lock().unwrap_or_else(PoisonError::into_inner);
            rolls.retain(|roll| roll.id.index >= keep_from);
            rolls.iter().map(|roll| roll.id.index).collect()
        };
        for index in self.dir.list()?.into_iter().rev().skip(LOCAL_KEPT) {
            if !rolls.contains(&index) {
                self.dir.remove(index)?;
            }
        }
        Ok(())
    }

    fn write(&self, job: Job, log: &CommitLog, index: &QueueIndex) -> Result<(), StoreError> {
        wait_until_flushed(log, job.id.index)?;
        let position = log.position_at(job.id.index)?;
        let mut sections = BTreeMap::new();
        if let Some(frozen) = job.frozen {
            index.write_frozen(frozen)?;
            sections.insert(section::INDEX, Bytes::from(index.manifest()));
        }
        sections.insert(section::STATE, Bytes::from(job.state));
        sections.insert(section::POSITION, Bytes::from(position.encode()));
        sections.insert(section::MEMBERSHIP, membership_section(&job.membership));
        let timestamp = job.last_store_timestamp_ms.to_le_bytes();
        sections.insert(section::TIMESTAMP, Bytes::copy_from_slice(&timestamp));
        if job.roll {
            sections.insert(section::ROLL, Bytes::new());
        }
        let checkpoint = Checkpoint {
            id: job.id,
            sections,
        };
        self.dir.write(&checkpoint)?;
        if let Some(roll) = roll_point(&checkpoint) {
            self.rolls
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(roll);
        }
        self.prune(log.purged_id().map(|id| id.index))?;
        self.retire_runs(index)
    }

    /// Lets the index delete run files that no kept checkpoint names.
    fn retire_runs(&self, index: &QueueIndex) -> Result<(), StoreError> {
        let mut manifests = Vec::new();
        for at in self.dir.list()? {
            if let Ok(checkpoint) = self.dir.read(at)
                && let Some(manifest) = checkpoint.sections.get(&section::INDEX)
            {
                manifests.push(manifest.to_vec());
            }
        }
        index.retire(&manifests).map(|_| ())
    }
}

fn wait_until_flushed(log: &CommitLog, index: u64) -> Result<(), StoreError> {
    for _ in 0..FLUSH_WAITS_MAX {
        if log.flushed_index().is_some_and(|flushed| flushed >= index) {
            return Ok(());
        }
        thread::sleep(FLUSH_WAIT);
    }
    Err(StoreError::Failed(format!(
        "entry {index} of a checkpoint is not flushed after 10 s"
    )))
}

/// Hands checkpoints to the writer thread.
#[derive(Clone, Debug)]
pub(crate) struct CheckpointWriter {
    jobs: mpsc::SyncSender<Job>,
    /// Jobs queued or being written.
    pending: Arc<AtomicUsize>,
}

impl CheckpointWriter {
    /// Starts the writer thread; it ends when the last handle is dropped.
    pub(crate) fn start(
        checkpoints: Arc<Checkpoints>,
        log: Arc<CommitLog>,
        index: Arc<QueueIndex>,
    ) -> io::Result<Self> {
        let (jobs, inbox) = mpsc::sync_channel::<Job>(JOBS_MAX);
        let pending = Arc::new(AtomicUsize::new(0));
        let done = Arc::clone(&pending);
        thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || {
                while let Ok(job) = inbox.recv() {
                    let at = job.id.index;
                    match checkpoints.write(job, &log, &index) {
                        Ok(()) => tracing::debug!(index = at, "wrote checkpoint"),
                        // Not fatal: a restart begins from an older checkpoint.
                        Err(error) => tracing::error!(index = at, %error, "write checkpoint"),
                    }
                    done.fetch_sub(1, Ordering::SeqCst);
                    match index.merge_step() {
                        Ok(_) => {}
                        Err(error) => tracing::error!(%error, "merge index runs"),
                    }
                }
            })?;
        Ok(Self { jobs, pending })
    }

    /// Whether nothing is queued or being written.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.load(Ordering::SeqCst) == 0
    }

    /// Whether [`submit`](Self::submit) would accept a job. There is one submitter, the apply task.
    pub(crate) fn has_room(&self) -> bool {
        self.pending.load(Ordering::SeqCst) < JOBS_MAX
    }

    /// Queues `job`. The caller has seen [`has_room`](Self::has_room), so that no frozen index
    /// memory is ever dropped unwritten.
    pub(crate) fn submit(&self, job: Job) {
        self.pending.fetch_add(1, Ordering::SeqCst);
        if self.jobs.try_send(job).is_err() {
            self.pending.fetch_sub(1, Ordering::SeqCst);
            tracing::error!("checkpoint writer is gone; a restart will begin from an older one");
        }
    }
}
