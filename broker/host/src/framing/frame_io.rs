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

use bytes::{Buf, BytesMut};
use raftmq_remoting::RemotingCommand;
use raftmq_remoting::frame::{self, Announced, FrameError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};

use crate::limits::{
    FRAME_TIMEOUT, READ_BUFFER_BYTES_FIRST, READ_BUFFER_BYTES_MIN, READ_SPARE_PART,
    REFUSAL_LOG_INTERVAL, WRITE_BUFFER_BYTES_KEPT, WRITE_BYTES_PER_SECOND_MIN, WRITE_STALL_TIMEOUT,
};
#[cfg(any(test, feature = "testing"))]
use crate::net::Net;
use crate::net::Stream;

/// Why a connection cannot go on. It is to be closed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// Nothing came for the idle time.
    #[error("idle for {} s", .0.as_secs())]
    Idle(Duration),
    /// A frame has begun and does not end.
    #[error("a frame has not come within {} s", .0.as_secs())]
    Slow(Duration),
    /// There is no memory for a frame, and not even for its header to answer it.
    #[error("no memory for a frame")]
    NoRoom,
    /// The peer sends something that is no frame, or a frame above the limit.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream failed, stalled, or ended inside a frame.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Both ends of a connection. A reader gives up after `idle_timeout` without a byte.
#[must_use]
pub fn open(stream: Stream, idle_timeout: Duration) -> (FrameReader, FrameWriter) {
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
pub struct FrameReader {
    stream: ReadHalf<Stream>,
    buffer: BytesMut,
    /// The buffer was made for a large frame.
    is_large: bool,
    /// Size of a buffer for what is not large.
    read_bytes: usize,
    idle_timeout: Duration,
    /// Fires no later than the connection is too old or its frame is. Set anew only when it fires
    /// or when it would be too late for a frame, not at each read.
    alarm: Pin<Box<Sleep>>,
    last_read: Instant,
    /// Since when the frame that the buffer begins with is waited for.
    begun: Option<Instant>,
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
            is_large: false,
            read_bytes: READ_BUFFER_BYTES_FIRST,
            idle_timeout,
            alarm: Box::pin(tokio::time::sleep(idle_timeout)),
            last_read: Instant::now(),
            begun: None,
        }
    }

    /// The next frame; `None` when the peer closed the connection between frames. Cancel-safe.
    #[cfg(any(test, feature = "testing"))]
    pub async fn next(&mut self) -> Result<Option<RemotingCommand>, ConnectionError> {
        loop {
            if let Some(command) = self.decode()? {
                return Ok(Some(command));
            }
            let announced = self.announced()?.map_or(0, |frame| frame.frame_bytes);
            let missing = announced.saturating_sub(self.buffered_bytes());
            if !self.more(missing).await? {
                return Ok(None);
            }
        }
    }

    /// What is known of the frame that comes next.
    pub(super) fn announced(&self) -> Result<Option<Announced>, FrameError> {
        frame::announced(&self.buffer)
    }

    /// Bytes that are there.
    pub(super) fn buffered_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The next frame, if it is there.
    pub(super) fn decode(&mut self) -> Result<Option<RemotingCommand>, FrameError> {
        let command = frame::decode(&mut self.buffer)?;
        if command.is_some() {
            self.begun = None;
        }
        Ok(command)
    }

    /// The next frame without its body, if that much is there. It stays in the buffer.
    pub(super) fn decode_head(&self) -> Result<Option<RemotingCommand>, FrameError> {
        frame::decode_head(&self.buffer)
    }

    /// Throws at most `bytes` bytes away; how many.
    pub(super) fn skip(&mut self, bytes: usize) -> usize {
        let skipped = bytes.min(self.buffer.len());
        self.buffer.advance(skipped);
        skipped
    }

    /// The frame that was skipped has ended.
    pub(super) fn end_frame(&mut self) {
        self.begun = None;
    }

    /// The time for the frame begins now: until now it was not read.
    pub(super) fn begin_frame(&mut self) {
        let begun = Instant::now();
        self.begun = Some(begun);
        if self.alarm.deadline() > begun + FRAME_TIMEOUT {
            self.alarm.as_mut().reset(begun + FRAME_TIMEOUT);
        }
    }

    /// Reads once, with room for `wanted` bytes at least; false when the peer closed the connection
    /// between frames. Cancel-safe.
    pub(super) async fn more(&mut self, wanted: usize) -> Result<bool, ConnectionError> {
        if self.fill(wanted).await? > 0 {
            return Ok(true);
        }
        if self.buffer.is_empty() && self.begun.is_none() {
            return Ok(false);
        }
        Err(ConnectionError::Io(io::ErrorKind::UnexpectedEof.into()))
    }

    /// Throws away what still comes until the peer closes too, at most for `limit`. Closing with
    /// unread bytes would reset the connection, and the peer might lose what it has not read yet.
    pub async fn discard(&mut self, limit: Duration) {
        let discard = async {
            while self.fill(0).await.is_ok_and(|read| read > 0) {
                self.buffer.clear();
            }
        };
        // Whoever does not close by then is cut.
        let _ = tokio::time::timeout(limit, discard).await;
    }

    /// Makes room for a read of a frame of which `wanted` bytes are missing.
    fn reserve(&mut self, wanted: usize) {
        if self.is_large && self.buffer.is_empty() {
            // What was large goes with its frame.
            self.buffer = BytesMut::new();
            self.is_large = false;
        }
        let spare = self.buffer.capacity() - self.buffer.len();
        if spare < wanted.max(self.read_bytes / READ_SPARE_PART) {
            self.is_large |= wanted > READ_BUFFER_BYTES_MIN;
            self.buffer.reserve(wanted.max(self.read_bytes));
        }
    }

    /// Reads once; 0 at the end of the stream.
    async fn fill(&mut self, wanted: usize) -> Result<usize, ConnectionError> {
        if self.begun.is_none() && !self.buffer.is_empty() {
            self.begin_frame();
        }
        self.reserve(wanted);
        loop {
            tokio::select! {
                biased;
                read = self.stream.read_buf(&mut self.buffer) => {
                    let read = read?;
                    if self.buffer.len() == self.buffer.capacity() {
                        // More came than there was room for.
                        self.read_bytes = READ_BUFFER_BYTES_MIN;
                    }
                    self.last_read = Instant::now();
                    self.check_frame()?;
                    return Ok(read);
                }
                () = &mut self.alarm => {
                    self.check_frame()?;
                    let idle = self.last_read + self.idle_timeout;
                    if idle <= Instant::now() {
                        return Err(ConnectionError::Idle(self.idle_timeout));
                    }
                    let frame = self.begun.map(|begun| begun + FRAME_TIMEOUT);
                    self.alarm.as_mut().reset(frame.map_or(idle, |frame| frame.min(idle)));
                }
            }
        }
    }

    /// A peer that sends a byte now and then must not keep a frame open for ever.
    fn check_frame(&self) -> Result<(), ConnectionError> {
        let is_late = |begun: Instant| begun.elapsed() >= FRAME_TIMEOUT;
        match self.begun.is_some_and(is_late) {
            true => Err(ConnectionError::Slow(FRAME_TIMEOUT)),
            false => Ok(()),
        }
    }
}

