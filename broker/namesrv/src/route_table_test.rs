//! Tests of the route table.

use super::*;

const QUEUES: Queues = Queues {
    read_queue_nums: 4,
    write_queue_nums: 4,
    perm: 6,
    topic_sys_flag: 0,
};

fn version(state_version: i64, counter: i64) -> DataVersion {
    DataVersion {
        state_version,
        timestamp: 1,
        counter,
    }
}

fn registration(address: &str, broker_id: u64, version: DataVersion) -> Registration {
    Registration {
        cluster_name: "C".to_owned(),
        broker_name: "b".to_owned(),
        broker_address: address.to_owned(),
        broker_id,
        ha_server_address: format!("{address}-ha"),
        heartbeat_timeout_ms: None,
        enable_acting_master: false,
        version,
        topics: vec![("T".to_owned(), QUEUES)],
        topics_are_all: false,
        connection: ConnectionId(address.len() as u64),
    }
}

fn addresses(table: &RouteTable) -> Vec<(u64, &str)> {
    let Some(broker) = table.brokers().get("b") else {
        return Vec::new();
    };
    broker
        .addresses
        .iter()
        .map(|(id, address)| (*id, address.as_str()))
        .collect()
}

/// a leads, b1 and c follow.
fn group() -> RouteTable {
    let mut table = RouteTable::default();
    for (address, broker_id) in [("a", 0), ("b1", 2), ("c", 3)] {
        table
            .register(registration(address, broker_id, version(1, 1)), 0)
            .unwrap();
    }
    table
}

#[test]
fn a_route_names_every_address_of_the_broker() {
    let route = group().route("T").unwrap();
    assert_eq!(route.queues, [("b".to_owned(), QUEUES)]);
    assert_eq!(route.brokers[0].1.addresses.len(), 3);
    assert_eq!(group().route("U"), None);
}

#[test]
fn a_new_leader_replaces_the_old_one_in_one_step() {
    let mut table = group();
    table
        .register(registration("b1", 0, version(2, 1)), 0)
        .unwrap();
    assert_eq!(addresses(&table), [(0, "b1"), (3, "c")]);
    assert!(table.route("T").is_some());
    table
        .register(registration("a", 1, version(2, 1)), 0)
        .unwrap();
    assert_eq!(addresses(&table), [(0, "b1"), (1, "a"), (3, "c")]);
}

#[test]
fn a_leader_that_steps_down_first_leaves_no_leader_and_keeps_the_topics() {
    let mut table = group();
    table
        .register(registration("a", 1, version(2, 1)), 0)
        .unwrap();
    assert_eq!(addresses(&table), [(1, "a"), (2, "b1"), (3, "c")]);
    assert_eq!(table.route("T").unwrap().queues[0].1.perm, 6);
}

#[test]
fn the_sole_address_of_a_broker_keeps_its_topics_through_a_role_switch() {
    let mut table = RouteTable::default();
    table
        .register(registration("a", 1, version(1, 1)), 0)
        .unwrap();
    let mut leader = registration("a", 0, version(2, 1));
    leader.topics = vec![("U".to_owned(), QUEUES)];
    table.register(leader, 0).unwrap();
    assert_eq!(addresses(&table), [(0, "a")]);
    assert_eq!(table.topics_where(|_| true), ["T", "U"]);
}

#[test]
fn a_deposed_leader_cannot_take_the_role_back() {
    let mut table = group();
    table
        .register(registration("b1", 0, version(2, 1)), 0)
        .unwrap();
    let refused = table.register(registration("a", 0, version(1, 9)), 0);
    assert!(matches!(refused, Err(RegisterError::Stale { holder, .. }) if holder == "b1"));
    assert_eq!(addresses(&table), [(0, "b1"), (3, "c")]);
}

#[test]
fn a_deposed_leader_cannot_claim_an_address_it_shares_with_the_new_one() {
    let mut table = group();
    let shared = |connection, term| Registration {
        connection: ConnectionId(connection),
        ..registration("shared", 0, version(term, 1))
    };
    table.register(shared(7, 2), 0).unwrap();
    table.register(shared(8, 3), 0).unwrap();
    let refused = table.register(shared(7, 2), 0);
    assert!(matches!(refused, Err(RegisterError::Stale { .. })));
    table.connection_closed(ConnectionId(7));
    assert_eq!(addresses(&table)[0], (0, "shared"));
    // Over its own connection a broker may say what it wants.
    table.register(shared(8, 1), 0).unwrap();
}

#[test]
fn a_follower_that_moved_to_another_address_replaces_the_old_one() {
    let mut table = group();
    table
        .register(registration("dddd", 3, version(1, 1)), 0)
        .unwrap();
    assert_eq!(addresses(&table), [(0, "a"), (2, "b1"), (3, "dddd")]);
}

#[test]
fn followers_are_told_the_leader_and_the_leader_nobody() {
    let mut table = group();
    let told = table
        .register(registration("c", 3, version(1, 1)), 0)
        .unwrap();
    assert_eq!(
        (
            told.master_address.as_str(),
            told.ha_server_address.as_str()
        ),
        ("a", "a-ha")
    );
    let told = table
        .register(registration("a", 0, version(1, 1)), 0)
        .unwrap();
    assert_eq!(told, Registered::default());
}

#[test]
fn topics_of_followers_do_not_count_while_there_is_a_leader() {
    let mut table = group();
    let mut follower = registration("c", 3, version(1, 2));
    follower.topics = vec![("OLD".to_owned(), QUEUES)];
    table.register(follower, 0).unwrap();
    assert_eq!(table.topics_where(|_| true), ["T"]);
}

