//! The plan: bootstrap step by step, what it says, and its safety against random worlds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::brokers::{Member, NodeView, Role};
use crate::crd::MemberRole;
use crate::endpoints::{BrokerState, BrokerView, GroupView, PublishedView};
use crate::observe::{GroupWorld, PodFacts, SetFacts};
use crate::validate::tests::{defaults, resource};
use crate::validate::validate;

fn cluster() -> ValidCluster {
    validate(&resource(json!({"storage": {"size": "10Gi"}})), &defaults()).unwrap()
}

fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

fn ip(ordinal: u64) -> IpAddr {
    IpAddr::from([10, 0, 0, u8::try_from(ordinal).unwrap() + 1])
}

/// A broker of the group that has just started on an empty volume.
fn fresh(node_id: u64) -> NodeView {
    NodeView {
        cluster: "orders".to_owned(),
        group: "broker-a".to_owned(),
        node_id,
        role: Role::Follower,
        term: 0,
        last_index: 0,
        members: vec![],
        incarnation: format!("i{node_id}"),
        initialized: false,
        has_quorum: false,
        ready: false,
        not_ready_reason: "waits to be formed".to_owned(),
        raft_address: format!("pod-{node_id}:40911"),
    }
}

fn formed(node_id: u64, role: Role) -> NodeView {
    let member = |id: u64| Member {
        id,
        address: format!("pod-{id}:40911"),
        incarnation: format!("i{id}"),
    };
    NodeView {
        role,
        term: 2,
        last_index: 5,
        members: (1..=3).map(member).collect(),
        initialized: true,
        has_quorum: role == Role::Leader,
        ready: true,
        ..fresh(node_id)
    }
}

fn pod(ordinal: u64) -> String {
    format!("orders-broker-a-{ordinal}")
}

/// A world in which the API server has everything and brokers say `views`.
fn world(views: &[NodeView]) -> World {
    let brokers = views.iter().map(|view| {
        let ordinal = view.node_id - 1;
        let broker = BrokerView {
            ip: ip(ordinal),
            state: BrokerState::Live(Arc::new(view.clone())),
        };
        (pod(ordinal), broker)
    });
    let leader = views.iter().find(|view| view.role == Role::Leader);
    let group = GroupWorld {
        pods: (0..3)
            .map(|ordinal| {
                let facts = PodFacts {
                    name: pod(ordinal),
                    revision: Some("r1".to_owned()),
                    terminating: false,
                    trouble: None,
                };
                (pod(ordinal), facts)
            })
            .collect(),
        set: Some(SetFacts {
            revision: Some("r1".to_owned()),
        }),
        leader_ip: "10.96.0.7".parse().ok(),
        view: Arc::new(GroupView {
            brokers: brokers.collect(),
            published: leader.map(|leader| PublishedView {
                ip: Some(ip(leader.node_id - 1)),
                is_leader: true,
            }),
        }),
    };
    World {
        children: BTreeMap::new(),
        groups: BTreeMap::from([("broker-a".to_owned(), group)]),
    }
}

fn pass(status: &RaftClusterStatus, world: &World) -> Plan {
    let cluster = cluster();
    plan(Input {
        cluster: &cluster,
        status,
        world,
        now: now(),
    })
    .unwrap()
}

fn kinds(plan: &Plan) -> Vec<String> {
    let names = plan
        .apply
        .iter()
        .map(|object| (&object.resource.kind, &object.name));
    names.map(|(kind, name)| format!("{kind}/{name}")).collect()
}

fn condition<'a>(status: &'a RaftClusterStatus, kind: &str) -> (&'a str, &'a str, &'a str) {
    let condition = status
        .conditions
        .iter()
        .find(|one| one.type_ == kind)
        .unwrap();
    (&condition.status, &condition.reason, &condition.message)
}

/// The status after the group was formed and a leader was seen.
fn settled() -> RaftClusterStatus {
    let mut status = RaftClusterStatus::default();
    let fresh: Vec<NodeView> = (1..=3).map(fresh).collect();
    for world in [world(&fresh), world(&fresh), world(&leader_and_followers())] {
        status = pass(&status, &world).status;
    }
    status
}

fn leader_and_followers() -> Vec<NodeView> {
    vec![
        formed(1, Role::Follower),
        formed(2, Role::Leader),
        formed(3, Role::Follower),
    ]
}

