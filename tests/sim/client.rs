//! A client of RocketMQ's remoting protocol that says of every request what became of it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use raftmq::net::{Net, Stream};
use raftmq_remoting::{RemotingCommand, RequestCode, ResponseCode, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::history::{MessageId, Outcome};

/// How long an answer is waited for: what RocketMQ's clients wait for a send.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of a message that are not its id.
const PADDING_BYTES: usize = 100;
/// `sysFlag` of a pull that brings its own subscription and does not wait, or waits.
const WITH_SUBSCRIPTION: u32 = 4;
/// See [`WITH_SUBSCRIPTION`].
const SUSPEND: u32 = 2;
/// Topic of everything.
pub const TOPIC: &str = "simulated";
/// Name of the broker group.
pub const BROKER_NAME: &str = "RaftNode00";

/// Connections of one client to all brokers; one request is under way at a time.
#[derive(Debug)]
pub struct Client {
    net: Arc<dyn Net>,
    connections: BTreeMap<String, Connection>,
    opaque: i32,
    /// How long the next answer is waited for; then the connection is closed.
    pub patience: Duration,
}

struct Connection {
    stream: Stream,
    input: BytesMut,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Connection")
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// The request never left.
    NotSent(io::Error),
    /// It may have been carried out.
    Unknown,
}

/// What a pull brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pulled {
    /// Queue offsets and ids.
    Found(Vec<(u64, MessageId)>),
    /// Go on at this offset.
    Moved(u64),
    /// Nothing there, or no answer.
    Nothing,
}

impl Client {
    /// A client without connections.
    pub fn new(net: Arc<dyn Net>) -> Self {
        Self {
            net,
            connections: BTreeMap::new(),
            opaque: 0,
            patience: ANSWER_TIMEOUT,
        }
    }

    /// Sends a request to a broker and waits for its answer.
    pub async fn call(
        &mut self,
        broker: &str,
        request: RemotingCommand,
    ) -> Result<RemotingCommand, NoAnswer> {
        self.opaque += 1;
        let request = request.with_opaque(self.opaque);
        let mut connection = match self.connections.remove(broker) {
            Some(connection) => connection,
            None => Connection {
                stream: self.net.connect(broker).await.map_err(NoAnswer::NotSent)?,
                input: BytesMut::new(),
            },
        };
        let patience = std::mem::replace(&mut self.patience, ANSWER_TIMEOUT);
        let answer = tokio::time::timeout(patience, connection.exchange(&request)).await;
        let Ok(Ok(answer)) = answer else {
            // What comes later belongs to nobody: the connection ends.
            return Err(NoAnswer::Unknown);
        };
        self.connections.insert(broker.to_owned(), connection);
        Ok(answer)
    }

    /// Sends a message to a queue; its queue offset.
    pub async fn send(&mut self, broker: &str, queue: u32, id: MessageId) -> Outcome<u64> {
        let mut body = Vec::with_capacity(8 + PADDING_BYTES);
        body.extend_from_slice(&id.to_be_bytes());
        body.resize(8 + PADDING_BYTES, b'.');
        let queue = queue.to_string();
        let properties = format!("UNIQ_KEY\u{1}{id:032X}\u{2}WAIT\u{1}true\u{2}");
        let mut request = RemotingCommand::request(RequestCode::SEND_MESSAGE_V2);
        for (key, value) in [
            ("a", "producers"),
            ("b", TOPIC),
            ("c", "TBW102"),
            ("d", "4"),
            ("e", queue.as_str()),
            ("f", "0"),
            ("g", "1700000000000"),
            ("h", "0"),
            ("i", properties.as_str()),
            ("j", "0"),
            ("k", "false"),
            ("m", "false"),
            ("n", BROKER_NAME),
        ] {
            request = request.with_ext(key, value);
        }
        match self.call(broker, request.with_body(body)).await {
            Err(NoAnswer::NotSent(_)) => Outcome::Refused,
            Err(NoAnswer::Unknown) => Outcome::Unknown,
            Ok(answer) => outcome(&answer, |answer| {
                let offset = answer.ext_fields.get("queueOffset");
                offset.and_then(|offset| offset.parse().ok())
            }),
        }
    }

