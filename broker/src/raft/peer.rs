//! One connection between two brokers: hello, then frames both ways.

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    time::timeout,
};

use super::wire::{self, Channel, Hello, Kind, WIRE_VERSION};
use crate::net::{Net, Stream};

/// Longest time from connect to the end of the hello. Unit: time. A healthy peer needs a round trip.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// Room made in the read buffer before each read.
const READ_BYTES: usize = 64 << 10;
/// Room below which more is made.
const READ_BYTES_MIN: usize = 4 << 10;

/// Who this node is, as told in every hello.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub cluster: String,
    pub group: String,
    pub id: u64,
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
            if self.buffer.capacity() - self.buffer.len() < READ_BYTES_MIN {
                self.buffer.reserve(READ_BYTES);
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
        }
    }

    /// Sends one frame and waits for the answer.
    pub(crate) async fn call(&mut self, frame: &[u8], answer: Kind) -> Result<Bytes, io::Error> {
        self.writer.send(frame).await?;
        self.reader.expect(answer).await
    }
}

/// Connects to node `to` at `address` and introduces this node.
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
    };
    let work = async {
        let mut connection = PeerConnection::new(net.connect(address).await?);
        let body = serde_json::to_vec(&hello).map_err(io::Error::other)?;
        let answer = connection
            .call(&wire::encode_raw(Kind::Hello, &body), Kind::HelloResult)
            .await?;
        if answer.is_empty() {
            Ok(connection)
        } else {
            let reason = String::from_utf8_lossy(&answer);
            Err(io::Error::other(format!(
                "node {to} at {address} refuses: {reason}"
            )))
        }
    };
    timeout(HELLO_TIMEOUT, work).await.map_err(|_| {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!("connect node {to} at {address}: no answer"),
        )
    })?
}

/// Takes the hello of a new connection and answers it. An error closes the connection.
pub(crate) async fn accept(
    stream: Stream,
    local: &Local,
) -> Result<(PeerConnection, Hello), io::Error> {
    let mut connection = PeerConnection::new(stream);
    let body = timeout(HELLO_TIMEOUT, connection.reader.expect(Kind::Hello))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no hello from a peer"))??;
    let hello: Hello = serde_json::from_slice(&body).map_err(|_| wire::malformed("hello"))?;
    match refusal(&hello, local) {
        None => {
            connection
                .writer
                .send(&wire::encode_raw(Kind::HelloResult, &[]))
                .await?;
            Ok((connection, hello))
        }
        Some(reason) => {
            let answer = wire::encode_raw(Kind::HelloResult, reason.as_bytes());
            connection.writer.send(&answer).await?;
            Err(io::Error::other(format!(
                "refused node {}: {reason}",
                hello.from
            )))
        }
    }
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
    (hello.from == local.id && hello.channel != Channel::Forward)
        .then(|| format!("node id {} is used twice", local.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> Local {
        Local {
            cluster: "c".into(),
            group: "g".into(),
            id: 1,
        }
    }

    fn hello() -> Hello {
        Hello {
            version: WIRE_VERSION,
            cluster: "c".into(),
            group: "g".into(),
            from: 2,
            to: 1,
            channel: Channel::Append,
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
}