#[test]
fn ids_stand_in_the_status_before_any_object_names_them() {
    let first = pass(&RaftClusterStatus::default(), &World::default());
    assert_eq!(
        kinds(&first),
        [
            "ServiceAccount/orders-broker",
            "Service/orders-namesrv",
            "Service/orders-broker-a-peers",
            "Service/orders-broker-a-leader"
        ]
    );
    let members = &first.status.groups[0].members;
    let ids: Vec<i64> = members.iter().map(|member| member.node_id).collect();
    assert_eq!(
        (ids, first.status.groups[0].next_node_id),
        (vec![1, 2, 3], Some(4))
    );
    // The status alone is not enough: brokers are told the address of the leader Service.
    assert_eq!(kinds(&pass(&first.status, &World::default())).len(), 4);
    let second = pass(&first.status, &world(&[]));
    let expected = [
        "ConfigMap/orders-broker-a-config",
        "PodDisruptionBudget/orders-broker-a",
        "StatefulSet/orders-broker-a",
    ];
    assert_eq!(kinds(&second)[4..], expected);
}

#[test]
fn a_group_is_recorded_first_then_formed_from_the_record_at_its_first_member() {
    let views: Vec<NodeView> = (1..=3).map(fresh).collect();
    let recorded = pass(&RaftClusterStatus::default(), &world(&views));
    assert_eq!(
        recorded.step, None,
        "nothing is formed before the record is written"
    );
    let bootstrap = recorded.status.groups[0].bootstrap.clone().unwrap();
    assert!(!bootstrap.formed);
    let forming = pass(&recorded.status, &world(&views));
    let Some(Step::FormGroup {
        pod: asked,
        ip: address,
        incarnation,
        members,
        ..
    }) = forming.step
    else {
        panic!("no step");
    };
    assert_eq!(
        (asked, address, incarnation.as_str()),
        (pod(0), ip(0), "i1")
    );
    assert_eq!(members, bootstrap.members);
    assert_eq!(condition(&forming.status, "Progressing").1, "Forming");
    // Asked again until a broker says that it is formed, also when nobody else answers.
    assert!(pass(&forming.status, &world(&views[..1])).step.is_some());
    let mut first = formed(1, Role::Follower);
    first.ready = false;
    let done = pass(&forming.status, &world(&[first]));
    assert_eq!(done.step, None);
    assert!(done.status.groups[0].bootstrap.as_ref().unwrap().formed);
}

#[test]
fn a_group_with_a_missing_broker_is_not_recorded() {
    let views = [fresh(1), fresh(3)];
    let plan = pass(&RaftClusterStatus::default(), &world(&views));
    assert_eq!(plan.status.groups[0].bootstrap, None);
    let (_, reason, message) = condition(&plan.status, "Ready");
    assert_eq!(reason, "Creating");
    assert!(message.contains("orders-broker-a-1"), "{message}");
}

#[test]
fn a_recorded_group_is_never_formed_from_another_set() {
    let mut views: Vec<NodeView> = (1..=3).map(fresh).collect();
    let recorded = pass(&RaftClusterStatus::default(), &world(&views)).status;
    views[0].incarnation = "another".to_owned();
    let plan = pass(&recorded, &world(&views));
    assert_eq!(plan.step, None);
    assert_eq!(
        plan.status.groups[0].bootstrap,
        recorded.groups[0].bootstrap
    );
    let (status, reason, message) = condition(&plan.status, "Degraded");
    assert_eq!((status, reason), ("True", "DiskLost"));
    assert!(
        message.contains("delete the RaftCluster and its claims"),
        "{message}"
    );
}

#[test]
fn a_leader_that_is_published_makes_the_cluster_ready() {
    let plan = pass(&settled(), &world(&leader_and_followers()));
    assert_eq!(condition(&plan.status, "Ready").0, "True");
    assert_eq!(condition(&plan.status, "ConfigApplied").0, "True");
    let group = &plan.status.groups[0];
    assert_eq!(
        (group.leader.as_deref(), group.term),
        (Some("orders-broker-a-1"), Some(2))
    );
    let summary = plan.status.summary.clone().unwrap();
    assert_eq!(
        (summary.leaders.as_str(), summary.members.as_str()),
        ("1/1", "3/3")
    );
    assert_eq!(plan.again, SETTLED_AGAIN);
    // The same world again: the same status, and nothing to tell.
    let again = pass(&plan.status, &world(&leader_and_followers()));
    assert_eq!((again.status, again.notices), (plan.status, vec![]));
}

