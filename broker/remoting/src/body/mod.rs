//! JSON bodies. Unknown fields are ignored and missing ones take RocketMQ's defaults; `null` fields
//! are left out when encoding. Maps keyed by objects (fastjson's own form) live in `object_keyed`.

mod admin;
mod client;
mod fastjson;
mod object_keyed;
mod route;
mod topic;

pub use admin::{
    BrokerStatsData, BrokerStatsItem, ConnectionInfo, ConsumeMessageDirectlyResult,
    ConsumeQueueData, ConsumerConnection, GroupList, KvTable, ProducerConnection, ProducerInfo,
    ProducerTableInfo, QueryConsumeQueue, TopicList,
};
pub use client::{
    CheckClientConfig, ConsumerData, ConsumerListByGroup, HeartbeatData, LockBatchRequest,
    LockBatchResponse, MessageQueue, ProducerData, SubscriptionData,
};
pub use object_keyed::{
    ConsumeStats, OffsetWrapper, ResetOffsetBody, TopicOffset, TopicStatsTable,
};
pub use route::{BrokerData, ClusterInfo, QueueData, RegisterBrokerBody, TopicRouteData};
pub use topic::{
    ConsumerOffsetSerializeWrapper, CustomizedRetryPolicy, DataVersion, ExponentialRetryPolicy,
    GroupRetryPolicy, SubscriptionGroupConfig, SubscriptionGroupWrapper, TopicConfig,
    TopicConfigAndQueueMapping, TopicConfigSerializeWrapper,
};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

use fastjson::to_standard_json;

/// A body that is not the JSON its code calls for.
#[derive(Debug, thiserror::Error)]
#[error("the body is not the JSON that this request takes: {0}")]
pub struct BodyError(#[from] serde_json::Error);

/// A JSON body as bytes.
#[must_use]
pub fn encode<T: Serialize>(body: &T) -> Bytes {
    // Maps have string or integer keys and no value fails to serialize.
    Bytes::from(serde_json::to_vec(body).expect("bodies are plain data"))
}

/// A body from its JSON. Maps with bare integer keys or with objects as keys, as fastjson writes
/// them, are accepted.
///
/// # Errors
/// When the bytes are not JSON of that shape.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, BodyError> {
    match serde_json::from_slice(body) {
        Ok(value) => Ok(value),
        Err(error) => {
            // Only fastjson's keys can explain it; else the first error says more.
            let Some(standard) = std::str::from_utf8(body)
                .ok()
                .and_then(|text| to_standard_json(text).ok())
            else {
                return Err(BodyError(error));
            };
            serde_json::from_slice(&standard).map_err(|_| BodyError(error))
        }
    }
}

/// Reads `null` as the default.
fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}
