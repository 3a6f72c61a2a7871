//! 12 QUERY_MESSAGE: messages of a topic by key or unique key.
//!
//! There is no key index. The time range of the request is turned into offsets of each queue, and
//! the messages in between are looked at, newest first, up to a limit. Recent messages, which is
//! what people look for, are found at once; a search that runs into the limit says so in the log.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use raftmq_remoting::{
    ResponseCode,
    message::{MessageView, patch_physical_offset, patch_queue_offset},
    properties::{PROPERTY_KEYS, PROPERTY_UNIQ_KEY},
};
use raftmq_store::StoreError;
use tokio::time::timeout;

use super::{Handled, Refusal, Request, offset::offset_at, success};
use crate::{broker::Broker, host::blocking};

/// Messages one request looks at. About half a second of reading.
const SCAN_MESSAGES_MAX: usize = 300_000;
/// Messages and bytes of one answer. Sources: RocketMQ's `defaultQueryMaxNum`, and a frame.
const ANSWER_MESSAGES_MAX: usize = 64;
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// How long a search waits for its turn. `mqadmin` waits 5 s for an answer, most of it for searches
/// before this one.
const TURN_TIMEOUT: Duration = Duration::from_secs(3);
/// Units read at a time.
const STEP: u64 = 256;

/// What is looked for.
struct Search {
    topic: String,
    key: String,
    unique: bool,
    begin_ms: i64,
    end_ms: i64,
    messages_max: usize,
}

impl Search {
    fn matches(&self, record: &MessageView<'_>) -> bool {
        let is_unique = record.property(PROPERTY_UNIQ_KEY) == Some(self.key.as_str());
        let has_key = || {
            let keys = record.property(PROPERTY_KEYS).unwrap_or_default();
            keys.split(' ').any(|key| key == self.key)
        };
        is_unique || !self.unique && has_key()
    }
}

/// Messages by key.
pub(super) async fn query(broker: &Arc<Broker>, request: &Request) -> Handled {
    let fields = &request.command.ext_fields;
    let search = Search {
        topic: fields.required_str("topic")?.to_owned(),
        key: fields.required_str("key")?.to_owned(),
        unique: fields.get("_UNIQUE_KEY_QUERY") == Some("true"),
        begin_ms: fields.required_i64("beginTimestamp")?,
        end_ms: fields.required_i64("endTimestamp")?,
        messages_max: usize::try_from(fields.required_i32("maxNum")?)
            .unwrap_or(0)
            .min(ANSWER_MESSAGES_MAX),
    };
    request.room(broker, ANSWER_BYTES_MAX).await?;
    let turn = timeout(TURN_TIMEOUT, broker.searches.acquire()).await;
    let Ok(Ok(_turn)) = turn else {
        broker.metrics.limit_reached("searches_max");
        let remark = "[OVERLOAD]too many searches for messages by key";
        return Err(Refusal::new(ResponseCode::SYSTEM_BUSY, remark));
    };
    let (reader, client) = (Arc::clone(broker), request.connection.clone());
    let is_abandoned = move || client.as_ref().is_some_and(|client| client.is_closed());
    // Reads files for a while: not on a thread that serves connections.
    let found = blocking(move || scan(&reader, &search, is_abandoned)).await;
    let found = found.map_err(|error| {
        Refusal::new(
            ResponseCode::SYSTEM_ERROR,
            format!("query messages: {error}"),
        )
    })??;
    if found.is_empty() {
        let remark = "can not find message, maybe time range not correct";
        return Err(Refusal::new(ResponseCode::QUERY_NOT_FOUND, remark));
    }
    Ok(success(request)
        .with_ext(
            "indexLastUpdateTimestamp",
            broker.machine.last_store_timestamp_ms(),
        )
        .with_ext(
            "indexLastUpdatePhyoffset",
            broker.machine.log().max_physical(),
        )
        .with_body(found))
}

fn scan(
    broker: &Broker,
    search: &Search,
    is_abandoned: impl Fn() -> bool,
) -> Result<Bytes, StoreError> {
    let queues: Vec<u32> = {
        let state = broker.machine.state();
        let topic = state.topic(&search.topic);
        topic
            .map(|topic| topic.queues.iter().map(|queue| queue.number).collect())
            .unwrap_or_default()
    };
    let mut found = BytesMut::new();
    let (mut messages, mut looked) = (0, 0);
    for queue in queues {
        let (min, max) = broker.machine.index().bounds(queue);
        let begin = offset_at(broker, queue, search.begin_ms, false)?.max(min);
        let mut end = if search.end_ms == i64::MAX {
            max
        } else {
            offset_at(broker, queue, search.end_ms.saturating_add(1), false)?.min(max)
        };
        while end > begin && messages < search.messages_max {
            if looked >= SCAN_MESSAGES_MAX {
                tracing::info!(
                    topic = search.topic,
                    looked,
                    "query by key stops at its limit"
                );
                return Ok(found.freeze());
            }
            if is_abandoned() {
                return Ok(Bytes::new());
            }
            let from = end.saturating_sub(STEP).max(begin);
            let units = broker
                .machine
                .index()
                .read(queue, from, (end - from) as usize)?;
            looked += units.len();
            for (at, unit) in units.iter().enumerate().rev() {
                let record = broker
                    .machine
                    .read_record(unit.physical_offset, unit.size)?;
                let Ok(view) = MessageView::new(&record) else {
                    continue;
                };
                let fits = found.len() + record.len() <= ANSWER_BYTES_MAX;
                if search.matches(&view) && messages < search.messages_max && fits {
                    let mut patched = BytesMut::from(&record[..]);
                    patch_queue_offset(&mut patched, from + at as u64);
                    patch_physical_offset(&mut patched, unit.physical_offset);
                    found.extend_from_slice(&patched);
                    messages += 1;
                }
            }
            end = from;
        }
    }
    Ok(found.freeze())
}
