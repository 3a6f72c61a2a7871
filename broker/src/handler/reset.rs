//! 222 INVOKE_BROKER_TO_RESET_OFFSET: moves a group to a time or an offset. The new offsets are
//! committed first; then the members are told (220), so that they drop what they have fetched.

use std::sync::Arc;

use raftmq_remoting::{
    ExtFields, LanguageCode, RemotingCommand, RequestCode, ResponseCode,
    body::{MessageQueue, ResetOffsetBody},
    code::version,
};
use raftmq_state::{Command, CommitMode, OffsetCommit};

use super::{Handled, Refusal, Request, offset, propose, success};
use crate::broker::Broker;

/// Header of the request.
#[derive(Debug)]
struct Reset<'a> {
    group: &'a str,
    topic: &'a str,
    /// Only this queue.
    queue_id: Option<u32>,
    /// To this offset; otherwise to `timestamp_ms`.
    offset: Option<i64>,
    /// Negative = to the end.
    timestamp_ms: i64,
    /// Forward too, not only back.
    is_force: bool,
}

/// One queue of the topic.
#[derive(Debug)]
struct Queue {
    queue_id: u32,
    number: u32,
    /// Where the group is.
    committed: Option<u64>,
}

/// Resets a group.
pub(super) async fn reset(broker: &Arc<Broker>, request: &Request) -> Handled {
    let reset = Reset::parse(&request.command.ext_fields)?;
    // Commits that wait would undo the reset.
    broker.offset_commits.flush(broker).await;
    let (reader, asked) = (Arc::clone(broker), request.command.ext_fields.clone());
    let targets = broker.cold_reads.run(move || targets(&reader, &asked));
    let commits = targets.await??;
    let offset_table = commits.iter().map(|commit| {
        let queue = MessageQueue {
            broker_name: broker.config.broker_name.clone(),
            queue_id: i32::try_from(commit.queue_id).unwrap_or(0),
            topic: commit.topic.clone(),
        };
        (queue, i64::try_from(commit.offset).unwrap_or(i64::MAX))
    });
    let body = ResetOffsetBody {
        offset_table: offset_table.collect(),
    };
    if commits.is_empty() {
        return Ok(success(request)
            .with_remark("No queues to reset.")
            .with_body(body.encode()));
    }
    propose(broker, Command::CommitOffsets { commits }).await?;
    tell_members(broker, &reset, &body);
    Ok(success(request).with_body(body.encode()))
}

/// Where the queues of a reset go; reads the log when it is to a time.
fn targets(broker: &Broker, asked: &ExtFields) -> Result<Vec<OffsetCommit>, Refusal> {
    let reset = Reset::parse(asked)?;
    let to = |queue: Queue| {
        Ok(OffsetCommit {
            group: reset.group.to_owned(),
            topic: reset.topic.to_owned(),
            queue_id: queue.queue_id,
            offset: target(broker, &reset, &queue)?,
            mode: CommitMode::Set,
        })
    };
    queues(broker, &reset)?.into_iter().map(to).collect()
}

impl<'a> Reset<'a> {
    fn parse(fields: &'a ExtFields) -> Result<Self, Refusal> {
        let queue_id = fields.optional_i32("queueId")?.unwrap_or(-1);
        Ok(Self {
            group: fields.required_str("group")?,
            topic: fields.required_str("topic")?,
            queue_id: u32::try_from(queue_id).ok(),
            offset: fields
                .optional_i64("offset")?
                .filter(|offset| *offset != -1),
            timestamp_ms: fields.required_i64("timestamp")?,
            is_force: fields.required_bool("isForce")?,
        })
    }
}

