//! Checkpoints between peers, over the channel for ranges (`repair.rs`): for a node whose log is
//! damaged where peers have purged it, or that has no whole checkpoint. Needs no Raft.
//!
//! ```text
//!   checkpoint request: it stands behind this address u64 | its index, or 2^64 - 1 u64 | offset u64
//!   answer:             0 | index u64 | length of all of it u64 | bytes      1 = there is none
//! ```

use std::{io, sync::Arc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raftmq_store::{StoreError, checkpoint::Checkpoint};
use tokio::time::timeout;

use super::{
    peer::{self, PeerConnection},
    repair::{ANSWER_TIMEOUT, RepairPeers, blocking},
    snapshot_intake::SNAPSHOT_BYTES_MAX,
    wire::{self, Channel, Kind},
};
use crate::checkpoint::{Checkpoints, Restored, restore};

/// Most bytes of one answer. Bounds the memory of the giving side.
const PART_BYTES_MAX: usize = 1 << 20;
/// Stands for the index of a checkpoint that the giver chooses.
const ANY: u64 = u64::MAX;

/// What part of which checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartRequest {
    /// It stands behind this physical offset.
    pub(super) behind: u64,
    /// Its index, or [`ANY`].
    pub(super) index: u64,
    /// First byte of the part.
    pub(super) offset: u64,
}

/// A part of a checkpoint file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) index: u64,
    /// Length of the file. Unit: bytes.
    pub(super) total: u64,
    pub(super) bytes: Bytes,
}

