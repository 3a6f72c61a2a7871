//! Raft messages out: openraft's network over peer connections.
//!
//! Each peer has three connections: the pipelined append stream, heartbeats, and one for votes,
//! transfers and snapshots. They are opened on first use and again after an error.

use std::{
    future::Future,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    FutureExt, Stream, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use openraft::{
    OptionalSend,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use tokio::{sync::mpsc, time::timeout};

use super::{
    append_stream::pump,
    candidate,
    machine::SnapshotData,
    peer::{self, Local, PeerConnection},
    pulse::Patience,
    types::{PeerNode, Snapshot, TypeConfig, Vote},
    wire::{self, Channel, Kind},
};
use crate::{host::simulated, net::Net};

/// Responses that may wait for openraft to take them.
const RESPONSES_MAX: usize = 128;
/// Pause before a peer that did not answer is tried again. Short: a restarted follower should be
/// back in the quorum at once, and a refused connect on a LAN costs next to nothing.
const BACKOFF: Duration = Duration::from_millis(100);
/// Unit of a snapshot on the wire.
const SNAPSHOT_CHUNK_BYTES: usize = 1 << 20;
/// Longest time for one chunk of a snapshot, and for the answer to the whole.
const SNAPSHOT_STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes the clients of openraft's replication, heartbeat and snapshot tasks.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    pub net: Arc<dyn Net>,
    pub local: Local,
    /// Whether it is time to stand for election.
    pub patience: Patience,
}

/// A connection that is kept between uses; empty while a stream is using it.
pub(super) type Slot = Arc<Mutex<Option<PeerConnection>>>;

/// Client for one peer, for one of openraft's tasks.
#[derive(Debug)]
pub(crate) struct PeerClient {
    dialer: Dialer,
    channel: Channel,
    stream: Slot,
    control: Slot,
}

impl Transport {
    pub(super) fn new(net: &Arc<dyn Net>, local: &Local, patience: Patience) -> Self {
        Self {
            net: Arc::clone(net),
            local: local.clone(),
            patience,
        }
    }

    /// Of a node whose machine is well.
    #[cfg(test)]
    pub(super) fn on(net: impl Net + 'static, local: Local) -> Self {
        Self {
            net: Arc::new(net),
            local,
            patience: Patience {
                heard: super::pulse::Pulse::new(),
                lateness: super::pulse::Lateness::default(),
                election_timeout: Duration::ZERO,
            },
        }
    }

    fn client(&self, target: u64, node: &PeerNode, channel: Channel) -> PeerClient {
        PeerClient {
            dialer: Dialer {
                transport: self.clone(),
                target,
                address: node.address.clone(),
            },
            channel,
            stream: Slot::default(),
            control: Slot::default(),
        }
    }
}

impl Transport {
    /// A client for heartbeats beside openraft's own.
    pub(crate) fn heartbeat_client(&self, target: u64, node: &PeerNode) -> PeerClient {
        self.client(target, node, Channel::Heartbeat)
    }

    /// A client for questions and requests that openraft does not know.
    pub(crate) fn control_client(&self, target: u64, node: &PeerNode) -> PeerClient {
        self.client(target, node, Channel::Control)
    }
}

impl RaftNetworkFactory<TypeConfig> for Transport {
    type Network = PeerClient;

    async fn new_client(&mut self, target: u64, node: &PeerNode) -> PeerClient {
        self.client(target, node, Channel::Append)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &PeerNode) -> PeerClient {
        self.client(target, node, Channel::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &PeerNode) -> PeerClient {
        self.client(target, node, Channel::Control)
    }
}

pub(super) fn unreachable(error: &io::Error) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::new(error))
}

pub(super) fn broken(error: &io::Error) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(error))
}

/// Opens connections to one peer.
#[derive(Clone, Debug)]
pub(super) struct Dialer {
    transport: Transport,
    target: u64,
    address: String,
}

impl Dialer {
    /// A kept connection, unless the membership has named another disk for the peer meanwhile.
    pub(super) fn take(&self, slot: &Slot) -> Option<PeerConnection> {
        let kept = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        let members = &self.transport.local.members;
        kept.filter(|kept| members.check(self.target, &kept.incarnation).is_ok())
    }

    pub(super) async fn connect(&self, channel: Channel) -> Result<PeerConnection, io::Error> {
        let Transport { net, local, .. } = &self.transport;
        peer::connect(net, local, self.target, &self.address, channel).await
    }
}

impl PeerClient {
    async fn connect(&self, channel: Channel) -> Result<PeerConnection, io::Error> {
        self.dialer.connect(channel).await
    }

