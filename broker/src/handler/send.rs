//! Sends: 10 SEND_MESSAGE, 310 SEND_MESSAGE_V2, 320 SEND_BATCH_MESSAGE.
//!
//! The path of a send: parse the header, check, lay the message out in its stored form, hand it to
//! the proposer. The answer is written by whoever applies the entry; no task waits in between.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use raftmq_remoting::{
    ExtFields, RemotingCommand, RequestCode, ResponseCode, batch,
    body::TopicConfig,
    limits::PROPERTIES_BYTES_MAX,
    message::MessageRecord,
    message_id, name,
    properties::{self, Properties},
    sys_flag, tags,
};
use raftmq_state::{Command, EncodedCommand, Reject, Reply};

use super::{Refusal, topic::ensure_topic_for_send};
use crate::{
    broker::Broker,
    proposer::{Outcome, SubmitError},
};

/// Region told to clients in every answer, as RocketMQ's default.
const REGION: &str = "DefaultRegion";

/// Header of the three send requests, both spellings.
#[derive(Debug)]
pub(crate) struct SendRequest {
    topic: String,
    default_topic: String,
    default_topic_queue_nums: i32,
    queue_id: i32,
    sys_flag: i32,
    born_timestamp: i64,
    flag: i32,
    properties: String,
    reconsume_times: i32,
    max_reconsume_times: Option<i32>,
    batch: bool,
}

impl SendRequest {
    /// Parses the V1 header of 10 or the one-letter V2 header of 310 and 320.
    fn parse(code: RequestCode, fields: &ExtFields) -> Result<Self, Refusal> {
        let v1 = code == RequestCode::SEND_MESSAGE;
        let key = |long: &'static str, short: &'static str| if v1 { long } else { short };
        fields.required_str(key("producerGroup", "a"))?;
        Ok(Self {
            topic: fields.required_str(key("topic", "b"))?.to_owned(),
            default_topic: fields.required_str(key("defaultTopic", "c"))?.to_owned(),
            default_topic_queue_nums: fields.required_i32(key("defaultTopicQueueNums", "d"))?,
            queue_id: fields.required_i32(key("queueId", "e"))?,
            sys_flag: fields.required_i32(key("sysFlag", "f"))?,
            born_timestamp: fields.required_i64(key("bornTimestamp", "g"))?,
            flag: fields.required_i32(key("flag", "h"))?,
            properties: fields
                .get(key("properties", "i"))
                .unwrap_or_default()
                .to_owned(),
            reconsume_times: fields
                .optional_i32(key("reconsumeTimes", "j"))?
                .unwrap_or(0),
            max_reconsume_times: fields.optional_i32(key("maxReconsumeTimes", "l"))?,
            batch: code == RequestCode::SEND_BATCH_MESSAGE
                || fields.optional_bool(key("batch", "m"))?.unwrap_or(false),
        })
    }
}

/// A send that has passed all checks.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// What is proposed.
    pub command: EncodedCommand,
    /// What the answer needs besides the reply.
    pub answer: AnswerParts,
}

/// What the answer to a send says besides offsets.
#[derive(Debug)]
pub(crate) struct AnswerParts {
    queue_id: u32,
    /// `UNIQ_KEY` of the message, echoed as transaction id.
    transaction_id: Option<String>,
    /// Number of messages and bytes of their records, for the counters.
    messages: usize,
    bytes: usize,
    topic: String,
}

/// Whether `code` is handled here.
pub(crate) fn is_send(code: RequestCode) -> bool {
    matches!(
        code,
        RequestCode::SEND_MESSAGE | RequestCode::SEND_MESSAGE_V2 | RequestCode::SEND_BATCH_MESSAGE
    )
}

/// A send that is laid out, or the topic that has to be created first, see [`create_topic`].
#[derive(Debug)]
pub(crate) enum Preparation {
    Ready(Prepared),
    MissingTopic(String),
}

/// Nothing was done and this node does not lead any more: the request should go to the leader.
#[derive(Debug)]
pub(crate) struct Moved;

/// Checks a send and lays its message out.
pub(crate) fn prepare(
    broker: &Broker,
    command: &RemotingCommand,
    peer: SocketAddr,
) -> Result<Preparation, Refusal> {
    let mut request = SendRequest::parse(RequestCode(command.code), &command.ext_fields)?;
    check_broker(broker)?;
    check_disk(broker, command.body.len())?;
    name::check_topic(&request.topic)
        .map_err(|error| Refusal::new(ResponseCode::INVALID_PARAMETER, error.to_string()))?;
    if name::is_send_forbidden(&request.topic) {
        let remark = format!("Sending message to topic[{}] is forbidden.", request.topic);
        return Err(Refusal::new(ResponseCode::NO_PERMISSION, remark));
    }
    let config = {
        let state = broker.machine.state();
        match state.topic(&request.topic) {
            Some(topic) => topic.config.clone(),
            None => return Ok(Preparation::MissingTopic(request.topic)),
        }
    };
    check_queue(&mut request, &config, peer)?;
    check_size(broker, &request, &command.body)?;
    if request.batch {
        prepare_batch(broker, &request, &command.body, peer).map(Preparation::Ready)
    } else {
        prepare_single(broker, request, &command.body, peer)
    }
}

