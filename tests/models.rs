//! Models of what the broker adds to Raft by itself. Each is small enough that all its states are
//! visited, and each is also searched with the mistakes that it is there to exclude: a counterexample
//! must come out.
//!
//! `RAFTMQ_MODELS_LONG=1` widens the bounds; that wants optimised code and some gigabytes:
//!
//!     RAFTMQ_MODELS_LONG=1 cargo test --release -p raftmq-tests --test models -- --nocapture

#![allow(
    clippy::panic,
    reason = "a test program: whatever is not as expected ends it"
)]

#[path = "models/catch_up.rs"]
mod catch_up;
#[path = "models/checker.rs"]
mod checker;
#[path = "models/confirmation.rs"]
mod confirmation;
#[path = "models/election.rs"]
mod election;
#[path = "models/guard.rs"]
mod guard;
#[path = "models/incarnation.rs"]
mod incarnation;
#[path = "models/log.rs"]
mod log;

/// Whether the bounds are wide.
fn is_long() -> bool {
    std::env::var_os("RAFTMQ_MODELS_LONG").is_some()
}
