//! One request of the name server protocol, parsed; header fields are those of RocketMQ 5.5.0.

use raftmq_remoting::body::{self, DataVersion, QueueData, TopicRouteData};
use raftmq_remoting::{HeaderError, RemotingCommand, RequestCode, ResponseCode};

use super::register_body;
use super::route_table::{ConnectionId, Queues, Registration};
use raftmq_config::Properties;

/// A refusal: response code and remark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reject(pub(super) ResponseCode, pub(super) String);

impl Reject {
    pub(super) fn system(text: impl ToString) -> Self {
        Self(ResponseCode::SYSTEM_ERROR, text.to_string())
    }
}

impl From<HeaderError> for Reject {
    fn from(error: HeaderError) -> Self {
        Self::system(error)
    }
}

/// A request about the key-value configuration.
#[derive(Debug)]
pub(super) enum KvRequest {
    Put {
        namespace: String,
        key: String,
        value: String,
    },
    Get {
        namespace: String,
        key: String,
    },
    Delete {
        namespace: String,
        key: String,
    },
    Namespace {
        namespace: String,
    },
}

/// A request for names of topics.
#[derive(Debug)]
pub(super) enum TopicListRequest {
    All,
    OfCluster(String),
    System,
    Unit,
    UnitSubscribed,
    /// Subscribed across units, but of no unit.
    OnlySubscribed,
}

/// A request, parsed.
#[derive(Debug)]
pub(super) enum Request {
    Kv(KvRequest),
    TopicList(TopicListRequest),
    Register(Box<Registration>),
    Unregister {
        address: String,
    },
    QueryVersion {
        address: String,
        version: DataVersion,
    },
    Heartbeat {
        address: String,
    },
    RegisterTopic {
        topic: String,
        on: Vec<(String, Queues)>,
        connection: ConnectionId,
    },
    Route {
        topic: String,
    },
    ClusterInfo,
    MemberGroup {
        broker_name: String,
    },
    WipeWritePerm {
        broker_name: String,
    },
    AddWritePerm {
        broker_name: String,
    },
    DeleteTopic {
        topic: String,
        cluster_name: Option<String>,
    },
    UpdateConfig(Properties),
    GetConfig,
}

impl Request {
    /// Parses a request that came over `connection`.
    pub(super) fn decode(
        command: &RemotingCommand,
        connection: ConnectionId,
    ) -> Result<Self, Reject> {
        let text = |name| command.ext_fields.required_str(name).map(str::to_owned);
        Ok(match RequestCode(command.code) {
            RequestCode::GET_ROUTEINFO_BY_TOPIC => Self::Route {
                topic: text("topic")?,
            },
            RequestCode::GET_BROKER_CLUSTER_INFO => Self::ClusterInfo,
            RequestCode::REGISTER_BROKER => {
                Self::Register(Box::new(register_body::decode(command, connection)?))
            }
            RequestCode::UNREGISTER_BROKER => Self::Unregister {
                address: text("brokerAddr")?,
            },
            RequestCode::QUERY_DATA_VERSION => Self::QueryVersion {
                address: text("brokerAddr")?,
                version: body::decode(&command.body).map_err(Reject::system)?,
            },
            RequestCode::BROKER_HEARTBEAT => Self::Heartbeat {
                address: text("brokerAddr")?,
            },
            RequestCode::REGISTER_TOPIC_IN_NAMESRV => Self::RegisterTopic {
                topic: text("topic")?,
                on: queues_of(body::decode(&command.body).map_err(Reject::system)?),
                connection,
            },
            RequestCode::GET_BROKER_MEMBER_GROUP => Self::MemberGroup {
                broker_name: text("brokerName")?,
            },
            RequestCode::WIPE_WRITE_PERM_OF_BROKER => Self::WipeWritePerm {
                broker_name: text("brokerName")?,
            },
            RequestCode::ADD_WRITE_PERM_OF_BROKER => Self::AddWritePerm {
                broker_name: text("brokerName")?,
            },
            RequestCode::DELETE_TOPIC_IN_NAMESRV => {
                let cluster_name = command.ext_fields.get("clusterName");
                let cluster_name = cluster_name.filter(|name| !name.is_empty());
                Self::DeleteTopic {
                    topic: text("topic")?,
                    cluster_name: cluster_name.map(str::to_owned),
                }
            }
            RequestCode::UPDATE_NAMESRV_CONFIG => Self::UpdateConfig(
                Properties::parse_request(&command.body).map_err(Reject::system)?,
            ),
            RequestCode::GET_NAMESRV_CONFIG => Self::GetConfig,
            _ => return Self::decode_table(command),
        })
    }

    fn decode_table(command: &RemotingCommand) -> Result<Self, Reject> {
        let text = |name| command.ext_fields.required_str(name).map(str::to_owned);
        let namespace = || text("namespace");
        Ok(match RequestCode(command.code) {
            RequestCode::PUT_KV_CONFIG => Self::Kv(KvRequest::Put {
                namespace: namespace()?,
                key: text("key")?,
                value: text("value")?,
            }),
            RequestCode::GET_KV_CONFIG => Self::Kv(KvRequest::Get {
                namespace: namespace()?,
                key: text("key")?,
            }),
            RequestCode::DELETE_KV_CONFIG => Self::Kv(KvRequest::Delete {
                namespace: namespace()?,
                key: text("key")?,
            }),
            RequestCode::GET_KVLIST_BY_NAMESPACE => Self::Kv(KvRequest::Namespace {
                namespace: namespace()?,
            }),
            RequestCode::GET_ALL_TOPIC_LIST_FROM_NAMESERVER => {
                Self::TopicList(TopicListRequest::All)
            }
            RequestCode::GET_TOPICS_BY_CLUSTER => {
                Self::TopicList(TopicListRequest::OfCluster(text("cluster")?))
            }
            RequestCode::GET_SYSTEM_TOPIC_LIST_FROM_NS => Self::TopicList(TopicListRequest::System),
            RequestCode::GET_UNIT_TOPIC_LIST => Self::TopicList(TopicListRequest::Unit),
            RequestCode::GET_HAS_UNIT_SUB_TOPIC_LIST => {
                Self::TopicList(TopicListRequest::UnitSubscribed)
            }
            RequestCode::GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST => {
                Self::TopicList(TopicListRequest::OnlySubscribed)
            }
            RequestCode(code) => {
                return Err(Reject(
                    ResponseCode::REQUEST_CODE_NOT_SUPPORTED,
                    format!("request type {code} not supported"),
                ));
            }
        })
    }
}

fn queues_of(route: TopicRouteData) -> Vec<(String, Queues)> {
    let queues = |data: QueueData| {
        let queues = Queues {
            read_queue_nums: data.read_queue_nums,
            write_queue_nums: data.write_queue_nums,
            perm: data.perm,
            topic_sys_flag: data.topic_sys_flag,
        };
        (data.broker_name, queues)
    };
    route.queue_datas.into_iter().map(queues).collect()
}
