//! What the tests share: records, and a log that applies commands as a replica does.

mod bytes_format;
mod checkpoint;
mod fuzz;
mod metadata;
mod model;
mod transcript;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use proptest::test_runner::{Config, RngSeed};
use raftmq_remoting::body::{SubscriptionGroupConfig, TopicConfig};
use raftmq_remoting::message::MessageRecord;

use crate::{Command, CommitMode, EntryPosition, OffsetCommit, Output, PayloadBuilder, State};

/// Bytes of the entry header in the log, which stands before each payload.
const ENTRY_HEADER_BYTES: u64 = 64;

/// A state with the end of the log it follows.
#[derive(Debug, Clone, Default)]
struct Replica {
    state: State,
    physical_offset: u64,
}

impl Replica {
    /// A replica with topics "T" (2 queues) and "U" (1 queue) and group "g".
    fn with_topics() -> Self {
        let mut replica = Self::default();
        replica.apply(
            1,
            &[put_topic("T", 2, 2), put_topic("U", 1, 1), put_group("g")],
        );
        replica
    }

    /// Applies the commands as one entry stored at that time.
    fn apply(&mut self, store_timestamp_ms: u64, commands: &[Command]) -> Output {
        let payload = payload(store_timestamp_ms, commands);
        let at = EntryPosition {
            index: self.state.applied_index() + 1,
            payload_physical_offset: self.physical_offset + ENTRY_HEADER_BYTES,
        };
        self.physical_offset = at.payload_physical_offset + payload.len() as u64;
        let mut out = Output::default();
        self.state
            .apply(at, &payload, &mut out)
            .expect("the payload is well formed");
        assert_eq!(out.replies.len(), commands.len());
        self.state.check().expect("no invariant is broken");
        out
    }
}

fn payload(store_timestamp_ms: u64, commands: &[Command]) -> Bytes {
    let mut builder = PayloadBuilder::new(store_timestamp_ms);
    for command in commands {
        builder.push(&command.encode());
    }
    assert_eq!(builder.count() as usize, commands.len());
    let length = builder.len();
    let payload = builder.finish();
    assert_eq!(payload.len(), length);
    payload
}

fn record(topic: &str, queue_id: u32, body: &str) -> Bytes {
    encoded(&message("10.0.0.1:10911", topic, queue_id, body))
}

fn message(host: &str, topic: &str, queue_id: u32, body: &str) -> MessageRecord {
    MessageRecord {
        queue_id,
        born_host: host.parse().unwrap(),
        store_host: host.parse().unwrap(),
        body: Bytes::copy_from_slice(body.as_bytes()),
        topic: topic.to_owned(),
        ..MessageRecord::default()
    }
}

fn encoded(message: &MessageRecord) -> Bytes {
    let mut out = BytesMut::new();
    message.encode(&mut out).unwrap();
    out.freeze()
}

fn append(topic: &str, queue_id: u32, body: &str) -> Command {
    Command::Append {
        tags_code: body.len() as i64,
        record: record(topic, queue_id, body),
    }
}

fn put_topic(topic: &str, read_queue_nums: u32, write_queue_nums: u32) -> Command {
    Command::PutTopic {
        config: topic_config(topic, read_queue_nums, write_queue_nums),
        only_if_absent: false,
    }
}

fn topic_config(topic: &str, read_queue_nums: u32, write_queue_nums: u32) -> TopicConfig {
    TopicConfig {
        topic_name: topic.to_owned(),
        read_queue_nums,
        write_queue_nums,
        ..TopicConfig::default()
    }
}

fn put_group(group: &str) -> Command {
    Command::PutGroup {
        config: group_config(group),
        only_if_absent: false,
    }
}

fn change_topic(topic: &str, attributes: &[(&str, &str)]) -> Command {
    let mut config = topic_config(topic, 2, 3);
    config.attributes = texts(attributes);
    Command::ChangeTopic { config }
}

fn change_group(group: &str, attributes: &[(&str, &str)]) -> Command {
    let mut config = group_config(group);
    config.attributes = texts(attributes);
    Command::ChangeGroup { config }
}

fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
    pairs.iter().map(owned).collect()
}

fn group_config(group: &str) -> SubscriptionGroupConfig {
    SubscriptionGroupConfig {
        group_name: group.to_owned(),
        ..SubscriptionGroupConfig::default()
    }
}

fn commit(group: &str, topic: &str, queue_id: u32, offset: u64, mode: CommitMode) -> OffsetCommit {
    OffsetCommit {
        group: group.to_owned(),
        topic: topic.to_owned(),
        queue_id,
        offset,
        mode,
    }
}

fn commit_one(group: &str, topic: &str, queue_id: u32, offset: u64, mode: CommitMode) -> Command {
    Command::CommitOffsets {
        commits: vec![commit(group, topic, queue_id, offset, mode)],
    }
}

fn lock(group: &str, client_id: &str, queues: &[(&str, u32)], now_ms: u64) -> Command {
    Command::LockQueues {
        group: group.to_owned(),
        client_id: client_id.to_owned(),
        queues: owned(queues),
        now_ms,
    }
}

fn unlock(group: &str, client_id: &str, queues: &[(&str, u32)]) -> Command {
    Command::UnlockQueues {
        group: group.to_owned(),
        client_id: client_id.to_owned(),
        queues: owned(queues),
    }
}

fn owned(queues: &[(&str, u32)]) -> Vec<(String, u32)> {
    queues
        .iter()
        .map(|(topic, queue_id)| ((*topic).to_owned(), *queue_id))
        .collect()
}

fn delete_topic(topic: &str) -> Command {
    Command::DeleteTopic {
        topic: topic.to_owned(),
    }
}

fn put_kv(namespace: &str, key: &str, value: &str) -> Command {
    Command::PutKv {
        namespace: namespace.to_owned(),
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

/// One of each command, with every field away from its default.
fn one_of_each() -> Vec<Command> {
    vec![
        put_topic("T", 2, 3),
        put_group("g"),
        append("T", 1, "hello"),
        Command::AppendBatch {
            records: vec![(7, record("T", 0, "a")), (-8, record("T", 0, "b"))],
        },
        commit_one("g", "T", 1, 1, CommitMode::Max),
        lock("g", "10.0.0.1@7", &[("T", 0), ("T", 1)], 1_000),
        unlock("g", "10.0.0.1@7", &[("T", 1)]),
        Command::Deliver {
            level: 3,
            expected: 0,
            next: 1,
            records: vec![(9, record("T", 2, "d"))],
        },
        put_kv("broker", "key", "value"),
        Command::DeleteKv {
            namespace: "broker".to_owned(),
            key: "none".to_owned(),
        },
        Command::DeleteGroup {
            group: "other".to_owned(),
            clean_offset: true,
        },
        delete_topic("other"),
        change_topic("T", &[("+a", "1"), ("-b", "")]),
        change_group("g", &[("+a", "1")]),
    ]
}

/// Random tests repeat exactly: the seed is fixed.
fn proptest_config(cases: u32) -> Config {
    Config {
        cases,
        rng_seed: RngSeed::Fixed(0x5261_6674),
        failure_persistence: None,
        ..Config::default()
    }
}
