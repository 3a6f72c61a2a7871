//! One client connection of the broker port: a reader that dispatches requests and a writer that
//! drains answers. Answers may come in any order and from any task.

use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use raftmq_remoting::{RemotingCommand, frame};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::timeout,
};

use super::frame_io::{self, ConnectionError, FrameReader, FrameWriter};
use crate::{limits::CONNECTION_IDLE_TIMEOUT, net::Stream};

/// Bytes of requests of one connection that may be unanswered. Beyond it, the connection is not
/// read until some are answered: TCP then slows the client down.
const IN_FLIGHT_BYTES_MAX: usize = 32 << 20;
/// Requests of one connection that may be unanswered.
const IN_FLIGHT_REQUESTS_MAX: usize = 8192;
/// Answer bytes that may wait to be written before the connection is not read any more.
const OUT_BYTES_SOFT: usize = 8 << 20;
/// Answer bytes at which a client that does not read is cut off.
const OUT_BYTES_HARD: usize = 64 << 20;
/// What an unanswered request holds besides its body: header and bookkeeping. Unit: bytes.
const REQUEST_COST_BYTES: usize = 512;
/// How long a client gets to close a connection whose every request is answered.
const LINGER_TIMEOUT: Duration = Duration::from_millis(300);

/// A connected client. Owns the answer buffer and the table of requests sent to the client; each
/// lock is taken for an append or a lookup only.
#[derive(Debug)]
pub struct Connection {
    /// Number of this connection in this process.
    pub id: u64,
    /// Address of the client.
    pub peer: SocketAddr,
    out: Mutex<BytesMut>,
    /// Something was put into `out`, or the connection is to close.
    wake_writer: Notify,
    /// Requests were answered or answers written.
    wake_reader: Notify,
    closed: AtomicBool,
    /// Nothing more is read; the writer ends when everything is answered.
    finishing: AtomicBool,
    in_flight_bytes: AtomicUsize,
    in_flight_requests: AtomicUsize,
    next_opaque: AtomicI32,
    calls: Mutex<HashMap<i32, oneshot::Sender<RemotingCommand>>>,
}

/// Counts a request as unanswered until it is dropped.
#[derive(Debug)]
pub struct InFlight {
    connection: Arc<Connection>,
    bytes: usize,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.connection
            .in_flight_bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
        self.connection
            .in_flight_requests
            .fetch_sub(1, Ordering::Relaxed);
        self.connection.wake_reader.notify_one();
        if self.connection.finishing.load(Ordering::SeqCst) {
            self.connection.wake_writer.notify_one();
        }
    }
}

impl Connection {
    fn new(id: u64, peer: SocketAddr) -> Self {
        Self {
            id,
            peer,
            out: Mutex::default(),
            wake_writer: Notify::new(),
            wake_reader: Notify::new(),
            closed: AtomicBool::new(false),
            finishing: AtomicBool::new(false),
            in_flight_bytes: AtomicUsize::new(0),
            in_flight_requests: AtomicUsize::new(0),
            next_opaque: AtomicI32::new(0),
            calls: Mutex::default(),
        }
    }

    /// Queues `command` to be written. Never waits; a client that does not read is cut off.
    pub fn send(&self, command: &RemotingCommand) {
        let waiting = {
            let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
            frame::encode(command, &mut out);
            out.len()
        };
        if waiting > OUT_BYTES_HARD {
            tracing::warn!(peer = %self.peer, waiting, "close connection: client does not read");
            self.close();
        }
        self.wake_writer.notify_one();
    }

