//! Looks how much space the file systems have left, for the disk guard.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{broker::Broker, host::blocking};

/// Pause between looks. A process that writes 300 MB/s takes 30 MB in it, which is less than the
/// ground at any time; the look itself is a system call of a microsecond.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Pause while more than [`PLENTY`] is left: an idle broker should cost next to nothing.
const LOOK_INTERVAL_PLENTY: Duration = Duration::from_secs(1);
/// Space that no process fills between two looks.
const PLENTY: u64 = 16 << 30;
/// Looks at the space of the file systems once. Blocks for a system call or two.
pub(crate) fn look(broker: &Broker) {
    let log = broker.machine.log();
    let root = broker.consensus().map(|consensus| {
        let checkpoints = consensus.checkpoints();
        let space = checkpoints.space();
        if let Ok(space) = &space {
            log.claim_space(checkpoints.reserve_bytes(space));
        }
        space
    });
    let mut used = None;
    for space in std::iter::once(log.look_at_space()).chain(root) {
        match space {
            Ok(space) => used = used.max(Some(space.used_percent())),
            Err(error) => tracing::warn!(%error, "read free disk space"),
        }
    }
    if let Some(percent) = used {
        broker.disk.note_used(percent);
    }
}

/// Looks for as long as the process runs.
pub(crate) async fn run(broker: Arc<Broker>) {
    let Some(consensus) = broker.consensus().cloned() else {
        return;
    };
    let mut told = None;
    loop {
        let looked = Arc::clone(&broker);
        // On a thread of its own: the file system of a remote disk may not answer.
        if let Err(error) = blocking(move || look(&looked)).await {
            tracing::error!(%error, "look at the disk");
        }
        let may_lead = broker.disk.may_lead(broker.machine.log());
        if told != Some(may_lead) {
            if told.is_some() || !may_lead {
                tracing::warn!(may_lead, "room for the entries of a leader");
            }
            consensus.stand_for_election(may_lead);
            told = Some(may_lead);
        }
        let plenty = broker.machine.log().available_bytes() >= PLENTY;
        sleep(if plenty {
            LOOK_INTERVAL_PLENTY
        } else {
            LOOK_INTERVAL
        })
        .await;
    }
}
