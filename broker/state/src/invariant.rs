//! The registry of invariants. Assertions, `State::check`, tests and bug reports cite these ids.

use std::fmt;

/// Name of one property of the replicated state that must always hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum InvariantId {
    /// Queue offsets are dense.
    Q1,
    /// A topic has every queue its configuration shows.
    Q2,
    /// Queue numbers are never reused.
    Q3,
    /// Limits of topics and queues hold.
    Q4,
    /// Scheduled delivery happens once.
    D1,
    /// Consumer offsets belong to queues that exist.
    O1,
    /// Consumer offsets move back only when told to.
    O2,
    /// A queue lock has one owner.
    L1,
    /// Queue locks belong to queues that exist.
    L2,
    /// Configurations are kept under their own name.
    N1,
    /// Entries are applied once, in order.
    A1,
    /// The state is a function of the log.
    S1,
    /// A checkpoint is the whole state.
    S2,
}

impl InvariantId {
    /// Every invariant, in the order of the registry.
    pub const ALL: [Self; 13] = [
        Self::Q1,
        Self::Q2,
        Self::Q3,
        Self::Q4,
        Self::D1,
        Self::O1,
        Self::O2,
        Self::L1,
        Self::L2,
        Self::N1,
        Self::A1,
        Self::S1,
        Self::S2,
    ];

    /// What must hold, in one line.
    pub const fn statement(self) -> &'static str {
        match self {
            Self::Q1 => "queue offsets of a queue are dense from 0 in the order of the log",
            Self::Q2 => "a topic has at least max(readQueueNums, writeQueueNums) queues",
            Self::Q3 => "a queue number is handed out once, also across topic deletion",
            Self::Q4 => "no topic, queue or offset is beyond its limit",
            Self::D1 => "a scheduled message is delivered together with its level's progress, once",
            Self::O1 => "a consumer offset belongs to a queue of an existing topic",
            Self::O2 => "a consumer offset goes back only by a commit that sets it",
            Self::L1 => "a queue lock changes its owner only by unlock, expiry or deletion",
            Self::L2 => "a queue lock belongs to a queue of an existing topic",
            Self::N1 => "a topic or group configuration is kept under the name inside it",
            Self::A1 => "an entry is applied at most once and in the order of its index",
            Self::S1 => "equal logs give equal states, replies and effects on every replica",
            Self::S2 => "a state decoded from a checkpoint continues like the one encoded",
        }
    }
}

impl fmt::Display for InvariantId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self:?}: {}", self.statement())
    }
}

/// An invariant found broken, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invariant {id} is broken by {detail}")]
pub struct Violation {
    /// The broken invariant.
    pub id: InvariantId,
    /// The topic, group, queue or number that breaks it.
    pub detail: String,
}

impl Violation {
    pub(crate) fn new(id: InvariantId, detail: impl Into<String>) -> Self {
        Self {
            id,
            detail: detail.into(),
        }
    }
}
