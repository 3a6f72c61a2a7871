//! Little-endian reading and writing shared by commands and checkpoints. The reader never panics
//! and never allocates more than the bytes it was given.

use crate::invariant::Violation;

/// Why bytes are not a payload, a command or a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside a field.
    #[error("bytes end inside the field at position {position}")]
    Truncated {
        /// Position of the field. Unit: bytes from the start of the part being read.
        position: usize,
    },
    /// Bytes are left after the last field.
    #[error("bytes are left over at position {position}")]
    Trailing {
        /// Position of the first byte left over.
        position: usize,
    },
    /// The format is newer than this build, or these are other bytes altogether.
    #[error("format version {version} is unknown")]
    UnknownVersion {
        /// The version found.
        version: u8,
    },
    /// The command is newer than this build.
    #[error("command tag {tag} is unknown")]
    UnknownTag {
        /// The tag found.
        tag: u8,
    },
    /// A field holds a value outside its range.
    #[error("{field} has the illegal value {value}")]
    IllegalValue {
        /// Name of the field.
        field: &'static str,
        /// The value found.
        value: u64,
    },
    /// A string is not UTF-8.
    #[error("text at position {position} is not UTF-8")]
    NotUtf8 {
        /// Position of the text.
        position: usize,
    },
    /// A topic or group configuration is not the JSON it should be.
    #[error("configuration is not readable: {reason}")]
    Config {
        /// What the JSON parser said.
        reason: String,
    },
    /// The checksum of a checkpoint does not match.
    #[error("checksum is {found:#010x}, the bytes have {computed:#010x}")]
    Checksum {
        /// CRC-32 written in the checkpoint.
        found: u32,
        /// CRC-32 of its bytes.
        computed: u32,
    },
    /// A checkpoint decodes to a state that cannot be.
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// Cursor over bytes. Every read checks the length first.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(crate) fn position(&self) -> usize {
        self.position
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    #[inline]
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        if count > self.remaining() {
            return Err(DecodeError::Truncated {
                position: self.position,
            });
        }
        let from = self.position;
        self.position += count;
        Ok(&self.bytes[from..self.position])
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    #[inline]
    pub(crate) fn i64(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// A truth value, exactly 0 or 1, so that each value has one encoding.
    pub(crate) fn bool(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeError::IllegalValue {
                field,
                value: u64::from(other),
            }),
        }
    }

    /// Bytes with a `u32` length before them.
    #[inline]
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    /// Text with a `u32` length before it.
    pub(crate) fn text(&mut self) -> Result<&'a str, DecodeError> {
        let position = self.position;
        std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError::NotUtf8 { position })
    }

    /// A count of items, refused when the bytes left could not hold that many.
    pub(crate) fn count(&mut self, item_bytes_min: usize) -> Result<usize, DecodeError> {
        let position = self.position;
        let count = self.u32()? as usize;
        if count > self.remaining() / item_bytes_min {
            return Err(DecodeError::Truncated { position });
        }
        Ok(count)
    }

    /// Everything that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        let from = self.position;
        self.position = self.bytes.len();
        &self.bytes[from..]
    }

    pub(crate) fn finish(&self) -> Result<(), DecodeError> {
        match self.remaining() {
            0 => Ok(()),
            _ => Err(DecodeError::Trailing {
                position: self.position,
            }),
        }
    }
}

/// Writes a length or count. Frames are at most 16 MiB and tables have limits, so it fits.
pub(crate) fn put_length(out: &mut impl bytes::BufMut, length: usize) {
    out.put_u32_le(u32::try_from(length).expect("lengths are bounded far below 4 GiB"));
}

/// Writes bytes with their `u32` length before them.
pub(crate) fn put_bytes(out: &mut impl bytes::BufMut, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.put_slice(bytes);
}

/// Writes text with its `u32` length before it.
pub(crate) fn put_text(out: &mut impl bytes::BufMut, text: &str) {
    put_bytes(out, text.as_bytes());
}

/// Reads a configuration kept as RocketMQ's own JSON.
pub(crate) fn read_config<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, DecodeError> {
    serde_json::from_slice(json).map_err(|error| DecodeError::Config {
        reason: error.to_string(),
    })
}

/// Writes a configuration as RocketMQ's own JSON.
pub(crate) fn config_json<T: serde::Serialize>(config: &T) -> Vec<u8> {
    serde_json::to_vec(config).expect("a configuration has only string keys, so it is valid JSON")
}
