//! The rules E1 to E4, one by one and against random worlds.

use proptest::prelude::*;

use super::*;

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

/// A broker whose node id is the last number of its address.
fn view(node_id: u64, role: Role, term: u64, last_index: u64) -> NodeView {
    NodeView {
        cluster: "orders".to_owned(),
        group: "broker-a".to_owned(),
        node_id,
        role,
        term,
        last_index,
        members: vec![],
        incarnation: format!("i{node_id}"),
        initialized: true,
        has_quorum: role == Role::Leader,
        ready: true,
        not_ready_reason: String::new(),
        raft_address: String::new(),
    }
}

const PODS: [&str; 4] = ["pod-0", "pod-1", "pod-2", "pod-3"];

fn replica(node_id: u8, contact: Contact<'_>) -> Replica<'_> {
    Replica {
        pod: PODS[usize::from(node_id)],
        ip: ip(node_id),
        terminating: false,
        contact,
        has_spoken: true,
    }
}

fn published(node_id: u8, term: u64, kind: Kind) -> Published {
    Published {
        ip: Some(ip(node_id)),
        term,
        leader: u64::from(node_id),
        kind,
    }
}

/// With an API server that knows no pod but these.
fn decide(
    replicas: &[Replica<'_>],
    published: Option<&Published>,
    handled: Option<Handled>,
) -> Option<Decision> {
    super::decide(replicas, published, true, handled)
}

fn publish(decision: Option<Decision>) -> Option<(Option<IpAddr>, u64, u64, Kind)> {
    let publish = decision?.publish;
    Some((publish.ip, publish.term, publish.leader, publish.kind))
}

#[test]
fn a_leader_of_a_newer_term_is_published_at_once() {
    let (old, new) = (view(1, Role::Leader, 4, 9), view(2, Role::Leader, 5, 9));
    let replicas = [
        replica(1, Contact::Live(&old)),
        replica(2, Contact::Live(&new)),
    ];
    let before = published(1, 4, Kind::Leader);
    let decision = decide(&replicas, Some(&before), None);
    assert_eq!(publish(decision), Some((Some(ip(2)), 5, 2, Kind::Leader)));
}

#[test]
fn nothing_is_written_while_the_published_leader_leads() {
    let (leader, follower) = (view(1, Role::Leader, 4, 9), view(2, Role::Follower, 4, 9));
    let replicas = [
        replica(1, Contact::Live(&leader)),
        replica(2, Contact::Live(&follower)),
    ];
    assert_eq!(
        decide(&replicas, Some(&published(1, 4, Kind::Leader)), None),
        None
    );
}

#[test]
fn a_leader_of_an_older_term_is_never_published() {
    let stale = view(1, Role::Leader, 3, 9);
    let replicas = [
        replica(1, Contact::Live(&stale)),
        replica(2, Contact::Unknown),
    ];
    assert_eq!(
        decide(&replicas, Some(&published(2, 4, Kind::Leader)), None),
        None
    );
}

#[test]
fn a_follower_that_names_a_leader_is_no_evidence() {
    let followers = [view(2, Role::Follower, 5, 9), view(3, Role::Follower, 5, 9)];
    let replicas = [
        replica(1, Contact::Unknown),
        replica(2, Contact::Live(&followers[0])),
        replica(3, Contact::Live(&followers[1])),
    ];
    assert_eq!(
        decide(&replicas, Some(&published(1, 4, Kind::Leader)), None),
        None
    );
}

#[test]
fn the_most_caught_up_replica_stands_in_when_the_leader_breaks() {
    let (behind, ahead) = (
        view(2, Role::Follower, 4, 90),
        view(3, Role::Follower, 4, 91),
    );
    let replicas = [
        replica(1, Contact::Broken(7)),
        replica(2, Contact::Live(&behind)),
        replica(3, Contact::Live(&ahead)),
    ];
    let decision = decide(&replicas, Some(&published(1, 4, Kind::Leader)), None).unwrap();
    assert_eq!(decision.pod, "pod-3");
    // Term and leader stay those of the leader that is lost: the next one has a newer term.
    assert_eq!(
        decision.publish,
        Published {
            ip: Some(ip(3)),
            term: 4,
            leader: 1,
            kind: Kind::StandIn
        }
    );
    assert!(decision.handles.is_some());
}

#[test]
fn a_pod_on_its_way_out_stands_in_only_when_there_is_no_other() {
    let (leaving, behind) = (
        view(2, Role::Follower, 4, 99),
        view(3, Role::Follower, 4, 1),
    );
    let mut replicas = vec![
        replica(1, Contact::Broken(1)),
        Replica {
            terminating: true,
            ..replica(2, Contact::Live(&leaving))
        },
        replica(3, Contact::Live(&behind)),
    ];
    let before = published(1, 4, Kind::Leader);
    assert_eq!(decide(&replicas, Some(&before), None).unwrap().pod, "pod-3");
    replicas.pop();
    assert_eq!(decide(&replicas, Some(&before), None).unwrap().pod, "pod-2");
}

#[test]
fn a_broker_outside_the_group_never_stands_in() {
    let fresh = NodeView {
        initialized: false,
        ..view(2, Role::Follower, 0, 0)
    };
    let replicas = [
        replica(1, Contact::Broken(1)),
        replica(2, Contact::Live(&fresh)),
    ];
    assert_eq!(
        decide(&replicas, Some(&published(1, 4, Kind::Leader)), None),
        None
    );
    assert_eq!(decide(&replicas, None, None), None);
}

#[test]
fn one_break_is_acted_upon_once_and_again_only_after_a_while() {
    let follower = view(2, Role::Follower, 4, 9);
    let mut replicas = [
        replica(1, Contact::Broken(7)),
        replica(2, Contact::Live(&follower)),
    ];
    let before = published(1, 4, Kind::Leader);
    let of = decide(&replicas, Some(&before), None)
        .unwrap()
        .handles
        .unwrap();
    // Another operator still reaches the leader and has put it back: leave it.
    let age = Duration::from_millis(1);
    assert_eq!(
        decide(&replicas, Some(&before), Some(Handled { of, age })),
        None
    );
    assert_eq!(
        again_in(Some(&before), Some(Handled { of, age })),
        Some(ACT_AGAIN_AFTER - age)
    );
    // The next break of the same pod is another one.
    replicas[0].contact = Contact::Broken(8);
    assert!(decide(&replicas, Some(&before), Some(Handled { of, age })).is_some());
    replicas[0].contact = Contact::Broken(7);
    let age = ACT_AGAIN_AFTER;
    assert!(decide(&replicas, Some(&before), Some(Handled { of, age })).is_some());
}

#[test]
fn a_leader_that_was_only_out_of_sight_comes_back_in_the_same_term() {
    let leader = view(1, Role::Leader, 4, 9);
    let replicas = [replica(1, Contact::Live(&leader))];
    let stand_in = Published {
        ip: Some(ip(2)),
        leader: 1,
        ..published(2, 4, Kind::StandIn)
    };
    let decision = decide(&replicas, Some(&stand_in), None);
    assert_eq!(publish(decision), Some((Some(ip(1)), 4, 1, Kind::Leader)));
}

#[test]
fn a_stand_in_of_another_operator_stays_until_the_leader_speaks_again() {
    let leader = view(1, Role::Leader, 4, 9);
    let mut replicas = [replica(1, Contact::Live(&leader))];
    replicas[0].has_spoken = false;
    let stand_in = Published {
        ip: Some(ip(2)),
        leader: 1,
        ..published(2, 4, Kind::StandIn)
    };
    let follower = view(2, Role::Follower, 4, 9);
    let replicas = [replicas[0].clone(), replica(2, Contact::Live(&follower))];
    assert_eq!(decide(&replicas, Some(&stand_in), None), None);
    assert_eq!(again_in(Some(&stand_in), None), Some(PROGRESS_INTERVAL / 2));
    // A newer term needs no second word.
    let newer = view(1, Role::Leader, 5, 9);
    let replicas = [
        Replica {
            contact: Contact::Live(&newer),
            ..replicas[0].clone()
        },
        replicas[1].clone(),
    ];
    let decision = decide(&replicas, Some(&stand_in), None);
    assert_eq!(publish(decision), Some((Some(ip(1)), 5, 1, Kind::Leader)));
}

#[test]
fn a_pod_that_is_gone_is_a_break_too_and_an_emptied_slice_as_well() {
    let follower = view(2, Role::Follower, 4, 9);
    let replicas = [replica(2, Contact::Live(&follower))];
    let mut before = published(1, 4, Kind::Leader);
    assert_eq!(decide(&replicas, Some(&before), None).unwrap().pod, "pod-2");
    before.ip = None;
    assert_eq!(decide(&replicas, Some(&before), None).unwrap().pod, "pod-2");
}

#[test]
fn without_a_leader_a_first_slice_leads_to_a_replica_and_any_leader_may_follow() {
    let follower = view(2, Role::Follower, 4, 9);
    let replicas = [replica(2, Contact::Live(&follower))];
    let decision = decide(&replicas, None, None);
    assert_eq!(publish(decision), Some((Some(ip(2)), 0, 0, Kind::StandIn)));
}

/// What the world looks like at one moment: contact to three brokers.
fn world() -> impl Strategy<Value = Vec<(u8, u64, u64, bool, u64)>> {
    // (state, term, index, terminating, epoch) for each broker
    proptest::collection::vec((0_u8..5, 1_u64..6, 0_u64..4, any::<bool>(), 0_u64..3), 3)
}

/// Another operator has published a leader whose pod the watch here has not shown yet: to push the
/// address back to a follower would take it away from a leader that is well.
#[test]
fn a_pod_that_is_not_in_the_cache_is_no_break_until_the_api_server_says_so() {
    let follower = view(1, Role::Follower, 5, 9);
    let replicas = [replica(1, Contact::Live(&follower))];
    let before = published(2, 5, Kind::Leader);
    assert_eq!(is_unknown(&replicas, Some(&before)), Some(ip(2)));
    assert_eq!(super::decide(&replicas, Some(&before), false, None), None);
    let gone = super::decide(&replicas, Some(&before), true, None);
    assert_eq!(gone.unwrap().pod, "pod-1");
    // A replica that is known and broken is a break, whatever was asked before.
    let replicas = [
        replica(1, Contact::Live(&follower)),
        replica(2, Contact::Broken(1)),
    ];
    assert_eq!(is_unknown(&replicas, Some(&before)), None);
    assert!(super::decide(&replicas, Some(&before), false, None).is_some());
}

proptest! {
    /// Whatever is seen in whatever order: the published term never falls, a published leader
    /// has said of itself that it leads in that term, a stand-in is alive, and one address always
    /// follows another.
    #[test]
    fn published_terms_rise_and_addresses_are_alive(worlds in proptest::collection::vec(world(), 1..30)) {
        let mut state: Option<Published> = None;
        let mut handled: Option<Handled> = None;
        for world in worlds {
            let views: Vec<NodeView> = world.iter().enumerate().map(|(at, (role, term, index, _, _))| {
                let id = at as u64 + 1;
                // One term has one leader: node (term mod 3) + 1.
                let role = if *role == 0 && term % 3 + 1 == id { Role::Leader } else { Role::Follower };
                view(id, role, *term, *index)
            }).collect();
            let replicas: Vec<Replica<'_>> = world.iter().zip(&views).map(|((state, _, _, terminating, epoch), view)| Replica {
                terminating: *terminating,
                ..replica(u8::try_from(view.node_id).unwrap(), match state {
                    0 | 1 => Contact::Live(view),
                    2 => Contact::Unknown,
                    _ => Contact::Broken(*epoch),
                })
            }).collect();
            for _ in 0..3 {
                let Some(decision) = decide(&replicas, state.as_ref(), handled) else { break };
                let target = replicas.iter().find(|replica| Some(replica.ip) == decision.publish.ip).unwrap();
                let Contact::Live(seen) = target.contact else { panic!("published a broker that is not alive") };
                prop_assert!(decision.publish.term >= state.as_ref().map_or(0, |state| state.term));
                if decision.publish.kind == Kind::Leader {
                    prop_assert_eq!(seen.role, Role::Leader);
                    prop_assert_eq!(seen.term, decision.publish.term);
                    prop_assert_eq!(seen.node_id, decision.publish.leader);
                }
                if let Some(of) = decision.handles {
                    handled = Some(Handled { of, age: Duration::ZERO });
                }
                state = Some(decision.publish);
            }
            // A decision that was carried out leads to no other in the same world.
            prop_assert_eq!(decide(&replicas, state.as_ref(), handled), None);
        }
    }
}
