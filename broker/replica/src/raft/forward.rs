//! Client requests on their way from a replica to the leader, and the answers back.
//!
//! One link for each peer: a connection and a task that owns it. Requests are numbered on the link:
//! client ids (`opaque`) of different clients collide.
//!
//! ```text
//!   callers ──► queue ──► write ═══════► read ──► a task each ──► answers ──► write ═════╗
//!      ▲                                                                                 ║
//!      └── table of who waits ◄── read ◄═════════════════════════════════════════════════╝
//! ```
//!
//! At either end writing and reading go on beside each other, and this end reads whatever comes
//! without waiting for anybody: so the two ends never wait for each other both ways. Whoever waits
//! here has a deadline. It goes along with the request, in terms of the clock of the leader's end
//! (see [`clock`]), so that the leader leaves alone what nobody waits for any more.

mod clock;
mod frames;
mod serve;
#[cfg(test)]
mod tests;
mod waiting;

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{Bytes, BytesMut};
use raftmq_remoting::{RemotingCommand, frame};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep_until, timeout},
};

use self::{clock::LeaderClock, waiting::Waiting};
use super::{
    peer::{self, PeerConnection, PeerReader, PeerWriter},
    transport::Transport,
    wire::{Channel, Kind, malformed},
};

pub use self::serve::{ForwardHandler, ForwardOutcome};
pub(super) use self::{
    frames::{
        decode_answer, decode_clock, decode_request, encode_answer, encode_clock, encode_request,
    },
    serve::serve,
};

/// Requests that may wait to be written to the leader.
const QUEUE_MAX: usize = 1024;
/// Bytes of requests that may wait to be written to the leader: a few of the largest.
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Why a forwarded request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Nothing was done with the request: it may be sent elsewhere.
    #[error("the addressed node does not lead")]
    NotLeader,
    /// Nothing was done with the request: no connection to the leader.
    #[error("reach leader: {0}")]
    Unreachable(io::Error),
    /// Nothing was done with the request: it came to the leader too late.
    #[error("the request was late")]
    Late,
    /// The request was sent and no answer came: it may or may not have been carried out.
    #[error("no answer from the leader, outcome unknown")]
    Unknown,
}

pub(super) type Answer = Result<Option<RemotingCommand>, ForwardError>;

/// A request that waits to be written.
#[derive(Debug)]
struct Outgoing {
    id: u64,
    peer: SocketAddr,
    deadline: Instant,
    frame: Bytes,
    /// Its part of [`QUEUE_BYTES_MAX`].
    _room: OwnedSemaphorePermit,
}

/// Where callers leave requests for one leader.
#[derive(Clone, Debug)]
struct Link {
    queue: mpsc::Sender<Outgoing>,
    room: Arc<Semaphore>,
    waiting: Arc<Waiting>,
}

/// Sends requests to leaders. Has one link for each peer.
#[derive(Debug)]
pub struct Forwarder {
    transport: Transport,
    links: Mutex<BTreeMap<u64, Link>>,
    runtime: tokio::runtime::Handle,
}

impl Forwarder {
    /// A forwarder whose links live on `runtime`.
    pub fn new(transport: Transport, runtime: tokio::runtime::Handle) -> Self {
        Self {
            transport,
            links: Mutex::default(),
            runtime,
        }
    }

    /// Sends `command` of the client at `peer` to `leader` and waits for its answer, until the
    /// deadline, or until `superseded` is ready: a leader that is paused or cut off does not answer
    /// and does not close the connection either. May be dropped at any time: what was not written by
    /// then never is.
    pub async fn forward(
        &self,
        (leader, address): (u64, &str),
        (peer, command): (SocketAddr, &RemotingCommand),
        superseded: impl Future<Output = ()>,
        deadline: Instant,
    ) -> Answer {
        let mut bytes = BytesMut::new();
        frame::encode(command, &mut bytes);
        let link = self.link(leader, address);
        let Some(mut waiter) = link.waiting.begin() else {
            return Err(ForwardError::Unreachable(
                io::ErrorKind::ConnectionReset.into(),
            ));
        };
        let request = (waiter.id(), peer, bytes.freeze());
        let work = async {
            link.enqueue(request, deadline).await;
            waiter.answer().await
        };
        let nothing_done = tokio::select! {
            biased;
            answer = work => return answer,
            () = superseded => ForwardError::NotLeader,
            () = sleep_until(deadline) => ForwardError::Unreachable(io::ErrorKind::TimedOut.into()),
        };
        waiter.give_up(nothing_done)
    }

