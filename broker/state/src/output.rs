//! What applying a payload gives back: data only. The broker answers with the replies and
//! executes the effects (consume queue units, removed queues, registration).

/// Where the entry stands in the Raft log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryPosition {
    /// Raft log index of the entry. Larger than that of every entry applied before.
    pub index: u64,
    /// Physical offset of the first payload byte, which follows the entry's header. Unit: bytes.
    pub payload_physical_offset: u64,
}

/// Answer to one command. A payload's replies come in the order of its commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The message is stored.
    Appended {
        /// Its place in the queue.
        queue_offset: u64,
        /// Address of its record in the log. Unit: bytes.
        physical_offset: u64,
    },
    /// All messages of the batch are stored, at consecutive queue offsets.
    AppendedBatch {
        /// Queue offset of the first message.
        first_queue_offset: u64,
        /// Address of each record in the log. Unit: bytes.
        physical_offsets: Vec<u64>,
    },
    /// The queues (topic, queue_id) the client holds now, out of those it asked for.
    Locked(Vec<(String, u32)>),
    /// The command took effect, or its effect was there already.
    Done,
    /// The command changed nothing.
    Rejected {
        /// Why.
        reason: Reject,
    },
}

/// Why a command changed nothing. Each has one RocketMQ response code, chosen by the handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// The topic is not there (any more).
    #[error("topic not exist")]
    TopicNotExist,
    /// The topic has no queue of that id.
    #[error("queue id is out of the topic's range")]
    QueueIdOutOfRange,
    /// The subscription group is not there (any more).
    #[error("subscription group not exist")]
    GroupNotExist,
    /// The schedule level has moved on: these messages were delivered before.
    #[error("scheduled delivery is stale")]
    StaleDelivery,
    /// A record is not a RocketMQ stored record, or a batch is empty or spans queues.
    #[error("message record is malformed")]
    MalformedRecord,
    /// A name or a queue count is outside its limits, or progress would not move up.
    #[error("command has a value outside its range")]
    InvalidCommand,
    /// A limit of `limits` is reached.
    #[error("limit of the broker is reached")]
    LimitReached,
}

/// A message that now stands in a queue: one unit of the consume queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Number of the queue, see `QueueState::number`.
    pub queue: u32,
    /// Place in the queue. Dense from 0 (invariant Q1).
    pub queue_offset: u64,
    /// Address of the record in the log. Unit: bytes.
    pub physical_offset: u64,
    /// Length of the record. Unit: bytes.
    pub size: u32,
    /// Hash of the tag as RocketMQ computes it, or what the proposer put in its place.
    pub tags_code: i64,
    /// Store time stamped by the leader. Unit: ms since 1970.
    pub store_timestamp_ms: u64,
}

/// Everything applying gave back. `apply` only adds to it: the caller empties and reuses it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// One per command.
    pub replies: Vec<Reply>,
    /// New units of the consume queue, in the order of the log.
    pub appended: Vec<Appended>,
    /// Numbers of queues whose topic was deleted.
    pub removed_queues: Vec<u32>,
    /// Topics or groups changed.
    pub metadata_changed: bool,
    /// Each topic that was created, changed or deleted, with the counter of the topic table after
    /// it. The broker tells the name servers.
    pub topics_changed: Vec<(u64, String)>,
    /// Scheduled messages that were dropped at delivery: their topic or queue is gone.
    pub undeliverable: u32,
}

impl Output {
    /// Empties it, keeping the memory.
    pub fn clear(&mut self) {
        self.replies.clear();
        self.appended.clear();
        self.removed_queues.clear();
        self.metadata_changed = false;
        self.topics_changed.clear();
        self.undeliverable = 0;
    }
}

/// The payload could not be applied. The process must stop: either the log is damaged, or it was
/// written by a newer version, and going on would let replicas diverge (invariant S1).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The entry was applied before.
    #[error("apply entry {index}: entry {applied_index} is applied already")]
    IndexNotAhead {
        /// Index of the entry.
        index: u64,
        /// Index of the last entry applied.
        applied_index: u64,
    },
    /// The address space of the log is used up, or the position is not one of this log.
    #[error("apply entry {index}: physical offset {payload_physical_offset} is beyond the log")]
    PhysicalOffsetOutOfRange {
        /// Index of the entry.
        index: u64,
        /// The payload's address.
        payload_physical_offset: u64,
    },
    /// The payload is not readable.
    #[error("apply entry {index}: {source}")]
    Payload {
        /// Index of the entry.
        index: u64,
        /// What is wrong with it.
        source: crate::DecodeError,
    },
}
