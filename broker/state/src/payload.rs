//! The payload of a Raft entry: a header and commands.
//!
//! ```text
//! payload := version u8 = 1 | 0 0 0 | count u32 | store_timestamp_ms u64 | command * count
//! ```
//! A record's physical offset is the payload's plus the record's position in it.

use bytes::{BufMut, Bytes, BytesMut};
use raftmq_remoting::message::patch_store_timestamp;

use crate::codec::{DecodeError, Reader};
use crate::command::{COMMAND_HEAD_BYTES, Command, EncodedCommand, RawCommand, Tag};
use crate::command_body::{DELIVER_HEAD_BYTES, RECORD_HEAD_BYTES};

/// Version of the payload format.
pub const PAYLOAD_VERSION: u8 = 1;

/// Length of the header. Unit: bytes.
pub const PAYLOAD_HEADER_BYTES: usize = 16;

/// Collects commands into the payload of one entry. Used by the proposer.
#[derive(Debug)]
pub struct PayloadBuilder {
    out: BytesMut,
    count: u32,
    store_timestamp_ms: u64,
}

impl PayloadBuilder {
    /// An empty payload. Every message pushed gets this store time. Unit: ms since 1970.
    pub fn new(store_timestamp_ms: u64) -> Self {
        Self::with_capacity(store_timestamp_ms, 0)
    }

    /// Like `new`, with room for commands of that many bytes.
    pub fn with_capacity(store_timestamp_ms: u64, command_bytes: usize) -> Self {
        let mut out = BytesMut::with_capacity(PAYLOAD_HEADER_BYTES + command_bytes);
        out.put_u32_le(u32::from(PAYLOAD_VERSION));
        out.put_u32_le(0);
        out.put_u64_le(store_timestamp_ms);
        Self {
            out,
            count: 0,
            store_timestamp_ms,
        }
    }

    /// Copies a command in and stamps the store time of the records it carries.
    pub fn push(&mut self, command: &EncodedCommand) {
        let from = self.out.len();
        self.out.put_slice(command.as_bytes());
        self.count += 1;
        let stamped = stamp_records(&mut self.out[from..], self.store_timestamp_ms);
        debug_assert!(stamped.is_some(), "an encoded command is well formed");
    }

    /// Length so far, header included. Unit: bytes.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether it has no command yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Commands so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Store time of the payload. Unit: ms since 1970.
    pub fn store_timestamp_ms(&self) -> u64 {
        self.store_timestamp_ms
    }

    /// The payload.
    pub fn finish(mut self) -> Bytes {
        self.out[4..8].copy_from_slice(&self.count.to_le_bytes());
        self.out.freeze()
    }
}

/// Reads the commands of a payload one by one, each with its position: for log dumps and tests.
pub fn decode_payload(payload: &Bytes) -> Result<(u64, Vec<(usize, Command)>), DecodeError> {
    let mut commands = Vec::new();
    let mut raw_commands = RawCommands::read(payload)?;
    let store_timestamp_ms = raw_commands.store_timestamp_ms;
    while let Some(raw) = raw_commands.next()? {
        let position = position_in(payload, raw.body) - COMMAND_HEAD_BYTES;
        commands.push((position, Command::from_raw(&raw, payload)?));
    }
    Ok((store_timestamp_ms, commands))
}

/// The commands of a payload with their bodies unread.
#[derive(Debug)]
pub(crate) struct RawCommands<'a> {
    pub(crate) store_timestamp_ms: u64,
    reader: Reader<'a>,
    left: u32,
}

impl<'a> RawCommands<'a> {
    pub(crate) fn read(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload);
        let [version, padding @ ..] = reader.u32()?.to_le_bytes();
        if version != PAYLOAD_VERSION || padding != [0; 3] {
            return Err(DecodeError::UnknownVersion { version });
        }
        let left = reader.u32()?;
        let store_timestamp_ms = reader.u64()?;
        Ok(Self {
            store_timestamp_ms,
            reader,
            left,
        })
    }

    /// Commands left, but never more than the bytes left could hold.
    pub(crate) fn len_at_most(&self) -> usize {
        (self.left as usize).min(self.reader.remaining() / COMMAND_HEAD_BYTES)
    }

    /// The next command; `None` when the payload ends with the last one.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Option<RawCommand<'a>>, DecodeError> {
        if self.left == 0 {
            self.reader.finish()?;
            return Ok(None);
        }
        self.left -= 1;
        RawCommand::read(&mut self.reader).map(Some)
    }
}

/// Position of a part of the payload within it. Unit: bytes.
#[inline]
pub(crate) fn position_in(payload: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr() - payload.as_ptr().addr()
}

/// Writes the store time into every record of an encoded command. `None` on a command that is not
/// well formed, which `Command::encode` never makes; apply would reject its records.
fn stamp_records(command: &mut [u8], store_timestamp_ms: u64) -> Option<()> {
    let list_position = match Tag::try_from(*command.first()?).ok()? {
        Tag::Append => {
            stamp(
                command.get_mut(COMMAND_HEAD_BYTES + 8..)?,
                store_timestamp_ms,
            );
            return Some(());
        }
        Tag::AppendBatch => COMMAND_HEAD_BYTES,
        Tag::Deliver => COMMAND_HEAD_BYTES + DELIVER_HEAD_BYTES,
        Tag::PutTopic
        | Tag::DeleteTopic
        | Tag::PutGroup
        | Tag::DeleteGroup
        | Tag::CommitOffsets
        | Tag::LockQueues
        | Tag::UnlockQueues
        | Tag::PutKv
        | Tag::DeleteKv
        | Tag::ChangeTopic
        | Tag::ChangeGroup => return Some(()),
    };
    let mut list = command.get_mut(list_position + 4..)?;
    while !list.is_empty() {
        let (head, rest) = list.split_at_mut_checked(RECORD_HEAD_BYTES)?;
        let length = u32::from_le_bytes(*head.last_chunk()?) as usize;
        let (record, rest) = rest.split_at_mut_checked(length)?;
        stamp(record, store_timestamp_ms);
        list = rest;
    }
    Some(())
}

/// Where a record's storeTimestamp ends when its born host is an IPv6 address. Unit: bytes.
const STORE_TIMESTAMP_END_MAX: usize = 76;

/// Stamps one record. Bytes too short to be one are left for apply to reject.
fn stamp(record: &mut [u8], store_timestamp_ms: u64) {
    if record.len() >= STORE_TIMESTAMP_END_MAX {
        patch_store_timestamp(record, store_timestamp_ms);
    }
}