/// Creates the `topic` that [`prepare`] found missing, if the rules allow it.
pub(crate) async fn create_topic(
    broker: &Broker,
    command: &RemotingCommand,
    topic: &str,
) -> Result<(), Refusal> {
    let request = SendRequest::parse(RequestCode(command.code), &command.ext_fields)?;
    ensure_topic_for_send(
        broker,
        topic,
        &request.default_topic,
        request.default_topic_queue_nums,
    )
    .await
}

fn check_broker(broker: &Broker) -> Result<(), Refusal> {
    if broker.config.broker_permission & 2 == 0 {
        let remark = format!(
            "the broker[{}] sending message is forbidden",
            broker.config.broker_ip1
        );
        return Err(Refusal::new(ResponseCode::NO_PERMISSION, remark));
    }
    Ok(())
}

/// Refuses a message of `bytes` bytes when the disk is too full for it, as RocketMQ does.
pub(crate) fn check_disk(broker: &Broker, bytes: usize) -> Result<(), Refusal> {
    if broker.takes_message(bytes) {
        return Ok(());
    }
    broker.metrics.requests.disk_full_total.inc();
    let used = f64::from(broker.disk.used_percent()) / 100.0;
    let remark = format!(
        "service not available now. It may be caused by one of the following reasons: the broker's \
         disk is full [CL: {used:5.2} CQ: {used:5.2} INDEX: {used:5.2}], messages are put to the \
         slave, message store has been shut down, etc."
    );
    Err(Refusal::new(ResponseCode::SERVICE_NOT_AVAILABLE, remark))
}

fn check_queue(
    request: &mut SendRequest,
    config: &TopicConfig,
    peer: SocketAddr,
) -> Result<(), Refusal> {
    if config.perm & 2 == 0 {
        let remark = format!("the topic[{}] sending message is forbidden", request.topic);
        return Err(Refusal::new(ResponseCode::NO_PERMISSION, remark));
    }
    let queues = config.read_queue_nums.max(config.write_queue_nums);
    if i64::from(request.queue_id) >= i64::from(queues) {
        let remark = format!(
            "request queueId[{}] is illegal, topic [{}] has {queues} queues, producer: {peer}",
            request.queue_id, request.topic
        );
        return Err(Refusal::new(ResponseCode::INVALID_PARAMETER, remark));
    }
    if request.queue_id < 0 {
        // Any queue will do; the born timestamp spreads them well enough and needs no state.
        let writable = i64::from(config.write_queue_nums.max(1));
        let pick = request.born_timestamp.rem_euclid(writable);
        request.queue_id = i32::try_from(pick).unwrap_or(0);
    }
    Ok(())
}

fn check_size(broker: &Broker, request: &SendRequest, body: &Bytes) -> Result<(), Refusal> {
    if request.properties.len() > PROPERTIES_BYTES_MAX {
        let remark = "the message is illegal, maybe msg properties length limit 32k.";
        return Err(Refusal::new(ResponseCode::MESSAGE_ILLEGAL, remark));
    }
    if body.len() > broker.config.max_message_size as usize {
        let remark = format!(
            "the message is illegal, maybe msg body not matched: {} bytes, maxMessageSize is {}",
            body.len(),
            broker.config.max_message_size
        );
        return Err(Refusal::new(ResponseCode::MESSAGE_ILLEGAL, remark));
    }
    Ok(())
}

