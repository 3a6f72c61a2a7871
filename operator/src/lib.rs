//! The operator of `RaftCluster`s: observe, validate, plan, apply; and beside it, as fast as it
//! can, the leader's endpoint. `operator/README.md` is the architecture page.

pub mod apply;
pub mod brokers;
pub mod build;
pub mod cli;
pub mod crd;
pub mod drift;
pub mod endpoints;
pub mod events;
pub mod http;
pub mod lease;
pub mod metrics;
pub mod names;
pub mod observe;
pub mod plan;
pub mod reconcile;
pub mod run;
pub mod streams;
pub mod validate;
