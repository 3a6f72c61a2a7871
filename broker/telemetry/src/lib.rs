//! What a process tells of itself: metrics, and the status of a node.

pub mod metrics;
pub mod status;
