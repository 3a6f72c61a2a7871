//! Topics and their queues: configuration, queue numbers, next queue offsets. Handlers check
//! permissions and names; this file keeps what must be equal on every replica.

use std::collections::BTreeMap;

use raftmq_remoting::body::TopicConfig;

use crate::attributes::changed_attributes;
use crate::invariant::{InvariantId, Violation};
use crate::limits::{
    NAME_BYTES_MAX, QUEUE_OFFSET_MAX, QUEUES_MAX, QUEUES_PER_TOPIC_MAX, TOPICS_MAX,
};
use crate::output::Reject;

/// One queue of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// Name of the queue in the consume queue's files: short, and never reused (invariant Q3).
    pub number: u32,
    /// Queue offset of the next message, which is the number of messages so far.
    pub next_offset: u64,
}

/// A topic.
#[derive(Debug, Clone, PartialEq)]
pub struct Topic {
    /// The configuration last put.
    pub config: TopicConfig,
    /// Queues by queue_id. Only grows: when the configuration shows fewer queues, the others are
    /// hidden with their messages until it shows them again (invariant Q2).
    pub queues: Vec<QueueState>,
}

impl Topic {
    /// The queue of that id, hidden ones included.
    pub fn queue(&self, queue_id: u32) -> Option<&QueueState> {
        self.queues.get(queue_id as usize)
    }

    pub(crate) fn has_queue(&self, queue_id: u32) -> bool {
        self.queue(queue_id).is_some()
    }
}

/// Version of the topic table or the group table, as registered at the name servers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DataVersion {
    /// Number of changes so far.
    pub counter: u64,
    /// Store time of the last change. Unit: ms since 1970; 0 before the first.
    pub timestamp_ms: u64,
    /// RocketMQ's controller epoch: 0, as in DLedger mode, which has no controller.
    pub state_version: u64,
}

impl DataVersion {
    pub(crate) fn advance(&mut self, now_ms: u64) {
        self.counter += 1;
        self.timestamp_ms = now_ms;
    }
}

/// All topics.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct TopicTable {
    pub(crate) topics: BTreeMap<String, Topic>,
    pub(crate) version: DataVersion,
    /// Number the next new queue gets.
    pub(crate) next_queue_number: u32,
    queue_count: usize,
}

impl TopicTable {
    /// A table read from a checkpoint. The caller checks it.
    pub(crate) fn restored(
        topics: BTreeMap<String, Topic>,
        version: DataVersion,
        next_queue_number: u32,
    ) -> Self {
        let queue_count = topics.values().map(|topic| topic.queues.len()).sum();
        Self {
            topics,
            version,
            next_queue_number,
            queue_count,
        }
    }

    /// Finds the queue a record goes to. The hottest lookup of the broker.
    #[inline]
    pub(crate) fn queue_mut(
        &mut self,
        topic: &str,
        queue_id: u32,
    ) -> Result<&mut QueueState, Reject> {
        let topic = self.topics.get_mut(topic).ok_or(Reject::TopicNotExist)?;
        topic
            .queues
            .get_mut(queue_id as usize)
            .ok_or(Reject::QueueIdOutOfRange)
    }

    pub(crate) fn has_queue(&self, topic: &str, queue_id: u32) -> bool {
        self.topics
            .get(topic)
            .is_some_and(|topic| topic.has_queue(queue_id))
    }

    /// Creates or reconfigures a topic. Returns whether anything changed.
    pub(crate) fn put(
        &mut self,
        config: TopicConfig,
        only_if_absent: bool,
        now_ms: u64,
    ) -> Result<bool, Reject> {
        if !name_is_legal(&config.topic_name) {
            return Err(Reject::InvalidCommand);
        }
        let wanted = queues_shown(&config).ok_or(Reject::InvalidCommand)?;
        let present = self.topics.get(&config.topic_name);
        if present.is_some_and(|topic| only_if_absent || topic.config == config) {
            return Ok(false);
        }
        if present.is_none() && self.topics.len() >= TOPICS_MAX {
            return Err(Reject::LimitReached);
        }
        let have = present.map_or(0, |topic| topic.queues.len());
        let added = (wanted as usize).saturating_sub(have);
        self.reserve_numbers(added)?;
        let first_number = self.next_queue_number;
        let topic = self
            .topics
            .entry(config.topic_name.clone())
            .or_insert_with(|| Topic {
                config: TopicConfig::default(),
                queues: Vec::new(),
            });
        topic.config = config;
        topic
            .queues
            .extend((first_number..).take(added).map(|number| QueueState {
                number,
                next_offset: 0,
            }));
        // `reserve_numbers` checked that both sums stay within their limits.
        self.next_queue_number += added as u32;
        self.queue_count += added;
        self.version.advance(now_ms);
        Ok(true)
    }

