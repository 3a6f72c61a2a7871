//! Frames between brokers: bytes <-> Raft messages. No sockets here.
//!
//! ```text
//! +------------------+--------+-----------------------------+
//! | length u32 BE    | kind   | body, integers little endian|
//! | of kind and body | u8     |                             |
//! +------------------+--------+-----------------------------+
//! ```
//! The first frame of a connection is a hello (JSON) that names cluster, group, node and channel;
//! the acceptor answers with a hello result and closes when they do not fit.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::{
    EntryPayload,
    raft::{
        AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest,
        VoteRequest, VoteResponse,
    },
    vote::leader_id_std,
};
use raftmq_remoting::limits::FRAME_BYTES_MAX;
use serde::{Deserialize, Serialize};

use super::types::{Batch, Entry, LogId, TypeConfig, Vote, decode_membership, encode_membership};

/// Largest frame between brokers. Unit: bytes. An append request carries at most 1 MiB of small
/// entries or one entry, which the log takes up to 64 MiB. Each kind has its own bound, see
/// [`Kind::bytes_max`].
pub(crate) const PEER_FRAME_BYTES_MAX: usize = 80 << 20;
/// Largest hello, and answer to one: names of a cluster and a group, two incarnations, a sentence.
const HELLO_BYTES_MAX: usize = 16 << 10;
/// Largest frame of fixed fields, or of a sentence.
const SMALL_BYTES_MAX: usize = 16 << 10;
/// Largest frame that carries a piece of something, 1 MiB at a time, with its head.
const PIECE_BYTES_MAX: usize = (1 << 20) + SMALL_BYTES_MAX;
/// Largest frame that carries a frame of a client, with id, deadline and address.
const FORWARD_BYTES_MAX: usize = FRAME_BYTES_MAX + SMALL_BYTES_MAX;
/// Version of these frames; both ends must speak the same.
pub(crate) const WIRE_VERSION: u32 = 1;

/// What a frame is. Stable numbers: brokers of neighbouring versions talk to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// First frame from the connecting side.
    Hello = 1,
    /// Its answer.
    HelloResult = 2,
    /// Append entries, or a heartbeat.
    Append = 3,
    /// Its answer, in order.
    AppendResult = 4,
    /// Request for a vote.
    Vote = 5,
    /// Question whether a vote would be granted.
    PreVote = 6,
    /// Answer to both.
    VoteResult = 7,
    /// The leader asks a node to take over.
    Transfer = 8,
    /// Its answer.
    TransferResult = 9,
    /// Start of a snapshot: vote, length. No piece before the answer.
    SnapshotBegin = 10,
    /// A piece of a snapshot.
    SnapshotChunk = 11,
    /// Answer to the whole snapshot.
    SnapshotResult = 12,
    /// A client's request, forwarded to the leader.
    Forward = 13,
    /// The leader's answer.
    ForwardResult = 14,
    /// A node asks for a range of the log that is damaged there.
    Range = 15,
    /// Its answer.
    RangeResult = 16,
    /// A node asks the leader where its log ends and what it counts as acknowledged.
    LogEnd = 17,
    /// The leader's answer.
    LogEndResult = 18,
    /// What the leader's clock shows, on the way of forwarded requests.
    ForwardClock = 19,
    /// Answer to the start of a snapshot: the pieces may come.
    SnapshotReady = 20,
    /// The leader asks a node whether it may lead.
    MayLead = 21,
    /// Its answer.
    MayLeadResult = 22,
    /// A node asks for a part of a checkpoint that stands behind what is damaged there.
    Checkpoint = 23,
    /// Its answer.
    CheckpointResult = 24,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Kind; 24] = [
            Kind::Hello,
            Kind::HelloResult,
            Kind::Append,
            Kind::AppendResult,
            Kind::Vote,
            Kind::PreVote,
            Kind::VoteResult,
            Kind::Transfer,
            Kind::TransferResult,
            Kind::SnapshotBegin,
            Kind::SnapshotChunk,
            Kind::SnapshotResult,
            Kind::Forward,
            Kind::ForwardResult,
            Kind::Range,
            Kind::RangeResult,
            Kind::LogEnd,
            Kind::LogEndResult,
            Kind::ForwardClock,
            Kind::SnapshotReady,
            Kind::MayLead,
            Kind::MayLeadResult,
            Kind::Checkpoint,
            Kind::CheckpointResult,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Largest frame of this kind, without its length. Unit: bytes.
    const fn bytes_max(self) -> usize {
        match self {
            Kind::Append => PEER_FRAME_BYTES_MAX,
            Kind::Hello | Kind::HelloResult => HELLO_BYTES_MAX,
            Kind::SnapshotChunk | Kind::RangeResult | Kind::CheckpointResult => PIECE_BYTES_MAX,
            Kind::Forward | Kind::ForwardResult => FORWARD_BYTES_MAX,
            Kind::AppendResult
            | Kind::Vote
            | Kind::PreVote
            | Kind::VoteResult
            | Kind::Transfer
            | Kind::TransferResult
            | Kind::SnapshotBegin
            | Kind::SnapshotResult
            | Kind::Range
            | Kind::LogEnd
            | Kind::LogEndResult
            | Kind::ForwardClock
            | Kind::SnapshotReady
            | Kind::MayLead
            | Kind::MayLeadResult
            | Kind::Checkpoint => SMALL_BYTES_MAX,
        }
    }
}

