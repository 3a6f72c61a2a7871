//! For `crate::fuzzing`: what peers send.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use openraft::{
    EntryPayload,
    raft::{
        AppendEntriesRequest, StreamAppendError, TransferLeaderRequest, VoteRequest, VoteResponse,
    },
    vote::leader_id_std,
};
use prometheus::IntCounter;
use raftmq_remoting::{RemotingCommand, RequestCode, frame};
use raftmq_store::{RangeAnswer, RangeRequest};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    candidate,
    forward::{self, ForwardError, ForwardOutcome},
    guard::{self, LeaderEnd},
    machine::snapshot_meta,
    members::Members,
    peer::{self, Local},
    repair, repair_checkpoint,
    types::{Batch, Entry, LogId, TypeConfig, Vote, decode_membership, encode_membership},
    wire::{self, Channel, Hello, HelloAnswer, Kind, WIRE_VERSION},
};
use crate::checkpoint::Restored;

/// One frame of any kind.
#[must_use]
pub fn raft_frame(bytes: &[u8]) -> Option<Vec<u8>> {
    let (kind, body) = wire::take_frame(&mut BytesMut::from(bytes)).ok()??;
    let mut out = BytesMut::new();
    match kind {
        Kind::Append => wire::put_append(&mut out, &wire::decode_append(body).ok()?).ok()?,
        Kind::AppendResult => {
            wire::put_append_result(&mut out, &wire::decode_append_result(body).ok()?);
        }
        Kind::Forward => {
            let request = forward::decode_request(body).ok()?;
            let mut inner = BytesMut::new();
            frame::encode(&request.command, &mut inner);
            let (id, deadline) = (request.id, request.deadline_ms);
            let encoded = forward::encode_request(id, deadline, request.peer, &inner);
            out.extend_from_slice(&encoded);
        }
        Kind::ForwardResult => {
            let (id, answer) = forward::decode_answer(body).ok()?;
            let outcome = match answer {
                Ok(answer) => ForwardOutcome::Handled(answer.map(Box::new)),
                Err(ForwardError::Late) => ForwardOutcome::Late,
                Err(_) => ForwardOutcome::NotLeader,
            };
            out.extend_from_slice(&forward::encode_answer(id, outcome));
        }
        _ => out.extend_from_slice(&small_frame(kind, &body)?),
    }
    Some(out.to_vec())
}

fn small_frame(kind: Kind, body: &Bytes) -> Option<Bytes> {
    let raw = body.clone();
    Some(match kind {
        Kind::Hello => {
            let hello: Hello = serde_json::from_slice(body).ok()?;
            wire::encode_raw(kind, &serde_json::to_vec(&hello).ok()?)
        }
        Kind::HelloResult => {
            let answer: HelloAnswer = peer::read_answer(body);
            wire::encode_raw(kind, &serde_json::to_vec(&answer).ok()?)
        }
        Kind::Vote | Kind::PreVote => wire::encode_vote(kind, &wire::decode_vote(raw).ok()?),
        Kind::VoteResult => wire::encode_vote_result(&wire::decode_vote_result(raw).ok()?),
        Kind::Transfer => wire::encode_transfer(&wire::decode_transfer(raw).ok()?),
        Kind::SnapshotBegin => {
            let (vote, length) = wire::decode_snapshot_begin(raw).ok()?;
            wire::encode_snapshot_begin(&vote, length)
        }
        Kind::SnapshotResult => wire::encode_vote_only(kind, &wire::decode_vote_only(raw).ok()?),
        Kind::Range => repair::encode_request(repair::decode_request(raw).ok()?),
        Kind::RangeResult => repair::encode_answer(&repair::decode_answer(raw).ok()?),
        Kind::Checkpoint => {
            repair_checkpoint::encode_request(repair_checkpoint::decode_request(raw).ok()?)
        }
        Kind::CheckpointResult => {
            repair_checkpoint::encode_answer(repair_checkpoint::decode_answer(raw).ok()?.as_ref())
        }
        Kind::LogEndResult => guard::encode_answer(guard::decode_answer(raw).ok()?.as_ref()),
        Kind::MayLead => candidate::encode_question(candidate::decode_question(raw).ok()?),
        Kind::TransferResult | Kind::MayLeadResult => {
            candidate::encode_answer(kind, &candidate::decode_answer(body))
        }
        Kind::ForwardClock => forward::encode_clock(forward::decode_clock(raw).ok()?),
        Kind::SnapshotChunk | Kind::LogEnd | Kind::SnapshotReady => wire::encode_raw(kind, body),
        Kind::Append | Kind::AppendResult | Kind::Forward | Kind::ForwardResult => return None,
    })
}

