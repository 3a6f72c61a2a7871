//! Requests of clients and tools: one file for each family. Each handler parses its header once,
//! checks, then proposes a command or reads, and encodes the answer.

mod admin;
mod client;
mod group;
mod lock;
mod message;
mod offset;
mod pull;
mod query;
mod reply;
mod reset;
pub(crate) mod send;
mod send_back;
mod stats;
pub(crate) mod topic;

pub(crate) use client::notify_changed;
pub(crate) use lock::LockTime;
pub(crate) use offset::update_one_way;
pub(crate) use pull::KeptUnits;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use raftmq_remoting::{
    HeaderError, RemotingCommand, RequestCode, ResponseCode, body::BodyError,
    frame::FRAME_BYTES_MAX,
};
use raftmq_state::{Command, Reply};
use raftmq_store::StoreError;

use crate::{
    broker::Broker,
    budget::{NoRoom, Permit},
    cold_read::ColdReadError,
    proposer::SubmitError,
    server::Connection,
};

/// One request on its way through a handler.
#[derive(Debug)]
pub(crate) struct Request {
    /// The request.
    pub command: RemotingCommand,
    /// Address of the client.
    pub peer: SocketAddr,
    /// Connection of the client; `None` when another replica forwarded the request.
    pub connection: Option<Arc<Connection>>,
    /// Memory for the answer, until it is handed to the connection.
    pub room: Room,
}

/// What a request holds for its answer.
#[derive(Debug, Default)]
pub(crate) struct Room(Mutex<Option<Permit>>);

impl Room {
    /// In place of what the request held before: it may be handled again.
    fn put(&self, permit: Option<Permit>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = permit;
    }
}

impl Request {
    /// Waits until the client has read enough of what it was sent, and there is memory for an
    /// answer of `bytes` bytes. To be asked before the answer is read from the log.
    async fn room(&self, broker: &Broker, bytes: usize) -> Result<(), NoRoom> {
        self.room.put(None);
        let account = match &self.connection {
            Some(connection) => &connection.account,
            None => &broker.forwarded,
        };
        let room = account.room(bytes).await;
        if matches!(room, Err(NoRoom::Busy)) {
            broker.metrics.limit_reached("memory_budget");
        }
        self.room.put(Some(room?));
        Ok(())
    }

    /// Whether nobody waits for the answer any more.
    fn is_abandoned(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|connection| connection.is_closed())
    }
}

/// Most bytes of answers whose size is known only when they are made; `None` for those that are
/// small, or ask for room themselves.
fn answer_bytes_max(code: RequestCode) -> Option<usize> {
    match code {
        RequestCode::GET_ALL_TOPIC_CONFIG
        | RequestCode::GET_ALL_SUBSCRIPTIONGROUP_CONFIG
        | RequestCode::GET_ALL_CONSUMER_OFFSET
        | RequestCode::GET_ALL_DELAY_OFFSET
        | RequestCode::GET_ALL_PRODUCER_INFO => Some(FRAME_BYTES_MAX),
        _ => None,
    }
}

/// A refusal: response code and remark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Code of the response.
    pub code: ResponseCode,
    /// Text that clients print.
    pub remark: String,
}

/// What a handler gives back: the response, or why there is none.
pub(crate) type Handled = Result<RemotingCommand, Refusal>;

impl Refusal {
    pub(crate) fn new(code: ResponseCode, remark: impl Into<String>) -> Self {
        Self {
            code,
            remark: remark.into(),
        }
    }

    /// The answer that makes a client look the topic's route up again.
    pub(crate) fn topic_not_exist(topic: &str) -> Self {
        Self::new(
            ResponseCode::TOPIC_NOT_EXIST,
            format!("topic[{topic}] not exist, apply first please!"),
        )
    }

    pub(crate) fn group_not_exist(group: &str) -> Self {
        Self::new(
            ResponseCode::SUBSCRIPTION_GROUP_NOT_EXIST,
            format!("subscription group [{group}] does not exist"),
        )
    }

    /// The disk is so full that not even offsets and metadata are taken.
    pub(crate) fn no_room() -> Self {
        Self::new(
            ResponseCode::SERVICE_NOT_AVAILABLE,
            "the broker's disk is full, and what was reserved for offsets and metadata is used \
             up; free some space",
        )
    }

    /// The response to `request`.
    pub(crate) fn response(self, request: &RemotingCommand) -> RemotingCommand {
        RemotingCommand::response_to(request, self.code).with_remark(self.remark)
    }
}

