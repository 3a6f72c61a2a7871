//! Messages told as short stories: what storing and delivering them answers and changes.

use bytes::Bytes;

use super::*;
use crate::{Appended, ApplyError, Reject, Reply};

const TOPIC_NOT_EXIST: Reply = Reply::Rejected {
    reason: Reject::TopicNotExist,
};
const MALFORMED: Reply = Reply::Rejected {
    reason: Reject::MalformedRecord,
};

/// Places (queue, queue_offset) of the messages stored.
fn places(out: &Output) -> Vec<(u32, u64)> {
    out.appended
        .iter()
        .map(|unit| (unit.queue, unit.queue_offset))
        .collect()
}

/// Q1.
#[test]
fn messages_get_dense_queue_offsets_in_log_order() {
    let mut replica = Replica::with_topics();
    let first = replica.apply(
        5,
        &[
            append("T", 0, "a"),
            append("T", 1, "b"),
            append("T", 0, "c"),
        ],
    );
    assert_eq!(places(&first), [(0, 0), (1, 0), (0, 1)]);
    let second = replica.apply(6, &[append("T", 0, "d"), append("U", 0, "e")]);
    assert_eq!(places(&second), [(0, 2), (2, 0)]);
    let queues = &replica.state.topic("T").unwrap().queues;
    assert_eq!(
        queues
            .iter()
            .map(|queue| queue.next_offset)
            .collect::<Vec<_>>(),
        [3, 1]
    );
}

#[test]
fn append_reports_the_address_and_time_of_the_record() {
    let mut replica = Replica::with_topics();
    let record = record("T", 1, "hello");
    let payload_physical_offset = replica.physical_offset + ENTRY_HEADER_BYTES;
    let out = replica.apply(
        77,
        &[Command::Append {
            tags_code: -5,
            record: record.clone(),
        }],
    );
    let physical_offset = payload_physical_offset + 16 + 8 + 8;
    assert_eq!(
        out.replies,
        [Reply::Appended {
            queue_offset: 0,
            physical_offset
        }]
    );
    let unit = Appended {
        queue: 1,
        queue_offset: 0,
        physical_offset,
        size: record.len() as u32,
        tags_code: -5,
        store_timestamp_ms: 77,
    };
    assert_eq!(out.appended, [unit]);
    assert!(!out.metadata_changed);
}

#[test]
fn append_to_a_missing_topic_or_queue_stores_nothing() {
    let mut replica = Replica::with_topics();
    let out = replica.apply(
        5,
        &[
            append("none", 0, "a"),
            append("T", 2, "b"),
            append("U", 0, "c"),
        ],
    );
    assert_eq!(out.replies[0], TOPIC_NOT_EXIST);
    assert_eq!(
        out.replies[1],
        Reply::Rejected {
            reason: Reject::QueueIdOutOfRange
        }
    );
    assert_eq!(places(&out), [(2, 0)]);
}

#[test]
fn bytes_that_are_not_one_record_are_rejected() {
    let mut replica = Replica::with_topics();
    let good = record("T", 0, "a");
    let cut = good.slice(..good.len() - 1);
    let long = Bytes::from([&good[..], &[0]].concat());
    let commands = [Bytes::new(), cut, long].map(|record| Command::Append {
        tags_code: 0,
        record,
    });
    let out = replica.apply(5, &commands);
    assert_eq!(out.replies, [MALFORMED, MALFORMED, MALFORMED]);
    assert!(out.appended.is_empty());
}

#[test]
fn batch_is_stored_at_consecutive_offsets() {
    let mut replica = Replica::with_topics();
    replica.apply(4, &[append("T", 1, "before")]);
    let records = ["a", "bb", "ccc"].map(|body| (1, record("T", 1, body)));
    let out = replica.apply(
        5,
        &[Command::AppendBatch {
            records: records.to_vec(),
        }],
    );
    assert_eq!(places(&out), [(1, 1), (1, 2), (1, 3)]);
    let physical_offsets = out
        .appended
        .iter()
        .map(|unit| unit.physical_offset)
        .collect();
    assert_eq!(
        out.replies,
        [Reply::AppendedBatch {
            first_queue_offset: 1,
            physical_offsets
        }]
    );
}