/// A valid frame of every kind.
#[must_use]
pub fn raft_frame_examples() -> Vec<Vec<u8>> {
    let vote = Vote {
        leader_id: leader_id_std::LeaderId {
            term: 9,
            voted_for: 2,
        },
        committed: true,
    };
    let id = LogId::new_term_index(8, 41);
    let mut request = VoteRequest::<TypeConfig>::new(vote, Some(id));
    request.leadership_transfer = true;
    let transfer = TransferLeaderRequest::<TypeConfig>::new(vote, 3, Some(id));
    let mut frames = vec![
        wire::encode_vote(Kind::Vote, &request),
        wire::encode_vote(Kind::PreVote, &request),
        wire::encode_vote_result(&VoteResponse::new(vote, Some(id), true)),
        wire::encode_transfer(&transfer),
        wire::encode_raw(Kind::TransferResult, b"no"),
        candidate::encode_question(1),
        wire::encode_raw(Kind::MayLeadResult, b"no"),
        wire::encode_snapshot_begin(&vote, 1000),
        wire::encode_raw(Kind::SnapshotChunk, b"bytes"),
        wire::encode_vote_only(Kind::SnapshotResult, &vote),
        wire::encode_raw(Kind::SnapshotReady, &[]),
        forward::encode_clock(1000),
        wire::encode_raw(Kind::LogEnd, &[]),
        guard::encode_answer(Some(&LeaderEnd {
            vote,
            last: id,
            acknowledged: Some(id),
        })),
        hello_frame(Channel::Repair),
        hello_frame(Channel::Append),
        hello_frame(Channel::Forward),
    ];
    let answer = serde_json::to_vec(&HelloAnswer::default()).unwrap_or_default();
    frames.push(wire::encode_raw(Kind::HelloResult, &answer));
    frames.extend(repair_examples());
    let mut out = BytesMut::new();
    for result in [
        Ok(Some(id)),
        Err(StreamAppendError::Conflict(id)),
        Err(StreamAppendError::HigherVote(vote)),
    ] {
        wire::put_append_result(&mut out, &result);
        frames.push(out.split().freeze());
    }
    // A frame that cannot be made is missed by the test that counts the kinds.
    if wire::put_append(&mut out, &append_example(vote, id)).is_ok() {
        frames.push(out.split().freeze());
    }
    let command = RemotingCommand::request(RequestCode::SEND_MESSAGE_V2.0).with_ext("b", "topic");
    let mut inner = BytesMut::new();
    frame::encode(&command, &mut inner);
    let client = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    frames.push(forward::encode_request(7, 2800, client, &inner));
    for outcome in [
        ForwardOutcome::Handled(Some(Box::new(command))),
        ForwardOutcome::Handled(None),
        ForwardOutcome::NotLeader,
        ForwardOutcome::Late,
    ] {
        frames.push(forward::encode_answer(7, outcome));
    }
    frames.into_iter().map(|frame| frame.to_vec()).collect()
}

/// Of the channel for ranges and checkpoints.
fn repair_examples() -> [Bytes; 4] {
    [
        repair::encode_request(RangeRequest {
            physical: 7,
            previous_crc: 8,
            skip: 9,
        }),
        repair::encode_answer(&RangeAnswer::Bytes(Bytes::from_static(b"bytes"))),
        repair_checkpoint::encode_request(repair_checkpoint::PartRequest {
            behind: 7,
            index: 8,
            offset: 9,
        }),
        repair_checkpoint::encode_answer(Some(&repair_checkpoint::Part {
            index: 8,
            total: 100,
            bytes: Bytes::from_static(b"bytes"),
        })),
    ]
}

