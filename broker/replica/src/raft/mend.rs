//! Damage that is found while Raft runs: what reads and the scrub have noted is fetched from peers
//! and mended in place. Nobody steps down for it: damaged entries are not handed out, and whoever
//! needs one of them for Raft waits (`log_store.rs`).

use std::{sync::Arc, time::Duration};

use raftmq_store::{CommitLog, Mender, StoreError};
use tokio::{runtime::Handle, time::sleep};

use super::{
    ConsensusParts,
    repair::{Asked, RepairPeers, blocking, complain},
    transport::Transport,
};

/// Pause between looks for noted damage.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Pause after a look that left something damaged; it doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(500);
/// See [`PAUSE`].
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Mends for as long as the process lives, unless there is nobody to ask.
pub(super) fn start(runtime: &Handle, transport: &Transport, parts: &ConsensusParts) {
    let log = parts.machine.log();
    let Transport { net, local, .. } = transport;
    let peers = RepairPeers::new(local.clone(), &parts.raft, net, &parts.metrics);
    if peers.is_alone() {
        return;
    }
    log.set_repairable(true);
    runtime.spawn(run(Arc::clone(log), peers));
}

async fn run(log: Arc<CommitLog>, peers: RepairPeers) {
    let (mut pause, mut round) = (PAUSE, 0);
    loop {
        let noted: Vec<u64> = std::iter::from_fn(|| log.take_damaged()).collect();
        let mut left = false;
        for physical in noted {
            match mend(&log, &peers, physical, round).await {
                Ok(true) => {}
                Ok(false) => {
                    log.note_damaged(physical);
                    left = true;
                }
                // A failed write has ended the log, which the flush thread notices. Everything else
                // may go well later, once the disk has space for the spool again.
                Err(error) => {
                    tracing::error!(physical, %error, "mend the log");
                    log.note_damaged(physical);
                    left = true;
                }
            }
        }
        if left {
            sleep(pause).await;
            (pause, round) = ((pause * 2).min(PAUSE_MAX), round + 1);
        } else {
            (pause, round) = (PAUSE, 0);
            sleep(LOOK_INTERVAL).await;
        }
    }
}

/// Mends every damaged range of the segment that holds an address. False when one is left.
async fn mend(
    log: &Arc<CommitLog>,
    peers: &RepairPeers,
    physical: u64,
    round: usize,
) -> Result<bool, StoreError> {
    let mut mended_at = None;
    loop {
        let looked = Arc::clone(log);
        let begun = blocking(move || {
            let Some(found) = looked.locate_damage(physical)? else {
                return Ok(None);
            };
            let mender = looked.mender(&found)?;
            Ok(Some((found, mender)))
        });
        let Some((found, mender)) = begun.await? else {
            return Ok(true);
        };
        let from_physical = found.damage.from_physical();
        if mended_at.replace(from_physical) == Some(from_physical) {
            tracing::error!(physical, "what was mended is damaged again");
            return Ok(false);
        }
        if round == 0 {
            peers.note_damage(&found.damage);
        }
        let (mender, from): (Mender, _) = match peers.ask_all(mender, round).await? {
            (mender, Asked::Proven(from)) => (mender, from),
            (mender, outcome) => {
                complain(&mender);
                if outcome == (Asked::Purged { by_all: true }) {
                    // What all peers have deleted goes here too (`retention.rs`).
                    log.note_gone(from_physical);
                }
                return Ok(false);
            }
        };
        let written = Arc::clone(log);
        let (mender, is_mended) = blocking(move || {
            let is_mended = written.mend(&found, &mender)?;
            Ok((mender, is_mended))
        })
        .await?;
        if is_mended {
            peers.note_mended(&mender, &from);
        }
    }
}

#[cfg(test)]
#[path = "mend_test.rs"]
mod tests;