/// What a connection is for. Each purpose has its own, so that a large append never delays a
/// heartbeat or a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Channel {
    /// Pipelined append stream.
    Append,
    /// Heartbeats.
    Heartbeat,
    /// Votes, transfers and snapshots.
    Control,
    /// Client requests on their way to the leader.
    Forward,
    /// Ranges of the log, and checkpoints, for a node whose own are damaged. Needs no Raft on either
    /// side.
    Repair,
}

impl Channel {
    /// Whether the node that connects must have the disk that the membership known here names. Entries
    /// and snapshots are taken from whoever leads: its voters have looked, and a follower that is
    /// behind may know an older disk of its id. Requests for votes are looked at one by one.
    pub(crate) fn is_for_members_only(self) -> bool {
        matches!(self, Self::Forward | Self::Repair)
    }
}

/// Introduction of the connecting side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Hello {
    pub version: u32,
    pub cluster: String,
    pub group: String,
    pub from: u64,
    /// Whom the sender believes to talk to.
    pub to: u64,
    pub channel: Channel,
    /// Incarnation of the sender's data folder; empty = a version that has none.
    #[serde(default)]
    pub incarnation: String,
    /// Incarnation the sender's membership names for `to`; empty = none.
    #[serde(default)]
    pub expects: String,
    /// Where the sender listens, by its own membership; empty = it knows none, or is of a version that
    /// does not tell.
    #[serde(default)]
    pub address: String,
}

/// Answer to the hello of a sender that tells its incarnation. Others get an empty body, or the
/// refusal as plain text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HelloAnswer {
    /// Incarnation of the acceptor's data folder; empty = a version that has none.
    pub incarnation: String,
    /// Why the connection is not taken; empty = it is.
    pub refusal: String,
}

/// A frame body that is not what its kind says.
pub(crate) fn malformed(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("decode {what} frame from a peer"),
    )
}

/// Appends a frame with the body that `body` writes.
pub(crate) fn put_frame(out: &mut BytesMut, kind: Kind, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    out.put_u8(kind as u8);
    body(out);
    let length = u32::try_from(out.len() - start - 4).expect("a peer frame is below 4 GiB");
    if let Some(slot) = out.get_mut(start..start + 4) {
        slot.copy_from_slice(&length.to_be_bytes());
    }
}

