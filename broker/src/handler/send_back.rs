//! 36 CONSUMER_SEND_MSG_BACK: a message whose consumption failed. It comes again after a delay by
//! the group's retry topic, or goes to the dead-letter topic when it has come often enough.

use std::sync::Arc;

use raftmq_remoting::{
    ResponseCode,
    body::TopicConfig,
    code::version,
    message::MessageRecord,
    message_id, name,
    properties::{
        PROPERTY_DELAY_TIME_LEVEL, PROPERTY_DLQ_ORIGIN_MESSAGE_ID, PROPERTY_DLQ_ORIGIN_TOPIC,
        PROPERTY_ORIGIN_MESSAGE_ID, PROPERTY_RETRY_TOPIC, PROPERTY_TAGS,
        PROPERTY_WAIT_STORE_MSG_OK,
    },
    tags::tags_code,
};
use raftmq_state::{Command, Reply};

use super::{
    Handled, Refusal, Request, client::find_or_create_group, message::find_record, propose, send,
    success,
};
use crate::broker::Broker;

/// Delay level of the first retry: 10 s.
const FIRST_DELAY_LEVEL: i32 = 3;

/// Where the message goes next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// To the retry topic, after this delay level.
    Retry { delay_level: i32 },
    /// To the dead-letter topic.
    DeadLetter,
}

/// Takes a message back.
pub(super) async fn send_back(broker: &Arc<Broker>, request: &Request) -> Handled {
    let fields = &request.command.ext_fields;
    let offset = fields.required_i64("offset")?;
    let group_name = fields.required_str("group")?;
    let delay_level = fields.required_i32("delayLevel")?;
    let header_max = fields.optional_i32("maxReconsumeTimes")?;
    let group = find_or_create_group(broker, group_name).await?;
    check_broker(broker)?;
    if group.retry_queue_nums <= 0 {
        // The group wants no retries: the message is dropped.
        return Ok(success(request));
    }
    let Some(message) = find_record(broker, offset).await? else {
        let remark = format!("look message by offset failed, {offset}");
        return Err(Refusal::new(ResponseCode::SYSTEM_ERROR, remark));
    };
    if !broker.takes_message(message.body.len()) {
        // What RocketMQ says when its store refuses a message here; the consumer keeps it.
        return Err(Refusal::new(
            ResponseCode::SYSTEM_ERROR,
            "SERVICE_NOT_AVAILABLE",
        ));
    }
    let header_max = header_max.filter(|_| request.command.version >= version::V3_4_9);
    let max = header_max.unwrap_or(group.retry_max_times);
    let next = next_of(message.reconsume_times, max, delay_level);
    let retry_queues = u32::try_from(group.retry_queue_nums).unwrap_or(1);
    let (topic, queues) = match next {
        Next::Retry { .. } => (name::retry_topic(group_name), retry_queues),
        Next::DeadLetter => (name::dlq_topic(group_name), 1),
    };
    let queues = writable_queues(broker, &topic, queues).await?;
    let queue_id = u32::try_from(message.physical_offset % u64::from(queues)).unwrap_or(0);
    let record = next_record(broker, message, &next, topic, queue_id);
    let tags_code = tags_code(record.properties.get(PROPERTY_TAGS));
    let prepared = send::prepare_record(broker, record, tags_code, None)?;
    match broker.proposer().propose(prepared.command).await? {
        Reply::Rejected { reason } => Err(send::reject(reason, group_name)),
        _ => Ok(success(request)),
    }
}

fn check_broker(broker: &Broker) -> Result<(), Refusal> {
    if broker.config.broker_permission & 2 == 0 {
        let broker_ip = &broker.config.broker_ip1;
        let remark = format!("the broker[{broker_ip}] sending message is forbidden");
        return Err(Refusal::new(ResponseCode::NO_PERMISSION, remark));
    }
    Ok(())
}

fn next_of(reconsume_times: i32, max: i32, delay_level: i32) -> Next {
    if reconsume_times >= max || delay_level < 0 {
        Next::DeadLetter
    } else if delay_level == 0 {
        Next::Retry {
            delay_level: FIRST_DELAY_LEVEL.saturating_add(reconsume_times),
        }
    } else {
        Next::Retry { delay_level }
    }
}

/// Number of queues of `topic`, which is created with `queues` when it is missing.
async fn writable_queues(broker: &Broker, topic: &str, queues: u32) -> Result<u32, Refusal> {
    let find = || {
        broker
            .machine
            .state()
            .topic(topic)
            .map(|topic| topic.config.clone())
    };
    let mut config = find();
    if config.is_none() {
        let config_new = TopicConfig::new(topic, queues, 6);
        propose(
            broker,
            Command::PutTopic {
                config: config_new,
                only_if_absent: true,
            },
        )
        .await?;
        config = find();
    }
    let config = config.ok_or_else(|| {
        Refusal::new(
            ResponseCode::SYSTEM_ERROR,
            format!("topic[{topic}] not exist"),
        )
    })?;
    if config.perm & 2 == 0 {
        let remark = format!("the topic[{topic}] sending message is forbidden");
        return Err(Refusal::new(ResponseCode::NO_PERMISSION, remark));
    }
    Ok(config.write_queue_nums.max(1))
}

/// The message as it is stored next. Its first topic and id stay with it over all retries.
fn next_record(
    broker: &Broker,
    mut message: MessageRecord,
    next: &Next,
    topic: String,
    queue_id: u32,
) -> MessageRecord {
    let stored_id = message_id::encode(message.store_host, message.physical_offset);
    let properties = &mut message.properties;
    let origin_topic = properties
        .get(PROPERTY_RETRY_TOPIC)
        .unwrap_or(&message.topic)
        .to_owned();
    let origin_id = properties
        .get(PROPERTY_ORIGIN_MESSAGE_ID)
        .filter(|id| !id.is_empty());
    let origin_id = origin_id.map_or(stored_id, str::to_owned);
    properties.set(PROPERTY_RETRY_TOPIC, &origin_topic);
    properties.set(PROPERTY_ORIGIN_MESSAGE_ID, &origin_id);
    properties.remove(PROPERTY_WAIT_STORE_MSG_OK);
    match next {
        Next::Retry { delay_level } => {
            properties.set(PROPERTY_DELAY_TIME_LEVEL, &delay_level.to_string());
        }
        Next::DeadLetter => {
            properties.remove(PROPERTY_DELAY_TIME_LEVEL);
            properties.set(PROPERTY_DLQ_ORIGIN_TOPIC, &origin_topic);
            properties.set(PROPERTY_DLQ_ORIGIN_MESSAGE_ID, &origin_id);
        }
    }
    MessageRecord {
        topic,
        queue_id,
        queue_offset: 0,
        physical_offset: 0,
        store_timestamp_ms: 0,
        store_host: broker.store_host,
        reconsume_times: message.reconsume_times.saturating_add(1),
        prepared_transaction_offset: 0,
        ..message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_wait_longer_each_time_and_end_in_the_dead_letter_topic() {
        assert_eq!(next_of(0, 16, 0), Next::Retry { delay_level: 3 });
        assert_eq!(next_of(15, 16, 0), Next::Retry { delay_level: 18 });
        assert_eq!(next_of(16, 16, 0), Next::DeadLetter);
        assert_eq!(next_of(2, 16, 5), Next::Retry { delay_level: 5 });
        assert_eq!(next_of(0, 16, -1), Next::DeadLetter);
        assert_eq!(next_of(0, 0, 0), Next::DeadLetter);
    }
}
