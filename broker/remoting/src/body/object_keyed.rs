//! Bodies in fastjson's own form: maps whose keys are JSON objects. The Java client parses no
//! other form, so these types have an `encode` of their own; [`super::decode`] reads them.

use std::{fmt, marker::PhantomData};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, MapAccess, Visitor},
};

use super::MessageQueue;

/// A map keyed by queues, in order.
type QueueMap<T> = Vec<(MessageQueue, T)>;

/// Progress of a consumer group in one queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OffsetWrapper {
    /// Next queue offset of the queue.
    pub broker_offset: i64,
    /// Next queue offset of the group.
    pub consumer_offset: i64,
    /// Store time of the last consumed message. Unit: ms since 1970.
    pub last_timestamp: i64,
    /// Next queue offset that the group pulls.
    pub pull_offset: i64,
}

/// Progress of a consumer group.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumeStats {
    /// Messages per second.
    pub consume_tps: f64,
    /// Progress by queue.
    #[serde(deserialize_with = "queue_map")]
    pub offset_table: QueueMap<OffsetWrapper>,
}

/// Range of one queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicOffset {
    /// Store time of the last message. Unit: ms since 1970.
    pub last_update_timestamp: i64,
    /// Next queue offset.
    pub max_offset: i64,
    /// First queue offset.
    pub min_offset: i64,
}

/// Ranges of a topic's queues.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicStatsTable {
    /// Range by queue.
    #[serde(deserialize_with = "queue_map")]
    pub offset_table: QueueMap<TopicOffset>,
    /// Messages per second.
    pub topic_put_tps: f64,
}

/// Offsets that a group is reset to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResetOffsetBody {
    /// Offset by queue.
    #[serde(deserialize_with = "queue_map")]
    pub offset_table: QueueMap<i64>,
}

/// Reads a map whose keys are the texts of queues, as the conversion to standard JSON left them.
fn queue_map<'de, D, T>(deserializer: D) -> Result<QueueMap<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Entries<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
        type Value = QueueMap<T>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a map keyed by queues")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = Vec::new();
            while let Some((key, value)) = map.next_entry::<String, T>()? {
                let queue = serde_json::from_str(&key).map_err(A::Error::custom)?;
                entries.push((queue, value));
            }
            Ok(entries)
        }
    }

    deserializer.deserialize_any(Entries(PhantomData))
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("bodies are plain data")
}

fn object_keyed<T: Serialize>(map: &QueueMap<T>) -> String {
    let rows: Vec<String> = map
        .iter()
        .map(|(queue, value)| format!("{}:{}", json(queue), json(value)))
        .collect();
    format!("{{{}}}", rows.join(","))
}

impl ConsumeStats {
    /// The body.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let (tps, table) = (json(&self.consume_tps), object_keyed(&self.offset_table));
        Bytes::from(format!("{{\"consumeTps\":{tps},\"offsetTable\":{table}}}"))
    }
}

impl TopicStatsTable {
    /// The body.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let (table, tps) = (object_keyed(&self.offset_table), json(&self.topic_put_tps));
        Bytes::from(format!("{{\"offsetTable\":{table},\"topicPutTps\":{tps}}}"))
    }
}

impl ResetOffsetBody {
    /// The body.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Bytes::from(format!(
            "{{\"offsetTable\":{}}}",
            object_keyed(&self.offset_table)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::decode, *};

    fn queue() -> MessageQueue {
        MessageQueue {
            broker_name: "b0".into(),
            queue_id: 0,
            topic: "T".into(),
        }
    }

    #[test]
    fn bodies_are_those_of_fastjson() {
        let offset = OffsetWrapper {
            broker_offset: 10,
            consumer_offset: 5,
            last_timestamp: 123,
            pull_offset: 0,
        };
        let stats = ConsumeStats {
            consume_tps: 0.0,
            offset_table: vec![(queue(), offset)],
        };
        assert_eq!(
            stats.encode(),
            r#"{"consumeTps":0.0,"offsetTable":{{"brokerName":"b0","queueId":0,"topic":"T"}:{"brokerOffset":10,"consumerOffset":5,"lastTimestamp":123,"pullOffset":0}}}"#
        );
        assert_eq!(decode::<ConsumeStats>(&stats.encode()).unwrap(), stats);
        let range = TopicOffset {
            last_update_timestamp: 0,
            max_offset: 5,
            min_offset: 0,
        };
        let table = TopicStatsTable {
            offset_table: vec![(queue(), range)],
            topic_put_tps: 0.0,
        };
        assert_eq!(
            table.encode(),
            r#"{"offsetTable":{{"brokerName":"b0","queueId":0,"topic":"T"}:{"lastUpdateTimestamp":0,"maxOffset":5,"minOffset":0}},"topicPutTps":0.0}"#
        );
        assert_eq!(decode::<TopicStatsTable>(&table.encode()).unwrap(), table);
        let reset = ResetOffsetBody {
            offset_table: vec![(queue(), 7)],
        };
        assert_eq!(
            reset.encode(),
            r#"{"offsetTable":{{"brokerName":"b0","queueId":0,"topic":"T"}:7}}"#
        );
        assert_eq!(decode::<ResetOffsetBody>(&reset.encode()).unwrap(), reset);
        let empty = ResetOffsetBody::default();
        for text in ["{}", r#"{"offsetTable":null}"#, r#"{"offsetTable":{}}"#] {
            assert_eq!(decode::<ResetOffsetBody>(text.as_bytes()).unwrap(), empty);
        }
    }
}
