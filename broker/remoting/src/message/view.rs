//! A stored record, read where it lies.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Buf;

use super::{
    BORN_HOST_AT, BORN_TIMESTAMP_AT, MESSAGE_BYTES_MIN, MESSAGE_MAGIC_V1, MESSAGE_MAGIC_V2,
    MessageError, PHYSICAL_OFFSET_AT, QUEUE_OFFSET_AT, SYS_FLAG_AT, body_crc,
};
use crate::{
    properties::find_property,
    sys_flag::{BORN_HOST_V6, STORE_HOST_V6},
};

/// A stored record, read field by field without copying. Making one checks every length inside
/// and the two texts, nothing else.
#[derive(Clone, Copy, Debug)]
pub struct MessageView<'a> {
    record: &'a [u8],
    /// Where storeTimestamp, reconsumeTimes and the body length begin; the hosts move them.
    store_timestamp_at: usize,
    reconsume_at: usize,
    body: &'a [u8],
    topic: &'a str,
    properties: &'a str,
}

impl<'a> MessageView<'a> {
    /// Looks at the record at the front of `bytes`; what follows it is left alone.
    ///
    /// # Errors
    /// [`MessageError`] when the bytes do not begin with a record.
    pub fn new(bytes: &'a [u8]) -> Result<Self, MessageError> {
        let record = whole_record(bytes)?;
        let magic = u32_at(record, 4);
        if magic != MESSAGE_MAGIC_V1 && magic != MESSAGE_MAGIC_V2 {
            return Err(MessageError::UnknownMagic { magic });
        }
        let sys_flag = i32::from_be_bytes(array_at(record, SYS_FLAG_AT));
        let store_timestamp_at = store_timestamp_at(sys_flag);
        let store_host_bytes = if sys_flag & STORE_HOST_V6 == 0 { 8 } else { 20 };
        let reconsume_at = store_timestamp_at + 8 + store_host_bytes;
        let mut rest = record.get(reconsume_at + 12..).unwrap_or_default();
        let body_length = rest
            .try_get_u32()
            .map_or(usize::MAX, |length| length as usize);
        let body = take(&mut rest, body_length, "body")?;
        let topic_length = if magic == MESSAGE_MAGIC_V1 {
            rest.try_get_u8().map(usize::from)
        } else {
            rest.try_get_u16().map(usize::from)
        };
        let topic = take_text(&mut rest, topic_length.unwrap_or(usize::MAX), "topic")?;
        let properties_length = rest.try_get_u16().map_or(usize::MAX, usize::from);
        let properties = take_text(&mut rest, properties_length, "properties")?;
        Ok(Self {
            record,
            store_timestamp_at,
            reconsume_at,
            body,
            topic,
            properties,
        })
    }

    /// Length of the record. Unit: bytes.
    #[must_use]
    pub fn total_size(&self) -> u32 {
        u32_at(self.record, 0)
    }