/// Takes one whole frame out of `buffer`; `None` = more bytes are needed.
///
/// # Errors
/// When the length or the kind is not one a broker sends: the connection must be closed.
pub(crate) fn take_frame(buffer: &mut BytesMut) -> Result<Option<(Kind, Bytes)>, io::Error> {
    let Some((length, kind)) = head(buffer)? else {
        return Ok(None);
    };
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    buffer.advance(4);
    let mut frame = buffer.split_to(length).freeze();
    frame.advance(1);
    Ok(Some((kind, frame)))
}

/// Length and kind of the frame at the start of `buffer`; `None` = more bytes are needed. It is
/// judged by these five bytes, before any of the body is kept.
fn head(buffer: &[u8]) -> Result<Option<(usize, Kind)>, io::Error> {
    let Some([prefix @ .., kind]) = buffer.first_chunk::<5>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*prefix) as usize;
    let kind = Kind::from_byte(*kind).ok_or_else(|| malformed("unknown"))?;
    if length == 0 || length > kind.bytes_max() {
        return Err(malformed("oversized or empty"));
    }
    Ok(Some((length, kind)))
}

/// Whether what has come so far may be the start of a hello, or of its answer.
///
/// # Errors
/// When it is another frame.
pub(crate) fn check_introduction(buffer: &[u8]) -> Result<(), io::Error> {
    match head(buffer)? {
        None | Some((_, Kind::Hello | Kind::HelloResult)) => Ok(()),
        Some(_) => Err(malformed("uninvited")),
    }
}

/// Bytes that the frame at the start of `buffer` still lacks; 0 when its length is not here yet.
/// As far as the other side says the truth.
pub(crate) fn missing_bytes(buffer: &[u8]) -> usize {
    match head(buffer) {
        Ok(Some((length, _))) => (4 + length).saturating_sub(buffer.len()),
        Ok(None) | Err(_) => 0,
    }
}

pub(super) fn put_vote(out: &mut BytesMut, vote: &Vote) {
    out.put_u64_le(vote.leader_id.term);
    out.put_u64_le(vote.leader_id.voted_for);
    out.put_u8(u8::from(vote.committed));
}

pub(super) fn get_vote(body: &mut Bytes) -> Option<Vote> {
    let term = body.try_get_u64_le().ok()?;
    let voted_for = body.try_get_u64_le().ok()?;
    let committed = body.try_get_u8().ok()? != 0;
    Some(Vote {
        leader_id: leader_id_std::LeaderId { term, voted_for },
        committed,
    })
}

pub(super) fn put_log_id(out: &mut BytesMut, id: Option<&LogId>) {
    out.put_u8(u8::from(id.is_some()));
    out.put_u64_le(id.map_or(0, |id| id.committed_leader_id().term));
    out.put_u64_le(id.map_or(0, LogId::index));
}

#[allow(clippy::option_option, reason = "outer: malformed; inner: no log id")]
pub(super) fn get_log_id(body: &mut Bytes) -> Option<Option<LogId>> {
    let present = body.try_get_u8().ok()? != 0;
    let term = body.try_get_u64_le().ok()?;
    let index = body.try_get_u64_le().ok()?;
    Some(present.then(|| LogId::new_term_index(term, index)))
}

/// Payload kinds inside an append request. Stable.
const BLANK: u8 = 0;
const NORMAL: u8 = 1;
const MEMBERSHIP: u8 = 2;

fn put_entry(out: &mut BytesMut, entry: &Entry) -> Result<(), io::Error> {
    out.put_u64_le(entry.log_id.committed_leader_id().term);
    out.put_u64_le(entry.log_id.index());
    let (kind, count, payload) = match &entry.payload {
        EntryPayload::Blank => (BLANK, 0, Bytes::new()),
        EntryPayload::Normal(batch) => (NORMAL, batch.count, batch.payload.clone()),
        EntryPayload::Membership(membership) => (MEMBERSHIP, 1, encode_membership(membership)?),
    };
    out.put_u8(kind);
    out.put_u32_le(count);
    out.put_u32_le(u32::try_from(payload.len()).map_err(io::Error::other)?);
    out.extend_from_slice(&payload);
    Ok(())
}