    /// Pulls from a queue for a group. `wait`: for a second, when there is nothing yet.
    pub async fn pull(
        &mut self,
        broker: &str,
        (group, queue): (u32, u32),
        from: u64,
        wait: bool,
    ) -> Pulled {
        let Ok(answer) = self.ask_for(broker, (group, queue), from, wait).await else {
            return Pulled::Nothing;
        };
        match ResponseCode(answer.code) {
            ResponseCode::SUCCESS => Pulled::Found(messages(&answer.body)),
            ResponseCode::PULL_OFFSET_MOVED => {
                let next = answer.ext_fields.get("nextBeginOffset");
                let next = next.and_then(|next| next.parse().ok());
                next.map_or(Pulled::Nothing, Pulled::Moved)
            }
            _ => Pulled::Nothing,
        }
    }

    /// Where a queue ends at a broker itself, for a group.
    pub async fn end_of_own(&mut self, broker: &str, place: (u32, u32)) -> Option<u64> {
        let answer = self.ask_for(broker, place, 0, false).await.ok()?;
        answer.ext_fields.get("maxOffset")?.parse().ok()
    }

    /// Where a queue ends, as the leader says.
    pub async fn end(&mut self, broker: &str, queue: u32) -> Option<u64> {
        let request = RemotingCommand::request(RequestCode::GET_MAX_OFFSET)
            .with_ext("topic", TOPIC)
            .with_ext("queueId", queue);
        let answer = self.call(broker, request).await.ok()?;
        let is_answered = ResponseCode(answer.code) == ResponseCode::SUCCESS;
        let end = answer.ext_fields.get("offset").filter(|_| is_answered)?;
        end.parse().ok()
    }

    async fn ask_for(
        &mut self,
        broker: &str,
        (group, queue): (u32, u32),
        from: u64,
        wait: bool,
    ) -> Result<RemotingCommand, NoAnswer> {
        let flag = WITH_SUBSCRIPTION | if wait { SUSPEND } else { 0 };
        let request = RemotingCommand::request(RequestCode::PULL_MESSAGE)
            .with_ext("consumerGroup", group_name(group))
            .with_ext("topic", TOPIC)
            .with_ext("queueId", queue)
            .with_ext("queueOffset", from)
            .with_ext("maxMsgNums", 32)
            .with_ext("sysFlag", flag)
            .with_ext("commitOffset", 0)
            .with_ext("suspendTimeoutMillis", 1_000)
            .with_ext("subscription", "*")
            .with_ext("expressionType", "TAG")
            .with_ext("subVersion", 0);
        self.call(broker, request).await
    }

    /// Makes sure that the topic has so many queues; false when that is not certain.
    pub async fn create_topic(&mut self, broker: &str, queues: u32) -> bool {
        let request = RemotingCommand::request(RequestCode::UPDATE_AND_CREATE_TOPIC)
            .with_ext("topic", TOPIC)
            .with_ext("defaultTopic", "TBW102")
            .with_ext("readQueueNums", queues)
            .with_ext("writeQueueNums", queues)
            .with_ext("perm", 6)
            .with_ext("topicFilterType", "SINGLE_TAG")
            .with_ext("topicSysFlag", 0)
            .with_ext("order", false);
        let answer = self.call(broker, request).await;
        answer.is_ok_and(|answer| ResponseCode(answer.code) == ResponseCode::SUCCESS)
    }

    /// Asks one broker to delete what its retention allows, whatever the hour.
    pub async fn delete_expired(&mut self, broker: &str) {
        let request = RemotingCommand::request(RequestCode::DELETE_EXPIRED_COMMITLOG);
        // It is tried again by the next call.
        let _ = self.call(broker, request).await;
    }

