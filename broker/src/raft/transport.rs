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

use bytes::{Bytes, BytesMut};
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
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep_until, timeout},
};

use super::{
    candidate,
    machine::SnapshotData,
    peer::{self, Local, PeerConnection, PeerReader, PeerWriter},
    pulse::Patience,
    types::{PeerNode, Snapshot, TypeConfig, Vote},
    wire::{self, Channel, Kind},
};
use crate::{host::simulated, net::Net};

/// Responses that may wait for openraft to take them.
const RESPONSES_MAX: usize = 128;
/// Longest wait for the answer to an append that is under way before the connection counts as
/// dead. A healthy follower answers within a disk sync.
const APPEND_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a peer that did not answer is tried again. Short: a restarted follower should be
/// back in the quorum at once, and a refused connect on a LAN costs next to nothing.
const BACKOFF: Duration = Duration::from_millis(100);
/// Bytes of append requests after which no further one joins a write; a write buffer that grew
/// beyond it is given back.
const APPEND_WRITE_BYTES: usize = 512 << 10;
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
type Slot = Arc<Mutex<Option<PeerConnection>>>;

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

fn unreachable(error: &io::Error) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::new(error))
}

fn broken(error: &io::Error) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(error))
}

/// Opens connections to one peer.
#[derive(Clone, Debug)]
struct Dialer {
    transport: Transport,
    target: u64,
    address: String,
}

impl Dialer {
    /// A kept connection, unless the membership has named another disk for the peer meanwhile.
    fn take(&self, slot: &Slot) -> Option<PeerConnection> {
        let kept = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        let members = &self.transport.local.members;
        kept.filter(|kept| members.check(self.target, &kept.incarnation).is_ok())
    }

    async fn connect(&self, channel: Channel) -> Result<PeerConnection, io::Error> {
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

type ResponseSender = mpsc::Sender<Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

/// Moves requests and responses of one append stream until either side ends. The connection goes
/// back to `slot` only when every request was answered; otherwise stray answers would follow.
async fn pump<S>(dialer: Dialer, channel: Channel, input: S, responses: ResponseSender, slot: Slot)
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    let result = tokio::select! {
        biased;
        () = responses.closed() => return,
        result = run_stream(&dialer, channel, input, &responses, &slot) => result,
    };
    if let Err(error) = result {
        // openraft may have dropped the stream meanwhile; then nobody needs to know.
        let _ = responses.send(Err(error)).await;
    }
}

async fn run_stream<S>(
    dialer: &Dialer,
    channel: Channel,
    input: S,
    responses: &ResponseSender,
    slot: &Slot,
) -> Result<(), RPCError<TypeConfig>>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    // The first request before the connection: openraft sleeps in this stream when it backs off
    // from a peer that does not answer. Dialing first would dial without a pause.
    let mut input = Box::pin(input.peekable());
    if input.as_mut().peek().await.is_none() {
        return Ok(());
    }
    let PeerConnection {
        mut reader,
        mut writer,
        incarnation,
    } = match dialer.take(slot) {
        Some(connection) => connection,
        None => dialer
            .connect(channel)
            .await
            .map_err(|error| unreachable(&error))?,
    };
    let reusable = exchange(&mut reader, &mut writer, input, responses)
        .await
        .map_err(|error| broken(&error))?;
    if reusable {
        let connection = PeerConnection {
            reader,
            writer,
            incarnation,
        };
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }
    Ok(())
}

/// Returns whether the connection can be used again. Requests are written and answers read beside each
/// other: were the answers left unread during a write, both ends could wait for each other.
async fn exchange<S>(
    reader: &mut PeerReader,
    writer: &mut PeerWriter,
    input: S,
    responses: &ResponseSender,
) -> Result<bool, io::Error>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    let under_way = UnderWay::default();
    tokio::select! {
        biased;
        reusable = read_answers(reader, responses, &under_way) => reusable,
        // When all is written, the answers are still to come.
        Err(error) = write_requests(writer, input, &under_way) => Err(error),
    }
}

async fn write_requests<S>(
    writer: &mut PeerWriter,
    input: S,
    under_way: &UnderWay,
) -> Result<(), io::Error>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    // Fused: the look-ahead below may meet the end before the outer loop does.
    let mut input = input.fuse();
    let mut frames = BytesMut::new();
    while let Some(request) = input.next().await {
        let mut count = 1;
        wire::put_append(&mut frames, &request)?;
        drop(request);
        // Requests that are ready together leave in one write.
        while frames.len() < APPEND_WRITE_BYTES
            && let Some(Some(request)) = input.next().now_or_never()
        {
            wire::put_append(&mut frames, &request)?;
            count += 1;
        }
        under_way.begin(count);
        writer.send(&frames).await?;
        under_way.written();
        if frames.capacity() > APPEND_WRITE_BYTES {
            frames = BytesMut::new();
        }
        frames.clear();
    }
    under_way.end();
    Ok(())
}

async fn read_answers(
    reader: &mut PeerReader,
    responses: &ResponseSender,
    under_way: &UnderWay,
) -> Result<bool, io::Error> {
    loop {
        let Progress {
            waiting,
            since,
            ended,
        } = under_way.look();
        if ended && waiting == 0 {
            return Ok(true);
        }
        tokio::select! {
            biased;
            frame = reader.expect(Kind::AppendResult), if waiting > 0 => {
                let result = wire::decode_append_result(frame?)?;
                under_way.answered();
                let failed = result.is_err();
                if responses.send(Ok(result)).await.is_err() || failed {
                    return Ok(false);
                }
            }
            () = under_way.changed.notified() => {}
            () = no_answer(since) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Ready when the answer to what was written at `since` is overdue.
async fn no_answer(since: Option<Instant>) {
    match since {
        Some(since) => sleep_until(since + APPEND_ANSWER_TIMEOUT).await,
        None => std::future::pending().await,
    }
}

/// The requests of an append stream that have no answer yet.
#[derive(Debug, Default)]
struct UnderWay {
    progress: Mutex<Progress>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    waiting: usize,
    /// When the last write or answer was complete, if there is something to wait for.
    since: Option<Instant>,
    /// Nothing more is written.
    ended: bool,
}

impl UnderWay {
    fn look(&self) -> Progress {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Answers may come from here on.
    fn begin(&self, count: usize) {
        self.change(|progress| progress.waiting += count);
        self.changed.notify_one();
    }

    fn written(&self) {
        self.change(|progress| progress.since = (progress.waiting > 0).then(Instant::now));
        self.changed.notify_one();
    }

    fn answered(&self) {
        self.change(|progress| {
            progress.waiting -= 1;
            progress.since = (progress.waiting > 0).then(Instant::now);
        });
    }

    fn end(&self) {
        self.change(|progress| progress.ended = true);
        self.changed.notify_one();
    }
}

#[cfg(test)]
#[path = "transport_test.rs"]
mod tests;
