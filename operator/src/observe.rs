//! First step: what is there? Reads the caches and the views of the fast path, asks nobody, and
//! returns plain data for the two pure steps behind it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Resource;
use serde::Serialize;
use serde_json::Value;

use crate::endpoints::{GroupView, Views};
use crate::names::{GroupId, LABEL_GROUP, LABEL_REVISION};
use crate::streams::{Cache, Caches, label};
use crate::validate::ValidCluster;

/// Kind and name of a child.
pub type ChildKey = (String, String);

/// A pod, as far as the plan reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// Revision of the template that it was made from.
    pub revision: Option<String>,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Why it does not run, in the words of Kubernetes; `None` while nothing is wrong.
    pub trouble: Option<String>,
}

/// A StatefulSet, as far as the plan reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetFacts {
    /// Revision that new pods get; `None` before its controller has seen the newest template.
    pub revision: Option<String>,
}

/// A group as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupWorld {
    /// Its pods, by name.
    pub pods: BTreeMap<String, PodFacts>,
    /// Its StatefulSet.
    pub set: Option<SetFacts>,
    /// Cluster IP of the leader Service.
    pub leader_ip: Option<IpAddr>,
    /// What brokers say, and what is published.
    pub view: Arc<GroupView>,
}

/// A cluster as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct World {
    /// Every child as JSON.
    pub children: BTreeMap<ChildKey, Value>,
    /// The groups of the specification, by name.
    pub groups: BTreeMap<String, GroupWorld>,
}

/// Observes one cluster.
///
/// # Errors
/// When a cached object cannot be written as JSON, which none is.
pub fn observe(
    cluster: &ValidCluster,
    caches: &Caches,
    views: &Views,
) -> Result<World, serde_json::Error> {
    let mut children = BTreeMap::new();
    collect(&caches.accounts, cluster, &mut children)?;
    collect(&caches.services, cluster, &mut children)?;
    collect(&caches.config_maps, cluster, &mut children)?;
    collect(&caches.budgets, cluster, &mut children)?;
    collect(&caches.stateful_sets, cluster, &mut children)?;
    let pods = caches.pods.of_cluster(&cluster.namespace, &cluster.name);
    let group_world = |group: &GroupId| {
        let of_group = pods
            .iter()
            .filter(|pod| label(&***pod, LABEL_GROUP) == Some(&group.group));
        let facts = of_group.filter_map(|pod| pod_facts(pod));
        let set = caches.stateful_sets.get(&group.namespace, &group.base());
        let service = caches.services.get(&group.namespace, &group.leader());
        GroupWorld {
            pods: facts.map(|pod| (pod.name.clone(), pod)).collect(),
            set: set.map(|set| set_facts(&set)),
            leader_ip: service.and_then(|service| cluster_ip(&service)),
            view: views.get(group),
        }
    };
    let groups = cluster.groups.iter();
    Ok(World {
        children,
        groups: groups
            .map(|group| (group.group.clone(), group_world(group)))
            .collect(),
    })
}

fn collect<K>(
    cache: &Cache<K>,
    cluster: &ValidCluster,
    children: &mut BTreeMap<ChildKey, Value>,
) -> Result<(), serde_json::Error>
where
    K: Resource<DynamicType = ()> + Clone + Serialize + 'static,
{
    for object in cache.of_cluster(&cluster.namespace, &cluster.name) {
        let key = (
            K::kind(&()).into_owned(),
            object.meta().name.clone().unwrap_or_default(),
        );
        children.insert(key, serde_json::to_value(&*object)?);
    }
    Ok(())
}

fn pod_facts(pod: &Pod) -> Option<PodFacts> {
    Some(PodFacts {
        name: pod.metadata.name.clone()?,
        revision: label(pod, LABEL_REVISION).map(str::to_owned),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        trouble: trouble(pod),
    })
}

/// What keeps a pod from running: not scheduled, image not pulled, crashing.
fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let waiting = status
        .container_statuses
        .iter()
        .flatten()
        .find_map(|container| {
            let waiting = container.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting.reason.clone()?;
            // These two are the normal way up.
            let is_normal = ["ContainerCreating", "PodInitializing"].contains(&reason.as_str());
            (!is_normal).then_some(reason)
        });
    let unscheduled = || {
        let mut conditions = status.conditions.iter().flatten();
        let condition = conditions
            .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
        Some(
            condition
                .reason
                .clone()
                .unwrap_or_else(|| "Unschedulable".to_owned()),
        )
    };
    waiting.or_else(unscheduled)
}

fn set_facts(set: &StatefulSet) -> SetFacts {
    let status = set.status.as_ref();
    let observed = status.and_then(|status| status.observed_generation);
    let is_current = observed.is_some() && observed == set.metadata.generation;
    SetFacts {
        revision: status
            .filter(|_| is_current)
            .and_then(|status| status.update_revision.clone()),
    }
}

fn cluster_ip(service: &Service) -> Option<IpAddr> {
    service.spec.as_ref()?.cluster_ip.as_ref()?.parse().ok()
}
