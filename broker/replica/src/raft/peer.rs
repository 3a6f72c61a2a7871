//! One connection between two brokers: hello, then frames both ways.
//!
//! Whoever holds a half of a connection may be dropped at any await. A reader keeps what has come of
//! a frame. A writer whose frame was cut off writes no more: the other side would take the next
//! frame for the rest of that one.

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    time::{Instant, timeout, timeout_at},
};

use super::{
    intake::{Held, Intake},
    members::{self, Members},
    wire::{self, Channel, Hello, HelloAnswer, Kind, WIRE_VERSION},
};
use crate::{
    config::RaftConfig,
    metrics::Metrics,
    net::{Net, Stream},
};

/// Longest time from connect to the end of the hello. Unit: time. A healthy peer needs a round trip.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time that the other side may take to take in what is written at once, unless the caller
/// says otherwise. A healthy one reads all the time; the largest frame is 16 MiB and a little, which
/// a network of 100 Mbit/s carries in 1.4 s.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time from the first byte of a frame to its last, so that nobody holds memory by sending
/// slowly. As long as the most patient sender takes for one frame, a piece of a snapshot.
const FRAME_TIMEOUT: Duration = Duration::from_secs(30);
/// Room made in the read buffer before each read.
const READ_BYTES: usize = 64 << 10;
/// Room below which more is made.
const READ_BYTES_MIN: usize = 4 << 10;
/// Most that the read buffer grows ahead of the bytes that have come, whatever the length of a
/// frame announces. The usual append request (1 MiB of entries) still gets its room at once.
const READ_AHEAD_BYTES_MAX: usize = (1 << 20) + (64 << 10);

/// Who this node is, as told in every hello.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub cluster: String,
    pub group: String,
    pub id: u64,
    /// Incarnation of this node's data folder.
    pub incarnation: String,
    /// What the membership says about everybody else's.
    pub members: Arc<Members>,
}

impl Local {
    /// A node that knows no members yet.
    pub(crate) fn new(
        cluster: &str,
        raft: &RaftConfig,
        incarnation: &str,
        metrics: &Metrics,
    ) -> Self {
        Self {
            cluster: cluster.to_owned(),
            group: raft.group.clone(),
            id: raft.self_id,
            incarnation: incarnation.to_owned(),
            members: Arc::new(Members::new(metrics.raft.refused_peers_total.clone())),
        }
    }

    /// Node `id` of the group that unit tests have.
    #[cfg(test)]
    pub(super) fn of_test(id: u64) -> Self {
        let refused = prometheus::IntCounter::new("r", "R.").expect("a valid name");
        Self {
            cluster: "c".into(),
            group: "g".into(),
            id,
            incarnation: format!("disk-{id}"),
            members: Arc::new(Members::new(refused)),
        }
    }
}

/// Receiving half of a connection.
pub(crate) struct PeerReader {
    half: ReadHalf<Stream>,
    buffer: BytesMut,
    /// When the caller began to wait for the rest of the frame in `buffer`.
    begun: Option<Instant>,
    /// Nothing but a hello, or its answer, is read before it.
    introduced: bool,
    /// Its part of what unfinished frames of all connections may hold; `None` = not counted.
    held: Option<Held>,
}

/// Sending half of a connection.
pub(crate) struct PeerWriter {
    half: WriteHalf<Stream>,
    /// A write has begun and not ended. It stays so when the write fails or its future is dropped.
    is_cut: bool,
}

/// Both halves.
#[derive(Debug)]
pub(crate) struct PeerConnection {
    pub reader: PeerReader,
    pub writer: PeerWriter,
    /// Incarnation of the other side's data folder, as it told.
    pub incarnation: String,
}

impl std::fmt::Debug for PeerReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerReader")
            .field("buffered", &self.buffer.len())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for PeerWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerWriter")
    }
}

