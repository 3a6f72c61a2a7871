//! One group: who is who, is it formed, what is wrong, what is next. Pure.
//!
//! What is never done, whatever the world looks like:
//! - G1: a node id is given to a second pod, or a second id to a pod.
//! - G2: a group is formed from other data directories than the recorded ones, or before they are
//!   recorded.
//! - G3: a broker whose data directory is not the one of its node id is made part of the group.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::brokers::{Member, NodeView, Role};
use crate::crd::{Bootstrap, BootstrapMember, GroupStatus, MemberRole, MemberStatus};
use crate::endpoints::BrokerState;
use crate::names::{GroupId, PORT_REMOTING};
use crate::observe::GroupWorld;
use crate::validate::ValidCluster;

use super::Step;

/// Something a person should know or do, about one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// One word, as the reason of a condition.
    pub(super) reason: &'static str,
    /// A sentence.
    pub(super) message: String,
}

/// What a look at one group has shown.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Assessment {
    pub(super) status: GroupStatus,
    /// Why it is not available to clients; `None` when it is.
    pub(super) unavailable: Option<Finding>,
    /// What it is still on its way to.
    pub(super) progress: Option<Finding>,
    /// What is broken.
    pub(super) trouble: Vec<Finding>,
    /// Pods that run with an older specification; `None` while it is not known.
    pub(super) outdated: Option<Vec<String>>,
    pub(super) step: Option<Step>,
}

/// A member, its pod and what its broker says.
struct Seat {
    pod: String,
    node_id: u64,
    /// `None` when it says nothing, or speaks for another node.
    view: Option<Arc<NodeView>>,
    disk_lost: bool,
}

/// Looks at a group.
pub(super) fn assess(
    cluster: &ValidCluster,
    group: &GroupId,
    world: &GroupWorld,
    before: Option<&GroupStatus>,
) -> Assessment {
    let blank = GroupStatus::default();
    let before = before.unwrap_or(&blank);
    let (mut seats, next_node_id) = seats(cluster, group, world, before);
    let bootstrap = bootstrap(&seats, before);
    mark_lost_disks(&mut seats, bootstrap.as_ref());
    let leader = newest_leader(&seats).filter(|(_, view)| view.has_quorum);
    let members = seats.iter().map(|seat| MemberStatus {
        pod: seat.pod.clone(),
        node_id: i64::try_from(seat.node_id).unwrap_or(i64::MAX),
        role: role(seat, bootstrap.as_ref()),
        caught_up: !seat.disk_lost && seat.view.as_ref().is_some_and(|view| view.ready),
    });
    let leader_address = world
        .leader_ip
        .map(|ip| std::net::SocketAddr::new(ip, PORT_REMOTING).to_string());
    let status = GroupStatus {
        name: group.group.clone(),
        leader: leader.map(|(seat, _)| seat.pod.clone()),
        term: leader.and_then(|(_, view)| i64::try_from(view.term).ok()),
        leader_address: leader_address.or_else(|| before.leader_address.clone()),
        members: members.collect(),
        next_node_id: i64::try_from(next_node_id).ok(),
        bootstrap,
    };
    Assessment {
        unavailable: unavailable(group, world, &seats, &status),
        progress: progress(group, world, &seats, &status),
        trouble: trouble(group, world, &seats, &status),
        outdated: outdated(world),
        step: step(group, world, &seats, before, &status),
        status,
    }
}

/// G1: ids that stand in the status stay; new pods get the next ones.
fn seats(
    cluster: &ValidCluster,
    group: &GroupId,
    world: &GroupWorld,
    before: &GroupStatus,
) -> (Vec<Seat>, u64) {
    let id_of = |number: i64| u64::try_from(number).unwrap_or_default();
    let used = before
        .members
        .iter()
        .map(|member| id_of(member.node_id))
        .max();
    let mut next = used.unwrap_or_default() + 1;
    next = next.max(before.next_node_id.map_or(1, id_of));
    let mut seats = Vec::new();
    for pod in cluster.pods(group) {
        let node_id = match before.member(&pod) {
            Some(member) => id_of(member.node_id),
            None => {
                next += 1;
                next - 1
            }
        };
        let view = match world.view.brokers.get(&pod).map(|broker| &broker.state) {
            Some(BrokerState::Live(view)) if view.node_id == node_id => Some(Arc::clone(view)),
            _ => None,
        };
        seats.push(Seat {
            pod,
            node_id,
            view,
            disk_lost: false,
        });
    }
    (seats, next)
}

fn newest_leader(seats: &[Seat]) -> Option<(&Seat, &NodeView)> {
    let views = seats.iter().filter(|seat| !seat.disk_lost);
    let views = views.filter_map(|seat| Some((seat, seat.view.as_deref()?)));
    views
        .filter(|(_, view)| view.role == Role::Leader && view.initialized)
        .max_by_key(|(_, view)| view.term)
}

