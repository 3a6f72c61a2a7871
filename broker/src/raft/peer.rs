//! One connection between two brokers: hello, then frames both ways.

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    time::timeout,
};

use super::{
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
}

/// Receiving half of a connection.
pub(crate) struct PeerReader {
    half: ReadHalf<Stream>,
    buffer: BytesMut,
}

/// Sending half of a connection.
pub(crate) struct PeerWriter {
    half: WriteHalf<Stream>,
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
    /// The next frame; `None` = the peer closed between frames. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<(Kind, Bytes)>, io::Error> {
        loop {
            if let Some(frame) = wire::take_frame(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            // A new block only when this one is nearly used up: payloads in the log's tail keep
            // their block alive.
            let ahead = wire::missing_bytes(&self.buffer).min(READ_AHEAD_BYTES_MAX);
            if self.buffer.capacity() - self.buffer.len() < ahead.max(READ_BYTES_MIN) {
                self.buffer.reserve(ahead.max(READ_BYTES));
            }
            if self.half.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
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
    /// Writes whole frames.
    pub(crate) async fn send(&mut self, frames: &[u8]) -> Result<(), io::Error> {
        self.half.write_all(frames).await?;
        self.half.flush().await
    }
}

impl PeerConnection {
    pub(crate) fn new(stream: Stream) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self {
            reader: PeerReader {
                half: read,
                buffer: BytesMut::new(),
            },
            writer: PeerWriter { half: write },
            incarnation: String::new(),
        }
    }

    /// Sends one frame and waits for the answer.
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
    let hello = Hello {
        version: WIRE_VERSION,
        cluster: local.cluster.clone(),
        group: local.group.clone(),
        from: local.id,
        to,
        channel,
        incarnation: local.incarnation.clone(),
        expects: local.members.named(to),
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
        if let Err(reason) = local.members.check(to, &incarnation) {
            local.members.refuse(to, &incarnation, &reason);
            return Err(io::Error::other(reason));
        }
        if refusal.is_empty() {
            connection.incarnation = incarnation;
            return Ok(connection);
        }
        Err(io::Error::other(format!(
            "node {to} at {address} refuses: {refusal}"
        )))
    };
    timeout(HELLO_TIMEOUT, work).await.map_err(|_| {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!("connect node {to} at {address}: no answer"),
        )
    })?
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
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no hello from a peer"))??;
    let hello: Hello = serde_json::from_slice(&body).map_err(|_| wire::malformed("hello"))?;
    let refusal = refusal(&hello, local).or_else(|| refuse(&hello));
    let answer = answer_body(&hello, local, refusal.as_deref())?;
    connection
        .writer
        .send(&wire::encode_raw(Kind::HelloResult, &answer))
        .await?;
    match refusal {
        None => {
            connection.incarnation.clone_from(&hello.incarnation);
            Ok((connection, hello))
        }
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
    if let Err(reason) = local.members.check(hello.from, &hello.incarnation) {
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
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use futures::FutureExt as _;
    use prometheus::IntCounter;

    use super::*;
    use crate::raft::types::{LogId, Membership, PeerNode, StoredMembership};

    fn local() -> Local {
        Local {
            cluster: "c".into(),
            group: "g".into(),
            id: 1,
            incarnation: "disk-1".into(),
            members: Arc::new(Members::new(IntCounter::new("r", "R.").unwrap())),
        }
    }

    /// A node whose membership names `incarnation` for node 2.
    fn local_that_names(incarnation: &str) -> Local {
        let local = local();
        let node = PeerNode {
            address: "b:2".into(),
            incarnation: incarnation.into(),
        };
        let membership = Membership::new(vec![BTreeSet::from([2])], BTreeMap::from([(2, node)]));
        let id = Some(LogId::new_term_index(1, 1));
        let stored = StoredMembership::new(id, membership.unwrap());
        local.members.set(&Arc::new(stored));
        local
    }

    fn hello() -> Hello {
        Hello {
            version: WIRE_VERSION,
            cluster: "c".into(),
            group: "g".into(),
            from: 2,
            to: 1,
            channel: Channel::Append,
            incarnation: "disk-2".into(),
            expects: String::new(),
        }
    }

    #[test]
    fn only_a_peer_of_the_same_group_that_means_this_node_is_let_in() {
        assert_eq!(refusal(&hello(), &local()), None);
        assert!(
            refusal(
                &Hello {
                    version: 99,
                    ..hello()
                },
                &local()
            )
            .is_some()
        );
        assert!(
            refusal(
                &Hello {
                    cluster: "x".into(),
                    ..hello()
                },
                &local()
            )
            .is_some()
        );
        assert!(
            refusal(
                &Hello {
                    group: "x".into(),
                    ..hello()
                },
                &local()
            )
            .is_some()
        );
        assert!(refusal(&Hello { to: 3, ..hello() }, &local()).is_some());
        assert!(refusal(&Hello { from: 1, ..hello() }, &local()).is_some());
    }

    #[test]
    fn a_member_that_returned_with_another_disk_is_refused_from_both_sides() {
        assert_eq!(refusal(&hello(), &local_that_names("disk-2")), None);
        let reason = refusal(&hello(), &local_that_names("disk-9")).unwrap();
        assert!(
            reason.starts_with("node 2 returned with another disk:"),
            "{reason}"
        );
        let expecting = |expects: &str| Hello {
            expects: expects.into(),
            ..hello()
        };
        let local = local();
        assert_eq!(refusal(&expecting("disk-1"), &local), None);
        let reason = refusal(&expecting("disk-0"), &local).unwrap();
        assert!(
            reason.starts_with("node 1 returned with another disk:"),
            "{reason}"
        );
        assert_eq!(*local.members.refused_by().borrow(), Some(reason));
    }

    #[test]
    fn an_answer_has_the_form_that_the_sender_of_the_hello_knows() {
        let old = Hello {
            incarnation: String::new(),
            ..hello()
        };
        let body = |hello: &Hello, refusal| answer_body(hello, &local(), refusal).unwrap();
        assert_eq!(body(&old, None), b"");
        assert_eq!(body(&old, Some("no")), b"no");
        for refusal in [None, Some("no")] {
            let answer = read_answer(&body(&hello(), refusal));
            assert_eq!(answer.incarnation, "disk-1");
            assert_eq!(answer.refusal, refusal.unwrap_or_default());
        }
        assert_eq!(read_answer(b""), HelloAnswer::default());
        assert_eq!(read_answer(b"no").refusal, "no");
    }

    #[tokio::test]
    async fn a_frame_gets_memory_as_its_bytes_arrive_not_as_it_announces() {
        let (here, there) = tokio::io::duplex(64 << 10);
        let mut reader = PeerConnection::new(Box::new(here)).reader;
        let mut sender = there;
        let announced = u32::try_from(wire::PEER_FRAME_BYTES_MAX).unwrap();
        sender.write_all(&announced.to_be_bytes()).await.unwrap();
        sender.write_all(&[Kind::Append as u8; 100]).await.unwrap();
        // The frame never comes; what was sent is read and the reader waits for more.
        assert!(reader.next().now_or_never().is_none());
        assert_eq!(reader.buffer.len(), 104);
        assert!(reader.buffer.capacity() <= 2 * READ_AHEAD_BYTES_MAX);
    }

    #[tokio::test]
    async fn frames_larger_than_the_read_ahead_arrive_whole() {
        let (here, there) = tokio::io::duplex(64 << 10);
        let mut reader = PeerConnection::new(Box::new(here)).reader;
        let mut sender = there;
        let bodies = [3 << 20, 0, (1 << 20) + 7, 100].map(|bytes: usize| {
            let body: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
            body
        });
        let sent = bodies.clone();
        let sending = tokio::spawn(async move {
            for body in sent {
                let frame = wire::encode_raw(Kind::SnapshotChunk, &body);
                sender.write_all(&frame).await.unwrap();
            }
            sender
        });
        for body in bodies {
            assert!(reader.expect(Kind::SnapshotChunk).await.unwrap() == body);
        }
        drop(sending.await.unwrap());
        assert!(reader.next().await.unwrap().is_none());
    }
}
