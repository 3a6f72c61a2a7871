//! Bytes of forwarded requests and their answers. Integers are little endian.
//!
//! ```text
//!   request:  id u64 | deadline u64: ms on the clock of the leader's end | length of address u8 |
//!             address of the client as text | remoting frame
//!   answer:   id u64 | 0 | remoting frame      1 = handled, no answer wanted
//!                      2 = does not lead       3 = too late; nothing was done either time
//!   clock:    ms u64
//! ```

use std::{io, net::SocketAddr};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raftmq_remoting::{RemotingCommand, frame};

use super::{Answer, ForwardError, ForwardOutcome};
use crate::raft::wire::{Kind, malformed, put_frame};

const ANSWER: u8 = 0;
const NO_ANSWER: u8 = 1;
const NOT_LEADER: u8 = 2;
const LATE: u8 = 3;

/// A request as it came.
#[derive(Debug)]
pub(in crate::raft) struct ForwardedRequest {
    pub id: u64,
    /// Unit: ms on the clock of the leader's end of the link.
    pub deadline_ms: u64,
    /// The client.
    pub peer: SocketAddr,
    pub command: RemotingCommand,
}

pub(in crate::raft) fn encode_request(
    id: u64,
    deadline_ms: u64,
    peer: SocketAddr,
    frame: &[u8],
) -> Bytes {
    let peer = peer.to_string();
    let mut out = BytesMut::with_capacity(64 + frame.len());
    put_frame(&mut out, Kind::Forward, |out| {
        out.put_u64_le(id);
        out.put_u64_le(deadline_ms);
        out.put_u8(u8::try_from(peer.len()).unwrap_or(0));
        out.extend_from_slice(peer.as_bytes());
        out.extend_from_slice(frame);
    });
    out.freeze()
}

fn decode_command(body: Bytes) -> Result<RemotingCommand, io::Error> {
    let mut buffer = BytesMut::from(body);
    match frame::decode(&mut buffer) {
        Ok(Some(command)) if buffer.is_empty() => Ok(command),
        _ => Err(malformed("forward")),
    }
}

pub(in crate::raft) fn decode_request(mut body: Bytes) -> Result<ForwardedRequest, io::Error> {
    let mut head = || {
        let id = body.try_get_u64_le().ok()?;
        let deadline_ms = body.try_get_u64_le().ok()?;
        let length = usize::from(body.try_get_u8().ok()?);
        let peer = (body.len() >= length).then(|| body.split_to(length))?;
        let peer = std::str::from_utf8(&peer).ok()?.parse().ok()?;
        Some((id, deadline_ms, peer))
    };
    let (id, deadline_ms, peer) = head().ok_or_else(|| malformed("forward"))?;
    Ok(ForwardedRequest {
        id,
        deadline_ms,
        peer,
        command: decode_command(body)?,
    })
}

/// Frame of the answer to request `id`.
pub(in crate::raft) fn encode_answer(id: u64, answer: ForwardOutcome) -> Bytes {
    let mut out = BytesMut::new();
    put_frame(&mut out, Kind::ForwardResult, |out| {
        out.put_u64_le(id);
        match answer {
            ForwardOutcome::Handled(Some(command)) => {
                out.put_u8(ANSWER);
                frame::encode(&command, out);
            }
            ForwardOutcome::Handled(None) => out.put_u8(NO_ANSWER),
            ForwardOutcome::NotLeader => out.put_u8(NOT_LEADER),
            ForwardOutcome::Late => out.put_u8(LATE),
        }
    });
    out.freeze()
}

pub(in crate::raft) fn decode_answer(mut body: Bytes) -> Result<(u64, Answer), io::Error> {
    let id = body
        .try_get_u64_le()
        .map_err(|_| malformed("forward result"))?;
    let answer = match body.try_get_u8().map_err(|_| malformed("forward result"))? {
        ANSWER => Ok(Some(decode_command(body)?)),
        NO_ANSWER => Ok(None),
        NOT_LEADER => Err(ForwardError::NotLeader),
        LATE => Err(ForwardError::Late),
        _ => return Err(malformed("forward result")),
    };
    Ok((id, answer))
}

pub(in crate::raft) fn encode_clock(ms: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(16);
    put_frame(&mut out, Kind::ForwardClock, |out| out.put_u64_le(ms));
    out.freeze()
}

pub(in crate::raft) fn decode_clock(mut body: Bytes) -> Result<u64, io::Error> {
    body.try_get_u64_le()
        .map_err(|_| malformed("forward clock"))
}
