//! The replicated state machine of a broker: a function from the log to topics, groups, consumer
//! offsets, locks, scheduled delivery and the place of every message in its queue.
//!
//! ```text
//!  proposer                       Raft log                      apply, on every replica
//!  ────────                       ────────                      ──────────────────────────
//!  Command::encode ──► PayloadBuilder ──► entry ──► State::apply ──► Output
//!                                                     │              replies   to the clients
//!                                                     ▼              effects   to the consume queue
//!                                              State::encode ──► checkpoint, Raft snapshot
//! ```
//! No I/O, no clock, no randomness, no hash order: time arrives inside commands, and equal logs
//! give equal states on every replica (invariant S1). `invariant` lists what always holds.

mod apply;
mod attributes;
mod checkpoint;
mod codec;
mod command;
mod command_body;
mod group;
pub mod invariant;
mod key_value;
pub mod limits;
mod output;
mod payload;
mod per_queue;
mod queue_lock;
mod schedule;
mod topic;

#[cfg(test)]
mod tests;

use std::ops::Bound;

use raftmq_remoting::body::{SubscriptionGroupConfig, TopicConfig};

pub use crate::attributes::changed_attributes;
pub use crate::codec::DecodeError;
pub use crate::command::{Command, CommitMode, EncodedCommand, OffsetCommit};
pub use crate::invariant::{InvariantId, Violation};
pub use crate::output::{Appended, ApplyError, EntryPosition, Output, Reject, Reply};
pub use crate::payload::{PAYLOAD_HEADER_BYTES, PAYLOAD_VERSION, PayloadBuilder, decode_payload};
pub use crate::queue_lock::QueueLock;
pub use crate::topic::{DataVersion, QueueState, Topic};

use crate::group::GroupTable;
use crate::key_value::KeyValues;
use crate::per_queue::PerQueue;
use crate::queue_lock::QueueLocks;
use crate::schedule::ScheduleProgress;
use crate::topic::TopicTable;

/// Everything that survives a failover, at one index of the log.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    applied_index: u64,
    topics: TopicTable,
    groups: GroupTable,
    /// Queue offset of the next message to consume.
    offsets: PerQueue<u64>,
    locks: QueueLocks,
    schedule: ScheduleProgress,
    key_values: KeyValues,
}

impl State {
    /// The state before the first entry of the log.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raft log index of the last entry applied, 0 before the first.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// The topic of that name.
    pub fn topic(&self, topic: &str) -> Option<&Topic> {
        self.topics.topics.get(topic)
    }

    /// Whether a ChangeTopic with this configuration would change nothing.
    pub fn has_topic_as(&self, change: &TopicConfig) -> bool {
        let Some(present) = self.topic(&change.topic_name) else {
            return false;
        };
        let mut config = change.clone();
        let changes = std::mem::take(&mut config.attributes);
        let attributes = changed_attributes(Some(&present.config.attributes), changes);
        attributes.is_ok_and(|attributes| {
            config.attributes = attributes;
            present.config == config
        })
    }

    /// Every topic, sorted by name. The name is in its configuration.
    pub fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.topics.topics.values()
    }

    /// Every topic behind this name, sorted by name. The empty name is before all of them.
    pub fn topics_after(&self, topic: &str) -> impl Iterator<Item = &Topic> {
        let behind = (Bound::Excluded(topic), Bound::Unbounded);
        let topics = self.topics.topics.range::<str, _>(behind);
        topics.map(|(_, topic)| topic)
    }

    /// Version of the topic table.
    pub fn topic_version(&self) -> DataVersion {
        self.topics.version
    }

    /// The subscription group of that name.
    pub fn group(&self, group: &str) -> Option<&SubscriptionGroupConfig> {
        self.groups.groups.get(group)
    }

    /// Every subscription group, sorted by name.
    pub fn groups(&self) -> impl Iterator<Item = &SubscriptionGroupConfig> {
        self.groups.groups.values()
    }

    /// Version of the subscription group table.
    pub fn group_version(&self) -> DataVersion {
        self.groups.version
    }

    /// Queue offset of the next message the group consumes, if it ever committed one.
    pub fn consumer_offset(&self, group: &str, topic: &str, queue_id: u32) -> Option<u64> {
        self.offsets.get(group, topic, queue_id).copied()
    }

    /// Every (group, topic, queue_id, offset), sorted.
    pub fn consumer_offsets(&self) -> impl Iterator<Item = (&str, &str, u32, u64)> {
        self.offsets
            .iter()
            .map(|(group, topic, queue_id, offset)| (group, topic, queue_id, *offset))
    }

    /// Every (topic, queue_id, offset) of a group, sorted.
    pub fn offsets_of_group(&self, group: &str) -> impl Iterator<Item = (&str, u32, u64)> {
        self.offsets
            .of_group(group)
            .map(|(topic, queue_id, offset)| (topic, queue_id, *offset))
    }

    /// Groups that committed an offset of the topic, sorted.
    pub fn groups_of_topic(&self, topic: &str) -> impl Iterator<Item = &str> {
        self.offsets.groups_of_topic(topic)
    }

    /// The orderly lock of a queue, which may be expired at the caller's time.
    pub fn lock_owner(&self, group: &str, topic: &str, queue_id: u32) -> Option<&QueueLock> {
        self.locks.get(group, topic, queue_id)
    }

    /// When the lock that was asked for last was asked for. Unit: ms since 1970; `None`: no queue
    /// is locked. Linear in the number of locks.
    pub fn newest_lock_ms(&self) -> Option<u64> {
        let times = self.locks.iter().map(|(_, _, _, lock)| lock.locked_at_ms);
        times.max()
    }

    /// Progress of a delay level, 0 before its first delivery.
    pub fn schedule_progress(&self, level: u32) -> u64 {
        self.schedule.get(level)
    }

    /// Every (level, progress) that has moved, sorted.
    pub fn schedule_levels(&self) -> impl Iterator<Item = (u32, u64)> {
        self.schedule
            .levels
            .iter()
            .map(|(level, progress)| (*level, *progress))
    }

    /// The value of a key.
    pub fn kv(&self, namespace: &str, key: &str) -> Option<&str> {
        self.key_values.get(namespace, key)
    }

    /// Every (key, value) of a namespace, sorted.
    pub fn kv_entries(&self, namespace: &str) -> impl Iterator<Item = (&str, &str)> {
        self.key_values.iter(namespace)
    }

    /// Looks for a broken invariant. Linear in the size of the state: for tests and simulation,
    /// and for every checkpoint read.
    pub fn check(&self) -> Result<(), Violation> {
        self.topics.check()?;
        self.groups.check()?;
        for (group, topic, queue_id, offset) in self.consumer_offsets() {
            if !self.topics.has_queue(topic, queue_id) || offset > limits::QUEUE_OFFSET_MAX {
                let detail = format!("group {group}, topic {topic}, queue {queue_id}: {offset}");
                return Err(Violation::new(InvariantId::O1, detail));
            }
        }
        for (group, topic, queue_id, _) in self.locks.iter() {
            if !self.topics.has_queue(topic, queue_id) {
                let detail = format!("group {group}, topic {topic}, queue {queue_id}");
                return Err(Violation::new(InvariantId::L2, detail));
            }
        }
        Ok(())
    }
}