/// The record of how the group is formed: kept, confirmed, made, or taken over from brokers that
/// have been a group before there was this resource.
fn bootstrap(seats: &[Seat], before: &GroupStatus) -> Option<Bootstrap> {
    if let Some(recorded) = &before.bootstrap {
        let confirmed = recorded.members.iter().any(|member| {
            let view = view_of(seats, member);
            view.is_some_and(|view| view.initialized && view.incarnation == member.incarnation)
        });
        return Some(Bootstrap {
            members: recorded.members.clone(),
            formed: recorded.formed || confirmed,
        });
    }
    let is_old = |seat: &Seat| seat.view.as_ref().is_some_and(|view| view.initialized);
    if seats.iter().any(is_old) {
        let (_, leader) = newest_leader(seats)?;
        let known = leader
            .members
            .iter()
            .filter(|member| !member.incarnation.is_empty());
        return Some(Bootstrap {
            members: known.filter_map(recorded_member).collect(),
            formed: true,
        });
    }
    let fresh: Option<Vec<BootstrapMember>> = seats.iter().map(fresh_member).collect();
    let members = fresh?;
    // One data directory cannot be two members.
    let distinct: BTreeSet<&str> = members
        .iter()
        .map(|member| member.incarnation.as_str())
        .collect();
    (distinct.len() == members.len()).then_some(Bootstrap {
        members,
        formed: false,
    })
}

fn recorded_member(member: &Member) -> Option<BootstrapMember> {
    Some(BootstrapMember {
        node_id: i64::try_from(member.id).ok()?,
        address: member.address.clone(),
        incarnation: member.incarnation.clone(),
    })
}

/// A broker that waits to be formed into a group.
fn fresh_member(seat: &Seat) -> Option<BootstrapMember> {
    let view = seat.view.as_ref()?;
    let is_known = !view.incarnation.is_empty() && !view.raft_address.is_empty();
    (is_known && !view.initialized).then_some(BootstrapMember {
        node_id: i64::try_from(seat.node_id).ok()?,
        address: view.raft_address.clone(),
        incarnation: view.incarnation.clone(),
    })
}

fn view_of<'a>(seats: &'a [Seat], member: &BootstrapMember) -> Option<&'a NodeView> {
    let id = u64::try_from(member.node_id).ok()?;
    let seat = seats.iter().find(|seat| seat.node_id == id)?;
    seat.view.as_deref()
}

/// Compares every data directory with the one that belongs to its node id: by the word of the
/// leader, which has it from the log, else by the record.
fn mark_lost_disks(seats: &mut [Seat], bootstrap: Option<&Bootstrap>) {
    let Some(bootstrap) = bootstrap else { return };
    let by_leader: Vec<Member> = newest_leader(seats)
        .map(|(_, view)| view.members.clone())
        .unwrap_or_default();
    for seat in seats {
        let Some(view) = &seat.view else { continue };
        let named = by_leader.iter().find(|member| member.id == seat.node_id);
        let named = named.map(|member| member.incarnation.as_str());
        let mut recorded = bootstrap.members.iter();
        let recorded = recorded.find(|member| u64::try_from(member.node_id) == Ok(seat.node_id));
        let recorded = recorded.map(|member| member.incarnation.as_str());
        let expected = named.filter(|text| !text.is_empty()).or(recorded);
        seat.disk_lost = expected.is_some_and(|expected| expected != view.incarnation);
    }
}

fn role(seat: &Seat, bootstrap: Option<&Bootstrap>) -> MemberRole {
    match &seat.view {
        Some(_) if seat.disk_lost => MemberRole::DiskLost,
        Some(view) if !view.initialized => MemberRole::New,
        Some(view) => match view.role {
            Role::Leader => MemberRole::Leader,
            Role::Follower => MemberRole::Follower,
            Role::Candidate => MemberRole::Candidate,
            Role::Learner => MemberRole::Learner,
        },
        None if bootstrap.is_none() => MemberRole::New,
        None => MemberRole::Unreachable,
    }
}

/// Who leads must also be published, else clients are led elsewhere.
fn unavailable(
    group: &GroupId,
    world: &GroupWorld,
    seats: &[Seat],
    status: &GroupStatus,
) -> Option<Finding> {
    let Some(leader) = &status.leader else {
        return Some(no_leader(group, seats));
    };
    let leader_ip = world.view.brokers.get(leader).map(|broker| broker.ip);
    let published = world.view.published.as_ref();
    let is_published =
        published.is_some_and(|published| published.is_leader && published.ip == leader_ip);
    (!is_published).then(|| Finding {
        reason: "LeaderNotPublished",
        message: format!("Service {} does not lead to {leader} yet", group.leader()),
    })
}

/// Nobody leads, or whoever does cannot commit anything.
fn no_leader(group: &GroupId, seats: &[Seat]) -> Finding {
    let live = seats
        .iter()
        .filter(|seat| seat.view.is_some() && !seat.disk_lost);
    let (reason, what) = match newest_leader(seats) {
        Some((seat, _)) => (
            "NoQuorum",
            format!("{} leads group {} and has no quorum", seat.pod, group.group),
        ),
        None => ("NoLeader", format!("group {} has no leader", group.group)),
    };
    let message = format!(
        "{what}: {} of {} brokers answer, {} are needed",
        live.count(),
        seats.len(),
        seats.len() / 2 + 1
    );
    Finding { reason, message }
}