fn queues(broker: &Broker, reset: &Reset<'_>) -> Result<Vec<Queue>, Refusal> {
    let state = broker.machine.state();
    let Some(topic) = state.topic(reset.topic) else {
        let remark = format!("Topic {} does not exist", reset.topic);
        return Err(Refusal::new(ResponseCode::TOPIC_NOT_EXIST, remark));
    };
    if state.group(reset.group).is_none() {
        let remark = format!("Group {} does not exist", reset.group);
        return Err(Refusal::new(
            ResponseCode::SUBSCRIPTION_GROUP_NOT_EXIST,
            remark,
        ));
    }
    let readable = topic.config.read_queue_nums;
    let wanted = (0..readable).filter(|id| reset.queue_id.is_none_or(|only| only == *id));
    Ok(wanted
        .filter_map(|queue_id| {
            let number = topic.queue(queue_id)?.number;
            let committed = state.consumer_offset(reset.group, reset.topic, queue_id);
            Some(Queue {
                queue_id,
                number,
                committed,
            })
        })
        .collect())
}

/// Offset a queue is reset to.
fn target(broker: &Broker, reset: &Reset<'_>, queue: &Queue) -> Result<u64, Refusal> {
    let (min, max) = broker.machine.index().bounds(queue.number);
    if let (Some(_), Some(wanted)) = (reset.queue_id, reset.offset) {
        let offset = u64::try_from(wanted)
            .ok()
            .filter(|offset| (min..=max).contains(offset));
        return offset.ok_or_else(|| {
            let remark = format!("Target offset {wanted} not in consume queue range [{min}-{max}]");
            Refusal::new(ResponseCode::SYSTEM_ERROR, remark)
        });
    }
    let by_time = if reset.timestamp_ms < 0 {
        max
    } else {
        offset::offset_at(broker, queue.number, reset.timestamp_ms, false)?
    };
    Ok(match queue.committed {
        Some(committed) if !reset.is_force => committed.min(by_time),
        _ => by_time,
    })
}

fn tell_members(broker: &Broker, reset: &Reset<'_>, body: &ResetOffsetBody) {
    let Some(group) = broker.sessions.consumer_group(reset.group) else {
        return;
    };
    for client in group.clients.values() {
        if client.version < version::V3_0_7_SNAPSHOT {
            tracing::warn!(
                client = client.client_id,
                "client is too old to be told of a reset"
            );
            continue;
        }
        let is_cpp = client.language == LanguageCode::CPP.0;
        let mut command = RemotingCommand::request(RequestCode::RESET_CONSUMER_CLIENT_OFFSET)
            .with_ext("topic", reset.topic)
            .with_ext("group", reset.group)
            .with_ext("timestamp", reset.timestamp_ms)
            .with_ext("isForce", reset.is_force)
            .with_body(if is_cpp {
                list_form(body)
            } else {
                body.encode()
            });
        command.mark_oneway();
        client.connection.send(&command);
    }
}

/// The body as C++ clients read it: a list, since they know no maps keyed by objects.
fn list_form(body: &ResetOffsetBody) -> bytes::Bytes {
    let rows: Vec<_> = body
        .offset_table
        .iter()
        .map(|(queue, offset)| {
            serde_json::json!({
                "brokerName": queue.broker_name,
                "offset": offset,
                "queueId": queue.queue_id,
                "topic": queue.topic,
            })
        })
        .collect();
    serde_json::json!({ "offsetTable": rows })
        .to_string()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_tools_reset_all_queues_by_time() {
        let fields = ExtFields::from_iter([
            ("group", "g"),
            ("topic", "T"),
            ("timestamp", "-1"),
            ("isForce", "true"),
            ("queueId", "-1"),
            ("offset", "-1"),
        ]);
        let reset = Reset::parse(&fields).unwrap();
        assert_eq!((reset.queue_id, reset.offset), (None, None));
        assert!(reset.is_force && reset.timestamp_ms == -1);
    }

    #[test]
    fn cpp_clients_get_a_list() {
        let queue = MessageQueue {
            broker_name: "b".into(),
            queue_id: 1,
            topic: "T".into(),
        };
        let body = ResetOffsetBody {
            offset_table: vec![(queue, 7)],
        };
        let expected = r#"{"offsetTable":[{"brokerName":"b","offset":7,"queueId":1,"topic":"T"}]}"#;
        assert_eq!(list_form(&body), expected);
    }
}
