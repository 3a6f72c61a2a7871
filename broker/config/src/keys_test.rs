//! Tests of the table of keys.

use std::collections::BTreeSet;

use super::*;

#[test]
fn the_nearest_key_of_a_very_long_one_is_none_at_once() {
    let begin = std::time::Instant::now();
    assert_eq!(BROKER.nearest(&"k".repeat(64 << 10)), None);
    // Comparing it with every known key takes half a minute in a test build.
    assert!(begin.elapsed() < std::time::Duration::from_secs(5));
    for near in ["listenPor", "listenPortt", "Listenport"] {
        assert_eq!(BROKER.nearest(near), Some("listenPort"), "{near}");
    }
}

fn each_key_stands_in_one_row<C>(table: &Table<C>, twice_allowed: &[&str]) {
    let mut seen = BTreeSet::new();
    let repeated: Vec<_> = table.names().filter(|name| !seen.insert(*name)).collect();
    assert_eq!(repeated, twice_allowed);
}

#[test]
fn a_key_stands_in_one_row() {
    each_key_stands_in_one_row(&BROKER, &[]);
    // The name server can be told its idle time, a broker cannot.
    each_key_stands_in_one_row(&NAMESRV, &["serverChannelMaxIdleTimeSeconds"]);
}

#[test]
fn distance_counts_edits() {
    assert_eq!(edit_distance("kitten", "sitting"), 3);
    assert_eq!(edit_distance("", "abc"), 3);
    assert_eq!(edit_distance("same", "same"), 0);
}

#[test]
fn a_key_far_from_all_others_has_no_neighbour() {
    assert_eq!(BROKER.nearest("listnPort"), Some("listenPort"));
    assert_eq!(BROKER.nearest("LISTENPORT"), Some("listenPort"));
    assert_eq!(BROKER.nearest("zzzzzz"), None);
}