#[test]
fn a_leader_that_is_not_published_yet_is_not_available() {
    let mut world = world(&leader_and_followers());
    let group = world.groups.get_mut("broker-a").unwrap();
    let mut view = (*group.view).clone();
    view.published = Some(PublishedView {
        ip: Some(ip(0)),
        is_leader: false,
    });
    group.view = Arc::new(view);
    let plan = pass(&settled(), &world);
    assert_eq!(condition(&plan.status, "Available").1, "LeaderNotPublished");
    assert_eq!(condition(&plan.status, "Ready").0, "False");
}

#[test]
fn a_broker_without_its_data_is_named_and_never_made_part_of_the_group() {
    let mut views = leader_and_followers();
    views[2] = NodeView {
        incarnation: "another".to_owned(),
        ..fresh(3)
    };
    let plan = pass(&settled(), &world(&views));
    assert_eq!(plan.step, None);
    let member = &plan.status.groups[0].members[2];
    assert_eq!(
        (member.role, member.caught_up, member.node_id),
        (MemberRole::DiskLost, false, 3)
    );
    let (status, reason, message) = condition(&plan.status, "Degraded");
    assert_eq!((status, reason), ("True", "DiskLost"));
    assert!(
        message.contains("orders-broker-a-2") && message.contains("node 3"),
        "{message}"
    );
    assert_eq!(
        condition(&plan.status, "Available").0,
        "True",
        "the others go on"
    );
    assert!(
        plan.notices
            .iter()
            .any(|notice| notice.warning && notice.reason == "DiskLost")
    );
}

#[test]
fn the_words_of_the_leader_outweigh_the_record() {
    // Member 3 was replaced by a later release: the leader's log knows its new directory.
    let mut views = leader_and_followers();
    views[2].incarnation = "i3-new".to_owned();
    for view in &mut views {
        view.members[2].incarnation = "i3-new".to_owned();
    }
    let plan = pass(&settled(), &world(&views));
    assert_eq!(condition(&plan.status, "Degraded").0, "False");
}

#[test]
fn brokers_that_are_a_group_already_are_taken_over_and_not_formed_again() {
    let plan = pass(
        &RaftClusterStatus::default(),
        &world(&leader_and_followers()),
    );
    let bootstrap = plan.status.groups[0].bootstrap.clone().unwrap();
    assert!(bootstrap.formed);
    let incarnations: Vec<&str> = bootstrap
        .members
        .iter()
        .map(|member| member.incarnation.as_str())
        .collect();
    assert_eq!(incarnations, ["i1", "i2", "i3"]);
    assert_eq!(plan.step, None);
    // One old and two fresh brokers, and no leader: nothing is recorded, nothing is formed.
    let views = [formed(1, Role::Candidate), fresh(2), fresh(3)];
    let plan = pass(&RaftClusterStatus::default(), &world(&views));
    assert_eq!(
        (plan.step, plan.status.groups[0].bootstrap.clone()),
        (None, None)
    );
}

#[test]
fn a_broker_that_speaks_for_another_node_is_not_believed() {
    let mut world = world(&leader_and_followers());
    let group = world.groups.get_mut("broker-a").unwrap();
    let mut view = (*group.view).clone();
    let foreign = BrokerState::Live(Arc::new(formed(9, Role::Leader)));
    view.brokers.get_mut(&pod(0)).unwrap().state = foreign;
    group.view = Arc::new(view);
    let plan = pass(&settled(), &world);
    assert_eq!(
        plan.status.groups[0].leader.as_deref(),
        Some("orders-broker-a-1")
    );
    assert_eq!(
        plan.status.groups[0].members[0].role,
        MemberRole::Unreachable
    );
}

