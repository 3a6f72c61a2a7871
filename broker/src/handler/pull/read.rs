//! The read of a pull: units out of the consume queue, records out of the log, and how RocketMQ
//! names the outcome.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use raftmq_remoting::{
    ResponseCode,
    message::{MESSAGE_BYTES_MIN, patch_physical_offset, patch_queue_offset},
};
use raftmq_store::{StoreError, index::IndexUnit};

use super::{KeptUnits, Pull, Refusal, Target};
use crate::{broker::Broker, long_poll::TagFilter, machine::Machine};

/// Units looked at for one pull. Beyond it the consumer is told where to go on, so that a filter
/// that matches nothing cannot keep a task busy.
const SCAN_UNITS_MAX: u64 = 16_384;
/// Units looked at in one go once the first look found too few matches.
const SCAN_STEP: usize = 512;
/// Bytes between two records that are read along rather than read around.
const READ_GAP_MAX: u64 = 4 << 10;
/// Bytes of one range read. Larger ones would hold more memory than they save reads.
const READ_SPAN_MAX: u64 = 512 << 10;

/// Units of a queue with their queue offsets.
type Chosen = Vec<(u64, IndexUnit)>;

/// How a read ended; the names are RocketMQ's and are sent as remark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Found,
    NoMatchedMessage,
    MessageWasRemoving,
    NoMessageInQueue,
    OffsetOverflowOne,
    OffsetOverflowBadly,
    OffsetTooSmall,
}

/// Result of a look into the queue, and of the read that may follow it.
#[derive(Debug)]
pub(super) struct Found {
    /// How it ended.
    pub status: Status,
    /// Where the consumer goes on.
    pub next: u64,
    /// First offset of the queue.
    pub min: u64,
    /// Next offset of the queue.
    pub max: u64,
    /// Records to read, with their offsets in the queue.
    pub chosen: Chosen,
    /// Number of the queue.
    queue: u32,
    /// Number of records in the body.
    pub messages: usize,
    /// Records one after the other, offsets patched; see [`Found::read`].
    pub body: Bytes,
    /// Address of the last record; 0 without one.
    pub last_physical_offset: u64,
}

/// Chooses from the offset of `pull` on as much as fits into one answer: at once when all units are in
/// memory, else on a thread that may wait for the disk. Reads no message.
pub(super) async fn look(
    broker: &Broker,
    pull: &Pull<'_>,
    target: &Target,
) -> Result<Found, Refusal> {
    let wanted = Wanted {
        machine: Arc::clone(&broker.machine),
        kept: Arc::clone(&broker.kept_units),
        queue: target.queue,
        filter: target.filter.clone(),
        offset: pull.offset,
        messages_max: pull.messages_max,
        bytes_max: pull.bytes_max,
    };
    if let Some(found) = wanted.look(Reach::Memory)? {
        return Ok(found);
    }
    let look = broker.cold_reads.run(move || wanted.look(Reach::Anywhere));
    // Only a look at the memory alone finds that it does not have everything.
    look.await??.ok_or_else(|| {
        let remark = "a read of the disk did not look there";
        Refusal::new(ResponseCode::SYSTEM_ERROR, remark)
    })
}

/// What a read may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Memory,
    Anywhere,
}

/// What is to be read, apart from its request: it may leave the task of that.
#[derive(Debug)]
struct Wanted {
    machine: Arc<Machine>,
    kept: Arc<KeptUnits>,
    queue: u32,
    filter: TagFilter,
    offset: i64,
    messages_max: usize,
    bytes_max: usize,
}

impl Wanted {
    /// `None` when something is not where it may be looked for.
    fn look(&self, reach: Reach) -> Result<Option<Found>, StoreError> {
        let index = self.machine.index();
        // Of the last offset nothing but the bounds is needed.
        if reach == Reach::Memory && !index.is_in_memory(self.queue, u64::MAX) {
            return Ok(None);
        }
        let (min, max) = index.bounds(self.queue);
        let nothing = |status, next| Found {
            status,
            next,
            min,
            max,
            chosen: Vec::new(),
            queue: self.queue,
            messages: 0,
            body: Bytes::new(),
            last_physical_offset: 0,
        };
        if max == 0 {
            return Ok(Some(nothing(Status::NoMessageInQueue, 0)));
        }
        let first = match u64::try_from(self.offset) {
            Ok(first) if first >= min => first,
            _ => return Ok(Some(nothing(Status::OffsetTooSmall, min))),
        };
        if first >= max {
            let one = first == max;
            let status = if one {
                Status::OffsetOverflowOne
            } else {
                Status::OffsetOverflowBadly
            };
            return Ok(Some(nothing(status, max)));
        }
        let Some((chosen, next)) = self.scan(first, max, reach)? else {
            return Ok(None);
        };
        if chosen.is_empty() {
            let is_purged = next == first;
            return Ok(Some(if is_purged {
                let next = index.bounds(self.queue).0.max(first);
                nothing(Status::MessageWasRemoving, next)
            } else {
                nothing(Status::NoMatchedMessage, next)
            }));
        }
        Ok(Some(Found {
            chosen,
            ..nothing(Status::Found, next)
        }))
    }

