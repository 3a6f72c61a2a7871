//! The four steps in a row, for one resource at a time: observe, validate, plan, apply. Only the
//! operator that holds the lease runs this; what it must not do twice is guarded by itself.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube::runtime::controller::{self, Action, Error as ControllerError};
use kube::runtime::reflector::{ObjectRef, Store};
use thiserror::Error;
use tokio::sync::{broadcast, watch};

use crate::apply::{Applier, ApplyError, take};
use crate::crd::{RaftCluster, RaftClusterStatus};
use crate::endpoints::Views;
use crate::events::Events;
use crate::metrics::Metrics;
use crate::observe::{World, observe};
use crate::plan::{Input, Notice, Plan, plan, plan_invalid};
use crate::streams::{Caches, Guarded, Signal, Signals};
use crate::validate::{Defaults, ValidCluster, validate};

/// Resources that are reconciled at the same time. A pass takes milliseconds; this bounds what a
/// slow broker, asked to form a group, can hold up.
const CONCURRENCY: u16 = 16;

/// Signals of one resource that come within this time are one pass: a StatefulSet alone makes a
/// dozen. The endpoint fast path does not wait for it.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Wait after a first failure, doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(500);
/// Longest wait after a failure.
const RETRY_MAX: Duration = Duration::from_mins(5);
/// Wait after losing against another writer of the resource for the first time: its change is on its
/// way here. Doubled as well: a watch that lags, or a writer that never rests, must not be met with
/// a write ten times a second.
const CONFLICT_AGAIN: Duration = Duration::from_millis(100);

/// Why a pass has failed.
#[derive(Debug, Error)]
pub enum ReconcileError {
    /// An object could not be written as JSON.
    #[error("write an object as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A part of the plan was not carried out.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

impl ReconcileError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Json(_) => "Json",
            Self::Apply(error) => error.reason(),
        }
    }
}

/// What every pass uses.
#[derive(Debug)]
pub struct Context {
    /// What the API server says.
    pub caches: Caches,
    /// What the fast path knows.
    pub views: Views,
    /// Writes.
    pub applier: Applier,
    /// Events.
    pub events: Events,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// What resources leave open.
    pub defaults: Defaults,
    /// Failures in a row, by namespace and name: kube's error policy does not count them. What is
    /// gone is forgotten.
    pub failures: Mutex<HashMap<(String, String), u32>>,
}

impl Context {
    fn failures(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), u32>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The resource is gone.
    fn forget(&self, namespace: &str, name: &str) {
        self.failures()
            .remove(&(namespace.to_owned(), name.to_owned()));
        self.applier.forget(namespace, name);
    }
}

/// Reconciles whatever signals ask for until `stop` turns true, and finishes what is under way.
pub async fn run(context: Arc<Context>, signals: Signals, stop: watch::Receiver<bool>) {
    let config = controller::Config::default()
        .concurrency(CONCURRENCY)
        .debounce(DEBOUNCE);
    let stores = context.caches.clusters.stores();
    let runs = stores.into_iter().map(|store| {
        let mut stop = stop.clone();
        let stopped = async move {
            // An error says that the sender is gone, which is the end of the process as well.
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let queue = queue(store.clone(), &signals).take_until(stopped.boxed());
        controller::applier(
            |cluster, context| reconcile(cluster, context).boxed(),
            after_error,
            Arc::clone(&context),
            store,
            queue,
            config.clone(),
        )
        .boxed()
    });
    let mut results = stream::select_all(runs);
    while let Some(result) = results.next().await {
        match result {
            // A failure was logged where it is retried.
            Ok(_) | Err(ControllerError::ReconcilerFailed(..)) => {}
            // Without finalizers no pass sees a deletion: this is where it is noticed.
            Err(ControllerError::ObjectNotFound(gone)) => {
                context.forget(gone.namespace.as_deref().unwrap_or_default(), &gone.name);
            }
            Err(error) => tracing::warn!(%error, "reconcile"),
        }
    }
}

type Request = Result<ObjectRef<Guarded>, Infallible>;

/// The resources to reconcile: all at first, then those that signals name.
fn queue(store: Store<Guarded>, signals: &Signals) -> BoxStream<'static, Request> {
    let signals = signals.listen();
    let first = stream::iter(all(&store));
    let later = stream::unfold((store, signals), |(store, mut signals)| async move {
        let requests = match signals.recv().await {
            Ok(Signal::One {
                namespace, cluster, ..
            }) => vec![Ok(ObjectRef::new(&cluster).within(&namespace))],
            Ok(Signal::All(_)) | Err(broadcast::error::RecvError::Lagged(_)) => all(&store),
            Err(broadcast::error::RecvError::Closed) => return None,
        };
        Some((stream::iter(requests), (store, signals)))
    });
    first.chain(later.flatten()).boxed()
}

fn all(store: &Store<Guarded>) -> Vec<Request> {
    let objects = store.state();
    objects
        .iter()
        .map(|object| Ok(ObjectRef::from_obj(&**object)))
        .collect()
}

