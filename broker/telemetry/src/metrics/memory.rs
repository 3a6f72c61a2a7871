//! Metrics of the memory that clients hold.

use prometheus::{IntGauge, IntGaugeVec, Registry};

use super::{gauge, labelled_gauge};

/// The memory that clients hold, by what it is held for.
#[derive(Debug)]
pub struct MemoryMetrics {
    /// Bytes held now; `holder` says for what.
    pub held_bytes: IntGaugeVec,
    /// What all connections together may hold beyond their shares.
    pub budget_bytes: IntGauge,
}

impl MemoryMetrics {
    pub(super) fn register(registry: &Registry) -> Self {
        Self {
            held_bytes: labelled_gauge(
                registry,
                "memory_held_bytes",
                "Memory that clients hold, by what it is held for.",
                &["holder"],
            ),
            budget_bytes: gauge(
                registry,
                "memory_budget_bytes",
                "Memory that clients may hold together, beyond the share of each connection.",
            ),
        }
    }
}
