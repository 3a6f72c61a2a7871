//! One client connection of the broker port: a reader that dispatches requests and a writer that
//! drains answers. Answers may come in any order and from any task.

use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
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

use crate::{
    budget::{Account, Holder, NoRoom, Permit, UNSENT_BYTES_MAX},
    framing::{
        frame_io::{self, ConnectionError, FrameWriter},
        intake::{Intake, Received},
    },
    handler::Refusal,
    limits::{CONNECTION_IDLE_TIMEOUT, WRITE_BUFFER_BYTES_IDLE, WRITE_BUFFER_IDLE_TIME},
    net::Stream,
};

/// Bytes that one connection may hold, with its requests and their answers. Beyond it, it is not
/// read until some are given back: TCP then slows the client down.
const HELD_BYTES_MAX: usize = 64 << 20;
/// Requests of one connection that may be unanswered.
const IN_FLIGHT_REQUESTS_MAX: usize = 8192;
/// Answer bytes at which a client that does not read is cut off. Only what was not asked for gets
/// there: the largest answer beside [`UNSENT_BYTES_MAX`] of others has 16 MiB.
const OUT_BYTES_HARD: usize = 32 << 20;
/// What a frame may hold besides its body: header and properties. Unit: bytes.
const HEAD_BYTES: usize = 4 << 10;
/// How long a client gets to close a connection whose every request is answered.
const LINGER_TIMEOUT: Duration = Duration::from_millis(300);

/// Frames that are to be written, and what they hold.
#[derive(Debug)]
struct Out {
    frames: BytesMut,
    permit: Permit,
}

impl Out {
    fn new(account: &Arc<Account>) -> Self {
        Self {
            frames: BytesMut::new(),
            permit: account.take(Holder::Answers, 0),
        }
    }

    fn push(&mut self, command: &RemotingCommand) {
        let before = self.frames.len();
        frame::encode(command, &mut self.frames);
        self.permit.grow(self.frames.len() - before);
    }
}

/// A connected client. Owns the answer buffer and the table of requests sent to the client; each
/// lock is taken for an append or a lookup only.
#[derive(Debug)]
pub struct Connection {
    /// Number of this connection in this process.
    pub id: u64,
    /// Address of the client.
    pub peer: SocketAddr,
    /// What the client holds; it also says whether the connection is closed.
    pub(crate) account: Arc<Account>,
    out: Mutex<Out>,
    /// Something was put into `out`, or the connection is to close.
    wake_writer: Notify,
    /// Nothing more is read; the writer ends when everything is answered.
    finishing: AtomicBool,
    in_flight_requests: AtomicUsize,
    next_opaque: AtomicI32,
    calls: Mutex<HashMap<i32, oneshot::Sender<RemotingCommand>>>,
}

/// Counts a request as unanswered until it is dropped.
#[derive(Debug)]
pub struct InFlight {
    connection: Arc<Connection>,
    permit: Permit,
}

impl InFlight {
    /// What the request holds is held for `holder` from now on.
    pub(crate) fn becomes(&mut self, holder: Holder) {
        self.permit.becomes(holder);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.in_flight_requests.fetch_sub(1, Ordering::SeqCst);
        // Tells whoever waits for the account.
        self.permit.clear();
        if connection.finishing.load(Ordering::SeqCst) {
            connection.wake_writer.notify_one();
        }
    }
}

impl Connection {
    fn new(id: u64, peer: SocketAddr, account: Arc<Account>) -> Self {
        Self {
            id,
            peer,
            out: Mutex::new(Out::new(&account)),
            account,
            wake_writer: Notify::new(),
            finishing: AtomicBool::new(false),
            in_flight_requests: AtomicUsize::new(0),
            next_opaque: AtomicI32::new(0),
            calls: Mutex::default(),
        }
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues `command` to be written. Never waits; a client that does not read is cut off.
    pub fn send(&self, command: &RemotingCommand) {
        if self.is_closed() {
            return;
        }
        let waiting = {
            let mut out = self.out();
            out.push(command);
            out.frames.len()
        };
        if waiting > OUT_BYTES_HARD {
            tracing::debug!(peer = %self.peer, waiting, "close connection: client does not read");
            self.close();
        }
        self.wake_writer.notify_one();
    }

    /// Sends a request to the client and waits for its answer, at most `limit`. `None` at once when
    /// there is no memory for it: nobody waits for what a client does not read.
    pub async fn call(
        &self,
        mut command: RemotingCommand,
        limit: Duration,
    ) -> Option<RemotingCommand> {
        let bytes = command.body.len() + HEAD_BYTES;
        let room = self.account.try_take(Holder::Answers, bytes)?;
        let opaque = self.next_opaque.fetch_add(1, Ordering::Relaxed);
        command.opaque = opaque;
        let (sender, receiver) = oneshot::channel();
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(opaque, sender);
        self.send(&command);
        drop(room);
        let answer = timeout(limit, receiver).await;
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&opaque);
        answer.ok()?.ok()
    }