fn prepare_single(
    broker: &Broker,
    mut request: SendRequest,
    body: &Bytes,
    peer: SocketAddr,
) -> Result<Preparation, Refusal> {
    let mut marks = Properties::parse(&request.properties);
    let transaction_id = marks.get(properties::PROPERTY_UNIQ_KEY).map(str::to_owned);
    if request.sys_flag & sys_flag::TRANSACTION_MASK == sys_flag::TRANSACTION_PREPARED {
        let remark = "transactional messages are not available in this version";
        return Err(Refusal::new(ResponseCode::NO_PERMISSION, remark));
    }
    if has_timer(&marks) {
        let remark = "timer messages are not available in this version; use a delay level";
        return Err(Refusal::new(ResponseCode::MESSAGE_ILLEGAL, remark));
    }
    let mut topic = std::mem::take(&mut request.topic);
    let mut queue_id = u32::try_from(request.queue_id).unwrap_or(0);
    if let Some(group) = name::group_of_retry_topic(&topic)
        && is_used_up(broker, group, &request)
    {
        topic = name::dlq_topic(group);
        queue_id = 0;
        marks.remove(properties::PROPERTY_DELAY_TIME_LEVEL);
        if broker.machine.state().topic(&topic).is_none() {
            return Ok(Preparation::MissingTopic(topic));
        }
    }
    marks.remove(properties::PROPERTY_WAIT_STORE_MSG_OK);
    marks.set(properties::PROPERTY_CLUSTER, &broker.config.cluster_name);
    let tags_code = tags::tags_code(marks.get(properties::PROPERTY_TAGS));
    let record = MessageRecord {
        queue_id,
        flag: request.flag,
        queue_offset: 0,
        physical_offset: 0,
        sys_flag: request.sys_flag,
        born_timestamp_ms: request.born_timestamp,
        born_host: peer,
        store_timestamp_ms: 0,
        store_host: broker.store_host,
        reconsume_times: request.reconsume_times,
        prepared_transaction_offset: 0,
        body: body.clone(),
        topic,
        properties: marks,
    };
    prepare_record(broker, record, tags_code, transaction_id).map(Preparation::Ready)
}

/// Lays out one message, by the schedule topic when it is delayed.
pub(crate) fn prepare_record(
    broker: &Broker,
    record: MessageRecord,
    tags_code: i64,
    transaction_id: Option<String>,
) -> Result<Prepared, Refusal> {
    let queue_id = record.queue_id;
    let topic = record.topic.clone();
    let (record, tags_code) = detour(broker, record, tags_code);
    let mut encoded = BytesMut::new();
    record.encode(&mut encoded).map_err(|error| {
        Refusal::new(
            ResponseCode::MESSAGE_ILLEGAL,
            format!("the message is illegal: {error}"),
        )
    })?;
    let answer = AnswerParts {
        queue_id,
        transaction_id,
        messages: 1,
        bytes: encoded.len(),
        topic,
    };
    Ok(Prepared {
        command: EncodedCommand::append(tags_code, &encoded),
        answer,
    })
}

/// A delayed message waits in the schedule topic; its tags code there is its due time.
pub(crate) fn detour(
    broker: &Broker,
    mut record: MessageRecord,
    tags_code: i64,
) -> (MessageRecord, i64) {
    let levels = &broker.config.message_delay_levels;
    let level = record
        .properties
        .get(properties::PROPERTY_DELAY_TIME_LEVEL)
        .and_then(|level| level.parse::<usize>().ok())
        .unwrap_or(0)
        .min(levels.len());
    let Some(delay_ms) = level.checked_sub(1).and_then(|at| levels.get(at)) else {
        return (record, tags_code);
    };
    let queue_id = record.queue_id.to_string();
    let topic = std::mem::replace(&mut record.topic, name::SCHEDULE_TOPIC.to_owned());
    record
        .properties
        .set(properties::PROPERTY_DELAY_TIME_LEVEL, &level.to_string());
    record
        .properties
        .set(properties::PROPERTY_REAL_TOPIC, &topic);
    record
        .properties
        .set(properties::PROPERTY_REAL_QUEUE_ID, &queue_id);
    record.queue_id = u32::try_from(level - 1).unwrap_or(0);
    let due = broker.clock.now_ms().saturating_add(*delay_ms);
    (record, i64::try_from(due).unwrap_or(i64::MAX))
}

fn has_timer(properties: &Properties) -> bool {
    [
        properties::PROPERTY_TIMER_DELAY_SEC,
        properties::PROPERTY_TIMER_DELAY_MS,
        properties::PROPERTY_TIMER_DELIVER_MS,
    ]
    .iter()
    .any(|key| properties.get(key).is_some())
}

/// Whether a message sent straight to a retry topic has been tried often enough (the fallback of
/// clients whose send-back failed).
fn is_used_up(broker: &Broker, group: &str, request: &SendRequest) -> bool {
    let group_max = broker
        .machine
        .state()
        .group(group)
        .map_or(16, |group| group.retry_max_times);
    request.reconsume_times > request.max_reconsume_times.unwrap_or(group_max)
}

