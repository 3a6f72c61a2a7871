//! Inputs to begin with: what our own encoders make.

use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use raftmq_remoting::batch::{BatchItem, encode_item};
use raftmq_remoting::body::{SubscriptionGroupConfig, TopicConfig};
use raftmq_remoting::message::MessageRecord;
use raftmq_remoting::properties::Properties;
use raftmq_remoting::{RemotingCommand, RequestCode, SerializeType, frame};
use raftmq_state::{
    Command, CommitMode, EncodedCommand, EntryPosition, OffsetCommit, Output, PayloadBuilder, State,
};
use raftmq_store::checkpoint::Checkpoint;
use raftmq_store::{
    CommitLog, Disk, EntryKind, HEADER_BYTES, Identity, LogConfig, LogId, LogPosition, NewEntry,
};

use super::examples;
use super::stored::{DATA_FILES, join};
use crate::sim::disk::SimDisk;

/// Valid inputs of a target.
pub fn corpus(target: &str) -> Vec<Vec<u8>> {
    match target {
        "frame" => frames(),
        "message_record" => vec![encoded(&record()), encoded(&long_topic())],
        "properties" => vec![b"KEYS\x01k1 k2\x02TAGS\x01a\x02WAIT\x01true\x02".to_vec()],
        "batch_body" => vec![batch()],
        "message_id" => vec![b"7F00000100002A9F0000000000000123".to_vec()],
        "tag_expression" => vec![b"a || b ||c".to_vec(), b"*".to_vec()],
        "command" => commands()
            .iter()
            .map(|one| one.as_bytes().to_vec())
            .collect(),
        "payload" => vec![payload().to_vec()],
        "state_checkpoint" => vec![state().encode()],
        "store_checkpoint" => vec![checkpoint()],
        "log_position" => vec![position()],
        "data_folder" => vec![data_folder()],
        _ => examples::of(target),
    }
}

fn frames() -> Vec<Vec<u8>> {
    [SerializeType::Json, SerializeType::RocketMq]
        .map(|form| {
            let mut command = RemotingCommand::request(RequestCode::SEND_MESSAGE_V2.0)
                .with_ext("a", "group")
                .with_ext("b", "topic")
                .with_ext("i", "KEYS\u{1}k\u{2}")
                .with_remark("a remark")
                .with_body(&b"body"[..]);
            command.serialize = form;
            let mut out = BytesMut::new();
            frame::encode(&command, &mut out);
            out.to_vec()
        })
        .to_vec()
}

fn record() -> MessageRecord {
    MessageRecord {
        queue_id: 1,
        topic: "topic".to_owned(),
        body: Bytes::from_static(b"hello"),
        properties: Properties::parse("KEYS\u{1}k\u{2}TAGS\u{1}a\u{2}"),
        ..MessageRecord::default()
    }
}

fn long_topic() -> MessageRecord {
    MessageRecord {
        topic: "t".repeat(200),
        born_host: "[::1]:9".parse().expect("an address"),
        ..record()
    }
}

fn encoded(record: &MessageRecord) -> Vec<u8> {
    let mut out = BytesMut::new();
    record.encode(&mut out).expect("the example fits");
    out.to_vec()
}

fn batch() -> Vec<u8> {
    let mut out = BytesMut::new();
    for body in [&b"one"[..], b"two"] {
        let item = BatchItem {
            flag: 0,
            body: Bytes::from_static(body),
            properties: "TAGS\u{1}a\u{2}".to_owned(),
        };
        encode_item(&item, &mut out).expect("the example fits");
    }
    out.to_vec()
}

