//! Frames over a stream: a reader with limits, a writer task behind a bounded queue, and a small
//! client for one request at a time.
//!
//! Owns the read buffer and the write queue of a connection, nothing else: what a frame means is
//! decided by its callers. All limits are in [`crate::limits`].

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use raftmq_remoting::RemotingCommand;
use raftmq_remoting::frame::{self, FrameError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};

use crate::limits::{
    READ_AHEAD_BYTES_MAX, READ_BUFFER_BYTES_MIN, WRITE_BATCH_BYTES, WRITE_COPY_BYTES_MAX,
    WRITE_QUEUE_BYTES_MAX, WRITE_QUEUE_FRAMES_MAX, WRITE_STALL_TIMEOUT,
};
use crate::net::{Net, Stream};

/// What a frame costs in the write queue besides its body: header and bookkeeping. Unit: bytes.
const FRAME_COST_BYTES: usize = 256;

/// Frames taken from the queue at a time.
const TAKE_FRAMES: usize = 64;

/// Why no further frame can be read. The connection is to be closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// Nothing came for the idle time.
    #[error("idle for {} s", .0.as_secs())]
    Idle(Duration),
    /// The peer sends something that is no frame, or a frame above the limit.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream failed, or ended inside a frame.
    #[error("read frame: {0}")]
    Io(#[from] io::Error),
}

/// The connection takes no more frames: it failed or is being closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("connection closed")]
pub(crate) struct Closed;

/// Makes a connection of a stream: both halves, and the task that writes.
///
/// The writer task ends when every [`FrameWriter`] is dropped and the queue is written, or when
/// writing fails; awaiting its handle tells which.
#[must_use]
pub(crate) fn open(
    stream: Stream,
    idle_timeout: Duration,
) -> (FrameReader, FrameWriter, JoinHandle<io::Result<()>>) {
    let (read, write) = tokio::io::split(stream);
    let (sender, receiver) = mpsc::channel(WRITE_QUEUE_FRAMES_MAX);
    let budget = Arc::new(Semaphore::new(WRITE_QUEUE_BYTES_MAX));
    let task = tokio::spawn(write_frames(write, receiver, Arc::clone(&budget)));
    (
        FrameReader::new(read, idle_timeout),
        FrameWriter { sender, budget },
        task,
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
    pub(crate) async fn next(&mut self) -> Result<Option<RemotingCommand>, ReadError> {
        loop {
            if let Some(command) = frame::decode(&mut self.buffer)? {
                return Ok(Some(command));
            }
            if self.fill().await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(ReadError::Io(io::ErrorKind::UnexpectedEof.into()))
                };
            }
        }
    }

    /// Reads once; 0 at the end of the stream.
    async fn fill(&mut self) -> Result<usize, ReadError> {
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
                        return Err(ReadError::Idle(self.idle_timeout));
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

/// Queues frames for a connection's writer task. Clones share the queue; the connection is shut
/// down for writing when all are dropped.
#[derive(Debug, Clone)]
pub(crate) struct FrameWriter {
    sender: mpsc::Sender<Outgoing>,
    budget: Arc<Semaphore>,
}

/// A frame in the queue; its cost goes back to the budget when it is written.
#[derive(Debug)]
struct Outgoing {
    command: RemotingCommand,
    cost: u32,
}

impl FrameWriter {
    /// Queues a frame; waits while the queue is at its limit of frames or bytes. Cancel-safe: a
    /// frame whose future is dropped is not sent.
    pub(crate) async fn send(&self, command: RemotingCommand) -> Result<(), Closed> {
        let cost = cost_of(&command);
        let permit = self.budget.acquire_many(cost).await.map_err(|_| Closed)?;
        let slot = self.sender.reserve().await.map_err(|_| Closed)?;
        permit.forget();
        slot.send(Outgoing { command, cost });
        Ok(())
    }

    /// Resolves when the writer task has ended, so that a reader can stop too.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }
}

fn cost_of(command: &RemotingCommand) -> u32 {
    let cost = (command.body.len() + FRAME_COST_BYTES).min(WRITE_QUEUE_BYTES_MAX);
    u32::try_from(cost).expect("the queue's bytes fit u32")
}

/// The writer task: joins what waits into few system calls.
async fn write_frames(
    mut stream: WriteHalf<Stream>,
    mut frames: mpsc::Receiver<Outgoing>,
    budget: Arc<Semaphore>,
) -> io::Result<()> {
    let written = write_until_closed(&mut stream, &mut frames, &budget).await;
    // Senders that wait for room learn that there will be none.
    budget.close();
    match written {
        Ok(()) => stream.shutdown().await,
        Err(error) => Err(error),
    }
}

async fn write_until_closed(
    stream: &mut WriteHalf<Stream>,
    frames: &mut mpsc::Receiver<Outgoing>,
    budget: &Semaphore,
) -> io::Result<()> {
    let mut taken = Vec::with_capacity(TAKE_FRAMES);
    let mut batch = Batch::default();
    let mut cost = 0;
    while frames.recv_many(&mut taken, TAKE_FRAMES).await > 0 {
        for outgoing in taken.drain(..) {
            cost += outgoing.cost as usize;
            batch.push(&outgoing.command);
            if batch.remaining() >= WRITE_BATCH_BYTES {
                write_batch(stream, &mut batch).await?;
                budget.add_permits(std::mem::take(&mut cost));
            }
        }
        write_batch(stream, &mut batch).await?;
        budget.add_permits(std::mem::take(&mut cost));
    }
    Ok(())
}

async fn write_batch(stream: &mut WriteHalf<Stream>, batch: &mut Batch) -> io::Result<()> {
    batch.seal();
    while batch.has_remaining() {
        let write = stream.write_buf(batch);
        match tokio::time::timeout(WRITE_STALL_TIMEOUT, write).await {
            Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    // Streams other than TCP may buffer.
    stream.flush().await
}

/// Encoded frames as slices: small ones side by side in one, large bodies where they lie.
#[derive(Debug, Default)]
struct Batch {
    parts: VecDeque<Bytes>,
    parts_bytes: usize,
    tail: BytesMut,
}

impl Batch {
    fn push(&mut self, command: &RemotingCommand) {
        if command.body.len() <= WRITE_COPY_BYTES_MAX {
            frame::encode(command, &mut self.tail);
        } else {
            frame::encode_head(command, command.body.len(), &mut self.tail);
            self.seal();
            self.parts_bytes += command.body.len();
            self.parts.push_back(command.body.clone());
        }
    }

    /// Moves the side-by-side bytes behind the parts; needed before reading.
    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.parts_bytes += self.tail.len();
            self.parts.push_back(self.tail.split().freeze());
        }
    }
}

impl Buf for Batch {
    fn remaining(&self) -> usize {
        self.parts_bytes + self.tail.len()
    }

    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&[], |part| part.as_ref())
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let filled = self.parts.iter().zip(slices.iter_mut());
        filled
            .map(|(part, slice)| *slice = IoSlice::new(part))
            .count()
    }

    fn advance(&mut self, mut count: usize) {
        assert!(
            count <= self.parts_bytes,
            "advance stays inside the sealed parts"
        );
        self.parts_bytes -= count;
        while let Some(part) = self.parts.front_mut() {
            if count < part.len() {
                part.advance(count);
                return;
            }
            count -= part.len();
            self.parts.pop_front();
        }
    }
}