#[test]
fn a_wiped_permission_stays_until_the_topics_change() {
    let mut table = group();
    assert_eq!(table.wipe_write_perm("b"), 1);
    table
        .register(registration("a", 0, version(1, 1)), 0)
        .unwrap();
    assert_eq!(table.route("T").unwrap().queues[0].1.perm, 4);
    table
        .register(registration("a", 0, version(1, 2)), 0)
        .unwrap();
    assert_eq!(table.route("T").unwrap().queues[0].1.perm, 6);
    table.wipe_write_perm("b");
    assert_eq!(table.add_write_perm("b"), 1);
    assert_eq!(table.route("T").unwrap().queues[0].1.perm, 6);
}

#[test]
fn silence_drops_a_broker_after_its_own_time() {
    let mut table = group();
    let mut quick = registration("c", 3, version(1, 1));
    quick.heartbeat_timeout_ms = Some(1_000);
    table.register(quick, 0).unwrap();
    assert_eq!(table.expire(1_000), Vec::<String>::new());
    assert_eq!(table.expire(1_001), ["c"]);
    table.seen("a", 100_000);
    assert_eq!(table.expire(120_001), ["b1"]);
    assert_eq!(addresses(&table), [(0, "a")]);
}

#[test]
fn a_closed_connection_drops_what_was_registered_over_it_and_nothing_later() {
    let mut table = group();
    let mut again = registration("a", 0, version(1, 1));
    again.connection = ConnectionId(99);
    table.register(again, 0).unwrap();
    // "a" and "c" have names of one letter: the same connection in these tests.
    assert_eq!(table.connection_closed(ConnectionId(1)), ["c"]);
    assert_eq!(addresses(&table), [(0, "a"), (2, "b1")]);
}

#[test]
fn the_last_address_takes_the_broker_and_its_topics_along() {
    let mut table = group();
    for address in ["a", "b1", "c", "c", "unknown"] {
        table.unregister(address);
    }
    assert_eq!(table.brokers().len(), 0);
    assert_eq!(table.topics_where(|_| true), Vec::<String>::new());
}

#[test]
fn topics_can_be_deleted_in_one_cluster() {
    let mut table = group();
    let mut other = registration("other", 0, version(0, 0));
    other.broker_name = "o".to_owned();
    other.cluster_name = "D".to_owned();
    table.register(other, 0).unwrap();
    assert_eq!(
        table.clusters(),
        BTreeMap::from([("C", vec!["b"]), ("D", vec!["o"])])
    );
    table.delete_topic("T", Some("C"));
    assert_eq!(table.route("T").unwrap().queues.len(), 1);
    assert_eq!(table.topics_of_cluster("C"), Vec::<String>::new());
    assert_eq!(table.topics_of_cluster("D"), ["T"]);
    table.delete_topic("T", None);
    assert_eq!(table.route("T"), None);
}

#[test]
fn a_registration_of_all_topics_drops_the_others() {
    let mut table = group();
    let mut all = registration("a", 0, version(1, 2));
    all.topics = vec![("U".to_owned(), QUEUES)];
    all.topics_are_all = true;
    table.register(all, 0).unwrap();
    assert_eq!(table.topics_where(|_| true), ["U"]);
}

#[test]
fn a_single_topic_is_added_for_known_brokers_only() {
    let mut table = group();
    let on = vec![("b".to_owned(), QUEUES), ("x".to_owned(), QUEUES)];
    // The connection of a follower does not speak for the group.
    table
        .register_topic("U", on.clone(), ConnectionId(2))
        .unwrap();
    assert_eq!(table.route("U"), None);
    table.register_topic("U", on, ConnectionId(1)).unwrap();
    assert_eq!(table.route("U").unwrap().queues.len(), 1);
    let long = "x".repeat(NAMESRV_NAME_BYTES_MAX + 1);
    assert!(
        table
            .register_topic(&long, vec![], ConnectionId(1))
            .is_err()
    );
}

#[test]
fn rows_are_counted_and_bounded() {
    let mut table = group();
    let mut more = registration("a", 0, version(1, 2));
    more.topics.push(("U".to_owned(), QUEUES));
    table.register(more.clone(), 0).unwrap();
    table.topics.rows = NAMESRV_TOPIC_ROWS_MAX;
    // What is there may come again, as with every change of role.
    assert!(table.check(&more).is_ok());
    more.topics.push(("V".to_owned(), QUEUES));
    assert_eq!(table.check(&more), Err(RegisterError::Full("topics")));
    let on = vec![("b".to_owned(), QUEUES)];
    assert!(
        table
            .register_topic("V", on.clone(), ConnectionId(1))
            .is_err()
    );
    assert!(table.register_topic("U", on, ConnectionId(1)).is_ok());
    table.topics.rows = 2;
    table.delete_topic("T", None);
    table.delete_topic("nothing", None);
    assert_eq!(table.topics.rows, 1);
    for address in ["a", "b1", "c"] {
        table.unregister(address);
    }
    assert_eq!(table.topics.rows, 0);
}

#[test]
fn any_sequence_of_registrations_keeps_one_leader_and_one_id_per_address() {
    // The invariants are checked inside after each step.
    let mut table = RouteTable::default();
    let mut random = 12_345_u64;
    for step in 0..2_000_i64 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let address = ["a", "bb", "ccc", "dddd"][(random >> 33) as usize % 4];
        let broker_id = (random >> 40) % 4;
        match (random >> 50) % 8 {
            0 => table.unregister(address),
            1 => drop(table.connection_closed(ConnectionId(address.len() as u64))),
            2 => drop(table.expire(step.unsigned_abs() * 100)),
            kind => {
                let mut registration = registration(address, broker_id, version(step / 9, step));
                registration.broker_name = ["b", "o"][kind as usize % 2].to_owned();
                drop(table.register(registration, step.unsigned_abs() * 100));
            }
        }
    }
}
