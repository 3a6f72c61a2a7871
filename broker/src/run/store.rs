//! Opens the data folder.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use raftmq_state::State;
use raftmq_store::{
    CommitLog, Disk, FORMAT_VERSION, FlushPolicy, Flusher, Identity, LogConfig, LogId, LogPosition,
    Preallocator, StoreError, index::QueueIndex,
};

use super::RunError;
use crate::{
    checkpoint::{Checkpoints, MembershipRecord, Restored},
    config::{BrokerConfig, FlushDiskType},
    host::random_number,
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

/// What is read before the log is opened.
pub(super) struct Folder {
    pub(super) identity: Identity,
    pub(super) restored: Option<Restored>,
    /// From where the log is verified.
    pub(super) position: Option<LogPosition>,
    pub(super) log_config: LogConfig,
    pub(super) checkpoints: Arc<Checkpoints>,
}

/// Reads whose folder this is, and its newest checkpoint.
pub(super) fn read_folder(
    config: &BrokerConfig,
    disk: &Arc<dyn Disk>,
) -> Result<Folder, StoreError> {
    let root = &config.store_root;
    let expected = Identity {
        cluster: config.cluster_name.clone(),
        group: config.raft.group.clone(),
        node_id: config.raft.self_id,
        incarnation: String::new(),
        format_version: FORMAT_VERSION,
    };
    let has_log = raftmq_store::has_log(&**disk, &config.store_commitlog)?;
    let identity = Identity::open_or_create(&**disk, root, &expected, &new_incarnation(), has_log)?;
    let checkpoints = Arc::new(Checkpoints::open(
        Arc::clone(disk),
        &root.join("checkpoint"),
    )?);
    let restored = checkpoints.newest();
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
        now: || tokio::time::Instant::now().into_std(),
        ..LogConfig::new(&config.store_commitlog)
    };
    let position = match &restored {
        Some(restored) => checkpoints.verified_position(restored),
        None => None,
    };
    Ok(Folder {
        identity,
        restored,
        position,
        log_config,
        checkpoints,
    })
}

