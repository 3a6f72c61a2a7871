//! Single messages: 33 VIEW_MESSAGE_BY_ID, 321 QUERY_CONSUME_QUEUE, and the search for a message by
//! its address, which other handlers share.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use raftmq_remoting::{
    ResponseCode,
    body::{self, ConsumeQueueData, QueryConsumeQueue},
    limits::{MESSAGE_BYTES_MAX, PROPERTIES_BYTES_MAX},
    message::{
        MESSAGE_BYTES_MIN, MessageRecord, MessageView, patch_physical_offset, patch_queue_offset,
    },
};
use raftmq_store::StoreError;

use super::{Handled, Refusal, Request, offset::queue_number, pull::filter_of, success};
use crate::broker::Broker;

/// Units in one answer to 321. `mqadmin` asks for 10 by default.
const QUERY_UNITS_MAX: usize = 1024;

/// The stored message at `physical_offset` with its offsets patched; `None` when there is none.
///
/// The address comes from a client, so it may point into the middle of anything, and bytes that
/// look like a record may be the body of a message. Only the consume queue decides: it must have a
/// unit of exactly this address.
fn find(broker: &Broker, physical_offset: i64) -> Result<Option<Bytes>, StoreError> {
    let Ok(physical_offset) = u64::try_from(physical_offset) else {
        return Ok(None);
    };
    match find_stored(broker, physical_offset) {
        // Purged, or beyond the end.
        Err(StoreError::OutOfRange { .. }) => Ok(None),
        found => found,
    }
}

fn find_stored(broker: &Broker, physical_offset: u64) -> Result<Option<Bytes>, StoreError> {
    let log = broker.machine.log();
    let head = log.read_bytes(physical_offset, MESSAGE_BYTES_MIN)?;
    let Some(size) = head
        .first_chunk::<4>()
        .map(|size| u32::from_be_bytes(*size))
    else {
        return Ok(None);
    };
    let end = physical_offset.saturating_add(u64::from(size));
    let is_size = (MESSAGE_BYTES_MIN..=MESSAGE_BYTES_MAX).contains(&(size as usize));
    if !is_size || end > log.max_physical() {
        return Ok(None);
    }
    let record = broker.machine.read_record(physical_offset, size)?;
    let Ok(view) = MessageView::new(&record) else {
        return Ok(None);
    };
    let queue_id = i32::try_from(view.queue_id()).unwrap_or(-1);
    let Some(queue) = queue_number(broker, view.topic(), queue_id) else {
        return Ok(None);
    };
    let Some(queue_offset) = queue_offset_of(broker, queue, physical_offset)? else {
        return Ok(None);
    };
    let mut patched = BytesMut::from(&record[..]);
    patch_queue_offset(&mut patched, queue_offset);
    patch_physical_offset(&mut patched, physical_offset);
    Ok(Some(patched.freeze()))
}

/// Place in the queue of the message at `physical_offset`. Addresses rise along a queue.
fn queue_offset_of(
    broker: &Broker,
    queue: u32,
    physical_offset: u64,
) -> Result<Option<u64>, StoreError> {
    let index = broker.machine.index();
    let (mut low, mut high) = index.bounds(queue);
    while low < high {
        let middle = low + (high - low) / 2;
        let Some(unit) = index.read(queue, middle, 1)?.first().copied() else {
            // Purged meanwhile.
            low = middle + 1;
            continue;
        };
        match unit.physical_offset.cmp(&physical_offset) {
            std::cmp::Ordering::Equal => return Ok(Some(middle)),
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    Ok(None)
}

/// [`find`] on a thread that may wait for the disk: the message may be old.
pub(super) async fn find_old(
    broker: &Arc<Broker>,
    physical_offset: i64,
) -> Result<Option<Bytes>, Refusal> {
    let reader = Arc::clone(broker);
    let found = broker
        .cold_reads
        .run(move || find(&reader, physical_offset));
    Ok(found.await??)
}

/// [`find_old`], decoded.
pub(super) async fn find_record(
    broker: &Arc<Broker>,
    physical_offset: i64,
) -> Result<Option<MessageRecord>, Refusal> {
    let found = find_old(broker, physical_offset).await?;
    Ok(found.and_then(|record| MessageRecord::decode(&record).ok()))
}

/// One message by its address.
pub(super) async fn view(broker: &Arc<Broker>, request: &Request) -> Handled {
    let offset = request.command.ext_fields.required_i64("offset")?;
    // How long it is says the log only: room for the longest that is sent.
    let bytes = broker.config.max_message_size as usize + PROPERTIES_BYTES_MAX;
    request.room(broker, bytes).await?;
    let found = find_old(broker, offset).await?.ok_or_else(|| {
        let remark = format!("can not find message by the offset, {offset}");
        Refusal::new(ResponseCode::SYSTEM_ERROR, remark)
    })?;
    Ok(success(request).with_body(found))
}

/// A part of a consume queue.
pub(super) fn query_consume_queue(broker: &Broker, request: &Request) -> Handled {
    let fields = &request.command.ext_fields;
    let topic = fields.required_str("topic")?;
    let queue_id = fields.required_i32("queueId")?;
    let index = fields.required_i64("index")?;
    let count = usize::try_from(fields.required_i32("count")?)
        .unwrap_or(0)
        .min(QUERY_UNITS_MAX);
    let Some(queue) = queue_number(broker, topic, queue_id) else {
        let remark = format!("{queue_id}@{topic} is not exist!");
        return Err(Refusal::new(ResponseCode::SYSTEM_ERROR, remark));
    };
    let (min, max) = broker.machine.index().bounds(queue);
    let mut answer = QueryConsumeQueue {
        max_queue_index: max,
        min_queue_index: min,
        ..Default::default()
    };
    let mut filter = None;
    if let Some(group) = fields
        .get("consumerGroup")
        .filter(|group| !group.is_empty())
    {
        answer.subscription_data = broker.sessions.subscription(group, topic);
        answer.filter_data = Some(match &answer.subscription_data {
            Some(subscription) => {
                filter = filter_of(subscription);
                "null".to_owned()
            }
            None => format!("{group}@{topic} is not online!"),
        });
    }
    let from = u64::try_from(index).unwrap_or(u64::MAX);
    let units = broker.machine.index().read(queue, from, count)?;
    let is_missing = units.is_empty();
    answer.queue_data = units
        .into_iter()
        .map(|unit| ConsumeQueueData {
            eval: filter
                .as_ref()
                .is_none_or(|codes| codes.contains(&unit.tags_code)),
            physic_offset: unit.physical_offset,
            physic_size: unit.size,
            tags_code: unit.tags_code,
        })
        .collect();
    let mut response = success(request).with_body(body::encode(&answer));
    if is_missing {
        response =
            response.with_remark(format!("Index {index} of {queue_id}@{topic} is not exist!"));
    }
    Ok(response)
}
