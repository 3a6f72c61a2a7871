//! RaftMQ's broker process: a RocketMQ-compatible broker whose Raft log is the commit log.
//!
//! `broker/README.md` is the architecture page: code map, flows, invariants, decisions.

mod broker;
mod checkpoint;
pub mod cli;
mod cold_read;
mod disk_guard;
#[doc(hidden)]
pub mod fuzzing;
mod handler;
pub mod host;
pub mod http;
mod long_poll;
mod machine;
mod offset_commits;
mod proposer;
mod raft;
mod retention;
mod run;
mod schedule;
mod scrub;
mod server;
mod session;
mod stats;

pub(crate) use raft::RAFT_LOG_FILTER;
pub use raftmq_config as config;
#[cfg(test)]
pub(crate) use raftmq_host::cancellation;
pub(crate) use raftmq_host::{budget, framing};
pub use raftmq_host::{clock, limits, net};
pub use raftmq_namesrv as namesrv;
pub use raftmq_telemetry::{metrics, status};
pub use run::{RunError, run_broker, run_broker_on, run_namesrv};
