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
use raftmq_store::{CommitLog, checkpoint::Checkpoint};
use tokio::time::Instant;

use super::{
    log_store::{SnapshotBoundary, storage_error},
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

    fn apply_normal(&mut self, id: LogId, batch: &Batch) -> Result<Replies, io::Error> {
        self.checkpoint_before(batch.physical_offset)?;
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
    fn checkpoint_before(&mut self, payload_physical_offset: u64) -> Result<(), io::Error> {
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
        self.submit_checkpoint(applied, entry_physical, roll)
    }

    fn submit_checkpoint(
        &mut self,
        applied: LogId,
        physical: u64,
        roll: bool,
    ) -> Result<(), io::Error> {
        let job = Job {
            id: store_id(&applied),
            state: self.machine.state().encode(),
            membership: membership_record(&self.membership)?,
            index: self.machine.index().freeze(),
            last_store_timestamp_ms: self.machine.last_store_timestamp_ms(),
            roll,
        };
        self.writer.submit(job);
        self.checkpoint_physical = physical;
        self.checkpoint_at = Instant::now();
        Ok(())
    }

    fn load_snapshot(&self, index: u64) -> Result<Snapshot, io::Error> {
        let checkpoint = self.checkpoints.read(index).map_err(storage_error)?;
        snapshot_of(&checkpoint)
    }
}

/// The Raft snapshot that `checkpoint` stands for.
fn snapshot_of(checkpoint: &Checkpoint) -> Result<Snapshot, io::Error> {
    let restored = checkpoint::restore(checkpoint).map_err(storage_error)?;
    let meta = snapshot_meta(&restored)?;
    Ok(Snapshot {
        meta,
        snapshot: checkpoint.encode(),
    })
}

/// The description of the snapshot that decoded to `restored`.
pub(crate) fn snapshot_meta(restored: &Restored) -> Result<SnapshotMeta, io::Error> {
    Ok(SnapshotMeta {
        last_log_id: Some(log_id(restored.id)),
        last_membership: stored_membership(&restored.membership)?,
    })
}

/// Turns the chosen checkpoint into a snapshot.
#[derive(Debug)]
pub(crate) struct SnapshotBuilder {
    checkpoints: Arc<Checkpoints>,
    index: u64,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let checkpoint = self.checkpoints.read(self.index).map_err(storage_error)?;
        snapshot_of(&checkpoint)
    }
}

impl RaftStateMachine<TypeConfig> for RaftMachine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let replies = match &entry.payload {
                EntryPayload::Blank => self.skip(entry.log_id)?,
                EntryPayload::Normal(batch) => self.apply_normal(entry.log_id, batch)?,
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                    self.skip(entry.log_id)?
                }
            };
            self.applied = Some(entry.log_id);
            if let Some(responder) = responder {
                responder.send(replies);
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
        snapshot: Bytes,
    ) -> Result<(), io::Error> {
        let checkpoint = Checkpoint::decode(snapshot).map_err(storage_error)?;
        let restored = checkpoint::restore(&checkpoint).map_err(storage_error)?;
        let index = restored.id.index;
        let physical = restored.position.end_physical;
        *self
            .boundary
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(restored.position);
        self.machine
            .restore(restored.state, restored.last_store_timestamp_ms);
        let index_now = self.machine.index().freeze();
        let manifest = self.machine.index().write_frozen(&index_now);
        let manifest = manifest.map_err(storage_error)?;
        let manifest = manifest.expect("only this task freezes or clears the index");
        self.checkpoints
            .install(checkpoint, manifest)
            .map_err(storage_error)?;
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
            index => self.load_snapshot(index).map(Some),
        }
    }
}
