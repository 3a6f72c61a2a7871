//! Replies of the request-reply pattern: 324 SEND_REPLY_MESSAGE, 325 SEND_REPLY_MESSAGE_V2. The
//! reply is pushed to the client that waits for it (326) and also stored, as in RocketMQ.

use std::{sync::Arc, time::Duration};

use raftmq_remoting::{
    ExtFields, RemotingCommand, RequestCode, ResponseCode,
    properties::{PROPERTY_PUSH_REPLY_TIME, PROPERTY_REPLY_TO_CLIENT, Properties},
};

use super::{Handled, Refusal, Request, send};
use crate::broker::Broker;

/// How long the requester has to take the reply. The replying client gives up after 3 s itself.
const PUSH_TIMEOUT: Duration = Duration::from_millis(2_500);

/// Fields of 326, with their names in the two headers of a reply.
const FIELDS: [(&str, &str); 11] = [
    ("producerGroup", "a"),
    ("topic", "b"),
    ("defaultTopic", "c"),
    ("defaultTopicQueueNums", "d"),
    ("queueId", "e"),
    ("sysFlag", "f"),
    ("bornTimestamp", "g"),
    ("flag", "h"),
    ("reconsumeTimes", "j"),
    ("unitMode", "k"),
    ("properties", "i"),
];

/// Takes a reply.
pub(super) async fn reply(broker: &Arc<Broker>, request: &Request) -> Handled {
    // Apart from its code, a reply is a send.
    let mut as_send = request.command.clone();
    let is_v1 = request.command.code == RequestCode::SEND_REPLY_MESSAGE.0;
    as_send.code = if is_v1 {
        RequestCode::SEND_MESSAGE.0
    } else {
        RequestCode::SEND_MESSAGE_V2.0
    };
    let prepared = match send::prepare(broker, &as_send, request.peer)? {
        send::Preparation::Ready(prepared) => prepared,
        send::Preparation::MissingTopic(topic) => return Err(Refusal::topic_not_exist(&topic)),
    };
    let pushed = push(broker, request, is_v1).await;
    let outcome = broker.proposer().propose(prepared.command).await;
    let stored = send::answer(broker, &as_send, &prepared.answer, outcome);
    let is_stored = stored
        .as_ref()
        .is_ok_and(|response| response.code == ResponseCode::SUCCESS.0);
    if !is_stored {
        tracing::debug!(peer = %request.peer, "a reply was not stored");
    }
    pushed?;
    // The requester has its reply: whether it is stored too does not matter to anyone waiting.
    Ok(match stored {
        Ok(response) if is_stored => response,
        _ => RemotingCommand::response_to(&request.command, ResponseCode::SUCCESS)
            .with_ext("msgId", "0")
            .with_ext("queueId", field(&as_send.ext_fields, is_v1, "queueId", "e"))
            .with_ext("queueOffset", 0),
    })
}

fn field<'a>(fields: &'a ExtFields, is_v1: bool, long: &str, short: &str) -> &'a str {
    fields
        .get(if is_v1 { long } else { short })
        .unwrap_or_default()
}

/// Brings the reply to the client that waits for it.
async fn push(broker: &Broker, request: &Request, is_v1: bool) -> Result<(), Refusal> {
    let failed = |remark: String| Refusal::new(ResponseCode::SYSTEM_ERROR, remark);
    let fields = &request.command.ext_fields;
    let mut properties = Properties::parse(field(fields, is_v1, "properties", "i"));
    let client_id = properties.get(PROPERTY_REPLY_TO_CLIENT).map(str::to_owned);
    let Some(client_id) = client_id else {
        let remark = format!("reply message properties[{PROPERTY_REPLY_TO_CLIENT}] is null");
        return Err(failed(remark));
    };
    let Some(requester) = broker.sessions.producer(&client_id) else {
        let remark = format!("push reply message fail, channel of <{client_id}> not found.");
        return Err(failed(remark));
    };
    let now_ms = broker.clock.now_ms();
    properties.set(PROPERTY_PUSH_REPLY_TIME, &now_ms.to_string());
    let mut command = RemotingCommand::request(RequestCode::PUSH_REPLY_MESSAGE_TO_CLIENT)
        .with_body(request.command.body.clone());
    for (long, short) in FIELDS {
        if let Some(value) = fields.get(if is_v1 { long } else { short }) {
            command.ext_fields.insert(long, value);
        }
    }
    command.ext_fields.insert("properties", properties.as_str());
    command
        .ext_fields
        .insert("bornHost", java_address(request.peer));
    command
        .ext_fields
        .insert("storeHost", java_address(broker.store_host));
    command.ext_fields.insert("storeTimestamp", now_ms);
    let answer = requester.connection.call(command, PUSH_TIMEOUT).await;
    match answer {
        Some(answer) if answer.code == ResponseCode::SUCCESS.0 => Ok(()),
        _ => Err(failed(format!("push reply message to {client_id}fail."))),
    }
}

/// An address as Java prints it and clients of 326 parse it: with a slash in front.
fn java_address(address: std::net::SocketAddr) -> String {
    format!("/{address}")
}
