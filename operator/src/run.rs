//! Composition: what runs in an operator, in which order it starts and how it stops.
//!
//! Watches, fast path, lease and HTTP port run on every replica; the reconciler runs while the
//! lease is held. When a part that should never end has ended, the process ends, to be started
//! anew by Kubernetes.

use std::sync::Arc;
use std::time::Duration;

use kube::{Client, Config};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::apply::Applier;
use crate::cli::RunArgs;
use crate::endpoints::{Supervisor, Views};
use crate::events::Events;
use crate::http::{Health, serve};
use crate::lease::LeaseLock;
use crate::metrics::Metrics;
use crate::reconcile::{self, Context};
use crate::streams::{self, Caches, Scope, Signals};
use crate::validate::Defaults;

/// Longest wait for the API server to accept a connection; kube's own is 30 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the operator could not start or go on.
#[derive(Debug, Error)]
pub enum RunError {
    /// Neither a pod's service account nor a kubeconfig was found.
    #[error("find the API server: {0}; run in a cluster, or set KUBECONFIG")]
    Config(#[from] kube::config::InferConfigError),
    /// No client could be made of it.
    #[error("prepare the client of the API server: {0}")]
    Client(#[from] kube::Error),
    /// Signals of the process cannot be received.
    #[error("listen for signals: {0}")]
    Signals(std::io::Error),
    /// The HTTP port is not served.
    #[error("serve HTTP: {0}; --listen chooses another address")]
    Http(std::io::Error),
    /// A part that should never end has ended.
    #[error("{0} has ended")]
    Ended(&'static str),
}

/// Runs the operator until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start, or a part of it has ended.
pub async fn run(arguments: RunArgs) -> Result<(), RunError> {
    let mut config = Config::infer().await?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    let own_namespace = config.default_namespace.clone();
    let client = Client::try_from(config)?;
    let lease_namespace = arguments.lease_namespace.as_ref();
    let lease_namespace = lease_namespace.unwrap_or(&own_namespace);
    let me = identity(&arguments);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        me,
        lease_namespace,
        "starting"
    );
    let lock = LeaseLock::new(client.clone(), lease_namespace, &arguments.lease_name, &me);
    let mut tasks = JoinSet::new();
    let (context, signals) = start(&arguments, &client, me, &mut tasks);
    let health = Health {
        ready: readiness(context.caches.clone()),
        tried: lock.tried(),
        metrics: Arc::clone(&context.metrics),
    };
    let (stopper, stop) = watch::channel(false);
    let http = serve(arguments.listen, health, stop.clone());
    let reconciling = tokio::spawn(while_held(lock.held(), context, signals, stop.clone()));
    let result = tokio::select! {
        biased;
        result = told_to_stop() => result,
        ended = tasks.join_next() => Err(RunError::Ended(
            ended.and_then(Result::ok).unwrap_or("a task"),
        )),
        result = http => result.map_err(RunError::Http),
        () = lock.run(stop) => Ok(()),
    };
    tracing::info!("stopping");
    stopper.send_replace(true);
    // Passes under way take milliseconds, unless a broker or the API server does not answer.
    if tokio::time::timeout(CONNECT_TIMEOUT, reconciling)
        .await
        .is_err()
    {
        tracing::warn!("a reconcile did not finish in time");
    }
    lock.release().await;
    result
}

/// Starts what runs on every replica: watches and the endpoint fast path.
fn start(
    arguments: &RunArgs,
    client: &Client,
    me: String,
    tasks: &mut JoinSet<&'static str>,
) -> (Arc<Context>, Signals) {
    let metrics = Arc::new(Metrics::new());
    let signals = Signals::default();
    let views = Views::default();
    let scope = match arguments.namespaces.as_slice() {
        [] => Scope::All,
        names => Scope::Namespaces(names.to_vec()),
    };
    let caches = streams::start(client, &scope, &signals, &metrics, tasks);
    let supervisor = Supervisor::new(
        client.clone(),
        caches.clone(),
        signals.clone(),
        views.clone(),
        Arc::clone(&metrics),
    );
    tasks.spawn(supervisor.run());
    let context = Context {
        caches,
        views,
        applier: Applier::new(client.clone()),
        events: Events::new(client.clone(), me),
        metrics,
        defaults: Defaults {
            image: arguments.broker_image.clone(),
        },
        failures: std::sync::Mutex::default(),
    };
    (Arc::new(context), signals)
}

/// Reconciles whenever the lease is held, and drops what is under way when it is lost. When the
/// process stops, passes under way are finished.
async fn while_held(
    mut held: watch::Receiver<bool>,
    context: Arc<Context>,
    signals: Signals,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            result = held.wait_for(|held| *held) => {
                if result.is_err() {
                    return;
                }
            }
        }
        context.metrics.lease(true);
        let reconciling = reconcile::run(Arc::clone(&context), signals.clone(), stop.clone());
        tokio::select! {
            biased;
            _ = held.wait_for(|held| !*held) => {}
            () = reconciling => {}
        }
        context.metrics.lease(false);
    }
}

/// Turns true when every first list is there.
fn readiness(caches: Caches) -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        let ready = caches.ready().await;
        sender.send_replace(ready);
    });
    receiver
}

async fn told_to_stop() -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn identity(arguments: &RunArgs) -> String {
    arguments.identity.clone().unwrap_or_else(|| {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        format!("{}-{}", host.trim(), std::process::id())
    })
}
