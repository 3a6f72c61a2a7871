//! Joins [`crate::net::Listener`] to axum, and bounds what connections may cost: their number and
//! the time that one may stay silent.

use std::future::{Future as _, pending};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, Sleep, sleep};

use crate::metrics::{Metrics, OpenConnection};
use crate::net::{Listener, Stream};

/// Connections the HTTP port serves at a time: some scrapers and probes, the operator's replicas
/// and a few browsers, with room to spare. Reached: the new connection is closed and counted.
const CONNECTIONS_MAX: usize = 256;

/// A connection on which no byte moves for this long is closed. Longer than the longest silence of
/// a status stream and than the longest operation.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Label of this listener in the connection metrics.
const LABEL: &str = "http";

/// The accepting side of the HTTP port.
pub(super) struct HttpListener {
    listener: Box<dyn Listener>,
    permits: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    /// Where the error goes that ends the listener; axum has no place for it.
    broken: Option<oneshot::Sender<io::Error>>,
}

impl HttpListener {
    /// Accepts from `listener`; the receiver gets the error that ends it, if one does.
    pub(super) fn new(
        listener: Box<dyn Listener>,
        metrics: Arc<Metrics>,
    ) -> (Self, oneshot::Receiver<io::Error>) {
        let (broken, receiver) = oneshot::channel();
        let this = Self {
            listener,
            permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            metrics,
            broken: Some(broken),
        };
        (this, receiver)
    }
}

impl axum::serve::Listener for HttpListener {
    type Io = HttpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (HttpStream, SocketAddr) {
        let connections = &self.metrics.connections;
        loop {
            let accepted = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    if let Some(broken) = self.broken.take() {
                        // The receiver is gone only when the server is stopping.
                        let _ = broken.send(error);
                    }
                    return pending().await;
                }
            };
            let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
                connections.refused(LABEL);
                continue;
            };
            let open = connections.accepted(LABEL);
            return (
                HttpStream::new(accepted.stream, permit, open),
                accepted.peer,
            );
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection of the HTTP port: its stream, its place among [`CONNECTIONS_MAX`] and its timer.
pub(super) struct HttpStream {
    stream: Stream,
    idle: Pin<Box<Sleep>>,
    _open: OpenConnection,
    _permit: OwnedSemaphorePermit,
}

impl HttpStream {
    fn new(stream: Stream, permit: OwnedSemaphorePermit, open: OpenConnection) -> Self {
        Self {
            stream,
            idle: Box::pin(sleep(IDLE_TIMEOUT)),
            _open: open,
            _permit: permit,
        }
    }

    /// Restarts the timer when the stream made progress, else fails once the timer has run out.
    fn watch_idle<T>(
        &mut self,
        context: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.idle.as_mut().reset(Instant::now() + IDLE_TIMEOUT);
            return progress;
        }
        match self.idle.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for HttpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let progress = Pin::new(&mut this.stream).poll_read(context, buffer);
        this.watch_idle(context, progress)
    }
}

impl AsyncWrite for HttpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let progress = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.watch_idle(context, progress)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let progress = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.watch_idle(context, progress)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