#[test]
fn an_unreachable_broker_degrades_and_the_others_go_on() {
    let views = [formed(1, Role::Follower), formed(2, Role::Leader)];
    let mut world = world(&views);
    let pods = &mut world.groups.get_mut("broker-a").unwrap().pods;
    pods.get_mut(&pod(2)).unwrap().trouble = Some("CrashLoopBackOff".to_owned());
    let plan = pass(&settled(), &world);
    assert_eq!(condition(&plan.status, "Available").0, "True");
    let (status, reason, message) = condition(&plan.status, "Degraded");
    assert_eq!((status, reason), ("True", "MemberUnreachable"));
    assert_eq!(
        message,
        "orders-broker-a-2 (CrashLoopBackOff) does not answer"
    );
}

#[test]
fn a_broker_is_behind_only_when_there_is_a_leader_to_be_behind() {
    let behind = |view: NodeView| NodeView {
        ready: false,
        ..view
    };
    let mut views = leader_and_followers();
    views[2] = behind(views[2].clone());
    let plan = pass(&settled(), &world(&views));
    let (status, reason, _) = condition(&plan.status, "Degraded");
    assert_eq!((status, reason), ("True", "MemberBehind"));
    let leaderless = [1, 2, 3].map(|id| behind(formed(id, Role::Follower)));
    let plan = pass(&settled(), &world(&leaderless));
    assert_eq!(condition(&plan.status, "Degraded").0, "False");
    let (status, reason, _) = condition(&plan.status, "Ready");
    assert_eq!((status, reason), ("False", "NoLeader"));
}

#[test]
fn pods_of_an_older_template_are_named() {
    let mut world = world(&leader_and_followers());
    let set = &mut world.groups.get_mut("broker-a").unwrap().set;
    set.as_mut().unwrap().revision = Some("r2".to_owned());
    let plan = pass(&settled(), &world);
    let (status, reason, message) = condition(&plan.status, "ConfigApplied");
    assert_eq!((status, reason), ("False", "RestartNeeded"));
    assert!(
        message.contains("orders-broker-a-0, orders-broker-a-1"),
        "{message}"
    );
    assert_eq!(condition(&plan.status, "Ready").0, "True");
}

#[test]
fn objects_of_others_are_left_alone_and_named() {
    let mut world = world(&leader_and_followers());
    let key = ("Service".to_owned(), "orders-broker-a-leader".to_owned());
    let owner =
        json!({"kind": "RaftCluster", "name": "orders-broker", "uid": "u9", "controller": true});
    world
        .children
        .insert(key, json!({"metadata": {"ownerReferences": [owner]}}));
    let plan = pass(&settled(), &world);
    assert!(!kinds(&plan).contains(&"Service/orders-broker-a-leader".to_owned()));
    let (status, reason, message) = condition(&plan.status, "Ready");
    assert_eq!((status, reason), ("False", "NameTaken"));
    assert!(message.contains("RaftCluster orders-broker"), "{message}");
}

#[test]
fn what_matches_is_not_written_again() {
    let status = settled();
    let mut world = world(&leader_and_followers());
    let all = pass(&status, &world).apply;
    for object in all {
        let mut body: Value = object.body.clone();
        body["metadata"]["resourceVersion"] = json!("7");
        world
            .children
            .insert((object.resource.kind.clone(), object.name), body);
    }
    assert_eq!(pass(&status, &world).apply, vec![]);
}

#[test]
fn a_paused_cluster_is_reported_and_not_touched() {
    let spec = json!({"storage": {"size": "10Gi"}, "paused": true});
    let cluster = validate(&resource(spec), &defaults()).unwrap();
    let views: Vec<NodeView> = (1..=3).map(fresh).collect();
    let status = pass(&RaftClusterStatus::default(), &world(&views)).status;
    let plan = plan(Input {
        cluster: &cluster,
        status: &status,
        world: &world(&views),
        now: now(),
    })
    .unwrap();
    assert_eq!((plan.apply, plan.step), (vec![], None));
    assert_eq!(condition(&plan.status, "Paused").0, "True");
}

