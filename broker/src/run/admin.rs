//! The broker behind the admin service and the probes of the HTTP port.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::{
    broker::Broker,
    http::{AdminError, AdminOps},
    metrics::LogReading,
    raft::{ChangeError, Consensus},
    status::{Member, RaftStatus},
};

/// Standstill after which the liveness probe asks for a restart. Far above what a busy disk or a
/// large snapshot takes, and above the half second after which a leader hands over by itself.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// The broker as the admin service sees it.
pub(super) struct Admin(pub(super) Arc<Broker>);

impl Admin {
    fn consensus(&self) -> Result<&Arc<Consensus>, AdminError> {
        self.0
            .consensus()
            .ok_or_else(|| AdminError::Unavailable("raft is starting".into()))
    }

    fn error(&self, error: ChangeError) -> AdminError {
        match error {
            ChangeError::NotLeader => AdminError::NotLeader {
                leader: self.status().borrow().leader_id,
            },
            ChangeError::Invalid(reason) => AdminError::Invalid(reason),
            ChangeError::Precondition(reason) => AdminError::Precondition(reason),
            ChangeError::Busy(..) => AdminError::Busy(error.to_string()),
            ChangeError::Timeout(..) => AdminError::Unknown(error.to_string()),
            ChangeError::Raft(reason) => AdminError::Unavailable(reason),
        }
    }
}

impl AdminOps for Admin {
    fn status(&self) -> watch::Receiver<Arc<RaftStatus>> {
        self.0
            .consensus()
            .expect("the HTTP port opens after raft has started")
            .status()
    }

    fn log(&self) -> LogReading {
        let broker = &self.0;
        let log = broker.machine.log();
        LogReading {
            first_physical: log.min_physical(),
            end_physical: log.max_physical(),
            ground_bytes: log.ground_bytes(),
            waiting_bytes: broker.proposer().waiting_bytes() as u64,
            oldest_unflushed: log.oldest_unflushed_since().unwrap_or_default(),
            disk_used_percent: broker.disk.used_percent(),
            disk_full: !broker.takes_message(0),
        }
    }

    fn transfer_leader(&self, to: Option<u64>) -> BoxFuture<'_, Result<(), AdminError>> {
        Box::pin(async move {
            let moved = self.consensus()?.transfer_leader(to).await;
            moved.map(|_| ()).map_err(|error| self.error(error))
        })
    }

    fn add_learner(
        &self,
        id: u64,
        address: String,
        incarnation: String,
    ) -> BoxFuture<'_, Result<(), AdminError>> {
        Box::pin(async move {
            let consensus = self.consensus()?;
            let added = consensus.add_learner(id, address, incarnation).await;
            added.map_err(|error| self.error(error))
        })
    }

    fn form_group(
        &self,
        incarnation: String,
        members: Vec<Member>,
    ) -> BoxFuture<'_, Result<bool, AdminError>> {
        Box::pin(async move {
            let formed = self.consensus()?.form_group(&incarnation, &members).await;
            formed.map_err(|error| self.error(error))
        })
    }

    fn change_membership(&self, voters: BTreeSet<u64>) -> BoxFuture<'_, Result<(), AdminError>> {
        Box::pin(async move {
            let voters = voters.into_iter().collect();
            let changed = self.consensus()?.change_membership(voters).await;
            changed.map_err(|error| self.error(error))
        })
    }

    fn ready(&self) -> Result<(), String> {
        let status = self.status();
        let status = status.borrow();
        if status.ready {
            return Ok(());
        }
        Err(status
            .not_ready_reason
            .clone()
            .unwrap_or_else(|| "not ready".into()))
    }

    fn live(&self) -> Result<(), String> {
        let raft_silent = self.0.consensus().map(|consensus| consensus.silent_for());
        judge_life(
            raft_silent.unwrap_or_default(),
            self.0
                .machine
                .log()
                .oldest_unflushed_since()
                .unwrap_or_default(),
        )
    }
}

/// Says what is stuck for so long that only a restart can help. A lost quorum is not among it.
fn judge_life(raft_silent: Duration, unflushed: Duration) -> Result<(), String> {
    for (what, since) in [
        ("raft does not answer", raft_silent),
        ("the oldest write is not on disk", unflushed),
    ] {
        if since > STUCK_AFTER {
            return Err(format!("{what} since {} s", since.as_secs()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_long_standstill_is_a_reason_to_restart() {
        let (short, long) = (STUCK_AFTER, STUCK_AFTER + Duration::from_secs(1));
        assert_eq!(judge_life(short, short), Ok(()));
        let raft = judge_life(long, short).unwrap_err();
        assert_eq!(raft, "raft does not answer since 31 s");
        let disk = judge_life(short, long).unwrap_err();
        assert_eq!(disk, "the oldest write is not on disk since 31 s");
    }
}
