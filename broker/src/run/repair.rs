//! Opens the data folder. When its log is damaged, the node stays out of its group: Raft is not
//! started, nothing is voted for, acknowledged or served, but ranges of the log for peers that are
//! damaged themselves. It mends what is damaged from its peers and then opens the folder again.

use std::{io, sync::Arc};

use raftmq_store::{Damage, Disk, Found, Mender, RangeSource, StoreError, Survey};
use tokio::sync::watch;

use super::{
    RunError,
    store::{Folder, Opened, open_store, read_folder},
};
use crate::{
    config::BrokerConfig,
    host,
    metrics::Metrics,
    net::{Listener, Net},
    raft::{Asked, RepairPeers, blocking},
};

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
    let is_corrupt = matches!(&error, RunError::Store { source, .. } if source.is_corrupt());
    if !is_corrupt {
        return Err(error);
    }
    let in_folder = |source| RunError::Store {
        path: config.store_root.clone(),
        source,
    };
    let (read_config, read_disk) = (config.clone(), Arc::clone(disk));
    let folder = blocking(move || read_folder(&read_config, &read_disk)).await;
    let folder = folder.map_err(in_folder)?;
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
    tracing::error!(%error, "the data folder is damaged; stay out of the group, and mend the log from the peers");
    let source = RangeSource::new(Arc::clone(disk), &config.store_commitlog);
    let server = peers.serve(listener, source);
    let mended = tokio::select! {
        biased;
        _ = shutdown.wait_for(|stop| *stop) => return Ok(None),
        mended = mend_and_open(config, disk, folder, &peers) => mended?,
    };
    let listener = server.stop().await?;
    Ok(Some((mended.ok_or(error)?, listener)))
}

/// Mends what a start reads, or, when that does not help, all of the log; the folder is then opened.
/// `None`: nothing was found that could be mended.
async fn mend_and_open(
    config: &BrokerConfig,
    disk: &Arc<dyn Disk>,
    folder: Folder,
    peers: &RepairPeers,
) -> Result<Option<Opened>, RunError> {
    let in_folder = |source| RunError::Store {
        path: config.store_root.clone(),
        source,
    };
    let mut any = false;
    for all in [false, true] {
        let mended = mend_all(disk, &folder, peers, all).await;
        let mended = mended.map_err(in_folder)?;
        tracing::info!(mended, all, "mended the log");
        any |= mended > 0;
        match open_once(config, disk).await {
            Err(RunError::Store { source, .. }) if source.is_corrupt() && !all => {}
            Err(error) if any => return Err(error),
            Err(_) => return Ok(None),
            Ok(opened) => return Ok(Some(opened)),
        }
    }
    Ok(None)
}

async fn open_once(config: &BrokerConfig, disk: &Arc<dyn Disk>) -> Result<Opened, RunError> {
    let (config, disk) = (config.clone(), Arc::clone(disk));
    let opened = host::blocking(move || open_store(&config, disk)).await;
    opened.map_err(io::Error::other)?
}

/// Mends every damaged range of what a start reads of the log, or of all of it, and gives a lost end up. Returns how many there were.
async fn mend_all(
    disk: &Arc<dyn Disk>,
    folder: &Folder,
    peers: &RepairPeers,
    all: bool,
) -> Result<usize, StoreError> {
    let opened = Arc::clone(disk);
    let (log_config, position) = (folder.log_config.clone(), folder.position.clone());
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
                mend(disk, back, damage, peers).await?
            }
        };
        count += 1;
    }
}

async fn mend(
    disk: &Arc<dyn Disk>,
    mut survey: Survey,
    damage: Damage,
    peers: &RepairPeers,
) -> Result<Survey, StoreError> {
    peers.note_damage(&damage);
    let disk = Arc::clone(disk);
    let mender = blocking(move || Mender::new(disk, damage)).await?;
    let (mender, asked) = peers.fetch(mender).await?;
    let Asked::Proven(from) = asked else {
        // Peers have gone on so far that they deleted it, and whoever leads sends a checkpoint instead.
        let physical = mender.damage().from_physical();
        peers.note_lost_end(
            physical,
            physical,
            "the peers have deleted the damaged range",
        );
        return blocking(move || {
            survey.give_end_up()?;
            Ok(survey)
        })
        .await;
    };
    let (survey, mender) = blocking(move || {
        survey.mend(&mender)?;
        Ok((survey, mender))
    })
    .await?;
    peers.note_mended(&mender, &from);
    Ok(survey)
}