fn commands() -> Vec<EncodedCommand> {
    let topic = TopicConfig {
        topic_name: "topic".to_owned(),
        ..TopicConfig::default()
    };
    let group = SubscriptionGroupConfig {
        group_name: "group".to_owned(),
        ..SubscriptionGroupConfig::default()
    };
    let queues = vec![("topic".to_owned(), 1)];
    let own = [
        Command::ChangeTopic {
            config: topic.clone(),
        },
        Command::ChangeGroup {
            config: group.clone(),
        },
        Command::PutTopic {
            config: topic,
            only_if_absent: true,
        },
        Command::PutGroup {
            config: group,
            only_if_absent: false,
        },
        Command::CommitOffsets {
            commits: vec![OffsetCommit {
                group: "group".to_owned(),
                topic: "topic".to_owned(),
                queue_id: 1,
                offset: 0,
                mode: CommitMode::Max,
            }],
        },
        Command::LockQueues {
            group: "group".to_owned(),
            client_id: "127.0.0.1@7".to_owned(),
            queues: queues.clone(),
            now_ms: 9,
        },
        Command::UnlockQueues {
            group: "group".to_owned(),
            client_id: "127.0.0.1@7".to_owned(),
            queues,
        },
        Command::PutKv {
            namespace: "space".to_owned(),
            key: "key".to_owned(),
            value: "value".to_owned(),
        },
        Command::DeleteKv {
            namespace: "space".to_owned(),
            key: "other".to_owned(),
        },
    ];
    let mut all: Vec<_> = own.iter().map(Command::encode).collect();
    all.push(EncodedCommand::append(7, &encoded(&record())));
    all
}

fn payload() -> Bytes {
    let mut payload = PayloadBuilder::new(1_700_000_000_000);
    for command in commands() {
        payload.push(&command);
    }
    payload.finish()
}

pub(super) fn state() -> State {
    let (mut state, mut output) = (State::new(), Output::default());
    let position = EntryPosition {
        index: 1,
        payload_physical_offset: 64,
    };
    state
        .apply(position, &payload(), &mut output)
        .expect("the example is well formed");
    state
}

fn checkpoint() -> Vec<u8> {
    let checkpoint = Checkpoint {
        id: id(5),
        sections: [
            (1, Bytes::from_static(b"one")),
            (7, Bytes::from(vec![3; 100])),
        ]
        .into(),
    };
    checkpoint.encode().to_vec()
}

fn id(index: u64) -> LogId {
    LogId {
        term: 2,
        node: 0,
        index,
    }
}

pub(super) fn position() -> Vec<u8> {
    let position = LogPosition {
        id: id(5),
        end_physical: 4000,
        crc: 7,
        term_starts: vec![id(3)],
    };
    position.encode()
}

/// The files of a small log, as `data_folder` takes them.
fn data_folder() -> Vec<u8> {
    let disk = SimDisk::default();
    let dir = Path::new("/data");
    let config = LogConfig {
        segment_bytes: 4096,
        preallocate_bytes: 0,
        ..LogConfig::new(dir)
    };
    let (log, ..) =
        CommitLog::open(Arc::new(disk.clone()), config, None).expect("an empty folder opens");
    log.save_vote(b"a vote").expect("the disk works");
    let entries = (0..3).map(|index| NewEntry {
        id: id(index),
        kind: EntryKind::Normal,
        count: 1,
        // Two of them fill a segment.
        payload: Bytes::from(vec![7; 2048 - HEADER_BYTES]),
    });
    log.append(entries.collect(), Box::new(|_| {}))
        .and_then(|()| log.flush())
        .expect("the disk works");
    let identity = Identity {
        cluster: "c".to_owned(),
        group: "g".to_owned(),
        node_id: 1,
        incarnation: "i".to_owned(),
        format_version: raftmq_store::FORMAT_VERSION,
    };
    Identity::open_or_create(&disk, dir, &identity, "i", true).expect("the disk works");
    let content = |name: &&str| {
        let file = disk.open(&dir.join(name)).expect("it is there");
        let mut content = vec![0; file.len().expect("the disk works") as usize];
        file.read_exact_at(&mut content, 0).expect("the disk works");
        content
    };
    join(&DATA_FILES.iter().map(content).collect::<Vec<_>>())
}
