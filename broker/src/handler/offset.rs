//! Offsets: 14 QUERY_CONSUMER_OFFSET, 15 UPDATE_CONSUMER_OFFSET, 29 SEARCH_OFFSET_BY_TIMESTAMP,
//! 30 GET_MAX_OFFSET, 31 GET_MIN_OFFSET, 32 GET_EARLIEST_MSG_STORETIME, 43 GET_ALL_CONSUMER_OFFSET.

use std::{collections::BTreeMap, sync::Arc};

use raftmq_remoting::{
    ExtFields, RemotingCommand, ResponseCode,
    body::{self, ConsumerOffsetSerializeWrapper, DataVersion},
    name,
};
use raftmq_state::{Command, CommitMode, OffsetCommit};
use raftmq_store::StoreError;

use super::{Handled, Refusal, Request, propose, success};
use crate::{broker::Broker, offset_commits::Commit};

/// Number of a topic's queue in the consume queue, if there is one.
pub(super) fn queue_number(broker: &Broker, topic: &str, queue_id: i32) -> Option<u32> {
    let queue_id = u32::try_from(queue_id).ok()?;
    Some(broker.machine.state().topic(topic)?.queue(queue_id)?.number)
}

/// The queue that a request names; RocketMQ answers for an unknown one as for an empty one.
fn queue_of(broker: &Broker, fields: &ExtFields) -> Result<Option<u32>, Refusal> {
    let topic = fields.required_str("topic")?;
    Ok(queue_number(broker, topic, fields.required_i32("queueId")?))
}

/// Where a group goes on in a queue; what was committed before is settled by the dispatcher.
pub(super) async fn query(broker: &Arc<Broker>, request: &Request) -> Handled {
    let fields = &request.command.ext_fields;
    let group = fields.required_str("consumerGroup")?;
    let topic = fields.required_str("topic")?;
    let queue_id = fields.required_i32("queueId")?;
    let committed = u32::try_from(queue_id)
        .ok()
        .and_then(|id| broker.machine.state().consumer_offset(group, topic, id));
    if let Some(offset) = committed {
        return Ok(success(request).with_ext("offset", offset));
    }
    if fields.optional_bool("setZeroIfNotFound")? == Some(false) {
        return Err(Refusal::new(
            ResponseCode::QUERY_NOT_FOUND,
            "Not found, do not set to zero, maybe this group boot first",
        ));
    }
    if let Some(queue) = queue_number(broker, topic, queue_id) {
        let reader = Arc::clone(broker);
        let is_young = broker.cold_reads.run(move || is_young(&reader, queue));
        if is_young.await?? {
            return Ok(success(request).with_ext("offset", 0));
        }
    }
    Err(Refusal::new(
        ResponseCode::QUERY_NOT_FOUND,
        "Not found, V3_0_6_SNAPSHOT maybe this group consumer boot first",
    ))
}

/// Whether a new group may start at 0 wherever it wanted to start: no message is lost at the birth
/// of a topic. RocketMQ's rule is that offset 0 is there and its message still in memory; in memory
/// means here: within the length of one log segment from the end.
fn is_young(broker: &Broker, queue: u32) -> Result<bool, StoreError> {
    let index = broker.machine.index();
    if index.bounds(queue).0 > 0 {
        return Ok(false);
    }
    let first = index.read(queue, 0, 1)?.first().copied();
    let end = broker.machine.log().max_physical();
    let reach = broker.config.segment_bytes;
    Ok(first.is_some_and(|first| end.saturating_sub(first.physical_offset) < reach))
}

/// Commits an offset. Clients send it one-way every five seconds; those wait a moment and go into
/// the log together. A request that wants an answer gets it when its offset is in the state.
pub(super) async fn update(broker: &Arc<Broker>, request: &Request) -> Handled {
    if request.command.is_oneway() {
        return update_one_way(broker, &request.command);
    }
    let (commit, _) = commit_of(broker, &request.command.ext_fields)?;
    // Older commits of the queue first, else they would undo this one.
    if !broker.offset_commits.flush(broker).await {
        return Err(Refusal::no_room());
    }
    let commits = vec![OffsetCommit {
        group: commit.group.to_owned(),
        topic: commit.topic.to_owned(),
        queue_id: commit.queue_id,
        offset: commit.offset,
        mode: commit.mode,
    }];
    propose(broker, Command::CommitOffsets { commits }).await?;
    Ok(success(request))
}

/// As [`update`] for a request that nobody waits for: it needs no task.
pub(crate) fn update_one_way(broker: &Broker, command: &RemotingCommand) -> Handled {
    let (commit, has_queue) = commit_of(broker, &command.ext_fields)?;
    // Without the queue it would be rejected when it is applied, and take memory until then.
    if has_queue {
        broker.offset_commits.add(broker, &commit);
    }
    let success = RemotingCommand::response_to(command, ResponseCode::SUCCESS);
    Ok(success)
}

