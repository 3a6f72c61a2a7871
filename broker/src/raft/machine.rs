//! openraft's state machine: applies entries through [`Machine`], decides when a checkpoint is
//! due, and turns checkpoints into Raft snapshots and back.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{EntryResponder, RaftStateMachine},
};
use raftmq_state::Output;
use raftmq_store::{CommitLog, LogId as StoreLogId, StoreError, checkpoint::Checkpoint};
use tokio::{task::yield_now, time::Instant};

use super::{
    log_store::{SnapshotBoundary, storage_error},
    repair::blocking,
    types::{
        Batch, LogId, Replies, Snapshot, SnapshotMeta, StoredMembership, TypeConfig,
        decode_membership, encode_membership, log_id, store_id,
    },
};
use crate::{
    checkpoint::{self, CheckpointWriter, Checkpoints, Job, MembershipRecord, Restored},
    machine::Machine,
    metrics::Metrics,
};

/// Log bytes after which a local checkpoint is due. Replaying them takes a fraction of a second.
const CHECKPOINT_BYTES: u64 = 128 << 20;
/// Log bytes after which a checkpoint is due once [`CHECKPOINT_INTERVAL`] has passed: replaying
/// less is not worth a file.
const CHECKPOINT_BYTES_MIN: u64 = 8 << 20;
/// See [`CHECKPOINT_BYTES_MIN`].
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);

/// Commands after which the other tasks of Raft's thread get a turn while entries are applied. An
/// entry has 4096 at most, which take some milliseconds.
const TURN_COMMANDS: u32 = 1024;

/// Index of the checkpoint that serves as the Raft snapshot; zero = none. Set by the retention
/// before it asks Raft for a snapshot.
pub(crate) type SnapshotTarget = Arc<AtomicU64>;

/// The apply task's side of this node.
#[derive(Debug)]
pub(crate) struct RaftMachine {
    machine: Arc<Machine>,
    log: Arc<CommitLog>,
    checkpoints: Arc<Checkpoints>,
    writer: CheckpointWriter,
    snapshot_target: SnapshotTarget,
    boundary: SnapshotBoundary,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// Address up to which the newest checkpoint, written or queued, covers the log.
    checkpoint_physical: u64,
    checkpoint_at: Instant,
    output: Output,
    metrics: Arc<Metrics>,
}

/// What the apply task starts from.
#[derive(Debug)]
pub(crate) struct RaftMachineParts {
    pub machine: Arc<Machine>,
    pub checkpoints: Arc<Checkpoints>,
    pub writer: CheckpointWriter,
    pub snapshot_target: SnapshotTarget,
    pub boundary: SnapshotBoundary,
    /// Log id of the checkpoint the state was restored from.
    pub applied: Option<LogId>,
    pub membership: MembershipRecord,
    /// Address the checkpoint covers the log up to.
    pub checkpoint_physical: u64,
    pub metrics: Arc<Metrics>,
}

pub(super) fn membership_record(stored: &StoredMembership) -> Result<MembershipRecord, io::Error> {
    Ok(MembershipRecord {
        id: stored
            .log_id()
            .map(|id| (id.committed_leader_id().term, id.index())),
        json: encode_membership(stored.membership())?,
    })
}

