//! What programs hold of the simulated network: listeners and the ends of connections.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use raftmq::limits::CONNECT_TIMEOUT;
use raftmq::net::{Accepted, Listener, Net, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Acceptor, Connection, EPHEMERAL_PORT, End, Event, HostId, Inner, Network, Segment, State,
    WINDOW_BYTES, address,
};

/// The network as one life of a host sees it.
#[derive(Debug)]
pub(super) struct HostNet {
    pub(super) network: Network,
    pub(super) host: HostId,
    pub(super) life: u64,
}

impl HostNet {
    /// Which host and port are meant. Names are not known here.
    fn target(&self, text: &str) -> io::Result<(HostId, u16)> {
        let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("no host {text}"));
        match text.parse().map_err(|_| unknown())? {
            SocketAddr::V4(address) if address.ip().is_loopback() => {
                Ok((self.host, address.port()))
            }
            SocketAddr::V4(address) => Ok((address.ip().octets()[3], address.port())),
            SocketAddr::V6(_) => Err(unknown()),
        }
    }

    fn open(&self, host: HostId, port: u16) -> io::Result<SimStream> {
        let mut inner = self.network.lock();
        if !inner.is_alive(self.host, self.life) {
            return Err(io::ErrorKind::NetworkDown.into());
        }
        inner.connections_begun += 1;
        let id = inner.connections_begun;
        let ends = [(self.host, self.life), (host, 0)].map(|(host, life)| End::new(host, life));
        inner.connections.insert(id, Connection { ends });
        let own_port = EPHEMERAL_PORT + (id % 20_000) as u16;
        let own = SocketAddr::new(address(self.host), own_port);
        let way = inner.way(self.host, host);
        let at_ms = inner.now_ms + inner.delay_ms(way);
        inner.event_at(at_ms, Event::Connect(id, port, own));
        drop(inner);
        Ok(SimStream {
            network: self.network.clone(),
            connection: id,
            end: 0,
        })
    }
}

impl End {
    fn new(host: HostId, life: u64) -> Self {
        Self {
            host,
            life,
            input: VecDeque::new(),
            held: VecDeque::new(),
            unread: 0,
            arrives_ms: 0,
            state: State::Connecting,
            dropped: false,
            reader: None,
            writer: None,
        }
    }
}

impl Net for HostNet {
    fn bind(&self, wanted: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let mut inner = self.network.lock();
            if !inner.is_alive(self.host, self.life) {
                return Err(io::ErrorKind::NetworkDown.into());
            }
            let key = (self.host, wanted.port());
            if inner.listeners.contains_key(&key) {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            let acceptor = Acceptor {
                life: self.life,
                ..Acceptor::default()
            };
            inner.listeners.insert(key, acceptor);
            drop(inner);
            Ok(Box::new(SimListener {
                network: self.network.clone(),
                key,
                life: self.life,
            }) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let (host, port) = self.target(address)?;
            let stream = self.open(host, port)?;
            let opened = std::future::poll_fn(|context| stream.poll_opened(context));
            match tokio::time::timeout(CONNECT_TIMEOUT, opened).await {
                Ok(opened) => opened?,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
            Ok(Box::new(stream) as Stream)
        })
    }
}

#[derive(Debug)]
struct SimListener {
    network: Network,
    key: (HostId, u16),
    life: u64,
}

impl Listener for SimListener {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::new(address(self.key.0), self.key.1))
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Accepted>> {
        Box::pin(std::future::poll_fn(|context| {
            let mut inner = self.network.lock();
            let acceptor = inner.listeners.get_mut(&self.key);
            let Some(acceptor) = acceptor.filter(|acceptor| acceptor.life == self.life) else {
                return Poll::Pending;
            };
            let Some((connection, peer)) = acceptor.waiting.pop_front() else {
                acceptor.waker = Some(context.waker().clone());
                return Poll::Pending;
            };
            let stream = SimStream {
                network: self.network.clone(),
                connection,
                end: 1,
            };
            Poll::Ready(Ok(Accepted {
                stream: Box::new(stream),
                peer,
            }))
        }))
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let mut inner = self.network.lock();
        let own = |acceptor: &Acceptor| acceptor.life == self.life;
        if inner.listeners.get(&self.key).is_some_and(own) {
            let closed = inner.listeners.remove(&self.key).expect("seen above");
            // Nobody will accept what waits.
            for (connection, _) in closed.waiting {
                inner.send(connection, 0, Segment::Reset);
                inner.end(connection, 1).dropped = true;
            }
        }
    }
}

