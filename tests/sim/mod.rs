//! Simulated parts of a machine, for tests that decide what fails and when, and what judges the
//! history that their clients write down.

pub mod classes;
pub mod client;
pub mod cluster;
mod damage;
pub mod disk;
pub mod drain;
pub mod faults;
pub mod history;
pub mod image;
pub mod ledger;
pub mod log;
pub mod membership;
pub mod nemesis;
pub mod net;
pub mod node;
pub mod oracle;
pub mod random;
pub mod replicas;
mod scenario;
pub mod trial;
pub mod vote_file;
pub mod workload;
