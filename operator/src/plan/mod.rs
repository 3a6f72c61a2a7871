//! Third step: what is to be done? Pure: a valid cluster, its old status and the world go in, a
//! plan comes out. Nothing here waits, calls or reads a clock.
//!
//! The order of things is derived, not stored. Node ids are written into the status before any
//! object names them; the leader Service has its address before brokers are told it; what a group
//! is formed from is written into the status before it is formed. Each condition is read from the
//! world, so a pass that dies anywhere is simply followed by the next.
//!
//! A plan has at most one step, whatever the number of groups.

mod conditions;
mod group;
mod notices;
mod objects;

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::build::Desired;
use crate::crd::{BootstrapMember, RaftClusterStatus, Summary};
use crate::names::{GroupId, PORT_NAMESRV, cluster_selector, namesrv};
use crate::observe::World;
use crate::validate::{Invalid, ValidCluster};

pub use self::notices::Notice;
pub(crate) use self::objects::other_owner;

use self::group::Assessment;

/// When a cluster that has settled is looked at again although nothing was heard of it.
const SETTLED_AGAIN: Duration = Duration::from_mins(5);
/// When a cluster that has not settled is looked at again; its changes wake the operator earlier.
const UNSETTLED_AGAIN: Duration = Duration::from_secs(10);

/// What a pass has to go on.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The cluster.
    pub cluster: &'a ValidCluster,
    /// Its status as it stands.
    pub status: &'a RaftClusterStatus,
    /// What is there.
    pub world: &'a World,
    /// Time for conditions that change.
    pub now: Timestamp,
}

/// An action on a Raft group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Form the group, by asking one of its members. May be repeated.
    FormGroup {
        /// The group.
        group: GroupId,
        /// The pod that is asked.
        pod: String,
        /// Its address.
        ip: IpAddr,
        /// Incarnation that it must have.
        incarnation: String,
        /// The first voters, as they are recorded.
        members: Vec<BootstrapMember>,
    },
}

/// What a pass does.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Objects that are missing or differ, in the order in which they are written.
    pub apply: Vec<Desired>,
    /// At most one action on a Raft group, after everything else.
    pub step: Option<Step>,
    /// The new status.
    pub status: RaftClusterStatus,
    /// What a person should hear of.
    pub notices: Vec<Notice>,
    /// When to look again without being woken.
    pub again: Duration,
}

/// Plans a pass over a cluster that can be built.
///
/// # Errors
/// When a built object cannot be written as JSON, which none is.
pub fn plan(input: Input<'_>) -> Result<Plan, serde_json::Error> {
    let Input {
        cluster,
        status: before,
        world,
        ..
    } = input;
    let groups: Vec<Assessment> = cluster
        .groups
        .iter()
        .map(|group| {
            let world = world.groups.get(&group.group);
            let world = world.cloned().unwrap_or_default();
            group::assess(cluster, group, &world, before.group(&group.group))
        })
        .collect();
    let objects = objects::desired(cluster, before, world)?;
    let (apply, taken) = objects::due(cluster, objects, world);
    let mut status = RaftClusterStatus {
        observed_generation: cluster.generation,
        replicas: smallest_group(world),
        selector: Some(cluster_selector(&cluster.name)),
        name_server: Some(format!(
            "{}.{}.svc:{PORT_NAMESRV}",
            namesrv(&cluster.name),
            cluster.namespace
        )),
        summary: Some(summarize(&groups)),
        groups: groups.iter().map(|group| group.status.clone()).collect(),
        conditions: Vec::new(),
    };
    let verdicts = conditions::judge(cluster, &groups, &taken);
    let is_settled = verdicts.is_ready();
    status.conditions =
        conditions::merge(&before.conditions, verdicts, cluster.generation, input.now);
    let is_paused = cluster.spec.paused;
    let step = groups.into_iter().find_map(|group| group.step);
    Ok(Plan {
        apply: if is_paused { Vec::new() } else { apply },
        step: step.filter(|_| !is_paused),
        notices: notices::between(before, &status),
        status,
        again: if is_settled {
            SETTLED_AGAIN
        } else {
            UNSETTLED_AGAIN
        },
    })
}

/// Plans a pass over a specification that cannot be built: nothing is touched, it is only said.
#[must_use]
pub fn plan_invalid(
    invalid: &Invalid,
    before: &RaftClusterStatus,
    generation: Option<i64>,
    now: Timestamp,
) -> Plan {
    let mut status = before.clone();
    let verdicts = conditions::judge_invalid(invalid);
    status.conditions = conditions::merge(&before.conditions, verdicts, generation, now);
    status.observed_generation = generation;
    Plan {
        apply: Vec::new(),
        step: None,
        notices: notices::between(before, &status),
        status,
        again: SETTLED_AGAIN,
    }
}

fn smallest_group(world: &World) -> Option<i32> {
    let smallest = world.groups.values().map(|group| group.pods.len()).min()?;
    i32::try_from(smallest).ok()
}

fn summarize(groups: &[Assessment]) -> Summary {
    let leading: Vec<&str> = groups
        .iter()
        .filter_map(|group| group.status.leader.as_deref())
        .collect();
    let members = groups.iter().flat_map(|group| &group.status.members);
    let (caught_up, all) = members.fold((0, 0), |(caught_up, all), member| {
        (caught_up + usize::from(member.caught_up), all + 1)
    });
    Summary {
        leaders: format!("{}/{}", leading.len(), groups.len()),
        members: format!("{caught_up}/{all}"),
        leading: leading.join(","),
    }
}

#[cfg(test)]
mod tests;
