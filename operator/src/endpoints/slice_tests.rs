//! What is written reads back, and what nobody wrote reads as nothing.

use super::*;

fn group() -> GroupId {
    GroupId {
        namespace: "mq".to_owned(),
        cluster: "orders".to_owned(),
        group: "broker-a".to_owned(),
    }
}

fn owner(uid: &str) -> OwnerReference {
    OwnerReference {
        uid: uid.to_owned(),
        ..OwnerReference::default()
    }
}

fn slice(ip: IpAddr) -> (Published, EndpointSlice) {
    let published = Published {
        ip: Some(ip),
        term: 7,
        leader: 2,
        kind: Kind::Leader,
    };
    let target = Target {
        name: "orders-broker-a-1".to_owned(),
        uid: "u".to_owned(),
        node: Some("node-1".to_owned()),
    };
    let slice = build(
        &group(),
        &owner("c"),
        &published,
        ip,
        &target,
        Some("42".to_owned()),
    );
    (published, slice)
}

#[test]
fn a_slice_reads_back_as_it_was_written() {
    let (published, slice) = slice(IpAddr::from([10, 0, 0, 1]));
    assert_eq!(read(&slice), published);
    assert!(is_owned_by(&slice, &owner("c")));
    assert!(!is_owned_by(&slice, &owner("d")));
    insta::assert_snapshot!(serde_yaml::to_string(&slice).unwrap());
}

#[test]
fn the_family_of_the_address_is_in_name_and_type() {
    let (_, slice) = slice("fd00::1".parse().unwrap());
    assert_eq!(
        slice.metadata.name.as_deref(),
        Some("orders-broker-a-leader-ipv6")
    );
    assert_eq!(slice.address_type, "IPv6");
}

#[test]
fn two_addresses_and_foreign_annotations_count_as_nothing() {
    let (_, mut slice) = slice(IpAddr::from([10, 0, 0, 1]));
    let endpoints = slice.endpoints.as_mut().unwrap();
    endpoints.push(endpoints[0].clone());
    let annotations = slice.metadata.annotations.as_mut().unwrap();
    annotations.insert(ANNOTATION_TERM.to_owned(), "seven".to_owned());
    annotations.remove(ANNOTATION_PUBLISHED);
    let expected = Published {
        ip: None,
        term: 0,
        leader: 2,
        kind: Kind::StandIn,
    };
    assert_eq!(read(&slice), expected);
}