    /// Commits the offset of a group in a queue.
    pub async fn commit(
        &mut self,
        broker: &str,
        (group, queue): (u32, u32),
        offset: u64,
    ) -> Outcome<()> {
        let request = RemotingCommand::request(RequestCode::UPDATE_CONSUMER_OFFSET)
            .with_ext("consumerGroup", group_name(group))
            .with_ext("topic", TOPIC)
            .with_ext("queueId", queue)
            .with_ext("commitOffset", offset);
        match self.call(broker, request).await {
            Err(NoAnswer::NotSent(_)) => Outcome::Refused,
            Err(NoAnswer::Unknown) => Outcome::Unknown,
            Ok(answer) => outcome(&answer, |_| Some(())),
        }
    }

    /// The committed offset of a group in a queue: `Err` without an answer, `None` when there is none.
    pub async fn committed(
        &mut self,
        broker: &str,
        (group, queue): (u32, u32),
    ) -> Result<Option<u64>, ()> {
        let request = RemotingCommand::request(RequestCode::QUERY_CONSUMER_OFFSET)
            .with_ext("consumerGroup", group_name(group))
            .with_ext("topic", TOPIC)
            .with_ext("queueId", queue)
            .with_ext("setZeroIfNotFound", false);
        let answer = self.call(broker, request).await.map_err(|_| ())?;
        match ResponseCode(answer.code) {
            ResponseCode::SUCCESS => {
                let offset = answer.ext_fields.get("offset").ok_or(())?;
                offset.parse().map(Some).map_err(|_| ())
            }
            ResponseCode::QUERY_NOT_FOUND => Ok(None),
            _ => Err(()),
        }
    }
}

impl Connection {
    async fn exchange(&mut self, request: &RemotingCommand) -> io::Result<RemotingCommand> {
        let mut output = BytesMut::new();
        frame::encode(request, &mut output);
        self.stream.write_all(&output).await?;
        loop {
            let decoded = frame::decode(&mut self.input).map_err(io::Error::other)?;
            match decoded {
                Some(answer) if answer.is_response() && answer.opaque == request.opaque => {
                    return Ok(answer);
                }
                // The broker tells its clients of changes; these ones do not care.
                Some(_) => {}
                None if self.stream.read_buf(&mut self.input).await? == 0 => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                None => {}
            }
        }
    }
}

/// Name of a consumer group.
pub fn group_name(group: u32) -> String {
    format!("group{group}")
}

/// What an answer says about a change. Only these codes promise that nothing was done.
fn outcome<T>(
    answer: &RemotingCommand,
    done: impl FnOnce(&RemotingCommand) -> Option<T>,
) -> Outcome<T> {
    match ResponseCode(answer.code) {
        ResponseCode::SUCCESS => done(answer).map_or(Outcome::Unknown, Outcome::Done),
        ResponseCode::SYSTEM_BUSY
        | ResponseCode::SERVICE_NOT_AVAILABLE
        | ResponseCode::TOPIC_NOT_EXIST
        | ResponseCode::SUBSCRIPTION_GROUP_NOT_EXIST => Outcome::Refused,
        _ => Outcome::Unknown,
    }
}

/// Queue offsets and ids of the messages in a body. A damaged one has an id that nobody sent.
fn messages(body: &Bytes) -> Vec<(u64, MessageId)> {
    let views = raftmq_remoting::message::views(body);
    let read = views.map(|view| {
        let Ok(view) = view else {
            return (u64::MAX, MessageId::MAX);
        };
        let intact = view.body_is_intact() && view.topic() == TOPIC;
        let id = view.body().first_chunk().copied().filter(|_| intact);
        let id = id.map_or(MessageId::MAX, MessageId::from_be_bytes);
        (view.queue_offset(), id)
    });
    read.collect()
}
