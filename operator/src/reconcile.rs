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
use kube::runtime::controller::{self, Action, Error as ControllerError};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource as _, ResourceExt as _};
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
/// Wait after losing against another writer of the resource: its change is on its way here.
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
    /// Failures in a row, by uid: kube's error policy does not count them.
    pub failures: Mutex<HashMap<String, u32>>,
}

impl Context {
    fn failures(&self) -> std::sync::MutexGuard<'_, HashMap<String, u32>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
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
            // An object that is gone needs nothing; a failure was logged where it is retried.
            Ok(_)
            | Err(ControllerError::ObjectNotFound(_) | ControllerError::ReconcilerFailed(..)) => {}
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
                let uid = cluster.uid().unwrap_or_default();
                context.failures().remove(&uid);
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
    let namespace = cluster.namespace().unwrap_or_default();
    if cluster.metadata.deletion_timestamp.is_some() {
        // Children go with their owner; to write them now would only slow that down.
        context.applier.forget(&namespace, &cluster.name_any());
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
    if matches!(error, ReconcileError::Apply(ApplyError::Conflict)) {
        return Action::requeue(CONFLICT_AGAIN);
    }
    let uid = cluster.meta().uid.clone().unwrap_or_default();
    let mut failures = context.failures();
    let count = failures.entry(uid).or_default();
    *count += 1;
    let wait = RETRY_MIN
        .saturating_mul(2_u32.saturating_pow(*count - 1))
        .min(RETRY_MAX);
    tracing::warn!(%object, %error, failures = *count, "reconcile: trying again");
    Action::requeue(wait)
}