    /// The record itself, exactly [`Self::total_size`] bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.record
    }

    /// CRC of the body as stored.
    #[must_use]
    pub fn body_crc(&self) -> u32 {
        u32_at(self.record, 8)
    }

    /// Whether the body is what its CRC says.
    #[must_use]
    pub fn body_is_intact(&self) -> bool {
        body_crc(self.body) == self.body_crc()
    }

    /// Queue of the topic.
    #[must_use]
    pub fn queue_id(&self) -> u32 {
        u32_at(self.record, 12)
    }

    /// User flag.
    #[must_use]
    pub fn flag(&self) -> i32 {
        i32::from_be_bytes(array_at(self.record, 16))
    }

    /// Position in the queue; zero in the log.
    #[must_use]
    pub fn queue_offset(&self) -> u64 {
        u64_at(self.record, QUEUE_OFFSET_AT)
    }

    /// Address in the log; zero in the log. Unit: bytes.
    #[must_use]
    pub fn physical_offset(&self) -> u64 {
        u64_at(self.record, PHYSICAL_OFFSET_AT)
    }

    /// Bits of [`crate::sys_flag`].
    #[must_use]
    pub fn sys_flag(&self) -> i32 {
        i32::from_be_bytes(array_at(self.record, SYS_FLAG_AT))
    }

    /// Time the producer made the message. Unit: ms since 1970.
    #[must_use]
    pub fn born_timestamp_ms(&self) -> i64 {
        i64::from_be_bytes(array_at(self.record, BORN_TIMESTAMP_AT))
    }

    /// Address of the producer.
    #[must_use]
    pub fn born_host(&self) -> SocketAddr {
        host_at(
            self.record,
            BORN_HOST_AT,
            self.sys_flag() & BORN_HOST_V6 != 0,
        )
    }

    /// Time the leader proposed the message. Unit: ms since 1970.
    #[must_use]
    pub fn store_timestamp_ms(&self) -> u64 {
        u64_at(self.record, self.store_timestamp_at)
    }

    /// Advertised address of the broker that stored the message.
    #[must_use]
    pub fn store_host(&self) -> SocketAddr {
        host_at(
            self.record,
            self.store_timestamp_at + 8,
            self.sys_flag() & STORE_HOST_V6 != 0,
        )
    }

    /// Deliveries that failed before.
    #[must_use]
    pub fn reconsume_times(&self) -> i32 {
        i32::from_be_bytes(array_at(self.record, self.reconsume_at))
    }

    /// Offset of the half message of a committed transaction, else 0.
    #[must_use]
    pub fn prepared_transaction_offset(&self) -> i64 {
        i64::from_be_bytes(array_at(self.record, self.reconsume_at + 4))
    }

    /// User bytes.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// Topic.
    #[must_use]
    pub fn topic(&self) -> &'a str {
        self.topic
    }

    /// Encoded properties; see [`crate::properties`].
    #[must_use]
    pub fn properties(&self) -> &'a str {
        self.properties
    }

    /// Value of one property.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<&'a str> {
        find_property(self.properties, name)
    }
}

/// The records of a pull or pop response one after the other. Ends after the first error.
pub fn views(mut bytes: &[u8]) -> impl Iterator<Item = Result<MessageView<'_>, MessageError>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let view = MessageView::new(bytes);
        bytes = view.map_or(&[][..], |view| &bytes[view.record.len()..]);
        Some(view)
    })
}

fn whole_record(bytes: &[u8]) -> Result<&[u8], MessageError> {
    let truncated = MessageError::Truncated {
        field: "fixed part",
    };
    let size = bytes.first_chunk::<4>().ok_or(truncated)?;
    let size = u32::from_be_bytes(*size) as usize;
    let record = bytes.get(..size).ok_or(truncated)?;
    if record.len() < MESSAGE_BYTES_MIN {
        Err(truncated)
    } else {
        Ok(record)
    }
}

fn take<'a>(
    from: &mut &'a [u8],
    length: usize,
    field: &'static str,
) -> Result<&'a [u8], MessageError> {
    from.split_off(..length)
        .ok_or(MessageError::Truncated { field })
}

fn take_text<'a>(
    from: &mut &'a [u8],
    length: usize,
    field: &'static str,
) -> Result<&'a str, MessageError> {
    let bytes = take(from, length, field)?;
    std::str::from_utf8(bytes).map_err(|_| MessageError::NotUtf8 { field })
}

/// Bytes at a position that [`MessageView::new`] has found to be inside the record.
pub(super) fn array_at<const N: usize>(record: &[u8], at: usize) -> [u8; N] {
    let bytes = record.get(at..).and_then(<[u8]>::first_chunk);
    *bytes.expect("the view checked the length of the record")
}

fn u32_at(record: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array_at(record, at))
}

fn u64_at(record: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array_at(record, at))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a port has 16 bits; Java reads no more either"
)]
fn host_at(record: &[u8], at: usize, v6: bool) -> SocketAddr {
    let (ip, port_at) = if v6 {
        (
            IpAddr::V6(Ipv6Addr::from(array_at::<16>(record, at))),
            at + 16,
        )
    } else {
        (
            IpAddr::V4(Ipv4Addr::from(array_at::<4>(record, at))),
            at + 4,
        )
    };
    SocketAddr::new(ip, u32_at(record, port_at) as u16)
}

pub(super) fn store_timestamp_at(sys_flag: i32) -> usize {
    if sys_flag & BORN_HOST_V6 == 0 {
        BORN_HOST_AT + 8
    } else {
        BORN_HOST_AT + 20
    }
}