    /// Sends a request to the client and waits for its answer, at most `limit`.
    pub async fn call(
        &self,
        mut command: RemotingCommand,
        limit: Duration,
    ) -> Option<RemotingCommand> {
        let opaque = self.next_opaque.fetch_add(1, Ordering::Relaxed);
        command.opaque = opaque;
        let (sender, receiver) = oneshot::channel();
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(opaque, sender);
        self.send(&command);
        let answer = timeout(limit, receiver).await;
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&opaque);
        answer.ok()?.ok()
    }

    /// Closes the connection; what waits to be written is dropped.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.wake_writer.notify_one();
        self.wake_reader.notify_one();
    }

    /// Whether the connection is closed or about to be.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Counts a request of `bytes` bytes as unanswered.
    pub(crate) fn begin(self: &Arc<Self>, bytes: usize) -> InFlight {
        self.in_flight_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.in_flight_requests.fetch_add(1, Ordering::Relaxed);
        InFlight {
            connection: Arc::clone(self),
            bytes,
        }
    }

    /// Reads no more; see [`Self::is_finished`].
    fn finish(&self) {
        self.finishing.store(true, Ordering::SeqCst);
        self.wake_writer.notify_one();
    }

    /// Whether nothing more is read and everything that was read is answered.
    fn is_finished(&self) -> bool {
        self.finishing.load(Ordering::SeqCst)
            && self.in_flight_requests.load(Ordering::SeqCst) == 0
            && self
                .out
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_empty()
    }

    fn must_wait(&self) -> bool {
        self.in_flight_bytes.load(Ordering::Relaxed) > IN_FLIGHT_BYTES_MAX
            || self.in_flight_requests.load(Ordering::Relaxed) > IN_FLIGHT_REQUESTS_MAX
            || self
                .out
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .len()
                > OUT_BYTES_SOFT
    }

    fn complete(&self, response: RemotingCommand) {
        let call = self
            .calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&response.opaque);
        if let Some(call) = call {
            // The caller may have given up at this very moment.
            let _ = call.send(response);
        }
    }
}

/// Serves one connection until it closes, or until `stopping` turns true and what was read by then
/// is answered. `dispatch` must not block; it gets every request.
pub(crate) async fn serve(
    id: u64,
    peer: SocketAddr,
    stream: Stream,
    mut stopping: watch::Receiver<bool>,
    dispatch: impl FnMut(&Arc<Connection>, RemotingCommand, InFlight),
) {
    let connection = Arc::new(Connection::new(id, peer));
    let (mut reader, writer) = frame_io::open(stream, CONNECTION_IDLE_TIMEOUT);
    let mut write = pin!(write(&connection, writer));
    let ended = tokio::select! {
        biased;
        result = read(&connection, &mut reader, dispatch) => Some(result),
        result = &mut write => Some(result),
        // A sender that is gone means the same as a stop.
        _ = stopping.wait_for(|stop| *stop) => None,
    };
    let result = match ended {
        Some(result) => result,
        None => {
            connection.finish();
            let result = write.await;
            reader.discard(LINGER_TIMEOUT).await;
            result
        }
    };
    connection.closed.store(true, Ordering::SeqCst);
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "client connection ends");
    }
}

async fn read(
    connection: &Arc<Connection>,
    reader: &mut FrameReader,
    mut dispatch: impl FnMut(&Arc<Connection>, RemotingCommand, InFlight),
) -> Result<(), ConnectionError> {
    // Parked pulls are answered within the idle time, so a silent connection is a dead one.
    while let Some(command) = reader.next().await? {
        if command.is_response() {
            connection.complete(command);
            continue;
        }
        let in_flight = connection.begin(command.body.len() + REQUEST_COST_BYTES);
        dispatch(connection, command, in_flight);
        while connection.must_wait() {
            connection.wake_reader.notified().await;
            if connection.is_closed() {
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn write(
    connection: &Arc<Connection>,
    mut writer: FrameWriter,
) -> Result<(), ConnectionError> {
    let mut batch = BytesMut::new();
    while !connection.is_closed() {
        std::mem::swap(
            &mut *connection
                .out
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
            &mut batch,
        );
        if batch.is_empty() {
            if connection.is_finished() {
                return Ok(writer.finish().await?);
            }
            connection.wake_writer.notified().await;
            continue;
        }
        writer.write(&mut batch).await?;
        connection.wake_reader.notify_one();
    }
    Ok(())
}
