//! The StatefulSet of a group. `Parallel`, because a group needs a quorum of its pods to become
//! ready; `OnDelete`, because only the operator may know which pod restarts next.

use std::collections::BTreeMap;

use k8s_openapi::DeepMerge as _;
use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
    StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{GroupInput, group_metadata, hash_of, pod};
use crate::names::DATA_VOLUME;
use crate::validate::ValidCluster;

/// Old pod templates that the API server keeps, for `kubectl rollout history`.
const REVISIONS: i32 = 5;

/// The StatefulSet of a group, whose pods start with `config`.
#[must_use]
pub fn stateful_set(cluster: &ValidCluster, group: &GroupInput, config: &ConfigMap) -> StatefulSet {
    let mut template = pod::template(cluster, &group.id, &config_hash(config));
    template.merge_from(cluster.pod_override.clone());
    let retain = "Retain".to_owned();
    StatefulSet {
        metadata: group_metadata(cluster, &group.id, group.id.base()),
        spec: StatefulSetSpec {
            replicas: i32::try_from(cluster.spec.replicas).ok(),
            service_name: Some(group.id.peers()),
            selector: group.id.selector(),
            pod_management_policy: Some("Parallel".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                rolling_update: None,
            }),
            persistent_volume_claim_retention_policy: Some(
                StatefulSetPersistentVolumeClaimRetentionPolicy {
                    when_deleted: Some(retain.clone()),
                    when_scaled: Some(retain),
                },
            ),
            revision_history_limit: Some(REVISIONS),
            template,
            volume_claim_templates: Some(vec![claim(cluster, group)]),
            ..StatefulSetSpec::default()
        },
        ..StatefulSet::default()
    }
}

/// A pod restarts for a changed configuration, not for a changed label of the ConfigMap.
fn config_hash(config: &ConfigMap) -> String {
    hash_of(&serde_json::json!(config.data))
}

/// Not owned by anybody: claims survive the resource.
fn claim(cluster: &ValidCluster, group: &GroupInput) -> PersistentVolumeClaim {
    let requests = BTreeMap::from([("storage".to_owned(), cluster.spec.storage.size.clone())]);
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(DATA_VOLUME.to_owned()),
            labels: Some(group.id.labels()),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: cluster.spec.storage.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(requests),
                limits: None,
            }),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}
