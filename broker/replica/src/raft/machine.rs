//! openraft's state machine: applies entries through [`Machine`], decides when a checkpoint is
//! due, and turns checkpoints into Raft snapshots and back.

use std::{
    io,
    ops::RangeInclusive,
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
use raftmq_store::{CommitLog, EntryKind, LogId as StoreLogId, StoreError, checkpoint::Checkpoint};
use tokio::{task::yield_now, time::Instant};

use super::{
    log_store::{SnapshotBoundary, storage_error},
    repair::blocking,
    types::{
        Batch, Entry, LogId, Replies, Snapshot, SnapshotMeta, StoredMembership, TypeConfig,
        decode_membership, encode_membership, log_id, store_id,
    },
};
use crate::{
    checkpoint::{
        self, CheckpointWriter, Checkpoints, Job, MembershipRecord, Restored, checkpoint_at,
    },
    host::{AppliedEntry, is_simulated, simulated},
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

/// Index of the checkpoint that serves as the Raft snapshot; zero = none. Raised by the retention
/// before it asks Raft for a snapshot, and when one is installed. It never comes down: what is
/// before it may be purged.
#[derive(Clone, Debug, Default)]
pub(crate) struct SnapshotTarget(Arc<AtomicU64>);

impl SnapshotTarget {
    /// The checkpoint that stands for what is purged already, and reaches no further than the state
    /// that was restored: Raft would replace that.
    pub(crate) fn begin(
        log: &CommitLog,
        checkpoints: &Checkpoints,
        restored: Option<StoreLogId>,
    ) -> Self {
        let target = Self::default();
        if let Some(purged) = log.purged_id() {
            let among = purged.index..=restored.map_or(0, |restored| restored.index);
            let mut rolls = checkpoints.rolls().into_iter().map(|roll| roll.id.index);
            let roll = rolls.find(|index| among.contains(index));
            // Without one, whatever is whole stands for it.
            target.raise(roll.unwrap_or(purged.index).max(1));
        }
        target
    }

    /// Makes it `index`, unless it is more already.
    pub(crate) fn raise(&self, index: u64) {
        self.0.fetch_max(index, Ordering::SeqCst);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

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
            || (bytes > 0 && self.checkpoints.is_one_wanted())
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
        self.checkpoints.one_is_taken();
        self.writer.submit(job);
        self.checkpoint_physical = physical;
        self.checkpoint_at = Instant::now();
        Ok(())
    }

    /// A snapshot of everything that is purged, and of no more than is applied: the checkpoint at
    /// `index`, or another one that is whole. If there is none, the state in memory becomes one: a
    /// damaged file must end neither the start of this node nor its lead. Read and encoded away from
    /// Raft's thread: both take as long as the state is large, and heartbeats must go on.
    async fn load_snapshot(&self, index: u64) -> Result<Snapshot, io::Error> {
        let among = indexes_for_snapshot(&self.log, self.applied.as_ref());
        if let Some(snapshot) = load_whole(&self.checkpoints, index, among).await? {
            return Ok(snapshot);
        }
        let applied = self.applied.ok_or_else(|| invalid("nothing is applied"))?;
        tracing::warn!(%applied, "no checkpoint is whole; send the state as it is now");
        let membership = membership_record(&self.membership)?;
        let (machine, log) = (Arc::clone(&self.machine), Arc::clone(&self.log));
        let taken = blocking(move || {
            let position = log.position_at(applied.index())?;
            let state = machine.state().encode();
            let last_ms = machine.last_store_timestamp_ms();
            pieces_of(&checkpoint_at(&position, (state, &membership, last_ms)))
        });
        snapshot_of(taken.await.map_err(storage_error)?)
    }
}

/// Shows a simulation what was applied, so that it can compare its processes.
fn show(entry: &Entry) -> Result<(), io::Error> {
    if !is_simulated() {
        return Ok(());
    }
    let (kind, payload, physical_offset) = match &entry.payload {
        EntryPayload::Blank => (EntryKind::Blank, Bytes::new(), 0),
        EntryPayload::Normal(batch) => (
            EntryKind::Normal,
            batch.payload.clone(),
            batch.physical_offset,
        ),
        EntryPayload::Membership(membership) => {
            (EntryKind::Membership, encode_membership(membership)?, 0)
        }
    };
    let applied = AppliedEntry {
        index: entry.log_id.index(),
        term: entry.log_id.committed_leader_id().term,
        kind,
        payload: &payload,
        physical_offset,
    };
    simulated(|simulation| simulation.applied(applied));
    Ok(())
}

/// Where a checkpoint may stand to be sent: Raft has the entries after it, and has applied it.
fn indexes_for_snapshot(log: &CommitLog, applied: Option<&LogId>) -> RangeInclusive<u64> {
    let purged = log.purged_id().map_or(0, |purged| purged.index);
    purged..=applied.map_or(0, LogId::index)
}

/// The Raft snapshot of the checkpoint at `index`, or of another whole one `among` these; read and
/// encoded away from Raft's thread.
async fn load_whole(
    checkpoints: &Arc<Checkpoints>,
    index: u64,
    among: RangeInclusive<u64>,
) -> Result<Option<Snapshot>, io::Error> {
    let checkpoints = Arc::clone(checkpoints);
    let loaded = blocking(move || {
        let whole = checkpoints.whole_one(index, among);
        whole.as_ref().map(pieces_of).transpose()
    });
    let loaded = loaded.await.map_err(storage_error)?;
    loaded.map(snapshot_of).transpose()
}

/// What a snapshot tells of a checkpoint, and its bytes.
type Pieces = (StoreLogId, MembershipRecord, Bytes);

fn pieces_of(checkpoint: &Checkpoint) -> Result<Pieces, StoreError> {
    let membership = checkpoint::membership_of(checkpoint)?;
    Ok((checkpoint.id, membership, checkpoint.encode()))
}

fn snapshot_of((id, membership, bytes): Pieces) -> Result<Snapshot, io::Error> {
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
    among: RangeInclusive<u64>,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        // An older one than the wanted one is no news to Raft, and the purge gives up.
        let found = load_whole(&self.checkpoints, self.index, self.among.clone()).await?;
        found.ok_or_else(|| invalid("no checkpoint is whole"))
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
            show(&entry)?;
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
        match self.snapshot_target.get() {
            0 => None,
            _ => Some(self.get_snapshot_builder().await),
        }
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder {
            checkpoints: Arc::clone(&self.checkpoints),
            index: self.snapshot_target.get(),
            among: indexes_for_snapshot(&self.log, self.applied.as_ref()),
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
        self.snapshot_target.raise(index);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.checkpoint_physical = physical;
        self.metrics.raft.snapshots_installed_total.inc();
        tracing::info!(index, "installed snapshot");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        match self.snapshot_target.get() {
            0 => Ok(None),
            index => self.load_snapshot(index).await.map(Some),
        }
    }
}

#[cfg(test)]
#[path = "machine_test.rs"]
mod tests;
