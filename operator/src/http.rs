//! The HTTP port of the operator: `/metrics`, `/livez`, `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use prometheus::TEXT_FORMAT;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// The loop of the lease turns every two seconds, whether the API server answers or not. When it
/// has not turned for this long, the process hangs and a restart helps.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// What the port shows.
#[derive(Debug, Clone)]
pub struct Health {
    /// Whether every first list is there.
    pub ready: watch::Receiver<bool>,
    /// When the lease was tried last.
    pub tried: watch::Receiver<Instant>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

/// Serves until `stop` turns true.
///
/// # Errors
/// When the port cannot be bound or its listener breaks.
pub async fn serve(
    address: SocketAddr,
    health: Health,
    mut stop: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tracing::info!(address = %listener.local_addr()?, "serving /metrics, /livez and /readyz");
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .with_state(health);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move {
            // An error says that the sender is gone, which is the end of the process as well.
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .await
}

async fn metrics(State(health): State<Health>) -> Response {
    match health.metrics.scrape() {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn live(State(health): State<Health>) -> Response {
    let age = health.tried.borrow().elapsed();
    if age < STUCK_AFTER {
        return (StatusCode::OK, "ok\n").into_response();
    }
    let text = format!("nothing has moved for {} s\n", age.as_secs());
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn ready(State(health): State<Health>) -> Response {
    if *health.ready.borrow() {
        return (StatusCode::OK, "ok\n").into_response();
    }
    let text = "the first lists of the API server are not there yet\n";
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}
