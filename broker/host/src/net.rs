//! The network seam: the only file that names `tokio::net`.
//!
//! Everything else of the process reaches the network through [`Net`], so that a simulation can put
//! a deterministic network in its place. Streams are plain bytes: no frame, no TLS, no retry here.

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use futures::future::BoxFuture;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};

use crate::limits::{ACCEPT_BACKLOG, CONNECT_TIMEOUT, WRITE_STALL_TIMEOUT};

use self::resolver::Resolver;

#[cfg(any(test, feature = "testing"))]
pub mod memory;
mod resolver;

/// The names of this process; one name service answers all of them.
static RESOLVER: LazyLock<Resolver> = LazyLock::new(|| {
    Resolver::new(Box::new(|address| {
        Box::pin(async move { lookup_host(address).await.map(Iterator::collect) })
    }))
});

/// Pause before `accept` is tried again when the process is out of file descriptors. Unit: ms.
/// Accepting again at once would spin, because the waiting connection stays in the backlog.
const ACCEPT_RETRY_MS: u64 = 50;

/// Silence after which the system asks the other machine whether a connection still exists, so that a
/// machine that is gone is noticed within [`LOST_TIMEOUT`] also when nobody has anything to say. Linux
/// asks after two hours by default.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);

/// Pause between two such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How long the other machine may leave bytes or questions unacknowledged, or its window closed,
/// before the system ends the connection: our own limit for a client that takes not one byte. Whoever writes has deadlines of his own; this one is for
/// what was written and is not waited for. Linux waits about 15 minutes by default.
const LOST_TIMEOUT: Duration = WRITE_STALL_TIMEOUT;

const _: () =
    assert!(KEEPALIVE_IDLE.as_secs() + KEEPALIVE_INTERVAL.as_secs() < LOST_TIMEOUT.as_secs());

/// A connected byte stream, both directions.
pub trait AsyncStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> AsyncStream for T {}

/// A boxed [`AsyncStream`]; what `connect` and `accept` hand out.
pub type Stream = Box<dyn AsyncStream>;

/// A connection that a listener took.
pub struct Accepted {
    /// The connected stream.
    pub stream: Stream,
    /// The address of the other side.
    pub peer: SocketAddr,
}

impl Debug for Accepted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Accepted")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// Opens listeners and connections.
pub trait Net: Send + Sync + Debug {
    /// Listens on `address`; port 0 picks a free port, see [`Listener::local_addr`].
    fn bind(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>>;

    /// Connects to `address`, a `host:port` whose name is resolved anew on every call: in
    /// Kubernetes a peer keeps its name and changes its address.
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>>;
}

/// A bound socket that connections are accepted from.
pub trait Listener: Send {
    /// The address the listener is bound to, with the real port.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Waits for the next connection. Cancel-safe. An error means that this listener is of no more
    /// use; failures that concern a single connection are retried inside.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Accepted>>;
}

/// [`Net`] over TCP: no delay, keep-alive, address reuse.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpNet;

impl Net for TcpNet {
    fn bind(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let socket = socket_for(address)?;
            // A restarted process must get its port although old connections linger in TIME_WAIT.
            socket.set_reuseaddr(true)?;
            // Accepted connections inherit this from their listener.
            notice_loss(&socket)?;
            socket.bind(address)?;
            let listener = socket.listen(ACCEPT_BACKLOG)?;
            Ok(Box::new(TcpAcceptor { listener }) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, connect_any(address)).await {
                Ok(stream) => stream.map(|stream| Box::new(stream) as Stream),
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "connect {address}: no answer in {} ms",
                        CONNECT_TIMEOUT.as_millis()
                    ),
                )),
            }
        })
    }
}

struct TcpAcceptor {
    listener: TcpListener,
}

impl Listener for TcpAcceptor {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Accepted>> {
        Box::pin(async move {
            loop {
                match self.listener.accept().await {
                    Ok((stream, peer)) => {
                        // A peer that reset already makes this fail; its first read tells.
                        let _ = stream.set_nodelay(true);
                        return Ok(Accepted {
                            stream: Box::new(stream),
                            peer,
                        });
                    }
                    Err(error) if is_listener_broken(&error) => return Err(error),
                    Err(error) => {
                        tracing::warn!(%error, "accept connection");
                        tokio::time::sleep(Duration::from_millis(ACCEPT_RETRY_MS)).await;
                    }
                }
            }
        })
    }
}

/// Whether the listener itself cannot go on, as opposed to a connection that was reset before it
/// was accepted or to a passing shortage of file descriptors or memory.
fn is_listener_broken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::NotConnected
    )
}

/// Tries every address the name resolves to, in order.
async fn connect_any(address: &str) -> io::Result<TcpStream> {
    let mut last_error = None;
    for resolved in RESOLVER.resolve(address).await? {
        match connect_one(resolved).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last_error = Some(error),
        }
    }
    Err(last_error.unwrap_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("connect {address}: name has no address"),
        )
    }))
}

async fn connect_one(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket_for(address)?;
    notice_loss(&socket)?;
    // The kernel picks our port from the ephemeral range, where RocketMQ's usual Raft ports lie. A
    // restarted broker can bind its port beside this connection only if both sides allow it.
    socket.set_reuseaddr(true)?;
    let stream = socket.connect(address).await?;
    // A port from the ephemeral range that nobody listens on can be reached from itself: the
    // connection would keep its owner from binding it.
    if stream.local_addr()? == address {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Has the system end connections to machines that are gone.
fn notice_loss(socket: &TcpSocket) -> io::Result<()> {
    let socket = SockRef::from(socket);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(LOST_TIMEOUT))?;
    Ok(())
}

fn socket_for(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }
}

/// The first address that `address`, a `host:port`, resolves to.
pub async fn resolve(address: &str) -> io::Result<SocketAddr> {
    let first = RESOLVER.resolve(address).await?.first().copied();
    first.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("resolve {address}: name has no address"),
        )
    })
}

/// The IPv4 address other machines see this one at: the source address of the route to a machine
/// far away. No packet is sent. `None` without such a route.
#[must_use]
pub fn local_ipv4() -> Option<std::net::Ipv4Addr> {
    // 192.0.2.1 is reserved for documentation (RFC 5737): never a machine of this network.
    let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(("192.0.2.1", 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(ip) if !ip.is_loopback() && !ip.is_unspecified() => Some(ip),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn connections_of_both_sides_end_when_the_other_machine_is_gone() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let socket = socket_for(any).unwrap();
        notice_loss(&socket).unwrap();
        socket.bind(any).unwrap();
        let listener = socket.listen(ACCEPT_BACKLOG).unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(connect_one(address), listener.accept());
        for stream in [near.unwrap(), far.unwrap().0] {
            let socket = SockRef::from(&stream);
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(LOST_TIMEOUT));
        }
    }
}
