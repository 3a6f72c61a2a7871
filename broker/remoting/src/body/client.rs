//! What clients send about themselves, and what they ask to lock.

use serde::{Deserialize, Serialize};

use super::null_as_default;

/// A queue of a topic on a broker.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MessageQueue {
    /// Broker name.
    #[serde(deserialize_with = "null_as_default")]
    pub broker_name: String,
    /// Queue of the topic.
    pub queue_id: i32,
    /// Topic.
    #[serde(deserialize_with = "null_as_default")]
    pub topic: String,
}

/// What a consumer group wants of a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubscriptionData {
    /// Class filter, long gone.
    pub class_filter_mode: bool,
    /// Hashes of the tags; empty = all messages.
    #[serde(deserialize_with = "null_as_default")]
    pub code_set: Vec<i32>,
    /// `TAG` or `SQL92`.
    #[serde(deserialize_with = "null_as_default")]
    pub expression_type: String,
    /// The expression.
    #[serde(deserialize_with = "null_as_default")]
    pub sub_string: String,
    /// Version; a later one replaces an earlier one.
    pub sub_version: i64,
    /// The tags.
    #[serde(deserialize_with = "null_as_default")]
    pub tags_set: Vec<String>,
    /// Topic.
    #[serde(deserialize_with = "null_as_default")]
    pub topic: String,
}

/// A consumer group of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumerData {
    /// Where a new group starts.
    #[serde(deserialize_with = "null_as_default")]
    pub consume_from_where: String,
    /// `CONSUME_ACTIVELY` (pull), `CONSUME_PASSIVELY` (push).
    #[serde(deserialize_with = "null_as_default")]
    pub consume_type: String,
    /// Group.
    #[serde(deserialize_with = "null_as_default")]
    pub group_name: String,
    /// `CLUSTERING` or `BROADCASTING`.
    #[serde(deserialize_with = "null_as_default")]
    pub message_model: String,
    /// Subscriptions.
    #[serde(deserialize_with = "null_as_default")]
    pub subscription_data_set: Vec<SubscriptionData>,
    /// Unit mode.
    pub unit_mode: bool,
}

/// A producer group of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProducerData {
    /// Group.
    #[serde(deserialize_with = "null_as_default")]
    pub group_name: String,
}

/// Body of a heartbeat.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeartbeatData {
    /// Client id.
    #[serde(rename = "clientID", deserialize_with = "null_as_default")]
    pub client_id: String,
    /// Consumer groups.
    #[serde(deserialize_with = "null_as_default")]
    pub consumer_data_set: Vec<ConsumerData>,
    /// Fingerprint of the subscriptions (heartbeat V2).
    pub heartbeat_fingerprint: i32,
    /// Producer groups.
    #[serde(deserialize_with = "null_as_default")]
    pub producer_data_set: Vec<ProducerData>,
    /// The subscriptions are left out because they have not changed (heartbeat V2).
    pub without_sub: bool,
}

/// Answer to a question for a group's members.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumerListByGroup {
    /// Client ids.
    pub consumer_id_list: Vec<String>,
}

/// Request to lock or unlock queues.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LockBatchRequest {
    /// Client that wants them.
    #[serde(deserialize_with = "null_as_default")]
    pub client_id: String,
    /// Its group.
    #[serde(deserialize_with = "null_as_default")]
    pub consumer_group: String,
    /// The queues.
    #[serde(deserialize_with = "null_as_default")]
    pub mq_set: Vec<MessageQueue>,
    /// Do not ask other brokers.
    pub only_this_broker: bool,
}

/// Queues that the client holds now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LockBatchResponse {
    /// The queues.
    #[serde(rename = "lockOKMQSet")]
    pub lock_ok_mq_set: Vec<MessageQueue>,
}

/// A subscription to be checked before a consumer starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CheckClientConfig {
    /// Client id.
    #[serde(deserialize_with = "null_as_default")]
    pub client_id: String,
    /// Group.
    #[serde(deserialize_with = "null_as_default")]
    pub group: String,
    /// Namespace.
    #[serde(deserialize_with = "null_as_default")]
    pub namespace: String,
    /// The subscription.
    #[serde(deserialize_with = "null_as_default")]
    pub subscription_data: SubscriptionData,
}
