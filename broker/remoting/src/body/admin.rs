//! Bodies of tools: connections, statistics, lists.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{SubscriptionData, null_as_default};

/// A string table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KvTable {
    /// The table.
    #[serde(deserialize_with = "null_as_default")]
    pub table: BTreeMap<String, String>,
}

/// Names of topics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicList {
    /// A broker address that the request may be sent to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker_addr: Option<String>,
    /// The names.
    #[serde(deserialize_with = "null_as_default")]
    pub topic_list: Vec<String>,
}

/// Names of groups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupList {
    /// The names.
    pub group_list: Vec<String>,
}

/// One connected client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionInfo {
    /// Address.
    pub client_addr: String,
    /// Client id.
    pub client_id: String,
    /// Language name.
    pub language: String,
    /// Version ordinal.
    pub version: i32,
}

/// Members of a consumer group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumerConnection {
    /// The members.
    pub connection_set: Vec<ConnectionInfo>,
    /// Where a new group starts.
    pub consume_from_where: String,
    /// `CONSUME_ACTIVELY` or `CONSUME_PASSIVELY`.
    pub consume_type: String,
    /// `CLUSTERING` or `BROADCASTING`.
    pub message_model: String,
    /// Subscriptions by topic.
    pub subscription_table: BTreeMap<String, SubscriptionData>,
}

/// Members of a producer group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProducerConnection {
    /// The members.
    pub connection_set: Vec<ConnectionInfo>,
}

/// One producer in [`ProducerTableInfo`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProducerInfo {
    /// Client id.
    pub client_id: String,
    /// Language name.
    pub language: String,
    /// Last heartbeat. Unit: ms since 1970.
    pub last_update_timestamp: u64,
    /// Address.
    #[serde(rename = "remoteIP")]
    pub remote_ip: String,
    /// Version ordinal.
    pub version: i32,
}

/// All producers by group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProducerTableInfo {
    /// Producers by group.
    pub data: BTreeMap<String, Vec<ProducerInfo>>,
}

/// How a client fared with one message it was told to consume (309).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumeMessageDirectlyResult {
    /// Whether an orderly consumer commits by itself.
    pub auto_commit: bool,
    /// `CR_SUCCESS`, `CR_LATER` and so on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consume_result: Option<String>,
    /// Whether the consumer is orderly.
    pub order: bool,
    /// Text of the failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
    /// Time it took. Unit: ms.
    pub spent_time_mills: i64,
}

/// A rate over one period.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BrokerStatsItem {
    /// Average of one event.
    pub avgpt: f64,
    /// Sum over the period.
    pub sum: u64,
    /// Per second.
    pub tps: f64,
}

/// A counter over three periods.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BrokerStatsData {
    /// Last day.
    pub stats_day: BrokerStatsItem,
    /// Last hour.
    pub stats_hour: BrokerStatsItem,
    /// Last minute.
    pub stats_minute: BrokerStatsItem,
}

/// One unit of a consume queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumeQueueData {
    /// Whether the subscription matches it.
    pub eval: bool,
    /// Address of the message.
    pub physic_offset: u64,
    /// Size of the message. Unit: bytes.
    pub physic_size: u32,
    /// Hash of its tag.
    pub tags_code: i64,
}

/// A part of a consume queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QueryConsumeQueue {
    /// Filter of the group, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter_data: Option<String>,
    /// Next queue offset.
    pub max_queue_index: u64,
    /// First queue offset.
    pub min_queue_index: u64,
    /// The units.
    pub queue_data: Vec<ConsumeQueueData>,
    /// Subscription of the group, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription_data: Option<SubscriptionData>,
}
