//! What a broker process is given by its machine.

use std::{fmt::Debug, sync::Arc};

pub use raftmq_host::process::*;
use raftmq_store::{Disk, RealDisk};
use tokio::sync::watch;

use crate::{
    clock::{Clock, SystemClock},
    http::AdminOps,
    net::{Net, TcpNet},
};

/// Network, wall clock and disk of a process, and who may command it from within.
#[derive(Clone)]
pub struct Host {
    /// Network.
    pub net: Arc<dyn Net>,
    /// Wall clock.
    pub clock: Arc<dyn Clock>,
    /// Disk that holds the data folder.
    pub disk: Arc<dyn Disk>,
    /// Gets what the admin service of the broker offers, once it serves.
    pub admin: watch::Sender<Option<Arc<dyn AdminOps>>>,
}

impl Debug for Host {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Host")
            .field("net", &self.net)
            .finish_non_exhaustive()
    }
}

impl Host {
    /// The real ones.
    #[must_use]
    pub fn of_this_machine() -> Self {
        Self {
            net: Arc::new(TcpNet),
            clock: Arc::new(SystemClock),
            disk: Arc::new(RealDisk),
            admin: watch::Sender::new(None),
        }
    }
}
