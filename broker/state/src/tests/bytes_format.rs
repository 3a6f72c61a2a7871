//! The bytes of commands and payloads: frozen by examples, equal after decoding, and stamped.

use bytes::Bytes;
use raftmq_remoting::message::MessageView;

use super::*;
use crate::{DecodeError, EncodedCommand, decode_payload};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hex_of(command: &Command) -> String {
    hex(command.encode().as_bytes())
}

#[test]
fn every_command_decodes_to_itself() {
    for command in one_of_each() {
        let encoded = command.encode();
        let bytes = Bytes::copy_from_slice(encoded.as_bytes());
        assert_eq!(Command::decode(&bytes), Ok(command));
        assert_eq!(encoded.len(), bytes.len());
        assert!(!encoded.is_empty());
    }
}

/// Spaces separate the fields: head (tag, length), then the body.
fn assert_frozen(command: &Command, expected: &str) {
    assert_eq!(hex_of(command), expected.replace(' ', ""), "{command:?}");
}

/// These bytes are in logs on disk: a change here needs a new payload version.
#[test]
fn bytes_of_message_commands_are_frozen() {
    let record = Bytes::from_static(b"\xaa\xbb");
    let append = Command::Append {
        tags_code: -2,
        record: record.clone(),
    };
    assert_frozen(&append, "01000000 0a000000 feffffffffffffff aabb");
    let batch = Command::AppendBatch {
        records: vec![(1, record.clone())],
    };
    assert_frozen(
        &batch,
        "02000000 12000000 01000000 0100000000000000 02000000 aabb",
    );
    let deliver = Command::Deliver {
        level: 3,
        expected: 4,
        next: 5,
        records: vec![(1, record)],
    };
    assert_frozen(
        &deliver,
        "0a000000 26000000 03000000 0400000000000000 0500000000000000 \
         01000000 0100000000000000 02000000 aabb",
    );
}

/// These bytes are in logs on disk: a change here needs a new payload version.
#[test]
fn bytes_of_metadata_commands_are_frozen() {
    assert_frozen(&delete_topic("T"), "04000000 05000000 01000000 54");
    let delete_group = Command::DeleteGroup {
        group: "g".to_owned(),
        clean_offset: true,
    };
    assert_frozen(&delete_group, "06000000 06000000 01 01000000 67");
    assert_frozen(
        &commit_one("g", "T", 2, 9, CommitMode::Max),
        "07000000 1b000000 01000000 01000000 67 01000000 54 02000000 0900000000000000 01",
    );
    assert_frozen(
        &lock("g", "c", &[("T", 2)], 6),
        "08000000 1f000000 0600000000000000 01000000 67 01000000 63 01000000 \
         01000000 54 02000000",
    );
    assert_frozen(
        &unlock("g", "c", &[("T", 2)]),
        "09000000 17000000 01000000 67 01000000 63 01000000 01000000 54 02000000",
    );
    let put = put_kv("n", "k", "v");
    assert_frozen(
        &put,
        "0b000000 0f000000 01000000 6e 01000000 6b 01000000 76",
    );
    let delete = Command::DeleteKv {
        namespace: "n".to_owned(),
        key: "k".to_owned(),
    };
    assert_frozen(&delete, "0c000000 0a000000 01000000 6e 01000000 6b");
}

#[test]
fn configurations_are_kept_as_rocketmq_json() {
    let encoded = put_topic("T", 2, 3).encode();
    assert_eq!(encoded.as_bytes()[..1], [3]);
    assert_eq!(encoded.as_bytes()[8], 0);
    let json: serde_json::Value = serde_json::from_slice(&encoded.as_bytes()[9..]).unwrap();
    assert_eq!(json["topicName"], "T");
    assert_eq!(json["writeQueueNums"], 3);
    let json: serde_json::Value =
        serde_json::from_slice(&put_group("g").encode().as_bytes()[9..]).unwrap();
    assert_eq!(json["groupName"], "g");
    let changes = [change_topic("T", &[("+a", "1")]), change_group("g", &[])];
    for (change, tag) in changes.iter().zip([13, 14]) {
        let encoded = change.encode();
        assert_eq!(encoded.as_bytes()[..1], [tag]);
        let json: serde_json::Value = serde_json::from_slice(&encoded.as_bytes()[8..]).unwrap();
        assert!(json["topicName"] == "T" || json["groupName"] == "g");
    }
}

#[test]
fn payload_has_a_header_and_its_commands() {
    let payload = payload(0x0102, &[delete_topic("T"), delete_topic("U")]);
    let header = ["01000000", "02000000", "0201000000000000"].concat();
    let commands = [hex_of(&delete_topic("T")), hex_of(&delete_topic("U"))].concat();
    assert_eq!(hex(&payload), header + &commands);
    let expected = vec![(16, delete_topic("T")), (29, delete_topic("U"))];
    assert_eq!(decode_payload(&payload), Ok((0x0102, expected)));
}

#[test]
fn builder_stamps_the_store_time_into_every_record() {
    let ipv6 = encoded(&message("[2001:db8::1]:9000", "T", 0, "b"));
    let commands = [
        append("T", 0, "a"),
        Command::Append {
            tags_code: 0,
            record: ipv6,
        },
        Command::AppendBatch {
            records: vec![(0, record("T", 0, "c")), (0, record("T", 0, "d"))],
        },
        Command::Deliver {
            level: 1,
            expected: 0,
            next: 1,
            records: vec![(0, record("T", 0, "e"))],
        },
    ];
    let (store_timestamp_ms, decoded) = decode_payload(&payload(1_234, &commands)).unwrap();
    assert_eq!(store_timestamp_ms, 1_234);
    let mut records = Vec::new();
    for (_, command) in decoded {
        match command {
            Command::Append { record, .. } => records.push(record),
            Command::AppendBatch { records: list } | Command::Deliver { records: list, .. } => {
                records.extend(list.into_iter().map(|(_, record)| record));
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(records.len(), 5);
    for record in &records {
        let view = MessageView::new(record).unwrap();
        assert_eq!(view.store_timestamp_ms(), 1_234);
        assert_eq!((view.queue_offset(), view.physical_offset()), (0, 0));
    }
}

#[test]
fn message_may_be_encoded_in_place() {
    let mut message = message("10.0.0.1:10911", "T", 0, "hello");
    let record = encoded(&message);
    let in_place = EncodedCommand::append_record(5, &message);
    assert_eq!(
        in_place,
        Ok(Command::Append {
            tags_code: 5,
            record
        }
        .encode())
    );
    message.topic = "x".repeat(40_000);
    assert!(EncodedCommand::append_record(5, &message).is_err());
}

#[test]
fn unknown_versions_and_tags_are_refused() {
    let good = payload(1, &[delete_topic("T")]);
    let with = |position: usize, value: u8| {
        let mut bytes = good.to_vec();
        bytes[position] = value;
        decode_payload(&Bytes::from(bytes)).unwrap_err()
    };
    assert_eq!(with(0, 2), DecodeError::UnknownVersion { version: 2 });
    assert_eq!(with(1, 1), DecodeError::UnknownVersion { version: 1 });
    assert_eq!(with(16, 0), DecodeError::UnknownTag { tag: 0 });
    assert_eq!(with(16, 15), DecodeError::UnknownTag { tag: 15 });
    assert_eq!(
        with(18, 1),
        DecodeError::IllegalValue {
            field: "padding",
            value: 256
        }
    );
    assert_eq!(with(4, 0), DecodeError::Trailing { position: 16 });
    assert_eq!(with(4, 2), DecodeError::Truncated { position: 29 });
}
