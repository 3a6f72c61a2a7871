//! The stored form of a message. The log holds it, and a pull or pop response is a row of them.
//!
//! ```text
//!   0 total size u32     | 4 magic u32          | 8 body CRC u32    | 12 queueId i32
//!  16 flag i32           | 20 queueOffset i64   | 28 physicalOffset i64
//!  36 sysFlag i32        | 40 bornTimestamp i64 | 48 bornHost: ip 4 or 16, port i32
//!     storeTimestamp i64 | storeHost: ip 4 or 16, port i32
//!     reconsumeTimes i32 | preparedTransactionOffset i64
//!     body length i32, body | topic length u8 (V1) or i16 (V2), topic
//!     properties length i16, properties
//! ```
//! All integers are big endian. The two IPv6 bits of sysFlag tell the lengths of the hosts. A
//! record is laid out with both offsets zero; they are patched while it is copied out.

mod view;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::{BufMut, Bytes, BytesMut};

pub use self::view::{MessageView, views};
use self::view::{array_at, store_timestamp_at};
use crate::{
    limits::{MESSAGE_BYTES_MAX, PROPERTIES_BYTES_MAX, TOPIC_BYTES_MAX},
    properties::Properties,
    sys_flag::{BORN_HOST_V6, STORE_HOST_V6},
};

/// Magic of a record whose topic length is one byte.
pub const MESSAGE_MAGIC_V1: u32 = 0xDAA3_20A7;
/// Magic of a record whose topic length is two bytes: topics of more than 127 bytes.
pub const MESSAGE_MAGIC_V2: u32 = 0xDAA3_20AB;
/// Magic of the blank record that ends a file of RocketMQ's commit log.
pub const BLANK_MAGIC: u32 = 0xCBD4_3194;

const QUEUE_OFFSET_AT: usize = 20;
const PHYSICAL_OFFSET_AT: usize = 28;
const SYS_FLAG_AT: usize = 36;
const BORN_TIMESTAMP_AT: usize = 40;
const BORN_HOST_AT: usize = 48;
/// Shortest record: IPv4 hosts, empty body, topic and properties.
pub const MESSAGE_BYTES_MIN: usize = 91;

/// Why bytes are no stored record, or a message cannot become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The bytes end inside the record, or a length inside it lies.
    #[error("the record ends inside its {field}")]
    Truncated {
        /// What was being read.
        field: &'static str,
    },
    /// The magic is neither V1 nor V2.
    #[error("unknown magic {magic:#010x}")]
    UnknownMagic {
        /// What was there.
        magic: u32,
    },
    /// A text of the record is not UTF-8.
    #[error("the {field} is not UTF-8")]
    NotUtf8 {
        /// Which one.
        field: &'static str,
    },
    /// A part is longer than its length field can tell.
    #[error("{field}: {bytes} bytes, at most {bytes_max} fit")]
    TooLong {
        /// Which part.
        field: &'static str,
        /// Its length.
        bytes: usize,
        /// The most.
        bytes_max: usize,
    },
}

/// A message with everything a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageRecord {
    /// Queue of the topic.
    pub queue_id: u32,
    /// User flag, of no meaning to the broker.
    pub flag: i32,
    /// Position in the queue.
    pub queue_offset: u64,
    /// Address of the record in the log. Unit: bytes.
    pub physical_offset: u64,
    /// Bits of [`crate::sys_flag`]. Encoding sets the IPv6 bits by the hosts.
    pub sys_flag: i32,
    /// Time the producer made the message. Unit: ms since 1970; the producer's clock.
    pub born_timestamp_ms: i64,
    /// Address of the producer.
    pub born_host: SocketAddr,
    /// Time the leader proposed the message. Unit: ms since 1970.
    pub store_timestamp_ms: u64,
    /// Advertised address of the broker; clients dial it to view a message by its offset id.
    pub store_host: SocketAddr,
    /// Deliveries that failed before.
    pub reconsume_times: i32,
    /// Offset of the half message of a committed transaction, else 0.
    pub prepared_transaction_offset: i64,
    /// User bytes.
    pub body: Bytes,
    /// Topic.
    pub topic: String,
    /// Properties.
    pub properties: Properties,
}

impl Default for MessageRecord {
    fn default() -> Self {
        let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        Self {
            queue_id: 0,
            flag: 0,
            queue_offset: 0,
            physical_offset: 0,
            sys_flag: 0,
            born_timestamp_ms: 0,
            born_host: nowhere,
            store_timestamp_ms: 0,
            store_host: nowhere,
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body: Bytes::new(),
            topic: String::new(),
            properties: Properties::new(),
        }
    }
}