impl From<NoRoom> for Refusal {
    fn from(reason: NoRoom) -> Self {
        let remark = match reason {
            NoRoom::Busy => "[OVERLOAD]the broker has no memory for more requests",
            NoRoom::Closed => "the connection is closed",
        };
        Self::new(ResponseCode::SYSTEM_BUSY, remark)
    }
}

impl From<HeaderError> for Refusal {
    fn from(error: HeaderError) -> Self {
        Self::new(ResponseCode::SYSTEM_ERROR, error.to_string())
    }
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        Self::new(ResponseCode::SYSTEM_ERROR, error.to_string())
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::new(ResponseCode::SYSTEM_ERROR, format!("read the log: {error}"))
    }
}

impl From<ColdReadError> for Refusal {
    fn from(error: ColdReadError) -> Self {
        Self::new(ResponseCode::SYSTEM_ERROR, format!("read the log: {error}"))
    }
}

impl From<SubmitError> for Refusal {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Busy => Self::new(
                ResponseCode::SYSTEM_BUSY,
                "[OVERLOAD]too many bytes wait to be replicated",
            ),
            SubmitError::NotLeader => Self::new(
                ResponseCode::SERVICE_NOT_AVAILABLE,
                "this broker does not lead its group and no leader is known",
            ),
            SubmitError::Unknown => Self::new(
                ResponseCode::SYSTEM_ERROR,
                "in-sync replicas not enough, outcome unknown: the message may or may not be stored",
            ),
            SubmitError::Stopped => Self::new(
                ResponseCode::SERVICE_NOT_AVAILABLE,
                "the broker is shutting down",
            ),
        }
    }
}

/// Proposes `command`, which is no message, and waits until it is applied; a rejection becomes a
/// refusal.
pub(crate) async fn propose(broker: &Broker, command: Command) -> Result<Reply, Refusal> {
    if !broker.takes_note() {
        return Err(Refusal::no_room());
    }
    match broker.proposer().propose(command.encode()).await? {
        Reply::Rejected { reason } => Err(send::reject(reason, "")),
        reply => Ok(reply),
    }
}

/// Handles a request that reads here and there in old parts of the log, on a thread that may wait
/// for the disk.
async fn away(
    broker: &Arc<Broker>,
    request: &Request,
    handler: impl FnOnce(&Arc<Broker>, &Request) -> Handled + Send + 'static,
) -> Handled {
    let reader = Arc::clone(broker);
    // What is held for the answer stays with the task of the request.
    let request = Request {
        command: request.command.clone(),
        peer: request.peer,
        connection: request.connection.clone(),
        room: Room::default(),
    };
    let handled = broker.cold_reads.run(move || handler(&reader, &request));
    handled.await?
}

/// A response with code 0.
pub(crate) fn success(request: &Request) -> RemotingCommand {
    RemotingCommand::response_to(&request.command, ResponseCode::SUCCESS)
}

/// Handles a request on this node. Sends are handled by the dispatcher itself.
pub(crate) async fn handle(broker: &Arc<Broker>, request: &Request) -> RemotingCommand {
    let handled = match answer_bytes_max(RequestCode(request.command.code)) {
        Some(bytes) => match request.room(broker, bytes).await {
            Ok(()) => route(broker, request).await,
            Err(reason) => Err(reason.into()),
        },
        None => route(broker, request).await,
    };
    handled.unwrap_or_else(|refusal| refusal.response(&request.command))
}

