//! Opens the data folder. When its log is damaged, the node stays out of its group: Raft is not
//! started, nothing is voted for, acknowledged or served, but ranges of the log for peers that are
//! damaged themselves. It mends what is damaged from its peers and then opens the folder again.

use std::{io, sync::Arc, time::Duration};

use raftmq_store::{
    Damage, Disk, Found, LogPosition, Mender, RangeSource, StoreError, Survey,
    checkpoint::Checkpoint, index::QueueIndex,
};
use tokio::{sync::watch, time::sleep};

use super::{
    RunError,
    store::{Folder, Opened, index_folder, open_store, read_folder},
};
use crate::{
    checkpoint::Restored,
    config::BrokerConfig,
    host,
    metrics::Metrics,
    net::{Listener, Net},
    raft::{Asked, RepairPeers, RepairSource, blocking},
};

/// Pause before peers are asked again for a checkpoint that none of them had: with a new segment they
/// may have one.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(5);

/// The opened folder, and the listener of the Raft port, which is used meanwhile. `None` when the
/// process was asked to stop before that.
///
/// # Errors
/// When the folder cannot be used, or is damaged in a way that peers cannot help with.
pub(super) async fn open(
    config: &BrokerConfig,
    disk: &Arc<dyn Disk>,
    net: &Arc<dyn Net>,
    listener: Box<dyn Listener>,
    metrics: &Arc<Metrics>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<Option<(Opened, Box<dyn Listener>)>, RunError> {
    let error = match open_once(config, disk).await {
        Ok(opened) => return Ok(Some((opened, listener))),
        Err(error) => error,
    };
    let is_mendable = matches!(&error, RunError::Store { source, .. }
        if source.is_corrupt() || matches!(source, StoreError::NoCheckpoint { .. }));
    if !is_mendable {
        return Err(error);
    }
    let in_folder = |source| RunError::Store {
        path: config.store_root.clone(),
        source,
    };
    let folder = folder_of(config, disk).await.map_err(in_folder)?;
    let membership = folder.restored.as_ref().map(|found| &found.membership);
    let peers = RepairPeers::before_raft(
        (&config.cluster_name, &config.raft),
        &folder.identity.incarnation,
        &membership.cloned().unwrap_or_default(),
        net,
        metrics,
    )?;
    if peers.is_alone() {
        return Err(error);
    }
    tracing::error!(%error, "the data folder is damaged; stay out of the group, and mend it from the peers");
    let source = RepairSource {
        ranges: RangeSource::new(Arc::clone(disk), &config.store_commitlog),
        checkpoints: folder.checkpoints,
    };
    let server = peers.serve(listener, source);
    let mended = tokio::select! {
        biased;
        _ = shutdown.wait_for(|stop| *stop) => return Ok(None),
        mended = mend_and_open(config, disk, error, &peers) => mended?,
    };
    let listener = server.stop().await?;
    Ok(Some((mended, listener)))
}

/// Mends what keeps the folder from opening, first what a start reads of the log, then all of it, and
/// opens it.
async fn mend_and_open(
    config: &BrokerConfig,
    disk: &Arc<dyn Disk>,
    mut error: RunError,
    peers: &RepairPeers,
) -> Result<Opened, RunError> {
    let in_folder = |source| RunError::Store {
        path: config.store_root.clone(),
        source,
    };
    let mut passes = [false, true].into_iter();
    let mut is_checkpoint_taken = false;
    loop {
        let RunError::Store { source, .. } = &error else {
            return Err(error);
        };
        match source {
            StoreError::NoCheckpoint {
                physical_offset, ..
            } if !is_checkpoint_taken => {
                is_checkpoint_taken = true;
                // Retention purges up to the end of a segment, so one that stands there is enough.
                let behind = physical_offset.saturating_sub(1);
                let taken = await_checkpoint(config, disk, peers, behind).await;
                taken.map_err(in_folder)?;
            }
            source if source.is_corrupt() => {
                let Some(all) = passes.next() else {
                    return Err(error);
                };
                let mended = mend_all(config, disk, peers, all).await;
                let mended = mended.map_err(in_folder)?;
                tracing::info!(mended, all, "mended the log");
            }
            _ => return Err(error),
        }
        error = match open_once(config, disk).await {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
    }
}

async fn open_once(config: &BrokerConfig, disk: &Arc<dyn Disk>) -> Result<Opened, RunError> {
    let (config, disk) = (config.clone(), Arc::clone(disk));
    let opened = host::blocking(move || open_store(&config, disk)).await;
    opened.map_err(io::Error::other)?
}

/// Reads the folder, away from the runtime.
async fn folder_of(config: &BrokerConfig, disk: &Arc<dyn Disk>) -> Result<Folder, StoreError> {
    let (config, disk) = (config.clone(), Arc::clone(disk));
    blocking(move || read_folder(&config, &disk)).await
}

/// Mends every damaged range of what a start reads of the log, or of all of it, and gives a lost end
/// up. Returns how many there were.
async fn mend_all(
    config: &BrokerConfig,
    disk: &Arc<dyn Disk>,
    peers: &RepairPeers,
    all: bool,
) -> Result<usize, StoreError> {
    let folder = folder_of(config, disk).await?;
    let opened = Arc::clone(disk);
    let (log_config, position) = (folder.log_config, folder.position);
    let begun = blocking(move || {
        let survey = Survey::begin(opened, log_config, position.as_ref())?;
        Ok(if all { survey.of_all() } else { survey })
    });
    let mut survey = begun.await?;
    let (mut count, mut mended_at) = (0, None);
    loop {
        let (back, found) = blocking(move || {
            let found = survey.next_damage()?;
            if let Found::LostEnd { .. } = found {
                survey.give_end_up()?;
            }
            Ok((survey, found))
        })
        .await?;
        survey = match found {
            Found::End => return Ok(count),
            Found::LostEnd {
                physical,
                synced_physical,
                reason,
            } => {
                peers.note_lost_end(physical, synced_physical, &reason);
                back
            }
            Found::Damage(damage) => {
                let physical = damage.from_physical();
                if mended_at.replace(physical) == Some(physical) {
                    return Err(StoreError::Failed(format!(
                        "what was mended at physical offset {physical} is damaged again; the disk \
                         does not keep what is written"
                    )));
                }
                mend(config, disk, (back, damage), peers).await?
            }
        };
        count += 1;
    }
}

/// Mends a range with bytes of peers. When they have purged it, the log begins behind it instead.
async fn mend(
    config: &BrokerConfig,
    disk: &Arc<dyn Disk>,
    (mut survey, damage): (Survey, Damage),
    peers: &RepairPeers,
) -> Result<Survey, StoreError> {
    peers.note_damage(&damage);
    let physical = damage.from_physical();
    let spool = Arc::clone(disk);
    let mut mender = blocking(move || Mender::new(spool, damage)).await?;
    loop {
        let (back, asked) = peers.fetch(mender).await?;
        if let Asked::Proven(from) = asked {
            let (survey, back) = blocking(move || {
                survey.mend(&back)?;
                Ok((survey, back))
            })
            .await?;
            peers.note_mended(&back, &from);
            return Ok(survey);
        }
        if let Some(position) = position_behind(config, disk, peers, physical).await? {
            peers.note_purged(physical, position.end_physical);
            return blocking(move || {
                survey.begin_at(&position)?;
                Ok(survey)
            })
            .await;
        }
        mender = back;
        sleep(CHECKPOINT_PAUSE).await;
    }
}

/// Where the log can begin behind `physical`: at a checkpoint of this node, unless it is behind the
/// one with which a start begins, or at one of a peer, which is stored here first.
async fn position_behind(
    config: &BrokerConfig,
    disk: &Arc<dyn Disk>,
    peers: &RepairPeers,
    physical: u64,
) -> Result<Option<LogPosition>, StoreError> {
    let Folder {
        restored,
        checkpoints,
        ..
    } = folder_of(config, disk).await?;
    let own = blocking(move || {
        Ok(restored.and_then(|newest| checkpoints.roll_behind(physical, newest.id.index)))
    });
    if let Some(own) = own.await? {
        return Ok(Some(own.position));
    }
    let Some((checkpoint, restored)) = peers.fetch_checkpoint(physical).await else {
        return Ok(None);
    };
    let (config, disk) = (config.clone(), Arc::clone(disk));
    blocking(move || adopt(&config, &disk, checkpoint, restored))
        .await
        .map(Some)
}

/// Gets a checkpoint that stands behind `physical` from a peer, and stores it; asks until one has it.
async fn await_checkpoint(
    config: &BrokerConfig,
    disk: &Arc<dyn Disk>,
    peers: &RepairPeers,
    physical: u64,
) -> Result<(), StoreError> {
    tracing::error!(physical, "no checkpoint is whole; ask the peers for one");
    let (checkpoint, restored) = loop {
        if let Some(found) = peers.fetch_checkpoint(physical).await {
            break found;
        }
        tracing::error!(physical, "no peer has a checkpoint; asking them again");
        sleep(CHECKPOINT_PAUSE).await;
    };
    let (config, disk) = (config.clone(), Arc::clone(disk));
    blocking(move || adopt(&config, &disk, checkpoint, restored))
        .await
        .map(drop)
}

/// Stores a peer's checkpoint as the one with which the next start begins.
fn adopt(
    config: &BrokerConfig,
    disk: &Arc<dyn Disk>,
    checkpoint: Checkpoint,
    restored: Restored,
) -> Result<LogPosition, StoreError> {
    let folder = read_folder(config, disk)?;
    let dir = index_folder(&config.store_root);
    let manifest = folder.restored.and_then(|newest| newest.index_manifest);
    // Until it is stored, a start begins with the one before and its consume queue.
    let index = QueueIndex::open(Arc::clone(disk), &dir, manifest.as_deref());
    let index = index.or_else(|_| QueueIndex::open(Arc::clone(disk), &dir, None))?;
    folder.checkpoints.adopt(checkpoint, &restored, &index)?;
    Ok(restored.position)
}

#[cfg(test)]
#[path = "repair_test.rs"]
mod tests;