fn prepare_batch(
    broker: &Broker,
    request: &SendRequest,
    body: &Bytes,
    peer: SocketAddr,
) -> Result<Prepared, Refusal> {
    let illegal = |remark: String| Refusal::new(ResponseCode::MESSAGE_ILLEGAL, remark);
    if name::group_of_retry_topic(&request.topic).is_some() {
        return Err(illegal("batch request does not support retry group".into()));
    }
    let outer = Properties::parse(&request.properties);
    let transaction_id = outer.get(properties::PROPERTY_UNIQ_KEY).map(str::to_owned);
    let queue_id = u32::try_from(request.queue_id).unwrap_or(0);
    let mut records = Vec::new();
    let mut bytes = 0;
    for item in batch::items(body) {
        let item = item.map_err(|error| illegal(format!("the batch is illegal: {error}")))?;
        let mut inner = Properties::parse(&item.properties);
        inner.remove(properties::PROPERTY_WAIT_STORE_MSG_OK);
        inner.set(properties::PROPERTY_CLUSTER, &broker.config.cluster_name);
        let tags_code = tags::tags_code(inner.get(properties::PROPERTY_TAGS));
        let record = MessageRecord {
            queue_id,
            flag: item.flag,
            queue_offset: 0,
            physical_offset: 0,
            sys_flag: request.sys_flag,
            born_timestamp_ms: request.born_timestamp,
            born_host: peer,
            store_timestamp_ms: 0,
            store_host: broker.store_host,
            reconsume_times: request.reconsume_times,
            prepared_transaction_offset: 0,
            body: item.body,
            topic: request.topic.clone(),
            properties: inner,
        };
        let mut encoded = BytesMut::new();
        record
            .encode(&mut encoded)
            .map_err(|error| illegal(format!("a message of the batch is illegal: {error}")))?;
        bytes += encoded.len();
        records.push((tags_code, encoded.freeze()));
    }
    if records.is_empty() {
        return Err(illegal("the batch has no message".into()));
    }
    let topic = request.topic.clone();
    let answer = AnswerParts {
        queue_id,
        transaction_id,
        messages: records.len(),
        bytes,
        topic,
    };
    Ok(Prepared {
        command: Command::AppendBatch { records }.encode(),
        answer,
    })
}

/// The answer to a send whose outcome is known.
pub(crate) fn answer(
    broker: &Broker,
    request: &RemotingCommand,
    parts: &AnswerParts,
    outcome: Outcome,
) -> Result<RemotingCommand, Moved> {
    let reply = match outcome {
        Ok(reply) => reply,
        Err(SubmitError::NotLeader) => return Err(Moved),
        Err(error) => return Ok(Refusal::from(error).response(request)),
    };
    let (queue_offset, message_id) = match reply {
        Reply::Appended {
            queue_offset,
            physical_offset,
        } => (
            queue_offset,
            message_id::encode(broker.store_host, physical_offset),
        ),
        Reply::AppendedBatch {
            first_queue_offset,
            physical_offsets,
        } => {
            let ids: Vec<String> = physical_offsets
                .into_iter()
                .map(|offset| message_id::encode(broker.store_host, offset))
                .collect();
            (first_queue_offset, ids.join(","))
        }
        Reply::Rejected { reason } => return Ok(reject(reason, &parts.topic).response(request)),
        Reply::Locked(_) | Reply::Done => {
            return Ok(
                Refusal::new(ResponseCode::SYSTEM_ERROR, "unexpected reply").response(request)
            );
        }
    };
    broker
        .stats
        .message_stored(&parts.topic, parts.messages, parts.bytes);
    broker
        .metrics
        .requests
        .messages_stored_total
        .inc_by(parts.messages as u64);
    broker
        .metrics
        .requests
        .messages_stored_bytes_total
        .inc_by(parts.bytes as u64);
    let mut response = RemotingCommand::response_to(request, ResponseCode::SUCCESS)
        .with_ext("msgId", message_id)
        .with_ext("queueId", parts.queue_id.to_string())
        .with_ext("queueOffset", queue_offset.to_string())
        .with_ext("MSG_REGION", REGION)
        .with_ext("TRACE_ON", "true");
    if let Some(id) = &parts.transaction_id {
        response = response.with_ext("transactionId", id.as_str());
    }
    Ok(response)
}

/// RocketMQ's code for a command that changed nothing.
pub(crate) fn reject(reason: Reject, topic: &str) -> Refusal {
    match reason {
        Reject::TopicNotExist => Refusal::topic_not_exist(topic),
        Reject::QueueIdOutOfRange => Refusal::new(
            ResponseCode::INVALID_PARAMETER,
            "request queueId is illegal",
        ),
        Reject::GroupNotExist => Refusal::new(
            ResponseCode::SUBSCRIPTION_GROUP_NOT_EXIST,
            "subscription group not exist",
        ),
        reason => Refusal::new(ResponseCode::SYSTEM_ERROR, reason.to_string()),
    }
}
