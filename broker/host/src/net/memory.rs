//! A network inside the process, for tests: no ports, no kernel.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use tokio::sync::mpsc;

use super::{Accepted, Listener, Net, Stream};

/// Bytes a stream holds before its writer waits.
const PIPE_BYTES: usize = 64 * 1024;

/// Connections that wait for `accept`.
const BACKLOG: usize = 64;

type Backlogs = BTreeMap<String, mpsc::Sender<Accepted>>;

/// Clones share one network.
#[derive(Debug, Clone, Default)]
pub struct MemoryNet {
    backlogs: Arc<Mutex<Backlogs>>,
}

struct MemoryListener {
    address: SocketAddr,
    backlog: mpsc::Receiver<Accepted>,
}

impl Net for MemoryNet {
    fn bind(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        let (sender, backlog) = mpsc::channel(BACKLOG);
        self.backlogs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(address.to_string(), sender);
        Box::pin(async move { Ok(Box::new(MemoryListener { address, backlog }) as _) })
    }

    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        let backlog = self
            .backlogs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(address)
            .cloned();
        Box::pin(async move {
            let backlog = backlog.ok_or(io::ErrorKind::ConnectionRefused)?;
            let (near, far) = tokio::io::duplex(PIPE_BYTES);
            let peer = SocketAddr::from(([127, 0, 0, 1], 50_000));
            let accepted = Accepted {
                stream: Box::new(far),
                peer,
            };
            backlog
                .send(accepted)
                .await
                .map_err(|_| io::ErrorKind::ConnectionRefused)?;
            Ok(Box::new(near) as Stream)
        })
    }
}

impl Listener for MemoryListener {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Accepted>> {
        Box::pin(async move {
            self.backlog
                .recv()
                .await
                .ok_or_else(|| io::ErrorKind::NotConnected.into())
        })
    }
}