/// Writes frames to a connection. A peer that takes not one byte for [`WRITE_STALL_TIMEOUT`] is
/// an error, and so is one that takes less than [`WRITE_BYTES_PER_SECOND_MIN`] beside it.
pub struct FrameWriter {
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
    #[cfg(any(test, feature = "testing"))]
    pub async fn send(&mut self, command: &RemotingCommand) -> io::Result<()> {
        let mut buffer = BytesMut::new();
        frame::encode(command, &mut buffer);
        self.write(&mut buffer).await
    }

    /// Writes everything in `frames` and empties it; its memory stays unless it is large.
    /// Not cancel-safe.
    pub async fn write(&mut self, frames: &mut BytesMut) -> io::Result<()> {
        let mut written = 0;
        let least_seconds = (frames.len() / WRITE_BYTES_PER_SECOND_MIN) as u64;
        let end = Instant::now() + self.stall_timeout + Duration::from_secs(least_seconds);
        while let Some(rest) = frames.get(written..).filter(|rest| !rest.is_empty()) {
            let stalled = end.min(Instant::now() + self.stall_timeout);
            match tokio::time::timeout_at(stalled, self.half.write(rest)).await {
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
    pub async fn finish(mut self) -> io::Result<()> {
        self.half.shutdown().await
    }
}

/// Why a call got no response.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug, thiserror::Error)]
pub enum CallError {
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
#[cfg(any(test, feature = "testing"))]
#[derive(Debug)]
pub struct FrameClient {
    reader: FrameReader,
    writer: FrameWriter,
    opaque: i32,
}

#[cfg(any(test, feature = "testing"))]
impl FrameClient {
    /// Connects to `address`, a `host:port`.
    pub async fn connect(net: &dyn Net, address: &str) -> io::Result<Self> {
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
    pub async fn call(
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
pub async fn accept_loop<S, F>(
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
    let mut refusals = Refusals::default();
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
                    if let Some(count) = refusals.count(Instant::now()) {
                        let peer = accepted.peer;
                        tracing::warn!(%peer, count, connections_max, "connections refused: too many");
                    }
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

/// Which refused connections are logged: the first, then one in [`REFUSAL_LOG_INTERVAL`].
#[derive(Debug, Default)]
struct Refusals {
    not_logged: u64,
    logged: Option<Instant>,
}

impl Refusals {
    /// Counts one; how many a line about it has to tell of, if there is to be one.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.not_logged += 1;
        let is_due = |logged: Instant| now.duration_since(logged) >= REFUSAL_LOG_INTERVAL;
        if !self.logged.is_none_or(is_due) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.not_logged))
    }
}

#[cfg(test)]
#[path = "frame_io_test.rs"]
mod tests;
