//! Fourth step: carries a plan out. Server-side apply with one field manager, nothing that differs
//! from nothing is written, nothing is ever deleted: what is not wanted any more goes with its
//! owner, and claims stay.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::time::timeout;

use crate::brokers::{self, BrokerError};
use crate::build::{Desired, hash_of};
use crate::crd::{RaftCluster, RaftClusterStatus};
use crate::metrics::Metrics;
use crate::names::MANAGER_CLUSTER;
use crate::observe::{ChildKey, World};
use crate::plan::{Step, other_owner};
use crate::validate::ValidCluster;

/// Longest wait for the API server in one call. It answers in milliseconds; a node that vanished
/// does not answer at all, and TCP alone would wait for a quarter of an hour while the lease is
/// renewed over another connection.
pub(crate) const API_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a plan was not carried out.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// Look again: the resource has changed since it was observed.
    #[error("the RaftCluster has changed meanwhile")]
    Conflict,
    /// Plan again with this object in the world: it is in no cache, because it is not ours.
    #[error("{} {} belongs to somebody else", key.0, key.1)]
    NameTaken {
        /// Kind and name.
        key: ChildKey,
        /// The object.
        found: Value,
    },
    /// Try again later: the API server did not do it.
    #[error("write {kind} {name}: {source}")]
    Api {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// Try again later: the API server may or may not have done it.
    #[error("write {kind} {name}: the API server does not answer within {API_TIMEOUT:?}")]
    NoAnswer {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
    },
    /// Try again later: a broker did not do it.
    #[error("form group: {0}")]
    Broker(#[from] BrokerError),
}

impl ApplyError {
    /// One word, for metrics and Events.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Conflict => "Conflict",
            Self::NameTaken { .. } => "NameTaken",
            Self::Api { .. } => "ApiError",
            Self::NoAnswer { .. } => "NoAnswer",
            Self::Broker(_) => "BrokerError",
        }
    }
}

/// Writes objects and statuses.
pub struct Applier {
    client: Client,
    /// Objects that the API server left as they were when they were applied, by what was asked:
    /// two ways to write the same thing. They are not asked for again.
    same: Mutex<HashMap<String, Settled>>,
}

impl std::fmt::Debug for Applier {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Applier")
    }
}

#[derive(PartialEq, Eq)]
struct Settled {
    asked: String,
    resource_version: Option<String>,
}