#[test]
fn an_invalid_specification_is_said_and_the_rest_of_the_status_stays() {
    let before = settled();
    let invalid = Invalid {
        field: "spec.podTemplate.spec".to_owned(),
        message: "is not a pod".to_owned(),
    };
    let plan = plan_invalid(&invalid, &before, Some(4), now());
    assert_eq!(plan.status.groups, before.groups);
    let (_, reason, message) = condition(&plan.status, "Ready");
    assert_eq!(reason, "InvalidSpec");
    assert!(
        message.starts_with("spec.podTemplate.spec: is not a pod"),
        "{message}"
    );
    assert_eq!(
        condition(&plan.status, "Available"),
        condition(&before, "Available")
    );
    assert!(
        plan.notices
            .iter()
            .any(|notice| notice.reason == "InvalidSpec")
    );
}

#[test]
fn times_of_conditions_change_only_with_their_status() {
    let before = settled();
    let cluster = cluster();
    let later = Timestamp::from_second(1_700_000_900).unwrap();
    let views = [formed(1, Role::Follower), formed(2, Role::Leader)];
    let after = plan(Input {
        cluster: &cluster,
        status: &before,
        world: &world(&views),
        now: later,
    })
    .unwrap()
    .status;
    let time = |status: &RaftClusterStatus, kind: &str| {
        let condition = status
            .conditions
            .iter()
            .find(|one| one.type_ == kind)
            .unwrap();
        condition.last_transition_time.0
    };
    assert_eq!(time(&after, "Available"), time(&before, "Available"));
    assert_eq!(time(&after, "Degraded"), later);
}

/// What one broker may look like at some moment: silent, fresh or formed, with this or another
/// data directory.
fn any_view() -> impl Strategy<Value = Option<(bool, u8, bool)>> {
    proptest::option::weighted(0.8, (any::<bool>(), 0_u8..2, any::<bool>()))
}

#[test]
fn a_leader_without_a_quorum_is_not_shown_as_one() {
    let mut cut_off = formed(1, Role::Leader);
    let plan = pass(&settled(), &world(&[cut_off.clone()]));
    assert_eq!(condition(&plan.status, "Available").0, "True");
    cut_off.has_quorum = false;
    let plan = pass(&plan.status, &world(&[cut_off]));
    assert_eq!(plan.status.groups[0].leader, None);
    for kind in ["Available", "Ready"] {
        let (status, reason, message) = condition(&plan.status, kind);
        assert_eq!((status, reason), ("False", "NoQuorum"), "{kind}: {message}");
    }
}

proptest! {
    /// Whatever brokers say in whatever order, and wherever a pass dies before its status is
    /// written: ids are kept and never used twice, the record never changes once it is written,
    /// and what is formed is always what was recorded before.
    #[test]
    fn ids_and_the_record_are_for_ever(
        passes in proptest::collection::vec((proptest::collection::vec(any_view(), 3), any::<bool>()), 1..40)
    ) {
        let mut status = RaftClusterStatus::default();
        let mut ids: BTreeMap<String, i64> = BTreeMap::new();
        for (brokers, is_written) in passes {
            let views: Vec<NodeView> = brokers.iter().zip(1_u64..).filter_map(|(broker, id)| {
                let (is_formed, directory, leads) = (*broker)?;
                let role = if leads && id == 2 { Role::Leader } else { Role::Follower };
                let mut view = if is_formed { formed(id, role) } else { fresh(id) };
                view.incarnation = format!("i{id}-{directory}");
                for member in &mut view.members {
                    member.incarnation = format!("i{}-0", member.id);
                }
                Some(view)
            }).collect();
            let plan = pass(&status, &world(&views));
            let group = &plan.status.groups[0];
            for member in &group.members {
                let known = ids.entry(member.pod.clone()).or_insert(member.node_id);
                prop_assert_eq!(*known, member.node_id);
                prop_assert!(group.next_node_id.unwrap() > member.node_id);
            }
            prop_assert_eq!(ids.values().collect::<BTreeSet<_>>().len(), ids.len());
            let before = status.groups.first().and_then(|group| group.bootstrap.clone());
            if let Some(before) = &before {
                let after = group.bootstrap.clone().unwrap();
                prop_assert_eq!(&after.members, &before.members);
                prop_assert!(after.formed || !before.formed);
            }
            if let Some(Step::FormGroup { members, incarnation, .. }) = &plan.step {
                let before = before.unwrap();
                prop_assert!(!before.formed);
                prop_assert_eq!(members, &before.members);
                prop_assert_eq!(incarnation, &before.members[0].incarnation);
            }
            if is_written {
                status = plan.status;
            }
        }
    }
}
