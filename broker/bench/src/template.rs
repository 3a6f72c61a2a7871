//! The frame of a send request, encoded once per queue and then only overwritten: opaque, born
//! timestamp and message key have a fixed width, so a message costs three small writes and a copy.

use bytes::{Bytes, BytesMut};
use raftmq_remoting::RequestCode;
use raftmq_remoting::frame;
use raftmq_remoting::{RemotingCommand, SerializeType};

/// Stands for the opaque while the template is built; ten digits, as every opaque of a window.
const OPAQUE_MARK: i32 = 1_987_654_321;

/// Stands for the born timestamp; thirteen digits, as every millisecond from 2001 to 2286.
const BORN_MARK: &str = "1234512345123";

/// Stands for the sixteen digits of the key that differ from message to message.
const KEY_MARK: &str = "FEDCBA9876543210";

/// Where the binary header holds the opaque: behind two lengths (8 bytes), the code (2), the
/// language (1) and the version (2). Source: RocketMQ's binary header layout.
const OPAQUE_AT_BINARY: usize = 13;

/// What all messages of a connection have in common.
#[derive(Debug, Clone)]
pub(crate) struct SendFields<'a> {
    pub topic: &'a str,
    pub producer_group: &'a str,
    pub broker_name: &'a str,
    /// First half of every message key: tells runs and connections apart.
    pub key_prefix: u64,
    pub serialize: SerializeType,
}

/// A send request (code 310) to one queue with everything filled in but the three fields.
#[derive(Debug)]
pub(crate) struct SendTemplate {
    head: Vec<u8>,
    opaque: OpaqueField,
    born_at: usize,
    key_at: usize,
    body: Bytes,
}

#[derive(Debug, Clone, Copy)]
enum OpaqueField {
    /// Ten digits from here on.
    Decimal(usize),
    /// Four bytes, big endian, from here on.
    Binary(usize),
}

impl SendTemplate {
    pub(crate) fn new(fields: &SendFields<'_>, queue_id: u32, body: Bytes) -> Self {
        // The properties that a stock producer sets: the unique key is indexed by the broker, so
        // a message without one would be cheaper than a real one.
        let properties = format!(
            "UNIQ_KEY\u{1}{:016X}{KEY_MARK}\u{2}WAIT\u{1}true\u{2}",
            fields.key_prefix
        );
        let queue_id = queue_id.to_string();
        let mut command = RemotingCommand::request(RequestCode::SEND_MESSAGE_V2);
        command.serialize = fields.serialize;
        command.opaque = OPAQUE_MARK;
        let ext_fields = [
            ("a", fields.producer_group),
            ("b", fields.topic),
            ("c", "TBW102"),
            ("d", "4"),
            ("e", queue_id.as_str()),
            ("f", "0"),
            ("g", BORN_MARK),
            ("h", "0"),
            ("i", properties.as_str()),
            ("j", "0"),
            ("k", "false"),
            ("m", "false"),
            ("n", fields.broker_name),
        ];
        for (key, value) in ext_fields {
            command = command.with_ext(key, value);
        }
        let mut head = BytesMut::new();
        frame::encode_head(&command, body.len(), &mut head);
        let opaque = match fields.serialize {
            SerializeType::Json => {
                OpaqueField::Decimal(position(&head, OPAQUE_MARK.to_string().as_bytes()))
            }
            SerializeType::RocketMq => OpaqueField::Binary(OPAQUE_AT_BINARY),
        };
        Self {
            opaque,
            born_at: position(&head, BORN_MARK.as_bytes()),
            key_at: position(&head, KEY_MARK.as_bytes()),
            head: head.to_vec(),
            body,
        }
    }

    /// Appends the frame of one message to `out`. `sequence` makes the key unique.
    pub(crate) fn write(&mut self, opaque: i32, born_ms: u64, sequence: u64, out: &mut BytesMut) {
        match self.opaque {
            OpaqueField::Decimal(at) => {
                write_decimal(&mut self.head[at..at + 10], opaque.unsigned_abs().into());
            }
            OpaqueField::Binary(at) => {
                self.head[at..at + 4].copy_from_slice(&opaque.to_be_bytes());
            }
        }
        let (born_at, key_at) = (self.born_at, self.key_at);
        write_decimal(&mut self.head[born_at..born_at + BORN_MARK.len()], born_ms);
        write_hex(&mut self.head[key_at..key_at + KEY_MARK.len()], sequence);
        out.extend_from_slice(&self.head);
        out.extend_from_slice(&self.body);
    }
}

fn position(head: &[u8], mark: &[u8]) -> usize {
    head.windows(mark.len())
        .position(|window| window == mark)
        .expect("the mark was encoded just now")
}

/// Fills `digits` with the last digits of `value`.
fn write_decimal(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Fills `digits` with the last hexadecimal digits of `value`, in upper case.
fn write_hex(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789ABCDEF"[(value & 0xF) as usize];
        value >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(serialize: SerializeType) -> Vec<RemotingCommand> {
        let fields = SendFields {
            topic: "T",
            producer_group: "g",
            broker_name: "b0",
            key_prefix: 0xAB,
            serialize,
        };
        let mut template = SendTemplate::new(&fields, 7, Bytes::from_static(b"hello"));
        let mut out = BytesMut::new();
        template.write(1_000_000_007, 1_700_000_000_123, 255, &mut out);
        template.write(1_999_999_999, 1_700_000_000_124, 256, &mut out);
        let mut all = Vec::new();
        while let Some(command) = frame::decode(&mut out).unwrap() {
            all.push(command);
        }
        assert!(out.is_empty());
        all
    }

    #[test]
    fn overwritten_frames_decode_to_what_was_written() {
        for serialize in [SerializeType::Json, SerializeType::RocketMq] {
            let commands = sent(serialize);
            assert_eq!(commands.len(), 2);
            let first = &commands[0];
            assert_eq!((first.code, first.opaque), (310, 1_000_000_007));
            assert_eq!(first.ext_fields.get("e"), Some("7"));
            assert_eq!(first.ext_fields.get("g"), Some("1700000000123"));
            assert_eq!(
                first.ext_fields.get("i"),
                Some("UNIQ_KEY\u{1}00000000000000AB00000000000000FF\u{2}WAIT\u{1}true\u{2}")
            );
            assert_eq!(&first.body[..], b"hello");
            assert_eq!(commands[1].opaque, 1_999_999_999);
            assert_eq!(commands[1].ext_fields.get("g"), Some("1700000000124"));
        }
    }
}
