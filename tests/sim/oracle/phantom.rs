//! L2, no phantom: every message that is seen was sent, to this queue, and not refused each time.

use std::collections::BTreeMap;

use super::sightings;
use crate::sim::history::{History, Outcome};

pub(super) fn check(history: &History) -> Vec<String> {
    let mut sent = BTreeMap::new();
    for send in &history.sends {
        let possible = send.outcome != Outcome::Refused;
        *sent.entry((send.queue, send.id)).or_insert(false) |= possible;
    }
    let mut seen: Vec<_> = sightings(history)
        .map(|(queue, _, id)| (queue, id))
        .collect();
    seen.sort_unstable();
    seen.dedup();
    let unexplained = seen.into_iter().filter_map(|place| match sent.get(&place) {
        Some(true) => None,
        Some(false) => Some((place, "was refused")),
        None => Some((place, "was never sent there")),
    });
    unexplained
        .map(|((queue, id), why)| format!("message {id} in queue {queue} {why}"))
        .collect()
}

#[test]
fn a_message_that_nobody_sent_and_one_that_was_refused_are_found() {
    let mut history = super::sample::sound();
    history.pulls[0].messages.push((2, 99));
    history.sends[0].outcome = Outcome::Refused;
    assert_eq!(check(&history).len(), 2);
}
