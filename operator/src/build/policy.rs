//! The identity of the broker pods and how many of them may be evicted.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{cluster_metadata, group_metadata};
use crate::names::{GroupId, service_account as service_account_name};
use crate::validate::ValidCluster;

/// Without a token: a broker never calls the API server.
#[must_use]
pub fn service_account(cluster: &ValidCluster) -> ServiceAccount {
    ServiceAccount {
        metadata: cluster_metadata(cluster, service_account_name(&cluster.name)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// One broker of a group at a time, over leader and followers alike. A group of one has none: a
/// budget that allows nothing would block every drain for ever.
#[must_use]
pub fn disruption_budget(cluster: &ValidCluster, group: &GroupId) -> Option<PodDisruptionBudget> {
    if cluster.spec.replicas < 3 {
        return None;
    }
    Some(PodDisruptionBudget {
        metadata: group_metadata(cluster, group, group.base()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(group.selector()),
            // A pod that is not ready serves nobody; it must not keep a node from being drained.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    })
}
