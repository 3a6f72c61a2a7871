//! Frames: where a command begins and ends in a byte stream.
//!
//! ```text
//! | total length u32 | form u8, header length u24 | header ... | body ... |
//! ```
//! `total length` counts what follows it. All integers are big endian.

use bytes::{BufMut, Bytes, BytesMut};

pub use crate::limits::FRAME_BYTES_MAX;
use crate::{
    command::{RemotingCommand, SerializeType},
    header::{self, HeaderDecodeError},
    limits::HEADER_BYTES_MAX,
};

/// Bytes of the total length field.
const LENGTH_BYTES: usize = 4;
/// Bytes of the form and header length field.
const MARK_BYTES: usize = 4;

/// Why a byte stream cannot be read on. The connection has to be closed: where the next frame
/// begins is unknown or the peer does not speak the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame is longer than [`FRAME_BYTES_MAX`].
    #[error("a frame of {bytes} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLong {
        /// Claimed length with its length field.
        bytes: u64,
    },
    /// The frame has no room for a header.
    #[error("a frame of {bytes} bytes has no room for a header")]
    TooShort {
        /// Claimed length with its length field.
        bytes: u64,
    },
    /// The header is longer than the frame or than [`HEADER_BYTES_MAX`].
    #[error("a header of {header_bytes} bytes does not fit a frame of {frame_bytes} bytes")]
    HeaderLength {
        /// Claimed length of the header.
        header_bytes: usize,
        /// Length of the frame.
        frame_bytes: usize,
    },
    /// The form is neither JSON nor ROCKETMQ.
    #[error("unknown serialize type {number}")]
    UnknownSerializeType {
        /// The number of the form.
        number: u8,
    },
    /// The header cannot be read.
    #[error(transparent)]
    Header(#[from] HeaderDecodeError),
}

/// Lengths told by the first eight bytes of a frame.
#[derive(Clone, Copy, Debug)]
struct Mark {
    frame_bytes: usize,
    serialize: SerializeType,
    header_bytes: usize,
}

/// Length of the frame that `buffer` begins with, its length field included; `None` when fewer
/// than four bytes are there. Tells a reader how much to wait for.
///
/// # Errors
/// [`FrameError::TooLong`] and [`FrameError::TooShort`].
pub fn frame_bytes(buffer: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some(length) = buffer.first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let claimed = u64::from(u32::from_be_bytes(*length)) + LENGTH_BYTES as u64;
    if claimed < (LENGTH_BYTES + MARK_BYTES) as u64 {
        return Err(FrameError::TooShort { bytes: claimed });
    }
    let bytes = usize::try_from(claimed)
        .ok()
        .filter(|bytes| *bytes <= FRAME_BYTES_MAX);
    bytes
        .map(Some)
        .ok_or(FrameError::TooLong { bytes: claimed })
}

fn read_mark(buffer: &[u8]) -> Result<Option<Mark>, FrameError> {
    let Some(frame_bytes) = frame_bytes(buffer)? else {
        return Ok(None);
    };
    let Some([number, high, middle, low]) = buffer
        .get(LENGTH_BYTES..)
        .and_then(<[u8]>::first_chunk::<MARK_BYTES>)
    else {
        return Ok(None);
    };
    let serialize = SerializeType::from_number(*number)
        .ok_or(FrameError::UnknownSerializeType { number: *number })?;
    let header_bytes = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
    let room = frame_bytes - LENGTH_BYTES - MARK_BYTES;
    if header_bytes > room.min(HEADER_BYTES_MAX) {
        return Err(FrameError::HeaderLength {
            header_bytes,
            frame_bytes,
        });
    }
    Ok(Some(Mark {
        frame_bytes,
        serialize,
        header_bytes,
    }))
}

/// What the first bytes of a frame announce, checked against every limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Length of the frame, its length field included. Unit: bytes.
    pub frame_bytes: usize,
    /// Length of its part before the body. Unit: bytes.
    pub head_bytes: usize,
}