    /// Closes the connection; what waits to be written is dropped.
    pub fn close(&self) {
        self.account.close();
        self.wake_writer.notify_one();
    }

    /// Whether the connection is closed or about to be.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.account.is_closed()
    }

    /// Counts a request as unanswered.
    fn begin(self: &Arc<Self>, permit: Permit) -> InFlight {
        self.in_flight_requests.fetch_add(1, Ordering::SeqCst);
        InFlight {
            connection: Arc::clone(self),
            permit,
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
            && self.out().frames.is_empty()
    }

    /// Whether the client may be read: it takes what it is sent, and holds not too much.
    fn may_read(&self) -> bool {
        self.account.held_bytes() <= HELD_BYTES_MAX
            && self.account.unsent_bytes() <= UNSENT_BYTES_MAX
            && self.in_flight_requests.load(Ordering::SeqCst) <= IN_FLIGHT_REQUESTS_MAX
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
/// is answered. `dispatch` must not block; it gets every request that there is memory for.
pub(crate) async fn serve(
    accepted: Accepted,
    mut stopping: watch::Receiver<bool>,
    dispatch: impl FnMut(&Arc<Connection>, RemotingCommand, InFlight),
    refused: impl Fn(),
) {
    let Accepted {
        id,
        peer,
        stream,
        account,
    } = accepted;
    let connection = Arc::new(Connection::new(id, peer, Arc::clone(&account)));
    let (reader, writer) = frame_io::open(stream, CONNECTION_IDLE_TIMEOUT);
    let mut intake = Intake::new(reader, account);
    let mut write = pin!(write(&connection, writer));
    let ended = tokio::select! {
        biased;
        result = read(&connection, &mut intake, dispatch, refused) => Some(result),
        result = &mut write => Some(result),
        // A sender that is gone means the same as a stop.
        _ = stopping.wait_for(|stop| *stop) => None,
    };
    let result = match ended {
        Some(result) => result,
        None => {
            connection.finish();
            let result = write.await;
            intake.discard(LINGER_TIMEOUT).await;
            result
        }
    };
    connection.close();
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "client connection ends");
    }
}

/// A connection that is to be served.
pub(crate) struct Accepted {
    /// Number of this connection in this process.
    pub(crate) id: u64,
    /// Address of the client.
    pub(crate) peer: SocketAddr,
    /// The connected stream.
    pub(crate) stream: Stream,
    /// What the client holds.
    pub(crate) account: Arc<Account>,
}

async fn read(
    connection: &Arc<Connection>,
    intake: &mut Intake,
    mut dispatch: impl FnMut(&Arc<Connection>, RemotingCommand, InFlight),
    refused: impl Fn(),
) -> Result<(), ConnectionError> {
    // Parked pulls are answered within the idle time, so a silent connection is a dead one.
    while let Some(received) = intake.next().await? {
        match received {
            Received::Taken(command, _) if command.is_response() => connection.complete(command),
            Received::Taken(command, permit) => {
                let in_flight = connection.begin(permit);
                dispatch(connection, command, in_flight);
            }
            Received::Refused(command) => {
                refused();
                if !command.is_response() && !command.is_oneway() {
                    connection.send(&Refusal::from(NoRoom::Busy).response(&command));
                }
            }
        }
        if connection
            .account
            .until(|| connection.may_read())
            .await
            .is_err()
        {
            return Ok(());
        }
    }
    Ok(())
}

async fn write(
    connection: &Arc<Connection>,
    mut writer: FrameWriter,
) -> Result<(), ConnectionError> {
    let mut batch = Out::new(&connection.account);
    while !connection.is_closed() {
        std::mem::swap(&mut *connection.out(), &mut batch);
        if batch.frames.is_empty() {
            if connection.is_finished() {
                return Ok(writer.finish().await?);
            }
            idle(connection, &mut batch).await;
            continue;
        }
        writer.write(&mut batch.frames).await?;
        batch.permit.clear();
    }
    Ok(())
}

/// Waits until there may be something to write; gives large buffers back if that takes a while.
async fn idle(connection: &Connection, batch: &mut Out) {
    let woken = connection.wake_writer.notified();
    let is_small = |out: &Out| out.frames.capacity() <= WRITE_BUFFER_BYTES_IDLE;
    if is_small(batch) && is_small(&connection.out()) {
        return woken.await;
    }
    if timeout(WRITE_BUFFER_IDLE_TIME, woken).await.is_ok() {
        return;
    }
    batch.frames = BytesMut::new();
    let mut out = connection.out();
    if out.frames.is_empty() {
        out.frames = BytesMut::new();
    }
}

#[cfg(test)]
#[path = "connection_test.rs"]
mod tests;