impl RepairPeers {
    /// A whole checkpoint that stands at the end of a segment behind `physical`, of the first peer
    /// that has one. What is in a checkpoint was committed, so any peer's is right.
    pub async fn fetch_checkpoint(&self, physical: u64) -> Option<(Checkpoint, Restored)> {
        for (id, address) in self.others() {
            match self.ask_checkpoint(id, &address, physical).await {
                Ok(Some((_, restored))) if restored.position.end_physical <= physical => {
                    tracing::debug!(peer = id, "a peer's checkpoint does not reach far enough");
                }
                Ok(Some(found)) => {
                    tracing::info!(peer = id, index = found.1.id.index, "fetched a checkpoint");
                    return Some(found);
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(peer = id, %error, "ask for a checkpoint"),
            }
        }
        None
    }

    async fn ask_checkpoint(
        &self,
        id: u64,
        address: &str,
        behind: u64,
    ) -> Result<Option<(Checkpoint, Restored)>, io::Error> {
        let (net, local) = (&self.net, &self.local);
        let mut connection = peer::connect(net, local, id, address, Channel::Repair).await?;
        let mut data = BytesMut::new();
        let mut index = ANY;
        loop {
            let offset = data.len() as u64;
            let wanted = PartRequest {
                behind,
                index,
                offset,
            };
            let Some(part) = request(&mut connection, wanted).await? else {
                return Ok(None);
            };
            let is_next = index == ANY || index == part.index;
            if !is_next || part.bytes.is_empty() || part.total > SNAPSHOT_BYTES_MAX {
                return Err(wire::malformed("checkpoint result"));
            }
            index = part.index;
            data.extend_from_slice(&part.bytes);
            if data.len() as u64 >= part.total {
                break;
            }
        }
        let decoded = blocking(move || {
            let checkpoint = Checkpoint::decode(data.freeze())?;
            let restored = restore(&checkpoint)?;
            Ok((checkpoint, restored))
        });
        decoded.await.map(Some).map_err(io::Error::other)
    }
}

async fn request(
    connection: &mut PeerConnection,
    wanted: PartRequest,
) -> Result<Option<Part>, io::Error> {
    let frame = encode_request(wanted);
    let answer = connection.call(&frame, Kind::CheckpointResult);
    decode_answer(timeout(ANSWER_TIMEOUT, answer).await??)
}

/// The answer to a request of a peer.
pub(super) async fn read_part(checkpoints: Arc<Checkpoints>, wanted: PartRequest) -> Bytes {
    let part = blocking(move || {
        let index = match wanted.index {
            // Read as a whole: a damaged one would only be refused at the other end.
            ANY => match checkpoints.roll_behind(wanted.behind, u64::MAX) {
                Some(found) => found.id.index,
                None => return Ok(None),
            },
            index => index,
        };
        let (bytes, total) = checkpoints.read_part(index, wanted.offset, PART_BYTES_MAX)?;
        Ok(Some(Part {
            index,
            total,
            bytes,
        }))
    });
    let part = part.await.unwrap_or_else(|error: StoreError| {
        tracing::warn!(%error, "read a checkpoint for a peer");
        None
    });
    encode_answer(part.as_ref())
}

pub(super) fn encode_request(wanted: PartRequest) -> Bytes {
    let mut out = BytesMut::with_capacity(32);
    wire::put_frame(&mut out, Kind::Checkpoint, |out| {
        out.put_u64_le(wanted.behind);
        out.put_u64_le(wanted.index);
        out.put_u64_le(wanted.offset);
    });
    out.freeze()
}

pub(super) fn decode_request(mut body: Bytes) -> Result<PartRequest, io::Error> {
    let body = &mut body;
    let mut decode = || {
        Some(PartRequest {
            behind: body.try_get_u64_le().ok()?,
            index: body.try_get_u64_le().ok()?,
            offset: body.try_get_u64_le().ok()?,
        })
    };
    decode().ok_or_else(|| wire::malformed("checkpoint"))
}

pub(super) fn encode_answer(part: Option<&Part>) -> Bytes {
    let mut out = BytesMut::with_capacity(32 + part.map_or(0, |part| part.bytes.len()));
    wire::put_frame(&mut out, Kind::CheckpointResult, |out| match part {
        Some(part) => {
            out.put_u8(0);
            out.put_u64_le(part.index);
            out.put_u64_le(part.total);
            out.extend_from_slice(&part.bytes);
        }
        None => out.put_u8(1),
    });
    out.freeze()
}

pub(super) fn decode_answer(mut body: Bytes) -> Result<Option<Part>, io::Error> {
    let mut decode = || match body.try_get_u8().ok()? {
        0 => Some(Some(Part {
            index: body.try_get_u64_le().ok()?,
            total: body.try_get_u64_le().ok()?,
            bytes: std::mem::take(&mut body),
        })),
        1 => Some(None),
        _ => None,
    };
    let part = decode().ok_or_else(|| wire::malformed("checkpoint result"))?;
    if part
        .as_ref()
        .is_some_and(|part| part.bytes.len() > PART_BYTES_MAX)
    {
        return Err(wire::malformed("oversized checkpoint result"));
    }
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body_of(frame: &[u8]) -> Bytes {
        let mut buffer = BytesMut::from(frame);
        wire::take_frame(&mut buffer).unwrap().unwrap().1
    }

    #[test]
    fn requests_and_answers_survive_the_wire() {
        let wanted = PartRequest {
            behind: 1 << 40,
            index: ANY,
            offset: 9,
        };
        let body = body_of(&encode_request(wanted));
        assert_eq!(decode_request(body.clone()).unwrap(), wanted);
        assert!(decode_request(body.slice(..23)).is_err());
        let mut part = Part {
            index: 7,
            total: 1 << 30,
            bytes: Bytes::from(vec![3; PART_BYTES_MAX]),
        };
        for part in [Some(&part), None] {
            let body = body_of(&encode_answer(part));
            assert_eq!(decode_answer(body).unwrap().as_ref(), part);
        }
        part.bytes = Bytes::from(vec![3; PART_BYTES_MAX + 1]);
        assert!(decode_answer(body_of(&encode_answer(Some(&part)))).is_err());
        for bytes in [&b""[..], b"\x00", b"\x02", b"\x00\x01\x02"] {
            assert!(decode_answer(Bytes::from_static(bytes)).is_err());
        }
    }
}
