//! Stored records: equal to those of RocketMQ 5.5.0, read back whole, and safe against any bytes.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use crate::{
    message::{
        self, MESSAGE_MAGIC_V2, MessageError, MessageRecord, MessageView, patch_physical_offset,
        patch_queue_offset, patch_store_timestamp,
    },
    properties::Properties,
};

/// What RocketMQ's `MessageDecoder.encode` makes of [`golden`], with IPv4 hosts.
const GOLDEN_V4: &str = "00000065daa320a73610a686000000030000000700000000000000050000000100000009\
    000000000000018bcfe5687b0a00000100009c400000018bcfe569c87f00000100002a9f00000002000000000000\
    004d0000000568656c6c6f0154000475017602";
/// The same with an IPv6 born host.
const GOLDEN_BORN_V6: &str = "00000071daa320a73610a68600000003000000070000000000000005000000010000\
    0009000000100000018bcfe5687b20010db800000000000000000000000100009c400000018bcfe569c87f000001\
    00002a9f00000002000000000000004d0000000568656c6c6f0154000475017602";
/// The same with IPv6 hosts.
const GOLDEN_V6: &str = "0000007ddaa320a73610a686000000030000000700000000000000050000000100000009\
    000000300000018bcfe5687b20010db800000000000000000000000100009c400000018bcfe569c820010db80000\
    0000000000000000000200002a9f00000002000000000000004d0000000568656c6c6f0154000475017602";

fn golden(born_host: &str, store_host: &str) -> MessageRecord {
    MessageRecord {
        queue_id: 3,
        flag: 7,
        queue_offset: 5,
        physical_offset: (1 << 32) + 9,
        sys_flag: 0,
        born_timestamp_ms: 1_700_000_000_123,
        born_host: born_host.parse().unwrap(),
        store_timestamp_ms: 1_700_000_000_456,
        store_host: store_host.parse().unwrap(),
        reconsume_times: 2,
        prepared_transaction_offset: 77,
        body: Bytes::from_static(b"hello"),
        topic: "T".to_owned(),
        properties: Properties::from_iter([("u", "v")]),
    }
}

