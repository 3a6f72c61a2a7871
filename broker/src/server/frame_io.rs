//! Frames over a stream: a reader and a writer with limits. Every remoting connection that somebody
//! opened to this process is made of these.
//!
//! Owns the read buffer and the write buffer of a connection, nothing else: what a frame means is
//! decided by its callers. All limits are in [`crate::limits`].

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use raftmq_remoting::RemotingCommand;
use raftmq_remoting::frame::{self, FrameError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};

use crate::limits::{
    READ_AHEAD_BYTES_MAX, READ_BUFFER_BYTES_MIN, WRITE_BUFFER_BYTES_KEPT, WRITE_STALL_TIMEOUT,
};
#[cfg(test)]
use crate::net::Net;
use crate::net::Stream;

/// Why a connection cannot go on. It is to be closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// Nothing came for the idle time.
    #[error("idle for {} s", .0.as_secs())]
    Idle(Duration),
    /// The peer sends something that is no frame, or a frame above the limit.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream failed, stalled, or ended inside a frame.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Both ends of a connection. A reader gives up after `idle_timeout` without a byte.
#[must_use]
pub(crate) fn open(stream: Stream, idle_timeout: Duration) -> (FrameReader, FrameWriter) {
    let (read, write) = tokio::io::split(stream);
    (
        FrameReader::new(read, idle_timeout),
        FrameWriter {
            half: write,
            stall_timeout: WRITE_STALL_TIMEOUT,
        },
    )
}

/// Reads frames from a connection.
pub(crate) struct FrameReader {
    stream: ReadHalf<Stream>,
    buffer: BytesMut,
    idle_timeout: Duration,
    /// Set anew only when it fires, not at each read.
    idle: Pin<Box<Sleep>>,
    last_read: Instant,
}

impl fmt::Debug for FrameReader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let buffered = self.buffer.len();
        formatter
            .debug_struct("FrameReader")
            .field("buffered", &buffered)
            .finish_non_exhaustive()
    }
}

impl FrameReader {
    fn new(stream: ReadHalf<Stream>, idle_timeout: Duration) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            idle_timeout,
            idle: Box::pin(tokio::time::sleep(idle_timeout)),
            last_read: Instant::now(),
        }
    }

    /// The next frame; `None` when the peer closed the connection between frames. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<RemotingCommand>, ConnectionError> {
        loop {
            if let Some(command) = frame::decode(&mut self.buffer)? {
                return Ok(Some(command));
            }
            if self.fill().await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(ConnectionError::Io(io::ErrorKind::UnexpectedEof.into()))
                };
            }
        }
    }

    /// Throws away what still comes until the peer closes too, at most for `limit`. Closing with
    /// unread bytes would reset the connection, and the peer might lose what it has not read yet.
    pub(crate) async fn discard(&mut self, limit: Duration) {
        let discard = async {
            while self.fill().await.is_ok_and(|read| read > 0) {
                self.buffer.clear();
            }
        };
        // Whoever does not close by then is cut.
        let _ = tokio::time::timeout(limit, discard).await;
    }

    /// Reads once; 0 at the end of the stream.
    async fn fill(&mut self) -> Result<usize, ConnectionError> {
        self.buffer.reserve(room_for(&self.buffer));
        loop {
            tokio::select! {
                biased;
                read = self.stream.read_buf(&mut self.buffer) => {
                    self.last_read = Instant::now();
                    return Ok(read?);
                }
                () = &mut self.idle => {
                    let deadline = self.last_read + self.idle_timeout;
                    if deadline <= Instant::now() {
                        return Err(ConnectionError::Idle(self.idle_timeout));
                    }
                    self.idle.as_mut().reset(deadline);
                }
            }
        }
    }
}

/// Bytes to reserve: enough to finish the frame that has begun, within the read-ahead limit.
fn room_for(buffer: &BytesMut) -> usize {
    let announced = buffer
        .first_chunk()
        .map_or(0, |length| u32::from_be_bytes(*length) as usize);
    let missing = announced
        .saturating_add(size_of::<u32>())
        .saturating_sub(buffer.len());
    missing.clamp(READ_BUFFER_BYTES_MIN, READ_AHEAD_BYTES_MAX)
}

/// Writes frames to a connection. A peer that takes not one byte for [`WRITE_STALL_TIMEOUT`] is
/// an error.
pub(crate) struct FrameWriter {
    half: WriteHalf<Stream>,
    stall_timeout: Duration,
}