fn open_folders(
    config: &BrokerConfig,
    disk: Arc<dyn Disk>,
    root: &Path,
) -> Result<Opened, StoreError> {
    let Folder {
        identity,
        restored,
        position,
        log_config,
        checkpoints,
    } = read_folder(config, &disk)?;
    let (log, flusher, preallocator, report) =
        CommitLog::open(Arc::clone(&disk), log_config, position.as_ref())?;
    tracing::info!(?report, "opened the log");
    let (index, restored) = open_index(&disk, root, &log, (&checkpoints, restored))?;
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

/// 128 random bits as hexadecimal digits: two disks never get the same ones.
fn new_incarnation() -> String {
    format!("{:016x}{:016x}", random_number(), random_number())
}

/// Where the consume queue of a data folder is.
pub(super) fn index_folder(root: &Path) -> PathBuf {
    root.join("consumequeue")
}

/// Opens the consume queue that belongs to the restored checkpoint. When it is damaged, or no
/// checkpoint with a consume queue reaches to where the log begins, everything is rebuilt from the
/// log instead, from its beginning or from the checkpoint that stands there.
fn open_index(
    disk: &Arc<dyn Disk>,
    root: &Path,
    log: &CommitLog,
    (checkpoints, restored): (&Checkpoints, Option<Restored>),
) -> Result<(QueueIndex, Option<Restored>), StoreError> {
    let dir = index_folder(root);
    if let Some(restored) = restored {
        move_to_installed(log, &restored)?;
        let purged = log.purged_id();
        if purged.is_none_or(|purged| purged.index <= restored.id.index) {
            match QueueIndex::open(Arc::clone(disk), &dir, restored.index_manifest.as_deref()) {
                Ok(index) => return Ok((index, Some(restored))),
                Err(error) => {
                    tracing::warn!(%error, "the consume queue is damaged; rebuild it from the log");
                }
            }
        }
    }
    let Some(purged) = log.purged_id() else {
        return Ok((QueueIndex::open(Arc::clone(disk), &dir, None)?, None));
    };
    let last = log.last_id().unwrap_or(purged);
    let beginning = checkpoints.oldest_whole(purged.index..=last.index, |_| true);
    let Some((checkpoint, restored)) = beginning else {
        return Err(StoreError::NoCheckpoint {
            purged: purged.to_string(),
            physical_offset: log.min_physical(),
        });
    };
    tracing::warn!(
        index = restored.id.index,
        "begin with the checkpoint where the log begins"
    );
    let index = QueueIndex::open(Arc::clone(disk), &dir, None)?;
    checkpoints.adopt(checkpoint, &restored, &index)?;
    Ok((index, Some(restored)))
}

/// Does what Raft would have done next if the process had not ended between the install of a
/// snapshot and the move of the log there.
fn move_to_installed(log: &CommitLog, restored: &Restored) -> Result<(), StoreError> {
    let behind = |last: LogId| last.index < restored.id.index;
    if restored.installed && log.last_id().is_none_or(behind) {
        let position = &restored.position;
        tracing::info!(
            index = restored.id.index,
            "move the log to the installed snapshot"
        );
        log.reset(position.id, position.end_physical, position.crc)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use raftmq_store::{EntryKind, NewEntry, RealDisk};

    use super::*;
    use crate::{checkpoint::Job, config::Surroundings};

    fn open(dir: &Path) -> Opened {
        try_open(dir).unwrap()
    }

    fn try_open(dir: &Path) -> Result<Opened, RunError> {
        let text = format!(
            "storePathRootDir={}\ncommitLogPreallocateBytes=0\n",
            dir.display()
        );
        let surroundings = Surroundings {
            home: dir.to_owned(),
            host_name: "machine".to_owned(),
            local_ip: "127.0.0.1".to_owned(),
        };
        let (config, _) = BrokerConfig::parse_in(&text, "broker.conf", &surroundings).unwrap();
        open_store(&config, Arc::new(RealDisk))
    }

    fn append(opened: &Opened, count: u64) {
        let next = opened.log.last_id().map_or(0, |last| last.index + 1);
        let entries = (next..next + count).map(|index| NewEntry {
            id: LogId {
                term: 1,
                node: 0,
                index,
            },
            kind: EntryKind::Normal,
            count: 1,
            payload: Bytes::from_static(&[7; 100]),
        });
        opened
            .log
            .append(entries.collect(), Box::new(|_| ()))
            .unwrap();
        opened.log.flush().unwrap();
    }

    fn write_checkpoint(opened: &Opened, roll: bool) {
        let job = Job {
            id: opened.log.last_id().unwrap(),
            state: State::new().encode(),
            membership: MembershipRecord::default(),
            index: opened.index.freeze(),
            last_store_timestamp_ms: 1,
            roll,
        };
        opened
            .checkpoints
            .write(job, &opened.log, &opened.index)
            .unwrap();
    }

    /// Stores the checkpoint of another node, as the apply task does with a snapshot. Raft moves
    /// the log there afterwards.
    fn install(opened: &Opened, other: &Opened, index: u64) {
        let snapshot = other.checkpoints.read(index).unwrap();
        opened.index.clear();
        opened.index.begin_queue(7, 500);
        let manifest = opened.index.write_frozen(&opened.index.freeze()).unwrap();
        opened
            .checkpoints
            .install(snapshot, manifest.unwrap())
            .unwrap();
    }

    #[test]
    fn a_restart_between_the_install_of_a_snapshot_and_the_move_of_the_log_moves_it() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [own, other] = dirs.each_ref().map(|dir| open(dir.path()));
        append(&own, 5);
        write_checkpoint(&own, false);
        append(&own, 5);
        append(&other, 101);
        write_checkpoint(&other, true);
        install(&own, &other, 100);
        drop(own);
        for round in 0..3 {
            let own = open(dirs[0].path());
            assert_eq!(own.applied.unwrap().index, 100);
            assert_eq!(own.log.purged_id().unwrap().index, 100);
            assert_eq!(own.log.last_id().unwrap().index, 100 + round);
            assert_eq!(own.log.min_physical(), other.log.max_physical());
            assert_eq!(own.index.bounds(7), (500, 500));
            append(&own, 1);
        }
    }

    #[test]
    fn a_log_that_reaches_beyond_an_installed_snapshot_is_kept() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [own, other] = dirs.each_ref().map(|dir| open(dir.path()));
        append(&own, 60);
        append(&other, 51);
        write_checkpoint(&other, true);
        install(&own, &other, 50);
        drop(own);
        let own = open(dirs[0].path());
        assert_eq!(own.applied.unwrap().index, 50);
        assert_eq!(own.log.purged_id(), None);
        assert_eq!(own.log.last_id().unwrap().index, 59);
    }

    #[test]
    fn a_log_that_ends_before_a_checkpoint_of_its_own_is_still_refused() {
        let dir = tempfile::tempdir().unwrap();
        let own = open(dir.path());
        append(&own, 10);
        write_checkpoint(&own, false);
        let segment = dir.path().join("commitlog").join(format!("{:020}", 0));
        drop(own);
        RealDisk.open(&segment).unwrap().set_len(500).unwrap();
        let error = try_open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("the log ends before"), "{error}");
    }
}
