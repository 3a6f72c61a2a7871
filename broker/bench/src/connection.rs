//! One client connection of the load generator: buffers in both directions and a single task that
//! reads and writes, so that a burst of messages costs one system call each way.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use raftmq_remoting::RemotingCommand;
use raftmq_remoting::frame;
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::BenchError;
use raftmq_host::net::{Net, Stream};

/// Room in the input buffer before each read. Unit: bytes. One pull answer of the usual 256 KiB
/// takes a few reads, answers to sends come by the hundred.
const READ_BYTES: usize = 64 * 1024;

/// A connection to a broker or a name server.
pub(crate) struct Connection {
    stream: Stream,
    address: String,
    input: BytesMut,
    /// Frames to write; callers append, [`Connection::turn`] writes.
    pub output: BytesMut,
}

impl Connection {
    pub(crate) async fn open(net: &dyn Net, address: &str) -> Result<Self, BenchError> {
        let stream = net.connect(address).await;
        let stream = stream.map_err(|source| BenchError::Connection {
            address: address.to_owned(),
            source,
        })?;
        Ok(Self {
            stream,
            address: address.to_owned(),
            input: BytesMut::new(),
            output: BytesMut::new(),
        })
    }

    /// Writes what waits in `output` and returns once bytes have come in. Cancel-safe: what was
    /// written and read stays so.
    pub(crate) async fn turn(&mut self) -> Result<(), BenchError> {
        let result = poll_fn(|context| self.poll_turn(context)).await;
        result.map_err(|source| BenchError::Connection {
            address: self.address.clone(),
            source,
        })
    }

    /// The next answer that is complete. Requests of the broker to its client are skipped: the
    /// generator never says that it is a client that can be asked.
    pub(crate) fn next_answer(&mut self) -> Result<Option<RemotingCommand>, BenchError> {
        loop {
            match frame::decode(&mut self.input) {
                Ok(Some(command)) if command.is_response() => return Ok(Some(command)),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                Err(error) => return Err(BenchError::bad_answer(&self.address, &error)),
            }
        }
    }

    /// Sends one request and waits for its answer. For the few calls around a run; nothing else
    /// may be in flight.
    pub(crate) async fn call(
        &mut self,
        request: &RemotingCommand,
        timeout: Duration,
    ) -> Result<RemotingCommand, BenchError> {
        frame::encode(request, &mut self.output);
        let opaque = request.opaque;
        let answer = tokio::time::timeout(timeout, async {
            loop {
                while let Some(answer) = self.next_answer()? {
                    if answer.opaque == opaque {
                        return Ok(answer);
                    }
                }
                self.turn().await?;
            }
        });
        match answer.await {
            Ok(answer) => answer,
            Err(_) => Err(BenchError::NoAnswer {
                address: self.address.clone(),
                code: request.code,
                millis: timeout.as_millis(),
            }),
        }
    }

    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            match Pin::new(&mut self.stream).poll_write(context, &self.output) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => self.output.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        self.input.reserve(READ_BYTES);
        // The future of one read holds no state between polls, so it may be made anew each time.
        match pin!(self.stream.read_buf(&mut self.input)).poll(context) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(Ok(_)) => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }
}