impl MessageRecord {
    /// Appends the record to `out`.
    ///
    /// # Errors
    /// [`MessageError::TooLong`]; nothing is then appended.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), MessageError> {
        let properties = self.properties.as_str();
        let total_size = self.encoded_bytes();
        check_length("properties", properties.len(), PROPERTIES_BYTES_MAX)?;
        check_length("topic", self.topic.len(), i16::MAX as usize)?;
        check_length("record", total_size, MESSAGE_BYTES_MAX)?;
        let start = out.len();
        out.reserve(total_size);
        out.put_u32(u32_of(total_size));
        out.put_u32(self.magic());
        out.put_u32(body_crc(&self.body));
        out.put_u32(self.queue_id);
        out.put_i32(self.flag);
        out.put_u64(self.queue_offset);
        out.put_u64(self.physical_offset);
        out.put_i32(self.encoded_sys_flag());
        out.put_i64(self.born_timestamp_ms);
        put_host(self.born_host, out);
        out.put_u64(self.store_timestamp_ms);
        put_host(self.store_host, out);
        out.put_i32(self.reconsume_times);
        out.put_i64(self.prepared_transaction_offset);
        out.put_u32(u32_of(self.body.len()));
        out.put_slice(&self.body);
        if self.magic() == MESSAGE_MAGIC_V1 {
            out.put_u8(u8::try_from(self.topic.len()).expect("V1 is for topics up to 127 bytes"));
        } else {
            out.put_u16(u16_of(self.topic.len()));
        }
        out.put_slice(self.topic.as_bytes());
        out.put_u16(u16_of(properties.len()));
        out.put_slice(properties.as_bytes());
        debug_assert_eq!(
            out.len() - start,
            total_size,
            "encoded_bytes counts every field"
        );
        Ok(())
    }

    /// Length of the record [`Self::encode`] makes. Unit: bytes.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let topic_length_bytes = if self.magic() == MESSAGE_MAGIC_V1 {
            0
        } else {
            1
        };
        let host_bytes = (host_bytes(self.born_host) - 8) + (host_bytes(self.store_host) - 8);
        let texts = self.body.len() + self.topic.len() + self.properties.as_str().len();
        MESSAGE_BYTES_MIN + topic_length_bytes + host_bytes + texts
    }

    /// Reads one record from the front of `record`. The body shares its memory.
    ///
    /// # Errors
    /// [`MessageError`] when the bytes do not begin with a record.
    pub fn decode(record: &Bytes) -> Result<Self, MessageError> {
        let view = MessageView::new(record)?;
        Ok(Self {
            queue_id: view.queue_id(),
            flag: view.flag(),
            queue_offset: view.queue_offset(),
            physical_offset: view.physical_offset(),
            sys_flag: view.sys_flag(),
            born_timestamp_ms: view.born_timestamp_ms(),
            born_host: view.born_host(),
            store_timestamp_ms: view.store_timestamp_ms(),
            store_host: view.store_host(),
            reconsume_times: view.reconsume_times(),
            prepared_transaction_offset: view.prepared_transaction_offset(),
            body: record.slice_ref(view.body()),
            topic: view.topic().to_owned(),
            properties: Properties::parse(view.properties()),
        })
    }

    fn magic(&self) -> u32 {
        if self.topic.len() <= TOPIC_BYTES_MAX {
            MESSAGE_MAGIC_V1
        } else {
            MESSAGE_MAGIC_V2
        }
    }

    fn encoded_sys_flag(&self) -> i32 {
        let born = if host_bytes(self.born_host) == 20 {
            BORN_HOST_V6
        } else {
            0
        };
        let store = if host_bytes(self.store_host) == 20 {
            STORE_HOST_V6
        } else {
            0
        };
        (self.sys_flag & !(BORN_HOST_V6 | STORE_HOST_V6)) | born | store
    }
}

/// CRC of a body as records carry it: CRC-32 without its highest bit.
#[must_use]
pub fn body_crc(body: &[u8]) -> u32 {
    crc32fast::hash(body) & 0x7FFF_FFFF
}

fn check_length(field: &'static str, bytes: usize, bytes_max: usize) -> Result<(), MessageError> {
    if bytes > bytes_max {
        return Err(MessageError::TooLong {
            field,
            bytes,
            bytes_max,
        });
    }
    Ok(())
}

fn u32_of(length: usize) -> u32 {
    u32::try_from(length).expect("compared with MESSAGE_BYTES_MAX")
}

fn u16_of(length: usize) -> u16 {
    u16::try_from(length).expect("compared with the most an int16 tells")
}

/// Bytes of an address; an IPv4 address in IPv6 form counts as IPv4.
fn host_bytes(host: SocketAddr) -> usize {
    if host.ip().to_canonical().is_ipv4() {
        8
    } else {
        20
    }
}

fn put_host(host: SocketAddr, out: &mut BytesMut) {
    match host.ip().to_canonical() {
        IpAddr::V4(ip) => out.put_slice(&ip.octets()),
        IpAddr::V6(ip) => out.put_slice(&ip.octets()),
    }
    out.put_u32(u32::from(host.port()));
}

/// Writes the queueOffset of an encoded record.
///
/// # Panics
/// When `record` is shorter than a record; call it on what [`MessageView::new`] accepts.
pub fn patch_queue_offset(record: &mut [u8], queue_offset: u64) {
    patch(record, QUEUE_OFFSET_AT, queue_offset);
}

/// Writes the physicalOffset of an encoded record.
///
/// # Panics
/// When `record` is shorter than a record; call it on what [`MessageView::new`] accepts.
pub fn patch_physical_offset(record: &mut [u8], physical_offset: u64) {
    patch(record, PHYSICAL_OFFSET_AT, physical_offset);
}

/// Writes the storeTimestamp of an encoded record. Unit: ms since 1970.
///
/// # Panics
/// When `record` is shorter than a record; call it on what [`MessageView::new`] accepts.
pub fn patch_store_timestamp(record: &mut [u8], store_timestamp_ms: u64) {
    let sys_flag = i32::from_be_bytes(array_at(record, SYS_FLAG_AT));
    patch(record, store_timestamp_at(sys_flag), store_timestamp_ms);
}

fn patch(record: &mut [u8], at: usize, value: u64) {
    record[at..at + 8].copy_from_slice(&value.to_be_bytes());
}
