//! The broker behind the admin service and the probes of the HTTP port.

use std::{collections::BTreeSet, sync::Arc};

use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::{
    broker::Broker,
    http::{AdminError, AdminOps},
    raft::{ChangeError, Consensus},
    status::RaftStatus,
};

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

    fn transfer_leader(&self, to: Option<u64>) -> BoxFuture<'_, Result<(), AdminError>> {
        Box::pin(async move {
            let moved = self.consensus()?.transfer_leader(to).await;
            moved.map(|_| ()).map_err(|error| self.error(error))
        })
    }

    fn add_learner(&self, id: u64, address: String) -> BoxFuture<'_, Result<(), AdminError>> {
        Box::pin(async move {
            let added = self.consensus()?.add_learner(id, address).await;
            added.map_err(|error| self.error(error))
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
        Ok(())
    }
}