fn get_entry(body: &mut Bytes) -> Option<Entry> {
    let term = body.try_get_u64_le().ok()?;
    let index = body.try_get_u64_le().ok()?;
    let kind = body.try_get_u8().ok()?;
    let count = body.try_get_u32_le().ok()?;
    let length = body.try_get_u32_le().ok()? as usize;
    if body.len() < length {
        return None;
    }
    let payload = body.split_to(length);
    let payload = match kind {
        BLANK => EntryPayload::Blank,
        NORMAL => EntryPayload::Normal(Batch {
            payload,
            count,
            physical_offset: 0,
        }),
        MEMBERSHIP => EntryPayload::Membership(decode_membership(&payload).ok()?),
        _ => return None,
    };
    Some(Entry {
        log_id: LogId::new_term_index(term, index),
        payload,
    })
}

/// Frame of an append request or heartbeat.
pub(crate) fn put_append(
    out: &mut BytesMut,
    request: &AppendEntriesRequest<TypeConfig>,
) -> Result<(), io::Error> {
    let payload: usize = request
        .entries
        .iter()
        .map(|entry| match &entry.payload {
            EntryPayload::Normal(batch) => 32 + batch.payload.len(),
            EntryPayload::Blank | EntryPayload::Membership(_) => 512,
        })
        .sum();
    out.reserve(128 + payload);
    let mut result = Ok(());
    put_frame(out, Kind::Append, |out| {
        put_vote(out, &request.vote);
        put_log_id(out, request.prev_log_id.as_ref());
        put_log_id(out, request.leader_commit.as_ref());
        out.put_u32_le(u32::try_from(request.entries.len()).unwrap_or(u32::MAX));
        result = request
            .entries
            .iter()
            .try_for_each(|entry| put_entry(out, entry));
    });
    result
}

/// Append request from the body of its frame; payloads are slices of `body`.
pub(crate) fn decode_append(
    mut body: Bytes,
) -> Result<AppendEntriesRequest<TypeConfig>, io::Error> {
    let body = &mut body;
    let mut decode = || {
        let vote = get_vote(body)?;
        let prev_log_id = get_log_id(body)?;
        let leader_commit = get_log_id(body)?;
        let count = body.try_get_u32_le().ok()?;
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push(get_entry(body)?);
        }
        Some(AppendEntriesRequest {
            vote,
            prev_log_id,
            entries,
            leader_commit,
        })
    };
    decode().ok_or_else(|| malformed("append"))
}

/// Appends the frame of the answer to one append request.
pub(crate) fn put_append_result(out: &mut BytesMut, result: &StreamAppendResult<TypeConfig>) {
    put_frame(out, Kind::AppendResult, |out| match result {
        Ok(matched) => {
            out.put_u8(0);
            put_log_id(out, matched.as_ref());
        }
        Err(StreamAppendError::Conflict(id)) => {
            out.put_u8(1);
            put_log_id(out, Some(id));
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            out.put_u8(2);
            put_vote(out, vote);
        }
    });
}

/// Answer to an append request from the body of its frame.
pub(crate) fn decode_append_result(
    mut body: Bytes,
) -> Result<StreamAppendResult<TypeConfig>, io::Error> {
    let body = &mut body;
    let mut decode = || {
        Some(match body.try_get_u8().ok()? {
            0 => Ok(get_log_id(body)?),
            1 => Err(StreamAppendError::Conflict(get_log_id(body)??)),
            2 => Err(StreamAppendError::HigherVote(get_vote(body)?)),
            _ => return None,
        })
    };
    decode().ok_or_else(|| malformed("append result"))
}