impl PeerReader {
    /// The next frame; `None` = the peer closed between frames. Cancel-safe. Waits as long as it
    /// takes for a frame to begin, and [`FRAME_TIMEOUT`] for the rest of it.
    pub(crate) async fn next(&mut self) -> Result<Option<(Kind, Bytes)>, io::Error> {
        loop {
            if !self.introduced {
                wire::check_introduction(&self.buffer)?;
            }
            if let Some(frame) = wire::take_frame(&mut self.buffer)? {
                self.begun = None;
                self.count()?;
                return Ok(Some(frame));
            }
            if !self.buffer.is_empty() {
                self.begun.get_or_insert_with(Instant::now);
            }
            self.count()?;
            self.make_room();
            let read = self.half.read_buf(&mut self.buffer);
            let read = match self.begun {
                Some(begun) => timeout_at(begun + FRAME_TIMEOUT, read)
                    .await
                    .map_err(|_| timed_out("the rest of a frame does not come"))?,
                None => read.await,
            };
            if read? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    /// Counts what has come of a large frame.
    fn count(&mut self) -> Result<(), io::Error> {
        let bytes = self.buffer.len();
        let Some(held) = &mut self.held else {
            return Ok(());
        };
        held.set(if bytes > READ_AHEAD_BYTES_MAX {
            bytes
        } else {
            0
        })
    }

    /// Room for the next read. A new block only when this one is nearly used up: payloads in the
    /// log's tail keep their block alive.
    fn make_room(&mut self) {
        let ahead = wire::missing_bytes(&self.buffer).min(READ_AHEAD_BYTES_MAX);
        if self.buffer.capacity() - self.buffer.len() < ahead.max(READ_BYTES_MIN) {
            let usual = if self.introduced {
                READ_BYTES
            } else {
                READ_BYTES_MIN
            };
            self.buffer.reserve(ahead.max(usual));
        }
    }

    /// The next frame, which must be of `kind`.
    pub(crate) async fn expect(&mut self, kind: Kind) -> Result<Bytes, io::Error> {
        match self.next().await? {
            Some((found, body)) if found == kind => Ok(body),
            Some(_) => Err(wire::malformed("unexpected")),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl PeerWriter {
    /// Writes whole frames, within [`WRITE_TIMEOUT`].
    pub(crate) async fn send(&mut self, frames: &[u8]) -> Result<(), io::Error> {
        self.send_within(WRITE_TIMEOUT, frames).await
    }

    /// Writes whole frames within `limit`. After an error, or when this future was dropped before its
    /// end, every further write is refused.
    pub(crate) async fn send_within(
        &mut self,
        limit: Duration,
        frames: &[u8],
    ) -> Result<(), io::Error> {
        if self.is_cut {
            let reason = "a frame to this peer was cut off before";
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, reason));
        }
        self.is_cut = true;
        let write = async {
            self.half.write_all(frames).await?;
            self.half.flush().await
        };
        timeout(limit, write)
            .await
            .map_err(|_| timed_out("the peer does not take what is sent"))??;
        self.is_cut = false;
        Ok(())
    }
}

impl PeerConnection {
    pub(crate) fn new(stream: Stream) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self {
            reader: PeerReader {
                half: read,
                buffer: BytesMut::new(),
                begun: None,
                introduced: false,
                held: None,
            },
            writer: PeerWriter {
                half: write,
                is_cut: false,
            },
            incarnation: String::new(),
        }
    }

    /// From now on frames of every kind are read.
    fn introduced(mut self, incarnation: String) -> Self {
        self.reader.introduced = true;
        self.incarnation = incarnation;
        self
    }

    /// Counts what unfinished frames on this connection hold.
    pub(super) fn count_in(&mut self, intake: &Arc<Intake>) {
        self.reader.held = Some(intake.held());
    }

    /// Sends one frame and waits for the answer, without an end; the caller sets one.
    pub(crate) async fn call(&mut self, frame: &[u8], answer: Kind) -> Result<Bytes, io::Error> {
        self.writer.send(frame).await?;
        self.reader.expect(answer).await
    }
}

/// Connects to node `to` at `address` and introduces this node.
///
/// # Errors
/// When it cannot be reached, does not take this node, or is not the member it should be.
pub(crate) async fn connect(
    net: &Arc<dyn Net>,
    local: &Local,
    to: u64,
    address: &str,
    channel: Channel,
) -> Result<PeerConnection, io::Error> {
    let expects = local.members.named(to);
    let (connection, refusal) = introduce(net, local, (to, address), channel, expects).await?;
    let incarnation = &connection.incarnation;
    if let Err(reason) = local.members.check(to, incarnation) {
        local.members.refuse(to, incarnation, &reason);
        return Err(io::Error::other(reason));
    }
    taken(connection, (to, address), &refusal)
}

/// As [`connect`], to a node that says it leads: it may have come back with another disk than the
/// membership names that this node knows.
///
/// # Errors
/// When it cannot be reached or does not take this node.
pub(crate) async fn connect_leader(
    net: &Arc<dyn Net>,
    local: &Local,
    to: u64,
    address: &str,
    channel: Channel,
) -> Result<PeerConnection, io::Error> {
    let anybody = String::new();
    let (connection, refusal) = introduce(net, local, (to, address), channel, anybody).await?;
    taken(connection, (to, address), &refusal)
}

fn taken(
    connection: PeerConnection,
    (to, address): (u64, &str),
    refusal: &str,
) -> Result<PeerConnection, io::Error> {
    match refusal {
        "" => Ok(connection),
        _ => Err(io::Error::other(format!(
            "node {to} at {address} refuses: {refusal}"
        ))),
    }
}

/// A connection whose peer has told its incarnation, and why it refuses this node; empty if it does
/// not.
async fn introduce(
    net: &Arc<dyn Net>,
    local: &Local,
    (to, address): (u64, &str),
    channel: Channel,
    expects: String,
) -> Result<(PeerConnection, String), io::Error> {
    let hello = Hello {
        version: WIRE_VERSION,
        cluster: local.cluster.clone(),
        group: local.group.clone(),
        from: local.id,
        to,
        channel,
        incarnation: local.incarnation.clone(),
        expects,
        address: local.members.known().remove(&local.id).unwrap_or_default(),
    };
    let work = async {
        let mut connection = PeerConnection::new(net.connect(address).await?);
        let body = serde_json::to_vec(&hello).map_err(io::Error::other)?;
        let answer = connection
            .call(&wire::encode_raw(Kind::Hello, &body), Kind::HelloResult)
            .await?;
        let HelloAnswer {
            incarnation,
            refusal,
        } = read_answer(&answer);
        Ok((connection.introduced(incarnation), refusal))
    };
    timeout(HELLO_TIMEOUT, work)
        .await
        .map_err(|_| timed_out(&format!("connect node {to} at {address}: no answer")))?
}

fn timed_out(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

/// The answer of a peer; versions without incarnations send nothing or the refusal as text.
pub(super) fn read_answer(body: &[u8]) -> HelloAnswer {
    if body.is_empty() {
        return HelloAnswer::default();
    }
    serde_json::from_slice(body).unwrap_or_else(|_| HelloAnswer {
        incarnation: String::new(),
        refusal: String::from_utf8_lossy(body).into_owned(),
    })
}

/// Takes the hello of a new connection and answers it. An error closes the connection.
pub(crate) async fn accept(
    stream: Stream,
    local: &Local,
) -> Result<(PeerConnection, Hello), io::Error> {
    accept_unless(stream, local, |_| None).await
}

/// As [`accept`], but some hellos are refused for the reason that `refuse` gives.
pub(crate) async fn accept_unless(
    stream: Stream,
    local: &Local,
    refuse: impl Fn(&Hello) -> Option<String>,
) -> Result<(PeerConnection, Hello), io::Error> {
    let mut connection = PeerConnection::new(stream);
    let body = timeout(HELLO_TIMEOUT, connection.reader.expect(Kind::Hello))
        .await
        .map_err(|_| timed_out("no hello from a peer"))??;
    let hello: Hello = serde_json::from_slice(&body).map_err(|_| wire::malformed("hello"))?;
    let stranger = refusal(&hello, local);
    if stranger.is_none() {
        local.members.meet(hello.from, &hello.address);
    }
    let refusal = stranger.or_else(|| refuse(&hello));
    let answer = answer_body(&hello, local, refusal.as_deref())?;
    connection
        .writer
        .send_within(HELLO_TIMEOUT, &wire::encode_raw(Kind::HelloResult, &answer))
        .await?;
    match refusal {
        None => Ok((connection.introduced(hello.incarnation.clone()), hello)),
        Some(reason) => Err(io::Error::other(format!(
            "refused node {}: {reason}",
            hello.from
        ))),
    }
}

/// The body of the answer to `hello`, in the form its sender understands.
fn answer_body(hello: &Hello, local: &Local, refusal: Option<&str>) -> Result<Vec<u8>, io::Error> {
    let refusal = refusal.unwrap_or_default();
    if hello.incarnation.is_empty() {
        return Ok(refusal.as_bytes().to_vec());
    }
    let answer = HelloAnswer {
        incarnation: local.incarnation.clone(),
        refusal: refusal.to_owned(),
    };
    serde_json::to_vec(&answer).map_err(io::Error::other)
}

/// Why a connection that introduced itself with `hello` is not for this node.
fn refusal(hello: &Hello, local: &Local) -> Option<String> {
    if hello.version != WIRE_VERSION {
        return Some(format!(
            "peer protocol {} here, {} there",
            WIRE_VERSION, hello.version
        ));
    }
    if hello.cluster != local.cluster || hello.group != local.group {
        return Some(format!(
            "this is group {} of cluster {}, not group {} of cluster {}; check dLegerPeers",
            local.group, local.cluster, hello.group, hello.cluster
        ));
    }
    if hello.to != local.id {
        return Some(format!(
            "this is node {}, not node {}; check dLegerPeers and dLegerSelfId",
            local.id, hello.to
        ));
    }
    if hello.from == local.id && hello.channel != Channel::Forward {
        return Some(format!("node id {} is used twice", local.id));
    }
    disk_refusal(hello, local)
}

/// Refuses a member that returned with another disk, and a peer that takes this node for one.
fn disk_refusal(hello: &Hello, local: &Local) -> Option<String> {
    let known = local.members.check(hello.from, &hello.incarnation);
    if let (true, Err(reason)) = (hello.channel.is_for_members_only(), known) {
        local
            .members
            .refuse(hello.from, &hello.incarnation, &reason);
        return Some(reason);
    }
    match members::compare(local.id, &hello.expects, &local.incarnation) {
        Ok(()) => {
            if hello.expects == local.incarnation {
                local.members.taken();
            }
            None
        }
        Err(reason) => {
            local.members.refused(&reason);
            Some(reason)
        }
    }
}

#[cfg(test)]
#[path = "peer_test.rs"]
mod tests;
