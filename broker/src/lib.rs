//! RaftMQ's broker process: a RocketMQ-compatible broker whose Raft log is the commit log.
//!
//! `broker/README.md` is the architecture page: code map, flows, invariants, decisions.

mod broker;
pub mod cli;
mod cold_read;
mod disk_space;
#[doc(hidden)]
pub mod fuzzing;
mod handler;
pub mod host;
pub mod http;
mod offset_commits;
mod retention;
mod run;
mod schedule;
mod scrub;
mod server;
mod session;
mod stats;

pub use raftmq_config as config;
pub(crate) use raftmq_host::{budget, framing};
pub use raftmq_host::{clock, limits, net};
pub use raftmq_namesrv as namesrv;
pub(crate) use raftmq_replica::raft::RAFT_LOG_FILTER;
pub(crate) use raftmq_replica::{checkpoint, disk_guard, long_poll, machine, proposer, raft};
pub use raftmq_telemetry::{metrics, status};
pub use run::{RunError, run_broker, run_broker_on, run_namesrv};
