//! Accepts client connections.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};

use super::{connection, dispatch};
use crate::{broker::Broker, handler::notify_changed, limits::CONNECTIONS_MAX, net::Listener};

/// Numbers connections over the life of the process.
static NEXT_CONNECTION: AtomicU64 = AtomicU64::new(1);

/// Serves clients until `shutdown` turns true or the listener breaks.
pub(crate) async fn serve(
    broker: Arc<Broker>,
    mut listener: Box<dyn Listener>,
    mut shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = shutdown.wait_for(|stop| *stop) => break,
            accepted = listener.accept() => accepted?,
        };
        while tasks.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            broker.metrics.limit_reached("connections_max");
            continue;
        };
        let broker = Arc::clone(&broker);
        tasks.spawn(async move {
            let id = NEXT_CONNECTION.fetch_add(1, Ordering::Relaxed);
            let dispatch = dispatch::dispatcher(Arc::clone(&broker));
            connection::serve(id, accepted.peer, accepted.stream, dispatch).await;
            notify_changed(&broker, broker.sessions.connection_closed(id));
            drop(place);
        });
    }
    // Dropping the set ends the connections.
    Ok(())
}