/// The frame that `buffer` begins with; `None` when fewer than eight bytes are there.
///
/// # Errors
/// [`FrameError`], for all but the content of the header.
pub fn announced(buffer: &[u8]) -> Result<Option<Announced>, FrameError> {
    let mark = read_mark(buffer)?;
    Ok(mark.map(|mark| Announced {
        frame_bytes: mark.frame_bytes,
        head_bytes: LENGTH_BYTES + MARK_BYTES + mark.header_bytes,
    }))
}

/// The command that `buffer` begins with, without its body; `None` when more bytes are needed. For
/// a reader that answers a frame it has no room for. Takes nothing off.
///
/// # Errors
/// [`FrameError`]
pub fn decode_head(buffer: &[u8]) -> Result<Option<RemotingCommand>, FrameError> {
    let Some(mark) = read_mark(buffer)? else {
        return Ok(None);
    };
    let header = buffer.get(LENGTH_BYTES + MARK_BYTES..);
    let header = header.and_then(|rest| rest.get(..mark.header_bytes));
    header.map(|header| decode_header(mark, header)).transpose()
}

/// Takes one command off the front of `buffer`; `Ok(None)` when more bytes are needed. Lengths are
/// checked as soon as they are there, before anything of their size is buffered. The body shares
/// the memory of `buffer`.
///
/// # Errors
/// [`FrameError`]; the buffer is then of no further use.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<RemotingCommand>, FrameError> {
    let Some(mark) = read_mark(buffer)? else {
        return Ok(None);
    };
    if buffer.len() < mark.frame_bytes {
        return Ok(None);
    }
    decode_whole(mark, buffer.split_to(mark.frame_bytes).freeze()).map(Some)
}

fn decode_whole(mark: Mark, mut frame: Bytes) -> Result<RemotingCommand, FrameError> {
    let body_start = LENGTH_BYTES + MARK_BYTES + mark.header_bytes;
    let header = &frame[LENGTH_BYTES + MARK_BYTES..body_start];
    let mut command = decode_header(mark, header)?;
    if body_start < frame.len() {
        command.body = frame.split_off(body_start);
    }
    Ok(command)
}

fn decode_header(mark: Mark, header: &[u8]) -> Result<RemotingCommand, FrameError> {
    Ok(match mark.serialize {
        SerializeType::Json => header::decode_json(header)?,
        SerializeType::RocketMq => header::decode_binary(header)?,
    })
}

/// Appends the whole frame of `command` to `out`.
pub fn encode(command: &RemotingCommand, out: &mut BytesMut) {
    encode_head(command, command.body.len(), out);
    out.extend_from_slice(&command.body);
}

/// Appends the frame of `command` up to its body, for a caller that writes `body_bytes` bytes of
/// body itself right after. The body of `command` is not looked at.
pub fn encode_head(command: &RemotingCommand, body_bytes: usize, out: &mut BytesMut) {
    let start = out.len();
    out.put_bytes(0, LENGTH_BYTES + MARK_BYTES);
    match command.serialize {
        SerializeType::Json => header::encode_json(command, out),
        SerializeType::RocketMq => header::encode_binary(command, out),
    }
    let header_bytes = out.len() - start - LENGTH_BYTES - MARK_BYTES;
    assert!(header_bytes < 1 << 24, "a header is shorter than 16 MiB");
    let total = u32::try_from(MARK_BYTES + header_bytes + body_bytes);
    let total = total.expect("a body is far below 4 GiB");
    let mark = u32::from(command.serialize.number()) << 24
        | u32::try_from(header_bytes).expect("was just compared with 16 MiB");
    out[start..start + LENGTH_BYTES].copy_from_slice(&total.to_be_bytes());
    out[start + LENGTH_BYTES..][..MARK_BYTES].copy_from_slice(&mark.to_be_bytes());
}