    /// As [`Self::put`]; the attributes of `config` are changes of the present ones.
    pub(crate) fn change(&mut self, mut config: TopicConfig, now_ms: u64) -> Result<bool, Reject> {
        let present = self.topics.get(&config.topic_name);
        let present = present.map(|topic| &topic.config.attributes);
        config.attributes = changed_attributes(present, config.attributes)?;
        self.put(config, false, now_ms)
    }

    /// Removes a topic. Its queue numbers are never handed out again (invariant Q3).
    pub(crate) fn delete(&mut self, topic: &str, now_ms: u64) -> Option<Topic> {
        let removed = self.topics.remove(topic)?;
        self.queue_count -= removed.queues.len();
        self.version.advance(now_ms);
        Some(removed)
    }

    fn reserve_numbers(&self, added: usize) -> Result<(), Reject> {
        let numbers_left = (u32::MAX - self.next_queue_number) as usize;
        if self.queue_count + added > QUEUES_MAX || added > numbers_left {
            return Err(Reject::LimitReached);
        }
        Ok(())
    }

    pub(crate) fn check(&self) -> Result<(), Violation> {
        let mut numbers = Vec::with_capacity(self.queue_count);
        for (name, topic) in &self.topics {
            if *name != topic.config.topic_name {
                return Err(Violation::new(InvariantId::N1, format!("topic {name}")));
            }
            let shown = queues_shown(&topic.config);
            if shown.is_none_or(|shown| topic.queues.len() < shown as usize) {
                return Err(Violation::new(InvariantId::Q2, format!("topic {name}")));
            }
            let offsets_fit = topic
                .queues
                .iter()
                .all(|queue| queue.next_offset <= QUEUE_OFFSET_MAX);
            let count_fits = topic.queues.len() <= QUEUES_PER_TOPIC_MAX as usize;
            if !name_is_legal(name) || !offsets_fit || !count_fits {
                return Err(Violation::new(InvariantId::Q4, format!("topic {name}")));
            }
            numbers.extend(topic.queues.iter().map(|queue| queue.number));
        }
        numbers.sort_unstable();
        let repeated = numbers
            .windows(2)
            .find(|pair| pair[0] == pair[1])
            .map(|pair| pair[0]);
        let ahead = numbers
            .last()
            .copied()
            .filter(|last| *last >= self.next_queue_number);
        if let Some(number) = repeated.or(ahead) {
            return Err(Violation::new(
                InvariantId::Q3,
                format!("queue number {number}"),
            ));
        }
        if self.topics.len() > TOPICS_MAX || numbers.len() > QUEUES_MAX {
            return Err(Violation::new(InvariantId::Q4, "the topic table"));
        }
        Ok(())
    }
}

/// Length rule for topic and group names; the legal characters are the handlers' business.
pub(crate) fn name_is_legal(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX
}

/// Queues a configuration shows to clients: readers and writers may see different numbers.
/// `None` when a number is outside `0..=QUEUES_PER_TOPIC_MAX`.
fn queues_shown(config: &TopicConfig) -> Option<u32> {
    let read = i64::from(config.read_queue_nums);
    let write = i64::from(config.write_queue_nums);
    if read.min(write) < 0 {
        return None;
    }
    u32::try_from(read.max(write))
        .ok()
        .filter(|shown| *shown <= QUEUES_PER_TOPIC_MAX)
}