/// Frame of a vote or pre-vote request.
pub(crate) fn encode_vote(kind: Kind, request: &VoteRequest<TypeConfig>) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    put_frame(&mut out, kind, |out| {
        put_vote(out, &request.vote);
        put_log_id(out, request.last_log_id.as_ref());
        out.put_u8(u8::from(request.leadership_transfer));
    });
    out.freeze()
}

/// Vote request from the body of its frame.
pub(crate) fn decode_vote(mut body: Bytes) -> Result<VoteRequest<TypeConfig>, io::Error> {
    let body = &mut body;
    let mut decode = || {
        let mut request = VoteRequest::new(get_vote(body)?, get_log_id(body)?);
        request.leadership_transfer = body.try_get_u8().ok()? != 0;
        Some(request)
    };
    decode().ok_or_else(|| malformed("vote"))
}

/// Frame of the answer to a vote request.
pub(crate) fn encode_vote_result(response: &VoteResponse<TypeConfig>) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    put_frame(&mut out, Kind::VoteResult, |out| {
        put_vote(out, &response.vote);
        put_log_id(out, response.last_log_id.as_ref());
        out.put_u8(u8::from(response.vote_granted));
    });
    out.freeze()
}

/// Answer to a vote request from the body of its frame.
pub(crate) fn decode_vote_result(mut body: Bytes) -> Result<VoteResponse<TypeConfig>, io::Error> {
    let body = &mut body;
    let mut decode = || {
        let vote = get_vote(body)?;
        let last_log_id = get_log_id(body)?;
        Some(VoteResponse::new(
            vote,
            last_log_id,
            body.try_get_u8().ok()? != 0,
        ))
    };
    decode().ok_or_else(|| malformed("vote result"))
}

/// Frame of a leader's request that a node takes over.
pub(crate) fn encode_transfer(request: &TransferLeaderRequest<TypeConfig>) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    put_frame(&mut out, Kind::Transfer, |out| {
        put_vote(out, request.from_leader());
        out.put_u64_le(*request.to_node_id());
        put_log_id(out, request.last_log_id());
    });
    out.freeze()
}

/// Transfer request from the body of its frame.
pub(crate) fn decode_transfer(
    mut body: Bytes,
) -> Result<TransferLeaderRequest<TypeConfig>, io::Error> {
    let body = &mut body;
    let mut decode = || {
        let from = get_vote(body)?;
        let to = body.try_get_u64_le().ok()?;
        Some(TransferLeaderRequest::new(from, to, get_log_id(body)?))
    };
    decode().ok_or_else(|| malformed("transfer"))
}

/// Frame that announces a snapshot of `bytes` bytes from the leader that holds `vote`.
pub(crate) fn encode_snapshot_begin(vote: &Vote, bytes: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    put_frame(&mut out, Kind::SnapshotBegin, |out| {
        put_vote(out, vote);
        out.put_u64_le(bytes);
    });
    out.freeze()
}

/// Vote and length of an announced snapshot.
pub(crate) fn decode_snapshot_begin(mut body: Bytes) -> Result<(Vote, u64), io::Error> {
    let body = &mut body;
    let mut decode = || Some((get_vote(body)?, body.try_get_u64_le().ok()?));
    decode().ok_or_else(|| malformed("snapshot"))
}

/// Frame that carries only a vote, such as the answer to a snapshot.
pub(crate) fn encode_vote_only(kind: Kind, vote: &Vote) -> Bytes {
    let mut out = BytesMut::with_capacity(32);
    put_frame(&mut out, kind, |out| put_vote(out, vote));
    out.freeze()
}

/// Vote from the body of such a frame.
pub(crate) fn decode_vote_only(mut body: Bytes) -> Result<Vote, io::Error> {
    get_vote(&mut body).ok_or_else(|| malformed("vote"))
}

/// Frame of any kind with a ready body.
pub(crate) fn encode_raw(kind: Kind, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + body.len());
    put_frame(&mut out, kind, |out| out.extend_from_slice(body));
    out.freeze()
}

#[cfg(test)]
#[path = "wire_test.rs"]
mod tests;