    /// One request and its answer on the control connection.
    async fn call(
        &mut self,
        frame: &Bytes,
        answer: Kind,
        limit: Duration,
    ) -> Result<Bytes, RPCError<TypeConfig>> {
        let work = async {
            let mut connection = match self.dialer.take(&self.control) {
                Some(connection) => connection,
                None => self
                    .connect(Channel::Control)
                    .await
                    .map_err(|e| unreachable(&e))?,
            };
            let body = connection
                .call(frame, answer)
                .await
                .map_err(|e| broken(&e))?;
            *self.control.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
            Ok(body)
        };
        match timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(unreachable(&io::Error::new(
                io::ErrorKind::TimedOut,
                "no answer",
            ))),
        }
    }
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut responses = self.stream_append(stream::iter([request]), option).await?;
        match responses.next().await {
            Some(result) => result.map(AppendEntriesResponse::from),
            None => Err(broken(&io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        async move {
            let (sender, receiver) = mpsc::channel(RESPONSES_MAX);
            let work = pump(
                self.dialer.clone(),
                self.channel,
                input,
                sender,
                Arc::clone(&self.stream),
            );
            tokio::spawn(work);
            let responses = stream::unfold(receiver, |mut receiver| async move {
                receiver.recv().await.map(|item| (item, receiver))
            });
            Ok(responses.boxed())
        }
        .boxed()
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let frame = wire::encode_vote(Kind::Vote, &request);
        let body = self
            .call(&frame, Kind::VoteResult, option.hard_ttl())
            .await?;
        wire::decode_vote_result(body).map_err(|error| broken(&error))
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        // The vote of a leader stands for a question about that leader, who is dead for certain.
        if !request.vote.committed && !self.dialer.transport.patience.is_over().await {
            let reason =
                io::Error::other("this node was late itself; the leader may not be silent");
            return Err(unreachable(&reason));
        }
        let frame = wire::encode_vote(Kind::PreVote, &request);
        let body = self
            .call(&frame, Kind::VoteResult, option.hard_ttl())
            .await?;
        wire::decode_vote_result(body).map_err(|error| broken(&error))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let work = self.send_snapshot(vote, snapshot.snapshot.bytes);
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            result = work => result.map_err(|error| StreamingError::Unreachable(Unreachable::new(&error))),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let limit = option.hard_ttl().max(HEARTBEAT_FLOOR);
        let answer = if *request.to_node_id() == self.dialer.target {
            self.take_over(&request, 0, limit).await
        } else {
            self.transfer(&request, limit).await
        };
        answer
            .map(Ok)
            .map_err(|reason| RPCError::Network(NetworkError::from_string(reason)))
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(BACKOFF)))
    }
}

/// Shortest limit of a transfer request: the target first waits for its own log flush.
const HEARTBEAT_FLOOR: Duration = Duration::from_millis(500);

impl PeerClient {
    /// Asks whether the peer may lead; the reason why not. `stalls`: see
    /// [`candidate::encode_question`].
    pub(super) async fn may_lead(&mut self, stalls: u8, limit: Duration) -> Result<(), String> {
        let question = candidate::encode_question(stalls);
        let answer = self.call(&question, Kind::MayLeadResult, limit).await;
        let target = self.dialer.target;
        let body = answer.map_err(|error| format!("ask node {target}: {error}"))?;
        candidate::decode_answer(&body)
    }

    /// Asks once more, and then the peer to take over; the reason why it does not.
    pub(super) async fn take_over(
        &mut self,
        request: &TransferLeaderRequest<TypeConfig>,
        stalls: u8,
        limit: Duration,
    ) -> Result<(), String> {
        self.may_lead(stalls, limit).await?;
        self.transfer(request, limit).await
    }

    async fn transfer(
        &mut self,
        request: &TransferLeaderRequest<TypeConfig>,
        limit: Duration,
    ) -> Result<(), String> {
        let frame = wire::encode_transfer(request);
        let answer = self.call(&frame, Kind::TransferResult, limit).await;
        let target = self.dialer.target;
        let body = answer.map_err(|error| format!("tell node {target}: {error}"))?;
        candidate::decode_answer(&body)
    }

    async fn send_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Bytes,
    ) -> Result<SnapshotResponse<TypeConfig>, io::Error> {
        let timed_out = |_| io::Error::new(io::ErrorKind::TimedOut, "snapshot transfer stalled");
        let mut connection = self.connect(Channel::Control).await?;
        let begin = wire::encode_snapshot_begin(&vote, snapshot.len() as u64);
        connection.writer.send(&begin).await?;
        let answer = timeout(SNAPSHOT_STEP_TIMEOUT, connection.reader.next());
        match answer.await.map_err(timed_out)?? {
            Some((Kind::SnapshotReady, _)) => {}
            Some((Kind::SnapshotResult, body)) => {
                return Ok(SnapshotResponse::new(wire::decode_vote_only(body)?));
            }
            Some(_) => return Err(wire::malformed("unexpected")),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        for chunk in snapshot.chunks(part_bytes()) {
            let frame = wire::encode_raw(Kind::SnapshotChunk, chunk);
            let write = connection.writer.send_within(SNAPSHOT_STEP_TIMEOUT, &frame);
            write.await?;
        }
        let answer = connection.reader.expect(Kind::SnapshotResult);
        let body = timeout(SNAPSHOT_STEP_TIMEOUT, answer)
            .await
            .map_err(timed_out)??;
        Ok(SnapshotResponse::new(wire::decode_vote_only(body)?))
    }
}

/// A simulation has small snapshots, and wants many parts all the same.
fn part_bytes() -> usize {
    simulated(|simulation| simulation.snapshot_part_bytes())
        .flatten()
        .unwrap_or(SNAPSHOT_CHUNK_BYTES)
}

#[cfg(test)]
#[path = "transport_test.rs"]
mod tests;