impl Applier {
    /// Writes through `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            client,
            same: Mutex::default(),
        }
    }

    /// Writes one object that is missing or differs.
    ///
    /// # Errors
    /// When it belongs to somebody else, or the API server did not take it.
    pub async fn apply(
        &self,
        cluster: &ValidCluster,
        desired: &Desired,
        world: &World,
        metrics: &Metrics,
    ) -> Result<(), ApplyError> {
        let kind = &desired.resource.kind;
        let key = (kind.clone(), desired.name.clone());
        let observed = world.children.get(&key);
        let version = observed.and_then(|object| {
            object["metadata"]["resourceVersion"]
                .as_str()
                .map(str::to_owned)
        });
        let id = format!("{kind}/{}/{}", desired.namespace, desired.name);
        let settled = Settled {
            asked: hash_of(&desired.body),
            resource_version: version.clone(),
        };
        if version.is_some() && self.lock().get(&id) == Some(&settled) {
            return Ok(());
        }
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &desired.namespace, &desired.resource);
        if observed.is_none() {
            // An object without our labels is in no cache; an apply would take it over.
            if let Some(found) = answered(kind, &desired.name, api.get_opt(&desired.name)).await? {
                let found = serde_json::to_value(&found).unwrap_or_default();
                if other_owner(cluster, &found).is_some() {
                    return Err(ApplyError::NameTaken { key, found });
                }
            }
        }
        let written = answered(kind, &desired.name, self.patch(&api, desired)).await?;
        metrics.written(kind);
        tracing::info!(
            kind,
            namespace = desired.namespace,
            name = desired.name,
            "applied"
        );
        if version.is_some() && written.resource_version() == version {
            self.lock().insert(id, settled);
        }
        Ok(())
    }

    async fn patch(
        &self,
        api: &Api<DynamicObject>,
        desired: &Desired,
    ) -> Result<DynamicObject, kube::Error> {
        let parameters = PatchParams::apply(MANAGER_CLUSTER).force();
        let result = api
            .patch(&desired.name, &parameters, &Patch::Apply(&desired.body))
            .await;
        let asks_for_address = desired.body["spec"]["clusterIP"] != Value::Null;
        match result {
            // The address that a deleted Service had may belong to another by now.
            Err(kube::Error::Api(status)) if status.is_invalid() && asks_for_address => {
                let mut body = desired.body.clone();
                if let Some(spec) = body["spec"].as_object_mut() {
                    spec.remove("clusterIP");
                }
                api.patch(&desired.name, &parameters, &Patch::Apply(&body))
                    .await
            }
            result => result,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Settled>> {
        self.same.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was remembered of the objects of a cluster that is gone.
    pub fn forget(&self, namespace: &str, cluster: &str) {
        let start = format!("/{namespace}/{cluster}-");
        self.lock().retain(|id, _| !id.contains(&start));
    }

    /// Writes the status, unless the resource has changed since `cluster` was read: the status is
    /// the memory of node ids and of how groups were formed, so an operator that has lost its
    /// lease without knowing must not overwrite a newer one.
    ///
    /// # Errors
    /// When the resource has changed, or the API server did not take it.
    pub async fn write_status(
        &self,
        cluster: &RaftCluster,
        status: &RaftClusterStatus,
        metrics: &Metrics,
    ) -> Result<(), ApplyError> {
        let name = cluster.name_any();
        let namespace = cluster.namespace().unwrap_or_default();
        let api: Api<RaftCluster> = Api::namespaced(self.client.clone(), &namespace);
        let body = json!({
            "apiVersion": "raftmq.io/v1alpha1",
            "kind": "RaftCluster",
            "metadata": {"name": name, "resourceVersion": cluster.metadata.resource_version},
            "status": status,
        });
        let parameters = PatchParams::apply(MANAGER_CLUSTER).force();
        let patch = Patch::Apply(&body);
        let written = api.patch_status(&name, &parameters, &patch);
        match answered("status of RaftCluster", &name, written).await {
            Ok(_) => {
                metrics.written("RaftCluster/status");
                Ok(())
            }
            Err(ApplyError::Api { source, .. }) if is_conflict(&source) => {
                Err(ApplyError::Conflict)
            }
            Err(error) => Err(error),
        }
    }
}

/// Waits for one call of the API server, and no longer than [`API_TIMEOUT`].
async fn answered<T>(
    kind: &str,
    name: &str,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ApplyError> {
    match timeout(API_TIMEOUT, call).await {
        Ok(result) => result.map_err(|source| ApplyError::Api {
            kind: kind.to_owned(),
            name: name.to_owned(),
            source: Box::new(source),
        }),
        Err(_) => Err(ApplyError::NoAnswer {
            kind: kind.to_owned(),
            name: name.to_owned(),
        }),
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict())
}

/// Takes a step on a Raft group.
///
/// # Errors
/// When the broker was not reached or has refused.
pub async fn take(step: &Step, metrics: &Metrics) -> Result<(), ApplyError> {
    match step {
        Step::FormGroup {
            group,
            pod,
            ip,
            incarnation,
            members,
        } => {
            let existed = brokers::form_group(*ip, incarnation, members).await?;
            metrics.step("form_group");
            tracing::info!(%group, pod, existed, members = members.len(), "formed group");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_does_not_answer_is_not_waited_for() {
        let silent = std::future::pending::<Result<(), kube::Error>>();
        let error = answered("Service", "orders-leader", silent)
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "NoAnswer");
        assert_eq!(
            error.to_string(),
            "write Service orders-leader: the API server does not answer within 10s"
        );
    }
}
