//! Delivery of delayed messages: on the leader, one look at each delay level at a time.
//!
//! A delayed message lies in `SCHEDULE_TOPIC_XXXX`, queue = level - 1, with its due time as tags
//! code. What is due goes to its real topic in one command together with the level's progress, so
//! that a message is delivered exactly once whatever fails in between (invariant D1 of the state).

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use raftmq_remoting::{
    message::MessageRecord,
    name::SCHEDULE_TOPIC,
    properties::{
        PROPERTY_DELAY_TIME_LEVEL, PROPERTY_REAL_QUEUE_ID, PROPERTY_REAL_TOPIC, PROPERTY_TAGS,
    },
    tags::tags_code,
};
use raftmq_state::{Command, Reply};
use raftmq_store::StoreError;
use tokio::time::sleep;

use crate::{broker::Broker, proposer::SubmitError};

/// Pause between looks. RocketMQ looks every 100 ms too.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Messages and bytes delivered in one command.
const DELIVER_MESSAGES_MAX: usize = 256;
const DELIVER_BYTES_MAX: usize = 1 << 20;

/// Delivers due messages for as long as the process runs; idle while this node does not lead.
pub(crate) async fn run(broker: Arc<Broker>) {
    loop {
        broker.until_serving().await;
        sleep(LOOK_INTERVAL).await;
        // A full disk takes no messages: these then come late.
        if !broker.is_serving() || !broker.takes_message(DELIVER_BYTES_MAX) {
            continue;
        }
        for level in 1..=broker.config.message_delay_levels.len() {
            let level = u32::try_from(level).expect("RocketMQ knows 18 levels");
            while deliver_due(&broker, level).await {}
        }
    }
}

/// What one command will deliver.
struct Due {
    expected: u64,
    next: u64,
    records: Vec<(i64, Bytes)>,
}

/// Delivers one batch of `level`; true when there may be more.
async fn deliver_due(broker: &Arc<Broker>, level: u32) -> bool {
    let Some(waiting) = Waiting::of(broker, level).filter(|waiting| waiting.may_be_due(broker))
    else {
        return false;
    };
    let reader = Arc::clone(broker);
    let found = broker.cold_reads.run(move || waiting.find_due(&reader));
    let due = match found.await {
        Ok(Ok(Some(due))) => due,
        Ok(Ok(None)) => return false,
        Ok(Err(error)) => {
            tracing::error!(level, %error, "read delayed messages");
            return false;
        }
        Err(error) => {
            tracing::error!(level, %error, "read delayed messages");
            return false;
        }
    };
    let command = Command::Deliver {
        level,
        expected: due.expected,
        next: due.next,
        records: due.records,
    };
    match broker.proposer().propose(command.encode()).await {
        Ok(Reply::Rejected { reason }) => {
            tracing::error!(level, %reason, "deliver delayed messages");
            false
        }
        Ok(_) => true,
        // Progress moves with the delivery, so the next look starts where the log says.
        Err(
            SubmitError::Busy
            | SubmitError::NotLeader
            | SubmitError::Unknown
            | SubmitError::Stopped,
        ) => false,
    }
}

/// A level with messages that were not delivered yet.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    queue: u32,
    /// Progress of the level: the first of them, unless that was purged.
    expected: u64,
}

impl Waiting {
    fn of(broker: &Broker, level: u32) -> Option<Self> {
        let state = broker.machine.state();
        let topic = state.topic(SCHEDULE_TOPIC)?;
        Some(Self {
            queue: topic.queue(level - 1)?.number,
            expected: state.schedule_progress(level),
        })
    }

    /// Whether it is worth a read that may wait for the disk. What is in memory says so at once.
    fn may_be_due(&self, broker: &Broker) -> bool {
        let index = broker.machine.index();
        if !index.is_in_memory(self.queue, self.expected) {
            return true;
        }
        let first = index.read(self.queue, self.expected, 1);
        first.is_ok_and(|units| {
            units
                .first()
                .is_some_and(|unit| unit.tags_code <= now(broker))
        }) || index.bounds(self.queue).0 > self.expected
    }

    fn find_due(&self, broker: &Broker) -> Result<Option<Due>, StoreError> {
        let index = broker.machine.index();
        let (min, max) = index.bounds(self.queue);
        if self.expected >= max {
            return Ok(None);
        }
        let from = self.expected.max(min);
        let now = now(broker);
        let mut due = Due {
            expected: self.expected,
            next: from,
            records: Vec::new(),
        };
        let mut bytes = 0;
        for unit in index.read(self.queue, from, DELIVER_MESSAGES_MAX)? {
            if unit.tags_code > now || bytes > DELIVER_BYTES_MAX {
                break;
            }
            let record = broker
                .machine
                .read_record(unit.physical_offset, unit.size)?;
            bytes += record.len();
            due.next += 1;
            match real_record(&record) {
                Some(real) if has_queue(broker, &real.1) => due.records.push((real.0, real.2)),
                Some(real) => {
                    tracing::warn!(
                        topic = real.1.topic,
                        "drop delayed message: its topic is gone"
                    );
                }
                None => tracing::error!(
                    offset = unit.physical_offset,
                    "drop malformed delayed message"
                ),
            }
        }
        Ok((due.next > due.expected).then_some(due))
    }
}

fn now(broker: &Broker) -> i64 {
    i64::try_from(broker.clock.now_ms()).unwrap_or(i64::MAX)
}

fn has_queue(broker: &Broker, real: &MessageRecord) -> bool {
    let state = broker.machine.state();
    state
        .topic(&real.topic)
        .is_some_and(|topic| topic.queue(real.queue_id).is_some())
}

/// The message as its real topic stores it: properties of the detour removed.
fn real_record(record: &Bytes) -> Option<(i64, MessageRecord, Bytes)> {
    let mut message = MessageRecord::decode(record).ok()?;
    let topic = message.properties.remove(PROPERTY_REAL_TOPIC)?;
    let queue_id = message.properties.remove(PROPERTY_REAL_QUEUE_ID)?;
    message.properties.remove(PROPERTY_DELAY_TIME_LEVEL);
    message.topic = topic;
    message.queue_id = queue_id.parse().ok()?;
    message.queue_offset = 0;
    message.physical_offset = 0;
    let tags = tags_code(message.properties.get(PROPERTY_TAGS));
    let mut encoded = BytesMut::new();
    message.encode(&mut encoded).ok()?;
    Some((tags, message, encoded.freeze()))
}