fn hello_frame(channel: Channel) -> Bytes {
    let hello = Hello {
        version: WIRE_VERSION,
        cluster: "c".into(),
        group: "g".into(),
        from: 2,
        to: 1,
        channel,
        incarnation: "disk-2".into(),
        expects: "disk-1".into(),
        address: "a:1".into(),
    };
    wire::encode_raw(Kind::Hello, &serde_json::to_vec(&hello).unwrap_or_default())
}

fn append_example(vote: Vote, before: LogId) -> AppendEntriesRequest<TypeConfig> {
    let json = br#"{"configs":[[1,2],[2,3]],"nodes":{"1":"a:1","2":"b:2","3":"c:3"},"incarnations":{"2":"x"}}"#;
    let membership = decode_membership(json).unwrap_or_default();
    let payloads = [
        EntryPayload::Blank,
        EntryPayload::Normal(Batch {
            payload: Bytes::from_static(b"commands"),
            count: 2,
            physical_offset: 0,
        }),
        EntryPayload::Membership(membership),
    ];
    let entries = (42..).zip(payloads).map(|(index, payload)| Entry {
        log_id: LogId::new_term_index(9, index),
        payload,
    });
    AppendEntriesRequest {
        vote,
        prev_log_id: Some(before),
        entries: entries.collect(),
        leader_commit: None,
    }
}

/// Everything that a peer sends on one connection, hello first; the number of frames behind it.
#[must_use]
pub fn raft_connection(bytes: &[u8]) -> usize {
    let refusals = IntCounter::new("refusals", "Refusals.");
    let Ok(refusals) = refusals else { return 0 };
    let local = Local {
        cluster: "c".into(),
        group: "g".into(),
        id: 1,
        incarnation: "disk-1".into(),
        members: Arc::new(Members::new(refusals)),
    };
    let peer = Recorded(Bytes::copy_from_slice(bytes));
    let work = async {
        let (mut connection, _) = peer::accept(Box::new(peer), &local).await.ok()?;
        let mut frames = 0;
        while let Ok(Some(_)) = connection.reader.next().await {
            frames += 1;
        }
        Some(frames)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let Ok(runtime) = runtime else { return 0 };
    let _entered = runtime.enter();
    // Nothing here ever waits, so that one poll is enough.
    work.now_or_never().flatten().unwrap_or(0)
}

/// A peer that sends these bytes, then nothing, and takes whatever it is told.
struct Recorded(Bytes);

impl AsyncRead for Recorded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let bytes = self.0.len().min(buffer.remaining());
        buffer.put_slice(&self.0.split_to(bytes));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Recorded {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The part of a checkpoint that Raft reads when it is a snapshot.
pub fn check_snapshot(restored: &Restored) -> Option<()> {
    let meta = snapshot_meta(restored).ok()?;
    encode_membership(meta.last_membership.membership()).ok()?;
    Some(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn there_is_an_example_of_every_kind_of_frame_and_each_means_the_same() {
        let examples = raft_frame_examples();
        for frame in &examples {
            assert_eq!(raft_frame(frame).as_ref(), Some(frame));
        }
        let kinds: BTreeSet<u8> = examples.iter().map(|frame| frame[4]).collect();
        assert_eq!(kinds, (1..=24).collect());
    }

    #[test]
    fn a_connection_is_read_behind_its_hello() {
        let frames = [
            hello_frame(Channel::Append).to_vec(),
            wire::encode_raw(Kind::SnapshotChunk, b"a").to_vec(),
            wire::encode_raw(Kind::SnapshotChunk, b"b").to_vec(),
        ];
        assert_eq!(raft_connection(&frames.concat()), 2);
        assert_eq!(raft_connection(&frames[1..].concat()), 0);
    }
}
