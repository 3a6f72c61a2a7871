//! Accepts client connections.

use std::{
    future::pending,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::watch;

use super::{connection, dispatch, frame_io};
use crate::{
    broker::Broker,
    handler::notify_changed,
    limits::CONNECTIONS_MAX,
    net::{Accepted, Listener},
};

/// Serves clients until `shutdown` turns true or the listener breaks.
pub(crate) async fn serve(
    broker: Arc<Broker>,
    listener: Box<dyn Listener>,
    mut shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    let ids = AtomicU64::new(1);
    let serve_one = |accepted: Accepted| {
        let id = ids.fetch_add(1, Ordering::Relaxed);
        let broker = Arc::clone(&broker);
        async move {
            let dispatch = dispatch::dispatcher(Arc::clone(&broker));
            connection::serve(id, accepted.peer, accepted.stream, dispatch).await;
            notify_changed(&broker, broker.sessions.connection_closed(id));
        }
    };
    let refused = || broker.metrics.limit_reached("connections_max");
    // Open connections end with their tasks when this returns: they wait for nothing.
    tokio::select! {
        biased;
        _ = shutdown.wait_for(|stop| *stop) => Ok(()),
        served = frame_io::accept_loop(listener, CONNECTIONS_MAX, pending(), serve_one, refused) => served,
    }
}
