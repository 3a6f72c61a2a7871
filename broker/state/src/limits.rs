//! Every limit of the state machine, with its unit and its reason.
//!
//! These numbers are part of the replicated function: two replicas that disagree on one of them
//! answer the same command differently. Changing one needs a new payload version.

/// Most queues one topic may have. Unit: queues. RocketMQ topics have 4 to 1024 in practice; the
/// bound keeps one small command from reserving a large table on every replica.
pub const QUEUES_PER_TOPIC_MAX: u32 = 16_384;

/// Most queues all topics together may have. Unit: queues. Ten times the 100,000 queues the
/// consume queue is designed for.
pub const QUEUES_MAX: usize = 1 << 20;

/// Most topics, retry and dead-letter topics included. Unit: topics.
pub const TOPICS_MAX: usize = 1 << 17;

/// Most subscription groups. Unit: groups.
pub const GROUPS_MAX: usize = 1 << 17;

/// Longest topic or group name. Unit: bytes of UTF-8. Source: the one-byte topic length that
/// RocketMQ's stored record had before version 2; `%RETRY%` and `%DLQ%` topics may use all of it.
pub const NAME_BYTES_MAX: usize = 255;

/// Largest body of one topic, group or key-value command. Unit: bytes. Attributes and dynamic
/// configuration are a few KiB; the whole of them is rewritten in each checkpoint.
pub const METADATA_COMMAND_BYTES_MAX: usize = 256 * 1024;

/// Longest attributes that the changes of one topic or group may add up to, names and values
/// together. Unit: bytes. As much as one command could carry.
pub const ATTRIBUTES_BYTES_MAX: usize = METADATA_COMMAND_BYTES_MAX;

/// Most consumer offsets. Unit: (group, topic, queue_id) triples. Forty groups on each of the
/// 100,000 queues; about 50 bytes each in memory and in a checkpoint.
pub const CONSUMER_OFFSETS_MAX: usize = 1 << 22;

/// Most orderly queue locks. Unit: (group, topic, queue_id) triples.
pub const QUEUE_LOCKS_MAX: usize = 1 << 20;

/// Longest client id. Unit: bytes of UTF-8. Clients make them of address, process id and a suffix.
pub const CLIENT_ID_BYTES_MAX: usize = 1024;

/// Most keys the replicated key-value table holds, over all namespaces. Unit: keys.
pub const KEY_VALUES_MAX: usize = 1 << 14;

/// Most schedule levels with recorded progress. Unit: levels. RocketMQ has 18 and lets
/// `messageDelayLevel` name more.
pub const SCHEDULE_LEVELS_MAX: usize = 1024;

/// Time after its last refresh at which an orderly queue lock may be taken by another client.
/// Unit: ms. Source: RocketMQ `RebalanceLockManager`, 60 s; clients refresh every 20 s.
pub const QUEUE_LOCK_EXPIRY_MS: u64 = 60_000;

/// Largest queue offset. Unit: messages. Source: offsets travel as Java's signed 64-bit long.
pub const QUEUE_OFFSET_MAX: u64 = i64::MAX as u64;

const _: () = assert!(QUEUES_PER_TOPIC_MAX as usize <= QUEUES_MAX);
const _: () = assert!(NAME_BYTES_MAX * 2 < METADATA_COMMAND_BYTES_MAX);
