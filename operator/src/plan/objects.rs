//! Which objects there should be, and which of them have to be written.

use std::net::IpAddr;

use serde_json::Value;

use crate::build::{self, Desired, GroupInput};
use crate::crd::{GroupStatus, RaftClusterStatus};
use crate::drift;
use crate::names::{GroupId, LABEL_CLUSTER};
use crate::observe::World;
use crate::validate::ValidCluster;

/// A name that the cluster needs and that belongs to somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Taken {
    /// Kind and name, as in `Service orders-broker-a-leader`.
    pub(super) object: String,
    /// To whom it belongs.
    pub(super) owner: String,
}

/// Every object of the cluster, in the order in which they are written: what others refer to comes
/// first, StatefulSets last.
pub(super) fn desired(
    cluster: &ValidCluster,
    status: &RaftClusterStatus,
    world: &World,
) -> Result<Vec<Desired>, serde_json::Error> {
    let mut objects = vec![Desired::new(&build::service_account(cluster))?];
    if let Some(group) = cluster.namesrv_group() {
        objects.push(Desired::new(&build::namesrv_service(cluster, group))?);
    }
    let mut workloads = Vec::new();
    for group in &cluster.groups {
        let recorded = status.group(&group.group);
        let leader_ip = world
            .groups
            .get(&group.group)
            .and_then(|world| world.leader_ip);
        objects.push(Desired::new(&build::peers_service(cluster, group))?);
        // The address is asked for only while there is no Service: it cannot be changed.
        let lost_ip = recorded
            .filter(|_| leader_ip.is_none())
            .and_then(recorded_ip);
        objects.push(Desired::new(&build::leader_service(
            cluster, group, lost_ip,
        ))?);
        let (Some(leader_ip), Some(members)) =
            (leader_ip, recorded_members(cluster, group, recorded))
        else {
            continue;
        };
        let input = GroupInput {
            id: group.clone(),
            members,
            leader_ip,
        };
        let config = build::config_map(cluster, &input);
        workloads.push(Desired::new(&config)?);
        if let Some(budget) = build::disruption_budget(cluster, group) {
            workloads.push(Desired::new(&budget)?);
        }
        workloads.push(Desired::new(&build::stateful_set(
            cluster, &input, &config,
        ))?);
    }
    objects.extend(workloads);
    Ok(objects)
}

fn recorded_ip(status: &GroupStatus) -> Option<IpAddr> {
    let address: std::net::SocketAddr = status.leader_address.as_ref()?.parse().ok()?;
    Some(address.ip())
}

/// Pods and node ids, once all of them stand in the status; ids are never used before.
fn recorded_members(
    cluster: &ValidCluster,
    group: &GroupId,
    status: Option<&GroupStatus>,
) -> Option<Vec<(String, u64)>> {
    let status = status?;
    let member = |pod: String| {
        let id = u64::try_from(status.member(&pod)?.node_id).ok()?;
        Some((pod, id))
    };
    cluster.pods(group).map(member).collect()
}

/// The objects that are missing or differ, and the names that belong to others.
pub(super) fn due(
    cluster: &ValidCluster,
    objects: Vec<Desired>,
    world: &World,
) -> (Vec<Desired>, Vec<Taken>) {
    let mut taken = Vec::new();
    let due = objects.into_iter().filter(|object| {
        let key = (object.resource.kind.clone(), object.name.clone());
        let Some(observed) = world.children.get(&key) else {
            return true;
        };
        if let Some(owner) = other_owner(cluster, observed) {
            taken.push(Taken {
                object: format!("{} {}", object.resource.kind, object.name),
                owner,
            });
            return false;
        }
        !drift::matches(&object.body, observed)
    });
    (due.collect(), taken)
}

/// To whom an object belongs, unless it is this very resource or nobody.
pub(crate) fn other_owner(cluster: &ValidCluster, observed: &Value) -> Option<String> {
    let metadata = &observed["metadata"];
    let owners = metadata["ownerReferences"].as_array();
    let controller = owners
        .into_iter()
        .flatten()
        .find(|owner| owner["controller"] == true);
    match controller {
        Some(owner) if owner["uid"] == cluster.owner.uid.as_str() => None,
        Some(owner) => {
            let text = |key: &str| owner[key].as_str().unwrap_or("?").to_owned();
            Some(format!("{} {}", text("kind"), text("name")))
        }
        None if metadata["labels"][LABEL_CLUSTER] == cluster.name.as_str() => None,
        None => Some("somebody else: it has no owner and not our labels".to_owned()),
    }
}