#[test]
fn batch_with_one_bad_record_stores_nothing() {
    let mut replica = Replica::with_topics();
    let good = record("T", 0, "a");
    let batch = |bad: Bytes| Command::AppendBatch {
        records: vec![(0, good.clone()), (0, bad)],
    };
    let commands = [
        batch(good.slice(1..)),
        batch(record("T", 1, "other queue")),
        batch(record("U", 0, "other topic")),
        Command::AppendBatch { records: vec![] },
        Command::AppendBatch {
            records: vec![(0, record("none", 0, "a"))],
        },
    ];
    let out = replica.apply(5, &commands);
    assert_eq!(
        out.replies,
        [MALFORMED, MALFORMED, MALFORMED, MALFORMED, TOPIC_NOT_EXIST]
    );
    assert!(out.appended.is_empty());
}

/// D1.
#[test]
fn delivery_happens_once() {
    let mut replica = Replica::with_topics();
    let deliver = |expected, next| Command::Deliver {
        level: 3,
        expected,
        next,
        records: vec![(1, record("T", 0, "a")), (2, record("U", 0, "b"))],
    };
    let out = replica.apply(
        5,
        &[deliver(0, 2), deliver(0, 2), deliver(2, 2), deliver(2, 4)],
    );
    let stale = Reply::Rejected {
        reason: Reject::StaleDelivery,
    };
    let invalid = Reply::Rejected {
        reason: Reject::InvalidCommand,
    };
    assert_eq!(out.replies, [Reply::Done, stale, invalid, Reply::Done]);
    assert_eq!(places(&out), [(0, 0), (2, 0), (0, 1), (2, 1)]);
    assert_eq!(replica.state.schedule_progress(3), 4);
    assert_eq!(replica.state.schedule_progress(4), 0);
    assert_eq!(
        replica.state.schedule_levels().collect::<Vec<_>>(),
        [(3, 4)]
    );
}

#[test]
fn delivery_to_a_deleted_topic_drops_that_message_only() {
    let mut replica = Replica::with_topics();
    let records = vec![
        (0, record("none", 0, "a")),
        (0, record("T", 9, "b")),
        (0, record("U", 0, "c")),
    ];
    let out = replica.apply(
        5,
        &[Command::Deliver {
            level: 1,
            expected: 0,
            next: 3,
            records,
        }],
    );
    assert_eq!(out.replies, [Reply::Done]);
    assert_eq!(out.undeliverable, 2);
    assert_eq!(places(&out), [(2, 0)]);
    assert_eq!(replica.state.schedule_progress(1), 3);
}

/// A1.
#[test]
fn entry_is_applied_once() {
    let mut replica = Replica::with_topics();
    let payload = payload(5, &[append("T", 0, "a")]);
    let at = EntryPosition {
        index: 7,
        payload_physical_offset: 4096,
    };
    let mut out = Output::default();
    replica.state.apply(at, &payload, &mut out).unwrap();
    let again = replica.state.apply(at, &payload, &mut out).unwrap_err();
    assert_eq!(
        again,
        ApplyError::IndexNotAhead {
            index: 7,
            applied_index: 7
        }
    );
    assert_eq!(replica.state.skip(7).unwrap_err(), again);
    replica.state.skip(8).unwrap();
    assert_eq!(replica.state.applied_index(), 8);
    assert_eq!(replica.state.topic("T").unwrap().queues[0].next_offset, 1);
    assert_eq!(out.appended.len(), 1);
    out.clear();
    assert_eq!(out, Output::default());
}

#[test]
fn payload_beyond_the_address_space_is_an_error() {
    let mut state = State::new();
    let at = EntryPosition {
        index: 1,
        payload_physical_offset: u64::MAX - 3,
    };
    let result = state.apply(at, &payload(1, &[]), &mut Output::default());
    assert!(matches!(
        result,
        Err(ApplyError::PhysicalOffsetOutOfRange { index: 1, .. })
    ));
}
