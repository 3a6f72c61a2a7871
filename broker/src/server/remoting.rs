//! Accepts client connections.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::sleep};

use super::{connection, dispatch};
use crate::framing::frame_io;
use crate::{
    broker::Broker,
    handler::notify_changed,
    limits::CONNECTIONS_MAX,
    net::{Accepted, Listener},
};

/// How long connections get to answer what they have read. Longer than a request is held.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// Name of the listener in metrics.
const LISTENER: &str = "remoting";

/// Serves clients until `shutdown` turns true or the listener breaks. At a stop every request that
/// was read is answered, and no other is read: a client may send those again elsewhere.
pub(crate) async fn serve(
    broker: Arc<Broker>,
    listener: Box<dyn Listener>,
    shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    let ids = AtomicU64::new(1);
    let serve_one = |accepted: Accepted| {
        let id = ids.fetch_add(1, Ordering::Relaxed);
        let open = broker.metrics.connections.accepted(LISTENER);
        let (broker, stopping) = (Arc::clone(&broker), shutdown.clone());
        async move {
            let Accepted { stream, peer } = accepted;
            let dispatch = dispatch::dispatcher(Arc::clone(&broker));
            let accepted = connection::Accepted {
                id,
                peer,
                stream,
                account: broker.budget.account(),
            };
            let refused = || broker.metrics.limit_reached("memory_budget");
            connection::serve(accepted, stopping, dispatch, refused).await;
            notify_changed(&broker, broker.sessions.connection_closed(id));
            drop(open);
        }
    };
    let refused = || {
        broker.metrics.limit_reached("connections_max");
        broker.metrics.connections.refused(LISTENER);
    };
    let stop = async {
        stopped(shutdown.clone()).await;
        broker.long_poll.close();
    };
    let drained_too_slowly = async {
        stopped(shutdown.clone()).await;
        sleep(DRAIN_TIMEOUT).await;
    };
    // Returning ends the connections that are left.
    tokio::select! {
        biased;
        served = frame_io::accept_loop(listener, CONNECTIONS_MAX, stop, serve_one, refused) => served,
        () = drained_too_slowly => {
            tracing::warn!("close connections with unanswered requests");
            Ok(())
        }
    }
}

/// Resolves when the process is to stop; a sender that is gone means the same.
async fn stopped(mut shutdown: watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|stop| *stop).await;
}
