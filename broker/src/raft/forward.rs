//! Client requests on their way from a replica to the leader, and the answers back.
//!
//! One connection for each peer, multiplexed by an id of its own: client ids (`opaque`) of
//! different clients collide.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raftmq_remoting::{RemotingCommand, frame};
use tokio::sync::{mpsc, oneshot};

use super::{
    peer::{self, PeerConnection, PeerReader, PeerWriter},
    server::ForwardOutcome,
    transport::Transport,
    wire::{Channel, Kind, malformed, put_frame},
};

/// Requests that may wait to be written to the leader.
const QUEUE_MAX: usize = 1024;

/// The leader answered.
const ANSWER: u8 = 0;
/// Handled; the request wants no answer.
const NO_ANSWER: u8 = 1;
/// The addressed node is not the serving leader; nothing was done.
const NOT_LEADER: u8 = 2;

/// Why a forwarded request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Nothing was done with the request: it may be sent elsewhere.
    #[error("the addressed node does not lead")]
    NotLeader,
    /// Nothing was done with the request: no connection to the leader.
    #[error("reach leader: {0}")]
    Unreachable(io::Error),
    /// The connection broke after the request was sent: it may or may not have been carried out.
    #[error("connection to the leader broke, outcome unknown")]
    Unknown,
}

pub(super) type Answer = Result<Option<RemotingCommand>, ForwardError>;

#[derive(Debug)]
struct Outgoing {
    peer: SocketAddr,
    frame: Bytes,
    answer: oneshot::Sender<Answer>,
}

/// Sends requests to leaders. Owns one connection task for each peer.
#[derive(Debug)]
pub(crate) struct Forwarder {
    transport: Transport,
    links: Mutex<HashMap<u64, mpsc::Sender<Outgoing>>>,
    runtime: tokio::runtime::Handle,
}

impl Forwarder {
    /// A forwarder whose connections live on `runtime`.
    pub(crate) fn new(transport: Transport, runtime: tokio::runtime::Handle) -> Self {
        Self {
            transport,
            links: Mutex::default(),
            runtime,
        }
    }

    /// Sends `command` of the client at `peer` to `leader` and waits for its answer, until
    /// `superseded` is ready: a leader that is paused or cut off does not answer and does not close
    /// the connection either.
    pub(crate) async fn forward(
        &self,
        leader: u64,
        address: &str,
        peer: SocketAddr,
        command: &RemotingCommand,
        superseded: impl Future<Output = ()>,
    ) -> Answer {
        let mut superseded = std::pin::pin!(superseded);
        let mut bytes = BytesMut::new();
        frame::encode(command, &mut bytes);
        let link = tokio::select! {
            biased;
            link = self.link(leader, address) => link.map_err(ForwardError::Unreachable)?,
            () = &mut superseded => return Err(ForwardError::NotLeader),
        };
        let (answer, answered) = oneshot::channel();
        let outgoing = Outgoing {
            peer,
            frame: bytes.freeze(),
            answer,
        };
        if link.send(outgoing).await.is_err() {
            self.drop_link(leader);
            return Err(ForwardError::Unreachable(
                io::ErrorKind::ConnectionReset.into(),
            ));
        }
        tokio::select! {
            biased;
            answer = answered => answer.unwrap_or(Err(ForwardError::Unknown)),
            () = &mut superseded => Err(ForwardError::Unknown),
        }
    }

    async fn link(&self, leader: u64, address: &str) -> Result<mpsc::Sender<Outgoing>, io::Error> {
        let open = self
            .links
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&leader)
            .cloned();
        if let Some(link) = open.filter(|link| !link.is_closed()) {
            return Ok(link);
        }
        let Transport { net, local } = &self.transport;
        let connection = peer::connect(net, local, leader, address, Channel::Forward).await?;
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        self.runtime.spawn(run_link(connection, receiver));
        // Two requests may connect at once; both links work, the later one is kept.
        self.links
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(leader, sender.clone());
        Ok(sender)
    }

    fn drop_link(&self, leader: u64) {
        self.links
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&leader);
    }
}

/// Moves requests and answers until the connection breaks or the forwarder goes away.
async fn run_link(connection: PeerConnection, mut requests: mpsc::Receiver<Outgoing>) {
    let PeerConnection {
        mut reader,
        mut writer,
        ..
    } = connection;
    let mut waiting: HashMap<u64, oneshot::Sender<Answer>> = HashMap::new();
    let result = exchange(&mut reader, &mut writer, &mut requests, &mut waiting).await;
    if let Err(error) = result {
        tracing::debug!(%error, "forward connection ends");
    }
    // Dropping the senders in `waiting` reads as "outcome unknown"; requests still queued were
    // never sent.
    requests.close();
    while let Some(outgoing) = requests.recv().await {
        let reset = io::ErrorKind::ConnectionReset.into();
        let _ = outgoing.answer.send(Err(ForwardError::Unreachable(reset)));
    }
}

async fn exchange(
    reader: &mut PeerReader,
    writer: &mut PeerWriter,
    requests: &mut mpsc::Receiver<Outgoing>,
    waiting: &mut HashMap<u64, oneshot::Sender<Answer>>,
) -> Result<(), io::Error> {
    let mut next_id = 0;
    loop {
        tokio::select! {
            biased;
            frame = reader.next() => {
                let Some((Kind::ForwardResult, body)) = frame? else { return Ok(()) };
                let (id, answer) = decode_answer(body)?;
                if let Some(sender) = waiting.remove(&id) {
                    // The client may have gone away meanwhile.
                    let _ = sender.send(answer);
                }
            }
            outgoing = requests.recv() => {
                let Some(Outgoing { peer, frame, answer }) = outgoing else { return Ok(()) };
                waiting.insert(next_id, answer);
                writer.send(&encode_request(next_id, peer, &frame)).await?;
                next_id += 1;
            }
        }
    }
}

pub(super) fn encode_request(id: u64, peer: SocketAddr, frame: &[u8]) -> Bytes {
    let peer = peer.to_string();
    let mut out = BytesMut::with_capacity(64 + frame.len());
    put_frame(&mut out, Kind::Forward, |out| {
        out.put_u64_le(id);
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

/// Id, client address and command of a forwarded request.
pub(super) fn decode_request(
    mut body: Bytes,
) -> Result<(u64, SocketAddr, RemotingCommand), io::Error> {
    let id = body.try_get_u64_le().map_err(|_| malformed("forward"))?;
    let length = usize::from(body.try_get_u8().map_err(|_| malformed("forward"))?);
    if body.len() < length {
        return Err(malformed("forward"));
    }
    let peer = body.split_to(length);
    let peer = std::str::from_utf8(&peer)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| malformed("forward"))?;
    Ok((id, peer, decode_command(body)?))
}

/// Frame of the answer to request `id`.
pub(super) fn encode_answer(id: u64, answer: ForwardOutcome) -> Bytes {
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
        }
    });
    out.freeze()
}

pub(super) fn decode_answer(mut body: Bytes) -> Result<(u64, Answer), io::Error> {
    let id = body
        .try_get_u64_le()
        .map_err(|_| malformed("forward result"))?;
    let answer = match body.try_get_u8().map_err(|_| malformed("forward result"))? {
        ANSWER => Ok(Some(decode_command(body)?)),
        NO_ANSWER => Ok(None),
        NOT_LEADER => Err(ForwardError::NotLeader),
        _ => return Err(malformed("forward result")),
    };
    Ok((id, answer))
}
