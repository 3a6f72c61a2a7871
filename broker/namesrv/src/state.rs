//! The state of the name server as a plain value, and the answer to each request over it.

use std::collections::BTreeMap;

use bytes::Bytes;
use raftmq_remoting::ResponseCode;
use raftmq_remoting::body;
use serde::Serialize;

use super::kv_config::{KvConfig, ORDER_TOPIC_NAMESPACE};
use super::requests::{KvRequest, Reject, Request, TopicListRequest};
use super::route_table::{Broker, Queues, Registration, RouteTable};
use raftmq_config::{NamesrvConfig, Properties};

/// Topic flag: created for a unit of a geo-distributed installation. Source: `TopicSysFlag`.
const TOPIC_UNIT: i32 = 1;
/// Topic flag: subscribed across units.
const TOPIC_UNIT_SUBSCRIBED: i32 = 2;

/// Header fields and body of a successful response.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) fields: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
    /// The key-value configuration was changed and must be on disk before the response goes out.
    pub(super) kv_changed: bool,
}

impl Answer {
    fn field(name: &'static str, value: impl ToString) -> Self {
        Self {
            fields: vec![(name, value.to_string())],
            ..Self::default()
        }
    }

    fn json(body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).expect("maps with text keys and plain values encode");
        Self {
            body: body.into(),
            ..Self::default()
        }
    }
}

/// Everything the name server knows.
#[derive(Debug)]
pub(super) struct State {
    pub(super) table: RouteTable,
    pub(super) kv: KvConfig,
    /// Number of changes of `kv` so far.
    pub(super) kv_changes: u64,
    pub(super) config: NamesrvConfig,
}

impl State {
    /// Answers one request. `now_ms` is the time since the process began to serve.
    pub(super) fn answer(&mut self, request: Request, now_ms: u64) -> Result<Answer, Reject> {
        match request {
            Request::Kv(request) => self.answer_kv(request),
            Request::TopicList(request) => self.topic_list(&request),
            Request::Register(registration) => self.register(*registration, now_ms),
            Request::Unregister { address } => {
                self.table.unregister(&address);
                Ok(Answer::default())
            }
            Request::QueryVersion { address, version } => {
                self.table.seen(&address, now_ms);
                let known = self.table.version(&address);
                let mut answer = Answer::field("changed", known != Some(version));
                if let Some(known) = known {
                    answer.body = body::encode(&known);
                }
                Ok(answer)
            }
            Request::Heartbeat { address } => {
                self.table.seen(&address, now_ms);
                Ok(Answer::default())
            }
            Request::RegisterTopic {
                topic,
                on,
                connection,
            } => {
                let registered = self.table.register_topic(&topic, on, connection);
                registered.map_err(Reject::system)?;
                Ok(Answer::default())
            }
            Request::Route { topic } => self.route(&topic, now_ms),
            Request::ClusterInfo => Ok(Answer::json(&self.cluster_info())),
            Request::MemberGroup { broker_name } => Ok(self.member_group(&broker_name)),
            Request::WipeWritePerm { broker_name } => {
                let count = self.table.wipe_write_perm(&broker_name);
                Ok(Answer::field("wipeTopicCount", count))
            }
            Request::AddWritePerm { broker_name } => {
                let count = self.table.add_write_perm(&broker_name);
                Ok(Answer::field("addTopicCount", count))
            }
            Request::DeleteTopic {
                topic,
                cluster_name,
            } => {
                self.table.delete_topic(&topic, cluster_name.as_deref());
                Ok(Answer::default())
            }
            Request::UpdateConfig(properties) => self.update_config(&properties),
            Request::GetConfig => Ok(Answer {
                body: self.config.summary().into(),
                ..Answer::default()
            }),
        }
    }

    fn answer_kv(&mut self, request: KvRequest) -> Result<Answer, Reject> {
        match request {
            KvRequest::Put {
                namespace,
                key,
                value,
            } => {
                self.kv
                    .put(&namespace, &key, &value)
                    .map_err(Reject::system)?;
                self.kv_changes += 1;
                Ok(Answer {
                    kv_changed: true,
                    ..Answer::default()
                })
            }
            KvRequest::Delete { namespace, key } => {
                self.kv.delete(&namespace, &key);
                self.kv_changes += 1;
                Ok(Answer {
                    kv_changed: true,
                    ..Answer::default()
                })
            }
            KvRequest::Get { namespace, key } => match self.kv.get(&namespace, &key) {
                Some(value) => Ok(Answer::field("value", value)),
                None => Err(Reject(
                    ResponseCode::QUERY_NOT_FOUND,
                    format!("no config item, namespace: {namespace} key: {key}"),
                )),
            },
            KvRequest::Namespace { namespace } => match self.kv.namespace(&namespace) {
                Some(table) => Ok(Answer::json(&KvTable { table })),
                None => Err(Reject(
                    ResponseCode::QUERY_NOT_FOUND,
                    format!("no config item, namespace: {namespace}"),
                )),
            },
        }
    }

    fn register(&mut self, mut registration: Registration, now_ms: u64) -> Result<Answer, Reject> {
        registration.topics_are_all = self.config.delete_topic_with_broker_registration;
        let (name, address, id) = (
            registration.broker_name.clone(),
            registration.broker_address.clone(),
            registration.broker_id,
        );
        let is_new = self.table.version(&address).is_none();
        let registered = self
            .table
            .register(registration, now_ms)
            .map_err(Reject::system)?;
        if is_new {
            tracing::info!(broker_name = %name, %address, broker_id = id, "broker registered");
        }
        let orders = self.kv.namespace(ORDER_TOPIC_NAMESPACE);
        let orders = orders.filter(|_| self.config.return_order_topic_config_to_broker);
        let mut answer =
            orders.map_or_else(Answer::default, |table| Answer::json(&KvTable { table }));
        if !registered.master_address.is_empty() {
            answer
                .fields
                .push(("masterAddr", registered.master_address));
            answer
                .fields
                .push(("haServerAddr", registered.ha_server_address));
        }
        Ok(answer)
    }