/// The commit that a request asks for, and whether its queue exists.
fn commit_of<'a>(broker: &Broker, fields: &'a ExtFields) -> Result<(Commit<'a>, bool), Refusal> {
    let parameter = |error: raftmq_remoting::HeaderError| {
        Refusal::new(ResponseCode::INVALID_PARAMETER, error.to_string())
    };
    let group = fields.required_str("consumerGroup").map_err(parameter)?;
    let topic = fields.required_str("topic").map_err(parameter)?;
    let queue_id = fields.required_i32("queueId").map_err(parameter)?;
    let offset = fields.required_i64("commitOffset").map_err(parameter)?;
    let (has_group, has_topic, has_queue) = {
        let state = broker.machine.state();
        let has_group = state.group(group).is_some() || name::is_system_group(group);
        let topic = state.topic(topic);
        let queue_id = u32::try_from(queue_id).ok();
        let queue = topic.and_then(|topic| topic.queue(queue_id?));
        (has_group, topic.is_some(), queue.is_some())
    };
    if !has_group {
        let remark = format!("Group {group} not exist!");
        return Err(Refusal::new(
            ResponseCode::SUBSCRIPTION_GROUP_NOT_EXIST,
            remark,
        ));
    }
    if !has_topic {
        let remark = format!("Topic {topic} not exist!");
        return Err(Refusal::new(ResponseCode::TOPIC_NOT_EXIST, remark));
    }
    let (Ok(queue_id), Ok(offset)) = (u32::try_from(queue_id), u64::try_from(offset)) else {
        let remark = format!("queueId[{queue_id}] or commitOffset[{offset}] is negative");
        return Err(Refusal::new(ResponseCode::INVALID_PARAMETER, remark));
    };
    let commit = Commit {
        group,
        topic,
        queue_id,
        offset,
        mode: CommitMode::Set,
    };
    Ok((commit, has_queue))
}

/// Offset at a time: the first message at or after it, or with boundary UPPER the last message at
/// or before it.
pub(super) fn search(broker: &Broker, request: &Request) -> Handled {
    let fields = &request.command.ext_fields;
    let timestamp = fields.required_i64("timestamp")?;
    let is_upper = fields
        .get("boundaryType")
        .is_some_and(|kind| kind.eq_ignore_ascii_case("UPPER"));
    let offset = match queue_of(broker, fields)? {
        Some(queue) => offset_at(broker, queue, timestamp, is_upper)?,
        None => 0,
    };
    Ok(success(request).with_ext("offset", offset))
}

/// See [`search`].
pub(super) fn offset_at(
    broker: &Broker,
    queue: u32,
    timestamp_ms: i64,
    is_upper: bool,
) -> Result<u64, StoreError> {
    let index = broker.machine.index();
    let timestamp_ms = u64::try_from(timestamp_ms).unwrap_or(0);
    if !is_upper {
        return index.offset_by_time(queue, timestamp_ms);
    }
    let min = index.bounds(queue).0;
    let after = index.offset_by_time(queue, timestamp_ms.saturating_add(1))?;
    Ok(after.saturating_sub(1).max(min))
}

/// Next offset of a queue.
pub(super) async fn max(broker: &Arc<Broker>, request: &Request) -> Handled {
    let (_, max) = bounds(broker, request).await?;
    Ok(success(request).with_ext("offset", max))
}

/// First offset of a queue.
pub(super) async fn min(broker: &Arc<Broker>, request: &Request) -> Handled {
    let (min, _) = bounds(broker, request).await?;
    Ok(success(request).with_ext("offset", min))
}

/// First and next offset of the queue that a request names. After a purge the first one has to be
/// looked for once.
async fn bounds(broker: &Arc<Broker>, request: &Request) -> Result<(u64, u64), Refusal> {
    let Some(queue) = queue_of(broker, &request.command.ext_fields)? else {
        return Ok((0, 0));
    };
    let index = broker.machine.index();
    if index.is_in_memory(queue, u64::MAX) {
        return Ok(index.bounds(queue));
    }
    let index = Arc::clone(index);
    let bounds = broker.cold_reads.run(move || index.bounds(queue));
    Ok(bounds.await?)
}

/// Store time of a queue's first message; -1 without one.
pub(super) fn earliest(broker: &Broker, request: &Request) -> Handled {
    let first = match queue_of(broker, &request.command.ext_fields)? {
        Some(queue) => {
            let index = broker.machine.index();
            index
                .read(queue, index.bounds(queue).0, 1)?
                .first()
                .copied()
        }
        None => None,
    };
    let timestamp = first.and_then(|unit| i64::try_from(unit.store_timestamp_ms).ok());
    Ok(success(request).with_ext("timestamp", timestamp.unwrap_or(-1)))
}

/// Every consumer offset.
pub(super) fn all(broker: &Broker, request: &Request) -> Handled {
    let mut table: BTreeMap<String, BTreeMap<u32, i64>> = BTreeMap::new();
    let counter = {
        let state = broker.machine.state();
        for (group, topic, queue_id, offset) in state.consumer_offsets() {
            let offset = i64::try_from(offset).unwrap_or(i64::MAX);
            table
                .entry(format!("{topic}@{group}"))
                .or_default()
                .insert(queue_id, offset);
        }
        state.applied_index()
    };
    let data_version = DataVersion {
        counter: i64::try_from(counter).unwrap_or(i64::MAX),
        ..DataVersion::default()
    };
    let wrapper = ConsumerOffsetSerializeWrapper {
        data_version,
        offset_table: table,
    };
    Ok(success(request).with_body(body::encode(&wrapper)))
}