async fn route(broker: &Arc<Broker>, request: &Request) -> Handled {
    match RequestCode(request.command.code) {
        RequestCode::PULL_MESSAGE | RequestCode::LITE_PULL_MESSAGE => {
            pull::pull(broker, request).await
        }
        RequestCode::CONSUMER_SEND_MSG_BACK => send_back::send_back(broker, request).await,
        RequestCode::SEND_REPLY_MESSAGE | RequestCode::SEND_REPLY_MESSAGE_V2 => {
            reply::reply(broker, request).await
        }
        RequestCode::HEART_BEAT => client::heartbeat(broker, request).await,
        RequestCode::UNREGISTER_CLIENT => client::unregister(broker, request),
        RequestCode::CHECK_CLIENT_CONFIG => client::check_config(broker, request),
        RequestCode::GET_CONSUMER_LIST_BY_GROUP => client::consumer_list(broker, request),
        RequestCode::GET_CONSUMER_CONNECTION_LIST => client::consumer_connections(broker, request),
        RequestCode::GET_PRODUCER_CONNECTION_LIST => client::producer_connections(broker, request),
        RequestCode::GET_ALL_PRODUCER_INFO => client::all_producers(broker, request),
        RequestCode::GET_CONSUMER_RUNNING_INFO => client::running_info(broker, request).await,
        RequestCode::CONSUME_MESSAGE_DIRECTLY => client::consume_directly(broker, request).await,
        RequestCode::LOCK_BATCH_MQ => lock::lock(broker, request).await,
        RequestCode::UNLOCK_BATCH_MQ => lock::unlock(broker, request).await,
        RequestCode::QUERY_CONSUMER_OFFSET => offset::query(broker, request).await,
        RequestCode::UPDATE_CONSUMER_OFFSET => offset::update(broker, request).await,
        RequestCode::SEARCH_OFFSET_BY_TIMESTAMP => {
            away(broker, request, |broker, request| {
                offset::search(broker, request)
            })
            .await
        }
        RequestCode::GET_MAX_OFFSET => offset::max(broker, request).await,
        RequestCode::GET_MIN_OFFSET => offset::min(broker, request).await,
        RequestCode::GET_EARLIEST_MSG_STORETIME => {
            away(broker, request, |broker, request| {
                offset::earliest(broker, request)
            })
            .await
        }
        RequestCode::GET_ALL_CONSUMER_OFFSET => {
            away(broker, request, |broker, request| {
                offset::all(broker, request)
            })
            .await
        }
        RequestCode::INVOKE_BROKER_TO_RESET_OFFSET => reset::reset(broker, request).await,
        RequestCode::QUERY_MESSAGE => query::query(broker, request).await,
        RequestCode::VIEW_MESSAGE_BY_ID => message::view(broker, request).await,
        RequestCode::QUERY_CONSUME_QUEUE => {
            away(broker, request, |broker, request| {
                message::query_consume_queue(broker, request)
            })
            .await
        }
        code => admin_route(code, broker, request).await,
    }
}

/// Requests of tools.
async fn admin_route(code: RequestCode, broker: &Arc<Broker>, request: &Request) -> Handled {
    match code {
        RequestCode::UPDATE_AND_CREATE_TOPIC => topic::update(broker, request).await,
        RequestCode::UPDATE_AND_CREATE_TOPIC_LIST => topic::update_list(broker, request).await,
        RequestCode::DELETE_TOPIC_IN_BROKER => topic::delete(broker, request).await,
        RequestCode::GET_ALL_TOPIC_CONFIG => topic::all(broker, request),
        RequestCode::GET_TOPIC_CONFIG => topic::get(broker, request),
        RequestCode::GET_SYSTEM_TOPIC_LIST_FROM_BROKER => topic::system_topics(broker, request),
        RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP => group::update(broker, request).await,
        RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST => {
            group::update_list(broker, request).await
        }
        RequestCode::DELETE_SUBSCRIPTIONGROUP => group::delete(broker, request).await,
        RequestCode::GET_ALL_SUBSCRIPTIONGROUP_CONFIG => group::all(broker, request),
        RequestCode::GET_SUBSCRIPTIONGROUP_CONFIG => group::get(broker, request),
        RequestCode::GET_TOPIC_STATS_INFO => away(broker, request, stats::topic_stats).await,
        RequestCode::GET_CONSUME_STATS => away(broker, request, stats::consume_stats).await,
        RequestCode::QUERY_TOPIC_CONSUME_BY_WHO => stats::consumed_by(broker, request),
        RequestCode::QUERY_TOPICS_BY_CONSUMER => stats::topics_of_group(broker, request),
        RequestCode::QUERY_SUBSCRIPTION_BY_CONSUMER => stats::subscription(broker, request),
        RequestCode::VIEW_BROKER_STATS_DATA => stats::view(broker, request),
        RequestCode::GET_BROKER_RUNTIME_INFO => away(broker, request, admin::runtime_info).await,
        RequestCode::GET_BROKER_CONFIG => admin::config(broker, request),
        RequestCode::UPDATE_BROKER_CONFIG => admin::update_config(broker, request),
        RequestCode::GET_BROKER_HA_STATUS => admin::ha_status(broker, request),
        RequestCode::CLEAN_EXPIRED_CONSUMEQUEUE
        | RequestCode::CLEAN_UNUSED_TOPIC
        | RequestCode::DELETE_EXPIRED_COMMITLOG => admin::clean(broker, request),
        code => Err(Refusal::new(
            ResponseCode::REQUEST_CODE_NOT_SUPPORTED,
            format!("request type {} not supported", code.0),
        )),
    }
}
