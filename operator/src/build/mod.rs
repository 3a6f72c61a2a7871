//! Desired objects, built from a valid cluster and nothing else. Pure; one file for each kind.

mod config_map;
mod pod;
mod policy;
mod services;
mod stateful_set;

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, Resource};
use serde::Serialize;
use serde_json::Value;

pub use self::config_map::config_map;
pub use self::policy::{disruption_budget, service_account};
pub use self::services::{leader_service, namesrv_service, peers_service};
pub use self::stateful_set::stateful_set;

use crate::names::{ANNOTATION_DESIRED, GroupId, cluster_labels};
use crate::validate::ValidCluster;

/// What the objects of one group are built from, besides the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupInput {
    /// The group.
    pub id: GroupId,
    /// Pod and Raft node id of every member, in the order of the ordinals.
    pub members: Vec<(String, u64)>,
    /// Cluster IP of the leader Service.
    pub leader_ip: std::net::IpAddr,
}

/// An object as the operator wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// Its kind.
    pub resource: ApiResource,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The whole object, with the annotation that carries its hash.
    pub body: Value,
}

impl Desired {
    /// Finishes a built object.
    ///
    /// # Errors
    /// When the object cannot be written as JSON, which no built object is.
    pub fn new<K>(object: &K) -> Result<Self, serde_json::Error>
    where
        K: Resource<DynamicType = ()> + Serialize,
    {
        let mut body = serde_json::to_value(object)?;
        let hash = hash_of(&body);
        body["metadata"]["annotations"][ANNOTATION_DESIRED] = Value::String(hash);
        Ok(Self {
            resource: ApiResource::erase::<K>(&()),
            namespace: object.meta().namespace.clone().unwrap_or_default(),
            name: object.meta().name.clone().unwrap_or_default(),
            body,
        })
    }
}

/// Short hash of a value. `serde_json` keeps the keys of maps sorted, and the hasher has fixed
/// keys, so equal values have equal hashes in every process of a release. Another release may
/// compute another hash; that costs one apply without effect.
#[must_use]
pub fn hash_of(value: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Metadata of a child of the whole cluster.
fn cluster_metadata(cluster: &ValidCluster, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace.clone()),
        labels: Some(cluster_labels(&cluster.name)),
        owner_references: Some(vec![cluster.owner.clone()]),
        ..ObjectMeta::default()
    }
}

/// Metadata of a child of a group.
fn group_metadata(cluster: &ValidCluster, group: &GroupId, name: String) -> ObjectMeta {
    ObjectMeta {
        labels: Some(group.labels()),
        ..cluster_metadata(cluster, name)
    }
}

#[cfg(test)]
mod tests;