    /// Units that match and fit, with their queue offsets, and where the next scan begins; `None`
    /// when some are out of reach.
    fn scan(&self, from: u64, max: u64, reach: Reach) -> Result<Option<(Chosen, u64)>, StoreError> {
        let mut chosen: Chosen = Vec::new();
        let (mut next, mut bytes, mut step) = (from, 0, self.messages_max);
        while next < max && next - from < SCAN_UNITS_MAX {
            let (index, queue) = (self.machine.index(), self.queue);
            let units = match reach {
                Reach::Memory => match self.kept.in_memory(index, queue, next, step)? {
                    Some(units) => units,
                    None => return Ok(None),
                },
                Reach::Anywhere => self.kept.anywhere(index, queue, next, step)?,
            };
            if units.is_empty() {
                break;
            }
            for unit in units {
                if wants(&self.filter, unit.tags_code) {
                    let size = unit.size as usize;
                    let is_full = chosen.len() >= self.messages_max
                        || (!chosen.is_empty() && bytes + size > self.bytes_max);
                    if is_full {
                        return Ok(Some((chosen, next)));
                    }
                    bytes += size;
                    chosen.push((next, unit));
                }
                next += 1;
            }
            if chosen.len() >= self.messages_max {
                break;
            }
            step = SCAN_STEP;
        }
        Ok(Some((chosen, next)))
    }
}

fn is_in_memory(machine: &Machine, chosen: &[(u64, IndexUnit)]) -> bool {
    runs(chosen).all(|run| {
        let (start, length) = range_of(run);
        machine.log().is_in_memory(start, length)
    })
}

/// The records one after the other, with their offsets. Neighbours come from one range read.
fn copy_records(machine: &Machine, chosen: &[(u64, IndexUnit)]) -> Result<Bytes, StoreError> {
    let bytes = chosen.iter().map(|(_, unit)| unit.size as usize).sum();
    let mut body = BytesMut::with_capacity(bytes);
    for run in runs(chosen) {
        let (start, length) = range_of(run);
        let range = machine.log().read_bytes(start, length)?;
        for (queue_offset, unit) in run {
            let at = usize::try_from(unit.physical_offset - start).expect("inside the run");
            let record = range.get(at..at + unit.size as usize);
            let record = record.filter(|record| record.len() >= MESSAGE_BYTES_MIN);
            let record = record
                .ok_or_else(|| StoreError::decode("a message", "it is shorter than any record"))?;
            let copied = body.len();
            body.extend_from_slice(record);
            patch_queue_offset(&mut body[copied..], *queue_offset);
            patch_physical_offset(&mut body[copied..], unit.physical_offset);
        }
    }
    Ok(body.freeze())
}

/// Units in groups that lie close together in the log.
fn runs(chosen: &[(u64, IndexUnit)]) -> impl Iterator<Item = &[(u64, IndexUnit)]> {
    let mut rest = chosen;
    std::iter::from_fn(move || {
        let (run, after) = rest.split_at(run_length(rest));
        rest = after;
        (!run.is_empty()).then_some(run)
    })
}

/// Address of a run's first byte, and the run's length.
fn range_of(run: &[(u64, IndexUnit)]) -> (u64, usize) {
    let start = run.first().map_or(0, |(_, unit)| unit.physical_offset);
    let end = run.last().map_or(start, |(_, unit)| end_of(unit));
    let length = usize::try_from(end - start).expect("a run is shorter than one record's limit");
    (start, length)
}

fn end_of(unit: &IndexUnit) -> u64 {
    unit.physical_offset + u64::from(unit.size)
}

/// How many of the first units lie close together in the log; at least one.
fn run_length(units: &[(u64, IndexUnit)]) -> usize {
    let Some((_, first)) = units.first() else {
        return 0;
    };
    let is_near = |pair: &[(u64, IndexUnit)]| {
        let (_, before) = &pair[0];
        let (_, unit) = &pair[1];
        let gap = unit.physical_offset.checked_sub(end_of(before));
        let span = end_of(unit).saturating_sub(first.physical_offset);
        gap.is_some_and(|gap| gap <= READ_GAP_MAX) && span <= READ_SPAN_MAX
    };
    1 + units.windows(2).take_while(|pair| is_near(pair)).count()
}