    /// The link to `leader`; a new one dials in its own task, once for all who wait for it.
    fn link(&self, leader: u64, address: &str) -> Link {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&leader)
            && !link.waiting.is_closed()
        {
            return link.clone();
        }
        let (queue, requests) = mpsc::channel(QUEUE_MAX);
        let link = Link {
            queue,
            room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)),
            waiting: Arc::default(),
        };
        let open = waiting::CloseOnDrop(Arc::clone(&link.waiting));
        let (transport, address) = (self.transport.clone(), address.to_owned());
        self.runtime.spawn(async move {
            let ended = run_link(&transport, (leader, &address), requests, &open.0).await;
            if let Err(error) = ended {
                tracing::debug!(leader, %error, "link to the leader ends");
            }
        });
        links.insert(leader, link.clone());
        link
    }
}

impl Link {
    /// Queues a request. When the link ends meanwhile, the table says so.
    async fn enqueue(&self, (id, peer, frame): (u64, SocketAddr, Bytes), deadline: Instant) {
        let bytes = u32::try_from(frame.len().min(QUEUE_BYTES_MAX)).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(bytes).await else {
            return;
        };
        let outgoing = Outgoing {
            id,
            peer,
            deadline,
            frame,
            _room: room,
        };
        let _ = self.queue.send(outgoing).await;
    }
}

/// Dials, then moves requests and answers until the connection breaks, is silent for too long, or the
/// forwarder goes away.
async fn run_link(
    transport: &Transport,
    (leader, address): (u64, &str),
    requests: mpsc::Receiver<Outgoing>,
    waiting: &Waiting,
) -> Result<(), io::Error> {
    let Transport { net, local, .. } = transport;
    let connection = peer::connect(net, local, leader, address, Channel::Forward).await?;
    let PeerConnection {
        mut reader, writer, ..
    } = connection;
    let first = timeout(clock::SILENCE_MAX, reader.expect(Kind::ForwardClock)).await??;
    let clock = LeaderClock::new(decode_clock(first)?);
    // Two futures that are polled beside each other; neither is dropped before the link ends.
    tokio::select! {
        biased;
        ended = read_answers(reader, waiting, &clock) => ended,
        ended = write_requests(writer, requests, waiting, &clock) => ended,
    }
}

async fn read_answers(
    mut reader: PeerReader,
    waiting: &Waiting,
    clock: &LeaderClock,
) -> Result<(), io::Error> {
    loop {
        match timeout(clock::SILENCE_MAX, reader.next()).await?? {
            Some((Kind::ForwardClock, body)) => clock.set(decode_clock(body)?),
            Some((Kind::ForwardResult, body)) => {
                let (id, answer) = decode_answer(body)?;
                waiting.complete(id, answer);
            }
            Some(_) => return Err(malformed("forward result")),
            None => return Ok(()),
        }
    }
}

async fn write_requests(
    mut writer: PeerWriter,
    mut requests: mpsc::Receiver<Outgoing>,
    waiting: &Waiting,
    clock: &LeaderClock,
) -> Result<(), io::Error> {
    while let Some(request) = requests.recv().await {
        if waiting.begin_write(request.id) {
            let deadline = clock.at(request.deadline);
            let frame = encode_request(request.id, deadline, request.peer, &request.frame);
            writer.send(&frame).await?;
        }
    }
    Ok(())
}