/// Why a call got no response.
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
    Read(#[from] ReadError),
}

/// A client connection with one request under way at a time.
#[derive(Debug)]
pub(crate) struct FrameClient {
    reader: FrameReader,
    writer: FrameWriter,
    opaque: i32,
}

impl FrameClient {
    /// Connects to `address`, a `host:port`.
    pub(crate) async fn connect(net: &dyn Net, address: &str) -> io::Result<Self> {
        let stream = net.connect(address).await?;
        let (reader, writer, _task) = open(stream, crate::limits::CONNECTION_IDLE_TIMEOUT);
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

    /// Waits until the peer closes the connection or breaks the protocol. Cancel-safe.
    pub(crate) async fn closed(&mut self) {
        while let Ok(Some(_)) = self.reader.next().await {}
    }

    async fn exchange(&mut self, request: RemotingCommand) -> Result<RemotingCommand, CallError> {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        let opaque = request.opaque;
        self.writer.send(request).await.map_err(|Closed| broken())?;
        loop {
            match self.reader.next().await? {
                Some(command) if command.is_response() && command.opaque == opaque => {
                    return Ok(command);
                }
                Some(_) => {}
                None => return Err(broken().into()),
            }
        }
    }
}

/// Runs `serve` for each connection of a listener until `stop` resolves; at most `connections_max`
/// at a time, one more is closed at once. Used by every remoting listener of the process.
pub(crate) async fn accept_loop<S, F>(
    mut listener: Box<dyn crate::net::Listener>,
    connections_max: usize,
    stop: impl Future<Output = ()>,
    mut serve: S,
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
