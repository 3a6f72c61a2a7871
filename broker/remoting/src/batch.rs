//! Body of a batch send (320): messages one after the other, each
//! `total size i32 | magic i32 = 0 | crc i32 = 0 | flag i32 | body length i32, body | properties
//! length i16, properties`, big endian. Topic, queue and times are those of the request.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    limits::{BATCH_MESSAGES_MAX, PROPERTIES_BYTES_MAX},
    message::MessageError,
};

/// Bytes of an item without body and properties.
const ITEM_BYTES_MIN: usize = 22;

/// One message of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchItem {
    /// User flag.
    pub flag: i32,
    /// User bytes.
    pub body: Bytes,
    /// Encoded properties; see [`crate::properties`].
    pub properties: String,
}

/// Why a batch body cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The body ends inside a message, or a length inside one lies.
    #[error("message {number} of the batch ends inside its {field}")]
    Truncated {
        /// Which message, from 0.
        number: usize,
        /// What was being read.
        field: &'static str,
    },
    /// The properties of a message are not UTF-8.
    #[error("the properties of message {number} of the batch are not UTF-8")]
    NotUtf8 {
        /// Which message, from 0.
        number: usize,
    },
    /// The properties of a message are longer than [`PROPERTIES_BYTES_MAX`].
    #[error(
        "the properties of message {number} of the batch are longer than {PROPERTIES_BYTES_MAX} bytes"
    )]
    PropertiesTooLong {
        /// Which message, from 0.
        number: usize,
    },
    /// More than [`BATCH_MESSAGES_MAX`] messages.
    #[error("the batch has more than {BATCH_MESSAGES_MAX} messages")]
    TooMany,
}

/// Messages of a batch body; made by [`items`].
#[derive(Clone, Debug)]
pub struct BatchItems {
    rest: Bytes,
    number: usize,
}

/// The messages of a batch body in order; bodies share its memory. Ends after the first error.
#[must_use]
pub fn items(body: &Bytes) -> BatchItems {
    BatchItems {
        rest: body.clone(),
        number: 0,
    }
}

impl Iterator for BatchItems {
    type Item = Result<BatchItem, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let item = self.take_item();
        self.number += 1;
        if item.is_err() {
            self.rest.clear();
        }
        Some(item)
    }
}

impl BatchItems {
    fn take_item(&mut self) -> Result<BatchItem, BatchError> {
        if self.number >= BATCH_MESSAGES_MAX {
            return Err(BatchError::TooMany);
        }
        let number = self.number;
        let truncated = |field| BatchError::Truncated { number, field };
        let size = self
            .rest
            .first_chunk::<4>()
            .map(|size| u32::from_be_bytes(*size) as usize);
        let size = size.filter(|size| (ITEM_BYTES_MIN..=self.rest.len()).contains(size));
        let mut item = self.rest.split_to(size.ok_or(truncated("fixed part"))?);
        // Size, magic and crc; producers leave the latter two zero.
        item.advance(12);
        let flag = item.get_i32();
        let body_length = item.get_u32() as usize;
        if body_length > item.len() {
            return Err(truncated("body"));
        }
        let body = item.split_to(body_length);
        let length = item.try_get_u16().ok().map(usize::from);
        // As long as those of a message sent alone: whoever works on them counts on it.
        if length.is_some_and(|length| length > PROPERTIES_BYTES_MAX) {
            return Err(BatchError::PropertiesTooLong { number });
        }
        let properties = length.and_then(|length| item.get(..length));
        let properties = properties.ok_or(truncated("properties"))?;
        let properties = std::str::from_utf8(properties);
        let properties = properties
            .map_err(|_| BatchError::NotUtf8 { number })?
            .to_owned();
        Ok(BatchItem {
            flag,
            body,
            properties,
        })
    }
}

/// Appends one message to a batch body.
///
/// # Errors
/// [`MessageError::TooLong`] for the properties; nothing is then appended.
pub fn encode_item(item: &BatchItem, out: &mut BytesMut) -> Result<(), MessageError> {
    let too_long = |field, bytes, bytes_max| MessageError::TooLong {
        field,
        bytes,
        bytes_max,
    };
    let properties = item.properties.as_bytes();
    let properties_length = u16::try_from(properties.len())
        .ok()
        .filter(|length| usize::from(*length) <= PROPERTIES_BYTES_MAX)
        .ok_or(too_long(
            "properties",
            properties.len(),
            PROPERTIES_BYTES_MAX,
        ))?;
    let size = ITEM_BYTES_MIN + item.body.len() + properties.len();
    let total_size =
        i32::try_from(size).map_err(|_| too_long("message of a batch", size, i32::MAX as usize))?;
    out.reserve(size);
    out.put_i32(total_size);
    out.put_bytes(0, 8);
    out.put_i32(item.flag);
    out.put_u32(u32::try_from(item.body.len()).expect("part of an int32"));
    out.put_slice(&item.body);
    out.put_u16(properties_length);
    out.put_slice(properties);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden_item() -> (BatchItem, Vec<u8>) {
        let properties = "u\u{1}v\u{2}KEYS\u{1}k1 k2\u{2}WAIT\u{1}true\u{2}TAGS\u{1}A\u{2}";
        let mut bytes = vec![0, 0, 0, 0x3b];
        bytes.extend([0; 12]);
        bytes.extend([0, 0, 0, 5]);
        bytes.extend(b"hello");
        bytes.extend([0, 0x20]);
        bytes.extend(properties.as_bytes());
        let body = Bytes::from_static(b"hello");
        (
            BatchItem {
                flag: 0,
                body,
                properties: properties.to_owned(),
            },
            bytes,
        )
    }

    #[test]
    fn golden_item_goes_both_ways() {
        let (item, bytes) = golden_item();
        assert_eq!(bytes.len(), 59);
        let mut encoded = BytesMut::new();
        encode_item(&item, &mut encoded).unwrap();
        assert_eq!(encoded, bytes);
        encode_item(
            &BatchItem {
                flag: -3,
                ..item.clone()
            },
            &mut encoded,
        )
        .unwrap();
        let read: Vec<_> = items(&encoded.freeze()).map(Result::unwrap).collect();
        assert_eq!(read, [item.clone(), BatchItem { flag: -3, ..item }]);
    }

    #[test]
    fn properties_above_their_limit_are_an_error() {
        for (length, is_read) in [
            (PROPERTIES_BYTES_MAX, true),
            (PROPERTIES_BYTES_MAX + 1, false),
        ] {
            let mut bytes = BytesMut::new();
            bytes.put_u32(u32::try_from(ITEM_BYTES_MIN + length).unwrap());
            bytes.put_bytes(0, 16);
            bytes.put_u16(u16::try_from(length).unwrap());
            bytes.put_bytes(b'a', length);
            let read: Vec<_> = items(&bytes.freeze()).collect();
            assert_eq!(read.len(), 1);
            assert_eq!(read[0].is_ok(), is_read, "{length}");
        }
    }

    #[test]
    fn every_cut_and_every_lying_length_is_an_error() {
        let (_, bytes) = golden_item();
        for length in 1..bytes.len() {
            let cut = Bytes::copy_from_slice(&bytes[..length]);
            assert_eq!(items(&cut).filter(Result::is_err).count(), 1, "{length}");
        }
        for at in [0, 3, 16, 19, 25, 26] {
            let mut lying = bytes.clone();
            lying[at] ^= 0x80;
            assert!(items(&lying.into()).any(|item| item.is_err()), "{at}");
        }
        assert_eq!(items(&Bytes::new()).count(), 0);
    }
}