fn progress(
    group: &GroupId,
    world: &GroupWorld,
    seats: &[Seat],
    status: &GroupStatus,
) -> Option<Finding> {
    let finding = |reason, message: String| Some(Finding { reason, message });
    match &status.bootstrap {
        None => {
            let missing: Vec<String> = seats
                .iter()
                .filter(|seat| seat.view.is_none())
                .map(|seat| pod_with_trouble(world, &seat.pod))
                .collect();
            let what = if missing.is_empty() {
                "its brokers to agree on a leader".to_owned()
            } else {
                missing.join(", ")
            };
            finding(
                "Creating",
                format!("group {} waits for {what}", group.group),
            )
        }
        Some(bootstrap) if !bootstrap.formed => {
            finding("Forming", format!("group {} is being formed", group.group))
        }
        Some(_) => {
            let joining: Vec<&str> = seats
                .iter()
                .filter(|seat| role(seat, status.bootstrap.as_ref()) == MemberRole::New)
                .map(|seat| seat.pod.as_str())
                .collect();
            if joining.is_empty() {
                return None;
            }
            finding(
                "Joining",
                format!("waiting for {} to join", joining.join(", ")),
            )
        }
    }
}

fn pod_with_trouble(world: &GroupWorld, pod: &str) -> String {
    let facts = world.pods.get(pod);
    match facts.and_then(|facts| facts.trouble.as_ref()) {
        Some(trouble) => format!("{pod} ({trouble})"),
        None => pod.to_owned(),
    }
}

fn trouble(
    group: &GroupId,
    world: &GroupWorld,
    seats: &[Seat],
    status: &GroupStatus,
) -> Vec<Finding> {
    let Some(bootstrap) = &status.bootstrap else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    for seat in seats {
        match role(seat, Some(bootstrap)) {
            MemberRole::DiskLost => findings.push(disk_lost(group, seat, bootstrap.formed)),
            MemberRole::Unreachable => findings.push(Finding {
                reason: "MemberUnreachable",
                message: format!("{} does not answer", pod_with_trouble(world, &seat.pod)),
            }),
            MemberRole::Leader
            | MemberRole::Follower
            | MemberRole::Candidate
            | MemberRole::Learner => {
                // Without a leader nobody is ready, and that is said of the group.
                let is_behind = seat.view.as_ref().is_some_and(|view| !view.ready);
                if is_behind && status.leader.is_some() {
                    findings.push(Finding {
                        reason: "MemberBehind",
                        message: format!("{} has not caught up with the leader", seat.pod),
                    });
                }
            }
            MemberRole::New => {}
        }
    }
    findings
}

/// G3, in words.
fn disk_lost(group: &GroupId, seat: &Seat, formed: bool) -> Finding {
    let message = if formed {
        format!(
            "{} came back without the data of node {}: its volume was lost or replaced. It stays \
             outside group {}, because a voter that forgot its vote could elect a second leader; \
             the other brokers go on without it. Give the pod its old volume back; replacing a \
             member is not available in this version",
            seat.pod, seat.node_id, group.group
        )
    } else {
        format!(
            "{} lost its volume while group {} was being formed, and a group is never formed from \
             another set of volumes than the recorded one. If the cluster holds no messages yet, \
             delete the RaftCluster and its claims and create it again",
            seat.pod, group.group
        )
    };
    Finding {
        reason: "DiskLost",
        message,
    }
}

/// Pods that were not made from the newest template.
fn outdated(world: &GroupWorld) -> Option<Vec<String>> {
    let newest = world.set.as_ref()?.revision.as_ref()?;
    if world.pods.is_empty() {
        return None;
    }
    let pods = world
        .pods
        .values()
        .filter(|pod| pod.revision.as_ref() != Some(newest));
    Some(pods.map(|pod| pod.name.clone()).collect())
}

/// G2: forms a group from what stands in the status, which a former pass has written. The first
/// member is asked and nobody else, so that there is one place where a group begins.
fn step(
    group: &GroupId,
    world: &GroupWorld,
    seats: &[Seat],
    before: &GroupStatus,
    status: &GroupStatus,
) -> Option<Step> {
    let recorded = before.bootstrap.as_ref()?;
    let is_formed = status
        .bootstrap
        .as_ref()
        .is_some_and(|bootstrap| bootstrap.formed);
    if is_formed {
        return None;
    }
    let first = recorded
        .members
        .iter()
        .min_by_key(|member| member.node_id)?;
    let view = view_of(seats, first)?;
    if view.incarnation != first.incarnation {
        return None;
    }
    let seat = seats.iter().find(|seat| seat.node_id == view.node_id)?;
    let broker = world.view.brokers.get(&seat.pod)?;
    Some(Step::FormGroup {
        group: group.clone(),
        pod: seat.pod.clone(),
        ip: broker.ip,
        incarnation: first.incarnation.clone(),
        members: recorded.members.clone(),
    })
}
