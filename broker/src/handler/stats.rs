//! Statistics for tools: 202 ranges of a topic's queues, 208 progress of a group, 300, 343 and 345
//! who consumes what, 315 counters.

use std::{collections::BTreeSet, sync::Arc};

use raftmq_remoting::{
    ResponseCode,
    body::{
        self, ConsumeStats, GroupList, MessageQueue, OffsetWrapper, SubscriptionData, TopicList,
        TopicOffset, TopicStatsTable,
    },
};
use serde::Serialize;

use super::{Handled, Refusal, Request, success};
use crate::broker::Broker;

/// 202: offsets and last store time of each queue of a topic.
pub(super) fn topic_stats(broker: &Arc<Broker>, request: &Request) -> Handled {
    let topic = request.command.ext_fields.required_str("topic")?;
    let queues = {
        let state = broker.machine.state();
        let Some(found) = state.topic(topic) else {
            let remark = format!("topic[{topic}] not exist");
            return Err(Refusal::new(ResponseCode::TOPIC_NOT_EXIST, remark));
        };
        let shown = found
            .config
            .read_queue_nums
            .max(found.config.write_queue_nums);
        let numbers = found
            .queues
            .iter()
            .take(shown as usize)
            .map(|queue| queue.number);
        numbers.collect::<Vec<u32>>()
    };
    let mut offset_table = Vec::with_capacity(queues.len());
    for (queue_id, number) in queues.into_iter().enumerate() {
        let (min, max) = broker.machine.index().bounds(number);
        let range = TopicOffset {
            last_update_timestamp: match max.checked_sub(1) {
                Some(last) => store_timestamp(broker, number, last)?,
                None => 0,
            },
            max_offset: signed(max),
            min_offset: signed(min),
        };
        offset_table.push((queue_of(broker, topic, queue_id), range));
    }
    let topic_put_tps = broker.stats.topic_put_tps(topic, broker.uptime_ms());
    let table = TopicStatsTable {
        offset_table,
        topic_put_tps,
    };
    Ok(success(request).with_body(table.encode()))
}

/// 208: offsets of a group in each queue of the topics it consumes.
pub(super) fn consume_stats(broker: &Arc<Broker>, request: &Request) -> Handled {
    let fields = &request.command.ext_fields;
    let group = fields.required_str("consumerGroup")?;
    let wanted = |key| {
        fields
            .get(key)
            .filter(|value: &&str| !value.trim().is_empty())
    };
    let topics: BTreeSet<String> = if let Some(topic) = wanted("topic") {
        BTreeSet::from([topic.to_owned()])
    } else if let Some(topics) = wanted("topicList") {
        topics
            .split(';')
            .filter(|topic| !topic.is_empty())
            .map(str::to_owned)
            .collect()
    } else {
        committed_topics(broker, group)
    };
    // A group that is online counts for what it subscribes to now.
    let online = broker.sessions.consumer_group(group);
    let now_ms = broker.uptime_ms();
    let mut stats = ConsumeStats::default();
    for topic in topics {
        let left = online.as_ref().is_some_and(|online| {
            !online.subscriptions.is_empty() && !online.subscriptions.contains_key(&topic)
        });
        if left {
            continue;
        }
        for (queue_id, (number, committed)) in progress(broker, group, &topic).enumerate() {
            let wrapper = OffsetWrapper {
                broker_offset: signed(broker.machine.index().bounds(number).1),
                consumer_offset: signed(committed),
                last_timestamp: match committed.checked_sub(1) {
                    Some(last) => store_timestamp(broker, number, last)?,
                    None => 0,
                },
                pull_offset: signed(committed),
            };
            stats
                .offset_table
                .push((queue_of(broker, &topic, queue_id), wrapper));
        }
        stats.consume_tps += broker.stats.group_get_tps(group, &topic, now_ms);
    }
    Ok(success(request).with_body(stats.encode()))
}

