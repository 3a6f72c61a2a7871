//! The HTTP port of the process (`httpPort`, 5557): `/metrics`, `/livez`, `/readyz`, `/status` and
//! the admin gRPC service, over HTTP/1.1 and HTTP/2 with prior knowledge on one listener.
//!
//! This module reads and translates; what it shows and does is behind [`AdminOps`].

mod admin;
mod listener;
mod service;
#[cfg(test)]
mod tests;

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use prometheus::TEXT_FORMAT;
use raftmq_api::admin::admin_server::{AdminServer, SERVICE_NAME};
use tokio::sync::{oneshot, watch};

pub use self::admin::{AdminError, AdminOps};

use self::listener::HttpListener;
use self::service::AdminService;
use crate::metrics::Metrics;
use crate::net::{Listener, Net};

/// Time that open requests get to finish once the process stops. A scrape or probe takes
/// milliseconds, status streams end by themselves; the rest is cut.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// Largest gRPC request. Unit: bytes; the largest real one, a voter list, is below 1 KiB.
const GRPC_REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Serves the HTTP port of a broker on `addr` until `shutdown` turns true or its sender is gone.
/// An error means that the port could not be bound or that its listener broke.
pub async fn serve(
    addr: SocketAddr,
    net: Arc<dyn Net>,
    admin: Arc<dyn AdminOps>,
    metrics: Arc<Metrics>,
    shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    let listener = net.bind(addr).await?;
    serve_on(listener, Some(admin), metrics, shutdown).await
}

/// Serves the HTTP port on a listener that is bound already. Without `admin`, in a process without
/// Raft such as a lone name server, `/status` and the admin service are absent and the probes
/// succeed as long as the process answers.
pub async fn serve_on(
    listener: Box<dyn Listener>,
    admin: Option<Arc<dyn AdminOps>>,
    metrics: Arc<Metrics>,
    shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    let (listener, broken) = HttpListener::new(listener, Arc::clone(&metrics));
    let router = router(admin, metrics, &shutdown);
    let mut stopping = shutdown.clone();
    let server = axum::serve(listener, router)
        .with_graceful_shutdown(async move { stopped(&mut stopping).await });
    tokio::select! {
        biased;
        result = server.into_future() => result,
        error = broken_listener(broken) => Err(error),
        () = drained(shutdown) => Ok(()),
    }
}

/// What the handlers share.
#[derive(Clone)]
struct Shared {
    admin: Option<Arc<dyn AdminOps>>,
    metrics: Arc<Metrics>,
}

fn router(
    admin: Option<Arc<dyn AdminOps>>,
    metrics: Arc<Metrics>,
    shutdown: &watch::Receiver<bool>,
) -> Router {
    let mut router = Router::new()
        .route("/metrics", get(show_metrics))
        .route("/livez", get(probe_live))
        .route("/readyz", get(probe_ready));
    if let Some(ops) = &admin {
        let service = AdminService::new(Arc::clone(ops), shutdown.clone());
        let service = AdminServer::new(service).max_decoding_message_size(GRPC_REQUEST_BYTES_MAX);
        router = router
            .route("/status", get(show_status))
            .route_service(&format!("/{SERVICE_NAME}/{{method}}"), service);
    }
    router.with_state(Shared { admin, metrics })
}

async fn show_metrics(State(shared): State<Shared>) -> Response {
    let node = shared
        .admin
        .as_ref()
        .map(|admin| (Arc::clone(&admin.status().borrow()), admin.log()));
    let node = node.as_ref().map(|(status, log)| (&**status, *log));
    match shared.metrics.scrape(node) {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "encode metrics");
            (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
        }
    }
}

async fn probe_live(State(shared): State<Shared>) -> Response {
    probe(shared.admin.map_or(Ok(()), |admin| admin.live()))
}

async fn probe_ready(State(shared): State<Shared>) -> Response {
    probe(shared.admin.map_or(Ok(()), |admin| admin.ready()))
}

/// 200, or 503 with the reason, which `kubectl describe` then shows.
fn probe(result: Result<(), String>) -> Response {
    match result {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()).into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn show_status(State(shared): State<Shared>) -> Response {
    let Some(admin) = shared.admin else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let status = Arc::clone(&admin.status().borrow());
    match serde_json::to_vec(&*status) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => {
            tracing::error!(%error, "encode status");
            (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
        }
    }
}

/// Returns once `stopping` is true or nobody is left to set it.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone, which is the end of the process as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Returns when the time to finish after a stop is over.
async fn drained(mut shutdown: watch::Receiver<bool>) {
    stopped(&mut shutdown).await;
    tokio::time::sleep(DRAIN_TIMEOUT).await;
}

/// Returns the error that broke the listener; never when the listener was dropped in good health.
async fn broken_listener(broken: oneshot::Receiver<io::Error>) -> io::Error {
    match broken.await {
        Ok(error) => error,
        Err(_) => pending().await,
    }
}