impl fmt::Debug for FrameWriter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("FrameWriter")
    }
}

impl FrameWriter {
    /// Writes one frame. Not cancel-safe: a dropped future may leave half a frame.
    pub(crate) async fn send(&mut self, command: &RemotingCommand) -> io::Result<()> {
        let mut buffer = BytesMut::new();
        frame::encode(command, &mut buffer);
        self.write(&mut buffer).await
    }

    /// Writes everything in `frames` and empties it; its memory stays unless it is large.
    /// Not cancel-safe.
    pub(crate) async fn write(&mut self, frames: &mut BytesMut) -> io::Result<()> {
        let mut written = 0;
        while let Some(rest) = frames.get(written..).filter(|rest| !rest.is_empty()) {
            match tokio::time::timeout(self.stall_timeout, self.half.write(rest)).await {
                Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(Ok(count)) => written += count,
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        if frames.capacity() > WRITE_BUFFER_BYTES_KEPT {
            *frames = BytesMut::new();
        }
        frames.clear();
        // Streams other than TCP may buffer.
        self.half.flush().await
    }

    /// Tells the peer that no more frames come.
    pub(crate) async fn finish(mut self) -> io::Result<()> {
        self.half.shutdown().await
    }
}

/// Why a call got no response.
#[cfg(test)]
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// No response in time.
    #[error("no response in {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The connection could not be made or failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer sent something that is no frame.
    #[error(transparent)]
    Read(#[from] ConnectionError),
}

/// A client connection with one request under way at a time, for tests.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct FrameClient {
    reader: FrameReader,
    writer: FrameWriter,
    opaque: i32,
}

#[cfg(test)]
impl FrameClient {
    /// Connects to `address`, a `host:port`.
    pub(crate) async fn connect(net: &dyn Net, address: &str) -> io::Result<Self> {
        let stream = net.connect(address).await?;
        let (reader, writer) = open(stream, crate::limits::CONNECTION_IDLE_TIMEOUT);
        Ok(Self {
            reader,
            writer,
            opaque: 0,
        })
    }

    /// Sends `request` under an opaque of its own and waits for the response to it. Frames that
    /// the peer sends by itself are dropped. After an error the connection is of no more use.
    pub(crate) async fn call(
        &mut self,
        mut request: RemotingCommand,
        timeout: Duration,
    ) -> Result<RemotingCommand, CallError> {
        self.opaque = self.opaque.wrapping_add(1);
        request.opaque = self.opaque;
        match tokio::time::timeout(timeout, self.exchange(request)).await {
            Ok(response) => response,
            Err(_) => Err(CallError::Timeout(timeout)),
        }
    }

    async fn exchange(&mut self, request: RemotingCommand) -> Result<RemotingCommand, CallError> {
        let opaque = request.opaque;
        self.writer.send(&request).await?;
        loop {
            match self.reader.next().await? {
                Some(command) if command.is_response() && command.opaque == opaque => {
                    return Ok(command);
                }
                Some(_) => {}
                None => return Err(io::Error::from(io::ErrorKind::BrokenPipe).into()),
            }
        }
    }
}

/// Runs `serve` for each connection of a listener until `stop` resolves; at most `connections_max`
/// at a time, one more is closed at once and told to `refused`. Used by every remoting listener of
/// the process.
pub(crate) async fn accept_loop<S, F>(
    mut listener: Box<dyn crate::net::Listener>,
    connections_max: usize,
    stop: impl Future<Output = ()>,
    mut serve: S,
    refused: impl Fn(),
) -> io::Result<()>
where
    S: FnMut(crate::net::Accepted) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(connections_max));
    let mut tasks = tokio::task::JoinSet::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            biased;
            () = &mut stop => break,
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "connection task failed");
                }
            }
            accepted = listener.accept() => {
                let accepted = accepted?;
                let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                    tracing::warn!(peer = %accepted.peer, connections_max, "connection refused: too many");
                    refused();
                    continue;
                };
                let connection = serve(accepted);
                tasks.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
        }
    }
    // No new connections while the open ones finish; each has its own view of `stop`.
    drop(listener);
    while tasks.join_next().await.is_some() {}
    Ok(())
}

#[cfg(test)]
#[path = "frame_io_test.rs"]
mod tests;