impl Status {
    /// RocketMQ's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Found => "FOUND",
            Self::NoMatchedMessage => "NO_MATCHED_MESSAGE",
            Self::MessageWasRemoving => "MESSAGE_WAS_REMOVING",
            Self::NoMessageInQueue => "NO_MESSAGE_IN_QUEUE",
            Self::OffsetOverflowOne => "OFFSET_OVERFLOW_ONE",
            Self::OffsetOverflowBadly => "OFFSET_OVERFLOW_BADLY",
            Self::OffsetTooSmall => "OFFSET_TOO_SMALL",
        }
    }

    /// Response code to a pull at `offset`.
    pub(super) fn code(self, offset: i64) -> ResponseCode {
        match self {
            Self::Found => ResponseCode::SUCCESS,
            Self::NoMatchedMessage | Self::MessageWasRemoving => {
                ResponseCode::PULL_RETRY_IMMEDIATELY
            }
            Self::NoMessageInQueue if offset == 0 => ResponseCode::PULL_NOT_FOUND,
            Self::OffsetOverflowOne => ResponseCode::PULL_NOT_FOUND,
            Self::NoMessageInQueue | Self::OffsetOverflowBadly | Self::OffsetTooSmall => {
                ResponseCode::PULL_OFFSET_MOVED
            }
        }
    }
}

impl Found {
    /// Bytes of the records that are to be read.
    pub(super) fn bytes(&self) -> usize {
        let sizes = self.chosen.iter().map(|(_, unit)| unit.size as usize);
        sizes.sum()
    }

    /// Reads what was chosen, like [`look`] on a thread of its own where the disk is needed.
    pub(super) async fn read(&mut self, broker: &Broker) -> Result<(), Refusal> {
        let chosen = std::mem::take(&mut self.chosen);
        self.messages = chosen.len();
        self.last_physical_offset = chosen.last().map_or(0, |(_, unit)| unit.physical_offset);
        let from = chosen.first().map_or(0, |(queue_offset, _)| *queue_offset);
        let copied = if is_in_memory(&broker.machine, &chosen) {
            copy_records(&broker.machine, &chosen)
        } else {
            let machine = Arc::clone(&broker.machine);
            let read = broker
                .cold_reads
                .run(move || copy_records(&machine, &chosen));
            read.await?
        };
        match copied {
            Ok(body) => self.body = body,
            // Retention removed them between the look and the read.
            Err(StoreError::OutOfRange { .. }) => {
                self.status = Status::MessageWasRemoving;
                self.next = broker.machine.index().bounds(self.queue).0.max(from);
                self.messages = 0;
                self.last_physical_offset = 0;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Whether the answer would send the consumer to another offset.
    pub(super) fn is_moved(&self, pull: &Pull<'_>) -> bool {
        self.status.code(pull.offset) == ResponseCode::PULL_OFFSET_MOVED
    }

    /// Whether waiting may help: the consumer is at the end, or ahead of a replica that lags.
    pub(super) fn may_wait(&self, broker: &Broker, pull: &Pull<'_>) -> bool {
        let is_ahead = self.is_moved(pull) && pull.offset > 0 && self.next <= self.max;
        match self.status.code(pull.offset) {
            ResponseCode::PULL_NOT_FOUND => true,
            ResponseCode::PULL_OFFSET_MOVED => {
                is_ahead && self.status != Status::OffsetTooSmall && !broker.is_serving()
            }
            _ => false,
        }
    }
}

/// Whether a consumer with this filter wants a message with this tags code.
pub(super) fn wants(filter: &TagFilter, tags_code: i64) -> bool {
    filter
        .as_ref()
        .is_none_or(|codes| codes.binary_search(&tags_code).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(physical_offset: u64, size: u32) -> (u64, IndexUnit) {
        (
            0,
            IndexUnit {
                physical_offset,
                size,
                tags_code: 0,
                store_timestamp_ms: 0,
            },
        )
    }

    #[test]
    fn runs_end_at_gaps_and_at_the_longest_span() {
        assert_eq!(run_length(&[]), 0);
        assert_eq!(run_length(&[unit(0, 100)]), 1);
        assert_eq!(
            run_length(&[unit(0, 100), unit(100, 100), unit(300, 100)]),
            3
        );
        assert_eq!(
            run_length(&[unit(0, 100), unit(101 + READ_GAP_MAX, 100)]),
            1
        );
        let large = 512 << 10;
        assert_eq!(
            run_length(&[unit(0, large), unit(u64::from(large), 100)]),
            1
        );
    }

    #[test]
    fn an_empty_queue_moves_only_consumers_that_are_somewhere_else() {
        assert_eq!(
            Status::NoMessageInQueue.code(0),
            ResponseCode::PULL_NOT_FOUND
        );
        assert_eq!(
            Status::NoMessageInQueue.code(7),
            ResponseCode::PULL_OFFSET_MOVED
        );
        assert_eq!(
            Status::OffsetOverflowOne.code(7),
            ResponseCode::PULL_NOT_FOUND
        );
        assert_eq!(
            Status::OffsetOverflowBadly.code(7),
            ResponseCode::PULL_OFFSET_MOVED
        );
    }
}