/// 300: groups that consume a topic, online or not.
pub(super) fn consumed_by(broker: &Arc<Broker>, request: &Request) -> Handled {
    let topic = request.command.ext_fields.required_str("topic")?;
    let mut groups: BTreeSet<String> = broker.sessions.groups_of_topic(topic).into_iter().collect();
    groups.extend(
        broker
            .machine
            .state()
            .groups_of_topic(topic)
            .map(str::to_owned),
    );
    let list = GroupList {
        group_list: groups.into_iter().collect(),
    };
    Ok(success(request).with_body(body::encode(&list)))
}

/// 343: topics a group has offsets of.
pub(super) fn topics_of_group(broker: &Arc<Broker>, request: &Request) -> Handled {
    let group = request.command.ext_fields.required_str("group")?;
    let list = TopicList {
        broker_addr: Some(broker.config.broker_address()),
        topic_list: committed_topics(broker, group).into_iter().collect(),
    };
    Ok(success(request).with_body(body::encode(&list)))
}

/// Body of the answer to 345.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct QuerySubscriptionResponseBody<'a> {
    group: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscription_data: Option<SubscriptionData>,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<&'a str>,
}

/// 345: what the online members of a group subscribed to on a topic.
pub(super) fn subscription(broker: &Arc<Broker>, request: &Request) -> Handled {
    let fields = &request.command.ext_fields;
    let group = fields.required_str("group")?;
    let topic = fields.optional_str("topic")?;
    let subscription_data = topic.and_then(|topic| broker.sessions.subscription(group, topic));
    let answer = QuerySubscriptionResponseBody {
        group,
        subscription_data,
        topic,
    };
    Ok(success(request).with_body(body::encode(&answer)))
}

/// 315: one counter over the last minute, hour and day.
pub(super) fn view(broker: &Arc<Broker>, request: &Request) -> Handled {
    let fields = &request.command.ext_fields;
    let (name, key) = (
        fields.required_str("statsName")?,
        fields.required_str("statsKey")?,
    );
    // Counters of the whole broker are kept under the name of its cluster.
    let foreign = name.starts_with("BROKER_") && key != broker.config.cluster_name;
    let data = broker
        .stats
        .view(name, key, broker.uptime_ms())
        .filter(|_| !foreign);
    let data = data.ok_or_else(|| {
        let remark = format!("The stats <{name}> <{key}> not exist");
        Refusal::new(ResponseCode::SYSTEM_ERROR, remark)
    })?;
    Ok(success(request).with_body(body::encode(&data)))
}

fn committed_topics(broker: &Broker, group: &str) -> BTreeSet<String> {
    let state = broker.machine.state();
    state
        .offsets_of_group(group)
        .map(|(topic, _, _)| topic.to_owned())
        .collect()
}

/// Number of each queue that consumers read, with the group's offset; nothing for a missing topic.
fn progress(broker: &Broker, group: &str, topic: &str) -> impl Iterator<Item = (u32, u64)> + use<> {
    let state = broker.machine.state();
    let queues: Vec<(u32, u64)> = state.topic(topic).map_or_else(Vec::new, |found| {
        let shown = found
            .queues
            .iter()
            .take(found.config.read_queue_nums as usize);
        let numbered = (0_u32..).zip(shown);
        let offset = |queue_id| state.consumer_offset(group, topic, queue_id).unwrap_or(0);
        numbered
            .map(|(queue_id, queue)| (queue.number, offset(queue_id)))
            .collect()
    });
    queues.into_iter()
}

/// Store time of a message; 0 when it is purged or not there. Unit: ms since 1970.
fn store_timestamp(broker: &Broker, queue: u32, queue_offset: u64) -> Result<i64, Refusal> {
    let units = broker.machine.index().read(queue, queue_offset, 1)?;
    Ok(units
        .first()
        .map_or(0, |unit| signed(unit.store_timestamp_ms)))
}

fn queue_of(broker: &Broker, topic: &str, queue_id: usize) -> MessageQueue {
    MessageQueue {
        broker_name: broker.config.broker_name.clone(),
        queue_id: i32::try_from(queue_id).unwrap_or(i32::MAX),
        topic: topic.to_owned(),
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