fn reconcile(
    cluster: Arc<Guarded>,
    context: Arc<Context>,
) -> BoxFuture<'static, Result<Action, ReconcileError>> {
    async move {
        let started = Instant::now();
        let result = match &cluster.0 {
            Ok(resource) => pass(&cluster, resource, &context).await,
            Err(invalid) => {
                // The definition is newer or older than this operator; only its author can help.
                let notice = Notice {
                    warning: true,
                    reason: "Unreadable".to_owned(),
                    note: format!("this operator cannot read the resource: {}", invalid.error),
                };
                context.events.publish(&cluster, &notice).await;
                Ok(Action::await_change())
            }
        };
        let failure = result.as_ref().err().map(ReconcileError::reason);
        context.metrics.reconciled(started.elapsed(), failure);
        match &result {
            Ok(_) => {
                context.failures().remove(&key(&cluster));
            }
            Err(ReconcileError::Apply(ApplyError::Conflict)) => {}
            Err(error) => {
                let notice = Notice {
                    warning: true,
                    reason: error.reason().to_owned(),
                    note: error.to_string(),
                };
                context.events.publish(&cluster, &notice).await;
            }
        }
        count_clusters(&context);
        result
    }
    .boxed()
}

/// One pass.
async fn pass(
    guarded: &Guarded,
    cluster: &RaftCluster,
    context: &Context,
) -> Result<Action, ReconcileError> {
    if cluster.metadata.deletion_timestamp.is_some() {
        // Children go with their owner; to write them now would only slow that down.
        return Ok(Action::await_change());
    }
    let blank = RaftClusterStatus::default();
    let before = cluster.status.as_ref().unwrap_or(&blank);
    let now = Timestamp::now();
    let valid = match validate(cluster, &context.defaults) {
        Ok(valid) => valid,
        Err(invalid) => {
            let plan = plan_invalid(&invalid, before, cluster.metadata.generation, now);
            report(guarded, cluster, before, &plan, context).await?;
            return Ok(Action::await_change());
        }
    };
    let world = observe(&valid, &context.caches, &context.views)?;
    let plan = plan_and_apply(&valid, before, world, now, context).await?;
    report(guarded, cluster, before, &plan, context).await?;
    if let Some(step) = &plan.step {
        take(step, &context.metrics).await?;
    }
    Ok(Action::requeue(plan.again))
}

/// Plans, and writes the objects. A name that turns out to be taken is part of the world from then
/// on, so that the plan says so; each turn finds another one, and a cluster has few objects.
async fn plan_and_apply(
    cluster: &ValidCluster,
    status: &RaftClusterStatus,
    mut world: World,
    now: Timestamp,
    context: &Context,
) -> Result<Plan, ReconcileError> {
    loop {
        let plan = plan(Input {
            cluster,
            status,
            world: &world,
            now,
        })?;
        let mut taken = None;
        for object in &plan.apply {
            let applied = context
                .applier
                .apply(cluster, object, &world, &context.metrics)
                .await;
            match applied {
                Ok(()) => {}
                Err(ApplyError::NameTaken { key, found }) => {
                    taken = Some((key, found));
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let Some((key, found)) = taken else {
            return Ok(plan);
        };
        world.children.insert(key, found);
    }
}

/// Writes the status if it has changed, and says what happened.
async fn report(
    guarded: &Guarded,
    cluster: &RaftCluster,
    before: &RaftClusterStatus,
    plan: &Plan,
    context: &Context,
) -> Result<(), ReconcileError> {
    if *before == plan.status {
        return Ok(());
    }
    context
        .applier
        .write_status(cluster, &plan.status, &context.metrics)
        .await?;
    for notice in &plan.notices {
        context.events.publish(guarded, notice).await;
    }
    Ok(())
}

fn count_clusters(context: &Context) {
    let clusters = context.caches.clusters.all();
    let is_ready = |cluster: &&Arc<Guarded>| {
        let status = cluster
            .0
            .as_ref()
            .ok()
            .and_then(|cluster| cluster.status.as_ref());
        let mut conditions = status.into_iter().flat_map(|status| &status.conditions);
        conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let ready = clusters.iter().filter(is_ready).count();
    context.metrics.clusters(ready, clusters.len() - ready);
}

fn after_error(cluster: Arc<Guarded>, error: &ReconcileError, context: Arc<Context>) -> Action {
    let object = ObjectRef::from_obj(&*cluster);
    let mut failures = context.failures();
    let count = failures.entry(key(&cluster)).or_default();
    *count = count.saturating_add(1);
    let is_conflict = matches!(error, ReconcileError::Apply(ApplyError::Conflict));
    let wait = wait_after(is_conflict, *count);
    if is_conflict {
        tracing::debug!(%object, failures = *count, "reconcile: the resource has changed meanwhile");
    } else {
        tracing::warn!(%object, %error, failures = *count, "reconcile: trying again");
    }
    Action::requeue(wait)
}

/// How long to wait after the given number of failures in a row, 1 or more.
fn wait_after(is_conflict: bool, failures: u32) -> Duration {
    let first = if is_conflict {
        CONFLICT_AGAIN
    } else {
        RETRY_MIN
    };
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    first.saturating_mul(doubled).min(RETRY_MAX)
}

fn key(cluster: &Guarded) -> (String, String) {
    (cluster.namespace().unwrap_or_default(), cluster.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_after_conflicts_too_and_have_an_end() {
        assert_eq!(wait_after(true, 1), CONFLICT_AGAIN);
        assert_eq!(wait_after(true, 4), CONFLICT_AGAIN * 8);
        assert_eq!(wait_after(false, 1), RETRY_MIN);
        assert_eq!(wait_after(false, 2), RETRY_MIN * 2);
        for is_conflict in [true, false] {
            assert_eq!(wait_after(is_conflict, u32::MAX), RETRY_MAX);
        }
    }
}