    fn route(&self, topic: &str, now_ms: u64) -> Result<Answer, Reject> {
        if self.config.need_wait_for_service
            && now_ms < self.config.wait_seconds_for_service.saturating_mul(1_000)
        {
            return Err(Reject::system("name server not ready"));
        }
        let Some(route) = self.table.route(topic) else {
            return Err(Reject(
                ResponseCode::TOPIC_NOT_EXIST,
                format!("No topic route info in name server for the topic: {topic}"),
            ));
        };
        let order = self.kv.get(ORDER_TOPIC_NAMESPACE, topic);
        let order = order.filter(|_| self.config.order_message_enable);
        Ok(Answer::json(&body::TopicRouteData {
            order_topic_conf: order.map(str::to_owned),
            queue_datas: route
                .queues
                .iter()
                .map(|(name, queues)| queue_data(name, queues))
                .collect(),
            broker_datas: route
                .brokers
                .iter()
                .map(|(name, broker)| broker_data(name, broker))
                .collect(),
            ..Default::default()
        }))
    }

    fn cluster_info(&self) -> body::ClusterInfo {
        let brokers = self.table.brokers().iter();
        let clusters = self.table.clusters().into_iter();
        body::ClusterInfo {
            broker_addr_table: brokers
                .map(|(name, broker)| (name.clone(), broker_data(name, broker)))
                .collect(),
            cluster_addr_table: clusters
                .map(|(cluster, names)| {
                    (
                        cluster.to_owned(),
                        names.into_iter().map(str::to_owned).collect(),
                    )
                })
                .collect(),
        }
    }

    fn member_group(&self, broker_name: &str) -> Answer {
        let broker = self.table.brokers().get(broker_name);
        Answer::json(&MemberGroupBody {
            broker_member_group: broker.map(|broker| MemberGroup {
                cluster: &broker.cluster_name,
                broker_name,
                broker_addrs: &broker.addresses,
            }),
        })
    }

    fn topic_list(&self, request: &TopicListRequest) -> Result<Answer, Reject> {
        let enabled = match request {
            TopicListRequest::All => self.config.enable_all_topic_list,
            _ => self.config.enable_topic_list,
        };
        if !enabled {
            return Err(Reject::system("disable"));
        }
        let unit = |flag: i32| flag & TOPIC_UNIT != 0;
        let subscribed = |flag: i32| flag & TOPIC_UNIT_SUBSCRIBED != 0;
        let topic_list = match request {
            TopicListRequest::All => self.table.topics_where(|_| true),
            TopicListRequest::OfCluster(name) => self.table.topics_of_cluster(name),
            TopicListRequest::System => return Ok(self.system_topic_list()),
            TopicListRequest::Unit => self.table.topics_where(unit),
            TopicListRequest::UnitSubscribed => self.table.topics_where(subscribed),
            TopicListRequest::OnlySubscribed => self
                .table
                .topics_where(|flag| !unit(flag) && subscribed(flag)),
        };
        Ok(Answer::json(&body::TopicList {
            topic_list,
            broker_addr: None,
        }))
    }

    /// The topics that brokers make for themselves, and a broker that can tell more.
    fn system_topic_list(&self) -> Answer {
        let brokers = self.table.brokers();
        let clusters = self.table.clusters().into_keys().map(str::to_owned);
        let mut addresses = brokers
            .values()
            .flat_map(|broker| broker.addresses.values());
        Answer::json(&body::TopicList {
            topic_list: clusters.chain(brokers.keys().cloned()).collect(),
            broker_addr: addresses.next().cloned(),
        })
    }

    /// Changes keys in the running process; the file it was started with stays as it is.
    fn update_config(&mut self, properties: &Properties) -> Result<Answer, Reject> {
        if let Some(entry) = properties
            .entries
            .iter()
            .find(|entry| self.config.is_protected(entry))
        {
            return Err(Reject(
                ResponseCode::NO_PERMISSION,
                format!("key '{}' may not be changed", entry.key),
            ));
        }
        let (config, warnings) = self.config.changed(properties).map_err(Reject::system)?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        self.config = config;
        Ok(Answer::default())
    }
}

#[derive(Serialize)]
struct KvTable<'a> {
    table: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MemberGroupBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    broker_member_group: Option<MemberGroup<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MemberGroup<'a> {
    cluster: &'a str,
    broker_name: &'a str,
    broker_addrs: &'a BTreeMap<u64, String>,
}

fn queue_data(broker_name: &str, queues: &Queues) -> body::QueueData {
    body::QueueData {
        broker_name: broker_name.to_owned(),
        read_queue_nums: queues.read_queue_nums,
        write_queue_nums: queues.write_queue_nums,
        perm: queues.perm,
        topic_sys_flag: queues.topic_sys_flag,
    }
}

fn broker_data(broker_name: &str, broker: &Broker) -> body::BrokerData {
    body::BrokerData {
        cluster: broker.cluster_name.clone(),
        broker_name: broker_name.to_owned(),
        broker_addrs: broker
            .addresses
            .iter()
            .map(|(id, address)| (id.cast_signed(), address.clone()))
            .collect(),
        enable_acting_master: broker.enable_acting_master,
        ..Default::default()
    }
}
