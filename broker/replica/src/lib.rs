//! One replica of the log: consensus over the commit log, the state machine that applies it, its
//! checkpoints, and the proposer that feeds it. The only crate that knows openraft.

pub mod checkpoint;
pub mod disk_guard;
#[doc(hidden)]
pub mod fuzzing;
pub mod long_poll;
pub mod machine;
pub mod proposer;
pub mod raft;

#[cfg(test)]
use raftmq_host::cancellation;
use raftmq_host::{clock, limits, net, process as host};
use raftmq_telemetry::{metrics, status};

use raftmq_config as config;