pub(super) fn stored_membership(record: &MembershipRecord) -> Result<StoredMembership, io::Error> {
    let Some((term, index)) = record.id else {
        return Ok(StoredMembership::default());
    };
    let id = LogId::new_term_index(term, index);
    Ok(StoredMembership::new(
        Some(id),
        decode_membership(&record.json)?,
    ))
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

impl RaftMachine {
    /// A state machine over restored parts.
    pub(crate) fn new(parts: RaftMachineParts) -> Result<Self, io::Error> {
        Ok(Self {
            log: Arc::clone(parts.machine.log()),
            machine: parts.machine,
            checkpoints: parts.checkpoints,
            writer: parts.writer,
            snapshot_target: parts.snapshot_target,
            boundary: parts.boundary,
            applied: parts.applied,
            membership: stored_membership(&parts.membership)?,
            checkpoint_physical: parts.checkpoint_physical,
            checkpoint_at: Instant::now(),
            output: Output::default(),
            metrics: parts.metrics,
        })
    }

    async fn apply_normal(&mut self, id: LogId, batch: &Batch) -> Result<Replies, io::Error> {
        self.checkpoint_before(batch.physical_offset).await?;
        let replies = self
            .machine
            .apply(
                id.index(),
                batch.physical_offset,
                &batch.payload,
                &mut self.output,
            )
            .map_err(invalid)?;
        Ok(Replies(replies))
    }

    fn skip(&self, id: LogId) -> Result<Replies, io::Error> {
        self.machine.skip(id.index()).map_err(invalid)?;
        Ok(Replies::default())
    }

    /// Takes a checkpoint of the state as it is before the entry whose payload begins at
    /// `payload_physical_offset`, if one is due there.
    async fn checkpoint_before(&mut self, payload_physical_offset: u64) -> Result<(), io::Error> {
        let Some(applied) = self.applied else {
            return Ok(());
        };
        let entry_physical =
            payload_physical_offset.saturating_sub(raftmq_store::HEADER_BYTES as u64);
        let bytes = entry_physical.saturating_sub(self.checkpoint_physical);
        let roll = bytes > 0 && self.log.is_segment_base(entry_physical);
        let due = bytes >= CHECKPOINT_BYTES
            || (bytes >= CHECKPOINT_BYTES_MIN
                && self.checkpoint_at.elapsed() >= CHECKPOINT_INTERVAL);
        if !(roll && self.writer.has_room() || due && self.writer.is_idle()) {
            return Ok(());
        }
        self.submit_checkpoint(applied, entry_physical, roll).await
    }

    /// Encodes the state away from Raft's thread: a large one takes longer than an election
    /// timeout. Nothing is applied meanwhile, so it is the state of one point of the log.
    async fn submit_checkpoint(
        &mut self,
        applied: LogId,
        physical: u64,
        roll: bool,
    ) -> Result<(), io::Error> {
        let machine = Arc::clone(&self.machine);
        let taken = blocking(move || Ok((machine.state().encode(), machine.index().freeze())));
        let (state, index) = taken.await.map_err(storage_error)?;
        let job = Job {
            id: store_id(&applied),
            state,
            membership: membership_record(&self.membership)?,
            index,
            last_store_timestamp_ms: self.machine.last_store_timestamp_ms(),
            roll,
        };
        self.writer.submit(job);
        self.checkpoint_physical = physical;
        self.checkpoint_at = Instant::now();
        Ok(())
    }
}

/// The Raft snapshot of the checkpoint at `index`. Read and encoded away from Raft's thread: both
/// take as long as the state is large, and heartbeats must go on.
async fn load_snapshot(checkpoints: &Arc<Checkpoints>, index: u64) -> Result<Snapshot, io::Error> {
    let checkpoints = Arc::clone(checkpoints);
    let loaded = blocking(move || {
        let checkpoint = checkpoints.read(index)?;
        let membership = checkpoint::membership_of(&checkpoint)?;
        Ok((checkpoint.id, membership, checkpoint.encode()))
    });
    let (id, membership, bytes) = loaded.await.map_err(storage_error)?;
    Ok(Snapshot {
        meta: meta_of(id, &membership)?,
        snapshot: SnapshotData::from(bytes),
    })
}

/// The description of the snapshot that decoded to `restored`.
pub(crate) fn snapshot_meta(restored: &Restored) -> Result<SnapshotMeta, io::Error> {
    meta_of(restored.id, &restored.membership)
}

fn meta_of(id: StoreLogId, membership: &MembershipRecord) -> Result<SnapshotMeta, io::Error> {
    Ok(SnapshotMeta {
        last_log_id: Some(log_id(id)),
        last_membership: stored_membership(membership)?,
    })
}

/// Reads a snapshot that came from a leader, away from Raft's thread.
pub(crate) async fn receive_snapshot(bytes: Bytes) -> Result<Snapshot, io::Error> {
    let received = blocking(move || Ok((bytes.clone(), decode_snapshot(bytes)?)));
    let (bytes, decoded) = received.await.map_err(storage_error)?;
    Ok(Snapshot {
        meta: snapshot_meta(&decoded.restored)?,
        snapshot: SnapshotData {
            bytes,
            decoded: Some(Box::new(decoded)),
        },
    })
}

fn decode_snapshot(bytes: Bytes) -> Result<Decoded, StoreError> {
    let checkpoint = Checkpoint::decode(bytes)?;
    let restored = checkpoint::restore(&checkpoint)?;
    Ok(Decoded {
        checkpoint,
        restored,
    })
}

/// Puts a decoded snapshot in the place of everything and stores it.
fn install(
    machine: &Machine,
    checkpoints: &Checkpoints,
    decoded: Decoded,
) -> Result<(), StoreError> {
    let Decoded {
        checkpoint,
        restored,
    } = decoded;
    machine.restore(restored.state, restored.last_store_timestamp_ms);
    let index_now = machine.index().freeze();
    let manifest = machine.index().write_frozen(&index_now)?;
    let manifest = manifest.expect("nothing is applied, frozen or cleared meanwhile");
    checkpoints.install(checkpoint, manifest)
}

/// A snapshot as Raft passes it on. One that came from a peer was read already, to know what it
/// is of: it is not read again to be installed.
#[derive(Debug)]
pub(crate) struct SnapshotData {
    /// The encoded checkpoint.
    pub bytes: Bytes,
    pub decoded: Option<Box<Decoded>>,
}

impl From<Bytes> for SnapshotData {
    fn from(bytes: Bytes) -> Self {
        Self {
            bytes,
            decoded: None,
        }
    }
}

/// A checkpoint and everything it says.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub checkpoint: Checkpoint,
    pub restored: Restored,
}