#[derive(Debug)]
struct SimStream {
    network: Network,
    connection: u64,
    end: usize,
}

impl SimStream {
    /// Its end, as long as both its host and the connection are there.
    fn with<T>(&self, work: impl FnOnce(&mut Inner, &SimStream) -> T) -> io::Result<T> {
        let mut inner = self.network.lock();
        let known = inner.connections.get(&self.connection);
        let alive = known.is_some_and(|connection| {
            let end = &connection.ends[self.end];
            inner.is_alive(end.host, end.life)
        });
        if !alive {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(work(&mut inner, self))
    }

    fn poll_opened(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.with(|inner, own| {
            let end = inner.end(own.connection, own.end);
            match end.state {
                State::Connecting => {
                    end.reader = Some(context.waker().clone());
                    Poll::Pending
                }
                State::Refused => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
                State::Reset => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                State::Open | State::Ended => Poll::Ready(Ok(())),
            }
        });
        polled.unwrap_or_else(|error| Poll::Ready(Err(error)))
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut writer = None;
        let polled = self.with(|inner, own| {
            let end = inner.end(own.connection, own.end);
            if end.state == State::Reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if end.input.is_empty() && end.state != State::Ended {
                end.reader = Some(context.waker().clone());
                return Poll::Pending;
            }
            let bytes = buffer.remaining().min(end.input.len());
            for part in [end.input.as_slices().0, end.input.as_slices().1] {
                let part = &part[..part.len().min(buffer.remaining())];
                buffer.put_slice(part);
            }
            end.input.drain(..bytes);
            end.unread -= bytes;
            writer = inner.end(own.connection, 1 - own.end).writer.take();
            Poll::Ready(Ok(()))
        });
        if let Some(writer) = writer {
            writer.wake();
        }
        polled.unwrap_or_else(|error| Poll::Ready(Err(error)))
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = self.with(|inner, own| {
            let end = inner.end(own.connection, own.end);
            if end.state == State::Reset {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let waker = context.waker().clone();
            let other = inner.end(own.connection, 1 - own.end);
            let room = WINDOW_BYTES.saturating_sub(other.unread).min(bytes.len());
            if room == 0 && !bytes.is_empty() {
                inner.end(own.connection, own.end).writer = Some(waker);
                return Poll::Pending;
            }
            other.unread += room;
            let segment = Segment::Bytes(bytes[..room].to_vec());
            inner.send(own.connection, 1 - own.end, segment);
            Poll::Ready(Ok(room))
        });
        polled.unwrap_or_else(|error| Poll::Ready(Err(error)))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.with(|inner, own| inner.send(own.connection, 1 - own.end, Segment::End));
        Poll::Ready(sent)
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        // A host that is down sends nothing.
        let _ = self.with(|inner, own| inner.send(own.connection, 1 - own.end, Segment::End));
        let mut inner = self.network.lock();
        if inner.connections.contains_key(&self.connection) {
            inner.end(self.connection, self.end).dropped = true;
            let ends = &inner.connections[&self.connection].ends;
            let held = |end: &End| !end.dropped && inner.is_alive(end.host, end.life);
            if !ends.iter().any(held) {
                inner.connections.remove(&self.connection);
            }
        }
    }
}