fn encoded(record: &MessageRecord) -> Bytes {
    let mut out = BytesMut::new();
    record.encode(&mut out).unwrap();
    assert_eq!(out.len(), record.encoded_bytes());
    out.freeze()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn records_are_those_of_java() {
    let cases = [
        ("10.0.0.1:40000", "127.0.0.1:10911", GOLDEN_V4),
        ("[2001:db8::1]:40000", "127.0.0.1:10911", GOLDEN_BORN_V6),
        ("[2001:db8::1]:40000", "[2001:db8::2]:10911", GOLDEN_V6),
        // A dual-stack listener sees IPv4 clients so.
        ("[::ffff:10.0.0.1]:40000", "127.0.0.1:10911", GOLDEN_V4),
    ];
    for (born_host, store_host, expected) in cases {
        let bytes = encoded(&golden(born_host, store_host));
        assert_eq!(hex(&bytes), expected);
        let view = MessageView::new(&bytes).unwrap();
        assert!(view.body_is_intact());
        assert_eq!(view.store_host(), store_host.parse().unwrap());
        assert_eq!((view.property("u"), view.property("v")), (Some("v"), None));
        let again = encoded(&MessageRecord::decode(&bytes).unwrap());
        assert_eq!(again, bytes);
    }
}

#[test]
fn patches_change_their_field_and_nothing_else() {
    for born_host in ["10.0.0.1:40000", "[2001:db8::1]:40000"] {
        let record = golden(born_host, "[2001:db8::2]:10911");
        let mut bytes = encoded(&record).to_vec();
        patch_queue_offset(&mut bytes, 11);
        patch_physical_offset(&mut bytes, 12);
        patch_store_timestamp(&mut bytes, 13);
        let expected = MessageRecord {
            queue_offset: 11,
            physical_offset: 12,
            store_timestamp_ms: 13,
            ..record
        };
        assert_eq!(hex(&bytes), hex(&encoded(&expected)));
    }
}

#[test]
fn long_topics_take_the_second_magic() {
    for length in [127, 128, 255, 300] {
        let record = MessageRecord {
            topic: "t".repeat(length),
            ..MessageRecord::default()
        };
        let bytes = encoded(&record);
        let magic = u32::from_be_bytes(*bytes[4..].first_chunk().unwrap());
        assert_eq!(magic == MESSAGE_MAGIC_V2, length > 127, "{length}");
        assert_eq!(MessageRecord::decode(&bytes).unwrap(), record);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_no_trace() {
    let properties = Properties::from_iter([("k", "v".repeat(40_000))]);
    let record = MessageRecord {
        properties,
        ..MessageRecord::default()
    };
    let mut out = BytesMut::from(&b"x"[..]);
    let error = record.encode(&mut out).unwrap_err();
    assert_eq!(
        error.to_string(),
        "properties: 40003 bytes, at most 32767 fit"
    );
    assert_eq!(out, &b"x"[..]);
    let body = Bytes::from(vec![0; 17 * 1024 * 1024]);
    let record = MessageRecord {
        body,
        ..MessageRecord::default()
    };
    assert!(matches!(
        record.encode(&mut out),
        Err(MessageError::TooLong {
            field: "record",
            ..
        })
    ));
}

#[test]
fn every_cut_of_a_record_is_an_error() {
    let bytes = encoded(&golden("[2001:db8::1]:1", "[2001:db8::2]:2"));
    for length in 0..bytes.len() {
        assert!(MessageView::new(&bytes[..length]).is_err(), "{length}");
        // The same with a length field that tells the truth.
        let mut cut = bytes[..length].to_vec();
        if let Some(size) = cut.first_chunk_mut() {
            *size = (length as u32).to_be_bytes();
            assert!(MessageView::new(&cut).is_err(), "{length}");
        }
    }
}

#[test]
fn a_row_of_records_is_read_one_by_one() {
    let record = golden("10.0.0.1:1", "10.0.0.1:2");
    let row = [
        encoded(&record),
        encoded(&MessageRecord {
            queue_id: 4,
            ..record
        }),
    ]
    .concat();
    let queues: Vec<_> = message::views(&row)
        .map(|view| view.unwrap().queue_id())
        .collect();
    assert_eq!(queues, [3, 4]);
    let cut: Vec<_> = message::views(&row[..row.len() - 1])
        .map(|view| view.is_ok())
        .collect();
    assert_eq!(cut, [true, false]);
}

proptest! {
    #[test]
    fn records_survive_encoding(
        queue_id: u32,
        flag: i32,
        offsets: (u64, u64),
        times: (i64, u64),
        ports: (u16, u16),
        v6: (bool, bool),
        body: Vec<u8>,
        topic in "[a-zA-Z%_-]{0,200}",
        pairs in proptest::collection::vec(("[a-zA-Z]{1,8}", "[^\u{1}\u{2}]{0,8}"), 0..5),
    ) {
        let host = |v6: bool, port: u16| {
            let ip = if v6 { "2001:db8::7" } else { "192.0.2.7" };
            std::net::SocketAddr::new(ip.parse().unwrap(), port)
        };
        let sys_flag = i32::from(v6.0) * 0x10 + i32::from(v6.1) * 0x20;
        let record = MessageRecord {
            queue_id,
            flag,
            queue_offset: offsets.0,
            physical_offset: offsets.1,
            sys_flag,
            born_timestamp_ms: times.0,
            born_host: host(v6.0, ports.0),
            store_timestamp_ms: times.1,
            store_host: host(v6.1, ports.1),
            body: Bytes::from(body),
            topic,
            properties: Properties::from_iter(pairs),
            ..MessageRecord::default()
        };
        prop_assert_eq!(MessageRecord::decode(&encoded(&record)).unwrap(), record);
    }

    #[test]
    fn damaged_records_are_read_or_refused_without_panic(
        at in 0..101_usize,
        byte: u8,
    ) {
        let mut bytes = encoded(&golden("10.0.0.1:1", "10.0.0.1:2")).to_vec();
        bytes[at] = byte;
        if let Ok(view) = MessageView::new(&bytes) {
            prop_assert!(view.as_bytes().len() <= bytes.len());
            let _ = (view.store_host(), view.born_host(), view.body_is_intact());
            let _ = MessageRecord::decode(&Bytes::from(bytes)).unwrap();
        }
    }
}
