//! Opens the data folder and starts the threads that write it.

use std::{
    hash::{BuildHasher, RandomState},
    path::Path,
    sync::Arc,
    time::Duration,
};

use raftmq_state::State;
use raftmq_store::{
    CommitLog, Disk, FORMAT_VERSION, FlushOutcome, FlushPolicy, Flusher, Identity, LogConfig,
    LogId, PreallocOutcome, Preallocator, StoreError, index::QueueIndex,
};

use super::RunError;
use crate::{
    checkpoint::{Checkpoints, MembershipRecord, Restored},
    config::{BrokerConfig, FlushDiskType},
    metrics::Metrics,
};

/// The opened data folder.
pub(super) struct Opened {
    /// Tells this disk from another one under the same node id.
    pub(super) incarnation: String,
    pub(super) log: Arc<CommitLog>,
    pub(super) index: Arc<QueueIndex>,
    pub(super) checkpoints: Arc<Checkpoints>,
    pub(super) state: State,
    pub(super) applied: Option<LogId>,
    pub(super) membership: MembershipRecord,
    pub(super) checkpoint_physical: u64,
    pub(super) last_store_timestamp_ms: u64,
    pub(super) flusher: Flusher,
    pub(super) preallocator: Preallocator,
}

pub(super) fn open_store(config: &BrokerConfig, disk: Arc<dyn Disk>) -> Result<Opened, RunError> {
    let root = config.store_root.clone();
    open_folders(config, disk, &root).map_err(|source| RunError::Store { path: root, source })
}

fn open_folders(
    config: &BrokerConfig,
    disk: Arc<dyn Disk>,
    root: &Path,
) -> Result<Opened, StoreError> {
    let expected = Identity {
        cluster: config.cluster_name.clone(),
        group: config.raft.group.clone(),
        node_id: config.raft.self_id,
        incarnation: String::new(),
        format_version: FORMAT_VERSION,
    };
    let has_log = raftmq_store::has_log(&*disk, &config.store_commitlog)?;
    let identity = Identity::open_or_create(&*disk, root, &expected, &new_incarnation(), has_log)?;
    let checkpoints = Arc::new(Checkpoints::open(
        Arc::clone(&disk),
        &root.join("checkpoint"),
    )?);
    let restored = checkpoints.newest()?;
    let log_config = LogConfig {
        segment_bytes: config.segment_bytes,
        tail_bytes: config.tail_bytes,
        preallocate_bytes: config.preallocate_bytes,
        flush: match config.flush {
            FlushDiskType::SyncFlush => FlushPolicy::Sync,
            FlushDiskType::AsyncFlush => FlushPolicy::Async {
                interval: Duration::from_millis(config.flush_interval_commit_log_ms),
            },
        },
        ..LogConfig::new(&config.store_commitlog)
    };
    let position = restored.as_ref().map(|restored| &restored.position);
    let (log, flusher, preallocator, report) =
        CommitLog::open(Arc::clone(&disk), log_config, position)?;
    tracing::info!(?report, "opened the log");
    let (index, restored) = open_index(&disk, root, &log, restored)?;
    index.set_min_physical(log.min_physical());
    let last_store_timestamp_ms = restored
        .as_ref()
        .map_or(0, |restored| restored.last_store_timestamp_ms);
    let (state, applied, membership, checkpoint_physical) = match restored {
        Some(restored) => {
            let physical = restored.position.end_physical;
            (
                restored.state,
                Some(restored.id),
                restored.membership,
                physical,
            )
        }
        None => (
            State::new(),
            None,
            MembershipRecord::default(),
            log.min_physical(),
        ),
    };
    Ok(Opened {
        incarnation: identity.incarnation,
        log,
        index: Arc::new(index),
        checkpoints,
        state,
        applied,
        membership,
        checkpoint_physical,
        last_store_timestamp_ms,
        flusher,
        preallocator,
    })
}

/// 128 random bits as hexadecimal digits: two disks never get the same ones. The keys of the
/// standard library's hashes are random numbers of the system.
fn new_incarnation() -> String {
    let random = RandomState::new();
    format!(
        "{:016x}{:016x}",
        random.hash_one(0_u8),
        random.hash_one(1_u8)
    )
}

/// Opens the consume queue that belongs to the restored checkpoint. When it is damaged and the
/// log is still whole from its beginning, everything is rebuilt from the log instead.
fn open_index(
    disk: &Arc<dyn Disk>,
    root: &Path,
    log: &CommitLog,
    restored: Option<Restored>,
) -> Result<(QueueIndex, Option<Restored>), StoreError> {
    let dir = root.join("consumequeue");
    let Some(restored) = restored else {
        return Ok((QueueIndex::open(Arc::clone(disk), &dir, None)?, None));
    };
    if log
        .last_id()
        .is_none_or(|last| last.index < restored.id.index)
    {
        // The process ended between installing a snapshot and moving the log there.
        let position = &restored.position;
        log.reset(position.id, position.end_physical, position.crc)?;
    }
    match QueueIndex::open(Arc::clone(disk), &dir, restored.index_manifest.as_deref()) {
        Ok(index) => Ok((index, Some(restored))),
        Err(error) if log.purged_id().is_none() => {
            tracing::warn!(%error, "the consume queue is damaged; rebuild it from the log");
            Ok((QueueIndex::open(Arc::clone(disk), &dir, None)?, None))
        }
        Err(error) => Err(error),
    }
}

/// The flush thread and the preallocation thread. Either one's failure ends the process: a node
/// that cannot write must not answer as if it could.
pub(super) fn start_disk_threads(
    mut flusher: Flusher,
    mut preallocator: Preallocator,
    metrics: &Arc<Metrics>,
) -> Result<(), RunError> {
    let metrics = Arc::clone(metrics);
    std::thread::Builder::new()
        .name("flush".into())
        .spawn(move || {
            loop {
                match flusher.run_once() {
                    FlushOutcome::Flushed { bytes, took, .. } => metrics.flushed(bytes, took),
                    FlushOutcome::Idle => {}
                    FlushOutcome::Stopped => return,
                    FlushOutcome::Failed(reason) => {
                        tracing::error!(reason, "the log cannot be written; the process ends");
                        std::process::abort();
                    }
                }
            }
        })?;
    std::thread::Builder::new()
        .name("preallocate".into())
        .spawn(move || {
            loop {
                match preallocator.run_once() {
                    PreallocOutcome::Stopped => return,
                    PreallocOutcome::Failed(error) => {
                        // Appends then grow the file themselves, slower but safe.
                        tracing::warn!(%error, "fill the log ahead");
                        std::thread::sleep(Duration::from_secs(1));
                    }
                    _ => {}
                }
            }
        })?;
    Ok(())
}