/// Turns the chosen checkpoint into a snapshot.
#[derive(Debug)]
pub(crate) struct SnapshotBuilder {
    checkpoints: Arc<Checkpoints>,
    index: u64,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        load_snapshot(&self.checkpoints, self.index).await
    }
}

impl RaftStateMachine<TypeConfig> for RaftMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut applied_commands = 0;
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let replies = match &entry.payload {
                EntryPayload::Blank => self.skip(entry.log_id)?,
                EntryPayload::Normal(batch) => {
                    applied_commands += batch.count;
                    self.apply_normal(entry.log_id, batch).await?
                }
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                    self.skip(entry.log_id)?
                }
            };
            self.applied = Some(entry.log_id);
            if let Some(responder) = responder {
                responder.send(replies);
            }
            // Entries in memory are there at once: a node that catches up would apply thousands of
            // them in one go.
            if applied_commands >= TURN_COMMANDS {
                applied_commands = 0;
                yield_now().await;
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<SnapshotBuilder> {
        match self.snapshot_target.load(Ordering::SeqCst) {
            0 => None,
            index => Some(SnapshotBuilder {
                checkpoints: Arc::clone(&self.checkpoints),
                index,
            }),
        }
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let index = self.snapshot_target.load(Ordering::SeqCst);
        SnapshotBuilder {
            checkpoints: Arc::clone(&self.checkpoints),
            index,
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let decoded = match snapshot.decoded {
            Some(decoded) => *decoded,
            None => blocking(move || decode_snapshot(snapshot.bytes))
                .await
                .map_err(storage_error)?,
        };
        let index = decoded.restored.id.index;
        let physical = decoded.restored.position.end_physical;
        self.boundary.note(decoded.restored.position.clone());
        let (machine, checkpoints) = (Arc::clone(&self.machine), Arc::clone(&self.checkpoints));
        let installed = blocking(move || install(&machine, &checkpoints, decoded));
        installed.await.map_err(storage_error)?;
        self.snapshot_target.store(index, Ordering::SeqCst);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.checkpoint_physical = physical;
        self.metrics.raft.snapshots_installed_total.inc();
        tracing::info!(index, "installed snapshot");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        match self.snapshot_target.load(Ordering::SeqCst) {
            0 => Ok(None),
            index => load_snapshot(&self.checkpoints, index).await.map(Some),
        }
    }
}
