//! L10: a message is stored as often as it was sent and not refused, at most; once, unless its
//! sender tried again.

use std::collections::{BTreeMap, BTreeSet};

use super::sightings;
use crate::sim::history::{History, Outcome};

pub(super) fn check(history: &History) -> Vec<String> {
    let mut attempts: BTreeMap<u64, usize> = BTreeMap::new();
    for send in &history.sends {
        if send.outcome != Outcome::Refused {
            *attempts.entry(send.id).or_default() += 1;
        }
    }
    let mut places: BTreeMap<u64, BTreeSet<(u32, u64)>> = BTreeMap::new();
    for (queue, offset, id) in sightings(history) {
        places.entry(id).or_default().insert((queue, offset));
    }
    let tries = |id: &u64| attempts.get(id).copied().unwrap_or(0);
    let often = places.iter().filter(|(id, at)| at.len() > tries(id));
    often
        .map(|(id, at)| {
            let tries = tries(id);
            format!("message {id} stands at {at:?} and was sent {tries} times")
        })
        .collect()
}

#[test]
fn a_message_stored_twice_by_one_send_is_found() {
    let mut history = super::sample::sound();
    for drain in &mut history.drains {
        drain.queues.insert(0, (0, vec![10, 11, 12, 10]));
    }
    assert_eq!(check(&history).len(), 1);
    history
        .sends
        .push(super::sample::send(10, (7, 8), Outcome::Unknown));
    assert_eq!(check(&history), Vec::<String>::new());
}
